"""Real client libraries against a cluster while sockets are cut, nodes killed and clients paused. See README.md beside it.

usage: soak.py TILLSYNC WORK [--minutes M] [--seed S]    (run.sh fetches the libraries, and calls it)
"""
import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request

from checker import check

HERE = pathlib.Path(__file__).parent
PAGE = HERE.parent.parent.parent / "docs" / "clients.md"
SETTLE = 60  # seconds without progress after the last fault that mean that somebody is stuck
# name, program, library, transports in turn, and the device if it is another's
TILLS = [
    ("js2", "mjs", "2", ["polling+websocket", "websocket", "polling"], None),
    ("js3", "mjs", "3", ["polling", "polling+websocket", "websocket"], None),
    ("js4", "mjs", "4", ["websocket", "polling", "polling+websocket"], None),
    ("py4", "py", "4", ["polling+websocket", "polling", "websocket"], None),
    ("py5", "py", "5", ["websocket", "polling+websocket", "polling"], None),
    ("ws", "py", "ws", ["websocket"], None),
    ("twin", "py", "ws", ["websocket"], "js4"),  # a second session of js4's device, with a queue of its own
]


def say(*words):
    print(f"{time.monotonic() - BEGUN:7.1f}", *words, flush=True)


BEGUN = time.monotonic()


