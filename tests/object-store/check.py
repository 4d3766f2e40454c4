"""Backups in a bucket: check.py TILLSYNC    Starts a server that speaks S3 and a node; fails with what did not hold."""
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import boto3

PATIENCE = 90
BUCKET = "shop"
TILLSYNC = os.path.abspath(sys.argv[1])
# Before so many requests were answered the server asks for no signature: those that make the bucket and the key.
UNSIGNED = 4
MULTIPART = 8 << 20

running = []


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what, look):
    end = time.monotonic() + PATIENCE
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.1)


def start(command, log, **more):
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **more)
    running.append(process)
    return process


class Store:
    """The server, with one bucket, and a key that it checks."""

    def __init__(self, log):
        port = free_port()
        server = [os.path.join(os.path.dirname(sys.executable), "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
        self.process = start(server, log, env={**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": str(UNSIGNED)})
        self.url = f"http://127.0.0.1:{port}"
        until("the server", self.listens)
        first = self.client("s3", "none", "none")
        first.create_bucket(Bucket=BUCKET)
        iam = self.client("iam", "none", "none")
        iam.create_user(UserName="tillsync")
        allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        iam.put_user_policy(UserName="tillsync", PolicyName="bucket", PolicyDocument=policy)
        key = iam.create_access_key(UserName="tillsync")["AccessKey"]
        self.id, self.secret = key["AccessKeyId"], key["SecretAccessKey"]
        self.s3 = self.client("s3", self.id, self.secret)

    def listens(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self.url.rsplit(":", 1)[1]))) == 0

    def client(self, service, key, secret):
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
        )

    def environment(self, secret=None):
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.id,
            "AWS_SECRET_ACCESS_KEY": secret or self.secret,
        }

    def names(self, prefix):
        return [found["Key"] for found in self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]


class Node:
    """A cluster of one, whose backups go to the bucket by schedule."""

    def __init__(self, folder, store, log):
        self.folder, self.port = folder, free_port()
        gateway, raft = f"127.0.0.1:{self.port}", f"127.0.0.1:{free_port()}"
        run(["cluster", "init", str(folder), "--name", "shop-17", "--gateway", gateway, "--raft", raft])
        settings = folder / "node.toml"
        schedule = {
            "backup_to": f"s3://{BUCKET}/scheduled/17",
            "backup_every": "4s",
            "backup_incremental_every": "1s",
            "backup_verify_every": "3s",
        }
        lines = [f'{key} = "{value}"' for key, value in schedule.items()] + ["backup_keep = 2"]
        settings.write_text("\n".join(lines) + "\n" + settings.read_text())
        serve = [TILLSYNC, "serve", "--config", str(settings)]
        self.process = start(serve, log, env={**os.environ, **store.environment()})
        key = str(folder / "token.key")
        self.token = run(["token", "issue", "--class", "admin", "--sub", "admin", "--key", key]).stdout.strip()
        until("the node", self.ready)
        self.ask("/device/register", {"device_id": "admin"})

    def ready(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5):
                return True
        except OSError:
            return False

    def ask(self, path, body=None):
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def write(self, record, text="x"):
        self.ask(f"/data/sales/{record}", {"new_data": {"n": record, "text": text}})

    def status(self):
        return self.ask("/system/cluster")

    def steps(self):
        """Its child processes, one a backup's step."""
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task").iterdir()
        return [pid for task in tasks for pid in (task / "children").read_text().split()]

    def backups(self):
        return self.status()["nodes"][0]["backup"]


