// The WebGL renderer, drawn by Chromium's own software: slow, but the same code.
import assert from "node:assert/strict";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { serveFixture } from "./fixture.mjs";
import { mintTicket, openTab, screen, skip, startBrowser, startDemo, until } from "./harness.mjs";

const SCRIPT = fileURLToPath(new URL("webgl.ts", import.meta.url));

/**
 * @param {import("node:test").TestContext} t
 * @param {string[]} flags
 * @param {"webgl" | "auto"} renderer
 */
async function open(t, flags, renderer) {
  const demo = await startDemo(t);
  const browser = await startBrowser(t, flags);
  // The driver's own remarks on what the test does to it.
  const tab = await openTab(t, browser, demo.page, { expected: /webgl|GL Driver/i });
  const page = await serveFixture(tab, SCRIPT, demo.page);
  page.searchParams.set("renderer", renderer);
  page.searchParams.set("ticket", await mintTicket(demo));
  await tab.goto(page.href);
  await until(() => tab.title(), /^open$/);
  return tab;
}

/** @param {import("playwright-core").Page} tab */
const renderer = (tab) => tab.evaluate(() => window.attached.renderer);

/**
 * How many of the terminal's pixels are red, on the screen as it is shown.
 *
 * @param {import("playwright-core").Page} tab
 */
async function redPixels(tab) {
  const picture = (await tab.locator("#terminal").screenshot()).toString("base64");
  return tab.evaluate(async (png) => {
    const bitmap = await createImageBitmap(
      await (await fetch(`data:image/png;base64,${png}`)).blob(),
    );
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
    if (!context) throw new Error("no canvas");
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
    let red = 0;
    for (let at = 0; at < data.length; at += 4) {
      if ((data[at] ?? 0) > 240 && (data[at + 1] ?? 0) < 15 && (data[at + 2] ?? 0) < 15) red++;
    }
    return red;
  }, picture);
}

test("WebGL draws, and the DOM goes on when the context is lost", { skip }, async (t) => {
  const tab = await open(t, ["--enable-unsafe-swiftshader"], "webgl");
  await until(() => renderer(tab), /^webgl$/);
  assert.equal(await screen(tab), "", "no row is in the DOM");
  await tab.evaluate(() =>
    window.connection.send("clear; printf '\\e[48;2;255;0;0m%40s\\e[0m\\n' x\r"),
  );
  // 40 cells of some 8 by 17 pixels.
  await until(async () => String(await redPixels(tab)), /^\d{4,}$/);

  await tab.evaluate(() => {
    const canvas = [...document.querySelectorAll("canvas")].find((one) => one.getContext("webgl2"));
    canvas?.getContext("webgl2")?.getExtension("WEBGL_lose_context")?.loseContext();
  });
  await until(() => renderer(tab), /^dom$/);
  await until(() => screen(tab), /^ {39}x$/m);
  await until(async () => String(await redPixels(tab)), /^\d{4,}$/);
  await tab.evaluate(() => window.connection.send("echo after-$((1+1))\r"));
  await until(() => screen(tab), /^after-2$/m);
});

test("auto takes the DOM where WebGL is an emulation", { skip }, async (t) => {
  const tab = await open(t, ["--enable-unsafe-swiftshader"], "auto");
  await tab.evaluate(() => window.connection.send("echo drawn-$((1+1))\r"));
  await until(() => screen(tab), /^drawn-2$/m);
  assert.equal(await renderer(tab), "dom");
});

test("wanted, and not there: the DOM draws", { skip }, async (t) => {
  const tab = await open(t, ["--disable-3d-apis"], "webgl");
  await tab.evaluate(() => window.connection.send("echo drawn-$((1+1))\r"));
  await until(() => screen(tab), /^drawn-2$/m);
  assert.equal(await renderer(tab), "dom");
});
