/**
 * Whether somebody is in the middle of typing. What they type for a shell that
 * went away is not to reach the next one, nor to press a button that came up.
 */

/** Milliseconds without a key after which somebody has seen what is on the screen. */
export const PAUSE_MS = 1_000;

/** Follows the keys that are pressed within an element. Those without a pause between them are one run. */
export class Typing {
  private pressedAt = -PAUSE_MS;
  private runs = 0;
  private keys = 0;
  /** Stops following. */
  readonly stop: () => void;

  constructor(target: EventTarget) {
    const press = (event: Event) => {
      if (event.timeStamp - this.pressedAt >= PAUSE_MS) {
        this.runs++;
        this.keys = 0;
      }
      this.keys++;
      this.pressedAt = event.timeStamp;
    };
    target.addEventListener("keydown", press, { capture: true });
    this.stop = () => target.removeEventListener("keydown", press, { capture: true });
  }

  /** Milliseconds until the run is over, if no more is typed; 0: nobody types. */
  get left(): number {
    return Math.max(0, this.pressedAt + PAUSE_MS - performance.now());
  }

  /** The number of the run; 0: nobody types. */
  get run(): number {
    return this.left > 0 ? this.runs : 0;
  }

  /** The key that was pressed last followed another one without a pause. */
  get isAmid(): boolean {
    return this.left > 0 && this.keys > 1;
  }
}
