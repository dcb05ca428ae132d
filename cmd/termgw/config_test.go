package main

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
)

// defaults are what operators are promised.
var defaults = map[string]string{
	"TERMGW_LISTEN":             ":8080",
	"TERMGW_LISTEN_MODE":        "0660",
	"TERMGW_TLS_CERT":           "",
	"TERMGW_TLS_KEY":            "",
	"TERMGW_TLS_CLIENT_CA":      "",
	"TERMGW_PROXY_PROTOCOL":     "false",
	"TERMGW_ADMIN_LISTEN":       "127.0.0.1:9090",
	"TERMGW_PPROF_LISTEN":       "",
	"TERMGW_BASE_PATH":          "",
	"TERMGW_DATABASE_URL":       "",
	"TERMGW_WORKSPACES_FILE":    "",
	"TERMGW_DATABASE_URL_FILE":  "",
	"TERMGW_DATABASE_MAX_CONNS": "10",
	"TERMGW_AUDIT_RETENTION":    "2160h",
	"TERMGW_WORKSPACE_QUERY":    "",
	"TERMGW_TICKET_JWKS":        "",
	"TERMGW_TICKET_ISSUER":      "",
	"TERMGW_TICKET_AUDIENCE":    "termgw",
	"TERMGW_TICKET_MAX_TTL":     "60s",
	"TERMGW_ALLOWED_ORIGINS":    "",
	"TERMGW_TRUSTED_PROXIES":    "",
	"TERMGW_PING_INTERVAL":      "25s",
	"TERMGW_IDLE_TIMEOUT":       "30m",
	"TERMGW_MAX_SESSION":        "8h",
	"TERMGW_RESUME":             "0s",
	"TERMGW_ADVERTISE_URL":      "",
	"TERMGW_DRAIN_TIMEOUT":      "30s",
	"TERMGW_MAX_SESSIONS":       "0",

	"TERMGW_MAX_SESSIONS_PER_WORKSPACE": "0",
	"TERMGW_MAX_SESSIONS_PER_SUBJECT":   "0",

	"TERMGW_KEEP_DETACHED":    "true",
	"TERMGW_SHELLS":           "/bin/bash,/bin/sh",
	"TERMGW_DOCKER":           "true",
	"TERMGW_REMOTE_TARGET":    "container",
	"TERMGW_EICE_TUNNEL":      "native",
	"TERMGW_EICE_OS_USER":     "ec2-user",
	"TERMGW_EICE_ENDPOINT_ID": "",
	"TERMGW_LOG_FORMAT":       "json",
	"TERMGW_LOG_LEVEL":        "info",
}

func TestServeHelpListsTheVariables(t *testing.T) {
	t.Parallel()
	c := start(t, command(t, nil, "serve", "--help"))
	if status := c.wait(t); status != 0 {
		t.Errorf("exit status %d", status)
	}
	listed := map[string]string{}
	for line := range strings.SplitSeq(c.out.String(), "\n") {
		if name := strings.TrimSpace(line); strings.HasPrefix(name, "TERMGW_") {
			name, value, _ := strings.Cut(name, " = ")
			listed[name] = value
		}
	}
	for name, want := range defaults {
		if got, ok := listed[name]; !ok || got != want {
			t.Errorf("%s: listed %v, default %q, want %q", name, ok, got, want)
		}
	}
	for name := range listed {
		if _, ok := defaults[name]; !ok {
			t.Errorf("%s is listed and has no default here", name)
		}
	}
	const query = `SELECT id::text AS id, COALESCE(instance_id,'') AS instance_id, COALESCE(name,'') AS name FROM workspaces WHERE id = $1`
	if store.DefaultWorkspaceQuery != query {
		t.Errorf("the workspace query is %s", store.DefaultWorkspaceQuery)
	}
}

func TestBasePath(t *testing.T) {
	t.Parallel()
	for path, good := range map[string]bool{
		"": true, "/": true, "/a": true, "/a/b.c/": true, "/..a/...": true,
		"a": false, "/a//b": false, "//": false, "/a/../b": false, "/.": false, "/a/..": false, "/a b": false, "/%61": false,
	} {
		_, faults := environment{BasePath: path}.parse()
		if told := strings.Contains(errors.Join(faults...).Error(), "BASE_PATH"); told == good {
			t.Errorf("%q: %v", path, faults)
		}
	}
}

