package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/molecule-ai/termgw/pkg/client"
)

// What listens: TLS, unix sockets, systemd's sockets, the PROXY protocol.

// alone returns a platform whose gateways need neither a database nor an engine, and their variables. The workspace ws is a
// directory.
func alone(tb testing.TB) (p *platform, environ []string) {
	tb.Helper()
	p = &platform{}
	p.makeKey(tb)
	list, err := json.Marshal([]map[string]string{{"id": "ws", "name": "", "shell_dir": tb.TempDir()}})
	if err != nil {
		tb.Fatal(err)
	}
	file := filepath.Join(tb.TempDir(), "workspaces.json")
	if err := os.WriteFile(file, list, 0o600); err != nil {
		tb.Fatal(err)
	}
	return p, []string{"TERMGW_WORKSPACES_FILE=" + file, "DOCKER_HOST=unix:///nonexistent.sock"}
}

// through is how a client reaches a gateway.
type through struct {
	dial   func(context.Context) (net.Conn, error)
	tls    *tls.Config // nil: no TLS
	header http.Header
}

func (w through) client(tb testing.TB) *http.Client {
	tb.Helper()
	transport := &http.Transport{TLSClientConfig: w.tls, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return w.dial(ctx) }}
	tb.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: headers{transport, w.header}, Timeout: patience}
}

// headers adds a header to each request.
type headers struct {
	http.RoundTripper
	header http.Header
}

func (h headers) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for name, values := range h.header {
		r.Header[name] = values
	}
	return h.RoundTripper.RoundTrip(r)
}

// open opens a terminal in the workspace ws.
func (w through) open(tb testing.TB, p *platform) (*client.Conn, error) {
	tb.Helper()
	url := "ws://gateway.test/workspaces/ws/terminal"
	if w.tls != nil {
		url = "wss://gateway.test/workspaces/ws/terminal"
	}
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	httpClient := w.client(tb)
	httpClient.Timeout = 0 // which would end the terminal
	c, err := client.Dial(ctx, client.Config{URL: url, Ticket: p.ticket(tb, "ws"), HTTPClient: httpClient})
	if err == nil {
		tb.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

// says types a line and waits for its output.
func says(tb testing.TB, c *client.Conn, line, want string) {
	tb.Helper()
	if _, err := io.WriteString(c, line+"\r"); err != nil {
		tb.Fatal(err)
	}
	var seen strings.Builder
	buf := make([]byte, 1<<10)
	for !strings.Contains(seen.String(), want) {
		n, err := c.Read(buf)
		if seen.Write(buf[:n]); err != nil {
			tb.Fatalf("%v, after %q", err, seen.String())
		}
	}
}

func to(network, address string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, network, address) }
}

// lineOf waits for a log's line with a message, and returns it.
func (g *served) lineOf(tb testing.TB, message string, is func(map[string]any) bool) (found map[string]any) {
	tb.Helper()
	eventually(tb, "the log says "+message, func() bool {
		for _, line := range g.logLines() {
			if line["msg"] == message && is(line) {
				found = line
				return true
			}
		}
		return false
	})
	return found
}

func any1(map[string]any) bool { return true }

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	a := &authority{pool: x509.NewCertPool()}
	template := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: rand.Text()}}
	a.cert, a.key = a.sign(tb, template)
	a.pool.AddCert(a.cert)
	return a
}

