/**
 * The demo platform, as the page sees it: who may use the page, which
 * workspaces there are, and a ticket for one of them.
 *
 * The page is let in by the one-time secret in its URL's fragment, which it
 * trades for a token. The token is kept in sessionStorage: that is per tab and
 * per origin, port included, while a cookie would go to every port of the host.
 */

import { TryAgain } from "../client/index.js";

const TOKEN = "termgw-demo-token";

export interface Workspace {
  id: string;
  name: string;
  detail: string;
}

/** The page itself is not let in: nothing here works until another link is opened. */
export class NotLetIn extends Error {}

/** Trades the fragment's secret for a token, or takes up the tab's own. */
export async function enter(): Promise<Platform> {
  const known = sessionStorage.getItem(TOKEN);
  const key = takeKey();
  if (key) {
    const answer = await request("/demo/session", "POST", key);
    if (answer.ok) {
      const { token } = (await answer.json()) as { token: string };
      sessionStorage.setItem(TOKEN, token);
      return new Platform(token);
    }
    // The link opened twice in one tab: that tab was let in before.
    if (answer.status !== 401) throw await problem(answer);
    if (!known) {
      throw new NotLetIn(
        "This link was already used: it lets in one tab. If the terminal where termgw demo runs " +
          "shows no newer one, start it again.",
      );
    }
  }
  if (!known) {
    throw new NotLetIn("Open the link that termgw demo printed in the terminal where it runs.");
  }
  return new Platform(known);
}

export class Platform {
  private readonly token: string;

  constructor(token: string) {
    this.token = token;
  }

  async workspaces(): Promise<Workspace[]> {
    return (await this.call("/demo/workspaces", "GET")) as Workspace[];
  }

  async ticket(workspace: string, readOnly: boolean, signal: AbortSignal): Promise<string> {
    const wanted = { workspace, mode: readOnly ? "ro" : "rw" };
    const answer = await this.call("/demo/tickets", "POST", wanted, signal);
    return (answer as { ticket: string }).ticket;
  }

  private async call(
    path: string,
    method: string,
    body?: object,
    signal?: AbortSignal,
  ): Promise<unknown> {
    const answer = await request(path, method, this.token, body, signal);
    if (answer.status === 401) {
      sessionStorage.removeItem(TOKEN);
      throw new NotLetIn(
        "termgw demo was started again since this page was opened. Open the link that it printed.",
      );
    }
    if (!answer.ok) throw await problem(answer);
    return answer.json();
  }
}

/** Reads the secret and takes it out of the address bar and the tab's history. */
function takeKey(): string | null {
  const key = new URLSearchParams(location.hash.slice(1)).get("key");
  if (key) history.replaceState(null, "", location.pathname + location.search);
  return key;
}

async function request(
  path: string,
  method: string,
  bearer: string,
  body?: object,
  signal?: AbortSignal,
): Promise<Response> {
  const init: RequestInit = { method, headers: { Authorization: `Bearer ${bearer}` } };
  if (body) init.body = JSON.stringify(body);
  if (signal) init.signal = signal;
  try {
    return await fetch(path, init);
  } catch {
    throw new TryAgain("termgw demo does not answer. Check that it still runs.");
  }
}

/** The server's own words (RFC 9457). */
async function problem(answer: Response): Promise<Error> {
  let words = `termgw demo answered ${answer.status} ${answer.statusText}.`;
  try {
    const { title, detail } = (await answer.json()) as { title?: string; detail?: string };
    words = detail || title || words;
  } catch {
    // No JSON: the status is all there is.
  }
  // 5xx: it, or a proxy before it, is in trouble that may pass.
  return answer.status >= 500 ? new TryAgain(words) : new Error(words);
}
