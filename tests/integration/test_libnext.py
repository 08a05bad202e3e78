#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Libraries that are opened before the dynamic linker asks: what it finds is what it would find natively.

test_libnext.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure.
"""
import json
import os
import shutil
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import lib  # noqa: E402
from lib import expect  # noqa: E402
from servers import collection  # noqa: E402

args = lib.arguments()
tests, test, _ = collection()
SRC = f"{HERE}/libnext"


def gcc(*argv):
    subprocess.run(["gcc", "-O1", "-Wall", *argv], check=True)


def library(d, n, v=1, *flags, out=None, soname=None):
    out = out or f"{d}/libn{n}.so"
    gcc("-fPIC", "-shared", f"-DN={n}", f"-DV={v}", f"-Wl,-soname,{soname or f'libn{n}.so'}", "-o", out, f"{SRC}/l.c", *flags)
    return out


def program(d, n, *flags, out="m", where=None):
    """Linked with n libraries, each of which is made."""
    for i in range(n):
        library(d, i)
    gcc("-o", f"{d}/{out}", f"{SRC}/m.c", "-Wl,--no-as-needed", *[f"{d}/libn{i}.so" for i in range(n)],
        f"-Wl,-rpath,{where or d}", *flags)
    return f"{d}/{out}"


def both(argv, d, env=None, fresh=None, options=()):
    """The same natively and in a pVM: what they print and how they end. The pVM's counts."""
    env, told = env or {}, []
    for kx in (False, True):
        if fresh:
            fresh()
        stats = f"{d}/stats.json"
        given = ["--volume", f"{d}:{d}", "--io", "exit", f"--stats={stats}", *options,
                 *[x for k, v in env.items() for x in ("--env", f"{k}={v}")]]
        r = lib.run(lib.pvm(argv, *given) if kx else argv, env=None if kx else env)
        # Their order by address is nobody's business.
        lines, maps = r.out.decode().splitlines(), []
        rest = [x for x in lines if not x.startswith("/") or maps.append(x)]
        told.append((r.status, "\n".join(rest + sorted(maps)), r.err.decode()))
    for a, b in zip(*((x[1] + x[2]).splitlines() for x in told)):
        expect(b, a, " ".join(argv))
    expect(told[1], told[0], " ".join(argv))
    with open(stats) as f:
        return json.load(f)["hypercalls"], told[0]


def few(argv, d, env=None, **most):
    """Calls of these names are that few, of some runs: what is told of missing directories holds for a millisecond, which a
    busy machine takes."""
    for _ in range(8):
        calls, _ = both(argv, d, env=env)
        if all(calls.get(k, 0) <= n for k, n in most.items()):
            return
    raise AssertionError(f"{argv}: {calls}, expected at most {most}")


@test
def thirty():
    """A start with 30 libraries: a few exits, nothing left open, nothing mapped but what the linker has mapped."""
    with lib.Dir() as d:
        m = program(d, 30)
        time.sleep(1.1)  # files just made are not stored
        for _ in range(2):
            calls, told = both([m, "call", "0", "call", "29", "fds", "maps", d], d)
        expect(told[1].count("libn"), 30 * 5, "mappings")
        few([m], d, openat=6, total=14, brk=0, set_tid_address=0)


@test
def deep():
    """Libraries that need others: in the linker's order, each once."""
    with lib.Dir() as d:
        for i in reversed(range(12)):
            need = [f"{d}/libn{k}.so" for k in (2 * i + 1, 2 * i + 2, 11) if i < k < 12]
            library(d, i, 1, "-Wl,--no-as-needed", *need, f"-Wl,-rpath,{d}")
        gcc("-o", f"{d}/m", f"{SRC}/m.c", "-Wl,--no-as-needed", f"{d}/libn0.so", f"-Wl,-rpath,{d}")
        few([f"{d}/m", "fds", "maps", d, "call", "11"], d, openat=8)
        os.unlink(f"{d}/libn7.so")
        _, told = both([f"{d}/m", "fds"], d)
        assert "libn7.so" in told[2] and told[0] == 127, told


