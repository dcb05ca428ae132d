package deploy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// host is what clients call the gateway by.
const host = "terminal.example.com"

// proxy is a real one that runs with the file that is in deploy/proxy, but for addresses.
type proxy struct {
	*child
	address string
	scheme  string                        // http or https
	dialer  func(*testing.T) *http.Client // of WebSockets; nil: each has a connection of its own
}

// proxies start before an upstream, with TLS or without.
var proxies = map[string]func(t *testing.T, upstream string, secure bool) *proxy{
	"nginx": startNginx, "Caddy": startCaddy, "HAProxy": startHAProxy, "Apache httpd": startHTTPD,
}

func newProxy(secure bool) *proxy {
	p := &proxy{address: ownAddress(), scheme: "http"}
	if secure {
		p.scheme = "https"
	}
	return p
}

func (p *proxy) run(t *testing.T, config string, cmd *exec.Cmd, file string) *proxy {
	t.Helper()
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p.child = start(t, cmd)
	p.ready(t, p.address)
	return p
}

func startNginx(t *testing.T, upstream string, secure bool) *proxy {
	t.Helper()
	nginx, p, dir := program(t, "nginx", "nginx-light"), newProxy(secure), t.TempDir()
	listen := "listen " + p.address + ";"
	if secure {
		cert, key := certificate(t, host)
		listen = fmt.Sprintf("listen %s ssl; ssl_certificate %s; ssl_certificate_key %s;", p.address, cert, key)
	}
	config := strings.ReplaceAll(read(t, "deploy/proxy/nginx.conf"), " /tmp/", " "+dir+"/")
	config = replace(t, config, "listen 80;", listen)
	config = replace(t, config, "set $gateways termgw:8080;", "set $gateways "+upstream+";")
	file := filepath.Join(dir, "nginx.conf")
	return p.run(t, config, exec.Command(nginx, "-p", dir, "-c", file, "-g", "daemon off;"), file)
}

func startCaddy(t *testing.T, upstream string, secure bool) *proxy {
	t.Helper()
	caddy, p, dir := program(t, "caddy", "caddy"), newProxy(secure), t.TempDir()
	ip, port, _ := net.SplitHostPort(p.address)
	site := fmt.Sprintf("%s://:%s {\n\tbind %s\n", p.scheme, port, ip)
	if secure {
		cert, key := certificate(t, host)
		site += fmt.Sprintf("\ttls %s %s\n", cert, key)
	}
	config := read(t, "deploy/proxy/Caddyfile")
	config = replace(t, config, "\nterminal.example.com {\n", "\n"+site)
	config = replace(t, config, "reverse_proxy termgw:8080", "reverse_proxy "+upstream)
	// No port of its own for commands, and none to redirect from.
	config = replace(t, config, "\n{\n", "\n{\n\tadmin unix/"+filepath.Join(dir, "admin")+"\n\tauto_https disable_redirects\n")
	if oldCaddy(t, caddy) {
		config = replace(t, config, "stream_close_delay 8h\n", "\n")
	}
	file := filepath.Join(dir, "Caddyfile")
	return p.run(t, config, exec.Command(caddy, "run", "--adapter", "caddyfile", "--config", file), file)
}

// oldCaddy reports whether a Caddy is older than stream_close_delay, as Debian's is.
func oldCaddy(t *testing.T, caddy string) bool {
	t.Helper()
	version, err := exec.Command(caddy, "version").Output()
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`^v?2\.[0-6]\.`).Match(version)
}

