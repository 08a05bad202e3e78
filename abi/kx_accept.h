/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that the exit of an accept has brought besides its own, for a program that accepts until there is none: by the
 * numbers that its next calls would give them. Any call that comes first takes back what is left (batch_accept.c).
 */
#ifndef KX_ACCEPT_H
#define KX_ACCEPT_H
#include "kx_abi.h"

#define KX_ACCEPT_AT 0x5c000 /* offset of struct kx_accept in a context */
#define KX_ACCEPT_MAX 64

struct kx_accept {
	uint64_t word;    /* KX_ACCEPT_VALID, and how many the program has got; changed by exchange alone */
	int32_t listener; /* of accept(2): its descriptor, its flags */
	uint32_t flags;
	uint32_t nr;
	int32_t freed; /* the LibOS's: the lowest descriptor that a record has closed since, INT32_MAX = none */
	struct kx_accepted {
		int32_t fd;
		uint32_t len; /* of addr */
		uint8_t addr[32];
	} of[KX_ACCEPT_MAX];
};
#define KX_ACCEPT_VALID (1ull << 63)
_Static_assert(KX_BATCH_LOCALS + KX_BATCH_PEERS_MAX * sizeof(struct kx_bname) <= KX_ACCEPT_AT &&
		       KX_ACCEPT_AT + sizeof(struct kx_accept) <= KX_BATCH_AHEAD,
	       "between the names and what a wait was told");
#endif
