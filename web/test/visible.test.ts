// What a person is shown of a text that a program wants to put on the clipboard.
import assert from "node:assert/strict";
import { test } from "node:test";
import { visible } from "../page/visible.js";

test("text is shown as it would be pasted", () => {
  for (const [text, shown, size] of [
    ["one", "one", "3 characters"],
    ["a  b", "a  b", "4 characters"],
    ["ls\n", "ls\\n\n", "3 characters with 1 line end"],
    ["a\r\nb\rc\n", "a\\r\\n\nb\\r\nc\\n\n", "7 characters with 3 line ends"],
    ["a\tb", "a\\tb", "3 characters"],
    ["a\\n", "a\\\\n", "3 characters"], // a backslash and an n
    ["a\\\n", "a\\\\\\n\n", "3 characters with 1 line end"],
    ["\x1b[201~\x07\x7f\x9b", "\\u{1b}[201~\\u{7}\\u{7f}\\u{9b}", "9 characters"],
    ["a\u202eb\u2066c\u200fd", "a\\u{202e}b\\u{2066}c\\u{200f}d", "7 characters"],
    ["a\u200bb\u00adc\ufeffd\u{e0041}", "a\\u{200b}b\\u{ad}c\\u{feff}d\\u{e0041}", "9 characters"],
    ["a\u00a0b\u3000c\u2028d\u0085", "a\\u{a0}b\\u{3000}c\\u{2028}d\\u{85}", "8 characters"],
    ["\u3164\u115f\u034f\ufe0f", "\\u{3164}\\u{115f}\\u{34f}\\u{fe0f}", "4 characters"],
    ["größe 漢字 😀 שלום", "größe 漢字 😀 שלום", "16 characters"],
  ] as const) {
    assert.deepEqual(visible(text), { shown, size }, JSON.stringify(text));
  }
});

test("a long text is cut, and its length told", () => {
  assert.deepEqual(visible(`${"x".repeat(1_000)}; rm -rf ~\n`), {
    shown: "x".repeat(1_000),
    size: "1,011 characters with 1 line end, the first 1,000 of them shown",
  });
  assert.equal(visible("x".repeat(1_000)).size, "1,000 characters");
  assert.equal([...visible("😀".repeat(5_000)).shown].length, 1_000);
});
