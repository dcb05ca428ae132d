package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// program is what can be measured: a gateway, or a bare pty.
type program struct {
	name    string // a column's title
	version string
	start   func(ctx context.Context, dir, command string) (*server, error)
}

const (
	bare    = "bare pty"
	gateway = "termgw"
)

// server is a running program. Its sessions run one command.
type server struct {
	*program
	place    string    // what the names of its figures begin with, where its shells are not on this machine
	streamer string    // the path of this program where its shells are
	cmd      *exec.Cmd // nil: a bare pty
	log      string    // path of its log
	target   func(ctx context.Context, workspace string) (target, error)
}

// hostWorkspace is the workspace that runs the program's command. Peers have no
// other.
const hostWorkspace = "host"

// programs lists what there is: the bare pty, termgw, and the peers on PATH.
func programs(ctx context.Context, termgw string) ([]*program, error) {
	version, err := exec.CommandContext(ctx, termgw, "version").Output()
	if err != nil {
		return nil, fmt.Errorf("%s version: %w", termgw, err)
	}
	list := []*program{
		{name: bare, start: startPty},
		{name: gateway, version: versionIn(version), start: startTermgw(termgw)},
	}
	if path, err := exec.LookPath("ttyd"); err == nil {
		version, err := exec.CommandContext(ctx, path, "--version").Output()
		if err != nil {
			return nil, fmt.Errorf("%s --version: %w", path, err)
		}
		list = append(list, &program{name: "ttyd", version: versionIn(version), start: startTtyd(path)})
	}
	return list, nil
}

// versionIn reads "name 1.2 …" or "name version 1.2 …".
func versionIn(output []byte) string {
	fields := strings.Fields(string(output))
	switch {
	case len(fields) > 2 && fields[1] == "version":
		return fields[2]
	case len(fields) > 1:
		return fields[1]
	default:
		return ""
	}
}

func startPty(_ context.Context, _, command string) (*server, error) {
	return &server{target: func(context.Context, string) (target, error) {
		return target{Kind: "pty", Command: command}, nil
	}}, nil
}

func startTermgw(path string) func(context.Context, string, string) (*server, error) {
	return func(ctx context.Context, dir, command string) (*server, error) {
		cmd := exec.Command(path, "demo", "--json", "--listen", "127.0.0.1:0", "--shell", command)
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		s, err := launch(ctx, cmd, dir, gateway)
		if err != nil {
			return nil, err
		}
		var at struct{ Terminal, Tickets string }
		if err := json.NewDecoder(bufio.NewReader(out)).Decode(&at); err != nil {
			return nil, errors.Join(fmt.Errorf("termgw's first line: %w", err), s.stop())
		}
		s.target = func(ctx context.Context, workspace string) (target, error) {
			ticket, err := fetchTicket(ctx, at.Tickets, workspace)
			address := strings.Replace(at.Terminal, "/workspaces/"+hostWorkspace+"/", "/workspaces/"+workspace+"/", 1)
			return target{Kind: "termgw", URL: address + "?cols=80&rows=24", Ticket: ticket}, err
		}
		return s, nil
	}
}

func fetchTicket(ctx context.Context, url, workspace string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(`{"workspace":"`+workspace+`"}`))
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", errors.New("fetching a ticket failed") // the error has the address, which is a secret
	}
	defer response.Body.Close()
	var body struct{ Ticket string }
	if err := json.NewDecoder(response.Body).Decode(&body); err != nil || body.Ticket == "" {
		return "", fmt.Errorf("no ticket: %s", response.Status)
	}
	return body.Ticket, nil
}

var ttydPort = regexp.MustCompile(`Listening on port: (\d+)`)

func startTtyd(path string) func(context.Context, string, string) (*server, error) {
	return func(ctx context.Context, dir, command string) (*server, error) {
		s, err := launch(ctx, exec.Command(path, "-p", "0", "-i", "127.0.0.1", "-W", "sh", "-c", command), dir, "ttyd")
		if err != nil {
			return nil, err
		}
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			b, err := os.ReadFile(s.log)
			if err != nil {
				return nil, errors.Join(err, s.stop())
			}
			if m := ttydPort.FindSubmatch(b); m != nil {
				t := target{Kind: "ttyd", URL: "ws://127.0.0.1:" + string(m[1]) + "/ws"}
				s.target = func(context.Context, string) (target, error) { return t, nil }
				return s, nil
			}
		}
		return nil, errors.Join(errors.New("ttyd names no port"), s.stop())
	}
}

// launch starts a gateway, whose log goes to a file: reading it would cost time.
// It is killed when ctx ends, so that whatever waits for it goes on.
func launch(ctx context.Context, cmd *exec.Cmd, dir, name string) (*server, error) {
	log, err := os.CreateTemp(dir, name+"-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stderr = log
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	return &server{cmd: cmd, log: log.Name()}, nil
}

// launchAll starts every program with the same command.
func launchAll(ctx context.Context, dir string, list []*program, command string) ([]*server, error) {
	var all []*server
	for _, p := range list {
		s, err := p.start(ctx, dir, command)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("starting %s: %w", p.name, err), stopAll(all))
		}
		s.program = p
		if s.streamer, err = os.Executable(); err != nil {
			return nil, errors.Join(err, stopAll(append(all, s)))
		}
		all = append(all, s)
	}
	return all, nil
}

func stopAll(all []*server) error {
	var errs []error
	for _, s := range all {
		errs = append(errs, s.stop())
	}
	return errors.Join(errs...)
}

// stop kills the gateway and waits until its shells, hung up by the kernel, are
// gone.
func (s *server) stop() error {
	if s.cmd == nil {
		return nil
	}
	shells, err := children(s.pid())
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait() // killed
	for deadline := time.Now().Add(patience); err == nil && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		left := shells[:0]
		for _, pid := range shells {
			if unix.Kill(pid, 0) == nil {
				left = append(left, pid)
			}
		}
		if shells = left; len(shells) == 0 {
			return nil
		}
	}
	return errors.Join(err, fmt.Errorf("%d shells outlive %s", len(shells), filepath.Base(s.cmd.Path)))
}

func (s *server) pid() int { return s.cmd.Process.Pid }

// tail is the end of the log, for an error.
func (s *server) tail() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return ""
	}
	return string(b[max(0, len(b)-2<<10):])
}

// open opens one session that runs a command typed to child.
func (s *server) open(ctx context.Context, command string) (session, error) {
	t, err := s.target(ctx, hostWorkspace)
	if err != nil {
		return nil, err
	}
	opened, err := openTo(ctx, t, command)
	if err != nil {
		err = fmt.Errorf("%s: %w", s.name, err)
		if s.cmd != nil {
			err = fmt.Errorf("%w\n%s", err, bytes.TrimSpace([]byte(s.tail())))
		}
	}
	return opened, err
}

// settle waits until the gateway has ended every shell.
func (s *server) settle() error {
	if s.cmd == nil {
		return nil
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		shells, err := children(s.pid())
		if err != nil {
			return err
		}
		if len(shells) == 0 {
			return nil
		}
	}
	return fmt.Errorf("%s leaves shells", s.name)
}
