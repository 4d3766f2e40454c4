"""What the Python class of docs/clients.md must survive: TOKEN=… check.py URL FOLDER CERT KEY. Stands beside client.py when it runs."""
import asyncio
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import urllib.request
import uuid

import client as page
from client import Client

TOKEN = os.environ["TOKEN"]
HERE = os.path.dirname(os.path.abspath(__file__))


def short():
    return uuid.uuid4().hex[:8]


def rest(url, path):
    request = urllib.request.Request(url + path, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def feed(url, table):
    changes, cursor = [], ""
    while True:
        answer = rest(url, f"/sync/changes?limit=1000&tables={table}{cursor}")
        changes += answer["changes"]
        if not answer["has_more"]:
            return changes
        cursor = f"&cursor={answer['cursor']}"


@contextlib.asynccontextmanager
async def running(client):
    task = asyncio.create_task(client.run())
    try:
        yield client
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.contextmanager
def proxy(*args):
    child = subprocess.Popen([sys.executable, os.path.join(HERE, "..", "docs", "proxy.py"), *args], stdout=subprocess.PIPE, text=True)
    try:
        yield int(child.stdout.readline())
    finally:
        child.kill()
        child.wait()


async def long_queue(url, folder):
    """3,000 sales made offline are there once each, in order."""
    client, table = Client(url, TOKEN, f"py-{short()}", folder), f"py_{short()}"
    for i in range(3000):
        await client.push(table, i, {"i": i}, operation="insert")
    async with running(client):
        await client.until(lambda: not client.queue)
    assert [c["data"]["i"] for c in feed(url, table)] == list(range(3000))


async def killed(url, folder):
    """What push() returned for survives SIGKILL of the client, and is applied once."""
    device, table = f"py-{short()}", f"py_{short()}"
    pushed, begin = [], 0
    for _ in range(4):
        worker = subprocess.Popen([sys.executable, __file__, "worker", url, folder, device, table, str(begin)],
                                  stdout=subprocess.PIPE, text=True)
        for line in worker.stdout:
            pushed.append(int(line))
            if len(pushed) % 100 == random.randrange(50, 100):
                break
        worker.send_signal(signal.SIGKILL)
        pushed += [int(line) for line in worker.stdout.read().split("\n")[:-1]]
        worker.wait()
        begin = pushed[-1] + 2  # the last one that was pushed may not have been printed
    client = Client(url, TOKEN, device, folder)
    async with running(client):
        await client.until(lambda: client.cursor and not client.queue)
    there = [c["data"]["i"] for c in feed(url, table)]
    assert there == sorted(set(there)), "twice, or out of order"
    assert set(pushed) <= set(there), f"lost: {set(pushed) - set(there)}"
    assert not client.dead, client.dead


async def worker(url, folder, device, table, begin):
    async with running(Client(url, TOKEN, device, folder)) as client:
        for i in range(int(begin), 1 << 30):
            await client.push(table, i, {"i": i})
            print(i, flush=True)
            await asyncio.sleep(0)


async def set_back(url, folder):
    """The files as they were before the answers: what had been applied is not applied again. A copy that went on loses nothing."""
    client, table = Client(url, TOKEN, f"py-{short()}", folder), f"py_{short()}"
    for i in range(1500):
        await client.push(table, i, {"i": i})
    shutil.copytree(os.path.join(folder, client.device), os.path.join(folder, "copy", client.device))
    for i in range(1500, 1510):
        await client.push(table, i, {"i": i})
    async with running(client):
        await client.until(lambda: not client.queue)
    copy = Client(url, TOKEN, client.device, os.path.join(folder, "copy"))
    for i in range(2000, 2010):  # under numbers that the other one has used
        await copy.push(table, i, {"i": i})
    async with running(copy):
        await copy.until(lambda: not copy.queue)
    assert [c["data"]["i"] for c in feed(url, table)] == [*range(1510), *range(2000, 2010)] and not copy.dead


async def behind(url, folder):
    """An answer got lost, those to the updates behind it did not: it is sent again, and the queue goes on."""
    client, table = Client(url, TOKEN, f"py-{short()}", folder), f"py_{short()}"
    for i in range(3):
        await client.push(table, i, {"i": i})
    n, update = next(iter(client.queue.items()))
    async with running(client):
        await client.until(lambda: not client.queue)
    again = Client(url, TOKEN, client.device, folder)
    again.queue[n] = update
    for i in range(3, 6):
        await again.push(table, i, {"i": i})
    async with running(again):
        await again.until(lambda: not again.queue)
    assert [c["data"]["i"] for c in feed(url, table)] == [*range(6)] and not again.dead


async def poisoned(url, folder):
    """Updates that are refused for good, here or by the node, are shown; the others go on. A conflict is kept, and shown."""
    async with running(Client(url, TOKEN, f"py-{short()}", folder)) as client:
        await client.until(lambda: client.cursor)
        table, bad = f"py_{short()}", {}
        for i in range(120):
            if i % 30 == 10:
                bad[await client.push("no\ttable", i, {"i": i})] = "table_name"
            elif i % 30 == 20:
                bad[await client.push(table, i, {"photo": "x" * (1_200_000 if i < 60 else 5_000_000)})] = "new_data"
            else:
                await client.push(table, i, {"i": i})
        limit, page.RECORD = page.RECORD, 1 << 30  # and if the client did not know the limit
        bad[await client.push(table, 1000, {"photo": "x" * 400_000})] = "new_data"
        page.RECORD = limit
        await client.push(table, 1001, {"i": 1001})
        await client.until(lambda: not client.queue)
        assert {n: error["field"] for n, (_, error) in client.dead.items()} == bad, client.dead
    wanted = [i for i in range(120) if i % 30 not in (10, 20)] + [1001]
    assert [c["data"]["i"] for c in feed(url, table)] == wanted
    again = Client(url, TOKEN, client.device, folder)
    assert set(again.dead) == set(bad), "dead letters are on the disk"
    again.forget(min(bad))
    assert set(Client(url, TOKEN, client.device, folder).dead) == set(bad) - {min(bad)}


async def gap(url, folder):
    """A change that was not told is noticed: the client resumes from its cursor, and has it."""
    with proxy("gap", url) as port:
        async with running(Client(f"http://127.0.0.1:{port}", TOKEN, f"py-{short()}", folder)) as client:
            async with running(Client(url, TOKEN, f"py-{short()}", folder)) as other:
                await client.until(lambda: client.cursor)
                await other.until(lambda: other.cursor)
                table = f"py_{short()}"
                for i, name in enumerate(["one", "swallow", "three"]):
                    await other.push(table, i, {"name": name})
                await client.until(lambda: (table, 2) in client.records)
                assert client.records[table, 1]["data"]["name"] == "swallow"


async def other_history(url, folder):
    """A cursor of another history is answered with a full sync; the old copy stays until the new one is whole."""
    device, table = f"py-{short()}", f"py_{short()}"
    first = Client(url, TOKEN, device, folder)
    async with running(first):
        await first.until(lambda: first.cursor)
        await first.push(table, 1, {"i": 1})
        await first.until(lambda: (table, 1) in first.records)
    first.records["gone", 1], first.cursor = {"version": 1, "data": {}}, "1.1"
    first.write_store()
    again = Client(url, TOKEN, device, folder)
    assert ("gone", 1) in again.records and again.cursor == "1.1"
    async with running(again):
        await again.until(lambda: again.sync)
    assert again.records[table, 1]["data"] == {"i": 1} and ("gone", 1) not in again.records
    assert again.cursor.split(".")[0] != "1"


async def token(url, folder):
    """A token that is refused is said, and a new one is asked for; the device is the token's."""
    asked = []

    def new_token(error):
        asked.append(error["error_code"])
        return TOKEN

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        async with running(Client(url, TOKEN[:-4] + "AAAA", f"py-{short()}", folder, new_token=new_token)) as client:
            await client.until(lambda: client.cursor)
    assert asked == ["3001"] and "the token is refused: 3001" in said.getvalue(), (asked, said.getvalue())
    assert Client(url, TOKEN, folder=folder).device == "admin"


async def other_node(url, folder):
    """A node that does not answer is passed over."""
    async with running(Client(["http://127.0.0.1:1", url], TOKEN, f"py-{short()}", folder)) as client:
        await client.until(lambda: client.cursor)


async def private_ca(url, folder, cert, key):
    """https and wss with a certificate of a private CA; without the CA it is refused."""
    with proxy("tls", url, cert, key) as port:
        async with running(Client(f"https://localhost:{port}", TOKEN, f"py-{short()}", folder, ca=cert)) as client:
            await client.until(lambda: client.cursor)
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            async with running(Client(f"https://localhost:{port}", TOKEN, f"py-{short()}", folder)) as client:
                while "CERTIFICATE_VERIFY_FAILED" not in said.getvalue():
                    await asyncio.sleep(0.01)
        assert not client.cursor


async def main():
    if sys.argv[1] == "worker":
        return await worker(*sys.argv[2:])
    url, folder, cert, key = sys.argv[1:]
    for check in (long_queue, killed, set_back, behind, poisoned, gap, other_history, token, other_node):
        await check(url, folder)
        print(f"Python, {check.__name__}: ok")
    await private_ca(url, folder, cert, key)
    print("Python, private_ca: ok")


asyncio.run(main())
