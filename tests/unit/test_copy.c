/* SPDX-License-Identifier: Apache-2.0 */
/* The LibOS's copy of and to the program's memory: all lengths, at all places in a word, nothing read or written beside it. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

/* libos/arch/x86_64/entry.S, and what it calls. */
int uaccess_copy(void *dst, const void *src, size_t len);
const char kx_image_end[1];
void libos_syscall(void);
void libos_cpuid(void);
void libos_work(void);
void libos_syscall(void) {}
void libos_cpuid(void) {}
void libos_work(void) {}

#define PAGE 4096
#define MOST 1200

/* A page between two that fault. */
static uint8_t *page(void)
{
	uint8_t *p = mmap(NULL, 3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return p == MAP_FAILED || mprotect(p + PAGE, PAGE, PROT_READ | PROT_WRITE) ? NULL : p + PAGE;
}

/* From `from` to `to`, of pages that hold other bytes. */
static bool copies(uint8_t *dst, size_t to, const uint8_t *src, size_t from, size_t len)
{
	memset(dst, 0xee, PAGE);
	if (uaccess_copy(dst + to, src + from, len) || memcmp(dst + to, src + from, len))
		return false;
	for (size_t i = 0; i < PAGE; i++)
		if ((i < to || i >= to + len) && dst[i] != 0xee)
			return false;
	return true;
}

int main(void)
{
	uint8_t *src = page(), *dst = page();
	int failures = 0;
	if (!src || !dst)
		return 1;
	for (size_t i = 0; i < PAGE; i++)
		src[i] = (uint8_t)(i * 7 + i / 251);
	for (size_t len = 0; len <= MOST; len++) {
		bool ok = copies(dst, 0, src, 0, len) && copies(dst, PAGE - len, src, PAGE - len, len);
		for (size_t at = 0; at < 64; at++)
			ok = ok && copies(dst, 100 + at % 8, src, 200 + at / 8, len);
		if (!ok)
			printf("FAIL %zu bytes\n", len);
		failures += !ok;
	}
	printf("%s copies of 0 to %d bytes\n", failures ? "FAIL" : "ok", MOST);
	return failures != 0;
}
