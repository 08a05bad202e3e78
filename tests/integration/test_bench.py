#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What `make bench` reports, and the counts that no machine changes: exits of an operation, instructions of the LibOS.

test_bench.py [KYLINX] [--only PATTERN] [--golden]; prints TAP. --golden writes bench/counts.golden anew instead.
"""
import json
import os
import random
import re
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402

args = lib.arguments("--golden")

BUILD = os.path.abspath(os.path.join(lib.TOP, os.environ.get("BUILD", "build")))
GOLDEN = os.path.join(lib.TOP, "bench/counts.golden")
sys.path.insert(0, os.path.join(lib.TOP, "bench"))
import harness  # noqa: E402
import report  # noqa: E402

OPS = ("getpid clock random sigmask mutex read pipe socket epoll mmap open signal thread fork spawn").split()
CALLS = "getpid getuid rt_sigprocmask sigaltstack futex_wake".split()
tests = []


def test(fn):
    tests.append((fn.__name__, fn))
    return fn


# ---- counts ------------------------------------------------------------------------------------------------------

def counts_of(op, n, kylinx):
    """Exits and hypercalls of n times op."""
    with lib.Dir() as d:
        r = lib.run([kylinx, "run", *exact(kylinx), f"--stats={d}/stats", "--", f"{BUILD}/bench/ops", op, str(n)])
        if r.status:
            raise AssertionError(f"ops {op}: {r.why()}")
        with open(f"{d}/stats", encoding="ascii") as f:
            s = json.load(f)
    return s["exits"], s["hypercalls"]["total"]


def exact(kylinx):
    """Options with which a count does not depend on what else the machine does."""
    return ["--io", "exit"] if b"--io" in lib.run([kylinx, "run", "--help"]).out else []


def per_op(op, kylinx):
    few, many = counts_of(op, 4, kylinx), counts_of(op, 12, kylinx)
    return [(m - f) / 8 for m, f in zip(many, few)]


def instructions(call):
    """Of one call that the LibOS answers, from its entry to its exit."""
    refs = []
    for n in (1000, 2000):
        r = lib.run(["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null",
                     f"{BUILD}/tests/unit/libos_count", f"{BUILD}/libos.bin", call, str(n)])
        m = re.search(rb"I\s+refs:\s+([\d,]+)", r.err)
        if r.status or not m:
            raise AssertionError(f"libos_count {call}: {r.why()}")
        refs.append(int(m[1].replace(b",", b"")))
    return (refs[1] - refs[0]) / 1000


def compiler():
    return lib.run(["gcc", "-dumpfullversion"]).out.decode().strip()


def golden():
    with open(GOLDEN, encoding="ascii") as f:
        return json.load(f)


def differences(kylinx):
    found = []
    for op, want in golden()["per_operation"].items():
        got = dict(zip(("exits", "hypercalls"), per_op(op, kylinx)))
        # A thread that ends while its joiner is on the way to sleep saves a call or two; so does a text in the store.
        slack = 1 if op in ("thread", "spawn") else 0
        if any(abs(got[k] - want[k]) > slack for k in want):
            found.append(f"{op}: {got} instead of {want}")
    return found


@test
def exits_of_operations():
    """More than these is a regression; fewer: write the golden file anew, with --golden."""
    found = differences(lib.KYLINX)
    expect(found, [], "exits and hypercalls of one operation")


def round_trips(kind):
    """Exits of one round trip of a kind of bench/sync.c on one CPU, two switches; the best of some."""
    def exits(n):
        with lib.Dir() as d:
            r = lib.run([lib.KYLINX, "run", *exact(lib.KYLINX), f"--stats={d}/stats", "--", f"{BUILD}/bench/sync", str(n), kind, "1"])
            if r.status:
                raise AssertionError(f"sync {kind}: {r.why()}")
            with open(f"{d}/stats", encoding="ascii") as f:
                return json.load(f)["exits"]
    return min((exits(700) - exits(200)) / 550 for _ in range(3))


@test
def switches_on_one_cpu():
    """Whoever wakes another and then waits makes one exit of both; each was one, four in a round."""
    got = {kind: round(round_trips(kind), 2) for kind in ("mutex_cond", "thread_cond", "posix_sem")}
    expect({k: n for k, n in got.items() if n > 3.4}, {}, "exits of a round trip")


@test
def a_slower_build_is_caught():
    """The same source with one more exit in each hypercall fails the comparison above."""
    with lib.Dir() as d:
        for part in ("abi", "cli", "libos", "include", "lib", "monitor", "tools", "util", "Makefile", "tests/tests.mk", "bench"):
            if part == "tests/tests.mk":
                os.makedirs(f"{d}/tests")
                shutil.copy(f"{lib.TOP}/{part}", f"{d}/tests")
            elif os.path.isdir(f"{lib.TOP}/{part}"):
                shutil.copytree(f"{lib.TOP}/{part}", f"{d}/{part}")
            else:
                shutil.copy(f"{lib.TOP}/{part}", d)
        path = f"{d}/libos/core/main.c"
        with open(path, encoding="ascii") as f:
            text = f.read()
        once = "\treturn t->call.ret;\n"
        expect(text.count(once), 1, "places that end a hypercall")
        again = ('\tint64_t first = t->call.ret;\n\tt->call = (struct kx_call){ NR_sched_yield, { 0 }, 0 };\n'
                 '\t__asm__ volatile("out %%eax, %%dx" : : "a"(0), "d"(KX_PORT_HCALL) : "memory");\n\treturn first;\n')
        with open(path, "w", encoding="ascii") as f:
            f.write(text.replace(once, again))
        r = lib.run(["make", "-C", d, "-j2", "all"], 1800, env={"BUILD": "build", "MAKEFLAGS": ""})
        if r.status:
            raise AssertionError(f"build: {r.why()}")
        found = differences(f"{d}/build/kylinx")
        if not any(x.startswith("read:") for x in found):
            raise AssertionError(f"an exit more in each hypercall was not noticed: {found}")


@test
def instructions_of_the_libos():
    if not shutil.which("valgrind"):
        raise Skip("valgrind is not installed")
    g = golden()
    same = g["compiler"] == compiler()
    found = []
    for call, want in g["instructions"].items():
        got = instructions(call)
        if got != want if same else abs(got - want) > want / 10:
            found.append(f"{call}: {got:g} instead of {want:g}")
    expect(found, [], "instructions of one call")


# ---- what is made of measurements --------------------------------------------------------------------------------

@test
def intervals_hold_the_median():
    """Of samples from a known distribution, at least 94 % of the intervals hold its median."""
    r = random.Random(1)
    for n in (3, 5, 7, 11, 21):
        hold = 0
        for _ in range(2000):
            low, high = harness.median_interval([r.lognormvariate(0, 1) for _ in range(n)])
            hold += low <= 1 <= high
        if hold < 1880:
            raise AssertionError(f"{n} values: {hold} of 2000")
    low, high = harness.median_interval([3, 1, 2])
    expect(low < 1 and high > 3, True, "few values say little")
    expect(harness.median_interval([7]), [7, 7], "one value")
    low, high = harness.interval([100] * 9)
    expect((round(low, 6), round(high, 6)), (98, 102), "what runs differ in")
    expect(harness.quantile([4, 1, 3, 2], 0.5), 2.5, "the median of an even number")


@test
def a_reader_that_goes_is_no_traceback():
    r, w = os.pipe()
    os.close(r)
    got = subprocess.run([sys.executable, os.path.join(lib.TOP, "bench/run.py"), "--list"], stdout=w,
                         stderr=subprocess.PIPE, check=False)
    os.close(w)
    expect((got.returncode, got.stderr), (141, b""), "status as of one that SIGPIPE ends, and nothing said")


@test
def runs_agree_when_their_intervals_overlap():
    import agree
    r = random.Random(3)

    def doc(shift):
        return {"metrics": [harness.Metric(f"m{i}", "x", "us", [shift(i) * r.uniform(0.9, 1.1) for _ in range(9)],
                                           [r.uniform(0.9, 1.1) for _ in range(9)]).as_json() for i in range(20)] +
                [harness.Metric("single", "x", "KiB", [shift(0)], [1.0]).as_json()]}

    names, apart = agree.compare(doc(lambda i: 1), doc(lambda i: 1))
    expect((len(names), apart), (20, []), "two runs of the same")
    _, apart = agree.compare(doc(lambda i: 1), doc(lambda i: 1 + (i == 7)))
    expect([x[0] for x in apart], ["m7"], "one metric has changed")
    with lib.Dir() as d:
        for name, shift in (("a", lambda i: 1), ("b", lambda i: 1 + i % 2)):
            with open(f"{d}/{name}", "w", encoding="ascii") as f:
                json.dump(doc(shift), f)
        tool = [sys.executable, os.path.join(lib.TOP, "bench/agree.py")]
        expect(lib.run([*tool, f"{d}/a", f"{d}/a"]).status, 0, "a file and itself")
        expect(lib.run([*tool, f"{d}/a", f"{d}/b"]).status, 1, "half of the metrics apart")
        expect(lib.run([*tool, f"{d}/a", f"{d}/none"]).status, 125, "no file")


@test
def the_model_takes_off_exits_and_faults():
    import groups

    def one(name, unit, pvm, process):
        return name, harness.Metric(name, "x", unit, [pvm], [process] if process else None).as_json()

    m = dict([one("getpgid_host", "ns", 50100, 100), one("first_touch_4k", "ns", 21000, 1000),
              one("fork_exit_wait", "ns", 2_000_000, 80_000), one("exits_fork", "", 4, None),
              one("page_faults_fork", "", 30, None)])
    got = [x.as_json() for x in groups.model(m)]
    expect([x["name"] for x in got], ["model_fork_exit_wait"], "what has counts")
    expect(round(got[0]["pvm"]["median"]), round(2_000_000 - 4 * (50_000 - 1500) - 30 * (20_000 - 700)), "ns")


def bench(*argv, env=None):
    return lib.run([sys.executable, os.path.join(lib.TOP, "bench/run.py"), *argv], 900,
                   env={"KYLINX": lib.KYLINX, "BUILD": BUILD, **(env or {})})


@test
def a_contradicted_claim_fails():
    with lib.Dir() as d:
        with open(f"{d}/good.md", "w", encoding="ascii") as f:
            f.write("| starts | <!-- bench: start_true ratio <= 100000 -->\n")
        with open(f"{d}/bad.md", "w", encoding="ascii") as f:
            f.write("# x\nstarts at once <!-- bench: start_true pvm <= 0.001 -->\n")
        r = bench("--quick", "--out", d, "--claims", f"{d}/good.md", "start")
        if r.status:
            raise AssertionError(r.why())
        doc = json.load(open(f"{d}/bench.json", encoding="utf-8"))
        names = {m["name"] for m in doc["metrics"]}
        if "start_true" not in names or any(not m["pvm"]["samples"] for m in doc["metrics"]):
            raise AssertionError(f"metrics: {names}")
        r = bench("--quick", "--out", d, "--claims", f"{d}/bad.md", "start")
        expect(r.status, 1, "status with a claim that does not hold")
        if b"bad.md:2: claims start_true pvm <= 0.001" not in r.err:
            raise AssertionError(f"the line is not named: {r.err!r}")
        r = lib.run([lib.KYLINX, "bench", "nothing"], cwd=d)
        expect((r.status, r.err.count(b"\n")), (125, 1), f"unknown group: {r.err!r}")


def example():
    """A report with all kinds of groups."""
    r = random.Random(2)

    def metric(name, group, unit, at, ratio=1.0, better="lower"):
        pvm = [at * ratio * r.uniform(0.9, 1.1) for _ in range(7)]
        return harness.Metric(name, group, unit, pvm, [at * r.uniform(0.9, 1.1) for _ in range(7)], better).as_json()

    metrics = [metric("getpid_syscall", "calls", "ns", 100, 0.2), metric("read_dev_zero", "calls", "ns", 150, 300)]
    metrics += [metric(f"fork_{n}m_{w}", "fork", "us", 30 + 10 * n, 9 / (1 + n / 16)) for n in (0, 16, 64, 256, 1024)
                for w in ("parent", "child")]
    for name, ms in (("exec", 1.2), ("machine", 0.7), ("jail", 0.8), ("end", 1.4)):
        metrics.append(harness.Metric(f"boot_{name}", "boot", "ms", [ms] * 5, None).as_json())
    for name, ms in (("exec", 1.1), ("machine", 0.9), ("end", 1.0)):
        metrics.append(harness.Metric(f"boot_cold_{name}", "boot_cold", "ms", [ms] * 5, None).as_json())
    metrics += [harness.Metric("exits_fork", "counts", "", [4.0], None).as_json(), metric("model_fork", "model", "us", 90, 4)]
    metrics += [metric(f"pss_each_of_{n}", "memory", "KiB", 200, 10) for n in (1, 2, 10, 50)]
    metrics += [harness.Metric(f"memory_each_at_{n}", "density", "KiB", [900.0 + n], None).as_json() for n in (50, 100, 500)]
    metrics += [metric("redis_get_c50", "servers", "1/s", 50000, 0.9, "higher"), metric("nginx_1k", "servers", "1/s", 20000)]
    metrics += [metric(f"fork_parent_fds_{n}", "scale", "us", 30 + n / 50) for n in (0, 100, 1000)]
    return {"schema": 1, "quick": False, "against": "process", "metrics": metrics, "failed": [],
            "skipped": [{"group": "dns", "why": "<nsd> & dnsperf"}],
            "claims": [{"file": "a.md", "line": 3, "text": "fast", "metric": "x", "field": "ratio", "op": "<=", "limit": 1.0,
                        "state": "contradicted", "found": 2.0}],
            "noise": {"load_before": 0.1, "steal": 0.0, "seconds": 10.0},
            "machine": {"date": "2026-01-01T00:00:00Z", "kernel": "6.1", "cpu": "CPU", "cpus": 2, "memory_kib": 1 << 24,
                        "kvm": "VMX", "thp": "always", "ksm": "0", "clocksource": "tsc", "libc": "glibc 2.36", "kylinx": "kylinx 0",
                        "commit": "abc"}}


# Run in the page: what a reader would see of each plot.
LOOK = """<script>
window.addEventListener('load', () => {
  const out = [];
  document.querySelectorAll('svg').forEach(s => {
    const box = s.getBoundingClientRect(), bad = [];
    const texts = [...s.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    texts.forEach(([t, b]) => { if (b.left < box.left - 1 || b.right > box.right + 1 || b.bottom > box.bottom + 1
      || b.top < box.top - 1) bad.push('outside: ' + t); });
    for (let i = 0; i < texts.length; i++) for (let k = i + 1; k < texts.length; k++) {
      const a = texts[i][1], b = texts[k][1];
      if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
        bad.push('overlap: ' + texts[i][0] + ' / ' + texts[k][0]); }
    const data = [...s.querySelectorAll('.datum')].filter(d => { const r = d.getBoundingClientRect();
      return r.width > 0 && r.height > 0; });
    out.push({label: s.getAttribute('aria-label'), data: data.length, text: texts.map(t => t[0]).join('|'), bad: bad,
      color: getComputedStyle(s.querySelector('.datum')).fill});
  });
  const pre = document.createElement('pre'); pre.id = 'seen';
  pre.textContent = JSON.stringify({plots: out, background: getComputedStyle(document.body).backgroundColor,
    wide: document.documentElement.scrollWidth > window.innerWidth, tables: document.querySelectorAll('table').length});
  document.body.appendChild(pre);
});
</script>"""


def look(chromium, d, path, *options):
    r = lib.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--enable-logging=stderr", f"--user-data-dir={d}/profile", "--virtual-time-budget=3000",
                 "--window-size=1100,900", *options, "--dump-dom", f"file://{path}"], 300,
                env={"HOME": d, "TMPDIR": d, "XDG_RUNTIME_DIR": d})
    m = re.search(rb'<pre id="seen">(.*?)</pre>', r.out, re.S)
    if not m:
        raise AssertionError(f"chromium: {r.why()}")
    console = [x for x in r.err.decode(errors="replace").splitlines() if "CONSOLE" in x]
    expect(console, [], "messages in the console")
    import html
    return json.loads(html.unescape(m[1].decode()))


@test
def the_page_in_a_browser():
    chromium = shutil.which("chromium")
    if not chromium:
        raise Skip("chromium is not installed")
    doc = example()
    page = report.html(doc)
    with lib.Dir() as d:
        with open(f"{d}/page.html", "w", encoding="utf-8") as f:
            f.write(page + LOOK)
        for options in ([], ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]):
            seen = look(chromium, d, f"{d}/page.html", *options)
            if len(seen["plots"]) < 8:
                raise AssertionError(f"{len(seen['plots'])} plots")
            for p in seen["plots"]:
                if p["bad"]:
                    raise AssertionError(f"{p['label']}: {'; '.join(p['bad'][:5])}")
                if p["data"] < 3 and "bars" not in p["label"] or not p["data"]:
                    raise AssertionError(f"{p['label']}: {p['data']} data")
                if not re.search(r"ms|µs|us|ns|KiB|1/s|×", p["text"]):
                    raise AssertionError(f"{p['label']}: no unit: {p['text']}")
            expect(seen["wide"], False, "page wider than the window")
            if options:
                expect(seen["background"], "rgb(21, 24, 27)", "background in the dark")
            else:
                expect(seen["background"], "rgb(252, 252, 251)", "background in the light")
    if "http" in re.sub(r"<title>.*?</title>", "", page):
        raise AssertionError("the page refers to the network")
    for part in ("&lt;nsd&gt; &amp; dnsperf", "Contradicted: a.md:3", "Published by others"):
        if part not in page:
            raise AssertionError(f"not on the page: {part}")


# ---- running -----------------------------------------------------------------------------------------------------

def write_golden():
    g = {"per_operation": {op: dict(zip(("exits", "hypercalls"), per_op(op, lib.KYLINX))) for op in OPS},
         "compiler": compiler(), "instructions": {c: instructions(c) for c in CALLS}}
    with open(GOLDEN, "w", encoding="ascii") as f:
        json.dump(g, f, indent=1)
        f.write("\n")
    return 0


def main():
    return write_golden() if args.golden else lib.run_tests(tests, args.only)


if __name__ == "__main__":
    sys.exit(main())
