package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// generateTicketKey runs keygen in a new folder and returns the two paths.
func generateTicketKey(t testing.TB, alg string) (private, set string) {
	t.Helper()
	private = filepath.Join(t.TempDir(), "key.json")
	var out bytes.Buffer
	if err := (&KeygenCmd{Alg: alg, Out: private}).Run(&stdio{Out: &out}); err != nil {
		t.Fatal(err)
	}
	set = strings.TrimSuffix(private, ".json") + ".jwks.json"
	for _, path := range []string{private, set} {
		if !strings.Contains(out.String(), path) {
			t.Errorf("keygen does not name %s:\n%s", path, out.String())
		}
	}
	if secret := jwkMember(t, private, "d"); strings.Contains(out.String(), secret) {
		t.Error("keygen prints the private key")
	}
	return private, set
}

func jwkMember(t testing.TB, path, name string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var members map[string]string
	if err := json.Unmarshal(data, &members); err != nil || members[name] == "" {
		t.Fatalf("%s has no %q (%v)", path, name, err)
	}
	return members[name]
}

func mintCommand(key string) *MintCmd {
	return &MintCmd{Key: key, Workspace: "ws-1", Subject: "ada", TTL: time.Minute, Mode: "ro", MaxSession: time.Hour, Audience: "termgw"}
}

func TestTicketCommands(t *testing.T) {
	t.Parallel()
	for _, alg := range []string{"EdDSA", "ES256", "RS256"} {
		t.Run(alg, func(t *testing.T) {
			private, set := generateTicketKey(t, alg)
			var raw, claims bytes.Buffer
			if err := mintCommand(private).Run(&stdio{Out: &raw}); err != nil {
				t.Fatal(err)
			}
			if strings.Count(raw.String(), "\n") != 1 || strings.Count(raw.String(), ".") != 2 {
				t.Fatalf("mint prints %q, want a ticket and a newline", raw.String())
			}
			verify := VerifyCmd{JWKS: set, Audience: "termgw", MaxTTL: time.Minute}
			if err := verify.Run(t.Context(), &stdio{In: strings.NewReader(raw.String()), Out: &claims}); err != nil {
				t.Fatal(err)
			}
			var got map[string]any
			if err := json.Unmarshal(claims.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			if got["workspace_id"] != "ws-1" || got["sub"] != "ada" || got["mode"] != "ro" || got["max_session"] != 3600.0 {
				t.Errorf("claims %v", got)
			}

			// Refused: the reason, never the ticket; and nothing on standard output.
			claims.Reset()
			verify.Audience = "another"
			err := verify.Run(t.Context(), &stdio{In: strings.NewReader(raw.String()), Out: &claims})
			if !errors.Is(err, ticket.ErrInvalid) || !strings.Contains(err.Error(), "aud") {
				t.Errorf("err = %v", err)
			}
			for part := range strings.SplitSeq(strings.TrimSpace(raw.String()), ".") {
				if err != nil && strings.Contains(err.Error(), part) {
					t.Errorf("the error shows the ticket: %v", err)
				}
			}
			if claims.Len() > 0 {
				t.Errorf("a refusal prints %q", claims.String())
			}
		})
	}
}

func TestKeygenFiles(t *testing.T) {
	t.Parallel()
	private, set := generateTicketKey(t, "EdDSA")
	info, err := os.Stat(private)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("private key has mode %v", info.Mode())
	}
	public, err := os.ReadFile(set)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(public, []byte(jwkMember(t, private, "d"))) {
		t.Error("the key set holds the private key")
	}

	// Neither file is overwritten, and half a pair is not left behind.
	before := jwkMember(t, private, "d")
	again := &KeygenCmd{Alg: "EdDSA", Out: private}
	if err := again.Run(&stdio{Out: &bytes.Buffer{}}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a private key: %v", err)
	}
	if jwkMember(t, private, "d") != before {
		t.Error("the private key was overwritten")
	}
	if err := os.Remove(private); err != nil {
		t.Fatal(err)
	}
	if err := again.Run(&stdio{Out: &bytes.Buffer{}}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a key set: %v", err)
	}
	if _, err := os.Stat(private); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a private key without its set was left: %v", err)
	}
}

func TestMintCommandRefuses(t *testing.T) {
	t.Parallel()
	private, set := generateTicketKey(t, "EdDSA")
	secret := jwkMember(t, private, "d")
	broken := filepath.Join(t.TempDir(), "broken.json")
	if err := os.WriteFile(broken, []byte(`{"kty":"OKP","crv":"Ed25519","kid":7,"d":"`+secret+`"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*MintCmd){
		"no such key":   func(c *MintCmd) { c.Key += ".gone" },
		"a set":         func(c *MintCmd) { c.Key = set },
		"a broken key":  func(c *MintCmd) { c.Key = broken },
		"ttl 0":         func(c *MintCmd) { c.TTL = 0 },
		"ttl negative":  func(c *MintCmd) { c.TTL = -time.Second },
		"a path":        func(c *MintCmd) { c.Workspace = "../x" },
		"empty subject": func(c *MintCmd) { c.Subject = "" },
		"endless":       func(c *MintCmd) { c.MaxSession = 1000 * time.Hour },
		"half a second": func(c *MintCmd) { c.MaxSession = time.Second / 2 },
		"unknown mode":  func(c *MintCmd) { c.Mode = "admin" },
		"a line end":    func(c *MintCmd) { c.Subject = "ada\n" },
		"not a second":  func(c *MintCmd) { c.MaxSession = 3 * time.Second / 2 },
	} {
		t.Run(name, func(t *testing.T) {
			command := mintCommand(private)
			change(command)
			var out bytes.Buffer
			err := command.Run(&stdio{Out: &out})
			if err == nil || out.Len() > 0 {
				t.Fatalf("err = %v, printed %q", err, out.String())
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error shows the key: %v", err)
			}
			if command.MaxSession%time.Second != 0 && !strings.Contains(err.Error(), "whole seconds") {
				t.Errorf("it says %v", err)
			}
		})
	}
}
