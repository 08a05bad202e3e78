#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Programs of many processes: shells, builds, git, Python's and Perl's processes, servers that fork, job control.

test_processes.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure. What a script prints is compared
with what it prints natively. After each test no process is left, and no file.
"""
import json
import os
import pty
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402

args = lib.arguments()

ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC",
       "TERM": "dumb", "HOME": "/tmp", "GIT_CONFIG_NOSYSTEM": "1"}
PY = "/usr/bin/python3"
tests = []


def test(fn):
    tests.append((fn.__name__, fn))
    return fn


def need(*programs):
    for p in programs:
        if not shutil.which(p, path=ENV["PATH"]):
            raise Skip(f"{p} is not installed")


def volume(d):
    return ["--volume", f"{d}:{d}"]


def options(d=None):
    return [*[a for k, v in ENV.items() for a in ("--env", f"{k}={v}")], *(volume(d) if d else [])]


def inside(argv, d=None, timeout=180, stdin=None):
    return lib.run(lib.pvm(argv, *options(d)), timeout, stdin=stdin, cwd=d or "/")


def outside(argv, d=None, timeout=180, stdin=None):
    return lib.run(["env", "-i", *[f"{k}={v}" for k, v in ENV.items()], *argv], timeout, stdin=stdin, cwd=d or "/")


def same(argv, d=None, timeout=180, stdin=None, err=True):
    """Natively and in a pVM: status, output, errors. Returns the output."""
    want = outside(argv, d, timeout, stdin)
    got = inside(argv, d, timeout, stdin)
    expect((got.status, got.out, got.err if err else b""), (want.status, want.out, want.err if err else b""), "pVM")
    return got.out.decode(errors="replace")


def write(d, name, text):
    path = os.path.join(d, name)
    with open(path, "w") as f:
        f.write(text)
    return path


# ---- shells -----------------------------------------------------------------------------------------------------

SCRIPTS = {
    "pipelines": "seq 1 1000 | sort -rn | head -3; echo a b c | tr ' ' '\\n' | while read x; do echo \"<$x>\"; done; "
                 "yes | head -n 100000 | wc -l; cat /etc/passwd | cat | cat | cat | cksum | wc -w",
    "exit codes": "true; echo $?; false; echo $?; (exit 42); echo $?; sh -c 'kill -9 $$'; echo $?; "
                  "sh -c 'kill -TERM $$'; "
                  "echo $?; nosuchprogram 2>/dev/null; echo $?; /etc/passwd 2>/dev/null; echo $?; true | false; "
                  "echo $?; "
                  "false | true; echo $?; ! false; echo $?; exit 9",
    "subshells": "x=1; (x=2; echo $x; (x=3; echo $x)); echo $x; { x=4; }; echo $x; cd /; (cd /etc; pwd); pwd; "
                 "(exit 3) || echo $?; echo $(echo $(echo $(echo deep)))",
    "here-documents": "cat <<E\nline $((1+1))\n$(echo sub)\nE\ncat <<'E'\n$raw\nE\ntr a-z A-Z <<E | rev\nabc\nE\n",
    "traps": "trap 'echo exit $?' EXIT; trap 'echo usr1' USR1; trap '' USR2; kill -USR1 $$; kill -USR2 $$; "
             "(trap - USR2; echo sub); trap 'echo int' INT; kill -INT $$; sh -c 'kill -USR1 $PPID'; echo after; exit 5",
    "background": "sleep 0.05 & p=$!; wait $p; echo $?; (exit 7) & wait $!; echo $?; sh -c 'kill -9 $$' & wait $!; "
                  "echo $?; "
                  "for i in 1 2 3; do (sleep 0.$((i * 2)); echo $i) & done | sort; wait; echo done; sleep 100 & kill $!; "
                  "wait $!; echo $?",
    "substitution": "a=$(seq 1 5); echo $a; b=`echo x; exit 3`; echo $? $b; for i in $(seq 20); "
                    "do n=$(expr $i \\* 2); done; "
                    "echo $n; echo \"$(cat <<E\nin $(echo in)\nE\n)\"",
    "set -e": "set -e; false || echo kept; if false; then :; fi; ! true || :; (echo sub; false; "
              "echo no) || echo rescued; "
              "sh -c 'set -e; false; echo no' || echo $?; false; echo not reached",
    "redirections": "d=$(mktemp -d); cd $d; exec 3>f; echo three >&3; exec 3>&-; cat f; exec 4<f; read x <&4; echo $x; "
                    "{ echo out; echo err >&2; } 2>&1 | sort; ls nosuch 2>/dev/null || echo failed; echo a >g; "
                    "echo b >>g; "
                    "cat g; : >g; wc -c <g; echo x | tee h | cat; cat h; exec >last; echo hidden; exec >&2; cd /; "
                    "rm -r $d",
    "loops": "i=0; while [ $i -lt 30 ]; do /bin/true; i=$((i+1)); done; echo $i; seq 5 | while read n; "
             "do echo $((n*n)); done; "
             "for f in /etc/host*; do basename $f; done | sort | head -2",
    "umask and cwd": "umask 027; sh -c umask; cd /usr; sh -c pwd; (cd lib && sh -c pwd); ulimit -n 100; "
                     "sh -c 'ulimit -n'",
}
BASH = {
    "arrays and process substitution": "a=(x y z); echo ${#a[@]} ${a[1]}; diff <(seq 3) <(seq 4); "
                                       "cat <(echo one) <(echo two); "
                                       "echo hi > >(cat); wait; read -r x < <(echo red); echo $x",
    "pipefail and PIPESTATUS": "set -o pipefail; false | true; echo $?; true | (exit 3) | (exit 4) | true; "
                               "echo ${PIPESTATUS[@]}; "
                               "seq 100000 | head -1; echo $?",
    "coproc, mapfile, wait -n": "coproc C { while read x; do echo got $x; done; }; echo a >&${C[1]}; "
                                "read y <&${C[0]}; echo $y; "
                                "eval \"exec ${C[1]}>&-\"; wait; mapfile -t m < <(seq 4); echo ${m[@]}; "
                                "(exit 5) & wait -n; echo $?",
    "traps": "trap 'echo CHLD' CHLD; set -m; (exit 1) & wait; trap - CHLD; trap 'echo ERR $?' ERR; false; "
             "trap 'echo DEBUG' DEBUG; "
             ":; trap - DEBUG; echo $BASHPID $$ | awk '{print $1==$2}'; f() { trap 'echo ret' RETURN; }; f",
    "many": "for i in {1..40}; do (exit $i) & p[$i]=$!; done; s=0; for i in {1..40}; do wait ${p[$i]}; "
            "s=$((s+$?)); done; echo $s",
}


def shell_test(shell, name, script):
    def run():
        need(shell)
        same([shell, "-c", script], err=name not in ("exit codes", "background"))
    run.__name__ = f"{shell}: {name}"
    tests.append((run.__name__, run))


for _name, _script in SCRIPTS.items():
    for _shell in ("dash", "bash"):
        shell_test(_shell, _name, _script)
for _name, _script in BASH.items():
    shell_test("bash", _name, _script)


@test
def busybox_shell():
    need("busybox")
    same(["busybox", "sh", "-c", "busybox seq 5 | busybox sort -r | busybox head -2; (exit 4); echo $?; "
          "for i in 1 2 3; do busybox true; done; busybox sleep 0.01 & wait; echo $(busybox echo sub)"])


@test
def small_tools():
    same(["find", "/etc", "-maxdepth", "1", "-name", "host*", "-exec", "basename", "{}", ";"])
    same(["sh", "-c", "seq 1 40 | xargs -n1 -P4 sh -c 'echo $(($1 * 2))' x | sort -n"])
    same(["sh", "-c", "find /etc -maxdepth 1 -name 'p*' -print0 | xargs -0 -n2 echo | wc -l; xargs false </etc/hostname; echo $?"])
    same(["sh", "-c", "timeout 0.2 sleep 1000; echo $?; timeout 100 sh -c 'exit 3'; echo $?; "
          "timeout -s KILL 0.2 sleep 1000; echo $?; "
          "timeout -s CONT -k 0.1 0.2 sleep 1000; echo $?"])
    same(["env", "-i", "A=1", "/usr/bin/env"])
    same(["sh", "-c", "nice -n 5 nice; nice -n 3 sh -c 'nice'; nohup echo out 2>/dev/null; setsid -w echo session; "
          "env -u HOME sh -c 'echo ${HOME-unset}'; stdbuf -oL echo line; time -p true 2>/dev/null"])
    same(["sh", "-c", "flock /tmp/kx-lock sh -c 'echo locked'; rm -f /tmp/kx-lock; echo a | tee /dev/stderr 2>&1 | wc -l"])


# ---- builds --------------------------------------------------------------------------------------------------------

def project(d):
    names = [f"m{i}" for i in range(8)]
    for n in names:
        write(d, n + ".c", f"#include <stdio.h>\nint {n}(int x) {{ return x * {int(n[1:]) + 2}; }}\n")
    write(d, "main.c", "#include <stdio.h>\n" + "".join(f"int {n}(int);\n" for n in names) + "int main(void) { int s = 0;\n" +
          "".join(f"s += {n}(3);\n" for n in names) + 'printf("%d\\n", s); return 0; }\n')
    write(d, "Makefile", "CC = gcc\nCFLAGS = -O1\nOBJ = main.o " + " ".join(n + ".o" for n in names) +
          "\nprog: $(OBJ)\n\t$(CC) -o $@ $(OBJ)\n%.o: %.c\n\t$(CC) $(CFLAGS) -c -o $@ $<\nclean:\n\trm -f prog *.o\n")


@test
def make_project():
    need("make", "gcc")
    with lib.Dir() as d:
        project(d)
        r = inside(["make", "-s", "-j4"], d, 300)
        expect(r.status, 0, f"make ({r.why()})")
        expect(outside(["./prog"], d).out, inside(["./prog"], d).out, "the program")
        r = inside(["make", "-j4"], d)
        assert b"up to date" in r.out, r.out
        write(d, "m0.c", "int m0(int x) { return x +; }\n")
        r = inside(["make", "-s", "-j4"], d)
        expect(r.status, 2, "make with an error")
        assert b"m0.c:1" in r.err, r.err
        expect(inside(["make", "-s", "clean"], d).status, 0, "make clean")


@test
def git_repository():
    need("git")
    script = ("set -e; git init -q -b main r; cd r; git config user.name a; git config user.email a@b; "
              "git config gc.auto 0; "
              "for i in 1 2 3; do seq 1 $((i * 1000)) >f; echo $i >g$i; git add .; "
              "git commit -q -m \"c$i\" --date=2020-01-01T00:00Z; "
              "done; git log --format=%s; git status --short; git branch b; git checkout -q b; echo b >b; git add b; "
              "git commit -q -m b; git checkout -q main; echo m >m; git add m; git commit -q -m m; "
              "git merge -q -m merge b; "
              "ls; cd ..; git clone -q r c; cd c; git log --format=%s | wc -l; git diff HEAD~1 --stat; git gc -q; "
              "git fsck; "
              "git grep -c 100 f; git stash list; git archive HEAD | tar t; cd ../r; git pull -q ../c main; git rev-parse HEAD^{tree}")
    got = []
    for run in (outside, inside):
        with lib.Dir() as d:
            r = run(["sh", "-c", script], d, 300)
            expect(r.status, 0, f"git ({r.why()})")
            got.append((r.out, r.err))
    expect(got[1], got[0], "output")


# ---- Python -----------------------------------------------------------------------------------------------------------

PYTHON = {
    "subprocess": """
