package main

import (
	"fmt"
	"slices"
)

// verdict is a target and what was found.
type verdict struct {
	Target string  `json:"target"`
	Value  float64 `json:"value"`
	Limit  float64 `json:"limit"`
	Met    *bool   `json:"met"` // nil: not measured
	Spread string  `json:"spread,omitempty"`
}

func (v verdict) String() string {
	switch {
	case v.Met == nil:
		return "not measured  " + v.Target
	case *v.Met:
		return fmt.Sprintf("met           %s: %.3g%s", v.Target, v.Value, v.Spread)
	default:
		return fmt.Sprintf("NOT MET       %s: %.3g%s", v.Target, v.Value, v.Spread)
	}
}

// judge holds the figures against the targets. Ratios are of the same round,
// so that what else the machine does weighs on both sides; the median counts.
func (r *report) judge() []verdict {
	const peer = "ttyd"
	list := []verdict{
		atMost("echo p50, to ttyd's: at most 1", 1, r.ratio("echo_idle_p50", "echo_idle_p50", peer)),
		atMost("echo p99, to ttyd's: at most 1", 1, r.ratio("echo_idle_p99", "echo_idle_p99", peer)),
		atMost("echo p99 beside 4 floods, to its idle p99: at most 3", 3, r.ratio("echo_flood_p99", "echo_idle_p99", gateway)),
		atLeast("bulk, to the bare pty's: at least 0.95", 0.95, r.ratio("bulk_mb_s", "bulk_mb_s", bare)),
		atMost("CPU a GB, to ttyd's: at most 1", 1, r.ratio("cpu_s_gb", "cpu_s_gb", peer)),
		atLeast("streams complete and equal, share: 1", 1, share(r.Rounds["checksum"][gateway])),
	}
	for _, eager := range []bool{false, true} {
		how := "that reads as fast as it renders"
		if eager {
			how = "that reads eagerly"
		}
		for _, speed := range speeds {
			list = append(list,
				atMost(fmt.Sprintf("Ctrl-C to prompt, a client %s, %g MB/s: at most 150 ms", how, speed), 150,
					r.Rounds[interruptKey(eager, speed)][gateway]),
				atMost(fmt.Sprintf("the same in a container, %g MB/s: at most 150 ms", speed), 150, r.Rounds[containerKey(eager, speed)][gateway]))
		}
	}
	list = append(list, atMost("connect to first byte, to ttyd's: at most 1", 1, r.ratio("connect_p50", "connect_p50", peer)))
	const execIt = "docker exec -it"
	for _, other := range []struct {
		name, program string
		echo          float64
	}{{execIt, bare, 1.05}, {peer + " of it", peer, 1}} {
		list = append(list,
			atMost(fmt.Sprintf("echo p50 in a container, to %s: at most %g", other.name, other.echo), other.echo,
				r.ratio("container_echo_idle_p50", "container_echo_idle_p50", other.program)),
			atLeast("bulk in a container, to "+other.name+": at least 1", 1, r.ratio("container_bulk_mb_s", "container_bulk_mb_s", other.program)),
			atMost("connect to first byte in a container, to "+other.name+": at most 1", 1,
				r.ratio("container_connect_p50", "container_connect_p50", other.program)))
	}
	list = append(list,
		atMost(fmt.Sprintf("%d sessions that are cut off at once end in: at most 1 s", hostEnds), 1, r.Rounds["ends"][gateway]),
		atMost(fmt.Sprintf("%d sessions in a container, to %d execs: at most 1", containerEnds, containerEnds), 1,
			r.ratio("container_ends", "container_execs", bare)))
	for _, n := range r.sessions {
		of := func(what string) []float64 { return r.Rounds[fmt.Sprintf("idle_%s_%d", what, n)][gateway] }
		list = append(list,
			atMost(fmt.Sprintf("memory a session at %d (PSS): at most 24 KiB", n), 24, of("pss_kib")),
			atMost(fmt.Sprintf("OS threads at %d: at most 50", n), maxThreads, of("threads")),
			atLeast(fmt.Sprintf("sessions that echo at %d: %d", n, n), float64(n), of("echo")),
		)
	}
	return append(list, r.replicaTargets()...)
}

// maxThreads is far above what Go's scheduler starts by itself, far below one
// a session.
const maxThreads = 50

func share(values []float64) []float64 {
	if len(values) == 0 {
		return nil
	}
	return []float64{sum(values) / float64(len(values))}
}

func atMost(target string, limit float64, rounds []float64) verdict {
	return judged(target, limit, rounds, func(v float64) bool { return v <= limit })
}

func atLeast(target string, limit float64, rounds []float64) verdict {
	return judged(target, limit, rounds, func(v float64) bool { return v >= limit })
}

func judged(target string, limit float64, rounds []float64, ok func(float64) bool) verdict {
	v := verdict{Target: target, Limit: limit}
	if len(rounds) == 0 {
		return v
	}
	v.Value = median(rounds)
	met := ok(v.Value)
	v.Met = &met
	if len(rounds) > 1 {
		v.Spread = fmt.Sprintf(" (%.3g to %.3g in %d rounds)", slices.Min(rounds), slices.Max(rounds), len(rounds))
	}
	return v
}
