#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A supervisor that runs untrusted code in pVMs: one request, one pVM, with limits, and nothing left of it afterwards.

    supervise.py [KYLINX]

Each worker has a socket to its supervisor, no network, 256 MiB, five seconds, and a view with nothing of the user's.
"""
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile

KYLINX = sys.argv[1] if len(sys.argv) > 1 else "kylinx"


class Worker:
    def __init__(self, name, argv):
        self.name = name
        self.socket, theirs = socket.socketpair()
        self.stats = tempfile.NamedTemporaryFile("r")
        # Its own session: a signal to the supervisor's terminal is not for the worker. Descriptors keep their numbers.
        self.process = subprocess.Popen(
            [KYLINX, "run", "--name", name, "--net", "none", "--memory", "256M", f"--stats={self.stats.name}", "--env",
             f"CONTROL_FD={theirs.fileno()}", "--", *argv],
            cwd="/", env={"PATH": "/usr/bin:/bin", **({"HOME": os.environ["HOME"]} if "HOME" in os.environ else {})},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()

    def members(self):
        """The family, as `kylinx ps` has it: the worker and all that it has started."""
        out = subprocess.run([KYLINX, "ps", "--json", "--family", self.name], stdout=subprocess.PIPE, check=True).stdout
        return json.loads(out)["families"][0]["members"]

    def end(self, seconds):
        """How it ended, what it wrote, and what it took; None: not in time."""
        try:
            out, err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            # What it has started goes as well; the process group alone would miss what made one of its own.
            subprocess.run([KYLINX, "kill", "--family", "-s", "KILL", self.name])
            out, err = self.process.communicate()
        self.socket.close()
        text = self.stats.read()  # empty after SIGKILL
        return how(self.process.returncode, err), out, json.loads(text) if text else None


def how(status, err):
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"  # as of a process: the supervisor waits for the program itself
    if status == 125:
        return f"KylinX failed: {err.strip()}"
    if status in (126, 127):
        return f"not started: {err.strip()}"
    return f"exited with {status}"


def main():
    code = "import os, socket\ns = socket.socket(fileno=int(os.environ['CONTROL_FD']))\n" \
           "n = int(s.recv(100))\ns.send(str(sum(range(n))).encode())\nprint('done')"
    w = Worker(f"sum-{os.getpid()}", ["/usr/bin/python3", "-c", code])
    w.socket.send(b"100000")
    print("answer:", w.socket.recv(100).decode())
    status, out, stats = w.end(30)
    print("worker:", status, "and wrote", repr(out), "in", stats["processes"], "process")

    w = Worker(f"loop-{os.getpid()}", ["/bin/sh", "-c", "setsid sleep 1000 & echo up >&$CONTROL_FD; while :; do :; done"])
    w.socket.recv(100)
    print("members:", len(w.members()))
    status, out, stats = w.end(2)
    print("worker:", status)

    w = Worker(f"none-{os.getpid()}", ["/no/such/program"])
    print("worker:", w.end(30)[0])


if __name__ == "__main__":
    main()
