/* SPDX-License-Identifier: Apache-2.0 */
#include "sign.h"
#include <elf.h>
#include <errno.h>
#include <sodium/crypto_sign_ed25519.h>
#include <sodium/utils.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../util/sha256.h"
#include "elf.h"

#define DYN_MAX 4096   /* entries of a dynamic section; usual are under 50 */
#define NOTES_MAX 4096 /* of a file; usual are under 10 */

/* ---- what a file says of itself --------------------------------------------------------------------------------- */

struct view {
	const uint8_t *bytes;
	size_t size;
	struct elf_image im;
};

static int64_t view_pread(void *ctx, void *buf, size_t len, uint64_t off)
{
	const struct view *v = ctx;
	if (off >= v->size)
		return 0;
	if (len > v->size - off)
		len = v->size - (size_t)off;
	memcpy(buf, v->bytes + off, len);
	return (int64_t)len;
}

/* The byte of the file that a loader puts at an address: whole pages are mapped, later segments over earlier ones. */
static bool view_at(const struct view *v, uint64_t vaddr, uint64_t *off)
{
	for (uint32_t i = v->im.nr_seg; i--;) {
		const struct elf_segment *g = &v->im.seg[i];
		uint64_t page = g->vaddr & -ELF_PAGE, end = g->vaddr + g->filesz;
		if (!g->filesz || vaddr < page || vaddr >= ((end + ELF_PAGE - 1) & -ELF_PAGE))
			continue;
		if (vaddr >= end && g->memsz > g->filesz)
			return false; /* zeroed */
		*off = (g->off & -ELF_PAGE) + (vaddr - page);
		return *off < v->size;
	}
	return false;
}

static bool view_read(const struct view *v, uint64_t vaddr, void *out, size_t len)
{
	for (uint8_t *o = out; len; len--, vaddr++) {
		uint64_t off;
		if (!view_at(v, vaddr, &off))
			return false;
		*o++ = v->bytes[off];
	}
	return true;
}

#define WRONG(f, ...) snprintf((f)->wrong, sizeof(f)->wrong, __VA_ARGS__)

static void read_dynamic(const struct view *v, uint64_t vaddr, struct image_facts *f)
{
	uint64_t strtab = 0, name = 0;
	unsigned nr_strtab = 0, nr_name = 0, i;
	for (i = 0; i < DYN_MAX; i++) {
		Elf64_Dyn d;
		if (!view_read(v, vaddr + i * sizeof d, &d, sizeof d)) {
			WRONG(f, "its dynamic section has no end in the file");
			return;
		}
		if (d.d_tag == DT_NULL)
			break;
		if (d.d_tag == DT_STRTAB) {
			strtab = d.d_un.d_ptr;
			nr_strtab++;
		} else if (d.d_tag == DT_SONAME) {
			name = d.d_un.d_val;
			nr_name++;
		}
	}
	if (i == DYN_MAX)
		WRONG(f, "its dynamic section has more than %d entries", DYN_MAX);
	else if (nr_name > 1 || nr_strtab > 1)
		WRONG(f, "it has two SONAMEs or string tables");
	if (f->wrong[0] || !nr_name)
		return;
	for (i = 0; nr_strtab && name <= UINT32_MAX && i < sizeof f->soname; i++) {
		if (!view_read(v, strtab + name + i, &f->soname[i], 1))
			break;
		if (!f->soname[i])
			return;
	}
	f->soname[0] = 0;
	WRONG(f, "its SONAME has no end");
}

static void read_notes(const struct view *v, const Elf64_Phdr *ph, unsigned *left, struct image_facts *f)
{
	uint64_t at = ph->p_offset, end, align = ph->p_align == 8 ? 8 : 4;
	if (__builtin_add_overflow(at, ph->p_filesz, &end) || end > v->size) {
		WRONG(f, "its notes are after the end of the file");
		return;
	}
	while (end - at >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr n;
		if (!--*left) {
			WRONG(f, "it has more than %d notes", NOTES_MAX);
			return;
		}
		memcpy(&n, v->bytes + at, sizeof n);
		at += sizeof n;
		uint64_t name = ((uint64_t)n.n_namesz + align - 1) & -align, desc = n.n_descsz;
		if (align == 8) /* the header's 12 bytes count, too */
			name = ((sizeof n + (uint64_t)n.n_namesz + 7) & -8ull) - sizeof n;
		if (name > end - at || desc > end - at - name) {
			WRONG(f, "one of its notes is larger than their segment");
			return;
		}
		const uint8_t *d = v->bytes + at + name;
		if (n.n_type == NT_GNU_BUILD_ID && n.n_namesz == 4 && !memcmp(v->bytes + at, "GNU", 4)) {
			if (!desc || desc > SIGN_BUILD_ID ||
			    (f->build_id_len && (f->build_id_len != desc || memcmp(f->build_id, d, desc)))) {
				WRONG(f, "it has several build-ids, or one of %llu bytes", (unsigned long long)desc);
				return;
			}
			memcpy(f->build_id, d, desc);
			f->build_id_len = (uint32_t)desc;
		}
		desc = (desc + align - 1) & -align;
		at += name + desc < end - at ? name + desc : end - at;
	}
}

