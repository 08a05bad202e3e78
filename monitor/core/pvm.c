/* SPDX-License-Identifier: Apache-2.0 */
#include "pvm.h"
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../cli/cli.h"
#include "../../util/log.h"
#include "../../util/now.h"
#include "../../util/procstat.h"
#include "../../util/together.h"
#include "exec.h"
#include "batch.h"
#include "coredump.h"
#include "dgram.h"
#include "family.h"
#include "fsize.h"
#include "futex_nap.h"
#include "futexes.h"
#include "gmem.h"
#include "jail.h"
#include "libnext.h"
#include "libstart.h"
#include "load.h"
#include "ipc.h"
#include "pipe.h"
#include "net.h"
#include "registry.h"
#include "seccomp.h"
#include "serve.h"
#include "sig.h"
#include "spare.h"
#include "stats.h"
#include "strace.h"
#include "text.h"
#include "store.h"
#include <limits.h>
#include "thread.h"
#include "timepage.h"
#include "tsc.h"
#include "update.h"
#include "vcpu.h"
#include "vfs.h"
#include "vmend.h"

/* Descriptors from this number on are the monitor's. A descriptor table is as long as its largest number, and a
 * fork copies it, so no more than programs need: those that raise their limit ask for some ten thousand. */
#define FD_LIMIT_MAX 65536u
#define FD_RESERVED 1024u
/* Where they are at first. Each fork copies the table of descriptors up to the greatest in use: with tens of
 * thousands that takes longer than all else of a fork. fd_grow() moves them when a program comes near, or gets a
 * second thread. */
#define FD_LIMIT_FIRST 1024u

struct pvm pvm = { .mm_lock = PTHREAD_MUTEX_INITIALIZER,
		   .thr_lock = PTHREAD_MUTEX_INITIALIZER,
		   .proc_fd = -1,
		   .kvm_fd = -1,
		   .vm_fd = -1,
		   .exe_fd = -1,
		   .log_fd = -1,
		   .family_fd = -1,
		   .registry_fd = -1 };
__thread struct thread *self;

extern const uint8_t libos_image[], libos_image_end[], vdso_image[], vdso_image_end[];
void limits_init(void);
int limits_lift(struct kx_err *err);
void limits_import(const struct rlimit in[16]);

/* ---- the end -------------------------------------------------------------------------------------------------- */

static KX_TOGETHER int ending, reported; /* whether a thread is about to end the process, or has told of its end */

void pvm_fork_child(void)
{
	ending = reported = 0;
	coredump_fork_child();
}

static void report_end(const char *fmt, int n)
{
	char how[64];
	if (my_pid() != pvm.pid) /* a child of vfork: the memory is its parent's */
		return;
	if (__atomic_exchange_n(&reported, 1, __ATOMIC_SEQ_CST))
		return;
	snprintf(how, sizeof how, fmt, n);
	if (pvm.cfg->strace)
		strace_exit(how);
	/* What KVM counts of a vCPU can't be had while that runs: KVM's call would wait for it, killable alone. */
	if (pvm.cfg->stats)
		stats_end(pvm.nr_threads < 2 || (self && update_stop_for_good(self)));
	if (pvm.cfg->stats && !pvm.is_child)
		stats_write(pvm.cfg->stats_file);
}

_Noreturn void pvm_exit_group(int status)
{
	coredump_wait();
	if (my_pid() == pvm.pid && __atomic_exchange_n(&ending, 1, __ATOMIC_SEQ_CST))
		for (;;) /* another thread was first: its status counts, and the end is near */
			host_call(SYS_pause, 0, 0, 0, 0, 0, 0);
	sig_block_all();
	batch_end();
	dgram_end();
	thread_release_all();
	text_note_family();
	pipe_exit();
	spare_exit();
	report_end("exited with %d", status & 0xff);
	for (;;)
		host_call(SYS_exit_group, status, 0, 0, 0, 0, 0);
}

