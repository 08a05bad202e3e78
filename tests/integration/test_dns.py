#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""DNS servers of the distribution, unmodified, in pVMs: nsd, knot, unbound, dnsmasq, with one and two workers, by UDP and
TCP. Each answer is compared with the zone, none may be missing, and under load a datagram must cost few exits.

test_dns.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure.
"""
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402

args = lib.arguments()
NAMES = 200
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
tests = []


def address(i):
    return f"10.1.{i // 250}.{i % 250 + 1}"


def write(d, name, text):
    with open(os.path.join(d, name), "w") as f:
        f.write(text)


def nsd(d, port, workers):
    write(d, "nsd.conf", f"""server:
 ip-address: 127.0.0.1
 port: {port}
 server-count: {workers}
 username: ""
 pidfile: "{d}/nsd.pid"
 database: ""
 zonelistfile: "{d}/zone.list"
 xfrdfile: "{d}/xfrd.state"
 xfrdir: "{d}"
 zonesdir: "{d}"
 rrl-ratelimit: 0
remote-control:
 control-enable: no
zone:
 name: example.test
 zonefile: example.zone
""")
    return ["nsd", "-d", "-c", f"{d}/nsd.conf"]


def knotd(d, port, workers):
    os.makedirs(f"{d}/db")
    write(d, "knot.conf", f"""server:
    rundir: "{d}"
    listen: 127.0.0.1@{port}
    udp-workers: {workers}
    tcp-workers: {workers}
    background-workers: 1
log:
  - target: stderr
    any: error
database:
    storage: "{d}/db"
zone:
  - domain: example.test
    storage: "{d}"
    file: example.zone
""")
    return ["knotd", "-c", f"{d}/knot.conf"]


def unbound(d, port, workers):
    data = "".join(f' local-data: "h{i}.example.test. A {address(i)}"\n' for i in range(NAMES))
    write(d, "unbound.conf", f"""server:
 interface: 127.0.0.1
 port: {port}
 num-threads: {workers}
 do-daemonize: no
 username: ""
 chroot: ""
 directory: "{d}"
 pidfile: "{d}/unbound.pid"
 use-syslog: no
 logfile: ""
 access-control: 127.0.0.0/8 allow
 module-config: "iterator"
 local-zone: "example.test." static
{data}remote-control:
 control-enable: no
""")
    return ["unbound", "-d", "-c", f"{d}/unbound.conf"]


def dnsmasq(d, port, _):
    write(d, "hosts", "".join(f"{address(i)} h{i}.example.test\n" for i in range(NAMES)))
    return ["dnsmasq", "-k", "-p", str(port), "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
            f"--addn-hosts={d}/hosts", "--listen-address=127.0.0.1", "--bind-interfaces", "--user=root",
            f"--pid-file={d}/dnsmasq.pid", "--log-facility=-", "--local=/example.test/"]


def query(i, number):
    name = b"".join(bytes([len(x)]) + x for x in f"h{i}.example.test".encode().split(b"."))
    return struct.pack(">HHHHHH", number, 0x100, 1, 0, 0, 0) + name + b"\0\0\1\0\1"


def right(answer, i, number):
    """An answer without error that ends with, or has, the address."""
    flags, count = struct.unpack(">HxxH", answer[2:8])
    return (answer[:2] == struct.pack(">H", number) and flags & 0x800f == 0x8000 and count == 1 and
            socket.inet_aton(address(i)) in answer)


def ask_all(port):
    """By several sockets, many at once: each answer comes to its asker, once."""
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(4)]
    for s in socks:
        s.settimeout(lib.limit(60))
        s.connect(("127.0.0.1", port))
    for turn in range(10):
        for k, s in enumerate(socks):
            for i in range(k, NAMES, 8):
                s.send(query(i, turn * NAMES + i))
        for k, s in enumerate(socks):
            missing = set(range(k, NAMES, 8))
            while missing:
                a = s.recv(4096)
                i = struct.unpack(">H", a[:2])[0] - turn * NAMES
                expect(i in missing and right(a, i, turn * NAMES + i), True, f"answer {i} of turn {turn}")
                missing.remove(i)
    for s in socks:
        s.close()


def ask_tcp(port, step=10):
    with socket.create_connection(("127.0.0.1", port), timeout=lib.limit(60)) as s:
        for i in range(0, NAMES, step):
            q = query(i, i)
            s.sendall(struct.pack(">H", len(q)) + q)
            got = b""
            while len(got) < 2 or len(got) < 2 + struct.unpack(">H", got[:2])[0]:
                got += s.recv(4096)
            expect(right(got[2:], i, i), True, f"answer {i} by TCP")


def answers(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(lib.limit(0.3))
        try:
            s.connect(("127.0.0.1", port))
            s.send(query(0, 1))
            return right(s.recv(4096), 0, 1)
        except OSError:
            return False


def load(d, port, tcp=False, rounds=100):
    """dnsperf: queries sent; none may be lost. So many, however long it takes: what a start costs is in the exits, too."""
    r = lib.run(["dnsperf", *(["-m", "tcp", "-c", "8"] if tcp else []), "-s", "127.0.0.1", "-p", str(port), "-d", f"{d}/queries",
                 "-n", str(rounds), "-q", "60", "-t", "60"], 600)
    text = r.out.decode()
    expect(r.status, 0, "dnsperf")
    sent = int(re.search(r"Queries sent:\s+(\d+)", text)[1])
    expect(re.search(r"Queries lost:\s+(\d+)", text)[1], "0", "lost queries")
    expect(re.search(r"Response codes:\s+NOERROR (\d+) \(100.00%\)", text) is not None, True, "all are answers")
    return sent


OF_STREAMS = ("read", "write", "readv", "writev", "recvfrom", "recvmsg", "sendto", "sendmsg", "getpeername", "epoll_ctl")


def serve(make, workers, limit, tcp=False):
    if os.geteuid():
        raise Skip("only root can")
    for p in (make.__name__, "dnsperf"):
        if not shutil.which(p, path=PATH):
            raise Skip(f"{p} is not installed")
    with lib.Dir() as d:
        write(d, "example.zone", "$ORIGIN example.test.\n$TTL 3600\n@ IN SOA ns admin 1 3600 600 86400 300\n@ IN NS ns\n"
              "ns IN A 127.0.0.1\n" + "".join(f"h{i} IN A {address(i)}\n" for i in range(NAMES)))
        write(d, "queries", "".join(f"h{i}.example.test A\n" for i in range(NAMES)))
        port = lib.free_port()
        argv = make(d, port, workers)
        argv[0] = shutil.which(argv[0], path=PATH)
        with open(f"{d}/err", "w") as err:
            p = subprocess.Popen(lib.pvm(argv, f"--stats={d}/stats", "--volume", f"{d}:{d}"), stdin=subprocess.DEVNULL,
                                 stdout=err, stderr=err)
        try:
            end = time.monotonic() + lib.limit(90)
            while not answers(port) and p.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            expect(p.poll(), None, "the server's end: " + lib.one_line(open(f"{d}/err").read()))
            ask_all(port)
            ask_tcp(port)
            if make is dnsmasq and tcp:  # which ends a connection after 100 queries, whatever else is under way
                for _ in range(30):
                    ask_tcp(port, NAMES // 50)
                sent = 30 * 50
            else:
                sent = load(d, port, tcp)
            ask_tcp(port)
        finally:
            p.terminate()
            try:
                p.wait(lib.limit(90))
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
                raise
        with open(f"{d}/stats") as f:
            stats = json.load(f)
        exits = stats["exits"] if not tcp else sum(stats["hypercalls"].get(c, 0) for c in OF_STREAMS)
        per_query = exits / sent
        print(f"# {make.__name__}, {workers}{' by TCP' if tcp else ''}: {sent} queries, {exits} exits", flush=True)
        expect(per_query < limit, True, f"exits for each query: {per_query:.2f} < {limit}")


ECHO = """
import select, socket, sys, threading
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", int(sys.argv[1])))
def first():
    for _ in range(20):
        data, who = s.recvfrom(2048)
        s.sendto(data, who)