import subprocess as s, sys, os, signal
print(s.run(["echo", "a b"], capture_output=True, text=True))
print(s.check_output("seq 3 | tac", shell=True))
p = s.Popen(["cat"], stdin=s.PIPE, stdout=s.PIPE); print(p.communicate(b"x" * 300000)[0] == b"x" * 300000)
try: s.run(["sleep", "10"], timeout=0.2)
except s.TimeoutExpired: print("timeout")
p = s.Popen(["sleep", "10"]); p.terminate(); print(p.wait())
try: s.run(["/nonexistent"])
except FileNotFoundError as e: print(e)
print(s.run(["sh", "-c", "echo $X; pwd; ulimit -n"], env={"X": "y", "PATH": os.environ["PATH"]}, cwd="/usr", stdout=s.PIPE,
      preexec_fn=lambda: __import__("resource").setrlimit(7, (99, 99))).stdout)
print(s.run(["sh", "-c", "echo $(ls /proc/self/fd | wc -l)"], close_fds=True, capture_output=True).returncode)
print(s.Popen(["true"], start_new_session=True).wait(), [s.call(["sh", "-c", f"exit {i}"]) for i in range(20)])
r, w = os.pipe(); print(s.run(["sh", "-c", f"echo inherited >&{w}"], pass_fds=[w]).returncode, os.read(r, 20))
""",
    "os": """
