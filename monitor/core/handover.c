/* SPDX-License-Identifier: Apache-2.0 */
#include "handover.h"
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "vcpu.h"

#define RENEWED_MAX 128

static enum { UNKNOWN, GOES_ON, WAITS } kvm; /* by threads and children of vfork, each with the same answer */

bool handover_pays(int renewed)
{
	return __atomic_load_n(&kvm, __ATOMIC_RELAXED) == WAITS && renewed < RENEWED_MAX &&
	       renewed < ioctl(pvm.vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS) / 8;
}

void handover_learn(struct thread *t)
{
	struct rusage before, after;
	if (__atomic_load_n(&kvm, __ATOMIC_RELAXED) != UNKNOWN ||
	    HC6(SYS_getrusage, RUSAGE_THREAD, &before, 0, 0, 0, 0) || vcpu_prove(t) ||
	    HC6(SYS_getrusage, RUSAGE_THREAD, &after, 0, 0, 0, 0))
		return;
	/* A run that ends at once sleeps for nothing else. */
	__atomic_store_n(&kvm, after.ru_nvcsw > before.ru_nvcsw ? WAITS : GOES_ON, __ATOMIC_RELAXED);
}

int handover_renew(struct thread *t, int number)
{
	const int fd = t->vcpu_fd;
	struct kvm_run *run = t->run;
	int r = vcpu_open(t, number);
	if (!r)
		r = vcpu_set_up(t);
	struct kvm_run *unused_run = r ? t->run : run;
	int unused_fd = r ? t->vcpu_fd : fd;
	if (t->run != run)
		munmap(unused_run, pvm.kvm_run_size);
	if (t->vcpu_fd != fd)
		close(unused_fd);
	if (r) {
		t->vcpu_fd = fd;
		t->run = run;
	}
	return r;
}
