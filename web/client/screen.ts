/**
 * What is on a terminal's screen, as text that draws it again on another terminal, and the state that
 * no text can set. A page that is reloaded keeps it (kept.ts), so that it has to be the very same
 * screen, cell by cell, and to belong to one byte of the output.
 *
 * xterm.js's own addon for this (@xterm/addon-serialize 0.14, which calls itself experimental) draws a
 * screen that looks alike: of the 60 outputs of test/browser/screen.test.mjs, 42 came back with other
 * cells, 51 with another cursor, and none in the middle of a sequence. The state is not in xterm.js's
 * API, so this file uses internals, as guard.ts does.
 */
import type { IBuffer, IBufferCell, Terminal } from "@xterm/xterm";
import { finishPiece } from "./guard.js";

/** Lines of scrollback that are kept, and the length of all lines in JSON. */
const MAX_LINES = 2_000;
const MAX_LENGTH = 512 * 1024;
/** A link whose address is longer is kept as text: the address is repeated where the style changes. */
const MAX_LINK = 1_000;
/** Bytes of a sequence that has begun, such as a picture, which are kept with the screen. */
const MAX_BEGUN = 64 * 1024;
/** Characters that are drawn at once. */
const PIECE = 16 * 1024;
/** Colours as xterm.js keeps them in an attribute: of 16, of 256, any. */
const [PALETTE_16, PALETTE_256, RGB] = [1 << 24, 2 << 24, 3 << 24];

/** A screen, in a form that is JSON. */
export interface Saved {
  cols: number;
  rows: number;
  /** The offset of the output that the screen shows. */
  output: number;
  normal: Lines;
  /** Without lines where it is not used. */
  alternate: Lines;
  state: State;
  /** The first bytes of a sequence or a character whose end is still to come. */
  begun: number[];
}

interface Lines {
  lines: string[];
  /** The lines that go on the one before. */
  wrapped: number[];
  cursor: Pick<Buffer, (typeof CURSOR)[number]>;
  /** The row in which the cursor was saved, on the screen. */
  savedRow: number;
  savedStyle: [fg: number, bg: number];
  isSavedDrawing: boolean;
  tabs: string[];
}

interface State {
  /** What sets the style of what is printed next, and its bits, of which DECRC may leave any. */
  style: string;
  styleBits: [fg: number, bg: number, underline: number];
  title: string;
  modes: object;
  privateModes: object;
  isCursorHidden: boolean;
  mouse: [protocol: string, encoding: string];
  /** Whether each of G0 to G3 is line drawing, and which of them is used. */
  drawing: boolean[];
  charset: number;
  isDrawing: boolean;
}

const CURSOR = ["x", "y", "scrollTop", "scrollBottom", "savedX"] as const;

/** What is used of the inside of xterm.js 6.0. */
interface Core {
  buffers: { normal: Buffer; alt: Buffer };
  coreService: { modes: object; decPrivateModes: object; isCursorHidden: boolean };
  coreMouseService: { activeProtocol: string; activeEncoding: string };
  _charsetService: { glevel: number; charset: Charset; _charsets: Charset[] };
  _oscLinkService: { getLinkData(link: number): { id?: string; uri: string } | undefined };
  _inputHandler: {
    _curAttrData: Style;
    _parser: { currentState: number };
    _utf8Decoder: { interim: Uint8Array };
  };
}

/** What characters are drawn as; undefined: as themselves. */
type Charset = Record<string, string> | undefined;

interface Buffer {
  x: number;
  y: number;
  ybase: number;
  scrollTop: number;
  scrollBottom: number;
  savedX: number;
  savedY: number;
  savedCurAttrData: { fg: number; bg: number };
  savedCharset: Charset;
  tabs: Record<string, boolean>;
  lines: { length: number; get(index: number): { isWrapped: boolean } | undefined };
}

/** A cell or the pen: what xterm.js gives as a cell has more than its type says. */
type Style = Omit<IBufferCell, "getChars" | "getCode" | "getWidth"> & {
  fg: number;
  bg: number;
  /** `_ext` has the style of the underline, which a link hides, and its colour. */
  extended: { _ext: number; ext: number; urlId: number; clone(): Style["extended"] };
  hasExtendedAttrs(): number;
  isProtected(): number;
};

/** Follows how far the output is on a terminal's screen. */
export class Screen {
  private readonly terminal: Terminal;
  private readonly core: Core;
  /** The offset up to which the output is on the screen; undefined: none of this shell's is. */
  private output: number | undefined;
  /** Bytes since the parser was last between two sequences, at the end of a piece. */
  private begun: Uint8Array[] = [];
  private title = "";
  private isWhole = true;
  /** What is written to the terminal changes what the screen belongs to. */
  private isChanging = false;
  private readonly stop: () => void;

