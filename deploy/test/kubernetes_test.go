package deploy

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// cluster is what one kustomization renders to.
type cluster struct {
	namespaces map[string]*corev1.Namespace
	deployment *appsv1.Deployment
	services   map[string]*corev1.Service
	account    *corev1.ServiceAccount
	configs    map[string]*corev1.ConfigMap
	autoscaler *autoscalingv2.HorizontalPodAutoscaler
	budget     *policyv1.PodDisruptionBudget
	policy     *networkingv1.NetworkPolicy
	ingress    *networkingv1.Ingress
	monitor    *monitoringv1.ServiceMonitor
}

// render decodes strictly: a field that the API does not have fails.
func render(t *testing.T, kustomization string) *cluster {
	t.Helper()
	rendered, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), root+"/"+kustomization)
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster()
	for _, r := range rendered.Resources() {
		raw, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		c.add(t, r.GetApiVersion()+" "+r.GetKind(), raw)
	}
	if c.deployment == nil || c.account == nil || c.budget == nil || c.policy == nil || c.monitor == nil {
		t.Fatalf("%s lacks an object: %+v", kustomization, c)
	}
	return c
}

// decodeObjects decodes what a chart renders to.
func decodeObjects(t *testing.T, all map[string]object) *cluster {
	t.Helper()
	c := newCluster()
	for _, o := range all {
		c.add(t, fmt.Sprint(o["apiVersion"], " ", o["kind"]), []byte(asYAML(t, o)))
	}
	return c
}

func newCluster() *cluster {
	return &cluster{
		namespaces: map[string]*corev1.Namespace{}, services: map[string]*corev1.Service{}, configs: map[string]*corev1.ConfigMap{},
	}
}

func (c *cluster) add(t *testing.T, kind string, raw []byte) {
	t.Helper()
	var object metav1.Object
	switch kind {
	case "v1 Namespace":
		object = &corev1.Namespace{}
	case "v1 Service":
		object = &corev1.Service{}
	case "v1 ConfigMap":
		object = &corev1.ConfigMap{}
	case "v1 ServiceAccount":
		c.account = &corev1.ServiceAccount{}
		object = c.account
	case "apps/v1 Deployment":
		c.deployment = &appsv1.Deployment{}
		object = c.deployment
	case "autoscaling/v2 HorizontalPodAutoscaler":
		c.autoscaler = &autoscalingv2.HorizontalPodAutoscaler{}
		object = c.autoscaler
	case "policy/v1 PodDisruptionBudget":
		c.budget = &policyv1.PodDisruptionBudget{}
		object = c.budget
	case "networking.k8s.io/v1 NetworkPolicy":
		c.policy = &networkingv1.NetworkPolicy{}
		object = c.policy
	case "networking.k8s.io/v1 Ingress":
		c.ingress = &networkingv1.Ingress{}
		object = c.ingress
	case "monitoring.coreos.com/v1 ServiceMonitor":
		c.monitor = &monitoringv1.ServiceMonitor{}
		object = c.monitor
	default:
		t.Fatalf("this test does not know %s:\n%s", kind, raw)
	}
	decode(t, kind, raw, object)
	switch one := object.(type) {
	case *corev1.Namespace:
		c.namespaces[one.Name] = one
		return
	case *corev1.Service:
		c.services[one.Name] = one
	case *corev1.ConfigMap:
		c.configs[one.Name] = one
	}
	if object.GetNamespace() != "termgw" {
		t.Errorf("%s %s is in namespace %q", kind, object.GetName(), object.GetNamespace())
	}
}

// container is the gateway's, or the one that migrates.
func (c *cluster) container(t *testing.T, name string) *corev1.Container {
	t.Helper()
	pod := c.deployment.Spec.Template.Spec
	for _, one := range slices.Concat(pod.InitContainers, pod.Containers) {
		if one.Name == name {
			return &one
		}
	}
	t.Fatalf("there is no container %s", name)
	return nil
}

