/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ELF parser and program loader. Built with monitor/core/elf.c, load.c and util/err.c; the memory API is replaced
 * by plain mmap(2). Guest addresses are this process's own (pvm.base = 0), so that what was loaded can be run: the
 * test jumps to it, in a child. Under ASan, whose shadow is there, the guest is elsewhere and nothing is run.
 *
 * Files that the machine lacks (musl-gcc, busybox) are skipped and counted.
 *
 *	test_elf FILE...	load each of these (mutations made by tests/fuzz/mutate.py) without running it
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../../monitor/core/admit.h"
#include "../../monitor/core/elf.h"
#include "../../monitor/core/gmem.h"
#include "../../monitor/core/gmem_ahead.h"
#include "../../monitor/core/load.h"
#include "../../monitor/core/pvm.h"
#include "check.h"

#if defined(__SANITIZE_ADDRESS__)
#define ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ASAN 1
#endif
#endif
#ifndef ASAN
#define ASAN 0
#endif

static int skipped;
static char dir[] = "/tmp/kx-test-elf-XXXXXX";

/* ---- what the loader needs from the monitor ------------------------------------------------------------- */

struct pvm pvm = { .proc_fd = -1 };
__thread struct thread *self;

/* No policy. */
void admit_ask_for(struct admit_subject *who, const char *program) { (void)who, (void)program; }
int admit_take(const struct admit_subject *who, int *fd, struct image **out, char why[POLICY_WHY])
{
	(void)who, (void)fd, (void)out, (void)why;
	return -ENOSYS;
}
int admit_judge(const struct admit_subject *who, struct image *image, enum policy_way way, const char *loader,
		bool tell, char why[POLICY_WHY])
{
	(void)who, (void)image, (void)way, (void)loader, (void)tell, (void)why;
	return -ENOSYS;
}
void admit_image_free(struct image *image) { (void)image; }
void admit_enter(const struct admit_subject *who, struct image **program, struct image **interp)
{
	(void)who, (void)program, (void)interp;
}
void admit_way(enum policy_way way) { (void)way; }
void admit_loader(const char *path, uint64_t start, uint64_t end) { (void)path, (void)start, (void)end; }
static uint64_t place_next, test_brk;
static int exec_maps;     /* executable file mappings since the start of this process */
static char *shrink_path; /* truncate this file when its first bytes are mapped */

