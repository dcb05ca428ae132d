// A Chromium that nobody watches, with a page for a script to measure in.
import { setTimeout as delay } from "node:timers/promises";
import { build } from "esbuild";
import { openedPage, startChromium } from "../test/browser/chromium.mjs";

const SIZE = { width: 1200, height: 700, deviceScaleFactor: 1, mobile: false };

/**
 * @param {import("../test/browser/harness.mjs").Scope} scope
 * @param {string[]} [flags]
 */
export async function startUnwatched(scope, flags = []) {
  const chromium = await startChromium(scope, ["--headless", ...flags]);
  const { send, evaluate, press } = await openedPage(scope, chromium, "about:blank");
  await send("Emulation.setDeviceMetricsOverride", SIZE);

  return {
    evaluate,
    press,
    /**
     * Runs a script with its styles in a page of a gateway's own origin, which
     * is all that it allows.
     *
     * @param {string} script
     * @param {string} origin
     */
    async load(script, origin) {
      const { outputFiles } = await build({
        entryPoints: [script],
        outdir: "/",
        bundle: true,
        format: "iife",
        minify: true,
        target: "es2022",
        write: false,
      });
      const built = (/** @type {string} */ end) =>
        outputFiles.find(({ path }) => path.endsWith(end))?.text ?? "";
      const url = new URL("/style.css", origin).href; // a document without scripts of its own
      await send("Page.enable");
      await send("Page.navigate", { url });
      while (
        (await evaluate(() => `${location.href} ${document.readyState}`, 0)) !== `${url} complete`
      )
        await delay(50);
      await evaluate((styles) => {
        document.body.innerHTML = '<div id="terminal" style="height: 560px"></div>';
        const style = document.createElement("style");
        style.textContent = styles;
        document.head.append(style);
      }, built(".css"));
      await send("Runtime.evaluate", { expression: `${built(".js")};0` });
    },
    leave: () => send("Page.navigate", { url: "about:blank" }),
  };
}
