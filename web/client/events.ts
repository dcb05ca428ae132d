/** A typed event source: what connections are listened to with. */
export class Events<Map extends object> {
  private readonly listeners: { [K in keyof Map]?: Set<(event: Map[K]) => void> } = {};

  /**
   * Calls `listener` at each event of that type, until the returned function is called. What it
   * throws stops nothing: it is reported as any uncaught error of the page is.
   */
  on<K extends keyof Map>(type: K, listener: (event: Map[K]) => void): () => void {
    const set = this.listeners[type] ?? new Set();
    this.listeners[type] = set;
    set.add(listener);
    return () => {
      set.delete(listener);
    };
  }

  protected emit<K extends keyof Map>(type: K, event: Map[K]): void {
    for (const listener of [...(this.listeners[type] ?? [])]) {
      try {
        listener(event);
      } catch (cause) {
        report(cause);
      }
    }
  }
}

/** To `window.onerror`, and so to the console and to whatever collects errors. */
function report(cause: unknown): void {
  if (typeof globalThis.reportError === "function") globalThis.reportError(cause);
  else {
    setTimeout(() => {
      throw cause;
    });
  }
}
