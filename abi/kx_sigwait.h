/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals from one member of a family to another that looks for them at this moment (sigwait and its brothers), without an
 * exit. Behind the rings of kx_pipe.h, so that who gives that memory up has none of this. Only of standard signals, whose
 * order among each other nobody is promised, from who has but the family's user to who has.
 *
 * A process has the slot of its number. One word is all of a message, and each change of it a compare-and-swap: who waits
 * says so, who sends puts signal and sender in its place, who waits takes that out. Who sends goes on only when it has been
 * taken; where that takes long it takes it back, if it still can, and makes its call to the host. So nothing is lost
 * whoever is killed, or without a CPU.
 */
#ifndef KX_SIGW_H
#define KX_SIGW_H
#include "kx_pipe.h"

#define KX_SIGW_BASE (KX_PIPE_BASE + KX_PIPE_DATA + KX_PIPE_OBJECTS * (uint64_t)KX_PIPE_RING)
#define KX_SIGW_SLOTS 256

/* A word: state, whose it is, a number that each wait changes; then signals as a mask (of 1 to 28), or what was sent. */
#define KX_SIGW_FREE 0u
#define KX_SIGW_WAITS 1u
#define KX_SIGW_SENT 2u
#define KX_SIGW_STATE(w) ((uint32_t)(w)&3)
#define KX_SIGW_PID(w) ((uint32_t)((w) >> 2) & 0x3fffff)
#define KX_SIGW_SEQ(w) ((uint32_t)((w) >> 24) & 0xfff)
#define KX_SIGW_SET(w) ((uint32_t)((w) >> 36))
#define KX_SIGW_SIGNO(w) ((uint32_t)((w) >> 36) & 31)
#define KX_SIGW_THREAD(w) ((uint32_t)((w) >> 41) & 1) /* by tgkill */
#define KX_SIGW_SENDER(w) ((uint32_t)((w) >> 42))
#define KX_SIGW_HEAD(state, pid, seq) ((state) | (uint64_t)((pid)&0x3fffff) << 2 | (uint64_t)((seq)&0xfff) << 24)

/* HUP INT QUIT USR1 USR2 ALRM TERM URG VTALRM PROF: to have sent one of them does nothing but to make it pending. */
#define KX_SIGW_SIGNALS \
	(1u << 0 | 1u << 1 | 1u << 2 | 1u << 9 | 1u << 11 | 1u << 13 | 1u << 14 | 1u << 22 | 1u << 25 | 1u << 26)

struct kx_sigw {
	uint32_t ready; /* 1: the next is known */
	uint32_t uid;   /* the family's user */
	uint32_t pad[14];
	uint32_t sent[1024]; /* by number of the process: calls to the host that sent it a signal, or will */
	struct kx_sigw_slot {
		uint64_t word;
		uint64_t tsc; /* when who waits here looked last */
		uint64_t pad[6];
	} slot[KX_SIGW_SLOTS];
};

_Static_assert(KX_SIGW_BASE % 4096 == 0 && KX_SIGW_BASE + sizeof(struct kx_sigw) <= KX_PIPE_BASE + KX_PIPE_SIZE,
	       "behind the rings");
#endif
