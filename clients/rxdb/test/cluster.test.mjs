// The plugin against a real cluster, whose nodes are killed. TILLSYNC_URL, TILLSYNC_TOKEN (an admin's) and TILLSYNC_DATA
// (of `tillsync dev`) name one.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { FileDisk } from "@tillsync/client/node";
import { newId, Tillsync } from "@tillsync/rxdb";
import { all, kill, shop, until } from "./helpers.mjs";

const { TILLSYNC_URL: url, TILLSYNC_TOKEN: token, TILLSYNC_DATA: data } = process.env;
const skip = url === undefined && "no cluster";
const urls = skip ? [] : [0, 1, 2].map((i) => url.replace(/\d+$/, (port) => Number(port) + i));
const WAIT = 60_000;
const name = () => `rx_${Math.random().toString(36).slice(2, 10)}`;
const folder = () => mkdtempSync(join(tmpdir(), "tillsync-"));
const same = (a, b) => JSON.stringify(Object.entries(a).sort()) === JSON.stringify(Object.entries(b).sort());

async function rest(method, path, body, node = url, bearer = token) {
  for (const end = Date.now() + WAIT; ; await sleep(100)) {
    const headers = { authorization: `Bearer ${bearer}`, "content-type": "application/json" };
    const answer = await fetch(node + path, { method, headers, body: body && JSON.stringify(body) }).catch(() => null);
    if (answer?.ok) return answer.json().catch(() => null);
    assert.ok((answer === null || answer.status >= 500) && Date.now() < end, `${path}: ${await answer?.text()}`);
  }
}

async function feed(table, node) {
  const changes = [];
  for (let cursor = ""; ; ) {
    const page = await rest("GET", `/sync/changes?limit=1000&tables=${table}${cursor}`, undefined, node);
    changes.push(...page.changes);
    if (!page.has_more) return changes;
    cursor = `&cursor=${page.cursor}`;
  }
}

async function recordsOf(table) {
  const records = {};
  for (const { record_id, operation, data } of await feed(table))
    if (operation === "delete") delete records[record_id];
    else records[record_id] = data;
  return records;
}

async function till(device, table, { storage, place = folder(), name: of, own = token, more } = {}) {
  const made = await shop([table], storage, of, more);
  const errors = [];
  const tillsync = await Tillsync.open({ url: urls, token: own, device, disk: new FileDisk(place) });
  const replication = tillsync.replicate({ collection: made.db[table] });
  replication.error$.subscribe((error) => errors.push(error));
  const close = async () => {
    await tillsync.close();
    await made.db.close();
  };
  return { ...made, place, tillsync, replication, records: made.db[table], errors, close };
}

const letters = async (tillsync) => {
  const found = [];
  for await (const letter of tillsync.client.letters()) found.push(letter);
  return found;
};

const pidOf = (node) => {
  try {
    return Number(readFileSync(join(data, `node-${node + 1}`, "pid"), "utf8"));
  } catch {
    return 0;
  }
};

test("two tills: what one writes the other one has; deletes, too", { skip }, async () => {
  const table = name();
  const [a, b] = [await till(`${table}_a`, table), await till(`${table}_b`, table)];
  for (const { replication } of [a, b]) await replication.awaitInitialReplication();
  const ids = Array.from({ length: 300 }, newId);
  await a.records.bulkInsert(ids.map((id, i) => ({ id, name: "n", i })));
  await until(async () => Object.keys(await all(b.records)).length === 300, "all are there", WAIT);
  await (await b.records.findOne(ids[0]).exec()).remove();
  await (await b.records.findOne(ids[1]).exec()).patch({ price: 5 });
  await until(async () => !(await all(a.records))[ids[0]] && (await all(a.records))[ids[1]].price === 5, "b's changes", WAIT);
  assert.ok(same(await all(a.records), await recordsOf(table)));
  const inserts = (await feed(table)).filter(({ operation }) => operation === "insert");
  assert.deepEqual(inserts.map(({ data: { i } }) => i), Array.from({ length: 300 }, (_, i) => i), "in the order of writing, once");
  assert.deepEqual([...a.errors, ...b.errors], []);
  await Promise.all([a.close(), b.close()]);
});

