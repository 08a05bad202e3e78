/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See strace.h. Arguments are printed by their kind in hypercalls.def; where that says less than strace(1) does,
 * a row of special[] names the symbol set or the decoder. Whatever can't be read is printed as an address.
 */
#include "strace_names.h"
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/timex.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include "strace.h"

#define DATA_SHOWN 32  /* bytes of a buffer */
#define ELEMS_SHOWN 32 /* elements of an array */
#define PATH_SHOWN 4096
#define TAIL_ROOM 640 /* of the line, kept for the result */

struct line {
	const struct hc_row *row;
	uint64_t nr;
	const uint64_t *arg;
	int64_t ret;
	size_t len, limit;
	bool cut;
	char buf[8192];
};

/* Arguments as they were before the call. */
#define BEFORE_MAX 128

static __thread struct {
	uint64_t nr; /* ~0: none */
	uint16_t len[6];
	_Alignas(16) uint8_t v[6][BEFORE_MAX];
} before = { .nr = ~0ull };

bool strace_show_time;
static int trace_fd = -1;

/* ---- The line ------------------------------------------------------------------------------------------- */

static void emit(struct line *l, const char *s, size_t n)
{
	if (n > l->limit - l->len) {
		n = l->limit - l->len;
		l->cut = true;
	}
	memcpy(l->buf + l->len, s, n);
	l->len += n;
}

static void puts_(struct line *l, const char *s) { emit(l, s, strlen(s)); }

__attribute__((format(printf, 2, 3))) static void put(struct line *l, const char *fmt, ...)
{
	char tmp[256];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(tmp, sizeof(tmp), fmt, ap);
	va_end(ap);
	if (n > 0)
		emit(l, tmp, (size_t)n < sizeof(tmp) ? (size_t)n : sizeof(tmp) - 1);
}

static void line_start(struct line *l, struct thread *t)
{
	l->len = 0;
	l->limit = sizeof(l->buf) - TAIL_ROOM;
	l->cut = false;
	l->row = NULL;
	l->nr = ~0ull;
	l->ret = 0;
	if (pvm.next_index > 1 || pvm.nr_threads > 1 || pvm.has_family)
		put(l, "[pid %d] ", t ? (int)t->tid : (int)my_pid());
}

/* From here on the room kept for the result may be used. */
static void line_tail(struct line *l)
{
	if (l->cut)
		l->limit += 3, puts_(l, "...");
	l->limit = sizeof(l->buf) - 64;
}

/* One write, so that threads' lines don't mix. A SIGPIPE that it causes is ours, not the program's. */
static void line_end(struct line *l)
{
	int fd = __atomic_load_n(&trace_fd, __ATOMIC_RELAXED);
	sigset_t pipe_set, old, pending;
	struct timespec zero = { 0, 0 };
	ssize_t n;

	l->buf[l->len++] = '\n';
	sigemptyset(&pipe_set);
	sigaddset(&pipe_set, SIGPIPE);
	sigemptyset(&pending);
	pthread_sigmask(SIG_BLOCK, &pipe_set, &old);
	sigpending(&pending);
	do
		n = write(fd, l->buf, l->len);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EPIPE) {
		__atomic_store_n(&trace_fd, -1, __ATOMIC_RELAXED);
		if (!sigismember(&pending, SIGPIPE))
			sigtimedwait(&pipe_set, NULL, &zero);
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

/* ---- Numbers and symbols -------------------------------------------------------------------------------- */

static void put_ptr(struct line *l, uint64_t v)
{
	if (v)
		put(l, "%#" PRIx64, v);
	else
		puts_(l, "NULL");
}

static void put_hex(struct line *l, uint64_t v) { put(l, v ? "%#" PRIx64 : "%" PRIx64, v); }

static void put_set(struct line *l, const struct symset *set, uint64_t v)
{
	const struct sym *s;
	uint64_t num;
	bool any = false;

	if (!set->wide)
		v = (uint32_t)v;
	num = v & set->mask;
	for (s = set->tab; s->name; s++) {
		if (!(s->v & ~set->mask) && s->v == num && (set->mask || !v)) {
			puts_(l, s->name);
			num = 0;
			any = true;
			break;
		}
	}
	if (set->mask == KX_ENUM) {
		if (!any)
			put_hex(l, v);
		return;
	}
	v &= ~set->mask;
	for (s = set->tab; s->name; s++) {
		if (!s->v || (s->v & set->mask) || (v & s->v) != s->v)
			continue;
		put(l, "%s%s", any ? "|" : "", s->name);
		v &= ~s->v;
		any = true;
	}
	if (v | num)
		put(l, "%s%#" PRIx64, any ? "|" : "", v | num);
	else if (!any)
		puts_(l, "0");
}

/* Without "SIG": what stands in a signal set. */
static void put_sigabbrev(struct line *l, unsigned sig)
{
	const char *name = sig == SIGIO ? "IO" : sig < 32 ? sigabbrev_np((int)sig) : NULL; /* not POLL */

	if (name)
		puts_(l, name);
	else if (sig == 32)
		puts_(l, "RTMIN");
	else if (sig > 32 && sig <= 64)
		put(l, "RT_%u", sig - 32);
	else
		put(l, "%u", sig);
}

static void put_sig(struct line *l, unsigned sig)
{
	if (sig >= 1 && sig <= 64)
		puts_(l, "SIG");
	else {
		put(l, "%d", (int)sig);
		return;
	}
	put_sigabbrev(l, sig);
}

static void put_mode(struct line *l, unsigned mode)
{
	if (mode & S_IFMT) {
		put_set(l, &ss_filetype, mode & ~07777u);
		puts_(l, "|");
		mode &= 07777;
		puts_(l, mode & S_ISUID ? "S_ISUID|" : "");
		puts_(l, mode & S_ISGID ? "S_ISGID|" : "");
		puts_(l, mode & S_ISVTX ? "S_ISVTX|" : "");
		mode &= 0777;
	}
	put(l, "%#03o", mode);
}

static void put_fd(struct line *l, int fd)
{
	if (fd == AT_FDCWD)
		puts_(l, "AT_FDCWD");
	else
		put(l, "%d", fd);
}

static void put_clone_flags(struct line *l, uint64_t v)
{
	if ((v & ~0xffull) || !(v & 0xff))
		put_set(l, &ss_clone, v & ~0xffull);
	if (v & 0xff) {
		puts_(l, v & ~0xffull ? "|" : "");
		put_sig(l, v & 0xff);
	}
}

/* ---- Strings and buffers -------------------------------------------------------------------------------- */

/* `next`: whether bytes that are not in b follow (an octal escape must then have all its digits). */
static void put_escaped(struct line *l, const uint8_t *b, size_t n, bool next)
{
	static const char from[] = "\n\t\r\v\f\"\\", to[] = "ntrvf\"\\";
	char out[64 * 4];
	size_t i, o = 0;
	const char *p;

	for (i = 0; i < n && i < 64; i++) {
		bool digit = i + 1 < n ? b[i + 1] >= '0' && b[i + 1] <= '9' : next;

		if (b[i] && (p = strchr(from, b[i]))) {
			out[o++] = '\\';
			out[o++] = to[p - from];
		} else if (b[i] >= 0x20 && b[i] < 0x7f) {
			out[o++] = (char)b[i];
		} else {
			out[o++] = '\\';
			if (digit || b[i] >= 0100)
				out[o++] = (char)('0' + (b[i] >> 6));
			if (digit || b[i] >= 010)
				out[o++] = (char)('0' + (b[i] >> 3 & 7));
			out[o++] = (char)('0' + (b[i] & 7));
		}
	}
	emit(l, out, o);
}

/* n bytes at gva, of which DATA_SHOWN are shown. */
static void put_data(struct line *l, uint64_t gva, uint64_t n)
{
	uint8_t b[DATA_SHOWN];
	size_t m = n < sizeof(b) ? n : sizeof(b);

	if (!gva || guest_read(b, gva, m)) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "\"");
	put_escaped(l, b, m, false);
	puts_(l, n > m ? "\"..." : "\"");
}

