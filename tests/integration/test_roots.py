#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Programs that execute others below roots of every kind: --root with images, chroot, library directories that the
program may write. The monitor executes itself there; whatever an image has in place of a dynamic linker, of libraries, of
/etc/ld.so.*, runs in the guest alone."""
import os
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib

tap = lib.Tap()
VDSO = 0x7f00080000  # KX_VDSO_BASE: where the vDSO is in a pVM, and on no host
# As a dynamic linker, and as a library that is loaded without being asked: says where it runs.
EVIL = """
static void tell(unsigned long *auxv)
{
	int host = 1;
	long r;
	for (; *auxv; auxv += 2)
		if (*auxv == 33) host = auxv[1] != %#x;
	asm volatile("syscall" : "=a"(r) : "0"(1), "D"(1), "S"(host ? "HOST\\n" : "guest\\n"), "d"(host ? 5 : 6)
		     : "rcx", "r11", "memory");
}
#ifdef LIBRARY
extern char **environ;
__attribute__((constructor)) static void start(int argc, char **argv, char **envp)
{
	while (*envp) envp++;
	tell((unsigned long *)(envp + 1));
}
#else
__attribute__((used)) static void start(unsigned long *sp)
{
	sp += *sp + 2;
	while (*sp) sp++;
	tell(sp + 1);
	asm volatile("syscall" : : "a"(60), "D"(0));
}
asm(".globl _start; _start: mov %%rsp,%%rdi; call start");
#endif
""" % VDSO
MUSL = """
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	int st;
	if (argc > 1) { printf("child %s\\n", argv[1]); return 7; }
	if (!fork()) { execl("/bin/m", "m", "first", (char *)0); _exit(1); }
	wait(&st);
	printf("status %d\\n", WEXITSTATUS(st));
	fflush(stdout);
	execlp("m", "m", "second", (char *)0);
	return 1;
}
"""
APPLETS = "sh ls cat echo true seq sort head wc test env chroot cp rm mkdir".split()
SCRIPT = """#!/bin/sh
for i in 1 2 3; do echo $(seq $i | sort -r | head -1); done
(exit 3); echo $?
[ -x /bin/cat ] && cat /script | wc -l
env A=b sh -c 'echo $A'
exec echo end
"""
OUTPUT = b"1\n2\n3\n3\n6\nb\nend\n"


def check(name, r, want, status=0, err=b""):
    if r.status != status or r.out != want or r.err != err:
        tap.fail(name, f"{lib.status_text(r.status)}, {r.out!r}, {r.err!r}; expected {status}, {want!r}")
    else:
        tap.ok(name)


def compile_(src, out, *options, cc="gcc"):
    subprocess.run([cc, "-O1", "-w", "-x", "c", "-", "-o", out, *options], input=src.encode(), check=True)


def image(base, name, *dirs):
    d = os.path.join(base, name)
    for sub in ("bin", "etc", "tmp", *dirs):
        os.makedirs(os.path.join(d, sub))
    return d


def busybox_image(base, name, *dirs):
    d = image(base, name, *dirs)
    shutil.copy(shutil.which("busybox"), f"{d}/bin/busybox")
    for a in APPLETS:
        os.symlink("busybox", f"{d}/bin/{a}")
    with open(f"{d}/script", "w") as f:
        f.write(SCRIPT)
    os.chmod(f"{d}/script", 0o755)
    return d


def host_image(base, name):
    """Programs and libraries of the host's, copied."""
    d = image(base, name, "lib64", "usr/bin")
    for p in "bash ls cat echo true seq sort head wc test env".split():
        path = shutil.which(p, path="/usr/bin:/bin")
        shutil.copy(os.path.realpath(path), f"{d}/bin/{p}")
        out = subprocess.run(["ldd", path], stdout=subprocess.PIPE, check=True).stdout.decode()
        for so in re.findall(r"(/\S+)", out):
            os.makedirs(d + os.path.dirname(so), exist_ok=True)
            if not os.path.exists(d + so):
                shutil.copy(os.path.realpath(so), d + so)
    os.symlink("bash", f"{d}/bin/sh")
    os.symlink("../../bin/env", f"{d}/usr/bin/env")
    shutil.copy("/etc/ld.so.cache", f"{d}/etc/ld.so.cache")
    with open(f"{d}/script", "w") as f:
        f.write(SCRIPT)
    os.chmod(f"{d}/script", 0o755)
    return d


def in_root(d, *argv, options=()):
    return lib.run(lib.pvm(argv, "--root", d, "--env", "PATH=/bin:/usr/bin", *options), cwd="/")


def images(base):
    if not shutil.which("busybox"):
        return tap.skip("images", "no busybox")
    d = busybox_image(base, "static")
    check("static busybox image", in_root(d, "/script"), OUTPUT)
    check("static busybox image, PATH", in_root(d, "sh", "-c", ". /script"), OUTPUT)
    os.mkdir(f"{d}/lib64")
    check("empty /lib64", in_root(d, "/script"), OUTPUT)
    if shutil.which("musl-gcc"):
        m = image(base, "musl", "lib")
        shutil.copy(os.path.realpath("/lib/ld-musl-x86_64.so.1"), f"{m}/lib/ld-musl-x86_64.so.1")
        compile_(MUSL, f"{m}/bin/m", cc="musl-gcc")
        check("musl image", in_root(m, "/bin/m"), b"child first\nstatus 7\nchild second\n", status=7)
    else:
        tap.skip("musl image", "no musl-gcc")
    h = host_image(base, "host")
    check("image of the host's files", in_root(h, "/script"), OUTPUT)
    check("exec of what is not there", in_root(h, "sh", "-c", "/bin/none; echo $?"), b"127\n",
          err=b"/bin/none: line 1: /bin/none: No such file or directory\n".replace(b"/bin/none: line", b"sh: line"))


