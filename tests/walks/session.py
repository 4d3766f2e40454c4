"""One walk-through under way: its machines, its pages, its shells, and what must hold of it."""

import contextlib
import time

import page
from lab import Failed, until
from till import Till

PAGES = ("operating.md", "operating-membership.md")
OPERATING, MEMBERSHIP = PAGES
READY = "tillsync health --ready --config /etc/tillsync/node.toml"


class Section:
    """Blocks of a section that a walk-through types: all of them, unless some are named."""

    def __init__(self, section, *only, of=OPERATING):
        self.page, self.section, self.only = of, section, only

    def blocks(self, count):
        return {at - 1 for at in self.only} or set(range(count))


WALKS = {}


class Walk:
    def __init__(self, title, sections, short, seconds, unable, steps):
        self.title, self.sections, self.short, self.seconds = title, sections, short, seconds
        self.unable, self.told = unable, steps

    def steps(self, lab):
        session = Session(lab)
        self.told(session)
        for one in self.sections:
            for at in one.blocks(len(session.blocks(one.section, one.page))):
                if (one.page, one.section, at) not in session.followed:
                    raise Failed(f"{one.page}, {one.section}: block {at + 1} was not typed")


def walk(name, title, *sections, short=False, seconds=180, unable=lambda: None):
    def add(steps):
        WALKS[name] = Walk(title, sections, short, seconds, unable, steps)
        return steps

    return add


class Session:
    """One walk-through under way: its machines, its pages, and the office's shell."""

    def __init__(self, lab):
        self.lab, self.followed, self.shells = lab, set(), {}
        self.pages = {name: page.read(name) for name in PAGES}
        self.note = lab.note
        # Of the nodes' machines: how large their disks are, and what is wrong with the second one.
        self.disk, self.wrong, self.release = None, {}, lab.binary
        lab.machine("office", "10.0.17.9", lab.binary)

    def blocks(self, section, of=OPERATING):
        return self.pages[of][section]

    def on(self, machine):
        if machine not in self.shells:
            self.shells[machine] = self.lab.shell(machine)
        return self.shells[machine]

    def type(self, section, at, on="office", of=OPERATING, **more):
        """Types the `at`-th block of a section, counted from 1."""
        block = self.blocks(section, of)[at - 1]
        self.followed.add((of, section, at - 1))
        return self.on(on).follow(block, **more)

    def node(self, n):
        return self.lab.machines[f"node-{n}"]

    @contextlib.contextmanager
    def aside(self, what):
        """What is typed meanwhile is in the transcript; the page of all of them has only this."""
        self.note(f"[ {what}")
        yield
        self.note("]")

    def machines(self, *numbers, **settings):
        for n in numbers:
            made = self.lab.machine(f"node-{n}", f"10.0.17.{n}", self.release, self.disk)
            made.environment(**settings, **(self.wrong if n == 2 else {}))
            with self.aside(f"node-{n} is installed"):
                self.type("Install", 1, on=f"node-{n}")

    def certificates(self):
        with self.aside("the office has made the keys and the certificates"):
            self.type("Install", 1)
            self.type("Install", 2)

    def install(self, **environment):
        """A cluster of three, as the page says."""
        with self.aside("the nodes 1, 2 and 3 are installed, and serve"):
            self.install_nodes(**environment)

    def install_nodes(self, doctor=False, **environment):
        self.machines(1, 2, 3, **environment)
        self.certificates()
        self.type("Install", 3)
        if doctor:
            # A machine of a test may be a bad one.
            self.type("Install", 4, fails=True)
        self.type("Install", 5)
        self.type("Install", 6)

    def token(self, name, of="sales_assistant"):
        code, printed = self.on("office").type(
            f"tillsync token issue --class {of} --sub {name} --key token.key 2>/dev/null"
        )
        if code:
            raise Failed(printed)
        return printed.strip()

    def till(self, name="till-1", address="10.0.17.101", nodes=(1, 2, 3)):
        """A till, which has `ca.crt` from the office."""
        machine = self.lab.machine(name, address)
        machine.run("mkdir -p /etc/tillsync")
        self.on("office").type(f"scp ca.crt root@{address}:/etc/tillsync/")
        trusted = machine.path("/etc/tillsync/ca.crt")
        return Till(name, self.token(name), trusted, [f"10.0.17.{n}" for n in nodes])

    def ended(self, till, most=10.0):
        """It was never cut off, and everything that it was told is saved is there."""
        till.await_writes()
        till.stop()
        self.note(f"{till.name} had {len(till.acknowledged)} writes acknowledged meanwhile; each is there")
        if till.distrusted:
            raise Failed(f"{till.name} was cut off: {till.distrusted}")
        if till.longest > most:
            raise Failed(
                f"{till.name} could not write for {till.longest:.1f} s; its last refusal: {till.refusals[-1:]}"
            )
        if lost := till.missing():
            raise Failed(f"writes of {till.name} are lost: {lost[:10]}")

    def status(self):
        return self.on("office").type("tillsync cluster status")[1]

    def asks(self, command, must=False, machine="office"):
        """Asked beside the page, and not in the transcript."""
        code, printed = self.on(machine).type(command)
        if must and code:
            raise Failed(f"{command}: {printed}")
        return code, printed

    def serves(self, machine, folder, ready=True):
        """A node that somebody starts by hand, with the settings of a folder."""
        self.asks(f"tillsync serve --config {folder}/node.toml >>serve.log 2>&1 &", True, machine)
        health = f"tillsync health {'--ready' if ready else ''} --config {folder}/node.toml"
        until(f"{machine} answers", lambda: not self.asks(health, machine=machine)[0])

    def later_token(self, name):
        """One that was issued after a revocation: their times count in seconds."""
        second = int(time.time())
        until("the next second has come", lambda: int(time.time()) > second + 1)
        return self.token(name)

    def rows(self):
        """Of the status, each node's row."""
        return [line.split() for line in self.asks("tillsync cluster status")[1].splitlines() if line[:1].isdigit()]

    def even(self):
        applied = [row[3] for row in self.rows()]
        return len(applied) == 3 and len(set(applied)) == 1

    def voters(self, *numbers):
        """These nodes have a vote, and no other one is there."""
        what = {str(n) for n in numbers}
        until(
            f"the nodes with a vote are {sorted(what)}",
            lambda: {row[0] for row in self.rows() if row[1] in ("leader", "voter")} == what,
        )

    def fails(self, command, *with_, machine="office"):
        """It is refused, and says so in these words."""
        code, printed = self.on(machine).type(command)
        self.note(f"{machine}: {command}\n{printed.rstrip()}")
        if not code:
            raise Failed(f"this should have been refused: {command}\n{printed}")
        for word in with_:
            if word not in printed:
                raise Failed(f"{command} does not say {word!r}:\n{printed}")

    def logs(self, machine, words, patience=30.0):
        until(f"{machine} logs {words!r}", lambda: words in self.lab.machines[machine].logged(), patience)
        line = next(line for line in self.lab.machines[machine].logged().splitlines() if words in line)
        self.note(f"{machine} logged: {line}")
