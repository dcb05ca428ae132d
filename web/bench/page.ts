// The page in which `npm run bench` measures: the client as a canvas uses it,
// with a look at its socket and at what the renderer has drawn.
import "@xterm/xterm/css/xterm.css";
import { Terminal } from "@xterm/xterm";
import { attachTerminal, type Socket, TerminalConnection } from "../client/index.js";

declare global {
  interface Window {
    bench: {
      open(): Promise<void>;
      send(text: string): void;
      keys: Key[];
      flood(command: string): Promise<number>;
      memory(path: string): Promise<number>;
      prompt(): Promise<number>;
      renderer(): string;
    };
  }
}

/** When, in ms: the key was pressed, its byte left, the echo came, and its frame was drawn. */
interface Key {
  pressed: number;
  left: number;
  came: number;
  drawn: number;
}

const SIZE = { cols: 120, rows: 30, scrollback: 1_000 };
const query = new URLSearchParams(location.search);
const renderer = query.get("renderer") === "webgl" ? "webgl" : "dom";
const parent = document.getElementById("terminal") as HTMLElement;

const terminal = new Terminal(SIZE);
terminal.open(parent);
let pending: Key | undefined;
let lastPressed = 0;
const keys: Key[] = [];

const connection = new TerminalConnection({
  url: query.get("terminal") ?? "",
  ticket: async () => ((await (await fetch("/ticket")).json()) as { ticket: string }).ticket,
  openSocket: (url, protocols) => watched(new WebSocket(url, protocols)),
});
const attached = attachTerminal(terminal, connection, { renderer });

/** Notes when a key's byte leaves and when its echo comes, before the client knows. */
function watched(socket: WebSocket): Socket {
  const send = socket.send.bind(socket);
  socket.send = (data) => {
    if (pending && pending.left === 0 && typeof data !== "string") pending.left = performance.now();
    send(data);
  };
  socket.addEventListener("message", ({ data }) => {
    if (pending && pending.left > 0 && pending.came === 0 && typeof data !== "string") {
      pending.came = performance.now();
    }
  });
  return socket as Socket;
}

parent.addEventListener(
  "keydown",
  ({ timeStamp }) => {
    lastPressed = timeStamp;
    pending = { pressed: timeStamp, left: 0, came: 0, drawn: 0 };
  },
  { capture: true },
);
const afterFrame = new MessageChannel();
terminal.onRender(() => {
  if (pending && pending.came > 0) afterFrame.port1.postMessage(pending); // runs when this frame is done
});
afterFrame.port2.onmessage = () => {
  if (!pending || pending.drawn > 0 || pending.came === 0) return;
  pending.drawn = performance.now();
  keys.push(pending);
  pending = undefined;
};

window.bench = {
  keys,
  renderer: () => attached.renderer,
  send: (text) => connection.send(text),
  open: () =>
    new Promise((resolve) => {
      connection.on("status", ({ state }) => state === "open" && resolve());
      connection.connect();
    }),
  /** Runs a command that ends by setting the title, and gives the ms until that is on the screen. */
  flood: (command) =>
    new Promise((resolve) => {
      const started = performance.now();
      const stop = terminal.onTitleChange(() => {
        stop.dispose();
        terminal.write("", () => requestAnimationFrame(() => resolve(performance.now() - started)));
      });
      connection.send(command);
    }),
  /** The ms from the last key's press until the prompt, which sets the title, is on the screen. */
  prompt: () =>
    new Promise((resolve) => {
      const stop = terminal.onTitleChange(() => {
        stop.dispose();
        requestAnimationFrame(() => resolve(performance.now() - lastPressed));
      });
    }),
  /** Feeds xterm.js the same bytes from memory, as fast as it takes them. */
  memory: async (path) => {
    const bytes = new Uint8Array(await (await fetch(path)).arrayBuffer());
    const started = performance.now();
    let under = 0;
    for (let start = 0; start < bytes.length; start += 65_536) {
      const piece = bytes.subarray(start, start + 65_536);
      under++;
      const written = new Promise<void>((resolve) =>
        terminal.write(piece, () => {
          under--;
          resolve();
        }),
      );
      if (under >= 16) await written; // xterm.js drops what is over 50 MB
    }
    await new Promise<void>((resolve) => terminal.write("", resolve));
    await new Promise(requestAnimationFrame);
    return performance.now() - started;
  },
};
