package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/pkg/bridge"
	"github.com/molecule-ai/termgw/pkg/client"
	"github.com/molecule-ai/termgw/pkg/runner"
	shells "github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/terminal"

	"github.com/molecule-ai/termgw/internal/shelltest"
)

func TestShellThatIsNotThere(t *testing.T) {
	start := func() error {
		_, err := New(Config{Command: "exit", Dir: "/missing"}).Start(t.Context(), shelltest.NewTarget(t, ""), shelltest.DefaultSize)
		return err
	}
	shelltest.WantStep(t, start(), "pty") // what a first start costs once
	before := shelltest.Descriptors(t)
	shelltest.WantStep(t, start(), "pty")
	if after := shelltest.Descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	s := shelltest.Open(t, kind(t, "exec /missing/shell", true), shelltest.NewTarget(t, ""))
	if got := s.Exit(t); got != (terminal.Exit{Code: 127}) {
		t.Errorf("ended with %+v", got)
	}
}

func TestNoGoroutineAKey(t *testing.T) {
	term, err := New(Config{Command: "exec sh"}).Start(t.Context(), shelltest.NewTarget(t, ""), shelltest.DefaultSize)
	if err != nil {
		t.Fatal(err)
	}
	shelltest.WantNoGoroutineAKey(t, term)
}

// TestExitNamesTheSignal: unlike Docker, a pidfd tells a shell's own exit
// code from a signal.
func TestExitNamesTheSignal(t *testing.T) {
	t.Parallel()
	for command, want := range map[string]terminal.Exit{
		"exit 143":                    {Code: 143},
		"kill -TERM $$":               {Code: 143, Signal: "SIGTERM"},
		"kill -QUIT $$":               {Code: 131, Signal: "SIGQUIT"},
		"kill -INT $$":                {Code: 130, Signal: "SIGINT"},
		"sleep 1000 & kill -SEGV $$":  {Code: 139, Signal: "SIGSEGV"},
		"kill -USR1 $$; sleep 1000":   {Code: 138, Signal: "SIGUSR1"},
		"(kill -KILL $$); sleep 1000": {Code: 137, Signal: "SIGKILL"},
	} {
		s := shelltest.Open(t, kind(t, command, true), shelltest.NewTarget(t, ""))
		if got := s.Exit(t); got != want {
			t.Errorf("%s: ended with %+v, want %+v", command, got, want)
		}
		s.End(t)
		shelltest.WantLiving(t, s.ID)
	}
}

// TestResizeKeepsCloseWorking: pty.Setsize would leave the master blocking,
// and Close would not wake its reader.
func TestResizeKeepsCloseWorking(t *testing.T) {
	t.Parallel()
	s := shelltest.Open(t, kind(t, hostShell, true), shelltest.NewTarget(t, ""))
	if err := s.Resize(terminal.Size{Cols: 100, Rows: 30}); err != nil {
		t.Fatal(err)
	}
	term := s.Terminal.(*hostTerminal)
	var flags int
	var fcntl error
	if err := term.Master.Control(func(fd uintptr) { flags, fcntl = unix.FcntlInt(fd, unix.F_GETFL, 0) }); err != nil || fcntl != nil {
		t.Fatal(err, fcntl)
	}
	if flags&unix.O_NONBLOCK == 0 {
		t.Error("the master is blocking")
	}
	_ = term.Master.Close()
	s.Rest(t)
}

// TestAFloodThatStaysEndsWithTheShell: what a process prints that the shell left
// is bounded, also for a client that is still busy with the flood before.
func TestAFloodThatStaysEndsWithTheShell(t *testing.T) {
	t.Parallel()
	term, err := kind(t, `trap "" HUP; yes & read line; exit 3`, false)(nil).Start(t.Context(), shelltest.NewTarget(t, ""), shelltest.DefaultSize)
	if err != nil {
		t.Fatal(err)
	}
	sums := make(chan shells.Summary, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := bridge.Accept(w, r)
		if err != nil {
			t.Error(err)
			_ = term.Close()
			return
		}
		shell := shells.New(term, shells.Options{})
		b := bridge.New(ws, shell, bridge.Options{Ready: bridge.Ready{Mode: "rw"}})
		ctx, cancel := context.WithTimeout(context.Background(), shelltest.Patience)
		defer cancel()
		sum := shell.Run(ctx)
		b.Close(ctx, websocket.StatusNormalClosure, nil)
		shell.Join()
		sums <- sum
	}))
	defer srv.Close()
	c, err := client.Dial(t.Context(), client.Config{URL: strings.Replace(srv.URL, "http", "ws", 1), Ticket: "none"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	frame := time.NewTicker(16 * time.Millisecond) // a browser's
	defer frame.Stop()
	buf := make([]byte, 4<<10)
	for shown, told := 0, false; err == nil; <-frame.C {
		if shown >= 128<<10 && !told {
			told = true
			_, _ = c.Write([]byte("\n")) // the shell exits
		}
		var n int
		n, err = c.Read(buf)
		shown += n
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("the client was told %v", err)
	}
	sum := <-sums
	if sum.Cause != nil || sum.Exit == nil || *sum.Exit != (terminal.Exit{Code: 3}) {
		t.Errorf("summary %+v", sum)
	}
}

// TestIdleSessionsAreCheap: none holds an OS thread, and none leaves a
// descriptor.
func TestIdleSessionsAreCheap(t *testing.T) {
	const n = 100
	shelltest.Open(t, kind(t, upAndIdle, true), shelltest.NewTarget(t, "")).End(t) // what a first session costs once
	files, threads := shelltest.Descriptors(t), shelltest.Tasks(t)
	all := make([]*shelltest.Session, n)
	for i := range all {
		all[i] = shelltest.Open(t, kind(t, upAndIdle, true), shelltest.NewTarget(t, ""))
		all[i].Expect(t, "up=42")
	}
	if more := shelltest.Tasks(t) - threads; more > n/10 {
		t.Errorf("%d sessions added %d OS threads", n, more)
	}
	var wg sync.WaitGroup
	for _, s := range all {
		wg.Go(func() { s.End(t) })
	}
	wg.Wait()
	shelltest.Eventually(t, fmt.Sprintf("%d descriptors again", files), func() bool { return shelltest.Descriptors(t) <= files })
	for _, s := range all {
		shelltest.WantLiving(t, s.ID)
	}
}

func TestTrail(t *testing.T) {
	t.Parallel()
	target := shelltest.NewTarget(t, "")
	target.Trail = runner.Trail{}
	s := shelltest.Open(t, kind(t, "echo pid=$PPID.$$; read x", true), target)
	machine, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if target.Trail["host"] != machine || target.Trail["pid"] == "" {
		t.Errorf("the trail is %v", target.Trail)
	}
	s.Expect(t, "."+target.Trail["pid"]+"\r\n")
	s.End(t)
}