func TestDatabaseConfig(t *testing.T) {
	t.Parallel()
	for fault, cases := range map[string]map[environment]bool{
		"DATABASE_MAX_CONNS": {
			{DatabaseMaxConns: "10"}: true, {DatabaseMaxConns: "2"}: true, {DatabaseMaxConns: "1"}: false, {DatabaseMaxConns: "many"}: false, {DatabaseMaxConns: "1001"}: false,
		},
		"DATABASE_URL_FILE: is set": {
			{DatabaseURLFile: "/f"}: true, {DatabaseURLFile: "/f", DatabaseURL: "u"}: false,
		},
		"WORKSPACES_FILE: is for": {
			{WorkspacesFile: "w"}: true, {WorkspacesFile: "w", DatabaseURLFile: "/f"}: false,
		},
		"AUDIT_RETENTION": {
			{AuditRetention: "0"}: true, {AuditRetention: "2160h"}: true, {AuditRetention: "192h"}: true, {AuditRetention: "100h"}: false,
			{AuditRetention: "-1h"}: false, {AuditRetention: "90 days"}: false,
		},
	} {
		for e, good := range cases {
			_, faults := e.parse()
			if told := strings.Contains(errors.Join(faults...).Error(), fault); told == good {
				t.Errorf("%+v: %v", e, faults)
			}
		}
	}
}

func TestAdvertiseURL(t *testing.T) {
	t.Parallel()
	for address, good := range map[string]bool{
		"": true, "http://10.0.0.7:8080": true, "http://10.0.0.7:8080/": true, "https://gw-1.gw.ns.svc.cluster.local.": true,
		"http://[2001:db8::7]:8080": true, "http://[fe80::7%25eth0]:8080": true, "http://gw_1:8080": true,
		"10.0.0.7:8080": false, "http://": false, "http://:8080": false, "http://0.0.0.0:8080": false, "http://[::]:8080": false,
		"http://$(POD_IP):8080": false, "http://${POD_IP}:8080": false, "http://10.0.0.7:0": false, "http://10.0.0.7:80800": false,
		"http://gw/terminals": false, "ws://gw:8080": false, "http://u:p@gw:8080": false, "http://*:8080": false,
	} {
		_, faults := environment{AdvertiseURL: address}.parse()
		if told := strings.Contains(errors.Join(faults...).Error(), "ADVERTISE_URL"); told == good {
			t.Errorf("%q: %v", address, faults)
		}
	}
}

func TestListenAddress(t *testing.T) {
	t.Parallel()
	for address, good := range map[string]bool{
		":8080": true, "127.0.0.1:0": true, "[::1]:80": true, "unix:/run/termgw/termgw.sock": true, "systemd": true, "systemd:termgw.socket": true,
		"8080": false, ":http": false, ":70000": false, "unix:": false, "unix:/": false, "unix:run/x": false, "unix:/run/../x": false,
		"unix:/run/x/": false, "unix:/" + strings.Repeat("x", 90): false, "systemd:": false,
	} {
		_, faults := environment{Listen: address}.parse()
		if told := strings.Contains(errors.Join(faults...).Error(), "_LISTEN: "); told == good {
			t.Errorf("%q: %v", address, faults)
		}
	}
	for mode, good := range map[string]bool{"0660": true, "600": true, "0777": true, "0200": true, "0": false, "0440": false, "1777": false, "rw": false, "-1": false, "0o660": false} {
		_, faults := environment{ListenMode: mode}.parse()
		if told := strings.Contains(errors.Join(faults...).Error(), "LISTEN_MODE"); told == good {
			t.Errorf("mode %q: %v", mode, faults)
		}
	}
}

// Settings of TLS and of the PROXY protocol that lack their other half.
func TestHalves(t *testing.T) {
	t.Parallel()
	for fault, e := range map[string]environment{
		"TLS_KEY: is not set":                {TLSCert: "cert"},
		"TLS_CERT: is not set":               {TLSKey: "key"},
		"TERMGW_TLS_CERT: is not set":        {TLSClientCA: "ca"},
		"TERMGW_PROXY_PROTOCOL: is true, bu": {ProxyProtocol: "true"},
	} {
		if _, faults := e.parse(); !strings.Contains(errors.Join(faults...).Error(), fault) {
			t.Errorf("%+v: %v, want %s", e, faults, fault)
		}
	}
	c, faults := environment{ProxyProtocol: "true", TrustedProxies: "unix:, 10.0.0.0/8"}.parse()
	if strings.Contains(errors.Join(faults...).Error(), "PROX") || !c.TrustUnix || len(c.TrustedProxies) != 1 {
		t.Errorf("%v, %v: %v", c.TrustUnix, c.TrustedProxies, faults)
	}
}

