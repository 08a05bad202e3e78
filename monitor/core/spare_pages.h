/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages a process has to itself, of those that it shared with a child made ahead (spare.h): what either of the two has
 * written to since. Of all private memory that may be written to, the guest's and the monitor's alike.
 */
#ifndef KX_SPARE_PAGES_H
#define KX_SPARE_PAGES_H
#include <stdbool.h>
#include <stdint.h>

#define SPARE_PAGES_MAX 384      /* handed over: more are no gain over the host's fork */
#define SPARE_PAGES_ENTRIES 4096 /* of pagemap, read at once */

/* Before a spare is made: find out what is mapped, but for what begins at `omit`, unless that is known of the same `gen` and nothing
 * has been mapped since. False: it can't be known, or is too much. */
bool spare_pages_look(uint64_t gen, uint64_t omit);
/* It is as it was then. */
bool spare_pages_same(uint64_t gen);
/* Their addresses, in order, and how many; -1: more than SPARE_PAGES_MAX, or unknown. entry: room for SPARE_PAGES_ENTRIES. */
int spare_pages_find(uint64_t *page, uint64_t *entry);
/* In a spare, whose nobody waits for: its own ahead of n such pages that were found before. */
void spare_pages_ahead(const uint64_t *page, unsigned n);
/* In a child: it knows nothing of itself yet. */
void spare_pages_forget(void);

#endif
