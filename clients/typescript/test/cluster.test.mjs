// The library against a real cluster, whose nodes are killed, and programs that are killed. TILLSYNC_URL, TILLSYNC_TOKEN (an
// admin's) and TILLSYNC_DATA (of `tillsync dev`) name one.
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import "fake-indexeddb/auto";
import { Client } from "@tillsync/client";
import { IdbDisk } from "@tillsync/client/browser";
import { FileDisk } from "@tillsync/client/node";

const { TILLSYNC_URL: url, TILLSYNC_TOKEN: token, TILLSYNC_DATA: data } = process.env;
const skip = url === undefined && "no cluster";
const urls = skip ? [] : [0, 1, 2].map((i) => url.replace(/\d+$/, (port) => Number(port) + i));
const WAIT = 60_000;
const name = () => `js_${Math.random().toString(36).slice(2, 10)}`;
const folder = () => mkdtempSync(join(tmpdir(), "tillsync-"));
const numberOf = (cursor) => Number(cursor?.split(".")[1] ?? 0);
const till = (device, disk, more = {}) => Client.open({ url: urls, token, device, disk, ...more });
const offline = (device, disk) => till(device, disk, { url: "http://127.0.0.1:1" });

async function rest(method, path, body, node = url) {
  for (const end = Date.now() + WAIT; ; await sleep(100)) {
    const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
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

function replay(changes) {
  const records = {};
  for (const { record_id, operation, seq, data } of changes)
    if (operation === "delete") delete records[record_id];
    else records[record_id] = [seq, data];
  return records;
}

async function copyOf(client, table) {
  const records = {};
  for await (const { id, version, data } of client.records(table)) records[id] = [version, data];
  return records;
}

async function isInStep(client, table) {
  const changes = await feed(table);
  assert.ok(await client.until(({ cursor }) => numberOf(cursor) >= changes.at(-1).seq, WAIT));
  assert.deepEqual(await copyOf(client, table), replay(changes));
  return changes.map(({ data }) => data.i);
}

const pidOf = (node) => {
  try {
    return Number(readFileSync(join(data, `node-${node + 1}`, "pid"), "utf8"));
  } catch {
    return 0;
  }
};

for (const [kind, disk] of Object.entries({ file: async () => new FileDisk(folder()), indexeddb: () => IdbDisk.open(name()) }))
  test(`3,000 sales made offline are there once, in order: ${kind}`, { skip }, async () => {
    const table = name();
    const client = await till(table, await disk());
    await client.pushMany(Array.from({ length: 3000 }, (_, i) => ({ table, data: { i } })));
    assert.ok(await client.flush(WAIT));
    assert.deepEqual(await isInStep(client, table), Array.from({ length: 3000 }, (_, i) => i));
    await client.close();
  });

test("programs and nodes that are killed lose and double nothing", { skip }, async () => {
  const [table, place] = [name(), folder()];
  const end = Date.now() + 1000 * Number(process.env.TILLSYNC_SOAK ?? 10);
  const pushed = [];
  let [begin, runs, kills, stop] = [0, 0, 0, false];
  const killing = (async () => {
    while (!stop) {
      await sleep(2000);
      const node = kills % 3;
      const pid = pidOf(node);
      process.kill(pid, "SIGKILL");
      while (pidOf(node) === pid) await sleep(100);
      for (const each of urls) await rest("GET", "/readyz", undefined, each);
      kills++;
    }
  })();
  while (Date.now() < end || kills < 2) {
    const args = [new URL("worker.mjs", import.meta.url).pathname, urls.join(" "), table, place, table, String(begin)];
    const worker = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
    let left = 1 + Math.floor(Math.random() * 300);
    for await (const line of createInterface(worker.stdout)) {
      pushed.push(Number(line));
      if (--left === 0) worker.kill("SIGKILL");
    }
    assert.ok(left <= 0, "it ended by itself");
    runs++;
    begin = pushed.at(-1) + 2; // the last one may be on the disk, and was not said
  }
  stop = true;
  await killing;
  const client = await till(table, new FileDisk(place));
  assert.ok(await client.flush(WAIT));
  assert.equal(client.status.letters, 0);
  const there = await isInStep(client, table);
  assert.deepEqual(there, [...new Set(there)].sort((a, b) => a - b), "twice, or out of order");
  assert.deepEqual(pushed.filter((i) => !new Set(there).has(i)), [], "lost");
  for (const node of urls) assert.equal((await feed(table, node)).length, there.length);
  await client.close();
  console.log(`${there.length} sales, ${runs} programs and ${kills} nodes killed`);
});

test("a queue that was set back or copied", { skip }, async () => {
  const [table, place] = [name(), folder()];
  const many = (from, to) => Array.from({ length: to - from }, (_, i) => ({ table, data: { i: from + i } }));
  const first = await offline(table, new FileDisk(join(place, "a")));
  await first.pushMany(many(0, 1500));
  await first.close();
  cpSync(join(place, "a"), join(place, "b"), { recursive: true });
  for (const [where, from] of [["a", 1500], ["b", 2000]]) {
    const client = await till(table, new FileDisk(join(place, where)));
    await client.pushMany(many(from, from + 10));
    assert.ok(await client.flush(WAIT));
    assert.equal(client.status.letters, 0);
    await client.close();
  }
  const wanted = [...many(0, 1510), ...many(2000, 2010)].map(({ data: { i } }) => i);
  assert.deepEqual((await feed(table)).map((change) => change.data.i), wanted);
});

test("what is refused is a letter, and the rest goes on", { skip }, async () => {
  const [table, place] = [name(), folder()];
  let client = await offline(table, new FileDisk(place));
  for (let i = 0; i < 40; i++) await client.insert(table, { i });
  await client.close();
  const disk = new FileDisk(place);
  const [entry] = await disk.entries(39, 1); // what the door would not have let through
  await disk.apply([{ do: "settle", n: 40, last: 0 }, { do: "enqueue", ...entry, update: { ...entry.update, new_data: [] }, replaces: null }]);
  client = await till(table, disk);
  await client.insert(table, { i: 40 });
  assert.ok(await client.flush(WAIT));
  await client.close();
  client = await till(table, new FileDisk(place));
  const letters = [];
  for await (const letter of client.letters()) letters.push(letter);
  assert.deepEqual(letters.map(({ n, state, error }) => [n, state, error.field]), [[40, "refused", "new_data"]]);
  await client.resend(40, { i: 39 });
  assert.ok(await client.flush(WAIT));
  assert.equal(client.status.letters, 0);
  const i = (await isInStep(client, table)).slice(-3);
  assert.deepEqual(i, [38, 40, 39]);
  await client.close();
});

test("a token that is refused is asked for anew", { skip }, async () => {
  const asked = [];
  const newToken = (error) => asked.push(error.error_code) && token;
  const client = await till(name(), new FileDisk(folder()), { token: token.slice(0, -4) + "AAAA", newToken });
  assert.ok(await client.ready(WAIT));
  assert.deepEqual(asked, ["3001"]);
  await client.close();
});

test("a private CA", { skip }, async () => {
  const place = folder();
  const [cert, key] = [join(place, "cert.pem"), join(place, "key.pem")];
  const made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost";
  execFileSync("openssl", [...made.split(" "), "-keyout", key, "-out", cert], { stdio: "ignore" });
  const script = new URL("../../../tests/clients/docs/proxy.py", import.meta.url).pathname;
  const proxy = spawn(process.env.PYTHON ?? "python3", [script, "tls", url, cert, key], { stdio: ["ignore", "pipe", "inherit"] });
  try {
    const [port] = await new Promise((resolve) => createInterface(proxy.stdout).once("line", (line) => resolve([line])));
    const there = `https://localhost:${port}`;
    const client = await till(name(), new FileDisk(folder()), { url: there, socket: { ca: readFileSync(cert) } });
    assert.ok(await client.ready(WAIT));
    await client.close();
    const told = [];
    const without = await till(name(), new FileDisk(folder()), { url: there, listen: (kind) => told.push(kind) });
    assert.ok(await new Promise((resolve) => {
      const look = setInterval(() => told.includes("not_connected") && resolve(true, clearInterval(look)), 10);
    }));
    assert.equal(without.status.cursor, null);
    await without.close();
  } finally {
    proxy.kill();
  }
});

test("the README as written", { skip }, async () => {
  const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");
  const blocks = [...readme.matchAll(/```javascript\n(.*?)```/gs)].map(([, text]) => text);
  const program = blocks.join("").replace(/(await till\.close[^\n]*\n)(.*)/s, "$2await till.flush(30_000);\nconsole.log('sale', sale);\n$1");
  const filled = program.replace("http://127.0.0.1:5000", url).replace('"TOKEN"', JSON.stringify(token)).replace("till-data", folder());
  const said = execFileSync(process.execPath, ["--input-type=module", "-e", filled], { cwd: process.env.INSTALLED ?? new URL("..", import.meta.url), encoding: "utf8" });
  const sale = /sale (\d+)/.exec(said)[1];
  assert.deepEqual((await rest("GET", `/data/sales/${sale}`)).data, { item: "Café", price: 9.5 });
});
