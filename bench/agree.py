#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Do two runs of the benchmarks agree? agree.py A/bench.json B/bench.json

Two runs agree on a metric when the intervals that they print overlap: those of the ratios where there is another side,
else those of the pVM's medians. Prints each metric on which they don't, and ends with status 1 when they are more than
one in twenty: so many may miss by chance, since each interval holds its median with 95 %.
"""
import json
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import harness  # noqa: E402
from report import num  # noqa: E402


def interval(m):
    if "ratio" in m:
        return m["ratio"]["low"], m["ratio"]["high"]
    return tuple(harness.interval(m["pvm"]["samples"]))


def judged(m):
    """False where one sample is no interval."""
    return len(m["ratio"]["pairs"] if "ratio" in m else m["pvm"]["samples"]) > 1


def compare(a, b):
    """Names compared, and of those on which the documents differ (name, interval of a, interval of b)."""
    first = {m["name"]: m for m in a["metrics"]}
    names, apart = [], []
    for m in b["metrics"]:
        o = first.get(m["name"])
        if not o or not judged(m) or not judged(o):
            continue
        names.append(m["name"])
        x, y = interval(o), interval(m)
        if x[1] < y[0] or y[1] < x[0]:
            apart.append((m["name"], x, y))
    return names, apart


def main():
    if len(sys.argv) != 3:
        print("usage: agree.py A/bench.json B/bench.json", file=sys.stderr)
        return 125
    docs = []
    for path in sys.argv[1:]:
        try:
            with open(path, encoding="utf-8") as f:
                docs.append(json.load(f))
        except (OSError, ValueError) as e:
            print(f"kylinx: bench: {path}: {e} (give two bench.json)", file=sys.stderr)
            return 125
    names, apart = compare(*docs)
    for name, x, y in apart:
        print(f"{name:<40} [{num(x[0])} .. {num(x[1])}] and [{num(y[0])} .. {num(y[1])}]")
    print(f"{len(names) - len(apart)} of {len(names)} metrics agree")
    return 1 if len(apart) * 20 > len(names) or not names else 0


if __name__ == "__main__":
    sys.exit(main())
