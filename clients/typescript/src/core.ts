// The protocol of a client (docs/client-protocol.md), as a pure state machine.
//
// It has no clock, no dice, no disk and no network: times come in as milliseconds of any clock that only goes forward,
// random numbers and ids from functions that it is given, and what is to be done goes out as actions. Whoever drives it
// commits the writes of each list before it sends or tells anything of that list. A driver that fails in between makes a
// new core from the disk: what is on the disk is all that counts.
import type { Action, Entry, Json, Letter, Snapshot, Tables } from "./actions.js";
import { claimsOf, QueueFull, sizeOf } from "./change.js";
import * as limits from "./limits.js";

/** Nothing goes on without another token, or a person. */
const TOKEN_CODES = ["3001", "3002", "3003"];
/** Without an event that they answer they are news, not the session's end. */
const TOLD_ONLY = ["2002", "2003", "4002", "4003", "4004"];

export const numberOf = (cursor: string): number => Number(cursor.slice(cursor.lastIndexOf(".") + 1));

const same = (a: Tables, b: Tables): boolean => JSON.stringify(a) === JSON.stringify(b);

export interface Options {
  online?: Json;
  maxEntries?: number;
  maxBytes?: number;
  /** false: somebody else keeps the copy. Changes are told as they come, and only syncs that were asked for are made. */
  copy?: boolean;
}

export class Core {
  given: string;
  token: string;
  /** The token of the session, or of the last try. */
  private used: string;
  queueId: string;
  last: number;
  next: number;
  sent: number;
  entries: number;
  letters: number;
  size: number;
  readonly conflicts: Map<number, [number, number]>;
  readonly window = new Map<number, Entry>();
  readonly flying = new Map<number, number>();
  cursor: string | null;
  owed: readonly string[];
  wanted: Tables[];
  isOnline = false;
  refused: Json | null = null;
  /** The next node to try counts from here. */
  node = 0;
  connectAt: number | null = 0;
  syncSince: number | null = null;
  renewAt: number | null = null;

  private isNew: boolean;
  /** Entries up to here may have been applied, and their answers were lost. */
  private doubt: number;
  private loaded = 0;
  private loading = false;
  private goingBack = false;
  private renew = false;
  private unknown = false;
  private paused = false;
  private seq: number | null = null;
  private fresh: { tables: Tables } | null = null;
  private syncId: string | null = null;
  private restricted = false;
  private covered = 0;
  private newest = new Map<string, number>();
  private connected_ = false;
  private closing = false;
  private onlineSince: number | null = null;
  private tries = 0;
  private pauses = 0;
  private syncPauses = 0;
  private retryAfter = 0;
  private pushNotBefore = 0;
  private syncNotBefore = 0;
  private pushWaits = false;
  private syncWaits = false;
  private wall = "";
  private out: Action[] = [];

  constructor(
    readonly device: string,
    token: string,
    disk: Snapshot,
    private readonly random: () => number,
    private readonly newId: () => string,
    private readonly options: Options = {},
  ) {
    this.given = token;
    this.token = disk.token !== null && disk.tokenGiven === token ? disk.token : token;
    this.used = this.token;
    this.isNew = disk.queueId === null;
    this.queueId = disk.queueId ?? newId();
    this.last = disk.last;
    this.next = disk.next;
    this.sent = this.doubt = disk.sent;
    this.entries = disk.entries;
    this.letters = disk.letters;
    this.size = disk.size;
    this.conflicts = new Map(disk.conflicts);
    this.cursor = disk.cursor;
    this.owed = disk.owed;
    this.wanted = this.owed.length ? [this.owed] : [];
  }

  // -- the connection

  start(): Action[] {
    if (this.isNew) this.out.push({ do: "queueIs", id: this.queueId, last: 0, sent: 0 });
    this.isNew = false;
    return this.taken();
  }

  /** The token to connect with. */
  connecting(): string {
    this.used = this.token;
    return this.used;
  }

  /** A connection was made with what `connecting` gave; `wall` is the device's own time. */
  connected(now: number, wall: string): Action[] {
    this.connected_ = true;
    this.closing = this.isOnline = this.restricted = false;
    this.connectAt = this.renewAt = null;
    this.wall = wall;
    this.comeOnline(now);
    return this.taken();
  }

