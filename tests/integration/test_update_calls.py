#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kylinx update where a system call of the command's, or of a member's thread of updates, fails, transfers less, is interrupted, or
is its last one: at each of them in turn. Each member is wholly old or wholly new then, all of a family alike where they are to be,
nobody stands, nothing is left, and the next update is made.

test_update_calls.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure. KX_LONG=1: every call, not some of them.
"""
import contextlib
import errno
import functools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402
from servers import LONG, collection  # noqa: E402
from updates import UPDATE_SECONDS, Guest, fixtures, program, service_thread, until  # noqa: E402

args = lib.arguments()
tests, test, _ = collection()
SAMPLE = 3  # kinds of calls of a sweep that are tried where not all are,
MOST = 400  # of so many
PIDFD_OPEN = 434
AT_ONCE = ("--at-once",)
SYSTEM = "allow path /usr/** not writable-by group\n"
REFUSED = re.compile(r"kylinx: [^\n]+\n")
LACKS = "descriptor|Too many open files|open files"


def some(calls, least):
    """Which of these calls are tried, from 1 on: else the last ones of the rarest kinds, and what follows when a member is opened."""
    if len(calls) < least:
        raise AssertionError(f"only {len(calls)} such calls")
    if LONG:
        return range(1, len(calls) + 1, (len(calls) + MOST - 1) // MOST)
    rare = sorted(set(calls), key=lambda nr: (calls.count(nr), nr))[:SAMPLE]
    at = {len(calls) - calls[::-1].index(nr) for nr in rare}
    if PIDFD_OPEN in calls[:-1]:
        at.add(calls.index(PIDFD_OPEN) + 2)
    return sorted(at)


class Family:
    """A program in a pVM, with a library of version 1, 2, 1, and so on; all its members look at the version all the time."""

    def __init__(self, d, children):
        self.d, self.changes, self.children, self.what = d, 0, children, "the start"
        self.store = f"{d}/store"
        os.environ["KYLINX_STORE"] = self.store
        self.g = Guest(d, [f"{d}/family", str(children)])

    def __enter__(self):
        self.g.__enter__()
        self.members = [self.g.p.pid, *lib.kids(self.g.p.pid)]
        try:
            for _ in range(2):
                self.update()
            self.had = self.descriptors()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *e):
        del os.environ["KYLINX_STORE"]
        self.g.__exit__(*e)
        shutil.rmtree(self.store)

    def next(self):
        """The version that it does not have."""
        return f"{self.d}/libupd.so.1" if self.changes % 2 else f"{self.d}/v2.so"

    def command(self, *options):
        return [lib.KYLINX, "update", *(options or ["--at-once"]), "--timeout", UPDATE_SECONDS, self.g.name, self.next()]

    def rest(self):
        """No thread of updates has anything to do: it waits, without an end, to be poked."""
        def idle(pid):
            call = lib.read(f"/proc/{pid}/task/{service_thread(pid)}/syscall").split()
            return call[:1] == ["202"] and call[2:5] == ["0x0"] * 3
        until(lambda: all(idle(pid) for pid in self.members if service_thread(pid)), f"{self.what}: their threads come to rest")

    def whole(self):
        """All have one version, which none has seen to go back. True: the next one."""
        self.rest()
        new = self.g.ask("v") != str(1 + self.changes % 2)
        self.changes += new
        if self.children:
            until(lambda: int(self.g.ask("e").split()[0]) >= self.changes, f"{self.what}: all have one version")
            time.sleep(lib.limit(0.01))
            expect(self.g.ask("e"), f"{self.changes} ok", f"{self.what}: changes that were seen")
        return new

    def update(self):
        """One that is made."""
        self.g.update(self.next(), "--at-once")
        if not self.whole():
            raise AssertionError(f"{self.what}: an update that is not made")

    def descriptors(self):
        """Of all members, without what changes with their pipes; those of their threads of updates."""
        return [len(lib.names(f"/proc/{pid}/task/{tid}/fd")) for pid in self.members for tid in (pid, service_thread(pid)) if tid]

    def settled(self):
        """The next update is made, and nothing is left of those before."""
        self.update()
        until(lambda: self.descriptors() == self.had, f"{self.what}: descriptors {self.descriptors()}, were {self.had}", 20)
        lines = lib.read(f"{self.store}/history").splitlines()
        expect(json.loads(lines[-1])["event"], "update", f"{self.what}: what is noted")
        expect([line for line in lines if line and not line.startswith('{"time":'[:len(line)])], [], f"{self.what}: lines of the history")
        strange = [n for n in lib.names(self.store) if n != "history" and not n.startswith("format-")]
        expect(strange, [], f"{self.what}: files in the store")


class Calls:
    """callat.c."""

    def __init__(self, d):
        self.d, self.path = d, f"{d}/callat"

    def of_command(self, what, of, n, command):
        """The command, to whose nth call of these that is done, if it has so many; (its result, the calls that are told)."""
        said = f"{self.d}/said"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(said)
        r = lib.run([self.path, str(what), of, str(n), *command], 120, env={"CALLAT": said})
        if r.status in (3, None):
            raise AssertionError(f"callat: {r.why()}")
        return r, [int(x) for x in lib.read(said).split()]

    @contextlib.contextmanager
    def of_thread(self, what, of, n, tid):
        """Meanwhile that is done to the nth of these calls of a thread's. Yields a function that tells, at the end, which calls are
        told; 0: none is."""
        p = subprocess.Popen([self.path, str(what), of, str(n), "-p", str(tid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            if p.stdout.readline() != b"ready\n":
                raise Skip("no thread can be traced here")

            def end():
                p.stdin.close()
                return [int(x) for x in p.stdout.read().split()] or [0]
            yield end
        finally:
            p.kill()
            p.wait()
            p.stdout.close()


@functools.cache
def built():
    """Where the programs and libraries are, for all tests."""
    d = own.enter_context(lib.Dir())
    fixtures(d, "family")
    program(d, "state", "state.c")
    subprocess.run(["gcc", "-O1", "-Wall", "-D_GNU_SOURCE", "-pthread", "-o", f"{d}/callat", f"{HERE}/callat.c"], check=True)
    return d


@contextlib.contextmanager
def family(children=2):
    with Family(built(), children) as f:
        yield f, Calls(f.d)


def told(f, r, made):
    """What is said fits to what is done; in a line, where it was not made."""
    said = r.err.decode()
    if made and r.status and "the update is made, but" not in said:
        raise AssertionError(f"{f.what}: it is made, and {r.why()}")
    if not made and (r.status != 125 or not REFUSED.fullmatch(said) or "the update is made" in said):
        raise AssertionError(f"{f.what}: it is not made, and {r.why()}")
    return said


def of_command(what, of, least, options, check):
    """What is done to each such call of the command; check(f, its result, whether it is made)."""
    tally = [0, 0]
    with family(2 if options == AT_ONCE else 0) as (f, calls):
        r, said = calls.of_command("count", of, 0, f.command(*options))
        expect(r.status, 0, f"the count: {r.why()}")
        f.whole()
        for i, n in enumerate(some(said, least)):
            how = what[i % len(what)]
            r, said = calls.of_command(how, of, n, f.command(*options))
            f.what = f"{' '.join(options)} {how} at {of} call {n}"
            f.what += "".join(f", {nr}" for nr in said)
            made = f.whole()
            tally[made] += 1
            check(f, r, made)
            f.settled()
    print(f"# {' '.join(options)} {of}: {tally[1]} were made, {tally[0]} not", flush=True)


# ---- the command -------------------------------------------------------------------------------------------------------

def lacks_descriptor(f, r, made):
    said = told(f, r, made)
    if not made and not re.search(LACKS, said):
        raise AssertionError(f"{f.what}: it is not said why: {said!r}")


@test
def command_without_descriptors():
    """EMFILE, ENFILE for each call of the command that makes one."""
    for options in (AT_ONCE, ("--all",)):
        of_command((errno.EMFILE, errno.ENFILE), "fds", 20, options, lacks_descriptor)


@test
def command_that_cannot_write():
    """ENOSPC, EIO for whatever the command writes: it is made, and told that it is not noted, unless it has no memory to share."""
    def check(f, r, made):
        said = told(f, r, made)
        wants = "not noted in the history|the update is made, but standard output" if made else "no page to share"
        if not re.search(wants, said):
            raise AssertionError(f"{f.what}: made {made}, {said!r}")
    of_command((errno.ENOSPC, errno.EIO), "writes", 3, AT_ONCE, check)


@test
def command_gets_less():
    """Each call of the command transfers half as much: it is made. It may not be noted then."""
    def check(f, r, made):
        if (r.status, made) != (0, True) or (r.err and b"not noted in the history" not in r.err):
            raise AssertionError(f"{f.what}: made {made}, {r.why()}")
    of_command(("short",), "parts", 10, AT_ONCE, check)


@test
def command_killed():
    """At each call that others hear of; in long runs, at each call."""
    def check(f, r, made):
        if r.status not in (0, 1):  # it may have had fewer
            raise AssertionError(f"{f.what}: {r.why()}")
    for options in (AT_ONCE, ("--all",)) if LONG else (AT_ONCE,):
        of_command(("kill",), "all" if LONG else "tells", 5, options, check)


# ---- a member ------------------------------------------------------------------------------------------------------------

def of_member(what, of, least, check):
    """What is done to each such call of a member's thread of updates, while all are updated at once."""
    tally = [0, 0]
    with family() as (f, calls):
        tid = service_thread(f.members[1])
        with calls.of_thread("count", of, 0, tid) as end:
            f.update()
            all_calls = end()
        for i, n in enumerate(some(all_calls, least)):
            how = what[i % len(what)]
            f.what = f"{how} at a member's {of} call {n}"
            with calls.of_thread(how, of, n, tid) as end:
                r = lib.run(f.command(), 120)
                made = f.whole()
                f.what += f", {end()[0]}"
            tally[made] += 1
            check(f, r, made)
            f.settled()
    print(f"# member's {of}: {tally[1]} were made, {tally[0]} not", flush=True)


