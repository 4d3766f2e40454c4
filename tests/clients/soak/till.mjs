// A till of the soak: the class of docs/clients.md over socket.io-client 2, 3 or 4, with the library's reconnection on.
// usage: TOKEN=… node till.mjs CLASS LIBRARY TRANSPORTS URL DEVICE NAME FOLDER
// CLASS is the page's program, with the library's name in it. Commands come by standard input, states go to standard output.
import { randomInt } from "node:crypto";
import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";

const [program, library, transports, url, device, name, folder] = process.argv.slice(2);
const token = process.env.TOKEN;
const { Client } = await import(program);

const noted = `${folder}/${name}.notes`;
const note = (...line) => appendFileSync(noted, JSON.stringify(line) + "\n");
const keyOf = (change) => `${change.table_name}/${change.record_id}`;

// What the class does is noted from outside, so that a fault of the class is one that the checker sees.
class Till extends Client {
  comeOnline() {
    note("online", this.cursor ? Number(this.cursor.split(".")[1]) : null);
    super.comeOnline();
  }
}

note("start", `socket.io-client ${library}`, transports);
const socket = { transports: transports.split("+"), reconnectionDelay: 500, reconnectionDelayMax: 3000, forceNew: true };
if (library === "2") socket.query = { token };
const till = new Till(url, token, device, { folder: `${folder}/${name}`, socket });
// The library tells these to the class first; a note of what was told says nothing of what the class made of it.
till.socket.on("data_update", (change) => note("told", change.seq, keyOf(change)));
till.socket.on("sync_response", (page) => note("page", page.changes.map((change) => [keyOf(change), change.seq])));
till.socket.on("disconnect", (why) => note(why === "io server disconnect" ? "final" : "disconnected", why));
till.socket.on("connect_error", (error) => note(till.socket.active === false ? "final" : "not_connected", String(error.message ?? error)));
for (const event of ["error", "sync_error"]) till.socket.on(event, (error) => note(typeof error === "string" ? "final" : "error", error));

// Its sales go on where the last run of this program ended.
const pushed = readFileSync(noted, "utf8").split("\n").flatMap((line) => {
  try {
    const [kind, i] = JSON.parse(line);
    return kind === "intent" ? [i + 1] : [];
  } catch {
    return [];
  }
});
let next = pushed.reduce((most, i) => Math.max(most, i), 0);

function sell() {
  const i = next++;
  note("intent", i); // if it is killed in between, the sale may be there or not
  till.push("sales", randomInt(2 ** 48 - 1), { till: name, i }, { operation: "insert" });
  note("push", i);
}

const commands = {
  sell: (count) => {
    for (let k = 0; k < count; k++) sell();
  },
  stock: (record, value) => till.push("stock", record, { by: name, value }),
  sync: (tables) => till.sync(tables && { requested_tables: tables }),
  end: () => {
    const store = Object.fromEntries(Array.from(till.records, ([key, { version, data }]) => [key, [version, data]]));
    writeFileSync(`${folder}/${name}.end`, JSON.stringify({ queue: till.queue.size, dead: till.dead.size, store }));
    process.exit(0);
  },
};
createInterface({ input: process.stdin }).on("line", (line) => {
  const [command, ...args] = JSON.parse(line);
  commands[command](...args);
}).on("close", () => process.exit(0));
const state = () => console.log(JSON.stringify({ online: till.online, queue: till.queue.size, dead: till.dead.size, seq: till.seq, cursor: till.cursor, wanted: till.wanted.length }));
setInterval(state, 500);
