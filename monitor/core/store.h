/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store: a directory of the host's with texts that are patched already, for all pVMs of a user.
 *
 *	ROOT/FORMAT/images/SHA256	header, patched text, trampolines, sites; named by its own content
 *	ROOT/FORMAT/index/KEY		a text of a file (text_key) -> image, or "nothing to patch"
 *	ROOT/FORMAT/notes/SHA256	of a program's path: which texts it mapped that were not stored
 *	ROOT/FORMAT/lock		flock: one writer at a time; a dead writer's is free
 *	ROOT/history			one JSON object a line
 *
 * FORMAT names what makes the images: another version of KylinX has a directory of its own. ROOT: $KYLINX_STORE (empty:
 * no store), /var/lib/kylinx/store for root, $XDG_CACHE_HOME/kylinx/store or ~/.cache/kylinx/store for others.
 *
 * Only code outside of the jail writes: `kylinx run` stores what the program is linked with (the first time) and what its
 * notes name before it enters, and `kylinx lib`. Files are written under another name, synced, renamed. In the jail there is a descriptor of a detached
 * read-only mount of FORMAT. An entry holds inode, size and times of its image: a file that has changed since is not
 * used. Notes are hints of hostile code: names of files, which are opened with the rights of the user and prepared from
 * a copy in memory. The jail can write to them by a mapping of fixed size alone.
 */
#ifndef KX_STORE_H
#define KX_STORE_H
#include "pvm.h"
#include "text.h"

struct stat;

#define STORE_HASH 32
#define STORE_PATH 256

struct store_entry {
	uint64_t magic;
	struct text_key key;
	uint32_t nr_found, nr_cpuid, rseq, has_image;
	uint8_t image[STORE_HASH];
	uint64_t ino, size; /* of the image's file */
	int64_t mtime_ns, ctime_ns;
	char path[STORE_PATH]; /* as it was called when it was stored */
	uint64_t sum;          /* store_sum() of all before: damage is seen */
};

/* ---- outside of the jail ---- */
struct store {
	int root, dir;   /* descriptors of ROOT and FORMAT */
	int lock;        /* held, or -1 */
	bool own;        /* what is added is the store's own, which doesn't change */
	bool hints;      /* what is added was named by who may be hostile: code of programs and libraries alone */
	bool preparing;  /* what is added is noted: a program's libraries, whose paths have the root's in front */
	size_t root_len; /* of that */
	char path[4096];
};

/* Open it, make it when there is none and make is set. -ENOENT without err: there is none, or it is switched off. A
 * directory that is not the caller's, or that others can write, is -EPERM. */
int store_open(struct store *s, bool make, struct kx_err *err);
void store_close(struct store *s);
/* What to do about an errno of the store. */
const char *store_remedy(int e);
/* Remove what a writer that was killed has left half written. Becomes the writer for that. */
void store_tidy(struct store *s);
/* Become the writer. 0, or -EAGAIN without waiting. */
int store_lock(struct store *s);
/* Prepare the text of path at file offset off, len bytes as mapped. 1: stored now; 0: it was there. -errno else. */
int store_add(struct store *s, const char *path, uint64_t off, uint64_t len, struct kx_err *err);
/* Keep an ELF file as a whole, and the texts of that copy: what a policy that looks at contents lets be mapped. The image
 * is named by the file's SHA-256. 1: stored now; 0: it was there. -errno else. */
int store_add_copy(struct store *s, const char *path, struct kx_err *err);
/* An entry of a whole file, not of a text. */
bool store_is_copy(const struct store_entry *e);
/* All executable segments of an ELF file. Returns how many were stored now, or -errno. */
int store_add_file(struct store *s, const char *path, struct kx_err *err);
/* Call fn for each entry until it returns nonzero, which is returned; -errno when the index, or an entry, can't be looked at:
 * then nothing is known of the rest. Not sound: what it says is nothing, and its path is that of its file. */
int store_each(struct store *s, int (*fn)(const struct store_entry *e, bool sound, void *arg), void *arg);
/* Compare an image with its name: 0, -ENOENT, -EBADMSG; another -errno: it can't be looked at now. */
int store_verify_image(struct store *s, const uint8_t hash[STORE_HASH]);
/* Remove entries of files that are gone or changed, images without an entry or damaged, files half written, notes
 * of programs that are gone, and the directories of other versions. As the writer. Returns how many files it removed; -errno: what can't be looked at now
 * is kept, and so is the rest. */
int store_gc(struct store *s, struct kx_err *err);
void store_hex(const uint8_t hash[STORE_HASH], char out[2 * STORE_HASH + 1]);
/* Append to the history: one line of JSON with time, event, object, detail (NULL: none). 0 or -errno. */
int store_history_add(struct store *s, const char *event, const char *object, const char *detail);

/* ---- of a run ---- */
/* Before the jail: prepare what the program is known to need (before its first start: needed.h), with copies of whole files
 * if a policy wants them. program: its path on the host, or below --root; NULL: not known, prepare nothing. Never fails: what
 * is wrong is told in one line. */
void store_begin(const struct kx_config *cfg, const char *program, bool copies);
extern uint64_t store_stored; /* what it has prepared and hashed */
/* In the new mount namespace, with the old root still there: take hold of the tree. */
void store_enter(void);
/* Before the jail, instead of that: a family's own, if it is the same store. */
void store_join(int member, int member_proc);
/* After exec. fd: -1 = none. */
void store_adopt(int fd);
int store_fd(void);

/* ---- in the jail; callers hold pvm.mm_lock ---- */
/* The stored text, NULL = none. Lives as long as the process. */
const struct text *store_find(const struct text_key *key);
bool store_holds(const struct text *t);
/* A descriptor to map a stored text from, to be closed; -errno: its image is not what it was. */
int store_image_open(const struct text *t);
/* A descriptor of the copy of the file that fstat() has told of, to be closed, and the SHA-256 of its content; -errno:
 * there is none. Needs no lock. */
int store_copy_open(const struct stat *st, uint8_t sha256[STORE_HASH]);
/* Let the next start outside of the jail store this. */
void store_note(const struct text_key *key, const char *path);
#endif
