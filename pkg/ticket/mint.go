package ticket

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// GenerateKey returns a new private signing key for EdDSA (also when alg is empty),
// ES256 or RS256. The kid is the key's RFC 7638 thumbprint. The result of Public belongs
// in the gateway's JWK Set.
func GenerateKey(alg string) (jose.JSONWebKey, error) {
	var (
		private crypto.PrivateKey
		err     error
	)
	switch jose.SignatureAlgorithm(alg) {
	case jose.EdDSA, "":
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case jose.ES256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.RS256:
		private, err = rsa.GenerateKey(rand.Reader, minRSABits)
	default:
		return jose.JSONWebKey{}, fmt.Errorf("generating a ticket key: alg %s is not EdDSA, ES256 or RS256", brief(alg))
	}
	if err != nil {
		return jose.JSONWebKey{}, fmt.Errorf("generating a ticket key: %w", err)
	}
	key := jose.JSONWebKey{Key: private, Use: "sig"}
	pinned, err := algorithm(key)
	if err != nil {
		return jose.JSONWebKey{}, fmt.Errorf("generating a ticket key: %w", err)
	}
	thumbprint, err := key.Thumbprint(crypto.SHA256)
	if err != nil {
		return jose.JSONWebKey{}, fmt.Errorf("generating a ticket key: %w", err)
	}
	key.Algorithm = string(pinned)
	key.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	return key, nil
}

// Minter signs tickets with one key. It is safe for concurrent use.
type Minter struct {
	signer jose.Signer
}

// NewMinter returns the Minter of a private or symmetric key with a kid. Errors show no
// part of the key except its kid.
func NewMinter(key jose.JSONWebKey) (*Minter, error) {
	if key.KeyID == "" {
		return nil, errors.New("ticket key has no kid")
	}
	pinned, err := algorithm(key)
	if err != nil {
		return nil, fmt.Errorf("ticket key %s cannot be used: %w", brief(key.KeyID), err)
	}
	if key.IsPublic() {
		return nil, fmt.Errorf("ticket key %s has no private part", brief(key.KeyID))
	}
	// The kid is set here, because the library leaves the kid of an oct key out.
	options := new(jose.SignerOptions).WithType(Type).WithHeader("kid", key.KeyID)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: pinned, Key: key.Key}, options)
	if err != nil {
		return nil, fmt.Errorf("ticket key %s cannot sign", brief(key.KeyID))
	}
	return &Minter{signer: signer}, nil
}

// Mint returns a signed ticket. Zero claims get their defaults: ID 128 random bits,
// IssuedAt the present, NotBefore = IssuedAt, Expires = IssuedAt + DefaultMaxTTL,
// Audience DefaultAudience, Mode ReadWrite. Times are cut to the second. Claims that
// every Verifier refuses are an error; the ticket's life is not checked, since its limit
// is each gateway's own setting.
func (m *Minter) Mint(c Claims) (string, error) {
	if c.ID == "" {
		var id [16]byte
		_, _ = rand.Read(id[:]) // never fails since Go 1.24
		c.ID = base64.RawURLEncoding.EncodeToString(id[:])
	}
	if c.IssuedAt.IsZero() {
		c.IssuedAt = time.Now()
	}
	if c.NotBefore.IsZero() {
		c.NotBefore = c.IssuedAt
	}
	if c.Expires.IsZero() {
		c.Expires = c.IssuedAt.Add(DefaultMaxTTL)
	}
	if len(c.Audience) == 0 {
		c.Audience = []string{DefaultAudience}
	}
	if c.Mode == "" {
		c.Mode = ReadWrite
	}
	c.IssuedAt = c.IssuedAt.Truncate(time.Second)
	c.NotBefore = c.NotBefore.Truncate(time.Second)
	c.Expires = c.Expires.Truncate(time.Second)
	if err := c.check(); err != nil {
		return "", fmt.Errorf("minting a ticket: %w", err)
	}

	payload, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("minting a ticket: %w", err)
	}
	// A payload that Verify's parser would refuse is not signed.
	if _, err := parseClaims(payload); err != nil {
		return "", fmt.Errorf("minting a ticket: %w", err)
	}
	signed, err := m.signer.Sign(payload)
	if err != nil {
		return "", errors.New("minting a ticket: the key cannot sign")
	}
	raw, err := signed.CompactSerialize()
	if err != nil {
		return "", errors.New("minting a ticket: the signature cannot be written")
	}
	if len(raw) > maxTicketBytes {
		return "", fmt.Errorf("minting a ticket: it would be longer than %d bytes", maxTicketBytes)
	}
	return raw, nil
}
