// A program in a tab that nobody looks at. Chromium has a window of its own on an X server's
// screen, since a page without one is never hidden, and Playwright's flags turn off what browsers
// do to hidden pages.
//
//   TERMGW_TEST_HIDDEN  for how many seconds a build is followed in a hidden tab; without it, not
//                       at all: `make hidden` asks for 330
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { openPage, startChromium } from "./chromium.mjs";
import { defer, find, skip, skipFor, startDemo, until } from "./harness.mjs";

const XVFB = find("Xvfb");
const skipHidden = skip || skipFor(XVFB ? [] : ["no Xvfb: install Debian's package xvfb"]);
const BUILD_S = Number(process.env.TERMGW_TEST_HIDDEN ?? 0);

/** Questions to the terminal, each of which is asked when the one before is answered. */
const QUESTIONS = 5;
/**
 * A hidden page, whose process has less of the processor, takes at most so many times as long as a
 * shown one. Where parsing waits for timers it takes 80 times as long: 12 ms of it are done in a second.
 */
const MOST_SLOWER = 20;
/** Lines of a step of the flood, each of 60 digits: 122 kB. */
const STEP = 2_000;
/** Steps that are waited for: 24 MB. */
const FLOOD_STEPS = 200;
/** Nothing takes so long, however busy the machine is. */
const PATIENCE_MS = 300_000;
/** Bytes that the page may hold: several times its scrollback of 10,000 lines and the window. */
const MOST_HELD = 96 << 20;

/** Prints numbered lines until `stop` is there, and counts its steps. */
const FLOOD = `
line=0
until [ -e stop ]; do
  seq -f %060.0f $line $((line + ${STEP} - 1))
  line=$((line + ${STEP}))
  echo $((line / ${STEP})) >steps
done
touch stopped`;

/**
 * Resets the terminal (RIS) so often that it takes many slices of parsing, asks where the cursor is
 * (DSR 6), and counts the answers.
 */
const ASK = `
stty -echo -icanon
resets=$(printf '\\ec%.0s' {1..3000})
for ((answers = 1; ; answers++)); do
  printf '%s\\e[6n' "$resets"
  read -rs -d R
  echo $answers >steps
done`;

/** A build: ten lines a second are a step, and each third step prints 3 MB at once. */
const BUILD = `
seq -f %060.0f 50000 >text
step=0
until [ -e stop ]; do
  for line in 1 2 3 4 5 6 7 8 9 10; do echo "step $step, line $line"; sleep 0.1; done
  step=$((step + 1))
  echo $step >steps
  [ $((step % 3)) -gt 0 ] || cat text
done`;

/**
 * A folder to run a program in, which tells there how far it is.
 *
 * @param {import("node:test").TestContext} t
 * @param {string} program
 */
async function makeFolder(t, program) {
  const dir = await mkdtemp(join(tmpdir(), "termgw-hidden-"));
  defer(t, () => rm(dir, { recursive: true, force: true }));
  await writeFile(join(dir, "program"), program);
  /** @param {string} name */
  const read = (name) => readFile(join(dir, name), "utf8").catch(() => "0");
  const steps = async () => Number(await read("steps"));
  return {
    dir,
    command: `cd ${dir} && bash program`,
    steps,
    /** @param {number} seconds */
    async stepsIn(seconds) {
      const before = await steps();
      await delay(1000 * seconds);
      return (await steps()) - before;
    },
    /**
     * Waits for so many steps more, and gives the milliseconds that they took.
     *
     * @param {number} count
     * @param {number} [limit] milliseconds
     */
    async goesOn(count, limit = PATIENCE_MS) {
      const start = performance.now();
      const end = (await steps()) + count;
      const done = async () => {
        const now = await steps();
        return `${now} steps of ${end}${now < end ? "" : ": done"}`;
      };
      await until(done, /done/, limit);
      return Math.round(performance.now() - start);
    },
    /** Lets the program end, and waits until it has. */
    async stop() {
      await writeFile(join(dir, "stop"), "");
      await until(async () => String(existsSync(join(dir, "stopped"))), /true/);
    },
    async again() {
      for (const name of ["stop", "stopped"]) await rm(join(dir, name));
    },
  };
}

/**
 * A shell in the demo's page, in a window on a screen.
 *
 * @param {import("node:test").TestContext} t
 */
