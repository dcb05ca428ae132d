// A terminal whose screen is kept and drawn on another one, in the middle of any output.
import "@xterm/xterm/css/xterm.css";
import { Unicode11Addon } from "@xterm/addon-unicode11";
import { type IBufferCell, Terminal } from "@xterm/xterm";
import { guardOutput } from "../../client/guard.js";
import { Screen } from "../../client/screen.js";

interface Inner {
  buffers: Record<"normal" | "alt", Record<string, unknown>>;
  coreService: { modes: object; decPrivateModes: object; isCursorHidden: boolean };
  coreMouseService: { activeProtocol: string; activeEncoding: string };
  _charsetService: { glevel: number; charset: object | undefined };
  _inputHandler: { _curAttrData: Attribute; _parser: { currentState: number } };
  _oscLinkService: { getLinkData(link: number): object | undefined };
}

/** What both a cell and the pen have. */
interface Attribute extends IBufferCell {
  extended: { underlineStyle: number; urlId: number };
  hasExtendedAttrs(): number;
  getUnderlineColor(): number;
  getUnderlineColorMode(): number;
}

/** Numbers from 0 to 1 that a seed decides (mulberry32). */
function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** What programs print, in any order. */
function output(random: () => number): Uint8Array {
  const below = (n: number) => Math.floor(random() * n);
  const pick = <T>(of: readonly T[]): T => of[below(of.length)] as T;
  const number = () => String(below(30));
  const style = () =>
    Array.from({ length: 1 + below(3) }, () =>
      pick([
        ...["0", "1", "2", "3", "4", "5", "7", "8", "9", "22", "24", "27", "53", "4:3"],
        ...["31", "92", "44", "103", "39", "49", "38;5;7", "38;5;200", "48;5;3", "48;2;1;2;3"],
        ...["38;2;250;1;7", "58;5;9", "58;2;3;4;5"],
      ]),
    ).join(";");
  const parts = [
    () =>
      pick([
        "word ",
        "x",
        "a longer piece of text that may well wrap around the edge ",
        "漢字",
        "é",
        "👍🏽",
        "e\u0301",
        "\t",
      ]),
    () => pick(["\r\n", "\n", "\r", "\b"]),
    () => `\x1b[${style()}m`,
    () => `\x1b[${number()};${number()}H`,
    () => `\x1b[${number()}${pick([..."ABCDGdXP@LMSTb"])}`,
    () => `\x1b[${pick(["", "1", "2"])}${pick([..."JK"])}`,
    () =>
      `\x1b[${pick(["?6", "?7", "4", "?1", "?66", "?45", "?1000", "?1002", "?1006", "?2004", "?25", "?1004"])}${pick([..."hl"])}`,
    () =>
      pick([
        "\x1b7",
        "\x1b8",
        "\x1b[s",
        "\x1b[u",
        "\x1bM",
        "\x1bD",
        "\x1bE",
        "\x1bH",
        "\x1b[3g",
        "\x1b[r",
      ]),
    () => `\x1b[${1 + below(10)};${11 + below(14)}r`,
    () => pick(["\x1b(0", "\x1b(B", "\x1b)0", "\x0e", "\x0f", "qqxx"]),
    () => `\x1b[?${pick(["1049", "47", "1047"])}${pick([..."hl"])}`,
    () =>
      pick([
        "\x1b]2;a title\x07",
        "\x1b]0;another\x1b\\",
        "\x1bP$qm\x1b\\",
        "\x1b[3 q",
        '\x1b[1"q',
        '\x1b[0"q',
      ]),
    () =>
      `\x1b]8;${pick(["", "id=7"])};http://${pick(["a", "b"])}.example/\x1b\\${pick(["a link", "👍🏽"])}\x1b]8;;\x07`,
    () => pick(["\x1b[!p", "\x1bc", "\x1b[2\n5C", "\u009b31m"]),
  ] as const;
  let text = "";
  for (let count = 0; count < 400; count++) {
    // The last few are rare, since they leave little of what was before.
    text += parts[random() < 0.97 ? below(13) : 13]?.() ?? "";
  }
  return new TextEncoder().encode(text);
}

function made(cols: number, rows: number): { terminal: Terminal; screen: Screen } {
  const element = document.createElement("div");
  document.body.append(element);
  const terminal = new Terminal({ cols, rows, scrollback: 5_000, allowProposedApi: true });
  terminal.open(element);
  guardOutput(terminal);
  terminal.loadAddon(new Unicode11Addon());
  terminal.unicode.activeVersion = "11";
  return { terminal, screen: new Screen(terminal) };
}

