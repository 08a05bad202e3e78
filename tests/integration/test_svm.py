#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_svm.py KYLINX [--only REGEX]: tests of this tree on a machine whose KVM is that of AMD's processors, which QEMU
emulates (tests/emulated.py). The host's own KVM may be of another kind, or there may be none: then more of them run.

Each has a machine of its own. Now and then one of them stands still, or its kernel panics ("corrupted stack end"); whether
QEMU, that kernel or KylinX is to blame is not known. One that does not get to the end of its test is told, and the test is
done again.
"""
import os
import re
import sys
import time

import lib

sys.path.insert(0, os.path.join(lib.TOP, "tests"))
import emulated  # noqa: E402

# Of tests/run.py's: what shows each way into and out of the guest, and takes seconds there.
FEW = r"^guest/(regs|sig|fdnum|time)\.dyn$"
# Where nothing else runs a pVM.
MANY = r"^guest/(ahead|calls|coredump|cpuid|fault|fdnum|fifo|file|hot|net|poll|proc|reach|regs|sig|spare|time|xstate)\.dyn$"
BUDGET = 1500  # seconds; no test is begun after that
TEST_SECONDS = 150
TRIES = 3
NO_END = (124, 125)  # in time, or at all


def tests(pattern):
    r = lib.run([sys.executable, "tests/run.py", "--list", "--only", pattern])
    return [n for n in r.out.decode().split() if re.search(pattern, n)]


def on_a_machine(name):
    """(status of tests/emulated.py, lines of results, what it says besides) of one test."""
    r = lib.run([sys.executable, "tests/emulated.py", "--seconds", str(TEST_SECONDS), "--", "python3", "-u", "tests/run.py",
                 "--only", f"^{re.escape(name)}$"], TEST_SECONDS + 200)
    lines = [x for x in r.out.decode(errors="replace").splitlines() if re.match(r"(not )?ok\b", x)]
    return r.status, lines, r.why()


def test(name):
    for left in reversed(range(TRIES)):
        status, lines, why = on_a_machine(name)
        if status not in NO_END or lines or not left:
            break
        print(f"# {name}: once more: {why}", flush=True)
    if not lines or status not in (0, 1):
        lines = [f"not ok - {name}: {why}"]
    for line in lines:
        print(line, flush=True)
    return not any(x.startswith("not") for x in lines)


def counts():
    """Instructions, on the machine that counts them: a pVM passes a byte through a pipe without an exit, and in fewer than the
    kernel's. A machine whose clock is not theirs has thousands of them more or fewer."""
    name, why = "counted instructions", ""
    for _ in range(TRIES):
        r = lib.run([sys.executable, "tests/emulated.py", "--count", "--seconds", str(2 * TEST_SECONDS), "--", "python3", "bench/count.py",
                     "--only", "^pipe$"], 2 * TEST_SECONDS + 200)
        m = re.search(r"^pipe +([0-9,]+) +([0-9,]+) +([0-9.]+) +[-0-9.]+ +[0-9.]+", r.out.decode(errors="replace"), re.M)
        why = r.why()
        if m or r.status not in NO_END:
            break
        print(f"# {name}: once more: {why}", flush=True)
    process, pvm, exits = (float(x.replace(",", "")) for x in m.groups()) if m else (0, 0, 0)
    good = 1000 < process < 6000 and 300 < pvm < process and not exits
    print(f"{'' if good else 'not '}ok - {name}" + ("" if good else f": {process:g}, {pvm:g}, {exits:g} exits: {why}"), flush=True)
    return good


def main():
    args = lib.arguments()
    why = emulated.missing()
    if why:
        print(f"ok - emulated machine # SKIP {why}")
        return 0
    os.chdir(lib.TOP)
    start, good = time.monotonic(), True
    for name in tests(args.only or (MANY if lib.kvm_missing() else FEW)):
        if time.monotonic() - start > BUDGET:
            print(f"ok - {name} # SKIP no time left, after {BUDGET} s")
        else:
            good &= test(name)
    if re.search(args.only or "", "counted instructions") and time.monotonic() - start < BUDGET:
        good &= counts()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
