#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Keys, signatures and policy files: kylinx lib keygen, sign, trust, revoke, verify, policy. No pVM runs here.

test_policy_cli.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure.
"""
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import Skip, expect  # noqa: E402

args = lib.arguments()

LIBC = "/lib/x86_64-linux-gnu/libc.so.6"
ERROR = re.compile(rb"kylinx: [^\n]+ \([^\n]+\)\n")
tests = []


def test(fn):
    def in_dir():
        with lib.Dir() as d:
            fn(Place(d))
    tests.append((fn.__name__, in_dir))
    return fn


class Place:
    """A directory with a configuration, a store and a library of its own."""

    def __init__(self, d):
        self.d, self.lib = d, f"{d}/libx.so.1.2.3"
        self.env = {"KYLINX_CONFIG": f"{d}/c", "KYLINX_STORE": f"{d}/s"}
        shutil.copy(os.path.realpath(LIBC), self.lib)
        os.chmod(self.lib, 0o644)

    def run(self, *argv, status=0, out=None, err=b"", **kw):
        r = lib.run([lib.KYLINX, "lib", *argv], env=self.env, **kw)
        if r.status != status or not re.search(err if isinstance(err, bytes) else err.encode(), r.err):
            raise AssertionError(f"{' '.join(argv)}: {r.why()}; {r.err}")
        if status == 125:
            assert ERROR.fullmatch(r.err), r.err
        else:
            expect(r.err, b"", "standard error")
        text = r.out.decode()
        if out is not None and not re.search(out, text):
            raise AssertionError(f"{' '.join(argv)}: {text!r} has no {out!r}")
        return text

    def json(self, *argv, **kw):
        return json.loads(self.run(*argv, "--json", **kw))

    def key(self, name, *options):
        """A trusted key, and the file of its secret half."""
        self.run("keygen", f"{self.d}/{name}")
        self.run("trust", f"{self.d}/{name}.pub", *options)
        return f"{self.d}/{name}"

    def policy(self, text, name="policy"):
        os.makedirs(f"{self.d}/c", exist_ok=True)
        with open(f"{self.d}/c/{name}", "w") as f:
            f.write(text)
        return f"{self.d}/c/{name}"

    def keys(self):
        return {k["name"]: k for k in self.json("trust")["keys"]}

    def history(self):
        return [(e["event"], e["object"]) for e in map(json.loads, self.run("history").splitlines())]


def mode(path):
    return os.stat(path).st_mode & 0o7777


def fields(path):
    with open(path) as f:
        return dict(line.split() for line in f)


@test
def keys_are_made(p):
    secret = f"{p.d}/release"
    old = os.umask(0)
    try:
        out = p.run("keygen", secret)
    finally:
        os.umask(old)
    expect((mode(secret), mode(secret + ".pub")), (0o600, 0o644), "modes")
    key_id = hashlib.sha256(bytes.fromhex(fields(secret + ".pub")["key"])).hexdigest()[:32]
    assert key_id in out, out
    before = lib.read(secret)
    p.run("keygen", secret, status=125, err="release: File exists")
    os.unlink(secret)
    p.run("keygen", secret, status=125, err="release.pub: File exists")
    assert not os.path.exists(secret), "half a pair"
    os.unlink(secret + ".pub")
    p.run("keygen", secret)
    assert lib.read(secret) != before, "the same key again"
    expect(sorted(os.listdir(p.d)), ["libx.so.1.2.3", "release", "release.pub"], "files")
    p.run("keygen", f"{p.d}/no/key", status=125, err="No such file")
    p.run("keygen", status=125, err="one file is needed")


@test
def what_is_signed(p):
    """The signature file says what the file is, and openssl finds it right."""
    key = p.key("release")
    os.symlink(p.lib, f"{p.d}/libx.so")
    p.run("sign", f"{p.d}/libx.so", "--key", key, "--expires", "90d", out=r"libx.so.1.2.3.kxsig: libc.so.6, version 6\n")
    sig = p.lib + ".kxsig"
    with open(p.lib, "rb") as f:
        content = f.read()
    says = fields(sig)
    expect((says["soname"], says["version"], says["sha256"], int(says["size"])),
           ("libc.so.6", "6", hashlib.sha256(content).hexdigest(), len(content)), "manifest")
    assert abs(int(says["time"]) - time.time()) < 60 and int(says["expires"]) - int(says["time"]) == 90 * 86400, says
    notes = subprocess.run(["readelf", "-n", p.lib], stdout=subprocess.PIPE, text=True, check=True).stdout
    expect(says["build-id"], re.search("Build ID: ([0-9a-f]+)", notes).group(1), "build-id")
    with open(sig, "rb") as f:
        text = f.read()
    signed = text[:text.rindex(b"\nsignature ") + 1]
    for name, data in (("message", signed), ("sig", bytes.fromhex(says["signature"])),
                       ("pub", bytes.fromhex("302a300506032b6570032100" + fields(key + ".pub")["key"]))):
        with open(f"{p.d}/{name}", "wb") as f:
            f.write(data)
    subprocess.run(["openssl", "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", f"{p.d}/pub", "-rawin", "-in",
                    f"{p.d}/message", "-sigfile", f"{p.d}/sig"], check=True, stdout=subprocess.DEVNULL)
    p.run("verify", p.lib, out="signed by release, version 6, until ")
    p.run("sign", p.lib, "--key", key, "--version", "1.2.3")
    p.run("verify", p.lib, out="signed by release, version 1.2.3, for ever")
    expect([e for e, _ in p.history()], ["trust", "sign", "sign"], "history")


@test
def history_goes_on_behind_damage(p):
    """A line that a full disk cut short, and zeros that a crash left, take no later line with them."""
    p.key("one")
    for rest in (b'{"time":17,"event":"tru', bytes(5000)):
        with open(f"{p.d}/s/history", "ab") as f:
            f.write(rest)
        p.key(f"key{len(rest)}")
    events = []
    for line in p.run("history").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            events.append(json.loads(line)["event"])
    expect(events, ["trust"] * 3, "events")


@test
def what_is_not_signed(p):
    key = p.key("release")
    for argv, err in ((["sign", p.lib], "--key is needed"), (["sign", "--key", key], "no file given"),
                      (["sign", p.lib, "--key"], "needs a value"), (["sign", p.lib, "--frob"], "unknown option"),
                      (["sign", p.lib, "--key", key + ".pub"], "no secret key"),
                      (["sign", p.lib, "--key", key, "--version", "x y"], "no version"),
                      (["sign", p.lib, "--key", key, "--expires", "tomorrow"], "no date"),
                      (["sign", p.lib, "--key", key, "--expires", "2020-01-01"], "is over"),
                      (["sign", p.lib, "--key", key, "--expires", "2027-02-30"], "no date"),
                      (["sign", f"{p.d}/none", "--key", key], "No such file"),
                      (["sign", p.d, "--key", key], "no regular file"),
                      (["sign", "/dev/zero", "--key", key], "no regular file")):
        p.run(*argv, status=125, err=re.escape(err))
    os.chmod(key, 0o640)
    p.run("sign", p.lib, "--key", key, status=125, err="others can read this secret key")
    os.chmod(key, 0o600)
    with open(p.lib, "r+b") as f:
        f.seek(32)
        f.write(bytes([255] * 8))
    p.run("sign", p.lib, "--key", key, status=125, err="would never be mapped")
    assert not os.path.exists(p.lib + ".kxsig")


@test
def bad_signatures(p):
    key = p.key("release")
    p.run("verify", p.lib, status=1, out="not signed")
    expect(p.json("verify", p.lib, status=1)["found"], [{"file": p.lib, "signature": "none", "text": "not signed"}], "JSON")
    p.run("keygen", f"{p.d}/stranger")
    p.run("sign", p.lib, "--key", f"{p.d}/stranger")
    p.run("verify", p.lib, status=1, out="by a key that is not in the keyring")
    p.run("sign", p.lib, "--key", key)
    p.run("verify", p.lib)
    with open(p.lib, "r+b") as f:
        f.seek(100000)
        byte = f.read(1)[0]
        f.seek(100000)
        f.write(bytes([byte ^ 4]))
    p.run("verify", p.lib, status=1, out="its content is not what key release has signed")
    with open(p.lib, "ab") as f:
        f.write(b"x")
    p.run("verify", p.lib, status=1, out="its size is not")
    p.run("sign", p.lib, "--key", key)
    text = lib.read(p.lib + ".kxsig")
    for bad, why in (("", "its signature file is none"), ("x", "none"), (text[:-1], "damaged"), (text + "\n", "damaged"),
                     (text.replace("-signature 1", "-signature 2"), "has format 2"), (text.upper(), "none"),
                     (text.replace("version 6", "version 7"), "is not by key release"),
                     (text.replace("expires 0", "expires 00"), "damaged"), (text + "x" * 4096, "can't be read")):
        with open(p.lib + ".kxsig", "w") as f:
            f.write(bad)
        p.run("verify", p.lib, status=1, out=why)
    p.run("verify", f"{p.d}/none", status=125, err="No such file")


@test
def store_and_signatures(p):
    key = p.key("release")
    time.sleep(1.1)  # a file that has just changed is not stored
    p.run("add", p.lib, "/bin/true")
    p.run("verify", out="of 2 files 0 signed, 0 with a bad signature")
    p.run("sign", p.lib, "--key", key)
    p.run("verify", out=r"libx.so.1.2.3: signed by release(.|\n)*of 2 files 1 signed, 0 with a bad")
    p.run("revoke", p.lib)
    p.run("verify", status=1, out=r"libx.so.1.2.3: this file is revoked(.|\n)*0 signed, 1 with a bad")
    got = p.json("verify", status=1)
    expect((got["images"], got["damaged"], got["files"], got["signed"], got["bad_signatures"], got["found"]),
           (2, 0, 2, 0, 1, [{"file": p.lib, "signature": "bad", "text": "this file is revoked"}]), "JSON")
    image, = [os.path.join(top, n) for top, _, names in os.walk(f"{p.d}/s") for n in names if top.endswith("/images")]
    with open(image, "ab") as f:
        f.write(b"x")
    expect(p.json("verify", status=1)["found"][0], {"file": p.lib, "image": "damaged", "text": "damaged"}, "a damaged image")


@test
def trust_and_rotation(p):
    p.key("old", "--expires", "2099-12-31")
    p.key("new", "--from", "2020-01-01", "--name", "release-2")
    expect({n: (k["from"], k["expires"], k["state"]) for n, k in p.keys().items()},
           {"old": (0, 4102358400, "valid"), "release-2": (1577836800, 0, "valid")}, "keys")
    p.policy("[default]\nallow signed-by old,release-*\n")
    for key in "old", "new":
        p.run("sign", p.lib, "--key", f"{p.d}/{key}")
        p.run("policy", "test", p.lib, out="^allow ")
    # The old one goes: a date first, by its name or its file, then for good.
    p.run("trust", "old", "--expires", "1d")
    p.run("trust", f"{p.d}/old.pub", "--from", "2021-01-01")
    k = p.keys()["old"]
    assert k["from"] == 1609459200 and 0 < k["expires"] - time.time() < 86401, k
    p.run("trust", "old", "--from", "2099-01-01", "--expires", "2099-02-01")
    p.run("sign", p.lib, "--key", f"{p.d}/old")
    p.run("policy", "test", p.lib, status=1, out="its key old is not valid yet")
    p.run("trust", "old", "--from", "2020-01-01", "--expires", "2021-01-01")
    p.run("policy", "test", p.lib, status=1, out="its key old has expired")
    p.run("policy", "check", out="warning: signed-by old: its key old has expired")
    for argv, err in ((["trust", "nobody"], "No such file"), (["trust", p.lib], "no public key"),
                      (["trust", f"{p.d}/new.pub", "--name", "old"], "is trusted as release-2"),
                      (["trust", f"{p.d}/new.pub", "--name", "../x"], "no name for a key"),
                      (["trust", f"{p.d}/new.pub", "--name", "a" * 61], "no name for a key"),
                      (["trust", f"{p.d}/new.pub", "--name", "0" * 32], "no name for a key"),
                      (["trust", "old", "--from", "2030-01-01", "--expires", "2030-01-01"], "would expire before"),
                      (["trust", "a", "b"], "one public key"), (["trust", "--expires", "1d"], "one public key"),
                      (["trust", "old", "--json"], "only to list")):
        p.run(*argv, status=125, err=re.escape(err))
    p.run("keygen", f"{p.d}/third")
    p.run("trust", f"{p.d}/third.pub", "--name", "old", status=125, err="another key has this name")


@test
def revocation(p):
    key = p.key("release")
    p.policy("[default]\nallow signed-by release\nallow path **/other*\n")
    p.run("sign", p.lib, "--key", key)
    p.run("policy", "test", p.lib, out="^allow ")
    p.run("revoke", "release", out=f"key {p.keys()['release']['id']}: revoked\n")
    p.run("revoke", key + ".pub", out="revoked already")
    p.run("policy", "test", p.lib, status=1, out="its key release is revoked")
    p.run("trust", key + ".pub", status=125, err="this key was revoked")
    p.run("trust", "release", "--expires", "never", status=125, err="this key was revoked")
    expect(p.keys()["release"]["state"], "revoked", "state")
    # A key that was never trusted, and files.
    p.run("revoke", "00112233445566778899aabbccddeeff", out="^key 0011")
    other = shutil.copy(p.lib, f"{p.d}/other.so")
    p.run("policy", "test", other, out="^allow ")
    digest = hashlib.sha256(open(other, "rb").read()).hexdigest()
    p.run("revoke", digest, out=f"^file {digest}: revoked\n")
    p.run("revoke", other, out="revoked already")
    p.run("policy", "test", other, status=1, out="this file is revoked")
    expect(p.json("trust")["revoked_files"], [digest], "revoked files")
    for what, err in (("nobody", "no key in the keyring"), (digest.upper(), "no key in the keyring"), ("0" * 63, "no key in"),
                      (f"{p.d}/none", "No such file")):
        p.run("revoke", what, status=125, err=err)
    events = [e for e in p.history() if e[0] == "revoke"]
    expect([o for _, o in events][1:], ["00112233445566778899aabbccddeeff", digest], "history")


@test
def a_damaged_keyring_is_no_keyring(p):
    key = p.key("release")
    p.policy("[default]\nallow signed-by release\n")
    p.run("sign", p.lib, "--key", key)
    ring = f"{p.d}/c/keys"
    with open(ring + "/revoked", "w") as f:
        f.write("kylinx-revoked 1\nkey 12\n")
    for argv in (["trust"], ["policy", "test", p.lib], ["revoke", "release"], ["verify", p.lib]):
        p.run(*argv, status=125, err="revoked:2: damaged")
    os.unlink(ring + "/revoked")
    for path, bad in ((ring, 0o777), (ring, 0o775), (ring + "/release.pub", 0o666), (f"{p.d}/c", 0o777),
                      (f"{p.d}/c/policy", 0o666)):
        good = mode(path)
        os.chmod(path, bad)
        p.run("policy", "test", p.lib, status=125, err="others can write it")
        os.chmod(path, good)
    if os.geteuid() == 0:
        for path in ring, ring + "/release.pub", f"{p.d}/c/policy":
            os.chown(path, 4711, 4711)
            p.run("policy", "test", p.lib, status=125, err="user 4711's")
            os.chown(path, 0, 0)
    p.run("policy", "test", p.lib, out="^allow ")
    os.rename(ring + "/release.pub", ring + "/Rel ease.pub")
    p.run("trust", status=125, err="not the name of a key")
    os.unlink(ring + "/Rel ease.pub")
    os.symlink(key + ".pub", ring + "/release.pub")
    p.run("trust", status=125, err="Too many levels")


@test
def killed_at_any_instant(p):
    """Writers that are killed leave the keyring as it was, or as it was to be; and in turn lose nothing."""
    p.key("release")
    rng = random.Random(1)
    start = time.monotonic()
    for _ in range(10):
        subprocess.run([lib.KYLINX, "lib", "trust"], env={**os.environ, **p.env}, stdout=subprocess.DEVNULL, check=True)
    usual = (time.monotonic() - start) / 10
    done = 0
    for i in range(60):
        q = subprocess.Popen([lib.KYLINX, "lib", "revoke", f"{i:032x}"], env={**os.environ, **p.env},
                             stdout=subprocess.DEVNULL)
        time.sleep(rng.random() * 2 * usual)
        q.kill()
        q.wait()
        expect(list(p.keys()), ["release"], "keys")
        text = lib.read(f"{p.d}/c/keys/revoked")
        assert re.fullmatch(r"(kylinx-revoked 1\n(key \w{32} \d+\n)+)?", text), text
        assert text.count("key ") >= done, "a revocation is lost"
        done = text.count("key ")
    many = [subprocess.Popen([lib.KYLINX, "lib", "revoke", f"{i:064x}"], env={**os.environ, **p.env},
                             stdout=subprocess.DEVNULL) for i in range(20)]
    expect([q.wait() for q in many], [0] * 20, "statuses")
    expect(len(p.json("trust")["revoked_files"]), 20, "revoked at once")


@test
def full_disk(p):
    if os.geteuid() != 0:
        raise Skip("run as root")
    p.run("keygen", f"{p.d}/release")
    os.mkdir(f"{p.d}/c")
    script = (f"mount -t tmpfs -o size=64k,mode=755 kylinx-test {p.d}/c && {lib.KYLINX} lib trust {p.d}/release.pub && "
              f"head -c 1M /dev/zero >{p.d}/c/fill; {lib.KYLINX} lib revoke release; echo $?; "
              f"ls -A {p.d}/c/keys; {lib.KYLINX} lib trust")
    r = lib.run(["unshare", "-m", "--propagation", "private", "sh", "-c", script], env=p.env)
    out = r.out.decode()
    assert re.search(r"\n125\n\.lock\nrelease.pub\nrelease +\w+  valid ", out), out
    assert b"revoked: No space left on device" in r.err, r.err


@test
def checks(p):
    for text, status, lines in (
            ("[default]\nallow\n", 0, [r"policy: 1 sections, 1 rules, 0 keys, no errors"]),
            ("[default]\nfrob\nallow x\nmode no\n", 1,
             [r"policy:2: frob: unknown word", r"policy:3: x: no condition", r"policy:4: mode: unknown"]),
            ("[program /a]\nallow\n", 1, ["policy: no section \\[default\\]"]),
            ("[default]\nallow\ndeny\n", 0, ["policy:3: warning: never reached: line 2 always decides"]),
            ("[family *]\n[family x]\nmode off\n[default]\nmode off\n", 0,
             ["policy:1: warning: a section without rules", "policy:2: warning: never reached: the section of line 1"]),
            ("[default]\nallow signed-by release\n", 1, ["policy:2: signed-by release: no such key in "]),
            ("[default]\nallow path \x1b[2J\n", 1, [r"policy:2: \?\[2J: would match no path"])):
        path = p.policy(text)
        for argv in ([], [path]):
            out = p.run("policy", "check", *argv, status=status)
            for line in lines:
                assert re.search(line + r"[^\n]*\n", out), (line, out)
            expect(out.count("\n"), len(lines) + (status == 0 and "warning" in out), out)
        got = p.json("policy", "check", status=status)
        expect((got["file"], got["ok"], got["errors"]), (path, status == 0, len(lines) if status else 0), "JSON")
        assert all(set(r) == {"level", "line", "text"} for r in got["remarks"]), got
    p.policy("[default]\nallow\n")
    p.run("policy", "check", f"{p.d}/none", status=125, err="none: No such file")
    p.run("policy", "check", p.d, status=125, err="no regular file")
    for argv, err in (([], "no command given"), (["frob"], "frob: unknown command"), (["check", "a", "b"], "too many"),
                      (["check", "--frob"], "unknown option"), (["test"], "no file given"), (["show", "--program", "/x"], "only"),
                      (["test", p.lib, "--program", "x"], "no absolute path"), (["test", f"{p.d}/none"], "No such file")):
        p.run("policy", *argv, status=125, err=re.escape(err))


@test
def checks_are_quick(p):
    """However a file of the greatest size is filled."""
    many = "".join(f"[program /a{i:x}]\nallow\n" for i in range(4095)) + "[default]\nallow\n"
    for text, status, want in ((many, 0, "4096 sections, 4096 rules"), ("[program /x]\nallow\n" + many, 1, "more than 4096 sections"),
                               ("".join(f"[program /a{i:x}]\n" for i in range(60000)), 1, r":4097: more than 4096 sections"),
                               ("[default]\n" + "allow path /**a*\n" * 60000, 0, "60000 rules"),
                               ("[default]\nallow path /" + "*a" * 500000 + "\n", 1, ":2: a pattern is empty, or longer"),
                               ("[default]\nallow" + " " * 1000000 + "\n", 0, "1 rules")):
        began = time.monotonic()
        out = p.run("policy", "check", p.policy(text), status=status)
        assert re.search(want, out), out[-300:]
        assert time.monotonic() - began < lib.limit(10), f"{text[:20]}...: {time.monotonic() - began:.1f} s"


@test
def links_to_policies(p):
    """A link on the way counts as what it leads to does."""
    path = p.policy("[default]\nallow\n")
    d = p.d
    for link, to in (("a", path), ("b", "a"), ("up", "c/../c"), ("c2", "c"), ("round", "round")):
        os.symlink(to, f"{d}/{link}")
    for name in (f"{d}/a", f"{d}/b", f"{d}/up/policy", f"{d}/c2/../c2//./policy", f"{d}/up/../a"):
        p.run("policy", "check", name, out="no errors")
    for name, want in ((f"{d}/round", b"Too many levels"), (f"{d}/a/x", b"Not a directory"), (f"{d}/a/", b"Not a directory"),
                       (f"{d}/none/../a", b"No such file"), ("", b"No such file"), (f"{d}/" + "x/" * 2100, b"too long"),
                       (f"{d}", b"no regular file")):
        p.run("policy", "check", name, status=125, err=want)
    p.run("policy", "check", "c2/policy", cwd=d, out="no errors")
    if os.geteuid():
        raise Skip("run as root")
    os.mkdir(f"{d}/shared")
    os.chmod(f"{d}/shared", 0o1777)
    os.symlink(path, f"{d}/shared/mine")
    os.symlink(path, f"{d}/shared/link")
    os.symlink(f"{d}/c", f"{d}/shared/dir")
    os.symlink("shared/link", f"{d}/far")
    for name in "link", "dir":
        os.lchown(f"{d}/shared/{name}", 65534, 65534)
    p.run("policy", "check", f"{d}/shared/mine", out="no errors")
    for name in "shared/link", "far", "shared/dir/policy":
        p.run("policy", "check", f"{d}/{name}", status=125, err=b"it is user 65534's link")
    os.chmod(f"{d}/shared", 0o777)
    p.run("policy", "check", f"{d}/shared/mine", status=125, err=b"others can write it")


@test
def shows(p):
    p.key("release")
    p.policy("deny not owner root,user  # all\n[program \"/opt/a b/*\"]\nmode warn\njit allow\n"
             "allow soname libx* version >=1,<2 signed-by rel*\n[default]\ndeny\n")
    got = p.json("policy", "show")
    expect([r["conditions"] for r in got["common"]], [[{"type": "owner", "not": True, "value": "root,user"}]], "common")
    first, last = got["sections"]
    expect((first["for"], first["pattern"], first["mode"], first["jit"], first["line"]),
           ("program", "/opt/a b/*", "warn", "allow", 2), "section")
    expect([(c["type"], c["value"]) for c in first["rules"][0]["conditions"]],
           [("soname", "libx*"), ("version", ">=1"), ("version", "<2"), ("signed-by", "rel*")], "conditions")
    expect((last["for"], last["mode"], last["jit"], last["rules"][0]["verdict"]), ("default", "enforce", "deny", "deny"), "last")
    expect([k["name"] for k in got["keys"]], ["release"], "keys")
    p.run("policy", "show", out=r"\[program /opt/a b/\*\]  mode warn, jit allow\n +5  allow soname libx\* version >=1 version <2 "
          r"signed-by rel\*\n")
    os.unlink(f"{p.d}/c/policy")
    p.run("policy", "show", out=r"^policy   built-in policy\n(.|\n)*\[default\]  mode enforce, jit allow\n +4  deny writable-by "
          r"others\n +5  allow\n")
    p.run("policy", "check", out="^built-in policy: 1 sections, 2 rules")


@test
def decides(p):
    key = p.key("release")
    p.run("sign", p.lib, "--key", key, "--version", "2.5")
    with open(p.lib, "rb") as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    build_id = fields(p.lib + ".kxsig")["build-id"]
    for rule, verdict in (("allow", "allow"), ("allow soname libc.so.*", "allow"), ("allow soname libd*", "deny"),
                          ("allow signed-by release version >=2,<3", "allow"), ("allow version >=3", "deny"),
                          (f"allow sha256 {digest}", "allow"), (f"deny sha256 {digest}\nallow", "deny"),
                          (f"allow build-id {build_id}", "allow"), (f"allow build-id {build_id[2:]}00", "deny"),
                          (f"allow path {p.d}/*", "allow"), (f"allow path {p.d}/x*", "deny"),
                          ("allow owner user", "allow"), (f"allow owner {os.geteuid() + 1}", "deny"),
                          ("allow not writable-by group", "allow"), ("allow loader /lib64/**", "allow"),
                          ("allow kind program", "deny"), ("mode warn\ndeny", "warn"), ("mode off", "allow"),
                          ("deny soname libd*\nallow", "allow"), ("allow soname libc*\ndeny", "allow")):
        p.policy(f"[family web]\ndeny\n[program /opt/*]\ndeny\n[default]\n{rule}\n")
        got, = p.json("policy", "test", p.lib, status=verdict != "allow")["verdicts"]
        expect((got["verdict"], got["file"], bool(got["reason"])), (verdict, p.lib, verdict != "allow"), rule)
    p.policy("[family web]\ndeny\n[program /opt/*]\ndeny\n[default]\nallow loader **\n")
    p.run("policy", "test", p.lib, "--family", "web", status=1, out=r"policy:2\)")
    p.run("policy", "test", p.lib, "--program", "/opt/x", "--family", "b", status=1, out=r"policy:4\)")
    p.run("policy", "test", p.lib, "--by-hand", status=1, out="not mapped by the dynamic linker")
    other = p.policy("[default]\nmode off\n", "other")
    p.run("policy", "test", p.lib, "--by-hand", "--policy", other, out="^allow")
    os.chmod(p.lib, 0o646)
    os.unlink(f"{p.d}/c/policy")
    p.run("policy", "test", p.lib, status=1, out=r"denies it: writable-by others \(built-in policy:4\)")


@test
def examples_of_the_manual(p):
    """Each policy in kylinx-policy(5) is one, without a remark; the built-in one is what is shown."""
    p.key("release")
    p.key("security")
    page = lib.read(f"{lib.TOP}/docs/kylinx-policy.5")
    found = [e for e in re.findall(r"\.nf\n(.*?)\.fi\n", page, re.S) if "[default]" in e]
    expect(len(found), 4, "examples")
    for e in found:
        path = p.policy(e.replace("\\-", "-").replace("/etc/kylinx/keys", f"{p.d}/c/keys"))
        expect(p.json("policy", "check")["remarks"], [], e)
    shown = [e for e in found if "deny writable-by others" in e]
    p.policy(shown[0])
    rules = p.json("policy", "show")["sections"]
    os.unlink(path)
    expect(p.json("policy", "show")["sections"], rules, "built-in policy")


@test
def found_where_documented(p):
    """Root's and a user's policy and keyring."""
    if os.geteuid() != 0:
        raise Skip("run as root")
    shutil.copy(lib.KYLINX, p.d + "/kylinx")
    script = (f"mount -t tmpfs -o mode=755 kylinx-test /etc/kylinx 2>/dev/null || "
              f"{{ mount -t tmpfs -o mode=755 kylinx-test /mnt && cp -a /etc/passwd /etc/group /mnt/ && mkdir /mnt/kylinx && "
              f"mount --bind /mnt /etc; }}; cd /; k={p.d}/kylinx\n"
              f"user() {{ setpriv --reuid 4711 --regid 4711 --clear-groups env HOME={p.d}/home \"$@\"; }}\n"
              "say() { user env $1 $k lib policy show | head -2 | tr -s ' \\n' ' '; echo; }\n"
              f"mkdir -m 755 {p.d}/home; chown 4711:4711 {p.d}/home\n"
              "say\n"  # nothing
              "printf '[default]\\nmode off\\n' >/etc/kylinx/policy; say; $k lib policy show | head -1\n"  # root's for all
              "chmod 600 /etc/kylinx/policy; say; chmod 644 /etc/kylinx/policy\n"  # root's for root
              f"user mkdir -p {p.d}/home/.config/kylinx; user cp /etc/kylinx/policy {p.d}/home/.config/kylinx/; say\n"
              f"user mkdir -p {p.d}/home/xdg/kylinx; user cp /etc/kylinx/policy {p.d}/home/xdg/kylinx/; "
              f"say XDG_CONFIG_HOME={p.d}/home/xdg\n"
              f"say KYLINX_CONFIG={p.d}/home/none\n"
              f"mkdir -p {p.d}/other/.config/kylinx/keys; touch {p.d}/other/.config/kylinx/policy; chmod 700 {p.d}/other\n"
              f"say HOME={p.d}/other; user env HOME={p.d}/other $k lib policy check /etc/kylinx/policy\n"
              f"user env KYLINX_CONFIG={p.d}/other/.config $k lib policy check 2>&1\n"
              "mkdir -m 700 /etc/kylinx/keys; user env HOME=/ $k lib policy check; rmdir /etc/kylinx/keys\n"
              f"user $k lib keygen {p.d}/home/key >/dev/null; user $k lib trust {p.d}/home/key.pub >/dev/null; "
              f"ls {p.d}/home/.config/kylinx/keys\n")
    r = lib.run(["env", "-u", "KYLINX_CONFIG", "-u", "KYLINX_STORE", "-u", "XDG_CONFIG_HOME", "unshare", "-m",
                 "--propagation", "private", "sh", "-c", script])
    home = p.d + "/home"
    expect((r.out.decode().splitlines(), r.err.decode()),
           (["policy built-in policy keyring - ", "policy /etc/kylinx/policy keyring /etc/kylinx/keys ",
             "policy   /etc/kylinx/policy", "policy built-in policy keyring - ",
             f"policy {home}/.config/kylinx/policy keyring {home}/.config/kylinx/keys ",
             f"policy {home}/xdg/kylinx/policy keyring {home}/xdg/kylinx/keys ", "policy built-in policy keyring - ",
             "policy /etc/kylinx/policy keyring /etc/kylinx/keys ", "/etc/kylinx/policy: 1 sections, 0 rules, 0 keys, no errors",
             f"kylinx: {p.d}/other/.config/policy: Permission denied (check the path)",
             "/etc/kylinx/policy: keyring: /etc/kylinx/keys: Permission denied (check owner and mode)", "key.pub"], ""), "what is used")


def main():
    return lib.run_tests(tests, args.only, native=[name for name, _ in tests])


if __name__ == "__main__":
    sys.exit(main())
