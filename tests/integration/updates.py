# SPDX-License-Identifier: Apache-2.0
"""What the tests of kylinx update share: fixtures from update/, and a program in a pVM that talks by lines."""
import contextlib
import os
import random
import re
import shutil
import subprocess
import threading
import time

import lib
from lib import Skip, expect

HERE = os.path.dirname(os.path.abspath(__file__))
HARDEN = ["-O2", "-fPIC", "-Wl,-z,relro", "-Wl,-z,now", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"]
UPDATE_SECONDS = f"{min(600, lib.limit(60)):.0f}"  # of an update, by --timeout
pauses = []


def until(fn, what, timeout=90):
    end = time.monotonic() + lib.limit(timeout)
    while not fn():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {lib.limit(timeout):.0f} s")
        time.sleep(0.01)


def need(*programs):
    for p in programs:
        if not shutil.which(p):
            raise Skip(f"{p} is not installed")


def build(d, out, source, *options, cc="gcc"):
    subprocess.run([cc, *HARDEN, "-o", os.path.join(d, out), os.path.join(HERE, "update", source), *options],
                   check=True)
    subprocess.run(["strip", os.path.join(d, out)], check=True)


def library(d, out, *options, source="lib.c", cc="gcc", soname="libupd.so.1"):
    build(d, out, source, "-shared", f"-Wl,-soname,{soname}", *options, cc=cc)


def program(d, out, source, *options, cc="gcc"):
    """Linked with the first version, which is at libupd.so.1."""
    build(d, out, source, os.path.join(d, "libupd.so.1"), f"-Wl,-rpath,{d}", "-pthread", *options, cc=cc)


def fixtures(d, name, *options, source="lib.c"):
    """Two versions of the library, and the program, which is linked with these options."""
    for out, v in (("libupd.so.1", 1), ("v2.so", 2)):
        library(d, out, f"-DV={v}", f"-I{lib.TOP}/include", source=source)
    program(d, name, f"{name}.c", *options)


class Guest:
    """A program in a pVM that talks by lines."""

    def __init__(self, d, argv, *options, first="ready"):
        self.name = f"upd-{os.getpid()}-{random.randrange(10**6)}"
        self.p = subprocess.Popen([lib.KYLINX, "run", "--name", self.name, "--volume", f"{d}:{d}", *options, "--", *argv],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  start_new_session=True)
        self.timer = threading.Timer(lib.limit(900), self.p.kill)
        self.timer.start()
        if first:
            expect(self.line(), first, "first line")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.timer.cancel()
        lib.group_kill(self.p)
        for f in (self.p.stdin, self.p.stdout, self.p.stderr):
            with contextlib.suppress(OSError):
                f.close()

    def line(self):
        return self.p.stdout.readline().decode().strip()

    def ask(self, what):
        self.p.stdin.write(what.encode() + b"\n")
        self.p.stdin.flush()
        return self.line()

    def end(self):
        self.p.stdin.close()
        rest = self.p.stdout.read().decode().split("\n")
        expect(self.p.wait(lib.limit(90)), 0, f"exit status ({rest}, {self.p.stderr.read()})")
        return rest

    def update(self, path, *options, status=0, who=None):
        if "--timeout" not in options:
            options = (*options, "--timeout", UPDATE_SECONDS)
        r = lib.run([lib.KYLINX, "update", *options, who or self.name, path], 120)
        if r.status != status:
            raise AssertionError(f"update {os.path.basename(path)}: {r.why()}, not status {status}")
        for m in re.finditer(rb"pause ([0-9.]+) ms", r.out):
            pauses.append(float(m[1]))
        return r.out.decode() + r.err.decode()


def service_thread(pid):
    """A member's thread of updates, by its name; None: nobody has asked it yet."""
    for t in lib.names(f"/proc/{pid}/task"):
        if lib.read(f"/proc/{pid}/task/{t}/comm").endswith("update\n"):
            return int(t)
    return None


def all_see(g, changes):
    """All members look all the time: so many changes, and none is seen to go back."""
    until(lambda: g.ask("e") != f"{changes - 1} ok", "another version is seen")
    time.sleep(0.1)
    expect(g.ask("e"), f"{changes} ok", "changes that were seen")
