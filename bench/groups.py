# SPDX-License-Identifier: Apache-2.0
"""What is measured: groups of metrics. Each group is a function that yields harness.Metric objects."""
import glob
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import harness as h
import loops
from harness import Metric, Skip

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.abspath(os.environ.get("BUILD", os.path.join(HERE, "..", "build")))
PROGRAMS = os.path.realpath(os.environ.get("KX_BENCH_PROGRAMS", os.path.join(BUILD, "bench")))
KYLINX = os.path.abspath(os.environ.get("KYLINX", os.path.join(BUILD, "kylinx")))


class Plan:
    """How much is measured: quick or not, and by which kylinx. All is measured in rounds, minutes apart, so that the
    intervals hold what drifts as well: 9 pairs for small things, 6 for servers."""

    def __init__(self, quick=False, kylinx=KYLINX, base=None):
        self.quick, self.kylinx, self.base = quick, kylinx, base
        self.rounds = 1 if quick else 3
        self.micro = 3  # pairs in a round
        self.servers = 1 if quick or base else 2

    def argv(self, side, argv, *options):
        """The command line of one side. With a base, 'process' is the base's kylinx (bench-compare)."""
        if side == "pvm":
            return [self.kylinx, "run", *options, "--", *argv]
        return [self.base, "run", *options, "--", *argv] if self.base else argv


def program(name):
    path = os.path.join(PROGRAMS, name)
    if not os.access(path, os.X_OK):
        raise Skip(f"{path} was not built")
    return path


def plain_dir():
    """A directory to start programs in, so that the default view is small."""
    return tempfile.TemporaryDirectory(prefix="kylinx-bench-")


def from_program(plan, group, name, args=(), unit="us", both=False, count=None, timeout=180):
    """Metrics of a program that prints its own medians."""
    prog = program(name)
    which = h.cpus()[-2:] if both else h.cpus()[-1:]
    got = h.pairs(lambda s: h.numbers(h.run(h.pinned(plan.argv(s, [prog, *args]), which), timeout)),
                  count or plan.micro, warm=0 if plan.quick else 1)
    for metric, (pvm, native) in got.items():
        yield Metric(metric, group, unit, pvm, native)


def calls(plan):
    yield from from_program(plan, "calls", "calls", unit="ns")
    # With a CPU to spare, a service thread answers the monitor's calls without exits (`--io auto`).
    for m in from_program(plan, "calls", "calls", unit="ns", both=True, count=2 if plan.quick else 3):
        if m.name in ("getpgid_host", "read_dev_zero", "mmap_munmap_64k"):
            m.name += "_two_cpus"
            yield m


def faults(plan):
    yield from from_program(plan, "faults", "faults", unit="ns", count=2 if plan.quick else 3)


def fork(plan):
    for mib in (0, 64) if plan.quick else (0, 16, 64, 256, 1024):
        yield from from_program(plan, "fork", "fork", [str(mib)], count=2 if plan.quick else 3)


def exec_(plan):
    yield from from_program(plan, "exec", "exec", count=2 if plan.quick else 3)


def threads(plan):
    yield from from_program(plan, "threads", "threads")


def ipc(plan):
    """Two processes, each on a CPU of its own, then both on one: pipes, socket pairs, queues."""
    for kind in ("pipe", "socketpair", "sysv_msg", "posix_mq"):
        for both, args in ((True, [kind]), (False, [kind, "one"])):
            for m in from_program(plan, "ipc", "ipc", args, both=both, count=3):
                if m.name.startswith("mb_per_s"):
                    m.unit, m.better = "MB/s", "higher"
                m.name = f"{kind}_{m.name}"
                yield m


def sync(plan):
    """Round trips between two processes, on one CPU and on two."""
    yield from from_program(plan, "sync", "sync", ["300" if plan.quick else "2000"], unit="ns", both=True,
                            count=2 if plan.quick else 3)


def scale(plan):
    steps = ("0", "100", "1000") if plan.quick else ("0", "100", "1000", "10000")
    yield from from_program(plan, "scale", "scale", ["fds", *steps], count=2 if plan.quick else 3)
    steps = ("0", "4") if plan.quick else ("0", "4", "16", "64")
    yield from from_program(plan, "scale", "scale", ["threads", *steps], count=2 if plan.quick else 3)


# ---- Start of a program ------------------------------------------------------------------------------------------


def start_to_exit(argv):
    a = time.perf_counter()
    h.run(argv)
    return (time.perf_counter() - a) * 1e3


def start(plan):
    prog = program("start")
    for metric, argv in (("hello", [prog]), ("true", ["/bin/true"]), ("sh", ["/bin/sh", "-c", ":"]),
                         ("python3", ["/usr/bin/python3", "-c", "pass"])):
        if not shutil.which(argv[0]):
            continue
        got = h.pairs(lambda s, argv=argv: {metric: start_to_exit(plan.argv(s, argv))},
                      plan.micro if plan.quick else 2 * plan.micro, warm=2)
        yield Metric(f"start_{metric}", "start", "ms", *got[metric])


