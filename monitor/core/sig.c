/* SPDX-License-Identifier: Apache-2.0 */
#include "sig.h"
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#include "../../util/log.h"
#include "coredump.h"
#include "gmem.h"
#include "openahead.h"
#include "pipe.h"
#include "robust.h"
#include "rseq.h"
#include "serve.h"
#include "strace.h"
#include "update.h"
#include "written.h"

extern const char host_blocking_begin[], host_blocking_end[], host_blocking_abort[];
extern const char host_copy_begin[], host_copy_end[], host_restorer[];
long host_call_flag(volatile int *flag, const long args[7]);
size_t host_copy(void *dst, const void *src, size_t len);
extern const char host_swap_begin[], host_swap_end[], host_swap_fault[];
int host_swap(uint32_t *p, uint32_t *old, uint32_t new);
extern const char host_find_begin[], host_find_end[], host_find_fault[];
int host_find(const void *p, size_t n, uint64_t from, uint64_t span);

/* As the kernel's struct sigaction for x86-64. */
struct ksigaction {
	void (*handler)(int, siginfo_t *, void *);
	unsigned long flags;
	void (*restorer)(void);
	uint64_t mask;
};
#define KSA_RESTORER 0x04000000ul

static char kick_cookie, try_cookie;
static uint64_t plain_signals; /* whose action the host performs by itself: default or ignored */
#define REQUEUE_MAX 4096
#define TRAP_PAGE_FAULT 14
#define FAULTS (SIGBIT(SIGSEGV) | SIGBIT(SIGBUS))
#define ALL_BUT_FAULTS (~FAULTS)
/* Never blocked on the host: by these come the monitor's own faults and kicks. What the guest gets of them is held. */
#define UNBLOCKED (FAULTS | SIGBIT(KICK_SIG))

static int raw_sigaction(int signo, const struct ksigaction *act)
{
	return host_call(SYS_rt_sigaction, signo, (long)act, 0, 8, 0, 0);
}

static void set_mask(uint64_t mask)
{
	mask &= ~(UNBLOCKED | SIGBIT(SIGKILL) | SIGBIT(SIGSTOP));
	host_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&mask, 0, 8, 0, 0);
}

uint64_t sig_block_everything(void)
{
	uint64_t all = ALL_BUT_FAULTS, old = 0;
	host_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&all, (long)&old, 8, 0, 0);
	return old;
}

void sig_restore(uint64_t mask, struct thread *t)
{
	(void)t;
	host_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&mask, 0, 8, 0, 0);
}

void sig_block_all(void) { set_mask(ALL_BUT_FAULTS); }

#define TRY_FIRST_NS 30000
#define TRY_AGAIN_NS 300000

/*
 * A call while an accepted signal waits to be delivered: what is ready is had, as on Linux, which looks for signals
 * only before it sleeps. The signal is the monitor's by now and wakes nobody, so a timer ends the sleep in its place,
 * more than once: it may have gone off before the call began.
 */
static long host_call_try(const long a[7])
{
	struct sigevent ev = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = KICK_SIG };
	struct itimerspec when = { .it_value.tv_nsec = TRY_FIRST_NS, .it_interval.tv_nsec = TRY_AGAIN_NS };
	int timer;
	ev.sigev_value.sival_ptr = &try_cookie;
	ev._sigev_un._tid = self->tid;
	if (host_call(SYS_timer_create, CLOCK_MONOTONIC, (long)&ev, (long)&timer, 0, 0, 0)) /* no room for its signal */
		return HOST_NOT_BEGUN;
	host_call(SYS_timer_settime, timer, 0, (long)&when, 0, 0, 0);
	long r = host_call(a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
	host_call(SYS_timer_delete, timer, 0, 0, 0, 0, 0);
	return r;
}

