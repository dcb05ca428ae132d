package instance

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/molecule-ai/termgw/internal/shelltest"
)

// patient is a grace by which a sweep has a minute for all that it does.
const patient = "3000"

// runRemote runs remote.sh in a directory whose docker plays a container: what
// it answers to one sweep after the other, and what a file "inspects" does first
// when it is asked for its state. What watches does not sleep.
func runRemote(t *testing.T, dir string, shell remoteShell, grace, mode string, answers ...string) (stdout string, err error) {
	t.Helper()
	for n, answer := range answers {
		if err := os.WriteFile(filepath.Join(dir, "answer."+strconv.Itoa(n+1)), []byte(answer), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const docker = `#!/bin/sh
cd "${0%/*}" || exit
if [ "$1" = inspect ]; then
	[ ! -e inspects ] || . ./inspects
	echo found true false $$
	exit
fi
echo "$@" | tr '\n' ' ' >>asked
echo >>asked
. "./answer.$(wc -l <asked)"
`
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte(docker), 0o700); err != nil {
		t.Fatal(err)
	}
	if mode == "watch" {
		if err := os.WriteFile(filepath.Join(dir, "sleep"), []byte("#!/bin/sh\necho \"$1\" >>\"${0%/*}/slept\"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	program, err := exec.LookPath(shell.argv[0])
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-c", `eval "$1"`, "termgw", remoteCode, sweeperCode,
		"mode="+mode, "target="+TargetContainer, "session=s1", "keep_detached=true", "grace="+grace, "lease=90", "retry=5",
		"container=box", "shell=/bin/sh", "sid=find", "start=0")
	cmd.Args = slices.Concat(shell.argv[1:], cmd.Args[1:])
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + dir + ":" + shell.path}
	cmd.WaitDelay = shelltest.Patience
	out, err := cmd.Output()
	return strings.TrimSuffix(string(out), "\n"), err
}

// remoteShell is a shell that may be /bin/sh on an instance.
type remoteShell struct {
	argv []string // the program, and what it is called
	path string   // where its commands are
}

// remoteShells are by name: those of this machine, and dash where the shell has to do what some commands do else.
func remoteShells(tb testing.TB) map[string]remoteShell {
	tb.Helper()
	const all = "/usr/bin:/bin"
	few := tb.TempDir()
	for _, name := range []string{"cat", "grep", "seq", "sh", "sleep", "tr", "wc", "yes"} {
		path, err := exec.LookPath(name)
		if err == nil {
			err = os.Symlink(path, filepath.Join(few, name))
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
	shells := map[string]remoteShell{
		"dash": {[]string{"dash", "sh"}, all}, "bash": {[]string{"bash", "sh"}, all},
		"dash, few commands": {[]string{"dash", "sh"}, few}, "bash, few commands": {[]string{"bash", "sh"}, few},
	}
	if _, err := exec.LookPath("busybox"); err == nil {
		shells["busybox"] = remoteShell{[]string{"busybox", "sh"}, all}
	}
	return shells
}

// answer is a container's that prints something.
func answer(text string) string { return "cat <<\\END\n" + text + "\nEND\n" }

// TestRemoteScriptTrustsNoWord: whatever a container answers, none of it is run
// on the instance, matched with its files, or told to the gateway.
func TestRemoteScriptTrustsNoWord(t *testing.T) {
	t.Parallel()
	words := []string{
		"a[$(:>pwned)]", "$(:>pwned)", "`:>pwned`", ";:>pwned;", "killed=a[$(:>pwned)]", "1+a[$(:>pwned)]",
		"?", "*", "-1", "+1", "1.0", "0x1", "08", "01", "1234567890123456", "99999999999999999999", "٣", "²", "\x80", `\060`, "killed", "-n", "",
	}
	hostile := []string{"1", "1 0", "1 0 0 0", "1 0 0\n1 0 0", "1 0 a[$(:>pwned)]", "1 a[$(:>pwned)] 2", "1 0 ?", "1 ? 0"}
	for _, word := range words {
		hostile = append(hostile, word+" 0 2", word)
	}
	for name, shell := range remoteShells(t) {
		for _, c := range []struct {
			name   string
			before []string // what it answers first
			after  []string // and then
			says   string   // in the end; nonsense: it fails
		}{
			{name: "the user's", says: "nonsense"},
			{name: "root's", before: []string{answer("0 0 1")}, after: []string{answer("2 3 0")}, says: "2 3 0"},
			{name: "the user's again", before: []string{answer("0 0 1"), answer("1 0 0")}, says: "nonsense"},
		} {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				for _, words := range hostile {
					dir := scratch(t)
					if err := os.WriteFile(filepath.Join(dir, "7"), nil, 0o600); err != nil { // what ? matches
						t.Fatal(err)
					}
					got, err := runRemote(t, dir, shell, patient, "end", slices.Concat(c.before, []string{answer(words)}, c.after)...)
					if got != c.says || (err == nil) != (c.says != "nonsense") {
						t.Errorf("%q: says %q, %v", words, got, err)
					}
					if _, err := os.Stat(filepath.Join(dir, "pwned")); err == nil {
						t.Errorf("%q was run", words)
					}
				}
			})
		}
		t.Run(name+"/honest", func(t *testing.T) {
			t.Parallel()
			for says, answers := range map[string][]string{
				"4 5 0": {answer("4 5 0")},
				"3 1 0": {answer("0 0 2"), answer("2 1 0"), answer("1 1 0")},
				"0 0 2": {answer("0 0 2"), "exit 1", answer("0 0 2")}, // nobody may be root
			} {
				if got, err := runRemote(t, t.TempDir(), shell, patient, "end", answers...); got != says || err != nil {
					t.Errorf("says %q, %v, want %q", got, err, says)
				}
			}
		})
		// What guards a terminal asks first which process is its shell.
		for words, want := range map[string]string{
			"12 345": "sid=12 start=345", "none 0": "sid=find start=0", "1 a[$(:>pwned)]": "sid=find start=0", "a[$(:>pwned)] 1": "sid=find start=0",
			"12": "sid=find start=0", "12 345 6": "sid=find start=0", "? 1": "sid=find start=0",
		} {
			t.Run(name+"/guard/"+words, func(t *testing.T) {
				t.Parallel()
				dir := scratch(t)
				if err := os.WriteFile(filepath.Join(dir, "7"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
				if got, err := runRemote(t, dir, shell, patient, "watch", answer(words), answer("a[$(:>pwned)] 0 1"), answer("1 0 0")); lastLine(got) != "1 0 0" || err != nil {
					t.Errorf("says %q, %v", got, err)
				}
				if _, err := os.Stat(filepath.Join(dir, "pwned")); err == nil {
					t.Error("something was run")
				}
				asked, err := os.ReadFile(filepath.Join(dir, "asked"))
				if lines := strings.Split(string(asked), "\n"); err != nil || !strings.Contains(lines[1], " termgw-sweep "+want+" marker=TERMGW_SESSION=s1 ") {
					t.Errorf("asked %q, %v", asked, err)
				}
			})
		}
	}
}

// scratch makes a folder for a script, of which a command that was killed last may still write there for a moment.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "script")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shelltest.Eventually(t, "the folder is gone", func() bool { return os.RemoveAll(dir) == nil }) })
	return dir
}

// TestRemoteScriptSweepsAgain: while nothing answers, as in a container that is
// paused, what watches tries again, for an hour and not for ever. A container that
// runs has few tries.
func TestRemoteScriptSweepsAgain(t *testing.T) {
	t.Parallel()
	for name, shell := range remoteShells(t) {
		for what, c := range map[string]struct {
			answers  []string // to the question for the shell, then to the sweeps
			inspects string
			says     string // nothing: it gives up
			sweeps   int
		}{
			"answers at last":  {[]string{answer("12 345"), "exit 1", "exit 1", "exit 1", answer("2 1 0")}, "", "2 1 0", 4},
			"runs no more":     {[]string{answer("12 345"), "exit 1", "exit 1"}, "[ $(wc -l <asked) -lt 3 ] || { echo found false false; exit; }", "0 0 0", 2},
			"is gone":          {[]string{answer("12 345"), "exit 1"}, "echo Error: No such container: box >&2; exit 1", "0 0 0", 1},
			"leaves something": {[]string{answer("12 345"), answer("0 0 2"), "exit 1", answer("0 0 2")}, "", "0 0 2", 3},
			"never answers":    {[]string{answer("12 345")}, "", "nonsense", 4},
			"hangs":            {[]string{answer("12 345")}, "echo found true false $(seq $(wc -l <asked)); exit", "nonsense", 1},
			"is crowded":       {[]string{answer("12 345")}, "[ ! -e asked ] || { echo found true false $(seq 128); exit; }", "nonsense", 0},
			"is paused":        {[]string{answer("12 345")}, "echo found true true 1; exit", "", 18},
			"has no engine":    {[]string{answer("12 345")}, "echo dial unix /var/run/docker.sock: connect: no such file or directory >&2; exit 1", "", 18},
		} {
			if c.says == "" && name != "dash" && name != "bash" {
				continue // some have a sleep of their own, which is not ours, and without timeout there is more of it
			}
			t.Run(name+"/"+what, func(t *testing.T) {
				t.Parallel()
				dir := scratch(t)
				if err := os.WriteFile(filepath.Join(dir, "inspects"), []byte(c.inspects), 0o600); err != nil {
					t.Fatal(err)
				}
				gaveUp := c.says == "" || c.says == "nonsense"
				if got, err := runRemote(t, dir, shell, patient, "watch", c.answers...); lastLine(got) != c.says || (err != nil) != gaveUp {
					t.Errorf("says %q, %v, want %q", got, err, c.says)
				}
				asked, err := os.ReadFile(filepath.Join(dir, "asked"))
				if got := strings.Count(string(asked), "\n") - 1; err != nil || got != c.sweeps {
					t.Errorf("%d sweeps, %v, want %d", got, err, c.sweeps)
				}
				if c.says != "" {
					return
				}
				text, err := os.ReadFile(filepath.Join(dir, "slept"))
				if err != nil {
					t.Fatal(err)
				}
				slept, last := 0, 0
				for _, word := range strings.Fields(string(text))[3:] {
					n, err := strconv.Atoi(word)
					if err != nil || n < last || n > 300 {
						t.Errorf("sleeps for %s after %d: %v", word, last, err)
					}
					slept, last = slept+n, n
				}
				if slept < 3600 || slept > 3700 {
					t.Errorf("gives up after %d s", slept)
				}
			})
		}
	}
}

// TestRemoteScriptIsBounded: a sweep ends, whatever the container or the engine
// does.
func TestRemoteScriptIsBounded(t *testing.T) {
	t.Parallel()
	for name, shell := range remoteShells(t) {
		for what, does := range map[string]string{
			"says nothing": "echo $$ >pid; exec sleep 1000", "says it all the time": "echo $$ >pid; exec yes '1 0 0'", "cannot be told to end": "echo $$ >pid; trap '' HUP INT TERM; while :; do sleep 1; done",
			"has a silent engine": "exit 1", "has an engine that cannot be told to end": "exit 1", "has an engine that says it all the time": "exit 1",
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				t.Parallel()
				dir := scratch(t)
				inspects := map[string]string{
					"has a silent engine": "echo $$ >pid; exec sleep 1000", "has an engine that cannot be told to end": "echo $$ >pid; trap '' HUP INT TERM; while :; do sleep 1; done",
					"has an engine that says it all the time": "echo $$ >pid; exec yes no",
				}[what]
				if err := os.WriteFile(filepath.Join(dir, "inspects"), []byte(inspects), 0o600); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				want := "nonsense"
				if inspects != "" {
					want = "" // nobody tells whose doing it is
				}
				if got, err := runRemote(t, dir, shell, "0", "end", does); got != want || err == nil {
					t.Errorf("says %q, %v, want %q", got, err, want)
				}
				if took := time.Since(began); took > shelltest.Patience+10*time.Second {
					t.Errorf("it took %s", took)
				}
				text, err := os.ReadFile(filepath.Join(dir, "pid"))
				if err != nil {
					t.Fatal(err)
				}
				pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
				if err != nil {
					t.Fatal(err)
				}
				shelltest.Eventually(t, "nothing of it is left", func() bool { return unix.Kill(pid, 0) != nil })
			})
		}
	}
}
