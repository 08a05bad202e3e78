#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/run.py itself: what it says of tests that pass, fail, fail once, skip, or leave something over."""
import contextlib
import io
import os
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
