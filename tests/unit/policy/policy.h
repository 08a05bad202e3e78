/* SPDX-License-Identifier: Apache-2.0 */
/* Libraries, questions and keys, which all parts use. Part of test_policy.c. */
#ifndef KX_UNIT_POLICY_POLICY_H
#define KX_UNIT_POLICY_POLICY_H
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sodium/crypto_hash_sha256.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "../../../monitor/core/keys.h"
#include "../../../monitor/core/policy_priv.h"
#include "../../../monitor/core/policy_read.h"
#include "../../../util/sha256.h"
#include "../check.h"

static char dir[] = "/tmp/kx-test-policy-XXXXXX";
static uint64_t seed = 1;
static int rounds = 20000;
#define NOW 1800000000ll

static inline uint32_t rnd(uint32_t n)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)((seed >> 33) % n);
}

static inline char *in_dir(const char *name)
{
	static char path[8][256];
	static int i;
	i = (i + 1) % 8;
	snprintf(path[i], sizeof path[i], "%s/%s", dir, name);
	return path[i];
}

static inline void file_write(const char *name, const void *data, size_t len, mode_t mode)
{
	char *path = in_dir(name);
	unlink(path);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, mode);
	CHECK(fd >= 0 && write(fd, data, len) == (ssize_t)len && !fchmod(fd, mode), "%s", path);
	close(fd);
}

/* ---- a library -------------------------------------------------------------------------------------------------- */

struct lib {
	Elf64_Ehdr eh;
	Elf64_Phdr ph[4]; /* text, data; dynamic; notes */
	Elf64_Dyn dyn[4];
	Elf64_Nhdr note;
	char gnu[4];
	uint8_t build_id[20];
	char strings[128];
	uint8_t code[4096];
};
#define AT(m) offsetof(struct lib, m)

static inline struct lib *lib_make(const char *soname)
{
	struct lib *l = calloc(1, sizeof *l);
	memcpy(l->eh.e_ident, ELFMAG "\2\1\1", 7);
	l->eh.e_type = ET_DYN;
	l->eh.e_machine = EM_X86_64;
	l->eh.e_version = EV_CURRENT;
	l->eh.e_phoff = AT(ph);
	l->eh.e_phentsize = sizeof l->ph[0];
	l->eh.e_phnum = 4;
	l->ph[0] = (Elf64_Phdr){
		.p_type = PT_LOAD, .p_flags = PF_R | PF_X, .p_filesz = AT(code), .p_memsz = AT(code), .p_align = 4096
	};
	l->ph[1] = (Elf64_Phdr){ .p_type = PT_LOAD,
				 .p_flags = PF_R | PF_W,
				 .p_vaddr = 0x10000 + AT(code) % 4096,
				 .p_offset = AT(code),
				 .p_filesz = sizeof l->code,
				 .p_memsz = 8192,
				 .p_align = 4096 };
	l->ph[2] = (Elf64_Phdr){ .p_type = PT_DYNAMIC,
				 .p_vaddr = AT(dyn),
				 .p_offset = AT(dyn),
				 .p_filesz = sizeof l->dyn,
				 .p_memsz = sizeof l->dyn };
	l->ph[3] = (Elf64_Phdr){
		.p_type = PT_NOTE, .p_offset = AT(note), .p_filesz = AT(strings) - AT(note), .p_align = 4
	};
	l->dyn[0] = (Elf64_Dyn){ DT_STRTAB, { AT(strings) } };
	l->dyn[1] = (Elf64_Dyn){ DT_SONAME, { 1 } };
	l->note = (Elf64_Nhdr){ 4, 20, NT_GNU_BUILD_ID };
	memcpy(l->gnu, "GNU", 4);
	for (int i = 0; i < 20; i++)
		l->build_id[i] = (uint8_t)(i * 11);
	snprintf(l->strings + 1, sizeof l->strings - 1, "%s", soname);
	for (size_t i = 0; i < sizeof l->code; i++)
		l->code[i] = (uint8_t)rnd(256);
	return l;
}

/* ---- asking ----------------------------------------------------------------------------------------------------- */

static struct policy_subject subject = { "/usr/bin/prog", "web", 1000 };
static char why[POLICY_WHY];

