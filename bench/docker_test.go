package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// ptyServer is a bare pty, whose sessions run a shell that is typed to.
func ptyServer(command string) *server {
	return &server{program: &program{name: bare}, place: "container_", target: func(context.Context, string) (target, error) {
		return target{Kind: "pty", Command: command, Typed: child}, nil
	}}
}

// TestEchoOfATypedShell: the program that echoes has ended when the round has.
func TestEchoOfATypedShell(t *testing.T) {
	for _, shell := range []string{"bash", "sh"} {
		took, err := ptyServer("exec "+shell+" -i").echoRound(t.Context(), 10, false)
		if err != nil || len(took) != 10 {
			t.Errorf("%s: %d keys, %v", shell, len(took), err)
		}
	}
}

// TestDocker: a run has an engine of its own, tells when a shell in it ends, and leaves nothing.
func TestDocker(t *testing.T) {
	if _, err := os.Stat(filepath.Join("..", ".cache", "workspace-rootfs.tar")); err != nil {
		t.Skip("no workspace image: make workspace-image")
	}
	t.Setenv("DOCKER_HOST", "unix:///none.sock")
	dir, err := os.MkdirTemp("", "bench-") // a socket's path ends at 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}()
	d, err := newDocker(t.Context(), dir)
	var why missing
	if errors.As(err, &why) {
		t.Skip(why)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
		if err := d.call(context.Background(), "GET", "/_ping", nil, nil); err == nil {
			t.Error("the engine runs on")
		}
	}()
	if err := d.exec(t.Context(), "true"); err != nil {
		t.Error(err)
	}
	if err := d.exec(t.Context(), streamer, "stream", "5"); err != nil {
		t.Error(err)
	}
	s := ptyServer(fmt.Sprintf("DOCKER_HOST=unix://%s exec docker exec -it %s /bin/bash", d.socket, d.container))
	term, err := s.open(t.Context(), "printf E; read -r line; exit")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = term.Close() }()
	if err := await(term, "E"); err != nil {
		t.Error(err)
	}
	if n, err := d.execs(t.Context()); n != 1 || err != nil {
		t.Errorf("%d execs run, %v", n, err)
	}
	if err := errors.Join(finish(term, "\n"), d.settle(t.Context())); err != nil {
		t.Error(err)
	}
}
