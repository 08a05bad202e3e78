/* SPDX-License-Identifier: Apache-2.0 */
/* Upkeep: what nobody needs any more is removed. */
#include "store_priv.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct gc {
	struct store *s;
	uint8_t (*used)[STORE_HASH];
	size_t nr, cap;
	int removed, r;
};

static int gc_entry(const struct store_entry *e, bool sound, void *arg)
{
	struct gc *g = arg;
	struct text_key key;
	char name[STORE_PATH];
	if (!sound) {
		g->removed += !unlinkat(g->s->dir, e->path, 0);
		return 0;
	}
	struct stat st;
	int fd = stat(e->path, &st) || !S_ISREG(st.st_mode) ? -1 : open(e->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	bool same = fd >= 0 &&
		    (store_is_copy(e) ? !fstat(fd, &st) && store_copy_key(&st, &key)
				      : text_key(fd, e->key.off, PAGES(e->key.len), &key)) &&
		    !memcmp(&key, &e->key, sizeof key);
	if (fd >= 0)
		close(fd);
	if (!same || (e->has_image && store_verify_image(g->s, e->image))) {
		store_entry_name(&e->key, name);
		g->removed += !unlinkat(g->s->dir, name, 0);
		return 0;
	}
	if (!e->has_image)
		return 0;
	if (g->nr == g->cap) {
		size_t cap = g->cap ? 2 * g->cap : 64;
		void *p = realloc(g->used, cap * STORE_HASH);
		if (!p)
			return g->r = -ENOMEM;
		g->used = p;
		g->cap = cap;
	}
	memcpy(g->used[g->nr++], e->image, STORE_HASH);
	return 0;
}

/* A directory of another version's: two levels, no more. */
static int remove_old(int at, const char *name, int depth)
{
	struct dirent *d;
	int n = 0;
	DIR *dir = store_part_open(at, name);
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

int store_gc(struct store *s, struct kx_err *err)
{
	struct gc g = { .s = s };
	struct dirent *d;
	DIR *dir;
	int r = store_lock(s);
	if (r)
		return kx_err_set(err, -r, "%s: %s (another start writes to it: try again)", s->path, strerror(-r));
	g.removed += !unlinkat(s->dir, "new", 0);
	store_each(s, gc_entry, &g);
	if (!g.r && (dir = store_part_open(s->dir, "images"))) {
		while ((d = readdir(dir))) {
			char hex[2 * STORE_HASH + 1] = "";
			size_t i = 0;
			for (; i < g.nr && strcmp(hex, d->d_name); i++)
				store_hex(g.used[i], hex);
			if (d->d_name[0] != '.' && strcmp(hex, d->d_name))
				g.removed += !unlinkat(dirfd(dir), d->d_name, 0);
		}
		closedir(dir);
	}
	free(g.used);
	if (g.r)
		return kx_err_set(err, -g.r, "memory: none left on the host (free some)");
	if ((dir = store_part_open(s->root, "."))) {
		while ((d = readdir(dir)))
			if (!strncmp(d->d_name, "format-", 7) && strcmp(d->d_name, store_format))
				g.removed += remove_old(s->root, d->d_name, 1);
		closedir(dir);
	}
	return g.removed;
}
