// A shell that outlives its connections: the client at a gateway that keeps to the protocol, over
// lines that are cut anywhere. The times are a fake clock's, and the order of events a seed's.
import assert from "node:assert/strict";
import { test } from "node:test";
import { TerminalConnection } from "../client/connection.js";
import { MAX_KEPT } from "../client/shell.js";
import { FakeClock, FakePage, FakeSocket } from "./fakes.js";

const settle = () => new Promise<void>((resolve) => setImmediate(resolve));

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

const TAKEN_OVER = { close: 4412 };
const TAKEN = { type: "error", code: "taken_over", message: "Elsewhere.", retryable: false };

/** One WebSocket: what is on its way, each way. */
class Line extends FakeSocket {
  readonly toGateway: (string | Uint8Array)[] = [];
  readonly toClient: (string | Uint8Array | { close: number })[] = [];
  /** The gateway has answered the handshake. */
  isAccepted = false;
  /** Nothing arrives any more, at either side. */
  isDead = false;

  override send(data: string | Uint8Array<ArrayBuffer>): void {
    this.toGateway.push(typeof data === "string" ? data : data.slice());
  }

  override close(code?: number): void {
    if (this.readyState === 1) this.toGateway.push(`close ${code}`);
    super.close(code);
  }
}

/** A gateway with one shell: a stream out, and a stream in. */
class Gateway {
  resume: number;
  readonly lines: Line[] = [];
  session = "s1";
  mode = "rw";
  isOver = false;
  printed: number[] = [];
  taken: number[] = [];
  owner: Line | undefined;
  private sent = 0;
  private acked = 0;
  private client: string | null | undefined;
  private number = 0;
  private readonly superseded = new Set<string | null | undefined>();

  constructor(resume = 60) {
    this.resume = resume;
  }

  print(bytes: number[]): void {
    this.printed.push(...bytes);
    this.flush();
  }

  /** Another shell in place of the one that is gone. */
  restart(): void {
    this.session = `s${Number(this.session.slice(1)) + 1}`;
    this.printed = [];
    this.taken = [];
    this.owner = undefined;
    this.sent = 0;
    this.acked = 0;
  }

  /** Takes the handshake, and gives the shell to its client. */
  accept(line: Line): void {
    line.isAccepted = true;
    const { searchParams: asked } = new URL(line.url);
    const resumed = asked.get("resume") === this.session;
    if (!resumed && this.lines.some(({ isAccepted }) => isAccepted && line !== this.lines[0])) {
      if (asked.get("resume") === null) assert.fail("a shell is opened beside the one that waits");
    }
    const client = asked.get("client");
    const number = Number(asked.get("try"));
    const isSuperseded =
      this.superseded.has(client) || (client === this.client && number <= this.number);
    if (resumed && client !== null && isSuperseded) {
      line.toClient.push(JSON.stringify(TAKEN), TAKEN_OVER);
      return;
    }
    if (client !== this.client) this.superseded.add(this.client);
    this.client = client;
    this.number = number;
    if (this.owner) {
      this.owner.toClient.push(JSON.stringify(TAKEN), TAKEN_OVER);
    }
    const output = asked.has("output") ? Number(asked.get("output")) : this.acked;
    if (resumed) {
      assert.ok(output <= this.sent, "no output is asked for that was never sent");
      assert.ok(output >= this.acked, "nothing is asked for that was acknowledged");
    }
    this.owner = line;
    this.sent = resumed ? output : 0;
    const ready = {
      type: "ready",
      session: this.session,
      workspace: "w",
      target: "local",
      mode: this.mode,
      window: 65536,
      idle_timeout: 0,
      max_session: 0,
      resume: this.resume,
      resumed,
      output: this.sent,
      input: this.taken.length,
    };
    line.toClient.push(JSON.stringify(ready));
    this.flush();
  }

  /** Reads the next message of a client. */
  read(line: Line): void {
    const message = line.toGateway.shift();
    if (message === undefined) return;
    const isOwner = line === this.owner;
    if (typeof message !== "string") {
      if (isOwner) this.taken.push(...message);
    } else if (message.startsWith("close")) {
      if (isOwner) this.isOver = true;
    } else {
      const { type, id, bytes } = JSON.parse(message) as {
        type: string;
        id: number;
        bytes: number;
      };
      if (type === "ping") {
        const pong = { type: "pong", id, input: this.taken.length };
        line.toClient.push(JSON.stringify(pong));
      }
      if (type === "end" && isOwner) this.isOver = true;
      if (type === "ack" && isOwner && bytes >= this.acked) {
        assert.ok(bytes <= this.sent, "nothing is acknowledged that was not sent");
        this.acked = bytes;
      }
    }
  }

