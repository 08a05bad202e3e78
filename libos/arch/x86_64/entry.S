/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Into the LibOS and out of it. Nothing is ever pushed on the program's stack (its red zone is in use), and every
 * register but rax, rcx and r11 comes back as it was, as with the syscall instruction; cpuid likewise leaves all but
 * rax, rbx, rcx and rdx alone.
 */
#include "../../../abi/kx_abi.h"

	.section .header, "a"
	.quad 0x31734f62694c584b
	.quad KX_ABI_VERSION
	.quad kx_entry
	.quad kx_exit
	.quad kx_exit_begin
	.quad kx_exit_end
	.quad kx_work
	.quad uaccess_begin
	.quad uaccess_end
	.quad uaccess_fixup
	.quad kx_flags_saved
	.quad kx_image_end
	.quad kx_cpuid
	.quad kx_cpuid_flags_saved
	.quad kx_touch
	.quad kx_tsc

	.text
/* rax = system call, rcx = address after the syscall instruction, r11 = where to resume. */
	.globl kx_entry
kx_entry:
	mov %rsp, %gs:KX_T_USER_RSP
	mov %gs:KX_T_FRAME_TOP, %rsp
	pushq %gs:KX_T_USER_RSP
	pushfq
kx_flags_saved:
	cld
	mov %r11, %gs:KX_T_RESUME
	mov (%rsp), %r11
	push %rcx			/* rip */
	push %rax			/* orig_rax */
	push %rax
	push %rcx
	push %rdx
	push %rsi
	push %rdi
	push %r8
	push %r9
	push %r10
	push %r11
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	mov %rsp, %rdi
	sub $8, %rsp			/* 19 words and this: 16-aligned */
	call libos_syscall
	add $8, %rsp
	jmp kx_exit

/* rax, rcx = of the cpuid instruction, rbx = address after it, rdx = where to resume. */
kx_cpuid:
	mov %rsp, %gs:KX_T_USER_RSP
	mov %gs:KX_T_FRAME_TOP, %rsp
	pushq %gs:KX_T_USER_RSP
	pushfq
kx_cpuid_flags_saved:
	cld
	mov %rdx, %gs:KX_T_RESUME
	push %rbx			/* rip */
	mov $KX_ORIG_CPUID, %edx
	push %rdx
	push %rax
	push %rcx
	push %rdx
	push %rsi
	push %rdi
	push %r8
	push %r9
	push %r10
	push %r11
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	mov %rsp, %rdi
	sub $8, %rsp
	call libos_cpuid
	add $8, %rsp

/* rsp = frame. Until the last jump all state is in the frame, so the monitor can restart here at any point. */
kx_exit:
kx_exit_begin:
	cmpl $0, %gs:KX_T_WORK
	jne kx_work
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	pop %r11
	pop %r10
	pop %r9
	pop %r8
	pop %rdi
	pop %rsi
	pop %rdx
	pop %rcx
	pop %rax
	add $16, %rsp			/* orig_rax, rip */
	popfq
	pop %rsp
	jmp *%gs:KX_T_RESUME
kx_exit_end:

kx_work:
	mov %rsp, %rdi
	sub $8, %rsp
	call libos_work
	add $8, %rsp
	jmp kx_exit

/* rdi = list of addresses, 0 at its end; one with bit 0 set is written to, with what is there. For the monitor. */
kx_touch:
	mov (%rdi), %rax
	add $8, %rdi
	test %rax, %rax
	jz 2f
	btr $0, %rax
	jc 1f
	movb (%rax), %al
	jmp kx_touch
1:	lock orb $0, (%rax)
	jmp kx_touch
2:	mov $KX_PORT_RETURN, %edx
	out %eax, %dx
	ud2

/*
 * Instead of kx_exit, once; rbx = the host's time stamp counter. Tells the monitor if this one is below it, or 2^40 above:
 * on a busy machine minutes may pass in between.
 */
kx_tsc:
	rdtsc
	shl $32, %rdx
	or %rdx, %rax
	sub %rbx, %rax
	shr $40, %rax
	jz kx_exit
	mov $KX_PORT_RETURN, %edx
	out %eax, %dx
	ud2

/*
 * Accesses to the program's memory. A fault between uaccess_begin and uaccess_end continues at uaccess_fixup: each
 * of these is a leaf that has pushed nothing, so the fixup can return for it.
 */
uaccess_begin:
	.globl uaccess_copy		/* int uaccess_copy(void *dst, const void *src, size_t len) */
uaccess_copy:
	cmp $16, %rdx
	ja 4f
	cmp $8, %edx
	jae 3f
	cmp $4, %edx
	jae 2f
	test %edx, %edx
	jz 1f
	mov %rdx, %r8			/* 1 to 3: the first, the middle and the last */
	shr %r8
	movzbl (%rsi), %eax
	movzbl (%rsi,%r8), %ecx
	movzbl -1(%rsi,%rdx), %r9d
	movb %al, (%rdi)
	movb %cl, (%rdi,%r8)
	movb %r9b, -1(%rdi,%rdx)
1:	xor %eax, %eax
	ret
2:	mov (%rsi), %eax		/* the first and the last four, which may overlap */
	mov -4(%rsi,%rdx), %ecx
	mov %eax, (%rdi)
	mov %ecx, -4(%rdi,%rdx)
	xor %eax, %eax
	ret
3:	mov (%rsi), %rax
	mov -8(%rsi,%rdx), %rcx
	mov %rax, (%rdi)
	mov %rcx, -8(%rdi,%rdx)
	xor %eax, %eax
	ret
4:	mov -16(%rsi,%rdx), %r8		/* the last 16, then from the begin on what is before them */
	mov -8(%rsi,%rdx), %r9
	mov %rdx, %rcx
	mov %r8, -16(%rdi,%rdx)
	mov %r9, -8(%rdi,%rdx)
	cmp $256, %rdx
	ja 6f
5:	mov (%rsi), %r8
	mov 8(%rsi), %r9
	mov %r8, (%rdi)
	mov %r9, 8(%rdi)
	add $16, %rsi
	add $16, %rdi
	sub $16, %rcx
	cmp $16, %rcx
	ja 5b
	xor %eax, %eax
	ret
6:	shr $3, %rcx			/* costs some tens of cycles before the first word */
	rep movsq
	xor %eax, %eax
	ret
	.globl uaccess_load32		/* int uaccess_load32(uint32_t *dst, const void *src) */
uaccess_load32:
	mov (%rsi), %eax
	mov %eax, (%rdi)
	xor %eax, %eax
	ret
	.globl uaccess_xsave		/* int uaccess_xsave(void *area, uint64_t features) */
uaccess_xsave:
	mov %rsi, %rax
	mov %rsi, %rdx
	shr $32, %rdx
	xsave64 (%rdi)
	xor %eax, %eax
	ret
	.globl uaccess_xrstor		/* int uaccess_xrstor(const void *area, uint64_t features) */
uaccess_xrstor:
	mov %rsi, %rax
	mov %rsi, %rdx
	shr $32, %rdx
	xrstor64 (%rdi)
	xor %eax, %eax
	ret
uaccess_end:
uaccess_fixup:
	mov $-14, %eax
	ret

	.section .note.GNU-stack,"",@progbits