  /** The connection ended, or could not be made; `error` is what the server said as it refused it. */
  disconnected(now: number, error: Json | null = null): Action[] {
    if (error !== null) this.endOfSession(error);
    this.doubt = Math.max(this.doubt, ...this.flying.keys());
    this.flying.clear();
    this.pauses += Number(this.paused);
    this.goingBack = this.renew = this.unknown = this.paused = false;
    this.connected_ = this.isOnline = this.closing = false;
    this.onlineSince = this.syncSince = this.renewAt = null;
    this.abandon();
    const backoff = Math.min(limits.BACKOFF * 2 ** Math.min(this.tries, 16), limits.BACKOFF_MAX) * (0.75 + this.random() / 2);
    const wait = Math.max(backoff, this.retryAfter * (1 + this.random() / 2));
    this.tries += 1;
    this.node += 1;
    this.retryAfter = 0;
    this.connectAt = now + wait;
    this.out.push({ do: "connect", at: this.connectAt });
    return this.taken();
  }

  /** The app has another token: it is tried at once. */
  newToken(token: string, now: number): Action[] {
    this.given = this.token = token;
    this.refused = null;
    if (!this.connected_) {
      this.connectAt = now;
      this.out.push({ do: "connect", at: now });
    }
    return this.taken();
  }

  /** To be called at `deadline`; more often does no harm. */
  tick(now: number): Action[] {
    this.work(now);
    return this.taken();
  }

  /** When `tick` has something to do. */
  deadline(): number | null {
    if (!this.connected_ || this.closing) return null;
    const times = [...this.flying.values(), this.onlineSince, this.syncSince]
      .filter((since) => since !== null)
      .map((since) => since + limits.PATIENCE);
    if (this.isOnline) {
      if (this.pushWaits) times.push(this.pushNotBefore);
      if (this.syncWaits) times.push(this.syncNotBefore);
      if (this.renewAt !== null) times.push(this.renewAt);
    }
    return times.length ? Math.min(...times) : null;
  }

  private comeOnline(now: number): void {
    this.onlineSince = now;
    this.seq = this.cursor === null ? null : numberOf(this.cursor);
    this.covered = this.seq ?? 0;
    this.newest.clear();
    const cursor = this.cursor === null ? {} : { cursor: this.cursor };
    const own = { device_id: this.device, timestamp: this.wall, unsent: this.entries };
    this.send("device_online", { ...this.options.online, ...own, ...cursor });
  }

  private endOfSession(error: Json): void {
    this.retryAfter = error.retry_after_ms ?? 0;
    if (TOKEN_CODES.includes(error.error_code) && this.used === this.token) {
      this.refused = error;
      this.retryAfter = Math.max(this.retryAfter, limits.REFUSED_PAUSE);
      this.tell("token_refused", error);
    }
  }

  private close(): void {
    this.closing = true;
    this.isOnline = false;
    this.out.push({ do: "close" });
  }

  // -- what is heard

  received(event: string, data: Json, now: number): Action[] {
    if (!this.connected_ || this.closing) return this.taken();
    switch (event) {
      case "acknowledged":
        if (data.event === "data_update") this.acknowledged(data);
        break;
      case "data_update":
        this.live(data);
        break;
      case "sync_response":
        this.page(data, now);
        break;
      case "device_online_ack":
        if (data.device_id === this.device) this.cameOnline(data, now);
        break;
      case "error":
        this.error(data, now);
        break;
      case "sync_error":
        this.syncError(data, now);
        break;
      case "sync_conflict":
        this.tell("conflict", data);
        break;
      case "sync_conflict_resolved":
        this.resolved(data);
        break;
      case "access_changed":
        this.accessChanged(data);
        break;
      case "token_renewed":
        this.renewed(data, now);
        break;
    }
    this.work(now);
    return this.taken();
  }

  private cameOnline(ack: Json, now: number): void {
    this.onlineSince = null;
    this.isOnline = true;
    this.refused = null;
    if (this.cursor !== null || this.options.copy === false) this.tries = 0;
    this.planRenewal(ack.timestamp, now);
    this.tell("online", ack);
  }

