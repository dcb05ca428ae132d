package docker

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/terminal"
)

// TestPodman opens and ends terminals by Podman's Docker-compatible API.
func TestPodman(t *testing.T) {
	t.Parallel()
	engine := testenv.StartPodman(t)
	cli := engine.Client(t)
	works := engine.RunContainerWith(t, "works", func(c *client.ContainerCreateOptions) { c.Config.WorkingDir = "/work" })
	shells := []string{"/bin/missing", "/bin/bash"}
	cfg := Config{KeepDetached: true, Shells: shells}

	t.Run("size, keys and exit code", func(t *testing.T) {
		s := openIn(t, cli, works, shells...)
		s.Send(t, "stty size\n")
		s.Expect(t, "24 80\r\n")
		if err := s.Resize(terminal.Size{Cols: 123, Rows: 45}); err != nil {
			t.Fatal(err)
		}
		s.Send(t, "until stty size | grep '45 123'; do sleep 0.05; done; pwd\n") // Podman answers before conmon has done it
		s.Expect(t, "45 123\r\n/work\r\n")
		keys := string(s.Terminal.(*execTerminal).keys[:4])
		for _, typed := range []string{"\x10\x11", "\x00a", "\x00\x1ea", keys + keys + "a", "\xff\x03\x04"} {
			s.Send(t, fmt.Sprintf("stty raw -echo; echo up=$((6*7)); head -c%d | od -An -tx1; stty sane\n", len(typed)))
			s.Expect(t, "up=42")
			s.Send(t, typed)
			s.Expect(t, fmt.Sprintf("\n % x", typed))
		}
		s.Send(t, "stty -onlcr; echo begin=$((6*7)); seq 300000; exit 7\n")
		s.Expect(t, "begin=42\n")
		var flood bytes.Buffer
		for n := range 300000 {
			fmt.Fprintln(&flood, n+1)
		}
		if got := s.Rest(t); !bytes.HasPrefix(got, flood.Bytes()) {
			t.Errorf("of %d bytes came %d, the last are %q", flood.Len(), len(got), got[max(0, len(got)-40):])
		}
		if got, want := s.Exit(t), (terminal.Exit{Code: 7}); got != want {
			t.Errorf("ended with %+v, want %+v", got, want)
		}
		if got := s.End(t); got != (runner.Swept{}) {
			t.Errorf("swept %+v", got)
		}
		shelltest.WantLiving(t, s.ID)
	})

	withJobs := func(t *testing.T, s *shelltest.Session) {
		t.Helper()
		t.Cleanup(func() { shelltest.KillLiving(t, s.ID) })
		s.Ready(t, shelltest.Job("bg", "$SIG{HUP}=sub{}")+" &")
		s.Ready(t, "env -i PATH=$PATH "+shelltest.Job("bare", "")+" &")
		s.Ready(t, "nohup "+shelltest.Job("nohup", "")+" >/dev/null 2>&1 &")
	}
	t.Run("the end", func(t *testing.T) {
		s := openIn(t, cli, works, shells...)
		withJobs(t, s)
		if got, want := s.End(t), (runner.Swept{Killed: 2, Kept: 1}); got != want {
			t.Errorf("swept %+v, want %+v", got, want)
		}
		shelltest.WantLiving(t, s.ID, "nohup")
	})
	t.Run("the end of what a dead gateway has left", func(t *testing.T) {
		target := shelltest.NewTarget(t, works)
		s := shelltest.Open(t, shelltest.By(testKind(cli, cfg)), target)
		withJobs(t, s)
		wantReaped(t, cli, target, cfg, runner.Swept{Killed: 3, Kept: 1})
		shelltest.WantLiving(t, s.ID, "nohup")
	})
	t.Run("a flood that nobody reads", func(t *testing.T) {
		term, err := testKind(cli, cfg).Start(t.Context(), shelltest.NewTarget(t, works), shelltest.DefaultSize)
		if err != nil {
			t.Fatal(err)
		}
		session := term.(*execTerminal).session
		if _, err := term.Write([]byte("echo $((6*7)); yes\n")); err != nil {
			t.Fatal(err)
		}
		shelltest.Eventually(t, "it floods", func() bool { return slices.Contains(shelltest.Living(t, session), "yes") })
		if err := term.Close(); err != nil {
			t.Error(err)
		}
		shelltest.WantLiving(t, session)
	})

	t.Run("no shell", func(t *testing.T) {
		target := shelltest.NewTarget(t, works)
		_, err := testKind(cli, Config{Shells: []string{"/bin/missing", "/etc"}}).Start(t.Context(), target, shelltest.DefaultSize)
		shelltest.WantStep(t, err, "shell")
		shelltest.WantLiving(t, target.Session)
	})
	t.Run("no working directory", func(t *testing.T) {
		engine.Exec(t, works, "rmdir", "/work")
		s := openIn(t, cli, works, shells...)
		s.Send(t, "pwd\n")
		s.Expect(t, "\r/\r\n")
		if got := s.End(t); got != (runner.Swept{}) {
			t.Errorf("swept %+v", got)
		}
		shelltest.WantLiving(t, s.ID)
	})

	wantNotRunning := func(t *testing.T, why string) {
		t.Helper()
		_, err := testKind(cli, cfg).Start(t.Context(), shelltest.NewTarget(t, works), shelltest.DefaultSize)
		if !errors.Is(err, runner.ErrNotRunning) || !strings.Contains(err.Error(), why) {
			t.Errorf("got %v, want %v: %s", err, runner.ErrNotRunning, why)
		}
	}
	t.Run("a paused container", func(t *testing.T) {
		p := newPayer(t, cli)
		id := p.owe(t, works, func() {
			engine.Pause(t, works)
			wantNotRunning(t, "paused")
		})
		engine.Unpause(t, works)
		shelltest.Eventually(t, "it is paid", func() bool { return len(p.paid()) > 0 })
		if got, want := p.paid(), []runner.Swept{{Killed: 1}}; !slices.Equal(got, want) {
			t.Errorf("swept %+v, want %+v", got, want)
		}
		shelltest.WantLiving(t, id)
	})
	t.Run("a stopped container", func(t *testing.T) {
		s := openIn(t, cli, works, shells...)
		if _, err := cli.ContainerStop(t.Context(), works, client.ContainerStopOptions{}); err != nil {
			t.Fatal(err)
		}
		if got, want := s.Exit(t), (terminal.Exit{Code: 137, Signal: "SIGKILL"}); got != want {
			t.Errorf("ended with %+v, want %+v", got, want)
		}
		if got := s.End(t); got != (runner.Swept{}) {
			t.Errorf("swept %+v", got)
		}
		wantNotRunning(t, "stopped")
		// As of one that stops after it was found. Docker answers 409 then, Podman 500.
		if _, err := testKind(cli, cfg).openFound(t.Context(), works, shelltest.NewTarget(t, works), shelltest.DefaultSize); !errors.Is(err, runner.ErrNotRunning) {
			t.Error(err)
		}
	})
}
