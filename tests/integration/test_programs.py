#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Unmodified programs, natively and in a pVM: the same output, errors, exit status and files.

test_programs.py [KYLINX] [--only PATTERN] [--write-doc]; --write-doc writes docs/compatibility.md from what it saw.
Each case runs twice in a working directory of the same name and content, which is a volume of the pVM. The cases are
in programs.py. A program that is not installed is skipped. With TEST_AUDIT set it also shows what fails natively.
"""
import bz2
import concurrent.futures
import ctypes
import gzip
import hashlib
import http.server
import io
import lzma
import os
import random
import re
import resource
import shlex
import shutil
import signal
import socket
import stat
import sys
import tarfile
import threading
import time
import zipfile

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402

args = lib.arguments("--write-doc")
import programs  # noqa: E402

ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC",
       "TERM": "dumb", "USER": "root", "SHELL": "/bin/sh"}
KEEP = ("KYLINX", "CI", "ASAN_OPTIONS", "TEST_AUDIT")
EPOCH = 1577836800  # of the files
PY = "/usr/bin/python3"
WHO = {"busybox": ["busybox"], "coreutils": ["ls", "--version"], "sqlite3": ["sqlite3", "--version"],
       "lua5.4": ["lua5.4", "-v"], "perl": ["perl", "-e", "print $^V"], "python3": [PY, "--version"],
       "node": ["node", "--version"], "java": ["java", "--version"], "redis-server": ["redis-server", "--version"],
       "memcached": ["memcached", "--version"], "gcc": ["gcc", "--version"]}


class Case:
    """One program, run twice. files: name to bytes, or to a path that is copied; err: compare standard error too;
    unordered: the lines of standard output come in an order of the file system's (its inode numbers), compare them as a set."""

    def __init__(self, group, what, argv, files=None, stdin=None, timeout=240, err=True, skip=None, options=(),
                 unordered=False):
        self.group, self.what, self.argv, self.files, self.stdin = group, what, argv, files or {}, stdin
        self.timeout, self.err, self.skip, self.options, self.unordered = timeout, err, skip, options, unordered

    def name(self):
        return f"{self.group}: {self.what}"


# ---- the working directory ------------------------------------------------------------------------------------

def sample():
    """Name to content: bytes, or ("link", target), or None for a directory."""
    rnd = random.Random(7)
    words = "alpha beta gamma delta needle omega abba aab line".split()
    text = "".join(f"line {i * 37 % 1000} {' '.join(rnd.choice(words) for _ in range(i % 9))}\n"
                   for i in range(1, 1001))
    old = "".join(f"{i} {i * i}\n" for i in range(40))
    new = old.replace("7 49\n", "seven\n").replace("20 400\n", "")
    patch = "--- old.txt\n+++ old.txt\n@@ -7,3 +7,3 @@\n 6 36\n-7 49\n+seven\n 8 64\n"
    tree = {"text": text.encode(), "sorted1": "".join(f"k{i:03} a{i}\n" for i in range(0, 90, 2)).encode(),
            "sorted2": "".join(f"k{i:03} b{i}\n" for i in range(0, 90, 3)).encode(), "empty": b"", "d": None,
            "table": b"a\tb\tc\n1\t22\t333\n", "data.bin": rnd.randbytes(65536), "d/a": b"a\n", "d/b": b"b\n" * 5000,
            "d/link": ("link", "a"), "d/sub": None, "d/sub/c": b"c\n", "old.txt": old.encode(), "new.txt": new.encode(),
            "fix.patch": patch.encode(), "hex": b"48656c6c6f0a", "tsort.in": b"a b\nb c\na d\n",
            "bc.in": b"2^200\nscale=10\n1/3\ns(1)\nfor (i = 0; i < 3; i++) i*i\n",
            "ed.cmd": b"1,3p\n5d\n$a\nnew\n.\nw\nq\n",
            "x.json": b'{"list": [{"n": 1, "s": "a"}, {"n": 3, "s": "b"}]}\n',
            "script.tcl": b"puts [expr {2**70}]\nputs [lsort {c a b}]\nexit 6\n",
            "script.sh": b'f() { echo "in f: $1"; return 3; }\nf "$1" || echo $?\nfor i in 1 2 3; do n=$((n+i)); done\n'
                         b'case $2 in b) echo two;; esac\nwhile read -r w x; do c=$((c+1)); done <text\n'
                         b'echo $n $c ${w}\ntrap "echo usr" USR1; kill -USR1 $$\ntrap "echo bye" EXIT\n'
                         b'cat_() { echo "$@"; }; cat_ *.txt\nexit 4\n'}
    raw = tree["text"]
    tree["text.gz"] = gzip.compress(raw, mtime=0)
    tree["text.bz2"] = bz2.compress(raw)
    tree["text.xz"] = lzma.compress(raw, check=lzma.CHECK_CRC32)
    tree["text.lzma"] = lzma.compress(raw, format=lzma.FORMAT_ALONE)
    members = ("text", "data.bin", "d/b")
    tree["sums"] = "".join(f"{hashlib.md5(tree[n]).hexdigest()}  {n}\n" for n in members).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        for n in members:
            info = tarfile.TarInfo("t/" + n)
            info.size, info.mtime, info.mode = len(tree[n]), EPOCH, 0o640
            t.addfile(info, io.BytesIO(tree[n]))
    tree["files.tar"], out = out.getvalue(), io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for n in members:
            info = zipfile.ZipInfo("z/" + n.replace("/", "_"), (2020, 1, 1, 0, 0, 0))
            z.writestr(info, tree[n], zipfile.ZIP_DEFLATED)
    tree["files.zip"] = out.getvalue()
    tree["files.cpio"] = cpio({"one": b"1\n", "two": b"2\n" * 100})
    tree["lib.a"] = b"!<arch>\n" + "".join(f"{n + '/':16}{0:<12}{0:<6}{0:<6}{644:<8}{4:<10}`\n{n[:3]}\n"
                                           for n in ("abc.o", "def.o")).encode()
    tree["uu"] = b"begin 644 out\n%2&5L;&\\\n`\nend\n"
    return tree


