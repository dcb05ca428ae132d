package ticket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// fileCheckEvery is the least time between two looks at the file. An unknown kid makes
// keys look at once, so that a rotation by mv needs no wait.
const fileCheckEvery = time.Second

// file is a JWK Set on this machine.
type file struct {
	path string
	now  func() time.Time

	mu      sync.Mutex
	set     keySet
	seen    os.FileInfo // of the content that was read last, good or bad
	checked time.Time   // when the file was last looked at
	current time.Time   // when set was last known to be the file's
	broken  error       // the reason why the content that was read last is not in set
	log     complaints
}

func openFile(config KeysConfig) (*file, error) {
	f := &file{
		path:    config.Location,
		now:     config.Now,
		checked: config.Now(),
		current: config.Now(),
		log:     complaints{logger: config.Logger, location: config.Location, now: config.Now},
	}
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, err
	}
	if err := f.load(info); err != nil {
		return nil, fmt.Errorf("%s: %w", f.path, err)
	}
	return f, nil
}

func (f *file) keys(_ context.Context, missed bool) (keySet, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if since := now.Sub(f.checked); !missed && since >= 0 && since < fileCheckEvery {
		return f.set, f.broken
	}
	f.checked = now
	err := f.refresh()
	if err != nil {
		f.log.failed(err)
	} else {
		f.log.fault = ""
		f.current = now
	}
	return f.set, err
}

func (f *file) read(ctx context.Context) { _, _ = f.keys(ctx, true) }

func (f *file) run(ctx context.Context) { <-ctx.Done() }

func (f *file) age() time.Duration {
	_, _ = f.keys(context.Background(), false) // looks at the file if the last look is a second old
	f.mu.Lock()
	defer f.mu.Unlock()
	return max(0, f.now().Sub(f.current))
}

// refresh reads the file if it has changed since it was read last.
func (f *file) refresh() error {
	info, err := os.Stat(f.path)
	if err != nil {
		return err
	}
	if os.SameFile(f.seen, info) && f.seen.Size() == info.Size() && f.seen.ModTime().Equal(info.ModTime()) {
		return f.broken
	}
	f.broken = f.load(info)
	return f.broken
}

// load reads the file's set. After an error the old set stays, and the file is not read
// again before it changes.
func (f *file) load(info os.FileInfo) error {
	// Opening a FIFO would block until another process opens it for writing.
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	opened, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer opened.Close()
	// Stat comes before the read, so that a write during the read shows as a change.
	if f.seen, err = opened.Stat(); err != nil {
		return err
	}
	data, err := readSet(opened)
	if err != nil {
		return err
	}
	set, notes, err := parseKeySet(data, true)
	if err != nil {
		return err
	}
	f.set = set
	f.log.loaded(set, notes)
	return nil
}

// readSet reads a document. One that is longer than maxSetBytes is an error.
func readSet(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxSetBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading the JWK Set: %w", err)
	}
	if len(data) > maxSetBytes {
		return nil, fmt.Errorf("the JWK Set is larger than %d bytes", maxSetBytes)
	}
	return data, nil
}
