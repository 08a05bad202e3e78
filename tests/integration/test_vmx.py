#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_vmx.py KYLINX [--only REGEX]: tests of this tree on a machine whose KVM is that of Intel's processors, which Bochs
emulates (tests/emulated_vmx.py).
"""
import sys

import machines
import emulated_vmx

# What shows each way into and out of the guest, and has least to do natively: Bochs runs 50 million instructions a second.
FEW = ["guest/regs.dyn", "guest/fault.dyn", "guest/proc.dyn"]
# Where nothing else runs a pVM.
MANY = [*FEW, *(f"guest/{n}.dyn" for n in "calls reach poll softint xstate high".split()), "guest/file.static"]
SECONDS_EACH, BOOT_SECONDS, BUDGET = 200, 600, 1500  # on a machine with much else to do

if __name__ == "__main__":
    sys.exit(machines.main("emulated_vmx.py", emulated_vmx.Vmx.missing(), FEW, MANY, (SECONDS_EACH, BOOT_SECONDS, BUDGET)))
