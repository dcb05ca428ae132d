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

/** The promises of `pause`. */
const pauses = new WeakSet<Promise<boolean>>();
/** A piece is parsed to its end, whatever time that takes. */
let isHurried = false;

/** What a handler gives that lets the page's other work go on, and that no other handler knows of. */
export function pause(): boolean | Promise<boolean> {
  if (isHurried) return false;
  const promise = Promise.resolve(false);
  pauses.add(promise);
  return promise;
}

/**
 * Takes the place of a terminal's timers. What it gives parses the piece that was begun to its end,
 * and tells whether that could be done: not where a handler waits that is not of this package.
 */
export function parseByMessages(buffer: WriteBuffer): () => boolean {
  const { write, _writeBuffer: before, _action: action, _onWriteParsed: parsed } = buffer;
  const pieces: { data: Data; written: (() => void) | undefined }[] = [];
  let isParsing = false; // or is going to
  let hasTyped = false;
  /** The handler's promise for which the first piece waits. */
  let awaited: Promise<boolean> | undefined;

  const parse = (since: number, handled?: boolean, isOne = false) => {
    for (let piece = pieces[0]; piece; piece = pieces[0]) {
      const promise = action(piece.data, handled);
      if (promise) {
        awaited = promise;
        promise.catch(throwApart).then((result) => {
          const goOn = (since: number) => {
            if (awaited !== promise) return; // parsed on already
            awaited = undefined;
            parse(since, result);
          };
          if (isOver(since)) soon(() => goOn(performance.now()));
          else goOn(since);
        });
        return;
      }
      handled = undefined;
      pieces.shift();
      piece.written?.();
      if (isOne || isOver(since)) break;
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
  return () => {
    if (!awaited) return true;
    if (!pauses.has(awaited)) return false;
    awaited = undefined;
    isHurried = true;
    try {
      parse(performance.now(), false, true);
    } finally {
      isHurried = false;
    }
    return awaited === undefined;
  };
}

const isOver = (since: number) => performance.now() - since >= SLICE_MS;

/** What a handler threw is the page's to hear of, and stops nothing. */
function throwApart(fault: unknown): boolean {
  queueMicrotask(() => {
    throw fault;
  });
  return false;
}
