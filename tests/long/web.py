#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""web.py [--only PATTERN]: nginx in a pVM with 10,000 idle connections, and with uploads of 1 GiB. KYLINX: the binary."""
import hashlib
import http.client
import os
import resource
import socket
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../integration"))
import lib
from lib import Skip, expect
from servers import Nginx, fds, kids, need, rss_kib, until, write

args = lib.arguments()
IDLE = 10000
SIZE = 1 << 30


def get(s, body):
    s.sendall(b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n")
    got = b""
    while not got.endswith(body):
        part = s.recv(65536)
        if not part:
            raise AssertionError(f"closed after {got!r}")
        got += part


def idle_connections():
    """10,000 that have had one answer and are kept, and one that is busy; all of them answer at the end"""
    need("nginx")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit[1] < IDLE + 500:
        raise Skip(f"the hard limit of open files is {limit[1]}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    body = b"small file\n" * 10
    with lib.Dir() as d:
        os.chmod(d, 0o777)
        write(d, "small", body.decode())
        port = lib.free_port()
        http_block = (f"keepalive_timeout 600s; keepalive_requests 1000000; "
                      f"server {{ listen 127.0.0.1:{port} backlog=4096 reuseport; root {d}; }}")
        with Nginx(d, http_block, port, connections=IDLE + 500, files=IDLE + 1000, events="accept_mutex off;") as n:
            before = [(fds(p), rss_kib(p)) for p in kids(n.pid)]
            held = []
            for _ in range(IDLE):
                held.append(socket.create_connection(("127.0.0.1", port), 60))
                get(held[-1], body)
            full = [(fds(p), rss_kib(p)) for p in kids(n.pid)]
            assert sum(f for f, _ in full) - sum(f for f, _ in before) >= IDLE, f"{before}, then {full}"
            active = socket.create_connection(("127.0.0.1", port), 60)
            for _ in range(500):
                get(active, body)
            for s in held:
                get(s, body)
            for s in (active, *held):
                s.close()
            with socket.create_connection(("127.0.0.1", port), 60) as s:
                get(s, body)
            until("descriptors are closed", lambda: sum(fds(p) for p in kids(n.pid)) <= sum(f for f, _ in before) + 20)
            after = [(fds(p), rss_kib(p)) for p in kids(n.pid)]
            print(f"# descriptors and KiB of the workers: {before}, with {IDLE} connections {full}, after them {after}", flush=True)


class Random:
    """A body of SIZE bytes that no server has seen; .digest is that of what was read."""

    def __init__(self):
        self.block, self.left, self.digest = os.urandom(1 << 20), SIZE, hashlib.sha256()

    def read(self, n):
        n = min(n, self.left, len(self.block))
        self.left -= n
        self.digest.update(self.block[:n])
        return self.block[:n]

    def chunks(self):
        while self.left:
            yield self.read(1 << 20)


def upload():
    """1 GiB by PUT to a volume, with a length and in chunks; a small request beside it; then both are read"""
    need("nginx")
    with lib.Dir() as d:
        os.chmod(d, 0o777)
        write(d, "small", "x")
        os.mkdir(f"{d}/put")
        os.chmod(f"{d}/put", 0o777)
        port = lib.free_port()
        block = (f"client_max_body_size 2g; server {{ listen 127.0.0.1:{port}; root {d}; "
                 f"location /put/ {{ dav_methods PUT DELETE; root {d}; }} }}")
        with Nginx(d, block, port) as n:
            before = [fds(p) for p in kids(n.pid)]
            for how in ("length", "chunks"):
                body, over, others = Random(), threading.Event(), [0]

                def beside():
                    while not over.is_set():
                        c = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                        c.request("GET", "/small")
                        others[0] += c.getresponse().read() == b"x"
                        c.close()
                t = threading.Thread(target=beside)
                t.start()
                try:
                    c = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
                    if how == "length":
                        c.request("PUT", f"/put/{how}", body, {"Content-Length": str(SIZE)})
                    else:
                        c.request("PUT", f"/put/{how}", body.chunks(), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
                    r = c.getresponse()
                    expect((r.status, r.read()), (201, b""), f"PUT by {how}")
                finally:
                    over.set()
                    t.join()
                assert others[0] > 5, f"{others[0]} requests beside it"
                expect(os.stat(f"{d}/put/{how}").st_size, SIZE, "size")
                got = hashlib.sha256()
                c.request("GET", f"/put/{how}")
                r = c.getresponse()
                while part := r.read(1 << 20):
                    got.update(part)
                expect(got.hexdigest(), body.digest.hexdigest(), "content")
                c.request("DELETE", f"/put/{how}")
                r = c.getresponse()
                expect((r.status, r.read()), (204, b""), "DELETE")
                c.close()
            assert sum(fds(p) for p in kids(n.pid)) <= sum(before) + 4, "descriptors"


if __name__ == "__main__":
    sys.exit(lib.run_tests([(f.__name__, f) for f in (idle_connections, upload)], args.only, slow=0))
