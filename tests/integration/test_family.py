#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Families from outside (kylinx ps, kill, exec; the registry) and from inside (/proc, ps, pgrep, killall).

test_family.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure. As root it has a mount namespace of
its own with an empty /run, so other families on the machine are not seen, and a /dev/kvm for ordinary users. After
each test no process is left, and no file, registry entries included.
"""
import contextlib
import ctypes
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402

args = lib.arguments()

NOBODY = 65534
PYTHON = "/usr/bin/python3"
ROOT = os.geteuid() == 0
libc = ctypes.CDLL(None, use_errno=True)
tests = []


def test(fn):
    tests.append((fn.__name__, fn))
    return fn


def need(*programs):
    for p in programs:
        if not shutil.which(p):
            raise Skip(f"{p} is not installed")


def root_only():
    if not ROOT:
        raise Skip("run as root")


def until(fn, what, timeout=90):
    end = time.monotonic() + lib.limit(timeout)
    while time.monotonic() < end:
        got = fn()
        if got:
            return got
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {lib.limit(timeout):.0f} s")


def kx(*argv, timeout=180, stdin=None, cwd="/", env=None, wrap=()):
    return lib.run([*wrap, lib.KYLINX, *argv], timeout, stdin=stdin, cwd=cwd, env=env)


def ok(r, out=None, what="kylinx"):
    expect((r.status, r.err.decode(errors="replace")), (0, ""), what)
    if out is not None:
        expect(r.out.decode(errors="replace"), out, what)
    return r.out.decode(errors="replace")


def refused(r, *words, status=125):
    """Status, one line on standard error with these words, in the form `what: why (remedy)`."""
    text = r.err.decode(errors="replace")
    expect(r.status, status, f"status ({text.strip()})")
    assert re.match(r"kylinx: [^\n]+: [^\n]+ \([^\n]+\)\n\Z", text), repr(text)
    for w in words:
        assert w in text, f"{w!r} is not in {text!r}"


def ps(*argv, wrap=(), env=None):
    doc = json.loads(ok(kx("ps", "--json", *argv, wrap=wrap, env=env), what="ps"))
    expect(doc["version"], 1, "version")
    return doc["families"]


def only(families):
    expect(len(families), 1, "families")
    return families[0]


def members(name, wrap=(), env=None):
    """By first argument or comm, of the family with that name."""
    for f in ps(wrap=wrap, env=env):
        if f["name"] == name:
            return {(" ".join(m["args"]) if m["args"] else m["comm"]): m for m in f["members"]}
    return {}


@contextlib.contextmanager
def family(name, script, *options, ready=None, wrap=(), env=None, program=("sh", "-c"), cwd="/"):
    """A family that runs script, and is up when members whose arguments start with `ready` (one, or
    each of a tuple) are there.
    """
    wanted = ready if isinstance(ready, tuple) else (ready,)

    def up():
        got = members(name, wrap, env)
        return all(any(a.startswith(w) if w else a.endswith(script) for a in got) for w in wanted)

    argv = [*wrap, lib.KYLINX, "run", "--name", name, *options, "--", *program, script]
    full = {**os.environ, **(env or {})}
    p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd,
                         start_new_session=True, env=full)
    try:
        until(lambda: p.poll() is not None or up(),
              f"{name} is up")
        assert p.poll() is None, f"{name} ended: {lib.status_text(p.returncode)}: {p.stdout.read()!r}"
        yield p
    finally:
        if any(f["name"] == name for f in ps(wrap=wrap, env=env)):
            kx("kill", "-s", "KILL", "--family", name, wrap=wrap, env=env)
        lib.group_kill(p)
        until(lambda: not any(f["name"] == name for f in ps(wrap=wrap, env=env)), f"{name} is gone")
        p.stdout.close()


def gone(pid):
    return not os.path.exists(f"/proc/{pid}")


def registry():
    return [n for n in lib.names("/run/kylinx")] if ROOT else []


def status_lines(pid, *keys):
    text = lib.read(f"/proc/{pid}/status")
    return {k: re.search(rf"^{k}:\s*(.*)$", text, re.M).group(1) for k in keys}


# ---- ps ---------------------------------------------------------------------------------------------------------

@test
def ps_without_families():
    expect(ps(), [], "families")
    out = ok(kx("ps"))
    assert out.split()[:3] == ["PID", "PPID", "NAME"] and out.count("\n") == 1, out


@test
def ps_hides_children_made_ahead():
    """A shell that forks again and again has its next child made while it waits; that is nobody yet."""
    with family("again", "while :; do (sleep 0.03; :); done", ready="sleep", program=("bash", "-c")) as p:
        ahead, end = 0, time.monotonic() + lib.limit(90)
        while ahead < 10 and time.monotonic() < end:
            os.kill(p.pid, signal.SIGSTOP)  # or its child may end, and the next one begin, while they are listed
            until(lambda: lib.read(f"/proc/{p.pid}/stat").rsplit(")", 1)[1].split()[0] == "T", "stopped")
            if len(lib.kids(p.pid)) > 1:
                children = [m for m in only(ps())["members"] if m["ppid"] == p.pid]
                assert len(children) <= 1, children
                ahead += 1
            os.kill(p.pid, signal.SIGCONT)
            time.sleep(0.02)
        assert ahead == 10, f"{ahead} were made ahead"


@test
def ps_tree():
    script = "sleep 101 & (sleep 102 & ); python3 -c 'import threading as t, time; " \
             "[t.Thread(target=time.sleep, args=(100,)).start() for i in range(3)]' & exec 9>&-; wait; sleep 103"
    with family("tree", script, ready=("sleep 101", "sleep 102"), program=("bash", "-c")) as p:
        until(lambda: any(m["vcpus"] == 4 for m in members("tree").values()), "three threads beside the first")
        until(lambda: len(only(ps())["members"]) == 4, "the end of the shell between")
        f = only(ps())
        expect((f["name"], f["root_pid"], f["root_alive"], f["program"]), ("tree", p.pid, True, "bash"), "family")
        assert f["forks"] >= 4, f["forks"]
        by = members("tree")
        root = next(m for m in by.values() if m["pid"] == p.pid)
        expect((root["role"], root["ppid"], root["comm"], root["uid"]), ("root", os.getpid(), "bash", os.geteuid()),
               "root")
        expect((by["sleep 101"]["role"], by["sleep 101"]["ppid"]), ("child", p.pid), "child")
        expect((by["sleep 102"]["role"], by["sleep 102"]["ppid"] == p.pid), ("orphan", False), "orphan")
        expect((by["sleep 101"]["program"], by["sleep 101"]["args"]), ("/usr/bin/sleep", ["sleep", "101"]), "program")
        for m in by.values():
            assert m["state"] in "RSD" and 0 <= m["age_seconds"] < 600 and m["vcpus"] >= 1, m
            assert 100 < m["private_kib"] <= m["pss_kib"] <= m["rss_kib"], m
            expect(m["shared_kib"], m["rss_kib"] - m["private_kib"], "shared")
            start = lib.read(f"/proc/{m['pid']}/stat").rsplit(")", 1)[1].split()[19]
            expect(m["start_ticks"], int(start), "start")
        os.kill(by["sleep 101"]["pid"], signal.SIGSTOP)
        until(lambda: members("tree")["sleep 101"]["state"] == "T", "stopped")
        os.kill(by["sleep 101"]["pid"], signal.SIGKILL)
        table = ok(kx("ps"))
        assert re.search(rf"^ *{p.pid} +{os.getpid()} tree ", table, re.M), table
        assert re.search(r" \* sleep 102$", table, re.M), table
        expect(ps("--family", "tree")[0]["root_pid"], p.pid, "by name")
        expect(ps("--family", str(by["sleep 102"]["pid"]))[0]["root_pid"], p.pid, "by pid of a member")
        refused(kx("ps", "--family", "nosuch"), "nosuch")
        refused(kx("ps", "--family", str(os.getpid())), str(os.getpid()))


@test
def ps_zombie():
    with family("zombie", "import os,time\nif not os.fork(): os._exit(0)\ntime.sleep(100)",
                program=(PYTHON, "-c")) as p:
        # Its first thread may have ended before the others.
        z = until(lambda: [m for m in only(ps())["members"] if m["state"] == "Z" and not m["vcpus"]], "zombie")
        expect((z[0]["ppid"], z[0]["private_kib"], z[0]["args"]), (p.pid, None, None), "zombie")


@test
def ps_hostile_names():
    """What a guest calls itself can't move a terminal's cursor, nor break JSON."""
    script = "exec -a $'\\e[2J\\n\"\\\\\\xff\\xc2\\x9b' sleep 100"
    with family("hostile", script, ready="\x1b[2J", program=("bash", "-c")):
        expect(only(ps())["members"][0]["args"][0], "\x1b[2J\n\"\\\ufffd\ufffd\ufffd", "args")
        r = kx("ps")
        assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f-\xff]", r.out) and r.out.count(b"\n") == 2, r.out


@test
def host_sees_names():
    """The host's cmdline, environ and comm are the program's, after fork and exec and when it changes them."""
    script = "import ctypes,os,time\nif not os.fork():\n os.execve('/bin/sleep', ['named', '77'], {'K': 'v'})\n" \
             "if not os.fork():\n time.sleep(100)\n" \
             "ctypes.CDLL(None).prctl(15, b'renamed')\ntime.sleep(100)"
    with family("names", script, "--env", "MARK=here", ready="named 77", program=(PYTHON, "-c")) as p:
        argv = [PYTHON, "-c", script]
        until(lambda: lib.read(f"/proc/{p.pid}/comm") == "renamed\n", "comm")
        by = {m["pid"]: m for m in only(ps())["members"]}
        forked = next(m for m in by.values() if m["args"] == argv and m["pid"] != p.pid)
        named = next(m for m in by.values() if m["args"] == ["named", "77"])
        expect((forked["comm"], named["comm"]), ("python3", "sleep"), "comm")
        for pid in (p.pid, forked["pid"]):
            expect(lib.read(f"/proc/{pid}/cmdline").split("\0")[:-1], argv, "cmdline")
            assert "MARK=here" in lib.read(f"/proc/{pid}/environ").split("\0"), "environ"
        expect(lib.read(f"/proc/{named['pid']}/environ"), "K=v\0", "environ after exec")


# ---- the registry ----------------------------------------------------------------------------------------------

@test
def registry_is_swept():
    root_only()
    for _ in range(20):
        ok(kx("run", "true"))
    assert len(registry()) <= 1, registry()
    expect(ps(), [], "families")
    expect(registry(), [], "entries after a listing")
    st = os.stat("/run/kylinx")
    expect((st.st_uid, st.st_mode & 0o777), (0, 0o700), "directory")


@test
def registry_after_sigkill():
    root_only()
    with family("dead", "sleep 100 & sleep 101", ready=("sleep 100", "sleep 101")) as p:
        entry = only(registry())
        assert re.fullmatch(rf"{p.pid}-\d+\.dead", entry), entry
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()
        until(lambda: ps() == [] and not registry(), "no family, and no entry")


@test
def root_killed_children_live():
    with family("alive", "echo mark >/tmp/f; sleep 100 & sleep 101 & wait", ready=("sleep 100", "sleep 101")) as p:
        p.kill()
        p.wait()
        f = until(lambda: [f for f in ps() if not f["root_alive"]], "listed without root")[0]
        expect((f["name"], sorted(m["role"] for m in f["members"])), ("alive", ["orphan", "orphan"]), "family")
        refused(kx("run", "--name", "alive", "true"), "alive", str(p.pid))
        refused(kx("kill", "alive"), "--family")
        ok(kx("exec", "alive", "cat", "/tmp/f"), "mark\n")
        pid = f["members"][0]["pid"]
        ok(kx("exec", str(pid), "cat", "/tmp/f"), "mark\n")
        ok(kx("kill", "--family", "alive"))
        until(lambda: ps() == [], "no family")
    ok(kx("run", "--name", "alive", "true"))


@test
def name_clash():
    with family("twice", "sleep 100") as p:
        refused(kx("run", "--name", "twice", "true"), "--name twice", str(p.pid))
        ok(kx("run", "--name", "twic", "true"))
        ok(kx("run", "true"))
    ok(kx("run", "--name", "twice", "echo", "again"), "again\n")
    refused(kx("run", "--name", "123", "true"), "not a name")
    # Of many at once, one wins.
    ps_ = [subprocess.Popen([lib.KYLINX, "run", "--name", "race", "sleep", "1000"], stderr=subprocess.DEVNULL)
           for _ in range(6)]
    try:
        until(lambda: sum(p.poll() is not None for p in ps_) >= 5, "five of six have ended")
    finally:
        for p in ps_:
            p.terminate()
    expect(sorted(p.wait(lib.limit(60)) for p in ps_), [-signal.SIGTERM, 125, 125, 125, 125, 125], "six at once")


@test
def registry_kept_locked():
    """A family without a name starts, unlisted; a name that can't be looked up is not given twice"""
    root_only()
    with family("kept", "sleep 100"):
        fd = os.open("/run/kylinx", os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            refused(kx("run", "--name", "kept", "true"), "--name kept", "locked", "try again")
            r = kx("run", "echo", "ran")
            expect((r.status, r.out, b"not listed" in r.err), (0, b"ran\n", True), "without a name")
        finally:
            os.close(fd)
        refused(kx("run", "--name", "kept", "true"), "has it")


@test
def registry_directory_missing_or_unsafe():
    root_only()
    for setup, warns in (("mount -t tmpfs -o ro none /run", False),
                         ("rm -rf /run/kylinx; ln -s /tmp /run/kylinx", True),
                         ("rm -rf /run/kylinx; mkdir -m 777 /run/kylinx; chmod 777 /run/kylinx", True),
                         ("rm -rf /run/kylinx; mkdir -m 700 /run/kylinx; chown 1 /run/kylinx", True),
                         ("rm -rf /run/kylinx; echo >/run/kylinx", True)):
        wrap = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none /run; {setup}; exec \"$@\"", "sh"]
        r = kx("run", "--name", "x", "--", "sh", "-c", "true; echo ran", wrap=wrap)
        expect((r.status, r.out), (0, b"ran\n"), setup)
        expect(b"warn" in r.err, warns, f"{setup}: warning")
        if warns:
            refused(kx("ps", wrap=wrap), "/run/kylinx")
        else:
            ok(kx("ps", wrap=wrap))