/* The same, each byte in hexadecimal. */
static void put_bytes(struct line *l, uint64_t gva, uint64_t n)
{
	uint8_t b[DATA_SHOWN];
	size_t m = n < sizeof(b) ? n : sizeof(b);

	if (!gva || guest_read(b, gva, m)) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "\"");
	for (size_t i = 0; i < m; i++)
		put(l, "\\x%02x", b[i]);
	puts_(l, n > m ? "\"..." : "\"");
}

/* A string up to its NUL, of at most PATH_SHOWN bytes; read page-wise as it may end just before a hole. */
static void put_str(struct line *l, uint64_t gva)
{
	uint8_t b[64];
	size_t done = 0, m, n;
	bool end = false;

	for (; !end && done < PATH_SHOWN; done += n) {
		n = 64 - ((gva + done) & 63);
		if (!gva || gva + done < gva || guest_read(b, gva + done, n))
			break;
		if (!done)
			puts_(l, "\"");
		m = strnlen((char *)b, n);
		end = m < n;
		put_escaped(l, b, m, !end);
	}
	if (done)
		puts_(l, end ? "\"" : "\"...");
	else
		put_ptr(l, gva);
}

/* A string of which DATA_SHOWN bytes are shown. */
static void put_str_short(struct line *l, uint64_t gva)
{
	uint8_t b[DATA_SHOWN + 1];
	size_t n = 0;

	while (n < sizeof(b) && !guest_read(b + n, gva + n, 1) && b[n])
		n++;
	if (!n && guest_read(b, gva, 1)) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "\"");
	put_escaped(l, b, n < DATA_SHOWN ? n : DATA_SHOWN, false);
	puts_(l, n > DATA_SHOWN ? "\"..." : "\"");
}

/* A fixed char array. */
static void put_chars(struct line *l, const char *s, size_t max)
{
	size_t n = strnlen(s, max), i;

	puts_(l, "\"");
	for (i = 0; i < n; i += 64)
		put_escaped(l, (const uint8_t *)s + i, n - i < 64 ? n - i : 64, n - i > 64);
	puts_(l, "\"");
}

/* ---- Structures ----------------------------------------------------------------------------------------- */

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

static void put_siginfo(struct line *l, int signo, const siginfo_t *si)
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

struct fixed {
	unsigned size;
	void (*fn)(struct line *l, const void *p);
};

static const struct fixed fx_i32 = { 4, f_i32 }, fx_u64 = { 8, f_u64 }, fx_addr = { 8, f_addr },
			  fx_two_fds = { 8, f_two_fds }, fx_timespec = { 16, f_timespec },
			  fx_timespec2 = { 32, f_timespec2 }, fx_timeval = { 16, f_timeval },
			  fx_timeval2 = { 32, f_timeval2 }, fx_itimerspec = { 32, f_itimerspec },
			  fx_itimerval = { 32, f_itimerval }, fx_stat = { 144, f_stat }, fx_statx = { 256, f_statx },
			  fx_sigset = { 8, f_sigset }, fx_sigaction = { 32, f_sigaction },
			  fx_altstack = { 24, f_altstack }, fx_rlimit = { 16, f_rlimit }, fx_rusage = { 144, f_rusage },
			  fx_wstatus = { 4, f_wstatus }, fx_epoll_event = { 12, f_epoll_event },
			  fx_utsname = { 390, f_utsname }, fx_sysinfo = { 112, f_sysinfo },
			  fx_clone_args = { 64, f_clone_args }, fx_open_how = { 24, f_open_how },
			  fx_flock = { 32, f_flock }, fx_getlk = { 32, f_getlk }, fx_winsize = { 8, f_winsize },
			  fx_siginfo = { 128, f_siginfo };
_Static_assert(sizeof(struct stat) == 144 && sizeof(struct statx) == 256, "fixed sizes");
_Static_assert(sizeof(struct rusage) == 144, "fixed sizes");
_Static_assert(sizeof(struct sysinfo) == 112 && sizeof(struct flock) == 32 && sizeof(siginfo_t) == 128, "fixed sizes");
_Static_assert(sizeof(struct utsname) == 390 && sizeof(stack_t) == 24, "fixed sizes");

static void put_fixed(struct line *l, const struct fixed *f, uint64_t gva)
{
	_Alignas(16) uint8_t b[400];

	if (!gva || guest_read(b, gva, f->size))
		put_ptr(l, gva);
	else
		f->fn(l, b);
}

/* ---- Arrays and structures of variable size ------------------------------------------------------------- */

static void put_fixed_array(struct line *l, const struct fixed *f, uint64_t gva, uint64_t n)
{
	uint8_t b[400];
	uint64_t i;

	if (!gva || (n && guest_read(b, gva, f->size))) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "[");
	for (i = 0; i < n && i < ELEMS_SHOWN; i++) {
		puts_(l, i ? ", " : "");
		put_fixed(l, f, gva + i * f->size);
	}
	puts_(l, i < n ? ", ...]" : "]");
}

/* pollfds; `result`: only those with revents. Returns how many entries it showed. */
static void put_pollfds(struct line *l, uint64_t gva, uint64_t n, bool result)
{
	struct pollfd p;
	uint64_t i, shown = 0;

	if (!gva || (n && guest_read(&p, gva, sizeof(p)))) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "[");
	for (i = 0; i < n && i < 4096 && shown < ELEMS_SHOWN; i++) {
		if (guest_read(&p, gva + i * sizeof(p), sizeof(p)))
			break;
		if (result && !p.revents)
			continue;
		put(l, "%s{fd=%d, %sevents=", shown ? ", " : "", p.fd, result ? "r" : "");
		put_set(l, &ss_poll, (uint16_t)(result ? p.revents : p.events));
		puts_(l, "}");
		shown++;
	}
	puts_(l, i < n ? ", ...]" : "]");
}

/* len bytes of argument i as they were; NULL: not kept. */
static const void *was(const struct line *l, int i, unsigned len)
{
	return before.nr == l->nr && before.len[i] >= len ? before.v[i] : NULL;
}

/* The members of a set in the monitor's memory; returns how many. */
static int put_bits(struct line *l, const uint8_t *set, int n)
{
	int found = 0;

	puts_(l, "[");
	for (int i = 0; i < n; i++)
		if (set[i / 8] >> (i % 8) & 1)
			put(l, "%s%d", found++ ? " " : "", i);
	puts_(l, "]");
	return found;
}

static void put_fdset(struct line *l, uint64_t gva, int nfds);

static void put_fdset_was(struct line *l, int i)
{
	const int n = (int)l->arg[0];
	const uint8_t *set = n > 0 && n <= 8 * BEFORE_MAX ? was(l, i, ((unsigned)n + 7) / 8) : NULL;

	if (set)
		put_bits(l, set, n);
	else
		put_fdset(l, l->arg[i], n);
}

static void put_fdset(struct line *l, uint64_t gva, int nfds)
{
	uint64_t w = 0;
	const char *sep = "";
	int i;

	if (!gva || (nfds > 0 && guest_read(&w, gva, 8))) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "[");
	for (i = 0; i < nfds && i < 65536; i++) {
		if (i % 64 == 0 && guest_read(&w, gva + (unsigned)i / 8, 8))
			break;
		if (w >> (i % 64) & 1) {
			put(l, "%s%d", sep, i);
			sep = " ";
		}
	}
	puts_(l, "]");
}

