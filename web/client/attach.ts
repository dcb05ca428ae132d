/**
 * Joins an xterm.js terminal to a connection: its size, what is typed into it,
 * and output with an ack once it is on the screen.
 */
import { FitAddon } from "@xterm/addon-fit";
import type { Terminal } from "@xterm/xterm";
import { MAX_SIZE, type TerminalConnection } from "./connection.js";

/**
 * Undoes what a program may have left on when its session ended under it: mouse
 * reports, bracketed paste, application keys, a hidden cursor. The next shell
 * would otherwise start inside them.
 */
const RESET_MODES = "\x1b[!p\x1b[?9;1000;1002;1003;1004;1005;1006;1015;2004l\x1b[?1l\x1b>\x1b[?25h";
/** Apart from the others: outside the alternate screen it would move the cursor. */
const LEAVE_ALTERNATE_SCREEN = "\x1b[?1049l";

export interface Attached {
  /** Lets go of both; the session and the terminal stay as they are. */
  dispose(): void;
}

/**
 * The terminal must be open (`terminal.open(element)`). It then fills its
 * element, and follows the element's size, until `dispose`.
 */
export function attachTerminal(terminal: Terminal, connection: TerminalConnection): Attached {
  const container = terminal.element?.parentElement;
  if (!container) throw new Error("open the terminal in an element before it is attached");

  const fit = new FitAddon();
  terminal.loadAddon(fit);
  const fitToContainer = () => {
    const size = fit.proposeDimensions();
    // A hidden element has no size: the terminal keeps the one it had.
    if (!size || container.clientWidth === 0 || container.clientHeight === 0) return;
    if (Number.isNaN(size.cols) || Number.isNaN(size.rows)) return;
    terminal.resize(Math.min(size.cols, MAX_SIZE), Math.min(size.rows, MAX_SIZE));
  };
  const watcher = new ResizeObserver(fitToContainer);
  watcher.observe(container);
  fitToContainer();
  connection.resize(terminal.cols, terminal.rows);

  const disposables = [
    terminal.onResize(({ cols, rows }) => connection.resize(cols, rows)),
    // A paste comes here too, bracketed when the program asked for that.
    terminal.onData((text) => connection.send(text)),
    // Reports that are bytes and no text, such as X10 mouse positions.
    terminal.onBinary((bytes) =>
      connection.send(Uint8Array.from(bytes, (char) => char.charCodeAt(0))),
    ),
  ];
  const unlisten = [
    connection.on("output", ({ bytes, rendered }) => terminal.write(bytes, rendered)),
    connection.on("end", () => {
      // After what is still queued: only then is it known which screen is on.
      terminal.write("", () => {
        const alternate = terminal.buffer.active.type === "alternate";
        terminal.write((alternate ? LEAVE_ALTERNATE_SCREEN : "") + RESET_MODES);
      });
    }),
    connection.on("state", () => {
      terminal.options.disableStdin =
        connection.state !== "open" || connection.ready?.mode === "ro";
    }),
  ];

  return {
    dispose() {
      watcher.disconnect();
      for (const stop of unlisten) stop();
      for (const disposable of disposables) disposable.dispose();
      fit.dispose();
    },
  };
}
