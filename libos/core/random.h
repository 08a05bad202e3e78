/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random bytes without an exit: ChaCha20 with fast key erasure, one generator per thread (the rand_* fields of
 * struct kx_thread), seeded by the monitor.
 *
 * Every refill replaces the key first, and bytes are wiped as they are handed out: what was drawn before cannot be
 * computed from the state. A child of fork() starts with its parent's state; kx_shared.fork_gen differs there, so
 * that the first draw of each thread reseeds.
 */
#ifndef KX_RANDOM_H
#define KX_RANDOM_H
#include <stddef.h>
#include <stdint.h>
#include "../../abi/kx_abi.h"

#define RAND_RESEED_BYTES (1u << 20) /* drawn from one seed at most, but for the end of the last request */
#define RAND_SMALL 256               /* longer requests get a stream of their own instead of the buffer */

/* Fill buf with len bytes of the host's getrandom(2). Returns 0 or more on success, -errno on failure. */
typedef int (*rand_seed_fn)(void *buf, size_t len);

/*
 * Fill dst (LibOS memory) with len random bytes. Returns 0, or what seed() failed with; then dst is untouched.
 * For user memory draw blocks of some hundred bytes, copy, and wipe with rand_wipe().
 */
int rand_fill(struct kx_thread *t, const struct kx_shared *sh, void *dst, size_t len, rand_seed_fn seed);

/* Zero memory in a way that the compiler keeps. */
void rand_wipe(void *p, size_t len);

/* The ChaCha20 key stream of RFC 8439, from block `counter`. */
void rand_chacha20(const uint8_t key[32], uint32_t counter, const uint8_t nonce[12], uint8_t *out, size_t len);
#endif
