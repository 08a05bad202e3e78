#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_svm.py KYLINX [--only REGEX]: tests of this tree on a machine whose KVM is that of AMD's processors, which QEMU
emulates (tests/emulated.py). The host's own KVM may be of another kind, or there may be none: then more of them run.
"""
import sys

import machines
import emulated

# What shows each way into and out of the guest, and takes seconds there.
FEW = ["guest/regs.dyn", "guest/sig.dyn", "guest/fdnum.dyn", "guest/time.dyn"]
# Where nothing else runs a pVM.
MANY = [*FEW, *(f"guest/{n}.dyn" for n in ("ahead calls coredump cpuid fault fifo file hot net poll proc reach spare "
                                           "xstate").split()),
        "guest/fork.dyn: ids memory files robust signals clones vforks",
        "guest/fork.dyn: spawns waits sigchld orphans pidfds groups queues",
        "guest/traps.dyn: accepted robust vfork_orphan stops",
        "guest/procsig.dyn: senders masks exec",
        "cli: exit status|killed by signal|standard streams|signal handled|stop and continue|terminal|volumes",
        "processes: job_control|pipeline_of_programs",
        "family: ps_tree|kill_family",
        "policy: signed_libraries|unsigned|wrong_key|memory",
        "policy: nothing_runs_below_a_text",
        "update: lazy|example",
        "net: tcp_and_udp_both_families",
        "dns: nsd_1",
        "redis: commands"]
SECONDS_EACH, BOOT_SECONDS, BUDGET = 150, 200, 1500

if __name__ == "__main__":
    sys.exit(machines.main("emulated.py", emulated.Svm.missing(), FEW, MANY, SECONDS_EACH, BOOT_SECONDS, BUDGET))
