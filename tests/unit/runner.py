#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/run.py itself: what it says of tests that pass, fail, fail once, skip, or leave something over."""
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


def told(tests, again):
    run.count.update({"pass": 0, "fail": 0, "skip": 0})
    run.failures.clear()
    run.all_tests = lambda: tests
    sys.argv = ["run.py", "--again", str(again)]
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
    expect(told([], 1), 1, "0 passed, 0 failed, 0 skipped")

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
