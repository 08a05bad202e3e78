/* SPDX-License-Identifier: Apache-2.0 */
/* Hostile ELF headers, inherited blocks and texts of policies. Part of test_policy.c. */
#ifndef KX_UNIT_POLICY_HOSTILE_H
#define KX_UNIT_POLICY_HOSTILE_H
#include "policy.h"

static inline void lie(const char *name, size_t at, uint64_t value, size_t size, const char *says)
{
	struct lib *l = lib_make("libx.so.1");
	struct policy_image i = image_of(l);
	memcpy((char *)l + at, &value, size);
	int v = ask_at("allow", &i, NOW);
	CHECK(v == POLICY_DENY && strstr(why, says), "%s: %d, %s", name, v, why);
	free(l);
}

#define LIE(m, value, says) lie(#m, AT(m), value, sizeof((struct lib *)0)->m, says)

static inline void test_headers(void)
{
	struct lib *l = lib_make("libx.so.1");
	struct policy_image i = image_of(l);
	OK("allow", &i);
	LIE(eh.e_phnum, 65535, "65535 program headers");
	LIE(eh.e_phnum, 0, "no program headers");
	LIE(eh.e_phoff, -8ull, "truncated");
	LIE(eh.e_phoff, 1ull << 32, "truncated");
	LIE(eh.e_phentsize, 32, "program headers of 32 bytes");
	LIE(eh.e_machine, EM_AARCH64, "64-bit ARM");
	LIE(ph[0].p_filesz, 1ull << 32, "segment 0");
	LIE(ph[0].p_memsz, -1ull, "segment 0");
	LIE(ph[1].p_offset, 1ull << 40, "segment 1");
	LIE(ph[1].p_offset, -4096ull + AT(code) % 4096, "segment 1");
	LIE(ph[1].p_filesz, 1ull << 63, "segment 1");
	LIE(eh.e_phnum, 1000, "truncated");
	LIE(ph[0].p_memsz, 0x11000, "overlaps");
	LIE(ph[0].p_vaddr, 0x20000, "out of order");
	LIE(ph[0].p_align, 3, "alignment");
	LIE(ph[2].p_vaddr, 1ull << 40, "dynamic section has no end");
	LIE(ph[2].p_vaddr, -16ull, "dynamic section has no end");
	LIE(ph[2].p_vaddr, 0x10000 + sizeof l->code + 4096 - 16, "dynamic section has no end");
	LIE(ph[3].p_type, PT_DYNAMIC, "two dynamic sections");
	LIE(dyn[0].d_un.d_ptr, 1ull << 50, "SONAME has no end");
	LIE(dyn[0].d_un.d_ptr, -100ull, "SONAME has no end");
	LIE(dyn[1].d_un.d_val, -1ull, "SONAME has no end");
	LIE(dyn[1].d_un.d_val, 1ull << 32, "SONAME has no end");
	LIE(dyn[2].d_tag, DT_SONAME, "two SONAMEs");
	LIE(dyn[2].d_tag, DT_STRTAB, "two SONAMEs");
	LIE(dyn[0].d_tag, DT_HASH, "SONAME has no end");
	LIE(ph[3].p_offset, -4ull, "notes are after");
	LIE(ph[3].p_filesz, 1ull << 32, "notes are after");
	LIE(note.n_descsz, 0xffffffff, "larger than their segment");
	LIE(note.n_namesz, 0xffffffff, "larger than their segment");
	LIE(note.n_descsz, 0, "build-id");
	/* Notes without end. */
	struct {
		struct lib l;
		Elf64_Nhdr notes[5000];
	} *many = calloc(1, sizeof *many);
	struct lib *one = lib_make("libx.so.1");
	many->l = *one;
	free(one);
	many->l.ph[3].p_offset = offsetof(__typeof__(*many), notes);
	many->l.ph[3].p_filesz = sizeof many->notes;
	struct policy_image n = image_of(&many->l);
	n.size = sizeof *many;
	NO("allow", &n, "more than 4096 notes");
	free(many);
	/* A SONAME of nothing but letters up to the end of what is mapped. */
	memset(l->strings, 'x', sizeof l->strings);
	memset(l->code, 'x', sizeof l->code);
	NO("allow", &i, "SONAME has no end");
	free(l);

	/* What a loader sees at an address is the segment that is mapped last there, not what the header's offset says. */
	l = lib_make("libx.so.1");
	i = image_of(l);
	l->ph[2].p_offset = AT(code);
	OK("allow soname libx.so.1", &i);
	strcpy((char *)l->code, "?libevil.so.1");
	l->ph[0].p_memsz = l->ph[0].p_filesz = AT(strings) & -16ul;
	l->ph[1].p_vaddr = AT(strings);
	l->ph[1].p_offset = AT(code) / 4096 * 4096 + AT(strings);
	l->ph[1].p_filesz = sizeof *l - l->ph[1].p_offset;
	CHECK(l->ph[1].p_offset < sizeof *l, "the test's own numbers");
	(void)ask_at("allow soname libx.so.1", &i, NOW);
	free(l);

	for (int n = 0; n < rounds; n++) {
		struct image_facts f;
		size_t cut = rnd(8) ? sizeof *l : rnd(sizeof *l + 1);
		uint8_t *exact = malloc(cut ? cut : 1);
		struct lib *one = lib_make("libx.so.1");
		uint8_t *b = (uint8_t *)one;
		for (uint32_t k = 1 + rnd(6); k; k--) {
			static const uint64_t with[] = {
				0,          1,          7,          0xff,  0xffff, 0x7fffffff, 0xffffffff,
				1ull << 32, 1ull << 47, 1ull << 63, -1ull, -8ull,  -4096ull,   sizeof(struct lib),
				4096
			};
			size_t at = rnd(AT(code) - 8) & (rnd(4) ? -4u : -1u);
			uint64_t v = rnd(3) ? with[rnd(15)] : (uint64_t)rnd(1u << 31) * rnd(1u << 31);
			memcpy(b + at, &v, rnd(2) ? 8 : rnd(2) ? 4 : 2);
		}
		memcpy(exact, b, cut);
		image_facts(exact, cut, &f);
		CHECK(memchr(f.soname, 0, sizeof f.soname) && memchr(f.wrong, 0, sizeof f.wrong) &&
			      f.build_id_len <= SIGN_BUILD_ID,
		      "round %d", n);
		free(exact);
		free(one);
	}
}

