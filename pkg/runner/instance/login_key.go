package instance

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"net"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// loginKey is a key for one login. The private key is in memory alone: an agent on a
// socket signs with it until close.
type loginKey struct {
	public   string // a line as in authorized_keys
	listener net.Listener
	erase    func()
	keys     agent.Agent
	wg       sync.WaitGroup

	mu     sync.Mutex
	conns  []net.Conn
	closed bool
}

// keyType is the type of a login's key.
//
// EC2 Instance Connect takes Ed25519 and RSA, and no ECDSA: on the instance, eic_parse_authorized_keys drops each line that
// does not begin with "ssh". An sshd in FIPS mode takes no Ed25519, so it gets RSA.
type keyType int

const (
	keyEd25519 keyType = iota
	keyRSA
)

// other returns the type that may be taken where this one is not.
func (t keyType) other() keyType { return keyRSA - t }

// rsaBits is the size of an RSA key that EC2 Instance Connect takes and that is made soonest (100 ms, measured); it has to
// hold for a minute.
const rsaBits = 2048

// generate makes a key. erase overwrites its private half, which Go offers for no RSA key.
func (t keyType) generate() (secret crypto.Signer, erase func(), err error) {
	if t == keyRSA {
		key, err := rsa.GenerateKey(rand.Reader, rsaBits)
		if err != nil {
			return nil, nil, fmt.Errorf("making a key: %w", err)
		}
		return key, func() {}, nil
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	return key, func() { clear(key) }, nil
}

// newLoginKey makes a key and serves its agent at path, in a private directory.
func newLoginKey(path string, t keyType) (*loginKey, error) {
	secret, erase, err := t.generate()
	if err != nil {
		return nil, err
	}
	line, err := ssh.NewPublicKey(secret.Public())
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	k := &loginKey{public: lineOf(line), erase: erase, keys: agent.NewKeyring()}
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
	k.erase()
}
