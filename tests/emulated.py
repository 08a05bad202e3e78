#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""emulated.py [--seconds N] [--memory MIB] [--cpu MODEL] [--cpus N] [--append PARAMETERS] [--kvm PARAMETERS] [--count] [--] COMMAND
[ARG...]: run a command of this tree on an emulated machine whose processor has SVM, for KVM of another kind than the host's, or
where the host has none.

QEMU without acceleration, the kernel of Debian's package linux-image-cloud-amd64, its kvm-amd. The machine's root is the
host's, read-only by virtiofs, under an overlay in its memory: nothing of what the command writes is left. It has no
network but its own loopback. The command's output and errors come on standard output; the exit status is its own, 125
when there is no such machine, 124 after N seconds (600). As root only. --append: the kernel's parameters; --kvm: kvm-amd's.

--count: its clocks go on by 1 ns with each instruction, whosever it is, of its one processor (QEMU's icount), and jump to the
next timer when it is idle: CPU time is a number of instructions, the same each time but for what timers hit. No caches, and
a world switch (vmrun, an exit) is one instruction more. String instructions count each word, so it is made to do without
those by bytes. bench/count.py measures there.

Environment: KX_KERNEL_ROOT, a folder with another kernel of Debian's than the installed one: its package unpacked there (dpkg -x), and
its modules' dependencies made (depmod -b FOLDER VERSION).

tests/emulated_vmx.py has another machine, and all else from here.
"""
import argparse
import contextlib
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
BEGIN = b"emulated: begin\n"
STATUS = re.compile(rb"emulated: status (\d+)\n")
FATAL = re.compile(r"Kernel panic|BUG:|Oops:|RIP: 0010")
KERNEL_PARAMETERS = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable"
# Its processors take turns. With a thread for each (QEMU 7.2) the kernel panics within some hundred VMs, "corrupted stack end", or
# a guest's processor shuts down: not so with one thread, with one processor, or with npt=0.
ACCELERATOR = ["-accel", "tcg,thread=single"]
COUNT = ["-icount", "shift=0,sleep=off"]
COUNT_CPU = ",-erms,-fsrm"  # "rep movsb" is an instruction for each byte there, and the kernel's choice where they are
KERNEL_ROOT = os.environ.get("KX_KERNEL_ROOT", "")
OTHER_CPU = ",-cx16" if KERNEL_ROOT else ""  # newer kernels' allocator has QEMU 7.2's cmpxchg16b fault twice
SLOW = "20"  # TEST_SLOW for the tests that run there

# What runs before the root is there, by busybox. {root} brings what the root shows below its own files, at {lower}.
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in {modules}; do insmod /mod/$m $(case $m in {kvm}.ko) echo {parameters};; esac) 2>/dev/null; done
{root} && mount -t tmpfs -o mode=755,size=60% up /up && mkdir /up/u /up/w &&
mount -t overlay -o lowerdir={lower},upperdir=/up/u,workdir=/up/w root /new || poweroff -f
for d in dev proc sys; do mount --move /$d /new/$d; done
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts -o ptmxmode=666 pts /new/dev/pts; mount -t tmpfs -o mode=1777 shm /new/dev/shm
mount -t tmpfs -o mode=1777,size=40% tmp /new/tmp; mount -t tmpfs -o mode=755 run /new/run
mount -t cgroup2 cgroup /new/sys/fs/cgroup
ln -sf /proc/self/fd /new/dev/fd; ln -sf /proc/self/fd/0 /new/dev/stdin
ln -sf /proc/self/fd/1 /new/dev/stdout; ln -sf /proc/self/fd/2 /new/dev/stderr
cp /main /new/run/main
cd /new && mount --move . / && exec chroot . /bin/bash /run/main
"""
# And then. In a session of its own: else its process group is the kernel's, which has no number.
MAIN = """export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 {env}
ip link set lo up
chgrp kvm /dev/kvm 2>/dev/null; chmod 660 /dev/kvm
echo emulated > /proc/sys/kernel/hostname
exec 3>/dev/ttyS1
stty -F /dev/ttyS1 115200 raw -echo
ulimit -n 1048576
cd {cwd}
echo "emulated: begin" >&3
setsid -w {command} <&- </dev/null >&3 2>&1
echo "emulated: status $?" >&3
exec 3>&-
stty -F /dev/ttyS1 raw
echo o > /proc/sysrq-trigger
sleep 100
"""


class Svm:
    """QEMU's, with the host's files."""
    cpu, memory, cpus, boot_seconds = "EPYC-Milan,+svm,+npt", 6144, 2, 120
    kvm = "kvm-amd"
    modules = ["virtio_pci", "virtiofs", "overlay", kvm, "tun", "veth", "dummy", "loop"]
    root, lower = "mount -t virtiofs -o ro host /host", "/host"

    @staticmethod
    def missing():
        """Why there is no such machine here, or None."""
        if os.geteuid() != 0:
            return "only root can share its files with an emulated machine"
        return without((("qemu-system-x86_64", "qemu-system-x86"), (VIRTIOFSD, "qemu-system-common"))) or without_kernel(Svm.kvm)

    @staticmethod
    def add_files(folder, args):
        """The host's are there by virtiofs."""

    @staticmethod
    @contextlib.contextmanager
    def started(d, image, args):
        """
        A stream of the command's output, until its end. The processors have one time stamp counter, the host's, so the clock
        source is that, as on most machines; the kernel itself takes it for unstable when it is slow.
        """
        with open(f"{d}/machine.log", "wb") as log, contextlib.ExitStack() as ends:
            fs = subprocess.Popen([VIRTIOFSD, f"--socket-path={d}/fs", "-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot",
                                   "--thread-pool-size=2"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            ends.callback(end, fs)
            deadline = time.monotonic() + 30
            while not os.path.exists(f"{d}/fs"):
                if fs.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"emulated: {VIRTIOFSD}: {tail(d, 'machine.log')}")
                time.sleep(0.02)
            qemu = subprocess.Popen(
                ["qemu-system-x86_64", "-M", "q35", *ACCELERATOR, *(COUNT if args.count else []), "-cpu", args.cpu + OTHER_CPU + (COUNT_CPU if args.count else ""),
                 "-smp", "1" if args.count else str(args.cpus), "-m", str(args.memory),
                 "-object", f"memory-backend-memfd,id=mem,size={args.memory}M,share=on", "-numa", "node,memdev=mem",
                 "-chardev", f"socket,id=fs,path={d}/fs", "-device", "vhost-user-fs-pci,chardev=fs,tag=host",
                 "-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{d}/console", "-serial", "stdio",
                 "-kernel", image, "-initrd", f"{d}/initrd.img", "-append", f"{KERNEL_PARAMETERS} {args.append}"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
            ends.callback(qemu.stdout.close)
            ends.callback(end, qemu)
            yield qemu.stdout


def without(programs):
    """The first of (program or file, its package) that is not installed, as a reason; None when all are."""
    for what, package in (*programs, ("busybox", "busybox-static"), ("cpio", "cpio")):
        if not shutil.which(what) and not os.path.isfile(what):
            return f"{what} is not installed (apt-get install {package})"
    return None


def without_kernel(module):
    return None if kernel(module) else f"no kernel with {module} (apt-get install linux-image-cloud-amd64)"


def kernel(module):
    """(vmlinuz, folder of modules) of the newest of Debian's cloud kernels that has that module, or None."""
    for image in sorted(glob.glob(f"{KERNEL_ROOT}/boot/vmlinuz-*cloud-amd64"), reverse=True):
        modules = f"{KERNEL_ROOT}/lib/modules/" + os.path.basename(image).split("-", 1)[1]
        if os.path.exists(f"{modules}/modules.dep") and glob.glob(f"{modules}/kernel/arch/x86/kvm/{module}.ko*"):
            return image, modules
    return None


def in_order(folder, wanted):
    """Paths of modules and of what they need, each behind what it needs. Those that are built in or not there: left out."""
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
    for name in wanted:
        if name in names:
            add(names[name])
    return done


def make_initrd(d, folder, machine, main, args):
    root, modules = f"{d}/initrd", in_order(folder, machine.modules)
    for sub in ("mod", "proc", "sys", "dev", "host", "up", "new"):
        os.makedirs(f"{root}/{sub}")
    plain = []
    for path in modules:
        with open(f"{folder}/{path}", "rb") as f:
            data = f.read()
        plain.append(os.path.basename(path).removesuffix(".xz"))
        with open(f"{root}/mod/{plain[-1]}", "wb") as f:
            f.write(lzma.decompress(data) if path.endswith(".xz") else data)
    machine.add_files(root, args)
    os.makedirs(f"{root}/bin", exist_ok=True)
    shutil.copy(shutil.which("busybox"), f"{root}/bin/busybox")
    for name, text in (("init", INIT.format(modules=" ".join(plain), kvm=machine.kvm, parameters=args.kvm,
                                           root=machine.root, lower=machine.lower)), ("main", main)):
        with open(f"{root}/{name}", "w") as f:
            f.write(text)
    os.chmod(f"{root}/init", 0o755)
    files = subprocess.run(["find", "."], cwd=root, stdout=subprocess.PIPE, check=True).stdout
    with open(f"{d}/initrd.img", "wb") as f:
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], cwd=root, input=files, stdout=f, check=True)


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


def relay(out, boot_seconds, seconds):
    """The command's output, as it comes. Its status; None without one."""
    data, begun, deadline = b"", False, time.monotonic() + boot_seconds
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


def main(machine=Svm, more=()):
    """The command line's. More options: (name, arguments of add_argument)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--memory", type=int, default=machine.memory)
    parser.add_argument("--cpu", default=machine.cpu)
    parser.add_argument("--append", default="")
    parser.add_argument("--kvm", default="")
    parser.add_argument("--cpus", type=int, default=machine.cpus)
    for name, how in more:
        parser.add_argument(name, **how)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        parser.error("no command")
    why = machine.missing()
    if why:
        print(f"emulated: {why}", file=sys.stderr)
        return 125
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what ends the machine
    keep = {"TEST_SLOW": SLOW, **os.environ}
    env = " ".join(f"{k}={shlex.quote(v)}" for k, v in keep.items() if k in ("BUILD", "KYLINX", "CI") or k.startswith(("KX_", "TEST_")))
    main_text = MAIN.format(env=env, cwd=shlex.quote(os.getcwd()), command=shlex.join(command))
    image, modules = kernel(machine.kvm)
    with tempfile.TemporaryDirectory(prefix="kx-emulated-") as d:
        make_initrd(d, modules, machine, main_text, args)
        with machine.started(d, image, args) as out:
            try:
                status = relay(out, machine.boot_seconds, args.seconds)
            except SystemExit:
                print(f"emulated: ended from outside: {tail(d, 'console')}", file=sys.stderr)
                raise
        if status is None:
            print(f"emulated: the machine did not get to the end: {tail(d, 'console')} | {tail(d, 'machine.log')}", file=sys.stderr)
            return 125
        return status


if __name__ == "__main__":
    sys.exit(main(Svm, [("--count", {"action": "store_true"})]))
