// Every end and every warning, as the page tells it: the gateway is played by a
// script, so that each of them can be had.
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { openTab, shows, skip, shareBrowser, until } from "./harness.mjs";
import { startPlatform } from "./platform.mjs";
import { FAILURES, startScript } from "./script.mjs";

const openBrowser = shareBrowser();

for (const failure of FAILURES) {
  test(`${failure.code}: ${failure.goesOn}`, { skip, concurrency: false }, async (t) => {
    const browser = await openBrowser();
    const site = await startScript(t, [failure]);
    const tab = await openTab(t, browser, site.url);
    await tab.goto(`${site.url}#key=first`);
    await shows(tab, "#panel", new RegExp(failure.message.slice(0, 40)));
    switch (failure.goesOn) {
      case "never":
        await shows(tab, "#again", /^New session$/);
        await delay(1_500);
        assert.equal(site.sessions(), 1);
        await tab.locator("#again").click();
        break;
      case "typing":
        await shows(tab, "#panel-more", /^Press a key in the terminal to go on/);
        await delay(1_500);
        assert.equal(site.sessions(), 1);
        await tab.locator(".xterm-helper-textarea").press("a");
        break;
      default:
        await until(() => String(site.sessions()), /^2$/);
    }
    await shows(tab, "#state", /^Connected$/);
    await until(async () => String(await tab.locator("#panel").isVisible()), /^false$/);
  });
}

test("a notice counts down, and typing takes back the idle one", { skip }, async (t) => {
  const browser = await openBrowser();
  const site = await startScript(t, []);
  const tab = await openTab(t, browser, site.url);
  await tab.goto(`${site.url}#key=first`);
  await shows(tab, "#state", /^Connected$/);
  await shows(tab, "#time-left", /^29 min if idle$/);
  const message = "This terminal closes in 60 seconds. Press a key to keep it.";
  site.say({ type: "notice", code: "idle_timeout", seconds: 60, message });
  await shows(tab, "#panel", /closes in 60 seconds/);
  await shows(tab, "#time-left", /^0:5\d if idle$/);
  await tab.locator(".xterm-helper-textarea").press("a");
  await until(async () => String(await tab.locator("#panel").isVisible()), /^false$/);
  await shows(tab, "#time-left", /^29 min if idle$/);
});

test("a platform that gives no ticket is not asked again", { skip }, async (t) => {
  const browser = await openBrowser();
  let asked = 0;
  const port = await startPlatform(t, {
    workspaces: [{ id: "box", name: "Box", detail: "" }],
    ticket: () => {
      asked++;
      return "no ticket";
    },
  });
  const url = `http://127.0.0.1:${port}/`;
  const tab = await openTab(t, browser, url);
  await tab.goto(`${url}#key=first`);
  await shows(tab, "#panel", /What the platform gave is no ticket/);
  await delay(1_500);
  assert.equal(asked, 1);
});
