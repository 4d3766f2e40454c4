"""The machines of a walk-through: namespaces with an own network, own /etc, /var, /usr/local, /root and /run.

All of it is inside one PID namespace, whose end takes the processes, mounts and networks away."""

import json
import pathlib
import re
import resource
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import time

import page

HERE = pathlib.Path(__file__).resolve().parent
WALK = pathlib.Path("/run/walk")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

MACHINE = """
set -e
for place in etc var usr/local root; do
    own=$1/$(echo $place | tr / -)
    mkdir -p $own.upper $own.work
    mount -t overlay -o lowerdir=/$place,upperdir=$own.upper,workdir=$own.work overlay /$place
done
mkdir $2/log
mount --bind $2 /var/lib
mount --bind $2/log /var/log
mkdir -p /var/backups /usr/local/sbin
for name in systemctl journalctl timedatectl; do
    printf '#!/bin/sh\\nexec %s -SE /run/walk/stand_in.py %s "$@"\\n' "$3" $name >/usr/local/sbin/$name
    chmod 0755 /usr/local/sbin/$name
done
cp /run/walk/stand-in /usr/local/sbin/ssh
cp /run/walk/stand-in /usr/local/sbin/scp
mount -t tmpfs tmp /tmp
ip link set lo up
echo ready
exec sleep infinity
"""


class Failed(Exception):
    pass