@test
def ordinary_user():
    root_only()
    with lib.Dir() as d:
        os.chmod(d, 0o777)
        shutil.copy(lib.KYLINX, f"{d}/kylinx")
        os.mkdir(f"{d}/run", 0o700)
        os.chown(f"{d}/run", NOBODY, NOBODY)
        # The copy, since the tree may not be readable to others: it takes the place of KYLINX, which is shifted away.
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sh", "-c",
                f"shift; exec {d}/kylinx \"$@\"", "sh"]
        for env, place in (({"XDG_RUNTIME_DIR": f"{d}/run"}, f"{d}/run/kylinx"),
                           ({"XDG_RUNTIME_DIR": "/nosuch"}, f"/tmp/kylinx-{NOBODY}"),
                           ({"XDG_RUNTIME_DIR": "/root"}, f"/tmp/kylinx-{NOBODY}")):
            with family("own", "echo mark >/tmp/f; cat /proc/self/status >/tmp/s; sleep 100", "--net", "none",
                        ready="sleep 100", wrap=user, env=env):
                expect(len(lib.names(place)), 1, place)
                expect((os.stat(place).st_mode & 0o777, os.stat(place).st_uid), (0o700, NOBODY), place)
                r = kx("exec", "own", "sh", "-c", "cat /tmp/f; id -u; grep -E '^(Cap|Seccomp|Uid|Gid)' /proc/self/status "
                       ">/tmp/a; grep -E '^(Cap|Seccomp|Uid|Gid)' /tmp/s | diff - /tmp/a && echo same; "
                       "cat /proc/net/dev | wc -l; exit 5", wrap=user, env=env)
                expect((r.status, r.out.split()), (5, [b"mark", b"65534", b"same", b"3"]), f"exec ({r.err!r})")
                by = members("own", wrap=user, env=env)
                assert by["sleep 100"]["private_kib"] > 0 and by["sleep 100"]["uid"] == NOBODY, by
                expect(ps(), [], "root's families")
                refused(kx("kill", "own"), "own")
                ok(kx("kill", "--family", "own", wrap=user, env=env))
                until(lambda: ps(wrap=user, env=env) == [], "ended")
        shutil.rmtree(f"/tmp/kylinx-{NOBODY}", ignore_errors=True)
        os.symlink("/tmp", f"/tmp/kylinx-{NOBODY}")
        try:
            env = {"XDG_RUNTIME_DIR": ""}
            r = kx("run", "echo", "ran", wrap=user, env=env)
            expect((r.status, r.out, b"warn" in r.err), (0, b"ran\n", True), "directory of somebody else's making")
            refused(kx("ps", wrap=user, env=env), f"/tmp/kylinx-{NOBODY}")
        finally:
            os.unlink(f"/tmp/kylinx-{NOBODY}")


