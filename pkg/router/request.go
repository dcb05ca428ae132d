package router

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/molecule-ai/termgw/pkg/bridge"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// ticketProtocol begins the subprotocol that carries a browser's ticket: a page can
// set no other header on a WebSocket. The gateway never selects this subprotocol.
const ticketProtocol = "termgw.ticket."

// checkRequest returns the errors of a request that is no handshake, which are answered by
// an HTTP status, before the upgrade.
func (rt *Router) checkRequest(r *http.Request, id string) error {
	if !store.ValidWorkspaceID(id) {
		return errUnknown
	}
	if !headerHas(r.Header, "Connection", "upgrade") || !headerHas(r.Header, "Upgrade", "websocket") ||
		r.Header.Get("Sec-WebSocket-Version") != "13" {
		return errNotWebSocket
	}
	key, err := base64.StdEncoding.DecodeString(r.Header.Get("Sec-WebSocket-Key"))
	if r.Method != http.MethodGet || !r.ProtoAtLeast(1, 1) || err != nil || len(key) != 16 ||
		len(r.Header.Values("Sec-WebSocket-Key")) != 1 {
		return errHandshake
	}
	return nil
}

// checkOrigin compares scheme, host and port (RFC 6454). A request without Origin is
// allowed, and the ticket decides: such a client is no browser, since no page can make
// a browser leave the header out.
func (rt *Router) checkOrigin(r *http.Request) error {
	values := r.Header.Values("Origin")
	if len(values) == 0 {
		return nil
	}
	origin := normalOrigin(values[0])
	if origin == "" || len(values) > 1 {
		return errOrigin
	}
	if origin == normalOrigin(rt.ownOrigin(r)) {
		return nil
	}
	for _, allowed := range rt.AllowedOrigins {
		if origin == normalOrigin(allowed) {
			return nil
		}
	}
	return fmt.Errorf("%w: the gateway is %s", errOrigin, normalOrigin(rt.ownOrigin(r)))
}

// ownOrigin returns the origin that the request was sent to, as the browser saw it.
func (rt *Router) ownOrigin(r *http.Request) string {
	scheme, host := "http", r.Host
	if r.TLS != nil {
		scheme = "https"
	}
	if rt.Trusts(peerAddr(r)) {
		// The nearest proxy wrote the last value.
		if v := lastValue(r.Header, "X-Forwarded-Proto"); v != "" {
			scheme = httpScheme(v)
		}
		if v := lastValue(r.Header, "X-Forwarded-Host"); v != "" {
			host = v
		}
	}
	return scheme + "://" + host
}

// httpScheme turns ws and wss, as Traefik names a WebSocket's scheme, into http and https.
func httpScheme(s string) string {
	switch strings.ToLower(s) {
	case "ws":
		return "http"
	case "wss":
		return "https"
	}
	return s
}

// normalOrigin returns an origin in lower case without its scheme's default port, or
// "" if s is no origin of http or https.
func normalOrigin(s string) string {
	u, err := url.Parse(strings.ToLower(s))
	if err != nil || u.Host == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return ""
	}
	switch u.Scheme {
	case "http":
		return "http://" + strings.TrimSuffix(u.Host, ":80")
	case "https":
		return "https://" + strings.TrimSuffix(u.Host, ":443")
	}
	return ""
}

// clientAddr returns the client's address: the nearest hop that is no trusted proxy.
// Earlier addresses in X-Forwarded-For can be forged. If the text there cannot be a
// client's address, the hop that wrote the text counts as the client. The result is
// invalid if the peer has no address.
func (rt *Router) clientAddr(r *http.Request) netip.Addr {
	addr := peerAddr(r)
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && rt.Trusts(addr); i-- {
		hop, err := parseHop(strings.TrimSpace(hops[i]))
		hop = hop.Unmap().WithZone("") // a zone can be any text, and means nothing on another machine
		if err != nil || !IsClientOf(addr, hop) {
			break
		}
		addr = hop
	}
	return addr
}

