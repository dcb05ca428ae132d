package docker

import (
	"cmp"
	"flag"
	"testing"

	"github.com/moby/moby/client"

	"github.com/molecule-ai/termgw/internal/shelltest"
	"github.com/molecule-ai/termgw/internal/testenv"
)

var env testenv.Env

func TestMain(m *testing.M) {
	flag.Parse()
	// The tests mostly wait for the grace between hang-up and kill.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	env.Main(m)
}

// testKind is newKind with the timing of tests, but for what cfg sets.
func testKind(cli *client.Client, cfg Config) *Kind {
	t := &cfg.Timing
	t.Grace = cmp.Or(t.Grace, shelltest.Timing.Grace)
	t.Retry = cmp.Or(t.Retry, shelltest.Timing.Retry)
	t.RetryLast = cmp.Or(t.RetryLast, shelltest.Timing.RetryLast)
	t.Unread = cmp.Or(t.Unread, shelltest.Timing.Unread)
	t.Start = cmp.Or(t.Start, shelltest.Timing.Start)
	t.Call = cmp.Or(t.Call, shelltest.Timing.Call)
	return newKind(cli, cfg)
}
