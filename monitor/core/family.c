/* SPDX-License-Identifier: Apache-2.0 */
#include "family.h"
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "pvm.h"

/* Slots change by compare-and-swap alone: a member that is killed at any instant leaves nothing locked. */
static pid_t *table;

int family_init(int fd, struct kx_err *err)
{
	size_t size = FAMILY_MAX * sizeof *table;
	if (fd < 0) {
		fd = memfd_create("kylinx-family", MFD_CLOEXEC);
		if (fd < 0 || ftruncate(fd, size))
			return kx_err_set(err, errno, "family: no memory for its table: %s (free some memory)",
					  strerror(errno));
		if ((fd = fd_hide(fd)) < 0)
			return kx_err_set(err, -fd, "family: no descriptor left (raise `ulimit -n`)");
	}
	table = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (table == MAP_FAILED)
		return kx_err_set(err, errno, "family: cannot map its table: %s (free some memory)", strerror(errno));
	pvm.family_fd = fd;
	return 0;
}

static bool add(pid_t pid)
{
	for (unsigned i = 0; i < FAMILY_MAX; i++) {
		pid_t none = 0;
		unsigned k = (i + (unsigned)pid) % FAMILY_MAX;
		if (__atomic_compare_exchange_n(&table[k], &none, pid, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			return true;
	}
	return false;
}

/* Out with those that are gone: children that nobody waited for. */
static void sweep(void)
{
	for (unsigned i = 0; i < FAMILY_MAX; i++) {
		pid_t old = __atomic_load_n(&table[i], __ATOMIC_RELAXED);
		if (old > 0 && kill(old, 0) && errno == ESRCH)
			__atomic_compare_exchange_n(&table[i], &old, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	}
}

int family_add(pid_t pid)
{
	if (family_has(pid) || add(pid))
		return 0;
	sweep();
	return add(pid) ? 0 : -EAGAIN;
}

static bool has_room(void)
{
	for (unsigned i = 0; i < FAMILY_MAX; i++)
		if (!__atomic_load_n(&table[i], __ATOMIC_RELAXED))
			return true;
	return false;
}

bool family_room(void)
{
	if (has_room())
		return true;
	sweep();
	return has_room();
}

void family_remove(pid_t pid)
{
	for (unsigned i = 0; i < FAMILY_MAX; i++) {
		pid_t old = pid;
		__atomic_compare_exchange_n(&table[i], &old, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	}
}

bool family_has(pid_t pid)
{
	if (pid <= 0)
		return false;
	for (unsigned i = 0; i < FAMILY_MAX; i++)
		if (__atomic_load_n(&table[i], __ATOMIC_RELAXED) == pid)
			return true;
	return false;
}

int family_each(void (*fn)(pid_t pid, void *arg), void *arg)
{
	int n = 0;
	for (unsigned i = 0; i < FAMILY_MAX; i++) {
		pid_t pid = __atomic_load_n(&table[i], __ATOMIC_RELAXED);
		if (pid > 0) {
			fn(pid, arg);
			n++;
		}
	}
	return n;
}
