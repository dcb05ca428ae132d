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
	return !s.ending && !s.typed && (s.owner == nil || !s.owner.acks || s.owner.behind() > 0)
}

// awaitRoom waits until output may be read and returns how many bytes, or the echo of
// an interrupt that was typed meanwhile.
func (s *Session) awaitRoom() (room int, echo []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if echo, s.echo = s.echo, nil; echo != nil {
			return 0, echo
		}
		if room := s.room(); room > 0 {
			return room, nil
		}
		s.output.Wait()
	}
}

// room returns how many bytes of output the owner takes, and can be kept if the owner
// may be lost. An owner that is given what is kept, and one that is lost, hold nothing
// back until that is full. The lock is held.
func (s *Session) room() int {
	if s.ending {
		return blockSize
	}
	room := int64(blockSize)
	// When choked, acknowledgements are stuck behind input that the program does not
	// read, perhaps because the program's output is not read.
	if a := s.owner; a != nil && !a.behindKept && !s.choked {
		room = min(room, a.allows-s.printed)
	}
	if !s.mayResume() || room <= 0 {
		return int(room)
	}
	for s.kept.room() == 0 {
		switch {
		case s.kept.from < s.held && s.dropSlowest():
		case s.choked && s.held < s.offered: // the oldest is lost to an owner that would ask for it
			s.held = min(s.held+blockSize, s.offered)
			s.forget()
		default:
			return 0
		}
	}
	return int(min(room, int64(s.kept.room())))
}

// print gives the owner a piece of output, and keeps the piece for who may ask for it.
func (s *Session) print(p []byte) {
	s.mu.Lock()
	at := s.printed
	if s.keeps() {
		s.keep(p)
	}
	s.printed += int64(len(p))
	s.typed = false
	var owner Client
	if a := s.owner; a != nil && !a.behindKept { // else catchUp gives it
		owner = a.client
		s.offered = s.printed
	}
	s.mu.Unlock()
	s.count(0, len(p))
	if owner != nil && owner.Output(at, p) == nil {
		s.mu.Lock()
		s.took(at, len(p))
		s.mu.Unlock()
	}
}

// took counts output that an owner took, once. The lock is held.
func (s *Session) took(at int64, n int) {
	if end := at + int64(n); end > s.sentTo {
		s.sent += end - max(at, s.sentTo)
		s.sentTo = end
	}
}
