package router

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/molecule-ai/termgw/pkg/bridge"
	"github.com/molecule-ai/termgw/pkg/store"
)

// A request to come back to a session may reach any replica. One that does not hold the
// session passes the connection on to the one that does, as a reverse proxy; the ticket is
// checked and spent there. What the holder has to know of the client, its address, comes
// in a header that only replicas can write: it is signed with a key of the session's, which
// stands in the session's row. A request with the header is never passed on, so there is no
// loop, whatever the header says.
const hopHeader = "Termgw-Hop"

const (
	// hopTime bounds the search for a holder and, again, its answer: a client that comes
	// back has a new shell within 3 s where the holder is gone.
	hopTime = 1300 * time.Millisecond
	// pausedTime is how long a holder that does not answer may have been silent for, when a client
	// comes back by itself, to be taken for paused rather than dead: a replica's heart beats each 10 s.
	pausedTime = 15 * time.Second
	// hopLife is how long a hop header is good for: clocks may differ a little.
	hopLife = 30 * time.Second
)

func newHops(config *tls.Config) *http.Transport {
	t := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: hopTime}).DialContext,
		TLSClientConfig:       config,
		TLSHandshakeTimeout:   hopTime,
		ResponseHeaderTimeout: hopTime,
		DisableKeepAlives:     true,
		Protocols:             new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true) // a WebSocket begins with an upgrade, which HTTP/2 does not have
	return t
}

// passOn passes a request on to the replica that holds the session to which it comes back,
// and reports whether that has answered. It returns when the connection is over.
func (req *request) passOn(w http.ResponseWriter, r *http.Request) bool {
	asked := r.URL.Query().Get("resume")
	if asked == "" || req.live.isDraining() || len(r.Header.Values(hopHeader)) > 0 || !headerHas(r.Header, "Sec-WebSocket-Protocol", bridge.Subprotocol) ||
		req.live.resumable(asked) != nil {
		return false
	}
	raw, err := ticketOf(r)
	if err != nil {
		return false
	}
	claims, err := req.Verifier.Verify(r.Context(), raw)
	if err != nil || claims.WorkspaceID != req.workspaceID {
		return false // and told after the upgrade
	}
	ctx, cancel := context.WithTimeout(r.Context(), hopTime)
	holder, err := req.Store.HolderOf(ctx, claims, asked, req.Replica)
	cancel()
	if err != nil {
		if !errors.Is(err, store.ErrGone) {
			req.log.Warn("no holder of a session was found", "resume", asked, "err", err)
		}
		return false
	}
	to, err := url.Parse(holder.URL)
	if err != nil {
		return false
	}
	passed := false
	proxy := &httputil.ReverseProxy{
		Transport: req.hops,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = to.Scheme, to.Host, ""
			p.Out.Header.Set(hopHeader, signHop(holder.Key, asked, req.client, time.Now()))
			req.opening.passOn(p.Out.Header)
		},
		ModifyResponse: func(response *http.Response) error {
			if response.StatusCode != http.StatusSwitchingProtocols || !strings.EqualFold(response.Header.Get("Upgrade"), "websocket") {
				return holderError{response.StatusCode, response.Status}
			}
			req.Metrics.resumes.WithLabelValues(resumePassed).Inc()
			req.endOpening(nil)
			passed = true
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) {
			var answer holderError
			answered := errors.As(err, &answer)
			req.unreached = !answered || answer.status == http.StatusConflict
			var slow net.Error
			req.paused = errors.As(err, &slow) && slow.Timeout() && holder.Silent < pausedTime
			if answered && answer.status == http.StatusConflict {
				req.log.Info("a session's holder has it no more", "resume", asked, "holder", holder.URL)
				return
			}
			req.log.Warn("a session's holder was not reached", "resume", asked, "holder", holder.URL, "err", err)
		},
	}
	proxy.ServeHTTP(w, r)
	return passed
}

// holderError is the answer of a holder that does not take a connection: StatusConflict of one
// that has the session no more.
type holderError struct {
	status int
	text   string
}

func (e holderError) Error() string { return "the holder answers " + e.text }

// signHop returns a hop header for a session and the client's address.
func signHop(key, sessionID, client string, now time.Time) string {
	until := strconv.FormatInt(now.Add(hopLife).Unix(), 10)
	return until + ";" + client + ";" + hopMAC(key, sessionID, until, client)
}

func hopMAC(key, sessionID, until, client string) string {
	mac := hmac.New(sha256.New, []byte(key))
	fmt.Fprintf(mac, "termgw hop\n%s\n%s\n%s", sessionID, until, client)
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// passedOn returns the client's address of a request that another replica has passed on to
// this one, and whether it is one.
func (rt *Router) passedOn(r *http.Request) (client netip.Addr, ok bool) {
	values := r.Header.Values(hopHeader)
	if len(values) != 1 {
		return netip.Addr{}, false
	}
	asked := r.URL.Query().Get("resume")
	first := rt.live.resumable(asked)
	until, rest, _ := strings.Cut(values[0], ";")
	addr, mac, _ := strings.Cut(rest, ";")
	end, err := strconv.ParseInt(until, 10, 64)
	if first == nil || first.passing.Key == "" || err != nil || time.Now().Unix() > end ||
		!hmac.Equal([]byte(mac), []byte(hopMAC(first.passing.Key, asked, until, addr))) {
		return netip.Addr{}, false
	}
	client, _ = netip.ParseAddr(addr) // invalid: the client has none
	return client, true
}
