#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The distribution's servers of many processes, unmodified, under load, and what their administrators do to them.

test_servers.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure. Their files are then opened by the
same program natively. After each test no process is left, and no file. Most need root.
"""
import glob
import hashlib
import http.client
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402
from servers import ENV, LONG, Load, gone, kids, need, null, options, silent, until, write  # noqa: E402

args = lib.arguments()

tests = []


def test(fn):
    tests.append((fn.__name__, fn))
    return fn


# ---- PostgreSQL -----------------------------------------------------------------------------------------------------

class Postgres:
    """Runs commands as the user postgres, in a pVM or natively."""

    def __init__(self, d):
        found = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres"))
        if not found:
            raise Skip("postgresql is not installed")
        self.bin, self.d, self.port = os.path.dirname(found[-1]), d, lib.free_port()
        user = pwd.getpwnam("postgres")
        os.chown(d, user.pw_uid, user.pw_gid)
        self.kylinx = shutil.copy(lib.KYLINX, os.path.join(d, "kylinx"))  # the user may not reach the one that is built
        kvm = os.stat("/dev/kvm").st_rdev
        # Device nodes that this user may open, in a mount namespace of the command's own.
        nodes = (f"mkdir -p {d}/dev && mount -t tmpfs -o mode=755 kx {d}/dev && "
                 f"mknod -m 666 {d}/dev/kvm c {os.major(kvm)} {os.minor(kvm)} && mknod -m 666 {d}/dev/null c 1 3 && "
                 f"mount --bind {d}/dev/kvm /dev/kvm && mount --bind {d}/dev/null /dev/null && exec \"$@\"")
        self.user = ["unshare", "-m", "--propagation", "private", "sh", "-c", nodes, "sh", "setpriv", "--reuid=postgres",
                     "--regid=postgres", "--init-groups", "env", "-i", *[f"{k}={v}" for k, v in ENV.items()],
                     f"PATH={self.bin}:{ENV['PATH']}", f"PGHOST={d}", f"PGPORT={self.port}", "PGUSER=postgres"]
        self.pvm = [*self.user, self.kylinx, "run", "--volume", f"{d}:{d}", "--"]

    def run(self, prefix, *argv, timeout=300):
        r = lib.run([*prefix, *argv], timeout, cwd="/")
        expect(r.status, 0, f"{argv[0]} ({r.why()})")
        return r

    def init(self):
        """A cluster, made natively; no sync of it."""
        self.run(self.user, "initdb", "-D", f"{self.d}/data", "-U", "postgres", "-A", "trust", "-N")

    def bench(self):
        self.run(self.user, "createdb", "bench")
        self.run(self.user, "pgbench", "-q", "-i", "-s", "1", "bench")

    def query(self, *sql):
        return self.run(self.user, "psql", "-qAt", "-v", "ON_ERROR_STOP=1", *[a for q in sql for a in ("-c", q)],
                        "bench").out.decode().strip()

    def server(self, prefix, dsm="posix", *settings):
        return lib.Server([*prefix, "postgres", "-D", f"{self.d}/data", "-k", self.d, "-p", str(self.port),
                           *[x for y in ("listen_addresses=127.0.0.1", f"dynamic_shared_memory_type={dsm}", *settings) for x in ("-c", y)]],
                          self.port, cwd="/", stop=signal.SIGINT)

    def ready(self):
        until("ready", lambda: lib.run([*self.user, "pg_isready", "-q"], cwd="/").status == 0, 180)

    def sums(self):
        s = self.query("select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), "
                       "(select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history)").split("|")
        assert len(set(s)) == 1 and s[0], f"balances: {s}"
        return s[0]


PARALLEL = ("set parallel_setup_cost = 0", "set parallel_tuple_cost = 0", "set min_parallel_table_scan_size = 0",
            "set max_parallel_workers_per_gather = 3", "select count(*), sum(aid) from pgbench_accounts")


@test
def postgresql():
    """initdb, 20 clients, a killed backend, recovery, fast shutdown; all kinds of shared memory; opened natively"""
    need("setpriv", "unshare")
    with lib.Dir() as d:
        pg = Postgres(d)
        pg.run(pg.pvm, "initdb", "-D", f"{d}/data", "-U", "postgres", "-A", "trust", "-N", "-k")
        with pg.server(pg.pvm) as s:
            pg.ready()
            pg.run(pg.user, "createdb", "bench")
            pg.run(pg.user, "pgbench", "-q", "-i", "-s", "2", "bench")
            r = pg.run(pg.user, "pgbench", "-n", "-c", "20", "-j", "2", "-T", "30" if LONG else "10", "bench")
            q = pg.run(pg.user, "pgbench", "-n", "-S", "-M", "prepared", "-c", "10", "-t", "1000" if LONG else "100", "bench")
            assert b"processed: %d/" % (10000 if LONG else 1000) in q.out, q.out
            assert b"failed transactions: 0 " in r.out and b"tps = " in r.out, r.out
            pg.sums()
            load = subprocess.Popen([*pg.user, "pgbench", "-n", "-c", "8", "-T", "200", "bench"], cwd="/",
                                    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
            victim = until("a busy backend", lambda: pg.query(
                "select pid from pg_stat_activity where query like 'UPDATE%' and state <> 'idle' limit 1"))
            os.kill(int(victim), signal.SIGKILL)
            _, err = load.communicate(timeout=lib.limit(300))
            assert load.returncode and b"aborted" in err, f"pgbench did not notice: {err!r}"
            pg.ready()
            pg.sums()
            with open(f"{d}/data/log", "wb") as f:
                s.log.seek(0)
                f.write(s.log.read())
            text = lib.read(f"{d}/data/log")
            for line in (f"(PID {victim}) was terminated by signal 9", "reinitializing", "redo done"):
                assert line in text, f"no {line!r} in the log: {text[-300:]}"
            want = pg.query(*PARALLEL)
        silent(text)
        expect(s.status, 0, "fast shutdown")
        for dsm in ("sysv", "mmap"):
            with pg.server(pg.pvm, dsm) as s:
                pg.ready()
                expect(pg.query("show dynamic_shared_memory_type"), dsm, "setting")
                expect(pg.query(*PARALLEL), want, f"parallel query, {dsm}")
                plan = pg.query(*PARALLEL[:-1], "explain (analyze, costs off, timing off) " + PARALLEL[-1])
                assert "Workers Launched: 3" in plan, plan
                sums = pg.sums()
            expect(s.status, 0, f"fast shutdown, {dsm}")
        r = pg.run(pg.user, "pg_checksums", "--check", "-D", f"{d}/data")
        assert b"Bad checksums:  0" in r.out, r.out
        with pg.server(pg.user) as s:
            pg.ready()
            expect((pg.sums(), pg.query(*PARALLEL)), (sums, want), "natively")


@test
def postgresql_calls():
    """A read-only transaction of a backend, whose connection the postmaster has accepted, is little more than its wait."""
    need("setpriv", "unshare")
    with lib.Dir() as d:
        pg = Postgres(d)
        pg.init()
        pvm = [*pg.pvm[:-1], "--io", "exit", f"--stats={d}/stats", "--"]
        made = []
        for n in (100, 900):
            with pg.server(pvm):
                pg.ready()
                if n == 100:
                    pg.bench()
                r = pg.run(pg.user, "pgbench", "-n", "-S", "-c", "4", "-t", str(n), "bench")
                assert b"processed: %d/" % (4 * n) in r.out, r.out
            stats = json.loads(lib.read(f"{d}/stats"))["hypercalls"]
            made.append({c: stats.get(c, 0) for c in ("recvfrom", "sendto", "lseek", "epoll_wait")})
        each = sum(made[1].values()) / 3600
        print(f"# {each:.2f} calls of the monitor's for each transaction: {made[1]}", flush=True)
        expect(each < 2.2, True, f"{each:.2f} calls for each transaction: {made}")


@test
def postgresql_waits():
    """Backends that wait for each other's locks: a wake-up takes no exit of its own, neither to send nor to read."""
    need("setpriv", "unshare")
    with lib.Dir() as d:
        pg = Postgres(d)
        pg.init()
        pvm = [*pg.pvm[:-1], "--io", "exit", f"--stats={d}/stats", "--"]
        with pg.server(pg.user):
            pg.ready()
            pg.bench()
        made = []
        for n in (10, 60):
            with pg.server(pvm, "posix", "deadlock_timeout=1h"):  # a slow machine's locks are held for more than its second
                pg.ready()
                r = pg.run(pg.user, "pgbench", "-n", "-c", "10", "-t", str(n), "bench")
                assert b"processed: %d/" % (10 * n) in r.out, r.out
                pg.sums()
            stats = json.loads(lib.read(f"{d}/stats"))["hypercalls"]
            made.append({c: stats.get(c, 0) for c in ("kill", "read", "recvfrom", "sendto", "lseek", "futex", "epoll_wait")})
        each = {c: (made[1][c] - made[0][c]) / 500 for c in made[1]}
        print(f"# for each transaction: {each}", flush=True)
        waits = each["epoll_wait"] - 7  # seven statements
        expect(waits > 1, True, f"waits for others: {each}")
        for c in ("kill", "read"):
            expect(each[c] < waits / 2, True, f"{c}: {each}")
        # Each of the seven would be one. A futex wake that is made by an exit has looked at sockets and files, too: of one that is not,
        # the next of these calls is the look.
        expect(sum(each[c] for c in ("recvfrom", "sendto", "lseek", "futex")) < 3, True, f"what a look saves: {each}")


