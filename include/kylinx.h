/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For programs and libraries that know of KylinX; none has to. Link with -lkylinx. Outside of a pVM all of it does
 * nothing and harms nothing. See libkylinx(3).
 */
#ifndef KYLINX_H
#define KYLINX_H
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* 1 in a pVM, else 0. */
int kylinx_is_pvm(void);
/* The pVM's number: its process id, inside and on the host. */
pid_t kylinx_id(void);

struct kylinx_stats {
	uint64_t local_calls; /* system calls that were answered inside the VM */
	uint64_t cpuids;      /* cpuid instructions that were */
	uint64_t sites;       /* instructions of both kinds that are patched */
	uint32_t threads;
	uint32_t forks; /* how many forks this process is away from the family's first */
};
/* 0, or -1 outside of a pVM. size: sizeof(struct kylinx_stats); of a longer one the rest becomes 0. */
int kylinx_stats(struct kylinx_stats *out, size_t size);

/*
 * An update of a library moves what the dynamic linker has bound. A pointer to one of its functions that the program
 * keeps stays with the old version, unless it has told where it is. 0; -1 when there is no more room (512), or natively.
 */
int kylinx_pointer_add(void **where);
void kylinx_pointer_remove(void **where);

/*
 * Hooks: functions that a library exports by these names, to carry its state over from one version to the next itself.
 * They are called when both versions have theirs, while all other threads stand still and nobody is inside the old
 * version, so they may not wait for another thread.
 *
 * prepare, of the old version: its state, in whatever form both understand; NULL refuses the update.
 * commit, of the new version, whose constructors have run: takes it; other than 0 refuses the update.
 * abort, of the old version: the update is not made after all.
 */
void *kylinx_update_prepare(void);
int kylinx_update_commit(void *state);
void kylinx_update_abort(void *state);

#ifdef __cplusplus
}
#endif
#endif
