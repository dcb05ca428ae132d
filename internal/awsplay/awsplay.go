// Package awsplay plays the part of AWS that opens a way to an instance, for tests and for trials by hand: the EC2
// query API (DescribeInstances, DescribeInstanceConnectEndpoints), STS's AssumeRole, SendSSHPublicKey, RDS's tokens, and openTunnel of an
// EC2 Instance Connect Endpoint. It verifies each signature with its own code, honours the lives of keys and tunnels, and fails when
// told to (Fail).
//
// It plays nothing else and uses no AWS SDK: as far as AWS's documents and AWS's own CLI show, AWS accepts what the
// package accepts.
package awsplay

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Op is a call that Calls counts and Fail makes fail.
type Op string

// The calls.
const (
	DescribeInstances Op = "DescribeInstances"
	DescribeEndpoints Op = "DescribeInstanceConnectEndpoints"
	SendSSHPublicKey  Op = "SendSSHPublicKey"
	OpenTunnel        Op = "openTunnel"
	AssumeRole        Op = "AssumeRole"
)

// Config holds the parameters of New. All fields but Credentials have a default.
type Config struct {
	Region      string // default us-east-1
	Account     string // default 123456789012; error messages hold it, and a gateway must not show it
	Credentials Credentials
	Now         func() time.Time // default time.Now
	KeyLife     time.Duration    // how long a pushed key allows logins; default 60 s, AWS's
	Log         *slog.Logger     // nil: silent
}

// Request is a call with a correct signature, and whose it was. A denied call is one, too.
type Request struct {
	Op             Op
	ID             string // as the answer had it
	Account        string
	Role           string // the ARN of the assumed role; empty: the credentials of Config
	SourceIdentity string
}

// Credentials are the credentials that requests must be signed with.
type Credentials struct {
	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string // empty: requests must have none
	Expired         bool   // a correct signature gets the error of an expired token
}

// Instance is an EC2 instance.
type Instance struct {
	ID        string
	State     string // default running
	PrivateIP string // empty: none
	IPv6      string // empty: none
	VPC       string // default vpc-0123456789abcdef0
	Subnet    string // default subnet-0123456789abcdef0
	// Target is the TCP address that tunnels to port 22 lead to; empty: none, as with a closed security group.
	Target string
	// OSUsers are the users for whom IAM allows keys to be pushed; empty: all users.
	OSUsers []string
	Account string // default Config.Account: the others do not see it
}

// Endpoint is an EC2 Instance Connect Endpoint.
type Endpoint struct {
	ID         string
	DNSName    string // default: made of ID and region, as AWS does
	NoFIPS     bool   // the endpoint has no FIPS name
	VPC        string // default vpc-0123456789abcdef0
	Subnet     string // default subnet-0123456789abcdef0
	State      string // default create-complete
	MaxTunnels int    // default 20
	// AddressType is ipv4, dualstack or ipv6: the addresses that tunnels lead to. Empty is ipv4, in an answer from before
	// there were types.
	AddressType string
	// DualStackName is the endpoint's dual-stack name; empty: none. Its FIPS name is made of it, unless NoFIPS.
	DualStackName string
	Account       string // default Config.Account: the others do not see it
}

// Role is an IAM role that the credentials of Config may assume.
type Role struct {
	ARN string
	// SourceIdentity has the trust policy require a source identity; else it allows none.
	SourceIdentity bool
}

// Fault is the way in which a call fails.
type Fault struct {
	// Status, Code and Message are the answer, in the call's own protocol.
	Status  int
	Code    string
	Message string
	// Body, if set, is the whole body of an answer with Status.
	Body string
	// CloseReason, if set, is the reason with which a tunnel is closed as soon as it is open.
	CloseReason string
	// Hang leaves the call unanswered until the client leaves.
	Hang bool
	// Times is the number of calls that fail; 0: all. Then is the fault of those after them; nil: none.
	Times int
	Then  *Fault
}

