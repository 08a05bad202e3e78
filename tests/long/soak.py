#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""soak.py: redis, nginx with two workers (and TLS), memcached and nsd in pVMs at once for KX_SOAK seconds (300). Every answer
is checked. Workers are killed and come back, nginx reloads, redis saves, memcached is killed and started anew. At the end
memory, mappings and descriptors of the monitors are what they were after the first quarter, and nothing is left. KYLINX:
the binary."""
import http.client
import json
import os
import random
import signal
import socket
import ssl
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../integration"))
import lib
from lib import expect
from servers import Nginx, certificate, fds, kids, need, options, rss_kib, until
from test_dig import Dns, query

SECONDS = float(os.environ.get("KX_SOAK", "300"))
CALM = 10.0  # seconds after a death in which a connection may fail; a wrong answer never may come


class Client(threading.Thread):
    """Calls `turn` of a new `open()` again and again; after an error that a death explains, opens anew."""

    def __init__(self, soak, server, kind, *args):
        super().__init__()
        self.soak, self.server, self.kind, self.args, self.n, self.again = soak, server, kind, args, 0, 0

    def run(self):
        c = None
        while not self.soak.over.is_set():
            try:
                if c is None:
                    c = self.kind(*self.args)
                c.turn()
                self.n += 1
            except (OSError, EOFError, http.client.HTTPException) as e:
                self.again += 1
                now = time.monotonic()
                if now - self.soak.disturbed.get(self.server, 0) > CALM + getattr(c, "patience", 0):
                    self.soak.bad.append(f"{self.kind.__name__}: {type(e).__name__}: {e}")
                    return
                if c:
                    c.close()
                c = None
                time.sleep(0.05)
            except AssertionError as e:
                self.soak.bad.append(f"{self.kind.__name__}: {e}")
                return
        if c:
            c.close()


class Stream:
    def __init__(self, port):
        self.s = socket.create_connection(("127.0.0.1", port), 60)
        self.f = self.s.makefile("rb")

    def line(self):
        line = self.f.readline()
        if not line:
            raise EOFError("closed")
        return line

    def close(self):
        self.f.close()
        self.s.close()


class RedisClient(Stream):
    def __init__(self, port, n):
        super().__init__(port)
        self.n, self.has, self.r = n, {}, random.Random(n)
        self.s.sendall(b"EVAL \"for _, k in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', k) end return 1\" 0 k%d-*\r\n" % n)
        expect(self.line(), b":1\r\n", "EVAL")

    def turn(self):
        keys = [b"k%d-%d" % (self.n, self.r.randrange(100)) for _ in range(10)]
        for k in keys[:5]:
            self.has[k] = self.r.randbytes(self.r.randrange(3000))
        out = b"".join(b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(k), k, len(self.has[k]), self.has[k]) for k in keys[:5])
        self.s.sendall(out + b"".join(b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(k), k) for k in keys))
        for _ in range(5):
            expect(self.line(), b"+OK\r\n", "SET")
        for k in keys:
            n = int(self.line()[1:])
            got = None if n < 0 else self.f.read(n + 2)[:-2]
            assert got == self.has.get(k), f"GET {k}: {got!r:.50}, expected {self.has.get(k)!r:.50}"


class MemcachedClient(Stream):
    def __init__(self, port, n):
        super().__init__(port)
        self.n, self.has, self.r = n, {}, random.Random(n)

    def turn(self):
        k, v = b"m%d-%d" % (self.n, self.r.randrange(50)), self.r.randbytes(self.r.randrange(5000))
        self.has[k] = v
        k2 = self.r.choice(list(self.has))
        self.s.sendall(b"set %s 5 0 %d\r\n%s\r\nget %s\r\n" % (k, len(v), v, k2))
        expect(self.line(), b"STORED\r\n", "set")
        want = b"VALUE %s 5 %d\r\n%s\r\nEND\r\n" % (k2, len(self.has[k2]), self.has[k2])
        first = self.line()
        got = first + self.f.read(len(want) - len(first))
        assert got == want, f"get: {got!r:.60}, expected {want!r:.60}"


class WebClient:
    patience = 20  # an answer under way may be of a worker that is killed

    def __init__(self, port, files, context, keep):
        self.files, self.keep = files, keep
        self.c = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context) if context else \
            http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.used = 0

    def turn(self):
        name = random.choice(list(self.files))
        try:
            self.c.request("GET", "/" + name, headers={} if self.keep else {"Connection": "close"})
            r = self.c.getresponse()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
            if not self.used:
                raise
            self.c.close()  # a reload ends connections that are kept
            self.used = 0
            return
        data = r.read()
        assert r.status == 200 and data == self.files[name], f"{name}: status {r.status}, {len(data)} bytes"
        self.used = self.used + 1 if self.keep else 0

    def close(self):
        self.c.close()


class DnsClient:
    patience = 70  # what a server that is killed had in hand is lost

    def __init__(self, port, stream):
        self.s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        self.s.settimeout(60)
        self.s.connect(("127.0.0.1", port))
        self.stream, self.n = stream, 0

    def turn(self):
        self.n = (self.n + 1) % 65536
        name, answers = random.choice((("www.example.test", 2), ("example.test", 1), ("none.example.test", 0), ("q.wild.example.test", 1)))
        q = query(name, 1, self.n)
        self.s.sendall(struct.pack(">H", len(q)) + q if self.stream else q)
        if self.stream:
            n = struct.unpack(">H", self.take(2))[0]
            a = self.take(n)
        else:
            a = self.s.recv(65536)
        got = struct.unpack(">6H", a[:12])
        assert got[0] == self.n and got[1] & 15 == (0 if answers else 3) and got[3] == answers, f"{name}: {got}"

    def take(self, n):
        data = b""
        while len(data) < n:
            part = self.s.recv(n - len(data))
            if not part:
                raise EOFError("closed")
            data += part
        return data

    def close(self):
        self.s.close()


class Soak:
    def __init__(self):
        self.bad, self.disturbed, self.over = [], {}, threading.Event()
        self.deaths = self.answers = self.again = 0

    def disturb(self, server, victim, sig=signal.SIGKILL):
        self.disturbed[server] = time.monotonic()
        os.kill(victim, sig)
        self.deaths += sig == signal.SIGKILL

    def run(self, seconds, clients, chaos):
        self.over.clear()
        for c in clients:
            c.start()
        end = time.monotonic() + seconds
        try:
            n = 0
            while time.monotonic() < end and not self.bad:
                time.sleep(1)
                n += 1
                chaos(n)
        finally:
            self.over.set()
            for c in clients:
                c.join()
        expect(self.bad[:5], [], "answers")
        for c in clients:
            assert c.n > 10, f"{c.kind.__name__}: {c.n} turns"
        self.answers += sum(c.n for c in clients)
        self.again += sum(c.again for c in clients)


def sample(roles):
    """Of each: processes, KiB of memory, mappings, descriptors."""
    out = {}
    for name, pids in roles.items():
        pids = pids()
        out[name] = (len(pids), sum(map(rss_kib, pids)), sum(lib.read(f"/proc/{p}/maps").count("\n") for p in pids), sum(map(fds, pids)))
    return out


def soak():
    need("redis-server", "nginx", "memcached", "nsd", "openssl")
    s = Soak()
    with lib.Dir() as d, lib.Dir() as web, lib.Dir() as dns:
        os.chmod(web, 0o777)
        certificate(web)
        files = {f"f{n}": os.urandom(n) for n in (0, 1, 1000, 30000, 500000)}
        for name, data in files.items():
            with open(f"{web}/{name}", "wb") as f:
                f.write(data)
        context = ssl.create_default_context(cafile=f"{web}/cert")
        plain, tls, rport, mport = (lib.free_port() for _ in range(4))
        block = (f"server {{ listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl; root {web}; ssl_certificate {web}/cert; "
                 f"ssl_certificate_key {web}/key; }}")
        redis = lib.Server(lib.pvm(["redis-server", "--port", str(rport), "--bind", "127.0.0.1", "--dir", d, "--save", "",
                                    "--appendonly", "yes"], *options(d), f"--stats={d}/stats.json"), rport, cwd="/")

        def memcached():
            m = lib.Server(lib.pvm(["memcached", "-l", "127.0.0.1", "-p", str(mport), "-u", "root", "-t", "2"]), mport, cwd="/")
            return m.__enter__()

        with redis, Nginx(web, block, plain, errors="exited on signal 9|SSL_do_handshake") as n, Dns("nsd", dns) as ns:
            m = [memcached()]
            master, nsd = n.pid, ns.server.p.pid

            def nsd_servers():  # below its process of transfers
                return [k for p in (nsd, *kids(nsd)) for k in kids(p)]

            def chaos(t):
                if t % 7 == 0:
                    s.disturb("nginx", random.choice(kids(master)))
                if t % 11 == 0:
                    s.disturb("nginx", master, signal.SIGHUP)
                if t % 13 == 0:
                    leaves = [k for k in nsd_servers() if not kids(k)]
                    if leaves:
                        s.disturb("nsd", random.choice(leaves))
                if t % 17 == 0:
                    with socket.create_connection(("127.0.0.1", rport), 30) as r:
                        r.sendall(b"BGSAVE\r\n" if t % 2 else b"BGREWRITEAOF\r\n")
                        answer = r.recv(200)
                        # Redis begins rewrites of its own, too.
                        assert any(w in answer for w in (b"started", b"progress", b"scheduled", b"child process is active")), answer
                if t % 23 == 0:
                    s.disturb("memcached", m[0].p.pid)
                    m[0].__exit__()
                    m[0] = memcached()
                    s.disturbed["memcached"] = time.monotonic()

            def clients():
                return [*[Client(s, "redis", RedisClient, rport, i) for i in range(3)],
                        *[Client(s, "memcached", MemcachedClient, mport, i) for i in range(2)],
                        *[Client(s, "nginx", WebClient, plain, files, None, i) for i in range(2)],
                        *[Client(s, "nginx", WebClient, tls, files, context, i) for i in range(2)],
                        *[Client(s, "nsd", DnsClient, ns.port, i) for i in range(2)]]

            roles = {"redis": lambda: [redis.p.pid], "nginx": lambda: [master], "workers": lambda: kids(master),
                     "memcached": lambda: [m[0].p.pid], "nsd": lambda: [nsd], "servers": nsd_servers}
            samples = []
            try:
                first = DnsClient(ns.port, True)  # nsd listens before it serves
                first.turn()
                first.close()
                for part in (0.25, 0.75):
                    s.run(SECONDS * part, clients(), chaos)
                    until("redis has no child", lambda: not kids(redis.p.pid), 60)
                    until("nginx has two workers", lambda: len(kids(master)) == 2, 60)
                    time.sleep(3)
                    samples.append(sample(roles))
                    print(f"# {s.answers} turns, {s.again} opened anew, {s.deaths} killed; processes, KiB, mappings, descriptors: "
                          f"{samples[-1]}", flush=True)
            finally:
                m[0].__exit__()
        for name, (number, rss, maps, descriptors) in samples[1].items():
            was = samples[0][name]
            assert number == was[0] and rss < was[1] * 1.25 + 8192 and maps < was[2] * 1.25 + 20 and descriptors <= was[3] + 6, \
                f"{name}: processes, KiB, mappings, descriptors {was}, then {samples[1][name]}"
        expect(redis.status, 0, "redis-server's end")
        stats = json.loads(lib.read(f"{d}/stats.json"))
        print(f"# redis: {stats['memory_slots']} memory slots, {stats['forks']} forks", flush=True)
        assert stats["memory_slots"] < 64, stats["memory_slots"]


if __name__ == "__main__":
    sys.exit(lib.run_tests([("soak", soak)], slow=0))
