/* SPDX-License-Identifier: Apache-2.0 */
/* Site patcher: ranges of the functions of an ELF file, by its unwind tables and symbols. */
#include "patch_priv.h"

#include <elf.h>

enum { IMG_LOADS_MAX = 64 };

struct img {
	const uint8_t *p;
	size_t len;
	Elf64_Phdr load[IMG_LOADS_MAX];
	unsigned n_loads;
	uint64_t exec_bytes;
	struct patch_range *fn;
	unsigned n, cap;
	uint64_t cie_at; /* vaddr of the CIE parsed last (+1), and the pointer encoding it gives */
	uint8_t cie_enc;
	bool cie_signal; /* that CIE is of a signal frame */
};

/* Cursor over file bytes that are at most `left` long; bad is sticky. */
struct cur {
	const uint8_t *p;
	size_t left;
	uint64_t vaddr;
	bool bad;
};

static uint64_t cur_get(struct cur *c, unsigned n)
{
	uint64_t v = 0;

	if (c->left < n) {
		c->bad = true;
		c->left = 0;
		return 0;
	}
	memcpy(&v, c->p, n);
	c->p += n;
	c->left -= n;
	c->vaddr += n;
	return v;
}

static void cur_leb(struct cur *c)
{
	for (int i = 0; i < 10 && cur_get(c, 1) & 0x80; i++)
		;
}

/* DW_EH_PE_* value; only fixed sizes, absolute or pc-relative. */
static uint64_t cur_ptr(struct cur *c, uint8_t enc, bool apply)
{
	uint64_t at = c->vaddr, v;

	switch (enc & 0x0f) {
	case 0x00:
	case 0x04:
	case 0x0c:
		v = cur_get(c, 8);
		break;
	case 0x02:
		v = cur_get(c, 2);
		break;
	case 0x03:
		v = cur_get(c, 4);
		break;
	case 0x0a:
		v = (uint64_t)(int16_t)cur_get(c, 2);
		break;
	case 0x0b:
		v = (uint64_t)(int32_t)cur_get(c, 4);
		break;
	default:
		c->bad = true;
		return 0;
	}
	if (!apply || !(enc & 0x70))
		return v;
	if ((enc & 0xf0) != 0x10)
		c->bad = true;
	return at + v;
}

/* File bytes behind vaddr, up to the end of their segment. */
static bool img_at(const struct img *im, uint64_t vaddr, struct cur *c)
{
	for (unsigned i = 0; i < im->n_loads; i++) {
		const Elf64_Phdr *ph = &im->load[i];

		if (vaddr >= ph->p_vaddr && vaddr - ph->p_vaddr < ph->p_filesz) {
			uint64_t off = vaddr - ph->p_vaddr;

			*c = (struct cur){ im->p + ph->p_offset + off, ph->p_filesz - off, vaddr, false };
			return true;
		}
	}
	return false;
}

static bool img_exec(const struct img *im, uint64_t vaddr, uint64_t *end)
{
	for (unsigned i = 0; i < im->n_loads; i++) {
		const Elf64_Phdr *ph = &im->load[i];

		if ((ph->p_flags & PF_X) && vaddr >= ph->p_vaddr && vaddr - ph->p_vaddr < ph->p_filesz) {
			*end = ph->p_vaddr + ph->p_filesz;
			return true;
		}
	}
	return false;
}

/* end = 0: up to the next function. Ranges outside executable segments are dropped, and all beyond RANGES_MAX. */
static int range_add(struct img *im, uint64_t start, uint64_t end, uint32_t flags)
{
	uint64_t seg_end;

	if (im->n >= RANGES_MAX || !img_exec(im, start, &seg_end) || (end && end <= start))
		return 0;
	if (!end || end > seg_end)
		end = seg_end;
	if (im->n == im->cap && patch_grow(&im->fn, &im->cap, sizeof(*im->fn)))
		return -ENOMEM;
	im->fn[im->n++] = (struct patch_range){ start, end, flags };
	return 0;
}

