package keeper

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// idleTime is how long a keeper without a terminal stays.
const idleTime = time.Minute

// Main is the program on an instance, by its arguments and environment:
//
//	start DIR     tells the file and the socket of the keeper of this version in DIR; starts the keeper if none serves
//	serve SOCKET  is the keeper, on the listener that is file 3
//	relay SOCKET  joins stdin and stdout with a keeper's socket, after it has printed "relay" between RS bytes
func Main(args, environ []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) != 2 {
		return errors.New("usage: termgw-keeper start DIR | serve SOCKET | relay SOCKET")
	}
	switch args[0] {
	case "start":
		program, socket, err := start(args[1], environ)
		if err == nil {
			_, err = fmt.Fprintf(stdout, "\x1ekeeper %s %s\x1e", filepath.Join(args[1], program), socket)
		}
		return err
	case "serve":
		return serve(args[1])
	case "relay":
		return relay(args[1], stdin, stdout)
	}
	return fmt.Errorf("there is no command %q", args[0])
}

// start returns the name of this program, and the socket of its keeper in a directory of the account.
func start(dir string, environ []string) (name, socket string, err error) {
	if err := checkDir(dir); err != nil {
		return "", "", err
	}
	program, err := os.Executable()
	if err != nil {
		return "", "", fmt.Errorf("finding this program: %w", err)
	}
	name = filepath.Base(program)
	socket = filepath.Join(dir, name+"."+bootID()+".sock")
	return name, socket, startOn(program, socket, environ)
}

// bootID tells machines apart that share a home, in eight characters.
func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(append(id, "00000000"...)[:8])
}

// startOn starts the keeper unless one serves.
func startOn(program, socket string, environ []string) error {
	if serves(socket) {
		return nil
	}
	unlock, err := lock(socket)
	if err != nil {
		return err
	}
	defer unlock()
	if serves(socket) { // another one's start
		return nil
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the last keeper's socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	defer func() { _ = l.Close() }()
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(socket, 0o600); err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	f, err := l.File()
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	defer func() { _ = f.Close() }()
	removeOld(filepath.Dir(socket), filepath.Base(program))
	cmd := exec.Command(program, "serve", socket)
	cmd.Env = environment(environ)
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the keeper: %w", err)
	}
	return cmd.Process.Release()
}

// environment returns the environment without what one login alone has: its agent and its display go with it.
func environment(all []string) (kept []string) {
	for _, v := range all {
		switch name, _, _ := strings.Cut(v, "="); name {
		case "SSH_AUTH_SOCK", "SSH_CLIENT", "SSH_CONNECTION", "SSH_TTY", "SSH_ORIGINAL_COMMAND", "DISPLAY", "XAUTHORITY", "SHLVL", "_":
		default:
			kept = append(kept, v)
		}
	}
	return kept
}

// checkDir returns an error unless the directory is the account's alone.
func checkDir(dir string) error {
	var s unix.Stat_t
	if err := unix.Lstat(dir, &s); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if s.Mode&unix.S_IFMT != unix.S_IFDIR || s.Mode&0o077 != 0 || int(s.Uid) != unix.Getuid() {
		return fmt.Errorf("%s is not a directory of this account alone", dir)
	}
	return nil
}

// serves reports whether a keeper listens on a socket, or may: one that is busy does.
func serves(socket string) bool {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, os.ErrNotExist)
	}
	_ = conn.Close()
	return true
}

// lock waits for the lock of a socket: whoever makes or removes the socket has it.
func lock(socket string) (unlock func(), err error) {
	f, err := os.OpenFile(socket+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	return func() { _ = f.Close() }, nil
}

// oldAge is the age at which what another machine, or an earlier boot, has left goes.
const oldAge = 30 * 24 * time.Hour

// removeOld removes the files of other versions whose keepers do not serve.
func removeOld(dir, own string) {
	files, _ := filepath.Glob(filepath.Join(dir, "keeper-*"))
	for _, path := range files {
		version, rest, _ := strings.Cut(filepath.Base(path), ".")
		boot, _, _ := strings.Cut(rest, ".")
		s, err := os.Lstat(path)
		switch {
		case err != nil:
		case boot != "" && boot != bootID() && time.Since(s.ModTime()) < oldAge: // it may be another machine's
		case version == own && (boot == "" || boot == bootID()), serves(filepath.Join(dir, version+"."+bootID()+".sock")):
		default:
			_ = os.Remove(path)
		}
	}
}

// serve is the keeper.
func serve(socket string) error {
	f := os.NewFile(3, "listener")
	l, err := net.FileListener(f)
	_ = f.Close()
	if err != nil {
		return fmt.Errorf("file 3: %w", err)
	}
	listener, ok := l.(*net.UnixListener)
	if !ok {
		return errors.New("file 3 is no unix socket")
	}
	mine, err := os.Lstat(socket)
	if err != nil {
		return fmt.Errorf("the socket: %w", err)
	}
	return New(idleTime).Serve(listener, func() {
		// Whoever starts the next one waits meanwhile.
		if unlock, err := lock(socket); err == nil {
			defer unlock()
		}
		removeOwn(socket, mine)
	})
}

// removeOwn removes a socket unless it is another's by now.
func removeOwn(socket string, mine os.FileInfo) {
	if now, err := os.Lstat(socket); err == nil && os.SameFile(mine, now) {
		_ = os.Remove(socket)
	}
}

// relay joins stdin and stdout with a socket, until the keeper closes it.
func relay(socket string, stdin io.Reader, stdout io.Writer) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(stdout, "\x1erelay\x1e"); err != nil {
		return err
	}
	go func() { // ends with the process
		_, _ = io.Copy(conn, stdin)
		_ = conn.Close()
	}()
	_, err = io.Copy(stdout, conn)
	return err
}
