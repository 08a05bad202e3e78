#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/run.py itself: what it says of tests that pass, fail, fail once, skip, or leave something over. And machines.py, of
machines that do not get to their end."""
import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import run  # noqa: E402


class Unsteady:
    """A script of two parts, of which the second fails the first `times` times."""

    def __init__(self, times, parts=True):
        self.times, self.parts, self.asked = times, parts, []

    def __call__(self, *args):
        self.asked.append(args)
        if not args:
            yield "pass", "first", ""
        if args and not self.parts:
            raise run.Failure("0 results")
        self.times -= 1
        yield ("fail", "second (2)", "why") if self.times >= 0 else ("pass", "second (2)", "")


def leaves():
    tempfile.mkdtemp()
    return ()


def skips():
    raise run.Skip("no reason")


def told(tests, again, *options):
    run.count.update({"pass": 0, "fail": 0, "skip": 0})
    run.failures.clear()
    run.all_tests = lambda: tests
    sys.argv = ["run.py", "--again", str(again), *options]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = run.main()
    return status, [line for line in out.getvalue().splitlines() if not line.endswith(" s")]


def expect(got, status, last, *others):
    assert got[0] == status and got[1][-1] == last and all(x in got[1] for x in others), got


FAILED = "not ok 2 - s: second (2): why"

# What is left over is found in a directory of our own.
with tempfile.TemporaryDirectory() as d:
    os.environ["TMPDIR"] = tempfile.tempdir = d
    run.lib.state = lambda: set(os.listdir(d))
    run.lib.settled = lambda before: [f"entry {x[:3]}" for x in sorted(set(os.listdir(d)) - before)]

    expect(told([("s", Unsteady(0)), ("k", skips)], 3), 0, "2 passed, 0 failed, 1 skipped", "ok 1 - s: first", "ok 3 - k # SKIP no reason")
    expect(told([("s", Unsteady(1))], 0), 1, "1 passed, 1 failed, 0 skipped", FAILED)
    once = Unsteady(1)
    expect(told([("s", once)], 1), 0, "2 passed, 0 failed, 0 skipped", FAILED,
           "# unsteady, s: second (2) passed when run again, after: why")
    assert once.asked == [(), ("--only", r"^second\ \(2\)$")], once.asked
    expect(told([("s", Unsteady(2))], 1), 1, "1 passed, 1 failed, 0 skipped", FAILED, "# again, s: second (2): why")
    expect(told([("s", Unsteady(1)), ("t", Unsteady(1))], 1), 1, "2 passed, 2 failed, 0 skipped")
    whole = Unsteady(1, parts=False)
    expect(told([("s", whole)], 1), 0, "2 passed, 0 failed, 0 skipped", FAILED)
    assert whole.asked[2:] == [()], whole.asked
    expect(told([("l", leaves)], 1), 1, "0 passed, 1 failed, 0 skipped", "not ok 1 - l: left over: entry tmp")
    part = Unsteady(0)
    expect(told([("s", part), ("unit/k", skips)], 0, "--part", "^second$"), 0, "1 passed, 0 failed, 1 skipped")
    assert part.asked == [("--only", "^second$")], part.asked
    program = []
    expect(told([("guest/p.dyn", lambda *words: program.append(words) or ())], 0, "--part", "a b"), 0,
           "1 passed, 0 failed, 0 skipped", "ok 1 - guest/p.dyn: a b")
    assert program == [("a", "b")], program
    expect(told([], 1), 1, "0 passed, 0 failed, 0 skipped")

del os.environ["TMPDIR"]
tempfile.tempdir = None

# What a script tells besides: what it did again, and no more.
with contextlib.redirect_stdout(io.StringIO()) as out, tempfile.NamedTemporaryFile("w", suffix=".py") as f:
    f.write("print('# unsteady, a part')\nprint('# much')\nprint('ok 1 - a part')")
    f.flush()
    run.OWN_KVM.add(os.path.basename(f.name))
    assert list(run.script(f.name)) == [("pass", "a part", "")]
assert out.getvalue() == "# unsteady, a part\n", out.getvalue()

# Whoever starts it ignores these; what it starts does not.
IGNORES = ("import sys\nsys.path.insert(0, sys.argv[1])\nimport lib\n"
           "sys.stdout.buffer.write(lib.run(['sed', '-n', '/^SigIgn/p', '/proc/self/status']).out)")
r = subprocess.run(["sh", "-c", "trap '' HUP INT QUIT; exec \"$@\"", "sh", sys.executable, "-Bc", IGNORES, os.path.dirname(run.lib.__file__)],
                   stdout=subprocess.PIPE, check=True)
assert int(r.stdout.split()[1], 16) & 7 == 0, r.stdout

# Machines of the shell's: what each test does in one.
import machines  # noqa: E402

DONE = "; echo '# end 0'"
DOES = {"good": "echo 'ok 1 - good'" + DONE, "too": "echo 'ok 1 - too'" + DONE, "bad": "echo 'not ok 1 - bad: why'; echo '# end 1'",
        "dies": "echo woe >&2; exit 3", "once": "rm once 2>/dev/null && exit 3; echo 'ok 1 - once'" + DONE, "nothing": "echo '# end 0'",
        "stands": "echo 'ok 1 - half'; sleep 1000", "broken": "echo 'ok 1 - half'; echo '# end 2'"}
MACHINE = ["sh", "-c", "echo machine >>log; shift 3; exec \"$@\"", "sh"]
machines.command = DOES.get


def on_machines(*tests):
    """(whether all is well, what is said, machines)"""
    out = io.StringIO()
    with tempfile.TemporaryDirectory() as d, contextlib.chdir(d):
        open("once", "w").close()
        with contextlib.redirect_stdout(out):
            good = machines.all_of(MACHINE, list(tests), 1, 1, 1000)
        return good, out.getvalue().splitlines(), len(open("log").readlines())


for tests, want in (
        (("good", "too"), (True, ["ok 1 - good", "ok 1 - too"], 1)),
        (("good", "bad", "too"), (False, ["ok 1 - good", "not ok 1 - bad: why", "ok 1 - too"], 2)),
        (("bad",), (False, ["not ok 1 - bad: why"], 1)),
        (("good", "once", "too"), (True, ["ok 1 - good", "# unsteady, once is run again, after: status 3", "ok 1 - once", "ok 1 - too"], 2)),
        (("dies", "good"), (False, ["# unsteady, dies is run again, after: woe"] * 2 + ["not ok - dies: woe", "ok 1 - good"], 4)),
        (("stands", "good"), (False, ["ok 1 - half", "not ok - stands: not within 1 s; SIGTERM", "ok 1 - good"], 2)),
        (("nothing", "good"), (False, ["# unsteady, nothing is run again, after: # end 0"] * 2 + ["not ok - nothing: # end 0", "ok 1 - good"], 4)),
        (("broken",), (False, ["ok 1 - half", "not ok - broken: ok 1 - half | # end 2"], 1))):
    got = on_machines(*tests)
    assert got == want, got

# Whose pVMs are left over: this run's, orphans included, and not those of another run of the same tree. run.main() has
# made us the subreaper.
SLEEPS = "import os, sys, time\nif sys.argv[1] == 'orphan' and os.fork(): os._exit(0)\nprint(os.getpid(), flush=True)\ntime.sleep(100)"
LOOKS = "import sys\nsys.dont_write_bytecode = True\nsys.path.insert(0, sys.argv[1])\nimport lib\nprint(lib.monitors())"
run.lib.KYLINX = os.path.realpath(sys.executable)
sleepers = [subprocess.Popen([sys.executable, "-c", SLEEPS, how], stdout=subprocess.PIPE) for how in ("orphan", "child")]
pids = [int(p.stdout.readline()) for p in sleepers]
try:
    sleepers[0].wait()
    found = [int(line.split()[0]) for line in run.lib.monitors()]
    assert set(pids) < set(found), (pids, found)  # and ourselves
    other = subprocess.run([sys.executable, "-c", LOOKS, os.path.join(run.HERE, "integration")], stdout=subprocess.PIPE,
                           env={**os.environ, "KYLINX": run.lib.KYLINX}, check=True, text=True).stdout
    assert not any(str(pid) in other for pid in pids), other
finally:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for p in sleepers:
        p.wait()
        p.stdout.close()
    os.waitpid(pids[0], 0)
