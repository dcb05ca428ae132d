package ticket

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	jose "github.com/go-jose/go-jose/v4"
)

const (
	maxSetBytes = 1 << 20
	maxSetKeys  = 100

	minRSABits  = 2048 // RFC 7518, section 3.3
	minOctBytes = 32   // RFC 7518, section 3.2: as long as the hash, or longer
)

// algorithm returns the one algorithm that a key may be used with. The key alone
// decides, not a ticket's header (RFC 8725, section 3.1): so an RSA or EC key is never
// taken for the secret of an HMAC.
func algorithm(key jose.JSONWebKey) (jose.SignatureAlgorithm, error) {
	var pinned jose.SignatureAlgorithm
	switch material := key.Key.(type) {
	case []byte:
		if len(material) < minOctBytes {
			return "", fmt.Errorf("an oct key needs at least %d bytes", minOctBytes)
		}
		pinned = jose.HS256
	default:
		if !key.Valid() {
			return "", errors.New("not a key of a supported type")
		}
		switch material := material.(type) {
		case ed25519.PublicKey, ed25519.PrivateKey:
			pinned = jose.EdDSA
		case *ecdsa.PublicKey:
			pinned = ecAlgorithm(material)
		case *ecdsa.PrivateKey:
			pinned = ecAlgorithm(&material.PublicKey)
		case *rsa.PublicKey:
			pinned = rsaAlgorithm(material)
		case *rsa.PrivateKey:
			pinned = rsaAlgorithm(&material.PublicKey)
		}
	}
	switch {
	case pinned == "":
		return "", fmt.Errorf("only Ed25519, P-256, RSA of %d bits or more, and oct keys are supported", minRSABits)
	case key.Algorithm != "" && key.Algorithm != string(pinned):
		return "", fmt.Errorf("its alg is not the %s of its type", pinned)
	case key.Use != "" && key.Use != "sig":
		return "", errors.New("its use is not sig")
	}
	return pinned, nil
}

func ecAlgorithm(key *ecdsa.PublicKey) jose.SignatureAlgorithm {
	if key.Curve != elliptic.P256() {
		return ""
	}
	return jose.ES256
}

func rsaAlgorithm(key *rsa.PublicKey) jose.SignatureAlgorithm {
	if key.N.BitLen() < minRSABits {
		return ""
	}
	return jose.RS256
}

// isSymmetric reports whether a key is a secret shared with the platform.
func isSymmetric(key jose.JSONWebKey) bool {
	_, ok := key.Key.([]byte)
	return ok
}

// verificationPart returns the key without the part that only a signer needs.
func verificationPart(key jose.JSONWebKey) jose.JSONWebKey {
	if isSymmetric(key) || key.IsPublic() {
		return key
	}
	return key.Public()
}