/* Pointer encoding that the CIE at vaddr gives its FDEs; false = not understood. */
static bool cie_parse(struct img *im, struct cur c, uint8_t *enc)
{
	char text[17], *aug = text; /* a copy: the file may be written to meanwhile */
	uint64_t at = c.vaddr;
	uint32_t size;
	uint8_t version;
	bool signal_frame;

	if (im->cie_at == at + 1) {
		*enc = im->cie_enc;
		return true;
	}
	size = cur_get(&c, 4);
	if (size > c.left || size < 5)
		return false;
	c.left = size;
	if (cur_get(&c, 4) != 0)
		return false;
	version = cur_get(&c, 1);
	if (version != 1 && version != 3)
		return false;
	for (unsigned n = 0; (text[n] = (char)cur_get(&c, 1)); n++)
		if (n == 15)
			return false;
	if (c.bad)
		return false;
	cur_leb(&c);
	cur_leb(&c);
	if (version == 1)
		cur_get(&c, 1);
	else
		cur_leb(&c);
	*enc = 0;
	signal_frame = *aug == 'z' && strchr(aug, 'S');
	if (*aug == 'z') {
		cur_leb(&c);
		for (aug++; *aug && !c.bad; aug++) {
			if (*aug == 'R') {
				*enc = cur_get(&c, 1);
				break;
			}
			if (*aug == 'L') {
				cur_get(&c, 1);
			} else if (*aug == 'P') {
				uint8_t e = cur_get(&c, 1);

				cur_ptr(&c, e, false);
			} else if (*aug != 'S' && *aug != 'B') {
				return false;
			}
		}
	} else if (*aug) {
		return false;
	}
	if (c.bad)
		return false;
	im->cie_at = at + 1;
	im->cie_enc = *enc;
	im->cie_signal = signal_frame;
	return true;
}

/* c is at an FDE (sect: bounds of its surroundings, for the CIE). Adds its range; anything odd is skipped. */
static int fde_parse(struct img *im, const struct cur *sect, struct cur c)
{
	struct cur cie;
	uint64_t start, range, id_at;
	uint32_t size = cur_get(&c, 4), id;
	uint8_t enc;

	if (c.bad || size < 4 || size > c.left)
		return 0;
	c.left = size;
	id_at = c.vaddr;
	id = cur_get(&c, 4);
	if (!id)
		return 0;
	if (sect) {
		if (id > id_at - sect->vaddr)
			return 0;
		cie = *sect;
		cie.p += id_at - id - sect->vaddr;
		cie.left -= id_at - id - sect->vaddr;
		cie.vaddr = id_at - id;
	} else if (!img_at(im, id_at - id, &cie)) {
		return 0;
	}
	if (!cie_parse(im, cie, &enc))
		return 0;
	start = cur_ptr(&c, enc, true);
	range = cur_ptr(&c, enc, false);
	if (c.bad || start + range < start || !range)
		return 0;
	/* A signal trampoline's entry covers the byte before it, since unwinders look up the return address less one:
	 * that byte belongs to no instruction of this function. */
	if (im->cie_signal && range > 1) {
		start++;
		range--;
	}
	return range_add(im, start, start + range, PATCH_FN_UNWIND);
}

/* .eh_frame_hdr with the table that every linker writes (datarel sdata4). */
static int hints_eh_frame_hdr(struct img *im, uint64_t vaddr)
{
	struct cur c, fde;
	uint64_t n;
	uint8_t ptr_enc;

	if (!img_at(im, vaddr, &c) || cur_get(&c, 1) != 1)
		return 0;
	ptr_enc = cur_get(&c, 1);
	if (cur_get(&c, 1) != 0x03 || cur_get(&c, 1) != 0x3b)
		return 0;
	cur_ptr(&c, ptr_enc, true);
	n = cur_get(&c, 4);
	if (c.bad || n > c.left / 8 || n > RANGES_MAX)
		return 0;
	while (n--) {
		int err;

		cur_get(&c, 4);
		if (!img_at(im, vaddr + (uint64_t)(int32_t)cur_get(&c, 4), &fde))
			continue;
		err = fde_parse(im, NULL, fde);
		if (err)
			return err;
	}
	return 0;
}

/* A whole .eh_frame in order. */
static int hints_eh_frame(struct img *im, struct cur sect)
{
	struct cur c = sect;

	while (c.left >= 4) {
		struct cur at = c;
		uint32_t size = cur_get(&c, 4);
		int err;

		if (size > c.left) /* also the 64-bit form, which nobody uses here */
			break;
		err = size ? fde_parse(im, &sect, at) : 0;
		if (err)
			return err;
		c.p += size;
		c.left -= size;
		c.vaddr += size;
	}
	return 0;
}

