/* SPDX-License-Identifier: Apache-2.0 */
#include "needed.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "elf.h"

#define NAMES_MAX 128 /* that one file needs */
#define NAME_LEN 256
#define PATHS_LEN 1024
#define DYN_MAX 512

static const char *const usual[] = { "/lib/x86_64-linux-gnu",
				     "/usr/lib/x86_64-linux-gnu",
				     "/lib64",
				     "/usr/lib64",
				     "/usr/local/lib",
				     "/lib",
				     "/usr/lib" };

struct object {
	char names[NAMES_MAX][NAME_LEN];
	unsigned nr_names;
	char rpath[PATHS_LEN], runpath[PATHS_LEN]; /* "": none */
	struct elf_image img;
};

struct found {
	char *path; /* below root */
	dev_t dev;
	ino_t ino;
};

struct search {
	const char *root, *library_path;
	struct found file[NEEDED_FILES];
	unsigned nr;
	char program_rpath[PATHS_LEN], program_origin[PATH_MAX];
	struct object o;
};

/* Of the file that is being looked at: most of what is asked of it is there. */
static struct {
	int fd; /* whose that is; -1: nobody's */
	size_t len;
	uint8_t bytes[4096];
} first = { .fd = -1 };

static void first_read(int fd)
{
	ssize_t n = pread(fd, first.bytes, sizeof first.bytes, 0);
	first.fd = n > 0 ? fd : -1;
	first.len = n > 0 ? (size_t)n : 0;
}

/* As pread(2). */
static ssize_t read_at(int fd, void *buf, size_t len, uint64_t off)
{
	if (fd != first.fd || off >= first.len || (first.len - off < len && first.len == sizeof first.bytes))
		return pread(fd, buf, len, (off_t)off);
	len = first.len - off < len ? first.len - off : len;
	memcpy(buf, first.bytes + off, len);
	return (ssize_t)len;
}

static int64_t read_fd(void *ctx, void *buf, size_t len, uint64_t off)
{
	ssize_t n = read_at(*(int *)ctx, buf, len, off);
	return n < 0 ? -errno : n;
}

/* A string of the table at `table`, whose address is known by the segments. False: none, or too long. */
static bool string_at(int fd, const struct elf_image *m, uint64_t table, uint64_t at, char *out, size_t size)
{
	for (uint32_t i = 0; i < m->nr_seg; i++) {
		const struct elf_segment *g = &m->seg[i];
		if (table < g->vaddr || table - g->vaddr >= g->filesz || at >= g->filesz - (table - g->vaddr))
			continue;
		ssize_t n = read_at(fd, out, size, g->off + (table - g->vaddr) + at);
		return n > 0 && memchr(out, 0, (size_t)n);
	}
	return false;
}

static bool dynamic_read(int fd, struct object *o)
{
	static Elf64_Dyn d[DYN_MAX];
	uint64_t table = 0;
	unsigned nr = 0;
	Elf64_Phdr p;
	for (uint32_t i = 0; i < o->img.phnum && !nr; i++) {
		if (read_at(fd, &p, sizeof p, o->img.phoff + i * sizeof p) != sizeof p)
			break;
		if (p.p_type == PT_DYNAMIC) {
			size_t len = p.p_filesz < sizeof d ? p.p_filesz : sizeof d;
			ssize_t n = read_at(fd, d, len, p.p_offset);
			nr = n > 0 ? (unsigned)((size_t)n / sizeof *d) : 0;
		}
	}
	for (unsigned i = 0; i < nr && d[i].d_tag; i++)
		if (d[i].d_tag == DT_STRTAB)
			table = d[i].d_un.d_ptr;
	o->nr_names = 0;
	o->rpath[0] = o->runpath[0] = 0;
	for (unsigned i = 0; i < nr && d[i].d_tag; i++) {
		uint64_t at = d[i].d_un.d_val;
		if (d[i].d_tag == DT_NEEDED && o->nr_names < NAMES_MAX)
			o->nr_names += string_at(fd, &o->img, table, at, o->names[o->nr_names], NAME_LEN);
		else if (d[i].d_tag == DT_RPATH && !string_at(fd, &o->img, table, at, o->rpath, PATHS_LEN))
			o->rpath[0] = 0;
		else if (d[i].d_tag == DT_RUNPATH && !string_at(fd, &o->img, table, at, o->runpath, PATHS_LEN))
			o->runpath[0] = 0;
	}
	return true;
}

static bool object_read(int fd, uint64_t size, struct object *o)
{
	first_read(fd);
	const bool good = !elf_read(read_fd, &fd, size, &o->img, NULL) && dynamic_read(fd, o);
	first.fd = -1;
	return good;
}

void needed_of(int fd, uint64_t size, void (*fn)(const char *name), char *dirs, size_t dirs_size)
{
	static struct object o;
	bool good = object_read(fd, size, &o);
	for (unsigned i = 0; good && i < o.nr_names; i++)
		fn(o.names[i]);
	if (dirs)
		snprintf(dirs, dirs_size, "%s", !good ? "" : *o.runpath ? o.runpath : o.rpath);
}

