// A shell that outlives its connection: the real gateway, a real browser, and a line that is cut.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import WebSocket from "ws";
import { serveFixture } from "./fixture.mjs";
import {
  defer,
  find,
  lives,
  mintTicket,
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
import { startLine } from "./line.mjs";

const EXPECTED = /ERR_CONNECTION|WebSocket connection|net::ERR|no ticket, asked again/;

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

test("a reload comes back to the same shell and the same screen", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await startBrowser(t);
  const tab = await openTab(t, browser, demo.page);
  await tab.goto(demo.page);
  const pid = await settle(tab);
  await type(tab, "printf '\\e[31mred\\e[0m plain\\n'");
  await sees(tab, /^red plain$/m);
  const before = await screen(tab);
  await tab.reload();
  await shows(tab, "#state", /^Connected$/);
  assert.equal(await screen(tab), before);
  await type(tab, "echo again:$$");
  await sees(tab, new RegExp(`^again:${pid}$`, "m"));
});

/**
 * A terminal as a canvas has it, at a demo's gateway.
 *
 * @param {import("node:test").TestContext} t
 * @param {import("playwright-core").Browser} browser
 * @param {() => {tickets: string, page: string}} demo
 * @param {object} [options]
 * @param {Record<string, string>} [options.kept] what is in the tab's sessionStorage
 * @param {import("playwright-core").ViewportSize} [options.viewport]
 */
async function openLasting(t, browser, demo, { kept = {}, ...options } = {}) {
  const tab = await openTab(t, browser, demo().page, { expected: EXPECTED, ...options });
  /** @type {(page: import("playwright-core").Page) => Promise<URL>} */
  const serve = async (page) => {
    await page.route("**/ticket", async (route) => {
      const ticket = await mintTicket(demo()).catch(() => undefined);
      await (ticket ? route.fulfill({ body: ticket }) : route.abort()).catch(() => {});
    });
    const script = fileURLToPath(new URL("lasting.ts", import.meta.url));
    return serveFixture(page, script, demo().page);
  };
  const { href } = await serve(tab);
  await leave(tab, href);
  await tab.evaluate((items) => Object.assign(sessionStorage, items), kept);
  await tab.goto(href);
  await isOpen(tab);
  return { tab, href };
}

/**
 * Goes to an empty page of the same origin, which sees what is kept in the tab.
 *
 * @param {import("playwright-core").Page} tab
 * @param {string} href the terminal's page
 * @returns {Promise<Record<string, string>>}
 */
async function leave(tab, href) {
  await tab.route("**/empty.html", (route) =>
    route.fulfill({ contentType: "text/html", body: "" }),
  );
  await tab.goto(new URL("/empty.html", href).href);
  return tab.evaluate(() => ({ ...sessionStorage }));
}

/**
 * What is kept, without the screens.
 *
 * @param {Record<string, string>} kept
 * @param {object} [change]
 */
const withoutScreens = (kept, change = {}) =>
  Object.fromEntries(
    Object.entries(kept).map(([name, value]) => {
      const { screen: _screen, ...rest } = JSON.parse(value);
      return [name, JSON.stringify({ ...rest, ...change })];
    }),
  );

/** @param {import("playwright-core").Page} tab */
const status = (tab) => tab.evaluate(() => window.lasting.connection.status);
/** @param {import("playwright-core").Page} tab */
const isOpen = (tab) => until(async () => (await status(tab)).state, /^open$/);
/** @type {(tab: import("playwright-core").Page, text: string) => Promise<void>} */
const send = (tab, text) => tab.evaluate((typed) => window.lasting.connection.send(typed), text);
/** @param {import("playwright-core").Page} tab */
const text = (tab) => tab.evaluate(() => window.lasting.text());
let asked = 0;
/** @param {import("playwright-core").Page} tab */
const pidOf = async (tab) => {
  const name = `pid-${++asked}`;
  await send(tab, `PS1='> '; clear; echo ${name}:$$\r`);
  return Number((await until(() => text(tab), new RegExp(`^${name}:(\\d+)$`, "m")))[1]);
};

