/* SPDX-License-Identifier: Apache-2.0 */
#include "libcache.h"
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include "hcall.h"
#include "keeper.h"

#define MAGIC "glibc-ld.so.cache1.1"
#define LIBC6_X86_64 0x0303
#define SIZE_MAX_ (1u << 20)

/* glibc's sysdeps/generic/dl-cache.h */
struct header {
	char magic[20];
	uint32_t nr, len_strings;
	uint32_t flags, extension, unused[3];
};

struct entry {
	int32_t flags;
	uint32_t name, path, osversion;
	uint64_t hwcap;
};

static char *text; /* NUL behind it */
static size_t text_len;
static struct stat as_of;

static bool same(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static bool text_read(void)
{
	struct stat st;
	if (HC6(SYS_newfstatat, AT_FDCWD, LIBCACHE_PATH, &st, 0, 0, 0) || !S_ISREG(st.st_mode) ||
	    st.st_size > SIZE_MAX_)
		return false;
	if (text && same(&st, &as_of))
		return true;
	free(text);
	text = malloc((size_t)st.st_size + 1);
	long fd = text ? HC6(SYS_openat, AT_FDCWD, LIBCACHE_PATH, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0, 0, 0) : -1;
	long n = fd < 0 ? -1 : HC6(SYS_pread64, fd, text, st.st_size, 0, 0, 0);
	if (fd >= 0)
		HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	if (n < 0) {
		free(text);
		text = NULL;
		return false;
	}
	text[n] = 0;
	text_len = (size_t)n;
	as_of = st;
	return true;
}

/* As glibc orders names (elf/dl-cache.c): numbers in them by what they are. */
static int compare(const char *a, const char *b)
{
	while (*a) {
		const bool da = *a >= '0' && *a <= '9', db = *b >= '0' && *b <= '9';
		if (da && db) {
			unsigned na = 0, nb = 0;
			for (; *a >= '0' && *a <= '9'; a++)
				na = na * 10 + (unsigned)(*a - '0');
			for (; *b >= '0' && *b <= '9'; b++)
				nb = nb * 10 + (unsigned)(*b - '0');
			if (na != nb)
				return na < nb ? -1 : 1;
		} else if (da || db) {
			return da ? 1 : -1;
		} else if (*a != *b) {
			return *a - *b;
		} else {
			a++;
			b++;
		}
	}
	return *a - *b;
}

static struct entry entry_at(uint32_t i)
{
	struct entry e;
	memcpy(&e, text + sizeof(struct header) + i * sizeof e, sizeof e);
	return e;
}

/* The entry's name; none where the list is broken. */
static const char *name_at(uint32_t i)
{
	const struct entry e = entry_at(i);
	return e.name < text_len ? text + e.name : "";
}

/* The first of the entries in the list, which is in falling order, that is not before that name. */
static uint32_t first_of(const char *name, uint32_t nr)
{
	uint32_t from = 0, to = nr;
	while (from < to) {
		const uint32_t middle = from + (to - from) / 2;
		if (compare(name_at(middle), name) > 0)
			from = middle + 1;
		else
			to = middle;
	}
	return from;
}

bool libcache_find(const char *name, char *path, size_t size)
{
	struct header h;
	if (!text_read() || text_len < sizeof h)
		return false;
	memcpy(&h, text, sizeof h);
	if (memcmp(h.magic, MAGIC, sizeof h.magic) || h.nr > (text_len - sizeof h) / sizeof(struct entry))
		return false;
	for (uint32_t i = first_of(name, h.nr); i < h.nr && !compare(name_at(i), name); i++) {
		const struct entry e = entry_at(i);
		if (e.flags != LIBC6_X86_64 || e.hwcap || e.path >= text_len || strcmp(name_at(i), name) != 0)
			continue;
		size_t n = strlen(text + e.path) + 1;
		if (n > size)
			return false;
		memcpy(path, text + e.path, n);
		return true;
	}
	return false;
}
