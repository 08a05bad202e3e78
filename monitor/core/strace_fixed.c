/* SPDX-License-Identifier: Apache-2.0 */
/* See strace_priv.h: structures of fixed size. */
#include "strace_priv.h"
#include <inttypes.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/timex.h>
#include <sys/utsname.h>
#include "strace_names.h"

static void put_sigset(struct line *l, uint64_t set)
{
	const char *sep = "";
	unsigned s;

	/* As strace: what is missing, when that is shorter. */
	puts_(l, __builtin_popcountll(set) >= 32 ? "~[" : "[");
	if (__builtin_popcountll(set) >= 32)
		set = ~set;
	for (s = 1; s <= 64; s++) {
		if (!(set >> (s - 1) & 1))
			continue;
		puts_(l, sep);
		put_sigabbrev(l, s);
		sep = " ";
	}
	puts_(l, "]");
}

static void f_sigset(struct line *l, const void *p) { put_sigset(l, *(const uint64_t *)p); }

static void f_i32(struct line *l, const void *p) { put(l, "[%d]", *(const int32_t *)p); }

static void f_u64(struct line *l, const void *p) { put(l, "[%" PRId64 "]", *(const int64_t *)p); }

static void f_addr(struct line *l, const void *p) { put(l, "[%#" PRIx64 "]", *(const uint64_t *)p); }

static void f_two_fds(struct line *l, const void *p)
{
	const int32_t *fd = p;

	put(l, "[%d, %d]", fd[0], fd[1]);
}

static void f_timespec(struct line *l, const void *p)
{
	const struct timespec *ts = p;

	if (ts->tv_nsec == UTIME_NOW)
		puts_(l, "UTIME_NOW");
	else if (ts->tv_nsec == UTIME_OMIT)
		puts_(l, "UTIME_OMIT");
	else
		put(l, "{tv_sec=%ld, tv_nsec=%ld}", ts->tv_sec, ts->tv_nsec);
}

static void f_timespec2(struct line *l, const void *p)
{
	puts_(l, "[");
	f_timespec(l, p);
	puts_(l, ", ");
	f_timespec(l, (const struct timespec *)p + 1);
	puts_(l, "]");
}

static void f_timeval(struct line *l, const void *p)
{
	const struct timeval *tv = p;

	put(l, "{tv_sec=%ld, tv_usec=%ld}", tv->tv_sec, tv->tv_usec);
}

static void f_timeval2(struct line *l, const void *p)
{
	puts_(l, "[");
	f_timeval(l, p);
	puts_(l, ", ");
	f_timeval(l, (const struct timeval *)p + 1);
	puts_(l, "]");
}

static void f_itimerspec(struct line *l, const void *p)
{
	puts_(l, "{it_interval=");
	f_timespec(l, p);
	puts_(l, ", it_value=");
	f_timespec(l, (const struct timespec *)p + 1);
	puts_(l, "}");
}

static void f_itimerval(struct line *l, const void *p)
{
	puts_(l, "{it_interval=");
	f_timeval(l, p);
	puts_(l, ", it_value=");
	f_timeval(l, (const struct timeval *)p + 1);
	puts_(l, "}");
}

static void f_stat(struct line *l, const void *p)
{
	const struct stat *st = p;

	puts_(l, "{st_mode=");
	put_mode(l, st->st_mode);
	if (S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode))
		put(l, ", st_rdev=makedev(%#x, %#x), ...}", (unsigned)(st->st_rdev >> 8 & 0xfff),
		    (unsigned)((st->st_rdev & 0xff) | (st->st_rdev >> 12 & 0xfff00)));
	else
		put(l, ", st_size=%ld, ...}", (long)st->st_size);
}

static void f_statx(struct line *l, const void *p)
{
	const struct statx *st = p;

	puts_(l, "{stx_mask=");
	put_set(l, &ss_statx, st->stx_mask);
	puts_(l, ", stx_attributes=");
	put_set(l, &ss_statx_attr, st->stx_attributes);
	puts_(l, ", stx_mode=");
	put_mode(l, st->stx_mode);
	put(l, ", stx_size=%" PRIu64 ", ...}", (uint64_t)st->stx_size);
}

static void f_sigaction(struct line *l, const void *p)
{
	const struct kx_sigaction *sa = p;

	puts_(l, "{sa_handler=");
	if (sa->handler == (uintptr_t)SIG_DFL)
		puts_(l, "SIG_DFL");
	else if (sa->handler == (uintptr_t)SIG_IGN)
		puts_(l, "SIG_IGN");
	else
		put(l, "%#" PRIx64, sa->handler);
	puts_(l, ", sa_mask=");
	put_sigset(l, sa->mask);
	puts_(l, ", sa_flags=");
	put_set(l, &ss_sa, sa->flags);
	if (sa->flags & 0x04000000)
		put(l, ", sa_restorer=%#" PRIx64, sa->restorer);
	puts_(l, "}");
}

