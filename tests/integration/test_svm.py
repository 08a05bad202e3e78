#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_svm.py KYLINX [--only REGEX]: tests of this tree on a machine whose KVM is that of AMD's processors, which QEMU
emulates (tests/emulated.py). The host's own KVM may be of another kind, or there may be none: then more of them run, some
of them again at the end, when kvm-amd is loaded without nested paging.
"""
import re
import sys

import lib
import machines
import emulated

# Where KVM keeps page tables of its own beside the guest's.
SHADOWED = "kvm_amd.npt=0"
machines.OWN[SHADOWED] = f"""
( set -o pipefail
modprobe -r kvm_amd && modprobe kvm_amd npt=0 && grep -q '[0N]' /sys/module/kvm_amd/parameters/npt || exit 2
python3 -u tests/run.py --only '^guest/(file|net|sharedtext|vforklie)[.]dyn$' | sed -u 's/^\\(not \\)\\?ok [0-9]* - /&{SHADOWED}: /' )"""
# With swap, which an update looks through as well.
SWAPPED = "swap on brd"
machines.OWN[SWAPPED] = f"""
( set -o pipefail
modprobe brd rd_nr=1 rd_size=65536 && mkswap /dev/ram0 >/dev/null && swapon /dev/ram0 || exit 2
python3 -u tests/run.py --only '^update$' --part '^swapped_out$' | sed -u 's/^\\(not \\)\\?ok [0-9]* - /&{SWAPPED}: /'
status=$?; swapoff /dev/ram0; exit $status )"""
# Where memory is promised to no more than can have it, a quarter of the machine's to all.
PROMISED = "vm.overcommit_memory=2"
machines.OWN[PROMISED] = f"""
( set -o pipefail
echo 25 > /proc/sys/vm/overcommit_ratio && echo 2 > /proc/sys/vm/overcommit_memory || exit 2
python3 -u tests/run.py --only '^guest/many[.]dyn$' --part 'alive 20' | sed -u 's/^\\(not \\)\\?ok [0-9]* - /&{PROMISED}: /'
status=$?; echo 0 > /proc/sys/vm/overcommit_memory; exit $status )"""
# What shows each way into and out of the guest, and takes seconds there.
FEW = ["guest/regs.dyn", "guest/sig.dyn", "guest/fdnum.dyn", "guest/time.dyn"]
# Where nothing else runs a pVM.
MANY = [*FEW, *(f"guest/{n}.dyn" for n in ("ahead alone backlog calls coredump cpuid descriptors fault fifo file handover hot interrupt linger net poll proc "
                                           "reach recycle shares sharedtext softint spare storm stress text xstate").split()),
        "guest/death.dyn: 1 5",
        "guest/fork.dyn: ids memory files robust signals clones vforks",
        "guest/fork.dyn: spawns waits sigchld orphans pidfds groups queues far_threads",
        "guest/traps.dyn: accepted robust vfork_orphan stops unwaited starts",
        "guest/procsig.dyn: senders masks exec",
        "cli: exit status|killed by signal|standard streams|signal handled|stop and continue|terminal|volumes",
        "processes: job_control|pipeline_of_programs",
        "family: ps_tree|kill_family",
        "policy: signed_libraries|unsigned",
        "policy: nothing_runs_below_a_text",
        "policy: updates_write_to_no_code|mappings_at_random|maps_name_the_file",
        "update: lazy|example",
        "update_fail: no_memory|noting_ends",
        "update_robust: no_thread",
        "update_calls: command_killed|member_without_descriptors",
        "net: tcp_and_udp_both_families|first_of_a_container_has_no_child|client_that_goes_away",
        "vmend",
        "dns: nsd_1",
        "redis: commands",
        SWAPPED,
        PROMISED,
        SHADOWED]
SECONDS_EACH, BOOT_SECONDS, BUDGET = 200, 200, 1500


def counts():
    """Instructions, on the machine that counts them: a pVM passes a byte through a pipe without an exit, and in fewer than the
    kernel's. A machine whose clock is not theirs has thousands of them more or fewer."""
    for _ in range(machines.TRIES):
        r = lib.run([sys.executable, "tests/emulated.py", "--count", "--seconds", "300", "--", "python3", "bench/count.py", "--only", "^pipe$"],
                    500)
        m = re.search(r"^pipe +([0-9,]+) +([0-9,]+) +([0-9.]+) +[-0-9.]+ +[0-9.]+", r.out.decode(errors="replace"), re.M)
        if m or r.status not in (124, 125):
            break
        print(f"# unsteady, counted instructions are run again, after: {r.why()}", flush=True)
    process, pvm, exits = (float(x.replace(",", "")) for x in m.groups()) if m else (0, 0, 0)
    good = 1000 < process < 6000 and 300 < pvm < process and not exits
    return None if good else f"{process:g}, {pvm:g}, {exits:g} exits: {r.why()}"


if __name__ == "__main__":
    sys.exit(machines.main("emulated.py", emulated.Svm.missing(), FEW, MANY, (SECONDS_EACH, BOOT_SECONDS, BUDGET),
                           [("counted instructions", counts)]))