import os, sys, signal, time
sys.stdout.reconfigure(line_buffering=True)
for i in range(3):
    p = os.fork()
    if not p: os._exit(i)
    print(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]))
p = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 5"], os.environ); print(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]))
print(os.spawnlp(os.P_WAIT, "sh", "sh", "-c", "kill -TERM $$"), os.system("exit 3"), os.popen("echo popen").read())
p = os.fork()
if not p:
    while True: signal.pause()
fd = os.pidfd_open(p); signal.pidfd_send_signal(fd, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitid(os.P_PIDFD, fd, os.WEXITED).si_status))
sys.stdout.flush()
os.execlp("echo", "echo", "after", "exec")
""",
    "multiprocessing": """
import multiprocessing as mp, sys, os, time
from multiprocessing import shared_memory
def square(x): return x * x
def produce(q, n):
    for i in range(n): q.put((i, "x" * 100))
    q.put(None)
def count(v, l, n):
    for _ in range(n):
        with l: v.value += 1
def fill(name): m = shared_memory.SharedMemory(name); m.buf[:4] = b"kylx"; m.close()
def managed(d, l, k): d[k] = k * 2; l.append(k)
def fail(): sys.exit(4)
def talk(c):
    while (x := c.recv()) is not None: c.send(x + 1)
def meet(b, e): b.wait(); e.wait()
if __name__ == "__main__":
    ctx = mp.get_context(sys.argv[1])
    with ctx.Pool(4) as p: print(sum(p.map(square, range(500), 10)), p.apply(square, (7,)), sorted(p.imap_unordered(square, range(5))))
    q = ctx.Queue(); w = ctx.Process(target=produce, args=(q, 500)); w.start(); n = 0
    while q.get() is not None: n += 1
    w.join(); print(n, w.exitcode)
    v, l = ctx.Value("i", 0, lock=False), ctx.Lock(); ps = [ctx.Process(target=count, args=(v, l, 200)) for _ in range(3)]
    [p.start() for p in ps]; [p.join() for p in ps]; print(v.value)
    m = shared_memory.SharedMemory(create=True, size=4096); p = ctx.Process(target=fill, args=(m.name,)); p.start(); p.join()
    print(bytes(m.buf[:4])); m.close(); m.unlink()
    with ctx.Manager() as g:
        d, l = g.dict(), g.list(); ps = [ctx.Process(target=managed, args=(d, l, k)) for k in range(3)]
        [p.start() for p in ps]; [p.join() for p in ps]; print(sorted(d.items()), sorted(l))
    p = ctx.Process(target=fail); p.start(); p.join(); print(p.exitcode)
    p = ctx.Process(target=time.sleep, args=(100,)); p.start(); p.kill(); p.join(); print(p.exitcode)
    a, b = ctx.Pipe(); p = ctx.Process(target=talk, args=(b,)); p.start(); x = 0
    for _ in range(300): a.send(x); x = a.recv()
    a.send(None); p.join(); print(x)
    b, e = ctx.Barrier(3), ctx.Event(); ps = [ctx.Process(target=meet, args=(b, e)) for _ in range(2)]; [p.start() for p in ps]
    b.wait(); e.set(); [p.join() for p in ps]; print([p.exitcode for p in ps])
