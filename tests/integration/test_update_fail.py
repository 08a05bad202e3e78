#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kylinx update where the monitor has no memory, no descriptors, no mappings: at each call of an update in turn.

test_update_fail.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure. The monitor is tests/kylinx-fail of the
same build (tests/fail/fail.c). KX_LONG=1: every call, not some of them. KX_FROM=N: from the Nth call on.
"""
import contextlib
import errno
import os
import re
import struct
import subprocess
import sys
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import lib  # noqa: E402
from lib import expect  # noqa: E402
from servers import LONG, collection  # noqa: E402
from updates import Guest, fixtures, library, service_thread, until  # noqa: E402

args = lib.arguments()
tests, test, _ = collection()
LOG = 4096  # as fail.c's
SAMPLE = 12  # calls that are tried where not all are
FROM = int(os.environ.get("KX_FROM", "0"))
REMEDY = re.compile(r"kylinx: process \d+: [^\n]*(no memory|no descriptor|fails)[^\n]* again[^\n]*\(nothing is changed\)\n")


class Monitor:
    """kx_fail of a running monitor. Sites are relative to where it is loaded."""

    def __init__(self, g, of_updates=True):
        """Calls of the thread of updates count, or those of the program's first one."""
        exe, self.g, self.pid, self.tid = os.stat(lib.KYLINX).st_ino, g, g.p.pid, g.p.pid
        with open(f"/proc/{self.pid}/maps") as f:
            self.base = next(int(line.split("-")[0], 16) for line in f if line.split()[2] == "00000000" and line.split()[4] == str(exe))
        symbols = subprocess.run(["nm", lib.KYLINX], stdout=subprocess.PIPE, check=True, text=True).stdout
        self.at = self.base + next(int(line.split()[0], 16) for line in symbols.splitlines() if line.endswith(" kx_fail"))
        self.mem = os.open(f"/proc/{self.pid}/mem", os.O_RDWR)
        self.service = service_thread(self.pid)
        if of_updates:
            self.tid = self.service

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.mem)

    def word(self, offset):
        return struct.unpack("=q", os.pread(self.mem, 8, self.at + offset))[0]

    def set(self, site=0, number=0, error=errno.ENOMEM, count=True):
        """The call of that site with that number fails from here on; 0: none."""
        os.pwrite(self.mem, struct.pack("=iiqqqq", self.tid if count else 0, error, site and site + self.base, number, 0, 0), self.at)

    def settle(self):
        """Until the thread sleeps: old versions are looked for after the answer."""
        last, still, end = -1, 0, time.monotonic() + lib.limit(60)
        while still < 3:
            n = self.word(24)
            with open(f"/proc/{self.pid}/task/{self.service}/stat") as f:
                sleeps = f.read().rsplit(")", 1)[1].split()[0] == "S"
            still = still + 1 if n == last and sleeps else 0
            last = n
            if time.monotonic() > end:
                raise AssertionError("the thread of updates does not come to rest")
            time.sleep(0.02)

    def sites(self):
        """Pairs of a site and a number, in the order of their calls: the first and the last from there, or all."""
        n = min(self.word(24), LOG - 1)
        log = [site - self.base for site in struct.unpack(f"={n}q", os.pread(self.mem, 8 * n, self.at + 40 + 8))]
        seen, found = {}, []
        for site in log:
            seen[site] = seen.get(site, 0) + 1
            found.append((site, seen[site]))
        return [(site, k) for site, k in found if LONG or k in (1, seen[site])]

    def fds(self):
        return len(os.listdir(f"/proc/{self.pid}/task/{self.service}/fd"))

    def mappings(self):
        return len(lib.read(f"/proc/{self.pid}/maps").splitlines())


def lines(sites):
    """Where they are in the source."""
    r = subprocess.run(["addr2line", "-e", lib.KYLINX, *(f"{site - 1:#x}" for site, _ in sites)], stdout=subprocess.PIPE, text=True)
    return ["/".join(line.split()[0].split("/")[-2:]) for line in r.stdout.splitlines()]


