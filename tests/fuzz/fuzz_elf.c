/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzer of the ELF parser. With clang -fsanitize=fuzzer: -DKX_LIBFUZZER. Otherwise a program:
 *	fuzz_elf SEEDFILE COUNT SEED
 * parses COUNT mutations of the seed file, the same ones for the same SEED. Build with ASan and UBSan. A file that
 * is accepted must keep every promise of elf.h.
 */
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../abi/kx_abi.h"
#include "../../monitor/core/elf.h"

struct input {
	const uint8_t *p;
	size_t len;
};

static int64_t input_pread(void *ctx, void *buf, size_t len, uint64_t off)
{
	const struct input *in = ctx;

	if (off >= in->len)
		return 0;
	if (len > in->len - off)
		len = in->len - off;
	memcpy(buf, in->p + off, len);
	return (int64_t)len;
}

#define PROMISE(cond) \
	do { \
		if (!(cond)) { \
			fprintf(stderr, "fuzz_elf: broken promise: %s\n", #cond); \
			abort(); \
		} \
	} while (0)

static void check(const struct elf_image *im, size_t len)
{
	PROMISE(im->nr_seg > 0 && im->nr_seg <= ELF_SEG_MAX);
	PROMISE(im->low < im->high && im->high - im->low < ELF_SPAN_MAX && im->high <= 1ull << 47);
	PROMISE(!((im->low | im->high) & (ELF_PAGE - 1)));
	PROMISE(im->dyn || (im->low >= KX_USER_MIN && im->high <= KX_USER_END));
	PROMISE(im->align >= ELF_PAGE && im->align <= ELF_ALIGN_MAX && !(im->align & (im->align - 1)));
	PROMISE(memchr(im->interp, 0, sizeof im->interp));
	PROMISE(im->phnum && im->phnum * sizeof(Elf64_Phdr) <= ELF_PHDRS_MAX);
	PROMISE(im->phoff <= len && im->phnum * sizeof(Elf64_Phdr) <= len - im->phoff);
	PROMISE(!im->has_phdr || (im->phdr >= im->low && im->phdr < im->high));
	for (unsigned i = 0; i < im->nr_seg; i++) {
		const struct elf_segment *s = &im->seg[i];

		PROMISE(s->memsz && s->filesz <= s->memsz);
		PROMISE(s->vaddr >= im->low && s->vaddr < im->high && s->memsz <= im->high - s->vaddr);
		PROMISE(!s->filesz || (s->off <= len && s->filesz <= len - s->off));
		PROMISE(!s->filesz || !((s->off ^ s->vaddr) & (ELF_PAGE - 1)));
		PROMISE(!(s->flags & ~(PF_R | PF_W | PF_X)));
		PROMISE(!i || s->vaddr - s[-1].vaddr >= s[-1].memsz);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct elf_image im;
	struct input in = { data, size };
	struct kx_err err = { 0 };
	int r = elf_read(input_pread, &in, size, &im, &err);

	if (!r) {
		PROMISE(!err.code);
		check(&im, size);
	} else {
		PROMISE(r == -err.code && err.exit_code == 126 && err.msg[0] && !strchr(err.msg, '\n'));
	}
	return 0;
}

#ifndef KX_LIBFUZZER
static uint64_t state;

static uint64_t rnd(void)
{
	state += 0x9e3779b97f4a7c15;
	uint64_t z = state;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static uint64_t interesting(uint64_t len, uint64_t old)
{
	switch (rnd() % 12) {
	case 0:
		return 0;
	case 1:
		return -1ull;
	case 2:
		return 1ull << rnd() % 64;
	case 3:
		return (1ull << rnd() % 64) - 1;
	case 4:
		return len + rnd() % 129 - 64;
	case 5:
		return old + rnd() % 33 - 16;
	case 6:
		return old ^ 1ull << rnd() % 64;
	case 7:
		return -(rnd() % 0x10000);
	case 8:
		return old & -0x1000ull;
	case 9:
		return KX_USER_END + rnd() % 0x3000 - 0x1800;
	case 10:
		return rnd() % (len + 1);
	default:
		return rnd();
	}
}

/* Overwrite one field of width bytes at off. */
static void set_field(uint8_t *p, size_t len, size_t off, size_t width)
{
	uint64_t v = 0;

	if (off > len || width > len - off)
		return;
	memcpy(&v, p + off, width);
	v = interesting(len, v);
	memcpy(p + off, &v, width);
}

static size_t mutate(uint8_t *p, size_t len, size_t headers)
{
	static const uint8_t eh[][2] = { { 4, 1 },  { 5, 1 },  { 6, 1 },  { 16, 2 }, { 18, 2 }, { 20, 4 },
					 { 24, 8 }, { 32, 8 }, { 40, 8 }, { 52, 2 }, { 54, 2 }, { 56, 2 } };
	static const uint8_t ph[][2] = { { 0, 4 }, { 4, 4 }, { 8, 8 }, { 16, 8 }, { 32, 8 }, { 40, 8 }, { 48, 8 } };

	for (int n = 1 + (int)(rnd() % 4); n > 0; n--) {
		unsigned k = (unsigned)(rnd() % 16);

		if (k < 3) {
			const uint8_t *f = eh[rnd() % (sizeof eh / 2)];
			set_field(p, len, f[0], f[1]);
		} else if (k < 12) {
			const uint8_t *f = ph[rnd() % (sizeof ph / 2)];
			set_field(p, len, 64 + 56 * (rnd() % headers) + f[0], f[1]);
		} else if (k == 12 && len > 64 + 56 * headers) {
			size_t a = rnd() % headers, b = rnd() % headers; /* one header over another */
			memmove(p + 64 + 56 * a, p + 64 + 56 * b, 56);
		} else if (k == 13) {
			len = rnd() % (len + 1);
		} else if (len) {
			size_t end = len < 4096 ? len : 4096;
			p[rnd() % end] = (uint8_t)rnd();
		}
	}
	return len;
}

int main(int argc, char **argv)
{
	uint8_t *seed, *copy;
	size_t len, headers = 13;
	long count, ok = 0;
	FILE *f;

	if (argc != 4 || !(f = fopen(argv[1], "rb"))) {
		fprintf(stderr, "usage: fuzz_elf SEEDFILE COUNT SEED\n");
		return 2;
	}
	/* Enough of a large file: what the headers name beyond is seen as truncated, so cut them to size. */
	seed = malloc(1 << 20);
	len = seed ? fread(seed, 1, 1 << 20, f) : 0;
	fclose(f);
	count = atol(argv[2]);
	state = strtoull(argv[3], NULL, 0);
	if (len >= 64) {
		headers = seed[56] ? seed[56] : 1;
		for (size_t i = 0; i < headers && 64 + 56 * (i + 1) <= len; i++) {
			uint64_t off, size;

			memcpy(&off, seed + 64 + 56 * i + 8, 8);
			memcpy(&size, seed + 64 + 56 * i + 32, 8);
			if (off >= len)
				size = 0;
			else if (size > len - off)
				size = len - off;
			memcpy(seed + 64 + 56 * i + 32, &size, 8);
		}
	}
	/* Only the headers and the name of the interpreter are read: a short tail is as good as a long one. */
	for (long i = 0; i < count; i++) {
		uint8_t part[8192];
		size_t head = len < sizeof part ? len : sizeof part, n;

		memcpy(part, seed, head);
		n = mutate(part, head, headers);
		/* A block of the exact size, for ASan; mostly as long as the seed, its tail untouched. */
		size_t total = n < head ? n : len;
		copy = malloc(total ? total : 1);
		if (!copy)
			return 2;
		memcpy(copy, seed, total);
		memcpy(copy, part, n < total ? n : total);
		struct elf_image *im = malloc(sizeof *im);
		struct input in = { copy, total };
		struct kx_err err = { 0 };
		if (im && !elf_read(input_pread, &in, total, im, &err))
			ok++;
		free(im);
		LLVMFuzzerTestOneInput(copy, total);
		free(copy);
	}
	free(seed);
	printf("fuzz_elf: %ld mutations of %s, %ld accepted\n", count, argv[1], ok);
	return 0;
}
#endif
