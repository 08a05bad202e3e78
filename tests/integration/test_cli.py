#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The command line and the view of a pVM. Usage: test_cli.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure.

Programs run here never fork, so that the tests hold for pVMs with and without fork.
"""
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import lib

args = lib.arguments()
KYLINX = lib.KYLINX
TIMEOUT = lib.limit(180)
ONE_LINE = re.compile(r"\Akylinx: [^\n]+: [^\n]+ \([^\n]+\)\n\Z")

tests = []
count = {"passed": 0, "failed": 0, "skipped": 0}


class Skip(Exception):
    pass


def test(fn):
    tests.append(fn)
    return fn


def kylinx(*args, cwd="/", env=None, **kw):
    full = dict(os.environ)
    full.update(env or {})
    kw.setdefault("stdin", subprocess.DEVNULL)
    if "input" in kw:
        kw.pop("stdin")
    return subprocess.run([KYLINX, *args], cwd=cwd, env=full, timeout=TIMEOUT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)


def run(*args, **kw):
    return kylinx("run", *args, **kw)


def sh(script, *options, **kw):
    return run(*options, "sh", "-c", script, **kw)


def py(script, *options, **kw):
    return run(*options, "/usr/bin/python3", "-S", "-c", script, **kw)


def expect(got, want, what):
    if got != want:
        raise AssertionError(f"{what}: {got!r}, expected {want!r}")


def ok(r, out=None):
    if r.returncode != 0:
        raise AssertionError(f"status {r.returncode}, stderr {r.stderr!r}")
    if out is not None:
        expect(r.stdout, out, "stdout")
    return r


def error(r, status, text):
    expect(r.returncode, status, f"status ({r.stderr!r})")
    expect(r.stdout, "", "stdout")
    if not ONE_LINE.match(r.stderr):
        raise AssertionError(f"not 'kylinx: what: why (remedy)': {r.stderr!r}")
    if text not in r.stderr:
        raise AssertionError(f"{text!r} not in {r.stderr!r}")


class Dir:
    """A scratch directory, gone afterwards."""

    def __enter__(self):
        self.path = tempfile.mkdtemp(prefix="kylinx-test-")
        os.chmod(self.path, 0o755)
        return self.path

    def __exit__(self, *_):
        shutil.rmtree(self.path)


# ---- without a pVM ------------------------------------------------------------------------------------------

@test
def help_and_version():
    top = ok(kylinx("help")).stdout
    expect(ok(kylinx("--help")).stdout, top, "--help")
    assert "run" in top and "help" in top
    text = ok(kylinx("help", "run")).stdout
    expect(ok(run("--help")).stdout, text, "run --help")
    for option in ("memory", "cpus", "root", "volume", "env", "net", "io", "name", "strace", "stats", "log"):
        assert "--" + option in text, option
    assert re.fullmatch(r"kylinx \S+\n", ok(kylinx("--version")).stdout)


@test
def help_to_full_disk():
    with open("/dev/full", "w") as full:
        r = subprocess.run([KYLINX, "help"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT)
    expect(r.returncode, 125, "status")
    assert ONE_LINE.match(r.stderr), r.stderr


@test
def bad_commands():
    error(kylinx("frobnicate"), 125, "frobnicate: unknown command")
    error(kylinx("--frobnicate"), 125, "--frobnicate: unknown option")
    error(kylinx("help", "frobnicate"), 125, "unknown command")
    error(run(), 125, "no program")
    error(run("--"), 125, "no program")
    error(kylinx(), 125, "command: none given")


@test
def bad_options():
    for args, text in (
            (["--bogus"], "--bogus: unknown option"), (["-x"], "-x: unknown option"),
            (["--bogus=1\n2"], "--bogus: unknown option"),
            (["--memory", "1X"], "not a size"), (["--memory", ""], "not a size"), (["--memory=-1"], "not a size"),
            (["--memory", "1MB"], "not a size"), (["--memory", "K"], "not a size"), (["--memory", "0"], "too small"),
            (["--memory", "99999999999999999999"], "too large"), (["--memory", "18014398509481985K"], "too large"),
            (["--cpus", "0"], "--cpus 0"), (["--cpus", "-1"], "--cpus -1"), (["--cpus", "1x"], "--cpus 1x"),
            (["--cpus", ""], "--cpus"), (["--cpus", "99999999999"], "--cpus"),
            (["--volume", "/tmp"], "not a volume"), (["--volume", ":/a"], "not a volume"),
            (["--volume", "/tmp:"], "not a volume"), (["--volume", "/tmp:a"], "absolute"),
            (["--volume", "/tmp:/a/../b"], "absolute"), (["--volume", "/tmp:/a:rx"], "unknown mode"),
            (["--volume", "/nosuch:/a"], "No such file"), (["--env", "A"], "not a variable"),
            (["--env", "=a"], "not a variable"),
            (["--net", "bridge"], "unknown network"), (["--io", "ring"], "unknown way"),
            (["--name", ""], "not a name"), (["--name", "a b"], "not a name"), (["--name", "x" * 65], "not a name"),
            (["--log", "loud"], "unknown level"),
            (["--strace="], "no file"), (["--stats="], "no file"), (["--root", "/nosuch"], "No such file"),
            (["--root", "/etc/passwd"], "Not a directory"), (["--help=1"], "takes no value")):
        error(run(*args, "true"), 125, text)
    for option in ("--memory", "--cpus", "--root", "--volume", "--env", "--net", "--io", "--name", "--log"):
        error(run(option), 125, f"{option}: needs a value")
    error(run(*["--volume=/tmp:/a"] * 65, "true"), 125, "too many volumes")


# ---- like a process -----------------------------------------------------------------------------------------

@test
def exit_status():
    for n in (0, 1, 7, 125, 255):
        expect(sh(f"exit {n}").returncode, n, "status")


@test
def killed_by_signal():
    for s in (signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1):
        expect(sh(f"kill -{int(s)} $$").returncode, -s, s.name)


@test
def not_found():
    error(run("kylinx-no-such-program"), 127, "kylinx-no-such-program: not found")
    error(run("./nosuch"), 127, "./nosuch: No such file")
    error(run(""), 127, "'': not found")
    error(run("--env", "PATH=/nosuch", "true"), 127, "true: not found")


@test
def not_executable():
    error(run("/etc"), 126, "/etc: is a directory")
    error(run("/etc/passwd"), 126, "/etc/passwd: Permission denied")
    error(run("/etc/passwd/x"), 126, "Not a directory")
    with Dir() as d:
        with open(d + "/text", "w") as f:
            f.write("\x7fELF but not really\n")
        os.chmod(d + "/text", 0o755)
        error(run(d + "/text"), 126, d + "/text")
        os.chmod(d + "/text", 0o644)
        error(run(d + "/text"), 126, d + "/text: Permission denied")
        error(run(d), 126, "is a directory")
        os.mkdir(d + "/dir")
        error(run(d + "/dir"), 126, "is a directory")


@test
def path_search():
    with Dir() as d:
        shutil.copy("/bin/busybox", d + "/busybox")
        os.mkdir(d + "/dir")
        os.mkdir(d + "/dir/busybox")
        ok(run("busybox", "echo", "a", env={"PATH": d + ":/bin"}), "a\n")
        ok(run("busybox", "echo", "b", env={"PATH": d + "/dir:" + d}), "b\n")
        ok(run("busybox", "echo", "c", cwd=d, env={"PATH": ""}), "c\n")
        error(run("busybox", cwd=d + "/dir", env={"PATH": d + "/dir"}), 126, "busybox")


@test
def arguments():
    ok(run("/bin/echo", "--memory", "-x", "--", "a b", ""), "--memory -x -- a b \n")
    ok(run("--", "/bin/echo", "x"), "x\n")
    ok(run("sh", "-c", 'echo "$0"'), "sh\n")
    ok(sh('echo "$#"', "--name", "a.b-c_1"), "0\n")


@test
def environment():
    ok(sh('echo "$KX_A $KX_B"', "--env", "KX_B=2", "--env=KX_B=3=x", env={"KX_A": "1", "KX_B": "0"}), "1 3=x\n")
    ok(sh('echo "[$KX_A]"', "--env", "KX_A=", env={"KX_A": "1"}), "[]\n")


@test
def standard_streams():
    ok(run("cat", input="in\n"), "in\n")
    r = ok(sh("echo out; echo err >&2"), "out\n")
    expect(r.stderr, "err\n", "stderr")
    with open("/dev/full", "w") as full:
        r = subprocess.run([KYLINX, "run", "/bin/echo", "x"], stdout=full, stderr=subprocess.PIPE, timeout=TIMEOUT)
    expect(r.returncode, 1, "echo to a full disk")


@test
def big_streams():
    data = "0123456789abcde\n" * 65536
    expect(ok(run("cat", input=data)).stdout == data, True, "1 MiB through cat")


@test
def inherited_descriptors():
    r, w = os.pipe()
    try:
        ok(sh(f"echo there >&{w}", pass_fds=(w,)))
        expect(os.read(r, 100), b"there\n", "pipe")
    finally:
        os.close(r)
        os.close(w)


@test
def closed_descriptors():
    r = subprocess.run([KYLINX, "run", "sh", "-c", "read x; echo $?"], timeout=TIMEOUT, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, text=True, preexec_fn=lambda: os.close(0))
    expect(r.stdout.strip() not in ("", "0"), True, f"read from closed stdin fails, {r.stdout!r}")


def start(*args, **kw):
    p = subprocess.Popen([KYLINX, "run", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)
    line = ""
    if select.select([p.stdout], [], [], TIMEOUT)[0]:
        line = p.stdout.readline()
    if line != "ready\n":
        p.kill()
        raise AssertionError(f"did not start: {line!r} {p.communicate()[1]!r}")
    return p


def finish(p):
    try:
        out, err = p.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        p.kill()
        p.communicate()
        raise AssertionError("did not end") from None
    return p.returncode, out, err


SLEEPER = "import sys,time\nprint('ready', flush=True)\ntime.sleep(600)"


@test
def signal_from_outside():
    for s in (signal.SIGTERM, signal.SIGKILL, signal.SIGHUP):
        p = start("/usr/bin/python3", "-S", "-c", SLEEPER)
        p.send_signal(s)
        expect(finish(p)[0], -s, s.name)


@test
def signal_handled():
    # Short sleeps: between its look for signals and the call, Python sleeps over one, natively as well.
    p = start("/usr/bin/python3", "-S", "-c", "import os,signal,time\n"
              "def f(*a): os.write(1, b'caught\\n'); os._exit(9)\n"
              "signal.signal(signal.SIGUSR1, f)\nprint('ready', flush=True)\nwhile 1: time.sleep(0.1)")
    p.send_signal(signal.SIGUSR1)
    code, out, _ = finish(p)
    expect((code, out), (9, "caught\n"), "status and output")


@test
def stop_and_continue():
    p = start("/usr/bin/python3", "-S", "-c", "import time\nprint('ready', flush=True)\ntime.sleep(1)\ninput()\nprint('end')",
              stdin=subprocess.PIPE)
    p.send_signal(signal.SIGSTOP)
    pid, status = os.waitpid(p.pid, os.WUNTRACED)
    p_stopped = os.WIFSTOPPED(status)
    p.send_signal(signal.SIGCONT)
    p.stdin.write("\n")
    p.stdin.flush()
    expect(p_stopped and pid == p.pid, True, "stopped")
    expect(finish(p)[:2], (0, "end\n"), "status and output")


@test
def terminal():
    pid, master = pty.fork()
    if pid == 0:
        os.execv(KYLINX, [KYLINX, "run", "sh", "-c", "test -t 0 && test -t 1 && read x && echo got $x"])
    out, end = b"", time.time() + TIMEOUT
    os.write(master, b"typed\n")
    while time.time() < end and select.select([master], [], [], TIMEOUT)[0]:
        try:
            data = os.read(master, 4096)
        except OSError:
            break
        if not data:
            break
        out += data
    os.close(master)
    status = os.waitpid(pid, 0)[1]
    expect(os.waitstatus_to_exitcode(status), 0, f"status, output {out!r}")
    assert b"got typed" in out, out


@test
def pid_is_kylinx_pid():
    p = subprocess.Popen([KYLINX, "run", "sh", "-c", "echo $$"], stdout=subprocess.PIPE, text=True)
    expect(finish(p)[1], f"{p.pid}\n", "pid")


# ---- the view -----------------------------------------------------------------------------------------------

@test
def working_directory():
    with Dir() as d:
        with open(d + "/file", "w") as f:
            f.write("here\n")
        ok(sh("pwd; read x <file; echo $x", cwd=d), f"{d}\nhere\n")
        r = sh("echo x >file", cwd=d)
        expect(r.returncode != 0 and "Read-only" in r.stderr, True, f"cwd is read-only: {r.stderr!r}")
    ok(sh("pwd", cwd="/usr/lib"), "/usr/lib\n")
    ok(sh("pwd", cwd="/tmp"), "/tmp\n")
    ok(sh("pwd", cwd="/proc/sys"), "/\n")


@test
def program_directory():
    with Dir() as d:
        os.mkdir(d + "/real")
        shutil.copy("/bin/busybox", d + "/real/busybox")
        with open(d + "/real/data", "w") as f:
            f.write("data\n")
        os.symlink("real", d + "/linked")
        os.mkdir(d + "/other")
        os.symlink(d + "/real/busybox", d + "/other/busybox")
        ok(run(d + "/real/busybox", "cat", d + "/real/data"), "data\n")
        ok(run(d + "/linked/busybox", "cat", d + "/real/data"), "data\n")
        ok(run(d + "/other/busybox", "cat", d + "/real/data"), "data\n")
        ok(run("../real/busybox", "cat", "data", cwd=d + "/real"), "data\n")
        ok(run("../real/busybox", "echo", "x", cwd=d + "/other"), "x\n")
        os.mkdir(d + "/bin")
        ok(run(d + "/bin/../real/busybox", "cat", d + "/real/data"), "data\n")
    name = tempfile.mktemp(prefix="busybox-kylinx-", dir="/tmp")
    shutil.copy("/bin/busybox", name)
    try:
        ok(run(name, "sh", "-c", "echo /tmp/*"), name + "\n")
    finally:
        os.unlink(name)


@test
def root_listing():
    names = set(ok(sh("echo /*")).stdout.split())
    want = {"/usr", "/etc", "/bin", "/lib", "/dev", "/proc", "/sys", "/tmp", "/run", "/var", "/home", "/root"}
    expect(want - names, set(), "missing")
    allowed = want | {"/sbin", "/lib32", "/lib64", "/libx32"}
    expect(names - allowed, set(), "should not be there")


@test
def private_directories():
    ok(sh("cd /tmp; echo * /var/tmp/* /home/* /root/*", env={"HOME": "/"}), "* /var/tmp/* /home/* /root/*\n")
    ok(sh("for d in /tmp /var/tmp /run/lock /dev/shm /home /run /var; do echo x >$d/f && read y <$d/f || exit 3; done"))
    ok(sh("test -d $HOME && test -w $HOME", env={"HOME": "/home/someone"}))


@test
def system_is_read_only():
    for path in ("/usr/f", "/etc/f", "/bin/f", "/sys/devices/system/cpu/f"):
        r = sh(f"echo x >{path}")
        expect(r.returncode != 0, True, f"{path} cannot be made")
        expect(os.path.exists(path), False, f"{path} on the host")


@test
def host_is_hidden():
    with tempfile.NamedTemporaryFile(prefix="kylinx-hidden-") as f:
        expect(sh(f"test -e {f.name}").returncode, 1, "a file of the host's /tmp")
    for path in ("/boot", "/mnt", "/dev/kvm", "/dev/mem", "/sys/kernel/debug", "/sys/fs", "/proc/1/mem", "/proc/kcore"):
        expect(sh(f"test -e {path}").returncode, 1, path)


@test
def devices():
    names = ok(sh("cd /dev; echo *")).stdout.split()
    expect(names, "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero".split(), "/dev")
    ok(sh("echo x >/dev/null && echo x >/dev/stdout"), "x\n")
    ok(py("import os\nf = open('/dev/urandom', 'rb').read(16) + open('/dev/zero', 'rb').read(4)\n"
          "m, s = os.openpty()\nprint(len(f), f[16:], os.ttyname(s))"), "20 b'\\x00\\x00\\x00\\x00' /dev/pts/0\n")


@test
def machine_is_described():
    ok(sh("test -r /sys/devices/system/cpu/online && test -r /sys/kernel/mm/transparent_hugepage/enabled"))


@test
def volumes():
    with Dir() as d:
        os.mkdir(d + "/v")
        with open(d + "/v/in", "w") as f:
            f.write("in\n")
        ok(sh("read x </data/in; echo $x; echo out >/data/out", "--volume", f"{d}/v:/data"), "in\n")
        with open(d + "/v/out") as f:
            expect(f.read(), "out\n", "written through the volume")
        r = sh("read x </data/in; echo $x; echo no >/data/no", "--volume", f"{d}/v:/data:ro")
        expect((r.stdout, r.returncode != 0, os.path.exists(d + "/v/no")), ("in\n", True, False), "read-only volume")
        ok(sh("read x </a/b/c/in; echo $x", "--volume", f"{d}/v:/a/b/c"), "in\n")
        ok(sh("read x </opt/one; echo $x", "--volume", f"{d}/v/in:/opt/one"), "in\n")
        ok(sh("read x </etc/passwd; echo $x", "--volume", f"{d}/v/in:/etc/passwd:ro"), "in\n")
        ok(sh("read x </r/in; echo $x", "--volume", "v:/r", cwd=d), "in\n")
        ok(sh("echo w >new", "--volume", f".:{d}", cwd=d))
        expect(os.path.exists(d + "/new"), True, "written in the working directory")
        ok(sh("read x </x/in; read y </y/v/in; echo $x$y", "--volume", f"{d}/v:/x", "--volume", f"{d}:/y"), "inin\n")


@test
def bad_volumes():
    error(run("--volume", "/etc:/", "true"), 125, "--volume /etc:/:")
    error(run("--volume", "/etc:/proc/x", "true"), 125, "--volume /etc:/proc/x:")
    error(run("--volume", "/etc:/usr/kylinx-nosuch", "true"), 125, "/usr/kylinx-nosuch")
    expect(os.path.exists("/usr/kylinx-nosuch"), False, "made on the host")
    error(run("--volume", "/:/host", "true"), 125, "procfs")
    error(run("--volume", "/proc:/host", "true"), 125, "procfs")
    error(run("--volume", "/etc:/etc/passwd", "true"), 125, "--volume")


def image(d):
    for sub in ("bin", "etc", "var/tmp"):
        os.makedirs(d + "/" + sub)
    shutil.copy("/bin/busybox", d + "/bin/busybox")
    os.symlink("busybox", d + "/bin/sh")
    with open(d + "/etc/os-release", "w") as f:
        f.write("ID=image\n")


@test
def root_image():
    with Dir() as d, Dir() as v:
        image(d)
        opt = ("--root", d)
        ok(sh("pwd; read x </etc/os-release; echo $x; echo /*", *opt, cwd="/usr/lib"),
           "/\nID=image\n/bin /dev /etc /proc /run /sys /tmp /var\n")
        ok(sh("pwd", *opt, cwd="/etc"), "/etc\n")
        expect(sh("echo x >/etc/x", *opt).returncode != 0, True, "image is read-only")
        ok(sh("echo x >/tmp/x && echo x >/var/tmp/x && echo x >/dev/null", *opt))
        expect(os.listdir(d + "/var/tmp"), [], "image's /var/tmp")
        error(run(*opt, "ls-nosuch"), 127, "not found")
        error(run(*opt, "/usr/bin/true"), 127, "/usr/bin/true")
        ok(sh("echo x >/new/dir/f", *opt, "--volume", f"{v}:/new/dir"))
        expect(os.listdir(v), ["f"], "volume in an image")


@test
def root_image_with_hostile_links():
    with Dir() as d, Dir() as outside:
        image(d)
        os.symlink(outside, d + "/out")
        os.symlink("../" * 20 + outside[1:], d + "/etc/up")
        os.symlink(outside, d + "/var/run")
        run("--root", d, "--volume", "/etc:/out/a", "sh", "-c", ":")
        run("--root", d, "--volume", "/etc:/etc/up/b", "sh", "-c", ":")
        expect(os.listdir(outside), [], "host directory that the image links to")


@test
def directories_that_become_links():
    """Between the look at a directory and the moment at which the view takes it, its place is taken by a link elsewhere."""
    with Dir() as d:
        here = os.path.dirname(os.path.abspath(__file__))
        subprocess.run(["gcc", "-O1", "-Wall", "-D_GNU_SOURCE", "-o", d + "/meddle", here + "/meddle.c"], check=True)
        for name in ("img", "v", "secret"):
            os.mkdir(f"{d}/{name}")
        image(d + "/img")
        with open(d + "/secret/s3cret", "w") as f:
            f.write("x")
        for options, taken in ((["--root", d + "/img"], d + "/img/etc"), (["--volume", f"{d}/v:/v"], d + "/v")):
            script = f"mv {taken} {taken}.was && ln -s {d}/secret {taken}"
            r = subprocess.run([d + "/meddle", taken, script, KYLINX, "run", *options, "--", "/bin/sh", "-c",
                                "echo /etc/* /v/*"], capture_output=True, text=True, timeout=TIMEOUT, cwd="/")
            expect((r.returncode, "s3cret" in r.stdout, r.stderr.count("\n"), "Too many levels" in r.stderr),
                   (125, False, 1, True), f"{options}: {r.stdout} {r.stderr}")
            os.unlink(taken)
            os.rename(taken + ".was", taken)


@test
def service_thread():
    """--io: who answers; never with one processor; no time while the program waits; seen by nobody inside."""
    code = "import os\nfor _ in range(3000): os.getpgid(0)\nprint(os.listdir('/proc/self/task') == [str(os.getpid())])"
    with Dir() as d:
        file = os.path.join(d, "stats")

        def polled(*options, cpus=()):
            p = subprocess.run([*cpus, KYLINX, "run", f"--stats={file}", *options, "--", sys.executable, "-c", code],
                               stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT)
            ok(p, "True\n")
            with open(file) as f:
                s = json.load(f)
            assert s["hypercalls"]["getpgid"] >= 3000, s
            return s["polled"]
        expect(polled("--io", "exit"), 0, "--io exit")
        expect(polled("--io", "poll", "--cpus", "1"), 0, "--cpus 1")
        one = min(os.sched_getaffinity(0))
        expect(polled("--io", "poll", cpus=["taskset", "-c", str(one)]), 0, "one processor")
        if len(os.sched_getaffinity(0)) > 1:
            # On a machine that has other work the second processor may not be free just then.
            for what in (lambda: polled("--io", "poll") > 0,
                         lambda: "<poll>" in ok(sh("kill -0 $$; ls / >/dev/null", "--io", "poll", "--strace")).stderr):
                end = time.monotonic() + TIMEOUT
                while not what():
                    assert time.monotonic() < end, "nothing was polled"
    p = subprocess.Popen([KYLINX, "run", "--io", "poll", "--", sys.executable, "-c", "import os, time\n"
                          "for _ in range(3000): os.getpgid(0)\nprint(flush=True)\ntime.sleep(600)"],
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        p.stdout.readline()
        def ticks():
            with open(f"/proc/{p.pid}/stat") as f:
                return sum(map(int, f.read().rsplit(")", 1)[1].split()[11:13]))
        used = 100
        for _ in range(60):  # it may not be asleep yet
            before = ticks()
            time.sleep(1)
            used = ticks() - before
            if used <= 2:
                break
        assert used <= 2, f"{used} ticks of time while the program slept"
    finally:
        p.kill()
        p.wait()
        p.stdout.close()


@test
def network_none():
    code = ("import socket\ns = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(1)\n"
            "c = socket.create_connection(s.getsockname())\n"
            "print([n for _, n in socket.if_nameindex()])\n"
            "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            "try: u.connect(('192.0.2.1', 9)); print('route')\n"
            "except OSError as e: print('no route')")
    ok(py(code, "--net", "none"), "['lo']\nno route\n")


@test
def network_host():
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen(1)
        ok(py(f"import socket\nsocket.create_connection(('127.0.0.1', {s.getsockname()[1]}))", "--net=host"))


@test
def ipc_is_private():
    ok(sh("cd /dev/shm; echo *"), "*\n")


# ---- limits and reports -------------------------------------------------------------------------------------

@test
def memory_limit():
    code = "try: x = bytearray(512 << 20); print('got')\nexcept MemoryError: print('none')"
    ok(py(code, "--memory", "128M"), "none\n")
    ok(py("x = bytearray(32 << 20); print('got')", "--memory", "256m"), "got\n")


def idle_pss(argv, most=0):
    """KiB of a program that has said that it is ready and waits for input: so many at most, a while later."""
    p = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")
    try:
        expect(p.stdout.readline(), "ready\n", f"{argv[0]} starts")
        end = time.monotonic() + (60 if most else 0)
        while True:
            time.sleep(0.5)  # and waits
            with open(f"/proc/{p.pid}/smaps_rollup") as f:
                pss = int(re.search(r"(?m)^Pss: +([0-9]+) kB", f.read())[1])
            if pss <= most or time.monotonic() > end:
                return pss
    finally:
        p.communicate("\n", timeout=TIMEOUT)


@test
def idle_overhead():
    for argv in (["/bin/sh", "-c", "echo ready; read x"],
                 ["/usr/bin/python3", "-c", "import json, socket, threading; print('ready', flush=True); input()"]):
        idle_pss([KYLINX, "run", "--", *argv])  # now the store has its texts
        native = idle_pss(argv)
        pvm = idle_pss([KYLINX, "run", "--", *argv], native + 3071)
        print(f"# {os.path.basename(argv[0])}: PSS {native} KiB natively, {pvm} KiB in a pVM", flush=True)
        assert pvm - native < 3072, f"{argv[0]}: {native} KiB natively, {pvm} KiB in a pVM"


@test
def small_pages_of_its_own():
    """Also where the host gives 2 MiB pages to whoever does not ask, none is behind what the monitor itself needs."""
    if not os.path.exists("/sys/kernel/mm/transparent_hugepage/enabled"):
        raise Skip("no transparent huge pages")
    p = start("sh", "-c", "echo ready; read x", stdin=subprocess.PIPE)
    with open(f"/proc/{p.pid}/smaps") as f:
        found = re.findall(r"(?ms)^([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0 *$.*?^VmFlags:([a-z ]*)$", f.read())
    p.communicate("\n", timeout=TIMEOUT)
    huge, user_end = 2 << 20, 0x7effe00000
    large = [(a, e, flags.split()) for a, e, flags in found if int(a, 16) >= user_end
             and (int(a, 16) + huge - 1) // huge < int(e, 16) // huge]
    assert len(large) >= 2, f"the tables and data of the file: {large}"
    expect([f"{a}-{e}" for a, e, flags in large if "nh" not in flags], [], "may be of 2 MiB")


def translates():
    """Does the processor translate what guests take for physical addresses?"""
    for path in ("kvm_intel/parameters/ept", "kvm_amd/parameters/npt"):
        try:
            if lib.read(f"/sys/module/{path}").strip() in ("Y", "1"):
                return True
        except OSError:
            pass
    return False


@test
def libos_of_the_file():
    """A pVM's LibOS and vDSO are pages of kylinx's own file, as its text is, that nobody can write to; also behind an exec."""
    if not translates():
        raise Skip("there each pVM has a copy")
    for script in ("echo ready; read x", "exec sh -c 'echo ready; read x'"):
        p = start("sh", "-c", script, stdin=subprocess.PIPE)
        maps = [line.split() for line in lib.read(f"/proc/{p.pid}/maps").splitlines()]
        p.communicate("\n", timeout=TIMEOUT)
        text = {tuple(m[3:5]) for m in maps if m[1] == "r-xp" and m[4] != "0"}
        found = {m[0].split("-")[0]: (m[1], tuple(m[3:5]) in text) for m in maps}
        expect([found.get(at) for at in ("7f00000000", "7f00080000")], [("r--s", True)] * 2, script)


@test
def nobody_traces():
    """/proc says so whatever the host's kernel has."""
    ok(sh("cd /proc/sys/kernel/yama && ls && cat ptrace_scope; test -f ptrace_scope && test ! -w ptrace_scope && echo fixed", cwd="/"),
       "ptrace_scope\n3\nfixed\n")


