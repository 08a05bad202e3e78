#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""run.py [--only PATTERN] [--part PATTERN] [--list] [--long] [--again N]: run the tests that `make check` has built, or with
--long what it has no time for; PATTERN is a regular expression. --part: of scripts only the parts that match; for programs
that run in a pVM it is what they are told, words, where some take names of their parts.

One line for each result; the last line is "N passed, N failed, N skipped"; the exit status is 1 when one failed.
With --again up to N that failed are run once more at the end, when nothing else runs: one that passes then counts as
passed, and is told as unsteady, with what failed first. More than N failures are no accident: none is run again.
After each test the machine must be as it was before: processes, descriptors, mounts, and so on (lib.py). Without
/dev/kvm the tests that need pVMs are skipped, and counted; test_svm.py and test_vmx.py bring a KVM of their own.
"""
import argparse
import ctypes
import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
os.chdir(TOP)
BUILD = os.environ.get("BUILD", "build")
os.environ.setdefault("KYLINX", os.path.abspath(os.path.join(BUILD, "kylinx")))
os.environ.setdefault("ASAN_OPTIONS", "detect_leaks=0")
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(HERE, "integration"))
import lib  # noqa: E402

# Against what hangs, on a machine that has much else to do.
UNIT_TIMEOUT, GUEST_TIMEOUT, SCRIPT_TIMEOUT, LONG_TIMEOUT = 600, 600, 3000, 7200
# Scripts that do more with KX_LONG.
LONG_SCRIPTS = ["crash", "daemons", "dig", "redis", "servers", "update_calls", "update_fail", "web"]
UNIT_ARGS = {"test_time": [f"{BUILD}/vdso.so"]}
# Guest tests that need what a pVM has by chance: process numbers that are words of the LibOS.
BY_CHANCE = {"sharedtext"}
# What a guest test is told in a pVM. KX_DEATH: rounds of that test.
GUEST_ARGS = {"calls": ["pvm"], "clone": ["pvm"], "death": ["1", os.environ.get("KX_DEATH", "30")],
              "hostile": ["pvm", "20"], "huge": ["pvm"], "whole": ["pvm"], "proc": ["pvm"], "relative": ["pvm"], "reach": ["pvm"], "root": ["pvm"], "serve": ["pvm"],
              "sharedtext": ["pvm"], "vforklie": ["pvm"]}
if os.path.basename(BUILD) == "san":
    GUEST_ARGS["root"].append("noexec")
    # Not its vfork_kills: a child that is killed leaves the sanitizer's own locks taken, in memory that its parent shares.
    GUEST_ARGS["traps"] = ["stops", "vfork_orphan", "robust", "randoms", "accepted", "unwaited"]
    # Nor its busy and storms, forks beside threads that allocate: the child may find the sanitizer's allocator locked for ever.
    # Nor what the kernel alone does at a SIGKILL: the addresses that it needs for that are the sanitizer's.
    GUEST_ARGS["fork"] = re.findall(r'{ "(\w+)", (?!busy|storms|robust_thread)', lib.read("tests/guest/fork/fork.c"))
# Both runs must print the same. (The sanitizers take the addresses that robust locks of the killed need.)
GUEST_COMPARED = set() if BUILD.endswith("san") else {"dgram", "fault", "fifo", "ipc", "pair", "sleepers"}
# What would be /dev/null, the host's: as root, its calls on random descriptors change that one's mode and owner.
GUEST_STDIN = {"hostile": b"\n"}
# More options of kylinx run, by name of the test: a run with each of these.
GUEST_OPTIONS = {"serve": [["--io", "poll"]], "batch": [[], ["--io", "poll"]],
                 "dgram": [[], ["--io", "poll"]]}
# Scripts that bring a KVM of their own, or have tests without pVMs.
OWN_KVM = {"test_svm.py", "test_vmx.py", "test_circumstances.py", "test_crash.py", "test_policy_cli.py"}
SKIP_STATUS = 77
SCRIPT = re.compile(r"(long/)?\w+")
IO = ["--io", os.environ["KX_IO"]] if os.environ.get("KX_IO") else []  # KX_IO=poll: guest tests without exits, where that can be
RESULT = re.compile(r"(not )?ok\b(?: \d+)?(?: - )?\s*(.*?)(?:\s*# SKIP\s*(.*))?$", re.I)


class Failure(Exception):
    pass


class Skip(Exception):
    pass


# ---- kinds of test: each yields (result, name, reason), or returns or raises for a single result ---------------

def must(r, what="", expect=0):
    if r.status != expect:
        raise Failure(f"{what}{r.why()}")
    return r


def unit(path, args):
    r = must(lib.run([path, *args], UNIT_TIMEOUT))
    for line in r.out.decode(errors="replace").splitlines():
        if re.match(r"skip\b", line, re.I):
            yield "skip", line[4:].strip(" :"), "in this build or on this machine"


def golden(program, path):
    r = must(lib.run([program], UNIT_TIMEOUT))
    want, got = lib.read(path).splitlines(), r.out.decode().splitlines()
    for i, (a, b) in enumerate(itertools.zip_longest(want, got), 1):
        if a != b:
            raise Failure(f"{path}:{i}: {a!r}, but {program} prints {b!r}")
    return ()


def command(*argv, timeout=UNIT_TIMEOUT):
    must(lib.run(argv, timeout))
    return ()


def clang_build():
    """Another compiler's LibOS and monitor: a pipeline of forks, execs and signals."""
    build = os.path.join(BUILD, "clang")
    must(lib.run(["make", "-j2", "all", "CC=clang", f"BUILD={build}", "CFLAGS=-O2 -g"], 1800), "make: ")
    if lib.kvm_missing():
        raise Skip(lib.kvm_missing())
    script = "trap 'echo usr1' USR1; kill -USR1 $$; for i in 1 2 3; do (exit $i); echo $?; done; seq 100 | tac | tail -1"
    r = must(lib.run([os.path.abspath(os.path.join(build, "kylinx")), "run", "--", "bash", "-c", script], cwd="/"))
    if r.out != b"usr1\n1\n2\n3\n1\n":
        raise Failure(f"{r.out!r}")
    return ()