@test
def member_without_descriptors():
    """EMFILE, ENFILE for each call of a member's thread that makes one: all are updated, or none, and it is said why."""
    of_member((errno.EMFILE, errno.ENFILE), "fds", 3, lacks_descriptor)


@test
def member_interrupted():
    """EINTR for each call that waits, half of what it wants for each that transfers: all are updated."""
    def check(f, r, made):
        told(f, r, made)
        if not made:
            raise AssertionError(f"{f.what}: {r.why()}")
    of_member((errno.EINTR,), "waits", 5, check)
    of_member(("short",), "parts", 1, check)


@test
def member_killed():
    """At each call of its thread, in an update of all at once: the others are updated, all of them, or none."""
    with family(1) as (f, calls):
        with calls.of_thread("count", "all", 0, service_thread(f.members[1])) as end:
            f.update()
            numbers = list(some(end(), 30))
    each = 3
    for first in range(0, len(numbers), each):
        points = numbers[first:first + each]
        with family(len(points) + 1) as (f, calls):
            for n in points:
                pid = f.members.pop(1)
                f.what = f"a member that is killed at call {n}"
                with calls.of_thread("kill", "all", n, service_thread(pid)) as end:
                    r = lib.run(f.command(), 120)
                    made = f.whole()
                    end()
                told(f, r, made)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # it had fewer calls
                f.had = f.descriptors()
                f.settled()


