// What is checked at the door, and the file's disk.
import assert from "node:assert/strict";
import { appendFileSync, mkdtempSync, statSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { checked, claimsOf, Client, InvalidChange, newRecordId, QueueFull } from "@tillsync/client";
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
