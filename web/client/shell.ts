/**
 * A shell as this page knows it: how far its output came, and the input that the gateway has not
 * taken yet. A shell may outlive its connections (`resume` in `ready`), so that what is counted here
 * goes on from one WebSocket to the next.
 */
import type { Ready, Resumed } from "./messages.js";

/** The gateway takes messages of 1 MiB; smaller ones let control messages pass between them. */
const FRAME = 64 * 1024;
/** Input that is kept while the connection is away, in bytes. */
export const MAX_KEPT = 1 << 20;
/** What a piece of kept input costs besides its bytes. */
const FRAME_COST = 100;

export class Shell {
  /** What the gateway said of it last; undefined: nothing, in this page. */
  ready: Ready | undefined;
  /** The session to come back to; undefined: none. */
  id: string | undefined;
  /** Seconds for which the shell waits for a connection; 0: it ends with its connection. */
  resume = 0;
  /** Until when it waits, by `Date.now()`, where a page before this one has lost it. */
  until: number | undefined;
  /** The page shows the output up to `output.received`. */
  isShown = true;
  output = new Progress(0);
  readonly input = new Input();
  /** What ends the connections that were given up. Done too early, it would end the shell. */
  readonly left: (() => void)[] = [];

  /** Takes what the gateway said of a connection, and tells whether output is missing before it. */
  begin(ready: Ready, at: Resumed): boolean {
    const isKnown = this.ready !== undefined;
    const hasGap = at.resumed && !(this.isShown && at.output === this.output.received);
    if (hasGap || !isKnown) this.output = new Progress(at.output);
    this.input.isKept = ready.resume > 0;
    if (isKnown) this.input.again(at.input);
    else this.input.begin(at.input);
    if (ready.mode === "ro") this.input.drop(); // typed before this was known
    this.ready = ready;
    this.id = ready.resume > 0 ? ready.session : undefined;
    this.resume = ready.resume;
    this.until = undefined;
    this.isShown = true;
    this.endLeft();
    return hasGap;
  }

  /** Ends the connections that were left: another one has the shell, or the shell is to end. */
  endLeft(): void {
    for (const end of this.left.splice(0)) end();
  }
}

/** How much of the output came and is on the screen, as offsets in all output of a shell. */
export class Progress {
  received: number;
  rendered: number;
  /** Called when more is rendered. */
  changed: () => void = () => {};

  constructor(from: number) {
    this.received = from;
    this.rendered = from;
  }
}

/** Input in the order in which it is sent. Offsets count the bytes of all input of a shell. */
class Input {
  /** Input that is sent has to be kept until the gateway has taken it. */
  isKept = false;
  private frames: Uint8Array[] = [];
  /** The offset of the first byte that is kept. */
  private from = 0;
  /** How many of `frames` are sent. */
  private sent = 0;
  private cost = 0;

  /** Whether so much more may be kept. */
  hasRoom(bytes: number): boolean {
    return this.cost + bytes <= MAX_KEPT;
  }

  add(bytes: Uint8Array): void {
    for (let start = 0; start < bytes.length; start += FRAME) {
      const frame = bytes.subarray(start, start + FRAME);
      this.frames.push(frame);
      this.cost += cost(frame);
    }
  }

  /** The next frame to send. */
  next(): Uint8Array | undefined {
    const frame = this.frames[this.sent];
    if (!frame) return undefined;
    if (this.isKept) this.sent++;
    else this.shift();
    return frame;
  }

  /** Drops what the gateway has taken, which is all input up to an offset. */
  taken(offset: number): void {
    for (let frame = this.frames[0]; frame && this.sent > 0; frame = this.frames[0]) {
      const rest = this.from + frame.length - offset;
      if (rest >= frame.length) break;
      if (rest > 0) {
        this.frames[0] = frame.subarray(-rest);
        this.cost -= frame.length - rest;
        this.from = offset;
        break;
      }
      this.shift();
      this.sent--;
    }
  }

  /** Sends what the gateway has not taken anew, on another connection. */
  again(taken: number): void {
    this.taken(taken);
    this.sent = 0;
  }

  /** Drops what is not sent. */
  drop(): void {
    while (this.frames.length > this.sent) this.cost -= cost(this.frames.pop());
  }

  /** Begins at an offset: input before it is of another page. */
  begin(offset: number): void {
    this.from = offset;
  }

  private shift(): void {
    const frame = this.frames.shift();
    this.cost -= cost(frame);
    this.from += frame?.length ?? 0;
  }
}

function cost(frame: Uint8Array | undefined): number {
  return frame ? frame.length + FRAME_COST : 0;
}