static inline struct policy_image image_of(const struct lib *l)
{
	return (struct policy_image){ .bytes = l,
				      .size = sizeof *l,
				      .path = "/usr/lib/libx.so.1.2.3",
				      .uid = 0,
				      .mode = 0100644,
				      .way = POLICY_WAY_LOADER,
				      .loader = "/lib64/ld-linux-x86-64.so.2" };
}

static inline struct policy *pol(const char *text)
{
	struct kx_err err = { 0 };
	struct policy *p = NULL;
	file_write("policy", text, strlen(text), 0644);
	int r = policy_read(in_dir("policy"), &p, &err);
	CHECK(!r && p, "%s: %s", text, err.msg);
	return p;
}

/* The verdict of a section [default] with these lines. */
static inline int ask_at(const char *rules, const struct policy_image *i, int64_t now)
{
	char text[2048];
	snprintf(text, sizeof text, "[default]\n%s\n", rules);
	struct policy *p = pol(text);
	int v = p ? (int)policy_image_at(p, &subject, i, now, why) : -1;
	CHECK(v == POLICY_ALLOW ? !*why : strlen(why) > 10 && !strchr(why, '\n'), "a reason: %s", why);
	policy_free(p);
	return v;
}

#define ASK(rules, i, now, verdict, reason) \
	do { \
		int v_ = ask_at(rules, i, now); \
		CHECK(v_ == (verdict) && strstr(why, reason), "%s: %d, %s", rules, v_, why); \
	} while (0)
#define OK(rules, i) ASK(rules, i, NOW, POLICY_ALLOW, "")
#define NO(rules, i, reason) ASK(rules, i, NOW, POLICY_DENY, reason)

/* ---- keys ------------------------------------------------------------------------------------------------------- */

static uint8_t seeds[8][SIGN_SEED];

/* A key with this number in the keyring, valid from..expires. */
static inline void trust(unsigned n, const char *name, int64_t from, int64_t expires)
{
	struct kx_err err = { 0 };
	struct keyring k;
	struct sign_key key, *use;
	char path[64];
	snprintf(path, sizeof path, "secret%u", n);
	if (access(in_dir(path), F_OK))
		CHECK(!key_make(in_dir(path), &key, &err), "%s", err.msg);
	CHECK(!key_secret_read(in_dir(path), seeds[n], &err), "%s", err.msg);
	strcat(path, ".pub");
	CHECK(!key_public_read(in_dir(path), &key, &err), "%s", err.msg);
	use = &key;
	snprintf(use->name, sizeof use->name, "%s", name);
	use->from = from;
	use->expires = expires;
	CHECK(!keyring_edit(in_dir("keys"), &k, &err) && !keyring_trust(&k, use, &err), "%s", err.msg);
	keyring_free(&k);
}

static inline void manifest_of(const struct lib *l, struct sign_manifest *m)
{
	struct image_facts f;
	image_facts(l, sizeof *l, &f);
	memset(m, 0, sizeof *m);
	strcpy(m->soname, f.soname);
	strcpy(m->version, "1.2.3");
	memcpy(m->build_id, f.build_id, f.build_id_len);
	m->build_id_len = f.build_id_len;
	memcpy(m->sha256, f.sha256, sizeof m->sha256);
	m->size = sizeof *l;
	m->time = NOW - 86400;
}

static char sig[SIGN_MAX];

static inline void sign(struct sign_manifest *m, unsigned key, struct policy_image *i)
{
	int n = sign_write(m, seeds[key], sig);
	CHECK(n > 0, "sign_write: %d", n);
	i->sig = sig;
	i->sig_size = (size_t)n;
}

static inline void ring_revoke(const char *name, const uint8_t *sha256)
{
	struct kx_err err = { 0 };
	struct keyring k;
	CHECK(!keyring_edit(in_dir("keys"), &k, &err), "%s", err.msg);
	const struct sign_key *key = name ? keyring_by_name(&k, name) : NULL;
	CHECK(keyring_revoke(&k, key ? key->id : NULL, sha256, NOW, &err) == 1, "%s", err.msg);
	CHECK(keyring_revoke(&k, key ? key->id : NULL, sha256, NOW, &err) == 0, "%s", err.msg);
	keyring_free(&k);
}

static inline void keyring_reset(void)
{
	char *keys = in_dir("keys");
	DIR *d = opendir(keys);
	struct dirent *e;
	while (d && (e = readdir(d)))
		unlinkat(dirfd(d), e->d_name, 0);
	if (d)
		closedir(d);
	rmdir(keys);
}

#endif