@test
def found_elsewhere():
    """The same names in several directories: that of the search's order counts, not where others were found."""
    with lib.Dir() as d:
        os.mkdir(f"{d}/x")
        m = program(d, 8)
        new = program(d, 0, *[f"{d}/libn{i}.so" for i in range(8)], "-Wl,--enable-new-dtags", out="new")
        old = program(d, 0, *[f"{d}/libn{i}.so" for i in range(8)], "-Wl,--disable-new-dtags", out="old")
        library(d, 3, 2, out=f"{d}/x/libn3.so")
        library(d, 5, 2, out=f"{d}/x/libn5.so")
        for p in (m, new, old):
            for env in ({}, {"LD_LIBRARY_PATH": f"{d}/x"}, {"LD_PRELOAD": f"{d}/x/libn5.so"}):
                both([p, "fds", "maps", d, "call", "3", "call", "5"], d, env=env)
        os.mkdir(f"{d}/glibc-hwcaps")
        for level in ("x86-64-v2", "x86-64-v3", "x86-64-v4"):
            os.mkdir(f"{d}/glibc-hwcaps/{level}")
        library(d, 4, 3, out=f"{d}/glibc-hwcaps/x86-64-v2/libn4.so")
        os.mkdir(f"{d}/x86_64")
        library(d, 6, 3, out=f"{d}/x86_64/libn6.so")
        both([m, "fds", "maps", d, "call", "4", "call", "6"], d)
        os.rename(f"{d}/libn2.so", f"{d}/real")
        os.symlink("real", f"{d}/libn2.so")
        os.unlink(f"{d}/libn7.so")
        os.link(f"{d}/libn6.so", f"{d}/libn7.so")  # one file by two names
        both([m, "fds", "maps", d, "call", "2", "call", "6"], d)
        for what in ("text", "directory", "nothing"):
            os.unlink(f"{d}/libn7.so")
            if what == "text":
                with open(f"{d}/libn7.so", "w", encoding="ascii") as f:
                    f.write("no library\n" * 500)
            elif what == "directory":
                os.mkdir(f"{d}/libn7.so")
            elif what == "nothing":
                os.symlink("gone", f"{d}/libn7.so")
            _, told = both([m, "fds"], d)
            expect(told[0], 127, f"the status with {what}")
            if what == "directory":
                os.rmdir(f"{d}/libn7.so")
                os.symlink("gone", f"{d}/libn7.so")


@test
def few_descriptors():
    """At its limit of descriptors a program finds what it finds natively; with others closed, too."""
    with lib.Dir() as d:
        m = program(d, 12)
        for n in (3, 4, 5, 6):
            both(["/bin/sh", "-c", f"ulimit -n {n}; exec {m} fds call 11"], d)
        for closing in ("0<&-", "2>&-", "0<&- 2>&-", "5</dev/null", "3</dev/null 5</dev/null"):
            both(["/bin/sh", "-c", f"exec {m} fds call 11 keep fds {closing}"], d)
        x = program(d, 0, out="x")
        both([x, "limit", "3", "open", f"{d}/libn1.so", "fds", "limit", "4", "open", f"{d}/libn1.so", "call", "1", "fds"], d)
        both([x, "open", f"{d}/libn1.so", "keep", "open", f"{d}/libn2.so", "shut", "0", "open", f"{d}/libn3.so", "keep", "fds",
              "maps", d], d)


@test
def opened_again():
    """dlopen and dlclose, again and again: what is there, and that it needs no exit for the library."""
    with lib.Dir() as d:
        program(d, 3)
        library(d, 5, 1, "-Wl,--no-as-needed", f"{d}/libn1.so", f"{d}/libn2.so", f"-Wl,-rpath,{d}")
        x = program(d, 0, "-Wl,-rpath," + d, out="x")
        quiet = ["fds", "maps", d]
        both([x, "open", "libn5.so", "call", "5", *quiet, "close", *quiet, "open", "libn5.so", "call", "5", "close", *quiet], d)
        both([x, "open", "libutil.so.1", "close", "open", "libn5.so", "close", "open", "libutil.so.1", *quiet], d)
        both([x, "open", "libutil.so.1", "close", "open", "nothing.so", *quiet, "open", "libutil.so.1", "close", *quiet], d)
        gcc("-o", f"{d}/z", f"{SRC}/m.c")
        few, _ = both([f"{d}/z", "quick", "10", "libutil.so.1"], d)
        many, _ = both([f"{d}/z", "quick", "60", "libutil.so.1"], d)
        assert many["openat"] - few["openat"] <= 55, (few, many)
        y = program(d, 0, out="y", where=f"{d}/none")
        both([y, "quick", "20", "libn5.so", "quick", "20", f"{d}/libn5.so", "fds", "maps", d], d)


