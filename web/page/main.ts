/** The demo page: the list of workspaces, the chosen one's terminal, its status. */
import { enter, NotLetIn, type Platform, type Workspace } from "./platform.js";
import { TerminalSession } from "./session.js";
import { onThemeChange } from "./theme.js";

const CHOSEN = "termgw-demo-workspace";

/** Ends that are nobody's failure. */
const calm = new Set(["exit", "closed", "idle_timeout", "session_expired", "tunnel_expired"]);

function element<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found as T;
}

const view = {
  list: element("workspaces"),
  listError: element("list-error"),
  refresh: element<HTMLButtonElement>("refresh"),
  terminals: element("terminals"),
  gate: element("gate"),
  panel: element("panel"),
  panelTitle: element("panel-title"),
  panelMessage: element("panel-message"),
  panelMore: element("panel-more"),
  again: element<HTMLButtonElement>("again"),
  status: element("status"),
  state: element("state"),
  workspace: element("workspace"),
  target: element("target"),
  mode: element("mode"),
  size: element("size"),
  roundTrip: element("round-trip"),
};

/** A workspace's terminal stays when another one is looked at. */
const sessions = new Map<string, TerminalSession>();
let chosen: TerminalSession | undefined;
let workspaces: Workspace[] = [];

async function start(): Promise<void> {
  let platform: Platform;
  try {
    platform = await enter();
    workspaces = await platform.workspaces();
  } catch (cause) {
    showGate(cause);
    return;
  }
  const choose = (workspace: Workspace) => chooseWorkspace(platform, workspace);
  const refresh = async () => {
    try {
      workspaces = await platform.workspaces();
      view.listError.hidden = true;
    } catch (cause) {
      if (cause instanceof NotLetIn) return showGate(cause);
      view.listError.textContent = sentence(cause);
      view.listError.hidden = false;
    }
    showList(choose);
  };

  view.refresh.addEventListener("click", refresh);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) refresh();
  });
  view.again.addEventListener("click", () => {
    chosen?.again();
    chosen?.terminal.focus();
  });
  onThemeChange((theme) => {
    for (const session of sessions.values()) session.terminal.options.theme = theme;
  });
  window.addEventListener("keydown", moveByKey, { capture: true });

  showList(choose);
  const last = sessionStorage.getItem(CHOSEN);
  const first = workspaces.find((workspace) => workspace.id === last) ?? workspaces[0];
  if (first) choose(first);
}

function chooseWorkspace(platform: Platform, workspace: Workspace): void {
  let session = sessions.get(workspace.id);
  if (!session) {
    session = new TerminalSession(workspace, platform, view.terminals, show);
    sessions.set(workspace.id, session);
  }
  for (const other of sessions.values()) other.show(other === session);
  chosen = session;
  sessionStorage.setItem(CHOSEN, workspace.id);
  document.title = `${workspace.name} · termgw`;
  if (session.connection.state === "idle") session.connection.connect();
  show();
  if (session.connection.end) view.again.focus();
  else session.terminal.focus();
}

/** Ctrl+Shift+E leaves the terminal, which takes every other key; arrows walk the list. */
function moveByKey(event: KeyboardEvent): void {
  const items = [...view.list.querySelectorAll("button")];
  if (event.ctrlKey && event.shiftKey && event.code === "KeyE") {
    event.preventDefault();
    event.stopPropagation();
    (items.find((item) => item.ariaCurrent === "true") ?? items[0])?.focus();
    return;
  }
  const at = items.indexOf(document.activeElement as HTMLButtonElement);
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
  if (at < 0 || !step) return;
  event.preventDefault();
  items[(at + step + items.length) % items.length]?.focus();
}

