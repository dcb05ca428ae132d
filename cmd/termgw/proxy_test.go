package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// What stands before gateways: a real nginx, and a line that goes silent.

// replicas are gateways behind nginx, each on a loopback address of its own, as on machines of their own: on its port,
// which stays the same over restarts, nobody else's connection can begin meanwhile.
type replicas struct {
	gateways []*served
	any      *served   // nginx's port that sends each terminal to the next gateway
	hashed   *served   // the port that sends all terminals of a path to one
	each     []*served // and those that send all to one
	environ  []string
}

// clientHeader is how clients, which all are on this machine, tell nginx their address.
const clientHeader = "X-Test-Client"

func (p *platform) serveReplicas(tb testing.TB, n int, environ ...string) *replicas {
	tb.Helper()
	r := &replicas{environ: append([]string{"TERMGW_TRUSTED_PROXIES=127.0.0.1", "TERMGW_LOG_LEVEL=info"}, environ...)}
	var addresses []string
	for range n {
		g := p.serve(tb, append(r.environ, fmt.Sprintf("TERMGW_LISTEN=%s:0", ownHost()))...)
		r.gateways, addresses = append(r.gateways, g), append(addresses, g.address)
	}
	fronts := startNginx(tb, addresses)
	for _, address := range fronts[2:] {
		r.each = append(r.each, &served{platform: p, address: address})
	}
	r.any, r.hashed = &served{platform: p, address: fronts[0]}, &served{platform: p, address: fronts[1]}
	return r
}

// restart starts a gateway again that has ended.
func (r *replicas) restart(tb testing.TB, i int) {
	tb.Helper()
	was := r.gateways[i]
	r.gateways[i] = was.serve(tb, append(r.environ, "TERMGW_LISTEN="+was.address)...)
}

// startNginx starts one before these gateways and returns its addresses: of all gateways in turn, of all by a hash of the path,
// and of each alone.
func startNginx(tb testing.TB, gateways []string) (fronts []string) {
	tb.Helper()
	_, fronts = nginxBefore(tb, gateways, "master_process off;")
	return fronts
}

// nginxBefore starts an nginx before these gateways, with some lines of configuration.
func nginxBefore(tb testing.TB, gateways []string, lines string) (child *child, fronts []string) {
	tb.Helper()
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		nginx, err = exec.LookPath("/usr/sbin/nginx")
	}
	if err != nil {
		if os.Getenv("TERMGW_TEST_REQUIRE") == "1" {
			tb.Fatal(err)
		}
		tb.Skip("needs nginx: apt-get install nginx-light")
	}
	dir := tb.TempDir()
	var upstreams, servers strings.Builder
	for i := range len(gateways) + 2 {
		to, balance := gateways, ""
		switch {
		case i == 1:
			balance = "hash $uri consistent;\n" // as docs/operations.md says
		case i > 1:
			to = gateways[i-2 : i-1]
		}
		fmt.Fprintf(&upstreams, "upstream gateways%d {\n%s", i, balance)
		for _, address := range to {
			// A gateway that restarts is asked again at once.
			fmt.Fprintf(&upstreams, "server %s max_fails=0;\n", address)
		}
		upstreams.WriteString("}\n")
		front := freeAddress(tb)
		fronts = append(fronts, front)
		// As docs/canvas.md says, but for the client's address.
		fmt.Fprintf(&servers, `server {
			listen %s;
			location ~ ^/workspaces/[^/]+/terminal$ {
				proxy_pass http://gateways%d;
				proxy_http_version 1.1;
				proxy_set_header Upgrade $http_upgrade;
				proxy_set_header Connection upgrade;
				proxy_set_header Host $http_host;
				proxy_set_header X-Forwarded-For $http_%s;
				proxy_set_header X-Forwarded-Proto $scheme;
				proxy_read_timeout 1h;
				proxy_send_timeout 1h;
				proxy_buffering off;
			}
		}
		`, front, i, strings.ToLower(strings.ReplaceAll(clientHeader, "-", "_")))
	}
	var temps strings.Builder
	for _, name := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temps, "%s_temp_path %s;\n", name, filepath.Join(dir, name))
	}
	config := filepath.Join(dir, "nginx.conf")
	err = os.WriteFile(config, []byte(fmt.Sprintf("daemon off; %s pid %s; error_log stderr error;\n"+
		"events { worker_connections 8192; }\nhttp {\naccess_log off;\n%s%s%s}\n", lines, filepath.Join(dir, "pid"), &temps, &upstreams, &servers)), 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	child = start(tb, exec.Command(nginx, "-p", dir, "-c", config, "-e", "stderr"))
	for _, front := range fronts {
		eventually(tb, "nginx answers", func() bool {
			select {
			case <-child.exited:
				tb.Fatalf("nginx ended: %v\n%s", child.err, child.log.String())
			default:
			}
			conn, err := net.Dial("tcp", front)
			if err == nil {
				_ = conn.Close()
			}
			return err == nil
		})
	}
	return child, fronts
}

var hosts atomic.Int64

// ownHost is a loopback address that nobody else uses: no connection begins there, so that a port stays free that was.
func ownHost() string {
	n := hosts.Add(1)
	return fmt.Sprintf("127.1.%d.%d", n/250, n%250+1)
}

// freeAddress is an address where nobody listens, nor will.
func freeAddress(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", ownHost()+":0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// from is the dialing of a client with an address of its own.
func from(n int) dialing {
	return dialing{header: http.Header{clientHeader: {fmt.Sprintf("192.0.2.%d", n%250+1)}}}
}

// line is a network between clients and a server that can lose all that is sent, both ways, without a word to either.
type line struct {
	address string
	to      string
	silent  chan struct{} // closed: it does
	carry   sync.WaitGroup
}

func startLine(t *testing.T, to string) *line {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &line{address: l.Addr().String(), to: to, silent: make(chan struct{})}
	var (
		mu    sync.Mutex
		conns []net.Conn
	)
	n.carry.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, near, far)
			mu.Unlock()
			n.carry.Go(func() { n.copy(far, near) })
			n.carry.Go(func() { n.copy(near, far) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		n.carry.Wait()
	})
	return n
}

func (n *line) copy(to, from net.Conn) {
	buf := make([]byte, 4<<10)
	for {
		size, err := from.Read(buf)
		select {
		case <-n.silent: // an end is lost, too
			if err != nil {
				return
			}
			continue
		default:
		}
		if size > 0 {
			if _, err := to.Write(buf[:size]); err != nil {
				return
			}
		}
		if err != nil {
			_ = to.Close()
			return
		}
	}
}
