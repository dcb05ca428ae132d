package deploy

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

func loadChart(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.LoadDir(root + "/deploy/helm/termgw")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

// values decodes what `--values` would have.
func values(t *testing.T, text string) map[string]any {
	t.Helper()
	v, err := chartutil.ReadValues([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// template renders the chart as `helm template termgw --namespace termgw` does, its schema included.
func template(t *testing.T, given map[string]any) (map[string]string, error) {
	t.Helper()
	c := loadChart(t)
	capabilities := chartutil.DefaultCapabilities.Copy()
	capabilities.KubeVersion = chartutil.KubeVersion{Version: "v1.30.0", Major: "1", Minor: "30"}
	if !chartutil.IsCompatibleRange(c.Metadata.KubeVersion, capabilities.KubeVersion.Version) ||
		chartutil.IsCompatibleRange(c.Metadata.KubeVersion, "v1.29.9") {
		t.Errorf("the chart wants Kubernetes %s", c.Metadata.KubeVersion)
	}
	release := chartutil.ReleaseOptions{Name: "termgw", Namespace: "termgw", Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(c, given, release, capabilities)
	if err != nil {
		return nil, err
	}
	return engine.Render(c, all)
}

// object is one of the API's, by the fields that it is written with.
type object map[string]any

func (o object) name() string {
	metadata, _ := o["metadata"].(map[string]any)
	return fmt.Sprintf("%v %v %v/%v", o["apiVersion"], o["kind"], metadata["namespace"], metadata["name"])
}

// objects are what templates render to, by their names.
func objects(t *testing.T, rendered map[string]string) map[string]object {
	t.Helper()
	found := map[string]object{}
	for file, text := range rendered {
		if filepath.Base(file) == "NOTES.txt" {
			continue
		}
		for document := range strings.SplitSeq(text, "\n---\n") {
			var o object
			if err := yaml.UnmarshalStrict([]byte(document), &o); err != nil {
				t.Fatalf("%s: %v\n%s", file, err, document)
			}
			if o != nil {
				found[o.name()] = o
			}
		}
	}
	return found
}

// kustomized are what a kustomization renders to but for the Namespace, which Helm makes (--create-namespace). The
// ConfigMap has its plain name, with which the chart has it: kustomize adds a hash of what is in it.
func kustomized(t *testing.T, kustomization string) map[string]object {
	t.Helper()
	rendered, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), root+"/"+kustomization)
	if err != nil {
		t.Fatal(err)
	}
	config := ""
	for _, r := range rendered.Resources() {
		if r.GetKind() == "ConfigMap" {
			config = r.GetName()
		}
	}
	if !strings.HasPrefix(config, "termgw-") {
		t.Fatalf("the ConfigMap is called %q", config)
	}
	found := map[string]object{}
	for _, r := range rendered.Resources() {
		raw, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		var o object
		if err := yaml.UnmarshalStrict([]byte(strings.ReplaceAll(string(raw), config, "termgw")), &o); err != nil {
			t.Fatal(err)
		}
		if o["kind"] != "Namespace" {
			found[o.name()] = o
		}
	}
	return found
}

// without takes a field out of a rendered object, and returns it.
func without(t *testing.T, o object, path ...string) any {
	t.Helper()
	at := map[string]any(o)
	for _, field := range path[:len(path)-1] {
		next, ok := at[field].(map[string]any)
		if !ok {
			t.Fatalf("%s has no %v", o.name(), path)
		}
		at = next
	}
	last := path[len(path)-1]
	defer delete(at, last)
	return at[last]
}

// The chart renders to the objects of the kustomizations, but that a change of the environment rolls out by an annotation.
func TestChartIsTheKustomization(t *testing.T) {
	appVersion := loadChart(t).Metadata.AppVersion
	for _, test := range []struct{ kustomization, values, image string }{
		{"deploy/kubernetes/base", "", "ghcr.io/molecule-ai/termgw:" + appVersion + "-slim"},
		{"deploy/kubernetes/overlays/eks", read(t, "deploy/helm/eks.yaml"), ""},
	} {
		t.Run(test.kustomization, func(t *testing.T) {
			want := kustomized(t, test.kustomization)
			rendered, err := template(t, values(t, test.values))
			if err != nil {
				t.Fatal(err)
			}
			if test.image != "" { // the base's image has no registry
				file := "termgw/templates/deployment.yaml"
				if n := strings.Count(rendered[file], "image: "+test.image+"\n"); n != 2 {
					t.Errorf("the image is not %s:\n%s", test.image, rendered[file])
				}
				rendered[file] = strings.ReplaceAll(rendered[file], "image: "+test.image+"\n", "image: termgw\n")
			}
			got := objects(t, rendered)
			deployment := got["apps/v1 Deployment termgw/termgw"]
			annotations := without(t, deployment, "spec", "template", "metadata", "annotations")
			if sum, _ := annotations.(map[string]any)["checksum/config"].(string); len(sum) != 64 {
				t.Errorf("the pods have the annotations %v", annotations)
			}
			if names, wanted := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(names, wanted) {
				t.Fatalf("the chart has\n%s\nand kustomize\n%s", strings.Join(names, "\n"), strings.Join(wanted, "\n"))
			}
			for name := range want {
				if !reflect.DeepEqual(got[name], want[name]) {
					t.Errorf("%s: the chart has\n%s\nand kustomize\n%s", name, asYAML(t, got[name]), asYAML(t, want[name]))
				}
			}
			if notes := rendered["termgw/templates/NOTES.txt"]; !strings.Contains(notes, "--from-file=migrate-database-url") {
				t.Errorf("the notes are\n%s", notes)
			}
		})
	}
}

func asYAML(t *testing.T, o object) string {
	t.Helper()
	raw, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// What no kustomization has: parts that are off, and pods that are held to nodes.
func TestChartValues(t *testing.T) {
	rendered, err := template(t, values(t, `
autoscaler: {enabled: false}
replicas: 5
secret: mine
serviceMonitor: {enabled: false}
networkPolicy: {nodeLocalDNS: "", databasePorts: [5433]}
imagePullSecrets: [{name: registry}]
nodeSelector: {role: gateways}
tolerations: [{key: gateways, operator: Exists}]
terminationGracePeriodSeconds: 200
env: {TERMGW_RESUME: 2m, TERMGW_MAX_SESSIONS_PER_SUBJECT: null}
`))
	if err != nil {
		t.Fatal(err)
	}
	got := objects(t, rendered)
	for name := range got {
		if strings.Contains(name, "ServiceMonitor") || strings.Contains(name, "Autoscaler") || strings.Contains(name, "Ingress") {
			t.Errorf("%s is there", name)
		}
	}
	c := decodeObjects(t, got)
	pod := c.deployment.Spec.Template.Spec
	if *c.deployment.Spec.Replicas != 5 || *pod.TerminationGracePeriodSeconds != 200 || pod.NodeSelector["role"] != "gateways" ||
		pod.Tolerations[0].Key != "gateways" || pod.ImagePullSecrets[0].Name != "registry" {
		t.Errorf("the Deployment is %+v", c.deployment.Spec)
	}
	env := c.environment(t, "termgw")
	if _, ok := env["TERMGW_MAX_SESSIONS_PER_SUBJECT"]; ok || env["TERMGW_RESUME"] != "2m" || env["TERMGW_MAX_SESSIONS"] != "400" || env["TERMGW_DATABASE_URL"] != "mine/database-url" {
		t.Errorf("the environment is %v", env)
	}
	if policy := fmt.Sprint(c.policy.Spec.Egress); strings.Contains(policy, "169.254.20.10") {
		t.Errorf("the NetworkPolicy lets out %s", policy)
	}
	if rendered, err = template(t, values(t, "networkPolicy: {enabled: false}")); err != nil || strings.Contains(rendered["termgw/templates/networkpolicy.yaml"], "kind:") {
		t.Errorf("a NetworkPolicy that is off is %q, %v", rendered["termgw/templates/networkpolicy.yaml"], err)
	}
}

// The schema names the value that is wrong, and says something of each that there is.
func TestChartSchema(t *testing.T) {
	for text, want := range map[string]string{
		"replicas: 0":                     "replicas",
		"replica: 3":                      "replica",
		"env: {TERMGW_MAX_SESSIONS: 400}": "TERMGW_MAX_SESSIONS",
		"env: {TERMGW_DATABASE_URL: 'postgres://u:hunter2@db/x'}": "env",
		"env: {AWS_SECRET_ACCESS_KEY: hunter2}":                   "env",
		"env: {lower: x}":                                         "lower",
		"terminationGracePeriodSeconds: 30":                       "terminationGracePeriodSeconds",
		"ingress: {enabled: true}":                                "host",
		"ingress: {pathType: Regex}":                              "pathType",
		"networkPolicy: {databasePorts: [70000]}":                 "databasePorts",
		"image: {repository: 'termgw:1.0'}":                       "repository",
		"secret: ''":                                              "secret",
		"serviceMonitor: true":                                    "serviceMonitor",
	} {
		if _, err := template(t, values(t, text)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", text, err)
		}
	}

	var schema property
	if err := json.Unmarshal([]byte(read(t, "deploy/helm/termgw/values.schema.json")), &schema); err != nil {
		t.Fatal(err)
	}
	schema.check(t, "values", values(t, read(t, "deploy/helm/termgw/values.yaml")))

	// The variables are the gateway's.
	known := variables(t)
	for _, file := range []string{"deploy/helm/termgw/values.yaml", "deploy/helm/eks.yaml"} {
		for name := range values(t, read(t, file))["env"].(map[string]any) {
			if _, ok := known[name]; strings.HasPrefix(name, "TERMGW_") && !ok {
				t.Errorf("%s: %s is none of termgw's variables", file, name)
			}
		}
	}
}

// property is a part of the schema.
type property struct {
	Description          string
	Properties           map[string]property
	AdditionalProperties any
}

// check holds the schema to the values that there are: each is described, and no other is in it.
func (p property) check(t *testing.T, path string, value any) {
	t.Helper()
	if p.Description == "" {
		t.Errorf("%s is not described", path)
	}
	if p.Properties == nil {
		return
	}
	if p.AdditionalProperties != false {
		t.Errorf("%s takes what is misspelt", path)
	}
	given := value.(map[string]any)
	for name, part := range p.Properties {
		if one, ok := given[name]; ok {
			part.check(t, path+"."+name, one)
		} else if name != "global" {
			t.Errorf("%s.%s has no default", path, name)
		}
	}
	for name := range given {
		if _, ok := p.Properties[name]; !ok {
			t.Errorf("%s.%s is not in the schema", path, name)
		}
	}
}
