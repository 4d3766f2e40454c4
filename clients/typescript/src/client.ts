// Drives the core over socket.io-client. Everything that touches the core or the disk happens one after the other.
import { io, type ManagerOptions, type Socket, type SocketOptions } from "socket.io-client";
import { isWrite, type Action, type Json, type Letter, type Tables, type Write } from "./actions.js";
import { checked, claimsOf, newQueueId, newRecordId, type Change } from "./change.js";
import { Core } from "./core.js";
import type { Disk, Row } from "./disk.js";
import { FRAMES, IDLE, ROWS } from "./limits.js";

export interface ClientOptions {
  /** A node's URL, or a list of each node that may be tried. */
  url: string | readonly string[];
  token: string;
  disk: Disk;
  /** Default: the token's. */
  device?: string;
  /** Goes out with `device_online`: role, priority, capabilities. */
  online?: Json;
  /** Gets the error that the token was refused with, and gives another token, or null. */
  newToken?: (error: Json) => Promise<string | null> | string | null;
  /** Hears what happens: a kind, and the event's data. */
  listen?: (kind: string, data: Json) => void;
  maxEntries?: number;
  maxBytes?: number;
  /** false: the app keeps the records itself, by what `listen` hears. The disk has the queue only. */
  copy?: boolean;
  /** For the library that speaks Socket.IO: `ca` in Node, for one. */
  socket?: Partial<ManagerOptions & SocketOptions>;
}

export interface Status {
  device: string;
  online: boolean;
  /** Changes in the queue: not answered for good yet. */
  pending: number;
  /** Changes that were refused for good, or wait for a decision. */
  letters: number;
  /** null: there is no whole copy of the data yet, or a new one is owed. */
  cursor: string | null;
  syncing: boolean;
  /** Why the token is refused. */
  refused: Json | null;
}

const EVENTS = [
  "acknowledged", "data_update", "sync_response", "device_online_ack", "error", "sync_error", "sync_conflict",
  "sync_conflict_resolved", "access_changed", "token_renewed",
];

const clock = (): number => performance.now();

/**
 * A device. A change is on the disk when its method resolves, and reaches the cluster as soon as that is reached: once, and
 * in the order in which it was made. Only one client at a time may use a disk.
 */
export class Client {
  readonly device: string;
  private core!: Core;
  private given: string;
  private socket: Socket | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private chain: Promise<unknown> = Promise.resolve();
  private incoming: [string, Json][] = [];
  private draining = false;
  private waiters = new Set<() => void>();
  private closed = false;
  private asking = false;
  private failures = 0;
  private broken = false;

  private constructor(private readonly options: ClientOptions) {
    this.given = options.token;
    this.device = options.device ?? claimsOf(options.token).sub;
  }

  static async open(options: ClientOptions): Promise<Client> {
    const client = new Client(options);
    await client.begin();
    client.plan();
    return client;
  }

  private async begin(): Promise<void> {
    const { disk, online, maxEntries, maxBytes, copy = true } = this.options;
    const own = { ...(online && { online }), ...(maxEntries && { maxEntries }), ...(maxBytes && { maxBytes }), copy };
    const core = new Core(this.device, this.given, await disk.snapshot(), Math.random, newQueueId, own);
    await disk.apply(core.start().filter(isWrite));
    this.core = core;
  }

  /** What a core that failed knows may not be what is on the disk. */
  private async mend(): Promise<void> {
    if (!this.broken) return;
    const pause = clock() + Math.min(1000 * 2 ** this.failures++, 30_000);
    try {
      await this.begin();
      this.broken = false;
    } finally {
      this.core.connectAt = pause;
      this.plan();
    }
  }

  /** One piece of work after the other. */
  private serial<T>(work: () => Promise<T>): Promise<T> {
    const done = this.chain.then(() => {
      if (this.closed) throw new Error("the client is closed");
      return work();
    });
    this.chain = done.catch(() => {});
    return done;
  }

  // -- what the app calls

  /** A new record. Gives its id, which is drawn at random unless the app has one that is surely its own. */
  async insert(table: string, data: Json, id?: number): Promise<number> {
    return (await this.pushMany([{ table, data, ...(id !== undefined && { id }) }]))[0] as number;
  }

  /** The whole record as it is now. With `baseVersion`, a change by somebody else since then is a conflict. */
  async update(table: string, id: number, data: Json, baseVersion?: number): Promise<void> {
    await this.pushMany([{ table, id, data, operation: "update", ...(baseVersion !== undefined && { baseVersion }) }]);
  }

  async delete(table: string, id: number, baseVersion?: number): Promise<void> {
    await this.pushMany([{ table, id, operation: "delete", ...(baseVersion !== undefined && { baseVersion }) }]);
  }

  /** Many changes in one write to the disk, all or none. Gives their record ids. */
  async pushMany(changes: readonly Change[]): Promise<number[]> {
    return (await this.enqueue(changes)).map(({ id }) => id);
  }

