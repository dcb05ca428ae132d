package ticket_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/molecule-ai/termgw/pkg/ticket"
)

// openMinter reads the key that `termgw ticket keygen` wrote.
func openMinter(path string) (*ticket.Minter, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var key jose.JSONWebKey
	if json.Unmarshal(data, &key) != nil {
		return nil, fmt.Errorf("%s is no JWK", path) // the decoder's own error may quote the secret
	}
	return ticket.NewMinter(key)
}

// ticketFor is called when the platform knows who asks, and that this person
// may open this workspace: the gateway takes the ticket's word for both.
func ticketFor(minter *ticket.Minter, person, workspace string) (string, error) {
	return minter.Mint(ticket.Claims{
		Issuer:      "https://platform.example",
		Subject:     person,
		WorkspaceID: workspace,
	})
}

// The platform mints, the gateway verifies.
func Example() {
	path, set, remove := exampleKey()
	defer remove()

	minter, err := openMinter(path)
	if err != nil {
		panic(err)
	}
	raw, err := ticketFor(minter, "ann@example.com", "ws-1")
	if err != nil {
		panic(err)
	}

	verifier := ticket.NewVerifier(ticket.VerifierConfig{Keys: set, Issuer: "https://platform.example"})
	claims, err := verifier.Verify(context.Background(), raw)
	if err != nil {
		panic(err)
	}
	fmt.Println(claims.Subject, claims.WorkspaceID, claims.Mode, claims.Audience, claims.Expires.Sub(claims.IssuedAt))
	// Output: ann@example.com ws-1 rw [termgw] 1m0s
}

// exampleKey does what keygen does.
func exampleKey() (path string, set *ticket.Keys, remove func()) {
	key, err := ticket.GenerateKey("EdDSA")
	if err != nil {
		panic(err)
	}
	data, err := json.Marshal(key)
	if err != nil {
		panic(err)
	}
	dir, err := os.MkdirTemp("", "ticket-")
	if err != nil {
		panic(err)
	}
	path = filepath.Join(dir, "ticket.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		panic(err)
	}
	return path, ticket.StaticKeys(key), func() { _ = os.RemoveAll(dir) }
}
