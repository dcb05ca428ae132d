package main

import (
	"context"
	"errors"
	"io"
	"path/filepath"
)

// startContainer runs a workspace in the engine that DOCKER_HOST names. Without
// one there is none, and nothing to stop.
func startContainer(ctx context.Context, name string) (stop func() error, err error) {
	if _, err := output(ctx, "docker", "version"); err != nil {
		return nil, nil //nolint:nilerr // then containers are not measured
	}
	rootfs, err := output(ctx, filepath.Join("..", "scripts", "workspace-image"))
	if err != nil {
		return nil, err
	}
	image, err := output(ctx, "docker", "import", rootfs)
	if err != nil {
		return nil, err
	}
	stop = func() error {
		ctx := context.WithoutCancel(ctx)
		_, err1 := output(ctx, "docker", "rm", "-f", name)
		_, err2 := output(ctx, "docker", "rmi", image)
		return errors.Join(err1, err2)
	}
	if _, err := output(ctx, "docker", "run", "-d", "--network", "none", "--name", name, image, "sleep", "infinity"); err != nil {
		return nil, errors.Join(err, stop())
	}
	return stop, nil
}

// openContainer opens a shell in a container that termgw's demo offers, with the
// prompt of these measurements.
func (s *server) openContainer(ctx context.Context, name string) (session, error) {
	t, err := s.target(ctx, name)
	if err != nil {
		return nil, err
	}
	term, err := t.open(ctx)
	if err != nil {
		return nil, err
	}
	// In two pieces, so that the echo of it is none.
	quoted := "'" + prompt[:1] + "''" + prompt[1:] + "'"
	if _, err := io.WriteString(term, "PS1="+quoted+"\n"); err != nil {
		return nil, errors.Join(err, term.Close())
	}
	return term, nil
}
