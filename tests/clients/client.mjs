// socket.io-client against a running cluster: TOKEN=… node client.mjs URL URL. Exits non-zero with what did not hold.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { io } from "socket.io-client";

const TIMEOUT = 10_000;
const TRANSPORTS = { polling: ["polling"], websocket: ["websocket"], upgrade: ["polling", "websocket"] };
const short = () => randomUUID().slice(0, 8);

// One device on one connection; its events in the order they came.
class Device {
  constructor(name, url, token, transports) {
    this.id = `${name}-${short()}`;
    this.events = [];
    this.waiting = null;
    this.socket = io(url, { auth: { token }, transports, reconnection: false, forceNew: true });
    this.socket.onAny((event, data) => {
      this.events.push([event, data]);
      this.waiting?.();
    });
  }

  connected() {
    return new Promise((resolve, reject) => {
      this.socket.once("connect", resolve);
      this.socket.once("connect_error", reject);
    });
  }

  async wait(event, match = () => true) {
    const end = Date.now() + TIMEOUT;
    while (Date.now() < end) {
      const place = this.events.findIndex(([name, data]) => name === event && match(data));
      if (place >= 0) return this.events.splice(place, 1)[0][1];
      const error = this.events.find(([name]) => name === "error");
      assert.equal(error, undefined, `error while waiting for ${event}: ${JSON.stringify(error)}`);
      await new Promise((resolve) => {
        this.waiting = resolve;
        setTimeout(resolve, end - Date.now());
      });
    }
    assert.fail(`${this.id}: no ${event} within ${TIMEOUT} ms`);
  }

  async register() {
    this.socket.emit("device_online", { device_id: this.id, priority: 20, capabilities: ["sync"] });
    const ack = await this.wait("device_online_ack", (d) => d.device_id === this.id);
    assert.ok(["client", "master"].includes(ack.role));
  }
}

async function pushAndHear(kind, urls, token) {
  const [a, b] = urls.map((url, i) => new Device(`js-${kind}-${i}`, url, token, TRANSPORTS[kind]));
  try {
    await Promise.all([a.connected(), b.connected()]);
    await a.register();
    await b.register();
    const table = `js_${short()}`;
    const numbers = Array.from({ length: 20 }, (_, n) => n);
    const answers = await Promise.all(
      numbers.map((n) =>
        a.socket.timeout(TIMEOUT).emitWithAck("data_update", {
          device_id: a.id, table_name: table, record_id: n, operation: "insert", request_id: `r${n}`,
          new_data: { name: "Café ☕", price: 9.99, n },
        }),
      ),
    );
    assert.deepEqual(answers.map((x) => x.request_id), numbers.map((n) => `r${n}`));
    assert.equal(new Set(answers.map((x) => x.seq)).size, 20);
    for (const device of [a, b]) {
      const heard = [];
      for (const _ of numbers) heard.push(await device.wait("data_update", (d) => d.table_name === table));
      assert.deepEqual(heard.map((x) => x.record_id), numbers);
      assert.deepEqual(heard.map((x) => x.seq), answers.map((x) => x.seq));
      assert.deepEqual(heard[3].new_data, { name: "Café ☕", price: 9.99, n: 3 });
      assert.equal(heard[3].device_id, a.id);
    }
  } finally {
    a.socket.disconnect();
    b.socket.disconnect();
  }
}

async function refusedWithoutAToken(url) {
  for (const token of [undefined, "wrong"]) {
    const device = new Device("js-nobody", url, token, ["websocket"]);
    await assert.rejects(device.connected(), /3001/, "the refusal names the documented code");
    device.socket.disconnect();
  }
}

const urls = process.argv.slice(2, 4);
const token = process.env.TOKEN;
for (const kind of Object.keys(TRANSPORTS)) {
  await pushAndHear(kind, urls, token);
  console.log(`socket.io-client, ${kind}: ok`);
}
await refusedWithoutAToken(urls[0]);
console.log("socket.io-client, no token: refused, ok");
process.exit(0);