long host_call_blocking(long nr, long a, long b, long c, long d, long e, long f)
{
	const long args[7] = { nr, a, b, c, d, e, f };
	pipe_owed();
	long r = host_call_flag(&self->sig_stop, args);
	if (r == HOST_NOT_BEGUN && self->sig_stop && self->sig_stop != SIG_STOP_NEVER)
		r = host_call_try(args);
	return r == HOST_NOT_BEGUN ? -EINTR : r;
}

/* ---- copying from and to guest memory ------------------------------------------------------------------- */

int guest_read(void *dst, uint64_t gva, size_t len)
{
	if (!gva_readable(gva, len) || (len && host_copy(dst, gva_ptr(gva), len)))
		return -EFAULT;
	return 0;
}

int guest_write(uint64_t gva, const void *src, size_t len)
{
	written_mark(gva, len);
	return guest_put(gva, src, len);
}

int guest_put(uint64_t gva, const void *src, size_t len)
{
	if (!gva_ok(gva, len) || (len && host_copy(gva_ptr(gva), src, len)))
		return -EFAULT;
	return 0;
}

int guest_find(uint64_t gva, size_t len, uint64_t from, uint64_t span)
{
	int r = gva_readable(gva, len) && !(gva & 7) && !(len & 31) ? host_find(gva_ptr(gva), len / 8, from, span) : 2;
	return r == 2 ? -EFAULT : r;
}

int guest_swap(uint64_t gva, uint32_t *old, uint32_t new)
{
	int r = gva_ok(gva, sizeof new) && !(gva & 3) ? host_swap(gva_ptr(gva), old, new) : 2;
	return r == 2 ? -EFAULT : r ? -EAGAIN : 0;
}

ssize_t guest_read_str(char *dst, uint64_t gva, size_t max)
{
	size_t n = 0;
	while (n < max) {
		/* Up to the end of the page: the next one may not be there. */
		size_t part = 4096 - (gva + n) % 4096;
		if (part > max - n)
			part = max - n;
		if (guest_read(dst + n, gva + n, part))
			return -EFAULT;
		char *end = memchr(dst + n, 0, part);
		if (end)
			return end - dst;
		n += part;
	}
	return -ENAMETOOLONG;
}

/* ---- the handler ------------------------------------------------------------------------------------------ */

/*
 * Whom a queued signal was for can't be seen from its SI_QUEUE. What the guest queues for one thread carries a mark in
 * bytes that the kernel hands through and that mean nothing there.
 */
#define MARK_AT 40 /* of siginfo_t: behind si_value, within what the kernel keeps */
static const char thread_mark[8] = "kxthread";

void sig_mark_thread(siginfo_t *info) { memcpy((char *)info + MARK_AT, thread_mark, sizeof thread_mark); }

static bool is_for_thread(const siginfo_t *info)
{
	return info->si_code == SI_TKILL || !memcmp((const char *)info + MARK_AT, thread_mark, sizeof thread_mark);
}

/*
 * Queue a signal again as it came; its signal is blocked on this thread by now. Named by the thread's number, also
 * where the process is meant: the kernel lets only who has that very number send what looks like its own or kill()'s.
 */
static long requeue(int signo, siginfo_t *info, bool to_thread)
{
	if (!to_thread)
		return host_call(SYS_rt_sigqueueinfo, self->tid, signo, (long)info, 0, 0, 0);
	if (info->si_code == SI_QUEUE)
		sig_mark_thread(info);
	return host_call(SYS_rt_tgsigqueueinfo, my_pid(), self->tid, signo, (long)info, 0, 0);
}

static bool is_queued_kind(int signo) { return signo > KICK_SIG; }

/* False: there is one already. The bit comes last and goes last: the handler may come in between. */
static bool hold(struct thread *t, int signo, const siginfo_t *info)
{
	if (t->held & SIGBIT(signo))
		return false;
	t->held_info[signo - 1] = *info;
	__atomic_or_fetch(&t->held, SIGBIT(signo), __ATOMIC_RELEASE);
	return true;
}

