"""Drives the core in a thread of its own, so that neither a busy app nor the disk keeps the other waiting."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import datetime
import json
import logging
import math
import os
import pathlib
import random
import secrets
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import websockets.asyncio.client
import websockets.exceptions

from . import limits
from .actions import Action, Close, Forget, Json, Letter, Load, Send, Tell
from .change import checked, claims_of, new_record_id, to_json
from .core import Core, writes_of
from .disk import Disk
from .errors import Closed

T = TypeVar("T")
Listener = Callable[[str, Json], None]
NewToken = Callable[[Json], "str | None"]
log = logging.getLogger("tillsync")


@dataclass(frozen=True, slots=True)
class Options:
    """`urls`: each node that may be tried. `ca`: a file with the CA's certificate, where it is a private one.
    `new_token` gets the error that a token was refused with, and returns another token, or None. `listen` gets what
    happens, as a kind and the event's data, in the library's thread: it must return soon. `online` goes out with
    `device_online`: role, priority, capabilities."""

    urls: Sequence[str]
    token: str
    folder: str | os.PathLike[str]
    device: str | None = None
    ca: str | os.PathLike[str] | None = None
    new_token: NewToken | None = None
    listen: Listener | None = None
    online: Json | None = None
    max_entries: int = limits.QUEUE_ENTRIES
    max_bytes: int = limits.QUEUE_BYTES


@dataclass(frozen=True, slots=True)
class Status:
    """What an app shows of its state."""

    device: str
    online: bool
    pending: int
    """Changes in the queue: not answered for good yet."""
    letters: int
    """Changes that were refused for good, or wait for a decision."""
    cursor: str | None
    """None: there is no whole copy of the data yet, or a new one is owed."""
    syncing: bool
    refused: Json | None
    """Why the token is refused."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change for `push_many`."""

    table: str
    data: Json | None = None
    record_id: int | None = None
    operation: str = "insert"
    base_version: int | None = None


def wall_clock() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock() -> float:
    return time.monotonic() * 1000