""",
    "concurrent.futures": """
import concurrent.futures as cf, asyncio, os, sys
def f(x): return sum(i * i for i in range(x))
def bad(): raise ValueError("no")
def die(): os._exit(1)
async def procs():
    ps = [await asyncio.create_subprocess_exec("sh", "-c", f"sleep 0.0{i}; echo {i}; exit {i}", stdout=-1) for i in range(5)]
    for p in ps: print((await p.communicate())[0], p.returncode)
if __name__ == "__main__":
    with cf.ProcessPoolExecutor(4) as e:
        print(sum(e.map(f, range(100))))
        try: e.submit(bad).result()
        except ValueError as x: print(x)
    with cf.ProcessPoolExecutor(2) as e:
        try: e.submit(die).result()
        except cf.process.BrokenProcessPool: print("broken")
    asyncio.run(procs())
""",
}


def python_test(name, start=None):
    def run():
        need(PY)
        with lib.Dir() as d:
            path = write(d, "t.py", PYTHON[name])
            same([PY, "-I", path, *([start] if start else [])], d, 300)
    run.__name__ = f"python3: {name}" + (f" by {start}" if start else "")
    tests.append((run.__name__, run))


for _name in PYTHON:
    for _start in ("fork", "spawn", "forkserver") if _name == "multiprocessing" else (None,):
        python_test(_name, _start)


@test
def perl():
    need("perl")
    same(["perl", "-e", """
        use POSIX ":sys_wait_h"; $| = 1;
        my $p = fork; if (!$p) { print "child\\n"; exit 3 } waitpid $p, 0; print $? >> 8, "\\n";
        pipe my $r, my $w; if (!fork) { close $r; print $w "line $_\\n" for 1..5; exit } close $w; print while <$r>; wait;
        print system("exit 4") >> 8, `echo backticks`; open my $f, "-|", "seq 3 | tac"; print <$f>; close $f;
        open $f, "|-", "sort -r"; print $f "$_\\n" for qw(a c b); close $f; print "$?\\n";
        $SIG{CHLD} = sub { while (waitpid(-1, WNOHANG) > 0) { $n++ } }; for (1..10) { exit if !fork }
        select undef, undef, undef, 0.01 while $n < 10; print "$n\\n"; $SIG{CHLD} = "DEFAULT"; $SIG{ALRM} = sub { die "alarm\\n" };
        eval { alarm 1; sleep 10 }; print $@; $p = fork; if (!$p) { sleep 100 } kill TERM => $p; wait; print $? & 127, "\\n";
        exec "echo", "exec";"""])


# ---- servers --------------------------------------------------------------------------------------------------------

def redis_call(port, *words):
    """One request; the answer as redis-cli --raw prints it."""
    r = lib.run(["redis-cli", "-p", str(port), "--raw", *words], 180)
    expect(r.status, 0, f"redis-cli {words[0]} ({r.why()})")
    return r.out.decode().rstrip("\n")


def redis_wait(port, field, value, timeout=180):
    end = time.monotonic() + lib.limit(timeout)
    while time.monotonic() < end:
        if f"{field}:{value}" in redis_call(port, "INFO", "persistence").split():
            return
        time.sleep(0.1)
    raise AssertionError(f"{field} is not {value}: {redis_call(port, 'INFO', 'persistence')}")


def redis_everything(port):
    return redis_call(port, "EVAL", "local k = redis.call('KEYS', '*') table.sort(k) local s = '' for _, n in ipairs(k) do "
                      "s = redis.sha1hex(s .. n .. '=' .. redis.call('GET', n)) end return #k .. ' ' .. s", "0")


def redis_server(d, port, *more):
    return ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", d, "--save", "", *more]


def redis_fill(port, n):
    expect(redis_call(port, "EVAL", f"for i = 1, {n} do redis.call('SET', 'key:' .. i, string.rep(i .. ':', 20)) end return 1", "0"),
           "1", "EVAL")


@test
def redis_bgsave():
    need("redis-server", "redis-cli", "redis-benchmark")
    with lib.Dir() as d:
        port = lib.free_port()
        with lib.Server(lib.pvm(redis_server(d, port), *options(d)), port, cwd=d) as s:
            redis_fill(port, 20000)
            before = redis_everything(port)
            load = subprocess.Popen(["redis-benchmark", "-p", str(port), "-t", "lpush", "-n", "3000", "-c", "10", "-q"],
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                for _ in range(2):
                    assert "started" in redis_call(port, "BGSAVE")
                    redis_wait(port, "rdb_bgsave_in_progress", 0)
                redis_wait(port, "rdb_last_bgsave_status", "ok")
            finally:
                expect(load.wait(lib.limit(300)), 0, "redis-benchmark")
            redis_call(port, "DEL", "mylist")
            redis_call(port, "BGSAVE")
            redis_wait(port, "rdb_bgsave_in_progress", 0)
            redis_wait(port, "rdb_last_bgsave_status", "ok")
            redis_call(port, "FLUSHALL")
            redis_fill(port, 10)  # of what came later nothing is in the file
        expect(s.status, 0, f"redis-server ({s.status})")
        with lib.Server(redis_server(d, port), port, cwd=d) as s:
            expect(redis_everything(port), before, "loaded natively")


@test
def redis_rewrite():
    need("redis-server", "redis-cli")
    with lib.Dir() as d:
        port = lib.free_port()
        with lib.Server(lib.pvm(redis_server(d, port, "--appendonly", "yes"), *options(d)), port, cwd=d) as s:
            for _ in range(3):
                redis_fill(port, 2000)
            assert "started" in redis_call(port, "BGREWRITEAOF")
            redis_wait(port, "aof_rewrite_in_progress", 0)
            redis_wait(port, "aof_last_bgrewrite_status", "ok")
            before = redis_everything(port)
        expect(s.status, 0, "redis-server")
        with lib.Server(redis_server(d, port, "--appendonly", "yes"), port, cwd=d):
            expect(redis_everything(port), before, "loaded natively")


def http_get(port, path):
    with socket.create_connection(("127.0.0.1", port), lib.limit(60)) as s:
        s.sendall(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        data = b""
        while chunk := s.recv(65536):
            data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0].decode(), body


@test
def nginx():
    need("nginx")
    with lib.Dir() as d:
        port = lib.free_port()
        os.mkdir(os.path.join(d, "www"))
        body = random.Random(3).randbytes(300000)
        with open(os.path.join(d, "www/big"), "wb") as f:
            f.write(body)
        conf = (f"daemon off; master_process on; worker_processes 2; pid {d}/pid; error_log {d}/error.log; user root;\n"
                "events { worker_connections 64; }\nhttp { access_log off; client_body_temp_path DIR/t1; "
                "proxy_temp_path DIR/t2; "
                "fastcgi_temp_path DIR/t3; uwsgi_temp_path DIR/t4; "
                "scgi_temp_path DIR/t5;\nserver { listen 127.0.0.1:PORT; root DIR/www; "
                "location /v { return 200 'VERSION'; } } }\n").replace("DIR", d).replace("PORT", str(port))
        path = write(d, "nginx.conf", conf.replace("VERSION", "one"))
        with lib.Server(lib.pvm(["nginx", "-p", d, "-c", path], *options(d)), port, cwd=d, stop=signal.SIGQUIT) as s:
            expect(http_get(port, "/v"), ("HTTP/1.1 200 OK", b"one"), "GET /v")
            for _ in range(20):
                expect(http_get(port, "/big") == ("HTTP/1.1 200 OK", body), True, "GET /big")
            expect(http_get(port, "/no")[0], "HTTP/1.1 404 Not Found", "GET /no")
            await_(lambda: len(family(s.p.pid)) == 3, "two workers")
            workers = family(s.p.pid)
            write(d, "nginx.conf", conf.replace("VERSION", "two"))
            s.p.send_signal(signal.SIGHUP)
            await_(lambda: http_get(port, "/v")[1] == b"two", "the new configuration")
            await_(lambda: len(family(s.p.pid)) == 3 and len(set(family(s.p.pid)) & set(workers)) == 1, "new workers")
            os.kill([p for p in family(s.p.pid) if p != s.p.pid][0], signal.SIGKILL)
            await_(lambda: len(family(s.p.pid)) == 3, "a worker instead of the one that was killed")
            expect(http_get(port, "/v")[1], b"two", "GET /v after that")
        expect(s.status, 0, f"nginx, SIGQUIT; {lib.read(d + '/error.log')}")


# ---- from the host ------------------------------------------------------------------------------------------------

def await_(what, name, timeout=90):
    end = time.monotonic() + lib.limit(timeout)
    while time.monotonic() < end:
        if what():
            return
        time.sleep(0.05)
    raise AssertionError(f"{name}: not within {lib.limit(timeout):.0f} s")


def family(pid):
    """The process and its descendants."""
    found, more = [], [pid]
    while more:
        p = more.pop()
        found.append(p)
        for t in lib.names(f"/proc/{p}/task"):
            more += [int(c) for c in lib.read(f"/proc/{p}/task/{t}/children").split()]
    return found


def sleeping(pid):
    """How many descendants are sleep(1), no fork that is to become one."""
    return sum(lib.read(f"/proc/{p}/comm") == "sleep\n" for p in family(pid))


def start(argv, d=None, stdin=subprocess.DEVNULL, **kw):
    return subprocess.Popen(lib.pvm(argv, *options(d)), stdin=stdin, start_new_session=True, **kw)


@test
def sigterm_to_the_root():
    """The root's default action ends it; its children go on, as natively, until their group is signalled."""
    p = start(["sh", "-c", "sleep 100 & sleep 100 & echo up; wait; exit 1"], stdout=subprocess.PIPE)
    expect(p.stdout.readline(), b"up\n", "output")
    await_(lambda: sleeping(p.pid) == 2, "two children")
    all_ = family(p.pid)
    p.terminate()
    expect(p.wait(lib.limit(60)), -signal.SIGTERM, "status")
    left = [q for q in all_[1:] if os.path.exists(f"/proc/{q}")]
    os.killpg(p.pid, signal.SIGTERM)
    await_(lambda: not any(alive(q) for q in left), "the end of the group")
    p.stdout.close()


