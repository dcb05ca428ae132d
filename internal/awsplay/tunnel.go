package awsplay

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"
)

// dialTime is how long an endpoint waits for an instance's answer.
const dialTime = 5 * time.Second

type tunnel struct {
	endpoint string
	wire     *wire
}

// tellTunnel answers a handshake with a denial.
func tellTunnel(w http.ResponseWriter, d denial) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(d.status)
	_ = json.NewEncoder(w).Encode(map[string]string{"ErrorCode": d.code, "Message": d.message}) // the client may have left
}

// serveTunnel checks a request, and carries its tunnel until the tunnel's end.
func (s *Server) serveTunnel(w http.ResponseWriter, r *http.Request) {
	f, failing := s.begin(OpenTunnel)
	if failing && s.answer(w, r, f, tellTunnel) {
		return
	}
	who := s.caller(r)
	if err := s.verifier("ec2-instance-connect", who).presigned(r, maxExpires); err != nil {
		tellTunnel(w, jsonDenial(err))
		return
	}
	s.record(w, OpenTunnel, who)
	under, ok := r.Context().Value(wireKey{}).(*wire)
	if !ok {
		tellTunnel(w, denial{http.StatusInternalServerError, "InternalServerException", "not a connection of this server"})
		return
	}
	t := &tunnel{wire: under}
	target, life, d := s.admit(r, t, who.account)
	if d != nil {
		tellTunnel(w, *d)
		return
	}
	defer s.wg.Done()
	defer s.leave(t)
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // no browser comes here
	if err != nil {
		return
	}
	defer func() { _ = ws.CloseNow() }()
	if f.CloseReason != "" {
		_ = ws.Close(websocket.StatusInternalError, f.CloseReason)
		return
	}
	expiry := time.AfterFunc(life, under.cut)
	defer expiry.Stop()
	s.carry(ws, under, target)
}

// admit checks a tunnel's parameters and counts the tunnel as its endpoint's. Unless denied, the caller calls leave,
// then wg.Done.
func (s *Server) admit(r *http.Request, t *tunnel, account string) (target string, life time.Duration, _ *denial) {
	invalid := func(what string) (string, time.Duration, *denial) {
		return "", 0, &denial{http.StatusBadRequest, "InvalidParameter", "The parameter " + what + " is not valid."}
	}
	query := r.URL.Query()
	life, ok := tunnelLife(query)
	if !ok {
		return invalid("maxTunnelDuration")
	}
	if port := query.Get("remotePort"); port != "22" && port != "3389" {
		return invalid("remotePort")
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.endpoints[query.Get("instanceConnectEndpointId")]
	if !ok || e.Account != account || !strings.HasPrefix(e.State, "create-complete") && !strings.HasPrefix(e.State, "update-") ||
		!e.named(host) {
		return invalid("instanceConnectEndpointId")
	}
	if net.ParseIP(query.Get("privateIpAddress")) == nil {
		return invalid("privateIpAddress")
	}
	for _, i := range s.instances {
		if e.reaches(i, query.Get("privateIpAddress")) && i.State == "running" && query.Get("remotePort") == "22" {
			target = i.Target
		}
	}
	open := 0
	for other := range s.tunnels {
		if other.endpoint == e.ID {
			open++
		}
	}
	if open >= e.MaxTunnels {
		return "", 0, &denial{http.StatusTooManyRequests, "ServiceQuotaExceededException", "The maximum number of tunnels is open."}
	}
	if s.closed {
		return "", 0, &denial{http.StatusServiceUnavailable, "ServiceUnavailable", "The server is being closed."}
	}
	t.endpoint = e.ID
	s.tunnels[t] = struct{}{}
	s.wg.Add(1)
	return target, life, nil
}

func tunnelLife(query url.Values) (time.Duration, bool) {
	if !query.Has("maxTunnelDuration") {
		return time.Hour, true
	}
	n, err := strconv.Atoi(query.Get("maxTunnelDuration"))
	return time.Duration(n) * time.Second, err == nil && n >= 1 && n <= 3600
}

func (s *Server) leave(t *tunnel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tunnels, t)
}

// carry copies bytes in both directions until either side ends.
func (s *Server) carry(ws *websocket.Conn, under *wire, target string) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTime)
	defer cancel()
	instance, err := net.Conn(nil), errors.New("closed")
	if target != "" {
		instance, err = new(net.Dialer).DialContext(ctx, "tcp", target)
	}
	if err != nil {
		_ = ws.Close(websocket.StatusInternalError, "Unable to connect to target")
		return
	}
	defer func() { _ = instance.Close() }()
	client := websocket.NetConn(context.Background(), ws, websocket.MessageBinary)
	out := make(chan struct{})
	go func() { // ends with the instance's connection, closed below
		defer close(out)
		s.copyOut(client, instance, under)
		_ = ws.Close(websocket.StatusNormalClosure, "") // wakes the copy below
	}()
	_, _ = io.Copy(instance, client)
	_ = instance.Close()
	<-out
}

// copyOut copies the instance's bytes to the client, and cuts the tunnel after cutAfter bytes.
func (s *Server) copyOut(client io.Writer, instance io.Reader, under *wire) {
	buf := make([]byte, 32<<10)
	var sent int64
	for {
		n, err := instance.Read(buf)
		if n > 0 {
			if _, err := client.Write(buf[:n]); err != nil {
				return
			}
			sent += int64(n)
		}
		s.mu.Lock()
		cut := s.cutAfter > 0 && sent >= s.cutAfter
		s.mu.Unlock()
		if cut {
			under.cut()
			return
		}
		if err != nil {
			return
		}
	}
}

// Tunnels returns the number of open tunnels.
func (s *Server) Tunnels() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.tunnels)
}

// Cut resets all open tunnels.
func (s *Server) Cut() { s.each((*wire).cut) }

// CutAfter resets each tunnel once its client has got so many bytes; 0: never.
func (s *Server) CutAfter(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cutAfter = bytes
}

// Stall silences all open tunnels for good: the server neither reads nor writes, not even a close.
func (s *Server) Stall() { s.each((*wire).stall) }

func (s *Server) each(f func(*wire)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := range s.tunnels {
		f(t.wire)
	}
}
