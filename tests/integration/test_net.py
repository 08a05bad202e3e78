#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Private networks of families and published ports: what comes in, what stays out, and that nothing is left.

test_net.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure.
"""
import hashlib
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402

args = lib.arguments()

PYTHON = "/usr/bin/python3"
NOBODY = 65534
tests = []

# An echo server: TCP answers when the client has said all, UDP each datagram backwards; prints the client's address.
ECHO = """
import os, socket, sys, threading
def udp(port):
    u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    u.bind(("::", port))
    while True:
        d, a = u.recvfrom(65536)
        u.sendto(d[::-1], a)
def talk(c):
    got = b""
    while True:
        d = c.recv(65536)
        if not d:
            break
        got += d
    c.sendall(TAG + got)
    c.close()
TAG = sys.argv[2].encode()
port = int(sys.argv[1])
s = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
threading.Thread(target=udp, args=(port,), daemon=True).start()
if len(sys.argv) > 3:
    os.fork()  # both accept
print("ready", flush=True)
while True:
    c, a = s.accept()
    if len(sys.argv) > 3:
        c.sendall(b"%d" % os.getpid())
        c.close()
    else:
        threading.Thread(target=talk, args=(c,)).start()
"""

ERRORS = """import select, socket, sys
s = socket.create_server(("", int(sys.argv[1])))
print("ready", flush=True)
c = s.accept()[0]
while c.recv(100):
    pass
print("end", flush=True)
p = select.poll()
p.register(c, 0)
print("error" if any(e & select.POLLERR for _, e in p.poll(60000)) else "nothing", flush=True)
"""


def test(fn):
    def run():
        if not shutil.which("slirp4netns"):
            raise Skip("slirp4netns is not installed")
        fn()
    tests.append((fn.__name__, run))
    return fn


class Family:
    """A program with these options; .p is its process. After the block it and its helpers have ended."""

    def __init__(self, options, argv, prefix=(), stop=signal.SIGTERM):
        self.argv, self.stop = [*prefix, lib.KYLINX, "run", *options, "--", *argv], stop

    def __enter__(self):
        self.p = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  cwd="/", start_new_session=True)
        if self.p.stdout.readline() != b"ready\n":
            self.p.kill()
            raise AssertionError(f"did not start: {self.p.communicate()}")
        return self

    def __exit__(self, *_):
        if self.p.poll() is None:
            self.p.send_signal(self.stop)
        self.p.communicate(timeout=lib.limit(90))


def echo(port, tag="", *more):
    return [PYTHON, "-c", ECHO, str(port), tag, *more]


def tcp(host, port, data):
    with socket.create_connection((host, port), lib.limit(60)) as s:
        s.settimeout(lib.limit(60))
        t = threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)))
        t.start()
        got = lib.received(s)
        t.join()
        return got


def udp(host, port, data):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(lib.limit(60))
        s.sendto(data, (host, port))
        return s.recvfrom(65536)[0]


def closed(host, port):
    try:
        socket.create_connection((host, port), 2).close()
        return False
    except OSError:
        return True


def helper_of(port):
    helpers = [int(x) for x in lib.names("/proc") if x.isdigit() and lib.read(f"/proc/{x}/comm") == "kx-net\n"
               and f"{port}:80" in lib.read(f"/proc/{x}/cmdline")]
    expect(len(helpers), 1, "helpers")
    return helpers[0]


def gone(port):
    end = time.monotonic() + lib.limit(90)
    while time.monotonic() < end:
        if closed("127.0.0.1", port):
            return True
        time.sleep(0.05)
    return False


@test
def started_without_input():
    """What the helper has may have the number of a standard stream then."""
    port, data = lib.free_port(), os.urandom(1000)
    with Family(["-p", f"{port}:9001"], echo(9001), prefix=("sh", "-c", 'exec "$@" <&-', "sh")):
        expect(tcp("127.0.0.1", port, data) == data, True, "the port")


@test
def tcp_and_udp_both_families():
    a, b = lib.free_port(), lib.free_port()
    with Family(["-p", f"{a}:9001", "--publish", f"{b}:9001/udp"], echo(9001)):
        for host in ("127.0.0.1", "::1"):
            for size in (0, 1, 70_000, 1 << 20):
                data = os.urandom(size)
                expect(tcp(host, a, data) == data, True, f"{size} bytes by {host}, TCP")
            for size in (1, 1400, 30_000):
                data = os.urandom(size)
                expect(udp(host, b, data) == data[::-1], True, f"{size} bytes by {host}, UDP")
        many = [threading.Thread(target=lambda i=i: got.append(tcp("127.0.0.1", a, b"%d" % i) == b"%d" % i))
                for i in range(30)]
        got = []
        for t in many:
            t.start()
        for t in many:
            t.join()
        expect(got, [True] * 30, "30 clients at once")
    expect(gone(a), True, "port closed after the end")


@test
def two_families_have_the_same_port_inside():
    a, b, inside = lib.free_port(), lib.free_port(), lib.free_port()
    with Family(["-p", f"127.0.0.1:{a}:{inside}"], echo(inside, "one ")), \
            Family(["-p", f"127.0.0.1:{b}:{inside}"], echo(inside, "two ")):
        expect(tcp("127.0.0.1", a, b"x"), b"one x", "the first")
        expect(tcp("127.0.0.1", b, b"x"), b"two x", "the second")
        expect(closed("127.0.0.1", inside), True, "the port inside is none of the host's")
        expect(closed("::1", a), True, "published at one address alone")


@test
def processes_share_a_published_listener():
    a = lib.free_port()
    with Family(["-p", f"{a}:80"], echo(80, "", "fork"), stop=signal.SIGKILL) as f:
        pids = {tcp("127.0.0.1", a, b"") for _ in range(40)}
        expect(b"" not in pids and len(pids) in (1, 2), True, f"answers {pids}")
        for pid in pids:
            if int(pid) != f.p.pid:
                os.kill(int(pid), signal.SIGKILL)


@test
def the_host_is_out_of_reach():
    """What listens on the host's loopback is not the family's; the family has interfaces of its own and a way out."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
        r = lib.run([lib.KYLINX, "run", "--net", "private", "--", PYTHON, "-c", f"""
import socket
names = sorted(n for _, n in socket.if_nameindex())
print(names)
for host in ("127.0.0.1", "10.0.2.2"):
    try:
        socket.create_connection((host, {port}), 3)
        print("reached", host)
    except OSError:
        pass
"""], 60)
    expect((r.status, r.out), (0, b"['lo', 'tap0']\n"), f"interfaces, and what could be reached: {r.err!r}")


