// Package keeper holds terminals on an instance while the way to them is made anew.
//
// A keeper is one process of one account. It starts programs under ptys of its own, keeps what they print until a
// gateway has it, and hangs up when no gateway has been heard for a terminal's lease. Gateways reach the keeper by a
// socket in a directory of the account, over ssh, and speak pkg wire.
//
// A keeper knows nothing of containers: what it starts is the gateway's.
package keeper

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/internal/keeper/wire"
)

const (
	// mostTerminals bounds the terminals of an account.
	mostTerminals = 200
	// mostConnections bounds the connections that have not said yet which terminal they are for.
	mostConnections = 50
	// greetingTime bounds the time until a connection has said so.
	greetingTime = 10 * time.Second
)

// Keeper holds the terminals of an account.
type Keeper struct {
	idle time.Duration

	mu        sync.Mutex
	terminals map[string]*held
	strangers int            // connections that have not said which terminal they are for
	unused    *time.Timer    // ends Serve
	wg        sync.WaitGroup // of connections
}

// New returns a keeper that serves until it has had no terminal for a time.
func New(idle time.Duration) *Keeper {
	return &Keeper{idle: idle, terminals: map[string]*held{}}
}

// Serve serves a listener until there has been no terminal for the idle time. It closes the listener, after a call of
// leaving.
func (k *Keeper) Serve(l *net.UnixListener, leaving func()) error {
	k.mu.Lock()
	k.unused = time.AfterFunc(k.idle, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if len(k.terminals) == 0 && k.strangers == 0 {
			leaving()
			_ = l.Close()
		}
	})
	k.mu.Unlock()
	for {
		conn, err := l.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			k.wg.Wait()
			return nil
		case err != nil: // too many open files, say
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if !own(conn) || !k.welcome() {
			_ = conn.Close()
			continue
		}
		k.wg.Go(func() { k.greet(conn) })
	}
}

// welcome counts another connection that has not said yet which terminal it is for, and reports whether there is room for it.
func (k *Keeper) welcome() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.strangers == mostConnections {
		return false
	}
	k.strangers++
	return true
}

// own reports whether a connection is of the keeper's own account, or root's.
func own(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var peer *unix.Ucred
	if raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return false
	}
	return int(peer.Uid) == unix.Getuid() || peer.Uid == 0
}

// greet reads what a connection is for, and serves it.
func (k *Keeper) greet(conn *net.UnixConn) {
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadDeadline(time.Now().Add(greetingTime))
	kind, body, err := wire.Read(conn, wire.MaxBody)
	_ = conn.SetReadDeadline(time.Time{})
	var a *attachment
	if err == nil {
		a, err = k.admit(conn, kind, body)
	}
	k.mu.Lock()
	if k.strangers--; len(k.terminals) == 0 {
		k.unused.Reset(k.idle)
	}
	k.mu.Unlock()
	if err != nil {
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = conn.Write(wire.Append(nil, wire.Refused, []byte(err.Error())))
		return
	}
	a.serve()
}

// What a keeper refuses.
var (
	errUnknown = errors.New(wire.Unknown)
	errTaken   = errors.New("there is a terminal of this name")
	errMany    = errors.New("the account has too many terminals")
)

// admit finds or starts the terminal that a connection is for, and attaches the connection to it.
func (k *Keeper) admit(conn *net.UnixConn, kind wire.Type, body []byte) (*attachment, error) {
	switch kind {
	case wire.Open:
		o, err := wire.ParseOpening(body)
		if err != nil {
			return nil, err
		}
		h, err := k.start(&o)
		if err != nil {
			return nil, err
		}
		return h.attach(conn, 0, o.Window)
	case wire.Attach:
		a, err := wire.ParseAttachment(body)
		if err != nil {
			return nil, err
		}
		k.mu.Lock()
		h := k.terminals[a.Session]
		k.mu.Unlock()
		if h == nil || !h.knows(a.Secret) {
			return nil, errUnknown
		}
		return h.attach(conn, a.Received, a.Window)
	}
	return nil, wire.ErrMalformed
}

// start starts a terminal.
func (k *Keeper) start(o *wire.Opening) (*held, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.terminals[o.Session] != nil:
		return nil, errTaken
	case len(k.terminals) == mostTerminals:
		return nil, errMany
	}
	h, err := hold(o, func() { k.forget(o.Session) })
	if err != nil {
		return nil, fmt.Errorf("starting the terminal: %w", err)
	}
	k.terminals[o.Session] = h
	return h, nil
}

// forget forgets a terminal that was hung up and has ended.
func (k *Keeper) forget(session string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.terminals, session)
	if len(k.terminals) == 0 {
		k.unused.Reset(k.idle)
	}
}
