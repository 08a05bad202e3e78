#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The library store. Usage: test_lib.py [KYLINX]; prints TAP, ends nonzero on a failure."""
import ctypes
import hashlib
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
if len(sys.argv) > 1:
    os.environ["KYLINX"] = sys.argv[1]
import lib  # noqa: E402

tests = []


def test(fn):
    tests.append(fn)
    return fn


def expect(got, want, what):
    if got != want:
        raise AssertionError(f"{what}: {got!r}, expected {want!r}")


def kylinx(store, *args, config=None, **kw):
    env = {"KYLINX_STORE": store, **({"KYLINX_CONFIG": config} if config else {})}
    return lib.run([lib.KYLINX, *args], env=env, **kw)


def start(store, *argv, **kw):
    return kylinx(store, "run", "--", *(argv or ("/bin/ls", "/bin/true")), **kw)


def ok(r, out=None):
    if r.status != 0:
        raise AssertionError(r.why())
    if out is not None:
        expect((r.out, r.err), (out, b""), "output")
    return r


def files(store):
    """Every file of the store: what a write would change."""
    found = {}
    for top, _, names in os.walk(store):
        for n in names:
            st = os.stat(os.path.join(top, n))
            found[os.path.join(top, n)] = (st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns)
    return found


def images(store):
    return sorted(f for f in files(store) if "/images/" in f)


def stored(store):
    return [e["path"] for e in json.loads(ok(kylinx(store, "lib", "list", "--json")).out)]


def warm(store):
    ok(start(store), b"/bin/true\n")
    ok(start(store), b"/bin/true\n")  # what was noted
    assert len(images(store)) >= 2, images(store)


@test
def filled_before_the_first_start(d):
    """What the program is linked with is stored before it runs; what it loads, before its next start."""
    ok(start(d + "/s"), b"/bin/true\n")
    names = [e["path"] for e in json.loads(ok(kylinx(d + "/s", "lib", "list", "--json")).out)]
    assert any("libc.so" in n for n in names) and any("ld-linux" in n for n in names), names
    assert any("libselinux" in n for n in names), names  # /bin/ls needs it, which needs libpcre
    before = files(d + "/s")
    for _ in range(3):
        ok(start(d + "/s"), b"/bin/true\n")
    expect(files(d + "/s"), before, "a warm start writes nothing")
    ok(kylinx(d + "/s", "lib", "verify"))
    script = "import ctypes; ctypes.CDLL('libm.so.6'); ctypes.CDLL('libresolv.so.2')"
    for _ in range(2):
        assert not any("libresolv" in n for n in stored(d + "/s")), stored(d + "/s")
        ok(start(d + "/s", "/usr/bin/python3", "-S", "-c", script))
    ok(start(d + "/s", "/usr/bin/python3", "-S", "-c", script))
    assert any("libresolv" in n for n in stored(d + "/s")), stored(d + "/s")


@test
def text_once_in_memory_for_50(d):
    store, n = d + "/s", 50
    for _ in range(2):
        ok(start(store, "/bin/sleep", "0"))
    before = files(store)
    env = dict(os.environ, KYLINX_STORE=store)
    ps = [subprocess.Popen([lib.KYLINX, "run", "--", "/bin/sleep", "1000"], env=env, stdin=subprocess.DEVNULL)
          for _ in range(n)]
    try:
        end = time.monotonic() + lib.limit(300)
        maps, private, pss = [0], None, 0
        # Pss is cut to whole KiB for each mapping; what all of them have is at most what is in the files.
        size = sum(os.stat(f).st_size for f in images(store)) // 1024
        while time.monotonic() < end and (min(maps) < 4 or private or pss > size):
            time.sleep(0.2)
            maps = [lib.read(f"/proc/{p.pid}/maps").count("/images/") for p in ps]
            if min(maps) < 4:
                continue
            # What smaps calls private may be a page of the file's that only one of them has touched: no second copy.
            inodes, pss, rss, private = set(), 0, {}, 0
            for p in ps:
                mapped = None
                for line in lib.read(f"/proc/{p.pid}/smaps").splitlines():
                    if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                        mapped = line.split()[4] if "/images/" in line else None
                        if mapped:
                            inodes.add(mapped)
                            private += line.split()[1] != "r--s"  # a copy, until it sleeps
                    elif mapped:
                        key, value = line.split()[:2]
                        if key == "Pss:":
                            pss += int(value)
                        if key == "Rss:":
                            rss[p.pid] = rss.get(p.pid, 0) + int(value)
                        if key == "Anonymous:":
                            private += int(value)
        assert min(maps) >= 4, maps
        expect(len(inodes), 2, "files mapped by all (the loader, the C library)")
        assert pss <= size and sum(rss.values()) > 10 * pss, (pss, size, sum(rss.values()))
        expect(private, 0, "KiB of text that one process has a copy of")
        expect(files(store), before, "no start wrote to the store")
    finally:
        for p in ps:
            p.kill()
        for p in ps:
            p.wait()


