// The code in docs/canvas.md: its types are checked against the package as it is
// published, and it is run in a browser, at a real gateway.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { serveFixture } from "./fixture.mjs";
import {
  mintTicket,
  openTab,
  sees,
  shareBrowser,
  shows,
  skip,
  startDemo,
  type,
  until,
} from "./harness.mjs";
import { snippets } from "./snippets.mjs";

const openBrowser = shareBrowser();
const web = fileURLToPath(new URL("../../", import.meta.url));
const folder = `${web}build/docs/`;

/** What stands around the snippets in a canvas. */
const around = new Map([
  ["plain-page.ts", 'import "./plain.js";'],
  ["raw-page.ts", 'import "./raw.js";'],
  [
    "react-page.tsx",
    `import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { WorkspaceTerminal } from "./react.js";
import { ticket } from "./ticket.js";
const mint = () => ticket(new AbortController().signal);
const root = createRoot(document.getElementById("terminal") as HTMLElement);
root.render(<StrictMode><WorkspaceTerminal id="host" mint={mint} /></StrictMode>);`,
  ],
  [
    "status-page.ts",
    `import { TerminalConnection } from "@molecule-ai/termgw-client";
import { statusLine } from "./status.js";
import { ticket } from "./ticket.js";
const connection = new TerminalConnection({ url: "/workspaces/host/terminal", ticket });
connection.connect();
const line = document.getElementById("terminal") as HTMLElement;
setInterval(() => (line.textContent = statusLine(connection)), 50);`,
  ],
]);

before(async () => {
  await rm(folder, { recursive: true, force: true });
  await mkdir(folder, { recursive: true });
  for (const [name, text] of [...(await snippets()), ...around]) {
    await writeFile(folder + name, text);
  }
  await writeFile(
    `${folder}tsconfig.json`,
    JSON.stringify({ extends: "../../tsconfig.json", include: ["."] }),
  );
});

test("its types are right, against the package that is published", () => {
  try {
    execFileSync(`${web}node_modules/.bin/tsc`, ["-p", folder], { encoding: "utf8" });
  } catch (cause) {
    assert.fail(/** @type {{stdout: string}} */ (cause).stdout);
  }
});

test("the package is built when it is packed: what it exports, and nothing else", async () => {
  await rm(`${web}client/dist`, { recursive: true });
  const listed = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts=false"], {
    cwd: `${web}client`,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  });
  const answer = JSON.parse(listed);
  const [packed] = Array.isArray(answer) ? answer : Object.values(answer);
  const paths = packed.files.map((/** @type {{path: string}} */ { path }) => path);
  const { exports } = JSON.parse(await readFile(`${web}client/package.json`, "utf8"));
  for (const entry of Object.values(exports)) {
    for (const path of Object.values(entry)) assert.ok(paths.includes(path.slice(2)), path);
  }
  for (const path of paths)
    assert.match(path, /^(dist\/\w+\.(js|d\.ts)|package\.json|README\.md|LICENSE)$/);
  const license = await readFile(`${web}client/LICENSE`, "utf8");
  assert.ok(paths.includes("LICENSE"));
  assert.equal(license, await readFile(`${web}../LICENSE`, "utf8"), "the project's own");
});

test("a server renders it: the element, and no terminal", () => {
  const script = `
    import { createElement as h } from "react";
    import { renderToString } from "react-dom/server";
    import { TerminalConnection } from "@molecule-ai/termgw-client";
    import { TerminalView, useTerminal } from "@molecule-ai/termgw-client/react";
    function App() {
      const ticket = async () => "aaa.bbb.ccc";
      const { connection, status } = useTerminal({ url: "/workspaces/host/terminal", ticket });
      return h("div", null, h(TerminalView, { connection, className: "view" }), status.state);
    }
    console.log(typeof TerminalConnection, renderToString(h(App)));`;
  const printed = execFileSync(process.execPath, ["--input-type=module", "-e", script], {
    cwd: folder,
    encoding: "utf8",
  });
  assert.equal(printed, 'function <div><div class="view"></div>idle</div>\n');
});

test("its declarations need no TypeScript of the last years", async () => {
  const dist = `${web}client/dist/`;
  for (const name of await readdir(dist)) {
    if (!name.endsWith(".d.ts")) continue;
    // Typed arrays have a parameter since TypeScript 5.7.
    assert.doesNotMatch(await readFile(dist + name, "utf8"), /Uint8Array</, name);
  }
});

/**
 * Opens a page of the snippets on the demo's own origin, with its own terminal.
 *
 * @param {import("node:test").TestContext} t
 * @param {string} name
 */
async function open(t, name) {
  const demo = await startDemo(t);
  const tab = await openTab(t, await openBrowser(), demo.page);
  const page = await serveFixture(tab, folder + name, demo.page);
  await tab.route("**/api/workspaces/host/ticket", async (route) =>
    route.fulfill({ json: { ticket: await mintTicket(demo) } }),
  );
  await tab.goto(page.href);
  return tab;
}

test("the lines without React open a terminal", { skip }, async (t) => {
  const tab = await open(t, "plain-page.ts");
  await until(() => tab.title(), /^open$/);
  await type(tab, "echo $((6*7))");
  await sees(tab, /^42$/m);
  await type(tab, "exit");
  await until(() => tab.title(), /^The shell ended$/);
});

test("the lines with React do, and open another one", { skip }, async (t) => {
  const tab = await open(t, "react-page.tsx");
  await shows(tab, "p[role=status]", /^open$/);
  await type(tab, "here=still");
  await tab.reload(); // StrictMode opens and closes everything once
  await shows(tab, "p[role=status]", /^open$/);
  await type(tab, "echo $here-$((6*7)); sleep 0.2; exit 3");
  await sees(tab, /^still-42$/m);
  await shows(tab, "p[role=status]", /^The shell ended\. The shell ended with status 3/);
  await tab.getByRole("button", { name: "Reconnect" }).click();
  await shows(tab, "p[role=status]", /^open$/);
  await type(tab, "echo new-$((1+1))");
  await sees(tab, /^new-2$/m);
});

test("the status line tells", { skip }, async (t) => {
  const tab = await open(t, "status-page.ts");
  await shows(tab, "#terminal", /^local, 29 min left$/);
});

test("raw mode with AttachAddon opens a terminal", { skip }, async (t) => {
  const tab = await open(t, "raw-page.ts");
  await sees(tab, /[#$%>]\s*$/);
  await type(tab, "echo $((6*7))");
  await sees(tab, /^42$/m);
});
