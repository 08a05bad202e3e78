/* SPDX-License-Identifier: Apache-2.0 */
/* The point at which no thread is in the guest (update.h, "How it stops the guest"). */
#include "update_priv.h"
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include "../../util/now.h"
#include "../../util/together.h"
#include "sig.h"

#define COME_NS 40000000ll        /* how long it waits for the first one that stands */
#define LOOK_NS 50000             /* how often it looks at those that are on their way */
#define TURN_NS 500000            /* with the work of a stop in it */
#define FOR_GOOD_NS 2000000000ull /* the end of a process waits for its threads */

enum { STOP_NONE, STOP_WANTED, STOP_HELD }; /* held: all stand, and wait however long it takes */
KX_TOGETHER volatile int update_stop;
static uint64_t stop_began;    /* when the first one came to stand; 0 = none has */
static uint64_t stop_ns;       /* how long those that stand wait for the others */
static uint64_t stopped_until; /* when they gave up; 0 = they did not */
static uint64_t released;      /* when the gate was opened; 0 = not yet */
static uint64_t gathered;      /* when all stood; 0 = not yet */
KX_TOGETHER struct thread *volatile update_runner, *volatile update_caller;
static KX_TOGETHER bool for_good; /* the process ends: the gate stays shut */
static int parked;                /* counts those that come to wait; a futex */
static int opened;                /* counts whenever somebody may pass; a futex */

/*
 * One by one: whoever is woken may take the waker's processor. Had that taken all of them from the queue at once, they would
 * wait for its next turn; so each that wakes goes on with it.
 */
static void wake_all(void)
{
	/* Those that may not pass sleep again. */
	for (int left = pvm.nr_threads; left-- > 0;)
		if (host_call(SYS_futex, (long)&opened, FUTEX_WAKE, 1, 0, 0, 0) <= 0)
			break;
}

void gate_open(void)
{
	__atomic_add_fetch(&opened, 1, __ATOMIC_SEQ_CST);
	wake_all();
}

