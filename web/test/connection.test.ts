import assert from "node:assert/strict";
import { test } from "node:test";
import type { EndReason } from "../client/codes.js";
import { TerminalConnection } from "../client/connection.js";
import { FakeClock, FakeSocket } from "./fakes.js";

const READY = {
  type: "ready",
  session: "s1",
  workspace: "ws-1",
  target: "local",
  mode: "rw",
  window: 65536,
  idle_timeout: 1800,
  max_session: 28800,
};
const KIB = 1024;

interface Rig {
  connection: TerminalConnection;
  clock: FakeClock;
  sockets: FakeSocket[];
  ends: EndReason[];
  /** The `rendered` calls of output not rendered yet, oldest first. */
  pending: (() => void)[];
  pieces: number[];
}

function rig(ticket: () => Promise<string> = async () => "aaa.bbb.ccc"): Rig {
  const clock = new FakeClock();
  const sockets: FakeSocket[] = [];
  const connection = new TerminalConnection({
    url: "wss://gateway.example/workspaces/ws-1/terminal",
    ticket,
    clock,
    openSocket: (url, protocols) => {
      const socket = new FakeSocket(url, protocols);
      sockets.push(socket);
      return socket;
    },
  });
  const made: Rig = { connection, clock, sockets, ends: [], pending: [], pieces: [] };
  connection.on("end", (end) => made.ends.push(end));
  connection.on("output", ({ bytes, rendered }) => {
    made.pieces.push(bytes.length);
    made.pending.push(rendered);
  });
  return made;
}

/** Lets the ticket's promise, and what waits for it, run. */
const settle = () => new Promise<void>((resolve) => setImmediate(resolve));

async function dialled(made: Rig): Promise<FakeSocket> {
  made.connection.connect();
  await settle();
  const socket = made.sockets.at(-1);
  assert.ok(socket, "a socket was opened");
  return socket;
}

async function opened(made: Rig, ready: object = READY): Promise<FakeSocket> {
  const socket = await dialled(made);
  socket.accept();
  socket.text(ready);
  assert.equal(made.connection.state, "open");
  return socket;
}

test("connect offers the protocol and the ticket, and puts the size but not the ticket into the URL", async () => {
  const made = rig();
  made.connection.resize(132, 40);
  const socket = await dialled(made);
  assert.equal(socket.url, "wss://gateway.example/workspaces/ws-1/terminal?cols=132&rows=40");
  assert.deepEqual(socket.offered, ["termgw.v1", "termgw.ticket.aaa.bbb.ccc"]);
  assert.equal(socket.binaryType, "arraybuffer");
});

test("the session is open at ready, not before, and says what the gateway said", async () => {
  const made = rig();
  const states: string[] = [];
  made.connection.on("state", (state) => states.push(state));
  const socket = await dialled(made);
  socket.accept();
  assert.equal(made.connection.state, "connecting");
  socket.text(READY);
  assert.deepEqual(states, ["connecting", "open"]);
  assert.equal(made.connection.ready?.target, "local");
  assert.equal(made.connection.ready?.idleTimeout, 1800);
});

test("every session asks for a ticket of its own", async () => {
  let minted = 0;
  const made = rig(async () => `a.b.t${++minted}`);
  (await opened(made)).closeFrame(1006);
  const second = await opened(made);
  assert.deepEqual(second.offered, ["termgw.v1", "termgw.ticket.a.b.t2"]);
  assert.equal(made.connection.end, undefined);
});

test("connect while a session is there opens no second one", async () => {
  const made = rig();
  await opened(made);
  made.connection.connect();
  await settle();
  assert.equal(made.sockets.length, 1);
});

test("a ticket that the platform refuses ends the session with the platform's sentence", async () => {
  const made = rig(async () => {
    throw new Error("You have no access to this workspace.");
  });
  made.connection.connect();
  await settle();
  assert.equal(made.sockets.length, 0);
  assert.equal(made.ends[0]?.code, "ticket_unavailable");
  assert.equal(made.ends[0]?.message, "You have no access to this workspace.");
});

for (const ticket of ["", "se cret", "a.b", "a.b.c, termgw.v1", undefined as unknown as string]) {
  test(`what is no ticket (${ticket}) opens no socket and is not shown`, async () => {
    const made = rig(async () => ticket);
    made.connection.connect();
    await settle();
    assert.equal(made.sockets.length, 0);
    assert.equal(made.connection.end?.code, "ticket_unavailable");
    assert.equal(made.connection.end?.message, "What the platform gave is no ticket.");
  });
}

test("a browser that refuses the socket ends the session without showing the ticket", async () => {
  const connection = new TerminalConnection({
    url: "ws://gateway.example/t",
    ticket: async () => "aaa.bbb.ccc",
    openSocket: (_url, protocols) => {
      throw new Error(`no socket with ${protocols.join()}`);
    },
    clock: new FakeClock(),
  });
  connection.connect();
  await settle();
  assert.equal(connection.end?.code, "unreachable");
  assert.doesNotMatch(JSON.stringify(connection.end), /aaa/);
});

