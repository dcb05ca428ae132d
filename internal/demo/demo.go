// Package demo is the small platform of `termgw demo`: it lists workspaces, mints
// tickets for them, and serves a page. Terminals are opened by the gateway, whose handler
// Platform.Handler serves beside its own.
package demo

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/pkg/runner/docker"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/ticket"
	"github.com/molecule-ai/termgw/web"
)

// Host is the id of the workspace whose shells run on this machine, and HostColumn the
// column that is not empty in its row.
const (
	Host       = "host"
	HostColumn = "host"
)

// Resume is how long a shell of the demo waits for its person.
const Resume = time.Minute

// Platform mints tickets for this machine and for the containers of its engine.
type Platform struct {
	// Used is called with the page's new address when a browser has used the old address.
	Used func(url string)
	// Page holds the page's files; nil: the binary was built without them.
	Page fs.FS
	// Verifier verifies the platform's tickets. The key is new, so an older ticket is refused.
	Verifier *ticket.Verifier

	origin string // like http://127.0.0.1:8022
	secret string // of TicketsURL, for programs
	minter *ticket.Minter
	docker *docker.Kind
	log    *slog.Logger

	mu     sync.Mutex
	once   string          // the page's one-time key
	tokens map[string]bool // of the tabs that have used a one-time key
}

// New returns a platform with a key and secrets of its own, to be served at a loopback
// address.
func New(address string, docker *docker.Kind, log *slog.Logger) (*Platform, error) {
	key, err := ticket.GenerateKey("EdDSA")
	if err != nil {
		return nil, err
	}
	minter, err := ticket.NewMinter(key)
	if err != nil {
		return nil, err
	}
	p := &Platform{
		Used:     func(string) {},
		Verifier: ticket.NewVerifier(ticket.VerifierConfig{Keys: ticket.StaticKeys(key), Audience: ticket.DefaultAudience, MaxTTL: ticket.DefaultMaxTTL}),
		origin:   "http://" + address, secret: rand.Text(), once: rand.Text(),
		minter: minter, docker: docker, log: log, tokens: map[string]bool{},
	}
	p.Page, _ = web.Page()
	return p, nil
}

// PageURL returns the page's address, which one browser can use, once.
func (p *Platform) PageURL() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	// A browser sends the fragment to no server.
	return p.origin + "/#key=" + p.once
}

// TicketsURL returns the address that answers a POST with a ticket. It contains a secret.
func (p *Platform) TicketsURL() string { return p.origin + "/demo/tickets?key=" + p.secret }

// TerminalURL returns the address of this machine's terminal.
func (p *Platform) TerminalURL() string {
	return "ws" + strings.TrimPrefix(p.origin, "http") + "/workspaces/" + Host + "/terminal"
}

// contentPolicy lets the page load from, and connect to, its own origin only. 'self'
// includes WebSockets of the same host and port (CSP 3, section 6.7.2.8). xterm.js sets
// inline styles, hence the one 'unsafe-inline'.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; " +
	"img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Handler returns the platform's handler. Paths that are not the platform's go to rt, the
// gateway's handler.
func (p *Platform) Handler(rt http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /demo/session", p.openSession)
	mux.HandleFunc("GET /demo/workspaces", p.workspaces)
	mux.HandleFunc("POST /demo/tickets", p.tickets)
	mux.Handle("GET /{$}", p.files())
	if p.Page != nil {
		_ = fs.WalkDir(p.Page, ".", func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() && !strings.HasPrefix(path, ".") && path != "index.html" {
				mux.Handle("GET /"+path, p.files())
			}
			return err
		})
	}
	mux.Handle("/", rt)
	own := strings.TrimPrefix(p.origin, "http://")
	_, port, _ := net.SplitHostPort(own)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A page whose name was made to resolve to this server (DNS rebinding) has that name as Host.
		if r.Host != own && r.Host != "localhost:"+port {
			problemJSON(w, http.StatusMisdirectedRequest, "The demo is at "+p.origin+" only.")
			return
		}
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		mux.ServeHTTP(w, r)
	})
}

