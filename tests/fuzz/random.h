/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers of 64 bits that a seed decides. */
#ifndef KX_FUZZ_RANDOM_H
#define KX_FUZZ_RANDOM_H
#include <stdint.h>

static uint64_t state = 1; /* the seed, not 0; then the state */

static inline uint64_t rnd(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state * 0x2545f4914f6cdd1dull;
}

static inline uint64_t below(uint64_t n) { return rnd() % n; }
#endif