/** What a program prints that draws: lines that scroll, places, colours, wide characters. */
function drawing() {
  let seed = 7;
  const below = (/** @type {number} */ n) => {
    seed = (seed * 1103515245 + 12345) & 0x7fffffff;
    return (seed >> 8) % n;
  };
  /** @type {string[]} */
  const parts = ["\x1bc"];
  for (let count = 0; count < 6_000; count++) {
    const kind = below(12);
    if (kind < 5)
      parts.push(
        `line ${count} of a program that prints \x1b[${31 + below(7)}min colour\x1b[m\r\n`,
      );
    else if (kind === 5)
      parts.push(`\x1b[${1 + below(30)};${1 + below(90)}H\x1b[48;5;${below(256)}m漢字 é 👍\x1b[m`);
    else if (kind === 6) parts.push(`\x1b[4${below(8)}m\x1b[${below(3)}K\x1b[m`);
    else if (kind === 7)
      parts.push(`\x1b[${1 + below(9)};${20 + below(10)}r\x1b[${1 + below(30)};1H`);
    else if (kind === 8) parts.push(`\x1b7\x1b[H\x1b[7m ${count} \x1b8`);
    else if (kind === 9) parts.push(`\x1b]2;at ${count}\x07\x1b(0lqqk\x1b(B`);
    else if (kind === 10 && below(8) === 0) parts.push(`\x1b[?1049${below(2) ? "h" : "l"}`);
    else parts.push("a text without an end that goes over the edge ".repeat(1 + below(3)));
  }
  return Buffer.from(parts.join(""));
}

test(
  "a page that goes before it has its shell leaves the screen to the next",
  { skip },
  async (t) => {
    const demo = await startDemo(t);
    const browser = await startBrowser(t);
    const { tab } = await openLasting(t, browser, () => demo);
    await send(tab, "seq 500; echo do\\ne\r");
    await until(() => text(tab), /^done$/m);
    const before = await tab.evaluate(() => window.lasting.cells());
    await tab.context().addInitScript(() => {
      if (sessionStorage.getItem("gone") !== null) return;
      const request = () => {
        sessionStorage.setItem("gone", "");
        location.reload();
        return new Promise(() => {}); // the page is gone before it is answered
      };
      Object.assign(navigator.locks, { request });
    });
    await tab.reload();
    const state = () => tab.evaluate(() => window.lasting.connection.status.state).catch(() => "");
    await until(state, /^open$/);
    assert.equal((await status(tab)).shell, "same");
    assert.deepEqual(await tab.evaluate(() => window.lasting.cells()), before);
  },
);

test(
  "reloads in the middle of output: the screen is that of a terminal that was never cut",
  { skip },
  async (t) => {
    const demo = await startDemo(t);
    const browser = await startBrowser(t);
    const { tab } = await openLasting(t, browser, () => demo);
    const folder = await mkdtemp(join(tmpdir(), "termgw-drawing-"));
    defer(t, () => rm(folder, { recursive: true }));
    const bytes = drawing();
    await writeFile(join(folder, "drawing"), bytes);
    // Pieces of a length that cuts sequences and characters.
    const pieces = Math.ceil(bytes.length / 997);
    await writeFile(
      join(folder, "play"),
      `stty raw -echo; i=0
     while [ $i -lt ${pieces} ]; do
       dd if=${folder}/drawing bs=997 skip=$i count=1 2>/dev/null; sleep 0.01; i=$((i+1))
     done
     printf '\\033]2;all of it\\007'; touch ${folder}/played; sleep 1000`,
    );
    await send(tab, `exec sh ${folder}/play\r`);
    let reloads = 0;
    while (!existsSync(join(folder, "played"))) {
      await delay(150);
      await tab.reload();
      reloads++;
      await isOpen(tab);
      assert.equal((await status(tab)).shell, "same");
    }
    t.diagnostic(`${reloads} reloads in ${bytes.length} bytes`);
    assert.ok(reloads > 3);
    const end = Buffer.concat([bytes, Buffer.from("\x1b]2;all of it\x07")]);
    const wanted = await tab.evaluate((all) => window.lasting.cellsOf(all), [...end]);
    const shown = async () => {
      const found = await tab.evaluate(() => window.lasting.cells());
      return String(found.at(-1) === wanted.at(-1) && found.length === wanted.length);
    };
    await until(shown, /^true$/);
    const found = await tab.evaluate(() => window.lasting.cells());
    for (const [at, line] of wanted.entries()) assert.equal(found[at], line, `line ${at}`);
  },
);

