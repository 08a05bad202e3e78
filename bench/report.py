# SPDX-License-Identifier: Apache-2.0
"""The report of a run: as text, and as one HTML page with plots (SVG) that needs nothing else."""
import html as markup
import math
import re

# Published by their authors, on their machines; not measured here.
PUBLISHED = [
    ("KylinX (ATC'18, Xen and MiniOS)", "fork of a pVM", "1.3 ms"),
    ("KylinX (ATC'18, Xen and MiniOS)", "linking a library at run time", "a few ms"),
    ("µFork (CheriBSD, one address space)", "fork", "54 µs"),
    ("Nephele (Xen, unikernels)", "clone of a VM", "24 to 40 ms"),
    ("Nephele (Xen, unikernels)", "fork of Redis with no keys, with a million", "10.6 ms, 70.4 ms"),
    ("Kontain KM (KVM, bare metal and nested)", "one hypercall", "3.2 µs, 33.7 µs"),
    ("TinyKVM (KVM)", "a request with its fork reset, against natively", "28 µs, 13 µs"),
    ("gVisor (KVM platform)", "one system call", "0.8 µs"),
    ("Firecracker", "start of a VM until its init", "125 ms at most"),
]
TITLES = {"calls": "System calls", "faults": "Memory faults", "fork": "fork", "exec": "exec", "threads": "Threads",
          "start": "Start of a program, start to exit", "boot": "Where a start's time goes",
          "boot_cold": "The same with an empty store", "memory": "Memory of a pVM",
          "density": "Many idle pVMs", "servers": "Servers", "scale": "How costs grow", "peers": "Others, the same run",
          "counts": "Exits and page faults of one", "model": "With VMX or SVM: computed from counts, not measured",
          "ipc": "IPC between processes", "sync": "Synchronisation between processes", "lib": "Libraries"}


def num(v):
    if v is None or isinstance(v, float) and math.isnan(v):
        return "-"
    a = abs(v)
    return f"{v:,.0f}" if a >= 100 else f"{v:.1f}" if a >= 10 else f"{v:.2f}" if a >= 0.1 or a == 0 else f"{v:.4f}"


def groups(doc):
    out = {}
    for m in doc["metrics"]:
        out.setdefault(m["group"], []).append(m)
    return out


def text(doc):
    lines = []
    m = doc["machine"]
    other = "process" if doc["against"] == "process" else "base"
    lines.append(f"{m['kylinx']} at {m['commit']}, Linux {m['kernel']}, {m['cpu']}, {m['cpus']} CPUs, KVM: {m['kvm']}")
    n = doc["noise"]
    lines.append(f"load before {n['load_before']:.2f}, CPU time taken by the host below {n['steal'] * 100:.1f} %, "
                 f"{n['seconds']:.0f} s" + (", quick" if doc["quick"] else ""))
    for name, metrics in groups(doc).items():
        lines.append("")
        lines.append(f"{TITLES.get(name, name):<40} {'pVM':>12} {other:>12}       {'ratio':>7}  interval")
        for v in metrics:
            row = f"  {v['name']:<38} {num(v['pvm']['median']):>12}"
            if "ratio" in v:
                r = v["ratio"]
                row += (f" {num(v['process']['median']):>12} {v['unit']:<5} {num(r['median']):>7}"
                        f"  [{num(r['low'])} .. {num(r['high'])}]" + ("  noisy" if v["noisy"] else ""))
            else:
                row += f" {'':>12} {v['unit']}"
            if v["better"] == "higher":
                row += "  (more is better)"
            lines.append(row.rstrip())
    for s in doc["skipped"]:
        lines.append(f"skipped: {s['group']}: {s['why']}")
    for s in doc["failed"]:
        lines.append(f"failed: {s['group']}: {s['why']}")
    noisy = [v["name"] for v in doc["metrics"] if v.get("noisy")]
    if noisy or n["steal"] > 0.05 or n["load_before"] > 1:
        lines.append(f"This machine was noisy: {len(noisy)} metrics whose process's runs spread by more than half of "
                     "their median. Trust ratios, not times.")
    for c in doc["claims"]:
        lines.append(f"claim {c['file']}:{c['line']}: {c['metric']} {c['field']} {c['op']} {c['limit']:g}: {c['state']}"
                     + (f" ({num(c['found'])})" if c["found"] is not None else ""))
    return "\n".join(lines) + "\n"


# ---- Plots -------------------------------------------------------------------------------------------------------

