package gateway

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
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
}

// headerTimeout is what a client has to send its request in, with the body that
// nobody wants, and answerTimeout what it has to take the answer in: so long it
// costs a descriptor. Neither counts for a connection that has become a WebSocket.
// maxHeader bounds the request in bytes: a ticket of 8 KiB fits, twice.
const (
	headerTimeout = 10 * time.Second
	answerTimeout = time.Minute
	maxHeader     = 32 << 10
)

// newServer serves one of the listeners.
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

// httpErrors logs what net/http has to say of connections and handlers, at level
// debug. Connections are anybody's, so its lines have a bound.
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

// EndSignals are those that end the process in order.
func EndSignals() []os.Signal {
	ends := []os.Signal{syscall.SIGTERM}
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGHUP} {
		if !signal.Ignored(sig) { // else nohup or a script's background started it, to outlive them
			ends = append(ends, sig)
		}
	}
	return ends
}

func (g *gateway) serve(ctx context.Context) error {
	ends := EndSignals() // while what is ignored can be told from the rest
	wasIgnored()
	parts, failed := errgroup.WithContext(ctx)
	background, stop := context.WithCancel(context.Background())
	defer stop()
	for _, job := range g.jobs {
		parts.Go(func() error { return job(background) })
	}
	servers := make([]*http.Server, len(g.servers))
	for i, s := range g.servers {
		servers[i] = newServer(s.handler, g.Log)
		waiting := newLobby(s.listener)
		servers[i].ConnState = waiting.track
		parts.Go(func() error {
			if err := servers[i].Serve(waiting); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serving %s: %w", s.listener.Addr(), err)
			}
			return nil
		})
	}
	<-failed.Done()

	hurry, forget := signal.NotifyContext(context.Background(), ends...)
	defer forget()
	g.Log.Info("ending", "cause", context.Cause(failed), "drain", g.DrainTimeout.String())
	err := g.router.Drain(hurry, g.DrainTimeout)
	if err != nil {
		g.Log.Error("sessions are left", "err", err)
	}
	// What is left are short requests, and connections that a browser opened
	// ahead and never used, which Shutdown would wait 5 s for.
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

// wasIgnored undoes what a gateway that was started by nohup, or in a script's
// background, would hand down to its shells: an ignored SIGHUP or SIGINT, by
// which a shell's Ctrl-C is dead. A signal that is caught goes back to its
// default in a child. The gateway stays as deaf as it was started.
func wasIgnored() {
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
