/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Texts that a family has patched already: one copy of each, with its trampolines, mapped by all of its members.
 *
 * They lie in a memfd that the first monitor makes and that forks and execs inherit. Its first page is an index that
 * only grows; an entry counts from the moment in which its `ready` is set, so a member that is killed while it
 * prepares one leaves some space unused and nothing else. What a member maps is a read-only shared mapping of a
 * read-only descriptor: a fork has nothing to copy there, and KVM keeps what it knows of it.
 *
 * A text is known by device, inode, size, times of change, offset and length. Patched text and trampolines hold
 * relative addresses alone, so they fit at any address as long as their distance is the one that they were made for.
 *
 * Callers hold pvm.mm_lock. The guest controls what is in the file, and nothing else.
 */
#ifndef KX_TEXT_H
#define KX_TEXT_H
#include "../arch/x86_64/patch.h"
#include "pvm.h"

#define TEXT_LEN_MAX (8ull << 20) /* bytes; longer ones are patched in the process's own copy */

struct text_key {
	uint64_t dev, ino, size, off, len; /* len: bytes of the file that are mapped */
	int64_t mtime_ns, ctime_ns;
};

struct text {
	uint32_t ready, rseq;                  /* rseq: has restartable sequences */
	uint32_t nr_sites, nr_found, nr_cpuid; /* nr_sites 0: nothing to patch, and nothing is kept */
	struct text_key key;
	uint64_t at;         /* bytes into the memfd: text, then trampolines, then sites */
	uint64_t tramp_size; /* whole pages */
	int64_t tramp_from;  /* address of the trampolines less that of the text */
	uint64_t made_for;   /* address of the text for which the sites are noted */
	char path[168];      /* as the member that made it saw the file; for /proc/self/maps */
};

/* Make the memfd (fd, fd_ro < 0), or take over what exec has passed on. 0 or -errno: without it all else works. */
int text_init(int fd, int fd_ro);
/* Descriptors for exec, and the one that texts are mapped from; -1 = none. */
int text_fd(void);
int text_fd_ro(void);

/* Texts that were looked through for what to patch; and that were found prepared, by this family or in the store. */
extern uint64_t text_prepared, text_found;

/* False when such a mapping can't be shared: too long, or pages beyond the end of the file. */
bool text_key(int fd, uint64_t off, uint64_t len, struct text_key *key);
struct stat;
/* The same of what fstat(2) has said. */
bool text_key_of(const struct stat *st, uint64_t off, uint64_t len, struct text_key *key);
/* NULL = not known. Lives as long as the process. */
const struct text *text_find(const struct text_key *key);
/* Note that there is nothing to patch. */
void text_add_none(const struct text_key *key, int fd, const struct patch_plan *plan, bool rseq);
/* Note for the store what the family has prepared: members that came by exec can't. */
void text_note_family(void);
/* Copy the text from fd, patch the copy for trampolines tramp_size bytes long at tramp. NULL = no room. */
const struct text *text_add(const struct text_key *key, int fd, uint64_t gva, struct patch_plan *plan, bool rseq,
			    uint64_t tramp, uint64_t tramp_size);
/* A descriptor to map it from, for text_close(); negative: it can't be used now. */
int text_open(const struct text *t);
void text_close(const struct text *t, int fd);
/* How the program sees the file that it has open as fd. */
void text_path(const struct text *t, char path[168], int fd);
/* Its sites for a text at gva, *nr of them, to be freed by the caller; NULL = no memory. */
struct kx_site *text_sites(const struct text *t, int fd, uint64_t gva, uint32_t *nr);
#endif
