#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Files that a server opens again and again are opened ahead of it: what it finds is what it would find natively, each time.

test_openahead.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure.
"""
import json
import os
import random
import re
import shutil
import socket
import stat
import subprocess
import sys
import zlib

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import lib  # noqa: E402
from lib import expect  # noqa: E402
from servers import collection  # noqa: E402

args = lib.arguments()
tests, test, _ = collection()
CLOEXEC, NONBLOCK, NOFOLLOW = os.O_CLOEXEC, os.O_NONBLOCK, os.O_NOFOLLOW


class Talk:
    """The server, natively or in a pVM, and one connection to it."""

    def __init__(self, d, kx, options=()):
        self.port, self.stats = lib.free_port(), f"{d}/stats.json"
        self.www = f"{d}/www"
        argv = [f"{d}/openahead", str(self.port), self.www]
        if kx:
            argv = lib.pvm(argv, "--io", "exit", f"--stats={self.stats}", *options)
        self.server = lib.Server(argv, self.port)

    def __enter__(self):
        self.server.__enter__()
        while True:  # the connection that showed that it listens has a number until its end is seen
            self.sock = socket.create_connection(("127.0.0.1", self.port))
            self.sock.settimeout(lib.limit(60))
            if self.tell("connection") == "connection: 5\ndone\n":
                return self
            self.sock.close()

    def __exit__(self, *_):
        self.sock.close()
        self.server.__exit__()

    def tell(self, *lines, sock=None):
        """What the server says to them, all in one turn."""
        sock = sock or self.sock
        sock.sendall("".join(x + "\n" for x in lines).encode())
        got = b""
        while not got.endswith(b"done\n"):
            part = sock.recv(1 << 16)
            assert part, f"the server has ended: {self.server.output()}; {got[-200:]}"
            got += part
        return self.named(got.decode(errors="replace"))

    def named(self, text):
        """With the names of now for inode numbers: another file's may come back, and not while somebody has it open."""
        if "fstat: " not in text:
            return text
        files = [f"{d}/{name}" for d, _, names in os.walk(self.www) for name in names]
        names = {str(os.lstat(f).st_ino): os.path.relpath(f, self.www) for f in files}
        return re.sub(r"^(fstat: \S+ \S+ )(\d+)(?= \d+$)", lambda m: m[1] + names.get(m[2], "gone"), text, flags=re.M)

    def calls(self):
        """Those that the monitor has seen, by name."""
        with open(self.stats) as f:
            return json.load(f)["hypercalls"]


def opens(calls):
    return calls.get("openat", 0) + calls.get("open", 0)


def build(d):
    subprocess.run(["gcc", "-O1", "-g", "-Wall", "-o", f"{d}/openahead", f"{HERE}/openahead.c"], check=True)


def fresh(d):
    w = f"{d}/www"
    shutil.rmtree(w, ignore_errors=True)
    os.mkdir(w)
    for name, size in (("a", 20), ("b", 3000), ("c", 16384), ("d", 16383), ("e", 100000), ("empty", 0)):
        put(w, name, name * 10, size)
    os.mkdir(f"{w}/sub")
    put(w, "sub/a", "other", 50)
    os.symlink("a", f"{w}/link")
    return w


