#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""emulated.py [--seconds N] [--memory MIB] [--cpu MODEL] [--cpus N] [--append PARAMETERS] [--] COMMAND [ARG...]: run a command
of this tree on an emulated machine whose processor has SVM, for KVM of another kind than the host's, or where the host has none.

QEMU without acceleration, the kernel of Debian's package linux-image-cloud-amd64, its kvm-amd. The machine's root is the
host's, read-only by virtiofs, under an overlay in its memory: nothing of what the command writes is left. It has no
network but its own loopback. The command's output and errors come on standard output; the exit status is its own, 125
when there is no such machine, 124 after N seconds (600). As root only.
"""
import argparse
import glob
import lzma
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
MODULES = ["virtio_pci", "virtiofs", "overlay", "kvm-amd", "tun", "veth", "dummy", "loop"]
BEGIN = b"emulated: begin\n"
STATUS = re.compile(rb"emulated: status (\d+)\n")
FATAL = re.compile(r"Kernel panic|BUG:|Oops:|RIP: 0010")
BOOT_SECONDS = 120
CPU = "EPYC-Milan,+svm,+npt"
SLOW = "20"  # TEST_SLOW for the tests that run there

# What runs before the root is there, by busybox.
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in {modules}; do insmod /mod/$m 2>/dev/null; done
mount -t virtiofs -o ro host /host && mount -t tmpfs -o mode=755,size=60% up /up && mkdir /up/u /up/w &&
mount -t overlay -o lowerdir=/host,upperdir=/up/u,workdir=/up/w root /new || poweroff -f
for d in dev proc sys; do mount --move /$d /new/$d; done
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts -o ptmxmode=666 pts /new/dev/pts; mount -t tmpfs -o mode=1777 shm /new/dev/shm
mount -t tmpfs -o mode=1777,size=40% tmp /new/tmp; mount -t tmpfs -o mode=755 run /new/run
mount -t cgroup2 cgroup /new/sys/fs/cgroup
ln -sf /proc/self/fd /new/dev/fd; ln -sf /proc/self/fd/0 /new/dev/stdin
ln -sf /proc/self/fd/1 /new/dev/stdout; ln -sf /proc/self/fd/2 /new/dev/stderr
cp /main /new/run/main
exec switch_root /new /bin/bash /run/main
"""
# And then.
MAIN = """export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 {env}
ip link set lo up
chgrp kvm /dev/kvm 2>/dev/null; chmod 660 /dev/kvm
echo emulated > /proc/sys/kernel/hostname
exec 3>/dev/ttyS1
stty -F /dev/ttyS1 raw -echo
ulimit -n 1048576
cd {cwd}
echo "emulated: begin" >&3
{command} <&- </dev/null >&3 2>&1
echo "emulated: status $?" >&3
sync
echo o > /proc/sysrq-trigger
sleep 100
"""


def missing():
    """Why there is no such machine here, or None."""
    if os.geteuid() != 0:
        return "only root can share its files with an emulated machine"
    for what, package in (("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static"), ("cpio", "cpio"),
                          (VIRTIOFSD, "qemu-system-common")):
        if not shutil.which(what):
            return f"{what} is not installed (apt-get install {package})"
    if not kernel():
        return "no kernel with kvm-amd (apt-get install linux-image-cloud-amd64)"
    return None


def kernel():
    """(vmlinuz, folder of modules) of the newest of Debian's cloud kernels, or None."""
    for image in sorted(glob.glob("/boot/vmlinuz-*cloud-amd64"), reverse=True):
        modules = "/lib/modules/" + image.split("-", 1)[1]
        if os.path.exists(f"{modules}/modules.dep") and glob.glob(f"{modules}/kernel/arch/x86/kvm/kvm-amd.ko*"):
            return image, modules
    return None


def in_order(folder):
    """Paths of MODULES and of what they need, each behind what it needs. Those that are built in or not there: left out."""
    needs, names = {}, {}
    with open(f"{folder}/modules.dep") as f:
        for line in f:
            path, rest = line.split(":", 1)
            needs[path] = rest.split()
            names[os.path.basename(path).split(".")[0]] = path
    done = []

    def add(path):
        for p in needs[path]:
            add(p)
        if path not in done:
            done.append(path)
    for name in MODULES:
        if name in names:
            add(names[name])
    return done


