/* SPDX-License-Identifier: Apache-2.0 */
#include "futexes.h"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include "family.h"

static struct kx_futexes *futexes; /* guest memory */
static dev_t view_dev, memfd_dev;  /* of the private tmpfs, of memory files */

int futexes_init(struct kx_err *err)
{
	futexes = gva_ptr(KX_FUTEX_BASE);
	int r = family_map_futexes(futexes);
	if (r)
		return kx_err_set(err, -r, "family: cannot map its futexes: %s (free some memory)", strerror(-r));
	return 0;
}

void futexes_view(void)
{
	struct stat st;
	if (!stat("/dev", &st))
		view_dev = st.st_dev;
	if (!fstat(pvm.family_fd, &st))
		memfd_dev = st.st_dev;
}

void futexes_mapped(int fd, int prot)
{
	struct stat st;
	struct statvfs fs;
	if (pvm.shared->futex_outside || fstat(fd, &st) || (st.st_dev == view_dev && view_dev) ||
	    st.st_dev == memfd_dev)
		return;
	/* Nobody waits for a word that nobody can change: libraries' caches are mapped so. */
	if (!(prot & PROT_WRITE) && !fstatvfs(fd, &fs) && fs.f_flag & ST_RDONLY)
		return;
	__atomic_store_n(&pvm.shared->futex_outside, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&futexes->mapped_outside, 1, __ATOMIC_SEQ_CST);
}

void futexes_passed(int fd)
{
	struct stat st;
	if (!fstat(fd, &st) && S_ISREG(st.st_mode) && (st.st_dev == view_dev || st.st_dev == memfd_dev))
		__atomic_store_n(&futexes->outside, 1, __ATOMIC_SEQ_CST);
}

void futexes_inherited(void)
{
	struct pollfd p[1024];
	nfds_t n = pvm.fd_limit < 1024 ? pvm.fd_limit : 1024;
	for (nfds_t i = 0; i < n; i++)
		p[i] = (struct pollfd){ .fd = (int)i };
	cpu_set_t set;
	if (!futexes->cpus && !sched_getaffinity(0, sizeof set, &set))
		futexes->cpus = (uint32_t)CPU_COUNT(&set);
	if (poll(p, n, 0) < 0)
		n = 0;
	for (nfds_t i = 0; i < n; i++)
		if (!(p[i].revents & POLLNVAL))
			futexes_passed((int)i);
}

void futexes_uncount(struct thread *t)
{
	uint32_t slot = __atomic_exchange_n(&t->area->futex_slot, 0, __ATOMIC_SEQ_CST);
	if (slot && slot <= KX_FUTEX_SLOTS)
		__atomic_sub_fetch(&futexes->waiters[slot - 1], 1, __ATOMIC_SEQ_CST);
}
