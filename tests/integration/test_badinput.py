#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Bad input and rough treatment. Usage: test_badinput.py [KYLINX] [NAME...]; prints result lines, ends nonzero on a
failure. KX_SEEDS is the number of seeds for random jumps and random code (200).

What kylinx cannot run it refuses with one line on standard error, `kylinx: what: why (remedy)`, and 125, 126 or 127.
What a program does to itself or to the memory it shares with the monitor may end that pVM, by a signal or by 125 and
one line; it never ends in a fault of the monitor ("internal fault"), and never in something that cannot be killed.
"""
import concurrent.futures
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
if len(sys.argv) > 1:
    os.environ["KYLINX"] = os.path.abspath(sys.argv[1])
sys.dont_write_bytecode = True
sys.path.insert(0, HERE)
import lib  # noqa: E402

ONE_LINE = re.compile(r"\Akylinx: [^\n]+: [^\n]+ \([^\n]+\)\n\Z")
LOG_LINE = re.compile(r"\Akylinx: (error|warn|info) [^\n]+\Z")
TIMEOUT = 60
SEEDS = int(os.environ.get("KX_SEEDS", "200"))
HOSTILE = os.path.join(lib.TOP, "tests/guest/hostile/hostile.c")
PAGE = 4096

tests = []


class Skip(Exception):
    pass


def test(fn):
    tests.append(fn)
    return fn


def expect(got, want, what):
    if got != want:
        raise AssertionError(f"{what}: {got!r}, expected {want!r}")


class Done:
    def __init__(self, status, out, err, timed_out):
        self.status, self.out, self.err, self.timed_out = status, out, err, timed_out

    def __str__(self):
        return f"{'timed out, ' if self.timed_out else ''}status {self.status}, stderr {self.err[-300:]!r}"


def start(argv, **kw):
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, **kw)


def execute(argv, timeout=TIMEOUT, **kw):
    """Run argv; kill it at the timeout. What SIGKILL does not end within 5 s is an error."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        p = start(argv, stdout=out, stderr=err, **kw)
        timed_out = False
        try:
            p.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            p.kill()
            try:
                p.wait(5)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{' '.join(argv)}: SIGKILL does not end it") from None
        lib.group_kill(p)
        out.seek(0)
        err.seek(0)
        return Done(p.returncode, out.read().decode(errors="replace"), err.read().decode(errors="replace"), timed_out)


def run(*args, **kw):
    return execute([lib.KYLINX, "run", *args], **kw)


def refused(r, statuses, text=""):
    if r.timed_out or r.status not in statuses:
        raise AssertionError(f"{r}, expected status {' or '.join(map(str, statuses))}")
    if not ONE_LINE.match(r.err):
        raise AssertionError(f"not one line 'kylinx: what: why (remedy)': {r.err!r}")
    if text not in r.err:
        raise AssertionError(f"{text!r} not in {r.err!r}")


def refused_or_ran(r, what):
    """A bad file: refused in one line, or run with whatever end the program has found."""
    if r.timed_out:
        raise AssertionError(f"{what}: {r}")
    sound(r, what)
    if r.status in (125, 126, 127):
        if not ONE_LINE.match(r.err) and not all(LOG_LINE.match(s) for s in r.err.splitlines()):
            raise AssertionError(f"{what}: {r}")


def sound(r, what):
    if "internal fault" in r.err or "kylinx: error" in r.err and r.status not in (125, -9, 0, 1):
        raise AssertionError(f"{what}: {r}")


def parallel(fn, items, workers=2):
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(fn, items))


def compiler(*names):
    for n in names:
        if shutil.which(n):
            return n
    raise Skip(f"no {' or '.join(names)}")


def build(d, source, *flags, cc=("gcc",), name="prog"):
    path = os.path.join(d, name)
    with open(path + ".c", "w") as f:
        f.write(source)
    subprocess.run([compiler(*cc), "-O1", "-o", path, path + ".c", *flags], check=True, stderr=subprocess.DEVNULL)
    return path


def write(d, name, data, mode=0o755):
    path = os.path.join(d, name)
    with open(path, "wb") as f:
        f.write(data)
    os.chmod(path, mode)
    return path


# ---- ELF files made by hand -------------------------------------------------------------------------------------

