/* SPDX-License-Identifier: Apache-2.0 */
/* A library with state. V: its version. Variants: LAYOUT adds a variable (of MORE numbers), GONE lacks a function, WIDE changes an object. */
#include <stdlib.h>

struct node {
	struct node *next;
	int v;
};
static struct node *head;
static int calls, *volatile where = &calls;
static int twice(int x) { return 2 * x; }
static int (*volatile table[2])(int) = { twice, abs };
#ifdef LAYOUT
#ifndef MORE
#define MORE 100
#endif
static int more[MORE] = { 1 };
#endif

#ifdef WIDE
long counter[4] = { 5 };
#else
long counter[2] = { 5 };
#endif
__thread int per_thread = 7;
static __thread long mine;

int version(void) { return V; }
#ifndef GONE
int gone(void) { return V; }
#endif
long call(void) { return ++*where; }
long calls_seen(void) { return calls; }
long bump(void) { return ++counter[0]; }
long thread_bump(void) { return ++mine + per_thread++; }
int through_table(int x) { return table[0](x) + table[1](-x); }
long push(int v)
{
	struct node *n = malloc(sizeof *n);
	long sum = 0;
	n->v = v;
	n->next = head;
	head = n;
	for (n = head; n; n = n->next)
		sum += n->v;
	return sum;
}
/* A call of its own, as few libraries have: its text is patched. */
long own_pid(void)
{
	long r;
	__asm__ volatile("mov $39, %%eax\n\tsyscall" : "=a"(r) : : "rcx", "r11", "memory");
	return r;
}
char *buffer(void)
{
	static char b[64];
	return b;
}
/* Calls back, so that the caller is inside. */
int with_callback(int (*f)(int), int x)
{
	volatile int r = f(x);
	return r;
}
#ifdef LAYOUT
int more_sum(void) { return more[0]++; }
#endif
