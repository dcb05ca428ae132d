package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kelseyhightower/envconfig"

	"github.com/molecule-ai/termgw/internal/gateway"
	"github.com/molecule-ai/termgw/internal/logline"
	"github.com/molecule-ai/termgw/pkg/eice"
	"github.com/molecule-ai/termgw/pkg/router"
	"github.com/molecule-ai/termgw/pkg/runner/instance"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// environment holds the variables as text: parse lists every fault, while envconfig
// would stop at the first. A variable's name comes from its field: given the name by a
// tag, envconfig would also read the variable of that name without the prefix.
type environment struct {
	Listen           string `default:":8080" desc:"Terminal endpoint, /healthz, /readyz: host:port, unix:/PATH, or systemd[:NAME], a socket that systemd passes"`
	ListenMode       string `split_words:"true" default:"0660" desc:"File mode of the sockets of unix:/PATH"`
	TLSCert          string `split_words:"true" desc:"TLS on TERMGW_LISTEN: file of the certificate and its chain (PEM), re-read when it changes"`
	TLSKey           string `split_words:"true" desc:"File of the certificate's private key (PEM), re-read when it changes"`
	TLSClientCA      string `split_words:"true" desc:"Clients need a certificate of one of these CAs: a file (PEM), re-read when it changes"`
	ProxyProtocol    string `split_words:"true" default:"false" desc:"true: connections of TERMGW_TRUSTED_PROXIES begin with a PROXY protocol header, version 2"`
	AdminListen      string `split_words:"true" default:"127.0.0.1:9090" desc:"/metrics, /healthz and /readyz for operators; forms as of TERMGW_LISTEN; empty turns it off"`
	PprofListen      string `split_words:"true" desc:"Go's profiles, /debug/pprof/; forms as of TERMGW_LISTEN; empty: none"`
	BasePath         string `split_words:"true" desc:"Prefix before /workspaces"`
	DatabaseURL      string `split_words:"true" desc:"Postgres; without it, TERMGW_WORKSPACES_FILE"`
	DatabaseURLFile  string `split_words:"true" desc:"File with the URL instead of TERMGW_DATABASE_URL, read anew for each connection"`
	DatabaseMaxConns string `split_words:"true" default:"10" desc:"Connections to the database at most, besides the one that listens for revocations"`
	AuditRetention   string `split_words:"true" default:"2160h" desc:"How long sessions and revocations stay in the database; 0: for ever"`
	WorkspacesFile   string `split_words:"true" desc:"For one replica without a database: JSON array of {\"id\",\"name\",…}"`
	WorkspaceQuery   string `split_words:"true" desc:"Finds a workspace's row by $1, its id; see docs"`
	TicketJWKS       string `split_words:"true" desc:"Required: JWK Set that tickets are verified with, a file or an https URL"`
	TicketIssuer     string `split_words:"true" desc:"If set, the required iss"`
	TicketAudience   string `split_words:"true" default:"termgw" desc:"Required aud"`
	TicketMaxTTL     string `split_words:"true" default:"60s" desc:"Longest life of a ticket"`
	AllowedOrigins   string `split_words:"true" desc:"Origins besides the gateway's own: scheme://host[:port], comma-separated"`
	TrustedProxies   string `split_words:"true" desc:"CIDRs whose X-Forwarded-For/-Proto/-Host and traceparent are believed, comma-separated; unix: for the peers of a unix socket"`

	PingInterval            string `split_words:"true" default:"25s" desc:"Two unanswered pings: the client is gone"`
	IdleTimeout             string `split_words:"true" default:"30m" desc:"A terminal without input for so long is closed"`
	MaxSession              string `split_words:"true" default:"8h" desc:"Longest life of a terminal"`
	Resume                  string `split_words:"true" default:"0s" desc:"Longest time that a shell waits for its person when the connection is lost; 0: it ends with it"`
	AdvertiseURL            string `split_words:"true" desc:"Where other replicas reach this one, http(s)://host:port; empty: only this replica resumes its sessions"`
	MaxSessions             string `split_words:"true" default:"0" desc:"Terminals at once on this replica; 0: as many as its descriptors allow (ulimit -n)"`
	MaxSessionsPerWorkspace string `split_words:"true" default:"0" desc:"Terminals at once in one workspace, over all replicas; 0: no limit"`
	MaxSessionsPerSubject   string `split_words:"true" default:"0" desc:"Terminals at once of one person, over all replicas; 0: no limit"`
	DrainTimeout            string `split_words:"true" default:"30s" desc:"What open terminals have from SIGTERM on, told by a notice; a second signal skips the rest; see below"`
	KeepDetached            string `split_words:"true" default:"true" desc:"Spare what was told to outlive its terminal (nohup, setsid)"`
	Shells                  string `default:"/bin/bash,/bin/sh" desc:"POSIX shells; the first that is in the workspace is used"`

	Docker         string `default:"true" desc:"false: no Docker engine here, for workspaces on instances alone; /readyz does not ask for one"`
	RemoteTarget   string `split_words:"true" default:"container" desc:"On an instance: container (docker exec) or host (login shell)"`
	EICETunnel     string `split_words:"true" default:"native" desc:"What carries an instance's tunnel: native, or aws-cli"`
	EICEOsUser     string `split_words:"true" default:"ec2-user" desc:"OS user on instances"`
	EICEEndpointID string `split_words:"true" desc:"EC2 Instance Connect Endpoint; empty: the one of the instance's VPC"`

	LogFormat string `split_words:"true" default:"json" desc:"json or text"`
	LogLevel  string `split_words:"true" default:"info" desc:"debug, info, warn or error"`
}

