#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Where and how kylinx may be started: without standard streams, variables, a directory; by other programs; on machines
that lack something. And every error that a user can cause is one line, `kylinx: what: why (remedy)`.

test_circumstances.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure.
"""
import contextlib
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402

args = lib.arguments()

ERROR = re.compile(r"kylinx: [^\n]+: [^\n]+ \([^\n]+\)\n")
tests = []


def test(fn):
    tests.append((fn.__name__, fn))
    return fn


def shell(script, *argv, timeout=180, native=False, **kw):
    """script in sh: "$@" is `kylinx run --` (nothing natively), $K the program."""
    full = {**os.environ, "K": lib.KYLINX, **kw.pop("env", {})}
    run = [] if native else [lib.KYLINX, "run", "--"]
    return lib.run(["sh", "-c", script, "sh", *run, *argv], timeout, cwd=kw.pop("cwd", "/"), env=full, **kw)


def one_error(r, status, what):
    expect((r.status, r.out), (status, b""), f"{what}: status and output")
    text = r.err.decode(errors="replace")
    assert ERROR.fullmatch(text), f"{what}: not one line of that form: {text!r}"
    return text


def in_namespace(script, **kw):
    if os.geteuid():
        raise Skip("run as root")
    return shell(f"exec unshare -m sh -c '{script}'", **kw)


# ---- errors -----------------------------------------------------------------------------------------------------

@test
def errors_of_use():
    for argv in ([], ["frob"], ["--frob"], ["run"], ["run", "--frob", "x"], ["run", "--memory"], ["run", "--memory=x",
                 "x"], ["run", "--memory", "99999999999999999999", "x"], ["run", "--cpus", "0", "x"], ["run",
                 "--cpus=-1", "x"], ["run", "--root", "/nonexistent", "x"], ["run", "--root=/etc/passwd", "x"], ["run",
                 "--volume", "x", "x"], ["run", "--volume=/nonexistent:/x", "x"], ["run", "--volume=/etc:x", "x"],
                 ["run", "--volume=/:/x:q", "x"], ["run", "--env", "x", "x"], ["run", "--net=x", "x"], ["run",
                 "--io=x", "x"], ["run", "--name=1", "x"], ["run", "--name", "\udcff", "x"], ["run", "--log=x", "x"],
                 ["run", "--strace=", "x"], ["run", "--strace=/nonexistent/x", "true"], ["run",
                 "--stats=/nonexistent/x", "true"], ["run", "--strace=/", "true"], ["ps", "--frob"], ["ps", "x"],
                 ["kill"], ["kill", "nosuch"], ["kill", "-s", "FROB", "1"], ["kill", "1"], ["exec"], ["exec", "nosuch",
                 "true"], ["exec", "--frob"], ["update"], ["update", "nosuch", "/nonexistent"], ["lib"], ["lib",
                 "frob"], ["bench", "frob"], ["help", "frob"], ["help", "run", "run"]):
        one_error(lib.run([lib.KYLINX, *argv], cwd="/"), 125, " ".join(argv))


@test
def errors_of_programs():
    for program, status in (("/nonexistent", 127), ("nosuchprogram", 127), ("", 127), ("./x", 127),
                            ("/etc/passwd/x", 126), ("/etc", 126), ("/etc/passwd", 126), ("/dev/null", 126),
                            ("/" + "x" * 5000, None),
                            ("/" + "x/" * 1500, 127), ("/\udcff\x1b[31m\n", 127)):
        r = lib.run([lib.KYLINX, "run", "--", program], cwd="/")
        one_error(r, status or r.status, program[:40])
        assert status or r.status in (126, 127), r.why()


@test
def errors_of_output():
    one_error(shell("exec $K help >/dev/full"), 125, "help to a full disk")
    one_error(shell("exec $K help >&-"), 125, "help to nowhere")
    one_error(shell("exec $K ps >/dev/full"), 125, "ps to a full disk")
    one_error(shell("exec $K run --help >/dev/full"), 125, "run --help to a full disk")
    r = shell("$K help 2>&1 | true")
    expect((r.status, r.out, r.err), (0, b"", b""), "help to a reader that has gone")
    expect(shell("$K frob 2>&-; $K run -- /nonexistent 2>&-").status, 127, "errors to nowhere")


@test
def errors_are_whole():
    """However long what it is about is: why, and what to do, is at the end."""
    with lib.Dir() as d:
        long = d + "/" + "/".join(["x" * 200] * 18)
        os.makedirs(long)
        for argv in (["lib", "add"], ["lib", "sign", "--key", "/nonexistent"], ["lib", "verify"], ["lib", "trust"],
                     ["lib", "revoke"], ["lib", "keygen"], ["lib", "policy", "check"], ["update", "1"]):
            argv = [lib.KYLINX, *argv, long + ("" if "keygen" in argv else "/none")]
            text = one_error(lib.run(argv, cwd="/", env={"KYLINX_STORE": d + "/s", "KYLINX_CONFIG": d + "/c"}), 125,
                             " ".join(argv)[:60])
            assert len(text) < 540, text
        text = one_error(lib.run([lib.KYLINX, "lib", "list"], cwd="/", env={"KYLINX_STORE": long + "/" + "y" * 400}), 125,
                         "a store with a long name")


@test
def errors_of_limits():
    """A limit is an error of one line. What can't be looked at for it is not taken for damaged, or for gone."""
    with lib.Dir() as d:
        env = {"KYLINX_STORE": d + "/s", "KYLINX_CONFIG": d + "/c"}
        shell("cp /bin/true $D/x && $K lib add /bin/true /bin/false && $K lib keygen $D/k && $K lib trust $D/k.pub &&"
              " $K lib sign $D/x --key $D/k", env={**env, "D": d})
        files = sorted(os.path.join(top, n) for top, _, names in os.walk(d) for n in names)
        assert sum("/index/" in f for f in files) == 2 and d + "/x.kxsig" in files, files
        for n in range(4, 12):
            for argv, want in (("lib list", rb"(?s).*/true\n.*"), ("lib verify", rb".* 0 damaged; .*\n"),
                               ("lib gc", rb"0 removed\n"), ("lib trust", rb"k .*\n"), ("lib history", rb"(?s)\{.*"),
                               ("lib show true", rb"(?s)path .*"), ("lib policy check", rb".*no errors\n")):
                r = shell(f"ulimit -n {n}; exec $K {argv}", env=env)
                if r.status:
                    one_error(r, 125, f"{n} descriptors: {argv}")
                else:
                    assert re.fullmatch(want, r.out) and not r.err, f"{n} descriptors: {argv}: {r.out} {r.err}"
        for argv in (f"lib sign {d}/x --key {d}/k", f"lib keygen {d}/new", "lib revoke k", f"lib trust {d}/k.pub --expires 9d",
                     "lib add /bin/cat"):
            r = shell(f"(ulimit -f 0; $K {argv}; echo $?) 2>&1 | cat", env=env)  # it is for files that hold output, too
            text = r.out.decode()
            assert text.endswith("\n125\n") and ERROR.fullmatch(text[:-4]) and "File too large" in text, text
        expect(sorted(os.path.join(top, n) for top, _, names in os.walk(d) for n in names), files, "files")
        expect(shell("$K lib verify; $K lib gc", env=env).out[-10:], b"0 removed\n", "the store")


