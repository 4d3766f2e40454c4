"""`tillsync load` with the leader killed in the middle: DATA=… load.py TILLSYNC CSV TABLE KEY URL URL URL

DATA is the folder of the `tillsync dev` behind the URLs. Exits non-zero with what did not hold.
"""
import csv
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

PATIENCE = 60


def get(url, path, token):
    request = urllib.request.Request(url + path, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def feed(url, table, token):
    changes, cursor = [], ""
    while True:
        page = get(url, f"/sync/changes?limit=1000&tables={table}{cursor}", token)
        changes += page["changes"]
        if not page["has_more"]:
            return changes
        cursor = f"&cursor={page['cursor']}"


def wait(what, condition):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            found = condition()
        except (urllib.error.URLError, OSError):
            found = None
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"waited {PATIENCE} s for {what}")


def same_digest(urls, token):
    """Whether all nodes are at one index; their digests there must be equal."""
    status = [get(url, "/system/cluster", token) for url in urls]
    if len({s["digest_index"] for s in status}) > 1:
        return False
    digests = {s["digest"] for s in status}
    assert len(digests) == 1, f"the digests differ: {status}"
    return True


def main():
    tillsync, path, table, key, *urls = sys.argv[1:]
    data = os.environ["DATA"]
    with open(os.path.join(data, "admin.token")) as file:
        token = file.read().strip()
    with open(path, newline="") as file:
        keys = sorted(int(row[key]) for row in csv.DictReader(file))
    command = [tillsync, "load", path, "--table", table, "--key", key, "--data", data, "--url", ",".join(urls)]

    load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    leader = wait("the load", lambda: (s := get(urls[0], "/system/cluster", token))["head_seq"] > len(keys) // 5
                  and s["leader"])
    with open(os.path.join(data, f"node-{leader}", "pid")) as file:
        os.kill(int(file.read()), signal.SIGKILL)
    under_way = load.poll() is None
    said, _ = load.communicate(timeout=PATIENCE)
    assert load.returncode == 0, said
    assert under_way, "the load was over before the leader was killed"

    wait("equal digests", lambda: same_digest(urls, token))
    feeds = [feed(url, table, token) for url in urls]
    for url, changes in zip(urls, feeds):
        assert sorted(c["record_id"] for c in changes) == keys, f"{url} has not each of {len(keys)} lines once"
        assert changes == feeds[0], f"{url} has other changes, or another order, than {urls[0]}"
    again = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert "nothing sent" in again, again
    print(f"node {leader} killed while it led: {len(keys)} changes, the same on all nodes; sent nothing again: ok")


if __name__ == "__main__":
    main()