const environmentPrefix = "TERMGW"

// loadConfig returns the configuration of the environment, with a log to w. Faults lists
// every invalid variable; the values of valid variables are set all the same.
func loadConfig(w io.Writer) gateway.Config {
	var e environment
	if err := envconfig.Process(environmentPrefix, &e); err != nil {
		panic(err) // no field but strings
	}
	c, faults := e.parse()
	var fault error
	if c.Tracing, fault = tracing(os.Getenv); fault != nil {
		faults = append(faults, fault)
	}
	if len(faults) > 0 {
		c.Faults = fmt.Errorf("the configuration has %d fault(s); 'termgw serve --help' lists the variables:\n%w", len(faults), errors.Join(faults...))
	}
	var level slog.Level
	_ = level.UnmarshalText([]byte(e.LogLevel)) // else info
	c.Log, c.Environ = logline.New(w, e.LogFormat, level), os.Environ()
	return c
}

// leastRetention is longer than the longest session, whose row must not go before its end.
const leastRetention = 8 * 24 * time.Hour

var basePath = regexp.MustCompile(`^(/[A-Za-z0-9._~-]+)*$`)

var endpointID = regexp.MustCompile(`^eice-[0-9a-f]{8,17}$`)

// parse returns the configuration and every fault. No fault repeats a value that may be secret.
func (e environment) parse() (gateway.Config, []error) {
	p := parser{}
	c := gateway.Config{
		Config: router.Config{
			BasePath:       strings.TrimSuffix(e.BasePath, "/"),
			AllowedOrigins: list(e.AllowedOrigins),
			PingInterval:   p.duration("PING_INTERVAL", e.PingInterval, 100*time.Millisecond, time.Hour),
			IdleTimeout:    p.duration("IDLE_TIMEOUT", e.IdleTimeout, time.Second, 7*24*time.Hour),
			MaxSession:     p.duration("MAX_SESSION", e.MaxSession, time.Second, 7*24*time.Hour),
			AdvertiseURL:   strings.TrimSuffix(e.AdvertiseURL, "/"),
			Resume:         p.duration("RESUME", e.Resume, 0, 7*24*time.Hour),
		},
		Listen: e.Listen, AdminListen: e.AdminListen, PprofListen: e.PprofListen,
		TLS:         gateway.TLSFiles{Cert: e.TLSCert, Key: e.TLSKey, ClientCA: e.TLSClientCA},
		DatabaseURL: e.DatabaseURL, DatabaseURLFile: e.DatabaseURLFile, WorkspacesFile: e.WorkspacesFile, WorkspaceQuery: e.WorkspaceQuery,
		TicketJWKS: e.TicketJWKS, TicketIssuer: e.TicketIssuer, TicketAudience: e.TicketAudience,
		TicketMaxTTL: p.duration("TICKET_MAX_TTL", e.TicketMaxTTL, time.Second, 24*time.Hour),
		Shells:       list(e.Shells),
		DrainTimeout: p.duration("DRAIN_TIMEOUT", e.DrainTimeout, 0, time.Hour),
		RemoteTarget: e.RemoteTarget, EICETunnel: e.EICETunnel, EICEOSUser: e.EICEOsUser, EICEEndpointID: e.EICEEndpointID,
	}
	p.address("LISTEN", e.Listen)
	if e.AdminListen != "" {
		p.address("ADMIN_LISTEN", e.AdminListen)
	}
	if e.PprofListen != "" {
		p.address("PPROF_LISTEN", e.PprofListen)
	}
	c.ListenMode = p.mode("LISTEN_MODE", e.ListenMode)
	p.require("TLS_CERT", e.TLSCert != "" || e.TLSKey == "" && e.TLSClientCA == "", "is not set, but TERMGW_TLS_KEY or TERMGW_TLS_CLIENT_CA is")
	p.require("TLS_KEY", e.TLSKey != "" || e.TLSCert == "", "is not set, but TERMGW_TLS_CERT is")
	c.ProxyProtocol = p.boolean("PROXY_PROTOCOL", e.ProxyProtocol)
	p.require("PROXY_PROTOCOL", !c.ProxyProtocol || len(list(e.TrustedProxies)) > 0, "is true, but TERMGW_TRUSTED_PROXIES names no proxy")
	p.require("BASE_PATH", basePath.MatchString(c.BasePath) && path.Join("/", c.BasePath) == cmp.Or(c.BasePath, "/"),
		"want a path like /terminals, of letters, digits and ._~-, without . and .. in it, which clients take out (RFC 3986, 5.2.4)")
	database := e.DatabaseURL != "" || e.DatabaseURLFile != ""
	p.require("DATABASE_URL", database || e.WorkspacesFile != "",
		"neither it nor TERMGW_DATABASE_URL_FILE nor TERMGW_WORKSPACES_FILE is set: the gateway does not know where workspaces are")
	p.require("DATABASE_URL_FILE", e.DatabaseURL == "" || e.DatabaseURLFile == "", "is set, and so is TERMGW_DATABASE_URL: set one of them")
	p.require("WORKSPACES_FILE", !database || e.WorkspacesFile == "",
		"is for a gateway without a database, but TERMGW_DATABASE_URL or TERMGW_DATABASE_URL_FILE is set too")
	p.require("TICKET_JWKS", e.TicketJWKS != "", "is required: a JWK Set, a file or an https URL")
	p.require("TICKET_AUDIENCE", e.TicketAudience != "", "must not be empty (default "+ticket.DefaultAudience+")")
	if c.AdvertiseURL != "" {
		u, err := url.Parse(c.AdvertiseURL)
		p.require("ADVERTISE_URL", err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil &&
			u.Path == "" && u.RawQuery == "" && u.Fragment == "" && reachable(u), "want http(s)://host:port, as other replicas reach this one")
	}
	for _, o := range c.AllowedOrigins {
		u, err := url.Parse(o)
		p.require("ALLOWED_ORIGINS", err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil &&
			u.Path == "" && u.RawQuery == "" && u.Fragment == "" && !strings.Contains(u.Host, "*"),
			fmt.Sprintf("%q is not scheme://host[:port] of http or https", o))
	}
	for _, s := range list(e.TrustedProxies) {
		if s == "unix:" {
			c.TrustUnix = true
			continue
		}
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			var addr netip.Addr
			if addr, err = netip.ParseAddr(s); err == nil {
				prefix = netip.PrefixFrom(addr, addr.BitLen())
			}
		}
		p.require("TRUSTED_PROXIES", err == nil, fmt.Sprintf("%q is neither a CIDR like 10.0.0.0/8 nor unix:", s))
		c.TrustedProxies = append(c.TrustedProxies, prefix.Masked())
	}
	p.require("SHELLS", len(c.Shells) > 0, "must name a shell")
	for _, s := range c.Shells {
		p.require("SHELLS", filepath.IsAbs(s) && filepath.Clean(s) == s, fmt.Sprintf("%q is not an absolute path", s))
	}
	c.MaxSessions = p.count("MAX_SESSIONS", e.MaxSessions)
	c.Limits = store.Limits{
		PerWorkspace: p.count("MAX_SESSIONS_PER_WORKSPACE", e.MaxSessionsPerWorkspace),
		PerSubject:   p.count("MAX_SESSIONS_PER_SUBJECT", e.MaxSessionsPerSubject),
	}
	c.DatabaseMaxConns = p.count("DATABASE_MAX_CONNS", e.DatabaseMaxConns)
	p.require("DATABASE_MAX_CONNS", c.DatabaseMaxConns >= 2 && c.DatabaseMaxConns <= 1000, "want 2 to 1000 connections")
	c.AuditRetention = p.duration("AUDIT_RETENTION", e.AuditRetention, 0, 100*365*24*time.Hour)
	p.require("AUDIT_RETENTION", c.AuditRetention == 0 || c.AuditRetention >= leastRetention, "want 0, for ever, or at least 192h: a session may last for 168h, and its row as long")
	c.KeepDetached = p.boolean("KEEP_DETACHED", e.KeepDetached)
	c.WithoutDocker = !p.boolean("DOCKER", e.Docker)
	p.require("REMOTE_TARGET", e.RemoteTarget == instance.TargetContainer || e.RemoteTarget == instance.TargetHost, fmt.Sprintf("%q is neither container nor host", e.RemoteTarget))
	p.require("EICE_TUNNEL", e.EICETunnel == "native" || e.EICETunnel == "aws-cli", fmt.Sprintf("%q is neither native nor aws-cli", e.EICETunnel))
	p.require("EICE_OS_USER", eice.ValidOSUser(e.EICEOsUser), fmt.Sprintf("%q is no OS user", e.EICEOsUser))
	p.require("EICE_ENDPOINT_ID", e.EICEEndpointID == "" || endpointID.MatchString(e.EICEEndpointID), fmt.Sprintf("%q is not like eice-0123456789abcdef0", e.EICEEndpointID))
	p.require("LOG_FORMAT", e.LogFormat == "json" || e.LogFormat == "text", fmt.Sprintf("%q is neither json nor text", e.LogFormat))
	p.require("LOG_LEVEL", slices.Contains([]string{"debug", "info", "warn", "error"}, e.LogLevel),
		fmt.Sprintf("%q is not debug, info, warn or error", e.LogLevel))
	return c, p.faults
}