  constructor(terminal: Terminal) {
    this.terminal = terminal;
    ({ _core: this.core } = terminal as unknown as { _core: Core });
    const following = terminal.onTitleChange((title) => {
      this.title = title;
    });
    this.stop = () => following.dispose();
  }

  dispose(): void {
    this.stop();
  }

  /** What was written to the terminal so far is not of the output that comes. */
  begin(): void {
    this.isChanging = true;
    this.terminal.write("", () => {
      this.output = undefined;
      this.isChanging = false;
    });
  }

  /** A piece of the output is parsed. */
  parsed(bytes: Uint8Array, offset: number): void {
    this.output = offset + bytes.length;
    const { _inputHandler: handler } = this.core;
    const { _parser: parser, _utf8Decoder: decoder } = handler;
    if (parser.currentState === 0 && decoder.interim[0] === 0) {
      this.begun = [];
      this.isWhole = true;
      return;
    }
    const size = this.begun.reduce((sum, { length }) => sum + length, bytes.length);
    if (size > MAX_BEGUN) this.isWhole = false;
    if (this.isWhole) this.begun.push(bytes.slice());
    else this.begun = [];
  }

  /** The screen as it is now; undefined: it cannot be told. */
  save(): Saved | undefined {
    if (!finishPiece(this.terminal)) return undefined;
    const { terminal, core, output } = this;
    if (this.isChanging || !this.isWhole || output === undefined) return undefined;
    const { buffer } = terminal;
    const isAlternate = buffer.active.type === "alternate";
    const alternate = this.lines(buffer.alternate, core.buffers.alt, MAX_LENGTH, isAlternate);
    const used = alternate?.lines.reduce((sum, line) => sum + lengthInJSON(line), 0) ?? 0;
    const normal = this.lines(buffer.normal, core.buffers.normal, MAX_LENGTH - used);
    if (!alternate || !normal) return undefined;
    const { modes, decPrivateModes, isCursorHidden } = core.coreService;
    const { activeProtocol, activeEncoding } = core.coreMouseService;
    const { _charsetService: sets, _inputHandler: handler } = core;
    const { _curAttrData: pen, _parser: parser } = handler;
    const { _charsets: all } = sets;
    const { _ext: underline } = pen.extended;
    return {
      cols: terminal.cols,
      rows: terminal.rows,
      output,
      normal,
      alternate,
      state: {
        style: this.style(pen, true),
        styleBits: [pen.fg, pen.bg, underline],
        title: this.title,
        modes: { ...modes },
        privateModes: { ...decPrivateModes },
        isCursorHidden,
        mouse: [activeProtocol, activeEncoding],
        drawing: [0, 1, 2, 3].map((g) => isDrawing(all[g])),
        isDrawing: isDrawing(sets.charset),
        charset: sets.glevel,
      },
      begun: [...begunIn(concat(this.begun), parser.currentState)],
    };
  }

  /** Draws a screen in place of the one that is there; then the terminal goes on as the other one would. */
  restore(saved: Saved): Promise<void> {
    const { terminal, core } = this;
    const { normal, alternate, state } = saved;
    const write = (text: string) => {
      for (let start = 0; start < text.length; start += PIECE) {
        terminal.write(text.slice(start, start + PIECE));
      }
    };
    const then = (run: () => void) => terminal.write("", run);
    this.isChanging = true;
    terminal.resize(saved.cols, saved.rows);
    write("\x18\x1bc\x1b[?7l");
    write(normal.lines.join("\x1b[m\r\n"));
    if (alternate.lines.length > 0) {
      write(`\x1b[m\x1b[?47h\x1b[H${alternate.lines.join("\x1b[m\r\n")}`);
    }
    write(`\x1b[m${state.style}`);
    if (state.title) write(`\x1b]2;${state.title.replace(/[\0-\x1f\x7f-\x9f]/g, "")}\x07`);
    write("\x1b(0");
    then(() => {
      const { coreService, coreMouseService, _charsetService: sets, _inputHandler: handler } = core;
      const { _curAttrData: pen } = handler;
      pen.extended = pen.extended.clone(); // cells may share it
      [pen.fg, pen.bg, pen.extended.ext] = state.styleBits;
      const { _charsets: all } = sets;
      const drawing = all[0];
      setLines(core.buffers.normal, normal, drawing);
      setLines(core.buffers.alt, alternate, drawing);
      for (const [g, is] of state.drawing.entries()) all[g] = is ? drawing : undefined;
      sets.glevel = state.charset;
      sets.charset = state.isDrawing ? drawing : undefined;
      coreService.modes = { ...coreService.modes, ...state.modes };
      const privateModes = { ...state.privateModes, synchronizedOutput: false };
      coreService.decPrivateModes = { ...coreService.decPrivateModes, ...privateModes };
      coreService.isCursorHidden = state.isCursorHidden;
      [coreMouseService.activeProtocol, coreMouseService.activeEncoding] = state.mouse;
      terminal.refresh(0, terminal.rows - 1);
    });
    const begun = Uint8Array.from(saved.begun);
    return new Promise((resolve) => {
      terminal.write(begun, () => {
        this.output = saved.output;
        this.begun = [begun];
        this.isWhole = true;
        this.isChanging = false;
        resolve();
      });
    });
  }