EXIT_7 = bytes.fromhex("bf07000000" "b83c000000" "0f05")  # mov $7, %edi; mov $60, %eax; syscall
BASE = 0x400000


def segment(vaddr, data_offset, filesz, memsz=None, flags=5, kind=1, align=PAGE):
    return struct.pack("<IIQQQQQQ", kind, flags, data_offset, vaddr & (1 << 64) - 1, vaddr & (1 << 64) - 1, filesz,
                       filesz if memsz is None else memsz, align)


def elf(segments=None, entry=BASE + 0x800, machine=62, kind=2, bits=2, order=1, phentsize=56, phnum=None, phoff=64,
        tail=b"", version=1):
    if segments is None:
        segments = [segment(BASE, 0, PAGE)]
    head = b"\x7fELF" + bytes([bits, order, version]) + bytes(9) + struct.pack(
        "<HHIQQQIHHHHHH", kind, machine, 1, entry & (1 << 64) - 1, phoff & (1 << 64) - 1, 0, 0, 64, phentsize,
        len(segments) if phnum is None else phnum, 64, 0, 0)
    data = head + b"".join(segments)
    return (data.ljust(0x800, b"\0") + EXIT_7).ljust(PAGE, b"\0") + tail


@test
def files_that_are_not_there():
    refused(run("--", "./kylinx-none"), [127], "kylinx-none")
    refused(run("--", "kylinx-none"), [127], "not found")
    refused(run("--", "/nosuch/dir/prog"), [127], "/nosuch/dir/prog")
    refused(run("--", "x" * 255), [127])
    refused(run("--", "./" + "x" * 300), [126, 127])
    refused(run("--", "/" + "x/" * 2500), [126, 127])
    refused(run("--", "/a\nb\r\x1b[31m"), [127])


@test
def files_that_are_not_programs():
    with lib.Dir() as d:
        refused(run("--", d), [126], "directory")
        for name, data in (("empty", b""), ("zeros", bytes(8192)), ("text", b"hello\n" * 100), ("short", b"\x7fELF"),
                           ("bad-magic", b"\x7fELG" + elf()[4:]), ("class32", elf(bits=1)),
                           ("elf32", b"\x7fELF\1\1\1" + bytes(9) + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0x8048000, 52, 0,
                                                                               0, 52, 32, 1, 0, 0, 0) + bytes(4096)),
                           ("big-endian", elf(order=2)), ("arm64", elf(machine=183)), ("i386", elf(machine=3)),
                           ("riscv", elf(machine=243)), ("object", elf(kind=1)), ("core", elf(kind=4)), ("type0", elf(kind=0)),
                           ("random", random.Random(1).randbytes(9000))):
            refused(run("--", write(d, name, data)), [126], name)
        ok = write(d, "ok", elf())
        expect(run("--", ok).status, 7, "the unchanged file's status")
        os.chmod(ok, 0o644)
        refused(run("--", ok), [126], "Permission denied")
        os.mkfifo(d + "/fifo", 0o755)
        refused(run("--", d + "/fifo"), [126])
        refused(run("--", "/dev/null"), [126])
        os.symlink("loop", d + "/loop")
        refused(run("--", d + "/loop"), [126, 127])


