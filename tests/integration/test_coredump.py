#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What gdb reads from the core files of pVMs, beside those that Linux leaves of the same program.

test_coredump.py [KYLINX] [--only PATTERN]; prints TAP.
"""
import os
import re
import resource
import shutil
import struct
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402

args = lib.arguments()

GUEST = os.path.abspath(os.path.join(lib.TOP, os.environ.get("BUILD", "build"), "tests/guest"))
NOTES = {1: "PRSTATUS", 2: "FPREGSET", 3: "PRPSINFO", 6: "AUXV", 0x202: "X86_XSTATE", 0x53494749: "SIGINFO",
         0x46494C45: "FILE"}
tests = []


def test(fn):
    tests.append((fn.__name__, fn))
    return fn


def unlimited():
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY:
        raise Skip("the hard limit of core files is not unlimited")
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)


def left_by(d, argv, *options, native=False, want=None):
    """The core file that it leaves in d."""
    core = os.path.join(d, "core")
    r = lib.run(argv if native else lib.pvm(argv, "--volume", f"{d}:{d}", *options), cwd=d)
    if want is not None:
        expect(r.status, want, f"{argv}: {r.why()}")
    if not os.path.exists(core):
        raise AssertionError(f"no core file: {r.why()}")
    return core


def program(d):
    path = os.path.join(d, "program")
    shutil.copy(f"{GUEST}/coredump.dyn", path)
    return path


def native_core(d):
    with open("/proc/sys/kernel/core_pattern") as f:
        return f.read() == "core\n"


def notes(core):
    """Types of the notes in order, and (address, size in memory, size in the file, flags) of each mapping."""
    with open(core, "rb") as f:
        data = f.read(1 << 22)
    phoff, = struct.unpack_from("<Q", data, 32)
    phnum, = struct.unpack_from("<H", data, 56)
    found, loads = [], []
    for i in range(phnum):
        kind, flags, off, va, _, filesz, memsz, _ = struct.unpack_from("<IIQQQQQQ", data, phoff + 56 * i)
        if kind == 1:
            loads.append((va, memsz, filesz, flags))
        elif kind == 4:
            end = off + filesz
            while off < end:
                namesz, descsz, t = struct.unpack_from("<III", data, off)
                off += 12 + (namesz + 3 & ~3) + (descsz + 3 & ~3)
                found.append((NOTES.get(t, hex(t)), descsz))
    return found, loads


def gdb(path, core, *commands):
    if not shutil.which("gdb"):
        raise Skip("gdb is not installed")
    argv = ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off"]
    for c in commands:
        argv += ["-ex", c]
    r = lib.run([*argv, path, core], cwd="/")
    return r.out.decode(errors="replace") + r.err.decode(errors="replace")


SHOW = ["info threads", "bt", "p data", "p own", "p (char *)heap + 50000", "p $_siginfo._sifields._sigfault.si_addr",
        "p $ymm7.v8_int32", "p/x $eflags & 0x200", "thread apply all p own", "info auxv"]


def shown(text):
    """Without what differs from run to run."""
    got = [r"\(LWP \d+\)", r"LWP \d+", r"0x[0-9a-f]{6,}"]
    for g in got:
        text = re.sub(g, "_", text)
    return text


@test
def debugger():
    """Threads, stack, memory, thread-local and vector registers."""
    unlimited()
    with lib.Dir() as d:
        path = program(d)
        text = gdb(path, left_by(d, [path, "crash"], want=-11), *SHOW)
        for what in ("terminated with signal SIGSEGV", "#3 ", "in main", '"what the core file shows"', "= 7",
                     '"on the heap"', "(void *) 0x10", "1952540791", "in_thread", "= 101", "= 102", "AT_SYSINFO_EHDR",
                     "= 0x200"):
            if what not in text:
                raise AssertionError(f"no {what!r} in {text[-2000:]}")
        expect(len(re.findall(r"^\*? +\d+ +Thread", text, re.M)), 3, "threads")
        expect(len(re.findall(r"^#\d+ .*innermost", text, re.M)), 5, "frames of the recursion, the first told twice")


@test
def as_natively():
    """The same notes, and the same answers by gdb."""
    unlimited()
    if not native_core(None):
        raise Skip("the kernel puts core files elsewhere")
    with lib.Dir() as d:
        path = program(d)
        core = left_by(d, [path, "crash"], want=-11)
        got, loads = notes(core)
        text = gdb(path, core, *SHOW[1:-2])
        os.unlink(core)
        core = left_by(d, [path, "crash"], native=True, want=-11)
        want, _ = notes(core)
        # What the processor saves, and which files are mapped, is longer or shorter.
        def kinds(n):
            return [(t, s if t not in ("FILE", "AUXV", "X86_XSTATE") else 0) for t, s in n if not t.startswith("0x")]
        expect(kinds(got), kinds(want), "notes")
        a, b = shown(text).splitlines(), shown(gdb(path, core, *SHOW[1:-2])).splitlines()
        differ = [(x, y) for x, y in zip(a, b) if x != y and "Generated" not in x and "debug" not in x]
        expect(differ, [], "what gdb says")
        expect(all(not size or start + size <= 512 << 30 for start, _, size, _ in loads), True, "addresses")


@test
def of_a_child_of_vfork():
    """The memory that it shares with its parent, and itself alone of the threads; natively the same since Linux 5.16."""
    unlimited()
    show = ["bt", "p data", "p (char *)heap + 50000", "p $ymm7.v8_int32"]
    with lib.Dir() as d:
        path = program(d)
        core = left_by(d, [path, "vfork"], want=0)
        (got, _), text = notes(core), gdb(path, core, *show)
        for what in ("terminated with signal SIGSEGV", "#3 ", "in main", '"on the heap"', "1952540791"):
            if what not in text:
                raise AssertionError(f"no {what!r} in {text[-2000:]}")
        expect([t for t, _ in got].count("PRSTATUS"), 1, "threads")
        release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
        if not native_core(None) or release < (5, 16):
            return
        os.unlink(core)
        want, _ = notes(left_by(d, [path, "vfork"], native=True, want=0))
        expect(*([t for t, _ in n if not t.startswith("0x")] for n in (got, want)), "notes")
        a, b = shown(text).splitlines(), shown(gdb(path, core, *show)).splitlines()
        expect([(x, y) for x, y in zip(a, b) if x != y and "Generated" not in x and "debug" not in x], [], "what gdb says")


@test
def of_a_program_that_sleeps():
    """SIGABRT from outside: gdb sees the call that sleeps."""
    unlimited()
    with lib.Dir() as d:
        core = left_by(d, ["sh", "-c", "sleep 1000 & until [ \"$(cat /proc/$!/comm)\" = sleep ]; do sleep 0.1; done; n=0; "
                           "until [ $n = 10 ]; do sleep 0.2; read _ _ s _ </proc/$!/stat; [ $s = S ] && n=$((n+1)) || n=0; done; "
                           "kill -ABRT $!; wait $!"], want=134)
        text = gdb("/bin/sleep", core, "bt", "p $orig_rax")
        if "SIGABRT" not in text or not re.search(r"\$1 = (230|270|271|35)\b", text):
            raise AssertionError(text[-1000:])


@test
def outer_status():
    """Who starts kylinx sees the signal, as the host's kernel tells it: without the bit of a core file."""
    unlimited()
    with lib.Dir() as d:
        path = program(d)
        left_by(d, [path, "abort"], want=-6)
        r = lib.run(["sh", "-c", f"{lib.KYLINX} run --volume {d}:{d} {path} abort; echo $?"], cwd=d)
        expect(r.out.strip(), b"134", "status in a shell")


@test
def not_without_a_place():
    """The working directory is read-only in the view."""
    unlimited()
    with lib.Dir() as d:
        path = program(d)
        r = lib.run(lib.pvm([path, "abort"]), cwd=d)
        expect((r.status, sorted(os.listdir(d))), (-6, ["program"]), r.why())


@test
def by_limit():
    """No file without a limit that allows it, and hosts' default is 0."""
    unlimited()
    with lib.Dir() as d:
        path = program(d)
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.RLIM_INFINITY))
        r = lib.run(lib.pvm([path, "abort"], "--volume", f"{d}:{d}"), cwd=d)
        expect((r.status, sorted(os.listdir(d))), (-6, ["program"]), r.why())


sys.exit(lib.run_tests(tests, args.only))
