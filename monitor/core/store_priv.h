/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the store share: names, entries and images on the disk. */
#ifndef KX_STORE_PRIV_H
#define KX_STORE_PRIV_H
#include "store.h"
#include <dirent.h>
#include <sys/stat.h>

#define PAGE 4096ull
#define PAGES(n) (((n) + PAGE - 1) & -PAGE)
#define IMAGE_MAGIC 0x31676d4958794b00ull
#define ENTRY_MAGIC 0x31746e4558794b00ull
#define ARENA_LIMIT (64ull << 20) /* no image is larger */

/* The first page of an image. */
struct image {
	uint64_t magic, text_len, tramp_size, made_for;
	int64_t tramp_from;
	uint32_t nr_sites, pad;
	uint8_t source[STORE_HASH]; /* SHA-256 of the text that it was made from */
};

struct note {
	uint64_t off, len;
	char path[STORE_PATH];
	/* It was stored: the file, its entry and its image were as that sum says. 0: nothing is known. image: zeros, none. */
	uint64_t sum;
	uint8_t image[STORE_HASH];
};

/* A file of notes, whose name is the SHA-256 of the program's path. All of it may have been written by hostile code. */
#define NOTES_SIZE (80ull << 10)
#define NOTES_MAGIC 0x3365746f4e784b00ull
struct notes {
	uint64_t magic;
	uint32_t nr, looked;      /* looked: what the program needs has been prepared */
	char program[STORE_PATH]; /* its path; empty: longer */
	struct note note[];
};

extern const char store_format[]; /* the name of FORMAT */

static inline int64_t store_ns(const struct timespec *t) { return t->tv_sec * 1000000000ll + t->tv_nsec; }

void store_image_name(const uint8_t hash[STORE_HASH], char out[80]);
void store_entry_name(const struct text_key *k, char out[128]);
/* Is this errno one of the process or the machine, so that nothing is known of the file? */
bool store_is_trouble(int e);
bool store_read_full(int fd, void *p, uint64_t len, uint64_t off);
/* A sum of len bytes, whole words, and of what `sum` was one of: what differs in one word surely has another. Against damage, not
 * against who would make one that fits. */
uint64_t store_sum(uint64_t sum, const void *data, size_t len);
bool store_entry_sound(const struct store_entry *e);
/* The entry of a text, when it is sound and of this very file: 0, or -errno. */
int store_entry_read(int dir, const struct text_key *key, struct store_entry *e);
/* Is this the file of the entry's image, unchanged? */
bool store_image_is(const struct store_entry *e, const struct stat *st);
/* The key of a file as a whole; no text has its offset. False: it can't be kept as a whole. */
bool store_copy_key(const struct stat *st, struct text_key *key);
/* Write a file of FORMAT whole, or not at all: 0 or -errno. As the writer. */
int store_put(struct store *s, const char *name, const void *data, size_t len);
#endif
