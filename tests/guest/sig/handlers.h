/* SPDX-License-Identifier: Apache-2.0 */
/* What a handler sees; alternate stacks; what is pending and queued. Part of sig.c. */
#ifndef KX_GUEST_SIG_HANDLERS_H
#define KX_GUEST_SIG_HANDLERS_H
#include "sig.h"

static inline void test_origin(void)
{
	on(SIGUSR1, note, 0);
	on(RTN(1), note, 0);
	count = 0;
	kill(getpid(), SIGUSR1);
	check(count == 1 && last_signo == SIGUSR1 && last_code == SI_USER && last_pid == getpid() &&
		      last_uid == getuid(),
	      "kill: SI_USER, pid, uid");
	tgkill_(gettid_(), SIGUSR1);
	check(count == 2 && last_code == SI_TKILL && last_pid == getpid(), "tgkill: SI_TKILL");
	union sigval v = { .sival_int = 12345 };
	sigqueue(getpid(), RTN(1), v);
	check(count == 3 && last_signo == RTN(1) && last_code == SI_QUEUE && last_value == 12345 &&
		      last_pid == getpid(),
	      "sigqueue: SI_QUEUE, value");
	pthread_sigqueue(pthread_self(), RTN(1), v);
	check(count == 4 && last_code == SI_QUEUE && last_value == 12345, "pthread_sigqueue");
	raise(SIGUSR1);
	check(count == 5 && last_code == SI_TKILL, "raise");
	check(kill(getpid(), 0) == 0, "kill with signal 0");
	check(kill(getpid(), 65) == -1 && errno == EINVAL, "kill with signal 65");
	check(tgkill_(gettid_(), -1) == -1 && errno == EINVAL, "tgkill with signal -1");
	check(tgkill_(0, SIGUSR1) == -1 && errno == EINVAL, "tgkill to thread 0");
	struct sigaction a = { .sa_handler = SIG_DFL };
	check(sigaction(SIGKILL, &a, NULL) == -1 && errno == EINVAL && sigaction(SIGSTOP, &a, NULL) == -1 &&
		      sigaction(0, &a, NULL) == -1 && sigaction(65, &a, NULL) == -1,
	      "sigaction: EINVAL");
	check(syscall(SYS_rt_sigaction, SIGUSR1, NULL, NULL, 4) == -1 && errno == EINVAL, "rt_sigaction: size");
	check(syscall(SYS_rt_sigaction, SIGUSR1, (void *)8, NULL, 8) == -1 && errno == EFAULT, "rt_sigaction: EFAULT");
	check(sigaction(SIGUSR1, NULL, &a) == 0 && a.sa_sigaction == note && (a.sa_flags & SA_SIGINFO), "old action");
	signal(SIGUSR2, SIG_IGN);
	kill(getpid(), SIGUSR2);
	check(sigaction(SIGUSR2, NULL, &a) == 0 && a.sa_handler == SIG_IGN, "ignored");
	signal(SIGUSR2, SIG_DFL);
	signal(SIGCHLD, SIG_DFL);
	kill(getpid(), SIGCHLD);
	kill(getpid(), SIGURG);
	kill(getpid(), SIGWINCH);
	kill(getpid(), SIGCONT);
	check(true, "default: ignored ones");
}

static volatile int depth, max_depth;

static void nest(int s, siginfo_t *i, void *u)
{
	(void)i;
	(void)u;
	if (++depth > max_depth)
		max_depth = depth;
	if (count++ < 3)
		raise(s);
	depth--;
}

static volatile bool in_mask[4];

static void look_mask(int s, siginfo_t *i, void *u)
{
	(void)i;
	ucontext_t *c = u;
	in_mask[0] = blocked(s);
	in_mask[1] = blocked(SIGUSR2);
	in_mask[2] = blocked(SIGTERM);
	in_mask[3] = sigismember(&c->uc_sigmask, SIGHUP) && !sigismember(&c->uc_sigmask, s);
	count++;
}

static void add_to_mask(int s, siginfo_t *i, void *u)
{
	(void)s;
	(void)i;
	ucontext_t *c = u;
	sigaddset(&c->uc_sigmask, SIGUSR2);
	block(SIGTERM); /* gone at return */
}

