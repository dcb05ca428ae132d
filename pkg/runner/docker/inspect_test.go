package docker

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// TestEngineBehindTLS reaches the engine by a proxy that speaks TLS and has the API below a path.
func TestEngineBehindTLS(t *testing.T) {
	t.Parallel()
	engine := env.Docker(t)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(engine.Host, "unix://"))
	}
	proxy := httptest.NewTLSServer(http.StripPrefix("/engine", &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "docker"}) },
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
	}))
	t.Cleanup(proxy.Close)
	trusted := proxy.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	cli, err := client.New(
		client.WithHTTPClient(&http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted}}}),
		client.WithHost("tcp://"+proxy.Listener.Addr().String()+"/engine"),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cli.Close() })
	k := testKind(cli, Config{Shells: []string{"/bin/bash"}})
	s := shelltest.Open(t, shelltest.By(k), shelltest.NewTarget(t, engine.RunContainer(t, "")))
	s.Send(t, "exit 7\n")
	if got, want := s.Exit(t), (terminal.Exit{Code: 7}); got != want {
		t.Errorf("ended with %+v, want %+v", got, want)
	}

	if state, err := k.inspectExec(t.Context(), "0123456789"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "0123456789") {
		t.Errorf("an exec that is not there: %+v, %v", state, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.inspectExec(ctx, "0123456789"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