func startHAProxy(t *testing.T, upstream string, secure bool) *proxy {
	t.Helper()
	haproxy, p, dir := program(t, "haproxy", "haproxy"), newProxy(secure), t.TempDir()
	bind := "bind " + p.address
	if secure {
		pem := filepath.Join(dir, "terminal.pem")
		cert, key := certificate(t, host)
		var both []byte
		for _, file := range []string{cert, key} {
			one, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			both = append(both, one...)
		}
		if err := os.WriteFile(pem, both, 0o600); err != nil {
			t.Fatal(err)
		}
		bind += " ssl crt " + pem + " alpn h2,http/1.1"
	}
	config := replace(t, read(t, "deploy/proxy/haproxy.cfg"), "bind :80\n", bind+"\n")
	config = strings.ReplaceAll(config, " termgw:8080\n", " "+upstream+"\n")
	file := filepath.Join(dir, "haproxy.cfg")
	p.run(t, config, exec.Command(haproxy, "-W", "-f", file), file)
	if said := p.said(t); strings.Contains(said, "config : ") {
		t.Errorf("HAProxy complains of its configuration:\n%s", said)
	}
	return p
}

func startHTTPD(t *testing.T, upstream string, secure bool) *proxy {
	t.Helper()
	httpd, p, dir := program(t, "apache2", "apache2-bin"), newProxy(secure), t.TempDir()
	config := strings.ReplaceAll(read(t, "deploy/proxy/httpd.conf"), " /tmp", " "+dir)
	config = strings.ReplaceAll(config, " file:/tmp ", " file:"+dir+" ")
	config = replace(t, config, "ServerRoot /usr/local/apache2\n", "ServerRoot /usr/lib/apache2\n") // Debian's
	config = replace(t, config, "Listen 80\n", "Listen "+p.address+"\n")
	server := "<VirtualHost *:*>\n"
	if secure {
		cert, key := certificate(t, host)
		server += fmt.Sprintf("SSLEngine on\nSSLCertificateFile %s\nSSLCertificateKeyFile %s\n", cert, key)
	}
	config = replace(t, config, "<VirtualHost *:80>\n", server)
	config = replace(t, config, "BalancerMember http://termgw:8080 ", "BalancerMember http://"+upstream+" ")
	file := filepath.Join(dir, "httpd.conf")
	return p.run(t, config, exec.Command(httpd, "-D", "FOREGROUND", "-f", file), file)
}

func (p *proxy) url(scheme, path string) string {
	if p.scheme == "https" {
		scheme += "s"
	}
	return scheme + "://" + host + path
}

