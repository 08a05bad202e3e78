/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Policies, signatures, keys: decisions from blocks, and hostile files of every kind that is read. Works in a
 * directory of its own; all random numbers come from one seed.
 *
 *	test_policy [SEED [ROUNDS]]
 */
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
#include "../../monitor/core/keys.h"
#include "../../monitor/core/policy_priv.h"
#include "../../monitor/core/policy_read.h"
#include "../../util/sha256.h"
#include "check.h"

static char dir[] = "/tmp/kx-test-policy-XXXXXX";
static uint64_t seed = 1;
static int rounds = 20000;
#define NOW 1800000000ll

static uint32_t rnd(uint32_t n)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)((seed >> 33) % n);
}

static char *in_dir(const char *name)
{
	static char path[8][256];
	static int i;
	i = (i + 1) % 8;
	snprintf(path[i], sizeof path[i], "%s/%s", dir, name);
	return path[i];
}

static void file_write(const char *name, const void *data, size_t len, mode_t mode)
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

static struct lib *lib_make(const char *soname)
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

static struct policy_image image_of(const struct lib *l)
{
	return (struct policy_image){ .bytes = l,
				      .size = sizeof *l,
				      .path = "/usr/lib/libx.so.1.2.3",
				      .uid = 0,
				      .mode = 0100644,
				      .way = POLICY_WAY_LOADER,
				      .loader = "/lib64/ld-linux-x86-64.so.2" };
}

static struct policy *pol(const char *text)
{
	struct kx_err err = { 0 };
	struct policy *p = NULL;
	file_write("policy", text, strlen(text), 0644);
	int r = policy_read(in_dir("policy"), &p, &err);
	CHECK(!r && p, "%s: %s", text, err.msg);
	return p;
}

/* The verdict of a section [default] with these lines. */
static int ask_at(const char *rules, const struct policy_image *i, int64_t now)
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
static void trust(unsigned n, const char *name, int64_t from, int64_t expires)
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

static void manifest_of(const struct lib *l, struct sign_manifest *m)
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

static void sign(struct sign_manifest *m, unsigned key, struct policy_image *i)
{
	int n = sign_write(m, seeds[key], sig);
	CHECK(n > 0, "sign_write: %d", n);
	i->sig = sig;
	i->sig_size = (size_t)n;
}

static void ring_revoke(const char *name, const uint8_t *sha256)
{
	struct kx_err err = { 0 };
	struct keyring k;
	CHECK(!keyring_edit(in_dir("keys"), &k, &err), "%s", err.msg);
	const struct sign_key *key = name ? keyring_by_name(&k, name) : NULL;
	CHECK(keyring_revoke(&k, key ? key->id : NULL, sha256, NOW, &err) == 1, "%s", err.msg);
	CHECK(keyring_revoke(&k, key ? key->id : NULL, sha256, NOW, &err) == 0, "%s", err.msg);
	keyring_free(&k);
}

static void keyring_reset(void)
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

/* ---- tests ------------------------------------------------------------------------------------------------------ */

static void test_sha256(void)
{
	static const size_t lens[] = { 0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 129, 4096, 100001 };
	for (size_t n = 0; n < sizeof lens / sizeof *lens + 200; n++) {
		size_t len = n < sizeof lens / sizeof *lens ? lens[n] : rnd(1000);
		uint8_t *all = malloc(len + 3), *p = all + rnd(4), ours[32], theirs[32];
		for (size_t i = 0; i < len; i++)
			p[i] = (uint8_t)rnd(256);
		sha256(ours, p, len);
		crypto_hash_sha256(theirs, p, len);
		CHECK(!memcmp(ours, theirs, 32), "%zu bytes", len);
		free(all);
	}
}

static bool glob_slow(const char *g, const char *t)
{
	if (!*g)
		return !*t;
	if (g[0] == '*' && g[1] == '*')
		return glob_slow(g + 2, t) || (*t && glob_slow(g, t + 1));
	if (*g == '*')
		return glob_slow(g + 1, t) || (*t && *t != '/' && glob_slow(g, t + 1));
	return *t && (*g == '?' ? *t != '/' : *g == *t) && glob_slow(g + 1, t + 1);
}

