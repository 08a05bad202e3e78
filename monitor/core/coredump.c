/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layout is the kernel's (fs/binfmt_elf.c): ELF header, program headers, one PT_NOTE, then one PT_LOAD for each mapping
 * of /proc/self/maps. What of a mapping is in the file is decided as there, by coredump_filter. Pages that were never
 * touched are holes, so neither time nor space is spent on them: the host's pagemap tells.
 *
 * The guest controls the memory, registers and names in it, and what stands under the name `core`. That is unlinked, as by
 * the kernel, and a new file made: nothing is followed or opened that was there before. Memory goes from the guest's mappings straight into the file:
 * what can't be read there is a hole. The monitor needs memory for the notes and one header for each mapping. After
 * SECONDS_MAX the file ends where it is.
 */
#include "coredump.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/procfs.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../util/grow.h"
#include "../../util/log.h"
#include "../../util/now.h"
#include "../../util/together.h"
#include "../dev/procfs.h"
#include "family.h"
#include "gmem.h"
#include "gmem_warm.h"
#include "keeper.h"
#include "pagemap.h"
#include "update.h"
#include "vfs.h"
#include "vcpu.h"

#define PAGE 4096ull
#define NAME "core"
#define SECONDS_MAX 120        /* for all of the file */
#define WRITE_MAX (1ull << 20) /* at once; between two the clock is looked at */
#define LOADS_MAX 65000        /* e_phnum has 16 bits */
#define FILES_MAX (4u << 20)   /* bytes of NT_FILE */
#define SCAN 512               /* entries of pagemap at once */
#define XSAVE_MAX 4096u        /* of struct kvm_xsave */
#define XCR0_AT 464            /* in an XSAVE area: the kernel says there what it has enabled */
#define THREAD_CLOCK(tid, kind) ((clockid_t)(~(unsigned)(tid) << 3 | 4 | (kind)))
/* coredump_filter, core(5) */
#define F_ANON_PRIVATE 1u
#define F_ANON_SHARED 2u
#define F_FILE_PRIVATE 4u
#define F_FILE_SHARED 8u
#define F_ELF_HEADERS 16u
#define F_DEFAULT 0x33u

int coredump_dumpable = 1;
static __thread siginfo_t cause;
static KX_TOGETHER pid_t begun; /* the thread that writes it, and ends the process then */

struct load {
	uint64_t start, end, size; /* size: of it in the file */
	uint64_t off;              /* of the file that is mapped there */
	uint32_t flags;            /* PF_ */
	bool sparse;               /* untouched pages are holes */
	const char *name;          /* of the mapped file, in the text of maps; NULL = none */
};

struct core {
	int fd, pagemap;
	uint64_t limit, written, pos; /* the limit counts what is written, not holes */
	uint64_t deadline_ns;
	uint32_t filter;
	bool full; /* the limit, the time, or the file system's end */
	struct load *load;
	unsigned nr;
	uint8_t *notes;
	size_t notes_len, notes_cap;
	uint64_t entry[SCAN];
};

void coredump_cause(const siginfo_t *info) { cause = *info; }

static bool dumps_core(int sig)
{
	switch (sig) {
	case SIGQUIT:
	case SIGILL:
	case SIGTRAP:
	case SIGABRT:
	case SIGBUS:
	case SIGFPE:
	case SIGSEGV:
	case SIGXCPU:
	case SIGXFSZ:
	case SIGSYS:
		return true;
	}
	return false;
}

/* Who was waited for before its SIGCHLD came to be handed over: the family knows it no more. */
static pid_t waited[8];

bool coredump_of(pid_t pid, int sig)
{
	static unsigned next;
	if (!dumps_core(sig) || !family_dumped(pid))
		return false;
	waited[__atomic_fetch_add(&next, 1, __ATOMIC_RELAXED) % 8] = pid;
	return true;
}

static bool was_told(pid_t pid)
{
	for (int i = 0; i < 8; i++)
		if (waited[i] == pid) {
			waited[i] = 0;
			return true;
		}
	return false;
}

void coredump_tell(siginfo_t *info)
{
	if (info->si_signo != SIGCHLD || info->si_code != CLD_KILLED || !dumps_core(info->si_status))
		return;
	if (family_dumped(info->si_pid) || was_told(info->si_pid))
		info->si_code = CLD_DUMPED;
}

