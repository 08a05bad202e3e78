#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A policy of libraries is enforced: what is signed runs, and attacks on it, one test each.

test_policy.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure. What `kylinx lib` says of keys and
policies is test_policy_cli.py's.
"""
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402
from updates import UPDATE_SECONDS, Guest, fixtures, library  # noqa: E402

args = lib.arguments()

LONG = bool(os.environ.get("KX_LONG"))
SYSTEM = "owner root" if os.geteuid() == 0 else "not owner user"  # ordinary users see root as nobody
USR = f"allow path /usr/** {SYSTEM} not writable-by group\n"
PYTHON, NODE = "/usr/bin/python3", "/usr/bin/node"
LOADER = "/lib64/ld-linux-x86-64.so.2"
tests = []
built = {}


def test(fn):
    def in_dir():
        with lib.Dir() as d:
            fn(Place(d))
    tests.append((fn.__name__, in_dir))
    return fn


def compiled(name, source, *options):
    """Compiled once, for all tests."""
    path = os.path.join(built["path"], name)
    if name not in built:
        subprocess.run(["gcc", "-std=gnu11", "-O2", "-o", path, os.path.join(HERE, "policy", source), *options],
                       check=True)
        built[name] = True
    return path


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


class Place:
    """A directory with configuration, store, the attacker, and libraries: good.so says 1 and is signed, bad.so says 2."""

    def __init__(self, d):
        self.d = d
        self.env = {"KYLINX_CONFIG": f"{d}/c", "KYLINX_STORE": f"{d}/s"}
        for v, name in ((1, "good"), (2, "bad")):
            shutil.copy(compiled(f"{name}.so", "lib.c", "-shared", "-fPIC", f"-DV={v}", "-Wl,-soname,libv.so.1"), d)
            os.chmod(f"{d}/{name}.so", 0o644)
        shutil.copy(compiled("attack", "attack.c", "-pthread", "-rdynamic"), d)
        self.good, self.bad, self.attack = f"{d}/good.so", f"{d}/bad.so", f"{d}/attack"
        self.key = self.new_key("release")
        self.sign(self.good)
        self.policy("allow signed-by release")

    def lib(self, *argv):
        r = lib.run([lib.KYLINX, "lib", *argv], env=self.env)
        if r.status:
            raise AssertionError(f"{' '.join(argv)}: {r.why()}")

    def new_key(self, name):
        self.lib("keygen", f"{self.d}/{name}")
        self.lib("trust", f"{self.d}/{name}.pub")
        return f"{self.d}/{name}"

    def sign(self, path, *options, key=None):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + ".kxsig")
        self.lib("sign", path, "--key", key or self.key, *options)

    def policy(self, rules, jit="deny", mode="enforce"):
        """These rules, the system's files, and this directory's programs."""
        self.text(f"[default]\nmode {mode}\njit {jit}\n{rules}\n{USR}allow kind program path {self.d}/*\n")

    def text(self, text):
        os.makedirs(f"{self.d}/c", mode=0o755, exist_ok=True)
        with open(f"{self.d}/c/policy", "w") as f:
            f.write(text)

    def run(self, *argv, options=(), timeout=180, env=None):
        """With this directory as it is, writable."""
        return lib.run([lib.KYLINX, "run", "--volume", f"{self.d}:{self.d}", *options, "--", *argv], timeout,
                       env={**self.env, **(env or {})})

    def tell(self, *argv, status=0, **kw):
        """NAME: RESULT lines as a dictionary; the log."""
        r = self.run(*argv, **kw)
        if r.status != status:
            raise AssertionError(f"{r.why()}; {r.out}")
        return dict(line.split(": ", 1) for line in r.out.decode().splitlines() if ": " in line), r.err.decode()

    def refused(self, path, why, ways=("dlopen", "dlmopen")):
        """However it is loaded."""
        said, log = self.tell(self.attack, "open", path)
        for way in ways:
            if "failed to map segment" not in said[way] and "Permission denied" not in said[way]:
                raise AssertionError(f"{way}: {said[way]}; {log}")
        if not re.search(rf"kylinx: error pvm=\d+ policy: [^\n]*{why}", log):
            raise AssertionError(f"log: {log!r} has no {why!r}")
        r = self.run("/bin/true", options=("--env", f"LD_PRELOAD={path}"))
        expect((r.status, b"cannot be preloaded" in r.err), (0, True), f"LD_PRELOAD ({r.err})")
        expect(self.tell(self.attack, "map", path)[0]["private"], "EACCES", "by hand")

    def loads(self, path, want="value 1"):
        said, log = self.tell(self.attack, "open", path)
        expect((said, log), ({"dlopen": want, "dlmopen": want}, ""), "loaded")


# ---- what is allowed -------------------------------------------------------------------------------------------------

@test
def signed_libraries(p):
    """dlopen, dlmopen, by hand, LD_PRELOAD, and as a library that the program is linked with."""
    p.loads(p.good)
    said, _ = p.tell(p.attack, "map", p.good)
    expect((said["private"], said["later"]), ("ok", "ok"), "by hand")
    expect([said[k] for k in ("shared", "writable", "headers", "behind")], ["EACCES"] * 4, "what is no code")
    r = p.run("/bin/echo", "hello", options=("--env", f"LD_PRELOAD={p.good}"))
    expect((r.status, r.out, r.err), (0, b"hello\n", b""), "LD_PRELOAD")
    with open(f"{p.d}/main.c", "w") as f:
        f.write("int value(void), printf(const char *, ...);\nint main(void) { printf(\"%d\\n\", value()); }\n")
    os.mkdir(f"{p.d}/l")
    shutil.copy(p.good, f"{p.d}/l/libv.so.1")
    subprocess.run(["gcc", "-o", f"{p.d}/main", f"{p.d}/main.c", f"{p.d}/l/libv.so.1", f"-Wl,-rpath,{p.d}/l"], check=True)
    r = p.run(f"{p.d}/main")
    expect((r.status, b"failed to map segment" in r.err), (127, True), f"without a signature there ({r.err})")
    p.sign(f"{p.d}/l/libv.so.1")
    r = p.run(f"{p.d}/main")
    expect((r.status, r.out, r.err), (0, b"1\n", b""), "linked")


@test
def system_programs(p):
    """What root owns below /usr: python3 with ctypes and ssl, perl, a shell with children; node, with jit alone."""
    p.text(f"[default]\njit deny\n{USR}")
    for content in ("", f"deny sha256 {'0' * 64}\n"):  # with it, contents are looked at
        p.text(f"{content}[default]\njit deny\n{USR}")
        for argv, want in (([PYTHON, "-c", "import ctypes, ssl, sqlite3; print(ctypes.CDLL(None).abs(-3))"], b"3\n"),
                           (["/usr/bin/perl", "-MPOSIX", "-MList::Util=sum", "-e", "print sum(1, 2), \"\\n\""], b"3\n"),
                           (["/bin/sh", "-c", "for i in 1 2 3; do echo $i | cat; done | wc -l"], b"3\n")):
            if shutil.which(argv[0]):
                r = p.run(*argv)
                expect((r.status, r.out, r.err), (0, want, b""), argv[0])
    if not os.path.exists(NODE):
        raise Skip("node is not installed")
    r = p.run(NODE, "-e", "console.log(1 + 2)")
    if r.status == 0 or b"policy: " not in r.err:
        raise AssertionError(f"node without jit: {r.why()}")
    p.text(f"[program **/node]\njit allow\n{USR}[default]\njit deny\n{USR}")
    r = p.run(NODE, "-e", "let n = 0; for (let i = 0; i < 1e6; i++) n += i % 3; console.log(n)")
    expect((r.status, r.out, b"policy: " in r.err), (0, b"999999\n", False), "node with jit")


@test
def maps_name_the_file(p):
    """/proc/self/maps says what it does without a policy; nothing else of the copy shows."""
    code = f"import ctypes; ctypes.CDLL('{p.good}'); print(open('/proc/self/maps').read())"
    strip = re.compile(r"^\S+ (\S+) (\S+) (\S+) (\S+) +(\S*good\.so|\S*libc\.so\S*|\S*/python\S*|\S*ld-linux\S*)$", re.M)
    seen = []
    for options, rules in (((), None), ((), f"allow path {p.d}/*"), (("--policy", "off"), None)):
        if rules:  # nothing is judged by its content: the files themselves are mapped
            p.policy(rules)
        r = p.run(PYTHON, "-c", code, options=options)
        expect(r.status, 0, r.err)
        seen.append(strip.findall(r.out.decode()))
        assert "memfd" not in r.out.decode(), r.out
    expect(seen[0], seen[2], "maps")
    expect(seen[1], seen[2], "maps of the files themselves")
    native = strip.findall(lib.run([PYTHON, "-c", code]).out.decode())
    expect({x[2:] for x in seen[1]}, {x[2:] for x in native}, "devices and inodes")


@test
def modes(p):
    """warn: told and counted; off: nothing; a policy with an error: nothing runs."""
    stats = f"{p.d}/stats"
    p.policy("", mode="warn")
    r = p.run(p.attack, "open", p.bad, options=(f"--stats={stats}",))
    expect((r.status, r.out), (0, b"dlopen: value 2\ndlmopen: value 2\n"), "warn")
    assert re.match(rb"kylinx: warn pvm=\d+ policy: \S*bad.so: ", r.err), r.err
    expect(json.load(open(stats))["policy"], {"refused": 0, "warned": 1}, "counted")
    r = p.run(p.attack, "memory", p.bad)
    assert b"anonymous: ok" in r.out and b"data, run: ran" in r.out and b"no file" in r.err, (r.out, r.err)
    p.policy("")
    r = p.run(p.attack, "open", p.bad, options=(f"--stats={stats}",))
    expect(json.load(open(stats))["policy"], {"refused": 2, "warned": 0}, "counted")
    p.policy("", mode="off")
    p.loads(p.bad, "value 2")
    p.text("[default]\nallow everything\n")
    r = p.run("/bin/true")
    expect((r.status, r.err.count(b"\n"), b"policy:2: " in r.err), (125, 1, True), r.err)
    expect(p.run("/bin/true", options=("--policy", "off")).status, 0, "off")
    p.policy("")
    os.chmod(f"{p.d}/c/policy", 0o666)
    r = p.run("/bin/true")
    expect((r.status, b"others can write" in r.err), (125, True), r.err)


@test
def the_program_itself(p):
    """126, one line: file, reason, remedy. From within: EACCES, and the caller goes on."""
    p.text(f"[default]\n{USR}")
    r = p.run(p.attack, "open", p.good)
    expect((r.status, r.out), (126, b""), r.err)
    assert re.fullmatch(rb"kylinx: policy: \S*/attack: [^\n]+ \([^\n]+kylinx-policy\(5\)\)\n", r.err), r.err
    r = p.run("/bin/sh", "-c", f"{p.attack} open; echo $?; echo still here")
    expect((r.status, r.out), (0, b"126\nstill here\n"), r.err)
    assert re.search(rb"kylinx: error pvm=\d+ policy: \S*/attack: ", r.err), r.err


@test
def programs_without_a_file(p):
    """A program in a memfd is executable memory that comes from no file."""
    code = ("import os; fd = os.memfd_create('x', 0); os.write(fd, open('/bin/true', 'rb').read())\n"
            "try:\n os.execve(fd, ['true'], {})\nexcept OSError as e:\n print(e.strerror)")
    r = p.run(PYTHON, "-c", code)
    expect((r.status, r.out, b"policy: executable memory" in r.err), (0, b"Permission denied\n", True), r.err)
    p.policy("", jit="allow")
    r = p.run(PYTHON, "-c", code)
    expect((r.status, r.out, r.err), (0, b"", b""), "with jit")


@test
def threads_and_descriptors(p):
    """What is mapped from is found wherever the monitor's descriptors have moved to."""
    code = ("import ctypes, os, threading\n"
            f"first = ctypes.CDLL('{p.good}').value()\n"
            "t = threading.Thread(target=lambda: None); t.start(); t.join()\n"
            "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (4096, r.getrlimit(r.RLIMIT_FSIZE)[1]))\n"
            "hard = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (hard, hard))\n"
            "fds = [os.open('/dev/null', os.O_RDONLY) for i in range(min(3000, hard - 100))]\n"
            f"h = ctypes.CDLL('{p.good}')\n"
            "import _ctypes; _ctypes.dlclose(h._handle)\n"
            "def load(): out.append([ctypes.CDLL(f).value() for f in files])\n"
            f"files, out = ['{p.d}/l%d.so' % i for i in range(8)], []\n"
            "threads = [threading.Thread(target=load) for i in range(4)]\n"
            "[t.start() for t in threads]; [t.join() for t in threads]\n"
            "pid = os.fork()\n"
            "if not pid:\n os.closerange(3, 3010); load(); os._exit(out[-1] != [1] * 8)\n"
            "print(first, h.value and out == [[1] * 8] * 4, os.waitpid(pid, 0)[1])\n")
    for i in range(8):
        shutil.copy(p.good, f"{p.d}/l{i}.so")
        p.sign(f"{p.d}/l{i}.so")
    r = p.run(PYTHON, "-c", code)
    expect((r.status, r.out, r.err), (0, b"1 True 0\n", b""), "loaded")


