// Today's canvas: xterm.js and its own AttachAddon, no subprotocol, the ticket
// in the URL's query. The test puts the terminal's URL into this page's query.
import "@xterm/xterm/css/xterm.css";
import { AttachAddon } from "@xterm/addon-attach";
import { Terminal } from "@xterm/xterm";

const url = new URLSearchParams(location.search).get("terminal");
const parent = document.getElementById("terminal");
if (!url || !parent) throw new Error("the page needs ?terminal=URL");

const terminal = new Terminal({ cols: 100, rows: 30 });
terminal.open(parent);
const socket = new WebSocket(url);
terminal.loadAddon(new AttachAddon(socket));
socket.addEventListener("open", () => {
  document.body.dataset.protocol = socket.protocol;
});
socket.addEventListener("close", (event) => {
  document.body.dataset.closed = String(event.code);
});
