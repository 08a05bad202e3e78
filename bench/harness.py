# SPDX-License-Identifier: Apache-2.0
"""Interleaved pairs of pVM and process, and what can be said of them.

A measurement is a function side -> {metric: number}. It is called by turns for both sides, after a warm-up of each;
each pair gives a ratio. Reported are the median, p10 and p90 of each side, the median of the ratios and an interval for
it, see interval(). Shared machines are noisy, so a metric whose native runs spread more than NOISY is marked.
"""
import math
import os
import statistics
import subprocess
import sys
import time

NOISY = 0.5  # (p90 - p10) / median of the process's own runs
# By so much a whole run is off from another of the same build, whatever its pairs say: where memory and code came to lie,
# clocks, neighbours. Measured on runs of an hour (docs/bench.md).
RUN = 0.02
STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided 95 %, n - 1 degrees of freedom


class Skip(Exception):
    """The reason why something can't be measured here."""


class Metric:
    """One row of the report. `better` is 'lower' or 'higher'."""

    def __init__(self, name, group, unit, pvm, native, better="lower", note=""):
        self.name, self.group, self.unit, self.better, self.note = name, group, unit, better, note
        self.pvm, self.native = pvm, native

    def add(self, other):
        """The values of a later round."""
        self.pvm = [*self.pvm, *other.pvm]
        self.native = [*self.native, *other.native] if self.native else self.native

    def as_json(self):
        d = {"name": self.name, "group": self.group, "unit": self.unit, "better": self.better, "pvm": side(self.pvm)}
        if self.note:
            d["note"] = self.note
        if self.native:
            d["process"] = side(self.native)
            d["ratio"] = ratio(self.pvm, self.native)
            d["noisy"] = spread(self.native) > NOISY
        return d


def quantile(values, q):
    """By linear interpolation between the order statistics."""
    v = sorted(values)
    at = q * (len(v) - 1)
    low = math.floor(at)
    high = min(low + 1, len(v) - 1)
    return v[low] + (v[high] - v[low]) * (at - low)


def spread(values):
    m = statistics.median(values)
    return (quantile(values, 0.9) - quantile(values, 0.1)) / m if m else 0.0


def side(values):
    return {"median": statistics.median(values), "p10": quantile(values, 0.1), "p90": quantile(values, 0.9),
            "samples": list(values)}


def median_interval(values):
    """[low, high] that holds the median of what the values are drawn from with 95 % or more: order statistics (Conover,
    Practical Nonparametric Statistics, ch. 3.2), which assume nothing of the distribution. Of fewer than six values not
    even the whole range holds it so often: then Student's interval of their logarithms, if all are above 0."""
    v = sorted(values)
    n = len(v)
    if n in STUDENT and v[0] > 0:
        logs = [math.log(x) for x in v]
        e = STUDENT[n] * statistics.stdev(logs) / math.sqrt(n)
        return [min(math.exp(statistics.fmean(logs) - e), v[0]), max(math.exp(statistics.fmean(logs) + e), v[-1])]
    k = 0
    tail = 0.0
    while k < n // 2:
        tail += math.comb(n, k) / 2 ** n
        if tail > 0.025:
            break
        k += 1
    k = max(k - 1, 0)
    return [v[k], v[n - 1 - k]]


def interval(values):
    """What is printed: median_interval(), widened by what runs differ in."""
    low, high = median_interval(values)
    return [low * (1 - RUN), high * (1 + RUN)]


def ratio(pvm, native):
    pairs = [p / n for p, n in zip(pvm, native) if n]
    if not pairs:
        return {"median": math.nan, "low": math.nan, "high": math.nan, "pairs": []}
    low, high = interval(pairs)
    return {"median": statistics.median(pairs), "low": low, "high": high, "pairs": pairs}


def pairs(measure, count, warm=1):
    """Both sides by turns, who begins changes from pair to pair. Returns {metric: (pvm values, native values)}."""
    for _ in range(warm):
        for s in ("pvm", "process"):
            measure(s)
    got = {}
    for i in range(count):
        one = {}
        for s in ("pvm", "process") if i % 2 == 0 else ("process", "pvm"):
            one[s] = measure(s)
        for name, v in one["pvm"].items():
            g = got.setdefault(name, ([], []))
            if name in one["process"]:
                g[0].append(v)
                g[1].append(one["process"][name])
            else:
                g[0].append(v)
    return got


def cpus():
    return sorted(os.sched_getaffinity(0))


def pinned(argv, which):
    """argv on the CPUs `which` alone."""
    return ["taskset", "-c", ",".join(map(str, which)), *argv]


def run(argv, timeout=120, **kw):
    """Standard output of argv; its failure is the benchmark's, with what it said."""
    try:
        r = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           timeout=timeout, **kw)
    except FileNotFoundError as e:
        raise Skip(f"{e.filename} is not there") from e
    except subprocess.TimeoutExpired as e:
        raise RuntimeError(f"{argv[-1]}: no end within {timeout} s") from e
    if r.returncode:
        text = (r.stderr.strip() or r.stdout.strip()).splitlines()
        raise RuntimeError(f"{' '.join(argv)}: status {r.returncode}: {text[-1] if text else ''}")
    return r.stdout


def numbers(text):
    """Lines of "name value", as the programs in this directory print them."""
    return {k: float(v) for k, v in (line.split() for line in text.splitlines() if line.strip())}


def steal():
    """Ticks that the hypervisor below took from this machine, and all ticks."""
    with open("/proc/stat", encoding="ascii") as f:
        v = list(map(int, f.readline().split()[1:9]))
    return v[7], sum(v)


class Noise:
    """What else the machine did meanwhile."""

    def __init__(self):
        self.load0, self.steal0, self.start = os.getloadavg()[0], steal(), time.monotonic()

    def as_json(self):
        s, t = steal()
        lost = (s - self.steal0[0]) / max(t - self.steal0[1], 1)
        return {"load_before": self.load0, "steal": lost, "seconds": time.monotonic() - self.start}


def say(text):
    print(text, file=sys.stderr, flush=True)
