package deploy

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	streamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3" // envoy.yaml names it
	managerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3" // this one, too
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"
)

// Proxies that do not run here.

// terminalPath is the one that is passed on.
var terminalPath = regexp.MustCompile(`^/workspaces/[^/]+/terminal$`)

func TestEnvoy(t *testing.T) {
	raw, err := yaml.YAMLToJSONStrict([]byte(read(t, "deploy/proxy/envoy.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	var b bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(raw, &b); err != nil {
		t.Fatal(err)
	}
	parts := validated(t, &b)

	manager := one[*managerv3.HttpConnectionManager](t, parts)
	silence := longerThan(t, "TERMGW_PING_INTERVAL", 2)
	if d := manager.StreamIdleTimeout.AsDuration(); d < silence {
		t.Errorf("stream_idle_timeout is %s", d)
	}
	if u := manager.UpgradeConfigs; len(u) != 1 || u[0].Enabled.GetValue() {
		t.Errorf("every route has the upgrades %v", u)
	}
	if !manager.UseRemoteAddress.GetValue() {
		t.Error("what the client says of its address is believed")
	}
	config := manager.GetRouteConfig()
	if !slices.Contains(config.RequestHeadersToRemove, "x-forwarded-host") {
		t.Error("what the client says of the host is passed on")
	}
	terminal := config.VirtualHosts[0].Routes[0]
	if got := "^" + terminal.Match.GetSafeRegex().GetRegex() + "$"; got != terminalPath.String() {
		t.Errorf("the terminal's path is %s", got)
	}
	route := terminal.GetRoute()
	if route.Timeout == nil || route.Timeout.AsDuration() != 0 || route.IdleTimeout.AsDuration() < silence {
		t.Errorf("the terminal's route has the timeouts %v, %v", route.Timeout, route.IdleTimeout)
	}
	if u := route.UpgradeConfigs; len(u) != 1 || u[0].UpgradeType != "websocket" || !u[0].Enabled.GetValue() {
		t.Errorf("the terminal's route has the upgrades %v", u)
	}
	for _, other := range config.VirtualHosts[0].Routes[1:] {
		if other.GetDirectResponse().GetStatus() != 404 {
			t.Errorf("route %s is passed on, too", other.Name)
		}
	}
	cluster := b.StaticResources.Clusters[0]
	address := cluster.LoadAssignment.Endpoints[0].LbEndpoints[0].GetEndpoint().Address.GetSocketAddress()
	if cluster.Name != route.GetCluster() || address.Address != "termgw" || address.GetPortValue() != 8080 ||
		cluster.HealthChecks[0].GetHttpHealthCheck().Path != "/readyz" {
		t.Errorf("the route leads to %s, which is %v", route.GetCluster(), cluster)
	}
	format := one[*streamv3.StdoutAccessLog](t, parts).GetLogFormat().GetTextFormatSource().GetInlineString()
	for _, header := range regexp.MustCompile(`%REQ\(([^)]*)\)%`).FindAllStringSubmatch(format, -1) {
		if header[1] != ":METHOD" {
			t.Errorf("the access log has %s", header[1])
		}
	}
	if strings.Contains(format, "PATH") {
		t.Error("the access log has the path")
	}
}

// validated holds a message, and what is packed into it, to the rules of its type.
func validated(t *testing.T, m proto.Message) (parts []proto.Message) {
	t.Helper()
	parts = append(parts, m)
	if v, ok := m.(interface{ ValidateAll() error }); !ok {
		t.Errorf("%T has no rules", m)
	} else if err := v.ValidateAll(); err != nil {
		t.Errorf("%T: %v", m, err)
	}
	var walk func(protoreflect.Message)
	walk = func(m protoreflect.Message) {
		if packed, ok := m.Interface().(*anypb.Any); ok {
			inner, err := packed.UnmarshalNew()
			if err != nil {
				t.Fatal(err)
			}
			parts = append(parts, validated(t, inner)...)
			return
		}
		m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
			switch {
			case field.IsMap() || field.Message() == nil:
			case field.IsList():
				for i := range value.List().Len() {
					walk(value.List().Get(i).Message())
				}
			default:
				walk(value.Message())
			}
			return true
		})
	}
	walk(m.ProtoReflect())
	return parts
}

func one[T proto.Message](t *testing.T, parts []proto.Message) (found T) {
	t.Helper()
	n := 0
	for _, part := range parts {
		if p, ok := part.(T); ok {
			found = p
			n++
		}
	}
	if n != 1 {
		t.Fatalf("there are %d of %T", n, found)
	}
	return found
}

