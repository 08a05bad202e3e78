/* SPDX-License-Identifier: Apache-2.0 */
/*
 * twice FILE: linked with the library, and has FILE (the same) in another namespace, too. "v": the versions of both. "q":
 * the end.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>

int version(void);

int main(int argc, char **argv)
{
	char line[16];
	void *h = dlmopen(LM_ID_NEWLM, argc > 1 ? argv[1] : "", RTLD_NOW | RTLD_LOCAL);
	int (*other)(void) = h ? (int (*)(void))dlsym(h, "version") : NULL;
	if (!other) {
		printf("%s\n", dlerror());
		return 1;
	}
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		if (*line == 'q')
			break;
		printf("%d %d\n", version(), other());
		fflush(stdout);
	}
	return 0;
}
