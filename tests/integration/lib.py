# SPDX-License-Identifier: Apache-2.0
"""What the test scripts share: running commands with a limit, result lines, scratch directories, leak checks.

Environment: KYLINX (the binary; default build/kylinx), TEST_LEAK_IGNORE (a regular expression of leak lines that
are somebody else's, on a machine that does other work meanwhile), TEST_SLOW (how many times longer than usually all
may take here, on a machine that is that slow: limit()).
"""
import argparse
import ctypes
import errno
import os
import random
import re
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import time

TOP = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../.."))
KYLINX = os.path.abspath(os.environ.get("KYLINX", os.path.join(TOP, "build/kylinx")))
SLOW = float(os.environ.get("TEST_SLOW", "1"))
PORTS = None  # those that this process has not used
# The registry of an ordinary user stays, and the store of one whose home is /tmp; test_family looks into it.
IGNORE = re.compile(r"hsperfdata_|^/tmp entry (kylinx-\d+|\.cache)$|" + (os.environ.get("TEST_LEAK_IGNORE") or "(?!)"))

# Ignored where a shell has this in the background, or nohup, and then for all that is started: programs are to begin with
# their default actions, which exec makes of a handler.
for _s in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_s) == signal.SIG_IGN:
        signal.signal(_s, lambda *_: None)


def arguments(*flags):
    """Of a test script: [KYLINX] [--only PATTERN], and these flags. That kylinx is the one tested from here on."""
    global KYLINX
    parser = argparse.ArgumentParser()
    parser.add_argument("kylinx", nargs="?")
    parser.add_argument("--only", default="", metavar="PATTERN")
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    args = parser.parse_args()
    if args.kylinx:
        KYLINX = os.environ["KYLINX"] = os.path.abspath(args.kylinx)
    return args


def limit(seconds):
    """How long to wait here for what takes less than that on an ordinary machine. Never for what a test demands to be fast."""
    return seconds * SLOW


def kvm_missing():
    """Why no pVM can run here, or None."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        return f"/dev/kvm: {e.strerror}"
    return None


def pvm(argv, *options):
    """The command line that runs argv in a pVM."""
    return [KYLINX, "run", *options, "--", *argv]


class Result:
    def __init__(self, status, out, err, seconds):
        self.status, self.out, self.err, self.seconds = status, out, err, seconds

    def why(self):
        """A failure in one line."""
        text = (self.err.strip() or self.out.strip()).decode(errors="replace")
        return f"{status_text(self.status)}{': ' if text else ''}{one_line(text)}"


def status_text(status):
    if status is None:
        return "timeout"
    if status < 0:
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"
    return f"status {status}"


def one_line(text, limit=300):
    text = " | ".join(text.split("\n"))
    return text if len(text) <= limit else "..." + text[-limit:]


def group_kill(p):
    """End p, a leader of its own process group, with everything in that group; reap it."""
    try:
        os.killpg(p.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    p.wait()


def run(argv, timeout=180, stdin=None, cwd=None, env=None):
    """Run argv in a session of its own. Never hangs; never raises but for a program that is not there."""
    full = dict(os.environ)
    full.update(env or {})
    start = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as inp:
        inp.write(stdin or b"")
        inp.seek(0)
        try:
            p = subprocess.Popen(argv, stdin=inp if stdin else subprocess.DEVNULL, stdout=out, stderr=err, cwd=cwd,
                                 env=full, start_new_session=True)
        except OSError as e:
            return Result(127, b"", f"{argv[0]}: {e.strerror}".encode(), 0.0)
        try:
            status = p.wait(limit(timeout))
        except subprocess.TimeoutExpired:
            status = None
        group_kill(p)
        out.seek(0)
        err.seek(0)
        return Result(status, out.read(), err.read(), time.monotonic() - start)


def lines(pipe, deadline):
    """Lines of a pipe up to its end. TimeoutExpired when the time is deadline(), which may change meanwhile."""
    os.set_blocking(pipe.fileno(), False)
    data = b""
    with selectors.DefaultSelector() as sel:
        sel.register(pipe, selectors.EVENT_READ)
        while True:
            if not sel.select(max(0, deadline() - time.monotonic())):
                raise subprocess.TimeoutExpired("lines", 0)
            chunk = os.read(pipe.fileno(), 65536)
            *whole, data = (data + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
            if not chunk:
                return


class Server:
    """A server in a session of its own, up when its TCP port accepts; ended by its pid at the end of the block."""

    def __init__(self, argv, port, timeout=90, cwd=None, stop=signal.SIGTERM, host="127.0.0.1"):
        self.port, self.timeout, self.stop, self.host, self.status = port, timeout, stop, host, None
        self.log = tempfile.TemporaryFile()
        self.p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, cwd=cwd,
                                  start_new_session=True)

    def __enter__(self):
        end = time.monotonic() + limit(self.timeout)
        while time.monotonic() < end:
            if self.p.poll() is not None:
                break
            try:
                socket.create_connection((self.host, self.port), 1).close()
                return self
            except OSError:
                time.sleep(0.05)
        why = "not listening" if self.p.poll() is None else status_text(self.p.returncode)
        text = f"server: {why}: {self.output()}"
        self.__exit__()
        raise AssertionError(text)

    def output(self):
        self.log.seek(0)
        return one_line(self.log.read().decode(errors="replace").strip())

    def __exit__(self, *_):
        if self.p.poll() is None:
            self.p.send_signal(self.stop)
            try:
                self.p.wait(limit(90))
            except subprocess.TimeoutExpired:
                pass
        self.status = self.p.returncode
        group_kill(self.p)
        self.log.close()


def received(sock):
    """All that comes, up to the end."""
    got = b""
    while True:
        part = sock.recv(1 << 16)
        if not part:
            return got
        got += part


def ports():
    """Numbers below those that the kernel gives to whoever asks for any, in an order of this process's own."""
    low = int((read("/proc/sys/net/ipv4/ip_local_port_range").split() or ["32768"])[0])
    numbers = list(range(10000, low))
    random.Random(os.getpid()).shuffle(numbers)
    return iter(numbers)