SOLINK_LIBRARY = """
#include <string.h>
int counter = 41;
static int zeros[3000];
const char *const names[] = { "zero", "one", "two" };
static size_t length(const char *s) { return strlen(s); }
static int sum(const char *s) { int n = 0; while (*s) n += *s++; return n; }
static size_t (*const table[])(const char *) = { length, (size_t (*)(const char *))sum };
int *where(void) { return &counter; }
size_t apply(int f, int name) { return table[f](names[name]); }
int fill(int v) { memset(zeros, v, sizeof zeros); return zeros[2999]; }
int pick(int n)
{
	switch (n) { case 0: return 7; case 1: return 3; case 2: return 9; case 3: return 1; case 4: return 12; case 5: return 2; }
	return *where() + fill(0);
}
"""
SOLINK_MAIN = """
#include <stdio.h>
extern int counter; extern const char *const names[]; int *where(void); unsigned long apply(int, int); int fill(int), pick(int);
void solink_begin(void) __attribute__((weak));
int main(void)
{
	if (solink_begin)
		solink_begin();
	++*where();
	if (solink_begin)
		solink_begin();
	printf("%d %s %lu %lu %d %d %d\\n", counter, names[2], apply(0, 0), apply(1, 1), fill(1), pick(4), pick(6));
	return 0;
}
"""


def solink():
    """A library by solink in a static program, and by the dynamic linker: the same."""
    with lib.Dir() as d:
        for name, text in (("l.c", SOLINK_LIBRARY), ("m.c", SOLINK_MAIN)):
            with open(f"{d}/{name}", "w") as f:
                f.write(text)
        must(lib.run(["gcc", "-O2", "-shared", "-fPIC", "-o", f"{d}/libl.so", f"{d}/l.c"]))
        must(lib.run(["gcc", "-O1", "-o", f"{d}/dynamic", f"{d}/m.c", f"{d}/libl.so"]))
        must(lib.run([f"{BUILD}/solink", f"{d}/libl.so", f"{d}/l"]))
        must(lib.run(["gcc", "-static-pie", "-fPIE", "-O1", "-o", f"{d}/static", f"{d}/m.c", f"{d}/l.S", f"-Wl,-T,{d}/l.lds"]))
        a, b = must(lib.run([f"{d}/dynamic"])), must(lib.run([f"{d}/static"]))
        if a.out != b.out or a.out != b"42 two 4 322 16843009 12 42\n":
            raise Failure(f"{a.out} {b.out}")
        must(lib.run([f"{BUILD}/solink", "/etc/passwd", f"{d}/x"]), expect=1)
    return ()


def mutated_files():
    with lib.Dir() as d:
        must(lib.run([sys.executable, "tests/fuzz/mutate.py", "/bin/true", d, "300", "1"]))
        must(lib.run([f"{BUILD}/tests/unit/test_elf.gcc", *(os.path.join(d, n) for n in lib.names(d))], UNIT_TIMEOUT))
    return ()


def no_rule(path):
    raise Failure(f"{path} is not built (list it in tests/tests.mk)")


