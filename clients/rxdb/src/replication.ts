// One collection and its table: RxDB's pull, push and live stream. RxDB keeps the documents, what of them is not pushed yet,
// and the checkpoint; it calls again after whatever is thrown here.
import { checked, InvalidChange, numberOf, type Change, type Json } from "@tillsync/client";
import { getChangedDocumentsSince, type RxReplicationPullStreamItem, type RxReplicationWriteToMasterRow, type WithDeleted } from "rxdb";
import { replicateRxCollection, type RxReplicationState } from "rxdb/plugins/replication";
import { Subject } from "rxjs";
import { PAGE, READS, RETRY, ROWS } from "./limits.js";
import { recordId, Records, same } from "./records.js";
import { Refused } from "./rest.js";
import type { Answer, ReplicateOptions, Tillsync } from "./tillsync.js";

/** Where a collection has come to. */
export interface Checkpoint {
  /** Of the last change that the collection has; null: a full sync is due. */
  cursor: string | null;
  /** What was under way: a full sync that was handed over so far, or that the documents went away with the right to read. */
  step: string | null;
}

/** The documents went away with the right to read them. */
const CLEARED = "cleared";

type Row<T> = RxReplicationWriteToMasterRow<T>;
type Batch<T> = { documents: WithDeleted<T>[]; checkpoint: Checkpoint };
/** What the cluster says of a record. */
type Found<T> = { id: number; version: number; document: WithDeleted<T> };
/** After what was found all other documents go away that are not newer than `version`; null: they were added. */
type Copy<T> = { name: string; at: number; found: Found<T>[]; others: { than: Set<string>; version: number } | null; asked: number; last: Checkpoint };

/** What a pushed row comes to. */
type Plan =
  | { do: "nothing" }
  | { do: "send"; change: Change & { id: number }; data: Json | null }
  | { do: "conflict"; id: number; master: Json | null };

export class CollectionReplication<T> {
  private readonly table: string;
  private readonly records: Records<T>;
  private readonly stream = new Subject<RxReplicationPullStreamItem<T, Checkpoint>>();
  private state!: RxReplicationState<T, Checkpoint>;
  private stopped = false;

  /** Live changes follow what was pulled. While they do not, they are left to the next pull. */
  private inStep = false;
  /** Live changes that wait until RxDB has pushed. */
  private live: Json[] = [];
  private handing = false;
  /** The last change that was left to a pull, that a pull covered, and that was heard after it. */
  private left = 0;
  private covered = 0;
  private newest = 0;
  /** How often a pull was asked for: what one brings that was on its way before, may lack what it was asked for. */
  private asked = 0;
  /** A whole copy that is being handed over. */
  private rest: Copy<T> | null = null;
  private copies = 0;
  /** Records that were pushed and not heard back yet: an older change of one may not undo it for a while. */
  private readonly own = new Map<number, number>();
  private pushes: Promise<unknown> = Promise.resolve();
  /** A round failed: some of what RxDB pushes next may have been pushed. */
  private doubt = false;

  constructor(private readonly tillsync: Tillsync, private readonly options: ReplicateOptions<T>) {
    const { collection, table = collection.name } = options;
    this.table = table;
    this.records = new Records<T>(collection.schema.primaryPath as string, collection.schema.jsonSchema as any);
  }

  start(): RxReplicationState<T, Checkpoint> {
    const { collection, push = true, live = true, batchSize = 100, waitForLeadership = true, autoStart = true } = this.options;
    if (push) {
      const check = (data: any): void => void this.change(data);
      collection.preInsert(check, true);
      collection.preSave(check, true);
    }
    this.state = replicateRxCollection<T, Checkpoint>({
      replicationIdentifier: `tillsync ${this.table}`,
      collection: collection as any,
      live,
      waitForLeadership,
      autoStart,
      retryTime: RETRY,
      pull: { handler: (checkpoint, limit) => this.pull(checkpoint, limit), stream$: this.stream.asObservable(), batchSize },
      ...(push && { push: { handler: (rows: Row<T>[]) => this.push(rows), batchSize } }),
    });
    return this.state;
  }

  stop(): void {
    this.stopped = true;
  }

  // -- live

  heard(change: Json): void {
    if (change.table_name !== this.table) return;
    const { seq, after } = change;
    if (!this.inStep || after > Math.max(this.covered, this.newest)) {
      this.left = Math.max(this.left, seq);
      if (this.inStep) this.resync();
    } else if (seq > this.covered) {
      this.newest = seq;
      this.live.push(change);
      if (this.live.length > PAGE) this.resync();
      else if (!this.handing) void this.handOver();
    }
  }

