package runner

import (
	"fmt"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/pkg/bridge"
)

func TestHostShellThatIsNotThere(t *testing.T) {
	before := descriptors(t)
	_, err := NewHost(HostConfig{Command: "exit", Dir: "/missing"}).Start(t.Context(), newTarget(t, ""), defaultSize)
	wantStep(t, err, "pty")
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	s := open(t, hostPlace("exec /missing/shell").runner(t, false), newTarget(t, ""))
	if got := s.exit(t); got != (bridge.Exit{Code: 127}) {
		t.Errorf("ended with %+v", got)
	}
}

// TestHostExitNamesTheSignal: unlike Docker, a pidfd tells a shell's own exit
// code from a signal.
func TestHostExitNamesTheSignal(t *testing.T) {
	for command, want := range map[string]bridge.Exit{
		"exit 143":                    {Code: 143},
		"kill -TERM $$":               {Code: 143, Signal: "SIGTERM"},
		"kill -QUIT $$":               {Code: 131, Signal: "SIGQUIT"},
		"kill -INT $$":                {Code: 130, Signal: "SIGINT"},
		"sleep 1000 & kill -SEGV $$":  {Code: 139, Signal: "SIGSEGV"},
		"kill -USR1 $$; sleep 1000":   {Code: 138, Signal: "SIGUSR1"},
		"(kill -KILL $$); sleep 1000": {Code: 137, Signal: "SIGKILL"},
	} {
		s := open(t, hostPlace(command).runner(t, false), newTarget(t, ""))
		if got := s.exit(t); got != want {
			t.Errorf("%s: ended with %+v, want %+v", command, got, want)
		}
		s.end(t)
		wantLiving(t, s.id)
	}
}

// TestHostResizeKeepsCloseWorking: pty.Setsize would leave the master blocking,
// and Close would not wake its reader.
func TestHostResizeKeepsCloseWorking(t *testing.T) {
	p := hostPlace(hostShell)
	s := open(t, p.runner(t, false), p.target(t))
	if err := s.Resize(bridge.Size{Cols: 100, Rows: 30}); err != nil {
		t.Fatal(err)
	}
	term := s.Terminal.(*hostTerminal)
	var flags int
	var fcntl error
	if err := term.ptmx.Control(func(fd uintptr) { flags, fcntl = unix.FcntlInt(fd, unix.F_GETFL, 0) }); err != nil || fcntl != nil {
		t.Fatal(err, fcntl)
	}
	if flags&unix.O_NONBLOCK == 0 {
		t.Error("the master is blocking")
	}
	_ = term.ptmx.Close()
	s.rest(t)
}

// TestIdleHostSessionsAreCheap: none holds an OS thread, and none leaves a
// descriptor.
func TestIdleHostSessionsAreCheap(t *testing.T) {
	const n = 100
	p := hostPlace("echo up=$((6*7)); exec sleep 1000")
	files, threads := descriptors(t), tasks(t)
	all := make([]*session, n)
	for i := range all {
		all[i] = open(t, p.runner(t, false), p.target(t))
		all[i].expect(t, "up=42")
	}
	if more := tasks(t) - threads; more > n/10 {
		t.Errorf("%d sessions added %d OS threads", n, more)
	}
	var wg sync.WaitGroup
	for _, s := range all {
		wg.Go(func() { s.end(t) })
	}
	wg.Wait()
	eventually(t, fmt.Sprintf("%d descriptors again", files), func() bool { return descriptors(t) <= files })
	for _, s := range all {
		wantLiving(t, s.id)
	}
}
