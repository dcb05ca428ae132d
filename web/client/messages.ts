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
  target: "local" | "remote";
  /** `ro`: input is dropped by the gateway. */
  mode: "rw" | "ro";
  /** Bytes the server sends before it waits for an ack. */
  window: number;
  /** Seconds without input before the session ends. */
  idleTimeout: number;
  /** Seconds before the session ends in any case. */
  maxSession: number;
}

/** A word before an end that is coming. */
export interface Notice {
  code: string;
  /** Seconds left. */
  seconds: number;
  message: string;
}

export type ServerMessage =
  | { type: "ready"; ready: Ready }
  | { type: "pong"; id: number }
  | { type: "notice"; notice: Notice }
  | { type: "exit"; exit: Exit }
  | { type: "error"; error: ServerError };

/** Reads one text frame; undefined for a type that this version does not know. */
export function parseServerMessage(text: string): ServerMessage | undefined {
  const fields = new Fields(JSON.parse(text));
  switch (fields.string("type")) {
    case "ready":
      return {
        type: "ready",
        ready: {
          session: fields.string("session"),
          workspace: fields.string("workspace"),
          target: fields.oneOf("target", ["local", "remote"]),
          mode: fields.oneOf("mode", ["rw", "ro"]),
          window: fields.number("window"),
          idleTimeout: fields.number("idle_timeout"),
          maxSession: fields.number("max_session"),
        },
      };
    case "pong":
      return { type: "pong", id: fields.number("id") };
    case "notice":
      return {
        type: "notice",
        notice: {
          code: fields.string("code"),
          seconds: fields.number("seconds"),
          message: fields.string("message"),
        },
      };
    case "exit":
      return {
        type: "exit",
        exit: { code: fields.number("code"), ...fields.optionalString("signal") },
      };
    case "error":
      return {
        type: "error",
        error: {
          code: fields.string("code"),
          message: fields.string("message"),
          retryable: fields.optionalBoolean("retryable"),
          ...fields.optionalString("detail"),
          ...fields.optionalString("docs"),
        },
      };
    default:
      return undefined;
  }
}

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
    if (typeof value !== "string") throw new Error(`"${name}" is no string`);
    return value;
  }

  number(name: string): number {
    const value = this.fields[name];
    if (!Number.isSafeInteger(value)) throw new Error(`"${name}" is no integer`);
    return value as number;
  }

  oneOf<T extends string>(name: string, allowed: readonly T[]): T {
    const value = this.string(name);
    const found = allowed.find((one) => one === value);
    if (found === undefined) throw new Error(`"${name}" is none of ${allowed.join(", ")}`);
    return found;
  }

  optionalString<N extends string>(name: N): { [K in N]?: string } {
    if (this.fields[name] === undefined) return {};
    return { [name]: this.string(name) } as { [K in N]?: string };
  }

  optionalBoolean(name: string): boolean {
    const value = this.fields[name] ?? false;
    if (typeof value !== "boolean") throw new Error(`"${name}" is no boolean`);
    return value;
  }
}
