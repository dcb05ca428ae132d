import assert from "node:assert/strict";
import { test } from "node:test";
import {
  lives,
  openTab,
  screen,
  sees,
  shows,
  skip,
  startBrowser,
  startDemo,
  type,
  until,
} from "./harness.mjs";

test(
  "the page opens a shell: typing, resize, reload, exit, another session",
  {
    skip,
  },
  async (t) => {
    const demo = await startDemo(t);
    const browser = await startBrowser(t);
    const tab = await openTab(t, browser, demo.page);
    await tab.goto(demo.page);

    await shows(tab, "#state", /^Connected$/);
    await shows(tab, "#target", /^local$/);
    await shows(tab, "#round-trip", / ms$/);
    assert.doesNotMatch(tab.url(), /key/, "the one-time secret left the address bar");

    await type(tab, "echo $((6*7))");
    await sees(tab, /^42$/m);

    await t.test("the shell follows the window's size", async () => {
      const before = await tab.locator("#size").textContent();
      await tab.setViewportSize({ width: 760, height: 420 });
      const [, cols, rows] = await shows(tab, "#size", new RegExp(`^(?!${before}$)(\\d+)×(\\d+)$`));
      await type(tab, 'echo "now:$(stty size)"');
      await sees(tab, new RegExp(`^now:${rows} ${cols}$`, "m"));
    });

    await t.test("characters of every width arrive whole", async () => {
      await type(tab, "printf '%s\\n' 'größe 漢字 😀'");
      await sees(tab, /^größe 漢字 😀$/m);
    });

    await t.test("a paste arrives whole, over many frames", async () => {
      const lines = `${"0123456789abcdef".repeat(64)}\n`.repeat(200);
      await type(tab, `stty -echo; echo go-$((4+5)); head -c ${lines.length} | wc -c; stty echo`);
      await sees(tab, /^go-9$/m);
      await tab.evaluate((text) => {
        const data = new DataTransfer();
        data.setData("text/plain", text);
        document.activeElement?.dispatchEvent(
          new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }),
        );
      }, lines);
      await sees(tab, new RegExp(`^${lines.length}$`, "m"));
    });

    await t.test("Ctrl-C ends a flood", async () => {
      await type(tab, "yes flood");
      await sees(tab, /flood\nflood\nflood/);
      await tab.keyboard.press("Control+c");
      await type(tab, "echo after-$((1+1))");
      await sees(tab, /^after-2$/m);
    });

    await t.test("a reload comes back in without the link", async () => {
      await tab.reload();
      await shows(tab, "#state", /^Connected$/);
      await type(tab, "echo back-$((2+3))");
      await sees(tab, /^back-5$/m);
    });

    await t.test("exit says why, and Enter opens another session", async () => {
      await type(tab, "seq 100; exit 3");
      await shows(tab, "#panel", /The shell ended with status 3/);
      await shows(tab, "#again", /^New session$/);
      await sees(tab, /^100$/m); // the last of the output stays on the screen
      await tab.keyboard.press("Enter");
      await shows(tab, "#state", /^Connected$/);
      await type(tab, "echo new-$((3+4))");
      await sees(tab, /^new-7$/m);
    });

    await t.test("what a program left on does not reach the next session", async () => {
      const mouse = async () => String(await tab.locator(".xterm.enable-mouse-events").count());
      await type(tab, String.raw`printf '\e[?1049h\e[?1003hALTERNATE'; read; exit 4`);
      await sees(tab, /^ALTERNATE/m);
      await until(mouse, /^1$/);
      await tab.keyboard.press("Enter");
      await shows(tab, "#panel", /status 4/);
      await sees(tab, /^new-7$/m);
      await until(mouse, /^0$/);
      assert.doesNotMatch(await screen(tab), /^ALTERNATE/m);
      await tab.keyboard.press("Enter");
      await shows(tab, "#state", /^Connected$/);
    });

    await t.test("the keyboard leaves the terminal and comes back", async () => {
      await tab.keyboard.press("Control+Shift+E");
      assert.equal(await tab.evaluate(() => document.activeElement?.ariaCurrent), "true");
      await tab.keyboard.press("Enter");
      await tab.keyboard.type("echo keys-$((4+4))");
      await tab.keyboard.press("Enter");
      await sees(tab, /^keys-8$/m);
    });
  },
);

test("the one-time link lets one tab in", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await startBrowser(t);
  const first = await openTab(t, browser, demo.page);
  await first.goto(demo.page);
  await shows(first, "#state", /^Connected$/);

  const second = await openTab(t, browser, demo.page, { expected: /status of 401/ });
  await second.goto(demo.page);
  await shows(second, "#gate", /This link was already used\./);
  assert.equal(await screen(second), "", "no terminal");

  const bare = await openTab(t, browser, demo.page);
  await bare.goto(new URL("/", demo.page).href);
  await shows(bare, "#gate", /Open the link that termgw demo printed/);
});

test("closing the page ends the shell", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await startBrowser(t);
  const tab = await openTab(t, browser, demo.page);
  await tab.goto(demo.page);
  await shows(tab, "#state", /^Connected$/);
  await type(tab, "echo pid:$$");
  const [, pid] = await sees(tab, /^pid:(\d+)$/m);
  assert.ok(lives(Number(pid)), "the shell lives while the page is open");
  await tab.close();
  await until(() => (lives(Number(pid)) ? "lives" : "gone"), /gone/);
});

test("a gateway that goes away is told, with what to do", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await startBrowser(t);
  const tab = await openTab(t, browser, demo.page, { expected: /ERR_CONNECTION_REFUSED/ });
  await tab.goto(demo.page);
  await shows(tab, "#state", /^Connected$/);
  demo.kill();
  await shows(tab, "#panel", /The connection was cut/);
  await shows(tab, "#again", /^Reconnect$/);
  await tab.locator("#again").click();
  await shows(tab, "#panel", /termgw demo does not answer/);
});
