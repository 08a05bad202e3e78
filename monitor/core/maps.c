/* SPDX-License-Identifier: Apache-2.0 */
#include "maps.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "hcall.h"
#include "keeper.h"

#define LINE_MAX_BYTES 8192 /* more than a path and what comes before it */
#define TEXT_MAX (256 << 10)
#define FIRST ((void *)0x10000) /* in the list: it is free, and the lowest that any process may have */

static unsigned digit(char c)
{
	if (c >= '0' && c <= '9')
		return (unsigned)(c - '0');
	return c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10 : 16;
}

/* *p becomes what is behind the number. False: there is none, or one of more than 64 bits. */
static bool digits(const char **p, unsigned base, uint64_t *v)
{
	const char *s = *p;
	for (*v = 0; digit(*s) < base; s++)
		if (__builtin_mul_overflow(*v, base, v) || __builtin_add_overflow(*v, digit(*s), v))
			return false;
	const bool some = s != *p;
	*p = s;
	return some;
}

/* A hexadecimal number, and the character behind it. False: it is something else. */
static bool number(const char **p, char behind, uint64_t *v) { return digits(p, 16, v) && *(*p)++ == behind; }

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
	if (!eol || !number(&p, '-', &l->start) || !number(&p, ' ', &l->end) || !word(&p, l->perm, sizeof l->perm) ||
	    strlen(l->perm) != 4 || !number(&p, ' ', &l->off) || !word(&p, l->dev, sizeof l->dev))
		return NULL;
	if (!digits(&p, 10, &l->ino) || (*p != ' ' && *p != '\n'))
		return NULL;
	p += strspn(p, " ");
	l->path = p;
	l->path_len = (size_t)(eol - p);
	return eol + 1;
}

dev_t maps_dev(const struct maps_line *l)
{
	char *rest;
	unsigned long major = strtoul(l->dev, &rest, 16);
	return makedev(major, *rest ? strtoul(rest + 1, NULL, 16) : 0);
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
	if (l->start != f->start)
		return true;
	*f->dev = maps_dev(l);
	*f->ino = l->ino;
	return false;
}

/* Latest first; one without times is none. Changed under the lock, and the turn is odd meanwhile. */
static struct maps_known known[MAPS_KNOWN];
static unsigned known_turn;
static pthread_mutex_t known_lock = PTHREAD_MUTEX_INITIALIZER;

static bool known_is(const struct maps_known *k, const struct maps_known *of)
{
	return k->st_dev == of->st_dev && k->st_ino == of->st_ino && k->size == of->size &&
	       k->mtime_ns == of->mtime_ns && k->ctime_ns == of->ctime_ns;
}

/* To the front, from where it is or from outside. */
static void known_first(const struct maps_known *k, unsigned at)
{
	const struct maps_known first = *k;
	if (!at)
		return;
	__atomic_add_fetch(&known_turn, 1, __ATOMIC_SEQ_CST);
	memmove(known + 1, known, (at < MAPS_KNOWN ? at : MAPS_KNOWN - 1) * sizeof *known);
	known[0] = first;
	__atomic_add_fetch(&known_turn, 1, __ATOMIC_SEQ_CST);
}

static bool known_find(struct maps_known *k)
{
	unsigned i = 0;
	while (i < MAPS_KNOWN && !known_is(&known[i], k))
		i++;
	if (i == MAPS_KNOWN)
		return false;
	known_first(&known[i], i);
	*k = known[0];
	return true;
}

/* A lock that is held, as in a child whose parent had it when it forked, is not waited for: nothing has to be known. */
static bool known_begin(void) { return !is_vfork_child() && !pthread_mutex_trylock(&known_lock); }

/* Without the lock: a child of vfork can't have it. */
void maps_known_export(struct maps_known out[MAPS_KNOWN])
{
	const unsigned turn = __atomic_load_n(&known_turn, __ATOMIC_SEQ_CST);
	memcpy(out, known, sizeof known);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (turn % 2 || turn != __atomic_load_n(&known_turn, __ATOMIC_SEQ_CST))
		memset(out, 0, sizeof known);
}

void maps_known_import(const struct maps_known in[MAPS_KNOWN]) { memcpy(known, in, sizeof known); }

static int64_t nanoseconds(const struct timespec *t) { return t->tv_sec * 1000000000ll + t->tv_nsec; }

static bool file_find(int fd, struct maps_known *k)
{
	void *p = mmap(FIRST, 1, PROT_READ, MAP_PRIVATE, fd, 0);
	if (p == MAP_FAILED)
		return false;
	const bool found = maps_each(file_line, &(struct file_at){ (uint64_t)p, &k->dev, &k->ino });
	munmap(p, 1);
	return found;
}

void maps_file(int fd, const struct stat *st, uint64_t *dev, uint64_t *ino)
{
	struct maps_known k = { .st_dev = st->st_dev,
				.st_ino = st->st_ino,
				.size = (uint64_t)st->st_size,
				.mtime_ns = nanoseconds(&st->st_mtim),
				.ctime_ns = nanoseconds(&st->st_ctim),
				.dev = st->st_dev,
				.ino = st->st_ino };
	if (!major(st->st_dev)) { /* with a device of its own there is no such file system */
		const bool mine = known_begin();
		if ((!mine || !known_find(&k)) && file_find(fd, &k) && mine)
			known_first(&k, MAPS_KNOWN);
		if (mine)
			pthread_mutex_unlock(&known_lock);
	}
	*dev = k.dev;
	*ino = k.ino;
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
