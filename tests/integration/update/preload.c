/* SPDX-License-Identifier: Apache-2.0 */
/* LD_PRELOAD: stands before the library's version(), and calls it. */
#define _GNU_SOURCE
#include <dlfcn.h>

int version(void)
{
	static int (*next)(void);
	if (!next)
		next = (int (*)(void))dlsym(RTLD_NEXT, "version");
	return next() + 100;
}