@test
def cpus_shown():
    """All that a program can ask agrees, and it can't get more."""
    code = """if 1:
        import os, re
        sys = "/sys/devices/system/cpu/"
        text = lambda p: open(p).read()
        print(len(os.sched_getaffinity(0)), os.cpu_count(), os.sysconf("SC_NPROCESSORS_CONF"))
        print([text(sys + n).strip() for n in ("online", "possible", "present", "offline")])
        print([n for n in sorted(os.listdir(sys)) if re.fullmatch("cpu[0-9]+", n)])
        print(re.findall("processor.*: (.*)", text("/proc/cpuinfo")), re.findall("cpu([0-9]+)", text("/proc/stat")))
        total, one = re.findall("(?m)^cpu[0-9]* +(.*)", text("/proc/stat"))
        print(total == one, len(total.split()) == 10, re.search("Cpus_allowed_list:(.*)", text("/proc/self/status"))[1].strip())
        os.sched_setaffinity(0, range(1024))
        print(os.sched_getaffinity(0))
        try: os.sched_setaffinity(0, {CPU + 1})
        except OSError as e: print(e.strerror)"""
    for cpu in sorted(os.sched_getaffinity(0))[:2]:
        want = (f"1 1 1\n['{cpu}', '{cpu}', '{cpu}', '']\n['cpu{cpu}']\n['{cpu}'] ['{cpu}']\nTrue True {cpu}\n{{{cpu}}}\n"
                "Invalid argument\n")
        r = subprocess.run(["taskset", "-c", str(cpu), KYLINX, "run", "--cpus", "1", "--", "/usr/bin/python3", "-S", "-c",
                            code.replace("CPU", str(cpu))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           timeout=TIMEOUT)
        ok(r, want)
    ok(run("--cpus", "1", "nproc"), "1\n")
    ok(run("--cpus", "1", "env", "nproc", "--all"), "1\n")  # behind an exec
    n = len(os.sched_getaffinity(0))
    ok(run("--cpus", "1000", "nproc"), f"{n}\n")  # no more than there are
    if shutil.which("node"):
        ok(run("--cpus", "1", "node", "-p", "os.cpus().length"), "1\n")
    if shutil.which("java"):
        with Dir() as d:
            with open(d + "/N.java", "w") as f:
                f.write("class N { public static void main(String[] a) {"
                        "System.out.println(Runtime.getRuntime().availableProcessors()); } }")
            ok(run("--cpus", "1", "java", "-Xshare:auto", d + "/N.java", cwd=d), "1\n")


@test
def strace_and_stats():
    with Dir() as d:
        r = ok(run(f"--strace={d}/trace", f"--stats={d}/stats", "/bin/echo", "x"), "x\n")
        expect(r.stderr, "", "stderr")
        with open(d + "/trace") as f:
            assert "write(1" in f.read()
        assert os.path.getsize(d + "/stats") > 0
    assert "write(1" in ok(run("--strace", "/bin/echo", "x"), "x\n").stderr
    assert ok(run("--stats", "/bin/echo", "x"), "x\n").stderr
    error(run("--strace=/nosuch/file", "true"), 125, "/nosuch/file")


@test
def stats_of_threads_that_run():
    """The end of a program is the end, though a thread of it goes on in its own code."""
    with Dir() as d:
        with open(f"{d}/spin.c", "w") as f:
            f.write("#include <pthread.h>\n#include <signal.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
                    "static volatile int there;\nstatic void *spin(void *a) { for (;;) there = 1; return a; }\n"
                    "int main(int c, char **v) { pthread_t t; pthread_create(&t, 0, spin, 0); while (!there) ;\n"
                    "if (c > 3) execl(\"/bin/sh\", \"sh\", \"-c\", \"exit 5\", NULL); else if (c > 2) raise(SIGTERM); else if (c > 1) _exit(3); return 4; }\n")
        subprocess.run(["gcc", "-O1", "-pthread", "-o", f"{d}/spin", f"{d}/spin.c"], check=True)
        for args_, status in (([], 4), (["x"], 3), (["x", "y"], -15), (["x", "y", "z"], 5)):
            r = run(f"--stats={d}/stats", f"{d}/spin", *args_)
            expect(r.returncode, status, f"status with {args_}")
            with open(f"{d}/stats") as f:
                assert json.load(f)["exits"] > 0


@test
def strace_of_old_actions():
    """The old action is there when the monitor makes the line, whoever answers."""
    code = ("import signal as s\n"
            "for x in (lambda *a: 0, s.SIG_IGN, s.SIG_DFL): s.signal(s.SIGUSR1, x)")
    found = re.findall(r"rt_sigaction\(SIGUSR1, \{sa_handler=(\w+), .*?\}, \{sa_handler=(\w+), sa_mask=\[\], .* <monitor>",
                       ok(py(code, "--strace")).stderr)
    expect(len(found), 3, f"changes in {found}")
    handler = found[0][0]
    expect(found, [(handler, "SIG_DFL"), ("SIG_IGN", handler), ("SIG_DFL", "SIG_IGN")], "new and old actions")


@test
def ordinary_user():
    """With a /dev/kvm that everybody may use, in a mount namespace of the test's own."""
    if os.geteuid() != 0:
        raise Skip("run as root")
    dev = os.stat("/dev/kvm").st_rdev
    own = ("mount -t tmpfs -o mode=755 kylinx-test /mnt && mknod -m 666 /mnt/kvm c {} {} && mount --bind /mnt/kvm /dev/kvm && "
           "exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all \"$@\"")
    with Dir() as d:
        shutil.copy(KYLINX, d + "/kylinx")
        start = ["unshare", "-m", "--propagation", "private", "sh", "-c", own.format(os.major(dev), os.minor(dev)), "sh",
                 d + "/kylinx", "run"]
        for script, options, out in (
                ("test -w /tmp && test ! -w /etc && pwd", [], "/\n"), ("id -u; id -g", [], "65534\n65534\n"),
                ("nproc; grep -c ^processor /proc/cpuinfo; cat /sys/devices/system/cpu/online | wc -l", ["--cpus", "1"],
                 "1\n1\n1\n"),
                ("ls /sys/class/net 2>/dev/null; tail -n +3 /proc/net/dev | cut -d : -f 1", ["--net", "none"], "    lo\n")):
            r = subprocess.run([*start, *options, "sh", "-c", script], cwd="/", stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT)
            ok(r, out)


LOST = """
import os
try: print(os.getcwd())
except OSError as e: print(e.errno)
for p in (".", "..", "../.."):
    print(sorted(os.listdir(p)))
try: open("x", "w")
except OSError as e: print(e.errno in (2, 30))
os.chdir("/")
print(os.getcwd())
"""


@test
def lost_directory():
    """A current directory that was removed, or whose mount is gone: programs start, and find no path of it."""
    with Dir() as d:
        os.mkdir(d + "/a")
        for lose in ("rmdir ../a", "mount -t tmpfs none . && cd ../a && mkdir b && cd b && umount -l ../../a"):
            if "mount" in lose and os.geteuid():
                continue
            os.makedirs(d + "/a", exist_ok=True)
            cmd = ["unshare", "-m", "--propagation", "private"] if "mount" in lose else []
            r = subprocess.run([*cmd, "sh", "-c", f'cd {d}/a && {lose} && exec "$@"', "sh", KYLINX, "run", "/usr/bin/python3",
                                "-c", LOST], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, timeout=TIMEOUT)
            ok(r, "2\n[]\n[]\n[]\nTrue\n/\n")


@test
def private_directory():
    """A current directory below one that the user may not search: as natively it can be used, and has its path."""
    if os.geteuid() != 0:
        raise Skip("run as root")
    gid = os.stat("/dev/kvm").st_gid
    with Dir() as d, Dir() as p:
        shutil.copy(KYLINX, d + "/kylinx")
        os.makedirs(p + "/own/x")
        os.chown(p + "/own/x", 65534, 65534)
        with open(p + "/own/x/file", "w") as f:
            f.write("text\n")
        os.chmod(p + "/own", 0o700)
        os.chmod(p, 0o700)
        r = subprocess.run(["sh", "-c", f'cd {p}/own/x && exec setpriv --reuid 65534 --regid 65534 --groups {gid} '
                            '--inh-caps=-all "$@"', "sh", d + "/kylinx", "run", "sh", "-c", "pwd; cat file; ls; touch y"],
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           timeout=TIMEOUT)
        expect((r.returncode, r.stdout), (1, f"{p}/own/x\ntext\nfile\n"), r.stderr)


@test
def no_permission_on_kvm():
    if os.geteuid() != 0:
        raise Skip("run as root")
    dev = os.stat("/dev/kvm").st_rdev
    with Dir() as d:
        shutil.copy(KYLINX, d + "/kylinx")
        for make, text in ((f"mknod -m 600 /mnt/kvm c {os.major(dev)} {os.minor(dev)}", "/dev/kvm: permission denied"),
                           ("mknod -m 666 /mnt/kvm c 10 254", "/dev/kvm: no such device"),
                           ("echo x >/mnt/kvm", "/dev/kvm: ")):
            own = (f"mount -t tmpfs -o mode=755 kylinx-test /mnt && {make} && mount --bind /mnt/kvm /dev/kvm && "
                   'exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"')
            r = subprocess.run(["unshare", "-m", "--propagation", "private", "sh", "-c", own, "sh", d + "/kylinx", "run", "true"],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               timeout=TIMEOUT)
            error(r, 125, text)
        # No such file: an empty /dev.
        r = subprocess.run(["unshare", "-m", "--propagation", "private", "sh", "-c",
                            'mount -t tmpfs -o mode=755 kylinx-test /dev && exec "$@"', "sh", d + "/kylinx", "run", "true"],
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT)
        error(r, 125, "/dev/kvm: no such device")


# ---- after all ----------------------------------------------------------------------------------------------

def children():
    r = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())], stdout=subprocess.PIPE, text=True)
    return [line for line in r.stdout.splitlines() if line.split()[1:] != ["ps"]]