  /** `pushMany` for those who wait for the answers: also gives each entry's number in the queue. */
  async enqueue(changes: readonly Change[]): Promise<{ n: number; id: number }[]> {
    const made = new Date().toISOString();
    const updates = changes.map((change) => {
      if (change.id === undefined && (change.operation ?? "insert") !== "insert")
        throw new Error("only a new record's id is drawn");
      return checked(this.device, { ...change, id: change.id ?? newRecordId() }, made);
    });
    const numbers = await this.serial(() => this.queue(updates));
    return updates.map((update, at) => ({ n: numbers[at] as number, id: update.record_id }));
  }

  private async queue(updates: readonly Json[], letter: Letter | null = null): Promise<number[]> {
    await this.mend();
    const { core } = this;
    const before = [core.next, core.entries, core.size] as const;
    const enqueues: (Action & { do: "enqueue" })[] = [];
    try {
      for (const update of updates) {
        const enqueue = core.prepare(update, letter);
        enqueues.push(enqueue);
        core.next += 1;
        core.entries += 1;
        core.size += enqueue.size;
      }
    } finally {
      [core.next, core.entries, core.size] = before;
    }
    await this.options.disk.apply(enqueues);
    await this.guarded(() => enqueues.flatMap((enqueue) => core.enqueued(enqueue, clock(), letter?.size)));
    return enqueues.map(({ n }) => n);
  }

  /** A record as the cluster had it when it was heard from last. */
  get(table: string, id: number): Promise<Row | null> {
    return this.serial(() => this.options.disk.record(table, id));
  }

  /** The records of a table by their ids. */
  async *records(table: string): AsyncGenerator<Row> {
    let after: number | null = null;
    for (;;) {
      const from: number | null = after;
      const rows: Row[] = await this.serial(() => this.options.disk.records(table, from, ROWS));
      yield* rows;
      if (rows.length === 0) return;
      after = rows.at(-1)?.id ?? null;
    }
  }

  /** What was refused for good, or waits for a decision: for the app to show. */
  async *letters(): AsyncGenerator<Letter> {
    let after = 0;
    for (;;) {
      const from = after;
      const letters: Letter[] = await this.serial(() => this.options.disk.letters(from, ROWS));
      yield* letters;
      if (letters.length === 0) return;
      after = letters.at(-1)?.n ?? after;
    }
  }

  /** Queues a letter once more, mended if `data` or `baseVersion` is given. */
  resend(n: number, data?: Json, baseVersion?: number): Promise<void> {
    return this.serial(async () => {
      const letter = await this.letter(n);
      if (letter.state === "conflict") throw new Error("the cluster keeps it with an open conflict: decide that");
      const { table_name: table, record_id: id, operation, new_data, base_version, timestamp } = letter.update;
      const base = baseVersion ?? base_version;
      const change = { table, id, operation, data: data ?? new_data, ...(base !== undefined && { baseVersion: base }) };
      await this.queue([checked(this.device, change, timestamp)], letter);
    });
  }

  /** The app has dealt with a letter. */
  forget(n: number): Promise<void> {
    return this.serial(async () => {
      const { size } = await this.letter(n);
      await this.options.disk.apply([{ do: "forget", n }]);
      this.core.forgotten(n, size);
      this.settleWaiters();
    });
  }

  private async letter(n: number): Promise<Letter> {
    const letter = (await this.options.disk.letters(n - 1, 1))[0];
    if (letter?.n !== n) throw new Error(`there is no letter ${n}`);
    return letter;
  }

  /** Asks for a full sync, of all or of these tables. */
  sync(tables: Tables = null): Promise<void> {
    return this.serial(() => this.guarded(() => this.core.sync(tables, clock())));
  }

  /** Goes on with another token of the same device. */
  useToken(token: string): Promise<void> {
    return this.serial(async () => {
      this.given = token;
      await this.guarded(() => this.core.newToken(token, clock()));
    });
  }

  /** What requests beside the session are signed with: the app's token, or what it was renewed to. */
  get token(): string {
    return this.core.token;
  }

  get status(): Status {
    const { entries: pending, letters, cursor, refused, isOnline: online, syncSince } = this.core;
    return { device: this.device, online, pending, letters, cursor, syncing: syncSince !== null, refused };
  }

  /** Waits until the status is so; false if it was not in time. */
  until(holds: (status: Status) => boolean, ms?: number): Promise<boolean> {
    return new Promise((resolve) => {
      const done = (held: boolean): void => {
        clearTimeout(timer);
        this.waiters.delete(look);
        resolve(held);
      };
      const look = (): void => {
        if (this.closed || holds(this.status)) done(!this.closed);
      };
      const timer = ms === undefined ? undefined : setTimeout(() => done(false), ms);
      this.waiters.add(look);
      look();
    });
  }

  /** Waits until every change has its answer. */
  flush = (ms?: number): Promise<boolean> => this.until(({ pending }) => pending === 0, ms);

