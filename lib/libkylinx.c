/* SPDX-License-Identifier: Apache-2.0 */
/* include/kylinx.h. What a pVM's LibOS keeps lies in the program's own memory, at addresses that abi/kx_abi.h tells. */
#define _GNU_SOURCE
#include "../include/kylinx.h"
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>
#include "../abi/kx_abi.h"

#define POINTERS_MAX 512

/* The monitor reads this at an update (relink.c). */
struct {
	uint64_t n;
	void **at[POINTERS_MAX];
} kylinx_pointers __attribute__((visibility("default")));
static char lock;

int kylinx_is_pvm(void) { return getauxval(AT_SYSINFO_EHDR) == KX_VDSO_BASE; }

pid_t kylinx_id(void) { return getpid(); }

int kylinx_stats(struct kylinx_stats *out, size_t size)
{
	const volatile struct kx_shared *s = (const struct kx_shared *)KX_BOOT_BASE;
	if (!kylinx_is_pvm())
		return -1;
	struct kylinx_stats v = { s->local_calls, s->cpuids, s->nr_sites, s->nr_threads, s->fork_gen };
	memset(out, 0, size);
	memcpy(out, &v, size < sizeof v ? size : sizeof v);
	return 0;
}

static void enter(void)
{
	while (__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE))
		usleep(100);
}

static void leave(void) { __atomic_clear(&lock, __ATOMIC_RELEASE); }

int kylinx_pointer_add(void **where)
{
	if (!kylinx_is_pvm())
		return -1;
	enter();
	int r = kylinx_pointers.n < POINTERS_MAX ? 0 : -1;
	if (!r) {
		kylinx_pointers.at[kylinx_pointers.n] = where;
		__atomic_store_n(&kylinx_pointers.n, kylinx_pointers.n + 1, __ATOMIC_RELEASE);
	}
	leave();
	return r;
}

void kylinx_pointer_remove(void **where)
{
	enter();
	for (uint64_t i = 0; i < kylinx_pointers.n; i++)
		if (kylinx_pointers.at[i] == where) {
			kylinx_pointers.at[i] = kylinx_pointers.at[kylinx_pointers.n - 1];
			__atomic_store_n(&kylinx_pointers.n, kylinx_pointers.n - 1, __ATOMIC_RELEASE);
			break;
		}
	leave();
}