/*
 * A signal was accepted that the guest blocks by now. A standard signal goes back to the host: it does not queue, and
 * another thread may take it. A real-time signal would end up behind those that came after it, or find the queue
 * full; so it is held here, and the host, which blocks its number from now on, queues the others behind it. With
 * `others`, one that is for the process is left to another thread.
 * Everything is held back on the host.
 */
static void put_back(struct thread *t, int signo, siginfo_t *info, bool others)
{
	bool to_thread = is_for_thread(info);
	t->hmask |= SIGBIT(signo);
	t->area->host_mask = t->hmask;
	if (is_queued_kind(signo)) {
		if (others && !to_thread && pvm.nr_threads > 1 && !requeue(signo, info, false))
			return;
		if (hold(t, signo, info))
			return;
	}
	requeue(signo, info, to_thread);
}

static void abort_blocking_call(ucontext_t *uc)
{
	greg_t *rip = &uc->uc_mcontext.gregs[REG_RIP];
	if (*rip >= (greg_t)host_blocking_begin && *rip <= (greg_t)host_blocking_end)
		*rip = (greg_t)host_blocking_abort;
}

/*
 * A fault of the monitor's own, not a signal that a program sent itself, or had sent, with the numbers of one: the end
 * of a child with this exit signal, rt_sigqueueinfo. A fault's address is what the exception left.
 */
static bool is_fault(int signo, const siginfo_t *info, const ucontext_t *uc)
{
	const greg_t *r = uc->uc_mcontext.gregs;
	greg_t addr = (greg_t)info->si_addr;
	if (info->si_code <= 0)
		return false;
	switch (signo) {
	case SIGSEGV:
	case SIGBUS:
		return r[REG_TRAPNO] == TRAP_PAGE_FAULT ? addr == r[REG_CR2]
							: r[REG_TRAPNO] && info->si_code == SI_KERNEL;
	case SIGFPE:
	case SIGILL:
		return addr == r[REG_RIP];
	}
	return false;
}

/* A fault of the monitor itself: expected at an access to guest memory, else the end. */
static void monitor_fault(int signo, siginfo_t *info, ucontext_t *uc)
{
	greg_t *rip = &uc->uc_mcontext.gregs[REG_RIP];
	if (*rip >= (greg_t)host_copy_begin && *rip < (greg_t)host_copy_end) {
		*rip = (greg_t)host_copy_end;
		return;
	}
	if (*rip >= (greg_t)host_swap_begin && *rip < (greg_t)host_swap_end) {
		*rip = (greg_t)host_swap_fault;
		return;
	}
	if (*rip >= (greg_t)host_find_begin && *rip < (greg_t)host_find_end) {
		*rip = (greg_t)host_find_fault;
		return;
	}
	if (signo == SIGBUS && gmem_text_cut(info->si_addr))
		return;
	kx_log(KX_LOG_ERROR, "monitor", "internal fault: signal %d at %#llx, address %p", signo,
	       (unsigned long long)*rip, info->si_addr);
	struct ksigaction dfl = { 0 };
	raw_sigaction(signo, &dfl);
}