@test
def in_between():
    """Constructors that open files, start threads and processes; an auditor in the middle of the linker's work."""
    with lib.Dir() as d:
        for hook in (1, 2, 3):
            for i in range(8):
                library(d, i, 1, *([f"-DHOOK={hook}"] if i in (2, 5) else []))
            gcc("-o", f"{d}/m", f"{SRC}/m.c", "-Wl,--no-as-needed", *[f"{d}/libn{i}.so" for i in range(8)], f"-Wl,-rpath,{d}")
            both([f"{d}/m", "fds", "call", "7", "maps", d], d)
            x = program(d, 0, out="x")
            both([x, "open", f"{d}/libn2.so", "open", f"{d}/libn5.so", "open", f"{d}/libn1.so", "fds", "maps", d, "close",
                  "open", f"{d}/libn1.so", "call", "1", "fds"], d)
        m = program(d, 8)
        gcc("-fPIC", "-shared", "-o", f"{d}/audit.so", f"{SRC}/audit.c")
        for at in ("m", "libn0", "libn4", "libn7", "libc.so"):
            both([m, "fds", "maps", f"{d}/lib", "call", "7"], d, env={"LD_AUDIT": f"{d}/audit.so", "AT": at})

        def old():
            library(d, 6, 1)
            library(d, 6, 2, out=f"{d}/new.so")

        for at in ("libn1", "libn5"):
            _, told = both([m, "call", "6", "fds"], d, fresh=old,
                           env={"LD_AUDIT": f"{d}/audit.so", "AT": at, "FROM": f"{d}/new.so", "TO": f"{d}/libn6.so"})
            assert "rename 0" in told[1] and "call: 2006" in told[1], told


@test
def exchanged_meanwhile():
    """Somebody else exchanges libraries all the time: each start has one version or the other, whole."""
    with lib.Dir() as d:
        m = program(d, 12)
        for v in (1, 2):
            os.mkdir(f"{d}/{v}")
            for i in (4, 9):
                library(d, i, v, out=f"{d}/{v}/libn{i}.so")
        end, n = threading.Event(), [0]

        def exchange():
            while not end.is_set():
                for i in (4, 9):
                    shutil.copy(f"{d}/{n[0] % 2 + 1}/libn{i}.so", f"{d}/new")
                    os.rename(f"{d}/new", f"{d}/libn{i}.so")
                n[0] += 1
                time.sleep(0.002)

        t = threading.Thread(target=exchange)
        t.start()
        seen = set()
        try:
            for _ in range(40):
                r = lib.run(lib.pvm([m, "call", "4", "call", "9", "fds"], "--volume", f"{d}:{d}"))
                lines = r.out.decode().splitlines()
                assert r.status == 0 and len(lines) == 3, r.why()
                assert lines[0] in ("call: 1004", "call: 2004") and lines[1] in ("call: 1009", "call: 2009"), lines
                expect(lines[2], "fds: 0 1 2", "descriptors")
                seen.add(lines[0])
        finally:
            end.set()
            t.join()
        assert n[0] > 20, n


@test
def under_a_policy():
    """A library that is not allowed is refused where the linker asks for it, once, and the others are not asked about; one
    that is denied but never asked for is no refusal."""
    with lib.Dir() as d:
        m = program(d, 12)
        library(d, 11, 1, "-DX")
        for rules, denied in (("deny soname libn7.so", "libn7.so"), ("deny soname nothing.so", None),
                              ("deny soname libutil.so.1", None)):
            with open(f"{d}/policy", "w", encoding="ascii") as f:
                f.write(f"[default]\nmode enforce\njit allow\n{rules}\nallow path /**\n")
            r = lib.run(lib.pvm([m, "call", "11", "fds", "maps", d], "--volume", f"{d}:{d}", "--policy", f"{d}/policy",
                                f"--stats={d}/stats"))
            with open(f"{d}/stats", encoding="ascii") as f:
                counts = json.load(f)["policy"]
            expect((r.status, counts["refused"]), (127, 1) if denied else (0, 0), rules)
            expect(r.err.decode().count("libn7.so") > 0, denied is not None, f"what was said ({r.err})")
            if not denied:
                expect(r.out.decode().splitlines()[:2], ["call: 1011", "fds: 0 1 2"], rules)
        # Opened again, when it may not be any more: the policy of the start decides, each time.
        r = lib.run(lib.pvm([program(d, 0, out="x"), "quick", "5", "libutil.so.1", "open", "libutil.so.1"],
                            "--policy", f"{d}/policy", "--volume", f"{d}:{d}", f"--stats={d}/stats"))
        assert r.out.startswith(b"quick: 0\nopen: libutil.so.1: ") and r.status == 0, r.why()
        with open(f"{d}/stats", encoding="ascii") as f:
            expect(json.load(f)["policy"]["refused"], 6, "refusals")