int64_t gmem_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, uint64_t off)
{
	void *p;

	if (!gva_ok(addr, len))
		return -ENOMEM;
	p = mmap((void *)((uintptr_t)pvm.base + addr), len, prot, flags, fd, (off_t)off);
	if (p == MAP_FAILED)
		return -errno;
	/* The real one puts trampolines near: above the first text of a program nothing may be free for them. */
	if (prot & PROT_EXEC && fd >= 0 && exec_maps++ == 0)
		for (uint64_t at = addr + len; at <= addr + len + (16 << 20); at += 1 << 20) {
			void *t = mmap((void *)((uintptr_t)pvm.base + at), 4096, PROT_NONE,
				       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

			CHECK(t == MAP_FAILED && errno == EEXIST, "0x%llx is free", (unsigned long long)at);
		}
	if (shrink_path && fd >= 0 && truncate(shrink_path, 4096))
		return -errno;
	return (int64_t)((uintptr_t)p - (uintptr_t)pvm.base);
}

int gmem_munmap(uint64_t addr, uint64_t len) { return munmap((void *)((uintptr_t)pvm.base + addr), len) ? -errno : 0; }

void gmem_expect(uint64_t start, uint64_t end) { (void)start, (void)end; }

uint64_t gmem_place_exec(uint64_t len)
{
	uint64_t at = place_next ? place_next : 0x400000000;

	place_next = (at + len + (4ull << 30)) & -(2ull << 20);
	return at;
}

uint64_t gmem_place_stack(uint64_t len, uint64_t random) { return len + random ? 0 : 0; }
void libnext_program(int fd, uint64_t size, const char *path)
{
	(void)fd;
	(void)size;
	(void)path;
}

void gmem_ahead_read(uint64_t start, uint64_t end) { (void)start, (void)end; }
void gmem_ahead_relro(uint64_t start, uint64_t end) { (void)start, (void)end; }

void gmem_set_brk(uint64_t start) { test_brk = start; }

int guest_write(uint64_t gva, const void *src, size_t len)
{
	struct iovec l = { (void *)src, len }, r = { (void *)((uintptr_t)pvm.base + gva), len };

	if (!gva_ok(gva, len))
		return -EFAULT;
	return process_vm_writev(getpid(), &l, 1, &r, 1, 0) == (ssize_t)len ? 0 : -EFAULT;
}

static int guest_read_test(void *dst, uint64_t gva, size_t len)
{
	struct iovec l = { dst, len }, r = { (void *)((uintptr_t)pvm.base + gva), len };

	return process_vm_readv(getpid(), &l, 1, &r, 1, 0) == (ssize_t)len ? 0 : -EFAULT;
}

int fd_hide(int fd)
{
	int n = fcntl(fd, F_DUPFD_CLOEXEC, 500);
	int e = errno;

	close(fd);
	return n < 0 ? -e : n;
}

/* ---- files in memory ------------------------------------------------------------------------------------ */

struct mem {
	const uint8_t *p;
	uint64_t len;
};

static int64_t mem_pread(void *ctx, void *buf, size_t len, uint64_t off)
{
	struct mem *m = ctx;

	if (off >= m->len)
		return 0;
	if (len > m->len - off)
		len = m->len - off;
	memcpy(buf, m->p + off, len);
	return (int64_t)len;
}

#define IMG 0x4000
struct file {
	union {
		uint8_t b[IMG];
		Elf64_Ehdr eh;
	};
	uint64_t len;
};

static Elf64_Phdr *ph(struct file *f, int i) { return (Elf64_Phdr *)(f->b + sizeof(Elf64_Ehdr)) + i; }

/* A good program: interpreter, text, data with bss, stack, a spare header. */
static void good(struct file *f, bool dyn)
{
	uint64_t at = dyn ? 0 : 0x400000;

	memset(f, 0, sizeof *f);
	f->len = 0x3000;
	memcpy(f->eh.e_ident, ELFMAG "\2\1\1", 7);
	f->eh.e_type = dyn ? ET_DYN : ET_EXEC;
	f->eh.e_machine = EM_X86_64;
	f->eh.e_version = 1;
	f->eh.e_entry = at + 0x1000;
	f->eh.e_phoff = sizeof(Elf64_Ehdr);
	f->eh.e_phentsize = sizeof(Elf64_Phdr);
	f->eh.e_phnum = 5;
	*ph(f, 0) = (Elf64_Phdr){ PT_INTERP, PF_R, 0x800, at + 0x800, 0, 8, 8, 1 };
	memcpy(f->b + 0x800, "/ld.so", 7);
	f->b[0x807] = 0;
	*ph(f, 1) = (Elf64_Phdr){ PT_LOAD, PF_R | PF_X, 0, at, 0, 0x1100, 0x1100, 0x1000 };
	*ph(f, 2) = (Elf64_Phdr){ PT_LOAD, PF_R | PF_W, 0x2010, at + 0x3010, 0, 0x20, 0x2000, 0x1000 };
	*ph(f, 3) = (Elf64_Phdr){ .p_type = PT_GNU_STACK, .p_flags = PF_R | PF_W };
	*ph(f, 4) = (Elf64_Phdr){ .p_type = PT_NULL };
}

static struct elf_image im;

static int parse(const void *p, uint64_t len, struct kx_err *err)
{
	struct mem m = { p, len };
	int r;

	memset(err, 0, sizeof *err);
	r = elf_read(mem_pread, &m, len, &im, err);
	CHECK((r == 0) == (err->code == 0) && (r == 0 || (r == -err->code && err->msg[0])), "%d %s", r, err->msg);
	CHECK(!strchr(err->msg, '\n'), "%s", err->msg);
	if (r)
		return r;
	CHECK(im.nr_seg > 0 && im.nr_seg <= ELF_SEG_MAX, "segments");
	CHECK(im.low < im.high && im.high - im.low < ELF_SPAN_MAX, "extent");
	CHECK(im.dyn || (im.low >= KX_USER_MIN && im.high <= KX_USER_END), "range");
	CHECK(memchr(im.interp, 0, sizeof im.interp) != NULL, "interp");
	for (unsigned i = 0; i < im.nr_seg; i++) {
		struct elf_segment *s = &im.seg[i];

		CHECK(s->memsz && s->filesz <= s->memsz, "seg %u", i);
		CHECK(s->vaddr >= im.low && s->vaddr + s->memsz <= im.high, "seg %u", i);
		CHECK(!s->filesz || s->off + s->filesz <= len, "seg %u beyond the file", i);
		CHECK(!i || s->vaddr >= s[-1].vaddr + s[-1].memsz, "seg %u order", i);
	}
	return 0;
}

static void expect(struct file *f, const char *what, int line)
{
	struct kx_err err;
	int r = parse(f->b, f->len, &err);

	if (what)
		CHECK(r == -ENOEXEC && err.exit_code == 126 && strstr(err.msg, what), "line %d: %d %d \"%s\"", line, r,
		      err.exit_code, err.msg);
	else
		CHECK(r == 0, "line %d: %s", line, err.msg);
}

/* One change to a good file, and what must be said of it (NULL: good). */
#define T(dyn, change, what) \
	do { \
		struct file f; \
		good(&f, dyn); \
		change; \
		expect(&f, what, __LINE__); \
	} while (0)

static void test_headers(void)
{
	T(true, (void)0, NULL);
	CHECK(im.dyn && !im.exec_stack && im.has_phdr && im.phdr == 64 && !strcmp(im.interp, "/ld.so"), "pie");
	CHECK(im.low == 0 && im.high == 0x6000 && im.nr_seg == 2 && im.entry == 0x1000, "pie extent");
	T(false, (void)0, NULL);
	CHECK(!im.dyn && im.low == 0x400000 && im.phdr == 0x400040, "exec");
	T(true, ph(&f, 3)->p_flags |= PF_X, NULL);
	CHECK(im.exec_stack, "exec stack");
	T(true, f.len = 0, "no program");
	T(true, f.len = 3, "no program");
	T(true, f.len = 4, "truncated");
	T(true, f.len = 63, "truncated");
	T(true, f.len = 64, "truncated");
	T(true, f.len = 0x202f, "truncated: segment 2");
	T(true, f.len = 0x2030, NULL);
	T(true, f.b[0] = 'x', "no program");
	T(true, f.b[EI_CLASS] = 1, "32-bit program");
	T(true, (f.b[EI_CLASS] = 1, f.len = 52), "32-bit program");
	T(true, f.b[EI_CLASS] = 3, "class");
	T(true, f.b[EI_DATA] = 2, "big-endian");
	T(true, f.b[EI_DATA] = 0, "byte order");
	T(true, f.b[EI_VERSION] = 0, "version");
	T(true, f.b[EI_OSABI] = 3, NULL);
	T(true, f.eh.e_machine = EM_AARCH64, "64-bit ARM");
	T(true, f.eh.e_machine = 9999, "machine 9999");
	T(true, f.eh.e_type = ET_REL, "object file");
	T(true, f.eh.e_type = ET_CORE, "core dump");
	T(true, f.eh.e_type = 77, "type 77");
	T(true, f.eh.e_version = 2, "version 2");
	T(true, f.eh.e_phentsize = 55, "55 bytes");
	T(true, f.eh.e_phentsize = 0, "0 bytes");
	T(true, f.eh.e_phnum = 0, "no program headers");
	T(true, f.eh.e_phnum = 1171, "64 KiB");
	T(true, f.eh.e_phnum = 0xffff, "64 KiB");
	T(true, f.eh.e_phnum = 1000, "truncated");
	T(true, f.eh.e_phoff = -1ull, "truncated");
	T(true, f.eh.e_phoff = -280ull, "truncated");
	T(true, f.eh.e_phoff = 0x3000 - 279, "truncated");
	T(true, f.eh.e_entry = 0x2000, NULL);
	T(true, (ph(&f, 0)->p_type = 0, f.eh.e_entry = 0x2000), "no entry");
	T(true, (ph(&f, 0)->p_type = 0, f.eh.e_entry = -1ull), "no entry");
	T(true, ph(&f, 0)->p_type = 0, NULL);
	/* interpreter */
	T(true, ph(&f, 0)->p_filesz = 1, "interpreter has 1 bytes");
	T(true, ph(&f, 0)->p_filesz = 0, "interpreter has 0 bytes");
	T(true, ph(&f, 0)->p_filesz = 4096, NULL);
	T(true, ph(&f, 0)->p_filesz = 4097, "interpreter has 4097 bytes");
	T(true, ph(&f, 0)->p_filesz = -1ull, "interpreter has");
	T(true, ph(&f, 0)->p_offset = -4ull, "after the end");
	T(true, ph(&f, 0)->p_offset = 0x2ff9, "after the end");
	T(true, f.b[0x807] = 'x', "no end");
	T(true, f.b[0x800] = 0, "empty");
	/* segments */
	T(true, (ph(&f, 1)->p_type = 0, ph(&f, 2)->p_type = 0), "no loadable");
	T(true, (ph(&f, 1)->p_memsz = ph(&f, 1)->p_filesz = 0, ph(&f, 2)->p_type = 0), "no loadable");
	T(true, ph(&f, 2)->p_memsz = 0x1f, "more bytes in the file");
	T(true, ph(&f, 2)->p_vaddr = -0x1ff0ull, "outside of the address space");
	T(true, ph(&f, 2)->p_memsz = -1ull, "outside of the address space");
	T(true, ph(&f, 2)->p_memsz = 1ull << 47, "outside of the address space");
	T(true, ph(&f, 2)->p_offset = -0xff0ull, "truncated");
	T(true, ph(&f, 2)->p_offset = 0x3010, "truncated");
	T(true, ph(&f, 2)->p_offset = 0x2000, "differ within the page");
	T(true, (ph(&f, 2)->p_filesz = 0, ph(&f, 2)->p_offset = -5ull), NULL);
	T(true, ph(&f, 2)->p_align = 0, NULL);
	T(true, ph(&f, 2)->p_align = 0x3000, "power of two");
	T(true, ph(&f, 2)->p_align = 1ull << 31, "above 1 GiB");
	T(true, ph(&f, 2)->p_align = 1ull << 30, NULL);
	CHECK(im.align == 1ull << 30, "align");
	T(true, ph(&f, 2)->p_vaddr = 0x10, "overlaps");
	T(true, ph(&f, 1)->p_memsz = 0x3011, "overlaps");
	T(true, ph(&f, 1)->p_memsz = 0x3010, NULL);
	T(true, ph(&f, 1)->p_vaddr = 0x10000, "out of order");
	T(true, ph(&f, 2)->p_memsz = 64ull << 30, "64 GiB");
	T(true, ph(&f, 2)->p_memsz = (64ull << 30) - 0x3010, "64 GiB");
	T(true, ph(&f, 2)->p_memsz = (64ull << 30) - 0x4010, NULL);
	T(true, ph(&f, 4)->p_type = 0x12345678, NULL);
	T(false, ph(&f, 1)->p_vaddr = 0x3000, "linked to addresses");
	T(false, (ph(&f, 1)->p_vaddr = KX_USER_MIN, ph(&f, 2)->p_vaddr = KX_USER_MIN + 0x2010), NULL);
	T(false, (ph(&f, 1)->p_vaddr = KX_USER_END - 0x10000, ph(&f, 2)->p_vaddr = KX_USER_END - 0x2ff0), NULL);
	T(false, (ph(&f, 1)->p_vaddr = KX_USER_END - 0x10000, ph(&f, 2)->p_vaddr = KX_USER_END - 0x1ff0), "linked to");
	T(false, (ph(&f, 1)->p_vaddr = KX_LIBOS_BASE, ph(&f, 2)->p_vaddr = KX_LIBOS_BASE + 0x2010), "linked to");
	/* program headers outside of all segments: by PT_PHDR, or unknown */
	T(true, (ph(&f, 1)->p_offset = 0x1000, ph(&f, 1)->p_vaddr = 0x1000), NULL);
	CHECK(!im.has_phdr, "no phdr");
	T(true,
	  (ph(&f, 1)->p_offset = 0x1000, ph(&f, 1)->p_vaddr = 0x1000, ph(&f, 4)->p_type = PT_PHDR,
	   ph(&f, 4)->p_vaddr = 0x1040),
	  NULL);
	CHECK(im.has_phdr && im.phdr == 0x1040, "phdr");

	/* more segments than any program has */
	struct file f;
	static uint8_t big[0x20000];
	struct kx_err err;

	good(&f, true);
	memcpy(big, f.b, 64);
	for (int n = ELF_SEG_MAX; n <= ELF_SEG_MAX + 1; n++) {
		((Elf64_Ehdr *)big)->e_phnum = n;
		for (int i = 0; i < n; i++)
			((Elf64_Phdr *)(big + 64))[i] = (Elf64_Phdr){ PT_LOAD, PF_R, 0, i * 0x1000, 0, 16, 16, 0x1000 };
		((Elf64_Ehdr *)big)->e_entry = 0;
		CHECK(!parse(big, sizeof big, &err) == (n == ELF_SEG_MAX), "%d segments: %s", n, err.msg);
	}
}

/* ---- real files ----------------------------------------------------------------------------------------- */

static void test_file(const char *path)
{
	struct kx_err err;
	struct stat st;
	uint8_t *p, *copy;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &st)) {
		skipped++;
		printf("skip %s: %s\n", path, strerror(errno));
		return;
	}
	p = malloc((size_t)st.st_size);
	if (!p || pread(fd, p, (size_t)st.st_size, 0) != st.st_size)
		abort();
	close(fd);
	CHECK(!parse(p, (uint64_t)st.st_size, &err), "%s: %s", path, err.msg);
	for (uint64_t len = 0; len < (uint64_t)st.st_size; len += 64) {
		/* Exactly as long as the part is, for ASan; longer ones are only told a length. */
		bool own = len <= 16384;

		copy = own ? malloc(len ? len : 1) : p;
		if (own)
			memcpy(copy, p, len);
		parse(copy, len, &err);
		if (own)
			free(copy);
	}
	free(p);
}

