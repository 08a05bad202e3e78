/* SPDX-License-Identifier: Apache-2.0 */
/*
 * solink LIBRARY.so OUT: makes of a shared library what can be linked statically, for libraries that a distribution has
 * in no other form: OUT.img (its pages), OUT.S (the same as two sections, its symbols, and what it wants of others) and
 * OUT.lds (for the linker: the distance of the two, which the library's code relies on). Who uses the library calls
 * solink_begin() before, from any thread, as often as it likes.
 *
 * For plain C libraries: no thread-local variables, no functions chosen at run time, nothing to be run at start.
 */
#include <elf.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096ul

static const char *library;
static uint8_t *file;
static size_t file_len;

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "solink: %s: %s\n", library, what);
	exit(1);
}

static void *at(uint64_t off, uint64_t len)
{
	if (off > file_len || len > file_len - off)
		fail("cut short");
	return file + off;
}

static FILE *output(const char *base, const char *suffix)
{
	char path[4096];
	snprintf(path, sizeof path, "%s%s", base, suffix);
	FILE *f = fopen(path, "w");
	if (!f)
		fail(path);
	return f;
}

static uint8_t *image; /* by address */
static uint64_t image_len, data_start = -1ull;

/* The segments at their addresses. Code and constants first, what is written from data_start on. */
static void image_make(const Elf64_Phdr *ph, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (ph[i].p_type == PT_TLS)
			fail("has thread-local variables");
		else if (ph[i].p_type == PT_LOAD && ph[i].p_vaddr + ph[i].p_memsz > image_len)
			image_len = ph[i].p_vaddr + ph[i].p_memsz;
	if (!image_len || image_len > 64 << 20 || !(image = calloc(1, image_len)))
		fail("has no segments");
	for (unsigned i = 0; i < n; i++) {
		if (ph[i].p_type != PT_LOAD)
			continue;
		if (ph[i].p_flags & PF_W && ph[i].p_vaddr < data_start)
			data_start = ph[i].p_vaddr;
		else if (!(ph[i].p_flags & PF_W) && ph[i].p_vaddr > data_start)
			fail("has constants behind its variables");
		memcpy(image + ph[i].p_vaddr, at(ph[i].p_offset, ph[i].p_filesz), ph[i].p_filesz);
	}
	if (data_start == -1ull)
		data_start = image_len;
}

static const Elf64_Sym *syms;
static const char *strings;
static unsigned nr_syms;

struct reloc {
	uint64_t at, addend;
	const Elf64_Sym *sym; /* NULL: relative to the image */
};

static int by_address(const void *a, const void *b)
{
	const struct reloc *x = a, *y = b;
	return x->at < y->at ? -1 : x->at > y->at;
}

static void put_address(FILE *out, uint64_t addr)
{
	if (addr >= data_start)
		fprintf(out, "solink_data+%#lx", addr - data_start);
	else
		fprintf(out, "solink_text+%#lx", addr);
}

static bool is_own(const struct reloc *r) { return !r->sym || r->sym->st_shndx; }

/* An address of others'; the library's own are written by solink_begin(). */
static void put_reloc(FILE *out, const struct reloc *r)
{
	if (is_own(r) || ELF64_ST_BIND(r->sym->st_info) == STB_WEAK) /* for start and end, which don't happen */
		fprintf(out, "\t.quad 0\n");
	else
		fprintf(out, "\t.quad %s+%#lx\n", strings + r->sym->st_name, r->addend);
}

/*
 * The library's own addresses: where, and what, both from its begin, which they are added to before its first use. A program
 * that does not use it writes to none of its pages. Who does it a second time, or at the same time, writes the same.
 */
static void put_begin(FILE *out, const struct reloc *r, size_t n)
{
	fprintf(out, "\t.section .rodata.solink,\"a\",@progbits\n\t.balign 4\nsolink_relocs:\n");
	for (size_t i = 0; i < n; i++) {
		if (!is_own(&r[i]))
			continue;
		const uint64_t value = r[i].addend + (r[i].sym ? r[i].sym->st_value : 0);
		if (value > image_len)
			fail("has an address outside itself");
		fprintf(out, "\t.long %#lx, %#lx\n", r[i].at, value);
	}
	fprintf(out, "solink_relocs_end:\n"
		     "\t.local solink_begun\n\t.comm solink_begun,1,1\n"
		     "\t.text\n\t.globl solink_begin\n\t.hidden solink_begin\n\t.type solink_begin,@function\n"
		     "solink_begin:\n"
		     "\tcmpb $0, solink_begun(%%rip)\n\tjne 2f\n"
		     "\tleaq solink_text(%%rip), %%rax\n"
		     "\tleaq solink_relocs(%%rip), %%rdx\n\tleaq solink_relocs_end(%%rip), %%rcx\n"
		     "0:\tcmpq %%rcx, %%rdx\n\tje 1f\n"
		     "\tmovl (%%rdx), %%esi\n\tmovl 4(%%rdx), %%edi\n"
		     "\taddq %%rax, %%rdi\n\tmovq %%rdi, (%%rax,%%rsi)\n"
		     "\taddq $8, %%rdx\n\tjmp 0b\n"
		     "1:\tmovb $1, solink_begun(%%rip)\n2:\tret\n"
		     "\t.size solink_begin, .-solink_begin\n");
}