@test
def errors_of_what_waits():
    """Nothing waits for a FIFO, or for ever for somebody else's lock."""
    with lib.Dir() as d:
        env = {"KYLINX_STORE": d + "/s", "KYLINX_CONFIG": d + "/c", "HOME": d}
        os.mkfifo(d + "/f")
        os.mkdir(d + "/s")
        for argv in (["update", "1"], ["lib", "add"], ["lib", "sign", "--key", d + "/f"], ["lib", "trust"],
                     ["lib", "revoke"], ["lib", "policy", "check"], ["lib", "policy", "test"],
                     ["run", "--policy", d + "/f", "--"], ["run", "--root"]):
            one_error(lib.run([lib.KYLINX, *argv, d + "/f"], 20, cwd="/", env=env), 125, " ".join(argv))
        os.mkfifo(d + "/s/history")
        expect(lib.run([lib.KYLINX, "lib", "history"], 20, env=env).err.count(b"\n"), 0, "a history that is a FIFO")
        os.makedirs(d + "/c/keys", exist_ok=True)
        holder = subprocess.Popen(["flock", d + "/c/keys/.lock", "sleep", "1000"], start_new_session=True)
        try:
            while not os.path.exists(d + "/c/keys/.lock"):
                time.sleep(0.01)
            text = one_error(shell(f"exec $K lib revoke {'1' * 32}", timeout=60, env=env), 125, "a lock that is held")
            assert "holds it" in text, text
        finally:
            lib.group_kill(holder)


