// Command sandbox runs a command in namespaces of its own: sandbox COMMAND [ARGUMENT…]. It exits with the command's
// status.
package main

import (
	"fmt"
	"os"

	"github.com/molecule-ai/termgw/internal/sandbox"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: sandbox COMMAND [ARGUMENT…]")
		os.Exit(2)
	}
	sandbox.Run(os.Args[1:])
}
