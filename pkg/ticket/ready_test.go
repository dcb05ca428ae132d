package ticket_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// faultyKeyServers are the ways in which a platform serves no key set, with what the operator reads of each.
func faultyKeyServers(t *testing.T, key jose.JSONWebKey) map[string]struct {
	answer http.HandlerFunc
	reason string
} {
	many := make([]jose.JSONWebKey, 200)
	for i := range many {
		many[i] = key.Public()
	}
	twin := newKey(t, "EdDSA")
	twin.KeyID = key.KeyID
	encryption := key
	encryption.Use = "enc"
	return map[string]struct {
		answer http.HandlerFunc
		reason string
	}{
		"500":             {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, "status 500"},
		"404":             {http.NotFound, "status 404"},
		"204":             {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, "status 204"},
		"HTML":            {body([]byte("<!doctype html><title>Sign in</title>")), "not a JWK Set"},
		"nothing":         {body(nil), "not a JWK Set"},
		"half a set":      {body(publicSet(t, key)[:40]), "not a JWK Set"},
		"200 keys":        {body(jwks(t, many...)), "more than 100 keys"},
		"two of one kid":  {body(publicSet(t, key, twin)), "two different keys"},
		"only unusable":   {body(publicSet(t, encryption)), "use is not sig"},
		"more than 1 MiB": {body(bytes.Repeat([]byte(" "), 2<<20)), "larger than"},
		"without end": {func(w http.ResponseWriter, _ *http.Request) {
			for err := error(nil); err == nil; {
				_, err = w.Write(bytes.Repeat([]byte(" "), 64<<10))
			}
		}, "larger than"},
		"hangs": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "deadline exceeded"},
		"a slow body": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte(" "))
				_ = http.NewResponseController(w).Flush()
				select {
				case <-time.After(100 * time.Millisecond):
				case <-r.Context().Done():
				}
			}
		}, "deadline exceeded"},
		"a body cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5000")
			_, _ = w.Write(publicSet(t, key))
		}, "unexpected EOF"},
		"cut off": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
		"redirects to itself": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/again", http.StatusFound)
		}, "too many redirects"},
		"redirects to http": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		}, "from https to something else"},
	}
}

// Without a key nobody's ticket is said to be invalid; with one, a platform that fails takes nothing away.
func TestFaultyKeyServers(t *testing.T) {
	key := newKey(t, "EdDSA")
	for name, faulty := range faultyKeyServers(t, key) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var (
				clock clock
				log   logs
			)
			p := newPlatform(t, faulty.answer)
			keys := p.open(t, &clock, &log)
			verifier := ticket.NewVerifier(ticket.VerifierConfig{Keys: keys, Now: clock.now})
			verify := func() error {
				claims := goodClaims()
				claims.IssuedAt, claims.NotBefore, claims.Expires = clock.now(), clock.now(), clock.now().Add(time.Minute)
				_, err := verifier.Verify(t.Context(), mint(t, key, claims))
				return err
			}
			wantNone := func(err error) {
				t.Helper()
				if !errors.Is(err, ticket.ErrNoKeys) || errors.Is(err, ticket.ErrInvalid) || !strings.Contains(err.Error(), faulty.reason) {
					t.Errorf("err = %v; want ErrNoKeys alone, for %q", err, faulty.reason)
				}
				if strings.Contains(err.Error(), "hunter2") {
					t.Errorf("the error shows the URL's query: %v", err)
				}
			}
			if err := keys.Ready(); !errors.Is(err, ticket.ErrNoKeys) {
				t.Errorf("ready before a fetch: %v", err)
			}
			wantNone(verify())
			wantNone(keys.Ready())
			clock.advance(time.Minute)
			if age := keys.Age(); age != time.Minute || keys.IDs() != nil {
				t.Errorf("age %s, keys %q without a set", age, keys.IDs())
			}
			if text := log.String(); !strings.Contains(text, "no ticket keys yet") || strings.Contains(text, "stay") || strings.Contains(text, "hunter2") {
				t.Errorf("logged:\n%s", text)
			}

			p.set(body(publicSet(t, key)))
			if err := errors.Join(verify(), keys.Ready()); err != nil {
				t.Errorf("when it answers: %v", err)
			}
			if age := keys.Age(); age != 0 || !slices.Equal(keys.IDs(), []string{key.KeyID}) {
				t.Errorf("age %s, keys %q of a new set", age, keys.IDs())
			}

			p.set(faulty.answer)
			clock.advance(30 * time.Second)
			if err := errors.Join(keys.Load(t.Context()), keys.Ready(), verify()); err != nil {
				t.Errorf("when it fails again: %v", err)
			}
			if age := keys.Age(); age != 30*time.Second {
				t.Errorf("the last good set is %s old", age)
			}
			if !strings.Contains(log.String(), "the last good ones stay") {
				t.Errorf("logged:\n%s", log.String())
			}
		})
	}
}

