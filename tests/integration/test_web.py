#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""nginx in a pVM beside the same nginx natively: what curl and slower clients get is the same.

test_web.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure. What takes long is in tests/long/web.py.
"""
import errno
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
sys.path.append(os.path.join(lib.TOP, "bench"))  # behind: it has a servers.py of its own
import loops  # noqa: E402
from lib import expect  # noqa: E402
from servers import ENV, LONG, collection, Load, Nginx, certificate, kids, need, options, until, write  # noqa: E402

args = lib.arguments()
tests, test, long_test = collection()


HTTP = """
sendfile {sendfile}; tcp_nopush on; client_max_body_size 50m; client_header_timeout {header}; keepalive_timeout 60s;
gzip on; gzip_min_length 100; gzip_types text/plain; gzip_http_version 1.0; gzip_proxied any;
proxy_http_version 1.1;
upstream up {{ server unix:{d}/back.sock; keepalive 4; }}
server {{
 listen 127.0.0.1:{port} {reuse}; listen [::1]:{port} {reuse}; listen 127.0.0.1:{tls} ssl http2 {reuse};
 ssl_certificate {d}/cert; ssl_certificate_key {d}/key; ssl_protocols TLSv1.2 TLSv1.3;
 root {d}/www;
 location = /echo {{ proxy_pass http://up; proxy_request_buffering {buffering}; }}
 location /through/ {{ proxy_pass http://127.0.0.1:{port}/; proxy_buffering {buffering}; }}
 location = /moved {{ return 301 /small; }}
 location = /denied {{ deny all; }}
 location /put/ {{ dav_methods PUT DELETE MKCOL COPY MOVE; create_full_put_path on; alias {d}/put/; }}
 location = /slow {{ alias {d}/www/large; limit_rate 8m; }}
 location = /aio {{ alias {d}/www/large; aio threads; directio 512; output_buffers 2 64k; }}
 location = /sub {{ alias {d}/www/small; sub_filter "line" "LINE"; sub_filter_once off; sub_filter_types *; }}
 location = /status {{ stub_status; }}
 location /list/ {{ alias {d}/www/list/; autoindex on; autoindex_format json; }}
}}
server {{
 listen unix:{d}/back.sock;
 client_max_body_size 50m;
 location = /echo {{ client_body_in_single_buffer on; proxy_pass http://127.0.0.1:{echo}; proxy_request_buffering {buffering}; }}
}}
"""


class Echo:
    """Natively, in a thread: answers each request with its body, chunked, a line of its headers in front."""

    def __init__(self):
        self.s = socket.create_server(("127.0.0.1", 0))
        self.port = self.s.getsockname()[1]
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                c, _ = self.s.accept()
            except OSError:
                return
            threading.Thread(target=self.talk, args=(c,), daemon=True).start()

    def talk(self, c):
        with c, c.makefile("rb") as f:
            while True:
                first = f.readline()
                if not first:
                    return
                headers = {}
                while True:
                    line = f.readline().strip().decode()
                    if not line:
                        break
                    k, v = line.split(":", 1)
                    headers[k.lower()] = v.strip()
                body = b""
                if "chunked" in headers.get("transfer-encoding", ""):
                    while True:
                        n = int(f.readline(), 16)
                        body += f.read(n)
                        f.readline()
                        if not n:
                            break
                else:
                    body = f.read(int(headers.get("content-length", 0)))
                c.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: x/y\r\n\r\n")
                parts = [first.split()[0] + b" %d\n" % len(body)] + [body[i:i + 7000] for i in range(0, len(body), 7000)]
                for p in parts:
                    c.sendall(b"%x\r\n%s\r\n" % (len(p), p))
                c.sendall(b"0\r\n\r\n")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.s.shutdown(socket.SHUT_RDWR)  # wakes accept()
        except OSError:
            pass
        self.s.close()


def files(d):
    for sub in ("www", "put", "www/list"):
        os.mkdir(f"{d}/{sub}")
        os.chmod(f"{d}/{sub}", 0o777)
    os.chmod(d, 0o777)
    write(f"{d}/www", "small", "".join(f"line {i}\n" for i in range(200)))
    write(f"{d}/www", "empty", "")
    write(f"{d}/www/list", "one", "1")
    write(f"{d}/www/list", "two", "22")
    with open(f"{d}/www/large", "wb") as f:
        f.write(os.urandom(6_000_000))
    for path in ("small", "empty", "large", "list/one", "list/two", "list"):
        os.utime(f"{d}/www/{path}", (1_500_000_000,) * 2)
    certificate(d)


# {u} is the server, {t} the same by TLS, {d} the directory.
CURL = """
{u}/small
-I {u}/small
{u}/empty
{u}/large
{u}/none
{u}/moved
-L {u}/moved
{u}/denied
-X OPTIONS {u}/small
-X BAD {u}/small
--path-as-is {u}/../../../etc/passwd
-H 'Host:' {u}/small
-r 0-99 {u}/large
-r 5999990- {u}/large
-r -500 {u}/large
-r 7000000- {u}/large
-r 0-9,100-199,5000000-5000100,-5 {u}/large
-r 5-1 {u}/small
-z 'Thu, 01 Jan 2026 00:00:00 GMT' {u}/small
-H 'If-None-Match: "none"' {u}/small
-H 'If-Range: "none"' -r 0-3 {u}/small
-H 'If-Match: "none"' {u}/small
-H 'Accept-Encoding: gzip' {u}/small
--compressed {u}/small
-H 'Accept-Encoding: gzip' {u}/through/small
-0 {u}/small
-H 'Connection: close' {u}/small
{u}/small {u}/empty {u}/small {u}/none
-H 'Expect: 100-continue' -d abc {u}/echo
--data-binary @{d}/www/large {u}/echo
-H 'Transfer-Encoding: chunked' --data-binary @{d}/www/large {u}/echo
-H 'Transfer-Encoding: chunked' -d '' {u}/echo
-F file=@{d}/www/small -F x=y {u}/none
{u}/through/large
-r 100-200 {u}/through/large
{u}/through/through/through/small
-T {d}/www/large {u}/put/a/b/file
-T {d}/www/small -H 'Transfer-Encoding: chunked' {u}/put/chunked
-X MKCOL {u}/put/col/
-X COPY -H 'Destination: /put/copy' {u}/put/a/b/file
-X MOVE -H 'Destination: /put/moved' {u}/put/copy
-X DELETE {u}/put/moved
-X DELETE {u}/put/moved
{u}/sub
-r 0-999999 {u}/slow
{u}/aio
-r 77777-177777 {u}/aio
{u}/list/
-6 {u6}/small
-k {t}/small
-k --tlsv1.3 {t}/large
-k --tls-max 1.2 {t}/large
-k --http1.1 {t}/small {t}/large {t}/small
-k --http2 {t}/small {t}/large {t}/small
-k --http2 --data-binary @{d}/www/large {t}/echo
-k -r 0-9,20-29 --http2 {t}/large
--cacert {d}/cert {t}/empty
--http2-prior-knowledge {u}/small
--limit-rate 8M -r 0-1999999 {u}/large
"""


def fetch(d, port, tls):
    """[(command, status, answer, errors)] of all of CURL."""
    out = []
    for line in CURL.strip().splitlines():
        full = line.format(d=d, u=f"http://127.0.0.1:{port}", u6=f"http://[::1]:{port}", t=f"https://127.0.0.1:{tls}")
        r = lib.run(["sh", "-c", f"exec curl -sS -i --max-time 150 {full}"])
        answer = r.out
        for date in (b"\r\nDate: ", b"\r\ndate: "):  # a regular expression would take its time
            first, *parts = answer.split(date)
            answer = b"".join([first, *(b"\r\n" + p.partition(b"\r\n")[2] for p in parts)])
        if b"multipart/byteranges" in answer:
            answer = re.sub(rb"\b\d{20}\b", b"BOUNDARY", answer)
        out.append((line, r.status, answer, re.sub(rb"\b\d+ ms\b", b"", r.err)))
    return out


def settings(d, echo, buffering="on", sendfile="on", reuse="", header="60s"):
    port, tls = lib.free_port(), lib.free_port()
    return port, tls, HTTP.format(d=d, port=port, tls=tls, echo=echo.port, buffering=buffering, sendfile=sendfile, reuse=reuse,
                                   header=header)


def same(got, want):
    for g, w in zip(got, want):
        if g != w:
            a, b = g[2], w[2]
            i = next((i for i in range(min(len(a), len(b))) if a[i] != b[i]), min(len(a), len(b)))
            raise AssertionError(f"{g[0]}: {g[1]} {g[3]!r} {len(a)} bytes, from {i} {a[max(0, i - 30):i + 60]!r}; natively "
                                 f"{w[1]} {w[3]!r} {len(b)} bytes, {b[max(0, i - 30):i + 60]!r}")
    expect(len(got), len(want), "answers")


def has_direct(path):
    """Whether that file can be read past the page cache: not in a tmpfs of Linux before 6.6, of which nginx then tells."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError as e:
        expect(e.errno, errno.EINVAL, "O_DIRECT")
        return False
    return True


@test
def curl():
    """Ranges, chunks, uploads, gzip, TLS 1.2 and 1.3, HTTP/2, a proxy, upstream by a unix socket, PUT, IPv6"""
    need("nginx", "curl", "openssl")
    with Echo() as echo, lib.Dir() as d:
        files(d)
        errors = "No such file|access forbidden" + ("" if has_direct(f"{d}/www/large") else r"|fcntl\(O_DIRECT\)")
        for how in ({}, {"buffering": "off", "sendfile": "off", "reuse": "reuseport"})[:2 if LONG else 1]:
            port, tls, http = settings(d, echo, **how)
            answers = []
            for pvm in (False, True):
                with Nginx(d, http, port, pvm, errors=errors):
                    answers.append(fetch(d, port, tls))
                for name in ("a/b/file", "chunked"):
                    with open(f"{d}/put/{name}", "rb") as f:
                        answers[-1].append((name, 0, f.read(), b""))
                shutil.rmtree(f"{d}/put")
                os.mkdir(f"{d}/put")
                os.chmod(f"{d}/put", 0o777)
                os.unlink(f"{d}/error.log")  # has what curl was denied
            same(answers[1], answers[0])


def connect(port, receive=0):
    s = socket.socket()
    if receive:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    s.settimeout(lib.limit(60))
    s.connect(("127.0.0.1", port))
    return s


@long_test
def slow_clients():
    """Headers byte by byte, headers that never end, readers of a large file that stop, a body in drops; others go on"""
    need("nginx", "openssl")
    with Echo() as echo, lib.Dir() as d:
        files(d)
        port, _, http = settings(d, echo, header="8s")
        with open(f"{d}/www/large", "rb") as f:
            large = f.read()
        small = lib.read(f"{d}/www/small").encode()
        with Nginx(d, http, port, workers=1):
            readers = [connect(port, 4096) for _ in range(20)]  # stop after the first bytes
            for r in readers:
                r.sendall(b"GET /large HTTP/1.0\r\n\r\n")
            dripping, endless, body = connect(port), connect(port), connect(port)
            began = time.monotonic()
            endless.sendall(b"GET /small HTTP/1.1\r\nHost: x\r\n")
            body.sendall(b"POST /echo HTTP/1.0\r\nContent-Length: 20\r\n\r\n")
            for i, c in enumerate(b"GET /small HTTP/1.0\r\n\r\n"):
                dripping.sendall(bytes([c]))
                if i < 20:
                    body.sendall(b"%d" % (i % 10))
                time.sleep(0.02)
                c = connect(port)
                c.sendall(b"GET /small HTTP/1.0\r\n\r\n")
                expect(lib.received(c).endswith(small), True, "somebody else")
                c.close()
            expect(lib.received(dripping).endswith(small), True, "byte by byte")
            expect(lib.received(body).endswith(b"POST 20\n" + b"0123456789" * 2), True, "a body in drops")
            expect(lib.received(endless), b"", "headers that never end")
            assert time.monotonic() - began > 7, "client_header_timeout of 8 s"
            gone = readers[10:]
            for r in gone:
                r.close()  # with most of the file in nginx's hands
            for r in readers[:10]:
                expect(lib.received(r).partition(b"\r\n\r\n")[2] == large, True, "a reader that stopped")
            for s in (dripping, endless, body, *readers):
                s.close()


@long_test
def proxy_to_another_pvm():
    """Two pVMs of nginx, one in front, over TLS and a unix socket; both reload under load"""
    need("nginx", "curl", "openssl")
    with lib.Dir() as d, lib.Dir() as front:
        files(d)
        port, tls, ports = lib.free_port(), lib.free_port(), [lib.free_port(), lib.free_port()]
        os.chmod(front, 0o777)
        behind = (f"server {{ listen 127.0.0.1:{port}; listen 127.0.0.1:{tls} ssl; listen unix:{d}/sock; root {d}/www; "
                  f"ssl_certificate {d}/cert; ssl_certificate_key {d}/key; }}")
        before = (f"proxy_http_version 1.1; upstream u {{ server unix:{d}/sock; server 127.0.0.1:{port}; keepalive 8; }} "
                  f"upstream t {{ server 127.0.0.1:{tls}; keepalive 8; }} "
                  f"server {{ listen 127.0.0.1:{ports[0]}; location / {{ proxy_pass http://u; proxy_set_header Connection \"\"; }} }} "
                  f"server {{ listen 127.0.0.1:{ports[1]}; location / {{ proxy_pass https://t; proxy_set_header Connection \"\"; }} }} ")
        with open(f"{d}/www/large", "rb") as f:
            large = f.read(1_000_000)
        with open(f"{d}/www/piece", "wb") as f:
            f.write(large)
        with Nginx(d, behind, port) as b, Nginx(front, before, ports[0], volumes=[d]) as f:
            load = Load(ports, "/piece", large)
            for n in (b, f):
                old = kids(n.pid)
                os.kill(n.pid, signal.SIGHUP)
                until("new workers", lambda: len(kids(n.pid)) == 2 and not set(old) & set(kids(n.pid)), 90)
            load.stop(10)


@test
def workers_share():
    """accept_mutex on, off, and reuseport: both of two workers accept, no connection is lost; HTTP/2 by h2load"""
    need("nginx", "openssl", "h2load")
    for events, reuse in (("accept_mutex on; accept_mutex_delay 50ms;", ""), ("accept_mutex off;", ""),
                          ("accept_mutex off; multi_accept on;", "reuseport"))[0 if LONG else 2:]:
        with lib.Dir() as d:
            files(d)
            port, tls = lib.free_port(), lib.free_port()
            http = (f"server {{ listen 127.0.0.1:{port} {reuse}; listen 127.0.0.1:{tls} ssl http2 {reuse}; root {d}/www; "
                    f"ssl_certificate {d}/cert; ssl_certificate_key {d}/key; location = /pid {{ return 200 $pid; }} }}")
            with Nginx(d, http, port, events=events) as n:
                pids, held = [], []
                for i in range(200):
                    c = connect(port)
                    c.sendall(b"GET /pid HTTP/1.1\r\nHost: x\r\n\r\n")
                    held.append(c)
                for c in held:
                    pids.append(int(c.recv(4096).rpartition(b"\r\n\r\n")[2]))
                    c.close()
                expect(set(pids) <= set(kids(n.pid)), True, "pids")
                if reuse:  # the kernel's hash decides: even, but for chance
                    assert min(pids.count(k) for k in kids(n.pid)) > 60, pids
                for url, more in ((f"https://127.0.0.1:{tls}/small", []), (f"http://127.0.0.1:{port}/small", ["--h1"])):
                    r = lib.run(["h2load", "-n", "1000", "-c", "20", "-m", "10", *more, url])
                    assert b"1000 succeeded, 0 failed, 0 errored" in r.out, f"{url}: {r.why()} {r.out[-600:]!r}"


@test
def a_connection_each():
    """Where one process alone accepts, several connections cost one exit; with two workers each costs that of its accept, which looks
    ahead for the wait, and waits of those who find nothing."""
    need("nginx", "ab")
    for workers, log, limit in ((1, False, 0.9), (1, True, 0.9), (2, False, 2.6), (0, False, 0.9), (0, True, 0.9)):
        with lib.Dir() as d:
            files(d)
            port = lib.free_port()
            http = (f"sendfile on; open_file_cache max=10; {f'access_log {d}/access.log;' if log else ''} "
                    f"server {{ listen 127.0.0.1:{port}; root {d}/www; }}")
            with Nginx(d, http, port, workers=workers, more=("--io", "exit", f"--stats={d}/stats")):
                r = lib.run(["ab", "-q", "-n", "2000", "-c", "20", f"http://127.0.0.1:{port}/small"], 60)
                assert b"Failed requests:        0" in r.out, r.why()
            exits = json.loads(lib.read(f"{d}/stats"))["exits"]
            print(f"# {workers} workers, log {log}: {exits} exits for 2,000 connections", flush=True)
            expect(exits / 2000 < limit, True, f"{exits} exits for 2,000 connections")


@test
def event_loops_of_languages():
    """A connection for each request. Of node, which accepts one a turn and shuts it down: little more than the accept's exit;
    of asyncio, which accepts until there is none, less."""
    need("node", "python3", "ab")
    calls = ("accept4", "shutdown", "close", "epoll_ctl", "epoll_wait", "epoll_pwait", "read", "write", "writev", "recvfrom",
             "sendto", "setsockopt", "getsockname", "mmap", "mremap", "munmap")
    for name, argv, limit in (("node", [shutil.which("node", path=ENV["PATH"]), "-e", loops.NODE], 2.2),
                              ("asyncio", ["/usr/bin/python3", "-c", loops.ASYNCIO], 1.1)):
        with lib.Dir() as d:
            port = lib.free_port()
            with lib.Server(lib.pvm([*argv, str(port)], *options(), "--io", "exit", f"--stats={d}/stats"), port, cwd="/"):
                r = lib.run(["ab", "-q", "-n", "2000", "-c", "20", f"http://127.0.0.1:{port}/"], 100)
                assert b"Failed requests:        0" in r.out and b"Complete requests:      2000" in r.out, r.why()
            made = json.loads(lib.read(f"{d}/stats"))["hypercalls"]
            n = sum(made.get(c, 0) for c in calls)
            print(f"# {name}: {n} calls of the monitor's for 2,000 requests", flush=True)
            expect(n / 2000 < limit, True, f"{name}: {n} calls for 2,000 connections: {made}")


if __name__ == "__main__":
    sys.exit(lib.run_tests(tests, args.only, slow=0))