def some(points):
    """As many of them as there is time for."""
    if LONG:
        return points[FROM:]
    return [points[i * len(points) // SAMPLE] for i in range(SAMPLE)] if len(points) > SAMPLE else points


def command(g, path, *options):
    return [lib.KYLINX, "update", *options, "--timeout", f"{lib.limit(20):.0f}", g.name, path]


def check(g, version, checks):
    expect(g.ask("v"), version, "version")
    if checks:
        expect(g.ask("s"), "ok", "state")


def attempt(g, m, new, options, failing, checks):
    """One update in which that fails: it is made, or refused by a line, and the next one is made. True: it was refused."""
    m.set(*failing)
    r = lib.run(command(g, new, *options), 100)
    m.settle()
    m.set(count=False)
    said = (r.out + r.err).decode()
    if r.status not in (0, 125):
        raise AssertionError(r.why())
    check(g, "1" if r.status else "2", checks)
    if not r.status:
        return False
    if not REMEDY.fullmatch(said):
        raise AssertionError(f"what is said: {said!r}")
    g.update(new, *options)
    check(g, "2", checks)
    return True


class Updates:
    """A program, and an update of its library from one version to another and back, some of whose calls fail."""

    def __init__(self, d, *options, of_updates=True, checks=True, only=r"."):
        self.d, self.options, self.of_updates, self.checks, self.only = d, options, of_updates, checks, re.compile(only)
        self.old, self.new = f"{d}/libupd.so.1", f"{d}/v2.so"

    @contextlib.contextmanager
    def running(self):
        with Guest(self.d, [f"{self.d}/state"]) as g:
            g.update(self.new, *self.options)
            with Monitor(g, self.of_updates) as m:
                for path in (self.old, self.new, self.old):
                    g.update(path, *self.options)
                m.settle()
                yield g, m

    def points(self):
        """Those calls, with their lines."""
        with self.running() as points:
            return self.points_of(*points)

    def points_of(self, g, m):
        m.set()
        g.update(self.new, *self.options)
        m.settle()
        sites = m.sites()
        return [(*p, line) for p, line in zip(sites, lines(sites)) if self.only.search(line)]

    def back(self, g, m):
        g.update(self.old, *self.options)
        check(g, "1", self.checks)
        m.settle()

    def each_fails(self, error, least):
        """least: how many calls there are, at least, and how many of those tried that lead to a refusal."""
        points = self.points()
        tried, refused, failed = some(points), 0, []
        left = iter(tried)
        for point in left:
            with self.running() as (g, m):
                fds, mappings = m.fds(), m.mappings()
                while point:
                    site, number, line = point
                    try:
                        refused += attempt(g, m, self.new, self.options, (site, number, error), self.checks)
                        self.back(g, m)
                    except (AssertionError, OSError) as e:
                        last = g.p.stderr.read().decode() if g.p.poll() is not None else ""
                        failed.append(f"{line}, call {number}: {e} {last}".strip())
                        print("#", failed[-1], flush=True)
                        break
                    if LONG:
                        print(f"# {line} {number}, {refused} refused", flush=True)
                    point = next(left, None)
                else:
                    self.back_and_forth(g, m, fds, mappings)
        print(f"# {len(tried)} of {len(points)} calls failed, {refused} updates were refused", flush=True)
        if failed:
            raise AssertionError("; ".join(failed))
        if len(points) < least[0] or refused < least[1]:
            raise AssertionError(f"only {len(points)} calls, {refused} updates refused")

    def back_and_forth(self, g, m, fds, mappings):
        """Nothing is left."""
        for path in (self.new, self.old):
            g.update(path, *self.options)
        m.settle()
        expect(m.fds(), fds, "descriptors of the thread")
        if m.mappings() > mappings + 4:
            raise AssertionError(f"{m.mappings()} mappings, were {mappings}")


@test
def no_memory():
    """ENOMEM for each call of the thread of updates."""
    with lib.Dir() as d:
        fixtures(d, "state")
        Updates(d).each_fails(errno.ENOMEM, (60, 5))


@test
def anew():
    """The same where variables start anew, and constructors run."""
    with lib.Dir() as d:
        fixtures(d, "state")
        library(d, "libupd.so.1", "-DV=1", "-DLAYOUT")
        library(d, "v2.so", "-DV=2", "-DLAYOUT", "-DMORE=200")
        Updates(d, "--reset", checks=False).each_fails(errno.ENOMEM, (60, 5))
        Updates(d, "--reset", checks=False, of_updates=False, only="update_call.c").each_fails(errno.ENOMEM, (2, 2))


@test
def noting_ends():
    """KVM has no memory to stop noting what is written: it is asked again, until it has."""
    ioctl = "KVM_SET_USER_MEMORY_REGION"
    with lib.Dir() as d:
        fixtures(d, "state")
        u = Updates(d, only=r"gmem_tables[.]c")
        source = lib.read(f"{lib.TOP}/monitor/core/gmem_tables.c").splitlines()
        with u.running() as (g, m):
            site, number, _ = [p for p in u.points_of(g, m) if ioctl in source[int(re.search(r":(\d+)", p[2])[1]) - 1]][-1]
            u.back(g, m)
            m.set(site, number)
            g.update(u.new)
            until(lambda: m.word(16) == 0, "that call")
            until(lambda: m.word(32) > number, "another try", 10)
            m.settle()
            calls = m.word(24)
            time.sleep(lib.limit(1.5))
            expect(m.word(24), calls, "calls when it has ended")
            u.back(g, m)


if __name__ == "__main__":
    failing = os.path.join(os.path.dirname(lib.KYLINX), "tests", "kylinx-fail")
    if not os.path.exists(failing):
        print(f"1..0 # SKIP no {failing} (make unit-tests)")
        sys.exit(0)
    lib.KYLINX = os.environ["KYLINX"] = failing
    sys.exit(lib.run_tests(tests, args.only))
