/** The row of tabs: what it shows, and how it is used by keyboard and mouse. */
import { element, span } from "./dom.js";
import type { TerminalSession } from "./session.js";

export interface TabActions {
  choose(session: TerminalSession): void;
  close(session: TerminalSession): void;
  /** Goes on in the chosen tab's terminal. */
  enter(): void;
}

export class Tabs {
  private readonly row = element("tabs");
  private readonly made = new Map<TerminalSession, HTMLElement>();
  private readonly actions: TabActions;

  constructor(actions: TabActions) {
    this.actions = actions;
  }

  /** Makes the row as `sessions` are; what is there already stays, and keeps the focus. */
  show(sessions: TerminalSession[], chosen: TerminalSession | undefined): void {
    for (const [session, tab] of this.made) {
      if (sessions.includes(session)) continue;
      tab.remove();
      this.made.delete(session);
    }
    for (const session of sessions) {
      const tab = this.made.get(session) ?? this.make(session);
      const isChosen = session === chosen;
      const { state } = session.status;
      tab.dataset.state = state;
      tab.toggleAttribute("data-bad", session.bad);
      tab.toggleAttribute("data-unseen", session.unseen);
      tab.toggleAttribute("data-bell", session.bell);
      tab.ariaSelected = String(isChosen);
      tab.tabIndex = isChosen ? 0 : -1;
      const { name } = session.workspace;
      const number = numberOf(session, sessions);
      const shown = tab.querySelector(".name");
      if (shown && shown.textContent !== name + number) {
        shown.replaceChildren(span("text", name), span("number", number));
      }
      const news = session.bell ? "bell" : session.unseen ? "new output" : "";
      const more = [name + number, session.title, news, state];
      tab.title = more.filter(Boolean).join(" · ");
      tab.ariaLabel = more.filter(Boolean).join(", ");
    }
  }

  focus(session: TerminalSession | undefined): void {
    if (session) this.made.get(session)?.focus();
  }

  reveal(session: TerminalSession): void {
    this.made.get(session)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  private make(session: TerminalSession): HTMLElement {
    const tab = document.createElement("div");
    tab.className = "tab";
    tab.id = session.tabId;
    tab.role = "tab";
    tab.setAttribute("aria-controls", session.id);
    // For the mouse; by keyboard it is Delete, as the tab's keys are described.
    const close = document.createElement("button");
    close.type = "button";
    close.className = "close";
    close.tabIndex = -1;
    close.title = "Close (Delete)";
    close.ariaLabel = "Close";
    close.textContent = "×";
    tab.append(span("dot", ""), span("name", ""), close);
    tab.setAttribute("aria-keyshortcuts", "Delete");
    tab.addEventListener("click", (event) => {
      if (event.target === close) this.actions.close(session);
      else {
        this.actions.choose(session);
        this.actions.enter();
      }
    });
    tab.addEventListener("auxclick", (event) => {
      if (event.button === 1) this.actions.close(session);
    });
    tab.addEventListener("keydown", (event) => this.key(event, session));
    this.row.append(tab);
    this.made.set(session, tab);
    return tab;
  }

  private key(event: KeyboardEvent, session: TerminalSession): void {
    const all = [...this.made.keys()];
    const at = all.indexOf(session);
    const to = {
      ArrowRight: all[(at + 1) % all.length],
      ArrowLeft: all[(at - 1 + all.length) % all.length],
      Home: all[0],
      End: all.at(-1),
    }[event.key];
    if (to) {
      this.actions.choose(to);
      this.focus(to);
    } else if (event.key === "Enter" || event.key === " ") this.actions.enter();
    else if (event.key === "Delete") {
      this.actions.close(session);
      this.focus(all[at + 1] ?? all[at - 1]);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

/** Which of its workspace's tabs it is, where there are several. */
function numberOf(session: TerminalSession, sessions: TerminalSession[]): string {
  const same = sessions.filter(({ workspace }) => workspace.id === session.workspace.id);
  return same.length > 1 ? ` ${same.indexOf(session) + 1}` : "";
}
