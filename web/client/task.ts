/**
 * Calls `task` when the browser has done what came before, whether the page is shown or not. Chrome
 * calls the timers of a hidden page that timers have set (a chain of five or more) once a second, and
 * a minute later once a minute, but puts no message off. A timer that `task` sets begins a new chain.
 */
export function soon(task: () => void): void {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => {
    port1.close();
    task();
  };
  port2.postMessage(undefined);
}
