// The disk of a browser: IndexedDB.
import { openDB, type DBSchema, type IDBPDatabase, type IDBPTransaction } from "idb";
import type { Entry, Json, Letter, Snapshot, Write } from "./actions.js";
import type { Disk, Row } from "./disk.js";

interface Schema extends DBSchema {
  meta: { key: string; value: unknown };
  entries: { key: number; value: Entry };
  letters: { key: number; value: Letter };
  records: { key: [number, string, number]; value: { copy: number; table: string; id: number; version: number; data: Json | null } };
}

const STORES = ["meta", "entries", "letters", "records"] as const;
type Transaction = IDBPTransaction<Schema, typeof STORES, "readwrite">;
/** All keys that begin with these. */
const range = (...key: (number | string)[]): IDBKeyRange => IDBKeyRange.bound(key, [...key, []]);

export class IdbDisk implements Disk {
  private constructor(private readonly db: IDBPDatabase<Schema>, private readonly release: () => void) {}

  /** Only one tab at a time may use a name. */
  static async open(name: string): Promise<IdbDisk> {
    const release = await locked(`tillsync ${name}`);
    try {
      const db = await openDB<Schema>(`tillsync ${name}`, 1, {
        upgrade(db) {
          db.createObjectStore("meta");
          db.createObjectStore("entries", { keyPath: "n" });
          db.createObjectStore("letters", { keyPath: "n" });
          db.createObjectStore("records", { keyPath: ["copy", "table", "id"] });
        },
      });
      const disk = new IdbDisk(db, release);
      await disk.apply([{ do: "abandon" }]); // what a full sync had written when the program ended
      return disk;
    } catch (error) {
      release();
      throw error;
    }
  }

  async snapshot(): Promise<Snapshot> {
    const tx = this.db.transaction(STORES);
    const meta = async <T>(name: string, otherwise: T): Promise<T> =>
      ((await tx.objectStore("meta").get(name)) as T | undefined) ?? otherwise;
    let [entries, letters, size, next] = [0, 0, 0, await meta("next", 1)];
    const conflicts = new Map<number, [number, number]>();
    for (let at = await tx.objectStore("entries").openCursor(); at; at = await at.continue()) {
      entries += 1;
      size += at.value.size;
      next = Math.max(next, at.value.n + 1);
    }
    for (let at = await tx.objectStore("letters").openCursor(); at; at = await at.continue()) {
      letters += 1;
      size += at.value.size;
      next = Math.max(next, at.value.n + 1);
      if (at.value.state === "conflict") conflicts.set(at.value.error.conflict_id, [at.value.n, at.value.size]);
    }
    return {
      entries, letters, size, next, conflicts,
      queueId: await meta("queueId", null),
      last: await meta("last", 0),
      sent: await meta("sent", 0),
      cursor: await meta("cursor", null),
      owed: await meta<readonly string[]>("owed", []),
      tokenGiven: await meta("tokenGiven", null),
      token: await meta("token", null),
    };
  }

  entries = (after: number, limit: number): Promise<Entry[]> =>
    this.db.getAll("entries", IDBKeyRange.lowerBound(after, true), limit);

  letters = (after: number, limit: number): Promise<Letter[]> =>
    this.db.getAll("letters", IDBKeyRange.lowerBound(after, true), limit);

  async record(table: string, id: number): Promise<Row | null> {
    const row = await this.db.get("records", [await this.copy(), table, id]);
    return row === undefined || row.data === null ? null : { id, version: row.version, data: row.data };
  }

  async records(table: string, after: number | null, limit: number): Promise<Row[]> {
    const copy = await this.copy();
    const keys = after === null ? range(copy, table) : IDBKeyRange.bound([copy, table, after], [copy, table, []], true);
    const rows: Row[] = [];
    const tx = this.db.transaction("records");
    for (let at = await tx.store.openCursor(keys); at && rows.length < limit; at = await at.continue()) {
      const { id, version, data } = at.value;
      if (data !== null) rows.push({ id, version, data });
    }
    return rows;
  }

  private async copy(): Promise<number> {
    return ((await this.db.get("meta", "copy")) as number | undefined) ?? 0;
  }

