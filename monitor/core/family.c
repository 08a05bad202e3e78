/* SPDX-License-Identifier: Apache-2.0 */
#include "family.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "pvm.h"
#include "thread.h"
#include "stats.h"

/*
 * Slots change by compare-and-swap alone: a member that is killed at any instant leaves nothing locked. A slot is a
 * pid and, above it, when it was entered, in clock ticks since the host's start. A member that nobody waits for
 * (SIGCHLD ignored, its parent gone) stays in here after its end; a process that gets its number later is told from
 * it by having started after that time.
 */
typedef uint64_t slot;
static slot *table;

static pid_t slot_pid(slot s) { return (pid_t)(uint32_t)s; }

static slot slot_now(pid_t pid)
{
	struct timespec ts;
	clock_gettime(CLOCK_BOOTTIME, &ts);
	uint32_t ticks = (uint64_t)ts.tv_sec * 100 + ts.tv_nsec / 10000000;
	return (uint64_t)ticks << 32 | (uint32_t)pid;
}

static slot load(unsigned i) { return __atomic_load_n(&table[i], __ATOMIC_RELAXED); }

static bool change(unsigned i, slot from, slot to)
{
	return __atomic_compare_exchange_n(&table[i], &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* Read a file of the host's procfs. False when there is none. */
static bool proc_read(pid_t pid, const char *file, char *text, size_t size)
{
	char name[32];
	snprintf(name, sizeof name, "%d/%s", pid, file);
	fd_limit_lift();
	int fd = openat(pvm.proc_fd, name, O_RDONLY | O_CLOEXEC);
	fd_limit_drop();
	ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	return n > 0;
}

/* The process that was entered, not a later one with its number? A child, a zombie too, keeps its number until it is
 * waited for, and a parent is there as long as it is one: those cost little. */
static bool is_still(slot s)
{
	char text[1024], *at;
	siginfo_t info;
	pid_t pid = slot_pid(s);
	unsigned long long start = 0;
	if (pvm.proc_fd < 0 || pid == my_pid() || pid == getppid() ||
	    !HC6(SYS_waitid, P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, 0, 0))
		return true;
	if (!proc_read(pid, "stat", text, sizeof text) || !(at = strrchr(text, ')')) ||
	    sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
		   &start) != 1)
		return false;
	return (int32_t)((uint32_t)start - (uint32_t)(s >> 32)) <= 1;
}

int family_init(int fd, struct kx_err *err)
{
	size_t pids = FAMILY_MAX * sizeof *table, size = pids + sizeof(struct stats_family);
	if (fd < 0) {
		fd = memfd_create("kylinx-family", MFD_CLOEXEC);
		if (fd < 0 || ftruncate(fd, size))
			return kx_err_set(err, errno, "family: no memory for its table: %s (free some memory)",
					  strerror(errno));
	}
	table = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (table == MAP_FAILED)
		return kx_err_set(err, errno, "family: cannot map its table: %s (free some memory)", strerror(errno));
	stats_share((struct stats_family *)((uint8_t *)table + pids));
	int r = fd_keep(&pvm.family_fd, fd);
	return r ? kx_err_set(err, -r, "family: no descriptor left (raise `ulimit -n`)") : 0;
}

int family_add(pid_t pid)
{
	/* Its parent and it itself enter it. What is there may be of an earlier process with this number. */
	for (unsigned i = 0; i < FAMILY_MAX; i++) {
		slot s = load(i);
		if (slot_pid(s) == pid && change(i, s, slot_now(pid)))
			return 0;
	}
	for (int turn = 0; turn < 2; turn++) {
		for (unsigned i = 0; i < FAMILY_MAX; i++)
			if (change((i + (unsigned)pid) % FAMILY_MAX, 0, slot_now(pid)))
				return 0;
		for (unsigned i = 0; i < FAMILY_MAX; i++) { /* full: perhaps of those that are gone */
			slot s = load(i);
			if (s && !is_still(s))
				change(i, s, 0);
		}
	}
	return -EAGAIN;
}

void family_remove(pid_t pid)
{
	for (unsigned i = 0; i < FAMILY_MAX; i++) {
		slot s = load(i);
		if (slot_pid(s) == pid)
			change(i, s, 0);
	}
}

bool family_has(pid_t pid)
{
	for (unsigned i = 0; pid > 0 && i < FAMILY_MAX; i++) {
		unsigned k = (i + (unsigned)pid) % FAMILY_MAX;
		slot s = load(k);
		if (slot_pid(s) != pid)
			continue;
		if (is_still(s))
			return true;
		change(k, s, 0);
	}
	return false;
}

pid_t family_owner(pid_t tid)
{
	char text[512], *at;
	if (tid <= 0)
		return 0;
	if (tid == my_pid() || thread_is_ours(tid))
		return my_pid();
	if (family_has(tid))
		return tid;
	if (!proc_read(tid, "status", text, sizeof text))
		return 0;
	pid_t owner = (at = strstr(text, "\nTgid:")) ? atoi(at + 6) : 0;
	return family_has(owner) ? owner : 0;
}

int family_each(void (*fn)(pid_t pid, void *arg), void *arg)
{
	int n = 0;
	for (unsigned i = 0; i < FAMILY_MAX; i++) {
		slot s = load(i);
		if (!s)
			continue;
		if (is_still(s)) {
			fn(slot_pid(s), arg);
			n++;
		} else {
			change(i, s, 0);
		}
	}
	return n;
}
