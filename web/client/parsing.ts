/**
 * When xterm.js parses what is written to it. Its own WriteBuffer (WriteBuffer.ts) goes on by chained
 * timers, which in a hidden page come once a minute: then nothing is acknowledged, and the program
 * stands still. Here it goes on by messages.
 */
import { soon } from "./task.js";

/** Milliseconds of parsing after which the page's other work goes on, as in xterm.js. */
const SLICE_MS = 12;

type Data = string | Uint8Array;

/** What is used of the inside of xterm.js 6.0. */
export interface WriteBuffer {
  write(data: Data, written?: () => void): void;
  /** Called when somebody typed: what is written next is parsed at once. */
  handleUserInput(): void;
  /** Pieces that were written and not parsed. */
  _writeBuffer: Data[];
  /**
   * Parses a piece. With a promise, that of a handler, the piece is not done: it is parsed on when
   * this is called again, with what the promise gave.
   */
  _action(data: Data, handled?: boolean): void | Promise<boolean>;
  _onWriteParsed: { fire(): void };
}

/** Takes the place of a terminal's timers. */
export function parseByMessages(buffer: WriteBuffer): void {
  const { write, _writeBuffer: before, _action: action, _onWriteParsed: parsed } = buffer;
  const pieces: { data: Data; written: (() => void) | undefined }[] = [];
  let isParsing = false; // or is going to
  let hasTyped = false;

  const parse = (since: number, handled?: boolean) => {
    for (let piece = pieces[0]; piece; piece = pieces[0]) {
      const promise = action(piece.data, handled);
      if (promise) {
        promise.catch(throwApart).then((result) => {
          if (isOver(since)) soon(() => parse(performance.now(), result));
          else parse(since, result);
        });
        return;
      }
      pieces.shift();
      piece.written?.();
      if (isOver(since)) break;
    }
    if (pieces.length > 0) soon(start);
    else isParsing = false;
    parsed.fire();
  };
  const start = () => parse(performance.now());

  buffer.handleUserInput = () => {
    hasTyped = true;
  };
  buffer.write = (data, written) => {
    pieces.push({ data, written });
    if (isParsing) return;
    isParsing = true;
    const isAnswer = hasTyped;
    hasTyped = false;
    if (isAnswer) start();
    else soon(start);
  };
  if (before.length > 0) {
    isParsing = true;
    write.call(buffer, "", () => soon(start)); // behind what was written before
  }
}

const isOver = (since: number) => performance.now() - since >= SLICE_MS;

/** What a handler threw is the page's to hear of, and stops nothing. */
function throwApart(fault: unknown): boolean {
  queueMicrotask(() => {
    throw fault;
  });
  return false;
}