static void on_signal(int signo, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	struct thread *t = self;
	int saved_errno = errno;
	uint64_t *mask = (uint64_t *)&uc->uc_sigmask;
	if (is_fault(signo, info, uc)) {
		monitor_fault(signo, info, uc);
		return;
	}
	if (signo == KICK_SIG && (update_is_poke(info) || pipe_is_poke(info))) {
		errno = saved_errno;
		if (!t || serve_signal(signo))
			return;
		t->kicked = 1;
		if (t->run)
			t->run->immediate_exit = 1;
		abort_blocking_call(uc);
		return;
	}
	if (!t || serve_signal(signo))
		return;
	if (signo == KICK_SIG && info->si_code == SI_QUEUE && rseq_is_kick(info) && info->si_pid == pvm.pid) {
		t->seat_kicked = 1; /* sent to a thread in the guest only: no host call to abort */
		if (t->run)
			t->run->immediate_exit = 1;
		return;
	}
	if (signo == KICK_SIG && info->si_code == SI_QUEUE && info->si_value.sival_ptr == &kick_cookie &&
	    info->si_pid == my_pid()) {
		robust_kicked(t);
		t->kicked = 1;
		if (t->run)
			t->run->immediate_exit = 1;
		abort_blocking_call(uc);
		return;
	}
	if (signo == KICK_SIG && info->si_code == SI_TIMER && info->si_value.sival_ptr == &try_cookie)
		return;
	bool blocked = t->area->sigmask & SIGBIT(signo);
	if (SIGBIT(signo) & UNBLOCKED) {
		hold(t, signo, info);
	} else if (blocked) {
		t->kicked = 1;
		*mask |= SIGBIT(signo);
		put_back(t, signo, info, true);
	} else {
		t->acc_info = *info;
		t->acc_signo = signo;
		*mask = ~UNBLOCKED;
	}
	if (!blocked) {
		t->sig_stop = 1;
		if (t->run)
			t->run->immediate_exit = 1;
		abort_blocking_call(uc);
	}
	errno = saved_errno;
}

/* ---- dispositions ------------------------------------------------------------------------------------------ */

static bool default_ends_process(int signo)
{
	switch (signo) {
	case SIGCHLD:
	case SIGCONT:
	case SIGURG:
	case SIGWINCH:
	case SIGSTOP:
	case SIGTSTP:
	case SIGTTIN:
	case SIGTTOU:
	case SIGKILL:
		return false;
	}
	return true;
}

/* The host's action for the guest's; nothing is done when that is *OLD already. Returns 0 or -errno. */
static int set_disposition(int signo, const struct kx_sigaction *act, const struct ksigaction *old)
{
	struct ksigaction k = { .handler = on_signal,
				.mask = ~0ull,
				.flags = SA_SIGINFO | KSA_RESTORER,
				.restorer = (void (*)(void))host_restorer };
	k.flags |= act->flags & (SA_NOCLDSTOP | SA_NOCLDWAIT);
	k.mask &= ALL_BUT_FAULTS;
	/* The monitor's own faults come by these. What ends the process by default comes here, too: the guest may
	 * block it, which the host does not know yet. */
	bool keep = signo == SIGSEGV || signo == SIGBUS || signo == SIGFPE || signo == SIGILL || signo == KICK_SIG;
	if (act->handler == (uint64_t)SIG_IGN && !keep)
		k.handler = (void *)SIG_IGN;
	else if (act->handler == (uint64_t)SIG_DFL && !keep && !default_ends_process(signo))
		k.handler = (void *)SIG_DFL;
	if (k.handler != on_signal)
		__atomic_or_fetch(&plain_signals, SIGBIT(signo), __ATOMIC_RELAXED);
	else if (!self || !self->area->vfork) /* a child of vfork shares this with its parent */
		__atomic_and_fetch(&plain_signals, ~SIGBIT(signo), __ATOMIC_RELAXED);
	serve_plain_signals(__atomic_load_n(&plain_signals, __ATOMIC_RELAXED));
	/* An action that drops signals drops those that are pending, set to what it was already, too (do_sigaction()). */
	if (old && k.handler != on_signal && k.handler == old->handler)
		return 0;
	return raw_sigaction(signo, &k);
}

int sig_set_disposition(int signo, const struct kx_sigaction *act) { return set_disposition(signo, act, NULL); }

static void *nothing(void *arg) { return arg; }

/* The first pthread_create() of a process gives KICK_SIG glibc's handler, even when it fails, as this one does. */
static void sig_claim_kick(void)
{
	pthread_attr_t attr;
	pthread_t thread;
	pthread_attr_init(&attr);
	pthread_attr_setguardsize(&attr, 1ul << 50);
	pthread_create(&thread, &attr, nothing, NULL);
	pthread_attr_destroy(&attr);
}

