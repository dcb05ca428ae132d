// Starts the real `termgw demo` and a real Chromium, and waits for what the
// terminal shows. Nothing here sleeps: every wait has a condition and a limit.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const CHROMIUM = "/usr/bin/chromium";
const BIN =
  process.env.TERMGW_BIN ?? fileURLToPath(new URL("../../../bin/termgw", import.meta.url));
const LIMIT_MS = 15_000;

/** @typedef {{after(undo: () => unknown): void}} Scope what is started ends with it: a test, say */

/** Why the browser tests cannot run here; false when they can. */
export const skip = missing();

function missing() {
  const absent = [];
  if (!existsSync(CHROMIUM)) absent.push(`no ${CHROMIUM}: install Debian's package chromium`);
  if (!existsSync(BIN)) absent.push(`no ${BIN}: build the command, or set TERMGW_BIN`);
  if (absent.length === 0) return false;
  const reason = absent.join("; ");
  if (process.env.TERMGW_TEST_REQUIRE === "1") throw new Error(reason);
  return reason;
}

/**
 * Starts `termgw demo` on a free port; it ends with the test, or at `kill` as
 * by a crash.
 *
 * @param {Scope} t
 * @returns {Promise<{page: string, terminal: string, tickets: string, kill: () => void}>}
 */
export async function startDemo(t) {
  const child = spawn(BIN, ["demo", "--json", "--listen", "127.0.0.1:0"], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  let log = "";
  child.stderr.on("data", (/** @type {Buffer} */ chunk) => {
    log += chunk;
  });
  const ended = once(child, "exit");
  t.after(async () => {
    child.kill("SIGTERM");
    await ended;
  });
  const lines = createInterface({ input: child.stdout });
  const first = await Promise.race([
    once(lines, "line").then(([line]) => String(line)),
    ended.then(([code]) => Promise.reject(new Error(`termgw demo ended with ${code}: ${log}`))),
  ]);
  return { ...JSON.parse(first), kill: () => child.kill("SIGKILL") };
}

/**
 * Asks the demo platform for a ticket of the workspace `host`, as a client
 * that is not the page.
 *
 * @param {{tickets: string}} demo
 * @returns {Promise<string>}
 */
export async function mintTicket(demo) {
  const answer = await fetch(demo.tickets, {
    method: "POST",
    body: JSON.stringify({ workspace: "host" }),
  });
  assert.equal(answer.status, 200, "the demo platform gives a ticket");
  const { ticket } = /** @type {{ticket: string}} */ (await answer.json());
  return ticket;
}

/** @param {Scope} t */
export async function startBrowser(t) {
  const browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
  t.after(() => browser.close());
  return browser;
}

/**
 * A tab of its own, which fails the test when it logs an error, breaks its
 * Content-Security-Policy or asks another host for anything.
 *
 * @param {import("node:test").TestContext} t
 * @param {import("playwright-core").Browser} browser
 * @param {string} url
 * @param {{expected?: RegExp}} [options] `expected`: console errors that the test provokes
 */
export async function openTab(t, browser, url, { expected } = {}) {
  const context = await browser.newContext({ viewport: { width: 1000, height: 640 } });
  const tab = await context.newPage();
  const { host } = new URL(url);
  /** @type {string[]} */
  const faults = [];
  tab.on("console", (message) => {
    // Chromium reports what a policy blocks as a console error too.
    if (message.type() !== "error" && message.type() !== "warning") return;
    const text = `${message.type()}: ${message.text()}`;
    if (!expected?.test(text)) faults.push(text);
  });
  tab.on("pageerror", (error) => faults.push(`uncaught: ${error.message}`));
  for (const event of /** @type {const} */ (["request", "websocket"])) {
    tab.on(/** @type {any} */ (event), (/** @type {{url(): string}} */ asked) => {
      if (new URL(asked.url()).host !== host) faults.push(`asked for ${asked.url()}`);
    });
  }
  t.after(async () => {
    await context.close();
    assert.deepEqual(faults, [], "nothing wrong in the console, no request to another host");
  });
  return tab;
}

/**
 * The terminal's visible text, a line a row.
 *
 * @param {import("playwright-core").Page} tab
 */
export async function screen(tab) {
  const rows = await tab.locator(".xterm-rows > div").allTextContents();
  return rows.map((row) => row.replaceAll("\u00a0", " ").trimEnd()).join("\n");
}

/**
 * Waits until the terminal shows `pattern`, and gives the match.
 *
 * @param {import("playwright-core").Page} tab
 * @param {RegExp} pattern
 */
export async function sees(tab, pattern) {
  return until(() => screen(tab), pattern);
}

/**
 * Waits until an element's text matches.
 *
 * @param {import("playwright-core").Page} tab
 * @param {string} selector
 * @param {RegExp} pattern
 */
export async function shows(tab, selector, pattern) {
  return until(async () => (await tab.locator(selector).textContent())?.trim() ?? "", pattern);
}

/**
 * Asks `read` until its answer matches, and gives the match.
 *
 * @param {() => string | Promise<string>} read
 * @param {RegExp} pattern
 * @returns {Promise<RegExpExecArray>}
 */
export async function until(read, pattern) {
  const deadline = Date.now() + LIMIT_MS;
  for (;;) {
    const text = await read();
    const found = pattern.exec(text);
    if (found) return found;
    if (Date.now() > deadline) assert.fail(`no ${pattern} within ${LIMIT_MS} ms in:\n${text}`);
    await delay(20);
  }
}

/**
 * Types a line into the terminal, as a person does, and Enter.
 *
 * @param {import("playwright-core").Page} tab
 * @param {string} line
 */
export async function type(tab, line) {
  await tab.locator(".xterm-helper-textarea").focus();
  await tab.keyboard.type(line);
  await tab.keyboard.press("Enter");
}

/** @param {number} pid */
export function lives(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
