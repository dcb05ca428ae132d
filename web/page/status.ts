/**
 * What is told of the terminal that is looked at: the status line, and above it
 * why a session ended, or soon will, and what to do.
 */
import { type EndReason, PAUSE_MS, type Status, Typing } from "../client/index.js";
import { element } from "./dom.js";
import type { TerminalSession } from "./session.js";

/** A ping without an answer for so long is worth a word. */
const SILENT_MS = 2_000;
/** The last of a limit is counted in seconds, and marked. */
const SOON_S = 120;

interface Words {
  kind: "notice" | "bad" | "calm";
  title: string;
  message: string;
  /** A program's text, below the message. */
  quote?: string;
  more: string;
  /** The first is the one that Enter presses. */
  primary?: Button;
  second?: Button;
}

/** What a button says, and does: both are of what is shown when it is pressed. */
interface Button {
  words: string;
  press(): void;
}

export class StatusView {
  private readonly line = element("status");
  private readonly state = element("state");
  private readonly workspace = element("workspace");
  private readonly target = element("target");
  private readonly mode = element("mode");
  private readonly timeLeft = element("time-left");
  private readonly size = element("size");
  private readonly roundTrip = element("round-trip");
  private readonly panel = element("panel");
  private readonly title = element("panel-title");
  private readonly message = element("panel-message");
  private readonly quote = element("panel-quote");
  private readonly more = element("panel-more");
  private readonly primary = element<HTMLButtonElement>("again");
  private readonly second = element<HTMLButtonElement>("second");
  private readonly terminals = element("terminals");
  /** The last status of which the panel told. */
  private told: Status | undefined;
  private shown: Words | undefined;

  private readonly typing = new Typing(window);
  private stopOffer: ReturnType<typeof setTimeout> | undefined;
  /** The first button has the focus because it was put there, not because somebody went there. */
  private isOffered = false;

  constructor() {
    this.primary.addEventListener("blur", () => {
      this.isOffered = false;
    });
    this.primary.addEventListener("click", (event) => {
      // The space in a line that somebody types for the shell that is gone; detail: no pointer.
      if (event.detail === 0 && this.isOffered && this.typing.isAmid) return;
      this.shown?.primary?.press();
    });
    this.second.addEventListener("click", () => this.shown?.second?.press());
  }

  show(session: TerminalSession | undefined): void {
    this.line.hidden = session === undefined;
    if (!session) {
      this.panel.hidden = true;
      this.shown = undefined;
      return;
    }
    const { connection, terminal, workspace, status } = session;
    const silence = connection.silence();
    const isSilent = status.state === "open" && silence > SILENT_MS;
    this.line.dataset.state = isSilent ? "connecting" : status.state;
    this.line.toggleAttribute("data-bad", session.bad);
    setText(this.state, isSilent ? `No answer for ${seconds(silence)}` : stateWords(session));
    setText(this.workspace, workspace.name);
    setText(this.target, status.ready?.target ?? "");
    setText(this.mode, status.ready?.mode === "ro" ? "read-only" : "");
    setText(this.size, `${terminal.cols}×${terminal.rows}`);
    const trip = session.roundTrip;
    setText(this.roundTrip, trip === undefined || isSilent ? "" : milliseconds(trip));
    const left = connection.timeLeft();
    this.timeLeft.toggleAttribute("data-soon", left !== undefined && left.seconds < SOON_S);
    setText(this.timeLeft, left ? timeLeft(left.code, left.seconds) : "");
    this.showPanel(session);
  }

  private showPanel(session: TerminalSession): void {
    const words = panelWords(session);
    this.shown = words;
    const wasShown = !this.panel.hidden;
    this.panel.hidden = !words;
    if (!words) {
      // The button that had the focus is gone with the panel.
      if (wasShown && this.panel.contains(document.activeElement)) session.terminal.focus();
      return;
    }
    this.panel.dataset.kind = words.kind;
    setText(this.title, words.title);
    setText(this.message, words.message);
    setText(this.quote, words.quote ?? "");
    this.quote.hidden = words.quote === undefined;
    setText(this.more, words.more);
    this.more.hidden = !words.more;
    setText(this.primary, words.primary?.words ?? "");
    setText(this.second, words.second?.words ?? "");
    this.primary.hidden = !words.primary;
    this.second.hidden = !words.second;
    const isNews = this.told !== session.status;
    this.told = session.status;
    if (isNews) this.offer(session);
  }

  /**
   * Enter goes on, for whoever is in the terminal of an ended session: once they have typed nothing
   * for a while, since what they type for the old shell is not to start another.
   */
  offer(session: TerminalSession): void {
    this.offerAfter(PAUSE_MS, session);
  }

  private offerAfter(ms: number, session: TerminalSession): void {
    clearTimeout(this.stopOffer);
    this.stopOffer = setTimeout(() => this.offerNow(session), ms);
  }

