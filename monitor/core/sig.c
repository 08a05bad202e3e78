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
#include "rseq.h"
#include "strace.h"

extern const char host_blocking_begin[], host_blocking_end[], host_blocking_abort[];
extern const char host_copy_begin[], host_copy_end[], host_restorer[];
long host_call_flag(volatile int *flag, const long args[7]);
size_t host_copy(void *dst, const void *src, size_t len);

/* As the kernel's struct sigaction for x86-64. */
struct ksigaction {
	void (*handler)(int, siginfo_t *, void *);
	unsigned long flags;
	void (*restorer)(void);
	uint64_t mask;
};
#define KSA_RESTORER 0x04000000ul

static char kick_cookie;
static uint64_t plain_signals; /* whose action the host performs by itself: default or ignored */
#define PUT_BACK_MAX 4096

static int raw_sigaction(int signo, const struct ksigaction *act)
{
	return host_call(SYS_rt_sigaction, signo, (long)act, 0, 8, 0, 0);
}

static void set_mask(uint64_t mask)
{
	mask &= ~(SIGBIT(KICK_SIG) | SIGBIT(SIGKILL) | SIGBIT(SIGSTOP));
	host_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&mask, 0, 8, 0, 0);
}

uint64_t sig_block_everything(void)
{
	uint64_t all = ~(SIGBIT(SIGSEGV) | SIGBIT(SIGBUS)), old = 0;
	host_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&all, (long)&old, 8, 0, 0);
	return old;
}

void sig_restore(uint64_t mask, struct thread *t)
{
	(void)t;
	host_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&mask, 0, 8, 0, 0);
}

void sig_block_all(void) { set_mask(~0ull & ~(SIGBIT(SIGSEGV) | SIGBIT(SIGBUS))); }

long host_call_blocking(long nr, long a, long b, long c, long d, long e, long f)
{
	const long args[7] = { nr, a, b, c, d, e, f };
	return host_call_flag(&self->sig_stop, args);
}

/* ---- copying from and to guest memory ------------------------------------------------------------------- */

int guest_read(void *dst, uint64_t gva, size_t len)
{
	if (!gva_ok(gva, len) || (len && host_copy(dst, gva_ptr(gva), len)))
		return -EFAULT;
	return 0;
}

