"""A till that sells through any outage, and ends with what the cluster has."""

from .actions import Letter
from .change import new_record_id
from .engine import Change, Status
from .errors import (
    Closed,
    FolderInUse,
    InvalidChange,
    PairingEnded,
    QueueFull,
    Refused,
    TillsyncError,
)
from .pairing import pair
from .till import Client, Record, Till

__all__ = [
    "Change",
    "Client",
    "Closed",
    "FolderInUse",
    "InvalidChange",
    "Letter",
    "PairingEnded",
    "QueueFull",
    "Record",
    "Refused",
    "Status",
    "Till",
    "TillsyncError",
    "new_record_id",
    "pair",
]
__version__ = "0.1.0"
