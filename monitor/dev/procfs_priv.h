/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of procfs share: calls (procfs.c), names (procfs_names.c), texts (procfs_text.c), directories (procfs_dir.c),
 * the host's procfs (procfs_host.c), this process's memory (procfs_memory.c), other members of the family (procfs_member.c).
 */
#ifndef KX_PROCFS_PRIV_H
#define KX_PROCFS_PRIV_H
#include <limits.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include "../core/pvm.h"
#include "procfs.h"

#define PAGE 4096ul

enum kind {
	D_ROOT,
	D_PID,
	D_FD,
	D_FDINFO,
	D_TASKS,
	D_NET,
	D_SYSVIPC,
	D_SYS,
	L_SELF,
	L_THREAD,
	L_MOUNTS,
	L_NET,
	L_EXE,
	L_CWD,
	L_ROOT,
	L_FD,
	F_FDINFO,
	F_PID,
	F_GLOBAL,
	F_NET,
	F_SYS,
};

/* How a file about the process is made. */
enum gen {
	G_MAPS,
	G_SMAPS,
	G_ROLLUP,
	G_STATUS,
	G_STAT,
	G_STATM,
	G_CMDLINE,
	G_ENVIRON,
	G_AUXV,
	G_LIMITS,
	G_MOUNTS,
	G_COPY,   /* the host's text; it is about this process */
	G_THREAD, /* as G_COPY, but the same for all threads and gone with the first one: ask for a live one */
	G_REAL,   /* the host's file, which may be written */
};

struct pid_file {
	const char *name;
	enum gen gen;
	bool members; /* also of other members of the family */
};

struct node {
	enum kind kind;
	pid_t pid; /* another member of the family; 0 = the caller */
	pid_t tid; /* of a path below task/; 0 = of the process */
	int fd;
	const struct pid_file *file;
	char name[256]; /* F_GLOBAL, F_NET: the name; D_SYS, F_SYS: path below sys/ */
};

/* ---- text that grows; procfs_host.c ---- */

struct out {
	char *p;
	size_t len, cap;
	int err; /* 0 or -errno: the first that happened */
};

bool out_room(struct out *t, size_t more);
void out_add(struct out *t, const void *s, size_t len);
__attribute__((format(printf, 2, 3))) void out_printf(struct out *t, const char *fmt, ...);
void out_free(struct out *t);

/* ---- the host's; procfs_host.c ---- */

/* The lock over /proc. */
void proc_enter(void);
void proc_leave(void);
/* Append the host's file to t (NUL-terminated). 0 or -errno. */
int host_read(const char *rel, struct out *t);
/* Append the names in a directory to t, each with its NUL. Between proc_enter() and proc_leave(). 0 or -errno. */
int list_locked(int dirfd, const char *path, struct out *t);

static inline bool key_is(const char *s, const char *key) { return !strncmp(s, key, strlen(key)); }
static inline int nr_threads(void) { return __atomic_load_n(&pvm.nr_threads, __ATOMIC_RELAXED); }

/* ---- this process; procfs_memory.c ---- */

struct vm_sizes {
	uint64_t total, peak, data, stack, exe, lib; /* bytes */
};

struct vm_sizes vm_sizes(void);
int gen_maps(struct out *t, enum gen gen);
int gen_status(struct out *t, const char *host);
int gen_stat(struct out *t, const char *host);
int gen_statm(struct out *t, const char *host);

/* ---- other members; procfs_member.c ---- */

bool task_is_shown(pid_t pid, pid_t tid);
/* Append its threads, each with its NUL; returns their number. */
int member_tasks(pid_t pid, struct out *t);
/* A file about a member, n->pid; host: its path in the host's procfs. */
int member_generate(const struct node *n, const char *host, struct out *t);

/* ---- names; procfs_names.c ---- */

#define PROC_PTRACE_SCOPE "kernel/yama/ptrace_scope" /* there whatever the host's kernel has: see gen_ptrace_scope() */

extern const struct pid_file proc_pid_files[]; /* these lists end with a name that is NULL */
extern const char *const proc_global_files[], *const proc_net_files[], *const proc_sysvipc_files[],
									       *const proc_sys_files[];

static inline bool proc_is_dir(const struct node *n) { return n->kind <= D_SYS; }
static inline bool proc_is_link(const struct node *n) { return n->kind >= L_SELF && n->kind <= L_FD; }
/* What rel, a path below /proc, names. 0 or -errno. */
int proc_parse(const char *rel, struct node *n);
/* Links whose target is in procfs itself. */
void proc_follow(struct node *n);
/* Where the host's procfs has it. */
void proc_host_path(const struct node *n, char out[512]);
/* A decimal number at *s, which is moved behind it. */
bool proc_number(const char **s, int *out);
/* Is path below sys/ a file (1), a directory on the way to one (2), or nothing? */
int proc_sys_kind(const char *path);

/* ---- texts; procfs_text.c ---- */

int proc_generate(const struct node *n, struct out *t);
/* Not as the host has it. */
bool proc_is_changed(const struct node *n);
int gen_limits(struct out *t, const char *host);
int gen_mounts(struct out *t, const char *host);

/* ---- directories; procfs_dir.c ---- */

/* Its likeness in the tmpfs; made; filled. */
void proc_dir_path(const struct node *n, char out[512]);
int proc_make_dirs(const char *path);
void proc_fill_dir(const struct node *n, const char *dir);
int64_t proc_open_dir(const struct node *n, int flags);

/* ---- links; procfs.c ---- */

/* Length of what a link says, or -errno. */
int proc_link_text(const struct node *n, char out[PATH_MAX]);
#endif