// Every fault is named at once, by its variable; a secret in one is not repeated.
func TestConfigurationFaults(t *testing.T) {
	t.Parallel()
	wrong := []string{
		"TERMGW_LISTEN=8080",
		"TERMGW_LISTEN_MODE=0440",
		"TERMGW_PROXY_PROTOCOL=maybe",
		"TERMGW_ADMIN_LISTEN=localhost:admin",
		"TERMGW_PPROF_LISTEN=unix:relative.sock",
		"TERMGW_BASE_PATH=terminals//x",
		"TERMGW_DATABASE_URL=postgres://u:hunter2@h/d",
		"TERMGW_WORKSPACES_FILE=/etc/workspaces.json", // not with a database
		"TERMGW_TICKET_JWKS=",
		"TERMGW_TICKET_AUDIENCE=",
		"TERMGW_TICKET_MAX_TTL=60",
		"TERMGW_ALLOWED_ORIGINS=https://ok.example,*.example,https://x.example/path",
		"TERMGW_TRUSTED_PROXIES=10.0.0.0/8,10.0.0.0/99",
		"TERMGW_PING_INTERVAL=1ms",
		"TERMGW_IDLE_TIMEOUT=-5m",
		"TERMGW_MAX_SESSION=forever",
		"TERMGW_RESUME=-1s",
		"TERMGW_ADVERTISE_URL=10.0.0.7:8080",
		"TERMGW_DRAIN_TIMEOUT=2h",
		"TERMGW_MAX_SESSIONS=-1",
		"TERMGW_KEEP_DETACHED=maybe",
		"TERMGW_DOCKER=unix:///var/run/docker.sock",
		"TERMGW_SHELLS=bash",
		"TERMGW_LOG_FORMAT=xml",
		"TERMGW_LOG_LEVEL=loud",
	}
	c := start(t, command(t, wrong, "serve"))
	if status := c.wait(t); status != 1 {
		t.Errorf("exit status %d", status)
	}
	said := c.log.String()
	for _, variable := range wrong {
		name, _, _ := strings.Cut(variable, "=")
		if name != "TERMGW_DATABASE_URL" && !strings.Contains(said, name+": ") {
			t.Errorf("%s is not named", variable)
		}
	}
	for _, value := range []string{"*.example", "https://x.example/path", "10.0.0.0/99"} {
		if !strings.Contains(said, value) {
			t.Errorf("%s is not shown", value)
		}
	}
	if strings.Contains(said, "hunter2") || strings.Contains(said, "https://ok.example") {
		t.Errorf("it shows what is no fault, or a secret")
	}
	if t.Failed() {
		t.Log(said)
	}
}

