// What the core hands out for others to do. Within one list all writes are committed before anything is sent or told.

export type Json = Record<string, any>;
export type Tables = readonly string[] | null;

export interface Entry {
  n: number;
  update: Json;
  size: number;
}

/** What was refused for good (`state` is `refused`) or waits for a decision (`conflict`). */
export interface Letter extends Entry {
  state: "refused" | "conflict";
  error: Json;
}

/** Writes of the queue. */
export type QueueWrite =
  /** A new entry; `replaces` is the letter that it was, if it is sent once more. */
  | { do: "enqueue"; n: number; update: Json; size: number; replaces: number | null }
  /** Entries up to `n` may reach the cluster from now on. */
  | { do: "markSent"; n: number }
  | { do: "settle"; n: number; last: number }
  | { do: "bury"; n: number; state: Letter["state"]; error: Json; last: number }
  | { do: "forget"; n: number }
  | { do: "queueIs"; id: string; last: number; sent: number }
  | { do: "lastIs"; last: number }
  | { do: "tokenIs"; given: string; token: string };

/** Writes of the copy. */
export type StoreWrite =
  /** A full sync begins: an empty new copy. One that was not finished goes. */
  | { do: "begin"; tables: Tables }
  /** A record's change, unless that copy has a later one. `data` is null for a delete. */
  | { do: "put"; table: string; id: number; version: number; data: Json | null; toCopy: boolean; toFresh: boolean }
  | { do: "cursorIs"; cursor: string | null }
  /** The new copy is whole, and is the copy from now on (of these tables, if it is of some). */
  | { do: "switch"; tables: Tables; cursor: string | null }
  | { do: "abandon" }
  /** Tables that may not be read any more go: those named, or with `others` all that are not named. */
  | { do: "drop"; tables: readonly string[]; others: boolean }
  /** Tables that must still be synced in full, also after a restart. */
  | { do: "owed"; tables: readonly string[] };

export type Write = QueueWrite | StoreWrite;

export type Effect =
  | { do: "send"; event: string; data: Json }
  /** The connection is to end; the driver says `disconnected` when it has. */
  | { do: "close" }
  | { do: "connect"; at: number }
  /** Hand `loadedEntries` the entries after `after`, at most `limit`. */
  | { do: "load"; after: number; limit: number }
  | { do: "tell"; kind: string; data: Json };

export type Action = Write | Effect;

const EFFECTS = new Set(["send", "close", "connect", "load", "tell"]);
export const isWrite = (action: Action): action is Write => !EFFECTS.has(action.do);

/** What the disk holds when a program starts. */
export interface Snapshot {
  queueId: string | null;
  last: number;
  next: number;
  sent: number;
  entries: number;
  letters: number;
  size: number;
  /** conflict_id -> the letter's n and size */
  conflicts: Map<number, [number, number]>;
  cursor: string | null;
  owed: readonly string[];
  tokenGiven: string | null;
  token: string | null;
}
