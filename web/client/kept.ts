/**
 * What a tab keeps of its terminals, so that a reload of the page comes back to the same shells and
 * screens: in sessionStorage, which is the tab's own and ends with it. A ticket is never in it.
 *
 * Browsers copy sessionStorage when a tab is duplicated. A Web Lock by the name of the session says which
 * page has it. Where a page has no locks, on plain http, a record is there only from the moment
 * in which the page goes until the next one takes it.
 */
import type { Saved } from "./screen.js";

/**
 * The next page may be there before the locks of the last one have gone: with a page that has gone
 * by itself they do, however busy the machine is; else the page may be a copy of one that stays.
 */
const LOCK_MS = { left: 10_000, else: 500 };

/** Of records: those of another are removed. */
const VERSION = 1;
const RECORD = /^termgw wss?:/;

/** What is kept of one terminal. */
export interface Kept {
  session: string;
  /** The client's name, and how many tries it has made. */
  client: string;
  tries: number;
  /** Seconds for which the shell waits, and until when, by `Date.now()`. */
  resume: number;
  until: number;
  /** When the session was opened and when somebody typed last, by `Date.now()`. */
  openedAt: number;
  inputAt: number;
  /** There once the page has gone, or was hidden. */
  screen?: Saved;
  /** The page has gone: nobody has the shell wait beyond `until`. */
  isLeft?: boolean;
}

/** The records that a connection of this page has. */
const taken = new Set<string>();

/** Where the terminal of one connection is kept. */
export class Place {
  /** Records of terminals at the same address, in the order in which they were opened. */
  private readonly prefix: string;
  private name: string | undefined;
  private locked: string | undefined;
  private unlock: () => void = () => {};

  constructor(url: URL) {
    this.prefix = `termgw ${url.href} `;
  }

  /** What the page before this one kept of the first terminal that nobody has taken yet. */
  take(): Kept | undefined {
    purge();
    for (const name of this.names()) {
      const kept = taken.has(name) ? undefined : parse(storage()?.getItem(name));
      if (!kept) continue;
      if (!hasLocks()) storage()?.removeItem(name);
      taken.add(name);
      this.name = name;
      return kept;
    }
    return undefined;
  }

  /**
   * The next one, where another page has that. It is of the tab of which this one is a copy, or of
   * another frame of this tab, which needs it.
   */
  next(): Kept | undefined {
    if (globalThis.window === globalThis.top) this.remove();
    this.name = undefined;
    return this.take();
  }

  /** Has the session, and tells whether no other page has: that of which this tab is a copy. */
  async lock(session: string, isLeft = false): Promise<boolean> {
    if (!hasLocks() || this.locked === session) return true;
    this.unlock();
    this.locked = session;
    const isOurs = () => this.locked === session;
    return new Promise((resolve) => {
      const held = () => {
        resolve(true);
        return new Promise<void>((unlock) => {
          this.unlock = unlock;
          if (!isOurs()) unlock();
        });
      };
      // Of two frames with the same terminal the other may have it.
      const ms = isLeft && globalThis.window === globalThis.top ? LOCK_MS.left : LOCK_MS.else;
      const options = { signal: AbortSignal.timeout(ms) };
      navigator.locks.request(`termgw ${session}`, options, held).catch(() => resolve(false));
    });
  }

  /**
   * Keeps what is there while the page lives, and has the session. Then it has to be free for the next page: what
   * `leave` has kept stays, also where the browser hides the page after that.
   */
  write(kept: Kept): void {
    if (this.locked && hasLocks()) this.put(kept);
  }

  /** The page goes: the next one may take what is kept. */
  leave(kept: Kept): void {
    this.put({ ...kept, isLeft: true });
    this.locked = undefined;
    this.unlock();
  }

  /** The page that went is there again. */
  async comeBack(session: string): Promise<void> {
    if (!hasLocks() && this.name !== undefined) storage()?.removeItem(this.name);
    await this.lock(session);
  }

  /** Nothing is kept any more. */
  remove(): void {
    if (this.name !== undefined) {
      storage()?.removeItem(this.name);
      taken.delete(this.name);
      this.name = undefined;
    }
    this.locked = undefined;
    this.unlock();
  }

  private put(kept: Kept): void {
    if (this.name === undefined) {
      this.name = this.prefix + (1 + Math.max(0, ...this.names().map(numberOf)));
      taken.add(this.name);
    }
    const { screen, ...rest } = kept;
    const lines = screen?.normal.lines.slice(-screen.rows);
    for (const tried of [
      kept,
      // A browser keeps some 5 MB, in all terminals: then without the scrollback, or the screen.
      lines && {
        ...rest,
        screen: { ...screen, normal: { ...screen?.normal, lines, wrapped: [] } },
      },
      rest,
    ]) {
      if (tried && set(this.name, JSON.stringify({ version: VERSION, ...tried }))) return;
    }
  }

  private names(): string[] {
    const names = [...taken, ...Object.keys(storage() ?? {})];
    return [...new Set(names)]
      .filter((name) => name.startsWith(this.prefix))
      .sort((a, b) => numberOf(a) - numberOf(b));
  }
}

function numberOf(name: string): number {
  return Number(name.slice(name.lastIndexOf(" ") + 1));
}

/** A page in a frame may have none, and a server has none. */
function storage(): Storage | undefined {
  try {
    return globalThis.sessionStorage;
  } catch {
    return undefined;
  }
}

function set(name: string, value: string): boolean {
  try {
    storage()?.setItem(name, value);
    return true;
  } catch {
    return false;
  }
}

function hasLocks(): boolean {
  return globalThis.navigator?.locks !== undefined;
}

function parse(text: string | null | undefined): Kept | undefined {
  try {
    const kept = JSON.parse(text ?? "") as Kept & { version: unknown };
    const { version, session, client, tries, resume, until, openedAt, inputAt } = kept;
    const isWhole =
      version === VERSION &&
      typeof session === "string" &&
      typeof client === "string" &&
      [tries, resume, until, openedAt, inputAt].every(Number.isFinite);
    return isWhole ? kept : undefined;
  } catch {
    return undefined;
  }
}

/** Removes what nobody needs any more, of all addresses. */
function purge(): void {
  for (const name of Object.keys(storage() ?? {})) {
    if (!RECORD.test(name) || taken.has(name)) continue;
    const kept = parse(storage()?.getItem(name));
    if (!kept || (kept.isLeft && kept.until < Date.now())) storage()?.removeItem(name);
  }
}
