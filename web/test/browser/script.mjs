// A gateway that does as it is told, for the ends that a test cannot wait for.
import { startPlatform } from "./platform.mjs";

/**
 * @typedef {object} Failure
 * @property {number} close
 * @property {string} code
 * @property {boolean} retryable
 * @property {string} message
 * @property {string} [detail]
 * @property {string} [docs]
 * @property {"never" | "itself" | "typing"} goesOn
 */

/** One of each kind, in the gateway's own words. */
/** @type {Failure[]} */
export const FAILURES = [
  {
    close: 4423,
    code: "revoked",
    retryable: false,
    message: "Access to this terminal was withdrawn. Ask your administrator if you need it back.",
    goesOn: "never",
  },
  {
    close: 4404,
    code: "container_not_running",
    retryable: false,
    message:
      "The workspace's container is not running. Start the workspace and open the terminal again.",
    docs: "docs/infra/workspace-terminal.md",
    goesOn: "never",
  },
  {
    close: 4502,
    code: "backend_failed",
    retryable: true,
    message: "The shell could not be reached: a part behind the gateway failed.",
    detail: "docker",
    docs: "docs/infra/workspace-terminal.md",
    goesOn: "itself",
  },
  {
    close: 1012,
    code: "draining",
    retryable: true,
    message:
      "This gateway is going away for an update. Open the terminal again: another one takes over.",
    goesOn: "itself",
  },
  {
    close: 4408,
    code: "idle_timeout",
    retryable: true,
    message:
      "The terminal was closed because nothing was typed for a while. Open a new one to go on.",
    goesOn: "typing",
  },
];

/**
 * Starts the platform with a gateway whose first sessions end as `failures` say;
 * later ones stay open.
 *
 * @param {import("./harness.mjs").Scope} t
 * @param {Failure[]} failures
 * @param {{mode?: string, target?: string, prints?: string, silent?: boolean}}
 *   [session] `silent`: no shell ever starts
 */
export async function startScript(
  t,
  failures,
  { mode = "rw", target = "local", prints = "$ ", silent = false } = {},
) {
  let sessions = 0;
  let typed = "";
  /** @type {import("ws").WebSocket | undefined} */
  let current;
  const say = (/** @type {object} */ message) => current?.send(JSON.stringify(message));
  const port = await startPlatform(t, {
    workspaces: [
      { id: "box", name: "Box", detail: "node:22" },
      { id: "data", name: "Data pipeline", detail: "python:3.14" },
      { id: "gpu", name: "Training", detail: "i-0f3a9c, eu-central-1" },
    ],
    ticket: () => "header.claims.signature",
    terminal: (socket, { pathname }) => {
      current = socket;
      const failure = failures[sessions++];
      socket.on("message", (data, isBinary) => {
        if (isBinary) typed += String(data);
        const message = isBinary ? {} : JSON.parse(String(data));
        if (message.type === "ping") socket.send(JSON.stringify({ ...message, type: "pong" }));
      });
      if (silent) return;
      say({
        type: "ready",
        session: `s${sessions}`,
        workspace: pathname.split("/")[2],
        target,
        mode,
        window: 65536,
        idle_timeout: 1800,
        max_session: 28800,
      });
      socket.send(Buffer.from(prints));
      if (!failure) return;
      const { close, code, retryable, message, detail, docs } = failure;
      say({ type: "error", code, message, retryable, detail, docs });
      socket.close(close, code);
    },
  });
  return {
    url: `http://127.0.0.1:${port}/`,
    say,
    close: (/** @type {number} */ code) => current?.close(code),
    cut: () => current?.terminate(),
    sessions: () => sessions,
    typed: () => typed,
  };
}