// nowhere has the addresses from which no client connects (RFC 6890): unspecified,
// multicast, reserved, and the deprecated IPv4-compatible form of IPv6.
var nowhere = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/3"),
	netip.MustParsePrefix("::/96"), netip.MustParsePrefix("ff00::/8"),
}

// IsClientOf reports whether a client of this address can have connected to the
// proxy. A loopback address means the proxy's own machine, so the proxy has to be on
// this machine, too.
func IsClientOf(proxy, client netip.Addr) bool {
	if client.IsLoopback() {
		return isLocal(proxy)
	}
	for _, p := range nowhere {
		if p.Contains(client) {
			return false
		}
	}
	return true
}

// parseHop parses one address of X-Forwarded-For. IPv6 may have brackets, and a port
// may follow: Azure's Application Gateway always writes a port, IIS and an ALB do so
// if configured.
func parseHop(s string) (netip.Addr, error) {
	if strings.HasSuffix(s, "]") {
		s += ":0"
	}
	if hop, err := netip.ParseAddrPort(s); err == nil {
		return hop.Addr(), nil
	}
	return netip.ParseAddr(s)
}

func addrString(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.String()
}

// isLocal reports whether a peer is a process of this machine. The peer of a unix socket has no valid address.
func isLocal(peer netip.Addr) bool { return !peer.IsValid() || peer.IsLoopback() }

// Trusts reports whether a peer is a trusted proxy.
func (rt *Router) Trusts(addr netip.Addr) bool {
	if !addr.IsValid() {
		return rt.TrustUnix
	}
	for _, p := range rt.TrustedProxies {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

func peerAddr(r *http.Request) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	addr, _ := netip.ParseAddr(host)
	return addr.Unmap().WithZone("")
}

// ticketOf returns the request's ticket from the subprotocols, the Authorization
// header or the query. Two different tickets are an error.
func ticketOf(r *http.Request) (string, error) {
	tickets := r.URL.Query()["ticket"]
	for protocol := range listed(r.Header, "Sec-WebSocket-Protocol") {
		if t, ok := strings.CutPrefix(protocol, ticketProtocol); ok {
			tickets = append(tickets, t)
		}
	}
	for _, v := range r.Header.Values("Authorization") {
		if scheme, t, ok := strings.Cut(v, " "); ok && strings.EqualFold(scheme, "Bearer") {
			tickets = append(tickets, strings.TrimSpace(t))
		}
	}
	found := ""
	for _, t := range tickets {
		if found != "" && t != found && t != "" {
			return "", errTwoTickets
		}
		if t != "" {
			found = t
		}
	}
	if found == "" {
		return "", errNoTicket
	}
	return found, nil
}

// firstSize returns the size in cols and rows of the query. Defaults: 80 and 24.
func firstSize(query url.Values) (terminal.Size, error) {
	size := terminal.Size{Cols: 80, Rows: 24}
	for name, field := range map[string]*uint16{"cols": &size.Cols, "rows": &size.Rows} {
		if !query.Has(name) {
			continue
		}
		n, err := strconv.ParseUint(query.Get(name), 10, 16)
		if err != nil || n < 1 || n > terminal.MaxDimension {
			return size, fmt.Errorf("%w: %s must be a whole number from 1 to %d", bridge.ErrBadMessage, name, terminal.MaxDimension)
		}
		*field = uint16(n)
	}
	return size, nil
}

// listed yields the elements of a comma-separated header.
func listed(h http.Header, name string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for _, value := range h.Values(name) {
			for element := range strings.SplitSeq(value, ",") {
				if !yield(strings.TrimSpace(element)) {
					return
				}
			}
		}
	}
}

func headerHas(h http.Header, name, element string) bool {
	for v := range listed(h, name) {
		if strings.EqualFold(v, element) {
			return true
		}
	}
	return false
}

func lastValue(h http.Header, name string) (last string) {
	for v := range listed(h, name) {
		last = v
	}
	return last
}
