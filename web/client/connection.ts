/**
 * A workspace's terminal as one lasting thing: it asks the platform for a
 * ticket, opens a shell with it, comes back to that shell with another ticket when the connection is
 * lost and the shell waits, and opens another shell when the gateway's table says that this is worth
 * it. Knows nothing of xterm.js: attach.ts joins it to a terminal.
 */
import { isAnswer } from "./answers.js";
import { type EndReason, isEndCode, isLoss, localEnd, spentEnd } from "./codes.js";
import { Events } from "./events.js";
import { type Kept, Place } from "./kept.js";
import type { Notice, Ready } from "./messages.js";
import { counted, noFailures, plan, quickWait } from "./retry.js";
import { type Clock, type Output, Session, type Size, type Socket } from "./session.js";
import type { Saved } from "./screen.js";
import { Progress, Shell } from "./shell.js";
import { soon } from "./task.js";

/** A JWT in its compact form (RFC 7519, section 3). */
const TICKET = /^[\w-]+\.[\w-]+\.[\w-]+$/;
/** The gateway gives a workspace 15 s to start a shell; beyond this nobody answers. */
const CONNECT_MS = 30_000;
/**
 * While a shell waits, a try that gets no further for so long, or for so many round trips, has
 * company: a network that is back answers only what is asked now. The first try goes on as well,
 * since a slow network may need more time.
 */
const STUCK_MS = 500;
const STUCK_TRIPS = 5;
/** For so long the connection is tried that often; a network that is away longer is tried as others. */
const QUICK_MS = 5 * 60_000;
/** What is refused is asked for again this often at least, while a shell waits: its time is short. */
const CALM_MS = 4_000;
/** More than the tries that a page may have made after it was kept how many there were. */
const TRIES_BEYOND = 1_000;
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
 * - `waiting`: the connection is lost, and the shell waits for another one until `waitsUntil`; or,
 *   without that, the session ended, and another one is opened at `retryAt`, or when somebody types
 *   if that is undefined
 * - `ended`: the session ended, and nothing happens until `connect`
 */
export type State = "idle" | "connecting" | "open" | "waiting" | "ended";

/** What a page shows; a new object at every change, never changed itself. */
export interface Status {
  readonly state: State;
  /** What the gateway said of the session that is open, or whose shell waits. */
  readonly ready?: Ready;
  /**
   * `open`: it is the shell of before (`same`), or that one is gone and this is another (`new`).
   * `redrawn` is `same`, but output between is lost, and the program draws its screen anew.
   * Undefined: no shell waited.
   */
  readonly shell?: "same" | "redrawn" | "new";
  /** Why the last session ended, or the last connection to it, until another one is open. */
  readonly end?: EndReason;
  /** Connections tried since one last stayed open, this one included. */
  readonly attempt: number;
  /**
   * `waiting`, and `connecting` after a reload: until when the shell waits for this connection, by
   * `Date.now()`, as far as this page knows: the gateway counts from when it lost the connection
   * itself. What is typed meanwhile is kept for that shell.
   */
  readonly waitsUntil?: number;
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
  /** Bytes that were typed while the connection is away and are not kept: 1 MiB is kept already. */
  inputRefused: number;
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

/** A screen that outlives the page: attachTerminal's. */
export interface LastingScreen {
  /** The screen, which belongs to a byte of the output; undefined: it cannot be told now. */
  save(): Saved | undefined;
  /** Draws it as it was. */
  restore(saved: Saved): Promise<void>;
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
  /** Tells by `online` that the network is back, and by `pageshow` that the page is. Defaults to window. */
  window?: EventTarget;
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
  /** Its place among all that were made; 0: it has no session. */
  number: number;
  cancel: AbortController;
  stopTimer: () => void;
}

/** The connection to a shell is lost, which waits for another. */
interface Away {
  /** Why it was lost. */
  end: EndReason;
  /** Why the last try failed. */
  last: EndReason;
  /** By the clock. */
  since: number;
  /** When the shell ends, by `Date.now()`. */
  until: number;
}

export class TerminalConnection extends Events<ConnectionEvents> {
  private readonly url: URL;
  private readonly ticket: ConnectionConfig["ticket"];
  private readonly openSocket: (url: string, protocols: string[]) => Socket;
  private readonly clock: Clock;
  private readonly page: Page | undefined;
  private readonly window: EventTarget | undefined;
  private readonly random: () => number;
  private readonly encoder = new TextEncoder();