@test
def errors():
    with socket.create_server(("127.0.0.1", 0)) as s:
        busy = s.getsockname()[1]
        for option, part in ((f"127.0.0.1:{busy}:80", b"Address already in use (choose another port"),
                             ("80", b"not a port to publish (give"), ("0:80", b"not a port: '0'"), ("70000:80", b"70000"),
                             ("1:2/sctp", b"unknown protocol 'sctp'"), ("1.2.3:1:2", b"not an address"),
                             ("192.0.2.1:18999:80", b"(give an address of this host)"), (":1:2", b"not an address")):
            r = lib.run([lib.KYLINX, "run", "-p", option, "/bin/true"])
            expect((r.status, r.out, r.err.count(b"\n"), part in r.err), (125, b"", 1, True), f"-p {option}: {r.err!r}")
    r = lib.run([lib.KYLINX, "run", "--net", "host", "-p", "18998:80", "/bin/true"])
    expect((r.status, r.err.count(b"\n")), (125, 1), f"published, in the host's network: {r.err!r}")
    r = lib.run([lib.KYLINX, "run", "-p", "18998:80", "/bin/true"], env={"PATH": "/nonexistent"})
    expect((r.status, b"apt-get install slirp4netns" in r.err), (125, True), f"no slirp4netns: {r.err!r}")