def guest(path, *parts):
    name, path = os.path.basename(path).split(".")[0], os.path.abspath(path)
    with lib.Dir() as d:
        r = lib.run([path, *parts], GUEST_TIMEOUT, env={"TMPDIR": d}, cwd=d)
        if r.status == SKIP_STATUS:
            raise Skip(r.why())
        must(r, "natively: ")
        if lib.kvm_missing():
            raise Skip(lib.kvm_missing())
        seconds = GUEST_TIMEOUT if name != "death" else GUEST_TIMEOUT + int(GUEST_ARGS[name][1])
        for options in GUEST_OPTIONS.get(name, [[]]):
            p = lib.run(lib.pvm([path, *(parts or GUEST_ARGS.get(name, []))], "--env", "TMPDIR=/tmp", *options, *IO), seconds,
                        cwd="/", stdin=GUEST_STDIN.get(name))
            if p.status == SKIP_STATUS and name in BY_CHANCE:
                raise Skip(p.why())
            must(p)
            if name in GUEST_COMPARED and p.out != r.out:
                want, got = r.out.decode(errors="replace").splitlines(), p.out.decode(errors="replace").splitlines()
                raise Failure("; ".join([f"{a!r} is {b!r}" for a, b in itertools.zip_longest(want, got) if a != b][:5]))
    return ()


def script(path, *args, timeout=SCRIPT_TIMEOUT):
    """An integration script: its result lines are ours."""
    if lib.kvm_missing() and os.path.basename(path) not in OWN_KVM:
        raise Skip(lib.kvm_missing())
    with lib.Dir() as d, open(os.path.join(d, "err"), "w+b") as err:
        p = subprocess.Popen([sys.executable, "-u", path, *args], stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=err, start_new_session=True)
        failed, results, end = 0, 0, time.monotonic() + lib.limit(timeout)
        try:
            for line in lib.lines(p.stdout, lambda: end):
                m = RESULT.match(line)
                if line.startswith("# unsteady"):
                    print(line, flush=True)
                if m:
                    results += 1
                    failed += bool(m[1])
                    yield "fail" if m[1] else "skip" if m[3] is not None else "pass", m[2], m[3] or ""
            status = p.wait(lib.limit(60))
        except subprocess.TimeoutExpired:
            raise Failure(f"timeout of {lib.limit(timeout):.0f} s, after {results} results") from None
        finally:
            lib.group_kill(p)
            p.stdout.close()
        err.seek(0)
        text = lib.one_line(err.read().decode(errors="replace").strip())
    if not results or (status and not failed):
        raise Failure(f"{lib.status_text(status)}, {results} results {text}")


# ---- the list ---------------------------------------------------------------------------------------------------

def files(*parts):
    d = os.path.join(*parts[:-1])
    return [os.path.join(d, n) for n in lib.names(d) if re.fullmatch(parts[-1], n)]


def all_tests():
    """(name, function) of every test."""
    built = files(BUILD, "tests/unit", r"test_\w+\.(gcc|clang|san)")
    for path in built:
        name = os.path.basename(path).split(".")[0]
        yield f"unit/{os.path.basename(path)}", lambda p=path, n=name: unit(p, UNIT_ARGS.get(n, []))
    for src in files("tests/unit", r"test_\w+\.c"):
        if not any(os.path.basename(p).split(".")[0] == os.path.basename(src)[:-2] for p in built):
            yield f"unit/{os.path.basename(src)[:-2]}", lambda s=src: no_rule(s)
    dump, doc, fuzz = (f"{BUILD}/tests/unit/{n}" for n in ("abi_dump", "gen_hcall_doc", "fuzz_elf"))
    yield "golden/abi", lambda: golden(dump, "abi/abi.golden")
    yield "golden/hypercalls.md", lambda: golden(doc, "docs/hypercalls.md")
    if os.path.exists(f"{BUILD}/solink"):
        yield "build/solink", solink
    yield "style/runner", lambda: command(sys.executable, "tests/unit/runner.py")
    yield "style/emulated", lambda: command(sys.executable, "tests/unit/emulated_files.py")
    yield "style/errors", lambda: command(sys.executable, "tests/unit/errors.py")
    yield "style/headers", lambda: command("sh", "tests/unit/test_headers.sh")
    if os.path.exists(".clang-format"):
        yield "style/clang-format", clang_format
    for seed in ("/bin/true", "/lib64/ld-linux-x86-64.so.2"):
        yield f"fuzz/elf {os.path.basename(seed)}", lambda s=seed: command(fuzz, s, "20000", "1")
    yield "fuzz/strace", lambda: command(f"{BUILD}/tests/unit/fuzz_strace", "20000", "1")
    yield "fuzz/unwind", lambda: command(f"{BUILD}/tests/unit/fuzz_unwind", "5000", "1")
    yield "fuzz/batch", lambda: command(f"{BUILD}/tests/unit/fuzz_batch", "3000", "1")
    yield "fuzz/cmsg", lambda: command(f"{BUILD}/tests/unit/fuzz_cmsg", "5000", "1")
    yield "fuzz/load", mutated_files
    for path in files(BUILD, "tests/guest", r"\w+\.(dyn|static|musl)"):
        yield f"guest/{os.path.basename(path)}", lambda *a, p=path: guest(p, *a)
    if shutil.which("clang"):
        yield "build/clang", clang_build
    for path in files("tests/integration", r"test_\w+\.py"):
        yield os.path.basename(path)[5:-3], lambda *a, p=path: script(p, os.environ["KYLINX"], *a)


