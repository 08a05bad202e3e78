#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Private networks of families and published ports: what comes in, what stays out, and that nothing is left.

test_net.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure.
"""
import os
import shutil
import signal
import socket
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
        self.p.communicate(timeout=20)


def echo(port, tag="", *more):
    return [PYTHON, "-c", ECHO, str(port), tag, *more]


def tcp(host, port, data):
    with socket.create_connection((host, port), 10) as s:
        s.settimeout(20)
        t = threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)))
        t.start()
        got = b""
        while True:
            d = s.recv(1 << 16)
            if not d:
                break
            got += d
        t.join()
        return got


def udp(host, port, data):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(10)
        s.sendto(data, (host, port))
        return s.recvfrom(65536)[0]


def closed(host, port):
    try:
        socket.create_connection((host, port), 2).close()
        return False
    except OSError:
        return True


def gone(port):
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if closed("127.0.0.1", port):
            return True
        time.sleep(0.05)
    return False


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
    a, b = lib.free_port(), lib.free_port()
    with Family(["-p", f"127.0.0.1:{a}:80"], echo(80, "one ")), Family(["-p", f"127.0.0.1:{b}:80"], echo(80, "two ")):
        expect(tcp("127.0.0.1", a, b"x"), b"one x", "the first")
        expect(tcp("127.0.0.1", b, b"x"), b"two x", "the second")
        expect(closed("127.0.0.1", 80), True, "the port inside is none of the host's")
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
        helper = [int(x) for x in lib.names("/proc") if x.isdigit() and lib.read(f"/proc/{x}/comm") == "kx-net\n"
                  and f"{a}:80" in lib.read(f"/proc/{x}/cmdline")]
        expect(len(helper), 1, "helpers")
        os.kill(helper[0], signal.SIGKILL)
        expect(gone(a), True, "port closed with the helper")
        expect(f.p.poll(), None, "the program goes on")


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
