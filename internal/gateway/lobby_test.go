package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// fatHeader is 32 KiB of names with nothing behind them, without the end of the header.
func fatHeader() string {
	var b strings.Builder
	b.WriteString("GET / HTTP/1.1\r\nHost: gw.example\r\n")
	for i := range 5000 {
		fmt.Fprintf(&b, "%04x:\n", i)
	}
	return b.String()
}

// Connections that send much and no whole request make room for each other; those that have said nothing yet, or speak as
// a client does, stay.
func TestLobby(t *testing.T) {
	t.Parallel()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newLobby(server{listener: tcp}, slog.New(slog.DiscardHandler))
	server := &http.Server{
		ConnState: l.track, MaxHeaderBytes: maxHeader, ReadHeaderTimeout: patience,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	dial := func(send string) net.Conn {
		conn, err := net.Dial("tcp", tcp.Addr().String())
		if err == nil {
			_, err = io.WriteString(conn, send)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	ask := func(conn net.Conn) {
		t.Helper()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: gw.example\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		r, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
	}

	quiet, kept := dial(""), dial("")
	ask(kept)
	const fat = 400
	most := 0
	var closed sync.WaitGroup
	count := make(chan struct{}, fat)
	for range fat {
		conn := dial(fatHeader())
		closed.Go(func() {
			_, _ = conn.Read(make([]byte, 1)) // the end
			count <- struct{}{}
		})
		l.mu.Lock()
		most = max(most, l.used)
		l.mu.Unlock()
	}
	guestsThatStay := lobbyMemory / (requestMemory * (25_000 - honestRequest))
	for range fat - guestsThatStay - 1 {
		<-count // dismissed
	}
	if most > lobbyMemory {
		t.Errorf("%d bytes were used", most)
	}
	ask(quiet)
	ask(kept)
	ask(dial(""))

	_ = server.Close()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	closed.Wait()
	eventually(t, "all have left", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.used == 0 && len(l.guests) == 0
	})
}
