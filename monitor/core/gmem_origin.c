/* SPDX-License-Identifier: Apache-2.0 */
/* Under a policy: what a mapping of a file is, and may become. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include "../../util/grow.h"
#include "admit.h"
#include "gmem_priv.h"
#include "gmem_pages.h"
#include "maps.h"

/* A private mapping of a file, as it was made. Regions name it by its number + 1. */
struct origin {
	uint64_t start, len, off, dev, ino; /* as fstat() has the file, or the image's copy */
	struct image *image;                /* NULL: not asked for */
};
static struct origin *origins;
static uint32_t nr_origins, cap_origins;

static uint32_t origins_unused; /* number + 1 of the first of those that no region has; the next is its off */

/* Returns how many there are. */
static uint32_t origins_collect(void)
{
	uint8_t *used = calloc(1, nr_origins ? nr_origins : 1);
	uint32_t n = 0;
	if (!used)
		return 0;
	origins_unused = 0; /* all of them again */
	for (size_t i = 0; i < nr_regions; i++)
		if (regions[i].origin)
			used[regions[i].origin - 1] = 1;
	for (uint32_t i = nr_origins; i-- > 0;)
		if (!used[i]) {
			if (origins[i].image)
				admit_hold(origins[i].image, -1);
			origins[i] = (struct origin){ .off = origins_unused };
			origins_unused = i + 1;
			n++;
		}
	free(used);
	return n;
}

void gmem_images_let_go(void) { origins_collect(); }

/* Number + 1, 0 = no memory. Regions that are to keep theirs must have it. */
static uint32_t origin_add(uint64_t start, uint64_t len, uint64_t off, const struct stat *st, struct image *image)
{
	/* Grown until a collection pays: it looks at all regions. */
	if (!origins_unused && nr_origins == cap_origins && origins_collect() < cap_origins / 2 + nr_regions / 16 + 1 &&
	    !kx_room(origins, cap_origins, nr_origins + 1, 64) && !origins_unused)
		return 0;
	uint32_t k = origins_unused;
	if (k)
		origins_unused = (uint32_t)origins[k - 1].off;
	else
		k = ++nr_origins;
	origins[k - 1] = (struct origin){ start, len, off, st->st_dev, st->st_ino, image };
	if (image)
		admit_hold(image, 1);
	return k;
}

static struct origin *origin_at(uint64_t gva)
{
	size_t i = region_find(gva);
	return i < nr_regions && regions[i].start <= gva && regions[i].origin ? &origins[regions[i].origin - 1] : NULL;
}

uint32_t origin_number(uint64_t gva)
{
	const struct origin *o = origin_at(gva);
	return o ? (uint32_t)(o - origins) + 1 : 0;
}

/* A line of the host's list of mappings: which images' files are mapped there? */
static bool number_line(const struct maps_line *l, void *unused)
{
	const uint64_t base = (uint64_t)pvm.base, start = l->start - base, end = l->end - base;
	(void)unused;
	for (size_t i = region_find(start); l->ino && i < nr_regions && regions[i].start < end; i++) {
		const struct gmem_region *r = &regions[i];
		const struct origin *o = r->origin ? &origins[r->origin - 1] : NULL;
		if (o && o->image && r->start >= start && !(r->flags & (GMEM_TEXT | GMEM_OWN_TEXT)) &&
		    l->off + (r->start - start) == o->off + (r->start - o->start))
			admit_number(o->image, maps_dev(l), l->ino);
	}
	return true;
}

static bool origin_file(uint64_t gva, struct gmem_text_file *out)
{
	const struct origin *o = origin_at(gva);
	if (!o || !o->image)
		return false;
	/* Of all images at once: a start maps many, and hardly a program asks. */
	if (!admit_is_numbered(o->image))
		maps_each(number_line, NULL);
	admit_origin(o->image, &out->dev, &out->ino, out->path);
	out->off = o->off + (gva - o->start);
	return true;
}

/*
 * What a mapping of a file is to be, under the policy. *fd becomes what is mapped in its place. *end: where what is
 * executable of it ends. 0 or -errno.
 */
