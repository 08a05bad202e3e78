#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Stressors that check what they get, in a pVM: ours (tests/guest/stress) and Debian's stress-ng --verify.

test_stress.py [KYLINX]; about 10 s. With KX_LONG=1 each for 10 s, natively and in a pVM at once, and the ratio of
operations on a line "# NAME: ...".
"""
import concurrent.futures
import os
import re
import sys

if len(sys.argv) > 1:
    os.environ["KYLINX"] = sys.argv[1]
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402

OURS = os.path.abspath(os.path.join(lib.TOP, os.environ.get("BUILD", "build"), "tests/guest/stress.dyn"))
NAMES = ("cpu fpu vm mmap mremap mprotect sigsegv signal timer futex pthread poll epoll eventfd memfd file dir link tcp "
         "udp unix").split()
# Several at a time: each of a group runs beside the others, as stress-ng's processes do.
QUICK = ("cpu", "vm", "mprotect", "sigsegv", "pthread", "futex", "sock", "pipe")
LONG = ("cpu vm matrix fp vecmath qsort hash stream mmap mremap mprotect mincore memfd sigsegv sigfpe sigq timer timerfd "
        "itimer nanosleep pthread futex mutex pipe poll epoll eventfd sock sockpair sockfd udp hdd seek dir link flock "
        "fork switch sem shm aio signal sigrt sigchld longjmp get clock vfork clone sockmany mmapfork mmapmany brk stack msync "
        "madvise fallocate file-ioctl sync-file copy-file sendfile splice tee getdent rename symlink utime chmod chdir fcntl "
        "lockf dup open ioprio sem-sysv shm-sysv msg mq").split()
STRESS_NG = "/usr/bin/stress-ng"


def both(argv, timeout, together):
    """Natively (or None), and in a pVM, with a network of its own: stress-ng's ports are fixed."""
    with lib.Dir() as d, concurrent.futures.ThreadPoolExecutor() as pool:
        in_pvm = pool.submit(lib.run, lib.pvm(argv, "--net", "none", "--env", "TMPDIR=/tmp"), timeout, cwd="/")
        native = lib.run(argv, timeout, cwd=d, env={"TMPDIR": d}) if together else None
        return native, in_pvm.result()


def ratio(native, pvm):
    n, p = (float(m[1]) if (m := re.search(r"([\d.]+) ops", t)) else 0 for t in (native, pvm))
    return f"natively {n:.0f}, in a pVM {p:.0f}, ratio {p / n if n else 0:.3f}"


def ours(tap, name, seconds, together):
    native, r = both([OURS, name, str(seconds)], 240 + 2 * seconds, together)
    if r.status or b"SUCCESS" not in r.out:
        tap.fail(f"stress {name}", lib.status_text(r.status) + ": " + lib.one_line((r.out + r.err).decode(errors="replace")))
    else:
        tap.ok(f"stress {name}")
    if native:
        print(f"# {name}: {ratio(native.out.decode(), r.out.decode())}", flush=True)


def metric(name, out):
    """Bogo operations in the table of --metrics-brief."""
    m = re.search(rf"\] {re.escape(name)} +(\d+) ", out.decode(errors="replace"))
    return f"{m[1] if m else 0} ops"


def stress_ng(tap, names, seconds, together):
    argv = [STRESS_NG, "--temp-path", "/tmp", "--verify", "--metrics-brief", "--vm-bytes", "64m", "--timeout", str(seconds)]
    for name in names:
        argv += ["--" + name, "1"]
    native, r = both(argv, 240 + 2 * seconds, together)
    what, text = "stress-ng " + " ".join(names), (r.out + r.err).decode(errors="replace")
    if r.status or re.search(r"stress-ng: (fail|error)", text):
        bad = [line for line in text.splitlines() if re.search("fail|error|terminated|kylinx", line)]
        tap.fail(what, lib.status_text(r.status) + ": " + lib.one_line("\n".join(bad) or text))
    else:
        tap.ok(what)
    for name in names if native else ():
        print(f"# stress-ng {name}: {ratio(metric(name, native.out + native.err), metric(name, r.out + r.err))}", flush=True)


def main():
    tap, long = lib.Tap(), bool(os.environ.get("KX_LONG"))
    for name in NAMES if long else ["all"]:
        ours(tap, name, 10 if long else 0.1, long)
    if not os.path.exists(STRESS_NG):
        tap.skip("stress-ng", "stress-ng is not installed")
    elif long:
        for name in LONG:
            stress_ng(tap, [name], 10, True)
    else:
        stress_ng(tap, QUICK[:4], 1, False)
        stress_ng(tap, QUICK[4:], 1, False)
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
