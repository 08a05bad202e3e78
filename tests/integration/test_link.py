#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run-time linking: dlopen() and its relatives, LD_ variables, search paths, C++ exceptions; glibc and musl.

test_link.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure. Every program runs natively and in a
pVM, and both must end alike and say the same. The sources are in link/.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402

args = lib.arguments()

LD_SO = "/lib64/ld-linux-x86-64.so.2"
ENV = "/usr/bin/env"
tests = []


def test(fn):
    tests.append((fn.__name__, fn))
    return fn


def cc(out, *options, compiler="gcc"):
    sources = [o if o[0] == "-" or "/" in o else os.path.join(HERE, "link", o) for o in options]
    os.makedirs(os.path.dirname(out), exist_ok=True)
    subprocess.run([compiler, "-O1", "-g", "-Wall", "-o", out, *sources], check=True)


def library(d, name, value, *options, compiler="gcc", source="part.c", soname=None):
    """d/libNAME.so"""
    cc(f"{d}/lib{name}.so", "-shared", "-fPIC", f"-Wl,-soname,{soname or f'lib{name}.so'}", f"-DN={name}", f"-DV={value}",
       source, *options, compiler=compiler)


def parts(d, compiler="gcc"):
    """The libraries that dl.c loads, and dl."""
    more = [] if compiler == "gcc" else ["-Wno-unused-function"]
    for value, name, *options in ((1, "a"), (2, "b"), (3, "d"), (6, "e", "-DIE"), (7, "n", f'-DINNER="{d}/libb.so"'),
                                  (8, "w", "-DWORKER", "-pthread"), (9, "u", "-DUNDEFINED")):
        library(d, name, value, *options, *more, compiler=compiler)
    library(d, "g", 4, *(["-mtls-dialect=gnu2"] if compiler == "gcc" else []), compiler=compiler)
    library(d, "c1", 5, "-DCALLS=a", f"{d}/liba.so", "-Wl,-rpath,$ORIGIN", compiler=compiler)
    cc(f"{d}/dl", "dl.c", "-rdynamic", "-pthread", "-ldl", compiler=compiler)


def damaged(d):
    """What is no library, or not this machine's."""
    with open(f"{d}/liba.so", "rb") as f:
        good = bytearray(f.read())
    for name, data in (("empty.so", b""), ("text.so", b"INPUT(libnothing.so)\n" * 40), ("cut.so", good[:100]),
                       ("wrong.so", b"\x7fELF\1" + good[5:]), ("machine.so", good[:18] + b"\xb7\0" + good[20:])):
        with open(f"{d}/{name}", "wb") as f:
            f.write(data)


def plain(text):
    """Without what differs from run to run, or with what the CPU is said to have: addresses, process ids, subdirectories."""
    text = re.sub(r"search path=.*", "search path", text)
    text = re.sub(r"^.*trying file=.*/(haswell|xeon_phi|avx512_1|x86_64|tls|glibc-hwcaps)/.*\n", "", text, flags=re.M)
    text = re.sub(r"^ *\d+:\t", "\t", text, flags=re.M)
    text = re.sub(r"0x[0-9a-f]+", "0x", text)
    return re.sub(r"(size|time|cycles).*", r"\1", text)


def both(d, argv, env=(), status=0, clean=str, cwd=None, **kw):
    """Run natively and in a pVM; what both say."""
    argv = [ENV, *env, *argv] if env else argv
    native = lib.run(argv, cwd=cwd)
    pvm = lib.run(lib.pvm(argv, "--volume", f"{d}:{d}"), 300, cwd=cwd)
    n, p = [(r.status, clean(r.out.decode()), clean(r.err.decode())) for r in (native, pvm)]
    if n[0] != status:
        raise AssertionError(f"natively: {native.why()}, not status {status}: {n}")
    if n != p:
        lines = next((f"{a!r}, natively {b!r}" for x, y in zip(p[1:], n[1:]) for a, b in
                      zip(x.split("\n") + [""], y.split("\n") + [""]) if a != b), "")
        ends = f"{lib.status_text(p[0])}, natively {lib.status_text(n[0])}"
        raise AssertionError(f"{' '.join(argv)}: {ends}: {lines} {pvm.why()}")
    return n[1] + n[2]


