/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Policy of libraries: which files may become executable memory of a program, and whether memory that comes from no
 * file may. kylinx-policy(5) describes the file.
 *
 * A policy is read once, outside of the jail, with the keys and revocations that it names, and packed into one block
 * of bytes: that block is what members of the family inherit over fork and exec, in a sealed memfd. A decision is made
 * from the block and the image's bytes alone; no file is opened for it. All functions are pure and need no lock.
 *
 * The caller vouches that the bytes of an image are those that will be mapped, and that nobody can change them.
 */
#ifndef KX_POLICY_H
#define KX_POLICY_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "../../util/err.h"

enum policy_verdict {
	POLICY_ALLOW,
	POLICY_WARN, /* mode warn: to be logged, and allowed */
	POLICY_DENY,
};

enum policy_way {                     /* how the mapping came about, as far as the monitor can tell */
		  POLICY_WAY_PROGRAM, /* the program itself */
		  POLICY_WAY_INTERP,  /* its PT_INTERP, mapped by the monitor */
		  POLICY_WAY_LOADER,  /* mmap() called from the text of the program's PT_INTERP */
		  POLICY_WAY_OTHER,   /* mmap() from anywhere else, mprotect() */
};

struct image_facts; /* sign.h */

struct policy_image {
	const void *bytes; /* the whole file; NULL where policy_needs_bytes() is false */
	size_t size;
	const struct image_facts *facts; /* what image_facts() has found in these bytes, kept by the caller; or NULL */
	const char *path;                /* as the family sees it; for messages and rules by path */
	uid_t uid;                       /* owner and mode of the file */
	mode_t mode;
	enum policy_way way;
	const char *loader; /* path of the PT_INTERP in charge, or NULL */
	const void *sig;    /* the detached signature found beside the file (PATH.kxsig), or NULL */
	size_t sig_size;
};

struct policy_subject {
	const char *program; /* path of the program */
	const char *family;  /* its name, or "" */
	uid_t uid;
};

#define POLICY_WHY 256 /* bytes of a reason: one line, names the file and what is wrong with it */

struct policy;

/*
 * The policy that holds for a run. file: a path, "off" (*out = NULL), or NULL: $KYLINX_CONFIG/policy; or for root
 * /etc/kylinx/policy, for others $XDG_CONFIG_HOME/kylinx/policy or ~/.config/kylinx/policy, else root's; else the
 * one that is built in.
 */
int policy_open(const char *file, struct policy **out, struct kx_err *err);
/* Where it is. 1 with out filled, 0: there is no file, the built-in policy holds. -errno with err set. */
int policy_find(char out[4096], struct kx_err *err);
/* Read a policy file and what it names. 0, or -errno with err naming file, line and remedy. Freed by policy_free(). */
int policy_read(const char *path, struct policy **out, struct kx_err *err);
/* The block: *len bytes that live as long as the policy. */
const void *policy_block(const struct policy *p, size_t *len);
/* Take a block over, which must outlive the policy; every offset in it is checked. NULL: it is damaged. */
struct policy *policy_adopt(const void *block, size_t len);
void policy_free(struct policy *p);

extern uint64_t policy_signatures; /* how many were checked */
/* False: mode is off for this subject, and nothing needs to be asked. */
bool policy_active(const struct policy *p, const struct policy_subject *s);
/* False: rules for this subject (NULL: for any) look at owner, mode and path alone, and no content decides. */
bool policy_needs_bytes(const struct policy *p, const struct policy_subject *s);
enum policy_verdict policy_image(const struct policy *p, const struct policy_subject *s, const struct policy_image *i,
				 char why[POLICY_WHY]);
/* Executable memory without a file: mmap, mprotect, memfd, shared memory. */
enum policy_verdict policy_anonymous(const struct policy *p, const struct policy_subject *s, char why[POLICY_WHY]);
#endif
