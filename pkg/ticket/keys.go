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
// loaded yet, or the set is empty. The wrapped text says why, for the operator's
// log. A ticket that meets it may be good.
var ErrNoKeys = errors.New("no ticket key is loaded")

// KeysConfig says where the JWK Set is.
type KeysConfig struct {
	Location string           // a path, or an https URL (http for a loopback host)
	Client   *http.Client     // for a URL; nil: a plain one
	Now      func() time.Time // nil: time.Now
	Logger   *slog.Logger     // nil: silent
}

// Keys is a set of verification keys that follows its origin: a file or a URL,
// or neither. Old and new keys live side by side by kid, so a rotation cuts
// nobody; a set that cannot be read leaves the last good one in place, and Age
// tells since when.
type Keys struct {
	origin origin
}

// origin is where a set comes from.
type origin interface {
	// keys returns the set to answer from. missed says that the set of the
	// call before lacks what is asked for: look again, as far as limits
	// allow. The set is good even with an error, which tells why it may be old.
	keys(ctx context.Context, missed bool) (keySet, error)
	// read reads the set now, where keys does not do so by itself.
	read(ctx context.Context)
	// run keeps the set fresh until ctx ends.
	run(ctx context.Context)
	// age is how long ago the set was last the origin's own, or the origin was
	// opened if no set was loaded yet.
	age() time.Duration
}

// OpenKeys opens a JWK Set. A file must be there and hold a set, if an empty one.
// A URL need not answer yet: Run, Load, or the first lookup, fetches it.
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
		// The text is not shown: it may hold a password.
		return nil, fmt.Errorf("opening ticket keys: want a path or an https URL (http for a loopback host)")
	}
	return &Keys{origin: newRemote(config, location)}, nil
}

// StaticKeys serves keys from memory: for a process that makes its own. Private
// keys are cut to their public part. A key that cannot be used, or has no kid,
// is never matched; of two with one kid the first counts.
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

// Key returns the key for a kid: a public key, or a symmetric one. Its error is an
// ErrNoKeys if there is no key at all.
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

// Ready returns nil while there is a key, and else an ErrNoKeys that says why there
// is none. It does not wait for a URL.
func (k *Keys) Ready() error {
	set, stale := k.origin.keys(context.Background(), false)
	return set.check(stale)
}

// Load reads the set now, and returns what Ready does then. A set from a URL is
// fetched, which takes 5 seconds at most.
func (k *Keys) Load(ctx context.Context) error {
	k.origin.read(ctx)
	return k.Ready()
}

// IDs returns the kids of the keys that tickets may be signed with, in order.
func (k *Keys) IDs() []string {
	set, _ := k.origin.keys(context.Background(), false)
	return set.ids()
}

// Age is how long ago the set was last known to be that of its file or URL: less
// than a second for a file that can be read, 5 minutes at most for a URL that
// answers. Until a set was loaded it is the time since OpenKeys. It is 0 for a static set.
func (k *Keys) Age() time.Duration { return k.origin.age() }

// Run keeps a set from a URL fresh, and blocks until ctx ends. The caller owns
// the goroutine. A file or a static set needs no work, and blocks all the same.
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

// sameFault is how long other words for a fault are no news: those of a broken
// connection have its port, which is another at each try.
const sameFault = time.Minute

// complaints logs what becomes of a set: each change of its keys, and a lasting
// fault once, not at every try.
type complaints struct {
	logger   *slog.Logger
	location string
	now      func() time.Time
	fault    string // the last one logged; empty: none since the set was last read
	at       time.Time

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