func (p *Platform) files() http.Handler {
	if p.Page == nil {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			_, _ = io.WriteString(w, "The page is not in this binary: it is built with Node 20 or newer, by `make web build`.\n"+
				"The terminal works without it: see the `termgw connect` line that the demo printed.\n")
		})
	}
	files := http.FileServerFS(p.Page)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-cache")
		files.ServeHTTP(w, r)
	})
}

// openSession trades the one-time key of the printed address for a token that the page
// keeps for its tab. The token is no cookie: a browser sends cookies to every port of a
// host, also to another user's server.
func (p *Platform) openSession(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	ok := sameSecret(bearer(r), p.once)
	token := rand.Text()
	if ok {
		p.once = rand.Text()
		p.tokens[token] = true
	}
	p.mu.Unlock()
	if !ok {
		problemJSON(w, http.StatusUnauthorized, "This address was used before. Take the new one from the terminal in which termgw demo runs; with --json it prints none: start it again.")
		return
	}
	p.Used(p.PageURL())
	writeJSON(w, map[string]string{"token": token})
}

func (p *Platform) allowed(w http.ResponseWriter, r *http.Request) bool {
	given := cmp.Or(bearer(r), r.URL.Query().Get("key"))
	p.mu.Lock()
	ok := p.tokens[given]
	p.mu.Unlock()
	if !ok && !sameSecret(given, p.secret) {
		problemJSON(w, http.StatusUnauthorized, "Open the page by the address that the terminal in which termgw demo runs shows.")
		return false
	}
	return true
}

type workspace struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Detail string `json:"detail"`
}

func (p *Platform) workspaces(w http.ResponseWriter, r *http.Request) {
	if !p.allowed(w, r) {
		return
	}
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "a shell as you"
	}
	list := []workspace{{Host, "This machine", hostname}}
	containers, err := p.containers(r.Context())
	if err != nil {
		p.log.Debug("no containers are listed", "err", err)
	}
	writeJSON(w, append(list, containers...))
}

// containers lists the running containers by name.
func (p *Platform) containers(ctx context.Context) ([]workspace, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	running, err := p.docker.Containers(ctx)
	if err != nil {
		return nil, err
	}
	var list []workspace
	for _, c := range running {
		if c.Name != Host {
			list = append(list, workspace{c.Name, c.Name, c.Image})
		}
	}
	return list, nil
}

// Lookup returns a workspace's row for the gateway's store, or store.ErrNotFound.
func (p *Platform) Lookup(ctx context.Context, id string) (store.Workspace, error) {
	if id == Host {
		return store.Workspace{ID: id, Attributes: map[string]string{"name": "This machine", HostColumn: "yes"}}, nil
	}
	containers, err := p.containers(ctx)
	if err != nil {
		return store.Workspace{}, err
	}
	for _, c := range containers {
		if c.ID == id {
			return store.Workspace{ID: id, Attributes: map[string]string{"name": c.Name, "container": c.Name}}, nil
		}
	}
	return store.Workspace{}, store.ErrNotFound
}

func (p *Platform) tickets(w http.ResponseWriter, r *http.Request) {
	if !p.allowed(w, r) {
		return
	}
	var body struct {
		Workspace string      `json:"workspace"`
		Mode      ticket.Mode `json:"mode"` // "rw" by default, or "ro": input is dropped
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&body); err != nil || body.Workspace == "" {
		problemJSON(w, http.StatusBadRequest, `Send {"workspace":"host"}, or the id of another workspace.`)
		return
	}
	raw, err := p.minter.Mint(ticket.Claims{
		Audience: []string{ticket.DefaultAudience}, Subject: "demo", WorkspaceID: body.Workspace, Mode: body.Mode, Resume: Resume,
	})
	if err != nil {
		problemJSON(w, http.StatusBadRequest, "No ticket can be minted for that workspace: an id is 1 to 128 letters, digits and ._-, and the mode is rw or ro.")
		return
	}
	writeJSON(w, map[string]string{"ticket": raw})
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
