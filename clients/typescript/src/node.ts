// The disk of a program in Node.js: two files of JSON lines in one folder. The queue and the copy are held in memory, too.
import { closeSync, fsyncSync, ftruncateSync, mkdirSync, openSync, readFileSync, renameSync, unlinkSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import type { Entry, Letter, Snapshot, Write } from "./actions.js";
import { Memory, type Disk, type Row } from "./disk.js";

const QUEUE = new Set(["enqueue", "markSent", "settle", "bury", "forget", "queueIs", "lastIs", "tokenIs"]);

/** A file of JSON lines, each one what was committed together. What a crash left unfinished at its end does not count. */
class Journal {
  private file = -1;
  private bytes = 0;
  lines = 0;

  constructor(private readonly path: string, private readonly durable: boolean) {}

  *read(): Generator<Write[]> {
    let text: string;
    try {
      text = readFileSync(this.path, "utf8");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
      throw error;
    }
    for (const line of text.split("\n").slice(0, -1)) {
      let writes: unknown;
      try {
        writes = JSON.parse(line);
      } catch {
        return;
      }
      if (!Array.isArray(writes)) return;
      yield writes;
    }
  }

  add(writes: readonly Write[]): void {
    const line = Buffer.from(JSON.stringify(writes) + "\n");
    try {
      for (let at = 0; at < line.length; ) at += writeSync(this.file, line, at, line.length - at, this.bytes + at);
      if (this.durable) fsyncSync(this.file);
    } catch (error) {
      ftruncateSync(this.file, this.bytes); // nothing may come after half a line
      throw error;
    }
    this.bytes += line.length;
    this.lines++;
  }

  rewrite(lines: Iterable<Write[]>): void {
    const next = new Journal(this.path, this.durable);
    next.file = openSync(this.path + ".new", "w", 0o600);
    try {
      for (const writes of lines) {
        const line = Buffer.from(JSON.stringify(writes) + "\n");
        for (let at = 0; at < line.length; ) at += writeSync(next.file, line, at);
        next.bytes += line.length;
        next.lines++;
      }
      fsyncSync(next.file);
      renameSync(this.path + ".new", this.path);
    } catch (error) {
      next.close();
      throw error;
    }
    if (this.file >= 0) closeSync(this.file);
    [this.file, this.bytes, this.lines] = [next.file, next.bytes, next.lines];
  }

  close(): void {
    if (this.file >= 0) closeSync(this.file);
    this.file = -1;
  }
}

function syncFolder(folder: string): void {
  try {
    const file = openSync(folder, "r");
    fsyncSync(file);
    closeSync(file);
  } catch {
    // Windows cannot, and need not.
  }
}

/** Only one program at a time may use a folder. The lock of one that was killed is taken over. */
function lock(path: string): void {
  for (;;) {
    try {
      return writeFileSync(path, String(process.pid), { flag: "wx" });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    }
    let holder = 0;
    try {
      holder = Number(readFileSync(path, "utf8"));
      if (holder > 0 && holder !== process.pid && process.kill(holder, 0)) throw new Error("alive");
      if (holder === process.pid && held.has(path)) throw new Error("alive");
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      if (message === "alive" || code === "EPERM") throw new Error(`${path} is held by the program ${holder}`);
    }
    try {
      unlinkSync(path);
    } catch {
      // Somebody else was faster.
    }
  }
}

const held = new Set<string>();

export class FileDisk implements Disk {
  private readonly memory = new Memory();
  private readonly queue: Journal;
  private readonly store: Journal;
  private readonly lock: string;

  constructor(folder: string) {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    this.lock = join(folder, "lock");
    lock(this.lock);
    held.add(this.lock);
    try {
      this.queue = new Journal(join(folder, "queue"), true);
      this.store = new Journal(join(folder, "store"), false);
      for (const journal of [this.queue, this.store])
        for (const writes of journal.read()) for (const write of writes) this.memory.apply(write);
      this.memory.fresh = null; // what a full sync had written when the program ended
      this.queue.rewrite(this.queueLines());
      this.store.rewrite(this.storeLines());
      syncFolder(folder);
    } catch (error) {
      this.unlock();
      throw error;
    }
  }

  private unlock(): void {
    held.delete(this.lock);
    unlinkSync(this.lock);
  }

  private *queueLines(): Generator<Write[]> {
    const { queueId, last, next, sent, tokenGiven, token, queue, dead } = this.memory;
    for (const { n, update, size, state, error } of dead.values())
      yield [{ do: "enqueue", n, update, size, replaces: null }, { do: "bury", n, state, error, last }];
    for (const { n, update, size } of queue.values()) yield [{ do: "enqueue", n, update, size, replaces: null }];
    // An entry that came and went leaves its number used.
    const gone: Write[] = [{ do: "enqueue", n: next - 1, update: {}, size: 0, replaces: null }, { do: "settle", n: next - 1, last }];
    const held = queue.has(next - 1) || dead.has(next - 1) || next === 1;
    const meta: Write[] = [...(held ? [] : gone), { do: "lastIs", last }, { do: "markSent", n: sent }];
    if (queueId !== null) meta.push({ do: "queueIs", id: queueId, last, sent });
    if (tokenGiven !== null && token !== null) meta.push({ do: "tokenIs", given: tokenGiven, token });
    yield meta;
  }

  private *storeLines(): Generator<Write[]> {
    const { copy, fresh, cursor, owed } = this.memory;
    for (const [of, toCopy, toFresh] of [[copy, true, false], [fresh, false, true]] as const) {
      if (of === null) continue;
      if (toFresh) yield [{ do: "begin", tables: null }];
      for (const [table, rows] of of)
        for (const [id, { version, data }] of rows) yield [{ do: "put", table, id, version, data, toCopy, toFresh }];
    }
    yield [{ do: "cursorIs", cursor }, { do: "owed", tables: owed }];
  }

  private live(): number {
    let rows = 0;
    for (const copy of [this.memory.copy, this.memory.fresh ?? new Map()]) for (const table of copy.values()) rows += table.size;
    return rows;
  }

  async apply(writes: readonly Write[]): Promise<void> {
    const ofStore = writes.filter((write) => !QUEUE.has(write.do));
    const ofQueue = writes.filter((write) => QUEUE.has(write.do));
    for (const [journal, some] of [[this.store, ofStore], [this.queue, ofQueue]] as const) {
      if (!some.length) continue;
      journal.add(some);
      for (const write of JSON.parse(JSON.stringify(some)) as Write[]) this.memory.apply(write);
    }
    // It is committed: whatever comes of tidying up is no failure of it.
    try {
      this.tidy();
    } catch {
      // The disk is full, for one. It is tried again after the next write.
    }
  }

  private tidy(): void {
    const { queue, dead } = this.memory;
    if (this.queue.lines > 2 * (queue.size + dead.size) + 1000) this.queue.rewrite(this.queueLines());
    if (this.store.lines > 1000 && this.store.lines > 2 * this.live() + 1000) this.store.rewrite(this.storeLines());
  }

  snapshot = async (): Promise<Snapshot> => this.memory.snapshot();
  entries = async (after: number, limit: number): Promise<Entry[]> => this.memory.entries(after, limit);
  letters = async (after: number, limit: number): Promise<Letter[]> => this.memory.letters(after, limit);
  record = async (table: string, id: number): Promise<Row | null> => this.memory.record(table, id);
  records = async (table: string, after: number | null, limit: number): Promise<Row[]> =>
    this.memory.records(table, after, limit);

  async close(): Promise<void> {
    this.queue.close();
    this.store.close();
    this.unlock();
  }
}