@test
def headers_and_segments_that_do_not_fit():
    top, libos = 1 << 64, 0x7f00000000
    bad = {
        "no segments": elf(phnum=0), "many segments": elf(phnum=65535), "phentsize 0": elf(phentsize=0),
        "phentsize 55": elf(phentsize=55), "phoff at the end": elf(phoff=PAGE - 8), "phoff beyond": elf(phoff=1 << 40),
        "phoff wraps": elf(phoff=top - 56), "phoff negative": elf(phoff=1 << 63),
        "segment at the top": elf([segment(top - PAGE, 0, PAGE)]),
        "segment wraps": elf([segment(BASE, 0, PAGE, top - 1)]),
        "segment wraps by a page": elf([segment(BASE, 0, PAGE, top - BASE)]),
        "segment of 512 GiB": elf([segment(BASE, 0, PAGE, 1 << 39)]),
        "segment of 2^62": elf([segment(BASE, 0, PAGE, 1 << 62)]),
        "file larger than memory": elf([segment(BASE, 0, PAGE, 16)]),
        "file of 2^63": elf([segment(BASE, 0, 1 << 63, 1 << 63)]),
        "offset wraps": elf([segment(BASE, top - PAGE, PAGE * 2)]),
        "offset of 2^63": elf([segment(BASE, 1 << 63, PAGE)]),
        "offset not congruent": elf([segment(BASE, 8, PAGE - 8)]),
        "at the LibOS": elf([segment(libos, 0, PAGE)]), "across the LibOS": elf([segment(libos - PAGE, 0, PAGE, 9 * PAGE)]),
        "at the system region": elf([segment(0x7f80000000, 0, PAGE)]),
        "above the space": elf([segment(1 << 39, 0, PAGE)]), "not canonical": elf([segment(1 << 47, 0, PAGE)]),
        "kernel half": elf([segment(0xffff800000000000, 0, PAGE)]), "page zero": elf([segment(0, 0, PAGE)], entry=0x800),
        "interpreter of no length": elf([segment(0, 0x700, 0, kind=3), segment(BASE, 0, PAGE)]),
        "interpreter unterminated": elf([segment(0, 0x800, 4, kind=3), segment(BASE, 0, PAGE)]),
        "interpreter beyond the file": elf([segment(0, 1 << 40, 20, kind=3), segment(BASE, 0, PAGE)]),
        "interpreter of 2^40": elf([segment(0, 0x800, 1 << 40, kind=3), segment(BASE, 0, PAGE)]),
    }
    runs = {
        "overlap": elf([segment(BASE, 0, PAGE), segment(BASE, 0, PAGE)]),
        "overlap with writable": elf([segment(BASE, 0, PAGE), segment(BASE, 0, PAGE, 4 * PAGE, flags=6)]),
        "descending": elf([segment(BASE + 16 * PAGE, 0, PAGE), segment(BASE, 0, PAGE)]),
        "empty": elf([segment(BASE, 0, 0, 0)]), "no right": elf([segment(BASE, 0, PAGE, flags=0)]),
        "write only": elf([segment(BASE, 0, PAGE, flags=2)]), "not executable": elf([segment(BASE, 0, PAGE, flags=4)]),
        "entry 0": elf(entry=0), "entry outside": elf(entry=BASE + 16 * PAGE), "entry at the LibOS": elf(entry=libos + 0x1000),
        "entry not canonical": elf(entry=1 << 47), "entry -1": elf(entry=-1), "bss only": elf([segment(BASE, 0, 0, PAGE)]),
        "beyond its file": elf([segment(BASE, 0, 16 * PAGE)], entry=BASE + 9 * PAGE),
        "unaligned": elf([segment(BASE + 0x10, 0x10, PAGE - 0x10)]), "align 3": elf([segment(BASE, 0, PAGE, align=3)]),
        "align 2^63": elf([segment(BASE, 0, PAGE, align=1 << 63)]), "version 9": elf(version=9),
        "shared, wraps": elf([segment(0, 0, PAGE), segment((1 << 46), 0, PAGE)], kind=3),
        "large bss": elf([segment(BASE, 0, PAGE, 1 << 37)]),
    }
    with lib.Dir() as d:
        for name, data in bad.items():
            r = run("--", write(d, "f", data), timeout=20)
            try:
                refused(r, [126])
            except AssertionError as e:
                raise AssertionError(f"{name}: {e}") from None
        for name, data in runs.items():
            refused_or_ran(run("--", write(d, "f", data), timeout=20), name)