static void f_altstack(struct line *l, const void *p)
{
	const stack_t *ss = p;

	puts_(l, "{ss_sp=");
	put_ptr(l, (uintptr_t)ss->ss_sp);
	puts_(l, ", ss_flags=");
	put_set(l, &ss_ss, (unsigned)ss->ss_flags);
	put(l, ", ss_size=%zu}", ss->ss_size);
}

static void put_rlim(struct line *l, uint64_t v)
{
	if (v == ~0ull)
		puts_(l, "RLIM64_INFINITY");
	else if (v > 1024 && v % 1024 == 0)
		put(l, "%" PRIu64 "*1024", v / 1024);
	else
		put(l, "%" PRIu64, v);
}

static void f_rlimit(struct line *l, const void *p)
{
	const uint64_t *r = p;

	puts_(l, "{rlim_cur=");
	put_rlim(l, r[0]);
	puts_(l, ", rlim_max=");
	put_rlim(l, r[1]);
	puts_(l, "}");
}

static void f_rusage(struct line *l, const void *p)
{
	const struct rusage *ru = p;

	puts_(l, "{ru_utime=");
	f_timeval(l, &ru->ru_utime);
	puts_(l, ", ru_stime=");
	f_timeval(l, &ru->ru_stime);
	puts_(l, ", ...}");
}

static void f_wstatus(struct line *l, const void *p)
{
	int w = *(const int *)p;

	puts_(l, "[{");
	if (WIFEXITED(w)) {
		put(l, "WIFEXITED(s) && WEXITSTATUS(s) == %d", WEXITSTATUS(w));
	} else if (WIFSIGNALED(w)) {
		puts_(l, "WIFSIGNALED(s) && WTERMSIG(s) == ");
		put_sig(l, (unsigned)WTERMSIG(w));
		puts_(l, WCOREDUMP(w) ? " && WCOREDUMP(s)" : "");
	} else if (WIFCONTINUED(w)) {
		puts_(l, "WIFCONTINUED(s)");
	} else {
		puts_(l, "WIFSTOPPED(s) && WSTOPSIG(s) == ");
		put_sig(l, (unsigned)WSTOPSIG(w));
	}
	puts_(l, "}]");
}

static void f_epoll_event(struct line *l, const void *p)
{
	struct epoll_event ev;

	memcpy(&ev, p, sizeof(ev));
	puts_(l, "{events=");
	put_set(l, &ss_epev, ev.events);
	put(l, ", data={u32=%u, u64=%" PRIu64 "}}", ev.data.u32, ev.data.u64);
}

static void f_utsname(struct line *l, const void *p)
{
	const struct utsname *u = p;

	puts_(l, "{sysname=");
	put_chars(l, u->sysname, sizeof(u->sysname));
	puts_(l, ", nodename=");
	put_chars(l, u->nodename, sizeof(u->nodename));
	puts_(l, ", ...}");
}

static void f_sysinfo(struct line *l, const void *p)
{
	const struct sysinfo *s = p;

	put(l, "{uptime=%ld, loads=[%lu, %lu, %lu], totalram=%lu, freeram=%lu, sharedram=%lu, bufferram=%lu", s->uptime,
	    s->loads[0], s->loads[1], s->loads[2], s->totalram, s->freeram, s->sharedram, s->bufferram);
	put(l, ", totalswap=%lu, freeswap=%lu, procs=%u, totalhigh=%lu, freehigh=%lu, mem_unit=%u}", s->totalswap,
	    s->freeswap, s->procs, s->totalhigh, s->freehigh, s->mem_unit);
}

static void f_clone_args(struct line *l, const void *p)
{
	const uint64_t *a = p; /* flags pidfd child_tid parent_tid exit_signal stack stack_size tls */

	puts_(l, "{flags=");
	put_set(l, &ss_clone, a[0]);
	if (a[0] & CLONE_PIDFD)
		put(l, ", pidfd=%#" PRIx64, a[1]);
	if (a[0] & (CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID))
		put(l, ", child_tid=%#" PRIx64, a[2]);
	if (a[0] & CLONE_PARENT_SETTID)
		put(l, ", parent_tid=%#" PRIx64, a[3]);
	puts_(l, ", exit_signal=");
	put_sig(l, (unsigned)a[4]);
	puts_(l, ", stack=");
	put_ptr(l, a[5]);
	puts_(l, ", stack_size=");
	put_hex(l, a[6]);
	if (a[0] & CLONE_SETTLS)
		put(l, ", tls=%#" PRIx64, a[7]);
	puts_(l, "}");
}

static void f_open_how(struct line *l, const void *p)
{
	const uint64_t *h = p; /* flags mode resolve */

	puts_(l, "{flags=");
	put_set(l, &ss_open, h[0]);
	put(l, ", mode=%#03o, resolve=%#" PRIx64 "}", (unsigned)h[1], h[2]);
}

static void put_flock(struct line *l, const struct flock *f)
{

	puts_(l, "{l_type=");
	put_set(l, &ss_locktype, (unsigned short)f->l_type);
	puts_(l, ", l_whence=");
	put_set(l, &ss_seek, (unsigned short)f->l_whence);
	put(l, ", l_start=%ld, l_len=%ld", (long)f->l_start, (long)f->l_len);
}

