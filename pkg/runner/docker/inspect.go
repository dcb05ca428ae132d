package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// execState is the part of an exec's inspection that termgw reads.
type execState struct {
	Running  bool
	ExitCode int // 0 while the exec runs
}

// inspectLimit bounds the inspection of an exec, in bytes: its arguments are part of it.
const inspectLimit = 1 << 20

// inspectExec asks the engine for an exec's state, over a connection of its own. An exec that the engine does not know is
// errdefs.ErrNotFound.
//
// The client's ExecInspect decodes all of the engine's answer and fails on Podman's: DetachKeys is base64 in Docker's, and
// the list of the keys' names in Podman's (podman#8329).
func (k *Kind) inspectExec(ctx context.Context, exec string) (execState, error) {
	state, err := k.getExec(ctx, exec)
	if err != nil {
		return execState{}, fmt.Errorf("inspecting an exec: %w", err)
	}
	return state, nil
}

func (k *Kind) getExec(ctx context.Context, exec string) (state execState, err error) {
	host, err := client.ParseHostURL(k.cli.DaemonHost())
	if err != nil {
		return state, err
	}
	// The dialer reaches the engine, by TLS where that is set, whatever the URL says.
	address := (&url.URL{Scheme: "http", Host: client.DummyHost}).JoinPath(host.Path, "v"+k.cli.ClientVersion(), "exec", exec, "json")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), http.NoBody)
	if err != nil {
		return state, err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return k.cli.Dialer()(ctx) }
	resp, err := (&http.Transport{DialContext: dial, DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return state, err
	}
	defer resp.Body.Close()
	body := io.LimitReader(resp.Body, inspectLimit)
	if resp.StatusCode == http.StatusOK {
		err = json.NewDecoder(body).Decode(&state)
		return state, err
	}
	var refusal struct{ Message string }
	_ = json.NewDecoder(body).Decode(&refusal) // the status tells enough
	err = fmt.Errorf("%s: %s", resp.Status, refusal.Message)
	if resp.StatusCode == http.StatusNotFound {
		err = fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	return state, err
}