def alive(pid):
    stat = lib.read(f"/proc/{pid}/stat")
    return bool(stat) and stat.rpartition(")")[2].split()[0] not in "ZX"


@test
def sigterm_handled():
    p = start(["bash", "-c", "trap 'kill $(jobs -p); wait; echo bye; exit 5' TERM; sleep 100 & sleep 100 & echo up; wait"],
              stdout=subprocess.PIPE)
    expect(p.stdout.readline(), b"up\n", "output")
    await_(lambda: sleeping(p.pid) == 2, "two children")
    all_ = family(p.pid)
    p.terminate()
    expect((p.wait(lib.limit(60)), p.stdout.read()), (5, b"bye\n"), "status, output")
    await_(lambda: not any(alive(q) for q in all_), "the end of all")
    p.stdout.close()


@test
def kill_a_grandchild():
    p = start(["sh", "-c", "sh -c 'sleep 100; echo $?'; echo $?"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    await_(lambda: sleeping(p.pid) == 1, "three generations")
    os.kill(next(q for q in family(p.pid) if lib.read(f"/proc/{q}/comm") == "sleep\n"), signal.SIGKILL)
    expect((p.stdout.read(), p.wait(lib.limit(60))), (b"137\n0\n", 0), "output")
    p.stdout.close()


@test
def stop_and_continue():
    p = start(["sh", "-c", "sleep 0.3 & echo up; wait; read x; echo done"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    expect(p.stdout.readline(), b"up\n", "output")
    os.killpg(p.pid, signal.SIGSTOP)
    await_(lambda: all(lib.read(f"/proc/{q}/stat").rpartition(")")[2].split()[0] in "TZ" for q in family(p.pid)), "stopped")
    time.sleep(0.4)
    os.killpg(p.pid, signal.SIGCONT)
    expect((p.communicate(b"\n", lib.limit(60))[0], p.returncode), (b"done\n", 0), "output")
    p.stdout.close()


@test
def orphans_daemon():
    """A daemon outlives the root."""
    with lib.Dir() as d:
        r = inside(["sh", "-c", "(setsid sh -c 'echo >begun; until [ -e go ]; do sleep 0.05; done; echo late >late' &); "
                    "until [ -e begun ]; do sleep 0.05; done; echo early"], d)
        expect((r.status, r.out, os.listdir(d)), (0, b"early\n", ["begun"]), "root")
        write(d, "go", "")
        await_(lambda: lib.read(f"{d}/late") == "late\n", "the daemon's end")


class Terminal:
    """argv in a pVM on a terminal of its own."""

    def __init__(self, argv):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir("/")
            os.execv(lib.KYLINX, lib.pvm(argv, *options()))
        self.text = ""

    def read_until(self, what, timeout=90):
        end = time.monotonic() + lib.limit(timeout)
        while what not in self.text:
            if time.monotonic() > end or not select.select([self.fd], [], [], max(0, end - time.monotonic()))[0]:
                raise AssertionError(f"no {what!r} in {self.text[-300:]!r}")
            try:
                self.text += os.read(self.fd, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"ended without {what!r}: {self.text[-300:]!r}") from None
        before, _, self.text = self.text.partition(what)
        return before

    def send(self, text):
        os.write(self.fd, text.encode())

    def foreground(self, *names):
        """Wait until programs of these names are there, for the terminal's signals."""
        def there():
            group, found = os.tcgetpgrp(self.fd), []
            for p in family(self.pid):
                comm, _, rest = lib.read(f"/proc/{p}/stat").partition("(")[2].rpartition(")")
                if rest.split()[2:3] == [str(group)]:
                    found.append(comm)
            return all(found.count(n) >= names.count(n) for n in names)
        await_(there, f"{names} in the foreground")

    def end(self):
        try:
            os.kill(self.pid, 0)
            for _ in range(int(lib.limit(600))):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    return os.waitstatus_to_exitcode(status)
                time.sleep(0.1)
            for p in family(self.pid):
                os.kill(p, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise AssertionError(f"still there: {self.text!r}")
        finally:
            os.close(self.fd)


# Which of the signals to its group reach itself, a child, and a child in a group of its own; before that, which children are in it.
GROUP = """
import os, signal
URG = signal.SIGURG  # whoever else is in the group doesn't mind
signal.pthread_sigmask(signal.SIG_BLOCK, [URG])
def mine():
    pid = os.fork()
    if not pid:
        os._exit(3)
    return os.waitpid(0, 0) == (pid, 3 << 8)
print(os.getpgrp(), sum(mine() for i in range(40)))
ready, told = os.pipe()
wait, go = os.pipe()
def child(apart):
    pid = os.fork()
    if not pid:
        os.close(go)
        if apart:
            os.setpgid(0, 0)
        os.write(told, b"x")
        os.read(wait, 1)
        os._exit(URG in signal.sigpending())
    os.read(ready, 1)
    return pid
children = child(False), child(True)
os.kill(0, URG)
os.close(go)
print(URG in signal.sigpending(), [os.waitpid(p, 0)[1] >> 8 for p in children])
"""


@test
def group_without_a_number():
    """As in a container that another's process enters: the group's leader is outside of the PID namespace."""
    need("unshare")
    if os.geteuid() != 0:
        raise Skip("only root makes PID namespaces")
    wrap = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", '"$@"; exit $?', "sh"]
    for argv in ([PY, "-c", GROUP], lib.pvm([PY, "-c", GROUP])):
        r = lib.run(wrap + argv, cwd="/")
        expect((r.status, r.out, r.err), (0, b"0 40\nTrue [1, 0]\n", b""), argv[0])


@test
def job_control():
    need("bash")
    t = Terminal(["bash", "--norc", "--noprofile", "-i"])
    try:
        t.send("PS1='@''> '; set -b; bind 'set enable-bracketed-paste off' 2>/dev/null; echo re''ady\n")
        t.read_until("ready\r\n")
        t.read_until("@> ")
        t.send("sleep 100\n")
        t.foreground("sleep")
        t.send("\x03")
        t.read_until("@> ")
        t.send("echo st=$?\n")
        t.read_until("st=130")
        t.read_until("@> ")
        t.send("sleep 100\n")
        t.foreground("sleep")
        t.send("\x1a")
        t.read_until("Stopped")
        t.read_until("@> ")
        t.send("jobs; bg; jobs\n")
        t.read_until("Running")
        t.read_until("@> ")
        t.send("fg\n")
        t.foreground("sleep")
        t.send("\x03")
        t.read_until("@> ")
        t.send("cat | tr a-z A-Z\n")
        t.foreground("cat", "tr")
        t.send("some text\n")
        t.send("\x04")
        t.read_until("SOME TEXT")
        t.read_until("@> ")
        t.send("sh -c 'trap \"echo caught\" INT; sleep 100; echo rest'\n")
        t.foreground("sleep")
        t.send("\x03")
        t.read_until("caught")
        t.read_until("@> ")
        t.send("(sleep 50 | sleep 50)\n")
        t.foreground("sleep", "sleep")
        t.send("\x03")
        t.read_until("@> ")
        t.send("sleep 60 &\nkill %1; wait; echo w=$?\n")
        t.read_until("w=")
        t.send("exit 6\n")
    except AssertionError:
        for p in family(t.pid):
            os.kill(p, signal.SIGKILL)
        os.waitpid(t.pid, 0)
        os.close(t.fd)
        raise
    expect(t.end(), 6, "status")


@test
def terminal_hangup():
    """When the terminal goes, the session goes."""
    t = Terminal(["bash", "--norc", "--noprofile", "-c", "sleep 100; echo no"])
    await_(lambda: sleeping(t.pid) == 1, "a child")
    all_ = family(t.pid)
    os.close(t.fd)
    await_(lambda: not any(alive(p) for p in all_), "the end")
    os.waitpid(t.pid, 0)


@test
def strace_of_a_family():
    """Each line of a process that has or had children, or a parent, tells whose it is; also behind an exec."""
    r = inside_traced(["sh", "-c", "/bin/true; /bin/true & wait; exec /bin/echo $$"])
    pid = r.out.decode().strip()
    lines = r.err.decode().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("[pid "))
    expect([line for line in lines[first:] if not line.startswith(("[pid ", "+++ exited"))], [], "lines without a pid")
    pids = {line.split()[1].rstrip("]") for line in lines[first:] if line.startswith("[pid ")}
    assert pid in pids and len(pids) == 3, pids
    assert f'[pid {pid}] write(1, "{pid}\\n"' in r.err.decode(), "the last program's line"


def inside_traced(argv):
    r = lib.run(lib.pvm(argv, *options(), "--strace"), cwd="/")
    expect(r.status, 0, r.why())
    return r


# ---- statistics ---------------------------------------------------------------------------------------------------

def statistics(script, d):
    r = lib.run(lib.pvm([PY, "-S", "-c", script], *options(), f"--stats={d}/stats"), cwd="/")
    expect((r.status, r.err), (0, b""), "status and errors")
    return json.loads(lib.read(f"{d}/stats"))


@test
def statistics_of_a_family():
    """Of each kind of member, by a call that Python makes only when told to; those of a killed one are missing."""
    script = """if 1:
    import os, signal, subprocess, sys
    call = lambda n: [os.getpriority(0, 0) for _ in range(n)]
    again = "import os; [os.getpriority(0, 0) for _ in range(int(%d))]"
    def child(n, end):
        pid = os.fork()
        if pid == 0:
            call(n)
            end()
        os.waitpid(pid, 0)
    call(1)
    child(10, lambda: os._exit(0))
    child(100, lambda: os.kill(os.getpid(), signal.SIGTERM))
    child(5, lambda: os.kill(os.getpid(), signal.SIGKILL))
    child(1000, lambda: os.execv(sys.executable, ["python3", "-S", "-c", again % 20000]))
    subprocess.run([sys.executable, "-S", "-c", again % 300], close_fds=False)
    os.execv(sys.executable, ["python3", "-S", "-c", again % 4000])"""
    with lib.Dir() as d:
        s = statistics(script, d)
    expect(s["hypercalls"]["getpriority"], 25411, "calls")
    expect([s[k] for k in ("processes", "uncounted", "forks", "execs")], [6, 1, 5, 3], "members")
    total = s["hypercalls"].pop("total")
    assert total >= sum(s["hypercalls"].values()) and s["exits"] + s["polled"] >= total, s
    assert s["program"].startswith("/usr/bin/python3"), s
    assert s["wall_ns"] > 10**7, "since the start of kylinx"


@test
def statistics_of_killed_members():
    script = """if 1:
    import os, random, signal, time
    random.seed(1)
    for _ in range(25):
        pid = os.fork()
        if pid == 0:
            os.execv("/bin/true", ["true"])
        time.sleep(random.random() / 40)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)"""
    with lib.Dir() as d:
        s = statistics(script, d)
    expect((s["forks"], s["hypercalls"]["kill"]), (25, 25), "children and kills")
    # One that was killed before it began is not among them.
    assert 1 <= s["processes"] <= 26 and s["uncounted"] < s["processes"], s


# ---- pipes ---------------------------------------------------------------------------------------------------------

@test
def pipes_without_exits():
    """Read and write by the LibOS, also in a child and after exec; what makes a pipe plain goes to the host again."""
    rounds = "for i in range(3000): assert os.write(w, b'%d' % i) and os.read(r, 9) == b'%d' % i"
    script = f"""if 1:
    import os, sys
    r, w = os.pipe()
    {rounds}
    if os.fork() == 0:
        os.set_inheritable(r, True), os.set_inheritable(w, True)
        os.execv(sys.executable, ["python3", "-S", "-c", "import os; r, w = %d, %d\\n" % (r, w) + {rounds!r}])
    assert os.wait()[1] == 0"""
    plain = script.replace("r, w = os.pipe()", "import select; r, w = os.pipe(); select.epoll().register(r)", 1)
    with lib.Dir() as d:
        s, p = statistics(script, d), statistics(plain, d)
    calls = [x["hypercalls"]["read"] + x["hypercalls"].get("write", 0) for x in (s, p)]
    assert calls[0] < 2000 and s["local_calls"] > 12000, s
    assert calls[1] > 12000, p


@test
def pipeline_of_programs():
    """Through four programs and three pipes, and back whole."""
    script = """cd $1; head -c 6000000 /dev/urandom >a; seq 1 300000 >b; mkdir out
        tar cf - a b | zstd -q -1 | zstd -q -d | tar xf - -C out; echo ${PIPESTATUS[@]}
        cmp a out/a && cmp b out/b; cat a b | md5sum; cat out/* | md5sum; yes | head -3 | wc -c"""
    with lib.Dir() as d:
        r = lib.run(lib.pvm(["bash", "-c", script, "pipeline", d], *options(), "--volume", f"{d}:{d}"), 600, cwd="/")
    lines = r.out.decode().split("\n")
    expect((r.status, r.err, lines[0], lines[3]), (0, b"", "0 0 0 0", "6"), "status, errors, what they ended with")
    expect(lines[1], lines[2], "checksums")


@test
def hackbench():
    if not shutil.which("hackbench"):
        raise Skip("no hackbench")
    for how in ([], ["-T"]):
        r = lib.run(lib.pvm(["hackbench", "-p", "-g", "1", "-l", "20", *how], *options()), 600, cwd="/")
        expect((r.status, r.err), (0, b""), "status and errors")
        assert b"Time:" in r.out, r.out


# ---- running ----------------------------------------------------------------------------------------------------

NUMBER = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
p = os.fork()
if not p:
    os._exit(0)
try:
    os.wait()
except ChildProcessError:
    pass
print(p, flush=True)
sys.stdin.readline()
try:
    os.kill(p, signal.SIGTERM)
    print("reached", flush=True)
except ProcessLookupError:
    print("nobody", flush=True)
"""


def process_with_number(pid):
    """A process of ours with this number, or None. Others may take it first."""
    for _ in range(300):
        with open("/proc/sys/kernel/ns_last_pid", "w") as f:
            f.write(str(pid - 1))
        q = subprocess.Popen(["sleep", "100"])
        if q.pid == pid:
            return q
        q.kill()
        q.wait()
    return None


@test
def number_of_the_dead():
    """The number of a member that nobody waited for goes to a process outside: that one can't be signalled."""
    if os.geteuid() or not os.path.exists("/proc/sys/kernel/ns_last_pid"):
        raise Skip("only root can choose a process's number, with ns_last_pid")
    p = subprocess.Popen(lib.pvm([PY, "-S", "-c", NUMBER], *options()), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         cwd="/")
    q = None
    try:
        q = process_with_number(int(p.stdout.readline()))
        out = p.communicate(b"\n", 120)[0]
        if not q:
            raise Skip("others took the number each time")
        expect((out, q.poll()), (b"nobody\n", None), "kill")
    finally:
        for x in filter(None, (p, q)):
            x.kill()
            x.wait()


def main():
    return lib.run_tests(tests, args.only)


if __name__ == "__main__":
    sys.exit(main())