// get asks for a path as a browser that opens a page.
func (p *proxy) get(t *testing.T, path string, header http.Header) int {
	t.Helper()
	request, err := http.NewRequest(http.MethodGet, p.url("http", path), nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header = header
	response, err := client(t, p.address, host).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	return response.StatusCode
}

func forEachProxy(t *testing.T, test func(t *testing.T, start func(t *testing.T, upstream string, secure bool) *proxy)) {
	for name, start := range proxies {
		t.Run(name, func(t *testing.T) { test(t, start) })
	}
}

func TestTerminalThroughProxy(t *testing.T) {
	upstream, ticket := demo(t)
	forEachProxy(t, func(t *testing.T, start func(t *testing.T, upstream string, secure bool) *proxy) {
		p := start(t, upstream, false)
		// The demo answers to this name, too, and goes by it only if the proxy keeps the Host: it trusts no proxy.
		_, port, _ := net.SplitHostPort(upstream)
		name := "localhost:" + port
		c, response := dial(t, client(t, p.address, name), "ws://"+name+"/workspaces/host/terminal?cols=100&rows=30",
			http.Header{"Origin": {"http://" + name}}, "termgw.v1", "termgw.ticket."+ticket())
		if c == nil {
			t.Fatalf("refused: %s", response.Status)
		}
		if c.Subprotocol() != "termgw.v1" {
			t.Errorf("the subprotocol is %q", c.Subprotocol())
		}
		c.run(t, "stty size; echo $((40+2))", "30 100\r\n42\r\n")
		c.run(t, "exit 3", "exit")
		if code := c.end(t); code != websocket.StatusNormalClosure || !strings.Contains(strings.Join(c.events, ""), `"type":"exit","code":3`) {
			t.Errorf("the terminal ended by %d, %s", code, c.events)
		}
	})
}

// reload has the proxy read its file again, and returns when new connections are the new configuration's.
func (p *proxy) reload(t *testing.T) {
	t.Helper()
	signal := func(s syscall.Signal) {
		t.Helper()
		if err := p.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	switch filepath.Base(p.cmd.Path) {
	case "nginx":
		signal(syscall.SIGHUP)
		eventually(t, "the old worker is about to go, with its terminal", func() bool {
			return slices.ContainsFunc(p.workers(t), func(worker string) bool { return strings.Contains(worker, "shutting down") })
		})
	case "haproxy":
		signal(syscall.SIGUSR2)
		eventually(t, "there are an old worker, with its terminal, and a new one", func() bool {
			return len(p.workers(t)) == 2 && strings.Count(p.said(t), "Loading success") == 2
		})
	case "apache2":
		before := p.workers(t)
		signal(syscall.SIGUSR1)
		eventually(t, "there are an old worker, with its terminal, and new ones", func() bool {
			return slices.ContainsFunc(p.workers(t), func(worker string) bool { return !slices.Contains(before, worker) })
		})
	case "caddy":
		file := p.cmd.Args[len(p.cmd.Args)-1]
		admin := "unix/" + filepath.Join(filepath.Dir(file), "admin")
		reload := exec.Command(p.cmd.Path, "reload", "--force", "--adapter", "caddyfile", "--config", file, "--address", admin)
		if out, err := reload.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", reload, err, out)
		}
	}
}

// workers are the proxy's children: the process id and the title of each.
func (p *proxy) workers(t *testing.T) (workers []string) {
	t.Helper()
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.cmd.Process.Pid))
	if err != nil || len(children) == 0 {
		t.Fatal("the kernel tells no children: ", err)
	}
	for _, file := range children {
		pids, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for pid := range strings.FieldsSeq(string(pids)) {
			title, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			workers = append(workers, pid+" "+strings.ReplaceAll(string(title), "\x00", " "))
		}
	}
	return workers
}

// A reload cuts no terminal, and those that follow open by what the file says then.
func TestReload(t *testing.T) {
	upstream, ticket := demo(t)
	forEachProxy(t, func(t *testing.T, start func(t *testing.T, upstream string, secure bool) *proxy) {
		p := start(t, upstream, false)
		_, port, _ := net.SplitHostPort(upstream)
		name := "localhost:" + port
		open := func() *tty {
			t.Helper()
			c, response := dial(t, client(t, p.address, name), "ws://"+name+"/workspaces/host/terminal", nil, "termgw.v1", "termgw.ticket."+ticket())
			if c == nil {
				t.Fatalf("refused: %s", response.Status)
			}
			return c
		}
		old := open()
		old.run(t, "echo one $((40+2))", "one 42\r\n")
		p.reload(t)
		after := open()
		after.run(t, "echo two $((40+2))", "two 42\r\n")
		if strings.HasSuffix(p.cmd.Path, "caddy") && oldCaddy(t, p.cmd.Path) {
			return // it closes streams
		}
		old.run(t, "echo still $((40+3))", "still 43\r\n")
		old.run(t, "exit 3", "exit")
		if code := old.end(t); code != websocket.StatusNormalClosure {
			t.Errorf("the terminal ended by %d, %s", code, old.events)
		}
	})
}

