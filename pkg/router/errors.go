package router

import (
	"context"
	"errors"
	"net/http"
	"syscall"
	"time"

	"github.com/coder/websocket"

	"github.com/molecule-ai/termgw/pkg/bridge"
	"github.com/molecule-ai/termgw/pkg/runner"
	"github.com/molecule-ai/termgw/pkg/session"
	"github.com/molecule-ai/termgw/pkg/store"
	"github.com/molecule-ai/termgw/pkg/ticket"
)

// Errors of the edge itself.
var (
	errUnknown      = errors.New("no such path")
	errNotWebSocket = errors.New("not a WebSocket request")
	errHandshake    = errors.New("a malformed WebSocket handshake")
	errOrigin       = errors.New("origin not allowed")
	errRate         = errors.New("too many handshakes from one address")
	errNoTicket     = errors.New("no ticket")
	errTwoTickets   = errors.New("two different tickets")
	errMismatch     = errors.New("the ticket is for another workspace")
	errOverloaded   = errors.New("at the limit of sessions")
	errNotHeld      = errors.New("another replica passed a request on for a session that is not here")
	errPaused       = errors.New("the replica that holds the session does not answer, and lived a moment ago")
	errPanic        = errors.New("a panic")
	errOver         = errors.New("the session ended while it was resumed") // the ticket is spent

	// ErrDraining is the cause of a session that is cut, or refused, because
	// its replica drains.
	ErrDraining = errors.New("the replica is going away")
)

// docsPage describes the path to a workspace.
const docsPage = "docs/infra/workspace-terminal.md"

// outcome is how an error is shown: to the client by a close code after the upgrade,
// or by an HTTP status before the upgrade; to the person by the message; to the operator
// by the code, which is the metric's label and the audit row's reason.
type outcome struct {
	is      error
	code    string
	close   websocket.StatusCode // 0: the client has gone
	status  int                  // of an error before the upgrade
	retry   bool
	docs    bool
	message string
}

// full is the message of a replica that cannot hold another terminal.
const full = "This gateway has as many terminals as it can hold. Try again in a moment."

