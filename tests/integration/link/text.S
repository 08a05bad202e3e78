/* SPDX-License-Identifier: Apache-2.0 */
/* A library that is relocated in its text, which has a system call, too. */
	.text
	.globl moved, direct
	.type moved, @function
moved:
	.cfi_startproc
	movabs $table, %rax
	mov (%rax), %rax
	ret
	.cfi_endproc
	.size moved, .-moved
	.type direct, @function
direct:
	.cfi_startproc
	mov $39, %eax
	syscall
	ret
	.cfi_endproc
	.size direct, .-direct
	.data
table:	.quad 4711
	.section .note.GNU-stack, "", @progbits