@test
def killed_at_any_time():
    """SIGKILL to the family, or to its helper: nothing is left, and a family without its helper goes on."""
    for wait in (0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4):
        a = lib.free_port()
        p = subprocess.Popen([lib.KYLINX, "run", "-p", f"{a}:80", "--", "/bin/sleep", "60"], cwd="/",
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(wait)
        p.kill()
        p.wait()
        expect(gone(a), True, f"port closed after SIGKILL at {wait} s")
    a = lib.free_port()
    with Family(["-p", f"{a}:80"], echo(80)) as f:
        expect(tcp("127.0.0.1", a, b"x"), b"x", "before")
        os.kill(helper_of(a), signal.SIGKILL)
        expect(gone(a), True, "port closed with the helper")
        expect(f.p.poll(), None, "the program goes on")


# For one client at a time and each way of talking: both ways at once without reading first; closes with unread data.
BOTH_WAYS = """
import hashlib, os, socket, sys, threading, time
s = socket.create_server(("", int(sys.argv[1])))
def talk(c):
    how = c.recv(1)
    if how == b"B":  # says all before it listens
        data = bytes(range(256)) * 80000
        c.sendall(hashlib.sha256(data).digest() + data)
        h, n = hashlib.sha256(), 0
        while d := c.recv(65536):
            h.update(d)
            n += len(d)
        c.sendall(h.digest() + b"%d" % n)
    elif how == b"L":  # listens late
        time.sleep(1)
        h = hashlib.sha256()
        while d := c.recv(65536):
            h.update(d)
        c.sendall(h.digest())
    elif how == b"E":  # ends its direction, then listens
        c.sendall(b"x" * 3000000)
        c.shutdown(socket.SHUT_WR)
        n = 0
        while d := c.recv(65536):
            n += len(d)
        print(n, flush=True)
    elif how == b"R":
        c.recv(1, socket.MSG_PEEK)  # what it has not read makes its close a reset
    elif how == b"N":
        c.recv(100)
        c.sendall(b"answer")
    c.close()
print("ready", flush=True)
while True:
    c, _ = s.accept()
    threading.Thread(target=talk, args=(c,)).start()
"""


NO_CHILD = """
import os
for options in (0, 0x40000000):
    try:
        os.waitpid(-1, options)
        print("waited")
    except ChildProcessError:
        pass
print(os.getpid())
"""


@test
def first_of_a_container_has_no_child():
    if os.geteuid() or not shutil.which("unshare"):
        raise Skip("run as root, with unshare(1)")
    r = lib.run(["unshare", "--fork", "--pid", "--mount-proc", "--kill-child", lib.KYLINX, "run", "--net", "private", "--", PYTHON,
                 "-c", NO_CHILD], 120)
    expect((r.status, r.out, r.err), (0, b"1\n", b""), "the program")


@test
def half_close_under_back_pressure():
    """20 MB each way at once, readers that wait, ends of one direction and resets: as without the forwarder"""
    port = lib.free_port()
    data = os.urandom(1 << 20) * 20
    with Family(["-p", f"{port}:80"], [PYTHON, "-c", BOTH_WAYS, "80"]) as f:
        def client(how, wait):
            s = socket.create_connection(("127.0.0.1", port), lib.limit(180))
            s.settimeout(lib.limit(180))
            t = threading.Thread(target=lambda: (s.sendall(how + data), s.shutdown(socket.SHUT_WR)))
            t.start()
            time.sleep(wait)
            got = lib.received(s)
            t.join()
            s.close()
            return got

        digest = hashlib.sha256(data).digest()
        for wait in (0, 1):
            got = client(b"B", wait)
            expect(got[:32], hashlib.sha256(got[32:32 + 256 * 80000]).digest(), "what the server said")
            expect(got[32 + 256 * 80000:], digest + b"%d" % len(data), "what it has heard")
            expect(client(b"L", wait), digest, "a server that listens late")
        with socket.create_connection(("127.0.0.1", port), lib.limit(180)) as s:
            s.sendall(b"E")
            expect(len(lib.received(s)), 3000000, "the server's end")
            s.sendall(data)  # the other direction is open
        expect(f.p.stdout.readline(), b"%d\n" % len(data), "after its end the server heard")
        with socket.create_connection(("127.0.0.1", port), lib.limit(180)) as s:
            s.sendall(b"R" + b"x" * 100000)
            try:
                lib.received(s)
                raise AssertionError("an end in place of a reset")
            except ConnectionResetError:
                pass


@test
def client_that_goes_away():
    """One that has ended its stream and resets: the server learns of it; one that says nothing any more is probed"""
    port = lib.free_port()
    with Family(["-p", f"{port}:80"], [PYTHON, "-c", ERRORS, "80"]) as f:
        s = socket.create_connection(("127.0.0.1", port), lib.limit(60))
        s.shutdown(socket.SHUT_WR)
        expect(f.p.stdout.readline(), b"end\n", "the server")
        with open("/proc/net/tcp") as table:
            timers = [t[5][:2] for t in map(str.split, table) if t[1].endswith(f":{port:04X}") and t[2].endswith(
                f":{s.getsockname()[1]:04X}")]
        expect(timers, ["02"], "the kernel's timer of the forwarder's connection (02: keep-alive)")
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()
        expect(f.p.stdout.readline(), b"error\n", "the server")


@test
def out_of_descriptors():
    """More clients than the forwarder has descriptors for: they wait, whatever the limit; none is turned away"""
    for limit in (60, 61):
        port = lib.free_port()
        with Family(["-p", f"{port}:80"], [PYTHON, "-c", BOTH_WAYS, "80"]):
            resource.prlimit(helper_of(port), resource.RLIMIT_NOFILE, (limit, limit))
            clients = [socket.create_connection(("127.0.0.1", port), lib.limit(180)) for _ in range(100)]
            for c in clients:
                c.settimeout(lib.limit(180))
                c.sendall(b"N")
            time.sleep(0.5)
            for i, c in enumerate(clients):
                c.sendall(b"go")
                expect(c.recv(100), b"answer", f"client {i}, limit {limit}")
                c.close()
        port = lib.free_port()
        with Family(["-p", f"{port}:80", "-p", f"{port}:80/udp"], echo(80)):
            resource.prlimit(helper_of(port), resource.RLIMIT_NOFILE, (limit, limit))
            crowd = []
            for i in range(100):  # each is a descriptor of the forwarder, for a minute
                u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                u.settimeout(lib.limit(60))
                u.connect(("127.0.0.1", port))
                u.send(b"%d." % i)
                expect(u.recv(99), (b"%d." % i)[::-1], f"UDP client {i}, limit {limit}")
                crowd.append(u)
            expect(tcp("127.0.0.1", port, b"x"), b"x", "TCP beside it")
            for u in crowd:
                u.close()


@test
def without_slirp():
    """slirp4netns killed alone: one line in the log; published ports go on, and so do new processes; nothing is left"""
    port = lib.free_port()
    with Family(["-p", f"{port}:80", "--name", f"slirp{os.getpid()}"], echo(80), stop=signal.SIGKILL) as f:
        held = socket.create_connection(("127.0.0.1", port), lib.limit(60))
        slirp = [int(x) for x in lib.names("/proc") if x.isdigit() and lib.read(f"/proc/{x}/comm") == "slirp4netns\n"
                 and f"\0{f.p.pid}\0tap0" in lib.read(f"/proc/{x}/cmdline")]
        expect(len(slirp), 1, "slirp4netns of this family")
        os.kill(slirp[0], signal.SIGKILL)
        end = time.monotonic() + lib.limit(90)
        while lib.read(f"/proc/{slirp[0]}/stat").rpartition(")")[2].split()[:1] not in ([], ["Z"]):
            assert time.monotonic() < end
            time.sleep(0.02)
        held.sendall(b"held")
        held.shutdown(socket.SHUT_WR)
        expect(lib.received(held), b"held", "a connection from before")
        held.close()
        expect(tcp("127.0.0.1", port, b"x" * 100000), b"x" * 100000, "a new one")
        r = lib.run([lib.KYLINX, "exec", f"slirp{os.getpid()}", PYTHON, "-c",
                     "import socket; s = socket.create_connection(('127.0.0.1', 80)); s.send(b'abc'); s.shutdown(1);"
                     "print(s.recv(9))\ntry: socket.create_connection(('192.0.2.1', 80), 1)\nexcept OSError: print('no way out')"])
        expect((r.status, r.out), (0, b"b'abc'\nno way out\n"), f"a new process: {r.err!r}")
        os.kill(f.p.pid, signal.SIGKILL)
        expect(f.p.stderr.read().count(b"slirp4netns has ended"), 1, "lines in the log")
    expect(gone(port), True, "port closed with the family")


@test
def listed():
    a = lib.free_port()
    with Family(["-p", f"127.0.0.1:{a}:80", "--name", f"net{os.getpid()}"], echo(80)):
        r = lib.run([lib.KYLINX, "ps"])
        expect(f"publishes 127.0.0.1:{a}:80/tcp" in r.out.decode(), True, f"ps: {r.out!r}")
        r = lib.run([lib.KYLINX, "exec", f"net{os.getpid()}", PYTHON, "-c",
                     "import socket; s = socket.create_connection(('127.0.0.1', 80)); s.send(b'abc'); s.shutdown(1);"
                     "print(s.recv(9))"])
        expect((r.status, r.out), (0, b"b'abc'\n"), f"exec is in the same network: {r.err!r}")


@test
def ordinary_user():
    if os.geteuid():
        raise Skip("run as root")
    a = lib.free_port()
    with lib.Dir() as d:
        os.chmod(d, 0o755)
        shutil.copy(lib.KYLINX, f"{d}/kylinx")
        # A /dev/kvm and a /dev/net/tun for all users, in a mount namespace of its own.
        devices = (f"mount -t tmpfs -o mode=755 t {d}/dev && mknod {d}/dev/kvm c 10 232 && mknod {d}/dev/tun c 10 200 &&"
                   f" chmod 666 {d}/dev/* && mount --bind {d}/dev/kvm /dev/kvm && mount --bind {d}/dev/tun /dev/net/tun &&"
                   ' exec "$@"')
        os.mkdir(f"{d}/dev")
        prefix = ["unshare", "-m", "sh", "-c", devices, "sh", "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env", "HOME=/nonexistent",
                  f"XDG_RUNTIME_DIR={d}", "KYLINX_STORE="]
        f = Family(["-p", f"{a}:8080"], echo(8080), prefix)
        f.argv[f.argv.index(lib.KYLINX)] = f"{d}/kylinx"
        with f:
            expect(tcp("127.0.0.1", a, b"hello"), b"hello", "TCP")


if __name__ == "__main__":
    sys.exit(lib.run_tests(tests, args.only))
