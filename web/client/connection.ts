/**
 * A workspace's terminal as one lasting thing: it asks the platform for a
 * ticket, opens a session with it, and another one with another ticket when the
 * gateway's table says that this is worth it. Knows nothing of xterm.js or of
 * the page: attach.ts joins it to a terminal.
 */
import { isAnswer } from "./answers.js";
import { type EndReason, isEndCode, localEnd, spentEnd } from "./codes.js";
import { Events } from "./events.js";
import type { Notice, Ready } from "./messages.js";
import { counted, noFailures, plan } from "./retry.js";
import { type Clock, type Output, Session, type Size, type Socket } from "./session.js";
import { soon } from "./task.js";

/** A JWT in its compact form (RFC 7519, section 3). */
const TICKET = /^[\w-]+\.[\w-]+\.[\w-]+$/;
/** The gateway gives a workspace 15 s to start a shell; beyond this nobody answers. */
const CONNECT_MS = 30_000;
/** A session that was open for so long was a good one: the next wait is short again. */
const STABLE_MS = 10_000;
/**
 * After so long also a session in which nobody typed says that what failed before is mended. One that
 * fails sooner again and again is not opened for ever.
 */
const MENDED_MS = 10 * 60_000;
export const MAX_SIZE = 1000;

/**
 * - `idle`: not connected yet
 * - `connecting`: a ticket is asked for, or a shell is being started
 * - `open`: a shell is there
 * - `waiting`: the session ended, and another one is opened at `retryAt`, or when
 *   somebody types if that is undefined
 * - `ended`: the session ended, and nothing happens until `connect`
 */
export type State = "idle" | "connecting" | "open" | "waiting" | "ended";

/** What a page shows; a new object at every change, never changed itself. */
export interface Status {
  readonly state: State;
  /** What the gateway said of the open session. */
  readonly ready?: Ready;
  /** Why the last session ended, until another one is open. */
  readonly end?: EndReason;
  /** Sessions tried since one last stayed open, this one included. */
  readonly attempt: number;
  /** `waiting`: the time of the next attempt, by `Date.now()`; undefined: when somebody types. */
  readonly retryAt?: number;
}

export interface ConnectionEvents {
  status: Status;
  output: Output;
  notice: Notice;
  /** Milliseconds from a ping to its pong: what the person feels. */
  roundTrip: number;
  /** A session ended, or could not be opened; `status` tells how it goes on. */
  end: EndReason;
}

/** An end that is coming. */
export interface TimeLeft {
  /** The code of the end, such as `idle_timeout`. */
  code: string;
  seconds: number;
}

/** What tells whether a page is hidden. */
export interface Page extends EventTarget {
  /** A `visibilitychange` event follows its changes. */
  readonly hidden: boolean;
}

export interface ConnectionConfig {
  /** The workspace's terminal, `wss://…/workspaces/{id}/terminal`, or its path on this page's own host. */
  url: string | URL;
  /**
   * Asks the platform for a ticket; called once for each session, since a
   * ticket opens one only. What it throws is shown to the person and ends the
   * connection, but for `TryAgain` and a `fetch` that found no network.
   */
  ticket: (signal: AbortSignal) => Promise<string>;
  /** Defaults to the browser's WebSocket. */
  openSocket?: (url: string, protocols: string[]) => Socket;
  /** Defaults to the browser's clock. */
  clock?: Clock;
  /** Defaults to the browser's document. */
  page?: Page;
  /** 0 to 1, for the waits between attempts. Defaults to Math.random. */
  random?: () => number;
}

/** What `ticket` throws when it makes sense to ask again after a while. */
export class TryAgain extends Error {
  override readonly name = "TryAgain";
}

/** One try to open a session, from the question for a ticket on. */
interface Attempt {
  session: Session | undefined;
  cancel: AbortController;
  stopTimer: () => void;
}

export class TerminalConnection extends Events<ConnectionEvents> {
  private readonly url: URL;
  private readonly ticket: ConnectionConfig["ticket"];
  private readonly openSocket: (url: string, protocols: string[]) => Socket;
  private readonly clock: Clock;
  private readonly page: Page | undefined;
  private readonly random: () => number;
  private readonly encoder = new TextEncoder();

  private current: Status = { state: "idle", attempt: 0 };
  private attempt: Attempt | undefined;
  private stopWaiting: () => void = () => {};
  private failures = noFailures;
  private size: Size = { cols: 80, rows: 24 };
  private openedAt = 0;
  private inputAt = 0;
  private announced: { code: string; at: number } | undefined;

