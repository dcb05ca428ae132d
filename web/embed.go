// Package web embeds the built demo page. It owns no HTTP: who serves the
// files, and under which headers, is the caller's choice.
package web

import (
	"embed"
	"io/fs"
)

// dist is filled by `npm run build`; in a fresh clone it holds only .gitkeep,
// so that the command builds on a machine without Node.
//
//go:embed all:dist
var dist embed.FS

// Page returns the built page's files, index.html at the root, and false when
// the page was not built before the command was.
func Page() (fs.FS, bool) {
	files, err := fs.Sub(dist, "dist")
	if err != nil {
		return nil, false
	}
	if _, err := fs.Stat(files, "index.html"); err != nil {
		return nil, false
	}
	return files, true
}
