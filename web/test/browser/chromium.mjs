// A Chromium that nobody watches, by its own protocol. Playwright has each frame of a WebSocket
// reported to it, in base64: in a flood that takes the browser as long again as the page itself.
// And its pages are never hidden.
import { spawn } from "node:child_process";
import { EventEmitter, once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import WebSocket from "ws";
import { CHROMIUM, CHROMIUM_FLAGS, defer } from "./harness.mjs";

/** @typedef {Awaited<ReturnType<typeof connect>>} Tab */

/**
 * Starts one with one empty page, and gives the address of its protocol.
 *
 * @param {import("./harness.mjs").Scope} scope
 * @param {string[]} flags
 * @param {Record<string, string>} [environment]
 */
export async function startChromium(scope, flags, environment = {}) {
  const dir = await mkdtemp(join(tmpdir(), "termgw-chromium-"));
  defer(scope, () => rm(dir, { recursive: true, force: true, maxRetries: 20 }));
  const own = ["--remote-debugging-port=0", `--user-data-dir=${dir}`, "about:blank"];
  const child = spawn(CHROMIUM ?? "", [...CHROMIUM_FLAGS, ...flags, ...own], {
    stdio: ["ignore", "ignore", "pipe"],
    env: { ...process.env, ...environment },
  });
  const ended = once(child, "exit");
  defer(scope, async () => {
    child.kill();
    await ended;
  });
  return new URL(await debuggerOf(child));
}

/**
 * Talks to a page of a Chromium, the first that it has open at that address.
 *
 * @param {import("./harness.mjs").Scope} scope
 * @param {URL} chromium
 * @param {string} url
 */
export async function openedPage(scope, chromium, url) {
  const page = (await targets(chromium)).find((one) => one.type === "page" && one.url === url);
  if (!page) throw new Error(`no page at ${url}`);
  return connect(scope, page.webSocketDebuggerUrl);
}

/**
 * What a Chromium has open.
 *
 * @param {URL} chromium
 * @returns {Promise<{type: string, url: string, id: string, webSocketDebuggerUrl: string}[]>}
 */
export async function targets({ host }) {
  return (await fetch(`http://${host}/json/list`)).json();
}

/**
 * Opens a page in a tab of its own, in front of all others.
 *
 * @param {import("./harness.mjs").Scope} scope
 * @param {URL} chromium
 * @param {string} url
 */
export async function openPage(scope, { host }, url) {
  const asked = `http://${host}/json/new?${encodeURIComponent(url)}`;
  const page = await (await fetch(asked, { method: "PUT" })).json();
  return connect(scope, page.webSocketDebuggerUrl);
}

/**
 * @param {import("./harness.mjs").Scope} scope
 * @param {string} url a target's `webSocketDebuggerUrl`
 */
export async function connect(scope, url) {
  const socket = new WebSocket(url, { perMessageDeflate: false });
  await once(socket, "open");
  defer(scope, () => socket.close());

  let asked = 0;
  /** @type {Map<number, (answer: any) => void>} */
  const waiting = new Map();
  const events = new EventEmitter();
  socket.on("message", (data) => {
    const answer = JSON.parse(String(data));
    if (answer.method) events.emit(answer.method);
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

  return {
    send,
    /**
     * Waits for an event of the protocol.
     *
     * @param {string} method
     */
    happens: (method) => once(events, method),
    /** Leaves the page alone: Chromium discards none that somebody talks to. */
    close: () => socket.close(),
    /**
     * Calls a function in the page, as Playwright does.
     *
     * @template A, R
     * @param {(argument: A) => R | Promise<R>} run
     * @param {A} argument
     * @returns {Promise<R>}
     */
    async evaluate(run, argument) {
      const expression = `(${run})(${JSON.stringify(argument)})`;
      const wanted = { expression, awaitPromise: true, returnByValue: true };
      const { result, exceptionDetails: fault } = await send("Runtime.evaluate", wanted);
      if (fault) throw new Error(fault.exception?.description ?? fault.text);
      return result.value;
    },
    /**
     * @param {string} key a letter
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
