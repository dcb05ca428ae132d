// React's part, with props that the test changes.
import "@xterm/xterm/css/xterm.css";
import { createRef, type RefObject } from "react";
import { createRoot } from "react-dom/client";
import { TerminalConnection } from "../../client/index.js";
import { TerminalView } from "../../client/react.js";

interface Props {
  url: string;
  fontSize: number;
  name: string;
}

declare global {
  interface Window {
    show(props: Props): void;
    /** The terminals that were made: by which `onTerminal`, and with which options. */
    made: string[];
    view: RefObject<HTMLDivElement | null>;
  }
}

window.made = [];
window.view = createRef();
const connections = new Map<string, TerminalConnection>();
const root = createRoot(document.getElementById("terminal") as HTMLElement);
window.show = ({ url, fontSize, name }) => {
  const connection =
    connections.get(url) ?? new TerminalConnection({ url, ticket: async () => "aaa.bbb.ccc" });
  connections.set(url, connection);
  root.render(
    <TerminalView
      ref={window.view}
      connection={connection}
      options={{ fontSize }}
      onTerminal={(terminal) => window.made.push(`${name} ${terminal.options.fontSize}`)}
    />,
  );
};