def put(w, name, text, size):
    with open(f"{w}/{name}", "w") as f:
        f.write((text * (size // max(len(text), 1) + 1))[:size])


def both(script, written=False):
    """The same story natively and in a pVM: script(talk, directory, seen), which adds to seen. The pVM's counts of calls.
    written: the program may write to the directory."""
    with lib.Dir() as d:
        build(d)
        told = []
        for kx in (False, True):
            w = fresh(d)
            with Talk(d, kx, ["--volume", f"{w}:{w}"] if written else []) as t:
                seen = []
                script(t, w, seen)
            told.append(seen)
        for i, (a, b) in enumerate(zip(*told)):
            expect(b, a, f"step {i}")
        expect(len(told[1]), len(told[0]), "steps")
        return t.calls()


WHOLE = ["fstat 0", "read 0 7", "pread 0 5 10", "read 0 100000", "read 0 10", "sendfile 0 3 40", "close 0"]


def warm(t, w, *names, flags=0, n=3):
    for _ in range(n):
        for name in names:
            t.tell(f"open 0 {w}/{name} {flags}", *WHOLE)


@test
def every_call():
    """All that can be done with a file that was opened ahead, each by itself."""
    def script(t, w, seen):
        for flags in (0, CLOEXEC, NONBLOCK, CLOEXEC | NOFOLLOW):
            for name in ("a", "b", "c", "d", "e", "empty", "link"):
                warm(t, w, name, flags=flags)
                for op in (["fstat 0"], ["read 0 5", "read 0 5"], ["read 0 5", "seek 0 0 1"], ["seek 0 4 0", "read 0 3"],
                           ["pread 0 100 10"], ["pread 0 -1 10"], ["badread 0 10", "read 0 4"], ["sendfile 0 0 10"],
                           ["sendfile 0 0 200000"], ["read 0 2", "flags 0"], ["read 0 2", "dup 0", "read 0 2"], ["dup2 0 0"], *([["map 0"]] if name != "empty" else []),
                           ["read 0 2", "fork 0", "read 0 2"], ["exec 0"], ["raise 0", "read 0 3"], ["read 0 0"], []):
                    seen.append(name + t.tell(f"open 0 {w}/{name} {flags}", *op, "close 0", "close 0"))
        for _ in range(4):
            seen.append(t.tell(f"open2 0 {w}/a 0", *WHOLE))
    both(script)


@test
def many_opens_few_exits():
    """Open, look, send, close: a hundred times in a turn, without a call of the monitor's."""
    def script(t, w, seen):
        one = [f"open 0 {w}/a {NONBLOCK}", "fstat 0", "pread 0 0 20", "close 0"]
        for _ in range(10):
            seen.append(t.tell(*one * 50))
    opened = opens(both(script))
    assert opened < 200, f"{opened} of 500 opens were exits"


@test
def among_other_calls():
    """Also where a request makes some calls besides."""
    def script(t, w, seen):
        for _ in range(30):
            seen.append(t.tell(f"open 0 {w}/a {NONBLOCK}", "fstat 0", "sendfile 0 0 20", "close 0", *["seek 7 0 1", "flags 7"] * 3))
    opened = opens(both(script))
    assert opened < 20, f"{opened} of 30 opens were exits"


@test
def numbers():
    """The lowest free descriptor, whatever was closed or is open."""
    def script(t, w, seen):
        warm(t, w, "a", "b")
        for _ in range(3):
            seen.append(t.tell(f"open 0 {w}/a 0", f"open 1 {w}/b 0", f"open 2 {w}/a 0", "read 0 9", "read 1 9", "read 2 9", "close 0",
                               f"open 3 {w}/b 0", f"open 0 {w}/a 0", "read 3 9", "close 1", "close 3", f"open 1 {w}/b 0", "close 1",
                               "close 0", "close 2"))
            seen.append(t.tell(f"open 0 {w}/a 0", "close 0", f"open 1 {w}/b 0", "read 1 9", f"open 0 {w}/a 0", "read 0 9", "close 1",
                               "read 0 9", "close 0"))
        seen.append(t.tell("limit 0", f"open 0 {w}/a 0", "close 0"))
        # Another connection's number becomes free within the turn.
        for _ in range(4):
            with socket.create_connection(("127.0.0.1", t.port)) as s:
                expect(t.tell("connection", sock=s), "connection: 6\ndone\n", "second connection")
                seen.append(t.tell(f"open 0 {w}/a 0", "read 0 4", "close 0"))
                s.sendall(f"open 1 {w}/b 0\nclose 1\ndrop\nopen 2 {w}/a 0\nopen 3 {w}/b 0\n".encode())
                text = lib.received(s).decode()
            seen.append(text + t.tell("read 2 9", "read 3 9", "close 2", "close 3"))
    both(script)


CHANGES = {
    "replaced": lambda w: (put(w, "new", "new!", 60), os.rename(f"{w}/new", f"{w}/a")),
    "gone": lambda w: os.unlink(f"{w}/a"),
    "longer": lambda w: put(w, "a", "longer", 500),
    "shorter": lambda w: os.truncate(f"{w}/a", 3),
    "another of the same length": lambda w: put(w, "a", "xyz", 20),
    "forbidden": lambda w: os.chmod(f"{w}/a", 0),
    "a directory": lambda w: (os.unlink(f"{w}/a"), os.mkdir(f"{w}/a")),
    "a FIFO": lambda w: (os.unlink(f"{w}/a"), os.mkfifo(f"{w}/a")),
    "a link": lambda w: (os.unlink(f"{w}/a"), os.symlink("b", f"{w}/a")),
    "a dangling link": lambda w: (os.unlink(f"{w}/a"), os.symlink("nowhere", f"{w}/a")),
    "large": lambda w: put(w, "a", "large", 200000),
    "back": lambda w: put(w, "a", "back", 30),
}


@test
def changes_are_seen():
    """Whoever changes a file and then asks gets what is there now."""
    def script(t, w, seen):
        for flags in (NONBLOCK, NONBLOCK | NOFOLLOW):
            for what, change in CHANGES.items():
                shutil.rmtree(w)
                os.mkdir(w)
                put(w, "a", "aaaa", 20)
                put(w, "b", "bbbb", 3000)
                warm(t, w, "a", flags=flags)
                change(w)
                for _ in range(3):
                    seen.append(what + t.tell(f"open 0 {w}/a {flags}", *WHOLE))
    both(script)


@test
def a_parent_directory():
    def script(t, w, seen):
        for _ in range(2):
            warm(t, w, "sub/a")
            seen.append(t.tell(f"open 0 {w}/sub/a 0", *WHOLE))
            os.rename(f"{w}/sub", f"{w}/away")
            seen.append(t.tell(f"open 0 {w}/sub/a 0", *WHOLE))
            os.mkdir(f"{w}/sub")
            put(w, "sub/a", "second", 33)
            seen.append(t.tell(f"open 0 {w}/sub/a 0", *WHOLE))
            shutil.rmtree(f"{w}/sub")
            os.rename(f"{w}/away", f"{w}/sub")
    both(script)


@test
def open_files_stay():
    """What is open is the file of then, with its length of now."""
    def script(t, w, seen):
        warm(t, w, "a", "b")
        seen.append(t.tell(f"open 0 {w}/a 0", "read 0 3"))
        os.rename(f"{w}/b", f"{w}/a")
        seen.append(t.tell("fstat 0", "read 0 100", f"open 1 {w}/a 0", "read 1 5", "close 0", "close 1"))
        warm(t, w, "c")
        seen.append(t.tell(f"open 0 {w}/c 0", "read 0 3"))
        put(w, "c", "grown", 20000)
        seen.append(t.tell("fstat 0", "read 0 20", "sendfile 0 10 100", "read 0 100000", "close 0"))
    both(script)


@test
def locks_stay():
    """Closing a file gives up the process's locks on it: only the program's own closes may."""
    def script(t, w, seen):
        warm(t, w, "a", "b")
        seen.append(t.tell(f"open 0 {w}/a 0", "lock 0"))
        for _ in range(4):
            seen.append(t.tell(f"open 1 {w}/b 0", "read 1 3", "close 1"))
            seen.append(t.tell("locked 0"))
        for _ in range(4):
            seen.append(t.tell(f"open 1 {w}/a 0", "read 1 3"))
            seen.append(t.tell("locked 0", "close 1", "locked 0", "lock 0"))
        seen.append(t.tell("close 0"))
        for _ in range(4):
            seen.append(t.tell(f"open 1 {w}/a 0", "read 1 3", "close 1"))
        seen.append(t.tell(f"open 0 {w}/a 0", "lock 0", "locked 0", f"open 1 {w}/b 0", "close 1", "locked 0", "close 0"))
    both(script)


@test
def other_rights():
    def script(t, w, seen):
        put(w, "secret", "secret", 20)
        os.chmod(f"{w}/secret", stat.S_IRUSR)
        warm(t, w, "secret")
        seen.append(t.tell("uid 65534", f"open 0 {w}/secret 0", "uid 0", f"open 0 {w}/secret 0", "close 0"))
        warm(t, w, "secret")
        seen.append(t.tell("uid 65534"))
        seen.append(t.tell(f"open 0 {w}/secret 0", f"open 1 {w}/a 0", "close 1", "uid 0"))
    both(script)


@test
def writable_files_are_left_alone():
    """The family could change them without our knowing: each open is a call."""
    with lib.Dir() as d:
        build(d)
        w = fresh(d)
        with Talk(d, True, ["--volume", f"{w}:{w}"]) as t:
            for i in range(20):
                put(w, "a", f"{i:09}", 9)
                expect(f"read: 9 {i:09} " in t.tell(f"open 0 {w}/a 0", "read 0 9", "close 0"), True, "what was written")
        assert opens(t.calls()) >= 20, "opened ahead in a directory that the program can write to"


@test
def stories():
    """Seeded: opens, calls and changes in any order."""
    for seed in range(4):
        def script(t, w, seen, seed=seed):
            rng = random.Random(seed)
            names = ["a", "b", "c", "e", "link", "sub/a"]
            open_ = {}
            for _ in range(40):
                lines = []
                for _ in range(rng.randrange(1, 12)):
                    r = rng.randrange(4)
                    if r not in open_:
                        lines.append(f"open {r} {w}/{rng.choice(names[:rng.randrange(1, 7)])} {rng.choice([0, 0, CLOEXEC, NONBLOCK])}")
                        open_[r] = True
                    op = rng.choice(["fstat {}", "read {} 10", "read {} 9000", "pread {} 3 100", "sendfile {} 0 50", "close {}", "close {}",
                                     "close {}", "seek {} 2 1", "flags {}"]).format(r)
                    lines.append(op)
                    if op[0] == "c":
                        del open_[r]
                seen.append(t.tell(*lines))
                if rng.random() < 0.4:
                    name = rng.choice(names[:4])
                    if rng.random() < 0.5:
                        put(w, name, f"v{rng.randrange(1000)}", rng.choice([0, 5, 100, 5000, 16384, 30000]))
                    else:
                        put(w, "new", f"n{rng.randrange(1000)}", rng.randrange(200))
                        os.rename(f"{w}/new", f"{w}/{name}")
            seen.append(t.tell(*[f"close {r}" for r in sorted(open_)]))
        both(script)


# ---- writes ----------------------------------------------------------------------------------------------------------

APPEND, WRONLY, RDWR = os.O_APPEND, os.O_WRONLY, os.O_RDWR


def writers(script):
    """As both(), with script(step, directory), in a directory that the program may write to; what is in its files after each
    step is compared, too. Writes that were exits."""
    def story(t, w, seen):
        def step(*lines):
            text = t.tell(*lines)
            for n in sorted(os.listdir(w)):
                if os.path.isfile(f"{w}/{n}"):
                    with open(f"{w}/{n}", "rb") as f:
                        data = f.read()
                    text += f"{n}: {len(data)} {data[:20]} {data[-20:]} {zlib.crc32(data)}\n"
            seen.append(text)

        script(step, w)
    calls = both(story, written=True)
    return calls.get("write", 0) + calls.get("writev", 0)


@test
def writes():
    """All that a program can do with a file that it writes to again and again. Whoever has the answer finds the data in the file."""
    def script(step, w):
        for flags in (WRONLY | APPEND, WRONLY, RDWR, RDWR | APPEND, WRONLY | os.O_DSYNC):
            step(f"create 0 {w}/log{flags:x} {flags}")
            for _ in range(8):
                step("write 0 30 65", "writev 0 4", "write 0 1 10")
            for op in (["badwrite 0 5"], ["write 0 0 65"], ["write 0 65536 66"], ["write 0 100000 67"], ["fsync 0"], ["seek 0 0 1"],
                       ["seek 0 10 0", "write 0 3 68", "write 0 3 69"], ["truncate 0 5"], ["fstat 0"], ["read 0 10"], ["pread 0 0 10"],
                       ["child 0"], ["dup 0"], ["fork 0"], ["raise 0"], ["flags 0"], ["largest 0 100", "write 0 90 70", "write 0 90 71"],
                       ["write 0 10 72", "largest 0 0x7fffffff"], ["write 0 200 72"]):
                step("write 0 20 97", *op, "write 0 20 98")
                step("write 0 20 99")
            step("write 0 5 65", "close 0", "write 0 5 66")
        step(f"create 0 {w}/one {WRONLY}", f"create 1 {w}/two {WRONLY}", f"create 2 {w}/one {WRONLY | APPEND}")
        for i in range(12):
            step(f"write 0 {i} 65", f"write 1 {i} 66", f"write 2 {i} 67", f"write 0 {i} 68")
        step("dup2 0 1", "write 0 9 69", "write 1 9 70")
        step("write 0 9 69", "dup2 0 1", "write 0 9 69")
        for _ in range(6):
            step("truncate 7 -1", "truncate 7 1", "truncate 2 -1")  # what the kernel looks at first
        step("write 2 100 71", "close 2", f"create 2 {w}/three {WRONLY}", "write 2 50 72")
    writers(script)


@test
def writes_seen_by_a_mapping():
    def script(step, w):
        for first in (True, False):
            name = f"map{first}"
            step(f"create 0 {w}/{name} {RDWR}", "write 0 4096 65", *(["share 0"] if first else []))
            for i in range(8):
                step("seek 0 0 0", f"write 0 8 {66 + i}", *(["shared 0"] if first else []))
            step("share 0", "seek 0 0 0", "write 0 8 48", "shared 0", "seek 0 0 0", "write 0 8 49", "shared 0")
            for i in range(8):
                step("seek 0 0 0", "write 0 8 50", "write 0 8 51", "shared 0", "seek 0 0 0", f"write 0 8 {66 + i}", "shared 0")
            step("close 0")
    writers(script)


@test
def writes_without_exits():
    """Lines of a log before each answer, and at the end of the process: a few calls of the monitor's, and none is missing."""
    def script(step, w):
        step(f"create 0 {w}/log {WRONLY | APPEND}", f"create 1 {w}/last {WRONLY | APPEND}")
        for i in range(30):
            step(*[f"write 0 {j + 1} {65 + i}" for j in range(20)])
    opened = writers(script)
    assert opened < 60, f"{opened} of 600 writes were exits"
    for end, status in (("quit", 0), ("die", -9)):
        with lib.Dir() as d:
            build(d)
            w = fresh(d)
            with Talk(d, True, ["--volume", f"{w}:{w}"]) as t:
                t.tell(f"create 0 {w}/log {WRONLY | APPEND}")
                for _ in range(10):
                    t.tell("write 0 10 65")
                t.sock.sendall(f"write 0 10 66\nwrite 0 10 67\n{end} 0\n".encode())
                t.server.p.wait(lib.limit(30))
            with open(f"{w}/log") as f:
                expect(f.read(), "A" * 100 + "B" * 10 + "C" * 10, f"after {end}")


@test
def writes_to_what_is_full():
    """Near its end a file system is written to by calls, which tell."""
    with lib.Dir() as d:
        build(d)
        w = fresh(d)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "kylinx-test", w], check=True)
        try:
            with Talk(d, True, ["--volume", f"{w}:{w}"]) as t:
                t.tell(f"create 0 {w}/log {WRONLY | APPEND}")
                text = ""
                for _ in range(80):  # 4 MiB each
                    text = t.tell(*["write 0 65536 65"] * 64)
                    if "No space" in text:
                        break
                assert "No space left" in text, text[-200:]
                told = os.stat(f"{w}/log").st_size
                expect(told, 300 << 20, "written")
        finally:
            subprocess.run(["umount", "-l", w], check=True)


if __name__ == "__main__":
    sys.exit(lib.run_tests(tests, args.only, slow=0))