@test
def other_roots(p):
    """Paths are those of the view; the policy is the host's."""
    os.makedirs(f"{p.d}/root/bin")
    with open(f"{p.d}/main.c", "w") as f:
        f.write("int main(void) { return 7; }\n")
    subprocess.run(["gcc", "-static", "-o", f"{p.d}/root/bin/prog", f"{p.d}/main.c"], check=True)
    run = [lib.KYLINX, "run", "--root", f"{p.d}/root", "--", "/bin/prog"]
    r = lib.run(run, env=p.env)
    expect((r.status, b"policy: /bin/prog: " in r.err), (126, True), r.err)
    p.policy("allow path /bin/prog")
    r = lib.run(run, env=p.env)
    expect((r.status, r.err), (7, b""), "allowed")


@test
def chroot_is_no_place(p):
    """A program that makes /usr/lib its own by chroot(2) does not come under the rules for /usr/lib, nor what it executes."""
    if os.geteuid() != 0:
        raise Skip("run as root")
    root = f"{p.d}/r"
    os.makedirs(f"{root}/usr/lib")
    shutil.copy(p.bad, f"{root}/usr/lib/evil.so")
    shutil.copy(p.good, f"{root}/usr/lib/good.so")
    with open(f"{p.d}/main.c", "w") as f:
        f.write("int main(void) { return 7; }\n")
    subprocess.run(["gcc", "-static", "-o", f"{root}/usr/lib/prog", f"{p.d}/main.c"], check=True)
    p.policy("allow signed-by release")
    code = ("import ctypes, os, sys\n"
            "def load(f):\n"
            " try:\n  return ctypes.CDLL(f).value()\n"
            " except OSError as e:\n  return 'failed to map' in str(e)\n"
            "def run():\n"
            " if not os.fork():\n"
            "  try:\n   os.execv('/usr/lib/prog', ['prog'])\n"
            "  except OSError as e:\n   os._exit(e.errno)\n"
            " return os.wait()[1] >> 8\n"
            "top = os.open('/', os.O_RDONLY)\n"
            f"os.chdir('/'); os.chroot('{root}')\n"
            "print(load('/usr/lib/evil.so'), load('/usr/lib/good.so'), run())\n"
            "os.fchdir(top); os.chroot('.')\n"
            f"print(bool(ctypes.CDLL('libm.so.6')), load('{root}/usr/lib/evil.so'))\n")
    r = p.run(PYTHON, "-c", code)
    expect((r.status, r.out), (0, b"True True 13\nTrue True\n"), r.err)
    assert f"{root}/usr/lib/evil.so: ".encode() in r.err, r.err
    p.sign(f"{root}/usr/lib/good.so")
    p.sign(f"{root}/usr/lib/prog")
    r = p.run(PYTHON, "-c", code)
    expect((r.status, r.out), (0, b"True 1 7\nTrue True\n"), f"signed ({r.err})")
    p.policy(f"allow path {root}/usr/lib/*")
    r = p.run(PYTHON, "-c", code)
    expect((r.status, r.out), (0, b"2 1 7\nTrue 2\n"), f"allowed ({r.err})")
    expect(p.tell(p.attack, "vchroot", root, "/usr/lib/prog")[0]["status"], "7", "by a child of vfork")
    p.policy("")
    for _ in range(3):
        expect(p.tell(p.attack, "vchroot", root, "/usr/lib/prog")[0]["status"], "13", "by a child of vfork, not allowed")