int guest_write(uint64_t gva, const void *src, size_t len)
{
	if (!gva_ok(gva, len) || (len && host_copy(gva_ptr(gva), src, len)))
		return -EFAULT;
	return 0;
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

/* Queue a signal again as it came. It stays pending: its signal is blocked on this thread by now. */
static void requeue(int signo, siginfo_t *info, bool to_thread)
{
	if (to_thread)
		host_call(SYS_rt_tgsigqueueinfo, my_pid(), self->tid, signo, (long)info, 0, 0);
	else
		host_call(SYS_rt_sigqueueinfo, my_pid(), signo, (long)info, 0, 0, 0);
}

/* The guest blocks signo and the host does not: block it and put back, in order, all that are queued of it. */
static void put_back(struct thread *t, int signo, siginfo_t *info)
{
	t->hmask |= SIGBIT(signo);
	t->area->host_mask = t->hmask;
	if (signo < KICK_SIG + 1) {
		requeue(signo, info, is_for_thread(info));
		return;
	}
	/* Real-time signals queue: those that came after this one must stay after it. No malloc() in a handler. */
	const size_t size = PUT_BACK_MAX * sizeof(siginfo_t);
	siginfo_t *more = (siginfo_t *)host_call(SYS_mmap, 0, size, PROT_READ | PROT_WRITE,
						 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int n = 0;
	uint64_t set = SIGBIT(signo);
	struct timespec zero = { 0, 0 };
	if ((long)more > 0)
		while (n < PUT_BACK_MAX &&
		       host_call(SYS_rt_sigtimedwait, (long)&set, (long)&more[n], (long)&zero, 8, 0, 0) == signo)
			n++;
	requeue(signo, info, is_for_thread(info));
	for (int i = 0; i < n; i++)
		requeue(signo, &more[i], is_for_thread(&more[i]));
	if ((long)more > 0)
		host_call(SYS_munmap, (long)more, size, 0, 0, 0, 0);
}

static void abort_blocking_call(ucontext_t *uc)
{
	greg_t *rip = &uc->uc_mcontext.gregs[REG_RIP];
	if (*rip >= (greg_t)host_blocking_begin && *rip <= (greg_t)host_blocking_end)
		*rip = (greg_t)host_blocking_abort;
}

static bool is_fault(int signo, const siginfo_t *info)
{
	return info->si_code > 0 && (signo == SIGSEGV || signo == SIGBUS || signo == SIGFPE || signo == SIGILL);
}

/* A fault of the monitor itself: expected inside host_copy(), else the end. */
static void monitor_fault(int signo, siginfo_t *info, ucontext_t *uc)
{
	greg_t *rip = &uc->uc_mcontext.gregs[REG_RIP];
	if (*rip >= (greg_t)host_copy_begin && *rip < (greg_t)host_copy_end) {
		*rip = (greg_t)host_copy_end;
		return;
	}
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
	if (is_fault(signo, info)) {
		monitor_fault(signo, info, uc);
		return;
	}
	if (!t)
		return;
	if (signo == KICK_SIG && info->si_code == SI_QUEUE && rseq_is_kick(info) && info->si_pid == pvm.pid) {
		t->seat_kicked = 1; /* sent to a thread in the guest only: no host call to abort */
		if (t->run)
			t->run->immediate_exit = 1;
		return;
	}
	if (signo == KICK_SIG && info->si_code == SI_QUEUE && info->si_value.sival_ptr == &kick_cookie &&
	    info->si_pid == my_pid()) {
		t->kicked = 1;
		if (t->run)
			t->run->immediate_exit = 1;
		abort_blocking_call(uc);
		return;
	}
	if (signo == KICK_SIG && (t->acc_signo || (t->area->sigmask & SIGBIT(signo)))) {
		t->k_info = *info;
	} else if (t->area->sigmask & SIGBIT(signo)) {
		*mask |= SIGBIT(signo);
		put_back(t, signo, info);
	} else {
		t->acc_info = *info;
		t->acc_signo = signo;
		t->sig_stop = 1;
		*mask = ~(SIGBIT(KICK_SIG) | SIGBIT(SIGSEGV) | SIGBIT(SIGBUS));
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

int sig_set_disposition(int signo, const struct kx_sigaction *act)
{
	struct ksigaction k = { .handler = on_signal,
				.mask = ~0ull,
				.flags = SA_SIGINFO | KSA_RESTORER,
				.restorer = (void (*)(void))host_restorer };
	k.flags |= act->flags & (SA_NOCLDSTOP | SA_NOCLDWAIT);
	k.mask &= ~(SIGBIT(SIGSEGV) | SIGBIT(SIGBUS));
	/* The monitor's own faults come by these; the others it must see to report the end. */
	bool keep = signo == SIGSEGV || signo == SIGBUS || signo == SIGFPE || signo == SIGILL || signo == KICK_SIG;
	bool report = (pvm.cfg->stats || pvm.cfg->strace) && default_ends_process(signo);
	if (act->handler == (uint64_t)SIG_IGN && !keep)
		k.handler = (void *)SIG_IGN;
	else if (act->handler == (uint64_t)SIG_DFL && !keep && !report)
		k.handler = (void *)SIG_DFL;
	if (k.handler != on_signal)
		__atomic_or_fetch(&plain_signals, SIGBIT(signo), __ATOMIC_RELAXED);
	else if (!self || !self->area->vfork) /* a child of vfork shares this with its parent */
		__atomic_and_fetch(&plain_signals, ~SIGBIT(signo), __ATOMIC_RELAXED);
	return raw_sigaction(signo, &k);
}

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
		if (host_call(SYS_rt_sigaction, s, 0, (long)&old, 8, 0, 0) == 0 &&
		    (void *)old.handler == (void *)SIG_IGN)
			act->handler = (uint64_t)SIG_IGN;
		sig_set_disposition(s, act);
	}
}

void sig_thread_start(struct thread *t)
{
	t->hmask = t->area->sigmask;
	t->area->host_mask = t->hmask;
	set_mask(t->hmask);
}

/* ---- handing over -------------------------------------------------------------------------------------------- */

static void hand_over(struct thread *t, int signo, const siginfo_t *info)
{
	struct kx_signal *s = &t->area->sig;
	memcpy(s->info, info, sizeof s->info);
	if (info->si_code == SI_QUEUE)
		memset(s->info + MARK_AT, 0, sizeof thread_mark);
	s->forced = 0;
	s->trapno = s->err = s->cr2 = 0;
	__atomic_store_n(&s->signo, signo, __ATOMIC_RELEASE);
	__atomic_or_fetch(&t->area->work, KX_WORK_SIGNAL, __ATOMIC_RELEASE);
	if (pvm.cfg->strace)
		strace_signal(t, signo, info);
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

/* Take what the handler accepted; may be called while more arrive. */
static void take_accepted(struct thread *t)
{
	int signo = t->acc_signo;
	siginfo_t info = t->acc_info;
	t->acc_signo = 0;
	if (t->area->sigmask & SIGBIT(signo)) {
		put_back(t, signo, &info);
	} else {
		hand_over(t, signo, &info);
		t->hmask |= blocked_soon(t);
		t->area->host_mask = t->hmask;
	}
	set_mask(t->hmask); /* from here the handler may accept the next */
}

void sig_prepare(struct thread *t)
{
	if (t->k_info.si_signo && !t->acc_signo && !(t->area->sigmask & SIGBIT(KICK_SIG)) && !t->area->sig.signo) {
		siginfo_t info = t->k_info;
		t->k_info.si_signo = 0;
		hand_over(t, KICK_SIG, &info);
	}
	while (t->acc_signo && !t->area->sig.signo)
		take_accepted(t);
	if (t->acc_signo)
		__atomic_or_fetch(&t->area->work, KX_WORK_MORE, __ATOMIC_RELEASE);
	t->sig_stop = t->acc_signo || t->area->sig.signo;
	if (t->acc_signo) /* accepted between the loop and here: sig_stop stays */
		t->sig_stop = 1;
}

void sig_sync_block(struct thread *t)
{
	uint64_t mask = t->area->sigmask;
	if (!(mask & ~t->hmask) || t->acc_signo)
		return;
	t->hmask |= mask;
	t->area->host_mask = t->hmask;
	set_mask(t->hmask);
	if (t->acc_signo) { /* accepted just before: its mask is in force until it is handed over */
		set_mask(~(SIGBIT(SIGSEGV) | SIGBIT(SIGBUS)));
	}
}

void sig_sync_plain(struct thread *t)
{
	uint64_t plain = t->area->vfork ? ~0ull : __atomic_load_n(&plain_signals, __ATOMIC_RELAXED);
	if (t->area->sigmask & ~t->hmask & plain)
		sig_sync_block(t);
}

void sig_mask_set(struct thread *t, uint64_t mask)
{
	mask &= ~(SIGBIT(SIGKILL) | SIGBIT(SIGSTOP));
	/* What is to be blocked, on the host first: whatever was accepted until then came before and is delivered. */
	t->hmask |= mask & pvm.shared->rt_handlers;
	if (!t->acc_signo)
		set_mask(t->hmask);
	sig_prepare(t);
	t->area->sigmask = mask;
	t->hmask = (t->hmask & mask) | (mask & pvm.shared->rt_handlers) | blocked_soon(t);
	t->area->host_mask = t->hmask;
	if (!t->acc_signo)
		set_mask(t->hmask);
}

void sig_mask_enter(struct thread *t, uint64_t mask)
{
	mask &= ~(SIGBIT(SIGKILL) | SIGBIT(SIGSTOP));
	t->area->saved_mask = t->area->sigmask;
	t->area->has_saved_mask = 1;
	t->area->sigmask = mask;
	t->hmask = mask;
	t->area->host_mask = mask;
	if (!t->acc_signo)
		set_mask(mask);
}

int64_t sig_mask_leave(struct thread *t, int64_t ret)
{
	if (ret == -EINTR && t->sig_stop)
		return ret; /* the LibOS restores the mask when it has made the frame */
	t->area->sigmask = t->area->saved_mask;
	t->area->has_saved_mask = 0;
	t->hmask &= t->area->sigmask;
	t->area->host_mask = t->hmask;
	if (!t->acc_signo)
		set_mask(t->hmask);
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
		pvm_die_by_signal(signo);
	}
	if (t->area->sig.signo) {
		/* An asynchronous one is on its way: it goes back to the host, the fault comes first. */
		siginfo_t old;
		int s = t->area->sig.signo;
		memcpy(&old, t->area->sig.info, sizeof old);
		if (s >= 1 && s <= 64)
			requeue(s, &old, true);
		t->area->sig.signo = 0;
	}
	hand_over(t, signo, &info);
	t->area->sig.forced = 1;
	t->area->sig.trapno = trapno;
	t->area->sig.err = err;
	t->area->sig.cr2 = cr2;
}

void sig_give_back(struct thread *t)
{
	siginfo_t info;
	int signo = t->area->sig.signo;
	if (signo >= 1 && signo <= 64 && !t->area->sig.forced) {
		memcpy(&info, t->area->sig.info, sizeof info);
		requeue(signo, &info, info.si_code == SI_TKILL);
	}
	t->area->sig.signo = 0;
	if (t->acc_signo) {
		info = t->acc_info;
		requeue(t->acc_signo, &info, is_for_thread(&info));
		t->acc_signo = 0;
	}
	if (t->k_info.si_signo) {
		info = t->k_info;
		requeue(KICK_SIG, &info, true);
		t->k_info.si_signo = 0;
	}
	t->sig_stop = 0;
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
