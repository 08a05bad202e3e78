/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The block: a header, arrays of these structs, strings. It holds offsets and numbers alone, and is the same wherever
 * it is mapped. Strings are offsets into the region of strings, which ends with a NUL.
 */
#ifndef KX_POLICY_PRIV_H
#define KX_POLICY_PRIV_H
#include "policy.h"
#include "sign.h"

#define POLICY_MAGIC 0x31796c6f50584b00ull
#define POLICY_BLOCK_MAX (16u << 20)
#define POLICY_KEYS_MAX 256 /* a bit for each in a condition */
#define POLICY_OWNERS_MAX 8

enum { POLICY_MODE_ENFORCE, POLICY_MODE_WARN, POLICY_MODE_OFF, POLICY_MODES };
enum { POLICY_FOR_ALL, POLICY_FOR_PROGRAM, POLICY_FOR_FAMILY, POLICY_FORS };
enum { POLICY_KIND_PROGRAM = 1, POLICY_KIND_INTERP = 2, POLICY_KIND_LIBRARY = 4, POLICY_KINDS = 7 };
enum { POLICY_EQ, POLICY_GE, POLICY_LE, POLICY_GT, POLICY_LT, POLICY_OPS };
enum policy_cond_type {
	POLICY_SONAME,
	POLICY_VERSION,
	POLICY_BUILD_ID,
	POLICY_SHA256,
	POLICY_PATH,
	POLICY_SIGNED_BY,
	POLICY_LOADER,
	POLICY_OWNER,
	POLICY_WRITABLE_BY,
	POLICY_KIND,
	POLICY_CONDS,
};

struct policy_cond {
	uint32_t type, negated;
	uint32_t text; /* as it is written in the file, without "not" */
	uint32_t str;  /* of SONAME, PATH, LOADER: a glob; of VERSION: a version */
	uint32_t op;   /* VERSION: comparison; WRITABLE_BY: bits of the mode; KIND: bits; OWNER: 1 = who runs it, too */
	uint32_t n;    /* BUILD_ID: bytes; OWNER: user ids */
	union {
		uint8_t bytes[32]; /* BUILD_ID, SHA256; SIGNED_BY: bit i of byte i / 8 for key i */
		uint32_t uid[POLICY_OWNERS_MAX];
	};
};

struct policy_rule {
	uint32_t allow, line, first, nr; /* its conditions: none = always */
};

struct policy_section {
	uint32_t what, line, mode, jit;
	uint32_t glob;
	uint32_t jit_line;  /* 0: not said */
	uint32_t first, nr; /* its rules, after those that are common to all */
};

struct policy_head {
	uint64_t magic;
	uint32_t len;
	uint32_t file; /* name of the policy file */
	uint32_t keyring;
	uint32_t nr_common; /* rules that hold for all sections, and come first */
	uint32_t nr_sections, nr_rules, nr_conds, nr_keys, nr_revoked, strings_len;
	/* followed by: keys, sections, rules, conditions, hashes of revoked files, strings */
};

struct policy {
	const struct policy_head *h;
	const struct sign_key *key;
	const struct policy_section *section;
	const struct policy_rule *rule;
	const struct policy_cond *cond;
	const uint8_t (*revoked)[SIGN_HASH];
	const char *strings;
	void *owned; /* the block, when it is the policy's own */
};

_Static_assert(sizeof(struct policy_head) == 48 && sizeof(struct sign_key) % 8 == 0, "the block's layout");

/* '*' is anything but a slash, '**' anything, '?' a character that is no slash, a backslash takes the next literally. */
bool policy_glob(const char *glob, const char *text);
const struct policy_section *policy_section(const struct policy *p, const struct policy_subject *s);
/* As policy_image(), at a time. */
enum policy_verdict policy_image_at(const struct policy *p, const struct policy_subject *s,
				    const struct policy_image *i, int64_t now, char why[POLICY_WHY]);
#endif