@test
def each_program_has_its_own(p):
    """Over fork, exec, vfork, scripts, and for who comes by `kylinx exec`."""
    p.text(f"[program {p.attack}]\nallow kind program\nallow signed-by release\n{USR}"
           f"[default]\n{USR}allow kind program path {p.attack}\n")
    p.loads(p.good)
    r = p.run(PYTHON, "-c", f"import ctypes; ctypes.CDLL('{p.good}')")
    expect((r.status, b"failed to map segment" in r.err), (1, True), f"another program ({r.err})")
    r = p.run("/bin/sh", "-c", f"{p.attack} open {p.good} && exec {p.attack} open {p.bad}")
    expect((r.status, r.out.count(b"value 1"), r.out.count(b"failed to map")), (0, 2, 2), f"children ({r.out})")
    r = p.run(PYTHON, "-c", f"import subprocess; subprocess.run(['{p.attack}', 'open', '{p.good}'], close_fds=False)")
    expect((r.status, r.out.count(b"value 1")), (0, 2), f"posix_spawn, vfork ({r.err})")
    with open(f"{p.d}/script", "w") as f:
        f.write(f"#!{p.attack} open\n")
    os.chmod(f"{p.d}/script", 0o755)
    r = p.run(f"{p.d}/script")
    expect(r.status, 0, f"script ({r.err})")
    name = f"pol-{os.getpid()}-{random.randrange(10**6)}"
    with subprocess.Popen([lib.KYLINX, "run", "--name", name, "--volume", f"{p.d}:{p.d}", "--", "/bin/cat"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **p.env}) as cat:
        cat.stdin.write(b"x\n")
        cat.stdin.flush()
        cat.stdout.readline()
        p.text("[default]\nmode off\n")  # of families that start from now on
        r = lib.run([lib.KYLINX, "exec", name, p.attack, "open", p.good], env=p.env)
        expect((r.status, r.out), (0, b"dlopen: value 1\ndlmopen: value 1\n"), f"kylinx exec ({r.err})")
        r = lib.run([lib.KYLINX, "exec", name, p.attack, "open", p.bad], env=p.env)
        expect((r.status, r.out.count(b"failed to map")), (0, 2), f"kylinx exec ({r.out})")
        r = lib.run([lib.KYLINX, "exec", name, f"{p.d}/bad.so"], env=p.env)
        expect(r.status, 126, f"kylinx exec ({r.err})")
        cat.stdin.close()
        expect(cat.wait(lib.limit(90)), 0, "cat")