@contextlib.contextmanager
def governed():
    """Libraries have to be signed meanwhile, and those versions are."""
    d = built()
    signed = [f"{d}/libupd.so.1", f"{d}/v2.so"]
    policy = f"[default]\nmode enforce\njit deny\nallow signed-by key\n{SYSTEM}allow kind program path {d}/*\n"
    os.environ.update({"KYLINX_CONFIG": f"{d}/c", "KYLINX_STORE": f"{d}/s"})
    try:
        for argv in (["keygen", f"{d}/key"], ["trust", f"{d}/key.pub"], *(["sign", path, "--key", f"{d}/key"] for path in signed)):
            subprocess.run([lib.KYLINX, "lib", *argv], stdout=subprocess.DEVNULL, check=True)
        with open(f"{d}/c/policy", "w") as f:
            f.write(policy)
        yield
    finally:
        os.environ.pop("KYLINX_CONFIG")
        os.environ.pop("KYLINX_STORE", None)
        for path in (f"{d}/key", f"{d}/key.pub", *(f"{x}.kxsig" for x in signed)):
            os.unlink(path)
        for path in (f"{d}/c", f"{d}/s"):
            shutil.rmtree(path, ignore_errors=True)


@test
def member_under_a_policy():
    """EIO for each call of a member's thread that reads, ENOSPC for each that writes, under a policy: all are updated, or none, and
    it is not said that they are not signed."""
    def check(f, r, made):
        if "sign" in told(f, r, made):
            raise AssertionError(f"{f.what}: {r.why()}")
    with governed():
        of_member((errno.EIO,), "reads", 3, check)
        of_member((errno.ENOSPC,), "writes", 1, check)
        of_member(("short",), "parts", 3, check)


@test
def descriptors():
    """The monitor may have so many, from none on: the update is refused, and said what helps, until they are enough."""
    remedy = r"kylinx: process \d+: no descriptor for it: [^\n]* again \(nothing is changed\)\n"
    d = built()
    with Guest(d, [f"{d}/state"]) as g:
        g.update(f"{d}/v2.so")
        g.update(f"{d}/libupd.so.1")
        old = resource.prlimit(g.p.pid, resource.RLIMIT_NOFILE)
        for n in range(100):
            resource.prlimit(g.p.pid, resource.RLIMIT_NOFILE, (n, old[1]))
            r = lib.run([lib.KYLINX, "update", "--timeout", UPDATE_SECONDS, g.name, f"{d}/v2.so"], 120)
            if not r.status:
                break
            if not re.fullmatch(remedy, r.err.decode()):
                raise AssertionError(f"with {n} of them: {r.why()}")
            expect(g.ask("v"), "1", f"version with {n} of them")
        expect(g.ask("v"), "2", "version")
        resource.prlimit(g.p.pid, resource.RLIMIT_NOFILE, old)
        if n < 2:  # the file, and where to answer
            raise AssertionError(f"{n} are enough")
        g.update(f"{d}/libupd.so.1")
        expect(g.ask("s"), "ok", "state")


if __name__ == "__main__":
    with contextlib.ExitStack() as own:
        if not lib.kvm_missing():
            built()  # before anything is looked for that a test has left
        status = lib.run_tests(tests, args.only)
    sys.exit(status)
