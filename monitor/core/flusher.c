/* SPDX-License-Identifier: Apache-2.0 */
#include "flusher.h"
#include <errno.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include "../../util/now.h"
#include "hcall.h"
#include "spare.h"
#include "thread.h"

#define STACK (128 << 10)
#define LATE_NS 2000000ll
#define EARLY_NS 500000ll /* so long a turn of an event loop may be, and the timer is not set in each */

static struct {
	void (*look)(void);
	pid_t pid;            /* that it belongs to */
	int timer;            /* -1 = none */
	int reading;          /* it is about to use the number, or does */
	int64_t due;          /* changed with the lock */
	pthread_mutex_t lock; /* a leaf; free at a fork, since batch.c's and dgram.c's are held then */
} flusher = { .timer = -1, .lock = PTHREAD_MUTEX_INITIALIZER };

static void set_timer(int64_t ns)
{
	struct itimerspec its = { .it_value = { 0, ns } };
	HC6(SYS_timerfd_settime, flusher.timer, 0, &its, 0, 0, 0);
}

static void *flusher_main(void *arg)
{
	uint64_t times;
	prctl(PR_SET_NAME, PVM_THREADS "flusher");
	for (;;) {
		__atomic_store_n(&flusher.reading, 1, __ATOMIC_SEQ_CST);
		int timer = __atomic_load_n(&flusher.timer, __ATOMIC_SEQ_CST);
		host_call(SYS_read, timer, (long)&times, sizeof times, 0, 0, 0);
		__atomic_store_n(&flusher.reading, 0, __ATOMIC_SEQ_CST);
		flusher.look();
	}
	return arg;
}

static bool timer_make(void)
{
	fd_limit_lift();
	int fd = fd_hide(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
	fd_limit_drop();
	if (fd < 0)
		return false;
	flusher.timer = fd;
	flusher.due = 0;
	return true;
}

static bool start(void (*look)(void))
{
	if (flusher.pid == pvm.pid)
		return true;
	spare_forbid(); /* it shares the table of descriptors */
	flusher.look = look;
	if (flusher.timer < 0 && !timer_make())
		return false;
	if (!thread_own_start(NULL, STACK, flusher_main, NULL))
		flusher.pid = pvm.pid;
	return flusher.pid == pvm.pid;
}

bool flusher_start(void (*look)(void))
{
	pthread_mutex_lock(&flusher.lock);
	bool there = start(look);
	pthread_mutex_unlock(&flusher.lock);
	return there;
}

static bool is_late(int64_t now) { return __atomic_load_n(&flusher.due, __ATOMIC_RELAXED) - now <= EARLY_NS; }

/* Most calls find it set. Who does so while the timer is moved leaves it to the flusher, which that has woken. */
void flusher_due(void)
{
	int64_t now = (int64_t)now_ns();
	if (!is_late(now))
		return;
	pthread_mutex_lock(&flusher.lock);
	if (flusher.pid == pvm.pid && is_late(now)) {
		__atomic_store_n(&flusher.due, now + LATE_NS, __ATOMIC_RELAXED);
		set_timer(LATE_NS);
	}
	pthread_mutex_unlock(&flusher.lock);
}

/* The number may be the guest's once it has been moved: so it must not be on its way into read() with the old one. */
int flusher_fds(int (*move)(int *fd))
{
	const struct timespec soon = { 0, 100000 };
	if (flusher.timer < 0)
		return 0;
	pthread_mutex_lock(&flusher.lock);
	while (flusher.pid == pvm.pid && __atomic_load_n(&flusher.reading, __ATOMIC_SEQ_CST)) {
		set_timer(1);
		host_call(SYS_nanosleep, (long)&soon, 0, 0, 0, 0, 0);
	}
	int r = move(&flusher.timer);
	flusher.due = 0;
	pthread_mutex_unlock(&flusher.lock);
	return r;
}

void flusher_fork_child(void)
{
	if (flusher.timer >= 0)
		HC6(SYS_close, flusher.timer, 0, 0, 0, 0, 0);
	flusher.timer = -1;
	flusher.reading = 0;
}