def cpio(members):
    out = b""
    for i, (name, data) in enumerate([*members.items(), ("TRAILER!!!", b"")], 1):
        fields = (i, 0o100644, 0, 0, 1, EPOCH, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        for part in (b"070701" + "".join(f"{f:08x}" for f in fields).encode() + name.encode() + b"\0", data):
            out += part + b"\0" * (-len(part) % 4)
    return out


def populate(w, *trees):
    os.mkdir(w)
    for name, content in (item for tree in trees for item in tree.items()):
        path = os.path.join(w, name)
        if content is None:
            os.mkdir(path)
        elif isinstance(content, tuple):
            os.symlink(content[1], path)
        elif isinstance(content, str):
            shutil.copy(content, path)
        else:
            with open(path, "wb") as f:
                f.write(content)
            if content.startswith(b"#!"):
                os.chmod(path, 0o755)
    for dirpath, dirs, files in os.walk(w, topdown=False):
        for n in dirs + files:
            os.utime(os.path.join(dirpath, n), (EPOCH, EPOCH), follow_symlinks=False)


def snapshot(w):
    """Everything below w, without times."""
    seen = {}
    for dirpath, dirs, files in os.walk(w):
        for n in dirs + files:
            path = os.path.join(dirpath, n)
            st = os.lstat(path)
            if stat.S_ISLNK(st.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(st.st_mode):
                with open(path, "rb") as f:
                    content = hashlib.sha256(f.read()).hexdigest()[:12]
            else:
                content = ""
            seen[os.path.relpath(path, w)] = (oct(st.st_mode), st.st_uid, st.st_gid, content)
    return seen


def first_difference(what, a, b):
    a, b = a.decode(errors="replace").split("\n"), b.decode(errors="replace").split("\n")
    for i in range(max(len(a), len(b))):
        x, y = (v[i] if i < len(v) else None for v in (a, b))
        if x != y:
            x, y = (v if v is None or len(v) < 120 else v[:120] + "..." for v in (x, y))
            return f"{what} line {i + 1}: {x!r} natively, {y!r} in a pVM"
    return ""


def compare(case, native, kx, files_native, files_kx):
    """What differs, in words; empty when nothing does."""
    diffs = []
    if native.status != kx.status:
        diffs.append(f"{lib.status_text(native.status)} natively, {lib.status_text(kx.status)} in a pVM")
    out_native, out_kx = (b"\n".join(sorted(r.out.split(b"\n"))) if case.unordered else r.out for r in (native, kx))
    if out_native != out_kx:
        diffs.append(first_difference("stdout", out_native, out_kx))
    if native.err != kx.err and (case.err or diffs):
        diffs.append(first_difference("stderr", native.err, kx.err))
    for n in sorted(set(files_native) | set(files_kx)):
        if files_native.get(n) != files_kx.get(n):
            diffs.append(f"file {n}: {files_native.get(n)} natively, {files_kx.get(n)} in a pVM")
    return "; ".join(diffs[:4])


def run_case(case, tree):
    """(pass|fail|skip, why)"""
    if case.skip:
        return "skip", case.skip
    with lib.Dir() as d:
        w = os.path.join(d, "w")
        env = {"HOME": w, "TMPDIR": w}
        results = []
        for kx in (False, True):
            populate(w, tree, case.files)
            argv = [a.replace("@W@", w) for a in case.argv]
            if kx:
                argv = lib.pvm(argv, "--log", "error", "--volume", f"{w}:{w}", *case.options)
            stdin = case.stdin if isinstance(case.stdin, bytes) or case.stdin is None else tree[case.stdin.strip()]
            r = lib.run(argv, case.timeout, stdin=stdin, cwd=w, env=env)
            results.append((r, snapshot(w)))
            shutil.rmtree(w)
        (native, files_native), (pvm, files_pvm) = results
        if native.status is None:
            return "fail", "timeout natively"
        if os.environ.get("TEST_AUDIT") and (native.status or native.err):
            print(f"# {case.name()}: {native.why()}", flush=True)
        why = compare(case, native, pvm, files_native, files_pvm)
        return ("fail", why) if why else ("pass", "")


# ---- the cases --------------------------------------------------------------------------------------------------

def missing(program):
    return None if shutil.which(program, path=ENV["PATH"]) else f"{program} is not installed"


def lines(table, http_url):
    """(line, argv, how) of each line of a table of programs.py; how: arguments of Case."""
    cpu = hex(1 << min(os.sched_getaffinity(0)))
    for line in table.strip().split("\n"):
        argv = shlex.split(line.replace("@HTTP@", http_url).replace("@CPU@", cpu))
        how = {}
        if argv[-2:] == ["|", "sort"]:
            line, argv, how["unordered"] = line[:-len("| sort")].rstrip(), argv[:-2], True
        if argv[-1].startswith("<"):
            how["stdin"] = argv.pop()[1:]
        yield line, argv, how


def busybox_cases(http_url):
    if missing("busybox"):
        yield Case("busybox", "all applets", [], skip=missing("busybox"))
        return
    applets = lib.run(["busybox", "--list"]).out.decode().split()
    done = set()
    for line, argv, how in lines(programs.BUSYBOX, http_url):
        if argv[0] in applets:
            done.add(argv[0])
            yield Case("busybox", line, ["busybox", *argv], **how)
    for applet in applets:
        if applet not in done and applet not in programs.BUSYBOX_NEVER.split():
            yield Case("busybox", f"{applet} --help", ["busybox", applet, "--help"])


def table_cases(group, table, http_url):
    for line, argv, how in lines(table, http_url):
        yield Case(group, line, argv, skip=missing(argv[0]), **how)


def script_cases(group, program, suffix, scripts, **kw):
    for what, text in scripts.items():
        yield Case(group, what, [program, f"prog{suffix}"], files={f"prog{suffix}": text.lstrip("\n").encode()},
                   skip=missing(program), **kw)


def shebang_cases():
    for first, text in programs.SCRIPTS.items():
        yield Case("scripts", f"`{first}`", ["./prog", "one", "two words"],
                   files={"prog": f"{first}\n{text}\n".encode()}, skip=missing(first[2:].split()[0]))


def compiled_cases(d):
    def build(command, source, out):
        with open(out + ".c", "w") as f:
            f.write(source)
        r = lib.run(shlex.split(command.replace("OUT", out).replace("SRC", out + ".c")), cwd=d)
        return None if r.status == 0 else f"does not compile: {r.why()}"

    lib_bad = build("gcc -shared -fPIC -O2 -o OUT SRC", programs.C_LIB, os.path.join(d, "libkx.so"))
    for n, (what, source, command) in enumerate(programs.BUILDS):
        compiler, out = command.split()[0], os.path.join(d, f"prog{n}")
        bad = missing(compiler) or build(command, source, out)
        files = {"prog": out}
        if "dlopen" in source:
            bad = bad or lib_bad
            files["libkx.so"] = os.path.join(d, "libkx.so")
        if "avx512" in source and " avx512f " not in lib.read("/proc/cpuinfo"):
            bad = "this processor has no AVX-512"
        yield Case("compiled", f"{what}: `{command.replace('OUT', 'prog').replace('SRC', 'prog.c')}`",
                   ["./prog", "argument"], files=files, skip=bad)


def java_cases(d):
    skip = missing("javac") or missing("java")
    if not skip:
        with open(os.path.join(d, "Compat.java"), "w") as f:
            f.write(programs.JAVA)
        r = lib.run(["javac", "-J-XX:-UsePerfData", "-d", d, os.path.join(d, "Compat.java")], 300)
        skip = None if r.status == 0 else f"javac: {r.why()}"
    files = {"Compat.class": os.path.join(d, "Compat.class")}
    for what, flags in (("threads, collector, sockets, files, exceptions", []), ("the same, interpreted", ["-Xint"]),
                        ("the same, serial collector, 64 MiB", ["-XX:+UseSerialGC", "-Xmx64m"]),
                        ("the same, ZGC", ["-XX:+UseZGC", "-Xmx256m"])):
        yield Case("java", what, ["java", "-XX:-UsePerfData", *flags, "-cp", ".", "Compat"], files=files, skip=skip)


def all_cases(d, http_url):
    yield from busybox_cases(http_url)
    yield from table_cases("coreutils", programs.COREUTILS, http_url)
    yield from table_cases("tools", programs.TOOLS, http_url)
    yield Case("sqlite3", "create, 100,000 rows, index, update, delete, vacuum, integrity_check", ["sqlite3", "db"],
               stdin=programs.SQLITE.encode(), skip=missing("sqlite3"))
    yield from script_cases("lua5.4", "lua5.4", ".lua", programs.LUA)
    yield from script_cases("perl", "perl", ".pl", programs.PERL)
    scripts = dict(programs.PYTHON)
    if lib.run([PY, "-c", "import numpy"]).status:
        del scripts["numpy"]
        yield Case("python3", "numpy", [], skip="numpy is not installed")
    yield from script_cases("python3", PY, ".py", scripts)
    yield from script_cases("node", "node", ".js", programs.NODE)
    yield from java_cases(d)
    yield from compiled_cases(d)
    yield from shebang_cases()


# ---- servers in a pVM, their clients outside ---------------------------------------------------------------------

def server(argv, port, w):
    return lib.Server(lib.pvm(argv, "--log", "error", "--volume", f"{w}:{w}"), port, cwd=w)


def expect(got, want, what):
    if got != want:
        raise AssertionError(f"{what}: {got!r}, expected {want!r}")


def client(argv, timeout=180, stdin=None):
    r = lib.run(argv, timeout, stdin=stdin)
    expect(r.status, 0, f"{' '.join(argv)}: {r.why()}")
    return r.out.decode()


def redis(w):
    port = lib.free_port()
    argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", w]
    cli = ["redis-cli", "-p", str(port)]
    return port, argv, cli


def redis_keys():
    """1,000 keys by redis-cli; SAVE, restart, keys are there"""
    with lib.Dir() as w:
        port, argv, cli = redis(w)
        with server(argv, port, w) as s:
            commands = "".join(f"SET k{i} v{i}\nINCRBY n {i}\nRPUSH l {i}\n" for i in range(1000))
            client(cli, stdin=commands.encode())
            expect(client([*cli, "GET", "k777"]), "v777\n", "GET")
            expect(client([*cli, "GET", "n"]), "499500\n", "INCRBY")
            expect(client([*cli, "EVAL", "return redis.call('llen', 'l') * 2", "0"]), "2000\n", "EVAL")
            expect(client([*cli, "DBSIZE"]), "1002\n", "DBSIZE")
            expect(client([*cli, "SAVE"]), "OK\n", "SAVE")
        expect(s.status, 0, "status after SIGTERM")
        with server(argv, port, w) as s:
            expect(client([*cli, "DBSIZE"]), "1002\n", "DBSIZE after a restart")
        expect(s.status, 0, "status after SIGTERM")


def redis_load():
    """redis-benchmark -c 50 -n 20000 -q -t ping,set,get,incr,lpush,rpop,sadd,mset"""
    with lib.Dir() as w:
        port, argv, cli = redis(w)
        with server(argv, port, w):
            out = client(["redis-benchmark", "-p", str(port), "-c", "50", "-n", "20000", "-q", "-t",
                          "ping,set,get,incr,lpush,rpop,sadd,mset"], 600)
            expect(client([*cli, "PING"]), "PONG\n", "PING")
        rates = re.findall(r"^([A-Z_]\S*).*?: ([\d.]+) requests per second", out.replace("\r", "\n"), re.M)
        if not rates:
            raise AssertionError(f"no rates: {lib.one_line(out)}")
        print("# " + ", ".join(f"{n} {float(r):.0f}/s" for n, r in rates))


def memcached_clients():
    """-t 4, 8 clients, 500 keys each"""
    port = lib.free_port()
    failures = []

    def work(n):
        try:
            with socket.create_connection(("127.0.0.1", port), lib.limit(60)) as s:
                f = s.makefile("rwb")
                for i in range(500):
                    value = f"{n}-{i}".encode() * (i % 50 + 1)
                    f.write(b"set k%d-%d 0 0 %d\r\n%s\r\nget k%d-%d\r\n" % (n, i, len(value), value, n, i))
                    f.flush()
                    got = [f.readline() for _ in range(4)]
                    expect(got[0], b"STORED\r\n", "set")
                    expect(got[2], value + b"\r\n", "get")
        except (OSError, AssertionError) as e:
            failures.append(f"client {n}: {e}")

    with lib.Dir() as w:
        argv = ["memcached", "-t", "4", "-u", "root", "-l", "127.0.0.1", "-p", str(port), "-U", "0"]
        with server(argv, port, w) as s:
            threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            expect(failures, [], "clients")
            with socket.create_connection(("127.0.0.1", port), lib.limit(60)) as c:
                c.sendall(b"stats\r\nquit\r\n")
                stats = c.makefile("rb").read().decode()
            expect(re.search(r"STAT curr_items (\d+)", stats)[1], "4000", "curr_items")
            expect(re.search(r"STAT threads (\d+)", stats)[1], "4", "threads")
        expect(s.status, 0, "status after SIGTERM")


def python_http():
    """http.server, 200 requests, ended by SIGINT"""
    port = lib.free_port()
    with lib.Dir() as w:
        with open(os.path.join(w, "file"), "wb") as f:
            f.write(b"x" * 100000)
        argv = lib.pvm([PY, "-m", "http.server", "--bind", "127.0.0.1", str(port)], "--volume", f"{w}:{w}")
        with lib.Server(argv, port, cwd=w, stop=signal.SIGINT) as s:
            for _ in range(200):
                with socket.create_connection(("127.0.0.1", port), lib.limit(60)) as c:
                    c.sendall(b"GET /file HTTP/1.0\r\n\r\n")
                    data = c.makefile("rb").read()
                expect(len(data.split(b"\r\n\r\n", 1)[1]), 100000, "length")
        expect(s.status, 0, "status after SIGINT")


SERVERS = [("redis-server", redis_keys), ("redis-server", redis_load), ("memcached", memcached_clients),
           ("python3", python_http)]


def run_server(program, fn):
    if missing(program):
        return "skip", missing(program)
    try:
        fn()
        return "pass", ""
    except (AssertionError, OSError) as e:
        return "fail", str(e)


# ---- the table --------------------------------------------------------------------------------------------------

HEAD = """# Programs that run in a pVM

Written by `make compatibility` from a run of tests/integration/test_programs.py; do not edit. Each program is the
distribution's own, unmodified. It runs twice, natively and in a pVM, in a directory of the same content, which is a
volume of the pVM. *Identical* means: the same standard output, standard error, exit status, and the same files with
the same content, modes and owners afterwards. For servers, *works* means that the clients outside got every answer
they expected and that the server ended with status 0 when asked to.

{host}

{summary}

| program | version | what was run | result |
|---|---|---|---|
"""
TAIL = """
## Not run, and why

Applets of busybox that run above with `--help` only:

{help}
- at all: {never}. On a busybox that ignored `--help` these would act on the machine.

## Tried by hand

Beside a native run of the same commands, not by a test of this table; where something is not as natively, it says so.

- on a terminal, byte by byte the same: bash with job control and readline, vim, nano, less, man, Python, sqlite3 and gdb prompts, htop, top,
  busybox vi, script, expect. tmux, screen and mc work; their screens come in other pieces
- compilers and builds: gcc (LTO, profiles, coverage), g++, clang, make -j, CMake with Ninja, Meson, autoconf, rustc, cargo, go build, javac, ocaml,
  npm scripts, git (rebase, gc, clone, worktrees). Results are the same; a build of many short processes takes 5-20 times as long where exits are dear
- languages: Java with G1, parallel, Z and Shenandoah collectors, Go, Rust, Ruby, PHP, Erlang, node's cluster and workers, Python's
  multiprocessing (fork, spawn, forkserver, managers, shared memory) and asyncio
- servers with reload, restart and what they execute: php-fpm (USR2), haproxy (USR2), Apache (USR1), sshd (HUP; scp, sftp, rsync, forwarding), lighttpd
  with CGI, supervisord, runit, s6, tini, gosu, dnsmasq, rsyslogd, tinyproxy, rsync's daemon, Redis with a replica and a sentinel, MariaDB
- ffmpeg, ImageMagick, sox, gpg with its agent, openssl s_server, socat, nc, iperf3, ping, dig, parallel, xargs -P, sort --parallel, tar, zstd -T, xz -T
- by an ordinary user of the group kvm, below `nice`, `timeout`, `nohup`, `setsid`, `taskset`, `chrt`, `env -i`, with each limit of `ulimit` (hard ones of -v, -d, -f and -n must leave room for the monitor)
- not: strace, and gdb of a program (no ptrace), inside. lsof and pmap show nothing of other processes. `ping` by an ordinary user needs a
  capability that users don't have inside. su and sshd warn of `keyctl`, which is not implemented
"""


def version(group):
    argv = WHO.get(group)
    if not argv or missing(argv[0]):
        return ""
    r = lib.run(argv)
    m = re.search(rb"v?=?(\d+\.\d+[\w.]*)", r.out + r.err)
    return m[1].decode() if m else ""


def write_doc(rows):
    versions = {g: version(g) for g in {r[0] for r in rows}}
    count = {k: sum(r[2] == k for r in rows) for k in ("pass", "fail", "skip")}
    servers = {(p, fn.__doc__) for p, fn in SERVERS}
    out = HEAD.format(host=f"Host: Linux {os.uname().release.split('-')[0]}, {os.uname().machine}.",
                      summary=f"{count['pass']} of {len(rows)} as they should; {count['fail']} differ; "
                              f"{count['skip']} not tried here.")
    for group, what, result, why in rows:
        good = "works" if (group, what) in servers else "identical"
        text = {"pass": good, "fail": f"**differs**: {why}", "skip": f"not tried: {why}"}[result]
        what = what if "`" in what or group not in ("busybox", "coreutils", "tools") else f"`{what}`"
        cells = (group, versions[group], what, text[:400])
        out += "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |\n"
    only_help = {what.split()[0] for group, what, _, _ in rows if group == "busybox" and what.endswith(" --help")}
    reasons = {why: sorted(only_help & set(names.split())) for why, names in programs.BUSYBOX_HELP.items()}
    reasons["no reason but time"] = sorted(only_help - {n for names in reasons.values() for n in names})
    help_ = "".join(f"- {why}: {', '.join(names)}\n" for why, names in reasons.items() if names)
    out += TAIL.format(help=help_, never=", ".join(programs.BUSYBOX_NEVER.split()))
    with open(os.path.join(lib.TOP, "docs/compatibility.md"), "w") as f:
        f.write(out)


class Http(http.server.BaseHTTPRequestHandler):
    """For clients: what is asked for, without anything that changes."""
    text = b""

    def answer(self, body):
        self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    def do_GET(self):
        self.answer(self.text)

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, *_):
        pass


def main():
    if lib.kvm_missing():
        print(f"ok 1 - programs # SKIP {lib.kvm_missing()}")
        return 0
    for k in [k for k in os.environ if k not in KEEP]:
        del os.environ[k]
    os.environ.update(ENV)
    os.umask(0o022)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    tap, rows, tree = lib.Tap(), [], sample()
    Http.text = tree["text"]
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Http)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{httpd.server_address[1]}"

    def record(group, what, result, why):
        rows.append((group, what.replace(url, "http://..."), result, why))
        name = f"{group}: {what}"
        if result == "pass":
            tap.ok(name)
        else:
            (tap.fail if result == "fail" else tap.skip)(name, why)

    start = time.monotonic()
    with lib.Dir() as d, concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        cases = [c for c in all_cases(d, url) if re.search(args.only, c.name())]
        for case, (result, why) in zip(cases, pool.map(lambda c: run_case(c, tree), cases)):
            record(case.group, case.what, result, why)
    for program, fn in SERVERS:
        if re.search(args.only, f"{program}: {fn.__doc__}"):
            record(program, fn.__doc__, *run_server(program, fn))
    httpd.shutdown()
    httpd.server_close()
    if args.write_doc and not args.only:
        write_doc(rows)
    print(f"# {time.monotonic() - start:.0f} s")
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
