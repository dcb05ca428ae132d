// A Docker engine that nobody else uses, and a container in it to work in: the
// same as the Go tests start (internal/testenv), over the Engine API.
import { execFile, spawn } from "node:child_process";
import { createReadStream } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { defer, find, skipFor, supervise } from "./harness.mjs";

const DOCKERD = find("dockerd");
const IMAGE = "termgw-test-workspace";
const START_MS = 60_000;

/** Why no engine can be started here; false when one can. */
export const skipEngine = skipFor([
  ...(DOCKERD ? [] : ["no dockerd: install Debian's packages docker.io and debootstrap"]),
  ...(process.getuid?.() === 0 ? [] : ["a Docker engine of its own needs root"]),
]);

/**
 * Starts an engine with the workspace image.
 *
 * @param {import("./harness.mjs").Scope} t
 */
export async function startEngine(t) {
  const script = fileURLToPath(new URL("../../../scripts/workspace-image", import.meta.url));
  const PATH = `${process.env.PATH}:/usr/sbin:/sbin`;
  const image = promisify(execFile)(script, { env: { ...process.env, PATH } });
  const dir = await mkdtemp(join(tmpdir(), "termgw-docker-"));
  defer(t, () => rm(dir, { recursive: true, force: true, maxRetries: 5 }));
  await writeFile(join(dir, "daemon.json"), "{}"); // not the machine's own
  const socket = join(dir, "docker.sock");
  const namespace = basename(dir);
  const child = spawn(
    DOCKERD ?? "",
    [
      `--config-file=${dir}/daemon.json`,
      `--host=unix://${socket}`,
      `--data-root=${dir}/data`,
      `--exec-root=${dir}/exec`,
      `--pidfile=${dir}/dockerd.pid`,
      `--containerd-namespace=${namespace}`,
      `--containerd-plugins-namespace=${namespace}-plugins`,
      // Nothing of the machine's network is touched: containers have none.
      "--bridge=none",
      "--iptables=false",
      "--ip6tables=false",
      "--ip-forward=false",
      "--ip-masq=false",
    ],
    { env: { ...process.env, PATH }, stdio: ["ignore", "ignore", "pipe"] },
  );
  const { log } = supervise(t, child);
  const deadline = Date.now() + START_MS;
  while (!(await call(socket, "GET", "/_ping").catch(() => undefined))) {
    if (child.exitCode !== null || Date.now() > deadline) throw new Error(`dockerd: ${log()}`);
    await delay(50);
  }
  const { stdout } = await image;
  const source = `/images/create?fromSrc=-&repo=${IMAGE}`;
  await call(socket, "POST", source, createReadStream(stdout.trim()));
  return {
    host: `unix://${socket}`,
    /**
     * Starts a container that sleeps; it ends with the test.
     *
     * @param {string} name
     */
    async run(name) {
      const made = await call(socket, "POST", `/containers/create?name=${name}`, {
        Image: IMAGE,
        Cmd: ["sleep", "infinity"],
        Hostname: name,
        HostConfig: { NetworkMode: "none" },
      });
      const { Id } = JSON.parse(made);
      await call(socket, "POST", `/containers/${Id}/start`);
      defer(t, () => call(socket, "DELETE", `/containers/${Id}?force=true`));
    },
  };
}

/**
 * Asks the Engine API, and gives the answer's text.
 *
 * @param {string} socketPath
 * @param {string} method
 * @param {string} path
 * @param {object | import("node:stream").Readable} [body]
 * @returns {Promise<string>}
 */
function call(socketPath, method, path, body) {
  return new Promise((resolve, reject) => {
    const isStream = body !== undefined && "pipe" in body;
    const type = isStream ? "application/x-tar" : "application/json";
    const headers = body ? { "Content-Type": type } : {};
    const asked = request({ socketPath, method, path, headers }, (answer) => {
      let text = "";
      answer.on("data", (/** @type {Buffer} */ chunk) => {
        text += chunk;
      });
      answer.on("end", () => {
        if ((answer.statusCode ?? 500) < 300) resolve(text);
        else reject(new Error(`${method} ${path}: ${answer.statusCode} ${text}`));
      });
    });
    asked.on("error", reject);
    if (isStream) /** @type {import("node:stream").Readable} */ (body).pipe(asked);
    else asked.end(body && JSON.stringify(body));
  });
}