def run(words, environment=None, exit=0):
    """A command of the binary under test."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TILLSYNC_", "AWS_"))}
    done = subprocess.run([TILLSYNC, *words], env={**kept, **(environment or {})}, text=True, capture_output=True)
    assert done.returncode == exit, f"{words} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def scheduled(store, node):
    """Backups come, go on and go; and a bucket that is gone is told."""
    record = 1_000

    def wrote(look):
        nonlocal record
        record += 1
        node.write(record)
        return look()

    def whole():
        return [name for name in store.names("scheduled/17/") if name.endswith(".backup")]

    def has_all():
        names = store.names("scheduled/17/")
        return all(any(name.endswith(end) for name in names) for end in (".backup", ".entries", ".proved"))

    until("a backup, what followed and its proof", lambda: wrote(has_all))
    first = whole()[0]
    until("new backups without the first one", lambda: wrote(lambda: len(whole()) == 2 and first not in whole()))
    assert node.backups()["failed"] is None, node.backups()

    def removed():
        # A backup can come between the two.
        try:
            for name in store.names(""):
                store.s3.delete_object(Bucket=BUCKET, Key=name)
            store.s3.delete_bucket(Bucket=BUCKET)
            return True
        except store.s3.exceptions.ClientError:
            return False

    until("the bucket's end", removed)
    failed = until("a failure", lambda: wrote(lambda: node.backups()["failed"]))
    assert "NoSuchBucket" in failed and store.secret not in failed, failed
    store.s3.create_bucket(Bucket=BUCKET)
    until("a backup again", whole)
    until("the failure's end", lambda: node.backups()["failed"] is None)


def by_hand(store, node, folder):
    """The operator's commands: what is restored is what was there, to the last byte of the rows."""
    place, environment = f"s3://{BUCKET}/by/hand", store.environment()
    cluster = ["--url", f"http://127.0.0.1:{node.port}", "--token", node.token]
    for record in range(1, 181):
        node.write(record, f"{record} " + os.urandom(30_000).hex())
    taken = run(["backup", place, "--keep", "1", *cluster], environment)
    assert store.secret not in taken.stdout + taken.stderr
    name = next(name for name in store.names("by/hand/") if name.endswith(".backup"))
    head = store.s3.head_object(Bucket=BUCKET, Key=name)
    assert head["ContentLength"] > MULTIPART and "-" in head["ETag"], head
    # Up to an entry whose digest the node tells.
    for record in range(500, 600):
        node.write(record)
        status = node.status()
        run(["backup", place, "--incremental", *cluster], environment)
        ends = [int(name.rsplit("-", 1)[1].split(".")[0]) for name in store.names("by/hand/") if name.endswith(".entries")]
        if max(ends) == status["digest_index"]:
            break
    end = f"(log entry {status['digest_index']}, digest {status['digest']}"
    verified = run(["backup", "verify", place, "--scratch", str(folder)], environment)
    assert end in verified.stdout, f"{end} is not in {verified.stdout}"
    assert end in run(["backup", "verify", f"s3://{BUCKET}/{name}", "--scratch", str(folder)], environment).stdout
    data = folder / "restored"
    settings = folder / "restored.toml"
    settings.write_text(
        f"node_id = 7\ncluster_name = \"shop-17\"\ndata_dir = \"{data}\"\nkey_file = \"{node.folder}/token.key\"\n"
        'members = [{ id = 7, raft = "127.0.0.1:5107", gateway = "127.0.0.1:5007" }]\n'
    )
    restored = run(["restore", place, "--config", str(settings), "--scratch", str(folder)], environment)
    assert end in restored.stdout and data.is_dir(), restored.stdout
    left = [found.name for found in folder.iterdir() if found.name.startswith(".tillsync")]
    assert not left, left

    # Whole or not at all: one that was damaged in the bucket is recognised, and nothing comes of it.
    body = bytearray(store.s3.get_object(Bucket=BUCKET, Key=name)["Body"].read())
    body[len(body) // 2] ^= 1
    store.s3.put_object(Bucket=BUCKET, Key=name, Body=bytes(body))
    damaged = run(["backup", "verify", place, "--scratch", str(folder)], environment, exit=1)
    assert "is no whole backup" in damaged.stderr, damaged.stderr


def refused(store, node):
    """What the server says is told; the secret is not."""
    cluster = ["--url", f"http://127.0.0.1:{node.port}", "--token", node.token]
    place = f"s3://{BUCKET}/refused"
    for words, environment, says, exit in [
        (["backup", place, *cluster], store.environment("wrong-secret"), "SignatureDoesNotMatch", 1),
        (["backup", "s3://nobodys/x", *cluster], store.environment(), "NoSuchBucket", 1),
        (["backup", "verify", f"{place}/tillsync-a-00000001-20260101T000000Z-1.backup"], store.environment(), "NoSuchKey", 2),
        (["backup", "verify", place], store.environment(), "has no backup that is meant", 2),
        (["backup", place, *cluster], {**store.environment(), "AWS_ACCESS_KEY_ID": ""}, "AWS_ACCESS_KEY_ID is not set", 2),
        (["backup", place, *cluster], {**store.environment(), "AWS_ENDPOINT_URL": "http://store.example"}, "plain http", 2),
    ]:
        done = run(words, environment, exit)
        assert says in done.stderr and "wrong-secret" not in done.stderr, done.stderr
    assert not store.names("refused/"), store.names("refused/")


def hanging(store, node):
    """A server that hangs costs the node nothing, and the step that waits for it ends with the node."""
    store.process.send_signal(signal.SIGSTOP)
    try:
        record = 2_000

        def waits():
            nonlocal record
            record += 1
            node.write(record)
            return node.steps()

        until("a step", waits)
        for more in range(3_000, 3_050):
            node.write(more)
        step = until("a step", node.steps)
        assert len(step) == 1, step
        node.process.kill()
        node.process.wait()
        until("the end of the step", lambda: not pathlib.Path(f"/proc/{step[0]}").exists())
    finally:
        store.process.send_signal(signal.SIGCONT)


def main():
    with tempfile.TemporaryDirectory() as folder, open(os.path.join(folder, "log"), "w+") as log:
        try:
            store = Store(log)
            node = Node(pathlib.Path(folder) / "node", store, log)
            refused(store, node)
            scheduled(store, node)
            by_hand(store, node, pathlib.Path(folder))
            hanging(store, node)
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read()[-20_000:])
            raise
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
    print("backups in a bucket: ok")


main()