// A gateway that says that it is not ready gets no terminals from a proxy that asks it, until it is ready again.
func TestHealthChecks(t *testing.T) {
	gateway, upstream, _ := serve(t)
	found := regexp.MustCompile(`"msg":"ticket keys loaded","location":"([^"]+)"`).FindStringSubmatch(gateway.said(t))
	if found == nil {
		t.Fatalf("where are the keys?\n%s", gateway.said(t))
	}
	keys, err := os.ReadFile(found[1])
	if err != nil {
		t.Fatal(err)
	}
	replaceKeys := func(with []byte) {
		t.Helper()
		if err := errors.Join(os.WriteFile(found[1]+".new", with, 0o600), os.Rename(found[1]+".new", found[1])); err != nil {
			t.Fatal(err)
		}
	}
	var asking []*proxy
	for _, name := range []string{"Caddy", "HAProxy", "Apache httpd"} {
		p := proxies[name](t, upstream, false)
		asking = append(asking, p)
	}
	everywhere := func(status int) {
		t.Helper()
		for _, p := range asking {
			eventually(t, fmt.Sprintf("%s answers %d", p.cmd.Path, status), func() bool { return p.get(t, "/workspaces/ws1/terminal", nil) == status })
		}
	}
	everywhere(http.StatusUpgradeRequired) // by the gateway
	replaceKeys([]byte(`{"keys":[]}`))
	everywhere(http.StatusServiceUnavailable) // by the proxy
	replaceKeys(keys)
	everywhere(http.StatusUpgradeRequired)
}

func TestWhatGatewaySeesThroughProxy(t *testing.T) {
	gateway, upstream, _ := serve(t)
	forEachProxy(t, func(t *testing.T, start func(t *testing.T, upstream string, secure bool) *proxy) {
		for _, secure := range []bool{false, true} {
			p := start(t, upstream, secure)
			t.Run(p.scheme, func(t *testing.T) {
				t.Run("headers", func(t *testing.T) { p.testHeaders(t, gateway) })
				t.Run("paths", p.testPaths)
				t.Run("the longest ticket", func(t *testing.T) {
					if status := p.refused(t, nil, "termgw.v1", "termgw.ticket."+strings.Repeat("x", 8<<10)); status != 0 {
						t.Errorf("the handshake got %d", status)
					}
				})
			})
		}
	})
}

// refused has a wrong ticket, or the origin before it, refused by the gateway; it returns an HTTP status, or 0.
func (p *proxy) refused(t *testing.T, header http.Header, protocols ...string) (status int) {
	t.Helper()
	via := client(t, p.address, host)
	if p.dialer != nil {
		via = p.dialer(t)
	}
	c, response := dial(t, via, p.url("ws", "/workspaces/ws1/terminal"), header, protocols...)
	if c == nil {
		return response.StatusCode
	}
	if code := c.end(t); code != 4401 || !strings.Contains(strings.Join(c.events, ""), "ticket_invalid") {
		t.Errorf("a wrong ticket got %d, %s", code, c.events)
	}
	return 0
}

func (p *proxy) testHeaders(t *testing.T, gateway *child) {
	other := "https"
	if p.scheme == "https" {
		other = "http"
	}
	own := p.scheme + "://" + host
	for _, test := range []struct {
		name   string
		header http.Header
		status int // 0: let through, to be told of the ticket
	}{
		{"the page's own origin", http.Header{"Origin": {own}}, 0},
		{"no browser", nil, 0},
		{"another scheme", http.Header{"Origin": {other + "://" + host}}, http.StatusForbidden},
		{"another host", http.Header{"Origin": {p.scheme + "://evil.example"}}, http.StatusForbidden},
		{"a host made up", http.Header{"Origin": {p.scheme + "://evil.example"}, "X-Forwarded-Host": {"evil.example"}}, http.StatusForbidden},
		{"a scheme made up", http.Header{"Origin": {other + "://" + host}, "X-Forwarded-Proto": {other}}, http.StatusForbidden},
		{"an address made up", http.Header{"Origin": {own}, "X-Forwarded-For": {"203.0.113.9"}}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := len(gateway.said(t))
			if status := p.refused(t, test.header, "termgw.v1", "termgw.ticket.x.y.z"); status != test.status {
				t.Errorf("the handshake got %d, not %d", status, test.status)
			}
			eventually(t, "the gateway logs the client's address", func() bool {
				return strings.Contains(gateway.said(t)[before:], `"client":"`+clientIP+`"`)
			})
		})
	}
}