// environment is what the gateway gets: literal values, "secret/key" for those of Secrets, and the path of a field of the pod's.
func (c *cluster) environment(t *testing.T, container string) map[string]string {
	t.Helper()
	env := map[string]string{}
	one := c.container(t, container)
	for _, from := range one.EnvFrom {
		if from.ConfigMapRef == nil || c.configs[from.ConfigMapRef.Name] == nil {
			t.Fatalf("%s takes its environment from %+v, which is not there", container, from)
		}
		for name, value := range c.configs[from.ConfigMapRef.Name].Data {
			env[name] = value
		}
	}
	for _, v := range one.Env {
		env[v.Name] = v.Value
		switch from := v.ValueFrom; {
		case from == nil:
		case from.FieldRef != nil:
			env[v.Name] = from.FieldRef.FieldPath
		default:
			env[v.Name] = from.SecretKeyRef.Name + "/" + from.SecretKeyRef.Key
		}
	}
	return env
}

func TestKubernetes(t *testing.T) {
	known := variables(t)
	for _, kustomization := range []string{"deploy/kubernetes/base", "deploy/kubernetes/overlays/eks"} {
		t.Run(kustomization, func(t *testing.T) {
			c := render(t, kustomization)
			t.Run("selectors match", c.testSelectors)
			t.Run("environment", func(t *testing.T) { c.testEnvironment(t, known) })
			t.Run("ports agree", func(t *testing.T) { c.testPorts(t, known) })
			t.Run("time to end", c.testGrace)
			t.Run("restricted", c.testRestricted)
			t.Run("capacity", c.testCapacity)
		})
	}
}

func (c *cluster) testSelectors(t *testing.T) {
	pod := labels.Set(c.deployment.Spec.Template.Labels)
	matches := func(what string, selector *metav1.LabelSelector, set labels.Set) {
		s, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil || s.Empty() || !s.Matches(set) {
			t.Errorf("%s selects %v (%v), which is not in %v", what, s, err, set)
		}
	}
	matches("the Deployment", c.deployment.Spec.Selector, pod)
	matches("the PodDisruptionBudget", c.budget.Spec.Selector, pod)
	matches("the NetworkPolicy", &c.policy.Spec.PodSelector, pod)
	for _, spread := range c.deployment.Spec.Template.Spec.TopologySpreadConstraints {
		matches("the spread over "+spread.TopologyKey, spread.LabelSelector, pod)
	}
	scraped := 0
	for name, s := range c.services {
		matches("the Service "+name, &metav1.LabelSelector{MatchLabels: s.Spec.Selector}, pod)
		if monitored, err := metav1.LabelSelectorAsSelector(&c.monitor.Spec.Selector); err != nil {
			t.Error(err)
		} else if monitored.Matches(labels.Set(s.Labels)) {
			scraped++
			if port := c.monitor.Spec.Endpoints[0].Port; len(s.Spec.Ports) != 1 || s.Spec.Ports[0].Name != port {
				t.Errorf("the ServiceMonitor wants port %q of %+v", port, s.Spec.Ports)
			}
			if job := s.Labels[c.monitor.Spec.JobLabel]; job != "termgw" {
				t.Errorf("the job is called %q; the rules go by termgw", job)
			}
			if !s.Spec.PublishNotReadyAddresses {
				t.Error("a replica that drains is not scraped")
			}
		}
	}
	if scraped != 1 {
		t.Errorf("%d Services are scraped, so each replica is as often", scraped)
	}
	if c.autoscaler == nil {
		if n := c.deployment.Spec.Replicas; n == nil || *n != 3 {
			t.Error("without an autoscaler there are not three replicas")
		}
	} else if ref := c.autoscaler.Spec.ScaleTargetRef; ref.Kind != "Deployment" || ref.Name != c.deployment.Name || ref.APIVersion != "apps/v1" {
		t.Errorf("the autoscaler scales %+v", ref)
	}
	if c.autoscaler != nil && c.deployment.Spec.Replicas != nil {
		t.Error("the Deployment sets replicas back at each apply")
	}
	if account := c.deployment.Spec.Template.Spec.ServiceAccountName; account != c.account.Name {
		t.Errorf("the pod runs as %q, the ServiceAccount is %q", account, c.account.Name)
	}
}