// equalKeys reports whether two usable verification keys are the same key.
func equalKeys(a, b jose.JSONWebKey) bool {
	if secret, ok := a.Key.([]byte); ok {
		other, ok := b.Key.([]byte)
		return ok && subtle.ConstantTimeCompare(secret, other) == 1
	}
	public, ok := a.Key.(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(b.Key)
}

// keySet holds a JWK Set's keys by kid. A key that may not be used has an entry with the
// reason, so that the operator reads the reason and not "no key has the kid".
type keySet map[string]keyEntry

type keyEntry struct {
	key      jose.JSONWebKey // public, or symmetric
	unusable error
}

func (s keySet) key(kid string) (jose.JSONWebKey, error) {
	entry, ok := s[kid]
	switch {
	case !ok:
		return jose.JSONWebKey{}, fmt.Errorf("no key has the kid %s", brief(kid))
	case entry.unusable != nil:
		return jose.JSONWebKey{}, fmt.Errorf("the key %s cannot be used: %w", brief(kid), entry.unusable)
	}
	return entry.key, nil
}

// ids returns the kids of the keys that may be used, sorted.
func (s keySet) ids() []string {
	ids := slices.Sorted(maps.Keys(s))
	return slices.DeleteFunc(ids, func(kid string) bool { return s[kid].unusable != nil })
}

// check returns an ErrNoKeys if no key may be used. stale is the reason why the set may be
// old; if there is one the ErrNoKeys wraps it.
func (s keySet) check(stale error) error {
	for _, entry := range s {
		if entry.unusable == nil {
			return nil
		}
	}
	if stale == nil {
		return fmt.Errorf("%w: the key set is empty", ErrNoKeys)
	}
	return fmt.Errorf("%w: %w", ErrNoKeys, stale)
}

// parseKeySet parses a JWK Set (RFC 7517, section 5). Keys that cannot be used are
// ignored, as the RFC asks, and listed in notes; a set that cannot be trusted as a whole
// is an error. Symmetric keys are secrets, so they count only if secretsAllowed: in a
// set that did not come over the network.
func parseKeySet(data []byte, secretsAllowed bool) (set keySet, notes []string, err error) {
	document, err := members(data)
	if err != nil && !errors.Is(err, errNotObject) {
		return nil, nil, fmt.Errorf("the JWK Set is ambiguous: %w", err)
	}
	var raws []json.RawMessage
	// The decoder's own errors may quote the document, which may hold secrets.
	if err != nil || json.Unmarshal(document["keys"], &raws) != nil || raws == nil {
		return nil, nil, errors.New(`not a JWK Set: want a JSON object with an array "keys"`)
	}
	if len(raws) > maxSetKeys {
		return nil, nil, fmt.Errorf("the JWK Set has more than %d keys", maxSetKeys)
	}

	keys := make([]readKey, 0, len(raws))
	for i, raw := range raws {
		var key readKey
		parameters, err := members(raw)
		if err != nil && !errors.Is(err, errNotObject) {
			return nil, nil, fmt.Errorf("key %d of the JWK Set is ambiguous: %w", i, err)
		}
		if err != nil || json.Unmarshal(raw, &key.JSONWebKey) != nil {
			notes = append(notes, fmt.Sprintf("key %d is malformed or of an unsupported type", i))
			continue
		}
		key.unusable = mayVerify(parameters["key_ops"])
		keys = append(keys, key)
	}
	set, more, err := newKeySet(keys, secretsAllowed)
	notes = append(notes, more...)
	if err != nil {
		return nil, notes, err
	}
	// An empty set is meant: no ticket is trusted. A set in which no key can be used
	// is a mistake.
	if set.check(nil) != nil && len(raws) > 0 {
		return nil, notes, fmt.Errorf("no key of the JWK Set can be used: %s", notes[0])
	}
	return set, notes, nil
}

// readKey is a key as it was read, and the reason why it may not be used, as far as the
// library does not check that.
type readKey struct {
	jose.JSONWebKey
	unusable error
}

// mayVerify returns an error unless a key's "key_ops" (RFC 7517, section 4.3) allow it to
// verify. nil is a key without key_ops, which may.
func mayVerify(keyOps json.RawMessage) error {
	if keyOps == nil {
		return nil
	}
	var operations []string
	if json.Unmarshal(keyOps, &operations) != nil || operations == nil {
		return errors.New("its key_ops is not an array of strings")
	}
	verify := false
	for i, operation := range operations {
		if slices.Contains(operations[:i], operation) {
			return errors.New("its key_ops names an operation twice")
		}
		verify = verify || operation == "verify"
	}
	if !verify {
		return errors.New("its key_ops does not have verify")
	}
	return nil
}

func newKeySet(keys []readKey, secretsAllowed bool) (set keySet, notes []string, err error) {
	set = make(keySet, len(keys))
	for i, read := range keys {
		key := read.JSONWebKey
		if key.KeyID == "" {
			notes = append(notes, fmt.Sprintf("key %d has no kid", i))
			continue
		}
		entry := keyEntry{}
		_, err := algorithm(key)
		switch {
		case err != nil:
			entry.unusable = err
		case read.unusable != nil:
			entry.unusable = read.unusable
		case isSymmetric(key) && !secretsAllowed:
			entry.unusable = errors.New("an oct key counts only in a local file")
		default:
			entry.key = verificationPart(key)
			if !isSymmetric(key) && !key.IsPublic() {
				notes = append(notes, fmt.Sprintf("key %s holds its private part: whoever reads the set can mint tickets", brief(key.KeyID)))
			}
		}

		before, seen := set[key.KeyID]
		switch {
		case seen && before.unusable == nil && entry.unusable == nil && !equalKeys(before.key, entry.key):
			return nil, notes, fmt.Errorf("two different keys have the kid %s", brief(key.KeyID))
		case seen && before.unusable == nil:
			// The usable key stays.
		default:
			set[key.KeyID] = entry
		}
		if entry.unusable != nil {
			notes = append(notes, fmt.Sprintf("key %s cannot be used: %v", brief(key.KeyID), entry.unusable))
		}
	}
	return set, notes, nil
}

// brief returns an untrusted string quoted, cut to 64 bytes, for a log line.
func brief(s string) string {
	const limit = 64
	if len(s) > limit {
		return fmt.Sprintf("%q…", s[:limit])
	}
	return fmt.Sprintf("%q", s)
}
