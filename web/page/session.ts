/** One tab of the page: its element, xterm.js and its connection. */
import { Terminal } from "@xterm/xterm";
import {
  type Attached,
  attachTerminal,
  type Notice,
  type Status,
  TerminalConnection,
} from "../client/index.js";
import type { Platform, Workspace } from "./platform.js";
import { settings } from "./settings.js";
import { currentTheme } from "./theme.js";
import { type Visible, visible } from "./visible.js";

const FONT =
  'ui-monospace, "SF Mono", "JetBrains Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace';
/** Ends that are nobody's failure. */
const calm = new Set(["exit", "closed", "idle_timeout", "session_expired", "tunnel_expired"]);

/** A program's wish to put text on the clipboard, until somebody answers. */
export interface CopyRequest extends Visible {
  answer(allowed: boolean): void;
}

const GONE = "The shell is gone, this is a new one.";
/** How long news that announces no end is shown. */
const NEWS_MS = 10_000;
/** Characters of a title: a program may send ten million, which a page takes seconds to lay out. */
const MAX_TITLE = 200;

const calmMotion = matchMedia("(prefers-reduced-motion: reduce)");

let nextId = 1;

export class TerminalSession {
  readonly id = `terminal-${nextId++}`;
  readonly tabId = `${this.id}-tab`;
  readonly workspace: Workspace;
  readonly readOnly: boolean;
  readonly terminal: Terminal;
  readonly connection: TerminalConnection;
  readonly attached: Attached;
  /** What programs call the terminal; empty: nothing. */
  title = "";
  /** The last round trip in ms. */
  roundTrip: number | undefined;
  /** An end that is coming, until it comes or somebody types; or other news, for a while. */
  notice: Notice | undefined;
  copyRequest: CopyRequest | undefined;
  /** A program wanted to copy too much, until the session ends or somebody types. */
  copyRefused = false;
  /** More was typed for a shell that waits than is kept. */
  inputRefused = false;
  /** Something was printed while another tab was looked at. */
  unseen = false;
  /** A program rang the bell while nobody looked. */
  bell = false;
  /** Something was typed since it opened: there may be something to lose. */
  used = false;

  private readonly box: HTMLElement;

  /** `changed` is called whenever what the page shows of this session changed. */
  constructor(
    workspace: Workspace,
    readOnly: boolean,
    platform: Platform,
    parent: HTMLElement,
    typed: (text: string) => string,
    changed: () => void,
  ) {
    this.workspace = workspace;
    this.readOnly = readOnly;
    this.box = document.createElement("div");
    this.box.className = "terminal-box";
    this.box.id = this.id;
    this.box.role = "tabpanel";
    this.box.setAttribute("aria-labelledby", this.tabId);
    parent.append(this.box);

    this.terminal = new Terminal({
      fontFamily: FONT,
      fontSize: settings.fontSize,
      lineHeight: 1.15,
      cursorBlink: !calmMotion.matches,
      scrollback: 10_000,
      minimumContrastRatio: 4.5,
      macOptionIsMeta: true,
      rightClickSelectsWord: true,
      screenReaderMode: settings.screenReader,
      theme: currentTheme(),
    });
    this.terminal.open(this.box);
    this.connection = new TerminalConnection({
      url: `/workspaces/${encodeURIComponent(workspace.id)}/terminal`,
      ticket: (signal) => platform.ticket(workspace.id, readOnly, signal),
    });
    this.attached = attachTerminal(this.terminal, this.connection, {
      typed,
      allowCopy: (text) => this.askToCopy(text, changed),
      copyRefused: () => {
        if (this.copyRefused || this.status.state !== "open") return;
        this.copyRefused = true;
        changed();
      },
    });

    this.connection.on("status", ({ state, shell, waitsUntil }) => {
      // Who would answer may take the question for one about the session that ended.
      if (state !== "open") this.copyRequest?.answer(false);
      this.roundTrip = undefined;
      this.notice = undefined;
      this.copyRefused = false;
      this.inputRefused = this.inputRefused && waitsUntil !== undefined;
      if (waitsUntil === undefined && shell !== "same") this.used = false;
      changed();
      if (shell === "new") this.tell({ code: "gone", seconds: 0, message: GONE }, changed);
    });
    this.connection.on("inputRefused", () => {
      this.inputRefused = true;
      changed();
    });
    this.connection.on("roundTrip", (ms) => {
      this.roundTrip = ms;
      changed();
    });
    this.connection.on("notice", (notice) => this.tell(notice, changed));
    this.connection.on("output", () => {
      if (!this.box.hidden || this.unseen) return;
      this.unseen = true;
      changed();
    });
    this.terminal.onBell(() => this.ring(changed));
    this.terminal.onData(() => {
      this.used = true;
      const isIdle = this.notice?.code === "idle_timeout";
      if (!isIdle && !this.copyRefused) return;
      if (isIdle) this.notice = undefined;
      this.copyRefused = false;
      changed();
    });
    this.terminal.onTitleChange((title) => {
      this.title = title.slice(0, MAX_TITLE);
      changed();
    });
    this.terminal.onResize(changed);
  }

  get status(): Status {
    return this.connection.status;
  }

  /** It ended by a failure, not as somebody meant it to. */
  get bad(): boolean {
    const { end } = this.status;
    return end !== undefined && !calm.has(end.code);
  }

  show(visible: boolean): void {
    this.box.hidden = !visible;
    if (visible) this.looked();
  }

  /** Somebody looks at it. */
  looked(): void {
    this.unseen = false;
    this.bell = false;
  }

  /** Ends the session and takes it off the page. */
  remove(): void {
    this.attached.dispose();
    this.connection.close();
    this.terminal.dispose();
    this.box.remove();
  }

  private tell(notice: Notice, changed: () => void): void {
    this.notice = notice;
    changed();
    if (notice.seconds > 0) return;
    setTimeout(() => {
      if (this.notice !== notice) return;
      this.notice = undefined;
      changed();
    }, NEWS_MS);
  }

  private ring(changed: () => void): void {
    if (this.box.hidden || document.hidden) {
      if (this.bell) return;
      this.bell = true;
      changed();
    } else if (!calmMotion.matches && this.box.getAnimations().length === 0) {
      this.box.animate({ opacity: [0.6, 1] }, 200);
    }
  }

  private askToCopy(text: string, changed: () => void): Promise<boolean> {
    // The last output of a session may be drawn after its end is told.
    if (this.status.state !== "open") return Promise.resolve(false);
    return new Promise((resolve) => {
      this.copyRequest = {
        ...visible(text),
        answer: (allowed) => {
          this.copyRequest = undefined;
          resolve(allowed);
          changed();
        },
      };
      changed();
    });
  }
}
