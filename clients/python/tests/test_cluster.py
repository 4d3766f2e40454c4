"""The library against a real cluster, whose nodes are killed, and programs that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Cluster

import tillsync
from tillsync.core import number_of

HERE = pathlib.Path(__file__).parent
WAIT = 60


def copy_of(till: tillsync.Till, table: str) -> dict[int, Any]:
    return {record.record_id: [record.version, record.data] for record in till.records(table)}


def replay(feed: list[Any]) -> dict[int, Any]:
    records: dict[int, Any] = {}
    for change in feed:
        if change["operation"] == "delete":
            records.pop(change["record_id"], None)
        else:
            records[change["record_id"]] = [change["seq"], change["data"]]
    return records


def has(till: tillsync.Till, seq: int) -> bool:
    return till.until(lambda status: status.cursor is not None and number_of(status.cursor) >= seq, WAIT)


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_three_thousand_sales_made_offline_are_there_once_in_order(
    cluster: Cluster, table: str, tmp_path: pathlib.Path
) -> None:
    with tillsync.Till("http://127.0.0.1:1", cluster.token, tmp_path, device=table) as till:
        till.push_many(tillsync.Change(table, {"i": i}) for i in range(3000))
        assert till.status.pending == 3000
    with cluster.till(tmp_path, table) as till:
        assert till.flush(WAIT)
        feed = cluster.feed(table)
        assert [change["data"]["i"] for change in feed] == list(range(3000))
        assert has(till, feed[-1]["seq"])
        assert copy_of(till, table) == replay(feed)
        assert till._engine.call(lambda: len(till._engine.core.window)).result() <= 64


def test_programs_and_nodes_that_are_killed_lose_and_double_nothing(
    cluster: Cluster, table: str, tmp_path: pathlib.Path
) -> None:
    dice = random.Random(int(os.environ.get("TILLSYNC_SEED", "1")))
    end = time.monotonic() + float(os.environ.get("TILLSYNC_SOAK", "20"))
    stop = threading.Event()
    kills = 0

    def kill_nodes() -> None:
        nonlocal kills
        while not stop.wait(2):
            cluster.kill(random.Random(kills).randrange(3))
            cluster.ready()
            kills += 1

    pushed: list[int] = []
    begin, runs = 0, 0
    killer = threading.Thread(target=kill_nodes)
    killer.start()
    try:
        while time.monotonic() < end or kills < 2:
            command = [HERE / "worker.py", " ".join(cluster.urls), table, tmp_path, table, begin]
            worker = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "TILLSYNC_TOKEN": cluster.token},
            )
            assert worker.stdout is not None
            for count, line in enumerate(worker.stdout):
                pushed.append(int(line))
                if count >= dice.choice([1, 20, 200]) and dice.random() < 0.02:
                    break
            worker.send_signal(signal.SIGKILL)
            rest = worker.stdout.read()
            pushed += [int(line) for line in rest[: rest.rfind("\n") + 1].split()]
            worker.wait()
            runs += 1
            begin = pushed[-1] + 2  # the last one may be on the disk, and was not said
    finally:
        stop.set()
        killer.join()
    with cluster.till(tmp_path, table) as till:
        assert till.flush(WAIT)
        assert list(till.letters()) == []
        feeds = [cluster.feed(table, url) for url in cluster.urls]
        assert feeds[0] == feeds[1] == feeds[2]
        there = [change["data"]["i"] for change in feeds[0]]
        assert there == sorted(set(there)), "twice, or out of order"
        assert set(pushed) <= set(there), "lost"
        assert has(till, feeds[0][-1]["seq"])
        assert copy_of(till, table) == replay(feeds[0])
    print(f"{len(there)} sales, {runs} programs and {kills} nodes killed")
    assert runs > 2


def test_a_queue_that_was_set_back_or_copied(cluster: Cluster, table: str, tmp_path: pathlib.Path) -> None:
    """What had been applied is not applied again, and a copy that went on loses nothing."""
    with tillsync.Till("http://127.0.0.1:1", cluster.token, tmp_path / "a", device=table) as till:
        till.push_many(tillsync.Change(table, {"i": i}) for i in range(1500))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with cluster.till(tmp_path / "a", table) as till:
        till.push_many(tillsync.Change(table, {"i": i}) for i in range(1500, 1510))
        assert till.flush(WAIT)
    with cluster.till(tmp_path / "b", table) as till:
        till.push_many(tillsync.Change(table, {"i": i}) for i in range(2000, 2010))
        assert till.flush(WAIT)
        assert list(till.letters()) == []
    assert [c["data"]["i"] for c in cluster.feed(table)] == [*range(1510), *range(2000, 2010)]


def test_what_is_refused_is_a_letter_and_the_rest_goes_on(cluster: Cluster, table: str, tmp_path: pathlib.Path) -> None:
    with cluster.till(tmp_path, table) as till:
        engine = till._engine
        bad = {"device_id": table, "table_name": table, "record_id": 7, "operation": "insert", "new_data": []}
        for i in range(40):
            if i == 20:  # what the door would not let through
                engine.call(lambda: engine._queue([bad])).result()
            till.insert(table, {"i": i}, i + 100)
        assert till.flush(WAIT)
        (letter,) = till.letters()
        assert (letter.state, letter.error["field"], letter.n) == ("refused", "new_data", 21)
        assert till.status.letters == 1
    with cluster.till(tmp_path, table) as till:
        assert [letter.n for letter in till.letters()] == [21]
        till.resend(21, {"i": 40})
        assert till.flush(WAIT)
        assert list(till.letters()) == []
    assert [c["data"]["i"] for c in cluster.feed(table)] == list(range(41))


def test_the_doors_bounds_are_the_clusters(cluster: Cluster, table: str, tmp_path: pathlib.Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(29):
        deep = {"x": deep}
    with cluster.till(tmp_path, table) as till:
        till.insert(table, {"photo": "x" * (256 * 1024 - 12)})
        till.insert(table, deep)
        till.insert(table, {"big": 9007199254740993, "small": 1.5, "text": "Café\u0000 \U0001f600"})
        till.insert(table, {"i": -1}, -(1 << 63))
        assert till.flush(WAIT)
        assert list(till.letters()) == []
        assert has(till, cluster.feed(table)[-1]["seq"])
        assert {"big": 9007199254740993, "small": 1.5, "text": "Café\u0000 \U0001f600"} in [
            record.data for record in till.records(table)
        ]
        engine = till._engine
        deeper = {
            "device_id": table,
            "table_name": table,
            "record_id": 1,
            "operation": "insert",
            "new_data": {"x": {"x": deep}},
        }
        engine.call(lambda: engine._queue([deeper])).result()
        assert till.flush(WAIT)
        assert [letter.error["error_code"] for letter in till.letters()] == ["2004"]


def test_a_conflict_that_somebody_decides(cluster: Cluster, table: str, tmp_path: pathlib.Path) -> None:
    told: list[str] = []
    with (
        cluster.till(tmp_path, table, listen=lambda kind, _: told.append(kind)) as till,
        cluster.till(tmp_path) as other,
    ):
        till.insert(table, {"by": "till"}, 1)
        assert till.flush(WAIT)
        cluster.until("PUT", f"/sync/policies/{table}", {"policy": "manual"})
        seq = cluster.feed(table)[-1]["seq"]
        assert has(other, seq)
        other.update(table, 1, {"by": "other"}, base_version=seq)
        assert other.flush(WAIT)
        till.update(table, 1, {"by": "till again"}, base_version=seq)
        till.insert(table, {"by": "till"}, 2)
        assert till.flush(WAIT)
        (letter,) = till.letters()
        assert letter.state == "conflict"
        with pytest.raises(ValueError, match="open conflict"):
            till.resend(letter.n)
        path = f"/sync/conflicts/{letter.error['conflict_id']}/resolve"
        cluster.until("POST", path, {"resolved_data": {"by": "both"}})
        assert till.until(lambda status: status.letters == 0, WAIT)
        assert {"conflict", "resolved"} <= set(told)
        assert has(till, cluster.feed(table)[-1]["seq"])
        found = till.get(table, 1)
        assert found is not None and found.data == {"by": "both"}


def test_two_tills_have_the_same(cluster: Cluster, table: str, tmp_path: pathlib.Path) -> None:
    with cluster.till(tmp_path) as one, cluster.till(tmp_path) as two:
        assert one.ready(WAIT) and two.ready(WAIT)
        sale = one.insert(table, {"price": 1})
        one.update(table, sale, {"price": 2})
        gone = two.insert(table, {"price": 3})
        two.delete(table, gone)
        assert one.flush(WAIT) and two.flush(WAIT)
        feed = cluster.feed(table)
        assert has(one, feed[-1]["seq"]) and has(two, feed[-1]["seq"])
        assert copy_of(one, table) == copy_of(two, table) == replay(feed)
        assert table in one.tables() and one.get(table, gone) is None
        one.sync([table])
        one.sync()
        assert one.until(lambda status: not status.syncing, WAIT)
        assert copy_of(one, table) == replay(feed)


def test_a_cursor_of_another_history_is_a_full_sync(cluster: Cluster, table: str, tmp_path: pathlib.Path) -> None:
    with cluster.till(tmp_path, table) as till:
        till.insert(table, {"i": 1}, 1)
        assert till.flush(WAIT) and has(till, cluster.feed(table)[-1]["seq"])
        disk = till._engine.disk
        till._engine.call(lambda: disk._put(disk._copy(), "gone", 1, 1, {})).result()
        till._engine.call(lambda: disk._set_meta(disk.store, "cursor", "1.1")).result()
    with cluster.till(tmp_path, table) as till:
        assert till.until(lambda status: status.cursor not in (None, "1.1"), WAIT)
        assert "gone" not in till.tables()
        assert copy_of(till, table) == replay(cluster.feed(table))


def test_a_disk_that_fails_in_a_session_is_begun_anew_from(
    cluster: Cluster, table: str, tmp_path: pathlib.Path
) -> None:
    told: list[str] = []
    with cluster.till(tmp_path, table, listen=lambda kind, _: told.append(kind)) as till:
        assert till.ready(WAIT)
        store = till._engine.disk.store
        pages = till._engine.call(lambda: store.execute("PRAGMA page_count").fetchone()[0]).result()
        till._engine.call(lambda: store.execute(f"PRAGMA max_page_count={pages}").fetchone()).result()
        till.push_many(tillsync.Change(table, {"photo": f"{i}" * 50_000}) for i in range(5))
        eventually(lambda: "failed" in told)
        till._engine.call(lambda: store.execute("PRAGMA max_page_count=1000000").fetchone()).result()
        assert till.flush(WAIT)
        feed = cluster.feed(table)
        assert len(feed) == 5 and has(till, feed[-1]["seq"])
        assert copy_of(till, table) == replay(feed)


def test_a_token_that_is_refused_is_asked_for_anew(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    asked: list[Any] = []

    def new_token(error: dict[str, Any]) -> str:
        asked.append(error["error_code"])
        return cluster.token

    bad = cluster.token[:-4] + "AAAA"
    with tillsync.Till(cluster.urls, bad, tmp_path, device="py-token", new_token=new_token) as till:
        assert till.ready(WAIT)
    assert asked == ["3001"]
    with tillsync.Till(cluster.urls, bad, tmp_path, device="py-token") as till:
        assert till.until(lambda status: status.refused is not None, WAIT)
        till.use_token(cluster.token)
        assert till.until(lambda status: status.online, WAIT)


@contextlib.contextmanager
def approving(cluster: Cluster, device: str) -> Iterator[Callable[[str], None]]:
    threads: list[threading.Thread] = []

    def show(code: str) -> None:
        body = {"class": "sales_assistant", "device_id": device}
        thread = threading.Thread(target=cluster.until, args=("POST", f"/device/pairings/{code}/approve", body))
        thread.start()
        threads.append(thread)

    yield show
    for thread in threads:
        thread.join()


def test_a_device_is_paired_renews_its_token_and_loses_a_table(
    cluster: Cluster, table: str, tmp_path: pathlib.Path
) -> None:
    device = f"py-{uuid.uuid4().hex[:8]}"
    shown: list[str] = []
    with approving(cluster, device) as approve:

        def show(code: str) -> None:
            shown.append(code)
            approve(code)

        token = tillsync.pair(cluster.urls, tmp_path, show=show, name="Till", timeout=WAIT)
    assert len(shown) == 1 and len(shown[0].replace("-", "")) == 8
    with tillsync.Till(cluster.urls, folder=tmp_path) as till:
        assert till.device == device
        till.insert(table, {"i": 1}, 1)
        assert till.flush(WAIT) and has(till, cluster.feed(table)[-1]["seq"])
        core, engine = till._engine.core, till._engine
        time.sleep(1)  # a token's times are in seconds: one of the same second is the same token

        def is_due() -> None:
            core.renew_at = 0.0
            engine.wake.set()

        engine.call(is_due).result()
        eventually(lambda: core.token != token)
        renewed = core.token
        cluster.until("PUT", "/access/sales_assistant", {"tables": {table: "none"}})
        try:
            eventually(lambda: table not in till.tables())
            till.insert(table, {"i": 2}, 2)
            assert till.flush(WAIT)
            (letter,) = till.letters()
            assert letter.error["error_code"] == "3003"
            cluster.until("POST", f"/data/{table}/3", {"new_data": {"i": 3}, "operation": "insert"})
            other = cluster.until("POST", f"/data/{table}_open/1", {"new_data": {}, "operation": "insert"})
            assert has(till, other["seq"])
        finally:
            cluster.until("PUT", "/access/sales_assistant", {"tables": {}})
        eventually(lambda: copy_of(till, table) == replay(cluster.feed(table)))
        assert list(copy_of(till, table)) == [1, 3]
    with tillsync.Till(cluster.urls, folder=tmp_path) as till:
        assert till._engine.core.token == renewed
        till.resend(letter.n)
        assert till.flush(WAIT)
        assert till.status.letters == 0
        cluster.until("POST", f"/device/{device}/suspend", {})
        assert till.until(lambda status: status.refused is not None, WAIT)
        till.insert(table, {"i": 4}, 4)
        assert (till.status.pending, till.status.letters) == (1, 0)
        cluster.until("POST", f"/device/{device}/resume", {})
        till.use_token(renewed)
        assert till.flush(WAIT)
        assert till.status.letters == 0


def test_a_pairing_that_is_refused(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    def refuse(code: str) -> None:
        cluster.until("POST", f"/device/pairings/{code}/refuse", {})

    with pytest.raises(tillsync.PairingEnded, match="refused"):
        tillsync.pair(cluster.urls, tmp_path, show=refuse, timeout=WAIT)
    with pytest.raises(ValueError, match="pair the device first"):
        tillsync.Till(cluster.urls, folder=tmp_path)


def test_a_private_ca(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", *made.split(), *names], check=True, capture_output=True)
    command = [
        sys.executable,
        HERE.parents[2] / "tests" / "clients" / "docs" / "proxy.py",
        "tls",
        cluster.url,
        cert,
        key,
    ]
    proxy = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)
    try:
        assert proxy.stdout is not None
        url = f"https://localhost:{int(proxy.stdout.readline())}"
        with tillsync.Till(url, cluster.token, tmp_path, device="py-ca", ca=cert) as till:
            assert till.ready(WAIT)
        told: list[str] = []
        listen = lambda kind, data: told.append(str(data.get("error")))  # noqa: E731
        with tillsync.Till(url, cluster.token, tmp_path / "without", device="py-ca", listen=listen) as till:
            eventually(lambda: any("CERTIFICATE_VERIFY_FAILED" in error for error in told))
            assert till.status.cursor is None
    finally:
        proxy.kill()
        proxy.wait()


def test_asyncio(cluster: Cluster, table: str, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        async with tillsync.Client(cluster.urls, cluster.token, tmp_path, device=table) as till:
            assert await till.ready(WAIT)
            sales = await asyncio.gather(*(till.insert(table, {"i": i}) for i in range(50)))
            assert await till.flush(WAIT)
            feed = cluster.feed(table)
            assert sorted(change["record_id"] for change in feed) == sorted(sales)
            assert await till.until(lambda status: number_of(status.cursor or ".0") >= feed[-1]["seq"], WAIT)
            assert {record.record_id async for record in till.records(table)} == set(sales)
            await till.update(table, sales[0], {"i": "new"})
            await till.delete(table, sales[1])
            assert await till.flush(WAIT)
            assert [letter async for letter in till.letters()] == []
            assert not await till.until(lambda status: status.pending == 99, 0.05)

    asyncio.run(main())


def test_the_readme_as_written(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    """Its programs in their order; the three lines alone sell, in a program that ends at once."""
    readme = (HERE.parent / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks[0].strip().splitlines()) == 3
    fill = lambda text: text.replace("http://127.0.0.1:5000", cluster.url).replace("TOKEN", cluster.token)  # noqa: E731
    first, read, letters, aio = map(fill, blocks)
    programs = [first + "print('sale', sale)", first + read, first + letters, aio]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TILLSYNC")}
    said = [
        subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout
        for program in programs
    ]
    sale = int(said[0].split()[1])
    assert cluster.until("GET", f"/data/sales/{sale}")["data"] == {"item": "Café", "price": 9.5}
    assert str(sale) in said[1] and "pending=0" in said[1]