static void test_globs(void)
{
	static const struct {
		const char *g, *t;
		bool is;
	} all[] = { { "/usr/lib/*", "/usr/lib/x", true },
		    { "/usr/lib/*", "/usr/lib/x/y", false },
		    { "/usr/**", "/usr/lib/x/y", true },
		    { "**/libc.so*", "/lib/libc.so.6", true },
		    { "lib\\*.so", "lib*.so", true },
		    { "lib\\*.so", "libx.so", false },
		    { "/a?c", "/abc", true },
		    { "/a?c", "/a/c", false },
		    { "", "", true },
		    { "*", "", true },
		    { "", "x", false },
		    { "/**/lib/*.so", "/a/b/lib/c.so", true } };
	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		CHECK(policy_glob(all[i].g, all[i].t) == all[i].is, "%s %s", all[i].g, all[i].t);
	for (int i = 0; i < rounds; i++) {
		char g[9] = "", t[9] = "";
		for (uint32_t n = rnd(9), k = 0; k < n; k++)
			g[k] = "ab/?**"[rnd(6)];
		for (uint32_t n = rnd(9), k = 0; k < n; k++)
			t[k] = "ab/"[rnd(3)];
		/* Three stars are two and one, in any order. */
		if (strstr(g, "***"))
			continue;
		CHECK(policy_glob(g, t) == glob_slow(g, t), "%s %s", g, t);
	}
	char *long_t = malloc(4001);
	memset(long_t, 'a', 4000);
	long_t[4000] = 0;
	CHECK(!policy_glob("**a**a**a*a*a**a*b", long_t), "a long text");
	free(long_t);
}

static void test_versions(void)
{
	static const struct {
		const char *a, *b;
		int is;
	} all[] = { { "1", "1", 0 },          { "1", "1.0.0", 0 },
		    { "1.2", "1.10", -1 },    { "3.0.11", "3.0.2", 1 },
		    { "1.1.1w", "1.1.1", 1 }, { "1.1.1a", "1.1.1b", -1 },
		    { "2", "1.99", 1 },       { "01.2", "1.2", 0 },
		    { "1.2-3", "1.2-4", -1 }, { "99999999999999999999999", "100000000000000000000000", -1 } };
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		CHECK(version_compare(all[i].a, all[i].b) == all[i].is, "%s %s", all[i].a, all[i].b);
		CHECK(version_compare(all[i].b, all[i].a) == -all[i].is, "%s %s", all[i].b, all[i].a);
	}
	static const struct {
		const char *soname, *path, *is;
	} names[] = { { "libx.so.1", "/l/libx.so.1.2.3", "1.2.3" }, { "libx.so.1", "/l/libx.so.1", "1" },
		      { "libx.so.1", "/l/other.so.9", "1" },        { "", "/l/libx.so.4.5", "4.5" },
		      { "libx.so.1", "/l/libx.so.10", "1" },        { "", "/l/libx-2.31.so", "2.31" },
		      { "libx.so", "/l/libx-2.31.so", "2.31" },     { "", "/l/lib-x.so", "" },
		      { "libx.so.evil", "/l/libx.so.evil", "" },    { "", "/l/a-b-1.5.so", "1.5" } };
	for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
		char out[SIGN_VERSION];
		version_of_names(names[i].soname, names[i].path, out);
		CHECK(!strcmp(out, names[i].is), "%s %s: %s", names[i].soname, names[i].path, out);
	}
}

