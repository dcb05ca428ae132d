import assert from "node:assert/strict";
import { test } from "node:test";
import { closedEnd, type Retry } from "../client/codes.js";

// The gateway's table, written out again: a change of either side has to be meant.
const contract: [close: number, code: string, retry: Retry][] = [
  [1000, "exit", "never"],
  [1009, "too_large", "never"],
  [1012, "draining", "now"],
  [1013, "overloaded", "now"],
  [4400, "bad_message", "never"],
  [4401, "ticket_missing", "fresh_ticket"],
  [4401, "ticket_invalid", "fresh_ticket"],
  [4401, "ticket_expired", "fresh_ticket"],
  [4403, "ticket_mismatch", "never"],
  [4404, "workspace_not_found", "never"],
  [4404, "container_not_running", "never"],
  [4408, "idle_timeout", "fresh_ticket"],
  [4409, "ticket_used", "fresh_ticket"],
  [4410, "session_expired", "fresh_ticket"],
  [4412, "taken_over", "never"],
  [4423, "revoked", "never"],
  [4429, "too_many_sessions", "later"],
  [4502, "backend_failed", "now"],
  [4503, "store_unavailable", "now"],
  [4503, "keys_unavailable", "now"],
  [4504, "tunnel_expired", "fresh_ticket"],
];

for (const [close, code, retry] of contract) {
  test(`${close} ${code}: by the error message, by the close reason, and a sentence for each`, () => {
    const error = { code, message: "The server's words.", retryable: retry !== "never" };
    const told = closedEnd(close, "", error, undefined);
    assert.equal(told.code, code);
    assert.equal(told.retry, retry);
    assert.equal(told.message, "The server's words.");

    const silent = closedEnd(close, code, undefined, undefined);
    assert.equal(silent.code, code);
    assert.equal(silent.close, close);
    assert.ok(silent.title.length > 0 && silent.message.endsWith("."));
  });

  test(`${close} alone is one of its codes`, () => {
    const { code: found } = closedEnd(close, "", undefined, undefined);
    const sharing = contract.filter((row) => row[0] === close).map((row) => row[1]);
    assert.ok(sharing.includes(found), `${found} is one of ${sharing.join(", ")}`);
  });
}

test("a close reason that belongs to another close code is not believed", () => {
  assert.equal(closedEnd(4423, "exit", undefined, undefined).code, "revoked");
});

for (const [close, code, retry] of contract) {
  if (code === "exit") continue;
  test(`${close} ${code}: the error message's retryable goes over the table`, () => {
    const message = "The server's words.";
    const of = (fields: object) =>
      closedEnd(close, "", { code, message, ...fields }, undefined).retry;
    assert.equal(of({ retryable: false }), "never");
    assert.equal(of({ retryable: true }), retry === "never" ? "fresh_ticket" : retry);
    assert.equal(of({}), retry);
  });
}

// A known close code says how soon, where the server says only that it makes sense.
for (const [close, retryable, retry] of [
  [4000, true, "fresh_ticket"],
  [4000, false, "never"],
  [4000, undefined, "never"],
  [4429, true, "later"],
  [4429, false, "never"],
  [4429, undefined, "later"],
  [4423, true, "fresh_ticket"],
  [4423, undefined, "never"],
  [4502, false, "never"],
  [4503, undefined, "now"],
  [4999, true, "fresh_ticket"],
  [4999, undefined, "never"],
] as const) {
  test(`a code newer than the table, by ${close}, retryable ${retryable}: the server decides`, () => {
    const error = {
      code: "moon_phase",
      message: "Wait for the moon.",
      ...(retryable !== undefined && { retryable }),
    };
    const end = closedEnd(close, "moon_phase", error, undefined);
    assert.equal(end.code, "unknown");
    assert.equal(end.close, close);
    assert.equal(end.retry, retry);
    assert.equal(end.message, "Wait for the moon.");
  });
}

test("an error without a sentence is told by the table's", () => {
  const error = { code: "revoked", message: "" };
  assert.match(closedEnd(4423, "", error, undefined).message, /closed this session/);
});

test("a shell that ended is not opened again by an error that came beside", () => {
  const error = { code: "backend_failed", message: "Too late.", retryable: true };
  const end = closedEnd(4502, "", error, { code: 3 });
  assert.equal(end.code, "exit");
  assert.equal(end.retry, "never");
  assert.match(end.message, /status 3/);
});

for (const close of [1001, 1005, 1011, 4999]) {
  test(`${close} without a word is an end without a reason`, () => {
    assert.equal(closedEnd(close, "", undefined, undefined).code, "unknown");
  });
}