/* What the machine has must pass. */
static inline void test_real(void)
{
	static const char *const dirs[] = { "/usr/lib/x86_64-linux-gnu", "/usr/bin",
					    "/usr/lib/x86_64-linux-gnu/perl-base" };
	unsigned n = 0;
	for (unsigned k = 0; k < 3; k++) {
		DIR *d = opendir(dirs[k]);
		struct dirent *e;
		while (d && (e = readdir(d))) {
			struct stat st;
			struct image_facts f;
			/* What a package manager is just unpacking isn't whole. */
			int fd = strstr(e->d_name, ".dpkg-") ? -1 : openat(dirfd(d), e->d_name, O_RDONLY | O_NONBLOCK);
			if (fd < 0)
				continue;
			if (!fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size > 4) {
				void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
				if (p != MAP_FAILED) {
					image_facts_elf(p, (size_t)st.st_size, &f);
					Elf64_Ehdr *eh = p;
					bool ours = f.elf && st.st_size > 64 && eh->e_ident[EI_CLASS] == ELFCLASS64 &&
						    eh->e_machine == EM_X86_64 &&
						    (eh->e_type == ET_DYN || eh->e_type == ET_EXEC);
					CHECK(!ours || !f.wrong[0], "%s/%s: %s", dirs[k], e->d_name, f.wrong);
					n += ours;
					munmap(p, (size_t)st.st_size);
				}
			}
			close(fd);
		}
		if (d)
			closedir(d);
	}
	CHECK(n > 20, "%u files", n);
	printf("%u ELF files of this machine are sound\n", n);
}

static const char sample[] =
	"# a sample\ndeny sha256 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n"
	"[program /usr/bin/*]\nmode warn\njit allow\nallow soname lib* version >=1.2,<3 not owner 7\n"
	"allow signed-by release,rel* path /usr/** kind library,program\n[family w?b]\nmode off\n"
	"[default]\nallow build-id 00112233 loader /lib64/** writable-by group\ndeny\n";

static inline void use(const struct policy *p, const struct policy_image *i)
{
	struct policy_subject s = subject;
	for (int k = 0; k < 3; k++) {
		policy_active(p, &s);
		policy_needs_bytes(p, &s);
		policy_image_at(p, &s, i, NOW, why);
		CHECK(memchr(why, 0, sizeof why), "a reason");
		policy_anonymous(p, &s, why);
		s.program = k ? "/x" : "/y";
		s.family = k ? NULL : "other";
	}
}

