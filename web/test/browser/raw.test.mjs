// Raw mode, with two clients that know nothing of termgw.v1.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import {
  mintTicket,
  openTab,
  sees,
  skip,
  startBrowser,
  startDemo,
  type,
  until,
} from "./harness.mjs";

/**
 * Puts the fixture on the demo's own origin, where a canvas would be; only its
 * files come from here, the WebSocket goes to the gateway. Chromium does not
 * count a page that a test made up as a local one, so it has to be allowed to
 * reach this machine.
 *
 * @param {import("playwright-core").Page} tab
 */
async function serveFixture(tab) {
  await tab.context().grantPermissions(["local-network-access"]);
  const here = fileURLToPath(new URL(".", import.meta.url));
  const { outputFiles } = await build({
    entryPoints: [`${here}raw.ts`, `${here}raw.css`],
    outdir: here,
    bundle: true,
    format: "esm",
    write: false,
  });
  const html = await readFile(`${here}raw.html`, "utf8");
  await tab.route("**/raw.html*", (route) =>
    route.fulfill({ contentType: "text/html", body: html }),
  );
  for (const { path, text } of outputFiles) {
    const contentType = path.endsWith(".css") ? "text/css" : "text/javascript";
    await tab.route(`**/${basename(path)}`, (route) => route.fulfill({ contentType, body: text }));
  }
}

test("xterm.js's AttachAddon works as today, in raw mode", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await startBrowser(t);
  const terminal = new URL(demo.terminal);
  terminal.search = String(
    new URLSearchParams({ cols: "100", rows: "30", ticket: await mintTicket(demo) }),
  );
  const page = new URL("/raw.html", demo.page);
  page.hash = "";
  page.searchParams.set("terminal", terminal.href);

  const tab = await openTab(t, browser, page.href);
  await serveFixture(tab);
  await tab.goto(page.href);
  await until(
    () => tab.evaluate(() => document.body.dataset.protocol ?? "connecting"),
    /^$/, // open, and no subprotocol was chosen
  );
  await type(tab, "echo $((6*7)) größe 漢字");
  await sees(tab, /^42 größe 漢字$/m);
  await type(tab, 'echo "now:$(stty size)"');
  await sees(tab, /^now:30 100$/m);
  await type(tab, "exit");
  await until(() => tab.evaluate(() => document.body.dataset.closed ?? "open"), /^1000$/);
});

test("a ticket used twice is told as one line of text", { skip }, async (t) => {
  const demo = await startDemo(t);
  const ticket = await mintTicket(demo);
  const first = wscat(t, demo, ticket);
  await until(first.output, /42\r?\n/);
  const second = wscat(t, demo, ticket);
  const [line] = await until(second.output, /^.*ticket.*$/im);
  assert.doesNotMatch(line, /[{}]/, "a sentence, no JSON");
  assert.ok(!line.includes(ticket), "the ticket is not repeated");
});

test("wscat opens a terminal, runs a command and sees its output", { skip }, async (t) => {
  const demo = await startDemo(t);
  const client = wscat(t, demo, await mintTicket(demo));
  await until(client.output, /^42\r?$/m);
});

/**
 * wscat, a client that this project did not write, with one command to run.
 *
 * @param {import("node:test").TestContext} t
 * @param {{terminal: string}} demo
 * @param {string} ticket
 */
function wscat(t, demo, ticket) {
  const url = new URL(demo.terminal);
  url.searchParams.set("ticket", ticket);
  const bin = fileURLToPath(new URL("../../node_modules/wscat/bin/wscat", import.meta.url));
  // --wait -1: stay until the test ends it. stdin stays open for the same reason.
  const args = [bin, "--connect", url.href, "--wait", "-1", "--execute", "echo $((6*7))\r"];
  const child = spawn(process.execPath, args, { stdio: ["pipe", "pipe", "pipe"] });
  let text = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (/** @type {Buffer} */ chunk) => {
      text += chunk;
    });
  }
  const ended = once(child, "exit");
  t.after(async () => {
    child.kill("SIGTERM");
    await ended;
  });
  return { output: () => text };
}