  private flush(): void {
    if (this.sent === this.printed.length) return;
    this.owner?.toClient.push(Uint8Array.from(this.printed.slice(this.sent)));
    if (this.owner) this.sent = this.printed.length;
  }
}

/** A client, its gateway, and what went between them. */
class Rig {
  readonly clock = new FakeClock();
  readonly page = new FakePage();
  readonly window = new EventTarget();
  readonly gateway: Gateway;
  readonly connection: TerminalConnection;
  readonly typed: number[] = [];
  readonly seen: number[] = [];
  readonly pending: (() => void)[] = [];
  readonly refused: number[] = [];
  readonly ends: string[] = [];
  ticket = async () => "aaa.bbb.ccc";

  constructor(gateway = new Gateway(), random: () => number = () => 0.5) {
    this.gateway = gateway;
    this.connection = new TerminalConnection({
      url: "wss://gateway.example/workspaces/w/terminal",
      ticket: () => this.ticket(),
      clock: this.clock,
      page: this.page,
      window: this.window,
      random,
      openSocket: (url, protocols) => {
        const line = new Line(url, protocols);
        gateway.lines.push(line);
        return line;
      },
    });
    this.connection.on("output", ({ bytes, offset, hold }) => {
      assert.equal(offset, this.seen.length);
      this.seen.push(...bytes);
      this.pending.push(hold());
    });
    this.connection.on("inputRefused", (bytes) => this.refused.push(bytes));
    this.connection.on("end", ({ code }) => this.ends.push(code));
  }

  get state(): string {
    return this.connection.status.state;
  }

  type(bytes: number[]): void {
    this.typed.push(...bytes);
    this.connection.send(Uint8Array.from(bytes));
  }

  /** The client hears the next message of a line. */
  hear(line: Line): void {
    if (!line.isDead && line.readyState === 0 && line.isAccepted) line.accept();
    const message = line.toClient.shift();
    if (message === undefined || line.isDead) return;
    if (typeof message === "string") line.text(message);
    else if (message instanceof Uint8Array) line.onmessage?.({ data: message.slice().buffer });
    else line.closeFrame(message.close);
  }

  /** Everything that is on its way arrives, and everything is rendered. */
  async quiet(): Promise<void> {
    for (;;) {
      await settle();
      let moved = false;
      for (const line of this.gateway.lines) {
        if (line.isDead) continue;
        if (!line.isAccepted && line.readyState === 0) {
          this.gateway.accept(line);
          moved = true;
        }
        while (line.toClient.length > 0) {
          this.hear(line);
          moved = true;
        }
        while (line.toGateway.length > 0) {
          this.gateway.read(line);
          moved = true;
        }
      }
      for (const rendered of this.pending.splice(0)) {
        rendered();
        moved = true;
      }
      if (!moved) return;
    }
  }

  /** The line is reset: the client hears of it, the gateway does not. */
  cut(line = this.gateway.lines.at(-1)): void {
    if (!line) return;
    line.isDead = true;
    line.closeFrame(1006);
  }

  async open(): Promise<void> {
    this.connection.connect();
    await this.quiet();
    assert.equal(this.state, "open");
  }

  /** Waits until the client has come back. */
  async back(): Promise<void> {
    for (let steps = 0; this.state !== "open"; steps++) {
      assert.ok(steps < 200, "it comes back");
      this.clock.advance(100);
      await this.quiet();
    }
  }
}

for (let seed = 1; seed <= 300; seed++) {
  test(`whatever is cut whenever, each byte comes once, both ways: seed ${seed}`, async () => {
    const random = seeded(seed);
    const below = (n: number) => Math.floor(random() * n);
    const rig = new Rig(new Gateway(), random);
    const { gateway } = rig;
    await rig.open();
    let next = 0;
    const some = () => Array.from({ length: 1 + below(20) }, () => next++ % 256);
    for (let step = 0; step < 400; step++) {
      const line = gateway.lines[Math.max(0, gateway.lines.length - 1 - below(3))] as Line;
      const what = below(100);
      if (what < 15) rig.type(some());
      else if (what < 30) gateway.print(some());
      else if (what < 50) {
        if (!line.isAccepted) {
          gateway.accept(line); // also after the client has given it up
        } else if (!line.isDead) gateway.read(line);
      } else if (what < 75) rig.hear(line);
      else if (what < 85) rig.pending.shift()?.();
      else if (what < 88) rig.cut(line);
      else if (what < 90) line.isDead ||= !line.toClient.includes(TAKEN_OVER);
      else if (what < 91) rig.window.dispatchEvent(new Event("online"));
      else if (what < 92) rig.page.hide(!rig.page.hidden);
      else {
        rig.clock.advance(below(1_000));
      }
      await settle();
    }
    rig.page.hide(false);
    for (let rounds = 0; rounds < 40; rounds++) {
      await rig.quiet();
      rig.clock.advance(500);
    }
    assert.equal(rig.state, "open");
    assert.equal(gateway.isOver, false, "nothing that the client did ended the shell");
    assert.deepEqual(gateway.taken, rig.typed);
    assert.deepEqual(rig.seen, gateway.printed);
    assert.equal(gateway.session, "s1");
  });
}

