package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// tailLines is how many lines of a failed phase's output are printed again at the end.
const tailLines = 40

type state string

const (
	waiting state = ""
	running state = "running"
	ok      state = "ok"
	failed  state = "FAILED"
	notRun  state = "not run" // a needed phase failed
)

type phase struct {
	name  string
	needs []*phase

	state state
	cmd   *exec.Cmd
	log   string // the file with the output
	began time.Time
	took  time.Duration
	err   error
}

type runner struct {
	title   string
	last    string // the phase whose output is printed after everything else
	phases  []*phase
	most    int    // the limit of phases that run at the same time
	logs    string // the folder of the phases' output
	out     io.Writer
	command []string      // runs a phase, given its name as the last argument
	again   string        // repeats a phase in a shell, given its name at the end
	env     []string      // of the phases
	every   time.Duration // between two reports of progress
	grace   time.Duration // from an interrupt until the phases are killed

	began     time.Time
	ended     chan *phase
	interrupt syscall.Signal
}

// run runs all phases and returns the exit status.
func (r *runner) run(signals <-chan os.Signal) int {
	r.began = time.Now()
	r.ended = make(chan *phase)
	fmt.Fprintf(r.out, "%s: the output of what runs is in %s\n", r.title, r.logs)
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	var giveUp <-chan time.Time
	for r.startReady(); len(r.in(running)) > 0; r.startReady() {
		select {
		case p := <-r.ended:
			r.finish(p)
		case <-tick.C:
			r.progress()
		case sig := <-signals:
			if r.interrupt == 0 {
				r.interrupt = sig.(syscall.Signal)
				fmt.Fprintf(r.out, "\n%s: %v: what runs is ended\n", r.title, sig)
				giveUp = time.After(r.grace)
			}
			r.signal(sig.(syscall.Signal))
		case <-giveUp:
			r.signal(syscall.SIGKILL)
		}
	}
	r.summary()
	switch {
	case r.interrupt != 0:
		return 128 + int(r.interrupt)
	case len(r.in(ok)) < len(r.phases):
		return 1
	}
	return 0
}

// in returns the phases in a state.
func (r *runner) in(s state) []*phase {
	var found []*phase
	for _, p := range r.phases {
		if p.state == s {
			found = append(found, p)
		}
	}
	return found
}

func (r *runner) signal(sig syscall.Signal) {
	for _, p := range r.in(running) {
		p.signalGroup(sig)
	}
}

// startReady starts the phases that can start, in the order of the table.
func (r *runner) startReady() {
	if r.interrupt != 0 {
		return
	}
	for _, p := range r.in(waiting) {
		ready := true
		for _, need := range p.needs {
			ready = ready && need.state == ok
			if need.state == failed || need.state == notRun {
				p.state = notRun
				fmt.Fprintf(r.out, "--- %s is not run: it needs %s\n", p.name, need.name)
				break
			}
		}
		if ready && len(r.in(running)) < r.most {
			r.start(p)
		}
	}
}

// start starts a phase with setsid(2): all processes of the phase get a signal once, also a terminal's Ctrl-C, which
// this program passes on. When this program is killed, make gets a SIGTERM.
func (r *runner) start(p *phase) {
	p.began = time.Now()
	p.log = filepath.Join(r.logs, p.name+".txt")
	log, err := os.Create(p.log)
	if err == nil {
		defer log.Close()
		argv := slices.Concat(r.command, []string{p.name})
		p.cmd = exec.Command(argv[0], argv[1:]...)
		p.cmd.Stdout, p.cmd.Stderr = log, log
		p.cmd.Env = r.env
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGTERM}
		err = p.cmd.Start()
	}
	if err != nil {
		p.err = err
		r.finish(p)
		return
	}
	p.state = running
	fmt.Fprintf(r.out, "--- %s starts\n", p.name)
	go func() {
		p.err = p.cmd.Wait()
		r.ended <- p
	}()
}

func (r *runner) finish(p *phase) {
	p.took = time.Since(p.began)
	p.state = ok
	if p.err != nil {
		p.state = failed
	}
	if p.name != r.last {
		r.show(p)
	}
	fmt.Fprintf(r.out, "--- %s: %s after %s\n", p.name, p.result(), clock(p.took))
}

func (p *phase) result() string {
	if p.err != nil {
		return fmt.Sprintf("%s (%v)", p.state, p.err)
	}
	return string(p.state)
}

// show prints a phase's output.
func (r *runner) show(p *phase) {
	fmt.Fprintf(r.out, "\n==> %s\n%s", p.name, p.output())
}

// output returns a phase's output so far, in whole lines.
func (p *phase) output() []byte {
	output, err := os.ReadFile(p.log)
	if err != nil {
		return fmt.Appendln(nil, err)
	}
	if len(output) > 0 && output[len(output)-1] != '\n' {
		output = append(output, '\n')
	}
	return output
}

// progress prints the phases that run, and the last line of each.
func (r *runner) progress() {
	var names []string
	var lines strings.Builder
	for _, p := range r.in(running) {
		names = append(names, fmt.Sprintf("%s for %s", p.name, clock(time.Since(p.began))))
		if said := tail(p.output(), 1); len(said) > 0 {
			fmt.Fprintf(&lines, "    %s: %.150s\n", p.name, bytes.TrimSpace(said))
		}
	}
	fmt.Fprintf(r.out, "... %s: %s\n%s", clock(time.Since(r.began)), strings.Join(names, ", "), &lines)
}

// tail returns the last lines of an output.
func tail(output []byte, lines int) []byte {
	from := len(output)
	for ; lines > 0 && from > 0; lines-- {
		from = bytes.LastIndexByte(output[:from-1], '\n') + 1
	}
	return output[from:]
}

// summary prints the times, the last phase's output and the failures.
func (r *runner) summary() {
	fmt.Fprintf(r.out, "\n==> %s: %s in all\n", r.title, clock(time.Since(r.began)))
	for _, p := range r.phases {
		switch p.state {
		case ok:
			fmt.Fprintf(r.out, "%7s  %s\n", clock(p.took), p.name)
		case failed:
			fmt.Fprintf(r.out, "%7s  %s: %s\n", clock(p.took), p.name, p.result())
		default:
			fmt.Fprintf(r.out, "%7s  %s: %s\n", "", p.name, notRun)
		}
	}
	for _, p := range r.phases {
		if p.name == r.last && p.log != "" {
			r.show(p)
		}
	}
	if r.interrupt != 0 {
		return
	}
	failures := r.in(failed)
	for _, p := range failures {
		// If only the last phase failed, its output was just printed and says how to repeat the failed part.
		if p.name != r.last || len(failures) > 1 {
			fmt.Fprintf(r.out, "\n==> %s failed; all of its output: %s\n%s", p.name, p.log, tail(p.output(), tailLines))
			fmt.Fprintf(r.out, "again: %s%s\n", r.again, p.name)
		}
	}
}

// clock formats a duration as m:ss.
func clock(d time.Duration) string {
	s := int(d.Round(time.Second).Seconds())
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}
