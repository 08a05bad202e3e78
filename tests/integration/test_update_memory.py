#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What becomes of versions of a library that kylinx update has replaced.

test_update_memory.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure. KX_LONG=1: 1,000 alternating
updates.
"""
import os
import re
import sys
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import lib  # noqa: E402
from lib import expect  # noqa: E402
from servers import LONG, collection  # noqa: E402
from updates import UPDATE_SECONDS, Guest, fixtures, library, program, until  # noqa: E402

args = lib.arguments()
tests, test, _ = collection()


def mapped(g, name):
    """Protections of the mappings of a file, of keeper.c."""
    return g.ask("m" + name).split()


def gone(g, name):
    """Looked through, and unmapped: after the answer, in the background."""
    until(lambda: not mapped(g, name), f"{name} is unmapped")


def stays(g, name, what):
    time.sleep(0.3)
    if "r-xp" not in mapped(g, name):
        raise AssertionError(f"{what}: {name} is not mapped any more: {mapped(g, name)}")


def replaced(g, d, order, what):
    """The second version by the third, when the program has taken from it what keeper.c does at this order."""
    g.update(f"{d}/v2.so", "--timeout", UPDATE_SECONDS)
    expect(g.ask(order), "taken", what)
    g.update(f"{d}/v3.so", "--timeout", UPDATE_SECONDS)


def size(g):
    """Memory in use (KiB; anonymous, files', shared), data (KiB), and mappings. Of smaps, since the sums in status are behind by
    up to 64 pages a thread before Linux 6.2. Not kylinx's own text, which a sleeper gives back now and then."""
    text = lib.read(f"/proc/{g.p.pid}/smaps")
    anon = files = shared = n = 0
    for m in re.finditer(r"^[0-9a-f]+-[0-9a-f]+ (?:\S+ +){4}(.*)\n((?:[A-Z]\w+:.*\n)+)", text, re.M):
        rss, own = (int(re.search(rf"^{k}:\s+(\d+)", m[2], re.M)[1]) for k in ("Rss", "Anonymous"))
        n += 1
        anon += own
        if m[1].endswith("(deleted)"):
            shared += rss - own
        elif m[1] != os.path.realpath(lib.KYLINX):
            files += rss - own
    data = int(re.search(r"VmData:\s+(\d+)", lib.read(f"/proc/{g.p.pid}/status"))[1])
    return [anon, files, shared, data, n]


def flat(g, before, what):
    """As before, once the last version is looked through and unmapped."""
    grown = []

    def is_flat():
        grown[:] = [b - a for a, b in zip(before, size(g))]
        return grown[0] <= 256 and grown[1] <= 256 and grown[2] <= 64 and grown[4] <= 8
    try:
        until(is_flat, what)
    except AssertionError as e:
        raise AssertionError(f"{e}: grown by {grown} (anonymous, files, shared, data KiB, mappings) from {before}") from None


TEMPLATE = 0x5a5b5c


def versions(d, n, *options, source="lib.c"):
    """So many different versions: one that is built, its number changed. Their paths."""
    library(d, "template.so", f"-DV={TEMPLATE}", *options, source=source)
    with open(f"{d}/template.so", "rb") as f:
        data = f.read()
    word = TEMPLATE.to_bytes(4, "little")
    assert data.count(word) >= 1
    for i in range(1, n + 1):
        with open(f"{d}/n{i}.so", "wb") as f:
            f.write(data.replace(word, i.to_bytes(4, "little")))
    os.unlink(f"{d}/template.so")
    return [f"{d}/n{i}.so" for i in range(1, n + 1)]


@test
def hundred_versions():
    """A hundred different versions in a row, of a library with variables: memory is as it was after ten."""
    with lib.Dir() as d:
        fixtures(d, "state")
        with Guest(d, [f"{d}/state"]) as g:
            for i, path in enumerate(versions(d, 100), 1):
                g.update(path, "--timeout", UPDATE_SECONDS)
                expect(g.ask("v"), str(i), "version")
                expect(g.ask("s"), "ok", "state")
                if i == 10:
                    before = size(g)
            flat(g, before, "100 versions")


@test
def hundred_with_calls():
    """The same of a library without variables, and with a system call: its trampolines go, too."""
    with lib.Dir() as d:
        library(d, "libupd.so.1", "-DV=0", source="keep.c")
        program(d, "keeper", "keeper.c")
        with Guest(d, [f"{d}/keeper"]) as g:
            for i, path in enumerate(versions(d, 100, source="keep.c"), 1):
                g.update(path, "--timeout", UPDATE_SECONDS)
                expect(g.ask("v"), str(i), "version")
                if i == 10:
                    before = size(g)
            flat(g, before, "100 versions")
            for i in (1, 50, 98):
                gone(g, f"n{i}.so")
            expect("r-xp" in mapped(g, "n100.so"), True, "the current one")


@test
def alternating():
    """Many updates between two versions, while it works: memory is as it was after some."""
    rounds = 500 if LONG else 60
    with lib.Dir() as d:
        fixtures(d, "state")
        with Guest(d, [f"{d}/state"]) as g:
            for i in range(rounds):
                for v in (2, 1):
                    g.update(f"{d}/v2.so" if v == 2 else f"{d}/libupd.so.1", "--timeout", UPDATE_SECONDS)
                    expect(g.ask("v"), str(v), "version")
                    expect(g.ask("s"), "ok", "state")
                if i == 5:
                    before = size(g)
            flat(g, before, f"{2 * rounds} updates")


def keeping(d):
    library(d, "libupd.so.1", "-DV=1", source="keep.c")
    for v in (2, 3, 4):
        library(d, f"v{v}.so", f"-DV={v}", source="keep.c")
    program(d, "keeper", "keeper.c")
    return Guest(d, [f"{d}/keeper"])


@test
def unused():
    """What nothing refers to is unmapped; it can come back."""
    with lib.Dir() as d, keeping(d) as g:
        for v in (2, 3, 2, 4):
            before = [p for p in ("v2.so", "v3.so", "v4.so") if mapped(g, p)]
            g.update(f"{d}/v{v}.so", "--timeout", UPDATE_SECONDS)
            expect(g.ask("v"), str(v), "version")
            for p in before:
                gone(g, p)


@test
def used():
    """A pointer to a local function keeps its version, which works on; once it is dropped, that goes with the next update."""
    with lib.Dir() as d, keeping(d) as g:
        replaced(g, d, "p", "pointer")
        stays(g, "v2.so", "a pointer to its code")
        expect(g.ask("c"), "20", "the old version's function")
        expect(g.ask("v"), "3", "version")
        expect(g.ask("d"), "dropped", "pointer")
        g.update(f"{d}/v4.so", "--timeout", UPDATE_SECONDS)
        gone(g, "v2.so")
        gone(g, "v3.so")
        expect(g.ask("v"), "4", "version")


@test
def exported():
    """A pointer to an exported function of a library without variables is moved along, and keeps nothing."""
    with lib.Dir() as d, keeping(d) as g:
        replaced(g, d, "x", "pointer")
        expect(g.ask("X"), "3", "through the pointer")
        gone(g, "v2.so")


@test
def constants():
    """A pointer to a constant keeps the constants alone."""
    with lib.Dir() as d, keeping(d) as g:
        replaced(g, d, "P", "pointer")
        until(lambda: "r-xp" not in mapped(g, "v2.so"), "code is unmapped")
        have = mapped(g, "v2.so")
        if not have or "r-xp" in have or "rw-p" in have:
            raise AssertionError(f"mapped of it: {have}")
        expect(g.ask("C"), "5", "the constants")
        g.update(f"{d}/v2.so", "--timeout", UPDATE_SECONDS)  # again, and whole
        expect(g.ask("v"), "2", "version")
        expect(g.ask("C"), "5", "the constants")
        expect(g.ask("D"), "dropped", "pointer")
        g.update(f"{d}/v4.so", "--timeout", UPDATE_SECONDS)
        gone(g, "v2.so")


@test
def mangled():
    """What glibc has of it in a form of its own: functions that are called at exit."""
    with lib.Dir() as d, keeping(d) as g:
        replaced(g, d, "a", "at exit")
        stays(g, "v2.so", "atexit")
        expect(g.ask("q"), "bye", "end")
        expect(g.line(), "end 2", "the old version's function, at exit")
        expect(g.p.wait(lib.limit(90)), 0, "status")


@test
def handler():
    """The handler of a signal."""
    with lib.Dir() as d, keeping(d) as g:
        replaced(g, d, "h", "handler")
        stays(g, "v2.so", "a signal's handler")
        os.kill(g.p.pid, 10)
        expect(g.line(), "end 2", "the old version's handler")
        expect(g.ask("H"), "dropped", "handler")
        g.update(f"{d}/v4.so", "--timeout", UPDATE_SECONDS)
        gone(g, "v2.so")


if __name__ == "__main__":
    sys.exit(lib.run_tests(tests, args.only))
