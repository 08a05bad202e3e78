/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Enforcement of a policy of libraries (policy.h): what becomes executable is asked for here, where it is mapped.
 *
 * A file that rules judge by its content is copied once, whole: by an earlier start into the store, which nobody in the
 * jail can write, with its hash; else into a sealed memfd. The decision is made from the copy, and what is mapped is the
 * copy. A file that rules judge by owner, mode and path alone is mapped itself: the rule trusts
 * whoever can write it. Device, inode, size and times serve to find the copy again, never to trust the file.
 *
 * The table of images belongs to the process, under pvm.mm_lock. In a child of vfork, and where a thread has descriptors
 * of its own, a number may be another file's: it is compared before each use.
 */
#ifndef KX_ADMIT_H
#define KX_ADMIT_H
#include <limits.h>
#include "policy.h"
#include "pvm.h"

struct image;
struct stat;

/* Who asks: a program, which has the policy that its path, family and user say. */
struct admit_subject {
	bool active, bytes; /* bytes: content decides */
	bool passing;       /* an exec asks beforehand: what is found out is for the answer alone */
	struct policy_subject s;
	char program[PATH_MAX];
};

/* ---- the policy of a family ---- */
/* Before the jail: read cfg->policy. 0, or -errno with err; nothing runs without the policy that was asked for. */
int admit_begin(const struct kx_config *cfg, struct kx_err *err);
/* After exec, or as a new member: the sealed memfd of the family, -1 = it has no policy. */
int admit_adopt(int fd, struct kx_err *err);
int admit_fd(void);
/* Contents decide for some program of the family. */
bool admit_wants_copies(void);

/* The root directory of the process, by which it calls files, as a place in the view: chroot(2) is the program's, rules by
 * path are not. */
struct admit_root {
	uint64_t dev, ino;     /* 0: no place that is known; no path in it is */
	uint64_t top, top_ino; /* of the view */
	char prefix[1024];     /* before each path; empty in the view's own root */
};
/* At the view's root; or what exec has passed on. */
void admit_root_begin(void);
void admit_root_adopt(const struct admit_root *from);
const struct admit_root *admit_root(void);
/* The process has one thread, in the monitor: its root is what it was when it was asked for first, until this ends. */
void admit_root_hold(bool on);
/* chroot(2). */
int64_t admit_chroot(const char *path);

/* ---- a program (load.c) ---- */
void admit_ask_for(struct admit_subject *who, const char *program);
/*
 * The image of *fd, which becomes a descriptor of the copy where there is one. *out is the caller's, for
 * admit_image_free(), and NULL where the file is memory. 0, or -errno with the reason.
 */
int admit_take(const struct admit_subject *who, int *fd, struct image **out, char why[POLICY_WHY]);
/* 0 or -EACCES with the reason. Refusals and warnings are counted, and logged; refusals only if `tell`: else the caller
 * says why. image NULL: memory without a file. */
int admit_judge(const struct admit_subject *who, struct image *image, enum policy_way way, const char *loader,
		bool tell, char why[POLICY_WHY]);
void admit_image_free(struct image *image);
/* From now on the process is this program, with these images. Takes what of them it keeps. */
void admit_enter(const struct admit_subject *who, struct image **program, struct image **interp);
/* How the mappings that follow come about: of this thread, until it is POLICY_WAY_OTHER again. */
void admit_way(enum policy_way way);
/* The PT_INTERP in charge: from where a call counts as its own. */
void admit_loader(const char *path, uint64_t start, uint64_t end);

/* The call in progress of this thread comes from it, as far as the guest says. */
bool admit_call_of_loader(void);
/* The same before the call has begun. */
bool admit_call_is_loaders(void);
const char *admit_loader_path(void); /* "": there is none */

/* ---- memory (gmem.c), with pvm.mm_lock ---- */
/* This thread asks for what may never be wanted: only what is allowed without a word is, and nothing is told or counted. */
void admit_ahead(bool on);
extern bool admit_on; /* false: nothing is asked */
/* Executable memory that comes from no file. 0 or -EACCES. */
int admit_memory(const char *what);
/* For a private executable mapping of fd. 0 and *out (NULL: it is memory, and allowed), or -errno. */
int admit_file(int fd, struct image **out);
/* What another private mapping of fd is a part of: an image that was allowed; NULL = none. */
struct image *admit_known(int fd);
/* The file is the image's, whatever it holds by now. */
bool admit_is_of(const struct image *image, const struct stat *st);
/* A descriptor to map it from: that of the copy, or fd where it has none. -1: the copy can't be reached from here. */
int admit_map_fd(const struct image *image, int fd);
/* End of the part of [off, off + len) from off on that the file means to be executable; off = nothing. */
uint64_t admit_code_end(const struct image *image, uint64_t off, uint64_t len);
/* Clean pages of it become executable by mprotect(). 0 or -EACCES. */
int admit_again(struct image *image);
void admit_hold(struct image *image, int by);
/* Device, inode and path as the family knows the file; false where fd or inode belong to no image's copy. */
bool admit_name(int fd, char path[168]);
/* admit_origin() says the numbers that the kernel's list of mappings has; else, until it is told of them, stat(2)'s. */
bool admit_is_numbered(const struct image *image);
void admit_number(struct image *image, uint64_t dev, uint64_t ino);
void admit_origin(const struct image *image, uint64_t *dev, uint64_t *ino, char path[168]);

/* ---- an update (relink.c), without the lock ---- */
/* A descriptor of the image of a new version, to be closed; -errno with the reason. sig_fd: its signature, or -1. */
int admit_update(int fd, int sig_fd, char why[POLICY_WHY]);
/* Images of new versions that nothing maps, or no more, are given up. */
void admit_update_over(void);

/* Descriptors that stay, as fd_keep() has them. */
int admit_fds(int (*fn)(int *where));
extern uint64_t admit_refused, admit_warned; /* for --stats */
extern uint64_t admit_copied, admit_hashed;  /* files */
#endif
