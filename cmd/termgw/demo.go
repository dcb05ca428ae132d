package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/internal/gateway"
	"github.com/molecule-ai/termgw/internal/logline"
	"github.com/molecule-ai/termgw/pkg/router"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/terminal"
	"github.com/molecule-ai/termgw/pkg/ticket"
	"github.com/molecule-ai/termgw/web"
)

// DemoCmd runs the whole: store, key, a small platform and its page.
type DemoCmd struct {
	Listen string `default:"127.0.0.1:8022" placeholder:"ADDR" help:"Loopback address to listen on; port 0 picks a free one (${default})."`
	Shell  string `placeholder:"COMMAND" help:"What 'This machine' runs, by sh -c (your login shell)."`
	JSON   bool   `name:"json" help:"Print one JSON line with the addresses, for programs."`
}

// Help tells who can open what.
func (DemoCmd) Help() string {
	return `One process with a store, a key and a small platform page. Its workspaces are a shell of this
machine, as you, and every running container if a Docker engine answers (DOCKER_HOST).

Whoever has the printed address has a shell as you: it is served on loopback only, and each address
carries a secret. The page's is good for one browser; a new one is printed when it was used.`
}

// demoHost is the id of the workspace that is this machine.
const demoHost = "host"

// demo is the platform's side: it lists workspaces and mints tickets.
type demo struct {
	origin string // http://127.0.0.1:8022
	secret string // opens tickets; for programs
	minter *ticket.Minter
	docker *runner.Docker
	log    *slog.Logger
	page   fs.FS        // nil: it was not built
	used   func(string) // told the page's new address when the old one was used

	mu     sync.Mutex
	once   string          // opens one session of the page
	tokens map[string]bool // of the page's sessions
}

// Run serves the demo until it is told to end.
func (c *DemoCmd) Run(ctx context.Context, std *stdio, timing runner.Timing) (err error) {
	listener, err := listenLoopback(c.Listen)
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }() // also when it was served
	key, err := ticket.GenerateKey("EdDSA")
	if err != nil {
		return err
	}
	minter, err := ticket.NewMinter(key)
	if err != nil {
		return err
	}
	docker, err := runner.OpenDocker(runner.DockerConfig{Shells: []string{"/bin/bash", "/bin/sh"}, Timing: timing})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, docker.Close()) }()
	log := logline.New(std.Err, "text", slog.LevelInfo)
	d := &demo{
		origin: "http://" + listener.Addr().String(), secret: rand.Text(), once: rand.Text(),
		minter: minter, docker: docker, log: log, tokens: map[string]bool{},
		used: func(string) {},
	}
	page, built := web.Page()
	if built {
		d.page = page
	}

	env, home := shellEnvironment()
	host := runner.NewHost(runner.HostConfig{Command: cmp.Or(c.Shell, loginShell()), Dir: home, Env: env, Timing: timing})
	endpoint, remove, err := d.writeEndpoint()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	if c.JSON {
		err = json.NewEncoder(std.Out).Encode(map[string]string{"page": d.pageURL(), "terminal": d.terminalURL(demoHost), "tickets": d.ticketsURL()})
	} else {
		d.used = func(url string) {
			_, _ = fmt.Fprintf(std.Out, "\nThe address was used. For another browser:\n  %s\n", url)
		}
		err = d.greet(std.Out, endpoint, built)
	}
	if err != nil {
		return err
	}
	return gateway.Run(ctx, gateway.Config{
		Config: router.Config{
			Verifier: ticket.NewVerifier(ticket.VerifierConfig{Keys: ticket.StaticKeys(key), Audience: ticket.DefaultAudience, MaxTTL: ticket.DefaultMaxTTL}),
			// No Since: the key is new, so no older ticket verifies.
			Store:        store.NewMemory(store.MemoryConfig{Lookup: d.lookup}),
			Local:        demoStarter{host, docker},
			Docker:       docker.Ping,
			PingInterval: 25 * time.Second, IdleTimeout: 30 * time.Minute, MaxSession: 8 * time.Hour,
			Replica: "demo", Log: log,
		},
		Listener: listener, Front: d.handler,
	})
}