/* ---- registers ---------------------------------------------------------------------------------------------------- */

static void regs_of_frame(const struct kx_frame *f, struct kvm_regs *r, uint64_t *orig)
{
	*r = (struct kvm_regs){ .rax = f->rax,
				.rbx = f->rbx,
				.rcx = f->rcx,
				.rdx = f->rdx,
				.rsi = f->rsi,
				.rdi = f->rdi,
				.rsp = f->rsp,
				.rbp = f->rbp,
				.r8 = f->r8,
				.r9 = f->r9,
				.r10 = f->r10,
				.r11 = f->r11,
				.r12 = f->r12,
				.r13 = f->r13,
				.r14 = f->r14,
				.r15 = f->r15,
				.rip = f->rip,
				.rflags = f->rflags };
	*orig = f->orig_rax == KX_ORIG_CPUID ? -1ull : f->orig_rax;
}

/* The program's registers, wherever t stands on the way between the program and the monitor. */
static void user_regs(struct thread *t, const struct kvm_sregs *s, struct kvm_regs *r, uint64_t *orig)
{
	*r = t->run->s.regs.regs;
	*orig = -1ull;
	const uint64_t frame = frame_gva(t);
	bool libos = in_libos(r->rip);
	bool first = r->rip == pvm.libos.entry || r->rip == pvm.libos.cpuid;
	bool entering = r->rip >= pvm.libos.entry && r->rip < pvm.libos.exit_begin && (first || r->rsp > frame);
	if (__atomic_load_n(&t->hcall, __ATOMIC_SEQ_CST) || (libos && !entering)) {
		struct kx_frame f;
		f = *frame_of(t);
		regs_of_frame(&f, r, orig);
	} else if (libos) { /* the frame is not whole yet, and no register but these has changed */
		bool cpuid = r->rip >= pvm.libos.cpuid;
		if (!first)
			r->rsp = t->area->user_rsp;
		r->rip = cpuid ? r->rbx : r->rcx;
	} else if ((s->cs.selector & 3) != 3) { /* at LSTAR, by a `syscall` */
		r->rip = r->rcx;
		r->rflags = r->r11;
	} else {
		r->rip = gmem_pc_to_original(r->rip);
	}
}

/* ---- notes -------------------------------------------------------------------------------------------------------- */

static bool note(struct core *c, uint32_t type, const void *desc, size_t len)
{
	const char *owner = type == NT_X86_XSTATE ? "LINUX" : "CORE";
	Elf64_Nhdr h = { (uint32_t)strlen(owner) + 1, (uint32_t)len, type };
	size_t name = (h.n_namesz + 3) & ~3u, need = sizeof h + name + ((len + 3) & ~3ul);
	if (!kx_room(c->notes, c->notes_cap, c->notes_len + need, 4096))
		return false;
	uint8_t *at = c->notes + c->notes_len;
	memset(at, 0, need);
	memcpy(at, &h, sizeof h);
	memcpy(at + sizeof h, owner, h.n_namesz);
	memcpy(at + sizeof h + name, desc, len);
	c->notes_len += need;
	return true;
}

static struct timeval thread_time(pid_t tid, int kind)
{
	struct timespec ts = { 0, 0 };
	HC6(SYS_clock_gettime, THREAD_CLOCK(tid, kind), &ts, 0, 0, 0, 0);
	return (struct timeval){ ts.tv_sec, ts.tv_nsec / 1000 };
}