/* have: bytes of the vector that hold data (for readv what was read). */
static void put_iovec(struct line *l, uint64_t gva, uint64_t n, uint64_t have)
{
	struct {
		uint64_t base, len;
	} v;
	uint64_t i, m;

	if (!gva || (n && guest_read(&v, gva, sizeof(v)))) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "[");
	for (i = 0; i < n && i < ELEMS_SHOWN; i++) {
		if (guest_read(&v, gva + i * sizeof(v), sizeof(v)))
			break;
		m = v.len < have ? v.len : have;
		have -= m;
		puts_(l, i ? ", {iov_base=" : "{iov_base=");
		if (m || !v.len)
			put_data(l, v.base, m);
		else
			put_ptr(l, v.base);
		put(l, ", iov_len=%" PRIu64 "}", v.len);
	}
	puts_(l, i < n ? ", ...]" : "]");
}

/* A vector of strings, of argv's kind. */
static void put_strings(struct line *l, uint64_t gva)
{
	uint64_t p, i;

	if (!gva || guest_read(&p, gva, 8)) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "[");
	for (i = 0; p && i < ELEMS_SHOWN; i++) {
		puts_(l, i ? ", " : "");
		put_str_short(l, p);
		if (guest_read(&p, gva + 8 * (i + 1), 8))
			break;
	}
	puts_(l, p ? ", ...]" : "]");
}

static void put_count(struct line *l, uint64_t gva, uint64_t n)
{
	put(l, "%#" PRIx64 " /* %" PRIu64 " var%s */", gva, n, n == 1 ? "" : "s");
}

static void put_environ(struct line *l, uint64_t gva)
{
	uint64_t p, n = 0;

	while (gva && n < 65536 && !guest_read(&p, gva + 8 * n, 8) && p)
		n++;
	if (gva)
		put_count(l, gva, n);
	else
		puts_(l, "NULL");
}

static void put_sockaddr(struct line *l, uint64_t gva, uint64_t len)
{
	union {
		struct sockaddr sa;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
		struct sockaddr_un un;
		struct {
			uint16_t family, pad;
			uint32_t pid, groups;
		} nl;
	} u;
	char name[INET6_ADDRSTRLEN];
	size_t n = len < sizeof(u) ? len : sizeof(u), path;

	memset(&u, 0, sizeof(u));
	if (!gva || n < sizeof(u.sa.sa_family) || guest_read(&u, gva, n)) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "{sa_family=");
	put_set(l, &ss_family, u.sa.sa_family);
	if (u.sa.sa_family == AF_INET && n >= sizeof(u.in)) {
		inet_ntop(AF_INET, &u.in.sin_addr, name, sizeof(name));
		put(l, ", sin_port=htons(%u), sin_addr=inet_addr(\"%s\")", ntohs(u.in.sin_port), name);
	} else if (u.sa.sa_family == AF_INET6 && n >= sizeof(u.in6)) {
		inet_ntop(AF_INET6, &u.in6.sin6_addr, name, sizeof(name));
		put(l,
		    ", sin6_port=htons(%u), sin6_flowinfo=htonl(%u), inet_pton(AF_INET6, \"%s\", &sin6_addr), "
		    "sin6_scope_id=%u",
		    ntohs(u.in6.sin6_port), ntohl(u.in6.sin6_flowinfo), name, u.in6.sin6_scope_id);
	} else if (u.sa.sa_family == AF_UNIX && n > sizeof(u.sa.sa_family)) {
		path = n < sizeof(u.un) ? n - 2 : sizeof(u.un.sun_path);
		if (u.un.sun_path[0]) {
			puts_(l, ", sun_path=");
			put_chars(l, u.un.sun_path, path);
		} else {
			puts_(l, ", sun_path=@\"");
			put_escaped(l, (uint8_t *)u.un.sun_path + 1, path - 1 < 64 ? path - 1 : 64, false);
			puts_(l, path - 1 > 64 ? "\"..." : "\"");
		}
	} else if (u.sa.sa_family == AF_NETLINK && n >= sizeof(u.nl)) {
		put(l, ", nl_pid=%u, nl_groups=%08x", u.nl.pid, u.nl.groups);
	} else if (n > sizeof(u.sa.sa_family)) {
		puts_(l, ", sa_data=");
		put_data(l, gva + 2, len - 2);
	}
	puts_(l, "}");
}

/* Ancillary data of a message: descriptors are shown, the rest by level and type. */
static void put_cmsgs(struct line *l, uint64_t gva, uint64_t len)
{
	struct {
		uint64_t len;
		int32_t level, type;
	} h;
	uint64_t off = 0, i;
	int32_t fd;
	int n;

	puts_(l, "[");
	for (n = 0; n < 8 && off + sizeof(h) <= len && !guest_read(&h, gva + off, sizeof(h)); n++) {
		if (h.len < sizeof(h) || h.len > len - off)
			break;
		put(l, "%s{cmsg_len=%" PRIu64 ", cmsg_level=", n ? ", " : "", h.len);
		put_set(l, &ss_sol, (uint32_t)h.level);
		if (h.level == SOL_SOCKET && h.type == SCM_RIGHTS) {
			puts_(l, ", cmsg_type=SCM_RIGHTS, cmsg_data=[");
			for (i = 0; i < (h.len - sizeof(h)) / 4 && i < ELEMS_SHOWN; i++)
				if (!guest_read(&fd, gva + off + sizeof(h) + i * 4, 4))
					put(l, "%s%d", i ? ", " : "", fd);
			puts_(l, "]}");
		} else {
			put(l, ", cmsg_type=%#x}", (unsigned)h.type);
		}
		off += (h.len + 7) & ~7ull;
	}
	puts_(l, "]");
}

/* have: how many bytes there are; namelen: the room for an address, 0 when it isn't known. */
static void put_msghdr_of(struct line *l, uint64_t gva, uint64_t have, uint32_t namelen)
{
	struct {
		uint64_t name;
		uint32_t namelen, pad;
		uint64_t iov, iovlen, control, controllen;
		uint32_t flags, pad2;
	} m;

	if (!gva || guest_read(&m, gva, sizeof(m))) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "{msg_name=");
	put_sockaddr(l, m.name, m.namelen);
	if (namelen && namelen != m.namelen)
		put(l, ", msg_namelen=%u => %u, msg_iov=", namelen, m.namelen);
	else
		put(l, ", msg_namelen=%u, msg_iov=", m.namelen);
	put_iovec(l, m.iov, m.iovlen, have);
	put(l, ", msg_iovlen=%" PRIu64, m.iovlen);
	if (m.control && m.controllen) {
		puts_(l, ", msg_control=");
		put_cmsgs(l, m.control, m.controllen);
	}
	put(l, ", msg_controllen=%" PRIu64 ", msg_flags=", m.controllen);
	put_set(l, &ss_msg, m.flags);
	puts_(l, "}");
}

static void put_msghdr(struct line *l, uint64_t gva, bool written)
{
	const uint32_t *namelen = was(l, 1, 4);

	if (written && l->ret < 0 && gva && namelen)
		put(l, "{msg_namelen=%u}", *namelen);
	else if (written && l->ret < 0)
		put_ptr(l, gva);
	else
		put_msghdr_of(l, gva, written ? (uint64_t)l->ret : ~0ull, written && namelen ? *namelen : 0);
}

