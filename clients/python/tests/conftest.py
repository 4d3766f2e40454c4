"""A cluster for the tests that need one. TILLSYNC_URL, TILLSYNC_TOKEN (an admin's) and TILLSYNC_DATA name it."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import tillsync


@dataclass
class Cluster:
    url: str
    token: str
    data: pathlib.Path

    @property
    def urls(self) -> list[str]:
        host, _, port = self.url.rpartition(":")
        return [f"{host}:{int(port) + i}" for i in range(3)]

    def rest(self, method: str, path: str, body: Any = None, url: str | None = None) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request((url or self.url) + path, data, headers, method=method)
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return json.load(answer)

    def until(self, method: str, path: str, body: Any = None, url: str | None = None) -> Any:
        """The same, while nodes come and go."""
        end = time.monotonic() + 60
        while True:
            try:
                return self.rest(method, path, body, url)
            except OSError as error:
                refused_for_good = isinstance(error, urllib.error.HTTPError) and error.code < 500
                if refused_for_good or time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def feed(self, table: str, url: str | None = None) -> list[Any]:
        changes: list[Any] = []
        cursor = ""
        while True:
            page = self.until("GET", f"/sync/changes?limit=1000&tables={table}{cursor}", url=url)
            changes += page["changes"]
            if not page["has_more"]:
                return changes
            cursor = f"&cursor={page['cursor']}"

    def kill(self, node: int) -> None:
        """`tillsync dev` starts it again."""
        pid = self.pid(node)
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 60
        while self.pid(node) == pid:
            assert time.monotonic() < end, "the node was not started again"
            time.sleep(0.1)

    def pid(self, node: int) -> int:
        try:
            return int((self.data / f"node-{node + 1}" / "pid").read_text())
        except (OSError, ValueError):
            return 0

    def ready(self) -> None:
        for url in self.urls:
            self.until("GET", "/readyz", url=url)

    def till(self, folder: pathlib.Path, device: str | None = None, **more: Any) -> tillsync.Till:
        device = device or f"py-{uuid.uuid4().hex[:8]}"
        return tillsync.Till(self.urls, self.token, folder, device=device, **more)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if "TILLSYNC_URL" not in os.environ:
        pytest.skip("no cluster: TILLSYNC_URL, TILLSYNC_TOKEN and TILLSYNC_DATA name one")
    found = Cluster(os.environ["TILLSYNC_URL"], os.environ["TILLSYNC_TOKEN"], pathlib.Path(os.environ["TILLSYNC_DATA"]))
    found.ready()
    found.until("POST", "/device/register", {"device_id": "admin"})
    yield found


@pytest.fixture
def table() -> str:
    return f"py_{uuid.uuid4().hex[:8]}"