def boot(plan):
    """The steps from the start of kylinx to the end of hello world; by --stats, main()'s own clock, and ours. Once with
    the store that holds its texts, once with an empty one."""
    prog = program("start")
    with tempfile.TemporaryDirectory(prefix="kylinx-bench-") as d:
        stores = {"boot": "warm", "boot_cold": "cold"}
        steps = {name: {} for name in stores}
        for i in range(2 + (1 if plan.quick else 2) * plan.micro):
            for name, which in stores.items():
                store = f"{d}/{which}"
                if which == "cold":
                    shutil.rmtree(store, ignore_errors=True)
                one = boot_steps(plan, prog, f"{d}/stats", dict(os.environ, KYLINX_STORE=store))
                if i >= 2:
                    for k, v in one.items():
                        steps[name].setdefault(k, []).append(v / 1e6)
    for name, all_ in steps.items():
        for k, v in all_.items():
            yield Metric(f"{name}_{k}", name, "ms", v, None)


def boot_steps(plan, prog, stats_file, env):
    """Nanoseconds by step of one start."""
    a = time.monotonic_ns()
    out = h.run(plan.argv("pvm", [prog], f"--stats={stats_file}"), env=env)
    b = time.monotonic_ns()
    with open(stats_file, encoding="ascii") as g:
        stats = json.load(g)
    at = stats["start_ns"]
    one = {"exec": at - a, **stats["boot_ns"]}
    main = h.numbers(out)["main_ns"]
    at += sum(stats["boot_ns"].values())
    one["ld.so, libc"] = main - at
    one["main"] = stats["start_ns"] + stats["wall_ns"] - main
    one["end"] = b - stats["start_ns"] - stats["wall_ns"]
    return one


# ---- Counts, for the model ---------------------------------------------------------------------------------------

# What one of each costs in exits and page faults, and the metric that has its time.
COUNTED = {"mmap": "mmap_munmap_64k", "open": None, "signal": "signal_to_self", "thread": "thread_create_join",
           "fork": "fork_exit_wait", "spawn": "spawn_wait"}


def counted(plan, argv):
    """Exits and page faults of a run and all that it has started."""
    with tempfile.NamedTemporaryFile(prefix="kylinx-bench-") as f:
        h.run(plan.argv("pvm", argv, f"--stats={f.name}", "--io", "exit"))
        with open(f.name, encoding="ascii") as g:
            stats = json.load(g)
    return stats["exits"], stats["page_faults"]


def counts(plan):
    """They depend on the program and on KylinX, not on the machine; page faults somewhat on its memory."""
    ops = program("ops")
    for op in COUNTED:
        few, many = counted(plan, [ops, op, "4"]), counted(plan, [ops, op, "20"])
        for what, a, b in zip(("exits", "page_faults"), few, many):
            yield Metric(f"{what}_{op}", "counts", "", [(b - a) / 16], None)
    for name, argv in (("start_hello", [program("start")]), ("start_python3", ["/usr/bin/python3", "-c", "pass"])):
        if os.access(argv[0], os.X_OK):
            for what, v in zip(("exits", "page_faults"), counted(plan, argv)):
                yield Metric(f"{what}_{name}", "counts", "", [v], None)


# Microseconds of an exit, and of a page fault beyond a process's, where VMX or SVM run the guest.
VMX_EXIT, VMX_FAULT = 1.5, 0.7


def model(metrics):
    """What the measured would be with VMX or SVM: less its exits and page faults as they cost here, plus as they cost
    there. Computed, with all else as it is. metrics: those measured, as JSON, by name."""
    scale = {"ns": 1e3, "us": 1.0, "ms": 1e-3}

    def us(name, side):
        m = metrics[name]
        return m[side]["median"] / scale[m["unit"]]

    try:
        exit_ = us("getpgid_host", "pvm") - us("getpgid_host", "process")
        fault = us("first_touch_4k", "pvm") - us("first_touch_4k", "process")
    except KeyError:
        return
    todo = dict({m: op for op, m in COUNTED.items() if m}, start_hello="start_hello", start_python3="start_python3")
    for name, op in todo.items():
        if name not in metrics or f"exits_{op}" not in metrics or "process" not in metrics[name]:
            continue
        exits, faults_ = (metrics[f"{k}_{op}"]["pvm"]["median"] for k in ("exits", "page_faults"))
        saved = exits * (exit_ - VMX_EXIT) + faults_ * (fault - VMX_FAULT)
        unit = metrics[name]["unit"]
        left = max(us(name, "pvm") - saved, exits * VMX_EXIT + faults_ * VMX_FAULT)
        yield Metric(f"model_{name}", "model", unit, [left * scale[unit]], [us(name, "process") * scale[unit]],
                     note=f"{exits:g} exits, {faults_:.0f} page faults")


