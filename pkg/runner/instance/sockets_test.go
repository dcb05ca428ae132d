package instance

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/molecule-ai/termgw/internal/shelltest"
)

// makeDir makes a directory of sockets that nobody has locked, with a file in it.
func makeDir(t *testing.T, path string) (file string) {
	t.Helper()
	file = filepath.Join(path, "1.key")
	if err := errors.Join(os.MkdirAll(path, 0o700), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	return file
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// TestSocketsOfTheDead: a start removes what gateways that were killed have left,
// and nothing else.
func TestSocketsOfTheDead(t *testing.T) {
	t.Parallel()
	parent, err := os.MkdirTemp("", "tgwdead-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(parent) })
	in := func(name string) string { return filepath.Join(parent, name) }
	living, err := newSockets(parent)
	if err != nil {
		t.Fatal(err)
	}
	theirs := makeDir(t, living.dir)
	dead := in(socketDirPrefix + "1")
	makeDir(t, dead)
	other, another, elsewhere := makeDir(t, in("other-1")), makeDir(t, in(socketDirPrefix+"2")), makeDir(t, in("elsewhere"))
	if err := errors.Join(os.Symlink(in("elsewhere"), in(socketDirPrefix+"3")), os.WriteFile(in(socketDirPrefix+"4"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	keeps := []string{theirs, other, elsewhere, in(socketDirPrefix + "3"), in(socketDirPrefix + "4")}
	if os.Geteuid() == 0 {
		if err := os.Chown(filepath.Dir(another), 1, 1); err != nil {
			t.Fatal(err)
		}
		keeps = append(keeps, another)
	}
	next, err := newSockets(parent)
	if err != nil {
		t.Fatal(err)
	}
	if exists(dead) {
		t.Error("what a killed gateway has left is there")
	}
	for _, path := range keeps {
		if !exists(path) {
			t.Errorf("%s was removed", path)
		}
	}
	for _, s := range []*sockets{living, next} {
		if err := errors.Join(s.close(), s.remove()); err != nil {
			t.Error(err)
		}
		if exists(s.dir) {
			t.Errorf("%s is there", s.dir)
		}
	}
}

// TestSocketsStartTogether: none takes another's directory for abandoned.
func TestSocketsStartTogether(t *testing.T) {
	t.Parallel()
	parent, err := os.MkdirTemp("", "tgwmany-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(parent) })
	for range 20 {
		var starts sync.WaitGroup
		made := make([]*sockets, 8)
		for n := range made {
			starts.Go(func() {
				s, err := newSockets(parent)
				if err != nil {
					t.Error(err)
					return
				}
				made[n] = s
			})
		}
		starts.Wait()
		for _, s := range made {
			if s == nil {
				continue
			}
			if !exists(s.dir) {
				t.Errorf("%s is gone", s.dir)
			}
			if err := errors.Join(s.close(), s.remove()); err != nil {
				t.Error(err)
			}
		}
	}
	if n := shelltest.Entries(t, parent); n > 0 {
		t.Errorf("%d directories are left", n)
	}
}
