#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Python's own regression tests (Debian's libpython3.11-testsuite), natively and in a pVM: each case the same result.

test_python.py [KYLINX] [--all] [--only PATTERN] [--keep DIR]; without --all a subset that takes some seconds; with it
every module of MODULES, which takes some twenty minutes. A case whose results differ is run again by itself, natively
and in a pVM, before it counts. KNOWN lists what differs for a reason; docs/python-tests.md says more. With --all a
case of KNOWN that does not differ is a failure, too. --keep leaves the outputs in DIR.
"""
import argparse
import concurrent.futures
import os
import re
import shlex
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
parser = argparse.ArgumentParser()
parser.add_argument("kylinx", nargs="?")
parser.add_argument("--all", action="store_true")
parser.add_argument("--only", default="", metavar="PATTERN")
parser.add_argument("--keep", metavar="DIR")
args = parser.parse_args()
if args.kylinx:
    os.environ["KYLINX"] = args.kylinx
import lib  # noqa: E402

PY = "/usr/bin/python3.11"
ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC",
       "HOME": "/nowhere", "TERM": "dumb", "PYTHONDONTWRITEBYTECODE": "1"}

# Module: seconds for a run in a pVM.
MODULES = {
    "test_subprocess": 600, "test_os": 300, "test_signal": 300, "test_threading": 300, "test_thread": 120,
    "test_posix": 200, "test_fcntl": 60, "test_select": 60, "test_poll": 120, "test_epoll": 60, "test_selectors": 300,
    "test_socket": 600, "test_mmap": 60, "test_fork1": 60, "test_wait3": 60, "test_wait4": 60, "test_popen": 60,
    "test_pty": 60, "test_ioctl": 60, "test_resource": 60, "test_tempfile": 120, "test_shutil": 120,
    "test_faulthandler": 300, "test_threadsignals": 120, "test_eintr": 180, "test_threading_local": 60,
    "test_threadedtempfile": 60, "test_queue": 200, "test_time": 60, "test_atexit": 60, "test_random": 60,
    "test_socketserver": 120, "test_asyncore": 120, "test_multiprocessing_fork": 900,
    "test_multiprocessing_spawn": 1800, "test_multiprocessing_forkserver": 1800, "test_concurrent_futures": 900,
    "test_asyncio": 1800,
}
TERMINAL = {"test_ioctl"}  # want a controlling terminal
# Hang natively in a virtual machine without a vsock loopback; change the host's name and clock.
IGNORE = {"test_socket": ["*VSOCK*", "test_sethostname"], "test_time": ["test_monotonic_settime"]}
RESOURCES = {"test_socketserver": "network"}  # its own, on 127.0.0.1

# Of the quick run: modules, each with patterns of cases.
QUICK = [
    ("test_popen", []), ("test_fcntl", []), ("test_mmap", []), ("test_resource", []), ("test_epoll", []),
    ("test_pty", []),
    ("test_posix", ["*TestPosixSpawn.*", "*test_fork*", "*waitid*", "*register_at_fork*", "*sched_*", "*pipe*"]),
    ("test_subprocess", ["*RunFuncTestCase*", "*test_restore_signals*", "*test_start_new_session*",
                         "*test_process_group*", "*test_preexec*", "*test_call_string*", "*test_undecodable_env*",
                         "*ContextManager*", "*vfork*"]),
    ("test_os", ["*FDInheritance*", "*ExecTests*", "*PidTests*", "*test_memfd*", "*eventfd*", "*Sendfile*",
                 "*ForkTests*", "*PidfdTests*", "*PseudoterminalTests*"]),
    ("test_signal", ["*WakeupFDTests*", "*test_sigwait*", "*test_sigpending*", "*test_pthread_*", "*RaiseSignal*",
                     "*test_sigtimedwait*"]),
    ("test_threading", ["*fork*", "*test_daemon*"]),
]

# Module.Class.case: why it differs. docs/python-tests.md has the same list.
KNOWN = {
    "test_posix.PosixTester.test_get_and_set_scheduler_and_param":
        "asks about its parent, which is no process of the pVM: ESRCH",
    "test_shutil.TestCopy.test_copy2_xattr": "trusted.* attributes want CAP_SYS_ADMIN, which a pVM of root has not",
    "test_shutil.TestCopy.test_copyxattr": "the same",
    "test_shutil.TestCopy.test_copyxattr_symlinks": "the same",
}

START = re.compile(r"^(\w+) \(([\w.]+)\)( \(.*\)| \[.*\])?(?=$| \.\.\.)", re.M)
END = re.compile(r"(?:^|\.\.\. ?|\s)(ok|FAIL|ERROR|skipped .*|expected failure|unexpected success)$", re.M)


def parse(text):
    """Case to result, from the lines of -v. What a case prints itself comes between its name and its result."""
    found, starts = {}, list(START.finditer(text))
    for m, n in zip(starts, starts[1:] + [None]):
        end = END.search(text, m.end(), n.start() if n else len(text))
        result = end[1].split()[0] if end else "no result"
        name = m[2] if m[2].endswith("." + m[1]) else f"{m[2]}.{m[1]}"
        if result in ("FAIL", "ERROR") or name not in found:
            found[name] = result
    return found


def run(where, module, patterns, timeout):
    """(result, cases) of one module."""
    with lib.Dir() as d:
        argv = [PY, "-u", "-m", "test", "-v", "--timeout", str(timeout - 5), module]
        for p in patterns:
            argv += ["-m", p]
        for p in IGNORE.get(module, []):
            argv += ["-i", p]
        if module in RESOURCES:
            argv += ["-u", RESOURCES[module]]
        if module in TERMINAL:
            argv = ["/usr/bin/script", "-qec", shlex.join(argv), "/dev/null"]
        env = dict(ENV, TMPDIR=d, HOME=d)
        if where == "native":
            argv = ["/usr/bin/env", "-i", *(f"{k}={v}" for k, v in env.items()), *argv]
        else:
            argv = ["/usr/bin/env", "-i", *(f"{k}={v}" for k, v in env.items()),
                    *lib.pvm(argv, "--volume", f"{d}:{d}")]
        r = lib.run(argv, timeout, cwd=d)
    out = r.out.decode(errors="replace")
    if args.keep:
        with open(os.path.join(args.keep, f"{module}.{where}{'.again' if patterns else ''}"), "w") as f:
            f.write(f"{out}\n=== {lib.status_text(r.status)} {r.seconds:.1f} s\n{r.err.decode(errors='replace')}")
    return r, parse(out)


def both(module, patterns, timeout):
    """Natively and in a pVM; at once when it must be quick."""
    with concurrent.futures.ThreadPoolExecutor(1 if args.all else 2) as pool:
        jobs = [pool.submit(run, where, module, patterns, timeout) for where in ("native", "pVM")]
        return [j.result() for j in jobs]


def differences(native, pvm):
    return {k: (native.get(k, "absent"), pvm.get(k, "absent")) for k in sorted(native.keys() | pvm.keys())
            if native.get(k) != pvm.get(k)}


def alone(case, module, timeout):
    """The results of one case by itself."""
    parts = case.rsplit(".", 2)
    pattern = ".".join(parts[-2:]) if not parts[-1].startswith("setUp") else parts[-2]
    (_, n), (_, p) = both(module, ["*" + pattern], min(timeout, 600))
    return n, p


def short(case):
    return case.removeprefix("test.")


def test(tap, module, patterns, timeout):
    (rn, native), (rp, pvm) = both(module, patterns, timeout)
    if b"No module named" in rn.out + rn.err and not native:
        tap.skip(module, "not in this libpython3.11-testsuite")
        return
    why = [re.findall(rb"^%s skipped -- .*" % module.encode(), r.out, re.M)[:1] for r in (rn, rp)]
    if not native and why[0] and why[0] == why[1]:
        tap.skip(module, why[0][0].decode())
        return
    if not native:
        tap.fail(module, f"natively no case: {rn.why()}; in a pVM: {rp.why()}")
        return
    if native.keys() - pvm.keys() and rp.status is not None:  # it ended early, which no case by itself would show
        print(f"# {module}: {len(native.keys() - pvm.keys())} cases missing in a pVM ({rp.why()}); once more")
        rp, pvm = run("pVM", module, patterns, timeout)
        if native.keys() - pvm.keys() and rp.status is not None:
            tap.fail(module, f"ended early in a pVM, at {list(pvm)[-1:]}: {rp.why()}")
            return
    wrong, known = [], 0
    if rn.status is None or rp.status is None:
        last = list(pvm if rp.status is None else native)[-1:]
        tap.fail(module, f"timeout of {timeout} s {'in a pVM' if rp.status is None else 'natively'} at {last}")
        return
    for case, (a, b) in differences(native, pvm).items():
        if short(case) in KNOWN:
            known += 1
            continue
        if len(wrong) < 20:
            n, p = alone(case, module, timeout)
            if n and not differences(n, p):
                print(f"# {short(case)}: {a}, in a pVM {b}; by itself {n.get(case)} in both")
                continue
        wrong.append(f"{short(case)}: {a}, in a pVM {b}")
    if args.all:
        wrong += [f"{c}: in KNOWN, but the same in both" for c in KNOWN
                  if c.startswith(module + ".") and "test." + c not in differences(native, pvm)]
    ran = sum(r != "skipped" for r in native.values())
    what = f"{module}: {ran} cases, {len(native) - ran} skipped" + (f", {known} known to differ" if known else "")
    print(f"# {module}: natively {rn.seconds:.1f} s, in a pVM {rp.seconds:.1f} s")
    if wrong:
        tap.fail(what, "; ".join(wrong))
    else:
        tap.ok(what)


def main():
    tap = lib.Tap()
    if not os.path.exists(PY) or not os.path.exists("/usr/lib/python3.11/test/regrtest.py"):
        tap.skip("python", "libpython3.11-testsuite is not installed")
        return tap.end()
    todo = [(m, [], t) for m, t in MODULES.items()] if args.all else [(m, p, 600) for m, p in QUICK]
    for module, patterns, timeout in todo:
        if re.search(args.only, module):
            test(tap, module, patterns, timeout)
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
