/**
 * Bounds what a program's output costs. In xterm.js 6.0.0 a few bytes of output
 * can take minutes of the page's one thread, and so of all its terminals. With
 * these bounds no sequence takes more than a few screens are worth, and the
 * page's other work goes on between sequences.
 *
 * The API of xterm.js hands its handlers copies of a sequence's parameters and
 * has none of the other parts, so this file uses internals, as xterm.js's own
 * addons do.
 */
import type { IFunctionIdentifier, IMarker, Terminal } from "@xterm/xterm";
import { parseByMessages, pause, type WriteBuffer } from "./parsing.js";

/**
 * Links (OSC 8) that are live, counted as lines that have text of one. xterm.js
 * keeps a marker for each, and moves all markers whenever a line is inserted,
 * deleted or scrolled out.
 */
const MAX_LINK_LINES = 512;
/** UTF-16 units of a cell: text in Unicode's stream-safe format (UAX 15) has 30 marks in a row at most. */
const MAX_CELL = 32;
/**
 * UTF-16 units of a cell that REP repeats: a letter and a few marks, or an emoji. A screen full of
 * longer cells takes the browser too long to draw.
 */
const MAX_REPEATED = 4;
/** Colours in one sequence: each of the palette's 256 once, as number and value. */
const MAX_COLOR_FIELDS = 512;
/** Milliseconds of parsing after which the page's other work may go on. */
const SLICE_MS = 6;
/**
 * Sequences that change a line or more, or the layout: a piece of output that is full of one of
 * them takes seconds on a large terminal, and parsing stops only between pieces.
 */
const COSTLY: readonly IFunctionIdentifier[] = [
  ...[..."@IJKLMPSTXZbhlt"].map((final) => ({ final })),
  ...[..."JKhl"].map((final) => ({ prefix: "?", final })),
  ...[..."@A"].map((final) => ({ intermediates: " ", final })), // scroll left and right
  ...[..."}~"].map((final) => ({ intermediates: "'", final })), // insert and delete columns
  { intermediates: "!", final: "p" }, // soft reset (DECSTR)
];
/** The same for escape sequences: reset (RIS) and the alignment test (DECALN). */
const COSTLY_ESCAPES: readonly IFunctionIdentifier[] = [
  { final: "c" },
  { intermediates: "#", final: "8" },
];
/** A parameter that no mode has. */
const NO_MODE = 0;

/** Parameters of a sequence, those that the next handler reads too. */
interface Params {
  params: Int32Array;
  length: number;
}

/** What is used of the inside of xterm.js 6.0. */
interface Core {
  registerCsiHandler(
    id: IFunctionIdentifier,
    handler: (params: Params) => boolean | Promise<boolean>,
  ): unknown;
  buffers: { active: { lines: { get(index: number): Line | undefined } } };
  _oscLinkService: Links;
  _themeService: { _onChangeColors: Colors };
  _writeBuffer: WriteBuffer;
}

interface Line {
  getString(index: number): string;
  /** Adds a mark to the character of a cell. */
  addCodepointToCell(index: number, codePoint: number, width: number): void;
}

interface Links {
  /** Starts a link at the cursor's line, and gives its number. */
  registerLink(data: object): number;
  /** Called for each character that is printed in a link. */
  addLineToLink(link: number, line: number): void;
}

interface Colors {
  /** Tells of colours that changed; the renderer styles everything anew. */
  fire(colors: object): void;
}

/**
 * Terminals stay guarded: output may wait in them when their connection has gone. Each has what
 * parses the piece of output that was begun to its end.
 */
const guarded = new WeakMap<Terminal, () => boolean>();

/** The class of lines is one for all terminals of a copy of xterm.js. */
const boundedLines = new WeakSet<Line>();

/** Throws where the terminal is none of xterm.js 6.0, which it could not guard. */
export function guardOutput(terminal: Terminal): void {
  if (guarded.has(terminal)) return;
  const { _core: core } = terminal as unknown as { _core?: Core };
  const {
    _oscLinkService: links,
    _themeService: theme,
    _writeBuffer: writes,
  }: Partial<Core> = core ?? {};
  const { _onChangeColors: colors } = theme ?? {};
  const { _action: parse } = writes ?? {};
  const line = core?.buffers?.active.lines.get(0);
  if (
    !core?.registerCsiHandler ||
    !links?.registerLink ||
    !colors?.fire ||
    !writes ||
    !parse ||
    !line?.addCodepointToCell
  ) {
    throw new Error("this client guards terminals of xterm.js 6.0 only: install @xterm/xterm 6.0");
  }
  guarded.set(terminal, parseByMessages(writes));
  boundCounts(terminal, core);
  dropModes(core);
  eraseScreen(terminal, core);
  boundCells(Object.getPrototypeOf(line) as Line);
  boundLinks(terminal, links);
  boundColors(terminal, colors);
  yieldBetween(terminal, core);
  // xterm.js logs each character that it does not expect. Any other level was asked for.
  if (terminal.options.logLevel === "info") terminal.options.logLevel = "off";
}

/** Parses the piece of output that was begun to its end at once, and tells whether that could be done. */
export function finishPiece(terminal: Terminal): boolean {
  return guarded.get(terminal)?.() ?? false;
}