_Noreturn void pvm_die_by_signal(int sig)
{
	struct rlimit none = { 0, 0 };
	struct {
		void *handler;
		unsigned long flags;
		void *restorer;
		uint64_t mask;
	} dfl = { 0 };
	uint64_t empty = 0;
	if (self) {
		batch_end();
		dgram_end();
		coredump(sig);
		thread_release_all();
	}
	text_note_family();
	spare_exit();
	report_end("killed by signal %d", sig);
	/* The monitor's memory is no use as a core file of the program. */
	setrlimit(RLIMIT_CORE, &none);
	host_call(SYS_rt_sigaction, sig, (long)&dfl, 0, 8, 0, 0);
	host_call(SYS_tgkill, my_pid(), my_tid(), sig, 0, 0, 0);
	host_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&empty, 0, 8, 0, 0);
	for (;;) /* a signal whose default is to be ignored */
		host_call(SYS_exit_group, 128 + sig, 0, 0, 0, 0, 0);
}

_Noreturn void pvm_panic(const char *fmt, ...)
{
	char msg[800];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(msg, sizeof msg, fmt, ap);
	va_end(ap);
	kx_log(KX_LOG_ERROR, "pvm", "%s: the pVM is stopped", msg);
	report_end("stopped by the monitor with %d", 125);
	for (;;)
		host_call(SYS_exit_group, 125, 0, 0, 0, 0, 0);
}

/* ---- the start -------------------------------------------------------------------------------------------------- */

/* The greatest descriptor that is open; without /proc, what cannot be excluded. */
static unsigned fd_inherited(void)
{
	unsigned max = 0;
	DIR *d = opendir("/proc/self/fd");
	if (!d)
		return FD_LIMIT_MAX;
	for (struct dirent *e; (e = readdir(d));) {
		unsigned fd = (unsigned)atoi(e->d_name);
		max = fd > max ? fd : max;
	}
	closedir(d);
	return max;
}

static unsigned fd_inherited_end; /* no descriptor from here on was open when the monitor began */

static int fd_limit_init(struct kx_err *err)
{
	struct rlimit r;
	getrlimit(RLIMIT_NOFILE, &r);
	if (r.rlim_max < 256)
		return kx_err_set(err, EMFILE,
				  "open files: the hard limit of %llu is too low (raise `ulimit -Hn` to 1024)",
				  (unsigned long long)r.rlim_max);
	fd_inherited_end = fd_inherited() + 1;
	unsigned reserved = r.rlim_max > 4 * FD_RESERVED ? FD_RESERVED : r.rlim_max / 4;
	pvm.fd_max = r.rlim_max - reserved > FD_LIMIT_MAX ? FD_LIMIT_MAX : r.rlim_max - reserved;
	pvm.fd_limit = fd_inherited_end <= FD_LIMIT_FIRST && pvm.fd_max > FD_LIMIT_FIRST ? FD_LIMIT_FIRST : pvm.fd_max;
	if (r.rlim_cur > pvm.fd_max) {
		r.rlim_cur = pvm.fd_max;
		setrlimit(RLIMIT_NOFILE, &r);
	}
	return 0;
}

#define PAGES_OF(size) (((size) + 4095) & -4096ul)

int pvm_libos_apart(void)
{
	const size_t size = libos_image_end - libos_image;
	if (!pvm.shadow_paging)
		return 0;
	void *p = mmap(gva_ptr(KX_LIBOS_BASE), PAGES_OF(size), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED | MAP_POPULATE, -1, 0);
	if (p == MAP_FAILED)
		return -errno;
	memcpy(p, libos_image, size);
	return 0;
}

/*
 * Shared, never to be written again: a fork has nothing to do for it, and KVM nothing to drop. KVM's shadow page tables map
 * the neighbours of a page only where the host could write to them; the guest's can't, and no call may name what is there.
 * What the host's kernel writes by a list of robust locks, when a process has died (robust.h), must be seen by no other
 * process: pvm_libos_apart().
 */