  private error(error: Json, now: number): void {
    const { error_code: code, event } = error;
    const n = this.flyingNumber(error);
    if (code === "1005") this.loseCursor(now);
    else if (code === "3001" || code === "3002") {
      this.endOfSession(error);
      this.close();
    } else if (n !== null) this.entryRefused(n, error, now);
    else if (event === "token_renew") {
      this.renewAt = now + Math.max(limits.RENEW_PAUSE, error.retry_after_ms ?? 0);
      this.tell("error", error);
    } else if (event === "sync_request") this.syncError(error, now);
    else if (event === "device_online" || (event === undefined && !TOLD_ONLY.includes(code))) {
      this.endOfSession(error);
      this.close();
    } else this.tell("error", error);
  }

  // -- the queue

  /** The write that queues a change; `enqueued` takes note once it is on the disk. `letter` is what it replaces. */
  prepare(update: Json, letter: { n: number; size: number } | null = null): Action & { do: "enqueue" } {
    const size = sizeOf(update);
    const held = this.entries + this.letters - Number(letter !== null);
    const bytes = this.size - (letter?.size ?? 0) + size;
    const { maxEntries = limits.QUEUE_ENTRIES, maxBytes = limits.QUEUE_BYTES } = this.options;
    if (held >= maxEntries || bytes > maxBytes)
      throw new QueueFull(`${this.entries} changes wait and ${this.letters} were refused (${this.size} bytes)`);
    return { do: "enqueue", n: this.next, update, size, replaces: letter?.n ?? null };
  }

  enqueued(entry: Action & { do: "enqueue" }, now: number, letterSize = 0): Action[] {
    if (entry.replaces !== null) {
      this.letters -= 1;
      this.size -= letterSize;
    }
    this.next = entry.n + 1;
    if (this.entries === this.window.size && this.window.size < 2 * limits.WINDOW && !this.loading) {
      this.window.set(entry.n, { n: entry.n, update: entry.update, size: entry.size });
      this.loaded = entry.n;
    }
    this.entries += 1;
    this.size += entry.size;
    this.work(now);
    return this.taken();
  }

  /** The app has dealt with a letter, and it is off the disk. */
  forgotten(n: number, size: number): void {
    this.letters -= 1;
    this.size -= size;
    for (const [conflict, letter] of this.conflicts) if (letter[0] === n) this.conflicts.delete(conflict);
  }

  loadedEntries(entries: readonly Entry[], now: number): Action[] {
    this.loading = false;
    if (!entries.length) this.entries = this.window.size; // the disk knows
    for (const entry of entries) {
      this.window.set(entry.n, entry);
      this.loaded = entry.n;
    }
    this.work(now);
    return this.taken();
  }

  /** Of an entry that is in the queue. One that an earlier session sent without an answer is `sent`, too. */
  stateOf(n: number): "sent" | "pending" {
    return this.flying.has(n) || n <= this.doubt ? "sent" : "pending";
  }

  private flyingNumber(answer: Json): number | null {
    const id = String(answer.request_id ?? "");
    const at = id.lastIndexOf("-");
    if (id.slice(0, Math.max(at, 0)) !== this.queueId || !/^\d+$/.test(id.slice(at + 1))) return null;
    const n = Number(id.slice(at + 1));
    return this.flying.has(n) ? n : null;
  }

  private acknowledged(ack: Json): void {
    const n = this.flyingNumber(ack);
    if (n === null) return;
    this.take(n);
    this.last = Math.max(this.last, n);
    this.pauses = 0;
    this.out.push({ do: "settle", n, last: this.last });
    this.tell("acknowledged", { ...ack, n });
  }

  private take(n: number): Entry {
    this.flying.delete(n);
    const entry = this.window.get(n);
    if (entry === undefined) throw new Error(`entry ${n} is not in the window`);
    this.window.delete(n);
    this.entries -= 1;
    this.size -= entry.size;
    return entry;
  }

