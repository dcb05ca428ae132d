package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// outerPIDVariable holds the pid of the outer process, which process 1 cannot see.
	outerPIDVariable = "TERMGW_SANDBOX_OUTER"
	// privateDir is in the sandbox's own /run, in memory.
	privateDir = "/run/termgw"
	// tempDir is as short as /tmp: paths of unix sockets end at 107 bytes.
	tempDir = "/run"
)

// overlaid are the directories whose changes stay in the sandbox.
var overlaid = []string{"/etc", "/var/lib", "/var/log"}

// runInit is process 1. It runs argv, with the program at path unless path is empty, and exits with its status.
func runInit(argv []string, path string) {
	outer := os.Getenv(outerPIDVariable)
	if err := prepare(outer); err != nil {
		exitAs(0, fmt.Errorf("preparing the namespaces: %w", err))
	}
	cmd := command(argv)
	if path != "" {
		cmd.Path, cmd.Err = path, nil
	}
	cmd.Env = append(os.Environ(), stageVariable+"="+stageInside, "TMPDIR="+tempDir)
	quits := CatchSignals()
	child, err := start(cmd)
	if err != nil {
		exitAs(0, err)
	}
	go func() {
		for sig := range quits {
			_ = child.Signal(sig)
		}
	}()
	exitAs(reapUntil(child.Pid, -1))
}

// prepare makes the namespaces fit for daemons.
func prepare(outer string) error {
	// Mounts from here on are invisible outside.
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	resolver := nameServers()
	if err := mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID, "mode=1777"); err != nil {
		return err
	}
	for _, dir := range []struct {
		path string
		mode fs.FileMode
	}{{privateDir, 0o755}, {"/run/lock", 0o777 | fs.ModeSticky}} {
		if err := errors.Join(os.Mkdir(dir.path, dir.mode), os.Chmod(dir.path, dir.mode)); err != nil {
			return err
		}
	}
	// The machine's network, for downloads.
	if err := os.WriteFile(outsideNetwork, nil, 0o600); err != nil {
		return err
	}
	if err := mount("/proc/"+outer+"/ns/net", outsideNetwork, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := resolver.write(); err != nil {
		return err
	}
	for _, dir := range overlaid {
		if err := overlay(dir); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/dev/shm", "/var/tmp"} {
		if err := mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
			return err
		}
	}
	// /proc shows the sandbox's processes. Settings of the whole machine are read-only, those of the network are the sandbox's.
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	for _, dir := range []string{"/proc/sys", "/proc/sys/net"} {
		if err := mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	if err := mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	return loopbackUp()
}

func mount(source, target, fsType string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fsType, flags, data); err != nil {
		return &fs.PathError{Op: "mount", Path: target, Err: err}
	}
	return nil
}

// overlay keeps the writes to a directory in memory.
func overlay(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	layer := filepath.Join(privateDir, "layer"+strings.ReplaceAll(dir, "/", "-"))
	upper, work := filepath.Join(layer, "upper"), filepath.Join(layer, "work")
	if err := errors.Join(os.MkdirAll(upper, 0o755), os.Mkdir(work, 0o700)); err != nil { //nolint:gosec // as /etc and the like are
		return err
	}
	return mount("overlay", dir, "overlay", 0, "lowerdir="+dir+",upperdir="+upper+",workdir="+work)
}

// resolverFile is the list of name servers, if a service of the machine keeps it in /run, which the sandbox hides.
type resolverFile struct {
	path string
	data []byte
}

func nameServers() resolverFile {
	path, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil || !strings.HasPrefix(path, "/run/") {
		return resolverFile{}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return resolverFile{}
	}
	return resolverFile{path, data}
}

func (f resolverFile) write() error {
	if f.path == "" {
		return nil
	}
	return errors.Join(os.MkdirAll(filepath.Dir(f.path), 0o755), os.WriteFile(f.path, f.data, 0o644)) //nolint:gosec // everybody reads it
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bringing up the loopback interface: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bringing up the loopback interface: %w", err)
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bringing up the loopback interface: %w", err)
	}
	return nil
}
