#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""emulated_vmx.py [--seconds N] [--memory MIB] [--cpu MODEL] [--append PARAMETERS] [--kvm PARAMETERS] [--with PATH]... [--]
COMMAND [ARG...]: run a command of this tree on an emulated machine whose processor has VMX.

As tests/emulated.py, but with Bochs, which knows Intel's processors, and kvm-intel: --kvm unrestricted_guest=0, or ept=0, for
what some hypervisors have to give. MODEL is one of `bochs --help cpu`: on Bochs 2.7's corei7_skylake_x the kernel does
without XSAVE, on its corei7_icelake_u it does not start, and models before corei7_ivy_bridge_3770k lack FSGSBASE.

Bochs has no way to share files. So the machine has copies: the system's libc, bash, Python and its library, busybox for all
else; of the tree tests/, the files in build/ itself and those in build/tests/guest/. PATH (a file, or a folder with all that is
in it) is one more; shared libraries that something needs come along. Bochs interprets: some 50 million instructions a
second, one processor, and half a minute of its time to boot the machine. In the machine time goes by as if it ran 100 million a
second, so that half a second there is at least a second here; N counts seconds here.
"""
import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tty

import emulated

SHARE = "/usr/share/bochs"
ISOLINUX, LDLINUX = "/usr/lib/ISOLINUX/isolinux.bin", "/usr/lib/syslinux/modules/bios/ldlinux.c32"
# What takes its time in an interpreter, and nothing here needs: tests of ciphers, zeroed pages, another place for the kernel.
PARAMETERS = emulated.KERNEL_PARAMETERS + " cryptomgr.notests init_on_alloc=0 nokaslr apparmor=0"
INSTRUCTIONS = 100_000_000  # in each second of the machine's time
PROGRAMS = ["/bin/bash", "/usr/bin/setsid", "/usr/bin/python3"]
LIBRARIES = ["/lib/x86_64-linux-gnu/libgcc_s.so.1"]  # what libc loads itself, when a thread ends by pthread_exit() or is cancelled
PYTHON_LEFT_OUT = {"test", "dist-packages", "idlelib", "lib2to3", "tkinter", "pydoc_data", "distutils", "unittest", "ensurepip"}
ETC = ["/etc/passwd", "/etc/group", "/etc/ld.so.cache", "/etc/nsswitch.conf"]

CONFIGURATION = """plugin_ctrl: speaker=0, parallel=0, gameport=0, iodebug=0
config_interface: textconfig
display_library: term
cpu: model={cpu}, count=1, ips={ips}, reset_on_triple_fault=0
memory: guest={memory}, host={memory}
romimage: file={share}/BIOS-bochs-latest, options=fastboot
vgaromimage: file={share}/VGABIOS-lgpl-latest
boot: cdrom
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path={d}/boot.iso, status=inserted
clock: sync=none, time0=utc
com1: enabled=1, mode=file, dev={d}/console
com2: enabled=1, mode=file, dev={d}/output
log: {d}/bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
"""


class Vmx:
    """Bochs's, with copies of files."""
    cpu, memory, cpus, boot_seconds = "corei7_haswell_4770", 1024, 1, 300
    kvm = "kvm-intel"
    modules = ["overlay", kvm]
    root, lower = "true", "/"

    @staticmethod
    def missing():
        """Why there is no such machine here, or None."""
        if os.geteuid() != 0:
            return "only root can make an emulated machine's files"
        return emulated.without((("bochs", "bochs"), (f"{SHARE}/BIOS-bochs-latest", "bochsbios"), (f"{SHARE}/VGABIOS-lgpl-latest", "vgabios"),
                                 ("/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so", "bochs-term"), (ISOLINUX, "isolinux"),
                                 (LDLINUX, "syslinux-common"), ("xorriso", "xorriso"), ("ldd", "libc-bin"))
                                ) or emulated.without_kernel(Vmx.kvm)

    @staticmethod
    def add_files(folder, args):
        # Its signature and types are what takes long when a module is loaded.
        modules = [f"{folder}/mod/{name}" for name in os.listdir(f"{folder}/mod")]
        for module in modules:
            subprocess.run(["objcopy", "--strip-debug", "--remove-section=.BTF", module], check=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            os.makedirs(f"{folder}/usr/{name}")
            if os.path.islink(f"/{name}"):
                os.symlink(f"usr/{name}", f"{folder}/{name}")
        for name in ("etc", "root", "run", "tmp", "var/tmp"):
            os.makedirs(f"{folder}/{name}")
        build = os.environ.get("BUILD", "build")
        python = python_library()
        for path in (*ETC, *PROGRAMS, *LIBRARIES, *(args.with_ or ())):
            add(folder, path, frozenset())
        for name in os.listdir(python):
            if name not in PYTHON_LEFT_OUT and not name.startswith("config-"):
                add(folder, f"{python}/{name}", frozenset())
        add(folder, "tests", {"__pycache__"})
        add(folder, f"{build}/tests/guest", frozenset())
        for name in os.listdir(build):
            if os.path.isfile(f"{build}/{name}"):
                add(folder, f"{build}/{name}", frozenset())
        add_libraries(folder)

    @staticmethod
    @contextlib.contextmanager
    def started(d, image, args):
        """A stream of the command's output, until its end."""
        make_disc(d, image, args)
        with open(f"{d}/bochsrc", "w") as f:
            f.write(CONFIGURATION.format(d=d, share=SHARE, cpu=args.cpu, memory=args.memory, ips=INSTRUCTIONS))
        with open(f"{d}/go", "w") as f:
            f.write("c\n")  # Debian's Bochs begins in its debugger
        os.mkfifo(f"{d}/output")
        with contextlib.ExitStack() as ends, open(f"{d}/machine.log", "wb") as log:
            out = ends.enter_context(open(os.open(f"{d}/output", os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0))
            bochs = subprocess.Popen(["bochs", "-q", "-rc", f"{d}/go", "-f", f"{d}/bochsrc"], env={**os.environ, "TERM": "linux"},
                                     stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            ends.callback(emulated.end, bochs)
            threading.Thread(target=look_at_screen, args=(d, bochs), daemon=True).start()
            yield out


def look_at_screen(d, bochs):
    """Bochs shows its screen on a terminal that it makes, and stands still once nobody has read for long what it wrote there."""
    shown = None
    with contextlib.suppress(OSError):  # when Bochs ends
        while not shown and bochs.poll() is None:
            time.sleep(0.1)
            with open(f"{d}/machine.log", errors="replace") as f:
                shown = re.search(r'connected to screen "(/dev/pts/\d+)"', f.read())
        if shown:
            with open(shown[1], "rb", buffering=0) as screen:
                tty.setraw(screen)
                while screen.read(65536):
                    pass


def python_library():
    """The system's, whichever Python runs this."""
    r = subprocess.run(["/usr/bin/python3", "-c", "import os; print(os.path.dirname(os.__file__))"], stdout=subprocess.PIPE, check=True)
    return r.stdout.decode().strip()


def add(folder, path, but):
    """A copy at its place below folder; of a folder all but names in `but`, of a symbolic link itself and what it names."""
    path = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.basename(path))
    if os.path.isdir(path) and not os.path.islink(path):
        for name in os.listdir(path):
            if name not in but:
                add(folder, f"{path}/{name}", but)
    elif not os.path.lexists(folder + path):
        os.makedirs(folder + os.path.dirname(path), exist_ok=True)
        shutil.copy2(path, folder + path, follow_symlinks=False)
        if os.path.islink(path):
            add(folder, os.path.join(os.path.dirname(path), os.readlink(path)), but)


def add_libraries(folder):
    """What the dynamic linker loads for the programs and libraries that are there."""
    dynamic = []
    for top, _, names in os.walk(folder):
        for path in (f"{top}/{n}" for n in names):
            if not os.path.islink(path) and os.path.isfile(path):
                with open(path, "rb") as f:
                    if f.read(4) == b"\x7fELF":
                        dynamic.append(path[len(folder):])
    r = subprocess.run(["ldd", *dynamic], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for library in set(re.findall(r"(/\S+) \(0x", r.stdout.decode())):
        add(folder, library, frozenset())


def make_disc(d, image, args):
    """boot.iso, with isolinux, which needs no more of the machine than its BIOS."""
    os.makedirs(f"{d}/iso/isolinux")
    for path in (ISOLINUX, LDLINUX):
        shutil.copy(path, f"{d}/iso/isolinux")
    shutil.copy(image, f"{d}/iso/kernel")
    os.rename(f"{d}/initrd.img", f"{d}/iso/initrd")
    with open(f"{d}/iso/isolinux/isolinux.cfg", "w") as f:
        f.write(f"DEFAULT kernel\nPROMPT 0\nLABEL kernel\nKERNEL /kernel\nINITRD /initrd\nAPPEND {PARAMETERS} {args.append}\n")
    subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", "-o", f"{d}/boot.iso", "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat",
                    "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", f"{d}/iso"], stderr=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    sys.exit(emulated.main(Vmx, [("--with", {"dest": "with_", "action": "append", "metavar": "PATH"})]))
