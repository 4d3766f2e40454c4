// The plugin against a cluster that does what each test tells it.
import assert from "node:assert/strict";
import { afterEach, test } from "node:test";
import { MemoryDisk } from "@tillsync/client";
import { newId, Tillsync } from "../dist/index.js";
import { FakeCluster } from "./fake.mjs";
import { all, kill, schema, shop, until } from "./helpers.mjs";

const token = `x.${Buffer.from('{"sub":"till-1"}').toString("base64url")}.y`;
let open = [];

afterEach(async () => {
  for (const end of open.reverse()) await end();
  open = [];
});

async function cluster() {
  const fake = await new FakeCluster().listen();
  open.push(() => fake.close());
  return fake;
}

async function till(fake, { tables = ["products"], storage, name, more, disk = new MemoryDisk(), ...options } = {}) {
  const made = await shop(tables, storage, name, more);
  await options.before?.(made.db);
  const tillsync = await Tillsync.open({ url: fake.url, token, disk, ...options.open });
  const replications = tables.map((table) => {
    const replication = tillsync.replicate({ collection: made.db[table], batchSize: 4, ...options.replicate });
    replication.error$.subscribe((error) => replications.errors.push(error));
    return replication;
  });
  replications.errors = [];
  const close = async () => {
    if (!made.life.dead) await tillsync.close();
    await made.db.close();
  };
  open.push(close);
  const [replication] = replications;
  return { ...made, tillsync, replications, replication, products: made.db.products, errors: replications.errors, close, disk };
}

const letters = async (tillsync) => {
  const found = [];
  for await (const { state, update, error } of tillsync.client.letters()) found.push([state, update.record_id, error.error_code]);
  return found;
};
const made = (fake, table = "products") => fake.changes.filter((change) => change.table_name === table).map(({ operation, record_id, data }) => [operation, record_id, data]);

test("what is there comes in batches, and goes on live; deletes, too", async () => {
  const fake = await cluster();
  for (let id = 1; id <= 8; id++) fake.commit("products", id, { name: `p${id}` });
  fake.commit("products", 3, null);
  fake.compact();
  const { products, replication, errors } = await till(fake);
  await replication.awaitInitialReplication();
  assert.deepEqual(Object.keys(await all(products)), ["1", "2", "4", "5", "6", "7", "8"]);
  fake.commit("products", 9, { name: "p9", price: 2 });
  fake.commit("other", 1, { name: "nothing of ours" });
  fake.commit("products", 1, { name: "p1", price: 1 });
  fake.commit("products", 2, null);
  await until(async () => !(await all(products))[2]);
  assert.deepEqual(await all(products), { 1: { name: "p1", price: 1 }, 4: { name: "p4" }, 5: { name: "p5" }, 6: { name: "p6" }, 7: { name: "p7" }, 8: { name: "p8" }, 9: { name: "p9", price: 2 } });
  assert.deepEqual(errors, []);
});

test("what is written here goes there, in order, with the version that it was made on", async () => {
  const fake = await cluster();
  fake.commit("products", 1, { name: "Tea", price: 3 });
  fake.commit("products", 2, { name: "Milk" });
  const { products, replication, errors } = await till(fake);
  await replication.awaitInitialReplication();
  const id = newId();
  const document = await products.insert({ id, name: "Café" });
  await (await products.findOne("1").exec()).patch({ price: 4 });
  await (await products.findOne("2").exec()).remove();
  await document.getLatest().patch({ price: 9.5 });
  await document.getLatest().patch({ price: 10 });
  await replication.awaitInSync();
  await until(() => fake.get("products", Number(id))?.data.price === 10);
  assert.deepEqual(fake.get("products", 1).data, { name: "Tea", price: 4 });
  assert.equal(fake.get("products", 2), null);
  const wrote = fake.updates.map(({ record_id, operation, base_version }) => [record_id, operation, base_version]);
  assert.deepEqual(wrote.find(([of]) => of === 1), [1, "update", 1]);
  assert.deepEqual(wrote.find(([of]) => of === 2), [2, "delete", 2]);
  assert.equal(wrote.find(([of]) => of === Number(id))[1], "insert");
  assert.equal(fake.conflicts, 0, "a device is in no conflict with itself");
  await until(() => replication.internalReplicationState.events.active.down.getValue() === false);
  assert.deepEqual((await all(products))[id], { name: "Café", price: 10 });
  assert.deepEqual(errors, []);
});

