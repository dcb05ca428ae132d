package session

import "github.com/molecule-ai/termgw/internal/pollfd"

// smallRead is the buffer of a terminal that is waited for, in bytes: enough for a
// keystroke's echo. What is there at once is read into a block, which is borrowed
// for that, and so the largest piece that the owner is given: a browser takes 50 MB
// in pieces of 4 KiB in twice the time of such pieces (measured).
const smallRead = 256

// carryOutput reads the terminal and prints what it read, until there is no more;
// it returns the error of the last read. What was read leaves at once, except in a
// flood: while the owner has yet to render what it was given, more is gathered,
// unless somebody has typed.
func (s *Session) carryOutput() error {
	small := make([]byte, smallRead)
	var failed error // of a read that was ahead
	flows := false   // more may be there already
	for {
		room, echo := s.awaitRoom()
		if echo != nil {
			if failed == nil {
				failed = s.readAhead(echo)
			}
			continue
		}
		if p := s.ahead.front(); len(p) > 0 {
			p = p[:min(len(p), room)]
			s.print(p)
			s.ahead.drop(len(p))
			continue
		}
		n, err := 0, failed
		if flows && err == nil {
			n, err = s.carryLarge(nil, room)
		}
		if n == 0 && err == nil {
			n, err = s.term.Read(small[:min(smallRead, room)])
			switch {
			case n == smallRead && err == nil:
				n, err = s.carryLarge(small, room)
			case n > 0:
				s.print(small[:n])
			}
		}
		if err != nil {
			return err
		}
		flows = n >= pollfd.Large || n == smallRead
	}
}

// carryLarge prints what was waited for, if anything, with what is there behind
// it. More is gathered of a flood.
func (s *Session) carryLarge(waitedFor []byte, room int) (n int, err error) {
	large := blocks.Get().(*block)
	defer blocks.Put(large)
	p := large[:min(blockSize, room)]
	n = copy(p, waitedFor)
	m, err := s.term.TryRead(p[n:], waitedFor == nil && s.mayGather())
	if n += m; n > 0 {
		s.print(p[:n])
	}
	return n, err
}

// mayGather reports whether the owner has yet to render what it was given, and
// nobody has typed since.
func (s *Session) mayGather() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.ending && !s.typed && (!s.owner.acks || s.owner.behind() > 0)
}

// awaitRoom waits until output is wanted and returns how many bytes of it, or the
// echo of an interrupt that was typed meanwhile.
func (s *Session) awaitRoom() (room int, echo []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if echo, s.echo = s.echo, nil; echo != nil {
			return 0, echo
		}
		// choked: the owner's acknowledgements are stuck behind input that the
		// program does not read, perhaps because its output is not read.
		if s.ending || s.choked {
			return blockSize, nil
		}
		if room := s.owner.allows - s.printed; room > 0 {
			return int(min(room, blockSize)), nil
		}
		s.output.Wait()
	}
}

// print gives the owner a piece of output, and keeps it for the observers.
func (s *Session) print(p []byte) {
	s.mu.Lock()
	at := s.printed
	if len(s.observers) > 0 {
		s.keep(p)
	}
	s.printed += int64(len(p))
	s.typed = false
	s.mu.Unlock()
	s.count(0, len(p))
	if s.owner.client.Output(at, p) == nil {
		s.sent += int64(len(p))
	}
}