function showList(choose: (workspace: Workspace) => void): void {
  const focused = (document.activeElement as HTMLElement | null)?.dataset.id;
  view.list.replaceChildren(
    ...workspaces.map((workspace) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.id = workspace.id;
      button.title = workspace.detail;
      button.append(
        span("dot", ""),
        span("name", workspace.name),
        span("detail", workspace.detail),
      );
      button.addEventListener("click", () => choose(workspace));
      item.append(button);
      return item;
    }),
  );
  for (const button of view.list.querySelectorAll("button")) {
    if (focused !== undefined && button.dataset.id === focused) button.focus();
  }
  showDots();
}

function span(className: string, text: string): HTMLElement {
  const made = document.createElement("span");
  made.className = className;
  made.textContent = text;
  return made;
}

function showDots(): void {
  for (const button of view.list.querySelectorAll("button")) {
    const session = sessions.get(button.dataset.id ?? "");
    showState(button, session);
    button.ariaCurrent = String(session !== undefined && session === chosen);
  }
}

/** Marks an element with a session's state: style.css colours its dot by it. */
function showState(marked: HTMLElement, session: TerminalSession | undefined): void {
  marked.dataset.state = session?.connection.state ?? "idle";
  marked.toggleAttribute("data-bad", isBad(session));
}

function isBad(session: TerminalSession | undefined): boolean {
  const end = session?.connection.end;
  return end !== undefined && !calm.has(end.code);
}

function show(): void {
  showDots();
  showState(view.status, chosen);
  if (!chosen) return;
  const { connection, terminal, workspace, roundTrip } = chosen;
  view.state.textContent = stateWords(chosen);
  view.workspace.textContent = workspace.name;
  view.target.textContent = connection.ready?.target ?? "";
  view.mode.textContent = connection.ready?.mode === "ro" ? "read-only" : "";
  view.size.textContent = `${terminal.cols}×${terminal.rows}`;
  view.roundTrip.textContent = roundTrip === undefined ? "" : milliseconds(roundTrip);
  showPanel(chosen);
}

function stateWords({ connection }: TerminalSession): string {
  switch (connection.state) {
    case "open":
      return "Connected";
    case "ended":
      return connection.end?.title ?? "Ended";
    default:
      return "Connecting…";
  }
}

function milliseconds(ms: number): string {
  return ms < 1 ? "<1 ms" : `${Math.round(ms)} ms`;
}

/** Why the session ended and what to do, or a word on an end that is coming. */
function showPanel(session: TerminalSession): void {
  const { end } = session.connection;
  const { notice } = session;
  const wasHidden = view.again.hidden;
  view.panel.hidden = !end && !notice;
  view.again.hidden = !end;
  view.panelTitle.textContent = end?.title ?? "";
  view.panelMessage.textContent = end?.message ?? notice?.message ?? "";
  view.panel.dataset.kind = notice ? "notice" : isBad(session) ? "bad" : "calm";
  const more = end ? [end.detail, end.docs && `See ${end.docs}`].filter(Boolean).join(" · ") : "";
  view.panelMore.textContent = more;
  view.panelMore.hidden = !more;
  if (!end) return;
  view.again.textContent = end.retry === "never" ? "New session" : "Reconnect";
  // Enter goes on, for whoever was in the terminal when it ended.
  if (wasHidden && view.terminals.contains(document.activeElement)) view.again.focus();
}

function showGate(cause: unknown): void {
  const title = document.createElement("h2");
  title.textContent = cause instanceof NotLetIn ? "This page needs a link" : "Something is missing";
  const text = document.createElement("p");
  text.textContent = sentence(cause);
  view.gate.replaceChildren(title, text);
  view.gate.hidden = false;
  view.terminals.hidden = true;
  view.status.hidden = true;
  view.panel.hidden = true;
  view.refresh.hidden = true;
  view.list.replaceChildren();
}

function sentence(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}

// A new link pasted into this tab changes only the fragment, which loads nothing.
window.addEventListener("hashchange", () => {
  if (location.hash.startsWith("#key=")) location.reload();
});
await start();
