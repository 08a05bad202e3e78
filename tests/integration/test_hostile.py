#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_hostile.py [KYLINX]: attacks of tests/guest/hostile, each in a pVM of its own. The pVM may be lost by them, by an
exit, a signal, or status 125 with one line that says why; it may hang itself, and then ends when it is killed. The
monitor must not have a fault of its own, and nothing may be left behind, which the runner looks at.
"""
import contextlib
import errno
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402

HOSTILE = os.path.join(lib.TOP, os.environ.get("BUILD", "build"), "tests/guest/hostile.dyn")
SECONDS = 4
MUST_END = ("robust", "refill", "pointers", "skip")


def outsider(tap):
    """Numbers of processes in shared memory: the monitor does nothing to those that are no members."""
    other = subprocess.Popen(["/bin/sleep", "60"])
    try:
        r = lib.run(lib.pvm([HOSTILE, "poke", str(other.pid)]), 60, cwd="/")
        if r.status != 0 or b"# sent: " not in r.out:
            tap.fail("hostile: poke", r.why())
        elif other.poll() is not None:
            tap.fail("hostile: poke", f"a process outside of the family ended: {other.returncode}")
        else:
            tap.ok("hostile: poke")
    finally:
        other.kill()
        other.wait()


def kept(pid, path):
    """Number of a descriptor of a process that is this file of the host's; -1: none. Links say little of mounts of one's own."""
    want = os.stat(path)
    for n in map(int, os.listdir(f"/proc/{pid}/fd")):
        try:
            st = os.stat(f"/proc/{pid}/fd/{n}")
        except OSError:
            continue
        if (st.st_dev, st.st_ino) == (want.st_dev, want.st_ino):
            return n
    return -1


def entry_of(pid):
    """The file of a family in the registry."""
    run = os.environ.get("XDG_RUNTIME_DIR", "/nonexistent") + "/kylinx"
    d = "/run/kylinx" if not os.geteuid() else run if os.path.isdir(run) else f"/tmp/kylinx-{os.geteuid()}"
    name, = [n for n in os.listdir(d) if n.startswith(f"{pid}-")]
    return f"{d}/{name}"


def asleep(argv, env):
    """A pVM whose program sleeps."""
    p = subprocess.Popen([*argv, "/bin/sleep", "1000"], env=env, cwd="/", stdin=subprocess.DEVNULL)
    end = time.monotonic() + lib.limit(60)
    while lib.read(f"/proc/{p.pid}/comm") != "sleep\n" or lib.read(f"/proc/{p.pid}/syscall").split()[0] not in ("230", "35"):
        if time.monotonic() > end or p.poll() is not None:
            p.kill()
            raise AssertionError(f"no program that sleeps: {p.wait()}")
        time.sleep(0.05)
    return p


def intruder(tap):
    """What a monitor that was taken over can't do with the descriptors that it has: change files of the host's."""
    with lib.Dir() as d, contextlib.ExitStack() as stop:
        subprocess.run(["gcc", "-O1", "-Wall", "-D_GNU_SOURCE", "-o", f"{d}/intrude",
                        os.path.join(os.path.dirname(os.path.abspath(__file__)), "intrude.c")], check=True)
        env = {**os.environ, "KYLINX_STORE": f"{d}/s"}

        def begin(*argv):
            p = asleep([lib.KYLINX, *argv], env)
            stop.callback(p.wait)
            stop.callback(p.kill)
            return p.pid
        pid = begin("run", "--")
        added = begin("exec", str(pid))
        format_, = [n for n in os.listdir(f"{d}/s") if n.startswith("format-")]
        proc, store, entry = (kept(pid, path) for path in ("/proc", f"{d}/s/{format_}", entry_of(pid)))

        def call(of, nr, *args):
            out = lib.run([f"{d}/intrude", str(of), str(nr), *map(str, args)]).out.decode().strip()
            return errno.errorcode.get(-int(out), out) if out.startswith("-") else out

        def tell(what, got, good):
            tap.ok(f"hostile: intruder, {what}") if good else tap.fail(f"hostile: intruder, {what}", got)
        for what, of, number, name, flags, want in (
                ("the host's settings", pid, proc, "sys/kernel/core_pattern", os.O_WRONLY, "EROFS"),
                ("the host's keys", pid, proc, "sysrq-trigger", os.O_WRONLY, "EROFS"),
                ("the registry", pid, proc, f"self/fd/{entry}", os.O_RDWR, "EROFS"),
                ("the registry of one that was added", added, kept(added, "/proc"), f"self/fd/{kept(added, entry_of(pid))}",
                 os.O_RDWR, "EROFS"),
                ("the store", pid, store, "lock", os.O_RDWR, "EROFS"),
                ("the store again", pid, proc, f"self/fd/{store}/lock", os.O_RDWR, "EROFS"),
                ("its own name", pid, proc, "self/comm", os.O_WRONLY, None)):
            got = call(of, 257, number, "s:" + name, flags | os.O_CLOEXEC) if number >= 0 else "no descriptor"
            tell(what, got, got.isdigit() if want is None else got == want or (os.geteuid() and got == "EACCES"))
        got = call(pid, 91, entry, 0o666)
        tell("mode of the registry's file", got, got == "EROFS")


def main():
    if len(sys.argv) > 1:
        lib.KYLINX = os.path.abspath(sys.argv[1])
    tap = lib.Tap()
    modes = lib.run(lib.pvm([HOSTILE, "modes"]), 180, cwd="/").out.decode().split()
    if len(modes) < 40:
        tap.fail("hostile: modes", f"only {modes}")
    only = sys.argv[2:]
    for mode in [m for m in modes if not only or m in only]:
        # Not the host's /dev/null: as root, it could change its mode and owner.
        r = lib.run(lib.pvm([HOSTILE, mode, "7"]), 180 if mode in MUST_END else SECONDS, cwd="/", stdin=b"\n")
        err = r.err.decode(errors="replace")
        if "internal fault" in err or "AddressSanitizer" in err or "runtime error" in err:
            tap.fail(f"hostile: {mode}", "the monitor has a fault: " + err)
        elif r.status == 125 and not any(line.startswith("kylinx: error") for line in err.splitlines()):
            tap.fail(f"hostile: {mode}", "status 125 without a reason: " + err)
        elif mode in MUST_END and r.status != 0:
            tap.fail(f"hostile: {mode}", r.why())
        else:
            tap.ok(f"hostile: {mode}")
    outsider(tap)
    intruder(tap)
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
