// What keeps the queue and the copy. `apply` commits its writes together; what it resolved for survives the program.
import type { Entry, Json, Letter, Snapshot, Write } from "./actions.js";

export interface Row {
  id: number;
  version: number;
  data: Json;
}

export interface Disk {
  snapshot(): Promise<Snapshot>;
  entries(after: number, limit: number): Promise<Entry[]>;
  letters(after: number, limit: number): Promise<Letter[]>;
  record(table: string, id: number): Promise<Row | null>;
  /** Records of a table by their id, after `after`. */
  records(table: string, after: number | null, limit: number): Promise<Row[]>;
  apply(writes: readonly Write[]): Promise<void>;
  close(): Promise<void>;
}

type Copy = Map<string, Map<number, { version: number; data: Json | null }>>;

/** The queue and the copy in memory: what `FileDisk` reads its file into, and what tests use. */
export class Memory {
  queueId: string | null = null;
  last = 0;
  next = 1;
  sent = 0;
  readonly queue = new Map<number, Entry>();
  readonly dead = new Map<number, Letter>();
  tokenGiven: string | null = null;
  token: string | null = null;
  copy: Copy = new Map();
  fresh: Copy | null = null;
  cursor: string | null = null;
  owed: readonly string[] = [];

  snapshot(): Snapshot {
    const all = [...this.queue.values(), ...this.dead.values()];
    const { queueId, last, sent, cursor, owed, tokenGiven, token } = this;
    return {
      queueId, last, sent, cursor, owed, tokenGiven, token,
      next: all.reduce((next, { n }) => Math.max(next, n + 1), this.next),
      entries: this.queue.size,
      letters: this.dead.size,
      size: all.reduce((sum, { size }) => sum + size, 0),
      conflicts: new Map(
        [...this.dead.values()]
          .filter(({ state }) => state === "conflict")
          .map(({ n, size, error }) => [error.conflict_id as number, [n, size]]),
      ),
    };
  }

  apply(write: Write): void {
    switch (write.do) {
      case "enqueue":
        this.queue.set(write.n, { n: write.n, update: write.update, size: write.size });
        this.next = write.n + 1;
        if (write.replaces !== null) this.dead.delete(write.replaces);
        break;
      case "markSent":
        this.sent = write.n;
        break;
      case "settle":
        this.queue.delete(write.n);
        this.last = write.last;
        break;
      case "bury": {
        const entry = this.queue.get(write.n);
        if (entry !== undefined) this.dead.set(write.n, { ...entry, state: write.state, error: write.error });
        this.queue.delete(write.n);
        this.last = write.last;
        break;
      }
      case "forget":
        this.dead.delete(write.n);
        break;
      case "queueIs":
        this.queueId = write.id;
        this.last = write.last;
        this.sent = write.sent;
        break;
      case "lastIs":
        this.last = write.last;
        break;
      case "tokenIs":
        this.tokenGiven = write.given;
        this.token = write.token;
        break;
      case "begin":
        this.fresh = new Map();
        break;
      case "put":
        if (write.toCopy) put(this.copy, write.table, write.id, write.version, write.data, false);
        if (write.toFresh && this.fresh) put(this.fresh, write.table, write.id, write.version, write.data, true);
        break;
      case "cursorIs":
        this.cursor = write.cursor;
        break;
      case "switch": {
        if (this.fresh === null) throw new Error("there is no new copy to switch to");
        for (const rows of this.fresh.values()) for (const [id, { data }] of rows) if (data === null) rows.delete(id);
        if (write.tables === null) this.copy = this.fresh;
        else for (const table of write.tables) this.copy.set(table, this.fresh.get(table) ?? new Map());
        this.fresh = null;
        this.cursor = write.cursor;
        break;
      }
      case "abandon":
        this.fresh = null;
        break;
      case "drop":
        for (const copy of [this.copy, this.fresh ?? new Map()])
          for (const table of [...copy.keys()]) if (write.tables.includes(table) !== write.others) copy.delete(table);
        break;
      case "owed":
        this.owed = write.tables;
        break;
    }
  }

  /** The map is in the order of `n`: entries are only ever added behind. */
  entries(after: number, limit: number): Entry[] {
    const found: Entry[] = [];
    for (const entry of this.queue.values()) {
      if (entry.n > after) found.push(entry);
      if (found.length === limit) break;
    }
    return found;
  }

  letters(after: number, limit: number): Letter[] {
    return [...this.dead.values()].filter(({ n }) => n > after).sort((a, b) => a.n - b.n).slice(0, limit);
  }

  record(table: string, id: number): Row | null {
    const row = this.copy.get(table)?.get(id);
    return row === undefined || row.data === null ? null : { id, version: row.version, data: row.data };
  }

  records(table: string, after: number | null, limit: number): Row[] {
    const ids = [...(this.copy.get(table)?.keys() ?? [])].filter((id) => after === null || id > after);
    return ids.sort((a, b) => a - b).slice(0, limit).flatMap((id) => this.record(table, id) ?? []);
  }
}

function put(copy: Copy, table: string, id: number, version: number, data: Json | null, keepDeleted: boolean): void {
  const rows = copy.get(table) ?? new Map<number, { version: number; data: Json | null }>();
  copy.set(table, rows);
  if ((rows.get(id)?.version ?? 0) > version) return;
  if (data === null && !keepDeleted) rows.delete(id);
  else rows.set(id, { version, data });
}

/** Keeps nothing beyond the program. For tests. */
export class MemoryDisk implements Disk {
  readonly memory = new Memory();
  snapshot = async (): Promise<Snapshot> => this.memory.snapshot();
  entries = async (after: number, limit: number): Promise<Entry[]> => this.memory.entries(after, limit);
  letters = async (after: number, limit: number): Promise<Letter[]> => this.memory.letters(after, limit);
  record = async (table: string, id: number): Promise<Row | null> => this.memory.record(table, id);
  records = async (table: string, after: number | null, limit: number): Promise<Row[]> =>
    this.memory.records(table, after, limit);
  async apply(writes: readonly Write[]): Promise<void> {
    for (const write of writes) this.memory.apply(structuredClone(write));
  }
  async close(): Promise<void> {}
}
