export { type Attached, attachTerminal } from "./attach.js";
export type { EndCode, EndReason, Exit, Retry } from "./codes.js";
export {
  type Clock,
  type ConnectionConfig,
  type ConnectionEvents,
  type Output,
  type Socket,
  type State,
  TerminalConnection,
} from "./connection.js";
export type { Notice, Ready } from "./messages.js";
