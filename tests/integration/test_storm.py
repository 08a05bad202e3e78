#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Families under load and at limits: storms of processes by seed, many in a row and at once, limits, kills.

test_storm.py [KYLINX] [--only PATTERN]; prints TAP. About 30 s. KX_STORM=SECONDS: so long a storm of random seeds
(KX_STORM_SEED: the first one). KX_LONG=1: 10,000 forks, 1,000 execs, 300 pVMs at once, 1,000 children of vfork killed.
"""
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402

args = lib.arguments()

GUEST = os.path.abspath(os.path.join(lib.TOP, os.environ.get("BUILD", "build"), "tests/guest"))
STORM, MANY, TRAPS = (f"{GUEST}/{n}.dyn" for n in ("storm", "many", "traps"))
LONG = bool(os.environ.get("KX_LONG"))
tests = []


def test(fn):
    tests.append((fn.__name__, fn))
    return fn


def await_(what, name, timeout=120):
    end = time.monotonic() + lib.limit(timeout)
    while time.monotonic() < end:
        if what():
            return
        time.sleep(0.02)
    raise AssertionError(f"{name}: not within {lib.limit(timeout):.0f} s")


# ---- storms ------------------------------------------------------------------------------------------------------

def storm(seed, nodes):
    want = lib.run([STORM, str(seed), str(nodes)], 600)
    expect(want.status, 0, f"seed {seed} natively ({want.why()})")
    got = lib.run(lib.pvm([STORM, str(seed), str(nodes)]), 600, cwd="/")
    if (got.status, got.out, got.err) != (0, want.out, b""):
        a, b = want.out.decode().splitlines(), got.out.decode(errors="replace").splitlines()
        diff = [f"-{x}" for x in a if x not in b][:3] + [f"+{x}" for x in b if x not in a][:5]
        raise AssertionError(f"seed {seed}, {nodes} processes: {lib.status_text(got.status)} {diff} {got.err[-300:]}")


@test
def storms():
    seconds = float(os.environ.get("KX_STORM", "0"))
    seed = int(os.environ.get("KX_STORM_SEED", random.randrange(1 << 30) if seconds else 1000))
    end, n = time.monotonic() + (seconds or lib.limit(600)), 0
    while time.monotonic() < end and (seconds or n < 3):
        storm(seed + n, 40 + 40 * (n % 3))
        n += 1
    print(f"# {n} storms from seed {seed}", flush=True)


# ---- many ---------------------------------------------------------------------------------------------------------

def held(pid):
    """What a monitor holds: descriptors by kind, mappings, threads, resident KiB."""
    kinds, ahead = {}, set()
    for fd in lib.names(f"/proc/{pid}/fd"):
        name = lib.link(f"/proc/{pid}/fd/{fd}")
        if re.search(r"^/\d+/(pagemap|statm)$", name) and name not in ahead:
            ahead.add(name)  # one of each is opened with the first child made ahead, whenever that is
            continue
        kind = re.sub(r"[\d\[\]()]+.*", "", name)
        kinds[kind] = kinds.get(kind, 0) + 1
    for kind in ("anon_inode:kvm-vm", "anon_inode:kvm-vcpu:"):
        if kinds.get(kind) == 2:  # a child made ahead shares the table, and is there or not
            kinds[kind] = 1
    rss = int(re.search(r"VmRSS:\s+(\d+)", lib.read(f"/proc/{pid}/status"))[1])
    return kinds, len(lib.read(f"/proc/{pid}/maps").splitlines()), len(lib.names(f"/proc/{pid}/task")), rss


def many(what, n, warm, timeout, grows=1024):
    """Nothing is lost in n of them: the monitor holds what it held when some had been."""
    p = subprocess.Popen(lib.pvm([MANY, what, str(n), str(warm)]), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         start_new_session=True, cwd="/")
    timer = threading.Timer(lib.limit(timeout), p.kill)
    timer.start()
    try:
        got = []
        for word in (b"warm\n", b"done\n"):
            line = p.stdout.readline()
            expect(line, word, what)
            got.append(held(p.pid))
            p.stdin.write(b"\n")
            p.stdin.flush()
        expect(p.wait(lib.limit(180)), 0, "status")
        (fds, maps, tasks, rss), (fds2, maps2, tasks2, rss2) = got
        expect(fds2, fds, f"{n} {what}s: descriptors of the monitor")
        # The service thread begins when it pays.
        expect(abs(tasks2 - tasks) <= 1, True, f"{n} {what}s: {tasks} threads of the monitor, then {tasks2}")
        if maps2 > maps + 4 or rss2 > rss + grows:
            raise AssertionError(f"{n} {what}s: mappings {maps}, then {maps2}; resident KiB {rss}, then {rss2}")
        print(f"# {n} {what}s: mappings {maps}, {maps2}; resident KiB {rss}, {rss2}", flush=True)
    finally:
        timer.cancel()
        lib.group_kill(p)
        p.stdin.close()
        p.stdout.close()


@test
def many_forks():
    many("fork", 10000 if LONG else 1000, 50, 900)


@test
def many_vforks():
    many("vfork", 10000 if LONG else 1000, 50, 900)


@test
def many_execs():
    many("exec", 1000 if LONG else 40, 10, 900)


@test
def many_alive():
    many("alive", 300 if LONG else 40, 10, 900, 4096)


def vfork_kills():
    """A thousand; tests/guest/traps does some in any case."""
    r = lib.run(lib.pvm([TRAPS, "1050", "vfork_kills"]), 900, cwd="/")
    expect(r.status, 0, r.why())


if LONG:
    test(vfork_kills)


# ---- limits ---------------------------------------------------------------------------------------------------------

class Cgroup:
    """A group of its own for a controller, of version 2 or 1, whose `max` is that, or Skip."""
    TOP = "/sys/fs/cgroup"

    def __init__(self, controller, most):
        v2 = os.path.exists(f"{self.TOP}/cgroup.controllers")
        top = self.TOP if v2 else f"{self.TOP}/{controller}"
        self.path = f"{top}/kylinx-test-{os.getpid()}"
        self.max = f"{self.path}/{controller}.{'limit_in_bytes' if controller == 'memory' and not v2 else 'max'}"
        try:
            if v2:
                with open(f"{top}/cgroup.subtree_control", "w") as f:
                    f.write(f"+{controller}")
            os.mkdir(self.path)
            with open(self.max, "w") as f:
                f.write(str(most))
        except OSError as e:
            self.__exit__()
            raise Skip(f"no cgroup for {controller}: {e.strerror}") from None

    def __enter__(self):
        return self

    def run(self, argv, timeout=180):
        script = f'echo $$ >{self.path}/cgroup.procs && exec "$@"'
        return lib.run(["sh", "-c", script, "sh", *argv], timeout, cwd="/")

    def __exit__(self, *_):
        for _ in range(1200):
            try:
                os.rmdir(self.path)
                return
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.05)


@test
def cgroup_pids():
    """fork says EAGAIN at the group's limit, and the parent goes on."""
    with Cgroup("pids", 40) as g:
        r = g.run(lib.pvm([MANY, "nproc", "3"]))
        expect((r.status, r.out), (0, b"nproc: fine\n" * 3), r.why())