# ---- Memory ------------------------------------------------------------------------------------------------------


def pss(pid):
    """Proportional set size of a process, KiB: what it costs the host, shared pages divided among who maps them."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
        for line in f:
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def asleep(plan, side, count, argv):
    """count processes that sleep, started one after the other; each has printed a line before the next is started."""
    all_ = []
    try:
        for _ in range(count):
            p = subprocess.Popen(plan.argv(side, argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL)
            all_.append(p)
            if not p.stdout.readline():
                raise RuntimeError(f"number {len(all_)} did not start")
    except BaseException:
        end(all_)
        raise
    return all_


def end(processes):
    for p in processes:
        p.send_signal(signal.SIGKILL)
    for p in processes:
        p.wait()
        p.stdout.close()


def free_kib():
    with open("/proc/meminfo", encoding="ascii") as f:
        v = dict((line.split(":")[0], int(line.split()[1])) for line in f)
    return v["MemAvailable"]


def memory(plan):
    prog = program("start")
    counts = (1, 2, 10, 50) if plan.quick else (1, 2, 10, 50, 200)
    for n in counts:
        v = {}
        for s in ("pvm", "process"):
            ps = asleep(plan, s, n, [prog, "600"])
            try:
                v[s] = sum(pss(p.pid) for p in ps) / n
            finally:
                end(ps)
        yield Metric(f"pss_each_of_{n}", "memory", "KiB", [v["pvm"]], [v["process"]])
    for n in (10,) if plan.quick else (10, 100):
        v = {}
        for s in ("pvm", "process"):
            ps = asleep(plan, s, 1, [prog, "600", str(n)])
            try:
                v[s] = sum(map(pss, [ps[0].pid, *children(ps[0].pid)])) / (n + 1)
            finally:
                for pid in children(ps[0].pid):
                    os.kill(pid, signal.SIGKILL)
                end(ps)
        yield Metric(f"pss_each_of_forked_{n}", "memory", "KiB", [v["pvm"]], [v["process"]])


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
        return list(map(int, f.read().split()))


def density(plan):
    """Idle pVMs until 1,000 or 90 % of memory; what each costs by what the host has left, and how long the last took."""
    prog = program("start")
    limit = 100 if plan.quick else 1000
    first = free_kib()
    batch, took, free = 50, [], []
    ps = []
    try:
        while len(ps) < limit and free_kib() > first / 10:
            a = time.perf_counter()
            ps += asleep(plan, "pvm", batch, [prog, "600"])
            took.append((time.perf_counter() - a) * 1e3 / batch)
            free.append((len(ps), (first - free_kib()) / len(ps)))
    finally:
        end(ps)
    for (n, kib), ms in zip(free, took):
        if n in (50, 100, 200, 500, limit) or n == len(ps):
            yield Metric(f"memory_each_at_{n}", "density", "KiB", [kib], None)
            yield Metric(f"start_at_{n}", "density", "ms", [ms], None)


# ---- Servers -----------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A server, up when its port accepts; .cpu, the CPU seconds of it and its waited-for children, and, of a pVM, .stats
    after the block."""

    def __init__(self, plan, side, argv, port, *options):
        self.stats_file = tempfile.NamedTemporaryFile(prefix="kylinx-bench-")
        extra = [f"--stats={self.stats_file.name}"] if side == "pvm" or plan.base else []
        self.argv, self.port, self.stats, self.cpu = plan.argv(side, argv, *options, *extra), port, {}, 0.0

    def __enter__(self):
        self.log = tempfile.TemporaryFile()
        self.p = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, cwd="/",
                                  start_new_session=True)
        end_ = time.monotonic() + 30
        while time.monotonic() < end_ and self.p.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                time.sleep(0.02)
        self.log.seek(0)
        text = self.log.read().decode(errors="replace").strip().splitlines()
        self.__exit__()
        raise RuntimeError(f"{self.argv[-1]}: not listening: {text[-1] if text else ''}")

    def __exit__(self, *_):
        if self.p.poll() is None:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            self.p.terminate()
            try:
                self.p.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.p.pid, signal.SIGKILL)
                self.p.wait()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            self.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.log.close()
        self.stats_file.seek(0)
        text = self.stats_file.read()
        self.stats = json.loads(text) if text else {}
        self.stats_file.close()


def served(plan, once, exits):
    """Rates of once(side), and by their ends _p50, _p99, _p999, _stall in ms and _cpu in us; exits per request, which it
    has added by name to exits."""
    for name, (pvm, native) in h.pairs(once, plan.servers, warm=0).items():
        end_ = name.rsplit("_", 1)[-1]
        unit = "ms" if end_ in ("p50", "p99", "p999", "stall") else "us" if end_ == "cpu" else "1/s"
        yield Metric(name, "servers", unit, pvm, native, "higher" if unit == "1/s" else "lower")
    for name, v in exits.items():
        yield Metric(name, "servers", "", v, None)


