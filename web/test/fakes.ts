// A WebSocket and a clock that do what the test says, and remember what was asked.
import type { Clock, Socket } from "../client/connection.js";

export class FakeSocket implements Socket {
  binaryType = "blob";
  protocol = "";
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
  }

  accept(protocol = "termgw.v1"): void {
    this.protocol = protocol;
    this.onopen?.();
  }

  text(message: unknown): void {
    this.onmessage?.({ data: typeof message === "string" ? message : JSON.stringify(message) });
  }

  bytes(length: number): void {
    this.onmessage?.({ data: new Uint8Array(length).buffer });
  }

  closeFrame(code: number, reason = ""): void {
    this.onclose?.({ code, reason });
  }

  /** Control messages of one type, as sent. */
  sent(type: string): Record<string, unknown>[] {
    return (this.texts as Record<string, unknown>[]).filter((message) => message.type === type);
  }
}

export class FakeClock implements Clock {
  private time = 0;
  private readonly timers = new Set<{ ms: number; next: number; tick: () => void }>();

  now(): number {
    return this.time;
  }

  every(ms: number, tick: () => void): () => void {
    const timer = { ms, next: this.time + ms, tick };
    this.timers.add(timer);
    return () => {
      this.timers.delete(timer);
    };
  }

  advance(ms: number): void {
    const end = this.time + ms;
    for (;;) {
      const due = [...this.timers].filter((t) => t.next <= end).sort((a, b) => a.next - b.next)[0];
      if (!due) break;
      this.time = due.next;
      due.next += due.ms;
      due.tick();
    }
    this.time = end;
  }

  get running(): number {
    return this.timers.size;
  }
}
