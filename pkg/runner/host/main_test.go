package host

import (
	"testing"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/internal/testenv"
	"github.com/molecule-ai/termgw/pkg/runner"
)

var env testenv.Env

func TestMain(m *testing.M) { env.Main(m) }

const (
	hostShell = "exec bash --norc --noprofile -i"
	upAndIdle = "echo up=$((6*7)); exec sleep 1000"
)

// kind returns what shelltest.Open wants: the kind whose shell is a command.
func kind(tb testing.TB, command string, keepDetached bool) func(func(runner.Swept)) shelltest.Starter {
	return func(swept func(runner.Swept)) shelltest.Starter {
		return New(Config{
			Command: command, Dir: tb.TempDir(), Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"},
			KeepDetached: keepDetached, Swept: swept, Timing: shelltest.Timing,
		})
	}
}
