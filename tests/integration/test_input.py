#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Broken input: each a clear one-line error and the right status. Mutated programs: no crash or hang of the monitor.
SIGKILL at any instant: nothing left behind. KX_FUZZ=N: how many mutated programs (default 300)."""
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib

count = {"passed": 0, "failed": 0, "skipped": 0}
FUZZ = int(os.environ.get("KX_FUZZ", "300"))
HELLO = b'#include <unistd.h>\nint main(void) { return write(1, "hello\\n", 6) != 6; }\n'


def report(name, why=None, skip=False):
    n = sum(count.values()) + 1
    key = "skipped" if skip else "failed" if why else "passed"
    count[key] += 1
    print(f"{'not ok' if key == 'failed' else 'ok'} {n} - {name}" + (f" # SKIP {why}" if skip else f": {why}" if why else ""),
          flush=True)


def refused(name, argv, status, word, options=(), wrap=None):
    """argv is refused with that status and one line that names `word`."""
    cmd = [lib.KYLINX, "run", *options, "--", *argv]
    r = lib.run((wrap or []) + cmd)
    lines = r.err.decode(errors="replace").strip().split("\n")
    if r.status != status:
        report(name, f"{r.why()}, expected status {status}")
    elif len(lines) != 1 or not lines[0].startswith("kylinx: ") or word not in lines[0]:
        report(name, f"not one line that names {word!r}: {lines[:3]}")
    else:
        report(name)


def write(path, data, mode=0o755):
    with open(path, "wb") as f:
        f.write(data)
    os.chmod(path, mode)
    return path


def patched(data, off, fmt, value):
    out = bytearray(data)
    struct.pack_into(fmt, out, off, value)
    return bytes(out)


def phdrs(data):
    off, n = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    return [(off + 56 * i, *struct.unpack_from("<IIQQQQQQ", data, off + 56 * i)) for i in range(n)]


def bad_elves(d, elf):
    refused("missing file", [f"{d}/nothing"], 127, "nothing")
    refused("not found in PATH", ["no-such-program-anywhere"], 127, "no-such-program-anywhere")
    refused("directory", [d], 126, d)
    refused("not executable", [write(f"{d}/noexec", elf, 0o644)], 126, "noexec")
    refused("empty file", [write(f"{d}/empty", b"")], 126, "empty")
    refused("text without #!", [write(f"{d}/text", b"just text\n")], 126, "text")
    refused("script without its interpreter", [write(f"{d}/script", b"#!/no/such/interp\n")], 127, "/no/such/interp")
    refused("32-bit ELF", [write(f"{d}/elf32", patched(elf, 4, "B", 1))], 126, "elf32")
    refused("other machine", [write(f"{d}/arm", patched(elf, 18, "<H", 183))], 126, "arm")
    refused("big-endian", [write(f"{d}/msb", patched(elf, 5, "B", 2))], 126, "msb")
    refused("relocatable object", [write(f"{d}/rel", patched(elf, 16, "<H", 1))], 126, "rel")
    loads = [p for p in phdrs(elf) if p[1] == 1]
    refused("overlapping segments", [write(f"{d}/overlap", patched(elf, loads[1][0] + 16, "<Q", loads[0][4]))], 126, "overlap")
    refused("segment that wraps", [write(f"{d}/wrap", patched(elf, loads[-1][0] + 40, "<Q", 2**64 - 4096))], 126, "wrap")
    refused("segment beyond the file", [write(f"{d}/beyond", patched(elf, loads[0][0] + 32, "<Q", 1 << 30))], 126, "beyond")
    refused("too many program headers", [write(f"{d}/phnum", patched(elf, 56, "<H", 65535))], 126, "phnum")
    gone = f"{d}/gone"
    subprocess.run(["gcc", "-o", gone, f"{d}/hello.c", "-Wl,--dynamic-linker=/lib/no-such-ld.so"], check=True)
    refused("interpreter missing", [gone], 127, "/lib/no-such-ld.so")
    refused("memory limit too small", ["/bin/true"], 126, "/bin/true", ["--memory", "1M"])
    lower = "setpriv --bounding-set=-sys_resource " if not os.geteuid() else ""
    refused("address space limit", ["/bin/true"], 125, "ulimit -v",
            wrap=["sh", "-c", f'ulimit -v 1000000; exec {lower}"$@"', "sh"])
    refused("too few descriptors", ["/bin/true"], 125, "ulimit", wrap=["sh", "-c", 'ulimit -n 64; exec "$@"', "sh"])
    for n in (12, 60):
        argv = ["/usr/bin/printf", "%.1s", *["x" * 131000] * n]
        want, got = lib.run(argv), lib.run(lib.pvm(argv))
        report(f"{n} arguments of 128 KiB", None if (got.status, got.out) == (want.status, want.out) else got.why())
    if os.getuid() == 0:
        hide = "mount --bind /dev/null /dev/kvm && exec \"$@\""
        refused("no KVM behind /dev/kvm", ["/bin/true"], 125, "/dev/kvm", wrap=["unshare", "-m", "sh", "-c", hide, "sh"])
        hide = "mount -t tmpfs none /dev && exec \"$@\" 2>&1 >/dev/full || exit $?"
        r = lib.run(["unshare", "-m", "sh", "-c", "mount -t tmpfs none /dev && exec \"$@\"", "sh", lib.KYLINX, "run", "/bin/true"])
        text = r.err.decode(errors="replace").strip()
        report("no /dev/kvm", None if r.status == 125 and "/dev/kvm" in text and "\n" not in text else r.why())
        if os.stat("/dev/kvm").st_mode & 0o006 == 0:
            refused("no permission on /dev/kvm", ["/bin/true"], 125, "/dev/kvm",
                    wrap=["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"])


HUGE = """if 1:
    import ctypes, errno, sys
    libc = ctypes.CDLL(None, use_errno=True)
    def execve(argv, envp):
        libc.execve(b"/bin/true", argv, envp)
        return errno.errorcode[ctypes.get_errno()]
    longest = ctypes.create_string_buffer(b"x" * 131071)
    def many(n, string=longest):
        return (ctypes.c_void_p * (n + 1))(*[ctypes.addressof(string)] * n, None)
    none = many(0)
    print(execve(many(32768), none), execve(none, many(32768)), execve(many(16384), many(16384)))
    print(execve(many(1, ctypes.create_string_buffer(b"x" * 131072)), none), execve(many(1 << 22, ctypes.create_string_buffer(b"")), none))
    print(execve((ctypes.c_void_p * 2)(8, None), none), flush=True)
    execve(many(8), none)"""


def arguments():
    """4 GiB of arguments, one string in many places; one that is too long; many empty ones. Some that are all right."""
    want, got = (lib.run(argv) for argv in (
        ["/usr/bin/python3", "-S", "-c", HUGE], lib.pvm(["/usr/bin/python3", "-S", "-c", HUGE])))
    same = (got.status, got.out, got.err) == (want.status, want.out, want.err) and want.out.count(b"E2BIG") == 5
    report("4 GiB of arguments", None if same else f"{got.why()}, natively {want.why()}")


def truncated(d, elf):
    bad = []
    path = f"{d}/cut"
    for size in range(0, min(len(elf), 64 * 400), 64):
        write(path, elf[:size])
        r = lib.run(lib.pvm([path]))
        err = r.err.decode(errors="replace")
        ours = r.status in (125, 126, 127)
        if r.status is None or "internal fault" in err or (ours and err.strip().count("\n")) or (ours and "kylinx: " not in err):
            bad.append(f"{size}: {r.why()}")
    report("truncated at every 64th byte", "; ".join(bad[:3]) or None)


def fuzz(d, seeds):
    bad, ended, files = [], {}, 0
    for k, seed in enumerate(seeds):
        out = f"{d}/m{k}"
        os.mkdir(out)
        subprocess.run([sys.executable, f"{lib.TOP}/tests/fuzz/mutate.py", seed, out, str(FUZZ // len(seeds)), str(1000 + k)],
                       check=True, stdout=subprocess.DEVNULL)
        for name in sorted(os.listdir(out)):
            path = f"{out}/{name}"
            os.chmod(path, 0o755)
            r = lib.run(lib.pvm([path], "--memory", "256M"), timeout=5)
            files += 1
            ended[lib.status_text(r.status)] = ended.get(lib.status_text(r.status), 0) + 1
            err = r.err.decode(errors="replace")
            if "internal fault" in err or "LibOS: exception" in err:
                bad.append(f"{seed} seed {1000 + k} {name}: {r.why()}")
            elif r.status in (125, 126) and "kylinx: " not in err:
                bad.append(f"{name}: {r.why()}")
        shutil.rmtree(out)
    print(f"# {files} mutated programs: {ended}")
    report("mutated programs", "; ".join(bad[:3]) or (None if files >= FUZZ // 2 else "too few"))


def killed(d):
    rng = random.Random(7)
    prog = f"{d}/busy"
    src = (b"#include <pthread.h>\n#include <stdlib.h>\n#include <unistd.h>\nstatic void *f(void *a) { for (;;) { free(malloc(99));"
           b" if (!fork()) _exit(0); } return a; }\nint main(void) { pthread_t t; pthread_create(&t, 0, f, 0); f(0); }\n")
    write(f"{d}/busy.c", src)
    subprocess.run(["gcc", "-O1", "-pthread", "-o", prog, f"{d}/busy.c"], check=True)
    before = lib.state()
    for _ in range(40):
        p = subprocess.Popen(lib.pvm([prog]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(rng.random() * 0.05)
        p.kill()
        p.wait()
    end = time.monotonic() + lib.limit(60)
    while (left := lib.leaks(before, lib.state())) and time.monotonic() < end:
        time.sleep(0.1)
    report("SIGKILL at any instant leaves nothing", "; ".join(left[:3]) or None)


def main():
    why = lib.kvm_missing()
    if why:
        report("broken input", why, skip=True)
    else:
        with tempfile.TemporaryDirectory(prefix="kylinx-input-") as d:
            os.chmod(d, 0o755)
            write(f"{d}/hello.c", HELLO, 0o644)
            small = f"{d}/small"
            musl = shutil.which("musl-gcc")
            subprocess.run([musl or "gcc", "-static", "-Os", "-s", "-o", small, f"{d}/hello.c"], check=True)
            big = f"{d}/big"
            subprocess.run(["gcc", "-static-pie", "-s", "-o", big, f"{d}/hello.c"], check=True)
            elf = open(small, "rb").read()
            bad_elves(d, elf)
            arguments()
            truncated(d, elf)
            fuzz(d, [small, big])
            killed(d)
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    return 1 if count["failed"] else 0


sys.exit(main())
