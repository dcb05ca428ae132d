// Takes the pictures of the page that the documentation shows, one of each state:
//   node test/screenshot.mjs FOLDER
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { shows, skip, startBrowser, until } from "./browser/harness.mjs";
import { FAILURES, startScript } from "./browser/script.mjs";

const [folder] = process.argv.slice(2);
if (!folder) {
  console.error("usage: node test/screenshot.mjs FOLDER");
  process.exit(2);
}
if (skip) {
  console.error(skip);
  process.exit(1);
}
await mkdir(folder, { recursive: true });

const PROMPT = "\x1b[1;36m~/shop\x1b[0m \x1b[1;32m❯\x1b[0m ";
const PRINTS = [
  `${PROMPT}git log --oneline --graph | head -5`,
  "* \x1b[33m8f2c1e7\x1b[0m (\x1b[1;36mHEAD -> \x1b[1;32mmain\x1b[0m, \x1b[1;31morigin/main\x1b[0m) cart: keep what was in it after a login",
  "*   \x1b[33m03ad9b4\x1b[0m Merge branch 'checkout'",
  "\x1b[31m|\x1b[32m\\\x1b[0m",
  "\x1b[31m|\x1b[0m * \x1b[33m5d77f02\x1b[0m checkout: one page instead of three",
  "\x1b[31m|\x1b[0m * \x1b[33mc9e0a13\x1b[0m checkout: addresses are asked once",
  `${PROMPT}npm test`,
  "",
  "\x1b[32m✔\x1b[0m cart › survives a login \x1b[2m(41 ms)\x1b[0m",
  "\x1b[32m✔\x1b[0m checkout › one page \x1b[2m(112 ms)\x1b[0m",
  "\x1b[33m◦\x1b[0m checkout › größe of the parcel \x1b[2mskipped\x1b[0m",
  "\x1b[31m✘\x1b[0m checkout › asks for an address once",
  "    \x1b[31mexpected 1 question, got 2\x1b[0m  \x1b[4mtest/checkout.test.js:31\x1b[0m",
  "",
  "\x1b[1m3 passed\x1b[0m, \x1b[31m1 failed\x1b[0m in 0.4 s",
  PROMPT,
].join("\r\n");

/** @type {() => unknown} */
let end = () => {};
const scope = {
  /** @param {() => unknown} undo */
  after(undo) {
    end = undo;
  },
};

/** @typedef {import("playwright-core").Page} Page */
/** @typedef {Awaited<ReturnType<typeof startScript>>} Site */
/**
 * @typedef {object} Picture
 * @property {string} name
 * @property {"dark" | "light"} scheme
 * @property {boolean} [phone]
 * @property {import("./browser/script.mjs").Failure[]} [failures]
 * @property {Parameters<typeof startScript>[2]} [session]
 * @property {(tab: Page) => Promise<unknown>} [before]
 * @property {(tab: Page, site: Site) => Promise<unknown>} ready
 */

const failure = (/** @type {string} */ code) => FAILURES.filter((one) => one.code === code);
const open = (/** @type {Page} */ tab) => shows(tab, "#round-trip", / ms$/);

const paused = (/** @type {Page} */ tab) => shows(tab, "#again", /^Reconnect$/);
const ended = (/** @type {Page} */ tab) =>
  until(() => tab.evaluate(() => document.activeElement?.id ?? ""), /^again$/);

/** @type {Picture[]} */
const pictures = [
  {
    name: "connecting-light",
    scheme: "light",
    session: { silent: true },
    ready: (tab) => shows(tab, "#state", /^Connecting…$/),
  },
  { name: "open-dark", scheme: "dark", ready: open },
  { name: "open-light", scheme: "light", ready: open },
  { name: "phone-dark", scheme: "dark", phone: true, ready: open },
  { name: "phone-light", scheme: "light", phone: true, ready: open },
  {
    name: "picker-dark",
    scheme: "dark",
    async ready(tab) {
      await open(tab);
      await tab.keyboard.press("Control+Shift+O");
      await tab.keyboard.press("ArrowDown");
      await tab.keyboard.press("Enter");
      await open(tab);
      await tab.keyboard.press("Control+Shift+O");
      await tab.keyboard.press("ArrowDown");
    },
  },
  {
    name: "find-light",
    scheme: "light",
    async ready(tab) {
      await open(tab);
      await tab.keyboard.press("Control+Shift+F");
      await tab.keyboard.type("checkout");
      await shows(tab, "#find-count", / of 7$/);
    },
  },
  {
    name: "settings-dark",
    scheme: "dark",
    async ready(tab) {
      await open(tab);
      await tab.locator("#settings-open").click();
    },
  },
  {
    name: "read-only-dark",
    scheme: "dark",
    session: { mode: "ro", target: "remote" },
    ready: open,
  },
  {
    name: "notice-light",
    scheme: "light",
    async ready(tab, site) {
      await open(tab);
      site.say({
        type: "notice",
        code: "idle_timeout",
        seconds: 60,
        message:
          "Nothing was typed for a while: this terminal closes in 60 seconds. Press a key to keep it.",
      });
      await shows(tab, "#panel", /60 seconds/);
    },
  },
  {
    name: "draining-dark",
    scheme: "dark",
    async ready(tab, site) {
      await open(tab);
      site.say({
        type: "notice",
        code: "draining",
        seconds: 30,
        message:
          "This gateway goes away for an update and closes this terminal in 30 seconds. What runs in it ends then: save your work. A new terminal opens on another gateway.",
      });
      await shows(tab, "#panel", /30 seconds/);
    },
  },
  {
    name: "reconnecting-light",
    scheme: "light",
    async ready(tab, site) {
      // The longest first wait, so that the picture is in time.
      await tab.evaluate(() => {
        Math.random = () => 0.99;
      });
      await open(tab);
      site.cut();
      await shows(tab, "#panel", /Trying again in/);
    },
  },
  {
    name: "exit-dark",
    scheme: "dark",
    async ready(tab, site) {
      await open(tab);
      site.say({ type: "exit", code: 3 });
      site.close(1000);
      await shows(tab, "#panel", /status 3/);
      await ended(tab);
    },
  },
  { name: "revoked-light", scheme: "light", failures: failure("revoked"), ready: ended },
  {
    name: "container-not-running-dark",
    scheme: "dark",
    failures: failure("container_not_running"),
    ready: ended,
  },
  {
    name: "backend-failed-light",
    scheme: "light",
    failures: failure("backend_failed"),
    // The longest first wait, so that the picture is in time.
    before: (tab) =>
      tab.addInitScript(() => {
        Math.random = () => 0.99;
      }),
    ready: (tab) => shows(tab, "#panel", /Step: docker/),
  },
  { name: "idle-timeout-dark", scheme: "dark", failures: failure("idle_timeout"), ready: paused },
];

try {
  const browser = await startBrowser(scope);
  for (const { name, scheme, phone, failures = [], session, before, ready } of pictures) {
    const site = await startScript(scope, failures, { prints: PRINTS, ...session });
    const context = await browser.newContext({
      colorScheme: scheme,
      viewport: phone ? { width: 390, height: 760 } : { width: 1080, height: 640 },
      ...(phone && { isMobile: true, hasTouch: true, deviceScaleFactor: 2 }),
    });
    const tab = await context.newPage();
    await before?.(tab);
    await tab.goto(`${site.url}#key=first`);
    await ready(tab, site);
    await tab.screenshot({ path: join(folder, `${name}.png`), animations: "disabled" });
    await context.close();
  }
} finally {
  await end();
}
