#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Side by side with processes, in one run and by turns: medians and ratios. Absolute figures of a shared machine
prove little; the ratio and its spread say more. usage: bench/run.py [PAIRS]"""
import os, statistics, subprocess, sys, tempfile, time

BUILD = os.environ.get("BUILD", "build")
KYLINX = [os.path.join(BUILD, "kylinx"), "run", "--"]
PAIRS = int(sys.argv[1]) if len(sys.argv) > 1 else 7


def start_to_exit(cmd):
    a = time.perf_counter()
    subprocess.run(cmd, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - a) * 1e3


def calls(cmd):
    out = subprocess.run(cmd, stdout=subprocess.PIPE, check=True, text=True).stdout
    return {k: float(v) for k, v in (line.split() for line in out.splitlines())}


def row(name, unit, pvm, native):
    ratios = sorted(p / n for p, n in zip(pvm, native))
    print(f"{name:<22} {statistics.median(pvm):>10.1f} {statistics.median(native):>10.1f} {unit:<3}"
          f" {statistics.median(ratios):>8.2f}  [{ratios[0]:.2f}..{ratios[-1]:.2f}]")


def main():
    print(f"{'':<22} {'pVM':>10} {'process':>10}      {'ratio':>7}  [of pairs], load {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory() as tmp:
        hello = os.path.join(tmp, "hello")
        with open(hello + ".c", "w") as f:
            f.write('#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n')
        prog = os.path.join(BUILD, "bench", "calls")
        os.makedirs(os.path.dirname(prog), exist_ok=True)
        subprocess.run(["gcc", "-O2", "-o", hello, hello + ".c"], check=True)
        subprocess.run(["gcc", "-O2", "-w", "-o", prog, "bench/calls.c"], check=True)
        start_to_exit(KYLINX + [hello])
        pairs = [(start_to_exit(KYLINX + [hello]), start_to_exit([hello])) for _ in range(3 * PAIRS)]
        row("hello, dynamic", "ms", [p for p, _ in pairs], [n for _, n in pairs])
        rounds = [(calls(KYLINX + [prog]), calls([prog])) for _ in range(PAIRS)]
        for name in rounds[0][0]:
            row(name, "ns", [p[name] for p, _ in rounds], [n[name] for _, n in rounds])
        prog = os.path.join(BUILD, "bench", "fork")
        subprocess.run(["gcc", "-O2", "-w", "-o", prog, "bench/fork.c"], check=True)
        for mib in ("0", "16", "64", "256", "1024"):
            rounds = [(calls(KYLINX + [prog, mib]), calls([prog, mib])) for _ in range(3)]
            for name in rounds[0][0]:
                row(name, "us", [p[name] for p, _ in rounds], [n[name] for _, n in rounds])
        prog = os.path.join(BUILD, "bench", "sync")
        subprocess.run(["gcc", "-O2", "-w", "-pthread", "-o", prog, "bench/sync.c"], check=True)
        rounds = [(calls(KYLINX + [prog, "1000"]), calls([prog, "1000"])) for _ in range(3)]
        for name in rounds[0][0]:
            row(name, "ns", [p[name] for p, _ in rounds], [n[name] for _, n in rounds])


main()
