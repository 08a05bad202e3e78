/* SPDX-License-Identifier: Apache-2.0 */
/* Pieces of the monitor that signal handlers look into by address. */
	.text

/* long host_call(nr, a, b, c, d, e, f) */
	.globl host_call
	.type host_call, @function
host_call:
	mov %rdi, %rax
	mov %rsi, %rdi
	mov %rdx, %rsi
	mov %rcx, %rdx
	mov %r8, %r10
	mov %r9, %r8
	mov 8(%rsp), %r9
	syscall
	ret
	.size host_call, . - host_call

/*
 * long host_call_flag(flag, args[7]): args[0] = nr. Returns HOST_NOT_BEGUN when *flag is set. A handler that sets *flag
 * while the program counter is in [host_blocking_begin, host_blocking_end] moves it to host_blocking_abort, so a
 * signal between the check and the kernel's entry is not slept over.
 */
	.globl host_call_flag, host_blocking_begin, host_blocking_end, host_blocking_abort
	.type host_call_flag, @function
host_call_flag:
	mov %rdi, %r11
	mov 0(%rsi), %rax
	mov 8(%rsi), %rdi
	mov 24(%rsi), %rdx
	mov 32(%rsi), %r10
	mov 40(%rsi), %r8
	mov 48(%rsi), %r9
	mov 16(%rsi), %rsi
host_blocking_begin:
	cmpl $0, (%r11)
	jne host_blocking_abort
host_blocking_end:
	syscall
	ret
host_blocking_abort:
	mov $-4001, %rax
	ret
	.size host_call_flag, . - host_call_flag

/* size_t host_copy(dst, src, len): bytes not copied; a fault inside ends it early. */
	.globl host_copy, host_copy_begin, host_copy_end
	.type host_copy, @function
host_copy:
	mov %rdx, %rcx
host_copy_begin:
	rep movsb
host_copy_end:
	mov %rcx, %rax
	ret
	.size host_copy, . - host_copy

/* int host_swap(p, old, new): *p from *old to new. 0: done; 1: it is something else, which is in *old; 2: a fault. */
	.globl host_swap, host_swap_begin, host_swap_end, host_swap_fault
	.type host_swap, @function
host_swap:
	mov (%rsi), %eax
host_swap_begin:
	lock cmpxchg %edx, (%rdi)
host_swap_end:
	mov %eax, (%rsi)
	setne %al
	movzbl %al, %eax
	ret
host_swap_fault:
	mov $2, %eax
	ret
	.size host_swap, . - host_swap

/*
 * int host_find(p, n, from, span): is one of n words, a multiple of four, an address in [from, from + span)? 0: none; 1: one is;
 * 2: a fault.
 */
	.globl host_find, host_find_begin, host_find_end, host_find_fault
	.type host_find, @function
host_find:
	xor %eax, %eax
	shr $2, %rsi
	jz host_find_end
host_find_begin:
	.irp at, 0, 8, 16, 24
	mov \at(%rdi), %r8
	sub %rdx, %r8
	cmp %rcx, %r8
	jb 1f
	.endr
	add $32, %rdi
	dec %rsi
	jnz host_find_begin
host_find_end:
	ret
1:
	inc %eax
	ret
host_find_fault:
	mov $2, %eax
	ret
	.size host_find, . - host_find

	.globl host_restorer
	.type host_restorer, @function
host_restorer:
	mov $15, %eax
	syscall
	.size host_restorer, . - host_restorer
	.section .note.GNU-stack,"",@progbits
