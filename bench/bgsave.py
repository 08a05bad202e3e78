#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Redis that saves in the background under load, in a pVM and as a process by turns: requests per second, latencies, the
longest stall, how long fork() took. usage: bench/bgsave.py [--pairs N] [--mib N] [--connections N] [--value BYTES]"""
import argparse, os, re, shutil, signal, socket, statistics, subprocess, tempfile, time

BUILD = os.environ.get("BUILD", "build")
KYLINX = os.path.abspath(os.environ.get("KYLINX", os.path.join(BUILD, "kylinx")))
CLIENT = os.path.abspath(os.path.join(BUILD, "bench", "bgsave"))
ROWS = ["before_rate", "before_p50", "before_p99", "before_p999", "before_max", "during_rate", "during_p50", "during_p99",
        "during_p999", "during_max", "behind_rate", "behind_p50", "behind_p99", "behind_p999", "behind_max", "save_ms", "fork_us", "rss_mib", "faults"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    def __init__(self, d, pvm):
        self.port, self.stats = free_port(), os.path.join(d, "stats")
        cmd = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", d, "--save", "", "--appendonly",
               "no", "--enable-debug-command", "yes"]
        if pvm:
            cmd = [KYLINX, "run", "--volume", f"{d}:{d}", f"--stats={self.stats}", "--"] + cmd
        self.p = subprocess.Popen(cmd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
        for _ in range(500):
            try:
                self.s = socket.create_connection(("127.0.0.1", self.port), 120)
                return
            except OSError:
                time.sleep(0.02)
        raise SystemExit("redis-server does not answer")

    def ask(self, line, until=b"\r\n"):
        self.s.sendall(line.encode() + b"\r\n")
        got = b""
        while not got.endswith(until):
            part = self.s.recv(65536)
            if not part:
                raise SystemExit(f"redis-server ended at {line}")
            got += part
        return got.decode()

    def info(self, section, key):
        return int(re.search(rf"^{key}:(\d+)", self.ask(f"INFO {section}"), re.M)[1])

    def end(self):
        self.s.close()
        self.p.send_signal(signal.SIGTERM)
        try:
            self.p.wait(20)
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.p.wait()


def measure(a, pvm):
    with tempfile.TemporaryDirectory(dir=a.dir) as d:
        os.chmod(d, 0o755)
        s = Server(d, pvm)
        try:
            keys = (a.mib << 20) // (a.value + 80)
            s.ask(f"DEBUG POPULATE {keys} key {a.value}")
            out = subprocess.run([CLIENT, str(s.port), str(a.connections), str(keys), str(a.value)],
                                 stdout=subprocess.PIPE, text=True, timeout=200, check=True).stdout
            got = {k: float(v) for k, v in (line.split() for line in out.splitlines())}
            got["fork_us"] = s.info("stats", "latest_fork_usec")
            got["rss_mib"] = s.info("memory", "used_memory_rss") / 2 ** 20
        finally:
            s.end()
        got["faults"] = 0
        if pvm and os.path.exists(s.stats):
            with open(s.stats) as f:
                got["faults"] = float(re.search(r'"page_faults": *(\d+)', f.read())[1])
        return got


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--pairs", type=int, default=3)
    a.add_argument("--mib", type=int, default=256)
    a.add_argument("--connections", type=int, default=10)
    a.add_argument("--value", type=int, default=1000)
    a.add_argument("--dir", help="where the files are saved")
    a = a.parse_args()
    if not shutil.which("redis-server"):
        raise SystemExit("redis-server is not installed")
    subprocess.run(["make", "-s", f"BUILD={BUILD}", os.path.relpath(CLIENT)], check=True)
    pairs = [(measure(a, True), measure(a, False)) for _ in range(a.pairs)]
    print(f"{a.mib} MiB, {a.connections} connections, values of {a.value} bytes; medians, us"
          f"   load {os.getloadavg()[0]:.1f}")
    print(f"{'':<14} {'pVM':>10} {'process':>10} {'ratio':>7}   of pairs")
    for row in ROWS:
        v = [[p[i][row] for p in pairs] for i in (0, 1)]
        med = [statistics.median(x) for x in v]
        ratios = sorted(x / y for x, y in zip(*v) if y)
        print(f"{row:<14} {med[0]:>10.0f} {med[1]:>10.0f} "
              + (f"{statistics.median(ratios):>7.2f}   [{ratios[0]:.2f}..{ratios[-1]:.2f}]" if ratios else ""))


main()