void sig_init(void)
{
	struct ksigaction old;
	sig_claim_kick();
	for (int s = 1; s <= 64; s++) {
		struct kx_sigaction *act = &pvm.shared->sigaction[s];
		memset(act, 0, sizeof *act);
		if (s == SIGKILL || s == SIGSTOP)
			continue;
		/* Ignored signals stay ignored across exec; everything else starts as default. */
		bool known = !host_call(SYS_rt_sigaction, s, 0, (long)&old, 8, 0, 0);
		if (known && (void *)old.handler == (void *)SIG_IGN)
			act->handler = (uint64_t)SIG_IGN;
		set_disposition(s, act, known ? &old : NULL);
	}
}

void sig_thread_start(struct thread *t, uint64_t most)
{
	t->hmask = t->area->sigmask & most;
	t->area->host_mask = t->hmask;
	set_mask(t->hmask);
}

/* ---- handing over -------------------------------------------------------------------------------------------- */

/*
 * Around every look at, and change of, what the handler changes, too: acc_signo, hmask, held. To look first
 * and set the host's mask then would let the handler accept a second signal over the first in between.
 */
static void stop_handler(void) { sig_block_everything(); }

/* With a signal accepted no other one can be. */
static void go_on(struct thread *t)
{
	t->hmask |= t->held & ~UNBLOCKED;
	t->area->host_mask = t->hmask;
	set_mask(t->acc_signo ? ~0ull : t->hmask);
}

/* Queued signals that will be blocked while the handler of the one that is handed over runs: they stay where they
 * are, in order. */
static uint64_t blocked_soon(struct thread *t)
{
	uint32_t signo = t->area->sig.signo;
	if (!signo || signo > 64)
		return 0;
	struct kx_sigaction act = actions_of(t)[signo];
	return (act.mask | (act.flags & SA_NODEFER ? 0 : SIGBIT(signo))) & pvm.shared->rt_handlers;
}

/* The handler is stopped. Does not return when the default action is the end. */
static void hand_over(struct thread *t, int signo, const siginfo_t *info)
{
	struct kx_signal *s = &t->area->sig;
	if (actions_of(t)[signo].handler == (uint64_t)SIG_DFL && default_ends_process(signo)) {
		if (pvm.cfg->strace)
			strace_signal(t, signo, info);
		coredump_cause(info);
		pvm_die_by_signal(signo);
	}
	t->given_to_thread = is_for_thread(info);
	memcpy(s->info, info, sizeof s->info);
	coredump_tell((siginfo_t *)s->info);
	if (info->si_code == SI_QUEUE)
		memset(s->info + MARK_AT, 0, sizeof thread_mark);
	s->forced = 0;
	s->trapno = s->err = s->cr2 = 0;
	__atomic_store_n(&s->signo, signo, __ATOMIC_RELEASE);
	t->hmask |= blocked_soon(t);
	openahead_stale();
	__atomic_or_fetch(&t->area->work, KX_WORK_SIGNAL, __ATOMIC_RELEASE);
	if (pvm.cfg->strace)
		strace_signal(t, signo, info);
}

/* The guest may change its mask at any time: decide by what one look says. */
static uint64_t guest_mask(const struct thread *t) { return __atomic_load_n(&t->area->sigmask, __ATOMIC_RELAXED); }
static uint64_t open_held(const struct thread *t) { return t->held & ~guest_mask(t); }
static bool waiting(const struct thread *t) { return t->acc_signo || open_held(t); }

static void take_held(struct thread *t, int signo, siginfo_t *info)
{
	*info = t->held_info[signo - 1];
	__atomic_and_fetch(&t->held, ~SIGBIT(signo), __ATOMIC_RELEASE);
}

