/** A row of the keys that phones lack. */
import type { Terminal } from "@xterm/xterm";
import { element } from "./dom.js";

/** What a key sends; the arrows depend on the program's mode (DECCKM). */
type Bytes = string | ((terminal: Terminal) => string);

const arrow =
  (letter: string): Bytes =>
  (terminal) =>
    (terminal.modes.applicationCursorKeysMode ? "\x1bO" : "\x1b[") + letter;

const keys: [label: string, name: string, bytes: Bytes][] = [
  ["Esc", "Escape", "\x1b"],
  ["Tab", "Tab", "\t"],
  ["←", "Left", arrow("D")],
  ["↓", "Down", arrow("B")],
  ["↑", "Up", arrow("A")],
  ["→", "Right", arrow("C")],
  ["/", "Slash", "/"],
  ["|", "Pipe", "|"],
  ["-", "Dash", "-"],
  ["~", "Tilde", "~"],
  ["Home", "Home", arrow("H")],
  ["End", "End", arrow("F")],
  ["PgUp", "Page up", "\x1b[5~"],
  ["PgDn", "Page down", "\x1b[6~"],
];

/** What xterm.js answers to programs by itself, which is no key. */
const ANSWER = /^\x1b(?:[P\]]|\[(?:[IO]$|[?<>]|[\d;]+[Rnt]))/;

/** Ctrl holds for the next key, as a phone's Shift does. */
export class KeyRow {
  private readonly control: HTMLButtonElement;

  constructor(current: () => Terminal | undefined) {
    this.control = button("Ctrl", "Control, for the next key", () => {
      this.held = !this.held;
    });
    this.held = false;
    const made = keys.map(([label, name, bytes]) =>
      button(label, name, () => {
        const terminal = current();
        terminal?.input(typeof bytes === "string" ? bytes : bytes(terminal));
      }),
    );
    made.splice(2, 0, this.control);
    element("keys").append(...made);
  }

  /** What was typed, changed by a Ctrl that is held. */
  apply(text: string): string {
    if (!this.held || ANSWER.test(text)) return text;
    this.held = false;
    return withControl(text);
  }

  private get held(): boolean {
    return this.control.ariaPressed === "true";
  }

  private set held(on: boolean) {
    this.control.ariaPressed = String(on);
  }
}

/** What a terminal sends for the key that sends `text` without Ctrl. */
function withControl(text: string): string {
  if (text === " ") return "\0";
  if (text === "/") return "\x1f";
  if (/^[@-~]$/.test(text)) return String.fromCharCode(text.charCodeAt(0) & 0x1f);
  return text
    .replace(/^\x1b[[O]([A-DFH])$/, "\x1b[1;5$1") // arrows, Home, End
    .replace(/^\x1b\[(\d+)~$/, "\x1b[$1;5~"); // pages
}

function button(label: string, name: string, press: () => void): HTMLButtonElement {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = label;
  made.ariaLabel = name;
  // The terminal keeps the focus, and with it the phone's own keyboard.
  made.addEventListener("pointerdown", (event) => event.preventDefault());
  made.addEventListener("click", press);
  return made;
}
