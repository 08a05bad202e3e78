#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Online update of shared libraries: kylinx update.

test_update.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure. The fixtures in update/ are built by
gcc and g++ as Debian builds its own: full RELRO, BIND_NOW, stripped. KX_LONG=1: 1,000 alternating updates.
"""
import contextlib
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402
from servers import LONG, collection  # noqa: E402
from updates import UPDATE_SECONDS, Guest, all_see, build, fixtures, library, need, pauses, program, until  # noqa: E402

args = lib.arguments()
tests, test, _ = collection()


@test
def threads():
    """Four threads call in a loop: no wrong answer, each version is seen."""
    with lib.Dir() as d:
        fixtures(d, "threads")
        with Guest(d, [f"{d}/threads"]) as g:
            for v in (2, 1) * (5 if LONG else 3):
                g.update(f"{d}/v2.so" if v == 2 else f"{d}/libupd.so.1")
                until(lambda: g.ask("v") == f"all see {v}", f"version {v} in all threads")
            rest = g.end()
            expect(rest[-2], "ok", f"last line of {rest}")


@test
def state():
    """Variables, lists, thread-local storage, dlsym and dladdr; the program's own pointers; children."""
    with lib.Dir() as d:
        fixtures(d, "state", "-no-pie")
        for pie in ("-no-pie", "-pie"):
            program(d, "state", "state.c", pie, *([] if pie == "-no-pie" else ["-fPIE"]))
            with Guest(d, [f"{d}/state"]) as g:
                for v in (2, 1, 2, 1):
                    g.update(f"{d}/v2.so" if v == 2 else f"{d}/libupd.so.1")
                    expect(g.ask("v"), str(v), "version")
                    expect(g.ask("s"), "ok", f"state ({pie})")
                    expect(g.ask("d"), str(v), "dlsym")
                    expect(g.ask("f"), f"ok {v}", "a child")
                    expect(g.line(), "0", "its status")
                expect(g.ask("q"), "bye", "end")


@test
def lazy():
    """Programs and libraries that bind at the first call."""
    with lib.Dir() as d:
        library(d, "libupd.so.1", "-DV=1", "-Wl,-z,lazy")
        library(d, "v2.so", "-DV=2", "-Wl,-z,lazy")
        program(d, "state", "state.c", "-Wl,-z,lazy")
        with Guest(d, [f"{d}/state"]) as g:
            for v in (2, 1):
                g.update(f"{d}/v2.so" if v == 2 else f"{d}/libupd.so.1")
                for what, want in (("v", str(v)), ("s", "ok"), ("d", str(v))):
                    expect(g.ask(what), want, what)


@test
def versioned():
    """Symbols are found by their versions, though the new library's table has another order."""
    with lib.Dir() as d:
        with open(f"{d}/map", "w") as f:
            f.write("V1 { global: f0; f2; f4; f6; local: *; };\nV2 { global: f1; f3; f5; f7; e*; } V1;\n")
        for out, v in (("libupd.so.1", 1), ("v2.so", 2), ("v3.so", 3)):
            library(d, out, f"-DV={v}", f"-Wl,--version-script={d}/map", source="symver.c")
        program(d, "symvers", "symvers.c", "-ldl")
        with Guest(d, [f"{d}/symvers"]) as g:
            expect(g.ask("v"), "1 ok", "first")
            for v in (2, 3):
                g.update(f"{d}/v{v}.so", "--timeout", UPDATE_SECONDS)
                expect(g.ask("v"), f"{v} ok", "after an update")


@test
def cplusplus():
    """Virtual functions of objects that are there already, exceptions from, into and through the library."""
    need("g++")
    with lib.Dir() as d:
        library(d, "libupd.so.1", "-DV=1", source="shape.cc", cc="g++")
        library(d, "v2.so", "-DV=2", source="shape.cc", cc="g++")
        program(d, "shapes", "shapes.cc", cc="g++")
        with Guest(d, [f"{d}/shapes"]) as g:
            for v in (2, 1) * 3 + (2,):
                g.update(f"{d}/v2.so" if v == 2 else f"{d}/libupd.so.1")
                until(lambda: g.ask("v") == f"seen {v}", f"version {v}")
            rest = g.end()
            expect(rest[-2], "ok", "output")


