# SPDX-License-Identifier: Apache-2.0
"""Tests of this tree on emulated machines (tests/emulated.py, emulated_vmx.py), for scripts that bring a KVM of their own.

One machine for all of them, in their order, and a new one for what follows a test that did not pass, or that did not get to
its end. Where that is because its machine stood still, or its kernel panicked, as an emulator's may, it is told, and the test is
done again.

Tests have the names of tests/run.py's; with ": PARTS" behind it, its --part, of a script a|b.
"""
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time

import lib

sys.path.insert(0, os.path.join(lib.TOP, "tests"))

TRIES = 3
END = "# end"
OWN = {}  # tests that are none of run.py's, by name: what the machine's shell does; it prints results


def wanted(known, only):
    """Of those tests the ones that match."""
    found = []
    for name, _, parts in (t.partition(": ") for t in known):
        kept = [p for p in parts.split("|") if re.search(only, f"{name}: {p}" if p else name)]
        if kept:
            found.append(f"{name}: {'|'.join(kept)}" if parts else name)
    return found


def command(test):
    """For the machine's shell."""
    if test in OWN:
        return f'{OWN[test]}\necho "{END} $?"'
    name, _, part = test.partition(": ")
    argv = ["python3", "-u", "tests/run.py", "--only", f"^{re.escape(name)}$"]
    if part:
        argv += ["--part", part if name.startswith("guest/") else f"^({part})$"]
    return f'{shlex.join(argv)}; echo "{END} $?"'


def absent(test, lines):
    """Parts of a script that none of its results is of: misnamed in a list."""
    name, _, parts = test.partition(": ")
    if test in OWN or name.startswith("guest/") or not parts:
        return []
    return [p for p in parts.split("|") if not any(re.search(rf"- {re.escape(f'{name}: {p}')}(: | #|$)", x) for x in lines)]


class Machine:
    """
    That does these tests, one after the other. argv: the script that makes it, as tests/emulated.py does. `seconds` for each test,
    `boot_seconds` before the first one, `budget` for all.
    """

    def __init__(self, argv, tests, seconds, boot_seconds, budget):
        self.err = tempfile.TemporaryFile()
        argv = [*argv, "--seconds", str(budget), "--", "bash", "-c", "\n".join(command(t) for t in tests)]
        self.p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.err)
        self.seconds, self.deadline = seconds, time.monotonic() + boot_seconds
        self.lines = lib.lines(self.p.stdout, lambda: self.deadline)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.p.terminate()  # it ends what it has begun
        self.p.wait()
        self.p.stdout.close()
        self.err.close()

    def test(self):
        """(lines of results, None) of the next one; why it did not get to its end, or was none, in place of None."""
        results, said = [], []
        self.deadline += self.seconds
        try:
            for line in self.lines:
                if line.startswith(END):
                    self.deadline = time.monotonic()
                    ended = results and line in (f"{END} 0", f"{END} 1")
                    return results, None if ended else lib.one_line("\n".join([*said, line]))
                said.append(line)
                if re.match(r"(not )?ok\b", line):
                    results.append(line)
        except subprocess.TimeoutExpired:
            self.p.terminate()
            return results, f"not within {self.seconds} s; " + self.end()
        return results, self.end()

    def end(self):
        """What it says when it has ended."""
        self.p.wait()
        self.err.seek(0)
        return lib.one_line(self.err.read().decode(errors="replace").strip()) or lib.status_text(self.p.returncode)


def run(argv, tests, *limits):
    """(test, lines, why) of some of them, from the first one on, as Machine.test() has it: up to one that has not passed."""
    with Machine(argv, tests, *limits) as m:
        for t in tests:
            lines, why = m.test()
            if not why and absent(t, lines):
                why = f"no such part: {', '.join(absent(t, lines))}"
            yield t, lines, why
            if why or any(x.startswith("not") for x in lines):
                return


def all_of(argv, left, seconds, boot_seconds, budget):
    """Do them, on as many machines as it takes, and print their results. Whether all is well. None is begun after `budget` seconds."""
    start, good, tries = time.monotonic(), True, 0
    while left and time.monotonic() - start < budget:
        for test, lines, why in run(argv, left, seconds, boot_seconds, budget):
            tries += 1
            if why and not lines and tries < TRIES:
                print(f"# unsteady, {test} is run again, after: {why}", flush=True)
                break
            for line in lines + ([f"not ok - {test}: {why}"] if why else []):
                print(line, flush=True)
                good = good and not line.startswith("not")
            left, tries = left[1:], 0
            if time.monotonic() - start > budget:
                break
    for test in left:
        print(f"ok - {test} # SKIP no time left, after {budget} s")
    return good


def main(script, missing, few, many, limits, more=()):
    """
    Of a script of tests, on machines of tests/`script`: `few` where the host has a KVM of its own, else `many`; limits: seconds for
    each, for the boot, for all. more: (name, function) of tests of its own, which tell
    why they have failed. Its exit status.
    """
    args = lib.arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what ends the machine
    if missing:
        print(f"ok - emulated machine # SKIP {missing}")
        return 0
    os.chdir(lib.TOP)
    own = [(name, fn) for name, fn in more if re.search(args.only, name)]
    tests = wanted(many if lib.kvm_missing() or args.only else few, args.only)
    if not tests and not own:  # another one of tests/run.py's
        tests = lib.run([sys.executable, "tests/run.py", "--list", "--only", args.only]).out.decode().split()
    good = all_of([sys.executable, f"tests/{script}"], tests, *limits)
    for name, fn in own:
        why = fn()
        print(f"not ok - {name}: {why}" if why else f"ok - {name}", flush=True)
        good = good and not why
    return 0 if good else 1