// hostName is the form of a host's name: a variable that nobody has put in, like $(POD_IP), has another.
var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?$`)

// reachable reports whether a URL has a host and a port that can be another machine's.
func reachable(u *url.URL) bool {
	port, err := strconv.ParseUint(cmp.Or(u.Port(), "80"), 10, 16)
	if err != nil || port == 0 {
		return false
	}
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
		return !addr.IsUnspecified()
	}
	return hostName.MatchString(u.Hostname())
}

// parser collects the faults of variables.
type parser struct{ faults []error }

func (p *parser) require(name string, ok bool, fault string) {
	if !ok {
		p.faults = append(p.faults, fmt.Errorf("  %s_%s: %s", environmentPrefix, name, fault))
	}
}

func (p *parser) duration(name, value string, least, most time.Duration) time.Duration {
	d, err := time.ParseDuration(value)
	p.require(name, err == nil && d >= least && d <= most, fmt.Sprintf("%q is not a duration from %s to %s, like 90s or 30m", value, least, most))
	return d
}

func (p *parser) count(name, value string) int {
	n, err := strconv.Atoi(value)
	p.require(name, err == nil && n >= 0, fmt.Sprintf("%q is not a whole number, 0 or more", value))
	return n
}

func (p *parser) boolean(name, value string) bool {
	b, err := strconv.ParseBool(value)
	p.require(name, err == nil, fmt.Sprintf("%q is neither true nor false", value))
	return b
}

// mode parses the file mode of a socket. A socket that its owner cannot write to serves nobody.
func (p *parser) mode(name, value string) fs.FileMode {
	m, err := strconv.ParseUint(value, 8, 9)
	p.require(name, err == nil && m&0o200 != 0, fmt.Sprintf("%q is not a file mode from 0200 to 0777, in octal, that lets the owner write", value))
	return fs.FileMode(m)
}

// socketPath bounds a unix socket's path, in bytes. The kernel takes 107 (unix(7)), and the socket is made in a directory beside it.
const socketPath = 90

func (p *parser) address(name, value string) {
	if path, ok := strings.CutPrefix(value, "unix:"); ok {
		p.require(name, filepath.IsAbs(path) && filepath.Clean(path) == path && path != "/" && len(path) <= socketPath,
			fmt.Sprintf("%q is not unix: and a plain absolute path of at most %d bytes", value, socketPath))
		return
	}
	if value == "systemd" || strings.HasPrefix(value, "systemd:") && value != "systemd:" {
		return
	}
	_, port, err := net.SplitHostPort(value)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	p.require(name, err == nil, fmt.Sprintf("%q is not host:port, :port, unix:/PATH, systemd or systemd:NAME", value))
}

func list(s string) []string {
	var l []string
	for element := range strings.SplitSeq(s, ",") {
		if element = strings.TrimSpace(element); element != "" {
			l = append(l, element)
		}
	}
	return l
}

// tracing reports whether spans are to be exported, by the standard variables of OpenTelemetry: off, unless an endpoint or the
// exporter is named. No fault repeats a value that may be secret.
func tracing(getenv func(string) string) (bool, error) {
	endpoint := cmp.Or(getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), getenv("OTEL_EXPORTER_OTLP_ENDPOINT"))
	protocol := cmp.Or(getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"), getenv("OTEL_EXPORTER_OTLP_PROTOCOL"))
	exporter := getenv("OTEL_TRACES_EXPORTER")
	u, err := url.Parse(endpoint)
	switch {
	case strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true"), exporter == "none", exporter == "" && endpoint == "":
		return false, nil
	case exporter != "" && exporter != "otlp":
		return false, fmt.Errorf("  OTEL_TRACES_EXPORTER: %q is neither otlp nor none", exporter)
	case protocol != "" && protocol != "http/protobuf":
		return false, fmt.Errorf("  OTEL_EXPORTER_OTLP_PROTOCOL: %q is not http/protobuf, the only one that termgw has (port 4318 of most collectors)", protocol)
	case endpoint != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == ""):
		return false, errors.New("  OTEL_EXPORTER_OTLP_ENDPOINT: want http(s)://host:port")
	}
	return true, nil
}

// usage is the template of the table of variables.
const usage = `Environment:
{{range .}}  {{usage_key .}}{{with usage_default .}} = {{.}}{{end}}
      {{usage_description .}}
{{end}}
Terminals that are left when the drain timeout is over are cut, 16 a second and all within 20 s,
and the gateway ends when their shells have: some seconds later, or 110 s after the timeout at most,
if Docker or an instance does not answer. Kubernetes has to wait for so long: its
terminationGracePeriodSeconds must be no less than preStop, the drain timeout and 110 s together.

