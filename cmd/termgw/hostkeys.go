package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/molecule-ai/termgw/pkg/store"
)

// HostkeysCmd groups the commands for the host keys of instances that are kept for all replicas.
type HostkeysCmd struct {
	List   ListHostkeysCmd   `cmd:"" help:"Show the host key that each instance showed first."`
	Forget ForgetHostkeysCmd `cmd:"" help:"Let an instance show another host key, after it was made anew on purpose."`
}

// noKeptKeys is what the commands say without a database.
const noKeptKeys = "host keys are kept in the database that replicas share. A gateway without one keeps them until it ends"

// ListHostkeysCmd lists host keys.
type ListHostkeysCmd struct {
	JSON bool `name:"json" help:"One JSON object a line."`
}

// Help describes which keys there are.
func (ListHostkeysCmd) Help() string {
	return "Reads TERMGW_DATABASE_URL. An instance whose workspace's row has no host_key is trusted at the first connection, and has to show " +
		"the same key from then on. FINGERPRINT is as `ssh-keygen -lf` prints it. The newest comes first; times are UTC, by the database's clock."
}

// Run prints a table, or JSON.
func (c *ListHostkeysCmd) Run(ctx context.Context, std *stdio) error {
	return withDatabase(noKeptKeys, func(shared *store.Postgres) error {
		list, err := shared.HostKeys(ctx, mostListed)
		if err != nil {
			return err
		}
		if len(list) == mostListed {
			_, _ = fmt.Fprintf(std.Err, "termgw: only the newest %d are shown\n", mostListed)
		}
		if c.JSON {
			return hostKeysJSON(std.Out, list)
		}
		return hostKeysTable(std.Out, list)
	})
}

// hostKeyJSON is a host key for programs, which rely on the fields' names. Type and Fingerprint are empty if the kept line
// is no key.
type hostKeyJSON struct {
	Instance    string    `json:"instance"`
	Type        string    `json:"type"`
	Fingerprint string    `json:"fingerprint"`
	Since       time.Time `json:"since"`
}

func hostKeysJSON(out io.Writer, list []store.KeptHostKey) error {
	encoder := json.NewEncoder(out)
	for _, k := range list {
		kind, fingerprint := describeKey(k.Line)
		if err := encoder.Encode(hostKeyJSON{k.InstanceID, kind, fingerprint, k.Since.UTC()}); err != nil {
			return err
		}
	}
	return nil
}

func hostKeysTable(out io.Writer, list []store.KeptHostKey) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "no host keys")
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "INSTANCE\tTYPE\tFINGERPRINT\tSINCE") // Flush returns the error
	for _, k := range list {
		kind, fingerprint := describeKey(k.Line)
		if kind == "" {
			kind, fingerprint = "-", "no key: "+fmt.Sprintf("%.40q", k.Line)
		}
		_, _ = fmt.Fprintln(table, strings.Join([]string{printable(k.InstanceID), kind, printable(fingerprint), moment(k.Since)}, "\t"))
	}
	return table.Flush()
}

// describeKey returns the type and the fingerprint of a public key, a line as in authorized_keys; empty if the line is none.
func describeKey(line string) (kind, fingerprint string) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return "", ""
	}
	return key.Type(), ssh.FingerprintSHA256(key)
}

// ForgetHostkeysCmd forgets host keys.
type ForgetHostkeysCmd struct {
	Instances []string `arg:"" name:"instance-id" help:"The instances whose keys to forget."`
}

// Help describes what forgetting does, and what it does not.
func (ForgetHostkeysCmd) Help() string {
	return "Deletes rows of termgw.host_keys (TERMGW_DATABASE_URL), and asks nothing before. The next connection to the instance keeps the key that it sees then: " +
		"so first make sure that the instance was made anew, and that nobody else answers in its place. " +
		"Nothing that runs is ended: a connection that is open goes on, with the key that it began with. " +
		"The exit status is 1 if no key is kept for one of the instances; the others' are forgotten all the same."
}

// Run deletes the keys, and prints which.
func (c *ForgetHostkeysCmd) Run(ctx context.Context, std *stdio) error {
	if slices.Contains(c.Instances, "") {
		return errors.New("an instance's id is given and empty: leave it out, or fill it")
	}
	return withDatabase(noKeptKeys, func(shared *store.Postgres) error {
		forgotten, err := shared.ForgetHostKeys(ctx, c.Instances)
		if err != nil {
			return err
		}
		for _, k := range forgotten {
			kind, fingerprint := describeKey(k.Line)
			_, _ = fmt.Fprintf(std.Out, "forgot the host key of %s: %s, kept since %s\n",
				printable(k.InstanceID), printable(strings.TrimSpace(kind+" "+fingerprint)), moment(k.Since))
		}
		var unknown []string
		for _, id := range c.Instances {
			if !slices.ContainsFunc(forgotten, func(k store.KeptHostKey) bool { return k.InstanceID == id }) && !slices.Contains(unknown, printable(id)) {
				unknown = append(unknown, printable(id))
			}
		}
		if len(forgotten) > 0 {
			_, _ = fmt.Fprintln(std.Out, "The next connection keeps the key that it sees. A connection that is open goes on with the key that it began with.")
		}
		if len(unknown) > 0 {
			return fmt.Errorf("no host key is kept for %s; `termgw hostkeys list` shows for whom", strings.Join(unknown, ", "))
		}
		return nil
	})
}
