/* SPDX-License-Identifier: Apache-2.0 */
/* Says which of several libraries, or versions, it was linked with. */
#include <stdio.h>
int value_x(void), shared_symbol(void);
#ifdef OTHER
int value_y(void), other_y(void);
#endif
#ifdef OLD
__asm__(".symver f, f@OLD");
#endif
#ifdef VERSIONS
int f(void), calls_hidden(void);
#endif
#ifdef MISSING
int nobody_defines_it(void);
#endif

int main(int argc, char **argv)
{
	(void)argv;
	printf("x %d, shared %d\n", value_x(), shared_symbol());
#ifdef OTHER
	printf("y %d, by it %d\n", value_y(), other_y());
#endif
#ifdef VERSIONS
	printf("f %d %d\n", f(), calls_hidden());
#endif
#ifdef MISSING
	if (argc > 5)
		nobody_defines_it();
#endif
	return argc > 1 ? 3 : 0;
}