  /** An entry was refused. So are those behind it (`after`); they are sent again when all have their answers. */
  private entryRefused(n: number, error: Json, now: number): void {
    const { field, retry } = error;
    this.goingBack = true;
    if (error.error_code === "3004") this.close(); // not known any more: it registers again as it comes back
    else if (retry !== "no") {
      if (retry !== "safe") {
        this.unknown = true;
        this.doubt = Math.max(this.doubt, n);
      }
      this.flying.delete(n);
      this.pauseQueue(now, error);
    } else if (field === "after") {
      this.flying.delete(n);
      if (Number.isSafeInteger(error.last) && error.last !== this.last) {
        this.last = error.last;
        this.out.push({ do: "lastIs", last: this.last });
      }
      this.pauseQueue(now, { retry_after_ms: 50 });
    } else if (field === "n" || (field === "queue" && n > this.doubt)) {
      // The queue's file was copied or set back, or the cluster has forgotten the queue; this entry was surely not
      // applied. What waits goes on in a new queue.
      this.flying.delete(n);
      this.renew = true;
      this.pauseQueue(now, error);
    } else {
      const entry = this.take(n);
      let state: Letter["state"] = "refused";
      if (Number.isSafeInteger(error.conflict_id)) {
        // It is kept with the conflict: for the cluster it was the queue's next entry.
        state = "conflict";
        this.last = Math.max(this.last, n);
        this.conflicts.set(error.conflict_id, [n, entry.size]);
      }
      this.letters += 1;
      this.size += entry.size;
      this.out.push({ do: "bury", n, state, error, last: this.last });
      this.tell(state, { n, update: entry.update, error });
    }
  }

  /** A pause grows with the rounds that were refused, however many entries of a round were. */
  private pauseQueue(now: number, error: Json): void {
    this.pushNotBefore = Math.max(this.pushNotBefore, now + this.pause(this.pauses, error));
    this.paused = true;
  }

  private pause(pauses: number, error: Json): number {
    const least = error.retry_after_ms ?? Math.min(limits.PAUSE * 2 ** Math.min(pauses, 16), limits.PAUSE_MAX);
    return least * (1 + this.random() / 2);
  }

  private resolved(resolved: Json): void {
    const letter = this.conflicts.get(resolved.conflict_id);
    if (letter !== undefined) {
      this.out.push({ do: "forget", n: letter[0] });
      this.forgotten(...letter);
    }
    this.tell("resolved", resolved);
  }

  // -- the copy

  /** The app wants a full sync, of all or of these tables. */
  sync(tables: Tables, now: number): Action[] {
    this.want(tables);
    this.work(now);
    return this.taken();
  }

  private want(tables: Tables): void {
    if (!this.wanted.some((wanted) => same(wanted, tables)) && this.wanted.length < limits.SYNCS_WANTED)
      this.wanted.push(tables);
  }

  private live(change: Json): void {
    const { seq, table_name: table } = change;
    if (this.seq !== null) {
      if (seq <= this.seq) return; // a sync brought it already
      const missed = change.after ?? 0;
      if (!this.restricted && seq > this.seq + 1) {
        this.tell("gap", change);
        return this.close(); // it resumes where it was
      }
      if (this.restricted && missed > Math.max(this.newest.get(table) ?? 0, this.covered)) {
        this.tell("gap", change);
        if (this.cursor === null || missed > numberOf(this.cursor)) return this.close();
        this.forgetCursor(); // later changes moved it past what is missing
      }
    }
    if (this.options.copy !== false) this.seq = seq;
    this.newest.set(table, seq);
    const data = change.operation === "delete" ? null : change.new_data;
    const toFresh = this.fresh !== null && (this.fresh.tables === null || this.fresh.tables.includes(table));
    const toCopy = this.cursor !== null;
    if (toCopy || toFresh) this.out.push({ do: "put", table, id: change.record_id, version: seq, data, toCopy, toFresh });
    if (toCopy) {
      this.cursor = change.cursor as string;
      this.out.push({ do: "cursorIs", cursor: this.cursor });
    }
    this.tell("change", change);
  }

  /** The cursor is of another history, or too old: a full sync is owed. The old copy stays until it is there. */
  private loseCursor(now: number): void {
    this.forgetCursor();
    this.comeOnline(now);
  }