/* ---- loader: what can't be run -------------------------------------------------------------------------- */

static const char *file_at(const char *name)
{
	static char path[8][256];
	static int n;

	n = (n + 1) % 8;
	snprintf(path[n], sizeof path[n], "%.200s/%.40s", dir, name);
	return path[n];
}

static const char *write_file(const char *name, const void *data, size_t len, int mode)
{
	const char *path = file_at(name);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);

	if (fd < 0 || write(fd, data, len) != (ssize_t)len || fchmod(fd, mode) || close(fd))
		abort();
	return path;
}

static const char *write_text(const char *name, const char *text) { return write_file(name, text, strlen(text), 0755); }

static int open_fds(void)
{
	int n = 0;

	for (int i = 0; i < 1024; i++)
		n += fcntl(i, F_GETFD) >= 0;
	return n;
}

static void refuse_args(const char *path, char **argv, char **envp, int code, int status, const char *what, int line)
{
	struct load_plan *plan;
	struct kx_err err = { 0 };
	int fds = open_fds(), r = load_prepare(path, -1, argv, envp, &plan, &err);

	CHECK(r == -code && err.code == code && err.exit_code == status && strstr(err.msg, what),
	      "line %d: %d %d %d \"%s\"", line, r, err.code, err.exit_code, err.msg);
	CHECK(!plan && open_fds() == fds, "line %d: left something open", line);
	CHECK(!strchr(err.msg, '\n'), "line %d: more than a line", line);
	load_free(plan);
}