@test
def refused():
    """Another interface is refused, with a list; the program goes on as before."""
    with lib.Dir() as d:
        fixtures(d, "state")
        library(d, "gone.so", "-DV=2", "-DGONE")
        library(d, "wide.so", "-DV=2", "-DWIDE")
        library(d, "layout.so", "-DV=2", "-DLAYOUT")
        library(d, "other.so", "-DV=2", soname="libother.so")
        library(d, "dep.so", "-DV=1", soname="libdep.so")
        library(d, "needs.so", "-DV=2", "-Wl,--no-as-needed", f"{d}/dep.so")
        with open(f"{d}/empty.so", "wb"):
            pass
        with Guest(d, [f"{d}/state"]) as g:
            for name, want in (("gone", "missing: gone"), ("wide", "changed: counter had 16 bytes, has 32"),
                               ("layout", "laid out differently"), ("other", "libother.so is not loaded"),
                               ("needs", "not loaded: libdep.so"), ("empty", "nothing is changed")):
                for options in ((), ("--dry-run",)):
                    text = g.update(f"{d}/{name}.so", *options, status=125)
                    if want not in text:
                        raise AssertionError(f"{name}: {text!r} lacks {want!r}")
            expect(g.ask("v"), "1", "version")
            expect(g.ask("s"), "ok", "state")
            g.update(f"{d}/v2.so", "--dry-run")
            expect(g.ask("v"), "1", "version after a dry run")
            g.update(f"{d}/layout.so", "--reset")
            expect(g.ask("v"), "2", "version after --reset")


@test
def hooks():
    """Hooks, constructors and resolvers run in the guest while another thread allocates; pointers that are told of."""
    build_dir = os.path.dirname(lib.KYLINX)
    own = [f"-I{lib.TOP}/include", f"{build_dir}/libkylinx.so.0", f"-Wl,-rpath,{build_dir}"]
    with lib.Dir() as d:
        for out, *options in (("libupd.so.1", "-DV=1"), ("v2.so", "-DV=2"), ("hang.so", "-DV=2", "-DHANG")):
            library(d, out, *options, own[0], source="hooked.c")
        program(d, "hooks", "hooks.c", *own)
        r = lib.run([f"{d}/hooks"], stdin=b"c\n")
        expect(r.out.split(b"\n")[1], b"v1 p10 1 constructed c1 a0 1", "natively")
        with Guest(d, [f"{d}/hooks"], "--volume", f"{build_dir}:{build_dir}") as g:
            expect(g.ask("c"), "v1 p10 1 constructed c1 a0 1", "first")
            g.update(f"{d}/v2.so")
            expect(g.ask("c"), "v2 p20 2 constructed c1 a0 2", "second version")
            expect(g.ask("k"), "v2 p20 0 constructed c1 a0 2", "second version")
            g.line()
            g.update(f"{d}/libupd.so.1")
            expect(g.ask("c"), "v1 p10 3 constructed c1 a0 1", "first version again")
            for n in range(4, 8):
                expect(g.ask("c").split()[2], str(n), "count")
            text = g.update(f"{d}/v2.so", status=125)
            expect("hook" in text, True, f"refused by commit: {text}")
            answer = g.ask("c")
            if not re.fullmatch(r"v1 p10 8 constructed c1 a[1-9]\d* 1", answer): # each prepare has its abort
                raise AssertionError(f"after commit refused: {answer}")
            for n in range(9, 14):
                expect(g.ask("c").split()[2], str(n), "count")
            text = g.update(f"{d}/v2.so", status=125)
            expect("hook" in text, True, f"refused by prepare: {text}")
            expect(g.ask("c"), answer.replace(" 8 ", " 14 "), "after prepare refused")
            for _ in range(20):
                g.update(f"{d}/v2.so")
                g.update(f"{d}/libupd.so.1")
            expect(g.ask("c"), "v1 p10 15 constructed c1 a0 1", "after many")
            text = g.update(f"{d}/hang.so", "--timeout", "5", status=125)
            expect("does not return" in text, True, f"a hook that hangs: {text}")


