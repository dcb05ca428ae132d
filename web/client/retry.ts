/**
 * When a session that ended is tried again. The contract's table (codes.ts)
 * says which ends are worth it; this file says how soon, and when trying stops.
 */
import type { EndReason } from "./codes.js";

/** The longest wait before the first retry and before any; doubled each time between them. */
const pace = {
  now: { first: 1_000, longest: 30_000 },
  fresh_ticket: { first: 1_000, longest: 30_000 },
  // Somebody has to close a terminal first.
  later: { first: 15_000, longest: 60_000 },
} as const;

/** The ends by which the gateway refuses a ticket itself. */
const refusals = new Set(["ticket_missing", "ticket_invalid", "ticket_expired", "ticket_used"]);

export interface Failures {
  /** Sessions that ended since one last stayed open for a while, this end included. */
  attempts: number;
  /** Tickets refused since a session last opened, this one included. */
  refused: number;
}

/** How a session that ended goes on. */
export type Plan =
  /** It does not. */
  | { kind: "stop" }
  /** By itself, after so many milliseconds. */
  | { kind: "wait"; ms: number }
  /** When somebody types: a terminal that nobody used must not open shells by itself. */
  | { kind: "input" };

export function isRefusal(end: EndReason): boolean {
  return refusals.has(end.code);
}

/**
 * Waits a random part of an ever longer time ("full jitter"), so that the
 * clients of a gateway that went away do not come back all at once.
 */
export function plan(end: EndReason, failures: Failures, random: () => number): Plan {
  if (end.retry === "never") return { kind: "stop" };
  // Every attempt has a ticket of its own: a second refusal is no accident.
  if (isRefusal(end) && failures.refused > 1) return { kind: "stop" };
  if (end.code === "idle_timeout") return { kind: "input" };
  const { first, longest } = pace[end.retry];
  const most = Math.min(longest, first * 2 ** Math.min(failures.attempts - 1, 16));
  return { kind: "wait", ms: Math.floor(random() * most) };
}
