package ticket_test

import (
	"crypto"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

func TestGenerateKey(t *testing.T) {
	for _, alg := range []string{"EdDSA", "ES256", "RS256"} {
		key := newKey(t, alg)
		thumbprint, err := key.Thumbprint(crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		if key.KeyID != base64.RawURLEncoding.EncodeToString(thumbprint) || key.Algorithm != alg || key.Use != "sig" || key.IsPublic() {
			t.Errorf("%s: kid %s, alg %s, use %s, public %v", alg, key.KeyID, key.Algorithm, key.Use, key.IsPublic())
		}
	}
	for _, alg := range []string{"none", "HS256", "eddsa"} {
		if _, err := ticket.GenerateKey(alg); err == nil {
			t.Errorf("made a key for %s", alg)
		}
	}
}

func TestMintFillsDefaults(t *testing.T) {
	key := newKey(t, "EdDSA")
	verifier := ticket.NewVerifier(ticket.VerifierConfig{Keys: ticket.StaticKeys(key)})
	seen := map[string]bool{}
	for range 100 {
		claims, err := verifier.Verify(t.Context(), mint(t, key, ticket.Claims{Subject: "ada", WorkspaceID: "ws"}))
		if err != nil {
			t.Fatal(err)
		}
		if id, err := base64.RawURLEncoding.DecodeString(claims.ID); err != nil || len(id) != 16 || seen[claims.ID] {
			t.Fatalf("jti %q is not 128 fresh bits", claims.ID)
		}
		seen[claims.ID] = true
		if claims.Expires.Sub(claims.IssuedAt) != ticket.DefaultMaxTTL || !claims.NotBefore.Equal(claims.IssuedAt) ||
			claims.Mode != ticket.ReadWrite || claims.Audience[0] != ticket.DefaultAudience {
			t.Fatalf("defaults: %+v", claims)
		}
	}
}

func TestMintRefuses(t *testing.T) {
	minter, err := ticket.NewMinter(newKey(t, "EdDSA"))
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*ticket.Claims){
		"no subject":               func(c *ticket.Claims) { c.Subject = "" },
		"a subject with a control": func(c *ticket.Claims) { c.Subject = "a\x1b" },
		"a subject not UTF-8":      func(c *ticket.Claims) { c.Subject = "a\xff" },
		"no workspace":             func(c *ticket.Claims) { c.WorkspaceID = "" },
		"a path":                   func(c *ticket.Claims) { c.WorkspaceID = "../x" },
		"a huge id":                func(c *ticket.Claims) { c.ID = strings.Repeat("j", 129) },
		"another mode":             func(c *ticket.Claims) { c.Mode = "admin" },
		"a session of no time":     func(c *ticket.Claims) { c.MaxSession = time.Millisecond },
		"a negative session":       func(c *ticket.Claims) { c.MaxSession = -time.Second },
		"a session of eight days":  func(c *ticket.Claims) { c.MaxSession = 8 * 24 * time.Hour },
		"an end before the start":  func(c *ticket.Claims) { c.Expires = c.IssuedAt.Add(-time.Second) },
		"a life under a second":    func(c *ticket.Claims) { c.Expires = c.IssuedAt.Add(time.Millisecond) },
		"a start after the end":    func(c *ticket.Claims) { c.NotBefore = c.Expires.Add(time.Second) },
		"a date before 1970":       func(c *ticket.Claims) { c.IssuedAt = time.Unix(-1, 0); c.NotBefore = c.IssuedAt },
		"a date after 9999":        func(c *ticket.Claims) { c.Expires = time.Unix(1<<60, 0) },
		"many audiences":           func(c *ticket.Claims) { c.Audience = make([]string, 4000) },
	} {
		t.Run(name, func(t *testing.T) {
			claims := goodClaims()
			change(&claims)
			if raw, err := minter.Mint(claims); err == nil {
				t.Errorf("minted %s", raw)
			}
		})
	}
}

func TestNewMinterRefuses(t *testing.T) {
	key := newKey(t, "EdDSA")
	nameless, encryption, other := key, key, key
	nameless.KeyID, encryption.Use, other.Algorithm = "", "enc", "RS256"
	private, err := json.Marshal(key)
	if err != nil {
		t.Fatal(err)
	}
	secret := field(t, private, "d")
	for name, key := range map[string]jose.JSONWebKey{
		"public": key.Public(), "no kid": nameless, "use enc": encryption, "another alg": other,
		"nothing": {KeyID: "k"}, "short oct": {KeyID: "k", Key: []byte("short")},
	} {
		if _, err := ticket.NewMinter(key); err == nil {
			t.Errorf("%s: minter made", name)
		} else if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "short") {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
}

func TestClaimsJSON(t *testing.T) {
	data, err := json.Marshal(goodClaims())
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"iss":"https://platform.example","aud":"termgw","sub":"ada@example.com","jti":"jti-1",` +
		`"iat":1893553445,"nbf":1893553445,"exp":1893553505,"workspace_id":"2b6f0cc9-0d8e-4d51-8f5f-7d1f5d6c7b11",` +
		`"mode":"ro","max_session":3600}`
	if string(data) != want {
		t.Errorf("got  %s\nwant %s", data, want)
	}
}