// outcomes is the one table of errors. The first row whose error is in the chain counts.
var outcomes = []outcome{
	{
		is: errUnknown, code: "not_found", status: http.StatusNotFound,
		message: "There is nothing here. A terminal is at /workspaces/{workspace_id}/terminal.",
	},
	{
		is: errNotWebSocket, code: "upgrade_required", status: http.StatusUpgradeRequired,
		message: "This address is a terminal: open it as a WebSocket (version 13), with a ticket.",
	},
	{
		is: errHandshake, code: "bad_handshake", status: http.StatusBadRequest,
		message: "The WebSocket handshake is malformed: send GET over HTTP/1.1 with a Sec-WebSocket-Key of 16 bytes in base64.",
	},
	{
		is: errOrigin, code: "origin_not_allowed", status: http.StatusForbidden,
		message: "Pages of this origin may not open terminals here. An operator can allow it in TERMGW_ALLOWED_ORIGINS, or name the proxy in TERMGW_TRUSTED_PROXIES if it is the gateway's own.",
	},
	{
		is: errNotHeld, code: "not_held", status: http.StatusConflict,
		message: "This gateway does not hold the session that the request was passed on for.",
	},
	{
		is: errRate, code: "rate_limited", status: http.StatusTooManyRequests,
		message: "Too many terminals were asked for from your address in a moment. Try again in a second. If everybody is told this, an operator has to name the proxy before this gateway in TERMGW_TRUSTED_PROXIES.",
	},

	{
		is: errNoTicket, code: "ticket_missing", close: 4401, retry: true,
		message: "This terminal needs a ticket. Open it from the workspace's page.",
	},
	{
		is: errTwoTickets, code: "ticket_invalid", close: 4401, retry: true,
		message: "The request carries two different tickets. Send one.",
	},
	{
		is: ticket.ErrExpired, code: "ticket_expired", close: 4401, retry: true,
		message: "The ticket for this terminal has expired. Open the terminal again to get a fresh one.",
	},
	{
		is: ticket.ErrInvalid, code: "ticket_invalid", close: 4401, retry: true,
		message: "The ticket for this terminal is not valid. Open the terminal again to get a fresh one; if that fails too, tell your administrator.",
	},
	{
		is: ticket.ErrNoKeys, code: "keys_unavailable", close: 4503, retry: true,
		message: "The gateway has no keys to check tickets with, so it opens no terminals. Try again in a moment.",
	},
	{
		is: errMismatch, code: "ticket_mismatch", close: 4403,
		message: "The ticket is for another workspace. Open the terminal from the page of the workspace that you want.",
	},
	{
		is: store.ErrUsed, code: "ticket_used", close: 4409, retry: true,
		message: "The ticket for this terminal was used before. Open the terminal again to get a fresh one.",
	},
	{
		is: errOver, code: "ticket_used", close: 4409, retry: true,
		message: "The shell ended just now. Open the terminal again to get a new one.",
	},
	{
		is: store.ErrRevoked, code: "revoked", close: 4423,
		message: "Access to this terminal was withdrawn. Ask your administrator if you need it back.",
	},
	{
		is: store.ErrLimit, code: "too_many_sessions", close: 4429, retry: true,
		message: "There are as many terminals open as are allowed. Close one and open this one again.",
	},
	{
		is: store.ErrNotFound, code: "workspace_not_found", close: 4404,
		message: "There is no such workspace. It may have been deleted: look at the list of your workspaces.",
	},
	// These come before the errors of a part that could not be reached for want of a descriptor.
	{is: syscall.EMFILE, code: "overloaded", close: websocket.StatusTryAgainLater, retry: true, message: full},
	{is: syscall.ENFILE, code: "overloaded", close: websocket.StatusTryAgainLater, retry: true, message: full},
	{is: syscall.ENOSPC, code: "overloaded", close: websocket.StatusTryAgainLater, retry: true, message: full}, // no pty: kernel.pty.max
	{
		is: errPaused, code: "overloaded", close: websocket.StatusTryAgainLater, retry: true,
		message: "The gateway that has your shell does not answer just now. Try again in a moment.",
	},
	{is: errOverloaded, code: "overloaded", close: websocket.StatusTryAgainLater, retry: true, message: full},
	{
		is: store.ErrUnavailable, code: "store_unavailable", close: 4503, retry: true,
		message: "The gateway cannot ask its database just now, so it opens no terminals. Try again in a moment.",
	},

	{
		is: ErrDraining, code: "draining", close: websocket.StatusServiceRestart, retry: true,
		message: "This gateway is going away for an update. Open the terminal again: another one takes over.",
	},

	{
		is: runner.ErrNotRunning, code: "container_not_running", close: 4404, docs: true,
		message: "The workspace's container is not running. Start the workspace and open the terminal again. If it runs, see " + docsPage + " for how a container is found.",
	},
	{
		is: runner.ErrAbsent, code: "backend_failed", close: 4502, retry: true, docs: true,
		message: "This workspace is on an instance of its own, and this gateway is not set up to reach it. See " + docsPage + ".",
	},
	{
		is: bridge.ErrTooLarge, code: "too_large", close: websocket.StatusMessageTooBig,
		message: "A message was too large: input goes in messages of at most 1 MiB, control messages of at most 4 KiB.",
	},
	{
		is: bridge.ErrBadMessage, code: "bad_message", close: 4400,
		message: "The client sent something that is not in the protocol, so the terminal was closed. Reload the page; if it happens again, report it.",
	},
	{
		is: session.ErrIdle, code: "idle_timeout", close: 4408, retry: true,
		message: "The terminal was closed because nothing was typed for a while. Open a new one to go on.",
	},
	{
		is: session.ErrExpired, code: "session_expired", close: 4410, retry: true,
		message: "The terminal reached its longest time and was closed. Open a new one to go on.",
	},
	{
		is: session.ErrTunnel, code: "tunnel_expired", close: 4504, retry: true,
		message: "AWS ends a tunnel after an hour, and this terminal's was over. Open a new one to go on.",
	},
	{
		is: bridge.ErrTakenOver, code: "taken_over", close: 4412,
		message: "This terminal goes on in another window or on another device, where you opened it last.",
	},
	{is: bridge.ErrEnded, code: "client_closed"},
	{is: bridge.ErrClosed, code: "client_closed"},
	{is: bridge.ErrLost, code: "client_lost"},
}

// backendFailed is the outcome of any other error: a part behind the gateway failed.
var backendFailed = outcome{
	code: "backend_failed", close: 4502, retry: true, docs: true,
	message: "The shell could not be reached: a part behind the gateway failed. Try again; if it goes on, an administrator finds the steps to check in " + docsPage + ".",
}

// exited is the outcome of a shell that ended by itself.
var exited = outcome{code: "exit", close: websocket.StatusNormalClosure}

func outcomeOf(err error) outcome {
	if err == nil {
		return exited
	}
	for _, o := range outcomes {
		if errors.Is(err, o.is) {
			return o
		}
	}
	return backendFailed
}

// revokedError is the store.ErrRevoked of a session that was cut. It has the time at
// which the revocation was written.
type revokedError struct{ written time.Time }

func (revokedError) Error() string { return store.ErrRevoked.Error() }
func (revokedError) Unwrap() error { return store.ErrRevoked }

// tell returns the error message for the client. The detail names the step that failed
// or the rule that was broken, and never has the text of a part behind the gateway.
func (o outcome) tell(err error) bridge.Error {
	e := bridge.Error{Code: o.code, Message: o.message, Retryable: o.retry}
	if o.docs {
		e.Docs = docsPage
	}
	var failed *runner.Failure
	var limit *store.LimitError
	switch {
	case errors.As(err, &failed):
		e.Detail = failed.Step
		e.Retryable = e.Retryable && !failed.Final
		if failed.Sentence != "" && (o.docs || errors.Is(o.is, store.ErrLimit)) {
			e.Message, e.Docs = failed.Sentence+" See "+docsPage+".", docsPage
		}
	case errors.As(err, &limit):
		e.Detail = limit.Of
	case errors.Is(err, bridge.ErrBadMessage), errors.Is(err, bridge.ErrTooLarge):
		e.Detail = err.Error()
	case errors.Is(err, context.DeadlineExceeded):
		e.Detail = "timeout"
	}
	return e
}