def redis_benchmark(port, op, clients, pipeline, size, seconds):
    """Requests made, per second, and the p99 in ms: as many as take so many seconds."""
    def one(n):
        text = h.run(["redis-benchmark", "-p", str(port), "-t", op, "-n", str(n), "-c", str(clients), "-P", str(pipeline),
                      "-d", str(size), "--csv"])
        v = [x.strip('"') for x in text.splitlines()[-1].split(",")]
        return float(v[1]), float(v[6])
    few = 2000 * max(1, pipeline // 4)
    n = max(few, int(one(few)[0] * seconds))
    rate, p99 = one(n)
    return few + n, rate, p99


def redis(plan):
    for p in ("redis-server", "redis-benchmark"):
        if not shutil.which(p):
            raise Skip(f"{p} is not installed")
    seconds = 0.3 if plan.quick else 0.6
    runs = [("set,get", 50, 1, 64)] if plan.quick or plan.base else \
        [("set,get", 1, 1, 64), ("set,get,lpush,mset", 50, 1, 64), ("set,get", 50, 16, 64), ("set,get", 50, 1, 4096),
         ("set,get", 500, 1, 64)]
    exits = {}

    def once(side):
        out = {}
        port = free_port()
        argv = ["redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1", "--daemonize", "no"]
        for ops, clients, pipeline, size in runs:
            what = f"c{clients}_P{pipeline}_{size}b"
            done = 0
            with Server(plan, side, argv, port) as s:
                for op in ops.split(","):
                    n, rate, p99 = redis_benchmark(port, op, clients, pipeline, size, seconds)
                    done += n
                    out[f"redis_{op}_{what}"] = rate
                    out[f"redis_{op}_{what}_p99"] = p99
            out[f"redis_{what}_cpu"] = s.cpu / done * 1e6
            if side == "pvm":
                exits.setdefault(f"redis_exits_per_request_{what}", []).append(s.stats["exits"] / done)
        return out

    yield from served(plan, once, exits)
    if not plan.quick and not plan.base:
        yield from served(plan, lambda side: bgsave(plan, side), {})


def bgsave(plan, side, mib=1024):
    """What a client that asks one thing after the other meets while a child of the server writes mib MiB."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="kylinx-bench-") as d:
        argv = ["redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1", "--daemonize", "no", "--dir", d,
                "--enable-debug-command", "yes", "--rdbcompression", "no"]
        options = ["--volume", f"{d}:{d}"] if side == "pvm" or plan.base else []
        with Server(plan, side, argv, port, *options):
            with socket.create_connection(("127.0.0.1", port), 60) as c:
                ask(c, "DEBUG", "POPULATE", str(mib << 10), "key", "1000")
                took = []
                if b"started" not in ask(c, "BGSAVE"):
                    raise RuntimeError("redis: BGSAVE was refused")
                begin = time.perf_counter()
                i = 0
                while time.perf_counter() - begin < 3:
                    a = time.perf_counter()
                    ask(c, "SET", f"key:{i % (mib << 10)}", "x" * 1000)
                    took.append((time.perf_counter() - a) * 1e3)
                    i += 7919
    return {f"redis_bgsave_{mib}m_{n}": h.quantile(took, q)
            for n, q in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("stall", 1.0))}


def ask(c, *words):
    """One command of Redis's protocol and its reply of one line."""
    c.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words))
    got = b""
    while not got.endswith(b"\r\n"):
        part = c.recv(65536)
        if not part:
            raise RuntimeError("redis: closed the connection")
        got += part
    if got.startswith(b"-"):
        raise RuntimeError(f"redis: {got.decode().strip()}")
    return got


def memcached(plan):
    """50 connections, each with one request at a time, by load.c."""
    if not shutil.which("memcached"):
        raise Skip("memcached is not installed")
    load = program("load")
    exits = {}

    def once(side):
        out = {}
        for threads_ in (1, 4):
            port = free_port()
            argv = ["memcached", "-u", "nobody", "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-t", str(threads_)]
            with Server(plan, side, argv, port) as s:
                seconds = 0.5 if plan.quick else 1
                rate, _, p99 = map(float, h.run([load, str(port), "50", str(seconds), "get k\r\n", "5"]).split())
            out[f"memcached_get_c50_t{threads_}"], out[f"memcached_get_c50_t{threads_}_p99"] = rate, p99 / 1e3
            done = rate * seconds
            out[f"memcached_c50_t{threads_}_cpu"] = s.cpu / done * 1e6
            if side == "pvm":
                exits.setdefault(f"memcached_exits_per_request_t{threads_}", []).append(s.stats["exits"] / done)
        return out

    yield from served(plan, once, exits)


