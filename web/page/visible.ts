/**
 * Text of a program that somebody is asked about, in characters that can all be seen: what looks
 * harmless is not to hide a line end, which runs what was pasted, or marks that turn text around.
 */

/** Characters of the text that are shown. */
const MOST = 1_000;
/** Controls, formats such as the marks of direction, spaces but U+0020, what draws nothing; and the sign of an escape. */
const UNSEEN = /(?! )[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}\\]/gu;
const NAMES = new Map([
  ["\n", "\\n"],
  ["\r", "\\r"],
  ["\t", "\\t"],
  ["\\", "\\\\"],
]);

export interface Visible {
  /** How much text it is, and whether all of it is shown. */
  size: string;
  /** The text, or its beginning; a line for each line of it, which ends in an escape. */
  shown: string;
}

export function visible(text: string): Visible {
  const beginning = [...text.slice(0, 2 * MOST)].slice(0, MOST).join("");
  const lines = text.match(/\r\n?|\n/g)?.length ?? 0;
  const size = [
    count(text.length, "character"),
    lines > 0 ? ` with ${count(lines, "line end")}` : "",
    beginning.length < text.length ? `, the first ${MOST.toLocaleString("en")} of them shown` : "",
  ];
  return {
    size: size.join(""),
    shown: beginning.replace(UNSEEN, escape).replace(/(?<!\\)(?:\\\\)*(?:\\r\\n|\\[rn])/g, "$&\n"),
  };
}

function escape(character: string): string {
  return NAMES.get(character) ?? `\\u{${character.codePointAt(0)?.toString(16)}}`;
}

function count(n: number, noun: string): string {
  return `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
}