test("close while the ticket is minted opens no socket", async () => {
  const made = rig();
  made.connection.connect();
  made.connection.close();
  await settle();
  assert.equal(made.sockets.length, 0);
  assert.equal(made.connection.end?.code, "closed");
});

test("close ends the socket and hears nothing more of it", async () => {
  const made = rig();
  const socket = await opened(made);
  made.connection.close();
  assert.equal(socket.closedWith, 1000);
  socket.text({ type: "error", code: "revoked", message: "no" });
  socket.bytes(10);
  socket.closeFrame(4423);
  assert.deepEqual(
    made.ends.map((end) => end.code),
    ["closed"],
  );
  assert.deepEqual(made.pieces, []);
  assert.equal(made.clock.running, 0, "no ping goes on");
});

test("a gateway that did not choose termgw.v1 is not talked to", async () => {
  const made = rig();
  (await dialled(made)).accept("");
  assert.equal(made.connection.end?.code, "bad_server_message");
});

// Acks.

test("ack: at once when all output is rendered", async () => {
  const made = rig();
  const socket = await opened(made);
  socket.bytes(5);
  assert.deepEqual(socket.sent("ack"), [], "nothing is on the screen yet");
  made.pending.shift()?.();
  assert.deepEqual(socket.sent("ack"), [{ type: "ack", bytes: 5 }]);
});

test("ack: every 8 KiB rendered while more is queued, cumulative", async () => {
  const made = rig();
  const socket = await opened(made);
  for (let frame = 0; frame < 40; frame++) socket.bytes(KIB);
  const counts: number[] = [];
  for (const rendered of made.pending) {
    rendered();
    counts.push(socket.sent("ack").length);
  }
  assert.deepEqual(
    socket.sent("ack").map((ack) => ack.bytes),
    [8, 16, 24, 32, 40].map((kib) => kib * KIB),
  );
  assert.deepEqual(counts.slice(0, 9), [0, 0, 0, 0, 0, 0, 0, 1, 1]);
});

test("ack: a large frame is rendered in pieces, so that acks keep their pace", async () => {
  const made = rig();
  const socket = await opened(made);
  socket.bytes(20 * KIB);
  assert.deepEqual(made.pieces, [8 * KIB, 8 * KIB, 4 * KIB]);
  for (const rendered of made.pending) rendered();
  assert.deepEqual(
    socket.sent("ack").map((ack) => ack.bytes),
    [8 * KIB, 16 * KIB, 20 * KIB],
  );
});

test("ack: a piece rendered twice counts once", async () => {
  const made = rig();
  const socket = await opened(made);
  socket.bytes(5);
  made.pending[0]?.();
  made.pending[0]?.();
  assert.deepEqual(socket.sent("ack"), [{ type: "ack", bytes: 5 }]);
});

test("ack: output of an ended session is not counted in the next", async () => {
  const made = rig();
  const first = await opened(made);
  first.bytes(100);
  first.closeFrame(1012);
  const second = await opened(made);
  made.pending.shift()?.();
  second.bytes(7);
  made.pending.shift()?.();
  assert.deepEqual(first.sent("ack"), []);
  assert.deepEqual(second.sent("ack"), [{ type: "ack", bytes: 7 }]);
});

// Input and size.

test("input is UTF-8 in binary frames", async () => {
  const made = rig();
  const socket = await opened(made);
  made.connection.send("ä€😀");
  made.connection.send(Uint8Array.of(0xff, 0x00));
  assert.deepEqual(
    socket.frames.map((frame) => Buffer.from(frame).toString("hex")),
    ["c3a4e282acf09f9880", "ff00"],
  );
});

test("a paste is split into frames of 64 KiB and loses nothing", async () => {
  const made = rig();
  const socket = await opened(made);
  const paste = "0123456789abcdef€".repeat(10_000);
  made.connection.send(paste);
  assert.ok(socket.frames.length > 2);
  for (const frame of socket.frames.slice(0, -1)) assert.equal(frame.length, 64 * KIB);
  assert.ok((socket.frames.at(-1)?.length ?? 0) <= 64 * KIB);
  assert.equal(Buffer.concat(socket.frames).toString(), paste);
});

test("input is dropped before open, after the end, and in a read-only session", async () => {
  const made = rig();
  const socket = await dialled(made);
  made.connection.send("early");
  socket.accept();
  socket.text({ ...READY, mode: "ro" });
  made.connection.send("read-only");
  socket.closeFrame(1006);
  made.connection.send("late");
  assert.deepEqual(socket.frames, []);
});

test("resize is sent when it changes, and after ready when it changed meanwhile", async () => {
  const made = rig();
  const socket = await dialled(made);
  made.connection.resize(100, 30);
  assert.deepEqual(socket.sent("resize"), []);
  socket.accept();
  socket.text(READY);
  made.connection.resize(100, 30);
  made.connection.resize(101, 30);
  assert.deepEqual(socket.sent("resize"), [
    { type: "resize", cols: 100, rows: 30 },
    { type: "resize", cols: 101, rows: 30 },
  ]);
});

