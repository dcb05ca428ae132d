// Starts the real `termgw demo` and a real Chromium, and waits for what the
// terminal shows. Every wait has a condition and a limit.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { accessSync, constants, existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import { createInterface } from "node:readline";
import { after } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

export const CHROMIUM =
  process.env.CHROMIUM ?? find("chromium", "chromium-browser", "google-chrome");
export const BIN =
  process.env.TERMGW_BIN ?? fileURLToPath(new URL("../../../bin/termgw", import.meta.url));
const LIMIT_MS = 60_000;
export const CHROMIUM_FLAGS = [
  "--no-sandbox",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** @typedef {{after(undo: () => unknown): void}} Scope what is started ends with it: a test, say */

/** @type {WeakMap<Scope, (() => unknown)[]>} */
const steps = new WeakMap();

/**
 * Undoes at the scope's end, the last first, which a test's own `after` does not.
 *
 * @param {Scope} t
 * @param {() => unknown} undo
 */
export function defer(t, undo) {
  const known = steps.get(t);
  if (known) {
    known.push(undo);
    return;
  }
  const all = [undo];
  steps.set(t, all);
  t.after(async () => {
    /** @type {unknown[]} */
    const faults = [];
    for (const step of all.reverse()) {
      try {
        await step();
      } catch (fault) {
        faults.push(fault); // the other steps are due all the same
      }
    }
    if (faults.length > 0) throw faults[0];
  });
}

/** Why the browser tests cannot run here; false when they can. */
export const skip = missing();

/**
 * The first of these programs that is installed.
 *
 * @param {string[]} names
 */
export function find(...names) {
  const folders = (process.env.PATH ?? "").split(delimiter);
  for (const folder of [...folders, "/usr/sbin", "/sbin"]) {
    for (const name of names) {
      try {
        accessSync(join(folder, name), constants.X_OK);
        return join(folder, name);
      } catch {
        // Not here.
      }
    }
  }
  return undefined;
}

function missing() {
  const absent = [];
  if (!CHROMIUM || !existsSync(CHROMIUM)) {
    absent.push("no Chromium: install Debian's package chromium, or set CHROMIUM");
  }
  if (!existsSync(BIN)) absent.push(`no ${BIN}: build the command, or set TERMGW_BIN`);
  return skipFor(absent);
}

/**
 * Why tests are skipped, or false; an error where nothing may be.
 *
 * @param {string[]} absent what this machine lacks
 */
export function skipFor(absent) {
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
 * @param {number} [port] that of one before it
 * @returns {Promise<{page: string, terminal: string, tickets: string, kill: () => void}>}
 */
export async function startDemo(t, port = 0) {
  // A shell that reads no profile: somebody's own may take seconds.
  const shell = "exec bash --norc --noprofile";
  const child = spawn(BIN, ["demo", "--json", "--listen", `127.0.0.1:${port}`, "--shell", shell], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  const { ended, log } = supervise(t, child);
  const lines = createInterface({ input: child.stdout });
  const first = await Promise.race([
    once(lines, "line").then(([line]) => String(line)),
    ended.then(([code]) => Promise.reject(new Error(`termgw demo ended with ${code}: ${log()}`))),
  ]);
  return { ...JSON.parse(first), kill: () => child.kill("SIGKILL") };
}

/**
 * Keeps what a child says on stderr, and ends it with the test.
 *
 * @param {Scope} t
 * @param {import("node:child_process").ChildProcess} child
 * @param {NodeJS.Signals} [signal]
 */
export function supervise(t, child, signal = "SIGTERM") {
  let text = "";
  child.stderr?.on("data", (/** @type {Buffer} */ chunk) => {
    text += chunk;
  });
  const ended = once(child, "exit");
  defer(t, async () => {
    child.kill(signal);
    await ended;
  });
  return { ended, log: () => text };
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

/**
 * @param {Scope} t
 * @param {string[]} [flags]
 */
export async function startBrowser(t, flags = []) {
  const browser = await chromium.launch({
    executablePath: CHROMIUM ?? "",
    args: [...CHROMIUM_FLAGS, "--disable-gpu", ...flags],
  });
  defer(t, () => browser.close());
  return browser;
}

/** One browser for the tests of a file, each of which opens tabs of its own. */
export function shareBrowser() {
  /** @type {() => unknown} */
  let end = () => {};
  after(() => end());
  /** @type {ReturnType<typeof startBrowser> | undefined} */
  let started;
  return () =>
    (started ??= startBrowser({
      after(undo) {
        end = undo;
      },
    }));
}

/**
 * A tab of its own, which fails the test when it logs an error, breaks its
 * Content-Security-Policy or asks another host for anything.
 *
 * @param {import("node:test").TestContext} t
 * @param {import("playwright-core").Browser} browser
 * @param {string} url
 * @param {{expected?: RegExp} & import("playwright-core").BrowserContextOptions} [options]
 *   `expected`: console errors that the test provokes
 */
export async function openTab(t, browser, url, { expected, ...more } = {}) {
  const context = await browser.newContext({
    viewport: { width: 1000, height: 640 },
    ...more,
  });
  const tab = await context.newPage();
  const { host } = new URL(url);
  /** @type {string[]} */
  const faults = [];
  tab.on("console", (message) => {
    // Chromium reports what a policy blocks as a console error too.
    if (message.type() !== "error" && message.type() !== "warning") return;
    const text = `${message.type()}: ${message.text()}`;
    // xterm.js measures its tasks (TaskQueue.ts): on a busy machine one of them is late.
    if (text.startsWith("warning: task queue exceeded allotted deadline")) return;
    if (!expected?.test(text)) faults.push(text);
  });
  tab.on("pageerror", (error) => faults.push(`uncaught: ${error.message}`));
  for (const event of /** @type {const} */ (["request", "websocket"])) {
    tab.on(/** @type {any} */ (event), (/** @type {{url(): string}} */ asked) => {
      if (new URL(asked.url()).host !== host) faults.push(`asked for ${asked.url()}`);
    });
  }
  defer(t, async () => {
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
  const rows = await tab.locator(".xterm-rows:visible > div").allTextContents();
  return rows.map((row) => row.replaceAll("\u00a0", " ").trimEnd()).join("\n");
}

/**
 * Waits until the terminal shows `pattern`, and gives the match.
 *
 * @param {import("playwright-core").Page} tab
 * @param {RegExp} pattern
 * @param {number} [limit] milliseconds
 */
export async function sees(tab, pattern, limit = LIMIT_MS) {
  return until(() => screen(tab), pattern, limit).catch(async (fault) => {
    fault.message += `\nThe page says: ${await words(tab)}`;
    throw fault;
  });
}

/** What the page says beside the terminal. @param {import("playwright-core").Page} tab */
async function words(tab) {
  const texts = await tab.locator("#state, #panel, :focus").allTextContents();
  return texts.map((text) => text.replace(/\s+/g, " ").trim()).join("; ");
}

/**
 * Waits until an element's text matches.
 *
 * @param {import("playwright-core").Page} tab
 * @param {string} selector
 * @param {RegExp} pattern
 * @param {number} [limit] milliseconds
 */
export async function shows(tab, selector, pattern, limit = LIMIT_MS) {
  const text = async () => {
    const found = await tab.locator(selector).textContent();
    return (found ?? "").replace(/\s+/g, " ").trim();
  };
  return until(text, pattern, limit);
}

/**
 * Asks `read` until its answer matches, and gives the match.
 *
 * @param {() => string | Promise<string>} read
 * @param {RegExp} pattern
 * @param {number} [limit] milliseconds
 * @returns {Promise<RegExpExecArray>}
 */
export async function until(read, pattern, limit = LIMIT_MS) {
  const deadline = Date.now() + limit;
  for (;;) {
    const text = await read();
    const found = pattern.exec(text);
    if (found) return found;
    if (Date.now() > deadline) assert.fail(`no ${pattern} within ${limit} ms in:\n${text}`);
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
  await tab.locator(".xterm:visible .xterm-helper-textarea").focus();
  await tab.keyboard.type(line);
  await tab.keyboard.press("Enter");
}

/**
 * Presses Enter on the panel's first button, which has the focus a while after an end.
 *
 * @param {import("playwright-core").Page} tab
 */
export async function goOn(tab) {
  await until(() => tab.evaluate(() => document.activeElement?.id ?? ""), /^again$/);
  await tab.keyboard.press("Enter");
}

/**
 * Pastes, as the browser does when somebody presses its key for that.
 *
 * @param {import("playwright-core").Page} tab
 * @param {string} text
 */
export async function paste(tab, text) {
  await tab.evaluate((pasted) => {
    const data = new DataTransfer();
    data.setData("text/plain", pasted);
    document.activeElement?.dispatchEvent(
      new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }),
    );
  }, text);
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
