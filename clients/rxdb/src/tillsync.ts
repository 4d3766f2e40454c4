// One device's session with the cluster, which any number of collections share.
import { Client, type ClientOptions, type Disk, type Json } from "@tillsync/client";
import type { RxCollection } from "rxdb";
import type { RxReplicationState } from "rxdb/plugins/replication";
import { QueueDisk, type CopyWrite } from "./disk.js";
import { CollectionReplication, type Checkpoint } from "./replication.js";
import { Refused, Rest } from "./rest.js";

export interface TillsyncOptions extends Omit<ClientOptions, "copy"> {
  /** Keeps what was pushed and has no answer yet, and what was refused. One program or tab at a time may use it. */
  disk: Disk;
  /** In place of the global `fetch`: for a private CA in Node.js, for one. */
  fetch?: typeof fetch;
}

export interface ReplicateOptions<T> {
  collection: RxCollection<T, any, any, any>;
  /** The cluster's table. Default: the collection's name. */
  table?: string;
  /** false: the collection only follows the cluster. */
  push?: boolean;
  /** Default: true. Without, it ends once both sides are equal. */
  live?: boolean;
  batchSize?: number;
  /** As RxDB's: with many tabs only the leading one replicates. Default: true. */
  waitForLeadership?: boolean;
  autoStart?: boolean;
}

/** What became of an entry of the queue: committed (`ack`), or a letter. */
export type Answer = { ack: Json } | { letter: Json };

/** The records of a table as a full sync brought them. */
export interface FullCopy {
  records: Map<number, { version: number; data: Json | null }>;
  cursor: string;
}

interface Waiter<T> {
  done: (value: T) => void;
  fail: (why: unknown) => void;
}

/** Sync errors after which the core does not ask again. */
const FOR_GOOD = ["2004", "3003"];

export class Tillsync {
  private client_!: Client;
  private rest!: Rest;
  private readonly replications = new Map<CollectionReplication<any>, RxReplicationState<any, Checkpoint>>();
  private readonly answers = new Map<number, Waiter<Answer>>();
  private full: ({ table: string; records: FullCopy["records"] } & Waiter<FullCopy>) | null = null;
  private fulls: Promise<unknown> = Promise.resolve();
  private rights: Json = {};
  private closed = false;

  private constructor() {}

  /** The queue of earlier runs goes on at once. */
  static async open(options: TillsyncOptions): Promise<Tillsync> {
    const tillsync = new Tillsync();
    const disk = new QueueDisk(options.disk, (write) => tillsync.page(write));
    const listen = (kind: string, data: Json): void => {
      tillsync.heard(kind, data);
      options.listen?.(kind, data);
    };
    tillsync.client_ = await Client.open({ ...options, disk, listen, copy: false });
    tillsync.rest = new Rest([options.url].flat(), () => tillsync.client.token, options.fetch ?? ((...of) => fetch(...of)));
    return tillsync;
  }

  /** The device: its status, its letters, another token. */
  get client(): Client {
    return this.client_;
  }

  /** Keeps a collection equal to a table of the cluster. */
  replicate<T>(options: ReplicateOptions<T>): RxReplicationState<T, Checkpoint> {
    const replication = new CollectionReplication<T>(this, options);
    const state = replication.start();
    this.replications.set(replication, state);
    state.onCancel.push(() => {
      this.replications.delete(replication);
      replication.stop();
    });
    return state;
  }

  /** Ends the replications and the session. What was not pushed stays in RxDB, what was not answered on the disk. */
  async close(): Promise<void> {
    await Promise.all([...this.replications.values()].map((state) => state.cancel()));
    this.closed = true;
    await this.client.close();
    this.failAll(new Error("it is closed"));
  }

  // -- what the replications use

  get = (path: string): Promise<Json> => this.rest.get(path);

  mayRead(table: string): boolean {
    return (this.rights[table] ?? this.rights["*"]) !== "none";
  }

  /** Every change in the queue has its answer. */
  async settled(): Promise<void> {
    if (!(await this.client.flush())) throw new Error("it is closed");
  }

  /** Queues the changes, all or none, and waits for their answers. */
  async push(changes: Parameters<Client["enqueue"]>[0]): Promise<Answer[]> {
    const entries = await this.client.enqueue(changes);
    return Promise.all(
      entries.map(({ n }) => new Promise<Answer>((done, fail) => this.answers.set(n, { done, fail }))),
    );
  }

  /** All records of a table, as they are at `cursor`. One table after the other. */
  fullSync(table: string): Promise<FullCopy> {
    const copy = this.fulls.then(
      () =>
        new Promise<FullCopy>((done, fail) => {
          if (this.closed) return fail(new Error("it is closed"));
          this.full = { table, records: new Map(), done, fail };
          this.client.sync([table]).catch(fail);
        }),
    );
    this.fulls = copy.catch(() => {}).then(() => {
      this.full = null;
    });
    return copy;
  }

  // -- what the client says

  private page(write: CopyWrite): void {
    if (this.full === null) return;
    const { records } = this.full;
    if (write.do === "begin" || write.do === "abandon") records.clear();
    else if (write.do === "put" && write.toFresh && write.table === this.full.table) {
      const { id, version, data } = write;
      if ((records.get(id)?.version ?? 0) <= version) records.set(id, { version, data });
    }
  }

  private heard(kind: string, data: Json): void {
    const all = [...this.replications.keys()];
    switch (kind) {
      case "change":
        for (const each of all) each.heard(data);
        break;
      case "online":
        this.rights = {}; // a class that may not do everything is told so next
        for (const each of all) each.began();
        break;
      case "offline":
        for (const each of all) each.lost();
        break;
      case "access":
        this.rights = data.tables;
        for (const each of all) each.resync();
        break;
      case "acknowledged":
        this.answered(data.n, { ack: data });
        break;
      case "refused":
      case "conflict":
        if (data.n !== undefined) this.answered(data.n, { letter: data });
        break;
      case "synced":
        if (this.full !== null && data.tables?.[0] === this.full.table)
          this.full.done({ records: this.full.records, cursor: data.cursor });
        break;
      case "error":
        if (FOR_GOOD.includes(data.error_code) && (data.event ?? "sync_request") === "sync_request") this.full?.fail(new Refused(data));
        break;
      case "failed":
        this.failAll(new Error(data.error));
        break;
    }
  }

  private answered(n: number, answer: Answer): void {
    this.answers.get(n)?.done(answer);
    this.answers.delete(n);
  }

  /** Whoever waits asks again: what is in the queue is still there. */
  private failAll(why: Error): void {
    for (const { fail } of this.answers.values()) fail(why);
    this.answers.clear();
    this.full?.fail(why);
  }
}