// sign signs a certificate for a new key; an authority's own signs itself.
func (a *authority) sign(tb testing.TB, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		tb.Fatal(err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	parent, signer := template, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return cert, key
}

// leaf returns a certificate for gateway.test and these addresses, or for a client, and its key, as PEM.
func (a *authority) leaf(tb testing.TB, addresses ...net.IP) (cert, key []byte) {
	tb.Helper()
	leaf, private := a.sign(tb, &x509.Certificate{
		DNSNames: []string{"gateway.test"}, IPAddresses: addresses, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		tb.Fatal(err)
	}
	return pemOf("CERTIFICATE", leaf.Raw), pemOf("PRIVATE KEY", der)
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// replace writes a file as a rotation does: the new one takes the old one's place.
func replace(tb testing.TB, name string, text []byte) {
	tb.Helper()
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		tb.Fatal(err)
	}
}

// serial returns the serial number of the certificate that a new connection is shown.
func serial(tb testing.TB, address string, config *tls.Config) string {
	tb.Helper()
	config = config.Clone()
	config.ServerName = "gateway.test"
	dialer := &tls.Dialer{Config: config, NetDialer: &net.Dialer{Timeout: patience}}
	conn, err := dialer.DialContext(tb.Context(), "tcp", address)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
}

func serialOf(tb testing.TB, cert []byte) string {
	tb.Helper()
	block, _ := pem.Decode(cert)
	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	return parsed.SerialNumber.String()
}

// TestTLS: a terminal over TLS carries every byte; certificates are rotated under terminals that live, by files that
// come one after the other; what cannot be used changes nothing.
func TestTLS(t *testing.T) {
	t.Parallel()
	p, environ := alone(t)
	old, dir := newAuthority(t), t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	cert, key := old.leaf(t)
	replace(t, certFile, cert)
	replace(t, keyFile, key)
	p.secretly = append(p.secretly, strings.Split(string(key), "\n")[1])
	g := p.launch(t, nil, append(environ, "TERMGW_TLS_CERT="+certFile, "TERMGW_TLS_KEY="+keyFile)...)
	trusting := &tls.Config{RootCAs: old.pool}
	way := through{dial: to("tcp", g.address), tls: trusting}

	first, err := way.open(t, p)
	if err != nil {
		t.Fatal(err)
	}
	says(t, first, "echo a$((1+1))b", "a2b")
	if got := serial(t, g.address, trusting); got != serialOf(t, cert) {
		t.Errorf("the certificate shown is %s", got)
	}

	// A browser's page of the same origin.
	page := way
	page.header = http.Header{"Origin": {"https://gateway.test"}}
	if _, err := page.open(t, p); err != nil {
		t.Errorf("a page of https://gateway.test: %v", err)
	}
	page.header = http.Header{"Origin": {"http://gateway.test"}}
	if _, err := page.open(t, p); err == nil {
		t.Error("a page of another scheme opens a terminal")
	}
	if answer := g.get(t, g.address, "/healthz"); answer.StatusCode != http.StatusBadRequest || !strings.Contains(answer.body, "HTTPS server") {
		t.Errorf("without TLS: %s %q", answer.Status, answer.body)
	}

	next, nextKey := old.leaf(t)
	p.secretly = append(p.secretly, strings.Split(string(nextKey), "\n")[1])
	replace(t, certFile, next) // and the key is still the old one's
	eventually(t, "the log says that they do not fit", func() bool {
		if got := serial(t, g.address, trusting); got != serialOf(t, cert) {
			t.Fatalf("between the two files the certificate shown is %s", got)
		}
		return strings.Contains(g.log.String(), "not read again")
	})
	replace(t, keyFile, nextKey)
	eventually(t, "the next certificate is shown", func() bool { return serial(t, g.address, trusting) == serialOf(t, next) })
	says(t, first, "echo c$((1+2))d", "c3d")
	second, err := way.open(t, p)
	if err != nil {
		t.Fatal(err)
	}
	for n, broken := range [][]byte{nil, key} { // each is another fault
		replace(t, certFile, broken)
		eventually(t, "what cannot be used is told", func() bool {
			if got := serial(t, g.address, trusting); got != serialOf(t, next) {
				t.Fatalf("the certificate shown is %s", got)
			}
			return strings.Count(g.log.String(), "not read again") >= n+2
		})
	}
	if err := os.Remove(certFile); err != nil {
		t.Fatal(err)
	}
	if got := serial(t, g.address, trusting); got != serialOf(t, next) {
		t.Errorf("without a file the certificate shown is %s", got)
	}

	// Every byte of a flood comes, and then the end.
	if _, err := io.WriteString(second, "stty -opost; seq 1 300000; exit 3\r"); err != nil {
		t.Fatal(err)
	}
	output, err := io.ReadAll(second)
	var want bytes.Buffer
	for n := range 300_000 {
		fmt.Fprintln(&want, n+1)
	}
	if exit := second.Exit(); err != nil || !bytes.Contains(output, want.Bytes()) || exit.Code != 3 {
		t.Errorf("%d bytes, %v, exit %+v", len(output), err, exit)
	}
	says(t, first, "echo e$((1+3))f", "e4f")
}

// TestTLSClientCA: only clients with a certificate of the CA get in, also when the CA has changed under a terminal.
func TestTLSClientCA(t *testing.T) {
	t.Parallel()
	p, environ := alone(t)
	server, clients, others, dir := newAuthority(t), newAuthority(t), newAuthority(t), t.TempDir()
	cert, key := server.leaf(t)
	files := map[string][]byte{"tls.crt": cert, "tls.key": key, "ca.crt": pemOf("CERTIFICATE", clients.cert.Raw)}
	for name, text := range files {
		replace(t, filepath.Join(dir, name), text)
	}
	environ = append(environ, "TERMGW_TLS_CERT="+dir+"/tls.crt", "TERMGW_TLS_KEY="+dir+"/tls.key", "TERMGW_TLS_CLIENT_CA="+dir+"/ca.crt")
	g := p.launch(t, nil, environ...)
	as := func(a *authority) through {
		config := &tls.Config{RootCAs: server.pool}
		if a != nil {
			pair, err := tls.X509KeyPair(a.leaf(t))
			if err != nil {
				t.Fatal(err)
			}
			// Without GetClientCertificate a client sends none of a CA that the server does not name.
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		return through{dial: to("tcp", g.address), tls: config}
	}
	known := as(clients)
	c, err := known.open(t, p)
	if err != nil {
		t.Fatal(err)
	}
	says(t, c, "echo a$((1+1))b", "a2b")
	for name, who := range map[string]through{"none": as(nil), "another CA's": as(others), "the server's own CA's": as(server)} {
		if _, err := who.open(t, p); err == nil {
			t.Errorf("a client with the certificate %s opens a terminal", name)
		}
		if response, err := who.client(t).Get("https://gateway.test/healthz"); err == nil {
			response.Body.Close()
			t.Errorf("a client with the certificate %s is answered %s", name, response.Status)
		}
	}
	if answer := g.get(t, g.admin, "/readyz"); answer.StatusCode != http.StatusOK { // a prober has no certificate
		t.Errorf("the admin listener answers %s", answer.Status)
	}
	replace(t, dir+"/ca.crt", pemOf("CERTIFICATE", others.cert.Raw))
	eventually(t, "the other CA's clients get in", func() bool {
		_, err := as(others).open(t, p)
		return err == nil
	})
	if _, err := known.open(t, p); err == nil {
		t.Error("a client of the CA that was withdrawn opens a terminal")
	}
	says(t, c, "echo c$((1+2))d", "c3d")

	for name, wrong := range map[string][]string{
		"has no certificate":     {"TERMGW_TLS_CLIENT_CA=" + dir + "/tls.key.none"},
		"it should have certif":  {"TERMGW_TLS_CLIENT_CA=" + dir + "/tls.key"},
		"no such file":           {"TERMGW_TLS_KEY=" + dir + "/nothing"},
		"TERMGW_TLS_CERT, TERMG": {"TERMGW_TLS_KEY=" + dir + "/ca.crt"},
	} {
		if name == "has no certificate" {
			replace(t, dir+"/tls.key.none", []byte("nothing"))
		}
		c := start(t, command(t, append(append(environ, "TERMGW_TICKET_JWKS="+p.jwks, "TERMGW_LISTEN=127.0.0.1:0", "TERMGW_ADMIN_LISTEN="), wrong...), "serve"))
		if status := c.wait(t); status != 1 || !strings.Contains(c.log.String(), name) {
			t.Errorf("%v: exit status %d, want %q:\n%s", wrong, status, name, c.log.String())
		}
	}
}

// TestReplicasByTLS: replicas that let nobody in without a certificate pass persons on to each other by their own, and the doctor
// asks them so.
func TestReplicasByTLS(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	newBox(t, env.Docker(t), "ws")
	a, dir := newAuthority(t), t.TempDir()
	replace(t, dir+"/ca.crt", pemOf("CERTIFICATE", a.cert.Raw))
	pair, err := tls.X509KeyPair(a.leaf(t))
	if err != nil {
		t.Fatal(err)
	}
	var replicas [2]*served
	var environ [2][]string
	for i := range replicas {
		host := ownHost()
		cert, key := a.leaf(t, net.ParseIP(host))
		name := fmt.Sprint(dir, "/", i)
		replace(t, name+".crt", cert)
		replace(t, name+".key", key)
		environ[i] = []string{
			"TERMGW_RESUME=1h", "TERMGW_LISTEN=" + host + ":8080", "TERMGW_ADVERTISE_URL=https://" + host + ":8080", "SSL_CERT_FILE=" + dir + "/ca.crt",
			"TERMGW_TLS_CERT=" + name + ".crt", "TERMGW_TLS_KEY=" + name + ".key", "TERMGW_TLS_CLIENT_CA=" + dir + "/ca.crt",
		}
		replicas[i] = p.launch(t, nil, environ[i]...)
	}
	var conn net.Conn
	way := func(g *served) through {
		return through{tls: &tls.Config{RootCAs: a.pool, Certificates: []tls.Certificate{pair}}, dial: func(ctx context.Context) (net.Conn, error) {
			var err error
			conn, err = to("tcp", g.address)(ctx)
			return conn, err
		}}
	}
	dial := func(g *served, resume string) *client.Conn {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		httpClient := way(g).client(t)
		httpClient.Timeout = 0
		c, err := client.Dial(ctx, client.Config{
			URL: "wss://gateway.test/workspaces/ws/terminal", Ticket: p.ticket(t, "ws", waits), HTTPClient: httpClient, Resume: resume, Output: -1,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	holder, asked := replicas[0], replicas[1]
	first := dial(holder, "")
	says(t, first, "secret=mi; echo a$((1+1))b", "a2b")
	if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	eventually(t, "the shell waits", func() bool { return holder.metric(t, "termgw_sessions_waiting") == 1 })
	second := dial(asked, first.Ready().Session)
	if ready := second.Ready(); !ready.Resumed {
		t.Errorf("a new shell opened:\n%s", asked.log.String())
	}
	says(t, second, "echo [$secret]ne", "[mi]ne")

	docker := "DOCKER_HOST=" + env.Docker(t).Host
	p.diagnose(t, "ws", append(environ[1], docker)...).want(t, withResume, "", "1 of 1 addresses were asked, and are gateways'")
	without := slices.Concat(environ[1], []string{docker, "TERMGW_TLS_CERT=", "TERMGW_TLS_KEY=", "TERMGW_TLS_CLIENT_CA="})
	p.diagnose(t, "ws", without...).want(t, strings.TrimSuffix(withResume, " resume"), "resume", "certificate required", "TERMGW_TLS_CLIENT_CA")
}

// TestUnixSocket: a socket with a mode, whose peers may be trusted as proxies; a socket that a killed process has left is
// replaced, one that is in use is not.
func TestUnixSocket(t *testing.T) {
	t.Parallel()
	p, environ := alone(t)
	path := filepath.Join(shortTempDir(t), "termgw.sock")
	environ = append(environ, "TERMGW_LISTEN=unix:"+path, "TERMGW_LISTEN_MODE=0620")
	g := p.launch(t, nil, append(environ, "TERMGW_TRUSTED_PROXIES=unix:")...)
	mode := func() fs.FileMode {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode()
	}
	if got := mode(); got != fs.ModeSocket|0o620 {
		t.Errorf("its mode is %s", got)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("beside it are %v, %v", left, err)
	}
	way := through{dial: to("unix", path), header: http.Header{
		"X-Forwarded-For": {"198.51.100.7"}, "X-Forwarded-Proto": {"https"}, "Origin": {"https://gateway.test"},
	}}
	c, err := way.open(t, p)
	if err != nil {
		t.Fatal(err)
	}
	says(t, c, "echo a$((1+1))b", "a2b")
	if line := g.lineOf(t, "session started", any1); line["client"] != "198.51.100.7" {
		t.Errorf("the client is %v", line["client"])
	}

	refused := func(want string) {
		t.Helper()
		c := start(t, command(t, append(environ, "TERMGW_TICKET_JWKS="+p.jwks, "TERMGW_ADMIN_LISTEN="), "serve"))
		if status := c.wait(t); status != 1 || !strings.Contains(c.log.String(), "TERMGW_LISTEN") || !strings.Contains(c.log.String(), want) {
			t.Errorf("exit status %d, want %q:\n%s", status, want, c.log.String())
		}
	}
	refused("address already in use")
	says(t, c, "echo c$((1+2))d", "c3d")

	g.signal(t, os.Kill)
	g.wait(t)
	if got := mode(); got&fs.ModeSocket == 0 {
		t.Errorf("what a killed gateway leaves is %s", got)
	}
	g = p.launch(t, nil, environ...) // whose peers are not trusted
	if _, err := way.open(t, p); err == nil {
		t.Error("the scheme of a proxy that is not trusted is believed")
	}
	way.header = http.Header{"X-Forwarded-For": {"198.51.100.7"}}
	if c, err = way.open(t, p); err != nil {
		t.Fatal(err)
	}
	says(t, c, "echo a$((1+1))b", "a2b")
	if line := g.lineOf(t, "session started", any1); line["client"] != "" {
		t.Errorf("the client of a proxy that is not trusted is %v", line["client"])
	}
	g.stop(t)
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket of a gateway that has ended: %v", err)
	}
	if err := os.WriteFile(path, []byte("a person's file"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("is no socket")
}

// passing returns a command that starts a gateway with sockets as systemd does (sd_listen_fds(3)).
func (p *platform) passing(tb testing.TB, names string, sockets []*os.File, environ ...string) *exec.Cmd {
	tb.Helper()
	cmd := command(tb, append(environ, "TERMGW_TICKET_JWKS="+p.jwks, "TERMGW_TICKET_ISSUER="+issuer, "TERMGW_TICKET_MAX_TTL="+ticketLife.String(), "TERMGW_LOG_LEVEL=debug",
		"TERMGW_DRAIN_TIMEOUT=0", "LISTEN_FDS="+fmt.Sprint(len(sockets)), "LISTEN_FDNAMES="+names), "serve")
	by := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" serve`, cmd.Path)
	by.Env, by.ExtraFiles = cmd.Env, sockets
	return by
}

// listening returns a socket that listens, as systemd's, and its address.
func listening(tb testing.TB) (*os.File, string) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = f.Close() })
	return f, l.Addr().String()
}

// TestSocketActivation: who connected before the gateway was started is served, also by the next one; each fault in the
// passing is told.
func TestSocketActivation(t *testing.T) {
	t.Parallel()
	p, environ := alone(t)
	terminals, address := listening(t)
	admin, adminAddress := listening(t)
	environ = append(environ, "TERMGW_LISTEN=systemd:terminals", "TERMGW_ADMIN_LISTEN=systemd:admin")
	way := through{dial: to("tcp", address)}
	for range 2 {
		early := make(chan error, 1)
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			_, err := io.WriteString(conn, "GET /healthz HTTP/1.0\r\n\r\n")
			answer, readErr := io.ReadAll(conn)
			if err == nil && readErr == nil && !strings.HasPrefix(string(answer), "HTTP/1.0 200") {
				err = fmt.Errorf("answered %q", answer)
			}
			early <- err
		}()
		g := &served{platform: p, address: address, admin: adminAddress}
		g.child = start(t, p.passing(t, "admin:terminals", []*os.File{admin, terminals}, environ...))
		if err := <-early; err != nil {
			t.Errorf("who connected before the start: %v\n%s", err, g.log.String())
		}
		c, err := way.open(t, p)
		if err != nil {
			t.Fatalf("%v\n%s", err, g.log.String())
		}
		says(t, c, "echo a$((1+1))b", "a2b")
		if answer := g.get(t, adminAddress, "/metrics"); !strings.Contains(answer.body, "termgw_sessions_active") {
			t.Errorf("the admin socket answers %s", answer.Status)
		}
		g.stop(t)
		g.checkLog(t)
	}

	plain, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	for _, test := range []struct {
		names, listen string
		sockets       []*os.File
		want          string
	}{
		{"", "systemd", nil, "systemd has passed no listening socket"},
		{"x", "systemd", []*os.File{plain}, "systemd has passed no listening socket"},
		{"a:b", "systemd", []*os.File{terminals, admin}, "name one, as systemd:NAME"},
		{"a:b", "systemd:terminals", []*os.File{terminals, admin}, "FileDescriptorName"},
		{"a:a", "systemd:a", []*os.File{terminals, admin}, "2 sockets of the name a"},
		{"a:b", "systemd:a", []*os.File{terminals, admin}, "no variable asks for: b"},
	} {
		c := start(t, p.passing(t, test.names, test.sockets, append(environ, "TERMGW_LISTEN="+test.listen, "TERMGW_ADMIN_LISTEN=")...))
		if status := c.wait(t); status != 1 || !strings.Contains(c.log.String(), test.want) {
			t.Errorf("%s of %q: exit status %d, want %q:\n%s", test.listen, test.names, status, test.want, c.log.String())
		}
	}
}

// TestProxyProtocol: a trusted proxy names the client by a header, before TLS too; it has to; and nobody else can.
func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	p, environ := alone(t)
	a, dir := newAuthority(t), t.TempDir()
	cert, key := a.leaf(t)
	replace(t, dir+"/tls.crt", cert)
	replace(t, dir+"/tls.key", key)
	const trusted, stranger, client = "127.0.1.1", "127.0.1.2", "198.51.100.7"
	environ = append(environ, "TERMGW_PROXY_PROTOCOL=true", "TERMGW_TRUSTED_PROXIES="+trusted)
	by := func(address, peer string, header []byte) func(context.Context) (net.Conn, error) {
		dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(peer), 0))}
		return func(ctx context.Context) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, "tcp", address)
			if err == nil {
				_, err = conn.Write(header)
			}
			return conn, err
		}
	}
	header := func(from string) []byte {
		h := proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from)), net.TCPAddrFromAddrPort(netip.MustParseAddrPort("203.0.113.1:443")))
		b, err := h.Format()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, config := range map[string]*tls.Config{"plain": nil, "TLS": {RootCAs: a.pool}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			environ := environ
			if config != nil {
				environ = append(environ[:len(environ):len(environ)], "TERMGW_TLS_CERT="+dir+"/tls.crt", "TERMGW_TLS_KEY="+dir+"/tls.key")
			}
			g := p.launch(t, nil, environ...)
			opens := func(peer string, header []byte, forwarded, want string) {
				t.Helper()
				way := through{dial: by(g.address, peer, header), tls: config}
				if forwarded != "" {
					way.header = http.Header{"X-Forwarded-For": {forwarded}}
				}
				c, err := way.open(t, p)
				if err != nil {
					t.Fatalf("%v\n%s", err, g.log.String())
				}
				says(t, c, "echo a$((1+1))b", "a2b")
				id := c.Ready().Session
				if line := g.lineOf(t, "session started", func(line map[string]any) bool { return line["session"] == id }); line["client"] != want {
					t.Errorf("from %s with %q the client is %v, want %s", peer, header, line["client"], want)
				}
			}
			local, err := proxyproto.HeaderProxyFromAddrs(2, nil, nil).Format()
			if err != nil {
				t.Fatal(err)
			}
			opens(trusted, header(client+":1"), "", client)
			opens(trusted, header(client+":1"), "192.0.2.66", client) // a client's own, which is no trusted proxy
			opens(trusted, header(trusted+":1"), "192.0.2.66", "192.0.2.66")
			opens(trusted, local, "", trusted)
			opens(stranger, nil, "", stranger)

			answers := func(peer string, sent []byte) string {
				t.Helper()
				conn, err := by(g.address, peer, sent)(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
					t.Fatal(err)
				}
				if tcp, ok := conn.(*net.TCPConn); ok && peer == trusted && len(sent) != 20 {
					_ = tcp.CloseWrite()
				}
				answer, err := io.ReadAll(conn) // a reset is an end too
				if os.IsTimeout(err) {
					t.Errorf("from %s, %q: the connection stays open", peer, sent)
				}
				return string(answer)
			}
			request := "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
			for _, sent := range [][]byte{
				[]byte(request),
				[]byte("PROXY TCP4 198.51.100.7 10.0.0.1 1 2\r\n" + request),
				append(header(client + ":1")[:20:20], request...),
				header(client + ":1")[:20], // and no more
				append([]byte("\r\n\r\n\x00\r\nQUIT\n\x31\x11\x00\x0c"), make([]byte, 12)...),
				append([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\xff\xff"), make([]byte, 1<<16)...),
			} {
				if got := answers(trusted, sent); got != "" && !strings.HasPrefix(got, "HTTP/1.1 400") {
					t.Errorf("a trusted proxy that sends %q is answered %q", sent[:20], got)
				}
			}
			if config == nil {
				if got := answers(stranger, append(header(client+":1"), request...)); !strings.HasPrefix(got, "HTTP/1.1 400") {
					t.Errorf("a stranger's header is answered %q", got)
				}
			} else if _, err := (through{dial: by(g.address, stranger, header(client+":1")), tls: config}).open(t, p); err == nil {
				t.Error("a stranger's header is taken")
			}
			g.lineOf(t, "a trusted proxy's connection was closed: it has to begin with a PROXY protocol header of version 2 (TERMGW_PROXY_PROTOCOL)",
				func(line map[string]any) bool { return strings.HasPrefix(fmt.Sprint(line["proxy"]), trusted) })
		})
	}
}