test("a conflict: the handler merges, and both tills have what came of it", { skip }, async () => {
  const table = name();
  const conflictHandler = {
    isEqual: (a, b) => JSON.stringify([a.name, a.price, a._deleted]) === JSON.stringify([b.name, b.price, b._deleted]),
    resolve: async ({ newDocumentState: mine, realMasterState: theirs }) => ({ ...theirs, name: `${theirs.name}+${mine.name}` }),
  };
  const a = await till(`${table}_a`, table, { more: { conflictHandler } });
  const id = newId();
  await a.records.insert({ id, name: "Tea", price: 3 });
  await a.replication.awaitInSync();
  await a.tillsync.close(); // RxDB stays, as on a till that is off the network
  await (await a.records.findOne(id).exec()).patch({ name: "Green" });
  await rest("POST", `/data/${table}/${id}`, { device_id: "b", operation: "update", new_data: { name: "Black", price: 4 } }).catch(async () => {
    await rest("POST", "/device/register", { device_id: "b" });
    await rest("POST", `/data/${table}/${id}`, { device_id: "b", operation: "update", new_data: { name: "Black", price: 4 } });
  });
  const again = await Tillsync.open({ url: urls, token, device: `${table}_a`, disk: new FileDisk(a.place) });
  const replication = again.replicate({ collection: a.records });
  await replication.awaitInSync();
  await until(async () => (await recordsOf(table))[id].name === "Black+Green", "merged", WAIT);
  assert.deepEqual((await all(a.records))[id], { name: "Black+Green", price: 4 });
  await again.close();
  await a.db.close();
});

test("two that drew one number, and what is refused", { skip }, async () => {
  const table = name();
  const a = await till(`${table}_a`, table);
  await a.replication.awaitInitialReplication();
  await a.tillsync.close();
  const [id, other] = [newId(), newId()];
  await a.records.bulkInsert([{ id, name: "ours" }, { id: other, name: "good" }]);
  await rest("POST", "/device/register", { device_id: "b" });
  await rest("POST", `/data/${table}/${id}`, { device_id: "b", operation: "insert", new_data: { name: "theirs" } });
  const again = await Tillsync.open({ url: urls, token, device: `${table}_a`, disk: new FileDisk(a.place) });
  const replication = again.replicate({ collection: a.records });
  await replication.awaitInSync();
  await until(async () => (await all(a.records))[id].name === "theirs", "the cluster's", WAIT);
  const [letter] = await letters(again);
  assert.deepEqual([letter.state, letter.update.new_data], ["conflict", { name: "ours" }]);
  await rest("POST", `/sync/conflicts/${letter.error.conflict_id}/resolve`, { resolution: { name: "ours" }, new_record_id: 12345, version: letter.error.version }).catch(() => {});
  assert.equal((await recordsOf(table))[other].name, "good");
  await again.close();
  await a.db.close();
});

test("access that is taken away and given again, with a token that was got by pairing", { skip }, async () => {
  const [table, device, right] = [name(), name(), (is) => rest("PUT", "/access/inventory_assistant", { tables: { [table]: is } })];
  const { code, secret } = await rest("POST", "/device/pair", { device_id: device, name: "a shelf" });
  await rest("POST", `/device/pairings/${code}/approve`, { class: "inventory_assistant" });
  const { token: own } = await rest("GET", `/device/pair/${code}`, undefined, url, secret);
  const boss = await till(`${device}_boss`, table);
  await boss.records.bulkInsert(Array.from({ length: 150 }, (_, i) => ({ id: newId(), name: "n", i })));
  await boss.replication.awaitInSync();
  let shelf = await till(device, table, { own });
  await shelf.replication.awaitInitialReplication();
  assert.equal(Object.keys(await all(shelf.records)).length, 150);
  try {
    await right("none");
    await until(async () => Object.keys(await all(shelf.records)).length === 0, "all is gone", WAIT);
    await shelf.records.insert({ id: newId(), name: "may not" });
    await until(async () => (await letters(shelf.tillsync)).length === 1, "it is a letter", WAIT);
    await until(async () => Object.keys(await all(shelf.records)).length === 0, "it is taken back", WAIT);
    const place = shelf.place;
    await shelf.close();
    await boss.records.insert({ id: newId(), name: "meanwhile" });
    await boss.replication.awaitInSync();
    await right("read");
    shelf = await till(device, table, { ...shelf, place, own });
    await until(async () => same(await all(shelf.records), await recordsOf(table)), "all is there", WAIT);
    assert.equal((await letters(shelf.tillsync))[0].error.error_code, "3003");
    const written = await feed(table);
    assert.equal(written.length, 151, "nothing was deleted, nothing was written without the right");
    await right("none");
    await until(async () => Object.keys(await all(shelf.records)).length === 0, "all is gone again", WAIT);
    await right("write");
    await until(async () => Object.keys(await all(shelf.records)).length === 151, "all is there again", WAIT);
  } finally {
    await right("write");
    await Promise.all([shelf.close(), boss.close()]);
  }
});