const asked = (rig: Rig) =>
  rig.gateway.lines.map(({ url }) => new URL(url).search.replace(/^.*&cols=80&rows=24&?/, ""));

test("a connection that is lost comes back to its shell, where it was, and says so", async () => {
  const rig = new Rig();
  await rig.open();
  rig.gateway.print([1, 2, 3]);
  await rig.quiet();
  rig.cut();
  const { state, ready, end, waitsUntil } = rig.connection.status;
  assert.equal(state, "waiting");
  assert.equal(ready?.session, "s1");
  assert.equal(end?.code, "connection_lost");
  assert.ok(Math.abs((waitsUntil ?? 0) - Date.now() - 60_000) < 5_000);
  await rig.back();
  assert.deepEqual(asked(rig), ["", "resume=s1&output=3"]);
  assert.equal(rig.connection.status.shell, "same");
  assert.equal(rig.connection.status.end, undefined);
  assert.deepEqual(rig.ends, [], "no session ended");
});

test("silence is noticed 3 s after a ping, and the shell's close code is kept from the old line", async () => {
  const rig = new Rig();
  await rig.open();
  const [line] = rig.gateway.lines as [Line];
  line.isDead = true;
  for (let ms = 0; ms < 7_900; ms += 100) rig.clock.advance(100);
  assert.equal(rig.state, "open");
  rig.clock.advance(200);
  assert.equal(rig.state, "waiting");
  assert.equal(line.closedWith, undefined);
  await rig.back();
  assert.equal(line.closedWith, 1000, "the shell is another connection's by then");
});

/** Opens a shell, and waits until the gateway has been silent for so long and owes no answer. */
async function silentFor(ms: number, gateway = new Gateway()): Promise<[Rig, Line]> {
  const rig = new Rig(gateway);
  await rig.open();
  rig.clock.advance(5_000);
  await rig.quiet(); // the pong to a regular ping
  rig.clock.advance(ms);
  return [rig, rig.gateway.lines[0] as Line];
}
const kinds = (line: Line) =>
  line.toGateway.map((message) =>
    typeof message === "string" ? (JSON.parse(message) as { type: string }).type : "input",
  );

test("silence is noticed 3 s after input that follows a second of silence", async () => {
  const [rig, line] = await silentFor(1_000);
  line.isDead = true;
  rig.type([1]);
  rig.clock.advance(900);
  rig.type([2]);
  assert.deepEqual(kinds(line), ["ping", "input", "input"], "one ping is enough");
  rig.clock.advance(2_099);
  assert.equal(rig.state, "open");
  rig.clock.advance(1);
  assert.equal(rig.state, "waiting");
  await rig.back();
  await rig.quiet();
  assert.deepEqual(rig.gateway.taken, rig.typed);
});

test("a line that answers stays, and what is typed then has no ping of its own", async () => {
  const [rig, line] = await silentFor(1_000);
  rig.type([1]);
  await rig.quiet();
  rig.clock.advance(999);
  rig.type([2]);
  assert.deepEqual(kinds(line), ["input"]);
  await rig.quiet();
  rig.clock.advance(2_500);
  assert.equal(rig.state, "open");
  assert.equal(rig.gateway.lines.length, 1);
});

test("where no shell waits, input has no ping", async () => {
  const [rig, line] = await silentFor(2_000, new Gateway(0));
  rig.type([1]);
  assert.deepEqual(kinds(line), ["input"]);
});

test("what is typed for a shell that is gone never reaches the new one, which is told", async () => {
  const rig = new Rig();
  await rig.open();
  rig.connection.send("sent");
  rig.cut();
  rig.connection.send("kept");
  rig.gateway.restart();
  await rig.back();
  assert.equal(rig.connection.status.ready?.session, "s2");
  assert.equal(rig.connection.status.shell, "new");
  assert.deepEqual(rig.ends, ["connection_lost"]);
  rig.connection.send("new");
  await rig.quiet();
  assert.equal(String.fromCharCode(...rig.gateway.taken), "new");
});