/* struct mmsghdr: a msghdr and the length that was sent or received. */
static void put_mmsgs(struct line *l, uint64_t gva, uint64_t n, bool written)
{
	const uint64_t size = 64, len_at = 56;
	const uint64_t done = l->ret < 0 ? 0 : (uint64_t)l->ret, shown = written ? done : n;
	uint32_t len;
	uint64_t i;

	if (!gva || (written && l->ret < 0) || (n && guest_read(&len, gva + len_at, 4))) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "[");
	for (i = 0; i < shown && i < ELEMS_SHOWN && !guest_read(&len, gva + i * size + len_at, 4); i++) {
		puts_(l, i ? ", {msg_hdr=" : "{msg_hdr=");
		put_msghdr_of(l, gva + i * size, written ? len : ~0ull, 0);
		if (i < done)
			put(l, ", msg_len=%u", len);
		puts_(l, "}");
	}
	puts_(l, i < shown ? ", ...]" : "]");
}

/* Entries of a getdents buffer are counted, as strace does. */
static void put_dirents(struct line *l, uint64_t gva)
{
	uint64_t off = 0, n = 0;
	uint16_t reclen;

	put_ptr(l, gva);
	if (l->ret < 0)
		return;
	for (; off < (uint64_t)l->ret && n < 65536 && !guest_read(&reclen, gva + off + 16, 2) && reclen; off += reclen)
		n++;
	put(l, " /* %" PRIu64 " entries */", n);
}

/* ---- What each argument is ------------------------------------------------------------------------------ */

enum how {
	H_SET,     /* a symbol set */
	H_IN,      /* a fixed structure that the call reads */
	H_OUT,     /* the same that it writes: shown after success */
	H_OUT_RET, /* array of them; the result counts */
	H_HEX,
	H_FDSET,
	H_POLLFDS,
	H_SOCKADDR,
	H_SOCKADDR_OUT,
	H_SOCKLEN,
	H_MSG_IN,
	H_MSG_OUT,
	H_DIRENTS,
	H_CSTR,
	H_SIGSET_ARG,
	H_FCNTL,
	H_IOCTL,
	H_FUTEX_4,
	H_PRCTL,
	H_OPTNAME,
	H_OPT_OUT,
	H_OPT_IN,
	H_MKNOD,
	H_ARCH,
	H_PROTO,
	H_CPUSET,
	H_WAS,     /* a fixed structure that the call changes, as it was */
	H_WAS_NOW, /* and as it became */
	H_MMSG_IN,
	H_MMSG_OUT,
	H_ARGV,
	H_ENVIRON,
	H_RANDOM,
};

static const struct special {
	uint16_t nr;
	uint8_t arg, how;
	const void *p; /* struct symset or struct fixed */
} special[] = {
#define S(call, n, set) \
	{ \
		SYS_##call, n, H_SET, &ss_##set \
	}
#define I(call, n, f) \
	{ \
		SYS_##call, n, H_IN, &fx_##f \
	}
#define O(call, n, f) \
	{ \
		SYS_##call, n, H_OUT, &fx_##f \
	}
#define W(call, n, f) \
	{ \
		SYS_##call, n, H_WAS, &fx_##f \
	}
#define X(call, n, h) \
	{ \
		SYS_##call, n, h, NULL \
	}
	O(stat, 1, stat),
	O(fstat, 1, stat),
	O(lstat, 1, stat),
	O(newfstatat, 2, stat),
	O(statx, 4, statx),
	S(statx, 2, at_stat),
	S(statx, 3, statx),
	S(faccessat2, 3, at_access),
	X(poll, 0, H_POLLFDS),
	X(ppoll, 0, H_POLLFDS),
	W(ppoll, 2, timespec),
	I(ppoll, 3, sigset),
	S(lseek, 2, seek),
	X(mmap, 5, H_HEX),
	I(rt_sigaction, 1, sigaction),
	O(rt_sigaction, 2, sigaction),
	S(rt_sigprocmask, 0, sigmask),
	I(rt_sigprocmask, 1, sigset),
	O(rt_sigprocmask, 2, sigset),
	O(rt_sigpending, 0, sigset),
	I(rt_sigtimedwait, 0, sigset),
	O(rt_sigtimedwait, 1, siginfo),
	I(rt_sigtimedwait, 2, timespec),
	I(rt_sigsuspend, 0, sigset),
	I(rt_sigqueueinfo, 2, siginfo),
	I(rt_tgsigqueueinfo, 3, siginfo),
	I(sigaltstack, 0, altstack),
	O(sigaltstack, 1, altstack),
	S(ioctl, 1, ioctl),
	X(ioctl, 2, H_IOCTL),
	O(pipe, 0, two_fds),
	O(pipe2, 0, two_fds),
	S(pipe2, 1, open_bits),
	S(dup3, 2, open_bits),
	X(select, 1, H_FDSET),
	X(select, 2, H_FDSET),
	X(select, 3, H_FDSET),
	W(select, 4, timeval),
	X(pselect6, 1, H_FDSET),
	X(pselect6, 2, H_FDSET),
	X(pselect6, 3, H_FDSET),
	W(pselect6, 4, timespec),
	X(pselect6, 5, H_SIGSET_ARG),
	S(madvise, 2, madv),
	S(mlockall, 0, mlockall),
	I(nanosleep, 0, timespec),
	O(getitimer, 1, itimerval),
	S(getitimer, 0, itimer),
	S(setitimer, 0, itimer),
	I(setitimer, 1, itimerval),
	O(setitimer, 2, itimerval),
	{ SYS_sendfile, 2, H_WAS_NOW, &fx_u64 },
	W(splice, 1, u64),
	W(splice, 3, u64),
	S(splice, 5, splice),
	S(tee, 3, splice),
	S(vmsplice, 3, splice),
	W(copy_file_range, 1, u64),
	W(copy_file_range, 3, u64),
	S(socket, 0, family),
	S(socket, 1, socktype),
	X(socket, 2, H_PROTO),
	X(socketpair, 2, H_PROTO),
	S(socketpair, 0, family),
	S(socketpair, 1, socktype),
	O(socketpair, 3, two_fds),
	X(connect, 1, H_SOCKADDR),
	X(bind, 1, H_SOCKADDR),
	X(sendto, 4, H_SOCKADDR),
	X(accept, 1, H_SOCKADDR_OUT),
	X(accept4, 1, H_SOCKADDR_OUT),
	X(getsockname, 1, H_SOCKADDR_OUT),
	X(getpeername, 1, H_SOCKADDR_OUT),
	X(recvfrom, 4, H_SOCKADDR_OUT),
	X(accept, 2, H_SOCKLEN),
	X(accept4, 2, H_SOCKLEN),
	X(getsockname, 2, H_SOCKLEN),
	X(getpeername, 2, H_SOCKLEN),
	X(recvfrom, 5, H_SOCKLEN),
	X(sendmsg, 1, H_MSG_IN),
	X(recvmsg, 1, H_MSG_OUT),
	S(shutdown, 1, shut),
	S(setsockopt, 1, sol),
	S(getsockopt, 1, sol),
	X(setsockopt, 2, H_OPTNAME),
	X(getsockopt, 2, H_OPTNAME),
	X(setsockopt, 3, H_OPT_IN),
	X(getsockopt, 3, H_OPT_OUT),
	X(getsockopt, 4, H_SOCKLEN),
	O(wait4, 1, wstatus),
	S(wait4, 2, wait),
	O(wait4, 3, rusage),
	S(waitid, 0, idtype),
	O(waitid, 2, siginfo),
	S(waitid, 3, wait),
	O(waitid, 4, rusage),
	O(uname, 0, utsname),
	S(fcntl, 1, fcntl),
	X(fcntl, 2, H_FCNTL),
	S(flock, 1, flock),
	X(getdents, 1, H_DIRENTS),
	X(getdents64, 1, H_DIRENTS),
	X(getcwd, 0, H_CSTR),
	O(gettimeofday, 0, timeval),
	S(getrlimit, 0, rlimit),
	O(getrlimit, 1, rlimit),
	S(setrlimit, 0, rlimit),
	I(setrlimit, 1, rlimit),
	S(prlimit64, 1, rlimit),
	I(prlimit64, 2, rlimit),
	O(prlimit64, 3, rlimit),
	S(getrusage, 0, rusage),
	O(getrusage, 1, rusage),
	O(sysinfo, 0, sysinfo),
	O(getresuid, 0, i32),
	O(getresuid, 1, i32),
	O(getresuid, 2, i32),
	O(getresgid, 0, i32),
	O(getresgid, 1, i32),
	O(getresgid, 2, i32),
	X(mknod, 1, H_MKNOD),
	X(mknodat, 2, H_MKNOD),
	X(mknod, 2, H_HEX),
	X(mknodat, 3, H_HEX),
	S(getpriority, 0, prio),
	S(setpriority, 0, prio),
	I(sched_setparam, 1, i32),
	O(sched_getparam, 1, i32),
	S(sched_setscheduler, 1, sched),
	I(sched_setscheduler, 2, i32),
	S(sched_get_priority_max, 0, sched),
	S(sched_get_priority_min, 0, sched),
	O(sched_rr_get_interval, 1, timespec),
	S(prctl, 0, prctl),
	X(prctl, 1, H_PRCTL),
	X(prctl, 2, H_HEX),
	X(prctl, 3, H_HEX),
	X(prctl, 4, H_HEX),
	S(arch_prctl, 0, archp),
	X(arch_prctl, 1, H_ARCH),
	S(setxattr, 4, xattr),
	S(lsetxattr, 4, xattr),
	S(fsetxattr, 4, xattr),
	X(futex, 3, H_FUTEX_4),
	X(sched_setaffinity, 2, H_CPUSET),
	O(time, 0, u64),
	X(sched_getaffinity, 2, H_CPUSET),
	S(fadvise64, 3, fadv),
	S(timer_create, 0, clock),
	O(timer_create, 2, i32),
	S(timer_settime, 1, abstime),
	I(timer_settime, 2, itimerspec),
	O(timer_settime, 3, itimerspec),
	O(timer_gettime, 1, itimerspec),
	S(clock_gettime, 0, clock),
	O(clock_gettime, 1, timespec),
	S(clock_getres, 0, clock),
	O(clock_getres, 1, timespec),
	S(clock_nanosleep, 0, clock),
	S(clock_nanosleep, 1, abstime),
	I(clock_nanosleep, 2, timespec),
	{ SYS_epoll_wait, 1, H_OUT_RET, &fx_epoll_event },
	{ SYS_epoll_pwait, 1, H_OUT_RET, &fx_epoll_event },
	{ SYS_epoll_pwait2, 1, H_OUT_RET, &fx_epoll_event },
	I(epoll_pwait, 4, sigset),
	I(epoll_pwait2, 3, timespec),
	I(epoll_pwait2, 4, sigset),
	S(epoll_ctl, 1, epctl),
	I(epoll_ctl, 3, epoll_event),
	S(epoll_create1, 0, epoll1),
	I(utimes, 1, timeval2),
	I(futimesat, 2, timeval2),
	I(utimensat, 2, timespec2),
	I(mq_timedsend, 4, timespec),
	I(mq_timedreceive, 4, timespec),
	O(mq_timedreceive, 3, i32),
	I(semtimedop, 3, timespec),
	S(inotify_add_watch, 2, inmask),
	S(inotify_init1, 0, in1),
	I(signalfd, 1, sigset),
	I(signalfd4, 1, sigset),
	S(signalfd4, 3, sfd),
	S(timerfd_create, 0, clock),
	S(timerfd_create, 1, tfd),
	S(timerfd_settime, 1, tfdset),
	I(timerfd_settime, 2, itimerspec),
	O(timerfd_settime, 3, itimerspec),
	O(timerfd_gettime, 1, itimerspec),
	S(eventfd2, 1, efd),
	S(fallocate, 1, falloc),
	S(preadv2, 5, rwf),
	S(pwritev2, 5, rwf),
	O(getcpu, 0, i32),
	O(getcpu, 1, i32),
	S(renameat2, 4, rename),
	X(getrandom, 0, H_RANDOM),
	S(getrandom, 2, grnd),
	S(memfd_create, 1, mfd),
	S(membarrier, 0, membar),
	I(pidfd_send_signal, 2, siginfo),
	I(clone3, 0, clone_args),
	S(close_range, 2, closer),
	I(openat2, 2, open_how),
	I(recvmmsg, 4, timespec),
	X(execve, 1, H_ARGV),
	X(execve, 2, H_ENVIRON),
	X(execveat, 2, H_ARGV),
	X(execveat, 3, H_ENVIRON),
	X(sendmmsg, 1, H_MMSG_IN),
	X(recvmmsg, 1, H_MMSG_OUT),
	X(rseq, 1, H_HEX),
	X(rseq, 3, H_HEX),
	O(get_robust_list, 1, addr),
	O(get_robust_list, 2, u64),
#undef S
#undef I
#undef O
#undef W
#undef X
};