test("a conflict comes to RxDB's handler with the cluster's state, and nothing is overwritten before it decides", async () => {
  const fake = await cluster();
  fake.commit("products", 1, { name: "Tea", price: 3 });
  fake.commit("products", 2, { name: "Milk", price: 1 });
  const seen = [];
  const conflictHandler = {
    isEqual: (a, b) => a.name === b.name && a.price === b.price && a._deleted === b._deleted,
    resolve: async ({ assumedMasterState, newDocumentState, realMasterState }) => {
      seen.push([assumedMasterState.price, newDocumentState.price, realMasterState.price]);
      return realMasterState.id === "1" ? { ...realMasterState, name: `${newDocumentState.name}!` } : realMasterState;
    },
  };
  const { products, replication } = await till(fake, { more: { conflictHandler } });
  await replication.awaitInitialReplication();
  fake.losesChange = () => true; // the till does not know yet
  fake.commit("products", 1, { name: "Tea", price: 5 });
  fake.commit("products", 2, { name: "Milk", price: 2 });
  fake.losesChange = () => false;
  await (await products.findOne("1").exec()).patch({ name: "Green tea" });
  await (await products.findOne("2").exec()).patch({ price: 9 });
  await until(() => fake.get("products", 1).data.name === "Green tea!");
  await until(async () => (await all(products))[2].price === 2);
  assert.deepEqual(fake.get("products", 1).data, { name: "Green tea!", price: 5 });
  assert.deepEqual(fake.get("products", 2).data, { name: "Milk", price: 2 });
  assert.deepEqual(seen.sort(), [[1, 9, 2], [3, 3, 5]]);
  assert.equal(fake.conflicts, 0);
});

test("somebody who is faster than a push that is under way", async () => {
  for (const policy of ["last_writer_wins", "manual"]) {
    const fake = await cluster();
    fake.policy = policy;
    fake.commit("products", 1, { name: "Tea", price: 3 });
    const { products, replication, tillsync } = await till(fake);
    await replication.awaitInitialReplication();
    fake.onRead = (table, id) => {
      fake.onRead = () => {};
      fake.commit(table, id, { name: "Tea", price: 5 });
    };
    await (await products.findOne("1").exec()).patch({ price: 4 });
    await replication.awaitInSync();
    const price = policy === "manual" ? 5 : 4;
    await until(async () => (await all(products))[1].price === price, policy);
    assert.equal(fake.get("products", 1).data.price, price);
    assert.deepEqual(await letters(tillsync), policy === "manual" ? [["conflict", 1, "2002"]] : []);
  }
});

test("two tills that drew one number: the cluster's record is here, the other one is a letter", async () => {
  const fake = await cluster();
  const { products, replication, tillsync } = await till(fake);
  await replication.awaitInitialReplication();
  fake.losesChange = () => true;
  fake.commit("products", 7, { name: "theirs" });
  fake.losesChange = () => false;
  await products.insert({ id: "7", name: "ours" });
  await until(async () => (await all(products))[7]?.name === "theirs");
  assert.deepEqual(await letters(tillsync), [["conflict", 7, "2002"]]);
});

test("what is refused is a letter and is taken back here, and what is behind it goes on", async () => {
  const fake = await cluster();
  fake.commit("products", 1, { name: "Tea" });
  fake.refuse = ({ new_data }) => new_data?.name === "bad" && "2004";
  const { products, replication, tillsync } = await till(fake);
  await replication.awaitInitialReplication();
  await products.bulkInsert([{ id: "2", name: "bad" }, { id: "3", name: "good" }]);
  await (await products.findOne("1").exec()).patch({ name: "bad" });
  await replication.awaitInSync();
  await until(async () => (await letters(tillsync)).length === 2);
  await until(async () => JSON.stringify(await all(products)) === '{"1":{"name":"Tea"},"3":{"name":"good"}}');
  assert.deepEqual(await letters(tillsync), [["refused", 2, "2004"], ["refused", 1, "2004"]]);
  const [letter] = await tillsync.client.letters().next().then(({ value }) => [value]);
  await tillsync.client.resend(letter.n, { name: "mended" });
  await until(async () => (await all(products))[2]?.name === "mended");
});

