// A Chromium that nobody watches. Playwright has each frame of a WebSocket reported to it, in
// base64: in a flood that takes the browser as long again as the page itself.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { build } from "esbuild";
import WebSocket from "ws";
import { CHROMIUM, CHROMIUM_FLAGS, defer } from "../test/browser/harness.mjs";

const SIZE = { width: 1200, height: 700, deviceScaleFactor: 1, mobile: false };

/**
 * Starts one with one page, and talks to it by Chromium's own protocol.
 *
 * @param {import("../test/browser/harness.mjs").Scope} scope
 * @param {string[]} [flags]
 */
export async function startUnwatched(scope, flags = []) {
  const dir = await mkdtemp(join(tmpdir(), "termgw-chromium-"));
  defer(scope, () => rm(dir, { recursive: true, force: true, maxRetries: 20 }));
  const own = ["--headless", "--remote-debugging-port=0", `--user-data-dir=${dir}`, "about:blank"];
  const child = spawn(CHROMIUM ?? "", [...CHROMIUM_FLAGS, ...flags, ...own], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  const ended = once(child, "exit");
  defer(scope, async () => {
    child.kill();
    await ended;
  });
  const { host } = new URL(await debuggerOf(child));
  const targets = await (await fetch(`http://${host}/json/list`)).json();
  const page = targets.find((/** @type {{type: string}} */ { type }) => type === "page");
  const socket = new WebSocket(page.webSocketDebuggerUrl, { perMessageDeflate: false });
  await once(socket, "open");
  defer(scope, () => socket.close());

  let asked = 0;
  /** @type {Map<number, (answer: any) => void>} */
  const waiting = new Map();
  socket.on("message", (data) => {
    const answer = JSON.parse(String(data));
    waiting.get(answer.id)?.(answer);
    waiting.delete(answer.id);
  });
  /** @type {(method: string, params?: object) => Promise<any>} */
  const send = async (method, params = {}) => {
    const id = ++asked;
    socket.send(JSON.stringify({ id, method, params }));
    const answer = await new Promise((resolve) => waiting.set(id, resolve));
    if (answer.error) throw new Error(`${method}: ${answer.error.message}`);
    return answer.result;
  };
  await send("Emulation.setDeviceMetricsOverride", SIZE);

  /**
   * Calls a function in the page, as Playwright does.
   *
   * @template A, R
   * @param {(argument: A) => R | Promise<R>} run
   * @param {A} argument
   * @returns {Promise<R>}
   */
  const evaluate = async (run, argument) => {
    const expression = `(${run})(${JSON.stringify(argument)})`;
    const wanted = { expression, awaitPromise: true, returnByValue: true };
    const { result, exceptionDetails: fault } = await send("Runtime.evaluate", wanted);
    if (fault) throw new Error(fault.exception?.description ?? fault.text);
    return result.value;
  };

  return {
    evaluate,
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
    /**
     * @param {string} key
     * @param {"ctrl"} [modifier]
     */
    async press(key, modifier) {
      const code = `Key${key.toUpperCase()}`;
      const windowsVirtualKeyCode = key.toUpperCase().charCodeAt(0);
      const common = { key, code, windowsVirtualKeyCode, modifiers: modifier ? 2 : 0 };
      const text = modifier ? {} : { text: key };
      await send("Input.dispatchKeyEvent", { ...common, ...text, type: "keyDown" });
      await send("Input.dispatchKeyEvent", { ...common, type: "keyUp" });
    },
  };
}

/** @param {import("node:child_process").ChildProcess} child */
async function debuggerOf(child) {
  let said = "";
  if (child.stderr) {
    for await (const line of createInterface({ input: child.stderr })) {
      const found = /DevTools listening on (ws:\S+)/.exec(line);
      if (found?.[1]) {
        child.stderr.resume();
        return found[1];
      }
      said += `${line}\n`;
    }
  }
  throw new Error(`Chromium does not start: ${said}`);
}