// testPaths: the terminal's goes to the gateway, and no other does.
func (p *proxy) testPaths(t *testing.T) {
	for path, status := range map[string]int{
		"/workspaces/ws1/terminal": http.StatusUpgradeRequired,
		"/":                        http.StatusNotFound, "/healthz": http.StatusNotFound, "/readyz": http.StatusNotFound,
		"/metrics": http.StatusNotFound, "/workspaces/ws1/terminal/": http.StatusNotFound,
	} {
		for name, header := range map[string]http.Header{
			"plain": nil, "an upgrade to something else": {"Connection": {"Upgrade"}, "Upgrade": {"h2c"}},
		} {
			if got := p.get(t, path, header); got != status {
				t.Errorf("%s, %s: got %d, not %d", path, name, got, status)
			}
		}
	}
}

// A proxy's logs have no ticket, however it was sent and whatever went wrong.
func TestProxyLogsNoTicket(t *testing.T) {
	_, upstream, _ := serve(t)
	const secret = "eyJhbGciOiJFZERTQSJ9.c2VjcmV0.c2lnbmF0dXJl"
	forEachProxy(t, func(t *testing.T, start func(t *testing.T, upstream string, secure bool) *proxy) {
		for name, at := range map[string]struct {
			upstream string
			statuses []int
		}{"a gateway": {upstream, nil}, "no gateway": {ownAddress(), []int{http.StatusBadGateway, http.StatusServiceUnavailable}}} {
			t.Run(name, func(t *testing.T) {
				p := start(t, at.upstream, false)
				c, response := dial(t, client(t, p.address, host), p.url("ws", "/workspaces/ws1/terminal?cols=80&ticket="+secret),
					http.Header{"Authorization": {"Bearer " + secret}, "Referer": {"http://" + host + "/?ticket=" + secret}},
					"termgw.v1", "termgw.ticket."+secret)
				if c != nil {
					c.end(t)
				} else if !slices.Contains(at.statuses, response.StatusCode) {
					t.Fatalf("the handshake got %s", response.Status)
				}
				if status := p.get(t, "/?ticket="+secret, nil); status != http.StatusNotFound {
					t.Errorf("/ got %d", status)
				}
				eventually(t, "the proxy logs the requests", func() bool {
					said := p.said(t)
					return strings.Contains(said, `"/workspaces/ws1/terminal"`) && strings.Contains(said, `"/"`)
				})
				if said := p.said(t); strings.Contains(said, "c2VjcmV0") {
					t.Errorf("the ticket is in the log:\n%s", said)
				}
			})
		}
	})
}

// What cannot be waited for in a test: a terminal that is silent, and one that is open for hours.
func TestProxyTimeouts(t *testing.T) {
	silence, session := longerThan(t, "TERMGW_PING_INTERVAL", 2), longerThan(t, "TERMGW_MAX_SESSION", 1)
	for _, test := range []struct {
		file, setting string
		least         time.Duration
	}{
		{"nginx.conf", `proxy_read_timeout (\w+);`, silence},
		{"nginx.conf", `proxy_send_timeout (\w+);`, silence},
		{"nginx.conf", `worker_shutdown_timeout (\w+);`, session},
		{"Caddyfile", `stream_close_delay (\w+)`, session},
		{"haproxy.cfg", `timeout client (\w+)\n`, silence},
		{"haproxy.cfg", `timeout server (\w+)\n`, silence},
		{"haproxy.cfg", `timeout tunnel (\w+)\n`, silence},
		{"haproxy.cfg", `hard-stop-after (\w+)\n`, session},
		{"httpd.conf", ` timeout=(\w+) `, silence},
	} {
		found := regexp.MustCompile(test.setting).FindAllStringSubmatch(read(t, "deploy/proxy/"+test.file), -1)
		if len(found) != 1 {
			t.Errorf("%s: %s is there %d times", test.file, test.setting, len(found))
		} else if d, err := time.ParseDuration(regexp.MustCompile(`^\d+$`).ReplaceAllString(found[0][1], "${0}s")); err != nil || d < test.least {
			t.Errorf("%s: %s, and has to be %s", test.file, found[0][0], test.least)
		}
	}
}