class Link:
    """A TCP proxy between one client and one node; the node can be changed, connections cut, bytes held back."""

    def __init__(self, ports, node):
        self.ports, self.node, self.pairs, self.flowing = ports, node, set(), asyncio.Event()
        self.flowing.set()

    async def start(self):
        self.server = await asyncio.start_server(self.relay, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def relay(self, reader, writer):
        up = None
        for _ in self.ports:  # a balancer takes the next node if one does not answer, and stays with it
            try:
                up = await asyncio.open_connection("127.0.0.1", self.ports[self.node])
                break
            except OSError:
                self.node = (self.node + 1) % len(self.ports)
        if up is None:
            return writer.transport.abort()
        pair = (writer, up[1])
        self.pairs.add(pair)
        with contextlib.suppress(asyncio.CancelledError):  # the soak is over
            await asyncio.gather(self.pump(reader, up[1]), self.pump(up[0], writer))
        self.pairs.discard(pair)

    async def pump(self, reader, writer):
        try:
            while data := await reader.read(65536):
                await self.flowing.wait()
                writer.write(data)
                await writer.drain()
            writer.close()
        except OSError:
            writer.transport.abort()

    def cut(self, reset):
        for pair in list(self.pairs):
            for writer in pair:
                if reset:
                    with contextlib.suppress(OSError):  # it is closed already
                        raw = writer.get_extra_info("socket")
                        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    writer.transport.abort()
                else:
                    writer.close()


class Till:
    def __init__(self, soak, name, program, library, transports, device):
        self.soak, self.name, self.program, self.library, self.transports = soak, name, program, library, transports
        self.device = f"till-{device or name}"
        self.turn, self.state, self.process, self.paused, self.away = 0, {}, None, False, False

    async def start(self):
        transports = self.transports[self.turn % len(self.transports)]
        self.turn += 1
        work = self.soak.work
        if self.program == "mjs":
            command = ["node", HERE / "till.mjs", work / f"client{self.library}.mjs"]
        else:
            command = [HERE / (".venv4" if self.library == "4" else ".venv5") / "bin/python", HERE / "till.py", work]
        command += [self.library, transports, f"http://127.0.0.1:{self.link.port}", self.device, self.name, work]
        self.process = await asyncio.create_subprocess_exec(
            *map(str, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(work / f"{self.name}.log", "ab"),
            env={**os.environ, "TOKEN": self.soak.token}, limit=1 << 20)
        self.reading = asyncio.create_task(self.read(self.process))

    async def read(self, process):
        while line := await process.stdout.readline():
            self.state = json.loads(line)
            self.heard = time.monotonic()
        if process is self.process and not self.away:
            self.away = True
            said = (self.soak.work / f"{self.name}.log").read_text(errors="replace").splitlines()[-20:]
            self.soak.failures.append("\n     ".join([f"{self.name}: its program ended by itself, and said last:", *said]))

    def tell(self, *command):
        if not self.away:
            self.process.stdin.write(json.dumps(command).encode() + b"\n")

    async def kill(self):
        if self.away:
            return  # it ended by itself, which is a finding already
        self.away = True
        self.process.kill()
        await self.process.wait()
        self.away = False
        await self.start()

    def notes(self):
        path = self.soak.work / f"{self.name}.notes"
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                yield json.loads(line)
            except ValueError:
                pass  # the client was killed while it wrote

    def end(self):
        path = self.soak.work / f"{self.name}.end"
        return json.loads(path.read_text()) if path.exists() else None


class Soak:
    def __init__(self, options):
        self.options, self.work, self.dice = options, options.work, random.Random(options.seed)
        self.failures, self.did, self.killing = [], {}, None

    # -- the cluster

    async def start_cluster(self):
        for _ in range(5):
            port = random.randrange(10000, 30000)
            self.ports, self.data = [port, port + 1, port + 2], self.work / f"data-{port}"
            self.dev = subprocess.Popen([self.options.tillsync, "dev", "--data", self.data, "--port", str(port)],
                                        stdin=subprocess.DEVNULL, stdout=open(self.work / "dev.log", "w"), stderr=subprocess.STDOUT)
            while self.dev.poll() is None:
                if "Tillsync runs" in (self.work / "dev.log").read_text():
                    self.token = (self.data / "admin.token").read_text().strip()
                    return
                await asyncio.sleep(0.1)
        sys.exit((self.work / "dev.log").read_text())

    def rest(self, node, path):
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports[node]}{path}", headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def feed(self, node):
        changes, cursor = [], ""
        while True:
            page = self.rest(node, f"/sync/changes?limit=1000{cursor}")
            changes += page["changes"]
            if not page["has_more"]:
                return changes
            cursor = f"&cursor={page['cursor']}"

    # -- what is done to it

    async def node_ends(self, how):
        """SIGKILL, or a restart in good order; `tillsync dev` starts it again. One at a time."""
        node = self.dice.randrange(3)
        pid = int((self.data / f"node-{node + 1}" / "pid").read_text())
        os.kill(pid, how)
        say(how.name, "node", node + 1)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            await asyncio.sleep(0.2)
            try:
                if int((self.data / f"node-{node + 1}" / "pid").read_text()) != pid:
                    await asyncio.to_thread(self.rest, node, "/readyz")
                    break
            except (OSError, ValueError):
                continue
        else:
            self.failures.append(f"node {node + 1} did not come back after {how.name}")
        await asyncio.sleep(5)  # dev gives a node up that ends within five seconds of its start, again and again

    async def nodes(self):
        while True:
            await asyncio.sleep(self.dice.uniform(2, 8))
            self.count("node ends")
            await self.node_ends(self.dice.choice([signal.SIGKILL, signal.SIGTERM]))

    async def faults(self):
        """Each kind comes equally often; bursts and kills of clients go round, so that each library has its share."""
        turns = {"burst": 0, "client killed": 0}
        while True:
            kinds = ["cut", "reset", "moved", "stalled", "client stopped", "burst", "client killed", "sync", "sync of a table"]
            self.dice.shuffle(kinds)
            for kind in kinds:
                till = self.dice.choice(self.tills)
                if kind in turns:
                    till = self.tills[turns[kind] % len(self.tills)]
                    turns[kind] += 1
                self.count(kind)
                say(kind, till.name)
                if kind in ("cut", "reset"):
                    till.link.cut(kind == "reset")
                elif kind == "moved":
                    till.link.node = self.dice.randrange(3)
                    till.link.cut(True)
                elif kind == "stalled":
                    asyncio.create_task(self.stall(till, self.dice.uniform(1, 8)))
                elif kind == "client stopped":
                    asyncio.create_task(self.stop(till, self.dice.choice([2, 5, 12])))
                elif kind == "burst":
                    # Made while it is away: the link is held for as long as that takes.
                    till.link.flowing.clear()
                    till.tell("sell", 3000)
                    asyncio.create_task(self.release(till, 2))
                elif kind == "client killed":
                    if not till.paused:
                        # Shielded: if the run ended between its death and its new start, nobody would start it again.
                        self.killing = asyncio.create_task(till.kill())
                        await asyncio.shield(self.killing)
                elif kind == "sync":
                    till.tell("sync")
                elif kind == "sync of a table":
                    till.tell("sync", ["stock"])
                await asyncio.sleep(self.dice.uniform(0.3, self.options.pace))

    async def stall(self, till, seconds):
        till.link.flowing.clear()
        await self.release(till, seconds)

    async def release(self, till, seconds):
        await asyncio.sleep(seconds)
        till.link.flowing.set()

    async def stop(self, till, seconds):
        if till.paused or till.away:
            return
        till.paused, process = True, till.process
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        process.send_signal(signal.SIGCONT)
        till.paused = False

    async def trade(self):
        """Each till sells all the time, and all change the same few records of the stock."""
        value = 0
        while True:
            for till in self.tills:
                till.tell("sell", 1)
                value += 1
                till.tell("stock", self.dice.randrange(20), value)
            await asyncio.sleep(self.options.every)

    def count(self, kind):
        self.did[kind] = self.did.get(kind, 0) + 1

    # -- the end

    @staticmethod
    def in_step(till, heads):
        state = till.state
        return state.get("online") and not state["queue"] and not state["wanted"] and state["seq"] in heads and state["cursor"]

    async def settled(self):
        """All nodes at one head, and every client there with nothing left to send."""
        end, shown, least, heads = time.monotonic() + SETTLE, time.monotonic(), None, set()
        while time.monotonic() < end:
            await asyncio.sleep(0.5)
            if any(till.away for till in self.tills):
                return False
            left = sum(t.state.get("queue", 0) for t in self.tills)
            if least is None or left < least:
                least, end = left, time.monotonic() + SETTLE
            if time.monotonic() > shown + 10:
                shown = time.monotonic()
                say("not in step:", ", ".join(f"{t.name} {t.state}" for t in self.tills if not self.in_step(t, heads)))
            try:
                heads = {(await asyncio.to_thread(self.rest, node, "/system/cluster"))["head_seq"] for node in range(3)}
            except (OSError, urllib.error.URLError):
                continue
            if len(heads) == 1 and all(self.in_step(till, heads) for till in self.tills):
                return True
        for till in self.tills:
            last = [note for note in till.notes() if note[0] in ("start", "online", "disconnected", "not_connected", "final", "error")][-3:]
            say(f"{till.name}: {till.state}; last notes {last}")
        return False

    async def run(self):
        programs(self.work)
        await self.start_cluster()
        say("cluster at", self.ports, "in", self.work)
        self.tills = [Till(self, *row) for row in TILLS]
        for place, till in enumerate(self.tills):
            till.link = Link(self.ports, place % 3)
            await till.link.start()
            await till.start()
        tasks = [asyncio.create_task(task) for task in (self.trade(), self.faults(), self.nodes())]
        done, _ = await asyncio.wait(tasks, timeout=self.options.minutes * 60, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.killing:
            await self.killing
        say("no more faults; waiting until all are in step")
        for till in self.tills:
            till.link.flowing.set()
        if not await self.settled():
            self.failures.append(f"not all were in step, and nothing went on for {SETTLE} s")
        for till in self.tills:
            till.away = till.away or bool(till.tell("end"))
            till.away = True
        await asyncio.gather(*(asyncio.wait_for(till.process.wait(), 30) for till in self.tills), return_exceptions=True)
        feeds = {}
        for node in range(3):
            feeds[f"node {node + 1}"] = await asyncio.to_thread(self.feed, node)
        found = self.failures + check(feeds, {till.name: (list(till.notes()), till.end()) for till in self.tills})
        sales = sum(change["table_name"] == "sales" for change in feeds["node 1"])
        say(f"{len(feeds['node 1'])} changes, {sales} sales; " + ", ".join(f"{count} × {kind}" for kind, count in sorted(self.did.items())))
        return found

    def close(self):
        for till in getattr(self, "tills", []):
            if till.process and till.process.returncode is None:
                till.process.send_signal(signal.SIGCONT)
                till.process.kill()
        if getattr(self, "dev", None):
            self.dev.send_signal(signal.SIGINT)
            try:
                self.dev.wait(30)
            except subprocess.TimeoutExpired:
                self.dev.kill()


def programs(work):
    """The classes of docs/clients.md: Python's, and JavaScript's with the name of each library."""
    page = PAGE.read_text().partition("## The rules")[2]
    (work / "client.py").write_text(re.search(r"```python\n(.*?)```", page, re.S)[1])
    program = re.search(r"```javascript\n(.*?)```", page, re.S)[1]
    for version in "234":
        library = f'import {{ createRequire }} from "node:module";\nconst library = createRequire("{HERE}/")("sio{version}");\nconst io = library.io ?? library;'
        assert 'import { io } from "socket.io-client";' in program
        (work / f"client{version}.mjs").write_text(program.replace('import { io } from "socket.io-client";', library))


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tillsync", type=pathlib.Path)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--pace", type=float, default=1.2, help="at most so many seconds between two faults")
    parser.add_argument("--every", type=float, default=0.4, help="seconds between two sales of a till")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    soak = Soak(options)
    say(f"seed {options.seed}, {options.minutes} minutes")
    try:
        found = await soak.run()
    finally:
        soak.close()
    if not found:
        print("soak: nothing lost, doubled, out of order or left unsent: ok")
        shutil.rmtree(options.work)
        return
    print(f"soak: {len(found)} findings (seed {options.seed})")
    for finding in found[:40]:
        print("  ", finding)
    print(f"Look at {options.work}: NAME.notes is what a client saw, NAME.log what it said, data-*/node-N/log what a node said.")
    sys.exit(1)


asyncio.run(main())
