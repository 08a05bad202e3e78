#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whoever writes to the store, to the keyring or signs is killed at each system call in turn that changes something, or each that
writes, transfers or makes a descriptor fails, or does less: what is there then is whole for the next process, which does the same and
leaves no file that has no name of its own.

test_crash.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure. KX_LONG=1: fails in more ways.
"""
import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import expect  # noqa: E402
from servers import LONG  # noqa: E402

args = lib.arguments()
HERE = os.path.dirname(os.path.abspath(__file__))
SMALL = ("/bin/true", "/bin/false")
NAMES = re.compile(r"format-\w+(/(lock|(images|notes)/[0-9a-f]{64}|index/[0-9a-f-]+))?|history")
FAILURES = [(errno.ENOSPC, "writes"), ("short", "parts"), (errno.EMFILE, "fds"), *([(errno.EIO, "writes"), (errno.EIO, "reads")] if LONG else ())]
tests = []


def test(fn):
    def in_dir():
        with lib.Dir() as d:
            subprocess.run(["gcc", "-O1", "-Wall", "-D_GNU_SOURCE", "-pthread", "-o", f"{d}/callat", f"{HERE}/callat.c"], check=True)
            os.mkdir(f"{d}/w")
            fn(Place(d))
    tests.append((fn.__name__, in_dir))
    return fn


class Place:
    """A directory for the tests, with another, d/w, for what they change."""

    def __init__(self, d):
        self.d, self.w = d, f"{d}/w"
        self.env = {**os.environ, "KYLINX_STORE": f"{d}/w/s", "KYLINX_CONFIG": f"{d}/w/c"}

    def run(self, *argv, status=0):
        r = lib.run([lib.KYLINX, *argv], env=self.env)
        if r.status != status:
            raise AssertionError(f"{' '.join(argv)}: {r.why()} {r.err}")
        return r.out.decode()

    def files(self):
        """Path below w -> content."""
        found = {}
        for top, _, names in os.walk(self.w):
            for n in names:
                path = os.path.join(top, n)
                with open(path, "rb") as f:
                    found[os.path.relpath(path, self.w)] = f.read()
        return found

    def store(self):
        return {n[2:]: t for n, t in self.files().items() if n.startswith("s/")}

    def fails_at_each_call(self, what, of, prepare, argv, whole):
        """prepare(), then argv, whose nth call of a class fails; whole() must hold then. It tells of an error, or has done all."""
        for n in range(1, 1000):
            self.anew(prepare)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.d}/said")
            r = lib.run([f"{self.d}/callat", str(what), of, str(n), lib.KYLINX, *argv], env={**self.env, "CALLAT": f"{self.d}/said"})
            at = f"{what} at {of} call {n}"
            if r.status and (r.status != 125 or not re.fullmatch(rb"kylinx: [^\n]+ \([^\n]+\)\n", r.err)):
                raise AssertionError(f"{at}: {r.why()}")
            try:
                whole()
            except AssertionError as e:
                raise AssertionError(f"{at} ({r.status}, {r.err}): {e}") from None
            if not os.path.exists(f"{self.d}/said"):
                expect(r.status, 0, f"after {n - 1} calls")
                return
        raise AssertionError("it has no end")

    def anew(self, prepare):
        shutil.rmtree(self.w)
        os.mkdir(self.w)
        prepare()

    def at_each_call(self, prepare, argv, whole, most=1000, step=1):
        """prepare(), then argv, killed at its nth call; whole() must hold then. Until it is not killed any more, or at most so
        often. The number of instants. Then the same with calls that fail."""
        n = self.killed_at_each_call(prepare, argv, whole, most, step)
        for what, of in FAILURES if most == 1000 else ():
            self.fails_at_each_call(what, of, prepare, argv, whole)
        return n

    def killed_at_each_call(self, prepare, argv, whole, most, step):
        for n in range(1, most, step):
            self.anew(prepare)
            r = lib.run([f"{self.d}/callat", "kill", "changes", str(n), lib.KYLINX, *argv], env=self.env)
            assert r.status in (0, 1), f"instant {n}: {r.why()} {r.err}"
            try:
                whole()
            except AssertionError as e:
                raise AssertionError(f"killed at call {n}: {e}") from None
            if r.status:
                return n - 1
        assert most < 1000, "it has no end"
        return most


def nothing():
    pass


def store_is_whole(p):
    if not os.path.isdir(f"{p.w}/s"):
        return
    text = p.run("lib", "verify")
    assert " 0 damaged;" in text, text


def no_strangers(p):
    strange = [n for n in p.store() if not NAMES.fullmatch(n)]
    assert not strange, strange


def add_again(p, *files):
    """The same by another process: what it makes is all that is there."""
    p.run("lib", "add", *files)
    store_is_whole(p)
    no_strangers(p)
    for path in files:
        p.run("lib", "show", path)


@test
def store_is_added_to(p):
    def whole():
        store_is_whole(p)
        add_again(p, *SMALL)
    n = p.at_each_call(nothing, ["lib", "add", *SMALL], whole)
    assert n > 15, n


@test
def store_is_mended(p):
    """An image was damaged: gc removes it, and the next add makes it anew."""
    p.run("lib", "add", *SMALL)
    ready = f"{p.d}/ready"
    shutil.copytree(p.w, ready)
    format_, = [n for n in os.listdir(f"{ready}/s") if n.startswith("format-")]
    os.mkdir(f"{ready}/s/format-0")
    for name in ("old", "older"):
        lib_write(f"{ready}/s/format-0/{name}", b"x")
    lib_write(f"{ready}/s/{format_}/images/{'0' * 64}", b"of nobody")
    lib_write(f"{ready}/s/{format_}/new", b"half writ")

    def prepare():
        os.rmdir(p.w)
        shutil.copytree(ready, p.w)

    # A copy of the store is another one: its images have other inodes, so that entries must be made anew.
    def whole():
        text = p.run("lib", "list")
        for path in SMALL:
            assert path in text, f"{path} is lost: {text}"
        p.run("lib", "gc")
        expect(sorted(os.listdir(f"{p.w}/s")), sorted([format_, "history"]), "the store")
        no_strangers(p)
        add_again(p, *SMALL)
    n = p.at_each_call(prepare, ["lib", "gc"], whole)
    assert n >= 6, n


def lib_write(path, data):
    with open(path, "wb") as f:
        f.write(data)


@test
def store_is_written_over(p):
    """An image that is damaged is written anew by an add after a gc."""
    p.run("lib", "add", *SMALL)
    ready = f"{p.d}/ready"
    shutil.copytree(p.w, ready)
    images = [os.path.join(top, n) for top, _, names in os.walk(ready) for n in names if top.endswith("/images")]
    for path in images:
        with open(path, "r+b") as f:
            f.seek(5000)
            f.write(b"damage")

    def prepare():
        os.rmdir(p.w)
        shutil.copytree(ready, p.w)
        p.run("lib", "gc")

    def whole():
        store_is_whole(p)
        add_again(p, *SMALL)
    assert images and p.at_each_call(prepare, ["lib", "add", *SMALL], whole) > 8


def trusted(p):
    """A configuration with a key; the secret half."""
    os.makedirs(f"{p.d}/keys", exist_ok=True)
    if not os.path.exists(f"{p.d}/keys/release"):
        p.run("lib", "keygen", f"{p.d}/keys/release")
    p.run("lib", "trust", f"{p.d}/keys/release.pub")
    return f"{p.d}/keys/release"


def ring(p):
    return sorted(os.listdir(f"{p.w}/c/keys"))


@test
def key_is_revoked(p):
    def prepare():
        trusted(p)
        p.run("lib", "revoke", "1" * 32)

    def whole():
        expect([line.split()[0] for line in p.run("lib", "trust").splitlines()], ["release"], "keys")
        text = lib.read(f"{p.w}/c/keys/revoked")
        assert re.fullmatch(r"kylinx-revoked 1\nkey 1{32} \d+\n(key 2{32} \d+\n)?", text), text
        p.run("lib", "revoke", "2" * 32)
        expect(lib.read(f"{p.w}/c/keys/revoked").count("key "), 2, "revoked")
        expect(ring(p), [".lock", "release.pub", "revoked"], "the keyring")
    assert p.at_each_call(prepare, ["lib", "revoke", "2" * 32], whole) >= 5


@test
def key_is_trusted(p):
    secret = trusted(p)

    def whole():
        keys = [line.split()[0] for line in p.run("lib", "trust").splitlines()]
        assert keys in ([], ["release"]), keys
        p.run("lib", "trust", secret + ".pub", "--expires", "90d")
        expect(ring(p), [".lock", "release.pub"], "the keyring")
    assert p.at_each_call(nothing, ["lib", "trust", secret + ".pub"], whole) >= 5
    assert p.at_each_call(lambda: trusted(p), ["lib", "trust", "release", "--expires", "30d"], whole) >= 5


@test
def file_is_signed(p):
    secret = trusted(p)
    old = [b""]

    def prepare(before):
        trusted(p)
        shutil.copy("/bin/true", f"{p.w}/libx.so")
        if before:
            p.run("lib", "sign", f"{p.w}/libx.so", "--key", secret, "--version", "1")

    def whole(before):
        names = {n for n in os.listdir(p.w) if n.startswith("libx")}
        if before or "libx.so.kxsig" in names:
            text = p.run("lib", "verify", f"{p.w}/libx.so")
            assert "signed by release" in text, text
        p.run("lib", "sign", f"{p.w}/libx.so", "--key", secret, "--version", "2")
        names = {n for n in os.listdir(p.w) if n.startswith("libx")}
        expect(names, {"libx.so", "libx.so.kxsig"}, "files")
        assert old[0] is not None
    for before in (False, True):
        n = p.at_each_call(lambda: prepare(before), ["lib", "sign", f"{p.w}/libx.so", "--key", secret, "--version", "2"],
                           lambda: whole(before))
        assert n >= 5, n


@test
def key_is_made(p):
    def whole():
        names = set(os.listdir(p.w))
        assert names in (set(), {"k"}, {"k", "k.pub"}), names
        for name, form in (("k", r"kylinx-secret-key 1\nseed \w{64}\n"), ("k.pub", r"kylinx-public-key 1\nkey \w{64}\n.*")):
            if name in names:
                text = lib.read(f"{p.w}/{name}")
                assert re.fullmatch(form, text, re.S), text
                expect(os.stat(f"{p.w}/{name}").st_mode & 0o777, 0o600 if name == "k" else 0o644, "mode")
    assert p.at_each_call(nothing, ["lib", "keygen", f"{p.w}/k"], whole) >= 8


@test
def store_of_a_start(p):
    """What `kylinx run` prepares before the program runs: killed at each call until it has ended, or that many."""
    def whole():
        store_is_whole(p)
        r = lib.run([lib.KYLINX, "run", "--", "/bin/true"], env=p.env)
        expect((r.status, r.out, r.err), (0, b"", b""), "the next start")
        store_is_whole(p)
        no_strangers(p)
    p.at_each_call(nothing, ["run", "--", "/bin/true"], whole, most=60, step=7 if lib.SLOW > 1 else 1)


if __name__ == "__main__":
    os.umask(0o022)
    native = [name for name, _ in tests if name != "store_of_a_start"]
    sys.exit(lib.run_tests(tests, args.only, native=native, slow=60))
