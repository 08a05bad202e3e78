#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""--strace against strace(1): the same program under both gives the same lines, but for addresses, process ids, times,
ports, and what is listed below."""
import difflib
import os
import re
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib

tap = lib.Tap()
STRACED = os.path.join(os.path.dirname(lib.KYLINX), "tests/guest/straced.dyn")

PROGRAMS = [
    ["cat", "/etc/passwd"], ["head", "-c", "10", "/dev/zero"],
    ["wc", "-l", "/etc/services"], ["sort", "-r", "/etc/group"], ["od", "-c", "/etc/hostname"], ["uname", "-a"], ["env"],
    ["seq", "3"], ["tail", "-1", "/etc/passwd"], ["sha256sum", "/bin/true"], ["readlink", "-f", "/bin"],
    ["touch", "-c", "/tmp/none"], ["tr", "a", "b"], ["sleep", "0.01"], ["tty"],
    ["cut", "-d:", "-f1", "/etc/passwd"], ["busybox", "cat", "/etc/passwd"],
    ["dash", "-c", "cd /; pwd; echo a >/dev/null; exec /bin/true"],
]


def lines(path):
    """The lines of a trace, comparable: those of the first process, then those of each that it made, for who of them was
    first is chance."""
    out, open_calls, children = {}, {}, []
    with open(path, errors="replace") as f:
        for line in f:
            line = line.rstrip("\n")
            m = re.match(r"(?:\[pid +(\d+)\] |(\d+) +)", line)
            pid = (m[1] or m[2]) if m else "0"
            line = line[m.end():] if m else line
            line = re.sub(r" <(libos|monitor|slow)>$", "", line)
            if line.endswith(" <unfinished ...>"):
                open_calls[pid] = line[:-len(" <unfinished ...>")]
                continue
            m = re.match(r"<\.\.\. \w+ resumed>", line)
            if m:
                line = open_calls.pop(pid) + line[m.end():]
            if line.startswith("--- SIGCHLD"):  # of default action: the host's, not the monitor's
                continue
            line = re.sub(r"\s+= ", " = ", line)
            line = re.sub(r"0x[0-9a-f]{5,}", "ADDR", line)
            line = re.sub(r"^getrandom.*", "getrandom", line)
            line = re.sub(r"^sysinfo.*", lambda m: re.sub(r"\d+", "N", m[0]), line)
            line = re.sub(r"htons\(\d+\)", "htons(PORT)", line)
            line = re.sub(r'sa_data="[^"]*"', "sa_data=PORT", line)
            line = re.sub(r"(tv_sec|tv_usec|tv_nsec|si_utime|si_stime)=\d+", r"\1=T", line)
            line = re.sub(r"^(rseq\(.*\)) = .*", r"\1 = R", line)  # for programs with sequences only
            line = re.sub(r"^(brk|mmap|mremap)(\(.*\)) = (ADDR|\d+)$", r"\1\2 = ADDR", line)
            line = re.sub(r"/\* \d+ vars \*/", "/* vars */", line)
            line = re.sub(r"^(getpid|gettid|getppid|set_tid_address)(\(.*\)) = \d+", r"\1\2 = PID", line)
            made = re.match(r"(?:clone|vfork|fork|clone3)\(.*\) = (\d+)", line)
            if made:
                children.append(made[1])
            line = re.sub(r"^(clone|vfork|fork|clone3|wait4)(\(.*\)) = \d+", r"\1\2 = PID", line)
            line = re.sub(r"^(tgkill\()\d+, \d+", r"\1PID, PID", line)
            line = re.sub(r"^(wait4\()\d+", r"\1PID", line)
            line = re.sub(r"(si_pid=|=> \{parent_tid=\[|parent_tid=\[)\d+", r"\1PID", line)
            out.setdefault(pid, []).append(line)
    # The first process has no number in our trace before it has a child.
    first = [line for pid in out if pid not in children for line in out[pid]]
    return first + [line for pid in children for line in out.get(pid, ())]


def compare(name, argv, options=(), skip=None):
    with lib.Dir() as d:
        os.chmod(d, 0o777)
        status = []
        for kind, cmd in (("native", ["strace", "-f", "-o", f"{d}/native", *argv]),
                          ("pvm", lib.pvm(argv, "--io", "exit", f"--strace={d}/pvm", *options))):
            r = lib.run(cmd, cwd="/usr", env={"PWD": "/usr"})
            status.append(r.status)
        if status[0] != status[1]:
            return tap.fail(name, f"status {status}")
        a, b = ([x for x in lines(f"{d}/{k}") if not (skip and re.match(skip, x))] for k in ("native", "pvm"))
        diff = [x for x in difflib.unified_diff(a, b, lineterm="", n=0) if not re.match(r"---|\+\+\+|@@", x)]
        if diff or len(a) < 10:
            tap.fail(name, f"{len(a)} lines, {len(diff)} differ: " + " | ".join(diff[:6]))
        else:
            tap.ok(name)


def main():
    if not shutil.which("strace") or lib.run(["strace", "-o", "/dev/null", "true"]).status:
        tap.skip("strace", "not here, or not allowed")
        return tap.end()
    compare("arguments that go both ways", [STRACED])
    for argv in PROGRAMS:
        path = shutil.which(argv[0], path="/usr/bin:/bin")
        if path:
            compare(" ".join(argv), [path, *argv[1:]])
        else:
            tap.skip(argv[0], "not installed")
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
