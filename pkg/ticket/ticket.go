// Package ticket mints and verifies the single-use JWTs that open a terminal.
//
// The package owns the claims, the checks on them, and the keys: where keys are
// read from, how they rotate, which algorithm each may be used with. It does not
// spend tickets (the store does), does not compare a ticket with a request's
// path (the router does), and knows nothing of HTTP handlers or close codes.
// The platform imports the package to mint with the claims type that the gateway
// verifies with.
package ticket

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	// Type is the "typ" header of every ticket: explicit typing keeps other
	// JWTs signed by the same platform from passing as tickets (RFC 8725,
	// section 3.11).
	Type = "termgw-ticket+jwt"

	// DefaultAudience is the "aud" that Mint writes and a Verifier requires.
	DefaultAudience = "termgw"

	// Leeway is how far the clocks of platform and gateway may disagree.
	Leeway = 5 * time.Second

	// DefaultMaxTTL is the longest exp - iat that a Verifier accepts by default.
	DefaultMaxTTL = 60 * time.Second
)

const (
	maxTicketBytes  = 8 << 10
	maxSessionLimit = 7 * 24 * time.Hour

	maxIssuerBytes    = 256
	maxSubjectBytes   = 256
	maxIDBytes        = 128
	maxWorkspaceBytes = 128

	// maxUnixTime is the last second of the year 9999. RFC 3339 and Postgres' text
	// form have no later date, and up to it no arithmetic on time.Time overflows.
	maxUnixTime = 253402300799
)

var (
	// ErrInvalid is the error of a ticket that is not valid at any time. The wrapped
	// text has the reason, for the operator's log, and never the ticket.
	ErrInvalid = errors.New("ticket is not valid")

	// ErrExpired is the error of a ticket that was valid until it expired.
	ErrExpired = errors.New("ticket has expired")
)

// Mode is whether a session may type.
type Mode string

// In a read-only session the client gets the output and may resize; input is dropped.
const (
	ReadWrite Mode = "rw"
	ReadOnly  Mode = "ro"
)

// Claims are the claims of a ticket.
type Claims struct {
	Issuer   string   // iss: the platform
	Audience []string // aud
	Subject  string   // sub: the person, at most 256 bytes
	ID       string   // jti: unique, at most 128 bytes

	// The times of the ticket, in whole seconds. They do not bound the session:
	// MaxSession does.
	IssuedAt, NotBefore, Expires time.Time

	WorkspaceID string
	Mode        Mode
	MaxSession  time.Duration // in whole seconds; 0: not given. Verify takes more than 7 days as 7 days
	// Resume is how long the shell waits for its person after the connection was lost, in whole
	// seconds; 0: it does not wait. Verify takes more than 7 days as 7 days.
	Resume time.Duration
}

// wireClaims are Claims as JSON (RFC 7519). A nil pointer is an absent claim, unlike a
// zero in the JSON.
type wireClaims struct {
	Issuer      string           `json:"iss,omitempty"`
	Audience    jwt.Audience     `json:"aud,omitempty"`
	Subject     string           `json:"sub,omitempty"`
	ID          string           `json:"jti,omitempty"`
	IssuedAt    *jwt.NumericDate `json:"iat,omitempty"`
	NotBefore   *jwt.NumericDate `json:"nbf,omitempty"`
	Expires     *jwt.NumericDate `json:"exp,omitempty"`
	WorkspaceID string           `json:"workspace_id,omitempty"`
	Mode        *Mode            `json:"mode,omitempty"`
	MaxSession  *int64           `json:"max_session,omitempty"`
	Resume      *int64           `json:"resume,omitempty"`
}

// claimNames are the JSON names of wireClaims.
var claimNames = []string{
	"iss", "aud", "sub", "jti", "iat", "nbf", "exp", "workspace_id", "mode", "max_session", "resume",
}

// MarshalJSON returns the claims as in a ticket's payload.
func (c Claims) MarshalJSON() ([]byte, error) {
	wire := wireClaims{
		Issuer:      c.Issuer,
		Audience:    c.Audience,
		Subject:     c.Subject,
		ID:          c.ID,
		IssuedAt:    jwt.NewNumericDate(c.IssuedAt),
		NotBefore:   jwt.NewNumericDate(c.NotBefore),
		Expires:     jwt.NewNumericDate(c.Expires),
		WorkspaceID: c.WorkspaceID,
	}
	if c.Mode != "" {
		wire.Mode = &c.Mode
	}
	if c.MaxSession != 0 {
		seconds := int64(c.MaxSession / time.Second)
		wire.MaxSession = &seconds
	}
	if c.Resume != 0 {
		seconds := int64(c.Resume / time.Second)
		wire.Resume = &seconds
	}
	return json.Marshal(wire)
}

