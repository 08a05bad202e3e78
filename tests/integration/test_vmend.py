#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_vmend.py [KYLINX] [--only PATTERN]: the closer (monitor/core/vmend.h), a process that holds the VMs of a family until
their processes have ended. What it has, how long it lives, and that the program does not see it."""
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402

args = lib.arguments()
PYTHON = "/usr/bin/python3"
NAME = "kx-vmend"
tests = []


def test(fn):
    tests.append((fn.__name__, fn))
    return fn


def until(fn, what, seconds=60):
    end = time.monotonic() + lib.limit(seconds)
    while time.monotonic() < end:
        got = fn()
        if got:
            return got
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {lib.limit(seconds):.0f} s")


def closers():
    """Those that run: this process adopts them, and waits for them when a test has ended."""
    return [int(p) for p in lib.names("/proc")
            if p.isdigit() and lib.read(f"/proc/{p}/comm").strip() == NAME and lib.link(f"/proc/{p}/exe")
            and lib.below(int(p))]


def fds(pid):
    return [lib.link(f"/proc/{pid}/fd/{n}") for n in lib.names(f"/proc/{pid}/fd")]


def held(pid):
    return sum("kvm-vm" in f for f in fds(pid))


@contextlib.contextmanager
def family(*argv, options=()):
    """It, and its closer."""
    p = subprocess.Popen([lib.KYLINX, "run", *options, "--", *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                         start_new_session=True)
    try:
        until(lambda: len(closers()) == 1, "a closer")
        yield p, closers()[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(p.pid, signal.SIGKILL)
        p.wait()
        p.stdin.close()
        p.stdout.close()
    until(lambda: not closers(), "the closer ends with the family", 20)


def in_pvm(code, *options, wrap=()):
    r = lib.run([*wrap, lib.KYLINX, "run", *options, "--", PYTHON, "-c", code], 120)
    expect((r.status, r.err.decode()), (0, ""), "the program")
    return r.out.decode().split()


# A number on its standard input is answered when so many children are there; "x" has them exec, "k" kills them.
CHILDREN = """
import os, signal, sys
pids = []
for line in sys.stdin:
    if line[0] == "k":
        for p in pids:
            os.kill(p, signal.SIGKILL)
            os.waitpid(p, 0)
        pids = []
    else:
        program = line[0] == "x"
        for i in range(int(line[1:])):
            p = os.fork()
            if not p:
                os.close(0)
                if program:
                    os.execv("/bin/sleep", ["sleep", "1000"])
                signal.pause()
            pids.append(p)
    print("done", flush=True)
"""


def ask(p, what):
    p.stdin.write(what + "\n")
    p.stdin.flush()
    expect(p.stdout.readline(), "done\n", f"answer to {what!r}")


@test
def without_standard_streams():
    """Its socket may have had the number of one."""
    for script in ('exec "$@" <&-', 'exec "$@" <&- >&-', 'exec "$@" <&- >&- 2>&-'):
        p = subprocess.Popen(["sh", "-c", script, "sh", *lib.pvm(["/bin/sleep", "1000"])], start_new_session=True, cwd="/",
                             stdout=subprocess.DEVNULL)
        try:
            until(lambda: lib.read(f"/proc/{p.pid}/comm") == "sleep\n", "the program")
            until(lambda: closers() and held(closers()[0]), f"a closer that holds the VM: {script}", 10)
        finally:
            p.kill()
            p.wait()
        until(lambda: not closers(), "the closer ends with the family", 20)


@test
def it_has_nothing_of_the_family():
    pipe = os.pipe()
    try:
        os.set_inheritable(pipe[1], True)
        with family("sleep", "1000") as (p, closer):
            until(lambda: held(closer) == 1, "the VM is held")
            kinds = sorted(re.sub(r"\[\d+\]", "", f) for f in fds(closer))
            allowed = ["/dev/null"] * 3 + ["anon_inode:[eventpoll]", "anon_inode:[pidfd]", "anon_inode:kvm-vm", "socket:"]
            if "pidfd:" in kinds:  # what newer kernels call it
                allowed = ["pidfd:" if a == "anon_inode:[pidfd]" else a for a in allowed]
            expect(kinds, sorted(allowed), "descriptors")
            expect(lib.link(f"/proc/{closer}/cwd"), "/", "its directory")
            expect(os.getsid(closer), closer, "its session")
            for ns in ("mnt", "ipc", "user", "net"):
                expect(lib.link(f"/proc/{closer}/ns/{ns}"), lib.link(f"/proc/self/ns/{ns}"), f"{ns} namespace")
            maps = lib.read(f"/proc/{closer}/maps")
            assert "kvm-vcpu" not in maps and "memfd" not in maps, maps
    finally:
        os.close(pipe[0])
        os.close(pipe[1])


@test
def vms_are_held_until_their_processes_end():
    with family(PYTHON, "-c", CHILDREN) as (p, closer):
        until(lambda: held(closer) == 1, "the root's")
        ask(p, "f4")
        until(lambda: held(closer) == 5, "four children's")
        ask(p, "k")
        until(lambda: held(closer) == 1, "the children have ended")
        ask(p, "x3")
        until(lambda: held(closer) == 4, "three that have another one since their exec")
        ask(p, "f30")
        until(lambda: held(closer) == 34, "thirty more")
        ask(p, "k")
        until(lambda: held(closer) == 1, "all have ended at once")
        until(lambda: sum("pidfd" in f for f in fds(closer)) == 1, "nothing else is left")


KEPT = """
import os, sys
def child():
    p = os.fork()
    if not p:
        os._exit(0)
    os.waitpid(p, 0)