LIB30 = """
#include <sys/syscall.h>
#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#define STR_(a) #a
#define STR(a) STR_(a)
int CAT(data, N)[64] = { N };
int *CAT(where, N)(int i) { return CAT(data, N) + i; }
long CAT(call, N)(void)
{
	long r;
	__asm__ volatile("mov %1, %%eax; syscall" : "=&a"(r) : "i"(SYS_getppid) : "rcx", "r11", "memory");
	return r;
}
void CAT(large, N)(void) { __asm__ volatile("ret; .fill 262144, 1, 0x90; .fill " STR(N) ", 1, 0x90"); }
"""


def thirty(d):
    """A program with 30 libraries of 256 KiB of text each, each with a system call; it sleeps when it has an argument."""
    with open(d + "/l.c", "w") as f:
        f.write(LIB30)
    for i in range(1, 31):
        subprocess.run(["gcc", "-O1", "-fPIC", "-shared", f"-DN={i}", "-o", f"{d}/libl{i}.so", d + "/l.c",
                        f"-Wl,-soname,libl{i}.so"], check=True)
    with open(d + "/m.c", "w") as f:
        f.write("#include <unistd.h>\nint main(int c, char **v)\n{\n")
        f.write("".join(f"\textern long call{i}(void); if (call{i}() != getppid()) return 1;\n" for i in range(1, 31)))
        f.write("\tif (c > 1) { write(1, \"ready\\n\", 6); sleep(1000); }\n\treturn 0;\n}\n")
    subprocess.run(["gcc", "-O1", "-o", d + "/m", d + "/m.c", *[f"{d}/libl{i}.so" for i in range(1, 31)],
                    "-Wl,-rpath,$ORIGIN"], check=True)
    time.sleep(1.1)  # files that have just been made are not stored


def of_proc(pid, name, key):
    return int(re.search(rf"^{key}:?\s+(\d+)", lib.read(f"/proc/{pid}/{name}"), re.M)[1])


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def cached(path):
    """How many pages of a file are in the page cache, and how many it has."""
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        pages = (size + 4095) // 4096
        vec = (ctypes.c_ubyte * pages)()
        p = LIBC.mmap(None, size, 1, 2, f.fileno(), 0)
        expect(LIBC.mincore(p, size, vec), 0, f"mincore of {path}")
        LIBC.munmap(p, size)
        return sum(v & 1 for v in vec), pages


def evict(path):
    """Out of the page cache with what nobody maps."""
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pss(ps):
    """KiB of memory for each, what they share divided between them."""
    return sum(of_proc(p.pid, "smaps_rollup", "Pss") for p in ps) / len(ps)


@test
def thirty_libraries_for_50(d):
    """The text of 30 libraries is in memory once; the 50th start reads no disk, verifies and prepares nothing."""
    store, n = d + "/s", 50
    thirty(d)
    options = ["run", "--volume", f"{d}:{d}", "--", d + "/m"]
    ok(kylinx(store, *options), b"")
    assert len(images(store)) >= 31, len(images(store))
    before, size = files(store), sum(os.stat(f).st_size for f in images(store))
    env = dict(os.environ, KYLINX_STORE=store)
    ps = []
    try:
        for _ in range(n):
            ps.append(subprocess.Popen([lib.KYLINX, "run", f"--stats={d}/stats", *options[1:], "sleep"], env=env,
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE))
            expect(ps[-1].stdout.readline(), b"ready\n", "a start")
        end = time.monotonic() + lib.limit(120)
        copied = 1
        while copied and time.monotonic() < end:  # until they sleep, they have copies of texts
            time.sleep(0.1)
            pss = rss = copied = 0
            for p in ps:
                mapped = False
                for line in lib.read(f"/proc/{p.pid}/smaps").splitlines():
                    if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                        mapped = "/images/" in line
                    elif mapped and (m := re.match(r"(Pss|Rss|Anonymous):\s+(\d+)", line)):
                        pss += int(m[2]) if m[1] == "Pss" else 0
                        rss += int(m[2]) if m[1] == "Rss" else 0
                        copied += int(m[2]) if m[1] == "Anonymous" else 0
        # What smaps calls private may be a page of the file's that only one of them has touched: no second copy.
        expect(copied, 0, "KiB of text that one process has a copy of")
        assert pss * 1024 <= size and rss > 20 * pss, (pss, rss, size)
        last = ps[-1].pid
        expect(of_proc(last, "io", "read_bytes"), 0, "bytes read from the disk by the 50th")
        expect(int(lib.read(f"/proc/{last}/stat").rsplit(")", 1)[1].split()[9]), 0, "major faults of the 50th")
        # Neither read nor mapped as a whole: what it is was not computed again.
        assert of_proc(last, "io", "rchar") < size // 8, (of_proc(last, "io", "rchar"), size)
        assert rss / n * 1024 < size / 2, (rss / n, size)
        expect(files(store), before, "no start wrote to the store")
        ps[-1].terminate()
        ps[-1].wait(lib.limit(60))
        counts = json.loads(lib.read(d + "/stats"))["libraries"]
        expect((counts["prepared"], counts["stored"], counts["found"] >= 31), (0, 0, True), f"texts {counts}")
    finally:
        for p in ps:
            p.kill()
        for p in ps:
            p.wait()
            p.stdout.close()


