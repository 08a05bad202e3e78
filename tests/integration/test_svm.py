#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_svm.py KYLINX [--only REGEX]: tests of this tree on a machine whose KVM is that of AMD's processors, which QEMU
emulates (tests/emulated.py). The host's own KVM may be of another kind, or there may be none: then more of them run.
"""
import os
import sys

import lib

sys.path.insert(0, os.path.join(lib.TOP, "tests"))
import emulated  # noqa: E402

# Of tests/run.py's: what shows each way into and out of the guest, and takes seconds there.
FEW = r"^guest/(regs|sig|wait|exec|fdnum|pipe|hot)\.dyn$"
# Where nothing else runs a pVM: some twenty minutes.
MANY = r"^guest/(?!hostile|death|many|ipc|storm|stress|mover|conn)\w+\.dyn$"
SECONDS = {FEW: 600, MANY: 2700}


def main():
    args = lib.arguments()
    why = emulated.missing()
    if why:
        print(f"ok - emulated machine # SKIP {why}")
        return 0
    chosen = MANY if lib.kvm_missing() else FEW
    os.chdir(lib.TOP)
    argv = ["tests/emulated.py", "--seconds", str(SECONDS[chosen]), "--", "python3", "-u", "tests/run.py", "--only", args.only or chosen]
    os.execv(sys.executable, [sys.executable, "-u", *argv])


if __name__ == "__main__":
    sys.exit(main())
