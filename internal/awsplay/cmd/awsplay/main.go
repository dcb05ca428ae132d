// Command awsplay runs the played AWS, for trials by hand:
//
//	go run ./internal/awsplay/cmd/awsplay --instance i-0123456789abcdef0=10.0.0.5=127.0.0.1:22
//
// It prints the settings for a gateway's environment, /etc/hosts and sshd.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/molecule-ai/termgw/internal/awsplay"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "awsplay:", err)
		os.Exit(1)
	}
}

const endpointID = "eice-0123456789abcdef0"

func run() error {
	listen := []string{}
	flag.Func("listen", "HTTPS address, more than once (default 127.0.0.1:443)", func(s string) error {
		listen = append(listen, s)
		return nil
	})
	instances := []awsplay.Instance{}
	flag.Func("instance", "ID=PRIVATE_IP=SSHD_ADDRESS, more than once", func(s string) error {
		parts := strings.Split(s, "=")
		if len(parts) != 3 {
			return errors.New("want ID=PRIVATE_IP=SSHD_ADDRESS")
		}
		instances = append(instances, awsplay.Instance{ID: parts[0], PrivateIP: parts[1], Target: parts[2]})
		return nil
	})
	keys := flag.String("keys", "127.0.0.1:8022", "plain HTTP address for sshd's AuthorizedKeysCommand")
	ca := flag.String("ca", filepath.Join(os.TempDir(), "awsplay-ca.pem"), "file to write the CA's certificate to")
	flag.Parse()
	if len(listen) == 0 {
		listen = []string{"127.0.0.1:443"}
	}

	creds := awsplay.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "a-played-secret"}
	s, err := awsplay.New(awsplay.Config{Credentials: creds, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	for _, i := range instances {
		s.PutInstance(i)
	}
	endpoint := s.PutEndpoint(awsplay.Endpoint{ID: endpointID})
	if err := os.WriteFile(*ca, s.CAPEM(), 0o600); err != nil {
		return fmt.Errorf("writing the CA: %w", err)
	}
	var bound []net.Addr
	for _, address := range listen {
		addr, err := s.Listen(address)
		if err != nil {
			return err
		}
		bound = append(bound, addr)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	web := &http.Server{Addr: *keys, Handler: s.Keys(), ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = web.Close() })()
	fmt.Printf("export AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s\n", creds.AccessKeyID, creds.SecretAccessKey)
	fmt.Printf("export AWS_ENDPOINT_URL=https://%s AWS_CA_BUNDLE=%s SSL_CERT_FILE=%s\n", bound[0], *ca, *ca)
	fmt.Printf("# /etc/hosts: 127.0.0.1 %s\n", endpoint.DNSName)
	fmt.Printf("# sshd: AuthorizedKeysCommand /usr/bin/curl -sf http://%s/INSTANCE_ID/%%u\n", *keys)
	if err := web.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving keys: %w", err)
	}
	return nil
}
