/* SPDX-License-Identifier: Apache-2.0 */
/* A library of all kinds of memory; ZEROS: some pages that are not in the file. CALLS: with a system call in its text. */
#ifdef ZEROS
int zeros[20000];
#else
int zeros[20];
#endif
int data[3000] = { 1 };
const int constants[3000] = { 2 };
const char *const names[600] = { "a", "b", [599] = "z" };

int f(int i)
{
#ifdef CALLS
	long r;
	__asm__ volatile("mov $39, %%eax; syscall" : "=&a"(r) : : "rcx", "r11", "memory");
	i += r > 0;
#endif
	return zeros[i] + data[i] + constants[i] + *names[i];
}

#ifdef SYMBOLS
/* More than a page of them. */
__asm__(".altmacro\n.macro symbol n\n.globl s_\\n\ns_\\n:\n.endm\n.data\n.set i, 0\n.rept 400\nsymbol %i\n.set i, i + "
	"1\n.endr\n"
	".byte 0\n.text\n");
#endif