  private current: Status = { state: "idle", attempt: 0 };
  /** None, one, or while the shell waits two: the first and the latest. */
  private attempts: Attempt[] = [];
  private shell = new Shell();
  private away: Away | undefined;
  /**
   * By this name, and by counting its tries, the gateway tells a client that comes back by itself from
   * one that a person has come to: the shell is the latter's.
   */
  private name = randomName();
  private tries = 0;
  private roundTrip = 0;
  private readonly place: Place;
  private screen: LastingScreen | undefined;
  /** What the page before this one kept, until it is taken up. */
  private kept: Kept | undefined;
  /** The same, until that has come to its end. */
  private recalled: Kept | undefined;
  /** The screen that was kept, until it is known that the shell is this person's. */
  private unseen: Saved | undefined;
  /** The screen that was drawn as it was kept, until there is output after it. */
  private saved: Saved | undefined;
  private stopListening: (() => void) | undefined;
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
    this.window = config.window ?? globalThis.window;
    this.place = new Place(this.url);
    this.random = config.random ?? Math.random;
  }

  get status(): Status {
    return this.current;
  }

  /** Opens a session now, if none is there: the first, the one waited for, or another after an end. */
  connect(): void {
    if (this.attempts.length > 0 && !this.away) return;
    // Asked for by a person: what failed before does not slow this one down.
    if (this.current.state !== "waiting") this.failures = noFailures;
    this.name = randomName();
    if (this.current.state === "idle") this.recall();
    this.open();
  }

  /**
   * Has the screen outlive the page, together with the shell, until the returned function is called.
   * It is drawn as the page before this one left it, once the gateway has given this page the shell.
   */
  keep(screen: LastingScreen): () => void {
    this.screen = screen;
    if (this.saved) void this.draw(this.saved);
    return () => {
      if (this.screen === screen) this.screen = undefined;
    };
  }

  /**
   * Ends the session, or the waiting for one; the gateway ends its shell. A shell whose connection is
   * lost hears nothing of it, and ends when it has waited for long enough.
   */
  close(): void {
    this.stopWaiting();
    this.shell.endLeft();
    const [attempt] = this.attempts;
    if (attempt?.session) attempt.session.finish(localEnd("closed"));
    else if (attempt) this.over(attempt, localEnd("closed"));
    else if (this.away) this.ended(localEnd("closed"));
    else if (this.current.state === "waiting") {
      this.stopListening?.();
      this.setStatus({ state: "ended", end: this.current.end ?? localEnd("closed"), attempt: 0 });
    }
  }

  /**
   * Sends input. It is dropped in a read-only session and while none is open;
   * where one is only waited for until somebody types, it opens that, unless it is
   * what the terminal answers a program by itself. What is typed while a shell waits is kept for it.
   */
  send(input: string | Uint8Array): void {
    const { state, ready, retryAt } = this.current;
    const isAway = this.shell.id !== undefined && state !== "open";
    const isTyped = !isAnswer(input);
    if (state === "waiting" && retryAt === undefined && isTyped) this.connect();
    if ((state !== "open" && !isAway) || ready?.mode === "ro" || input.length === 0) return;
    const bytes = typeof input === "string" ? this.encoder.encode(input) : new Uint8Array(input);
    if (isAway && !this.shell.input.hasRoom(bytes.length)) {
      this.emit("inputRefused", bytes.length);
      return;
    }
    this.shell.input.add(bytes);
    if (isAway) return;
    if (isTyped) {
      this.inputAt = this.clock.now();
      this.mended(); // somebody is there, and sees what happens
      if (this.announced?.code === "idle_timeout") this.announced = undefined;
    }
    this.session?.sendInput();
  }

