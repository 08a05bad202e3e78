#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""test_hostile.py [KYLINX]: attacks of tests/guest/hostile, each in a pVM of its own. The pVM may be lost by them, by an
exit, a signal, or status 125 with one line that says why; it may hang itself, and then ends when it is killed. The
monitor must not have a fault of its own, and nothing may be left behind, which the runner looks at.
"""
import os
import subprocess
import sys

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


def main():
    if len(sys.argv) > 1:
        lib.KYLINX = os.path.abspath(sys.argv[1])
    tap = lib.Tap()
    modes = lib.run(lib.pvm([HOSTILE, "modes"]), 180, cwd="/").out.decode().split()
    if len(modes) < 40:
        tap.fail("hostile: modes", f"only {modes}")
    for mode in modes:
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
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