def dl_test(name, want):
    def fn():
        with lib.Dir() as d:
            parts(d)
            damaged(d)
            library(d, "v", 0, f"-Wl,--version-script={HERE}/link/versions.map", source="versions.c")
            library(d, "text", 0, "-Wl,-z,notext", "-nostdlib", source="text.S")
            library(d, "stack", 1, "-Wl,-z,execstack")
            text = both(d, [f"{d}/dl", d, name], env=["QUIET=1"] if name == "many" else [])
            for w in want:
                if w not in text:
                    raise AssertionError(f"{w!r} is not said: {text!r}")
            both(d, [f"{d}/dl", d, name], env=["LD_BIND_NOW=1", "QUIET=1"])
    fn.__doc__ = f"dl.c {name}"
    tests.append((f"glibc_{name}", fn))


dl_test("flags", ["deep 2", "shared 100", "afresh 1", "stays 4", "undefined, lazy: 9", "no load 1 0"])
dl_test("errors", ["file too short", "invalid ELF header", "wrong ELF class", "cannot open shared object file"])
dl_test("objects", [" libb.so", " tls here"])
dl_test("tls", ["thread 3", "its own: 1", "child: "])
dl_test("many", ["thread 5: 0 wrong"])
dl_test("order", ["+c1 early", "-c1 by atexit", "n has loaded another: 1", "a thread: 0"])
dl_test("ifuncs", ["2 2 3", "gnu2 5"])
dl_test("spaces", ["space 1: 1 1", "close 0 0"])
dl_test("info", ["dlvsym 1", "dlvsym 2", "hidden 3 0", "dladdr1 1 1"])
dl_test("text", ["moved 4711, pid 1", "child 0x6700", "stack 1"])


@test
def musl():
    """musl's dynamic linker."""
    if not shutil.which("musl-gcc"):
        raise Skip("musl-gcc is not installed")
    with lib.Dir() as d:
        parts(d, "musl-gcc")
        for name in ("flags", "objects", "tls", "many", "order"):
            both(d, [f"{d}/dl", d, name], env=["QUIET=1"] if name == "many" else [])
        library(f"{d}/one", "x", 1, compiler="musl-gcc")
        library(f"{d}/two", "x", 2, compiler="musl-gcc")
        library(d, "pre", 77, compiler="musl-gcc")
        cc(f"{d}/uses", "uses.c", f"{d}/one/libx.so", f"-Wl,-rpath,{d}/one", compiler="musl-gcc")
        expect("x 1, shared 1\n" in both(d, [f"{d}/uses"]), True, "its path")
        expect("shared 77" in both(d, [f"{d}/uses"], env=[f"LD_PRELOAD={d}/libpre.so"]), True, "LD_PRELOAD")
        expect("x 2" in both(d, [f"{d}/uses"], env=[f"LD_LIBRARY_PATH={d}/two"]), True, "LD_LIBRARY_PATH")
        both(d, [f"{d}/uses"], env=["LD_PRELOAD=/nothing.so"])
        os.unlink(f"{d}/one/libx.so")
        expect("Error loading" in both(d, [f"{d}/uses"], status=127), True, "what is not there")


@test
def exceptions():
    """C++ exceptions, run-time types, static and thread-local objects, across libraries."""
    with lib.Dir() as d:
        library(d, "throw", 0, source="thrower.cc", compiler="g++")
        library(d, "throw2", 0, source="thrower.cc", compiler="g++")
        library(d, "between", 0, "-fexceptions", source="between.c")
        cc(f"{d}/catch", "catch.cc", "-fnon-call-exceptions", "-pthread", f"{d}/libthrow.so", f"{d}/libbetween.so",
           f"-Wl,-rpath,{d}", compiler="g++")
        text = both(d, [f"{d}/catch", d], status=9)
        for want in ("Failure a failure of the library's 42", "inside 42 -1", "square 1 1", "from another thread: of the standard",
                     "-a thread's object", "exception out of a handler", "terminate"):
            if want not in text:
                raise AssertionError(f"{want!r} is not said: {text!r}")
        both(d, [f"{d}/catch", d], env=["LD_BIND_NOW=1"], status=9)


