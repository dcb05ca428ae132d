package instance

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"net"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// loginKey is a key for one login. The private key is in memory alone: an agent on a
// socket signs with it until close.
type loginKey struct {
	public   string // a line as in authorized_keys
	listener net.Listener
	secret   ed25519.PrivateKey
	keys     agent.Agent
	wg       sync.WaitGroup

	mu     sync.Mutex
	conns  []net.Conn
	closed bool
}

// newLoginKey makes a key and serves its agent at path, in a private directory.
func newLoginKey(path string) (*loginKey, error) {
	public, secret, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	line, err := ssh.NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	k := &loginKey{
		public: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(line))),
		secret: secret, keys: agent.NewKeyring(),
	}
	if err := k.keys.Add(agent.AddedKey{PrivateKey: secret}); err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	if k.listener, err = net.Listen("unix", path); err != nil {
		return nil, fmt.Errorf("serving a key: %w", err)
	}
	k.wg.Go(k.serve)
	return k, nil
}

// fingerprint returns the key's fingerprint as sshd logs it.
func (k *loginKey) fingerprint() string { return fingerprint(k.public) }

// fingerprint returns the fingerprint of a public key, a line as in authorized_keys; empty:
// the line is none.
func fingerprint(line string) string {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return ""
	}
	return ssh.FingerprintSHA256(key)
}

func (k *loginKey) serve() {
	for {
		conn, err := k.listener.Accept()
		if err != nil {
			return
		}
		k.mu.Lock()
		if k.closed {
			_ = conn.Close()
		} else {
			k.conns = append(k.conns, conn)
			k.wg.Go(func() { _ = agent.ServeAgent(k.keys, conn) }) // ends with the connection
		}
		k.mu.Unlock()
	}
}

// close ends the agent and erases the key.
func (k *loginKey) close() {
	k.mu.Lock()
	k.closed = true
	_ = k.listener.Close()
	for _, conn := range k.conns {
		_ = conn.Close()
	}
	k.mu.Unlock()
	k.wg.Wait()
	_ = k.keys.RemoveAll()
	clear(k.secret)
}