static bool note_thread(struct core *c, struct thread *t, int sig)
{
	struct elf_prstatus p;
	struct kvm_regs r;
	uint64_t orig;
	struct kvm_sregs s;
	memset(&p, 0, sizeof p);
	vcpu_sregs(t, &s);
	user_regs(t, &s, &r, &orig);
	p.pr_info.si_signo = p.pr_cursig = (short)sig;
	p.pr_sighold = t->area->sigmask;
	p.pr_pid = t->tid;
	p.pr_ppid = getppid();
	p.pr_pgrp = getpgrp();
	p.pr_sid = getsid(0);
	const struct timeval user = thread_time(t->tid, 1), all = thread_time(t->tid, 0);
	memcpy(&p.pr_utime, &user, sizeof user);
	if (timercmp(&all, &user, >)) {
		struct timeval system;
		timersub(&all, &user, &system);
		memcpy(&p.pr_stime, &system, sizeof system);
	}
	const uint64_t g[] = { r.r15,    r.r14, r.r13, r.r12,     r.rbp, r.rbx, r.r11, r.r10, r.r9,
			       r.r8,     r.rax, r.rcx, r.rdx,     r.rsi, r.rdi, orig,  r.rip, 0x33,
			       r.rflags, r.rsp, 0x2b,  s.fs.base, 0,     0,     0,     0,     0 };
	_Static_assert(sizeof g == sizeof p.pr_reg, "struct user_regs_struct");
	memcpy(&p.pr_reg, g, sizeof g);
	p.pr_fpvalid = 1;
	return note(c, NT_PRSTATUS, &p, sizeof p);
}

static bool note_vectors(struct core *c, struct thread *t)
{
	union {
		struct kvm_xsave x;
		uint8_t byte[XSAVE_MAX];
	} u;
	_Static_assert(sizeof u.x == XSAVE_MAX, "without what is enabled by request");
	if (ioctl(t->vcpu_fd, KVM_GET_XSAVE, &u.x) < 0)
		return true;
	memcpy(u.byte + XCR0_AT, &pvm.xcr0, sizeof pvm.xcr0);
	size_t size = pvm.xsave_size && pvm.xsave_size <= sizeof u ? pvm.xsave_size : sizeof u;
	return note(c, NT_FPREGSET, &u, sizeof(elf_fpregset_t)) && note(c, NT_X86_XSTATE, &u, size);
}

static bool note_process(struct core *c)
{
	struct elf_prpsinfo p;
	memset(&p, 0, sizeof p);
	p.pr_sname = 'R';
	p.pr_uid = getuid();
	p.pr_gid = getgid();
	p.pr_pid = my_pid();
	p.pr_ppid = getppid();
	p.pr_pgrp = getpgrp();
	p.pr_sid = getsid(0);
	HC6(SYS_prctl, PR_GET_NAME, p.pr_fname, 0, 0, 0, 0);
	size_t len = pvm.arg_end - pvm.arg_start;
	len = len < sizeof p.pr_psargs - 1 ? len : sizeof p.pr_psargs - 1;
	if (guest_read(p.pr_psargs, pvm.arg_start, len))
		len = 0;
	for (size_t i = 0; i < len; i++)
		if (!p.pr_psargs[i])
			p.pr_psargs[i] = ' ';
	return note(c, NT_PRPSINFO, &p, sizeof p);
}

/* Count, page size; start, end, offset in pages of each; the names. Too long: none, as by the kernel. */
static bool note_files(struct core *c)
{
	uint64_t n = 0;
	size_t names = 0;
	for (unsigned i = 0; i < c->nr; i++)
		if (c->load[i].name) {
			n++;
			names += strlen(c->load[i].name) + 1;
		}
	size_t size = (2 + 3 * n) * 8 + names;
	if (!n || size > FILES_MAX)
		return true;
	uint64_t *d = malloc(size), *w = d;
	if (!d)
		return false;
	char *s = (char *)(d + 2 + 3 * n);
	*w++ = n;
	*w++ = PAGE;
	for (unsigned i = 0; i < c->nr; i++)
		if (c->load[i].name) {
			*w++ = c->load[i].start;
			*w++ = c->load[i].end;
			*w++ = c->load[i].off / PAGE;
			s = stpcpy(s, c->load[i].name) + 1;
		}
	bool ok = note(c, NT_FILE, d, size);
	free(d);
	return ok;
}

/* The thread that dies comes first. A child of vfork is alone: the others are its parent's. */
static bool notes_make(struct core *c, const siginfo_t *info)
{
	struct thread *me = self;
	bool ok = note_thread(c, me, info->si_signo) && note_process(c) && note(c, NT_SIGINFO, info, sizeof *info) &&
		  note(c, NT_AUXV, pvm.auxv, pvm.auxv_len) && note_files(c) && note_vectors(c, me);
	if (is_vfork_child())
		return ok;
	pthread_mutex_lock(&pvm.thr_lock);
	for (struct thread *t = pvm.threads; t && ok; t = t->next)
		if (t != me && t->run && update_stands(t))
			ok = note_thread(c, t, info->si_signo) && note_vectors(c, t);
	pthread_mutex_unlock(&pvm.thr_lock);
	return ok;
}