test("what could never be pushed fails at the call", async () => {
  const fake = await cluster();
  const { products, replication } = await till(fake);
  await replication.awaitInitialReplication();
  for (const id of ["x1", "01", "1.5", "9007199254740993"])
    await assert.rejects(products.insert({ id, name: "n" }), /record_id|within 2\^53/, id);
  const document = await products.insert({ id: newId(), name: "n" });
  await assert.rejects(document.patch({ price: 1, name: "x".repeat(300_000) }), /262144/);
  await replication.awaitInSync();
  assert.equal(fake.changes.length, 1);
});

test("what was written before the replication began and can never be pushed is said, stays here, and holds nothing up", async () => {
  const fake = await cluster();
  const before = (db) => db.products.bulkInsert([{ id: "x1", name: "no id" }, { id: "1", name: "good" }]);
  const { products, replication, errors } = await till(fake, { before });
  await replication.awaitInSync();
  assert.deepEqual(made(fake), [["insert", 1, { name: "good" }]]);
  assert.deepEqual(errors.map(({ field }) => field), ["record_id"]);
  assert.deepEqual(Object.keys(await all(products)).sort(), ["1", "x1"]);
});

test("a push whose answer gets lost is made once", async () => {
  const fake = await cluster();
  const { products, replication } = await till(fake);
  await replication.awaitInitialReplication();
  let lost = 0;
  fake.losesAnswer = () => ++lost === 1;
  await products.insert({ id: "1", name: "Café" });
  await until(() => lost === 1);
  await replication.awaitInSync();
  assert.deepEqual(made(fake), [["insert", 1, { name: "Café" }]]);
});

for (const how of ["ends", "is killed"])
  test(`a till that ${how} between the commit and RxDB's note of it pushes nothing twice`, async () => {
    const fake = await cluster();
    const first = await till(fake);
    await first.replication.awaitInitialReplication();
    let seen;
    const committed = new Promise((resolve) => (seen = resolve));
    fake.losesAnswer = ({ n }) => n === 3 && (seen(), true);
    await first.products.bulkInsert([{ id: "1", name: "one" }, { id: "2", name: "two" }, { id: "3", name: "three" }]);
    await committed;
    await (await first.products.findOne("2").exec()).patch({ price: 5 }); // behind what is on its way
    await (await first.products.findOne("3").exec()).remove();
    first.disk.close = async () => {}; // the same one is used again
    await (how === "ends" ? first.close() : kill(first));
    fake.losesAnswer = () => false;
    fake.commit("products", 1, { name: "one", price: 1 }); // somebody went on from it
    const second = await till(fake, { storage: first.storage, name: first.name, disk: first.disk });
    await second.replication.awaitInSync();
    await until(async () => JSON.stringify(await all(second.products)) === '{"1":{"name":"one","price":1},"2":{"name":"two","price":5}}');
    assert.deepEqual(fake.get("products", 2).data, { name: "two", price: 5 });
    assert.equal(fake.get("products", 3), null);
    assert.deepEqual(made(fake).filter(([, id]) => id === 1).map(([operation]) => operation), ["insert", "update"]);
    assert.deepEqual(made(fake).filter(([, id]) => id > 1).map(([operation, id]) => `${operation} ${id}`).sort(), ["delete 3", "insert 2", "insert 3", "update 2"]);
    assert.deepEqual(await letters(second.tillsync), []);
  });

test("sales that were made offline go out when the cluster is there, once and in order", async () => {
  const fake = await cluster();
  const port = new URL(fake.url).port;
  await fake.close();
  const { products, replication, errors } = await till(fake);
  for (let i = 1; i <= 30; i++) await products.insert({ id: newId(), name: "sale", i });
  const lost = new Set();
  const losesAnswer = ({ n }) => n % 10 === 5 && lost.size < 2 && !lost.has(n) && lost.add(n);
  const again = Object.assign(new FakeCluster(), { losesAnswer });
  await again.listen(Number(port));
  open.push(() => again.close());
  await replication.awaitInSync();
  assert.deepEqual(made(again).map(([, , { i }]) => i), Array.from({ length: 30 }, (_, i) => i + 1));
  assert.deepEqual(errors, [], "being offline is no error");
});

