/* SPDX-License-Identifier: Apache-2.0 */
/* What jail.c, jail_root.c and jail_view.c share. */
#ifndef KX_JAIL_PRIV_H
#define KX_JAIL_PRIV_H
#include "jail.h"
#include <limits.h>
#include <sys/stat.h>

/* How to graft */
#define G_RO 1
#define G_DEV 2   /* device nodes work */
#define G_ONE 4   /* without the mounts below it */
#define G_OPT 8   /* nothing to do when the source isn't there */
#define G_REAL 16 /* the source is a real path: who makes a link of one of its directories meanwhile is not followed */
#define G_NEW \
	32 /* what the destination names is missing, in a directory made for the new root: no need to look for it */

#define HOST_RO (G_RO | G_OPT)

struct jail {
	const struct kx_config *cfg;
	struct kx_err *err;
	int root;  /* descriptor of the new root */
	dev_t dev; /* its file system */
	bool userns;
	char *mounts;       /* copy of /proc/self/mountinfo, read when needed */
	char cwd[PATH_MAX]; /* "/" when it can't be told */
	bool lost;          /* the current directory has no path: removed, or its mount is gone */
	int cwd_tree;       /* it, when the view has no place for it; -1 */
};

#define EACH(i, a) for (size_t i = 0; i < sizeof(a) / sizeof(*(a)); i++)

/* Sets the error by errno: "jail: what: why (remedy)". Returns it, negative. */
int jail_fail(struct jail *j, const char *what);

/* ---- jail_root.c: paths, and the new root ---- */

/* p, made absolute by dir, without ".", ".." and empty components. False when it gets too long. */
bool jail_path_clean(const char *dir, const char *p, char out[PATH_MAX]);
bool jail_path_under(const char *p, const char *dir);
void jail_path_dir(const char *p, char out[PATH_MAX]);
/* Emulated or made by us: never taken from the host because a program or the current directory is there. */
bool jail_path_special(const char *p);
/* Too much of the host, or private in the view. */
bool jail_path_broad(const char *p);
/* Is a procfs mounted at or below path (of the host)? One in the view would show the monitor's own memory to the
 * program. When it can't be told: yes. */
bool jail_holds_proc(struct jail *j, const char *path);
/* O_PATH descriptor of what path names in the new root; -1 and errno. */
int jail_open(struct jail *j, const char *path);
/* The same, made when missing: directories on the way, and a directory or an empty file at the end. */
int jail_make(struct jail *j, const char *path, bool dir);
/* Does path name in the view what real names on the host? */
bool jail_visible_as(struct jail *j, const char *path, const char *real);
bool jail_visible(struct jail *j, const char *path);
/* Attach a detached mount, by descriptors. 0, or -1 and errno. */
int jail_attach(int tree, int at);
/* Show src of the host as dst of the view. 0, or -1 and errno. */
int jail_graft(struct jail *j, const char *src, const char *dst, unsigned how);
/* Under the same name. 0, or -errno with the error set. */
int jail_graft_host(struct jail *j, const char *path, unsigned how);
/* A new file system of a kind, detached. opts: pairs of key and value (NULL: a flag), NULL at the end. */
int jail_fs_new(const char *type, const char *const *opts, unsigned attr);
/* A new file system at dst of the view, which must be there. 0, or -1 and errno. */
int jail_fs_graft(struct jail *j, const char *type, const char *const *opts, unsigned attr, const char *dst);
/* A mount of its own for a directory of ours: "/" becomes read-only, as it is to programs without root's rights. */
int jail_own_mount(struct jail *j, const char *path);
/* A file in the new root with this text. */
int jail_text_make(struct jail *j, const char *path, const char *text);
/* The new root, over "/". */
int jail_root_make(struct jail *j);
/* What is in it unless there is an image: places of the program's own, such as /home. */
int jail_own_dirs(struct jail *j);

/* ---- jail_view.c: what the view shows ---- */
/* In the new mount namespace: all of it, but for the switch to it. 0, or -errno with the error set. */
int jail_view_build(struct jail *j);
#endif
