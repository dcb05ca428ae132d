/**
 * One terminal over `termgw.v1`: the WebSocket, its control messages, flow
 * control and the reason of its end. Knows nothing of xterm.js or the page:
 * attach.ts joins it to a terminal.
 */
import { closedEnd, type EndReason, type Exit, localEnd, type ServerError } from "./codes.js";
import { Events } from "./events.js";
import { type Notice, parseServerMessage, type Ready, type ServerMessage } from "./messages.js";

const PROTOCOL = "termgw.v1";
const TICKET_PROTOCOL = "termgw.ticket.";
/** A JWT in its compact form (RFC 7519, section 3). */
const TICKET = /^[\w-]+\.[\w-]+\.[\w-]+$/;

/** Bytes rendered after which an ack is due, and the largest piece handed to the renderer. */
const ACK_EVERY = 8 * 1024;
/** The gateway takes messages of 1 MiB; smaller ones keep a paste from blocking control messages. */
const INPUT_FRAME = 64 * 1024;
const PING_EVERY_MS = 5_000;
/** So many pings unanswered, and the gateway is gone. */
const PINGS_LOST = 2;
export const MAX_SIZE = 1000;

export type State = "idle" | "connecting" | "open" | "ended";

/** A piece of output of at most 8 KiB; characters may be split between pieces. */
export interface Output {
  bytes: Uint8Array;
  /**
   * To be called once the piece is on the screen: the gateway sends more only
   * as fast as output is rendered, and nothing once its window is full.
   */
  rendered: () => void;
}

export interface ConnectionEvents {
  state: State;
  ready: Ready;
  output: Output;
  notice: Notice;
  /** Milliseconds from a ping to its pong: what the person feels. */
  roundTrip: number;
  end: EndReason;
}

/** What a connection needs of a WebSocket. */
export interface Socket {
  binaryType: string;
  readonly protocol: string;
  onopen: (() => void) | null;
  onmessage: ((event: { data: unknown }) => void) | null;
  onclose: ((event: { code: number; reason: string }) => void) | null;
  send(data: string | Uint8Array<ArrayBuffer>): void;
  close(code?: number, reason?: string): void;
}

export interface Clock {
  /** Milliseconds, monotonic. */
  now(): number;
  /** Calls `tick` every `ms` until the returned function is called. */
  every(ms: number, tick: () => void): () => void;
}

export interface ConnectionConfig {
  /** The workspace's terminal, `wss://…/workspaces/{id}/terminal`. */
  url: string | URL;
  /**
   * Asks the platform for a ticket; called once for each session, since a
   * ticket opens one only. What it throws is shown to the person.
   */
  ticket: () => Promise<string>;
  /** Defaults to the browser's WebSocket. */
  openSocket?: (url: string, protocols: string[]) => Socket;
  /** Defaults to the browser's clock. */
  clock?: Clock;
}

/** What belongs to one session and dies with it. */
interface Session {
  socket: Socket | undefined;
  /** Bytes of output that came, that are on the screen, and that the gateway was told of. */
  received: number;
  rendered: number;
  acked: number;
  /** Pings without a pong yet: id to the time they left. */
  pings: Map<number, number>;
  nextPing: number;
  stopPings: () => void;
  exit?: Exit;
  error?: ServerError;
}

export class TerminalConnection extends Events<ConnectionEvents> {
  private readonly url: URL;
  private readonly ticket: () => Promise<string>;
  private readonly openSocket: (url: string, protocols: string[]) => Socket;
  private readonly clock: Clock;
  private readonly encoder = new TextEncoder();

  private session: Session | undefined;
  private size = { cols: 80, rows: 24 };
  private currentState: State = "idle";
  private currentReady: Ready | undefined;
  private lastEnd: EndReason | undefined;

  constructor(config: ConnectionConfig) {
    super();
    this.url = new URL(config.url);
    this.ticket = config.ticket;
    this.openSocket = config.openSocket ?? browserSocket;
    this.clock = config.clock ?? browserClock;
  }

  /** `open` from the gateway's `ready` on: a shell is there. */
  get state(): State {
    return this.currentState;
  }

  /** What the gateway said of the open session. */
  get ready(): Ready | undefined {
    return this.currentReady;
  }

  /** Why the last session ended; undefined while one is connecting or open. */
  get end(): EndReason | undefined {
    return this.lastEnd;
  }

  /** Opens a session; after an end, another one with a ticket of its own. */
  connect(): void {
    if (this.session) return;
    const session: Session = {
      socket: undefined,
      received: 0,
      rendered: 0,
      acked: 0,
      pings: new Map(),
      nextPing: 1,
      stopPings: () => {},
    };
    this.session = session;
    this.lastEnd = undefined;
    this.setState("connecting");
    this.ticket().then(
      (ticket) => this.dial(session, ticket),
      (cause: unknown) =>
        this.finish(
          session,
          localEnd("ticket_unavailable", cause instanceof Error ? cause.message : undefined),
        ),
    );
  }

  /** Ends the session from this side; the gateway ends its shell. */
  close(): void {
    if (this.session) this.finish(this.session, localEnd("closed"));
  }

  /** Sends input; dropped while no session is open and in a read-only one. */
  send(input: string | Uint8Array): void {
    if (this.currentState !== "open" || this.currentReady?.mode === "ro") return;
    const bytes = typeof input === "string" ? this.encoder.encode(input) : new Uint8Array(input);
    for (let start = 0; start < bytes.length; start += INPUT_FRAME) {
      this.session?.socket?.send(bytes.subarray(start, start + INPUT_FRAME));
    }
  }