static int hints_syms(struct img *im, struct cur c)
{
	while (c.left >= sizeof(Elf64_Sym)) {
		Elf64_Sym sym;
		int err;

		memcpy(&sym, c.p, sizeof(sym));
		c.p += sizeof(sym);
		c.left -= sizeof(sym);
		if (ELF64_ST_TYPE(sym.st_info) != STT_FUNC || sym.st_shndx == SHN_UNDEF ||
		    sym.st_value + sym.st_size < sym.st_value)
			continue;
		err = range_add(im, sym.st_value, sym.st_size ? sym.st_value + sym.st_size : 0, 0);
		if (err)
			return err;
	}
	return 0;
}

/* .dynsym by way of PT_DYNAMIC, for files without section headers: DT_HASH tells its length, else DT_STRTAB. */
static int hints_dynamic(struct img *im, uint64_t vaddr)
{
	struct cur c, t;
	uint64_t sym = 0, str = 0, hash = 0, n = 0;

	if (!img_at(im, vaddr, &c))
		return 0;
	while (c.left >= 16) {
		uint64_t tag = cur_get(&c, 8), val = cur_get(&c, 8);

		if (tag == DT_NULL)
			break;
		if (tag == DT_SYMTAB)
			sym = val;
		else if (tag == DT_STRTAB)
			str = val;
		else if (tag == DT_HASH)
			hash = val;
	}
	if (!sym || !img_at(im, sym, &t))
		return 0;
	if (hash && img_at(im, hash + 4, &c))
		n = cur_get(&c, 4);
	else if (str > sym)
		n = (str - sym) / sizeof(Elf64_Sym);
	if (n < t.left / sizeof(Elf64_Sym))
		t.left = n * sizeof(Elf64_Sym);
	return hints_syms(im, t);
}

enum { SECT_EH_FRAME, SECT_SYMS };

/* Section headers: what = which tables to read. Returns the number of tables seen or -errno. */
static int hints_sections(struct img *im, const Elf64_Ehdr *eh, int what)
{
	Elf64_Shdr sh, str;
	int seen = 0;

	if (eh->e_shentsize != sizeof(sh) || !eh->e_shoff || eh->e_shoff > im->len ||
	    eh->e_shnum > (im->len - eh->e_shoff) / sizeof(sh) || eh->e_shstrndx >= eh->e_shnum)
		return 0;
	memcpy(&str, im->p + eh->e_shoff + eh->e_shstrndx * sizeof(sh), sizeof(str));
	for (unsigned i = 0; i < eh->e_shnum; i++) {
		struct cur c;
		int err;

		memcpy(&sh, im->p + eh->e_shoff + i * sizeof(sh), sizeof(sh));
		if (sh.sh_type == SHT_NOBITS || sh.sh_offset > im->len || sh.sh_size > im->len - sh.sh_offset)
			continue;
		c = (struct cur){ im->p + sh.sh_offset, sh.sh_size, sh.sh_addr, false };
		if (what == SECT_SYMS) {
			if (sh.sh_type != SHT_SYMTAB && sh.sh_type != SHT_DYNSYM)
				continue;
			err = hints_syms(im, c);
		} else {
			static const char name[] = ".eh_frame";

			if (str.sh_offset > im->len || sh.sh_name > im->len - str.sh_offset ||
			    im->len - str.sh_offset - sh.sh_name < sizeof(name) ||
			    memcmp(im->p + str.sh_offset + sh.sh_name, name, sizeof(name)) != 0)
				continue;
			err = hints_eh_frame(im, c);
		}
		if (err)
			return err;
		if (++seen == 4) /* more tables than a linker writes: the file plays games */
			break;
	}
	return seen;
}

static int range_cmp(const void *a, const void *b)
{
	const struct patch_range *x = a, *y = b;

	if (x->start != y->start)
		return x->start < y->start ? -1 : 1;
	return x->flags != y->flags ? (x->flags > y->flags ? -1 : 1) : x->end > y->end ? -1 : x->end < y->end;
}

/* Sort, one range per start, each cut at the next. Returns the bytes covered. */
static uint64_t ranges_settle(struct img *im)
{
	uint64_t covered = 0;
	unsigned n = 0;

	for (unsigned i = 1; i < im->n; i++)
		if (range_cmp(&im->fn[i - 1], &im->fn[i]) > 0) {
			qsort(im->fn, im->n, sizeof(*im->fn), range_cmp);
			break;
		}
	for (unsigned i = 0; i < im->n; i++) {
		if (n && im->fn[n - 1].start == im->fn[i].start)
			continue;
		if (n && im->fn[n - 1].end > im->fn[i].start)
			im->fn[n - 1].end = im->fn[i].start;
		im->fn[n++] = im->fn[i];
	}
	im->n = n;
	for (unsigned i = 0; i < n; i++)
		covered += im->fn[i].end - im->fn[i].start;
	return covered;
}

