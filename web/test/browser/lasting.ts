// A terminal as a canvas has it, whose inside a test may see.
import "@xterm/xterm/css/xterm.css";
import { Unicode11Addon } from "@xterm/addon-unicode11";
import { type IBufferCell, Terminal } from "@xterm/xterm";
import { attachTerminal, type Status, TerminalConnection } from "../../client/index.js";

interface Attribute {
  fg: number;
  bg: number;
}

/** What has no place in xterm.js's API. */
interface Inner {
  buffer: { x: number; y: number };
  coreService: { isCursorHidden: boolean };
  coreMouseService: { activeEncoding: string };
}

async function ticket(): Promise<string> {
  return (await fetch("/ticket")).text();
}

const terminal = new Terminal({ cols: 90, rows: 30, scrollback: 5_000, allowProposedApi: true });
terminal.open(document.getElementById("terminal") as HTMLElement);
const connection = new TerminalConnection({ url: "/workspaces/host/terminal", ticket });
attachTerminal(terminal, connection, { renderer: "dom" });
const statuses: Status[] = [];
connection.on("status", (status) => statuses.push(status));
connection.connect();

/** A cell as it is: its character, a dot for a cell without one, and its style. */
function exact(cell: IBufferCell): [string, string] {
  const { fg, bg } = cell as unknown as Attribute;
  return [cell.getChars() || "·".repeat(cell.getWidth()), `${fg.toString(16)}/${bg.toString(16)}`];
}

/** A cell as a person sees it: a space is as an erased cell, and has no colour but its background. */
function seen(cell: IBufferCell): [string, string] {
  const [char, style] = exact(cell);
  if (char !== " " && char !== "·") return [char, style];
  const { bg } = cell as unknown as Attribute;
  const drawn =
    cell.isInverse() || cell.isUnderline() || cell.isStrikethrough() || cell.isOverline();
  return ["·", drawn ? style : `0/${bg.toString(16)}`];
}

/**
 * What a terminal shows, cell by cell, its scrollback included: each line's characters, and before
 * the cells whose style is not that of the cell before, the style.
 */
function cells(of: Terminal, as = exact): string[] {
  const { active } = of.buffer;
  const lines = Array.from({ length: active.length }, (_, y) => {
    const line = active.getLine(y);
    let last = "0/0";
    const row = Array.from({ length: of.cols }, (__, x) => {
      const [char, style] = as(line?.getCell(x) as IBufferCell);
      const set = style === last ? "" : `{${style}}`;
      last = style;
      return set + char;
    });
    return `${line?.isWrapped ? "+" : ""}${row.join("").replace(/·+$/, "")}`;
  });
  return [`${active.type} ${active.cursorX} ${active.cursorY}`, ...lines];
}

/** The same of a terminal of that size to which some output was written, and that nobody cut. */
async function cellsOf(bytes: number[]): Promise<string[]> {
  const { cols, rows } = terminal;
  const other = new Terminal({ cols, rows, scrollback: 5_000, allowProposedApi: true });
  other.loadAddon(new Unicode11Addon());
  other.unicode.activeVersion = "11";
  await new Promise<void>((resolve) => other.write(Uint8Array.from(bytes), resolve));
  return cells(other);
}

/** The lines that a person sees, and what decides what keys and the mouse send. */
function view(of: Terminal): string[] {
  const { _core: core } = of as unknown as { _core: Inner };
  const { x, y } = core.buffer;
  const [, ...lines] = cells(of, seen);
  const modes = { ...of.modes, isCursorHidden: core.coreService.isCursorHidden };
  const mouse = core.coreMouseService.activeEncoding;
  const { type } = of.buffer.active;
  return [`${type} ${x} ${y}`, JSON.stringify(modes), mouse, ...lines.slice(-of.rows)];
}

const lasting = {
  terminal,
  connection,
  statuses,
  cells: () => cells(terminal),
  cellsOf,
  view: () => view(terminal),
  text: () => {
    const { active } = terminal.buffer;
    const lines = Array.from({ length: active.length }, (_, y) => active.getLine(y));
    return lines.map((line) => line?.translateToString(true)).join("\n");
  },
};

declare global {
  interface Window {
    lasting: typeof lasting;
  }
}

window.lasting = lasting;
