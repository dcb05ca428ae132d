/**
 * The control messages of `termgw.v1`: reading what the server sends. An
 * unknown type or field is ignored, as the protocol asks; a known type with a
 * missing or wrong field is an error, never a guess.
 */
import type { Exit, ServerError } from "./codes.js";

/** The server's first message: the session is open. */
export interface Ready {
  session: string;
  workspace: string;
  /** The kind of place where the shell is: `local`, `remote`, or one that is newer than this package. */
  target: string;
  /** `ro`: input is not sent. A mode that is newer than this package is told as `ro`. */
  mode: "rw" | "ro";
  /** Bytes the server sends before it waits for an ack. */
  window: number;
  /** Seconds without input before the session ends. */
  idleTimeout: number;
  /** Seconds before the session ends in any case. */
  maxSession: number;
  /** Seconds for which the shell waits when its connection is lost; 0: it ends with it. */
  resume: number;
}

/** Where a connection goes on, in bytes of all output and input of its session. */
export interface Resumed {
  /** It is the session that was asked for; else a new one. */
  resumed: boolean;
  /** The offset of the next byte of output. */
  output: number;
  /** Input that the gateway has taken. */
  input: number;
}

/** News of a session that goes on: an end that is coming, or another event. */
export interface Notice {
  /** The code of the end that is coming, or a word of the gateway's. */
  code: string;
  /** Seconds until that end; 0: the gateway gave no time. */
  seconds: number;
  /** A sentence for the person; may be empty. */
  message: string;
}

export type ServerMessage =
  | { type: "ready"; ready: Ready; at: Resumed }
  | { type: "pong"; id: number; input?: number }
  | { type: "notice"; notice: Notice }
  | { type: "exit"; exit: Exit }
  | { type: "error"; error: ServerError };

/** Reads one text frame; undefined for a type that this version does not know. */
export function parseServerMessage(text: string): ServerMessage | undefined {
  const fields = new Fields(JSON.parse(text));
  switch (fields.string("type")) {
    case "ready": {
      const { resume = 0 } = fields.optional("resume", isInteger);
      const { resumed = false } = fields.optional("resumed", isBoolean);
      return {
        type: "ready",
        ready: {
          session: fields.string("session"),
          workspace: fields.string("workspace"),
          target: fields.string("target"),
          mode: fields.string("mode") === "rw" ? "rw" : "ro",
          window: fields.number("window"),
          idleTimeout: fields.number("idle_timeout"),
          maxSession: fields.number("max_session"),
          resume,
        },
        at:
          resumed || resume > 0
            ? { resumed, output: fields.number("output"), input: fields.number("input") }
            : { resumed, output: 0, input: 0 },
      };
    }
    case "pong":
      return { type: "pong", id: fields.number("id"), ...fields.optional("input", isInteger) };
    case "notice":
      return {
        type: "notice",
        notice: {
          code: fields.string("code"),
          seconds: 0,
          message: "",
          ...fields.optional("seconds", isInteger),
          ...fields.optional("message", isString),
        },
      };
    case "exit":
      return {
        type: "exit",
        exit: { code: fields.number("code"), ...fields.optional("signal", isString) },
      };
    case "error":
      return {
        type: "error",
        error: {
          code: fields.string("code"),
          message: fields.string("message"),
          ...fields.optional("retryable", isBoolean),
          ...fields.optional("detail", isString),
          ...fields.optional("docs", isString),
        },
      };
    default:
      return undefined;
  }
}

const isString = (value: unknown): value is string => typeof value === "string";
const isBoolean = (value: unknown): value is boolean => typeof value === "boolean";
const isInteger = (value: unknown): value is number => Number.isSafeInteger(value);

class Fields {
  private readonly fields: Record<string, unknown>;

  constructor(value: unknown) {
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      throw new Error("a control message is one JSON object");
    }
    this.fields = value as Record<string, unknown>;
  }

  string(name: string): string {
    const value = this.fields[name];
    if (!isString(value)) throw new Error(`"${name}" is no string`);
    return value;
  }

  number(name: string): number {
    const value = this.fields[name];
    if (!isInteger(value)) throw new Error(`"${name}" is no integer`);
    return value;
  }

  /** The field as an object to spread: empty where the message has none. */
  optional<N extends string, T>(name: N, is: (value: unknown) => value is T): { [K in N]?: T } {
    const value = this.fields[name];
    if (value === undefined) return {};
    if (!is(value)) throw new Error(`"${name}" is of another type`);
    return { [name]: value } as { [K in N]: T };
  }
}