@test
def habit_at_the_limit():
    """Whatever the limit: a child that can be made can be made again. One that the monitor makes ahead is nobody's."""
    seen = []
    for most in range(3, 9):
        with Cgroup("pids", most) as g:
            r = g.run(lib.pvm([MANY, "habit", "3"]), 90)
        if r.out.startswith(b"habit: "):
            seen.append((most, *map(int, r.out[7:].split())))
            expect(r.status, 0, f"at most {most}: {r.why()}")
        else:
            expect(r.status in (125, 126, 127, 1) and r.err != b"", True, f"at most {most}: {r.why()}")
    print(f"# processes at most, forks of 3, after a change, vforks, threads: {seen}")
    for most, *made in seen:
        expect(all(n in (0, 3) for n in made[:2]), True, f"at most {most}: {made}")
    for a, b in zip(seen, seen[1:]):
        expect(all(x <= y for x, y in zip(a[1:], b[1:])), True, f"more with {a[0]} than with {b[0]}: {seen}")
    expect(seen[-1][1:], (3, 3, 3, 3), "at the end")


@test
def no_process_for_a_vm():
    """KVM may want a process of its own at a VM's first run: a start without one is an error, and who was forked is killed."""
    with Cgroup("pids", 1) as g:
        r = g.run(lib.pvm(["true"]), 60)
    if r.status == 0:
        raise Skip("this host's KVM wants none")
    expect((r.status, b"limit of processes" in r.err), (125, True), f"a start: {r.why()}")
    script = """
import os
for i in range(2):
    if i: print("ready", flush=True), input()
    p = os.fork()
    if not p: os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]), flush=True)
"""
    with Cgroup("pids", "max") as g, tempfile.TemporaryFile() as err:
        p = subprocess.Popen(["sh", "-c", f'echo $$ >{g.path}/cgroup.procs && exec "$@"', "sh", *lib.pvm([PYTHON, "-I", "-c", script])],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, cwd="/", start_new_session=True)
        try:
            expect((p.stdout.readline(), p.stdout.readline()), (b"7\n", b"ready\n"), "with room")
            with open(g.max, "w") as f:
                f.write(str(int(lib.read(f"{g.path}/pids.current")) + 1))
            out = p.communicate(b"\n", lib.limit(60))[0]
        finally:
            lib.group_kill(p)
        err.seek(0)
        text = err.read()
        expect((p.returncode, out, b"no VM: the limit" in text), (0, b"-9\n", True), f"a child: {text}")


