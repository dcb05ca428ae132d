/** The line in which text is looked for in the terminal. */
import { element } from "./dom.js";
import type { TerminalSession } from "./session.js";

export class Find {
  private readonly form = element<HTMLFormElement>("find");
  private readonly text = element<HTMLInputElement>("find-text");
  private readonly count = element("find-count");
  private readonly current: () => TerminalSession | undefined;

  constructor(current: () => TerminalSession | undefined) {
    this.current = current;
    element("find-open").addEventListener("click", () => this.open());
    element("find-close").addEventListener("click", () => this.close());
    element("find-next").addEventListener("click", () => void this.look("next"));
    element("find-previous").addEventListener("click", () => void this.look("previous"));
    this.text.addEventListener("input", () => void this.look("previous"));
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.close();
      // Back in time first: what is looked for was printed above.
      if (event.key === "Enter" && event.target === this.text) {
        event.preventDefault();
        void this.look(event.shiftKey ? "next" : "previous");
      }
    });
  }

  open(): void {
    if (!this.current()) return;
    this.form.hidden = false;
    this.text.select();
    this.text.focus();
  }

  close(): void {
    if (this.form.hidden) return;
    this.form.hidden = true;
    this.count.textContent = "";
    const session = this.current();
    void session?.attached.find("");
    session?.terminal.focus();
  }

  private async look(direction: "next" | "previous"): Promise<void> {
    const session = this.current();
    if (!session) return;
    const wanted = this.text.value;
    const { index, count } = await session.attached.find(wanted, direction);
    if (this.text.value !== wanted) return; // somebody typed on
    const place = index < 0 ? `${count}+` : `${index + 1} of ${count}`;
    this.count.textContent = wanted === "" ? "" : count === 0 ? "None" : place;
  }
}