static inline void test_flags(void)
{
	count = max_depth = 0;
	on(SIGUSR1, nest, SA_NODEFER);
	raise(SIGUSR1);
	check(count == 4 && max_depth == 4, "SA_NODEFER");
	count = max_depth = 0;
	on(SIGUSR1, nest, 0);
	raise(SIGUSR1);
	check(count == 4 && max_depth == 1 && !blocked(SIGUSR1), "without SA_NODEFER");
	count = 0;
	struct sigaction a;
	on(SIGUSR1, note, SA_RESETHAND);
	raise(SIGUSR1);
	sigaction(SIGUSR1, NULL, &a);
	check(count == 1 && a.sa_handler == SIG_DFL, "SA_RESETHAND");
	a = (struct sigaction){ .sa_sigaction = look_mask, .sa_flags = SA_SIGINFO };
	a.sa_mask = one(SIGUSR2);
	sigaction(SIGUSR1, &a, NULL);
	block(SIGHUP);
	count = 0;
	raise(SIGUSR1);
	unblock(SIGHUP);
	check(count == 1 && in_mask[0] && in_mask[1] && !in_mask[2] && in_mask[3], "sa_mask in the handler");
	check(!blocked(SIGUSR1) && !blocked(SIGUSR2), "mask after the handler");
	on(SIGUSR1, add_to_mask, 0);
	raise(SIGUSR1);
	check(blocked(SIGUSR2) && !blocked(SIGTERM), "mask changed through ucontext");
	unblock(SIGUSR2);
	sigset_t all, got;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	pthread_sigmask(SIG_SETMASK, NULL, &got);
	check(!sigismember(&got, SIGKILL) && !sigismember(&got, SIGSTOP) && sigismember(&got, SIGHUP),
	      "SIGKILL and SIGSTOP can't be blocked");
	sigemptyset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
	check(syscall(SYS_rt_sigprocmask, 7, &all, NULL, 8) == -1 && errno == EINVAL, "rt_sigprocmask: how");
	check(syscall(SYS_rt_sigprocmask, 0, (void *)8, NULL, 8) == -1 && errno == EFAULT, "rt_sigprocmask: EFAULT");
	check(syscall(SYS_rt_sigprocmask, 0, &all, NULL, 16) == -1 && errno == EINVAL, "rt_sigprocmask: size");
}

/* ---- alternate stacks -------------------- */

static char alt[65536] __attribute__((aligned(64))), alt2[65536] __attribute__((aligned(64)));
static volatile int ss_in_handler, err_in_handler;
static volatile bool on_alt[2];

static bool within(uintptr_t p, const char *area) { return p - (uintptr_t)area < 65536; }

static void alt_nested(int s, siginfo_t *i, void *u)
{
	note(s, i, u);
	on_alt[1] = within(last_sp, alt);
}

static void alt_handler(int s, siginfo_t *i, void *u)
{
	stack_t ss, new = { .ss_sp = alt2, .ss_size = sizeof alt2 };
	note(s, i, u);
	on_alt[0] = within(last_sp, alt);
	sigaltstack(NULL, &ss);
	ss_in_handler = ss.ss_flags;
	err_in_handler = sigaltstack(&new, NULL) ? errno : 0;
	raise(SIGUSR2);
}

static volatile stack_t uc_stack;

static void autodisarm_handler(int s, siginfo_t *i, void *u)
{
	ucontext_t *c = u;
	stack_t ss, new = { .ss_sp = alt2, .ss_size = sizeof alt2 };
	note(s, i, u);
	on_alt[0] = within(last_sp, alt);
	sigaltstack(NULL, &ss);
	ss_in_handler = ss.ss_flags;
	uc_stack = c->uc_stack;
	err_in_handler = sigaltstack(&new, NULL) ? errno : 0;
	raise(SIGUSR2); /* now on alt2 */
}

static void alt2_handler(int s, siginfo_t *i, void *u)
{
	note(s, i, u);
	on_alt[1] = within(last_sp, alt2);
}

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif

