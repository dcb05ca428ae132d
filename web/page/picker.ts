/** The dialog in which a workspace is chosen. */
import { element, span } from "./dom.js";
import { NotLetIn, type Platform, type Workspace } from "./platform.js";

export class Picker {
  private readonly dialog = element<HTMLDialogElement>("picker");
  private readonly filter = element<HTMLInputElement>("picker-filter");
  private readonly list = element("picker-list");
  private readonly error = element("picker-error");
  private readonly readOnly = element<HTMLInputElement>("picker-read-only");
  private readonly platform: Platform;
  private readonly chosen: (workspace: Workspace, readOnly: boolean) => void;
  private readonly lost: (cause: unknown) => void;

  private workspaces: Workspace[];
  private shown: Workspace[] = [];
  private at = 0;

  constructor(
    platform: Platform,
    workspaces: Workspace[],
    chosen: (workspace: Workspace, readOnly: boolean) => void,
    lost: (cause: unknown) => void,
  ) {
    this.platform = platform;
    this.workspaces = workspaces;
    this.chosen = chosen;
    this.lost = lost;
    this.filter.addEventListener("input", () => {
      this.at = 0;
      this.show();
    });
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // beside it
    });
    this.list.addEventListener("click", (event) => {
      const item = (event.target as Element).closest("li");
      if (item) this.choose([...this.list.children].indexOf(item));
    });
  }

  open(): void {
    if (this.dialog.open) return;
    this.filter.value = "";
    this.readOnly.checked = false;
    this.at = 0;
    this.error.hidden = true;
    this.show();
    this.dialog.showModal();
    this.filter.focus();
    void this.refresh();
  }

  /** What runs changes: asked each time, while the last answer is shown. */
  private async refresh(): Promise<void> {
    try {
      this.workspaces = await this.platform.workspaces();
      this.show();
    } catch (cause) {
      if (cause instanceof NotLetIn) {
        this.dialog.close();
        this.lost(cause);
        return;
      }
      this.error.textContent = cause instanceof Error ? cause.message : String(cause);
      this.error.hidden = false;
    }
  }

  private key(event: KeyboardEvent): void {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && this.shown.length > 0) {
      event.preventDefault();
      this.at = (this.at + step + this.shown.length) % this.shown.length;
      this.show();
    } else if (event.key === "Enter") {
      event.preventDefault();
      this.choose(this.at);
    }
  }

  private choose(at: number): void {
    const workspace = this.shown[at];
    if (!workspace) return;
    this.dialog.close();
    this.chosen(workspace, this.readOnly.checked);
  }

  private show(): void {
    const wanted = this.filter.value.trim().toLowerCase();
    this.shown = this.workspaces.filter(({ name, detail }) =>
      `${name} ${detail}`.toLowerCase().includes(wanted),
    );
    this.at = Math.min(this.at, Math.max(0, this.shown.length - 1));
    this.list.replaceChildren(
      ...this.shown.map(({ name, detail }, at) => {
        const item = document.createElement("li");
        item.id = `workspace-${at}`;
        item.role = "option";
        item.ariaSelected = String(at === this.at);
        item.append(span("name", name), span("detail", detail));
        return item;
      }),
    );
    if (this.shown.length === 0)
      this.list.replaceChildren(span("none", "No workspace by that name"));
    this.filter.setAttribute("aria-activedescendant", `workspace-${this.at}`);
    this.list.children[this.at]?.scrollIntoView({ block: "nearest" });
  }
}