def leftovers():
    with open("/proc/self/mountinfo") as f:
        mounts = f.read()
    ours = sorted(n for d in ("/tmp", "/var/tmp", "/dev/shm", "/run") for n in os.listdir(d)
                  if "kylinx" in n and not re.fullmatch(r"kylinx(-\d+)?", n))
    return {"mounts": mounts, "files": ours, "children": children()}


def main():
    needs_pvm = [t for t in tests if t.__name__ not in
                 ("help_and_version", "help_to_full_disk", "bad_commands", "bad_options")]
    before = leftovers()
    named = [(t.__name__.replace("_", " "), t) for t in tests]
    chosen = [(name, t) for name, t in named if re.search(args.only, name) or re.search(args.only, t.__name__)]
    for n, (name, t) in enumerate(chosen, 1):
        try:
            if t in needs_pvm and not os.access("/dev/kvm", os.F_OK):
                raise Skip("no /dev/kvm")
            t()
            after = leftovers()
            for kind in before:
                expect(after[kind], before[kind], f"{kind} left over")
            print(f"ok {n} - {name}", flush=True)
            count["passed"] += 1
        except Skip as e:
            print(f"ok {n} - {name} # SKIP {e}", flush=True)
            count["skipped"] += 1
        except Exception as e:  # noqa: BLE001, whatever it is, it is this test's failure
            why = f"{type(e).__name__ if not isinstance(e, AssertionError) else ''} {e}".strip().replace("\n", "\\n")
            print(f"not ok {n} - {name}: {why[:600]}", flush=True)
            count["failed"] += 1
            before = leftovers()
    print(f"1..{len(chosen)}")
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**count))
    return 1 if count["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
