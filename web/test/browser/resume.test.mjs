// A shell that outlives its connection: the real gateway, a real browser, and a line that is cut.
import { test } from "node:test";
import { openTab, sees, shows, skip, startBrowser, startDemo, type } from "./harness.mjs";
import { startLine } from "./line.mjs";

const EXPECTED = /ERR_CONNECTION|WebSocket connection|net::ERR/;

/**
 * The demo, and a browser that reaches it over a line.
 *
 * @param {import("node:test").TestContext} t
 */
async function startOverLine(t) {
  const demo = await startDemo(t);
  const { host, port } = new URL(demo.page);
  const line = await startLine(t, Number(port));
  const map = `--host-resolver-rules=MAP ${host} 127.0.0.1:${line.port}`;
  const browser = await startBrowser(t, [map]);
  return { demo, line, browser };
}

/** @param {import("playwright-core").Page} tab */
async function settle(tab) {
  await shows(tab, "#state", /^Connected$/);
  await type(tab, "PS1='> '; clear; echo pid:$$");
  const [, pid] = await sees(tab, /^pid:(\d+)$/m);
  return Number(pid);
}

for (const how of /** @type {const} */ (["cut", "finish", "lose"])) {
  test(
    `what is typed while the line is away (${how}) comes once, to the same shell`,
    { skip },
    async (t) => {
      const { demo, line, browser } = await startOverLine(t);
      const tab = await openTab(t, browser, demo.page, { expected: EXPECTED });
      await tab.goto(demo.page);
      const pid = await settle(tab);
      await type(tab, "read -r typed; echo got:$typed:$$");
      line[how]();
      await shows(tab, "#panel", /Your shell is waiting, [01]:\d\d left/);
      await tab.keyboard.type("kept");
      await tab.keyboard.press("Enter");
      const back = Date.now();
      line.mend();
      await sees(tab, new RegExp(`^got:kept:${pid}$`, "m"));
      t.diagnostic(`back after ${Date.now() - back} ms`);
    },
  );
}
