/**
 * Joins an xterm.js terminal to a connection: its size, what is typed and
 * pasted, output with an ack once it is on the screen, and xterm.js's own
 * addons for what people expect of a terminal.
 */
import { ClipboardAddon, type IClipboardProvider } from "@xterm/addon-clipboard";
import { FitAddon } from "@xterm/addon-fit";
import type { SearchAddon } from "@xterm/addon-search";
import { Unicode11Addon } from "@xterm/addon-unicode11";
import { WebLinksAddon } from "@xterm/addon-web-links";
import type { IDisposable, Terminal } from "@xterm/xterm";
import { MAX_SIZE, type State, type TerminalConnection } from "./connection.js";

/**
 * Undoes what a program may have left on when its session ended under it: mouse
 * reports, bracketed paste, application keys, a hidden cursor. The next shell
 * would otherwise start inside them.
 */
const RESET_MODES = "\x1b[!p\x1b[?9;1000;1002;1003;1004;1005;1006;1015;2004l\x1b[?1l\x1b>\x1b[?25h";
/** Apart from the others: outside the alternate screen it would move the cursor. */
const LEAVE_ALTERNATE_SCREEN = "\x1b[?1049l";
const DIVIDER = "\r\n\x1b[2m── new session ──\x1b[0m\r\n\r\n";

export interface AttachOptions {
  /**
   * `auto`: WebGL where hardware draws it, else the DOM. Browsers allow a page
   * some 16 WebGL contexts: the oldest terminal beyond goes on with the DOM.
   */
  renderer?: "auto" | "dom" | "webgl";
  /**
   * Asked when a program in the workspace wants to put text on the clipboard
   * (OSC 52). Without it none may. None may ever read the clipboard.
   */
  allowCopy?: (text: string) => boolean | Promise<boolean>;
  /** Changes what was typed before it is sent: for on-screen keys such as Ctrl. */
  typed?: (text: string) => string;
}

/** Where to look, and how many there are; -1: none is looked at. */
export interface Found {
  index: number;
  count: number;
}

export interface Attached {
  /** Looks for text in the terminal and its scrollback, and marks it; empty text ends that. */
  find(text: string, direction?: "next" | "previous"): Promise<Found>;
  /** Reads the terminal's text to a screen reader, which costs speed: for who asked for it. */
  setScreenReader(on: boolean): void;
  /** Fits the terminal into its element again: after its font changed, which nothing tells. */
  fit(): void;
  /** Which renderer draws. */
  readonly renderer: "webgl" | "dom";
  /** Lets go of both; the session and the terminal stay as they are. */
  dispose(): void;
}

/**
 * The terminal must be open (`terminal.open(element)`). It then fills its
 * element, and follows the element's size, until `dispose`.
 */
export function attachTerminal(
  terminal: Terminal,
  connection: TerminalConnection,
  options: AttachOptions = {},
): Attached {
  const container = terminal.element?.parentElement;
  if (!container) throw new Error("open the terminal in an element before it is attached");
  const undo: (() => void)[] = [];
  let disposed = false;
  const own = <T extends IDisposable>(disposable: T): T => {
    undo.push(() => disposable.dispose());
    return disposable;
  };
  const load = <T extends IDisposable & { activate(terminal: Terminal): void }>(addon: T): T => {
    terminal.loadAddon(own(addon));
    return addon;
  };

  // Widths as programs know them since 2019: xterm.js's own table is of 2010, without emoji.
  terminal.options.allowProposedApi = true;
  load(new Unicode11Addon());
  const widths = terminal.unicode.activeVersion;
  terminal.unicode.activeVersion = "11";
  undo.push(() => {
    terminal.unicode.activeVersion = widths;
  });
  load(new WebLinksAddon((_event, uri) => window.open(uri, "_blank", "noopener,noreferrer")));
  load(new ClipboardAddon(undefined, clipboardFor(options.allowCopy)));

  const size = follow(terminal, container, load(new FitAddon()), connection);
  undo.push(size.stop);
  const typed = options.typed ?? ((text: string) => text);
  // A paste comes here too, bracketed when the program asked for that.
  own(terminal.onData((text) => connection.send(typed(text))));
  // Reports that are bytes and no text, such as X10 mouse positions.
  own(
    terminal.onBinary((bytes) => connection.send(Uint8Array.from(bytes, (c) => c.charCodeAt(0)))),
  );
  undo.push(connection.on("output", ({ bytes, rendered }) => terminal.write(bytes, rendered)));
  undo.push(followStatus(terminal, connection));
  undo.push(copyByKey(terminal, container));
  const online = () => {
    // What failed for want of a network is tried again as soon as there is one.
    if (connection.status.retryAt !== undefined) connection.connect();
  };
  window.addEventListener("online", online);
  undo.push(() => window.removeEventListener("online", online));

  let renderer: "webgl" | "dom" = "dom";
  const wanted = options.renderer ?? "auto";
  if (wanted === "webgl" || (wanted === "auto" && hasFastWebGL())) {
    void loadWebGL(
      terminal,
      () => disposed,
      (drawn) => {
        renderer = drawn;
      },
    ).then((addon) => addon && own(addon));
  }

  let search: Promise<SearchAddon> | undefined;
  return {
    async find(text, direction = "next") {
      search ??= import("@xterm/addon-search").then(({ SearchAddon }) => load(new SearchAddon()));
      const addon = await search;
      if (text === "") {
        addon.clearDecorations();
        return { index: -1, count: 0 };
      }
      let found: Found = { index: -1, count: 0 };
      const results = addon.onDidChangeResults(({ resultIndex, resultCount }) => {
        found = { index: resultIndex, count: resultCount };
      });
      if (direction === "next") addon.findNext(text, { decorations: MARKS });
      else addon.findPrevious(text, { decorations: MARKS });
      results.dispose();
      return found;
    },
    setScreenReader(on) {
      terminal.options.screenReaderMode = on;
    },
    fit: size.fit,
    get renderer() {
      return renderer;
    },
    dispose() {
      disposed = true;
      for (const step of undo.reverse()) step();
      undo.length = 0;
    },
  };
}