@test
def rlimit_nproc():
    """The same for a user's limit."""
    r = lib.run([MANY, "user-nproc", "3"])
    if r.status == 77:
        raise Skip(r.why())
    expect((r.status, r.out), (0, b"nproc: fine\n" * 3), f"natively: {r.why()}")
    r = lib.run(lib.pvm([MANY, "user-nproc", "3"]), cwd="/")
    expect((r.status, r.out), (0, b"nproc: fine\n" * 3), r.why())


PYTHON = "/usr/bin/python3"


def python(script, *options, timeout=180, wrap=None):
    argv = lib.pvm([PYTHON, "-I", "-c", script], *options)
    return wrap(argv) if wrap else lib.run(argv, timeout, cwd="/")


EAT = """
import os, mmap, sys
def eat(mib):
    m = mmap.mmap(-1, mib << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for i in range(0, mib << 20, 4096): m[i] = 1
    return m
p = os.fork()
if not p:
    try:
        eat(400)
    except OSError as e:
        os._exit(e.errno)
    os._exit(0)
st = os.waitstatus_to_exitcode(os.waitpid(p, 0)[1])
keep = eat(20)
p = os.fork()
if not p: os._exit(7)
print(st, os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]))
"""


@test
def memory_option():
    """A child that reaches --memory gets ENOMEM, and its parent goes on."""
    r = python(EAT, "--memory", "200M")
    expect((r.status, r.out), (0, b"12 7\n"), r.why())


@test
def cgroup_memory():
    """A child that eats the group's memory is killed, as natively, and its parent goes on."""
    with Cgroup("memory", 250 << 20) as g:
        want = g.run([PYTHON, "-I", "-c", EAT])
        got = python(EAT, wrap=g.run)
        expect((got.status, got.out), (want.status, want.out), got.why())
        expect(want.out, b"-9 7\n", "natively")


