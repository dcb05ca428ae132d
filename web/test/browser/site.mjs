// A whole site: the platform, gateways with one database, nginx before them,
// and a line to it that can be cut.
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { defer, BIN, find, skipFor, supervise } from "./harness.mjs";
import { startLine } from "./line.mjs";
import { signTicket, startPlatform } from "./platform.mjs";
import { skipPostgres, startPostgres } from "./postgres.mjs";
import { snippets } from "./snippets.mjs";

const NGINX = find("nginx");
const START_MS = 60_000;

/** Why no site can be started here; false when one can. */
export const skipSite =
  skipFor(NGINX ? [] : ["no nginx: install Debian's package nginx-light"]) || skipPostgres;

/**
 * @param {import("./harness.mjs").Scope} t
 * @param {string} dockerHost
 * @param {{id: string, name: string, detail: string}[]} workspaces a running container is named
 *   as each of them
 * @param {object} [options]
 * @param {number} [options.replicas] how many gateways there are
 * @param {number} [options.resume] seconds for which a shell waits for its person
 */
export async function startSite(t, dockerHost, workspaces, { replicas = 2, resume = 0 } = {}) {
  const dir = await mkdtemp(join(tmpdir(), "termgw-site-"));
  defer(t, () => rm(dir, { recursive: true, force: true }));
  execFileSync(BIN, ["ticket", "keygen", "--out", join(dir, "ticket.json")], { stdio: "ignore" });
  const key = JSON.parse(await readFile(join(dir, "ticket.json"), "utf8"));
  const postgres = await startPostgres(t);
  postgres.query("CREATE TABLE workspaces (id text PRIMARY KEY, name text, instance_id text)");
  for (const { id, name } of workspaces) {
    postgres.query(`INSERT INTO workspaces VALUES ('${id}', '${name}', '')`);
  }
  /** @param {string[]} args */
  const operate = (...args) => {
    const env = { ...process.env, TERMGW_DATABASE_URL: postgres.url };
    execFileSync(BIN, args, { env, stdio: ["ignore", "ignore", "pipe"] });
  };
  operate("migrate");

  const tickets = { minted: 0, forge: false };
  const platform = await startPlatform(t, {
    workspaces,
    ticket: (wanted) => {
      tickets.minted++;
      const ticket = signTicket(key, wanted, resume);
      // Somebody else's signature: what a gateway with the wrong key set sees.
      return tickets.forge ? `${ticket.slice(0, -8)}AAAAAAAA` : ticket;
    },
  });

  const environment = {
    TERMGW_DATABASE_URL: postgres.url,
    TERMGW_TICKET_JWKS: join(dir, "ticket.jwks.json"),
    TERMGW_TRUSTED_PROXIES: "127.0.0.1",
    TERMGW_RESUME: `${resume}s`,
    TERMGW_DRAIN_TIMEOUT: "50s", // longer than any test looks at it; it is cut short
    DOCKER_HOST: dockerHost,
  };
  const gateways = await Promise.all(
    Array.from({ length: replicas }, () => startGateway(t, environment)),
  );
  const nginx = await startNginx(
    t,
    dir,
    platform,
    gateways.map(({ port }) => port),
  );
  const line = await startLine(t, nginx);
  return { url: `http://127.0.0.1:${line.port}/`, gateways, tickets, line, operate };
}

/**
 * @param {import("./harness.mjs").Scope} t
 * @param {Record<string, string>} environment
 */
async function startGateway(t, environment) {
  const [port, admin] = [await freePort(), await freePort()];
  const own = {
    TERMGW_LISTEN: `127.0.0.1:${port}`,
    TERMGW_ADVERTISE_URL: `http://127.0.0.1:${port}`,
    TERMGW_ADMIN_LISTEN: `127.0.0.1:${admin}`,
  };
  const child = spawn(BIN, ["serve"], {
    env: { ...process.env, ...environment, ...own },
    stdio: ["ignore", "ignore", "pipe"],
  });
  const { log, ended } = supervise(t, child);
  await listens(port, child, log);
  return {
    port,
    /** How many terminals were opened here. */
    started: () => log().split('"session started"').length - 1,
    /** How many connections were passed on to the gateway that has the shell. */
    async passedOn() {
      const metrics = await (await fetch(`http://127.0.0.1:${admin}/metrics`)).text();
      return Number(/^termgw_resumes_total\{outcome="passed_on"\} (\d+)$/m.exec(metrics)?.[1] ?? 0);
    },
    /** Ends it as a crash does. */
    kill: () => child.kill("SIGKILL"),
    /** Lets it drain, until all terminals have ended or `hurry` ends them. */
    drain() {
      child.kill("SIGTERM");
      return {
        async hurry() {
          child.kill("SIGTERM");
          await ended;
        },
      };
    },
  };
}

/**
 * With what docs/canvas.md asks of a proxy, and no more.
 *
 * @param {import("./harness.mjs").Scope} t
 * @param {string} dir
 * @param {number} platform
 * @param {number[]} gateways
 */
async function startNginx(t, dir, platform, gateways) {
  const port = await freePort();
  const paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
  await writeFile(
    join(dir, "nginx.conf"),
    `
daemon off;
${process.getuid?.() === 0 ? "user root;" : ""}
pid ${dir}/nginx.pid;
error_log stderr warn;
events {}
http {
  access_log off;
  ${paths.map((path) => `${path}_temp_path ${dir}/${path};`).join("\n  ")}
  upstream gateways {
    ${gateways.map((gateway) => `server 127.0.0.1:${gateway} max_fails=0;`).join("\n    ")}
  }
  server {
    listen 127.0.0.1:${port};
    location / {
      proxy_pass http://127.0.0.1:${platform};
    }
    ${(await snippets()).get("nginx.conf")}
  }
}
`,
  );
  const child = spawn(NGINX ?? "", ["-p", dir, "-c", join(dir, "nginx.conf"), "-e", "stderr"], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  const { log } = supervise(t, child);
  await listens(port, child, log);
  return port;
}

/**
 * A port on which nothing listens. It is below those that the kernel gives to outgoing connections (ip_local_port_range in
 * ip(7), from 32768 by default): none begins there before the server listens.
 *
 * @returns {Promise<number>}
 */
async function freePort() {
  for (;;) {
    const port = 16_384 + Math.floor(16_384 * Math.random());
    const server = createServer();
    const isFree = once(server, "listening").then(
      () => true,
      () => false,
    );
    server.listen(port, "127.0.0.1");
    if (!(await isFree)) continue;
    server.close();
    await once(server, "close");
    return port;
  }
}

/**
 * @param {number} port
 * @param {import("node:child_process").ChildProcess} child
 * @param {() => string} log
 */
async function listens(port, child, log) {
  const deadline = Date.now() + START_MS;
  for (;;) {
    const socket = connect(port, "127.0.0.1");
    const answered = await Promise.race([
      once(socket, "connect").then(
        () => true,
        () => false,
      ),
      once(socket, "error").then(() => false),
    ]);
    socket.destroy();
    if (answered) return;
    if (child.exitCode !== null || Date.now() > deadline) {
      throw new Error(`${child.spawnfile} does not listen on ${port}: ${log()}`);
    }
    await delay(30);
  }
}