test("what is typed while the line is away is kept up to 1 MiB, and more is told", async () => {
  const rig = new Rig();
  await rig.open();
  rig.cut();
  rig.connection.send("a".repeat(MAX_KEPT / 2));
  rig.connection.send("b".repeat(MAX_KEPT));
  assert.deepEqual(rig.refused, [MAX_KEPT]);
  rig.connection.send("c");
  await rig.back();
  await rig.quiet();
  assert.equal(rig.gateway.taken.length, MAX_KEPT / 2 + 1);
  assert.equal(rig.gateway.taken.at(-1), "c".charCodeAt(0));
});

test("a paste that is cut anywhere arrives once", async () => {
  const rig = new Rig();
  await rig.open();
  const paste = Uint8Array.from({ length: 700_000 }, (_, i) => i % 251);
  rig.connection.send(paste);
  for (const frames of [1, 3, 0, 2]) {
    const line = rig.gateway.lines.at(-1) as Line;
    for (let frame = 0; frame < frames; frame++) rig.gateway.read(line);
    rig.cut();
    for (let steps = 0; steps < 20 && rig.state !== "open"; steps++) {
      rig.clock.advance(100);
      await settle();
      const next = rig.gateway.lines.at(-1) as Line;
      if (next.readyState === 0 && !next.isAccepted) rig.gateway.accept(next);
      rig.hear(next);
    }
  }
  await rig.quiet();
  assert.deepEqual(Uint8Array.from(rig.gateway.taken), paste);
});

test("a page that was away takes the shell from nobody with whom its person went on", async () => {
  const rig = new Rig();
  await rig.open();
  rig.cut(rig.gateway.lines[0] as Line);
  rig.gateway.accept(new Line("wss://gateway.example/?resume=s1&client=phone&try=1", []));
  await rig.quiet();
  rig.clock.advance(5_000);
  await rig.quiet();
  assert.equal(rig.state, "ended");
  assert.equal(rig.connection.status.end?.code, "taken_over");
  assert.equal(rig.gateway.lines.length, 3); // a try that got no further in time had company
});

test("another window that takes the shell over is told, and not fought", async () => {
  const rig = new Rig();
  await rig.open();
  rig.gateway.accept(new Line("wss://gateway.example/?resume=s1", []));
  await rig.quiet();
  rig.clock.advance(60_000);
  await rig.quiet();
  assert.equal(rig.state, "ended");
  assert.equal(rig.connection.status.end?.code, "taken_over");
  assert.equal(rig.gateway.lines.length, 1);
  rig.connection.send("not for them");
  await rig.quiet();
  assert.deepEqual(rig.gateway.taken, []);
});

test("close ends the shell at once, also that of a line that is silent", async () => {
  const rig = new Rig();
  await rig.open();
  rig.connection.close();
  const [line] = rig.gateway.lines as [Line];
  assert.deepEqual(line.toGateway.slice(-2), ['{"type":"end"}', "close 1000"]);
  assert.equal(rig.connection.status.end?.code, "closed");
  assert.deepEqual(rig.clock.running, []);

  const silent = new Rig();
  await silent.open();
  silent.window.dispatchEvent(new Event("online"));
  silent.connection.close();
  assert.equal(silent.state, "ended");
  await silent.quiet();
  assert.ok(silent.gateway.isOver);
  assert.equal(silent.gateway.lines.length, 1);
});

test("the network that is back is used at once", async () => {
  const rig = new Rig();
  await rig.open();
  rig.window.dispatchEvent(new Event("online"));
  await rig.quiet();
  assert.equal(rig.state, "open");
  assert.equal(rig.gateway.lines.length, 2, "the connection was of the network of before");

  rig.cut();
  rig.clock.advance(1_000);
  await settle();
  const tried = rig.gateway.lines.length;
  rig.window.dispatchEvent(new Event("online"));
  await settle();
  assert.equal(rig.gateway.lines.length, tried + 1);
  await rig.quiet();
  assert.equal(rig.state, "open");
});

test("a page that is shown again asks at once whether the gateway is there", async () => {
  const rig = new Rig();
  await rig.open();
  (rig.gateway.lines[0] as Line).isDead = true;
  rig.page.hide(true);
  rig.page.hide(false);
  rig.clock.advance(3_000);
  assert.equal(rig.state, "waiting");
});