/** Readable on any theme: the text keeps its colour, a border and the ruler mark it. */
const MARKS = {
  matchBorder: "#c98a12",
  matchOverviewRuler: "#c98a12",
  activeMatchBackground: "#f2c14e",
  activeMatchBorder: "#c98a12",
  activeMatchColorOverviewRuler: "#f2c14e",
};

/** Keeps the terminal as large as its element, and the shell as large as the terminal. */
function follow(
  terminal: Terminal,
  container: HTMLElement,
  fit: FitAddon,
  connection: TerminalConnection,
): { fit(): void; stop(): void } {
  const fitToContainer = () => {
    // A hidden element has no size: the terminal keeps the one it had.
    if (container.clientWidth === 0 || container.clientHeight === 0) return;
    const size = fit.proposeDimensions();
    if (!size || Number.isNaN(size.cols) || Number.isNaN(size.rows)) return;
    terminal.resize(Math.min(size.cols, MAX_SIZE), Math.min(size.rows, MAX_SIZE));
  };
  const watcher = new ResizeObserver(fitToContainer);
  watcher.observe(container);
  fitToContainer();
  connection.resize(terminal.cols, terminal.rows);
  const resized = terminal.onResize(({ cols, rows }) => connection.resize(cols, rows));
  return {
    fit: fitToContainer,
    stop() {
      watcher.disconnect();
      resized.dispose();
    },
  };
}

/** Tells the terminal when a session begins and ends. */
function followStatus(terminal: Terminal, connection: TerminalConnection): () => void {
  let before: State = connection.status.state;
  let sessions = before === "open" ? 1 : 0;
  let stopped = false;
  const stop = connection.on("status", ({ state, ready, retryAt }) => {
    const typing = state === "open" ? ready?.mode !== "ro" : state === "waiting" && !retryAt;
    terminal.options.disableStdin = !typing;
    if (state === "open" && sessions++ > 0) terminal.write(DIVIDER);
    if (before === "open" && state !== "open") {
      // After what is still queued: only then is it known which screen is on.
      terminal.write("", () => {
        if (stopped) return;
        const alternate = terminal.buffer.active.type === "alternate";
        terminal.write((alternate ? LEAVE_ALTERNATE_SCREEN : "") + RESET_MODES);
      });
    }
    before = state;
  });
  return () => {
    stopped = true;
    stop();
  };
}

/** Ctrl+Shift+C copies, since Ctrl+C is the program's; paste is the browser's own Ctrl+Shift+V. */
function copyByKey(terminal: Terminal, container: HTMLElement): () => void {
  const copy = (event: KeyboardEvent) => {
    if (!event.ctrlKey || !event.shiftKey || event.code !== "KeyC") return;
    event.preventDefault(); // some browsers open their tools
    event.stopPropagation();
    if (terminal.hasSelection()) void navigator.clipboard.writeText(terminal.getSelection());
  };
  container.addEventListener("keydown", copy, { capture: true });
  return () => container.removeEventListener("keydown", copy, { capture: true });
}

function clipboardFor(allowCopy: AttachOptions["allowCopy"]): IClipboardProvider {
  return {
    // A workspace's program is not to learn what somebody copied elsewhere.
    readText: () => "",
    async writeText(_selection, text) {
      if (!allowCopy || !(await allowCopy(text))) return;
      await navigator.clipboard.writeText(text);
    },
  };
}

/** Whether WebGL is there and drawn by hardware: an emulation is slower than the DOM. */
function hasFastWebGL(): boolean {
  const context = document
    .createElement("canvas")
    .getContext("webgl2", { failIfMajorPerformanceCaveat: true });
  if (!context) return false;
  // Chromium does not take its own SwiftShader for a caveat.
  const info = context.getExtension("WEBGL_debug_renderer_info");
  const drawnBy = String(context.getParameter(info?.UNMASKED_RENDERER_WEBGL ?? context.RENDERER));
  context.getExtension("WEBGL_lose_context")?.loseContext();
  return !/swiftshader|llvmpipe|softpipe|software|basic render/i.test(drawnBy);
}

async function loadWebGL(
  terminal: Terminal,
  isDisposed: () => boolean,
  drawn: (by: "webgl" | "dom") => void,
): Promise<IDisposable | undefined> {
  const { WebglAddon } = await import("@xterm/addon-webgl");
  if (isDisposed()) return undefined;
  const addon = new WebglAddon();
  try {
    terminal.loadAddon(addon);
  } catch {
    return undefined; // the context was refused after all: the DOM goes on drawing
  }
  drawn("webgl");
  // A driver that restarts, or a page with too many contexts: the DOM takes over.
  addon.onContextLoss(() => {
    addon.dispose();
    drawn("dom");
  });
  return addon;
}