@test
def hook_forks():
    """What the change writes to is read-only again by then: forks have the program's small mappings copied."""
    with lib.Dir() as d:
        fixtures(d, "forks", source="forking.c")
        with Guest(d, [f"{d}/forks"]) as g:
            for v in (2, 1, 2, 1):
                g.update(f"{d}/v2.so" if v == 2 else f"{d}/libupd.so.1")
                for _ in range(4):
                    expect(g.ask("x"), f"v{v} child v{v} good", "answer")


@test
def hook_protects():
    """What the change writes to is read-only, or writable again, by then, by the program's own doing: it is made, and the page
    left as the program wants it. What has become code is not written to."""
    with lib.Dir() as d:
        fixtures(d, "protects", source="protecting.c")
        with Guest(d, [f"{d}/protects"]) as g:
            expect(g.ask("r"), "v1 table v1 written", "first")
            for v, next_one in ((2, "w"), (1, "r"), (2, "v"), (1, "w"), (2, "x")):
                g.update(f"{d}/v2.so" if v == 2 else f"{d}/libupd.so.1")
                may = "read-only" if (v, next_one) in ((2, "w"), (2, "v"), (1, "w")) else "written"
                expect(g.ask(next_one), f"v{v} table v{v} {may}", f"answer before {next_one}")
            said = g.update(f"{d}/libupd.so.1", status=125)
            expect(("Bad address" in said, "nothing is changed" in said), (True, True), said)
            expect(g.ask("v"), "v2 table v2 read-only", "code")
            expect(g.ask("m"), "v2 table v2 written", "no code any more")
            expect(g.ask("w"), "v2 table v2 written", "the next one's")
            g.update(f"{d}/libupd.so.1")
            expect(g.ask("v"), "v1 table v1 written", "the last")


@test
def example():
    """docs/examples/update.c does what it says, natively too: nothing of kylinx.h harms there."""
    build_dir = os.path.dirname(lib.KYLINX)
    own = [f"-I{lib.TOP}/include", f"{build_dir}/libkylinx.so.0", f"-Wl,-rpath,{build_dir}"]
    source = os.path.join(lib.TOP, "docs", "examples", "update.c")
    with lib.Dir() as d:
        for out, v in (("libcount.so.1", 1), ("new.so", 2)):
            library(d, out, f"-DVERSION={v}", own[0], source=source, soname="libcount.so.1")
        build(d, "example", "example.c", f"{d}/libcount.so.1", f"-Wl,-rpath,{d}", *own)
        r = lib.run([f"{d}/example"], stdin=b"x\nx\n")
        expect(r.out, b"ready\n1 0 1 -1 1\n2 0 1 -1 1\n", "natively")
        with Guest(d, [f"{d}/example"], "--volume", f"{build_dir}:{build_dir}") as g:
            for n in (1, 2):
                expect(g.ask("x"), f"{n} 1 1 0 1", "first version")
            g.update(f"{d}/new.so")
            expect(g.ask("x"), "3 1 1 0 1", "the count goes on")


@test
def inside():
    """A thread that is inside is waited for; one that never returns is named, and nothing is changed."""
    with lib.Dir() as d:
        fixtures(d, "state")
        with Guest(d, [f"{d}/state"]) as g:
            expect(g.ask("b"), "inside", "inside")
            g.update(f"{d}/v2.so")
            expect(g.line(), "3", "result of the call")
            expect(g.ask("v"), "2", "version")
            expect(g.ask("s"), "ok", "state")
            expect(g.ask("l"), "inside", "inside")
            text = g.update(f"{d}/libupd.so.1", "--timeout", "1", status=125)
            if not re.search(rf"thread {g.p.pid} is in with_callback\b", text):
                raise AssertionError(f"not named: {text!r}")


@test
def written_by_a_call():
    """A call that writes to the library's variables is waited for: what it writes is not lost."""
    with lib.Dir() as d:
        fixtures(d, "state")
        with Guest(d, [f"{d}/state"]) as g:
            for v in (2, 1):
                expect(g.ask("r"), "reading", "in the call")
                g.update(f"{d}/v2.so" if v == 2 else f"{d}/libupd.so.1")
                expect(g.line(), "hello", "what was read")
                expect(g.ask("v"), str(v), "version")


