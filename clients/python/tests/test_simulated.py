"""The core against a model of a cluster, with faults at random: nothing is lost, doubled or out of order, and the copy
ends as what the cluster has. A seed that fails repeats exactly."""

from __future__ import annotations

import os
import pathlib
import random
from typing import Any

import pytest
from bench import DEVICE, WALL, Bench

from tillsync.actions import Json

SEEDS = int(os.environ.get("TILLSYNC_SEEDS", "30"))


class Cluster:
    """What the rules of queues, cursors and syncs say of the other side. One session at a time."""

    def __init__(self, dice: random.Random) -> None:
        self.dice, self.faults = dice, True
        self.epoch, self.base = 1, 0
        self.log: list[Json] = []
        self.queues: dict[str, int] = {}
        self.forgotten: set[str] = set()
        self.kept: dict[tuple[str, int], Any] = {}
        self.records: dict[str, list[Any]] = {}
        self.conflicts: dict[tuple[str, int], int] = {}
        self.began = 0
        self.out: list[tuple[str, Json]] = []
        self.told: int | None = None

    def seq(self) -> int:
        return self.base + len(self.log)

    def cursor(self, seq: int) -> str:
        return f"{self.epoch:x}.{seq}"

    def apply(self, change: Json, device: str) -> None:
        seq, key = self.seq() + 1, f"{change['table_name']}/{change['record_id']}"
        before = [c["seq"] for c in self.log if c["table_name"] == change["table_name"]]
        deleted = change["operation"] == "delete"
        self.log.append(
            {
                "device_id": device,
                "table_name": change["table_name"],
                "record_id": change["record_id"],
                "new_data": {} if deleted else change["new_data"],
                "operation": change["operation"],
                "timestamp": WALL,
                "seq": seq,
                "cursor": self.cursor(seq),
                "after": before[-1] if before else 0,
            }
        )
        if deleted:
            self.records.pop(key, None)
        else:
            self.records[key] = [seq, change["new_data"]]

    def connect(self) -> None:
        self.out, self.told = [], None

    def pump(self) -> None:
        """Live changes follow what was sent before."""
        if self.told is None:
            return
        for change in self.log[max(self.told - self.base, 0) :]:
            self.out.append(("data_update", change))
        self.told = self.seq()

    def hear(self, event: str, data: Json) -> None:
        getattr(self, f"on_{event}", lambda _: None)(data)
        self.pump()

    def error(self, code: str, event: str, request: Json, retry: str, **more: Any) -> None:
        answer = {"error": code, "error_code": code, "timestamp": WALL, "retry": retry, "event": event, **more}
        if "request_id" in request:
            answer["request_id"] = request["request_id"]
        self.out.append(("error", answer))

    def on_device_online(self, data: Json) -> None:
        seq = self.seq()
        good = None
        if "cursor" in data:
            epoch, _, at = data["cursor"].rpartition(".")
            good = epoch == f"{self.epoch:x}" and self.base <= int(at) <= seq
        if good:
            seq = int(data["cursor"].rpartition(".")[2])
        ack = {"device_id": DEVICE, "current_master": "n", "role": "client", "timestamp": WALL, "term": 1}
        self.out.append(("device_online_ack", {**ack, "cursor": self.cursor(seq)}))
        if good is False:
            self.error("1005", "device_online", data, "no", field="cursor")
        self.told = seq

    def on_sync_request(self, data: Json) -> None:
        if self.faults and self.dice.random() < 0.2:
            return self.error("5003", "sync_request", data, "safe", retry_after_ms=100)
        tables = data.get("requested_tables")
        rows = []
        for key, (seq, value) in self.records.items():
            table, record_id = key.rsplit("/", 1)
            if tables is None or table in tables:
                row = {"table_name": table, "record_id": int(record_id), "operation": "insert", "data": value}
                rows.append({**row, "timestamp": WALL, "seq": seq})
        self.began += 1
        pages = [rows[i : i + 3] for i in range(0, len(rows), 3)] or [[]]
        for n, page in enumerate(pages, 1):
            head = {"sync_type": "full", "timestamp": WALL, "master_device_id": "n", "sync_id": f"s{self.began}"}
            more = {"page": n, "total": len(rows), "has_more": n < len(pages), "cursor": self.cursor(self.seq())}
            self.out.append(("sync_response", {**head, "changes": page, **more}))

    def on_data_update(self, data: Json) -> None:
        queue, n, after = data["queue"], data["n"], data["after"]
        fault = self.dice.random() if self.faults else 1.0
        if fault < 0.05:
            return self.error("5003", "data_update", data, "safe")
        if fault < 0.08:
            return self.error("5001", "data_update", data, "same_request_id")
        if data["table_name"] == "poison":
            return self.error("2004", "data_update", data, "no", field="new_data")
        if queue in self.forgotten:
            return self.error("2004", "data_update", data, "no", field="queue")
        last = self.queues.get(queue, 0)
        ack = {"message": "", "timestamp": WALL, "event": "data_update", "request_id": data["request_id"], "n": n}
        content = (data["table_name"], data["record_id"], data.get("new_data"))
        if n <= last:
            if self.kept.get((queue, n)) != content:
                return self.error("2004", "data_update", data, "no", field="n", last=last)
            if (queue, n) in self.conflicts:
                return self.error("2002", "data_update", data, "no", conflict_id=self.conflicts[queue, n])
            return self.out.append(("acknowledged", {**ack, "repeated": True}))
        if after != last:
            return self.error("2004", "data_update", data, "no", field="after", last=last)
        self.queues[queue], self.kept[queue, n] = n, content
        if data["table_name"] == "disputed":
            self.conflicts[queue, n] = len(self.conflicts) + 1
            return self.error("2002", "data_update", data, "no", conflict_id=self.conflicts[queue, n])
        self.apply(data, DEVICE)
        if fault < 0.12:
            return self.error("5002", "data_update", data, "same_request_id")
        self.out.append(("acknowledged", ack))