  private async handOver(): Promise<void> {
    this.handing = true;
    while (this.live.length > 0) {
      await this.pushed();
      const changes = this.live.splice(0);
      const last = changes.at(-1);
      if (last !== undefined)
        this.stream.next({ documents: documentsOf(this.newer(this.found(changes))), checkpoint: { cursor: last.cursor, step: null } });
    }
    this.handing = false;
  }

  /** What is heard from here on, or waits, is left to the next pull. */
  private outOfStep(): void {
    this.inStep = false;
    this.live = [];
    this.left = Math.max(this.left, this.newest);
  }

  /** A session begins. */
  began(): void {
    this.left = this.covered = this.newest = 0;
    this.live = [];
    this.resync();
  }

  /** There is no session: what is missed from here on only a pull brings. */
  lost(): void {
    this.outOfStep();
  }

  /** RxDB pulls again, behind all that was handed over before. */
  resync(): void {
    this.outOfStep();
    this.asked += 1;
    setTimeout(() => {
      if (this.stopped) return;
      // Twice: behind live changes that still wait RxDB takes the first one off its queue and forgets it. Without such it
      // drops the second one, since a pull began after it.
      this.stream.next("RESYNC");
      this.stream.next("RESYNC");
    }, 0);
  }

  /** A pull has everything up to here (null: there is nothing to have), as it was when pulls had been asked for so often. */
  private reached(cursor: string | null, asked: number): void {
    if (cursor !== null) this.covered = numberOf(cursor);
    if (this.asked > asked || (cursor !== null && this.left > this.covered)) this.resync();
    else this.inStep = cursor !== null && this.tillsync.client.status.online;
  }

  private found = (changes: readonly Json[]): Found<T>[] =>
    changes.map(({ record_id: id, seq, operation, data, new_data = data }) => ({
      id,
      version: seq,
      document: this.records.documentOf(id, operation === "delete" ? null : new_data),
    }));

  /** Without what a push of this device came after. */
  private newer = (found: readonly Found<T>[]): Found<T>[] =>
    found.filter(({ id, version }) => {
      const own = this.own.get(id) ?? 0;
      if (version >= own) this.own.delete(id);
      return version >= own;
    });

  /**
   * Waits until RxDB pushes nothing and has noted what it pushed. What it is handed while it pushes an older state of the
   * same document, it takes for a conflict that the push will tell of, and forgets.
   */
  private async pushed(): Promise<void> {
    for (let queue: unknown = null; !this.stopped; ) {
      const now = this.state.internalReplicationState?.streamQueue.up;
      if (now === queue) return;
      queue = now;
      await now?.catch(() => {}); // of a database that was closed meanwhile
    }
  }

  // -- pull

  private async pull(checkpoint: Checkpoint | undefined, limit: number): Promise<Batch<T>> {
    const { cursor, step } = checkpoint ?? { cursor: null, step: null };
    this.outOfStep(); // RxDB drops what was handed over live before a pull began, whether the pull has it or not
    if (this.rest !== null && step !== this.stepOf(this.rest)) this.rest = null; // RxDB began anew
    if (this.rest === null) {
      await this.online();
      if (!this.tillsync.mayRead(this.table)) {
        if (step === CLEARED) return { documents: [], checkpoint: { cursor, step } };
        this.rest = this.copy([], Infinity, this.asked, { cursor, step: CLEARED });
      } else {
        const batch = cursor === null || step !== null ? null : await this.changes(cursor, limit);
        if (batch !== null) return batch;
        this.rest = await this.fullCopy();
      }
    }
    return this.next(this.rest, limit);
  }

  private copy(found: Found<T>[], version: number, asked: number, last: Checkpoint): Copy<T> {
    const than = new Set(found.map(({ id }) => String(id)));
    return { name: `${Date.now()}.${++this.copies}`, at: 0, found, others: { than, version }, asked, last };
  }

  private stepOf = ({ name, at }: Copy<T>): string => `${name}/${at}`;