  private forgetCursor(): void {
    this.cursor = this.seq = null;
    this.out.push({ do: "cursorIs", cursor: null });
    this.wanted = this.owed.length ? [this.owed] : [];
    this.abandon(); // pages that are under way are let pass before another sync is asked for
  }

  private abandon(): void {
    if (this.fresh !== null) this.out.push({ do: "abandon" });
    this.fresh = null;
  }

  private syncError(error: Json, now: number): void {
    const wasAsked = this.syncSince !== null;
    this.syncSince = null;
    if (error.error_code === "1005") return this.loseCursor(now);
    if (!wasAsked) return this.tell("error", error);
    const tables = this.fresh?.tables ?? null;
    if (tables !== null && ["2004", "3003"].includes(error.error_code)) {
      this.wanted = this.wanted.filter((wanted) => !same(wanted, tables)); // it would be refused for ever
      this.paid(tables);
    }
    this.abandon();
    this.syncNotBefore = now + this.pause(this.syncPauses, error);
    this.syncPauses += 1;
    this.tell("error", error);
  }

  private page(page: Json, now: number): void {
    if (this.syncSince === null) return;
    if (this.fresh === null) {
      this.syncSince = page.has_more ? now : null; // of a sync that is not wanted any more
      return;
    }
    if (page.page === 1) this.syncId = page.sync_id;
    if (page.sync_id !== this.syncId) return;
    const { tables } = this.fresh;
    this.syncSince = now;
    for (const change of page.changes) {
      const { table_name: table, record_id: id, seq: version } = change;
      const data = change.operation === "delete" ? null : change.data;
      this.out.push({ do: "put", table, id, version, data, toCopy: false, toFresh: true });
    }
    if (page.has_more) return;
    this.fresh = this.syncSince = this.syncId = null;
    this.wanted = this.wanted.filter((wanted) => !same(wanted, tables));
    const reached = numberOf(page.cursor);
    if (tables === null) {
      if (this.cursor === null || numberOf(this.cursor) < reached) this.cursor = page.cursor as string;
      this.seq = Math.max(this.seq ?? 0, reached);
      this.covered = Math.max(this.covered, reached);
    } else for (const table of tables) this.newest.set(table, Math.max(this.newest.get(table) ?? 0, reached));
    this.out.push({ do: "switch", tables, cursor: this.cursor });
    if (tables !== null) this.paid(tables);
    this.tries = this.pauses = this.syncPauses = 0;
    const { sync_id, timestamp: sync_timestamp, total: changes_count } = page;
    this.send("sync_complete", { device_id: this.device, sync_id, sync_timestamp, changes_count });
    this.tell("synced", { tables, cursor: page.cursor, total: page.total });
  }

  private paid(tables: readonly string[]): void {
    const left = this.owed.filter((table) => !tables.includes(table));
    if (left.length === this.owed.length) return;
    this.owed = left;
    this.out.push({ do: "owed", tables: left });
  }

  private accessChanged(access: Json): void {
    const rights = Object.entries(access.tables as Record<string, string>);
    this.restricted = rights.some(([, right]) => right === "none");
    const none = rights.filter(([, right]) => right === "none").map(([table]) => table);
    if (none.includes("*")) {
      const kept = rights.filter(([table, right]) => table !== "*" && right !== "none").map(([table]) => table);
      this.out.push({ do: "drop", tables: kept, others: true });
    } else {
      const gone = [...new Set<string>([...access.forget, ...none])];
      if (gone.length) this.out.push({ do: "drop", tables: gone, others: false });
      this.paid(gone);
    }
    if (access.resync.length && this.options.copy !== false) {
      this.owed = [...new Set<string>([...this.owed, ...access.resync])];
      this.out.push({ do: "owed", tables: this.owed });
      if (!this.wanted.some((wanted) => same(wanted, access.resync))) this.wanted.push(access.resync);
    }
    this.tell("access", access);
  }

  // -- the token

