// What Chromium itself does to a tab whose shell waits: it duplicates the tab, discards it to save
// memory, or loses its process. An extension of the test's own has Chromium do the first two.
import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { connect, openPage, startChromium, targets } from "./chromium.mjs";
import { defer, skip, startDemo, until } from "./harness.mjs";

/** @typedef {import("./chromium.mjs").Tab} Tab */

const MANIFEST = {
  manifest_version: 3,
  name: "tabs",
  version: "1",
  permissions: ["tabs"],
  background: { service_worker: "worker.js" },
};

/**
 * A shell in the demo's page.
 *
 * @param {import("node:test").TestContext} t
 */
async function openShell(t) {
  const dir = await mkdtemp(join(tmpdir(), "termgw-tabs-"));
  defer(t, () => rm(dir, { recursive: true, force: true }));
  await writeFile(join(dir, "manifest.json"), JSON.stringify(MANIFEST));
  await writeFile(join(dir, "worker.js"), "");
  const demo = await startDemo(t);
  const flags = ["--headless=new", "--disable-gpu", `--load-extension=${dir}`];
  const chromium = await startChromium(t, flags);
  /** @type {Set<string>} the pages that are known */
  const known = new Set();
  /** The page of the demo that is new, once there is one. */
  const newTab = async () => {
    /** @type {string | undefined} */
    let address;
    const look = async () => {
      for (const { type, url, id, webSocketDebuggerUrl } of await targets(chromium)) {
        if (type !== "page" || !url.startsWith(new URL(demo.page).origin) || known.has(id))
          continue;
        known.add(id);
        address = webSocketDebuggerUrl;
      }
      return address ?? "";
    };
    const [found] = await until(look, /.+/);
    return connect(t, found);
  };
  const opened = await openPage(t, chromium, demo.page);
  opened.close();
  const tab = await newTab();
  const worker = async () => {
    const all = await targets(chromium);
    return all.find(({ url }) => url.endsWith("/worker.js"))?.webSocketDebuggerUrl ?? "";
  };
  const [address] = await until(worker, /.+/);
  const extension = await connect(t, address);
  /** @param {"duplicate" | "discard" | "show"} what is done to the tab */
  const have = (what) =>
    extension.evaluate(async (done) => {
      const { tabs } = /** @type {any} */ (globalThis).chrome;
      const [{ id }] = await tabs.query({ url: "http://127.0.0.1/*" });
      if (done === "duplicate") await tabs.duplicate(id);
      if (done === "show") await tabs.update(id, { active: true });
      if (done !== "discard") return;
      await tabs.create({ url: "about:blank", active: true });
      await tabs.discard(id);
    }, what);
  return { tab, newTab, have, dir };
}

/** @param {Tab} tab */
const lines = async (tab) => {
  const read = () => {
    const rows = [...document.querySelectorAll(".terminal-box:not([hidden]) .xterm-rows > div")];
    const texts = rows.map((row) => (row.textContent ?? "").replaceAll("\u00a0", " ").trimEnd());
    return [document.querySelector("#state")?.textContent, ...texts].join("\n");
  };
  return tab.evaluate(read, undefined).catch(() => "between two pages");
};
/** @type {(tab: Tab, pattern: RegExp) => Promise<RegExpExecArray>} */
const shows = (tab, pattern) => until(() => lines(tab), pattern);
/** @type {(tab: Tab, line: string) => Promise<void>} */
const type = async (tab, line) => {
  await tab.send("Page.bringToFront"); // a tab that is not shown has no keys
  await tab.evaluate(() => {
    const keys = ".terminal-box:not([hidden]) .xterm-helper-textarea";
    /** @type {HTMLElement | null} */ (document.querySelector(keys))?.focus();
  }, undefined);
  await tab.send("Input.insertText", { text: line });
  const enter = { key: "Enter", code: "Enter", windowsVirtualKeyCode: 13 };
  await tab.send("Input.dispatchKeyEvent", { ...enter, text: "\r", type: "keyDown" });
  await tab.send("Input.dispatchKeyEvent", { ...enter, type: "keyUp" });
};
/** @param {Tab} tab */
const pidOf = async (tab) => {
  await shows(tab, /^Connected\n/);
  await type(tab, "PS1='> '; clear; echo pid:$$");
  const [, pid] = await shows(tab, /^Connected\npid:(\d+)\n>\n/);
  return String(pid);
};

test("a tab that is duplicated opens a shell of its own", { skip }, async (t) => {
  const { tab, newTab, have } = await openShell(t);
  const pid = await pidOf(tab);
  await have("duplicate");
  const copy = await newTab();
  const other = await pidOf(copy);
  assert.notEqual(other, pid);
  // Each goes on, and has its own after a reload.
  for (const [page, shell] of /** @type {const} */ ([
    [tab, pid],
    [copy, other],
  ])) {
    await type(page, "echo still:$$");
    await shows(page, new RegExp(`^Connected\n[^]*^still:${shell}$`, "m"));
    await page.evaluate(() => document.body.replaceChildren(), undefined); // so that it is not seen again
    await page.send("Page.reload");
    await shows(page, /^Connected\n/);
    await type(page, "echo reloaded:$$");
    await shows(page, new RegExp(`^Connected\n[^]*^reloaded:${shell}$`, "m"));
  }
});

test("a tab that is discarded comes back to its shell and its screen", { skip }, async (t) => {
  const { tab, newTab, have, dir } = await openShell(t);
  const pid = await pidOf(tab);
  const wait = `until [ -e ${dir}/go ]; do sleep 0.05; done`;
  await type(tab, `clear; seq 50; ${wait}; echo mean''while`);
  await shows(tab, /^50\n/m);
  tab.close();
  await have("discard");
  await writeFile(join(dir, "go"), "");
  await have("show");
  const back = await newTab();
  await shows(back, /^Connected\n[^]*^48\n49\n50\nmeanwhile\n>\n*$/m);
  await type(back, "echo again:$$");
  await shows(back, new RegExp(`^again:${pid}$`, "m"));
});

test("a tab whose process died comes back to its shell", { skip }, async (t) => {
  const { tab } = await openShell(t);
  const pid = await pidOf(tab);
  await tab.send("Inspector.enable");
  const crashed = tab.happens("Inspector.targetCrashed");
  const crash = assert.rejects(tab.send("Page.crash"), /crashed/); // once there is another process
  await crashed;
  await tab.send("Page.reload");
  await crash;
  await shows(tab, new RegExp(`^Connected\npid:${pid}\n>\n`));
  await type(tab, "echo again:$$");
  await shows(tab, new RegExp(`^again:${pid}$`, "m"));
});
