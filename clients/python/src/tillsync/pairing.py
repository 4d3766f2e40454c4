"""How a device without a token gets one: it shows a code, and a person lets it in."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from .actions import Json
from .errors import PairingEnded, Refused

Path = str | os.PathLike[str]
TIMEOUT = 15
RETRIED = ("1001", "1002", "2005", "5001", "5002", "5003")


def write_private(path: pathlib.Path, text: str) -> None:
    """Puts a file in its place as a whole; only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_suffix(".new")
    with contextlib.suppress(FileNotFoundError):
        new.unlink()
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    with contextlib.suppress(OSError):  # Windows cannot, and need not
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def stored_token(folder: Path) -> str:
    path = pathlib.Path(folder) / "token"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        raise ValueError(f"there is no token: pair the device first, or give one ({path})") from None


def request(url: str, method: str, bearer: str | None, body: Json | None, tls: ssl.SSLContext | None) -> Json:
    headers = {"Content-Type": "application/json"}
    if bearer is not None:
        headers["Authorization"] = f"Bearer {bearer}"
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data=data, headers=headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=TIMEOUT, context=tls) as answer:
            found: Any = json.load(answer)
    except urllib.error.HTTPError as refusal:
        try:
            error = json.load(refusal)
        except ValueError:
            raise refusal from None
        raise Refused(error) from None
    if not isinstance(found, dict):
        raise ValueError("the answer is no object")
    return found


def pair(
    url: str | Sequence[str],
    folder: Path = "till-data",
    *,
    show: Callable[[str], None] = print,
    device: str | None = None,
    name: str | None = None,
    ca: Path | None = None,
    timeout: float | None = None,
) -> str:
    """Asks to be let in, hands `show` the code, and waits for the decision. Gives the token, which is in the folder by
    then. A program that was ended meanwhile, or whose `timeout` (seconds) was over (`TimeoutError`), can go on with the
    same code. Raises `PairingEnded` if it was refused, or took too long for the cluster."""
    urls = [url] if isinstance(url, str) else list(url)
    folder = pathlib.Path(folder)
    tls = ssl.create_default_context(cafile=os.fspath(ca)) if ca is not None else None
    under_way = folder / "pairing"
    turn = 0
    end = None if timeout is None else time.monotonic() + timeout

    def sleep(seconds: float) -> None:
        if end is not None and time.monotonic() + seconds > end:
            raise TimeoutError("the pairing is not decided yet")
        time.sleep(seconds)

    def ask(method: str, path: str, bearer: str | None, body: Json | None) -> Json | None:
        """None: try again."""
        nonlocal turn
        try:
            return request(urls[turn % len(urls)].rstrip("/") + path, method, bearer, body, tls)
        except Refused as refused:
            if refused.code not in RETRIED:
                raise
        except OSError:
            pass
        turn += 1
        return None

    if under_way.exists():
        asked: Json | None = json.loads(under_way.read_text())
    else:
        wanted = {key: value for key, value in (("device_id", device), ("name", name)) if value is not None}
        while (asked := ask("POST", "/device/pair", None, wanted)) is None:
            sleep(2)
        write_private(under_way, json.dumps({key: asked[key] for key in ("code", "secret", "poll_seconds")}))
    assert asked is not None
    show(asked["code"])
    while True:
        try:
            answer = ask("GET", f"/device/pair/{asked['code']}", asked["secret"], None)
        except Refused as refused:
            under_way.unlink(missing_ok=True)
            raise PairingEnded(f"the code is not good any more: {refused}") from None
        if answer is not None and answer["status"] == "approved" and "token" in answer:
            write_private(folder / "token", answer["token"])
            under_way.unlink(missing_ok=True)
            return str(answer["token"])
        if answer is not None and answer["status"] in ("refused", "claimed"):
            under_way.unlink(missing_ok=True)
            raise PairingEnded(f"the pairing is {answer['status']}")
        sleep(asked["poll_seconds"])
