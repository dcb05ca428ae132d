package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

const withResume = toTheRow + " docker container shell resume"

// atAddress has a session of another replica in the database, which has an address and a key.
func (p *platform) atAddress(tb testing.TB, replica, url string) {
	tb.Helper()
	p.exec(tb, `INSERT INTO termgw.sessions (id, workspace_id, subject, issuer, jti, mode, instance_id, replica, client_addr, holder_url, holder_key, last_seen_at)
		VALUES ($1, 'elsewhere', 'bob', '', $1, 'rw', '', $2, '', $3, 'key-hunter2', now() + interval '1 hour')`, replica+url, replica, url)
}

// TestDoctorResume: the doctor asks the addresses that other replicas' sessions have, and tells who resumes this one's.
func TestDoctorResume(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	p.workspace(t, "ws", "")
	container := newBox(t, env.Docker(t), "ws")
	environ := []string{"DOCKER_HOST=" + env.Docker(t).Host, "TERMGW_RESUME=2m"}
	advertises := append([]string{"TERMGW_ADVERTISE_URL=http://10.0.0.7:8080"}, environ...)
	diagnose := func(environ []string, failed string, says ...string) diagnosis {
		t.Helper()
		d := p.diagnose(t, "ws", environ...)
		d.want(t, strings.TrimSuffix(withResume, " "+failed), failed, says...)
		if strings.Contains(d.text, "hunter2") {
			t.Errorf("a secret is shown:\n%s", d.text)
		}
		return d
	}

	if d := diagnose(environ, "", "a shell waits 2m0s at most, and only this replica resumes it"); strings.Contains(d.text, "There are others") {
		t.Errorf("there are no others:\n%s", d.text)
	}
	diagnose(advertises, "", "others pass its person on to http://10.0.0.7:8080; no replica has a session")

	// A gateway at nine addresses, of which the doctor asks eight.
	g := p.serve(t, "TERMGW_RESUME=1h", "TERMGW_LISTEN=0.0.0.0:0", "TERMGW_ADVERTISE_URL=http://10.0.0.8:8080")
	_, port, err := net.SplitHostPort(g.address)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 9 {
		p.atAddress(t, fmt.Sprint("gw-", n), fmt.Sprintf("http://%s:%s", ownHost(), port))
	}
	diagnose(advertises, "", "8 of 9 addresses were asked, and are gateways'")
	diagnose(environ, "", "There are others (gw-0, gw-1, ", "Set TERMGW_ADVERTISE_URL on each replica")

	// What a real session has: an address that leads nowhere here, and a replica that is this machine's own.
	p.exec(t, "DELETE FROM termgw.sessions")
	c := g.dial(t, "ws", p.ticket(t, "ws", waits), dialing{})
	c.run(t, "true")
	p.exec(t, "UPDATE termgw.sessions SET holder_url = $1 WHERE ended_at IS NULL", "http://"+freeAddress(t))
	d := diagnose(environ, "resume", "connection refused", "fix:   Let replicas reach each other at the port of TERMGW_LISTEN")
	if strings.Contains(d.text, "There are others") {
		t.Errorf("its own gateway is no other:\n%s", d.text)
	}
	p.exec(t, "UPDATE termgw.sessions SET holder_url = $1 WHERE ended_at IS NULL", "http://127.0.0.1:"+port)

	silent, err := net.Listen("tcp", ownHost()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	elsewhere := httptest.NewServer(http.RedirectHandler("http://127.0.0.1:"+port+"/readyz", http.StatusFound))
	defer elsewhere.Close()
	encrypted := httptest.NewUnstartedServer(http.NotFoundHandler())
	encrypted.Config.ErrorLog = log.New(io.Discard, "", 0) // the doctor refuses the certificate
	encrypted.StartTLS()
	defer encrypted.Close()
	p.atAddress(t, "hangs", "http://"+silent.Addr().String())
	p.atAddress(t, "redirects", strings.Replace(elsewhere.URL, "://", "://user:hunter2@", 1))
	p.atAddress(t, "admin", "http://"+g.admin)
	p.atAddress(t, "untrusted", encrypted.URL)
	p.atAddress(t, "plain", "https://127.0.0.1:"+port)
	p.atAddress(t, "odd", "hunter2")
	p.atAddress(t, "same", "http://127.0.0.1:"+port)
	diagnose(advertises, "resume",
		"(hangs): nothing answers within 10s", elsewhere.URL+" (redirects): what answers is not termgw: status 302",
		g.admin+" (admin): what answers is not termgw's listener of terminals, but TERMGW_ADMIN_LISTEN", "(untrusted): tls: failed to verify certificate",
		"(plain): ", "holder_url (odd): the row of a session has no address", "http://127.0.0.1:"+port+" (", "same", "it is one address for all of them",
		"fix:   Let replicas reach each other", "Set TERMGW_ADVERTISE_URL on each replica to an address of its own", "SSL_CERT_FILE")
	c.close(t)
	container.empty(t)
}