/** Everything that a person may see of it, now or later. */
function seen(terminal: Terminal): unknown {
  const { _core: core } = terminal as unknown as { _core: Inner };
  const { _charsetService: charsets, _inputHandler: handler, _oscLinkService: links } = core;
  const { _curAttrData: pen, _parser: parser } = handler;
  const isDead = ({ extended: { urlId } }: Attribute) => urlId > 0 && !links.getLinkData(urlId);
  const style = (of: Attribute) => [
    [of.isBold(), of.isDim(), of.isItalic(), of.isBlink(), of.isInverse()].map(Boolean).map(Number),
    [of.isInvisible(), of.isStrikethrough(), of.isOverline()].map(Boolean).map(Number),
    [of.getFgColorMode(), of.getFgColor(), of.getBgColorMode(), of.getBgColor()],
    of.isUnderline() ? 1 : 0,
    of.isUnderline()
      ? [
          (of.hasExtendedAttrs() && of.extended.underlineStyle) || 1,
          of.getUnderlineColorMode(),
          of.getUnderlineColor(),
        ]
      : [],
    of.hasExtendedAttrs() ? JSON.stringify(links.getLinkData(of.extended.urlId)) : "",
  ];
  const { buffer } = terminal;
  const lines = (of: typeof buffer.normal) =>
    Array.from({ length: of.length }, (_, y) => {
      const line = of.getLine(y);
      const cells = Array.from({ length: terminal.cols }, (__, x) => {
        const cell = line?.getCell(x);
        return [
          cell?.getChars() || " ",
          cell?.getWidth(),
          ...style(cell as unknown as Attribute),
        ].join();
      });
      return `${line?.isWrapped ? "+" : ""}${cells.join("|")}`;
    });
  const { normal, alt } = core.buffers;
  const cursor = (of: Record<string, unknown>) => {
    const { x, y, scrollTop, scrollBottom, savedX, savedY, ybase, tabs } = of as Record<
      string,
      number
    >;
    const saved = Math.max(0, Number(savedY) - Number(ybase));
    return { x, y, scrollTop, scrollBottom, savedX, saved, tabs };
  };
  const isAlternate = buffer.active.type === "alternate";
  return {
    isAlternate,
    normal: lines(buffer.normal),
    normalCursor: cursor(normal),
    ...(isAlternate && { alternate: lines(buffer.alternate), alternateCursor: cursor(alt) }),
    // xterm.js forgets links of which no cell is left, also the one that is being printed.
    pen: isDead(pen) ? undefined : style(pen),
    parser: parser.currentState,
    modes: core.coreService.modes,
    privateModes: core.coreService.decPrivateModes,
    isCursorHidden: core.coreService.isCursorHidden,
    mouse: [core.coreMouseService.activeProtocol, core.coreMouseService.activeEncoding],
    charset: [charsets.glevel, charsets.charset],
  };
}

/** Where a screen that was kept and drawn again differs from that of a terminal that went on. */
async function check(seed: number): Promise<string[]> {
  const random = seeded(seed);
  const [cols, rows] = [20 + Math.floor(random() * 60), 25];
  const bytes = output(random);
  const cut = Math.floor(random() * bytes.length);
  const first = made(cols, rows);
  let answers = "";
  first.terminal.onData((data) => {
    answers += data;
  });
  for (let start = 0; start < cut;) {
    const piece = bytes.slice(start, Math.min(cut, start + 1 + Math.floor(random() * 300)));
    const at = start;
    first.terminal.write(piece, () => first.screen.parsed(piece, at));
    start += piece.length;
  }
  await new Promise<void>((resolve) => first.terminal.write("", resolve));
  const faults: string[] = [];
  const saved = first.screen.save();
  if (!saved) return cut === 0 ? [] : ["nothing was saved"];
  if (saved.output !== cut)
    faults.push(`the screen is said to be that of ${saved.output}, not ${cut}`);
  const second = made(33, 12);
  let echoed = "";
  second.terminal.onData((data) => {
    echoed += data;
  });
  await second.screen.restore(JSON.parse(JSON.stringify(saved)));
  if (echoed !== "") faults.push(`the terminal answered ${JSON.stringify(echoed)}`);
  answers = "";
  const compare = (when: string) => {
    const [a, b] = [seen(first.terminal), seen(second.terminal)] as Record<string, unknown>[];
    for (const key of Object.keys(a ?? {})) {
      const [one, other] = [JSON.stringify(a?.[key]), JSON.stringify(b?.[key])];
      if (one === undefined || one === other) continue;
      const at = [...one.split("")].findIndex((char, index) => char !== other?.[index]);
      faults.push(
        `${when}: ${key}: ${one.slice(Math.max(0, at - 60), at + 60)} ≠ ${other?.slice(Math.max(0, at - 60), at + 60)}`,
      );
    }
  };
  compare("drawn again");
  const rest = bytes.slice(cut);
  await Promise.all(
    [first, second].map(
      ({ terminal }) => new Promise<void>((resolve) => terminal.write(rest, resolve)),
    ),
  );
  compare("after more output");
  if (answers !== echoed)
    faults.push(`answers: ${JSON.stringify(answers)} ≠ ${JSON.stringify(echoed)}`);
  for (const { terminal, screen } of [first, second]) {
    const { element } = terminal;
    screen.dispose();
    terminal.dispose();
    element?.parentElement?.remove();
  }
  return faults;
}

declare global {
  interface Window {
    check: typeof check;
  }
}

window.check = check;
