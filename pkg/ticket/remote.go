package ticket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	refreshEvery = 5 * time.Minute
	retryEvery   = 10 * time.Second // after a fetch that failed
	fetchTimeout = 5 * time.Second
	maxRedirects = 3

	// Anybody can send a ticket with an unknown kid, so the fetches for unknown kids are
	// bounded: two at once, then one in ten seconds.
	missEvery = 10 * time.Second
	missBurst = 2
)

// remote is a JWK Set at a URL.
type remote struct {
	location string
	client   *http.Client
	now      func() time.Time
	misses   *rate.Limiter

	// fetching is held during a fetch, by a value in it. It is a channel and no mutex, so
	// that a caller stops waiting when its context ends.
	fetching chan struct{}
	log      complaints // guarded by fetching

	mu      sync.Mutex
	set     keySet
	fault   error     // of the last fetch
	fetches uint64    // the number of finished fetches
	current time.Time // when set was last known to be the URL's
}

func newRemote(config KeysConfig, location *url.URL) *remote {
	client := *config.Client
	client.CheckRedirect = checkRedirect
	return &remote{
		location: location.String(),
		client:   &client,
		now:      config.Now,
		misses:   rate.NewLimiter(rate.Every(missEvery), missBurst),
		fetching: make(chan struct{}, 1),
		log:      complaints{logger: config.Logger, location: withoutSecrets(location), now: config.Now},
		fault:    errors.New("not fetched yet"),
		current:  config.Now(),
	}
}

func (r *remote) keys(ctx context.Context, missed bool) (keySet, error) {
	set, fetches, fault := r.state()
	if !missed {
		return set, fault
	}
	if ctx.Err() != nil {
		return set, context.Cause(ctx)
	}
	select {
	case r.fetching <- struct{}{}:
		defer func() { <-r.fetching }()
	case <-ctx.Done():
		return set, context.Cause(ctx)
	}
	// If another call fetched the set while this call waited, that set is fresh enough.
	if set, finished, fault := r.state(); finished != fetches || !r.misses.AllowN(r.now(), 1) {
		return set, fault
	}
	// Other calls may wait for this fetch, so it does not end with this caller's context.
	_ = r.fetch(context.WithoutCancel(ctx))
	set, _, fault = r.state()
	return set, fault
}

func (r *remote) read(ctx context.Context) {
	select {
	case r.fetching <- struct{}{}:
		_ = r.fetch(ctx)
		<-r.fetching
	case <-ctx.Done():
	}
}

func (r *remote) run(ctx context.Context) {
	for {
		r.read(ctx)
		set, _, fault := r.state()
		wait := refreshEvery
		// A gateway without a key is not ready, so it gets no tickets, whose kids would
		// cause a fetch.
		if fault != nil || set.check(nil) != nil {
			wait = retryEvery
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

func (r *remote) state() (set keySet, fetches uint64, fault error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.set, r.fetches, r.fault
}

func (r *remote) age() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return max(0, r.now().Sub(r.current))
}

// fetch replaces the set if the URL has a good set. The caller holds fetching.
func (r *remote) fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	set, notes, err := r.get(ctx)

	r.mu.Lock()
	r.fetches++
	r.fault = err
	if err == nil {
		r.set, r.current = set, r.now()
	}
	r.mu.Unlock()

	switch {
	case err == nil:
		r.log.loaded(set, notes)
	case !errors.Is(err, context.Canceled):
		r.log.failed(err)
	}
	return err
}

func (r *remote) get(ctx context.Context) (keySet, []string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.location, nil)
	if err != nil {
		return nil, nil, errors.New("fetching the JWK Set: the URL is malformed")
	}
	request.Header.Set("Accept", "application/jwk-set+json, application/json")
	response, err := r.client.Do(request)
	if err != nil {
		// A *url.Error has the URL, whose query may be secret.
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err
		}
		return nil, nil, fmt.Errorf("fetching the JWK Set: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("fetching the JWK Set: status %d", response.StatusCode)
	}
	data, err := readSet(response.Body)
	if err == nil && ctx.Err() != nil { // the end of a body that comes while the connection is being closed
		err = fmt.Errorf("fetching the JWK Set: %w", ctx.Err())
	}
	if err != nil {
		return nil, nil, err
	}
	return parseKeySet(data, false)
}

// withoutSecrets returns the URL for a log line: userinfo and query may hold a token.
func withoutSecrets(location *url.URL) string {
	return (&url.URL{Scheme: location.Scheme, Host: location.Host, Path: location.Path}).String()
}

// trustedURL reports whether nobody can alter the answer on the way: https, or this machine.
func trustedURL(location *url.URL) bool {
	host := location.Hostname()
	if host == "" {
		return false
	}
	switch location.Scheme {
	case "https":
		return true
	case "http":
		ip := net.ParseIP(host)
		return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
	}
	return false
}

func checkRedirect(next *http.Request, via []*http.Request) error {
	next.Header.Del("Referer") // net/http sets it, with the query of the first URL
	switch {
	case len(via) > maxRedirects:
		return errors.New("too many redirects")
	case next.URL.Scheme != "https" && via[0].URL.Scheme == "https":
		return errors.New("redirected from https to something else")
	case !trustedURL(next.URL):
		return errors.New("redirected to an address that is not https")
	}
	return nil
}
