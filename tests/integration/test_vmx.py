#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_vmx.py KYLINX [--only REGEX]: tests of this tree on a machine whose KVM is that of Intel's processors, which Bochs
emulates (tests/emulated_vmx.py). All on one machine, since Bochs takes a minute to boot it.
"""
import os
import re
import sys

import lib
import machines
import emulated_vmx

# What shows each way into and out of the guest, and has least to do natively: Bochs runs 50 million instructions a second.
FEW = r"^guest/(regs|fault|proc)\.dyn$"
# Where nothing else runs a pVM.
MANY = r"^guest/(regs|fault|proc|calls|reach|poll|xstate|high)\.dyn$|^guest/file\.static$"
SECONDS_EACH, BOOT_SECONDS = 200, 600  # on a machine with much else to do


def main():
    args = lib.arguments()
    why = emulated_vmx.Vmx.missing()
    if why:
        print(f"ok - emulated machine # SKIP {why}")
        return 0
    os.chdir(lib.TOP)
    tests = machines.names(args.only or (MANY if lib.kvm_missing() else FEW))
    status, lines, why = machines.run("emulated_vmx.py", tests, SECONDS_EACH * len(tests), BOOT_SECONDS)
    for test in tests:
        if not any(re.search(rf"\b{re.escape(test)}\b", x) for x in lines):
            lines.append(f"not ok - {test}: {why}")
    for line in lines:
        print(line, flush=True)
    return 1 if status or any(x.startswith("not") for x in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
