# SPDX-License-Identifier: Apache-2.0
"""Tests of this tree on emulated machines (tests/emulated.py, emulated_vmx.py), for scripts that bring a KVM of their own."""
import os
import re
import shlex
import sys

import lib

sys.path.insert(0, os.path.join(lib.TOP, "tests"))


def names(pattern):
    """Of tests/run.py's, those that match."""
    r = lib.run([sys.executable, "tests/run.py", "--list", "--only", pattern])
    return [n for n in r.out.decode().split() if re.search(pattern, n)]


def run(script, tests, seconds, boot_seconds, more=""):
    """
    Those tests on one machine of tests/`script`, which has `seconds` for them, and then a piece of shell script: (status of the
    script, lines of results, what it says besides).
    """
    pattern = "^(" + "|".join(re.escape(t) for t in tests) + ")$"
    command = f"python3 -u tests/run.py --only {shlex.quote(pattern)}; status=$?\n{more}\nexit $status"
    r = lib.run([sys.executable, f"tests/{script}", "--seconds", str(seconds), "--", "bash", "-c", command], seconds + boot_seconds)
    lines = [x for x in r.out.decode(errors="replace").splitlines() if re.match(r"(not )?ok\b", x)]
    return r.status, lines, r.why()
