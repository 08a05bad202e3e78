/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pointers into a library's old version, in the program's memory: found while the program runs, moved while it stands.
 *
 * Words whose values are addresses of the old version are taken for pointers: its place is random, so that no number is
 * one by chance. Most of the memory is looked through before the stop; in the stop, what has been written since
 * (written.h), and each word that was found is looked at once more before it is changed.
 */
#ifndef KX_SWEEP_H
#define KX_SWEEP_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sweep;
struct sweep_of {
	uint64_t start, end; /* addresses to look for */
	bool optional;       /* nothing is moved where it can't be done before the stop */
	/* What stands for v in the new version, or v. */
	uint64_t (*moved)(const void *arg, uint64_t v);
	/* Is this place none of the program's, but of a version's? Both ends of a page: so is all of it. */
	bool (*skip)(const void *arg, uint64_t at);
	/* What has been written, before it is looked through. */
	void (*written)(const void *arg, uint64_t start, uint64_t end);
	const void *arg;
};

/* 0; -errno: no memory, no descriptor. The structures that `of` points to live longer. */
int sweep_new(const struct sweep_of *of, struct sweep **out);
/* While the program runs: note from here on what is written. -errno: can't be; then sweep_apply() looks through all. */
int sweep_track(struct sweep *s);
/* While the program runs, and all that is written is noted: look through all of it. */
void sweep_ahead(struct sweep *s);
/* While the program runs, after that: look at what has been written since. How many pages that were. */
size_t sweep_again(struct sweep *s);
/* Everything stands, pvm.mm_lock is held: change all. -errno: nothing is changed. */
int sweep_apply(struct sweep *s);
/* Did the last sweep_apply() know what had been written? */
bool sweep_knew(const struct sweep *s);
/* The same: take it back. */
void sweep_undo(struct sweep *s);
void sweep_free(struct sweep *s);
#endif
