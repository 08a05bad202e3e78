#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Servers in a pVM and as processes, by turns: requests per second (medians), ratio, p99 of both, and exits per
request. usage: bench/servers.py [--pairs N] [--seconds S] [--only REGEX]"""
import argparse, json, os, re, shutil, signal, socket, statistics, subprocess, tempfile, time

BUILD = os.environ.get("BUILD", "build")
KYLINX = os.path.abspath(os.path.join(BUILD, "kylinx"))
LOAD = os.path.abspath(os.path.join(BUILD, "bench", "load"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def talk(port, data, until):
    with socket.create_connection(("127.0.0.1", port), 10) as s:
        s.sendall(data)
        got = b""
        while not until(got):
            part = s.recv(1 << 20)
            if not part:
                break
            got += part
        return got


def redis(d, port):
    return ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", d, "--save", "", "--appendonly", "no"]


def memcached(threads):
    return lambda d, port: ["memcached", "-u", "nobody", "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-t", str(threads)]


def nginx(d, port):
    for size in (1024, 1 << 20):
        with open(f"{d}/{size}", "wb") as f:
            f.write(b"x" * size)
    with open(f"{d}/conf", "w") as f:
        f.write(f"""daemon off; worker_processes 1; pid {d}/pid; error_log {d}/error crit; user root;
events {{ worker_connections 2048; }}
http {{ access_log off; sendfile on; keepalive_requests 100000000; open_file_cache max=100;
client_body_temp_path {d}/b; proxy_temp_path {d}/p; fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;
server {{ listen 127.0.0.1:{port}; root {d}; default_type text/plain; location /word {{ return 200 "hello"; }} }} }}
""")
    return ["/usr/sbin/nginx", "-c", f"{d}/conf"]


def command(*words):
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def bench_redis(args):
    """redis-benchmark: requests per second, p50 and p99 in us."""
    def run(port, conns, seconds):
        def one(n):
            out = subprocess.run(["redis-benchmark", "-p", str(port), "-c", str(conns), "-n", str(n), "--csv"] + args,
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=120, check=True).stdout
            f = out.strip().splitlines()[-1].replace('"', "").split(",")
            return float(f[1]), float(f[4]) * 1e3, float(f[6]) * 1e3
        n = 2000
        rate = one(n)[0]
        return one(max(n, int(rate * seconds)))
    return run


def bench_load(request, reply):
    def run(port, conns, seconds):
        want = len(talk(port, request, reply))
        out = subprocess.run([LOAD, str(port), str(conns), str(seconds), request, str(want)], stdout=subprocess.PIPE,
                             text=True, timeout=120, check=True).stdout
        rate, p50, p99 = map(float, out.split())
        return rate, p50, p99
    return run


def http(path):
    request = f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()

    def whole(got):
        head, sep, body = got.partition(b"\r\n\r\n")
        m = re.search(rb"Content-Length: (\d+)", head)
        return sep and m and len(body) >= int(m[1])
    return bench_load(request, whole)


def bench_ab(path):
    """A connection for each request."""
    def run(port, conns, seconds):
        out = subprocess.run(["ab", "-q", "-t", str(max(1, int(seconds))), "-n", "1000000", "-c", str(conns),
                              f"http://127.0.0.1:{port}{path}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                             text=True, timeout=120, check=True).stdout
        rate = float(re.search(r"Requests per second: +([\d.]+)", out)[1])
        pct = dict(re.findall(r"(\d+)% +(\d+)", out))
        return (rate, float(pct["50"]) * 1e3, float(pct["99"]) * 1e3)
    return run


def cases():
    for c in (1, 50, 500):
        for op in ("get", "set", "lpush", "mset"):
            if op in ("get", "set") or c == 50:
                yield f"redis {op} -c {c}", redis, bench_redis(["-t", op]), c
    for op in ("get", "set"):
        yield f"redis {op} -c 50 -P 16", redis, bench_redis(["-t", op, "-P", "16"]), 50
        yield f"redis {op} -c 50 4 KiB", redis, bench_redis(["-t", op, "-d", "4096"]), 50
    ends = lambda got: got.endswith(b"END\r\n")
    for t in (1, 4):
        yield f"memcached get -c 50 -t {t}", memcached(t), bench_load(b"get k\r\n", ends), 50
    for c in (1, 50):
        yield f"nginx 5 B -c {c}", nginx, http("/word"), c
        yield f"nginx 1 KiB -c {c}", nginx, http("/1024"), c
    yield "nginx 1 MiB -c 10", nginx, http(f"/{1 << 20}"), 10
    yield "nginx 1 KiB -c 50, no keep-alive", nginx, bench_ab("/1024"), 50


def wait_for(port, p):
    for _ in range(400):
        if p.poll() is not None:
            raise SystemExit(f"{p.args} ended with {p.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"{p.args} does not answer")


def measure(make, run, conns, seconds, pvm):
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755)
        port = free_port()
        cmd, stats = make(d, port), os.path.join(d, "stats")
        if pvm:
            cmd = [KYLINX, "run", "--io", IO, "--volume", f"{d}:{d}", f"--stats={stats}", "--"] + cmd
        p = subprocess.Popen(cmd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
        try:
            wait_for(port, p)
            before = time.time()
            rate, p50, p99 = run(port, conns, seconds)
            took = time.time() - before
        finally:
            p.send_signal(signal.SIGTERM)
            try:
                p.wait(10)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
        exits = batched = 0
        if pvm and os.path.exists(stats):
            with open(stats) as f:
                s = json.load(f)
            exits, batched = s["exits"], s["batched"]
        return rate, p99, exits / max(1, rate * took), batched / max(1, rate * took)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--pairs", type=int, default=3)
    a.add_argument("--seconds", type=float, default=1)
    a.add_argument("--only", default=".")
    a.add_argument("--io", default="auto", choices=("auto", "exit", "poll"))
    a = a.parse_args()
    global IO
    IO = a.io
    os.makedirs(os.path.dirname(LOAD), exist_ok=True)
    subprocess.run(["gcc", "-O2", "-w", "-o", LOAD, "bench/load.c"], check=True)
    print(f"{'requests per second':<36} {'pVM':>9} {'process':>9} {'ratio':>6} {'of pairs':>13} {'p99 us':>8} {'process':>8}"
          f" {'exits':>6} {'batched':>7}   load {os.getloadavg()[0]:.1f}", flush=True)
    for name, make, run, conns in cases():
        if not re.search(a.only, name):
            continue
        tool = "memcached" if "memcached" in name else "redis-server" if "redis" in name else "/usr/sbin/nginx"
        if not shutil.which(tool):
            print(f"{name:<36} {tool} is not installed")
            continue
        pairs = [(measure(make, run, conns, a.seconds, True), measure(make, run, conns, a.seconds, False))
                 for _ in range(a.pairs)]
        med = lambda side, i: statistics.median(p[side][i] for p in pairs)
        ratios = sorted(p[0] / n[0] for p, n in pairs)
        print(f"{name:<36} {med(0, 0):>9.0f} {med(1, 0):>9.0f} {statistics.median(ratios):>6.2f}"
              f" [{ratios[0]:.2f}..{ratios[-1]:.2f}] {med(0, 1):>8.0f} {med(1, 1):>8.0f} {med(0, 2):>6.3f} {med(0, 3):>7.3f}",
              flush=True)


if __name__ == "__main__":
    main()
