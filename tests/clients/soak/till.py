"""A till of the soak: the class of docs/clients.md over /ws, or over python-socketio with the library's reconnection on.

usage: TOKEN=… till.py CLASSES LIBRARY TRANSPORTS URL DEVICE NAME FOLDER
CLASSES is the folder with the page's program. Commands come by standard input, states go to standard output.
"""
import asyncio
import contextlib
import json
import os
import random
import sys
import traceback

classes, library, transports, url, device, name, folder = sys.argv[1:]
sys.path.insert(0, classes)
from client import Client  # noqa: E402

token = os.environ["TOKEN"]
notes = open(f"{folder}/{name}.notes", "ab", buffering=0)


def note(*line):
    notes.write(json.dumps(line).encode() + b"\n")


def key_of(change):
    return f"{change['table_name']}/{change['record_id']}"


class Till(Client):
    """What the class does is noted from outside, so that a fault of the class is one that the checker sees."""

    async def come_online(self):
        note("online", int(self.cursor.rpartition(".")[2]) if self.cursor else None)
        await super().come_online()

    async def hear(self, event, data):
        if event == "data_update":
            note("told", data["seq"], key_of(data))
        elif event == "sync_response":
            note("page", [[key_of(change), change["seq"]] for change in data["changes"]])
        elif event in ("error", "sync_error"):
            note("error", data)
        await super().hear(event, data)


EVENTS = ("device_online_ack", "acknowledged", "data_update", "sync_response", "sync_conflict", "error", "sync_error")


class Frames:
    """What the class needs of a WebSocket, over Socket.IO."""

    def __init__(self, till):
        self.till = till

    async def send(self, text):
        frame = json.loads(text)
        await self.till.sio.emit(frame["event"], frame["data"])

    async def close(self):
        self.till.online = False
        await self.till.sio.disconnect()
        self.till.ended.set()


class SocketIoTill(Till):
    """The same queue and store over python-socketio: only the connection is another."""

    async def run(self):
        import socketio
        self.delivering = None
        self.sio = socketio.AsyncClient(reconnection=True, reconnection_delay=0.5, reconnection_delay_max=3)
        self.socket, self.ended = Frames(self), asyncio.Event()
        self.sio.on("connect", self.connected)
        self.sio.on("disconnect", self.disconnected)
        for event in EVENTS:
            self.sio.on(event, self.hearing(event))
        more = {} if library == "4" else {"auth": {"token": token}}
        while True:
            self.ended.clear()
            try:
                await self.sio.connect(url, headers={"Authorization": f"Bearer {token}"},
                                       transports=None if "+" in transports else [transports], **more)
                await self.ended.wait()  # only the class itself sets it: all other ends are the library's to mend
            except socketio.exceptions.ConnectionError as error:
                note("not_connected", str(error))
            await asyncio.sleep(max(self.retry_after, 1))
            self.retry_after = 0

    def hearing(self, event):
        async def hear(data):
            try:
                await self.hear(event, data)
            except ConnectionError as error:
                note("gap", str(error))
                await self.socket.close()
        return hear

    async def connected(self):
        self.flying, self.waiting, self.going_back, self.renew, self.fresh = {}, {}, False, False, None
        await self.come_online()
        if self.delivering:
            self.delivering.cancel()
        self.delivering = asyncio.ensure_future(self.deliver())

    async def disconnected(self, *why):
        note("disconnected", *map(str, why))
        self.online = False
        if self.delivering:
            self.delivering.cancel()



def pushed():
    """Its sales go on where the last run of this program ended."""
    with open(f"{folder}/{name}.notes", "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry[0] == "intent":
                    yield entry[1] + 1


async def main():
    note("start", f"python {library}", transports)
    till = (Till if library == "ws" else SocketIoTill)(url, token, device, f"{folder}/{name}")
    next_sale = max(pushed(), default=0)
    running = asyncio.ensure_future(till.run())

    async def sell(count):
        nonlocal next_sale
        for _ in range(count):
            note("intent", next_sale)  # if it is killed in between, the sale may be there or not
            await till.push("sales", random.randrange(1 << 53), {"till": name, "i": next_sale}, operation="insert")
            note("push", next_sale)
            next_sale += 1

    async def stock(record, value):
        await till.push("stock", record, {"by": name, "value": value})

    async def sync(tables=None):
        till.request_sync(**({"requested_tables": tables} if tables else {}))

    async def end():
        store = {f"{table}/{record}": [r["version"], r["data"]] for (table, record), r in till.records.items()}
        with open(f"{folder}/{name}.end", "w") as file:
            json.dump({"queue": len(till.queue), "dead": len(till.dead), "store": store}, file)
        sys.stdout.flush()
        os._exit(0)

    async def states():
        while True:
            print(json.dumps({"online": till.online, "queue": len(till.queue), "dead": len(till.dead), "seq": till.seq,
                              "cursor": till.cursor, "wanted": len(till.wanted)}), flush=True)
            await asyncio.sleep(0.5)

    asyncio.ensure_future(states())
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    commands = {"sell": sell, "stock": stock, "sync": sync, "end": end}
    while line := await reader.readline():
        command, *args = json.loads(line)
        await commands[command](*args)
        if running.done():
            traceback.print_exception(running.exception())
            os._exit(1)
    os._exit(0)


asyncio.run(main())