static const struct special *special_find(uint64_t nr, int arg)
{
	size_t i;

	for (i = 0; i < sizeof(special) / sizeof(special[0]); i++)
		if (special[i].nr == nr && special[i].arg == arg)
			return &special[i];
	return NULL;
}

static const struct symset *set_find(const char *name)
{
	static const struct symset *const sets[] = {
		&ss_open, &ss_prot, &ss_map, &ss_mremap, &ss_msync, &ss_access,
		&ss_at,   &ss_atrm, &ss_msg, &ss_sock,   &ss_futex, &ss_clone,
	};
	size_t i;

	for (i = 0; i < sizeof(sets) / sizeof(sets[0]); i++)
		if (!strcmp(sets[i]->name, name))
			return sets[i];
	return NULL;
}

static void put_fcntl_arg(struct line *l, uint64_t v)
{
	switch ((int)l->arg[1]) {
	case F_SETFD:
		put_set(l, &ss_fdflag, v);
		break;
	case F_SETFL:
		put_set(l, &ss_open, v);
		break;
	case F_ADD_SEALS:
		put_set(l, &ss_seals, v);
		break;
	case F_SETSIG:
		put_sig(l, (unsigned)v);
		break;
	case F_GETLK:
	case F_OFD_GETLK:
		put_fixed(l, &fx_getlk, v);
		break;
	case F_SETLK:
	case F_SETLKW:
	case F_OFD_SETLK:
	case F_OFD_SETLKW:
		put_fixed(l, &fx_flock, v);
		break;
	case F_DUPFD:
	case F_DUPFD_CLOEXEC:
	case F_SETOWN:
	case F_SETPIPE_SZ:
	case F_SETLEASE:
	case F_NOTIFY:
		put(l, "%d", (int)v);
		break;
	default:
		put_hex(l, v);
	}
}

static void put_ioctl_arg(struct line *l, uint64_t v)
{
	bool ok = l->ret >= 0;

	switch ((unsigned)l->arg[1]) {
	case FIONBIO:
	case FIOASYNC:
	case TIOCSPGRP:
	case TIOCSPTLCK:
		put_fixed(l, &fx_i32, v);
		break;
	case FIONREAD:
	case TIOCOUTQ:
	case TIOCGPGRP:
	case TIOCGSID:
	case TIOCGPTN:
		if (ok)
			put_fixed(l, &fx_i32, v);
		else
			put_ptr(l, v);
		break;
	case TIOCGWINSZ:
	case TIOCSWINSZ:
		if (ok)
			put_fixed(l, &fx_winsize, v);
		else
			put_ptr(l, v);
		break;
	default:
		put_hex(l, v);
	}
}

