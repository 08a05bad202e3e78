/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text and constants of a program that starts, and of what it links with: private copies for a while.
 *
 * Where KVM has shadow page tables, a fault of the guest's costs tens of microseconds and maps the neighbours of the page,
 * but only where the host's mapping lets them be written. So what an image's loader maps to be read or executed gets copies
 * of its pages at once, in a mapping that the host could write to; the guest's page tables still say what the program may.
 * They are made the file again before the first call that could make the host write there, or that may sleep long: what a
 * program that waits takes is as before. Only while it has one thread and no child: nobody else writes to its
 * memory then, and no call passes gmem_warm_settle(). So nothing that is executable is writable through the host's mapping
 * while a call could name it.
 */
#ifndef KX_GMEM_WARM_H
#define KX_GMEM_WARM_H
#include <stdbool.h>
#include <stdint.h>

/* [start, end) was mapped privately from a file, not to be written; text: it is the family's copy of a text. True: it is
 * copied, or was. With pvm.mm_lock. */
bool gmem_warm_begin(uint64_t start, uint64_t end, bool text);
/* Something else is mapped there. With pvm.mm_lock. */
void gmem_warm_carved(uint64_t start, uint64_t end);

extern bool gmem_warm_any;
extern bool gmem_warm_of_library; /* what is mapped is a library, though no call asks for it */
/* A call of the program's has come. */
void gmem_warm_settle(uint64_t nr, const uint64_t arg[6]);
/* No more copies; for good: there will be none. */
void gmem_warm_end(bool for_good);
#endif