  /** RxDB takes less than `limit` as the end. */
  private async next(rest: Copy<T>, limit: number): Promise<Batch<T>> {
    let found: Found<T>[] = [];
    for (;;) {
      await this.pushed();
      const more = rest.found.slice(rest.at, rest.at + limit - found.length);
      rest.at += more.length;
      found = this.newer([...found, ...more]);
      if (found.length >= limit) break;
      if (rest.at < rest.found.length) continue;
      if (rest.others === null) break;
      const { than, version } = rest.others;
      rest.others = null;
      for (const key of await this.local())
        if (!than.has(key)) rest.found.push({ id: Number(key), version, document: this.records.documentOf(key, null) });
    }
    const documents = documentsOf(found);
    if (rest.at < rest.found.length || rest.others) return { documents, checkpoint: { cursor: null, step: this.stepOf(rest) } };
    this.rest = null;
    this.reached(rest.last.step === null ? rest.last.cursor : null, rest.asked);
    return { documents, checkpoint: rest.last };
  }

  /** What came after the cursor; null if only a full sync can say. RxDB takes less than `limit` as the end. */
  private async changes(cursor: string, limit: number): Promise<Batch<T> | null> {
    let found: Found<T>[] = [];
    for (let after = cursor; ; ) {
      const { asked } = this;
      const most = Math.min(limit - found.length, PAGE);
      const query = new URLSearchParams({ cursor: after, tables: this.table, limit: String(most) });
      let page: Json;
      try {
        page = await this.tillsync.get(`/sync/changes?${query}`);
      } catch (error) {
        if (error instanceof Refused && error.code === "1005") return null;
        throw error;
      }
      found.push(...this.found(page.changes));
      after = page.cursor;
      if (page.has_more && found.length < limit) continue;
      await this.pushed();
      found = this.newer(found);
      if (page.has_more && found.length < limit) continue;
      if (!page.has_more) this.reached(after, asked);
      return { documents: documentsOf(found), checkpoint: { cursor: after, step: null } };
    }
  }

  /** Every record. */
  private async fullCopy(): Promise<Copy<T>> {
    const { asked } = this;
    const { records, cursor } = await this.tillsync.fullSync(this.table);
    const found: Found<T>[] = [];
    for (const [id, { version, data }] of records)
      if (data !== null) found.push({ id, version, document: this.records.documentOf(id, data) });
    return this.copy(found, numberOf(cursor), asked, { cursor, step: null });
  }

  /** The primary keys of the documents that are here and could be there. */
  private async local(): Promise<Set<string>> {
    const keys = new Set<string>();
    for (let after: unknown; ; ) {
      const { documents, checkpoint } = await getChangedDocumentsSince(this.options.collection.storageInstance, ROWS, after);
      for (const document of documents as Json[]) {
        const key: string = document[this.records.primary];
        if (document._deleted || !this.couldBeThere(document)) keys.delete(key);
        else keys.add(key);
      }
      if (documents.length < ROWS) return keys;
      after = checkpoint;
    }
  }

  // -- push

  /** One batch after the other, in the order in which the documents were written. */
  private push(rows: Row<T>[]): Promise<WithDeleted<T>[]> {
    const done = this.pushes.then(() => this.pushNow(rows));
    this.pushes = done.catch(() => {});
    return done;
  }

  private async pushNow(rows: Row<T>[]): Promise<WithDeleted<T>[]> {
    await this.online();
    // Later than the first round of RxDB it pushes each state once, unless a round failed.
    const sure = !this.doubt && this.state.internalReplicationState?.firstSyncDone.up.getValue() === true;
    if (!sure) await this.tillsync.settled();
    this.doubt = true;
    const plans = await inOrder(rows, (row) => this.plan(row, sure));
    const sends = plans.filter((plan) => plan.do === "send");
    const answers = sends.length ? await this.tillsync.push(sends.map(({ change }) => change)) : [];
    const lost = await inOrder(sends, (send, at) => this.outcome(send, answers[at] as Answer));
    this.doubt = false;
    const conflicts = [...plans.filter((plan) => plan.do === "conflict"), ...lost.filter((conflict) => conflict !== null)];
    return conflicts.map(({ id, master }) => this.records.documentOf(id, master));
  }

