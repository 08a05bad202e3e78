/* SPDX-License-Identifier: Apache-2.0 */
/* Clocks, sleeping, timers, futexes. */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>
#include "../../util/procstat.h"
#include "../dev/procfs.h"
#include "family.h"
#include "hcall.h"
#include "keeper.h"
#include "robust.h"
#include "sig.h"
#include "thread.h"
#include "update.h"
#include "timepage.h"

/* By the time page when it can, so that a call is never behind what the program has just read from the page. */
static bool read_page(int clk, struct timespec *ts)
{
	if (keeper_needed())
		return (uint8_t)KEEPER6(read_page, clk, ts, 0, 0, 0, 0);
	timepage_update(pvm.vvar);
	return timepage_gettime(pvm.vvar, clk, ts);
}

static long read_clock(int clk, struct timespec *ts)
{
	if (read_page(clk, ts))
		return 0;
	return HC6(SYS_clock_gettime, clk, ts, 0, 0, 0, 0);
}

/* Clocks of processes and threads: the number holds a pid (CPUCLOCK), or a descriptor (3). */
static bool clock_is_ours(int clk)
{
	return clk >= 0 || (clk & 7) == 3 || ~(clk >> 3) == 0 || thread_is_ours(~(clk >> 3));
}

int64_t hc_clock_gettime(struct hcall *c)
{
	struct timespec ts;
	int clk = (int)c->arg[0];
	if (!clock_is_ours(clk))
		return -EINVAL;
	long r = read_clock(clk, &ts);
	return r < 0 ? r : guest_write(c->arg[1], &ts, sizeof ts);
}

int64_t hc_clock_getres(struct hcall *c)
{
	int clk = (int)c->arg[0];
	return clock_is_ours(clk) ? HC6(SYS_clock_getres, clk, c->host[1], 0, 0, 0, 0) : -EINVAL;
}

int64_t hc_gettimeofday(struct hcall *c)
{
	struct timespec ts;
	struct timezone tz;
	long r = read_clock(CLOCK_REALTIME, &ts);
	if (r < 0)
		return r;
	struct timeval tv = { ts.tv_sec, ts.tv_nsec / 1000 };
	if (c->arg[1] && (r = HC6(SYS_gettimeofday, 0, &tz, 0, 0, 0, 0)) < 0)
		return r;
	if ((c->arg[0] && guest_write(c->arg[0], &tv, sizeof tv)) ||
	    (c->arg[1] && guest_write(c->arg[1], &tz, sizeof tz)))
		return -EFAULT;
	return 0;
}

int64_t hc_time(struct hcall *c)
{
	struct timespec ts;
	long r = read_clock(CLOCK_REALTIME, &ts);
	if (r < 0)
		return r;
	int64_t t = ts.tv_sec;
	return c->arg[0] && guest_write(c->arg[0], &t, sizeof t) ? -EFAULT : t;
}

int64_t hc_getcpu(struct hcall *c)
{
	unsigned cpu = 0, node = 0;
	HC6(SYS_getcpu, &cpu, &node, 0, 0, 0, 0);
	if ((c->arg[0] && guest_write(c->arg[0], &cpu, 4)) || (c->arg[1] && guest_write(c->arg[1], &node, 4)))
		return -EFAULT;
	return 0;
}

/* adjtimex(buf), clock_adjtime(clock, buf) */
int64_t hc_adjtimex(struct hcall *c)
{
	bool of_clock = c->nr == SYS_clock_adjtime;
	uint64_t gva = c->arg[of_clock];
	struct timex tx;
	_Static_assert(sizeof tx == 208, "as the rows say");
	if (guest_read(&tx, gva, sizeof tx))
		return -EFAULT;
	if (of_clock && (int)c->arg[0] < 0 && (c->arg[0] & 7) == 3) /* of a device, by descriptor */
		return -EINVAL;
	if (tx.modes && tx.modes != ADJ_OFFSET_SS_READ)
		return -EPERM;
	long r = of_clock ? HC6(SYS_clock_adjtime, (int)c->arg[0], &tx, 0, 0, 0, 0)
			  : HC6(SYS_adjtimex, &tx, 0, 0, 0, 0, 0);
	return r >= 0 && guest_write(gva, &tx, sizeof tx) ? -EFAULT : r;
}