static char *args1[] = { "prog", NULL }, *noenv[] = { NULL };
#define REFUSE(path, code, status, what) refuse_args(path, args1, noenv, code, status, what, __LINE__)

static void test_refusals(void)
{
	struct file f;
	char text[1024], *argv[4] = { "prog", NULL };
	char *big = malloc(LOAD_STRING_MAX + 2);
	char **many = calloc(300001, sizeof *many);
	struct rlimit rl;

	REFUSE("", ENOENT, 127, "empty path");
	REFUSE("/nonexistent", ENOENT, 127, "/nonexistent: not found (");
	REFUSE("/etc/passwd/x", ENOTDIR, 127, "not found");
	REFUSE("/tmp", EACCES, 126, "directory");
	REFUSE("/dev/null", EACCES, 126, "no regular file");
	mkfifo(file_at("fifo"), 0755);
	REFUSE(file_at("fifo"), EACCES, 126, "no regular file");
	REFUSE(write_file("noexec", "#!/bin/sh\n", 10, 0644), EACCES, 126, "chmod");
	REFUSE(write_text("text\nx", "echo\n"), ENOEXEC, 126, "text?x: no program: neither ELF nor");
	REFUSE(write_text("empty", ""), ENOEXEC, 126, "no program");
	if (symlink("loop", file_at("loop")))
		abort();
	REFUSE(file_at("loop"), ELOOP, 126, "symbolic links");

	good(&f, true);
	REFUSE(write_file("noloader", f.b, f.len, 0755), ENOENT, 127, "its loader /ld.so is not found");
	f.b[EI_CLASS] = 1;
	REFUSE(write_file("i386", f.b, f.len, 0755), ENOEXEC, 126,
	       "i386: 32-bit program: KylinX runs 64-bit x86 programs (use the amd64 build)");
	good(&f, true);
	snprintf((char *)f.b + 0x800, 256, "%s", write_text("textloader", "hello"));
	ph(&f, 0)->p_filesz = strlen((char *)f.b + 0x800) + 1;
	REFUSE(write_file("badloader", f.b, f.len, 0755), ELIBBAD, 126, "its loader");

	REFUSE(write_text("s1", "#!\n"), ENOEXEC, 126, "names no interpreter");
	REFUSE(write_text("s2", "#!  \t \n/bin/sh\n"), ENOEXEC, 126, "names no interpreter");
	REFUSE(write_text("s3", "#!/no/such/sh -x\n"), ENOENT, 127, "s3: its interpreter /no/such/sh is not found");
	REFUSE(write_text("s4", "#!/bin/sh\r\n"), ENOENT, 127, "carriage return");
	REFUSE(write_text("s5", "#!/tmp\n"), EACCES, 126, "s5: its interpreter /tmp: is a directory");
	memset(text, 'x', sizeof text);
	memcpy(text, "#!/", 3);
	text[300] = 0;
	REFUSE(write_text("s6", text), ENOEXEC, 126, "longer than 255");
	for (int i = 0; i < 7; i++) {
		char name[16], body[300];
		const char *prev;

		snprintf(name, sizeof name, "n%d", i - 1);
		prev = file_at(name);
		snprintf(name, sizeof name, "n%d", i);
		snprintf(body, sizeof body, "#!%s\n", i ? prev : "/bin/true");
		write_text(name, body);
	}
	REFUSE(file_at("n5"), ELOOP, 126, "interpret each other");
	REFUSE(file_at("n6"), ELOOP, 126, "interpret each other");

	memset(big, 'a', LOAD_STRING_MAX + 1);
	big[LOAD_STRING_MAX] = 0;
	argv[1] = big;
	refuse_args("/bin/true", argv, noenv, E2BIG, 126, "argument list too long", __LINE__);
	refuse_args("/bin/true", args1, argv, E2BIG, 126, "argument list too long", __LINE__);
	for (int i = 0; i < 300000; i++)
		many[i] = "";
	getrlimit(RLIMIT_STACK, &rl);
	if (rl.rlim_cur == 8u << 20) /* 300000 pointers and bytes are above a quarter of it */
		refuse_args("/bin/true", many, noenv, E2BIG, 126, "argument list too long", __LINE__);
	many[1000] = NULL;
	argv[1] = big + 1; /* the longest that is allowed */
	struct load_plan *plan;
	struct kx_err err = { 0 };
	CHECK(!load_prepare("/bin/true", -1, argv, many, &plan, &err), "%s", err.msg);
	load_free(plan);
	CHECK(!load_prepare(file_at("n4"), -1, args1, noenv, &plan, &err), "five scripts: %s", err.msg);
	load_free(plan);
	int fd = open("/bin/true", O_RDONLY | O_CLOEXEC);
	CHECK(!load_prepare("/dev/fd/9", fd, args1, noenv, &plan, &err), "by descriptor: %s", err.msg);
	load_free(plan);
	close(fd);

	/* All descriptors below the soft limit in use. */
	getrlimit(RLIMIT_NOFILE, &rl);
	if (rl.rlim_max >= 512) {
		int low = open("/bin/true", O_RDONLY | O_CLOEXEC);
		struct rlimit few = { (rlim_t)low, rl.rlim_max };

		close(low);
		setrlimit(RLIMIT_NOFILE, &few);
		CHECK(open("/bin/true", O_RDONLY | O_CLOEXEC) == -1, "limit");
		struct rlimit back;
		fd = load_prepare("/bin/true", -1, args1, noenv, &plan, &err);
		/* The stand-in for fd_hide() can't go above the limit: only what open_path() did is of interest. */
		CHECK(fd == -EINVAL || !fd, "%d %s", fd, err.msg);
		load_free(plan);
		getrlimit(RLIMIT_NOFILE, &back);
		CHECK(back.rlim_cur == few.rlim_cur, "limit is not restored");
		setrlimit(RLIMIT_NOFILE, &rl);
	}
	free(big);
	free(many);
}

