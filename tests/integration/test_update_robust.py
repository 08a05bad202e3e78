#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""kylinx update when things go on, or go wrong, in its middle; and with builds that are older or newer.

test_update_robust.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure. KX_LONG=1: more rounds.
"""
import array
import contextlib
import ctypes
import fcntl
import glob
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402
from servers import LONG, collection  # noqa: E402
from updates import UPDATE_SECONDS, Guest, all_see, build, fixtures, library, program, until  # noqa: E402

args = lib.arguments()
tests, test, _ = collection()


def start(g, path, *options, who=None):
    return subprocess.Popen([lib.KYLINX, "update", *options, who or g.name, path], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


# ---- versions of the protocol ------------------------------------------------------------------------------------------

def registry_file(name):
    run = os.environ.get("XDG_RUNTIME_DIR", "")
    where = "/run/kylinx" if not os.getuid() else f"{run}/kylinx" if run else f"/tmp/kylinx-{os.getuid()}"
    found = glob.glob(f"{where}/*.{name}")
    expect(len(found), 1, f"files of {name} in {where}")
    return found[0]


MAGIC = 0x3250554158594c4b
LIBC = ctypes.CDLL(None, use_errno=True)


class Asker:
    """A `kylinx update` of another build: any request, to a process itself."""

    def __init__(self, g, pid):
        self.pid = pid
        inode = re.search(r"^update (\d+) ", lib.read(registry_file(g.name)), re.M)[1]
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{fd}") == f"socket:[{inode}]":
                    break
        else:
            raise AssertionError("it has no such socket")
        self.pidfd = os.pidfd_open(pid)
        got = LIBC.syscall(438, self.pidfd, int(fd), 0)
        if got < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        self.sock = socket.socket(fileno=got)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()
        os.close(self.pidfd)

    def ask(self, path, protocol=None, oldest=0, flags=0, tail=b"", magic=MAGIC, more=()):
        """kind, error, text of the answer; None: there is none."""
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with open(path, "rb") as f, mine:
            q = struct.pack("=QIIIHH", magic, self.pid, flags, 5000, protocol or 0, oldest) + tail
            self.sock.sendmsg([q], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [f.fileno(), its.fileno(), *more]))])
            its.close()
            info = struct.pack("=iiixxxxiiQ", 33, 0, -1, os.getpid(), os.getuid(), MAGIC).ljust(128, b"\0")
            for _ in range(400):
                LIBC.syscall(424, self.pidfd, 33, ctypes.c_char_p(info), 0)
                mine.settimeout(lib.limit(0.2))
                with contextlib.suppress(TimeoutError):
                    while a := mine.recv(2000):
                        kind, error = struct.unpack_from("=II", a)
                        if kind == 1:
                            return error, a[32:].split(b"\0")[0].decode()
                    return None
        raise AssertionError("no answer")


@test
def older_and_newer_commands():
    """A pVM answers commands of versions that it understands, and tells others whose build is which."""
    with lib.Dir() as d:
        fixtures(d, "state")
        with Guest(d, [f"{d}/state"]) as g, Asker(g, g.p.pid) as a:
            expect(a.ask(f"{d}/v2.so")[0], 0, "the version without numbers")
            expect(g.ask("v"), "2", "version")
            build = b"9.9.9-feed".ljust(48, b"\0")
            error, text = a.ask(f"{d}/libupd.so.1", 99, 98, tail=build + b"more" * 20)
            own = re.search(r"^build (\S+) (\d+) (\d+)$", lib.read(registry_file(g.name)), re.M)
            expect(error, 71, f"EPROTO ({text})")
            for part in (f"build {own[1]} (update protocol {own[2]})", "build 9.9.9-feed (protocol 99)", "start it again"):
                if part not in text or "\n" in text:
                    raise AssertionError(f"{text!r} lacks {part!r}")
            expect(a.ask(f"{d}/libupd.so.1", 1)[0], 71, "an older one than all")
            expect(a.ask(f"{d}/libupd.so.1", int(own[2]), flags=1 << 20, tail=build)[0], 71, "a flag that is not known")
            expect(a.ask(f"{d}/libupd.so.1", magic=MAGIC + 1), None, "no request")
            expect(g.ask("v"), "2", "version after refusals")
            error, text = a.ask(f"{d}/libupd.so.1", 99, int(own[2]), tail=build + b"more" * 20)
            expect(error, 0, f"a newer one that speaks this version ({text})")
            expect(g.ask("v"), "1", "version")
            expect(g.ask("s"), "ok", "state")


@test
def round_pages():
    """A round's page that could become shorter is not taken: who sends it could end whoever looks at it."""
    with lib.Dir() as d:
        fixtures(d, "state")
        with Guest(d, [f"{d}/state"]) as g, Asker(g, g.p.pid) as a:
            for seals in (None, 0, 2, 4, 7):
                fd = os.open(f"{d}/page", os.O_RDWR | os.O_CREAT) if seals is None else os.memfd_create("page", 3)
                os.ftruncate(fd, 4096)
                if seals:
                    fcntl.fcntl(fd, 1033, seals)
                os.pwrite(fd, struct.pack("=I", 0xffffffff), 0) # no round will begin
                error, text = a.ask(f"{d}/v2.so", 3, 2, flags=4, tail=b"test".ljust(48, b"\0"), more=(fd,))
                expect((error == 22, "page is refused" in text), (seals != 7,) * 2, f"seals {seals}: {error} {text!r}")
                os.close(fd)
            expect(g.ask("v"), "1", "version")
            g.update(f"{d}/v2.so")
            expect(g.ask("v"), "2", "version")