static void put_optname(struct line *l, uint64_t v)
{
	static const struct {
		int level;
		const struct symset *set;
	} levels[] = { { 0, &ss_soip }, { SOL_SOCKET, &ss_so }, { 6, &ss_sotcp }, { 41, &ss_soip6 } };
	size_t i;

	for (i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
		if (levels[i].level == (int)l->arg[1]) {
			put_set(l, levels[i].set, v);
			return;
		}
	}
	put(l, "%d", (int)v);
}

static void put_opt(struct line *l, uint64_t gva, uint64_t len)
{
	if (len == 4)
		put_fixed(l, &fx_i32, gva);
	else
		put_data(l, gva, len);
}

/* The socklen_t at gva, 0 when it can't be read. */
static uint32_t socklen_at(uint64_t gva)
{
	uint32_t v = 0;

	return gva && !guest_read(&v, gva, 4) ? v : 0;
}

/* As much of the address as there was room for. */
static void put_sockaddr_out(struct line *l, int i)
{
	uint32_t len = i < 5 ? socklen_at(l->arg[i + 1]) : 0;
	const uint32_t *room = i < 5 ? was(l, i + 1, 4) : NULL;

	put_sockaddr(l, l->arg[i], room && *room < len ? *room : len);
}

static void put_futex_4(struct line *l, uint64_t v)
{
	switch (l->arg[1] & 0x7f) {
	case FUTEX_WAIT:
	case FUTEX_WAIT_BITSET:
	case FUTEX_LOCK_PI:
	case FUTEX_WAIT_REQUEUE_PI:
	case 13:
		put_fixed(l, &fx_timespec, v);
		break;
	case FUTEX_REQUEUE:
	case FUTEX_CMP_REQUEUE:
	case FUTEX_CMP_REQUEUE_PI:
	case FUTEX_WAKE_OP:
		put(l, "%d", (int)v);
		break;
	default:
		put_ptr(l, v);
	}
}

static void put_prctl_2(struct line *l, uint64_t v)
{
	switch ((int)l->arg[0]) {
	case PR_SET_NAME:
		put_str(l, v);
		break;
	case PR_GET_NAME:
		if (l->ret >= 0)
			put_str(l, v);
		else
			put_ptr(l, v);
		break;
	case PR_SET_PDEATHSIG:
		put_sig(l, (unsigned)v);
		break;
	case PR_GET_PDEATHSIG:
	case PR_GET_CHILD_SUBREAPER:
		put_fixed(l, &fx_i32, v);
		break;
	case PR_SET_DUMPABLE:
	case PR_SET_NO_NEW_PRIVS:
	case PR_SET_KEEPCAPS:
	case PR_CAPBSET_READ:
	case PR_SET_TIMERSLACK:
	case PR_SET_THP_DISABLE:
	case PR_SET_CHILD_SUBREAPER:
		put(l, "%" PRIu64, v);
		break;
	default:
		put_hex(l, v);
	}
}

/* pselect6's last argument: { const sigset_t *, size_t }. */
static void put_sigset_arg(struct line *l, uint64_t gva)
{
	uint64_t v[2];

	if (!gva || guest_read(v, gva, sizeof(v))) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "{sigmask=");
	put_fixed(l, &fx_sigset, v[0]);
	put(l, ", sigsetsize=%" PRIu64 "}", v[1]);
}

static void put_special(struct line *l, const struct special *s, int i)
{
	uint64_t v = l->arg[i];
	bool ok = l->ret >= 0;

	switch ((enum how)s->how) {
	case H_SET:
		put_set(l, s->p, v);
		break;
	case H_OUT:
		/* wait4 that found no child to report writes no status */
		if (!ok || (l->nr == SYS_wait4 && !l->ret)) {
			put_ptr(l, v);
			break;
		}
		/* fall through */
	case H_IN:
		put_fixed(l, s->p, v);
		break;
	case H_OUT_RET:
		if (ok)
			put_fixed_array(l, s->p, v, (uint64_t)l->ret);
		else
			put_ptr(l, v);
		break;
	case H_HEX:
		put_hex(l, v);
		break;
	case H_FDSET:
		put_fdset_was(l, i);
		break;
	case H_WAS:
	case H_WAS_NOW: {
		const struct fixed *f = s->p;
		const void *p = was(l, i, f->size);

		if (!v || !p)
			put_fixed(l, f, v);
		else
			f->fn(l, p);
		if (v && p && ok && s->how == H_WAS_NOW) {
			puts_(l, " => ");
			put_fixed(l, f, v);
		}
		break;
	}
	case H_MMSG_IN:
	case H_MMSG_OUT:
		put_mmsgs(l, v, (uint32_t)l->arg[2], s->how == H_MMSG_OUT);
		break;
	case H_RANDOM:
		if (ok)
			put_bytes(l, v, (uint64_t)l->ret);
		else
			put_ptr(l, v);
		break;
	case H_ARGV:
		put_strings(l, v);
		break;
	case H_ENVIRON:
		put_environ(l, v);
		break;
	case H_POLLFDS:
		put_pollfds(l, v, (uint32_t)l->arg[1], false);
		break;
	case H_SOCKADDR:
		put_sockaddr(l, v, i < 5 ? (uint32_t)l->arg[i + 1] : 0);
		break;
	case H_SOCKADDR_OUT:
		if (ok)
			put_sockaddr_out(l, i);
		else
			put_ptr(l, v);
		break;
	case H_SOCKLEN: {
		const uint32_t *old = was(l, i, 4);

		if (v && ok && old && *old != socklen_at(v))
			put(l, "[%d => %d]", (int)*old, (int)socklen_at(v));
		else
			put_fixed(l, &fx_i32, v);
		break;
	}
	case H_MSG_IN:
	case H_MSG_OUT:
		put_msghdr(l, v, s->how == H_MSG_OUT);
		break;
	case H_DIRENTS:
		put_dirents(l, v);
		break;
	case H_CSTR:
		if (ok)
			put_str(l, v);
		else
			put_ptr(l, v);
		break;
	case H_SIGSET_ARG:
		put_sigset_arg(l, v);
		break;
	case H_FCNTL:
		put_fcntl_arg(l, v);
		break;
	case H_IOCTL:
		put_ioctl_arg(l, v);
		break;
	case H_FUTEX_4:
		put_futex_4(l, v);
		break;
	case H_PRCTL:
		put_prctl_2(l, v);
		break;
	case H_OPTNAME:
		put_optname(l, v);
		break;
	case H_OPT_IN:
		put_opt(l, v, (uint32_t)l->arg[4]);
		break;
	case H_OPT_OUT:
		if (ok)
			put_opt(l, v, socklen_at(l->arg[4]));
		else
			put_ptr(l, v);
		break;
	case H_MKNOD:
		put_mode(l, (unsigned)v);
		break;
	case H_PROTO:
		if (l->arg[0] == AF_INET || l->arg[0] == AF_INET6)
			put_set(l, &ss_ipproto, v);
		else
			put(l, "%d", (int)v);
		break;
	case H_CPUSET:
		if (!ok || l->arg[1] > 8192)
			put_ptr(l, v);
		else
			put_fdset(l, v, 8 * (int)(l->nr == SYS_sched_getaffinity ? (uint64_t)l->ret : l->arg[1]));
		break;
	case H_ARCH:
		if (ok && (l->arg[0] == ARCH_GET_FS || l->arg[0] == ARCH_GET_GS))
			put_fixed(l, &fx_addr, v);
		else
			put_ptr(l, v);
		break;
	}
}