  /** Tells the terminal's size, each side 1..1000; before `connect` it is the first size. */
  resize(cols: number, rows: number): void {
    if (!isSide(cols) || !isSide(rows)) {
      throw new RangeError(`a terminal is 1 to ${MAX_SIZE} on each side, not ${cols}x${rows}`);
    }
    if (cols === this.size.cols && rows === this.size.rows) return;
    this.size = { cols, rows };
    for (const { session } of this.attempts) session?.resize(this.size);
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
    const since = this.session?.waitingSince;
    return since === undefined ? 0 : this.clock.now() - since;
  }

  /** The session that is open, or that is being opened. */
  private get session(): Session | undefined {
    return this.attempts[0]?.session;
  }

  private open(): void {
    this.stopWaiting();
    this.listen();
    if (this.attempts.length > 1) this.abandon(this.attempts.pop());
    const cancel = new AbortController();
    const attempt: Attempt = {
      session: undefined,
      number: 0,
      cancel,
      stopTimer: this.clock.after(CONNECT_MS, () => this.giveUp(attempt)),
    };
    this.attempts.push(attempt);
    this.failures = { ...this.failures, attempts: this.failures.attempts + 1 };
    if (this.away) this.tellAway(this.away, this.giveCompany());
    else {
      this.setStatus({
        state: "connecting",
        attempt: this.failures.attempts,
        ...(this.current.end && { end: this.current.end }),
        ...(this.kept && { waitsUntil: this.kept.until }),
      });
    }
    // Async, so that a callback that throws at once is told as one that rejects.
    (async () => {
      if (this.kept) {
        await this.takeUp(this.kept);
        this.recalled = undefined;
      }
      return this.ticket(cancel.signal);
    })().then(
      (ticket) => this.dial(attempt, ticket),
      (cause: unknown) =>
        this.over(attempt, noTicket(cause, this.away === undefined), !(cause instanceof TryAgain)),
    );
  }

  /** Looks for a shell that the page before this one had. */
  private recall(): void {
    this.kept = this.place.take();
    if (this.kept) this.ask(this.kept);
  }

  /** Asks for the shell that was kept. */
  private ask(kept: Kept): void {
    this.recalled = kept;
    // The same client: it takes the shell from no other with which its person went on meanwhile.
    this.name = kept.client;
    this.tries = kept.tries + TRIES_BEYOND;
    this.shell.id = kept.session;
    this.shell.resume = kept.resume;
    this.shell.until = kept.until;
    this.shell.isShown = false;
  }

  /** Goes on where a page before this one was, unless that is still there. */
  private async takeUp(first: Kept): Promise<void> {
    this.kept = undefined;
    let kept: Kept | undefined = first;
    while (kept) {
      const isOurs = await this.place.lock(kept.session, kept.isLeft);
      if (this.shell.id !== kept.session) return; // closed meanwhile
      if (isOurs) break;
      kept = this.place.next();
      if (kept) this.ask(kept);
    }
    if (!kept) {
      this.shell = new Shell();
      this.name = randomName();
      this.setStatus({ state: "connecting", attempt: this.failures.attempts });
      return;
    }
    const since = Date.now() - this.clock.now();
    this.openedAt = kept.openedAt - since;
    this.inputAt = kept.inputAt - since;
    if (!kept.screen || !this.screen) return;
    this.unseen = kept.screen;
    this.shell.output = new Progress(kept.screen.output);
    this.shell.isShown = true;
  }

  /** Draws a screen as it was kept; the gateway has one drawn anew where that fails. */
  private async draw(saved: Saved): Promise<void> {
    try {
      await this.screen?.restore(saved);
    } catch (fault) {
      console.error("termgw: the screen that was kept could not be drawn:", fault);
      this.saved = undefined;
      this.shell.isShown = false;
      this.session?.finish(localEnd("connection_lost"));
    }
  }