@test
def full_disk():
    script = """
import os, errno
try:
    with open("/full/a", "wb", 0) as f:
        while True: f.write(b"x" * 5000)
except OSError as e:
    print(errno.errorcode[e.errno], os.path.getsize("/full/a"))
p = os.fork()
if not p:
    try:
        fd = os.open("/full/b", os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"x" * 5000)
    except OSError as e: os._exit(e.errno)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]))
os.unlink("/full/a"); print(os.path.exists("/full/a"))
"""
    if os.getuid():
        raise Skip("needs root, to mount")
    with lib.Dir() as d:
        if (r := lib.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", d])).status:
            raise Skip(r.why())
        try:
            got = python(script, "--volume", f"{d}:/full")
        finally:
            lib.run(["umount", d])
        expect((got.status, got.out), (0, b"ENOSPC 65536\n28\nFalse\n"), got.why())


REFUSE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#define CREATE_VM 0xae01
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
/* refuse N PROGRAM...: the first N times that a process but the first asks for a VM, there is no memory for it. */
int main(int argc, char **argv)
{
	static unsigned char asked[1 << 22];
	struct sock_filter f[] = { LOAD(nr), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3), LOAD(args[1]),
				   BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CREATE_VM, 0, 1),
				   BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
				   BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
	struct sock_fprog prog = { sizeof f / sizeof *f, f };
	int n = atoi(argv[1]), first = 0, refused = 0, st;
	int fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &prog);
	if (fd < 0)
		return 77;
	pid_t p = fork();
	if (!p) {
		close(fd);
		execv(argv[2], argv + 2);
		_exit(78);
	}
	while (!waitpid(p, &st, WNOHANG)) {
		struct pollfd w = { fd, POLLIN };
		struct seccomp_notif q = { 0 };
		if (poll(&w, 1, 20) <= 0 || !(w.revents & POLLIN) || ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, &q))
			continue;
		struct seccomp_notif_resp a = { .id = q.id };
		first = first ? first : (int)q.pid;
		if ((int)q.pid != first && asked[q.pid] < n) {
			asked[q.pid]++;
			refused++;
			a.error = -ENOMEM;
		} else {
			a.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
		}
		ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, &a);
	}
	fprintf(stderr, "refused %d\n", refused);
	return WIFEXITED(st) ? WEXITSTATUS(st) : 128 + WTERMSIG(st);
}
"""


# Another child has ended, of which no thread has heard yet; a second thread's fork fails.
FORK_BESIDE_AN_END = """
import os, signal, threading, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
os.posix_spawn("/bin/true", ["true"], {})
while signal.SIGCHLD not in signal.sigpending(): time.sleep(0.01)
def beside():
    try:
        if not os.fork(): os._exit(7)
    except OSError as e: print(e.strerror)
t = threading.Thread(target=beside)
t.start()
t.join()
print(signal.SIGCHLD in signal.sigpending())
"""


@test
def no_vm_for_a_child():
    """What is short for a moment is asked for again; what stays short is fork's error, and the parent's life goes on."""
    if os.getuid():
        raise Skip("needs root, to watch calls")
    script = """
import os, signal
signal.signal(signal.SIGCHLD, lambda *a: got.append(a[0]))
for i in range(3):
    got = []
    try: p = os.fork()
    except OSError as e:
        print(e.strerror, got, os.listdir("/proc/self/task") == [str(os.getpid())])
        try: os.waitpid(-1, 0)
        except ChildProcessError: continue
    if not p: os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]), len(got))