@test
def cache_changed():
    """The linker's cache is kept mapped between two openings only if it is the same: one that is written or exchanged is read
    anew."""
    with lib.Dir() as d:
        program(d, 3)
        gcc("-o", f"{d}/z", f"{SRC}/m.c")
        root = f"{d}/root"
        for name in ("usr", "bin", "sbin", "lib", "lib64"):
            os.makedirs(root, exist_ok=True)
            if os.path.islink(f"/{name}"):
                os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
            else:
                os.makedirs(f"{root}/{name}", exist_ok=True)
        for name in ("etc", "x", "usr"):
            os.makedirs(f"{root}/{name}", exist_ok=True)
        for i in (1, 2):
            os.mkdir(f"{root}/x/{i}")
            library(d, 1, i, out=f"{root}/x/{i}/libn1.so")
            with open(f"{root}/etc/ld.so.conf", "w", encoding="ascii") as f:
                f.write(f"/x/{i}\n/lib/x86_64-linux-gnu\n/usr/lib/x86_64-linux-gnu\n")
            subprocess.run(["mount", "--bind", "/usr", f"{root}/usr"], check=True)
            try:
                subprocess.run(["/sbin/ldconfig", "-r", root, "-X", "-C", f"/etc/cache{i}"], check=True, stderr=subprocess.DEVNULL)
            finally:
                subprocess.run(["umount", f"{root}/usr"], check=True)
        argv, versions = [f"{d}/z"], (1, 1, 2, 2, 1)
        shutil.copy(f"{root}/etc/cache1", f"{root}/etc/ld.so.cache")
        for n, i in enumerate(versions):  # the program does it itself, between two openings
            shutil.copy(f"{root}/etc/cache{i}", f"{root}/etc/new{n}")
            once = ["open", "libn1.so", "call", "1", "close"]
            argv += ["put", f"/etc/new{n}", "/etc/ld.so.cache", *once, *once]
        # Where /etc/ld.so.cache and /x lead there.
        given = ["--volume", f"{d}:{d}", "--volume", f"{root}/etc:/etc", "--volume", f"{root}/x:/x"]
        time.sleep(3.1)  # of late, nothing is taken for unchanged
        r = lib.run(lib.pvm(argv, *given))
        expect((r.status, [x for x in r.out.decode().splitlines() if x.startswith("call")]),
               (0, [f"call: {i}001" for i in versions for _ in range(2)]), f"the versions ({r.out}, {r.err})")
        for how in ("exchanged", "written"):  # by somebody else, without any call of the program's in between
            shutil.copy(f"{root}/etc/cache1", f"{root}/etc/ld.so.cache")
            shutil.copy(f"{root}/etc/cache2", f"{root}/etc/new")
            time.sleep(3.1)
            p = subprocess.Popen(lib.pvm([f"{d}/z", "watch", "libn1.so"], *given), stdout=subprocess.PIPE)
            expect(p.stdout.readline(), b"watch: 1001\n", how)
            time.sleep(0.3)
            if how == "exchanged":
                os.rename(f"{root}/etc/new", f"{root}/etc/ld.so.cache")
            else:
                with open(f"{root}/etc/new", "rb") as f, open(f"{root}/etc/ld.so.cache", "r+b") as to:
                    to.write(f.read())
            expect((p.communicate(timeout=lib.limit(60))[0], p.returncode), (b"watch: 2001\n", 0), how)


@test
def locales():
    """The parts of a locale, which libc opens one after the other: all that is mapped, what is said, what is open."""
    with lib.Dir() as d:
        gcc("-o", f"{d}/z", f"{SRC}/m.c")
        for env in ({"LC_ALL": "C.UTF-8"}, {"LANG": "C.UTF-8", "LC_TIME": "C"}, {"LC_ALL": "xx_YY.UTF-8"}, {}):
            both(["/usr/bin/env", "-i", *[f"{k}={v}" for k, v in env.items()], f"{d}/z", "locale", "fds", "keep", "locale", "fds"], d)
        argv = ["/usr/bin/env", "-i", "LC_ALL=C.UTF-8", f"{d}/z", "locale"]
        # If it is installed. A slow machine takes more than few()'s millisecond from one part to the next.
        if "LC_PAPER" in both(argv, d)[1][1] and lib.SLOW <= 1:
            few(argv, d, openat=24)


@test
def from_programs():
    """Programs that a shell starts by fork and by exec, and one that is stopped from outside while it starts."""
    with lib.Dir() as d:
        m = program(d, 6)
        both(["/bin/sh", "-c", f"{m} fds call 5; {m} fds call 4; exec {m} fds maps {d}"], d)
        both(["/usr/bin/env", "-i", m, "fds", "call", "3"], d)
        both(["/bin/sh", "-c", f"for i in 1 2 3 4 5; do {m} call $i; done; ulimit -s 1024; {m} fds"], d)
        for ms in range(0, 24, 3):  # whenever it is killed
            p = subprocess.Popen(lib.pvm([m, "call", "5"], "--volume", f"{d}:{d}"), stdout=subprocess.DEVNULL)
            time.sleep(ms / 1000)
            p.kill()
            p.wait()


if __name__ == "__main__":
    sys.exit(lib.run_tests(tests, args.only, slow=0))
