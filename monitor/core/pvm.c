/* SPDX-License-Identifier: Apache-2.0 */
#include "pvm.h"
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
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../cli/cli.h"
#include "../../util/log.h"
#include "exec.h"
#include "family.h"
#include "gmem.h"
#include "jail.h"
#include "load.h"
#include "seccomp.h"
#include "sig.h"
#include "stats.h"
#include "strace.h"
#include "thread.h"
#include "timepage.h"
#include "vcpu.h"
#include "vfs.h"

/* Descriptors from this number on are the monitor's. A descriptor table is as long as its largest number, and a
 * fork copies it, so no more than programs need: those that raise their limit ask for some ten thousand. */
#define FD_LIMIT_MAX 65536u
#define FD_RESERVED 1024u

struct pvm pvm = { .mm_lock = PTHREAD_MUTEX_INITIALIZER,
		   .thr_lock = PTHREAD_MUTEX_INITIALIZER,
		   .proc_fd = -1,
		   .kvm_fd = -1,
		   .vm_fd = -1,
		   .exe_fd = -1,
		   .log_fd = -1,
		   .family_fd = -1 };
__thread struct thread *self;

extern const uint8_t libos_image[], libos_image_end[], vdso_image[], vdso_image_end[];
void limits_init(void);
void limits_import(const struct rlimit in[16]);

/* ---- the end -------------------------------------------------------------------------------------------------- */

static void report_end(const char *fmt, int n)
{
	char how[64];
	static int once;
	if (my_pid() != pvm.pid) /* a child of vfork: the memory is its parent's */
		return;
	if (__atomic_exchange_n(&once, 1, __ATOMIC_SEQ_CST))
		return;
	snprintf(how, sizeof how, fmt, n);
	if (pvm.cfg->strace)
		strace_exit(how);
	if (pvm.cfg->stats && !pvm.is_child)
		stats_write(pvm.cfg->stats_file);
}

_Noreturn void pvm_exit_group(int status)
{
	static int ending;
	if (my_pid() == pvm.pid && __atomic_exchange_n(&ending, 1, __ATOMIC_SEQ_CST))
		for (;;) /* another thread was first: its status counts, and the end is near */
			host_call(SYS_pause, 0, 0, 0, 0, 0, 0);
	sig_block_all();
	thread_release_all();
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
	if (self)
		thread_release_all();
	report_end("killed by signal %d", sig);
	/* The monitor's memory is no use as a core file of the program. */
	setrlimit(RLIMIT_CORE, &none);
	host_call(SYS_rt_sigaction, sig, (long)&dfl, 0, 8, 0, 0);
	host_call(SYS_tgkill, my_pid(), host_call(SYS_gettid, 0, 0, 0, 0, 0, 0), sig, 0, 0, 0);
	host_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&empty, 0, 8, 0, 0);
	for (;;) /* a signal whose default is to be ignored */
		host_call(SYS_exit_group, 128 + sig, 0, 0, 0, 0, 0);
}

