#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""count.py [--markdown] [--only REGEX] [--side pvm|process]: what operations cost in instructions, in a pVM and as a process,
on a machine whose clock ticks once for each instruction: `tests/emulated.py --count -- python3 bench/count.py` (make bench-count).

A nanosecond of CPU time there is an instruction of anybody's: of the program, the LibOS, the monitor, the host's kernel and its
threads. So what is counted are those of the whole machine, as /proc/schedstat has them: of a run with many operations less
those of one with few, by the number between; of a start all, with what starts it. On any other machine the numbers mean
nothing, and timeouts do there: while it waits for the host's files, its clock jumps.
"""
import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import count_servers  # noqa: E402
import count_updates  # noqa: E402
import groups as g  # noqa: E402
import harness as h  # noqa: E402

EXIT_NS = 1000  # what an exit or a page fault of the guest's costs where a processor switches worlds, beyond its instructions
SETTLE = 0.2  # seconds
NEVER = 1e6  # a timeout, of a clock that jumps
# Operation of bench/ops.c, few, many.
OPS = [("getpid", 1000, 51000), ("clock", 1000, 51000), ("random", 1000, 51000), ("sigmask", 1000, 51000), ("mutex", 1000, 51000),
       ("pipe", 1000, 51000), ("socket", 1000, 51000), ("epoll", 100, 1100), ("read", 100, 1100), ("mmap", 50, 350),
       ("open", 50, 350), ("signal", 50, 550), ("roundtrip", 50, 350), ("thread", 5, 45), ("fork", 5, 45), ("fork16", 5, 25), ("fork64", 5, 15),
       ("exec", 4, 24), ("spawn", 4, 24), ("dlopen", 20, 120)]
# Kinds of bench/sync.c: a round trip on one CPU, two switches.
SWITCHES = ("sysv_msg sysv_sem posix_mq posix_sem shm_futex mutex_cond signal sigqueue sigsuspend signalfd pipe socketpair eventfd "
            "thread_futex thread_cond thread_sem").split()
SWITCH_ROUNDS = (200, 700)  # and a tenth of that to get warm
LIBRARIES = 30  # of a start
STARTS = [("start_crypto", ["dlopen", "child"]), ("start_hello", ["start"]), ("start_true", ["/bin/true"]), ("start_sh", ["/bin/sh", "-c", ":"]),
          ("start_openssl", ["/usr/bin/openssl", "version"]), ("start_python3", ["/usr/bin/python3", "-c", "pass"])]


def busy():
    """Nanoseconds of CPU time of all threads but the idle one's."""
    with open("/proc/schedstat", encoding="ascii") as f:
        return sum(int(x.split()[7]) for x in f if x.startswith("cpu"))


def settled():
    """The same when the kernel's threads have finished what the last run has left to them, which is that one's."""
    time.sleep(SETTLE)
    return busy()


def cost(plan, side, argv, env=None, *options):
    """[instructions, exits, page faults that KVM resolved] of one run. options: of kylinx run."""
    with tempfile.NamedTemporaryFile(prefix="kylinx-bench-") as f:
        argv = plan.argv(side, argv, *([*options, f"--stats={f.name}"] if side == "pvm" else []))
        a = busy()
        h.run(argv, NEVER, env=env)
        n = settled() - a
        stats = json.load(f) if side == "pvm" else {"exits": 0, "page_faults": 0}
    return [n, stats["exits"], stats["page_faults"]]


def each(plan, side, argv, few, many):
    """cost() of one of what argv(n) does n times."""
    for _ in range(2):  # what a first run stores, and a second one finds out
        cost(plan, side, argv(few))
    one, two = (cost(plan, side, argv(n)) for n in (few, many))
    return [(b - a) / (many - few) for a, b in zip(one, two)]


def op(plan, side, name, few, many):
    return each(plan, side, lambda n: [g.program("ops"), name, str(n)], few, many)


def switch(plan, side, kind):
    few, many = SWITCH_ROUNDS
    return [x / 1.1 for x in each(plan, side, lambda n: [g.program("sync"), str(n), kind, "1"], few, many)]


def start(plan, side, argv, *options):
    a = busy()
    idle = settled() - a
    for _ in range(2):
        cost(plan, side, argv, None, *options)
    n, *rest = sorted(cost(plan, side, argv, None, *options) for _ in range(3))[1]
    return [n - idle, *rest]


def libraries(plan, side):
    """A start with so many libraries of its own."""
    with g.plain_dir() as d:
        argv = [g.with_libraries(d, LIBRARIES)]
        time.sleep(2)  # files that have just been made are not stored
        return start(plan, side, argv, "--volume", f"{d}:{d}")