def make_initrd(d, folder, main):
    root, modules = f"{d}/initrd", in_order(folder)
    for sub in ("bin", "mod", "proc", "sys", "dev", "host", "up", "new"):
        os.makedirs(f"{root}/{sub}")
    shutil.copy(shutil.which("busybox"), f"{root}/bin/busybox")
    plain = []
    for path in modules:
        with open(f"{folder}/{path}", "rb") as f:
            data = f.read()
        plain.append(os.path.basename(path).removesuffix(".xz"))
        with open(f"{root}/mod/{plain[-1]}", "wb") as f:
            f.write(lzma.decompress(data) if path.endswith(".xz") else data)
    for name, text in (("init", INIT.format(modules=" ".join(plain))), ("main", main)):
        with open(f"{root}/{name}", "w") as f:
            f.write(text)
    os.chmod(f"{root}/init", 0o755)
    files = subprocess.run(["find", "."], cwd=root, stdout=subprocess.PIPE, check=True).stdout
    with open(f"{d}/initrd.img", "wb") as f:
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=files, stdout=f, check=True)


def start(d, image, args):
    """
    (virtiofsd, qemu): the command's output is qemu's standard output. The processors have one time stamp counter, the host's,
    so the clock source is that, as on most machines; the kernel itself takes it for unstable when it is slow.
    """
    with open(f"{d}/virtiofsd.log", "wb") as log:
        fs = subprocess.Popen([VIRTIOFSD, f"--socket-path={d}/fs", "-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot",
                               "--thread-pool-size=2"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not os.path.exists(f"{d}/fs"):
            if fs.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"emulated: {VIRTIOFSD}: {tail(d, 'virtiofsd.log')}")
            time.sleep(0.02)
        with open(f"{d}/qemu.log", "wb") as log:
            return fs, subprocess.Popen(
                ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", args.cpu, "-smp", str(args.cpus), "-m", str(args.memory),
                 "-object", f"memory-backend-memfd,id=mem,size={args.memory}M,share=on", "-numa", "node,memdev=mem",
                 "-chardev", f"socket,id=fs,path={d}/fs", "-device", "vhost-user-fs-pci,chardev=fs,tag=host",
                 "-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{d}/console", "-serial", "stdio",
                 "-kernel", image, "-initrd", f"{d}/initrd.img", "-append", f"console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable {args.append}"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
    except BaseException:
        end(fs)
        raise


def end(process):
    process.kill()
    process.wait()


def tail(d, name):
    try:
        with open(f"{d}/{name}", errors="replace") as f:
            lines = [x for x in f.read().splitlines() if x.strip() and "doesn't support requested feature" not in x]
        last = lines[-5:]
        return " | ".join([x for x in lines if FATAL.search(x) and x not in last] + last) or "no message"
    except OSError as e:
        return e.strerror


def relay(out, seconds):
    """The command's output, as it comes. Its status; None without one."""
    data, begun, deadline = b"", False, time.monotonic() + BOOT_SECONDS
    with selectors.DefaultSelector() as sel:
        sel.register(out, selectors.EVENT_READ)
        while sel.select(max(0, deadline - time.monotonic())):
            chunk = os.read(out.fileno(), 65536)
            data += chunk
            if not begun and BEGIN in data:
                data, begun, deadline = data.split(BEGIN, 1)[1], True, time.monotonic() + seconds
            m = STATUS.search(data)
            if m:
                write(data[:m.start()])
                return int(m[1])
            if not chunk:
                write(data)
                return None
            whole = data.rfind(b"\n") + 1  # the status is on a line of its own
            write(data[:whole])
            data = data[whole:]
    write(data)
    return 124 if begun else None


def write(data):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--memory", type=int, default=6144)
    parser.add_argument("--cpu", default=CPU)
    parser.add_argument("--append", default="")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        parser.error("no command")
    why = missing()
    if why:
        print(f"emulated: {why}", file=sys.stderr)
        return 125
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what ends the machine
    keep = {"TEST_SLOW": SLOW, **os.environ}
    env = " ".join(f"{k}={shlex.quote(v)}" for k, v in keep.items() if k in ("BUILD", "KYLINX", "CI") or k.startswith(("KX_", "TEST_")))
    image, modules = kernel()
    with tempfile.TemporaryDirectory(prefix="kx-emulated-") as d:
        make_initrd(d, modules, MAIN.format(env=env, cwd=shlex.quote(os.getcwd()), command=shlex.join(command)))
        fs, qemu = start(d, image, args)
        try:
            status = relay(qemu.stdout, args.seconds)
        except SystemExit:
            print(f"emulated: ended from outside: {tail(d, 'console')}", file=sys.stderr)
            raise
        finally:
            end(qemu)
            qemu.stdout.close()
            end(fs)
        if status is None:
            print(f"emulated: the machine did not get to the end: {tail(d, 'console')} | {tail(d, 'qemu.log')}", file=sys.stderr)
            return 125
        return status


if __name__ == "__main__":
    sys.exit(main())