"""
    with lib.Dir() as d:
        refuse = os.path.join(d, "refuse")
        with open(refuse + ".c", "w") as f:
            f.write(REFUSE)
        if (r := lib.run(["gcc", "-o", refuse, refuse + ".c"])).status:
            raise AssertionError(r.why())
        none = b"Cannot allocate memory [] True\n" * 3
        for n, want, refused in ((3, b"7 1\n" * 3, 9), (200, none, 21)):
            got = lib.run([refuse, str(n), *lib.pvm([PYTHON, "-I", "-c", script])])
            expect((got.status, got.out, int(got.err.split()[-1]) >= refused), (0, want, True), f"{n}: {got.why()}")
        got = lib.run([refuse, "200", *lib.pvm([PYTHON, "-I", "-c", FORK_BESIDE_AN_END])])
        expect((got.status, got.out), (0, b"Cannot allocate memory\nTrue\n"), got.why())


# ---- files that are swapped ------------------------------------------------------------------------------------------

TABLE = ("#include <stdio.h>\n#include <unistd.h>\n#define M MARK\nstatic const int t[] = { [0 ... SIZE] = M };\n"
         "static int d[SIZE] = { [0 ... SIZE - 1] = M };\n"
         "int check(void) { for (int i = 0; i < SIZE; i++) if (t[i] != M || d[i] != M) return 99; "
         "return getppid() > 0 || getpid() > 0 ? M : 99; }\n")
LOADER = """
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
	int seen[3] = { 0 };
	for (int i = 0; i < 150; i++) {
		void *h = dlopen(argv[1], RTLD_NOW);
		if (!h) { puts(dlerror()); return 1; }
		int r = ((int (*)(void))dlsym(h, "check"))();
		dlclose(h);
		if (r != 10 && r != 20) { printf("mixed: %d\\n", r); return 2; }
		seen[r / 10]++;
	}
	printf("%d\\n", seen[1] + seen[2]);
	return argc != 2;
}
"""


class Swapper:
    """Renames one of two files over a third, again and again."""

    def __init__(self, d, name):
        script = (f"cd {d}; while :; do cp -p {name}.1 {name}.t; mv -f {name}.t {name}; "
                  f"cp -p {name}.2 {name}.t; mv -f {name}.t {name}; done")
        self.p = subprocess.Popen(["sh", "-c", script], start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        lib.group_kill(self.p)


def compile_two(d, name, main, *flags):
    for k, size in ((1, 3000), (2, 60000)):
        lib_c = f"{d}/{name}{k}.c"
        with open(lib_c, "w") as f:
            f.write(TABLE + main)
        subprocess.run(["gcc", "-O1", f"-DMARK={k}0", f"-DSIZE={size}", "-o", f"{d}/{name}.{k}", lib_c, *flags], check=True)
    shutil.copy(f"{d}/{name}.1", f"{d}/{name}")


@test
def library_swapped():
    """A library that is renamed over while it is opened: each time it is the one or the other."""
    with lib.Dir() as d:
        compile_two(d, "l.so", "", "-shared", "-fPIC")
        with open(f"{d}/loader.c", "w") as f:
            f.write(LOADER)
        subprocess.run(["gcc", "-O1", "-o", f"{d}/loader", f"{d}/loader.c"], check=True)
        with Swapper(d, "l.so"):
            r = lib.run(lib.pvm([f"{d}/loader", f"{d}/l.so"], "--volume", f"{d}:{d}"), 600)
        expect((r.status, r.out), (0, b"150\n"), r.why())


@test
def program_swapped():
    """A program that is renamed over while it is executed, from outside and from inside."""
    with lib.Dir() as d:
        compile_two(d, "prog", "int main(void) { return check(); }\n")
        with Swapper(d, "prog"):
            for _ in range(15):
                r = lib.run(lib.pvm([f"{d}/prog"], "--volume", f"{d}:{d}"), 180)
                expect(r.status in (10, 20), True, f"run: {r.why()}")
            script = f"for i in $(seq 30); do {d}/prog; echo $?; done"
            r = lib.run(lib.pvm(["sh", "-c", script], "--volume", f"{d}:{d}"), 600)
            seen = r.out.decode().split()
            expect((len(seen), set(seen) <= {"10", "20"}), (30, True), f"exec: {seen} {r.why()}")


# ---- kills -------------------------------------------------------------------------------------------------------------

@test
def root_killed():
    """Fifty descendants go on as orphans when the root is killed; they vanish when they end."""
    script = "exec 3<&0; for i in $(seq 50); do (read x <&3; echo $i) & done; echo up; wait"
    p = subprocess.Popen(lib.pvm(["sh", "-c", script]), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         start_new_session=True, cwd="/")
    try:
        expect(p.stdout.readline(), b"up\n", "output")
        p.kill()
        expect(p.wait(), -signal.SIGKILL, "status")
        p.stdin.close()
        out = sorted(int(x) for x in p.stdout.read().split())  # ends when the last of them has ended
        expect(out, list(range(1, 51)), "what they print")
    finally:
        lib.group_kill(p)
        p.stdout.close()


@test
def storm_killed():
    """SIGKILL of the root, then of all of its group, at random instants of a storm."""
    rng = random.Random(11)
    for i in range(25):
        p = subprocess.Popen(lib.pvm([STORM, str(i), "150"]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             start_new_session=True, cwd="/")
        time.sleep(rng.random() * 0.6)
        p.kill()
        p.wait()
        time.sleep(rng.random() * 0.05)
        end = time.monotonic() + lib.limit(60)
        while time.monotonic() < end:  # a fork may have been on its way
            try:
                os.killpg(p.pid, signal.SIGKILL)
            except ProcessLookupError:
                break
            lib.reap()
            time.sleep(0.01)


# ---- running -----------------------------------------------------------------------------------------------------------

def main():
    return lib.run_tests(tests, args.only)


if __name__ == "__main__":
    sys.exit(main())
