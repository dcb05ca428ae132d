package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
)

// period is the length after which the stream repeats: a prime, so that no
// loss, repetition or exchange of whole buffers goes unseen.
const period = 1<<20 - 3

// pattern is one period of the stream, the same in every process.
func pattern() []byte {
	p := make([]byte, period)
	seed := [32]byte{1}
	_, _ = rand.NewChaCha8(seed).Read(p) // never fails
	return p
}

// writeStream writes the stream's first bytes as fast as the terminal takes
// them.
func writeStream(w io.Writer, size string) error {
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return err
	}
	p := pattern()
	for off := 0; n > 0; {
		piece := p[off:min(off+64<<10, len(p))]
		piece = piece[:min(int64(len(piece)), n)]
		if _, err := w.Write(piece); err != nil {
			return err
		}
		n -= int64(len(piece))
		off = (off + len(piece)) % len(p)
	}
	return nil
}

// checker compares what arrives with the stream, byte by byte, which costs less
// than a checksum and tells where they part.
type checker struct {
	pattern []byte
	got     int64
	bad     int64 // offset of a piece that differs, plus one; 0: none
}

func (c *checker) take(p []byte) {
	for rest := p; len(rest) > 0; {
		want := c.pattern[c.got%int64(len(c.pattern)):]
		n := min(len(want), len(rest))
		if c.bad == 0 && !bytes.Equal(rest[:n], want[:n]) {
			c.bad = c.got + 1
		}
		c.got += int64(n)
		rest = rest[n:]
	}
}

// verdict is nil if exactly size bytes came, all of them right.
func (c *checker) verdict(size int64) error {
	switch {
	case c.bad != 0:
		return fmt.Errorf("the stream differs near byte %d", c.bad-1)
	case c.got != size:
		return fmt.Errorf("%d bytes lost at the end", size-c.got)
	}
	return nil
}
