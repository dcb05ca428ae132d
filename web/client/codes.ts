/**
 * Why a session ended: the gateway's close codes, and the ends that only a
 * client can see, in one table. Nothing else in this package interprets a close
 * code or words an end.
 */

/** When opening another session makes sense. */
export type Retry =
  /** The same request would be refused again, or nothing went wrong. */
  | "never"
  /** After a short wait: another replica or another try may do. */
  | "now"
  /** After a longer wait: somebody has to close a terminal first. */
  | "later"
  /** After a short wait, with a ticket minted for it, as every session has. */
  | "fresh_ticket";

interface Row {
  /** WebSocket close code; 0: this client ended the session itself. */
  close: number;
  retry: Retry;
  /** A few words, for a heading. */
  title: string;
  /** Why and what to do, for when the server sent no sentence of its own. */
  message: string;
}

// Where several codes share a close code, the first stands for it when the
// server said no more.
const table = {
  exit: {
    close: 1000,
    retry: "never",
    title: "The shell ended",
    message: "The shell ended. Open a new session to go on.",
  },
  too_large: {
    close: 1009,
    retry: "never",
    title: "Message too large",
    message: "A message was over the gateway's limit. Paste less at once in a new session.",
  },
  draining: {
    close: 1012,
    retry: "now",
    title: "The gateway is restarting",
    message: "This gateway is going away. Reconnect to reach another one.",
  },
  overloaded: {
    close: 1013,
    retry: "now",
    title: "The gateway is full",
    message: "This gateway has as many sessions as it takes. Reconnect in a moment.",
  },
  bad_message: {
    close: 4400,
    retry: "never",
    title: "The gateway did not understand this page",
    message: "The gateway refused a message of this page. Reload it to get its current version.",
  },
  ticket_invalid: {
    close: 4401,
    retry: "fresh_ticket",
    title: "Ticket refused",
    message: "The ticket was not accepted. Reconnect to get a new one.",
  },
  ticket_missing: {
    close: 4401,
    retry: "fresh_ticket",
    title: "No ticket",
    message: "No ticket reached the gateway. Reconnect to send one.",
  },
  ticket_expired: {
    close: 4401,
    retry: "fresh_ticket",
    title: "Ticket expired",
    message: "The ticket expired before it was used. Reconnect to get a new one.",
  },
  ticket_mismatch: {
    close: 4403,
    retry: "never",
    title: "Not this workspace",
    message: "The ticket is for another workspace. Open the terminal from that workspace.",
  },
  workspace_not_found: {
    close: 4404,
    retry: "never",
    title: "Workspace not found",
    message: "There is no such workspace any more. Choose another one.",
  },
  container_not_running: {
    close: 4404,
    retry: "never",
    title: "Workspace not running",
    message: "The workspace's container is not running. Start it, then open a new session.",
  },
  idle_timeout: {
    close: 4408,
    retry: "fresh_ticket",
    title: "Closed after no input",
    message: "Nothing was typed for too long, so the session was closed. Reconnect to go on.",
  },
  ticket_used: {
    close: 4409,
    retry: "fresh_ticket",
    title: "Ticket already used",
    message: "The ticket opens one session only. Reconnect to get a new one.",
  },
  session_expired: {
    close: 4410,
    retry: "fresh_ticket",
    title: "Session time is over",
    message: "The session reached its longest life. Reconnect to start another.",
  },
  taken_over: {
    close: 4412,
    retry: "never",
    title: "Goes on elsewhere",
    message:
      "This terminal goes on in another window or on another device. Reconnect to open a new one here.",
  },
  revoked: {
    close: 4423,
    retry: "never",
    title: "Access was withdrawn",
    message: "The platform or an operator closed this session. Ask them before you open another.",
  },
  too_many_sessions: {
    close: 4429,
    retry: "later",
    title: "Too many terminals",
    message: "All terminals allowed here are in use. Close one, then reconnect.",
  },
  backend_failed: {
    close: 4502,
    retry: "now",
    title: "The workspace cannot be reached",
    message: "The gateway could not open or keep a shell in the workspace. Reconnect to try again.",
  },
  store_unavailable: {
    close: 4503,
    retry: "now",
    title: "The gateway's database is away",
    message: "The gateway cannot check tickets right now. Reconnect in a moment.",
  },
  keys_unavailable: {
    close: 4503,
    retry: "now",
    title: "The gateway is not ready",
    message: "The gateway has no keys to check tickets with. Reconnect in a moment.",
  },
  tunnel_expired: {
    close: 4504,
    retry: "fresh_ticket",
    title: "The tunnel's hour is over",
    message: "AWS ends a tunnel after one hour. Reconnect to open another.",
  },

  // What only this side can see. A browser reports every failed handshake and
  // every cut line as 1006; whether the WebSocket had opened tells them apart.
  connection_lost: {
    close: 1006,
    retry: "fresh_ticket",
    title: "Connection lost",
    message: "The connection was cut. If it does not come back, check the network.",
  },
  unreachable: {
    close: 1006,
    retry: "fresh_ticket",
    title: "The gateway cannot be reached",
    message:
      "No connection to the gateway. Check the network; if that is fine, the gateway is down or " +
      "does not allow this page's address.",
  },
  no_answer: {
    close: 0,
    retry: "fresh_ticket",
    title: "The gateway does not answer",
    message:
      "The gateway took the connection, but started no shell within 30 seconds. If that goes on, " +
      "tell whoever runs it.",
  },
  ticket_unavailable: {
    close: 0,
    retry: "fresh_ticket",
    title: "The platform cannot be reached",
    message: "The platform did not answer when it was asked for a ticket. Check the network.",
  },
  ticket_denied: {
    close: 0,
    retry: "never",
    title: "No ticket",
    message: "The platform gave no ticket. Reconnect to ask again.",
  },
  insecure: {
    close: 0,
    retry: "never",
    title: "Not from this page",
    message:
      "The browser opens no connection from this page to the gateway's address. Tell whoever runs it.",
  },
  bad_server_message: {
    close: 0,
    retry: "never",
    title: "This page did not understand the gateway",
    message: "The gateway sent what this page cannot read. Reload it to get its current version.",
  },
  closed: {
    close: 0,
    retry: "never",
    title: "Closed",
    message: "This session was closed here.",
  },
  unknown: {
    close: 0,
    retry: "never",
    title: "The session ended",
    message: "The gateway closed the session without a reason. Open a new one to go on.",
  },
} as const satisfies Record<string, Row>;