func TestTraefik(t *testing.T) {
	var static struct {
		EntryPoints map[string]struct {
			Address   string `json:"address"`
			Transport struct {
				RespondingTimeouts map[string]string `json:"respondingTimeouts"`
				LifeCycle          map[string]string `json:"lifeCycle"`
			} `json:"transport"`
		} `json:"entryPoints"`
		AccessLog struct {
			Format string `json:"format"`
			Fields struct {
				DefaultMode string            `json:"defaultMode"`
				Names       map[string]string `json:"names"`
				Headers     struct {
					DefaultMode string `json:"defaultMode"`
				} `json:"headers"`
			} `json:"fields"`
		} `json:"accessLog"`
		Log       map[string]string            `json:"log"`
		Providers map[string]map[string]string `json:"providers"`
	}
	var dynamic struct {
		HTTP struct {
			Routers map[string]struct {
				EntryPoints []string  `json:"entryPoints"`
				Rule        string    `json:"rule"`
				Service     string    `json:"service"`
				Middlewares []string  `json:"middlewares"`
				TLS         *struct{} `json:"tls"`
			} `json:"routers"`
			Middlewares map[string]struct {
				RateLimit struct {
					Average int    `json:"average"`
					Period  string `json:"period"`
					Burst   int    `json:"burst"`
				} `json:"rateLimit"`
			} `json:"middlewares"`
			Services map[string]struct {
				LoadBalancer struct {
					PassHostHeader   bool                `json:"passHostHeader"`
					Servers          []map[string]string `json:"servers"`
					HealthCheck      map[string]string   `json:"healthCheck"`
					ServersTransport string              `json:"serversTransport"`
				} `json:"loadBalancer"`
			} `json:"services"`
			ServersTransports map[string]struct {
				ForwardingTimeouts map[string]string `json:"forwardingTimeouts"`
			} `json:"serversTransports"`
		} `json:"http"`
	}
	for file, into := range map[string]any{"traefik.yaml": &static, "traefik-routes.yaml": &dynamic} {
		decode(t, file, []byte(read(t, "deploy/proxy/"+file)), into)
	}

	fields := static.AccessLog.Fields
	if fields.DefaultMode != "drop" || fields.Headers.DefaultMode != "drop" {
		t.Errorf("the access log keeps what is not named: %+v", fields)
	}
	for name := range fields.Names {
		if strings.Contains(name, "Path") || strings.Contains(name, "Line") || strings.HasPrefix(name, "request_") {
			t.Errorf("the access log has %s", name)
		}
	}
	if len(dynamic.HTTP.Routers) != 1 {
		t.Fatalf("the routers are %v", dynamic.HTTP.Routers)
	}
	router := dynamic.HTTP.Routers["terminal"]
	if !strings.Contains(router.Rule, "PathRegexp(`"+terminalPath.String()+"`)") || router.TLS == nil {
		t.Errorf("the router is %+v", router)
	}
	for _, name := range router.EntryPoints {
		if _, ok := static.EntryPoints[name]; !ok {
			t.Errorf("there is no entry point %s", name)
		}
	}
	if len(router.Middlewares) != 1 || dynamic.HTTP.Middlewares[router.Middlewares[0]].RateLimit.Average != 50 {
		t.Errorf("the router has the middlewares %v, of %v", router.Middlewares, dynamic.HTTP.Middlewares)
	}
	service := dynamic.HTTP.Services[router.Service].LoadBalancer
	if !service.PassHostHeader || len(service.Servers) != 1 || service.Servers[0]["url"] != "http://termgw:8080" || service.HealthCheck["path"] != "/readyz" {
		t.Errorf("the router leads to %q, which is %+v", router.Service, service)
	}
	if _, ok := dynamic.HTTP.ServersTransports[service.ServersTransport]; !ok {
		t.Errorf("there is no transport %s", service.ServersTransport)
	}
}

