package ticket_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// oneKey is a KeySource that hands out its key whatever the kid.
type oneKey struct{ key jose.JSONWebKey }

func (k oneKey) Key(context.Context, string) (jose.JSONWebKey, error) { return k.key, nil }

// clock is a time that a test moves.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return now.Add(time.Duration(c.offset.Load())) }
func (c *clock) advance(d time.Duration) { c.offset.Add(int64(d)) }

// logs is a log that several goroutines may write to.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func jwks(t testing.TB, keys ...jose.JSONWebKey) []byte {
	t.Helper()
	data, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func publicSet(t testing.TB, keys ...jose.JSONWebKey) []byte {
	t.Helper()
	public := make([]jose.JSONWebKey, len(keys))
	for i, key := range keys {
		public[i] = key.Public()
	}
	return jwks(t, public...)
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// replace puts a file in another's place, as mv does.
func replace(t *testing.T, path string, data []byte) {
	t.Helper()
	write(t, path+".new", data)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func has(t *testing.T, keys *ticket.Keys, key jose.JSONWebKey, want bool) {
	t.Helper()
	found, err := keys.Key(t.Context(), key.KeyID)
	if (err == nil) != want {
		t.Errorf("key %.8s…: err %v, want found = %v", key.KeyID, err, want)
	}
	if err == nil && !found.IsPublic() {
		t.Error("the key that a verifier gets is not a public one")
	}
}

func TestFileRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jwks.json")
	older, newer, newest := newKey(t, "EdDSA"), newKey(t, "ES256"), newKey(t, "EdDSA")
	var (
		clock clock
		log   logs
	)
	write(t, path, publicSet(t, older))
	keys, err := ticket.OpenKeys(ticket.KeysConfig{Location: path, Now: clock.now, Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	has(t, keys, older, true)
	has(t, keys, newer, false)

	// An unknown kid looks at once; the old key stays for as long as the file has it.
	replace(t, path, publicSet(t, older, newer))
	has(t, keys, newer, true)
	has(t, keys, older, true)

	// A key that went is gone within the second.
	replace(t, path, publicSet(t, newer))
	clock.advance(time.Second)
	has(t, keys, older, false)
	has(t, keys, newer, true)

	// A broken file changes nothing and is told once.
	for _, broken := range [][]byte{nil, []byte("{"), []byte(`{"keys":7}`), publicSet(t, newest)[:40]} {
		replace(t, path, broken)
		clock.advance(time.Second)
		has(t, keys, newer, true)
		clock.advance(time.Second)
		has(t, keys, newer, true)
	}
	if count := strings.Count(log.String(), "not refreshed"); count != 1 {
		t.Errorf("%d warnings for one lasting fault:\n%s", count, log.String())
	}
	if _, err := keys.Key(t.Context(), newest.KeyID); err == nil || !strings.Contains(err.Error(), "out of date") {
		t.Errorf("err = %v, want it to say that the set may be out of date", err)
	}

	// So does one that is not there for a moment.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	clock.advance(time.Second)
	has(t, keys, newer, true)
	write(t, path, publicSet(t, newest))
	has(t, keys, newest, true)

	// An empty set is an order.
	replace(t, path, []byte(`{"keys":[]}`))
	clock.advance(time.Second)
	has(t, keys, newest, false)
	if !strings.Contains(log.String(), "empty") {
		t.Error("an empty set is not told")
	}
	// To a gateway that starts, too.
	log = logs{}
	keys, err = ticket.OpenKeys(ticket.KeysConfig{Location: path, Now: clock.now, Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	has(t, keys, newest, false)
	if !strings.Contains(log.String(), "empty") {
		t.Error("an empty set is not told at the start")
	}
	replace(t, path, publicSet(t, newest))
	has(t, keys, newest, true)
}

func TestFileIsReadOnlyWhenItChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jwks.json")
	key := newKey(t, "EdDSA")
	write(t, path, publicSet(t, key))
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ticket.OpenKeys(ticket.KeysConfig{Location: path, Now: at(now)})
	if err != nil {
		t.Fatal(err)
	}
	// Same inode, size and time: only reading it would tell that it is another.
	write(t, path, bytes.Repeat([]byte(" "), int(before.Size())))
	if err := os.Chtimes(path, time.Time{}, before.ModTime()); err != nil {
		t.Fatal(err)
	}
	_, err = keys.Key(t.Context(), "unknown")
	if err == nil || strings.Contains(err.Error(), "out of date") {
		t.Errorf("err = %v: the file was read again", err)
	}
	has(t, keys, key, true)
}

func TestOpenKeysRefuses(t *testing.T) {
	dir := t.TempDir()
	ed, other := newKey(t, "EdDSA"), newKey(t, "EdDSA")
	other.KeyID = ed.KeyID
	encryption := newKey(t, "EdDSA")
	encryption.Use = "enc"
	nameless := newKey(t, "EdDSA")
	nameless.KeyID = ""
	many := make([]jose.JSONWebKey, 101)
	for i := range many {
		many[i] = ed.Public()
	}
	const secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQ"
	one := string(publicSet(t, ed))
	oneKey := one[len(`{"keys":[`) : len(one)-len(`]}`)]
	within := func(member string) []byte { return []byte(strings.Replace(one, `"kid":`, member+`,"kid":`, 1)) }

	for name, test := range map[string]struct {
		data   []byte
		reason string
	}{
		"empty":                   {nil, "not a JWK Set"},
		"no JSON":                 {[]byte(secret), "not a JWK Set"},
		"one JWK, no set":         {[]byte(`{"kty":"oct","kid":"k","k":"` + secret + `"}`), "not a JWK Set"},
		"keys no array":           {[]byte(`{"keys":"` + secret + `"}`), "not a JWK Set"},
		"a kid for two keys":      {publicSet(t, ed, other), "two different keys"},
		"a kid for two kinds":     {jwks(t, ed.Public(), octKey(ed.KeyID)), "two different keys"},
		"only use enc":            {publicSet(t, encryption), "use is not sig"},
		"only keys without a kid": {publicSet(t, nameless), "no kid"},
		"only a malformed key":    {[]byte(`{"keys":[{"kty":"oct","kid":"k","k":7,"x":"` + secret + `"}]}`), "malformed"},
		"only a short oct":        {[]byte(`{"keys":[{"kty":"oct","kid":"k","k":"` + secret + `"}]}`), "at least 32 bytes"},
		"101 keys":                {jwks(t, many...), "more than 100 keys"},
		"keys twice":              {[]byte(`{"keys":[],"keys":[` + oneKey + `]}`), `"keys" is there twice`},
		"keys twice, escaped":     {[]byte(`{"k\u0065ys":[],"keys":[` + oneKey + `]}`), `"keys" is there twice`},
		"keys and Keys":           {[]byte(`{"keys":[` + oneKey + `],"Keys":[]}`), `"Keys" is there twice`},
		"keys and keys that fold": {[]byte(`{"\u212aey\u017f":[],"keys":[` + oneKey + `]}`), `"keys" is there twice`},
		"KEYS alone":              {[]byte(`{"KEYS":[` + oneKey + `]}`), "not a JWK Set"},
		"keys null":               {[]byte(`{"keys":null}`), "not a JWK Set"},
		"a set and more":          {[]byte(one + one), "not a JWK Set"},
		"a kid twice":             {within(`"kid":"` + secret[:4] + `"`), `key 0 of the JWK Set is ambiguous: the member "kid" is there twice`},
		"a kid and a Kid":         {within(`"Kid":"another"`), `"kid" is there twice`},
		"an x twice":              {within(`"x":"` + secret + `","X":"` + secret + `"`), "is there twice"},
		"use twice":               {within(`"use":"enc"`), "is there twice"},
		"key_ops twice":           {within(`"key_ops":["sign"],"key_ops":["verify"]`), "is there twice"},
		"only key_ops sign":       {within(`"key_ops":["sign"]`), "does not have verify"},
		"only key_ops of nothing": {within(`"key_ops":[]`), "does not have verify"},
		"only Verify":             {within(`"key_ops":["Verify"]`), "does not have verify"},
		"verify twice":            {within(`"key_ops":["verify","verify"]`), "names an operation twice"},
		"key_ops a string":        {within(`"key_ops":"verify"`), "not an array of strings"},
		"key_ops null":            {within(`"key_ops":null`), "not an array of strings"},
		"key_ops of numbers":      {within(`"key_ops":["verify",1]`), "not an array of strings"},
		"over 1 MiB":              {append(publicSet(t, ed), bytes.Repeat([]byte(" "), 1<<20)...), "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "jwks.json")
			write(t, path, test.data)
			_, err := ticket.OpenKeys(ticket.KeysConfig{Location: path})
			if err == nil || !strings.Contains(err.Error(), test.reason) {
				t.Fatalf("err = %v, want %q", err, test.reason)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error shows the file: %v", err)
			}
		})
	}
	for _, location := range []string{
		"", dir, filepath.Join(dir, "missing.json"), "http://platform.example/jwks", "http://127.0.0.1.example/jwks",
		"ftp://platform.example/jwks", "file:///etc/jwks", "https://", "https://u:hunter2@host:port/", "http://10.0.0.1/jwks",
	} {
		_, err := ticket.OpenKeys(ticket.KeysConfig{Location: location})
		if err == nil {
			t.Errorf("%q opens", location)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func TestFileKeepsWhatIsUsable(t *testing.T) {
	ed, es, served := newKey(t, "EdDSA"), newKey(t, "ES256"), newKey(t, "RS256")
	forEncryption, forVerifying := newKey(t, "EdDSA"), newKey(t, "EdDSA")
	disagreeing := newKey(t, "EdDSA")
	disagreeing.Algorithm = "RS256"
	sameKidOtherUse := newKey(t, "RS256")
	sameKidOtherUse.KeyID, sameKidOtherUse.Use = ed.KeyID, "enc"
	set := jwks(t, sameKidOtherUse.Public(), ed.Public(), ed.Public(), es.Public(), served, disagreeing.Public(), octKey("oct"))
	withOps := func(key jose.JSONWebKey, ops string) string {
		one := string(publicSet(t, key))
		return strings.Replace(one[len(`{"keys":[`):len(one)-len(`]}`)], "{", `{"key_ops":`+ops+`,`, 1) + ","
	}
	set = bytes.Replace(set, []byte(`{"keys":[`), []byte(`{"keys":[`+withOps(forEncryption, `["deriveKey"]`)+withOps(forVerifying, `["sign","verify"]`)), 1)
	set = bytes.Replace(set, []byte(`{"keys":[`), []byte(`{"keys":[{"kty":"new","kid":"n"},{"kty":"EC","kid":"e","crv":"P-256"},7,`), 1)

	var log logs
	path := filepath.Join(t.TempDir(), "jwks.json")
	write(t, path, set)
	keys, err := ticket.OpenKeys(ticket.KeysConfig{Location: path, Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	has(t, keys, forEncryption, false)
	for _, key := range []jose.JSONWebKey{ed, es, served, forVerifying} {
		has(t, keys, key, true) // public even where the set has the private part
	}
	if oct, err := keys.Key(t.Context(), "oct"); err != nil || !bytes.Equal(oct.Key.([]byte), octKey("").Key.([]byte)) {
		t.Errorf("oct key of a file: %v", err)
	}
	if _, err := keys.Key(t.Context(), disagreeing.KeyID); err == nil || !strings.Contains(err.Error(), "alg is not") {
		t.Errorf("err = %v, want it to say that the key's alg disagrees", err)
	}
	for _, note := range []string{"private part", "use is not sig", "malformed", "alg is not", "key_ops does not have verify"} {
		if !strings.Contains(log.String(), note) {
			t.Errorf("the log does not tell %q:\n%s", note, log.String())
		}
	}
	if private, _ := served.MarshalJSON(); strings.Contains(log.String(), field(t, private, "d")) {
		t.Error("the log shows a private key")
	}
}

func field(t *testing.T, jwk []byte, name string) string {
	t.Helper()
	var fields map[string]string
	if err := json.Unmarshal(jwk, &fields); err != nil || fields[name] == "" {
		t.Fatalf("JWK has no %s (%v)", name, err)
	}
	return fields[name]
}

// platform serves a JWK Set over TLS and counts how often it is asked.
type platform struct {
	*httptest.Server
	fetches atomic.Int64
	answer  atomic.Pointer[http.HandlerFunc]
}

func newPlatform(t *testing.T, answer http.HandlerFunc) *platform {
	p := &platform{}
	p.set(answer)
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.fetches.Add(1)
		(*p.answer.Load())(w, r)
	}))
	p.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	t.Cleanup(p.Close)
	return p
}

func (p *platform) set(answer http.HandlerFunc) { p.answer.Store(&answer) }

func body(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) }
}

func (p *platform) open(t *testing.T, clock *clock, log *logs) *ticket.Keys {
	t.Helper()
	keys, err := ticket.OpenKeys(ticket.KeysConfig{
		Location: p.URL + "/jwks?token=hunter2", Client: p.Client(), Now: clock.now, Logger: log.logger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestURLRotation(t *testing.T) {
	older, newer := newKey(t, "EdDSA"), newKey(t, "RS256")
	p := newPlatform(t, body(publicSet(t, older)))
	var (
		clock clock
		log   logs
	)
	keys := p.open(t, &clock, &log)
	has(t, keys, older, true) // fetched at the first use
	has(t, keys, older, true)
	if n := p.fetches.Load(); n != 1 {
		t.Fatalf("%d fetches, want 1", n)
	}
	p.set(body(publicSet(t, older, newer)))
	verifier := ticket.NewVerifier(ticket.VerifierConfig{Keys: keys, Now: clock.now})
	for _, key := range []jose.JSONWebKey{newer, older} {
		if _, err := verifier.Verify(t.Context(), mint(t, key, goodClaims())); err != nil {
			t.Errorf("%s: %v", key.Algorithm, err)
		}
	}

	// A platform that fails, or serves rubbish, takes nothing away.
	clock.advance(time.Minute)
	for _, bad := range []http.HandlerFunc{
		body([]byte("<html>")),
		body(bytes.Repeat([]byte(" "), 2<<20)),
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		},
		func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/again", http.StatusFound) },
		func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		clock.advance(10 * time.Second)
		p.set(bad)
		before := p.fetches.Load()
		if _, err := keys.Key(t.Context(), "unknown"); err == nil || !strings.Contains(err.Error(), "out of date") {
			t.Errorf("err = %v, want it to say that the set may be out of date", err)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows the URL's query: %v", err)
		}
		if p.fetches.Load() == before {
			t.Error("not fetched")
		}
		has(t, keys, older, true)
		has(t, keys, newer, true)
	}
	if strings.Contains(log.String(), "hunter2") {
		t.Errorf("the log shows the URL's query:\n%s", log.String())
	}
}

// A key set that moved is fetched from there, by a request that does not say where it was.
func TestURLRedirectTellsNoSecret(t *testing.T) {
	key := newKey(t, "EdDSA")
	var (
		clock   clock
		log     logs
		referer []string
	)
	moved := newPlatform(t, func(w http.ResponseWriter, r *http.Request) {
		referer = r.Header["Referer"]
		body(publicSet(t, key))(w, r)
	})
	p := newPlatform(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, moved.URL, http.StatusFound) })
	has(t, p.open(t, &clock, &log), key, true)
	if referer != nil {
		t.Errorf("it says %q", referer)
	}
}

func TestURLFlood(t *testing.T) {
	key := newKey(t, "EdDSA")
	p := newPlatform(t, body(publicSet(t, key)))
	var (
		clock clock
		log   logs
		group sync.WaitGroup
	)
	keys := p.open(t, &clock, &log)
	verifier := ticket.NewVerifier(ticket.VerifierConfig{Keys: keys, Now: clock.now})
	flood := func(n int) {
		for i := range n {
			group.Go(func() {
				raw := sign(goodHeader("EdDSA", fmt.Sprint("unknown-", i)).text(), goodPayload().text(), noSignature)
				if _, err := verifier.Verify(t.Context(), raw); !errors.Is(err, ticket.ErrInvalid) {
					t.Errorf("err = %v", err)
				}
			})
		}
		group.Wait()
	}
	flood(500)
	if n := p.fetches.Load(); n > 2 {
		t.Errorf("%d fetches for 500 unknown kids at once, want 2 at most", n)
	}
	has(t, keys, key, true)
	before := p.fetches.Load()
	for range 6 { // a minute of it
		clock.advance(10 * time.Second)
		flood(50)
	}
	if n := p.fetches.Load() - before; n > 7 {
		t.Errorf("%d fetches in a minute of unknown kids, want one in ten seconds", n)
	}
}

// Many people arrive with the new key at once: all get in, by one fetch.
func TestURLRotationUnderLoad(t *testing.T) {
	key := newKey(t, "EdDSA")
	release := make(chan struct{})
	p := newPlatform(t, nil)
	p.set(func(w http.ResponseWriter, r *http.Request) {
		<-release
		body(publicSet(t, key))(w, r)
	})
	var (
		clock clock
		log   logs
		group sync.WaitGroup
	)
	keys := p.open(t, &clock, &log)
	for range 100 {
		group.Go(func() {
			if _, err := keys.Key(t.Context(), key.KeyID); err != nil {
				t.Error(err)
			}
		})
	}
	// One who gives up leaves at once, and takes nobody along.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := keys.Key(gone, key.KeyID); err == nil {
		t.Error("found before it was served")
	}
	close(release)
	group.Wait()
	if n := p.fetches.Load(); n > 2 {
		t.Errorf("%d fetches, want 2 at most", n)
	}
}

func TestURLRefusesSecrets(t *testing.T) {
	ed := newKey(t, "EdDSA")
	p := newPlatform(t, body(jwks(t, ed.Public(), octKey("oct"))))
	var (
		clock clock
		log   logs
	)
	verifier := ticket.NewVerifier(ticket.VerifierConfig{Keys: p.open(t, &clock, &log), Now: clock.now})
	raw := mint(t, octKey("oct"), goodClaims())
	claims, err := verifier.Verify(t.Context(), raw)
	checkRefusal(t, raw, claims, err, ticket.ErrInvalid, "only in a local file")
}

// roundTrip plays the network where a test needs its own clock.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := newKey(t, "EdDSA")
		set := publicSet(t, key)
		var (
			fetches atomic.Int64
			log     logs
		)
		keys, err := ticket.OpenKeys(ticket.KeysConfig{
			Location: "https://platform.example/jwks",
			Logger:   log.logger(),
			Client: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				switch fetches.Add(1) {
				case 1:
					return nil, errors.New("network is down")
				case 4: // hangs
					<-r.Context().Done()
					return nil, r.Context().Err()
				}
				return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(set)), Request: r}, nil
			})},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- keys.Run(ctx) }()

		elapse := func(d time.Duration, want int64) {
			t.Helper()
			time.Sleep(d) // of the bubble's clock
			synctest.Wait()
			if n := fetches.Load(); n != want {
				t.Fatalf("%d fetches, want %d", n, want)
			}
		}
		elapse(0, 1)              // at once
		elapse(10*time.Second, 2) // again soon after a failure
		elapse(5*time.Minute-time.Second, 2)
		elapse(time.Second, 3)
		has(t, keys, key, true)
		elapse(5*time.Minute, 4)                // this one hangs
		elapse(5*time.Second+10*time.Second, 5) // is given up, and tried again
		has(t, keys, key, true)
		if !strings.Contains(log.String(), "network is down") {
			t.Errorf("the log does not tell the failure:\n%s", log.String())
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestRunOfAFileEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := ticket.StaticKeys().Run(ctx); err != nil {
		t.Error(err)
	}
}