test("nodes and the program are killed: nothing is lost or doubled, and both sides are equal", { skip }, async () => {
  const [table, device] = [name(), name()];
  const end = Date.now() + 1000 * Number(process.env.TILLSYNC_SOAK ?? 10);
  let [kills, runs, stop, i] = [0, 0, false, 0];
  const killing = (async () => {
    while (!stop) {
      await sleep(2000);
      const node = kills % 3;
      const pid = pidOf(node);
      process.kill(pid, "SIGKILL");
      await until(() => ![pid, 0].includes(pidOf(node)), "the node is started again", WAIT);
      for (const each of urls) await rest("GET", "/readyz", undefined, each);
      kills++;
    }
  })();
  const wanted = {};
  const follower = await till(`${device}_f`, table);
  let seller = {};
  while (Date.now() < end || kills < 2) {
    seller = await till(device, table, seller);
    for (const until = Date.now() + 500 + Math.random() * 1500; Date.now() < until; ) {
      const id = newId();
      await seller.records.insert({ id, name: "sale", i: i++ });
      wanted[id] = { name: "sale", i: i - 1 };
      const [some] = Object.keys(wanted).slice(Math.floor(Math.random() * Object.keys(wanted).length));
      const change = { price: Math.floor(Math.random() * 100) };
      if (Math.random() < 0.1) {
        await (await seller.records.findOne(some).exec()).remove();
        delete wanted[some];
      } else if (Math.random() < 0.3) {
        await (await seller.records.findOne(some).exec()).patch(change);
        Object.assign(wanted[some], change);
      }
      await sleep(10);
    }
    await (runs++ % 3 === 0 ? seller.close() : kill(seller)); // wherever it is
  }
  stop = true;
  await killing;
  seller = await till(device, table, seller);
  await seller.replication.awaitInSync();
  assert.deepEqual(await letters(seller.tillsync), []);
  const there = await recordsOf(table);
  assert.deepEqual(there, wanted, "the cluster has what was sold");
  await until(async () => same(await all(follower.records), wanted), "the other till has it", WAIT);
  assert.ok(same(await all(seller.records), wanted));
  const inserts = (await feed(table)).filter(({ operation }) => operation === "insert").map(({ record_id }) => record_id);
  assert.equal(new Set(inserts).size, inserts.length, "twice");
  await Promise.all([seller.close(), follower.close()]);
  console.log(`${i} sales, ${runs} runs and ${kills} nodes killed`);
});

test("the README as written", { skip }, async () => {
  const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");
  const [, program] = /```javascript\n(.*?)```/s.exec(readme);
  const filled = program.replace("http://127.0.0.1:5000", url).replace('"TOKEN"', JSON.stringify(token)).replace("till-data", folder());
  const script = `${filled}\nconsole.log("sale", sale.id);`; // and it ends by itself
  const cwd = process.env.INSTALLED ?? new URL("..", import.meta.url);
  const said = execFileSync(process.execPath, ["--input-type=module", "-e", script], { cwd, encoding: "utf8" });
  const [, sale] = /sale (\d+)/.exec(said);
  assert.deepEqual((await rest("GET", `/data/sales/${sale}`)).data, { item: "Café", price: 9.5 });
});