# ---- kill -------------------------------------------------------------------------------------------------------

@test
def kill_one():
    with family("one", "trap 'echo got' USR1; sleep 100 & while :; do wait; done", ready="sleep 100",
                program=("bash", "-c")) as p:
        child = members("one")["sleep 100"]["pid"]
        ok(kx("kill", "-s", "usr1", "one"))
        expect(p.stdout.readline(), b"got\n", "by name, to the first process")
        ok(kx("kill", "-s", "SIGUSR1", str(p.pid)))
        expect(p.stdout.readline(), b"got\n", "by pid")
        ok(kx("kill", "--signal=10", "one"))
        expect(p.stdout.readline(), b"got\n", "by number")
        ok(kx("kill", "-s", "0", str(child)))
        ok(kx("kill", str(child)))
        until(lambda: gone(child), "TERM to a child")
        expect(p.poll(), None, "the parent")
    for argv, word in ((["nosuch"], "nosuch"), (["--family", "nosuch"], "nosuch"), ([str(child)], str(child)),
                       ([str(os.getpid())], str(os.getpid())), (["-s", "NOSUCH", "x"], "NOSUCH"), ([], "kill"),
                       (["a", "b"], "more than one"), (["-s"], "-s"), (["--what", "x"], "--what"), ([""], ""),
                       (["99999999999999999999"], "99999")):
        refused(kx("kill", *argv), word)