/* ---- mappings ----------------------------------------------------------------------------------------------------- */

/* Does [start, end) hold a page that is no file's any more? Unknown: yes. */
static bool was_written(struct core *c, uint64_t start, uint64_t end)
{
	for (uint64_t a = start; a < end;) {
		size_t n = (end - a) / PAGE < SCAN ? (end - a) / PAGE : SCAN;
		off_t at = (off_t)(((uint64_t)pvm.base + a) / PAGE * 8);
		if (HC6(SYS_pread64, c->pagemap, c->entry, n * 8, at, 0, 0) != (long)(n * 8))
			return true;
		for (size_t i = 0; i < n; i++)
			if (c->entry[i] & PM_SWAP || (c->entry[i] & (PM_PRESENT | PM_FILE)) == PM_PRESENT)
				return true;
		a += n * PAGE;
	}
	return false;
}

static bool is_elf(uint64_t gva)
{
	char magic[SELFMAG];
	return !guest_read(magic, gva, sizeof magic) && !memcmp(magic, ELFMAG, SELFMAG);
}

/* As vma_dump_size(). */
static uint64_t dump_size(struct core *c, const struct load *l, bool shared, bool file, bool deleted)
{
	const uint64_t whole = l->end - l->start;
	if (l->start >= KX_VDSO_BASE && l->start < KX_VVAR_BASE)
		return whole;
	if (shared)
		return c->filter & (file && !deleted ? F_FILE_SHARED : F_ANON_SHARED) ? whole : 0;
	if (!file || was_written(c, l->start, l->end))
		return c->filter & F_ANON_PRIVATE ? whole : 0;
	if (c->filter & F_FILE_PRIVATE)
		return whole;
	return c->filter & F_ELF_HEADERS && !l->off && l->flags & PF_R && is_elf(l->start) ? PAGE : 0;
}

static bool has_flag(const char *line, const char *flag)
{
	const char *end = strchr(line, '\n'), *at = strstr(line, flag);
	return at && (!end || at < end);
}

/* The text is that of the program's own smaps, from here on cut into strings. */
static bool loads_read(struct core *c, char *text)
{
	unsigned cap = 0;
	char *line = text, *eol;
	struct load *l = NULL;
	bool shared = false, file = false, deleted = false;
	for (; (eol = strchr(line, '\n')); line = eol + 1) {
		uint64_t start, end, off, inode;
		char prot[5];
		int at = 0;
		*eol = 0;
		if (l && !strncmp(line, "VmFlags:", 8)) {
			*eol = '\n';
			bool none = has_flag(line, " dd") || has_flag(line, " io");
			*eol = 0;
			l->size = none ? 0 : dump_size(c, l, shared, file, deleted);
			l = NULL;
			continue;
		}
		if (sscanf(line, "%lx-%lx %4s %lx %*s %lu %n", &start, &end, prot, &off, &inode, &at) < 5)
			continue;
		if (!kx_room(c->load, cap, c->nr + 1, 128))
			return false;
		if (c->nr == LOADS_MAX)
			break;
		l = &c->load[c->nr++];
		shared = prot[3] == 's';
		file = inode != 0;
		deleted = strstr(line, " (deleted)") != NULL;
		*l = (struct load){ .start = start,
				    .end = end,
				    .off = off,
				    .flags = (prot[0] == 'r' ? PF_R : 0) | (prot[1] == 'w' ? PF_W : 0) |
					     (prot[2] == 'x' ? PF_X : 0),
				    .sparse = !shared && !file && start < KX_VDSO_BASE,
				    .name = file && at ? line + at : NULL };
	}
	return c->nr > 0;
}

/* ---- the file ----------------------------------------------------------------------------------------------------- */