/** The sequences that xterm.js does as often as their count says, up to 2,147,483,647. */
function boundCounts(terminal: Terminal, core: Core): void {
  const bound = (final: string, most: () => number) =>
    core.registerCsiHandler({ final }, ({ params }) => {
      const limit = most();
      if ((params[0] as number) > limit) params[0] = limit;
      return limit === 0; // nothing is left to do
    });
  const rows = () => terminal.rows;
  const columns = () => terminal.cols;
  bound("S", rows); // scroll up
  bound("T", rows); // scroll down
  bound("L", rows); // insert lines
  bound("M", rows); // delete lines
  bound("I", columns); // tabs forward
  bound("Z", columns); // tabs backward
  // Repeat the last character. Programs repeat within a line only: ncurses' EmitRange
  // (tty_update.c), the one user of terminfo's rep, even stops short of the right margin.
  bound("b", () => (lastCell(terminal).length > MAX_REPEATED ? 0 : terminal.cols));
}

/** The characters of the cell before the cursor, which REP repeats. */
function lastCell(terminal: Terminal): string {
  const { active } = terminal.buffer;
  const line = active.getLine(active.baseY + active.cursorY);
  const cell = line?.getCell(active.cursorX - 1);
  // The second half of a wide character is an empty cell.
  const whole = cell?.getWidth() === 0 ? line?.getCell(active.cursorX - 2) : cell;
  return whole?.getChars() ?? "";
}

/**
 * Drops the modes that xterm.js keeps as options of the page: each change is a new layout of the
 * whole terminal. Line ends (LNM, 20) are the terminal driver's, and whether the cursor blinks
 * (AT&T 610, ?12) is for the page to say, or for DECSCUSR, which is no option.
 */
function dropModes(core: Core): void {
  const drop = (id: IFunctionIdentifier, mode: number) =>
    core.registerCsiHandler(id, ({ params, length }) => {
      for (let i = 0; i < length; i++) if (params[i] === mode) params[i] = NO_MODE;
      return false;
    });
  for (const final of ["h", "l"]) {
    drop({ final }, 20);
    drop({ prefix: "?", final }, 12);
  }
}

/**
 * Erases what is before the last cell of the screen as the whole screen: xterm.js looks for the
 * line after it, and parses nothing more where there is none.
 */
function eraseScreen(terminal: Terminal, core: Core): void {
  const erase = ({ params }: Params) => {
    const { cursorX, cursorY } = terminal.buffer.active;
    const isLast = cursorX >= terminal.cols - 1 && cursorY === terminal.rows - 1;
    if (params[0] === 1 && isLast) params[0] = 2;
    return false;
  };
  core.registerCsiHandler({ final: "J" }, erase);
  core.registerCsiHandler({ prefix: "?", final: "J" }, erase);
}

/** Drops marks of a cell beyond MAX_CELL: the browser takes seconds to draw a few thousand of them. */
function boundCells(lines: Line): void {
  if (boundedLines.has(lines)) return;
  boundedLines.add(lines);
  const { addCodepointToCell } = lines;
  lines.addCodepointToCell = function (this: Line, index, codePoint, width) {
    if (this.getString(index).length < MAX_CELL) {
      addCodepointToCell.call(this, index, codePoint, width);
    }
  };
}

/**
 * Lets the page's other work go on between two costly sequences. Parsing waits for the promise of a
 * handler, and goes on in another task where a slice is over, as between two pieces (parsing.ts);
 * where it is not, it goes on at once.
 */
function yieldBetween(terminal: Terminal, core: Core): void {
  let yieldedAt = 0;
  const maybeYield = () => {
    const now = performance.now();
    if (now - yieldedAt < SLICE_MS) return false;
    yieldedAt = now;
    return pause();
  };
  for (const id of COSTLY) core.registerCsiHandler(id, maybeYield);
  for (const id of COSTLY_ESCAPES) terminal.parser.registerEscHandler(id, maybeYield);
}

/** Lets the oldest lines of links go. */
function boundLinks(terminal: Terminal, links: Links): void {
  const { registerLink, addLineToLink } = links;
  const lines: IMarker[] = [];
  const marked = <T>(mark: () => T): T => {
    const before = terminal.markers.length;
    const result = mark();
    const marker = terminal.markers.at(-1);
    if (marker && terminal.markers.length > before) {
      lines.push(marker);
      if (lines.length > MAX_LINK_LINES) lines.shift()?.dispose();
    }
    return result;
  };
  links.registerLink = (data) => marked(() => registerLink.call(links, data));
  links.addLineToLink = (link, line) => marked(() => addLineToLink.call(links, link, line));
}

/** Shows new colours once a frame: each change is new styles of everything. */
function boundColors(terminal: Terminal, changed: Colors): void {
  const { fire } = changed;
  let isDue = false;
  changed.fire = (colors) => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      fire.call(changed, colors); // xterm.js's own colours, as they are by then
    });
  };
  const tooMany = (data: string) => data.split(";", MAX_COLOR_FIELDS + 1).length > MAX_COLOR_FIELDS;
  terminal.parser.registerOscHandler(4, tooMany);
  terminal.parser.registerOscHandler(104, tooMany);
}