@test
def late_hook():
    """A hook that returns long after it was waited for: nothing is changed by then nor after it, and the next update is made."""
    build_dir = os.path.dirname(lib.KYLINX)
    own = [f"-I{lib.TOP}/include", f"{build_dir}/libkylinx.so.0", f"-Wl,-rpath,{build_dir}"]
    with lib.Dir() as d:
        for out, *options in (("libupd.so.1", "-DV=1"), ("v2.so", "-DV=2"), ("late.so", "-DV=2", "-DLATE")):
            library(d, out, *options, own[0], source="hooked.c")
        program(d, "hooks", "hooks.c", *own)
        with Guest(d, [f"{d}/hooks"], "--volume", f"{build_dir}:{build_dir}") as g:
            expect(g.ask("c"), "v1 p10 1 constructed c1 a0 1", "first")
            text = g.update(f"{d}/late.so", status=125)
            if "does not return" not in text:
                raise AssertionError(f"a hook that returns late: {text}")
            expect(g.line(), "committed", "what the hook does at its end")
            answer = g.ask("c") # attempts before that one may have had their abort
            if not re.fullmatch(r"v1 p10 2 constructed c1 a\d+ 1", answer):
                raise AssertionError(f"after it: {answer}")
            for n in range(3, 7):
                expect(g.ask("c").split()[2], str(n), "count")
            g.update(f"{d}/v2.so")
            expect(g.ask("v").split()[:2], ["v2", "p20"], "version")


