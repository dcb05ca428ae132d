package gateway

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// TLSFiles are the files of a listener's certificate (PEM).
type TLSFiles struct {
	Cert, Key string
	ClientCA  string // clients need a certificate of one of its CAs; empty: they need none
}

// lookEvery is how often the files are looked at, at most: at a handshake.
const lookEvery = time.Second

// certificates has the certificate of a listener. The files are read again when one has changed; what cannot be used
// then is logged, and the last good ones stay.
type certificates struct {
	files TLSFiles
	log   *slog.Logger
	now   func() time.Time

	mu     sync.Mutex
	looked time.Time
	seen   []os.FileInfo // the files that config is of
	failed string        // the error that was logged last
	config *tls.Config
}

func openCertificates(files TLSFiles, log *slog.Logger) (*certificates, error) {
	c := &certificates{files: files, log: log, now: time.Now}
	c.looked = c.now()
	if err := c.read(); err != nil {
		return nil, err
	}
	return c, nil
}

// server returns the settings of a server, whose every connection has the certificate of that moment.
func (c *certificates) server() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current(), nil },
	}
}

// present returns the certificate for a server that asks for one: another replica's.
func (c *certificates) present(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return &c.current().Certificates[0], nil
}

func (c *certificates) current() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); now.Sub(c.looked) >= lookEvery {
		c.looked = now
		if c.changed() {
			err := c.read()
			if err != nil && err.Error() != c.failed {
				c.failed = err.Error()
				c.log.Warn("the TLS certificate was not read again; the last good one is used", "err", err)
			}
		}
	}
	return c.config
}

func (f TLSFiles) names() []string {
	if f.ClientCA == "" {
		return []string{f.Cert, f.Key}
	}
	return []string{f.Cert, f.Key, f.ClientCA}
}

// changed reports whether a file is another one than was read, or was written since.
func (c *certificates) changed() bool {
	for i, name := range c.files.names() {
		now, err := os.Stat(name)
		if err != nil || !os.SameFile(now, c.seen[i]) || now.Size() != c.seen[i].Size() || !now.ModTime().Equal(c.seen[i].ModTime()) {
			return true
		}
	}
	return false
}

// read reads the files. No error has a byte of the key.
func (c *certificates) read() error {
	var seen []os.FileInfo
	for _, name := range c.files.names() {
		info, err := os.Stat(name) // before the file is read: what is written meanwhile is seen the next time
		if err != nil {
			return fmt.Errorf("TERMGW_TLS_*: %w", err)
		}
		seen = append(seen, info)
	}
	pair, err := tls.LoadX509KeyPair(c.files.Cert, c.files.Key)
	if err != nil {
		return fmt.Errorf("TERMGW_TLS_CERT, TERMGW_TLS_KEY: %w", err)
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair},
		NextProtos: []string{"http/1.1"}, // a WebSocket is an HTTP/1.1 upgrade
	}
	if c.files.ClientCA != "" {
		if config.ClientCAs, err = readCAs(c.files.ClientCA); err != nil {
			return fmt.Errorf("TERMGW_TLS_CLIENT_CA: %w", err)
		}
		config.ClientAuth = tls.RequireAndVerifyClientCert
		config.SessionTicketsDisabled = true // a resumed session would go by the CAs of its first handshake
	}
	renewed := c.config != nil
	c.config, c.seen, c.failed = config, seen, ""
	c.log.Info("TLS certificate read", "again", renewed, "names", pair.Leaf.DNSNames, "not_after", pair.Leaf.NotAfter, "client_ca", c.files.ClientCA != "")
	if c.now().After(pair.Leaf.NotAfter) {
		c.log.Warn("the TLS certificate has expired", "not_after", pair.Leaf.NotAfter)
	}
	return nil
}

func readCAs(name string) (*x509.CertPool, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if bytes.Contains(text, []byte("PRIVATE KEY-----")) {
		return nil, errors.New("the file has a private key: it should have certificates alone")
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s has no certificate in PEM", name)
	}
	return pool, nil
}