static void test_files(void)
{
	static const struct {
		const char *text, *says;
	} all[] = {
		{ "", "policy: no section [default]" },
		{ "[program /x]\nallow\n", "policy: no section [default]" },
		{ "frob\n", "policy:1: frob: unknown word" },
		{ "\n# x\n[default]\n  allow sonam x\n", "policy:4: sonam: no condition" },
		{ "[default]\nallow soname\n", "policy:2: soname: without a value" },
		{ "[default]\nallow not\n", "policy:2: not: no condition" },
		{ "[default\n", "policy:1: a section without its end" },
		{ "[defaults]\n", "policy:1: no section" },
		{ "[program]\n", "policy:1: no section" },
		{ "[program prog]\n", "policy:1: prog: would match no program" },
		{ "[default]\n[family x]\n", "policy:2: never reached" },
		{ "mode off\n", "policy:1: mode before the first section" },
		{ "[default]\nmode of\n", "policy:2: mode: unknown" },
		{ "[default]\njit\n", "policy:2: jit: unknown" },
		{ "[default]\nmode off\nmode off\n", "policy:3: mode is said twice" },
		{ "[default]\nallow sha256 12\n", "policy:2: 12: no SHA-256" },
		{ "[default]\nallow sha256 "
		  "00112233445566778899AABBCCDDEEFF00112233445566778899aabbccddeeff"
		  "\n",
		  "no SHA-256" },
		{ "[default]\nallow build-id 123\n", "policy:2: 123: no build-id" },
		{ "[default]\nallow version 1.2\n", "policy:2: 1.2: no range" },
		{ "[default]\nallow version >=x\n", "policy:2: >=x: no range" },
		{ "[default]\nallow version ,\n", "policy:2: version: no range" },
		{ "[default]\nallow not version >=1,<2\n", "policy:2: not version with a range" },
		{ "[default]\nallow path usr/lib\n", "policy:2: usr/lib: would match no path" },
		{ "[default]\nallow owner nosuchuserhere\n", "policy:2: nosuchuserhere: no user" },
		{ "[default]\nallow owner ,\n", "policy:2: owner: nobody" },
		{ "[default]\nallow owner 1,2,3,4,5,6,7,8,9\n", "policy:2: more than 8 owners" },
		{ "[default]\nallow writable-by all\n", "policy:2: all: unknown (give group" },
		{ "[default]\nallow kind program,x\n", "policy:2: x: unknown (give program" },
		{ "[default]\nallow signed-by nobody\n", "policy:2: signed-by nobody: no such key" },
		{ "[default]\nallow signed-by *\n", "policy:2: signed-by *: no such key" },
		{ "[default]\nallow path \"/a\n", "policy:2: a quote that isn't closed" },
		{ "[default]\nallow path \"/a\"x\n", "policy:2: text right behind a quote" },
		{ "keyring x\n[default]\n", "policy:1: keyring: no directory" },
		{ "[default]\nkeyring /etc\n", "policy:2: keyring: too late" },
		{ "keyring /nonexistent/keys\n[default]\nallow\n", "keyring: /nonexistent/keys: No such file" },
		{ "[default]\nallow a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h i j k l m n o "
		  "p q r "
		  "s t u v w x y z a b c d e f g h i j k l m n o p\n",
		  "policy:2: more than 64 words" },
	};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		struct kx_err err = { 0 };
		struct policy *p = (void *)1;
		file_write("policy", all[i].text, strlen(all[i].text), 0644);
		int r = policy_read(in_dir("policy"), &p, &err);
		CHECK(r < 0 && !p && strstr(err.msg, all[i].says) && err.msg[strlen(err.msg) - 1] == ')', "%s: %s",
		      all[i].text, err.msg);
	}
	struct kx_err err = { 0 };
	struct policy *p;
	file_write("policy", "[default]\n\0\n", 12, 0644);
	CHECK(policy_read(in_dir("policy"), &p, &err) == -EINVAL && strstr(err.msg, "NUL"), "%s", err.msg);
	static const mode_t modes[] = { 0664, 0646, 0666 };
	for (int i = 0; i < 3; i++) {
		err.code = 0;
		file_write("policy", "[default]\nmode off\n", 19, modes[i]);
		CHECK(policy_read(in_dir("policy"), &p, &err) == -EPERM && strstr(err.msg, "others can write"), "%s",
		      err.msg);
	}
	mkdir(in_dir("open"), 0755);
	chmod(in_dir("open"), 0777);
	file_write("open/policy", "[default]\nmode off\n", 19, 0644);
	err.code = 0;
	CHECK(policy_read(in_dir("open/policy"), &p, &err) == -EPERM && strstr(err.msg, "/open: others can write"),
	      "%s", err.msg);
	unlink(in_dir("open/policy"));
	rmdir(in_dir("open"));
	err.code = 0;
	CHECK(policy_read(in_dir("none"), &p, &err) == -ENOENT && strstr(err.msg, "none: No such file"), "%s", err.msg);
	err.code = 0;
	CHECK(policy_read(dir, &p, &err) == -EINVAL, "%s", err.msg);
	if (!getuid()) {
		file_write("policy", "[default]\nmode off\n", 19, 0644);
		CHECK(!chown(in_dir("policy"), 4711, 4711), "chown");
		err.code = 0;
		CHECK(policy_read(in_dir("policy"), &p, &err) == -EPERM && strstr(err.msg, "user 4711's"), "%s",
		      err.msg);
	}
}

