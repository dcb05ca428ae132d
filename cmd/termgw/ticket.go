package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// TicketCmd groups the commands for keys and tickets by hand.
type TicketCmd struct {
	Keygen KeygenCmd `cmd:"" help:"Make a signing key and the key set that the gateway verifies with."`
	Mint   MintCmd   `cmd:"" help:"Mint a ticket and print it, and nothing else."`
	Verify VerifyCmd `cmd:"" help:"Read a ticket from standard input and print its claims, or say why it is refused."`
}

// KeygenCmd makes a signing key.
type KeygenCmd struct {
	Alg string `enum:"EdDSA,ES256,RS256" default:"EdDSA" help:"Signature algorithm: ${enum}."`
	Out string `default:"termgw-ticket.json" placeholder:"FILE.json" help:"Private key, a JWK, readable by its owner alone, for 'mint --key' (${default}). Its public half, a JWK Set for TERMGW_TICKET_JWKS, goes beside it to FILE.jwks.json. Nothing is overwritten."`
}

// Run writes the two files and prints their names.
func (c *KeygenCmd) Run(std *stdio) error {
	key, err := ticket.GenerateKey(c.Alg)
	if err != nil {
		return err
	}
	private, err := json.Marshal(key)
	if err != nil {
		return fmt.Errorf("encoding the ticket key: %w", err)
	}
	public, err := json.MarshalIndent(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}}, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the key set: %w", err)
	}

	setPath := strings.TrimSuffix(c.Out, ".json") + ".jwks.json"
	if err := writeNew(c.Out, append(private, '\n'), 0o600); err != nil {
		return err
	}
	if err := writeNew(setPath, append(public, '\n'), 0o644); err != nil {
		return errors.Join(err, os.Remove(c.Out))
	}
	_, err = fmt.Fprintf(std.Out, "kid          %s\nprivate key  %s  (keep it secret; termgw ticket mint --key %s …)\nkey set      %s  (TERMGW_TICKET_JWKS=%s)\n",
		key.KeyID, c.Out, c.Out, setPath, setPath)
	return err
}

// writeNew creates a file with all of its data, or no file. An existing file is an error.
func writeNew(path string, data []byte, mode fs.FileMode) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// MintCmd mints a ticket.
type MintCmd struct {
	Key        string        `required:"" placeholder:"FILE" help:"Private key, as 'keygen' writes it."`
	Workspace  string        `required:"" placeholder:"ID" help:"Workspace that the ticket opens."`
	Subject    string        `required:"" placeholder:"WHO" help:"The person; goes to the audit trail."`
	TTL        time.Duration `name:"ttl" default:"60s" help:"Life of the ticket (${default}); a gateway refuses more than its TERMGW_TICKET_MAX_TTL."`
	Mode       string        `enum:"rw,ro" default:"rw" help:"rw, or ro: what the person types is dropped."`
	MaxSession time.Duration `placeholder:"DURATION" help:"Longest life of the session; the gateway's own limit holds anyway."`
	Resume     time.Duration `placeholder:"DURATION" help:"How long the shell waits for its person when the connection is lost; the gateway's TERMGW_RESUME caps it."`
	Issuer     string        `placeholder:"ISS" help:"The iss claim, where the gateway asks for one."`
	Audience   string        `default:"termgw" help:"The aud claim (${default})."`
}

// Run prints the ticket and a newline on standard output.
func (c *MintCmd) Run(std *stdio) error {
	if c.TTL < time.Second {
		return fmt.Errorf("--ttl %s: want a second or more", c.TTL)
	}
	key, err := readTicketKey(c.Key)
	if err != nil {
		return err
	}
	minter, err := ticket.NewMinter(key)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Key, err)
	}
	now := time.Now()
	raw, err := minter.Mint(ticket.Claims{
		Issuer:      c.Issuer,
		Audience:    []string{c.Audience},
		Subject:     c.Subject,
		IssuedAt:    now,
		Expires:     now.Add(c.TTL),
		WorkspaceID: c.Workspace,
		Mode:        ticket.Mode(c.Mode),
		MaxSession:  c.MaxSession,
		Resume:      c.Resume,
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(std.Out, raw)
	return err
}

func readTicketKey(path string) (jose.JSONWebKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return jose.JSONWebKey{}, err
	}
	var key jose.JSONWebKey
	// The decoder's error may quote the file, which is secret.
	if err := json.Unmarshal(data, &key); err != nil {
		return jose.JSONWebKey{}, fmt.Errorf("%s: not a JWK, as 'termgw ticket keygen' writes it", path)
	}
	return key, nil
}

// VerifyCmd checks a ticket as the gateway does, except for its single use. The ticket
// is not an argument: every user of the machine can read a command line.
type VerifyCmd struct {
	JWKS     string        `name:"jwks" required:"" placeholder:"FILE|URL" help:"JWK Set: a file or an https URL."`
	Issuer   string        `placeholder:"ISS" help:"Required iss; any if left out."`
	Audience string        `default:"termgw" help:"Required aud (${default})."`
	MaxTTL   time.Duration `name:"max-ttl" default:"60s" help:"Longest life of a ticket (${default})."`
}

// Run prints the claims as JSON, or returns the reason of the refusal.
func (c *VerifyCmd) Run(ctx context.Context, std *stdio) error {
	keys, err := ticket.OpenKeys(ticket.KeysConfig{Location: c.JWKS})
	if err != nil {
		return err
	}
	const enough = 64 << 10 // more than the longest ticket that Verify takes
	input, err := io.ReadAll(io.LimitReader(std.In, enough))
	if err != nil {
		return fmt.Errorf("reading the ticket from standard input: %w", err)
	}
	verifier := ticket.NewVerifier(ticket.VerifierConfig{
		Keys:     keys,
		Issuer:   c.Issuer,
		Audience: c.Audience,
		MaxTTL:   c.MaxTTL,
	})
	claims, err := verifier.Verify(ctx, strings.TrimSpace(string(input)))
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(std.Out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(claims)
}
