import assert from "node:assert/strict";
import { test } from "node:test";
import type { EndReason } from "../client/codes.js";
import { TerminalConnection, TryAgain } from "../client/connection.js";
import { FakeClock, FakePage, FakeSocket } from "./fakes.js";

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
  page: FakePage;
  sockets: FakeSocket[];
  ends: EndReason[];
  /** What lets go of output not rendered yet, oldest first. */
  pending: (() => void)[];
  pieces: number[];
  /** Stops listening to output. */
  unlisten: () => void;
}

function rig(
  ticket: (signal: AbortSignal) => Promise<string> = async () => "aaa.bbb.ccc",
  random: () => number = () => 0.5,
): Rig {
  const clock = new FakeClock();
  const page = new FakePage();
  const sockets: FakeSocket[] = [];
  const connection = new TerminalConnection({
    url: "wss://gateway.example/workspaces/ws-1/terminal",
    ticket,
    clock,
    page,
    random,
    openSocket: (url, protocols) => {
      const socket = new FakeSocket(url, protocols);
      sockets.push(socket);
      return socket;
    },
  });
  const made: Rig = {
    connection,
    clock,
    page,
    sockets,
    ends: [],
    pending: [],
    pieces: [],
    unlisten() {},
  };
  connection.on("end", (end) => made.ends.push(end));
  made.unlisten = connection.on("output", ({ bytes, hold }) => {
    made.pieces.push(bytes.length);
    made.pending.push(hold());
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

function ready(socket: FakeSocket): FakeSocket {
  socket.accept();
  socket.text(READY);
  return socket;
}

async function opened(made: Rig, ready: object = READY): Promise<FakeSocket> {
  const socket = await dialled(made);
  socket.accept();
  socket.text(ready);
  assert.equal(made.connection.status.state, "open");
  return socket;
}

test("connect offers the protocol and the ticket, and puts the size but not the ticket into the URL", async () => {
  const made = rig();
  made.connection.resize(132, 40);
  const socket = await dialled(made);
  assert.match(
    socket.url,
    /^wss:\/\/gateway\.example\/workspaces\/ws-1\/terminal\?client=[0-9a-f]{24}&try=1&cols=132&rows=40$/,
  );
  assert.deepEqual(socket.offered, ["termgw.v1", "termgw.ticket.aaa.bbb.ccc"]);
  assert.equal(socket.binaryType, "arraybuffer");
});

test("the session is open at ready, not before, and says what the gateway said", async () => {
  const made = rig();
  const states: string[] = [];
  made.connection.on("status", ({ state }) => states.push(state));
  const socket = await dialled(made);
  socket.accept();
  assert.equal(made.connection.status.state, "connecting");
  socket.text(READY);
  assert.deepEqual(states, ["connecting", "open"]);
  assert.equal(made.connection.status.ready?.target, "local");
  assert.equal(made.connection.status.ready?.idleTimeout, 1800);
});

test("every session asks for a ticket of its own", async () => {
  let minted = 0;
  const made = rig(async () => `a.b.t${++minted}`);
  (await opened(made)).closeFrame(1006);
  const second = await opened(made);
  assert.deepEqual(second.offered, ["termgw.v1", "termgw.ticket.a.b.t2"]);
  assert.equal(made.connection.status.end, undefined);
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
  assert.equal(made.ends[0]?.code, "ticket_denied");
  assert.equal(made.ends[0]?.message, "You have no access to this workspace.");
});

test("a ticket that is no function is told where it was forgotten", () => {
  const url = "wss://gateway.example/workspaces/ws-1/terminal";
  for (const ticket of [undefined, "aaa.bbb.ccc"] as unknown as (() => Promise<string>)[]) {
    assert.throws(() => new TerminalConnection({ url, ticket }), /`ticket` is to be a function/);
  }
});

test("a fragment of the address, which browsers refuse, is left out", async () => {
  const urls: string[] = [];
  const connection = new TerminalConnection({
    url: "https://gateway.example/workspaces/ws-1/terminal?a=1#top",
    ticket: async () => "aaa.bbb.ccc",
    openSocket: (url, protocols) => {
      urls.push(url);
      return new FakeSocket(url, protocols);
    },
    clock: new FakeClock(),
  });
  connection.connect();
  await settle();
  assert.match(urls.join(), /terminal\?a=1&client=[0-9a-f]+&try=1&cols=80&rows=24$/);
});

test("a ticket callback that is not async is taken as one that is", async () => {
  const made = rig(() => {
    throw new Error("You have no access to this workspace.");
  });
  made.connection.connect();
  await settle();
  assert.equal(made.connection.status.state, "ended");
  assert.equal(made.ends[0]?.message, "You have no access to this workspace.");
  assert.deepEqual(made.clock.running, []);

  const given = rig(() => "aaa.bbb.ccc" as unknown as Promise<string>);
  await opened(given);
});

for (const ticket of ["", "se cret", "a.b", "a.b.c, termgw.v1", undefined as unknown as string]) {
  test(`what is no ticket (${ticket}) opens no socket and is not shown`, async () => {
    const made = rig(async () => ticket);
    made.connection.connect();
    await settle();
    assert.equal(made.sockets.length, 0);
    assert.equal(made.connection.status.end?.code, "ticket_denied");
    assert.equal(made.connection.status.end?.message, "What the platform gave is no ticket.");
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
  assert.equal(connection.status.end?.code, "insecure");
  assert.doesNotMatch(JSON.stringify(connection.status.end), /aaa/);
});

test("close while the ticket is minted opens no socket", async () => {
  const made = rig();
  made.connection.connect();
  made.connection.close();
  await settle();
  assert.equal(made.sockets.length, 0);
  assert.equal(made.connection.status.end?.code, "closed");
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
  assert.deepEqual(made.clock.running, [], "no ping goes on");
});

test("a gateway that did not choose termgw.v1 is not talked to", async () => {
  const made = rig();
  (await dialled(made)).accept("");
  assert.equal(made.connection.status.end?.code, "bad_server_message");
});

// A newer gateway.

for (const [fields, mode] of [
  [{ target: "pod", mode: "rw", colours: { deep: [1] } }, "rw"],
  [{ target: "pod", mode: "ro" }, "ro"],
  [{ target: "", mode: "watch" }, "ro"],
  [{ target: "__proto__", mode: "RW" }, "ro"],
  [{ target: "pod", mode: "" }, "ro"],
] as const) {
  test(`a target and a mode that are not known: ${JSON.stringify(fields)}`, async () => {
    const made = rig();
    const socket = await opened(made, { ...READY, ...fields });
    assert.equal(made.connection.status.ready?.target, fields.target);
    assert.equal(made.connection.status.ready?.mode, mode);
    made.connection.send("typed");
    assert.equal(socket.frames.length, mode === "rw" ? 1 : 0);
    made.connection.resize(90, 30);
    assert.deepEqual(socket.sent("resize"), [{ type: "resize", cols: 90, rows: 30 }]);
  });
}

test("news that is not known is told, and announces no end", async () => {
  const made = rig();
  const socket = await opened(made, { ...READY, idle_timeout: 0, max_session: 0 });
  const told: object[] = [];
  made.connection.on("notice", (notice) => told.push(notice));
  socket.text({ type: "notice", code: "draining", seconds: 30, message: "Half a minute." });
  socket.text({
    type: "notice",
    code: "reconnecting",
    seconds: 5,
    message: "The way is made anew.",
  });
  socket.text({ type: "notice", code: "joined", subject: "ann", mode: "ro" });
  socket.text({ type: "notice", code: "session_expired" });
  assert.deepEqual(told, [
    { code: "draining", seconds: 30, message: "Half a minute." },
    { code: "reconnecting", seconds: 5, message: "The way is made anew." },
    { code: "joined", seconds: 0, message: "" },
    { code: "session_expired", seconds: 0, message: "" },
  ]);
  assert.equal(made.connection.timeLeft()?.code, "draining");
  assert.equal(made.connection.status.state, "open");
});

for (const [error, close, state] of [
  [{ code: "backend_failed", retryable: false, detail: "role" }, 4502, "ended"],
  [{ code: "backend_failed", retryable: true }, 4502, "waiting"],
  [{ code: "revoked", retryable: true }, 4423, "waiting"],
  [{ code: "draining", retryable: false }, 1012, "ended"],
  [{ code: "idle_timeout", retryable: false }, 4408, "ended"],
  [{ code: "moon_phase", retryable: true, mood: "good" }, 4000, "waiting"],
  [{ code: "moon_phase", retryable: false }, 4503, "ended"],
  [{ code: "moon_phase" }, 4503, "waiting"],
  [{ code: "moon_phase" }, 4999, "ended"],
] as const) {
  test(`${close} with ${JSON.stringify(error)}: ${state}`, async () => {
    const made = rig();
    const socket = await opened(made);
    socket.text({ type: "error", message: "Words.", ...error });
    socket.closeFrame(close);
    assert.equal(made.connection.status.state, state);
    assert.equal(made.ends[0]?.message, "Words.");
    assert.equal(made.clock.running.length, state === "waiting" ? 1 : 0);
  });
}

// Acks.

test("ack: at once when all output is rendered", async () => {
  const made = rig();
  const socket = await opened(made);
  socket.bytes(5);
  assert.deepEqual(socket.sent("ack"), [], "nothing is on the screen yet");
  made.pending.shift()?.();
  assert.deepEqual(socket.sent("ack"), [{ type: "ack", bytes: 5 }]);
});

test("ack: every 8 KiB rendered while more is queued, cumulative, and by no timer", async () => {
  const made = rig();
  const socket = await opened(made);
  for (let frame = 0; frame < 40; frame++) socket.bytes(KIB);
  const counts: number[] = [];
  for (const rendered of made.pending) {
    rendered();
    await settle();
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
  for (const rendered of made.pending) {
    made.clock.advance(4);
    rendered();
    await settle();
  }
  assert.deepEqual(
    socket.sent("ack").map((ack) => ack.bytes),
    [8 * KIB, 16 * KIB, 20 * KIB],
  );
});

test("ack: one for all that is rendered in a task", async () => {
  const made = rig();
  const socket = await opened(made);
  socket.bytes(1024 * KIB);
  for (const rendered of made.pending) rendered();
  await settle();
  made.clock.advance(100);
  assert.deepEqual(socket.sent("ack"), [{ type: "ack", bytes: 1024 * KIB }]);
});

test("ack: of less than 8 KiB at most every 4 ms, and the last one is not forgotten", async () => {
  const made = rig();
  const socket = await opened(made);
  const acks = () => socket.sent("ack").map((ack) => ack.bytes);
  const print = (bytes: number) => {
    socket.bytes(bytes);
    made.pending.pop()?.();
  };
  print(5);
  assert.deepEqual(acks(), [5]);
  print(5);
  print(5);
  made.clock.advance(3);
  assert.deepEqual(acks(), [5]);
  made.clock.advance(1);
  assert.deepEqual(acks(), [5, 15]);
  print(5);
  print(8 * KIB); // does not wait
  await settle();
  made.clock.advance(100);
  assert.deepEqual(acks(), [5, 15, 20 + 8 * KIB]);
});

test("ack: none after the end", async () => {
  const made = rig();
  const socket = await opened(made);
  socket.bytes(16 * KIB);
  for (const rendered of made.pending) rendered();
  made.connection.close();
  await settle();
  assert.deepEqual(made.clock.running, []);
  assert.deepEqual(socket.sent("ack"), []);
});

test("ack: a piece rendered twice counts once", async () => {
  const made = rig();
  const socket = await opened(made);
  socket.bytes(5);
  made.pending[0]?.();
  made.pending[0]?.();
  assert.deepEqual(socket.sent("ack"), [{ type: "ack", bytes: 5 }]);
});

test("ack: output that nobody holds counts as rendered, so that the window stays whole", async () => {
  const made = rig();
  const socket = await opened(made);
  made.unlisten();
  made.connection.on("output", () => {}); // such as a mark on a tab
  socket.bytes(20 * KIB);
  await settle();
  made.connection.on("output", ({ hold }) => made.pending.push(hold()));
  socket.bytes(5);
  const acks = () => socket.sent("ack").map((ack) => ack.bytes);
  assert.deepEqual(acks(), [20 * KIB]);
  made.clock.advance(4);
  made.pending.shift()?.();
  assert.deepEqual(acks(), [20 * KIB, 20 * KIB + 5]);
});

test("ack: a piece counts once all who hold it have rendered it, and no more after that", async () => {
  const made = rig();
  const socket = await opened(made);
  let hold: () => () => void = () => () => {};
  made.connection.on("output", (output) => {
    hold = output.hold;
    made.pending.push(hold());
  });
  socket.bytes(5);
  made.pending.shift()?.();
  assert.deepEqual(socket.sent("ack"), []);
  made.pending.shift()?.();
  assert.deepEqual(socket.sent("ack"), [{ type: "ack", bytes: 5 }]);
  hold()(); // too late
  made.clock.advance(4);
  assert.ok(socket.sent("ack").every((ack) => ack.bytes === 5));
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

// A hidden page.

test("hidden: told after ready if it is so, and whenever it changes, until the session ends", async () => {
  const made = rig();
  const told = (socket: FakeSocket) => socket.sent("hidden").map(({ hidden }) => hidden);
  const shown = await opened(made);
  assert.deepEqual(told(shown), []);
  made.page.hide(true);
  made.page.hide(false);
  made.page.hide(true);
  assert.deepEqual(told(shown), [true, false, true]);
  shown.closeFrame(1012);

  const hidden = await dialled(made);
  made.page.hide(false);
  made.page.hide(true);
  assert.deepEqual(told(hidden), [], "nothing is said before ready");
  ready(hidden);
  assert.deepEqual(told(hidden), [true]);
  made.page.hide(false);
  assert.deepEqual(told(hidden), [true, false]);
  assert.deepEqual(told(shown), [true, false, true], "a session that ended hears nothing");
});

// Listeners.

/** A rig with a listener that throws before all others, at each event. */
function withFaultyListeners(): Rig {
  const made = rig();
  for (const type of ["status", "output", "notice", "roundTrip", "end"] as const) {
    made.connection.on(type, () => {
      throw new Error(`a mistake in ${type}`);
    });
  }
  return made;
}

test("a listener that throws stops neither the others nor the connection, and is reported", async (t) => {
  const reported: string[] = [];
  globalThis.reportError = (cause: Error) => reported.push(cause.message);
  t.after(() => Reflect.deleteProperty(globalThis, "reportError"));
  const made = withFaultyListeners();
  const told: string[] = [];
  for (const type of ["status", "output", "notice", "roundTrip", "end"] as const) {
    made.connection.on(type, () => told.push(type));
  }
  const socket = await opened(made);
  socket.bytes(20 * KIB);
  assert.equal(made.pieces.length, 3);
  for (const rendered of made.pending) rendered();
  await settle();
  assert.equal(socket.sent("ack").at(-1)?.bytes, 20 * KIB);
  socket.text({ type: "pong", id: 1 });
  socket.text({ type: "notice", code: "draining", seconds: 5, message: "Five seconds left." });
  socket.closeFrame(1012, "draining");
  ready(await retried(made));
  assert.equal(made.connection.status.state, "open");
  const [connecting, open, waiting] = ["status", "status", "status"];
  assert.deepEqual(told, [
    ...[connecting, open, "output", "output", "output", "roundTrip", "notice", waiting, "end"],
    ...[connecting, open],
  ]);
  assert.deepEqual(
    reported,
    told.map((type) => `a mistake in ${type}`),
  );
});

test("where there is no reportError, a listener's error is thrown where nothing waits for it", async (t) => {
  const later: (() => void)[] = [];
  t.mock.method(globalThis, "setTimeout", (callback: () => void) => later.push(callback));
  await opened(withFaultyListeners());
  assert.equal(later.length, 2);
  for (const callback of later) assert.throws(callback, /a mistake in status/);
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
  assert.equal(made.connection.status.state, "open");
  made.clock.advance(1);
  assert.equal(made.connection.status.end?.code, "connection_lost");
  assert.equal(socket.closedWith, 1000);
  assert.equal(made.clock.running.length, 1, "only the next attempt is waited for");
});

test("the gateway is gone 15 s after its last word at the latest", async () => {
  const made = rig();
  const socket = await opened(made);
  socket.text({ type: "pong", id: 1 }); // right behind a ping: the next one is 5 s away
  made.clock.advance(14_999);
  assert.equal(made.connection.status.state, "open");
  made.clock.advance(1);
  assert.equal(made.connection.status.end?.code, "connection_lost");
});

test("a late pong keeps the session", async () => {
  const made = rig();
  const socket = await opened(made);
  made.clock.advance(9_000);
  socket.text({ type: "pong", id: 2 });
  made.clock.advance(9_000);
  assert.equal(made.connection.status.state, "open");
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

test("a line that is cut before the shell is there is no gateway that cannot be reached", async () => {
  const made = rig();
  const socket = await dialled(made);
  socket.accept();
  socket.closeFrame(1006);
  assert.equal(made.ends[0]?.code, "connection_lost");
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
  '{"type":"notice","seconds":60,"message":"m"}',
  '{"type":"notice","code":"draining","seconds":"60","message":"m"}',
  '{"type":"ready","session":"s","workspace":"w","target":7,"mode":"rw","window":1,"idle_timeout":1,"max_session":1}',
  '{"type":"ready","session":"s","workspace":"w","target":"local","mode":true,"window":1,"idle_timeout":1,"max_session":1}',
]) {
  test(`the server message ${text || "(empty)"} ends the session and says so`, async () => {
    const made = rig();
    const socket = await opened(made);
    socket.text(text);
    assert.equal(made.connection.status.end?.code, "bad_server_message");
    assert.equal(socket.closedWith, 1000);
  });
}

test("an unknown type and an unknown field are ignored", async () => {
  const made = rig();
  const socket = await opened(made, { ...READY, colour: "blue" });
  socket.text({ type: "weather", rain: true });
  assert.equal(made.connection.status.state, "open");
});

// A paste waits for the line.

test("a large paste waits for pongs, so that a ping is never behind more than 256 KiB", async () => {
  const made = rig();
  const socket = await opened(made);
  socket.text({ type: "pong", id: 1 });
  made.connection.send(new Uint8Array(600 * KIB));
  const sent = () => socket.frames.reduce((sum, frame) => sum + frame.length, 0);
  assert.equal(sent(), 256 * KIB);
  assert.deepEqual(socket.sent("ping").at(-1), { type: "ping", id: 2 });
  made.connection.resize(90, 30);
  assert.equal(socket.sent("resize").length, 1, "control messages pass it");
  socket.text({ type: "pong", id: 2 });
  assert.equal(sent(), 512 * KIB);
  socket.text({ type: "pong", id: 3 });
  assert.equal(sent(), 600 * KIB);
  made.connection.send("x");
  assert.equal(sent(), 600 * KIB + 1, "what is typed next goes at once");
});

test("what is typed during a paste comes after it", async () => {
  const made = rig();
  const socket = await opened(made);
  made.connection.send(new Uint8Array(300 * KIB));
  made.connection.send("\x03");
  for (let id = 1; id <= 3; id++) socket.text({ type: "pong", id });
  assert.deepEqual(socket.frames.at(-1), Uint8Array.of(3));
});

// Reconnecting.

const error = (code: string, retryable: boolean) => ({
  type: "error",
  code,
  message: "The server's words.",
  retryable,
});

/** Runs the next attempt, however long it is away, and gives its socket. */
async function retried(made: Rig): Promise<FakeSocket> {
  const before = made.sockets.length;
  made.clock.advance(made.clock.running[0] ?? 0);
  await settle();
  assert.equal(made.sockets.length, before + 1, "one more session was tried");
  return made.sockets.at(-1) as FakeSocket;
}

for (const [close, code] of [
  [1006, ""],
  [1012, "draining"],
  [1013, "overloaded"],
  [4410, "session_expired"],
  [4429, "too_many_sessions"],
  [4502, "backend_failed"],
  [4503, "store_unavailable"],
  [4503, "keys_unavailable"],
  [4504, "tunnel_expired"],
] as const) {
  test(`${close} ${code}: another session is opened by itself, with a ticket of its own`, async () => {
    let minted = 0;
    const made = rig(async () => `a.b.t${++minted}`);
    const socket = await opened(made);
    if (code) socket.text(error(code, true));
    socket.closeFrame(close, code);
    assert.equal(made.connection.status.state, "waiting");
    assert.ok(made.connection.status.retryAt);
    const second = await retried(made);
    assert.deepEqual(second.offered, ["termgw.v1", "termgw.ticket.a.b.t2"]);
    second.accept();
    second.text(READY);
    assert.equal(made.connection.status.state, "open");
    assert.equal(made.connection.status.end, undefined);
  });
}

for (const [close, code] of [
  [1000, "exit"],
  [1009, "too_large"],
  [4400, "bad_message"],
  [4403, "ticket_mismatch"],
  [4404, "workspace_not_found"],
  [4404, "container_not_running"],
  [4423, "revoked"],
  [1001, ""],
  [4999, "moon_phase"],
] as const) {
  test(`${close} ${code}: nothing happens until somebody asks`, async () => {
    const made = rig();
    const socket = await opened(made);
    if (code === "exit") socket.text({ type: "exit", code: 0 });
    else if (code) socket.text(error(code, false));
    socket.closeFrame(close, code);
    assert.equal(made.connection.status.state, "ended");
    assert.deepEqual(made.clock.running, []);
    made.connection.send("typed");
    made.clock.advance(3_600_000);
    await settle();
    assert.equal(made.sockets.length, 1);
  });
}

test("idle_timeout: another session is opened when somebody types, and that key goes nowhere", async () => {
  const made = rig();
  const socket = await opened(made);
  socket.text(error("idle_timeout", true));
  socket.closeFrame(4408, "idle_timeout");
  assert.equal(made.connection.status.state, "waiting");
  assert.equal(made.connection.status.retryAt, undefined);
  made.clock.advance(3_600_000);
  await settle();
  // The answer to what the program asked last is nobody's key.
  made.connection.send("\x1b[5;1R");
  await settle();
  assert.equal(made.sockets.length, 1);
  made.connection.send("l");
  await settle();
  const second = made.sockets[1];
  second?.accept();
  second?.text(READY);
  assert.equal(made.connection.status.state, "open");
  assert.deepEqual(second?.frames, []);
});

for (const [close, code] of [
  [4401, "ticket_missing"],
  [4401, "ticket_invalid"],
  [4401, "ticket_expired"],
  [4409, "ticket_used"],
] as const) {
  test(`${code}: one more ticket is tried, then no other`, async () => {
    const made = rig();
    for (const next of [dialled, retried]) {
      const socket = await next(made);
      socket.accept();
      socket.text(error(code, true));
      socket.closeFrame(close, code);
    }
    assert.equal(made.connection.status.state, "ended");
    assert.equal(made.connection.status.end?.message, "The server's words.");
    assert.deepEqual(made.clock.running, []);

    made.connection.connect(); // somebody asked
    await settle();
    made.sockets[2]?.accept();
    made.sockets[2]?.closeFrame(close, code);
    assert.equal(made.connection.status.state, "waiting", "which counts from the start");
  });
}

test("the waits are a random part of 1, 2, 4 … 30 s", async () => {
  for (const part of [0, 0.5, 0.999]) {
    const made = rig(undefined, () => part);
    const waits: number[] = [];
    (await dialled(made)).closeFrame(1006);
    for (let attempt = 0; attempt < 8; attempt++) {
      waits.push(made.clock.running[0] ?? -1);
      (await retried(made)).closeFrame(1006);
    }
    const longest = [1, 2, 4, 8, 16, 30, 30, 30];
    assert.deepEqual(
      waits,
      longest.map((seconds) => Math.floor(seconds * 1000 * part)),
    );
  }
});

// The last try.

/** Ends a session in the gateway's words, before its shell is there or after. */
type Ending = (socket: FakeSocket) => void;

const refusedWith =
  (close: number, message: object): Ending =>
  (socket) => {
    socket.accept();
    socket.text(message);
    socket.closeFrame(close);
  };

for (const [name, last, ending] of [
  ["backend_failed", 1_000, refusedWith(4502, error("backend_failed", true))],
  [
    "backend_failed, by its code alone",
    1_000,
    refusedWith(4502, { type: "error", code: "backend_failed", message: "The server's words." }),
  ],
  ["overloaded", 1_000, refusedWith(1013, error("overloaded", true))],
  ["store_unavailable", 1_000, refusedWith(4503, error("store_unavailable", true))],
  ["keys_unavailable", 1_000, refusedWith(4503, error("keys_unavailable", true))],
  ["session_expired", 1_000, refusedWith(4410, error("session_expired", true))],
  ["tunnel_expired", 1_000, refusedWith(4504, error("tunnel_expired", true))],
  ["too_many_sessions", 15_000, refusedWith(4429, error("too_many_sessions", true))],
  ["revoked, which may be tried again", 1_000, refusedWith(4423, error("revoked", true))],
  ["a code that is not known", 1_000, refusedWith(4000, error("moon_phase", true))],
  [
    "backend_failed once the shell is there",
    1_000,
    (socket) => {
      ready(socket);
      socket.text(error("backend_failed", true));
      socket.closeFrame(4502);
    },
  ],
] satisfies [string, number, Ending][]) {
  test(`a cause that stays is not tried for ever: ${name}`, async () => {
    const made = rig(undefined, () => 1);
    ending(await dialled(made));
    assert.deepEqual(made.clock.running, [last]);
    for (let retries = 1; retries <= 10; retries++) ending(await retried(made));
    const { state, end } = made.connection.status;
    assert.equal(state, "ended");
    assert.equal(
      end?.message,
      "The server's words. Tried 11 times; to try again, reconnect.",
      "what it was, and what to do",
    );
    assert.notEqual(end.retry, "never", "a person may");
    assert.deepEqual(made.ends.at(-1), end);
    assert.deepEqual(made.clock.running, []);

    made.connection.connect(); // somebody asked
    await settle();
    ending(made.sockets.at(-1) as FakeSocket);
    assert.equal(made.connection.status.state, "waiting", "which counts from the start");
    assert.equal(made.connection.status.end?.message, "The server's words.");
  });
}

test("no_answer is not tried for ever", async () => {
  const made = rig();
  let socket = await dialled(made);
  for (let tries = 1; ; tries++) {
    socket.accept();
    made.clock.advance(30_000);
    if (tries === 11) break;
    socket = await retried(made);
  }
  assert.equal(made.connection.status.state, "ended");
  assert.match(made.connection.status.end?.message ?? "", /Tried 11 times/);
});

test("a cause that stays is not tried for ever where other ends come between", async () => {
  const made = rig();
  const endings: Ending[] = [
    refusedWith(4502, error("backend_failed", true)),
    (socket) => socket.closeFrame(1006),
    refusedWith(4503, error("store_unavailable", true)),
  ];
  let socket = await dialled(made);
  for (let tries = 0; made.connection.status.state !== "ended"; tries++) {
    assert.ok(tries < 20);
    endings[tries % 3]?.(socket);
    if (made.connection.status.state === "waiting") socket = await retried(made);
  }
  assert.match(made.connection.status.end?.message ?? "", /Tried 11 times/);
});

/** Keeps a session open for so long, and answers its pings. */
function keep(made: Rig, socket: FakeSocket, ms: number): void {
  for (let passed = 0; passed < ms; passed += 5_000) {
    for (const { id } of socket.sent("ping").slice(-1)) socket.text({ type: "pong", id });
    made.clock.advance(5_000);
  }
}

for (const [name, use, state] of [
  ["stays for 20 s and is not used", (made, socket) => keep(made, socket, 20_000), "ended"],
  ["stays for ten minutes", (made, socket) => keep(made, socket, 600_000), "waiting"],
  ["is typed in", (made) => made.connection.send("ls\r"), "waiting"],
  ["answers a program by itself", (made) => made.connection.send("\x1b[5;1R"), "ended"],
] satisfies [string, (made: Rig, socket: FakeSocket) => void, string][]) {
  test(`tries are counted on after a session that ${name}: ${state}`, async () => {
    const made = rig();
    let socket = await dialled(made);
    for (let ends = 1; ; ends++) {
      use(made, ready(socket));
      socket.text(error("backend_failed", true));
      socket.closeFrame(4502);
      if (ends === 11) break;
      socket = await retried(made);
    }
    assert.equal(made.connection.status.state, state);
  });
}

for (const [name, ending] of [
  ["unreachable", (socket) => socket.closeFrame(1006)],
  ["connection_lost", (socket) => ready(socket).closeFrame(1006)],
  ["draining", refusedWith(1012, error("draining", true))],
] satisfies [string, Ending][]) {
  test(`${name} is tried on, slower, and only while the page is shown`, async () => {
    const made = rig(undefined, () => 1);
    made.page.hide(true);
    ending(await dialled(made));
    // A hidden page too: a shell may be waiting for it.
    for (let retries = 1; retries <= 10; retries++) ending(await retried(made));
    assert.deepEqual(made.clock.running, [60_000]);
    made.clock.advance(3_600_000);
    await settle();
    assert.equal(made.sockets.length, 11, "nobody looks");

    made.page.hide(false);
    await settle();
    assert.equal(made.sockets.length, 12, "at once when somebody does");
    for (let retries = 1; retries <= 20; retries++) {
      ending(made.sockets.at(-1) as FakeSocket);
      assert.deepEqual(made.clock.running, [60_000]);
      await retried(made);
    }
    ending(made.sockets.at(-1) as FakeSocket);

    made.page.hide(true);
    made.connection.close();
    made.page.hide(false);
    await settle();
    assert.equal(made.sockets.length, 32, "what was closed stays so");
    assert.equal(made.connection.status.state, "ended");
    assert.deepEqual(made.clock.running, []);
  });
}

// The first cause is the one that is told.

for (const [name, follows] of [
  ["a cut line", (_made, socket) => socket.closeFrame(1006)],
  ["silence", (made) => made.clock.advance(30_000)],
  ["another error", (_made, socket) => refusedWith(4503, error("store_unavailable", true))(socket)],
  [
    "an exit",
    (_made, socket) => {
      socket.text({ type: "exit", code: 1 });
      socket.closeFrame(1000);
    },
  ],
  ["what nobody can read", (_made, socket) => socket.text("{")],
] satisfies [string, (made: Rig, socket: FakeSocket) => void][]) {
  for (const hasShell of [false, true]) {
    test(`an error ${hasShell ? "after" : "before"} ready, then ${name}: the error is told`, async () => {
      const made = rig();
      const socket = await dialled(made);
      socket.accept();
      if (hasShell) socket.text(READY);
      socket.text({ ...error("backend_failed", false), detail: "ssh_auth" });
      follows(made, socket);
      assert.equal(made.connection.status.state, "ended");
      assert.equal(made.ends.length, 1);
      const [end] = made.ends;
      assert.deepEqual(
        [end?.code, end?.detail, end?.message, end?.retry],
        ["backend_failed", "ssh_auth", "The server's words.", "never"],
      );
    });
  }
}

test("too_many_sessions is tried less often", async () => {
  const made = rig(undefined, () => 1);
  const waits: number[] = [];
  let socket = await dialled(made);
  for (let attempt = 0; attempt < 4; attempt++) {
    socket.accept();
    socket.closeFrame(4429, "too_many_sessions");
    waits.push(made.clock.running[0] ?? -1);
    socket = await retried(made);
  }
  assert.deepEqual(waits, [15_000, 30_000, 60_000, 60_000]);
});

test("a session that ends at once does not start the waits over; one that stayed does", async () => {
  const made = rig(undefined, () => 1);
  ready(await dialled(made)).closeFrame(1012, "draining");
  assert.deepEqual(made.clock.running, [1_000]);
  ready(await retried(made)).closeFrame(1012, "draining");
  assert.deepEqual(made.clock.running, [2_000]);
  const third = ready(await retried(made));
  made.clock.advance(4_000);
  third.text({ type: "pong", id: 1 });
  made.clock.advance(6_000);
  third.closeFrame(1012, "draining");
  assert.deepEqual(made.clock.running, [1_000]);
});

test("connect does not wait, close ends the waiting and says why it was", async () => {
  const made = rig();
  (await opened(made)).closeFrame(1012, "draining");
  made.connection.connect();
  await settle();
  assert.equal(made.sockets.length, 2);
  assert.equal(made.connection.status.end?.code, "draining", "told until another one is open");
  made.sockets[1]?.closeFrame(1012, "draining");
  made.connection.close();
  assert.equal(made.connection.status.state, "ended");
  assert.equal(made.connection.status.end?.code, "draining");
  assert.deepEqual(made.clock.running, []);
});

for (const [code, accepts] of [
  ["unreachable", false],
  ["no_answer", true],
] as const) {
  test(`a gateway that never answers (${code}) is given up after 30 s, and tried again`, async () => {
    const made = rig();
    const socket = await dialled(made);
    if (accepts) socket.accept();
    made.clock.advance(29_999);
    assert.equal(made.connection.status.state, "connecting");
    made.clock.advance(1);
    assert.equal(socket.closedWith, 1000);
    assert.equal(made.connection.status.state, "waiting");
    assert.equal(made.connection.status.end?.code, code);
  });
}

test("a platform that never answers is given up too, and its request is ended", async () => {
  let given: AbortSignal | undefined;
  const made = rig((signal) => {
    given = signal;
    return new Promise(() => {});
  });
  made.connection.connect();
  made.clock.advance(30_000);
  assert.equal(made.connection.status.state, "waiting");
  assert.equal(made.connection.status.end?.code, "ticket_unavailable");
  assert.equal(given?.aborted, true);
});

test("what may be a mistake in the ticket callback is told to its developer", async (t) => {
  const logged = t.mock.method(console, "error", () => {});
  const cause = new TypeError("Cannot read properties of undefined (reading 'ticket')");
  const made = rig(async () => {
    throw cause;
  });
  made.connection.connect();
  await settle();
  assert.equal(made.connection.status.state, "waiting", "or a network that fails");
  assert.deepEqual(
    logged.mock.calls.map((call) => call.arguments.at(-1) as unknown),
    [cause],
  );
});

for (const [cause, state, message] of [
  [new TryAgain("The platform is being updated."), "waiting", "The platform is being updated."],
  [new TypeError("Failed to fetch"), "waiting", "The platform did not answer when"],
  [new Error("You may not."), "ended", "You may not."],
  ["no error", "ended", "The platform gave no ticket."],
] as const) {
  test(`no ticket (${String(cause)}): ${state}`, async () => {
    const made = rig(async () => {
      throw cause;
    });
    made.connection.connect();
    await settle();
    assert.equal(made.connection.status.state, state);
    assert.ok(made.connection.status.end?.message.startsWith(message));
    assert.equal(made.ends.length, 1);
  });
}

// What a status line asks.

test("the time left is that of the limit that comes first", async () => {
  const made = rig();
  assert.equal(made.connection.timeLeft(), undefined);
  const socket = await opened(made, { ...READY, idle_timeout: 60, max_session: 100 });
  assert.deepEqual(made.connection.timeLeft(), { code: "idle_timeout", seconds: 60 });
  for (let id = 2; id <= 11; id++) {
    made.clock.advance(5_000);
    socket.text({ type: "pong", id });
  }
  assert.deepEqual(made.connection.timeLeft(), { code: "idle_timeout", seconds: 10 });
  socket.text({ type: "notice", code: "idle_timeout", seconds: 10, message: "Ten seconds left." });
  made.connection.send("\x1b[5;1R\x1b[I"); // which is sent, but typed by nobody
  assert.deepEqual(made.connection.timeLeft(), { code: "idle_timeout", seconds: 10 });
  made.connection.send("x");
  assert.deepEqual(made.connection.timeLeft(), { code: "session_expired", seconds: 50 });
  socket.text({ type: "notice", code: "draining", seconds: 5, message: "Five seconds left." });
  assert.deepEqual(made.connection.timeLeft(), { code: "draining", seconds: 5 });
});

test("no limits, no time left", async () => {
  const made = rig();
  await opened(made, { ...READY, idle_timeout: 0, max_session: 0 });
  assert.equal(made.connection.timeLeft(), undefined);
});

test("silence is the age of the oldest ping without an answer", async () => {
  const made = rig();
  const socket = await opened(made);
  made.clock.advance(3_000);
  assert.equal(made.connection.silence(), 3_000);
  socket.text({ type: "pong", id: 1 });
  assert.equal(made.connection.silence(), 0);
});
