package ticket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// ErrNoKeys is the error while there is no key to verify a ticket with: no set was
// loaded yet, or the set is empty. The wrapped text has the reason, for the
// operator's log. The ticket may be good.
var ErrNoKeys = errors.New("no ticket key is loaded")

// KeysConfig has the location of a JWK Set.
type KeysConfig struct {
	Location string           // a path, or an https URL (http for a loopback host)
	Client   *http.Client     // for a URL; nil: &http.Client{}
	Now      func() time.Time // nil: time.Now
	Logger   *slog.Logger     // nil: nothing is logged
}

// Keys is a set of verification keys that follows its origin: a file, a URL, or
// memory. The set may hold old and new keys, each with its kid, so that tickets stay
// valid in a rotation. While the origin has no good set the last good set is used, and
// Age says for how long.
type Keys struct {
	origin origin
}

// origin is the source of a set.
type origin interface {
	// keys returns the set. missed means that the set of the last call lacks the
	// wanted key: keys then reads the origin again, as far as its limits allow. The
	// set can be used even with an error, which says why the set may be old.
	keys(ctx context.Context, missed bool) (keySet, error)
	// read reads the set from the origin now.
	read(ctx context.Context)
	// run keeps the set fresh until ctx ends.
	run(ctx context.Context)
	// age returns the time since the set was last known to be the origin's, or since
	// the origin was opened if no set was loaded yet.
	age() time.Duration
}

// OpenKeys opens a JWK Set. A file must exist and hold a set, which may be empty. A URL
// is not fetched yet: Run, Load and the first lookup do so.
func OpenKeys(config KeysConfig) (*Keys, error) {
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if config.Client == nil {
		config.Client = &http.Client{}
	}
	if !strings.Contains(config.Location, "://") {
		file, err := openFile(config)
		if err != nil {
			return nil, fmt.Errorf("opening ticket keys: %w", err)
		}
		return &Keys{origin: file}, nil
	}
	location, err := url.Parse(config.Location)
	if err != nil || !trustedURL(location) {
		// The location is not shown: it may hold a password.
		return nil, fmt.Errorf("opening ticket keys: want a path or an https URL (http for a loopback host)")
	}
	return &Keys{origin: newRemote(config, location)}, nil
}

// StaticKeys returns a set in memory, for a process that makes its own keys. Of a
// private key only the public part is kept. Key returns no key that cannot be used, or
// has no kid; of two keys with the same kid the first counts.
func StaticKeys(keys ...jose.JSONWebKey) *Keys {
	set := make(keySet, len(keys))
	for _, key := range keys {
		one, _, err := newKeySet([]readKey{{JSONWebKey: key}}, true)
		if _, taken := set[key.KeyID]; err != nil || taken {
			continue
		}
		for kid, entry := range one {
			set[kid] = entry
		}
	}
	return &Keys{origin: static(set)}
}

// Key returns the key that has the kid: a public key, or a symmetric key. The error is
// an ErrNoKeys if the set has no key at all.
func (k *Keys) Key(ctx context.Context, kid string) (jose.JSONWebKey, error) {
	set, _ := k.origin.keys(ctx, false)
	if key, err := set.key(kid); err == nil {
		return key, nil
	}
	set, stale := k.origin.keys(ctx, true)
	key, err := set.key(kid)
	_, refused := set[kid]
	if none := set.check(stale); none != nil && !refused {
		return jose.JSONWebKey{}, none
	}
	if err != nil && stale != nil {
		return jose.JSONWebKey{}, fmt.Errorf("%w (the key set may be out of date: %w)", err, stale)
	}
	return key, err
}

// Ready returns nil while there is a key, and else an ErrNoKeys with the reason. Ready
// does not wait for a URL.
func (k *Keys) Ready() error {
	set, stale := k.origin.keys(context.Background(), false)
	return set.check(stale)
}

// Load reads the file or fetches the URL now, and then returns the result of Ready. A
// fetch takes 5 seconds at most.
func (k *Keys) Load(ctx context.Context) error {
	k.origin.read(ctx)
	return k.Ready()
}

// IDs returns the kids of the keys with which tickets may be signed, sorted.
func (k *Keys) IDs() []string {
	set, _ := k.origin.keys(context.Background(), false)
	return set.ids()
}

// Age returns the time since the set was last known to be that of its file or URL: less
// than a second for a file that can be read, 5 minutes at most for a URL that answers.
// Before the first set was loaded Age is the time since OpenKeys. For a static set it is 0.
func (k *Keys) Age() time.Duration { return k.origin.age() }

// Run keeps a set from a URL fresh until ctx ends, in the caller's goroutine. For a
// file or a static set Run does nothing until ctx ends. The error is always nil.
func (k *Keys) Run(ctx context.Context) error {
	k.origin.run(ctx)
	return nil
}

// static is a set that never changes.
type static keySet

func (s static) keys(context.Context, bool) (keySet, error) { return keySet(s), nil }

func (s static) read(context.Context)    {}
func (s static) run(ctx context.Context) { <-ctx.Done() }
func (s static) age() time.Duration      { return 0 }

// sameFault is how long another error is not logged after a fault: the error of a broken
// connection has the local port, which differs at each try.
const sameFault = time.Minute

// complaints logs each change of a set's keys, and a lasting fault once, not at every
// try.
type complaints struct {
	logger   *slog.Logger
	location string
	now      func() time.Time
	fault    string    // the fault that was last logged; empty: none since the set was last read
	at       time.Time // when fault was logged

	loadedOnce bool
	ids, notes []string // of the set that was logged last
}

func (c *complaints) failed(err error) {
	now := c.now()
	if c.fault == err.Error() || c.fault != "" && now.Sub(c.at) < sameFault {
		return
	}
	c.fault, c.at = err.Error(), now
	message := "ticket keys not refreshed, the last good ones stay"
	if !c.loadedOnce {
		message = "no ticket keys yet"
	}
	c.logger.Warn(message, "location", c.location, "err", err)
}

func (c *complaints) loaded(set keySet, notes []string) {
	c.fault = ""
	ids := set.ids()
	if c.loadedOnce && slices.Equal(ids, c.ids) && slices.Equal(notes, c.notes) {
		return
	}
	c.loadedOnce, c.ids, c.notes = true, ids, notes
	for _, note := range notes {
		c.logger.Warn("ticket key set has a fault", "location", c.location, "fault", note)
	}
	if len(ids) == 0 {
		c.logger.Warn("ticket key set is empty: every ticket will be refused", "location", c.location)
		return
	}
	c.logger.Info("ticket keys loaded", "location", c.location, "kids", ids)
}
