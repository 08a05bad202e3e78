/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a file says of itself, and what others have signed of it. Pure functions on bytes, which are hostile.
 *
 * A detached signature, PATH.kxsig, is text: a manifest, and an Ed25519 signature over all bytes before the last line.
 * There is one way to write it: these lines in this order, one space, lower case, no leading zeros, nothing behind it.
 *
 *	kylinx-signature 1
 *	soname libx.so.1        ("-": none)
 *	version 1.2.3           ("-": none)
 *	build-id HEX            ("-": none)
 *	sha256 HEX              of the whole file
 *	size BYTES
 *	key HEX                 the first 16 bytes of the SHA-256 of the public key
 *	time SECONDS            since 1970
 *	expires SECONDS         0: never
 *	signature HEX
 */
#ifndef KX_SIGN_H
#define KX_SIGN_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIGN_SONAME 256 /* with the NUL */
#define SIGN_VERSION 64
#define SIGN_BUILD_ID 32 /* bytes; usual are 16 and 20 */
#define SIGN_HASH 32
#define SIGN_ID 16
#define SIGN_PUBLIC 32
#define SIGN_SEED 32
#define SIGN_NAME 64  /* of a key, with the NUL */
#define SIGN_MAX 2048 /* bytes of a signature file */
#define SIGN_WHY 128
#define SIGN_SUFFIX ".kxsig"
#define SIGN_SKEW 3600 /* seconds that the clock of who signs may be ahead */

/* All that a decision needs of a file's bytes. Of fixed size and without pointers: it can be kept. */
struct image_facts {
	uint8_t sha256[SIGN_HASH];
	uint64_t size;
	uint32_t elf;          /* 0: no ELF file, and so without the following */
	uint32_t build_id_len; /* 0: none */
	uint8_t build_id[SIGN_BUILD_ID];
	char soname[SIGN_SONAME]; /* "": none */
	char wrong[SIGN_WHY];     /* not "": the headers lie, and in what */
};

struct sign_key {
	char name[SIGN_NAME];
	uint8_t pub[SIGN_PUBLIC], id[SIGN_ID];
	int64_t from, expires; /* seconds since 1970; 0: no limit */
	int64_t revoked;       /* since when; 0: it is not */
};

struct sign_manifest {
	char soname[SIGN_SONAME], version[SIGN_VERSION]; /* "": none */
	uint8_t build_id[SIGN_BUILD_ID];
	uint32_t build_id_len;
	uint8_t sha256[SIGN_HASH];
	uint64_t size;
	uint8_t key[SIGN_ID];
	int64_t time, expires;
	uint8_t signature[64];
	size_t signed_len; /* bytes that the signature covers */
};

/* Headers, SONAME and build-id; without the hash. */
void image_facts_elf(const void *bytes, size_t size, struct image_facts *out);
/* All. */
void image_facts(const void *bytes, size_t size, struct image_facts *out);

/* The version that names tell: what is after ".so." in the SONAME, or in the file's name where that goes on as the
 * SONAME does; "-VERSION.so" in a file's name where there is no SONAME with one. "": none. */
void version_of_names(const char *soname, const char *path, char out[SIGN_VERSION]);
/* Parts between dots are compared as numbers, then by what follows the digits; a part that is missing is 0. */
int version_compare(const char *a, const char *b);
bool version_valid(const char *v);

void sign_key_id(const uint8_t pub[SIGN_PUBLIC], uint8_t id[SIGN_ID]);
/* "" or what is wrong with a key at that time: its name is in the text. */
bool sign_key_usable(const struct sign_key *k, int64_t now, char why[SIGN_WHY]);

/* 0, or -EBADMSG with the reason. */
int sign_parse(const void *bytes, size_t size, struct sign_manifest *out, char why[SIGN_WHY]);
/* Is this what key has signed of this file, and does it hold now? 0, or -EKEYREJECTED with the reason. */
int sign_check(const struct sign_manifest *m, const void *bytes, const struct sign_key *key,
	       const struct image_facts *facts, int64_t now, char why[SIGN_WHY]);
/* Write the signature file of a manifest (key, signature and signed_len are set). Returns its length, or -EINVAL:
 * something in it can't be written. */
int sign_write(struct sign_manifest *m, const uint8_t seed[SIGN_SEED], char out[SIGN_MAX]);

void hex_put(const uint8_t *bytes, size_t n, char *out); /* 2n digits and a NUL */
/* Exactly n bytes from 2n lower-case digits. */
bool hex_get(const char *s, size_t digits, uint8_t *out, size_t n);

/* A line "key value" at *at, which moves behind it; false: it is none. "-" is the empty text. */
bool line_text(const char **at, const char *end, const char *key, char *out, size_t size);
bool line_hex(const char **at, const char *end, const char *key, uint8_t *out, size_t len);
bool line_number(const char **at, const char *end, const char *key, uint64_t *out);
#endif