@test
def interpreters():
    def with_interp(name):
        return elf([segment(0, PAGE, len(name), kind=3, align=1), segment(BASE, 0, PAGE)], tail=name)
    with lib.Dir() as d:
        refused(run("--", write(d, "f", with_interp(b"/nosuch/ld.so\0"))), [126, 127], "/nosuch/ld.so")
        refused(run("--", write(d, "f", with_interp(b"/etc/passwd\0"))), [126])
        refused(run("--", write(d, "f", with_interp(b"/etc\0"))), [126])
        refused(run("--", write(d, "f", with_interp(b"\0"))), [126, 127])
        refused(run("--", write(d, "f", with_interp(b"a" * 5000 + b"\0"))), [126, 127])
        refused(run("--", write(d, "f", with_interp((d + "/f").encode() + b"\0"))), [126, 127])
        write(d, "ld", elf([segment(BASE, 0, PAGE, 1 << 62)]))
        refused(run("--", write(d, "f", with_interp((d + "/ld").encode() + b"\0"))), [126])
        for i, line in enumerate(("#!", "#! ", "#!/nosuch/interp", "#!" + "x" * 5000, "#!/etc/passwd", "#!\0", "#!/etc")):
            refused(run("--", write(d, f"s{i}", line.encode() + b"\n")), [126, 127])
        refused(run("--", write(d, "self", f"#!{d}/self\n".encode())), [126, 127])
        for i in range(8):
            write(d, f"chain{i}", f"#!{d}/chain{i + 1}\n".encode())
        write(d, "chain8", b"#!/bin/sh\n")
        refused(run("--", d + "/chain0"), [126])


HELLO = '#include <stdio.h>\nint main(void) { printf("hello\\n"); return 0; }\n'


