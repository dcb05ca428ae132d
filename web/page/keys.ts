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

/** Ctrl holds for the next character, as a phone's Shift does. */
export class KeyRow {
  private readonly control: HTMLButtonElement;

  constructor(current: () => Terminal | undefined) {
    this.control = button("Ctrl", "Control, for the next character", () => {
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
    if (!this.held || text.length !== 1) return text;
    this.held = false;
    const code = text.toUpperCase().charCodeAt(0);
    if (text === " ") return "\0";
    return code >= 0x40 && code <= 0x5f ? String.fromCharCode(code & 0x1f) : text;
  }

  private get held(): boolean {
    return this.control.ariaPressed === "true";
  }

  private set held(on: boolean) {
    this.control.ariaPressed = String(on);
  }
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
