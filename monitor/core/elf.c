/* SPDX-License-Identifier: Apache-2.0 */
#include "elf.h"
#include <elf.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>
#include "../../abi/kx_abi.h"

#define VADDR_MAX (1ull << 47)
#define USE_AMD64 "KylinX runs 64-bit x86 programs (use the amd64 build)"
#define DAMAGED "(the file is damaged: install it again)"
#define bad(err, ...) kx_err_exit(err, ENOEXEC, 126, __VA_ARGS__)

static const char *machine_name(unsigned m)
{
	switch (m) {
	case EM_386:
		return "i386";
	case EM_MIPS:
		return "MIPS";
	case EM_PPC:
		return "PowerPC";
	case EM_PPC64:
		return "64-bit PowerPC";
	case EM_S390:
		return "S/390";
	case EM_ARM:
		return "ARM";
	case EM_AARCH64:
		return "64-bit ARM";
	case EM_RISCV:
		return "RISC-V";
	case EM_IA_64:
		return "Itanium";
	case 258:
		return "LoongArch";
	default:
		return NULL;
	}
}

static int check_ident(const uint8_t *head, size_t len, struct kx_err *err)
{
	if (len < SELFMAG || memcmp(head, ELFMAG, SELFMAG))
		return bad(err, "no program: neither ELF nor a script with a #! line "
				"(for a shell script, run: /bin/sh FILE)");
	if (len > EI_CLASS && head[EI_CLASS] == ELFCLASS32)
		return bad(err, "32-bit program: " USE_AMD64);
	if (len < sizeof(Elf64_Ehdr))
		return bad(err, "truncated: %zu bytes, shorter than an ELF header " DAMAGED, len);
	if (head[EI_CLASS] != ELFCLASS64)
		return bad(err, "unknown ELF class %u " DAMAGED, head[EI_CLASS]);
	if (head[EI_DATA] == ELFDATA2MSB)
		return bad(err, "big-endian program: " USE_AMD64);
	if (head[EI_DATA] != ELFDATA2LSB || head[EI_VERSION] != EV_CURRENT)
		return bad(err, "unknown ELF byte order or version " DAMAGED);
	return 0;
}

int elf_parse(const uint8_t *head, size_t head_len, uint64_t file_size, struct elf_image *out, struct kx_err *err)
{
	Elf64_Ehdr eh;
	uint64_t size, end;
	int r;

	memset(out, 0, offsetof(struct elf_image, seg)); /* the rest, pages of it, as far as there is something */
	out->interp[0] = 0;
	if (head_len > file_size)
		head_len = file_size;
	r = check_ident(head, head_len, err);
	if (r)
		return r;
	memcpy(&eh, head, sizeof eh);
	if (eh.e_machine != EM_X86_64) {
		const char *name = machine_name(eh.e_machine);

		if (name)
			return bad(err, "program for %s: " USE_AMD64, name);
		return bad(err, "program for machine %u: " USE_AMD64, eh.e_machine);
	}
	if (eh.e_type == ET_REL)
		return bad(err, "object file, not linked (link it into a program first)");
	if (eh.e_type == ET_CORE)
		return bad(err, "core dump, no program (run the program that left it)");
	if (eh.e_type != ET_EXEC && eh.e_type != ET_DYN)
		return bad(err, "unknown ELF type %u " DAMAGED, eh.e_type);
	if (eh.e_version != EV_CURRENT)
		return bad(err, "unknown ELF version %u " DAMAGED, eh.e_version);
	if (eh.e_phentsize != sizeof(Elf64_Phdr))
		return bad(err, "program headers of %u bytes, not %zu " DAMAGED, eh.e_phentsize, sizeof(Elf64_Phdr));
	size = (uint64_t)eh.e_phnum * sizeof(Elf64_Phdr);
	if (!size)
		return bad(err, "no program headers: nothing to load (link it into a program first)");
	if (size > ELF_PHDRS_MAX)
		return bad(err, "%u program headers: more than 64 KiB of them " DAMAGED, eh.e_phnum);
	if (__builtin_add_overflow(eh.e_phoff, size, &end) || end > file_size)
		return bad(err, "truncated: program headers end after byte %llu of the file " DAMAGED,
			   (unsigned long long)file_size);
	out->dyn = eh.e_type == ET_DYN;
	out->file_size = file_size;
	out->entry = eh.e_entry;
	out->phoff = eh.e_phoff;
	out->phnum = eh.e_phnum;
	out->align = ELF_PAGE;
	return 0;
}