  /** Tells the terminal's size, each side 1..1000; before `connect` it is the first size. */
  resize(cols: number, rows: number): void {
    if (!isSize(cols) || !isSize(rows)) {
      throw new RangeError(`a terminal is 1 to ${MAX_SIZE} on each side, not ${cols}x${rows}`);
    }
    if (cols === this.size.cols && rows === this.size.rows) return;
    this.size = { cols, rows };
    if (this.currentState === "open") this.sendSize();
  }

  private dial(session: Session, ticket: string): void {
    if (this.session !== session) return; // closed while the platform minted
    if (!TICKET.test(ticket)) {
      this.finish(session, localEnd("ticket_unavailable", "What the platform gave is no ticket."));
      return;
    }
    const first = this.size;
    const url = new URL(this.url);
    url.searchParams.set("cols", String(first.cols));
    url.searchParams.set("rows", String(first.rows));
    let socket: Socket;
    try {
      socket = this.openSocket(url.href, [PROTOCOL, TICKET_PROTOCOL + ticket]);
    } catch {
      // Such as ws: from an https page. The browser's words may show the ticket.
      this.finish(session, localEnd("unreachable"));
      return;
    }
    session.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      if (this.session !== session || socket.protocol === PROTOCOL) return;
      this.finish(session, localEnd("bad_server_message"));
    };
    socket.onmessage = ({ data }) => {
      if (this.session !== session) return;
      if (typeof data === "string") this.control(session, data, first);
      else this.output(session, new Uint8Array(data as ArrayBuffer));
    };
    socket.onclose = ({ code, reason }) => this.finish(session, this.endOf(session, code, reason));
  }

  private endOf(session: Session, close: number, closeReason: string): EndReason {
    if (close === 1006 && !session.error && !session.exit) {
      return localEnd(this.currentState === "open" ? "connection_lost" : "unreachable");
    }
    return closedEnd(close, closeReason, session.error, session.exit);
  }

  private control(session: Session, text: string, first: { cols: number; rows: number }): void {
    let message: ServerMessage | undefined;
    try {
      message = parseServerMessage(text);
    } catch {
      this.finish(session, localEnd("bad_server_message"));
      return;
    }
    switch (message?.type) {
      case "ready":
        this.currentReady = message.ready;
        this.setState("open");
        this.emit("ready", message.ready);
        // The terminal may have been resized while the gateway started the shell.
        if (this.size !== first) this.sendSize();
        session.stopPings = this.clock.every(PING_EVERY_MS, () => this.ping(session));
        this.ping(session);
        break;
      case "pong": {
        const sent = session.pings.get(message.id);
        if (sent === undefined) break;
        session.pings.clear(); // pongs come in order: an older one is answered too
        this.emit("roundTrip", this.clock.now() - sent);
        break;
      }
      case "notice":
        this.emit("notice", message.notice);
        break;
      case "exit":
        session.exit = message.exit;
        break;
      case "error":
        session.error = message.error;
        break;
    }
  }

  private output(session: Session, bytes: Uint8Array): void {
    session.received += bytes.length;
    // In pieces, so that acks keep their pace when the gateway sends large frames.
    for (let start = 0; start < bytes.length; start += ACK_EVERY) {
      const piece = bytes.subarray(start, start + ACK_EVERY);
      let counted = false;
      const rendered = () => {
        if (counted) return;
        counted = true;
        this.rendered(session, piece.length);
      };
      this.emit("output", { bytes: piece, rendered });
    }
  }

  /** Acks at every 8 KiB, and whenever nothing is left to render: then the window is all free. */
  private rendered(session: Session, bytes: number): void {
    session.rendered += bytes;
    if (this.session !== session) return;
    const due = session.rendered - session.acked >= ACK_EVERY;
    if (!due && session.rendered < session.received) return;
    session.acked = session.rendered;
    this.sendControl(session, { type: "ack", bytes: session.acked });
  }

  private ping(session: Session): void {
    if (session.pings.size >= PINGS_LOST) {
      this.finish(session, localEnd("connection_lost"));
      return;
    }
    const id = session.nextPing++;
    session.pings.set(id, this.clock.now());
    this.sendControl(session, { type: "ping", id });
  }

  private sendSize(): void {
    if (this.session) this.sendControl(this.session, { type: "resize", ...this.size });
  }

  private sendControl(session: Session, message: object): void {
    session.socket?.send(JSON.stringify(message));
  }

  private finish(session: Session, end: EndReason): void {
    if (this.session !== session) return;
    this.session = undefined;
    this.currentReady = undefined;
    this.lastEnd = end;
    session.stopPings();
    session.socket?.close(1000);
    this.setState("ended");
    this.emit("end", end);
  }

  private setState(state: State): void {
    this.currentState = state;
    this.emit("state", state);
  }
}

function isSize(n: number): boolean {
  return Number.isInteger(n) && n >= 1 && n <= MAX_SIZE;
}

function browserSocket(url: string, protocols: string[]): Socket {
  return new WebSocket(url, protocols) as Socket;
}

const browserClock: Clock = {
  now: () => performance.now(),
  every: (ms, tick) => {
    const timer = setInterval(tick, ms);
    return () => clearInterval(timer);
  },
};
