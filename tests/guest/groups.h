/* SPDX-License-Identifier: Apache-2.0 */
/* A test in groups of checks, of which its arguments may name some. Each begins with zeroed shared words, and leaves no child. */
#ifndef KX_GUEST_GROUPS_H
#define KX_GUEST_GROUPS_H
#include "check.h"

#define GROUPS_WORDS 4096 /* bytes */

struct group {
	const char *name;
	void (*fn)(void);
};

static inline void groups_run(const struct group *all, unsigned n, int argc, char **argv, volatile int *words)
{
	for (unsigned k = 0; k < n; k++) {
		if (!is_wanted(argc, argv, all[k].name))
			continue;
		memset((void *)words, 0, GROUPS_WORDS);
		all[k].fn();
		check(wait(NULL) == -1 && errno == ECHILD, "no child left");
	}
	check_named(argc);
}
#endif
