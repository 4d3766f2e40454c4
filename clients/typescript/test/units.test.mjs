// What is checked at the door, and the file's disk.
import assert from "node:assert/strict";
import { appendFileSync, mkdtempSync, statSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { checked, claimsOf, Client, Core, InvalidChange, MemoryDisk, newRecordId, QueueFull } from "@tillsync/client";
import { FileDisk } from "@tillsync/client/node";

const token = "x.eyJzdWIiOiJ0aWxsLTEifQ.y";
const folder = () => mkdtempSync(join(tmpdir(), "tillsync-"));
const nested = (depth) => (depth === 1 ? {} : { x: nested(depth - 1) });
const good = { table: "t", id: 1, data: { x: 1 } };

for (const [field, change] of [
  ["table_name", { table: "" }], ["table_name", { table: "no\ttable" }], ["table_name", { table: "é".repeat(51) }],
  ["record_id", { id: 2 ** 53 }], ["record_id", { id: 1.5 }], ["record_id", { id: "1" }], ["operation", { operation: "upsert" }],
  ["base_version", { baseVersion: -1 }], ["new_data", { data: null }], ["new_data", { data: [1] }],
  ["new_data", { data: { x: NaN } }], ["new_data", { data: { x: "\ud800" } }], ["new_data", { data: { "\ud800": 1 } }],
  ["new_data", { data: { x: undefined } }], ["new_data", { data: { x: 1n } }],
  ["new_data", { data: { photo: "x".repeat(256 * 1024) } }], ["new_data", { data: nested(31) }],
])
  test(`refused at the door: ${field} ${Object.keys(change)} ${typeof Object.values(change)[0]}`, () => {
    assert.throws(() => checked("till-1", { ...good, ...change }), (error) => error instanceof InvalidChange && error.field === field);
  });

test("what is at the bound is taken", () => {
  for (const data of [{ photo: "x".repeat(256 * 1024 - 12) }, nested(30), { text: "\u{1f600}" }])
    assert.deepEqual(checked("till-1", { ...good, data }).new_data, data);
});

test("ids are drawn below what is exact", () => {
  const ids = Array.from({ length: 10_000 }, newRecordId);
  assert.equal(new Set(ids).size, ids.length);
  assert.ok(ids.every((id) => Number.isSafeInteger(id) && id > 0) && Math.max(...ids) > 2 ** 52);
});

test("a token that is none is said", () => {
  for (const none of ["", "a.b", "a.e30.c"]) assert.throws(() => claimsOf(none), /token/);
});

test("half a line at the end of the queue's file does not count, and what comes after it does", async () => {
  const place = folder();
  const entry = (n) => ({ do: "enqueue", n, update: { new_data: { n } }, size: 20, replaces: null });
  let disk = new FileDisk(place);
  await disk.apply([entry(1)]);
  await disk.apply([entry(2)]);
  await disk.close();
  const path = join(place, "queue");
  truncateSync(path, statSync(path).size - 3);
  disk = new FileDisk(place);
  assert.deepEqual((await disk.entries(0, 10)).map(({ n }) => n), [1]);
  await disk.apply([entry(3)]);
  await disk.close();
  appendFileSync(path, "\0\0\0\0");
  disk = new FileDisk(place);
  assert.deepEqual((await disk.entries(0, 10)).map(({ n }) => n), [1, 3]);
  await disk.close();
});

test("a folder has one program", async () => {
  const place = folder();
  const disk = new FileDisk(place);
  assert.throws(() => new FileDisk(place), /held by/);
  await disk.close();
  await new FileDisk(place).close();
});

test("the queue's file does not grow with what was sold", async () => {
  const place = folder();
  const disk = new FileDisk(place);
  for (let n = 1; n <= 4000; n++) {
    await disk.apply([{ do: "enqueue", n, update: { x: "x".repeat(1000) }, size: 1000, replaces: null }]);
    await disk.apply([{ do: "settle", n, last: n }]);
  }
  assert.ok(statSync(join(place, "queue")).size < 2_000_000);
  assert.equal((await disk.snapshot()).next, 4001);
  await disk.close();
  const again = new FileDisk(place);
  const { next, last, entries } = await again.snapshot();
  assert.deepEqual({ next, last, entries }, { next: 4001, last: 4000, entries: 0 });
  await again.close();
});

test("tidying up that fails is no failure of a write", async () => {
  const place = folder();
  const disk = new FileDisk(place);
  let tried = 0;
  disk.queue.rewrite = () => {
    tried++;
    throw new Error("full");
  };
  for (let n = 1; n <= 1001; n++) {
    await disk.apply([{ do: "enqueue", n, update: {}, size: 2, replaces: null }]);
    await disk.apply([{ do: "settle", n, last: n }]);
  }
  await disk.apply([{ do: "enqueue", n: 1002, update: { x: 1 }, size: 2, replaces: null }]);
  assert.ok(tried > 0);
  await disk.close();
  const again = new FileDisk(place);
  assert.deepEqual((await again.entries(0, 10)).map(({ n }) => n), [1002]);
  await again.close();
});

test("a disk that fails in the middle is begun anew from", async () => {
  const disk = new FileDisk(folder());
  const told = [];
  const listen = (kind) => told.push(kind);
  const client = await Client.open({ url: "http://127.0.0.1:1", token, disk, listen });
  const { apply, snapshot } = disk;
  disk.snapshot = async () => {
    throw new Error("unreadable");
  };
  disk.apply = async (writes) => {
    await apply.call(disk, writes);
    disk.apply = apply;
    client.core.enqueued = () => {
      throw new Error("what the core knows is not what is on the disk");
    };
  };
  await client.insert("t", { i: 1 }); // it is on the disk: no failure of the call
  assert.deepEqual(told.filter((kind) => kind === "failed"), ["failed"]);
  await assert.rejects(client.insert("t", { i: 2 }), /unreadable/);
  disk.snapshot = snapshot;
  await client.insert("t", { i: 3 });
  assert.equal(client.status.pending, 2);
  assert.deepEqual((await disk.entries(0, 10)).map(({ n, update }) => [n, update.new_data.i]), [[1, 1], [2, 3]]);
  await client.close();
});

test("the queue is bounded, and many changes are queued together or not at all", async () => {
  const client = await Client.open({ url: "http://127.0.0.1:1", token, disk: new FileDisk(folder()), maxEntries: 3 });
  const many = (count) => Array.from({ length: count }, (_, i) => ({ table: "t", data: { i } }));
  await assert.rejects(client.pushMany(many(4)), QueueFull);
  await assert.rejects(client.pushMany([...many(1), { table: "t", data: { x: NaN } }]), InvalidChange);
  assert.equal(client.status.pending, 0);
  await client.pushMany(many(3));
  await assert.rejects(client.insert("t", {}), QueueFull);
  assert.equal(client.status.pending, 3);
  await client.close();
  await assert.rejects(client.insert("t", {}), /closed/);
});

test("a disk that fails while it queues fails the call, and nothing is queued", async () => {
  const disk = new FileDisk(folder());
  const client = await Client.open({ url: "http://127.0.0.1:1", token, disk });
  const apply = disk.apply;
  disk.apply = async () => {
    throw new Error("full");
  };
  await assert.rejects(client.insert("t", {}), /full/);
  assert.equal(client.status.pending, 0);
  disk.apply = apply;
  await client.insert("t", {});
  assert.equal(client.status.pending, 1);
  await client.close();
});

test("without a copy changes are only told, in whatever order they come, and no sync is made that nobody asked for", async () => {
  const core = new Core("till-1", token, await new MemoryDisk().snapshot(), () => 0.5, () => "q1", { copy: false });
  const kinds = (actions) => actions.map((action) => action.event ?? action.kind ?? action.do);
  core.start();
  core.connecting();
  assert.deepEqual(kinds(core.connected(0, "2026-11-28T12:00:00.000Z")), ["device_online"]);
  const ack = { device_id: "till-1", timestamp: "2026-11-28T12:00:00.000Z", cursor: "e.9" };
  assert.deepEqual(kinds(core.received("device_online_ack", ack, 0)), ["online"]);
  const change = (seq) => ({ table_name: "t", record_id: 1, operation: "update", new_data: {}, seq, after: seq - 1, cursor: `e.${seq}` });
  for (const seq of [10, 15, 12]) assert.deepEqual(kinds(core.received("data_update", change(seq), 0)), ["change"]);
  const access = { tables: { t: "read", "*": "none" }, forget: [], resync: ["t"] };
  assert.deepEqual(kinds(core.received("access_changed", access, 0)), ["drop", "access"]);
  assert.deepEqual(kinds(core.received("data_update", { ...change(20), after: 18 }, 0)), ["change"]);
  assert.equal(core.disconnected(0)[0].at, 1000, "the pause begins anew with each session");
  core.connecting();
  core.connected(1000, "2026-11-28T12:00:00.000Z");
  core.received("device_online_ack", ack, 1000);
  assert.deepEqual(kinds(core.sync(["t"], 1000)), ["begin", "sync_request"]);
  assert.deepEqual(kinds(core.received("data_update", change(21), 1000)), ["put", "change"]);
  const page = { sync_type: "full", sync_id: "s", page: 1, changes: [], has_more: false, cursor: "e.21", total: 0, timestamp: "" };
  assert.deepEqual(kinds(core.received("sync_response", page, 1000)), ["switch", "sync_complete", "synced"]);
});

test("each entry's number is given to those who wait for its answer", async () => {
  const client = await Client.open({ url: "http://127.0.0.1:1", token, disk: new FileDisk(folder()), copy: false });
  assert.deepEqual(await client.enqueue([{ table: "t", id: 7, data: {} }, { table: "t", id: 8, data: {} }]), [{ n: 1, id: 7 }, { n: 2, id: 8 }]);
  assert.deepEqual(await client.pushMany([{ table: "t", id: 9, data: {} }]), [9]);
  assert.equal(client.token, token);
  await client.close();
});
