// Package terminal declares a terminal: a shell behind a pty. The kinds of place open
// terminals, and pkg/session carries their bytes; neither imports the other.
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
	Signal string // such as "SIGKILL"; empty if the shell exited by itself or the signal is not known
}

// Terminal is a shell behind a pty. At most one Read or TryRead runs at a time, and at
// most one Write or TryWrite.
type Terminal interface {
	// Read waits for output and returns the next bytes, perhaps fewer than fit in p.
	// The error is io.EOF after the last of the output, also if another process of
	// the shell still has the pty open; any other error means that output was lost.
	Read(p []byte) (int, error)
	// TryRead returns the output that is there now; 0, nil if there is none, or if
	// the terminal does not know. With gather TryRead first lets the program run, and
	// also returns the output that it prints then: fewer, larger pieces of a flood, a
	// few microseconds later. Floods take turns at gathering, by permits of the process
	// (internal/pollfd): a Terminal that wraps another holds no permit when it calls TryRead.
	TryRead(p []byte, gather bool) (int, error)
	// Write gives input to the shell, and waits while the program does not read.
	Write(p []byte) (int, error)
	// TryWrite gives the shell as much of the input as has room now; 0, nil if there
	// is no room, or if the terminal does not know.
	TryWrite(p []byte) (int, error)
	Resize(s Size) error
	// Close ends the shell and the other processes of its session, and returns when
	// they are gone. Close wakes a pending Read and Write. It is called once.
	Close() error
	// Wait returns how the shell ended; an error means that this is not known. Wait is
	// called after Read has returned an error, and then returns soon.
	Wait() (Exit, error)
}

// Silent is a Terminal whose connection may go silent, or be lost, and come back.
type Silent interface {
	Silence() Silence
	// OnLost has a function called whenever the connection is lost, from any goroutine. It is called once, before the first Read.
	OnLost(do func())
}

// Silence is how a terminal's connection is silent.
type Silence struct {
	// Lasts is how long nothing has come although something should have; Limit is how long that may be before the
	// terminal fails.
	Lasts, Limit time.Duration
	// Lost reports that there is no connection, and another one is made.
	Lost bool
}

// Expiring is a Terminal whose connection is cut at a known time.
type Expiring interface {
	// Expires returns the time at which the terminal is cut; zero: never.
	Expires() time.Time
}