@test
def updates(p):
    """kylinx update: the new version has to pass, too. Its signature lies beside it, on the host."""
    name = f"pol-{os.getpid()}-{random.randrange(10**6)}"
    with lib.Dir() as other, subprocess.Popen(
            [lib.KYLINX, "run", "--name", name, "--volume", f"{p.d}:{p.d}", "--", p.attack, "watch", p.good, "value"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **p.env}) as g:
        expect(g.stdout.readline(), b"loaded 1\n", "first")
        new = shutil.copy(p.bad, f"{other}/new.so")
        r = lib.run([lib.KYLINX, "update", name, new], env=p.env)
        expect((r.status, b"nothing is changed: " in r.err, b"not signed" in r.err), (125, True, True), r.err)
        p.sign(new)
        r = lib.run([lib.KYLINX, "update", name, new], env=p.env)
        expect(r.status, 0, f"signed ({r.err})")
        g.stdin.write(b"\n")
        g.stdin.close()
        last = g.stdout.read()
        expect((g.wait(lib.limit(90)), last), (0, b"value 2\n"), "the new version")


@test
def updates_write_to_no_code(p):
    """A program tells an update of a pointer in a page that is code by its file, and signed, but mapped to be read so far."""
    name = f"pol-{os.getpid()}-{random.randrange(10**6)}"
    new = shutil.copy(p.bad, f"{p.d}/new.so")
    p.sign(new)
    with open(compiled("mark.so", "lib.c", "-shared", "-fPIC", "-DMARK"), "rb") as f:
        mark = f.read()
    with subprocess.Popen(
            [lib.KYLINX, "run", "--name", name, "--volume", f"{p.d}:{p.d}", "--", p.attack, "told", p.good, f"{p.d}/mark.so"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **p.env}) as g:
        value = int(g.stdout.readline(), 16)
        with open(f"{p.d}/mark.so", "wb") as f:
            f.write(mark.replace(b"markmark", value.to_bytes(8, "little")))
        p.sign(f"{p.d}/mark.so")
        g.stdin.write(b"\n")
        g.stdin.flush()
        expect(g.stdout.readline(), b"told\n", "the program")
        r = lib.run([lib.KYLINX, "update", name, new], env=p.env)
        g.stdin.write(b"\n")
        g.stdin.close()
        expect((g.stdout.read(), g.wait(lib.limit(90))), (b"the same, ok\n", 0), "the page")
        expect((r.status, b"(nothing is changed)" in r.err), (125, True), r.err)


