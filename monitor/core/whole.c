/* SPDX-License-Identifier: Apache-2.0 */
#include "whole.h"
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../../util/now.h"
#include "gmem.h"
#include "hcall.h"
#include "huge.h"
#include "keeper.h"
#include "pagemap.h"
#include "spare.h"
#include "thread.h"

#define STACK (128 << 10) /* thread-local storage included */
#define PAGE 4096ull
#define HUGE (2ull << 20)
#define PAGES (HUGE / PAGE)
#define DENSE 384 /* of the 512 pages in 2 MiB: as many must be in use */
#define WRITTEN 4 /* of them, before the rest is copied ahead */
#define PIECES 128
#define FAILS_MAX 8
#define SOON_NS 1000000ull
#define LATER_NS 256000000ull
#define GIVE_UP_NS 20000000000ull
#define FREE_PART 8 /* of the host's memory: as much stays available */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static struct {
	pid_t pid;            /* that the thread belongs to */
	int pagemap, meminfo; /* -1 = none */
	uint32_t due;         /* counts; a futex */
	bool useless;         /* nobody can tell */
	pthread_mutex_t lock; /* a leaf: the descriptors, and who makes the thread */
} whole = { .pagemap = -1, .meminfo = -1, .lock = PTHREAD_MUTEX_INITIALIZER };

struct turn {
	unsigned made, failed;
};

/* ---- the thread: no allocation, no lock of libc's, since other threads fork ------------------------------------------ */

static long locked(long nr, int *fd, long a, long b, long c)
{
	pthread_mutex_lock(&whole.lock);
	long r = host_call(nr, *fd, a, b, c, 0, 0);
	pthread_mutex_unlock(&whole.lock);
	return r;
}

/* A number of /proc/meminfo, in KiB. */
static uint64_t number(const char *text, const char *name)
{
	const char *at = strstr(text, name);
	return at ? strtoull(at + strlen(name), NULL, 10) : 0;
}

static bool memory_is_there(void)
{
	char text[512];
	long n = locked(SYS_pread64, &whole.meminfo, (long)text, sizeof text - 1, 0);
	if (n <= 0)
		return false;
	text[n] = 0;
	return number(text, "MemAvailable:") > number(text, "MemTotal:") / FREE_PART;
}

/* Is it better off as one page? What is shared has been written to in part, or none of it is shared any more. */
static bool pays(uint64_t chunk)
{
	uint64_t entry[PAGES];
	unsigned present = 0, alone = 0;
	if (locked(SYS_pread64, &whole.pagemap, (long)entry, sizeof entry,
		   (long)((uint64_t)gva_ptr(chunk) / PAGE * 8)) != sizeof entry)
		return false;
	for (unsigned i = 0; i < PAGES; i++) {
		present += !!(entry[i] & PM_PRESENT);
		alone += (entry[i] & (PM_PRESENT | PM_ALONE)) == (PM_PRESENT | PM_ALONE);
	}
	return present >= DENSE && (alone == present || alone >= WRITTEN) && memory_is_there();
}

/*
 * While the kernel copies nobody can map or fault in this process. What makes that long is memory that a hypervisor has to
 * find first: so a page of that size is had and given back before, of which the kernel then makes the copy.
 */
static void page_ready(void)
{
	long p = host_call(SYS_mmap, 0, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p < 0)
		return;
	uint64_t at = ((uint64_t)p + HUGE - 1) & -HUGE;
	host_call(SYS_madvise, (long)at, HUGE, MADV_HUGEPAGE, 0, 0, 0);
	host_call(SYS_madvise, (long)at, PAGE, MADV_POPULATE_WRITE, 0, 0, 0);
	host_call(SYS_munmap, p, 2 * HUGE, 0, 0, 0, 0);
}

static void nap(uint64_t ns)
{
	const struct timespec t = { (time_t)(ns / 1000000000), (long)(ns % 1000000000) };
	host_call(SYS_nanosleep, (long)&t, 0, 0, 0, 0, 0);
}

static void chunk_look(struct turn *t, uint64_t chunk, unsigned pages)
{
	if (pages < DENSE || t->failed == FAILS_MAX || !pays(chunk))
		return;
	page_ready();
	if (host_call(SYS_madvise, (long)gva_ptr(chunk), HUGE, MADV_COLLAPSE, 0, 0, 0)) {
		t->failed++;
		return;
	}
	t->made++;
	__atomic_add_fetch(&pvm.nr_whole, 1, __ATOMIC_RELAXED);
}