static void test_sections(void)
{
	struct lib *l = lib_make("libx.so.1");
	struct policy_image i = image_of(l);
	struct policy_subject s = subject;
	struct policy *p = pol("deny path /bad/**   # for all\n"
			       "[program /usr/bin/*]\nmode warn\njit deny\nallow soname other*\n"
			       "[family \"we b\"]  # with a space\nmode off\n[family we*]\njit allow\nallow\n"
			       "[default]\n\tmode enforce\r\n  deny\n");
	CHECK(policy_image(p, &s, &i, why) == POLICY_WARN && strstr(why, "SONAME is libx.so.1") &&
		      strstr(why, "policy:5)"),
	      "%s", why);
	CHECK(policy_anonymous(p, &s, why) == POLICY_WARN && strstr(why, "jit is deny") && strstr(why, "policy:4)"),
	      "%s", why);
	CHECK(policy_active(p, &s) && policy_needs_bytes(p, &s), "warn");
	s.program = "/opt/prog";
	CHECK(policy_image(p, &s, &i, why) == POLICY_ALLOW && policy_anonymous(p, &s, why) == POLICY_ALLOW, "family");
	CHECK(!policy_needs_bytes(p, &s) && policy_needs_bytes(p, NULL), "rules by path alone");
	i.path = "/bad/libx.so.1";
	CHECK(policy_image(p, &s, &i, why) == POLICY_DENY && strstr(why, "denies it: path /bad/**") &&
		      strstr(why, "policy:1)"),
	      "%s", why);
	i.bytes = NULL;
	CHECK(policy_image(p, &s, &i, why) == POLICY_DENY, "%s", why);
	i.path = "/good/libx.so.1";
	CHECK(policy_image(p, &s, &i, why) == POLICY_ALLOW, "%s", why);
	s.family = "we b";
	CHECK(!policy_active(p, &s) && policy_anonymous(p, &s, why) == POLICY_ALLOW, "off");
	s.family = "";
	CHECK(policy_image(p, &s, &i, why) == POLICY_DENY && strstr(why, "a rule denies it (") &&
		      strstr(why, "policy:13)"),
	      "%s", why);
	CHECK(policy_anonymous(p, &s, why) == POLICY_DENY && strstr(why, "policy:11)"), "%s", why);
	s.program = NULL;
	s.family = NULL;
	CHECK(policy_image(p, &s, &i, why) == POLICY_DENY, "nobody");
	policy_free(p);
	free(l);
}

static void test_conditions(void)
{
	struct lib *l = lib_make("libx.so.1");
	struct policy_image i = image_of(l);
	struct image_facts f;
	char hash[65], rule[256];
	image_facts(l, sizeof *l, &f);
	CHECK(f.elf && !f.wrong[0] && !strcmp(f.soname, "libx.so.1") && f.build_id_len == 20, "facts: %s", f.wrong);
	OK("allow", &i);
	NO("deny", &i, "a rule denies it");
	NO("", &i, "no rule allows anything");
	OK("allow soname libx.so.*", &i);
	NO("allow soname liby*", &i, "its SONAME is libx.so.1");
	OK("allow not soname liby*", &i);
	NO("deny soname libx.so.1\nallow", &i, "denies it: soname libx.so.1");
	OK("deny soname liby*\nallow", &i);
	OK("allow soname lib*\ndeny", &i);
	OK("allow version >=1.2,<1.3", &i);
	NO("allow version >=1.3", &i, "its version is 1.2.3");
	NO("allow version <1.2.3", &i, "its version is 1.2.3");
	OK("allow version =1.2.3", &i);
	OK("allow path /usr/lib/** owner root not writable-by group,others", &i);
	NO("allow path /usr/lib/**/x*", &i, "it is not: path /usr/lib/**/x*");
	hex_put(f.build_id, 20, hash);
	snprintf(rule, sizeof rule, "allow build-id %s", hash);
	OK(rule, &i);
	l->build_id[3] ^= 1;
	NO(rule, &i, "it is not: build-id");
	l->build_id[3] ^= 1;
	hex_put(f.sha256, 32, hash);
	snprintf(rule, sizeof rule, "allow sha256 %s", hash);
	OK(rule, &i);
	l->code[77] ^= 1;
	NO(rule, &i, "it is not: sha256");
	l->code[77] ^= 1;
	i.facts = &f;
	OK(rule, &i);
	i.facts = NULL;
	OK("allow loader /lib64/ld-*", &i);
	NO("allow loader /lib/ld-musl*", &i, "its dynamic linker is /lib64");
	i.way = POLICY_WAY_OTHER;
	NO("allow loader /lib64/ld-*", &i, "not mapped by the dynamic linker");
	OK("allow kind library", &i);
	NO("allow kind program,linker", &i, "it is not: kind program,linker");
	i.way = POLICY_WAY_INTERP;
	OK("allow kind linker loader /lib64/**", &i);
	i.way = POLICY_WAY_PROGRAM;
	i.loader = NULL;
	OK("allow kind program", &i);
	NO("allow loader **", &i, "not mapped by the dynamic linker");
	NO("allow owner user", &i, "its owner is 0");
	i.uid = 1000;
	OK("allow owner root,user", &i);
	NO("allow owner 7,8", &i, "its owner is 1000");
	OK("allow not owner 7,8", &i);
	NO("allow not owner user", &i, "it is: owner user");
	i.mode = 0100664;
	OK("allow not writable-by others", &i);
	NO("allow not writable-by group", &i, "it is: writable-by group");
	i.mode = 0100646;
	NO("allow not writable-by others", &i, "it is: writable-by others");
	NO("allow not writable-by group", &i, "it is: writable-by group");
	i.path = "/usr/lib/../../tmp/x.so";
	NO("allow path /usr/lib/**", &i, "not a plain one");
	i.path = "lib/x.so";
	NO("allow", &i, "not a plain one");
	i.path = NULL;
	NO("allow", &i, "not a plain one");
	i.path = "/tmp/libx.so (deleted)";
	OK("allow", &i);
	/* No ELF file: no SONAME, but a content. */
	i.size = 100;
	i.bytes = "#!/bin/sh and so on, which is as long as it has to be, which is one hundred bytes, or a few more "
		  "than that.";
	NO("allow soname *", &i, "its SONAME is none");
	OK("allow path /tmp/*", &i);
	i.bytes = NULL;
	NO("allow soname **", &i, "its content is not known");
	i.path = "/a/very/long/path/that/goes/on/and/on/a/very/long/path/that/goes/on/and/on/a/very/long/path/that/"
		 "goes/on/"
		 "and/on/a/very/long/path/that/goes/on/and/on/a/very/long/path/that/goes/on/and/on/a/very/\n\001/li.so";
	NO("allow path /x", &i, "li.so: it is not");
	free(l);
}