_Noreturn void pvm_panic(const char *fmt, ...)
{
	char msg[256];
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

static int fd_limit_init(struct kx_err *err)
{
	struct rlimit r;
	getrlimit(RLIMIT_NOFILE, &r);
	if (r.rlim_max < 256)
		return kx_err_set(err, EMFILE,
				  "open files: the hard limit of %llu is too low (raise `ulimit -Hn` to 1024)",
				  (unsigned long long)r.rlim_max);
	unsigned reserved = r.rlim_max > 4 * FD_RESERVED ? FD_RESERVED : r.rlim_max / 4;
	pvm.fd_limit = r.rlim_max - reserved > FD_LIMIT_MAX ? FD_LIMIT_MAX : r.rlim_max - reserved;
	if (r.rlim_cur > pvm.fd_limit) {
		r.rlim_cur = pvm.fd_limit;
		setrlimit(RLIMIT_NOFILE, &r);
	}
	return 0;
}

static int libos_load(struct kx_err *err)
{
	size_t size = libos_image_end - libos_image, vdso = vdso_image_end - vdso_image;
	if (size > KX_LIBOS_SIZE || vdso > KX_VVAR_BASE - KX_VDSO_BASE)
		return kx_err_set(err, EFBIG, "LibOS: the image does not fit (rebuild KylinX)");
	memcpy(gva_ptr(KX_LIBOS_BASE), libos_image, size);
	memcpy(gva_ptr(KX_VDSO_BASE), vdso_image, vdso);
	mprotect(gva_ptr(KX_LIBOS_BASE), KX_VVAR_BASE - KX_LIBOS_BASE, PROT_READ);
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

static void cpus_limit(int n)
{
	cpu_set_t all, some;
	CPU_ZERO(&some);
	if (n <= 0 || sched_getaffinity(0, sizeof all, &all))
		return;
	for (int i = 0, left = n; i < CPU_SETSIZE && left; i++)
		if (CPU_ISSET(i, &all)) {
			CPU_SET(i, &some);
			left--;
		}
	sched_setaffinity(0, sizeof some, &some);
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
	int r;
	pvm.xsave_size = xsave_bytes(pvm.xcr0);
	if ((r = vm_create(err)) || (r = gmem_init(err)) || (r = libos_load(err)))
		return r;
	shared_init();
	int khz = ioctl(pvm.kvm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GET_TSC_KHZ);
	struct thread *t = thread_first(err);
	if (!t)
		return -EIO;
	khz = khz > 0 ? ioctl(t->vcpu_fd, KVM_GET_TSC_KHZ, 0) : 0;
	if ((r = vcpu_cpuid_publish(t)))
		return kx_err_set(err, -r, "vCPU: cannot read its features: %s (use a current kernel)", strerror(-r));
	timepage_init(pvm.vvar, khz > 0 && timepage_host_tsc(), khz > 0 ? khz : 0);
	return 0;
}

/* Everything is loaded: let the first thread run. Returns only on failure. */
static int start_program(const struct load_result *start, uint64_t mask, struct kx_err *err)
{
	struct thread *t = self;
	struct kx_frame *f = gva_ptr(t->area_gva + KX_AREA_SIZE - sizeof *f);
	memset(f, 0, sizeof *f);
	f->rip = start->entry;
	f->rsp = start->sp;
	f->rflags = 0x202;
	f->orig_rax = -1ull;
	t->area->resume = start->entry;
	prctl(PR_SET_NAME, pvm.comm);
	t->area->sigmask = mask; /* inherited, as across exec */
	sig_init();
	int r = vcpu_start_state(t, 0);
	if (r)
		return kx_err_set(err, -r, "vCPU: cannot be set up: %s (use a current kernel)", strerror(-r));
	sig_thread_start(t);
	vcpu_loop(t);
	pvm_panic("the first thread left its loop");
}

int pvm_run(const struct kx_config *cfg, struct kx_err *err)
{
	struct load_result start;
	char program[4096];
	struct timespec now;
	int r;
	clock_gettime(CLOCK_MONOTONIC, &now);
	pvm.start_ns = now.tv_sec * 1000000000ull + now.tv_nsec;
	pvm.cfg = cfg;
	pvm.pid = getpid();
	if ((r = fd_limit_init(err)) || (r = vm_open(err)))
		return r;
	/* A descriptor of its own: the program may close 2 and open something else there. */
	int log_fd = fcntl(2, F_DUPFD_CLOEXEC, 3);
	pvm.log_fd = log_fd < 0 ? -1 : fd_hide(log_fd);
	kx_log_init(kx_log_level_find(cfg->log_level), pvm.log_fd, cfg->name);
	/* exec runs this program again, by this descriptor; its libraries come from the view, so the view must be the
	 * host's own. */
	if (!cfg->root && (pvm.exe_fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC)) >= 0)
		pvm.exe_fd = fd_hide(pvm.exe_fd);
	if ((r = family_init(-1, err)) || (r = family_add(pvm.pid)))
		return r;
	if (cfg->strace && (r = strace_init(cfg->strace_file)))
		return kx_err_set(err, -r,
				  "%s: cannot write the trace: %s (give --strace a file in a directory that exists)",
				  cfg->strace_file, strerror(-r));
	if (cfg->stats && (r = stats_init(cfg->stats_file)))
		return kx_err_set(err, -r,
				  "%s: cannot write statistics: %s (give --stats a file in a directory that exists)",
				  cfg->stats_file, strerror(-r));
	cpus_limit(cfg->cpus);
	if ((r = machine_init(err)) || (r = jail_enter(cfg, err)))
		return r;
	vfs_init();
	limits_init();
	if ((r = path_search(cfg->program, env_get(cfg->envp, "PATH"), program, err)) ||
	    (r = load_program(program, cfg->argv, cfg->envp, &start, err)))
		return r;
	uint64_t mask = 0;
	host_call(SYS_rt_sigprocmask, SIG_BLOCK, 0, (long)&mask, 8, 0, 0);
	if ((r = seccomp_enter(err)))
		return r;
	return start_program(&start, mask, err);
}

int pvm_resume(const struct kx_config *cfg, const struct exec_state *st, struct kx_err *err)
{
	struct load_result start;
	struct load_plan *plan;
	int r;
	pvm.cfg = cfg;
	pvm.pid = getpid();
	pvm.kvm_fd = st->kvm_fd;
	pvm.proc_fd = st->proc_fd;
	pvm.exe_fd = st->exe_fd;
	pvm.log_fd = st->log_fd;
	pvm.fd_limit = st->fd_limit;
	pvm.is_child = st->is_child;
	const int kept[] = { pvm.kvm_fd,    pvm.proc_fd,  pvm.exe_fd,    pvm.log_fd,
			     st->family_fd, st->trace_fd, st->program_fd };
	for (unsigned i = 0; i < sizeof kept / sizeof kept[0]; i++)
		if (kept[i] >= 0)
			fcntl(kept[i], F_SETFD, FD_CLOEXEC);
	kx_log_init(kx_log_level_find(cfg->log_level), pvm.log_fd, cfg->name);
	if (cfg->strace)
		strace_adopt(st->trace_fd);
	if ((r = family_init(st->family_fd, err)) || (r = vm_open(err)) || (r = machine_init(err)))
		return r;
	vfs_init();
	limits_import(st->limits);
	r = load_prepare(cfg->program, st->program_fd, cfg->argv, cfg->envp, &plan, err);
	if (!r) {
		r = load_commit(plan, &start, err);
		load_free(plan);
	}
	if (r)
		return r;
	if (st->program_fd >= 0)
		close(st->program_fd);
	setrlimit(RLIMIT_NOFILE, &st->limits[RLIMIT_NOFILE]);
	return start_program(&start, st->sigmask, err);
}