t = threading.Thread(target=first)
t.start()
t.join()
p = select.poll()
p.register(s, select.POLLIN)
while True:
    p.poll()
    data, who = s.recvfrom(2048)
    if data == b"end":
        break
    s.sendto(data, who)
"""


def replies_of_another_thread():
    """The thread that answers is not the one by which the socket was found to be worth it: its replies are queued, too."""
    rounds, burst = 40, 50
    with lib.Dir() as d, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        port = lib.free_port()
        p = subprocess.Popen(lib.pvm(["/usr/bin/python3", "-c", ECHO, str(port)], "--io", "exit", f"--stats={d}/stats"),
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            s.settimeout(lib.limit(0.2))
            s.connect(("127.0.0.1", port))
            for _ in range(1000):
                try:
                    s.send(b"there")
                    if s.recv(2048) == b"there":
                        break
                except OSError:
                    time.sleep(0.05)
            s.settimeout(lib.limit(60))
            for _ in range(19):
                s.send(b"first")
                expect(s.recv(2048) in (b"first", b"there"), True, "an echo")
            for n in range(rounds):
                want = {b"%d %d" % (n, i) for i in range(burst)}
                for data in sorted(want):
                    s.send(data)
                while want:
                    want.discard(s.recv(2048))
            s.send(b"end")
            expect(p.wait(lib.limit(90)), 0, "the server's end")
        finally:
            p.kill()
            p.wait()
        with open(f"{d}/stats") as f:
            stats = json.load(f)
        sent = stats["hypercalls"].get("sendto", 0)
        expect(sent < rounds * burst / 10, True, f"{sent} of {rounds * burst} replies were an exit each")


tests.append(("replies_of_another_thread", replies_of_another_thread))
for fn, counts in ((nsd, (1, 2)), (knotd, (1, 2)), (unbound, (1, 2)), (dnsmasq, (1,))):
    for n in counts:
        tests.append((f"{fn.__name__}_{n}", lambda fn=fn, n=n: serve(fn, n, 0.5)))
for fn, limit in ((nsd, 0.5), (knotd, 0.5), (unbound, 0.5), (dnsmasq, 1.9)):  # dnsmasq: a process for each connection
    tests.append((f"{fn.__name__}_tcp", lambda fn=fn, limit=limit: serve(fn, 1, limit, True)))

if __name__ == "__main__":
    sys.exit(lib.run_tests(tests, args.only))
