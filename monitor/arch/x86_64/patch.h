/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Site patcher: turns `syscall` and `cpuid` instructions of an executable mapping into jumps to per-site
 * trampolines, which enter the LibOS by jmp *%gs:8 (KX_T_ENTRY) or jmp *%gs:KX_T_CPUID.
 *
 * A window of whole instructions (5..15 bytes) at or directly before the `syscall` becomes jmp rel32. Its
 * trampoline is
 *	[instructions before the syscall]
 *	lea  <address after the syscall>(%rip), %rcx	as the instruction leaves it
 *	lea  resume(%rip), %r11				or mov %rcx, %r11 when nothing follows
 *	jmp  *%gs:8
 * resume:
 *	[instructions after the syscall] ; jmp <end of window>
 * It uses no stack (red zone) and no flags. The LibOS continues at the address in r11, with rcx and r11 as
 * `syscall` leaves them. What is not patched traps and stays correct.
 *
 * For a `cpuid`, rbx stands for rcx, rdx for r11: it reads neither and overwrites both, so nothing has to be kept.
 * Once the first of them has changed, the program is let run into the LibOS (patch_entering()): nobody sees them.
 *
 * Bytes, symbols and unwind tables are the guest's: all are hostile. A wrong hint can only break the program
 * that supplied it. Not thread-safe per object; the caller keeps `text` from changing between scan and apply.
 */
#ifndef KX_MONITOR_PATCH_H
#define KX_MONITOR_PATCH_H

#include <stddef.h>
#include <stdint.h>

#include "../../../abi/kx_abi.h"

#define PATCH_WINDOW_MAX 15
#define PATCH_FN_UNWIND 1u /* the range comes from an unwind table */

/* One function: guest addresses, [start, end). */
struct patch_range {
	uint64_t start, end;
	uint32_t flags; /* PATCH_FN_* */
};

/* Sorted by start, not overlapping. */
struct patch_hints {
	struct patch_range *fn;
	unsigned n;
	uint64_t code_start, code_end; /* guest addresses of the executable sections; 0, 0 = not known */
};

struct patch_tail; /* private: how to emit a site */

struct patch_plan {
	struct kx_site *sites; /* sorted by start; tramp is valid after patch_apply() */
	struct patch_tail *tail;
	unsigned n;           /* sites planned, at most KX_SITES_MAX */
	unsigned found;       /* syscall instructions seen */
	unsigned cpuid_found; /* cpuid instructions seen */
	unsigned cpuid_n;     /* of n: sites of a cpuid */
	unsigned intact;      /* of n: the instruction's own bytes stay */
	unsigned tramp_bytes; /* what patch_apply() needs */
};

/*
 * Plan the sites of text[0..len), mapped at gva. Writes nothing but *plan (free it also after an error).
 * hints may be NULL. Returns 0, -E2BIG (2 GiB or more) or -ENOMEM.
 */
int patch_scan(const uint8_t *text, size_t len, uint64_t gva, const struct patch_hints *hints, struct patch_plan *plan);

/*
 * Emit the trampolines at tramp_host (seen by the guest at tramp_gva) and write the jumps into text, the very
 * bytes that were scanned. Returns 0; -ENOSPC (tramp_len < plan->tramp_bytes) and -ERANGE (trampolines out of a
 * rel32's reach) before anything is written.
 */
int patch_apply(uint8_t *text, size_t len, uint64_t gva, struct patch_plan *plan, uint8_t *tramp_host,
		uint64_t tramp_gva, size_t tramp_len);

void patch_plan_free(struct patch_plan *plan);

/*
 * The bytes of the window as they were, by the trampoline's, tramp_len of them. 0, or -EINVAL where these are none of such a
 * site, and win is as it was. A site and a trampoline that anybody has written to are safe.
 */
int patch_undo(const struct kx_site *s, const uint8_t *tramp, uint8_t win[PATCH_WINDOW_MAX]);

/*
 * Function ranges of the ELF image file[0..len) for a load at load_bias: unwind tables (PT_GNU_EH_FRAME, else the
 * section .eh_frame), and the symbol tables where those cover little. Returns 0 (perhaps with n = 0), -ENOEXEC
 * when it is no x86-64 ELF file, -ENOMEM. Free with patch_hints_free().
 */
int patch_hints_from_elf(const uint8_t *file, size_t len, uint64_t load_bias, struct patch_hints *out);
void patch_hints_free(struct patch_hints *hints);

/*
 * Translation for signal frames. rip strictly inside the window -> where the trampoline holds that instruction;
 * any other rip -> rip. Safe on a site table that the guest has written.
 */
uint64_t patch_site_to_tramp(const struct kx_site *s, uint64_t rip);
/* rip inside the trampoline -> the original pc (the syscall itself while it is set up); any other rip -> rip. */
uint64_t patch_tramp_to_site(const struct kx_site *s, uint64_t rip);
/* rip is in the trampoline, behind the first instruction that sets the entry up, and not yet behind the entry. */
int patch_entering(const struct kx_site *s, uint64_t rip);
/* rip is in the trampoline where a step of the program's own has just ended. */
int patch_step_ends(const struct kx_site *s, uint64_t rip);

/* Make a decoder of Zydis' for long mode, as everybody's that has one: before it nothing of Zydis' may be called. Any thread. */
struct ZydisDecoder_;
void patch_decoder_init(struct ZydisDecoder_ *dec);

/* Length of the instruction at p (n bytes readable), 0 = not valid. For tests: fast = 0 asks Zydis alone. */
unsigned patch_insn_len(const uint8_t *p, size_t n, int fast);

#endif