// claims converts w to Claims. A number that Claims cannot hold is an error.
func (w wireClaims) claims() (Claims, error) {
	c := Claims{
		Issuer:      w.Issuer,
		Audience:    w.Audience,
		Subject:     w.Subject,
		ID:          w.ID,
		WorkspaceID: w.WorkspaceID,
		Mode:        ReadWrite,
	}
	for _, date := range []struct {
		name string
		from *jwt.NumericDate
		to   *time.Time
	}{
		{"iat", w.IssuedAt, &c.IssuedAt},
		{"nbf", w.NotBefore, &c.NotBefore},
		{"exp", w.Expires, &c.Expires},
	} {
		if date.from == nil {
			continue
		}
		if *date.from <= 0 || *date.from > maxUnixTime {
			return Claims{}, fmt.Errorf("%s is out of range", date.name)
		}
		*date.to = date.from.Time().UTC()
	}
	if w.Mode != nil {
		c.Mode = *w.Mode
	}
	if w.MaxSession != nil {
		if *w.MaxSession <= 0 {
			return Claims{}, errors.New("max_session is out of range")
		}
		c.MaxSession = time.Duration(min(*w.MaxSession, int64(maxSessionLimit/time.Second))) * time.Second
	}
	if w.Resume != nil {
		if *w.Resume < 0 {
			return Claims{}, errors.New("resume is out of range")
		}
		c.Resume = time.Duration(min(*w.Resume, int64(maxSessionLimit/time.Second))) * time.Second
	}
	return c, nil
}

// check applies the rules of every time and every gateway. Mint and Verify both
// refuse claims that break them.
func (c Claims) check() error {
	if len(c.Audience) == 0 {
		return errors.New("aud is missing")
	}
	for _, text := range []struct {
		name, value string
		limit       int
		required    bool
	}{
		{"iss", c.Issuer, maxIssuerBytes, false},
		{"sub", c.Subject, maxSubjectBytes, true},
		{"jti", c.ID, maxIDBytes, true},
	} {
		switch {
		case text.value == "" && text.required:
			return fmt.Errorf("%s is missing", text.name)
		case len(text.value) > text.limit:
			return fmt.Errorf("%s is longer than %d bytes", text.name, text.limit)
		case !utf8.ValidString(text.value) || strings.ContainsFunc(text.value, unicode.IsControl):
			// The claims are written to logs, audit rows and operators' terminals.
			return fmt.Errorf("%s holds a control character", text.name)
		}
	}
	if err := checkWorkspaceID(c.WorkspaceID); err != nil {
		return err
	}
	if c.Mode != ReadWrite && c.Mode != ReadOnly {
		return errors.New("mode is neither rw nor ro")
	}
	for _, seconds := range []struct {
		name  string
		value time.Duration
	}{{"max_session", c.MaxSession}, {"resume", c.Resume}} {
		if seconds.value < 0 || seconds.value > maxSessionLimit {
			return errors.New(seconds.name + " is out of range")
		}
		if seconds.value%time.Second != 0 {
			return errors.New(seconds.name + " is not in whole seconds")
		}
	}
	switch {
	case c.IssuedAt.IsZero():
		return errors.New("iat is missing")
	case c.Expires.IsZero():
		return errors.New("exp is missing")
	case !c.Expires.After(c.IssuedAt):
		return errors.New("exp is not after iat")
	case c.NotBefore.After(c.Expires):
		return errors.New("nbf is after exp")
	}
	return nil
}

func checkWorkspaceID(id string) error {
	switch {
	case id == "":
		return errors.New("workspace_id is missing")
	case len(id) > maxWorkspaceBytes:
		return fmt.Errorf("workspace_id is longer than %d bytes", maxWorkspaceBytes)
	case id == "." || id == "..":
		return errors.New("workspace_id is a path step")
	}
	for _, r := range id {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		case r == '.', r == '_', r == '-':
		default:
			return errors.New("workspace_id holds a character outside A-Z a-z 0-9 . _ -")
		}
	}
	return nil
}