/* False: others go on waiting for it. */
static bool open_if(int state, int next)
{
	if (!__atomic_compare_exchange_n(&update_stop, &state, next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		return false;
	if (!next)
		gate_open();
	return true;
}

/*
 * Whoever asked for the stop may itself be waiting for a processor. So those that wait end an attempt that takes too long,
 * as long as it is not seen that all stand.
 */
void update_park(struct thread *t)
{
	__atomic_store_n(&t->gate, GATE_PARKED, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&parked, 1, __ATOMIC_SEQ_CST);
	futex_wake(&parked);
	for (;;) {
		int seen = __atomic_load_n(&opened, __ATOMIC_SEQ_CST),
		    stop = __atomic_load_n(&update_stop, __ATOMIC_SEQ_CST);
		uint64_t now = now_ns(), began = 0;
		if (__atomic_compare_exchange_n(&stop_began, &began, now, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			began = now;
		uint64_t until = began + stop_ns;
		if (!stop || __atomic_load_n(&update_runner, __ATOMIC_SEQ_CST) == t)
			break;
		if (stop == STOP_WANTED && now >= until) {
			if (open_if(STOP_WANTED, STOP_NONE))
				__atomic_store_n(&stopped_until, now, __ATOMIC_SEQ_CST);
			break;
		}
		futex_wait(&opened, seen, stop == STOP_WANTED ? (long)(until - now) : 0);
	}
	__atomic_store_n(&t->gate, GATE_MONITOR, __ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&update_stop, __ATOMIC_SEQ_CST))
		wake_all();
}

void gate_let_go(void)
{
	if (!__atomic_load_n(&for_good, __ATOMIC_SEQ_CST)) {
		if (!released)
			released = now_ns();
		__atomic_store_n(&update_stop, STOP_NONE, __ATOMIC_SEQ_CST);
	}
	gate_open();
}

bool update_stands(struct thread *t)
{
	return __atomic_load_n(&t->gate, __ATOMIC_SEQ_CST) == GATE_PARKED ||
	       __atomic_load_n(&t->hcall, __ATOMIC_SEQ_CST);
}

/* With thr_lock. False: not yet. */
static bool stands_or_comes(struct thread *t, bool kick)
{
	if (update_stands(t))
		return true;
	if (kick && __atomic_load_n(&t->gate, __ATOMIC_SEQ_CST) == GATE_GUEST)
		sig_kick(t);
	return false;
}

/* With thr_lock. */
bool gate_all_stand(struct job *j, bool kick)
{
	bool all = true;
	j->nr = 0;
	for (struct thread *t = pvm.threads; t; t = t->next) {
		if (j->nr == THREADS_MAX)
			return false;
		j->thread[j->nr++] = t;
		all &= stands_or_comes(t, kick);
	}
	return all;
}

/*
 * A thread that is in the guest comes out when it has its turn, which on a machine with more to do than it has processors is
 * a matter of ten milliseconds and more. Who asks for shorter turns has them sooner (EEVDF, Linux 6.12; before that it is
 * ignored), and needs no right for it, as the jail leaves none. So threads ask for short turns while they are to be stopped:
 * not for the shortest, since nobody keeps the processor for longer than the shortest turn that anybody there has asked for,
 * and the thread that does the update must not lose it while all stand.
 */
static bool turn_change(pid_t tid, struct sched *was)
{
	memset(was, 0, sizeof *was);
	was->size = sizeof *was;
	if (HC6(SYS_sched_getattr, tid, was, sizeof *was, 0, 0, 0) ||
	    (was->policy != SCHED_OTHER && was->policy != SCHED_BATCH) || was->runtime == TURN_NS)
		return false;
	was->size = sizeof *was;
	struct sched a = *was;
	a.runtime = TURN_NS;
	return !HC6(SYS_sched_setattr, tid, &a, 0, 0, 0, 0);
}

void gate_own_turns(void)
{
	struct sched a = { .size = sizeof a };
	if (HC6(SYS_sched_getattr, 0, &a, sizeof a, 0, 0, 0) || (a.policy != SCHED_OTHER && a.policy != SCHED_BATCH))
		return;
	a.size = sizeof a;
	a.runtime = TURN_NS;
	HC6(SYS_sched_setattr, 0, &a, 0, 0, 0, 0);
}

void gate_hurry(struct job *j)
{
	j->nr_turns = 0;
	pthread_mutex_lock(&pvm.thr_lock);
	for (struct thread *t = pvm.threads; t && j->nr_turns < SHORT_MAX; t = t->next)
		if (!update_stands(t)) {
			struct turn *s = &j->turn[j->nr_turns];
			s->tid = t->tid;
			j->nr_turns += turn_change(t->tid, &s->was);
		}
	pthread_mutex_unlock(&pvm.thr_lock);
}

void gate_take_time(struct job *j)
{
	while (j->nr_turns) {
		struct turn *s = &j->turn[--j->nr_turns];
		HC6(SYS_sched_setattr, s->tid, &s->was, 0, 0, 0, 0);
	}
}

/* Every thread stands. False: not within the time that an attempt has. */
bool gate_stop_all(struct job *j, uint64_t since)
{
	bool kick = true;
	__atomic_store_n(&stopped_until, 0, __ATOMIC_SEQ_CST);
	gathered = released = 0;
	if (gate_is_for_good())
		return false;
	/* Where some stand already, for a function that ran alone, it is held. */
	int none = STOP_NONE;
	if (__atomic_load_n(&update_stop, __ATOMIC_SEQ_CST) == STOP_NONE) {
		stop_ns = j->stop_ns;
		__atomic_store_n(&stop_began, 0, __ATOMIC_SEQ_CST);
	}
	__atomic_compare_exchange_n(&update_stop, &none, STOP_WANTED, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	for (unsigned round = 0;; round++) {
		int seen = __atomic_load_n(&parked, __ATOMIC_SEQ_CST);
		pthread_mutex_lock(&pvm.thr_lock);
		bool all = gate_all_stand(j, kick);
		pthread_mutex_unlock(&pvm.thr_lock);
		if (all && (none == STOP_HELD || open_if(STOP_WANTED, STOP_HELD))) {
			uint64_t nobody = 0; /* all are in calls: whoever comes out from now on waits */
			__atomic_compare_exchange_n(&stop_began, &nobody, now_ns(), false, __ATOMIC_SEQ_CST,
						    __ATOMIC_SEQ_CST);
			gathered = now_ns();
			return true;
		}
		uint64_t now = now_ns(), began = __atomic_load_n(&stop_began, __ATOMIC_SEQ_CST);
		if (__atomic_load_n(&update_stop, __ATOMIC_SEQ_CST) == STOP_NONE ||
		    now - since > COME_NS + j->stop_ns || (began && now > began + j->stop_ns))
			return false;
		kick = round % 64 == 63; /* one that was on its way in */
		futex_wait(&parked, seen, LOOK_NS);
	}
}

bool update_stop_for_good(struct thread *me)
{
	const uint64_t since = now_ns();
	__atomic_store_n(&for_good, true, __ATOMIC_SEQ_CST);
	__atomic_store_n(&update_runner, NULL, __ATOMIC_SEQ_CST);
	__atomic_store_n(&update_stop, STOP_HELD, __ATOMIC_SEQ_CST);
	for (unsigned round = 0;; round++) {
		int seen = __atomic_load_n(&parked, __ATOMIC_SEQ_CST);
		bool all = true;
		pthread_mutex_lock(&pvm.thr_lock);
		for (struct thread *t = pvm.threads; t; t = t->next)
			if (t != me)
				all &= stands_or_comes(t, round % 64 == 0);
		pthread_mutex_unlock(&pvm.thr_lock);
		if (all || now_ns() - since > FOR_GOOD_NS)
			return all;
		futex_wait(&parked, seen, LOOK_NS);
	}
}

uint64_t gate_pause(void)
{
	uint64_t end = __atomic_load_n(&stopped_until, __ATOMIC_SEQ_CST);
	uint64_t began = __atomic_load_n(&stop_began, __ATOMIC_SEQ_CST);
	end = end ? end : released ? released : now_ns();
	return began && end > began ? end - began : 0;
}

uint64_t gate_gathered(void)
{
	uint64_t began = __atomic_load_n(&stop_began, __ATOMIC_SEQ_CST);
	return began && gathered > began ? gathered - began : 0;
}

bool gate_is_for_good(void) { return __atomic_load_n(&for_good, __ATOMIC_SEQ_CST); }

void gate_fork_child(void)
{
	update_stop = STOP_NONE;
	for_good = false;
	update_runner = NULL;
}