func (c *cluster) testEnvironment(t *testing.T, known map[string]string) {
	env := c.environment(t, "termgw")
	for name := range env {
		if _, ok := known[name]; strings.HasPrefix(name, "TERMGW_") && !ok {
			t.Errorf("%s is none of termgw's variables", name)
		}
		if strings.HasPrefix(name, "AWS_") && name != "AWS_REGION" {
			t.Errorf("%s is set: credentials are the role's", name)
		}
	}
	if got := env["TERMGW_DATABASE_URL"]; got != "termgw/database-url" {
		t.Errorf("the database's URL is %q, not the Secret's", got)
	}
	if got := c.environment(t, "migrate"); len(got) != 1 || got["TERMGW_DATABASE_URL"] != "termgw/migrate-database-url" {
		t.Errorf("the migration has the environment %v", got)
	}
	if c.deployment.Spec.Template.Spec.EnableServiceLinks == nil || *c.deployment.Spec.Template.Spec.EnableServiceLinks {
		t.Error("Kubernetes adds variables of its own that begin with TERMGW_")
	}

	// The key set is where its volume puts it.
	var volume corev1.Volume
	var mounted string
	for _, v := range c.deployment.Spec.Template.Spec.Volumes {
		for _, m := range c.container(t, "termgw").VolumeMounts {
			if v.Secret != nil && m.Name == v.Name {
				volume, mounted = v, m.MountPath
				if m.SubPath != "" {
					t.Error("a subPath is never updated, so keys are not rotated")
				}
			}
		}
	}
	if volume.Secret == nil || env["TERMGW_TICKET_JWKS"] != mounted+"/"+volume.Secret.Items[0].Path {
		t.Errorf("TERMGW_TICKET_JWKS is %s; the Secret is mounted at %s: %+v", env["TERMGW_TICKET_JWKS"], mounted, volume.Secret)
	}
}

