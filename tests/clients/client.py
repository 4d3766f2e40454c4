"""python-socketio against a running cluster: TOKEN=… client.py URL URL. Exits non-zero with what did not hold."""
import os
import queue
import sys
import uuid

import socketio

TIMEOUT = 10
TRANSPORTS = {"polling": ["polling"], "websocket": ["websocket"], "upgrade": None}


class Device:
    """One device on one connection; its events by name, in the order they came."""

    def __init__(self, name, url, token, transports):
        self.id, self.events = f"{name}-{uuid.uuid4().hex[:8]}", queue.Queue()
        self.sio = socketio.Client(reconnection=False)
        self.sio.on("*", lambda event, data=None: self.events.put((event, data)))
        self.sio.connect(url, auth={"token": token}, transports=transports, wait_timeout=TIMEOUT)

    def wait(self, event, match=lambda data: True):
        while True:
            name, data = self.events.get(timeout=TIMEOUT)
            if name == event and match(data):
                return data
            assert name != "error", f"error while waiting for {event}: {data}"

    def register(self):
        self.sio.emit("device_online", {"device_id": self.id, "priority": 20, "capabilities": ["sync"]})
        ack = self.wait("device_online_ack", lambda d: d["device_id"] == self.id)
        assert ack["role"] in ("client", "master"), ack


def push_and_hear(kind, urls, token):
    a, b = (Device(f"py-{kind}-{i}", url, token, TRANSPORTS[kind]) for i, url in enumerate(urls))
    try:
        a.register()
        b.register()
        table, acks = f"py_{uuid.uuid4().hex[:8]}", queue.Queue()
        for n in range(20):
            update = {"device_id": a.id, "table_name": table, "record_id": n, "operation": "insert",
                      "new_data": {"name": "Café ☕", "price": 9.99, "n": n}, "request_id": f"r{n}"}
            a.sio.emit("data_update", update, callback=acks.put)
        answers = [acks.get(timeout=TIMEOUT) for _ in range(20)]
        assert [x["request_id"] for x in answers] == [f"r{n}" for n in range(20)], answers
        assert len({x["seq"] for x in answers}) == 20, answers
        for device in (a, b):
            heard = [device.wait("data_update", lambda d: d["table_name"] == table) for _ in range(20)]
            assert [x["record_id"] for x in heard] == list(range(20)), heard
            assert [x["seq"] for x in heard] == [x["seq"] for x in answers], heard
            assert heard[3]["new_data"] == {"name": "Café ☕", "price": 9.99, "n": 3}, heard[3]
            assert heard[3]["device_id"] == a.id, heard[3]
    finally:
        a.sio.disconnect()
        b.sio.disconnect()


def refused_without_a_token(url):
    for token in (None, "wrong"):
        sio = socketio.Client(reconnection=False)
        try:
            sio.connect(url, auth={"token": token} if token else None, wait_timeout=TIMEOUT)
        except socketio.exceptions.ConnectionError:
            continue
        finally:
            sio.disconnect()
        raise AssertionError(f"connected with the token {token!r}")


def main():
    urls, token = sys.argv[1:3], os.environ["TOKEN"]
    for kind in TRANSPORTS:
        push_and_hear(kind, urls, token)
        print(f"python-socketio, {kind}: ok")
    refused_without_a_token(urls[0])
    print("python-socketio, no token: refused, ok")


if __name__ == "__main__":
    main()