class Unit:
    """A service of a machine, as systemd runs it: its user, its folders, and again when it failed."""

    def __init__(self, machine, name):
        self.machine, self.name = machine, name
        self.settings = {}
        for line in machine.path(f"/etc/systemd/system/{name}.service").read_text().splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                self.settings.setdefault(key.strip(), []).append(value.strip())
        self.process, self.wanted, self.last = None, False, None
        self.changed = threading.Condition()

    def first(self, key, default=""):
        return self.settings.get(key, [default])[0]

    def log(self, line):
        with open(self.machine.journal(self.name), "a") as journal:
            journal.write(line + "\n")

    def argv(self, command):
        user = self.first("User", "root")
        run = enter(self.machine)
        at = run.index("env")
        # As far as this machine lets root raise it.
        files = min(int(self.first("LimitNOFILE", "1024")), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        switch = [
            "prlimit",
            f"--nofile={files}",
            "setpriv",
            f"--reuid={user}",
            f"--regid={self.first('Group', user)}",
            "--init-groups",
            "--",
        ]
        for file in self.settings.get("EnvironmentFile", []):
            path = self.machine.path(file.removeprefix("-"))
            # One with a dash need not be there.
            if path.exists() or not file.startswith("-"):
                run += [line for line in path.read_text().splitlines() if "=" in line]
        return run[:at] + switch + run[at:] + ["bash", "-c", f"exec {command}"]

    def spawn(self, command):
        folder = self.machine.path(f"/var/lib/{self.first('StateDirectory', 'none')}")
        if "StateDirectory" in self.settings and not folder.exists():
            self.machine.run(
                f"install -d -o {self.first('User')} -g {self.first('Group')} -m 0700 /var/lib/{folder.name}"
            )
        with open(self.machine.journal(self.name), "a") as journal:
            return subprocess.Popen(
                self.argv(command), stdin=subprocess.DEVNULL, stdout=journal, stderr=journal, umask=0o077
            )

    def once(self):
        """A service of the kind `oneshot`: all of its commands."""
        for command in self.settings["ExecStart"]:
            if code := self.spawn(command).wait(60):
                return code
        return 0

    def start(self):
        with self.changed:
            if self.wanted and self.process and self.process.poll() is None:
                return
            self.wanted = True
            self.process = self.spawn(self.first("ExecStart"))
        threading.Thread(target=self.watch, args=[self.process], daemon=True).start()

    def watch(self, process):
        code = process.wait()
        with self.changed:
            self.last = code
            self.changed.notify_all()
            if not self.wanted:
                return
            self.log(f"systemd: {self.name}.service: Main process exited, status={code}")
            if code == 0:
                self.wanted = False
                return
            # RestartSec of the unit.
            self.changed.wait_for(lambda: not self.wanted, 2.0)
            if not self.wanted:
                return
            self.process = process = self.spawn(self.first("ExecStart"))
        self.watch(process)

    def stop(self, how=signal.SIGTERM):
        with self.changed:
            self.wanted = False
            self.changed.notify_all()
            process = self.process
        if process and process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                self.log(f"systemd: {self.name}.service: did not stop in time: killed")
                process.kill()
                process.wait()
        return process.poll() if process else None

    def runs(self):
        return self.process is not None and self.process.poll() is None


def enter(machine):
    """The command that goes to a machine, as the stand-in for ssh does."""
    more = WALK / f"environment-{machine.name}"
    env = more.read_text().splitlines() if more.exists() else []
    env += [f"PATH={PATH}", "HOME=/root", "USER=root", "LANG=C.UTF-8", f"WALK_MACHINE={machine.name}"]
    return ["nsenter", "-t", str(machine.holder.pid), "-m", "-n", "--", "env", "-i", "-C", "/root", *env]


class Machine:
    def __init__(self, lab, name, address, size=None):
        self.lab, self.name, self.address, self.units = lab, name, address, {}
        memory, disk = lab.work / "memory" / name, lab.work / "disk" / name
        memory.mkdir(parents=True)
        disk.mkdir(parents=True)
        if size:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "disk", str(disk)], check=True)
        self.disk = disk
        holder = ["unshare", "-m", "-n", "bash", "-c", MACHINE, "machine", str(memory), str(disk), sys.executable]
        self.holder = subprocess.Popen(holder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        if self.holder.stdout.readline() != "ready\n":
            raise Failed(f"the machine {name} could not be made")
        port, pid = f"port-{len(lab.machines)}", self.holder.pid
        lab.ip(
            f"link add name {port} type veth peer name eth0 netns {pid}",
            f"link set {port} master hub",
            f"link set {port} up",
        )
        inside = f"addr add {address}/24 dev eth0\nlink set eth0 up\n"
        subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", "-batch", "-"], input=inside, text=True, check=True)

    def path(self, path):
        return pathlib.Path(f"/proc/{self.holder.pid}/root{path}")

    def journal(self, unit):
        return WALK / "journal" / f"{self.name}.{unit}"

    def logged(self, unit="tillsync"):
        journal = self.journal(unit)
        return journal.read_text(errors="replace") if journal.exists() else ""

    def run(self, command, timeout=60):
        done = subprocess.run(
            [*enter(self), "bash", "-c", command],
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise Failed(f"{self.name}: {command}: {done.stdout}{done.stderr}")
        return done.stdout

    def environment(self, **values):
        lines = "".join(f"{key}={value}\n" for key, value in values.items())
        (WALK / f"environment-{self.name}").write_text(lines)

    def unit(self, name="tillsync"):
        name = name.removesuffix(".service")
        if name not in self.units:
            self.units[name] = Unit(self, name)
        return self.units[name]

    # What the stand-ins ask for.

    def systemctl(self, *args):
        words = [arg for arg in args if not arg.startswith("-")]
        if words[0] == "daemon-reload":
            return 0, ""
        verb, name = words[0], words[1]
        if name.endswith(".timer"):
            # A timer's night comes at once.
            service = self.unit(name.removesuffix(".timer"))
            return (service.once(), "") if verb == "enable" else (0, "")
        try:
            unit = self.unit(name)
        except FileNotFoundError:
            return 5, f"Unit {name}.service not found.\n"
        if verb in ("start", "restart") or (verb == "enable" and "--now" in args):
            if verb == "restart":
                unit.stop()
            unit.start()
        elif verb == "stop" or (verb == "disable" and "--now" in args):
            unit.stop()
        elif verb == "is-active":
            return (0, "active\n") if unit.runs() else (3, "inactive\n")
        elif verb not in ("enable", "disable"):
            return 1, f"systemctl {verb}: no stand-in for it\n"
        return 0, ""

    def journalctl(self, *args):
        if any(arg.startswith("--vacuum") for arg in args):
            shutil.rmtree(self.path("/var/log/journal"), ignore_errors=True)
            return 0, "Vacuuming done\n"
        unit = args[args.index("-u") + 1] if "-u" in args else "tillsync"
        lines = self.logged(unit).splitlines(keepends=True)
        count = int(args[args.index("-n") + 1]) if "-n" in args else len(lines)
        return 0, "".join(lines[-count:])

    def timedatectl(self, *args):
        if args != ("set-ntp", "true"):
            return 1, "timedatectl: no stand-in for it\n"
        (WALK / f"clock-{self.name}").write_text("+0\n")
        return 0, ""


class Lab:
    """The network with its machines, and the shell of the office, in which the page's commands are typed."""

    def __init__(self, work, binary, before, transcript):
        self.work, self.machines, self.transcript, self.patience = work, {}, transcript, 90
        (work / "memory").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "walk", str(work / "memory")], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "run", "/run"], check=True)
        (WALK / "journal").mkdir(parents=True)
        (WALK / "hosts").mkdir()
        for name in ("stand-in", "stand_in.py"):
            shutil.copy(HERE / name, WALK)
        self.binary, self.before = pathlib.Path(binary), pathlib.Path(before)
        self.ip("link set lo up", "link add name hub type bridge", "addr add 10.0.17.254/24 dev hub", "link set hub up")
        self.serve()

    def ip(self, *commands):
        subprocess.run(["ip", "-batch", "-"], input="\n".join(commands) + "\n", text=True, check=True)

    def serve(self):
        lab = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                name, what, *args = json.loads(self.rfile.readline())
                try:
                    code, printed = getattr(lab.machines[name], what)(*args)
                except Exception as error:
                    code, printed = 1, f"{what}: {error}\n"
                self.wfile.write(json.dumps({"code": code, "printed": printed}).encode())

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        server = Server(str(WALK / "control"), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def machine(self, name, address, release=None, disk=None):
        """A new machine; with the release of this binary, as it was unpacked there."""
        made = self.machines[name] = Machine(self, name, address, disk)
        (WALK / "hosts" / address).write_text(f"{name} {made.holder.pid}\n")
        if release:
            shutil.copy(release, made.path("/root/tillsync"))
            shutil.copytree(page.ROOT / "deploy", made.path("/root/deploy"))
        return made

    def stop(self):
        for machine in self.machines.values():
            for unit in machine.units.values():
                unit.stop(signal.SIGKILL)

    # The transcript.

    def note(self, text):
        self.transcript.write(f"# {text}\n")
        self.transcript.flush()

    def shell(self, machine):
        return Shell(self, self.machines[machine])


class Shell:
    """One shell that stays, as a person has it open: its folder and its variables last from block to block."""

    def __init__(self, lab, machine):
        self.lab, self.machine = lab, machine
        self.number = 0
        # What it prints goes through a file: it is read when the command has ended.
        self.process = subprocess.Popen(
            [*enter(machine), "bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def type(self, command, typed="", timeout=None):
        """The exit code and what was printed. `typed` is what a person answers."""
        self.number += 1
        at = f"{self.machine.name}-{self.number}-{id(self)}"
        file, out, answers = (WALK / f"{kind}-{at}" for kind in ("command", "out", "answers"))
        file.write_text(command + "\n")
        answers.write_text(typed)
        self.process.stdin.write(f"source {file} >{out} 2>&1 <{answers}; echo done-{at} $?\n")
        self.process.stdin.flush()
        ended = threading.Timer(timeout or self.lab.patience, self.process.kill)
        ended.start()
        try:
            for line in self.process.stdout:
                if line.startswith(f"done-{at} "):
                    return int(line.split()[1]), out.read_text(errors="replace")
        finally:
            ended.cancel()
        self.process.wait()
        return 124, out.read_text(errors="replace") + "(the shell ended, or the command took too long)\n"

    def follow(self, block, given=None, typed="", fails=False, compare=True):
        """Types a block of the page; what it prints must be what the page says. Returns it."""
        printed, host = "", "" if self.machine.name == "office" else self.machine.name + " "
        for written in block.commands():
            command = adapted(written, given or {})
            first, *more = command.splitlines()
            self.lab.transcript.write("".join([f"{host}$ {first}\n", *(f"> {line}\n" for line in more)]))
            code, out = self.type(command, typed)
            self.lab.transcript.write(out if not out or out.endswith("\n") else out + "\n")
            if code and not fails:
                raise Failed(f"docs/{block.name}: the command ended with {code}:\n{command}\n{out}")
            if code:
                self.lab.transcript.write(f"(ended with {code})\n")
            printed += out
        self.lab.transcript.flush()
        if compare and (line := page.unmet(block.expected, printed)):
            says = f"the page says that this is printed, and it was not:\n{line}"
            raise Failed(f"docs/{block.name}: {says}\nprinted was:\n{printed}")
        return printed


def adapted(command, given):
    """The command with other values for variables that it sets."""
    for name, value in given.items():
        found = re.search(rf"(?:^|\s){name}=(\S+)", command)
        if found:
            command = command[: found.start(1)] + str(value) + command[found.end(1) :]
    return command


def until(what, holds, patience=30.0):
    """Waits for an event that can only be looked for."""
    end = time.monotonic() + patience
    while not (found := holds()):
        if time.monotonic() > end:
            raise Failed(f"within {patience:.0f} s it did not happen that {what}")
        time.sleep(0.05)
    return found
