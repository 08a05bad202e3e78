#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What tests/emulated.py and emulated_vmx.py make of files: modules in order, copies with what they link, what is missing; and of results of lists."""
import os
import shutil
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import emulated  # noqa: E402
import emulated_vmx  # noqa: E402
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../integration"))
import machines  # noqa: E402

assert emulated.without([("sh", "dash"), ("/no/such", "package")]) == "/no/such is not installed (apt-get install package)"
assert "no-such-kvm" in emulated.without_kernel("no-such-kvm")

# A part of a script that has no result is told, whatever became of the others.
told = ["ok 1 - net: udp", "ok 2 - net: tcp # SKIP no reason", "not ok 3 - net: icmp: why"]
assert machines.absent("net: udp|tcp|icmp", told) == [] == machines.absent("net", told) == machines.absent("guest/net.dyn: a b", told)
assert machines.absent("net: udp|tc|raw", told) == ["tc", "raw"]

with tempfile.TemporaryDirectory() as d:
    with open(f"{d}/modules.dep", "w") as f:
        f.write("kernel/kvm.ko.xz: kernel/bypass.ko.xz\nkernel/bypass.ko.xz:\nkernel/kvm-x.ko.xz: kernel/kvm.ko.xz kernel/bypass.ko.xz\n")
    got = emulated.in_order(d, ["kvm-x", "built-in", "kvm"])
    assert got == [f"kernel/{n}.ko.xz" for n in ("bypass", "kvm", "kvm-x")], got

    # A folder without one name; a link to a link, to a program; its libraries and dynamic linker.
    os.makedirs(f"{d}/from/sub/left")
    for name in ("from/one", "from/sub/two", "from/sub/left/three"):
        with open(f"{d}/{name}", "w") as f:
            f.write(name)
    os.symlink("second", f"{d}/from/first")
    os.symlink(shutil.which("true"), f"{d}/from/second")
    os.mkdir(f"{d}/to")
    emulated_vmx.add(f"{d}/to", f"{d}/from", {"left"})
    at = f"{d}/to{os.path.realpath(d)}/from"
    assert sorted(os.listdir(at)) == ["first", "one", "second", "sub"] and os.listdir(f"{at}/sub") == ["two"], os.listdir(at)
    assert os.readlink(f"{at}/first") == "second"
    program = f"{d}/to{os.path.realpath(shutil.which('true'))}"
    assert os.path.getsize(program) == os.path.getsize(shutil.which("true"))
    emulated_vmx.add_libraries(f"{d}/to")
    found = [n for _, _, names in os.walk(f"{d}/to") for n in names]
    assert any(n.startswith("ld-linux") for n in found) and "libc.so.6" in found, found