  constructor(config: ConnectionConfig) {
    super();
    checkTicket(config.ticket);
    this.url = socketURL(config.url);
    this.ticket = config.ticket;
    this.openSocket = config.openSocket ?? browserSocket;
    this.clock = config.clock ?? browserClock;
    this.page = config.page ?? globalThis.document; // a server that renders a page has none
    this.random = config.random ?? Math.random;
  }

  get status(): Status {
    return this.current;
  }

  /** Opens a session now, if none is there: the first, the one waited for, or another after an end. */
  connect(): void {
    if (this.attempt) return;
    // Asked for by a person: what failed before does not slow this one down.
    if (this.current.state !== "waiting") this.failures = noFailures;
    this.open();
  }

  /** Ends the session, or the waiting for one; the gateway ends its shell. */
  close(): void {
    this.stopWaiting();
    const { attempt } = this;
    if (attempt?.session) attempt.session.finish(localEnd("closed"));
    else if (attempt) this.over(attempt, localEnd("closed"));
    else if (this.current.state === "waiting") {
      this.setStatus({ state: "ended", end: this.current.end ?? localEnd("closed"), attempt: 0 });
    }
  }

  /**
   * Sends input. It is dropped in a read-only session and while none is open;
   * where one is only waited for until somebody types, it opens that, unless it is
   * what the terminal answers a program by itself.
   */
  send(input: string | Uint8Array): void {
    const { state, ready, retryAt } = this.current;
    const isTyped = !isAnswer(input);
    if (state === "waiting" && retryAt === undefined && isTyped) this.connect();
    if (state !== "open" || ready?.mode === "ro" || input.length === 0) return;
    if (isTyped) {
      this.inputAt = this.clock.now();
      this.mended(); // somebody is there, and sees what happens
      if (this.announced?.code === "idle_timeout") this.announced = undefined;
    }
    this.attempt?.session?.send(
      typeof input === "string" ? this.encoder.encode(input) : new Uint8Array(input),
    );
  }

  /** Tells the terminal's size, each side 1..1000; before `connect` it is the first size. */
  resize(cols: number, rows: number): void {
    if (!isSide(cols) || !isSide(rows)) {
      throw new RangeError(`a terminal is 1 to ${MAX_SIZE} on each side, not ${cols}x${rows}`);
    }
    if (cols === this.size.cols && rows === this.size.rows) return;
    this.size = { cols, rows };
    this.attempt?.session?.resize(this.size);
  }

  /** The end that comes first, of those that are known; undefined: none is. */
  timeLeft(): TimeLeft | undefined {
    const { ready } = this.current;
    if (!ready) return undefined;
    const ends = this.announced ? [this.announced] : [];
    if (ready.idleTimeout > 0) {
      ends.push({ code: "idle_timeout", at: this.inputAt + ready.idleTimeout * 1000 });
    }
    if (ready.maxSession > 0) {
      ends.push({ code: "session_expired", at: this.openedAt + ready.maxSession * 1000 });
    }
    const [first] = ends.sort((a, b) => a.at - b.at);
    if (!first) return undefined;
    return { code: first.code, seconds: Math.max(0, (first.at - this.clock.now()) / 1000) };
  }

  /** Milliseconds for which the gateway has left a ping unanswered; 0: none is. */
  silence(): number {
    const since = this.attempt?.session?.waitingSince;
    return since === undefined ? 0 : this.clock.now() - since;
  }

  private open(): void {
    this.stopWaiting();
    const cancel = new AbortController();
    const attempt: Attempt = {
      session: undefined,
      cancel,
      stopTimer: this.clock.after(CONNECT_MS, () => this.giveUp(attempt)),
    };
    this.attempt = attempt;
    this.failures = { ...this.failures, attempts: this.failures.attempts + 1 };
    this.setStatus({
      state: "connecting",
      attempt: this.failures.attempts,
      ...(this.current.end && { end: this.current.end }),
    });
    // Async, so that a callback that throws at once is told as one that rejects.
    (async () => this.ticket(cancel.signal))().then(
      (ticket) => this.dial(attempt, ticket),
      (cause: unknown) => this.over(attempt, noTicket(cause)),
    );
  }

  private dial(attempt: Attempt, ticket: string): void {
    if (this.attempt !== attempt) return; // closed while the platform minted
    if (!TICKET.test(ticket)) {
      this.over(attempt, localEnd("ticket_denied", "What the platform gave is no ticket."));
      return;
    }
    try {
      attempt.session = new Session(this.url, ticket, this.size, this.openSocket, this.clock, {
        ready: (ready) => this.opened(attempt, ready),
        output: (output) => this.emit("output", output),
        notice: (notice) => {
          const { code, seconds } = notice;
          // Other news has a time of its own, or none.
          if (isEndCode(code) && seconds > 0) {
            this.announced = { code, at: this.clock.now() + seconds * 1000 };
          }
          this.emit("notice", notice);
        },
        roundTrip: (ms) => this.emit("roundTrip", ms),
        end: (end) => this.over(attempt, end),
      });
    } catch {
      // Such as ws: from an https page. The browser's words may show the ticket.
      this.over(attempt, localEnd("insecure"));
      return;
    }
    const { page } = this;
    const hide = () => attempt.session?.hide(page?.hidden ?? false);
    hide();
    page?.addEventListener("visibilitychange", hide, { signal: attempt.cancel.signal });
  }

