/* SPDX-License-Identifier: Apache-2.0 */
/* Exceptions pass through it: compiled with -fexceptions, as glibc's qsort() is. */
void call_back(void (*fn)(void *), void *arg)
{
	volatile int used[100] = { 0 };
	fn(arg);
	used[1]++;
}