static void f_flock(struct line *l, const void *p)
{
	put_flock(l, p);
	puts_(l, "}");
}

static void f_getlk(struct line *l, const void *p)
{
	put_flock(l, p);
	put(l, ", l_pid=%d}", ((const struct flock *)p)->l_pid);
}

static void f_winsize(struct line *l, const void *p)
{
	const struct winsize *w = p;

	put(l, "{ws_row=%u, ws_col=%u, ws_xpixel=%u, ws_ypixel=%u}", w->ws_row, w->ws_col, w->ws_xpixel, w->ws_ypixel);
}

void put_siginfo(struct line *l, int signo, const siginfo_t *si)
{
	const char *code = NULL;
	size_t i;

	for (i = 0; i < sizeof(si_codes) / sizeof(si_codes[0]); i++)
		if (si_codes[i].code == si->si_code && (!si_codes[i].sig || si_codes[i].sig == signo))
			code = si_codes[i].name;
	puts_(l, "{si_signo=");
	put_sig(l, (unsigned)signo);
	if (code)
		put(l, ", si_code=%s", code);
	else
		put(l, ", si_code=%#x", (unsigned)si->si_code);
	if (si->si_errno)
		put(l, ", si_errno=%d", si->si_errno);
	if (si->si_code == SI_KERNEL) {
		puts_(l, "");
	} else if (si->si_code == SI_TIMER) {
		put(l, ", si_timerid=%#x, si_overrun=%d, si_int=%d, si_ptr=%#lx", (unsigned)si->si_timerid,
		    si->si_overrun, si->si_int, (unsigned long)si->si_ptr);
	} else if (si->si_code == SI_QUEUE || si->si_code == SI_MESGQ) {
		put(l, ", si_pid=%d, si_uid=%u, si_int=%d, si_ptr=%#lx", si->si_pid, si->si_uid, si->si_int,
		    (unsigned long)si->si_ptr);
	} else if (si->si_code <= 0) {
		put(l, ", si_pid=%d, si_uid=%u", si->si_pid, si->si_uid);
	} else if (signo == SIGCHLD) {
		put(l, ", si_pid=%d, si_uid=%u, si_status=", si->si_pid, si->si_uid);
		if (si->si_code == CLD_EXITED)
			put(l, "%d", si->si_status);
		else
			put_sig(l, (unsigned)si->si_status);
		put(l, ", si_utime=%ld, si_stime=%ld", (long)si->si_utime, (long)si->si_stime);
	} else if (signo == SIGSEGV || signo == SIGBUS || signo == SIGILL || signo == SIGFPE || signo == SIGTRAP) {
		put(l, ", si_addr=0x%lx", (unsigned long)si->si_addr);
	}
	puts_(l, "}");
}

static void f_siginfo(struct line *l, const void *p)
{
	const siginfo_t *si = p;

	put_siginfo(l, si->si_signo, si);
}

const struct fixed fx_i32 = { 4, f_i32 }, fx_u64 = { 8, f_u64 }, fx_addr = { 8, f_addr }, fx_two_fds = { 8, f_two_fds },
		   fx_timespec = { 16, f_timespec }, fx_timespec2 = { 32, f_timespec2 }, fx_timeval = { 16, f_timeval },
		   fx_timeval2 = { 32, f_timeval2 }, fx_itimerspec = { 32, f_itimerspec },
		   fx_itimerval = { 32, f_itimerval }, fx_stat = { 144, f_stat }, fx_statx = { 256, f_statx },
		   fx_sigset = { 8, f_sigset }, fx_sigaction = { 32, f_sigaction }, fx_altstack = { 24, f_altstack },
		   fx_rlimit = { 16, f_rlimit }, fx_rusage = { 144, f_rusage }, fx_wstatus = { 4, f_wstatus },
		   fx_epoll_event = { 12, f_epoll_event }, fx_utsname = { 390, f_utsname },
		   fx_sysinfo = { 112, f_sysinfo }, fx_clone_args = { 64, f_clone_args },
		   fx_open_how = { 24, f_open_how }, fx_flock = { 32, f_flock }, fx_getlk = { 32, f_getlk },
		   fx_winsize = { 8, f_winsize }, fx_siginfo = { 128, f_siginfo };
_Static_assert(sizeof(struct stat) == 144 && sizeof(struct statx) == 256, "fixed sizes");
_Static_assert(sizeof(struct rusage) == 144, "fixed sizes");
_Static_assert(sizeof(struct sysinfo) == 112 && sizeof(struct flock) == 32 && sizeof(siginfo_t) == 128, "fixed sizes");
_Static_assert(sizeof(struct utsname) == 390 && sizeof(stack_t) == 24, "fixed sizes");

void put_fixed(struct line *l, const struct fixed *f, uint64_t gva)
{
	_Alignas(16) uint8_t b[400];

	if (!gva || guest_read(b, gva, f->size))
		put_ptr(l, gva);
	else
		f->fn(l, b);
}
