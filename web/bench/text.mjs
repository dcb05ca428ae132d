/** 50 MB of lines as a build prints them: 100 columns, some of it in colour. */
export function text() {
  const lines = [];
  for (let size = 0, at = 0; size < 50e6; at++) {
    const line = `\x1b[32m${String(at).padStart(8)}\x1b[0m ${"compiling pkg/module ".repeat(4)}ok`;
    lines.push(line);
    size += line.length + 1;
  }
  return `${lines.join("\n")}\n`;
}