test("a change that is missing is fetched", async () => {
  const fake = await cluster();
  const { products, replication } = await till(fake);
  await replication.awaitInitialReplication();
  fake.commit("products", 1, { name: "one" });
  await until(async () => (await all(products))[1]);
  fake.losesChange = ({ record_id }) => record_id === 2;
  fake.commit("products", 2, { name: "two" });
  fake.commit("products", 3, { name: "three" });
  await until(async () => Object.keys(await all(products)).length === 3);
});

test("a change that is told while a pull is on its way is fetched by another one", async () => {
  const fake = await cluster();
  fake.commit("products", 1, { name: "one" });
  const { products, replication, tillsync } = await till(fake);
  await replication.awaitInitialReplication();
  fake.cut();
  await until(() => !tillsync.client.status.online);
  let last = 1;
  fake.onPull = () => last < 9 && fake.commit("products", ++last, { name: `p${last}` });
  await until(async () => (await all(products))[9]);
  assert.equal(Object.keys(await all(products)).length, 9);
});

test("what is missed without a session is fetched, though RxDB has not taken in yet what it heard before", async () => {
  const fake = await cluster();
  const { products, replication } = await till(fake);
  await replication.awaitInitialReplication();
  fake.losesAnswer = () => {
    fake.losesAnswer = () => false;
    for (let id = 1; id <= 5; id++) fake.commit("products", id, { name: "told" });
    setTimeout(() => fake.commit("products", 6, { name: "missed" }), 50);
    return true;
  };
  await products.insert({ id: "7", name: "Tea" });
  await until(async () => Object.keys(await all(products)).length === 7, "all seven", 5_000);
});

test("what is told or pulled while a push of an older state is under way is not forgotten", async () => {
  const fake = await cluster();
  fake.commit("products", 1, { name: "Tea", price: 1 });
  const first = await till(fake);
  await first.replication.awaitInitialReplication();
  const committed = new Promise((resolve) => (fake.losesAnswer = () => (resolve(), true)));
  await (await first.products.findOne("1").exec()).patch({ price: 2 });
  await committed;
  first.disk.close = async () => {}; // the same one is used again
  await kill(first);
  fake.losesAnswer = () => false;
  // Before RxDB has read what it would push nothing is pulled; before it knows what it read, all is.
  fake.fails = ({ pathname }) => pathname === "/sync/changes";
  fake.onRead = async () => {
    fake.onRead = () => {};
    fake.commit("products", 1, { name: "Tea", price: 3 });
    fake.fails = () => false;
    await new Promise((pulled) => (fake.onPull = pulled));
    await new Promise((heard) => setTimeout(heard, 100));
  };
  const { products, replication } = await till(fake, { storage: first.storage, name: first.name, disk: first.disk });
  await replication.awaitInSync();
  await until(async () => (await all(products))[1].price === 3, "what somebody wrote after it", 5_000);
  assert.equal(fake.get("products", 1).data.price, 3);
});

test("what is missed without a session is fetched when there is one again", async () => {
  const fake = await cluster();
  const { products, replication } = await till(fake);
  await replication.awaitInitialReplication();
  fake.cut();
  await until(() => fake.io.sockets.sockets.size === 0);
  for (let id = 1; id <= 10; id++) fake.commit("products", id, { name: `p${id}` });
  await until(async () => Object.keys(await all(products)).length === 10);
});

for (const what of ["a history that is gone", "another history"])
  test(`${what}: all comes again, what was deleted goes, what was not pushed stays`, async () => {
    const fake = await cluster();
    for (let id = 1; id <= 9; id++) fake.commit("products", id, { name: `p${id}` });
    const { products, replication, tillsync } = await till(fake);
    await replication.awaitInitialReplication();
    fake.cut();
    await until(() => !tillsync.client.status.online);
    await products.insert({ id: "100", name: "ours" });
    fake.commit("products", 10, { name: "p10" });
    for (const id of [1, 2, 3, 4, 5]) fake.commit("products", id, null);
    if (what === "another history") {
      Object.assign(fake, { epoch: "f", seq: 3, changes: [] });
      for (const [at, record] of [...fake.tables.get("products").values()].entries()) record.version = (at % 3) + 1;
    } else fake.compact();
    await until(async () => Object.keys(await all(products)).join() === "6,7,8,9,10,100");
    await until(() => fake.get("products", 100));
    fake.commit("products", 6, { name: "live" });
    await until(async () => (await all(products))[6].name === "live");
  });

