// The vectors that every library runs: their README says what the steps mean. Each runs on every disk that there is here.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { Core } from "../dist/index.js";
import { isWrite } from "../dist/actions.js";
import { disks } from "./disks.mjs";

const WALL = "2026-11-28T12:00:00.000Z";
const folder = new URL("../../vectors/", import.meta.url);
const plain = (value) => JSON.parse(JSON.stringify(value));

class Bench {
  constructor(place, token) {
    Object.assign(this, { place, given: token, now: 0, sent: [], told: [], closes: 0, connectAt: null });
  }

  async fill({ queue, store }) {
    const writes = [{ do: "queueIs", id: queue.id, last: queue.last, sent: queue.sent }];
    for (const [n, update] of queue.entries)
      writes.push({ do: "enqueue", n, update, size: JSON.stringify(update).length, replaces: null });
    writes.push({ do: "begin", tables: null });
    for (const [key, [version, data]] of Object.entries(store.records)) {
      const [table, id] = key.split("/");
      writes.push({ do: "put", table, id: Number(id), version, data, toCopy: false, toFresh: true });
    }
    writes.push({ do: "switch", tables: null, cursor: store.cursor }, { do: "owed", tables: store.owed ?? [] });
    await this.disk.apply(writes);
  }

  async begin() {
    const snapshot = await this.disk.snapshot();
    let drawn = snapshot.queueId === null ? 0 : Number(snapshot.queueId.slice(1));
    this.core = new Core("till-1", this.given, snapshot, () => 0.5, () => `q${++drawn}`);
    await this.do(this.core.start());
  }

  async restart(token) {
    await this.disk.close();
    this.given = token ?? this.given;
    this.disk = await this.place.open();
    await this.begin();
  }

  async do(actions) {
    await this.disk.apply(actions.filter(isWrite));
    for (const action of actions) {
      if (action.do === "send") this.sent.push([action.event, plain(action.data)]);
      else if (action.do === "tell") this.told.push([action.kind, plain(action.data)]);
      else if (action.do === "close") this.closes++;
      else if (action.do === "connect") this.connectAt = action.at;
      else if (action.do === "load")
        await this.do(this.core.loadedEntries(await this.disk.entries(action.after, action.limit), this.now));
    }
  }

  async queueUp(update, letter = null) {
    const enqueue = this.core.prepare(update, letter);
    await this.disk.apply([enqueue]);
    await this.do(this.core.enqueued(enqueue, this.now, letter?.size));
  }

  async act(step) {
    const { core, now } = this;
    if ("push" in step) await this.queueUp({ device_id: "till-1", ...step.push });
    else if ("connected" in step) {
      core.connecting();
      await this.do(core.connected(now, WALL));
    } else if ("received" in step) await this.do(core.received(...step.received, now));
    else if ("disconnected" in step) await this.do(core.disconnected(now, step.disconnected));
    else if ("tick" in step) await this.do(core.tick(now));
    else if ("sync" in step) await this.do(core.sync(step.sync, now));
    else if ("new_token" in step) await this.do(core.newToken(step.new_token, now));
    else if ("restart" in step) await this.restart(step.given);
    else if ("forget" in step || "resend" in step) {
      const n = step.forget ?? step.resend.n;
      const letter = (await this.disk.letters(n - 1, 1))[0];
      assert.equal(letter.n, n);
      if ("resend" in step) return this.queueUp({ ...letter.update, new_data: step.resend.new_data }, letter);
      await this.disk.apply([{ do: "forget", n }]);
      core.forgotten(n, letter.size);
    } else assert.fail("a step without an input");
  }

  async store() {
    const found = {};
    for (const table of ["sales", "stock", "prices", "old"])
      for (const { id, version, data } of await this.disk.records(table, null, 1000)) found[`${table}/${id}`] = [version, data];
    return found;
  }

  async check(step) {
    const { core } = this;
    assert.deepEqual(this.sent, step.send ?? []);
    assert.equal(this.closes, Number(step.close ?? false));
    assert.deepEqual(this.told.map(([kind]) => kind), (step.tell ?? []).map(([kind]) => kind));
    (step.tell ?? []).forEach(([, wanted], at) => {
      for (const key of Object.keys(wanted)) assert.deepEqual(this.told[at][1][key], wanted[key]);
    });
    const found = {
      connect_at: () => this.connectAt,
      queue: async () => (await this.disk.entries(0, 1e9)).map(({ n }) => [n, core.stateOf(n)]),
      queue_is: () => ({ id: core.queueId, last: core.last, sent: core.sent }),
      letters: async () => (await this.disk.letters(0, 1e9)).map(({ n, state, error }) => [n, state, error.error_code]),
      store: () => this.store(),
      cursor: () => core.cursor,
      owed: () => [...core.owed],
      token: () => core.token,
      refused: () => core.refused?.error_code ?? null,
    };
    for (const [name, value] of Object.entries(found)) if (name in step) assert.deepEqual(await value(), step[name], name);
    const { entries, letters, size, last, next, sent, cursor, queueId } = await this.disk.snapshot();
    assert.deepEqual(
      { entries, letters, size, last, next, sent, cursor, queueId },
      {
        entries: core.entries, letters: core.letters, size: core.size, last: core.last, next: core.next, sent: core.sent,
        cursor: core.cursor, queueId: core.queueId,
      },
      "the core's numbers are the disk's",
    );
  }
}

let cases = 0;
for (const file of readdirSync(folder).filter((name) => name.endsWith(".json")))
  for (const { name, token, disk, steps } of JSON.parse(readFileSync(new URL(file, folder), "utf8"))) {
    cases++;
    for (const [kind, place] of Object.entries(disks))
      test(`${file}, ${kind}: ${name}`, async () => {
        const bench = new Bench(await place(), token ?? "token-1");
        bench.disk = await bench.place.open();
        if (disk) await bench.fill(disk);
        await bench.begin();
        for (const [at, step] of steps.entries()) {
          bench.now = step.at ?? bench.now;
          Object.assign(bench, { sent: [], told: [], closes: 0 });
          try {
            await bench.act(step);
            await bench.check(step);
          } catch (error) {
            error.message = `step ${at}: ${JSON.stringify(step).slice(0, 300)}\n${error.message}`;
            throw error;
          }
        }
        await bench.disk.close();
      });
  }
test("there are vectors", () => assert.ok(cases >= 100));
