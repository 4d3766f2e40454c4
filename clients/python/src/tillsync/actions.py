"""What the core hands out for others to do: writes to the disk, and everything else.

Within one list all writes are committed before anything is sent or told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]


# -- writes of the queue


@dataclass(frozen=True, slots=True)
class Enqueue:
    """A new entry; `replaces` is the letter that it was, if it is sent once more."""

    n: int
    update: Json
    size: int
    replaces: int | None = None


@dataclass(frozen=True, slots=True)
class MarkSent:
    """Entries up to `n` may reach the cluster from now on."""

    n: int


@dataclass(frozen=True, slots=True)
class Settle:
    """The entry is committed; `last` is the cluster's last number of the queue."""

    n: int
    last: int


@dataclass(frozen=True, slots=True)
class Bury:
    """The entry leaves the queue and becomes a letter for the app: `refused`, or `conflict`."""

    n: int
    state: str
    error: Json
    last: int


@dataclass(frozen=True, slots=True)
class Forget:
    """The app has dealt with the letter, or its conflict was decided."""

    n: int


@dataclass(frozen=True, slots=True)
class QueueIs:
    """The queue goes on under this id; nothing of it was sent."""

    queue_id: str
    last: int
    sent: int


@dataclass(frozen=True, slots=True)
class LastIs:
    """The cluster's last number of the queue, as a refusal told it."""

    last: int


@dataclass(frozen=True, slots=True)
class TokenIs:
    """The token in place of `given`, which the app gave."""

    given: str
    token: str


# -- writes of the store


@dataclass(frozen=True, slots=True)
class Begin:
    """A full sync begins: an empty new copy, of all tables or of these. One that was not finished goes."""

    tables: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Put:
    """A record's change, unless that copy has a later one. `data` is None for a delete."""

    table: str
    record_id: int
    version: int
    data: Json | None
    to_copy: bool
    to_fresh: bool


@dataclass(frozen=True, slots=True)
class CursorIs:
    """The copy has everything up to here; None: it is of another history, or too old."""

    cursor: str | None


@dataclass(frozen=True, slots=True)
class Switch:
    """The new copy is whole, and is the copy from now on (of these tables, if it is of some)."""

    tables: tuple[str, ...] | None
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Abandon:
    """The new copy will not be finished."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Tables that may not be read any more go: those named, or with `others` all that are not named."""

    tables: tuple[str, ...]
    others: bool


@dataclass(frozen=True, slots=True)
class Owed:
    """Tables that must still be synced in full, also after a restart."""

    tables: tuple[str, ...]


QueueWrite: TypeAlias = Enqueue | MarkSent | Settle | Bury | Forget | QueueIs | LastIs | TokenIs
StoreWrite: TypeAlias = Begin | Put | CursorIs | Switch | Abandon | Drop | Owed
Write: TypeAlias = QueueWrite | StoreWrite


# -- everything else


@dataclass(frozen=True, slots=True)
class Send:
    event: str
    data: Json


@dataclass(frozen=True, slots=True)
class Close:
    """The connection is to end; the runtime says `disconnected` when it has."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect at this time (milliseconds of the clock that the core is told)."""

    at: float


@dataclass(frozen=True, slots=True)
class Load:
    """Hand `loaded` the entries after `after`, at most `limit`."""

    after: int
    limit: int


@dataclass(frozen=True, slots=True)
class Tell:
    """For the app: what happened, and the event's data."""

    kind: str
    data: Json


Action: TypeAlias = Write | Send | Close | Connect | Load | Tell


@dataclass(slots=True)
class Entry:
    n: int
    update: Json
    size: int


@dataclass(slots=True)
class Letter:
    """What was refused for good (`state` is `refused`) or waits for a decision (`conflict`)."""

    n: int
    state: str
    update: Json
    error: Json


@dataclass(slots=True)
class Snapshot:
    """What the disk holds when a program starts."""

    queue_id: str | None
    last: int
    next: int
    sent: int
    entries: int
    letters: int
    size: int
    conflicts: dict[int, tuple[int, int]]
    cursor: str | None
    owed: tuple[str, ...]
    token_given: str | None
    token: str | None
