"""The vectors that every library runs: their README says what the steps mean."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from bench import WALL, Bench

VECTORS = pathlib.Path(__file__).parents[2] / "vectors"
INPUTS = {"push", "connected", "received", "disconnected", "tick", "sync", "forget", "resend", "new_token", "restart"}
CHECKS = {
    "send",
    "close",
    "connect_at",
    "tell",
    "queue",
    "queue_is",
    "letters",
    "store",
    "cursor",
    "owed",
    "token",
    "refused",
}


def cases() -> list[dict[str, Any]]:
    files = sorted(VECTORS.glob("*.json"))
    return [{**case, "file": path.stem} for path in files for case in json.loads(path.read_text())]


def act(bench: Bench, step: dict[str, Any]) -> None:
    core = bench.core
    (do,) = INPUTS & step.keys()
    what = step[do]
    if do == "push":
        bench.push(what)
    elif do == "connected":
        core.connecting()
        bench.do(core.connected(bench.now, WALL))
    elif do == "received":
        bench.received(*what)
    elif do == "disconnected":
        bench.do(core.disconnected(bench.now, what))
    elif do == "tick":
        bench.do(core.tick(bench.now))
    elif do == "sync":
        bench.do(core.sync(None if what is None else tuple(what), bench.now))
    elif do == "forget":
        found = bench.disk.letter(what)
        assert found is not None
        bench.disk.queue.execute("DELETE FROM letters WHERE n = ?", (what,))
        core.forgotten(what, found[1])
    elif do == "resend":
        bench.resend(what["n"], what["new_data"])
    elif do == "new_token":
        bench.do(core.new_token(what, bench.now))
    elif do == "restart":
        bench.restart(step.get("given"))


def check(bench: Bench, step: dict[str, Any]) -> None:
    core = bench.core
    assert bench.sent == step.get("send", [])
    assert bench.closes == step.get("close", False)
    if "connect_at" in step:
        assert bench.connect_at == step["connect_at"]
    told = step.get("tell", [])
    assert [kind for kind, _ in bench.told] == [kind for kind, _ in told]
    for (_, data), (_, wanted) in zip(bench.told, told, strict=True):
        assert {key: data.get(key) for key in wanted} == wanted
    found: dict[str, Callable[[], Any]] = {
        "queue": bench.queue,
        "queue_is": lambda: {"id": core.queue_id, "last": core.last, "sent": core.sent},
        "letters": bench.letters,
        "store": bench.records,
        "cursor": lambda: core.cursor,
        "owed": lambda: list(core.owed),
        "token": lambda: core.token,
        "refused": lambda: None if core.refused is None else core.refused["error_code"],
    }
    for name, value in found.items():
        if name in step:
            assert value() == step[name], name


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case['file']}: {case['name']}")
def test_vector(case: dict[str, Any], tmp_path: pathlib.Path) -> None:
    assert case.keys() <= {"file", "name", "rule", "disk", "token", "steps"}
    bench = Bench(tmp_path, case.get("token", "token-1"), case.get("disk"))
    try:
        for at, step in enumerate(case["steps"]):
            assert step.keys() <= INPUTS | CHECKS | {"at", "given"}
            bench.now = step.get("at", bench.now)
            bench.sent, bench.told, bench.closes = [], [], 0
            try:
                act(bench, step)
                check(bench, step)
                bench.agree()
            except AssertionError as error:
                raise AssertionError(f"step {at}: {json.dumps(step)[:400]}\n{error}") from error
    finally:
        bench.close()


def test_every_code_has_a_case() -> None:
    codes = (VECTORS.parents[1] / "docs" / "errors.md").read_text()
    listed = {
        line.split("|")[1].strip()
        for line in codes.splitlines()
        if line.startswith(("| 1", "| 2", "| 3", "| 4", "| 5"))
    }
    told = set()
    for case in cases():
        for step in case["steps"]:
            for answer in (step.get("received", [None, {}])[1], step.get("disconnected")):
                if answer:
                    told.add(answer.get("error_code"))
    assert listed and listed <= told
