"""python-socketio 4 or 5 as it is used: reconnecting by itself. TOKEN=… reconnect.py PART URL [FOLDER]; parts as in reconnect.mjs."""
import importlib.metadata
import os
import pathlib
import sys
import threading
import time
import uuid

import socketio

TIMEOUT = 60
# The library starts a thread for each answer. On a machine that is busy with something else it does not come to the pings
# behind them for 9 s, and gives the connection up: then it comes back, and what has no answer is sent again.
UPDATES = 1_500
VERSION = int(importlib.metadata.version("python-socketio").split(".")[0])
TRANSPORTS = {"websocket": ["websocket"], "polling": ["polling"], "upgrade": None}
PART, URL, FOLDER = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3] if len(sys.argv) > 3 else ".")
TOKEN = os.environ["TOKEN"]


def until(what, holds):
    end = time.monotonic() + TIMEOUT
    while not holds():
        assert time.monotonic() < end, f"never: {what()}"
        time.sleep(0.05)


class Client:
    def __init__(self, kind):
        self.name, self.id = f"python-socketio {VERSION}, {kind}", f"py{VERSION}-{uuid.uuid4().hex[:8]}"
        self.sio = socketio.Client(reconnection_delay=0.3, reconnection_delay_max=1)
        self.connects, self.errors, self.on_return = 0, [], lambda: None
        self.sio.on("connect", self.connected)
        self.sio.on("error", self.errors.append)
        # Old clients have no auth payload.
        who = {"auth": {"token": TOKEN}} if VERSION >= 5 else {"headers": {"Authorization": f"Bearer {TOKEN}"}}
        self.sio.connect(URL, transports=TRANSPORTS[kind], **who)
        until(lambda: f"{self.name} is in", lambda: self.connects == 1)

    def connected(self):
        self.connects += 1
        if self.connects > 1:
            self.on_return()

    def call(self, event, data):
        done, answers = threading.Event(), []
        self.sio.emit(event, data, callback=lambda answer: (answers.append(answer), done.set()))
        assert done.wait(TIMEOUT), f"{self.name}: no answer to {event}"
        return answers[0]


def burst(kind):
    it = Client(kind)
    it.call("device_online", {"device_id": it.id, "subscribe": []})
    table, answers = f"burst_{uuid.uuid4().hex[:8]}", {}

    def send():
        for i in (i for i in range(UPDATES) if i not in answers):
            update = {"device_id": it.id, "table_name": table, "record_id": i, "operation": "insert", "new_data": {"i": i}}
            it.sio.emit("data_update", {**update, "request_id": f"r{i}"}, callback=lambda a, i=i: answers.setdefault(i, a))

    it.on_return = send
    send()
    until(lambda: f"{it.name}: {len(answers)} are answered, {it.errors[:1]}", lambda: len(answers) == UPDATES)
    # The library calls back in threads of its own, in any order.
    in_order = [answers[i] for i in range(UPDATES)]
    assert [a.get("request_id") for a in in_order] == [f"r{i}" for i in range(UPDATES)], it.name
    assert all(a["seq"] < b["seq"] for a, b in zip(in_order, in_order[1:])), it.name
    assert it.errors == [], (it.name, it.errors[:3])
    it.on_return = lambda: None
    connects = it.connects
    named = {"device_id": it.id, "event_type": "photo", "request_id": "big"}
    for jpeg in ("x" * 1_200_000, "x" * 3_500_000, b"\1\2\3"):
        refused = it.call("critical_event", {**named, "payload": {"jpeg": jpeg}})
        assert (refused["error_code"], refused["event"], refused["request_id"]) == ("2004", "critical_event", "big")
    assert it.call("heartbeat", {"device_id": it.id})["device_id"] == it.id
    assert it.connects == connects, it.name
    it.sio.disconnect()


def restart():
    clients = [Client(kind) for kind in TRANSPORTS]
    for it in clients:
        it.call("device_online", {"device_id": it.id, "subscribe": []})
    (FOLDER / f"py{VERSION}.ready").touch()
    until(lambda: "the restart is over", (FOLDER / "go").exists)
    for it in clients:
        until(lambda: f"{it.name} is back", lambda: it.connects > 1 and it.sio.connected)
        answer = it.call("data_update", {"device_id": it.id, "table_name": "restart", "record_id": 1, "new_data": {}})
        assert "seq" in answer, (it.name, answer)
        it.sio.disconnect()


if PART == "burst":
    # One after the other: together they would wait for Python's one lock, and miss pings for want of it.
    for kind in TRANSPORTS:
        burst(kind)
elif PART == "restart":
    restart()
else:
    raise SystemExit(f"no part {PART}")
print(f"python-socketio {VERSION}, {PART}: ok", flush=True)
# Threads of the library may still wait for their connections.
os._exit(0)
