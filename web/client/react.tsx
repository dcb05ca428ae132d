"use client";
/**
 * The terminal as React sees it: a hook that keeps a connection while a
 * component is there, and an element that shows it. Neither has a style.
 */
import type { ITerminalInitOnlyOptions, ITerminalOptions, Terminal } from "@xterm/xterm";
// As a whole, since Node finds no names in it: a server renders the element, and no terminal.
import * as xterm from "@xterm/xterm";
import {
  type ComponentPropsWithoutRef,
  forwardRef,
  useEffect,
  useImperativeHandle,
  useMemo,
  useRef,
  useSyncExternalStore,
} from "react";
import { type Attached, type AttachOptions, attachTerminal } from "./attach.js";
import {
  checkTicket,
  type ConnectionConfig,
  type Status,
  TerminalConnection,
} from "./connection.js";

/** A connection that opens with the component and is closed with it, and its status. */
export function useTerminal({ url, ticket }: Pick<ConnectionConfig, "url" | "ticket">): {
  connection: TerminalConnection;
  status: Status;
} {
  checkTicket(ticket);
  // A new function at every render is no reason for a new session.
  const latest = useRef(ticket);
  useEffect(() => {
    latest.current = ticket;
  });
  const href = String(url);
  const connection = useMemo(
    () => new TerminalConnection({ url: href, ticket: (signal) => latest.current(signal) }),
    [href],
  );
  const used = useRef<TerminalConnection>(undefined);
  useEffect(() => {
    used.current = connection;
    connection.connect();
    return () => {
      used.current = undefined;
      // StrictMode runs effects twice: a shell that waits for this page is not to end by that.
      queueMicrotask(() => {
        if (used.current !== connection) connection.close();
      });
    };
  }, [connection]);
  const { subscribe, read } = useMemo(
    () => ({
      subscribe: (changed: () => void) => connection.on("status", changed),
      read: () => connection.status,
    }),
    [connection],
  );
  return { connection, status: useSyncExternalStore(subscribe, read, read) };
}

export interface TerminalViewProps extends ComponentPropsWithoutRef<"div"> {
  connection: TerminalConnection;
  /** xterm.js's own, read when the terminal is made: once for each connection. */
  options?: ITerminalOptions & ITerminalInitOnlyOptions;
  /** Read when the terminal is made, as `options` are. */
  attach?: AttachOptions;
  /** Called with the terminal and what attachTerminal gave, once they are there. */
  onTerminal?: (terminal: Terminal, attached: Attached) => void;
}

/**
 * An element that the terminal fills: its size is the caller's to style. The terminal takes the
 * keyboard's focus when it is made.
 */
export const TerminalView = forwardRef<HTMLDivElement, TerminalViewProps>(function TerminalView(
  { connection, options, attach, onTerminal, ...rest },
  ref,
) {
  const box = useRef<HTMLDivElement>(null);
  // React 18 gives a component its ref by forwardRef only.
  useImperativeHandle(ref, () => box.current as HTMLDivElement, []);
  const given = useRef({ options, attach, onTerminal });
  useEffect(() => {
    given.current = { options, attach, onTerminal };
  });
  useEffect(() => {
    if (!box.current) return;
    const terminal = new xterm.Terminal(given.current.options);
    terminal.open(box.current);
    const attached = attachTerminal(terminal, connection, given.current.attach);
    terminal.focus();
    given.current.onTerminal?.(terminal, attached);
    return () => {
      attached.dispose();
      terminal.dispose();
    };
  }, [connection]);
  return <div {...rest} ref={box} />;
});