  private async plan({ assumedMasterState, newDocumentState }: Row<T>, sure: boolean): Promise<Plan> {
    let id: number;
    let change: Change & { id: number };
    const data = this.records.dataOf(newDocumentState);
    try {
      change = this.change(newDocumentState);
      id = change.id;
    } catch (error) {
      if (!(error instanceof InvalidChange)) throw error;
      this.state.subjects.error.next(error as any); // it was written before the replication began: it stays here alone
      return { do: "nothing" };
    }
    const assumed = this.records.dataOf(assumedMasterState);
    const insert: Plan = { do: "send", change: { ...change, operation: "insert" }, data };
    if (sure && assumed === null) return data === null ? { do: "nothing" } : insert;
    const record = await this.read(id);
    if (record === "hidden") return { do: "send", change, data }; // it is refused, and becomes a letter
    const master = record?.data ?? null;
    if (same(master, data)) return { do: "nothing" }; // also of a push whose answer got lost
    const base = record === null ? {} : { baseVersion: record.version };
    const operation = data === null ? "delete" : record === null ? "insert" : "update";
    const send: Plan = { do: "send", change: { ...change, operation, ...base }, data };
    if (same(master, assumed)) return send;
    const history: Json[] = (await this.tillsync.get(`${this.path(id)}/history?limit=${ROWS}`)).history;
    if (this.isOwn(history, assumed)) return send;
    // A new record whose id is taken goes to the cluster all the same: there it waits for a decision, and is not lost.
    const { device } = this.tillsync.client;
    const made = history.some((was) => was.operation === "insert" && was.device_id === device);
    return assumed === null && data !== null && !made ? insert : { do: "conflict", id, master };
  }

  /** Since RxDB's state of the cluster only this device has written: a push that a killed program had not noted yet. */
  private isOwn(history: readonly Json[], assumed: Json | null): boolean {
    const changes = history.filter(({ kind }) => kind === "change");
    for (const { operation, data, device_id } of changes) {
      if (same(operation === "delete" ? null : this.records.kept(data), assumed)) return true;
      if (device_id !== this.tillsync.client.device) return false;
    }
    return assumed === null && changes.at(-1)?.operation === "insert";
  }

  /** What the record is now, if that is not what was pushed. */
  private async outcome({ change: { id }, data }: Plan & { do: "send" }, answer: Answer): Promise<(Plan & { do: "conflict" }) | null> {
    if ("ack" in answer && !answer.ack.conflict && !answer.ack.repeated && answer.ack.seq !== undefined) {
      const { seq } = answer.ack;
      if (seq > Math.max(this.covered, this.newest)) this.own.set(id, seq);
      return null;
    }
    const record = await this.read(id);
    const master = record === "hidden" ? null : (record?.data ?? null);
    return same(master, data) ? null : { do: "conflict", id, master };
  }

  /** The change that a document's state is, if the cluster could ever take it. */
  private change(document: WithDeleted<T>): Change & { id: number } {
    const id = recordId((document as Json)[this.records.primary]);
    const data = this.records.dataOf(document);
    const change: Change & { id: number } = { table: this.table, id, operation: data === null ? "delete" : "update", ...(data && { data }) };
    checked(this.tillsync.client.device, change);
    return change;
  }

  private couldBeThere(document: Json): boolean {
    try {
      this.change(document as WithDeleted<T>);
      return true;
    } catch (error) {
      if (error instanceof InvalidChange) return false;
      throw error;
    }
  }

  private path = (id: number): string => `/data/${encodeURIComponent(this.table)}/${id}`;

  private async read(id: number): Promise<{ version: number; data: Json } | "hidden" | null> {
    try {
      const { data, version } = await this.tillsync.get(this.path(id));
      return data === null ? null : { version, data: this.records.kept(data) };
    } catch (error) {
      if (error instanceof Refused && error.code === "3003") return "hidden";
      throw error;
    }
  }

  /** Waits for a session: without one there is nothing to ask, and nothing to complain about. */
  private async online(): Promise<void> {
    const { client } = this.tillsync;
    if (!client.status.online && !(await client.until(({ online }) => online || this.stopped))) throw new Error("it is closed");
    if (this.stopped) throw new Error("the replication has ended");
  }
}

const documentsOf = <T>(found: readonly Found<T>[]): WithDeleted<T>[] => found.map(({ document }) => document);

/** A few at a time; the results in the order of the items. */
async function inOrder<A, B>(items: readonly A[], each: (item: A, at: number) => Promise<B>): Promise<B[]> {
  const results: B[] = new Array(items.length);
  let at = 0;
  const work = async (): Promise<void> => {
    for (let mine = at++; mine < items.length; mine = at++) results[mine] = await each(items[mine] as A, mine);
  };
  await Promise.all(Array.from({ length: Math.min(READS, items.length) }, work));
  return results;
}