STYLE = """
:root { --bg: #fcfcfb; --fg: #1b1f24; --dim: #5c6670; --line: #d8dcdf; --pvm: #0b6e99; --proc: #c4611f; --band: #0b6e9933;
  --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --bg: #15181b; --fg: #e6e8ea; --dim: #9aa4ad; --line: #363c42;
  --pvm: #5db9e0; --proc: #e79a5f; --band: #5db9e033; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { background: var(--bg); color: var(--fg); font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p, li { color: var(--fg); } .dim { color: var(--dim); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
td, th { padding: .2rem .6rem .2rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; white-space: normal; }
th { font-weight: 600; color: var(--dim); } .bad { color: var(--bad); font-weight: 600; }
.wide { overflow-x: auto; } figure { margin: .5rem 0 1rem; overflow-x: auto; }
svg { display: block; width: 100%; min-width: 34rem; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--fg); } svg .dim { fill: var(--dim); } svg .grid { stroke: var(--line); }
svg .one { stroke: var(--dim); stroke-dasharray: 4 3; }
svg .pvm { fill: var(--pvm); } svg .proc { fill: var(--proc); } svg .lpvm { stroke: var(--pvm); } svg .lproc {
  stroke: var(--proc); }
svg .lpvm, svg .lproc { fill: none; stroke-width: 2; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin: 0 .3em 0 .8em; }
"""


def esc(s):
    return markup.escape(str(s), quote=True)


