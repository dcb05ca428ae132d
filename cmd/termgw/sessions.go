package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/molecule-ai/termgw/pkg/store"
)

// SessionsCmd groups the commands for the sessions of all replicas.
type SessionsCmd struct {
	List   ListSessionsCmd   `cmd:"" help:"Show who is in which workspace since when, on all replicas."`
	Revoke RevokeSessionsCmd `cmd:"" help:"Cut sessions on all replicas at once, and refuse the tickets that were issued before."`
}

// sessionNames selects the sessions that match all given names. check refuses an empty
// name: probably a script's variable was unset, and the other names alone would match
// too many sessions.
type sessionNames struct {
	Workspace *string `placeholder:"ID" help:"Of this workspace."`
	Subject   *string `placeholder:"WHO" help:"Of this person, the ticket's sub."`
	Session   *string `placeholder:"ID" help:"This session."`
	Instance  *string `placeholder:"ID" help:"On this instance."`
}

func (n sessionNames) check() error {
	for _, value := range []*string{n.Workspace, n.Subject, n.Session, n.Instance} {
		if value != nil && *value == "" {
			return errors.New("a name is given and empty: leave its flag out, or fill it")
		}
	}
	return nil
}

func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// mostListed bounds the sessions in a list. No fleet has so many live sessions; the audit
// trail may have more rows.
const mostListed = 10_000

// ListSessionsCmd lists sessions.
type ListSessionsCmd struct {
	sessionNames
	Replica string `placeholder:"NAME" help:"On this replica."`
	All     bool   `help:"Also those that have ended, as long as the audit trail is kept."`
	JSON    bool   `name:"json" help:"One JSON object a line."`
}

// Help describes the columns of times.
func (ListSessionsCmd) Help() string {
	return "Reads TERMGW_DATABASE_URL. The newest comes first; times are UTC, by the database's clock. " +
		"A live session is noted every few seconds: one whose LAST SEEN is minutes ago has lost its gateway, and its row is closed by the next that looks."
}

// Run prints a table, or JSON.
func (c *ListSessionsCmd) Run(ctx context.Context, std *stdio) error {
	if err := c.check(); err != nil {
		return err
	}
	return withDatabase(noSharedSessions, func(shared *store.Postgres) error {
		list, err := shared.Sessions(ctx, store.SessionFilter{
			WorkspaceID: orEmpty(c.Workspace), Subject: orEmpty(c.Subject), SessionID: orEmpty(c.Session), InstanceID: orEmpty(c.Instance),
			Replica: c.Replica, All: c.All, Limit: mostListed,
		})
		if err != nil {
			return err
		}
		if len(list) == mostListed {
			_, _ = fmt.Fprintf(std.Err, "termgw: only the newest %d are shown\n", mostListed)
		}
		if c.JSON {
			return sessionsJSON(std.Out, list)
		}
		return sessionsTable(std.Out, list, c.All)
	})
}

// sessionJSON is a session for programs, which rely on the fields' names.
type sessionJSON struct {
	Session   string     `json:"session"`
	Workspace string     `json:"workspace"`
	Subject   string     `json:"subject"`
	Mode      string     `json:"mode"`
	Target    string     `json:"target"` // the kind of place
	Instance  string     `json:"instance,omitempty"`
	Replica   string     `json:"replica"`
	Client    string     `json:"client"`
	Started   time.Time  `json:"started"`
	LastSeen  time.Time  `json:"last_seen"`
	Waiting   bool       `json:"waiting,omitempty"` // for its person
	Resumes   int        `json:"resumes,omitempty"`
	Ended     *time.Time `json:"ended,omitempty"`
	Reason    string     `json:"reason,omitempty"`
	ExitCode  *int       `json:"exit_code,omitempty"`
	// The bytes are recorded with the end, and unknown for a session that was lost with its replica.
	BytesIn  *int64 `json:"bytes_in,omitempty"`
	BytesOut *int64 `json:"bytes_out,omitempty"`
	// What others' logs know the session by.
	Trail map[string]string `json:"trail,omitempty"`
}

func sessionsJSON(out io.Writer, list []store.Record) error {
	encoder := json.NewEncoder(out)
	for _, r := range list {
		line := sessionJSON{
			Session: r.ID, Workspace: r.WorkspaceID, Subject: r.Subject, Mode: string(r.Mode),
			Target: targetOf(r), Instance: r.InstanceID, Replica: r.Replica, Client: r.ClientAddr,
			Started: r.Started.UTC(), LastSeen: r.LastSeen.UTC(), Waiting: r.Waiting, Resumes: r.Resumes,
			Reason: r.Reason, ExitCode: r.ExitCode, Trail: r.Trail,
		}
		if !r.Ended.IsZero() {
			ended := r.Ended.UTC()
			line.Ended = &ended
			if r.Reason != store.ReasonLost {
				line.BytesIn, line.BytesOut = &r.BytesIn, &r.BytesOut
			}
		}
		if err := encoder.Encode(line); err != nil {
			return err
		}
	}
	return nil
}