test("access that is taken away takes the documents, and brings them back when it is given again", async () => {
  const fake = await cluster();
  for (let id = 1; id <= 9; id++) fake.commit("products", id, { name: `p${id}` });
  fake.commit("sales", 1, { name: "s" });
  const { products, replications, db, tillsync } = await till(fake, { tables: ["products", "sales"] });
  for (const replication of replications) await replication.awaitInitialReplication();
  fake.allow({ products: "none" });
  await until(async () => Object.keys(await all(products)).length === 0);
  assert.deepEqual(Object.keys(await all(db.sales)), ["1"]);
  const gone = await products.storageInstance.findDocumentsById(["1", "9"], true);
  assert.deepEqual(gone.map(({ name }) => name), ["", ""], "nothing of them is left");
  fake.commit("products", 10, { name: "p10" });
  await products.insert({ id: "11", name: "may not" });
  await until(async () => (await letters(tillsync)).length === 1 && Object.keys(await all(products)).length === 0);
  assert.deepEqual(await letters(tillsync), [["refused", 11, "3003"]]);
  assert.equal(fake.get("products", 1).data.name, "p1", "no delete was pushed");
  fake.allow({ products: "read" });
  await until(async () => Object.keys(await all(products)).length === 10);
});

test("access that was taken away while the till was off", async () => {
  const fake = await cluster();
  for (let id = 1; id <= 9; id++) fake.commit("products", id, { name: `p${id}` });
  const first = await till(fake);
  await first.replication.awaitInitialReplication();
  await first.close();
  fake.rights = { "*": "none" };
  const second = await till(fake, { storage: first.storage, name: first.name });
  await until(async () => Object.keys(await all(second.products)).length === 0);
  await second.close();
  Object.assign(fake, { rights: null, granted: fake.seq });
  const third = await till(fake, { storage: first.storage, name: first.name });
  await until(async () => Object.keys(await all(third.products)).length === 9);
});

test("a program that goes on from its checkpoint fetches only what is new", async () => {
  const fake = await cluster();
  for (let id = 1; id <= 9; id++) fake.commit("products", id, { name: `p${id}` });
  const first = await till(fake);
  await first.replication.awaitInitialReplication();
  fake.commit("products", 10, { name: "p10" });
  await until(async () => (await all(first.products))[10]);
  await first.close();
  fake.commit("products", 1, null);
  fake.io.on("connection", (socket) => socket.on("sync_request", () => assert.fail("a full sync")));
  const second = await till(fake, { storage: first.storage, name: first.name });
  await second.replication.awaitInitialReplication();
  assert.equal(Object.keys(await all(second.products)).length, 9);
});

test("a node that fails for a while is asked again", async () => {
  const fake = await cluster();
  fake.commit("products", 1, { name: "one" });
  const { products, replication, errors } = await till(fake);
  await replication.awaitInitialReplication();
  let left = 3;
  fake.fails = () => left-- > 0;
  await (await products.findOne("1").exec()).patch({ price: 1 });
  await replication.awaitInSync();
  assert.equal(fake.get("products", 1).data.price, 1);
  assert.deepEqual(errors, []);
});

test("a collection that only follows, and one that runs once", async () => {
  const fake = await cluster();
  fake.commit("products", 1, { name: "one" });
  const follows = await till(fake, { replicate: { push: false } });
  await follows.replication.awaitInitialReplication();
  await follows.products.insert({ id: "x", name: "stays here" });
  await follows.close();
  assert.deepEqual(fake.updates, []);
  const once = await till(fake, { replicate: { live: false } });
  await until(() => once.replication.isStopped());
  assert.deepEqual(await all(once.products), { 1: { name: "one" } });
});

test("every field that a schema needs has a value in a deleted document", async () => {
  const { Records } = await import("../dist/records.js");
  const properties = { ...schema.properties, n: { type: "integer", minimum: 2 }, e: { type: "string", enum: ["a", "b"] }, b: { type: "boolean" }, l: { type: "array" }, o: { type: "object" } };
  const records = new Records("id", { ...schema, properties, required: Object.keys(properties) });
  assert.deepEqual(records.documentOf(5, null), { id: "5", name: "", price: 0, i: 0, n: 2, e: "a", b: false, l: [], o: {}, _deleted: true });
});
