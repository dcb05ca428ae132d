// A screen that is kept and drawn again, in the middle of any output: cell by cell that of a
// terminal that went on.
import assert from "node:assert/strict";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { serveFixture } from "./fixture.mjs";
import { openTab, skip, shareBrowser } from "./harness.mjs";

const openBrowser = shareBrowser();
const SEEDS = Number(process.env.TERMGW_SEEDS ?? 60);

test("a screen that is drawn again is the same, and goes on as the other", { skip }, async (t) => {
  const browser = await openBrowser();
  const origin = "http://127.0.0.1/";
  const tab = await openTab(t, browser, origin);
  const page = await serveFixture(
    tab,
    fileURLToPath(new URL("screen.ts", import.meta.url)),
    origin,
  );
  await tab.goto(page.href);
  /** @type {[seed: number, faults: string[]][]} */
  const different = [];
  for (let seed = 1; seed <= SEEDS; seed++) {
    const faults = await tab.evaluate((n) => window.check(n), seed);
    if (faults.length > 0) different.push([seed, faults]);
  }
  assert.deepEqual(different, []);
});
