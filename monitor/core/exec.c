/* SPDX-License-Identifier: Apache-2.0 */
#include "exec.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include "../../util/log.h"
#include "fsize.h"
#include "hcall.h"
#include "keeper.h"
#include "load.h"
#include "sig.h"
#include "spare.h"
#include "stats.h"
#include "strace.h"
#include "text.h"
#include "store.h"
#include "update.h"
#include "thread.h"
#include "tsc.h"
#include "vmend.h"

#define EXEC_MAGIC 0x6378784bu
#define STRINGS_MAX (8u << 20) /* bytes of arguments and environment; load.c has the exact limit */
#define STRINGS_MIN 8192
#define POINTERS_MAX (1u << 20)

/* ---- arguments from the guest ------------------------------------------------------------------------------------ */

struct strings {
	char *buf;
	size_t len, cap;
	char **v;
	unsigned n, cap_v;
};

static void strings_free(struct strings *s)
{
	free(s->buf);
	free(s->v);
}

static int strings_room(struct strings *s, size_t extra)
{
	if (s->len + extra <= s->cap)
		return 0;
	size_t cap = s->cap ? s->cap * 2 : STRINGS_MIN;
	while (cap < s->len + extra)
		cap *= 2;
	if (cap > 2 * STRINGS_MAX)
		return -E2BIG;
	char *p = realloc(s->buf, cap);
	if (!p)
		return -ENOMEM;
	s->buf = p;
	s->cap = cap;
	return 0;
}

/* Append one string of the guest's. */
static int strings_add(struct strings *s, uint64_t gva)
{
	for (size_t done = 0;;) {
		size_t part = 4096 - (gva + done) % 4096;
		int r = strings_room(s, part);
		if (r)
			return r;
		if (guest_read(s->buf + s->len, gva + done, part))
			return -EFAULT;
		char *end = memchr(s->buf + s->len, 0, part);
		if (end) {
			s->len = end - s->buf + 1;
			s->n++;
			return 0;
		}
		s->len += part;
		done += part;
		if (done > LOAD_STRING_MAX || s->len > STRINGS_MAX)
			return -E2BIG;
	}
}

/* A NULL-terminated array of pointers; NULL itself is an empty one, as on Linux. */
static int strings_read(struct strings *s, uint64_t gva)
{
	for (uint64_t i = 0; gva; i++) {
		uint64_t p;
		if (i >= POINTERS_MAX)
			return -E2BIG;
		if (guest_read(&p, gva + 8 * i, sizeof p))
			return -EFAULT;
		if (!p)
			break;
		int r = strings_add(s, p);
		if (r)
			return r;
	}
	s->v = calloc(s->n + 2, sizeof *s->v);
	if (!s->v)
		return -ENOMEM;
	char *p = s->buf;
	for (unsigned i = 0; i < s->n; i++, p += strlen(p) + 1)
		s->v[i] = p;
	return 0;
}

/* ---- leaving ----------------------------------------------------------------------------------------------------- */

void limits_export(struct rlimit out[16]);
void limits_import(const struct rlimit in[16]);

static int write_all(int fd, const void *p, size_t n)
{
	while (n) {
		ssize_t w = write(fd, p, n);
		if (w <= 0)
			return w < 0 ? -errno : -EIO;
		p = (const char *)p + w;
		n -= w;
	}
	return 0;
}

/*
 * For the next monitor, which believes it. The memory file has had a low number for a moment, and another thread's child
 * may have it, too: from here on nobody can change it, and what it holds is what was written.
 */
static int state_seal(int fd, const struct iovec *v, unsigned n)
{
	char buf[4096];
	off_t at = 0;
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL))
		return -errno;
	for (unsigned i = 0; i < n; i++)
		for (size_t done = 0, part; done < v[i].iov_len; done += part, at += part) {
			part = v[i].iov_len - done < sizeof buf ? v[i].iov_len - done : sizeof buf;
			if (pread(fd, buf, part, at) != (ssize_t)part ||
			    memcmp(buf, (const char *)v[i].iov_base + done, part))
				return -EAGAIN;
		}
	return 0;
}