int map_admit(uint64_t addr, uint64_t len, int prot, int flags, uint64_t off, int *fd, struct image **image,
	      uint64_t *end)
{
	const struct origin *under = flags & MAP_FIXED ? origin_at(addr) : NULL;
	bool exec = prot & PROT_EXEC;
	struct stat st;
	int r = 0;
	*end = addr + len;
	*image = NULL;
	if (flags & MAP_ANONYMOUS || (flags & MAP_TYPE) != MAP_PRIVATE)
		return exec ? admit_memory("mmap") : 0;
	if (!exec) {
		/* Another part of an image is of the same copy. */
		if (under && under->image && !file_stat(*fd, &st) && admit_is_of(under->image, &st))
			*image = under->image;
		else
			*image = admit_known(*fd);
	} else if (!(r = admit_file(*fd, image)) && prot & PROT_WRITE) {
		r = admit_memory("mmap");
	}
	if (r || !*image)
		return r;
	if (exec && (*end = addr + (admit_code_end(*image, off, len) - off)) == addr)
		return admit_memory("mmap of what is no code in its file");
	int at = admit_map_fd(*image, *fd);
	if (at < 0) /* made where descriptors are others, and in use */
		return -EACCES;
	*fd = at;
	return 0;
}

/* The next region from *i on that is a part of span's file, within span, and of no image yet. NULL = none. */
static const struct gmem_region *part_next(const struct origin *span, size_t *i)
{
	for (; *i < nr_regions && regions[*i].start < span->start + span->len; ++*i) {
		const struct gmem_region *r = &regions[*i];
		const struct origin *o = r->origin ? &origins[r->origin - 1] : NULL;
		if (o && !o->image && o->dev == span->dev && o->ino == span->ino)
			return ++*i, r;
	}
	return NULL;
}

/*
 * A text was mapped over a part of span, as ld.so does: the other parts of the same file come from the same image. One that
 * was writable already can't be exchanged any more.
 */
static int map_rebase(const struct origin span, struct image *image, int fd, const struct stat *st)
{
	const struct gmem_region *r;
	bool copy = st->st_dev != span.dev || st->st_ino != span.ino;
	size_t first = region_find(span.start);
	for (size_t i = first; copy && (r = part_next(&span, &i));) {
		const struct origin *o = &origins[r->origin - 1];
		if (!(r->flags & GMEM_CLEAN))
			return -EACCES;
		if (mmap(gva_ptr(r->start), r->end - r->start, host_prot(r->prot), MAP_PRIVATE | MAP_FIXED, fd,
			 (off_t)(o->off + (r->start - o->start))) == MAP_FAILED)
			return -errno;
	}
	for (size_t i = first; (r = part_next(&span, &i));) {
		struct origin *o = &origins[r->origin - 1];
		o->image = image;
		o->dev = st->st_dev;
		o->ino = st->st_ino;
		admit_hold(image, 1);
	}
	return 0;
}

/* Note what was mapped: under, the number of what was there before. The region is set. */
int map_note(uint64_t addr, uint64_t len, int prot, uint64_t off, int fd, struct image *image, uint32_t under,
	     uint64_t end)
{
	struct stat st;
	int r = file_stat(fd, &st);
	if (r)
		return r;
	uint32_t n = origin_add(addr, len, off, &st, image);
	region_mark(addr, n, n && !(prot & PROT_WRITE) ? GMEM_CLEAN : 0);
	if (!(prot & PROT_EXEC) || !image)
		return 0;
	if (under && !origins[under - 1].image &&
	    admit_is_of(image, &(struct stat){ .st_dev = origins[under - 1].dev, .st_ino = origins[under - 1].ino }))
		r = map_rebase(origins[under - 1], image, fd, &st);
	return !r && end < addr + len ? do_mprotect(end, addr + len - end, prot & ~PROT_EXEC) : r;
}

/* [a, e) of region r is to be executable, or writable as well. 0 or -EACCES. */
int protect_admit(const struct gmem_region *r, uint64_t a, uint64_t e, int prot)
{
	const struct origin *o = r->origin ? &origins[r->origin - 1] : NULL;
	if (r->prot & PROT_EXEC && !(prot & PROT_WRITE & ~r->prot))
		return 0;
	if (!o || !o->image || !(r->flags & GMEM_CLEAN) || prot & PROT_WRITE)
		return admit_memory("mprotect");
	uint64_t off = o->off + (a - o->start);
	if (admit_code_end(o->image, off, e - a) < off + (e - a))
		return admit_memory("mprotect of what is no code in its file");
	return admit_again(o->image);
}

bool gmem_text_file(uint64_t gva, struct gmem_text_file *out)
{
	pthread_mutex_lock(&pvm.mm_lock);
	if (origin_file(gva, out)) {
		pthread_mutex_unlock(&pvm.mm_lock);
		return true;
	}
	const struct text_map *m = text_map_find(gva);
	const struct text *t = m ? m->text : NULL;
	if (t) {
		out->dev = m->dev;
		out->ino = m->ino;
		out->off = t->key.off + m->at + (gva - m->start);
		memcpy(out->path, m->path, sizeof out->path);
		out->path[sizeof out->path - 1] = 0;
	}
	pthread_mutex_unlock(&pvm.mm_lock);
	return t;
}
