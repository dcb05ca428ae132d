// Mints tickets with the jose package from npm. Runs on the platform's server, never in a page.
import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { importJWK, SignJWT, type JWK } from "jose";

export interface TicketKey {
  key: Awaited<ReturnType<typeof importJWK>>;
  alg: string;
  kid: string;
}

/** Reads the key that `termgw ticket keygen` wrote. */
export async function openKey(path: string): Promise<TicketKey> {
  const jwk = JSON.parse(await readFile(path, "utf8")) as JWK;
  if (!jwk.alg || !jwk.kid) throw new Error(`${path} has no alg or no kid`);
  return { key: await importJWK(jwk), alg: jwk.alg, kid: jwk.kid };
}

/**
 * Called when the platform knows who asks, and that this person may open this
 * workspace: the gateway takes the ticket's word for both.
 */
export function ticketFor(by: TicketKey, person: string, workspace: string): Promise<string> {
  return new SignJWT({ workspace_id: workspace })
    .setProtectedHeader({ typ: "termgw-ticket+jwt", alg: by.alg, kid: by.kid })
    .setIssuer("https://platform.example")
    .setAudience("termgw")
    .setSubject(person)
    .setJti(randomUUID())
    .setIssuedAt()
    .setExpirationTime("60s")
    .sign(by.key);
}
