package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/molecule-ai/termgw/pkg/client"
)

// A platform checks that a workspace's terminal opens and runs a command.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, client.Config{
		URL:    "wss://platform.example/workspaces/0198c0de/terminal",
		Ticket: os.Getenv("TICKET"), // minted with pkg/ticket
	})
	var refused *client.Error
	switch {
	case errors.As(err, &refused):
		fmt.Println("refused:", refused.Code, "worth another try:", refused.Retryable)
		return
	case err != nil:
		fmt.Println(err)
		return
	}
	defer c.Close()
	if _, err := io.WriteString(c, "id; exit 3\r"); err != nil {
		fmt.Println(err)
		return
	}
	if _, err := io.Copy(os.Stdout, c); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("exit status", c.Exit().Code)
}
