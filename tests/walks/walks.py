"""The walk-throughs: which blocks of the pages are typed where, what happens meanwhile, and what must hold."""

import os
import pathlib
import shutil
import signal
import subprocess

import page
from lab import Failed, until
from session import MEMBERSHIP, READY, WALKS, Section, walk

__all__ = ["WALKS"]

INSTALL = Section("Install", 1, 2, 3, 5, 6)
INSTALL_ONE = Section("Install", 1, 2, 6)
GROW = "From one node to three to five"


@walk("install", "Install", Section("Install"))
def install(session):
    session.install_nodes(doctor=True)


@walk("change-ca", "Change the CA", INSTALL, Section("Change the CA"), short=True)
def change_ca(session):
    session.install()
    till = session.till().begin()
    session.asks("tillsync watch >watch.log 2>&1 &", must=True)

    def connections():
        return session.asks("cat watch.log")[1].count("connected to")

    until("a session is open", connections)
    for at in (1, 2, 3):
        session.type("Change the CA", at)
        till.await_writes()
        if at == 2 and connections() != 1:
            raise Failed("the page says that open connections stay when a node takes its certificate over")
    session.ended(till)
    session.fails("tillsync health --url https://10.0.17.1:5000 --ca old/ca.crt")


@walk("grow", "From one node to three", INSTALL_ONE, Section(GROW, 1, 2), short=True)
def grow(session):
    session.machines(1)
    session.certificates()
    session.type(GROW, 1)
    session.type("Install", 6, fails=True, compare=False)
    till = session.till(nodes=(1,)).begin()
    for n in (2, 3):
        session.machines(n)
        join = "'\"10.0.17.1:5100\"'" if n == 2 else '\'"10.0.17.1:5100","10.0.17.2:5100"\''
        session.on("office").type(f"rm -f node-{n}.crt node-{n}.key")
        session.type(GROW, 2, given={"N": n, "JOIN": join})
        till.await_writes()
    session.ended(till)
    session.voters(1, 2, 3)


@walk("health", "`health --ready` over TLS", INSTALL, Section("With containers", 3), short=True)
def health(session):
    session.install()
    session.type("With containers", 3)
    session.note("nodes 2 and 3 lose their power")
    for n in (2, 3):
        session.node(n).unit().stop(signal.SIGKILL)
    until(
        "node 1 is not ready",
        lambda: session.asks("tillsync health --ready --url https://10.0.17.1:5000 --ca ca.crt")[0],
    )
    session.fails(f"ssh root@10.0.17.1 {READY}", "refused it: this node ")
    session.fails("tillsync health --ready --url https://10.0.17.1:5000 --ca ca.crt", "refused it: this node ")
    code, printed = session.asks("ssh root@10.0.17.1 tillsync health --config /etc/tillsync/node.toml")
    if code:
        raise Failed(f"a node without a quorum is there, and health says that it is not: {printed}")
    for n in (2, 3):
        session.node(n).unit().start()
    # One that has two others at its side again; the first of them may still be about to take part.
    ready = " && ".join(f"ssh root@10.0.17.{n} {READY}" for n in (2, 3, 1))
    until("all nodes are ready", lambda: not session.asks(ready)[0])
    session.type("With containers", 3)


@walk(
    "containers",
    "With containers: keys and certificates",
    Section("Install", 1),
    Section("With containers", 1),
    short=True,
)
def containers(session):
    session.type("Install", 1)
    session.type("With containers", 1)
    session.asks(
        "openssl verify -CAfile deploy/etc/ca.crt deploy/etc/node-1.crt deploy/etc/node-2.crt deploy/etc/node-3.crt",
        must=True,
    )