static void test_builtin(void)
{
	struct kx_err err = { 0 };
	struct policy *p;
	struct lib *l = lib_make("libx.so.1");
	struct policy_image i = image_of(l);
	CHECK(!policy_read_builtin(&p, &err), "%s", err.msg);
	CHECK(policy_active(p, &subject) && !policy_needs_bytes(p, &subject) && !policy_needs_bytes(p, NULL), "cheap");
	i.bytes = NULL;
	CHECK(policy_image(p, &subject, &i, why) == POLICY_ALLOW, "%s", why);
	CHECK(policy_anonymous(p, &subject, why) == POLICY_ALLOW, "%s", why);
	i.mode = 0100666;
	CHECK(policy_image(p, &subject, &i, why) == POLICY_DENY &&
		      strstr(why, "writable-by others (built-in policy:4)"),
	      "%s", why);
	policy_free(p);
	unlink(in_dir("policy"));
	CHECK(!policy_open("off", &p, &err) && !p, "off");
	CHECK(!policy_open(NULL, &p, &err) && p, "none: %s", err.msg);
	policy_free(p);
	file_write("policy", "[default]\nmode off\n", 19, 0644);
	CHECK(!policy_open(NULL, &p, &err) && p && !policy_active(p, &subject), "found: %s", err.msg);
	policy_free(p);
	CHECK(policy_open(in_dir("none"), &p, &err) == -ENOENT && !p, "missing");
	/* A link to nothing is no policy that isn't there; nor is a path that is none. */
	unlink(in_dir("policy"));
	CHECK(!symlink("nothing", in_dir("policy")), "symlink");
	err.code = 0;
	CHECK(policy_open(NULL, &p, &err) == -ENOENT && !p, "%s", err.msg);
	unlink(in_dir("policy"));
	setenv("KYLINX_CONFIG", "relative", 1);
	err.code = 0;
	CHECK(policy_open(NULL, &p, &err) == -EINVAL && !p && strstr(err.msg, "no absolute path"), "%s", err.msg);
	setenv("KYLINX_CONFIG", "", 1);
	err.code = 0;
	CHECK(!policy_open(NULL, &p, &err) && p, "%s", err.msg);
	policy_free(p);
	setenv("KYLINX_CONFIG", dir, 1);
	free(l);
}

