#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""memcached, node and asyncio as servers in pVMs, and how processes of a family share what they listen on: the same
answers as natively.

test_daemons.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure.
"""
import http.client
import os
import random
import re
import select
import shutil
import signal
import socket
import struct
import sys
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402
from servers import LONG, collection, need, options, silent, until, write  # noqa: E402

args = lib.arguments()
tests, test, long_test = collection()
PYTHON = "/usr/bin/python3"


class Both:
    """A server natively, then in a pVM; what `talk(port, directory)` gives must be the same."""

    def __init__(self, argv, talk, files=(), volumes=()):
        got = []
        for pvm in (False, True):
            with lib.Dir() as d:
                os.chmod(d, 0o777)
                port = lib.free_port()
                for name, text in files:
                    write(d, name, text)
                full = [a.format(d=d, port=port) for a in argv]
                with lib.Server(lib.pvm(full, *options(d, *volumes)) if pvm else full, port, cwd="/") as s:
                    got.append(talk(port, d))
                    s.log.seek(0)
                    log = s.log.read().decode(errors="replace")
                got[-1].append(("end", s.status))
                if pvm:
                    silent(log)
        for a, b in zip(*got):
            expect(b, a, "in a pVM")
        expect(len(got[1]), len(got[0]), "answers")


# ---- memcached ------------------------------------------------------------------------------------------------------

TEXT = r"""set k 7 0 5|hello
get k
gets k nope k
add k 0 0 1|x
add a 0 0 1|1
replace nope 0 0 1|x
append k 0 0 3|abc
prepend k 0 0 1|>
get k
cas k 0 0 1 999999|y
cas nope 0 0 1 1|y
incr a 41
decr a 2
incr a 18446744073709551615
decr a 9999
incr k 1
incr nope 1
set neg 0 -1 1|x
get neg
touch k 100
touch nope 1
gat 100 k
gats 0 a
delete a
delete a
set quiet 0 0 1 noreply|q
get quiet
set long 0 0 300000|LONG
get long
set toolarge 0 0 2000000|HUGE
get toolarge
set bad x y z
set k 0 0 3|toolong
nosuch command
get KEY
version
verbosity 1
ms m 4 T0 F5|data
mg m v f t s k
mg none v
ms m 2 I MS c|ab
mg m v c
mn
ma counter N0 J5 v
ma counter D3 v
ma counter MD v
md m q
md none
mg m
ms b S2 b|xy
me k
slabs reassign 1 2
lru_crawler metadump hash
cache_memlimit 64
flush_all 0
get k
flush_all noreply
stats settings
stats nosuch
shutdown
"""


def memcached_text(port):
    out = []
    with socket.create_connection(("127.0.0.1", port), lib.limit(60)) as s, s.makefile("rb") as f:
        for line in TEXT.strip().splitlines():
            command, _, data = line.partition("|")
            data = {"LONG": "0123456789" * 30000, "HUGE": "x" * 2_000_000}.get(data, data)
            command = command.replace("KEY", "k" * 300)
            s.sendall((command + "\r\n" + (data + "\r\n" if "|" in line else "")).encode())
            s.sendall(b"mn\r\n")  # its answer ends what was said
            said = []
            while not said or said[-1] != b"MN\r\n":
                said.append(f.readline())
                if not said[-1]:
                    raise AssertionError(f"closed after {line!r}")
            text = b"".join(said[:-1])
            if command.startswith("stats"):  # addresses, ports and when it was flushed are in them
                text = re.sub(rb"(?m)^STAT (tcpport|udpport|inter|domain_socket|oldest|.*path) .*\r\n", b"", text)
            text = re.sub(rb"\bt\d+\b", b"t", re.sub(rb"exp=-?\d+", b"exp", re.sub(rb"la=\d+", b"la", text)))
            out.append((line, text))
    return out


def binary(op, key=b"", value=b"", extra=b"", cas=0, opaque=0):
    return struct.pack(">BBHBBHIIQ", 0x80, op, len(key), len(extra), 0, 0, len(extra) + len(key) + len(value), opaque, cas) \
        + extra + key + value


def accepts(path):
    """It is there before it is listened on."""
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(path)
        return True
    except OSError:
        return False


def memcached_binary(address):
    out = []
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as s:
        s.settimeout(lib.limit(60))
        s.connect(address)
        with s.makefile("rb") as f:
            def answer():
                h = struct.unpack(">BBHBBHIIQ", f.read(24))
                return h[1], h[5], h[7], f.read(h[6])
            exp, flags = struct.pack(">I", 0), struct.pack(">I", 77)
            counter = struct.pack(">QQI", 5, 100, 0)
            for op, key, value, extra in (
                    (1, b"bk", b"value", flags + exp), (0, b"bk", b"", b""), (12, b"bk", b"", b""), (0, b"none", b"", b""),
                    (2, b"bk", b"x", flags + exp), (2, b"bn", b"x", flags + exp), (3, b"bk", b"new", flags + exp), (3, b"no", b"", flags + exp),
                    (14, b"bk", b"tail", b""), (15, b"bk", b"head", b""), (0, b"bk", b"", b""), (5, b"cnt", b"", counter),
                    (5, b"cnt", b"", counter), (6, b"cnt", b"", counter), (5, b"bk", b"", counter), (28, b"bk", b"", exp), (29, b"bk", b"", exp),
                    (4, b"bk", b"", b""), (4, b"bk", b"", b""), (10, b"", b"", b""), (11, b"", b"", b""), (99, b"", b"", b""),
                    (1, b"big", b"z" * 900000, flags + exp), (0, b"big", b"", b""), (8, b"", b"", exp), (0, b"big", b"", b"")):
                s.sendall(binary(op, key, value, extra, opaque=0x1234))
                out.append((op, key, answer()))
            s.sendall(binary(1, b"q1", b"1", flags + exp) + b"".join(binary(9, b"q1", opaque=i) for i in range(50)) + binary(9, b"q0") + binary(10))
            out.append(("quiet ones", [answer() for _ in range(52)]))
            s.sendall(binary(7))
            out.append(("quit", answer(), f.read()))
    return out


def memcached_udp(port):
    """Requests have a header of 8 bytes; large answers come in several datagrams."""
    out = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as u:
        u.settimeout(lib.limit(60))
        u.connect(("127.0.0.1", port))

        def ask(i, text):
            u.send(struct.pack(">4H", i, 0, 1, 0) + text)
            parts, n = {}, 1
            while len(parts) < n:
                d = u.recv(65536)
                j, seq, n, _ = struct.unpack(">4H", d[:8])
                expect(j, i, "request")
                parts[seq] = d[8:]
            return b"".join(parts[k] for k in sorted(parts))
        out.append(ask(1, b"set u 0 0 3\r\nabc\r\n"))
        out.append(ask(2, b"get u\r\n"))
        with socket.create_connection(("127.0.0.1", port), lib.limit(60)) as s:
            s.sendall(b"set large 0 0 30000\r\n" + b"L" * 30000 + b"\r\n")
            out.append(s.recv(100))
        out.append(ask(3, b"get large\r\n"))
        for i in range(300):
            expect(ask(i, b"get u\r\n"), b"VALUE u 0 3\r\nabc\r\nEND\r\n", "UDP")
    return out


@test
def memcached():
    """Text, meta and binary protocol, UDP, a unix socket, 30 clients on 4 threads"""
    need("memcached")

    def many(port):
        bad = []

        def client(n):
            try:
                r = random.Random(n)
                with socket.create_connection(("127.0.0.1", port), lib.limit(60)) as s, s.makefile("rb") as f:
                    mine = {}
                    for i in range(60):
                        k, v = f"c{n}-{r.randrange(20)}", "v" * r.randrange(2000)
                        s.sendall(f"set {k} 0 0 {len(v)}\r\n{v}\r\n".encode())
                        mine[k] = v
                        if f.readline() != b"STORED\r\n":
                            bad.append((n, i))
                        k = r.choice(list(mine))
                        s.sendall(f"get {k}\r\n".encode())
                        want = f"VALUE {k} 0 {len(mine[k])}\r\n{mine[k]}\r\nEND\r\n".encode()
                        if f.read(len(want)) != want:
                            bad.append((n, i, k))
            except OSError as e:
                bad.append((n, repr(e)))
        threads = [threading.Thread(target=client, args=(n,)) for n in range(30)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        return bad

    Both(["memcached", "-l", "127.0.0.1", "-p", "{port}", "-U", "{port}", "-u", "root", "-t", "4", "-m", "100"],
         lambda port, d: [*memcached_text(port), *memcached_binary(("127.0.0.1", port)), *memcached_udp(port), many(port)])
    with lib.Dir() as d:
        got = []
        for pvm in (False, True):
            argv = ["memcached", "-s", f"{d}/sock", "-a", "777", "-u", "root"]
            s = lib.Server(lib.pvm(argv, *options(d)) if pvm else argv, 0, cwd="/")
            try:
                until("socket", lambda: accepts(f"{d}/sock"))
                got.append(memcached_binary(f"{d}/sock"))
            finally:
                s.__exit__()
            if os.path.exists(f"{d}/sock"):
                os.unlink(f"{d}/sock")
        expect(got[1], got[0], "by a unix socket")


# ---- node -----------------------------------------------------------------------------------------------------------

NODE = r"""
const http = require('http'), net = require('net'), cluster = require('cluster'), fs = require('fs'), zlib = require('zlib');
const { Worker } = require('worker_threads'), { spawn, execFile } = require('child_process'), crypto = require('crypto');
const dgram = require('dgram'), [port, dir] = process.argv.slice(2);
if (cluster.isPrimary) {
	let n = 0;
	for (let i = 0; i < 2; i++) cluster.fork();
	cluster.on('exit', w => cluster.fork());
	process.on('SIGTERM', () => process.exit(0));
	const u = dgram.createSocket('udp4', (m, r) => u.send(Buffer.from(m).reverse(), r.port, r.address)).bind(port, '127.0.0.1');
	net.createServer({ allowHalfOpen: true }, c => { const s = crypto.createHash('sha1'); c.on('data', d => s.update(d));
		c.on('end', () => c.end(s.digest('hex'))); }).listen(dir + '/sock');
} else http.createServer((q, s) => {
	const url = new URL(q.url, 'http://x');
	switch (url.pathname) {
	case '/pid': return s.end(String(process.pid));
	case '/echo': q.pipe(s); return;
	case '/gzip': s.setHeader('Content-Encoding', 'gzip'); fs.createReadStream(__filename).pipe(zlib.createGzip()).pipe(s); return;
	case '/stream': { let i = 0; const t = setInterval(() => { s.write('part ' + i + '\n'); if (++i == 20) { clearInterval(t); s.end(); } }, 2); return; }
	case '/spawn': { const c = spawn('tr', ['a-z', 'A-Z']); q.pipe(c.stdin); c.stdout.pipe(s); return; }
	case '/exec': return execFile('sh', ['-c', 'echo out; echo err >&2; exit 7'], (e, o, x) => s.end(o + x + e.code));
	case '/thread': { const w = new Worker("const { parentPort: p } = require('worker_threads'); p.on('message', n => { let a = 0, b = 1; " +
		"for (let i = 0; i < n; i++) [a, b] = [b, (a + b) % 1000000007]; p.postMessage(a); process.exit(); })", { eval: true });
		w.on('message', m => s.end(String(m))); w.postMessage(100000); return; }
	case '/file': return fs.promises.writeFile(dir + '/f' + process.pid, 'x'.repeat(100000)).then(() => fs.promises.stat(dir + '/f' + process.pid)).then(
		t => s.end(String(t.size)));
	case '/crypto': return crypto.pbkdf2('p', 's', 1000, 32, 'sha256', (e, k) => s.end(k.toString('hex')));
	default: s.statusCode = 404; s.end('none');
	}
}).listen(port, '127.0.0.1', 1000);
"""


def node_talk(port, d):
    out, bad = [], []
    body = bytes(range(97, 123)) * 20000

    def client(n):
        try:
            c = http.client.HTTPConnection("127.0.0.1", port, timeout=lib.limit(60))
            for i in range(15):
                c.request("POST", "/echo", body[:i * 5000 + n])
                if c.getresponse().read() != body[:i * 5000 + n]:
                    bad.append((n, i))
            c.close()
        except (OSError, http.client.HTTPException) as e:
            bad.append((n, repr(e)))

    c = http.client.HTTPConnection("127.0.0.1", port, timeout=lib.limit(60))
    for path in ("/stream", "/spawn", "/exec", "/thread", "/file", "/crypto", "/gzip", "/none", "/echo"):
        c.request("POST", path, body if path != "/thread" else b"")
        r = c.getresponse()
        data = r.read()
        out.append((path, r.status, [h for h in r.getheaders() if h[0] != "Date"], data if path != "/gzip" else data[:2]))
    c.close()
    threads = [threading.Thread(target=client, args=(n,)) for n in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    out.append(("clients", bad))
    def pid():
        try:
            c = http.client.HTTPConnection("127.0.0.1", port, timeout=lib.limit(2))
            c.request("GET", "/pid")
            return int(c.getresponse().read())
        except (OSError, http.client.HTTPException):
            return 0  # given to the one that was killed
        finally:
            c.close()
    before = set()
    until("two workers", lambda: before.add(pid()) or len(before - {0}) == 2)
    before.discard(0)
    victim = before.pop()
    os.kill(victim, signal.SIGKILL)
    after = {until("an answer", pid) for _ in range(5)}
    until("another worker", lambda: pid() not in {0, victim} | before)
    out.append(("workers take turns, one dies", len(before), victim in after))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as u:
        u.settimeout(lib.limit(60))
        for i in range(100):
            u.sendto(b"%d abc" % i, ("127.0.0.1", port))
            expect(u.recv(999), (b"%d abc" % i)[::-1], "UDP")
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(f"{d}/sock")
        s.sendall(body)
        s.shutdown(socket.SHUT_WR)
        out.append(("unix", s.recv(99)))
    return out


@long_test
def node():
    """cluster with two workers, streams, worker threads, children, UDP, a unix socket"""
    need("node", root=False)
    Both([shutil.which("node"), "{d}/s.js", "{port}", "{d}"], node_talk, [("s.js", NODE)])


# ---- asyncio --------------------------------------------------------------------------------------------------------

ASYNCIO = r"""
import asyncio, signal, sys, os, socket
port, d, loop_kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if loop_kind == "uvloop":
    import uvloop
    uvloop.install()