@walk(
    "removed",
    "A removed node's certificate, and a machine in its place",
    INSTALL,
    Section("Replace a machine"),
    Section(GROW, 2),
)
def removed(session):
    session.install()
    till = session.till(nodes=(1, 3)).begin()
    session.type("Replace a machine", 1)
    till.await_writes()
    session.note("somebody starts node 2 again, with its certificate and its folder")
    session.node(2).unit().start()
    until("node 2 ends again", lambda: session.node(2).unit().last == 2)
    session.node(2).unit().stop()
    session.logs("node-2", "was removed")
    session.note("and with its certificate and an empty folder")
    session.node(2).run("mv /var/lib/tillsync /var/lib/tillsync.old")
    session.node(2).journal("tillsync").rename("/run/walk/journal/node-2.before")
    session.node(2).unit().last = None
    session.node(2).unit().start()
    until("node 2 ends again", lambda: session.node(2).unit().last == 2)
    session.node(2).unit().stop()
    session.logs("node-2", "was removed")
    session.machines(4)
    session.type(GROW, 2, given={"N": 4})
    session.ended(till)
    session.voters(1, 3, 4)


LOST = "Most of the disks are lost"


@walk("recover", "Majority lost, and recovered", INSTALL, Section(LOST, of=MEMBERSHIP), Section(GROW, 2))
def recover(session):
    session.install()
    till = session.till(nodes=(1, 2, 3)).begin()
    till.await_writes(10)
    till.stop()
    # What most nodes have is on this one as well, as soon as it says so.
    until("node 3 has all of it", session.even)
    session.note("the disks of nodes 1 and 2 are lost")
    for n in (1, 2):
        session.node(n).unit().stop(signal.SIGKILL)
        session.node(n).run("mv /var/lib/tillsync /var/lib/tillsync.lost")
    session.type(LOST, 1, of=MEMBERSHIP)
    session.type(LOST, 2, of=MEMBERSHIP, typed="no\n", fails=True, compare=False)
    session.type(LOST, 2, of=MEMBERSHIP, typed="yes\n")
    session.type(LOST, 3, of=MEMBERSHIP)
    for n in (4, 5):
        session.machines(n)
        session.type(GROW, 2, given={"N": n, "JOIN": "'\"10.0.17.3:5100\"'"})
    session.voters(3, 4, 5)
    till.nodes = ["10.0.17.4"]
    if lost := till.missing():
        raise Failed(f"writes of {till.name} are lost: {lost[:10]}")
    session.note(f"each of the {len(till.acknowledged)} writes that till-1 had acknowledged is there, asked at node 4")
    session.note("node 1 turns up, with its disk")
    session.node(1).run("mv /var/lib/tillsync.lost /var/lib/tillsync")
    session.node(1).unit().start()
    session.logs("node-1", "two clusters are named")
    session.fails("tillsync health --ready --url https://10.0.17.1:5000 --ca ca.crt", "this node takes no part yet")
    session.voters(3, 4, 5)


DEVICES = "Devices, and who may do what"


@walk("stolen", "A stolen till", INSTALL, Section(DEVICES), short=True)
def stolen(session):
    session.install()
    till, other = session.till("till-3"), session.till("till-1", "10.0.17.102").begin()
    till.register()
    status, asked = till.once("POST", "/device/pair", {"device_id": "till-3", "name": "at the door"})
    if status != 200:
        raise Failed(f"till-3 cannot ask to be let in: {asked}")
    code = asked["code"]
    session.note(f"till-3 shows {code}")
    session.on("office").type(f"echo {till.token} >till-3.token")
    session.type(DEVICES, 1, given={"CODE": code})
    session.note("till-3 comes back")
    other.await_writes()
    till.token = session.later_token("till-3")
    till.register()
    if till.write(9001)[0] != 200:
        raise Failed("till-3 cannot write with a new token")
    session.type(DEVICES, 2)
    status, refused = till.write(9002)
    session.note(f"what the thief is told: {status} {refused}")
    if status not in (401, 403):
        raise Failed(f"the stolen till is not refused: {status} {refused}")
    till.token = session.on("office").machine.path("/root/till-3.token").read_text().strip()
    if (got := till.write(9003))[0] != 200:
        raise Failed(f"the till in its place is refused: {got}")
    session.ended(other)


