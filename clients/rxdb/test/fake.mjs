// A cluster in one object that does what a test tells it: REST and Socket.IO, on a free port.
import { createServer } from "node:http";
import { Server } from "socket.io";

const PAGE = 3;
const now = () => new Date().toISOString();

export class FakeCluster {
  constructor() {
    Object.assign(this, { epoch: "e", seq: 0, compacted: 0, changes: [], last: new Map(), tables: new Map(), queues: new Map(), conflicts: 0, made: [] });
    Object.assign(this, { updates: [], requests: [], rights: null, policy: "last_writer_wins", granted: 0 });
    /** What goes wrong: an update's error, an answer or a live change that gets lost, a request that fails; what happens between a read and its answer. */
    Object.assign(this, { refuse: () => null, losesAnswer: () => false, losesChange: () => false, fails: () => false, onRead: () => {}, onPull: () => {} });
    this.http = createServer((request, response) => this.answer(request, response));
    this.io = new Server(this.http, { transports: ["websocket"] });
    this.io.on("connection", (socket) => this.session(socket));
  }

  async listen(port = 0) {
    await new Promise((resolve) => this.http.listen(port, "127.0.0.1", resolve));
    this.url = `http://127.0.0.1:${this.http.address().port}`;
    return this;
  }

  close() {
    this.http.closeAllConnections();
    return this.io.close();
  }

  cut() {
    this.io.disconnectSockets(true);
  }

  right(table, need) {
    const right = this.rights?.[table] ?? this.rights?.["*"] ?? "write";
    return right === "write" || right === need;
  }

  /** Tells every session what its class may do from now on. */
  allow(rights) {
    const named = [...this.tables.keys()];
    const before = named.filter((table) => this.right(table, "read"));
    this.rights = rights;
    const after = named.filter((table) => this.right(table, "read"));
    const resync = after.filter((table) => !before.includes(table));
    if (resync.length) this.granted = this.seq;
    this.io.emit("access_changed", this.access(before.filter((table) => !after.includes(table)), resync));
  }

  access = (forget, resync) => ({ class: "sales_assistant", tables: this.rights, create_tables: true, forget, resync, timestamp: now() });

  get(table, id) {
    const record = this.tables.get(table)?.get(id);
    return record?.data ? record : null;
  }

  /** A change of another device. */
  commit(table, id, data, device = "other") {
    const records = this.tables.get(table) ?? new Map();
    this.tables.set(table, records);
    const operation = data === null ? "delete" : this.get(table, id) ? "update" : "insert";
    const after = this.last.get(table) ?? 0;
    const seq = ++this.seq;
    this.last.set(table, seq);
    records.set(id, { version: seq, data });
    const change = { table_name: table, record_id: id, operation, data: data ?? {}, timestamp: now(), seq, device_id: device, after };
    this.changes.push(change);
    this.made.push(change);
    const { data: new_data, ...rest } = change;
    for (const socket of this.io.sockets.sockets.values())
      if (socket.data.online && this.right(table, "read") && !this.losesChange(change))
        socket.emit("data_update", { ...rest, new_data, cursor: this.cursor });
    return seq;
  }

  get cursor() {
    return `${this.epoch}.${this.seq}`;
  }

  /** The changes up to here are gone. */
  compact() {
    this.compacted = this.seq;
    this.changes = [];
  }