@test
def kill_family():
    with family("all", "trap : TERM; for i in 1 2 3 4; do sleep 100 & done; while :; do wait; sleep 0.1; done",
                ready="sleep 100", program=("bash", "-c")) as p:
        until(lambda: sum(m["args"] == ["sleep", "100"] for m in only(ps())["members"]) == 4, "members")
        inside = [m["pid"] for m in only(ps())["members"]]
        ok(kx("kill", "--family", "all"))
        until(lambda: all(gone(x) for x in inside if x != p.pid), "TERM to all")
        expect(p.poll(), None, "the one that ignores it")
        ok(kx("kill", "-s", "KILL", "--family", str(p.pid)))
        expect(p.wait(lib.limit(60)), -signal.SIGKILL, "status")
        until(lambda: ps() == [], "nobody is left")  # the others' ends are not waited for


@test
def kill_family_that_forks():
    with family("fork", "while :; do sleep 100 & sleep 0.05; done", ready="sleep 100") as p:
        time.sleep(0.5)
        ok(kx("kill", "-sKILL", "--family", "fork"))
        p.wait(lib.limit(60))
        until(lambda: ps() == [], "nobody is left")


# ---- exec -------------------------------------------------------------------------------------------------------

@test
def exec_streams_and_status():
    with family("host", "sleep 100"):
        r = kx("exec", "host", "--", "sh", "-c", "cat; echo err >&2; exit 7", stdin=b"in\n")
        expect((r.status, r.out, r.err), (7, b"in\n", b"err\n"), "streams")
        expect(kx("exec", "host", "sh", "-c", "kill -TERM $$").status, -signal.SIGTERM, "killed by a signal")
        refused(kx("exec", "host", "nosuchprogram"), "nosuchprogram", status=127)
        refused(kx("exec", "host", "/etc/passwd"), "/etc/passwd", status=126)
        refused(kx("exec", "nosuch", "true"), "nosuch")
        refused(kx("exec", "host"), "command")
        refused(kx("exec"), "family")
        refused(kx("exec", "--what", "host", "true"), "--what")
        refused(kx("exec", str(os.getpid()), "true"), str(os.getpid()))
        ok(kx("exec", "--env", "A=b", "--env=C=d", "host", "sh", "-c", "echo $A$C"), "bd\n")
        ok(kx("exec", "host", "pwd", cwd="/usr/share"), "/usr/share\n")
        ok(kx("exec", "host", "pwd", cwd=os.path.dirname(lib.KYLINX)), "/\n")
        ok(kx("exec", "host", "sh", "-c", "echo $(echo a; sh -c 'echo b') | tr a-z A-Z"), "A B\n")
        fd = kx("exec", "host", "sh", "-c", "ls /proc/self/fd")
        expect(ok(fd).split(), ["0", "1", "2", "3"], "descriptors")