  private opened(attempt: Attempt, ready: Ready): void {
    attempt.stopTimer();
    attempt.stopTimer = this.clock.after(STABLE_MS, () => {
      this.failures = { ...this.failures, attempts: 0 };
      attempt.stopTimer = this.clock.after(MENDED_MS - STABLE_MS, () => this.mended());
    });
    this.failures = { ...this.failures, refused: 0 };
    this.openedAt = this.inputAt = this.clock.now();
    this.setStatus({ state: "open", ready, attempt: this.failures.attempts });
  }

  private mended(): void {
    this.failures = { ...this.failures, told: 0 };
  }

  /** Ends an attempt that took too long, by where it was. */
  private giveUp(attempt: Attempt): void {
    if (attempt.session) attempt.session.giveUp();
    else this.over(attempt, localEnd("ticket_unavailable"));
  }

  private over(attempt: Attempt, end: EndReason): void {
    if (this.attempt !== attempt) return;
    this.attempt = undefined;
    this.announced = undefined;
    attempt.stopTimer();
    attempt.cancel.abort();
    this.failures = counted(this.failures, end);
    const next = plan(end, this.failures, this.random);
    const { attempts } = this.failures;
    if (next.kind === "stop" && next.spent) end = spentEnd(end, this.failures.told);
    if (next.kind === "wait") {
      this.wait(next.ms, next.shown);
      const retryAt = Date.now() + next.ms;
      this.setStatus({ state: "waiting", end, attempt: attempts, retryAt });
    } else {
      this.setStatus({
        state: next.kind === "input" ? "waiting" : "ended",
        end,
        attempt: attempts,
      });
    }
    this.emit("end", end);
  }

  /** Opens a session after `ms`; with `shown`, not while the page is hidden, and as soon as it is shown. */
  private wait(ms: number, shown: boolean): void {
    const { page } = this;
    const cancel = new AbortController();
    const { signal } = cancel;
    const openIfShown = () => {
      if (!shown || !page?.hidden) this.open();
    };
    if (shown) page?.addEventListener("visibilitychange", openIfShown, { signal });
    const stopTimer = this.clock.after(ms, openIfShown);
    this.stopWaiting = () => {
      stopTimer();
      cancel.abort();
    };
  }

  private setStatus(status: Status): void {
    this.current = status;
    this.emit("status", status);
  }
}

/** Why there is no ticket: only what is known to pass is tried again. */
function noTicket(cause: unknown): EndReason {
  const words = cause instanceof Error ? cause.message : undefined;
  if (cause instanceof TryAgain) return localEnd("ticket_unavailable", words);
  if (cause instanceof TypeError) {
    // What fetch throws when there is no network, in words of each browser's own and in its
    // language: a mistake in the callback cannot be told from it, but by who reads this.
    console.error("termgw: no ticket, asked again:", cause);
    return localEnd("ticket_unavailable");
  }
  return localEnd("ticket_denied", words);
}

/** Told where it was forgotten: later it would look like a network that fails. */
export function checkTicket(ticket: unknown): void {
  if (typeof ticket !== "function") throw new TypeError("`ticket` is to be a function");
}

function isSide(n: number): boolean {
  return Number.isInteger(n) && n >= 1 && n <= MAX_SIZE;
}

function socketURL(given: string | URL): URL {
  // A server that renders a page has no address for a path, and opens no connection either.
  const url = new URL(given, globalThis.location?.href ?? "http://no-page.invalid");
  url.hash = ""; // means nothing to a gateway, and browsers refuse it
  if (url.protocol === "http:") url.protocol = "ws:";
  if (url.protocol === "https:") url.protocol = "wss:";
  return url;
}

function browserSocket(url: string, protocols: string[]): Socket {
  return new WebSocket(url, protocols) as Socket;
}

const browserClock: Clock = {
  now: () => performance.now(),
  after: (ms, callback) => {
    let isStopped = false;
    const call = () => {
      if (!isStopped) callback();
    };
    // A chain of timers, as that of the pings, would come once a minute in a hidden page.
    const timer = setTimeout(() => soon(call), ms);
    return () => {
      isStopped = true;
      clearTimeout(timer);
    };
  },
};