@walk("disk-full", "All disks full", INSTALL, Section("A disk that runs full"))
def disk_full(session):
    session.note(
        "each node's disk has 300 MB, and disk_low_mb is 150, disk_min_mb 80: so that the test needs less memory"
    )
    session.disk = "300m"
    session.install(TILLSYNC_DISK_LOW_MB=150, TILLSYNC_DISK_MIN_MB=80)
    till = session.till().begin()
    till.await_writes()
    session.note("logs fill the disks: 50 MB are left")
    for n in (1, 2, 3):
        free = shutil.disk_usage(session.node(n).disk).free // 2**20
        session.node(n).run(f"mkdir -p /var/log/journal && fallocate -l {free - 50}M /var/log/journal/system.journal")
    until("writes are refused", lambda: till.refusals and till.refusals[-1][0] == 503)
    session.note(f"what a till is told: {till.refusals[-1]}")
    if "5003" not in str(till.refusals[-1][1]):
        raise Failed(f"not with 5003: {till.refusals[-1]}")
    if till.once("GET", f"/data/sales/{till.acknowledged[0]}")[0] != 200:
        raise Failed("nothing can be read")
    gone = till.acknowledged.pop(0)
    delete = {"device_id": till.name, "operation": "delete"}
    if (got := till.once("POST", f"/data/sales/{gone}", delete))[0] != 200:
        raise Failed(f"nothing can be deleted: {got}")
    ids = [session.node(n).unit().process.pid for n in (1, 2, 3)]
    printed = session.type("A disk that runs full", 1)
    if "DISK" not in printed:
        raise Failed("the status does not show it")
    till.await_writes()
    if ids != [session.node(n).unit().process.pid for n in (1, 2, 3)]:
        raise Failed("a node was restarted")
    session.ended(till, most=120)


@walk(
    "disk-slow",
    "Slow disks",
    INSTALL,
    Section("A disk that is slow"),
    unable=lambda: None if shutil.which("cc") else "no C compiler (cc)",
)
def disk_slow(session):
    source = page.ROOT / "tests/cluster/faulty_disk.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "/run/walk/disk.so", source, "-ldl"], check=True)
    faults = pathlib.Path("/run/walk/disk")
    faults.mkdir(mode=0o755)
    session.install(LD_PRELOAD="/run/walk/disk.so", FAULTY_DISK=faults)
    till = session.till().begin()
    till.await_writes()
    session.note("each flush of each disk takes 150 ms from now on, and the power fails")
    (faults / "slow").write_text("150")
    for n in (1, 2, 3):
        session.node(n).unit().stop(signal.SIGKILL)
    for n in (1, 2, 3):
        session.node(n).unit().start()
    till.await_writes(patience=60)
    printed = session.type("A disk that is slow", 1, fails=True)
    if "takes long to flush" not in printed or "bad   disk" not in printed:
        raise Failed("the page says that the log and doctor show it")
    session.ended(till, most=30)


FAKETIME = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
]
FAKETIME = next((path for path in FAKETIME if os.path.exists(path)), None)


