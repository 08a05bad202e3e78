/* SPDX-License-Identifier: Apache-2.0 */
/* Upkeep: what nobody needs any more is removed. */
#include "../../util/grow.h"
#include "store_priv.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "../../util/dirs.h"
#include "../../util/sha256.h"

struct gc {
	struct store *s;
	uint8_t (*used)[STORE_HASH];
	size_t nr, cap;
	int removed;
};

/* Is the file still the one that it is of? What may not be looked at, or not now, could be. 0: no; -errno: that can't be told. */
static int file_is_same(const struct store_entry *e)
{
	struct text_key key;
	struct stat st;
	int fd = -1;
	if (stat(e->path, &st) || (S_ISREG(st.st_mode) && (fd = open(e->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)) < 0))
		return store_is_trouble(errno) ? -errno : errno == EACCES || errno == EPERM;
	if (fd < 0)
		return 0;
	bool same = (store_is_copy(e) ? !fstat(fd, &st) && store_copy_key(&st, &key)
				      : text_key(fd, e->key.off, PAGES(e->key.len), &key)) &&
		    !memcmp(&key, &e->key, sizeof key);
	close(fd);
	return same;
}

static int used_add(struct gc *g, const uint8_t image[STORE_HASH])
{
	if (!kx_room(g->used, g->cap, g->nr + 1, 64))
		return -ENOMEM;
	memcpy(g->used[g->nr++], image, STORE_HASH);
	return 0;
}

static int gc_entry(const struct store_entry *e, bool sound, void *arg)
{
	struct gc *g = arg;
	char name[STORE_PATH];
	if (!sound) {
		g->removed += !unlinkat(g->s->dir, e->path, 0);
		return 0;
	}
	int same = file_is_same(e);
	int damaged = same > 0 && e->has_image ? store_verify_image(g->s, e->image) : 0;
	if (same < 0 || store_is_trouble(-damaged))
		return same < 0 ? same : damaged;
	if (!same || damaged) {
		store_entry_name(&e->key, name);
		g->removed += !unlinkat(g->s->dir, name, 0);
		return 0;
	}
	return e->has_image ? used_add(g, e->image) : 0;
}

/* A directory of another version's: two levels, no more. */
static int remove_old(int at, const char *name, int depth)
{
	struct dirent *d;
	int n = 0;
	DIR *dir = dir_open_at(at, name, O_NOFOLLOW);
	if (!dir)
		return 0;
	while ((d = readdir(dir))) {
		if (!strcmp(d->d_name, ".") || !strcmp(d->d_name, ".."))
			continue;
		if (!unlinkat(dirfd(dir), d->d_name, 0))
			n++;
		else if (depth)
			n += remove_old(dirfd(dir), d->d_name, depth - 1);
	}
	closedir(dir);
	unlinkat(at, name, AT_REMOVEDIR);
	return n;
}

static void images_gc(struct gc *g)
{
	struct dirent *d;
	DIR *dir = dir_open_at(g->s->dir, "images", O_NOFOLLOW);
	while (dir && (d = readdir(dir))) {
		char hex[2 * STORE_HASH + 1] = "";
		for (size_t i = 0; i < g->nr && strcmp(hex, d->d_name); i++)
			store_hex(g->used[i], hex);
		if (d->d_name[0] != '.' && strcmp(hex, d->d_name))
			g->removed += !unlinkat(dirfd(dir), d->d_name, 0);
	}
	if (dir)
		closedir(dir);
}

/* Do they belong to a program that is gone? The name proves the path, which may have been written over. */
static bool notes_are_old(int dir, const char *name)
{
	struct notes n;
	uint8_t hash[STORE_HASH];
	char is[2 * STORE_HASH + 1];
	struct stat st;
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return errno != ENOENT && !store_is_trouble(errno);
	bool whole = store_read_full(fd, &n, sizeof n, 0);
	close(fd);
	if (!whole || n.magic != NOTES_MAGIC || !memchr(n.program, 0, sizeof n.program))
		return true;
	sha256(hash, (const uint8_t *)n.program, strlen(n.program));
	store_hex(hash, is);
	return strcmp(is, name) || (stat(n.program, &st) && (errno == ENOENT || errno == ENOTDIR));
}

static void notes_gc(struct gc *g)
{
	struct dirent *d;
	DIR *dir = dir_open_at(g->s->dir, "notes", O_NOFOLLOW);
	while (dir && (d = readdir(dir)))
		if (d->d_name[0] != '.' && notes_are_old(dirfd(dir), d->d_name))
			g->removed += !unlinkat(dirfd(dir), d->d_name, 0);
	if (dir)
		closedir(dir);
}

int store_gc(struct store *s, struct kx_err *err)
{
	struct gc g = { .s = s };
	struct dirent *d;
	DIR *dir;
	int r = store_lock(s);
	if (r)
		return kx_err_set(err, -r, "%s: %s (%s)", s->path, strerror(-r), store_remedy(-r));
	g.removed += !unlinkat(s->dir, "new", 0);
	r = store_each(s, gc_entry, &g);
	if (!r) /* else it isn't known which are used */
		images_gc(&g);
	notes_gc(&g);
	free(g.used);
	if (r)
		return kx_err_set(err, -r, "%s: %s (%s)", s->path, strerror(-r), store_remedy(-r));
	if ((dir = dir_open_at(s->root, ".", O_NOFOLLOW))) {
		while ((d = readdir(dir)))
			if (!strncmp(d->d_name, "format-", 7) && strcmp(d->d_name, store_format))
				g.removed += remove_old(s->root, d->d_name, 1);
		closedir(dir);
	}
	return g.removed;
}
