/**
 * One connection to a shell over `termgw.v1`: one WebSocket from its handshake to its end.
 * Owns the control messages, flow control both ways and pings. Knows nothing
 * of tickets' origin, of retries or of xterm.js.
 */
import {
  closedEnd,
  type EndReason,
  type Exit,
  isLoss,
  localEnd,
  type ServerError,
} from "./codes.js";
import {
  type Notice,
  parseServerMessage,
  type Ready,
  type Resumed,
  type ServerMessage,
} from "./messages.js";
import { Shell } from "./shell.js";

const PROTOCOL = "termgw.v1";
const TICKET_PROTOCOL = "termgw.ticket.";

/** WebSocket.OPEN, which is not there outside browsers. */
const OPEN = 1;

/**
 * Bytes rendered after which an ack is due, and the largest piece handed to the renderer. A browser
 * renders 30 MB/s, and an ack for each 8 KiB of that took it a third of the time: there is one for
 * all that is rendered in a task.
 */
const ACK_EVERY = 8 * 1024;
/**
 * The least time between an ack and one of less. That one waits for a timer, which in a page that is
 * not shown may take a second, or a minute: less than half of the smallest window may wait so long.
 */
const ACK_PAUSE_MS = 4;
/**
 * Input that may be on its way, in bytes: after so much, the rest of a paste
 * waits for the pong to a ping sent behind it. On a slow line a ping is so
 * never behind megabytes, which would look like a gateway that is gone.
 */
const INPUT_WINDOW = 256 * 1024;
const PING_EVERY_MS = 5_000;
/** So many pings without any answer, and the gateway is gone. */
const PINGS_LOST = 2;
/**
 * The same where the shell waits, so that nothing is lost by a connection that was only slow:
 * milliseconds after a ping, unless the line is busy with input.
 */
const ANSWER_MS = 3_000;
/** And so many round trips at least. */
const ANSWER_TRIPS = 4;
/** A handshake takes this many round trips, or more. */
const HANDSHAKE_TRIPS = 2;
/** Input after so long a silence has a ping before it, so that a lost line is noticed while somebody types. */
const QUIET_MS = 1_000;

export interface Size {
  cols: number;
  rows: number;
}

/** A piece of output of at most 8 KiB; characters may be split between pieces. */
export interface Output {
  bytes: Uint8Array;
  /** The offset of the first byte, in all output of the session. */
  offset: number;
  /**
   * Who puts the piece on a screen calls this at once, and what it gives back once the piece is
   * there, or never will be: the gateway sends only as fast as output is rendered. What nobody
   * holds counts as rendered: a session without a view goes on, and a view that comes later finds
   * the window whole.
   */
  hold: () => () => void;
}

/** What a session needs of a WebSocket. */
export interface Socket {
  binaryType: string;
  readonly protocol: string;
  /** 1: it can be sent to; after that the other side may be closing it. */
  readonly readyState: number;
  onopen: (() => void) | null;
  onmessage: ((event: { data: unknown }) => void) | null;
  onclose: ((event: { code: number; reason: string }) => void) | null;
  send(data: string | Uint8Array): void;
  close(code?: number, reason?: string): void;
}

export interface Clock {
  /** Milliseconds, monotonic. */
  now(): number;
  /** Calls `callback` once, after `ms`, unless the returned function is called before. */
  after(ms: number, callback: () => void): () => void;
}

/** What a session tells; nothing after `end`. */
export interface SessionEvents {
  /** The handshake is done, and shows that a round trip takes about `trip` milliseconds. */
  accepted(trip: number): void;
  /** `shell` is the one that was asked for, or a new one; `hasGap`: output between is lost. */
  ready(shell: Shell, hasGap: boolean): void;
  output(output: Output): void;
  notice(notice: Notice): void;
  roundTrip(ms: number): void;
  end(end: EndReason): void;
}

export class Session {
  private readonly socket: Socket;
  private readonly clock: Clock;
  private readonly events: SessionEvents;
  private readonly first: Size;
  private size: Size;
  private hidden = false;
  /** The handshake is done: somebody is there. */
  private accepted = false;
  /** The shell that is asked for; from `isReady` on the one that is there. */
  private shell: Shell;
  private isReady = false;
  private over = false;
  private exit: Exit | undefined;
  private error: ServerError | undefined;

  /** The offset of the output that the gateway was told is on the screen. */
  private acked = 0;
  private ackedAt = -ACK_PAUSE_MS;
  /** An ack is sent at the end of the task. */
  private ackIsDue = false;
  /** An ack is sent after the pause. */
  private ackWaits = false;
  private stopAck: () => void = () => {};

  /** Bytes of input since `inputPing` was last answered. */
  private inputSent = 0;
  /** The ping behind a full window of input; 0: none is awaited. */
  private inputPing = 0;

  /** Pings without a pong yet: id to the time they left. */
  private readonly pings = new Map<number, number>();
  private nextPing = 1;
  /** Milliseconds of a round trip. */
  private trip = 0;
  /** Regular pings since the gateway was last heard. */
  private unanswered = 0;
  private stopPings: () => void = () => {};
  /** Messages of the gateway, and how many they were at the last ping. */
  private heard = 0;
  private heardAtPing = 0;
  private heardAt = 0;
  private stopDeadline: (() => void) | undefined;

