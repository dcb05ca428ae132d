// A page of a test's own on the demo's origin, where a canvas would be: only its
// files come from here, the WebSocket goes to the gateway.
import { build } from "esbuild";

const HTML = `<!doctype html>
<link rel="stylesheet" href="/fixture.css" />
<div id="terminal" style="height: 560px"></div>
<script type="module" src="/fixture.js"></script>`;

/**
 * Bundles a script with its styles, and lets the tab load it.
 *
 * @param {import("playwright-core").Page} tab
 * @param {string} script
 * @param {string} origin the demo's
 * @returns {Promise<URL>} where the page is
 */
export async function serveFixture(tab, script, origin) {
  // Chromium does not count a page that a test made up as a local one.
  await tab.context().grantPermissions(["local-network-access"]);
  const { outputFiles } = await build({
    entryPoints: [script],
    outdir: "/",
    bundle: true,
    format: "esm",
    define: { "process.env.NODE_ENV": '"production"' },
    write: false,
  });
  const built = (/** @type {string} */ end) =>
    outputFiles.find(({ path }) => path.endsWith(end))?.text ?? "";
  for (const [path, contentType, body] of /** @type {const} */ ([
    ["fixture.html", "text/html", HTML],
    ["fixture.css", "text/css", built(".css")],
    ["fixture.js", "text/javascript", built(".js")],
  ])) {
    await tab.route(`**/${path}*`, (route) => route.fulfill({ contentType, body }));
  }
  return new URL("/fixture.html", origin);
}
