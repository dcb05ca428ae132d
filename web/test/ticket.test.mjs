// docs/examples/ticket.ts, which docs/tickets.md shows: its types, and that the
// gateway takes what it mints.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { copyFile, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { BIN, defer, skipFor } from "./browser/harness.mjs";

const web = fileURLToPath(new URL("..", import.meta.url));
const folder = `${web}build/ticket/`; // below web, where jose is
const skip = skipFor(existsSync(BIN) ? [] : [`no ${BIN}: build the command, or set TERMGW_BIN`]);

before(async () => {
  await rm(folder, { recursive: true, force: true });
  await mkdir(folder, { recursive: true });
  await copyFile(`${web}../docs/examples/ticket.ts`, `${folder}ticket.ts`);
  await writeFile(
    `${folder}tsconfig.json`,
    JSON.stringify({ extends: "../../tsconfig.json", include: ["."] }),
  );
});

test("its types are right", () => {
  try {
    execFileSync(`${web}node_modules/.bin/tsc`, ["-p", folder], { encoding: "utf8" });
  } catch (cause) {
    assert.fail(/** @type {{stdout: string}} */ (cause).stdout);
  }
});

test("the gateway takes its tickets, for each kind of key", { skip }, async (t) => {
  await build({
    entryPoints: [`${folder}ticket.ts`],
    outfile: `${folder}ticket.mjs`,
    bundle: true,
    platform: "node",
    format: "esm",
    target: "node20",
    logLevel: "warning",
  });
  const { openKey, ticketFor } = await import(`${folder}ticket.mjs`);
  const keys = await mkdtemp(join(tmpdir(), "termgw-ticket-"));
  defer(t, () => rm(keys, { recursive: true }));
  for (const alg of ["EdDSA", "ES256", "RS256"]) {
    const out = join(keys, `${alg}.json`);
    execFileSync(BIN, ["ticket", "keygen", "--alg", alg, "--out", out]);
    const ticket = await ticketFor(await openKey(out), "ann@example.com", "ws-1");
    const set = join(keys, `${alg}.jwks.json`);
    const verify = ["ticket", "verify", "--jwks", set, "--issuer", "https://platform.example"];
    const claims = JSON.parse(execFileSync(BIN, verify, { input: ticket, encoding: "utf8" }));
    assert.deepEqual([claims.sub, claims.workspace_id], ["ann@example.com", "ws-1"], alg);
  }
});