# A process with an IPC namespace of its own, and what a family has in the registry.
LISTED = """mount -t tmpfs -o mode=755 none /run && mkdir -m 700 /run/kylinx && {{ sleep 1000 & }} && p=$! &&
set -- $(cat /proc/$p/stat) && shift 21 && f=/run/kylinx/$p-$1.x && set -- $(stat -L -c "%d %i" /proc/$p/ns/ipc) &&
printf "kylinx 1\\nprogram /bin/sleep\\nfamily 3 1 1\\nipc $1 $2\\nend\\n" >$f && exec 8<$f && flock -s 8 && {}; kill $p"""


@test
def few_descriptors_hide_no_family():
    look = 'for n in 3 4 5 6 7 8 9 20; do (exec 8<&- 2>&1; ulimit -n $n; exec $K ps); echo "status $? $n"; done; ls /run/kylinx'
    r = in_namespace("exec unshare -i sh -c \"$SCRIPT\"", env={"SCRIPT": LISTED.format(look)})
    parts = re.split(r"status (\d+) \d+\n", r.out.decode())
    for text, status in zip(parts[:-1:2], parts[1::2]):
        assert status == "125" and ERROR.fullmatch(text) or status == "0" and "sleep 1000" in text, r.out
    expect((parts[1], parts[15], parts[16].count("\n")), ("125", "0", 1), f"{r.out} {r.err}")


@test
def setuid():
    if os.geteuid():
        raise Skip("run as root")
    with lib.Dir() as d:
        os.chmod(d, 0o755)
        shutil.copy(lib.KYLINX, d + "/k")
        for mode in (0o4755, 0o2755, 0o755):
            os.chmod(d + "/k", mode)
            r = lib.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", d + "/k", "--version"], cwd="/")
            if mode == 0o755:
                expect((r.status, r.err), (0, b""), "without")
            elif not os.statvfs(d).f_flag & os.ST_NOSUID:
                assert "setuid" in one_error(r, 125, "setuid, setgid"), r.err


@test
def errors_of_the_machine():
    one_error(in_namespace("mount -t tmpfs none /proc; exec $K run --log error -- true"), 125, "no /proc")
    one_error(in_namespace("mount -t tmpfs none /dev; exec $K run -- true"), 125, "no /dev/kvm")
    one_error(in_namespace("mount --bind /dev/null /dev/kvm; exec $K run -- true"), 125, "another /dev/kvm")
    one_error(shell("ulimit -n 64; exec \"$@\" true"), 125, "few descriptors")
    # Who may raise hard limits has none.
    lower = "exec setpriv --bounding-set=-sys_resource" if not os.geteuid() else "exec"
    one_error(shell(f"ulimit -v 1000000; {lower} \"$@\" true"), 125, "little address space")
    one_error(shell(f"ulimit -d 400000; {lower} \"$@\" true"), 125, "little data")
    # Soft ones are the program's, and do not concern what the monitor reserves.
    for limits in "-Sv 4000000", "-Sd 50000":
        script = f"ulimit {limits}; \"$@\" bash -c 'ulimit {limits[:3]}; (ulimit {limits[:3]})'"
        got, want = shell(script), shell(script, native=True)
        expect((got.status, got.out, got.err), (want.status, want.out, want.err), limits)


@test
def disk_full_for_the_trace():
    """The program does not care; who wants the trace or the statistics is told that they are not complete."""
    for what, word in (("--strace", "trace"), ("--stats", "statistics")):
        r = shell(f"exec $K run {what}=/dev/full -- sh -c 'echo ok; exit 3'")
        expect((r.status, r.out, r.err.count(b"\n")), (3, b"ok\n", 1), what + r.err.decode())
        assert re.match(rf"kylinx: warn pvm=\d+ \w+: the {word} .*: No space left on device\n$", r.err.decode()), r.err