def sockets(pid):
    """Of a process of the host's, which may be busy with them."""
    found = set()
    for n in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/{pid}/fd/{n}"))
    return {x for x in found if x.startswith("socket:")}


@test
def exec_with_few_descriptors():
    """It says that they are too few, or there is a member that updates reach."""
    good = 0
    with family("few", "sleep 100") as p:
        for n in range(5, 64):
            e = subprocess.Popen(["sh", "-c", f"ulimit -Sn {n}; exec \"$@\"", "sh", lib.KYLINX, "exec", "few", "sleep", "99"],
                                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                until(lambda: e.poll() is not None or "sleep 99" in members("few"), "ended, or a member")
                if e.poll() is None:
                    until(lambda: len(sockets(e.pid) & sockets(p.pid)) == 2, f"two sockets in common, with {n} descriptors")
                    good += 1
                else:
                    refused(lib.Result(e.returncode, b"", e.stderr.read(), 0), "Too many open files")
            finally:
                e.kill()
                e.wait()
                e.stderr.close()
            until(lambda: "sleep 99" not in members("few"), "gone")
            if good == 2:
                break
    expect(good, 2, "numbers of descriptors that are enough")


@test
def exec_is_a_member():
    with lib.Dir() as d:
        script = "echo mark >/tmp/f; trap 'echo usr1' USR1; sleep 100 & while :; do wait; done"
        with family("in", script, "--volume", f"{d}:/data", "--memory", "200M", ready="sleep 100",
                    program=("bash", "-c")) as p:
            ok(kx("exec", "in", "sh", "-c", "cat /tmp/f; ipcmk -M 4096 >/dev/null; echo x >/data/new"), "mark\n")
            assert os.path.exists(f"{d}/new")
            out = ok(kx("exec", "in", "sh", "-c", "ipcs -m | grep -c 4096; head -1 /proc/meminfo"))
            expect(out.split(), ["1", "MemTotal:", "204800", "kB"], "IPC, memory")
            ok(kx("exec", "in", "sh", "-c", f"kill -USR1 {p.pid}"))
            expect(p.stdout.readline(), b"usr1\n", "a signal to the family")
            other = subprocess.Popen(["sleep", "100"])
            try:
                r = kx("exec", "in", "sh", "-c", f"kill -0 {other.pid}")
                assert r.status == 1 and b"No such process" in r.err, r.why()
            finally:
                other.kill()
                other.wait()
            e = subprocess.Popen([lib.KYLINX, "exec", "in", "sh", "-c", "sleep 99; true"], stdin=subprocess.DEVNULL)
            try:
                m = until(lambda: members("in").get("sh -c sleep 99; true"), "listed")
                expect((m["pid"], m["role"], m["ppid"]), (e.pid, "exec", os.getpid()), "member")
                until(lambda: "sleep 99" in members("in"), "its child")
                child = members("in")["sleep 99"]
                expect((child["role"], child["ppid"]), ("child", e.pid), "its child")
                keys = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters",
                        "Uid", "Gid")
                for pid in (e.pid, child["pid"]):
                    expect(status_lines(pid, *keys), status_lines(p.pid, *keys), "rights")
                    for ns in ("mnt", "ipc", "net", "user", "uts", "pid"):
                        expect(lib.link(f"/proc/{pid}/ns/{ns}"), lib.link(f"/proc/{p.pid}/ns/{ns}"), f"{ns} namespace")
                    expect(lib.link(f"/proc/{pid}/root"), lib.link(f"/proc/{p.pid}/root"), "root")
                expect(status_lines(e.pid, "NoNewPrivs", "Seccomp"), {"NoNewPrivs": "1", "Seccomp": "2"}, "filter")
                # Nothing of the host's is open in it but what was opened for it.
                for n in lib.names(f"/proc/{e.pid}/fd"):
                    link = lib.link(f"/proc/{e.pid}/fd/{n}")
                    assert not link.startswith("/proc") and "/ns/" not in link and "pidfd" not in link, (n, link)
                ok(kx("exec", "in", "sh", "-c", f"kill {e.pid}"))
                expect(e.wait(lib.limit(60)), -signal.SIGTERM, "a signal from the family")
            finally:
                e.kill()
                e.wait()


