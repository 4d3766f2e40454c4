// What the JavaScript class of docs/clients.md must survive: TOKEN=… check.mjs PYTHON URL FOLDER CERT KEY. Stands beside client.mjs.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomInt, randomUUID } from "node:crypto";
import { once } from "node:events";
import { cpSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { Client, until } from "./client.mjs";

const TOKEN = process.env.TOKEN;
const short = () => randomUUID().slice(0, 8);
const open = [];

function start(url, device, folder, options = {}) {
  const client = new Client(url, options.token ?? TOKEN, device ?? `js-${short()}`, { folder, ...options });
  open.push(client);
  return client;
}

// Nothing of a client goes on after this; its files can be opened by another one.
function stop(client) {
  clearTimeout(client.timer);
  client.socket.disconnect();
}

async function feed(url, table) {
  const changes = [];
  for (let cursor = ""; ; ) {
    const headers = { Authorization: `Bearer ${TOKEN}` };
    const answer = await (await fetch(`${url}/sync/changes?limit=1000&tables=${table}${cursor}`, { headers })).json();
    changes.push(...answer.changes);
    if (!answer.has_more) return changes;
    cursor = `&cursor=${answer.cursor}`;
  }
}

// Runs `body` with the port of a proxy.
async function proxied(python, args, body) {
  const child = spawn(python, [fileURLToPath(new URL("../docs/proxy.py", import.meta.url)), ...args], { stdio: ["ignore", "pipe", "inherit"] });
  try {
    const [line] = await once(createInterface({ input: child.stdout }), "line");
    await body(Number(line));
  } finally {
    child.kill("SIGKILL");
  }
}

// What goes to standard error until it says `text`.
async function said(text, body) {
  const write = console.error;
  let all = "";
  console.error = (line) => (all += line);
  try {
    await body();
    await until(() => all.includes(text), `saying "${text}" in ${all}`);
  } finally {
    console.error = write;
  }
}

const checks = {
  // 3,000 sales made offline are there once each, in order.
  async longQueue(url, folder) {
    const [client, table] = [start(url, null, folder), `js_${short()}`];
    client.socket.disconnect();
    for (let i = 0; i < 3000; i++) client.push(table, i, { i }, { operation: "insert" });
    client.socket.connect();
    await until(() => client.queue.size === 0, "all 3,000 acknowledged", 60_000);
    assert.deepEqual((await feed(url, table)).map((c) => c.data.i), Array.from({ length: 3000 }, (_, i) => i));
  },

  // What push() returned for survives SIGKILL of the client, and is applied once.
  async killed(url, folder) {
    const [device, table, pushed] = [`js-${short()}`, `js_${short()}`, []];
    for (let turn = 0, begin = 0; turn < 4; turn++) {
      const args = [fileURLToPath(import.meta.url), "worker", url, folder, device, table, String(begin)];
      const worker = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "ignore"] });
      const closed = once(worker, "close");
      const enough = pushed.length + randomInt(50, 150);
      for await (const line of createInterface({ input: worker.stdout })) {
        if (pushed.push(Number(line)) === enough) worker.kill("SIGKILL");
      }
      await closed;
      begin = pushed.at(-1) + 2; // the last one that was pushed may not have been printed
    }
    const client = start(url, device, folder);
    await until(() => client.cursor && client.queue.size === 0, "all acknowledged after the kills");
    const there = (await feed(url, table)).map((c) => c.data.i);
    assert.deepEqual(there, Array.from(new Set(there)).sort((a, b) => a - b), "twice, or out of order");
    assert.deepEqual(pushed.filter((i) => !there.includes(i)), [], "lost");
    assert.equal(client.dead.size, 0);
  },

  // The files as they were before the answers: what had been applied is not applied again. A copy that went on loses nothing.
  async setBack(url, folder) {
    const [client, table] = [start(url, null, folder), `js_${short()}`];
    client.socket.disconnect();
    for (let i = 0; i < 1500; i++) client.push(table, i, { i });
    cpSync(`${folder}/${client.device}`, `${folder}/copy/${client.device}`, { recursive: true });
    for (let i = 1500; i < 1510; i++) client.push(table, i, { i });
    client.socket.connect();
    await until(() => client.queue.size === 0, "all acknowledged", 60_000);
    stop(client);
    const copy = start(url, client.device, `${folder}/copy`);
    for (let i = 2000; i < 2010; i++) copy.push(table, i, { i }); // under numbers that the other one has used
    await until(() => copy.queue.size === 0, "the copy's acknowledged", 60_000);
    const wanted = Array.from({ length: 1510 }, (_, i) => i).concat(Array.from({ length: 10 }, (_, i) => 2000 + i));
    assert.deepEqual((await feed(url, table)).map((c) => c.data.i), wanted);
    assert.equal(copy.dead.size, 0);
  },

  // An answer got lost, those to the updates behind it did not: it is sent again, and the queue goes on.
  async behind(url, folder) {
    const [client, table] = [start(url, null, folder), `js_${short()}`];
    for (let i = 0; i < 3; i++) client.push(table, i, { i });
    const [n, update] = client.queue.entries().next().value;
    await until(() => client.queue.size === 0, "all acknowledged");
    stop(client);
    const again = start(url, client.device, folder);
    again.queue.set(n, update);
    for (let i = 3; i < 6; i++) again.push(table, i, { i });
    await until(() => again.queue.size === 0, "all acknowledged again");
    assert.deepEqual((await feed(url, table)).map((c) => c.data.i), [0, 1, 2, 3, 4, 5]);
    assert.equal(again.dead.size, 0);
  },

  // Updates that are refused for good, here or by the node, are shown; the others go on.
  async poisoned(url, folder) {
    const [client, table, bad] = [start(url, null, folder), `js_${short()}`, []];
    for (let i = 0; i < 120; i++) {
      if (i % 30 === 10) bad.push([client.push("no\ttable", i, { i }), "table_name"]);
      else if (i % 30 === 20) bad.push([client.push(table, i, { photo: "x".repeat(i < 60 ? 1_200_000 : 5_000_000) }), "new_data"]);
      else client.push(table, i, { i });
    }
    bad.push([client.push(table, 1000, { deep: deep(40) }), undefined]); // nested too deep: only the node says so
    client.push(table, 1001, { i: 1001 });
    await until(() => client.queue.size === 0, "the others acknowledged");
    assert.deepEqual(Array.from(client.dead, ([n, { error }]) => [n, error.field]).sort(([a], [b]) => a - b), bad);
    const wanted = Array.from({ length: 120 }, (_, i) => i).filter((i) => ![10, 20].includes(i % 30));
    assert.deepEqual((await feed(url, table)).map((c) => c.data.i), [...wanted, 1001]);
    stop(client);
    const again = start(url, client.device, folder);
    assert.deepEqual(Array.from(again.dead.keys()), Array.from(client.dead.keys()), "dead letters are on the disk");
  },

  // A change that was not told is noticed: the client resumes from its cursor, and has it.
  async gap(url, folder, python) {
    await proxied(python, ["gap", url], async (port) => {
      const [client, other, table] = [start(`http://127.0.0.1:${port}`, null, folder), start(url, null, folder), `js_${short()}`];
      await until(() => client.cursor && other.cursor, "online");
      ["one", "swallow", "three"].forEach((name, i) => other.push(table, i, { name }));
      await until(() => client.records.has(`${table}/2`), "resumed");
      assert.equal(client.records.get(`${table}/1`).data.name, "swallow");
      stop(client);
    });
  },

  // A cursor of another history is answered with a full sync; the old copy stays until the new one is whole.
  async otherHistory(url, folder) {
    const [first, table] = [start(url, null, folder), `js_${short()}`];
    first.push(table, 1, { i: 1 });
    await until(() => first.cursor && first.records.has(`${table}/1`), "heard");
    stop(first);
    first.records.set("gone/1", { table: "gone", record: 1, version: 1, data: {} });
    first.cursor = "1.1";
    first.writeStore();
    const again = start(url, first.device, folder);
    assert.ok(again.records.has("gone/1") && again.cursor === "1.1");
    await until(() => again.synced, "synced");
    assert.deepEqual(again.records.get(`${table}/1`).data, { i: 1 });
    assert.ok(!again.records.has("gone/1"));
    assert.notEqual(again.cursor.split(".")[0], "1");
  },

  // A token that is refused is said, and a new one is asked for; the device is the token's.
  async token(url, folder) {
    const asked = [];
    const newToken = (error) => asked.push(error.error_code) && TOKEN;
    let client;
    await said("the token is refused: 3001", async () => {
      client = start(url, null, folder, { token: TOKEN.slice(0, -4) + "AAAA", newToken });
    });
    await until(() => client.cursor, "online with the new token");
    assert.deepEqual(asked, ["3001"]);
    const own = new Client(url, TOKEN, undefined, { folder });
    stop(own);
    assert.equal(own.device, "admin");
  },

  // A node that does not answer is passed over.
  async otherNode(url, folder) {
    const client = start(["http://127.0.0.1:1", url], null, folder);
    await until(() => client.cursor, "online at the other node");
  },

  // https and wss with a certificate of a private CA; without the CA it is refused.
  async privateCa(url, folder, python, cert, key) {
    await proxied(python, ["tls", url, cert, key], async (port) => {
      const client = start(`https://localhost:${port}`, null, folder, { ca: cert });
      await until(() => client.cursor, "online over TLS");
      stop(client);
      await said("not connected", async () => {
        const stranger = start(`https://localhost:${port}`, null, folder);
        await once(stranger.socket, "connect_error").then(() => stop(stranger));
        assert.equal(stranger.cursor, null);
      });
    });
  },
};

function deep(levels) {
  return levels ? { in: deep(levels - 1) } : {};
}

async function worker(url, folder, device, table, begin) {
  const client = start(url, device, folder);
  for (let i = Number(begin); ; i++) {
    client.push(table, i, { i });
    process.stdout.write(`${i}\n`);
    if (i % 5 === 0) await new Promise((go) => setImmediate(go));
  }
}

if (process.argv[2] === "worker") await worker(...process.argv.slice(3));
const [python, url, folder, cert, key] = process.argv.slice(2);
for (const [name, check] of Object.entries(checks)) {
  await check(url, folder, python, cert, key);
  open.splice(0).forEach(stop);
  console.log(`JavaScript, ${name}: ok`);
}
process.exit(0);
