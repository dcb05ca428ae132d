// The network between a browser and what serves it, which a test cuts.
import { connect, createServer } from "node:net";
import { defer } from "./harness.mjs";

/** @typedef {Awaited<ReturnType<typeof startLine>>} Line */

/**
 * Starts one on a free port. It can go silent, as Wi-Fi does behind a wall, and be cut, as when
 * the machine changes networks.
 *
 * @param {import("./harness.mjs").Scope} t
 * @param {number} to the port that it leads to
 */
export async function startLine(t, to) {
  /** @type {Set<import("node:net").Socket>} */
  const sockets = new Set();
  /** @type {"up" | "cut" | "lost"} */
  let state = "up";
  let connections = 0;
  /** @type {(from: import("node:net").Socket, other: import("node:net").Socket) => void} */
  const carry = (from, other) => {
    sockets.add(from);
    from.setNoDelay();
    from.pipe(other);
    from.on("error", () => other.destroy());
    from.on("close", () => {
      sockets.delete(from);
      other.destroy();
    });
  };
  const server = createServer((near) => {
    connections++;
    if (state === "cut") {
      near.resetAndDestroy();
      return;
    }
    if (state === "lost") {
      near.on("error", () => {});
      near.pause();
      dead.add(near);
      return;
    }
    const far = connect(to, "127.0.0.1");
    carry(near, far);
    carry(far, near);
  });
  /** @type {Set<import("node:net").Socket>} */
  const dead = new Set();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(undefined)));
  const reset = () => {
    for (const socket of sockets) socket.resetAndDestroy();
  };
  defer(t, async () => {
    reset();
    for (const socket of dead) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  });
  return {
    port: /** @type {import("node:net").AddressInfo} */ (server.address()).port,
    /** How many connections were made over it. */
    connections: () => connections,
    /** Nothing passes until it is mended, and nothing is lost. */
    silence() {
      for (const socket of sockets) socket.pause();
    },
    /** What is open is reset, and so is what is tried. */
    cut() {
      state = "cut";
      reset();
    },
    /** What is open is reset; another connection is carried. */
    reset,
    /** What is open ends without a close frame (FIN), both ways. */
    finish() {
      for (const socket of sockets) socket.end();
    },
    /** What is open, and what is tried until it is mended, hears nothing more, ever. */
    lose() {
      state = "lost";
      for (const socket of sockets) {
        socket.unpipe();
        socket.pause();
        sockets.delete(socket);
        dead.add(socket);
      }
    },
    mend() {
      state = "up";
      for (const socket of sockets) socket.resume();
    },
  };
}