@test
def fiftieth_reads_no_library(d):
    """Under a policy of contents: the libraries leave the page cache, 49 starts are behind it, and the 50th neither reads, nor
    copies, hashes or prepares them. It takes as much memory as a process, and that of an idle pVM."""
    store, n = d + "/s", 50
    thirty(d)
    libs = [f"{d}/libl{i}.so" for i in range(1, 31)]
    os.mkdir(d + "/c")
    with open(d + "/c/policy", "w") as f:
        f.write("[default]\nmode enforce\n")
        for path in libs:
            with open(path, "rb") as o:
                f.write(f"allow sha256 {hashlib.sha256(o.read()).hexdigest()}\n")
        f.write(f"allow path /usr/** {'' if os.geteuid() else 'owner root '}not writable-by group\nallow kind program path {d}/*\n")
    env = dict(os.environ, KYLINX_STORE=store, KYLINX_CONFIG=d + "/c")
    run = [lib.KYLINX, "run", "--volume", f"{d}:{d}", f"--stats={d}/stats", "--", d + "/m"]

    def counts():
        return json.loads(lib.read(d + "/stats"))["libraries"]

    def one(argv):
        p = subprocess.Popen([*argv, "sleep"], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        ps.append(p)
        expect(p.stdout.readline(), b"ready\n", "a start")
        return p
    ps, native = [], []
    try:
        for i in range(3):
            ok(lib.run(run, env={"KYLINX_STORE": store, "KYLINX_CONFIG": d + "/c"}), b"")
            if not i:  # nothing is stored: a count that counts
                expect((counts()["copied"] >= 30, counts()["hashed"] >= 30), (True, True), f"first start {counts()}")
        for _ in range(n):
            native.append(one([d + "/m"]))
        each = pss(native)
        for p in native:
            p.kill()
        ps.clear()
        for _ in range(n - 1):
            one(run)
        for path in libs:
            evict(path)
        before = [cached(path) for path in libs]
        expect(sum(c for c, _ in before), 0, f"pages of the libraries that are in the page cache {before}")
        last = one(run)
        after = [cached(path) for path in libs]
        # The header, with what the kernel reads along; a file that is read or mapped comes in whole.
        if max(c / all for c, all in after) > 0.25:
            raise AssertionError(f"pages of the libraries that were read: {after}")
        read = of_proc(last.pid, "io", "read_bytes")
        if read > sum(c for c, _ in after) * 4096 + (256 << 10):
            raise AssertionError(f"{read} bytes read from the disk, of which the libraries {after}")
        end = time.monotonic() + lib.limit(60)
        while (own := pss(ps)) > each + 1536 and time.monotonic() < end:  # copies of texts, until they sleep
            time.sleep(0.2)
        print(f"# memory of each of {n}: pVM {own:.0f} KiB, process {each:.0f} KiB; the 50th read {read} bytes")
        if own > each + 1536:
            raise AssertionError(f"{own} KiB for a pVM, {each} for a process")
        last.terminate()
        last.wait(lib.limit(60))
        expect(counts(), {"copied": 0, "hashed": 0, "signatures": 0, "prepared": 0, "found": counts()["found"], "stored": 0},
               "what the 50th did")
        assert counts()["found"] >= 31, counts()
    finally:
        for p in native + ps:
            p.kill()
        for p in native + ps:
            p.wait()
            p.stdout.close()


@test
def used_by_kylinx_exec(d):
    """A program that joins a family maps what the family's store has."""
    store, name = d + "/s", f"lib-{os.getpid()}"
    warm(store)
    env = dict(os.environ, KYLINX_STORE=store)
    p = subprocess.Popen([lib.KYLINX, "run", "--name", name, "--", "/bin/sh", "-c", "echo ready; exec sleep 1000"],
                         env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    q = None
    try:
        expect(p.stdout.readline(), b"ready\n", "the family")
        q = subprocess.Popen([lib.KYLINX, "exec", name, "/bin/sh", "-c", "echo ready; read x"], env=env,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        expect(q.stdout.readline(), b"ready\n", "kylinx exec")
        for _ in range(600):  # until it sleeps, texts may be copies
            maps = lib.read(f"/proc/{q.pid}/maps")
            shared = all(line.split()[1] == "r--s" for line in maps.splitlines() if "/images/" in line)
            if shared:
                break
            time.sleep(0.1)
        assert maps.count("/images/") >= 4 and shared, maps
        q.communicate(b"\n", timeout=lib.limit(180))
        expect(q.returncode, 0, "status")
    finally:
        for x in (q, p):
            if x:
                x.kill()
                x.wait()
                x.stdout.close()


@test
def needed_is_searched_as_the_linker_does(d):
    """RUNPATH, RPATH of the program, $ORIGIN, LD_LIBRARY_PATH, scripts; hostile dynamic sections."""
    for where in ("a", "b", "c"):
        os.mkdir(f"{d}/{where}")
    with open(d + "/x.c", "w") as f:
        f.write(LIB30)
    for where, name, n in (("a", "one", 1), ("b", "two", 2), ("c", "three", 3)):
        more = [f"{d}/b/libtwo.so"] if name == "three" else []
        subprocess.run(["gcc", "-O1", "-fPIC", "-shared", "-Wl,--no-as-needed", f"-DN={n}", "-o", f"{d}/{where}/lib{name}.so",
                        d + "/x.c", f"-Wl,-soname,lib{name}.so", *more], check=True)
    with open(d + "/p.c", "w") as f:
        f.write("int main(void) { return 0; }\n")
    libs = [f"{d}/a/libone.so", f"{d}/c/libthree.so"]
    for name, path in (("rpath", f"-Wl,--disable-new-dtags,-rpath,$ORIGIN/a:{d}/b:${{ORIGIN}}/c"),
                       ("runpath", "-Wl,--enable-new-dtags,-rpath,$ORIGIN/a:$ORIGIN/c"), ("bare", "-Wl,-z,now")):
        subprocess.run(["gcc", "-Wl,--no-as-needed,--allow-shlib-undefined", "-o", f"{d}/{name}", d + "/p.c", *libs, path],
                       check=True)
    with open(d + "/script", "w") as f:
        f.write(f"#! {d}/rpath -x\n")
    os.chmod(d + "/script", 0o755)
    time.sleep(1.1)

    def names(program, *env):
        store = f"{d}/s-{len(os.listdir(d))}"
        r = kylinx(store, "run", "--volume", f"{d}:{d}", *env, "--", f"{d}/{program}")
        return r, {os.path.basename(n) for n in stored(store)} & {"libone.so", "libtwo.so", "libthree.so"}
    expect(names("rpath")[1], {"libone.so", "libtwo.so", "libthree.so"}, "RPATH is the dependencies', too")
    expect(names("script")[1], {"libone.so", "libtwo.so", "libthree.so"}, "a script")
    r, found = names("runpath")
    expect((r.status, found), (127, {"libone.so", "libthree.so"}), "RUNPATH is not")
    expect(names("bare")[1], set(), "without a path")
    expect(names("bare", f"--env=LD_LIBRARY_PATH={d}/a:{d}/b:{d}/c")[1], {"libone.so", "libtwo.so", "libthree.so"}, "LD_")
    with open(d + "/rpath", "rb") as f:
        good = f.read()
    rng = random.Random(5)
    phoff, phnum = struct.unpack_from("<Q", good, 32)[0], struct.unpack_from("<H", good, 56)[0]
    dyn = next(struct.unpack_from("<Q", good, phoff + i * 56 + 8)[0] for i in range(phnum)
               if struct.unpack_from("<I", good, phoff + i * 56)[0] == 2)
    for i in range(80):
        b = bytearray(good)
        for _ in range(rng.choice((1, 4))):
            at = rng.choice((rng.randrange(64, phoff + phnum * 56), dyn + rng.randrange(400)))
            b[at] = rng.choice((0, 0xff, b[at] ^ 1 << rng.randrange(8)))
        with open(d + "/hostile", "wb") as f:
            f.write(b)
        os.chmod(d + "/hostile", 0o755)
        with_store, without = [kylinx(s, "run", "--", d + "/hostile") for s in (d + "/s-hostile", "")]
        expect(with_store.status, without.status, f"number {i}: {with_store.why()}; without a store {without.why()}")
    ok(kylinx(d + "/s-hostile", "lib", "verify"))


@test
def damage_is_mended(d):
    store = d + "/s"
    for how in ("flip", "cut", "gone", "empty index"):
        warm(store)
        victims = images(store) if how != "empty index" else [f for f in files(store) if "/index/" in f]
        for f in victims:
            if how == "gone":
                os.unlink(f)
            elif how == "flip":
                with open(f, "r+b") as o:
                    o.seek(5000)
                    c = o.read(1)
                    o.seek(5000)
                    o.write(bytes([c[0] ^ 1]))
            else:
                os.truncate(f, 0)
        expect(kylinx(store, "lib", "verify").status, 1, f"{how}: verify")
        ok(start(store), b"/bin/true\n")
        ok(kylinx(store, "lib", "verify"))


@test
def flipped_bits_are_seen(d):
    """One bit in each of 1,000 places of an index entry or image: never mapped, never a crash."""
    store = d + "/s"
    warm(store)
    names = [f for f in files(store) if "/images/" in f or "/index/" in f]
    for i in range(1000):
        f = names[i % len(names)]
        size = os.stat(f).st_size
        at = i * 7919 % size
        with open(f, "r+b") as o:
            o.seek(at)
            c = o.read(1)
            o.seek(at)
            o.write(bytes([c[0] ^ 1 << i % 8]))
        if i % 100 < 2:
            expect(kylinx(store, "lib", "verify").status, 1, f"{f} at {at}")
        if i % 100 == 0:
            ok(start(store), b"/bin/true\n")
            expect(kylinx(store, "lib", "verify").status, 0, f"{f} at {at}, after a start")


@test
def writable_by_others_is_refused(d):
    store = d + "/s"
    warm(store)
    for path in (store, os.path.dirname(os.path.dirname(images(store)[0])), os.path.dirname(images(store)[0])):
        os.chmod(path, 0o777)
        r = start(store)
        expect((r.status, r.out), (0, b"/bin/true\n"), "the program")
        assert r.err.count(b"\n") == 1 and b"others can write it" in r.err, r.err
        r = kylinx(store, "lib", "list")
        expect(r.status, 125, "lib list")
        assert b"others can write it" in r.err, r.err
        os.chmod(path, 0o700)
    ok(start(store), b"/bin/true\n")


@test
def symbolic_links_in_the_store(d):
    store = d + "/s"
    warm(store)
    for f in images(store):
        shutil.copy(f, d + "/copy")
        os.unlink(f)
        os.symlink(d + "/copy", f)
    ok(start(store), b"/bin/true\n")
    assert not any(os.path.islink(f) for f in images(store)), "links are replaced by images"
    ok(kylinx(store, "lib", "verify"))


@test
def killed_while_it_prepares(d):
    store = d + "/s"
    ok(start(store), b"/bin/true\n")
    env = dict(os.environ, KYLINX_STORE=store)
    for i in range(25):
        for f in files(store):
            if ("/images/" in f or "/index/" in f) and i % 5 == 0:
                os.unlink(f)
        p = subprocess.Popen([lib.KYLINX, "run", "--", "/bin/ls", "/bin/true"], env=env, stdout=subprocess.DEVNULL,
                             start_new_session=True)
        time.sleep(0.002 * i)
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()
        ok(kylinx(store, "lib", "verify"))
    ok(start(store), b"/bin/true\n")
    ok(kylinx(store, "lib", "gc"))
    assert not any(f.endswith("/new") for f in files(store))


@test
def twenty_at_once(d):
    store = d + "/s"
    env = dict(os.environ, KYLINX_STORE=store)
    for _ in range(2):
        ps = [subprocess.Popen([lib.KYLINX, "run", "--", "/bin/ls", "/bin/true"], env=env, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE) for _ in range(20)]
        for p in ps:
            expect((p.communicate(timeout=lib.limit(300)), p.returncode), ((b"/bin/true\n", b""), 0), "a start")
    ok(kylinx(store, "lib", "verify"))
    assert len(images(store)) >= 2


@test
def full_disk(d):
    m = d + "/small"
    os.mkdir(m)
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "t", m]).returncode:
        return "needs the right to mount"
    try:
        for _ in range(2):
            r = start(m + "/s")
            expect((r.status, r.out), (0, b"/bin/true\n"), "the program")
            assert r.err.count(b"\n") == 1 and b"No space left" in r.err, r.err
        ok(kylinx(m + "/s", "lib", "verify"))
    finally:
        subprocess.run(["umount", m], check=True)


@test
def read_only_or_missing(d):
    ok(start(""), b"/bin/true\n")
    r = start("relative")
    expect((r.status, r.out), (0, b"/bin/true\n"), "relative")
    assert r.err.count(b"\n") == 1 and b"not an absolute path" in r.err, r.err
    r = start("/proc/no/store")
    expect((r.status, r.out), (0, b"/bin/true\n"), "can't be made")
    assert r.err.count(b"\n") == 1 and b"KYLINX_STORE" in r.err, r.err


def hidden_code(d):
    """Files of the user's that are no programs, though there is code in them, as by chance in what is large: a core file, one
    without a header, one whose headers call that part data. Notes of them: offset, length, path."""
    with open("/lib/x86_64-linux-gnu/libc.so.6", "rb") as f:
        libc = bytearray(f.read())
    phoff, = struct.unpack_from("<Q", libc, 32)
    number, = struct.unpack_from("<H", libc, 56)
    for at in range(phoff, phoff + 56 * number, 56):
        kind, flags, off, _, _, size = struct.unpack_from("<IIQQQQ", libc, at)
        if kind == 1 and flags & 1:
            break
    libc[off + 16:off + 26] = b"THE SECRET"
    os.mkdir(d)
    notes = []
    for name, where, byte in (("plain", 0, 0), ("core", 16, 4), ("data", at + 4, 4), ("program", 0, 0x7f)):
        with open(f"{d}/{name}", "wb") as f:
            f.write(libc[:where] + bytes([byte]) + libc[where + 1:])
        notes.append((off, (size + 4095) & -4096, f"{d}/{name}"))
    return notes


@test
def a_manifest_that_lies(d):
    store = d + "/s"
    warm(store)
    os.mkfifo(d + "/fifo")
    note, = [f for f in files(store) if "/notes/" in f]
    with open(note, "r+b") as o:
        head, program = o.read(16)[:8], o.read(256)
        hidden = hidden_code(d + "/hidden")
        time.sleep(1.1)
        lies = [*hidden, (0, 4096, "/etc/shadow"), (1, 4096, "/bin/true"), (0, 1 << 63, "/bin/true"), (1 << 40, 4096, "/bin/true"),
                (0, 0, "/bin/true"), (0, 4096, d + "/fifo"), (0, 4096, "/dev/zero"), (0, 4096, "x" * 255),
                (4096, (1 << 64) - 1, "/bin/true"), ((1 << 64) - 4096, 4096, "/bin/true")]
        o.seek(0)
        o.write(head + (2 ** 32 - 1).to_bytes(4, "little") + bytes(4) + program)
        for off, length, path in lies:
            o.write(off.to_bytes(8, "little") + length.to_bytes(8, "little") + (path.encode() + b"\0" * (len(path) < 255)).ljust(256, b"\xff")
                    + os.urandom(40))  # what is said of it: its sum and image
    # With and without a policy that wants copies of the files.
    for env in {}, governed(d, "allow not soname x"):
        r = kylinx(store, "run", "--", "/bin/ls", "/bin/true", config=env.get("KYLINX_CONFIG"))
        expect((r.status, r.out), (0, b"/bin/true\n"), "the program")
        ok(kylinx(store, "lib", "verify"))
    assert not [f for f in files(store) if os.path.getsize(f) == os.path.getsize("/etc/shadow")], "no ELF file"
    known = []
    for path in images(store):
        with open(path, "rb") as f:
            known += [path] if b"THE SECRET" in f.read() else []
    names = [n for n in stored(store) if "/hidden/" in n]
    # As a program's it is stored: else the test would tell nothing.
    expect((len(known), sorted(set(names))), (2, [d + "/hidden/program"]), f"what the program can't see: {known}")


@test
def notes_of_programs_that_are_gone(d):
    store = d + "/s"
    shutil.copy("/bin/true", d + "/program")
    ok(start(store, d + "/program"), b"")
    ok(start(store), b"/bin/true\n")
    notes = [f for f in files(store) if "/notes/" in f]
    expect(len(notes), 2, "programs")
    ok(kylinx(store, "lib", "gc"))
    expect([f for f in files(store) if "/notes/" in f], notes, "of programs that are there")
    os.unlink(d + "/program")
    ok(kylinx(store, "lib", "gc"))
    rest = [f for f in files(store) if "/notes/" in f]
    expect(len(rest), 1, "notes")
    ok(start(store), b"/bin/true\n")
    with open(rest[0], "r+b") as f:
        f.seek(16)
        f.write(b"/bin/cat\0")  # by who may write there
    ok(kylinx(store, "lib", "gc"))
    assert not [f for f in files(store) if "/notes/" in f], "notes that lie about their program"
    ok(start(store), b"/bin/true\n")


@test
def headers_that_lie(d):
    """Copies of a library with hostile ELF headers: an error or an image, never more."""
    with open("/lib/x86_64-linux-gnu/libc.so.6", "rb") as f:
        good = f.read()
    cases = {"e_phnum": (56, 2, 65535), "e_phoff": (32, 8, 2 ** 64 - 8), "e_shnum": (60, 2, 65535),
             "e_shoff": (40, 8, 2 ** 63), "p_offset": (64 + 56 * 3 + 8, 8, 2 ** 64 - 4096),
             "p_filesz": (64 + 56 * 3 + 32, 8, 2 ** 32), "p_vaddr": (64 + 56 * 3 + 16, 8, 0)}
    for name, (at, size, value) in cases.items():
        with open(d + "/" + name, "wb") as f:
            f.write(good[:at] + value.to_bytes(size, "little") + good[at + size:])
    time.sleep(1.1)
    for name in cases:
        r = kylinx(d + "/s", "lib", "add", d + "/" + name)
        assert r.status in (0, 125), (name, r.why())
    ok(kylinx(d + "/s", "lib", "verify"))


def governed(d, rules):
    """kylinx under a policy that looks at contents, with its store."""
    os.makedirs(d + "/c", exist_ok=True)
    with open(d + "/c/policy", "w") as f:
        f.write("[default]\n" + rules + "\n")
    return {"KYLINX_STORE": d + "/s", "KYLINX_CONFIG": d + "/c"}


def mapped_images(pid):
    """Inodes of the store's images that a process maps, and how many KiB of what is not writable are its own."""
    inodes, private, mapped = set(), 0, False
    for line in lib.read(f"/proc/{pid}/smaps").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            perms, _, _, inode = line.split()[1:5]
            assert "kylinx-image" not in line, line
            if "/images/" in line:
                inodes.add(inode)
            mapped = "/images/" in line and "w" not in perms
        elif mapped and line.startswith("Private_Dirty:"):
            private += int(line.split()[1])
    return inodes, private


@test
def copies_for_policies(d):
    """Under a policy that looks at contents, a warm start maps the store's copies: it copies, hashes, patches nothing."""
    env = governed(d, "allow soname *\nallow kind program not soname x*")
    for _ in range(2):
        ok(lib.run([lib.KYLINX, "run", "--", "/bin/sleep", "0"], env=env))
    before = files(d + "/s")
    ps = [subprocess.Popen([lib.KYLINX, "run", "--", "/bin/sleep", "1000"], env={**os.environ, **env},
                           stdin=subprocess.DEVNULL) for _ in range(5)]
    try:
        # sleep, ld.so, libc, and the patched texts of the last two. Relocated pages, read-only by then, are private. While
        # they start, what one has touched and the others not yet is its own, too.
        end = time.monotonic() + lib.limit(120)
        while time.monotonic() < end:
            time.sleep(0.2)
            found = [mapped_images(p.pid) for p in ps]
            inodes, private = set().union(*(f[0] for f in found)), sum(f[1] for f in found)
            if min(len(f[0]) for f in found) == 5 and private < 5 * 40:
                break
        expect((len(inodes), private < 5 * 40), (5, True), f"files mapped by all, {private} KiB of them private")
        expect(files(d + "/s"), before, "the store")
    finally:
        for p in ps:
            p.kill()
        for p in ps:
            p.wait()
    ok(lib.run([lib.KYLINX, "lib", "verify"], env=env))
    # Damage: the copy isn't used, and the file is looked at anew.
    for f in images(d + "/s"):
        with open(f, "r+b") as o:
            o.seek(5000)
            o.write(b"\xcc" * 64)
    r = lib.run([lib.KYLINX, "run", "--", "/bin/ls", "/bin/true"], env=env)
    expect((r.status, r.out), (0, b"/bin/true\n"), "with a damaged store")


@test
def a_copy_is_not_the_file_after_a_change(d):
    """A file that was allowed, stored and then changed, is judged by what it is now, whatever its times."""
    os.mkdir(d + "/p")
    src = d + "/p.c"
    for value in (1, 2):
        with open(src, "w") as f:
            f.write(f"int main(void) {{ return {value}; }}\n")
        subprocess.run(["gcc", "-static", "-o", f"{d}/v{value}", src], check=True)
    prog = shutil.copy(d + "/v1", d + "/p/prog")
    with open(prog, "rb") as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    env = governed(d, f"allow sha256 {digest}")
    time.sleep(1.1)
    for _ in range(3):
        expect(lib.run([lib.KYLINX, "run", "--", prog], env=env).status, 1, "allowed")
    copy, = [f for f in images(d + "/s") if f.endswith(digest)]
    st = os.stat(prog)
    with open(d + "/v2", "rb") as new, open(prog, "r+b") as p:
        p.write(new.read())
    os.utime(prog, ns=(st.st_atime_ns, st.st_mtime_ns))
    for _ in range(2):
        r = lib.run([lib.KYLINX, "run", "--", prog], env=env)
        assert r.status == 126 and b"sha256" in r.err, r.why()
    ok(lib.run([lib.KYLINX, "lib", "gc"], env=env))
    assert not os.path.exists(copy), "the old copy is kept"
    os.unlink(prog)
    os.rename(shutil.copy(d + "/v1", d + "/p/next"), prog)
    expect(lib.run([lib.KYLINX, "run", "--", prog], env=env).status, 1, "allowed again")


@test
def replaced_library_is_not_the_old_one(d):
    """A file that changes in place, size and mtime as before, is not what was stored."""
    src = d + "/p.c"
    with open(src, "w") as f:
        f.write('#include <unistd.h>\n#include <sys/syscall.h>\n'
                'int main(void) { return (int)syscall(SYS_getppid) * 0 + VALUE; }\n')
    for value in (1, 2):
        subprocess.run(["gcc", "-static", f"-DVALUE={value}", "-o", f"{d}/v{value}", src], check=True)
    assert os.stat(d + "/v1").st_size == os.stat(d + "/v2").st_size
    shutil.copy(d + "/v1", d + "/p")
    time.sleep(1.1)
    st = os.stat(d + "/p")
    for _ in range(3):
        expect(kylinx(d + "/s", "run", "--", d + "/p").status, 1, "first content")
    assert images(d + "/s"), "it is stored"
    with open(d + "/v2", "rb") as new, open(d + "/p", "r+b") as p:
        p.write(new.read())
    os.utime(d + "/p", ns=(st.st_atime_ns, st.st_mtime_ns))
    for _ in range(3):
        expect(kylinx(d + "/s", "run", "--", d + "/p").status, 2, "second content")
    ok(kylinx(d + "/s", "lib", "gc"))
    ok(kylinx(d + "/s", "lib", "verify"))


@test
def what_is_as_it_was_is_not_opened(d):
    """A start opens the entry of a text that was stored once, where it maps it; before that only if something has changed."""
    if not shutil.which("strace"):
        return "strace is not installed"
    store, trace = d + "/s", d + "/trace"

    def opened():
        ok(lib.run(["strace", "-f", "-o", trace, "-e", "trace=openat", lib.KYLINX, "run", "--", d + "/p"],
                   env={"KYLINX_STORE": store}))
        names = re.findall(r'"(index/[^"]+)"', lib.read(trace))
        return [names.count(n) for n in sorted(set(names))]

    shutil.copy("/bin/true", d + "/p")
    time.sleep(1.1)
    for _ in range(3):
        ok(kylinx(store, "run", "--", d + "/p"))
    expect(opened(), [1, 1, 1], "program, linker and libc")
    os.utime(d + "/p")
    time.sleep(1.1)
    expect(max(opened()) > 1, True, "the program has changed")
    expect(opened(), [1, 1, 1], "and was stored")
    for f in images(store):
        os.utime(f)
    expect(max(opened()) > 1, True, "images have changed")
    ok(kylinx(store, "lib", "verify"))
    return None


@test
def not_written_from_inside(d):
    """The guest finds no path and no descriptor to the store."""
    store = d + "/s"
    warm(store)
    ok(start(store, "/usr/bin/python3", "-S", "-c", f"import os\nassert not os.path.exists({store!r})\n"
             "for n in range(3, 2000):\n try: os.fstat(n)\n except OSError: continue\n"
             " assert 'images' not in os.listdir(n) if os.path.isdir(f'/proc/self/fd/{n}') else True\n"))


@test
def what_was_noted_is_something_else_now(d):
    """A file that can't be stored any more, for whatever reason, is no matter of the next start's."""
    where = d + "/where"
    for make in (lambda: open(where, "w").close(), lambda: os.symlink(where, where), lambda: os.mkdir(where, 0)):
        os.mkdir(where)
        shutil.copy("/bin/true", where + "/program")
        time.sleep(1.1)
        for _ in range(2):
            ok(kylinx(d + "/s", "run", "--volume", f"{d}:{d}", "--", "/bin/sh", "-c", where + "/program; true"))
        assert where + "/program" in stored(d + "/s"), stored(d + "/s")
        shutil.rmtree(where)
        make()
        for _ in range(2):
            ok(start(d + "/s", "/bin/sh", "-c", "echo ok"), b"ok\n")
        os.rmdir(where) if os.path.isdir(where) else os.unlink(where)


@test
def names_of_any_bytes(d):
    """JSON is UTF-8 whatever files are called; a terminal gets no control characters."""
    name = os.fsencode(d) + b"/lib\xff\"\x1b[2J\n\xc3\xa9.so"
    shutil.copy(os.path.realpath("/bin/true"), name)
    time.sleep(1.1)
    ok(kylinx(d + "/s", "lib", "add", os.fsdecode(name)))
    shown = "lib\ufffd\"\x1b[2J\n\u00e9.so"
    out = json.loads(ok(kylinx(d + "/s", "lib", "list", "--json")).out.decode("utf-8"))
    expect([e["path"] for e in out], [f"{d}/{shown}"], "list --json")
    line = json.loads(ok(kylinx(d + "/s", "lib", "history")).out.decode("utf-8").splitlines()[0])
    expect((line["event"], line["object"]), ("add", f"{d}/{shown}"), "history")
    for argv in (("list",), ("show", ".so")):
        text = ok(kylinx(d + "/s", "lib", *argv)).out.decode("utf-8")
        assert "lib?\"?[2J?\u00e9.so" in text, text


@test
def errors_of_the_command(d):
    for args, text in (((), "no command"), (("frob",), "unknown command"), (("list", "x"), "too many"),
                       (("show",), "one name"), (("show", "nothing"), "not stored"), (("add",), "no file"),
                       (("add", "/nothing"), "no regular file"), (("gc", "--json"), "not with"),
                       (("list", "--frob"), "unknown option"), (("add", "/etc/passwd"), "/etc/passwd")):
        r = kylinx(d + "/s", "lib", *args)
        expect(r.status, 125, f"lib {args}")
        assert re.fullmatch(rb"kylinx: [^\n]+ \([^\n]+\)\n", r.err) and text.encode() in r.err, r.err
    assert b"history" in ok(kylinx(d + "/s", "lib", "--help")).out
    ok(kylinx(d + "/s", "lib", "add", "/bin/bash"))
    event, = [json.loads(x) for x in ok(kylinx(d + "/s", "lib", "history")).out.splitlines()]
    expect(event["event"], "add", "history")


def main():
    tap = lib.Tap()
    missing = lib.kvm_missing()
    only = sys.argv[2:]
    for fn in tests:
        if only and fn.__name__ not in only:
            continue
        if missing:
            tap.skip(fn.__name__, missing)
            continue
        with lib.Dir() as d:
            try:
                why = fn(d)
                tap.skip(fn.__name__, why) if why else tap.ok(fn.__name__)
            except Exception as e:
                tap.fail(fn.__name__, f"{type(e).__name__}: {e}")
    return tap.end()


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    sys.exit(main())
