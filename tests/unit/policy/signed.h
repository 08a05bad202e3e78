/* SPDX-License-Identifier: Apache-2.0 */
/* Signatures and keyrings. Part of test_policy.c. */
#ifndef KX_UNIT_POLICY_SIGNED_H
#define KX_UNIT_POLICY_SIGNED_H
#include "policy.h"

static inline void test_signatures(void)
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
static inline void test_flips(void)
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

static inline void test_keyring(void)
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

#endif
