/* SPDX-License-Identifier: Apache-2.0 */
/* See kvmstats.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "kvmstats.h"
#include "thread.h"

#define NAME_MAX_ 64
#define DESC_MAX 256

/* Where the value of that name is in a statistics descriptor, -1 = nowhere. The layout is one for all vCPUs of a host. */
static off_t value_at(int fd, const char *name)
{
	struct kvm_stats_header h;
	union { /* its name follows it */
		struct kvm_stats_desc d;
		char bytes[sizeof(struct kvm_stats_desc) + NAME_MAX_];
	} e;
	if (pread(fd, &h, sizeof h, 0) != sizeof h || h.name_size > NAME_MAX_ || h.num_desc > DESC_MAX)
		return -1;
	size_t size = sizeof e.d + h.name_size;
	for (uint32_t i = 0; i < h.num_desc; i++) {
		if (pread(fd, &e, size, (off_t)(h.desc_offset + i * size)) != (ssize_t)size)
			return -1;
		if (!strncmp(e.bytes + sizeof e.d, name, h.name_size))
			return (off_t)h.data_offset + e.d.offset;
	}
	return -1;
}

static int add(int vcpu_fd, void *sum)
{
	static off_t at;
	int fd = ioctl(vcpu_fd, KVM_GET_STATS_FD, 0);
	uint64_t v;
	if (fd < 0)
		return -1;
	if (!at)
		at = value_at(fd, "pf_fixed");
	if (at > 0 && pread(fd, &v, sizeof v, at) == sizeof v)
		*(uint64_t *)sum += v;
	close(fd);
	return at > 0 ? 0 : -1;
}

uint64_t kvmstats_page_faults(void)
{
	uint64_t sum = 0;
	thread_each_vcpu(add, &sum);
	return sum;
}