AWS and Docker take their own standard variables (DOCKER_HOST and friends), and so does OpenTelemetry: with
OTEL_EXPORTER_OTLP_ENDPOINT the openings of terminals are traced.`

func environmentUsage(w io.Writer) error {
	return envconfig.Usagef(environmentPrefix, &environment{}, w, usage)
}

// shellEnvironment returns the variables of the gateway's environment that a shell of this
// machine gets, none of them secret, and the home directory.
func shellEnvironment() (env []string, home string) {
	for _, name := range []string{"HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TZ", "USER"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/"
	}
	return env, home
}

// databaseOf returns where the database is that the replicas share, for commands beside the gateway. without says what a command
// needs a database for.
func databaseOf(without string) (store.PostgresConfig, error) {
	address, file := os.Getenv("TERMGW_DATABASE_URL"), os.Getenv("TERMGW_DATABASE_URL_FILE")
	switch {
	case address == "" && file == "":
		return store.PostgresConfig{}, errors.New(strings.TrimSuffix("TERMGW_DATABASE_URL is not set, nor is TERMGW_DATABASE_URL_FILE: "+without, ": "))
	case address != "" && file != "":
		return store.PostgresConfig{}, errors.New("TERMGW_DATABASE_URL and TERMGW_DATABASE_URL_FILE are both set: set one of them")
	}
	return store.PostgresConfig{URL: address, URLFile: file, Token: gateway.DatabaseToken, WorkspaceQuery: os.Getenv("TERMGW_WORKSPACE_QUERY")}, nil
}
