/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parser of ELF programs: 64-bit little-endian x86-64, ET_EXEC and ET_DYN. It only reads and checks; nothing is
 * mapped and nothing allocated. The file is hostile: every number is checked before use, and each header is read
 * once and used from that copy.
 *
 * Stricter than Linux where Linux would load something that can't run (segments past the end of the file, out of
 * order or overlapping); otherwise what Linux takes is taken.
 */
#ifndef KX_ELF_H
#define KX_ELF_H
#include <elf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "../../util/err.h"

#define ELF_PAGE 4096ul
#define ELF_PHDRS_MAX 65536ul      /* bytes of program headers, as Linux */
#define ELF_PHDRS_READ 32          /* program headers that are read at a time */
#define ELF_SEG_MAX 256            /* loadable segments (usual: 2 to 6) */
#define ELF_INTERP_MAX 4096        /* PATH_MAX, with the NUL */
#define ELF_SPAN_MAX (64ull << 30) /* first to last byte of the image */
#define ELF_ALIGN_MAX (1ull << 30)

struct elf_segment {
	uint64_t vaddr, memsz; /* memsz > 0; before relocation */
	uint64_t off, filesz;  /* filesz <= memsz; off is page-congruent to vaddr unless filesz == 0 */
	uint32_t flags;        /* PF_R, PF_W, PF_X */
};

struct elf_image {
	bool dyn;        /* ET_DYN: may be anywhere; else at its own addresses */
	bool exec_stack; /* PT_GNU_STACK asks for it (without one: no, as Linux on x86-64) */
	bool has_phdr;   /* the program headers are in memory, at `phdr` */
	uint64_t file_size, entry, phoff;
	uint32_t phnum;
	uint64_t phdr;             /* before relocation */
	uint64_t low, high;        /* extent in whole pages, before relocation */
	uint64_t relro, relro_end; /* whole pages that a dynamic linker makes read-only, before relocation; 0 = none */
	uint64_t align;            /* greatest alignment that a segment asks for; >= ELF_PAGE, power of two */
	uint32_t nr_seg;
	struct elf_segment seg[ELF_SEG_MAX]; /* ascending, disjoint (neighbours may share a page) */
	char interp[ELF_INTERP_MAX];         /* "" = none */
};

/* Read len bytes at off. Returns the bytes read (fewer only at the end of the file) or -errno. */
typedef int64_t (*elf_pread_fn)(void *ctx, void *buf, size_t len, uint64_t off);

/*
 * Check the ELF header in head[0..head_len) (64 bytes suffice, fewer is a truncated file) of a file of file_size
 * bytes, and fill all of *out that comes from it. Returns 0 or -ENOEXEC with err set (exit status 126); messages
 * don't name the file.
 */
int elf_parse(const uint8_t *head, size_t head_len, uint64_t file_size, struct elf_image *out, struct kx_err *err);

/* After elf_parse(): read and check the program headers and complete *out. Returns 0, -ENOEXEC or pread's error. */
int elf_parse_phdrs(struct elf_image *out, elf_pread_fn pread_fn, void *ctx, struct kx_err *err);

/* Both: the whole parse through the callback. */
int elf_read(elf_pread_fn pread_fn, void *ctx, uint64_t file_size, struct elf_image *out, struct kx_err *err);

/* Program headers of an open file that are read one after the other, from 0 on, once. Unchecked: a file says what it likes. */
struct elf_phdrs {
	int fd;
	uint64_t phoff; /* below 2^62 */
	ssize_t got;    /* bytes in `read`: at first of those that are known already */
	Elf64_Phdr read[ELF_PHDRS_READ];
};
/* The i-th; NULL: the file ends before, or can't be read. Valid until the next one is asked for. */
const Elf64_Phdr *elf_phdr(struct elf_phdrs *phdrs, uint32_t i);
#endif
