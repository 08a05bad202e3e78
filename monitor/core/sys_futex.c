/* SPDX-License-Identifier: Apache-2.0 */
/* Futexes: the host's, but for those who nap (futex_nap.h). */
#include <errno.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include "../../util/now.h"
#include "../../util/procstat.h"
#include "../dev/procfs.h"
#include "family.h"
#include "futex_nap.h"
#include "hcall.h"
#include "robust.h"
#include "thread.h"
#include "update.h"

static bool word_ok(uint64_t gva) { return !(gva & 3) && gva_ok(gva, 4); }

/* The relative timeout of FUTEX_WAIT, as a moment of CLOCK_MONOTONIC: interruptions then don't prolong it. */
static void to_absolute(struct timespec *ts)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	if (ts->tv_sec > INT32_MAX)
		ts->tv_sec = INT32_MAX;
	ts->tv_sec += now.tv_sec;
	ts->tv_nsec += now.tv_nsec;
	if (ts->tv_nsec >= 1000000000) {
		ts->tv_sec++;
		ts->tv_nsec -= 1000000000;
	}
}

struct task_search {
	pid_t tid;
	bool alive;
};

static void look_for_task(pid_t pid, void *arg)
{
	struct task_search *t = arg;
	char name[48], text[512];
	if (t->alive)
		return;
	snprintf(name, sizeof name, "%d/task/%d/stat", pid, t->tid);
	int n = procfs_peek(name, text, sizeof text);
	if (n < 0) {
		t->alive = n != -ENOENT && n != -ESRCH;
		return;
	}
	struct proc_stat s;
	t->alive = !proc_stat_read(text, &s) && !proc_stat_ended(&s);
}

/* A thread of the family that has not ended. Nobody else is looked at. */
static bool task_is_alive(pid_t tid)
{
	struct task_search t = { tid, false };
	family_each(look_for_task, &t);
	return t.alive;
}

/*
 * A robust mutex whose owner was killed, and the host's kernel did not know its list (robust.h): nobody has marked it.
 * Whoever waits for a word of that form (a thread's id, FUTEX_WAITERS) in shared memory looks now and then.
 */
#define ROBUST_LOOK_NS (pvm.base ? 50000000 : 250000000)

static bool robust_owner_died(uint64_t gva, uint32_t expected)
{
	uint32_t v, tid = expected & FUTEX_TID_MASK;
	if (guest_read(&v, gva, sizeof v) || v != expected || task_is_alive((pid_t)tid))
		return false;
	return !guest_swap(gva, &v, FUTEX_WAITERS | FUTEX_OWNER_DIED);
}

/*
 * The kernel finds no owner for a lock with priority inheritance. If the caller has announced it as the robust lock
 * that it is about to take, the word is marked as the kernel would have done at the owner's end.
 */
static bool robust_pi_owner_died(struct hcall *c)
{
	struct robust_head head;
	uint32_t v;
	if (!c->t->robust_head || guest_read(&head, c->t->robust_head, sizeof head) || !head.pending ||
	    (head.pending & ~1ull) + head.offset != c->arg[0] || guest_read(&v, c->arg[0], sizeof v) ||
	    !(v & FUTEX_TID_MASK) || task_is_alive((pid_t)(v & FUTEX_TID_MASK)))
		return false;
	return guest_swap(c->arg[0], &v, (v & FUTEX_WAITERS) | FUTEX_OWNER_DIED) != -EFAULT;
}

static long robust_wait(struct hcall *c, int op, const struct timespec *timeout, uint32_t val3)
{
	const clockid_t clock = op & FUTEX_CLOCK_REALTIME ? CLOCK_REALTIME : CLOCK_MONOTONIC;
	for (;;) {
		struct timespec until;
		clock_gettime(clock, &until);
		until.tv_nsec += ROBUST_LOOK_NS;
		if (until.tv_nsec >= 1000000000) {
			until.tv_sec++;
			until.tv_nsec -= 1000000000;
		}
		bool last = timeout && (timeout->tv_sec < until.tv_sec ||
					(timeout->tv_sec == until.tv_sec && timeout->tv_nsec <= until.tv_nsec));
		long r = HB6(SYS_futex, gva_ptr(c->arg[0]), op, (uint32_t)c->arg[2], last ? timeout : &until, 0, val3);
		if (r != -ETIMEDOUT || last)
			return r;
		if (robust_owner_died(c->arg[0], (uint32_t)c->arg[2]))
			return 0;
	}
}

static bool is_lock_pi(int cmd)
{
	return cmd == FUTEX_LOCK_PI || cmd == 13 /* FUTEX_LOCK_PI2 */ || cmd == FUTEX_TRYLOCK_PI;
}

/* Until it was woken, by the host's sleepers. */
static int64_t futex_sleep_host(struct hcall *c, int op, struct timespec *timeout, uint32_t val3)
{
	int cmd = op & FUTEX_CMD_MASK;
	void *u2 = cmd == FUTEX_WAIT_REQUEUE_PI ? gva_ptr(c->arg[4]) : NULL;
	uint32_t want = (uint32_t)c->arg[2];
	bool robust = (op & (FUTEX_CMD_MASK | FUTEX_PRIVATE_FLAG)) == FUTEX_WAIT_BITSET && (want & FUTEX_WAITERS) &&
		      (want & FUTEX_TID_MASK) && !(want & FUTEX_OWNER_DIED);
	for (;;) {
		long r = robust ? robust_wait(c, op, timeout, val3)
				: HB6(SYS_futex, gva_ptr(c->arg[0]), op, want, timeout, u2, val3);
		if (r == -ESRCH && is_lock_pi(cmd) && robust_pi_owner_died(c))
			continue;
		if (r != -EINTR || !timeout)
			return r;
		if (!update_goes_on(c->t))
			return KX_NORESTART_EINTR;
	}
}