/* As the kernel makes one: a new file of the program's user, in place of what has the name. -1: none can be. */
static int file_open(void)
{
	const char *proc = NULL;
	char path[PATH_MAX] = NAME;
	struct hcall c = { .t = self, .path_buf = { path }, .nr_paths = 1 };
	struct stat st;
	if (vfs_path(&c, AT_FDCWD, path, &proc) || proc) /* in /proc: plain directories here */
		return -1;
	HC6(SYS_unlinkat, AT_FDCWD, NAME, 0, 0, 0, 0);
	fd_limit_lift();
	long fd = HC6(SYS_openat, AT_FDCWD, NAME, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600, 0, 0);
	fd = fd < 0 ? fd : fd_hide((int)fd);
	fd_limit_drop();
	if (fd < 0)
		return -1;
	if (fstat((int)fd, &st) || !S_ISREG(st.st_mode)) {
		close((int)fd);
		return -1;
	}
	return (int)fd;
}

/* len bytes at c->pos, from the monitor's or the guest's memory; what can't be read is a hole. */
static void put(struct core *c, const uint8_t *from, uint64_t len)
{
	while (len && !c->full) {
		uint64_t n = len < WRITE_MAX ? len : WRITE_MAX;
		if (n > c->limit - c->written)
			n = c->limit - c->written;
		if (!n || now_ns() > c->deadline_ns) {
			c->full = true;
			return;
		}
		long r = HC6(SYS_pwrite64, c->fd, from, n, c->pos, 0, 0);
		if (r == -EINTR)
			continue;
		if (r == -EFAULT) {
			r = (long)(PAGE - (uint64_t)from % PAGE);
			r = (uint64_t)r < len ? r : (long)len;
		} else if (r <= 0) {
			c->full = true;
			return;
		} else {
			c->written += (uint64_t)r;
		}
		from += r;
		len -= (uint64_t)r;
		c->pos += (uint64_t)r;
	}
}

/* A mapping of which only what was touched is written. */
static void put_sparse(struct core *c, const struct load *l)
{
	const uint64_t base = (uint64_t)pvm.base;
	for (uint64_t a = l->start; a < l->start + l->size && !c->full;) {
		size_t n = (l->start + l->size - a) / PAGE;
		n = n < SCAN ? n : SCAN;
		if (HC6(SYS_pread64, c->pagemap, c->entry, n * 8, (base + a) / PAGE * 8, 0, 0) != (long)(n * 8)) {
			c->full = true;
			return;
		}
		for (size_t i = 0, k; i < n && !c->full; i = k) {
			const bool has = c->entry[i] & (PM_PRESENT | PM_SWAP);
			for (k = i + 1; k < n && has == !!(c->entry[k] & (PM_PRESENT | PM_SWAP)); k++)
				;
			if (has)
				put(c, gva_ptr(a + i * PAGE), (k - i) * PAGE);
			else
				c->pos += (k - i) * PAGE;
		}
		if (now_ns() > c->deadline_ns)
			c->full = true;
		a += n * PAGE;
	}
}

static bool headers_put(struct core *c)
{
	const uint64_t head = sizeof(Elf64_Ehdr) + (c->nr + 1) * sizeof(Elf64_Phdr);
	uint64_t at = (head + c->notes_len + PAGE - 1) & -PAGE;
	uint8_t *h = calloc(1, head);
	if (!h)
		return false;
	Elf64_Ehdr *e = (Elf64_Ehdr *)h;
	Elf64_Phdr *p = (Elf64_Phdr *)(e + 1);
	memcpy(e->e_ident, ELFMAG, SELFMAG);
	e->e_ident[EI_CLASS] = ELFCLASS64;
	e->e_ident[EI_DATA] = ELFDATA2LSB;
	e->e_ident[EI_VERSION] = e->e_version = EV_CURRENT;
	e->e_type = ET_CORE;
	e->e_machine = EM_X86_64;
	e->e_phoff = e->e_ehsize = sizeof *e;
	e->e_phentsize = sizeof *p;
	e->e_phnum = (Elf64_Half)(c->nr + 1);
	*p++ = (Elf64_Phdr){ .p_type = PT_NOTE, .p_offset = head, .p_filesz = c->notes_len, .p_align = 4 };
	for (unsigned i = 0; i < c->nr; i++) {
		const struct load *l = &c->load[i];
		*p++ = (Elf64_Phdr){ .p_type = PT_LOAD,
				     .p_flags = l->flags,
				     .p_offset = at,
				     .p_vaddr = l->start,
				     .p_filesz = l->size,
				     .p_memsz = l->end - l->start,
				     .p_align = PAGE };
		at += l->size;
	}
	put(c, h, head);
	put(c, c->notes, c->notes_len);
	free(h);
	c->pos = (c->pos + PAGE - 1) & -PAGE;
	return !c->full;
}