static int open_below(const struct search *s, const char *path, struct stat *st)
{
	char full[2 * PATH_MAX];
	snprintf(full, sizeof full, "%s%s", s->root ? s->root : "", path);
	/* Before the open, which has side effects on devices. */
	if (stat(full, st) || !S_ISREG(st->st_mode))
		return -1;
	return open(full, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
}

/* Is there such a library? Then it is on the list. */
static bool take(struct search *s, const char *path)
{
	struct stat st;
	unsigned char head[EI_CLASS + 1];
	int fd = *path == '/' ? open_below(s, path, &st) : -1;
	if (fd < 0)
		return false;
	bool good = pread(fd, head, sizeof head, 0) == sizeof head && !memcmp(head, ELFMAG, SELFMAG) &&
		    head[EI_CLASS] == ELFCLASS64;
	close(fd);
	for (unsigned i = 0; good && i < s->nr; i++)
		if (s->file[i].dev == st.st_dev && s->file[i].ino == st.st_ino)
			return true;
	if (good && s->nr < NEEDED_FILES && (s->file[s->nr].path = strdup(path))) {
		s->file[s->nr].dev = st.st_dev;
		s->file[s->nr++].ino = st.st_ino;
	}
	return good;
}

/* In one of the directories of a list; $ORIGIN is `origin`. */
static bool take_from(struct search *s, const char *list, const char *origin, const char *name)
{
	char dir[PATH_MAX], path[PATH_MAX + NAME_LEN + 2];
	while (*list) {
		size_t n = strcspn(list, ":;");
		const char *var = NULL;
		size_t len = 0;
		if (n >= 7 && !memcmp(list, "$ORIGIN", 7))
			len = 7;
		else if (n >= 9 && !memcmp(list, "${ORIGIN}", 9))
			len = 9;
		var = len ? origin : "";
		int k = snprintf(dir, sizeof dir, "%s%.*s", var, (int)(n - len), list + len);
		if (k > 0 && (size_t)k < sizeof dir && dir[0] == '/' && !strchr(dir, '$')) {
			snprintf(path, sizeof path, "%s/%s", dir, name);
			if (take(s, path))
				return true;
		}
		list += n + (list[n] != 0);
	}
	return false;
}

static void find(struct search *s, const char *name, const char *origin)
{
	char path[PATH_MAX + NAME_LEN];
	const struct object *o = &s->o;
	if (strchr(name, '/')) {
		take(s, name);
		return;
	}
	if (!*o->runpath &&
	    (take_from(s, o->rpath, origin, name) || take_from(s, s->program_rpath, s->program_origin, name)))
		return;
	if (s->library_path && take_from(s, s->library_path, origin, name))
		return;
	if (take_from(s, o->runpath, origin, name))
		return;
	for (unsigned i = 0; i < sizeof usual / sizeof *usual; i++) {
		snprintf(path, sizeof path, "%s/%s", usual[i], name);
		if (take(s, path))
			return;
	}
}

/* A script's interpreter takes its place. */
static bool script(struct search *s, const char *program)
{
	char line[256] = "";
	struct stat st;
	int fd = open_below(s, program, &st);
	ssize_t n = fd < 0 ? -1 : pread(fd, line, sizeof line - 1, 0);
	if (fd >= 0)
		close(fd);
	if (n < 3 || line[0] != '#' || line[1] != '!')
		return false;
	char *at = line + 2 + strspn(line + 2, " \t");
	at[strcspn(at, " \t\n")] = 0;
	return take(s, at);
}

void needed_each(const char *root, const char *program, const char *library_path,
		 int (*fn)(void *arg, const char *path), void *arg)
{
	struct search *s = calloc(1, sizeof *s);
	char origin[PATH_MAX], full[2 * PATH_MAX];
	struct stat st;
	if (!s)
		return;
	s->root = root;
	s->library_path = library_path;
	if (!take(s, program))
		script(s, program);
	for (unsigned i = 0; i < s->nr; i++) {
		int fd = open_below(s, s->file[i].path, &st);
		bool good = fd >= 0 && object_read(fd, (uint64_t)st.st_size, &s->o);
		if (fd >= 0)
			close(fd);
		if (!good)
			continue;
		snprintf(origin, sizeof origin, "%s", s->file[i].path);
		*strrchr(origin, '/') = 0;
		if (i == 0) {
			snprintf(s->program_rpath, sizeof s->program_rpath, "%s", s->o.runpath[0] ? "" : s->o.rpath);
			strcpy(s->program_origin, origin);
		}
		if (s->o.img.interp[0])
			take(s, s->o.img.interp);
		for (unsigned k = 0; k < s->o.nr_names; k++)
			find(s, s->o.names[k], origin);
		snprintf(full, sizeof full, "%s%s", root ? root : "", s->file[i].path);
		if (fn(arg, full))
			break;
	}
	for (unsigned i = 0; i < s->nr; i++)
		free(s->file[i].path);
	free(s);
}