test("a try that gets no further has company, of two at most, and the first is not given up", async () => {
  const rig = new Rig();
  await rig.open();
  rig.cut();
  rig.clock.advance(200);
  for (let steps = 0; steps < 40; steps++) {
    rig.clock.advance(100);
    await settle();
  }
  const tries = rig.gateway.lines.slice(1);
  assert.ok(tries.length >= 5, `${tries.length} tries in 4 s`);
  assert.deepEqual(
    tries.filter(({ closedWith }) => closedWith === undefined),
    [tries[0], tries.at(-1)],
  );
});

test("a new shell that starts slowly has no other beside it", async () => {
  const rig = new Rig();
  await rig.open();
  rig.gateway.restart();
  rig.cut();
  const pass = async (ms: number) => {
    for (let passed = 0; passed < ms; passed += 100) {
      rig.clock.advance(100);
      await settle();
    }
  };
  await pass(900); // the second try is the first one's company
  const [, first, second] = rig.gateway.lines as [Line, Line, Line];
  first.accept();
  second.accept();
  await pass(20_000);
  assert.equal(rig.gateway.lines.length, 3);
  rig.gateway.accept(second);
  await rig.quiet();
  assert.equal(rig.connection.status.shell, "new");
  assert.equal(first.closedWith, 1000, "its shell is not needed");
});

for (const close of [1001, 1005, 1011]) {
  test(`a close that is not the gateway's (${close}) is a connection lost`, async () => {
    const rig = new Rig();
    await rig.open();
    (rig.gateway.lines[0] as Line).closeFrame(close);
    assert.equal(rig.connection.status.end?.code, "connection_lost");
    await rig.back();
    assert.equal(rig.connection.status.shell, "same");
  });
}

test("a refusal that no try mends ends the waiting; one that passes does not", async () => {
  const rig = new Rig();
  await rig.open();
  rig.cut();
  const refuse = async (code: string, retryable: boolean, close: number) => {
    const before = rig.gateway.lines.length;
    while (rig.gateway.lines.length === before) {
      rig.clock.advance(100);
      await settle();
    }
    const line = rig.gateway.lines.at(-1) as Line;
    line.accept();
    line.text({ type: "error", code, message: "No.", retryable });
    line.closeFrame(close);
    line.isDead = true;
  };
  await refuse("store_unavailable", true, 4503);
  assert.notEqual(rig.connection.status.waitsUntil, undefined);
  await refuse("revoked", false, 4423);
  assert.equal(rig.state, "ended");
  assert.equal(rig.connection.status.end?.code, "revoked");
  assert.deepEqual(rig.clock.running, []);
});

test("a platform that gives no ticket ends the tries, and not the shell", async () => {
  const rig = new Rig();
  await rig.open();
  rig.gateway.print([1, 2, 3]);
  await rig.quiet();
  const { ticket } = rig;
  rig.ticket = async () => {
    throw new Error("Log in again.");
  };
  rig.cut();
  rig.clock.advance(1_000);
  await rig.quiet();
  assert.equal(rig.state, "ended");
  assert.equal(rig.connection.status.end?.code, "ticket_denied");
  rig.ticket = ticket;
  rig.connection.connect();
  await rig.back();
  assert.equal(rig.connection.status.shell, "same");
  assert.deepEqual(asked(rig), ["", "resume=s1&output=3"]);
});

test("without resume nothing is kept, and the session is another", async () => {
  const rig = new Rig(new Gateway(0));
  await rig.open();
  rig.cut();
  assert.equal(rig.connection.status.waitsUntil, undefined);
  rig.connection.send("late");
  rig.gateway.restart();
  rig.gateway.lines.length = 0;
  await rig.back();
  assert.deepEqual(asked(rig), [""]);
  assert.equal(rig.connection.status.shell, undefined);
  assert.deepEqual(rig.gateway.taken, []);
});

test("a shell that no longer waits is the same shell once more", async () => {
  const rig = new Rig();
  await rig.open();
  rig.gateway.print([1, 2]);
  rig.connection.send("sent");
  await rig.quiet();
  rig.cut();
  rig.connection.send(" kept");
  rig.gateway.resume = 0;
  await rig.back();
  await rig.quiet();
  assert.equal(rig.connection.status.shell, "same");
  rig.connection.send(" more");
  await rig.quiet();
  assert.equal(String.fromCharCode(...rig.gateway.taken), "sent kept more");
  rig.cut();
  assert.equal(rig.connection.status.waitsUntil, undefined);
});

test("what is typed for a shell that turns out to be read-only is not sent", async () => {
  const rig = new Rig();
  await rig.open();
  rig.cut();
  rig.connection.send("typed");
  rig.gateway.mode = "ro";
  await rig.back();
  await rig.quiet();
  assert.equal(rig.connection.status.ready?.mode, "ro");
  assert.deepEqual(rig.gateway.taken, []);
});
