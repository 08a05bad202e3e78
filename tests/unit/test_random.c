/* SPDX-License-Identifier: Apache-2.0 */
/* The LibOS random generator as a host program: vectors, reseeding, fork, wiping. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../libos/core/random.h"

static int failures;

static void check(bool ok, const char *name)
{
	printf("%s %s\n", ok ? "ok" : "FAIL", name);
	failures += !ok;
}

static unsigned seeds;
static int seed_result;
static uint8_t seed_byte;

static int seed(void *buf, size_t len)
{
	seeds++;
	memset(buf, seed_byte, len);
	return seed_result ? seed_result : (int)len;
}

static bool contains(const void *hay, size_t hay_len, const void *needle, size_t len)
{
	for (size_t i = 0; i + len <= hay_len; i++)
		if (!memcmp((const char *)hay + i, needle, len))
			return true;
	return false;
}

/* RFC 8439, 2.3.2 (block function) and A.1 vectors 1 and 2 (zero key, blocks 0 and 1). */
static void test_vectors(void)
{
	static const uint8_t nonce[12] = { 0, 0, 0, 9, 0, 0, 0, 0x4a, 0, 0, 0, 0 }, zero[32];
	static const uint8_t want[64] = { 0x10, 0xf1, 0xe7, 0xe4, 0xd1, 0x3b, 0x59, 0x15, 0x50, 0x0f, 0xdd, 0x1f, 0xa3,
					  0x20, 0x71, 0xc4, 0xc7, 0xd1, 0xf4, 0xc7, 0x33, 0xc0, 0x68, 0x03, 0x04, 0x22,
					  0xaa, 0x9a, 0xc3, 0xd4, 0x6c, 0x4e, 0xd2, 0x82, 0x64, 0x46, 0x07, 0x9f, 0xaa,
					  0x09, 0x14, 0xc2, 0xd7, 0x05, 0xd9, 0x8b, 0x02, 0xa2, 0xb5, 0x12, 0x9c, 0xd1,
					  0xde, 0x16, 0x4e, 0xb9, 0xcb, 0xd0, 0x83, 0xe8, 0xa2, 0x50, 0x3c, 0x4e };
	static const uint8_t want0[16] = { 0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90,
					   0x40, 0x5d, 0x6a, 0xe5, 0x53, 0x86, 0xbd, 0x28 };
	static const uint8_t want1[16] = { 0x9f, 0x07, 0xe7, 0xbe, 0x55, 0x51, 0x38, 0x7a,
					   0x98, 0xba, 0x97, 0x7c, 0x73, 0x2d, 0x08, 0x0d };
	uint8_t key[32], out[128];

	for (int i = 0; i < 32; i++)
		key[i] = (uint8_t)i;
	rand_chacha20(key, 1, nonce, out, 64);
	check(!memcmp(out, want, 64), "RFC 8439 2.3.2");
	rand_chacha20(zero, 0, zero, out, 128);
	check(!memcmp(out, want0, 16) && !memcmp(out + 64, want1, 16), "RFC 8439 A.1");
	memset(out, 0x55, sizeof(out));
	rand_chacha20(key, 1, nonce, out, 13);
	check(!memcmp(out, want, 13) && out[13] == 0x55, "partial block");
}

static void test_seeding(void)
{
	static struct kx_thread t, child;
	static struct kx_shared sh;
	uint8_t a[64], b[64];

	seeds = 0;
	memset(a, 0x77, sizeof(a));
	seed_result = -11;
	check(rand_fill(&t, &sh, a, 32, seed) == -11 && a[0] == 0x77 && t.rand_gen == 0, "seed failure");
	seed_result = 0;
	check(!rand_fill(&t, &sh, a, 32, seed) && seeds == 2 && t.rand_gen == 1, "first seed");
	check(!rand_fill(&t, &sh, b, 32, seed) && seeds == 2 && memcmp(a, b, 32), "no second seed, other bytes");

	child = t;
	seed_byte = 1;
	sh.fork_gen++;
	rand_fill(&child, &sh, a, 64, seed);
	check(seeds == 3, "fork reseeds");
	sh.fork_gen--;
	rand_fill(&t, &sh, b, 64, seed);
	check(seeds == 3 && memcmp(a, b, 64), "child and parent differ");

	while (seeds == 3 && t.rand_bytes < 4 * RAND_RESEED_BYTES)
		rand_fill(&t, &sh, a, 64, seed);
	check(seeds == 4 && t.rand_bytes == 64, "reseed after 1 MiB");
}

static void test_erasure(void)
{
	static struct kx_thread t;
	static struct kx_shared sh;
	static uint8_t big[5000];
	uint8_t out[256], key[32];
	bool leaked = false;

	for (int i = 0; i < 1000; i++) {
		size_t n = (size_t)(8 + i % 249);

		memcpy(key, t.rand_key, 32);
		rand_fill(&t, &sh, out, n, seed);
		leaked |= contains(&t, sizeof(t), out, 8) || contains(&t, sizeof(t), out + n - 8, 8);
	}
	check(!leaked, "used bytes are wiped");
	memcpy(key, t.rand_key, 32);
	rand_fill(&t, &sh, out, 250, seed);
	rand_fill(&t, &sh, out, 250, seed);
	check(memcmp(key, t.rand_key, 32), "a refill replaces the key");
	rand_fill(&t, &sh, big, sizeof(big), seed);
	check(!contains(&t, sizeof(t), big, 8) && !contains(big + 64, sizeof(big) - 64, big, 16), "large request");
	t.rand_left = 0xffffffff;
	check(!rand_fill(&t, &sh, out, 16, seed) && t.rand_left <= sizeof(t.rand_buf), "broken rand_left");
}

/* Crude: each bit is set about half of the time, over both the small and the large path. */
static void test_bits(void)
{
	static struct kx_thread t;
	static struct kx_shared sh;
	static uint8_t buf[1 << 16];
	bool bad = false;

	for (size_t len = 16; len <= 4096; len *= 16) {
		unsigned count[8] = { 0 };

		for (size_t i = 0; i < sizeof(buf); i += len)
			rand_fill(&t, &sh, buf + i, len, seed);
		for (size_t i = 0; i < sizeof(buf); i++)
			for (int k = 0; k < 8; k++)
				count[k] += buf[i] >> k & 1;
		for (int k = 0; k < 8; k++)
			bad |= abs((int)count[k] - (1 << 15)) > 1024; /* 8 sigma */
	}
	check(!bad, "bit balance");
}

int main(void)
{
	test_vectors();
	test_seeding();
	test_erasure();
	test_bits();
	puts(failures ? "FAILED" : "SUCCESS");
	return failures != 0;
}
