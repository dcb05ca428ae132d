// The client at a gateway that this page plays itself: a test says what comes
// from it, and sees what went to it.
import "@xterm/xterm/css/xterm.css";
import { Terminal } from "@xterm/xterm";
import { isAnswer } from "../../client/answers.js";
import { type Attached, attachTerminal, TerminalConnection } from "../../client/index.js";
import { FakeSocket } from "../fakes.js";

const encoder = new TextEncoder();

/** Answers pings, as a gateway does: a page that works for long is no lost connection. */
class AnsweringSocket extends FakeSocket {
  override send(data: string | Uint8Array<ArrayBuffer>): void {
    super.send(data);
    if (typeof data !== "string") return;
    const { type, id } = JSON.parse(data) as { type: string; id: number };
    if (type === "ping") queueMicrotask(() => this.text({ type: "pong", id }));
  }
}

class Rig {
  readonly connection: TerminalConnection;
  readonly sockets: FakeSocket[] = [];
  /** What programs wanted to copy, as they asked. */
  readonly asked: string[] = [];
  /** How often a program wanted to copy too much. */
  refused = 0;
  answer: (allowed: boolean) => void = () => {};
  /** The part of the longest wait before a retry. */
  random = 1;
  terminal = new Terminal();
  attached: Attached;

  constructor() {
    this.connection = new TerminalConnection({
      url: "ws://gateway.example/workspaces/ws-1/terminal",
      ticket: async () => "aaa.bbb.ccc",
      random: () => this.random,
      openSocket: (url, protocols) => {
        const socket = new AnsweringSocket(url, protocols);
        this.sockets.push(socket);
        return socket;
      },
    });
    this.attached = this.attach();
  }

  /** Opens a session, and gives its socket. */
  async open(): Promise<FakeSocket> {
    this.connection.connect();
    return this.accept();
  }

  /** Takes the session that is being opened. */
  async accept(): Promise<FakeSocket> {
    while (this.connection.status.state !== "connecting" || !this.isDialled()) {
      await new Promise((resolve) => setTimeout(resolve)); // the wait, the ticket
    }
    const socket = this.sockets.at(-1) as FakeSocket;
    socket.accept();
    socket.text({
      type: "ready",
      session: "s1",
      workspace: "ws-1",
      target: "local",
      mode: "rw",
      window: 65536,
      idle_timeout: 0,
      max_session: 0,
    });
    return socket;
  }

  print(text: string): void {
    this.feed(encoder.encode(text));
  }

  /** Output in frames of so many bytes. */
  feed(bytes: Uint8Array, frame = bytes.length): void {
    for (let start = 0; start < bytes.length; start += frame) {
      const data = bytes.slice(start, start + frame).buffer;
      this.sockets.at(-1)?.onmessage?.({ data });
    }
  }

  /** Everything that was written to the terminal is parsed. */
  parsed(): Promise<void> {
    return new Promise((resolve) => this.terminal.write("", resolve));
  }

  sent(): string {
    const frames = this.sockets.flatMap((socket) => socket.frames as Uint8Array<ArrayBuffer>[]);
    return frames.map((frame) => new TextDecoder().decode(frame)).join("");
  }

  /** Whether the client takes a text for what nobody typed. */
  isAnswer(text: string): boolean {
    return isAnswer(text);
  }

  acked(): number {
    return Number(this.sockets.at(-1)?.sent("ack").at(-1)?.bytes ?? 0);
  }

  remove(): void {
    this.attached.dispose();
    this.terminal.dispose();
  }

  /** As a person types a key at that time, by the page's clock. */
  type(text: string, at: number): void {
    performance.now = () => at;
    const event = new KeyboardEvent("keydown", { bubbles: true });
    Object.defineProperty(event, "timeStamp", { value: at });
    this.terminal.textarea?.dispatchEvent(event);
    this.terminal.input(text);
  }

  private isDialled(): boolean {
    return this.sockets.at(-1)?.readyState === 0;
  }

  /** Another terminal in place of the one that was removed. */
  show(): void {
    this.terminal = new Terminal();
    this.attached = this.attach();
  }

  private attach(): Attached {
    this.terminal.open(document.getElementById("terminal") as HTMLElement);
    this.terminal.focus();
    return attachTerminal(this.terminal, this.connection, {
      renderer: "dom",
      copyRefused: () => {
        this.refused++;
      },
      allowCopy: (text) => {
        this.asked.push(text);
        return new Promise((resolve, reject) => {
          this.answer = (allowed) => (allowed ? resolve(true) : reject(new Error("refused")));
        });
      },
    });
  }
}

declare global {
  interface Window {
    rig: Rig;
  }
}

window.rig = new Rig();