func (c *cluster) testPorts(t *testing.T, known map[string]string) {
	env := c.environment(t, "termgw")
	ports := map[string]int32{}
	for _, p := range c.container(t, "termgw").Ports {
		ports[p.Name] = p.ContainerPort
	}
	listens := func(name string) (host string, port int32) {
		address := env[name]
		if address == "" {
			address = known[name]
		}
		host, text, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		return host, int32(n)
	}
	for name, variable := range map[string]string{"http": "TERMGW_LISTEN", "metrics": "TERMGW_ADMIN_LISTEN"} {
		host, port := listens(variable)
		if ports[name] != port || host != "" && host != "0.0.0.0" {
			t.Errorf("port %s is %d, %s is %s:%d", name, ports[name], variable, host, port)
		}
	}
	named := func(what string, port intstr.IntOrString, want string) {
		if port.StrVal != want {
			t.Errorf("%s leads to port %v, not %s", what, port.String(), want)
		}
	}
	gateway := c.container(t, "termgw")
	named("readiness", gateway.ReadinessProbe.HTTPGet.Port, "http")
	named("liveness", gateway.LivenessProbe.HTTPGet.Port, "http")
	named("startup", gateway.StartupProbe.HTTPGet.Port, "http")
	for _, s := range c.services {
		for _, p := range s.Spec.Ports {
			named("Service "+s.Name, p.TargetPort, p.Name)
		}
	}
	if len(c.policy.Spec.Ingress) != 3 {
		t.Fatalf("the NetworkPolicy lets in %+v", c.policy.Spec.Ingress)
	}
	for i, want := range []string{"http", "metrics", "http"} {
		rule := c.policy.Spec.Ingress[i]
		if len(rule.From) == 0 || len(rule.Ports) != 1 {
			t.Fatalf("the NetworkPolicy lets in %+v", rule)
		}
		named("the NetworkPolicy", *rule.Ports[0].Port, want)
	}
	// Replicas reach each other, where each says that it is.
	if url := env["TERMGW_ADVERTISE_URL"]; url != fmt.Sprintf("http://$(POD_IP):%d", ports["http"]) || env["POD_IP"] != "status.podIP" {
		t.Errorf("a replica is at %s, POD_IP is %s", url, env["POD_IP"])
	}
	egress := c.policy.Spec.Egress[len(c.policy.Spec.Egress)-1]
	named("the NetworkPolicy", *egress.Ports[0].Port, "http")
	for _, peers := range [][]networkingv1.NetworkPolicyPeer{c.policy.Spec.Ingress[2].From, egress.To} {
		if len(peers) != 1 || peers[0].PodSelector == nil || !maps.Equal(peers[0].PodSelector.MatchLabels, c.deployment.Spec.Selector.MatchLabels) {
			t.Errorf("the NetworkPolicy has %+v for other replicas", peers)
		}
	}
	c.testEgress(t)
	if path := gateway.ReadinessProbe.HTTPGet.Path; path != "/readyz" {
		t.Errorf("readiness asks %s", path)
	}
	for _, probe := range []*corev1.Probe{gateway.LivenessProbe, gateway.StartupProbe} {
		if probe.HTTPGet.Path != "/healthz" {
			t.Errorf("%s decides on a restart", probe.HTTPGet.Path)
		}
	}
}

// testEgress: what the gateway needs is let out, and the node's own role is not within reach.
func (c *cluster) testEgress(t *testing.T) {
	for _, test := range []struct {
		what, address string
		port          int32
		protocol      corev1.Protocol
		let           bool
	}{
		{"NodeLocal DNSCache", "169.254.20.10", 53, corev1.ProtocolUDP, true},
		{"NodeLocal DNSCache", "169.254.20.10", 53, corev1.ProtocolTCP, true},
		{"a database", "10.9.8.7", 5432, corev1.ProtocolTCP, true},
		{"a pooler", "10.9.8.7", 6432, corev1.ProtocolTCP, true},
		{"AWS", "52.94.5.6", 443, corev1.ProtocolTCP, true},
		{"Pod Identity", "169.254.170.23", 80, corev1.ProtocolTCP, true},
		{"Pod Identity by IPv6", "fd00:ec2::23", 80, corev1.ProtocolTCP, true},
		{"the node's metadata and role", "169.254.169.254", 80, corev1.ProtocolTCP, false},
		{"the node's metadata by IPv6", "fd00:ec2::254", 80, corev1.ProtocolTCP, false},
		{"another resolver", "10.9.8.7", 53, corev1.ProtocolUDP, false},
		{"ssh", "10.9.8.7", 22, corev1.ProtocolTCP, false},
	} {
		if let := c.letsOut(t, netip.MustParseAddr(test.address), test.port, test.protocol); let != test.let {
			t.Errorf("%s, %s port %d by %s: let out is %v", test.what, test.address, test.port, test.protocol, let)
		}
	}
}

// letsOut reports whether a packet to an address outside the cluster's pods is let out.
func (c *cluster) letsOut(t *testing.T, to netip.Addr, port int32, protocol corev1.Protocol) bool {
	t.Helper()
	for _, rule := range c.policy.Spec.Egress {
		peer := len(rule.To) == 0 || slices.ContainsFunc(rule.To, func(p networkingv1.NetworkPolicyPeer) bool {
			return p.IPBlock != nil && len(p.IPBlock.Except) == 0 && netip.MustParsePrefix(p.IPBlock.CIDR).Contains(to)
		})
		if peer && slices.ContainsFunc(rule.Ports, func(p networkingv1.NetworkPolicyPort) bool {
			is := corev1.ProtocolTCP
			if p.Protocol != nil {
				is = *p.Protocol
			}
			return p.Port.IntVal == port && is == protocol
		}) {
			return true
		}
	}
	return false
}