for i in range(6):
    child()
os.posix_spawn("/bin/true", ["true"], {})
os.wait()
for i in range(6):
    child()
print("done", flush=True)
sys.stdin.readline()
"""


@test
def nobody_else_keeps_one():
    """A process whose threads have tables of descriptors of their own has its VM alone, and that of a child made ahead."""
    with family(PYTHON, "-c", KEPT) as (p, closer):
        expect(p.stdout.readline(), "done\n", "the program")
        tables = {}
        for tid in lib.names(f"/proc/{p.pid}/task"):
            its = [lib.link(f"/proc/{p.pid}/task/{tid}/fd/{n}") for n in lib.names(f"/proc/{p.pid}/task/{tid}/fd")]
            tables[lib.read(f"/proc/{p.pid}/task/{tid}/comm").strip()] = sum("kvm-vm" in f for f in its)
        expect(tables.get("kx-keeper"), 1, "VMs in the keeper's table")


@test
def it_lives_as_long_as_any_of_the_family():
    with family("sh", "-c", "sleep 1000 & echo $!; read x; kill -9 $$") as (p, closer):
        child = int(p.stdout.readline())
        until(lambda: held(closer) == 2, "both VMs")
        p.stdin.write("x\n")
        p.stdin.flush()
        expect(p.wait(), -signal.SIGKILL, "the root's end")
        until(lambda: held(closer) == 1, "the root's VM has ended")
        expect(closers(), [closer], "closers")
        os.kill(child, signal.SIGKILL)
        until(lambda: not closers(), "it ends with the last one")


@test
def a_family_without_one_goes_on():
    with family(PYTHON, "-c", CHILDREN) as (p, closer):
        os.kill(closer, signal.SIGKILL)
        until(lambda: not fds(closer), "it has ended")
        for what in ("f3", "k", "x3", "k"):
            ask(p, what)
        p.stdin.close()
        expect(p.wait(), 0, "status")
        p.stdin = open(os.devnull)


HIDDEN = """
import ctypes, errno, os, signal
libc = ctypes.CDLL(None, use_errno=True)
WALL, WCLONE = 0x40000000, 0x80000000
def wait(pid, options):
    status = ctypes.c_int()
    ctypes.set_errno(0)
    return libc.wait4(pid, ctypes.byref(status), ctypes.c_int(options & 0xffffffff), None), ctypes.get_errno()
none = (-1, errno.ECHILD)
for options in (0, os.WNOHANG, WALL, WALL | os.WNOHANG, WCLONE, WCLONE | os.WNOHANG):
    assert wait(-1, options) == none, options
closer = %s
if closer:
    for pid in (closer, -closer):
        assert wait(pid, WALL) == none, pid
    for kill in (os.kill, os.killpg):
        try:
            kill(closer, 0)
            print("killed")
        except ProcessLookupError:
            pass
    assert not os.path.exists(f"/proc/{closer}")
for options in (os.WEXITED, os.WEXITED | WALL):
    try:
        os.waitid(os.P_ALL, 0, options)
        print("waited")
    except ChildProcessError:
        pass
p = os.fork()
if not p:
    os._exit(3)
assert os.waitpid(-1, WALL) == (p, 3 << 8)
assert wait(-1, WALL) == none
print("hidden")
"""


READS = "import sys\nexec(sys.stdin.read())"


def finds_nothing(p, closer):
    p.stdin.write(HIDDEN % closer)
    p.stdin.close()
    expect(p.stdout.read(), "hidden\n", "what it finds")
    expect(p.wait(), 0, "status")
    p.stdin = open(os.devnull)


@test
def the_program_does_not_see_it():
    with family(PYTHON, "-c", READS) as (p, closer):
        finds_nothing(p, closer)


@test
def nor_does_one_that_ended_it():
    with family(PYTHON, "-c", READS) as (p, closer):
        os.kill(closer, signal.SIGKILL)
        until(lambda: not fds(closer), "it has ended")
        finds_nothing(p, 0)


@test
def the_first_process_of_a_container_is_the_program():
    if os.geteuid() or not shutil.which("unshare"):
        raise Skip("run as root, with unshare(1)")
    wrap = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")
    expect(in_pvm("import os; print(os.getpid())\n" + HIDDEN % 0, wrap=wrap), ["1", "hidden"], "what it finds")


@test
def one_that_kylinx_exec_adds_has_its_own():
    with family("sleep", "1000", options=("--name", "vmend")) as (p, closer):
        until(lambda: held(closer) == 1, "the family runs")
        q = subprocess.Popen([lib.KYLINX, "exec", "vmend", "sleep", "1000"], stdin=subprocess.DEVNULL)
        try:
            until(lambda: len(closers()) == 2, "two")
            other = (set(closers()) - {closer}).pop()
            until(lambda: held(other) == 1 and held(closer) == 1, "each holds one")
        finally:
            q.kill()
            q.wait()
        until(lambda: closers() == [closer], "one")


if __name__ == "__main__":
    sys.exit(lib.run_tests(tests, args.only))