@test
def no_thread():
    """There can be no thread that serves updates: it is said why, and what helps; then the next one is made."""
    said = r"kylinx: process %d: no thread for it: let it have more [^\n]* again \(nothing is changed( in any)?\)\n"
    with lib.Dir() as d:
        fixtures(d, "state")
        with Guest(d, [f"{d}/state"]) as g:
            size = int(re.search(r"VmSize:\s+(\d+) kB", lib.read(f"/proc/{g.p.pid}/status"))[1]) << 10
            old = resource.prlimit(g.p.pid, resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
            for options in (("--all",), ("--at-once",)):
                start = time.monotonic()
                text = g.update(f"{d}/v2.so", *options, status=125)
                if not re.fullmatch(said % g.p.pid, text):
                    raise AssertionError(f"what is said: {text!r}")
                if time.monotonic() - start > float(UPDATE_SECONDS):
                    raise AssertionError("it is said when all time is over")
                expect(g.ask("v"), "1", "version")
            resource.prlimit(g.p.pid, resource.RLIMIT_AS, old)
            g.update(f"{d}/v2.so")
            expect(g.ask("v"), "2", "version")
            expect(g.ask("s"), "ok", "state")


@test
def older_and_newer_pvms():
    """A pVM of a build that is too old or too new is not asked: one line names both builds and says what to do."""
    with lib.Dir() as d:
        fixtures(d, "state")
        with Guest(d, [f"{d}/state"]) as g:
            path = registry_file(g.name)
            text = lib.read(path)
            own = re.search(r"^build (\S+) (\d+) \d+\n", text, re.M)

            def faked(line):
                with open(path, "r+") as f:
                    f.write(text.replace(own[0], line))
                    f.truncate()
            for other, line in (("7.0-abc", "build 7.0-abc 90 90\n"), ("0.0.1", "build 0.0.1 1 1\n")):
                faked(line)
                for options in ((), ("--at-once",), ("--all",), ("--dry-run",)):
                    said = g.update(f"{d}/v2.so", *options, status=125)
                    for part in (f"build {other} (update protocol", f"build {own[1]} (protocol {own[2]})", "start it again"):
                        if part not in said or said.count("\n") != 1:
                            raise AssertionError(f"{said!r} lacks {part!r}")
            expect(g.ask("v"), "1", "version")
            for line in ("", "build 0.2-newer 90 3\n"):
                faked(line)
                g.update(f"{d}/libupd.so.1" if line else f"{d}/v2.so")
                expect(g.ask("v"), "1" if line else "2", "version")


# ---- in the middle -----------------------------------------------------------------------------------------------------

@test
def asker_killed():
    """The command is killed while the library is in use: nothing is changed, and the next one works."""
    with lib.Dir() as d:
        fixtures(d, "state")
        with Guest(d, [f"{d}/state"]) as g:
            expect(g.ask("b"), "inside", "inside")
            p = start(g, f"{d}/v2.so", "--timeout", UPDATE_SECONDS)
            time.sleep(0.3)
            expect(p.poll(), None, "the command's end")
            p.kill()
            p.communicate()
            expect(g.line(), "3", "result of the call")
            time.sleep(0.2)
            expect(g.ask("v"), "1", "version")
            g.update(f"{d}/v2.so")
            expect(g.ask("v"), "2", "version")
            for i in range(100 if LONG else 15): # at any moment: one or the other
                p = start(g, f"{d}/{'libupd.so.1' if i % 2 else 'v2.so'}")
                time.sleep(random.random() * 0.03)
                p.kill()
                p.communicate()
                expect(g.ask("v") in "12", True, "version")
                expect(g.ask("s"), "ok", "state")


@test
def together():
    """Several updates at once, of one library and of two: each is made, or refused, as if it were alone."""
    with lib.Dir() as d:
        fixtures(d, "server")
        library(d, "other.so", source="other.c", soname="libother.so")
        library(d, "again.so", "-DAGAIN", source="other.c", soname="libother.so")
        program(d, "server", "server.c", "-Wl,--no-as-needed", f"{d}/other.so", f"-Wl,-rpath,{d}")
        os.symlink("other.so", f"{d}/libother.so")
        with Guest(d, [f"{d}/server", "10"]) as g:
            n = 0
            for _ in range(20 if LONG else 4):
                ps = [start(g, f"{d}/{f}", "--timeout", UPDATE_SECONDS) for f in
                      ("v2.so", "again.so", "libupd.so.1", "other.so", "v2.so", "libupd.so.1")]
                for _ in range(20):
                    n += 1
                    a = g.ask("x").split()
                    expect((a[0], a[2]), (str(n), "ok"), f"answer {n}: {a}")
                for p in ps:
                    out, err = p.communicate(timeout=lib.limit(180))
                    # The same file that is in use already is a version like any other.
                    expect(p.returncode, 0, f"status ({out}, {err})")
            n += 1
            a = g.ask("x").split()
            expect((a[0], a[2]), (str(n), "ok"), f"the end: {a}")


@test
def storm():
    """Threads fork, exec, load and unload, map and unmap all the time: no wrong answer, and updates are made."""
    with lib.Dir() as d:
        fixtures(d, "storm")
        build(d, "other.so", "other.c", "-shared")
        with Guest(d, [f"{d}/storm", d]) as g:
            made = 0
            for i in range(200 if LONG else 12):
                p = start(g, f"{d}/{'libupd.so.1' if i % 2 else 'v2.so'}", "--timeout", UPDATE_SECONDS)
                out, err = p.communicate(timeout=lib.limit(180))
                made += not p.returncode
                if p.returncode and b"given up" not in out + err:
                    raise AssertionError(f"update {i}: {out} {err}")
                a = g.ask("x").split()
                expect(a[-1], "ok", f"after update {i}: {a}")
            if made < 6:
                raise AssertionError(f"only {made} updates were made")
            before = [int(x) for x in g.ask("x").split()[1:6]]
            until(lambda: all(int(b) > a for a, b in zip(before, g.ask("x").split()[1:6])), "none of the threads stands still")


@test
def members_killed():
    """Members that die at any moment of an update of all at once: those that are left have one version."""
    with lib.Dir() as d:
        fixtures(d, "family")
        for i in range(40 if LONG else 8):
            with Guest(d, [f"{d}/family", "4"]) as g:
                members = lib.kids(g.p.pid)
                if len(members) < 4:
                    raise AssertionError(f"members that are seen: {members}")
                p = start(g, f"{d}/v2.so", "--at-once", "--timeout", UPDATE_SECONDS)
                time.sleep(random.random() * 0.08)
                os.kill(random.choice(members), signal.SIGKILL)
                out, err = p.communicate(timeout=lib.limit(180))
                expect(p.returncode, 0, f"status of round {i} ({out}, {err})")
                all_see(g, 1)
                expect(g.ask("v"), "2", "version")


@test
def core_written():
    """A program that dies with a core file while it is updated: the command ends, and so does the program."""
    with lib.Dir() as d:
        fixtures(d, "threads")
        for i in range(8 if LONG else 3):
            with Guest(d, ["sh", "-c", f"ulimit -c unlimited; cd /tmp; exec {d}/threads 100"]) as g:
                p = start(g, f"{d}/v2.so", "--timeout", "600")
                time.sleep(0.01 * i)
                os.kill(g.p.pid, signal.SIGABRT)
                out, err = p.communicate(timeout=lib.limit(180))
                if p.returncode not in (0, 125):
                    raise AssertionError(f"update: {p.returncode} {out} {err}")
                expect(g.p.wait(lib.limit(90)) in (-6, 134), True, f"status {g.p.returncode}")


@test
def namespaces():
    """The library is loaded in another namespace, too: that copy keeps its version, and it is said so."""
    with lib.Dir() as d:
        fixtures(d, "twice", "-ldl")
        with Guest(d, [f"{d}/twice", f"{d}/libupd.so.1"]) as g:
            expect(g.ask("v"), "1 1", "versions")
            text = g.update(f"{d}/v2.so", "--timeout", UPDATE_SECONDS)
            if "another namespace" not in text:
                raise AssertionError(f"not said: {text!r}")
            expect(g.ask("v"), "2 1", "versions")
            g.update(f"{d}/libupd.so.1", "--timeout", UPDATE_SECONDS)
            expect(g.ask("v"), "1 1", "versions")


@test
def preloaded():
    """A library that stands before it (LD_PRELOAD) goes on to, and calls the new version."""
    with lib.Dir() as d:
        fixtures(d, "state")
        build(d, "pre.so", "preload.c", "-shared", "-ldl")
        with Guest(d, [f"{d}/state"], "--env", f"LD_PRELOAD={d}/pre.so") as g:
            expect(g.ask("v"), "101", "version")
            for v in (2, 1, 2):
                g.update(f"{d}/v2.so" if v == 2 else f"{d}/libupd.so.1", "--timeout", UPDATE_SECONDS)
                expect(g.ask("v"), str(100 + v), "version")


FULL, CLOSED = b"No space left on device", b"Broken pipe"


@test
def unheard():
    """Nobody hears what the command says: all that it was to do is done and noted, and then that is its error."""
    with lib.Dir() as d:
        fixtures(d, "state")
        script = (f"mkfifo /tmp/p; {d}/state </tmp/p >/tmp/o & exec 9>/tmp/p; until grep -q ready /tmp/o; do sleep 0.1; done; "
                  f"exec {d}/state")
        os.environ["KYLINX_STORE"] = f"{d}/store"
        try:
            with Guest(d, ["sh", "-c", script]) as g:
                for v, out, what, option in ((2, "/dev/full", FULL, "--all"), (1, None, CLOSED, "--all"), (2, None, CLOSED, "--at-once"),
                                             (1, "/dev/full", FULL, "--dry-run")):
                    path = f"{d}/v2.so" if v == 2 else f"{d}/libupd.so.1"
                    r, w = (None, os.open(out, os.O_WRONLY)) if out else os.pipe()
                    if r is not None:
                        os.close(r)
                    with open(w, "wb") as pipe:
                        p = subprocess.run([lib.KYLINX, "update", option, "--timeout", UPDATE_SECONDS, g.name, path], stdout=pipe,
                                           stderr=subprocess.PIPE, timeout=lib.limit(180))
                    expect(p.returncode, 125, f"status of {option} ({p.stderr})")
                    made = b"" if option == "--dry-run" else b"the update is made, but "
                    expect(p.stderr, b"kylinx: %sstandard output: %s (check where it goes)\n" %
                           (made, what), f"what {option} says")
                    expect(g.ask("v"), "2" if option == "--dry-run" else str(v), f"version after {option}")
                    expect(g.ask("s"), "ok", "state")
                made = lib.read(f"{d}/store/history").count('"event":"update",')
                expect(made, 3, "updates in the history")
        finally:
            del os.environ["KYLINX_STORE"]


@test
def full_disk():
    """The store's disk is full: updates are made without it, and it is told that they are not in its history."""
    with lib.Dir() as d:
        fixtures(d, "state")
        store = f"{d}/store"
        os.mkdir(store)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", store], stderr=subprocess.DEVNULL).returncode:
            raise Skip("no mount(2) here")
        try:
            with contextlib.suppress(OSError), open(f"{store}/full", "wb") as f:
                while True:
                    f.write(bytes(4096))
                    f.flush()
            os.environ["KYLINX_STORE"] = store
            try:
                with Guest(d, [f"{d}/state"]) as g:
                    for v in (2, 1):
                        said = g.update(f"{d}/v2.so" if v == 2 else f"{d}/libupd.so.1", "--timeout", UPDATE_SECONDS)
                        expect(g.ask("v"), str(v), "version")
                        expect(said.count("done, but not noted in the history: "), 1, f"that is told: {said!r}")
            finally:
                del os.environ["KYLINX_STORE"]
        finally:
            subprocess.run(["umount", store], check=True)


if __name__ == "__main__":
    sys.exit(lib.run_tests(tests, args.only))