/* nanosleep(req, rem) and clock_nanosleep(clock, flags, req, rem). */
int64_t hc_clock_nanosleep(struct hcall *c)
{
	bool plain = c->nr == SYS_nanosleep;
	int clk = plain ? CLOCK_MONOTONIC : (int)c->arg[0], flags = plain ? 0 : (int)c->arg[1];
	uint64_t rem_gva = c->arg[plain ? 1 : 3];
	struct timespec req, rem;
	if (guest_read(&req, c->arg[plain ? 0 : 2], sizeof req))
		return -EFAULT;
	if (!clock_is_ours(clk))
		return -EINVAL;
	for (;;) {
		rem = req;
		long r = HB6(SYS_clock_nanosleep, clk, flags, &req, &rem, 0, 0);
		if (r != -EINTR)
			return r;
		if (flags & TIMER_ABSTIME)
			rem = req;
		if (!update_goes_on(c->t)) {
			if (rem_gva && !(flags & TIMER_ABSTIME) && guest_write(rem_gva, &rem, sizeof rem))
				return -EFAULT;
			return -EINTR;
		}
		req = rem;
	}
}

int64_t hc_timer_create(struct hcall *c)
{
	struct sigevent ev;
	int id = 0, clk = (int)c->arg[0];
	if (c->arg[1]) {
		if (guest_read(&ev, c->arg[1], sizeof ev))
			return -EFAULT;
		if (ev.sigev_notify == SIGEV_THREAD_ID && !thread_is_ours(ev._sigev_un._tid))
			return -EINVAL;
	}
	if (!clock_is_ours(clk))
		return -EINVAL;
	long r = HC6(SYS_timer_create, clk, c->arg[1] ? &ev : NULL, &id, 0, 0, 0);
	if (r < 0)
		return r;
	if (guest_write(c->arg[2], &id, sizeof id)) {
		HC6(SYS_timer_delete, id, 0, 0, 0, 0, 0);
		return -EFAULT;
	}
	return 0;
}

/* ---- futex ------------------------------------------------------------------------------------------------- */

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
	case FUTEX_UNLOCK_PI:
		return HC6(SYS_futex, gva_ptr(c->arg[0]), op, (uint32_t)c->arg[2], 0, 0, val3);
	case FUTEX_REQUEUE:
	case FUTEX_CMP_REQUEUE:
	case FUTEX_WAKE_OP:
	case FUTEX_CMP_REQUEUE_PI:
		if (!word_ok(c->arg[4]))
			return c->arg[4] & 3 ? -EINVAL : -EFAULT;
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

int64_t hc_set_tid_address(struct hcall *c)
{
	c->t->clear_tid = c->arg[0];
	return c->t->tid;
}

int64_t hc_set_robust_list(struct hcall *c)
{
	if (c->arg[1] != 24)
		return -EINVAL;
	c->t->area->robust_ready = 0;
	robust_set(c->t, c->arg[0]);
	return 0;
}

int64_t hc_get_robust_list(struct hcall *c)
{
	int pid = (int)c->arg[0];
	uint64_t head = 0, len = 24;
	if (pid == 0 || pid == c->t->tid) {
		head = c->t->area->robust_ready ? 0 : c->t->robust_head;
	} else if (c->t->pid != pvm.pid) { /* a child of vfork has no other threads */
		return -ESRCH;
	} else {
		bool found = false;
		pthread_mutex_lock(&pvm.thr_lock);
		for (struct thread *t = pvm.threads; t; t = t->next)
			if (t->tid == pid) {
				head = t->robust_head;
				found = true;
			}
		pthread_mutex_unlock(&pvm.thr_lock);
		if (!found)
			return -ESRCH;
	}
	return guest_write(c->arg[2], &len, 8) || guest_write(c->arg[1], &head, 8) ? -EFAULT : 0;
}