class Engine:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.device = options.device or str(claims_of(options.token)["sub"])
        self.folder = pathlib.Path(options.folder) / urllib.parse.quote(self.device, safe="")
        self.urls = [url.rstrip("/").replace("http", "ws", 1) + "/ws" for url in options.urls]
        if not self.urls or any(not url.startswith(("ws://", "wss://")) for url in self.urls):
            raise ValueError("the URL of a node begins with http:// or https://")
        self.tls = None
        if any(url.startswith("wss") for url in self.urls):
            self.tls = ssl.create_default_context(cafile=None if options.ca is None else os.fspath(options.ca))
        self.disk = Disk(self.folder)
        self.given = options.token
        self.core = self._core()
        self.outgoing: collections.deque[Send] = collections.deque()
        self.waiters: list[tuple[Callable[[Status], bool], asyncio.Future[None]]] = []
        self.close_session = self.closed = False
        self.failed: BaseException | None = None
        self.broken = False
        self.loop = asyncio.new_event_loop()
        self.wake, self.to_send = asyncio.Event(), asyncio.Event()
        self.asking: asyncio.Task[None] | None = None
        self.thread = threading.Thread(target=self._thread, name=f"tillsync {self.device}", daemon=True)
        self.thread.start()

    def _core(self) -> Core:
        self.core = Core(
            self.device,
            self.given,
            self.disk.snapshot(),
            random.random,
            lambda: secrets.token_hex(16),
            self.options.online,
            self.options.max_entries,
            self.options.max_bytes,
        )
        self.disk.apply(writes_of(self.core.start()))
        return self.core

    # -- what the app calls, from any thread

    def call(self, work: Callable[[], T]) -> concurrent.futures.Future[T]:
        """Does something in the engine's thread."""

        async def run() -> T:
            if self.closed:
                raise Closed("the client is closed")
            return work()

        return self._submit(run())

    def _submit(self, coroutine: Any) -> concurrent.futures.Future[Any]:
        if self.closed or self.loop.is_closed():
            coroutine.close()
            raise Closed("the client is closed")
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def push_many(self, changes: Iterable[Change]) -> concurrent.futures.Future[list[int]]:
        """Queues changes, all or none. They are on the disk when this is done, which gives their record ids."""
        made, ids = wall_clock(), []
        updates = []
        for change in changes:
            record_id = change.record_id
            if record_id is None:
                if change.operation != "insert":
                    raise ValueError("only a new record's id is drawn")
                record_id = new_record_id()
            ids.append(record_id)
            operation, base = change.operation, change.base_version
            updates.append(checked(self.device, change.table, record_id, change.data, operation, base, made))

        def work() -> list[int]:
            self._queue(updates)
            return ids

        return self.call(work)

    def _mend(self) -> None:
        """What a core that failed knows may not be what is on the disk."""
        if self.broken:
            self._core()
            self.broken, self.failed = False, None

    def _queue(self, updates: Sequence[Json], letter: tuple[Letter, int] | None = None) -> None:
        self._mend()
        enqueues, size = [], 0 if letter is None else letter[1]
        before = (self.core.next, self.core.entries, self.core.size)
        try:
            for update in updates:
                enqueue = self.core.prepare(update, None if letter is None else letter[0].n, size)
                enqueues.append(enqueue)
                self.core.next += 1
                self.core.entries += 1
                self.core.size += enqueue.size
            (self.core.next, self.core.entries, self.core.size) = before
            self.disk.apply(enqueues)
        except BaseException:
            (self.core.next, self.core.entries, self.core.size) = before
            raise
        self._guarded(lambda: [a for enqueue in enqueues for a in self.core.enqueued(enqueue, clock(), size)])

    def letters(self, after: int, limit: int) -> concurrent.futures.Future[list[Letter]]:
        return self.call(lambda: self.disk.letters(after, limit))

    def resend(self, n: int, data: Json | None, base_version: int | None) -> concurrent.futures.Future[None]:
        def work() -> None:
            found = self._letter(n)
            letter, _ = found
            if letter.state == "conflict":
                raise ValueError("the cluster keeps it with an open conflict: decide that")
            old = letter.update
            update = checked(
                self.device,
                old["table_name"],
                old["record_id"],
                old.get("new_data") if data is None else data,
                old["operation"],
                old.get("base_version") if base_version is None else base_version,
                old.get("timestamp"),
            )
            self._queue([update], found)

        return self.call(work)

    def forget(self, n: int) -> concurrent.futures.Future[None]:
        def work() -> None:
            _, size = self._letter(n)
            self.disk.apply([Forget(n)])
            self.core.forgotten(n, size)
            self._settle_waiters()

        return self.call(work)

    def _letter(self, n: int) -> tuple[Letter, int]:
        found = self.disk.letter(n)
        if found is None:
            raise KeyError(f"there is no letter {n}")
        return found

    def sync(self, tables: tuple[str, ...] | None) -> concurrent.futures.Future[None]:
        return self.call(lambda: self._guarded(lambda: self.core.sync(tables, clock())))

    def use_token(self, token: str) -> concurrent.futures.Future[None]:
        return self.call(lambda: self._new_token(token))

    def status(self) -> Status:
        core = self.core
        syncing = core.sync_since is not None
        return Status(self.device, core.online, core.entries, core.letters, core.cursor, syncing, core.refused)

    def until(self, holds: Callable[[Status], bool]) -> concurrent.futures.Future[None]:
        async def wait() -> None:
            if not holds(self.status()):
                waiter = (holds, self.loop.create_future())
                self.waiters.append(waiter)
                try:
                    await waiter[1]
                finally:
                    with contextlib.suppress(ValueError):
                        self.waiters.remove(waiter)

        return self._submit(wait())

    def close(self) -> None:
        """Ends the connection. What is in the queue stays on the disk."""
        if not self.closed:
            self.loop.call_soon_threadsafe(self._close)
        if threading.current_thread() is not self.thread:
            self.thread.join()

    def _close(self) -> None:
        self.closed = True
        self.wake.set()

    # -- the engine's thread

    def _thread(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._run())
        finally:
            self.closed = True
            for _, waiter in self.waiters:
                if not waiter.done():
                    waiter.set_exception(Closed("the client is closed"))
            tasks = asyncio.all_tasks(self.loop)
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            self.disk.close()

    async def _run(self) -> None:
        pause, failed_at = 1.0, -math.inf
        while not self.closed:
            try:
                await self._connections()
            except Exception as error:  # what is on the disk is all that counts: begin anew from it
                log.exception("%s: begins anew from its disk", self.device)
                self.broken = True
                if clock() - failed_at > limits.CALM:
                    pause = 1.0
                failed_at = clock()
                self._told("failed", {"error": str(error)})
                while self.broken and not self.closed:
                    await self._sleep(pause)
                    pause = min(pause * 2, 30)
                    with contextlib.suppress(Exception):
                        self._mend()

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.wake.wait(), max(seconds, 0))
        self.wake.clear()

    def _take(self, actions: Sequence[Action]) -> None:
        """Commits the writes, and only then lets out the rest."""
        if writes := writes_of(actions):
            self.disk.apply(writes)
        for action in actions:
            if isinstance(action, Send):
                self.outgoing.append(action)
                self.to_send.set()
            elif isinstance(action, Close):
                self.close_session = True
                self.wake.set()
            elif isinstance(action, Load):
                entries = self.disk.entries(action.after, action.limit)
                self._take(self.core.loaded_entries(entries, clock()))
            elif isinstance(action, Tell):
                self._told(action.kind, action.data)
        self._settle_waiters()

    def _guarded(self, work: Callable[[], Sequence[Action]]) -> None:
        """For the app's calls: a failure is the session's, not the caller's."""
        try:
            self._take(work())
        except Exception as error:
            self.failed, self.broken = error, True
        self.wake.set()

    def _settle_waiters(self) -> None:
        if self.waiters:
            status = self.status()
            for holds, waiter in self.waiters:
                if not waiter.done() and holds(status):
                    waiter.set_result(None)

    def _told(self, kind: str, data: Json) -> None:
        if kind == "token_refused":
            log.warning("%s: the token is refused: %s %s", self.device, data.get("error_code"), data.get("error"))
            if self.options.new_token is not None and self.asking is None:
                self.asking = self.loop.create_task(self._ask_for_token(data))
        elif kind == "refused":
            log.warning("%s: refused for good: %s", self.device, data["error"])
        if self.options.listen is not None:
            try:
                self.options.listen(kind, data)
            except Exception:
                log.exception("%s: the listener failed", self.device)

    async def _ask_for_token(self, error: Json) -> None:
        assert self.options.new_token is not None
        try:
            token = await self.loop.run_in_executor(None, self.options.new_token, error)
            if token is not None and not self.closed:
                self._new_token(token)
        except Exception:
            log.exception("%s: no other token", self.device)
        finally:
            self.asking = None

    def _new_token(self, token: str) -> None:
        self.given = token
        self._guarded(lambda: self.core.new_token(token, clock()))

    # -- connections

    async def _connections(self) -> None:
        while not self.closed:
            if self.failed is not None:
                raise self.failed
            wait = (self.core.connect_at or 0) - clock()
            if wait > 0:
                await self._sleep(wait / 1000)
                continue
            token, url = self.core.connecting(), self.urls[self.core.node % len(self.urls)]
            error: Json | None = None
            try:
                connection = await websockets.asyncio.client.connect(
                    url,
                    additional_headers={"Authorization": f"Bearer {token}"},
                    ssl=self.tls if url.startswith("wss") else None,
                    compression=None,
                    close_timeout=1,
                )
            except websockets.exceptions.InvalidStatus as refusal:
                error = refusal_of(refusal)
                log.info("%s: %s refuses: %s", self.device, url, error)
            except (OSError, EOFError, asyncio.TimeoutError, websockets.exceptions.WebSocketException) as problem:
                log.info("%s: %s is not reached: %s", self.device, url, problem)
                self._told("not_connected", {"url": url, "error": str(problem)})
            else:
                try:
                    await self._session(connection)
                finally:
                    with contextlib.suppress(OSError, websockets.exceptions.WebSocketException):
                        await connection.close()
            was_online = self.core.online or self.core.closing
            self._take(self.core.disconnected(clock(), error))
            if was_online:
                self._told("offline", {})

    async def _session(self, connection: websockets.asyncio.client.ClientConnection) -> None:
        self.outgoing.clear()
        self.close_session = False
        incoming: asyncio.Queue[str | bytes] = asyncio.Queue(limits.FRAMES)

        async def read() -> None:
            async for frame in connection:
                await incoming.put(frame)
                self.wake.set()

        async def send() -> None:
            while True:
                await self.to_send.wait()
                self.to_send.clear()
                while self.outgoing:
                    out = self.outgoing.popleft()
                    await connection.send(to_json({"event": out.event, "data": out.data}))

        tasks = [asyncio.ensure_future(read()), asyncio.ensure_future(send())]
        for task in tasks:
            task.add_done_callback(lambda _: self.wake.set())
        try:
            self._take(self.core.connected(clock(), wall_clock()))
            rest = limits.IDLE
            while not self.closed:
                deadline = self.core.deadline()
                await self._sleep(min(rest, rest if deadline is None else (deadline - clock()) / 1000))
                rest = limits.IDLE
                if self.failed is not None:
                    raise self.failed
                ended = any(task.done() for task in tasks)
                actions: list[Action] = []
                while not incoming.empty():
                    message = json.loads(incoming.get_nowait())
                    actions += self.core.received(message["event"], message["data"], clock())
                if not actions and self.disk.shrink():
                    rest = limits.SHRINKING
                actions += self.core.tick(clock())
                self._take(actions)
                if self.close_session or ended:
                    break
        finally:
            for task in tasks:
                task.cancel()
            for ended_as in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(ended_as, Exception):
                    log.info("%s: the connection ended: %s", self.device, ended_as)


def refusal_of(refusal: websockets.exceptions.InvalidStatus) -> Json | None:
    """What the server said as it refused a connection."""
    try:
        error = json.loads(bytes(refusal.response.body or b""))
    except ValueError:
        return None
    return error if isinstance(error, dict) and "error_code" in error else None
