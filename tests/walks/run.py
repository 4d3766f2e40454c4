#!/usr/bin/env -S python3 -B
"""usage: run.py [--short] [--out FOLDER] [--document FILE] [--before TILLSYNC] TILLSYNC [WALK...]

Executes the walk-throughs of docs/operating.md and docs/operating-membership.md from the pages themselves, on machines
made of namespaces: that needs root and Linux, and nothing else. Ends with 1, and the section and command, where what a
page says does not hold. --before is the release from which `upgrade` comes and to which it goes back. --list says which
there are; --blocks checks that each shell block of the pages is in one of them.
"""

import argparse
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

import blocks
import document
import walks
from lab import Failed, Lab

TOOLS = ("unshare", "setpriv", "nsenter", "prlimit", "ip", "mount", "useradd", "strip")
# Whatever becomes of this process, nothing goes on without it.
SPACES = ["setpriv", "--pdeathsig", "KILL", "unshare", "-m", "-n", "-p", "--fork", "--kill-child", "--mount-proc"]


def may():
    """Why no walk-through can be taken here; None if they can."""
    if os.getuid():
        return "only root can make machines of namespaces"
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        return f"{', '.join(missing)} is not there"
    tried = subprocess.run([*SPACES, "true"], capture_output=True, text=True)
    if tried.returncode:
        return f"namespaces cannot be made here: {tried.stderr.strip()}"
    return None


def inside(name, work, binary, before, out):
    """One walk-through, in namespaces of its own, as their first process."""
    with open(out, "w") as transcript:
        lab = None
        try:
            lab = Lab(pathlib.Path(work), binary, before, transcript)
            walks.WALKS[name].steps(lab)
            return 0
        except Failed as error:
            transcript.write(f"FAILED: {error}\n")
            print(f"{name}: {error}", file=sys.stderr)
        except Exception:
            transcript.write(f"FAILED: {traceback.format_exc()}\n")
            print(f"{name}: {traceback.format_exc()}", file=sys.stderr)
        finally:
            if lab:
                for machine in lab.machines.values():
                    for unit in machine.units:
                        kept = machine.logged(unit)
                        pathlib.Path(f"{out}.{machine.name}.{unit}.log").write_text(kept)
                lab.stop()
    return 1


def clear(work):
    """Removes the folder of a walk-through; of one that was cut short, processes may be about to end."""
    end = time.monotonic() + 10
    while os.path.exists(work) and time.monotonic() < end:
        shutil.rmtree(work, ignore_errors=True)
        time.sleep(0.02)


def take(name, binary, before, out):
    """Whether it held. Its time is bounded: the namespaces end with the process."""
    walk, began = walks.WALKS[name], time.monotonic()
    work = tempfile.mkdtemp(prefix="tillsync-walk-")
    transcript = out / f"{name}.txt"
    itself = [sys.executable, "-B", __file__, "--inside", name, work, str(binary), str(before), str(transcript)]
    try:
        held = subprocess.run(SPACES + itself, timeout=walk.seconds).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"{name}: not done within {walk.seconds} s", file=sys.stderr)
        held = False
    finally:
        clear(work)
    print(f"{'ok' if held else 'FAILED':6} {time.monotonic() - began:5.1f} s  {name}: {walk.title}", flush=True)
    if not held:
        print(f"       its transcript and the nodes' logs: {transcript}*", flush=True)
    return held


def main():
    if sys.argv[1:2] == ["--inside"]:
        sys.exit(inside(*sys.argv[2:]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--document", type=pathlib.Path)
    parser.add_argument("--before", type=pathlib.Path)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--blocks", action="store_true")
    parser.add_argument("binary", nargs="?", type=pathlib.Path)
    parser.add_argument("walks", nargs="*")
    args = parser.parse_args()
    if args.list:
        for name, walk in walks.WALKS.items():
            print(f"{name:14} {'short' if walk.short else 'long ':5} {walk.title}")
        return
    if args.blocks:
        sys.exit(blocks.check())
    if not args.binary or not args.binary.is_file():
        parser.error("which binary? (target/release/tillsync)")
    if unknown := [name for name in args.walks if name not in walks.WALKS]:
        parser.error(f"no walk-through is named {', '.join(unknown)} (--list)")
    if why := may():
        print(f"walk-throughs: skipped: {why}")
        sys.exit(1 if os.environ.get("TILLSYNC_TEST_NETNS") else 0)
    out = (args.out or pathlib.Path(tempfile.mkdtemp(prefix="tillsync-walks-"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    names = args.walks or [name for name, walk in walks.WALKS.items() if walk.short or not args.short]
    failed = []
    # It is copied to each machine: without what only debuggers read.
    folder = tempfile.TemporaryDirectory(prefix="tillsync-walks-")
    binary = pathlib.Path(folder.name) / "tillsync"
    subprocess.run(["strip", "--strip-debug", "-o", binary, args.binary], check=True)
    before = args.before.resolve() if args.before else binary
    for name in names:
        if why := walks.WALKS[name].unable():
            print(f"skipped        {name}: {why}", flush=True)
            (out / f"{name}.txt").write_text(f"skipped: {why}\n")
        elif not take(name, binary, before, out):
            failed.append(name)
    if args.document and not failed:
        args.document.write_text(document.written(out, names))
    if args.out or failed:
        print(f"transcripts: {out}")
    else:
        shutil.rmtree(out)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
