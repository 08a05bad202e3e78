/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers that a seed decides. */
#ifndef KX_GUEST_DRAW_H
#define KX_GUEST_DRAW_H
#include <stdint.h>

static uint64_t rng; /* the seed, not 0; then the state */

/* Less than n. */
static inline unsigned draw(unsigned n)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (unsigned)(rng >> 33) % n;
}
#endif