  /** What the page that comes after this one has to know of the shell. */
  private record(): Kept | undefined {
    const { id: session, resume, until } = this.shell;
    if (session === undefined) return undefined;
    const since = Date.now() - this.clock.now();
    return {
      session,
      client: this.name,
      tries: this.tries,
      resume,
      until: this.away?.until ?? until ?? Date.now() + resume * 1000,
      openedAt: this.openedAt + since,
      inputAt: this.inputAt + since,
    };
  }

  private recordWithScreen(): Kept | undefined {
    if (this.recalled) return this.recalled;
    const record = this.record();
    const screen = record && (this.screen?.save() ?? this.saved ?? this.unseen);
    return screen ? { ...record, screen } : record;
  }

  /** A try got further: the network is there. */
  private progressed(): void {
    if (this.away) this.giveCompany();
  }

  /** Makes another try, unless this one gets further soon. */
  private giveCompany(): number {
    return this.wait(Math.max(STUCK_MS, STUCK_TRIPS * this.roundTrip), false);
  }

  /** Gives an attempt up for another one, with the shell that it may have or without. */
  private abandon(attempt: Attempt | undefined, withShell = false): void {
    if (!attempt) return;
    attempt.stopTimer();
    attempt.cancel.abort();
    attempt.session?.abandon(withShell);
  }

  /** Comes back at once where the network or the page does. */
  private listen(): void {
    if (this.stopListening) return;
    const { page, window } = this;
    const cancel = new AbortController();
    const { signal } = cancel;
    this.stopListening = () => {
      cancel.abort();
      this.stopListening = undefined;
    };
    const shown = () => {
      if (this.away) this.open();
      else this.session?.probe();
    };
    const changed = () => {
      if (!page?.hidden) shown();
      else {
        // A page that is hidden may go without another word.
        const record = this.recordWithScreen();
        if (record) this.place.write(record);
      }
    };
    page?.addEventListener("visibilitychange", changed, { signal });
    // The browser closes the connection of a page that goes by 1001, also if it keeps the page.
    const gone = () => {
      const record = this.recordWithScreen();
      if (record) this.place.leave(record);
    };
    window?.addEventListener("pagehide", gone, { signal });
    window?.addEventListener("offline", () => this.session?.probe(), { signal });
    const back = (event: Event) => {
      const { persisted } = event as PageTransitionEvent;
      if (persisted && this.shell.id !== undefined)
        void this.place.comeBack(this.shell.id).then(() => {
          this.name = randomName(); // a person has come back to this page
          const record = this.recordWithScreen();
          if (record) this.place.write(record);
          shown();
        });
    };
    window?.addEventListener("pageshow", back, { signal });
    window?.addEventListener(
      "online",
      () => {
        const { state, end, retryAt } = this.current;
        const isLost = state === "waiting" && retryAt !== undefined && end && isLoss(end);
        if (this.away || isLost) this.open();
        // The connection was of the network of before. If it still is there, nothing is lost by another.
        else if (state === "open" && this.shell.id !== undefined) {
          this.session?.finish(localEnd("connection_lost"));
          this.open();
        }
      },
      { signal },
    );
  }