@test
def exec_keeps_the_family():
    """A member that came by exec is the last: the family is the same one still."""
    with family("last", "echo mark >/tmp/f; sleep 100", ready="sleep 100") as p:
        e = subprocess.Popen([lib.KYLINX, "exec", "last", "sleep", "98"], stdin=subprocess.DEVNULL)
        try:
            until(lambda: "sleep 98" in members("last"), "member")
            p.kill()
            for m in members("last").values():
                if m["pid"] != e.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(m["pid"], signal.SIGKILL)
            p.wait()
            until(lambda: lib.reap() or lib.children() == [f"{e.pid} sleep"], "orphans that came to us")
            until(lambda: list(members("last")) == ["sleep 98"], "alone")
            refused(kx("run", "--name", "last", "true"), "last")
            ok(kx("exec", "last", "cat", "/tmp/f"), "mark\n")
            ok(kx("exec", "last", "sh", "-c", "ls /proc >/tmp/l; grep -c '^[0-9]' /tmp/l; cat /proc/%d/cmdline" % e.pid),
               "3\nsleep\00098\0")
        finally:
            e.kill()
            e.wait()
    expect(ps(), [], "families")


@test
def exec_with_root():
    need("busybox")
    with lib.Dir() as d:
        os.makedirs(f"{d}/bin")
        shutil.copy(shutil.which("busybox"), f"{d}/bin/busybox")
        with family("image", "echo $$ >/tmp/f; while :; do :; done", "--root", d, program=("/bin/busybox", "sh", "-c")) as p:
            until(lambda: kx("exec", "image", "/bin/busybox", "cat", "/tmp/f").out == f"{p.pid}\n".encode(), "its process")
            ok(kx("exec", "image", "/bin/busybox", "ls", "/bin"), "busybox\n")
            refused(kx("exec", "image", "/usr/bin/env"), "/usr/bin/env", status=127)


@test
def exec_on_a_terminal():
    with family("tty", "sleep 100"):
        pid, fd = pty.fork()
        if not pid:
            os.execv(lib.KYLINX, [lib.KYLINX, "exec", "tty", "sh", "-c",
                                  "test -t 0 && test -t 1 && stty size && echo ready; sleep 50"])
        out = b""
        end = time.monotonic() + lib.limit(90)
        while b"ready" not in out and time.monotonic() < end:
            if select.select([fd], [], [], 0.2)[0]:
                out += os.read(fd, 1000)
        until(lambda: "sleep 50" in members("tty"), "the shell's child")  # which dash's own handler leaves alone before
        os.write(fd, b"\x03")
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(fd)
        assert b"ready" in out, out
        expect(status, -signal.SIGINT, "interrupted")


@test
def help_texts():
    for verb in ("ps", "kill", "exec"):
        text = ok(kx(verb, "--help"))
        assert text.startswith(f"Usage: kylinx {verb}"), text
        expect(ok(kx("help", verb)), text, "help")
        assert f"  {verb} " in ok(kx("help"))
    refused(kx("ps", "x"), "x")
    refused(kx("ps", "--what"), "--what")
    refused(kx("ps", "--family"), "--family")


# ---- inside -----------------------------------------------------------------------------------------------------