static void put_by_kind(struct line *l, const struct kx_arg_desc *d, int i)
{
	uint64_t v = l->arg[i], n;
	const struct symset *set;

	switch ((enum kx_arg_kind)d->kind) {
	case KX_A_NONE:
		break;
	case KX_A_FD:
	case KX_A_ATFD:
	case KX_A_FDN:
	case KX_A_FDNEW:
		if (d->kind == KX_A_ATFD)
			put_fd(l, (int)v);
		else
			put(l, "%d", (int)v);
		break;
	case KX_A_PATH:
	case KX_A_PATHE:
	case KX_A_PATHO:
	case KX_A_STR:
		put_str(l, v);
		break;
	case KX_A_IN:
		put_data(l, v, l->arg[d->aux]);
		break;
	case KX_A_OUT:
		n = l->arg[d->aux];
		if (l->ret >= 0)
			put_data(l, v, (uint64_t)l->ret < n ? (uint64_t)l->ret : n);
		else
			put_ptr(l, v);
		break;
	case KX_A_IOVI:
	case KX_A_IOVO:
		n = d->kind == KX_A_IOVI ? ~0ull : l->ret < 0 ? 0 : (uint64_t)l->ret;
		put_iovec(l, v, l->arg[d->aux], n);
		break;
	case KX_A_INS:
	case KX_A_OUTS:
	case KX_A_INOUTS:
	case KX_A_INSO:
	case KX_A_OUTSO:
	case KX_A_INOUTSO:
	case KX_A_PTR:
	case KX_A_ADDR:
		put_ptr(l, v);
		break;
	case KX_A_INT:
		put(l, "%d", (int)v);
		break;
	case KX_A_UINT:
		put(l, "%u", (unsigned)v);
		break;
	case KX_A_SIZE:
		put(l, "%" PRIu64, v);
		break;
	case KX_A_OFF:
		put(l, "%" PRId64, (int64_t)v);
		break;
	case KX_A_MODE:
		put(l, "%#03o", (unsigned)v);
		break;
	case KX_A_SIG:
		put_sig(l, (unsigned)v);
		break;
	case KX_A_FLAGS:
		set = set_find(d->set);
		if (l->nr == SYS_clone)
			put_clone_flags(l, v);
		else if (set)
			put_set(l, set, v);
		else
			put_hex(l, v);
		break;
	}
}

/* How many arguments this call uses: some depend on others. */
static int args_used(const struct line *l)
{
	const uint64_t *a = l->arg;
	int n = 0;

	while (n < 6 && l->row->arg[n].kind != KX_A_NONE)
		n++;
	switch (l->nr) {
	case SYS_open:
	case SYS_mq_open:
		if (!(a[1] & (O_CREAT | 020000000)))
			return 2;
		break;
	case SYS_openat:
		return a[2] & (O_CREAT | 020000000) ? 4 : 3;
	case SYS_preadv:
	case SYS_pwritev:
		return 4; /* the upper half of the offset means nothing */
	case SYS_mremap:
		return a[3] & MREMAP_FIXED ? 5 : 4;
	case SYS_fcntl:
		switch ((int)a[1]) {
		case F_GETFD:
		case F_GETFL:
		case F_GETOWN:
		case F_GETSIG:
		case F_GETLEASE:
		case F_GETPIPE_SZ:
		case F_GET_SEALS:
			return 2;
		}
		break;
	case SYS_prctl:
		switch ((int)a[0]) {
		case PR_GET_DUMPABLE:
		case PR_GET_KEEPCAPS:
		case PR_GET_SECCOMP:
		case PR_GET_SECUREBITS:
		case PR_GET_TIMERSLACK:
			return 1;
		case PR_SET_NAME:
		case PR_GET_NAME:
		case PR_SET_PDEATHSIG:
		case PR_GET_PDEATHSIG:
		case PR_SET_DUMPABLE:
		case PR_SET_KEEPCAPS:
		case PR_CAPBSET_READ:
		case PR_CAPBSET_DROP:
		case PR_SET_SECUREBITS:
		case PR_SET_TIMERSLACK:
		case PR_SET_CHILD_SUBREAPER:
		case PR_GET_CHILD_SUBREAPER:
		case PR_GET_TID_ADDRESS:
			return 2;
		}
		break;
	case SYS_futex:
		switch (a[1] & 0x7f) {
		case FUTEX_WAKE:
			return 3;
		case FUTEX_WAIT:
		case FUTEX_LOCK_PI:
		case 13:
			return 4;
		case FUTEX_UNLOCK_PI:
		case FUTEX_TRYLOCK_PI:
			return 2;
		case FUTEX_REQUEUE:
		case FUTEX_WAIT_REQUEUE_PI:
			return 5;
		}
		break;
	}
	return n;
}

/* ---- Results -------------------------------------------------------------------------------------------- */

static void put_select_note(struct line *l)
{
	static const char *const names[] = { "in", "out", "except" };
	const int n = (int)l->arg[0];
	const char *sep = " (";
	uint8_t set[BEFORE_MAX];

	if (!l->ret) {
		puts_(l, " (Timeout)");
		return;
	}
	for (int i = 0; i < 3; i++) {
		bool any = false;

		if (!l->arg[i + 1] || n <= 0 || n > 8 * BEFORE_MAX ||
		    guest_read(set, l->arg[i + 1], ((unsigned)n + 63) / 64 * 8))
			continue;
		for (int k = 0; k < n; k++)
			any = any || set[k / 8] >> (k % 8) & 1;
		if (!any)
			continue;
		put(l, "%s%s ", sep, names[i]);
		put_bits(l, set, n);
		sep = ", ";
	}
	if (l->arg[4]) {
		put(l, "%sleft ", sep);
		put_fixed(l, l->nr == SYS_select ? &fx_timeval : &fx_timespec, l->arg[4]);
		sep = ", ";
	}
	puts_(l, *sep == ',' ? ")" : "");
}

/* What came back through the arguments, and what the number means. */
static void put_result_note(struct line *l)
{
	int32_t tid;
	uint64_t v;

	switch (l->nr) {
	case SYS_poll:
	case SYS_ppoll:
		if (!l->ret) {
			puts_(l, " (Timeout)");
		} else {
			puts_(l, " (");
			put_pollfds(l, l->arg[0], (uint32_t)l->arg[1], true);
			if (l->nr == SYS_ppoll && l->arg[2]) {
				puts_(l, ", left ");
				put_fixed(l, &fx_timespec, l->arg[2]);
			}
			puts_(l, ")");
		}
		break;
	case SYS_select:
	case SYS_pselect6:
		put_select_note(l);
		break;
	case SYS_fcntl:
		if (l->arg[1] == F_GETFL || (l->arg[1] == F_GETFD && l->ret)) {
			puts_(l, " (flags ");
			put_set(l, l->arg[1] == F_GETFL ? &ss_open : &ss_fdflag, (uint64_t)l->ret);
			puts_(l, ")");
		}
		break;
	case SYS_rt_sigtimedwait:
		puts_(l, " (");
		put_sig(l, (unsigned)l->ret);
		puts_(l, ")");
		break;
	case SYS_clone3:
		/* struct clone_args: flags at 0, parent_tid at 24 */
		if (!guest_read(&v, l->arg[0], 8) && (v & CLONE_PARENT_SETTID) && !guest_read(&v, l->arg[0] + 24, 8) &&
		    !guest_read(&tid, v, 4))
			put(l, " => {parent_tid=[%d]}", tid);
		break;
	}
}