@test
def lets_go():
    """A program that closes its standard streams after an update has closed them: whoever reads them sees their end."""
    with lib.Dir() as d:
        fixtures(d, "state")
        with Guest(d, [f"{d}/state"]) as g:
            g.update(f"{d}/v2.so")
            g.p.stdin.write(b"c\n")
            g.p.stdin.flush()
            for name, f in (("output", g.p.stdout), ("error", g.p.stderr)):
                if not select.select([f], [], [], 90)[0]:
                    raise AssertionError(f"standard {name} is still open")
                expect(f.read(), b"", f"standard {name}")
            expect(g.p.poll(), None, "the program's end")


@test
def pointers():
    """Pointers to the library's variables, all over the memory of threads that write all the time, are moved along."""
    with lib.Dir() as d:
        for out, v in (("libupd.so.1", 1), ("v2.so", 2)):
            library(d, out, f"-DV={v}", source="cells.c")
        program(d, "pointers", "pointers.c")
        with Guest(d, [f"{d}/pointers", "24"]) as g:
            for i in range(60 if LONG else 8):
                v = 2 - i % 2
                g.update(f"{d}/{'v2.so' if v == 2 else 'libupd.so.1'}")
                before = int(g.ask("x").split()[1])

                def all_looked_at():
                    answer = g.ask("x").split()
                    expect(answer[0], str(v), f"version ({answer})")
                    return int(answer[1]) > before + 1000
                until(all_looked_at, "what the threads keep is looked at")


@test
def swapped_out():
    """So are those in memory that the host has put away."""
    if len(lib.read("/proc/swaps").splitlines()) < 2:
        raise Skip("the host has no swap")
    with lib.Dir() as d:
        for out, v in (("libupd.so.1", 1), ("v2.so", 2)):
            library(d, out, f"-DV={v}", source="cells.c")
        program(d, "swapped", "swapped.c")
        with Guest(d, [f"{d}/swapped"]) as g:
            for v in (2, 1):
                until(lambda: int(g.ask("o")) > 400, "pages are put away", 20)
                g.update(f"{d}/{'v2.so' if v == 2 else 'libupd.so.1'}")
                expect(g.ask("c"), f"{v}: 0 wrong", "pointers")


@test
def asked():
    """A pVM that is stopped does not answer, in time, and does nothing when it goes on; one that sleeps always notices."""
    with lib.Dir() as d:
        fixtures(d, "state")
        with Guest(d, [f"{d}/state"]) as g:
            os.kill(g.p.pid, signal.SIGSTOP)
            text = g.update(f"{d}/v2.so", "--timeout", "0.5", status=125)
            if "does not answer" not in text:
                raise AssertionError(text)
            os.kill(g.p.pid, signal.SIGCONT)
            time.sleep(0.5)
            expect(g.ask("v"), "1", "version")
            g.update(f"{d}/v2.so")
            expect(g.ask("v"), "2", "version")
        for i in range(40 if LONG else 8):
            with Guest(d, [f"{d}/state"]) as g:
                for _ in range(i % 4 * 5):
                    g.p.stdin.write(b"v\n")
                g.p.stdin.flush()
                g.update(f"{d}/v2.so")


SLEEPS = ("pause", "sigsuspend", "poll", "poll-timeout", "ppoll", "select", "pselect", "epoll", "epoll-pwait", "read", "recv",
          "recvmmsg", "nanosleep", "futex", "sem", "msg", "mq", "wait")
TELLS = ("epoll", "epoll-pwait", "sem", "msg", "recvmmsg") # may end with EINTR, as after a stop and SIGCONT


@test
def asleep():
    """A program that sleeps, in whatever call, is updated all the same, and sleeps on."""
    with lib.Dir() as d:
        fixtures(d, "asleep")
        for how in SLEEPS:
            with Guest(d, [f"{d}/asleep", how]) as g:
                time.sleep(0.1)
                for v in (2, 1, 2):
                    try:
                        g.update(f"{d}/v2.so" if v == 2 else f"{d}/libupd.so.1")
                    except AssertionError as e:
                        raise AssertionError(f"{how}: {e}") from None
                time.sleep(0.05)
                os.kill(g.p.pid, signal.SIGUSR1)
                answer = g.line()
                if answer == "woken" and how in TELLS:
                    answer = g.line()
                expect(answer, "2", f"version in {how}")


