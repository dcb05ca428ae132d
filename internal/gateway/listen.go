package gateway

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// listen opens the listeners, unless the caller has set Listener.
func (g *gateway) listen() error {
	if g.Listener != nil {
		g.servers = []server{{listener: g.Listener, handler: g.Front(g.router)}}
		return nil
	}
	terminals, err := g.listenAt("TERMGW_LISTEN", g.Listen)
	if err != nil {
		return err
	}
	front := server{listener: &sparing{Listener: terminals}, handler: g.router}
	if g.certs != nil {
		front.tls = g.certs.server()
	}
	if g.ProxyProtocol {
		front.proxies = g.router.Trusts
	}
	g.servers = []server{front}
	for _, own := range []struct{ name, variable, address string }{
		{"metrics", "TERMGW_ADMIN_LISTEN", g.AdminListen},
		{"profiles", "TERMGW_PPROF_LISTEN", g.PprofListen},
	} {
		if own.address == "" {
			continue
		}
		listener, err := g.listenAt(own.variable, own.address)
		if err != nil {
			return errors.Join(err, g.closeListeners())
		}
		handler := pprofHandler(own.address)
		if own.name == "metrics" {
			handler = metricsHandler(g.reg, g.router, own.address)
		}
		g.servers = append(g.servers, server{listener: listener, handler: handler})
		g.Log.Info("serving "+own.name, "address", listener.Addr().String())
	}
	if len(g.Sockets) > 0 { // whoever connects there would wait for ever
		err := fmt.Errorf("systemd has passed sockets that no variable asks for: %s; name each in TERMGW_LISTEN, TERMGW_ADMIN_LISTEN or TERMGW_PPROF_LISTEN as systemd:NAME, or take it out of the socket unit",
			strings.Join(slices.Sorted(maps.Keys(g.Sockets)), ", "))
		return errors.Join(err, g.closeListeners())
	}
	g.Log.Info("serving terminals", "address", terminals.Addr().String(), "tls", g.certs != nil, "version", g.Version,
		"max_sessions", g.MaxSessions, "memory_limit", g.memory, "held_bytes", g.HeldBytes)
	return nil
}

func (g *gateway) closeListeners() (err error) {
	for _, s := range g.servers {
		err = errors.Join(err, s.listener.Close())
	}
	return err
}

// listenAt listens at host:port or unix:/PATH, or takes the socket that systemd has passed.
func (g *gateway) listenAt(variable, address string) (listener net.Listener, err error) {
	switch form, rest, _ := strings.Cut(address, ":"); {
	case form == "unix":
		listener, err = listenUnix(rest, g.ListenMode)
	case address == "systemd" || form == "systemd":
		listener, err = g.passed(rest)
	default:
		listener, err = net.Listen("tcp", address)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: listening: %w", variable, err)
	}
	return listener, nil
}

// passed takes a socket that systemd has passed, by its FileDescriptorName, or the only one if the name is empty.
func (g *gateway) passed(name string) (net.Listener, error) {
	names := slices.Sorted(maps.Keys(g.Sockets))
	if len(names) == 0 {
		return nil, errors.New("systemd has passed no listening socket that is left: start the gateway by a socket unit")
	}
	if name == "" && len(names) == 1 {
		name = names[0]
	}
	sockets := g.Sockets[name]
	switch {
	case name == "":
		return nil, fmt.Errorf("systemd has passed the sockets %s: name one, as systemd:NAME", strings.Join(names, ", "))
	case len(sockets) == 0:
		return nil, fmt.Errorf("systemd has passed no socket %q, but %s: set FileDescriptorName in the socket unit", name, strings.Join(names, ", "))
	case len(sockets) > 1:
		return nil, fmt.Errorf("systemd has passed %d sockets of the name %s: give each its own socket unit and FileDescriptorName", len(sockets), name)
	}
	delete(g.Sockets, name)
	return sockets[0], nil
}

// unixListener is the listener of a socket file, which it removes unless another process has put its own there.
type unixListener struct {
	*net.UnixListener
	path string
	made os.FileInfo
}

// listenUnix makes a unix socket with a mode. The socket is made in a directory that nobody else may enter, and
// then moved to its path: so there is no moment at which more users can connect than the mode says. A socket that is
// left of a process that has ended is replaced.
func listenUnix(path string, mode fs.FileMode) (_ net.Listener, err error) {
	if err := vacant(path); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".tgw")
	if err != nil {
		return nil, fmt.Errorf("making a socket: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	hidden := filepath.Join(dir, "s")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: hidden})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	made, err := os.Lstat(hidden)
	if err == nil {
		err = os.Chmod(hidden, mode)
	}
	if err == nil {
		err = os.Rename(hidden, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making the socket %s: %w", path, err), listener.Close())
	}
	return &unixListener{listener, path, made}, nil
}

// vacant returns an error if the path is taken by something else than a socket on which nobody listens.
func vacant(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and is no socket: choose another path, or remove it", path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		_ = conn.Close()
		err = syscall.EADDRINUSE
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("%s: another process may listen there: %w", path, err)
}

func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Net: "unix", Name: l.path} }

func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if now, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(now, l.made) {
		err = errors.Join(err, os.Remove(l.path))
	}
	return err
}
