/* SPDX-License-Identifier: Apache-2.0 */
/* The host's /proc/self/maps: what is mapped in this process. */
#ifndef KX_MAPS_H
#define KX_MAPS_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

struct maps_line {
	uint64_t start, end, off, ino; /* ino 0: no file */
	char perm[5], dev[16];         /* "rw-p", "fe:01" */
	const char *path;              /* not terminated */
	size_t path_len;
};

/* Take the line at text apart. The begin of the next one; NULL: there is no whole line, or none that is understood. */
const char *maps_parse(const char *text, struct maps_line *l);
/* Of a line with an inode. */
dev_t maps_dev(const struct maps_line *l);
/* Call fn for each line until it returns false. False: the file can't be read, or a line not understood. */
bool maps_each(bool (*fn)(const struct maps_line *l, void *arg), void *arg);
/* The device and inode by which the kernel's lists of mappings name that regular file. Where a file system lies on another, or
 * has parts (overlayfs, btrfs), they are others than stat(2)'s `st`, which they are too where nothing else is known. */
void maps_file(int fd, const struct stat *st, uint64_t *dev, uint64_t *ino);
/* What was found out so: of files as they were then, by which times are told as well. An exec passes it on. */
#define MAPS_KNOWN 32
struct maps_known {
	uint64_t st_dev, st_ino, size;
	int64_t mtime_ns, ctime_ns;
	uint64_t dev, ino;
};
void maps_known_export(struct maps_known out[MAPS_KNOWN]);
void maps_known_import(const struct maps_known in[MAPS_KNOWN]);
/* All of it, up to 256 KiB; the caller's to free(3). NULL: it can't be had. */
char *maps_text(void);
#endif