test(
  "a shell that is gone is told, and what was typed for it reaches no other",
  { skip },
  async (t) => {
    const demo = await startDemo(t);
    let current = demo;
    const browser = await startBrowser(t);
    const { tab } = await openLasting(t, browser, () => current);
    const pid = await pidOf(tab);
    demo.kill();
    await until(async () => String((await status(tab)).waitsUntil !== undefined), /true/);
    await send(tab, "echo must-not-be-typed\r");
    current = await startDemo(t, Number(new URL(demo.page).port));
    await isOpen(tab);
    assert.equal((await status(tab)).shell, "new");
    await until(() => text(tab), /── the shell is gone, this is a new one ──/);
    assert.notEqual(await pidOf(tab), pid);
    assert.doesNotMatch(await text(tab), /must-not-be-typed/);

    // The same over a reload. The old screen may be another person's: it is shown with its shell only.
    current.kill();
    await until(async () => String((await status(tab)).waitsUntil !== undefined), /true/);
    await tab.reload();
    current = await startDemo(t, Number(new URL(demo.page).port));
    await isOpen(tab);
    assert.equal((await status(tab)).shell, "new");
    await until(() => text(tab), /── the shell is gone, this is a new one ──/);
    assert.doesNotMatch(await text(tab), /pid-\d+:\d+/);
  },
);

test("a shell that goes on elsewhere is told, and not fought for", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await startBrowser(t);
  const { tab } = await openLasting(t, browser, () => demo);
  await pidOf(tab);
  const { ready } = await status(tab);
  const url = `${demo.terminal}?resume=${ready?.session}`;
  const socket = new WebSocket(url, ["termgw.v1", `termgw.ticket.${await mintTicket(demo)}`]);
  defer(t, () => socket.close());
  const [first] = await once(socket, "message");
  assert.equal(JSON.parse(String(first)).resumed, true);
  await until(async () => (await status(tab)).state, /^ended$/);
  assert.equal((await status(tab)).end?.code, "taken_over");
  await delay(2_000);
  assert.equal(socket.readyState, WebSocket.OPEN);
  // Nor after a reload: that is another shell.
  await tab.reload();
  await isOpen(tab);
  assert.notEqual((await status(tab)).ready?.session, ready?.session);
  assert.equal(socket.readyState, WebSocket.OPEN);
});

test("close ends the shell at once, and leaves nothing in the tab", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await startBrowser(t);
  const { tab } = await openLasting(t, browser, () => demo);
  const pid = await pidOf(tab);
  const kept = () => tab.evaluate(() => JSON.stringify(sessionStorage));
  assert.match(await kept(), /termgw .*host\/terminal/);
  await tab.evaluate(() => window.lasting.connection.close());
  await until(() => (lives(pid) ? "lives" : "gone"), /gone/);
  assert.equal(await kept(), "{}");
});

test("no ticket is kept, nor what was typed", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await startBrowser(t);
  const { tab, href } = await openLasting(t, browser, () => demo);
  await pidOf(tab);
  await send(tab, "read -rs secret; echo got\r");
  await until(() => text(tab), /read -rs secret/);
  await send(tab, "pass-word");
  const kept = JSON.stringify(await leave(tab, href));
  assert.match(kept, /read -rs secret/);
  assert.doesNotMatch(kept, /pass-word|eyJ/);
  await tab.goto(href);
  await isOpen(tab);
  assert.equal((await status(tab)).shell, "same");
  await send(tab, "\r");
  await until(() => text(tab), /^got$/m);
});

// The browser hides a page that goes after it has told it so.
test("what is kept by a page that goes says that it has gone", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await startBrowser(t);
  const { tab, href } = await openLasting(t, browser, () => demo);
  const kept = await leave(tab, href);
  assert.deepEqual(
    Object.values(kept).map((value) => JSON.parse(value).isLeft),
    [true],
  );
});

test("a page that lost its screen gets one that is right", { skip }, async (t) => {
  const demo = await startDemo(t);
  const browser = await startBrowser(t);
  const { tab, href } = await openLasting(t, browser, () => demo);
  const pid = await pidOf(tab);
  const folder = await mkdtemp(join(tmpdir(), "termgw-draws-"));
  defer(t, () => rm(folder, { recursive: true }));
  await writeFile(
    join(folder, "draws"),
    String.raw`trap 'printf "\033[2J\033[Hdrawn for %s" "$(stty size)"' WINCH
      echo begins; while :; do sleep 0.1; done`,
  );
  await send(tab, `clear; sh ${folder}/draws\r`);
  await until(() => text(tab), /^begins$/m);
  const kept = withoutScreens(await leave(tab, href));
  await tab.evaluate((items) => Object.assign(sessionStorage, items), kept);
  await tab.goto(href);
  await isOpen(tab);
  assert.equal((await status(tab)).shell, "redrawn");
  await until(() => text(tab), /^drawn for \d+ \d+$/m);
  assert.ok(lives(pid));
});

