"""Changes as they are queued, and what is checked of them before."""

from __future__ import annotations

import base64
import json
import secrets
from typing import Any

from . import limits
from .actions import Json
from .errors import InvalidChange

OPERATIONS = ("insert", "update", "delete")


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def new_record_id() -> int:
    """A record's id that no other device draws. Counters on two tills collide; this does not."""
    return 1 + secrets.randbelow(limits.RECORD_IDS - 1)


def claims_of(token: str) -> Json:
    """What a token says of itself. It is not verified: only the cluster can."""
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError) as error:
        raise ValueError("the token is none") from error
    if not isinstance(claims, dict) or not isinstance(claims.get("sub"), str):
        raise ValueError("the token names no device")
    return claims


def depth_of(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.append(list(item.values()))
            elif isinstance(item, (list, tuple)):
                inner.append(item)
        deepest += bool(inner)
        level = [item for items in inner for item in items]
        if deepest > limits.DATA_DEPTH:
            break
    return deepest


def checked(
    device: str,
    table: str,
    record_id: int,
    data: Json | None,
    operation: str,
    base_version: int | None = None,
    timestamp: str | None = None,
) -> Json:
    """The `data_update` of a change, if Tillsync can take it."""
    if not isinstance(table, str) or not table.strip() or not table.isprintable():
        raise InvalidChange("table_name", "must be a name that can be seen")
    if len(table.encode("utf-8", "surrogatepass")) > limits.TABLE_NAME:
        raise InvalidChange("table_name", f"has more than {limits.TABLE_NAME} bytes")
    if type(record_id) is not int or not -(1 << 63) <= record_id < 1 << 63:
        raise InvalidChange("record_id", "must be a whole number of 64 bits")
    if operation not in OPERATIONS:
        raise InvalidChange("operation", f"must be one of {', '.join(OPERATIONS)}")
    if base_version is not None and (type(base_version) is not int or base_version < 0):
        raise InvalidChange("base_version", "must be a count")
    update: Json = {"device_id": device, "table_name": table, "record_id": record_id, "operation": operation}
    if operation != "delete":
        if not isinstance(data, dict):
            raise InvalidChange("new_data", "must be an object")
        if depth_of(data) > limits.DATA_DEPTH:
            raise InvalidChange("new_data", f"is nested deeper than {limits.DATA_DEPTH} levels")
        try:
            text = to_json(data)
            size = len(text.encode())
        except (TypeError, ValueError) as error:
            raise InvalidChange("new_data", f"is no JSON: {error}") from error
        if size > limits.RECORD_DATA:
            raise InvalidChange("new_data", f"has more than {limits.RECORD_DATA} bytes")
        update["new_data"] = json.loads(text)  # the app may go on changing what it gave
    if base_version is not None:
        update["base_version"] = base_version
    if timestamp is not None:
        update["timestamp"] = timestamp
    return update