def hostile(base):
    evil, so = f"{base}/evil", f"{base}/evil.so"
    compile_(EVIL, evil, "-nostdlib", "-static-pie", "-fno-stack-protector")
    compile_(EVIL, so, "-DLIBRARY", "-shared", "-fPIC")
    d = busybox_image(base, "hostile", "lib64", "lib/x86_64-linux-gnu", "usr/lib")
    for n in ("lib64/ld-linux-x86-64.so.2", "kylinx", "bin/kylinx"):
        shutil.copy(evil, f"{d}/{n}")
    for n in ("libc.so.6", "libZydis.so.4.0"):
        for at in ("lib/x86_64-linux-gnu", "usr/lib", "lib64"):
            shutil.copy(so, f"{d}/{at}/{n}")
    shutil.copy(so, f"{d}/evil.so")
    for n in ("preload", "cache", "conf"):
        with open(f"{d}/etc/ld.so.{n}", "w") as f:
            f.write("/evil.so\n")
    shutil.copy("/bin/true", f"{d}/bin/dynamic")
    check("image with a dynamic linker of its own", in_root(d, "/script"), OUTPUT)
    check("its dynamic linker runs in the guest", in_root(d, "sh", "-c", "/bin/dynamic; exec /bin/dynamic"),
          b"guest\nguest\n")
    h = host_image(base, "preload")
    shutil.copy(so, f"{h}/evil.so")
    with open(f"{h}/etc/ld.so.preload", "w") as f:
        f.write("/evil.so\n")
    with open(f"{h}/etc/ld.so.cache", "wb") as f:
        f.write(os.urandom(5000))
    check("image with ld.so.preload and a broken cache", in_root(h, "sh", "-c", "ls /evil.so; exec echo end"),
          b"guest\nguest\n/evil.so\nguest\nend\n")
    # Where the program itself puts them, while it runs.
    w = f"{base}/w"
    os.mkdir(w)
    os.chmod(w, 0o777)
    shutil.copy("/lib64/ld-linux-x86-64.so.2", w)
    swap = "/bin/true && cp /evil/evil /lib64/n && mv /lib64/n /lib64/ld-linux-x86-64.so.2 && exec /bin/true"
    e = f"{base}/e"
    os.mkdir(e)
    shutil.copy(evil, e)
    r = lib.run(lib.pvm(["busybox", "sh", "-c", swap], "--volume", f"{w}:/lib64", "--volume", f"{e}:/evil:ro"), cwd="/")
    check("a writable /lib64", r, b"guest\n")
    shutil.copy("/lib64/ld-linux-x86-64.so.2", w)
    check("a writable /lib64 of an image",
          in_root(d, "sh", "-c", "cp /kylinx /lib64/n; busybox mv /lib64/n /lib64/ld-linux-x86-64.so.2; exec dynamic",
                  options=("--volume", f"{w}:/lib64")), b"guest\n")


def chroots(base):
    if os.geteuid():
        return tap.skip("chroot", "only root can")
    d = f"{base}/static"
    v = ("--volume", f"{base}:/images:ro")
    for name in ("static", "hostile", "host"):
        r = lib.run(lib.pvm(["chroot", f"/images/{name}", "/bin/sh", "-c", "PATH=/bin; . /script"], *v), cwd="/")
        check(f"chroot, {name} image", r, OUTPUT)
    r = lib.run(lib.pvm(["chroot", "/images/hostile", "/bin/dynamic"], *v), cwd="/")
    check("chroot, the image's dynamic linker runs in the guest", r, b"guest\n")
    inner = busybox_image(d, "inner")
    check("chroot below --root", in_root(d, "chroot", "/inner", "/script"), OUTPUT)
    shutil.rmtree(inner)


def family(base):
    p = subprocess.Popen(lib.pvm(["sh", "-c", "while :; do true; done"], "--root", f"{base}/static", "--env", "PATH=/bin",
                                 "--name", f"roots{os.getpid()}"), cwd="/", start_new_session=True)
    try:
        for _ in range(100):
            r = lib.run([lib.KYLINX, "exec", f"roots{os.getpid()}", "--", "/bin/sh", "-c", "PATH=/bin; . /script"], cwd="/")
            if r.status != 125:
                break
        check("kylinx exec into an image", r, OUTPUT)
        lines = [line.split(None, 5) for line in lib.read(f"/proc/{p.pid}/maps").splitlines()]
        bad = [x for x in lines if "x" in x[1] and x[5].strip() not in (lib.KYLINX, "[vdso]", "[vsyscall]")]
        check("nothing but kylinx can be executed on the host", lib.Result(0, repr(bad).encode(), b"", 0), b"[]")
    finally:
        lib.group_kill(p)


def main():
    with lib.Dir() as base:
        images(base)
        hostile(base)
        chroots(base)
        family(base)
    return tap.end()


if __name__ == "__main__":
    sys.exit(main())
