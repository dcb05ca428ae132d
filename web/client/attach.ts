/**
 * Joins an xterm.js terminal to a connection: its size, what is typed and
 * pasted, output with an ack once it is on the screen, and xterm.js's own
 * addons for what people expect of a terminal.
 */
import { FitAddon } from "@xterm/addon-fit";
import type { SearchAddon } from "@xterm/addon-search";
import { Unicode11Addon } from "@xterm/addon-unicode11";
import { WebLinksAddon } from "@xterm/addon-web-links";
import type { IDisposable, Terminal } from "@xterm/xterm";
import { MAX_SIZE, type Status, type TerminalConnection } from "./connection.js";
import { guardOutput } from "./guard.js";
import { Screen } from "./screen.js";
import { Typing } from "./typing.js";

/**
 * Undoes what a program may have left on when its session ended under it: mouse
 * reports, bracketed paste, application keys, a hidden cursor. The next shell
 * would otherwise start inside them.
 */
const RESET_MODES = "\x1b[!p\x1b[?9;1000;1002;1003;1004;1005;1006;1015;2004l\x1b[?1l\x1b>\x1b[?25h";
/**
 * Also moves the cursor to where it was saved. Each screen saves one of its own, so that saving
 * it first changes nothing if the alternate one is on, and keeps the cursor in place if it is not.
 */
const LEAVE_ALTERNATE_SCREEN = "\x1b7\x1b[?1049l";
/**
 * What a paste must not hold. An ESC can end its brackets, and what follows runs as if typed;
 * so does a Ctrl-C, at which bash leaves the paste that it reads.
 */
const CONTROLS = /[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]/g;
/**
 * Bytes that xterm.js parses at once: between two pieces it lets the page's other terminals go on,
 * once it has worked for 12 ms.
 */