@contextlib.contextmanager
def with_env(env):
    """updates.py starts programs with the environment of this process."""
    before = dict(os.environ)
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@test
def changed_while_an_update_waits(p):
    """An update waits for its moment. Meanwhile the key is revoked, the policy replaced, the file and its signature are: the
    family's own policy has decided, what was looked at is what is mapped, and the history has the order."""
    fixtures(p.d, "state")
    library(p.d, "v3.so", "-DV=3")
    for name in ("libupd.so.1", "v2.so"):
        p.sign(f"{p.d}/{name}")
    with with_env(p.env), Guest(p.d, [f"{p.d}/state"]) as g:
        expect(g.ask("b"), "inside", "inside")
        u = subprocess.Popen([lib.KYLINX, "update", "--timeout", UPDATE_SECONDS, g.name, f"{p.d}/v2.so"], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
        time.sleep(0.4)
        expect(u.poll(), None, "the update's end")
        p.text("[default]\nmode enforce\ndeny soname *\n")
        p.lib("revoke", "release")
        with open(f"{p.d}/v2.so", "r+b") as f, open(f"{p.d}/v3.so", "rb") as other:
            f.write(other.read())  # in place: whoever has it open reads the third version
        os.unlink(f"{p.d}/v2.so.kxsig")
        expect(u.poll(), None, "the update's end")
        expect(g.line(), "3", "result of the call")
        out, err = u.communicate(timeout=lib.limit(100))
        expect(u.returncode, 0, f"update ({out}, {err})")
        expect((g.ask("v"), g.ask("s"), g.ask("f"), g.line()), ("2", "ok", "ok 2", "0"), "what is mapped")
        # One that was not allowed then is not now, whatever the policy has become; one that was is.
        p.text("[default]\nmode off\njit allow\n")
        said = g.update(f"{p.d}/v2.so", status=125)
        expect("not signed" in said, True, f"the third version ({said})")
        g.update(f"{p.d}/libupd.so.1")
        expect((g.ask("v"), g.ask("s")), ("1", "ok"), "by the keyring of the start")
    events = [json.loads(x) for x in lib.run([lib.KYLINX, "lib", "history"], env=p.env).out.splitlines()]
    expect([e["event"] for e in events], ["trust", "sign", "sign", "sign", "update-begin", "revoke", "update", "update-begin",
                                          "update-failed", "update-begin", "update"], "history")
    expect([e["object"] for e in events if e["event"] == "update"], [f"{p.d}/v2.so", f"{p.d}/libupd.so.1"], "updates")
    failed = next(e for e in events if e["event"] == "update-failed")
    expect("not signed" in failed["detail"] and failed["detail"].startswith(f"{g.name}: "), True, f"why ({failed})")
    p.policy("allow signed-by release")
    r = p.run(f"{p.d}/state")
    expect((r.status, b"revoked" in r.err), (127, True), f"a family that starts now ({r.err})")


@test
def changing_while_updates_go_on(p):
    """Policy, keyring and signatures change all the time: each update is decided by the policy of the family's start."""
    fixtures(p.d, "state")
    library(p.d, "v3.so", "-DV=3")
    for name in ("libupd.so.1", "v2.so"):
        p.sign(f"{p.d}/{name}")
    stop = threading.Event()

    def change():
        for i in range(10**6):
            if stop.is_set():
                return
            p.text("[default]\nmode off\n" if i % 2 else "nonsense\n")
            if i % 16 == 0:
                p.lib("keygen", f"{p.d}/other{i}")
                p.lib("trust", f"{p.d}/other{i}.pub")
                p.lib("revoke", f"other{i}")
    with with_env(p.env), Guest(p.d, [f"{p.d}/state"]) as g:
        t = threading.Thread(target=change)
        t.start()
        try:
            for i in range(60 if LONG else 8):
                v = 2 - i % 2
                g.update(f"{p.d}/v2.so" if v == 2 else f"{p.d}/libupd.so.1")
                said = g.update(f"{p.d}/v3.so", status=125)
                expect(("not signed" in said, "nothing is changed" in said), (True, True), said)
                expect((g.ask("v"), g.ask("s")), (str(v), "ok"), f"update {i}")
        finally:
            stop.set()
            t.join()


# ---- attacks ---------------------------------------------------------------------------------------------------------

@test
def unsigned(p):
    p.refused(p.bad, "not signed")


@test
def wrong_key(p):
    other = f"{p.d}/other"
    p.lib("keygen", other)
    p.sign(p.bad, key=other)
    p.refused(p.bad, "key that is not in the keyring")
    p.lib("trust", f"{other}.pub")
    p.refused(p.bad, "by other")  # trusted, and not the one that the rule names


@test
def revoked_key(p):
    p.loads(p.good)
    p.lib("revoke", "release")
    p.refused(p.good, "revoked")


@test
def revoked_file(p):
    p.sign(p.bad)
    p.loads(p.bad, "value 2")
    p.lib("revoke", sha256(p.bad))
    p.refused(p.bad, "revoked")
    p.loads(p.good)


@test
def expired_version(p):
    """A version that is too old, and a signature whose time is over."""
    p.policy("allow signed-by release version >=2.0,<3")
    p.sign(p.good, "--version", "1.9.9")
    p.refused(p.good, "its version is 1.9.9")
    p.sign(p.good, "--version", "2.1")
    p.loads(p.good)
    p.policy("allow signed-by release")
    p.lib("trust", "release", "--from", "2000-01-01", "--expires", "2001-01-01")
    p.refused(p.good, "expired")


@test
def flipped_bits(p):
    """One bit in each of 1,000 places: none is loaded."""
    with open(p.good, "rb") as f:
        good = f.read()
    rng = random.Random(7)
    places = rng.sample(range(len(good) * 8), 1000)
    os.mkdir(f"{p.d}/v")
    for i, bit in enumerate(places):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with open(f"{p.d}/v/{i}", "wb") as f:
            f.write(bad)
        os.link(f"{p.good}.kxsig", f"{p.d}/v/{i}.kxsig")
    r = p.run(p.attack, "variants", f"{p.d}/v", "1000", timeout=600)
    expect((r.status, r.out), (0, b"of 1000: mapped 0, loaded 0, other 0\n"), "variants")
    with open(f"{p.d}/v/0", "wb") as f:  # the measure: what is not flipped is loaded
        f.write(good)
    r = p.run(p.attack, "variants", f"{p.d}/v", "1")
    expect((r.status, r.out), (0, b"variant 0\nof 1: mapped 1, loaded 1, other 0\n"), "not flipped")


def racing(p, change):
    stop = threading.Event()
    rounds = [0]

    def other():
        while not stop.is_set():
            change(rounds[0])
            rounds[0] += 1
    t = threading.Thread(target=other)
    t.start()
    try:
        r = p.run(p.attack, "race", f"{p.d}/x.so", "10" if LONG else "4", "1", timeout=300)
    finally:
        stop.set()
        t.join()
    expect((r.status, r.out), (0, b"loaded some, refused some, wrong 0\n"), f"after {rounds[0]} changes")


@test
def swapped_meanwhile(p):
    """Another file under the same name, all the time."""
    os.symlink(f"{p.d}/good.so.kxsig", f"{p.d}/x.so.kxsig")

    def change(n):
        os.link(p.good if n % 2 else p.bad, f"{p.d}/new")
        os.rename(f"{p.d}/new", f"{p.d}/x.so")
        time.sleep(rng.random() * 0.004)
    rng = random.Random(3)
    os.link(p.good, f"{p.d}/x.so")
    racing(p, change)


@test
def written_meanwhile(p):
    """The same file, with other contents, all the time."""
    shutil.copy(p.good, f"{p.d}/x.so")
    shutil.copy(f"{p.good}.kxsig", f"{p.d}/x.so.kxsig")
    both = [open(f, "rb").read() for f in (p.good, p.bad)]
    expect(len(both[0]), len(both[1]), "sizes")
    where = [i for i in range(len(both[0])) if both[0][i] != both[1][i]]
    fd = os.open(f"{p.d}/x.so", os.O_RDWR)

    def change(n):
        for i in where:
            os.pwrite(fd, both[1 - n % 2][i:i + 1], i)
        time.sleep(rng.random() * 0.004)
    rng = random.Random(3)
    try:
        racing(p, change)
    finally:
        os.close(fd)


@test
def written_afterwards(p):
    """A mapped library is written by another path: what is mapped does not change."""
    os.link(p.good, f"{p.d}/other-name")
    with open(p.bad, "rb") as f:
        bad = f.read()
    for how in ("write", "mmap"):
        with subprocess.Popen([lib.KYLINX, "run", "--volume", f"{p.d}:{p.d}", "--", p.attack, "watch", p.good],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **p.env}) as g:
            expect(g.stdout.readline(), b"loaded 1\n", "loaded")
            with open(f"{p.d}/other-name", "r+b") as f:
                good = f.read()
                if how == "write":
                    f.seek(0)
                    f.write(bad)
                else:
                    import mmap
                    with mmap.mmap(f.fileno(), 0) as m:
                        m[:] = bad
            expect(sha256(p.good), sha256(p.bad), "the file")
            last = g.communicate(b"\n", 180)[0]
        expect(last, b"value 1, bytes the same\n", how)
        p.refused(p.good, "")
        with open(p.good, "r+b") as f:
            f.write(good)


