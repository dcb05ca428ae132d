package instance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/molecule-ai/termgw/pkg/runner"
)

// Steps returns the steps to the instance's sshd, the login, what the account does, what the instance has, and the
// container. Each step reports its own part alone: an error of the opening belongs to the step of the part that failed,
// and the steps before that one have been seen to work.
func (k *Kind) Steps(t runner.Target, open func(context.Context) error) []runner.Step {
	k.thorough.Store(true)
	r, err := k.request(t)
	if err == nil {
		return r.steps(open)
	}
	malformed := runner.Step{Name: "instance", Run: func(context.Context) (string, error) { return "", err }}
	others := (&request{kind: k, target: cmp.Or(t.Attributes["remote_target"], k.cfg.Target)}).steps(open) // for their names
	return append([]runner.Step{malformed}, slices.DeleteFunc(others, func(s runner.Step) bool { return s.Name == malformed.Name })...)
}

func (r *request) steps(open func(context.Context) error) []runner.Step {
	k := r.kind
	var seen look
	steps := append(k.cfg.Tunnels.Steps(r.to.tunnelRequest("")),
		runner.Step{Name: "login", Fix: fixes["pty"], Run: func(ctx context.Context) (string, error) {
			ctx, cancel := context.WithTimeout(ctx, startTime(k.cfg.Timing))
			defer cancel()
			c, err := k.connect(ctx, r.to, r.trail)
			if err != nil {
				return "", err
			}
			k.release(c)
			return "as " + r.to.user + ", by " + k.version, nil
		}},
		// With a terminal and, as the ends of terminals do, without one.
		runner.Step{Name: "account", Fix: fixes["pty"], Run: func(ctx context.Context) (found string, err error) {
			if err := open(ctx); err != nil && !afterAccount(err) {
				return "", err
			}
			if seen, err = r.look(ctx); err != nil {
				return "", err
			}
			return r.to.user + " runs what the gateway asks for", nil
		}},
		runner.Step{Name: "tools", Run: func(context.Context) (string, error) {
			return seen.outlives(k, r.to) + ". " + seen.ends(k.keeperFor(r.to).holds()), nil
		}},
	)
	if r.target == TargetHost {
		return steps
	}
	return append(steps,
		runner.Step{Name: "docker", Run: func(context.Context) (string, error) {
			version, ok := strings.CutPrefix(seen["docker"], "ok ")
			if !ok {
				return "", r.noDocker(errors.New(cmp.Or(strings.TrimPrefix(seen["docker"], "failed "), "it does not answer")))
			}
			return version, nil
		}},
		runner.Step{Name: "container", Run: func(ctx context.Context) (string, error) {
			if err := open(ctx); err != nil && runner.StepOf(err) != "shell" {
				return "", err
			}
			return "runs", nil
		}},
	)
}

// afterAccount reports whether an opening has failed after the account had run remote.sh.
func afterAccount(err error) bool {
	step := runner.StepOf(err)
	return errors.Is(err, runner.ErrNotRunning) || step == "docker" || step == "shell"
}

// look is what remote.sh in mode look has told of an instance, by what it is of: see there.
type look map[string]string

var toldLook = regexp.MustCompile(`\x1elook (\w+) ([^\x1e]*)\x1e`)

// look runs remote.sh in mode look.
func (r *request) look(ctx context.Context) (look, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime(r.kind.cfg.Timing)+sweepTime(r.kind.cfg.Timing))
	defer cancel()
	seen := look{}
	err := r.kind.over(ctx, r, func(c *connection) error {
		said, exit, err := c.run(ctx, r.remote(false, "look").line())
		for _, m := range toldLook.FindAllStringSubmatch(said, -1) {
			seen[m[1]] = shorten(m[2])
		}
		switch {
		case len(seen) > 0: // without what docker says, if nothing ends a docker that hangs: sudo's
			r.kind.release(c)
			return nil
		case errors.Is(err, errRefused), errors.Is(err, errGone):
			return err
		case err != nil:
			return r.accountFault("what looks at the instance has no end", []byte(said), err)
		case exit == nil:
			return r.accountFault("what looks at the instance ended", []byte(said))
		}
		return r.accountFault(fmt.Sprintf("what looks at the instance ended with exit code %d", exit.Code), []byte(said))
	})
	return seen, err
}

// outlives returns whether terminals outlive their tunnel, and why not. A terminal was opened before.
func (l look) outlives(k *Kind, to destination) string {
	at := k.keeperFor(to)
	switch {
	case k.cfg.Keepers == nil:
		return "terminals end with AWS's hour"
	case !at.holds():
		return "terminals end with AWS's hour, since nothing holds them on the instance: " + cmp.Or(at.absent(), "no terminal was opened")
	case l["kills"] == "yes":
		return "terminals end with AWS's hour, since systemd ends what a login leaves (KillUserProcesses=yes): loginctl enable-linger " + to.user
	}
	return "terminals outlive AWS's hour"
}

// ends returns what an instance's tools mean for the ends of its terminals, and how to mend that. kept reports whether a
// keeper holds them.
func (l look) ends(kept bool) string {
	losses := map[string]string{
		"ss":    "no ss: where a gateway dies and its tunnel stays open, the shells live until AWS ends the tunnel; install iproute2, or set ClientAliveInterval 30 in sshd's configuration",
		"sleep": "no sleep: where a gateway dies, the shells live on; install coreutils",
		"sudo":  "",
	}
	if kept {
		delete(losses, "ss") // the keeper hears when a gateway is silent
	}
	var found, spared []string
	for tool := range strings.FieldsSeq(l["lacks"]) {
		loss, known := losses[tool]
		switch {
		case !known:
			spared = append(spared, tool)
		case loss != "":
			found = append(found, loss)
		}
	}
	if l["root"] == "no" {
		found = append(found, "no sudo without a password: what people run as another user is not ended with their shell")
	}
	if l["proc"] != "open" {
		found = append(found, "other users' processes are hidden (hidepid): of those, none is ended or counted; mount /proc without it, or with gid=")
	}
	if n, err := strconv.Atoi(l["sessions"]); err == nil && n < sessionLimit {
		found = append(found, fmt.Sprintf("MaxSessions %d: a tunnel carries as many terminals at once", n))
	}
	if len(found) == 0 {
		found = append(found, "every end of a terminal works")
	}
	if len(spared) > 0 {
		found = append(found, "not there, and not needed: "+strings.Join(spared, ", "))
	}
	return strings.Join(found, ". ")
}
