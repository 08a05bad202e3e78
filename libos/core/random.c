/* SPDX-License-Identifier: Apache-2.0 */
#include "random.h"

#define BLOCK 64

_Static_assert(sizeof(((struct kx_thread *)0)->rand_buf) % BLOCK == 0, "refilled by whole blocks");

static uint32_t rotl(uint32_t x, int n) { return x << n | x >> (32 - n); }

static uint32_t load32(const uint8_t *p)
{
	uint32_t x;

	__builtin_memcpy(&x, p, 4);
	return x;
}

#define QUARTER(a, b, c, d) \
	do { \
		a += b; \
		d = rotl(d ^ a, 16); \
		c += d; \
		b = rotl(b ^ c, 12); \
		a += b; \
		d = rotl(d ^ a, 8); \
		c += d; \
		b = rotl(b ^ c, 7); \
	} while (0)

static void chacha_block(const uint32_t in[16], uint32_t out[16])
{
	uint32_t a = in[0], b = in[1], c = in[2], d = in[3], e = in[4], f = in[5], g = in[6], h = in[7];
	uint32_t i = in[8], j = in[9], k = in[10], l = in[11], m = in[12], n = in[13], o = in[14], p = in[15];

	for (int round = 0; round < 10; round++) {
		QUARTER(a, e, i, m);
		QUARTER(b, f, j, n);
		QUARTER(c, g, k, o);
		QUARTER(d, h, l, p);
		QUARTER(a, f, k, p);
		QUARTER(b, g, l, m);
		QUARTER(c, h, i, n);
		QUARTER(d, e, j, o);
	}
	out[0] = a + in[0], out[1] = b + in[1], out[2] = c + in[2], out[3] = d + in[3];
	out[4] = e + in[4], out[5] = f + in[5], out[6] = g + in[6], out[7] = h + in[7];
	out[8] = i + in[8], out[9] = j + in[9], out[10] = k + in[10], out[11] = l + in[11];
	out[12] = m + in[12], out[13] = n + in[13], out[14] = o + in[14], out[15] = p + in[15];
}

void rand_wipe(void *p, size_t len)
{
	__builtin_memset(p, 0, len);
	__asm__ volatile("" : : "r"(p) : "memory");
}

void rand_chacha20(const uint8_t key[32], uint32_t counter, const uint8_t nonce[12], uint8_t *out, size_t len)
{
	uint32_t in[16] = { 0x61707865, 0x3320646e, 0x79622d32, 0x6b206574 }, block[16];

	for (int i = 0; i < 8; i++)
		in[4 + i] = load32(key + 4 * i);
	in[12] = counter;
	for (int i = 0; i < 3; i++)
		in[13 + i] = load32(nonce + 4 * i);
	while (len) {
		size_t n = len < BLOCK ? len : BLOCK;

		chacha_block(in, block);
		__builtin_memcpy(out, block, n);
		in[12]++;
		out += n;
		len -= n;
	}
	rand_wipe(in, sizeof(in));
	rand_wipe(block, sizeof(block));
}

static const uint8_t no_nonce[12];

/* New buffer and new key, both from the old key, which is then gone. */
static void refill(struct kx_thread *t)
{
	rand_chacha20(t->rand_key, 0, no_nonce, t->rand_buf, sizeof(t->rand_buf));
	__builtin_memcpy(t->rand_key, t->rand_buf, sizeof(t->rand_key));
	rand_wipe(t->rand_buf, sizeof(t->rand_key));
	t->rand_left = sizeof(t->rand_buf) - sizeof(t->rand_key);
}

static void draw(struct kx_thread *t, uint8_t *dst, size_t len)
{
	while (len) {
		uint8_t *p;
		size_t n;

		if (!t->rand_left || t->rand_left > sizeof(t->rand_buf) - sizeof(t->rand_key))
			refill(t);
		n = len < t->rand_left ? len : t->rand_left;
		p = t->rand_buf + sizeof(t->rand_buf) - t->rand_left;
		__builtin_memcpy(dst, p, n);
		rand_wipe(p, n);
		t->rand_left -= (uint32_t)n;
		dst += n;
		len -= n;
	}
}

/* The fresh seed is added to the old key, so that a bad one makes nothing worse. */
static int reseed(struct kx_thread *t, uint32_t gen, rand_seed_fn seed)
{
	uint8_t fresh[sizeof(t->rand_key)];
	int ret = seed(fresh, sizeof(fresh));

	if (ret < 0)
		return ret;
	for (size_t i = 0; i < sizeof(fresh); i++)
		t->rand_key[i] ^= fresh[i];
	rand_wipe(fresh, sizeof(fresh));
	rand_wipe(t->rand_buf, sizeof(t->rand_buf));
	t->rand_left = 0;
	t->rand_bytes = 0;
	t->rand_gen = gen;
	return 0;
}

int rand_fill(struct kx_thread *t, const struct kx_shared *sh, void *dst, size_t len, rand_seed_fn seed)
{
	uint32_t gen = __atomic_load_n(&sh->fork_gen, __ATOMIC_RELAXED) + 1; /* 0 is a state never seeded */
	uint8_t key[32];

	if (t->rand_gen != gen || t->rand_bytes >= RAND_RESEED_BYTES) {
		int ret = reseed(t, gen, seed);

		if (ret < 0)
			return ret;
	}
	t->rand_bytes += len;
	if (len <= RAND_SMALL) {
		draw(t, dst, len);
		return 0;
	}
	draw(t, key, sizeof(key));
	/* The 32-bit block counter: a key serves 256 GiB, and no request is that long. */
	rand_chacha20(key, 0, no_nonce, dst, len);
	rand_wipe(key, sizeof(key));
	return 0;
}
