"""The protocol of a client (docs/client-protocol.md), as a pure state machine.

It has no clock, no dice, no disk and no network: times come in as milliseconds of any clock that only goes forward,
random numbers and ids from functions that it is given, and what is to be done goes out as actions. Whoever drives it
commits the writes of each list before it sends or tells anything of that list. A driver that fails in between makes a
new core from the disk: what is on the disk is all that counts.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from . import limits
from .actions import (
    Abandon,
    Action,
    Begin,
    Bury,
    Close,
    Connect,
    CursorIs,
    Drop,
    Enqueue,
    Entry,
    Forget,
    Json,
    LastIs,
    Load,
    MarkSent,
    Owed,
    Put,
    QueueIs,
    Send,
    Settle,
    Snapshot,
    Switch,
    Tell,
    TokenIs,
)
from .change import claims_of, to_json
from .errors import QueueFull

TOKEN_CODES = ("3001", "3002", "3003")
"""Nothing goes on without another token, or a person."""
TOLD_ONLY = ("2002", "2003", "4002", "4003", "4004")
"""Without an event that they answer they are news, not the session's end."""

Tables = tuple[str, ...] | None


def number_of(cursor: str) -> int:
    return int(cursor.rpartition(".")[2])


def ms_of(time: str) -> float:
    return datetime.datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp() * 1000