// A server that cannot be connected to, or trusted.
func TestUnreachableKeyServers(t *testing.T) {
	plain := httptest.NewServer(body(nil))
	defer plain.Close()
	refuses := newPlatform(t, nil)
	refuses.Close()
	unknown := newPlatform(t, body(nil))
	key := newKey(t, "EdDSA")
	for name, test := range map[string]struct{ location, reason string }{
		"refuses":            {refuses.URL, "connection refused"},
		"an unknown issuer":  {unknown.URL, "certificate"},
		"TLS without TLS":    {strings.Replace(plain.URL, "http://", "https://", 1), "HTTP response to HTTPS client"},
		"a name of no host":  {"https://keys.invalid/jwks", "keys.invalid"},
		"a port of no sense": {"https://127.0.0.1:99999/jwks", "port"},
	} {
		t.Run(name, func(t *testing.T) {
			keys, err := ticket.OpenKeys(ticket.KeysConfig{Location: test.location})
			if err != nil {
				t.Fatal(err)
			}
			verifier := ticket.NewVerifier(ticket.VerifierConfig{Keys: keys, Now: at(now)})
			for range 4 { // also where the limit forbids another fetch
				_, err = verifier.Verify(t.Context(), mint(t, key, goodClaims()))
				if !errors.Is(err, ticket.ErrNoKeys) || errors.Is(err, ticket.ErrInvalid) || !strings.Contains(err.Error(), test.reason) {
					t.Fatalf("err = %v; want ErrNoKeys alone, for %q", err, test.reason)
				}
			}
		})
	}
}