static void read_headers(struct view *v, struct image_facts *f)
{
	struct kx_err err = { 0 };
	unsigned nr_dynamic = 0, notes_left = NOTES_MAX;
	uint64_t dynamic = 0;
	if (!elf_parse(v->bytes, v->size < 64 ? v->size : 64, v->size, &v->im, &err)) {
		v->im.interp[0] = '?'; /* the name isn't looked at here, nor the entry, which libraries need not have */
		elf_parse_phdrs(&v->im, view_pread, v, &err);
	}
	if (err.code) {
		WRONG(f, "%.*s", (int)strcspn(err.msg, "("), err.msg);
		for (size_t n = strlen(f->wrong); n && f->wrong[n - 1] == ' ';)
			f->wrong[--n] = 0;
		return;
	}
	for (uint32_t i = 0; i < v->im.phnum && !f->wrong[0]; i++) {
		Elf64_Phdr ph;
		memcpy(&ph, v->bytes + v->im.phoff + i * sizeof ph, sizeof ph);
		if (ph.p_type == PT_NOTE)
			read_notes(v, &ph, &notes_left, f);
		if (ph.p_type != PT_DYNAMIC)
			continue;
		dynamic = ph.p_vaddr;
		if (nr_dynamic++)
			WRONG(f, "it has two dynamic sections");
	}
	if (nr_dynamic && !f->wrong[0])
		read_dynamic(v, dynamic, f);
}

void image_facts_elf(const void *bytes, size_t size, struct image_facts *f)
{
	memset(f, 0, sizeof *f);
	f->size = size;
	if (size < SELFMAG || memcmp(bytes, ELFMAG, SELFMAG))
		return;
	f->elf = 1;
	struct view *v = malloc(sizeof *v);
	if (!v) {
		WRONG(f, "no memory to look at it: free some, and try again");
		return;
	}
	v->bytes = bytes;
	v->size = size;
	read_headers(v, f);
	free(v);
}

void image_facts(const void *bytes, size_t size, struct image_facts *f)
{
	image_facts_elf(bytes, size, f);
	sha256(f->sha256, bytes, size);
}

/* ---- versions --------------------------------------------------------------------------------------------------- */

static bool version_char(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' || c == '_' ||
	       c == '+' || c == '-';
}

bool version_valid(const char *v)
{
	size_t n = 0;
	if (*v < '0' || *v > '9')
		return false;
	while (version_char(v[n]))
		n++;
	return !v[n] && n < SIGN_VERSION;
}

static bool take_version(const char *from, size_t n, char out[SIGN_VERSION])
{
	out[0] = 0;
	if (!n || n >= SIGN_VERSION)
		return false;
	memcpy(out, from, n);
	out[n] = 0;
	if (version_valid(out))
		return true;
	out[0] = 0;
	return false;
}

void version_of_names(const char *soname, const char *path, char out[SIGN_VERSION])
{
	const char *base = path && strrchr(path, '/') ? strrchr(path, '/') + 1 : path ? path : "", *so;
	size_t n = strlen(soname);
	if ((so = strstr(soname, ".so.")) && take_version(so + 4, strlen(so + 4), out)) {
		char more[SIGN_VERSION];
		if (!strncmp(base, soname, n) && base[n] == '.' && (so = strstr(base, ".so.")) &&
		    take_version(so + 4, strlen(so + 4), more))
			memcpy(out, more, sizeof more);
		return;
	}
	if ((so = strstr(base, ".so.")) && take_version(so + 4, strlen(so + 4), out))
		return;
	n = strlen(base);
	if (n > 3 && !strcmp(base + n - 3, ".so"))
		for (const char *d = base; (d = strchr(d, '-')); d++)
			if (take_version(d + 1, (size_t)(base + n - 3 - d - 1), out))
				return;
	out[0] = 0;
}