@test
def parts_of_one_copy(p):
    """All parts of a library come from the bytes that were looked at, also those that are mapped later."""
    with subprocess.Popen([lib.KYLINX, "run", "--volume", f"{p.d}:{p.d}", "--", p.attack, "parts", p.good],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **p.env}) as g:
        expect([g.stdout.readline() for _ in range(2)], [b"code after data: EACCES\n", b"code: ok\n"], "code")
        with open(p.bad, "rb") as f, open(p.good, "r+b") as to:
            to.write(f.read())
        last = g.communicate(b"\n", 180)[0]
    expect(last, b"data: ok\nbytes: the same\n", "parts")


def big(p):
    """A signed library whose text takes long to map."""
    shutil.copy(compiled("big.so", "lib.c", "-shared", "-fPIC", "-DBIG", "-Wl,-soname,libv.so.1"), p.d)
    p.sign(f"{p.d}/big.so")
    return f"{p.d}/big.so"


@test
def text_is_never_writable(p):
    """Not even for the moment in which it is patched: a thread has the kernel write there all the time."""
    r = p.run(p.attack, "window", big(p), "300" if LONG else "40")
    expect((r.status, r.out, r.err), (0, b"failed 0, changed 0\n", b""), "text")


@test
def nothing_runs_below_a_text(p):
    """Where a text is mapped or moved over a program's own memory, that is not executable before, nor if it fails."""
    r = p.run(p.attack, "over", big(p), "100" if LONG else "15")
    expect((r.status, r.out, r.err), (0, b"failed 0, ran 0\n", b""), "code of the program's own")


