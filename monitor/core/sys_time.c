/* SPDX-License-Identifier: Apache-2.0 */
/* Clocks, sleeping, timers. */
#include <errno.h>
#include <fcntl.h>
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

/* ---- of a thread ------------------------------------------------------------------------------------------------ */

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
				head = t->area->robust_ready ? 0 : t->robust_head;
				found = true;
			}
		pthread_mutex_unlock(&pvm.thr_lock);
		if (!found)
			return -ESRCH;
	}
	return guest_write(c->arg[2], &len, 8) || guest_write(c->arg[1], &head, 8) ? -EFAULT : 0;
}
