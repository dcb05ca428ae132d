/**
 * What a terminal sends by itself: answers to what a program asks, and reports of focus and size.
 * No person typed it. The gateway goes by the same forms for its idle time, where each has its
 * reason (pkg/session/answers.go).
 */
const TEXT = "[^\\x00-\\x1f\\x7f]*(?:\\x07|\\x1b\\\\)";
const ANSWERS = new RegExp(
  `^(?:${[
    "\\x1b\\[[?>=][0-9:;]*[ -/]?[@-~]",
    "\\x1b\\[(?:[0-9]+;|;+[0-9])[0-9;]*R",
    '\\x1b\\[[:;]*[0-9][0-9:;]*(?:[ntxm]|\\$y|"w|\\*[q{])',
    "\\x1b\\[[IO]",
    `\\x1bP[ -?]+[@-~]${TEXT}`,
    `\\x1b\\](?:[0-9]+;|[lL])${TEXT}`,
    `\\x1b_G${TEXT}`,
    "\\x1b/Z",
  ].join("|")})+$`,
);

/** Whether input is nothing but answers. */
export function isAnswer(input: string | Uint8Array): boolean {
  if (typeof input === "string") return ANSWERS.test(input);
  return input[0] === 0x1b && ANSWERS.test(new TextDecoder().decode(input));
}