/* True: all of it is there. */
static bool file_write(struct core *c)
{
	if (!headers_put(c))
		return false;
	for (unsigned i = 0; i < c->nr && !c->full; i++) {
		const struct load *l = &c->load[i];
		if (l->sparse)
			put_sparse(c, l);
		else
			put(c, gva_ptr(l->start), l->size);
	}
	/* What ends with a hole. */
	return !c->full && !HC6(SYS_ftruncate, c->fd, c->pos, 0, 0, 0, 0);
}

static void cause_find(int sig, siginfo_t *info)
{
	*info = cause;
	if (info->si_signo != sig) /* it was the LibOS that found no handler */
		memcpy(info, self->area->sig.info, sizeof *info);
	if (info->si_signo != sig) {
		memset(info, 0, sizeof *info);
		info->si_signo = sig;
		info->si_code = SI_KERNEL;
	}
}

static uint32_t filter_get(void)
{
	char text[32];
	return procfs_peek("self/coredump_filter", text, sizeof text) > 0 ? (uint32_t)strtoul(text, NULL, 16)
									  : F_DEFAULT;
}

/* The other threads stand. */
static bool dump(int sig, uint64_t limit)
{
	siginfo_t info;
	struct core *c = calloc(1, sizeof *c);
	char *text = NULL;
	bool begun_well = false, whole = false;
	if (!c)
		return false;
	c->limit = limit;
	c->deadline_ns = now_ns() + SECONDS_MAX * 1000000000ull;
	c->filter = filter_get();
	c->pagemap = proc_file("self/pagemap");
	c->fd = c->pagemap < 0 ? -1 : file_open();
	if (c->fd < 0) {
		kx_log(KX_LOG_INFO, "coredump", "%s: no core file can be made in the program's directory", pvm.comm);
	} else {
		cause_find(sig, &info);
		begun_well = !procfs_smaps(&text) && loads_read(c, text) && notes_make(c, &info);
		whole = begun_well && file_write(c);
		kx_log(KX_LOG_INFO, "coredump", "%s: signal %d, %llu bytes written%s", pvm.comm, sig,
		       (unsigned long long)c->written, whole ? "" : ", not complete");
	}
	/* The process ends: nothing is freed, the descriptors are closed for who waits for the file. */
	if (c->fd >= 0)
		close(c->fd);
	if (c->pagemap >= 0)
		close(c->pagemap);
	if (begun_well) /* as the kernel says: also of one that is cut off */
		family_dump_done();
	return begun_well;
}

void coredump_wait(void)
{
	pid_t who;
	while ((who = __atomic_load_n(&begun, __ATOMIC_SEQ_CST)) && my_pid() == pvm.pid && who != my_tid()) {
		if (self) /* its registers are the program's */
			update_park(self);
		host_call(SYS_nanosleep, (long)&(struct timespec){ 0, 1000000 }, 0, 0, 0, 0, 0);
	}
}

bool coredump(int sig)
{
	coredump_wait();
	if (!self || pvm.proc_fd < 0 || !dumps_core(sig))
		return false;
	uint64_t limit = limits_core();
	if (limit < PAGE || !coredump_dumpable)
		return false;
	/* As the kernel: its parent's threads run on, but for the one that waits for it. What it allocates goes with it. */
	if (is_vfork_child())
		return dump(sig, limit);
	if (__atomic_exchange_n(&begun, self->tid, __ATOMIC_SEQ_CST))
		coredump_wait();
	if (gmem_warm_any) /* pages of files are not dumped; those of copies are */
		gmem_warm_end(true);
	if (!update_stop_for_good(self))
		kx_log(KX_LOG_WARN, "coredump", "%s: a thread did not stop: its registers are not in the core file",
		       pvm.comm);
	return dump(sig, limit);
}

void coredump_fork_child(void) { begun = 0; }
