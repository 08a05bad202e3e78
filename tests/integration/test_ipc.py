#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_ipc.py KYLINX: IPC and the family's border. Within it objects have one name space, through `kylinx exec` too;
two families share none, and futexes in memory that somebody outside maps wake whoever sleeps there."""
import concurrent.futures
import json
import os
import socket
import subprocess
import sys
import time

import lib

IPC = os.path.join(lib.TOP, os.environ.get("BUILD", "build"), "tests/guest/ipc.dyn")
PAIR = os.path.join(os.path.dirname(IPC), "pair.dyn")
NAMES = ["SysV segment", "SysV semaphores", "SysV queue", "POSIX queue", "POSIX memory", "POSIX semaphore",
         "abstract socket"]


class Background:
    """A program that says a word when it is ready, and ends when its input does."""

    def __init__(self, argv, word=b"ready"):
        self.p = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  start_new_session=True)
        line = self.p.stdout.readline()
        if line.strip() != word:
            lib.group_kill(self.p)
            raise AssertionError(f"{argv[-2:]}: {line!r} {self.p.stdout.read()!r}")

    def __enter__(self):
        return self

    def end(self):
        out = self.p.communicate(timeout=lib.limit(180))[0].decode()
        return self.p.returncode, out.strip()

    def __exit__(self, *_):
        if self.p.poll() is None:
            self.p.stdin.close()
            try:
                self.p.wait(lib.limit(90))
            except subprocess.TimeoutExpired:
                pass
        lib.group_kill(self.p)
        self.p.stdout.close()


def found(argv):
    r = lib.run(argv)
    lines = r.out.decode().splitlines()
    assert r.status == 0 and len(lines) == len(NAMES), r.why()
    return [n for n, line in zip(NAMES, lines) if line.endswith(": 1")]


def families(tap):
    """With and without the host's network: what has another family, a member from the host, the host?"""
    for net in ("none", "host"):
        opts = ["--net", "none"] if net == "none" else []
        name = f"ipc-{os.getpid()}-{net}"
        with Background(lib.pvm([IPC, "make"], "--name", name, *opts)):
            got = found([lib.KYLINX, "exec", name, "--", IPC, "find"])
            check(tap, f"net {net}: a member from the host sees all", got == NAMES, got)
            # An abstract name belongs to the network namespace, which is the host's by default.
            want = ["abstract socket"] if net == "host" else []
            got = found(lib.pvm([IPC, "find"], *opts))
            check(tap, f"net {net}: another family sees {' and '.join(want) or 'nothing'}", got == want, got)
            got = found([IPC, "find"])
            check(tap, f"net {net}: the host sees {' and '.join(want) or 'nothing'}", got == want, got)


def shown(tap):
    script = (f"{IPC} make <f >said & until grep ready said; do sleep 0.1; done;"
              "cut -d' ' -f1 /dev/mqueue/kx-ipc-family; for k in shm sem msg; do awk 'NR > 1 { print $1 == 1264058521 }'"
              " /proc/sysvipc/$k; done; ipcs | grep -c 0x4b580099; exec 3>&-")
    r = lib.run(lib.pvm(["bash", "-c", f"cd /tmp; mkfifo f; exec 3<>f; {script}; kill %1; wait"]), cwd=lib.TOP)
    want = "ready\nQSIZE:5\n1\n1\n1\n3\n".replace(" ", "")
    got = "\n".join(line.split()[0] for line in r.out.decode().splitlines()) + "\n"
    check(tap, "/dev/mqueue, /proc/sysvipc, ipcs", got == want, f"{got!r} {r.why()}")


def listed(tap):
    """kylinx ps --ipc, also for an ordinary user."""
    group = os.stat("/dev/kvm").st_gid
    user = ["setpriv", "--reuid=65534", "--regid=65534", f"--groups={group}"] if os.geteuid() == 0 else []
    kinds = {"sysv-shm": ("bytes", 4096), "sysv-sem": ("semaphores", 3), "sysv-msg": ("messages", 1),
             "posix-mq": ("bytes", 5), "posix-shm": ("bytes", 8192), "posix-sem": ("name", "/kx-ipc-family")}
    for who, wrap in (("", []), (" by an ordinary user", user)):
        name = f"ipc-{os.getpid()}-ps"
        with Background([*wrap, *lib.pvm([IPC, "make"], "--name", name)]):
            r = lib.run([*wrap, lib.KYLINX, "ps", "--ipc", "--json", "--family", name])
            doc = json.loads(r.out) if r.status == 0 else {"families": []}
            got = {o["kind"]: o for f in doc["families"] for o in f["objects"]}
            bad = [k for k, (key, v) in kinds.items() if got.get(k, {}).get(key) != v]
            check(tap, f"ps --ipc --json{who}", set(got) == set(kinds) and not bad, f"{bad} {r.why()}")
            lines = lib.run([*wrap, lib.KYLINX, "ps", "--ipc"]).out.decode().splitlines()
            check(tap, f"ps --ipc{who}", sum(name in line for line in lines[1:]) == len(kinds) and
                  any("0x4b580099" in line for line in lines), lines)


