package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/lib/pq"
)

// Token returns a password for one connection: a token for the user at endpoint, host:port. An empty region is the process's own.
type Token func(ctx context.Context, region, endpoint, user string) (string, error)

// The options of a URL that are termgw's own: the password is a Token, for a region.
const (
	optionIAM    = "aws_iam"
	optionRegion = "aws_region"
)

// maxURL bounds the file with the database's URL, in bytes.
const maxURL = 64 << 10

// source is where the URL of a connection is from. It is asked anew for each connection, so that a password that is rotated
// needs no restart.
type source struct {
	url, file string
	token     Token
}

func (c PostgresConfig) source() source { return source{c.URL, c.URLFile, c.Token} }

// parse returns the URL as it is now, also as lib/pq takes it. No error has the URL or a part of it that may be secret.
func (s source) parse() (dsn string, cfg pq.Config, err error) {
	given := s.url
	if s.file != "" {
		if given, err = readURL(s.file); err != nil {
			return "", pq.Config{}, fmt.Errorf("database URL: %w", err)
		}
	}
	if dsn, cfg, err = parseURL(given); err != nil {
		return "", pq.Config{}, err
	}
	iam, region := cfg.Runtime[optionIAM], cfg.Runtime[optionRegion]
	switch {
	case iam == "" && region == "":
	case iam != "true":
		return "", pq.Config{}, errors.New("database URL: aws_iam is true or not there, and aws_region goes with it")
	case s.token == nil:
		return "", pq.Config{}, errors.New("database URL: aws_iam is not possible here")
	case !strings.Contains(dsn, "://"):
		return "", pq.Config{}, errors.New("database URL: aws_iam is an option of a postgres:// URL, not of a key=value string")
	case cfg.Password != "":
		return "", pq.Config{}, errors.New("database URL: with aws_iam the password is a token of AWS's: leave the password out")
	case cfg.User == "" || strings.HasPrefix(cfg.Host, "/") || len(cfg.Multi) > 0:
		return "", pq.Config{}, errors.New("database URL: aws_iam wants a user and one host, by the name that RDS has given it")
	case !slices.Contains([]pq.SSLMode{pq.SSLModeRequire, pq.SSLModeVerifyCA, pq.SSLModeVerifyFull}, cfg.SSLMode):
		return "", pq.Config{}, errors.New("database URL: aws_iam wants sslmode=verify-full: whoever sees the token can log in with it")
	}
	return dsn, cfg, nil
}

// read returns the URL of one connection as parse does, with its password.
func (s source) read(ctx context.Context) (dsn string, cfg pq.Config, err error) {
	dsn, cfg, err = s.parse()
	if err != nil || cfg.Runtime[optionIAM] == "" {
		return dsn, cfg, err
	}
	token, err := s.token(ctx, cfg.Runtime[optionRegion], net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port))), cfg.User)
	if err != nil {
		return "", pq.Config{}, fmt.Errorf("a token for the database: %w", err)
	}
	u, err := url.Parse(dsn)
	if err != nil {
		return "", pq.Config{}, errors.New("database URL: not a URL")
	}
	q := u.Query()
	q.Del(optionIAM)
	q.Del(optionRegion)
	u.RawQuery, u.User = q.Encode(), url.UserPassword(cfg.User, token)
	return parseURL(u.String())
}

// readURL reads a file that holds a URL.
func readURL(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // it was only read
	b, err := io.ReadAll(io.LimitReader(f, maxURL+1))
	if err == nil && len(b) > maxURL {
		err = fmt.Errorf("%s has more than %d bytes", name, maxURL)
	}
	return string(b), err
}