func TestIngressNginx(t *testing.T) {
	var ingress networkingv1.Ingress
	var settings corev1.ConfigMap
	documents := strings.Split(read(t, "deploy/proxy/ingress-nginx.yaml"), "\n---\n")
	if len(documents) != 2 {
		t.Fatalf("there are %d documents", len(documents))
	}
	decode(t, "the Ingress", []byte(documents[0]), &ingress)
	decode(t, "the ConfigMap", []byte(documents[1]), &settings)

	path := ingress.Spec.Rules[0].HTTP.Paths[0]
	if "^"+path.Path != terminalPath.String() || *path.PathType != networkingv1.PathTypeImplementationSpecific {
		t.Errorf("the path is %+v", path)
	}
	if service := render(t, "deploy/kubernetes/base").services[path.Backend.Service.Name]; service == nil || service.Spec.Ports[0].Name != path.Backend.Service.Port.Name {
		t.Errorf("the Ingress leads to %+v", path.Backend.Service)
	}
	annotation := func(name string) int {
		t.Helper()
		n, err := strconv.Atoi(ingress.Annotations["nginx.ingress.kubernetes.io/"+name])
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		return n
	}
	silence := int(longerThan(t, "TERMGW_PING_INTERVAL", 2) / time.Second)
	if annotation("proxy-read-timeout") < silence || annotation("proxy-send-timeout") < silence {
		t.Errorf("a silent terminal is closed: %v", ingress.Annotations)
	}
	if annotation("limit-rps") != 50 || annotation("limit-rps")*annotation("limit-burst-multiplier") != 200 {
		t.Errorf("the pace is %v", ingress.Annotations)
	}
	if ingress.Annotations["nginx.ingress.kubernetes.io/use-regex"] != "true" {
		t.Error("the path is no regular expression")
	}
	if d, err := time.ParseDuration(settings.Data["worker-shutdown-timeout"]); err != nil || d < longerThan(t, "TERMGW_MAX_SESSION", 1) {
		t.Errorf("a reload cuts terminals after %q", settings.Data["worker-shutdown-timeout"])
	}
	for _, variable := range regexp.MustCompile(`\$\w+`).FindAllString(settings.Data["log-format-upstream"], -1) {
		if slices.Contains([]string{"$request", "$request_uri", "$args", "$query_string", "$http_referer"}, variable) || strings.HasPrefix(variable, "$arg_") {
			t.Errorf("the access log has %s", variable)
		}
	}
	if settings.Data["error-log-level"] != "crit" || settings.Data["limit-req-status-code"] != "429" {
		t.Errorf("the settings are %v", settings.Data)
	}
}

func TestGatewayAPI(t *testing.T) {
	var gateway gatewayv1.Gateway
	var route gatewayv1.HTTPRoute
	documents := strings.Split(read(t, "deploy/proxy/gateway-api.yaml"), "\n---\n")
	if len(documents) != 2 {
		t.Fatalf("there are %d documents", len(documents))
	}
	decode(t, "the Gateway", []byte(documents[0]), &gateway)
	decode(t, "the HTTPRoute", []byte(documents[1]), &route)

	parent, listener := route.Spec.ParentRefs[0], gateway.Spec.Listeners[0]
	if string(parent.Name) != gateway.Name || route.Namespace != gateway.Namespace || *parent.SectionName != listener.Name ||
		route.Spec.Hostnames[0] != *listener.Hostname || listener.Protocol != gatewayv1.HTTPSProtocolType {
		t.Errorf("the route's parent is %+v, the listener %+v", parent, listener)
	}
	if len(route.Spec.Rules) != 1 || len(route.Spec.Rules[0].Matches) != 1 {
		t.Fatalf("the rules are %+v", route.Spec.Rules)
	}
	rule := route.Spec.Rules[0]
	if path := rule.Matches[0].Path; *path.Type != gatewayv1.PathMatchRegularExpression || "^"+*path.Value+"$" != terminalPath.String() {
		t.Errorf("the path is %+v", path)
	}
	for name, limit := range map[string]*gatewayv1.Duration{"request": rule.Timeouts.Request, "backendRequest": rule.Timeouts.BackendRequest} {
		if limit == nil || *limit != "0s" { // no limit, says the API
			t.Errorf("a terminal is cut by %s: %v", name, limit)
		}
	}
	if len(rule.Filters) != 1 || !slices.Equal(rule.Filters[0].RequestHeaderModifier.Remove, []string{"X-Forwarded-Host"}) {
		t.Errorf("what the client says of the host is passed on: %+v", rule.Filters)
	}
	backend := rule.BackendRefs[0]
	service := render(t, "deploy/kubernetes/base").services[string(backend.Name)]
	if service == nil || service.Spec.Ports[0].Port != *backend.Port || *service.Spec.Ports[0].AppProtocol != "kubernetes.io/ws" {
		t.Errorf("the route leads to %+v, which is %+v", backend, service)
	}
}
