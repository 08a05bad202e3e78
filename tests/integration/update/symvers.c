/* SPDX-License-Identifier: Apache-2.0 */
/* For each line: looks the library's symbols up by their versions, right ones and wrong ones. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>

int f0(void);

int main(void)
{
	char line[16], name[8];
	void *h = dlopen("libupd.so.1", RTLD_NOW | RTLD_NOLOAD);
	printf("ready\n");
	fflush(stdout);
	while (h && fgets(line, sizeof line, stdin)) {
		int v = f0() / 100, bad = 0;
		for (int i = 0; i < 8; i++) {
			snprintf(name, sizeof name, "f%d", i);
			int (*f)(void) = (int (*)(void))dlvsym(h, name, i % 2 ? "V2" : "V1");
			bad += !f || f() != v * 100 + i;
			bad += dlvsym(h, name, i % 2 ? "V1" : "V2") != NULL;
		}
		printf("%d %s\n", v, bad ? "wrong" : "ok");
		fflush(stdout);
	}
	return 0;
}
