# SPDX-License-Identifier: Apache-2.0
"""What a request costs a server in instructions, in a pVM and as a process: count.py's, and like it for a machine that counts them.

The server's are those of its processes' threads (/proc/PID/task/TID/schedstat), the kernel's on their behalf included; with
TCP over the loopback also what their packets cost the kernel on the client's side until it is woken, on both sides alike.
All are the machine's, thus the client's, too. Measured between a first load, which warms up, and the end of a second one;
exits are a server's with both less those of one with the first alone.
"""
import glob
import os
import shutil
import tempfile
import time

import groups as g
import harness as h
import servers

CONNECTIONS = 50
FEW = 1000  # requests of the first load
SETTLE = 0.2  # seconds


def by_redis_benchmark(*options):
    return lambda port, d, n: ["redis-benchmark", "-p", str(port), "-c", str(CONNECTIONS), "-n", str(n), "-q", *options]


def by_load(request, reply):
    return lambda port, d, n: [g.program("load"), str(port), str(CONNECTIONS), str(-n), request, str(len(reply))]


def by_http(path, size):
    """nginx's replies have a head of one length as long as its numbers do."""
    def client(port, d, n):
        request = f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"
        reply = servers.talk(port, request.encode(), lambda got: len(got.partition(b"\r\n\r\n")[2]) >= size)
        return [g.program("load"), str(port), str(CONNECTIONS), str(-n), request, str(len(reply))]
    return client


def by_ab(path):
    return lambda port, d, n: ["ab", "-q", "-n", str(n), "-c", str(CONNECTIONS), f"http://127.0.0.1:{port}{path}"]


def by_dnsperf(port, d, n):
    return ["dnsperf", "-s", "127.0.0.1", "-p", str(port), "-d", f"{d}/queries", "-n", str(n // 1000), "-c", "10", "-q", "100"]


# Name, server, client, requests.
CASES = [
    ("redis_get", servers.redis, by_redis_benchmark("-t", "get"), 5000),
    ("redis_set", servers.redis, by_redis_benchmark("-t", "set"), 5000),
    ("redis_mset", servers.redis, by_redis_benchmark("-t", "mset"), 5000),
    ("redis_get_P16", servers.redis, by_redis_benchmark("-t", "get", "-P", "16"), 32000),
    ("redis_set_P16", servers.redis, by_redis_benchmark("-t", "set", "-P", "16"), 32000),
    ("redis_set_4k", servers.redis, by_redis_benchmark("-t", "set", "-d", "4096"), 5000),
    ("memcached_get_t1", servers.memcached(1), by_load("get k\r\n", "END\r\n"), 5000),
    ("memcached_get_t4", servers.memcached(4), by_load("get k\r\n", "END\r\n"), 5000),
    ("memcached_set_t4", servers.memcached(4), by_load("set k 0 0 5\r\nhello\r\n", "STORED\r\n"), 5000),
    ("nginx_word", servers.nginx, by_http("/word", 5), 5000),
    ("nginx_1k", servers.nginx, by_http("/1024", 1024), 5000),
    ("nginx_1k_each", servers.nginx, by_ab("/1024"), 1000),
    ("nsd_udp", g.nsd, by_dnsperf, 10000),
]


def instructions_of(session):
    """Of all threads of all processes of a session; a thread that has ended has taken its with it."""
    total = 0
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            with open(path, encoding="ascii", errors="replace") as f:
                if int(f.read().rpartition(")")[2].split()[3]) != session:
                    continue
            for task in glob.glob(os.path.dirname(path) + "/task/*/schedstat"):
                with open(task, encoding="ascii") as f:
                    total += int(f.read().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def served(plan, side, busy, server, client, loads):
    """[instructions of the server's, of all, exits]: of the last of the loads, but for the exits, which are all."""
    with tempfile.TemporaryDirectory(prefix="kylinx-bench-") as d:
        os.chmod(d, 0o755)
        port = g.free_port()
        argv = server(d, port)
        options = ["--volume", f"{d}:{d}"] if side == "pvm" else []
        with g.Server(plan, side, argv, port, *options) as s:
            for n in loads:
                command = client(port, d, n)
                time.sleep(SETTLE)
                own, everything = instructions_of(s.p.pid), busy()
                h.run(command, 1e6)
                own, everything = instructions_of(s.p.pid) - own, busy() - everything
        return [own, everything, s.stats.get("exits", 0)]


def request(plan, side, busy, case):
    """The same of one request."""
    _, server, client, n = case
    own, everything, exits = served(plan, side, busy, server, client, [FEW, n])
    if side == "pvm":
        exits -= served(plan, side, busy, server, client, [FEW])[2]
    return [own / n, everything / n, exits / n]


def missing(case):
    """Why a case can't be measured, or None."""
    with tempfile.TemporaryDirectory(prefix="kylinx-bench-") as d:
        for program in (case[1](d, 1)[0], "redis-benchmark" if case[1] is servers.redis else "true",
                        "dnsperf" if case[1] is g.nsd else "true", "ab" if case[0].endswith("_each") else "true"):
            if not shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin"):
                return f"{program} is not installed"
    return None


HEAD = ["request", "process", "pVM", "ratio", "exits", "with 1 us each", "all, process", "all, pVM", "ratio"]


def row(name, n, p, exit_ns):
    one, all_ = n[0] or float("nan"), n[1] or float("nan")
    return [name, f"{n[0]:,.0f}", f"{p[0]:,.0f}", f"{p[0] / one:.2f}", f"{p[2]:.3f}", f"{(p[0] + p[2] * exit_ns) / one:.2f}",
            f"{n[1]:,.0f}", f"{p[1]:,.0f}", f"{p[1] / all_:.2f}"]