@test
def alternating():
    """Alternating updates while a client checks every answer, a timer's handler is in the library, children are forked."""
    rounds = 500 if LONG else 30
    with lib.Dir() as d:
        fixtures(d, "server")
        with Guest(d, [f"{d}/server", "10"]) as g:
            stop, answers, bad = threading.Event(), [0, 0, 0], []

            def client():
                n = 0
                while not stop.is_set() and not bad:
                    n += 1
                    a = g.ask("x").split()
                    if len(a) != 3 or a[0] != str(n) or a[1] not in ("1", "2") or a[2] != "ok":
                        bad.append(f"answer {n}: {a}")
                    else:
                        answers[int(a[1])] += 1
            def size():
                text = lib.read(f"/proc/{g.p.pid}/status")
                return [*(int(re.search(rf"{k}:\s+(\d+)", text)[1]) for k in ("VmSize", "RssAnon")),
                        lib.read(f"/proc/{g.p.pid}/maps").count("\n")]
            t = threading.Thread(target=client)
            t.start()
            try:
                for i in range(rounds):
                    g.update(f"{d}/v2.so")
                    g.update(f"{d}/libupd.so.1")
                    if bad:
                        break
                    if i == rounds // 3:
                        before = size()
            finally:
                stop.set()
                t.join()
            if bad:
                raise AssertionError(bad[0])
            if min(answers[1:]) < 1:
                raise AssertionError(f"answers of only one version: {answers}")
            grown = []

            def is_flat():  # once the last version is looked through and unmapped
                grown[:] = [b - a for a, b in zip(before, size())]
                return grown[0] <= 4096 and grown[1] <= 512 and grown[2] <= 16
            try:
                until(is_flat, "as large as before")
            except AssertionError as e:
                raise AssertionError(f"{e}: {grown[0]} KiB more, {grown[1]} of them in use, {grown[2]} mappings") from None


@test
def family():
    """--all updates every member that has the library; children made later have the new one."""
    with lib.Dir() as d:
        fixtures(d, "state")
        with Guest(d, ["sh", "-c", f"{d}/state & exec {d}/state <&0"], first=None) as g:
            pass
        script = (f"mkfifo /tmp/p; {d}/state </tmp/p >/tmp/o & exec 9>/tmp/p; until grep -q ready /tmp/o; do sleep 0.1; done; "
                  f"exec {d}/state")
        with Guest(d, ["sh", "-c", script]) as g:
            out = g.update(f"{d}/v2.so", "--all")
            if len(re.findall(r"pause", out)) != 2:
                raise AssertionError(f"not two members: {out!r}")
            expect(g.ask("v"), "2", "version")
            expect(g.ask("f"), "ok 2", "a child")


@test
def at_once():
    """--at-once: nobody runs with the old version when one has run with the new, while children come and go."""
    rounds = 20 if LONG else 4
    with lib.Dir() as d:
        fixtures(d, "family")
        for forks in (0, 1):
            with Guest(d, [f"{d}/family", "4", str(forks)]) as g:
                for i in range(rounds):
                    out = g.update(f"{d}/libupd.so.1" if i % 2 else f"{d}/v2.so", "--at-once")
                    if len(re.findall(r"pause", out)) < 5:
                        raise AssertionError(f"less than five members: {out!r}")
                    all_see(g, i + 1)
                expect(g.ask("v"), "1", "version")