func (c *cluster) testGrace(t *testing.T) {
	pod := c.deployment.Spec.Template.Spec
	hook := c.container(t, "termgw").Lifecycle.PreStop
	if hook == nil || hook.Sleep == nil || hook.Sleep.Seconds < 5 || hook.Sleep.Seconds > 10 {
		t.Fatalf("preStop is %+v, not a sleep of 5 to 10 s", hook)
	}
	drain, err := time.ParseDuration(c.environment(t, "termgw")["TERMGW_DRAIN_TIMEOUT"])
	if err != nil {
		t.Fatal(err)
	}
	grace := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second
	if need := time.Duration(hook.Sleep.Seconds)*time.Second + drain + teardown(t); grace < need {
		t.Errorf("the pod is killed after %s; preStop, drain and teardown take %s", grace, need)
	}
}

func (c *cluster) testRestricted(t *testing.T) {
	pod := c.deployment.Spec.Template.Spec
	s := pod.SecurityContext
	if s == nil || !*s.RunAsNonRoot || *s.RunAsUser != 1000 || *s.RunAsGroup != 1000 || *s.FSGroup != 1000 ||
		s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("the pod's security context is %+v", s)
	}
	for _, one := range slices.Concat(pod.InitContainers, pod.Containers) {
		s := one.SecurityContext
		if s == nil || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem ||
			!slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0 {
			t.Errorf("the security context of %s is %+v", one.Name, s)
		}
		if one.Resources.Requests.Memory().IsZero() || one.Resources.Requests.Cpu().IsZero() || one.Resources.Limits.Memory().IsZero() {
			t.Errorf("%s has no resources: %+v", one.Name, one.Resources)
		}
		if !one.Resources.Limits.Cpu().IsZero() {
			t.Errorf("%s is throttled", one.Name)
		}
	}
	if *pod.AutomountServiceAccountToken || *c.account.AutomountServiceAccountToken {
		t.Error("the pod gets a token of the Kubernetes API, for which it has no use")
	}
	tmp := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool {
		return v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumMemory && v.EmptyDir.SizeLimit != nil
	})
	if tmp < 0 || !slices.ContainsFunc(c.container(t, "termgw").VolumeMounts, func(m corev1.VolumeMount) bool {
		return m.Name == pod.Volumes[tmp].Name && m.MountPath == "/tmp"
	}) {
		t.Error("/tmp is no tmpfs")
	}
	for name, n := range c.namespaces {
		if n.Labels["pod-security.kubernetes.io/enforce"] != "restricted" {
			t.Errorf("namespace %s has the labels %v", name, n.Labels)
		}
	}
}