def walks_twice():
    """The processor translates the guest's addresses itself."""
    for name in ("kvm_intel/parameters/ept", "kvm_amd/parameters/npt"):
        with contextlib.suppress(OSError), open(f"/sys/module/{name}") as f:
            if f.read(1) in "Y1":
                return True
    return False


@test
def no_right_to_execute_lingers(p):
    """With shadow page tables KVM may still be about to enter what a page was allowed before: all that it has is dropped, where
    another thread may run."""
    shutil.copy(compiled("pages.so", "lib.c", "-shared", "-fPIC", "-DPAGES"), p.d)
    p.sign(f"{p.d}/pages.so")
    flushes = []
    for thread in "01":
        r = p.run(p.attack, "unexec", f"{p.d}/pages.so", "50", thread, options=("--stats",))
        expect((r.status, r.out), (0, b"failed 0\n"), r.err)
        flushes.append(json.loads(r.err)["flushes"])
    expect((flushes[0] < 50, flushes[1] >= 50), (True, not walks_twice()), f"flushes {flushes}")


@test
def mappings_at_random(p):
    """Signed code and the program's own, mapped, moved, protected, advised, written to by the kernel at random in one stretch of
    memory, while another thread and children run whatever is there."""
    shutil.copy(compiled("pages.so", "lib.c", "-shared", "-fPIC", "-DPAGES"), p.d)
    p.sign(f"{p.d}/pages.so")
    churn = shutil.copy(compiled("churn", "churn.c", "-pthread"), p.d)
    for seed in random.sample(range(10**9), 40 if LONG else 1):
        r = p.run(churn, f"{p.d}/pages.so", "10" if LONG else "5", str(seed))
        expect((r.status, r.out), (0, b"ran 0, wrong 0, some good\n"), f"seed {seed}")


@test
def failing_halfway(p):
    """mprotect to writable, of code, fails for want of mappings behind what the kernel has changed already."""
    shutil.copy(compiled("pages.so", "lib.c", "-shared", "-fPIC", "-DPAGES"), p.d)
    p.sign(f"{p.d}/pages.so")
    said, _ = p.tell(p.attack, "half", f"{p.d}/pages.so", f"{p.d}/many", timeout=600)
    expect(said, {"mappings": "ENOMEM, did not run", "regions": "ENOMEM, did not run"}, "code that was written")


@test
def links(p):
    """By path rules, a link counts as what it leads to; a signature is the file's under its own name."""
    p.policy(f"allow path {p.d}/allowed/** owner user")
    os.mkdir(f"{p.d}/allowed")
    os.symlink(p.bad, f"{p.d}/allowed/soft.so")
    p.refused(f"{p.d}/allowed/soft.so", "bad.so")
    shutil.copy(p.bad, f"{p.d}/allowed/own.so")
    os.symlink(f"{p.d}/allowed/own.so", f"{p.d}/soft.so")
    p.loads(f"{p.d}/soft.so", "value 2")
    p.policy("allow signed-by release")
    os.link(p.good, f"{p.d}/hard.so")
    p.refused(f"{p.d}/hard.so", "not signed")
    os.link(p.bad, f"{p.d}/swapped.so")  # with the signature of another file
    os.link(f"{p.good}.kxsig", f"{p.d}/swapped.so.kxsig")
    p.refused(f"{p.d}/swapped.so", "")
    if os.geteuid() == 0:
        p.policy(f"allow path {p.d}/allowed/** {SYSTEM}")
        os.chown(p.bad, 4711, 4711)
        os.link(p.bad, f"{p.d}/allowed/hard.so")
        p.refused(f"{p.d}/allowed/hard.so", "owner")


@test
def memory(p):
    """Anonymous memory, heap, stack, data, memfd, shared memory, /proc/self/mem, mremap, text that is written to."""
    said, log = p.tell(p.attack, "memory", p.good)
    allowed = {"library": "ok", "text unchanged": "ok", "moved over text": "ok", "read into text": "EFAULT"}
    for name, result in said.items():
        if name in allowed:
            expect(result, allowed[name], name)
        elif result not in ("EACCES", "SIGSEGV", "ENOENT", "ENOSYS"):
            raise AssertionError(f"{name}: {result}")
    expect(len(said), 36, f"attempts ({sorted(said)})")
    assert "jit is deny" in log, log


@test
def wrong_loader(p):
    """A dynamic linker of one's own; mmap by hand where the rule wants the linker."""
    shutil.copy(LOADER, f"{p.d}/ld.so")
    subprocess.run(["gcc", "-std=gnu11", "-O2", "-o", f"{p.d}/own", os.path.join(HERE, "policy/attack.c"), "-pthread",
                    f"-Wl,--dynamic-linker={p.d}/ld.so"], check=True)
    r = p.run(f"{p.d}/own", "open", p.good)
    expect((r.status, b"/ld.so: " in r.err), (126, True), r.err)
    p.policy(f"allow loader {LOADER} signed-by release\nallow kind linker path {p.d}/ld.so")
    expect(p.tell(p.attack, "map", p.good)[0]["private"], "EACCES", "by hand")
    p.loads(p.good)
    said, log = p.tell(f"{p.d}/own", "open", p.good)
    expect(["failed to map" in s for s in said.values()], [True, True], f"another linker ({said}, {log})")