/* The next of those that wait; the handler is stopped. */
static void hand_over_next(struct thread *t)
{
	siginfo_t info;
	uint64_t open = open_held(t);
	if (open) {
		int signo = __builtin_ctzll(open) + 1;
		take_held(t, signo, &info);
		hand_over(t, signo, &info);
	} else if (t->acc_signo) {
		int signo = t->acc_signo;
		info = t->acc_info;
		t->acc_signo = 0;
		pipe_signal(signo);
		if (guest_mask(t) & SIGBIT(signo))
			put_back(t, signo, &info, false);
		else
			hand_over(t, signo, &info);
	}
}

void sig_prepare(struct thread *t)
{
	if (waiting(t) && !t->area->sig.signo) {
		stop_handler();
		while (waiting(t) && !t->area->sig.signo)
			hand_over_next(t);
		go_on(t);
	}
	t->sig_stop = t->area->sig.signo != 0;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (waiting(t)) {
		__atomic_or_fetch(&t->area->work, KX_WORK_MORE, __ATOMIC_RELEASE);
		t->sig_stop = 1;
	}
}

void sig_sync_block(struct thread *t)
{
	uint64_t mask = t->area->sigmask;
	if (!(mask & ~t->hmask))
		return;
	stop_handler();
	t->hmask |= mask;
	go_on(t);
}

void sig_sync_plain(struct thread *t)
{
	uint64_t plain = t->area->vfork ? ~0ull : __atomic_load_n(&plain_signals, __ATOMIC_RELAXED);
	if (t->area->sigmask & ~t->hmask & plain)
		sig_sync_block(t);
}

/* Accepted or handed over, thus there before a mask that blocks it. */
static bool came_before(struct thread *t, uint64_t mask)
{
	uint32_t given = t->area->sig.signo;
	return (t->acc_signo && (mask & SIGBIT(t->acc_signo))) || (given && given <= 64 && (mask & SIGBIT(given)));
}

bool sig_mask_set(struct thread *t, uint64_t mask)
{
	mask &= ~(SIGBIT(SIGKILL) | SIGBIT(SIGSTOP));
	stop_handler();
	/* Only what blocks more than before. */
	bool good = !came_before(t, mask & ~t->area->sigmask);
	if (good) {
		t->area->sigmask = mask;
		t->hmask = (t->hmask & mask) | (mask & pvm.shared->rt_handlers) | blocked_soon(t);
	}
	go_on(t);
	return good;
}

bool sig_mask_enter(struct thread *t, uint64_t mask)
{
	mask &= ~(SIGBIT(SIGKILL) | SIGBIT(SIGSTOP));
	stop_handler();
	bool good = !came_before(t, mask);
	if (good) {
		t->area->saved_mask = t->area->sigmask;
		t->area->has_saved_mask = 1;
		t->area->sigmask = mask;
		t->hmask = mask | blocked_soon(t);
		if (waiting(t))
			t->sig_stop = 1;
	}
	go_on(t);
	return good;
}

int64_t sig_mask_leave(struct thread *t, int64_t ret)
{
	if (ret == -EINTR && t->sig_stop)
		return ret; /* the LibOS restores the mask when it has made the frame */
	stop_handler();
	uint64_t mask = t->area->saved_mask;
	t->area->sigmask = mask;
	t->area->has_saved_mask = 0;
	t->hmask = (t->hmask & mask) | (mask & pvm.shared->rt_handlers) | blocked_soon(t);
	go_on(t);
	return ret;
}

