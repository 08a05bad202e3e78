/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kill, tgkill and rt_sigtimedwait between members of the family, while one waits here for what the other sends
 * (abi/kx_sigwait.h). All else is the host's: who finds nobody waiting sends by it, and who has waited a while waits there.
 */
#include "../../abi/kx_sigwait.h"
#include "libos.h"

#define TABLE ((struct kx_pipe_table *)KX_PIPE_TABLE)
#define SIGW ((struct kx_sigw *)KX_SIGW_BASE)
#define FUTEXES ((struct kx_futexes *)KX_FUTEX_BASE)
#define NR_tgkill 234
#define SPIN_LEAST 30000u /* TSC ticks; as pipe.c */
#define SPIN_MOST 600000u
#define FAILS_MAX 7
#define SEEN 60000u      /* who has not looked for so long has no CPU */
#define ANSWER 30000u    /* so long he has to take it */
#define ABOUT 20000u     /* and so long to come */
#define STALE (1u << 26) /* whose slot this is has been killed, or sleeps */
#define TRIES 1000       /* of a compare-and-swap: who else writes there gives up before */

static uint64_t ticks(void) { return __builtin_ia32_rdtsc(); }

static bool swap(struct kx_sigw_slot *s, uint64_t from, uint64_t to)
{
	return __atomic_compare_exchange_n(&s->word, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static uint64_t look(const struct kx_sigw_slot *s) { return __atomic_load_n(&s->word, __ATOMIC_SEQ_CST); }

/* Members of one user, without news for the host that comes before. */
static bool may(const struct kx_thread *t)
{
	return TABLE->on && !t->vfork && __atomic_load_n(&SIGW->ready, __ATOMIC_ACQUIRE) && FUTEXES->cpus > 1 &&
	       SHARED->uid == SIGW->uid && SHARED->euid == SIGW->uid && !serve_mask_lags(t);
}

/* ---- who waits ---------------------------------------------------------------------------------------------------- */

static uint64_t enter(struct kx_sigw_slot *s, uint32_t pid, uint32_t set)
{
	uint64_t was = look(s), now = ticks();
	if (KX_SIGW_STATE(was) != KX_SIGW_FREE &&
	    (KX_SIGW_STATE(was) != KX_SIGW_WAITS || now - __atomic_load_n(&s->tsc, __ATOMIC_RELAXED) < STALE))
		return 0;
	uint64_t mine = KX_SIGW_HEAD(KX_SIGW_WAITS, pid, KX_SIGW_SEQ(was) + 1) | (uint64_t)set << 36;
	__atomic_store_n(&s->tsc, now, __ATOMIC_RELAXED);
	return swap(s, was, mine) ? mine : 0;
}

/* What was sent to who waits by `mine`; 0: nothing, and nothing can be any more. */
static uint64_t leave(struct kx_sigw_slot *s, uint64_t mine)
{
	uint64_t end = KX_SIGW_HEAD(KX_SIGW_FREE, KX_SIGW_PID(mine), KX_SIGW_SEQ(mine)), w;
	unsigned i = 0;
	do {
		w = look(s);
		if (KX_SIGW_STATE(w) == KX_SIGW_FREE || KX_SIGW_PID(w) != KX_SIGW_PID(mine) ||
		    KX_SIGW_SEQ(w) != KX_SIGW_SEQ(mine) || i++ > TRIES)
			return 0; /* given to another: this one had not looked for long */
	} while (!swap(s, w, end));
	/* No other signal than was asked for, whatever somebody writes there. */
	return KX_SIGW_STATE(w) == KX_SIGW_SENT && KX_SIGW_SET(mine) >> (KX_SIGW_SIGNO(w) - 1) % 32 & 1 ? w : 0;
}

static const uint32_t *sent_to(uint32_t pid) { return &SIGW->sent[pid % 1024]; }

/* The host has, or is about to get, a signal for this process. */
static bool host_has(const struct kx_thread *t)
{
	return __atomic_load_n(sent_to(t->pid), __ATOMIC_SEQ_CST) != t->sigwait.seen;
}

/* One that the host gave. If it came during the call, nothing was there before, whatever the count says: some signals are
 * sent for nothing. */
static int64_t host_wait(struct kx_thread *t, struct kx_frame *f)
{
	uint32_t before = __atomic_load_n(sent_to(t->pid), __ATOMIC_SEQ_CST);
	int64_t r = forward(t, f);
	if (r > 0 && __atomic_load_n(sent_to(t->pid), __ATOMIC_SEQ_CST) != before)
		t->sigwait.seen = before + 1;
	else if (r > 0 && t->sigwait.seen != before)
		t->sigwait.seen++;
	return r;
}

static uint64_t spin(struct kx_thread *t, uint32_t set)
{
	struct kx_sigw_slot *s = &SIGW->slot[t->pid % KX_SIGW_SLOTS];
	uint32_t budget = 3 * TABLE->exit_cycles;
	budget = budget < SPIN_LEAST ? SPIN_LEAST : budget > SPIN_MOST ? SPIN_MOST : budget;
	if (host_has(t))
		return 0;
	if (t->sigwait.skip) {
		t->sigwait.skip--;
		return 0;
	}
	futex_pay(t);
	uint64_t mine = enter(s, t->pid, set), start = ticks(), now = start;
	if (!mine)
		return 0;
	bool told = false;
	while (look(s) == mine && !(told = host_has(t)) && !__atomic_load_n(&t->work, __ATOMIC_RELAXED) &&
	       now - start < budget) {
		for (int i = 0; i < 4; i++)
			__builtin_ia32_pause();
		now = ticks();
		__atomic_store_n(&s->tsc, now, __ATOMIC_RELAXED);
	}
	uint64_t got = leave(s, mine);
	if (got) {
		t->sigwait.fails = 0;
	} else if (!told) {
		t->sigwait.fails += t->sigwait.fails < FAILS_MAX;
		t->sigwait.skip = (1u << t->sigwait.fails) - 1;
	}
	return got;
}

/* As siginfo_t of what kill() and tgkill() send. */
static void info_make(uint32_t info[32], uint64_t w)
{
	__builtin_memset(info, 0, 128);
	info[0] = KX_SIGW_SIGNO(w);
	info[2] = KX_SIGW_THREAD(w) ? (uint32_t)-6 : 0; /* SI_TKILL, SI_USER */
	info[4] = KX_SIGW_SENDER(w);
	info[5] = SIGW->uid;
}

/* Long enough not to be missed. */
static bool timeout_ok(uint64_t p)
{
	int64_t ts[2];
	return !p || (!user_read(ts, p, sizeof ts) && ts[0] >= 1 && ts[1] >= 0 && ts[1] < 1000000000);
}

int64_t sys_rt_sigtimedwait(struct kx_thread *t, struct kx_frame *f)
{
	uint64_t set, w;
	uint32_t info[32];
	/* One that is not blocked may be ignored. */
	if (!TABLE->on || f->r10 != 8 || SHARED->nr_threads != 1 || user_read(&set, f->rdi, 8) ||
	    !(set &= t->sigmask & KX_SIGW_SIGNALS) || !timeout_ok(f->rdx) || !may(t))
		return forward(t, f);
	batch_flush(t);
	before_news(t);
	if (!(w = spin(t, (uint32_t)set)))
		return host_wait(t, f);
	info_make(info, w);
	if (f->rsi && user_write(f->rsi, info, sizeof info))
		return -KX_EFAULT;
	return KX_SIGW_SIGNO(w);
}

/* ---- who sends ---------------------------------------------------------------------------------------------------- */

/* Does `pid` wait for this signal here? Who has done so lately may be about to. */
static uint64_t find(struct kx_thread *t, struct kx_sigw_slot *s, uint32_t pid, uint32_t bit)
{
	uint64_t start = ticks(), w;
	for (;;) {
		w = look(s);
		if (KX_SIGW_PID(w) != pid)
			return 0;
		if (KX_SIGW_STATE(w) == KX_SIGW_WAITS)
			break;
		if (t->sigwait.peer != pid || ticks() - start > ABOUT || __atomic_load_n(&t->work, __ATOMIC_RELAXED)) {
			t->sigwait.peer = 0;
			return 0;
		}
		__builtin_ia32_pause();
	}
	int64_t since = (int64_t)(ticks() - __atomic_load_n(&s->tsc, __ATOMIC_RELAXED));
	return since < SEEN && KX_SIGW_SET(w) & bit ? w : 0;
}

static bool sent(struct kx_thread *t, uint32_t pid, uint32_t signo, bool to_thread)
{
	struct kx_sigw_slot *s = &SIGW->slot[pid % KX_SIGW_SLOTS];
	uint64_t w = find(t, s, pid, 1u << (signo - 1)), start = ticks();
	if (!w)
		return false;
	uint64_t mine = KX_SIGW_HEAD(KX_SIGW_SENT, pid, KX_SIGW_SEQ(w)) | (uint64_t)signo << 36 |
			(uint64_t)to_thread << 41 | (uint64_t)t->pid << 42;
	if (!swap(s, w, mine))
		return false;
	uint64_t now;
	for (unsigned i = 0; (now = look(s)) == mine && i < TRIES;)
		if (ticks() - start > ANSWER && i++ < TRIES && swap(s, mine, w))
			return false;
	t->sigwait.peer = pid;
	return now; /* 0: another thread has changed the user, and given all of this up */
}

int64_t sys_kill(struct kx_thread *t, struct kx_frame *f)
{
	bool to_thread = f->orig_rax == NR_tgkill;
	uint32_t pid = (uint32_t)f->rdi, signo = (uint32_t)(to_thread ? f->rdx : f->rsi);
	if (!TABLE->on || pid - 1 >= (1u << 22) - 1 || pid == t->pid || (to_thread && (uint32_t)f->rsi != pid) ||
	    signo - 1 >= 28 || !may(t))
		return forward(t, f);
	if (1u << (signo - 1) & KX_SIGW_SIGNALS) {
		batch_flush(t);
		before_news(t);
		if (sent(t, pid, signo, to_thread))
			return 0;
	}
	__atomic_add_fetch(&SIGW->sent[pid % 1024], 1, __ATOMIC_SEQ_CST);
	uint64_t start = ticks();
	int64_t r = forward(t, f);
	uint64_t d = ticks() - start;
	uint32_t n = d < SPIN_MOST ? (uint32_t)d : SPIN_MOST, old = TABLE->exit_cycles;
	TABLE->exit_cycles = n < old ? n : old + ((n - old) >> 6); /* the shortest of late */
	return r;
}