static void test_signatures(void)
{
	struct lib *l = lib_make("libx.so.1");
	struct policy_image i = image_of(l);
	struct sign_manifest m;
	const char *rule = "allow signed-by release";
	keyring_reset();
	trust(0, "release", 0, 0);
	NO(rule, &i, "it is not signed");
	manifest_of(l, &m);
	sign(&m, 0, &i);
	OK(rule, &i);
	OK("allow signed-by rel* version =1.2.3", &i);
	NO("allow signed-by release version >=2", &i, "its version is 1.2.3");
	NO("allow version >=2 signed-by release", &i, "its version is 1.2.3");
	trust(1, "other", 0, 0);
	sign(&m, 1, &i);
	NO(rule, &i, "its signature is by other");
	OK("allow signed-by release,other", &i);
	/* A key that nobody trusts; and one that claims to be another. */
	memset(seeds[2], 7, sizeof seeds[2]);
	sign(&m, 2, &i);
	NO(rule, &i, "by a key that is not in the keyring");
	int n = sign_write(&m, seeds[0], sig);
	memcpy(strstr(sig, "\nsignature "), strstr(sig, "\nsignature "), 1);
	char other[SIGN_MAX];
	sign_write(&m, seeds[1], other);
	memcpy(strstr(sig, "\nsignature "), strstr(other, "\nsignature "), 140);
	i.sig_size = (size_t)n;
	NO(rule, &i, "its signature is not by key release");
	/* The manifest's version counts, not the file's name. */
	strcpy(m.version, "3");
	sign(&m, 0, &i);
	OK("allow signed-by release version >=3", &i);
	m.version[0] = 0;
	sign(&m, 0, &i);
	NO("allow signed-by release version >=0", &i, "its version is ");
	/* Manifests that lie. */
	manifest_of(l, &m);
	m.size++;
	sign(&m, 0, &i);
	NO(rule, &i, "its size is not what key release has signed");
	manifest_of(l, &m);
	m.sha256[31] ^= 1;
	sign(&m, 0, &i);
	NO(rule, &i, "its content is not");
	manifest_of(l, &m);
	strcpy(m.soname, "libx.so.2");
	sign(&m, 0, &i);
	NO(rule, &i, "its SONAME is not");
	manifest_of(l, &m);
	m.build_id[0] ^= 1;
	sign(&m, 0, &i);
	NO(rule, &i, "its build-id is not");
	m.build_id_len = 0;
	sign(&m, 0, &i);
	NO(rule, &i, "its build-id is not");
	/* Time. */
	manifest_of(l, &m);
	m.expires = NOW;
	sign(&m, 0, &i);
	NO(rule, &i, "has expired");
	ASK(rule, &i, NOW - 1, POLICY_ALLOW, "");
	m.expires = 0;
	m.time = NOW + 2 * SIGN_SKEW;
	sign(&m, 0, &i);
	NO(rule, &i, "was not made while");
	manifest_of(l, &m);
	sign(&m, 0, &i);
	trust(0, "release", 0, NOW);
	NO(rule, &i, "its key release has expired");
	ASK(rule, &i, NOW - 1, POLICY_ALLOW, "");
	trust(0, "release", NOW + 1, 0);
	NO(rule, &i, "is not valid yet");
	ASK(rule, &i, NOW + 1, POLICY_DENY, "was not made while");
	/* Rotation: both for a while. */
	trust(0, "release", 0, NOW + 100);
	trust(3, "release-2", NOW, 0);
	OK("allow signed-by release*", &i);
	m.time = NOW;
	sign(&m, 3, &i);
	OK("allow signed-by release*", &i);
	ASK("allow signed-by release*", &i, NOW + 100, POLICY_ALLOW, "");
	/* Names that can't be written. */
	strcpy(m.soname, "a b");
	CHECK(sign_write(&m, seeds[0], sig) == -EINVAL, "a space in a SONAME");
	strcpy(m.soname, "-");
	CHECK(sign_write(&m, seeds[0], sig) == -EINVAL, "the SONAME -");
	strcpy(m.soname, "x\nversion 9");
	CHECK(sign_write(&m, seeds[0], sig) == -EINVAL, "a line in a SONAME");
	/* Revocation. */
	manifest_of(l, &m);
	sign(&m, 0, &i);
	ring_revoke("release", NULL);
	NO(rule, &i, "its key release is revoked");
	struct kx_err err = { 0 };
	struct keyring k;
	CHECK(!keyring_edit(in_dir("keys"), &k, &err), "%s", err.msg);
	struct sign_key again = *keyring_by_name(&k, "release");
	CHECK(again.revoked == NOW && keyring_trust(&k, &again, &err) == -EKEYREVOKED, "%s", err.msg);
	keyring_free(&k);
	sign(&m, 1, &i);
	OK("allow signed-by other", &i);
	ring_revoke(NULL, m.sha256);
	NO("allow", &i, "this file is revoked");
	i.sig = NULL;
	NO("allow path **", &i, "this file is revoked");
	ASK("mode warn\nallow", &i, NOW, POLICY_WARN, "this file is revoked");
	i.bytes = NULL;
	NO("allow", &i, "its content is not known");
	free(l);
	keyring_reset();
}

