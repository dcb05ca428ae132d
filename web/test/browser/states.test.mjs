// Every end and every warning, as the page tells it: the gateway is played by a
// script, so that each of them can be had.
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { openTab, shows, skip, shareBrowser, until } from "./harness.mjs";
import { startPlatform } from "./platform.mjs";
import { FAILURES, startScript } from "./script.mjs";

const openBrowser = shareBrowser();

/** Of a gateway that is newer than this page, or knows better than its table. */
/** @type {typeof FAILURES} */
const NEWER = [
  { close: 4000, code: "moon_phase", retryable: true, message: "Not now.", goesOn: "itself" },
  { close: 4999, code: "moon_phase", retryable: false, message: "Never.", goesOn: "never" },
  { close: 4502, code: "backend_failed", retryable: false, message: "No role.", goesOn: "never" },
  { close: 4423, code: "revoked", retryable: true, message: "A moment.", goesOn: "itself" },
];

for (const failure of [...FAILURES, ...NEWER]) {
  test(
    `${failure.close} ${failure.code}: ${failure.goesOn}`,
    { skip, concurrency: false },
    async (t) => {
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
    },
  );
}

test("a cause that stays has a last try, and then the button for another", { skip }, async (t) => {
  const browser = await openBrowser();
  const message = "The instance's sshd takes no more logins.";
  /** @type {() => (typeof FAILURES)[0]} */
  const fails = () => ({
    close: 4502,
    code: "backend_failed",
    retryable: true,
    message,
    goesOn: "itself",
  });
  const site = await startScript(t, Array.from({ length: 11 }, fails));
  const tab = await openTab(t, browser, site.url);
  await tab.clock.install();
  await tab.goto(`${site.url}#key=first`);
  /** The time passes only while the page waits for it, and not while a try is under way. */
  const passed = async () => {
    const more = await tab.locator("#panel-more").textContent();
    if (more?.startsWith("Trying again in")) await tab.clock.runFor(1_000);
    return String(site.sessions());
  };
  await until(passed, /^11$/);
  await shows(tab, "#panel", new RegExp(`${message} Tried 11 times; to try again, reconnect.`));
  await shows(tab, "#again", /^Reconnect$/);
  await tab.clock.runFor(600_000);
  assert.equal(site.sessions(), 11);
  await tab.locator("#again").click();
  await shows(tab, "#state", /^Connected$/);
});

test("what is typed for a shell that is gone starts no other", { skip }, async (t) => {
  const browser = await openBrowser();
  const site = await startScript(t, []);
  const tab = await openTab(t, browser, site.url);
  await tab.clock.install();
  await tab.goto(`${site.url}#key=first`);
  await shows(tab, "#state", /^Connected$/);
  await shows(tab, "#round-trip", / ms$/); // no ping is open when the time jumps
  await tab.clock.pauseAt(Date.now() + 10_000);
  await tab.keyboard.type("git");
  site.say({ type: "exit", code: 137, signal: "SIGKILL" });
  site.close(1000);
  await shows(tab, "#again", /^New session$/);
  const focused = () => tab.evaluate(() => document.activeElement?.id ?? "");
  /** Pressing a button that starts a session changes the state before anything else happens. */
  const nothingStarted = async () =>
    assert.equal(await tab.locator("#state").textContent(), "The shell ended");

  await tab.keyboard.type(" commit -m x");
  await tab.keyboard.press("Enter");
  await tab.clock.runFor(900);
  await tab.keyboard.type(" ");
  await tab.clock.runFor(900);
  assert.notEqual(await focused(), "again", "not while somebody types");
  await nothingStarted();
  await tab.clock.runFor(200);
  assert.equal(await focused(), "again");

  await tab.keyboard.type("a b");
  await tab.keyboard.press("Enter");
  await nothingStarted();
  await tab.clock.runFor(1_000);
  await tab.keyboard.press("Space");
  await shows(tab, "#state", /^Connected$/);
  assert.equal(site.sessions(), 2);

  // Who goes to the button by Tab means it.
  site.say({ type: "exit", code: 0 });
  site.close(1000);
  await shows(tab, "#again", /^New session$/);
  await tab.keyboard.press("Control+Shift+E");
  for (let steps = 0; (await focused()) !== "again"; steps++) {
    assert.ok(steps < 50, "Tab reaches it");
    await tab.keyboard.press("Shift+Tab");
  }
  await tab.keyboard.press("Enter");
  await shows(tab, "#state", /^Connected$/);
});

test("a workspace that is not found may have stopped", { skip }, async (t) => {
  const browser = await openBrowser();
  const message = "There is no workspace by this address.";
  const failure = { close: 4404, code: "workspace_not_found", retryable: false, message };
  const site = await startScript(t, [{ ...failure, goesOn: "never" }]);
  const tab = await openTab(t, browser, site.url);
  await tab.goto(`${site.url}#key=first`);
  await shows(tab, "#panel-more", /^If its container stopped, start it again$/);
});

test("many tabs of one workspace are told apart", { skip }, async (t) => {
  const browser = await openBrowser();
  const site = await startScript(t, []);
  const tab = await openTab(t, browser, site.url);
  await tab.goto(`${site.url}#key=first`);
  await shows(tab, "#state", /^Connected$/);
  for (let count = 2; count <= 10; count++) {
    await tab.keyboard.press("Control+Shift+O");
    await tab.keyboard.type("data");
    await tab.keyboard.press("Enter");
    await until(async () => String(await tab.locator(".tab").count()), new RegExp(`^${count}$`));
  }
  const cut = await tab.locator(".tab .number").evaluateAll(
    (numbers) =>
      numbers.filter((number) => {
        const room = number.closest(".tab")?.getBoundingClientRect();
        const { left, right, width } = number.getBoundingClientRect();
        return room && number.textContent && (width < 5 || left < room.left || right > room.right);
      }).length,
  );
  assert.equal(cut, 0, "every number is seen whole");
  const names = await tab
    .getByRole("tabpanel", { includeHidden: true })
    .evaluateAll((panels) =>
      panels.map(
        (panel) =>
          document.getElementById(panel.getAttribute("aria-labelledby") ?? "")?.ariaLabel ?? "",
      ),
    );
  assert.equal(new Set(names).size, 10, names.join("; "));
});

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

test(
  "a mode and a target that are newer than the page: read-only, and told as it is",
  { skip },
  async (t) => {
    const browser = await openBrowser();
    const site = await startScript(t, [], { mode: "watch", target: "pod" });
    const tab = await openTab(t, browser, site.url);
    await tab.clock.install();
    await tab.goto(`${site.url}#key=first`);
    await shows(tab, "#state", /^Connected$/);
    await shows(tab, "#mode", /^read-only$/);
    await shows(tab, "#target", /^pod$/);
    await tab.locator(".xterm-helper-textarea").press("a");
    site.say({ type: "notice", code: "joined", subject: "ann", mode: "ro" });
    await shows(tab, "#panel", /^joined$/);
    assert.equal(site.typed(), "");
    // News passes; an end that is coming stays.
    await tab.clock.runFor(10_000);
    await until(async () => String(await tab.locator("#panel").isVisible()), /^false$/);
    site.say({ type: "notice", code: "draining", seconds: 60, message: "A minute left." });
    await shows(tab, "#panel", /^A minute left\.$/);
    await tab.clock.runFor(10_000);
    await shows(tab, "#panel", /^A minute left\.$/);
    await shows(tab, "#time-left", /^0:[45]\d left$/);
  },
);

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