/* ---- loader: what can ----------------------------------------------------------------------------------- */

struct guest_map {
	uint64_t start, end;
	char prot[5];
};

static int guest_maps(struct guest_map *m, int max)
{
	FILE *f = fopen("/proc/self/maps", "re");
	char line[1024];
	int n = 0;

	while (f && fgets(line, sizeof line, f) && n < max) {
		unsigned long a, b;
		char prot[8];

		if (sscanf(line, "%lx-%lx %7s", &a, &b, prot) != 3)
			continue;
		a -= (uintptr_t)pvm.base;
		b -= (uintptr_t)pvm.base;
		if (b > a && b <= KX_USER_END) {
			m[n].start = a;
			m[n].end = b;
			memcpy(m[n].prot, prot, 4);
			m[n++].prot[4] = 0;
		}
	}
	if (f)
		fclose(f);
	return n;
}

static uint64_t aux_value(uint64_t type)
{
	for (unsigned i = 0; i + 16 <= pvm.auxv_len; i += 16) {
		uint64_t v[2];

		memcpy(v, pvm.auxv + i, 16);
		if (v[0] == type)
			return v[1];
	}
	return 0;
}

/* The stack that load_commit() made: read it as a program would. */
static void check_stack(const struct load_result *res, const char *path)
{
	uint64_t w[64], rnd[2] = { 0 };
	char s[256];
	unsigned i = 1;

	CHECK(res->sp % 16 == 0, "sp");
	CHECK(!guest_read_test(w, res->sp, sizeof w), "stack not mapped");
	CHECK(w[0] >= 1, "argc");
	CHECK(w[1] == pvm.arg_start, "argv[0] and arg_start");
	i += w[0];
	CHECK(i >= 64 || w[i] == 0, "argv has no end");
	CHECK(aux_value(AT_ENTRY) == res->prog_entry && aux_value(AT_BASE) == res->interp_base, "auxv");
	CHECK(aux_value(AT_SYSINFO_EHDR) == KX_VDSO_BASE && aux_value(AT_PAGESZ) == 4096, "auxv");
	CHECK(!guest_read_test(s, aux_value(AT_EXECFN), strlen(path) + 1) && !strcmp(s, path), "execfn");
	CHECK(!guest_read_test(s, aux_value(AT_PLATFORM), 7) && !strcmp(s, "x86_64"), "platform");
	CHECK(!guest_read_test(rnd, aux_value(AT_RANDOM), 16) && (rnd[0] | rnd[1]), "random");
	CHECK(aux_value(AT_HWCAP) & 1u << 25, "hwcap has no SSE");
	CHECK(pvm.arg_start < pvm.arg_end && pvm.arg_end == pvm.env_start && pvm.env_end >= pvm.env_start, "args");
	CHECK(pvm.env_end < pvm.stack_top && pvm.stack_top < KX_USER_END, "stack_top");
	CHECK(pvm.exe[0] == '/' && pvm.comm[0], "exe %s comm %s", pvm.exe, pvm.comm);
	CHECK(pvm.brk_start == test_brk && test_brk % (2 << 20) == 0, "brk");
}

