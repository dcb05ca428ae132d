// Measures the client in a real Chromium, and prints what docs/canvas.md tells: at `termgw demo`,
// and through nginx into a container, where an engine can be started. The last line is JSON.
//   npm run bench [dom|webgl]
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { skipEngine, startEngine } from "../test/browser/engine.mjs";
import { defer, skip, startDemo } from "../test/browser/harness.mjs";
import { skipSite, startSite } from "../test/browser/site.mjs";
import { startUnwatched } from "./chromium.mjs";
import { text } from "./text.mjs";

const KEYS = 300;
const ROUNDS = 3;
const FLOOD_MS = 10_000;
const PAGE = fileURLToPath(new URL("page.ts", import.meta.url));
const renderer = process.argv[2] === "webgl" ? "webgl" : "dom";

if (skip) {
  console.error(skip);
  process.exit(1);
}

/** @param {number[]} values @param {number} part */
const quantile = (values, part) =>
  [...values].sort((a, b) => a - b)[
    Math.min(values.length - 1, Math.floor(values.length * part))
  ] ?? 0;
const round = (/** @type {number} */ value) => Math.round(value * 10) / 10;

/** @type {Record<string, unknown>} */
const results = { renderer };
/** @param {string} name @param {number[]} values */
function tell(name, values) {
  const [p50, p95] = [round(quantile(values, 0.5)), round(quantile(values, 0.95))];
  const few = values.length <= ROUNDS;
  results[name.trim()] = few ? values.map(round) : { p50, p95, count: values.length };
  const shown = few ? values.map((value) => round(value)).join(", ") : `p50 ${p50}, p95 ${p95}`;
  console.log(`${name.padEnd(50)} ${shown}`);
}

/** @typedef {Awaited<ReturnType<typeof startUnwatched>>} Tab */
const prompting = `PROMPT_COMMAND="printf '\\e]0;prompt\\a'"\r`;

/** @param {Tab} tab */
async function keys(tab) {
  await tab.evaluate((line) => window.bench.run(line), prompting);
  // `cat` gives every key back, as one byte.
  await tab.evaluate(() => window.bench.send("stty -icanon; printf '\\e[2J\\e[H'; cat\r"), 0);
  await delay(500);
  for (let key = 0; key < KEYS; key++) {
    await tab.press("x");
    await delay(20 + Math.random() * 30); // a person's pace, in step with no frame
  }
  const seen = await tab.evaluate(() => window.bench.keys, 0);
  await interrupt(tab);
  const all = (/** @type {(key: any) => number} */ of) => seen.map(of);
  tell(
    "socket's echo, ms",
    all((key) => key.came - key.left),
  );
  tell(
    "the page adds, ms",
    all((key) => key.left - key.pressed + key.drawn - key.came),
  );
  tell(
    "  of it the screen's next frame is waited for, ms",
    all((key) => key.frame - key.came),
  );
  tell(
    "  of it work, ms",
    all((key) => key.left - key.pressed + key.drawn - key.frame),
  );
  tell("  keys drawn later than in that frame", [seen.filter((key) => key.late).length]);
  tell(
    "key to pixels, ms",
    all((key) => key.drawn - key.pressed),
  );
}

/**
 * Presses Ctrl-C, and gives the ms until the prompt is on the screen.
 *
 * @param {Tab} tab
 */
async function interrupt(tab) {
  const prompt = tab.evaluate(() => window.bench.prompt(), 0);
  await tab.press("c", "ctrl");
  return prompt;
}

/** @param {Tab} tab @param {string} where */
async function interrupts(tab, where) {
  await tab.evaluate((line) => window.bench.run(line), prompting);
  /** @type {number[]} */
  const took = [];
  for (let turn = 0; turn < ROUNDS; turn++) {
    await tab.evaluate(() => window.bench.send("yes\r"), 0);
    await delay(FLOOD_MS);
    took.push(await interrupt(tab));
  }
  await tab.evaluate((line) => window.bench.run(line), "PROMPT_COMMAND=; printf '\\e]0;go\\a'\r");
  tell(`Ctrl-C in 10 s of yes, ${where}, ms`, took);
}

/** @param {Tab} tab @param {string} file */
async function flood(tab, file) {
  const command = `cat ${file}; printf '\\e]0;done\\a'\r`;
  /** @type {number[]} */
  const memory = [];
  /** @type {number[]} */
  const cat = [];
  for (let turn = 0; turn < ROUNDS; turn++) {
    memory.push(await tab.evaluate(() => window.bench.memory(), 0));
    cat.push(await tab.evaluate((line) => window.bench.run(line), command));
  }
  tell("50 MB from memory, ms", memory);
  tell("50 MB by cat, ms", cat);
  tell("  ratio of the medians", [quantile(cat, 0.5) / quantile(memory, 0.5)]);
}

/** @type {() => unknown} */
let end = () => {};
const scope = {
  /** @param {() => unknown} undo */
  after(undo) {
    end = undo;
  },
};
const flags = renderer === "webgl" ? ["--enable-unsafe-swiftshader"] : ["--disable-gpu"];
try {
  const demo = await startDemo(scope);
  const tab = await startUnwatched(scope, flags);
  const dir = await mkdtemp(join(tmpdir(), "termgw-bench-"));
  defer(scope, () => rm(dir, { recursive: true }));
  await writeFile(join(dir, "text"), text());

  await tab.load(PAGE, demo.page);
  const { terminal, tickets } = demo;
  const gateway = { terminal, tickets, workspace: "host", renderer };
  await tab.evaluate((given) => window.bench.open(/** @type {any} */ (given)), gateway);
  await tab.evaluate((line) => window.bench.run(line), "stty -echo; PS1=; printf '\\e]0;go\\a'\r");
  await keys(tab);
  await interrupts(tab, "demo");
  await flood(tab, join(dir, "text"));

  if (skipEngine || skipSite) console.log(skipEngine || skipSite);
  else {
    const engine = await startEngine(scope);
    await engine.run("box");
    const workspace = { id: "box", name: "Box", detail: "" };
    const site = await startSite(scope, engine.host, [workspace]);
    await tab.load(PAGE, site.url);
    const there = {
      terminal: new URL("/workspaces/box/terminal", site.url).href,
      tickets: new URL("/demo/tickets", site.url).href,
      workspace: "box",
      renderer,
    };
    await tab.evaluate((given) => window.bench.open(/** @type {any} */ (given)), there);
    await interrupts(tab, "nginx and Docker");
    await tab.leave(); // else its gateway waits for it
  }
  console.log(JSON.stringify(results));
} finally {
  await end();
}
