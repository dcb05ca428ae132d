// Package terminal says what a shell behind a terminal can do. It is the leaf
// that those who open shells and those who carry their bytes share.
package terminal

import "time"

// MaxDimension is the largest number of columns or rows; the smallest is 1.
const MaxDimension = 1000

// Size is a terminal's size in character cells.
type Size struct {
	Cols, Rows uint16
}

// Valid reports whether both dimensions are in 1..MaxDimension.
func (s Size) Valid() bool {
	return s.Cols >= 1 && s.Cols <= MaxDimension && s.Rows >= 1 && s.Rows <= MaxDimension
}

// Exit is how a shell ended.
type Exit struct {
	Code   int    // 128 + the signal's number if a signal ended the shell
	Signal string // "SIGKILL"; empty if the shell exited by itself, or if the signal is not known
}

// Terminal is a shell behind a terminal. One Read or TryRead runs at a time, and
// one Write or TryWrite.
type Terminal interface {
	// Read waits for output and returns it in order, perhaps less than fits in p.
	// Its error is io.EOF after the last of the output, also when the shell left
	// another process that still holds the terminal; any other error means that
	// output was lost.
	Read(p []byte) (int, error)
	// TryRead returns the output that is there now; 0, nil if there is none, or if
	// the terminal cannot tell. With gather it also returns what the program prints
	// as soon as it is given the processor: fewer, larger pieces of a flood, a few
	// microseconds later. Floods gather in turn (internal/pollfd), so a Terminal
	// around another must not hold a turn of its own.
	TryRead(p []byte, gather bool) (int, error)
	// Write gives input to the shell. It waits while the program does not read.
	Write(p []byte) (int, error)
	// TryWrite gives the shell the input for which there is room now; 0, nil if
	// there is none, or if the terminal cannot tell.
	TryWrite(p []byte) (int, error)
	Resize(s Size) error
	// Close ends the shell and what belongs to it, and returns when that is done.
	// It wakes a pending Read and Write, and is called once.
	Close() error
	// Wait returns how the shell ended; an error means that the end is not known.
	// It is called once Read has returned an error, and then returns soon.
	Wait() (Exit, error)
}

// Expiring is a Terminal that is cut at a known time, with the way to it.
type Expiring interface {
	// Expires is when the terminal is cut; zero: never.
	Expires() time.Time
}
