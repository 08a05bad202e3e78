/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a process writes between its forks: stacks' tops, data of program and libraries. By copy-on-write each such page
 * costs its parent two faults of the guest after each fork, and KVM drops at a fork all that it has of memory that is
 * shared so, read or written. So in a process that forks out of habit these few pages are not shared: the host's fork
 * leaves them out (MADV_WIPEONFORK), the parent copies them before it, the child puts the copies into place.
 *
 * The kernel does that for anonymous memory alone. Writable parts of images, which their loader has written to already,
 * are made that in the parent; whose they were is kept for /proc/self/maps.
 *
 * And what was ever a private copy is dropped as well, though it is none any more: constants and code of which that holds
 * (gmem_warm.h) are mapped from their files again.
 *
 * Only while there is one thread: the copies are of one moment. What the program says about these pages itself (mlock(2),
 * madvise(2) for forks) ends it for good.
 */
#ifndef KX_HOT_H
#define KX_HOT_H
#include "hcall.h"

/* In a process that is about to wait for a child, with nothing locked: find them, if it forks out of habit. */
void hot_choose(struct thread *t);
/* Before a fork by the host, all locks held. */
void hot_save(void);
/* In the child, before anything else. 0 or -errno. */
int hot_restore(void);
/* In the child, no locks held: what its parent has kept from it by MADV_DONTFORK. */
void hot_fork_child(void);
/* With pvm.mm_lock: [start, end) becomes something else. */
void hot_carved(uint64_t start, uint64_t end);
/* The same for all of them: a second thread, a fork by a child of vfork. */
void hot_drop(void);
/* All of it is such memory: it needs no pages of its own after a fork. */
bool hot_has(uint64_t start, uint64_t end);
/* The first of them that may be written to and ends behind gva; false: there is none. A process has its own pages of it, and
 * a child made ahead has none of what was written since it was made. Which ones these are changes with spare_changed(). */
bool hot_next(uint64_t gva, uint64_t *start, uint64_t *end);
/* One of them begins or ends there: the host may have cut a mapping of the program's. */
bool hot_edge(uint64_t gva);
/* A call is about to be made. */
void hot_call(const struct hcall *c);

/* Of which file memory at gva was. */
struct hot_file {
	uint64_t start, end, off;
	char dev[16], ino[24], path[256];
};
bool hot_file(uint64_t gva, struct hot_file *out);
#endif