static int read_exact(elf_pread_fn fn, void *ctx, void *buf, size_t len, uint64_t off, struct kx_err *err)
{
	int64_t n = fn(ctx, buf, len, off);

	if (n < 0)
		return kx_err_exit(err, (int)-n, 126, "cannot be read: %s (check the disk that it is on)",
				   strerror((int)-n));
	if ((uint64_t)n != len)
		return bad(err, "truncated: it became shorter while it was read (try again)");
	return 0;
}

static int add_interp(struct elf_image *im, const Elf64_Phdr *ph, elf_pread_fn fn, void *ctx, struct kx_err *err)
{
	uint64_t end;
	int r;

	if (ph->p_filesz < 2 || ph->p_filesz > sizeof im->interp)
		return bad(err, "name of its interpreter has %llu bytes, not 2 to %zu " DAMAGED,
			   (unsigned long long)ph->p_filesz, sizeof im->interp);
	if (__builtin_add_overflow(ph->p_offset, ph->p_filesz, &end) || end > im->file_size)
		return bad(err, "truncated: name of its interpreter is after the end of the file " DAMAGED);
	r = read_exact(fn, ctx, im->interp, ph->p_filesz, ph->p_offset, err);
	if (r)
		return r;
	if (im->interp[ph->p_filesz - 1] || !im->interp[0]) {
		im->interp[0] = 0;
		return bad(err, "name of its interpreter is empty or has no end " DAMAGED);
	}
	return 0;
}

static int add_segment(struct elf_image *im, const Elf64_Phdr *ph, unsigned n, struct kx_err *err)
{
	const struct elf_segment *prev = im->nr_seg ? &im->seg[im->nr_seg - 1] : NULL;
	uint64_t end, fend;

	if (ph->p_filesz > ph->p_memsz)
		return bad(err, "segment %u has more bytes in the file than in memory " DAMAGED, n);
	if (!ph->p_memsz)
		return 0;
	if (__builtin_add_overflow(ph->p_vaddr, ph->p_memsz, &end) || end > VADDR_MAX)
		return bad(err, "segment %u ends outside of the address space " DAMAGED, n);
	if (ph->p_filesz) {
		if (__builtin_add_overflow(ph->p_offset, ph->p_filesz, &fend) || fend > im->file_size)
			return bad(err, "truncated: segment %u ends after byte %llu of the file " DAMAGED, n,
				   (unsigned long long)im->file_size);
		if ((ph->p_offset ^ ph->p_vaddr) & (ELF_PAGE - 1))
			return bad(err,
				   "segment %u: address and file offset differ within the page "
				   "(link it with -z max-page-size=4096)",
				   n);
	}
	if (ph->p_align & (ph->p_align - 1))
		return bad(err, "segment %u: alignment 0x%llx is no power of two " DAMAGED, n,
			   (unsigned long long)ph->p_align);
	if (ph->p_align > ELF_ALIGN_MAX)
		return bad(err, "segment %u: alignment 0x%llx is above 1 GiB (link it with a smaller one)", n,
			   (unsigned long long)ph->p_align);
	if (prev && ph->p_vaddr < prev->vaddr)
		return bad(err, "segment %u is out of order " DAMAGED, n);
	if (prev && ph->p_vaddr - prev->vaddr < prev->memsz)
		return bad(err, "segment %u overlaps the one before " DAMAGED, n);
	if (im->nr_seg == ELF_SEG_MAX)
		return bad(err, "more than %d loadable segments (link it with fewer)", ELF_SEG_MAX);

	if (!im->nr_seg)
		im->low = ph->p_vaddr & -ELF_PAGE;
	im->high = (end + ELF_PAGE - 1) & -ELF_PAGE;
	if (im->high - im->low >= ELF_SPAN_MAX)
		return bad(err, "segments are 64 GiB or more apart (link it with closer ones)");
	if (ph->p_align > im->align)
		im->align = ph->p_align;
	if (ph->p_filesz && !im->has_phdr && im->phoff >= ph->p_offset && im->phoff - ph->p_offset < ph->p_filesz) {
		im->has_phdr = true;
		im->phdr = im->phoff - ph->p_offset + ph->p_vaddr;
	}
	im->seg[im->nr_seg++] = (struct elf_segment){
		.vaddr = ph->p_vaddr,
		.memsz = ph->p_memsz,
		.off = ph->p_offset,
		.filesz = ph->p_filesz,
		.flags = ph->p_flags & (PF_R | PF_W | PF_X),
	};
	return 0;
}

