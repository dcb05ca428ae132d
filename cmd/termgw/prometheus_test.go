package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// prometheus is a real one with the rules of deploy/prometheus. Each drill is a namespace of its own, by the fault's name.
type prometheus struct {
	address, targets string
	step             time.Duration // between two scrapes, and two evaluations of the rules
}

const deployed = "../../deploy/prometheus"

func startPrometheus(t *testing.T) *prometheus {
	t.Helper()
	program, err := exec.LookPath("prometheus")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := filepath.Abs(deployed + "/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p := &prometheus{address: freeAddress(t), targets: filepath.Join(dir, "targets"), step: time.Second}
	if *faultTime > 0 {
		p.step = 5 * time.Second
	}
	config := filepath.Join(dir, "prometheus.yml")
	if err := os.Mkdir(p.targets, 0o700); err != nil {
		t.Fatal(err)
	}
	err = os.WriteFile(config, fmt.Appendf(nil, `global: {scrape_interval: %[1]s, scrape_timeout: %[1]s, evaluation_interval: %[1]s}
rule_files: [%[2]q]
scrape_configs:
  - job_name: termgw
    file_sd_configs: [{files: [%[3]q]}]
`, p.step, rules, p.targets+"/*.json"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	child := start(t, exec.Command(program, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+p.address, "--log.level=warn"))
	eventually(t, "Prometheus is ready", func() bool {
		select {
		case <-child.exited:
			t.Fatalf("prometheus ended: %v\n%s", child.err, child.log.String())
		default:
		}
		response, err := http.Get("http://" + p.address + "/-/ready")
		if err != nil {
			return false
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	return p
}

// scrape has the replicas of a drill scraped, and waits until they are. A replica that listens at another address after its start keeps
// its name.
func (p *prometheus) scrape(t *testing.T, namespace string, replicas []*served) {
	t.Helper()
	type target struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	var list []target
	for i, g := range replicas {
		list = append(list, target{[]string{g.admin}, map[string]string{"namespace": namespace, "instance": fmt.Sprint("replica-", i+1)}})
	}
	written, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	file := p.file(namespace)
	if err := os.WriteFile(file+".new", written, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Prometheus has seen a replica", func() bool {
		return len(p.query(t, fmt.Sprintf("termgw_ready{namespace=%q}", namespace), time.Time{})) > 0
	})
}

// forget has the replicas of a drill scraped no more.
func (p *prometheus) forget(t *testing.T, namespace string) {
	if err := os.Remove(p.file(namespace)); err != nil {
		t.Error(err)
	}
}

func (p *prometheus) file(namespace string) string {
	return filepath.Join(p.targets, strings.Map(func(r rune) rune {
		if r < 'a' || r > 'z' {
			return '-'
		}
		return r
	}, namespace)+".json")
}

// sample is a series with its values.
type sample struct {
	Metric map[string]string `json:"metric"`
	Value  [2]any            `json:"value"`
	Values [][2]any          `json:"values"`
}

func (p *prometheus) query(t *testing.T, expr string, at time.Time) []sample {
	t.Helper()
	q := url.Values{"query": {expr}}
	if !at.IsZero() {
		q.Set("time", strconv.FormatInt(at.Unix(), 10))
	}
	return p.ask(t, "query", q)
}

func (p *prometheus) ask(t *testing.T, path string, q url.Values) []sample {
	t.Helper()
	a := request(t, http.MethodGet, "http://"+p.address+"/api/v1/"+path+"?"+q.Encode(), nil, nil)
	var body struct{ Data struct{ Result []sample } }
	if err := json.Unmarshal([]byte(a.body), &body); err != nil || a.StatusCode != http.StatusOK {
		t.Fatalf("Prometheus answers %s: %s", a.Status, a.body)
	}
	return body.Data.Result
}

// alerts lists the alerts of a drill that have been in a state.
func (p *prometheus) alerts(t *testing.T, namespace, state string) (names []string) {
	t.Helper()
	for _, s := range p.query(t, fmt.Sprintf(`group by (alertname) (max_over_time(ALERTS{namespace=%q,alertstate=%q}[1h]))`, namespace, state), time.Time{}) {
		names = append(names, s.Metric["alertname"])
	}
	slices.Sort(names)
	return names
}

// outageStep is the interval of the recorded series.
const outageStep = 15 * time.Second

// recordedSeries are those that the rules go by in an outage.
const recordedSeries = `{__name__=~"up|termgw_ready|termgw_draining|termgw_unwritten_ends|termgw_heartbeat_failures_total|termgw_orders_age_seconds` +
	`|termgw_ticket_keys_age_seconds|termgw_session_start_seconds_count",namespace=%q} or ` +
	`termgw_sessions_total{namespace=%[1]q,code=~"store_unavailable|backend_failed|keys_unavailable"}`

// outage is a test of the rules by a fault's series: the alerts that fire at the end of the outage, and that none is left some minutes
// later.
func (p *prometheus) outage(t *testing.T, o outcome) string {
	t.Helper()
	from, over := o.began.Add(-45*time.Second).Truncate(time.Second), o.mended.Add(outageOver)
	series := p.ask(t, "query_range", url.Values{
		"query": {fmt.Sprintf(recordedSeries, o.name)}, "start": {strconv.FormatInt(from.Unix(), 10)},
		"end": {strconv.FormatInt(over.Unix(), 10)}, "step": {strconv.Itoa(int(outageStep.Seconds()))},
	})
	steps := int(over.Sub(from)/outageStep) + 1
	var b strings.Builder
	fmt.Fprintf(&b, "  - name: %q\n    interval: %s\n    input_series:\n", o.name, outageStep)
	for _, s := range series {
		fmt.Fprintf(&b, "      - {series: '%s', values: '%s'}\n", written(s.Metric), runLengths(s.Values, from, steps))
	}
	broken := o.mended.Sub(from).Truncate(outageStep)
	fmt.Fprintf(&b, "    promql_expr_test:\n      - expr: 'ALERTS{alertstate=\"firing\"}'\n        eval_time: %s\n        exp_samples:\n", broken)
	for _, s := range p.query(t, fmt.Sprintf(`ALERTS{namespace=%q,alertstate="firing"}`, o.name), from.Add(broken)) {
		fmt.Fprintf(&b, "          - {labels: '%s', value: 1}\n", written(s.Metric))
	}
	fmt.Fprintf(&b, "      - expr: 'ALERTS{alertstate=\"firing\"}'\n        eval_time: %s\n        exp_samples: []\n", over.Sub(from).Truncate(outageStep))
	return b.String()
}

// writeOutages writes the tests of all recorded faults.
func writeOutages(t *testing.T, rows []outcome) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "# promtool test rules deploy/prometheus/outages.test.yaml\n#\n# Written by `make faults`: series that a Prometheus recorded in real outages, "+
		"on %s.\nrule_files: [rules.yaml]\nevaluation_interval: 15s\ntests:\n", time.Now().UTC().Format(time.DateOnly))
	for _, row := range rows {
		b.WriteString(row.outage)
	}
	if err := os.WriteFile(deployed+"/outages.test.yaml", []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// outageOver is when no alert is left after an outage: the rates look back for 10 minutes.
const outageOver = 11 * time.Minute

// written is a series as PromQL writes it.
func written(metric map[string]string) string {
	var labels []string
	for name, value := range metric {
		if name != "__name__" {
			labels = append(labels, fmt.Sprintf("%s=%q", name, strings.ReplaceAll(value, "'", "")))
		}
	}
	slices.Sort(labels)
	return metric["__name__"] + "{" + strings.Join(labels, ",") + "}"
}

// runLengths writes values as promtool reads them: axn is a and n more of it, _ is a sample that is not there.
func runLengths(values [][2]any, from time.Time, steps int) string {
	at := map[int]string{}
	for _, v := range values {
		at[int(time.Unix(int64(v[0].(float64)), 0).Sub(from)/outageStep)] = v[1].(string)
	}
	var runs []string
	for i := 0; i < steps; {
		value, n := at[i], 1
		for i+n < steps && at[i+n] == value {
			n++
		}
		i += n
		switch {
		case value == "":
			runs = append(runs, fmt.Sprintf("_x%d", n))
		case n == 1:
			runs = append(runs, value)
		default:
			runs = append(runs, fmt.Sprintf("%sx%d", value, n-1))
		}
	}
	return strings.Join(runs, " ")
}

const (
	faultsPage  = "../../docs/operations.md"
	faultsBegin = "<!-- make faults writes from here -->\n"
	faultsEnd   = "<!-- to here -->\n"
)

// writeFaults writes the table into the page, with the machine and the day.
func writeFaults(t *testing.T, rows []outcome) {
	t.Helper()
	page := readFile(t, faultsPage)
	before, rest, found := strings.Cut(page, faultsBegin)
	_, after, ends := strings.Cut(rest, faultsEnd)
	if !found || !ends {
		t.Fatalf("%s has no place for the table, between %q and %q", faultsPage, faultsBegin, faultsEnd)
	}
	var kernel unix.Utsname // its release is 6.18.44-name
	if err := unix.Uname(&kernel); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Run on %s, on a machine with %d cores (%s), Linux %s; all faults at once, each with gateways and a database of its own.\n\n",
		time.Now().UTC().Format("2 January 2006"), runtime.NumCPU(), runtime.GOARCH, strings.Join(strings.SplitN(unix.ByteSliceToString(kernel.Release[:]), ".", 3)[:2], "."))
	b.WriteString("| fault | lasted | terminals lost | terminals refused meanwhile | ready again after | alerts that fired |\n|---|---|---|---|---|---|\n")
	for _, row := range rows {
		b.WriteString(row.line() + "\n")
	}
	b.WriteString("\n")
	if err := os.WriteFile(faultsPage, []byte(before+faultsBegin+"\n"+b.String()+faultsEnd+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