// testCapacity: docs/performance.md has what a terminal costs.
func (c *cluster) testCapacity(t *testing.T) {
	limit, err := strconv.ParseInt(c.environment(t, "termgw")["TERMGW_MAX_SESSIONS"], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	target := limit / 2
	if c.autoscaler != nil {
		scale := c.autoscaler.Spec
		metric := scale.Metrics[0].Pods
		if metric == nil || metric.Metric.Name != "termgw_sessions_active" || len(scale.Metrics) != 1 {
			t.Fatalf("the autoscaler goes by %+v", scale.Metrics)
		}
		target = metric.Target.AverageValue.Value()
		least := int64(*scale.MinReplicas)
		if least < 3 || target*least > limit*(least-1) {
			t.Errorf("when one of %d replicas with %d terminals goes, the others hold no more than %d each", least, target, limit)
		}
		down := scale.Behavior.ScaleDown
		if *down.StabilizationWindowSeconds < 1800 || len(down.Policies) != 1 || down.Policies[0].Value != 1 || down.Policies[0].PeriodSeconds < 600 {
			t.Errorf("the autoscaler takes replicas away by %+v", down)
		}
	}
	const mib = 1 << 20
	request, most := c.container(t, "termgw").Resources.Requests.Memory().Value(), c.container(t, "termgw").Resources.Limits.Memory().Value()
	if need := (25 + 3*target) * mib; request < need {
		t.Errorf("%d terminals need %d MiB, %d are asked for", target, need/mib, request/mib)
	}
	if need := (25 + 5*limit + 64) * mib; most < need { // ssh, and full socket buffers; /tmp counts too
		t.Errorf("%d terminals need %d MiB, %d is the limit", limit, need/mib, most/mib)
	}
	rollout := c.deployment.Spec.Strategy.RollingUpdate
	if rollout.MaxUnavailable.String() != "0" || rollout.MaxSurge.String() != "100%" {
		t.Errorf("a rollout takes replicas away before all new ones are there: %+v", rollout)
	}
	if c.budget.Spec.MaxUnavailable.IntValue() != 1 {
		t.Errorf("the budget is %+v", c.budget.Spec)
	}
}

func TestEKSOverlay(t *testing.T) {
	c := render(t, "deploy/kubernetes/overlays/eks")
	for _, one := range slices.Concat(c.deployment.Spec.Template.Spec.InitContainers, c.deployment.Spec.Template.Spec.Containers) {
		if _, tag, _ := strings.Cut(one.Image, ":"); tag == "" || tag == "latest" {
			t.Errorf("%s has the image %s, which can change", one.Name, one.Image)
		}
	}
	if role := c.account.Annotations["eks.amazonaws.com/role-arn"]; !strings.HasPrefix(role, "arn:aws:iam::") {
		t.Errorf("the ServiceAccount's role is %q", role)
	}

	// The proxies that are believed are those that are let in.
	var letIn []string
	for _, from := range c.policy.Spec.Ingress[0].From {
		letIn = append(letIn, from.IPBlock.CIDR)
	}
	if trusted := c.environment(t, "termgw")["TERMGW_TRUSTED_PROXIES"]; trusted != strings.Join(letIn, ",") {
		t.Errorf("%v are let in, %s are believed", letIn, trusted)
	}

	backend := c.ingress.Spec.Rules[0].HTTP.Paths[0].Backend.Service
	if s := c.services[backend.Name]; s == nil || s.Spec.Ports[0].Name != backend.Port.Name {
		t.Errorf("the Ingress leads to %+v", backend)
	}
	annotations := map[string]string{}
	for name, value := range c.ingress.Annotations {
		annotations[strings.TrimPrefix(name, "alb.ingress.kubernetes.io/")] = value
	}
	if annotations["healthcheck-path"] != c.container(t, "termgw").ReadinessProbe.HTTPGet.Path {
		t.Errorf("the ALB asks %s", annotations["healthcheck-path"])
	}
	attribute := func(list, name string) int64 {
		for pair := range strings.SplitSeq(annotations[list], ",") {
			if key, value, _ := strings.Cut(pair, "="); key == name {
				n, err := strconv.ParseInt(value, 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
		t.Fatalf("%s lacks %s: %s", list, name, annotations[list])
		return 0
	}
	silence := int64(longerThan(t, "TERMGW_PING_INTERVAL", 2) / time.Second)
	if idle := attribute("load-balancer-attributes", "idle_timeout.timeout_seconds"); idle < silence || idle > 4000 {
		t.Errorf("the ALB closes what is idle for %d s, and takes 1 to 4000", idle)
	}
	if delay, grace := attribute("target-group-attributes", "deregistration_delay.timeout_seconds"), *c.deployment.Spec.Template.Spec.TerminationGracePeriodSeconds; delay < grace {
		t.Errorf("the ALB cuts a draining replica after %d s; it has %d", delay, grace)
	}
}
