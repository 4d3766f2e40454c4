// socket.io-client 2, 3 and 4 as they are used: reconnecting by themselves. TOKEN=… node reconnect.mjs PART URL [FOLDER]
//   burst     what was queued before the connection is answered whole and in order; large and binary packets are answered
//   restart   connected; writes FOLDER/js.ready; when FOLDER/go is there, every client must be back by itself
//   full      the node has room for one session: the second client waits, and comes in when there is room
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { existsSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const TIMEOUT = 60_000;
const TRANSPORTS = [["websocket"], ["polling"], ["polling", "websocket"]];
const UPDATES = 3_000;
const [part, url, folder] = process.argv.slice(2);
const token = process.env.TOKEN;
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const short = () => randomUUID().slice(0, 8);

// A client of a version: its errors, and the reasons of its disconnects.
function client(version, transports, more = {}) {
  const library = require(`sio${version}`);
  const io = library.io ?? library;
  const who = version === 2 ? { query: { token } } : { auth: { token } };
  const socket = io(url, { ...who, transports, forceNew: true, reconnectionDelay: 300, reconnectionDelayMax: 1_000, ...more });
  const it = { name: `socket.io-client ${version}, ${transports.join("+")}`, id: `js${version}-${short()}`, socket, errors: [], ends: [] };
  socket.on("error", (error) => it.errors.push(error));
  socket.on("disconnect", (why) => it.ends.push(why));
  return it;
}

const all = (run) => Promise.all([2, 3, 4].flatMap((version) => TRANSPORTS.map((transports) => run(version, transports))));

async function until(what, holds) {
  for (const end = Date.now() + TIMEOUT; !holds(); await sleep(50)) assert.ok(Date.now() < end, `never: ${what()}`);
}

// The answer to an event.
const call = (it, event, data) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`${it.name}: no answer to ${event}`)), TIMEOUT);
    it.socket.emit(event, data, (answer) => { clearTimeout(timer); resolve(answer); });
  });

async function burst(version, transports) {
  const it = client(version, transports, { autoConnect: false });
  const [table, seqs] = [`burst_${short()}`, []];
  it.socket.emit("device_online", { device_id: it.id, subscribe: [] });
  for (let i = 0; i < UPDATES; i++)
    it.socket.emit("data_update", { device_id: it.id, table_name: table, record_id: i, operation: "insert", new_data: { i }, request_id: `r${i}` },
      (answer) => { assert.equal(answer.request_id, `r${seqs.length}`, it.name); seqs.push(answer.seq); });
  (it.socket.open ?? it.socket.connect).call(it.socket);
  await until(() => `${it.name}: ${seqs.length} of ${UPDATES} are answered, ${JSON.stringify(it.errors[0])}, ${it.ends}`, () => seqs.length === UPDATES);
  assert.deepEqual(seqs, [...seqs].sort((a, b) => a - b), it.name);
  assert.deepEqual([it.errors, it.ends], [[], []], it.name);
  const named = { device_id: it.id, event_type: "photo", request_id: "big" };
  for (const payload of [{ jpeg: "x".repeat(1_200_000) }, { jpeg: "x".repeat(3_500_000) }, { jpeg: Buffer.from([1, 2, 3]) }]) {
    const refused = await call(it, "critical_event", { ...named, payload });
    assert.deepEqual([refused.error_code, refused.event, refused.request_id], ["2004", "critical_event", "big"], it.name);
  }
  assert.equal((await call(it, "heartbeat", { device_id: it.id })).device_id, it.id);
  assert.deepEqual([it.errors.length, it.ends], [3, []], it.name);
  it.socket.disconnect();
}

async function restart() {
  const clients = await all((version, transports) => client(version, transports));
  for (const it of clients) assert.equal((await call(it, "device_online", { device_id: it.id, subscribe: [] })).device_id, it.id);
  writeFileSync(`${folder}/js.ready`, "");
  await until(() => "the restart is over", () => existsSync(`${folder}/go`));
  for (const it of clients) {
    await until(() => `${it.name} is back after ${it.ends}`, () => it.socket.connected);
    assert.ok(it.ends.length > 0, `${it.name}: its node was restarted`);
    assert.ok(!it.ends.includes("io server disconnect"), `${it.name}: ${it.ends}`);
    const answer = await call(it, "data_update", { device_id: it.id, table_name: "restart", record_id: 1, new_data: { it: it.name } });
    assert.ok(answer.seq, `${it.name}: ${JSON.stringify(answer)}`);
    it.socket.disconnect();
  }
}

async function full() {
  for (const version of [2, 3, 4])
    for (const transports of TRANSPORTS) {
      const first = client(version, transports);
      await until(() => `${first.name} is in`, () => first.socket.connected);
      const second = client(version, transports);
      await sleep(700);
      assert.ok(!second.socket.connected, `${second.name}: the node is full`);
      first.socket.disconnect();
      await until(() => `${second.name} comes in when there is room`, () => second.socket.connected);
      second.socket.disconnect();
      await sleep(200);
    }
}

if (part === "burst")
  // All versions at once would share one thread of JavaScript, and miss pings for want of it.
  for (const version of [2, 3, 4]) await Promise.all(TRANSPORTS.map((transports) => burst(version, transports)));
else if (part === "restart") await restart();
else if (part === "full") await full();
else throw new Error(`no part ${part}`);
console.log(`socket.io-client 2, 3, 4, ${part}: ok`);
process.exit(0);