// Server is the played AWS. Its methods may be called concurrently.
type Server struct {
	cfg  Config
	ca   *authority
	http *http.Server
	wg   sync.WaitGroup // listeners and tunnels
	done chan struct{}

	mu          sync.Mutex
	creds       Credentials
	issued      map[string]session // by access key
	roles       map[string]Role
	requests    []Request
	answered    int
	instances   map[string]Instance
	endpoints   map[string]Endpoint
	endpointIDs []string // in the order of PutEndpoint
	faults      map[Op]Fault
	calls       map[Op]int
	keys        map[login][]pushed
	tunnels     map[*tunnel]struct{}
	cutAfter    int64
	first       net.Addr
	closed      bool
}

// maxBody bounds a request's body, in bytes. EC2's forms and keys are small.
const maxBody = 64 << 10

// New returns a server with a new CA, which does not listen yet. The caller closes the server.
func New(cfg Config) (*Server, error) {
	cfg.Region = cmp.Or(cfg.Region, "us-east-1")
	cfg.Account = cmp.Or(cfg.Account, "123456789012")
	cfg.KeyLife = cmp.Or(cfg.KeyLife, 60*time.Second)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Credentials.AccessKeyID == "" || cfg.Credentials.SecretAccessKey == "" {
		return nil, errors.New("playing AWS: no credentials to check")
	}
	ca, err := newAuthority()
	if err != nil {
		return nil, fmt.Errorf("playing AWS: %w", err)
	}
	s := &Server{
		cfg: cfg, ca: ca, creds: cfg.Credentials, done: make(chan struct{}),
		issued: map[string]session{}, roles: map[string]Role{}, instances: map[string]Instance{}, endpoints: map[string]Endpoint{}, faults: map[Op]Fault{},
		calls: map[Op]int{}, keys: map[login][]pushed{}, tunnels: map[*tunnel]struct{}{},
	}
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if secure, ok := conn.(*tls.Conn); ok {
				conn = secure.NetConn()
			}
			return context.WithValue(ctx, wireKey{}, conn)
		},
	}
	return s, nil
}

// wireKey is the key of a request's connection in the request's context.
type wireKey struct{}

// Listen serves HTTPS at one more address, and returns the bound address.
func (s *Server) Listen(address string) (net.Addr, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("playing AWS: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = l.Close()
		return nil, errors.New("playing AWS: closed")
	}
	if s.first == nil {
		s.first = l.Addr()
	}
	secure := tls.NewListener(wireListener{l}, &tls.Config{
		MinVersion: tls.VersionTLS12, GetCertificate: s.ca.certificate, NextProtos: []string{"http/1.1"},
	})
	s.wg.Go(func() {
		if err := s.http.Serve(secure); !errors.Is(err, http.ErrServerClosed) {
			s.cfg.Log.Error("serving", "err", err)
		}
	})
	return l.Addr(), nil
}

// Dial connects to the server's first listener, whatever the address: so a client reaches the server by AWS's own
// names, and still checks the certificates.
func (s *Server) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	s.mu.Lock()
	first := s.first
	s.mu.Unlock()
	if first == nil {
		return nil, errors.New("dialling the played AWS: it does not listen")
	}
	return new(net.Dialer).DialContext(ctx, first.Network(), first.String())
}

// Close ends listeners, requests and tunnels, and joins their goroutines.
func (s *Server) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	s.mu.Unlock()
	s.Cut() // first: http.Server.Close would wait for the TLS close of a stalled connection
	err := s.http.Close()
	s.wg.Wait()
	return err
}

// CAPEM returns the CA's certificate, for clients to trust.
func (s *Server) CAPEM() []byte { return s.ca.pem() }

// PutInstance adds or replaces an instance.
func (s *Server) PutInstance(i Instance) {
	i.State = cmp.Or(i.State, "running")
	i.VPC = cmp.Or(i.VPC, "vpc-0123456789abcdef0")
	i.Subnet = cmp.Or(i.Subnet, "subnet-0123456789abcdef0")
	i.Account = cmp.Or(i.Account, s.cfg.Account)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances[i.ID] = i
}

// PutEndpoint adds or replaces an endpoint, and returns it with its defaults.
func (s *Server) PutEndpoint(e Endpoint) Endpoint {
	e.DNSName = cmp.Or(e.DNSName, e.ID+".0a1b2c3d.ec2-instance-connect-endpoint."+s.cfg.Region+".amazonaws.com")
	e.VPC = cmp.Or(e.VPC, "vpc-0123456789abcdef0")
	e.Subnet = cmp.Or(e.Subnet, "subnet-0123456789abcdef0")
	e.State = cmp.Or(e.State, "create-complete")
	e.MaxTunnels = cmp.Or(e.MaxTunnels, 20)
	e.Account = cmp.Or(e.Account, s.cfg.Account)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, old := s.endpoints[e.ID]; !old {
		s.endpointIDs = append(s.endpointIDs, e.ID)
	}
	s.endpoints[e.ID] = e
	return e
}

