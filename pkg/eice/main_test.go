package eice

import (
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"go.uber.org/goleak"

	"github.com/molecule-ai/termgw/internal/awsplay"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// The tests of what hangs or is tried again mostly wait.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what a busy machine does late.
const patience = 3 * time.Minute

const (
	instanceID = "i-0123456789abcdef0"
	endpointID = "eice-0123456789abcdef0"
	privateIP  = "10.0.0.5"
	accountID  = "123456789012"
	publicKey  = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEUwSLuvlcpyY4dF5UkAIjJQJqaf8pWcHHMvYGkY9qWp"
)

var keys = awsplay.Credentials{
	AccessKeyID: "AKIAEXAMPLEEXAMPLE00", SecretAccessKey: "secret/of+the/gateway",
	SessionToken: "a/session+token=that/is/signed",
}

// world is a played AWS with one running instance, which echoes, and a client.
type world struct {
	play   *awsplay.Server
	client *Client
	config Config
	// ahead is how far the played AWS's clock is before ours, and later how far
	// the client's own (but not the SDK's) moves.
	ahead, later atomic.Int64
}

func newWorld(t testing.TB, change func(*world, *Config)) *world {
	t.Helper()
	return newWorldIn(t, "us-east-1", change)
}

func newWorldIn(t testing.TB, region string, change func(*world, *Config)) *world {
	t.Helper()
	w := &world{}
	play, err := awsplay.New(awsplay.Config{
		Region: region, Account: accountID, Credentials: keys,
		Now: func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	w.play = play
	if _, err := play.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	play.PutInstance(awsplay.Instance{ID: instanceID, PrivateIP: privateIP, Target: listen(t, echo)})
	play.PutEndpoint(awsplay.Endpoint{ID: endpointID})
	t.Cleanup(func() {
		if err := play.Close(); err != nil {
			t.Error(err)
		}
	})
	w.config = Config{
		AWS: aws.Config{
			Region: region,
			Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: keys.AccessKeyID, SecretAccessKey: keys.SecretAccessKey, SessionToken: keys.SessionToken}, nil
			}),
			HTTPClient: httpClient(play, play.CAPEM()),
		},
		Now: func() time.Time { return time.Now().Add(time.Duration(w.later.Load())) },
	}
	if change != nil {
		change(w, &w.config)
	}
	w.client = newPatient(w.config)
	return w
}

// newPatient is New of a client whose steps may take as long as on a busy machine.
func newPatient(c Config) *Client {
	client := New(c)
	client.stepTime = patience
	return client
}

// httpClient reaches the played AWS under AWS's own names.
func httpClient(play *awsplay.Server, roots []byte) *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().WithTransportOptions(func(tr *http.Transport) {
		tr.Proxy = nil
		tr.DialContext = play.Dial
		tr.TLSClientConfig.RootCAs = x509.NewCertPool()
		tr.TLSClientConfig.RootCAs.AppendCertsFromPEM(roots)
	})
}

// listen is an instance's sshd.
func listen(t testing.TB, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { handle(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func echo(conn net.Conn) {
	defer conn.Close()
	_, _ = io.Copy(conn, conn)
}

func (w *world) locate(t testing.TB) Route {
	t.Helper()
	route, err := w.client.Locate(t.Context(), Instance{ID: instanceID})
	if err != nil {
		t.Fatal(err)
	}
	return route
}

// open opens a tunnel that the test's end closes.
func (w *world) open(t testing.TB, life time.Duration) net.Conn {
	t.Helper()
	conn, _, err := w.client.OpenTunnel(t.Context(), w.locate(t), life)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

var forbidden = regexp.MustCompile(`arn:aws[a-z-]*:|\d{12}|://|(?i:x-amz-)|AKIA|AAAAC3Nza|` +
	regexp.QuoteMeta(keys.SecretAccessKey) + `|` + regexp.QuoteMeta(keys.SessionToken))

func wantDetail(t testing.TB, err error, want Detail) {
	t.Helper()
	if got := wantFault(t, err); got != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// wantFault checks that an error tells a person what to do and nobody a secret.
func wantFault(t testing.TB, err error) Detail {
	t.Helper()
	failed, ok := errors.AsType[*Error](err)
	if !ok {
		t.Errorf("got %v, want an *Error", err)
		return ""
	}
	if failed.Sentence() == "" {
		t.Errorf("the sentence is %q", failed.Sentence())
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		if text := e.Error() + failed.Sentence(); forbidden.MatchString(text) {
			t.Errorf("%q shows %q", text, forbidden.FindString(text))
		}
	}
	return failed.Detail
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for timeout := time.After(patience); !ok(); {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("not so after %s: %s", patience, what)
		}
	}
}
