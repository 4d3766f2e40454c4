"""What is checked at the door, and the disk."""

from __future__ import annotations

import pathlib
import socket
import sqlite3
import stat
from typing import Any

import pytest
from bench import Bench

import tillsync
from tillsync import limits
from tillsync.change import checked, claims_of, new_record_id
from tillsync.disk import Disk
from tillsync.engine import Engine, Options


def nested(depth: int) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for _ in range(depth - 1):
        data = {"x": data}
    return data


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("table_name", {"table": ""}),
        ("table_name", {"table": " "}),
        ("table_name", {"table": "no\ttable"}),
        ("table_name", {"table": "é" * 51}),
        ("table_name", {"table": None}),
        ("record_id", {"record_id": 1 << 63}),
        ("record_id", {"record_id": True}),
        ("record_id", {"record_id": 1.0}),
        ("operation", {"operation": "upsert"}),
        ("base_version", {"base_version": -1}),
        ("base_version", {"base_version": True}),
        ("new_data", {"data": None}),
        ("new_data", {"data": [1]}),
        ("new_data", {"data": {"x": float("nan")}}),
        ("new_data", {"data": {"x": float("inf")}}),
        ("new_data", {"data": {"x": "\ud800"}}),
        ("new_data", {"data": {"x": object()}}),
        ("new_data", {"data": {"photo": "x" * limits.RECORD_DATA}}),
        ("new_data", {"data": nested(limits.DATA_DEPTH + 1)}),
    ],
)
def test_what_would_never_be_taken_is_not_queued(field: str, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"table": "t", "record_id": 1, "data": {"x": 1}, "operation": "insert"}
    with pytest.raises(tillsync.InvalidChange) as refused:
        checked("till-1", **{**good, **change})
    assert refused.value.field == field


def test_what_is_at_the_bound_is_queued() -> None:
    filled = {"photo": "x" * (limits.RECORD_DATA - len('{"photo":""}'))}
    for data in (filled, nested(limits.DATA_DEPTH)):
        assert checked("till-1", "é" * 50, -(1 << 63), data, "insert")["new_data"] == data


def test_what_was_given_may_change_afterwards() -> None:
    data = {"items": [1]}
    update = checked("till-1", "t", 1, data, "insert")
    data["items"].append(2)
    assert update["new_data"] == {"items": [1]}