func (d *demo) greet(w io.Writer, endpoint string, built bool) error {
	var b strings.Builder
	if built {
		fmt.Fprintf(&b, "Open in a browser:\n  %s\n", d.pageURL())
	} else {
		fmt.Fprintf(&b, "The page is not in this binary. With Node 20 or newer: make web build\n")
	}
	fmt.Fprintf(&b, "\nOr in a terminal:\n  %s connect --ticket-endpoint %s %s\n\nCtrl-C ends the demo and every shell in it.\n", os.Args[0], endpoint, d.terminalURL(demoHost))
	_, err := io.WriteString(w, b.String())
	return err
}

func (d *demo) pageURL() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	// In the fragment, which a browser sends to no server.
	return d.origin + "/#key=" + d.once
}

func (d *demo) ticketsURL() string { return d.origin + "/demo/tickets?key=" + d.secret }

func (d *demo) terminalURL(workspace string) string {
	return "ws" + strings.TrimPrefix(d.origin, "http") + "/workspaces/" + workspace + "/terminal"
}

// writeEndpoint leaves the ticket endpoint in a file that only this user can
// read: a secret in a command line could be read by every user.
func (d *demo) writeEndpoint() (path string, remove func() error, err error) {
	dir, err := os.MkdirTemp("", "termgw-demo-")
	if err != nil {
		return "", nil, err
	}
	remove = func() error { return os.RemoveAll(dir) }
	path = filepath.Join(dir, "tickets")
	if err := os.WriteFile(path, []byte(d.ticketsURL()+"\n"), 0o600); err != nil {
		return "", nil, errors.Join(err, remove())
	}
	return path, remove, nil
}

// contentPolicy lets the page load nothing but itself, and connect to nothing
// else: 'self' is also the WebSockets of its own host and port (CSP 3, section
// 6.7.2.8). xterm.js sets styles of its own, hence the one 'unsafe-inline'.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; " +
	"img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func (d *demo) handler(rt http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /demo/session", d.openSession)
	mux.HandleFunc("GET /demo/workspaces", d.workspaces)
	mux.HandleFunc("POST /demo/tickets", d.tickets)
	mux.Handle("GET /{$}", d.files())
	if d.page != nil {
		_ = fs.WalkDir(d.page, ".", func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() && !strings.HasPrefix(path, ".") && path != "index.html" {
				mux.Handle("GET /"+path, d.files())
			}
			return err
		})
	}
	mux.Handle("/", rt)
	own := strings.TrimPrefix(d.origin, "http://")
	_, port, _ := net.SplitHostPort(own)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A page of another host whose name was pointed here (DNS rebinding)
		// shows its own name.
		if r.Host != own && r.Host != "localhost:"+port {
			problemJSON(w, http.StatusMisdirectedRequest, "The demo is at "+d.origin+" only.")
			return
		}
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		mux.ServeHTTP(w, r)
	})
}

func (d *demo) files() http.Handler {
	if d.page == nil {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			_, _ = io.WriteString(w, "The page is not in this binary: it is built with Node 20 or newer, by `make web build`.\n"+
				"The terminal works without it: see the `termgw connect` line that the demo printed.\n")
		})
	}
	files := http.FileServerFS(d.page)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-cache")
		files.ServeHTTP(w, r)
	})
}

// openSession trades the one-time key of the printed address for a token that
// the page keeps for its tab. No cookie: cookies are sent to every port of a
// host, also to another user's server.
func (d *demo) openSession(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	ok := sameSecret(bearer(r), d.once)
	token := rand.Text()
	if ok {
		d.once = rand.Text()
		d.tokens[token] = true
	}
	d.mu.Unlock()
	if !ok {
		problemJSON(w, http.StatusUnauthorized, "This address was used before. Take the new one from the terminal in which termgw demo runs; with --json it prints none: start it again.")
		return
	}
	d.used(d.pageURL())
	writeJSON(w, map[string]string{"token": token})
}

