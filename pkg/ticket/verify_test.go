package ticket_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// now is the present of every test that does not say otherwise.
var now = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func at(moment time.Time) func() time.Time {
	return func() time.Time { return moment }
}

func newKey(t testing.TB, alg string) jose.JSONWebKey {
	t.Helper()
	key, err := ticket.GenerateKey(alg)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func octKey(kid string) jose.JSONWebKey {
	return jose.JSONWebKey{Key: []byte(strings.Repeat("s", 32)), KeyID: kid}
}

func mint(t testing.TB, key jose.JSONWebKey, claims ticket.Claims) string {
	t.Helper()
	minter, err := ticket.NewMinter(key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := minter.Mint(claims)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func goodClaims() ticket.Claims {
	return ticket.Claims{
		Issuer:      "https://platform.example",
		Audience:    []string{"termgw"},
		Subject:     "ada@example.com",
		ID:          "jti-1",
		IssuedAt:    now,
		NotBefore:   now,
		Expires:     now.Add(time.Minute),
		WorkspaceID: "2b6f0cc9-0d8e-4d51-8f5f-7d1f5d6c7b11",
		Mode:        ticket.ReadOnly,
		MaxSession:  time.Hour,
	}
}

// document is a JSON object under change: a header or a payload.
type document map[string]any

func (d document) with(name string, value any) document {
	changed := maps.Clone(d)
	changed[name] = value
	return changed
}

func (d document) without(name string) document {
	changed := maps.Clone(d)
	delete(changed, name)
	return changed
}

func (d document) text() string {
	data, err := json.Marshal(d)
	if err != nil {
		panic(err)
	}
	return string(data)
}

func goodHeader(alg, kid string) document {
	return document{"typ": "termgw-ticket+jwt", "alg": alg, "kid": kid}
}

func goodPayload() document {
	return document{
		"iss": "https://platform.example", "aud": "termgw", "sub": "ada@example.com", "jti": "jti-1",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Unix() + 60, "workspace_id": "ws-1",
	}
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// sign writes a compact JWS by hand, without the library under test.
func sign(header, payload string, signature func(input []byte) []byte) string {
	input := b64(header) + "." + b64(payload)
	return input + "." + b64(string(signature([]byte(input))))
}

func edSignature(key jose.JSONWebKey) func([]byte) []byte {
	return func(input []byte) []byte { return ed25519.Sign(key.Key.(ed25519.PrivateKey), input) }
}

func hmacSignature(secret []byte) func([]byte) []byte {
	return func(input []byte) []byte {
		mac := hmac.New(sha256.New, secret)
		mac.Write(input)
		return mac.Sum(nil)
	}
}

func noSignature([]byte) []byte { return []byte("x") }

// checkRefusal asserts the sentinel, the reason, and that no error shows the ticket.
func checkRefusal(t *testing.T, raw string, claims ticket.Claims, err, want error, reason string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("err = %v, want %v", err, want)
	}
	if errors.Is(err, ticket.ErrInvalid) == errors.Is(err, ticket.ErrExpired) {
		t.Errorf("err = %v: want exactly one of the sentinels", err)
	}
	if !strings.Contains(err.Error(), reason) {
		t.Errorf("err = %v, want the reason %q", err, reason)
	}
	if !reflect.DeepEqual(claims, ticket.Claims{}) {
		t.Errorf("claims of a refused ticket: %+v", claims)
	}
	if len(err.Error()) > 300 {
		t.Errorf("error of %d bytes", len(err.Error()))
	}
	for part := range strings.SplitSeq(raw, ".") {
		if len(part) >= 16 && strings.Contains(err.Error(), part) {
			t.Errorf("the error shows a part of the ticket: %v", err)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	keys := map[string]jose.JSONWebKey{
		"EdDSA": newKey(t, "EdDSA"),
		"ES256": newKey(t, "ES256"),
		"RS256": newKey(t, "RS256"),
		"HS256": octKey("shared"),
	}
	if def := newKey(t, ""); def.Algorithm != "EdDSA" {
		t.Errorf("default algorithm %s", def.Algorithm)
	}
	for alg, key := range keys {
		t.Run(alg, func(t *testing.T) {
			raw := mint(t, key, goodClaims())
			verifier := ticket.NewVerifier(ticket.VerifierConfig{
				Keys: ticket.StaticKeys(key), Issuer: "https://platform.example", Now: at(now),
			})
			got, err := verifier.Verify(t.Context(), raw)
			if err != nil {
				t.Fatal(err)
			}
			if want := goodClaims(); !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			header, _, _ := strings.Cut(raw, ".")
			decoded, err := base64.RawURLEncoding.DecodeString(header)
			if err != nil {
				t.Fatal(err)
			}
			var fields document
			if err := json.Unmarshal(decoded, &fields); err != nil {
				t.Fatal(err)
			}
			if want := goodHeader(alg, key.KeyID); !reflect.DeepEqual(fields, want) {
				t.Errorf("header %v, want %v", fields, want)
			}
		})
	}
}

func TestVerifyAccepts(t *testing.T) {
	key := newKey(t, "EdDSA")
	header := goodHeader("EdDSA", key.KeyID).text()
	payload := goodPayload()
	for name, test := range map[string]struct {
		payload document
		check   func(ticket.Claims) bool
	}{
		"mode left out is rw":      {payload, func(c ticket.Claims) bool { return c.Mode == ticket.ReadWrite && c.MaxSession == 0 }},
		"mode rw":                  {payload.with("mode", "rw"), func(c ticket.Claims) bool { return c.Mode == ticket.ReadWrite }},
		"mode ro":                  {payload.with("mode", "ro"), func(c ticket.Claims) bool { return c.Mode == ticket.ReadOnly }},
		"max_session past 7 days":  {payload.with("max_session", 604801), func(c ticket.Claims) bool { return c.MaxSession == 7*24*time.Hour }},
		"max_session without end":  {payload.with("max_session", int64(math.MaxInt64)), func(c ticket.Claims) bool { return c.MaxSession == 7*24*time.Hour }},
		"max_session":              {payload.with("max_session", 90), func(c ticket.Claims) bool { return c.MaxSession == 90*time.Second }},
		"several audiences":        {payload.with("aud", []string{"other", "termgw"}), func(c ticket.Claims) bool { return len(c.Audience) == 2 }},
		"no nbf":                   {payload.without("nbf"), func(c ticket.Claims) bool { return c.NotBefore.IsZero() }},
		"unknown claims":           {payload.with("name", "Ada").with("x", []any{1, nil}), func(c ticket.Claims) bool { return c.Subject == "ada@example.com" }},
		"fraction of a second":     {payload.with("exp", float64(now.Unix())+30.5), func(c ticket.Claims) bool { return c.Expires.Equal(now.Add(30 * time.Second)) }},
		"longest texts":            {payload.with("sub", strings.Repeat("s", 256)).with("jti", strings.Repeat("j", 128)).with("workspace_id", strings.Repeat("w", 128)), func(c ticket.Claims) bool { return len(c.Subject) == 256 }},
		"dots in a workspace id":   {payload.with("workspace_id", "a..b"), func(c ticket.Claims) bool { return c.WorkspaceID == "a..b" }},
		"iat ahead by the leeway":  {payload.with("iat", now.Unix()+5).with("nbf", now.Unix()+5), func(c ticket.Claims) bool { return c.IssuedAt.After(now) }},
		"exp passed by the leeway": {payload.with("iat", now.Unix()-65).with("nbf", now.Unix()-65).with("exp", now.Unix()-5), func(c ticket.Claims) bool { return c.Expires.Before(now) }},
	} {
		t.Run(name, func(t *testing.T) {
			verifier := ticket.NewVerifier(ticket.VerifierConfig{Keys: ticket.StaticKeys(key), Now: at(now)})
			claims, err := verifier.Verify(t.Context(), sign(header, test.payload.text(), edSignature(key)))
			if err != nil {
				t.Fatal(err)
			}
			if !test.check(claims) {
				t.Errorf("claims %+v", claims)
			}
		})
	}
}

func TestVerifyRefusesHeader(t *testing.T) {
	ed, ec, rs, oct := newKey(t, "EdDSA"), newKey(t, "ES256"), newKey(t, "RS256"), octKey("oct")
	foreign := newKey(t, "EdDSA")
	verifier := ticket.NewVerifier(ticket.VerifierConfig{
		Keys: ticket.StaticKeys(ed.Public(), ec.Public(), rs.Public(), oct), Now: at(now),
	})
	rsDER, err := x509.MarshalPKIXPublicKey(rs.Public().Key)
	if err != nil {
		t.Fatal(err)
	}
	rsPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: rsDER})
	edPublic := []byte(ed.Public().Key.(ed25519.PublicKey))
	ecPublic, err := ec.Public().Key.(*ecdsa.PublicKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}

	payload := goodPayload().text()
	header := goodHeader("EdDSA", ed.KeyID)
	edSigned := func(h document) string { return sign(h.text(), payload, edSignature(ed)) }
	good := edSigned(header)
	parts := strings.Split(good, ".")
	if _, err := verifier.Verify(t.Context(), good); err != nil {
		t.Fatalf("the ticket that the cases change is refused: %v", err)
	}

	for name, test := range map[string]struct{ raw, reason string }{
		"empty":                       {"", "compact JWS"},
		"one dot":                     {parts[0] + "." + parts[1], "compact JWS"},
		"five parts, as a JWE":        {good + ".a.b", "compact JWS"},
		"over 8 KiB":                  {good + strings.Repeat("A", 8<<10), "longer than"},
		"10 MB":                       {strings.Repeat("A.", 5<<20), "longer than"},
		"JSON serialisation":          {`{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, "compact JWS"},
		"no signature":                {parts[0] + "." + parts[1] + ".", "compact JWS"},
		"detached payload":            {parts[0] + ".." + parts[2], "compact JWS"},
		"padding":                     {good + "=", "compact JWS"},
		"line end inside":             {parts[0] + "\n." + parts[1] + "." + parts[2], "compact JWS"},
		"space before":                {" " + good, "compact JWS"},
		"stray bits in the signature": {good[:len(good)-1] + strayBits(good[len(good)-1]), "compact JWS"},
		"header no JSON":              {sign("not json", payload, edSignature(ed)), "not a JSON object"},
		"header an array":             {sign(`["EdDSA"]`, payload, edSignature(ed)), "not a JSON object"},
		"header null":                 {sign(`null`, payload, edSignature(ed)), "not a JSON object"},
		"header not UTF-8":            {sign("{\"typ\":\"\xff\"}", payload, edSignature(ed)), "UTF-8"},
		"header with two alg":         {sign(strings.Replace(header.text(), `{`, `{"alg":"none",`, 1), payload, edSignature(ed)), "twice"},
		"header with two typ":         {sign(strings.Replace(header.text(), `{`, `{"typ":"termgw-ticket+jwt",`, 1), payload, edSignature(ed)), "twice"},
		"header with kid and KID":     {edSigned(header.with("KID", "another")), "twice"},
		"header with kid that folds":  {edSigned(header.with("\u212aid", "another")), "twice"},
		"header with what is unknown": {sign(strings.Replace(header.text(), `{`, `{"x":1,"X":2,`, 1), payload, edSignature(ed)), "twice"},

		"alg none":                       {sign(header.with("alg", "none").text(), payload, noSignature), `alg "none"`},
		"alg none, signed":               {edSigned(header.with("alg", "none")), `alg "none"`},
		"alg None":                       {edSigned(header.with("alg", "None")), `alg "None"`},
		"alg missing":                    {edSigned(header.without("alg")), `alg ""`},
		"alg a number":                   {edSigned(header.with("alg", 1)), `alg ""`},
		"alg HS512":                      {edSigned(header.with("alg", "HS512")), `alg "HS512"`},
		"alg PS256":                      {edSigned(header.with("alg", "PS256")), `alg "PS256"`},
		"alg of 4 kB":                    {edSigned(header.with("alg", strings.Repeat("A", 4000))), "alg"},
		"HMAC with the Ed25519 public":   {sign(header.with("alg", "HS256").text(), payload, hmacSignature(edPublic)), "header says HS256"},
		"HMAC with the P-256 public":     {sign(goodHeader("HS256", ec.KeyID).text(), payload, hmacSignature(ecPublic)), "header says HS256"},
		"HMAC with the RSA public, DER":  {sign(goodHeader("HS256", rs.KeyID).text(), payload, hmacSignature(rsDER)), "header says HS256"},
		"HMAC with the RSA public, PEM":  {sign(goodHeader("HS256", rs.KeyID).text(), payload, hmacSignature(rsPEM)), "header says HS256"},
		"HMAC with a guess":              {sign(goodHeader("HS256", "oct").text(), payload, hmacSignature(edPublic)), "signature"},
		"another alg for the key":        {edSigned(header.with("alg", "ES256")), "header says ES256"},
		"EdDSA for an oct key":           {edSigned(goodHeader("EdDSA", "oct")), "header says EdDSA"},
		"a foreign key under a known id": {sign(header.text(), payload, edSignature(foreign)), "signature"},
		"a foreign key":                  {sign(goodHeader("EdDSA", foreign.KeyID).text(), payload, edSignature(foreign)), "no key has the kid"},
		"unknown kid":                    {edSigned(header.with("kid", "nobody")), `no key has the kid "nobody"`},
		"kid of 4 kB":                    {edSigned(header.with("kid", strings.Repeat("k", 4000))), "no key has the kid"},
		"kid with control characters":    {edSigned(header.with("kid", "a\n\x1b[2J")), `"a\n\x1b[2J"`},
		"kid missing":                    {edSigned(header.without("kid")), "kid is missing"},
		"kid empty":                      {edSigned(header.with("kid", "")), "kid is missing"},
		"kid a number":                   {edSigned(header.with("kid", 7)), "kid is missing"},

		"typ missing":          {edSigned(header.without("typ")), "typ"},
		"typ JWT":              {edSigned(header.with("typ", "JWT")), "typ"},
		"typ at+jwt":           {edSigned(header.with("typ", "at+jwt")), "typ"},
		"typ in capitals":      {edSigned(header.with("typ", "TERMGW-TICKET+JWT")), "typ"},
		"typ an array":         {edSigned(header.with("typ", []string{ticket.Type})), "typ"},
		"crit":                 {edSigned(header.with("crit", []string{"exp"})), `"crit"`},
		"crit empty":           {edSigned(header.with("crit", []string{})), `"crit"`},
		"b64":                  {edSigned(header.with("b64", false).with("crit", []string{"b64"})), "the header has a"},
		"embedded jwk":         {sign(header.with("jwk", foreign.Public()).text(), payload, edSignature(foreign)), `"jwk"`},
		"embedded jwk, signed": {edSigned(header.with("jwk", ed.Public())), `"jwk"`},
		"jku":                  {edSigned(header.with("jku", "https://evil.example/jwks")), `"jku"`},
		"x5u":                  {edSigned(header.with("x5u", "https://evil.example/cert")), `"x5u"`},
		"x5c":                  {edSigned(header.with("x5c", []string{"AAAA"})), `"x5c"`},

		"payload changed":   {parts[0] + "." + b64(goodPayload().with("sub", "eve").text()) + "." + parts[2], "signature"},
		"header changed":    {b64(header.with("x", 1).text()) + "." + parts[1] + "." + parts[2], "signature"},
		"signature cut":     {sign(header.text(), payload, func(in []byte) []byte { return edSignature(ed)(in)[:63] }), "signature"},
		"signature of zero": {parts[0] + "." + parts[1] + "." + b64(strings.Repeat("\x00", 64)), "signature"},
	} {
		t.Run(name, func(t *testing.T) {
			claims, err := verifier.Verify(t.Context(), test.raw)
			checkRefusal(t, test.raw, claims, err, ticket.ErrInvalid, test.reason)
		})
	}
}

// strayBits returns a last base64 character that decodes to the same byte.
func strayBits(last byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, last)+1])
}

func TestVerifyRefusesClaims(t *testing.T) {
	key := newKey(t, "EdDSA")
	header := goodHeader("EdDSA", key.KeyID).text()
	good := goodPayload()
	text := good.text()
	verifier := ticket.NewVerifier(ticket.VerifierConfig{
		Keys: ticket.StaticKeys(key), Issuer: "https://platform.example", Now: at(now),
	})

	type refusal struct {
		payload string
		want    error
		reason  string
	}
	invalid := func(d document, reason string) refusal { return refusal{d.text(), ticket.ErrInvalid, reason} }
	number := func(name, literal, reason string) refusal {
		return refusal{good.with(name, json.RawMessage(literal)).text(), ticket.ErrInvalid, reason}
	}
	life := func(iat, exp int64) document {
		return good.with("iat", now.Unix()+iat).with("nbf", now.Unix()+iat).with("exp", now.Unix()+exp)
	}

	tests := map[string]refusal{
		"no JSON":       {"hello", ticket.ErrInvalid, "not a JSON object"},
		"an array":      {"[" + text + "]", ticket.ErrInvalid, "not a JSON object"},
		"null":          {"null", ticket.ErrInvalid, "missing"},
		"a string":      {`"x"`, ticket.ErrInvalid, "not a JSON object"},
		"two objects":   {text + text, ticket.ErrInvalid, "not a JSON object"},
		"not UTF-8":     {strings.Replace(text, "ada@", "ada\xff@", 1), ticket.ErrInvalid, "UTF-8"},
		"a claim twice": {strings.Replace(text, "{", `{"sub":"eve",`, 1), ticket.ErrInvalid, "distinct names"},
		"a claim twice, escaped": {
			strings.Replace(text, "{", `{"s\u0075b":"eve",`, 1), ticket.ErrInvalid, "distinct names",
		},
		"a claim in capitals": invalid(good.with("SUB", "eve"), "looks like sub"),
		"a claim that folds":  invalid(good.with("\u017fub", "eve"), "looks like sub"),
		"deep nesting":        {strings.Repeat("[", 3000), ticket.ErrInvalid, "not a JSON object"},

		"typ of sub":             invalid(good.with("sub", 7), "wrong type"),
		"typ of jti":             invalid(good.with("jti", []string{"a"}), "wrong type"),
		"typ of workspace_id":    invalid(good.with("workspace_id", document{}), "wrong type"),
		"typ of aud":             invalid(good.with("aud", 7), "wrong type"),
		"typ in aud":             invalid(good.with("aud", []any{"termgw", 7}), "wrong type"),
		"typ of exp":             invalid(good.with("exp", "soon"), "wrong type"),
		"exp in quotes":          invalid(good.with("exp", "1893553505"), "wrong type"),
		"exp an object":          invalid(good.with("exp", document{}), "wrong type"),
		"iss another":            invalid(good.with("iss", "https://evil.example"), "iss is not"),
		"iss missing":            invalid(good.without("iss"), "iss is not"),
		"iss in part":            invalid(good.with("iss", "https://platform.example/"), "iss is not"),
		"iss huge":               invalid(good.with("iss", strings.Repeat("i", 257)), "iss is longer"),
		"aud another":            invalid(good.with("aud", "other"), "aud does not name"),
		"aud another, list":      invalid(good.with("aud", []string{"a", "b"}), "aud does not name"),
		"aud in capitals":        invalid(good.with("aud", "TERMGW"), "aud does not name"),
		"aud missing":            invalid(good.without("aud"), "aud is missing"),
		"aud empty":              invalid(good.with("aud", []string{}), "aud is missing"),
		"sub missing":            invalid(good.without("sub"), "sub is missing"),
		"sub null":               invalid(good.with("sub", nil), "sub is missing"),
		"sub empty":              invalid(good.with("sub", ""), "sub is missing"),
		"sub huge":               invalid(good.with("sub", strings.Repeat("s", 257)), "sub is longer"),
		"sub with a line end":    invalid(good.with("sub", "ada\nroot"), "control"),
		"sub with NUL":           invalid(good.with("sub", "ada\x00"), "control"),
		"sub with an escape":     invalid(good.with("sub", "\x1b]0;x\x07"), "control"),
		"sub with a C1 control":  invalid(good.with("sub", "\u009b2J"), "control"),
		"jti missing":            invalid(good.without("jti"), "jti is missing"),
		"jti empty":              invalid(good.with("jti", ""), "jti is missing"),
		"jti huge":               invalid(good.with("jti", strings.Repeat("j", 129)), "jti is longer"),
		"jti with DEL":           invalid(good.with("jti", "a\x7f"), "control"),
		"workspace_id missing":   invalid(good.without("workspace_id"), "workspace_id is missing"),
		"workspace_id empty":     invalid(good.with("workspace_id", ""), "workspace_id is missing"),
		"workspace_id huge":      invalid(good.with("workspace_id", strings.Repeat("w", 129)), "workspace_id is longer"),
		"workspace_id of 5 kB":   invalid(good.with("workspace_id", strings.Repeat("w", 5000)), "workspace_id is longer"),
		"workspace_id .":         invalid(good.with("workspace_id", "."), "path step"),
		"workspace_id ..":        invalid(good.with("workspace_id", ".."), "path step"),
		"workspace_id ../x":      invalid(good.with("workspace_id", "../x"), "outside"),
		"workspace_id %2f":       invalid(good.with("workspace_id", "a%2fb"), "outside"),
		"workspace_id quoted":    invalid(good.with("workspace_id", `a"b'`), "outside"),
		"workspace_id spaced":    invalid(good.with("workspace_id", "a b"), "outside"),
		"workspace_id with NUL":  invalid(good.with("workspace_id", "a\x00"), "outside"),
		"workspace_id non-ASCII": invalid(good.with("workspace_id", "wé"), "outside"),
		"mode another":           invalid(good.with("mode", "admin"), "mode"),
		"mode empty":             invalid(good.with("mode", ""), "mode"),
		"mode in capitals":       invalid(good.with("mode", "RO"), "mode"),
		"mode a number":          invalid(good.with("mode", 1), "wrong type"),

		"exp missing":            invalid(good.without("exp"), "exp is missing"),
		"exp null":               invalid(good.with("exp", nil), "exp is missing"),
		"iat missing":            invalid(good.without("iat"), "iat is missing"),
		"exp before iat":         invalid(life(0, -1), "exp is not after iat"),
		"exp at iat":             invalid(life(0, 0), "exp is not after iat"),
		"life over the limit":    invalid(life(0, 61), "lives longer"),
		"life of a century":      invalid(life(0, 3155760000), "lives longer"),
		"iat in the future":      invalid(life(6, 60), "iat is in the future"),
		"nbf in the future":      invalid(good.with("nbf", now.Unix()+6), "nbf is in the future"),
		"nbf after exp":          invalid(good.with("nbf", now.Unix()+61), "nbf is after exp"),
		"expired":                {life(-60, -6).text(), ticket.ErrExpired, "6s ago"},
		"expired, wrong aud":     invalid(life(-60, -6).with("aud", "other"), "aud does not name"),
		"expired, life too long": invalid(life(-600, -6), "lives longer"),
	}
	for _, date := range []string{"iat", "nbf", "exp"} {
		for literal, reason := range map[string]string{
			"0": "out of range", "-1": "out of range", "-9223372036854775808": "wrong type", "-1e300": "wrong type",
			"253402300800": "out of range", "9223372036854775807": "wrong type", "9223372036854775808": "wrong type",
			"4611686018427387903": "wrong type", "1e18": "out of range", "1e308": "wrong type", "1e999": "wrong type",
			"true": "wrong type",
		} {
			tests[date+" "+literal] = number(date, literal, reason)
		}
		tests[date+" NaN"] = refusal{strings.Replace(text, `"`+date+`":`, `"`+date+`":NaN,"x":`, 1), ticket.ErrInvalid, "not a JSON object"}
	}
	for literal, reason := range map[string]string{
		"0": "out of range", "-1": "out of range", "-9223372036854775808": "out of range",
		"9223372036854775808": "wrong type", "1.5": "wrong type", "1e3": "wrong type", `"60"`: "wrong type", "[]": "wrong type",
	} {
		tests["max_session "+literal] = number("max_session", literal, reason)
	}

	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			raw := sign(header, test.payload, edSignature(key))
			claims, err := verifier.Verify(t.Context(), raw)
			checkRefusal(t, raw, claims, err, test.want, test.reason)
		})
	}
}

// A key that is wrong for tickets is refused whatever source hands it out.
func TestVerifyPinsTheKey(t *testing.T) {
	ed, rs := newKey(t, "EdDSA"), newKey(t, "RS256")
	weakRSA, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(key jose.JSONWebKey, change func(*jose.JSONWebKey)) jose.JSONWebKey {
		change(&key)
		return key
	}
	for name, test := range map[string]struct {
		key    jose.JSONWebKey
		reason string
	}{
		"alg of another type": {changed(ed.Public(), func(k *jose.JSONWebKey) { k.Algorithm = "ES256" }), "alg is not the EdDSA"},
		"alg none":            {changed(ed.Public(), func(k *jose.JSONWebKey) { k.Algorithm = "none" }), "alg is not the EdDSA"},
		"alg HS256 on RSA":    {changed(rs.Public(), func(k *jose.JSONWebKey) { k.Algorithm = "HS256" }), "alg is not the RS256"},
		"use enc":             {changed(ed.Public(), func(k *jose.JSONWebKey) { k.Use = "enc" }), "use is not sig"},
		"RSA of 1024 bits":    {jose.JSONWebKey{KeyID: "k", Key: &weakRSA.PublicKey}, "only Ed25519"},
		"P-384":               {jose.JSONWebKey{KeyID: "k", Key: &p384.PublicKey}, "only Ed25519"},
		"oct of 31 bytes":     {jose.JSONWebKey{KeyID: "k", Key: make([]byte, 31)}, "at least 32 bytes"},
		"short Ed25519":       {jose.JSONWebKey{KeyID: "k", Key: ed25519.PublicKey{1}}, "not a key"},
		"nothing":             {jose.JSONWebKey{KeyID: "k"}, "not a key"},
	} {
		t.Run(name, func(t *testing.T) {
			raw := sign(goodHeader("EdDSA", test.key.KeyID).text(), goodPayload().text(), edSignature(ed))
			for source, keys := range map[string]ticket.KeySource{
				"static":  ticket.StaticKeys(test.key),
				"foreign": oneKey{test.key},
			} {
				t.Run(source, func(t *testing.T) {
					verifier := ticket.NewVerifier(ticket.VerifierConfig{Keys: keys, Now: at(now)})
					claims, err := verifier.Verify(t.Context(), raw)
					checkRefusal(t, raw, claims, err, ticket.ErrInvalid, test.reason)
				})
			}
		})
	}
}

func FuzzVerify(f *testing.F) {
	keys := []jose.JSONWebKey{newKey(f, "EdDSA"), newKey(f, "ES256"), newKey(f, "RS256"), octKey("oct")}
	verifier := ticket.NewVerifier(ticket.VerifierConfig{Keys: ticket.StaticKeys(keys...), Now: at(now)})
	minted := map[string]ticket.Claims{} // by what is signed
	for _, key := range keys {
		claims := goodClaims()
		claims.ID = "jti-" + key.KeyID
		raw := mint(f, key, claims)
		minted[raw[:strings.LastIndex(raw, ".")]] = claims
		f.Add(raw)
		f.Add(raw[1:])
		f.Add(raw + "=")
		f.Add(strings.ToLower(raw))
		f.Add(strings.Replace(raw, ".", "..", 1))
	}
	f.Add(sign(`{"alg":"none","typ":"termgw-ticket+jwt","kid":"oct"}`, goodPayload().text(), noSignature))
	f.Add(sign(goodHeader("HS256", "oct").text(), goodPayload().with("exp", 1e300).text(), hmacSignature([]byte("x"))))
	f.Add("..")
	f.Fuzz(func(t *testing.T, raw string) {
		claims, err := verifier.Verify(t.Context(), raw)
		if err != nil {
			if errors.Is(err, ticket.ErrInvalid) == errors.Is(err, ticket.ErrExpired) {
				t.Errorf("want exactly one of the sentinels: %v", err)
			}
			return
		}
		want, ok := minted[raw[:strings.LastIndex(raw, ".")]]
		if !ok || !reflect.DeepEqual(claims, want) {
			t.Errorf("accepted what nobody minted: %+v", claims)
		}
	})
}

// FuzzClaims reaches what stands behind the signature: any payload is signed.
// What is accepted must hold every bound, and mint to the same claims again.
func FuzzClaims(f *testing.F) {
	key := octKey("oct")
	header := goodHeader("HS256", "oct").text()
	verifier := ticket.NewVerifier(ticket.VerifierConfig{Keys: ticket.StaticKeys(key), Now: at(now)})
	f.Add(goodPayload().text())
	f.Add(goodPayload().with("mode", "ro").with("max_session", 60).text())
	f.Add(goodPayload().with("aud", []string{"a", "termgw"}).without("nbf").text())
	f.Add(goodPayload().with("exp", 1e300).text())
	f.Add(`{"exp":1e999}`)
	f.Fuzz(func(t *testing.T, payload string) {
		claims, err := verifier.Verify(t.Context(), sign(header, payload, hmacSignature(key.Key.([]byte))))
		if err != nil {
			return
		}
		if claims.ID == "" || claims.Subject == "" || claims.WorkspaceID == "" ||
			claims.Expires.Sub(claims.IssuedAt) > time.Minute || claims.Expires.Before(now.Add(-ticket.Leeway)) {
			t.Errorf("accepted %+v", claims)
		}
		if claims.NotBefore.IsZero() {
			claims.NotBefore = claims.IssuedAt
		}
		again, err := verifier.Verify(t.Context(), mint(t, key, claims))
		if err != nil || !reflect.DeepEqual(again, claims) {
			t.Errorf("minted again: %+v, %v; want %+v", again, err, claims)
		}
	})
}