static void put_ret(struct line *l)
{
	const char *name;

	if (l->ret == -KX_ERESTART) {
		puts_(l, "? ERESTARTSYS (To be restarted if SA_RESTART is set)");
	} else if (l->ret == -KX_ERESTART_ALWAYS) {
		puts_(l, "? ERESTARTNOINTR (To be restarted)");
	} else if (l->ret == -KX_ERESTART_NOHAND) {
		puts_(l, "? ERESTARTNOHAND (To be restarted if no handler)");
	} else if (l->ret < 0 && l->ret >= -4095) {
		name = strerrorname_np((int)-l->ret);
		if (name)
			put(l, "-1 %s (%s)", name, strerrordesc_np((int)-l->ret));
		else
			put(l, "-1 (errno %d)", (int)-l->ret);
	} else {
		switch (l->nr) {
		case SYS_mmap:
		case SYS_brk:
		case SYS_mremap:
		case SYS_shmat:
			put(l, "%#" PRIx64, (uint64_t)l->ret);
			break;
		case SYS_umask:
			put(l, "%#03o", (unsigned)l->ret);
			break;
		case SYS_fcntl:
			put(l, l->arg[1] == F_GETFL || l->arg[1] == F_GETFD ? "%#" PRIx64 : "%" PRId64, l->ret);
			break;
		default:
			put(l, "%" PRId64, l->ret);
		}
		put_result_note(l);
	}
}

/* ---- Interface ------------------------------------------------------------------------------------------ */

const char *strace_call_name(uint64_t nr)
{
	const struct hc_row *row = hc_row_find(nr);
	const struct sym *s;

	if (row)
		return row->name;
	for (s = st_rowless; s->name; s++)
		if (s->v == nr)
			return s->name;
	return NULL;
}

int strace_fd(void) { return __atomic_load_n(&trace_fd, __ATOMIC_RELAXED); }
void strace_adopt(int fd) { fd_keep(&trace_fd, fd); }

int strace_init(const char *file)
{
	int fd = file ? open(file, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644)
		      : fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);

	if (fd < 0)
		return -errno;
	return fd_keep(&trace_fd, fd);
}

/* strace(1)'s order and names. */
static void put_clone(struct line *l)
{
	const uint64_t *a = l->arg;
	int32_t tid;

	puts_(l, "child_stack=");
	put_ptr(l, a[1]);
	puts_(l, ", flags=");
	put_clone_flags(l, a[0]);
	if (a[0] & CLONE_PARENT_SETTID) {
		if (l->ret >= 0 && !guest_read(&tid, a[2], 4))
			put(l, ", parent_tid=[%d]", tid);
		else
			put(l, ", parent_tid=%#" PRIx64, a[2]);
	}
	if (a[0] & CLONE_SETTLS)
		put(l, ", tls=%#" PRIx64, a[4]);
	if (a[0] & (CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID))
		put(l, ", child_tidptr=%#" PRIx64, a[3]);
}

void strace_before(uint64_t nr, const uint64_t arg[6])
{
	static const struct {
		uint16_t nr;
		uint8_t arg, len; /* 0: a set of arg[0] descriptors */
		uint8_t at;
	} kept[] = {
		{ SYS_select, 1, 0, 0 },          { SYS_select, 2, 0, 0 },          { SYS_select, 3, 0, 0 },
		{ SYS_select, 4, 16, 0 },         { SYS_pselect6, 1, 0, 0 },        { SYS_pselect6, 2, 0, 0 },
		{ SYS_pselect6, 3, 0, 0 },        { SYS_pselect6, 4, 16, 0 },       { SYS_ppoll, 2, 16, 0 },
		{ SYS_sendfile, 2, 8, 0 },        { SYS_splice, 1, 8, 0 },          { SYS_splice, 3, 8, 0 },
		{ SYS_copy_file_range, 1, 8, 0 }, { SYS_copy_file_range, 3, 8, 0 }, { SYS_accept, 2, 4, 0 },
		{ SYS_accept4, 2, 4, 0 },         { SYS_getsockname, 2, 4, 0 },     { SYS_getpeername, 2, 4, 0 },
		{ SYS_recvfrom, 5, 4, 0 },        { SYS_getsockopt, 4, 4, 0 },      { SYS_recvmsg, 1, 4, 8 },
	};
	before.nr = nr;
	memset(before.len, 0, sizeof(before.len));
	for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++) {
		int a = kept[i].arg;
		uint64_t len = kept[i].len ? kept[i].len : ((uint32_t)arg[0] + 63ull) / 64 * 8;

		if (kept[i].nr == nr && arg[a] && len <= BEFORE_MAX &&
		    !guest_read(before.v[a], arg[a] + kept[i].at, len))
			before.len[a] = (uint16_t)len;
	}
}

void strace_call(struct thread *t, const struct hc_row *row, uint64_t nr, const uint64_t arg[6], int64_t ret, int path,
		 uint64_t ns)
{
	static const char *const marks[] = { "libos", "monitor", "slow" };
	const struct special *s;
	const char *name;
	int saved = errno, i, n;
	struct line l;

	if (trace_fd < 0)
		return;
	line_start(&l, t);
	l.row = row;
	l.nr = nr;
	l.arg = arg;
	l.ret = ret;
	name = row ? row->name : strace_call_name(nr);
	if (name)
		put(&l, "%s(", name);
	else
		put(&l, "syscall_%#" PRIx64 "(", nr);
	n = row ? args_used(&l) : 6;
	if (row && nr == SYS_clone) {
		put_clone(&l);
		n = 0;
	}
	for (i = 0; i < n; i++) {
		if (i == 4 && (nr == SYS_preadv2 || nr == SYS_pwritev2))
			continue; /* the upper half of the offset means nothing */
		puts_(&l, i ? ", " : "");
		s = row ? special_find(nr, i) : NULL;
		if (!row)
			put_hex(&l, arg[i]);
		else if (s)
			put_special(&l, s, i);
		else
			put_by_kind(&l, &row->arg[i], i);
	}
	line_tail(&l);
	puts_(&l, ") = ");
	if (row && (nr == SYS_exit || nr == SYS_exit_group)) {
		puts_(&l, "?");
	} else {
		put_ret(&l);
		l.limit = sizeof(l.buf) - 1;
		if (strace_show_time)
			put(&l, " <%" PRIu64 ".%06" PRIu64 ">", ns / 1000000000, ns / 1000 % 1000000);
		put(&l, " <%s>", marks[path >= 0 && path < 3 ? path : KX_PATH_MONITOR]);
	}
	line_end(&l);
	before.nr = ~0ull;
	errno = saved;
}

void strace_start(struct thread *t, const char *path, char *const *argv, uint64_t env_gva, unsigned nr_env)
{
	int saved = errno, i;
	struct line l;

	if (trace_fd < 0)
		return;
	line_start(&l, t);
	puts_(&l, "execve(");
	put_chars(&l, path, PATH_SHOWN);
	puts_(&l, ", [");
	for (i = 0; argv[i] && i < ELEMS_SHOWN; i++) {
		puts_(&l, i ? ", " : "");
		put_chars(&l, argv[i], DATA_SHOWN);
		puts_(&l, strlen(argv[i]) > DATA_SHOWN ? "..." : "");
	}
	puts_(&l, argv[i] ? ", ...], " : "], ");
	put_count(&l, env_gva, nr_env);
	line_tail(&l);
	puts_(&l, ") = 0 <monitor>");
	line_end(&l);
	errno = saved;
}

void strace_signal(struct thread *t, int signo, const siginfo_t *si)
{
	int saved = errno;
	struct line l;

	if (trace_fd < 0)
		return;
	line_start(&l, t);
	puts_(&l, "--- ");
	put_sig(&l, (unsigned)signo);
	if (si) {
		puts_(&l, " ");
		put_siginfo(&l, signo, si);
	}
	puts_(&l, " ---");
	line_end(&l);
	errno = saved;
}

void strace_exit(const char *how)
{
	int saved = errno;
	struct line l;

	if (trace_fd < 0)
		return;
	line_start(&l, self);
	put(&l, "+++ %s +++", how);
	line_end(&l);
	errno = saved;
}
