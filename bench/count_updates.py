# SPDX-License-Identifier: Apache-2.0
"""How long a program stands while a library of its is replaced (kylinx update), in instructions: count.py's, and like it for a
machine that counts them.

What the command tells is of the longest stop of an update: in all, and of that until all stood. Nobody else has work meanwhile but
where there is load, whose instructions are in it when it has its turn.
"""
import os
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import time

import groups as g
import harness as h
import servers

UPDATES = 7
SETTLE = 0.2  # seconds
FLAGS = ["-O2", "-fPIC", "-Wl,-z,relro", "-Wl,-z,now"]
LIBRARY = "static long n = {n}, *volatile at = &n; int version(void) {{ return {n}; }} long bump(void) {{ return ++*at; }}"
USER = "int version(void); long bump(void); long use{i}(void) {{ return version() + bump(); }}"
MAIN = "#include <stdio.h>\nint pause(void); {declared} int main(void) {{ if ({used} < 0) return 1; puts(\"ready\"), fflush(0); return pause(); }}"
JEMALLOC = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"


def until_ready(server, port):
    """A program of linked() says so by a line, a server by a port that accepts."""
    while server.poll() is None:
        if server.stdout:
            return server.stdout.readline() == b"ready\n"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        except OSError:
            time.sleep(0.05)
    return False


def gcc(out, text, *options):
    subprocess.run(["gcc", *FLAGS, "-x", "c", "-", "-x", "none", "-o", out, *options], input=text.encode(), check=True)


def linked(users):
    """A program that sleeps, with so many libraries that use the one that is replaced."""
    def made(d, port):
        for n in (1, 2):
            gcc(f"{d}/v{n}.so", LIBRARY.format(n=n), "-shared", "-Wl,-soname,libupd.so.1")
        old, own, rpath = shutil.copy(f"{d}/v1.so", f"{d}/libupd.so.1"), [], f"-Wl,-rpath,{d}"
        for i in range(users):
            own.append(f"{d}/libuse{i}.so")
            gcc(own[i], USER.format(i=i), "-shared", f"-Wl,-soname,libuse{i}.so", old, rpath)
        gcc(f"{d}/main", MAIN.format(declared="".join(f"long use{i}(void); " for i in range(users)),
                                     used="+".join(f"use{i}()" for i in range(users))), *own, rpath)
        return [f"{d}/main"], [f"{d}/v2.so", f"{d}/v1.so"], None
    return made


def redis(*load):
    def made(d, port):
        client = ["redis-benchmark", "-p", str(port), "-l", "-q", *load] if load else None
        return [*servers.redis(d, port), "--jemalloc-bg-thread", "no"], [shutil.copy(JEMALLOC, d)], client
    return made


# Name, program: what it is run by, the versions in turn, what loads it; what has to be there.
CASES = [
    ("update_1", linked(1), "gcc"),
    ("update_30", linked(30), "gcc"),
    ("update_redis", redis(), "redis-server"),
    ("update_redis_load", redis("-t", "set,get", "-r", "10000"), "redis-benchmark"),
]


def pauses(plan, made):
    """[instructions of the whole pause, until all stood] of each update but the first."""
    with tempfile.TemporaryDirectory(prefix="kylinx-bench-") as d:
        os.chmod(d, 0o755)
        port = g.free_port()
        argv, versions, load = made(d, port)
        name, got, client = f"bench-update-{os.getpid()}", [], None
        listens = "--port" in argv
        server = subprocess.Popen(plan.argv("pvm", argv, "--volume", f"{d}:{d}", "--name", name), stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL if listens else subprocess.PIPE, start_new_session=True)
        try:
            if not until_ready(server, port):
                raise RuntimeError(f"{argv[0]}: did not start")
            if load:
                client = subprocess.Popen(load, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for i in range(UPDATES):
                time.sleep(SETTLE)
                out = h.run([plan.kylinx, "update", "--timeout", "500", name, versions[i % len(versions)]], 1e6)
                stood = re.search(r"([0-9.]+) ms until all stood: pause ([0-9.]+) ms", out)
                got.append([float(stood[2]) * 1e6, float(stood[1]) * 1e6])
                h.say(out)
        finally:
            for p in filter(None, (client, server)):
                p.kill()
                p.wait()
    return got[1:]


HEAD = ["update", "instructions that it stands", "least", "most", "until all stand"]


def row(name, got):
    whole, until = zip(*got)
    return [name, *(f"{f(whole):,.0f}" for f in (statistics.median, min, max)), f"{statistics.median(until):,.0f}"]
