// Changes as they are queued, and what is checked of them before.
import { DATA_DEPTH, RECORD_DATA, TABLE_NAME } from "./limits.js";
import type { Json } from "./actions.js";

/** A change that Tillsync would never take. Nothing was queued. `field` names what is wrong. */
export class InvalidChange extends Error {
  constructor(readonly field: string, why: string) {
    super(`${field} ${why}`);
  }
}

/** The queue and its letters hold as much as they may. Nothing was queued. */
export class QueueFull extends Error {}

export interface Change {
  table: string;
  data?: Json;
  id?: number;
  operation?: "insert" | "update" | "delete";
  baseVersion?: number;
}

export const sizeOf = (value: unknown): number => new TextEncoder().encode(JSON.stringify(value)).length;

/** A record's id that no other device draws: 1 to 2^53 - 1. Counters on two tills collide; this does not. */
export function newRecordId(): number {
  for (;;) {
    const [high, low] = crypto.getRandomValues(new Uint32Array(2)) as unknown as [number, number];
    const id = (high >>> 11) * 2 ** 32 + low;
    if (id > 0) return id;
  }
}

/** 128 random bits. */
export const newQueueId = (): string =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** What a token says of itself. It is not verified: only the cluster can. */
export function claimsOf(token: string): Json {
  try {
    const body = (token.split(".")[1] ?? "").replaceAll("-", "+").replaceAll("_", "/");
    const claims = JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(body), (c) => c.charCodeAt(0))));
    if (typeof claims?.sub === "string") return claims;
  } catch {
    // It is none.
  }
  throw new Error("the token is none, or names no device");
}

function depthOf(value: unknown, levels = 0): number {
  if (typeof value !== "object" || value === null || levels > DATA_DEPTH) return levels;
  return Object.values(value).reduce((most: number, inner) => Math.max(most, depthOf(inner, levels + 1)), levels + 1);
}

/** What JSON would change without a word, or Tillsync refuses. */
function reasonAgainst(value: unknown): string | null {
  if (typeof value === "number" && !Number.isFinite(value)) return "has a number that is none";
  if (typeof value === "string" && !(value as any).isWellFormed?.() && /\p{Surrogate}/u.test(value))
    return "has half a surrogate pair";
  if (["undefined", "function", "symbol", "bigint"].includes(typeof value)) return `has a value that is no JSON (${typeof value})`;
  if (typeof value !== "object" || value === null) return null;
  for (const [key, inner] of Object.entries(value)) {
    const why = reasonAgainst(key) ?? reasonAgainst(inner);
    if (why) return why;
  }
  return null;
}

/** The `data_update` of a change, if Tillsync can take it. */
export function checked(device: string, change: Change & { id: number }, timestamp?: string): Json {
  const { table, id, data, operation = "insert", baseVersion } = change;
  if (typeof table !== "string" || !table.trim() || /[\p{Cc}\p{Surrogate}]/u.test(table))
    throw new InvalidChange("table_name", "must be a name that can be seen");
  if (new TextEncoder().encode(table).length > TABLE_NAME)
    throw new InvalidChange("table_name", `has more than ${TABLE_NAME} bytes`);
  if (!Number.isSafeInteger(id)) throw new InvalidChange("record_id", "must be a whole number within 2^53");
  if (!["insert", "update", "delete"].includes(operation)) throw new InvalidChange("operation", "is unknown");
  if (baseVersion !== undefined && !(Number.isSafeInteger(baseVersion) && baseVersion >= 0))
    throw new InvalidChange("base_version", "must be a count");
  const update: Json = { device_id: device, table_name: table, record_id: id, operation };
  if (operation !== "delete") {
    if (typeof data !== "object" || data === null || Array.isArray(data))
      throw new InvalidChange("new_data", "must be an object");
    if (depthOf(data) > DATA_DEPTH) throw new InvalidChange("new_data", `is nested deeper than ${DATA_DEPTH} levels`);
    const why = reasonAgainst(data);
    if (why) throw new InvalidChange("new_data", why);
    if (sizeOf(data) > RECORD_DATA) throw new InvalidChange("new_data", `has more than ${RECORD_DATA} bytes`);
    update.new_data = JSON.parse(JSON.stringify(data)); // the app may go on changing what it gave
  }
  if (baseVersion !== undefined) update.base_version = baseVersion;
  if (timestamp !== undefined) update.timestamp = timestamp;
  return update;
}