static void assembly(const char *base, const struct reloc *r, size_t n)
{
	FILE *out = output(base, ".S");
	fprintf(out,
		"\t.section .solink.text,\"ax\",@progbits\n\t.balign %lu\n\t.globl solink_text, solink_text_end\n"
		"\t.hidden solink_text, solink_text_end\nsolink_text:\n\t.incbin \"%s.img\"\nsolink_text_end:\n",
		PAGE, base);
	fprintf(out, "\t.section .solink.data,\"aw\",@progbits\nsolink_data:\n");
	uint64_t done = data_start;
	for (size_t i = 0; i < n; i++) {
		if (r[i].at < done || r[i].at + 8 > image_len)
			fail("wants an address written into its code");
		for (; done < r[i].at; done++)
			fprintf(out, "\t.byte %u\n", image[done]);
		put_reloc(out, &r[i]);
		done += 8;
	}
	for (; done < image_len; done++)
		fprintf(out, "\t.byte %u\n", image[done]);
	for (unsigned i = 1; i < nr_syms; i++) {
		const Elf64_Sym *s = &syms[i];
		const char *name = strings + s->st_name;
		unsigned type = ELF64_ST_TYPE(s->st_info);
		if (!s->st_shndx || s->st_shndx == SHN_ABS)
			continue;
		if (type != STT_FUNC && type != STT_OBJECT)
			fail("has symbols of a kind that is not known here");
		fprintf(out, "\t.globl %s\n\t.hidden %s\n\t.type %s,@%s\n\t.set %s,", name, name, name,
			type == STT_FUNC ? "function" : "object", name);
		put_address(out, s->st_value);
		fprintf(out, "\n");
	}
	put_begin(out, r, n);
	fprintf(out, "\t.section .note.GNU-stack,\"\",@progbits\n");
	if (fclose(out))
		fail("cannot write");
	out = output(base, ".lds");
	fprintf(out,
		"SECTIONS\n{\n\t.solink.text : ALIGN(%lu) { KEEP(*(.solink.text)) }\n"
		"\t.solink.data ADDR(.solink.text) + %#lx : SUBALIGN(1) { KEEP(*(.solink.data)) }\n} INSERT AFTER "
		".bss;\n",
		PAGE, data_start);
	if (fclose(out))
		fail("cannot write");
	out = output(base, ".img");
	if (fwrite(image, 1, data_start & -PAGE, out) != (data_start & -PAGE) || fclose(out))
		fail("cannot write");
}

int main(int argc, char **argv)
{
	struct stat st;
	if (argc != 3)
		return fprintf(stderr, "usage: solink LIBRARY.so OUT\n"), 2;
	library = argv[1];
	int fd = open(library, O_RDONLY);
	if (fd < 0 || fstat(fd, &st) || !(file_len = st.st_size) ||
	    (file = mmap(NULL, file_len, PROT_READ, MAP_PRIVATE, fd, 0)) == MAP_FAILED)
		fail("cannot be read");
	const Elf64_Ehdr *eh = at(0, sizeof *eh);
	if (memcmp(eh->e_ident, ELFMAG "\2\1", 6) || eh->e_type != ET_DYN || eh->e_machine != EM_X86_64)
		fail("is no shared library for x86-64");
	image_make(at(eh->e_phoff, eh->e_phnum * sizeof(Elf64_Phdr)), eh->e_phnum);
	const Elf64_Shdr *sh = at(eh->e_shoff, eh->e_shnum * sizeof *sh);
	for (unsigned i = 0; i < eh->e_shnum; i++)
		if (sh[i].sh_type == SHT_DYNSYM) {
			syms = at(sh[i].sh_offset, sh[i].sh_size);
			nr_syms = sh[i].sh_size / sizeof *syms;
			strings = at(sh[sh[i].sh_link].sh_offset, sh[sh[i].sh_link].sh_size);
		} else if (sh[i].sh_type == SHT_RELR) {
			fail("has packed relocations");
		}
	struct reloc *r = NULL;
	size_t n = 0;
	for (unsigned i = 0; i < eh->e_shnum; i++) {
		if (sh[i].sh_type != SHT_RELA || !(sh[i].sh_flags & SHF_ALLOC))
			continue;
		const Elf64_Rela *rela = at(sh[i].sh_offset, sh[i].sh_size);
		size_t k = sh[i].sh_size / sizeof *rela;
		r = realloc(r, (n + k) * sizeof *r);
		if (!r)
			fail("no memory");
		for (size_t e = 0; e < k; e++, n++) {
			unsigned type = ELF64_R_TYPE(rela[e].r_info), s = ELF64_R_SYM(rela[e].r_info);
			r[n] = (struct reloc){ rela[e].r_offset, rela[e].r_addend, s < nr_syms ? &syms[s] : NULL };
			if (type == R_X86_64_RELATIVE)
				r[n].sym = NULL;
			else if (type != R_X86_64_64 && type != R_X86_64_GLOB_DAT && type != R_X86_64_JUMP_SLOT)
				fail("has a relocation of a kind that is not known here");
			else if (!s)
				fail("has a relocation without a symbol");
		}
	}
	if (!syms)
		fail("has no symbols");
	qsort(r, n, sizeof *r, by_address);
	assembly(argv[2], r, n);
	return 0;
}
