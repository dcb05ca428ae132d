package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/molecule-ai/termgw/internal/logline"
)

type server struct {
	listener net.Listener
	handler  http.Handler
	tls      *tls.Config           // nil: no TLS
	proxies  func(netip.Addr) bool // whose connections begin with a PROXY header; nil: nobody's do
}

// headerTimeout bounds the time in which a client sends a request, with the unused body,
// and answerTimeout the time in which the client takes the answer: for so long a client
// can hold a descriptor. Neither holds for a connection that has become a WebSocket.
// maxHeader bounds a request's header in bytes: a ticket of 8 KiB fits twice.
const (
	headerTimeout = 10 * time.Second
	answerTimeout = time.Minute
	maxHeader     = 32 << 10
)

// newServer returns the server of one listener.
func newServer(handler http.Handler, logger *slog.Logger) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true) // a WebSocket is an HTTP/1.1 upgrade
	return &http.Server{
		Handler: handler, Protocols: &protocols,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: answerTimeout,
		IdleTimeout: time.Minute, MaxHeaderBytes: maxHeader,
		ErrorLog: log.New(httpErrors{logger, logline.NewBound(logger)}, "", 0),
	}
}

// httpErrors logs net/http's errors of connections and handlers, at level debug.
// Anybody can cause them, so the number of lines is bounded.
type httpErrors struct {
	log   *slog.Logger
	lines *logline.Bound
}

func (e httpErrors) Write(p []byte) (int, error) {
	if e.log.Enabled(context.Background(), slog.LevelDebug) {
		e.lines.Do("http", func() { e.log.Debug(strings.TrimSuffix(string(p), "\n")) })
	}
	return len(p), nil
}

// EndSignals returns the signals that end the process in an orderly way: SIGTERM, and
// SIGINT and SIGHUP unless the process was started with them ignored.
func EndSignals() []os.Signal {
	ends := []os.Signal{syscall.SIGTERM}
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGHUP} {
		if !signal.Ignored(sig) { // ignored by nohup, or in a script's background
			ends = append(ends, sig)
		}
	}
	return ends
}

// serve serves until ctx ends or a part fails. Then it drains, and stops the jobs and the servers.
func (g *gateway) serve(ctx context.Context) error {
	ends := EndSignals() // before catchIgnored
	catchIgnored()
	parts, failed := errgroup.WithContext(ctx)
	background, stop := context.WithCancel(context.Background())
	defer stop()
	for _, job := range g.jobs {
		parts.Go(func() error { return job(background) })
	}
	servers := make([]*http.Server, len(g.servers))
	for i, s := range g.servers {
		servers[i] = newServer(s.handler, g.Log)
		waiting := newLobby(s, g.Log)
		servers[i].ConnState = waiting.track
		listener := net.Listener(waiting)
		if s.tls != nil {
			listener = tls.NewListener(waiting, s.tls)
		}
		parts.Go(func() error {
			if err := servers[i].Serve(listener); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serving %s: %w", s.listener.Addr(), err)
			}
			return nil
		})
	}
	<-failed.Done()

	hurry, forget := signal.NotifyContext(context.Background(), ends...)
	defer forget()
	g.Log.Info("ending", "cause", context.Cause(failed), "drain_seconds", g.DrainTimeout.Seconds())
	err := g.router.Drain(hurry, g.DrainTimeout)
	if err != nil {
		g.Log.Error("sessions are left", "err", err)
	}
	// Short requests may be left, and connections that a browser opened ahead and never
	// used, for which Shutdown would wait 5 s.
	short, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, s := range servers {
		if s.Shutdown(short) != nil {
			_ = s.Close()
		}
	}
	stop()
	return errors.Join(parts.Wait(), err)
}

// catchIgnored catches every signal that the process was started to ignore, by nohup or
// in a script's background, and does nothing when the signal comes. A child inherits an
// ignored signal, and then Ctrl-C is dead in the child's shell; a caught signal has its
// default action in the child.
func catchIgnored() {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return
	}
	_, rest, _ := strings.Cut(string(status), "\nSigIgn:")
	mask, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	ignored, err := strconv.ParseUint(mask, 16, 64)
	if err != nil {
		return
	}
	for sig := syscall.Signal(1); sig < 32; sig++ {
		if ignored&(1<<(sig-1)) != 0 {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
}
