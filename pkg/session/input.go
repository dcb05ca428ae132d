package session

// typeMessage gives the terminal a whole message of input, and returns how many
// bytes were written or queued. The lock is held.
func (s *Session) typeMessage(p []byte) int {
	s.interrupt(p)
	n := 0
	if !s.typist {
		var err error
		n, err = s.term.TryWrite(p)
		s.given(n)
		if n == len(p) || err != nil {
			return len(p) // after an error the shell is gone: carryOutput finds that out
		}
	}
	return n + s.queueInput(p[n:], true)
}

// queueInput queues input, and returns how many bytes had room. The lock is held.
func (s *Session) queueInput(p []byte, last bool) int {
	if s.ending {
		return len(p)
	}
	n := s.input.push(p)
	s.full = n < len(p)
	if last || n < len(p) {
		s.toType = s.input.size()
		s.startTyping()
	}
	return n
}

// startTyping has queued input typed that is whole. The lock is held.
func (s *Session) startTyping() {
	if s.toType > 0 && !s.typist && !s.over {
		s.typist = true
		s.wg.Go(s.typeInput)
	}
}

// typeInput writes queued input to the terminal until no whole message is left.
// Write waits while the program does not read, which the client's reader must not.
func (s *Session) typeInput() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.toType > 0 && !s.ending {
		p := s.input.front()
		p = p[:min(len(p), s.toType)]
		s.mu.Unlock()
		n, err := s.term.Write(p)
		s.mu.Lock()
		s.given(n)
		if err != nil {
			n = s.toType // the shell is gone: carryOutput finds that out
		}
		s.input.drop(n)
		s.toType -= n
		s.full = false
		s.queue.Signal()
	}
	s.typist = false
	if s.ending {
		s.input.clear()
	}
}

// given counts input that the terminal took. The lock is held.
func (s *Session) given(n int) {
	s.bytesIn += int64(n)
	s.count(n, 0)
}