static int state_write(const char *program, int program_fd, const struct strings *argv, const struct strings *envp,
		       struct thread *t, const struct batch_handed *accepted)
{
	struct exec_state st = { .magic = EXEC_MAGIC,
				 .size = sizeof st,
				 .kvm_fd = pvm.kvm_fd,
				 .proc_fd = pvm.proc_fd,
				 .exe_fd = pvm.exe_fd,
				 .family_fd = pvm.family_fd,
				 .registry_fd = pvm.registry_fd,
				 .log_fd = pvm.log_fd,
				 .trace_fd = pvm.cfg->strace ? strace_fd() : -1,
				 .stats_fd = pvm.is_child || t->pid != pvm.pid ? -1 : stats_fd(),
				 .program_fd = program_fd,
				 .fd_limit = pvm.fd_limit,
				 .fd_max = pvm.fd_max,
				 .argc = argv->n,
				 .envc = envp->n,
				 .memory = pvm.cfg->memory,
				 .sigmask = t->area->sigmask,
				 .held = t->held,
				 .start_ns = pvm.start_ns,
				 .cpus = pvm.cfg->cpus,
				 .nr_execs = pvm.nr_execs,
				 .cpu_set = pvm.cpus,
				 .strace = pvm.cfg->strace,
				 .stats = pvm.cfg->stats,
				 .io = (uint8_t)pvm.cfg->io,
				 .is_child = pvm.is_child || t->pid != pvm.pid,
				 .was_vfork = t->pid != pvm.pid,
				 .has_family = pvm.has_family || t->pid != pvm.pid,
				 .log_level = kx_log_level_find(pvm.cfg->log_level) };
	const char *name = pvm.cfg->name ? pvm.cfg->name : "";
	st.xcr0 = pvm.xcr0;
	st.shadow_paging = pvm.shadow_paging;
	st.tsc = tsc_state();
	st.kvm_run_size = pvm.kvm_run_size;
	st.text_fd = text_fd();
	st.text_fd_ro = text_fd_ro();
	st.update_fd[0] = update_fd(0);
	st.update_fd[1] = update_fd(1);
	st.store_fd = store_fd();
	st.policy_fd = admit_fd();
	st.vmend_fd = vmend_fd();
	apart_export(st.apart);
	maps_known_export(st.known);
	st.root = *admit_root();
	st.accepted = *accepted;
	st.cpuid_bytes = sizeof *pvm.cpuid + pvm.cpuid->nent * sizeof pvm.cpuid->entries[0];
	limits_export(st.limits);
	fd_limit_kept(&st.limits[RLIMIT_NOFILE]);
	int fd = memfd_create("kylinx-exec", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	if ((fd = fd_hide(fd)) < 0)
		return fd;
	const struct iovec parts[] = {
		{ &st, sizeof st },
		{ pvm.cpuid, st.cpuid_bytes },
		{ t->held_info, st.held ? sizeof t->held_info : 0 },
		{ (char *)name, strlen(name) + 1 },
		{ (char *)program, strlen(program) + 1 },
		{ argv->buf, argv->len },
		{ envp->buf, envp->len },
	};
	const unsigned n = sizeof parts / sizeof parts[0];
	int r = 0;
	struct fsize limit;
	fsize_lift(&limit);
	for (unsigned i = 0; i < n && !r; i++)
		r = write_all(fd, parts[i].iov_base, parts[i].iov_len);
	fsize_drop(&limit);
	if (!r)
		r = state_seal(fd, parts, n);
	if (r)
		close(fd);
	return r ? r : fd;
}

static void keep(int fd)
{
	if (fd >= 0)
		fcntl(fd, F_SETFD, 0);
}

/* Signals that were accepted but not delivered belong to the new program; the host, or its monitor's state, has them meanwhile. */
static void give_signals_back(struct thread *t)
{
	sig_block_everything();
	sig_give_back(t, true);
}

static int64_t leave(struct thread *t, const char *program, int program_fd, const struct strings *argv,
		     const struct strings *envp)
{
	char number[16];
	struct batch_handed accepted;
	batch_exec_begin(&accepted);
	give_signals_back(t);
	int fd = state_write(program, program_fd, argv, envp, t, &accepted);
	if (fd < 0) {
		batch_exec_failed(&accepted);
		sig_thread_start(t, ~0ull);
		return fd;
	}
	snprintf(number, sizeof number, "%d", fd);
	char *const av[] = { (char *)EXEC_NAME, number, NULL }, *const ev[] = { NULL };
	const int kept[] = { fd,
			     text_fd(),
			     text_fd_ro(),
			     update_fd(0),
			     update_fd(1),
			     store_fd(),
			     admit_fd(),
			     vmend_fd(),
			     pvm.kvm_fd,
			     pvm.proc_fd,
			     pvm.exe_fd,
			     pvm.family_fd,
			     pvm.registry_fd,
			     pvm.log_fd,
			     program_fd,
			     pvm.cfg->strace ? strace_fd() : -1,
			     pvm.is_child || t->pid != pvm.pid ? -1 : stats_fd() };
	for (unsigned i = 0; i < sizeof kept / sizeof kept[0]; i++)
		keep(kept[i]);
	spare_remove();
	thread_release_guest(t, t->pid == pvm.pid, true);
	if (pvm.cfg->stats && t->pid == pvm.pid)
		stats_flush(pvm.nr_threads < 2); /* of vCPUs that run KVM tells nothing */
	/* An update has lent threads ways of being scheduled, and takes them back. */
	bool alone = !is_vfork_child();
	if (alone)
		update_fork_prepare();
	long r = host_call(SYS_execveat, pvm.exe_fd, (long)"", (long)av, (long)ev, AT_EMPTY_PATH, 0);
	if (alone)
		update_fork_done();
	for (unsigned i = 0; i < sizeof kept / sizeof kept[0]; i++)
		if (kept[i] >= 0)
			fcntl(kept[i], F_SETFD, FD_CLOEXEC);
	close(fd);
	batch_exec_failed(&accepted);
	sig_thread_start(t, ~0ull);
	return r;
}

/* The program by descriptor: what is named relative to a directory, or the descriptor itself. -1: by path. */
static int program_descriptor(struct hcall *c, const char *path, int flags)
{
	int dirfd = (int)c->host[0], fd;
	if (!*path) {
		if (!(flags & AT_EMPTY_PATH))
			return -ENOENT;
		fd = fcntl(dirfd, F_DUPFD_CLOEXEC, 3);
	} else {
		struct stat st;
		if (flags & AT_SYMLINK_NOFOLLOW && !fstatat(dirfd, path, &st, AT_SYMLINK_NOFOLLOW) &&
		    S_ISLNK(st.st_mode))
			return -ELOOP;
		if (*path == '/' || dirfd == AT_FDCWD)
			return -1;
		fd = openat(dirfd, path, O_PATH | O_CLOEXEC);
	}
	return fd < 0 ? -errno : fd_hide(fd);
}

#ifdef KX_DYNAMIC
/*
 * A monitor with sanitizers has a dynamic linker and libraries, which the host would take from the view: so there is no
 * exec where those aren't the host's.
 */
static struct stat host_loader;

static bool loader_stat(struct stat *st) { return !stat("/lib64/ld-linux-x86-64.so.2", st); }

void exec_init(void)
{
	if (!loader_stat(&host_loader))
		host_loader.st_ino = 0;
}

static bool loader_is_host(void)
{
	struct stat st;
	return loader_stat(&st) && st.st_dev == host_loader.st_dev && st.st_ino == host_loader.st_ino;
}
#else
void exec_init(void) {}
static bool loader_is_host(void) { return true; } /* the monitor has none */
#endif

int64_t hc_execve(struct hcall *c)
{
	bool at = c->nr == SYS_execveat;
	int pi = at ? 1 : 0, flags = at ? (int)c->arg[4] : 0, fd = -1;
	const char *path = (const char *)c->host[pi];
	struct strings argv = { 0 }, envp = { 0 };
	struct load_plan *plan = NULL;
	struct kx_err err = { 0 };
	int64_t r;
	if (flags & ~(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW))
		return -EINVAL;
	if (pvm.exe_fd < 0 || !loader_is_host())
		return -ENOSYS;
	if (c->proc[pi]) {
		if (strcmp(c->proc[pi], "self/exe"))
			return -EACCES;
		path = pvm.exe;
	} else if (!at && !*path) {
		return -ENOENT;
	}
	fd_limit_lift();
	if (!c->proc[pi] && at && (fd = program_descriptor(c, path, flags)) < -1) {
		r = fd;
		goto out;
	}
	if ((r = strings_read(&argv, c->arg[pi + 1])) || (r = strings_read(&envp, c->arg[pi + 2])))
		goto out;
	if (!argv.n) { /* as Linux since 5.18: an empty argv becomes one empty string */
		if ((r = strings_room(&argv, 1)))
			goto out;
		argv.buf[argv.len++] = 0;
		argv.v[argv.n++] = argv.buf;
	}
	char name[PATH_MAX + 32];
	if (fd >= 0) {
		snprintf(name, sizeof name, "/dev/fd/%d%s%s", (int)c->arg[0], *path ? "/" : "", path);
		path = name;
	}
	r = load_prepare(path, fd, argv.v, envp.v, &plan, &err);
	if (r) {
		kx_log(KX_LOG_INFO, "exec", "%s", err.msg);
		goto out;
	}
	bool script = load_is_script(plan);
	load_free(plan);
	/* The interpreter will not find it: as on Linux, that is told now. */
	if (fd >= 0 && script && fcntl((int)c->arg[0], F_GETFD) & FD_CLOEXEC) {
		r = -ENOENT;
		goto out;
	}
	if (pvm.cfg->strace)
		strace_call(c->t, c->row, c->nr, c->arg, 0, KX_PATH_MONITOR, 0);
	r = leave(c->t, path, fd, &argv, &envp);
out:
	if (fd >= 0)
		close(fd);
	strings_free(&argv);
	strings_free(&envp);
	fd_limit_drop();
	return r;
}

/* ---- arriving ---------------------------------------------------------------------------------------------------- */

int pvm_resume(const struct kx_config *cfg, const struct exec_state *st, struct kvm_cpuid2 *cpuid, struct kx_err *err);

int exec_resume(int fd, struct kx_err *err)
{
	static struct kx_config cfg;
	struct stat sb;
	if (fstat(fd, &sb) || sb.st_size < (off_t)sizeof(struct exec_state))
		return kx_err_set(err, EINVAL, EXEC_NAME ": for the monitor's own use (run `kylinx run`)");
	char *p = mmap(NULL, sb.st_size + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (p == MAP_FAILED)
		return kx_err_set(err, errno, "exec: cannot read the state: %s (free some memory)", strerror(errno));
	const struct exec_state *st = (const struct exec_state *)p;
	if (st->magic != EXEC_MAGIC || st->size != sizeof *st)
		return kx_err_set(err, EINVAL, EXEC_NAME ": state of another version (run `kylinx run`)");
	close(fd);
	struct kvm_cpuid2 *cpuid = (struct kvm_cpuid2 *)(p + sizeof *st);
	char *s = p + sizeof *st + st->cpuid_bytes + (st->held ? sizeof self->held_info : 0);
	cfg.name = *s ? s : NULL;
	s += strlen(s) + 1;
	cfg.program = s;
	s += strlen(s) + 1;
	char **v = calloc((size_t)st->argc + st->envc + 2, sizeof *v);
	if (!v)
		return kx_err_set(err, ENOMEM, "exec: no memory (free some)");
	cfg.argv = v;
	for (unsigned i = 0; i < st->argc; i++, s += strlen(s) + 1)
		*v++ = s;
	*v++ = NULL;
	cfg.envp = v;
	for (unsigned i = 0; i < st->envc; i++, s += strlen(s) + 1)
		*v++ = s;
	static const char *const levels[] = { "error", "warn", "info", "debug" };
	cfg.memory = st->memory;
	cfg.cpus = st->cpus;
	cfg.strace = st->strace;
	cfg.stats = st->stats;
	cfg.io = st->io;
	cfg.log_level = levels[st->log_level & 3];
	return pvm_resume(&cfg, st, cpuid, err);
}