@test
def limit_on_the_size_of_files():
    """It is for what the program writes, not for what the monitor makes."""
    look = "ulimit -Sf 0; /bin/true && echo ran; wc -l </proc/self/limits; cat /proc/self/maps | grep -c stack"
    own = "f=/dev/shm/$$; ulimit -f; echo x >$f && cat $f; head -c 60000 /dev/zero >$f; echo $?; rm $f"
    for script in (f"\"$@\" sh -c '{look}'", f"ulimit -Sf 100; exec \"$@\" sh -c '{own}'"):
        got = [shell(f"({script}) 2>&1 | cat", native=native) for native in (True, False)]
        expect(got[1].out, got[0].out, script)
    with lib.Dir() as d:
        for option in ("strace", "stats"):
            # The limit is the file's, too; no signal of it is the program's.
            r = shell(f"(ulimit -Sf 1; exec $K run --{option}={d}/{option} -- sh -c 'ls -l /etc >/dev/null; exit 3')")
            expect(r.status, 3, f"{option}: {r.err}")
            assert os.path.getsize(f"{d}/{option}") <= 512, option
    for low, words in ((1000, "file size"), (200000, "can't be shared")):
        if shutil.which("setpriv") and not os.geteuid():
            r = shell(f"(ulimit -f {low}; exec setpriv --bounding-set=-sys_resource $K run -- /bin/echo ok) 2>&1 | cat")
            assert words in r.out.decode() and (b"ok\n" in r.out) == (low > 50000), r.out
    r = shell('("$@" sh -c "ulimit -f 0; exec /bin/true"; echo $?) 2>&1 | cat')
    assert r.out.endswith(b"File too large\n126\n"), r.out


@test
def nested():
    text = one_error(lib.run(lib.pvm([lib.KYLINX, "run", "true"]), cwd="/"), 125, "kylinx in a pVM")
    assert "this is a pVM already" in text, text


@test
def store_that_can_not_be_used():
    """The program runs all the same; what is wrong is one line, if anything."""
    for value in ("/etc/passwd", "relative", "", "/proc/x", "/dev/null/x"):
        r = shell("exec \"$@\" echo ok", env={"KYLINX_STORE": value})
        expect((r.status, r.out), (0, b"ok\n"), f"KYLINX_STORE={value}")
        assert r.err.count(b"\n") <= 1 and (not r.err or r.err.startswith(b"kylinx: warn ")), r.err
    full = "d=$(mktemp -d) && mount -t tmpfs -o size=64k,mode=700 none $d &&" \
           " head -c 99999 /dev/zero >$d/x 2>/dev/null; export KYLINX_STORE=$d; for i in 1 2 3; do" \
           " $K run -- /usr/bin/env true || exit; done; umount $d; rmdir $d"
    r = in_namespace(full)
    expect((r.status, r.out), (0, b""), "full store: " + r.err.decode())
    assert all(line.startswith(b"kylinx: warn ") for line in r.err.splitlines()), r.err


@test
def directories_of_proc():
    """By one of those, openat("self/mem") would be the monitor's."""
    text = one_error(shell("exec 5</proc; exec \"$@\" true"), 125, "an inherited one")
    assert "descriptor 5" in text, text
    code = "import array, socket, sys\ns = socket.socket(fileno=0)\nm, fds, flags, _ = socket.recv_fds(s, 10, 4)\n" \
           "print(m, len(fds), bool(flags & socket.MSG_CTRUNC))"
    for path, want in (("/proc", "b'x' 0 True"), ("/proc/self/task", "b'x' 0 True"), ("/usr", "b'x' 1 False")):
        a, b = socket.socketpair()
        p = subprocess.Popen([lib.KYLINX, "run", "--", "/usr/bin/python3", "-c", code], cwd="/", stdin=b,
                             stdout=subprocess.PIPE, text=True)
        fd = os.open(path, os.O_RDONLY)
        socket.send_fds(a, [b"x"], [fd])
        out = p.communicate(timeout=lib.limit(180))[0]
        os.close(fd)
        a.close()
        b.close()
        expect(out.strip(), want, f"a message with {path}")


# ---- what is not there ---------------------------------------------------------------------------------------------

@test
def closed_streams():
    with lib.Dir() as d:
        for closed in ("<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- 2>&-", "<&- >&- 2>&-"):
            got = []
            for native in (True, False):
                path = os.path.join(d, "out")
                look = "import os, sys\nf = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)\ngot = []\n" \
                       "for n in range(1024):\n" \
                       " try:\n  os.fstat(n)\n  got.append(n)\n except OSError: pass\n" \
                       "os.write(f, str(got).encode())\n"
                cmd = f'"$@" /usr/bin/python3 -c "$LOOK" {path} {closed}'
                if not native:
                    cmd = cmd.replace('"$@"', f'"$K" run --volume {d}:{d} --')
                r = shell(cmd, env={"LOOK": look}, native=native)
                got.append((r.status, open(path).read() if os.path.exists(path) else None))
                if os.path.exists(path):
                    os.unlink(path)
            expect(got[1], got[0], f"descriptors of a program started with {closed}")