def variants(d):
    """libx and liby in several places, and programs that look for them in several ways."""
    for where, value in (("one", 1), ("two", 2), ("app/lib", 3), ("app/lib/deep", 4), ("sys/x86_64", 5),
                         ("sys/haswell", 5), ("sys/xeon_phi", 5)):
        library(f"{d}/{where}", "x", value)
    library(f"{d}/one", "y", 11, "-DCALLS=x", f"{d}/one/libx.so")
    library(f"{d}/two", "y", 12, "-DCALLS=x", f"{d}/one/libx.so", "-Wl,-rpath,$ORIGIN")
    lib_x, lib_y = f"{d}/one/libx.so", f"{d}/one/liby.so"
    cc(f"{d}/plain", "uses.c", lib_x)
    cc(f"{d}/runpath", "uses.c", lib_x, f"-Wl,-rpath,{d}/one,--enable-new-dtags")
    cc(f"{d}/rpath", "uses.c", lib_x, f"-Wl,-rpath,{d}/one,--disable-new-dtags")
    cc(f"{d}/app/bin/origin", "uses.c", lib_x, "-Wl,-rpath,$ORIGIN/../lib")
    cc(f"{d}/tokens", "uses.c", lib_x, f"-Wl,-rpath,{d}/none:{d}/sys/$PLATFORM:{d}/one")
    for kind in ("enable", "disable"):
        cc(f"{d}/chain-{kind}", "uses.c", "-DOTHER", lib_x, lib_y, f"-Wl,-rpath,{d}/two:{d}/one,--{kind}-new-dtags")
    with open(f"{d}/miss.c", "w") as f:
        f.write("int nobody_defines_it(void) { return 1; }\n")
    library(d, "miss", 0, source=f"{d}/miss.c")
    cc(f"{d}/missing", "uses.c", lib_x, "-DMISSING", f"{d}/libmiss.so", "-Wl,-z,lazy", f"-Wl,-rpath,{d}/one:{d}")
    library(d, "miss", 0, source="between.c")


@test
def paths():
    """RPATH, RUNPATH, $ORIGIN, LD_LIBRARY_PATH, and ld.so called as a program."""
    with lib.Dir() as d:
        variants(d)
        two = f"LD_LIBRARY_PATH={d}/two"
        for name, env, want in (("plain", [two], "x 2"), ("plain", [f"LD_LIBRARY_PATH=/nothing:{d}/one:{d}/two"], "x 1"),
                                ("runpath", [], "x 1"), ("runpath", [two], "x 2"), ("rpath", [two], "x 1"),
                                ("app/bin/origin", [], "x 3"), ("app/bin/origin", [two], "x 2"), ("tokens", [], "x 5"),
                                ("chain-enable", [], "y 12"), ("chain-disable", [], "y 12")):
            text = both(d, [f"{d}/{name}"], env=env)
            if want not in text:
                raise AssertionError(f"{name} {env}: {text!r}")
        os.symlink(f"{d}/app/bin/origin", f"{d}/link")
        expect("x 3" in both(d, [f"{d}/link"]), True, "$ORIGIN of a symbolic link")
        expect("x 3" in both(d, ["./origin"], cwd=f"{d}/app/bin"), True, "$ORIGIN of a relative path")
        expect("cannot open" in both(d, [f"{d}/plain"], status=127), True, "not found")
        expect("x 1" in both(d, [LD_SO, "--library-path", f"{d}/one", f"{d}/plain", "a"], status=3), True, "--library-path")
        both(d, [LD_SO, "--inhibit-cache", "--preload", f"{d}/two/libx.so", "--argv0", "me", f"{d}/runpath"])
        both(d, [LD_SO, "--verify", f"{d}/runpath"])
        both(d, [LD_SO, "--list", f"{d}/chain-enable"], clean=plain)
        both(d, [LD_SO, "--version"])
        both(d, [LD_SO, f"{d}/none"], status=127)


