// What a browser has to load, minified and compressed as servers do it (gzip -9).
import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const web = fileURLToPath(new URL("..", import.meta.url));

/** @param {Uint8Array} file */
const compressed = (file) => gzipSync(file, { level: 9 }).length;

/** @param {string[]} entryPoints */
async function bundled(...entryPoints) {
  const { outputFiles } = await build({
    entryPoints: entryPoints.map((name) => `${web}client/${name}`),
    outdir: web,
    bundle: true,
    splitting: true,
    minify: true,
    format: "esm",
    target: "es2022",
    external: ["@xterm/*", "react", "react/jsx-runtime"],
    write: false,
  });
  return outputFiles.reduce((sum, { contents }) => sum + compressed(contents), 0);
}

test("the client package, without xterm.js: under 17 kB", async (t) => {
  const size = await bundled("index.ts", "react.tsx");
  t.diagnostic(`with React's part ${size} bytes, without ${await bundled("index.ts")}`);
  assert.ok(size < 17_000, `${size} bytes`);
});

test("the page: what it loads at first under 135 kB, everything under 180 kB", async (t) => {
  const names = (await readdir(`${web}dist`)).filter((name) => !name.startsWith("."));
  assert.ok(names.includes("main.js"), "the page is built");
  let first = 0;
  let all = 0;
  for (const name of names) {
    const size = compressed(await readFile(`${web}dist/${name}`));
    all += size;
    if (!name.startsWith("addon-")) first += size;
  }
  t.diagnostic(`at first ${first} bytes, with what is loaded when needed ${all}`);
  assert.ok(first < 135_000 && all < 180_000, `${first} and ${all} bytes`);
});