  private offerNow(session: TerminalSession): void {
    if (session.status.state !== "ended" || this.told !== session.status) return;
    if (!this.terminals.contains(document.activeElement)) return;
    const { left } = this.typing;
    if (left > 0) {
      this.offerAfter(left, session);
      return;
    }
    this.primary.focus();
    this.isOffered = true;
  }
}

/** A live region speaks when it is written to, even if nothing changes. */
function setText(target: HTMLElement, text: string): void {
  if (target.textContent !== text) target.textContent = text;
}

function panelWords(session: TerminalSession): Words | undefined {
  const { copyRefused, copyRequest, notice, status } = session;
  const { end, state } = status;
  if (end) return endWords(end, session, state === "waiting" || state === "connecting");
  if (copyRequest) {
    const answer = (allowed: boolean) => () => {
      copyRequest.answer(allowed);
      session.terminal.focus();
    };
    return {
      kind: "notice",
      title: "A program wants to copy",
      message: `To your clipboard: ${copyRequest.size}.`,
      quote: copyRequest.shown,
      more: "",
      primary: { words: "Allow", press: answer(true) },
      second: { words: "Do not", press: answer(false) },
    };
  }
  if (notice)
    return { kind: "notice", title: "", message: notice.message || notice.code, more: "" };
  if (copyRefused) {
    return {
      kind: "notice",
      title: "Not copied",
      message: "A program wanted to copy more than 768 KiB to your clipboard.",
      more: "",
    };
  }
  return undefined;
}

function endWords(end: EndReason, session: TerminalSession, goesOn: boolean): Words {
  const { attempt, retryAt, state, waitsUntil } = session.status;
  const connect = (words: string): Button => ({
    words,
    press() {
      session.connection.connect();
      session.terminal.focus();
    },
  });
  const facts = [
    // The demo knows only what runs.
    end.code === "workspace_not_found" && "If its container stopped, start it again",
    end.detail && `Step: ${end.detail}`,
    end.docs && `See ${end.docs}`,
  ];
  const words: Words = {
    kind: session.bad ? "bad" : "calm",
    title: end.title,
    message: end.message,
    more: "",
  };
  if (waitsUntil !== undefined) {
    // What changes by itself, or with each try, is not read out: it is in `more`.
    const left = (waitsUntil - Date.now()) / 1000;
    words.title = "Connection lost";
    words.message = left > 0 ? keptWords(session) : "Your shell may be gone.";
    words.primary = connect("Try now");
    words.second = { words: "Stop", press: () => session.connection.close() };
    facts.unshift(
      left > 0 && `Your shell is waiting, ${clock(left)} left`,
      end.code !== "connection_lost" && end.message,
      "Trying to reach it",
      attempt > 1 && `attempt ${attempt}`,
    );
  } else if (!goesOn) {
    words.primary = connect(end.retry === "never" ? "New session" : "Reconnect");
  } else if (state === "waiting" && retryAt === undefined) {
    facts.unshift("Press a key in the terminal to go on");
    words.primary = connect("Reconnect");
  } else {
    words.second = { words: "Stop", press: () => session.connection.close() };
    const left = retryAt === undefined ? 0 : Math.max(0, retryAt - Date.now());
    if (state === "waiting") words.primary = connect("Try now");
    facts.unshift(
      state === "waiting" ? `Trying again in ${seconds(left)}` : "Trying now",
      attempt > 1 ? `attempt ${attempt}` : "",
    );
  }
  words.more = facts.filter(Boolean).join(" · ");
  return words;
}

function keptWords({ status, inputRefused }: TerminalSession): string {
  if (status.ready?.mode === "ro") return "Your shell goes on meanwhile.";
  if (inputRefused) return "What you type now is not kept: there is too much already.";
  return "What you type is kept for your shell.";
}

function stateWords({ status }: TerminalSession): string {
  if (status.waitsUntil !== undefined) return "Reconnecting…";
  switch (status.state) {
    case "open":
      return "Connected";
    case "ended":
      return status.end?.title ?? "Ended";
    case "waiting":
      return status.retryAt === undefined ? "Paused" : "Reconnecting…";
    default:
      return status.end ? "Reconnecting…" : "Connecting…";
  }
}

function seconds(ms: number): string {
  return `${Math.ceil(ms / 1000)} s`;
}

function milliseconds(ms: number): string {
  return ms < 1 ? "<1 ms" : `${Math.round(ms)} ms`;
}

function clock(seconds: number): string {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

function timeLeft(code: string, left: number): string {
  const minutes = Math.floor(left / 60);
  const span =
    left < SOON_S
      ? clock(left)
      : minutes < 120
        ? `${minutes} min`
        : `${Math.floor(minutes / 60)} h`;
  return code === "idle_timeout" ? `${span} if idle` : `${span} left`;
}