func sessionsTable(out io.Writer, list []store.Record, all bool) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "no sessions")
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(cells ...string) {
		for i := range cells {
			cells[i] = printable(cells[i])
			if cells[i] == "" {
				cells[i] = "-"
			}
		}
		_, _ = fmt.Fprintln(table, strings.Join(cells, "\t")) // Flush returns the error
	}
	head := []string{"SESSION", "WORKSPACE", "WHO", "TARGET", "REPLICA", "CLIENT", "SINCE", "LAST SEEN", "STATE"}
	if all {
		head = append(head, "ENDED", "WHY")
	}
	line(head...)
	for _, r := range list {
		target := targetOf(r)
		if r.InstanceID != "" {
			target = r.InstanceID
		}
		cells := []string{r.ID, r.WorkspaceID, r.Subject, target, r.Replica, r.ClientAddr, moment(r.Started), moment(r.LastSeen), stateOf(r)}
		if all {
			cells = append(cells, moment(r.Ended), r.Reason)
		}
		line(cells...)
	}
	return table.Flush()
}

// targetOf is the name of the session's kind of place. Before 0007_kinds.sql there were two, and no note of them.
func targetOf(r store.Record) string {
	switch {
	case r.Kind != "":
		return r.Kind
	case r.InstanceID != "":
		return "remote"
	}
	return "local"
}

// stateOf is what a session that lives does: a person is there, or it waits for one.
func stateOf(r store.Record) string {
	switch {
	case !r.Ended.IsZero():
		return ""
	case r.Waiting:
		return "waiting"
	}
	return "open"
}

func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

// printable returns untrusted text, a person's name for example, without escape
// sequences, tabs and ends of lines, so that it is safe for a terminal and a table.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, s)
}

// RevokeSessionsCmd cuts sessions.
type RevokeSessionsCmd struct {
	sessionNames
	Reason string `placeholder:"TEXT" help:"Why, for the record."`
}

// Help describes a revocation.
func (RevokeSessionsCmd) Help() string {
	return "Writes a row into termgw.revocations (TERMGW_DATABASE_URL). Names at least one of workspace, subject, session or instance; " +
		"cut is what matches all that are named. A ticket that is minted afterwards opens again. " +
		"Waits up to 30 s for the gateways to end the sessions and prints which they have ended; the exit status is 1 if one is left."
}

// cutTime bounds the wait for the gateways, which read a revocation within 5 s and then
// take some seconds to end shells. cutPoll is the interval between queries of the database.
const (
	cutTime = 30 * time.Second
	cutPoll = 200 * time.Millisecond
)

// Run writes the revocation, and prints the sessions that the gateways have ended.
func (c *RevokeSessionsCmd) Run(ctx context.Context, std *stdio) error {
	if err := c.check(); err != nil {
		return err
	}
	if c.Workspace == nil && c.Subject == nil && c.Session == nil && c.Instance == nil {
		return errors.New("whose sessions? Name one or more of --workspace, --subject, --session and --instance")
	}
	return withDatabase(noSharedSessions, func(shared *store.Postgres) error {
		revocation, covered, err := shared.Revoke(ctx, store.Revocation{
			WorkspaceID: orEmpty(c.Workspace), Subject: orEmpty(c.Subject), SessionID: orEmpty(c.Session), InstanceID: orEmpty(c.Instance),
			Reason: c.Reason, By: operator(),
		})
		if revocation.ID == 0 {
			return err
		}
		left, err := untilCut(ctx, shared, covered, err)
		isLeft := func(id string) bool {
			return slices.ContainsFunc(left, func(r store.Record) bool { return r.ID == id })
		}
		cut := slices.DeleteFunc(covered, isLeft)
		_, _ = fmt.Fprintf(std.Out, "order %d cuts %d session(s), and refuses tickets issued until %s\n", revocation.ID, len(cut), moment(revocation.CreatedAt))
		for _, id := range cut {
			_, _ = fmt.Fprintln(std.Out, printable(id))
		}
		for _, r := range left {
			_, _ = fmt.Fprintf(std.Err, "termgw: NOT cut: session %s on replica %s, which last noted it as live at %s\n",
				printable(r.ID), printable(r.Replica), moment(r.LastSeen))
		}
		switch {
		case err != nil:
			return fmt.Errorf("order %d is written, but whom it has cut is not known; see `termgw sessions list`: %w", revocation.ID, err)
		case len(left) > 0:
			return fmt.Errorf("order %d is written, but %d session(s) are not cut yet. "+
				"The gateways above may be gone, or do not read the orders: see `orders` in their /readyz", revocation.ID, len(left))
		}
		return nil
	})
}

// untilCut waits until none of the sessions is live, or until cutTime is over, and returns
// the sessions that are still live.
func untilCut(ctx context.Context, shared *store.Postgres, sessions []string, err error) ([]store.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, cutTime)
	defer cancel()
	var left []store.Record
	for err == nil && len(sessions) > 0 {
		if left, err = shared.Live(context.WithoutCancel(ctx), sessions); len(left) == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return left, nil
		case <-time.After(cutPoll):
		}
	}
	return left, err
}

// noSharedSessions is what the commands say without a database.
const noSharedSessions = "sessions are listed and revoked by the database that replicas share. A gateway without one keeps its sessions to itself; to cut them, end it"

// withDatabase calls use with the store that the replicas share, and closes the store. without says what the command needs a
// database for.
func withDatabase(without string, use func(*store.Postgres) error) (err error) {
	database, err := databaseOf(without)
	if err != nil {
		return err
	}
	shared, err := store.OpenPostgres(database)
	if err != nil {
		return fmt.Errorf("TERMGW_DATABASE_URL, TERMGW_WORKSPACE_QUERY: %w", err)
	}
	defer func() { err = errors.Join(err, shared.Close()) }()
	return use(shared)
}

// operator returns user@host of this process, for the audit trail.
func operator() string {
	name, host := "unknown", "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return name + "@" + host
}