  /** Waits until there is a whole copy of the data. */
  ready = (ms?: number): Promise<boolean> => this.until(({ cursor }) => cursor !== null, ms);

  /** Ends the connection. What is in the queue stays on the disk. */
  async close(): Promise<void> {
    if (this.closed) return;
    await this.serial(async () => {
      this.closed = true;
      clearTimeout(this.timer);
      this.drop();
      await this.options.disk.close();
    });
    this.settleWaiters();
  }

  // -- the driver

  /** Commits the writes, and only then lets out the rest. */
  private async take(actions: readonly Action[]): Promise<void> {
    const writes: Write[] = actions.filter(isWrite);
    if (writes.length) await this.options.disk.apply(writes);
    for (const action of actions) {
      if (action.do === "send") this.socket?.emit(action.event, action.data);
      else if (action.do === "tell") this.told(action.kind, action.data);
      else if (action.do === "close") {
        this.drop();
        await this.take(this.core.disconnected(clock()));
        this.told("offline", {});
      } else if (action.do === "load")
        await this.take(this.core.loadedEntries(await this.options.disk.entries(action.after, action.limit), clock()));
    }
    this.settleWaiters();
    this.plan();
  }

  /** A failure is the session's, not the caller's: what is on the disk is all that counts, and it begins anew from it. */
  private async guarded(work: () => readonly Action[]): Promise<void> {
    try {
      await this.take(work());
      this.failures = 0;
    } catch (error) {
      this.drop();
      this.broken = true;
      this.told("failed", { error: String(error) });
      await this.mend().catch(() => {});
    }
  }

  private drop(): void {
    const { socket } = this;
    this.socket = null;
    this.incoming = [];
    socket?.removeAllListeners();
    socket?.disconnect();
  }

  private told(kind: string, data: Json): void {
    if (kind === "token_refused" && this.options.newToken && !this.asking) void this.ask(data, this.options.newToken);
    try {
      this.options.listen?.(kind, data);
    } catch (error) {
      console.error(`${this.device}: the listener failed:`, error);
    }
  }

  private async ask(error: Json, newToken: NonNullable<ClientOptions["newToken"]>): Promise<void> {
    this.asking = true;
    try {
      const token = await newToken(error);
      if (token !== null && !this.closed) await this.useToken(token);
    } catch (failed) {
      console.error(`${this.device}: no other token:`, failed);
    } finally {
      this.asking = false;
    }
  }

  private settleWaiters(): void {
    for (const look of [...this.waiters]) look();
  }

  /** Comes back when there is something to do. */
  private plan(): void {
    clearTimeout(this.timer);
    if (this.closed) return;
    const at = this.core.connectAt ?? this.core.deadline();
    const wait = at === null ? IDLE : Math.min(Math.max(at - clock(), 0), IDLE);
    this.timer = setTimeout(() => {
      void this.serial(async () => {
        await this.mend();
        const { connectAt } = this.core;
        if (connectAt !== null && connectAt <= clock() && this.socket === null) this.connect();
        else await this.guarded(() => this.core.tick(clock()));
      }).catch(() => {});
    }, wait);
  }

  private connect(): void {
    const urls = [this.options.url].flat();
    const url = urls[this.core.node % urls.length] as string;
    const auth = { token: this.core.connecting() };
    // The library reconnects nothing: when, where and with what is the core's to say.
    const how = { transports: ["websocket"], ...this.options.socket, auth, reconnection: false, forceNew: true };
    const socket = io(url, how);
    this.socket = socket;
    this.core.connectAt = null;
    const mine = (work: () => readonly Action[]): void => {
      void this.serial(async () => {
        if (this.socket === socket) await this.guarded(work);
      }).catch(() => {});
    };
    const ended = (error: Json | null): void =>
      mine(() => {
        this.drop();
        const actions = this.core.disconnected(clock(), error);
        return [...actions, { do: "tell", kind: "offline", data: {} }];
      });
    socket.on("connect", () => mine(() => this.core.connected(clock(), new Date().toISOString())));
    socket.on("disconnect", () => this.drained().then(() => ended(null)));
    socket.on("connect_error", (error) => {
      const [, error_code, text] = /^(\d{4}): (.*)/s.exec(error.message) ?? [];
      if (!error_code) this.told("not_connected", { url, error: error.message });
      ended(error_code ? { ...(error as any).data, error_code, error: text } : null);
    });
    for (const event of EVENTS)
      socket.on(event, (data: Json) => {
        if (this.socket !== socket) return;
        if (this.incoming.push([event, data]) > FRAMES) return void ended(null); // it resumes where it was
        if (!this.draining) void this.drained();
      });
  }

  /** What came while the disk was busy is taken over together. */
  private drained(): Promise<void> {
    this.draining = true;
    return this.serial(async () => {
      this.draining = false;
      await this.guarded(() => {
        const events = this.incoming;
        this.incoming = [];
        return events.flatMap(([event, data]) => this.core.received(event, data, clock()));
      });
    }).catch(() => {});
  }
}