void sig_force(struct thread *t, int signo, int code, uint64_t addr, uint64_t trapno, uint64_t err, uint64_t cr2)
{
	siginfo_t info;
	memset(&info, 0, sizeof info);
	info.si_signo = signo;
	info.si_code = code;
	info.si_addr = (void *)addr;
	struct kx_sigaction act = actions_of(t)[signo];
	if ((t->area->sigmask & SIGBIT(signo)) || act.handler == (uint64_t)SIG_IGN ||
	    act.handler == (uint64_t)SIG_DFL) {
		if (pvm.cfg->strace)
			strace_signal(t, signo, &info);
		coredump_cause(&info);
		pvm_die_by_signal(signo);
	}
	stop_handler();
	if (t->area->sig.signo) { /* an asynchronous one is on its way: the fault comes first */
		siginfo_t old;
		int s = t->area->sig.signo;
		memcpy(&old, t->area->sig.info, sizeof old);
		t->area->sig.signo = 0;
		if (s >= 1 && s <= 64 && (!is_queued_kind(s) || !hold(t, s, &old)))
			requeue(s, &old, t->given_to_thread);
	}
	hand_over(t, signo, &info);
	t->area->sig.forced = 1;
	t->area->sig.trapno = trapno;
	t->area->sig.err = err;
	t->area->sig.cr2 = cr2;
	go_on(t);
}

int sig_take_held(struct thread *t, uint64_t set, siginfo_t *info)
{
	struct timespec zero = { 0, 0 };
	if (!(t->held & set))
		return 0;
	stop_handler();
	int signo = __builtin_ctzll(t->held & set) + 1;
	uint64_t lower = set & (SIGBIT(signo) - 1) & ~UNBLOCKED;
	long first = lower ? HC6(SYS_rt_sigtimedwait, &lower, info, &zero, 8, 0, 0) : 0;
	if (first > 0)
		signo = first;
	else
		take_held(t, signo, info);
	go_on(t);
	return signo;
}

/* Queue a held signal again, ahead of those that the host has queued behind it. */
static void requeue_first(int signo, siginfo_t *info)
{
	const size_t size = REQUEUE_MAX * sizeof *info;
	siginfo_t *more = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int n = 0;
	uint64_t set = SIGBIT(signo);
	struct timespec zero = { 0, 0 };
	while (more != MAP_FAILED && n < REQUEUE_MAX &&
	       HC6(SYS_rt_sigtimedwait, &set, &more[n], &zero, 8, 0, 0) == signo)
		n++;
	requeue(signo, info, is_for_thread(info));
	for (int i = 0; i < n; i++)
		requeue(signo, &more[i], is_for_thread(&more[i]));
	if (more != MAP_FAILED)
		munmap(more, size);
}

void sig_give_back(struct thread *t, bool own)
{
	siginfo_t info;
	int signo = t->area->sig.signo;
	if (signo >= 1 && signo <= 64 && !t->area->sig.forced && (own || !t->given_to_thread)) {
		memcpy(&info, t->area->sig.info, sizeof info);
		requeue(signo, &info, t->given_to_thread);
	}
	t->area->sig.signo = 0;
	/* What came while some are taken and queued again would be ahead of them; so what nobody is to get yet is carried. */
	const uint64_t carried = own ? t->held & guest_mask(t) & ~0ull << KICK_SIG : 0;
	while (t->held & ~carried) {
		signo = __builtin_ctzll(t->held & ~carried) + 1;
		take_held(t, signo, &info);
		if (!own && is_for_thread(&info))
			continue;
		if (is_queued_kind(signo))
			requeue_first(signo, &info);
		else
			requeue(signo, &info, is_for_thread(&info));
	}
	signo = t->acc_signo;
	t->acc_signo = 0;
	info = t->acc_info;
	if (signo && (own || !is_for_thread(&info)))
		requeue(signo, &info, is_for_thread(&info));
	t->sig_stop = 0;
}

void sig_carry(struct thread *t, uint64_t held, const void *info)
{
	memcpy(t->held_info, info, sizeof t->held_info);
	t->held = held;
}

void sig_kick(struct thread *t)
{
	siginfo_t info;
	memset(&info, 0, sizeof info);
	info.si_signo = KICK_SIG;
	info.si_code = SI_QUEUE;
	info.si_pid = my_pid();
	info.si_value.sival_ptr = &kick_cookie;
	host_call(SYS_rt_tgsigqueueinfo, my_pid(), t->tid, KICK_SIG, (long)&info, 0, 0);
}
