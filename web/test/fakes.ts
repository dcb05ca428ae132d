// A WebSocket, a page and a clock that do what the test says, and remember what was asked.
import type { Clock, Socket } from "../client/session.js";

export class FakeSocket implements Socket {
  binaryType = "blob";
  protocol = "";
  readyState = 0;
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onclose: ((event: { code: number; reason: string }) => void) | null = null;

  readonly url: string;
  readonly offered: string[];
  readonly texts: unknown[] = [];
  readonly frames: Uint8Array[] = [];
  closedWith: number | undefined;

  constructor(url: string, offered: string[]) {
    this.url = url;
    this.offered = offered;
  }

  send(data: string | Uint8Array<ArrayBuffer>): void {
    if (typeof data === "string") this.texts.push(JSON.parse(data));
    else this.frames.push(data.slice());
  }

  close(code?: number): void {
    this.closedWith = code;
    this.readyState = 2;
  }

  accept(protocol = "termgw.v1"): void {
    this.protocol = protocol;
    this.readyState = 1;
    this.onopen?.();
  }

  text(message: unknown): void {
    this.onmessage?.({ data: typeof message === "string" ? message : JSON.stringify(message) });
  }

  bytes(length: number): void {
    this.onmessage?.({ data: new Uint8Array(length).buffer });
  }

  closeFrame(code: number, reason = ""): void {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }

  /** Control messages of one type, as sent. */
  sent(type: string): Record<string, unknown>[] {
    return (this.texts as Record<string, unknown>[]).filter((message) => message.type === type);
  }
}

export class FakePage extends EventTarget {
  hidden = false;

  hide(hidden: boolean): void {
    this.hidden = hidden;
    this.dispatchEvent(new Event("visibilitychange"));
  }
}

export class FakeClock implements Clock {
  private time = 0;
  private readonly timers = new Set<{ at: number; callback: () => void }>();

  now(): number {
    return this.time;
  }

  after(ms: number, callback: () => void): () => void {
    const timer = { at: this.time + ms, callback };
    this.timers.add(timer);
    return () => {
      this.timers.delete(timer);
    };
  }

  advance(ms: number): void {
    const end = this.time + ms;
    for (;;) {
      const due = [...this.timers].filter((t) => t.at <= end).sort((a, b) => a.at - b.at)[0];
      if (!due) break;
      this.timers.delete(due);
      this.time = due.at;
      due.callback();
    }
    this.time = end;
  }

  /** Milliseconds until each timer that runs, the next one first. */
  get running(): number[] {
    return [...this.timers].map((timer) => timer.at - this.time).sort((a, b) => a - b);
  }
}
