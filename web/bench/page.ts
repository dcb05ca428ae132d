// What `npm run bench` runs in its page: the client as a canvas uses it, with a
// look at its socket and at what the renderer has drawn.
import "@xterm/xterm/css/xterm.css";
import { Terminal } from "@xterm/xterm";
import { type Attached, attachTerminal, type Socket, TerminalConnection } from "../client/index.js";
import { text } from "./text.mjs";

declare global {
  interface Window {
    bench: Bench;
  }
}

export interface Gateway {
  terminal: string;
  /** Where a ticket is asked for. */
  tickets: string;
  workspace: string;
  renderer: "dom" | "webgl";
}

/** When, in ms: the key was pressed, its byte left, the echo came, the next frame began, and was drawn. */
interface Key {
  pressed: number;
  left: number;
  came: number;
  frame: number;
  drawn: number;
  /** The terminal was drawn in a later frame than that one. */
  late: boolean;
}

const parent = document.getElementById("terminal") as HTMLElement;

class Bench {
  readonly keys: Key[] = [];
  private readonly terminal = new Terminal({ cols: 120, rows: 30, scrollback: 1_000 });
  private connection: TerminalConnection | undefined;
  private attached: Attached | undefined;
  private pending: Key | undefined;
  private lastPressed = 0;
  private frameTime: CSSNumberish | null = null;
  private bytes: Uint8Array | undefined;

  constructor() {
    this.terminal.open(parent);
    parent.addEventListener(
      "keydown",
      ({ timeStamp }) => {
        this.lastPressed = timeStamp;
        this.pending = { pressed: timeStamp, left: 0, came: 0, frame: 0, drawn: 0, late: false };
      },
      { capture: true },
    );
    const afterFrame = new MessageChannel(); // its message comes when the frame is done
    this.terminal.onRender(() => {
      if (!this.pending || this.pending.came === 0) return;
      this.pending.late = document.timeline.currentTime !== this.frameTime; // one in a frame
      afterFrame.port1.postMessage(0);
    });
    afterFrame.port2.onmessage = () => {
      if (!this.pending || this.pending.came === 0) return;
      this.pending.drawn = performance.now();
      this.keys.push(this.pending);
      this.pending = undefined;
    };
  }

  async open({ terminal, tickets, workspace, renderer }: Gateway): Promise<string> {
    const body = JSON.stringify({ workspace });
    const connection = new TerminalConnection({
      url: terminal,
      ticket: async () => {
        const answer = await fetch(tickets, { method: "POST", body });
        return ((await answer.json()) as { ticket: string }).ticket;
      },
      openSocket: (url, protocols) => this.watch(new WebSocket(url, protocols)),
    });
    this.connection = connection;
    this.attached = attachTerminal(this.terminal, connection, { renderer });
    await new Promise<void>((resolve, reject) => {
      connection.on("status", ({ state, end }) => {
        if (state === "open") resolve();
        if (end) reject(new Error(end.message));
      });
      connection.connect();
    });
    this.terminal.focus();
    return this.attached.renderer;
  }

  /** Notes when a key's byte leaves and when its echo comes, before the client knows. */
  private watch(socket: WebSocket): Socket {
    const send = socket.send.bind(socket);
    socket.send = (data) => {
      const key = this.pending;
      if (key?.left === 0 && typeof data !== "string") key.left = performance.now();
      send(data);
    };
    socket.addEventListener("message", ({ data }) => {
      const key = this.pending;
      if (!key || key.left === 0 || key.came > 0 || typeof data === "string") return;
      key.came = performance.now();
      requestAnimationFrame(() => {
        key.frame = performance.now();
        this.frameTime = document.timeline.currentTime;
      });
    });
    return socket as Socket;
  }

  send(text: string): void {
    this.connection?.send(text);
  }

  /** Runs a command that ends by setting the title, and gives the ms until that is on the screen. */
  run(command: string): Promise<number> {
    return new Promise((resolve) => {
      const started = performance.now();
      const stop = this.terminal.onTitleChange(() => {
        stop.dispose();
        this.terminal.write("", () =>
          requestAnimationFrame(() => resolve(performance.now() - started)),
        );
      });
      this.send(command);
    });
  }

  /** The ms from the last key's press until the prompt, which sets the title, is on the screen. */
  prompt(): Promise<number> {
    return new Promise((resolve) => {
      const stop = this.terminal.onTitleChange(() => {
        stop.dispose();
        requestAnimationFrame(() => resolve(performance.now() - this.lastPressed));
      });
    });
  }

  /** Feeds xterm.js the same bytes from memory, as fast as it takes them. */
  async memory(): Promise<number> {
    this.bytes ??= new TextEncoder().encode(text().replaceAll("\n", "\r\n")); // as the tty sends it
    const { bytes } = this;
    const started = performance.now();
    let under = 0;
    for (let start = 0; start < bytes.length; start += 65_536) {
      const piece = bytes.subarray(start, start + 65_536);
      under++;
      const written = new Promise<void>((resolve) =>
        this.terminal.write(piece, () => {
          under--;
          resolve();
        }),
      );
      if (under >= 16) await written; // xterm.js drops what is over 50 MB
    }
    await new Promise<void>((resolve) => this.terminal.write("", resolve));
    await new Promise(requestAnimationFrame);
    return performance.now() - started;
  }
}

window.bench = new Bench();