// TestHAProxyNamesTheClient: HAProxy passes TCP on with a header, and checks the gateway's health with one, too.
func TestHAProxyNamesTheClient(t *testing.T) {
	t.Parallel()
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		haproxy, err = exec.LookPath("/usr/sbin/haproxy")
	}
	if err != nil {
		if os.Getenv("TERMGW_TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip("needs haproxy: apt-get install haproxy")
	}
	p, environ := alone(t)
	const proxy, person = "127.0.2.1", "127.0.2.2"
	g := p.launch(t, nil, append(environ, "TERMGW_PROXY_PROTOCOL=true", "TERMGW_TRUSTED_PROXIES="+proxy)...)
	front, config := freeAddress(t), filepath.Join(t.TempDir(), "haproxy.cfg")
	err = os.WriteFile(config, []byte(`defaults
	mode tcp
	timeout connect 10s
	timeout client 1h
	timeout server 1h
listen terminals
	bind `+front+`
	option httpchk GET /readyz
	source `+proxy+`
	server gateway `+g.address+` send-proxy-v2 check check-send-proxy inter 100
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	start(t, exec.Command(haproxy, "-db", "-f", config))
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(person)}}
	way := through{dial: func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", front) }}
	var c *client.Conn
	eventually(t, "HAProxy has found the gateway healthy", func() bool {
		c, err = way.open(t, p)
		return err == nil
	})
	says(t, c, "echo a$((1+1))b", "a2b")
	if line := g.lineOf(t, "session started", any1); line["client"] != person {
		t.Errorf("the client is %v, want %s", line["client"], person)
	}
	if strings.Contains(g.log.String(), "PROXY protocol header") {
		t.Errorf("a connection of HAProxy's was refused:\n%s", g.log.String())
	}
}
