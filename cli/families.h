/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Families as the host sees them. Who runs is in the registry; who belongs to it is found in /proc: a process in the
 * family's IPC namespace is a member, and zombies are their parents'. Names, arguments and paths of members are what
 * guests made them: any bytes.
 */
#ifndef KX_FAMILIES_H
#define KX_FAMILIES_H
#include "../monitor/core/registry.h"

struct member {
	pid_t pid, ppid, pgrp, session;
	uid_t uid;
	uint64_t start; /* clock ticks since boot */
	char state;     /* as in proc(5) */
	int threads;
	char comm[64];
	char *args; /* NUL-separated, args_len bytes; NULL when it can't be read, or there are none */
	size_t args_len;
	char exe[256];                                  /* path in the view; empty: not known */
	bool from_host;                                 /* started by `kylinx exec` */
	long private_kib, pss_kib, shared_kib, rss_kib; /* -1: may not be read */
};

struct family {
	struct registry_entry e;
	struct member *members; /* by pid; may be none: it is just ending */
	size_t nr;
	long long forks; /* -1: not known */
};

struct families {
	struct family *list;
	size_t nr;
};

/* All of this user's. details: sizes, arguments and programs of members, too. 0 or -errno with err set. */
int families_read(struct families *f, bool details, struct kx_err *err);
void families_free(struct families *f);
/*
 * By pid of any member (digits alone) or by name. Returns the family, and its member in *m: that with the pid, or the
 * root, NULL when that has ended. NULL with err set when there is none.
 */
struct family *families_find(struct families *f, const char *who, struct member **m, struct kx_err *err);
/*
 * A pidfd of m, whose process is surely a member still; -ESRCH: it has ended; -EMFILE, -ENFILE, -ENOMEM: it can't be
 * seen. *proc, when not NULL: a descriptor of its directory in /proc.
 */
int member_open(const struct family *f, const struct member *m, int *proc);
/* A descriptor for the family's table through a member's directory in /proc; -errno. */
int member_table(const struct family *f, int proc, int flags);
/* A descriptor of the file with that identity which a member has open, by its directory in /proc; -errno. */
int member_file(int proc, uint64_t dev, uint64_t ino);
/* A copy of the member's descriptor of the socket with that inode, by its pidfd and its directory in /proc; -errno. */
int member_socket(int pidfd, int proc, uint64_t ino);
#endif
