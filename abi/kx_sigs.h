/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals without an exit of their own, in threads that batch (kx_batch): kill() of a member is queued with what is sent,
 * and what a signalfd has is read by the exit of the wait that told of it. (monitor/core/batch_sigs.c, libos/core/sigs.c)
 */
#ifndef KX_SIGS_H
#define KX_SIGS_H
#include "kx_abi.h"

#define KX_SIGS_AT 0x68000     /* offset of struct kx_sigs in a context */
#define KX_SIGS_TARGETS 32     /* processes that its thread sends signals to */
#define KX_SIGS_READ 1024      /* bytes of a signalfd */
#define KX_BREC_KILL 0x800000u /* in kx_brec.flags: the data is a kx_bkill */

/* Standard signals but SIGKILL, SIGSTOP, SIGCONT, and those of stops by the terminal. */
#define KX_SIGS_LATER (0xfffffffeu & ~(1u << 9 | 1u << 18 | 1u << 19 | 1u << 20 | 1u << 21 | 1u << 22))

struct kx_bkill {
	int32_t pid, signo;
};

struct kx_sigs {
	uint64_t calls, ended; /* kx_batch.calls, kx_futexes.ended as the targets were found to be there */
	struct {
		int32_t pid;   /* 0 = none */
		uint32_t uses; /* counted by the LibOS */
	} target[KX_SIGS_TARGETS];
	/* Read ahead: it holds while kx_batch.calls is `read_calls`. `state`, of KX_AHEAD_*, is changed by exchange alone. */
	uint64_t read_calls;
	uint32_t state;
	int32_t fd;
	uint64_t asked; /* how much a read must ask for */
	uint32_t len, pad;
	uint8_t data[KX_SIGS_READ];
};
_Static_assert(KX_BATCH_AHEAD + sizeof(struct kx_bahead) <= KX_SIGS_AT, "comes after it");
_Static_assert(KX_SIGS_AT + sizeof(struct kx_sigs) <= KX_BATCH_PEERS, "comes before them");
#endif
