package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// askAdmin sends a request byte by byte, to the listener that has the path, and returns the answer, whose body is not read.
func (g *served) askAdmin(t *testing.T, path, host, header string) *http.Response {
	t.Helper()
	address := g.admin
	if strings.HasPrefix(path, "/debug/") {
		address = g.said("serving profiles")
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n", path, host, header); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// A page whose name leads to the admin port (DNS rebinding) reads nothing, and who scrapes it by an address or a name of
// its network does.
func TestAdminHost(t *testing.T) {
	t.Parallel()
	p := &platform{}
	p.makeKey(t)
	g := p.serve(t, "TERMGW_WORKSPACES_FILE="+workspacesFile(t), "DOCKER_HOST=unix:///nonexistent.sock")
	machine, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(g.admin)
	for _, path := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline", "/debug/pprof/symbol", "/no/such"} {
		for _, test := range []struct {
			host, header string
			answered     bool
		}{
			{"127.0.0.1:" + port, "", true},
			{"10.20.30.40:9090", "", true},
			{"[::1]:9090", "", true},
			{"[fd00::1]", "", true},
			{"localhost:9090", "", true},
			{"LOCALHOST", "", true},
			{"termgw:9090", "", true},
			{"termgw-admin.platform.svc:9090", "", true},
			{"termgw-admin.platform.svc.cluster.local:9090", "", true},
			{"ip-10-0-0-1.eu-west-1.compute.internal:9090", "", true},
			{machine + ":9090", "", true},
			{"127.0.0.1", "Sec-Fetch-Site: none\r\n", true},
			{"127.0.0.1", "Sec-Fetch-Site: same-origin\r\n", true},
			{"evil.example", "", false},
			{"evil.example:" + port, "", false},
			{"127.0.0.1.evil.example", "", false},
			{"127.0.0.1.nip.io:9090", "", false},
			{"localhost.evil.example", "", false},
			{"svc.evil.example", "", false},
			{"evil.example.", "", false},
			{"evil.dev", "", false},
			{"evil.local", "", false}, // any neighbour's, by multicast DNS
			{"cluster.local", "", false},
			{"127.0.0.1:80@evil.example", "", false},
			{"", "", false},
			{"127.0.0.1", "Sec-Fetch-Site: cross-site\r\n", false},
			{"127.0.0.1", "Sec-Fetch-Site: same-site\r\n", false},
			{"127.0.0.1", "Origin: http://127.0.0.1:80\r\n", false},
			{"127.0.0.1", "Origin: null\r\n", false},
		} {
			response := g.askAdmin(t, path, test.host, test.header)
			want := http.StatusOK
			if path == "/no/such" {
				want = http.StatusNotFound
			}
			if (response.StatusCode == want) != test.answered {
				t.Errorf("%s of host %q, %q: %s", path, test.host, test.header, response.Status)
			}
			if !test.answered {
				body, err := io.ReadAll(io.LimitReader(response.Body, 4<<10))
				if err != nil || strings.Contains(string(body), "termgw_") || strings.Contains(string(body), "serve\x00") || len(body) > 1<<10 {
					t.Errorf("%s of host %q answers %v %q", path, test.host, err, body)
				}
			}
		}
	}
}

// Profiles are served only where they are asked for, and apart from the metrics; the admin listener has the probes of health too.
func TestProfilesAreApart(t *testing.T) {
	t.Parallel()
	p := &platform{}
	p.makeKey(t)
	environ := []string{"TERMGW_WORKSPACES_FILE=" + workspacesFile(t), "DOCKER_HOST=unix:///nonexistent.sock"}
	without, with := p.serve(t, append(environ, "TERMGW_PPROF_LISTEN=")...), p.serve(t, environ...)
	if at := without.said("serving profiles"); at != "" {
		t.Errorf("profiles are served at %s without being asked for", at)
	}
	profiles := with.said("serving profiles")
	for _, test := range []struct {
		g             *served
		address, path string
		want          int
	}{
		{without, without.admin, "/debug/pprof/", http.StatusNotFound},
		{with, with.admin, "/debug/pprof/cmdline", http.StatusNotFound},
		{with, with.address, "/debug/pprof/", http.StatusNotFound},
		{with, profiles, "/metrics", http.StatusNotFound},
		{with, profiles, "/debug/pprof/heap?debug=1", http.StatusOK},
		{with, with.admin, "/metrics", http.StatusOK},
		{with, with.admin, "/healthz", http.StatusOK},
		{with, with.admin, "/readyz", http.StatusOK},
	} {
		if got := test.g.get(t, test.address, test.path); got.StatusCode != test.want {
			t.Errorf("%s: %s, want %d", test.path, got.Status, test.want)
		}
	}
}

// A recording has a longest time, and is one at once.
func TestProfilesAreBounded(t *testing.T) {
	t.Parallel()
	p := &platform{}
	p.makeKey(t)
	g := p.serve(t, "TERMGW_WORKSPACES_FILE="+workspacesFile(t), "DOCKER_HOST=unix:///nonexistent.sock")
	timed := []string{"profile", "trace", "heap", "allocs", "goroutine", "mutex", "block", "threadcreate"}
	for _, profile := range timed {
		for _, seconds := range []string{"61", "86400", "1e9", "9223372036854775807", "Inf", "NaN", "-1", "0", "x", "60.001", "61&seconds=1"} {
			if response := g.askAdmin(t, "/debug/pprof/"+profile+"?seconds="+seconds, "127.0.0.1", ""); response.StatusCode != http.StatusBadRequest {
				t.Errorf("%s of %s s: %s", profile, seconds, response.Status)
			}
		}
	}
	if response := g.askAdmin(t, "/debug/pprof/trace?seconds=0.01", "127.0.0.1", ""); response.StatusCode != http.StatusOK {
		t.Errorf("a short trace: %s", response.Status)
	}
	// One that lasts, until its client goes. It is asked for again where it was refused, because of one of those below, and
	// where it is over.
	var lasting net.Conn
	last := func() {
		if lasting != nil {
			_ = lasting.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := lasting.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			_ = lasting.Close()
		}
		var err error
		if lasting, err = net.Dial("tcp", g.said("serving profiles")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(lasting, "GET /debug/pprof/profile?seconds=60 HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	for _, profile := range timed {
		eventually(t, profile+" waits for the profile that is taken", func() bool {
			last()
			return g.askAdmin(t, "/debug/pprof/"+profile+"?seconds=0.01", "127.0.0.1", "").StatusCode == http.StatusTooManyRequests
		})
	}
	if response := g.askAdmin(t, "/debug/pprof/heap", "127.0.0.1", ""); response.StatusCode != http.StatusOK {
		t.Errorf("the heap meanwhile: %s", response.Status)
	}
	_ = lasting.Close()
	eventually(t, "another may be taken", func() bool {
		return g.askAdmin(t, "/debug/pprof/trace?seconds=0.01", "127.0.0.1", "").StatusCode == http.StatusOK
	})
}

// A gateway for workspaces on instances alone says nothing of an engine, and why it opens no container.
func TestWithoutDocker(t *testing.T) {
	t.Parallel()
	p := &platform{}
	p.makeKey(t)
	g := p.serve(t, "TERMGW_WORKSPACES_FILE="+workspacesFile(t), "TERMGW_DOCKER=false", "DOCKER_HOST=unix:///nonexistent.sock")
	if a := g.get(t, g.address, "/readyz"); a.StatusCode != http.StatusOK || strings.Contains(a.body, "ocker") {
		t.Errorf("/readyz answers %d %s", a.StatusCode, a.body)
	}
	if a := g.get(t, g.admin, "/metrics"); !strings.Contains(a.body, `termgw_ready{part="store"} 1`) || strings.Contains(a.body, `part="docker"`) {
		t.Errorf("/metrics answers %d %s", a.StatusCode, a.body)
	}
	c := g.dial(t, "ws", p.ticket(t, "ws"), dialing{})
	if m := c.message(t, "error"); m.Code != "backend_failed" || m.Detail != "docker" {
		t.Errorf("a local workspace is told %+v", m)
	}
	eventually(t, "the log names the variable", func() bool { return strings.Contains(g.log.String(), "TERMGW_DOCKER is false") })
	if said := g.said("not ready"); strings.Contains(said, "docker") {
		t.Errorf("the log says %s", said)
	}
}