func (d *demo) allowed(w http.ResponseWriter, r *http.Request) bool {
	given := cmp.Or(bearer(r), r.URL.Query().Get("key"))
	d.mu.Lock()
	ok := d.tokens[given]
	d.mu.Unlock()
	if !ok && !sameSecret(given, d.secret) {
		problemJSON(w, http.StatusUnauthorized, "Open the page by the address that the terminal in which termgw demo runs shows.")
		return false
	}
	return true
}

type demoWorkspace struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Detail string `json:"detail"`
}

func (d *demo) workspaces(w http.ResponseWriter, r *http.Request) {
	if !d.allowed(w, r) {
		return
	}
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "a shell as you"
	}
	list := []demoWorkspace{{demoHost, "This machine", hostname}}
	containers, err := d.containers(r.Context())
	if err != nil {
		d.log.Debug("no containers are listed", "err", err)
	}
	writeJSON(w, append(list, containers...))
}

// containers lists what runs, by name. Without an engine there is nothing.
func (d *demo) containers(ctx context.Context) ([]demoWorkspace, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	running, err := d.docker.Containers(ctx)
	if err != nil {
		return nil, err
	}
	var list []demoWorkspace
	for _, c := range running {
		if c.Name != demoHost {
			list = append(list, demoWorkspace{c.Name, c.Name, c.Image})
		}
	}
	return list, nil
}

func (d *demo) lookup(ctx context.Context, id string) (store.Workspace, error) {
	if id == demoHost {
		return store.Workspace{ID: id, Name: "This machine"}, nil
	}
	containers, err := d.containers(ctx)
	if err != nil {
		return store.Workspace{}, err
	}
	for _, c := range containers {
		if c.ID == id {
			return store.Workspace{ID: id, Name: c.Name, Container: c.Name}, nil
		}
	}
	return store.Workspace{}, store.ErrNotFound
}

func (d *demo) tickets(w http.ResponseWriter, r *http.Request) {
	if !d.allowed(w, r) {
		return
	}
	var body struct {
		Workspace string      `json:"workspace"`
		Mode      ticket.Mode `json:"mode"` // "ro": look, do not type
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&body); err != nil || body.Workspace == "" {
		problemJSON(w, http.StatusBadRequest, `Send {"workspace":"host"}, or the id of another workspace.`)
		return
	}
	raw, err := d.minter.Mint(ticket.Claims{Audience: []string{ticket.DefaultAudience}, Subject: "demo", WorkspaceID: body.Workspace, Mode: body.Mode})
	if err != nil {
		problemJSON(w, http.StatusBadRequest, "No ticket can be minted for that workspace: an id is 1 to 128 letters, digits and ._-, and the mode is rw or ro.")
		return
	}
	writeJSON(w, map[string]string{"ticket": raw})
}

// demoStarter opens this machine's shell for its workspace, else a container's.
type demoStarter struct {
	host   *runner.Host
	docker *runner.Docker
}

func (s demoStarter) Start(ctx context.Context, t runner.Target, size terminal.Size) (terminal.Terminal, error) {
	if t.WorkspaceID == demoHost {
		return s.host.Start(ctx, t, size)
	}
	return s.docker.Start(ctx, t, size)
}

// listenLoopback refuses any other address: whoever can reach the demo and has
// its secret has a shell as its user.
func listenLoopback(address string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("--listen: %w", err)
	}
	if host == "" || host == "localhost" {
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("--listen %s: the demo opens shells of this machine, so it listens on loopback only, like 127.0.0.1:8022", address)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	return listener, nil
}

func loginShell() string {
	for _, shell := range []string{os.Getenv("SHELL"), "/bin/bash"} {
		if filepath.IsAbs(shell) && !strings.ContainsAny(shell, "' \t\n") {
			if info, err := os.Stat(shell); err == nil && info.Mode()&0o111 != 0 {
				return "exec " + shell
			}
		}
	}
	return "exec /bin/sh"
}

func bearer(r *http.Request) string {
	secret, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return secret
}

func sameSecret(given, secret string) bool {
	return subtle.ConstantTimeCompare([]byte(given), []byte(secret)) == 1
}

func writeJSON(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(body) // the client may be gone
}

func problemJSON(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"title": http.StatusText(status), "status": status, "detail": detail})
}