  /** The last lines of a buffer, of so many characters at most; undefined: those of the screen are more. */
  private lines(buffer: IBuffer, inner: Buffer, most: number, isUsed = true): Lines | undefined {
    const { rows } = this.terminal;
    const texts: string[] = [];
    const wrapped: number[] = [];
    let length = 0;
    let first = buffer.length;
    const last = isUsed ? Math.max(0, buffer.length - rows - MAX_LINES) : buffer.length;
    for (let y = buffer.length - 1; y >= last; y--) {
      const text = this.line(buffer, y);
      length += lengthInJSON(text);
      if (length > most && y >= buffer.length - rows) return undefined;
      if (length > most) break;
      texts.push(text);
      first = y;
    }
    for (let y = first; y < buffer.length; y++) {
      if (buffer.getLine(y)?.isWrapped) wrapped.push(y - first);
    }
    const { savedCurAttrData: saved } = inner;
    return {
      lines: texts.reverse(),
      wrapped,
      cursor: Object.fromEntries(CURSOR.map((name) => [name, inner[name]])) as Lines["cursor"],
      savedRow: Math.max(0, inner.savedY - inner.ybase),
      savedStyle: [saved.fg, saved.bg],
      isSavedDrawing: isDrawing(inner.savedCharset),
      tabs: Object.keys(inner.tabs),
    };
  }

  /** A line as text that begins and ends with the default style. */
  private line(buffer: IBuffer, y: number): string {
    const line = buffer.getLine(y);
    const { cols } = this.terminal;
    const cell = buffer.getNullCell() as IBufferCell & Style;
    let text = "";
    let style = "";
    let empty = 0;
    let fg = 0;
    let bg = 0;
    for (let x = 0; x < cols; x++) {
      line?.getCell(x, cell);
      if (cell.getWidth() === 0) continue; // the second half of a wide one
      const chars = cell.getChars();
      const isSame = cell.fg === fg && cell.bg === bg && !cell.hasExtendedAttrs();
      const own = isSame ? style : this.style(cell);
      if (chars === "" && own === "") {
        empty++;
        continue;
      }
      if (empty > 0) text += `${reset(style)}\x1b[${empty}C`;
      if (empty > 0) style = "";
      empty = 0;
      if (own !== style) text += reset(style) + own;
      style = own;
      fg = cell.fg;
      bg = cell.bg;
      // A cell that was erased has a background, and no character; one that lost its wide one has more.
      text += chars || (GROUND.test(own) ? "\x1b[X\x1b[C" : " ");
    }
    return text + reset(style);
  }

  /** What sets a style, in place of the default one; empty: it is that. */
  private style(of: Style, isPen = false): string {
    const codes: (string | number)[] = [];
    const flag = (isOn: number, code: string | number) => isOn && codes.push(code);
    flag(of.isBold(), 1);
    flag(of.isDim(), 2);
    flag(of.isItalic(), 3);
    const has = of.hasExtendedAttrs();
    const { _ext: underline } = isPen || has ? of.extended : NO_EXTENDED;
    const { urlId } = has ? of.extended : NO_EXTENDED;
    const { _oscLinkService: links } = this.core;
    const data = urlId > 0 ? links.getLinkData(urlId) : undefined;
    const link = data && data.uri.length + (data.id?.length ?? 0) <= MAX_LINK ? data : undefined;
    // A link is underlined by dashes, also one that xterm.js has forgotten.
    const isDead = urlId > 0 && !link && !isPen;
    const isUnderlined = urlId > 0 && !isDead ? of.fg & UNDERLINE : of.isUnderline();
    flag(isUnderlined, `4:${isDead ? 5 : (underline >> 26) & 7 || 1}`);
    flag(of.isBlink(), 5);
    flag(of.isInverse(), 7);
    flag(of.isInvisible(), 8);
    flag(of.isStrikethrough(), 9);
    flag(of.isOverline(), 53);
    codes.push(...color(30, of.getFgColorMode(), of.getFgColor()));
    codes.push(...color(40, of.getBgColorMode(), of.getBgColor()));
    const ink = underline & NO_COLOR;
    if (ink === NO_COLOR) codes.push(59);
    else codes.push(...color(50, ink & RGB, ink & 0xffffff));
    return [
      codes.length > 0 && `\x1b[${codes.join(";")}m`,
      of.isProtected() && '\x1b[1"q',
      link && `\x1b]8;${link.id ? `id=${link.id}` : ""};${link.uri}\x07`,
    ]
      .filter(Boolean)
      .join("");
  }
}

