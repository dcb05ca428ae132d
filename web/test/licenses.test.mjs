// The licences of what is in the page's own files.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const web = fileURLToPath(new URL("..", import.meta.url));

test("the page has the licence of each package in it", async () => {
  const text = await readFile(`${web}dist/licenses.txt`, "utf8");
  // What the client wants to have beside it, and the page gives it.
  const { peerDependencies } = JSON.parse(await readFile(`${web}client/package.json`, "utf8"));
  const names = Object.keys(peerDependencies).filter((name) => name.startsWith("@xterm/"));
  assert.ok(names.length > 1);
  for (const name of names) {
    const { version } = JSON.parse(
      await readFile(`${web}node_modules/${name}/package.json`, "utf8"),
    );
    const at = text.indexOf(`\n${name} ${version}\n`);
    assert.ok(at > 0, `${name} ${version} is named`);
    const license = await readFile(`${web}node_modules/${name}/LICENSE`, "utf8");
    assert.ok(text.startsWith(license, at + `\n${name} ${version}\n\n`.length), name);
  }
});