static int compare_number(const char **a, const char **b)
{
	size_t n, m;
	while (**a == '0')
		++*a;
	while (**b == '0')
		++*b;
	n = strspn(*a, "0123456789");
	m = strspn(*b, "0123456789");
	int r = n != m ? (n < m ? -1 : 1) : strncmp(*a, *b, n);
	*a += n;
	*b += m;
	return r;
}

int version_compare(const char *a, const char *b)
{
	while (*a || *b) {
		int r = compare_number(&a, &b);
		if (r)
			return r < 0 ? -1 : 1;
		size_t n = strcspn(a, "."), m = strcspn(b, ".");
		r = strncmp(a, b, n < m ? n : m);
		if (!r && n != m)
			r = n < m ? -1 : 1;
		if (r)
			return r < 0 ? -1 : 1;
		a += n;
		b += m;
		a += *a == '.';
		b += *b == '.';
	}
	return 0;
}

/* ---- signatures ------------------------------------------------------------------------------------------------- */

void hex_put(const uint8_t *bytes, size_t n, char *out)
{
	static const char digits[] = "0123456789abcdef";
	for (size_t i = 0; i < n; i++) {
		*out++ = digits[bytes[i] >> 4];
		*out++ = digits[bytes[i] & 15];
	}
	*out = 0;
}

bool hex_get(const char *s, size_t digits, uint8_t *out, size_t n)
{
	if (digits != 2 * n)
		return false;
	for (size_t i = 0; i < digits; i++) {
		int d = s[i] >= '0' && s[i] <= '9' ? s[i] - '0' : s[i] >= 'a' && s[i] <= 'f' ? s[i] - 'a' + 10 : -1;
		if (d < 0)
			return false;
		out[i / 2] = (uint8_t)(i % 2 ? out[i / 2] | d : d << 4);
	}
	return true;
}

void sign_key_id(const uint8_t pub[SIGN_PUBLIC], uint8_t id[SIGN_ID])
{
	uint8_t hash[SIGN_HASH];
	sha256(hash, pub, SIGN_PUBLIC);
	memcpy(id, hash, SIGN_ID);
}

/* The value of the line that starts with key and a space; NULL: it is not that line. Moves *at behind it. */
static const char *take_line(const char **at, const char *end, const char *key, size_t *len)
{
	size_t k = strlen(key);
	const char *p = *at, *nl = memchr(p, '\n', (size_t)(end - p));
	if (!nl || (size_t)(nl - p) < k + 2 || memcmp(p, key, k) || p[k] != ' ')
		return NULL;
	*at = nl + 1;
	*len = (size_t)(nl - p) - k - 1;
	for (const char *c = p + k + 1; c < nl; c++)
		if (*c <= ' ' || *c > '~')
			return NULL;
	return p + k + 1;
}

bool line_text(const char **at, const char *end, const char *key, char *out, size_t size)
{
	size_t n;
	const char *s = take_line(at, end, key, &n);
	if (!s || n >= size)
		return false;
	if (n == 1 && *s == '-')
		n = 0;
	memcpy(out, s, n);
	out[n] = 0;
	return true;
}

bool line_hex(const char **at, const char *end, const char *key, uint8_t *out, size_t len)
{
	size_t n;
	const char *s = take_line(at, end, key, &n);
	return s && hex_get(s, n, out, len);
}

bool line_number(const char **at, const char *end, const char *key, uint64_t *out)
{
	size_t n;
	const char *s = take_line(at, end, key, &n);
	if (!s || n > 18 || (n > 1 && *s == '0'))
		return false;
	for (*out = 0; n; n--, s++) {
		if (*s < '0' || *s > '9')
			return false;
		*out = *out * 10 + (uint64_t)(*s - '0');
	}
	return true;
}

int sign_parse(const void *bytes, size_t size, struct sign_manifest *m, char why[SIGN_WHY])
{
	const char *at = bytes, *end = at + size;
	char id[2 * SIGN_BUILD_ID + 1];
	uint64_t format, time, expires;
	memset(m, 0, sizeof *m);
	if (!size || size > SIGN_MAX || !line_number(&at, end, "kylinx-signature", &format)) {
		snprintf(why, SIGN_WHY, "its signature file is none");
		return -EBADMSG;
	}
	if (format != 1) {
		snprintf(why, SIGN_WHY, "its signature has format %llu, not 1", (unsigned long long)format);
		return -EBADMSG;
	}
	bool ok = line_text(&at, end, "soname", m->soname, sizeof m->soname) &&
		  line_text(&at, end, "version", m->version, sizeof m->version) &&
		  (!m->version[0] || version_valid(m->version)) && line_text(&at, end, "build-id", id, sizeof id);
	m->build_id_len = ok ? (uint32_t)(strlen(id) / 2) : 0;
	ok = ok && hex_get(id, strlen(id), m->build_id, m->build_id_len) &&
	     line_hex(&at, end, "sha256", m->sha256, sizeof m->sha256) && line_number(&at, end, "size", &m->size) &&
	     line_hex(&at, end, "key", m->key, sizeof m->key) && line_number(&at, end, "time", &time) &&
	     line_number(&at, end, "expires", &expires);
	m->signed_len = (size_t)(at - (const char *)bytes);
	if (!ok || !line_hex(&at, end, "signature", m->signature, sizeof m->signature) || at != end) {
		snprintf(why, SIGN_WHY, "its signature file is damaged");
		return -EBADMSG;
	}
	m->time = (int64_t)time;
	m->expires = (int64_t)expires;
	return 0;
}