test("the browser's online event brings the shell back at once", { skip }, async (t) => {
  const { demo, line, browser } = await startOverLine(t);
  const { tab } = await openLasting(t, browser, () => demo);
  await pidOf(tab);
  line.lose();
  await until(async () => (await status(tab)).state, /^waiting$/);
  line.mend();
  const took = await tab.evaluate(
    () =>
      new Promise((resolve) => {
        const start = performance.now();
        window.lasting.connection.on("status", ({ state }) => {
          if (state === "open") resolve(performance.now() - start);
        });
        window.dispatchEvent(new Event("online"));
      }),
  );
  t.diagnostic(`open ${Math.round(Number(took))} ms after online`);
  assert.equal((await status(tab)).shell, "same");
});

test(
  "where a page has no locks, a reload comes back and a duplicated tab does not",
  { skip },
  async (t) => {
    const demo = await startDemo(t);
    const browser = await startBrowser(t);
    const tab = await openTab(t, browser, demo.page);
    await tab
      .context()
      .addInitScript(() => Object.defineProperty(navigator, "locks", { value: undefined }));
    await tab.goto(demo.page);
    const pid = await settle(tab);
    await tab.reload();
    await shows(tab, "#state", /^Connected$/);
    const opened = tab.waitForEvent("popup");
    await tab.evaluate(() => {
      window.open(location.href);
    });
    const copy = await opened;
    assert.notEqual(await settle(copy), pid);
    await tab.reload();
    await shows(tab, "#state", /^Connected$/);
    await type(tab, "echo again:$$");
    await sees(tab, new RegExp(`^again:${pid}$`, "m"));
  },
);

for (const [name, command, ready, leave] of /** @type {const} */ ([
  [
    "vim",
    "vim -u NONE -c 'set ruler nu mouse=a' -c 'normal 3Go' /etc/passwd",
    /^ +4 *$/m,
    "\x1b:q!\r",
  ],
  ["tmux", "tmux -L reloads -f /dev/null new 'seq 99; exec sh'", /^\[0\]/m, "exit\r"],
  ["top", "top -d 600", /PID USER/, "q"],
])) {
  const missing = skip || (find(name) ? false : `no ${name}`);
  test(
    `${name} after a reload and a cut: the same screen, cell by cell`,
    { skip: missing },
    async (t) => {
      const { demo, line, browser } = await startOverLine(t);
      const { tab } = await openLasting(t, browser, () => demo);
      await pidOf(tab);
      await send(tab, "echo be''fore\r");
      await until(() => text(tab), /^before$/m);
      const cells = () => tab.evaluate(() => window.lasting.cells());
      await send(tab, `${command}\r`);
      await until(() => text(tab), ready);
      /** It draws nothing more. */
      const still = async () => {
        for (let before = ""; ;) {
          await send(tab, "");
          await delay(500);
          const now = JSON.stringify(await cells());
          if (now === before) return;
          before = now;
        }
      };
      await still();
      const before = await cells();
      assert.match(String(before[0]), name === "top" ? /^normal/ : /^alternate/);
      await tab.reload();
      await isOpen(tab);
      assert.equal((await status(tab)).shell, "same");
      assert.deepEqual(await cells(), before);
      line.reset();
      await until(async () => (await status(tab)).state, /^waiting$/);
      await isOpen(tab);
      await still();
      assert.deepEqual(await cells(), before);
      await send(tab, leave);
      await until(() => text(tab), name === "top" ? /^> *$/m : /^before$[^]*^> *$/m);
      assert.match(String((await cells())[0]), /^normal/);
    },
  );
}

/** @type {(tab: import("playwright-core").Page) => Promise<string[]>} */
const view = (tab) => tab.evaluate(() => window.lasting.view());

/** Programs that show the same in two terminals. */
const PROGRAMS = /** @type {const} */ ([
  {
    name: "vim",
    // Without its questions to the terminal, and without a ruler, which it may erase when it is busy.
    command:
      "vim -n -u NONE -i NONE --cmd 'set nocp shm+=F noru nosc nu mouse=a ttym=sgr t_RV= t_u7=' -c 'normal 40Gzt' lines",
    shown: /^ *40 line 40 /m,
  },
  {
    name: "htop",
    command: "HTOPRC=$PWD/htoprc htop -d 100 -p $(cat pids)",
    shown: /( +\d+ sleep 1000 *\n){20}/,
  },
  {
    name: "tmux",
    command: String.raw`tmux -L $$ -f tmux.conf new 'seq 99; exec sh' \; splitw -b 'less -Pless lines'`,
    shown: /^line 1 [^]*^99\n[^]*^\[0\]/m,
  },
  { name: "less", command: "less -Pless +40 lines", shown: /^line 40 / },
  {
    name: "bash",
    command: String.raw`PS1='\[\e[32m\]>\[\e[m\] '; history -c; history -r lines; clear; cat lines`,
    shown: /^line 2000 .*\n> *$/m,
    key: "ArrowUp",
  },
]);