/* No reservation may be left: only the guard has no access. */
static void check_maps(bool exec_stack)
{
	static struct guest_map m[256];
	int n = guest_maps(m, 256), none = 0, stack = 0;

	for (int i = 0; i < n; i++) {
		if (!strncmp(m[i].prot, "---", 3)) {
			none++;
			CHECK(m[i].end - m[i].start == LOAD_STACK_GUARD && i + 1 < n && m[i + 1].start == m[i].end,
			      "%lx-%lx", m[i].start, m[i].end);
		}
		CHECK(m[i].start >= KX_USER_MIN, "low");
		CHECK(test_brk >= m[i].end || test_brk < m[i].start, "heap starts in %lx-%lx", m[i].start, m[i].end);
		if (m[i].end == pvm.stack_top) {
			stack++;
			CHECK(!strncmp(m[i].prot, exec_stack ? "rwx" : "rw-", 3), "stack %s", m[i].prot);
		}
	}
	CHECK(none == 1 && stack == 1, "%d inaccessible, %d stacks", none, stack);
}

static _Noreturn void jump(const struct load_result *res)
{
	uint64_t *w = (uint64_t *)res->sp;

	/* Run as a process: the vDSO is the host's. */
	for (w += w[0] + 2; *w; w++)
		;
	for (w++; w[0]; w += 2)
		if (w[0] == AT_SYSINFO_EHDR)
			w[1] = getauxval(AT_SYSINFO_EHDR);
	__asm__ volatile("mov %0, %%rsp\n\txor %%edx, %%edx\n\txor %%ebp, %%ebp\n\tjmp *%1" ::"a"(res->sp),
			 "c"(res->entry)
			 : "memory");
	__builtin_unreachable();
}

/* Load in a child and, where possible, run it there; its output must be `out` (NULL: not looked at). */
static void run(const char *path, char **argv, char **envp, const char *out, int line)
{
	int p[2], status;
	char got[4096];
	size_t n = 0;
	ssize_t k;
	pid_t pid;

	if (pipe(p))
		abort();
	fflush(stdout);
	pid = fork();
	if (!pid) {
		struct load_result res;
		struct kx_err err = { 0 };
		int before = failures;

		close(p[0]);
		CHECK(!load_program(path, argv, envp, &res, &err), "line %d: %s", line, err.msg);
		if (failures != before)
			_exit(99);
		check_stack(&res, path);
		check_maps(false);
		if (failures != before)
			_exit(99);
		if (pvm.base)
			_exit(0);
		dup2(p[1], 1);
		close(p[1]);
		jump(&res);
	}
	close(p[1]);
	while ((k = read(p[0], got + n, sizeof got - 1 - n)) > 0)
		n += (size_t)k;
	got[n] = 0;
	close(p[0]);
	waitpid(pid, &status, 0);
	CHECK(status == 0, "line %d: %s: status 0x%x", line, path, status);
	if (out && !pvm.base)
		CHECK(!strcmp(got, out), "line %d: %s: \"%s\"", line, path, got);
}
#define RUN(path, out, ...) run(path, (char *[]){ __VA_ARGS__, NULL }, (char *[]){ "A=b", NULL }, out, __LINE__)

