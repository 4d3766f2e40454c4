// A shop's database in memory, whose documents are validated, and waits that end as soon as they can.
import assert from "node:assert/strict";
import { createRxDatabase } from "rxdb";
import { getRxStorageMemory } from "rxdb/plugins/storage-memory";
import { wrappedValidateAjvStorage } from "rxdb/plugins/validate-ajv";

export const schema = {
  version: 0,
  primaryKey: "id",
  type: "object",
  properties: {
    id: { type: "string", maxLength: 16 },
    name: { type: "string", maxLength: 100 },
    price: { type: "number", minimum: 0 },
    i: { type: "integer" },
  },
  required: ["id", "name"],
};

let names = 0;

/** Opened again with the same `storage` and `name`, it has what it had. */
export async function shop(tables, storage = getRxStorageMemory(), name = `shop${++names}`, more = {}) {
  const life = { dead: false };
  const validated = wrappedValidateAjvStorage({ storage: mortal(storage, life) });
  const db = await createRxDatabase({ name, storage: validated, multiInstance: false, eventReduce: true, closeDuplicates: true });
  await db.addCollections(Object.fromEntries(tables.map((table) => [table, { schema, ...more }])));
  return { db, storage, name, life };
}

/** A storage that keeps nothing of what is written to it after its program's death. */
const mortal = (storage, life) => ({
  ...storage,
  createStorageInstance: async (params) => {
    const instance = await storage.createStorageInstance(params);
    const write = instance.bulkWrite.bind(instance);
    instance.bulkWrite = (...of) => (life.dead ? Promise.resolve({ error: [] }) : write(...of));
    return instance;
  },
});

/** As SIGKILL: from this moment on nothing is written, sent or heard. (RxDB never ends a start whose writes come to nothing.) */
export async function kill({ life, replication, tillsync: { client } }) {
  await replication.startPromise;
  life.dead = client.closed = true;
  clearTimeout(client.timer);
  client.drop();
  await client.options.disk.close();
}

/** Looks until it is so. */
export async function until(look, what = String(look), ms = 20_000) {
  for (const end = Date.now() + ms; ; await new Promise((resolve) => setTimeout(resolve, 5))) {
    const found = await look();
    if (found) return found;
    assert.ok(Date.now() < end, `it did not become so: ${what}`);
  }
}

/** What a collection has: key to the document without RxDB's own fields. */
export async function all(collection) {
  const documents = await collection.find().exec();
  return Object.fromEntries(documents.map((document) => {
    const { id, _deleted, ...data } = document.toJSON();
    return [id, data];
  }));
}
