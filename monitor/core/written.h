/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages of the guest's memory are being written: what the guest writes by KVM's dirty log, what the host's kernel
 * and the monitor write for it by marks. For an online update, which looks through the program's memory while the
 * program runs and, when it stands, again at what has been written since.
 *
 * A call is marked by its arguments as they are when it begins: a guest that changes them meanwhile has words of its own
 * left unmoved, and nothing else. Content that comes into an address without being written there (mremap, a page that
 * becomes writable) is marked by gmem.c.
 *
 * Lock: none of its own; starts, takes and stops are the update's alone, which holds its lock. Marks are anybody's.
 */
#ifndef KX_WRITTEN_H
#define KX_WRITTEN_H
#include "hcall.h"

/* From here on it is noted. 0 or -errno: KVM can't, or there is no memory. */
int written_start(void);
void written_stop(void);
/* Where KVM had no memory to stop with, it notes on, and each page's first write takes longer. True: it does; another try. */
bool written_left(void);
void written_settle(void);
/* In a child of fork: nothing is noted. */
void written_fork_child(void);

/*
 * While everything stands: ranges of whole pages that may have been written since the last written_take_list() (marks: since the
 * start). What KVM knows it knows afterwards, where it can: to note pages anew costs time, and each of them its next write.
 * False: there were too many, any page may have been.
 */
typedef void (*written_fn)(void *arg, uint64_t start, uint64_t end);
bool written_take(written_fn fn, void *arg);
/*
 * The same while the program runs, and from here on it is noted anew: for who looks at them without pvm.mm_lock, which this
 * takes. `r` is the caller's to free, whatever the answer. False: or there was no memory.
 */
struct written_list {
	struct {
		uint64_t start, end;
	} * r;
	size_t nr, cap;
	bool failed;
};
bool written_take_list(struct written_list *a);

extern volatile int written_on;
void written_add(uint64_t gva, uint64_t len);
static inline void written_mark(uint64_t gva, uint64_t len)
{
	if (__builtin_expect(written_on, 0))
		written_add(gva, len);
}
/* A call begins (struct thread's hcall is set, for all to see): what it may write. */
void written_add_call(uint64_t nr, const uint64_t arg[6]);
static inline void written_mark_call(uint64_t nr, const uint64_t arg[6])
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST); /* written_start() looks at hcall when it has set written_on */
	if (__builtin_expect(written_on, 0))
		written_add_call(nr, arg);
}
#endif