/** JSON writes an ESC in six characters. */
function lengthInJSON(text: string): number {
  return text.length + 5 * (text.split("\x1b").length - 1);
}

/** A style that is a background and no more. */
const GROUND = /^\x1b\[(?:4[0-7]|10[0-7]|48;[0-9;]+)m$/;

/** Line drawing is the one set that programs of today use. */
function isDrawing(charset: Charset): boolean {
  return charset?.q === "─";
}

/** Undoes what `style` gave. */
function reset(style: string): string {
  if (style === "") return "";
  return `\x1b[m${style.includes('"q') ? '\x1b[0"q' : ""}${style.includes("\x1b]8;") ? "\x1b]8;;\x07" : ""}`;
}

const NO_EXTENDED = { _ext: 0, urlId: 0 };
/** The flag of a cell that is underlined also where it is no link. */
const UNDERLINE = 1 << 28;
/** What SGR 59 makes of the colour of an underline. */
const NO_COLOR = 0x3ffffff;

/** The codes of a colour: `base` 30 is that of the text, 40 of the ground, 50 of the underline. */
function color(base: number, mode: number, value: number): number[] {
  const of = base + 8;
  if (mode === RGB) return [of, 2, value >> 16, (value >> 8) & 255, value & 255];
  if (mode === PALETTE_256 || (mode === PALETTE_16 && base === 50)) return [of, 5, value & 255];
  if (mode === PALETTE_16) return [(value > 7 ? base + 52 : base) + (value & 255)];
  return [];
}

function setLines(buffer: Buffer, saved: Lines, drawing: Charset): void {
  const { cursor, lines, wrapped, savedRow, savedStyle, isSavedDrawing, tabs } = saved;
  Object.assign(buffer, cursor);
  buffer.savedCharset = isSavedDrawing ? drawing : undefined;
  buffer.savedY = buffer.ybase + savedRow;
  [buffer.savedCurAttrData.fg, buffer.savedCurAttrData.bg] = savedStyle;
  buffer.tabs = Object.fromEntries(tabs.map((column) => [column, true]));
  const first = buffer.lines.length - lines.length;
  for (const index of wrapped) {
    const line = buffer.lines.get(first + index);
    if (line && first + index >= 0) line.isWrapped = true;
  }
}

/**
 * The bytes at the end that begin a sequence or a character and have had no effect yet. What xterm.js
 * does at once within a sequence, such as a line feed, is left out.
 */
function begunIn(bytes: Uint8Array, state: number): Uint8Array {
  if (state === 0) {
    let start = bytes.length;
    while (start > 0 && ((bytes[start - 1] as number) & 0xc0) === 0x80) start--;
    return bytes.subarray(Math.max(0, start - 1));
  }
  let start = bytes.lastIndexOf(0x1b);
  // Sequences also begin with C1 controls, two bytes each in UTF-8.
  for (let at = bytes.length - 2; at > start; at--) {
    if (bytes[at] === 0xc2 && C1.has(bytes[at + 1] as number)) start = at;
  }
  const begun = bytes.subarray(Math.max(0, start));
  return state < STRINGS ? begun.filter((byte, at) => byte >= 0x20 || at === 0) : begun;
}

/** The first of the parser's states in which controls are a part of a string, and the others ignored. */
const STRINGS = 7;
/** DCS, SOS, CSI, OSC, PM and APC. */
const C1 = new Set([0x90, 0x98, 0x9b, 0x9d, 0x9e, 0x9f]);

function concat(pieces: Uint8Array[]): Uint8Array {
  const all = new Uint8Array(pieces.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const piece of pieces) {
    all.set(piece, at);
    at += piece.length;
  }
  return all;
}