// PutRole adds or replaces a role.
func (s *Server) PutRole(r Role) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roles[r.ARN] = r
}

// RevokeRoles makes the credentials of all assumed roles invalid.
func (s *Server) RevokeRoles() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.issued)
}

// SetCredentials replaces the credentials that requests must be signed with.
func (s *Server) SetCredentials(c Credentials) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.creds = c
}

// Fail makes calls of op fail from now on.
func (s *Server) Fail(op Op, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[op] = f
}

// Heal ends all faults and undoes CutAfter.
func (s *Server) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.faults)
	s.cutAfter = 0
}

// Calls returns how many calls of op were made, answered or not.
func (s *Server) Calls(op Op) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[op]
}

// Requests returns the calls with a correct signature so far, in order.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// record adds to Requests.
func (s *Server) record(w http.ResponseWriter, op Op, who session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, Request{op, w.Header().Get(requestIDHeader), who.account, who.role, who.sourceIdentity})
}

// begin counts a call and returns its fault, if there is one.
func (s *Server) begin(op Op) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[op]++
	f, ok := s.faults[op]
	if ok && f.Times > 0 {
		switch f.Times--; {
		case f.Times > 0:
			s.faults[op] = f
		case f.Then != nil:
			s.faults[op] = *f.Then
		default:
			delete(s.faults, op)
		}
	}
	return f, ok
}

// requestIDHeader is the header with a request's id, which an answer's body repeats.
const requestIDHeader = "X-Amzn-Requestid"

// protocol writes a denial as one service's error.
type protocol func(w http.ResponseWriter, d denial)

// denial is an error answer of AWS.
type denial struct {
	status        int
	code, message string
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	// net/http's own Date would be the machine's, not that of cfg.Now.
	w.Header().Set("Date", s.cfg.Now().UTC().Format(http.TimeFormat))
	s.mu.Lock()
	s.answered++
	w.Header().Set(requestIDHeader, fmt.Sprintf("%08x-0000-4000-8000-abcdef%06x", s.answered, s.answered))
	s.mu.Unlock()
	if r.URL.Path == "/openTunnel" {
		s.serveTunnel(w, r)
		return
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return // the client has left, or has sent too much
	}
	r.Body = io.NopCloser(bytes.NewReader(raw))
	switch {
	case r.URL.Path != "/" || r.Method != http.MethodPost:
		http.NotFound(w, r)
	case r.Header.Get("X-Amz-Target") != "":
		s.serveKey(w, r, raw)
	default:
		s.serveEC2(w, r, raw)
	}
}

// playFault counts a call, and reports whether it has answered the call with a fault.
func (s *Server) playFault(w http.ResponseWriter, r *http.Request, op Op, tell protocol) bool {
	f, ok := s.begin(op)
	return ok && s.answer(w, r, f, tell)
}

// answer answers a call with a fault. It reports false for CloseReason, which lets the tunnel open first.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, f Fault, tell protocol) bool {
	switch {
	case f.CloseReason != "":
		return false
	case f.Hang:
		select {
		case <-r.Context().Done():
		case <-s.done:
		}
		panic(http.ErrAbortHandler) // a return would be a late 200
	case f.Body != "":
		w.WriteHeader(f.Status)
		_, _ = io.WriteString(w, f.Body) // the client may have left
	default:
		tell(w, denial{f.Status, f.Code, f.Message})
	}
	return true
}

// unauthorised is AWS's message for a denied action, with an account id and ARNs, which a gateway must not show.
func (s *Server) unauthorised(action string) string {
	return fmt.Sprintf("User: arn:aws:sts::%[1]s:assumed-role/gateway/session is not authorized to perform: %[2]s on resource: "+
		"arn:aws:ec2:%[3]s:%[1]s:instance/*", s.cfg.Account, action, s.cfg.Region)
}
