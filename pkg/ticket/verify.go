package ticket

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	jose "github.com/go-jose/go-jose/v4"
	// The library's decoder, because encoding/json takes "Sub" for "sub", and the
	// last of two equal names.
	"github.com/go-jose/go-jose/v4/json"
)

// KeySource returns the verification key that has a kid. *Keys is a KeySource.
type KeySource interface {
	Key(ctx context.Context, kid string) (jose.JSONWebKey, error)
}

// VerifierConfig has the keys and claims of the tickets that a Verifier accepts.
type VerifierConfig struct {
	Keys     KeySource        // required
	Issuer   string           // required iss; empty: any
	Audience string           // required in aud; empty: DefaultAudience
	MaxTTL   time.Duration    // longest exp - iat; 0: DefaultMaxTTL
	Now      func() time.Time // nil: time.Now
}

// Verifier checks tickets. It has no state: the store takes care that a ticket is used
// only once.
type Verifier struct {
	config VerifierConfig
}

// NewVerifier returns a Verifier, with the defaults for zero fields.
func NewVerifier(config VerifierConfig) *Verifier {
	if config.Audience == "" {
		config.Audience = DefaultAudience
	}
	if config.MaxTTL == 0 {
		config.MaxTTL = DefaultMaxTTL
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Verifier{config: config}
}

// Verify returns the claims of a ticket whose signature and claims are valid. Every
// error is an ErrExpired (only the time is wrong), an ErrNoKeys (there is no key at all
// to verify a ticket with), or an ErrInvalid (all other errors, also an unknown key
// while the set may be out of date).
func (v *Verifier) Verify(ctx context.Context, raw string) (Claims, error) {
	payload, err := v.open(ctx, raw)
	if errors.Is(err, ErrNoKeys) {
		return Claims{}, err
	}
	if err != nil {
		return Claims{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	claims, err := parseClaims(payload)
	if err != nil {
		return Claims{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	now := v.config.Now()
	if err := v.accept(claims, now); err != nil {
		return Claims{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	// The last check, so that ErrExpired means a ticket that was good.
	if now.After(claims.Expires.Add(Leeway)) {
		return Claims{}, fmt.Errorf("%w %s ago", ErrExpired, now.Sub(claims.Expires).Round(time.Second))
	}
	return claims, nil
}

// open checks form, header and signature, and returns the signed payload. The library's
// errors quote the ticket, so no error wraps them.
func (v *Verifier) open(ctx context.Context, raw string) ([]byte, error) {
	encodedHeader, err := compactHeader(raw)
	if err != nil {
		return nil, err
	}
	header, err := parseHeader(encodedHeader)
	if err != nil {
		return nil, err
	}
	key, err := v.config.Keys.Key(ctx, header.keyID)
	if err != nil {
		return nil, err
	}
	pinned, err := algorithm(key)
	if err != nil {
		return nil, fmt.Errorf("the key %s cannot be used: %w", brief(header.keyID), err)
	}
	if header.algorithm != pinned {
		return nil, fmt.Errorf("the header says %s, the key %s is for %s", header.algorithm, brief(header.keyID), pinned)
	}
	signed, err := jose.ParseSignedCompact(raw, []jose.SignatureAlgorithm{pinned})
	if err != nil {
		return nil, errors.New("it is malformed")
	}
	payload, err := signed.Verify(key.Key)
	if err != nil {
		return nil, fmt.Errorf("the signature is not one of the key %s", brief(header.keyID))
	}
	return payload, nil
}

// compactHeader decodes the header, the first of a compact JWS's three parts (RFC 7515,
// section 7.1). All three parts must be in the one encoding that a signer writes, so
// that a ticket has one spelling: the library's decoder would skip ends of lines and
// stray bits.
func compactHeader(raw string) ([]byte, error) {
	if len(raw) > maxTicketBytes {
		return nil, fmt.Errorf("it is longer than %d bytes", maxTicketBytes)
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 || strings.ContainsAny(raw, "\r\n") {
		return nil, errors.New("it is not a compact JWS")
	}
	var header []byte
	for i, part := range parts {
		decoded, err := base64.RawURLEncoding.Strict().DecodeString(part)
		if err != nil || len(decoded) == 0 {
			return nil, errors.New("it is not a compact JWS")
		}
		if i == 0 {
			header = decoded
		}
	}
	return header, nil
}

type header struct {
	algorithm jose.SignatureAlgorithm
	keyID     string
}

// refusedParameters are header parameters that would bring a key along, change the
// signed bytes, or require an extension. Tickets need none of them.
var refusedParameters = []string{"jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "enc"}

func parseHeader(data []byte) (header, error) {
	if !utf8.Valid(data) {
		return header{}, errors.New("the header is not UTF-8")
	}
	parameters, err := members(data)
	if err != nil {
		return header{}, fmt.Errorf("the header is ambiguous or no object: %w", err)
	}
	for _, name := range refusedParameters {
		if _, ok := parameters[name]; ok {
			return header{}, fmt.Errorf("the header has a %q", name)
		}
	}
	text := func(name string) string {
		var s string
		if err := json.Unmarshal(parameters[name], &s); err != nil {
			return ""
		}
		return s
	}
	if text("typ") != Type {
		return header{}, fmt.Errorf("typ is not %q", Type)
	}
	h := header{algorithm: jose.SignatureAlgorithm(text("alg")), keyID: text("kid")}
	switch h.algorithm {
	case jose.EdDSA, jose.ES256, jose.RS256, jose.HS256:
	default:
		return header{}, fmt.Errorf("alg %s is not supported", brief(string(h.algorithm)))
	}
	if h.keyID == "" {
		return header{}, errors.New("kid is missing")
	}
	return h, nil
}

// parseClaims decodes a payload whose signature is valid. A name that differs from a
// claim's only in case is refused: two parsers could read different claims, and the
// platform and the gateway must read the same.
func parseClaims(payload []byte) (Claims, error) {
	if !utf8.Valid(payload) {
		return Claims{}, errors.New("the payload is not UTF-8")
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(payload, &members); err != nil {
		return Claims{}, errors.New("the payload is not a JSON object of distinct names")
	}
	for name := range members {
		for _, claim := range claimNames {
			if name != claim && strings.EqualFold(name, claim) {
				return Claims{}, fmt.Errorf("a claim looks like %s and is not", claim)
			}
		}
	}
	var wire wireClaims
	if err := json.Unmarshal(payload, &wire); err != nil {
		return Claims{}, errors.New("a claim is of the wrong type")
	}
	return wire.claims()
}

// accept applies the rules of this gateway and of the time now, except that the ticket
// must not have expired.
func (v *Verifier) accept(c Claims, now time.Time) error {
	if err := c.check(); err != nil {
		return err
	}
	switch {
	case v.config.Issuer != "" && c.Issuer != v.config.Issuer:
		return fmt.Errorf("iss is not %q", v.config.Issuer)
	case !slices.Contains(c.Audience, v.config.Audience):
		return fmt.Errorf("aud does not name %q", v.config.Audience)
	case c.Expires.Sub(c.IssuedAt) > v.config.MaxTTL:
		return fmt.Errorf("it lives longer than %s", v.config.MaxTTL)
	case c.IssuedAt.After(now.Add(Leeway)):
		return errors.New("iat is in the future")
	case c.NotBefore.After(now.Add(Leeway)):
		return errors.New("nbf is in the future")
	}
	return nil
}