export type EndCode = keyof typeof table;

/** How the shell ended, as the gateway tells it before close code 1000. */
export interface Exit {
  code: number;
  signal?: string;
}

/** Why a session ended and what to do about it. */
export interface EndReason {
  code: EndCode;
  /** WebSocket close code; 0 when this side ended it. */
  close: number;
  retry: Retry;
  title: string;
  /** One or two sentences for the person, the server's own where it sent any. */
  message: string;
  /** Which step failed, for whoever looks into it. */
  detail?: string;
  /** The document that helps, by the server's name for it. */
  docs?: string;
  exit?: Exit;
}

/** The server's `error` message. */
export interface ServerError {
  code: string;
  message: string;
  /** Whether another session is worth a try, whatever the code; undefined: by the code. */
  retryable?: boolean;
  detail?: string;
  docs?: string;
}

/** An end that this side decided or found. */
export function localEnd(code: EndCode, message?: string): EndReason {
  const { close, retry, title, message: fallback } = table[code];
  return { code, close, retry, title, message: message || fallback };
}

/** An end by a close frame, with what the server had said before it. */
export function closedEnd(
  close: number,
  closeReason: string,
  error: ServerError | undefined,
  exit: Exit | undefined,
): EndReason {
  // The shell's end came first, whatever became of the close frame.
  const code = exit ? "exit" : codeOf(close, closeReason, error);
  const row = table[code];
  const end: EndReason = { code, close, retry: row.retry, title: row.title, message: row.message };
  if (exit) {
    end.exit = exit;
    end.message = exitSentence(exit);
  } else if (error) {
    end.message = error.message || end.message;
    if (error.detail) end.detail = error.detail;
    if (error.docs) end.docs = error.docs;
    end.retry = retryOf(code === "unknown" ? byClose(close) : code, error);
  }
  return end;
}

/** An end that is not tried again by itself any more, after so many. */
export function spentEnd(end: EndReason, times: number): EndReason {
  const message = `${end.message} Tried ${times} times; to try again, reconnect.`;
  return { ...end, message };
}

function codeOf(close: number, closeReason: string, error: ServerError | undefined): EndCode {
  if (error) return isEndCode(error.code) ? error.code : "unknown";
  if (isEndCode(closeReason) && table[closeReason].close === close) return closeReason;
  return byClose(close);
}

/** The first code of a close code. */
function byClose(close: number): EndCode {
  for (const [code, row] of Object.entries(table)) {
    if (row.close === close && close !== 0) return code as EndCode;
  }
  return "unknown";
}

/** The server knows better than the table, which says only how soon. */
function retryOf(code: EndCode, { retryable }: ServerError): Retry {
  const { retry } = table[code];
  if (retryable === undefined) return retry;
  if (!retryable) return "never";
  return retry === "never" ? "fresh_ticket" : retry;
}

/** The ends by which a network is lost, and that say nothing of the shell. */
const losses = new Set<EndCode>([
  "connection_lost",
  "unreachable",
  "no_answer",
  "ticket_unavailable",
]);

export function isLoss({ code }: EndReason): boolean {
  return losses.has(code);
}

export function isEndCode(code: string): code is EndCode {
  return Object.hasOwn(table, code);
}

function exitSentence(exit: Exit): string {
  if (exit.signal) return `The shell was ended by ${exit.signal}. Open a new session to go on.`;
  return `The shell ended with status ${exit.code}. Open a new session to go on.`;
}
