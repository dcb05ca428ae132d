// Package program has the keeper's program for the instances' architectures.
//
// `make keeper` builds it into dist, which is embedded. Without it, terminals on instances end with their tunnel.
package program

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io"
)

//go:embed all:dist
var dist embed.FS

// Program is the keeper for one architecture.
type Program struct {
	Gzip   []byte // the file, compressed
	SHA256 string // of the file, in hexadecimal
}

// Programs are the keepers by machine, as `uname -m` has it.
type Programs map[string]Program

// Embedded returns the programs that were built with this one; none, if none were.
func Embedded() (Programs, error) {
	all := Programs{}
	for machine, arch := range map[string]string{"x86_64": "amd64", "aarch64": "arm64"} {
		compressed, err := dist.ReadFile("dist/keeper-linux-" + arch + ".gz")
		if err != nil {
			continue // it was not built
		}
		if all[machine], err = New(compressed); err != nil {
			return nil, fmt.Errorf("the keeper for %s: %w", arch, err)
		}
	}
	return all, nil
}

// Name is the start of the hash, by which the file is named on an instance: a socket beside it has a short path.
func (p Program) Name() string { return p.SHA256[:16] }

// New returns the program of a compressed file.
func New(compressed []byte) (Program, error) {
	p := Program{Gzip: compressed}
	file, err := p.Unpack()
	if err != nil {
		return Program{}, err
	}
	hash := sha256.Sum256(file)
	p.SHA256 = hex.EncodeToString(hash[:])
	return p, nil
}

// Unpack returns the file.
func (p Program) Unpack() ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(p.Gzip))
	if err != nil {
		return nil, fmt.Errorf("unpacking: %w", err)
	}
	file, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("unpacking: %w", err)
	}
	return file, nil
}