/* A wait that may be worth a nap. */
static int64_t futex_wait(struct hcall *c, int op, struct timespec *timeout)
{
	uint64_t since = now_ns();
	int64_t r = futex_nap(c, op, timeout);
	if (r == -EINTR && timeout)
		r = update_goes_on(c->t) ? -EAGAIN : KX_NORESTART_EINTR;
	if (r == -EAGAIN)
		r = futex_sleep_host(c, op, timeout, FUTEX_BITSET_MATCH_ANY);
	if (r != -EAGAIN)
		futex_nap_learn(c, since, !r);
	return r;
}

static int64_t futex_sleep(struct hcall *c, int op, uint32_t val3)
{
	struct timespec ts, *timeout = NULL;
	int cmd = op & FUTEX_CMD_MASK;
	if (cmd != FUTEX_TRYLOCK_PI && get_timespec(c->arg[3], &ts, &timeout))
		return -EFAULT;
	if (timeout && (ts.tv_sec < 0 || ts.tv_nsec < 0 || ts.tv_nsec >= 1000000000))
		return -EINVAL;
	if (cmd == FUTEX_WAIT) {
		if (op & FUTEX_CLOCK_REALTIME)
			return -ENOSYS;
		op = FUTEX_WAIT_BITSET | (op & FUTEX_PRIVATE_FLAG);
		val3 = FUTEX_BITSET_MATCH_ANY;
		if (timeout)
			to_absolute(&ts);
	}
	if ((op & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET && val3 == FUTEX_BITSET_MATCH_ANY)
		return futex_wait(c, op, timeout);
	return futex_sleep_host(c, op, timeout, val3);
}

/* The host's sleepers were there first. */
static int64_t futex_wake(struct hcall *c, int op, uint32_t val3)
{
	int n = (int)c->arg[2];
	int64_t r = HC6(SYS_futex, gva_ptr(c->arg[0]), op, n, 0, 0, val3);
	if (r < 0 || (r > 0 && r >= n))
		return r;
	return r + futex_nap_wake(c->arg[0], op & FUTEX_PRIVATE_FLAG);
}

int64_t hc_futex(struct hcall *c)
{
	int op = (int)c->arg[1];
	uint32_t val3 = (uint32_t)c->arg[5];
	if (!word_ok(c->arg[0]))
		return c->arg[0] & 3 ? -EINVAL : -EFAULT;
	switch (op & FUTEX_CMD_MASK) {
	case FUTEX_WAIT_REQUEUE_PI:
		if (!word_ok(c->arg[4]))
			return c->arg[4] & 3 ? -EINVAL : -EFAULT;
		/* fall through */
	case FUTEX_WAIT:
	case FUTEX_WAIT_BITSET:
	case FUTEX_LOCK_PI:
	case 13 /* FUTEX_LOCK_PI2 */:
	case FUTEX_TRYLOCK_PI:
		return futex_sleep(c, op, val3);
	case FUTEX_WAKE:
	case FUTEX_WAKE_BITSET:
		return futex_wake(c, op, val3);
	case FUTEX_UNLOCK_PI:
		return HC6(SYS_futex, gva_ptr(c->arg[0]), op, (uint32_t)c->arg[2], 0, 0, val3);
	case FUTEX_REQUEUE:
	case FUTEX_CMP_REQUEUE:
	case FUTEX_WAKE_OP:
	case FUTEX_CMP_REQUEUE_PI:
		if (!word_ok(c->arg[4]))
			return c->arg[4] & 3 ? -EINVAL : -EFAULT;
		futex_nap_evict(c->arg[0], op & FUTEX_PRIVATE_FLAG);
		futex_nap_evict(c->arg[4], op & FUTEX_PRIVATE_FLAG);
		return HC6(SYS_futex, gva_ptr(c->arg[0]), op, (uint32_t)c->arg[2], c->arg[3], gva_ptr(c->arg[4]), val3);
	}
	return -ENOSYS;
}

#define WAITV_MAX 128

int64_t hc_futex_waitv(struct hcall *c)
{
	struct futex_waitv v[WAITV_MAX];
	struct timespec ts, *timeout = NULL;
	uint32_t n = (uint32_t)c->arg[1];
	if ((uint32_t)c->arg[2] || !n || n > WAITV_MAX || !c->arg[0])
		return -EINVAL;
	if (get_timespec(c->arg[3], &ts, &timeout) || guest_read(v, c->arg[0], n * sizeof v[0]))
		return -EFAULT;
	for (uint32_t i = 0; i < n; i++) /* what is no address fails there as the guest's would */
		v[i].uaddr = word_ok(v[i].uaddr) ? (uint64_t)gva_ptr(v[i].uaddr) : v[i].uaddr & 3 ? 1 : 8;
	return HB6(c->nr, v, n, 0, timeout, (int)c->arg[4], 0);
}