for (const [cols, rows] of [
  [0, 24],
  [80, 0],
  [-1, 24],
  [1001, 24],
  [80, 1001],
  [80.5, 24],
  [Number.NaN, 24],
] as const) {
  test(`resize to ${cols}x${rows} is refused here, not by the gateway`, async () => {
    const made = rig();
    const socket = await opened(made);
    assert.throws(() => made.connection.resize(cols, rows), RangeError);
    assert.deepEqual(socket.sent("resize"), []);
  });
}

// Pings.

test("a ping at ready and every 5 s gives the round trip", async () => {
  const made = rig();
  const trips: number[] = [];
  made.connection.on("roundTrip", (ms) => trips.push(ms));
  const socket = await opened(made);
  made.clock.advance(12);
  socket.text({ type: "pong", id: 1 });
  made.clock.advance(5_000);
  made.clock.advance(30);
  socket.text({ type: "pong", id: 2 });
  socket.text({ type: "pong", id: 2 });
  socket.text({ type: "pong", id: 99 });
  assert.deepEqual(
    socket.sent("ping").map((ping) => ping.id),
    [1, 2],
  );
  assert.deepEqual(trips, [12, 42]);
});

test("two pings unanswered: the gateway is gone", async () => {
  const made = rig();
  const socket = await opened(made);
  made.clock.advance(9_999);
  assert.equal(made.connection.state, "open");
  made.clock.advance(1);
  assert.equal(made.connection.end?.code, "connection_lost");
  assert.equal(socket.closedWith, 1000);
  assert.equal(made.clock.running, 0);
});

test("a late pong keeps the session", async () => {
  const made = rig();
  const socket = await opened(made);
  made.clock.advance(9_000);
  socket.text({ type: "pong", id: 2 });
  made.clock.advance(9_000);
  assert.equal(made.connection.state, "open");
});

// Ends.

test("exit tells the shell's status", async () => {
  const made = rig();
  const socket = await opened(made);
  socket.text({ type: "exit", code: 137, signal: "SIGKILL" });
  socket.closeFrame(1000);
  assert.equal(made.ends[0]?.code, "exit");
  assert.deepEqual(made.ends[0]?.exit, { code: 137, signal: "SIGKILL" });
  assert.match(made.ends[0]?.message ?? "", /SIGKILL/);
});

test("exit stands when the close frame is lost", async () => {
  const made = rig();
  const socket = await opened(made);
  socket.text({ type: "exit", code: 3 });
  socket.closeFrame(1006);
  assert.equal(made.ends[0]?.code, "exit");
  assert.match(made.ends[0]?.message ?? "", /status 3/);
});

test("an error before ready is the reason, in the server's words", async () => {
  const made = rig();
  const socket = await dialled(made);
  socket.accept();
  socket.text({
    type: "error",
    code: "container_not_running",
    message: "Start the workspace first.",
    retryable: false,
    detail: "no container ws-1",
    docs: "docs/infra/workspace-terminal.md",
  });
  socket.closeFrame(4404, "container_not_running");
  assert.deepEqual(made.ends, [
    {
      code: "container_not_running",
      close: 4404,
      retry: "never",
      title: "Workspace not running",
      message: "Start the workspace first.",
      detail: "no container ws-1",
      docs: "docs/infra/workspace-terminal.md",
    },
  ]);
});

test("a failed handshake and a cut line are told apart", async () => {
  const made = rig();
  (await dialled(made)).closeFrame(1006);
  (await opened(made)).closeFrame(1006);
  assert.deepEqual(
    made.ends.map((end) => end.code),
    ["unreachable", "connection_lost"],
  );
});

test("a notice is passed on", async () => {
  const made = rig();
  const notices: unknown[] = [];
  made.connection.on("notice", (notice) => notices.push(notice));
  const socket = await opened(made);
  socket.text({ type: "notice", code: "idle_timeout", seconds: 60, message: "One minute left." });
  assert.deepEqual(notices, [{ code: "idle_timeout", seconds: 60, message: "One minute left." }]);
});

for (const text of [
  "",
  "no json",
  "[]",
  "null",
  '"ready"',
  "{}",
  '{"type":7}',
  '{"type":"pong"}',
  '{"type":"pong","id":"7"}',
  '{"type":"pong","id":1.5}',
  '{"type":"exit","code":"0"}',
  '{"type":"exit","code":0,"signal":9}',
  '{"type":"error","code":"revoked"}',
  '{"type":"error","code":"revoked","message":"m","retryable":"no"}',
  '{"type":"notice","code":"draining"}',
  '{"type":"ready","session":"s","workspace":"w","target":"moon","mode":"rw","window":1,"idle_timeout":1,"max_session":1}',
]) {
  test(`the server message ${text || "(empty)"} ends the session and says so`, async () => {
    const made = rig();
    const socket = await opened(made);
    socket.text(text);
    assert.equal(made.connection.end?.code, "bad_server_message");
    assert.equal(socket.closedWith, 1000);
  });
}

test("an unknown type and an unknown field are ignored", async () => {
  const made = rig();
  const socket = await opened(made, { ...READY, colour: "blue" });
  socket.text({ type: "weather", rain: true });
  assert.equal(made.connection.state, "open");
});