  async apply(writes: readonly Write[]): Promise<void> {
    const tx = this.db.transaction(STORES, "readwrite", { durability: "strict" });
    try {
      for (const write of writes) await one(tx, write);
    } catch (error) {
      tx.abort();
      await tx.done.catch(() => {});
      throw error;
    }
    await tx.done;
  }

  async close(): Promise<void> {
    this.db.close();
    this.release();
  }
}

async function locked(name: string): Promise<() => void> {
  if (typeof navigator === "undefined" || !("locks" in navigator)) return () => {};
  return new Promise((resolve, reject) => {
    void navigator.locks.request(name, { ifAvailable: true }, (lock) => {
      if (lock === null) return reject(new Error(`${name} is in use by another tab`));
      return new Promise<void>((release) => resolve(release));
    });
  });
}

async function one(tx: Transaction, write: Write): Promise<void> {
  const [meta, entries, letters, records] = STORES.map((name) => tx.objectStore(name)) as any;
  switch (write.do) {
    case "enqueue":
      await entries.put({ n: write.n, update: write.update, size: write.size });
      await meta.put(write.n + 1, "next");
      if (write.replaces !== null) await letters.delete(write.replaces);
      break;
    case "markSent":
      await meta.put(write.n, "sent");
      break;
    case "settle":
      await entries.delete(write.n);
      await meta.put(write.last, "last");
      break;
    case "bury": {
      const entry: Entry | undefined = await entries.get(write.n);
      if (entry !== undefined) await letters.put({ ...entry, state: write.state, error: write.error });
      await entries.delete(write.n);
      await meta.put(write.last, "last");
      break;
    }
    case "forget":
      await letters.delete(write.n);
      break;
    case "queueIs":
      await meta.put(write.id, "queueId");
      await meta.put(write.last, "last");
      await meta.put(write.sent, "sent");
      break;
    case "lastIs":
      await meta.put(write.last, "last");
      break;
    case "tokenIs":
      await meta.put(write.given, "tokenGiven");
      await meta.put(write.token, "token");
      break;
    case "cursorIs":
      await meta.put(write.cursor, "cursor");
      break;
    case "owed":
      await meta.put(write.tables, "owed");
      break;
    default: {
      const copy: number = (await meta.get("copy")) ?? 0;
      const fresh: number | undefined = await meta.get("fresh");
      await ofCopies(meta, records, copy, fresh, write);
    }
  }
}

async function ofCopies(
  meta: any,
  records: any,
  copy: number,
  fresh: number | undefined,
  write: Write & { do: "begin" | "abandon" | "put" | "switch" | "drop" },
): Promise<void> {
  switch (write.do) {
    case "begin":
    case "abandon":
      if (fresh !== undefined) await records.delete(range(fresh));
      if (write.do === "begin") await meta.put(copy + 1, "fresh");
      else await meta.delete("fresh");
      break;
    case "put":
      for (const to of [write.toCopy ? copy : undefined, write.toFresh ? fresh : undefined]) {
        if (to === undefined) continue;
        const { table, id, version, data } = write;
        const key = [to, table, id];
        if (((await records.get(key))?.version ?? 0) > version) continue;
        if (data === null && to === copy) await records.delete(key);
        else await records.put({ copy: to, table, id, version, data });
      }
      break;
    case "switch":
      if (fresh === undefined) throw new Error("there is no new copy to switch to");
      if (write.tables === null) {
        await records.delete(range(copy));
        await meta.put(fresh, "copy");
      } else
        for (const table of write.tables) {
          await records.delete(range(copy, table));
          for (let at = await records.openCursor(range(fresh, table)); at; at = await at.continue())
            if (at.value.data !== null) await records.put({ ...at.value, copy });
        }
      if (write.tables !== null) await records.delete(range(fresh));
      await meta.delete("fresh");
      await meta.put(write.cursor, "cursor");
      break;
    case "drop":
      for (const of of fresh === undefined ? [copy] : [copy, fresh])
        for (let at = await records.openCursor(range(of)); at; ) {
          const { table } = at.value;
          if (write.tables.includes(table) !== write.others) await records.delete(range(of, table));
          // On to the next table: every id is a number, which comes before a list.
          at = await records.openCursor(IDBKeyRange.bound([of, table, []], [of, []], true));
        }
      break;
  }
}