static const char guest_source[] =
	"#include <stdio.h>\n#include <stdlib.h>\n#include <elf.h>\n#include <sys/auxv.h>\n"
	"static char bss[100000];\nstatic int data[3] = { 1, 2, 3 };\nextern char **environ;\n"
	"int main(int argc, char **argv)\n{\n"
	"	for (int i = 0; i < argc; i++)\n		printf(\"%s|\", argv[i]);\n"
	"	printf(\"%s|%s\", environ[0] ? environ[0] : \"\", getenv(\"A\") ? getenv(\"A\") : \"\");\n"
	"	for (unsigned i = 0; i < sizeof bss; i++)\n		if (bss[i])\n			return 1;\n"
	"	if (data[0] + data[1] + data[2] != 6)\n		return 2;\n"
	"	Elf64_Phdr *ph = (void *)getauxval(AT_PHDR);\n	int load = 0;\n"
	"	for (unsigned i = 0; i < getauxval(AT_PHNUM); i++)\n		load += ph[i].p_type == PT_LOAD;\n"
	"	return load ? 0 : 3;\n}\n";

static void run_built(const char *name, const char *command)
{
	char cmd[1024];
	const char *src = write_text("guest.c", guest_source), *path = file_at(name);

	snprintf(cmd, sizeof cmd, "%s -O1 -o %s %s 2>/dev/null", command, path, src);
	if (system(cmd)) {
		skipped++;
		printf("skip %s: can't build with: %s\n", name, command);
		return;
	}
	test_file(path);
	RUN(path, "prog|x y||A=b|b", "prog", "x y", "");
}

static void test_programs(void)
{
	struct file f;
	char want[600], body[300];
	const char *s;

	RUN("/bin/true", "", "true");
	RUN("/bin/echo", "hello world\n", "echo", "hello", "world");
	RUN("/lib64/ld-linux-x86-64.so.2", "hi\n", "ld.so", "/bin/echo", "hi");
	run_built("dyn", "cc");
	run_built("nopie", "cc -no-pie");
	run_built("static", "cc -static");
	run_built("static-pie", "cc -static-pie");
	run_built("align", "cc -Wl,-z,max-page-size=0x200000");
	run_built("align-exec", "cc -no-pie -Wl,-z,max-page-size=0x200000");
	run_built("musl-static", "musl-gcc -static");
	run_built("musl-pie", "musl-gcc -static-pie");
	run_built("musl-dyn", "musl-gcc");
	run_built("packed", "cc -static -Wl,-z,noseparate-code");
	if (access("/bin/busybox", X_OK) == 0)
		RUN("/bin/busybox", "a b\n", "echo", "a", "b");
	else
		skipped++;
	run("/bin/true", (char *[]){ NULL }, noenv, "", __LINE__);

	/* Scripts: one argument with its blanks, nested, without a last newline, cut at 255. */
	snprintf(body, sizeof body, "#! \t/bin/echo  -n x  y \t\nrubbish\n");
	s = write_text("sc1", body);
	snprintf(want, sizeof want, "-n x  y %s 1 2\n", s);
	RUN(s, want, "ignored", "1", "2");
	snprintf(body, sizeof body, "#!%s arg", s);
	s = write_text("sc2", body);
	snprintf(want, sizeof want, "-n x  y %s arg %s 1\n", file_at("sc1"), s);
	RUN(s, want, "ignored", "1");
	RUN(file_at("n4"), "", "n");
	run(file_at("sc1"), (char *[]){ NULL }, noenv, NULL, __LINE__);
	memset(body, 'z', sizeof body);
	memcpy(body, "#!/bin/echo ", 12);
	body[299] = 0;
	s = write_text("sc3", body);
	snprintf(want, sizeof want, "%.243s %s\n", body + 12, s);
	RUN(s, want, "ignored");

	/* Mapped, not run: content, zeros, a segment of zeros that shares a page, an executable stack. */
	for (int dyn = 0; dyn < 2; dyn++) {
		good(&f, dyn);
		ph(&f, 0)->p_type = 0;
		memset(f.b + 0x1000, 0x90, 0x2000);
		*ph(&f, 4) = (Elf64_Phdr){ PT_LOAD, PF_R | PF_W, 0, ph(&f, 2)->p_vaddr + 0x20, 0, 0, 0x100000, 16 };
		ph(&f, 2)->p_memsz = 0x20;
		ph(&f, 3)->p_flags |= PF_X;
		s = write_file(dyn ? "made-pie" : "made", f.b, f.len, 0755);
		fflush(stdout);
		if (!fork()) {
			struct load_result res;
			struct kx_err err = { 0 };
			uint8_t page[4096];
			uint64_t at;
			bool zeros = true;

			CHECK(!load_program(s, args1, noenv, &res, &err), "%s", err.msg);
			if (err.code)
				_exit(1);
			failures = 0;
			check_stack(&res, s);
			check_maps(true);
			at = res.prog_base + (dyn ? 0x3000 : 0x403000);
			CHECK(!guest_read_test(page, at, 4096) && page[0x10] == 0x90 && page[0x2f] == 0x90, "data");
			for (int i = 0x30; i < 4096; i++)
				zeros &= !page[i];
			CHECK(zeros, "zeros after data");
			CHECK(!guest_read_test(page, at + 0x100000, 4096) && !page[0] && !page[4095], "zeros");
			CHECK(guest_read_test(page, at + 0x101000, 1), "mapped too much");
			CHECK(!guest_write(at + 0x100000, "x", 1), "not writable");
			CHECK(aux_value(AT_PHDR) == res.prog_base + (dyn ? 64 : 0x400040), "AT_PHDR");
			_exit(failures != 0);
		}
		int status;
		wait(&status);
		CHECK(status == 0, "made %d: 0x%x", dyn, status);
	}
}

