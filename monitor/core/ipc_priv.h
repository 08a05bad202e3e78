/* SPDX-License-Identifier: Apache-2.0 */
/* Between ipc.c, ipc_give.c and ipc_live.c. */
#ifndef KX_IPC_PRIV_H
#define KX_IPC_PRIV_H
#include "../../abi/kx_ipc.h"
#include "ipc.h"

#define IPC_NOT_HERE (-5000) /* the object is the host's, or the operation is one for the host */

extern struct kx_ipc *ipc_mem; /* the monitor's own mapping: it stays when the guest's is given up */

static inline uint64_t ipc_state(const struct kx_ipc_obj *o) { return __atomic_load_n(&o->state, __ATOMIC_SEQ_CST); }
static inline unsigned ipc_kind_of(uint64_t state) { return state & KX_IPC_STATE; }
static inline bool ipc_swap(uint64_t *word, uint64_t old, uint64_t new)
{
	return __atomic_compare_exchange_n(word, &old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static inline bool ipc_swap32(uint32_t *word, uint32_t old, uint32_t new)
{
	return __atomic_compare_exchange_n(word, &old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
/* The place of what has this name; NULL: it can have none. */
struct kx_ipc_obj *ipc_object(struct ipc_name n);
/* May this process have objects LIVE, and has its guest the memory? */
bool ipc_is_here(void);
/* Nobody of the family's that lives has this thread. */
bool ipc_is_gone(uint32_t tid);
/* The letter for its state in /proc; 0: there is no such thread; '?': not known. */
char ipc_thread_state(uint32_t tid);
/* The object's lock. False: the caller has to leave its call. (firm: only if a signal has come and its holder, who lives, has
 * not given it back for a second. That is so for calls that know no EINTR, too.) */
bool ipc_lock(struct kx_ipc_obj *o, bool firm);
void ipc_unlock(struct kx_ipc_obj *o);
/* Has the caller a signal to deliver, or to end? */
bool ipc_must_leave(void);
/* As in ipc_enter(), without a look at the object. */
int ipc_announce(struct kx_ipc_obj *o, int id);

/* ---- ipc_live.c ---- */
/* Make an operation that is simple in memory, asleep if need be. Its result, or IPC_NOT_HERE. */
int64_t ipc_live(struct ipc_call *c, struct kx_ipc_obj *o);
/* ---- ipc_give.c ---- */
/* With the lock of somebody who died: put right what was left half done. */
void ipc_recover(struct kx_ipc_obj *o);
/* With the lock: does anybody who lives sleep here, or has still to take what it was given? */
bool ipc_is_slept_on(struct kx_ipc_obj *o);
/* The object is the host's now, in state PASS: one after the other, who sleeps here goes to sleep there. */
void ipc_pass(struct kx_ipc_obj *o, int id);
/* Places of this process, in which threads that are no more slept. */
void ipc_places_drop(struct kx_ipc_obj *o, uint32_t pid);
#endif