async function openShell(t) {
  const screen = spawn(XVFB ?? "", ["-displayfd", "3", "-nolisten", "tcp"], {
    stdio: ["ignore", "ignore", "ignore", "pipe"],
  });
  const ended = once(screen, "exit");
  defer(t, async () => {
    screen.kill();
    await ended;
  });
  const told = /** @type {import("node:stream").Readable} */ (screen.stdio[3]);
  const [display] = await once(told, "data");
  const demo = await startDemo(t);
  const environment = { DISPLAY: `:${String(display).trim()}` };
  const chromium = await startChromium(t, ["--disable-gpu"], environment);
  const tab = await openPage(t, chromium, demo.page);
  const rows = () =>
    tab.evaluate(() => {
      const all = [...document.querySelectorAll(".xterm-rows > div")];
      return all.map((row) => (row.textContent ?? "").replaceAll("\u00a0", " ").trimEnd());
    }, 0);
  const press = (/** @type {object} */ key) =>
    tab.send("Input.dispatchKeyEvent", { type: "keyDown", ...key });
  /** Waits until the last line is a prompt. */
  const prompts = () =>
    until(async () => (await rows()).join("\n").trimEnd(), /(^|\n)bash\S*[#$]$/);
  await prompts();
  await tab.evaluate(() => document.querySelector("textarea")?.focus(), 0);
  return {
    tab,
    rows,
    prompts,
    /** @param {string} line */
    async type(line) {
      await tab.send("Input.insertText", { text: line });
      await press({ key: "Enter", code: "Enter", windowsVirtualKeyCode: 13, text: "\r" });
    },
    pageUp: () => press({ key: "PageUp", code: "PageUp", windowsVirtualKeyCode: 33, modifiers: 8 }),
    /** Puts another tab before it, and waits until the browser calls its timers once a second. */
    async hide() {
      await openPage(t, chromium, "about:blank");
      await until(() => tab.evaluate(() => document.visibilityState, 0), /^hidden$/);
      await tab.evaluate(() => {
        const { dataset } = document.body;
        dataset.late = "0";
        let last = performance.now();
        const call = () => {
          const took = performance.now() - last;
          last += took;
          // On the second: what is late by chance is not.
          if (took > 950 && took < 1050) dataset.late = String(Number(dataset.late) + 1);
          if (document.hidden) setTimeout(call);
        };
        setTimeout(call);
      }, 0);
      await until(() => tab.evaluate(() => document.body.dataset.late ?? "", 0), /^[3-9]/);
    },
    show: () => tab.send("Page.bringToFront"),
    /** Bytes of the page's heap and of its buffers, without what is garbage. */
    async held() {
      await tab.send("HeapProfiler.collectGarbage");
      const { usedSize, backingStorageSize = 0 } = await tab.send("Runtime.getHeapUsage");
      return usedSize + backingStorageSize;
    },
  };
}

/**
 * Asserts that rows are the flood's lines, one after the other, and gives the first one's number.
 *
 * @param {string[]} rows
 */
function assertLines(rows) {
  const lines = rows.filter((row) => /^\d{60}$/.test(row)).map(Number);
  const [first = Number.NaN] = lines;
  assert.deepEqual(
    lines,
    lines.map((_, i) => first + i),
  );
  assert.ok(lines.length > rows.length / 2, `lines of the flood:\n${rows.join("\n")}`);
  return first;
}

test(
  "a hidden tab's terminal answers programs as a shown one's",
  { skip: skipHidden },
  async (t) => {
    const shell = await openShell(t);
    const asking = await makeFolder(t, ASK);
    await shell.type(asking.command);
    await asking.goesOn(1);
    // A busy machine may have slowed one of the two down.
    for (let tries = 1, told = ""; ; tries++) {
      assert.ok(tries <= 3, told);
      const shown = await asking.goesOn(QUESTIONS);
      await shell.hide();
      const hidden = await asking.goesOn(QUESTIONS);
      told = `${QUESTIONS} answers in ${shown} ms shown, in ${hidden} ms hidden`;
      t.diagnostic(told);
      if (hidden < MOST_SLOWER * shown) break;
      await shell.show();
    }
  },
);

test(
  "a flood in a hidden tab is whole, and Ctrl-C ends it when the tab is shown",
  {
    skip: skipHidden,
  },
  async (t) => {
    const shell = await openShell(t);
    const flood = await makeFolder(t, FLOOD);
    await shell.type(flood.command);
    await flood.goesOn(1);
    await shell.hide();
    await flood.goesOn(FLOOD_STEPS);
    const held = await shell.held();
    t.diagnostic(`${(held / (1 << 20)).toFixed(1)} MiB held`);
    assert.ok(held < MOST_HELD, `the page holds ${held} bytes`);

    await flood.stop();
    await shell.show();
    await shell.prompts();
    const last = (await flood.steps()) * STEP - 1;
    const rows = await shell.rows();
    assert.equal(
      rows
        .filter((row) => /^\d{60}$/.test(row))
        .map(Number)
        .at(-1),
      last,
    );
    for (let first = assertLines(rows), page = 0; page < 5; page++) {
      await shell.pageUp();
      const above = first;
      await until(async () => {
        first = assertLines(await shell.rows());
        return String(first < above);
      }, /true/);
    }

    await flood.again();
    await shell.type("bash program");
    await shell.hide();
    await shell.show();
    const pressed = performance.now();
    await shell.tab.press("c", "ctrl");
    await shell.prompts();
    t.diagnostic(`the prompt ${Math.round(performance.now() - pressed)} ms after Ctrl-C`);
  },
);

test(
  "a build in a hidden tab goes on as one that nobody looks at",
  {
    skip: skipHidden || (BUILD_S > 0 ? false : "takes minutes: make hidden"),
  },
  async (t) => {
    const shell = await openShell(t);
    const build = await makeFolder(t, BUILD);
    const beside = await makeFolder(t, BUILD);
    const child = spawn("bash", ["program"], { cwd: beside.dir, stdio: "ignore" });
    const ended = once(child, "exit");
    defer(t, async () => {
      await writeFile(join(beside.dir, "stop"), "");
      await ended;
    });
    await shell.type(build.command);
    await shell.hide();
    /** @type {[number, number][]} */
    const steps = [];
    for (let at = 0; at < BUILD_S; at += 15) {
      steps.push(await Promise.all([build.stepsIn(15), beside.stepsIn(15)]));
      const held = ((await shell.held()) / (1 << 20)).toFixed(1);
      t.diagnostic(`${at + 15} s: ${steps.at(-1)?.join(" steps, beside it ")}; ${held} MiB held`);
    }
    const [mine, others] = [0, 1].map((who) => steps.reduce((sum, of) => sum + (of[who] ?? 0), 0));
    t.diagnostic(`${mine} steps, beside it ${others}`);
    // It has less of the processor; where it waited for timers it did a twentieth.
    assert.ok((mine ?? 0) >= (others ?? 0) / 4, `${mine} steps, beside it ${others}`);
    await writeFile(join(build.dir, "stop"), "");
    await shell.show();
    await shell.prompts();
  },
);
