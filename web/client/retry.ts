/**
 * When a session that ended is tried again. The contract's table (codes.ts)
 * says which ends are worth it; this file says how soon, and when trying stops.
 */
import type { EndCode, EndReason } from "./codes.js";

/** The longest wait before the first retry and before any; doubled each time between them. */
const pace = {
  now: { first: 1_000, longest: 30_000 },
  fresh_ticket: { first: 1_000, longest: 30_000 },
  // Somebody has to close a terminal first.
  later: { first: 15_000, longest: 60_000 },
} as const;

/**
 * Retries of causes that do not pass by themselves: within a minute and a half on average, three
 * minutes at most. Each may cost the workspace a login, of which an sshd counts the failed ones.
 */
const RETRIES = 10;
/** The longest wait before a retry beyond those, of an end that is in `passing`. */
const SLOW = 60_000;

/** The longest wait before the first try to come back to a shell that waits, and before any. */
const FIRST_QUICK = 200;
const MOST_QUICK = 1_000;

/** The ends that say nothing of the workspace, and that pass without anybody's doing. */
const passing = new Set<EndCode>([
  "connection_lost",
  "unreachable",
  "ticket_unavailable",
  "draining",
]);

/** The ends by which the gateway refuses a ticket itself. */
const refusals = new Set(["ticket_missing", "ticket_invalid", "ticket_expired", "ticket_used"]);

export interface Failures {
  /** Sessions that ended since one last stayed open for a while, this end included. */
  attempts: number;
  /** Ends whose cause does not pass by itself, since somebody typed in a session or one stayed open for long. */
  told: number;
  /** Tickets refused since a session last opened, this one included. */
  refused: number;
}

/** How a session that ended goes on. */
export type Plan =
  /** It does not. `spent`: after as many retries as there are. */
  | { kind: "stop"; spent?: boolean }
  /** By itself, after so many milliseconds. `shown`: only while the page is shown. */
  | { kind: "wait"; ms: number; shown: boolean }
  /** When somebody types: a terminal that nobody used must not open shells by itself. */
  | { kind: "input" };

export const noFailures: Failures = { attempts: 0, told: 0, refused: 0 };

/** The failures with one more end, of an attempt that is counted already. */
export function counted(failures: Failures, end: EndReason): Failures {
  return {
    // The session that stayed open long is not a failed attempt; the next one is the first.
    attempts: Math.max(1, failures.attempts),
    told: failures.told + (passing.has(end.code) ? 0 : 1),
    refused: failures.refused + (refusals.has(end.code) ? 1 : 0),
  };
}

/**
 * Waits a random part of an ever longer time ("full jitter"), so that the
 * clients of a gateway that went away do not come back all at once.
 */
export function plan(end: EndReason, failures: Failures, random: () => number): Plan {
  if (end.retry === "never") return { kind: "stop" };
  // Every attempt has a ticket of its own: a second refusal is no accident.
  if (refusals.has(end.code) && failures.refused > 1) return { kind: "stop" };
  if (end.code === "idle_timeout") return { kind: "input" };
  const passes = passing.has(end.code);
  if (!passes && failures.told > RETRIES) return { kind: "stop", spent: true };
  const shown = passes && failures.attempts > RETRIES;
  const { first, longest } = pace[end.retry];
  const most = shown ? SLOW : Math.min(longest, first * 2 ** Math.min(failures.attempts - 1, 16));
  return { kind: "wait", ms: Math.floor(random() * most), shown };
}

/** Milliseconds before the next try to come back to a shell that waits, over a network that is lost. */
export function quickWait({ attempts }: Failures, random: () => number): number {
  return Math.floor(random() * Math.min(MOST_QUICK, FIRST_QUICK * 2 ** Math.min(attempts, 16)));
}
