#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_mover.py [KYLINX] [--only PATTERN]: processes are killed at chosen instants while they move a socket pair's unread
data to the host: their monitors are traced, and end as they enter or as they leave a certain sendmsg. What was written
must come once and in order (tests/guest/mover has the writers and the reader)."""
import ctypes
import os
import re
import signal
import struct
import subprocess
import sys
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402

args = lib.arguments()
MOVER = os.path.abspath(os.path.join(lib.TOP, os.environ.get("BUILD", "build"), "tests/guest/mover.dyn"))
STREAM, DATAGRAMS, RECORDS = 1, 2, 5
SYS_SENDMSG, WALL = 46, 0x40000000
GETREGS, SYSCALL, SEIZE, INTERRUPT = 12, 24, 0x4206, 0x4207
TRACESYSGOOD = 1
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
tests = []


def test(fn):
    tests.append((fn.__name__, fn))
    return fn


def ptrace(request, tid, data=0):
    if libc.ptrace(request, tid, None, data) < 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))


def call_number(tid):
    regs = ctypes.create_string_buffer(27 * 8)
    ptrace(GETREGS, tid, ctypes.addressof(regs))
    return struct.unpack_from("<q", regs, 15 * 8)[0]


def trace(pid):
    for tid in map(int, lib.names(f"/proc/{pid}/task")):
        ptrace(SEIZE, tid, TRACESYSGOOD)
        ptrace(INTERRUPT, tid)


def kill_at(pid, number, leaving):
    """Lets it run until it enters its `number`th sendmsg, or leaves it, and kills it there. False: it ended before."""
    entered, inside, killed = 0, set(), False
    while True:
        try:
            tid, status = os.waitpid(-1, WALL)
        except ChildProcessError:
            return killed
        if not os.WIFSTOPPED(status):
            if tid == pid:  # the last of its threads to be told of; its parent is, now
                return killed
            continue
        if killed:
            continue
        sig, give = os.WSTOPSIG(status), 0
        if sig == signal.SIGTRAP | 0x80 and call_number(tid) == SYS_SENDMSG:
            enters = tid not in inside
            inside ^= {tid}
            entered += enters
            if entered == number and enters != leaving:
                os.kill(pid, signal.SIGKILL)
                killed = True
                continue
        elif status >> 16 == 0 and sig != signal.SIGTRAP | 0x80:
            give = sig
        try:
            ptrace(SYSCALL, tid, give)
        except ProcessLookupError:
            pass


class Told:
    """The guest, and what it is told."""

    def __enter__(self):
        self.p = subprocess.Popen(lib.pvm([MOVER, "told"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                  start_new_session=True, cwd="/")
        self.timer = threading.Timer(lib.limit(60), lib.group_kill, [self.p])
        self.timer.start()
        return self

    def say(self, line):
        self.p.stdin.write(line + "\n")
        self.p.stdin.flush()

    def ask(self, line):
        self.say(line)
        return self.p.stdout.readline().strip()

    def new(self, kind):
        self.pids, self.plain = list(map(int, self.ask(f"new {kind}").split())), False

    def host_pid(self, guest):
        """They may be in a namespace of pids."""
        for pid in (n for n in lib.names("/proc") if n.isdigit()):
            ids = [x.split()[1:] for x in lib.read(f"/proc/{pid}/status").splitlines() if x.startswith("NSpid:")]
            if ids and ids[0][-1] == str(guest) and lib.link(f"/proc/{pid}/exe") == lib.KYLINX:
                return int(pid)
        raise AssertionError(f"no process {guest}")

    def move_killed(self, writer, number, leaving):
        """The first one makes the pair plain; those behind it move what is left before they write."""
        pid = self.host_pid(self.pids[writer])
        try:
            trace(pid)
        except PermissionError as e:
            raise Skip(f"ptrace: {e.strerror}") from None
        self.say(f"move {writer}" if not self.plain else f"write {writer} 1 5")
        self.plain = True
        hit = kill_at(pid, number, leaving)
        got = self.p.stdout.readline().strip()
        expect((hit, got.split(",")[0]), (True, "dead"), f"writer {writer}, sendmsg {number}")

    def __exit__(self, *_):
        self.timer.cancel()
        lib.group_kill(self.p)
        self.p.stdin.close()
        self.p.stdout.close()


def one(t, kind, steps, what):
    """Steps: ("kill", writer, number of the sendmsg, leaving), or a line for the guest."""
    t.new(kind)
    for step in steps:
        if isinstance(step, str):
            got = t.ask(step)
            expect(got not in ("wrong", "dead", ""), True, f"{what}: {step}: {got}")
        else:
            t.move_killed(*step[1:])
    rest = t.ask("rest")
    m = re.search(r"^read, (\d+) of (\d+) messages$", rest)
    expect(bool(m) and m[1] == m[2] != "0", True, f"{what}: {rest}")


def each(kinds, name, steps):
    def run():
        with Told() as t:
            for kind in kinds:
                for leaving in (False, True):
                    one(t, kind, steps(leaving), f"type {kind}, killed as it {'leaves' if leaving else 'enters'} sendmsg")
    run.__name__ = name
    test(run)


ALL, MESSAGES = (STREAM, RECORDS, DATAGRAMS), (RECORDS, DATAGRAMS)
each(ALL, "first_piece", lambda leaving: ["write 0 20 2500", ("kill", 0, 1, leaving)])
each(ALL, "second_piece", lambda leaving: ["write 0 20 2500", ("kill", 0, 2, leaving)])
# Some that went before have not been read.
each(MESSAGES, "sixth_message", lambda leaving: ["write 0 20 5", ("kill", 0, 6, leaving)])
each(MESSAGES, "empty_messages", lambda leaving: ["write 0 10 0", "write 1 10 5", ("kill", 1, 4, leaving)])
each(MESSAGES, "last_is_empty", lambda leaving: ["write 0 4 7", "write 1 1 0", ("kill", 1, 5, leaving)])
# The reader has read some before another one goes on, or all.
each(ALL, "another_killed", lambda leaving: [
    "write 0 20 2500", ("kill", 0, 2, False), "read 1", ("kill", 1, 1, leaving)])
each((STREAM,), "all_read_before", lambda leaving: [
    "write 0 20 2500", ("kill", 0, 2, False), "read 32768", ("kill", 1, 1, leaving)])
each(MESSAGES, "some_read_before", lambda leaving: [
    "write 0 20 5", ("kill", 0, 6, False), *(["read 5"] if leaving else []), ("kill", 1, 2, leaving)])
# In doubt, and a living writer comes before or behind the reader.
each(ALL, "another_goes_on", lambda leaving: ["write 0 20 2500", ("kill", 0, 2, leaving), "write 1 1 5"])
each(MESSAGES, "reader_then_another", lambda leaving: ["write 0 20 5", ("kill", 0, 6, leaving), "read 2", "write 1 1 5"])
each(MESSAGES, "reader_all_then_another", lambda leaving: ["write 0 20 5", ("kill", 0, 6, leaving), "read 8", "write 1 1 5"])


if __name__ == "__main__":
    sys.exit(lib.run_tests(tests, args.only))