def lies(good):
    """Headers that lie, each with a name."""
    ph, n = struct.unpack_from("<Q", good, 32)[0], struct.unpack_from("<H", good, 56)[0]
    loads = [ph + 56 * i for i in range(n) if struct.unpack_from("<I", good, ph + 56 * i)[0] == 1]
    code = next(at for at in loads if struct.unpack_from("<I", good, at + 4)[0] & 1)

    def with_(fmt, at, value):
        b = bytearray(good)
        struct.pack_into(fmt, b, at, value)
        return bytes(b)
    yield "overlap", with_("<Q", code + 16, struct.unpack_from("<Q", good, loads[0] + 16)[0])
    yield "other code", with_("<Q", code + 8, 0)
    yield "past the end", with_("<Q", code + 32, 1 << 40)
    yield "offset past the end", with_("<Q", code + 8, 1 << 40)
    yield "wrapping", with_("<Q", code + 8, (1 << 64) - 4096)
    yield "entries", with_("<H", 56, 0xffff)
    yield "entries far away", with_("<Q", 32, (1 << 64) - 56)
    b = bytearray(with_("<H", 56, 0xffff))  # PN_XNUM: the count is in the first section header
    sh = struct.unpack_from("<Q", good, 40)[0]
    struct.pack_into("<I", b, sh + 44, 0xffffffff)
    yield "2^32 entries", bytes(b)
    yield "cut", good[:len(good) // 3]
    yield "a header alone", good[:64]


@test
def headers_that_lie(p):
    """Signed as they are or named by their hash: what they claim is never executable beyond what the file is."""
    with open(p.good, "rb") as f:
        good = f.read()
    names, rules = [], ""
    os.mkdir(f"{p.d}/v")
    for i, (name, content) in enumerate(lies(good)):
        names.append(name)
        with open(f"{p.d}/v/{i}", "wb") as f:
            f.write(content)
        rules += f"allow sha256 {sha256(f'{p.d}/v/{i}')}\n"
    p.policy(rules)
    for i, name in enumerate(names):
        r = p.run(p.attack, "open", f"{p.d}/v/{i}")
        # With other code in its place, it is the linker that goes astray in it.
        assert r.status == (-11 if name == "other code" else 0) and b"value" not in r.out, f"{name}: {r.why()} {r.out}"
        r = p.run(p.attack, "map", f"{p.d}/v/{i}")
        assert r.status in (0, 1) and (b"private: ok" in r.out) == (name == "other code"), f"{name}: {r.why()} {r.out}"
        if name == "other code":
            continue
        os.chmod(f"{p.d}/v/{i}", 0o755)
        r = p.run(f"{p.d}/v/{i}")
        expect((r.status, r.err.count(b"\n")), (126, 1), f"{name} as a program: {r.err}")


@test
def manifest_that_lies(p):
    """Each line of a signature, changed; a signature of another file; none of these counts."""
    sig = p.good + ".kxsig"
    lines = lib.read(sig).splitlines()
    for i, line in enumerate(lines):
        word, _, value = line.partition(" ")
        changed = {"size": "1", "expires": "99999999999", "time": "1", "version": "9", "soname": "libother.so"}.get(
            word, value[:-1] + ("0" if value[-1] != "0" else "1"))
        os.unlink(sig)
        with open(sig, "w") as f:
            f.write("\n".join([*lines[:i], f"{word} {changed}", *lines[i + 1:]]) + "\n")
        said, _ = p.tell(p.attack, "open", p.good)
        expect(["failed to map" in s for s in said.values()], [True, True], f"{word} ({said})")
    for text in ("", "\n".join(lines[:-1]) + "\n", "\n".join(lines) + "\nmore\n", "x" * 5000):
        with open(sig, "w") as f:
            f.write(text)
        said, _ = p.tell(p.attack, "open", p.good)
        expect(["failed to map" in s for s in said.values()], [True, True], f"{text[:20]!r} ({said})")
    os.unlink(sig)
    os.mkfifo(sig)  # must not hold anybody up
    p.refused(p.good, "not signed")
    os.unlink(sig)
    with open(sig, "w") as f:
        f.write("\n".join(lines) + "\n")
    p.loads(p.good)


@test
def store_of_others(p):
    """A store that others can write is not used; the policy holds without it."""
    p.loads(p.good)
    os.chmod(f"{p.d}/s", 0o777)
    r = p.run(p.attack, "open", p.good, p.bad)
    expect((r.status, r.out.count(b"value 1"), r.out.count(b"failed to map"), b"others can write it" in r.err),
           (0, 2, 2, True), r.err)


@test
def without_a_policy(p):
    """The built-in policy refuses what others can write, and nothing else."""
    shutil.rmtree(f"{p.d}/c")
    p.loads(p.bad, "value 2")
    said, _ = p.tell(p.attack, "memory", p.bad)
    expect((said["anonymous"], said["mprotect, run"], said["memfd shared"]), ("ok", "ran", "ok"), "memory")
    os.chmod(p.bad, 0o666)
    p.refused(p.bad, "writable-by others")


def main():
    with lib.Dir() as built["path"]:
        return lib.run_tests(tests, args.only)


if __name__ == "__main__":
    sys.exit(main())
