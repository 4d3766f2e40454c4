// Random histories: tills that sell, are cut off, end and are killed, and a cluster that loses what it can. TILLSYNC_SEEDS is
// how many (4); a failure names its seed.
import assert from "node:assert/strict";
import { test } from "node:test";
import { MemoryDisk } from "@tillsync/client";
import { newId, Tillsync } from "../dist/index.js";
import { FakeCluster } from "./fake.mjs";
import { all, kill, shop, until } from "./helpers.mjs";

const token = (device) => `x.${Buffer.from(JSON.stringify({ sub: device })).toString("base64url")}.y`;

/** mulberry32 */
function dice(seed) {
  return (sides) => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % sides;
  };
}

async function begun(fake, device, before = {}) {
  const disk = before.disk ?? new MemoryDisk();
  disk.close = async () => {};
  disk.memory.fresh = null;
  const made = await shop(["products"], before.storage, before.name);
  const tillsync = await Tillsync.open({ url: fake.url, token: token(device), disk });
  const replication = tillsync.replicate({ collection: made.db.products, batchSize: 4 });
  return { ...made, disk, tillsync, replication, products: made.db.products };
}

async function history(seed) {
  const roll = dice(seed);
  const fake = await new FakeCluster().listen();
  const names = ["till-1", "till-2"];
  const tills = await Promise.all(names.map((name) => begun(fake, name)));
  const sold = new Set();
  try {
    for (let step = 0; step < 80; step++) {
      const at = roll(2);
      const { products, tillsync } = tills[at];
      const some = async () => {
        const documents = await products.find().exec();
        return documents[roll(documents.length || 1)];
      };
      switch (roll(14)) {
        case 0: case 1: case 2: case 3: {
          const id = newId();
          await products.insert({ id, name: "sale", i: step });
          sold.add(id);
          break;
        }
        case 4: case 5:
          await (await some())?.incrementalPatch({ price: step });
          break;
        case 6: {
          const document = await some();
          await document?.incrementalRemove();
          sold.delete(document?.id); // it may never reach the cluster
          break;
        }
        case 7: {
          const ids = [...(fake.tables.get("products") ?? new Map()).keys()];
          if (ids.length) fake.commit("products", ids[roll(ids.length)], roll(3) ? { name: "changed", i: step } : null);
          break;
        }
        case 8:
          fake.cut();
          break;
        case 9:
          fake.losesChange = () => roll(3) === 0;
          break;
        case 10:
          fake.losesAnswer = () => roll(4) === 0;
          break;
        case 11:
          if (roll(2)) fake.compact();
          fake.fails = () => roll(3) === 0;
          break;
        case 12:
          Object.assign(fake, { losesChange: () => false, losesAnswer: () => false, fails: () => false });
          break;
        case 13:
          if (roll(2)) await kill(tills[at]);
          else {
            await tillsync.close();
            await tills[at].db.close();
          }
          tills[at] = await begun(fake, names[at], tills[at]);
          break;
      }
      await new Promise((resolve) => setTimeout(resolve, roll(20)));
    }
    Object.assign(fake, { losesChange: () => false, losesAnswer: () => false, fails: () => false });
    fake.cut();
    for (const { tillsync, replication } of tills) {
      await until(() => tillsync.client.status.online, "online");
      await replication.awaitInSync();
    }
    const sorted = (records) => JSON.stringify(Object.entries(records).map(([id, data]) => [id, Object.entries(data).sort()]).sort());
    const there = () => Object.fromEntries([...fake.tables.get("products")].filter(([, { data }]) => data).map(([id, { data }]) => [id, data]));
    for (const [at, { products }] of tills.entries())
      await until(async () => sorted(await all(products)) === sorted(there()), `till ${at + 1} has what the cluster has`, 30_000).catch(async (error) => {
        const [here, cluster] = [await all(products), there()];
        for (const id of new Set([...Object.keys(here), ...Object.keys(cluster)])) {
          const changes = fake.made.filter(({ record_id }) => String(record_id) === id);
          if (sorted({ [id]: here[id] ?? {} }) !== sorted({ [id]: cluster[id] ?? {} })) console.error(`seed ${seed}, till ${at + 1} has of ${id}`, here[id], "but", changes);
        }
        throw error;
      });
    const inserted = fake.made.filter(({ operation }) => operation === "insert").map(({ record_id }) => String(record_id));
    const twice = inserted.filter((id, at) => inserted.indexOf(id) !== at && !fake.made.some(({ record_id, operation }) => String(record_id) === id && operation === "delete"));
    assert.deepEqual(twice, [], "twice");
    for (const id of sold) assert.ok(fake.tables.get("products").has(Number(id)), `${id} is lost`);
  } finally {
    for (const { life, tillsync, db } of tills) {
      if (!life.dead) await tillsync.close();
      await db.close();
    }
    await fake.close();
  }
}

for (let seed = 1; seed <= Number(process.env.TILLSYNC_SEEDS ?? 4); seed++) test(`seed ${seed}`, () => history(seed));
