/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that a program uses from its begin on, such as an allocator's arena. The first of it is touched ahead
 * (touch_ahead()); as the program goes on beyond that, twice as much each time, as files are read ahead. So no more is
 * touched for nothing than the program has touched. How far it is tells the host, at each call until it stands still.
 */
#ifndef KX_GMEM_GROW_H
#define KX_GMEM_GROW_H
#include <stdbool.h>
#include <stdint.h>

/* [start, at) has been touched of a private mapping that ends at end. With pvm.mm_lock. */
void gmem_grow_watch(uint64_t start, uint64_t at, uint64_t end);
/* Something else is mapped there. With pvm.mm_lock. */
void gmem_grow_carved(uint64_t start, uint64_t end);

extern bool gmem_grow_any;
/* A call nr of the program's has come. */
void gmem_grow_look(uint64_t nr);
#endif