class Inserts(threading.Thread):
    """Inserts rows one after the other, until `stop`; `acked` are those of which the server has said that they are there."""

    def __init__(self, pg, who):
        super().__init__()
        self.acked, self.who, self.stop = [], who, False
        self.psql = subprocess.Popen([*pg.user, "psql", "-qAt", "-v", "ON_ERROR_STOP=1", "bench"], cwd="/", text=True,
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.backend = int(self.ask("select pg_backend_pid();"))
        self.start()

    def ask(self, sql):
        self.psql.stdin.write(sql + "\n")
        self.psql.stdin.flush()
        return self.psql.stdout.readline()

    def run(self):
        try:
            while not self.stop:
                row = self.ask(f"insert into kept values ({self.who}, {len(self.acked)}) returning i;")
                if not row:
                    return
                self.acked.append(int(row))
        except BrokenPipeError:
            pass

    def end(self):
        self.stop = True
        self.join(120)
        try:
            self.psql.communicate()
        except BrokenPipeError:
            pass


def of_file(path):
    """The processes that execute it."""
    want, found = os.stat(path), []
    for p in os.listdir("/proc"):
        try:
            st = os.stat(f"/proc/{p}/exe") if p.isdigit() else None
        except OSError:
            continue
        if st and (st.st_dev, st.st_ino) == (want.st_dev, want.st_ino):
            found.append(int(p))
    return found


def synced_before_told(text):
    """Of strace's lines, of all processes: between two answers that a row was written something was written, then synced."""
    told = state = 0
    for line in text.splitlines():
        if "unfinished" in line and "sendto" not in line:
            continue
        if "pwrite64" in line:
            state = max(state, 1)
        elif "fdatasync" in line and line.endswith("= 0") and state:
            state = 2
        elif "sendto(" in line and "INSERT 0 1" in line:
            expect(state == 2 or not told, True, f"told behind its sync: {line}")
            told += 1
            state = 0
    return told


@test
def postgresql_kept():
    """What was acknowledged has been synced before, and is there when all processes have been killed"""
    need("setpriv", "unshare", "strace")
    with lib.Dir() as d:
        pg = Postgres(d)
        pg.init()
        with pg.server(pg.pvm) as s:
            pg.ready()
            pg.run(pg.user, "createdb", "bench")
            pg.query("create table kept (who int, i int)")
            many = [Inserts(pg, 0)]
            strace = ["strace", "-f", "-s", "200", "-o", f"{d}/trace", "-e", "trace=pwrite64,fdatasync,sendto"]
            for p in of_file(pg.kylinx):
                strace += ["-p", str(p)]
            trace = subprocess.Popen(strace, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            until("answers", lambda: os.path.exists(f"{d}/trace") and lib.read(f"{d}/trace").count("INSERT 0 1") > 20, 120)
            trace.send_signal(signal.SIGINT)
            trace.wait()
            many += [Inserts(pg, 1 + i) for i in range(5)]
            until("rows", lambda: min(len(m.acked) for m in many) > 30, 120)
            told = synced_before_told(lib.read(f"{d}/trace"))
            for p in of_file(pg.kylinx):
                os.kill(p, signal.SIGKILL)
            s.p.wait(lib.limit(60))
            for m in many:
                m.end()
        if os.path.exists(f"{d}/data/postmaster.pid"):
            os.unlink(f"{d}/data/postmaster.pid")
        with pg.server(pg.pvm):
            pg.ready()
            rows = set(pg.query("select who || '.' || i from kept").split())
            for a in many:
                lost = [i for i in a.acked if f"{a.who}.{i}" not in rows]
                assert not lost, f"acknowledged, and lost: {a.who}: {lost}"
            print(f"# {sum(len(a.acked) for a in many)} rows, {told} answers seen behind their sync", flush=True)


# ---- web servers ----------------------------------------------------------------------------------------------------

def get(port, path):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=lib.limit(60))
    c.request("GET", path)
    data = c.getresponse().read().decode()
    c.close()
    return data


def listening(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


NGINX = """worker_processes {workers};
pid {d}/pid;
error_log {d}/error.log notice;
events {{ worker_connections 256; accept_mutex {mutex}; }}
http {{ access_log off; keepalive_requests 50;
{temp}
server {{ listen 127.0.0.1:{port}; root {d}; location = /version {{ return 200 "{version}"; }} }} }}
"""


@test
def nginx():
    """master and 4 workers under load, and one alone: reload, a killed worker, upgrade of the binary, graceful end"""
    need("nginx")
    for n in (4, 1):
        reloaded(n)


def reloaded(n):
    with lib.Dir() as d:
        port = lib.free_port()
        body = os.urandom(50000)
        with open(f"{d}/file", "wb") as f:
            f.write(body)

        def config(version):
            temp = "\n".join(f"{k}_temp_path {d}/{k};" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
            return write(d, "conf", NGINX.format(d=d, port=port, workers=n, version=version, temp=temp,
                                                 mutex="on" if version == "1" else "off"))

        def pid(name="pid"):
            return int(lib.read(f"{d}/{name}") or 0)

        conf = config("1")
        r = lib.run(lib.pvm(["/usr/sbin/nginx", "-c", conf], *options(d, f"{d}:/var/log/nginx")), cwd="/")
        expect(r.status, 0, f"nginx ({r.why()})")
        try:
            until("listening", lambda: pid() and listening(port))
            old = pid()
            workers = until("workers", lambda: len(kids(old)) == n and kids(old))
            load = Load([port], "/file", body)
            for version in "234":
                config(version)
                os.kill(old, signal.SIGHUP)
                until("new configuration", lambda: get(port, "/version") == version)
                until("old workers gone", lambda: not set(workers) & set(kids(old)))
                workers = until("workers", lambda: len(kids(old)) == n and kids(old))
            os.kill(old, signal.SIGUSR2)
            new = until("new master", lambda: os.path.exists(f"{d}/pid.oldbin") and pid() not in (0, old) and pid())
            until("new workers", lambda: len(kids(new)) == n)
            os.kill(old, signal.SIGWINCH)
            until("old workers gone", lambda: kids(old) in ([], [new]))
            os.kill(old, signal.SIGQUIT)
            until("old master gone", lambda: gone(old))
            load.stop(100)
            os.kill(kids(new)[0], signal.SIGKILL)
            until("replaced", lambda: "exited on signal 9" in lib.read(f"{d}/error.log") and len(kids(new)) == n)
            load = Load([port], "/file", body)
            load.stop(10)
            os.kill(new, signal.SIGQUIT)
            until("gone", lambda: gone(new))
        finally:
            for p in {pid(), pid("pid.oldbin")} - {0}:
                for k in [*kids(p), p]:
                    os.kill(k, signal.SIGKILL)
        text = lib.read(f"{d}/error.log")
        expect([x for x in text.splitlines() if re.search(r"\[(emerg|crit|error)\]", x)], [], "error.log")


APACHE = """ServerRoot {d}
ServerName localhost
Listen 127.0.0.1:{ports[0]}
Listen 127.0.0.1:{ports[1]}
PidFile {d}/pid
ErrorLog {d}/error.log
DefaultRuntimeDir {d}
{mutex}
LoadModule mpm_{mpm}_module /usr/lib/apache2/modules/mod_mpm_{mpm}.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
User www-data
Group www-data
KeepAlive On
StartServers 3
DocumentRoot {d}
"""


def apache(mpm, mutex):
    need("apache2")
    with lib.Dir() as d:
        ports = [lib.free_port(), lib.free_port()]
        body = os.urandom(30000)
        with open(f"{d}/file", "wb") as f:
            f.write(body)
        conf = write(d, "conf", APACHE.format(d=d, ports=ports, mpm=mpm, mutex=mutex))
        argv = lib.pvm(["apache2", "-f", conf, "-D", "FOREGROUND"], *options(d))
        with lib.Server(argv, ports[0], cwd="/", stop=signal.SIGWINCH) as s:
            until("both ports", lambda: all(listening(p) for p in ports))
            Load(ports, "/file", body, 10, 50).stop(490)
            workers = kids(s.p.pid)
            uid = pwd.getpwnam("www-data").pw_uid
            # One that has just been made is root still.
            until("their user", lambda: all(gone(p) or lib.read(f"/proc/{p}/status").count(f"\nUid:\t{uid}\t") for p in workers))
            load = Load(ports, "/file", body)
            time.sleep(0.3)
            s.p.send_signal(signal.SIGUSR1)
            until("new children", lambda: kids(s.p.pid) and not set(workers) & set(kids(s.p.pid)))
            load.stop(20)
            s.p.send_signal(signal.SIGHUP)
            until("restarted", lambda: lib.read(f"{d}/error.log").count("resuming normal operations") == 3)
            Load(ports, "/file", body, 4, 10).stop(35)
            s.log.seek(0)
            silent(s.log.read().decode())
        expect(s.status, 0, "graceful end")
        text = lib.read(f"{d}/error.log")
        expect([x for x in text.splitlines() if re.search(r":(emerg|alert|crit|error)\]", x)], [], "error.log")


@test
def apache_prefork():
    """500 requests, graceful restart under load, restart, graceful end; SysV semaphore as accept mutex"""
    apache("prefork", "Mutex sysvsem")


@test
def apache_event():
    apache("event", "")


# ---- sshd -----------------------------------------------------------------------------------------------------------

@test
def sshd():
    """key login of root and of another user by PAM, a command, sftp, a terminal"""
    need("/usr/sbin/sshd", "ssh", "sftp", "ssh-keygen")
    with lib.Dir() as d:
        port, uid = lib.free_port(), 12345
        for name, owner in (("run", 0), ("home", uid), ("root", 0)):
            os.mkdir(f"{d}/{name}", 0o755)
            os.chown(f"{d}/{name}", owner, owner)
        for key in ("host", "key"):
            expect(lib.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{d}/{key}"]).status, 0, "ssh-keygen")
        write(d, "passwd", lib.read("/etc/passwd") + f"kxuser:x:{uid}:{uid}::{d}/home:/bin/sh\n")
        write(d, "shadow", lib.read("/etc/shadow") + "kxuser:*:19000:0:99999:7:::\n", 0o600)
        write(d, "group", lib.read("/etc/group") + f"kxuser:x:{uid}:\nkxmore:x:{uid + 1}:kxuser\n")
        write(d, "authorized", lib.read(f"{d}/key.pub"))
        conf = write(d, "conf", f"Port {port}\nListenAddress 127.0.0.1\nHostKey {d}/host\nAuthorizedKeysFile {d}/authorized\n"
                     f"StrictModes no\nUsePAM yes\nPidFile none\nPermitRootLogin yes\nSubsystem sftp /usr/lib/openssh/sftp-server\n")
        view = [d, *null(d), f"{d}/run:/run/sshd", f"{d}/root:/root", *[f"{d}/{f}:/etc/{f}:ro" for f in ("passwd", "shadow", "group")]]
        argv = lib.pvm(["/usr/sbin/sshd", "-D", "-e", "-f", conf], *options(*view))
        opts = ["-F", "none", "-i", f"{d}/key", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o",
                f"UserKnownHostsFile={d}/known", "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes"]

        def ssh(user, command, *more, stdin=None):
            return lib.run(["ssh", *opts, *more, "-p", str(port), f"{user}@127.0.0.1", command], stdin=stdin)

        with lib.Server(argv, port, cwd="/") as s:
            r = ssh("root", "id -u; pwd; tty; exit 3")
            expect((r.status, r.out), (3, b"0\n/root\nnot a tty\n"), f"command ({r.why()})")
            r = ssh("kxuser", "id; cat; test -w /etc && echo writable; exit 4", stdin=b"input\n")
            expect((r.status, r.out.decode()), (4, f"uid={uid}(kxuser) gid={uid}(kxuser) groups={uid}(kxuser),"
                                                f"{uid + 1}(kxmore)\ninput\n"), f"another user ({r.why()})")
            data = os.urandom(2000000)
            with open(f"{d}/data", "wb") as f:
                f.write(data)
            r = lib.run(["sftp", *opts, "-P", str(port), "-b", "-", "kxuser@127.0.0.1"],
                        stdin=f"put {d}/data up\nget up {d}/down\n".encode())
            expect(r.status, 0, f"sftp ({r.why()}); {s.output()}")
            for name in ("home/up", "down"):
                with open(f"{d}/{name}", "rb") as f:
                    expect(hashlib.sha256(f.read()).digest(), hashlib.sha256(data).digest(), name)
            expect(os.stat(f"{d}/home/up").st_uid, uid, "owner of the file")
            r = ssh("kxuser", 'test -t 0 && test "$(tty)" = "$SSH_TTY" && stat -c %U "$SSH_TTY"; read x; echo "<$x>"; exit 5',
                    "-tt", stdin=b"typed\n")
            assert r.status == 5 and b"kxuser\r\n" in r.out and b"<typed>\r\n" in r.out, f"terminal: {r.why()} {r.out!r}"
            s.log.seek(0)
            silent(s.log.read().decode())
        expect(s.status, 0, "the end of sshd")


# ---- redis ----------------------------------------------------------------------------------------------------------

class Redis:
    """A client's connection."""

    def __init__(self, port):
        self.s = socket.create_connection(("127.0.0.1", port), lib.limit(180))
        self.f = self.s.makefile("rb")
        self.wait("loading", 0)

    def answer(self):
        line = self.f.readline()
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"$":
            return None if rest == "-1" else self.f.read(int(rest) + 2)[:-2].decode()
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        if kind == b"-" or not kind:
            raise AssertionError(f"redis: {rest or 'closed'}")
        return rest

    def __call__(self, *words):
        words = [str(w).encode() for w in words]
        self.s.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
        return self.answer()

    def wait(self, field, value):
        until(f"{field}:{value}", lambda: f"{field}:{value}" in self("INFO", "persistence").split(), 180)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.f.close()
        self.s.close()


@test
def redis_under_load():
    """BGSAVE and BGREWRITEAOF while clients write all types; loaded natively: the same digest of all keys, and no gap"""
    need("redis-server", root=False)
    with lib.Dir() as d:
        port = lib.free_port()
        over, errors, last = threading.Event(), [], [0, 0]

        def server(where, *more):
            return ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", where, "--save", "",
                    "--enable-debug-command", "local", *more]

        def writer(w):
            try:
                with Redis(port) as r:
                    while not over.is_set():
                        n = last[w] + 1
                        r("MULTI")  # so a file has all of them or none
                        r("SET", f"s:{w}:{n}", "v" * (n % 300))
                        r("HSET", f"h:{w}:{n % 50}", n, n)
                        r("RPUSH", f"l:{w}:{n % 20}", n)
                        r("ZADD", f"z:{w}", n, n)
                        r("INCR", f"n:{w}")
                        r("EXEC")
                        last[w] = n
            except (AssertionError, OSError) as e:
                errors.append(f"{type(e).__name__}: {e}")

        with lib.Server(lib.pvm(server(d, "--appendonly", "yes"), *options(d)), port, cwd="/") as s, Redis(port) as r:
            r("EVAL", "for i = 1, 20000 do redis.call('SET', 'key:' .. i, string.rep(i .. ':', 20)) end", 0)
            writers = [threading.Thread(target=writer, args=(w,)) for w in (0, 1)]
            for w in writers:
                w.start()
            try:
                for _ in range(2):
                    before = list(last)
                    assert "started" in r("BGREWRITEAOF")
                    r.wait("aof_rewrite_in_progress", 0)
                    r.wait("aof_last_bgrewrite_status", "ok")
                    assert "started" in r("BGSAVE")
                    r.wait("rdb_bgsave_in_progress", 0)
                    r.wait("rdb_last_bgsave_status", "ok")
                    assert min(last[w] - before[w] for w in (0, 1)) > 3, f"no load: {before} {last}"
            finally:
                over.set()
                for w in writers:
                    w.join()
            expect(errors, [], "clients")
            digest, size = r("DEBUG", "DIGEST"), r("DBSIZE")
            s.log.seek(0)
            silent(s.log.read().decode())
        expect(s.status, 0, "redis-server")
        with lib.Server(server(d, "--appendonly", "yes"), port, cwd="/"), Redis(port) as r:
            expect((r("DBSIZE"), r("DEBUG", "DIGEST")), (size, digest), "AOF, natively")
        os.mkdir(f"{d}/rdb")
        os.rename(f"{d}/dump.rdb", f"{d}/rdb/dump.rdb")
        with lib.Server(server(f"{d}/rdb"), port, cwd="/"), Redis(port) as r:
            for w in (0, 1):
                n = int(r("GET", f"n:{w}"))
                assert before[w] <= n <= last[w], f"{n} is not from {before[w]} to {last[w]}"
                expect((len(r("KEYS", f"s:{w}:*")), int(r("ZCARD", f"z:{w}")), r("GET", f"s:{w}:{n}")),
                       (n, n, "v" * (n % 300)), "RDB, natively")
                expect(sum(int(r("LLEN", f"l:{w}:{i}")) for i in range(20)), n, "lists")
                expect(sum(int(r("HLEN", f"h:{w}:{i}")) for i in range(50)), n, "hashes")


@test
def redis_saves_and_serves():
    """While its child saves, reads and writes of the connections that it has, too, are in batches: no call for each"""
    need("redis-server", root=False)
    with lib.Dir() as d:
        port, rounds = lib.free_port(), 100
        server = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", d, "--save", ""]
        with lib.Server(lib.pvm(server, f"--stats={d}/stats", *options(d)), port, cwd="/") as s, Redis(port) as r:
            clients = [Redis(port) for _ in range(20)]
            r("SET", "key", "0")
            for n, c in enumerate(clients):
                c("SET", f"key:{n}", n)
            r("CONFIG", "SET", "rdb-key-save-delay", 100_000_000)
            assert "started" in r("BGSAVE")
            for i in range(rounds):
                for n, c in enumerate(clients):
                    c.s.sendall(b"SET key:%d %d\r\nGET key:%d\r\n" % (n, n * i, n))
                for n, c in enumerate(clients):
                    expect((c.answer(), c.answer()), ("OK", str(n * i)), f"client {n}, round {i}")
            assert "rdb_bgsave_in_progress:1" in r("INFO", "persistence").split(), "the child has ended"
            for c in clients:
                c.__exit__()
        expect(s.status, 0, "redis-server")
        with open(f"{d}/stats", encoding="ascii") as f:
            calls = json.load(f)["hypercalls"]
        made = {c: calls.get(c, 0) for c in ("read", "write", "writev", "recvfrom", "sendto")}
        assert sum(made.values()) < rounds * len(clients) // 2, f"calls for {rounds * len(clients)} turns of a client: {made}"


def main():
    return lib.run_tests(tests, args.only, slow=0)


if __name__ == "__main__":
    sys.exit(main())
