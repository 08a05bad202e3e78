/* SPDX-License-Identifier: Apache-2.0 */
/* What policies say: versions, files, sections, conditions. Part of test_policy.c. */
#ifndef KX_UNIT_POLICY_RULES_H
#define KX_UNIT_POLICY_RULES_H
#include "policy.h"

static inline void test_sha256(void)
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
		struct sha256 h;
		sha256_begin(&h);
		for (size_t at = 0, part; at < len; at += part) {
			part = 1 + rnd(150);
			part = part < len - at ? part : len - at;
			sha256_add(&h, p + at, part);
		}
		sha256_end(&h, ours);
		CHECK(!memcmp(ours, theirs, 32), "%zu bytes in parts", len);
		free(all);
	}
}

static inline bool glob_slow(const char *g, const char *t)
{
	if (!*g)
		return !*t;
	if (g[0] == '*' && g[1] == '*')
		return glob_slow(g + 2, t) || (*t && glob_slow(g, t + 1));
	if (*g == '*')
		return glob_slow(g + 1, t) || (*t && *t != '/' && glob_slow(g, t + 1));
	return *t && (*g == '?' ? *t != '/' : *g == *t) && glob_slow(g + 1, t + 1);
}

static inline void test_globs(void)
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

static inline void test_versions(void)
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

static inline void test_files(void)
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

static inline void test_sections(void)
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

static inline void test_conditions(void)
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

static inline void test_builtin(void)
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
	file_write("file", "", 0, 0644);
	setenv("KYLINX_CONFIG", in_dir("file"), 1);
	CHECK(policy_open(NULL, &p, &err), "a file for KYLINX_CONFIG");
	setenv("KYLINX_CONFIG", in_dir("nothing"), 1);
	CHECK(!policy_open(NULL, &p, &err), "nothing for KYLINX_CONFIG: %s", err.msg);
	policy_free(p);
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

#endif