/* The file is exchanged, cut or in the way: an error, never a signal. */
static void test_races(void)
{
	struct file f;
	const char *s;
	int status;

	for (int kind = 0; kind < 3; kind++) {
		good(&f, false);
		ph(&f, 0)->p_type = 0;
		s = write_file("race", f.b, f.len, 0755);
		fflush(stdout);
		if (!fork()) {
			struct load_plan *plan;
			struct load_result res;
			struct kx_err err = { 0 };
			int r;

			failures = 0;
			CHECK(!load_prepare(s, -1, args1, noenv, &plan, &err), "%s", err.msg);
			if (kind == 0)
				shrink_path = (char *)s;
			else if (kind == 1 && truncate(s, 0x2010))
				_exit(3);
			else if (kind == 2)
				gmem_mmap(0x402000, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
			r = load_commit(plan, &res, &err);
			CHECK(r == (kind == 2 ? -EEXIST : -ETXTBSY), "%d: %d %s", kind, r, err.msg);
			CHECK(err.exit_code == 126, "%d", err.exit_code);
			load_free(plan);
			_exit(failures != 0);
		}
		wait(&status);
		CHECK(status == 0, "race %d: 0x%x", kind, status);
	}
	/* Programs at the very top: the stack goes below. */
	good(&f, false);
	ph(&f, 0)->p_type = 0;
	ph(&f, 1)->p_vaddr = KX_USER_END - (6ull << 30);
	ph(&f, 2)->p_vaddr = KX_USER_END - (6ull << 30) + 0x2010;
	ph(&f, 2)->p_memsz = (6ull << 30) - 0x3010;
	f.eh.e_entry = ph(&f, 1)->p_vaddr;
	s = write_file("top", f.b, f.len, 0755);
	fflush(stdout);
	if (!fork()) {
		struct load_result res;
		struct kx_err err = { 0 };
		int r = load_program(s, args1, noenv, &res, &err);

		failures = 0;
		/* A host without overcommit may refuse 6 GiB. */
		CHECK(r == -ENOMEM || (!r && pvm.stack_top < KX_USER_END - (6ull << 30)), "%d %s", r, err.msg);
		_exit(failures != 0);
	}
	wait(&status);
	CHECK(status == 0, "top: 0x%x", status);
}

/* Load hostile files: any result will do, but a result. */
static int load_files(char **path)
{
	int loaded = 0, refused = 0, status;

	exec_maps = 1; /* the program's own text may be not executable, the first to be so the interpreter's */
	for (; *path; path++) {
		if (!fork()) {
			struct load_result res;
			struct kx_err err = { 0 };
			int r = load_program(*path, args1, noenv, &res, &err);

			if (r)
				_exit(r == -err.code && err.msg[0] && !strchr(err.msg, '\n') ? 1 : 3);
			_exit(res.entry < KX_USER_END && res.sp < pvm.stack_top ? 0 : 4);
		}
		wait(&status);
		loaded += status == 0;
		refused += status == 0x100;
		CHECK(status == 0 || status == 0x100, "%s: status 0x%x", *path, status);
	}
	printf("test_elf: %d files loaded, %d refused, %d failures\n", loaded, refused, failures);
	return failures != 0;
}

/* One after the other, of a file that ends within its table. */
static void test_one_by_one(void)
{
	const uint32_t n = 2 * ELF_PHDRS_READ + 6;
	int fd = memfd_create("headers", MFD_CLOEXEC);
	struct elf_phdrs phdrs = { .fd = fd, .phoff = 64 };
	Elf64_Phdr h = { 0 };

	for (h.p_type = 0; h.p_type < n; h.p_type++)
		if (pwrite(fd, &h, sizeof h, (off_t)(64 + h.p_type * sizeof h)) != sizeof h)
			abort();
	if (ftruncate(fd, (off_t)(64 + n * sizeof h - 1)))
		abort();
	for (uint32_t i = 0; i < n; i++) {
		const Elf64_Phdr *p = elf_phdr(&phdrs, i);
		CHECK(i < n - 1 ? p && p->p_type == i : !p, "header %u", i);
	}
	close(fd);
}

int main(int argc, char **argv)
{
	const char *files[] = { "/bin/true", "/bin/busybox", "/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1",
				"/usr/lib/x86_64-linux-musl/libc.so" };
	char cmd[64];

	alarm(300);
	if (ASAN || (uintptr_t)main < KX_SPACE_SIZE) {
		pvm.base = (uint8_t *)0x200000000000;
		/* With ASan its shadow is at the low addresses: what is loaded is run by the builds without. */
		if (!ASAN) {
			printf("skip running what is loaded: the low addresses are not free in this build\n");
			skipped++;
		}
	}
	if (argc > 1)
		return load_files(argv + 1);
	if (!mkdtemp(dir))
		abort();
	test_headers();
	test_one_by_one();
	for (unsigned i = 0; i < sizeof files / sizeof files[0]; i++)
		test_file(files[i]);
	test_refusals();
	test_programs();
	test_races();
	snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
	if (system(cmd))
		failures++;
	printf("test_elf: %d checks, %d failures, %d skipped\n", checks, failures, skipped);
	return failures != 0;
}