const PIECE = 1024;
/** Base64 characters that a program may copy at once: 768 KiB of text. */
const MAX_COPY = 1 << 20;
/** What xterm.js answers to programs, and keys that run nothing; a paste in brackets is neither. */
const NO_TEXT = /^\x1b(?!\[200~)/;
const DIVIDER = "\r\n\x1b[2m── new session ──\x1b[0m\r\n\r\n";
const GONE = "\r\n\x1b[2m── the shell is gone, this is a new one ──\x1b[0m\r\n\r\n";
/**
 * Before a program draws its screen anew: leaves a sequence that lost its end, the scrolling region,
 * line drawing and colours, and clears the screen. The gateway sends the program's modes.
 */
const CLEAR = "\x18\x1b[r\x1b(B\x0f\x1b[m\x1b[H\x1b[2J";

export interface AttachOptions {
  /**
   * `auto`: WebGL where hardware draws it, else the DOM. Browsers allow a page
   * some 16 WebGL contexts: the oldest terminal beyond goes on with the DOM.
   */
  renderer?: "auto" | "dom" | "webgl";
  /**
   * Asked when a program in the workspace wants to put text on the clipboard
   * (OSC 52). Without it none may. None may ever read the clipboard. Until it
   * has answered, output goes on, and what else programs want to copy is
   * dropped: what is answered is what was asked. Not asked on plain http, where
   * browsers have no clipboard for it.
   */
  allowCopy?: (text: string) => boolean | Promise<boolean>;
  /** Called when a program wants to copy more than 1 MiB of base64, which is not decoded. */
  copyRefused?: () => void;
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
  /**
   * Lets go of both; the session and the terminal stay as they are. To be called before the
   * terminal's own `dispose`. Output that is not on the screen yet counts as rendered.
   */
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
  const { element } = terminal;
  const container = element?.parentElement;
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

  guardOutput(terminal);
  // Widths as programs know them since 2019: xterm.js's own table is of 2010, without emoji.
  terminal.options.allowProposedApi = true;
  load(new Unicode11Addon());
  const widths = terminal.unicode.activeVersion;
  terminal.unicode.activeVersion = "11";
  undo.push(() => {
    terminal.unicode.activeVersion = widths;
  });
  load(new WebLinksAddon((_event, uri) => openLink(uri)));
  undo.push(openMarkedLinks(terminal, element));
  own(copyForPrograms(terminal, options));

  const size = follow(terminal, container, load(new FitAddon()), connection);
  undo.push(size.stop);
  const typed = options.typed ?? ((text: string) => text);
  const inFlight = watchKeys(container, connection);
  undo.push(inFlight.stop);
  // A paste comes here too, bracketed when the program asked for that.
  own(
    terminal.onData((text) => {
      const changed = typed(text);
      if (!inFlight.holds(changed)) connection.send(changed);
    }),
  );
  // Reports that are bytes and no text, such as X10 mouse positions.
  own(
    terminal.onBinary((bytes) => connection.send(Uint8Array.from(bytes, (c) => c.charCodeAt(0)))),
  );
  const screen = own(new Screen(terminal));
  undo.push(render(terminal, connection, screen));
  undo.push(
    connection.keep({
      save: () => screen.save(),
      restore: (saved) => size.hold(() => screen.restore(saved)),
    }),
  );
  undo.push(followStatus(terminal, connection, screen));
  undo.push(pasteText(terminal, element));
  undo.push(copyByKey(terminal, container));

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
): { fit(): void; hold(work: () => Promise<void>): Promise<void>; stop(): void } {
  let isHeld = false;
  const fitToContainer = () => {
    // A hidden element has no size: the terminal keeps the one it had.
    if (isHeld || container.clientWidth === 0 || container.clientHeight === 0) return;
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
    /** Leaves the terminal the size that it is given meanwhile. */
    async hold(work) {
      isHeld = true;
      try {
        await work();
      } finally {
        isHeld = false;
        fitToContainer();
      }
    },
    stop() {
      watcher.disconnect();
      resized.dispose();
    },
  };
}

/** Writes output to the terminal, and holds each piece until it is on the screen. */
function render(terminal: Terminal, connection: TerminalConnection, screen: Screen): () => void {
  const held = new Set<() => void>();
  const stop = connection.on("output", ({ bytes, offset, hold }) => {
    const release = hold();
    held.add(release);
    for (let start = 0; start < bytes.length; start += PIECE) {
      const piece = bytes.subarray(start, start + PIECE);
      terminal.write(piece, () => {
        screen.parsed(piece, offset + start);
        if (start + PIECE < bytes.length) return;
        held.delete(release);
        release();
      });
    }
  });
  return () => {
    stop();
    for (const release of held) release();
  };
}

/** Tells the terminal when a shell begins and ends. */
function followStatus(
  terminal: Terminal,
  connection: TerminalConnection,
  screen: Screen,
): () => void {
  const isShown = ({ state, waitsUntil }: Status) => state === "open" || waitsUntil !== undefined;
  let before = isShown(connection.status);
  let shells = before ? 1 : 0;
  return connection.on("status", (status) => {
    const { state, ready, retryAt, shell } = status;
    const typing = isShown(status) ? ready?.mode !== "ro" : state === "waiting" && !retryAt;
    terminal.options.disableStdin = !typing;
    const isGone = shell === "new";
    // Behind what is still queued of the last shell, and before anything of the next.
    if (isGone || (before && !isShown(status))) {
      terminal.write(LEAVE_ALTERNATE_SCREEN + RESET_MODES);
    }
    if (isGone) terminal.write(GONE);
    else if (state === "open" && !before && shells > 0) terminal.write(DIVIDER);
    if (state === "open") {
      shells++;
      if (shell !== "same") screen.begin();
    }
    if (shell === "redrawn") terminal.write(LEAVE_ALTERNATE_SCREEN + RESET_MODES + CLEAR);
    before = isShown(status);
  });
}

/**
 * Keeps what somebody is typing for a shell that went away from one that took its place by itself:
 * half a line means another thing there. Whoever pauses types on.
 */
function watchKeys(
  container: HTMLElement,
  connection: TerminalConnection,
): { holds(text: string): boolean; stop(): void } {
  // Keys also come here while nothing is open to take them.
  const typing = new Typing(container);
  let before = connection.status.state;
  let isFollowing = false;
  /** The run of keys that is held; 0: none is. */
  let held = 0;
  const unlisten = connection.on("status", ({ state, shell }) => {
    if (state === "connecting") isFollowing = before === "waiting";
    const isOther = shell === undefined ? isFollowing : shell === "new";
    held = state === "open" && isOther ? typing.run : 0;
    before = state;
  });
  return {
    holds: (text) => held !== 0 && typing.run === held && !NO_TEXT.test(text),
    stop() {
      unlisten();
      typing.stop();
    },
  };
}

/** Pastes as xterm.js does, which takes the text as it is, but for control characters. */
function pasteText(terminal: Terminal, element: HTMLElement): () => void {
  const paste = (event: ClipboardEvent) => {
    event.preventDefault();
    event.stopImmediatePropagation();
    const text = event.clipboardData?.getData("text/plain") ?? "";
    terminal.paste(text.replace(CONTROLS, ""));
  };
  element.addEventListener("paste", paste, { capture: true });
  return () => element.removeEventListener("paste", paste, { capture: true });
}

/** Ctrl+Shift+C copies, since Ctrl+C is the program's; paste is the browser's own Ctrl+Shift+V. */
function copyByKey(terminal: Terminal, container: HTMLElement): () => void {
  const copy = (event: KeyboardEvent) => {
    if (!event.ctrlKey || !event.shiftKey || event.code !== "KeyC") return;
    event.preventDefault(); // some browsers open their tools
    event.stopPropagation();
    const { textarea } = terminal;
    if (!textarea || !terminal.hasSelection()) return;
    // The browser's own way: the Clipboard API is not there on plain http, nor in every frame.
    // Nothing is copied from an empty field; what is, xterm.js puts into the event.
    textarea.value = " ";
    textarea.select();
    document.execCommand("copy");
    textarea.value = "";
  };
  container.addEventListener("keydown", copy, { capture: true });
  return () => container.removeEventListener("keydown", copy, { capture: true });
}

function openLink(uri: string): void {
  window.open(uri, "_blank", "noopener,noreferrer");
}

/**
 * Links that a program marks (OSC 8), http and https only: their text is any, so that where they
 * lead is told beside the pointer. xterm.js itself asks by a dialog that stops the page.
 */
function openMarkedLinks(terminal: Terminal, element: HTMLElement): () => void {
  const given = terminal.options.linkHandler ?? null;
  if (given) return () => {};
  terminal.options.linkHandler = {
    activate: (_event, uri) => openLink(uri),
    hover: (_event, uri) => {
      element.title = uri;
    },
    leave: () => element.removeAttribute("title"),
  };
  return () => {
    terminal.options.linkHandler = given;
    element.removeAttribute("title");
  };
}

/** Lets programs copy (OSC 52) what `allowCopy` allows, and read nothing. */
function copyForPrograms(
  terminal: Terminal,
  { allowCopy, copyRefused }: AttachOptions,
): IDisposable {
  let asking = false;
  const copy = async (text: string) => {
    let allowed = allowCopy?.(text) ?? false;
    if (typeof allowed !== "boolean") {
      asking = true;
      try {
        allowed = await allowed;
      } finally {
        asking = false;
      }
    }
    if (allowed) await navigator.clipboard.writeText(text);
  };
  return terminal.parser.registerOscHandler(52, (data) => {
    const [selection = "", encoded = ""] = data.split(";", 2);
    if (encoded === "?") {
      // A workspace's program is not to learn what somebody copied elsewhere, and what it prints is
      // not to come back as if typed, but for the names that xterm gives its 12 clipboards.
      if (/^[cpqs0-7]{0,12}$/.test(selection)) terminal.input(`\x1b]52;${selection};\x07`, false);
      return true;
    }
    // A second question would change the text under the finger of who answers the first.
    if (asking || !navigator.clipboard) return true;
    if (encoded.length > MAX_COPY) {
      if (allowCopy) copyRefused?.();
      return true;
    }
    const text = decodeBase64(encoded);
    if (!text) return true;
    // Not awaited: xterm.js would parse nothing more until somebody has answered.
    // No answer is a no; a browser that refuses has nobody here to tell.
    copy(text).catch(() => {});
    return true;
  });
}

/** UTF-8 in base64; nothing where it is none. */
function decodeBase64(encoded: string): string | undefined {
  try {
    const binary = atob(encoded);
    const bytes = new Uint8Array(binary.length); // Uint8Array.from takes twenty times as long
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    return new TextDecoder().decode(bytes);
  } catch {
    return undefined;
  }
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
