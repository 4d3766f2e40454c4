"""The library's two faces: `Till`, whose methods wait, and `Client`, whose methods are awaited."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from . import limits
from .actions import Json, Letter
from .engine import Change, Engine, Listener, NewToken, Options, Status
from .pairing import stored_token

Path = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Record:
    """A record as the cluster has it. `version` is the `base_version` of a change of it."""

    table: str
    record_id: int
    version: int
    data: Json


class _Face:
    def __init__(
        self,
        url: str | Sequence[str],
        token: str | None = None,
        folder: Path = "till-data",
        *,
        device: str | None = None,
        ca: Path | None = None,
        new_token: NewToken | None = None,
        listen: Listener | None = None,
        online: Json | None = None,
        max_entries: int = limits.QUEUE_ENTRIES,
        max_bytes: int = limits.QUEUE_BYTES,
    ) -> None:
        """`url` is a node's, or a list of each node that may be tried. Without a `token` the one that `pair` put into
        the folder is used. Only one at a time may use a device's folder."""
        urls = [url] if isinstance(url, str) else list(url)
        token = stored_token(folder) if token is None else token
        self._engine = Engine(
            Options(urls, token, folder, device, ca, new_token, listen, online, max_entries, max_bytes)
        )

    @property
    def device(self) -> str:
        return self._engine.device

    @property
    def status(self) -> Status:
        return self._engine.status()

    def _record(self, table: str, record_id: int) -> Record | None:
        found = self._engine.disk.record(table, record_id)
        return None if found is None else Record(table, record_id, *found)

    def _page(self, table: str, after: int | None) -> list[Record]:
        return [Record(table, *row) for row in self._engine.disk.records(table, after)]


class Till(_Face):
    """A device, for programs that wait.

    A change is on the disk when its method returns, and reaches the cluster as soon as that is reached: once, and in
    the order in which it was made.
    """

    def __enter__(self) -> Till:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """What is in the queue stays on the disk, and is sent by the next one on this folder."""
        self._engine.close()

    def insert(self, table: str, data: Json, record_id: int | None = None) -> int:
        """A new record. Gives its id, which is drawn at random unless the app has one that is surely its own."""
        return self.push_many([Change(table, data, record_id)])[0]

    def update(self, table: str, record_id: int, data: Json, base_version: int | None = None) -> None:
        """The whole record as it is now. With `base_version`, a change by somebody else since then is a conflict."""
        self.push_many([Change(table, data, record_id, "update", base_version)])

    def delete(self, table: str, record_id: int, base_version: int | None = None) -> None:
        self.push_many([Change(table, None, record_id, "delete", base_version)])

    def push_many(self, changes: Iterable[Change]) -> list[int]:
        """Many changes in one write to the disk, all or none. Gives their record ids."""
        return self._engine.push_many(changes).result()

    def get(self, table: str, record_id: int) -> Record | None:
        """A record as the cluster had it when it was heard from last."""
        return self._engine.call(lambda: self._record(table, record_id)).result()

    def records(self, table: str) -> Iterator[Record]:
        """The records of a table by their ids."""
        after: int | None = None
        while page := self._engine.call(partial(self._page, table, after)).result():
            yield from page
            after = page[-1].record_id

    def tables(self) -> list[str]:
        return self._engine.call(self._engine.disk.tables).result()

    def letters(self) -> Iterator[Letter]:
        """What was refused for good, or waits for a decision: for the app to show."""
        after = 0
        while page := self._engine.letters(after, limits.ROWS).result():
            yield from page
            after = page[-1].n

    def resend(self, n: int, data: Json | None = None, base_version: int | None = None) -> None:
        """Queues a letter once more, mended if `data` or `base_version` is given."""
        self._engine.resend(n, data, base_version).result()

    def forget(self, n: int) -> None:
        """The app has dealt with a letter."""
        self._engine.forget(n).result()

    def sync(self, tables: Sequence[str] | None = None) -> None:
        """Asks for a full sync, of all or of these tables."""
        self._engine.sync(None if tables is None else tuple(tables)).result()

    def use_token(self, token: str) -> None:
        """Goes on with another token of the same device."""
        self._engine.use_token(token).result()

    def until(self, holds: Callable[[Status], bool], timeout: float | None = None) -> bool:
        """Waits until the status is so; False if it was not in time."""
        waiting = self._engine.until(holds)
        try:
            waiting.result(timeout)
        except (FutureTimeout, FutureCancelled):
            waiting.cancel()
            return False
        return True

    def flush(self, timeout: float | None = None) -> bool:
        """Waits until every change has its answer."""
        return self.until(lambda status: status.pending == 0, timeout)

    def ready(self, timeout: float | None = None) -> bool:
        """Waits until there is a whole copy of the data."""
        return self.until(lambda status: status.cursor is not None, timeout)


class Client(_Face):
    """A device, for programs with asyncio. Its methods are those of `Till`, to be awaited."""

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._engine.close)

    async def insert(self, table: str, data: Json, record_id: int | None = None) -> int:
        return (await self.push_many([Change(table, data, record_id)]))[0]

    async def update(self, table: str, record_id: int, data: Json, base_version: int | None = None) -> None:
        await self.push_many([Change(table, data, record_id, "update", base_version)])

    async def delete(self, table: str, record_id: int, base_version: int | None = None) -> None:
        await self.push_many([Change(table, None, record_id, "delete", base_version)])

    async def push_many(self, changes: Iterable[Change]) -> list[int]:
        return await asyncio.wrap_future(self._engine.push_many(changes))

    async def get(self, table: str, record_id: int) -> Record | None:
        return await asyncio.wrap_future(self._engine.call(lambda: self._record(table, record_id)))

    async def records(self, table: str) -> AsyncIterator[Record]:
        after: int | None = None
        while page := await asyncio.wrap_future(self._engine.call(partial(self._page, table, after))):
            for record in page:
                yield record
            after = page[-1].record_id

    async def tables(self) -> list[str]:
        return await asyncio.wrap_future(self._engine.call(self._engine.disk.tables))

    async def letters(self) -> AsyncIterator[Letter]:
        after = 0
        while page := await asyncio.wrap_future(self._engine.letters(after, limits.ROWS)):
            for letter in page:
                yield letter
            after = page[-1].n

    async def resend(self, n: int, data: Json | None = None, base_version: int | None = None) -> None:
        await asyncio.wrap_future(self._engine.resend(n, data, base_version))

    async def forget(self, n: int) -> None:
        await asyncio.wrap_future(self._engine.forget(n))

    async def sync(self, tables: Sequence[str] | None = None) -> None:
        await asyncio.wrap_future(self._engine.sync(None if tables is None else tuple(tables)))

    async def use_token(self, token: str) -> None:
        await asyncio.wrap_future(self._engine.use_token(token))

    async def until(self, holds: Callable[[Status], bool], timeout: float | None = None) -> bool:
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._engine.until(holds)), timeout)
        except asyncio.TimeoutError:
            return False
        return True

    async def flush(self, timeout: float | None = None) -> bool:
        return await self.until(lambda status: status.pending == 0, timeout)

    async def ready(self, timeout: float | None = None) -> bool:
        return await self.until(lambda status: status.cursor is not None, timeout)