static inline void test_altstack(void)
{
	stack_t ss = { .ss_sp = alt, .ss_size = sizeof alt }, old;
	sigaltstack(NULL, &old);
	check(old.ss_flags == SS_DISABLE, "no alternate stack at first");
	check(sigaltstack(&ss, NULL) == 0, "sigaltstack");
	on(SIGUSR1, alt_handler, SA_ONSTACK);
	on(SIGUSR2, alt_nested, SA_ONSTACK);
	count = 0;
	raise(SIGUSR1);
	check(count == 2 && on_alt[0] && on_alt[1] && ss_in_handler == SS_ONSTACK && err_in_handler == EPERM,
	      "on the alternate stack, nested, EPERM");
	sigaltstack(NULL, &old);
	check(old.ss_flags == 0 && old.ss_sp == alt && old.ss_size == sizeof alt, "still there");
	on(SIGUSR1, note, 0);
	raise(SIGUSR1);
	check(!within(last_sp, alt), "not without SA_ONSTACK");
	ss.ss_flags = SS_AUTODISARM;
	if (sigaltstack(&ss, NULL) == 0) {
		on(SIGUSR1, autodisarm_handler, SA_ONSTACK);
		on(SIGUSR2, alt2_handler, SA_ONSTACK);
		on_alt[0] = on_alt[1] = false;
		raise(SIGUSR1);
		check(on_alt[0] && on_alt[1] && (ss_in_handler & SS_DISABLE) && err_in_handler == 0,
		      "SS_AUTODISARM: disarmed, another set, used");
		check(uc_stack.ss_sp == alt && uc_stack.ss_size == sizeof alt &&
			      ((unsigned)uc_stack.ss_flags & SS_AUTODISARM),
		      "SS_AUTODISARM: uc_stack");
		sigaltstack(NULL, &old);
		check(old.ss_sp == alt && ((unsigned)old.ss_flags & SS_AUTODISARM),
		      "SS_AUTODISARM: armed again at return");
	}
	ss = (stack_t){ .ss_sp = alt, .ss_size = 1000 };
	check(sigaltstack(&ss, NULL) == -1 && errno == ENOMEM, "too small: ENOMEM");
	ss = (stack_t){ .ss_sp = alt, .ss_size = sizeof alt, .ss_flags = 77 };
	check(sigaltstack(&ss, NULL) == -1 && errno == EINVAL, "bad flags: EINVAL");
	ss = (stack_t){ .ss_flags = SS_DISABLE };
	check(sigaltstack(&ss, NULL) == 0 && sigaltstack(NULL, &old) == 0 && old.ss_flags == SS_DISABLE, "SS_DISABLE");
	on(SIGUSR1, note, SA_ONSTACK);
	raise(SIGUSR1);
	check(!within(last_sp, alt), "SA_ONSTACK without a stack");
}

/* ---- pending and queued -------------------- */

static int got[512];
static volatile int nr_got;

static void collect(int s, siginfo_t *i, void *u)
{
	(void)u;
	if (nr_got < 512)
		got[nr_got++] = s * 1000 + i->si_value.sival_int;
}

static inline void test_queue(void)
{
	on(SIGUSR1, note, 0);
	block(SIGUSR1);
	count = 0;
	check(!pending(SIGUSR1), "not pending");
	for (int i = 0; i < 5; i++)
		kill(getpid(), SIGUSR1);
	check(pending(SIGUSR1) && count == 0, "pending while blocked");
	unblock(SIGUSR1);
	check(count == 1 && !pending(SIGUSR1), "a standard signal is not queued");
	block(SIGUSR1);
	kill(getpid(), SIGUSR1);
	tgkill_(gettid_(), SIGUSR1);
	unblock(SIGUSR1);
	check(count == 3, "process and thread each hold one");

	for (int s = 0; s < 3; s++) {
		on(RTN(s), collect, 0);
		block(RTN(s));
	}
	bool ok = true;
	nr_got = 0;
	for (int i = 0; i < 120; i++) {
		union sigval v = { .sival_int = i };
		ok &= sigqueue(getpid(), RTN(i % 3), v) == 0;
	}
	check(ok && pending(RTN(0)) && pending(RTN(2)) && nr_got == 0, "120 real-time signals queued");
	for (int s = 0; s < 3; s++) /* the handlers block nothing more than their own */
		unblock(RTN(s));
	bool order = nr_got == 120;
	for (int s = 0; s < 3 && order; s++)
		for (int i = 0; i < 40; i++)
			order &= got[s * 40 + i] == RTN(s) * 1000 + i * 3 + s;
	check(order, "delivered in order with their values");

	/* All at once: the handler of the lowest runs first to its end when the mask holds the others. */
	sigset_t set = one(0);
	nr_got = 0;
	for (int s = 0; s < 3; s++) {
		struct sigaction a = { .sa_sigaction = collect, .sa_flags = SA_SIGINFO };
		sigfillset(&a.sa_mask);
		sigaction(RTN(s), &a, NULL);
		sigaddset(&set, RTN(s));
	}
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	for (int i = 0; i < 99; i++) {
		union sigval v = { .sival_int = i };
		ok &= sigqueue(getpid(), RTN(2 - i % 3), v) == 0;
	}
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	order = nr_got == 99;
	for (int s = 0; s < 3 && order; s++)
		for (int i = 0; i < 33; i++)
			order &= got[s * 33 + i] == RTN(s) * 1000 + i * 3 + 2 - s;
	check(order, "lowest number first, each in order");
	/* Ignoring throws pending ones away. */
	block(SIGUSR1);
	raise(SIGUSR1);
	signal(SIGUSR1, SIG_IGN);
	check(!pending(SIGUSR1), "SIG_IGN discards what is pending");
	on(SIGUSR1, note, 0);
	unblock(SIGUSR1);
}
#endif