@test
def inside_sees_the_family():
    need("ps", "pgrep", "pidof", "top")
    other = subprocess.Popen(["sleep", "54321"])
    try:
        with family("peers", "sleep 201 & sleep 202 & wait", ready=("sleep 201", "sleep 202")) as p:
            def inside(*argv):
                r = kx("exec", "peers", *argv)
                expect(r.status, 0, f"{argv[0]}: {r.why()}")
                return r.out.decode()
            by = members("peers")
            rows = [line.split(None, 3) for line in inside("ps", "-e", "-o", "pid=,ppid=,comm=,args=").splitlines()]
            got = {int(r[0]): (int(r[1]), r[2], r[3]) for r in rows if r[2] != "ps"}
            expect(got, {m["pid"]: (m["ppid"], m["comm"], " ".join(m["args"])) for m in by.values()}, "ps")
            expect(sorted(inside("pgrep", "sleep").split()),
                   sorted(str(by[n]["pid"]) for n in ("sleep 201", "sleep 202")), "pgrep")
            expect(sorted(inside("pidof", "/usr/bin/sleep").split()),
                   sorted(str(by[n]["pid"]) for n in ("sleep 201", "sleep 202")), "pidof, by /proc/PID/exe")
            assert re.search(rf"^ *{p.pid} ", inside("top", "-b", "-n1"), re.M), "top"
            numbers = {int(n) for n in inside("ls", "/proc").split() if n.isdigit()}
            assert {m["pid"] for m in by.values()} <= numbers and len(numbers) == len(by) + 1, numbers
            s = by["sleep 201"]["pid"]
            expect(inside("cat", f"/proc/{s}/cmdline", f"/proc/{s}/comm"), "sleep\x00201\0sleep\n", "files")
            expect(inside("ls", f"/proc/{s}/task").split(), [str(s)], "threads: KVM's own are not shown")
            assert "PATH=" in inside("cat", f"/proc/{s}/environ"), "environ"
            expect(inside("readlink", f"/proc/{s}/exe", f"/proc/{s}/cwd", f"/proc/{s}/root").split(),
                   ["/usr/bin/sleep", "/", "/"], "links")
            expect(inside("sh", "-c", f"ls /proc/{s}/root/usr/bin/env /proc/{s}/cwd/etc/passwd | wc -l"), "2\n", "paths")
            text = inside("cat", f"/proc/{s}/status")
            assert re.search(r"^Threads:\t1$", text, re.M) and re.search(rf"^PPid:\t{p.pid}$", text, re.M), text
            assert int(re.search(r"VmSize:\s*(\d+)", text).group(1)) < 100 << 10, text
            stat = inside("cat", f"/proc/{s}/stat").rsplit(")", 1)[1].split()
            expect([stat[i] for i in (23, 24, 25, 26, 27, 42, 43, 44, 45, 46, 47, 48)], ["0"] * 12, "addresses")
            assert 0 < int(stat[20]) < 100 << 20 and 0 < int(stat[21]) * 4096 <= int(stat[20]), stat
            for path in (f"/proc/{other.pid}", f"/proc/{other.pid}/stat", "/proc/1/cmdline", f"/proc/{s}/task/1/stat",
                         f"/proc/{s}/mem", f"/proc/{s}/maps", f"/proc/{s}/fd", f"/proc/{s}/ns"):
                assert kx("exec", "peers", "ls", path).status == 2, path
            assert kx("exec", "peers", "sh", "-c", f"echo x >/proc/{s}/comm").status != 0, "another's comm"
    finally:
        other.kill()
        other.wait()


@test
def inside_killall():
    need("killall", "pkill")
    outside = subprocess.Popen(["sleep", "54322"])
    try:
        r = kx("run", "--", "bash", "-c", "sleep 301 & sleep 302 & a=$!; (exec -a other sleep 303) & "
               "until [ $(pgrep -c -x sleep) = 3 ]; do sleep 0.1; done; "
               "killall sleep; wait $a; echo $?; wait; ls /proc >/tmp/l; grep -c '^[0-9]*$' /tmp/l; sleep 304 & "
               "until pkill -KILL -x -f 'sleep 304'; do sleep 0.1; done; wait $!; echo $?")
        expect((r.status, r.out.split()), (0, [b"143", b"2", b"137"]), f"killall, pkill ({r.err!r})")
        expect(outside.poll(), None, "a stranger of the same name")
    finally:
        outside.kill()
        outside.wait()


@test
def inside_other_user():
    """As on Linux: stat and cmdline are for all, environ is not; root sees and signals who has become another."""
    root_only()
    script = """
import os, subprocess, time
def other():
    os.setgroups([]); os.setgid(NOBODY); os.setuid(NOBODY)
p = subprocess.Popen(["sleep", "100"])
time.sleep(0.5)
pid = os.fork()
if not pid:
    other()
    print(open(f"/proc/{p.pid}/cmdline").read().split("\\0"), os.stat(f"/proc/{p.pid}").st_uid)
    for f in (lambda: open(f"/proc/{p.pid}/environ").read(), lambda: os.kill(p.pid, 9)):
        try: print("could", f())
        except PermissionError: print("may not", flush=True)
    os._exit(0)
os.waitpid(pid, 0)
p.kill()
q = subprocess.Popen(["sleep", "100"], preexec_fn=other)
time.sleep(0.5)
os.kill(q.pid, 0)
print(os.stat(f"/proc/{q.pid}").st_uid, subprocess.run(["ps", "-o", "user=", "-p", str(q.pid)], stdout=-1).stdout, flush=True)
q.kill()
print(q.wait())
""".replace("NOBODY", str(NOBODY))
    want = lib.run([PYTHON, "-c", script])
    expect(want.status, 0, "natively")
    r = kx("run", PYTHON, "-c", script)
    expect((r.status, r.out), (want.status, want.out), f"pVM ({r.err!r})")


@test
def inside_device_nodes():
    """They are the host's own: to be read and written, not to be changed."""
    root_only()
    before = os.stat("/dev/full")
    try:
        r = kx("run", "sh", "-c", "chmod 600 /dev/full; chown 3 /dev/full; touch -d @1 /dev/full; echo x >/dev/null && "
               "head -c 2 /dev/zero | wc -c; echo x >/dev/full")
        expect((r.status != 0, r.out), (True, b"2\n"), f"use ({r.err!r})")
        expect(r.err.count(b"Read-only file system"), 3, f"change ({r.err!r})")
        after = os.stat("/dev/full")
        expect((after.st_mode, after.st_uid), (before.st_mode, before.st_uid), "on the host")
    finally:
        os.chmod("/dev/full", before.st_mode & 0o7777)
        os.chown("/dev/full", before.st_uid, before.st_gid)


# ---- the table --------------------------------------------------------------------------------------------------

