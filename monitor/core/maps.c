/* SPDX-License-Identifier: Apache-2.0 */
#include "maps.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "hcall.h"

#define LINE_MAX_BYTES 8192 /* more than a path and what comes before it */
#define TEXT_MAX (256 << 10)
#define FIRST ((void *)0x10000) /* in the list: it is free, and the lowest that any process may have */

/* A number, and the character behind it. False: it is something else. */
static bool number(const char **p, int base, char behind, uint64_t *v)
{
	char *end;
	*v = strtoull(*p, &end, base);
	if (end == *p || *end != behind)
		return false;
	*p = end + 1;
	return true;
}

/* A word of less than size bytes, and the blank behind it. */
static bool word(const char **p, char *to, size_t size)
{
	size_t n = strcspn(*p, " \n");
	if (!n || n >= size || (*p)[n] != ' ')
		return false;
	memcpy(to, *p, n);
	to[n] = 0;
	*p += n + 1;
	return true;
}

const char *maps_parse(const char *text, struct maps_line *l)
{
	const char *eol = strchr(text, '\n'), *p = text;
	if (!eol || !number(&p, 16, '-', &l->start) || !number(&p, 16, ' ', &l->end) ||
	    !word(&p, l->perm, sizeof l->perm) || strlen(l->perm) != 4 || !number(&p, 16, ' ', &l->off) ||
	    !word(&p, l->dev, sizeof l->dev))
		return NULL;
	char *end;
	l->ino = strtoull(p, &end, 10);
	if (end == p || end > eol || (*end != ' ' && *end != '\n'))
		return NULL;
	p = end + strspn(end, " ");
	l->path = p;
	l->path_len = (size_t)(eol - p);
	return eol + 1;
}

bool maps_each(bool (*fn)(const struct maps_line *l, void *arg), void *arg)
{
	char text[LINE_MAX_BYTES];
	size_t have = 0;
	ssize_t n;
	bool good = true, more = true;
	int fd = proc_file("self/maps");
	if (fd < 0)
		return false;
	while (good && more && (n = read(fd, text + have, sizeof text - 1 - have)) > 0) {
		const char *line = text;
		have += (size_t)n;
		text[have] = 0;
		while (good && more && strchr(line, '\n')) {
			struct maps_line l;
			const char *next = maps_parse(line, &l);
			good = next != NULL;
			more = good && fn(&l, arg);
			line = good ? next : line;
		}
		have -= (size_t)(line - text);
		memmove(text, line, have);
	}
	close(fd);
	return good && (!more || !have);
}

struct file_at {
	uint64_t start;
	uint64_t *dev, *ino;
};

static bool file_line(const struct maps_line *l, void *arg)
{
	struct file_at *f = arg;
	char *rest;
	if (l->start != f->start)
		return true;
	unsigned long major = strtoul(l->dev, &rest, 16);
	*f->dev = makedev(major, strtoul(rest + 1, NULL, 16));
	*f->ino = l->ino;
	return false;
}

void maps_file(int fd, const struct stat *st, uint64_t *dev, uint64_t *ino)
{
	*dev = st->st_dev;
	*ino = st->st_ino;
	if (major(st->st_dev)) /* a device of its own: no such file system */
		return;
	void *p = mmap(FIRST, 1, PROT_READ, MAP_PRIVATE, fd, 0);
	if (p == MAP_FAILED)
		return;
	maps_each(file_line, &(struct file_at){ (uint64_t)p, dev, ino });
	munmap(p, 1);
}

char *maps_text(void)
{
	size_t have = 0;
	ssize_t n;
	int fd = proc_file("self/maps");
	char *text = fd < 0 ? NULL : malloc(TEXT_MAX);
	while (text && have < TEXT_MAX - 1 && (n = read(fd, text + have, TEXT_MAX - 1 - have)) > 0)
		have += (size_t)n;
	if (text)
		text[have] = 0;
	if (fd >= 0)
		close(fd);
	return text;
}
