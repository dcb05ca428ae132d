package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/molecule-ai/termgw/internal/gateway"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/store"
)

const (
	mostAsked = 8 // addresses of replicas
	askTime   = 10 * time.Second
)

// What to do about an address of a replica.
const (
	fixReach = "Let replicas reach each other at the port of TERMGW_LISTEN: NetworkPolicy, security group, firewall. A replica that was killed is named for half a minute more."
	fixTLS   = "Where TERMGW_ADVERTISE_URL is https, the certificate of what answers there has to be one that every replica trusts (SSL_CERT_FILE), and TERMGW_TLS_CERT has to be set there, or a proxy before it. Where TERMGW_TLS_CLIENT_CA is set, its CAs sign the replicas' own certificates, for clients too."
	fixOwn   = "Set TERMGW_ADVERTISE_URL on each replica to an address of its own that leads to its TERMGW_LISTEN, such as http://$(POD_IP):8080; not a Service's, a proxy's or that of TERMGW_ADMIN_LISTEN."
)

// advertised is an address that replicas have in their sessions' rows.
type advertised struct {
	address  string
	replicas []string
	err      error
	fix      string
}

// resume tells which replicas resume the sessions of this one, and asks the addresses to
// which this one passes connections on.
func (d *doctor) resume(ctx context.Context) (string, error) {
	found := fmt.Sprintf("a shell waits %s at most", d.cfg.Resume)
	shared, ok := d.store.(*store.Postgres)
	if !ok {
		return found + ", at this replica, which is the only one", nil
	}
	replicas, err := shared.Replicas(ctx)
	if err != nil {
		return "", err
	}
	replicas = slices.DeleteFunc(replicas, func(r store.Replica) bool { return r.Name == d.cfg.Replica })
	if d.cfg.AdvertiseURL == "" {
		found += ", and only this replica resumes it: TERMGW_ADVERTISE_URL is not set"
		if others := othersOf(replicas); len(others) > 0 {
			found += ". There are others (" + few(others) + "), which give its person a new shell. " + fixOwn
		}
	} else {
		found += ", and others pass its person on to " + d.cfg.AdvertiseURL
	}
	all := advertisedBy(replicas)
	if len(all) == 0 {
		return found + "; no replica has a session to pass a person on to now", nil
	}
	asked := all[:min(len(all), mostAsked)]
	askAll(ctx, d.hopTLS(), asked)
	var causes []error
	var fixes []string
	for _, a := range all {
		if len(a.replicas) > 1 && a.err == nil {
			a.err, a.fix = errors.New("it is one address for all of them"), fixOwn
		}
		if a.err != nil {
			causes = append(causes, fmt.Errorf("%s (%s): %w", a.address, few(a.replicas), a.err))
			fixes = append(fixes, a.fix)
		}
	}
	if causes != nil {
		slices.Sort(fixes)
		return "", &runner.Failure{Err: errors.Join(causes...), Fix: strings.Join(slices.Compact(fixes), " ")}
	}
	answer := make([]string, len(asked))
	for i, a := range asked {
		answer[i] = a.address
	}
	return fmt.Sprintf("%s; %d of %d addresses were asked, and are gateways': %s", found, len(asked), len(all), strings.Join(answer, ", ")), nil
}

// few names replicas, but not all of many.
func few(names []string) string {
	if len(names) > mostAsked {
		return strings.Join(names[:mostAsked], ", ") + fmt.Sprintf(" and %d more", len(names)-mostAsked)
	}
	return strings.Join(names, ", ")
}

// othersOf returns the names of the replicas but for one of this machine: the gateway's.
func othersOf(replicas []store.Replica) (names []string) {
	host, err := os.Hostname()
	own := err != nil
	for _, r := range replicas {
		if !own && strings.HasPrefix(r.Name, host+"-") {
			own = true
			continue
		}
		names = append(names, r.Name)
	}
	return names
}

// advertisedBy returns the addresses of replicas, without what else a URL may have: that
// of a row that somebody else has written may have a password.
func advertisedBy(replicas []store.Replica) (list []advertised) {
	for _, r := range replicas {
		if r.URL == "" {
			continue
		}
		a := advertised{address: "holder_url", err: errors.New("the row of a session has no address there, as http(s)://host:port is one"), fix: fixOwn}
		if u, err := url.Parse(r.URL); err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" {
			a = advertised{address: u.Scheme + "://" + u.Host}
		}
		i := slices.IndexFunc(list, func(other advertised) bool { return other.address == a.address })
		if i < 0 {
			i = len(list)
			list = append(list, a)
		}
		list[i].replicas = append(list[i].replicas, r.Name)
	}
	return list
}

// hopTLS returns what a gateway of this configuration shows other replicas; nil: nothing.
func (d *doctor) hopTLS() *tls.Config {
	own, err := tls.LoadX509KeyPair(d.cfg.TLS.Cert, d.cfg.TLS.Key)
	if err != nil {
		return nil // the start of the gateway tells
	}
	return &tls.Config{Certificates: []tls.Certificate{own}}
}

// askAll asks at once whether gateways are at the addresses without a fault.
func askAll(ctx context.Context, config *tls.Config, list []advertised) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	t := &http.Transport{DisableKeepAlives: true, TLSClientConfig: config} // as the router's: by no proxy
	var asking sync.WaitGroup
	for i := range list {
		a := &list[i]
		if a.err != nil {
			continue
		}
		asking.Go(func() {
			a.err = askGateway(ctx, t, a.address)
			var untrusted *tls.CertificateVerificationError
			var plain tls.RecordHeaderError
			var alert *net.OpError // of the gateway, that wants a certificate
			switch {
			case errors.Is(a.err, errNoGateway):
				a.fix = fixOwn
			case errors.As(a.err, &untrusted), errors.As(a.err, &plain), errors.As(a.err, &alert) && alert.Op == "remote error":
				a.fix = fixTLS
			case errors.Is(a.err, context.DeadlineExceeded):
				a.err, a.fix = fmt.Errorf("nothing answers within %s", askTime), fixReach
			default:
				a.fix = fixReach
			}
		})
	}
	asking.Wait()
}

var (
	errNoGateway = errors.New("what answers is not termgw")
	errAdmin     = fmt.Errorf("%w's listener of terminals, but TERMGW_ADMIN_LISTEN", errNoGateway)
)

// askGateway asks for /readyz, whatever that says: a replica that drains is a gateway, too.
func askGateway(ctx context.Context, t *http.Transport, address string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"/readyz", http.NoBody)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoGateway, err)
	}
	response, err := t.RoundTrip(request) // follows no redirect
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.Header.Get(gateway.AdminHeader) != "" {
		return errAdmin
	}
	var ready struct {
		Draining *bool `json:"draining"`
		Sessions *int  `json:"sessions"`
	}
	err = json.NewDecoder(io.LimitReader(response.Body, 64<<10)).Decode(&ready)
	if errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if err != nil || ready.Draining == nil || ready.Sessions == nil {
		return fmt.Errorf("%w: status %d", errNoGateway, response.StatusCode)
	}
	return nil
}