def nginx(plan):
    for p in ("nginx", "ab"):
        if not shutil.which(p, path=os.environ.get("PATH", "") + ":/usr/sbin"):
            raise Skip(f"{p} is not installed")
    with tempfile.TemporaryDirectory(prefix="kylinx-bench-") as d:
        os.chmod(d, 0o755)
        port = free_port()
        os.mkdir(f"{d}/www")
        for name, size in (("1k", 1024), ("1m", 1 << 20)):
            with open(f"{d}/www/{name}", "wb") as f:
                f.write(b"x" * size)
        with open(f"{d}/nginx.conf", "w", encoding="ascii") as f:
            f.write(f"daemon off; pid {d}/pid; error_log {d}/error.log; worker_processes 1; user root;\n"
                    f"events {{ worker_connections 1024; }}\n"
                    f"http {{ access_log off; sendfile on; keepalive_requests 1000000; client_body_temp_path {d}/t1;"
                    f" proxy_temp_path {d}/t2; fastcgi_temp_path {d}/t3; uwsgi_temp_path {d}/t4; scgi_temp_path {d}/t5;"
                    f" server {{ listen 127.0.0.1:{port};"
                    f" root {d}/www; }} }}\n")
        exits = {}

        def once(side):
            out = {}
            for name, keep, n in (("1k", True, 4000), ("1k", False, 2000), ("1m", True, 300)):
                n = n // 4 if plan.quick else n
                with Server(plan, side, ["nginx", "-c", f"{d}/nginx.conf"], port,
                            *(["--volume", f"{d}:{d}", "--volume", f"{d}/www:{d}/www:ro"] if side == "pvm" or plan.base else [])) as s:
                    text = h.run(["ab", "-q", "-n", str(n), "-c", "50", *(["-k"] if keep else []),
                                  f"http://127.0.0.1:{port}/{name}"])
                key = f"nginx_{name}_{'keepalive' if keep else 'close'}"
                for line in text.splitlines():
                    if line.startswith("Requests per second"):
                        out[key] = float(line.split()[3])
                    if line.startswith("Failed requests") and int(line.split()[2]):
                        raise RuntimeError(f"nginx: {line}")
                    if line.strip().startswith("99%"):
                        out[key + "_p99"] = float(line.split()[1])
                out[key + "_cpu"] = s.cpu / n * 1e6
                if side == "pvm":
                    exits.setdefault(f"nginx_exits_per_request_{name}_{'keepalive' if keep else 'close'}",
                                     []).append(s.stats["exits"] / n)
            return out

        yield from served(plan, once, exits)


def each(plan):
    """Servers of languages, with a connection for each request: 20 clients."""
    if not shutil.which("ab"):
        raise Skip("ab is not installed")
    for name, argv in (("node", ["node", "-e", loops.NODE]), ("asyncio", ["/usr/bin/python3", "-c", loops.ASYNCIO])):
        path = shutil.which(argv[0])
        if not path:
            continue
        port, exits, n = free_port(), {}, 1000 if plan.quick else 5000

        def once(side, argv=(path, *argv[1:], str(port)), name=name, port=port, n=n, exits=exits):
            with Server(plan, side, list(argv), port) as s:
                text = h.run(["ab", "-q", "-n", str(n), "-c", "20", f"http://127.0.0.1:{port}/"])
            out = {f"{name}_close_cpu": s.cpu / n * 1e6}
            for line in text.splitlines():
                if line.startswith("Requests per second"):
                    out[f"{name}_close"] = float(line.split()[3])
                if line.startswith("Failed requests") and int(line.split()[2]):
                    raise RuntimeError(f"{name}: {line}")
                if line.strip().startswith("99%"):
                    out[f"{name}_close_p99"] = float(line.split()[1])
            if side == "pvm":
                exits.setdefault(f"{name}_exits_per_request_close", []).append(s.stats["exits"] / n)
            return out

        yield from served(plan, once, exits)


