package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// percentile is the nearest-rank percentile, 0 of no values.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p*float64(len(s))/100 - 1e-9)) // 99.9 has no exact float64
	return s[min(max(rank, 1), len(s))-1]
}

// median is the mean of the two in the middle if there are two.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	mid := len(s) / 2
	if len(s)%2 == 1 {
		return s[mid]
	}
	return (s[mid-1] + s[mid]) / 2
}

// report is what was measured.
type report struct {
	Started  time.Time         `json:"started"`
	Seconds  float64           `json:"seconds"`
	Args     []string          `json:"args"`
	Machine  machine           `json:"machine"`
	Versions map[string]string `json:"versions"`
	// Rounds has a value a round, by figure and program: those of one round
	// were taken one after the other and make a pair.
	Rounds  map[string]map[string][]float64 `json:"rounds"`
	Targets []verdict                       `json:"targets"`
	Notes   []string                        `json:"notes,omitempty"`

	programs []string // columns
	sessions []int
}

func (r *report) add(figure, program string, value float64) {
	if r.Rounds == nil {
		r.Rounds = map[string]map[string][]float64{}
	}
	if r.Rounds[figure] == nil {
		r.Rounds[figure] = map[string][]float64{}
	}
	r.Rounds[figure][program] = append(r.Rounds[figure][program], value)
}

func (r *report) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// ratio compares a figure of termgw's with another, round by round. No rounds:
// nil.
func (r *report) ratio(figure, otherFigure, other string) []float64 {
	a, b := r.Rounds[figure][gateway], r.Rounds[otherFigure][other]
	var ratios []float64
	for i := range min(len(a), len(b)) {
		if b[i] != 0 {
			ratios = append(ratios, a[i]/b[i])
		}
	}
	return ratios
}

// row is a line of the table.
type row struct {
	title   string
	figures []string
	format  string
}

func (r *report) rows() []row {
	rows := []row{
		{"echo p50 / p99 / p99.9, µs", []string{"echo_idle_p50", "echo_idle_p99", "echo_idle_p999"}, "%.0f"},
		{"the same beside 4 floods", []string{"echo_flood_p50", "echo_flood_p99", "echo_flood_p999"}, "%.0f"},
		{"bulk, MB/s", []string{"bulk_mb_s"}, "%.1f"},
		{"gateway CPU, s/GB", []string{"cpu_s_gb"}, "%.1f"},
		{"streams complete and equal", []string{"checksum"}, "count"},
	}
	for _, eager := range []bool{false, true} {
		for _, speed := range speeds {
			how := "reads as fast as it renders"
			if eager {
				how = "reads eagerly"
			}
			rows = append(rows,
				row{fmt.Sprintf("Ctrl-C to prompt, ms, %g MB/s, %s", speed, how), []string{interruptKey(eager, speed)}, "%.1f"},
				row{"the same, in a container", []string{containerKey(eager, speed)}, "%.1f"})
		}
	}
	rows = append(rows, row{"connect to first byte p50 / p95, ms", []string{"connect_p50", "connect_p95"}, "%.2f"})
	for _, n := range r.sessions {
		of := func(what string) string { return fmt.Sprintf("idle_%s_%d", what, n) }
		rows = append(rows,
			row{fmt.Sprintf("memory a session at %d, PSS / RSS, KiB", n), []string{of("pss_kib"), of("rss_kib")}, "%.1f"},
			row{fmt.Sprintf("OS threads at %d", n), []string{of("threads")}, "%.0f"},
			row{fmt.Sprintf("descriptors a session at %d", n), []string{of("fds")}, "%.2f"},
			row{fmt.Sprintf("of %d sessions echo", n), []string{of("echo")}, "%.0f"},
		)
	}
	return append(rows,
		row{"sessions opened and ended a second", []string{"rate"}, "%.0f"},
		row{fmt.Sprintf("%d sessions that are cut off at once end in, s", hostEnds), []string{"ends"}, "%.2f"},
		row{"echo in a container p50 / p99 / p99.9, µs", []string{"container_echo_idle_p50", "container_echo_idle_p99", "container_echo_idle_p999"}, "%.0f"},
		row{"bulk in a container, MB/s", []string{"container_bulk_mb_s"}, "%.1f"},
		row{"connect to first byte in a container p50 / p95, ms", []string{"container_connect_p50", "container_connect_p95"}, "%.1f"},
		row{fmt.Sprintf("%d sessions in a container that are cut off at once end in, s", containerEnds), []string{"container_ends"}, "%.2f"},
		row{fmt.Sprintf("%d execs in a container, %d at a time, s", containerEnds, atOnce), []string{"container_execs"}, "%.2f"},
		row{"redemptions at 500 a second p50 / p99, µs", []string{"redeem_redeem-p50-µs", "redeem_redeem-p99-µs"}, "%.0f"},
		row{"the gateway's CPU for one; where no processor sleeps, µs", []string{"redeem_cpu-µs", "redeem_cpu-awake-µs"}, "%.0f"},
		row{"revocation, commit to close p50 / p99, ms", []string{"revoke_close-p50-ms", "revoke_close-p99-ms"}, "%.0f"},
		row{"rolling restart, without a shell p50 / p99 / max, ms", []string{"rolling_down-p50-ms", "rolling_down-p99-ms", "rolling_down-max-ms"}, "%.0f"},
		row{"the new shell after the notice's time, max, ms", []string{"rolling_late-max-ms"}, "%.0f"},
		row{"cuts under a stream; bytes lost or twice", []string{"cuts_cuts", "cuts_bytes-lost-or-twice"}, "%.0f"},
		row{"back after a cut p50 / p99 / max, ms", []string{"cuts_away-p50-ms", "cuts_away-p99-ms", "cuts_away-max-ms"}, "%.1f"},
		row{"cuts, three replicas behind nginx; bytes lost or twice", []string{"nginx_cuts_cuts", "nginx_cuts_bytes-lost-or-twice"}, "%.0f"},
		row{"back after such a cut p50 / p99 / max, ms", []string{"nginx_cuts_away-p50-ms", "nginx_cuts_away-p99-ms", "nginx_cuts_away-max-ms"}, "%.1f"},
		row{"a round trip, p50; takeover of a half-open connection p50 / p99, ms", []string{"takeover_rtt-p50-ms", "takeover_takeover-p50-ms", "takeover_takeover-p99-ms"}, "%.1f"},
		row{"beyond the round trip p50 / p99, ms", []string{"takeover_beyond-p50-ms", "takeover_beyond-p99-ms"}, "%.1f"},
		row{"a key p50, direct / through another replica, µs", []string{"hop_direct-p50-µs", "hop_hop-p50-µs"}, "%.0f"},
		row{"memory (PSS) of a connection that is passed on, KiB", []string{"hop_hop-kib"}, "%.0f"},
		row{"memory (PSS) of a session, idle / waiting, KiB", []string{"waiting_idle-kib", "waiting_waiting-kib"}, "%.1f"},
		row{"the same for 64 KiB printed while it waits; of that in use, KiB", []string{"waiting_printed-kib", "waiting_printed-live-kib"}, "%.1f"},
	)
}

