// The client with the renderer that the address asks for.
import "@xterm/xterm/css/xterm.css";
import { Terminal } from "@xterm/xterm";
import { type Attached, attachTerminal, TerminalConnection } from "../../client/index.js";

declare global {
  interface Window {
    connection: TerminalConnection;
    attached: Attached;
  }
}

const query = new URLSearchParams(location.search);
const terminal = new Terminal();
terminal.open(document.getElementById("terminal") as HTMLElement);
const connection = new TerminalConnection({
  url: "/workspaces/host/terminal",
  ticket: async () => query.get("ticket") ?? "",
});
window.connection = connection;
window.attached = attachTerminal(terminal, connection, {
  renderer: query.get("renderer") === "webgl" ? "webgl" : "auto",
});
connection.on("status", ({ state }) => {
  document.title = state;
});
connection.connect();
