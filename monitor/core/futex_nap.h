/* SPDX-License-Identifier: Apache-2.0 */
/* Naps of those who wait for a word and are woken soon (abi/kx_fnap.h): the monitor's part. */
#ifndef KX_FUTEX_NAP_H
#define KX_FUTEX_NAP_H
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

struct hcall;

/*
 * Before c, a FUTEX_WAIT_BITSET for any bits until `until` (by the clock of op; NULL = for ever) that the LibOS has counted in
 * its bucket, sleeps on the host's futex. 0: it was woken. -EINTR: as of the host's call. -EAGAIN: it is to sleep there.
 */
int futex_nap(struct hcall *c, int op, const struct timespec *until);
/* c has waited since then, and was woken or not: is it worth a nap the next time? */
void futex_nap_learn(struct hcall *c, uint64_t since_ns, bool woken);
/* Of the guest's word at gva: whoever naps for it is woken, 1, or nobody does. The host's sleepers were woken before. */
int futex_nap_wake(uint64_t gva, bool private);
/* Before a call that the host makes with its sleepers alone: who naps for that word, or one like it, goes to sleep there. */
void futex_nap_evict(uint64_t gva, bool private);
/* End the naps of those whom the calling thread has woken in the LibOS. Before it sleeps, with what it has to be woken by
 * in place already: they may get its CPU at once. */
void futex_owed(void);
/* After an exec, before the program: threads that it has ended nap no more. */
void futex_nap_exec(void);
/* With mm_lock: memory that was mapped shared has changed. */
void futex_unmapped(void);
#endif
