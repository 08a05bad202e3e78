/* SPDX-License-Identifier: Apache-2.0 */
/* A library that gives away what is its own: a local function, a constant, an exported function. No variables. */
#define _GNU_SOURCE
#include <sys/syscall.h>

static int local(int x) { return x * V; }
static void at_exit(void)
{
	static const char text[] = { 'e', 'n', 'd', ' ', '0' + V % 10, '\n' };
	long r = SYS_write;
	__asm__ volatile("syscall" : "+a"(r) : "D"(1L), "S"(text), "d"(sizeof text) : "rcx", "r11", "memory");
}
static const int constants[64] = { V, 1, 2, 3 };

int version(void) { return V; }
int (*pointer(void))(int) { return local; }
void (*at_exit_pointer(void))(void) { return at_exit; }
const int *constant(void) { return constants; }