def fifos(tap):
    """A FIFO of a volume that two members use, and a process of the host's, too: in the order in which it happens."""
    with lib.Dir() as d:
        f = f"{d}/f"
        os.mkfifo(f)
        script = (f"cat {f} >{d}/out & exec 3>{f}; seq 1 500 >&3; echo ready; read x; seq 501 1000 >&3; exec 3>&-; wait")
        with Background(lib.pvm(["bash", "-c", script], "--volume", f"{d}:{d}")) as b:
            with open(f, "w") as w:
                w.write("the host's\n")
            b.p.stdin.write(b"\n")
            status, _ = b.end()
        with open(f"{d}/out") as out:
            got = out.read().split("\n")
        want = [*map(str, range(1, 501)), "the host's", *map(str, range(501, 1001)), ""]
        check(tap, "a FIFO of two members that the host writes to", status == 0 and got == want, f"{len(got)} lines, status {status}")
        with Background(lib.pvm(["bash", "-c", f"exec 3<>{f}; echo left >&3; echo ready; read x; read y <&3; echo $y"],
                                "--volume", f"{d}:{d}")) as b:
            fd = os.open(f, os.O_RDWR | os.O_NONBLOCK)
            got = os.read(fd, 100)
            os.write(fd, b"given\n")
            b.p.stdin.write(b"\n")
            end = b.end()
            os.close(fd)
        check(tap, "a FIFO of a member that the host reads from", got == b"left\n" and end == (0, "given"), f"{got!r} {end}")


def outside(tap):
    """Both sides of the border sleep and wake, by a file of a volume and by a memory file in a message."""
    with lib.Dir() as d:
        inside = ["--volume", f"{d}:{d}"]
        for what, here, there in (("inside sleeps, the host wakes", lib.pvm([IPC, "wait", f"{d}/a"], *inside), [IPC, "wake", f"{d}/a"]),
                                  ("the host sleeps, inside wakes", [IPC, "wait", f"{d}/b"], lib.pvm([IPC, "wake", f"{d}/b"], *inside)),
                                  ("another family sleeps", lib.pvm([IPC, "wait", f"{d}/c"], *inside), lib.pvm([IPC, "wake", f"{d}/c"], *inside)),
                                  ("a descriptor given to the host", [IPC, "take", f"{d}/s"], lib.pvm([IPC, "give", f"{d}/s"], *inside)),
                                  ("a descriptor taken from the host", lib.pvm([IPC, "take", f"{d}/t"], *inside), [IPC, "give", f"{d}/t"])):
            with Background(here, b"listening" if "descriptor" in what else b"ready") as b:
                r = lib.run(there)
                status, out = b.end()
            check(tap, f"futex across the border: {what}", r.status == 0 and status == 0 and "-1" not in out and r.out.endswith(b": 1\n"),
                  f"{r.why()} {status} {out!r}")


def taken(listener, expect_fd):
    """What a descriptor that comes in has unread, and an answer."""
    with listener.accept()[0] as s:
        s.settimeout(lib.limit(90))
        _, fds, _, _ = socket.recv_fds(s, 1, 1)
        if not expect_fd or not fds:
            return len(fds)
        with socket.socket(fileno=fds[0]) as end:
            end.settimeout(lib.limit(90))
            data = b""
            while len(data) < 39000:
                more = end.recv(65536)
                if not more:
                    break
                data += more
            end.sendall(b"back")
    return data == bytes((1000 + i) % 251 for i in range(39000))


def passed(tap):
    """An end of a socket pair with unread data goes to a process of the host, which maps no rings."""
    with lib.Dir() as d:
        for how, want in (("living", b"passed: 1 \nanswer: 7 \n"), ("killed", b"passed: -1 EIO\nanswer: 0 \n")):
            with socket.socket(socket.AF_UNIX) as listener, concurrent.futures.ThreadPoolExecutor(1) as pool:
                listener.bind(f"{d}/{how}")
                listener.listen()
                got = pool.submit(taken, listener, how == "living")
                r = lib.run(lib.pvm([PAIR, "pass", f"{d}/{how}", how], "--volume", f"{d}:{d}"), 180)
                check(tap, f"an end with unread data given to the host, its writer {how}",
                      r.status == 0 and r.out == want and got.result() == (how == "living"), f"{r.why()} {r.out!r}")


def trips(tap):
    """Round trips between two processes that both run make few exits."""
    cpus = len(os.sched_getaffinity(0))
    for what in ("sem", "msg", "queue"):
        name = f"{what}: round trips in the family's memory"
        if cpus < 2:
            tap.skip(name, "one processor")
            continue
        # What is missing had no second processor for it at that moment, which on a machine with other work may be most.
        end = time.monotonic() + lib.limit(180)
        while True:
            with lib.Dir() as d:
                r = lib.run(lib.pvm([IPC, "trips", what], f"--stats={d}/s"))
                with open(f"{d}/s", encoding="utf-8") as f:
                    s = json.load(f) if r.status == 0 else {"local_calls": 0}
            if r.status or s["local_calls"] > 20000 or time.monotonic() > end:
                break
        check(tap, name, r.status == 0 and s["local_calls"] > 20000, f"{s['local_calls']} of 80000 {r.why()}")


def check(tap, name, ok, why=""):
    if ok:
        tap.ok(name)
    else:
        tap.fail(name, str(why))


def main():
    tap = lib.Tap()
    for part in (families, shown, listed, outside, fifos, passed, trips):
        try:
            part(tap)
        except (AssertionError, OSError, subprocess.SubprocessError) as e:
            tap.fail(part.__name__, f"{type(e).__name__}: {e}")
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