static inline void test_blocks(void)
{
	struct lib *l = lib_make("libx.so.1");
	struct policy_image i = image_of(l);
	struct sign_manifest m;
	uint8_t hash[32] = { 9 };
	size_t len;
	unsigned adopted = 0;
	keyring_reset();
	trust(0, "release", 0, 0);
	trust(1, "rel2", 0, 0);
	ring_revoke(NULL, hash);
	manifest_of(l, &m);
	sign(&m, 0, &i);
	struct policy *p = pol(sample);
	const void *block = policy_block(p, &len);
	struct policy *q = policy_adopt(block, len);
	CHECK(q, "its own block");
	use(q, &i);
	policy_free(q);
	CHECK(!policy_adopt(NULL, 0) && !policy_adopt((const char *)block + 1, len - 1), "nonsense");
	for (size_t cut = 0; cut < len; cut++) {
		void *exact = malloc(cut ? cut : 1);
		memcpy(exact, block, cut);
		if (cut >= 12)
			((struct policy_head *)exact)->len = (uint32_t)cut;
		CHECK(!policy_adopt(exact, cut), "%zu bytes of it", cut);
		free(exact);
	}
	for (int n = 0; n < rounds; n++) {
		uint8_t *exact = malloc(len);
		memcpy(exact, block, len);
		for (uint32_t k = 1 + rnd(4); k; k--) {
			static const uint32_t with[] = { 0,   1,          2,          3,          7, 0xff,
							 256, 0x7fffffff, 0xffffffff, 0xfffffff8, 48 };
			size_t at = rnd(2) ? 8 + rnd(40) / 4 * 4 : rnd((uint32_t)len / 4) * 4;
			uint32_t v = rnd(3) ? with[rnd(11)] : rnd(2) ? rnd(64) : rnd(1u << 31);
			memcpy(exact + at, &v, rnd(4) ? 4 : 1);
		}
		q = policy_adopt(exact, len);
		if (q) {
			adopted++;
			use(q, &i);
			policy_free(q);
		}
		free(exact);
	}
	CHECK(adopted > 10, "%u of %d blocks", adopted, rounds);
	policy_free(p);
	free(l);
	keyring_reset();
}

static inline void count_remark(void *arg, bool error, unsigned line, const char *text)
{
	unsigned *n = arg;
	n[error]++;
	CHECK(line < 100 && *text && !strchr(text, '\n'), "%s", text);
}

static inline void test_texts(void)
{
	struct lib *l = lib_make("libx.so.1");
	struct policy_image i = image_of(l);
	unsigned good = 0, n[2] = { 0, 0 };
	keyring_reset();
	trust(0, "release", 0, 0);
	for (int k = 0; k < rounds / 20; k++) {
		char text[2 * sizeof sample];
		size_t len = sizeof sample - 1;
		struct policy *p;
		struct kx_err err = { 0 };
		memcpy(text, sample, len);
		for (uint32_t c = rnd(6); c; c--) {
			uint32_t at = rnd((uint32_t)len), from = rnd((uint32_t)len), some = rnd(20);
			if (at + some > len || from + some > len)
				continue;
			if (rnd(2))
				memmove(text + at, text + from, some);
			else
				text[at] = "\n\"\\#[] ,*\0a\xff"[rnd(12)];
		}
		file_write("policy", text, len, 0644);
		int r = policy_check(in_dir("policy"), &p, count_remark, n, &err);
		CHECK(r ? !p : !!p, "%d", r);
		if (!r) {
			good++;
			use(p, &i);
			policy_free(p);
		}
	}
	CHECK(good > 10 && n[1] > 10, "%u good, %u errors", good, n[1]);
	n[0] = n[1] = 0;
	struct kx_err err = { 0 };
	struct policy *p;
	const char *w = "[program /a/*]\nallow\ndeny path /x\n[program /a/b]\n[default]\nmode enforce\n";
	file_write("policy", w, strlen(w), 0644);
	CHECK(!policy_check(in_dir("policy"), &p, count_remark, n, &err) && n[0] == 4 && !n[1], "%u remarks", n[0]);
	policy_free(p);
	free(l);
	keyring_reset();
}

#endif
