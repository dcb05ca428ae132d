// A Postgres cluster that nobody else uses, in a folder that only its account and root can enter:
// it is talked to by a socket in there, and needs no password.
import { execFileSync, spawn } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { chown, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { defer, find, skipFor, supervise } from "./harness.mjs";

const START_MS = 60_000;
const INITDB = find("initdb") ?? newest("/usr/lib/postgresql", "bin/initdb");

/** Why no cluster can be started here; false when one can. */
export const skipPostgres = skipFor([
  ...(INITDB && find("psql") ? [] : ["no Postgres: install Debian's package postgresql"]),
  ...(process.getuid?.() === 0 ? [] : ["Postgres of an account of its own needs root"]),
]);

/**
 * Debian keeps a folder for each version, out of PATH.
 *
 * @param {string} folder
 * @param {string} program
 */
function newest(folder, program) {
  const versions = existsSync(folder) ? readdirSync(folder) : [];
  const [found] = versions.sort((a, b) => Number(b) - Number(a));
  return found && join(folder, found, program);
}

/** @param {import("./harness.mjs").Scope} t */
export async function startPostgres(t) {
  const account = (/** @type {string} */ of) =>
    Number(execFileSync("id", [of, "postgres"], { encoding: "utf8" }));
  const [uid, gid] = [account("-u"), account("-g")];
  const dir = await mkdtemp(join(tmpdir(), "termgw-postgres-"));
  defer(t, () => rm(dir, { recursive: true, force: true }));
  await chown(dir, uid, gid);
  const data = join(dir, "data");
  const made = [`--pgdata=${data}`, "--username=postgres", "--auth=trust", "--no-sync"];
  execFileSync(INITDB ?? "", [...made, "--encoding=UTF8", "--locale=C"], {
    uid,
    gid,
    cwd: dir,
    stdio: ["ignore", "ignore", "pipe"],
  });
  const settings = ["listen_addresses=", "fsync=off", "max_connections=100"];
  const server = join(dirname(INITDB ?? ""), "postgres");
  const child = spawn(server, ["-D", data, "-k", dir, ...settings.flatMap((one) => ["-c", one])], {
    uid,
    gid,
    cwd: dir,
    stdio: ["ignore", "ignore", "pipe"],
  });
  const { log } = supervise(t, child, "SIGINT"); // its fast shutdown
  const url = `postgres:///postgres?host=${dir}&user=postgres&sslmode=disable`;
  /** @param {string} statement */
  const query = (statement) => {
    const options = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1"];
    execFileSync("psql", [...options, `--host=${dir}`, "--username=postgres", "-c", statement], {
      stdio: ["ignore", "ignore", "pipe"],
    });
  };
  const deadline = Date.now() + START_MS;
  for (;;) {
    try {
      query("SELECT 1");
      return { url, query };
    } catch (cause) {
      if (child.exitCode !== null || Date.now() > deadline) throw new Error(log(), { cause });
      await delay(100);
    }
  }
}