  session(socket) {
    const device = JSON.parse(Buffer.from(socket.handshake.auth.token.split(".")[1], "base64url")).sub;
    socket.on("device_online", () => {
      socket.data.online = true;
      socket.emit("device_online_ack", { device_id: device, current_master: "n", role: "client", timestamp: now(), term: 1, cursor: this.cursor });
      if (this.rights) socket.emit("access_changed", this.access([], []));
    });
    socket.on("data_update", (update) => {
      this.updates.push(update);
      const [event, answer] = this.update(update, device);
      if (this.losesAnswer(update)) return setTimeout(() => socket.disconnect(true), 20); // what was told before goes out
      const { request_id, queue, n } = update;
      socket.emit(event, { timestamp: now(), event: "data_update", device_id: device, request_id, ...answer, ...(event === "acknowledged" && { queue, n }) });
    });
    socket.on("sync_request", ({ requested_tables: tables }) => {
      const refused = tables.find((table) => !this.right(table, "read"));
      if (refused) return socket.emit("sync_error", { error_code: "3003", error_message: "may not", retry: "no", field: "table_name", event: "sync_request" });
      const all = tables.flatMap((table) =>
        [...(this.tables.get(table) ?? [])]
          .filter(([, { data }]) => data)
          .map(([record_id, { version: seq, data }]) => ({ table_name: table, record_id, operation: "insert", data, timestamp: now(), seq })),
      );
      const [sync_id, cursor] = [`s${Math.random()}`, this.cursor];
      for (let page = 1, at = 0; at === 0 || at < all.length; page++, at += PAGE) {
        const changes = all.slice(at, at + PAGE);
        socket.emit("sync_response", { sync_type: "full", timestamp: now(), changes, sync_id, page, has_more: at + PAGE < all.length, cursor, total: all.length });
      }
    });
  }

  update({ table_name: table, record_id: id, operation, new_data, base_version, queue, n, after, ...update }, device) {
    const refused = (error_code, more) => ["error", { error: "no", error_code, retry: "no", ...more }];
    const last = this.queues.get(queue) ?? 0;
    if (n <= last) return ["acknowledged", { message: "known", repeated: true }];
    if (after !== last) return refused("2004", { field: "after", last });
    const error = this.refuse({ table, id, operation, new_data, ...update });
    if (error) return refused(error, {});
    if (!this.right(table, "write")) return refused("3003", { field: "table_name" });
    const record = this.get(table, id);
    const collides = operation === "insert" && record && JSON.stringify(record.data) !== JSON.stringify(new_data);
    const stale = base_version !== undefined && base_version !== (this.tables.get(table)?.get(id)?.version ?? 0);
    this.queues.set(queue, n);
    if (collides || (stale && this.policy === "manual")) return refused("2002", { conflict_id: ++this.conflicts });
    const seq = this.commit(table, id, operation === "delete" ? null : new_data, device);
    return ["acknowledged", { message: "done", seq, cursor: this.cursor, ...(stale && { conflict: true, conflict_id: ++this.conflicts }) }];
  }

  answer(request, response) {
    const url = new URL(request.url, "http://x");
    if (url.pathname.startsWith("/socket.io/")) return;
    const say = (status, body) => response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
    const no = (status, error_code, retry, more) => say(status, { success: false, error: "no", error_code, retry, ...more });
    this.requests.push(url.pathname);
    if (this.fails(url)) return no(503, "5003", "safe", { retry_after_ms: 10 });
    const [, root, table, id] = url.pathname.split("/").map(decodeURIComponent);
    if (root === "data") {
      if (!this.right(table, "read")) return no(403, "3003", "no", { field: "table_name" });
      if (url.pathname.endsWith("/history")) {
        const history = this.changes.filter((change) => change.table_name === table && change.record_id === Number(id));
        return say(200, { table_name: table, record_id: Number(id), history: history.toReversed().map((change) => ({ kind: "change", version: change.seq, ...change })) });
      }
      const record = this.get(table, Number(id));
      const body = { table_name: table, record_id: Number(id), data: record?.data ?? null, ...(record && { version: record.version }), timestamp: now() };
      const meanwhile = this.onRead(table, Number(id));
      return meanwhile ? meanwhile.then(() => say(200, body)) : say(200, body);
    }
    const [epoch, from] = (url.searchParams.get("cursor") ?? `${this.epoch}.0`).split(".");
    if (epoch !== this.epoch || Number(from) < Math.max(this.compacted, this.granted)) return no(409, "1005", "no", {});
    const tables = url.searchParams.get("tables").split(",").filter((name) => this.right(name, "read"));
    const found = this.changes.filter(({ seq, table_name }) => seq > Number(from) && tables.includes(table_name));
    // A page has less than was asked for where it would be too large.
    const changes = found.slice(0, Math.min(Number(url.searchParams.get("limit")), PAGE));
    const has_more = changes.length < found.length;
    const page = { changes, has_more, cursor: has_more ? `${this.epoch}.${changes.at(-1).seq}` : this.cursor };
    this.onPull();
    setTimeout(() => say(200, page), 20); // what is told live may overtake it
  }
}