async def echo(r, w):
    try:
        while True:
            data = await r.read(1 << 16)
            if not data:
                break
            w.write(data)
            await w.drain()
        w.write(b"bye")
        w.write_eof()
    finally:
        w.close()
async def commands(r, w):  # they read first: uvloop fails when a child has ended before it is written to
    while True:
        line = await r.readline()
        if not line:
            break
        p = await asyncio.create_subprocess_exec("sh", "-c", "read x; " + line.decode(), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                                                 stderr=asyncio.subprocess.STDOUT)
        out, _ = await p.communicate(b"x\ninput\n")
        w.write(b"%d %d\n" % (p.returncode, len(out)) + out)
        await w.drain()
    w.close()
class Udp(asyncio.DatagramProtocol):
    def connection_made(self, t):
        self.t = t
    def datagram_received(self, data, a):
        self.t.sendto(data[::-1], a)
async def main():
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await loop.create_datagram_endpoint(Udp, ("127.0.0.1", port))
    u = await asyncio.start_unix_server(echo, d + "/sock")
    x = await asyncio.start_unix_server(commands, d + "/run")
    r, w = os.pipe()
    loop.add_reader(r, lambda: (os.read(r, 100), None))
    async def ticks():
        while True:
            await asyncio.sleep(0.01)
            os.write(w, b"x")
            await loop.run_in_executor(None, sum, range(100))
            await loop.getaddrinfo("localhost", 80)
    t = asyncio.create_task(ticks())
    s = await asyncio.start_server(echo, "127.0.0.1", port)
    await stop.wait()
    t.cancel()
    for x in (s, u, x):
        x.close()