  private dial(attempt: Attempt, ticket: string): void {
    if (!this.attempts.includes(attempt)) return; // closed while the platform minted
    if (!TICKET.test(ticket)) {
      this.over(attempt, localEnd("ticket_denied", "What the platform gave is no ticket."));
      return;
    }
    try {
      this.progressed();
      const { shell, size, openSocket, clock } = this;
      const url = new URL(this.url);
      url.searchParams.set("client", this.name);
      attempt.number = ++this.tries;
      url.searchParams.set("try", String(attempt.number));
      attempt.session = new Session(url, ticket, shell, size, openSocket, clock, {
        ready: (shell, hasGap) => this.opened(attempt, shell, hasGap),
        output: (output) => {
          this.saved = undefined;
          this.emit("output", output);
        },
        notice: (notice) => {
          const { code, seconds } = notice;
          // Other news has a time of its own, or none.
          if (isEndCode(code) && seconds > 0) {
            this.announced = { code, at: this.clock.now() + seconds * 1000 };
          }
          this.emit("notice", notice);
        },
        accepted: (trip) => {
          this.roundTrip = trip;
          // A new shell may be starting now: another try would start one more.
          if (this.away) this.stopWaiting();
        },
        roundTrip: (ms) => {
          this.roundTrip = ms;
          this.emit("roundTrip", ms);
        },
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

  private opened(attempt: Attempt, shell: Shell, hasGap: boolean): void {
    const { shell: before, away } = this;
    this.stopWaiting();
    for (const other of this.attempts) {
      // Where this one has a new shell, that of before is gone: another can only have one more.
      if (other !== attempt) this.abandon(other, shell !== before);
    }
    this.attempts = [attempt];
    this.shell = shell;
    this.away = undefined;
    attempt.stopTimer();
    attempt.stopTimer = this.clock.after(STABLE_MS, () => {
      this.failures = { ...this.failures, attempts: 0 };
      attempt.stopTimer = this.clock.after(MENDED_MS - STABLE_MS, () => this.mended());
    });
    this.failures = { ...this.failures, refused: 0 };
    if (shell !== before) this.openedAt = this.inputAt = this.clock.now();
    const { unseen } = this;
    this.unseen = undefined;
    if (hasGap || shell !== before) this.saved = undefined;
    else if (unseen) {
      this.saved = unseen;
      void this.draw(unseen);
    }
    const record = this.record();
    if (record) {
      void this.place.lock(record.session);
      this.place.write(record);
    } else this.place.remove();
    const { attempts } = this.failures;
    const status = { state: "open", ready: shell.ready as Ready, attempt: attempts } as const;
    if (shell === before) this.setStatus({ ...status, shell: hasGap ? "redrawn" : "same" });
    else if (before.id === undefined) this.setStatus(status);
    else {
      this.announced = undefined;
      if (away) this.emit("end", away.end);
      this.setStatus({ ...status, shell: "new" });
    }
  }

  private mended(): void {
    this.failures = { ...this.failures, told: 0 };
  }

  /** Ends an attempt that took too long, by where it was. */
  private giveUp(attempt: Attempt): void {
    if (attempt.session) attempt.session.giveUp();
    else this.over(attempt, localEnd("ticket_unavailable"));
  }

  /** `isQuick`: the cause is a network, which may be back at any time. */
  private over(attempt: Attempt, end: EndReason, isQuick = isLoss(end)): void {
    const at = this.attempts.indexOf(attempt);
    if (at < 0) return;
    this.attempts.splice(at, 1);
    attempt.stopTimer();
    attempt.cancel.abort();
    // By a later try of this page's own, which was given up and came all the same? The next one is told.
    const isByOwnTry = end.code === "taken_over" && attempt.number < this.tries;
    if (isByOwnTry && this.shell.id !== undefined) {
      this.comeBack(localEnd("connection_lost"), true);
    } else if (this.mayWait(end)) this.comeBack(end, isQuick);
    else this.ended(end);
  }

  /** Whether the shell waits for another connection after the end of one. */
  private mayWait(end: EndReason): boolean {
    if (this.shell.id === undefined) return false;
    // What the gateway says of an open session is the session's end; else it is that of a try.
    return this.current.state === "open" ? isLoss(end) : end.retry !== "never";
  }

  private comeBack(end: EndReason, isQuick: boolean): void {
    const now = this.clock.now();
    const { resume, until = Date.now() + resume * 1000 } = this.shell;
    this.away ??= { end, last: end, since: now, until };
    this.away.last = end;
    if (this.attempts.length > 0) return; // the next try begins when this one has had its time
    if (isQuick && now - this.away.since < QUICK_MS) {
      this.tellAway(this.away, this.wait(quickWait(this.failures, this.random), false));
      return;
    }
    const waits = Date.now() < this.away.until;
    const failures = counted(this.failures, end);
    const next = plan(end, failures, this.random);
    if (next.kind !== "wait") {
      this.ended(end);
      return;
    }
    this.failures = failures;
    const ms = waits ? Math.min(next.ms, CALM_MS) : next.ms;
    this.tellAway(this.away, this.wait(ms, next.shown && !waits));
  }

  private tellAway({ last, until }: Away, retryAt: number): void {
    const { ready } = this.shell;
    this.setStatus({
      state: "waiting",
      ...(ready && { ready }),
      end: last,
      attempt: this.failures.attempts,
      retryAt,
      waitsUntil: until,
    });
  }

  private ended(end: EndReason): void {
    const until = this.away?.until ?? this.shell.until ?? 0;
    // Without a ticket nothing is known of the shell: whoever asks for it once more may have one.
    const isKept = this.shell.id !== undefined && noTicketEnds.has(end.code) && Date.now() < until;
    if (isKept) this.rest();
    else this.forget();
    this.failures = counted(this.failures, end);
    const next = plan(end, this.failures, this.random);
    const { attempts } = this.failures;
    if (next.kind === "stop" && next.spent) end = spentEnd(end, this.failures.told);
    if (next.kind === "wait") {
      const retryAt = this.wait(next.ms, next.shown);
      this.setStatus({ state: "waiting", end, attempt: attempts, retryAt });
    } else {
      const state = next.kind === "input" ? "waiting" : "ended";
      if (state === "ended" && !isKept) this.stopListening?.();
      this.setStatus({ state, end, attempt: attempts });
    }
    this.emit("end", end);
  }

  /** The shell is gone, or nobody comes back to it. */
  private forget(): void {
    this.shell = new Shell();
    this.kept = this.recalled = this.unseen = this.saved = undefined;
    this.place.remove();
    this.away = undefined;
    this.announced = undefined;
    this.rest();
  }

  /** Tries nothing any more. */
  private rest(): void {
    const others = this.attempts;
    this.attempts = [];
    this.stopWaiting();
    for (const { session, cancel, stopTimer } of others) {
      stopTimer();
      cancel.abort();
      session?.finish(localEnd("closed"));
    }
  }

  /**
   * Opens a session after `ms`, and tells when that is; with `shown`, not while the page is hidden, and
   * as soon as it is shown.
   */
  private wait(ms: number, shown: boolean): number {
    this.stopWaiting();
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
    return Date.now() + ms;
  }

  private setStatus(status: Status): void {
    this.current = status;
    this.emit("status", status);
  }
}

/** The ends of who has no ticket, or none that is good. */
const noTicketEnds = new Set([
  "ticket_denied",
  "ticket_unavailable",
  "ticket_missing",
  "ticket_invalid",
  "ticket_expired",
  "ticket_used",
  "ticket_mismatch",
]);

/** Why there is no ticket: only what is known to pass is tried again. */
function noTicket(cause: unknown, isReported: boolean): EndReason {
  const words = cause instanceof Error ? cause.message : undefined;
  if (cause instanceof TryAgain) return localEnd("ticket_unavailable", words);
  if (cause instanceof TypeError) {
    // What fetch throws when there is no network, in words of each browser's own and in its
    // language: a mistake in the callback cannot be told from it, but by who reads this.
    if (isReported) console.error("termgw: no ticket, asked again:", cause);
    return localEnd("ticket_unavailable");
  }
  return localEnd("ticket_denied", words);
}

/** Told where it was forgotten: later it would look like a network that fails. */
export function checkTicket(ticket: unknown): void {
  if (typeof ticket !== "function") throw new TypeError("`ticket` is to be a function");
}

function randomName(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
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
