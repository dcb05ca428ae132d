// A real gateway behind a real nginx, with a real container: what people do in
// a terminal, and what networks and operators do to it.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { skipEngine, startEngine } from "./engine.mjs";
import {
  goOn,
  openTab,
  paste,
  screen,
  sees,
  shows,
  skip,
  shareBrowser,
  type,
  until,
} from "./harness.mjs";
import { skipSite, startSite } from "./site.mjs";

const openBrowser = shareBrowser();

test("through nginx into a container", { skip: skip || skipEngine || skipSite }, async (t) => {
  const engine = await startEngine(t);
  await engine.run("box");
  const site = await startSite(t, engine.host, [{ id: "box", name: "Box", detail: "a container" }]);
  const browser = await openBrowser();
  const expected = /ERR_CONNECTION|WebSocket connection|net::ERR|status of 502/;
  const tab = await openTab(t, browser, site.url, { expected });
  await tab.goto(`${site.url}#key=first`);
  await shows(tab, "#state", /^Connected$/);
  await shows(tab, "#target", /^local$/);
  await shows(tab, "#time-left", /^29 min if idle$/);

  /** A prompt that cannot be taken for anything else. */
  const prompted = () => sees(tab, /^>\s*$(?![^]*\S)/m);
  const settle = async () => {
    await type(tab, "PS1='> '; clear");
    await until(() => screen(tab), /^>\s*$/);
  };
  await settle();

  await t.test("typing, and the size of the window", async () => {
    await type(tab, "echo $((6*7)) $(hostname)");
    await sees(tab, /^42 box$/m);
    const before = await tab.locator("#size").textContent();
    await tab.setViewportSize({ width: 820, height: 500 });
    const [, cols, rows] = await shows(tab, "#size", new RegExp(`^(?!${before}$)(\\d+)×(\\d+)$`));
    await type(tab, 'echo "now:$(stty size)"');
    await sees(tab, new RegExp(`^now:${rows} ${cols}$`, "m"));
    await tab.setViewportSize({ width: 1000, height: 640 });
  });

  await t.test("colours: the theme's, 256 and any", async () => {
    await type(
      tab,
      String.raw`clear; printf '\e[41mtheme\e[0m \e[48;5;208mpalette\e[0m \e[48;2;1;2;3mtrue\e[0m\n'`,
    );
    await sees(tab, /^theme palette true$/m);
    const ground = (/** @type {string} */ text) =>
      tab
        .locator(".xterm-rows:visible span", { hasText: new RegExp(`^${text}$`) })
        .evaluate((found) => getComputedStyle(found).backgroundColor);
    assert.equal(await ground("theme"), "rgb(179, 38, 30)");
    assert.equal(await ground("palette"), "rgb(255, 135, 0)");
    assert.equal(await ground("true"), "rgb(1, 2, 3)");
  });

  await t.test("wide characters and emoji, split between frames at every byte", async () => {
    const text = "漢é😀";
    const bytes = [...Buffer.from(text)].map((byte) => `\\x${byte.toString(16)}`);
    const pieces = bytes.map((byte) => `printf '${byte}'; sleep 0.05`).join("; ");
    // The x lands right behind only if the page counts 2, 1 and 2 columns, as programs do.
    await type(tab, `clear; ${pieces}; printf '\\r\\e[5Cx\\n'`);
    await sees(tab, new RegExp(`^${text}x$`, "m"));
  });

  await t.test("vi: edit, resize, save", async () => {
    await type(tab, "clear; vi /tmp/note");
    await sees(tab, /^~$/m);
    await tab.keyboard.type("iwritten in the browser");
    await tab.setViewportSize({ width: 900, height: 560 });
    await tab.keyboard.press("Escape");
    await tab.keyboard.type(":wq");
    await tab.keyboard.press("Enter");
    await prompted();
    await type(tab, "cat /tmp/note");
    await sees(tab, /^written in the browser$/m);
    assert.doesNotMatch(await screen(tab), /^~$/m, "the editor's screen is gone");
    await tab.setViewportSize({ width: 1000, height: 640 });
  });

  await t.test("top: draws, and leaves the terminal as it was", async () => {
    await type(tab, "clear; echo before; top -d 0.2");
    await sees(tab, /PID USER/);
    await sees(tab, /sleep/);
    await tab.keyboard.press("q");
    await prompted();
    await type(tab, "echo after-$((1+1))");
    await sees(tab, /^after-2$/m);
  });

  await t.test("a paste of 10 MB arrives whole, in brackets", async () => {
    const line = `${"0123456789abcdef".repeat(63)}ö\n`;
    const text = line.repeat(10_240);
    const sent = `\x1b[200~${text.replaceAll("\n", "\r")}\x1b[201~`;
    const length = Buffer.byteLength(sent);
    assert.ok(length > 10e6);
    await type(
      tab,
      String.raw`clear; stty raw -echo; printf '\e[?2004hgo-%d\r\n' $((4+5)); ` +
        `head -c ${length} | md5sum; stty sane; printf '\\e[?2004l'`,
    );
    await sees(tab, /^go-9$/m);
    const started = Date.now();
    await paste(tab, text);
    await sees(tab, /^[0-9a-f]{32} +-$/m);
    t.diagnostic(`10 MB pasted in ${Date.now() - started} ms`);
    const sum = createHash("md5").update(sent).digest("hex");
    assert.match(await screen(tab), new RegExp(`^${sum} `, "m"));
  });

  await t.test("10 s of yes: memory stays flat, and Ctrl-C answers at once", async () => {
    const inspector = await tab.context().newCDPSession(tab);
    const heap = async () => {
      await inspector.send("HeapProfiler.collectGarbage");
      const { usedSize } = await inspector.send("Runtime.getHeapUsage");
      return usedSize / 1e6;
    };
    await type(tab, "clear; yes");
    await sees(tab, /^y\ny\ny$/m);
    await delay(3_000);
    const early = await heap();
    await delay(7_000);
    const late = await heap();
    // From the key's event to the prompt on the screen, on the page's own clock.
    // The handle is there before the key is pressed: both go to the page by ways of their own.
    const watch = await tab.evaluateHandle(() => {
      let pressed = 0;
      const press = (/** @type {KeyboardEvent} */ event) => {
        if (event.key === "c") pressed = event.timeStamp;
      };
      window.addEventListener("keydown", press, { capture: true });
      const answered = new Promise((resolve) => {
        setTimeout(() => resolve(Infinity), 60_000);
        const look = () => {
          const rows = document.querySelector(".terminal-box:not([hidden]) .xterm-rows");
          const lines = [...(rows?.children ?? [])].map((row) => row.textContent?.trim());
          if (pressed > 0 && lines.join("\n").trimEnd().endsWith("\n>")) {
            resolve(Math.round(performance.now() - pressed));
          } else requestAnimationFrame(look);
        };
        look();
      });
      return { answered };
    });
    await tab.keyboard.press("Control+c");
    const ms = /** @type {number} */ (await watch.evaluate(({ answered }) => answered));
    t.diagnostic(
      `Ctrl-C to prompt ${ms} ms; heap ${early.toFixed(1)} MB, later ${late.toFixed(1)}`,
    );
    // A client that queues what it cannot render answers after minutes. On a free machine it is 300 ms.
    assert.ok(Number.isFinite(ms), "no prompt came in the minute after Ctrl-C");
    assert.ok(late < early + 10, `the heap grew from ${early} to ${late} MB`);
  });

  await t.test("silence for 5 s: it is told, and the shell goes on", async () => {
    await type(tab, "clear; kept=yes");
    site.line.silence();
    // The page gives the connection up 10 s after the ping that has no answer.
    await shows(tab, "#state", /^No answer for [5-9] s$/);
    site.line.mend();
    await shows(tab, "#state", /^Connected$/);
    await type(tab, 'echo "kept:$kept"');
    await sees(tab, /^kept:yes$/m);
  });

  await t.test("the network is cut for 5 s: it is told, and another session opens", async () => {
    site.line.cut();
    await shows(tab, "#panel", /(The connection was cut|does not answer).*Trying again in \d+ s/);
    await shows(tab, "#state", /^Reconnecting…$/);
    await delay(5_000);
    site.line.mend();
    await shows(tab, "#state", /^Connected$/);
    await sees(tab, /── new session ──/);
    await settle();
    await type(tab, 'echo "kept:$kept"');
    await sees(tab, /^kept:$/m);
  });

  await t.test(
    "the gateway drains: it is told, and the terminal moves to the other one",
    async () => {
      const counts = () => site.gateways.map((gateway) => gateway.started());
      const before = counts();
      await tab.reload();
      await shows(tab, "#state", /^Connected$/);
      const at = counts().findIndex((count, index) => count > (before[index] ?? 0));
      const [here, other] = [site.gateways[at], site.gateways[1 - at]];
      assert.ok(here && other);
      const had = other.started();
      const drain = here.drain();
      await shows(tab, "#panel", /closes this terminal in \d+ seconds/);
      await shows(tab, "#time-left", /^0:\d\d left$/);
      await type(tab, "echo still-$((1+1))");
      await sees(tab, /^still-2$/m);
      await drain.hurry();
      await until(() => String(other.started() > had), /true/);
      await shows(tab, "#state", /^Connected$/);
      await delay(1_100); // what is typed on without a pause is not for this shell
      await settle();
      await type(tab, "echo moved-$((3+3))");
      await sees(tab, /^moved-6$/m);
    },
  );

  await t.test("an operator revokes: the reason is shown, and nothing is tried again", async () => {
    const before = site.tickets.minted;
    site.operate("sessions", "revoke", "--subject", "someone@example.com");
    await shows(tab, "#panel", /Access was withdrawn.*Access to this terminal was withdrawn/);
    await shows(tab, "#again", /^New session$/);
    await delay(3_000);
    assert.equal(site.tickets.minted, before, "no ticket was asked for");
    await delay(1_000); // a ticket of a later second than the revocation's
    await goOn(tab);
    await shows(tab, "#state", /^Connected$/);
    await settle();
  });

  await t.test("a refused ticket: the reason, and no loop", async () => {
    site.tickets.forge = true;
    const before = site.tickets.minted;
    await type(tab, "exit");
    await shows(tab, "#again", /^New session$/);
    await goOn(tab);
    await shows(tab, "#panel", /The ticket for this terminal is not valid/);
    await shows(tab, "#again", /^Reconnect$/);
    assert.equal(site.tickets.minted - before, 2, "one more ticket was tried");
    await delay(3_000);
    assert.equal(site.tickets.minted - before, 2, "and then no other");
    site.tickets.forge = false;
    await tab.locator("#again").click();
    await shows(tab, "#state", /^Connected$/);
  });

  await t.test("read-only: what is typed goes nowhere, the window's size does", async () => {
    await tab.keyboard.press("Control+Shift+O");
    await tab.locator("#picker-read-only").check();
    await tab.locator("#picker-filter").press("Enter");
    await shows(tab, "#mode", /^read-only$/);
    await sees(tab, /[#$]\s*$/);
    const shown = await screen(tab);
    await tab.keyboard.type("echo typed");
    await delay(500);
    assert.equal(await screen(tab), shown);
  });
});

test(
  "through nginx to three gateways, any of which brings the shell back",
  { skip: skip || skipEngine || skipSite },
  async (t) => {
    const engine = await startEngine(t);
    await engine.run("box");
    const box = { id: "box", name: "Box", detail: "a container" };
    const site = await startSite(t, engine.host, [box], { replicas: 3, resume: 60 });
    const browser = await openBrowser();
    const expected = /ERR_CONNECTION|WebSocket connection|net::ERR|status of 502|no ticket, asked/;
    const tab = await openTab(t, browser, site.url, { expected });
    await tab.goto(`${site.url}#key=first`);
    await shows(tab, "#state", /^Connected$/);
    await type(tab, "PS1='> '; clear; shell=kept; echo shell:$shell");
    await sees(tab, /^shell:kept\n>\s*$/m);
    for (let count = 0; count < 3; count++) {
      const before = await screen(tab);
      await tab.reload();
      await shows(tab, "#state", /^Connected$/);
      assert.equal(await screen(tab), before);

      await type(tab, `read -r typed; echo "got:$typed"`);
      site.line.cut();
      await shows(tab, "#panel", /Your shell is waiting/);
      await type(tab, `kept-${count}`);
      site.line.mend();
      await sees(tab, new RegExp(`^got:kept-${count}\n>\\s*$`, "m"));
    }
    await type(tab, 'echo "still:$shell"');
    await sees(tab, /^still:kept$/m);
    const started = site.gateways.map((gateway) => gateway.started());
    assert.deepEqual(started.sort(), [0, 0, 1], "it was one shell in one gateway");
    const passed = await Promise.all(site.gateways.map((gateway) => gateway.passedOn()));
    t.diagnostic(`passed on: ${passed}`);
    assert.ok(
      passed.some((count) => count > 0),
      "a connection came to another gateway",
    );

    // The gateway that has the shell is gone: another one opens a shell, and says so.
    const holder = site.gateways.findIndex((gateway) => gateway.started() > 0);
    site.gateways[holder]?.kill();
    await sees(tab, /── the shell is gone, this is a new one ──/);
    await shows(tab, "#state", /^Connected$/);
    const others = site.gateways.filter((_, index) => index !== holder);
    assert.ok(others.some((gateway) => gateway.started() > 0));
  },
);
