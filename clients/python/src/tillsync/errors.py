"""What the library raises."""

from __future__ import annotations

from .actions import Json


class TillsyncError(Exception):
    """Everything that this library raises by itself."""


class InvalidChange(TillsyncError, ValueError):
    """A change that Tillsync would never take. Nothing was queued. `field` names what is wrong."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field} {why}")
        self.field = field


class QueueFull(TillsyncError):
    """The queue and its letters hold as much as they may. Nothing was queued."""


class FolderInUse(TillsyncError):
    """Another program uses the folder."""


class PairingEnded(TillsyncError):
    """The pairing was refused, or its code is not good any more."""


class Refused(TillsyncError):
    """The cluster refused a request. `error` is its answer."""

    def __init__(self, error: Json) -> None:
        super().__init__(f"{error.get('error_code')}: {error.get('error')}")
        self.error = error
        self.code = str(error.get("error_code"))


class Closed(TillsyncError):
    """The client was closed."""