class Svg:
    def __init__(self, width, height, label):
        self.parts, self.width, self.height, self.label = [], width, height, label

    def line(self, x1, y1, x2, y2, cls="grid"):
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{cls}"/>')

    def text(self, x, y, s, anchor="start", cls=""):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{cls}">{esc(s)}</text>')

    def rect(self, x, y, w, ht, cls, title=""):
        self.parts.append(f'<rect class="{cls} datum" x="{x:.1f}" y="{y:.1f}" width="{max(w, 0.5):.1f}" '
                          f'height="{ht:.1f}" rx="2"><title>{esc(title)}</title></rect>')

    def dot(self, x, y, cls, title=""):
        self.parts.append(f'<circle class="{cls} datum" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{esc(title)}</title></circle>')

    def path(self, points, cls):
        self.parts.append(f'<polyline class="{cls}" points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + '"/>')

    def done(self):
        return (f'<figure><svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{esc(self.label)}">'
                + "".join(self.parts) + "</svg></figure>")


def log_ticks(low, high):
    return [10.0 ** e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def ratio_plot(metrics):
    """Every ratio on one logarithmic axis, so that better than a process is left of the line."""
    rows = []
    for m in metrics:
        r = m.get("ratio")
        if not r or not r["median"] > 0 or not r["low"] > 0:
            continue
        v = (r["median"], r["low"], r["high"])
        rows.append((m, v if m["better"] == "lower" else tuple(1 / x for x in v)))
    if not rows:
        return ""
    ticks = log_ticks(min(min(v[1], v[2], 0.5) for _, v in rows), max(max(v[1], v[2], 2) for _, v in rows))
    left, right, top, step = 300, 860, 26, 18
    s = Svg(900, top + step * len(rows) + 34, "cost of a pVM relative to a process, by metric")
    span = math.log10(ticks[-1] / ticks[0])

    def x(v):
        return left + (right - left) * math.log10(v / ticks[0]) / span

    for t in ticks:
        s.line(x(t), top - 8, x(t), top + step * len(rows), "one" if t == 1 else "grid")
        s.text(x(t), top - 12, f"{t:g}×", "middle", "dim")
    for i, (m, v) in enumerate(rows):
        y = top + step * i + 9
        s.text(left - 10, y + 4, m["name"], "end")
        s.line(x(min(v[1:])), y, x(max(v[1:])), y, "lpvm")
        s.dot(x(v[0]), y, "pvm", f"{m['name']}: {num(v[0])}× [{num(min(v[1:]))} .. {num(max(v[1:]))}]")
    s.text((left + right) / 2, s.height - 8, "time of the pVM / time of the process (of rates: the inverse)", "middle",
           "dim")
    return s.done()


def bars(metrics, unit):
    """Pairs of bars from zero."""
    top, step, left, right = 8, 34, 300, 800
    high = max(max(m["pvm"]["median"], m.get("process", m["pvm"])["median"]) for m in metrics) or 1
    s = Svg(900, top + step * len(metrics) + 26, f"bars, {unit}")
    for i, m in enumerate(metrics):
        y = top + step * i
        s.text(left - 10, y + 17, m["name"], "end")
        for k, (cls, key) in enumerate((("pvm", "pvm"), ("proc", "process"))):
            if key not in m:
                continue
            v = m[key]["median"]
            w = (right - left) * v / high
            s.rect(left, y + 2 + 13 * k, w, 11, cls, f"{m['name']}, {key}: {num(v)} {unit}")
            s.text(left + w + 6, y + 12 + 13 * k, f"{num(v)} {unit}", "start", "dim")
    s.text(left, s.height - 6, f"{unit}, from 0", "start", "dim")
    return s.done()


def curves(series, xlabel, ylabel):
    """Lines over a logarithmic y; x as categories. series: [(name, class, {x: y})]."""
    xs = sorted({x for _, _, d in series for x in d})
    ys = [y for _, _, d in series for y in d.values() if y > 0]
    if len(xs) < 2 or not ys:
        return ""
    ticks = log_ticks(min(ys), max(ys) * 1.01)
    left, right, top, bottom = 90, 700, 34, 250
    s = Svg(900, 300, f"{ylabel} by {xlabel}")

    def px(v):
        return left + (right - left) * xs.index(v) / (len(xs) - 1)

    def py(v):
        return bottom - (bottom - top) * math.log10(v / ticks[0]) / max(math.log10(ticks[-1] / ticks[0]), 1e-9)

    for t in ticks:
        s.line(left, py(t), right, py(t))
        s.text(left - 8, py(t) + 4, f"{t:g}", "end", "dim")
    for v in xs:
        s.text(px(v), bottom + 18, f"{v:g}", "middle", "dim")
    ends = []
    for name, cls, d in series:
        points = [(px(k), py(v)) for k, v in sorted(d.items()) if v > 0]
        if not points:
            continue
        s.path(points, "l" + cls)
        for (a, b), (k, v) in zip(points, sorted(d.items())):
            s.dot(a, b, cls, f"{name}, {k:g}: {num(v)}")
        at = points[-1][1]
        while any(abs(at - e) < 14 for e in ends):
            at += 14
        ends.append(at)
        s.text(points[-1][0] + 12, at + 4, name)
    s.text((left + right) / 2, bottom + 38, xlabel, "middle", "dim")
    s.text(10, 14, ylabel, "start", "dim")
    return s.done()


def waterfall(metrics):
    left, right, top, step = 190, 800, 8, 24
    total = sum(m["pvm"]["median"] for m in metrics) or 1
    s = Svg(900, top + step * len(metrics) + 30, "steps of a start, ms")
    at = 0.0
    for i, m in enumerate(metrics):
        v = m["pvm"]["median"]
        x, w = left + (right - left) * at / total, (right - left) * v / total
        s.text(left - 10, top + step * i + 14, m["name"].removeprefix(m["group"] + "_"), "end")
        s.rect(x, top + step * i + 3, w, 14, "pvm", f"{m['name']}: {v:.2f} ms")
        s.text(x + w + 6, top + step * i + 14, f"{v:.2f} ms", "start", "dim")
        at += v
    s.text(left, s.height - 8, f"ms since the start of kylinx; {total:.1f} ms in all", "start", "dim")
    return s.done()


def by_number(metrics, pattern, unit_scale=1.0):
    """[(label, side class, {number: median})] of metrics named by pattern, which has groups for label and number."""
    out = {}
    for m in metrics:
        k = re.fullmatch(pattern, m["name"])
        if not k:
            continue
        for cls, key in (("pvm", "pvm"), ("proc", "process")):
            if key in m:
                name = f"{k['label']}, {'pVM' if cls == 'pvm' else 'process'}"
                out.setdefault((name, cls), {})[float(k["n"])] = m[key]["median"] * unit_scale
    return [(name, cls, d) for (name, cls), d in out.items()]


def table(metrics, other):
    rows = [f"<tr><th>metric</th><th>pVM</th><th>{other}</th><th>unit</th><th>ratio</th><th>interval</th></tr>"]
    for m in metrics:
        r = m.get("ratio")
        rows.append(f"<tr><td>{esc(m['name'])}{' (more is better)' if m['better'] == 'higher' else ''}"
                    f"{': ' + esc(m['note']) if m.get('note') else ''}</td><td>{num(m['pvm']['median'])}</td>"
                    f"<td>{num(m['process']['median']) if r else ''}</td><td>{esc(m['unit'])}</td>"
                    f"<td>{num(r['median']) if r else ''}</td>"
                    f"<td>{num(r['low']) + ' .. ' + num(r['high']) if r else ''}{' noisy' if m.get('noisy') else ''}</td></tr>")
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def plots(name, metrics):
    if name in ("boot", "boot_cold"):
        return waterfall(metrics)
    if name == "fork":
        return curves(by_number(metrics, r"(?P<label>fork)_(?P<n>\d+)m_parent"), "MiB written before", "µs, parent") + \
            curves(by_number(metrics, r"(?P<label>fork)_(?P<n>\d+)m_child"), "MiB written before", "µs, child runs")
    if name == "memory":
        return curves(by_number(metrics, r"(?P<label>pss)_each_of_(?P<n>\d+)"), "pVMs or processes alive",
                      "KiB of PSS each")
    if name == "density":
        return curves(by_number(metrics, r"(?P<label>memory)_each_at_(?P<n>\d+)"), "idle pVMs alive", "KiB each")
    if name == "scale":
        return "".join(curves(by_number(metrics, rf"(?P<label>fork_parent|fork_wait)_{k}_(?P<n>\d+)"), label, "µs")
                       for k, label in (("fds", "descriptors open"), ("threads", "more threads")))
    metrics = [m for m in metrics if not m["name"].endswith("_emulated")]
    out = ""
    for unit in dict.fromkeys(m["unit"] for m in metrics):
        same = [m for m in metrics if m["unit"] == unit]
        values = [v for m in same for v in (m["pvm"]["median"], m.get("process", m["pvm"])["median"]) if v > 0]
        # From zero, very unequal bars show nothing; the overview has their ratios.
        if unit and values and (max(values) / min(values) < 200 or len(same) == 1):
            out += bars(same, unit)
    return out


def html(doc):
    m, n = doc["machine"], doc["noise"]
    other = "process" if doc["against"] == "process" else "base"
    b = [f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
         f"<title>KylinX bench, {esc(m['commit'])}</title><style>{STYLE}</style>",
         f"<h1>KylinX against ordinary {'processes' if other == 'process' else 'another build'}</h1>",
         f"<p class=dim>{esc(m['kylinx'])}, commit {esc(m['commit'])}, {esc(m['date'])}. Linux {esc(m['kernel'])}, "
         f"{esc(m['cpu'])}, {m['cpus']} CPUs, {m['memory_kib'] // 1048576} GiB, KVM: {esc(m['kvm'])}, THP {esc(m['thp'])}, KSM {esc(m['ksm'])}, "
         f"clock {esc(m['clocksource'])}, {esc(m['libc'])}. Load before {n['load_before']:.2f}; "
         f"{n['steal'] * 100:.1f} % of CPU time was taken by the host below; {n['seconds']:.0f} s.</p>",
         "<p>Both sides ran by turns in one run. Medians; the interval holds the median of the pairs' ratios. "
         f"<span class=key style='background:var(--pvm)'></span>pVM<span class=key style='background:var(--proc)'></span>"
         f"{other}</p>"]
    bad = [c for c in doc["claims"] if c["state"] == "contradicted"]
    for c in bad:
        b.append(f"<p class=bad>Contradicted: {esc(c['file'])}:{c['line']}: {esc(c['text'])} (measured {num(c['found'])})</p>")
    noisy = sum(1 for v in doc["metrics"] if v.get("noisy"))
    if noisy or n["steal"] > 0.05 or n["load_before"] > 1:
        b.append(f"<p class=bad>The machine was noisy: {noisy} of {len(doc['metrics'])} metrics are marked. Trust ratios, "
                 "not times.</p>")
    b.append("<h2>Overview: ratio of pVM to " + other + "</h2>" + ratio_plot(doc["metrics"]))
    for name, metrics in groups(doc).items():
        b.append(f"<h2>{esc(TITLES.get(name, name))}</h2>{plots(name, metrics)}{table(metrics, other)}")
    b.append("<h2>Published by others, not measured here</h2><div class=wide><table><tr><th>system</th><th>what</th>"
             "<th>figure</th></tr>" + "".join(f"<tr><td>{esc(a)}</td><td>{esc(w)}</td><td>{esc(v)}</td></tr>"
                                              for a, w, v in PUBLISHED) + "</table></div>")
    if doc["claims"]:
        b.append("<h2>Claims</h2><div class=wide><table><tr><th>where</th><th>claim</th><th>found</th><th>state</th></tr>"
                 + "".join(f"<tr><td>{esc(c['file'])}:{c['line']}</td><td>{esc(c['metric'])} {c['field']} {esc(c['op'])} "
                           f"{c['limit']:g}</td><td>{num(c['found'])}</td><td>{c['state']}</td></tr>" for c in doc["claims"])
                 + "</table></div>")
    for kind in ("skipped", "failed"):
        if doc[kind]:
            b.append(f"<h2>{kind.capitalize()}</h2><ul>" + "".join(
                f"<li>{esc(s['group'])}: {esc(s['why'])}</li>" for s in doc[kind]) + "</ul>")
    return "\n".join(b) + "\n"
