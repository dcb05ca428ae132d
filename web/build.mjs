// Builds what it is told to: `client` (the npm package), `dist` (the page that
// cmd/termgw embeds), `units` (the unit tests, since Node 20 does not read TypeScript).
import { execFileSync } from "node:child_process";
import { cp, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = fileURLToPath(new URL(".", import.meta.url));

/** One module a file, as written, with its types: bundlers of whoever uses it do the rest. */
async function buildClient() {
  await rm(`${root}client/dist`, { recursive: true, force: true });
  const tsc = `${root}node_modules/.bin/tsc`;
  execFileSync(tsc, ["-p", `${root}client`], { stdio: "inherit" });
}

async function buildPage() {
  // .gitkeep stays: Go refuses to embed a folder that is not there.
  for (const name of await readdir(`${root}dist`)) {
    if (name !== ".gitkeep") await rm(`${root}dist/${name}`, { recursive: true });
  }
  const { metafile } = await build({
    entryPoints: [`${root}page/main.ts`, `${root}page/style.css`],
    outdir: `${root}dist`,
    bundle: true,
    minify: true,
    // What is imported when it is needed is a file of its own.
    splitting: true,
    chunkNames: "[name]-[hash]",
    format: "esm",
    target: "es2022",
    legalComments: "none", // they are in licenses.txt, whole
    metafile: true,
    absWorkingDir: root,
    logLevel: "warning",
  });
  await writeFile(`${root}dist/licenses.txt`, await licenses(Object.keys(metafile.inputs)));
  for (const name of ["index.html", "icon.svg"]) {
    await cp(`${root}page/${name}`, `${root}dist/${name}`);
  }
}

/**
 * The licences of the packages that these files are of; the build fails where one has none.
 *
 * @param {string[]} inputs as esbuild names them
 */
async function licenses(inputs) {
  const packages = new Set();
  for (const input of inputs) {
    const found = /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input);
    if (found) packages.add(found[1]);
  }
  const parts = ["The licences of what the page is made of.\n"];
  for (const name of [...packages].sort()) {
    const folder = `${root}node_modules/${name}/`;
    const { version } = JSON.parse(await readFile(`${folder}package.json`, "utf8"));
    const files = (await readdir(folder)).filter((file) =>
      /^(licen[cs]e|copying|notice)/i.test(file),
    );
    if (files.length === 0) throw new Error(`${name} has no licence in its package`);
    parts.push(`${"=".repeat(80)}\n${name} ${version}\n`);
    for (const file of files) parts.push(await readFile(folder + file, "utf8"));
  }
  return parts.join("\n");
}

async function buildUnits() {
  await rm(`${root}build`, { recursive: true, force: true });
  await mkdir(`${root}build`);
  const names = (await readdir(`${root}test`)).filter((name) => name.endsWith(".test.ts"));
  await build({
    entryPoints: names.map((name) => `${root}test/${name}`),
    outdir: `${root}build`,
    outExtension: { ".js": ".mjs" },
    bundle: true,
    platform: "node",
    format: "esm",
    target: "node20",
    sourcemap: "inline",
    logLevel: "warning",
  });
}

const builds = new Map([
  ["client", buildClient],
  ["dist", buildPage],
  ["units", buildUnits],
]);
const wanted = process.argv.slice(2);
if (wanted.length === 0 || !wanted.every((name) => builds.has(name))) {
  console.error(`usage: node build.mjs ${[...builds.keys()].join("|")}…`);
  process.exit(2);
}
for (const name of wanted) await builds.get(name)?.();