def postgresql(plan):
    """pgbench with 20 clients: transactions that only read, and those of TPC-B."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"))
    if not found or os.geteuid() or not shutil.which("setpriv"):
        raise Skip("postgresql is not installed, or this is not root's")
    where, exits, n = os.path.dirname(found[-1]), {}, 20
    with tempfile.TemporaryDirectory(prefix="kylinx-bench-") as d:
        shutil.chown(d, "postgres", "postgres")
        kylinx, base = shutil.copy(plan.kylinx, f"{d}/kylinx"), plan.base and shutil.copy(plan.base, f"{d}/base")
        kvm = os.stat("/dev/kvm").st_rdev
        # The user may not reach the kylinx that is built, nor perhaps these devices.
        nodes = (f"mkdir -p {d}/dev && mount -t tmpfs -o mode=755 kx {d}/dev && "
                 f"mknod -m 666 {d}/dev/kvm c {os.major(kvm)} {os.minor(kvm)} && mknod -m 666 {d}/dev/null c 1 3 && "
                 f"mount --bind {d}/dev/kvm /dev/kvm && mount --bind {d}/dev/null /dev/null && exec \"$@\"")
        user = ["unshare", "-m", "--propagation", "private", "sh", "-c", nodes, "sh", "setpriv", "--reuid=postgres",
                "--regid=postgres", "--init-groups", "env", "-i", "LC_ALL=C.UTF-8", f"PATH={where}:/usr/bin:/bin", f"HOME={d}"]
        mine = Plan(plan.quick, kylinx, base)
        port = free_port()
        ask_it = [*user, f"PGHOST={d}", f"PGPORT={port}", "PGUSER=postgres"]
        argv = ["postgres", "-D", f"{d}/data", "-k", d, "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
        h.run([*user, "initdb", "-D", f"{d}/data", "-U", "postgres", "-A", "trust", "-N"])

        def once(side):
            out, stats = {}, f"{d}/stats"
            for what, args in (("select", ["-S"]), ("tpcb", [])):
                in_pvm = side == "pvm" or plan.base
                server = subprocess.Popen([*user, *(mine.argv(side, argv, "--volume", f"{d}:{d}", f"--stats={stats}")
                                                    if in_pvm else argv)],
                                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                          cwd="/", start_new_session=True)
                try:
                    end_ = time.monotonic() + 60
                    while subprocess.run([*ask_it, "pg_isready", "-q"], check=False).returncode:
                        if server.poll() is not None or time.monotonic() > end_:
                            raise RuntimeError("postgres: not ready")
                        time.sleep(0.1)
                    if not os.path.exists(f"{d}/made"):
                        h.run([*ask_it, "createdb", "bench"])
                        h.run([*ask_it, "pgbench", "-q", "-i", "-s", "2", "bench"])
                        open(f"{d}/made", "w", encoding="ascii").close()
                    text = h.run([*ask_it, "pgbench", "-n", *args, "-c", str(n), "-T", "5" if plan.quick else "8", "bench"])
                finally:
                    server.send_signal(signal.SIGINT)
                    try:
                        server.wait(60)
                    except subprocess.TimeoutExpired:
                        os.killpg(server.pid, signal.SIGKILL)
                        server.wait()
                for line in text.splitlines():
                    if line.startswith("tps = "):
                        out[f"postgresql_{what}"] = float(line.split()[2])
                    done = re.search(r"actually processed: ([1-9]\d*)", line)
                    if done and side == "pvm":
                        with open(stats, encoding="ascii") as f:
                            exits.setdefault(f"postgresql_exits_per_transaction_{what}", []).append(
                                json.load(f)["exits"] / int(done[1]))
            return out

        yield from served(plan, once, exits)


def nsd(d, port):
    """Its command line; files in d, queries for dnsperf among them."""
    with open(f"{d}/zone", "w", encoding="ascii") as f:
        f.write("$ORIGIN example.\n$TTL 60\n@ SOA ns hostmaster 1 60 60 60 60\n@ NS ns\nns A 127.0.0.1\n")
        f.writelines(f"h{i} A 10.0.{i // 256}.{i % 256}\n" for i in range(1000))
    with open(f"{d}/queries", "w", encoding="ascii") as f:
        f.writelines(f"h{i}.example A\n" for i in range(1000))
    with open(f"{d}/nsd.conf", "w", encoding="ascii") as f:
        f.write(f'server:\n server-count: 1\n ip-address: 127.0.0.1\n port: {port}\n username: ""\n'
                f' zonesdir: "{d}"\n database: ""\n pidfile: "{d}/pid"\n xfrdfile: ""\n'
                f' zonelistfile: "{d}/zones"\n xfrdir: "{d}"\nremote-control:\n control-enable: no\n'
                f'zone:\n name: example\n zonefile: zone\n')
    return ["nsd", "-d", "-c", f"{d}/nsd.conf"]


def dns(plan):
    for p in ("nsd", "dnsperf"):
        if not shutil.which(p, path=os.environ.get("PATH", "") + ":/usr/sbin"):
            raise Skip(f"{p} is not installed")
    with tempfile.TemporaryDirectory(prefix="kylinx-bench-") as d:
        os.chmod(d, 0o755)
        port = free_port()
        argv = nsd(d, port)
        exits = {}

        def once(side):
            seconds = 1 if plan.quick else 3
            with Server(plan, side, argv, port,
                        *(["--volume", f"{d}:{d}"] if side == "pvm" or plan.base else [])) as s:
                text = h.run(["dnsperf", "-s", "127.0.0.1", "-p", str(port), "-d", f"{d}/queries", "-l", str(seconds),
                              "-c", "10", "-q", "100"])
            v = {}
            sent = 0
            for line in text.splitlines():
                if "Queries per second" in line:
                    v["nsd_udp"] = float(line.split()[-1])
                if "Queries completed" in line:
                    sent = int(line.split()[2])
            if sent:
                v["nsd_udp_cpu"] = s.cpu / sent * 1e6
            if side == "pvm" and sent and "exits" in s.stats:
                exits.setdefault("nsd_exits_per_request", []).append(s.stats["exits"] / sent)
            return v

        yield from served(plan, once, exits)


# ---- Others ------------------------------------------------------------------------------------------------------


def peers(plan):
    """The start of /bin/true in what else isolates a program, where Debian has it; no pairs, the same run."""
    todo = {}
    if shutil.which("bwrap"):
        todo["bubblewrap"] = ["bwrap", "--ro-bind", "/", "/", "--unshare-all", "/bin/true"]
    done = False
    with tempfile.TemporaryDirectory(prefix="kylinx-bench-") as d:
        for runtime in ("crun", "runc"):
            if shutil.which(runtime) and bundle(d, runtime):
                todo[runtime] = [runtime, "run", "--bundle", f"{d}/{runtime}", f"kylinx-bench-{os.getpid()}"]
        for name, argv in todo.items():
            v = []
            try:
                for _ in range(plan.micro + 1):
                    v.append(start_to_exit(argv))
            except (RuntimeError, Skip) as e:
                h.say(f"  {name}: skipped: {e}")
                continue
            done = True
            yield Metric(f"start_true_{name}", "peers", "ms", v[1:], None)
        v = [start_to_exit(plan.argv("pvm", ["/bin/true"])) for _ in range(plan.micro + 1)]
        yield Metric("start_true_kylinx", "peers", "ms", v[1:], None)
        v = microvm(plan, d)
        if v:
            yield Metric("boot_qemu_microvm_emulated", "peers", "ms", v, None,
                         note="TCG: software emulation, since this row must not depend on nested virtualisation")
    if not done:
        h.say("  bubblewrap, crun, runc: none is installed")


def bundle(d, runtime):
    """An OCI bundle that runs the host's /bin/true, in d/runtime."""
    os.makedirs(f"{d}/{runtime}/rootfs", exist_ok=True)
    try:
        h.run([runtime, "spec"], cwd=f"{d}/{runtime}")
        with open(f"{d}/{runtime}/config.json", encoding="utf-8") as f:
            c = json.load(f)
    except (RuntimeError, Skip, OSError, ValueError) as e:
        h.say(f"  {runtime}: skipped: {e}")
        return False
    c["process"]["terminal"] = False
    c["process"]["args"] = ["/bin/true"]
    for p in ("usr", "lib", "lib64", "bin", "etc"):
        if os.path.isdir("/" + p):
            c["mounts"].append({"destination": "/" + p, "source": os.path.realpath("/" + p), "type": "bind",
                                "options": ["rbind", "ro"]})
    with open(f"{d}/{runtime}/config.json", "w", encoding="utf-8") as f:
        json.dump(c, f)
    return True