static int check_image(const struct elf_image *im, struct kx_err *err)
{
	if (!im->nr_seg)
		return bad(err, "no loadable segment: nothing to run (link it into a program first)");
	if (!im->dyn && (im->low < KX_USER_MIN || im->high > KX_USER_END))
		return bad(err,
			   "linked to addresses 0x%llx to 0x%llx: KylinX has 0x%llx to 0x%llx "
			   "(link it with -pie, or to other addresses)",
			   (unsigned long long)im->low, (unsigned long long)im->high, (unsigned long long)KX_USER_MIN,
			   (unsigned long long)KX_USER_END);
	/* With an interpreter the entry is only a number that it is told. */
	if (im->interp[0])
		return 0;
	for (unsigned i = 0; i < im->nr_seg; i++)
		if (im->entry >= im->seg[i].vaddr && im->entry - im->seg[i].vaddr < im->seg[i].memsz)
			return 0;
	return bad(err, "no entry point inside it: a library, or damaged (run a program)");
}

int elf_parse_phdrs(struct elf_image *im, elf_pread_fn pread_fn, void *ctx, struct kx_err *err)
{
	Elf64_Phdr ph[ELF_PHDRS_READ], phdr_seg = { 0 };
	int r;

	for (uint32_t i = 0; i < im->phnum; i++) {
		const Elf64_Phdr *p = &ph[i % ELF_PHDRS_READ];

		if (i % ELF_PHDRS_READ == 0) {
			uint32_t n = im->phnum - i < ELF_PHDRS_READ ? im->phnum - i : ELF_PHDRS_READ;

			r = read_exact(pread_fn, ctx, ph, n * sizeof *ph, im->phoff + i * sizeof *ph, err);
			if (r)
				return r;
		}
		r = 0;
		switch (p->p_type) {
		case PT_LOAD:
			r = add_segment(im, p, i, err);
			break;
		case PT_INTERP: /* the first counts, as on Linux */
			if (!im->interp[0])
				r = add_interp(im, p, pread_fn, ctx, err);
			break;
		case PT_GNU_STACK:
			im->exec_stack = p->p_flags & PF_X;
			break;
		case PT_GNU_RELRO:
			if (p->p_memsz <= UINT64_MAX - p->p_vaddr) {
				im->relro = p->p_vaddr & -ELF_PAGE;
				im->relro_end = (p->p_vaddr + p->p_memsz) & -ELF_PAGE;
			}
			break;
		case PT_PHDR:
			phdr_seg = *p;
			break;
		}
		if (r)
			return r;
	}
	/* Linux goes by the segment that holds the headers; a PT_PHDR helps where none does. */
	if (!im->has_phdr && phdr_seg.p_type == PT_PHDR && phdr_seg.p_vaddr >= im->low && phdr_seg.p_vaddr < im->high) {
		im->has_phdr = true;
		im->phdr = phdr_seg.p_vaddr;
	}
	return check_image(im, err);
}

int elf_read(elf_pread_fn pread_fn, void *ctx, uint64_t file_size, struct elf_image *out, struct kx_err *err)
{
	uint8_t head[sizeof(Elf64_Ehdr)];
	int64_t n = pread_fn(ctx, head, sizeof head, 0);
	int r;

	if (n < 0)
		return kx_err_exit(err, (int)-n, 126, "cannot be read: %s (check the disk that it is on)",
				   strerror((int)-n));
	r = elf_parse(head, (size_t)n, file_size, out, err);
	return r ? r : elf_parse_phdrs(out, pread_fn, ctx, err);
}

const Elf64_Phdr *elf_phdr(struct elf_phdrs *phdrs, uint32_t i)
{
	const size_t k = i % ELF_PHDRS_READ;
	if (!k && (i || !phdrs->got))
		phdrs->got = pread(phdrs->fd, phdrs->read, sizeof phdrs->read,
				   (off_t)(phdrs->phoff + i * sizeof(Elf64_Phdr)));
	return phdrs->got < (ssize_t)((k + 1) * sizeof(Elf64_Phdr)) ? NULL : &phdrs->read[k];
}
