// Command termgw-keeper holds terminals on an instance while the gateway makes the way to them anew. The gateway brings
// the program there by itself; nobody installs or runs it.
package main

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/molecule-ai/termgw/internal/keeper"
)

func main() {
	debug.SetGCPercent(50) // it shares a small machine with what people run
	if err := keeper.Main(os.Args[1:], os.Environ(), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "termgw-keeper:", err)
		os.Exit(1)
	}
}
