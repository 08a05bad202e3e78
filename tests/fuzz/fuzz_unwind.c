/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzer of the walk up a program's stack: frame descriptions, stack and registers are the guest's.
 *	fuzz_unwind COUNT SEED
 * walks COUNT stacks with mutations of this program's own descriptions, the same ones for the same SEED. Build with ASan
 * and UBSan. Unmutated ones must be walked through now and then, or nothing was tried.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "../../monitor/core/pvm.h"
#include "../../monitor/core/unwind.h"
#include "random.h"

struct pvm pvm;
__thread struct thread *self;

#define STACK 0x7000000000ull
#define STACK_SIZE 4096u
#define MUTATIONS 12

static struct part {
	uint64_t start, size;
	uint8_t *copy;
} parts[8];
static unsigned nr_parts;
static uint64_t text, text_size, hdr, hdr_size;
static uint64_t stack[STACK_SIZE / 8], frames;

int guest_read(void *dst, uint64_t gva, size_t len)
{
	if (gva - STACK < sizeof stack && len <= sizeof stack - (gva - STACK)) {
		memcpy(dst, (uint8_t *)stack + (gva - STACK), len);
		return 0;
	}
	for (unsigned i = 0; i < nr_parts; i++)
		if (gva - parts[i].start < parts[i].size && len <= parts[i].size - (gva - parts[i].start)) {
			memcpy(dst, parts[i].copy + (gva - parts[i].start), len);
			return 0;
		}
	return -EFAULT;
}

static int note(struct dl_phdr_info *info, size_t size, void *arg)
{
	(void)size, (void)arg;
	for (unsigned i = 0; i < info->dlpi_phnum && nr_parts < 8; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		uint64_t at = info->dlpi_addr + p->p_vaddr;
		if (p->p_type == PT_GNU_EH_FRAME) {
			hdr = at;
			hdr_size = p->p_memsz;
		}
		if (p->p_type != PT_LOAD || p->p_flags & PF_W)
			continue;
		parts[nr_parts] = (struct part){ at, p->p_filesz, malloc(p->p_filesz) };
		int fd = open("/proc/self/mem", O_RDONLY); /* there are gaps in it that ASan lets nobody read */
		if (!parts[nr_parts].copy || fd < 0 ||
		    pread(fd, parts[nr_parts].copy, p->p_filesz, (off_t)at) != (ssize_t)p->p_filesz)
			return 1;
		close(fd);
		nr_parts++;
		if (p->p_flags & PF_X) {
			text = at;
			text_size = p->p_filesz;
		}
	}
	return 1; /* the program alone */
}

static struct part *part_of(uint64_t at)
{
	for (unsigned i = 0; i < nr_parts; i++)
		if (at - parts[i].start < parts[i].size)
			return &parts[i];
	return NULL;
}

static uint64_t find(uint64_t pc, void *arg)
{
	(void)arg;
	return pc - text < text_size ? hdr : below(20) ? 0 : hdr;
}

static bool frame(uint64_t pc, uint64_t sp, void *arg)
{
	(void)pc, (void)sp, (void)arg;
	frames++;
	return true;
}

static uint64_t value(void)
{
	switch (below(4)) {
	case 0:
		return STACK + 8 * below(STACK_SIZE / 8);
	case 1:
		return below(2) ? 0 : rnd() >> below(64);
	}
	return text + below(text_size);
}

static void walk(void)
{
	struct unwind_regs r;
	for (unsigned i = 0; i < STACK_SIZE / 8; i++)
		stack[i] = value();
	for (unsigned i = 0; i < sizeof r.r / sizeof r.r[0]; i++)
		r.r[i] = value();
	r.r[UNWIND_RIP] = text + below(text_size);
	r.r[UNWIND_RSP] = STACK + 8 * below(STACK_SIZE / 16);
	unwind_walk(&r, find, frame, NULL);
}

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "usage: fuzz_unwind COUNT SEED\n");
		return 2;
	}
	state = strtoull(argv[2], NULL, 0) * 0x9e3779b97f4a7c15ull | 1;
	dl_iterate_phdr(note, NULL);
	struct part *p = part_of(hdr);
	if (!p || !text_size)
		return 2;
	for (int i = 0; i < 1000; i++)
		walk();
	if (frames < 2000) {
		fprintf(stderr, "fuzz_unwind: %llu frames in 1000 walks\n", (unsigned long long)frames);
		return 1;
	}
	/* The entries lie behind their table. */
	uint64_t from = hdr - p->start, size = p->size - from;
	uint8_t *good = malloc(size);
	if (!good)
		return 2;
	memcpy(good, p->copy + from, size);
	for (unsigned long i = 0, count = strtoul(argv[1], NULL, 0); i < count; i++) {
		uint64_t at[MUTATIONS];
		for (unsigned k = 0; k < MUTATIONS; k++) {
			static const uint8_t v[] = { 0,    0xff, 0x7f, 0x80, 0x40, 0x81, 0x0c, 0x0f, 0x10, 0x16,
						     0x12, 0x13, 0x0a, 0x0b, 0x11, 0x14, 0x15, 0x05, 0x23, 0x06 };
			at[k] = k ? hdr_size + below(size - hdr_size) : below(16);
			if (k || !below(8))
				p->copy[from + at[k]] = below(2) ? v[below(sizeof v)] : (uint8_t)rnd();
			for (unsigned run = 0; k && run < 12 && !below(2); run++) /* long numbers */
				if (at[k] + run < size)
					p->copy[from + at[k] + run] = 0xff;
		}
		for (int n = 0; n < 8; n++)
			walk();
		if (i % 64 == 63)
			memcpy(p->copy + from, good, size);
	}
	free(good);
	for (unsigned i = 0; i < nr_parts; i++)
		free(parts[i].copy);
	printf("fuzz_unwind: %s times, %llu frames, no failure\n", argv[1], (unsigned long long)frames);
	return 0;
}