// A flood of an address ends at the proxy and fills no log, whatever is asked for; a page whose ten terminals come back at
// once, and a company whose 150 do, are never refused.
func TestFloodThroughNginx(t *testing.T) { testFlood(t, startNginx, 200) }

func TestFloodThroughHAProxy(t *testing.T) { testFlood(t, startHAProxy, 250) }

func testFlood(t *testing.T, start func(t *testing.T, upstream string, secure bool) *proxy, burst int) {
	gateway, upstream, _ := serve(t)

	t.Run("honest", func(t *testing.T) {
		p := start(t, upstream, false)
		var all sync.WaitGroup
		for range 150 {
			all.Go(func() {
				conn, err := net.Dial("tcp", p.address)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				if status := ask(conn, bufio.NewReader(conn), handshake); status != http.StatusSwitchingProtocols {
					t.Errorf("a handshake got %d", status)
				}
			})
		}
		all.Wait()
	})

	evil := "eyJhbGciOiJFZERTQSJ9.c2VjcmV0c2VjcmV0.c2lnbmF0dXJl"
	for name, request := range map[string]string{
		"a wrong origin":     strings.Replace(handshake, "\r\n\r\n", "\r\nOrigin: https://evil.example/"+strings.Repeat("x", 8<<10)+"\r\n\r\n", 1),
		"a bad handshake":    strings.Replace(handshake, "Sec-WebSocket-Key", "X", 1),
		"no WebSocket":       "GET /workspaces/ws1/terminal HTTP/1.1\r\nHost: " + host + "\r\n\r\n",
		"another path":       "GET /" + evil + strings.Repeat("x", 8<<10) + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n",
		"another path still": "GET /" + strings.Repeat("x", 8<<10) + "\u009b2J HTTP/1.1\r\nHost: " + host + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, upstream, false)
			began, gatewayBefore := time.Now(), len(gateway.said(t))
			const requests = 2000
			statuses := map[int]int{}
			for asked := 0; asked < requests; {
				conn, err := net.Dial("tcp", p.address)
				if errors.Is(err, syscall.ECONNRESET) { // by the proxy
					asked++
					statuses[0]++
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				for r := bufio.NewReader(conn); asked < requests; {
					asked++
					status := ask(conn, r, request)
					if statuses[status]++; status == 0 || status == http.StatusBadRequest {
						break
					}
				}
				conn.Close()
			}
			most := burst + 1 + int(time.Since(began).Seconds()+1)*50
			if passed := requests - statuses[http.StatusTooManyRequests] - statuses[0]; passed > most {
				t.Errorf("%d of %d pass, of at most %d: %v", passed, requests, most, statuses)
			}
			for who, said := range map[string]string{"the proxy": p.said(t), "the gateway": gateway.said(t)[gatewayBefore:]} {
				if n := strings.Count(said, "\n"); n > most+requests/20 {
					t.Errorf("%s logs %d lines", who, n)
				}
				if n := len(said) / (strings.Count(said, "\n") + 1); n > 2<<10 {
					t.Errorf("the lines of %s have %d bytes", who, n)
				}
				if strings.Contains(said, "c2VjcmV0") || strings.ContainsAny(said, "\x1b\u009b") {
					t.Errorf("%s logs what it must not", who)
				}
			}
		})
	}
}

// handshake is well made, without a ticket.
const handshake = "GET /workspaces/ws1/terminal HTTP/1.1\r\nHost: " + host + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"

// ask sends bytes and returns the answer's status, or 0 where the connection is over.
func ask(conn net.Conn, r *bufio.Reader, request string) int {
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, request); err != nil {
		return 0
	}
	response, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
	return response.StatusCode
}
