// Between RxDB's documents and the cluster's records. The primary key is the record's id in decimal digits; all else of a
// document is the record's data.
import { InvalidChange, newRecordId, type Json } from "@tillsync/client";
import type { RxJsonSchema, WithDeleted } from "rxdb";

/** The primary key of a new document: a record id that no other device draws. */
export const newId = (): string => String(newRecordId());

export function recordId(key: unknown): number {
  const id = Number(key);
  if (typeof key !== "string" || !Number.isSafeInteger(id) || String(id) !== key)
    throw new InvalidChange("record_id", "must be a whole number within 2^53 in decimal digits: newId() draws one");
  return id;
}

/** RxDB's own fields. */
const OWN = new Set(["_deleted", "_rev", "_meta", "_attachments"]);

/** By value, as JSON has it. */
export function same(a: unknown, b: unknown): boolean {
  if (a === b) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  if (Array.isArray(a) !== Array.isArray(b)) return false;
  const [ofA, ofB] = [Object.entries(a), Object.keys(b)];
  return ofA.length === ofB.length && ofA.every(([key, value]) => Object.hasOwn(b, key) && same(value, (b as Json)[key]));
}

type Property = { type?: string | readonly string[]; enum?: readonly unknown[]; default?: unknown; minimum?: number };

/** The value of a required field in a document that is deleted, for storages that validate. */
function blank({ type, enum: values, default: value, minimum }: Property): unknown {
  const [kind] = [type].flat();
  const blanks: Json = { string: "", number: minimum ?? 0, integer: minimum ?? 0, boolean: false, array: [], object: {} };
  return values?.[0] ?? value ?? blanks[kind ?? ""] ?? null;
}

export class Records<T> {
  private readonly blanks: Json = {};

  constructor(readonly primary: string, schema: RxJsonSchema<T>) {
    for (const field of (schema.required ?? []) as readonly string[])
      if (field !== primary && !OWN.has(field)) this.blanks[field] = blank((schema.properties as Json)[field] ?? {});
  }

  /** A record's data without what a document keeps elsewhere. */
  kept(data: Json): Json {
    return Object.fromEntries(
      Object.entries(data).filter(([field, value]) => field !== this.primary && !OWN.has(field) && value !== undefined),
    );
  }

  /** What the record of a document is; null: it is deleted. */
  dataOf(document: WithDeleted<T> | undefined): Json | null {
    return document === undefined || document._deleted ? null : this.kept(document);
  }

  /** What a record's document is; without data it is deleted, and nothing of it is left. */
  documentOf(id: number | string, data: Json | null): WithDeleted<T> {
    const key = { [this.primary]: String(id) };
    const fields = data === null ? { ...this.blanks, ...key, _deleted: true } : { ...this.kept(data), ...key, _deleted: false };
    return fields as WithDeleted<T>;
  }
}