def test_ids_are_drawn_below_what_is_exact_everywhere() -> None:
    ids = [new_record_id() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    assert all(0 < i < 1 << 53 for i in ids)
    assert max(ids) > 1 << 52


@pytest.mark.parametrize("token", ["", "a.b", "a.e30.c", "x.!!.y"])
def test_a_token_that_is_none_is_said(token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        claims_of(token)


def change(i: int, size: int = 1) -> dict[str, Any]:
    return {"table_name": "t", "record_id": i, "operation": "insert", "new_data": {"x": "x" * size}}


def test_the_queue_is_bounded_and_says_so(tmp_path: pathlib.Path) -> None:
    bench = Bench(tmp_path, max_entries=3, max_bytes=10_000)
    for i in range(3):
        bench.push(change(i))
    with pytest.raises(tillsync.QueueFull):
        bench.push(change(3))
    assert len(bench.queue()) == 3
    bench.restart()
    bench.agree()
    with pytest.raises(tillsync.QueueFull):
        bench.push(change(3))
    bench.close()
    bench = Bench(tmp_path / "bytes", max_bytes=10_000)
    with pytest.raises(tillsync.QueueFull):
        bench.push(change(1, 10_000))
    bench.push(change(1, 5_000))
    bench.agree()
    bench.close()


def test_a_window_has_a_bound_in_bytes_too(tmp_path: pathlib.Path) -> None:
    bench = Bench(tmp_path)
    for i in range(8):
        bench.push(change(i, 250_000))
    bench.core.connecting()
    bench.do(bench.core.connected(0, "2026-11-28T12:00:00Z"))
    bench.received("device_online_ack", {"device_id": "till-1", "timestamp": "2026-11-28T12:00:00Z"})
    assert [data["n"] for event, data in bench.sent if event == "data_update"] == [1, 2, 3, 4]
    bench.close()


def test_a_long_queue_is_on_the_disk_alone(tmp_path: pathlib.Path) -> None:
    bench = Bench(tmp_path)
    for i in range(3000):
        bench.push(change(i))
    assert len(bench.core.window) <= 2 * limits.WINDOW
    bench.restart()
    assert len(bench.core.window) == 0
    assert bench.core.entries == 3000
    bench.close()


def test_the_files_shrink_when_the_queue_is_done(tmp_path: pathlib.Path) -> None:
    bench = Bench(tmp_path)
    for i in range(200):
        bench.push(change(i, 50_000))

    def held() -> int:
        return sum(file.stat().st_size for file in tmp_path.iterdir())

    assert held() > 10_000_000
    bench.disk.queue.execute("DELETE FROM entries")
    while bench.disk.shrink():
        pass
    assert held() < 3_000_000
    bench.close()


def test_a_folder_has_one_program(tmp_path: pathlib.Path) -> None:
    disk = Disk(tmp_path)
    with pytest.raises(tillsync.FolderInUse):
        Disk(tmp_path)
    disk.close()
    Disk(tmp_path).close()


def test_nobody_else_reads_the_token(tmp_path: pathlib.Path) -> None:
    Disk(tmp_path).close()
    for name in ("queue.sqlite", "store.sqlite"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_file_of_another_format_is_refused(tmp_path: pathlib.Path) -> None:
    disk = Disk(tmp_path)
    disk._set_meta(disk.queue, "format", 99)
    disk.close()
    with pytest.raises(tillsync.TillsyncError, match="format 99"):
        Disk(tmp_path)


def test_a_read_goes_through_every_id(tmp_path: pathlib.Path) -> None:
    disk = Disk(tmp_path)
    ids = [-(1 << 63), -1, 0, 1, (1 << 63) - 1]
    for i in ids:
        disk._put(0, "t", i, 1, {"i": i})
    assert [row[0] for row in disk.records("t")] == ids
    assert [row[0] for row in disk.records("t", -1)] == [0, 1, (1 << 63) - 1]
    disk.close()


def offline(folder: pathlib.Path, **more: Any) -> Engine:
    with socket.socket() as taken:  # bound, and does not listen: nobody answers there
        taken.bind(("127.0.0.1", 0))
        return Engine(
            Options([f"http://127.0.0.1:{taken.getsockname()[1]}"], "x.eyJzdWIiOiJ0aWxsLTEifQ.y", folder, **more)
        )


def test_a_disk_that_is_full_fails_the_call_and_nothing_is_queued(tmp_path: pathlib.Path) -> None:
    engine = offline(tmp_path)
    pages = engine.call(lambda: engine.disk.queue.execute("PRAGMA page_count").fetchone()[0]).result()
    engine.call(lambda: engine.disk.queue.execute(f"PRAGMA max_page_count={pages}").fetchone()).result()
    with pytest.raises(sqlite3.OperationalError, match="full"):
        engine.push_many([tillsync.Change("t", {"x": "x" * 100_000})]).result()
    assert engine.status().pending == 0
    engine.call(lambda: engine.disk.queue.execute("PRAGMA max_page_count=1000000").fetchone()).result()
    engine.push_many([tillsync.Change("t", {"x": i}) for i in range(5)]).result()
    assert engine.status().pending == 5
    engine.close()
    again = offline(tmp_path)
    assert again.status().pending == 5
    again.close()


def test_many_changes_are_queued_together_or_not_at_all(tmp_path: pathlib.Path) -> None:
    engine = offline(tmp_path, max_entries=3)
    with pytest.raises(tillsync.QueueFull):
        engine.push_many([tillsync.Change("t", {"x": i}) for i in range(4)]).result()
    with pytest.raises(tillsync.InvalidChange):
        engine.push_many([tillsync.Change("t", {"x": 1}), tillsync.Change("t", {"x": float("nan")})])
    assert engine.status().pending == 0
    engine.push_many([tillsync.Change("t", {"x": i}) for i in range(3)]).result()
    engine.close()
    with pytest.raises(tillsync.Closed):
        engine.push_many([tillsync.Change("t", {"x": 1})]).result()


def test_who_waits_is_told_that_it_was_closed(tmp_path: pathlib.Path) -> None:
    engine = offline(tmp_path)
    waiting = engine.until(lambda status: status.online)
    engine.call(lambda: None).result()
    engine.close()
    with pytest.raises(tillsync.Closed):
        waiting.result(10)
