#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_vmx.py KYLINX [--only REGEX]: tests of this tree on a machine whose KVM is that of Intel's processors, which Bochs
emulates (tests/emulated_vmx.py); at its end kvm-intel is loaded once more, without unrestricted guest.
"""
import sys

import machines
import emulated_vmx

# Where KVM has pages of its own in the guest's physical memory.
RESTRICTED = "kvm_intel.unrestricted_guest=0"
machines.OWN[RESTRICTED] = f"""
rmmod kvm_intel && insmod /mod/kvm-intel.ko unrestricted_guest=0 && grep -q N /sys/module/kvm_intel/parameters/unrestricted_guest &&
out=$(${{BUILD:-build}}/kylinx run -- ${{BUILD:-build}}/tests/guest/mm.dyn low 2>&1) && echo "ok - {RESTRICTED}" ||
{{ echo "not ok - {RESTRICTED}: $out" | tr '\\n' ' '; echo; false; }}"""
# What shows each way into and out of the guest, and has least to do natively: Bochs runs 50 million instructions a second.
FEW = ["guest/regs.dyn", "guest/fault.dyn", "guest/proc.dyn"]
# Where nothing else runs a pVM.
MANY = [*FEW, *(f"guest/{n}.dyn" for n in "calls coredump reach poll softint high".split()), "guest/file.static", RESTRICTED]
SECONDS_EACH, BOOT_SECONDS, BUDGET = 200, 600, 1500  # on a machine with much else to do

if __name__ == "__main__":
    sys.exit(machines.main("emulated_vmx.py", emulated_vmx.Vmx.missing(), FEW, MANY, (SECONDS_EACH, BOOT_SECONDS, BUDGET)))
