#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_vmx.py KYLINX [--only REGEX]: tests of this tree on a machine whose KVM is that of Intel's processors, which Bochs
emulates (tests/emulated_vmx.py). All on one machine, since Bochs takes a minute to boot it; at its end kvm-intel is loaded once more,
without unrestricted guest.
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
MANY = r"^guest/(regs|fault|proc|calls|coredump|reach|poll|high)\.dyn$|^guest/file\.static$"
SECONDS_EACH, BOOT_SECONDS = 200, 600  # on a machine with much else to do
# Where KVM has pages of its own in the guest's physical memory.
RESTRICTED = "kvm_intel.unrestricted_guest=0"
IN_RESTRICTED = f"""
rmmod kvm_intel && insmod /mod/kvm-intel.ko unrestricted_guest=0 && grep -q N /sys/module/kvm_intel/parameters/unrestricted_guest &&
out=$(${{BUILD:-build}}/kylinx run -- ${{BUILD:-build}}/tests/guest/mm.dyn low 2>&1) && echo "ok - {RESTRICTED}" || echo "not ok - {RESTRICTED}: $out" | tr '\\n' ' '
"""


def main():
    args = lib.arguments()
    why = emulated_vmx.Vmx.missing()
    if why:
        print(f"ok - emulated machine # SKIP {why}")
        return 0
    os.chdir(lib.TOP)
    tests = machines.names(args.only or (MANY if lib.kvm_missing() else FEW))
    more = "" if args.only else IN_RESTRICTED
    status, lines, why = machines.run("emulated_vmx.py", tests, SECONDS_EACH * (len(tests) + 1), BOOT_SECONDS, more)
    for test in tests + ([RESTRICTED] if more else []):
        if not any(re.search(rf"\b{re.escape(test)}\b", x) for x in lines):
            lines.append(f"not ok - {test}: {why}")
    for line in lines:
        print(line, flush=True)
    return 1 if status or any(x.startswith("not") for x in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