@test
def without_variables():
    for script, want in (("env -u HOME \"$@\" sh -c 'echo ${HOME-none}'", b"none\n"),
                         ("env -u PATH $K run -- /bin/echo ok", b"ok\n"), ("env -i $K run -- /usr/bin/env", b""),
                         ("PATH= exec $K run -- /bin/echo ok", b"ok\n")):
        r = shell(script)
        expect((r.status, r.out, r.err), (0, want, b""), script)


@test
def without_a_directory():
    script = "d=$(mktemp -d); cd $d; rmdir $d; \"$@\" /usr/bin/python3 -c '" \
             "import os\ntry: print(os.getcwd())\nexcept OSError as e: print(e.errno)'"
    expect(shell(script).out, b"2\n", "directory that was removed")
    expect(shell(script, native=True).out, b"2\n", "natively")


@test
def arguments():
    odd = ["", " ", "\udcff\udc80", "a\nb", "-x", "--", "x" * 131071]
    show = "import sys, hashlib; print([hashlib.md5(os.fsencode(a)).hexdigest() for a in sys.argv[1:]])"
    got = [lib.run([*run, "/usr/bin/python3", "-c", "import os; " + show, *odd], cwd="/")
           for run in ([], [lib.KYLINX, "run", "--"])]
    expect((got[1].status, got[1].out), (0, got[0].out), "arguments")
    many = ["x" * 1000] * 1000
    r = lib.run([lib.KYLINX, "run", "--", "sh", "-c", "echo $#", "sh", *many], cwd="/")
    expect((r.status, r.out), (0, b"1000\n"), "a megabyte of them")


# ---- who starts it ------------------------------------------------------------------------------------------------

@test
def by_other_programs():
    for how in ("setsid -w", "nohup", "timeout 150", "env -i", "nice -n 5", "ionice -c 3",
                f"taskset {1 << min(os.sched_getaffinity(0)):x}",
                "strace -f -o /dev/null", "stdbuf -o0", "su -s /bin/sh root -c '\"$0\" \"$@\"' --"):
        if not shutil.which(how.split()[0]):
            continue
        if how.startswith("su ") and os.geteuid():
            continue
        r = shell(f"exec {how} $K run -- /bin/sh -c 'echo ok; exit 3'")
        expect((r.status, r.out), (3, b"ok\n"), how)


@test
def by_a_supervisor():
    """docs/examples/supervise.py does what docs/embedding.md says."""
    r = lib.run(["/usr/bin/python3", os.path.join(lib.TOP, "docs/examples/supervise.py"), lib.KYLINX], 300, cwd="/")
    out = r.out.decode().splitlines()
    expect((r.status, out[:4]), (0, ["answer: 4999950000", "worker: exited with 0 and wrote 'done\\n' in 1 process",
                                     "members: 2", "worker: killed by SIGKILL"]), r.why())
    assert len(out) == 5 and out[4].startswith("worker: not started: kylinx: /no/such/program: No such file"), out


@test
def by_gdb():
    if not shutil.which("gdb"):
        raise Skip("gdb is not installed")
    r = shell("exec gdb -q -batch -nx -ex 'handle all nostop noprint pass' -ex run --args \"$@\" /bin/echo ok")
    # gdb may miss the end of a process whose threads end with it; then it says so instead of "exited normally".
    assert b"ok\n" in r.out and (b"exited normally" in r.out or b"No unwaited-for children left" in r.out), \
        r.why() + r.out.decode()[-300:]


@test
def ignored_sigpipe():
    script = "trap '' PIPE; \"$@\" /usr/bin/python3 -c '\nimport os, signal\n" \
             "print(signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN)'"
    expect(shell(script).out, shell(script, native=True).out, "SIGPIPE")


@test
def reader_of_the_log_is_gone():
    """It is the monitor that writes there, so the program goes on."""
    code = "import ctypes, signal, time\nsignal.signal(signal.SIGPIPE, signal.SIG_DFL)\ninput()\n" \
           "ctypes.CDLL(None).syscall(425, 1, 0)\nprint('alive')"
    r, w = os.pipe()
    p = subprocess.Popen([lib.KYLINX, "run", "--", "/usr/bin/python3", "-c", code], cwd="/", stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, stderr=w)
    os.close(r)
    os.close(w)
    out, _ = p.communicate(b"\n", 180)
    expect((p.returncode, out), (0, b"alive\n"), "program whose log nobody reads")