def long_tests():
    """(name, function): what takes minutes."""
    for path in [*files("tests/long", r"\w+\.py"), *(f"tests/integration/test_{n}.py" for n in LONG_SCRIPTS)]:
        yield "long/" + os.path.basename(path)[:-3], lambda *a, p=path: script(p, *a, timeout=LONG_TIMEOUT)


def clang_format():
    r = must(lib.run(["git", "ls-files", "-co", "--exclude-standard", "*.c", "*.h"]), "git: ")
    r = lib.run(["clang-format", "--dry-run", "--Werror", "--style=file", *r.out.decode().split()], UNIT_TIMEOUT)
    places = re.findall(r"^(\S+?):\d+:\d+: error", r.err.decode(errors="replace"), re.M)
    if places:
        raise Failure(f"{len(places)} places in {len(set(places))} files: {', '.join(sorted(set(places))[:10])}")
    must(r)
    return ()


# ---- running ----------------------------------------------------------------------------------------------------

count = {"pass": 0, "fail": 0, "skip": 0}
failures = []  # (name, function, part or None, why)


def report(result, name, why=""):
    count[result] += 1
    line = f"{'not ok' if result == 'fail' else 'ok'} {sum(count.values())} - {name}"
    if result == "skip":
        line += f" # SKIP {why}"
    elif why:
        line += f": {why}"
    print(line, flush=True)


def results(fn, *args):
    """(result, part or None, why) of each part; of the whole, when it did not get to its end or left something over."""
    before, failure = lib.state(), None
    try:
        yield from fn(*args)
    except Skip as e:
        yield "skip", None, str(e)
    except Exception as e:  # noqa: BLE001, whatever it is, this test failed
        failure = str(e) if isinstance(e, Failure) else f"{type(e).__name__}: {e}"
    found = lib.settled(before)
    if found:
        failure = (f"{failure}; " if failure else "") + "left over: " + ", ".join(found[:10])
    if failure:
        yield "fail", None, failure


def run_one(name, fn, *args):
    start, single = time.monotonic(), True
    for result, part, why in results(fn, *args):
        report(result, f"{name}: {part}" if part else name, why)
        single = single and bool(part) and result == "skip" and name.startswith("unit/")
        if result == "fail":
            failures.append((name, functools.partial(fn, *args), part, why))
    if single:
        report("pass", name)
    if time.monotonic() - start > 60:
        print(f"# {name} took {time.monotonic() - start:.0f} s", flush=True)


def run_again(name, fn, part, why):
    """One that failed. Of a script, only that part, where it can be told so."""
    second = list(results(fn, "--only", f"^{re.escape(part)}$")) if part else []
    if not any(p for _, p, _ in second):
        second = list(results(fn))
    bad = [w for r, _, w in second if r == "fail"]
    title = f"{name}: {part}" if part else name
    if bad:
        print(f"# again, {title}: {bad[0]}", flush=True)
        return
    count["fail"] -= 1
    count["pass"] += 1
    print(f"# unsteady, {title} passed when run again, after: {why}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", metavar="PATTERN")
    parser.add_argument("--part", metavar="PATTERN")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--again", type=int, default=0, metavar="N")
    args = parser.parse_args()
    tests = [(n, f) for n, f in (long_tests() if args.long else all_tests()) if re.search(args.only, n)]
    if args.long:
        os.environ["KX_LONG"] = "1"
    if args.list:
        print("\n".join(n for n, _ in tests))
        return 0
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    start = time.monotonic()
    for name, fn in tests:
        if args.part and name.startswith("guest/"):
            run_one(f"{name}: {args.part}", fn, *args.part.split())
        else:
            run_one(name, fn, *(["--only", args.part] if args.part and SCRIPT.fullmatch(name) else []))
    for failure in failures if len(failures) <= args.again else []:
        run_again(*failure)
    print(f"# {time.monotonic() - start:.0f} s")
    print(f"{count['pass']} passed, {count['fail']} failed, {count['skip']} skipped", flush=True)
    return 1 if count["fail"] or not tests else 0


if __name__ == "__main__":
    sys.exit(main())