static int libos_copy(size_t size, size_t vdso)
{
	const uint64_t keep = pvm.shadow_paging ? PAGES_OF(size) : 0;
	if (mmap(gva_ptr(KX_LIBOS_BASE), KX_VVAR_BASE - KX_LIBOS_BASE, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		return -errno;
	memcpy(gva_ptr(KX_LIBOS_BASE), libos_image, size);
	memcpy(gva_ptr(KX_VDSO_BASE), vdso_image, vdso);
	mprotect(gva_ptr(KX_LIBOS_BASE + keep), KX_VVAR_BASE - KX_LIBOS_BASE - keep, PROT_READ);
	return 0;
}

/* Where in its file the monitor's memory at p comes from; -1: from none. */
static off_t file_offset(const void *p)
{
	extern const char __ehdr_start[] __attribute__((visibility("hidden")));
	const char *base = __ehdr_start;
	const Elf64_Ehdr *eh = (const Elf64_Ehdr *)base;
	const Elf64_Phdr *ph = (const Elf64_Phdr *)(base + eh->e_phoff);
	const uint64_t at = (const char *)p - base; /* the monitor is linked to 0 */
	for (unsigned i = 0; i < eh->e_phnum; i++)
		if (ph[i].p_type == PT_LOAD && at >= ph[i].p_vaddr && at - ph[i].p_vaddr < ph[i].p_filesz)
			return (off_t)(at - ph[i].p_vaddr + ph[i].p_offset);
	return -1;
}

/* An image that the monitor carries, whole pages, as it is in the monitor's file: nobody copies it, and all pVMs have one. */
static int image_show(uint64_t gva, const uint8_t *image, size_t size)
{
	const off_t off = file_offset(image);
	if (off < 0 ||
	    mmap(gva_ptr(gva), PAGES_OF(size), PROT_READ, MAP_SHARED | MAP_FIXED, pvm.exe_fd, off) == MAP_FAILED)
		return off < 0 ? -ENOEXEC : -errno;
	return 0;
}

static int libos_show(size_t size, size_t vdso)
{
	if (mprotect(gva_ptr(KX_LIBOS_BASE), KX_VVAR_BASE - KX_LIBOS_BASE, PROT_READ))
		return -errno;
	const int r = image_show(KX_LIBOS_BASE, libos_image, size);
	return r ? r : image_show(KX_VDSO_BASE, vdso_image, vdso);
}

static int libos_load(struct kx_err *err)
{
	size_t size = libos_image_end - libos_image, vdso = vdso_image_end - vdso_image;
	if (size > KX_LIBOS_SIZE || vdso > KX_VVAR_BASE - KX_VDSO_BASE)
		return kx_err_set(err, EFBIG, "LibOS: the image does not fit (rebuild KylinX)");
	const int r = pvm.shadow_paging || pvm.exe_fd < 0 ? libos_copy(size, vdso) : libos_show(size, vdso);
	if (r)
		return kx_err_set(err, -r, "LibOS: no memory: %s (free some memory)", strerror(-r));
	memcpy(&pvm.libos, gva_ptr(KX_LIBOS_BASE), sizeof pvm.libos);
	if (pvm.libos.magic != KX_LIBOS_MAGIC || pvm.libos.version != KX_ABI_VERSION)
		return kx_err_set(err, EINVAL, "LibOS: the image is of another version (rebuild KylinX)");
	return 0;
}

static void shared_init(void)
{
	struct kx_shared *s = pvm.shared;
	s->version = KX_ABI_VERSION;
	s->pid = pvm.pid;
	s->ppid = getppid();
	s->uid = getuid();
	s->euid = geteuid();
	s->gid = getgid();
	s->egid = getegid();
	s->trace = pvm.cfg->strace;
	s->xfeatures = pvm.xcr0;
	s->xsave_size = pvm.xsave_size;
}

/* Size of the standard-format XSAVE area for the features in XCR0: SDM vol. 1, 13.2. */
static unsigned xsave_bytes(uint64_t xcr0)
{
	unsigned size = 576;
	for (unsigned i = 0; i < pvm.cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &pvm.cpuid->entries[i];
		if (e->function == 0xd && e->index >= 2 && e->index < 63 && (xcr0 >> e->index & 1) &&
		    e->ebx + e->eax > size)
			size = e->ebx + e->eax;
	}
	return size;
}

/* The first n of those that this process may use: fewer when it has fewer. */
static void cpus_limit(int n)
{
	cpu_set_t all;
	CPU_ZERO(&pvm.cpus);
	if (n <= 0 || sched_getaffinity(0, sizeof all, &all))
		return;
	for (int i = 0, left = n; i < CPU_SETSIZE && left; i++)
		if (CPU_ISSET(i, &all)) {
			CPU_SET(i, &pvm.cpus);
			left--;
		}
	sched_setaffinity(0, sizeof pvm.cpus, &pvm.cpus);
}

static const char *env_get(char **envp, const char *name)
{
	size_t n = strlen(name);
	for (; *envp; envp++)
		if (!strncmp(*envp, name, n) && (*envp)[n] == '=')
			return *envp + n + 1;
	return NULL;
}

static int machine_init(struct kx_err *err)
{
	int r = vm_features(err);
	if (r)
		return r;
	pvm.xsave_size = xsave_bytes(pvm.xcr0);
	if ((r = vm_create(err)) || (r = gmem_init(err)) || (r = futexes_init(err)) || (r = libos_load(err)))
		return r;
	shared_init();
	int khz = ioctl(pvm.kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GET_TSC_KHZ);
	struct thread *t = thread_first(err);
	if (!t)
		return -EIO;
	khz = khz > 0 ? ioctl(t->vcpu_fd, KVM_GET_TSC_KHZ, 0) : 0;
	if ((r = vcpu_cpuid_publish(t)))
		return kx_err_set(err, -r, "vCPU: cannot read its features: %s (use a current kernel)", strerror(-r));
	timepage_init(pvm.vvar, khz > 0 && tsc_is_host() && timepage_host_tsc(), khz > 0 ? khz : 0);
	return 0;
}

/*
 * Let the host's /proc/PID/cmdline and environ show the program's, wherever it changes them: the kernel reads them from
 * the guest's memory then. Not on kernels without CONFIG_CHECKPOINT_RESTORE: there they stay the monitor's.
 */
static void show_arguments(void)
{
	char text[1024];
	struct proc_stat s;
	fd_limit_lift();
	int fd = openat(pvm.proc_fd, "self/stat", O_RDONLY | O_CLOEXEC);
	fd_limit_drop();
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	bool known = !proc_stat_read(text, &s) && s.n >= 51;
	const uint64_t *f = s.f;
	struct prctl_mm_map map = { .start_code = f[26],
				    .end_code = f[27],
				    .start_data = f[45],
				    .end_data = f[46],
				    .start_brk = f[47],
				    .brk = (uint64_t)sbrk(0),
				    .start_stack = f[28],
				    .arg_start = (uint64_t)gva_ptr(pvm.arg_start),
				    .arg_end = (uint64_t)gva_ptr(pvm.arg_end),
				    .env_start = (uint64_t)gva_ptr(pvm.env_start),
				    .env_end = (uint64_t)gva_ptr(pvm.env_end),
				    .exe_fd = (uint32_t)-1 };
	pvm.args_shown = known && !prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof map, 0);
}

/* Everything is loaded: let the first thread run. */
static _Noreturn void start_program(const struct load_result *start, uint64_t mask)
{
	struct thread *t = self;
	struct kx_frame *f = frame_of(t);
	memset(f, 0, sizeof *f);
	f->rip = start->entry;
	f->rsp = start->sp;
	f->rflags = 0x202;
	f->orig_rax = -1ull;
	t->area->resume = start->entry;
	prctl(PR_SET_NAME, pvm.comm);
	show_arguments();
	t->area->sigmask = mask; /* inherited, as across exec */
	/* The first seed of its generator, which each C library asks for; when there is none yet, it waits for it. */
	if (host_call(SYS_getrandom, (long)t->area->rand_key, sizeof t->area->rand_key, GRND_NONBLOCK, 0, 0, 0) ==
	    sizeof t->area->rand_key)
		t->area->rand_gen = pvm.shared->fork_gen + 1;
	serve_init();
	sig_init();
	vcpu_start_state(t, 0);
	tsc_ask(t);
	vmend_hold();
	sig_thread_start(t, ~0ull);
	family_set_exe();
	libnext_start(pvm.cfg->envp);
	libstart_begin();
	vcpu_loop(t);
}

/* What a monitor has before the jail. */
static int monitor_init(const struct kx_config *cfg, struct kx_err *err)
{
	int r;
	pvm.start_ns = now_ns();
	pvm.cfg = cfg;
	pvm.pid = getpid();
	if ((r = limits_lift(err)) || (r = fd_limit_init(err)))
		return r;
	vmend_start();
	if ((r = vm_open(err)))
		return r;
	/* A descriptor of its own: the program may close 2 and open something else there. */
	int log_fd = fcntl(2, F_DUPFD_CLOEXEC, 3);
	if (log_fd >= 0)
		fd_keep(&pvm.log_fd, log_fd);
	kx_log_init(kx_log_level_find(cfg->log_level), pvm.log_fd, cfg->name);
	/* exec runs this program again, by this descriptor: it needs nothing of the view. */
	exec_init();
	int exe_fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	if (exe_fd >= 0)
		fd_keep(&pvm.exe_fd, exe_fd);
	return 0;
}

/* The call that strace(1) shows first. The environment is on the stack, behind the count, the arguments and a NULL. */
static void trace_start(const struct kx_config *cfg, const char *program, const struct load_result *start)
{
	uint64_t argc = 0;
	unsigned n = 0;
	while (cfg->envp[n])
		n++;
	guest_read(&argc, start->sp, sizeof argc);
	strace_start(self, program, cfg->argv, start->sp + 8 * (argc + 2), n);
}

/* What the starter has left open for the program. */
static int inherited_check(struct kx_err *err)
{
	for (int fd = 0; fd < (int)pvm.fd_limit && fd < (int)fd_inherited_end; fd++)
		if (fcntl(fd, F_GETFD) >= 0 && vfs_is_proc_dir(fd))
			return kx_err_set(err, EPERM,
					  "descriptor %d: a directory of the host's /proc (close it: by it the "
					  "program would reach out of its pVM)",
					  fd);
	return 0;
}

/* Zydis (tools/solink.c) was needed if a text was not in the store. It is had again from the page cache. */
static void decoder_drop(void)
{
	extern char solink_text[] __attribute__((weak)), solink_text_end[] __attribute__((weak));
	if (solink_text)
		madvise(solink_text, ((uintptr_t)solink_text_end - (uintptr_t)solink_text) & ~4095ul, MADV_DONTNEED);
}

/* In the view: find the program, load it, shut the door, run it. Returns only on failure. */
static int enter_program(const struct kx_config *cfg, struct kx_err *err)
{
	struct load_result start;
	char program[4096];
	uint64_t mask = 0;
	int r;
	vfs_init();
	admit_root_begin();
	futexes_view();
	futexes_inherited();
	limits_init();
	if ((r = inherited_check(err)) || (r = path_search(cfg->program, env_get(cfg->envp, "PATH"), program, err)) ||
	    (r = load_program(program, cfg->argv, cfg->envp, &start, err)))
		return r;
	decoder_drop();
	pvm.boot_ns[PVM_LOADED] = now_ns();
	host_call(SYS_rt_sigprocmask, SIG_BLOCK, 0, (long)&mask, 8, 0, 0);
	if ((r = seccomp_enter(err)))
		return r;
	pvm.boot_ns[PVM_STARTED] = now_ns();
	if (cfg->strace)
		trace_start(cfg, program, &start);
	start_program(&start, mask);
}

/* Patched texts are shared where that can be had. */
static void share_texts(int fd, int fd_ro)
{
	int r = text_init(fd, fd_ro);
	if (r)
		kx_log(KX_LOG_WARN, "text", "patched texts can't be shared: %s", strerror(-r));
}

/* What the program is known to map is stored before the jail closes. */
static void store_prepare(const struct kx_config *cfg)
{
	char found[4096], real[PATH_MAX];
	struct fsize limit;
	fsize_lift(&limit);
	if (cfg->root) /* which file of it a bare name stands for is not known yet */
		store_begin(cfg, *cfg->program == '/' ? cfg->program : NULL, admit_wants_copies());
	else if (!path_search(cfg->program, env_get(cfg->envp, "PATH"), found, NULL) && realpath(found, real))
		store_begin(cfg, real, admit_wants_copies());
	fsize_drop(&limit);
}

int pvm_run(const struct kx_config *cfg, struct kx_err *err)
{
	int r;
	if ((r = monitor_init(cfg, err)) || (r = admit_begin(cfg, err)) || (r = registry_add(cfg, err)) ||
	    (r = net_start(cfg, err)) || (r = family_init(-1, err)) || (r = family_enter(false)))
		return r;
	if (cfg->strace && (r = strace_init(cfg->strace_file)))
		return kx_err_set(err, -r,
				  "%s: cannot write the trace: %s (give --strace a file in a directory that exists)",
				  cfg->strace_file, strerror(-r));
	if (cfg->stats && (r = stats_init(cfg->stats_file)))
		return kx_err_set(err, -r,
				  "%s: cannot write statistics: %s (give --stats a file in a directory that exists)",
				  cfg->stats_file, strerror(-r));
	share_texts(-1, -1);
	update_init();
	store_prepare(cfg);
	if (cfg->stats)
		stats_begin();
	cpus_limit(cfg->cpus);
	pvm.boot_ns[PVM_PREPARED] = now_ns();
	if ((r = machine_init(err)))
		return r;
	pvm.boot_ns[PVM_MADE] = now_ns();
	if ((r = jail_enter(cfg, err)))
		return r;
	pvm.boot_ns[PVM_JAILED] = now_ns();
	registry_complete();
	return enter_program(cfg, err);
}

/* As for a child of a member: nothing may be above what the family was started with. */
static void limits_lower(const struct rlimit max[16])
{
	for (int i = 0; i < 16; i++) {
		struct rlimit r;
		if (getrlimit(i, &r))
			continue;
		if (r.rlim_max > max[i].rlim_max)
			r.rlim_max = max[i].rlim_max;
		if (r.rlim_cur > r.rlim_max)
			r.rlim_cur = r.rlim_max;
		setrlimit(i, &r);
	}
}

int pvm_join(const struct kx_config *cfg, const struct kx_join *join, struct kx_err *err)
{
	int r;
	limits_lower(join->limits);
	if ((r = monitor_init(cfg, err)))
		return r;
	pvm.is_child = true;
	const int fd = fd_hide(join->family);
	if (fd < 0 || fd_keep(&pvm.registry_fd, join->registry) || fd_keep(&pvm.proc_fd, join->proc))
		return kx_err_set(err, EMFILE, "exec: no descriptor left (raise `ulimit -n`)");
	update_adopt(join->update[0], join->update[1]);
	if ((r = admit_adopt(join->policy, err)) || (r = family_init(fd, err)))
		return r;
	share_texts(-1, -1);
	store_begin(cfg, NULL, false);
	store_join(join->member, join->member_proc);
	cpus_limit(cfg->cpus);
	if ((r = machine_init(err)) || (r = jail_join(join, err)))
		return r;
	close(join->member);
	close(join->member_proc);
	if ((r = family_enter(true)))
		return kx_err_set(err, -r, "exec: the family has as many processes as it can (end some)");
	return enter_program(cfg, err);
}

int pvm_resume(const struct kx_config *cfg, const struct exec_state *st, struct kvm_cpuid2 *cpuid, struct kx_err *err)
{
	struct load_result start;
	struct load_plan *plan;
	int r;
	pvm.cfg = cfg;
	pvm.pid = getpid();
	pvm.fd_limit = st->fd_limit;
	pvm.fd_max = st->fd_max;
	fd_limit_lift(); /* once for all that is opened */
	vm_adopt(st->kvm_fd, st->kvm_run_size, st->xcr0, cpuid);
	pvm.shadow_paging = st->shadow_paging;
	tsc_adopt(st->tsc);
	fd_keep(&pvm.proc_fd, st->proc_fd);
	if (st->exe_fd >= 0)
		fd_keep(&pvm.exe_fd, st->exe_fd);
	if (st->log_fd >= 0)
		fd_keep(&pvm.log_fd, st->log_fd);
	if (st->registry_fd >= 0)
		fd_keep(&pvm.registry_fd, st->registry_fd);
	vmend_adopt(st->vmend_fd);
	apart_import(st->apart);
	maps_known_import(st->known);
	pvm.is_child = st->is_child;
	pvm.has_family = st->has_family;
	pvm.start_ns = st->start_ns;
	pvm.nr_execs = st->nr_execs + 1;
	pvm.cpus = st->cpu_set;
	const int kept[] = { pvm.kvm_fd,       pvm.proc_fd,     pvm.exe_fd,     pvm.log_fd,
			     st->family_fd,    st->registry_fd, st->trace_fd,   st->stats_fd,
			     st->program_fd,   st->text_fd,     st->text_fd_ro, st->update_fd[0],
			     st->update_fd[1], st->store_fd,    st->policy_fd,  vmend_fd() };
	for (unsigned i = 0; i < sizeof kept / sizeof kept[0]; i++)
		if (kept[i] >= 0)
			fcntl(kept[i], F_SETFD, FD_CLOEXEC);
	kx_log_init(kx_log_level_find(cfg->log_level), pvm.log_fd, cfg->name);
	log_follow();
	if (cfg->strace)
		strace_adopt(st->trace_fd);
	store_adopt(st->store_fd);
	if (st->text_fd >= 0)
		share_texts(st->text_fd, st->text_fd_ro);
	update_adopt(st->update_fd[0], st->update_fd[1]);
	if ((r = admit_adopt(st->policy_fd, err)) || (r = family_init(st->family_fd, err)) || (r = machine_init(err)))
		return r;
	if (cfg->stats) {
		stats_adopt(st->stats_fd);
		stats_exec();
		if (st->was_vfork)
			stats_begin();
	}
	vfs_init();
	admit_root_adopt(&st->root);
	exec_init();
	futexes_view();
	futex_nap_exec();
	limits_import(st->limits);
	pipe_resume();
	ipc_resume();
	batch_exec_adopt(&st->accepted);
	r = load_prepare(cfg->program, st->program_fd, cfg->argv, cfg->envp, &plan, err);
	if (!r) {
		r = load_commit(plan, &start, err);
		load_free(plan);
	}
	if (r)
		return r;
	if (st->program_fd >= 0)
		close(st->program_fd);
	fd_limit_drop();
	setrlimit(RLIMIT_NOFILE, &st->limits[RLIMIT_NOFILE]);
	if (st->held)
		sig_carry(self, st->held, (const char *)cpuid + st->cpuid_bytes);
	start_program(&start, st->sigmask);
}