// What is well-formed and does not work is told at the start too.
func TestServeDoesNotStart(t *testing.T) {
	t.Parallel()
	_, jwks := generateTicketKey(t, "EdDSA")
	good := func(changes ...string) []string {
		return append([]string{
			"TERMGW_LISTEN=127.0.0.1:0", "TERMGW_ADMIN_LISTEN=", "TERMGW_TICKET_JWKS=" + jwks,
			"TERMGW_DATABASE_URL=postgres://u:hunter2@127.0.0.1:1/d?sslmode=disable",
		}, changes...)
	}
	broken := t.TempDir() + "/workspaces.json"
	if err := os.WriteFile(broken, []byte(`[{"id":"../x"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		environ []string
		want    string
	}{
		{"neither a database nor a list", []string{"TERMGW_TICKET_JWKS=" + jwks}, "TERMGW_DATABASE_URL"},
		{"no key set", good("TERMGW_TICKET_JWKS=/nonexistent.json"), "TERMGW_TICKET_JWKS"},
		{"a key set by http", good("TERMGW_TICKET_JWKS=http://keys.example/jwks"), "TERMGW_TICKET_JWKS"},
		{"no database URL", good("TERMGW_DATABASE_URL=mysql://u:hunter2@h/d"), "TERMGW_DATABASE_URL"},
		{"a query that writes", good("TERMGW_WORKSPACE_QUERY=SELECT 1; DROP TABLE x"), "TERMGW_WORKSPACE_QUERY"},
		{"a variable without its prefix", []string{"DATABASE_URL=postgres://h/d?sslmode=disable", "TERMGW_TICKET_JWKS=" + jwks}, "TERMGW_DATABASE_URL"},
		{"a broken list", good("TERMGW_DATABASE_URL=", "TERMGW_WORKSPACES_FILE="+broken), "TERMGW_WORKSPACES_FILE"},
		{"an address that is not ours", good("TERMGW_LISTEN=192.0.2.1:80"), "TERMGW_LISTEN"},
		{"an engine at no address", good("DOCKER_HOST=nonsense"), "DOCKER_HOST"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := start(t, command(t, test.environ, "serve"))
			if status := c.wait(t); status != 1 || !strings.Contains(c.log.String(), test.want) || strings.Contains(c.log.String(), "hunter2") {
				t.Errorf("exit status %d:\n%s", status, c.log.String())
			}
		})
	}
	t.Run("all at once", func(t *testing.T) {
		c := start(t, command(t, []string{
			"TERMGW_LOG_LEVEL=loud", "TERMGW_TICKET_JWKS=/nonexistent.json", "DOCKER_HOST=nonsense",
			"TERMGW_DATABASE_URL=mysql://u:hunter2@h/d", "TERMGW_WORKSPACE_QUERY=DELETE FROM x",
		}, "serve"))
		c.wait(t)
		for _, want := range []string{"TERMGW_LOG_LEVEL", "TERMGW_TICKET_JWKS", "DOCKER_HOST", "database URL: ", "workspace query: "} {
			if !strings.Contains(c.log.String(), want) {
				t.Errorf("%s is not named:\n%s", want, c.log.String())
			}
		}
	})
	if out := start(t, command(t, nil, "migrate")); out.wait(t) != 1 || !strings.Contains(out.log.String(), "TERMGW_DATABASE_URL") {
		t.Errorf("migrate without a database says %q", out.log.String())
	}
}

// What only a database can say of the query for workspaces stops the start too.
func TestServeAsksTheDatabaseOfTheQuery(t *testing.T) {
	t.Parallel()
	p := newPlatform(t)
	for query, want := range map[string]string{
		"SELECT instance_id, name FROM workspaces WHERE id = $1; DROP TABLE workspaces":                "multiple commands",
		"SELECT instance_id, name FROM workspaces WHERE id = $1)":                                      "syntax error",
		"WITH w AS (DELETE FROM workspaces WHERE id = $1 RETURNING *) SELECT instance_id, name FROM w": "top level",
		"SELECT instance_id FROM workspaces WHERE id = $1":                                             "instance_id and name",
		"SELECT instance_id, name FROM workspaces WHERE id = '$1'":                                     "$1, the workspace's id",
	} {
		c := start(t, command(t, []string{
			"TERMGW_LISTEN=127.0.0.1:0", "TERMGW_ADMIN_LISTEN=", "TERMGW_TICKET_JWKS=" + p.jwks,
			"TERMGW_DATABASE_URL=" + p.url, "TERMGW_WORKSPACE_QUERY=" + query,
		}, "serve"))
		status, said := c.wait(t), c.log.String()
		if status != 1 || !strings.Contains(said, "TERMGW_WORKSPACE_QUERY") || !strings.Contains(said, want) {
			t.Errorf("%s: exit status %d, want %q:\n%s", query, status, want, said)
		}
		p.checkSecrets(t, "the refusal", said)
	}
}

// A person's typing error is answered with the usage and status 2, on standard error.
func TestUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{}, {"sevre"}, {"serve", "--fast"}, {"connect"}} {
		var out, err bytes.Buffer
		if status := run(t.Context(), args, &stdio{strings.NewReader(""), &out, &err}, runner.Timing{}, nil); status == 0 || err.Len() == 0 {
			t.Errorf("%q: exit status %d, %q", args, status, err.String())
		}
	}
}
