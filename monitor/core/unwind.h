/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who called whom on a guest thread's stack, by the unwind tables (DWARF call frame information) of the objects that
 * are mapped. Everything that is read is the guest's and hostile: each read is checked, every loop has a bound, and a
 * wrong table gives a wrong answer at most.
 */
#ifndef KX_UNWIND_H
#define KX_UNWIND_H
#include <stdbool.h>
#include <stdint.h>

#define UNWIND_FRAMES 512

/* By DWARF's numbers: rax 0, rdx 1, rcx 2, rbx 3, rsi 4, rdi 5, rbp 6, rsp 7, r8 to r15, rip 16. */
struct unwind_regs {
	uint64_t r[17];
};
#define UNWIND_RSP 7
#define UNWIND_RIP 16

/* The object that holds pc: address of its PT_GNU_EH_FRAME; 0 = none. */
typedef uint64_t (*unwind_find_fn)(uint64_t pc, void *arg);
/* For each frame, innermost first; false ends the walk. */
typedef bool (*unwind_frame_fn)(uint64_t pc, uint64_t sp, void *arg);

/* True when the outermost frame was reached (or frame ended the walk). False: from *regs on the tables say nothing. */
bool unwind_walk(struct unwind_regs *regs, unwind_find_fn find, unwind_frame_fn frame, void *arg);
#endif