@test
def variables():
    """LD_PRELOAD, LD_BIND_NOW, LD_DEBUG, LD_AUDIT, LD_TRACE_LOADED_OBJECTS and others."""
    with lib.Dir() as d:
        variants(d)
        library(d, "pre", 77)
        library(d, "pre2", 88)
        library(d, "audit", 0, source="audit.c")
        pre = f"LD_PRELOAD={d}/libpre.so"
        expect("shared 77" in both(d, [f"{d}/runpath"], env=[pre]), True, "LD_PRELOAD")
        expect("shared 88" in both(d, [f"{d}/runpath"], env=[f"LD_PRELOAD={d}/libpre2.so {d}/libpre.so"]), True, "of two")
        expect("ignored" in both(d, [f"{d}/runpath"], env=["LD_PRELOAD=/none.so"]), True, "of none")
        expect("shared 77" in both(d, ["/bin/sh", "-c", f"{d}/runpath; exec {d}/runpath"], env=[pre]), True, "inherited")
        both(d, [f"{d}/missing"])
        expect("nobody_defines_it" in both(d, [f"{d}/missing"], env=["LD_BIND_NOW=1"], status=127), True, "LD_BIND_NOW")
        for what in ("libs", "files", "bindings", "symbols", "versions", "reloc", "scopes", "unused", "help"):
            both(d, [f"{d}/chain-enable"], env=[f"LD_DEBUG={what}"], clean=plain)
        both(d, [f"{d}/plain"], env=[f"LD_LIBRARY_PATH={d}/one", "LD_WARN=1", "LD_DYNAMIC_WEAK=1", "LD_HWCAP_MASK=0"])
        both(d, [f"{d}/chain-enable"], env=["LD_TRACE_LOADED_OBJECTS=1"], clean=plain)
        both(d, [f"{d}/plain"], env=["LD_TRACE_LOADED_OBJECTS=1", "LD_VERBOSE=1"], clean=plain)
        both(d, ["/usr/bin/ldd", "-r", f"{d}/missing"], clean=plain, status=0)
        text = both(d, [f"{d}/chain-enable"], env=[f"LD_AUDIT={d}/libaudit.so"])
        for want in ("la_version", "la_objopen liby.so", "la_symbind64 value_x", "la_preinit", "la_objsearch libx.so"):
            if want not in text:
                raise AssertionError(f"LD_AUDIT: {want!r} is not said: {text!r}")
        both(d, [f"{d}/chain-enable"], env=["GLIBC_TUNABLES=glibc.rtld.optional_static_tls=2048:glibc.rtld.nns=8"])


@test
def opened_libraries():
    """What is answered without the monitor for a dynamic linker holds for whoever opens a library."""
    with lib.Dir() as d:
        library(d, "a", 1)
        cc(f"{d}/libfile", "libfile.c", "-Wno-unused-result", "-pthread")
        text = both(d, [f"{d}/libfile", d])
        expect("read 832  at 832" in text and "again 832  at 1664" in text, True, "offsets")
        both(d, [f"{d}/libfile", d], env=["LD_BIND_NOW=1"])
        with tempfile.NamedTemporaryFile("r", prefix="kylinx-test-") as trace:
            lib.run([lib.KYLINX, "run", f"--strace={trace.name}", "--", "/bin/ls", "/bin/ls"])
            lines = trace.read().split("\n")
        for call in (r"read\(3, \"\\177ELF", r"newfstatat\(3, \"\", ", r"close\(3\)"):
            if not any(re.match(call, x) and x.endswith("<libos>") for x in lines):
                raise AssertionError(f"{call}: not answered without the monitor")


@test
def texts_stay():
    """Calls that would write into texts and constants of a program that has just started, or of a library just loaded."""
    with lib.Dir() as d:
        library(d, "a", 1)
        for name, options in (("warm", []), ("fixed", ["-no-pie"])):
            cc(f"{d}/{name}", "warm.c", "-w", *options)
            both(d, [f"{d}/{name}", f"{d}/liba.so"], env=["QUIET=1"])
            for i in range(26):
                both(d, [f"{d}/{name}", str(i)])


@test
def plain_files():
    """A file that is read, and what others do to it meanwhile."""
    with lib.Dir() as d:
        cc(f"{d}/plain", "plain.c", "-w")
        both(d, [f"{d}/plain", d])
        calls = {r"read\(3, .*\) = 0 ", r"lseek\(3, 0, SEEK_CUR\)", r"ioctl\(3, TCGETS",
                 r"newfstatat\(AT_FDCWD, \"/usr/lib/python3"}
        for _ in range(10):  # what is older than a millisecond is asked for again
            with tempfile.NamedTemporaryFile("r", prefix="kylinx-test-") as trace:
                lib.run([lib.KYLINX, "run", "--io", "exit", f"--strace={trace.name}", "--", "/usr/bin/python3", "-S", "-c", "import this"], 30)
                lines = [x for x in trace.read().split("\n") if x.endswith("<libos>")]
            calls = {c for c in calls if not any(re.match(c, x) for x in lines)}
        expect(calls, set(), "calls that are not answered without the monitor")


