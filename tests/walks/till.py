"""A till: it writes without a pause, each time over a new connection, by whichever node takes it."""

import http.client
import json
import ssl
import threading
import time
import uuid


class Till:
    def __init__(self, name, token, trusted, nodes):
        self.name, self.token, self.trusted, self.nodes = name, token, trusted, nodes
        self.acknowledged, self.refusals, self.distrusted = [], [], None
        self.pause, self.longest = time.monotonic(), 0.0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.work, daemon=True)

    def ask(self, host, method, path, body=None, timeout=5.0):
        """The status and the answer. It trusts what its file of CAs has at this moment."""
        context = ssl.create_default_context(cadata=self.trusted.read_text())
        connection = http.client.HTTPSConnection(host, 5000, timeout=timeout, context=context)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        finally:
            connection.close()

    def once(self, method, path, body=None):
        """By the first node that takes it; the last refusal otherwise."""
        refused = None
        for host in self.nodes:
            try:
                status, answer = self.ask(host, method, path, body)
            except ssl.SSLCertVerificationError as error:
                self.distrusted = f"{host}: {error}"
                refused = (0, self.distrusted)
                continue
            except (OSError, ValueError, http.client.HTTPException) as error:
                refused = (0, f"{host}: {error}")
                continue
            if status < 300:
                return status, answer
            refused = (status, answer)
        return refused

    def begin(self):
        self.register()
        self.thread.start()
        return self

    def register(self, patience=20.0):
        end = time.monotonic() + patience
        while (got := self.once("POST", "/device/register", {"device_id": self.name}))[0] >= 300 or got[0] == 0:
            if time.monotonic() > end:
                raise AssertionError(f"{self.name} cannot register: {got}")
            time.sleep(0.05)

    def write(self, record):
        body = {"device_id": self.name, "new_data": {"n": record}, "request_id": str(uuid.uuid4())}
        return self.once("POST", f"/data/sales/{record}", body)

    def work(self):
        record = 0
        while not self.stopping.is_set():
            record += 1
            status, answer = self.write(record)
            if 200 <= status < 300:
                now = time.monotonic()
                self.longest, self.pause = max(self.longest, now - self.pause), now
                self.acknowledged.append(record)
            else:
                self.refusals.append((status, answer))
            self.stopping.wait(0.05)

    def await_writes(self, more=3, patience=30.0):
        goal, end = len(self.acknowledged) + more, time.monotonic() + patience
        while len(self.acknowledged) < goal:
            if time.monotonic() > end:
                raise AssertionError(f"{self.name} writes nothing any more: {self.refusals[-1:]}")
            time.sleep(0.02)

    def stop(self):
        self.stopping.set()
        self.thread.join(30)

    def missing(self):
        """Of what was acknowledged, what the cluster has not."""
        return [n for n in self.acknowledged if self.once("GET", f"/data/sales/{n}")[0] != 200]
