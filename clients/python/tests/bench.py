"""Drives a core over a real disk, without a network: what the vectors and the unit tests use."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from tillsync.actions import Action, Close, Connect, Json, Load, Send, Tell
from tillsync.change import to_json
from tillsync.core import Core, writes_of
from tillsync.disk import Disk

DEVICE = "till-1"
WALL = "2026-11-28T12:00:00.000Z"


class Bench:
    def __init__(self, folder: pathlib.Path, token: str = "token-1", disk: Json | None = None, **bounds: int) -> None:
        self.folder, self.given, self.bounds, self.now = folder, token, bounds, 0.0
        self.ids = self._ids()
        self.disk = self._opened()
        if disk is not None:
            self._fill(disk)
        self.begin()

    def _ids(self) -> Iterator[str]:
        n = 1
        while True:
            yield f"q{n}"
            n += 1

    def begin(self) -> None:
        self.sent: list[list[Any]] = []
        self.told: list[list[Any]] = []
        self.closes = 0
        self.connect_at: float | None = None
        snapshot = self.disk.snapshot()
        if snapshot.queue_id is not None:
            while next(self.ids) != snapshot.queue_id:
                pass
        self.core = Core(DEVICE, self.given, snapshot, lambda: 0.5, lambda: next(self.ids), **self.bounds)  # type: ignore[arg-type]
        self.do(self.core.start())

    def restart(self, token: str | None = None) -> None:
        """The program is killed, and started again on its disk."""
        self.disk.close()
        self.ids = self._ids()
        self.given = token or self.given
        self.disk = self._opened()
        self.begin()

    def _opened(self) -> Disk:
        disk = Disk(self.folder)
        for file in (disk.queue, disk.store):
            file.execute("PRAGMA synchronous=OFF")  # no power is cut here
        return disk

    def _fill(self, disk: Json) -> None:
        queue, store = disk["queue"], disk["store"]
        for name, value in (("queue", queue["id"]), *((k, queue[k]) for k in ("last", "next", "sent"))):
            self.disk._set_meta(self.disk.queue, name, value)
        for n, update in queue["entries"]:
            text = to_json(update)
            self.disk.queue.execute("INSERT INTO entries VALUES (?, ?, ?)", (n, len(text.encode()), text))
        self.disk._set_meta(self.disk.store, "cursor", store["cursor"])
        for key, (version, data) in store["records"].items():
            table, record_id = key.rsplit("/", 1)
            self.disk._put(0, table, int(record_id), version, data)
        if "owed" in store:
            self.disk._set_meta(self.disk.store, "owed", json.dumps(store["owed"]))

    def do(self, actions: list[Action]) -> None:
        self.disk.apply(writes_of(actions))
        for action in actions:
            if isinstance(action, Send):
                self.sent.append([action.event, json.loads(to_json(action.data))])
            elif isinstance(action, Tell):
                self.told.append([action.kind, action.data])
            elif isinstance(action, Close):
                self.closes += 1
            elif isinstance(action, Connect):
                self.connect_at = action.at
            elif isinstance(action, Load):
                self.do(self.core.loaded_entries(self.disk.entries(action.after, action.limit), self.now))

    def push(self, change: Json) -> None:
        enqueue = self.core.prepare({"device_id": DEVICE, **change})
        self.disk.apply([enqueue])
        self.do(self.core.enqueued(enqueue, self.now))

    def resend(self, n: int, data: Json) -> None:
        found = self.disk.letter(n)
        assert found is not None
        letter, size = found
        enqueue = self.core.prepare({**letter.update, "new_data": data}, n, size)
        self.disk.apply([enqueue])
        self.do(self.core.enqueued(enqueue, self.now, size))

    def received(self, event: str, data: Json) -> None:
        self.do(self.core.received(event, data, self.now))

    def records(self) -> Json:
        rows = self.disk.store.execute(
            "SELECT tab, id, version, data FROM records WHERE copy = ? AND data IS NOT NULL", (self.disk._copy(),)
        )
        return {f"{table}/{record_id}": [version, json.loads(data)] for table, record_id, version, data in rows}

    def queue(self) -> list[list[Any]]:
        return [[entry.n, self.core.state_of(entry.n)] for entry in self.disk.entries(0, 1 << 30)]

    def letters(self) -> list[list[Any]]:
        return [[letter.n, letter.state, letter.error["error_code"]] for letter in self.disk.letters(0, 1 << 30)]

    def agree(self) -> None:
        """The core's numbers are the disk's."""
        snapshot = self.disk.snapshot()
        core = self.core
        assert (core.entries, core.letters, core.size) == (snapshot.entries, snapshot.letters, snapshot.size)
        assert (core.queue_id, core.last, core.next, core.sent) == (
            snapshot.queue_id,
            snapshot.last,
            snapshot.next,
            snapshot.sent,
        )
        assert (core.cursor, core.owed, core.conflicts) == (snapshot.cursor, snapshot.owed, snapshot.conflicts)

    def close(self) -> None:
        self.disk.close()


__all__ = ["DEVICE", "WALL", "Bench"]
