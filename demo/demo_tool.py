#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What demo.sh leaves to Python: test data, medians, the tables. Usage: demo_tool.py VERB [ARG...]"""
import hashlib
import json
import socket
import statistics
import subprocess
import sys
import time


def key(i):
    return f"demo:{i:05d}"


def value(seed, i):
    return hashlib.sha256(f"{seed}:{i}".encode()).hexdigest()


def port():
    """A free TCP port of 127.0.0.1, chosen by the kernel at random."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        print(s.getsockname()[1])


def sets(seed, count):
    """SET commands in Redis's protocol, for redis-cli --pipe."""
    for i in range(int(count)):
        words = ("SET", key(i), value(seed, i))
        sys.stdout.write(f"*{len(words)}\r\n" + "".join(f"${len(w)}\r\n{w}\r\n" for w in words))


def gets(count):
    """GET commands, one a line, for redis-cli."""
    for i in range(int(count)):
        print("GET", key(i))


def values(seed, count):
    """What those must answer."""
    for i in range(int(count)):
        print(value(seed, i))


def start(count, *kylinx):
    """Time from start to exit of a small program, natively and in a pVM by turns."""
    hello = ["/bin/echo", "hello"]
    times = {"native": [], "pVM": []}
    for i in range(int(count) + 2):
        for name, argv in (("native", hello), ("pVM", [*kylinx, "run", "--", *hello])):
            begin = time.perf_counter()
            r = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
            end = time.perf_counter()
            if r.returncode or r.stdout != b"hello\n":
                sys.exit(f"{name}: status {r.returncode}, {r.stdout!r}, {r.stderr.decode(errors='replace')}")
            if i >= 2:  # the first ones warm the caches
                times[name].append((end - begin) * 1000)
    pvm, native = (statistics.median(times[n]) for n in ("pVM", "native"))
    print(f"  median of {count}: pVM {pvm:.1f} ms, native process {native:.1f} ms, ratio {pvm / native:.1f}")


def bench_rows(path):
    """redis-benchmark --csv: name -> requests per second."""
    rows = {}
    with open(path) as f:
        for line in f:
            words = [w.strip('"') for w in line.strip().split('","')]
            if len(words) > 1 and words[0] != "test":
                rows[words[0].split()[0]] = float(words[1])
    return rows


def table(directory, rounds, *runs):
    """Medians of directory/bench.<server>.<run>.<round>, side by side."""
    print(f"  {'':22}{'pVM':>12}{'native':>12}{'pVM/native':>12}")
    for run in runs:
        result = {}
        for server in ("pvm", "native"):
            tries = [bench_rows(f"{directory}/bench.{server}.{run}.{r}") for r in range(int(rounds))]
            result[server] = {t: statistics.median(rows[t] for rows in tries) for t in ("SET", "GET")}
        for t in ("SET", "GET"):
            a, b = result["pvm"][t], result["native"][t]
            if a <= 0 or b <= 0:
                sys.exit(f"no measurement of {t}, {run}")
            label = f"{t}, " + ("one at a time" if run == "P1" else f"pipeline of {run[1:]}")
            print(f"  {label:22}{a:12,.0f}{b:12,.0f}{a / b:12.2f}")


def stats(path):
    """The few numbers of --stats that say most."""
    with open(path) as f:
        s = json.load(f)
    calls = s["hypercalls"]
    total = calls.pop("total")
    print(f"  exits from the VM       {s['exits']:>12,}")
    print(f"  hypercalls              {total:>12,}")
    for name, n in sorted(calls.items(), key=lambda x: -x[1])[:5]:
        print(f"    {name:22}{n:>12,}")
    print(f"  calls without an exit   {s['local_calls']:>12,}  (answered by the LibOS; clock reads of the vDSO not counted)")
    print(f"  slow system calls       {s['slow_syscalls']:>12,}  (trapped `syscall` instructions)")
    sites = s["syscall_sites"]
    print(f"  syscall sites patched   {sites['patched']:>12,}  of {sites['found']:,} found")
    print(f"  vCPUs, memory slots     {s['vcpus']:>12,}  and {s['memory_slots']:,}")
    if s["enosys"]["total"]:
        names = ", ".join(n for n in s["enosys"] if n != "total")
        print(f"  calls answered ENOSYS   {s['enosys']['total']:>12,}  ({names})")
    if not total or not s["exits"]:
        sys.exit("the statistics are empty")


if __name__ == "__main__":
    verbs = {f.__name__: f for f in (port, sets, gets, values, start, table, stats)}
    if len(sys.argv) < 2 or sys.argv[1] not in verbs:
        sys.exit(__doc__)
    verbs[sys.argv[1]](*sys.argv[2:])