def microvm(plan, d):
    """Milliseconds until Debian's cloud kernel has begun its init in QEMU's microvm, or nothing."""
    if not shutil.which("qemu-system-x86_64"):
        h.say("  qemu microvm: skipped: qemu-system-x86_64 is not installed")
        return None
    kernels = sorted(k for k in os.listdir("/boot") if k.startswith("vmlinuz-") and "cloud" in k)
    if not kernels or not shutil.which("busybox") or not shutil.which("cpio"):
        h.say("  qemu microvm: skipped: needs linux-image-cloud-amd64, busybox-static and cpio")
        return None
    os.makedirs(f"{d}/initrd/bin", exist_ok=True)
    shutil.copy(shutil.which("busybox"), f"{d}/initrd/bin/busybox")
    with open(f"{d}/initrd/init", "w", encoding="ascii") as f:
        f.write("#!/bin/busybox sh\n/bin/busybox poweroff -f\n")
    os.chmod(f"{d}/initrd/init", 0o755)
    subprocess.run("find . | cpio -o -H newc > ../initrd.img", shell=True, cwd=f"{d}/initrd", check=True,
                   stderr=subprocess.DEVNULL)
    v = []
    for _ in range(1 if plan.quick else 3):
        a = time.perf_counter()
        try:
            h.run(["qemu-system-x86_64", "-M", "microvm,accel=tcg", "-m", "256", "-no-reboot", "-nodefaults",
                   "-display", "none", "-serial", "none", "-kernel", f"/boot/{kernels[-1]}", "-initrd",
                   f"{d}/initrd.img", "-append", "panic=-1 reboot=t quiet"], timeout=30 if plan.quick else 120)
        except RuntimeError as e:
            h.say(f"  qemu microvm: skipped: {e}")
            return None
        v.append((time.perf_counter() - a) * 1e3)
    return v


