// Takes the picture of the demo page that the documentation shows:
//   node test/screenshot.mjs FILE.png [dark|light]
import {
  screen,
  sees,
  shows,
  skip,
  startBrowser,
  startDemo,
  type,
  until,
} from "./browser/harness.mjs";

const [file, scheme = "dark"] = process.argv.slice(2);
if (!file || (scheme !== "dark" && scheme !== "light")) {
  console.error("usage: node test/screenshot.mjs FILE.png [dark|light]");
  process.exit(2);
}
if (skip) {
  console.error(skip);
  process.exit(1);
}

/** @type {(() => unknown)[]} */
const undo = [];
const scope = { after: (/** @type {() => unknown} */ step) => undo.unshift(step) };
try {
  const demo = await startDemo(scope);
  const browser = await startBrowser(scope);
  const tab = await browser.newPage({
    viewport: { width: 1200, height: 750 },
    colorScheme: scheme,
  });
  await tab.goto(demo.page);
  await shows(tab, "#round-trip", / ms$/);
  // A prompt that names neither the machine nor who took the picture.
  await type(
    tab,
    String.raw`cd /usr; PS1='\[\e[1;36m\]\w\[\e[0m\] \[\e[1;32m\]❯\[\e[0m\] '; clear`,
  );
  await until(() => screen(tab), /^\S+ ❯\s*$/);
  await type(tab, "ls -gG --color=always --time-style=long-iso");
  await sees(tab, /share\n(.*\n)*\S+ ❯\s*$/);
  await type(tab, "echo $((6*7))");
  await sees(tab, /^42\n\S+ ❯\s*$/m);
  // The first ping is answered while the page still draws itself.
  await shows(tab, "#round-trip", /^(<1|\d) ms$/);
  await tab.screenshot({ path: file });
} finally {
  for (const step of undo) await step();
}