def bindable(port):
    """Whether nobody has the number, by TCP and UDP, IPv4 and IPv6 (where there is any)."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            try:
                with socket.socket(family, kind) as s:
                    s.bind((host, port))
            except OSError as e:
                if e.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    return False
    return True


def free_port():
    """For a server. No client's end of a connection gets it meanwhile, as it could one of those that bind() chooses."""
    global PORTS
    PORTS = PORTS or ports()
    for port in PORTS:
        if bindable(port):
            return port
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Dir:
    """A scratch directory, gone afterwards."""

    def __enter__(self):
        self.path = tempfile.mkdtemp(prefix="kylinx-test-")
        os.chmod(self.path, 0o755)
        return self.path

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)


class Tap:
    """Result lines: ok N - name, not ok N - name: why, ok N - name # SKIP reason."""

    def __init__(self):
        self.n = self.passed = self.failed = self.skipped = 0

    def ok(self, name):
        self.n += 1
        self.passed += 1
        print(f"ok {self.n} - {name}", flush=True)

    def fail(self, name, why):
        self.n += 1
        self.failed += 1
        print(f"not ok {self.n} - {name}: {one_line(why, 600)}", flush=True)

    def skip(self, name, why):
        self.n += 1
        self.skipped += 1
        print(f"ok {self.n} - {name} # SKIP {why}", flush=True)

    def end(self):
        print(f"1..{self.n}")
        print(f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped")
        return 1 if self.failed else 0


# ---- leaks ----------------------------------------------------------------------------------------------------

def read(path):
    try:
        with open(path, errors="replace") as f:
            return f.read()
    except OSError:
        return ""


def kids(pid):
    """Of the process's first thread: without the helpers of the monitor's, of which the one that closes VMs is always there."""
    return [int(p) for p in read(f"/proc/{pid}/task/{pid}/children").split() if not read(f"/proc/{p}/comm").startswith("kx-")]


def names(path):
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def link(path):
    try:
        return os.readlink(path)
    except OSError:
        return ""


def below(pid):
    """Whether a process descends from us. We are the subreaper: none gets away by the death of its parent."""
    while pid > 1 and pid != os.getpid():
        m = re.search(r"^PPid:\s*(\d+)$", read(f"/proc/{pid}/status"), re.M)
        pid = int(m[1]) if m else 0
    return pid == os.getpid()


def monitors():
    """Processes of this KYLINX, by their executable: their names are the guests'. Not those of another run of tests."""
    return [f"{pid} {read(f'/proc/{pid}/comm').strip()}" for pid in names("/proc") if pid.isdigit()
            and link(f"/proc/{pid}/exe").split(" (deleted)")[0] == KYLINX and below(int(pid))]


def children():
    """Ours, and, as we are the subreaper, what our dead children left running."""
    pids = read(f"/proc/self/task/{os.getpid()}/children").split()
    return [f"{pid} {read(f'/proc/{pid}/comm').strip()}" for pid in pids]


def state():
    """What a test must leave as it was."""
    fds = [f"{n} {link('/proc/self/fd/' + n)}" for n in names("/proc/self/fd")]
    return {
        "process": set(children()) | set(monitors()),
        "descriptor": {f for f in fds if not f.endswith("/fd")},
        "mount": set(read("/proc/self/mountinfo").splitlines()),
        "network namespace": set(names("/run/netns")) | set(names("/var/run/netns")),
        "/dev/shm entry": set(names("/dev/shm")),
        "/tmp entry": set(names("/tmp")) | set(names(tempfile.gettempdir())),
        "SysV object": {f"{k} {line.split()[1]}" for k in ("shm", "msg", "sem")
                        for line in read(f"/proc/sysvipc/{k}").splitlines()[1:]},
    }


def leaks(before, after):
    """In words, what is there now and was not before."""
    found = [f"{kind} {item}" for kind in after for item in sorted(after[kind] - before[kind])]
    return [f for f in found if not IGNORE.search(f)]


# ---- running tests ----------------------------------------------------------------------------------------------

class Skip(Exception):
    """Raised by a test that can't run here, with the reason."""


def expect(got, want, what):
    if got != want:
        a, b = repr(got), repr(want)
        n = len(os.path.commonprefix((a, b)))
        if len(a) + len(b) > 600:  # where they differ
            n = max(n - 80, 0)
            a, b = f"[{n}:] {a[n:n + 200]}", b[n:n + 200]
        raise AssertionError(f"{what}: {a}, expected {b}")


def reap():
    for c in children():
        try:
            os.waitpid(int(c.split()[0]), os.WNOHANG)
        except OSError:
            pass


def settled(before, tries=300):
    """What is left over after a moment, of so many tenths of a second (limit()); processes among it are ended."""
    for _ in range(int(limit(tries))):
        reap()
        found = leaks(before, state())
        if not found:
            return []
        time.sleep(0.1)
    for f in found:
        if f.startswith("process "):
            try:
                os.kill(int(f.split()[1]), signal.SIGKILL)
            except OSError:
                pass
    time.sleep(0.1)
    reap()
    return found


def run_tests(tests, only="", left=settled, native=(), slow=10):
    """
    Run each (name, function) whose name matches `only`; the status for the script. A test fails by an exception, or by
    what is left over after it. Without KVM all are skipped but those named in `native`. Those that take longer than
    `slow` seconds are told.
    """
    tap, why = Tap(), kvm_missing()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    for name, fn in tests:
        if not re.search(only, name):
            continue
        if why and name not in native:
            tap.skip(name, why)
            continue
        before, failure, began = state(), None, time.monotonic()
        try:
            fn()
        except Skip as e:
            tap.skip(name, e)
            continue
        except Exception as e:  # noqa: BLE001, whatever it is, this test failed
            failure = str(e) if isinstance(e, AssertionError) else f"{type(e).__name__}: {e}"
        found = left(before)
        if found:
            failure = (f"{failure}; " if failure else "") + "left over: " + ", ".join(found[:10])
        if failure:
            tap.fail(name, failure)
        else:
            tap.ok(name)
        if time.monotonic() - began > slow:
            print(f"# {name} took {time.monotonic() - began:.0f} s", flush=True)
    return tap.end()
