#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure what KylinX claims against ordinary processes on this machine, side by side, and write a report.

usage: run.py [--quick] [--out DIR] [--base KYLINX] [--claims FILE]... [--list] [GROUP...]

Writes DIR/bench.json (its fields: docs/bench.md), bench.txt and bench.html. Ends with status 1 when a group failed, or
when a claim in FILE is contradicted; a claim is an HTML comment in the line that makes it:
    <!-- bench: METRIC ratio|pvm|process <=|>= NUMBER -->
It is contradicted when all of the interval lies on the other side. With --base, the other side of each pair is another
build of kylinx instead of the process.
"""
import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import groups as g  # noqa: E402
import harness as h  # noqa: E402
import report  # noqa: E402

CLAIM = re.compile(r"<!-- bench: (\S+) (ratio|pvm|process) (<=|>=) ([0-9.]+) -->")


def first_line(path, default=""):
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.readline().strip()
    except OSError:
        return default


def output(argv):
    try:
        return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              check=False).stdout.strip()
    except OSError:
        return ""


def machine():
    cpu = ""
    flags = ""
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        for line in f:
            if line.startswith("model name") and not cpu:
                cpu = line.split(":", 1)[1].strip()
            if line.startswith("flags") and not flags:
                flags = line.split(":", 1)[1]
    with open("/proc/meminfo", encoding="utf-8") as f:
        memory = int(f.readline().split()[1])
    kind = "VMX" if " vmx" in flags else "SVM" if " svm" in flags else "software (neither VMX nor SVM)"
    top = os.path.dirname(g.HERE)
    return {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "kernel": platform.release(), "cpu": cpu,
            "cpus": len(h.cpus()), "memory_kib": memory, "kvm": kind,
            "thp": first_line("/sys/kernel/mm/transparent_hugepage/enabled"),
            "ksm": first_line("/sys/kernel/mm/ksm/run", "absent"),
            "clocksource": first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            "libc": " ".join(platform.libc_ver()), "kylinx": output([g.KYLINX, "--version"]),
            "commit": output(["git", "-C", top, "describe", "--always", "--dirty"]) or "not a checkout"}


def claims(files):
    for path in files:
        with open(path, encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                for m in CLAIM.finditer(line):
                    yield {"file": os.path.basename(path), "line": number, "text": CLAIM.sub("", line).strip(),
                           "metric": m[1], "field": m[2], "op": m[3], "limit": float(m[4])}


def judge(claim, metrics):
    """holds, contradicted, or not measured; and what was found."""
    m = metrics.get(claim["metric"])
    if not m or claim["field"] not in m:
        return "not measured", None
    v = m[claim["field"]]
    if claim["field"] == "ratio":
        low, high = v["low"], v["high"]
    else:
        low, high = h.interval(v["samples"])
    bad = low > claim["limit"] if claim["op"] == "<=" else high < claim["limit"]
    return "contradicted" if bad else "holds", v["median"]


def main():
    p = argparse.ArgumentParser(prog="kylinx bench", description="Measure pVMs against processes, and write a report.")
    p.add_argument("--quick", action="store_true", help="fewer runs, smaller sizes: under 3 minutes")
    p.add_argument("--out", default=os.path.join(g.BUILD, "bench"), metavar="DIR", help="where the report goes")
    p.add_argument("--base", metavar="KYLINX", help="compare with another build of kylinx instead of processes")
    p.add_argument("--claims", action="append", default=[], metavar="FILE", help="check the claims in this file")
    p.add_argument("--list", action="store_true", help="list the groups")
    p.add_argument("groups", nargs="*", metavar="GROUP", help="what to measure (default: all)")
    args = p.parse_args()
    if args.list:
        print("\n".join(g.GROUPS))
        return 0
    names = args.groups or list(g.COMPARED if args.base else g.GROUPS)
    for n in names:
        if n not in g.GROUPS:
            print(f"kylinx: bench: {n}: unknown group (one of {', '.join(g.GROUPS)})", file=sys.stderr)
            return 125
    try:
        os.makedirs(args.out, exist_ok=True)
    except OSError as e:
        print(f"kylinx: bench: {args.out}: {e.strerror} (give --out a directory that can be written)", file=sys.stderr)
        return 125
    plan = g.Plan(args.quick, g.KYLINX, args.base)
    noise = h.Noise()
    doc = {"schema": 1, "quick": args.quick, "machine": machine(), "metrics": [], "skipped": [], "failed": [],
           "against": "another build" if args.base else "process"}
    found = {}
    for i in range(plan.rounds):
        for n in names:
            if i and n in g.ONCE or any(n == x["group"] for x in doc["skipped"] + doc["failed"]):
                continue
            h.say(f"bench: {n}" + (f", round {i + 1} of {plan.rounds}" if plan.rounds > 1 else ""))
            begin = time.monotonic()
            try:
                for m in g.GROUPS[n](plan):
                    if m.name in found:
                        found[m.name].add(m)
                    else:
                        found[m.name] = m
            except h.Skip as e:
                doc["skipped"].append({"group": n, "why": str(e)})
                h.say(f"  skipped: {e}")
            except (RuntimeError, OSError, KeyError, ValueError) as e:
                doc["failed"].append({"group": n, "why": str(e)})
                h.say(f"  failed: {e}")
            h.say(f"  {time.monotonic() - begin:.0f} s")
    doc["metrics"] = [m.as_json() for m in found.values()]
    doc["noise"] = noise.as_json()
    metrics = {m["name"]: m for m in doc["metrics"]}
    if not args.base:
        doc["metrics"] += [m.as_json() for m in g.model(metrics)]
    doc["claims"] = []
    for c in claims(args.claims):
        c["state"], c["found"] = judge(c, metrics)
        doc["claims"].append(c)
    with open(os.path.join(args.out, "bench.json"), "w", encoding="utf-8") as f:
        json.dump(doc, f, indent=1)
    text = report.text(doc)
    with open(os.path.join(args.out, "bench.txt"), "w", encoding="utf-8") as f:
        f.write(text)
    with open(os.path.join(args.out, "bench.html"), "w", encoding="utf-8") as f:
        f.write(report.html(doc))
    print(text, end="")
    print(f"report: {os.path.relpath(args.out)}/bench.html, bench.json, bench.txt")
    bad = [c for c in doc["claims"] if c["state"] == "contradicted"]
    for c in bad:
        print(f"kylinx: bench: {c['file']}:{c['line']}: claims {c['metric']} {c['field']} {c['op']} {c['limit']:g}, "
              f"measured {c['found']:.3g}: {c['text']}", file=sys.stderr)
    return 1 if bad or doc["failed"] else 0


if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 128 + signal.SIGPIPE
    sys.exit(status)
