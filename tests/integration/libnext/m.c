/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a program sees of libraries that its linker has opened. Linked with some of them, or not.
 *
 *	m COMMAND...	each says one line or more:
 *	fds		descriptors that are open
 *	maps DIR	libraries of DIR that are mapped, and how
 *	open NAME	dlopen, which stays; its number, or the error
 *	close		dlclose of what was opened last
 *	call N		its function
 *	quick N NAME	dlopen and dlclose, so often
 *	watch NAME	the same, until its function f1 says something else than at first, and no other call
 *	locale		setlocale(LC_ALL, ""), and what is mapped of it
 *	keep		a descriptor that stays open
 *	shut N		close(2)
 *	put A B		rename
 *	limit N		of descriptors
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <langinfo.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static void fds(void)
{
	printf("fds:");
	for (int i = 0; i < 64; i++)
		if (fcntl(i, F_GETFD) >= 0)
			printf(" %d", i);
	printf("\n");
}

/* Those of a locale are not libraries. */
static void maps(const char *dir)
{
	char line[512], perm[8], path[400];
	unsigned long a, b, off;
	FILE *f = fopen("/proc/self/maps", "r");
	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "%lx-%lx %7s %lx %*s %*s %399s", &a, &b, perm, &off, path) == 5 &&
		    !strncmp(path, dir, strlen(dir)) && (strstr(path, ".so") || strstr(path, "/LC_")))
			printf("%s %s %lx %lx\n", path, perm, off, b - a);
	if (f)
		fclose(f);
}

static int version(const char *name)
{
	void *q = dlopen(name, RTLD_NOW);
	int (*fn)(int) = q ? (int (*)(int))dlsym(q, "f1") : NULL;
	int n = fn ? fn(0) : 0;
	if (q)
		dlclose(q);
	return n;
}

int main(int argc, char **argv)
{
	void *h = NULL;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "fds")) {
			fds();
		} else if (!strcmp(argv[i], "maps")) {
			maps(argv[++i]);
		} else if (!strcmp(argv[i], "open")) {
			h = dlopen(argv[++i], RTLD_NOW);
			printf("open: %s\n", h ? "good" : dlerror());
		} else if (!strcmp(argv[i], "close")) {
			printf("close: %d\n", dlclose(h));
		} else if (!strcmp(argv[i], "call")) {
			char name[16];
			snprintf(name, sizeof name, "f%s", argv[++i]);
			int (*fn)(int) = (int (*)(int))dlsym(h ? h : RTLD_DEFAULT, name);
			printf("call: %d\n", fn ? fn(0) : 0);
		} else if (!strcmp(argv[i], "quick")) {
			int n = atoi(argv[++i]), good = 0;
			i++;
			for (int k = 0; k < n; k++) {
				void *q = dlopen(argv[i], RTLD_NOW);
				good += q && !dlclose(q);
			}
			printf("quick: %d\n", good);
		} else if (!strcmp(argv[i], "watch")) {
			int first = version(argv[++i]), n = first;
			printf("watch: %d\n", first);
			fflush(stdout);
			for (time_t end = time(NULL) + 20; n == first && time(NULL) < end;)
				n = version(argv[i]);
			printf("watch: %d\n", n);
		} else if (!strcmp(argv[i], "locale")) {
			printf("locale: %s, %s\n", setlocale(LC_ALL, ""), nl_langinfo(CODESET));
			maps("/usr/lib/locale/");
		} else if (!strcmp(argv[i], "keep")) {
			printf("keep: %d\n", open("/dev/null", O_RDONLY));
		} else if (!strcmp(argv[i], "shut")) {
			printf("shut: %d\n", close(atoi(argv[++i])));
		} else if (!strcmp(argv[i], "put")) {
			printf("put: %d\n", rename(argv[i + 1], argv[i + 2]));
			i += 2;
		} else if (!strcmp(argv[i], "limit")) {
			struct rlimit r;
			getrlimit(RLIMIT_NOFILE, &r);
			r.rlim_cur = (rlim_t)atoi(argv[++i]);
			printf("limit: %d\n", setrlimit(RLIMIT_NOFILE, &r));
		}
	}
	fflush(stdout);
	return 0;
}
