import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { isAnswer } from "../client/answers.js";

// The gateway's list: both sides have to take the same for what nobody typed.
const samples = JSON.parse(readFileSync("../pkg/session/testdata/answers.json", "utf8")) as {
  answers: Record<string, string>;
  person: Record<string, string>;
};

for (const [name, text] of Object.entries(samples.answers)) {
  test(`nobody typed: ${name}`, () => {
    assert.ok(isAnswer(text));
    assert.ok(isAnswer(new TextEncoder().encode(text)));
  });
}

for (const [name, text] of Object.entries(samples.person)) {
  test(`somebody did: ${name}`, () => {
    assert.ok(!isAnswer(text));
    assert.ok(!isAnswer(new TextEncoder().encode(text)));
  });
}

test("a megabyte takes no time: an answer, and what is none", () => {
  const base64 = "aGVsbG8=".repeat(1 << 17);
  const cases: [text: string, answer: boolean][] = [
    [`\x1b]52;c;${base64}\x07`, true],
    [`\x1b]52;c;${base64}`, false],
    ["\x1b[0n".repeat(1 << 18), true],
    [`${"\x1b[0n".repeat(1 << 18)}x`, false],
    [`\x1b[${"1;".repeat(1 << 19)}`, false],
    [`\x1b[${";".repeat(1 << 20)}`, false],
  ];
  for (const [text, answer] of cases) assert.equal(isAnswer(text), answer);
});