def alive(plan):
    """The start of one more with so many alive."""
    prog = program("start")
    ps = []
    try:
        for n in (0, 20) if plan.quick else (0, 20, 100):
            ps += asleep(plan, "pvm", n - len(ps), [prog, "600"])
            v = [start_to_exit(plan.argv("pvm", [prog])) for _ in range(plan.micro)]
            yield Metric(f"start_with_{n}_alive", "scale", "ms", v, None)
    finally:
        end(ps)


# ---- Libraries ---------------------------------------------------------------------------------------------------


LIBRARY = """
#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
int CAT(data, N)[100] = { N };
static int *CAT(table, N)[20] = { CAT(data, N), CAT(data, N) + 1 };
int CAT(f, N)(int x) { return x + *CAT(table, N)[x & 1]; }
"""


def with_libraries(d, n):
    """A program that is linked with n libraries of its own, and calls each."""
    calls_ = "".join(f"extern int f{i}(int); s += f{i}(s);" for i in range(n))
    for name, text in (("l.c", LIBRARY), (f"m{n}.c", f"int main(void) {{ int s = 0; {calls_} return s < 0; }}\n")):
        with open(f"{d}/{name}", "w", encoding="ascii") as f:
            f.write(text)
    for i in range(n):
        if not os.path.exists(f"{d}/libl{i}.so"):
            subprocess.run(["gcc", "-O2", "-fPIC", "-shared", f"-DN={i}", f"-Wl,-soname,libl{i}.so", "-o", f"{d}/libl{i}.so",
                            f"{d}/l.c"], check=True)
    subprocess.run(["gcc", "-O2", "-o", f"{d}/m{n}", f"{d}/m{n}.c", *[f"{d}/libl{i}.so" for i in range(n)],
                    f"-Wl,-rpath,{d}"], check=True)
    return f"{d}/m{n}"


def libraries(plan):
    """dlopen(), warm, and starts with 1, 10 and 30 libraries."""
    if not shutil.which("gcc"):
        raise Skip("gcc is not installed")
    yield from from_program(plan, "libraries", "dlopen")
    with plain_dir() as d:
        for n in (1, 10, 30):
            argv = [with_libraries(d, n)]
            if n == 1:
                time.sleep(1.1)  # files that have just been made are not stored
            got = h.pairs(lambda s, argv=argv: {"ms": start_to_exit(plan.argv(s, argv, "--volume", f"{d}:{d}")
                                                                   if s == "pvm" else plan.argv(s, argv))},
                          plan.micro if plan.quick else 2 * plan.micro, warm=3)
            yield Metric(f"start_{n}_libraries", "libraries", "ms", *got["ms"])


def update(plan):
    """How long redis-server stands while its allocator is replaced under load, as `kylinx update` tells it."""
    new = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"
    if not shutil.which("redis-server") or not shutil.which("redis-benchmark") or not os.path.exists(new):
        raise Skip("redis-server with libjemalloc is not installed")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    name, load = f"bench-update-{os.getpid()}", None
    argv = ["redis-server", "--port", port, "--save", "", "--jemalloc-bg-thread", "no"]
    server = subprocess.Popen(plan.argv("pvm", argv, "--name", name), stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if subprocess.run(["redis-cli", "-p", port, "ping"], capture_output=True, check=False).stdout == b"PONG\n":
                break
            time.sleep(0.05)
        load = subprocess.Popen(["redis-benchmark", "-p", port, "-l", "-q", "-t", "set,get", "-r", "10000"],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        pauses = []
        with tempfile.TemporaryDirectory(prefix="kylinx-bench-") as d:
            copy = shutil.copy(new, d)
            for _ in range(10 if plan.quick else 50):
                out = h.run([plan.kylinx, "update", "--timeout", "20", name, copy])
                pauses.append(float(out.rsplit("pause ", 1)[1].split()[0]))
                time.sleep(0.05)
        yield Metric("update_pause_redis", "update", "ms", pauses, None)
        yield Metric("update_pause_redis_worst", "update", "ms", [max(pauses)], None)
    finally:
        for p in (load, server):
            if p:
                p.kill()
                p.wait()


GROUPS = {"calls": calls, "faults": faults, "fork": fork, "exec": exec_, "threads": threads, "ipc": ipc, "sync": sync,
          "start": start, "boot": boot, "counts": counts,
          "memory": memory, "density": density, "redis": redis, "memcached": memcached,
          "nginx": nginx, "each": each, "postgresql": postgresql, "dns": dns, "scale": scale, "alive": alive, "peers": peers,
          "libraries": libraries, "update": update}
# What is measured in the first round alone: it takes long, or is the same each time.
ONCE = ("counts", "density", "alive", "peers")
# What a comparison of two commits runs.
COMPARED = ("calls", "faults", "fork", "exec", "threads", "start", "redis")