@walk(
    "clock",
    "A clock that is wrong",
    INSTALL,
    Section("A clock that is wrong"),
    short=True,
    unable=lambda: None if FAKETIME else "no libfaketime",
)
def clock(session):
    pathlib.Path("/run/walk/clock-node-2").write_text("+0\n")
    session.wrong = {
        "LD_PRELOAD": FAKETIME,
        "FAKETIME_TIMESTAMP_FILE": "/run/walk/clock-node-2",
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    session.install()
    till = session.till(nodes=(1, 3)).begin()
    till.await_writes()
    session.note("the clock of node 2 is 31 days ahead")
    pathlib.Path("/run/walk/clock-node-2").write_text("+31d\n")
    until("node 2 is not ready", lambda: session.asks(f"ssh root@10.0.17.2 {READY}")[0])
    until("the status shows it", lambda: "CLOCK" in session.status())
    session.type("A clock that is wrong", 1, fails=True)
    session.type("A clock that is wrong", 2)
    session.type("A clock that is wrong", 3, fails=True)
    session.ended(till)
    session.voters(1, 2, 3)


@walk(
    "restore", "Backup, and restore on new machines", INSTALL, Section("Backup"), Section("Restore"), Section(GROW, 2)
)
def restore(session):
    session.install()
    till = session.till().begin()
    till.await_writes(10)
    session.type("Backup", 1)
    till.await_writes(10)
    till.stop()
    session.type("Backup", 2)
    session.type("Backup", 3)
    taken = session.asks("ls /var/lib/tillsync-backup/*.backup", must=True)[1].strip()
    session.note(f"the timer's service took and verified {taken}")
    session.note("the three machines are lost")
    for n in (1, 2, 3):
        session.node(n).unit().stop(signal.SIGKILL)
    session.machines(4)
    session.type("Restore", 1)
    for n in (5, 6):
        session.machines(n)
        session.type(GROW, 2, given={"N": n, "JOIN": "'\"10.0.17.4:5100\"'"})
    session.voters(4, 5, 6)
    till.nodes = ["10.0.17.6"]
    if lost := till.missing():
        raise Failed(f"writes of {till.name} are lost: {lost[:10]}")
    session.note(f"each of the {len(till.acknowledged)} writes that till-1 had acknowledged is there, asked at node 6")


@walk("upgrade", "Rolling upgrade, and back", INSTALL, Section("Upgrade"))
def upgrade(session):
    session.release = session.lab.before
    if session.lab.before == session.lab.binary:
        session.note("both releases are copies of one binary here")
    session.install()
    till = session.till().begin()
    for n in (3, 1, 2):
        session.type("Upgrade", 1, given={"N": n})
        till.await_writes()
    for n in (1, 3, 2):
        session.type("Upgrade", 2, given={"N": n})
        till.await_writes()
    for n in (2, 1, 3):
        session.type("Upgrade", 1, given={"N": n})
        till.await_writes()
    session.type("Upgrade", 3, fails=session.lab.before == session.lab.binary)
    till.await_writes()
    session.ended(till)
    session.voters(1, 2, 3)


@walk("status", "See how it is", INSTALL, Section("See how it is", of=MEMBERSHIP))
def status(session):
    session.install()
    session.type("See how it is", 1, of=MEMBERSHIP)


@walk(
    "first-node",
    "The first node, in a folder",
    Section("Install", 1),
    Section("The first node", of=MEMBERSHIP),
    short=True,
)
def first_node(session):
    session.machines(1)
    printed = session.type("The first node", 1, of=MEMBERSHIP, on="node-1")
    session.note("what it says comes next, in this order")
    next_ones = [line.strip() for line in printed.splitlines() if line.startswith("  tillsync ")]
    for command in next_ones:
        session.note(f"node-1: {command}")
        if " serve " in command:
            session.serves("node-1", "store")
        else:
            session.asks(command, True, "node-1")


ADDRESSES = "Other addresses"


@walk("address", "A node that is reached at another address", INSTALL, Section(ADDRESSES, of=MEMBERSHIP))
def address(session):
    session.install()
    till = session.till(nodes=(1, 3)).begin()
    session.note("the machine of node 2 gets the address 10.0.18.2, and node 2 listens on every address")
    session.asks("tillsync certs issue 2 --host 10.0.18.2 --replace", must=True)
    session.asks("scp node-2.crt node-2.key root@10.0.17.2:/etc/tillsync/", must=True)
    two = session.node(2)
    two.run("sed -i 's/^raft_listen = .*/raft_listen = \"0.0.0.0:5100\"/' /etc/tillsync/node.toml")
    two.unit().stop()
    two.run("ip addr add 10.0.18.2/24 dev eth0; ip addr del 10.0.17.2/24 dev eth0; ip route add 10.0.17.0/24 dev eth0")
    for machine in ("node-1", "node-3", "office"):
        session.lab.machines[machine].run("ip route add 10.0.18.0/24 dev eth0")
    two.unit().start()
    session.type(ADDRESSES, 1, of=MEMBERSHIP)
    session.note("its `members` entry says so from now on, and it is restarted")
    member = 'raft = "10.0.18.2:5100", gateway = "10.0.18.2:5000"'
    two.run(f"sed -i 's/id = 2, raft = [^}}]*/id = 2, {member} /' /etc/tillsync/node.toml")
    two.unit().stop()
    two.unit().start()
    session.asks("export TILLSYNC_URL=https://10.0.17.1:5000,https://10.0.18.2:5000,https://10.0.17.3:5000")
    session.voters(1, 2, 3)
    until(
        "its new address is there", lambda: any(row[0] == "2" and row[-1] == "10.0.18.2:5000" for row in session.rows())
    )
    session.note("the status then:\n" + session.status().rstrip())
    session.ended(till)


@walk(
    "loopback",
    "One node on loopback becomes a cluster of two machines",
    Section("Install", 1),
    Section(GROW, 3),
    short=True,
)
def loopback(session):
    session.machines(1)
    begin = "tillsync cluster init store --name store-17 --raft 127.0.0.1:5100 --gateway 10.0.17.1:5000"
    ready = "tillsync health --ready --config store/node.toml"
    session.note(f"node-1: {begin}")
    session.asks(begin, must=True, machine="node-1")
    session.serves("node-1", "store")
    url = "--url http://10.0.17.1:5000 --token $(cat store/token)"
    session.asks(
        "tillsync token issue --class admin --sub boss --key store/token.key >store/token", must=True, machine="node-1"
    )
    session.asks(
        f"echo id >lines.csv; seq 1 100 >>lines.csv; tillsync load lines.csv --table t --key id {url}", True, "node-1"
    )
    session.asks("kill %1; wait %1", machine="node-1")
    session.type(GROW, 3, on="node-1")
    session.serves("node-1", "store")
    session.note("node 2 is started with `join`, and added")
    two = session.lab.machine("node-2", "10.0.17.2", session.release)
    two.run("install -m 0755 tillsync /usr/local/bin/ && mkdir store")
    session.asks("tillsync certs issue 2 --dir store && cp store/node.toml two.toml", True, "node-1")
    changes = 's/node_id = 1/node_id = 2/; s/^members = .*/join = ["10.0.17.1:5100"]/; s/node-1/node-2/; '
    changes += 's/^\\(.*_listen = "\\)10.0.17.1/\\110.0.17.2/'
    session.asks(f"sed -i '{changes}' two.toml", True, "node-1")
    session.asks(
        "scp store/token.key store/ca.crt store/node-2.crt store/node-2.key root@10.0.17.2:store/", True, "node-1"
    )
    session.asks("scp two.toml root@10.0.17.2:store/node.toml", True, "node-1")
    session.serves("node-2", "store", ready=False)
    add = "tillsync cluster add --id 2 --raft 10.0.17.2:5100 --gateway 10.0.17.2:5000"
    session.note("node-1: " + add + "\n" + session.asks(f"{add} {url}", True, "node-1")[1].strip())
    until("node 2 is ready", lambda: not session.asks(ready, machine="node-2")[0])
    count = session.asks(f"tillsync export all.db {url}", True, "node-1")[1]
    session.note("node-1: tillsync export all.db\n" + count.strip())
    if "100 records" not in count:
        raise Failed(f"what it held is not there: {count}")