// cell is a row's value for one program: the medians of its rounds.
func (r *report) cell(row row, program string) string {
	var parts []string
	for _, figure := range row.figures {
		rounds := r.Rounds[figure][program]
		switch {
		case len(rounds) == 0:
		case row.format == "count":
			parts = append(parts, fmt.Sprintf("%.0f of %d", sum(rounds), len(rounds)))
		default:
			parts = append(parts, fmt.Sprintf(row.format, median(rounds)))
		}
	}
	return strings.Join(parts, " / ")
}

func sum(values []float64) (total float64) {
	for _, v := range values {
		total += v
	}
	return total
}

// table is the figures in Markdown, a column a program, without empty rows.
func (r *report) table() string {
	head := []string{""}
	for _, p := range r.programs {
		head = append(head, strings.TrimSpace(p+" "+r.Versions[p]))
	}
	lines := [][]string{head}
	for _, row := range r.rows() {
		line := []string{row.title}
		for _, p := range r.programs {
			line = append(line, r.cell(row, p))
		}
		if slices.ContainsFunc(line[1:], func(s string) bool { return s != "" }) {
			lines = append(lines, line)
		}
	}
	return align(lines)
}

func align(lines [][]string) string {
	widths := make([]int, len(lines[0]))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	var b strings.Builder
	for n, line := range lines {
		for i, cell := range line {
			b.WriteString("| " + cell + strings.Repeat(" ", widths[i]-len([]rune(cell))+1))
		}
		b.WriteString("|\n")
		if n == 0 {
			for _, w := range widths {
				b.WriteString("|" + strings.Repeat("-", w+2))
			}
			b.WriteString("|\n")
		}
	}
	return b.String()
}

// write leaves the report as JSON and returns where.
func (r *report) write(dir string) (string, error) {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // no secret in it
		return "", err
	}
	path := filepath.Join(dir, r.Started.UTC().Format("20060102T150405Z")+".json")
	return path, os.WriteFile(path, append(b, '\n'), 0o644) //nolint:gosec // no secret in it
}