/* Each bit of a signature file, and 1,000 places of a library. */
static void test_flips(void)
{
	struct lib *l = lib_make("libx.so.1");
	struct policy_image i = image_of(l);
	struct sign_manifest m;
	keyring_reset();
	trust(0, "release", 0, 0);
	manifest_of(l, &m);
	sign(&m, 0, &i);
	struct policy *p = pol("[default]\nallow signed-by release\n");
	CHECK(policy_image_at(p, &subject, &i, NOW, why) == POLICY_ALLOW, "%s", why);
	for (size_t bit = 0; bit < 8 * i.sig_size; bit++) {
		sig[bit / 8] ^= (char)(1 << bit % 8);
		CHECK(policy_image_at(p, &subject, &i, NOW, why) == POLICY_DENY, "bit %zu of the signature", bit);
		sig[bit / 8] ^= (char)(1 << bit % 8);
	}
	uint8_t *b = (uint8_t *)l;
	for (int n = 0; n < 1000; n++) {
		size_t bit = n < 500 ? (size_t)n * 8 + rnd(8) : rnd(8 * sizeof *l);
		b[bit / 8] ^= (uint8_t)(1 << bit % 8);
		CHECK(policy_image_at(p, &subject, &i, NOW, why) == POLICY_DENY, "bit %zu of the file", bit);
		b[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	for (size_t cut = 0; cut <= i.sig_size; cut++) {
		char *exact = malloc(cut ? cut : 1); /* what is behind the end is not to be read */
		memcpy(exact, sig, cut);
		struct policy_image c = i;
		c.sig = exact;
		c.sig_size = cut;
		CHECK((policy_image_at(p, &subject, &c, NOW, why) == POLICY_ALLOW) == (cut == i.sig_size), "%zu bytes",
		      cut);
		free(exact);
	}
	strcpy(sig + i.sig_size, "\n");
	i.sig_size++;
	CHECK(policy_image_at(p, &subject, &i, NOW, why) == POLICY_DENY, "a byte too many");
	i.sig_size--;
	for (int n = 0; n < rounds; n++) {
		char *exact = malloc(i.sig_size + 8);
		size_t len = i.sig_size;
		memcpy(exact, sig, len);
		for (uint32_t k = 1 + rnd(4); k; k--) {
			uint32_t at = rnd((uint32_t)len);
			static const char with[] = "\n -09af\0\xff"
						   "z";
			if (rnd(3) == 0 && len < i.sig_size + 8) {
				memmove(exact + at + 1, exact + at, len++ - at);
				exact[at] = with[rnd(sizeof with)];
			} else {
				exact[at] = rnd(2) ? with[rnd(sizeof with)] : (char)rnd(256);
			}
		}
		if (len == i.sig_size && !memcmp(exact, sig, len)) {
			free(exact);
			continue;
		}
		exact = realloc(exact, len);
		struct policy_image c = i;
		c.sig = exact;
		c.sig_size = len;
		CHECK(policy_image_at(p, &subject, &c, NOW, why) == POLICY_DENY, "round %d", n);
		free(exact);
	}
	policy_free(p);
	free(l);
	keyring_reset();
}

static void lie(const char *name, size_t at, uint64_t value, size_t size, const char *says)
{
	struct lib *l = lib_make("libx.so.1");
	struct policy_image i = image_of(l);
	memcpy((char *)l + at, &value, size);
	int v = ask_at("allow", &i, NOW);
	CHECK(v == POLICY_DENY && strstr(why, says), "%s: %d, %s", name, v, why);
	free(l);
}

#define LIE(m, value, says) lie(#m, AT(m), value, sizeof((struct lib *)0)->m, says)

static void test_headers(void)
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
static void test_real(void)
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

static void use(const struct policy *p, const struct policy_image *i)
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

static void test_blocks(void)
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

static void count_remark(void *arg, bool error, unsigned line, const char *text)
{
	unsigned *n = arg;
	n[error]++;
	CHECK(line < 100 && *text && !strchr(text, '\n'), "%s", text);
}

static void test_texts(void)
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

static void test_keyring(void)
{
	struct kx_err err = { 0 };
	struct keyring k;
	struct sign_key key;
	uint8_t secret[SIGN_SEED];
	struct stat st;
	keyring_reset();
	CHECK(keyring_read(in_dir("keys"), &k, &err) == -ENOENT, "%s", err.msg);
	trust(0, "release", 0, 0);
	CHECK(!stat(in_dir("secret0"), &st) && (st.st_mode & 07777) == 0600, "mode %o", st.st_mode);
	err.code = 0;
	CHECK(key_make(in_dir("secret0"), &key, &err) == -EEXIST, "%s", err.msg);
	chmod(in_dir("secret0"), 0640);
	err.code = 0;
	CHECK(key_secret_read(in_dir("secret0"), secret, &err) == -EPERM, "%s", err.msg);
	chmod(in_dir("secret0"), 0600);
	static const char *const bad[] = { "",
					   "kylinx-revoked 2\n",
					   "kylinx-revoked 1\nkey 12 1\n",
					   "kylinx-revoked 1\nfrob\n",
					   "kylinx-revoked 1\nkey 00112233445566778899aabbccddeeff\n",
					   "kylinx-revoked 1\nkey 00112233445566778899aabbccddeeff 1",
					   "kylinx-revoked 1\nsha256 00112233445566778899aabbccddeeff 5\n" };
	for (size_t n = 0; n < sizeof bad / sizeof *bad; n++) {
		file_write("keys/revoked", bad[n], strlen(bad[n]), 0644);
		err.code = 0;
		CHECK(keyring_read(in_dir("keys"), &k, &err) == -EINVAL && strstr(err.msg, "damaged"), "%s: %s", bad[n],
		      err.msg);
	}
	file_write("keys/revoked", "kylinx-revoked 1\n", 17, 0666);
	err.code = 0;
	CHECK(keyring_read(in_dir("keys"), &k, &err) == -EPERM, "%s", err.msg);
	unlink(in_dir("keys/revoked"));
	file_write("keys/x.pub", "kylinx-public-key 1\n", 20, 0644);
	err.code = 0;
	CHECK(keyring_read(in_dir("keys"), &k, &err) == -EINVAL, "%s", err.msg);
	unlink(in_dir("keys/x.pub"));
	CHECK(!link(in_dir("keys/release.pub"), in_dir("keys/twice.pub")), "link");
	err.code = 0;
	CHECK(keyring_read(in_dir("keys"), &k, &err) == -EEXIST, "%s", err.msg);
	unlink(in_dir("keys/twice.pub"));
	chmod(in_dir("keys"), 0777);
	err.code = 0;
	CHECK(keyring_read(in_dir("keys"), &k, &err) == -EPERM, "%s", err.msg);
	chmod(in_dir("keys"), 01777);
	err.code = 0;
	CHECK(keyring_read(in_dir("keys"), &k, &err) == -EPERM, "%s", err.msg);
	chmod(in_dir("keys"), 0755);
	err.code = 0;
	CHECK(!keyring_read(in_dir("keys"), &k, &err) && k.nr == 1, "%s", err.msg);
	keyring_free(&k);
	CHECK(key_name_valid("a.b-c_9") && !key_name_valid("") && !key_name_valid("-a") && !key_name_valid(".a") &&
		      !key_name_valid("a/b") && !key_name_valid("00112233445566778899aabbccddeeff"),
	      "names");
	int64_t t;
	CHECK(date_parse("2027-01-31", NOW, &t) && t == 1801353600 && date_parse("2d", NOW, &t) && t == NOW + 172800 &&
		      date_parse("never", NOW, &t) && !t && !date_parse("2027-02-30", NOW, &t) &&
		      !date_parse("27-01-01", NOW, &t) && !date_parse("", NOW, &t) &&
		      !date_parse("2027-1-31", NOW, &t) && !date_parse("d", NOW, &t) &&
		      !date_parse("2027-01-31x", NOW, &t),
	      "dates");
	keyring_reset();
}

int main(int argc, char **argv)
{
	if (argc > 1)
		seed = strtoull(argv[1], NULL, 0);
	if (argc > 2)
		rounds = atoi(argv[2]);
	umask(022);
	if (!mkdtemp(dir) || setenv("KYLINX_CONFIG", dir, 1))
		return 2;
	test_sha256();
	test_globs();
	test_versions();
	test_files();
	test_sections();
	test_conditions();
	test_builtin();
	test_keyring();
	test_signatures();
	test_flips();
	test_headers();
	test_real();
	test_blocks();
	test_texts();
	DIR *d = opendir(dir);
	struct dirent *e;
	while (d && (e = readdir(d)))
		unlinkat(dirfd(d), e->d_name, 0);
	if (d)
		closedir(d);
	rmdir(dir);
	printf("test_policy: %d checks, %d failed\n", checks, failures);
	return failures ? 1 : 0;
}
