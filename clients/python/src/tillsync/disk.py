"""The queue and the store on the disk: two SQLite files in one folder.

The queue's file is synced at every commit: what `push` returned for survives a power cut. The store's is not: what is
lost of it at a power cut comes again, because a change and the cursor after it are written together.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any

from . import limits
from .actions import (
    Abandon,
    Begin,
    Bury,
    CursorIs,
    Drop,
    Enqueue,
    Entry,
    Forget,
    Json,
    LastIs,
    Letter,
    MarkSent,
    Owed,
    Put,
    QueueIs,
    QueueWrite,
    Settle,
    Snapshot,
    StoreWrite,
    Switch,
    TokenIs,
    Write,
)
from .change import to_json
from .errors import FolderInUse, TillsyncError

FORMAT = 1
QUEUE_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (n INTEGER PRIMARY KEY, size INTEGER NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS letters (
    n INTEGER PRIMARY KEY, size INTEGER NOT NULL, state TEXT NOT NULL, body TEXT NOT NULL, error TEXT NOT NULL
);
"""
STORE_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    copy INTEGER NOT NULL, tab TEXT NOT NULL, id INTEGER NOT NULL, version INTEGER NOT NULL, data TEXT,
    PRIMARY KEY (copy, tab, id)
) WITHOUT ROWID;
"""
QUEUE_WRITES = (Enqueue, MarkSent, Settle, Bury, Forget, QueueIs, LastIs, TokenIs)


def _opened(path: pathlib.Path, schema: str, synchronous: str) -> sqlite3.Connection:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # a token is in it
        file = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        file.execute("PRAGMA locking_mode=EXCLUSIVE")  # held as long as the file is open
        file.execute("PRAGMA auto_vacuum=INCREMENTAL")
        file.execute("PRAGMA journal_mode=WAL")
        file.execute("PRAGMA journal_size_limit=4194304")
        file.execute(f"PRAGMA synchronous={synchronous}")
        file.execute("BEGIN EXCLUSIVE")
        for statement in schema.split(";"):
            file.execute(statement)
        found = file.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
        file.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (FORMAT,))
        file.execute("COMMIT")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise FolderInUse(f"{path.parent} is in use by another program") from error
        raise
    if found is not None and found[0] != FORMAT:
        raise TillsyncError(f"{path} has format {found[0]}; this library reads {FORMAT}")
    return file


class Disk:
    def __init__(self, folder: str | os.PathLike[str]) -> None:
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.queue = _opened(folder / "queue.sqlite", QUEUE_SCHEMA, "FULL")
        try:
            self.store = _opened(folder / "store.sqlite", STORE_SCHEMA, "NORMAL")
        except BaseException:
            self.queue.close()
            raise
        self._forget_unfinished()

    def close(self) -> None:
        self.queue.close()
        self.store.close()

    # -- what is on it

    @staticmethod
    def _meta(file: sqlite3.Connection, name: str, default: Any = None) -> Any:
        row = file.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return default if row is None else row[0]

    @staticmethod
    def _set_meta(file: sqlite3.Connection, name: str, value: Any) -> None:
        file.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def snapshot(self) -> Snapshot:
        """For a core that begins here."""
        queue = self.queue
        entries, entry_bytes, newest = queue.execute("SELECT count(*), total(size), max(n) FROM entries").fetchone()
        letters, letter_bytes, newest_l = queue.execute("SELECT count(*), total(size), max(n) FROM letters").fetchone()
        conflicts = {
            json.loads(error)["conflict_id"]: (n, size)
            for n, size, error in queue.execute("SELECT n, size, error FROM letters WHERE state = 'conflict'")
        }
        return Snapshot(
            queue_id=self._meta(queue, "queue"),
            last=self._meta(queue, "last", 0),
            next=max(self._meta(queue, "next", 1), (newest or 0) + 1, (newest_l or 0) + 1),
            sent=self._meta(queue, "sent", 0),
            entries=entries,
            letters=letters,
            size=int(entry_bytes + letter_bytes),
            conflicts=conflicts,
            cursor=self._meta(self.store, "cursor"),
            owed=tuple(json.loads(self._meta(self.store, "owed", "[]"))),
            token_given=self._meta(queue, "token_given"),
            token=self._meta(queue, "token"),
        )

    def entries(self, after: int, limit: int) -> list[Entry]:
        rows = self.queue.execute("SELECT n, body, size FROM entries WHERE n > ? ORDER BY n LIMIT ?", (after, limit))
        return [Entry(n, json.loads(body), size) for n, body, size in rows]

    def letters(self, after: int = 0, limit: int = limits.ROWS) -> list[Letter]:
        select = "SELECT n, state, body, error FROM letters WHERE n > ? ORDER BY n LIMIT ?"
        rows = self.queue.execute(select, (after, limit))
        return [Letter(n, state, json.loads(body), json.loads(error)) for n, state, body, error in rows]

    def letter(self, n: int) -> tuple[Letter, int] | None:
        """A letter and its size."""
        row = self.queue.execute("SELECT state, body, error, size FROM letters WHERE n = ?", (n,)).fetchone()
        return None if row is None else (Letter(n, row[0], json.loads(row[1]), json.loads(row[2])), row[3])

    def record(self, table: str, record_id: int) -> tuple[int, Json] | None:
        """A record's version and data."""
        select = "SELECT version, data FROM records WHERE copy = ? AND tab = ? AND id = ? AND data IS NOT NULL"
        row = self.store.execute(select, (self._copy(), table, record_id)).fetchone()
        return None if row is None else (row[0], json.loads(row[1]))

    def records(self, table: str, after: int | None = None, limit: int = limits.ROWS) -> list[tuple[int, int, Json]]:
        """Records of a table by their id: id, version, data."""
        select = """SELECT id, version, data FROM records
                    WHERE copy = ? AND tab = ? AND id > ? AND data IS NOT NULL ORDER BY id LIMIT ?"""
        least = -(1 << 63)
        rows = self.store.execute(select, (self._copy(), table, least if after is None else after, limit)).fetchall()
        if after is None:
            first = self.record(table, least)
            rows = rows if first is None else [(least, first[0], to_json(first[1])), *rows][:limit]
        return [(record_id, version, json.loads(data)) for record_id, version, data in rows]

    def tables(self) -> list[str]:
        select = "SELECT DISTINCT tab FROM records WHERE copy = ? AND data IS NOT NULL ORDER BY tab"
        return [table for (table,) in self.store.execute(select, (self._copy(),))]

    # -- writes

    def apply(self, writes: Iterable[Write]) -> None:
        """All of them, or none of a file's."""
        writes = list(writes)
        of_queue = [write for write in writes if isinstance(write, QUEUE_WRITES)]
        of_store = [write for write in writes if not isinstance(write, QUEUE_WRITES)]
        if of_store:
            with self._transaction(self.store):
                for store_write in of_store:
                    self._write_store(store_write)
        if of_queue:
            with self._transaction(self.queue):
                for queue_write in of_queue:
                    self._write_queue(queue_write)

    @staticmethod
    @contextlib.contextmanager
    def _transaction(file: sqlite3.Connection) -> Iterator[None]:
        file.execute("BEGIN IMMEDIATE")
        try:
            yield
            file.execute("COMMIT")
        except BaseException:
            if file.in_transaction:
                file.execute("ROLLBACK")
            raise

    def _write_queue(self, write: QueueWrite) -> None:
        run = self.queue.execute
        match write:
            case Enqueue(n, update, size, replaces):
                run("INSERT INTO entries VALUES (?, ?, ?)", (n, size, to_json(update)))
                self._set_meta(self.queue, "next", n + 1)
                if replaces is not None:
                    run("DELETE FROM letters WHERE n = ?", (replaces,))
            case MarkSent(n):
                self._set_meta(self.queue, "sent", n)
            case Settle(n, last):
                run("DELETE FROM entries WHERE n = ?", (n,))
                self._set_meta(self.queue, "last", last)
            case Bury(n, state, error, last):
                move = "INSERT INTO letters SELECT n, size, ?, body, ? FROM entries WHERE n = ?"
                run(move, (state, to_json(error), n))
                run("DELETE FROM entries WHERE n = ?", (n,))
                self._set_meta(self.queue, "last", last)
            case Forget(n):
                run("DELETE FROM letters WHERE n = ?", (n,))
            case QueueIs(queue_id, last, sent):
                for name, value in (("queue", queue_id), ("last", last), ("sent", sent)):
                    self._set_meta(self.queue, name, value)
            case LastIs(last):
                self._set_meta(self.queue, "last", last)
            case TokenIs(given, token):
                self._set_meta(self.queue, "token_given", given)
                self._set_meta(self.queue, "token", token)

    def _copy(self) -> int:
        return int(self._meta(self.store, "copy", 0))

    def _fresh(self) -> int | None:
        fresh = self._meta(self.store, "fresh")
        return None if fresh is None else int(fresh)

    def _write_store(self, write: StoreWrite) -> None:
        run = self.store.execute
        match write:
            case Begin(tables):
                self._abandon()
                self._set_meta(self.store, "fresh", self._copy() + 1)
            case Put(table, record_id, version, data, to_copy, to_fresh):
                if to_copy:
                    self._put(self._copy(), table, record_id, version, data)
                fresh = self._fresh()
                if to_fresh and fresh is not None:
                    self._put(fresh, table, record_id, version, data, keep_deleted=True)
            case CursorIs(cursor):
                self._set_meta(self.store, "cursor", cursor)
            case Switch(tables, cursor):
                self._switch(tables)
                self._set_meta(self.store, "cursor", cursor)
            case Abandon():
                self._abandon()
            case Drop(tables, others):
                marks = ",".join("?" * len(tables))
                run(f"DELETE FROM records WHERE tab {'NOT ' if others else ''}IN ({marks})", tables)
            case Owed(tables):
                self._set_meta(self.store, "owed", to_json(list(tables)))

    def _put(
        self, copy: int, table: str, record_id: int, version: int, data: Json | None, keep_deleted: bool = False
    ) -> None:
        key = (copy, table, record_id)
        if data is None and not keep_deleted:
            older = "DELETE FROM records WHERE copy = ? AND tab = ? AND id = ? AND version <= ?"
            self.store.execute(older, (*key, version))
            return
        self.store.execute(
            """INSERT INTO records VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE
               SET version = excluded.version, data = excluded.data WHERE version <= excluded.version""",
            (*key, version, None if data is None else to_json(data)),
        )

    def _switch(self, tables: tuple[str, ...] | None) -> None:
        copy, fresh = self._copy(), self._fresh()
        if fresh is None:
            raise TillsyncError("there is no new copy to switch to")
        run = self.store.execute
        if tables is None:
            self._set_meta(self.store, "copy", fresh)
            run("DELETE FROM records WHERE copy = ?", (copy,))
        else:
            marks = ",".join("?" * len(tables))
            run(f"DELETE FROM records WHERE copy = ? AND tab IN ({marks})", (copy, *tables))
            run("DELETE FROM records WHERE copy = ? AND data IS NULL", (fresh,))
            run(f"UPDATE records SET copy = ? WHERE copy = ? AND tab IN ({marks})", (copy, fresh, *tables))
        run("DELETE FROM records WHERE copy = ? AND data IS NULL", (fresh,))
        run("DELETE FROM meta WHERE name = 'fresh'")

    def _abandon(self) -> None:
        fresh = self._fresh()
        if fresh is not None:
            self.store.execute("DELETE FROM records WHERE copy = ?", (fresh,))
            self.store.execute("DELETE FROM meta WHERE name = 'fresh'")

    def _forget_unfinished(self) -> None:
        """What a full sync had written when the program ended."""
        with self._transaction(self.store):
            self._abandon()

    def shrink(self) -> bool:
        """Gives some of the room back that is not used any more, and says whether there was some. For when there is
        nothing else to do."""
        shrunk = False
        for file in (self.queue, self.store):
            if self._free(file) > limits.ROWS:
                shrunk = True
                # `execute` takes one step, which is one page.
                file.executescript(f"PRAGMA incremental_vacuum({limits.ROWS})")
                if self._free(file) <= limits.ROWS:  # the file itself ends where it did until a checkpoint
                    file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return shrunk

    @staticmethod
    def _free(file: sqlite3.Connection) -> int:
        return int(file.execute("PRAGMA freelist_count").fetchone()[0])