static int hints_collect(struct img *im, const Elf64_Ehdr *eh, uint64_t eh_hdr, uint64_t dynamic)
{
	int err = 0;

	if (eh_hdr)
		err = hints_eh_frame_hdr(im, eh_hdr);
	if (!err && !im->n)
		err = hints_sections(im, eh, SECT_EH_FRAME);
	if (err < 0 || ranges_settle(im) > im->exec_bytes / 2)
		return err < 0 ? err : 0;
	err = hints_sections(im, eh, SECT_SYMS);
	if (!err && dynamic)
		err = hints_dynamic(im, dynamic);
	ranges_settle(im);
	return err < 0 ? err : 0;
}

/* From the first to the last executable section, when the file has a section table. */
static void code_sections(const uint8_t *file, size_t len, const Elf64_Ehdr *eh, uint64_t bias, struct patch_hints *out)
{
	uint64_t lo = UINT64_MAX, hi = 0;

	if (!eh->e_shnum || eh->e_shentsize != sizeof(Elf64_Shdr) || eh->e_shoff > len ||
	    eh->e_shnum > (len - eh->e_shoff) / sizeof(Elf64_Shdr))
		return;
	for (unsigned i = 0; i < eh->e_shnum; i++) {
		Elf64_Shdr sh;

		memcpy(&sh, file + eh->e_shoff + i * sizeof(sh), sizeof(sh));
		if (!(sh.sh_flags & SHF_EXECINSTR) || !sh.sh_size || sh.sh_addr + sh.sh_size < sh.sh_addr)
			continue;
		lo = sh.sh_addr < lo ? sh.sh_addr : lo;
		hi = sh.sh_addr + sh.sh_size > hi ? sh.sh_addr + sh.sh_size : hi;
	}
	if (lo < hi) {
		out->code_start = lo + bias;
		out->code_end = hi + bias;
	}
}

int patch_hints_from_elf(const uint8_t *file, size_t len, uint64_t load_bias, struct patch_hints *out)
{
	struct img im = { .p = file, .len = len };
	uint64_t eh_hdr = 0, dynamic = 0;
	Elf64_Ehdr eh;
	int err;

	*out = (struct patch_hints){ 0 };
	if (len < sizeof(eh))
		return -ENOEXEC;
	memcpy(&eh, file, sizeof(eh));
	if (memcmp(eh.e_ident, ELFMAG, SELFMAG) != 0 || eh.e_ident[EI_CLASS] != ELFCLASS64 ||
	    eh.e_ident[EI_DATA] != ELFDATA2LSB || eh.e_machine != EM_X86_64)
		return -ENOEXEC;
	if (eh.e_phentsize != sizeof(Elf64_Phdr) || eh.e_phoff > len ||
	    eh.e_phnum > (len - eh.e_phoff) / sizeof(Elf64_Phdr))
		return -ENOEXEC;
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		Elf64_Phdr ph;

		memcpy(&ph, file + eh.e_phoff + i * sizeof(ph), sizeof(ph));
		if (ph.p_type == PT_GNU_EH_FRAME)
			eh_hdr = ph.p_vaddr;
		else if (ph.p_type == PT_DYNAMIC)
			dynamic = ph.p_vaddr;
		if (ph.p_type != PT_LOAD || im.n_loads == IMG_LOADS_MAX || ph.p_offset > len ||
		    ph.p_filesz > len - ph.p_offset || ph.p_vaddr >= 1ull << 47)
			continue;
		im.load[im.n_loads++] = ph;
		if (ph.p_flags & PF_X)
			im.exec_bytes += ph.p_filesz;
	}
	err = hints_collect(&im, &eh, eh_hdr, dynamic);
	code_sections(file, len, &eh, load_bias, out);
	if (err || !im.n) {
		free(im.fn);
		return err;
	}
	for (unsigned i = 0; i < im.n; i++) {
		im.fn[i].start += load_bias;
		im.fn[i].end += load_bias;
	}
	out->fn = im.fn;
	out->n = im.n;
	return 0;
}

void patch_hints_free(struct patch_hints *hints)
{
	free(hints->fn);
	*hints = (struct patch_hints){ 0 };
}