@test
def at_once_refused():
    """--at-once: one that cannot leaves all as they were; when it dies, the others are updated; its asker's death is none."""
    with lib.Dir() as d:
        fixtures(d, "family")
        library(d, "gone.so", "-DV=2", "-DGONE")
        with Guest(d, [f"{d}/family", "3"]) as g:
            text = g.update(f"{d}/gone.so", "--at-once", status=125)
            if "missing: gone" not in text:
                raise AssertionError(f"not said why: {text!r}")
            pid = g.ask("l 1").split()[1]
            text = g.update(f"{d}/v2.so", "--at-once", "--timeout", "1", status=125)
            if not re.search(rf"process {pid}: .*thread {pid} is in with_callback\b", text):
                raise AssertionError(f"not named: {text!r}")
            all_see(g, 0)
            expect(g.ask("v"), "1", "version")
            asker = subprocess.Popen([lib.KYLINX, "update", "--at-once", "--timeout", UPDATE_SECONDS, g.name, f"{d}/v2.so"],
                                     stderr=subprocess.PIPE)
            time.sleep(1)
            asker.kill()
            asker.wait()
            asker.stderr.close()
            time.sleep(0.2)
            all_see(g, 0)
            asker = subprocess.Popen([lib.KYLINX, "update", "--at-once", "--timeout", UPDATE_SECONDS, g.name, f"{d}/v2.so"],
                                     stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            time.sleep(1)
            expect(asker.poll(), None, "the update's end before the member's")
            expect(g.ask("k 1"), "killed", "kill")
            out, err = asker.communicate(timeout=lib.limit(180))
            expect((asker.returncode, len(re.findall(rb"pause", out))), (0, 3), f"survivors: {out} {err}")
            expect(g.ask("a"), "2", "alive")
            all_see(g, 1)


@test
def mutated():
    """Damaged libraries never harm the monitor: they are refused, or what they break is the guest's."""
    rounds = 300 if LONG else 40
    rng = random.Random(7)
    with lib.Dir() as d:
        fixtures(d, "state")
        with open(f"{d}/v2.so", "rb") as f:
            data = f.read()
        g = None
        try:
            for i in range(rounds):
                if g is None or g.p.poll() is not None:
                    if g is not None:
                        if g.p.returncode == 125 or b"internal fault" in g.p.stderr.read():
                            raise AssertionError(f"round {i}: the monitor stopped the pVM or faulted")
                        g.__exit__()
                    g = Guest(d, [f"{d}/state"])
                b = bytearray(data)
                for _ in range(rng.choice((1, 3, 20))):
                    at = rng.randrange(0x1000 if rng.random() < 0.8 else len(b))
                    b[at] = rng.choice((0, 0xff, rng.randrange(256), b[at] ^ 1 << rng.randrange(8)))
                for code in (b"\x0f\x01\xc1", b"\x0f\x01\xd9"):
                    while code in b:
                        b[b.index(code)] = 0x90
                with open(f"{d}/bad.so", "wb") as f:
                    f.write(b)
                r = lib.run([lib.KYLINX, "update", "--timeout", "1", "--dry-run", g.name, f"{d}/bad.so"])
                if r.status not in (0, 125):
                    raise AssertionError(f"round {i}: {r.why()}")
                if g.p.poll() is None and g.ask("s") != "ok":
                    raise AssertionError(f"round {i}: the program noticed")
        finally:
            if g is not None:
                g.__exit__()


def listening(port):
    end = time.monotonic() + lib.limit(90)
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            import socket
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.05)
    raise AssertionError("not listening")


def debian(d, soname):
    """A copy of Debian's own file at another path, as the new version."""
    for where in ("/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu"):
        if os.path.exists(f"{where}/{soname}"):
            return shutil.copy(f"{where}/{soname}", d)
    raise Skip(f"{soname} is not installed")