class Core:
    def __init__(
        self,
        device: str,
        token: str,
        disk: Snapshot,
        random: Callable[[], float],
        new_id: Callable[[], str],
        online: Json | None = None,
        max_entries: int = limits.QUEUE_ENTRIES,
        max_bytes: int = limits.QUEUE_BYTES,
    ) -> None:
        self.device, self.random, self.new_id = device, random, new_id
        self.with_online = online or {}
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self.given = token
        self.token = disk.token if disk.token and disk.token_given == token else token

        # The queue.
        self.queue_id = disk.queue_id or new_id()
        self.last, self.next, self.sent = disk.last, disk.next, disk.sent
        self.is_new = disk.queue_id is None
        self.doubt = disk.sent  # an earlier run may have sent up to here
        self.entries, self.letters, self.size = disk.entries, disk.letters, disk.size
        self.conflicts = dict(disk.conflicts)  # conflict_id -> the letter's n and size
        self.window: dict[int, Entry] = {}
        self.loaded = 0  # the last n that was put into the window
        self.loading = False
        self.flying: dict[int, float] = {}  # n -> since when an answer is due
        self.going_back = self.renew = self.unknown = self.paused = False

        # The store.
        self.cursor = disk.cursor
        self.seq: int | None = None
        self.owed = disk.owed
        self.wanted: list[Tables] = [self.owed] if self.owed else []
        self.fresh: tuple[Tables] | None = None  # the new copy's tables, while it comes
        self.sync_id: str | None = None
        self.restricted = False
        self.covered = 0
        self.newest: dict[str, int] = {}  # table -> the seq of its last change in this session

        # The connection.
        self.connected_, self.online, self.closing = False, False, False
        self.online_since: float | None = None
        self.sync_since: float | None = None
        self.tries = self.pauses = self.sync_pauses = self.node = 0
        self.retry_after = 0.0
        self.push_not_before = self.sync_not_before = 0.0
        self.push_waits = self.sync_waits = False
        self.renew_at: float | None = None
        self.connect_at: float | None = 0.0
        self.refused: Json | None = None
        self.wall = ""
        self.used = self.token  # of the session, or of the last try

        self.out: list[Action] = []

    # -- the connection

    def start(self) -> list[Action]:
        if self.is_new:
            self.out.append(QueueIs(self.queue_id, 0, 0))
            self.is_new = False
        return self._taken()

    def connecting(self) -> str:
        """The token to connect with."""
        self.used = self.token
        return self.used

    def connected(self, now: float, wall: str) -> list[Action]:
        """A connection was made with what `connecting` gave; `wall` is the device's own time."""
        self.connected_, self.closing, self.online = True, False, False
        self.connect_at, self.renew_at, self.wall = None, None, wall
        self.restricted = False
        self._come_online(now)
        return self._taken()

    def disconnected(self, now: float, error: Json | None = None) -> list[Action]:
        """The connection ended, or could not be made; `error` is what the server said as it refused it."""
        if error is not None:
            self._end_of_session(error)
        self.doubt = max([self.doubt, *self.flying])
        self.flying.clear()
        self.pauses += self.paused
        self.going_back = self.renew = self.unknown = self.paused = False
        self.connected_ = self.online = self.closing = False
        self.online_since = self.sync_since = self.renew_at = None
        self._abandon()
        backoff = min(limits.BACKOFF * 2 ** min(self.tries, 16), limits.BACKOFF_MAX) * (0.75 + self.random() / 2)
        wait = max(backoff, self.retry_after * (1 + self.random() / 2))
        self.tries += 1
        self.node += 1
        self.retry_after = 0
        self.connect_at = now + wait
        self.out.append(Connect(self.connect_at))
        return self._taken()

    def new_token(self, token: str, now: float) -> list[Action]:
        """The app has another token: it is tried at once."""
        self.given = self.token = token
        self.refused = None
        if not self.connected_:
            self.connect_at = now
            self.out.append(Connect(now))
        return self._taken()

    def tick(self, now: float) -> list[Action]:
        """To be called at `deadline`; more often does no harm."""
        self._work(now)
        return self._taken()

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        if not self.connected_ or self.closing:
            return None
        times = [since + limits.PATIENCE for since in self.flying.values()]
        times += [since + limits.PATIENCE for since in (self.online_since, self.sync_since) if since is not None]
        if self.online:
            if self.push_waits:
                times.append(self.push_not_before)
            if self.sync_waits:
                times.append(self.sync_not_before)
            if self.renew_at is not None:
                times.append(self.renew_at)
        return min(times, default=None)

    def _come_online(self, now: float) -> None:
        self.online_since = now
        self.seq = number_of(self.cursor) if self.cursor else None
        self.covered = self.seq or 0
        self.newest.clear()
        cursor = {"cursor": self.cursor} if self.cursor else {}
        self._send(
            "device_online",
            {**self.with_online, "device_id": self.device, "timestamp": self.wall, "unsent": self.entries, **cursor},
        )

    def _end_of_session(self, error: Json) -> None:
        self.retry_after = float(error.get("retry_after_ms", 0))
        if error.get("error_code") in TOKEN_CODES and self.used == self.token:
            self.refused = error
            self.retry_after = max(self.retry_after, limits.REFUSED_PAUSE)
            self._tell("token_refused", error)

    def _close(self) -> None:
        self.closing, self.online = True, False
        self.out.append(Close())

    # -- what is heard

    def received(self, event: str, data: Json, now: float) -> list[Action]:
        if not self.connected_ or self.closing:
            return self._taken()
        if event == "acknowledged":
            if data.get("event") == "data_update":
                self._acknowledged(data)
        elif event == "data_update":
            self._live(data)
        elif event == "sync_response":
            self._page(data, now)
        elif event == "device_online_ack":
            if data.get("device_id") == self.device:
                self._is_online(data, now)
        elif event == "error":
            self._error(data, now)
        elif event == "sync_error":
            self._sync_error(data, now)
        elif event == "sync_conflict":
            self._tell("conflict", data)
        elif event == "sync_conflict_resolved":
            self._resolved(data)
        elif event == "access_changed":
            self._access_changed(data)
        elif event == "token_renewed":
            self._renewed(data, now)
        self._work(now)
        return self._taken()

    def _is_online(self, ack: Json, now: float) -> None:
        self.online_since = None
        self.online, self.refused = True, None
        if self.cursor:
            self.tries = 0
        self._plan_renewal(ack.get("timestamp"), now)
        self._tell("online", ack)

    def _error(self, error: Json, now: float) -> None:
        code, event = error.get("error_code"), error.get("event")
        n = self._flying_number(error)
        if code == "1005":
            self._lose_cursor(now)
        elif code in ("3001", "3002"):
            self._end_of_session(error)
            self._close()
        elif n is not None:
            self._entry_refused(n, error, now)
        elif event == "token_renew":
            self.renew_at = now + max(limits.RENEW_PAUSE, error.get("retry_after_ms", 0))
            self._tell("error", error)
        elif event == "sync_request":
            self._sync_error(error, now)
        elif event == "device_online" or (event is None and code not in TOLD_ONLY):
            self._end_of_session(error)
            self._close()
        else:
            self._tell("error", error)

    # -- the queue

    def prepare(self, update: Json, letter: int | None = None, size: int = 0) -> Enqueue:
        """The write that queues a change; `enqueued` takes note once it is on the disk. `letter` (of `size` bytes) is
        what it replaces."""
        enqueue = Enqueue(self.next, update, len(to_json(update).encode()), letter)
        held = self.entries + self.letters - (letter is not None)
        if held >= self.max_entries or self.size - size + enqueue.size > self.max_bytes:
            raise QueueFull(f"{self.entries} changes wait and {self.letters} were refused ({self.size} bytes)")
        return enqueue

    def enqueued(self, entry: Enqueue, now: float, size: int = 0) -> list[Action]:
        if entry.replaces is not None:
            self.letters -= 1
            self.size -= size
        self.next = entry.n + 1
        if self.entries == len(self.window) and len(self.window) < 2 * limits.WINDOW and not self.loading:
            self.window[entry.n] = Entry(entry.n, entry.update, entry.size)
            self.loaded = entry.n
        self.entries += 1
        self.size += entry.size
        self._work(now)
        return self._taken()

    def forgotten(self, n: int, size: int) -> None:
        """The app has dealt with a letter, and it is off the disk."""
        self.letters -= 1
        self.size -= size
        self.conflicts = {conflict: letter for conflict, letter in self.conflicts.items() if letter[0] != n}

    def loaded_entries(self, entries: Sequence[Entry], now: float) -> list[Action]:
        self.loading = False
        if not entries:
            self.entries = len(self.window)  # the disk knows
        for entry in entries:
            self.window[entry.n] = entry
            self.loaded = entry.n
        self._work(now)
        return self._taken()

    def state_of(self, n: int) -> str:
        """Of an entry that is in the queue. One that an earlier session sent without an answer is `sent`, too."""
        return "sent" if n in self.flying or n <= self.doubt else "pending"

    def _flying_number(self, answer: Json) -> int | None:
        queue, _, n = str(answer.get("request_id", "")).rpartition("-")
        if queue != self.queue_id or not n.isascii() or not n.isdigit():
            return None
        return int(n) if int(n) in self.flying else None

    def _acknowledged(self, ack: Json) -> None:
        n = self._flying_number(ack)
        if n is None:
            return
        self._take(n)
        self.last, self.pauses = max(self.last, n), 0
        self.out.append(Settle(n, self.last))
        self._tell("acknowledged", {**ack, "n": n})

    def _take(self, n: int) -> Entry:
        del self.flying[n]
        entry = self.window.pop(n)
        self.entries -= 1
        self.size -= entry.size
        return entry

    def _entry_refused(self, n: int, error: Json, now: float) -> None:
        """An entry was refused. So are those behind it (`after`); they are sent again when all have their answers."""
        field, retry = error.get("field"), error.get("retry")
        self.going_back = True
        if error.get("error_code") == "3004":
            self._close()  # the device is not known any more: it registers again as it comes back
        elif retry != "no":
            if retry != "safe":
                self.unknown = True
                self.doubt = max(self.doubt, n)
            del self.flying[n]
            self._pause_queue(now, error)
        elif field == "after":
            del self.flying[n]
            if isinstance(error.get("last"), int) and error["last"] != self.last:
                self.last = error["last"]
                self.out.append(LastIs(self.last))
            self._pause_queue(now, {"retry_after_ms": 50})
        elif field == "n" or (field == "queue" and n > self.doubt):
            # The queue's file was copied or set back, or the cluster has forgotten the queue; this entry was surely
            # not applied. What waits goes on in a new queue.
            del self.flying[n]
            self.renew = True
            self._pause_queue(now, error)
        else:
            entry = self._take(n)
            state = "refused"
            if isinstance(error.get("conflict_id"), int):
                # It is kept with the conflict: for the cluster it was the queue's next entry.
                state, self.last = "conflict", max(self.last, n)
                self.conflicts[error["conflict_id"]] = (n, entry.size)
            self.letters += 1
            self.size += entry.size
            self.out.append(Bury(n, state, error, self.last))
            self._tell(state, {"n": n, "update": entry.update, "error": error})

    def _pause_queue(self, now: float, error: Json) -> None:
        """A pause grows with the rounds that were refused, however many entries of a round were."""
        self.push_not_before = max(self.push_not_before, now + self._pause(self.pauses, error))
        self.paused = True

    def _pause(self, pauses: int, error: Json) -> float:
        least = float(error.get("retry_after_ms", min(limits.PAUSE * 2 ** min(pauses, 16), limits.PAUSE_MAX)))
        return least * (1 + self.random() / 2)

    def _resolved(self, resolved: Json) -> None:
        letter = self.conflicts.get(resolved.get("conflict_id", -1))
        if letter is not None:
            self.out.append(Forget(letter[0]))
            self.forgotten(*letter)
        self._tell("resolved", resolved)

    # -- the store

    def sync(self, tables: Tables, now: float) -> list[Action]:
        """The app wants a full sync, of all or of these tables."""
        if tables not in self.wanted and len(self.wanted) < limits.SYNCS_WANTED:
            self.wanted.append(tables)
        self._work(now)
        return self._taken()

    def _live(self, change: Json) -> None:
        seq, table = change["seq"], change["table_name"]
        if self.seq is not None:
            if seq <= self.seq:
                return  # a sync brought it already
            missed = change.get("after", 0)
            if not self.restricted and seq > self.seq + 1:
                self._tell("gap", change)
                return self._close()  # it resumes where it was
            if self.restricted and missed > max(self.newest.get(table, 0), self.covered):
                self._tell("gap", change)
                if self.cursor is None or missed > number_of(self.cursor):
                    return self._close()
                self._forget_cursor()  # later changes moved it past what is missing
        self.seq = seq
        self.newest[table] = seq
        data = None if change["operation"] == "delete" else change["new_data"]
        to_fresh = self.fresh is not None and (self.fresh[0] is None or table in self.fresh[0])
        if self.cursor is not None or to_fresh:
            self.out.append(Put(table, change["record_id"], seq, data, self.cursor is not None, to_fresh))
        if self.cursor is not None:
            self.cursor = change["cursor"]
            self.out.append(CursorIs(self.cursor))
        self._tell("change", change)

    def _lose_cursor(self, now: float) -> None:
        """The cursor is of another history, or too old: a full sync is owed. The old copy stays until it is there."""
        self._forget_cursor()
        self._come_online(now)

    def _forget_cursor(self) -> None:
        self.cursor = self.seq = None
        self.out.append(CursorIs(None))
        self.wanted = [self.owed] if self.owed else []
        self._abandon()  # pages that are under way are let pass before another sync is asked for

    def _abandon(self) -> None:
        if self.fresh is not None:
            self.out.append(Abandon())
            self.fresh = None

    def _sync_error(self, error: Json, now: float) -> None:
        was_asked, self.sync_since = self.sync_since is not None, None
        if error.get("error_code") == "1005":
            return self._lose_cursor(now)
        if not was_asked:
            return self._tell("error", error)
        tables = None if self.fresh is None else self.fresh[0]
        if tables is not None and error.get("error_code") in ("2004", "3003"):
            self._drop_sync(tables)  # it would be refused for ever
        self._abandon()
        self.sync_not_before = now + self._pause(self.sync_pauses, error)
        self.sync_pauses += 1
        self._tell("error", error)

    def _page(self, page: Json, now: float) -> None:
        if self.sync_since is None:
            return
        if self.fresh is None:  # of a sync that is not wanted any more
            self.sync_since = now if page["has_more"] else None
            return
        if page.get("page") == 1:
            self.sync_id = page["sync_id"]
        if page["sync_id"] != self.sync_id:
            return
        (tables,) = self.fresh
        self.sync_since = now
        for change in page["changes"]:
            data = None if change["operation"] == "delete" else change["data"]
            self.out.append(Put(change["table_name"], change["record_id"], change["seq"], data, False, True))
        if page["has_more"]:
            return
        self.fresh = self.sync_since = self.sync_id = None
        if tables in self.wanted:
            self.wanted.remove(tables)
        reached = number_of(page["cursor"])
        if tables is None:
            if self.cursor is None or number_of(self.cursor) < reached:
                self.cursor = page["cursor"]
            self.seq = max(self.seq or 0, reached)
            self.covered = max(self.covered, reached)
        else:
            for table in tables:
                self.newest[table] = max(self.newest.get(table, 0), reached)
        self.out.append(Switch(tables, self.cursor))
        if tables is not None:
            self._paid(tables)
        self.tries = self.pauses = self.sync_pauses = 0
        self._send(
            "sync_complete",
            {
                "device_id": self.device,
                "sync_id": page["sync_id"],
                "sync_timestamp": page["timestamp"],
                "changes_count": page["total"],
            },
        )
        self._tell("synced", {"tables": tables, "cursor": page["cursor"], "total": page["total"]})

    def _drop_sync(self, tables: tuple[str, ...]) -> None:
        self.wanted = [wanted for wanted in self.wanted if wanted != tables]
        self._paid(tables)

    def _paid(self, tables: Iterable[str]) -> None:
        left = tuple(table for table in self.owed if table not in tables)
        if left != self.owed:
            self.owed = left
            self.out.append(Owed(left))

    def _access_changed(self, access: Json) -> None:
        rights = access["tables"]
        self.restricted = "none" in rights.values()
        if rights.get("*") == "none":
            self.out.append(Drop(tuple(t for t, right in rights.items() if t != "*" and right != "none"), True))
        elif gone := tuple(dict.fromkeys([*access["forget"], *(t for t, right in rights.items() if right == "none")])):
            self.out.append(Drop(gone, False))
            self._paid(gone)
        if resync := tuple(access["resync"]):
            self.owed = tuple(dict.fromkeys([*self.owed, *resync]))
            self.out.append(Owed(self.owed))
            if resync not in self.wanted:
                self.wanted.append(resync)
        self._tell("access", access)

    # -- the token

    def _plan_renewal(self, server_time: Any, now: float) -> None:
        """Half of its life before its end, by the cluster's clock. A long life counts as that of a renewed one."""
        try:
            claims = claims_of(self.token)
            ends, began = float(claims["exp"]) * 1000, float(claims["iat"]) * 1000
            self.renew_at = now + (ends - min(ends - began, limits.PAIRED_LIFE) / 2) - ms_of(server_time)
        except (KeyError, TypeError, ValueError, AttributeError):
            self.renew_at = None  # it says nothing of its end

    def _renewed(self, renewed: Json, now: float) -> None:
        self.token = renewed["token"]
        self.out.append(TokenIs(self.given, self.token))
        self._plan_renewal(renewed.get("timestamp"), now)
        if self.renew_at is not None:  # one that lives for seconds only is not renewed all the time
            self.renew_at = max(self.renew_at, now + 1_000)
        self._tell("token_renewed", {"expires": renewed.get("expires")})

    # -- what is to be done

    def _work(self, now: float) -> None:
        if not self.connected_ or self.closing:
            return
        due = [*self.flying.values(), *(t for t in (self.online_since, self.sync_since) if t is not None)]
        if due and now - min(due) >= limits.PATIENCE:
            return self._close()  # an answer is missing: come again, and send again
        if not self.online:
            return
        if self.renew_at is not None and now >= self.renew_at:
            self.renew_at = now + limits.RENEW_PAUSE
            self._send("token_renew", {})
        self._ask_for_sync(now)
        self._push(now)

    def _ask_for_sync(self, now: float) -> None:
        if self.cursor is None and None not in self.wanted:
            self.wanted.insert(0, None)
        self.sync_waits = bool(self.wanted) and self.sync_since is None and now < self.sync_not_before
        if not self.wanted or self.sync_since is not None or self.sync_waits:
            return
        tables = self.wanted[0]
        self.sync_since, self.fresh, self.sync_id = now, (tables,), None
        self.out.append(Begin(tables))  # what is heard from here on belongs to the new copy
        some = {"requested_tables": list(tables)} if tables else {}
        self._send("sync_request", {"device_id": self.device, "sync_type": "full", **some})

    def _push(self, now: float) -> None:
        """Sends the queue in order, a window ahead of the answers."""
        self.push_waits = False
        if self.loading or (self.going_back and self.flying):
            return
        if self.going_back:
            # What may have been applied under the old id must be known before there is a new one.
            if self.renew and not self.unknown:
                self.queue_id, self.last, self.sent, self.doubt = self.new_id(), 0, 0, 0
                self.out.append(QueueIs(self.queue_id, 0, 0))
            self.pauses += self.paused
            self.going_back = self.renew = self.unknown = self.paused = False
        self.push_waits = self.entries > 0 and now < self.push_not_before
        if self.push_waits:
            return
        if len(self.window) < min(limits.WINDOW, self.entries):
            self.loading = True
            self.out.append(Load(self.loaded, limits.WINDOW))
            return
        after, flying_bytes = self.last, 0
        for ahead, entry in enumerate(list(self.window.values())[: limits.WINDOW]):
            flying_bytes += entry.size
            if ahead and flying_bytes > limits.WINDOW_BYTES:
                break
            if entry.n not in self.flying:
                self._send_entry(entry, min(after, entry.n - 1), now)
            after = max(after, entry.n)

    def _send_entry(self, entry: Entry, after: int, now: float) -> None:
        """`after` may be anything for an entry behind `last`: it was applied, and its answer got lost."""
        if entry.n > self.sent:
            self.sent = entry.n
            self.out.append(MarkSent(entry.n))
        self.flying[entry.n] = now
        numbers = {"queue": self.queue_id, "n": entry.n, "after": after, "request_id": f"{self.queue_id}-{entry.n}"}
        self._send("data_update", {**entry.update, **numbers})

    def _send(self, event: str, data: Json) -> None:
        self.out.append(Send(event, data))

    def _tell(self, kind: str, data: Json) -> None:
        self.out.append(Tell(kind, data))

    def _taken(self) -> list[Action]:
        out, self.out = self.out, []
        return out


def writes_of(actions: Iterable[Action]) -> list[Any]:
    """The writes among actions, in order."""
    return [action for action in actions if not isinstance(action, Send | Close | Connect | Load | Tell)]
