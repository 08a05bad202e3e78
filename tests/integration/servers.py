# SPDX-License-Identifier: Apache-2.0
"""What the tests of servers share: their surroundings, waiting, what the log may say, comparing with a native run."""
import http.client
import os
import re
import shutil
import signal
import stat
import sys
import threading
import time

sys.dont_write_bytecode = True
import lib
from lib import Skip, expect

ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC",
       "TERM": "dumb", "HOME": "/tmp"}


LONG = bool(os.environ.get("KX_LONG"))  # also what `make check` has no time for


def collection():
    """The tests of a script, and what puts a function among them: always; in long runs."""
    tests = []

    def test(fn):
        tests.append((fn.__name__, fn))
        return fn

    return tests, test, test if LONG else lambda fn: fn


def need(*programs, root=True):
    if root and os.geteuid():
        raise Skip("only root can")
    for p in programs:
        if not shutil.which(p, path=ENV["PATH"]):
            raise Skip(f"{p} is not installed")


def options(*volumes):
    pairs = [v if ":" in v else f"{v}:{v}" for v in volumes]
    return [*[a for k, v in ENV.items() for a in ("--env", f"{k}={v}")], *[a for v in pairs for a in ("--volume", v)]]


def write(d, name, text, mode=0o644):
    path = os.path.join(d, name)
    with open(path, "w") as f:
        f.write(text)
    os.chmod(path, mode)
    return path


def until(what, fn, timeout=90.0):
    """Wait for fn() to be true; what it gave."""
    end = time.monotonic() + lib.limit(timeout)
    while True:
        r = fn()
        if r:
            return r
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {lib.limit(timeout):.0f} s")
        time.sleep(0.05)


def null(d):
    """A volume for users where the machine's /dev/null is root's alone."""
    if os.stat("/dev/null").st_mode & 0o666 == 0o666:
        return []
    os.mknod(f"{d}/null", stat.S_IFCHR, os.makedev(1, 3))
    os.chmod(f"{d}/null", 0o666)
    return [f"{d}/null:/dev/null"]


kids = lib.kids


def gone(pid):
    return not os.path.exists(f"/proc/{pid}") or lib.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:1] == ["Z"]


def silent(log):
    """No call was missing."""
    found = [line for line in log.splitlines() if re.search(r"kylinx: (warn|error)", line)]
    expect([line for line in found if "keyctl" not in line], [], "log")  # which PAM can do without


def certificate(d):
    r = lib.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{d}/key", "-out", f"{d}/cert",
                 "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
    expect(r.status, 0, f"openssl: {r.why()}")
    os.chmod(f"{d}/key", 0o644)


def fds(pid):
    return len(lib.names(f"/proc/{pid}/fd"))


def rss_kib(pid):
    """Of this process alone: what it has from files is mostly others', too."""
    return sum(int(line.split()[1]) for line in lib.read(f"/proc/{pid}/status").splitlines()
               if line.startswith(("RssAnon:", "RssShmem:")))


class Load:
    """Clients of a web server, half of them on connections that are kept, until stop() or so many requests."""

    def __init__(self, ports, path, body, clients=8, requests=None):
        self.ports, self.path, self.body, self.requests = ports, path, body, requests
        self.n, self.bad, self.over = 0, [], False
        self.threads = [threading.Thread(target=self.client, args=(i,)) for i in range(clients)]
        for t in self.threads:
            t.start()

    def client(self, i):
        c, used, n = None, False, 0
        while not self.over and n != self.requests:
            try:
                if c is None:
                    c, used = http.client.HTTPConnection("127.0.0.1", self.ports[i % len(self.ports)], timeout=lib.limit(60)), False
                c.request("GET", self.path, headers={"Connection": "close"} if i % 2 else {})
                r = c.getresponse()
                data = r.read()
                if r.status != 200 or data != self.body:
                    self.bad.append((r.status, len(data)))
                n, used = n + 1, True
                self.n += 1
                if r.getheader("Connection") == "close":
                    c.close()
                    c = None
            except (OSError, http.client.HTTPException) as e:
                # The server may close a connection that is kept and idle, and the request crosses that.
                if not (used and isinstance(e, (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError))):
                    self.bad.append(repr(e))
                c.close()
                c = None
        if c:
            c.close()

    def stop(self, least):
        end = time.monotonic() + lib.limit(90)
        while self.requests is None and self.n < least and not self.bad and time.monotonic() < end:
            time.sleep(0.05)
        self.over = self.requests is None
        for t in self.threads:
            t.join()
        expect(self.bad[:5], [], f"bad ones of {self.n} requests")
        assert self.n >= least, f"only {self.n} requests"


NGINX_TEMP = " ".join(f"{k}_temp_path {{d}}/tmp-{k};" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
NGINX = """worker_processes {workers};
worker_rlimit_nofile {files};
pid {d}/pid;
error_log {d}/error.log notice;
events {{ worker_connections {connections}; {events} }}
http {{ access_log off; server_tokens off; default_type text/plain; {temp}
{http} }}
"""


class Nginx:
    """nginx with this `http` block, in the foreground, natively or in a pVM. The files of d are those of the server. Without workers
    there is but the one process."""

    def __init__(self, d, http, port, pvm=True, workers=2, events="", connections=512, files=1024, volumes=(), errors="(?!)",
                 more=()):
        self.d, self.port, self.errors = d, port, errors
        self.conf = dict(workers=workers, events=events, connections=connections, files=files)
        self.configure(http)
        argv = ["/usr/sbin/nginx", "-c", f"{d}/conf", "-g", "daemon off;" + ("" if workers else " master_process off;")]
        self.server = lib.Server(lib.pvm(argv, *options(d, f"{d}:/var/log/nginx", *volumes), *more) if pvm else argv, port,
                                 cwd="/", stop=signal.SIGQUIT)

    def configure(self, http):
        write(self.d, "conf", NGINX.format(d=self.d, http=http, temp=NGINX_TEMP.format(d=self.d), **self.conf))

    def __enter__(self):
        self.server.__enter__()
        self.pid = self.server.p.pid
        until("workers", lambda: len(kids(self.pid)) == self.conf["workers"])
        return self

    def __exit__(self, *exc):
        log = self.server.log
        log.seek(0)
        text = log.read().decode(errors="replace")
        for k in kids(self.pid) if exc[0] else ():
            os.kill(k, signal.SIGKILL)
        self.server.__exit__()
        if not exc[0]:
            expect(self.server.status, 0, "nginx's end")
            silent(text)
            text = lib.read(f"{self.d}/error.log")
            expect([x for x in text.splitlines() if re.search(r"\[(emerg|alert|crit|error)\]", x) and
                    not re.search(self.errors, x)], [], "error.log")
