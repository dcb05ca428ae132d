/** The demo page: joins the tabs, the terminals and what is told of them. */
import { element } from "./dom.js";
import { Find } from "./find.js";
import { KeyRow } from "./keys.js";
import { Picker } from "./picker.js";
import { enter, NotLetIn, type Platform, type Workspace } from "./platform.js";
import { TerminalSession } from "./session.js";
import { settings, setUpSettings } from "./settings.js";
import { StatusView } from "./status.js";
import { Tabs } from "./tabs.js";
import { currentTheme, onSystemThemeChange } from "./theme.js";

const OPEN_TABS = "termgw-demo-tabs";

/** What is kept of a tab, so that a reload opens it again. */
interface KeptTab {
  id: string;
  readOnly: boolean;
  chosen: boolean;
}

class Page {
  private readonly platform: Platform;
  private readonly picker: Picker;
  private readonly tabs: Tabs;
  private readonly find = new Find(() => this.chosen);
  private readonly status = new StatusView();
  private readonly keys = new KeyRow(() => this.chosen?.terminal);
  private sessions: TerminalSession[] = [];
  private chosen: TerminalSession | undefined;

  constructor(platform: Platform, workspaces: Workspace[]) {
    this.platform = platform;
    const open = (workspace: Workspace, readOnly: boolean) => this.open(workspace, readOnly);
    this.picker = new Picker(platform, workspaces, open, showGate);
    this.tabs = new Tabs({
      choose: (session) => this.choose(session),
      close: (session) => this.close(session),
      enter: () => this.enter(),
    });
    element("open").addEventListener("click", () => this.picker.open());
    element("welcome-open").addEventListener("click", () => this.picker.open());
    window.addEventListener("keydown", (event) => this.key(event), { capture: true });
    const applySettings = () => this.applySettings();
    setUpSettings(applySettings);
    onSystemThemeChange(applySettings);
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.chosen?.looked();
      this.show();
    });
    // Ctrl+W deletes a word in a shell, and closes the page with all shells in a browser.
    window.addEventListener("beforeunload", (event) => {
      const isLost = ({ used, status: { state, ready } }: TerminalSession) =>
        used && state === "open" && ready?.resume === 0;
      if (this.sessions.some(isLost)) event.preventDefault();
    });
    // Times pass without anything else happening.
    setInterval(() => this.show(), 1_000);
  }

  /** Opens the tabs that a reload closed, else the first workspace. */
  start(workspaces: Workspace[]): void {
    let chosen: TerminalSession | undefined;
    for (const tab of keptTabs()) {
      const workspace = workspaces.find(({ id }) => id === tab.id);
      if (!workspace) continue;
      this.open(workspace, tab.readOnly);
      if (tab.chosen) chosen = this.chosen;
    }
    if (chosen) this.choose(chosen);
    const [first] = workspaces;
    if (!this.chosen && first) this.open(first, false);
    this.enter();
    this.show();
  }

  private open(workspace: Workspace, readOnly: boolean): void {
    const session = new TerminalSession(
      workspace,
      readOnly,
      this.platform,
      element("terminals"),
      (text) => this.keys.apply(text),
      () => this.show(),
    );
    this.sessions.push(session);
    session.connection.connect();
    this.choose(session);
    this.enter();
  }

  private choose(session: TerminalSession): void {
    if (this.chosen !== session) this.find.close();
    this.chosen = session;
    for (const other of this.sessions) other.show(other === session);
    this.keep();
    this.show();
    this.tabs.reveal(session);
  }

  private close(session: TerminalSession): void {
    const at = this.sessions.indexOf(session);
    this.sessions.splice(at, 1);
    if (this.chosen === session) {
      this.find.close();
      this.chosen = undefined;
      const next = this.sessions[at] ?? this.sessions[at - 1];
      if (next) this.choose(next);
    }
    session.remove();
    this.keep();
    this.show();
    if (!this.chosen) element("welcome-open").focus();
    else if (document.activeElement === document.body) this.enter();
  }

  /** Puts the keyboard where the person goes on: the terminal, and from there the button that opens another. */
  private enter(): void {
    if (!this.chosen) return;
    this.chosen.terminal.focus();
    this.status.offer(this.chosen);
  }

  private show(): void {
    this.tabs.show(this.sessions, this.chosen);
    this.status.show(this.chosen);
    element("welcome").hidden = this.chosen !== undefined;
    element("terminals").hidden = this.chosen === undefined;
    const { workspace, title } = this.chosen ?? {};
    const bell = this.sessions.some((session) => session.bell) ? "(!) " : "";
    document.title = bell + [title, workspace?.name, "termgw"].filter(Boolean).join(" · ");
  }

  private keep(): void {
    const kept: KeptTab[] = this.sessions.map((session) => ({
      id: session.workspace.id,
      readOnly: session.readOnly,
      chosen: session === this.chosen,
    }));
    sessionStorage.setItem(OPEN_TABS, JSON.stringify(kept));
  }

  private applySettings(): void {
    for (const { terminal, attached } of this.sessions) {
      terminal.options.theme = currentTheme();
      terminal.options.fontSize = settings.fontSize;
      attached.setScreenReader(settings.screenReader);
      attached.fit();
    }
  }

  /** The page's own keys: Ctrl+Shift, which no program in a terminal can be sent. */
  private key(event: KeyboardEvent): void {
    if (!event.ctrlKey || !event.shiftKey || event.altKey || event.metaKey) return;
    const at = this.chosen ? this.sessions.indexOf(this.chosen) : 0;
    const beside = (step: number) => {
      const session = this.sessions.at((at + step) % this.sessions.length);
      if (session) this.choose(session);
      this.enter();
    };
    const action = {
      KeyO: () => this.picker.open(),
      KeyF: () => this.find.open(),
      KeyE: () => this.tabs.focus(this.chosen),
      ArrowRight: () => beside(1),
      ArrowLeft: () => beside(-1),
    }[event.code];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }
}

function keptTabs(): KeptTab[] {
  try {
    const found: unknown = JSON.parse(sessionStorage.getItem(OPEN_TABS) ?? "[]");
    return Array.isArray(found) ? (found as KeptTab[]) : [];
  } catch {
    return []; // written by another version
  }
}

/** The page cannot be used, and why: what stands in its place. */
function showGate(cause: unknown): void {
  const title = document.createElement("h2");
  title.textContent = cause instanceof NotLetIn ? "This page needs a link" : "Something is missing";
  const text = document.createElement("p");
  text.textContent = cause instanceof Error ? cause.message : String(cause);
  const gate = element("gate");
  gate.replaceChildren(title, text);
  gate.hidden = false;
  document.body.dataset.gate = "";
}

// A new link pasted into this tab changes only the fragment, which loads nothing.
window.addEventListener("hashchange", () => {
  if (location.hash.startsWith("#key=")) location.reload();
});

document.documentElement.dataset.theme = settings.theme;
try {
  const platform = await enter();
  const workspaces = await platform.workspaces();
  new Page(platform, workspaces).start(workspaces);
} catch (cause) {
  showGate(cause);
}
