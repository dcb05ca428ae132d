/** A typed event source: what connections are listened to with. */
export class Events<Map extends object> {
  private readonly listeners: { [K in keyof Map]?: Set<(event: Map[K]) => void> } = {};

  /** Calls `listener` at each event of that type, until the returned function is called. */
  on<K extends keyof Map>(type: K, listener: (event: Map[K]) => void): () => void {
    const set = this.listeners[type] ?? new Set();
    this.listeners[type] = set;
    set.add(listener);
    return () => {
      set.delete(listener);
    };
  }

  protected emit<K extends keyof Map>(type: K, event: Map[K]): void {
    for (const listener of [...(this.listeners[type] ?? [])]) listener(event);
  }
}
