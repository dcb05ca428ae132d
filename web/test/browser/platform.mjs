// The platform's part, played by the test: it serves the built page, lists
// workspaces and gives tickets. What answers the terminal is the caller's.
import { createPrivateKey, randomUUID, sign } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname } from "node:path";
import { fileURLToPath } from "node:url";
import { WebSocketServer } from "ws";
import { defer } from "./harness.mjs";

const DIST = fileURLToPath(new URL("../../dist/", import.meta.url));
const TYPES = new Map([
  [".html", "text/html"],
  [".js", "text/javascript"],
  [".css", "text/css"],
  [".svg", "image/svg+xml"],
]);
// As strict as the demo's own (internal/demo/demo.go).
const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; " +
  "connect-src 'self'; img-src 'self'";

/** @typedef {{workspace: string, mode?: "rw" | "ro"}} Wanted */

/**
 * Starts it on a free port.
 *
 * @param {import("./harness.mjs").Scope} t
 * @param {object} platform
 * @param {{id: string, name: string, detail: string}[]} platform.workspaces
 * @param {(wanted: Wanted) => string} platform.ticket
 * @param {(socket: import("ws").WebSocket, url: URL) => void} [platform.terminal] what a
 *   terminal's WebSocket does, where no gateway answers it
 * @returns {Promise<number>} the port
 */
export async function startPlatform(t, { workspaces, ticket, terminal }) {
  const server = createServer(async (asked, answer) => {
    const { pathname } = new URL(asked.url ?? "/", "http://localhost");
    const json = (/** @type {unknown} */ body) => {
      answer.setHeader("Content-Type", "application/json").end(JSON.stringify(body));
    };
    if (pathname === "/demo/session") return json({ token: "token" });
    if (pathname === "/demo/workspaces") return json(workspaces);
    if (pathname === "/demo/tickets") {
      let body = "";
      for await (const chunk of asked) body += chunk;
      return json({ ticket: ticket(JSON.parse(body)) });
    }
    const name = pathname === "/" ? "index.html" : pathname.slice(1);
    const found = /^[\w.-]+$/.test(name) && (await readFile(DIST + name).catch(() => undefined));
    if (!found) return answer.writeHead(404).end();
    answer.setHeader("Content-Type", TYPES.get(extname(name)) ?? "text/plain");
    answer.setHeader("Content-Security-Policy", POLICY).end(found);
  });
  /** @type {WebSocketServer | undefined} */
  let sockets;
  if (terminal) {
    sockets = new WebSocketServer({ server, handleProtocols: () => "termgw.v1" });
    sockets.on("connection", (socket, asked) =>
      terminal(socket, new URL(asked.url ?? "/", "http://localhost")),
    );
  }
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(undefined)));
  defer(t, async () => {
    for (const socket of sockets?.clients ?? []) socket.terminate();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });
  return /** @type {import("node:net").AddressInfo} */ (server.address()).port;
}

/**
 * Signs a ticket as a platform does, with a key that `termgw ticket keygen` made.
 *
 * @param {Record<string, string>} key a private JWK
 * @param {Wanted} wanted
 * @param {number} [resume] seconds for which the shell waits for its person
 */
export function signTicket(key, { workspace, mode = "rw" }, resume) {
  const now = Math.floor(Date.now() / 1000);
  const header = { typ: "termgw-ticket+jwt", alg: "EdDSA", kid: key.kid };
  const claims = {
    aud: "termgw",
    sub: "someone@example.com",
    jti: randomUUID(),
    iat: now,
    nbf: now,
    exp: now + 30,
    workspace_id: workspace,
    mode,
    resume,
  };
  const signed = [header, claims]
    .map((part) => Buffer.from(JSON.stringify(part)).toString("base64url"))
    .join(".");
  const secret = createPrivateKey({ key, format: "jwk" });
  return `${signed}.${sign(null, Buffer.from(signed), secret).toString("base64url")}`;
}