@test
def ended_members_are_strangers():
    """Children that nobody waits for leave the family; whoever gets the pid is not in it."""
    root_only()
    script = "import os, signal, sys, time\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\np = os.fork()\n" \
             "if not p: os._exit(0)\ntry: os.wait()\nexcept ChildProcessError: print(p, flush=True)\nsys.stdin.readline()\n" \
             "for f in (lambda: os.kill(p, 0), lambda: os.pidfd_open(p), lambda: os.sched_getaffinity(p), " \
             "lambda: open(f'/proc/{p}/stat'), lambda: os.getpgid(p)):\n" \
             " try: print('reached', f())\n except (ProcessLookupError, FileNotFoundError): print('gone', flush=True)\n"
    p = subprocess.Popen(lib.pvm([PYTHON, "-c", script]), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stranger = None
    try:
        pid = int(p.stdout.readline())
        for _ in range(200):
            with open("/proc/sys/kernel/ns_last_pid", "w") as f:
                f.write(str(pid - 1))
            q = subprocess.Popen(["sleep", "100"])
            if q.pid == pid:
                stranger = q
                break
            q.kill()
            q.wait()
        if not stranger:
            raise Skip("the pid could not be had again")
        p.stdin.write(b"\n")
        p.stdin.flush()
        expect(p.stdout.read(), b"gone\n" * 5, "a stranger with the pid of a member")
    finally:
        p.kill()
        p.wait()
        if stranger:
            stranger.kill()
            stranger.wait()


GROUP_SIGNALS = """
import ctypes, fcntl, os, signal, socket, struct
group, got = os.getpgrp(), []
a, b = socket.socketpair()
def attempt(what, fn):
    try:
        got.append(f"{what} done" if fn() != -1 else f"{what} refused")
    except OSError:
        got.append(f"{what} refused")
signal.signal(signal.SIGUSR1, lambda *_: None)
attempt("F_SETOWN", lambda: fcntl.fcntl(a, fcntl.F_SETOWN, -group))
attempt("F_SETOWN_EX", lambda: fcntl.fcntl(a, 15, struct.pack("ii", 2, group)))
attempt("SIOCSPGRP", lambda: fcntl.ioctl(a, 0x8902, struct.pack("i", -group)))
attempt("FIOSETOWN", lambda: fcntl.ioctl(a, 0x8901, struct.pack("i", -group)))
fcntl.fcntl(a, 10, signal.SIGUSR1)
fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
b.send(b"x")
pidfd = os.pidfd_open(os.getpid())
attempt("pidfd", lambda: ctypes.CDLL(None).syscall(424, pidfd, signal.SIGUSR1, 0, 4))
print("; ".join(got))
"""


@test
def signals_of_descriptors_stay_inside():
    """The process group that kylinx was started in has somebody else in it, who would die of SIGUSR1."""
    attempts = ["F_SETOWN", "F_SETOWN_EX", "SIOCSPGRP", "FIOSETOWN", "pidfd"]
    script = "sleep 600 & \"$@\"; kill -0 $! && kill -KILL $! && echo alive"
    for argv, want in ((["sh", "-c", script, "sh", lib.KYLINX, "run", "--"], "refused"),
                       ([lib.KYLINX, "run", "--"], "done")):
        p = subprocess.run([*argv, PYTHON, "-c", GROUP_SIGNALS], cwd="/", stdin=subprocess.DEVNULL,
                           stdout=subprocess.PIPE, text=True, start_new_session=True, timeout=lib.limit(180))
        # A group of the family's own may get them; by pidfd no group does.
        lines = ["; ".join(f"{a} {'refused' if a == 'pidfd' else want}" for a in attempts)]
        expect(p.stdout.splitlines(), lines + (["alive"] if want == "refused" else []), "what was said")


# ---- all --------------------------------------------------------------------------------------------------------

def own_mounts():
    """/run of our own; /dev/kvm for everybody."""
    if libc.unshare(0x20000) or libc.mount(None, b"/", None, 0x44000, None):
        raise OSError(ctypes.get_errno(), "mount namespace")
    at = "/run"
    for source, fs in (("none", b"tmpfs"),):
        if libc.mount(source.encode(), at.encode(), fs, 0, b"mode=755"):
            raise OSError(ctypes.get_errno(), "mount /run")
    if os.path.exists("/dev/kvm"):
        os.mknod("/run/kvm", 0o600 | 0o020000, os.stat("/dev/kvm").st_rdev)
        os.chmod("/run/kvm", 0o666)
        libc.mount(b"/run/kvm", b"/dev/kvm", None, 4096, None)


def settled(before):
    """What is left, after what is ending had time to."""
    for _ in range(300):
        lib.reap()
        found = lib.leaks(before, lib.state())
        if not found:
            break
        time.sleep(0.1)
    try:
        found += [f"family {f['name']}" for f in ps()] + [f"registry entry {n}" for n in registry()]
    except AssertionError as e:
        found.append(str(e))
    return found


def main():
    if ROOT:
        own_mounts()
    return lib.run_tests(tests, args.only, settled, native=("help_texts",))


if __name__ == "__main__":
    sys.exit(main())
