package deploy

import (
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
)

// readRules reads them as the operator's object, which the head of the file makes of them.
func readRules(t *testing.T) []monitoringv1.RuleGroup {
	t.Helper()
	object := "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata: {name: termgw}\nspec:\n" +
		regexp.MustCompile(`(?m)^`).ReplaceAllString(read(t, "deploy/prometheus/rules.yaml"), "  ")
	var rule monitoringv1.PrometheusRule
	decode(t, "rules.yaml", []byte(object), &rule)
	return rule.Spec.Groups
}

// withRecorded adds what the rules record. A name begins with its labels: namespace_job_target:….
func (s series) withRecorded(groups []monitoringv1.RuleGroup) {
	for _, g := range groups {
		for _, r := range g.Rules {
			if level, _, ok := strings.Cut(r.Record, ":"); ok {
				s[r.Record] = strings.Split(level, "_")
			}
		}
	}
}

func TestRulesFire(t *testing.T) {
	promtool := program(t, "promtool", "prometheus")
	for _, args := range [][]string{
		{"check", "rules", root + "/deploy/prometheus/rules.yaml"},
		{"test", "rules", root + "/deploy/prometheus/rules.test.yaml"},
		{"test", "rules", root + "/deploy/prometheus/outages.test.yaml"},
	} {
		if out, err := exec.Command(promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// The recorded outages raise the alerts that tell of them, and are over at their end.
func TestRecordedOutages(t *testing.T) {
	type expected struct {
		Labels string `json:"labels"`
		Value  int    `json:"value"`
	}
	var file struct {
		RuleFiles          []string `json:"rule_files"`
		EvaluationInterval string   `json:"evaluation_interval"`
		Tests              []struct {
			Name        string `json:"name"`
			Interval    string `json:"interval"`
			InputSeries []struct {
				Series string `json:"series"`
				Values string `json:"values"`
			} `json:"input_series"`
			Expr []struct {
				Expr       string     `json:"expr"`
				EvalTime   string     `json:"eval_time"`
				ExpSamples []expected `json:"exp_samples"`
			} `json:"promql_expr_test"`
		} `json:"tests"`
	}
	decode(t, "outages.test.yaml", []byte(read(t, "deploy/prometheus/outages.test.yaml")), &file)
	wanted := map[string][]string{
		"database": {"TermgwNotReady", "TermgwStoreUnavailable"},
		"engine":   {"TermgwDockerUnavailable", "TermgwBackendFailing"},
		"keys":     {"TermgwNoKeys"},
	}
	if len(file.Tests) != len(wanted) {
		t.Errorf("%d outages are recorded, want %d", len(file.Tests), len(wanted))
	}
	for _, test := range file.Tests {
		for part, alerts := range wanted {
			if !strings.Contains(test.Name, part) {
				continue
			}
			delete(wanted, part)
			if len(test.Expr) != 2 || len(test.Expr[1].ExpSamples) != 0 {
				t.Errorf("%s: want the alerts of the outage, and none after it", test.Name)
				continue
			}
			for _, alert := range alerts {
				if !slices.ContainsFunc(test.Expr[0].ExpSamples, func(s expected) bool {
					return strings.Contains(s.Labels, `alertname="`+alert+`"`)
				}) {
					t.Errorf("%s: %s does not fire", test.Name, alert)
				}
			}
		}
	}
	for part := range wanted {
		t.Errorf("no outage of the %s is recorded", part)
	}
}

func TestRules(t *testing.T) {
	groups, known, codes := readRules(t), exposed(t), codes(t)
	known.withRecorded(groups)
	fires, runbook := read(t, "deploy/prometheus/rules.test.yaml"), read(t, "docs/operations.md")
	for _, g := range groups {
		for _, r := range g.Rules {
			name := r.Alert + r.Record
			known.check(t, name, r.Expr.String(), codes)
			if r.Record != "" {
				continue
			}
			severity := r.Labels["severity"]
			if !slices.Contains([]string{"page", "ticket"}, severity) {
				t.Errorf("%s has severity %q", name, severity)
			}
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s does not say what it is: %v", name, r.Annotations)
			}
			if page := "https://github.com/molecule-ai/termgw/blob/main/docs/operations.md#" + strings.ToLower(name); r.Annotations["runbook_url"] != page {
				t.Errorf("%s has the runbook %s", name, r.Annotations["runbook_url"])
			}
			// The runbook says who is woken, as the rule does.
			mark := strings.ToUpper(severity[:1]) + severity[1:]
			if !strings.Contains(runbook, "\n### "+name+"\n\n*"+mark+".*") {
				t.Errorf("docs/operations.md has no heading %s with *%s.* below", name, mark)
			}
			if !strings.Contains(fires, `alertname="`+name+`",alertstate="firing"`) {
				t.Errorf("no test lets %s fire", name)
			}
		}
	}
	for _, heading := range regexp.MustCompile(`(?m)^### (Termgw\w+)$`).FindAllStringSubmatch(runbook, -1) {
		if !slices.ContainsFunc(groups, func(g monitoringv1.RuleGroup) bool {
			return slices.ContainsFunc(g.Rules, func(r monitoringv1.Rule) bool { return r.Alert == heading[1] })
		}) {
			t.Errorf("docs/operations.md explains %s, which is no alert", heading[1])
		}
	}
}

// The autoscaler's metric is what the adapter makes of series that there are.
func TestAdapter(t *testing.T) {
	var config struct {
		Rules []struct {
			SeriesQuery string `json:"seriesQuery"`
			Resources   struct {
				Overrides map[string]struct {
					Resource string `json:"resource"`
				} `json:"overrides"`
			} `json:"resources"`
			Name struct {
				As string `json:"as"`
			} `json:"name"`
			MetricsQuery string `json:"metricsQuery"`
		} `json:"rules"`
	}
	decode(t, "adapter.yaml", []byte(read(t, "deploy/prometheus/adapter.yaml")), &config)
	if len(config.Rules) != 1 {
		t.Fatalf("it has %d rules", len(config.Rules))
	}
	rule, known := config.Rules[0], exposed(t)
	if want := render(t, "deploy/kubernetes/overlays/eks").autoscaler.Spec.Metrics[0].Pods.Metric.Name; rule.Name.As != want {
		t.Errorf("it makes %s, the autoscaler wants %s", rule.Name.As, want)
	}
	if rule.Resources.Overrides["namespace"].Resource != "namespace" || rule.Resources.Overrides["pod"].Resource != "pod" {
		t.Errorf("it does not know a pod by %+v", rule.Resources)
	}
	known.check(t, "seriesQuery", rule.SeriesQuery, nil)
	filled := strings.NewReplacer("<<.GroupBy>>", "pod", "<<.LabelMatchers>>", `namespace="n",pod="p"`).Replace(rule.MetricsQuery)
	known.check(t, "metricsQuery", filled, nil)
}
