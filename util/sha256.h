/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256: by the CPU's instructions for it where there are some, else by libsodium. */
#ifndef KX_SHA256_H
#define KX_SHA256_H
#include <immintrin.h>
#include <sodium/crypto_hash_sha256.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A hash that is being made, of bytes that come in pieces. */
struct sha256 {
	__m128i state[2];
	uint64_t len;
	uint8_t rest[64]; /* what is no whole block yet: len % 64 bytes */
	bool here;        /* by the instructions */
	crypto_hash_sha256_state other;
};

void sha256_begin(struct sha256 *h);
void sha256_add(struct sha256 *h, const void *bytes, size_t len);
/* To be begun anew then. */
void sha256_end(struct sha256 *h, uint8_t out[32]);
/* Of bytes in memory. */
void sha256(uint8_t out[32], const void *bytes, size_t len);
#endif