asyncio.run(main())
"""


def exchange(s, data):
    """All of it sent and the end said, while it comes back."""
    got, at, over = bytearray(), 0, False
    s.setblocking(False)
    while True:
        r, w, _ = select.select([s], [] if over else [s], [], 60)
        if not r and not w:
            raise AssertionError(f"nothing moves after {at} sent, {len(got)} received")
        if w:
            at += s.send(data[at:at + 100000])
            if at == len(data):
                s.shutdown(socket.SHUT_WR)
                over = True
        if r:
            part = s.recv(1 << 17)
            if not part:
                return bytes(got)
            got += part


def asyncio_talk(port, d):
    out, bad = [], []
    data = os.urandom(3_000_000)

    def client(n):
        try:
            with socket.create_connection(("127.0.0.1", port)) as s:
                bad.extend([n] if exchange(s, data[n:100000 + n]) != data[n:100000 + n] + b"bye" else [])
        except (OSError, AssertionError) as e:
            bad.append((n, repr(e)))
    for where in (("127.0.0.1", port), f"{d}/sock"):
        with socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET) as s:
            s.connect(where)
            out.append((exchange(s, data) == data + b"bye"))
    threads = [threading.Thread(target=client, args=(n,)) for n in range(40)]
    for t in threads:
        t.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as u:
        u.settimeout(lib.limit(60))
        for size in [*range(1, 200), 1472, 1473, 9000, 65507]:
            u.sendto(data[:size], ("127.0.0.1", port))
            expect(u.recv(65536) == data[:size][::-1], True, f"UDP of {size} bytes")
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(lib.limit(60))
        s.connect(f"{d}/run")
        s.sendall(b"cat; exit 3\necho a | tr a b >&2\nkill -9 $$\nhead -c 200000 /dev/zero | tr '\\0' y\n" + b"true\n" * 5)
        s.shutdown(socket.SHUT_WR)
        with s.makefile("rb") as f:
            out.append(f.read())
    for t in threads:
        t.join()
    return [*out, bad]


@test
def asyncio():
    """TCP, UDP and unix echo for 40 clients at once, subprocesses, a thread pool"""
    need(PYTHON, root=False)
    Both([PYTHON, "{d}/s.py", "{port}", "{d}", "asyncio"], asyncio_talk, [("s.py", ASYNCIO)])


@long_test
def uvloop():
    need(PYTHON, root=False)
    if lib.run([PYTHON, "-c", "import uvloop"]).status:
        raise Skip("python3-uvloop is not installed")
    Both([PYTHON, "{d}/s.py", "{port}", "{d}", "uvloop"], asyncio_talk, [("s.py", ASYNCIO)])


# ---- shared listening sockets ---------------------------------------------------------------------------------------

SHARED = r"""
import fcntl, multiprocessing, os, select, signal, socket, sys
port, how, n = int(sys.argv[1]), sys.argv[2], 4
family = socket.AF_INET6 if "6" in how else socket.AF_INET
host = "::1" if "6" in how else "127.0.0.1"
def listener(kind=socket.SOCK_STREAM, reuse=False):
    s = socket.socket(family, kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind((host, port))
    if kind == socket.SOCK_STREAM:
        s.listen(512)
    return s
reuse = "reuseport" in how
s = None if reuse else listener()
lock = open(sys.argv[3] + "/lock", "w+")
mutex = multiprocessing.get_context("fork").Lock()  # sem_t in shared memory
def locked(on):
    if "flock" in how:
        fcntl.flock(mine, fcntl.LOCK_EX if on else fcntl.LOCK_UN)
    elif "lockf" in how:
        fcntl.lockf(mine, fcntl.LOCK_EX if on else fcntl.LOCK_UN)
    elif "sem" in how:
        mutex.acquire() if on else mutex.release()
def serve(i, s):
    global mine
    mine = open(sys.argv[3] + "/lock", "r+")
    u = listener(socket.SOCK_DGRAM, True) if reuse else None
    if reuse:
        s = listener(reuse=True)
    ep = None
    if "epoll" in how:
        s.setblocking(False)
        ep = select.epoll()
        ep.register(s, select.EPOLLIN | (select.EPOLLEXCLUSIVE if "exclusive" in how else 0))
    if u and os.fork() == 0:
        while True:
            d, a = u.recvfrom(999)
            u.sendto(b"%d" % i, a)
    while True:
        if ep:
            ep.poll()
        locked(True)
        try:
            c, _ = s.accept()
        except BlockingIOError:
            continue
        finally:
            locked(False)
        c.sendall(b"%d" % i)
        c.close()
pids = []
for i in range(n):
    p = os.fork()
    if not p:
        serve(i, s)
    pids.append(p)
def end(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    for p in pids:
        try:
            os.waitpid(p, 0)
        except ChildProcessError:
            pass
    os._exit(0)
signal.signal(signal.SIGTERM, end)
while True:
    signal.pause()
"""


def bound(kind, port, six):
    """Sockets of the machine that have that number and no peer."""
    rows = [line.split() for line in lib.read(f"/proc/net/{kind}{'6' * six}").splitlines()[1:]]
    return sum(r[1].endswith(f":{port:04X}") and r[2].endswith(":0000") for r in rows)


def shared_talk(port, how):
    host = "::1" if "6" in how else "127.0.0.1"
    count = [0] * 4
    held = []
    for _ in range(400):
        s = socket.create_connection((host, port), lib.limit(60))
        held.append(s)
        if len(held) == 20:
            for s in held:
                count[int(s.recv(9))] += 1
                s.close()
            held = []
    if "reuseport" not in how:
        return count, None
    datagrams = [0] * 4
    for _ in range(400):
        with socket.socket(socket.AF_INET6 if "6" in how else socket.AF_INET, socket.SOCK_DGRAM) as u:
            u.settimeout(lib.limit(60))
            u.connect((host, port))
            u.send(b"x")
            datagrams[int(u.recv(9))] += 1
    return count, datagrams


@test
def shared_listeners():
    """Four processes: SO_REUSEPORT of TCP and UDP is even, IPv4 and IPv6; accept() of one socket; mutexes around it"""
    need(PYTHON, root=False)
    ways = ("reuseport", "reuseport6", "epoll exclusive", "sem") + LONG * (
        "reuseport epoll", "accept", "accept6", "epoll", "flock", "lockf")
    for how in ways:
        with lib.Dir() as d:
            port = lib.free_port()
            path = write(d, "s.py", SHARED)
            argv = lib.pvm([PYTHON, path, str(port), how, d], *options(d))
            with lib.Server(argv, port, cwd="/", host="::1" if "6" in how else "127.0.0.1") as s:
                if "reuseport" in how:  # all four, or the first ones get more
                    until("four listen", lambda: [bound(kind, port, "6" in how) for kind in ("tcp", "udp")] == [4, 4])
                count, datagrams = shared_talk(port, how)
                for c in (count, datagrams):
                    if c and datagrams:  # 100 each: 60 are four and a half standard deviations off
                        assert sum(c) == 400 and min(c) > 60, f"{how}: {c}"
                expect(sum(count), 400, how)
                s.log.seek(0)
                silent(s.log.read().decode())


if __name__ == "__main__":
    sys.exit(lib.run_tests(tests, args.only, slow=0))