@test
def missing_directories():
    """Where a linker looks for a library it asks for directories below such as are missing: one exit tells it of all of them."""
    with lib.Dir() as d:
        library(d, "x", 5)
        cc(f"{d}/uses", "uses.c", f"{d}/libx.so", f"-Wl,-rpath,{d}")
        want = "x 5" in both(d, [f"{d}/uses", "a"], status=3)
        expect(want, True, "what it says")
        most, exits = 0, 1000
        for _ in range(10):  # what is older than a millisecond is asked for again
            with tempfile.NamedTemporaryFile("r", prefix="kylinx-test-") as trace:
                lib.run([lib.KYLINX, "run", "--io", "exit", f"--strace={trace.name}", "--volume", f"{d}:{d}", "--", f"{d}/uses"], 30)
                lines = [x for x in trace.read().split("\n") if f'"{d}/' in x and "ENOENT" in x]
            most, exits = max(most, len(lines)), min(exits, sum(x.endswith("<monitor>") for x in lines))
        if exits > max(most // 3, 2):
            raise AssertionError(f"{exits} exits for {most} calls")


@test
def mapped_ahead():
    """A linker's steps, all or some, with other calls among them and behind them; and files that are too short for their headers."""
    with lib.Dir() as d:
        cc(f"{d}/ahead", "ahead.c", compiler="musl-gcc")
        library(d, "a", 1, compiler="musl-gcc")
        for name, options in (("data", ["-DZEROS"]), ("packed", ["-Wl,-z,noseparate-code"]), ("norelro", ["-Wl,-z,norelro"]),
                              ("symbols", ["-DSYMBOLS"]),
                              ("now", ["-DZEROS", "-Wl,-z,now"]), ("large", ["-DZEROS", "-Wl,-z,max-page-size=0x10000"])):
            cc(f"{d}/lib{name}.so", "-shared", "-fPIC", "-nostdlib", "data.c", *options)
        with open(f"{d}/libdata.so", "rb") as f:
            whole = f.read()
        for size in (5000, 8192, 12288, 14000, len(whole) // 4096 * 4096):
            with open(f"{d}/libcut{size}.so", "wb") as f:
                f.write(whole[:size])
        for name in sorted(x for x in os.listdir(d) if x.startswith("lib")):
            both(d, [f"{d}/ahead", f"{d}/{name}"], clean=lambda s: s.replace(".so.was", ".so"))
        # Its text is patched, which a program can read.
        cc(f"{d}/libcalls.so", "-shared", "-fPIC", "-nostdlib", "-DCALLS", "data.c")
        both(d, [f"{d}/ahead", f"{d}/libcalls.so"], clean=lambda s: re.sub("content.*", "content", s.replace(".so.was", ".so")))
        for argv, io in (([f"{d}/ahead", f"{d}/liba.so"], "exit"), (["/bin/ls", "/bin/ls"], "exit")):
            with tempfile.NamedTemporaryFile("r", prefix="kylinx-test-") as trace:
                lib.run([lib.KYLINX, "run", f"--io={io}", f"--strace={trace.name}", "--volume", f"{d}:{d}", "--", *argv])
                lines = trace.read().split("\n")
            calls = [r"mmap\(NULL, \d+, PROT_READ, MAP_PRIVATE.*, 3, 0\)", r"mmap\(0x.*PROT_READ\|PROT_EXEC.*MAP_FIXED",
                     r"mmap\(0x.*PROT_READ\|PROT_WRITE, MAP_PRIVATE\|MAP_FIXED.*, 3,", r"mprotect\(0x.*PROT_READ\)"]
            if argv[0] == "/bin/ls":
                calls += [r"munmap\(0x", r"mmap\(0x.*MAP_FIXED\|MAP_ANONYMOUS"]
            for call in calls:
                if not any(re.match(call, x) and x.endswith("<libos>") for x in lines):
                    raise AssertionError(f"{argv[0]}: {call}: not answered without the monitor")


@test
def versions():
    """Symbol versions: the default one, an older one, one that is missing."""
    with lib.Dir() as d:
        library(d, "x", 1)
        script = f"-Wl,--version-script={HERE}/link/versions.map"
        library(d, "v", 0, script, source="versions.c")
        for name, option in (("new", "-DVERSIONS"), ("old", "-DOLD")):
            cc(f"{d}/{name}", "uses.c", "-DVERSIONS", option, f"{d}/libx.so", f"{d}/libv.so", f"-Wl,-rpath,{d}")
        expect("f 2 3" in both(d, [f"{d}/new"]), True, "the default version")
        expect("f 1 3" in both(d, [f"{d}/old"]), True, "the older version")
        with open(f"{d}/other.map", "w") as f:
            f.write("OTHER { global: f; calls_hidden; local: *; };\n")
        with open(f"{d}/other.c", "w") as f:
            f.write("int f(void) { return 5; } int calls_hidden(void) { return 6; }\n")
        library(d, "v", 0, f"-Wl,--version-script={d}/other.map", source=f"{d}/other.c")
        expect("NEW' not found" in both(d, [f"{d}/new"], status=1), True, "a version that is missing")


if __name__ == "__main__":
    sys.exit(lib.run_tests(tests, args.only))
