/** One workspace's terminal in the page: its element, xterm.js and its connection. */
import { Terminal } from "@xterm/xterm";
import { attachTerminal, type Notice, TerminalConnection } from "../client/index.js";
import type { Platform, Workspace } from "./platform.js";
import { currentTheme } from "./theme.js";

const FONT =
  'ui-monospace, "SF Mono", "JetBrains Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace';

export class TerminalSession {
  readonly workspace: Workspace;
  readonly terminal: Terminal;
  readonly connection: TerminalConnection;
  /** The last round trip in ms. */
  roundTrip: number | undefined;
  /** An end that is coming, until it comes or somebody types. */
  notice: Notice | undefined;

  private readonly box: HTMLElement;

  /** `changed` is called whenever what the page shows of this session changed. */
  constructor(workspace: Workspace, platform: Platform, parent: HTMLElement, changed: () => void) {
    this.workspace = workspace;
    this.box = document.createElement("div");
    this.box.className = "terminal-box";
    parent.append(this.box);

    this.terminal = new Terminal({
      fontFamily: FONT,
      fontSize: 14,
      lineHeight: 1.15,
      cursorBlink: true,
      scrollback: 10_000,
      theme: currentTheme(),
    });
    this.terminal.open(this.box);

    const url = new URL(`workspaces/${encodeURIComponent(workspace.id)}/terminal`, location.origin);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    this.connection = new TerminalConnection({
      url,
      ticket: () => platform.ticket(workspace.id),
    });
    attachTerminal(this.terminal, this.connection);

    this.connection.on("state", () => {
      this.roundTrip = undefined;
      this.notice = undefined;
      changed();
    });
    this.connection.on("end", changed);
    this.connection.on("roundTrip", (ms) => {
      this.roundTrip = ms;
      changed();
    });
    this.connection.on("notice", (notice) => {
      this.notice = notice;
      changed();
    });
    this.terminal.onData(() => {
      if (!this.notice) return;
      this.notice = undefined;
      changed();
    });
    this.terminal.onResize(changed);
  }

  /** Opens another session below what the last one left on the screen. */
  again(): void {
    this.terminal.write("\r\n\x1b[2m── new session ──\x1b[0m\r\n\r\n");
    this.connection.connect();
  }

  show(visible: boolean): void {
    this.box.hidden = !visible;
  }
}
