package session

import "github.com/molecule-ai/termgw/internal/pollfd"

// smallRead is the size of the buffer with which a session waits for output, in
// bytes: enough for a keystroke's echo. More output is read into a borrowed block,
// which is the largest piece that the owner is given: a browser takes 50 MB in
// pieces of 4 KiB in twice the time of pieces of 32 KiB (measured).
const smallRead = 256

// carryOutput reads and prints output until the end, and returns the error of the
// last read. Output is printed at once, except in a flood: while the owner is behind
// and nobody types, more is gathered for each piece.
func (s *Session) carryOutput() error {
	small := make([]byte, smallRead)
	var failed error // of a read whose output is not printed yet
	flows := false   // more output may be there already
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

// carryLarge prints the output that was waited for, if any, together with the
// output that is there now.
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

// mayGather reports whether the owner is behind, and nobody has typed since the last
// output.
func (s *Session) mayGather() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.ending && !s.typed && (!s.owner.acks || s.owner.behind() > 0)
}

// awaitRoom waits until the owner takes output and returns how many bytes, or the
// echo of an interrupt that was typed meanwhile.
func (s *Session) awaitRoom() (room int, echo []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if echo, s.echo = s.echo, nil; echo != nil {
			return 0, echo
		}
		// When choked, acknowledgements are stuck behind input that the program does
		// not read, perhaps because the program's output is not read.
		if s.ending || s.choked {
			return blockSize, nil
		}
		if room := s.owner.allows - s.printed; room > 0 {
			return int(min(room, blockSize)), nil
		}
		s.output.Wait()
	}
}

// print gives the owner a piece of output, and keeps the piece for the observers.
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