// What is wrong with a ticket whatever the keys is told without any.
func TestNoKeysExcuseNoBadTicket(t *testing.T) {
	verifier := ticket.NewVerifier(ticket.VerifierConfig{Keys: ticket.StaticKeys(), Now: at(now)})
	for name, raw := range map[string]string{
		"no ticket":     "hello",
		"another typ":   sign(document{"typ": "JWT", "alg": "EdDSA", "kid": "k"}.text(), goodPayload().text(), noSignature),
		"without a kid": sign(goodHeader("EdDSA", "").text(), goodPayload().text(), noSignature),
	} {
		if _, err := verifier.Verify(t.Context(), raw); !errors.Is(err, ticket.ErrInvalid) || errors.Is(err, ticket.ErrNoKeys) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := verifier.Verify(t.Context(), mint(t, newKey(t, "EdDSA"), goodClaims()))
	if !errors.Is(err, ticket.ErrNoKeys) {
		t.Errorf("a good one: %v", err)
	}
}

// An empty set is an order to trust nobody: no failure, and no key.
func TestEmptySet(t *testing.T) {
	key := newKey(t, "EdDSA")
	empty, full := []byte(`{"keys":[]}`), publicSet(t, key)
	path := filepath.Join(t.TempDir(), "jwks.json")
	var (
		clock clock
		log   logs
	)
	p := newPlatform(t, body(empty))
	write(t, path, empty)
	ofFile, err := ticket.OpenKeys(ticket.KeysConfig{Location: path, Now: clock.now, Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		keys *ticket.Keys
		set  func([]byte)
	}{
		"URL":  {p.open(t, &clock, &log), func(set []byte) { p.set(body(set)) }},
		"file": {ofFile, func(set []byte) { replace(t, path, set) }},
	} {
		t.Run(name, func(t *testing.T) {
			for _, set := range [][]byte{empty, full, empty} {
				test.set(set)
				clock.advance(time.Minute)
				err := test.keys.Load(t.Context())
				if len(set) == len(empty) && !errors.Is(err, ticket.ErrNoKeys) || len(set) > len(empty) && err != nil {
					t.Errorf("of %s: %v", set, err)
				}
				_, missing := test.keys.Key(t.Context(), key.KeyID)
				if errors.Is(missing, ticket.ErrNoKeys) != errors.Is(err, ticket.ErrNoKeys) || test.keys.Age() != 0 {
					t.Errorf("of %s: %v, age %s", set, missing, test.keys.Age())
				}
			}
		})
	}
}

// The age of a file's set grows while the file cannot be read, whether tickets come or not.
func TestFileAge(t *testing.T) {
	key := newKey(t, "EdDSA")
	path := filepath.Join(t.TempDir(), "jwks.json")
	var (
		clock clock
		log   logs
	)
	write(t, path, publicSet(t, key))
	keys, err := ticket.OpenKeys(ticket.KeysConfig{Location: path, Now: clock.now, Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	want := func(age time.Duration) {
		t.Helper()
		if got := keys.Age(); got != age || keys.Ready() != nil {
			t.Errorf("age %s, want %s; ready: %v", got, age, keys.Ready())
		}
	}
	want(0)
	clock.advance(time.Hour)
	want(0)
	replace(t, path, []byte("{"))
	clock.advance(time.Hour)
	want(time.Hour)
	has(t, keys, key, true)
	replace(t, path, publicSet(t, key))
	clock.advance(time.Hour)
	want(0)
}

// A set is logged when its keys change, and not at each fetch.
func TestKeysAreLoggedWhenTheyChange(t *testing.T) {
	first, second := newKey(t, "EdDSA"), newKey(t, "EdDSA")
	var (
		clock clock
		log   logs
	)
	p := newPlatform(t, body(publicSet(t, first)))
	keys := p.open(t, &clock, &log)
	for i, set := range [][]byte{publicSet(t, first), publicSet(t, first), publicSet(t, first, second), publicSet(t, second), publicSet(t, second)} {
		p.set(body(set))
		if err := keys.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n, want := strings.Count(log.String(), "ticket keys loaded"), []int{1, 1, 2, 3, 3}[i]; n != want {
			t.Errorf("logged %d times after fetch %d, want %d", n, i, want)
		}
	}
	if !strings.Contains(log.String(), first.KeyID) || !strings.Contains(log.String(), second.KeyID) {
		t.Errorf("the log does not name the keys:\n%s", log.String())
	}
}

// A lasting fault is logged once, though its words have another port at each try.
func TestOneFaultIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			fetches atomic.Int64
			log     logs
		)
		keys, err := ticket.OpenKeys(ticket.KeysConfig{
			Location: "https://platform.example/jwks",
			Logger:   log.logger(),
			Client: &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
				return nil, fmt.Errorf("read tcp 192.0.2.1:%d->192.0.2.2:443: connection reset by peer", 40000+fetches.Add(1))
			})},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- keys.Run(ctx) }()
		for minutes := range 3 {
			time.Sleep(59 * time.Second) // of the bubble's clock
			synctest.Wait()
			if n := strings.Count(log.String(), "connection reset"); n != minutes+1 || fetches.Load() < 6 {
				t.Errorf("%d lines in %d minutes of %d fetches", n, minutes+1, fetches.Load())
			}
			time.Sleep(time.Second)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// A gateway that is not ready gets no tickets, so Run alone has to find out soon that there is a key now.
func TestRunLooksAgainSoonForAFirstKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answer atomic.Pointer[[]byte]
		empty, full := []byte(`{"keys":[]}`), publicSet(t, newKey(t, "EdDSA"))
		answer.Store(&empty)
		keys, err := ticket.OpenKeys(ticket.KeysConfig{
			Location: "https://platform.example/jwks",
			Client: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(*answer.Load())), Request: r}, nil
			})},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- keys.Run(ctx) }()
		time.Sleep(time.Minute) // of the bubble's clock
		synctest.Wait()
		if err := keys.Ready(); !errors.Is(err, ticket.ErrNoKeys) {
			t.Errorf("with an empty set: %v", err)
		}
		answer.Store(&full)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if err := keys.Ready(); err != nil {
			t.Errorf("10 seconds after there is a key: %v", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}
