export { type Attached, type AttachOptions, attachTerminal, type Found } from "./attach.js";
export type { EndCode, EndReason, Exit, Retry } from "./codes.js";
export {
  type ConnectionConfig,
  type ConnectionEvents,
  type State,
  type Status,
  TerminalConnection,
  type TimeLeft,
  TryAgain,
} from "./connection.js";
export type { Notice, Ready } from "./messages.js";
export type { Clock, Output, Socket } from "./session.js";
export { PAUSE_MS, Typing } from "./typing.js";