@test
def truncated_at_every_64th_byte():
    with lib.Dir() as d:
        path = build(d, HELLO, "-static", "-s", cc=("musl-gcc", "gcc"))
        with open(path, "rb") as f:
            data = f.read()
        step = max(64, len(data) // 64 // 800 * 64)

        def one(n):
            r = run("--", write(d, f"t{n}", data[:n]), timeout=20)
            os.unlink(f"{d}/t{n}")
            refused_or_ran(r, f"{n} of {len(data)} bytes")
        parallel(one, range(0, len(data), step))
        expect(run("--", path).out, "hello\n", "the whole file")


@test
def argument_list_too_long():
    def exec_in_pvm(code):
        return run("--", "/usr/bin/python3", "-S", "-c", "import os\ntry:\n " + code +
                   "\nexcept OSError as e: print('errno', e.errno)")
    for code in ("os.execv('/bin/true', ['true', 'x' * 131072])", "os.execv('/bin/true', ['true'] + ['x' * 1000] * 9000)",
                 "os.execve('/bin/true', ['true'], {str(i): 'y' * 100000 for i in range(90)})"):
        r = exec_in_pvm(code)
        expect(r.out, "errno 7\n", code)
    for code in ("os.execv('/bin/true', ['true', 'x' * 131071])", "os.execv('/bin/true', ['true'] + ['x' * 1000] * 1500)"):
        expect(exec_in_pvm(code).status, 0, code)
    big = ["x" * 131000] * 12
    expect(run("--", "/bin/true", *big).status, 0, "1.5 MB of arguments")
    resource_args = [lib.KYLINX, "run", "--", "/bin/true", *["x" * 1000] * 9000]
    try:
        execute(resource_args)
        raise AssertionError("9 MB of arguments are not E2BIG")
    except OSError as e:
        expect(e.errno, 7, "errno of exec")


# ---- the host is not as it should be ------------------------------------------------------------------------------

def in_namespace(script, *argv, **kw):
    """script runs as root in a mount namespace of its own, then argv as "$@"."""
    if os.geteuid() != 0:
        raise Skip("needs root")
    return execute(["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", *argv], **kw)


@test
def no_kvm():
    true = [lib.KYLINX, "run", "--", "/bin/true"]
    refused(in_namespace('mount -t tmpfs none /dev && exec "$@"', *true), [125], "/dev/kvm: no such device")
    with lib.Dir() as d:
        write(d, "empty", b"", 0o666)
        refused(in_namespace(f'mount --bind {d}/empty /dev/kvm && exec "$@"', *true), [125], "/dev/kvm")
    refused(in_namespace('mount --bind /dev/null /dev/kvm && exec "$@"', *true), [125], "/dev/kvm")


@test
def no_permission_for_kvm():
    with lib.Dir() as d:
        shutil.copy(lib.KYLINX, d + "/kylinx")
        refused(in_namespace("mount -t tmpfs none /dev && mknod -m 600 /dev/kvm c 10 232 && mknod -m 666 /dev/null c 1 3 && "
                             'exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"', d + "/kylinx", "run", "--",
                             "/bin/true"), [125], "/dev/kvm: permission denied")


def limited(which, soft, hard, *argv, **kw):
    return run(*argv, preexec_fn=lambda: resource.setrlimit(which, (soft, hard)), **kw)


@test
def limits_too_low():
    for kib in (200 << 10, 1 << 20, 64 << 20):
        refused(limited(resource.RLIMIT_AS, kib << 10, kib << 10, "--", "/bin/true"), [125], "ulimit -v")
    for n in (32, 64, 255):
        refused(limited(resource.RLIMIT_NOFILE, n, n, "--", "/bin/true"), [125], "ulimit")
    expect(limited(resource.RLIMIT_NOFILE, 64, 4096, "--", "/bin/true").status, 0, "soft limit of 64 descriptors")
    expect(limited(resource.RLIMIT_NOFILE, 256, 256, "--", "/bin/true").status, 0, "hard limit of 256 descriptors")
    r = limited(resource.RLIMIT_NOFILE, 64, 4096, "--", "/usr/bin/python3", "-S", "-c",
                "import os\ntry:\n while 1: n = os.dup(0)\nexcept OSError as e: print(e.errno, n)")
    expect(r.out, "24 63\n", "descriptors until EMFILE")
    for n in (0, 1, 8, 16):  # the first pages of a stack are there however low the limit
        refused_or_ran(limited(resource.RLIMIT_STACK, n << 10, n << 10, "--", "/bin/true"), f"stack of {n} KiB")
    for n in (0, 4096):
        refused_or_ran(limited(resource.RLIMIT_FSIZE, n, n, "--", "/bin/true"), f"file size of {n}")
        refused_or_ran(limited(resource.RLIMIT_MEMLOCK, n, n, "--", "/bin/true"), f"locked memory of {n}")
        refused_or_ran(limited(resource.RLIMIT_DATA, n, n, "--", "/bin/true"), f"data of {n}")


@test
def memory_too_small():
    refused(run("--memory", "0", "--", "/bin/true"), [125], "too small")
    refused(run("--memory", "4095", "--", "/bin/true"), [125])
    with lib.Dir() as d:
        path = build(d, "static char big[64 << 20]; int main(void) { for (long i = 0; i < sizeof big; i += 4096) big[i] = 1;"
                     " return big[4096] - 1; }\n", "-static", cc=("musl-gcc", "gcc"))
        refused_or_ran(run("--memory", "1M", "--", path), "64 MiB of bss in 1 MiB")
        expect(run("--memory", "128M", "--", path).status, 0, "64 MiB of bss in 128 MiB")
        refused_or_ran(run("--memory", "1M", "--", "/bin/true"), "true in 1 MiB")
        refused_or_ran(run("--memory", "1M", "--", "/usr/bin/python3", "-c", "1"), "python in 1 MiB")
        path = build(d, "#include <stdlib.h>\n#include <string.h>\nint main(void) { char *p; long n = 0;"
                     " while (n < 4096 && (p = malloc(1 << 20))) memset(p, 1, 1 << 20), n++; return n < 4096 ? 3 : 0; }\n",
                     name="eat")
        expect(run("--memory", "64M", "--", path).status, 3, "malloc fails at the limit")


# ---- signals ---------------------------------------------------------------------------------------------------------

THREADS = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *nothing(void *p) { return p; }
static void *work(void *arg)
{
	int fd = open("/tmp/f", O_RDWR | O_CREAT, 0600), shm = open("/dev/shm/s", O_RDWR | O_CREAT, 0600);
	pthread_t th;
	for (long n = 0;; n++) {
		pthread_mutex_lock(&lock);
		if (write(fd, &n, 8) < 0 || ftruncate(shm, 4096) || ftruncate(fd, 0))
			abort();
		pthread_mutex_unlock(&lock);
		char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		memset(p, 1, 1 << 16);
		munmap(p, 1 << 20);
		if (pthread_create(&th, NULL, nothing, NULL) == 0)
			pthread_join(th, NULL);
	}
	return arg;
}
int main(void)
{
	pthread_t th[3];
	if (write(1, "ready\n", 6) < 0)
		return 1;
	for (int i = 0; i < 3; i++)
		pthread_create(&th[i], NULL, work, NULL);
	pthread_join(th[0], NULL);
	return 0;
}
"""


def left_behind():
    """What a pVM can leave: processes, mounts, files, IPC objects of ours."""
    s = lib.state()
    s["process"] = set(lib.monitors())
    s["/tmp entry"] = {n for n in s["/tmp entry"] if re.search(r"kylinx|kx[-_.]", n) and not n.startswith("kylinx-test-")}
    s.pop("descriptor")
    return s


def nothing_left(before):
    for _ in range(30):
        found = lib.leaks(before, left_behind())
        if not found:
            return
        time.sleep(0.1)
    raise AssertionError("left behind: " + ", ".join(found[:10]))


@test
def killed_at_any_instant():
    rng = random.Random(5)
    with lib.Dir() as d:
        path = build(d, THREADS, "-pthread")
        before = left_behind()
        for i in range(100):
            p = start([lib.KYLINX, "run", "--", path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            time.sleep(rng.uniform(0, 0.05) if i % 2 else rng.uniform(0, 0.3))
            p.kill()
            try:
                err = p.communicate(timeout=5)[1]
            except subprocess.TimeoutExpired:
                raise AssertionError(f"kill {i}: still there") from None
            expect((p.returncode, err), (-9, b""), f"kill {i}: status and stderr")
        nothing_left(before)


@test
def killed_as_a_family():
    source = ("#include <unistd.h>\n#include <sys/mman.h>\nint main(void) { char c; for (int i = 0; i < 5; i++) if (fork() == 0)"
              " for (;;) { char *p = mmap(0, 1 << 20, 3, 34, -1, 0); *p = 1; munmap(p, 1 << 20); }\n"
              " (void)!write(1, \"ready\\n\", 6); for (;;) pause(); return c; }\n")
    with lib.Dir() as d:
        path = build(d, source)
        before = left_behind()
        for i in range(10):
            p = start([lib.KYLINX, "run", "--", path], stdout=subprocess.PIPE)
            p.stdout.readline()
            os.killpg(p.pid, signal.SIGKILL)
            expect(p.wait(5), -9, "status")
            p.stdout.close()
        nothing_left(before)


@test
def ended_by_signals():
    with lib.Dir() as d:
        path = build(d, THREADS, "-pthread")
        before = left_behind()
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGALRM,
                    signal.SIGPIPE, signal.SIGXCPU, signal.SIGRTMIN, signal.SIGRTMAX, signal.SIGSEGV, signal.SIGBUS,
                    signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP):
            p = start([lib.KYLINX, "run", "--", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            expect(p.stdout.readline(), b"ready\n", "output")
            time.sleep(0.02)
            p.send_signal(sig)
            try:
                err = p.communicate(timeout=10)[1]
            except subprocess.TimeoutExpired:
                p.kill()
                p.communicate()
                raise AssertionError(f"{sig!r} does not end it") from None
            expect((p.returncode, err), (-sig, b""), f"{sig!r}: status and stderr")
        for sig in (signal.SIGTERM, signal.SIGINT):  # while it starts
            for i in range(20):
                p = start([lib.KYLINX, "run", "--", path], stdout=subprocess.DEVNULL)
                time.sleep(i * 0.002)
                p.send_signal(sig)
                expect(p.wait(10), -sig, f"{sig!r} after {i * 2} ms")
        nothing_left(before)


@test
def stopped_and_continued():
    with lib.Dir() as d:
        path = build(d, THREADS, "-pthread")
        p = start([lib.KYLINX, "run", "--", path], stdout=subprocess.PIPE)
        try:
            p.stdout.readline()
            for i in range(30):
                p.send_signal(signal.SIGSTOP if i % 2 else signal.SIGTSTP)
                pid, status = 0, 0
                for _ in range(500):
                    pid, status = os.waitpid(p.pid, os.WUNTRACED | os.WNOHANG)
                    if pid or not i % 2:  # the group is orphaned: SIGTSTP does nothing
                        break
                    time.sleep(0.01)
                if i % 2:
                    expect((pid, os.WIFSTOPPED(status)), (p.pid, True), f"stop {i}")
                    cpu = lib.read(f"/proc/{p.pid}/stat").rsplit(")", 1)[1].split()[11:13]
                    time.sleep(0.03)
                    expect(lib.read(f"/proc/{p.pid}/stat").rsplit(")", 1)[1].split()[11:13], cpu, "CPU time while stopped")
                p.send_signal(signal.SIGCONT)
                time.sleep(0.01)
            p.send_signal(signal.SIGSTOP)
            p.send_signal(signal.SIGTERM)
            p.send_signal(signal.SIGCONT)
            expect(p.wait(10), -15, "SIGTERM to a stopped one, continued")
        finally:
            p.kill()
            p.wait()
            p.stdout.close()


# ---- hostile guests ------------------------------------------------------------------------------------------------------

def hostile():
    built = os.path.join(os.environ.get("BUILD", os.path.join(lib.TOP, "build")), "tests/guest/hostile.dyn")
    if os.path.exists(built) and os.path.getmtime(built) >= os.path.getmtime(HOSTILE):
        return os.path.abspath(built)
    path = os.path.join(scratch, "hostile")
    if not os.path.exists(path):
        subprocess.run([compiler("gcc"), "-std=gnu11", "-O2", "-g", "-pthread", "-o", path, HOSTILE], check=True)
    return path


def attack(*args, timeout=30):
    r = run("--memory", "512M", "--net", "none", "--", hostile(), *args, timeout=timeout)
    what = " ".join(("hostile", *args))
    if "internal fault" in r.err:
        raise AssertionError(f"{what}: {r}")
    for line in r.err.splitlines():  # the guest's own output (libc's abort messages) may be anything
        if line.startswith("kylinx:") and not LOG_LINE.match(line):
            raise AssertionError(f"{what}: {line!r}")
    if r.status == 125 and "kylinx: error" not in r.err:
        raise AssertionError(f"{what}: 125 without a reason: {r}")
    if "FAIL" in r.out:
        raise AssertionError(f"{what}: " + "; ".join(s for s in r.out.splitlines() if s.startswith("FAIL"))[:500])
    return r


@test
def every_hypercall_with_bad_arguments():
    before = left_behind()
    r = attack("pvm", timeout=240)
    if r.timed_out or r.status or not r.out.rstrip().endswith("SUCCESS"):
        raise AssertionError(f"{r}, output {r.out[-300:]!r}")
    nothing_left(before)


@test
def lies_in_shared_memory():
    before = left_behind()
    modes = execute([hostile(), "modes"]).out.split()
    assert len(modes) > 40, modes
    ends = {}

    def one(job):
        # A pVM that spins because its own LibOS was lied to may do so: it must die when killed.
        r = attack(*job, timeout=6)
        how = "killed" if r.timed_out else r.status
        ends[how] = ends.get(how, 0) + 1
        if job[0] in ("ports", "panic", "robust") and (r.timed_out or r.status):
            raise AssertionError(f"{job[0]}: {r}")
    parallel(one, [(m, str(seed)) for m in modes for seed in (1, 2)])
    print(f"# ends: {ends}", flush=True)
    nothing_left(before)


@test
def random_jumps_into_the_libos():
    random_attacks("jump")


@test
def random_bytes_as_code():
    random_attacks("code")


def random_attacks(mode):
    before = left_behind()

    def one(seed):
        r = attack(mode, str(seed), timeout=40)
        if r.timed_out or r.status:
            raise AssertionError(f"hostile {mode} {seed}: {r}")
        return "skipped" in r.out
    if any(parallel(one, range(1, SEEDS + 1))):
        raise Skip("the LibOS contains bytes that must not run")
    nothing_left(before)


# ---- all ---------------------------------------------------------------------------------------------------------------------

def main():
    global scratch
    tap = lib.Tap()
    only = sys.argv[2:]
    with lib.Dir() as scratch:
        for t in tests:
            name = t.__name__.replace("_", " ")
            if only and t.__name__ not in only:
                continue
            t0 = time.monotonic()
            try:
                if lib.kvm_missing():
                    raise Skip(lib.kvm_missing())
                t()
                tap.ok(name)
            except Skip as e:
                tap.skip(name, e)
            except Exception as e:  # noqa: BLE001, whatever it is, it is this test's failure
                tap.fail(name, f"{'' if isinstance(e, AssertionError) else type(e).__name__ + ' '}{e}")
            if time.monotonic() - t0 > 20:
                print(f"# {name} took {time.monotonic() - t0:.0f} s", flush=True)
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
