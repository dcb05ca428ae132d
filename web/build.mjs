// Builds one thing a call: `dist` (the page that cmd/termgw embeds) or `units`
// (the unit tests, since Node 20 does not read TypeScript).
import { cp, mkdir, readdir, rm } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = fileURLToPath(new URL(".", import.meta.url));

async function buildPage() {
  // .gitkeep stays: Go refuses to embed a folder that is not there.
  for (const name of await readdir(`${root}dist`)) {
    if (name !== ".gitkeep") await rm(`${root}dist/${name}`, { recursive: true });
  }
  await build({
    entryPoints: [`${root}page/main.ts`, `${root}page/style.css`],
    outdir: `${root}dist`,
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    legalComments: "none",
    logLevel: "warning",
  });
  for (const name of ["index.html", "icon.svg"]) {
    await cp(`${root}page/${name}`, `${root}dist/${name}`);
  }
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
  ["dist", buildPage],
  ["units", buildUnits],
]);
const wanted = builds.get(process.argv[2] ?? "");
if (!wanted) {
  console.error(`usage: node build.mjs ${[...builds.keys()].join("|")}`);
  process.exit(2);
}
await wanted();
