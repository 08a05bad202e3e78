#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_svm.py KYLINX [--only REGEX]: tests of this tree on a machine whose KVM is that of AMD's processors, which QEMU
emulates (tests/emulated.py). The host's own KVM may be of another kind, or there may be none: then more of them run.

One machine for all of them, in this order, and a new one for what follows a test that did not pass, or that did not get
to its end: now and then a machine stands still, or its kernel panics ("corrupted stack end"); whether QEMU, that kernel or
KylinX is to blame is not known. That is told, and the test is done again.
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
import emulated  # noqa: E402

# As tests/run.py names them, and ": PARTS" for --part; of a script, a|b. What shows each way into and out of the guest, and
# takes seconds there.
FEW = ["guest/regs.dyn", "guest/sig.dyn", "guest/fdnum.dyn", "guest/time.dyn"]
# Where nothing else runs a pVM.
MANY = [*FEW, *(f"guest/{n}.dyn" for n in ("ahead calls coredump cpuid fault fifo file hot net poll proc reach spare "
                                           "xstate").split()),
        "guest/fork.dyn: ids memory files robust signals clones vforks",
        "guest/fork.dyn: spawns waits sigchld orphans pidfds groups queues",
        "guest/traps.dyn: accepted robust vfork_orphan stops",
        "guest/procsig.dyn: senders masks exec",
        "cli: exit status|killed by signal|standard streams|signal handled|stop and continue|terminal|volumes",
        "processes: pipeline_of_programs",
        "family: ps_tree|kill_family",
        "policy: signed_libraries|unsigned",
        "update: lazy|example",
        "net: tcp_and_udp_both_families",
        "dns: nsd_1",
        "redis: commands"]
MACHINE = [sys.executable, "tests/emulated.py"]
BUDGET = 1500  # seconds; no test is begun after that
TEST_SECONDS = 200
TRIES = 3
END = "# end"


def wanted(only):
    """Those of ours that match, or those of tests/run.py."""
    found = []
    for name, _, parts in (t.partition(": ") for t in (MANY if lib.kvm_missing() or only else FEW)):
        kept = [p for p in parts.split("|") if re.search(only, f"{name}: {p}" if p else name)]
        if kept:
            found.append(f"{name}: {'|'.join(kept)}" if parts else name)
    return found or lib.run([sys.executable, "tests/run.py", "--list", "--only", only]).out.decode().split()


def command(test):
    """For the machine's shell."""
    name, _, part = test.partition(": ")
    argv = ["python3", "-u", "tests/run.py", "--only", f"^{re.escape(name)}$"]
    if part:
        argv += ["--part", part if name.startswith("guest/") else f"^({part})$"]
    return f'{shlex.join(argv)}; echo "{END} $?"'


class Machine:
    """That does these tests, one after the other."""

    def __init__(self, tests):
        self.err = tempfile.TemporaryFile()
        argv = [*MACHINE, "--seconds", str(BUDGET), "--", "bash", "-c", "\n".join(command(t) for t in tests)]
        self.p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.err)
        self.deadline = time.monotonic() + emulated.BOOT_SECONDS
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
        self.deadline += TEST_SECONDS
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
            return results, f"not within {TEST_SECONDS} s; " + self.end()
        return results, self.end()

    def end(self):
        self.p.wait()
        self.err.seek(0)
        return lib.one_line(self.err.read().decode(errors="replace").strip()) or lib.status_text(self.p.returncode)


def run(tests):
    """(test, lines, why) of some of them, from the first one on, as Machine.test() has it: up to one that has not passed."""
    with Machine(tests) as m:
        for t in tests:
            lines, why = m.test()
            yield t, lines, why
            if why or any(x.startswith("not") for x in lines):
                return


def all_of(left):
    """Do them, on as many machines as it takes, and print their results. Whether all is well."""
    start, good, tries = time.monotonic(), True, 0
    while left and time.monotonic() - start < BUDGET:
        for test, lines, why in run(left):
            tries += 1
            if why and not lines and tries < TRIES:
                print(f"# unsteady, {test} is run again, after: {why}", flush=True)
                break
            for line in lines + ([f"not ok - {test}: {why}"] if why else []):
                print(line, flush=True)
                good = good and not line.startswith("not")
            left, tries = left[1:], 0
            if time.monotonic() - start > BUDGET:
                break
    for test in left:
        print(f"ok - {test} # SKIP no time left, after {BUDGET} s")
    return good


def main():
    args = lib.arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what ends the machine
    why = emulated.missing()
    if why:
        print(f"ok - emulated machine # SKIP {why}")
        return 0
    os.chdir(lib.TOP)
    return 0 if all_of(wanted(args.only)) else 1


if __name__ == "__main__":
    sys.exit(main())
