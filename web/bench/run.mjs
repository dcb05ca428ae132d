// Measures the client in a real Chromium at a real gateway (`termgw demo`), and
// prints what docs/canvas.md tells:
//   npm run bench
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { serveFixture } from "../test/browser/fixture.mjs";
import { defer, mintTicket, skip, startBrowser, startDemo } from "../test/browser/harness.mjs";

const KEYS = 300;
const ROUNDS = 3;
const MEGABYTES = 50;

if (skip) {
  console.error(skip);
  process.exit(1);
}

/** @param {number[]} values @param {number} part */
const quantile = (values, part) =>
  [...values].sort((a, b) => a - b)[
    Math.min(values.length - 1, Math.floor(values.length * part))
  ] ?? 0;
/** @param {number} ms */
const shown = (ms) => ms.toFixed(1).padStart(7);

/** @type {() => unknown} */
let end = () => {};
const scope = {
  /** @param {() => unknown} undo */
  after(undo) {
    end = undo;
  },
};

/** Lines as a build prints them: 100 columns, some of it in colour. */
function text() {
  const lines = [];
  for (let size = 0, at = 0; size < MEGABYTES * 1e6; at++) {
    const line = `\x1b[32m${String(at).padStart(8)}\x1b[0m ${"compiling pkg/module ".repeat(4)}ok`;
    lines.push(line);
    size += line.length + 1;
  }
  return `${lines.join("\n")}\n`;
}

try {
  const demo = await startDemo(scope);
  const browser = await startBrowser(scope);
  const dir = await mkdtemp(join(tmpdir(), "termgw-bench-"));
  defer(scope, () => rm(dir, { recursive: true }));
  const printed = text();
  await writeFile(join(dir, "text"), printed);
  await writeFile(join(dir, "screen"), printed.replaceAll("\n", "\r\n")); // as the tty sends it

  const tab = await browser.newPage({ viewport: { width: 1200, height: 700 } });
  const page = await serveFixture(
    tab,
    fileURLToPath(new URL("page.ts", import.meta.url)),
    demo.page,
  );
  page.searchParams.set("terminal", demo.terminal);
  page.searchParams.set("renderer", process.argv[2] ?? "dom");
  await tab.route("**/ticket", async (route) =>
    route.fulfill({ json: { ticket: await mintTicket(demo) } }),
  );
  await tab.route("**/screen", (route) => route.fulfill({ path: join(dir, "screen") }));
  await tab.goto(page.href);
  await tab.evaluate(() => window.bench.open());
  await tab.locator(".xterm-helper-textarea").focus();

  await tab.evaluate(() => window.bench.flood("stty -echo; PS1=; printf '\\e]0;ready\\a'\r"));
  console.log(`renderer: ${await tab.evaluate(() => window.bench.renderer())}`);

  // `cat` gives every key back, as one byte.
  await tab.evaluate(() => window.bench.send("stty -icanon; printf '\\e[2J\\e[H'; cat\r"));
  await delay(500);
  for (let key = 0; key < KEYS; key++) {
    await tab.keyboard.press("x");
    await delay(20 + Math.random() * 30); // a person's pace, in step with no frame
  }
  const keys = await tab.evaluate(() => window.bench.keys);
  await tab.keyboard.press("Control+c");
  for (const [name, of] of /** @type {const} */ ([
    ["socket's echo", (/** @type {any} */ key) => key.came - key.left],
    ["the page adds", (/** @type {any} */ key) => key.left - key.pressed + key.drawn - key.came],
    ["key to pixels", (/** @type {any} */ key) => key.drawn - key.pressed],
  ])) {
    const values = keys.map(of);
    const [p50, p95] = [quantile(values, 0.5), quantile(values, 0.95)];
    console.log(`${name}: p50 ${shown(p50)} ms, p95 ${shown(p95)} ms (${values.length} keys)`);
  }

  await tab.evaluate(() => window.bench.send("PROMPT_COMMAND=\"printf '\\e]0;prompt\\a'\"\r"));
  /** @type {number[]} */
  const interrupts = [];
  for (let round = 0; round < ROUNDS; round++) {
    await delay(500);
    await tab.evaluate(() => window.bench.send("yes\r"));
    await delay(3_000);
    const prompt = await tab.evaluateHandle(() => ({ shown: window.bench.prompt() }));
    await tab.keyboard.press("Control+c");
    interrupts.push(await prompt.evaluate(({ shown }) => shown));
  }
  console.log(`Ctrl-C in 3 s of yes, to the prompt: ${interrupts.map(shown).join(",")} ms`);
  await tab.evaluate(() => window.bench.flood("PROMPT_COMMAND=; printf '\\e]0;go\\a'\r"));

  /** @type {number[]} */
  const ratios = [];
  for (let round = 0; round < ROUNDS; round++) {
    const memory = await tab.evaluate(() => window.bench.memory("/screen"));
    const command = `cat ${dir}/text; printf '\\e]0;done\\a'\r`;
    const cat = await tab.evaluate((line) => window.bench.flood(line), command);
    ratios.push(cat / memory);
    console.log(
      `${MEGABYTES} MB: from memory ${shown(memory)} ms, by cat ${shown(cat)} ms, ratio ${(cat / memory).toFixed(2)}`,
    );
  }
  console.log(`ratio, median: ${quantile(ratios, 0.5).toFixed(2)}`);
} finally {
  await end();
}