/* [start, end) is of whole 2 MiB. */
static void range_look(struct turn *t, uint64_t start, uint64_t end)
{
	struct pm_piece v[PIECES];
	uint64_t chunk = start;
	unsigned pages = 0;
	while (start < end) {
		struct pm_scan s = { .size = sizeof s,
				     .start = (uint64_t)gva_ptr(start),
				     .end = (uint64_t)gva_ptr(end),
				     .vec = (uint64_t)v,
				     .vec_len = PIECES,
				     .category_inverted = PM_IS_HUGE,
				     .category_mask = PM_IS_PRESENT | PM_IS_HUGE,
				     .return_mask = PM_IS_PRESENT };
		long n = locked(SYS_ioctl, &whole.pagemap, PM_SCAN, (long)&s, 0);
		if (n < 0) {
			whole.useless |= n == -ENOTTY || n == -EINVAL;
			return;
		}
		for (long i = 0; i < n; i++)
			for (uint64_t a = v[i].start - (uint64_t)pvm.base, e = v[i].end - (uint64_t)pvm.base; a < e;) {
				uint64_t c = a & -HUGE, to = c + HUGE < e ? c + HUGE : e;
				if (c != chunk) {
					chunk_look(t, chunk, pages);
					chunk = c;
					pages = 0;
				}
				pages += (unsigned)((to - a) / PAGE);
				a = to;
			}
		start = s.walk_end - (uint64_t)pvm.base;
	}
	chunk_look(t, chunk, pages);
}

static void look(struct turn *t)
{
	const int mask = MAP_TYPE | MAP_ANONYMOUS | MAP_STACK | MAP_HUGETLB | GMEM_TRAMP;
	struct gmem_region r;
	for (uint64_t at = 0; gmem_query(at, &r) && !whole.useless && !huge_is_refused(); at = r.end) {
		uint64_t start = (r.start + HUGE - 1) & -HUGE, end = r.end & -HUGE;
		if (r.prot & PROT_WRITE && (r.flags & mask) == (MAP_PRIVATE | MAP_ANONYMOUS) && start < end)
			range_look(t, start, end);
	}
}

static void wait_for(uint32_t seen, uint64_t ns)
{
	const struct timespec t = { (time_t)(ns / 1000000000), (long)(ns % 1000000000) };
	host_call(SYS_futex, (long)&whole.due, FUTEX_WAIT, seen, ns ? (long)&t : 0, 0, 0);
}

static void *whole_main(void *arg)
{
	const struct sched_param none = { 0 };
	uint32_t seen = 0;
	uint64_t idle = GIVE_UP_NS, step = SOON_NS;
	prctl(PR_SET_NAME, PVM_THREADS "whole");
	/* To be woken does not take the processor from who forks. */
	host_call(SYS_sched_setscheduler, 0, SCHED_BATCH, (long)&none, 0, 0, 0);
	for (;;) {
		uint32_t due = __atomic_load_n(&whole.due, __ATOMIC_SEQ_CST);
		if (due == seen && idle >= GIVE_UP_NS) {
			wait_for(seen, 0);
			continue;
		}
		if (due != seen) {
			seen = due;
			idle = 0;
			step = SOON_NS;
			nap(SOON_NS);
		}
		struct turn t = { 0, 0 };
		uint64_t begin = now_ns();
		look(&t);
		uint64_t took = now_ns() - begin;
		if (t.made) {
			idle = 0;
			step = SOON_NS;
		} else if (step < LATER_NS) {
			step *= 2;
		}
		uint64_t ns = step > 2 * took ? step : 2 * took;
		idle += ns;
		wait_for(seen, ns);
	}
	return arg;
}

/* ---- others ------------------------------------------------------------------------------------------------------------ */

/* 0 or an errno. */
static int start(void)
{
	spare_forbid(); /* it shares the table of descriptors */
	if (whole.pagemap < 0 && (whole.pagemap = proc_file("self/pagemap")) < 0)
		return ENOENT;
	if (whole.meminfo < 0 && (whole.meminfo = proc_file("meminfo")) < 0)
		return ENOENT;
	int r = thread_own_start(NULL, STACK, whole_main, NULL);
	if (!r)
		whole.pid = pvm.pid;
	return r;
}

void whole_due(void)
{
	if (is_vfork_child() || pvm.proc_fd < 0 || whole.useless)
		return;
	__atomic_add_fetch(&whole.due, 1, __ATOMIC_SEQ_CST);
	pthread_mutex_lock(&whole.lock);
	bool there = whole.pid == pvm.pid;
	int e = there ? 0 : start();
	pthread_mutex_unlock(&whole.lock);
	if (e) {
		kx_log(KX_LOG_INFO, "whole", "memory stays in the pages that it has: %s", strerror(e));
		whole.useless = e == ENOENT;
	}
	if (there)
		host_call(SYS_futex, (long)&whole.due, FUTEX_WAKE, 1, 0, 0, 0);
}

int whole_fds(int (*move)(int *fd))
{
	pthread_mutex_lock(&whole.lock);
	int r = move(&whole.pagemap);
	if (!r)
		r = move(&whole.meminfo);
	pthread_mutex_unlock(&whole.lock);
	return r;
}

void whole_fork_child(void)
{
	pthread_mutex_init(&whole.lock, NULL); /* its owner is not here */
	if (whole.pagemap >= 0)
		close(whole.pagemap);
	if (whole.meminfo >= 0)
		close(whole.meminfo);
	whole.pagemap = whole.meminfo = -1;
	whole.pid = 0;
}
