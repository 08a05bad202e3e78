/* SPDX-License-Identifier: Apache-2.0 */
/* A library: V is what it says. Its parts are whole pages, so that each is mapped. */
#ifndef V
#define V 1
#endif
extern const int kx_const[2048];
const int kx_const[2048] = { V, V, V };
int kx_data[2048] = { V, V, V };
int value(void) { return kx_const[1] == V && kx_data[1] ? V : -1; }
#ifdef BIG
/* More text than is shared between processes, with something in it to patch. */
__asm__(".text\n.type big, @function\nbig: mov $39, %eax\n syscall\n ret\n.size big, . - big\n"
	".fill 9 << 20, 1, 0x90");
#endif
#ifdef MARK
/* Eight bytes among its code. */
__asm__(".text\n.balign 8\n.ascii \"markmark\"");
#endif
int data(void) { return kx_data[1]; }
#ifdef PAGES
/* Pages of code: each returns 1000 + its number. */
__asm__(".text\n.balign 4096\nnr = 0\n.rept 32\nmov $(1000 + nr), %eax\nret\n.fill 4090, 1, 0x90\nnr = nr + 1\n.endr");
#endif