@test
def redis():
    """redis-server's allocator, under load."""
    need("redis-server", "redis-benchmark")
    with lib.Dir() as d:
        new, port = debian(d, "libjemalloc.so.2"), lib.free_port()
        with Guest(d, ["redis-server", "--port", str(port), "--save", "", "--jemalloc-bg-thread", "no"], first=None) as g:
            threading.Thread(target=lambda: g.p.stdout.read(), daemon=True).start()
            listening(port)
            load = subprocess.Popen(["redis-benchmark", "-p", str(port), "-n", "8000", "-q", "-t", "set,get,lpush", "-r",
                                     "1000", "-d", "200"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            n = 0
            while load.poll() is None and n < 12:
                g.update(new)
                n += 1
            out = load.communicate(timeout=lib.limit(600))[0]
            expect((load.returncode, b"Error" in out), (0, False), f"load: {out[-200:]}")
            lib.run(["redis-cli", "-p", str(port), "shutdown", "nosave"])
            expect(g.p.wait(lib.limit(90)), 0, "exit status")


@test
def nginx():
    """nginx's TLS libraries, while handshakes go on: none fails."""
    need("nginx", "openssl")
    import ssl
    import socket
    with lib.Dir() as d:
        news, port = [debian(d, "libcrypto.so.3"), debian(d, "libssl.so.3")], lib.free_port()
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{d}/k.pem", "-out",
                        f"{d}/c.pem", "-days", "2", "-subj", "/CN=localhost"], check=True, stderr=subprocess.DEVNULL)
        with open(f"{d}/nginx.conf", "w") as f:
            f.write(f"daemon off; master_process off; pid /tmp/p; error_log stderr; events {{}} http {{ access_log off; "
                    f"client_body_temp_path /tmp/a; proxy_temp_path /tmp/b; fastcgi_temp_path /tmp/c; uwsgi_temp_path "
                    f"/tmp/d; scgi_temp_path /tmp/e; server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {d}/c.pem; "
                    f"ssl_certificate_key {d}/k.pem; location / {{ return 200 'fine'; }} }} }}")
        with Guest(d, ["nginx", "-c", f"{d}/nginx.conf"], first=None) as g:
            listening(port)
            stop, done, bad = threading.Event(), [0], []

            def client():
                c = ssl.create_default_context(cafile=f"{d}/c.pem")
                while not stop.is_set() and not bad:
                    try:
                        with socket.create_connection(("127.0.0.1", port), lib.limit(60)) as s, \
                                c.wrap_socket(s, server_hostname="localhost") as t:
                            t.sendall(b"GET / HTTP/1.0\r\n\r\n")
                            text = b""
                            while part := t.recv(4096):
                                text += part
                            if not text.endswith(b"fine"):
                                bad.append(f"answer {text[:80]}")
                            done[0] += 1
                    except OSError as e:
                        bad.append(f"after {done[0]} handshakes: {e}")
            ts = [threading.Thread(target=client) for _ in range(2)]
            for t in ts:
                t.start()
            try:
                for _ in range(3):
                    for new in news:
                        g.update(new)
                        time.sleep(0.2)
                until(lambda: done[0] >= 10 or bad, "ten handshakes")
            finally:
                stop.set()
                for t in ts:
                    t.join()
            if bad:
                raise AssertionError(f"{bad[0]}; {g.p.poll()}")


SQLITE = """
import sqlite3, sys
c = sqlite3.connect(':memory:')
c.execute('create table t(a integer, b text)')
print('ready', flush=True)
n = 0
for line in sys.stdin:
    for i in range(20):
        c.execute('insert into t values(?,?)', (n, str(n)))
        n += 1
    ok = c.execute('select count(*), max(a) from t').fetchone() == (n, n - 1)
    d = sqlite3.connect(':memory:')
    d.create_function('f', 1, lambda x: x + 1)
    ok = ok and d.execute('select f(41), round(sin(0.0))').fetchone() == (42, 0.0)
    d.close()
    print('ok' if ok else 'bad', flush=True)
"""


@test
def sqlite():
    """python3's SQLite, a database open."""
    with lib.Dir() as d:
        new = debian(d, "libsqlite3.so.0")
        with open(f"{d}/t.py", "w") as f:
            f.write(SQLITE)
        with Guest(d, ["/usr/bin/python3", f"{d}/t.py"]) as g:
            for _ in range(4):
                for _ in range(5):
                    expect(g.ask("x"), "ok", "answer")
                g.update(new)
            expect(g.ask("x"), "ok", "answer")
            g.end()


def main():
    status = lib.run_tests(tests, args.only)
    if pauses:
        pauses.sort()
        print(f"# {len(pauses)} updates: pause {pauses[len(pauses) // 2]:.2f} ms median, {pauses[-1]:.2f} ms worst")
    return status


if __name__ == "__main__":
    sys.exit(main())
