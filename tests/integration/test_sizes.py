#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_sizes.py [KYLINX] [--only PATTERN]: how long a file is, asked again and again, needs no exit, also once a member of the
family was killed within a call that might have changed a file's size."""
import json
import sys

sys.dont_write_bytecode = True
import lib
from lib import expect

args = lib.arguments()
tests = []
ASKS = """
import os, select, signal, socket, sys
pid = 0
if sys.argv[1] != "alone":
    begun, tell = os.pipe()
    never, keep = os.pipe()
    pid = os.fork()
    if not pid:
        fd = os.open("/tmp/other", os.O_WRONLY | os.O_CREAT)
        os.write(tell, b"x")
        os.splice(never, fd, 100)  # for ever
        os._exit(1)
    os.read(begun, 1)
    while open(f"/proc/{pid}/stat").read().split(")")[1].split()[0] != "S":
        pass
    if sys.argv[1] != "waits":
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    if sys.argv[1] == "reaped":
        os.waitpid(pid, 0)
l = socket.create_server(("127.0.0.1", 0))
c = socket.create_connection(l.getsockname())
s, _ = l.accept()
s.setblocking(False)
e = select.epoll()
e.register(s, select.EPOLLIN)
fd = os.open("/tmp/file", os.O_RDWR | os.O_CREAT)
size = os.write(fd, b"0123456789")
for i in range(200):
    c.sendall(b"x")
    e.poll()
    s.recv(10)
    if i % 50 == 49:
        size += os.write(fd, b"x")
    for k in range(5):
        assert os.lseek(fd, 0, os.SEEK_END) == size
if pid and sys.argv[1] != "reaped":
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""


def asks(how):
    """lseek's exits of 1,000 calls, in the process that asks."""
    with lib.Dir() as d:
        r = lib.run(lib.pvm(["/usr/bin/python3", "-c", ASKS, how], "--net", "none", f"--stats={d}/stats"), cwd="/")
        expect(r.status, 0, r.why())
        return json.loads(lib.read(f"{d}/stats"))["hypercalls"]["lseek"]


def each(how, few):
    def run():
        n = asks(how)
        if (n < 200) != few:
            raise AssertionError(f"{n} of 1,000 calls were exits")
    tests.append((how, run))


each("alone", True)
each("waits", False)  # it may write at any moment
each("corpse", True)
each("reaped", True)


if __name__ == "__main__":
    sys.exit(lib.run_tests(tests, args.only))
