#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_svm.py KYLINX [--only REGEX]: tests of this tree on a machine whose KVM is that of AMD's processors, which QEMU
emulates (tests/emulated.py). The host's own KVM may be of another kind, or there may be none: then more of them run.

Each has a machine of its own. Now and then one of them stands still, or its kernel panics ("corrupted stack end"); whether
QEMU, that kernel or KylinX is to blame is not known. One that does not get to the end of its test is told, and the test is
done again.
"""
import os
import sys
import time

import lib
import machines
import emulated

# Of tests/run.py's: what shows each way into and out of the guest, and takes seconds there.
FEW = r"^guest/(regs|sig|fdnum|time)\.dyn$"
# Where nothing else runs a pVM.
MANY = r"^guest/(ahead|calls|coredump|cpuid|fault|fdnum|fifo|file|hot|net|poll|proc|reach|regs|sig|spare|time|xstate)\.dyn$"
BUDGET = 1500  # seconds; no test is begun after that
TEST_SECONDS, BOOT_SECONDS = 150, 200
TRIES = 3
NO_END = (124, 125)  # in time, or at all


def test(name):
    for left in reversed(range(TRIES)):
        status, lines, why = machines.run("emulated.py", [name], TEST_SECONDS, BOOT_SECONDS)
        if status not in NO_END or lines or not left:
            break
        print(f"# {name}: once more: {why}", flush=True)
    if not lines or status not in (0, 1):
        lines = [f"not ok - {name}: {why}"]
    for line in lines:
        print(line, flush=True)
    return not any(x.startswith("not") for x in lines)


def main():
    args = lib.arguments()
    why = emulated.Svm.missing()
    if why:
        print(f"ok - emulated machine # SKIP {why}")
        return 0
    os.chdir(lib.TOP)
    start, good = time.monotonic(), True
    for name in machines.names(args.only or (MANY if lib.kvm_missing() else FEW)):
        if time.monotonic() - start > BUDGET:
            print(f"ok - {name} # SKIP no time left, after {BUDGET} s")
        else:
            good &= test(name)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
