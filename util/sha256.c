/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FIPS 180-4, with the instructions of Intel's and AMD's processors (Intel SDM vol. 2, SHA256RNDS2, SHA256MSG1,
 * SHA256MSG2). A library is hashed when it is first mapped, and libsodium needs some ten times as long for it.
 */
#include "sha256.h"
#include <string.h>
#include <sys/platform/x86.h>

static const uint32_t k[64] __attribute__((aligned(16))) = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* The state is kept as the instructions want it: a, b, e, f and c, d, g, h, from the top down. */
__attribute__((target("sha,sse4.1"))) static void blocks(__m128i state[2], const uint8_t *p, size_t n)
{
	const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll);
	__m128i abef = state[0], cdgh = state[1], w[4];
	for (; n; n--, p += 64) {
		__m128i abef_was = abef, cdgh_was = cdgh;
		for (int i = 0; i < 4; i++)
			w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(p + 16 * i)), swap);
#pragma GCC unroll 16
		for (int i = 0; i < 16; i++) {
			__m128i x = _mm_add_epi32(w[i % 4], _mm_load_si128((const __m128i *)(const void *)(k + 4 * i)));
			cdgh = _mm_sha256rnds2_epu32(cdgh, abef, x);
			abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(x, 0x0e));
			if (i >= 12)
				continue;
			x = _mm_add_epi32(_mm_sha256msg1_epu32(w[i % 4], w[(i + 1) % 4]),
					  _mm_alignr_epi8(w[(i + 3) % 4], w[(i + 2) % 4], 4));
			w[i % 4] = _mm_sha256msg2_epu32(x, w[(i + 3) % 4]);
		}
		abef = _mm_add_epi32(abef, abef_was);
		cdgh = _mm_add_epi32(cdgh, cdgh_was);
	}
	state[0] = abef;
	state[1] = cdgh;
}

void sha256_begin(struct sha256 *h)
{
	h->here = x86_cpu_present(x86_cpu_SHA) && x86_cpu_present(x86_cpu_SSE4_1);
	h->len = 0;
	if (!h->here) {
		crypto_hash_sha256_init(&h->other);
		return;
	}
	h->state[0] = _mm_set_epi32(0x6a09e667, (int)0xbb67ae85, 0x510e527f, (int)0x9b05688c);
	h->state[1] = _mm_set_epi32(0x3c6ef372, (int)0xa54ff53a, 0x1f83d9ab, 0x5be0cd19);
}

void sha256_add(struct sha256 *h, const void *bytes, size_t len)
{
	const uint8_t *p = bytes;
	if (!h->here) {
		crypto_hash_sha256_update(&h->other, bytes, len);
		return;
	}
	const size_t had = h->len % sizeof h->rest;
	h->len += len;
	if (had) {
		const size_t n = len < sizeof h->rest - had ? len : sizeof h->rest - had;
		memcpy(h->rest + had, p, n);
		if (had + n < sizeof h->rest)
			return;
		blocks(h->state, h->rest, 1);
		p += n;
		len -= n;
	}
	blocks(h->state, p, len / 64);
	if (len % 64)
		memcpy(h->rest, p + len / 64 * 64, len % 64);
}

void sha256_end(struct sha256 *h, uint8_t out[32])
{
	if (!h->here) {
		crypto_hash_sha256_final(&h->other, out);
		return;
	}
	uint8_t tail[128] = { 0 };
	const size_t rest = h->len % 64, end = rest < 56 ? 64 : 128;
	memcpy(tail, h->rest, rest);
	tail[rest] = 0x80;
	for (int i = 0; i < 8; i++)
		tail[end - 1 - i] = (uint8_t)(h->len * 8 >> 8 * i);
	blocks(h->state, tail, end / 64);
	uint32_t s[8];
	memcpy(s, h->state, sizeof s);
	static const int order[8] = { 3, 2, 7, 6, 1, 0, 5, 4 }; /* where a to h are */
	for (int i = 0; i < 8; i++)
		for (int b = 0; b < 4; b++)
			out[4 * i + b] = (uint8_t)(s[order[i]] >> (24 - 8 * b));
}

void sha256(uint8_t out[32], const void *bytes, size_t len)
{
	struct sha256 h;
	sha256_begin(&h);
	sha256_add(&h, bytes, len);
	sha256_end(&h, out);
}