/** Numbers and names: what else it shows changes. */
const HTOPRC = `config_reader_min_version=3
header_layout=one_100
column_meters_0=Hostname
column_meter_modes_0=2
screen:Main=PID Command
.sort_key=PID
`;

/** What the programs work on. @param {import("node:test").TestContext} t */
async function makeWork(t) {
  const folder = await mkdtemp(join(tmpdir(), "termgw-programs-"));
  defer(t, () => rm(folder, { recursive: true }));
  const sleeps = Array.from({ length: 40 }, () => spawn("sleep", ["1000"], { stdio: "ignore" }));
  defer(t, () => sleeps.map((child) => child.kill()));
  const lines = Array.from({ length: 2_000 }, (_, at) => `line ${at + 1} of some text\n`);
  for (const [name, content] of /** @type {const} */ ([
    ["lines", lines.join("")],
    ["pids", sleeps.map(({ pid }) => pid).join()],
    ["tmux.conf", "set -g mouse on\nset -g status-right ''\nset -g destroy-unattached on\n"],
    ["htoprc", HTOPRC],
  ])) {
    await writeFile(join(folder, name), content);
  }
  return folder;
}

for (const { name, command, shown, ...more } of PROGRAMS) {
  const missing = skip || (find(name) ? false : `no ${name}`);
  test(
    `${name} without its screen, and on another device: that of a terminal that was never cut`,
    { skip: missing },
    async (t) => {
      const demo = await startDemo(t);
      const browser = await startBrowser(t);
      const folder = await makeWork(t);
      const { tab, href } = await openLasting(t, browser, () => demo);
      const { tab: whole } = await openLasting(t, browser, () => demo);
      for (const each of [tab, whole]) {
        await pidOf(each);
        await send(each, `cd ${folder}; clear; ${command}\r`);
        await until(() => text(each), shown);
      }
      /** @param {import("playwright-core").Page} cut */
      const isWhole = async (cut) => {
        /** @type {string[]} */
        let found = [];
        /** @type {string[]} */
        let wanted = [];
        const difference = async () => {
          [found, wanted] = await Promise.all([view(cut), view(whole)]);
          return String(wanted.findIndex((line, at) => line !== found[at]));
        };
        await until(difference, /^-1$/).catch(() => assert.deepEqual(found, wanted));
      };
      /** Does the same in both. */
      const act = async (
        /** @type {import("playwright-core").Page} */ cut,
        /** @type {(each: import("playwright-core").Page) => Promise<void>} */ what,
      ) => {
        const before = JSON.stringify(await view(whole));
        await what(whole);
        const isOld = async () => String(JSON.stringify(await view(whole)) === before);
        await until(isOld, /^false$/);
        await what(cut);
        await isWhole(cut);
      };
      /** @param {import("playwright-core").Page} cut */
      const goOn = async (cut) => {
        await isOpen(cut);
        assert.equal((await status(cut)).shell, "redrawn");
        await isWhole(cut);
        for (let count = 0; count < 2; count++) {
          await act(cut, async (each) => {
            await each.locator(".xterm-helper-textarea").focus();
            await each.keyboard.press("key" in more ? more.key : "ArrowDown");
          });
        }
        if (["vim", "htop", "tmux"].includes(name)) {
          const position = { x: 100, y: clicks++ === 0 ? 400 : 100 };
          await act(cut, (each) => each.locator(".xterm-screen").click({ position }));
        }
      };
      let clicks = 0;
      await isWhole(tab);

      const kept = withoutScreens(await leave(tab, href));
      await tab.evaluate((items) => Object.assign(sessionStorage, items), kept);
      await tab.goto(href);
      await goOn(tab);

      const viewport = { width: 700, height: 640 };
      await whole.setViewportSize(viewport);
      const asAnother = withoutScreens(kept, { client: "another" });
      const device = await openLasting(t, browser, () => demo, { kept: asAnother, viewport });
      await goOn(device.tab);
      await until(async () => (await status(tab)).end?.code ?? "", /^taken_over$/);
    },
  );
}