def cold(plan, side, argv):
    """With an empty store."""
    with tempfile.TemporaryDirectory(prefix="kylinx-bench-") as d:
        return cost(plan, side, argv, dict(os.environ, KYLINX_STORE=d))


def latencies(plan, mib):
    """Of a fork with so much memory written: nanoseconds until the parent goes on, until the child runs."""
    argv = [g.program("fork"), str(mib)]
    got = {s: h.numbers(h.run(plan.argv(s, argv), NEVER)) for s in ("process", "pvm")}
    for k in got["pvm"]:
        if not k.endswith("exit_wait"):
            yield [k, *(f"{got[s][k] * 1e3:,.0f}" for s in ("process", "pvm")), f"{got['pvm'][k] / got['process'][k]:.2f}"]


def row(name, n, p):
    one = n[0] or float("nan")
    return [name, f"{n[0]:,.0f}", f"{p[0]:,.0f}", f"{p[1]:.2f}", f"{p[2]:.1f}", f"{p[0] / one:.2f}",
            f"{(p[0] + (p[1] + p[2]) * EXIT_NS) / one:.2f}"]


HEAD = ["operation", "process", "pVM", "exits", "page faults", "ratio", "with 1 us each"]


def show(rows, markdown):
    if markdown:
        print("\n".join(["| " + " | ".join(r) + " |" for r in rows[:1]] + ["|" + "---|" * len(rows[0])] +
                        ["| " + " | ".join(r) + " |" for r in rows[1:]]))
    else:
        for r in rows:
            print(f"{r[0]:<16}" + "".join(f"{c:>16}" for c in r[1:]))
    print(flush=True)


def main():
    p = argparse.ArgumentParser(description="Instructions of operations, on a machine that counts them.")
    p.add_argument("--markdown", action="store_true")
    p.add_argument("--only", default="", metavar="REGEX")
    p.add_argument("--side", choices=("pvm", "process"), help="this one alone")
    args = p.parse_args()
    plan = g.Plan(True)
    rows, failed = [HEAD], []
    todo = [(name, lambda s, x=(name, few, many): op(plan, s, *x)) for name, few, many in OPS]
    todo += [(f"switch_{kind}", lambda s, kind=kind: switch(plan, s, kind)) for kind in SWITCHES]
    for name, argv in STARTS:
        argv = argv if os.path.isabs(argv[0]) else [g.program(argv[0]), *argv[1:]]
        if os.access(argv[0], os.X_OK):
            todo.append((name, lambda s, argv=argv: start(plan, s, argv)))
    if shutil.which("gcc"):
        todo.append((f"start_{LIBRARIES}", lambda s: libraries(plan, s)))
    todo.append(("start_cold", lambda s: cold(plan, s, ["/bin/true"])))

    def tried(name, fn):
        try:
            return fn()
        except (RuntimeError, OSError, ValueError, KeyError, h.Skip) as e:
            failed.append(name)
            h.say(f"{name}: {e}")
            return None

    for name, measure in todo:
        if not re.search(args.only, name):
            continue
        sides = tried(name, lambda measure=measure: [[0, 0, 0] if args.side not in (None, s) else measure(s)
                                                     for s in ("process", "pvm")])
        if sides:
            rows.append(row(name, *sides))
            h.say(" ".join(rows[-1]))
    show(rows, args.markdown)
    rows = [count_servers.HEAD]
    for case in count_servers.CASES:
        if not re.search(args.only, case[0]):
            continue
        if why := count_servers.missing(case):
            h.say(f"{case[0]}: skipped: {why}")
            continue
        sides = tried(case[0], lambda case=case: [[0, 0, 0] if args.side not in (None, s) else
                                                  count_servers.request(plan, s, busy, case) for s in ("process", "pvm")])
        if sides:
            rows.append(count_servers.row(case[0], *sides, EXIT_NS))
            h.say(" ".join(rows[-1]))
    if len(rows) > 1:
        show(rows, args.markdown)
    rows = [count_updates.HEAD]
    for name, made, wanted in count_updates.CASES:
        if args.side == "process" or not re.search(args.only, name):
            continue
        if not shutil.which(wanted):
            h.say(f"{name}: skipped: {wanted} is not installed")
        elif got := tried(name, lambda made=made: count_updates.pauses(plan, made)):
            rows.append(count_updates.row(name, got))
            h.say(" ".join(rows[-1]))
    if len(rows) > 1:
        show(rows, args.markdown)
    rows = [["time of a fork", "process, ns", "pVM, ns", "ratio"]]
    for mib in (0, 16, 64):
        if not args.side and re.search(args.only, f"latency{mib}"):
            rows += tried(f"latency{mib}", lambda mib=mib: list(latencies(plan, mib))) or []
    if len(rows) > 1:
        show(rows, args.markdown)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
