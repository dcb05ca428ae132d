package main

import (
	"slices"
	"strings"
	"testing"
)

func TestUnknownVariables(t *testing.T) {
	t.Parallel()
	for variable, nearest := range map[string]string{
		"TERMGW_TICKETS_JWKS=x":              "TERMGW_TICKET_JWKS",
		"TERMGW_DATABASE_URI=x":              "TERMGW_DATABASE_URL",
		"TERMGW_MAX_SESSION_PER_WORKSPACE=3": "TERMGW_MAX_SESSIONS_PER_WORKSPACE",
		"TERMGW_ALLOWED_ORIGIN=x":            "TERMGW_ALLOWED_ORIGINS",
		"TERMGW_listen=:1":                   "TERMGW_LISTEN",
		"TERMGW_TLS_CERTIFICATE=x":           "TERMGW_TLS_CERT",
		"TERMGW_PORT=8080x":                  "TERMGW_RESUME", // a person's, not a Service's; no name is like it
	} {
		name, _, _ := strings.Cut(variable, "=")
		got := unknownVariables([]string{"PATH=/bin", variable})
		if len(got) != 1 || got[0][0] != name || got[0][1] != nearest && name != "TERMGW_PORT" {
			t.Errorf("%s: %q, want %s", variable, got, nearest)
		}
	}
	// Those that are read, and those that Kubernetes sets for Services named termgw and termgw-admin.
	known := []string{
		"TERMGWX=1", "TERMGW=1", "TERMGW_TICKET=x",
		"TERMGW_SERVICE_HOST=10.0.0.1", "TERMGW_SERVICE_PORT=80", "TERMGW_SERVICE_PORT_HTTP=80", "TERMGW_PORT=tcp://10.0.0.1:80",
		"TERMGW_PORT_80_TCP=tcp://10.0.0.1:80", "TERMGW_PORT_80_TCP_PROTO=tcp", "TERMGW_PORT_80_TCP_PORT=80", "TERMGW_PORT_80_TCP_ADDR=10.0.0.1",
		"TERMGW_PORT_80_TCP_ADDR=fd00::1", "TERMGW_ADMIN_SERVICE_HOST=10.0.0.2", "TERMGW_ADMIN_PORT_9090_TCP=tcp://10.0.0.2:9090",
	}
	for _, name := range variableNames() {
		known = append(known, name+"=x")
	}
	if got := unknownVariables(known); len(got) > 0 {
		t.Errorf("unknown: %q", got)
	}
	if names := variableNames(); len(names) != len(defaults) || !slices.Contains(names, "TERMGW_LISTEN") {
		t.Errorf("the variables are %q", names)
	}
}

// They are named also where the start fails for another reason, and their values, which may be secret, are not.
func TestServeNamesUnknownVariables(t *testing.T) {
	t.Parallel()
	c := start(t, command(t, []string{"TERMGW_DATABASE_URI=postgres://u:hunter2@h/d", "TERMGW_LISTEN=8080"}, "serve"))
	if status := c.wait(t); status != 1 {
		t.Errorf("exit status %d", status)
	}
	said := c.log.String()
	if !strings.Contains(said, `"variable":"TERMGW_DATABASE_URI","nearest":"TERMGW_DATABASE_URL"`) || strings.Contains(said, "hunter2") {
		t.Errorf("it says\n%s", said)
	}
}
