/* SPDX-License-Identifier: Apache-2.0 */
/* A library whose symbols have versions. Later ones have more of them: each has another number there. */
#define F(n) \
	int f##n(void) { return V * 100 + n; }
#define E(n) \
	int e##n(void) { return n; }
F(0)
F(1)
F(2)
F(3)
F(4)
F(5)
F(6)
F(7)
#if V > 1
E(0)
E(1)
E(2)
E(3)
E(4)
E(5)
E(6)
E(7)
E(8)
E(9)
E(10)
E(11)
E(12)
#endif
#if V > 2
E(13)
E(14)
E(15)
E(16)
E(17)
E(18)
E(19)
E(20)
E(21)
E(22)
E(23)
E(24)
E(25)
E(26)
E(27)
E(28)
E(29)
#endif
