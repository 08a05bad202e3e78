/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's images, built before the monitor and carried in it. */
	.section .rodata
	/* Whole pages of the file, which a guest may see. */
	.globl libos_image, libos_image_end, vdso_image, vdso_image_end
	.balign 4096
libos_image:
	.incbin LIBOS_BIN
libos_image_end:
	.balign 4096
vdso_image:
	.incbin VDSO_SO
vdso_image_end:
	.balign 4096
	.section .note.GNU-stack,"",@progbits
