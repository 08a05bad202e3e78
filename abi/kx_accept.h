/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that an exit has accepted ahead of the program, of which the monitor expects that it accepts one after the other:
 * at the end of an accept, for who accepts until there is none, or of a wait that has told of the listener. The LibOS gives
 * them to accept(2) at the lowest free number, which a record (KX_BREC_NAME) makes true where they are at another, and tells
 * waits that the listener is ready as long as there are some, and of those that the program has put into its epoll. Any call
 * that comes first takes back what is left (batch_accept.c).
 *
 * Until that record is carried out a connection's kx_bsock is the one of the number at which the monitor has it. The record comes before
 * the exchange of the word: it counts if that has told so.
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
	uint32_t serial;  /* of this offer */
	uint32_t has_map; /* 1: as[] tells where what of[] tells of is for the program, until its thread's next exit */
	uint32_t more;    /* 1: the listener is ready behind the last of them, too */
	/* Of epoll_wait(2), while kx_batch.calls is `calls`: what it tells of the listener, by level. */
	int32_t epoll; /* -1 = waits are not answered */
	uint32_t events;
	uint64_t data, calls;
	/* The LibOS's. */
	uint32_t waits; /* that may be answered yet */
	uint32_t zeros; /* of them, of no time, that there is nothing */
	uint32_t pad;
	uint32_t nr_events;
	struct kx_bevent event
		[2 *
		 KX_ACCEPT_MAX]; /* what the exit told of by level; connections that were given and put into the epoll */
	int32_t as[KX_ACCEPT_MAX]; /* the numbers that they were given at; -1: it is not, or closed */
	struct kx_accepted {
		int32_t fd;
		uint32_t len;    /* of addr */
		uint32_t events; /* all that it is ready for */
		uint32_t pad;
		uint8_t addr[32];
	} of[KX_ACCEPT_MAX];
};
#define KX_ACCEPT_VALID (1ull << 63)
_Static_assert(KX_BATCH_LOCALS + KX_BATCH_PEERS_MAX * sizeof(struct kx_bname) <= KX_ACCEPT_AT &&
		       KX_ACCEPT_AT + sizeof(struct kx_accept) <= KX_BATCH_AHEAD,
	       "between the names and what a wait was told");

/*
 * Descriptors that are free for the program, as after the calls that are queued, from the lowest on: those that the monitor has
 * taken for connections and files ahead, and what has been closed since. The monitor sets it; the LibOS brings it up to date.
 */
#define KX_NUMBERS_AT 0x3000 /* offset in KX_BATCH_BASE */
#define KX_NUMBERS_MAX 240
struct kx_numbers {
	uint32_t n;
	uint32_t owner; /* number + 1 of the context whose thread they are for; 0 = none */
	int32_t freed;  /* the lowest that another thread has closed by a record since, INT32_MAX = none */
	int32_t pad;
	int32_t free[KX_NUMBERS_MAX]; /* ascending */
};
_Static_assert(sizeof(struct kx_batch) <= KX_NUMBERS_AT && KX_NUMBERS_AT + sizeof(struct kx_numbers) <= KX_BATCH_SOCKS,
	       "between what is of all threads and the sockets");
#endif
