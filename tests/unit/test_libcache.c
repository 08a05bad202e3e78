/* SPDX-License-Identifier: Apache-2.0 */
/* The linker's cache: each name that this host's has is found as a walk through the whole list finds it; broken lists. */
#include "../../monitor/core/libcache.c"
#include <errno.h>
#include <stdio.h>
#include <unistd.h>
#include "check.h"

/* As the monitor's: -errno. */
long host_call(long nr, long a, long b, long c, long d, long e, long f)
{
	long r = syscall(nr, a, b, c, d, e, f);
	return r < 0 ? -errno : r;
}

/* The whole list, as it was read; the first entry of that name, or NULL. */
static const char *walk(const char *name)
{
	struct header h;
	memcpy(&h, text, sizeof h);
	for (uint32_t i = 0; i < h.nr; i++) {
		const struct entry e = entry_at(i);
		if (e.flags == LIBC6_X86_64 && !e.hwcap && !strcmp(text + e.name, name))
			return text + e.path;
	}
	return NULL;
}

static void test_host(void)
{
	char path[4096];
	struct header h;
	if (access(LIBCACHE_PATH, R_OK)) {
		printf("skip: no " LIBCACHE_PATH "\n");
		return;
	}
	CHECK(!libcache_find("no such library", path, sizeof path), "none");
	CHECK(text && text_len > sizeof h, "the list");
	memcpy(&h, text, sizeof h);
	for (uint32_t i = 0; i < h.nr; i++) {
		const char *is = walk(name_at(i));
		const bool found = libcache_find(name_at(i), path, sizeof path);
		CHECK(found == (is != NULL) && (!is || !strcmp(path, is)), "%s: %s", name_at(i), found ? path : "none");
	}
	CHECK(h.nr && libcache_find("libc.so.6", path, sizeof path), "libc, of %u", h.nr);
	CHECK(!libcache_find("libc.so.6", path, 4), "no room");
}

static void test_order(void)
{
	static const char *const rising[] = { "",           "libA.so.1",   "liba-2.so", "liba.so",
					      "liba.so.x1", "liba.so.x02", "liba.so.1", "liba.so.2",
					      "liba.so.10", "libaa",       "liba1",     "libb" };
	const unsigned n = sizeof rising / sizeof *rising;
	for (unsigned i = 0; i < n; i++)
		for (unsigned j = 0; j < n; j++)
			CHECK((compare(rising[i], rising[j]) > 0) == (i > j) &&
				      (compare(rising[i], rising[j]) < 0) == (i < j),
			      "%s and %s: %d", rising[i], rising[j], compare(rising[i], rising[j]));
	CHECK(!compare("lib01", "lib1"), "a number");
}

/* Names and paths out of the file, and more entries than it has. */
static void test_broken(void)
{
	char path[4096];
	struct stat keep;
	struct header h;
	if (!text || stat(LIBCACHE_PATH, &keep))
		return;
	for (uint32_t i = 0; i < 2; i++) {
		memcpy(&h, text, sizeof h);
		for (uint32_t k = 0; k < h.nr; k++) {
			struct entry e = entry_at(k);
			*(i ? &e.path : &e.name) = UINT32_MAX - k;
			memcpy(text + sizeof h + k * sizeof e, &e, sizeof e);
		}
		CHECK(!libcache_find("libc.so.6", path, sizeof path), "out of the file: %u", i);
		free(text);
		text = NULL;
		CHECK(libcache_find("libc.so.6", path, sizeof path), "read anew");
	}
	h.nr = UINT32_MAX;
	memcpy(text, &h, sizeof h);
	CHECK(!libcache_find("libc.so.6", path, sizeof path), "too many");
}

int main(void)
{
	test_host();
	test_order();
	test_broken();
	printf("%s: %d checks, %d failures\n", failures ? "FAILED" : "SUCCESS", checks, failures);
	return failures != 0;
}
