/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzer of what prints calls: arguments, results and memory are the guest's, and the LibOS says what it likes (hc_trace).
 *	fuzz_strace COUNT SEED
 * prints COUNT made-up calls over made-up memory, the same ones for the same SEED. Build with ASan and UBSan. No line is
 * longer than it may be, nor has another one in it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "../../monitor/core/strace.h"
#include "../unit/rows.h"
#include "random.h"

#define MEM 0x10000u /* guest addresses MEM..MEM_END are mapped */
#define MEM_END 0x14000u
#define LINE_MAX_BYTES 16384

struct pvm pvm;
uint64_t admit_refused, admit_warned, admit_copied, admit_hashed, policy_signatures;
uint64_t text_prepared, text_found, store_stored;
__thread struct thread *self;

static uint8_t *memory;

/* It changes between two looks. */
int guest_read(void *dst, uint64_t gva, size_t len)
{
	if (gva < MEM || gva > MEM_END || len > MEM_END - gva)
		return -EFAULT;
	memcpy(dst, memory + (gva - MEM), len);
	if (len && !below(8))
		memory[gva - MEM + below(len)] = (uint8_t)rnd();
	return 0;
}

uint64_t kvmstats_page_faults(void) { return 0; }

int fd_keep(int *where, int fd)
{
	*where = fd;
	return 0;
}

static uint64_t number(void)
{
	static const uint64_t v[] = { 0,          1,          2,          4,          8,        16,
				      64,         0x7fffffff, 0x80000000, 0xffffffff, ~0ull,    1ull << 63,
				      ~0ull >> 1, 0x10000000, -1000ull,   -4095ull,   -4096ull, 1024,
				      8192,       1ull << 32, 128,        512,        100,      -514ull };
	return below(3) ? v[below(sizeof v / sizeof *v)] : rnd() >> below(64);
}

static uint64_t value(void)
{
	return below(3) ? number() : below(4) ? MEM + 8 * below((MEM_END - MEM) / 8) : MEM_END - below(64);
}

/* Addresses, lengths and small numbers, as structures have them. */
static void memory_fill(void)
{
	for (unsigned i = 0; i < MEM_END - MEM; i += 8) {
		uint64_t v = value();
		if (!below(4))
			v = below(100) | below(100) << 32;
		memcpy(memory + i, &v, sizeof v);
	}
}

static void line_check(int fd)
{
	static char line[65536];
	ssize_t n = recv(fd, line, sizeof line, MSG_DONTWAIT);
	if (n <= 0 || n > LINE_MAX_BYTES || line[n - 1] != '\n' || memchr(line, '\n', (size_t)n - 1)) {
		fprintf(stderr, "fuzz_strace: a line of %zd bytes\n", n);
		abort();
	}
}

int main(int argc, char **argv)
{
	struct thread t = { .tid = 123 };
	int sv[2], big = 1 << 20;
	if (argc < 3) {
		fprintf(stderr, "usage: fuzz_strace COUNT SEED\n");
		return 2;
	}
	state = strtoull(argv[2], NULL, 0) * 0x9e3779b97f4a7c15ull | 1;
	memory = malloc(MEM_END - MEM);
	if (!memory || socketpair(AF_UNIX, SOCK_DGRAM, 0, sv) ||
	    setsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &big, sizeof big))
		return 2;
	strace_adopt(sv[0]);
	for (unsigned long i = 0, count = strtoul(argv[1], NULL, 0); i < count; i++) {
		const struct hc_row *row = &hc_rows[below(hc_nr_rows)];
		uint64_t arg[6], nr = below(50) ? row->nr : number();
		if (i % 16 == 0)
			memory_fill();
		for (int k = 0; k < 6; k++)
			arg[k] = value();
		if (below(2))
			strace_before(below(8) ? nr : hc_rows[below(hc_nr_rows)].nr, arg);
		for (int k = 0; k < 6; k++)
			if (!below(4))
				arg[k] = value();
		strace_call(&t, hc_row_find(nr), nr, arg, below(2) ? (int64_t)below(300) : (int64_t)number(),
			    (int)below(5), rnd());
		line_check(sv[1]);
	}
	printf("fuzz_strace: %s calls, no failure\n", argv[1]);
	return 0;
}