bool sign_key_usable(const struct sign_key *k, int64_t now, char why[SIGN_WHY])
{
	if (k->revoked)
		snprintf(why, SIGN_WHY, "its key %s is revoked", k->name);
	else if (k->from && now < k->from)
		snprintf(why, SIGN_WHY, "its key %s is not valid yet", k->name);
	else if (k->expires && now >= k->expires)
		snprintf(why, SIGN_WHY, "its key %s has expired", k->name);
	else
		return true;
	return false;
}

static const char *lie(const struct sign_manifest *m, const struct image_facts *f)
{
	if (m->size != f->size)
		return "size";
	if (sodium_memcmp(m->sha256, f->sha256, sizeof m->sha256))
		return "content";
	if (strcmp(m->soname, f->soname))
		return "SONAME";
	if (m->build_id_len != f->build_id_len || memcmp(m->build_id, f->build_id, m->build_id_len))
		return "build-id";
	return NULL;
}

int sign_check(const struct sign_manifest *m, const void *bytes, const struct sign_key *k, const struct image_facts *f,
	       int64_t now, char why[SIGN_WHY])
{
	const char *what;
	if (!sign_key_usable(k, now, why))
		return -EKEYREJECTED;
	if (memcmp(m->key, k->id, sizeof m->key) ||
	    crypto_sign_ed25519_verify_detached(m->signature, bytes, m->signed_len, k->pub))
		snprintf(why, SIGN_WHY, "its signature is not by key %s", k->name);
	else if ((what = lie(m, f)))
		snprintf(why, SIGN_WHY, "its %s is not what key %s has signed", what, k->name);
	else if (m->expires && now >= m->expires)
		snprintf(why, SIGN_WHY, "its signature by %s has expired", k->name);
	else if (m->time > now + SIGN_SKEW || (k->from && m->time < k->from) || (k->expires && m->time >= k->expires))
		snprintf(why, SIGN_WHY, "its signature was not made while key %s was valid", k->name);
	else
		return 0;
	return -EKEYREJECTED;
}

int sign_write(struct sign_manifest *m, const uint8_t seed[SIGN_SEED], char out[SIGN_MAX])
{
	uint8_t pub[SIGN_PUBLIC], secret[64];
	char id[2 * SIGN_BUILD_ID + 1], hash[2 * SIGN_HASH + 1], key[2 * SIGN_ID + 1], why[SIGN_WHY];
	struct sign_manifest again;
	crypto_sign_ed25519_seed_keypair(pub, secret, seed);
	sign_key_id(pub, m->key);
	hex_put(m->build_id, m->build_id_len, id);
	hex_put(m->sha256, sizeof m->sha256, hash);
	hex_put(m->key, sizeof m->key, key);
	int n = snprintf(out, SIGN_MAX,
			 "kylinx-signature 1\nsoname %s\nversion %s\nbuild-id %s\nsha256 %s\nsize %llu\nkey %s\n"
			 "time %lld\nexpires %lld\n",
			 m->soname[0] ? m->soname : "-", m->version[0] ? m->version : "-", id[0] ? id : "-", hash,
			 (unsigned long long)m->size, key, (long long)m->time, (long long)m->expires);
	m->signed_len = (size_t)n;
	crypto_sign_ed25519_detached(m->signature, NULL, (const uint8_t *)out, (unsigned long long)n, secret);
	sodium_memzero(secret, sizeof secret);
	memcpy(out + n, "signature ", 10);
	hex_put(m->signature, sizeof m->signature, out + n + 10);
	n += 10 + 2 * (int)sizeof m->signature;
	out[n++] = '\n';
	/* What is written must be read as the same. */
	if (sign_parse(out, (size_t)n, &again, why) || strcmp(again.soname, m->soname) ||
	    strcmp(again.version, m->version))
		return -EINVAL;
	return n;
}
