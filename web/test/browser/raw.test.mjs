// Raw mode, with two clients that know nothing of termgw.v1.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { serveFixture } from "./fixture.mjs";
import {
  defer,
  mintTicket,
  openTab,
  sees,
  skip,
  shareBrowser,
  startDemo,
  type,
  until,
} from "./harness.mjs";

const openBrowser = shareBrowser();

test("xterm.js's AttachAddon works as today, in raw mode", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await openBrowser();
  const terminal = new URL(demo.terminal);
  terminal.search = String(
    new URLSearchParams({ cols: "100", rows: "30", ticket: await mintTicket(demo) }),
  );
  const tab = await openTab(t, browser, demo.page);
  const page = await serveFixture(
    tab,
    fileURLToPath(new URL("raw.ts", import.meta.url)),
    demo.page,
  );
  page.searchParams.set("terminal", terminal.href);
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
  defer(t, async () => {
    child.kill("SIGTERM");
    await ended;
  });
  return { output: () => text };
}
