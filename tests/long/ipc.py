#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""ipc.py [PART...]: what IPC must stand and `make check` has no time for, each natively and in a pVM: stress (stress-ng's
stressors of IPC with --verify, 10 s each), hackbench, pipeline (500 MiB through tar and zstd), queue (a million messages
of multiprocessing), death (KX_DEATH rounds, 2000). Without PART: all, for some 20 minutes. KYLINX: the binary."""
import hashlib
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../integration"))
import lib

STRESSORS = ("pipe fifo sock sockpair msg sem sem-sysv shm shm-sysv mq futex mutex splice vm-splice switch "
             "context").split()
HACKBENCH = [("pipes, processes", ["-p", "-P"]), ("pipes, threads", ["-p", "-T"]), ("sockets, processes", ["-P"]),
             ("sockets, threads", ["-T"])]
QUEUE = """
import multiprocessing as m
N = 1000000
def child(q):
    for i in range(N):
        q.put(i)
if __name__ == "__main__":
    m.set_start_method("fork")
    q = m.Queue()
    p = m.Process(target=child, args=(q,))
    p.start()
    print(sum(1 for i in range(N) if q.get() != i), "wrong")
    p.join()
    print("exit", p.exitcode)
"""


def both(argv, limit, *options, cwd=None):
    return lib.run(argv, limit, cwd=cwd), lib.run(lib.pvm(argv, *options), limit, cwd=cwd or "/")


def stress(tap):
    for name in STRESSORS:
        argv = ["stress-ng", f"--{name}", "2", "--timeout", "10", "--verify", "--metrics-brief", "--temp-path",
                "/tmp"]
        for where, r in zip(("natively", "in a pVM"), both(argv, 60)):
            text = (r.out + r.err).decode(errors="replace")
            m = re.search(rf"\] {name} +(\d+) ", text)
            ok = r.status == 0 and not re.search(r"stress-ng: (fail|error)", text)
            say(tap, f"stress-ng {name} {where}: {m[1] if m else '?'} operations", ok, r)


def hackbench(tap):
    for what, flags in HACKBENCH:
        argv = ["hackbench", *flags, "-g", "2", "-l", "100"]
        for where, r in zip(("natively", "in a pVM"), both(argv, 240)):
            m = re.search(rb"Time: ([\d.]+)", r.out)
            say(tap, f"hackbench {what} {where}: {m[1].decode() if m else '?'} s", r.status == 0 and m, r)


def pipeline(tap):
    with lib.Dir() as d:
        want = hashlib.sha256()
        os.mkdir(f"{d}/in")
        for i in range(50):
            data = os.urandom(1 << 20) * 5 + bytes(5 << 20)
            want.update(data)
            with open(f"{d}/in/{i:02}", "wb") as f:
                f.write(data)
        argv = ["bash", "-c", f"set -o pipefail; tar -C {d}/in --sort=name -cf - . | zstd -1 -q | zstd -d -q | tar -xOf - | sha256sum"]
        for where, r in zip(("natively", "in a pVM"), both(argv, 400, "--volume", f"{d}:{d}")):
            say(tap, f"tar | zstd | zstd -d | tar {where}: {r.seconds:.1f} s",
                r.status == 0 and r.out.split()[:1] == [want.hexdigest().encode()], r)


def queue(tap):
    for where, r in zip(("natively", "in a pVM"), both(["/usr/bin/python3", "-c", QUEUE], 600)):
        say(tap, f"a million messages by multiprocessing.Queue {where}: {r.seconds:.1f} s", r.out == b"0 wrong\nexit 0\n", r)


def death(tap):
    n = os.environ.get("KX_DEATH", "2000")
    path = os.path.join(lib.TOP, os.environ.get("BUILD", "build"), "tests/guest/death.dyn")
    r = lib.run(lib.pvm([path, "7", n]), 60 + 2 * int(n), cwd="/")
    say(tap, f"{n} rounds of death in a pVM: {r.seconds:.0f} s", r.status == 0, r)


def say(tap, name, ok, r):
    if ok:
        tap.ok(name)
    else:
        tap.fail(name, r.why())


PARTS = {"stress": stress, "hackbench": hackbench, "pipeline": pipeline, "queue": queue, "death": death}


def main():
    tap = lib.Tap()
    for name in sys.argv[1:] or PARTS:
        PARTS[name](tap)
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
