// The code blocks of docs/canvas.md that have a name.
import { readFile } from "node:fs/promises";

/** @returns {Promise<Map<string, string>>} name to text */
export async function snippets() {
  const text = await readFile(new URL("../../../docs/canvas.md", import.meta.url), "utf8");
  const blocks = text.matchAll(/^```\w+ name=(\S+)\n([^]*?)^```$/gm);
  return new Map([...blocks].map(([, name = "", body = ""]) => [name, body]));
}