  /** When half of its life is left, by the cluster's clock. A long life counts as that of a renewed one. */
  private planRenewal(serverTime: unknown, now: number): void {
    this.renewAt = null; // one that says nothing of its end
    try {
      const { exp, iat } = claimsOf(this.token);
      const at = now + (exp * 1000 - Math.min((exp - iat) * 1000, limits.PAIRED_LIFE) / 2) - Date.parse(String(serverTime));
      if (Number.isFinite(at)) this.renewAt = at;
    } catch {
      // It is no token that can be read.
    }
  }

  private renewed(renewed: Json, now: number): void {
    this.token = renewed.token;
    this.out.push({ do: "tokenIs", given: this.given, token: this.token });
    this.planRenewal(renewed.timestamp, now);
    if (this.renewAt !== null) this.renewAt = Math.max(this.renewAt, now + 1_000); // one that lives for seconds only
    this.tell("token_renewed", { expires: renewed.expires });
  }

  // -- what is to be done

  private work(now: number): void {
    if (!this.connected_ || this.closing) return;
    const due = [...this.flying.values(), this.onlineSince ?? now, this.syncSince ?? now];
    if (now - Math.min(...due) >= limits.PATIENCE) return this.close(); // come again, and send again
    if (!this.isOnline) return;
    if (this.renewAt !== null && now >= this.renewAt) {
      this.renewAt = now + limits.RENEW_PAUSE;
      this.send("token_renew", {});
    }
    this.askForSync(now);
    this.push(now);
  }

  private askForSync(now: number): void {
    const needsAll = this.cursor === null && this.options.copy !== false;
    if (needsAll && !this.wanted.includes(null)) this.wanted.unshift(null);
    const idle = this.wanted.length > 0 && this.syncSince === null;
    this.syncWaits = idle && now < this.syncNotBefore;
    if (!idle || this.syncWaits) return;
    const tables = this.wanted[0] ?? null;
    this.syncSince = now;
    this.fresh = { tables };
    this.syncId = null;
    this.out.push({ do: "begin", tables }); // what is heard from here on belongs to the new copy
    const some = tables === null ? {} : { requested_tables: tables };
    this.send("sync_request", { device_id: this.device, sync_type: "full", ...some });
  }

  /** Sends the queue in order, a window ahead of the answers. */
  private push(now: number): void {
    this.pushWaits = false;
    if (this.loading || (this.goingBack && this.flying.size)) return;
    if (this.goingBack) {
      // What may have been applied under the old id must be known before there is a new one.
      if (this.renew && !this.unknown) {
        this.queueId = this.newId();
        this.last = this.sent = this.doubt = 0;
        this.out.push({ do: "queueIs", id: this.queueId, last: 0, sent: 0 });
      }
      this.pauses += Number(this.paused);
      this.goingBack = this.renew = this.unknown = this.paused = false;
    }
    this.pushWaits = this.entries > 0 && now < this.pushNotBefore;
    if (this.pushWaits) return;
    if (this.window.size < Math.min(limits.WINDOW, this.entries)) {
      this.loading = true;
      this.out.push({ do: "load", after: this.loaded, limit: limits.WINDOW });
      return;
    }
    let after = this.last;
    let ahead = 0;
    let bytes = 0;
    for (const entry of this.window.values()) {
      bytes += entry.size;
      if (++ahead > limits.WINDOW || (ahead > 1 && bytes > limits.WINDOW_BYTES)) break;
      if (!this.flying.has(entry.n)) this.sendEntry(entry, Math.min(after, entry.n - 1), now);
      after = Math.max(after, entry.n);
    }
  }

  /** `after` may be anything for an entry behind `last`: it was applied, and its answer got lost. */
  private sendEntry(entry: Entry, after: number, now: number): void {
    if (entry.n > this.sent) {
      this.sent = entry.n;
      this.out.push({ do: "markSent", n: entry.n });
    }
    this.flying.set(entry.n, now);
    const numbers = { queue: this.queueId, n: entry.n, after, request_id: `${this.queueId}-${entry.n}` };
    this.send("data_update", { ...entry.update, ...numbers });
  }

  private send(event: string, data: Json): void {
    this.out.push({ do: "send", event, data });
  }

  private tell(kind: string, data: Json): void {
    this.out.push({ do: "tell", kind, data });
  }

  private taken(): Action[] {
    const out = this.out;
    this.out = [];
    return out;
  }
}