  /** Throws what the browser's WebSocket throws. */
  constructor(
    url: URL,
    ticket: string,
    shell: Shell,
    size: Size,
    openSocket: (url: string, protocols: string[]) => Socket,
    clock: Clock,
    events: SessionEvents,
  ) {
    this.clock = clock;
    this.events = events;
    this.shell = shell;
    this.first = size;
    this.size = size;
    const asked = new URL(url);
    asked.searchParams.set("cols", String(size.cols));
    asked.searchParams.set("rows", String(size.rows));
    if (shell.id !== undefined) {
      asked.searchParams.set("resume", shell.id);
      if (shell.isShown) asked.searchParams.set("output", String(shell.output.received));
    }
    const began = clock.now();
    const socket = openSocket(asked.href, [PROTOCOL, TICKET_PROTOCOL + ticket]);
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.accepted = true;
      if (socket.protocol !== PROTOCOL) this.finish(localEnd("bad_server_message"));
      this.trip = (clock.now() - began) / HANDSHAKE_TRIPS;
      if (!this.over) events.accepted(this.trip);
    };
    socket.onmessage = ({ data }) => {
      if (this.over) return;
      this.unanswered = 0;
      this.heard++;
      this.heardAt = clock.now();
      if (typeof data === "string") this.control(data);
      else this.output(new Uint8Array(data as ArrayBuffer));
    };
    socket.onclose = ({ code, reason }) => this.finish(this.endOf(code, reason));
  }

  /** When the oldest ping left that has no answer yet. */
  get waitingSince(): number | undefined {
    return this.pings.values().next().value;
  }

  /** Ends a session that was waited for long enough, and that is not ready. */
  giveUp(): void {
    this.finish(this.told() ?? localEnd(this.accepted ? "no_answer" : "unreachable"));
  }

  /** Ends the connection from this side, and the shell too if it does not wait for another. */
  finish(end: EndReason): void {
    if (this.over) return;
    this.stop();
    if (isLoss(end)) this.letGo();
    else this.end();
    this.events.end(end);
  }

  /** Gives up the connection for another one, and tells nobody. `withShell`: nobody comes back to its shell. */
  abandon(withShell = false): void {
    this.stop();
    if (withShell) this.end();
    else this.letGo();
  }

  private stop(): void {
    this.over = true;
    this.stopPings();
    this.stopAck();
    this.stopDeadline?.();
    if (this.isReady) this.shell.output.changed = () => {};
  }

  private letGo(): void {
    // A close frame ends the shell, whenever it comes: a line that was silent may come back.
    if (this.shell.resume > 0 && this.socket.readyState === OPEN) this.leave();
    else this.socket.close(1000);
  }

  private leave(): void {
    this.socket.onmessage = null;
    this.socket.onclose = null;
    // What was never ready may yet take the shell from another connection: the gateway closes it.
    if (this.isReady) this.shell.left.push(() => this.end());
  }

  private end(): void {
    if (this.isReady) this.sendControl({ type: "end" });
    this.socket.close(1000);
  }

  /** Sends the input that was added. */
  sendInput(): void {
    const { input } = this.shell;
    while (this.socket.readyState === OPEN && this.isReady && this.inputPing === 0) {
      const frame = input.next();
      if (!frame) return;
      const isQuiet = this.pings.size === 0 && this.clock.now() - this.heardAt >= QUIET_MS;
      if (isQuiet) this.probe(); // before the input, which may take a slow line some time
      this.socket.send(frame);
      this.inputSent += frame.length;
      if (this.inputSent >= INPUT_WINDOW) this.inputPing = this.sendPing();
    }
  }

  resize(size: Size): void {
    this.size = size;
    if (this.isReady) this.sendSize();
  }

  /** Asks whether the gateway is still there, where another connection could take this one's place. */
  probe(): void {
    if (this.isReady && !this.over && this.shell.resume > 0) this.sendPing();
  }

  /** Tells whether the page is hidden: then what it renders says nothing of its speed. */
  hide(hidden: boolean): void {
    if (hidden === this.hidden) return;
    this.hidden = hidden;
    if (this.isReady) this.sendHidden();
  }

  private endOf(close: number, closeReason: string): EndReason {
    // A browser says 1006 of every line that was cut and every failed handshake.
    if (close === 1006) {
      return this.told() ?? localEnd(this.accepted ? "connection_lost" : "unreachable");
    }
    const end = closedEnd(close, closeReason, this.error, this.exit);
    // Not the gateway's word, which gives a reason: something between the page and it has gone.
    const isElsewhere = end.code === "unknown" && !this.error;
    return isElsewhere && this.shell.resume > 0 ? localEnd("connection_lost") : end;
  }

  /** The end that the gateway has told, and whose close frame has not come. */
  private told(): EndReason | undefined {
    return this.error || this.exit ? closedEnd(1006, "", this.error, this.exit) : undefined;
  }

  private control(text: string): void {
    let message: ServerMessage | undefined;
    try {
      message = parseServerMessage(text);
    } catch {
      this.finish(this.told() ?? localEnd("bad_server_message"));
      return;
    }
    switch (message?.type) {
      case "ready":
        if (this.isReady || (message.at.resumed && message.ready.session !== this.shell.id)) {
          this.finish(localEnd("bad_server_message"));
        } else this.begin(message);
        break;
      case "pong":
        if (message.input !== undefined) this.shell.input.taken(message.input);
        this.pong(message.id);
        break;
      case "notice":
        this.events.notice(message.notice);
        break;
      case "exit":
        if (!this.error) this.exit ??= message.exit;
        break;
      case "error":
        if (!this.exit) this.error ??= message.error; // the first one is the cause
        break;
    }
  }

  private begin({ ready, at }: { ready: Ready; at: Resumed }): void {
    const shell = at.resumed ? this.shell : new Shell();
    const hasGap = shell.begin(ready, at);
    this.shell = shell;
    this.isReady = true;
    this.acked = at.output;
    shell.output.changed = () => this.ack();
    // The terminal may have been resized while the gateway started the shell.
    if (this.size !== this.first) this.sendSize();
    if (this.hidden) this.sendHidden();
    this.ping();
    this.events.ready(shell, hasGap);
    this.sendInput();
  }

  private output(bytes: Uint8Array): void {
    const { output } = this.shell;
    const from = output.received;
    output.received += bytes.length;
    // In pieces, so that acks keep their pace when the gateway sends large frames.
    for (let start = 0; start < bytes.length; start += ACK_EVERY) {
      const piece = bytes.subarray(start, start + ACK_EVERY);
      let uncounted = piece.length;
      const holders = new Set<() => void>();
      const hold = () => {
        const release = () => {
          if (!holders.delete(release) || holders.size > 0) return;
          output.rendered += uncounted;
          uncounted = 0;
          output.changed();
        };
        holders.add(release);
        return release;
      };
      const release = hold(); // until everybody was told of the piece
      this.events.output({ bytes: piece, offset: from + start, hold });
      release();
    }
  }

  /** Acks at every 8 KiB, and whenever nothing is left to render: then the window is all free. */
  private ack(): void {
    const { rendered, received } = this.shell.output;
    if (this.over || this.ackIsDue) return;
    if (rendered - this.acked >= ACK_EVERY) {
      this.ackIsDue = true;
      queueMicrotask(() => this.sendAck());
      return;
    }
    if (rendered < received) return;
    const pause = this.ackedAt + ACK_PAUSE_MS - this.clock.now();
    if (pause <= 0) this.sendAck();
    else if (!this.ackWaits) {
      this.ackWaits = true;
      this.stopAck = this.clock.after(pause, () => this.sendAck());
    }
  }

  private sendAck(): void {
    if (this.over) return;
    this.stopAck();
    this.ackIsDue = false;
    this.ackWaits = false;
    this.ackedAt = this.clock.now();
    this.acked = this.shell.output.rendered;
    this.sendControl({ type: "ack", bytes: this.acked });
  }

  private ping(): void {
    if (this.unanswered >= PINGS_LOST) {
      this.finish(this.told() ?? localEnd("connection_lost"));
      return;
    }
    this.unanswered++;
    this.sendPing();
    this.stopPings = this.clock.after(PING_EVERY_MS, () => this.ping());
  }

  private sendPing(): number {
    const id = this.nextPing++;
    this.pings.set(id, this.clock.now());
    this.sendControl({ type: "ping", id });
    if (this.shell.resume > 0) this.expectAnswer();
    return id;
  }

  /** Gives the connection up where nothing comes after a ping: the shell waits for another one. */
  private expectAnswer(): void {
    if (this.stopDeadline && this.heard === this.heardAtPing) return; // to an older ping
    this.stopDeadline?.();
    this.heardAtPing = this.heard;
    this.stopDeadline = this.clock.after(Math.max(ANSWER_MS, ANSWER_TRIPS * this.trip), () => {
      this.stopDeadline = undefined;
      // Behind much input an answer takes longer: PINGS_LOST is for that.
      if (this.heard > this.heardAtPing || this.inputPing !== 0) return;
      this.finish(this.told() ?? localEnd("connection_lost"));
    });
  }

  private pong(id: number): void {
    const sent = this.pings.get(id);
    if (sent === undefined) return;
    // Pongs come in order: older pings are answered by this one too.
    for (const older of this.pings.keys()) if (older <= id) this.pings.delete(older);
    if (this.inputPing !== 0 && id >= this.inputPing) {
      this.inputPing = 0;
      this.inputSent = 0;
      this.sendInput();
    }
    this.trip = this.clock.now() - sent;
    this.events.roundTrip(this.trip);
  }

  private sendSize(): void {
    this.sendControl({ type: "resize", ...this.size });
  }

  private sendHidden(): void {
    this.sendControl({ type: "hidden", hidden: this.hidden });
  }

  private sendControl(message: object): void {
    if (this.socket.readyState === OPEN) this.socket.send(JSON.stringify(message));
  }
}