def sales(cluster: Cluster) -> list[int]:
    return [c["new_data"]["i"] for c in cluster.log if c["device_id"] == DEVICE and c["table_name"] == "sales"]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_faults(seed: int, tmp_path: pathlib.Path) -> None:
    dice = random.Random(seed)
    cluster, bench = Cluster(dice), Bench(tmp_path)
    pushed: dict[str, list[int]] = {"sales": [], "poison": [], "disputed": []}
    up = False
    next_i = 0

    def cut(killed: bool = False) -> None:
        nonlocal up
        up = False
        bench.sent.clear()
        if killed:
            bench.restart()
        else:
            bench.do(bench.core.disconnected(bench.now))

    def step(dangers: float) -> None:
        nonlocal up, next_i
        roll = dice.random()
        if bench.closes:
            bench.closes = 0
            return cut()
        if not up:
            bench.now = max(bench.now, bench.core.connect_at or 0)
            up = True
            cluster.connect()
            bench.core.connecting()
            return bench.do(bench.core.connected(bench.now, WALL))
        if roll < 0.02 * dangers:
            return cut()
        if roll < 0.035 * dangers:
            return cut(killed=True)
        if roll < 0.04 * dangers:
            cluster.epoch += 1  # the cursor is of another history from now on; the session ends
            return cut()
        if roll < 0.20 * dangers:
            table = dice.choices(["sales", "poison", "disputed"], [20, 1, 1])[0]
            next_i += 1
            pushed[table].append(next_i)
            change = {"table_name": table, "record_id": next_i, "operation": "insert", "new_data": {"i": next_i}}
            return bench.push(change)
        if roll < 0.25 * dangers:
            operation = dice.choice(["insert", "update", "delete"])
            i = dice.randrange(10)
            cluster.apply(
                {"table_name": "stock", "record_id": i, "operation": operation, "new_data": {"v": i}}, "other"
            )
            return cluster.pump()
        if roll < 0.26 * dangers:
            return bench.do(bench.core.sync(dice.choice([None, ("stock",), ("sales", "stock")]), bench.now))
        if bench.sent and (not cluster.out or dice.random() < 0.5):
            return cluster.hear(*bench.sent.pop(0))
        if cluster.out:
            return bench.received(*cluster.out.pop(0))
        bench.now = bench.core.deadline() or bench.now + 1000
        bench.do(bench.core.tick(bench.now))

    for _ in range(1000):
        step(1)
        if dice.random() < 0.1:
            bench.agree()
        assert len(bench.core.window) <= 64 and len(bench.core.flying) <= 32
    cluster.faults = False
    for _ in range(4000):
        step(0)
        at_rest = not bench.sent and not cluster.out and not bench.core.entries and not bench.core.wanted
        if up and at_rest and bench.core.cursor:
            break
    assert bench.core.entries == 0 and bench.core.wanted == []
    assert sales(cluster) == pushed["sales"]
    letters = bench.letters()
    assert [n for n, state, _ in letters if state == "refused"] == pushed["poison"]
    assert [n for n, state, _ in letters if state == "conflict"] == pushed["disputed"]
    assert bench.records() == cluster.records
    bench.close()
    assert len(pushed["sales"]) > 50


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_queue_that_is_forgotten_loses_and_doubles_nothing(seed: int, tmp_path: pathlib.Path) -> None:
    """What may have been applied is shown, all else is there once, in order."""
    dice = random.Random(seed)
    cluster, bench = Cluster(dice), Bench(tmp_path)
    cluster.faults = False
    for i in range(1, 31):
        bench.push({"table_name": "sales", "record_id": i, "operation": "insert", "new_data": {"i": i}})
    for again in range(2):
        cluster.connect()
        bench.core.connecting()
        bench.do(bench.core.connected(bench.now, WALL))
        for _ in range(10_000 if again else dice.randrange(4, 60)):
            if bench.sent:
                cluster.hear(*bench.sent.pop(0))
            elif cluster.out:
                bench.received(*cluster.out.pop(0))
            elif again:
                if not bench.core.entries:
                    break
                bench.now = bench.core.deadline() or bench.now
                bench.do(bench.core.tick(bench.now))
            if not again and cluster.out and dice.random() < 0.5:
                bench.received(*cluster.out.pop(0))
        if not again:
            bench.sent.clear()
            bench.restart()
            cluster.forgotten |= cluster.queues.keys()
    there, letters = sales(cluster), [n for n, _, _ in bench.letters()]
    assert bench.core.entries == 0
    assert there == sorted(set(there))
    assert set(there) | set(letters) == set(range(1, 31))
    bench.close()