@test
def daemons_let_go_of_output():
    """$(...) waits for the end of its pipe, which nobody who has gone to the background may have."""
    scripts = {"shell": ["sh", "-c", "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"],
               "fork": ["/usr/bin/python3", "-c", "import os, time\npid = os.fork()\nif pid:\n print(pid, flush=True)\n"
                        " os._exit(0)\nos.setsid()\nos.closerange(0, 3)\ntime.sleep(1000)"],
               "spawn, then fork": ["/usr/bin/python3", "-c", "import os, subprocess, time\npid = os.fork()\nif pid:\n"
                                    " print(pid, flush=True)\n os._exit(0)\nos.setsid()\nsubprocess.call(['true'])\n"
                                    "n = os.open('/dev/null', 2)\nfor i in 0, 1, 2: os.dup2(n, i)\ntime.sleep(1000)"]}
    for argv in scripts.values():
        p = subprocess.run([lib.KYLINX, "run", "--", *argv], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, timeout=lib.limit(300), start_new_session=True)
        os.kill(int(p.stdout), signal.SIGKILL)


@test
def terminal_hangs_up():
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir("/")
        script = "trap 'exit 7' HUP; echo up; while :; do sleep 0.1; done"
        os.execv(lib.KYLINX, ["kylinx", "run", "--", "sh", "-c", script])
    text = b""
    while b"up" not in text:
        text += os.read(fd, 100)
    os.close(fd)
    expect(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 7, "status after a hangup")


@test
def terminal_has_a_name():
    """The host's terminal is /dev/console: not a number of the pVM's own pseudoterminals, which may be taken there."""
    code = "import os\ninput()\nprint(os.ttyname(0), os.ttyname(1), os.readlink('/proc/self/fd/2'))\n" \
           "m, s = os.openpty()\nprint(os.ttyname(s))\nos.write(os.open('/dev/console', os.O_WRONLY), b'written\\n')\n" \
           "print(os.get_terminal_size(os.open('/dev/console', os.O_RDONLY)).columns)"
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir("/")
        os.execv(lib.KYLINX, ["kylinx", "run", "--", "/usr/bin/python3", "-c", code])
    termios.tcsetwinsize(fd, (20, 77))
    os.write(fd, b"\n")
    text = b""
    with contextlib.suppress(OSError):
        while more := os.read(fd, 1000):
            text += more
    os.close(fd)
    expect(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0, text)
    expect(text.split(), b"/dev/console /dev/console /dev/console /dev/pts/0 written 77".split(), "its name and the others'")
    expect(shell('"$@" test -e /dev/console').status, 1, "without a terminal it is not there")


@test
def stopped_and_continued():
    p = subprocess.Popen([lib.KYLINX, "run", "--", "sh", "-c", "echo up; sleep 1; read x; echo done; exit 4"], cwd="/",
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    p.stdout.readline()
    p.send_signal(signal.SIGSTOP)
    expect(os.waitpid(p.pid, os.WUNTRACED)[1] & 0xff, 0x7f, "stopped")
    time.sleep(1.5)
    p.send_signal(signal.SIGCONT)
    expect((p.communicate(b"\n", 180)[0], p.returncode), (b"done\n", 4), "continued")


def promised(pid):
    """KiB that a host with vm.overcommit_memory = 2 has to have for that process: what is writable, and private or no file's."""
    kib = 0
    with open(f"/proc/{pid}/maps") as f:
        for line in f:
            where, rights, _, _, _, *name = line.split(None, 5)
            if rights[1] == "w" and (rights[3] == "p" or name[:1] == ["/dev/zero (deleted)\n"]):
                start, end = (int(x, 16) for x in where.split("-"))
                kib += (end - start) // 1024
    return kib


@test
def little_is_promised():
    """A process and its child that have nothing; what they may need once is no more than reserved."""
    p = subprocess.Popen([lib.KYLINX, "run", "--", "sh", "-c", "sleep 100 & echo up; wait"], cwd="/", stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, start_new_session=True)
    try:
        p.stdout.readline()
        with open(f"/proc/{p.pid}/task/{p.pid}/children") as f:
            pids = [p.pid, *(int(x) for x in f.read().split())]
        each = [promised(x) for x in pids]
        assert len(each) > 1 and max(each) < 40960, f"KiB: {each}"
    finally:
        lib.group_kill(p)
        p.stdout.close()


if __name__ == "__main__":
    sys.exit(lib.run_tests(tests, args.only, native=("errors_of_use", "errors_are_whole", "errors_of_limits", "setuid", "few_descriptors_hide_no_family",
                                                         "errors_of_what_waits")))
