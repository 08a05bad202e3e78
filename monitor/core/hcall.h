/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hypercall dispatch. hcall_dispatch() copies struct kx_call from the guest once, checks every argument by the
 * row's descriptors, and calls the row's handler with the result. Handlers see only this copy: they never read
 * an argument from guest memory again, and any further guest memory through guest_read()/guest_write() once.
 */
#ifndef KX_HCALL_INTERNAL_H
#define KX_HCALL_INTERNAL_H
#include <limits.h>
#include <sys/uio.h>
#include "pvm.h"

struct hcall;
typedef int64_t (*hc_handler)(struct hcall *c);

/* Without pointers, so that no start of the monitor has to relocate the table, nor a fork to copy it. */
struct hc_row {
	char name[24];
	unsigned short nr;
	unsigned short flags; /* KX_F_* */
	struct kx_arg_desc arg[6];
};

struct hcall {
	struct thread *t;
	const struct hc_row *row;
	uint64_t nr;
	uint64_t arg[6]; /* as the guest gave them (INT/FD kinds: take (int)arg) */
	/* After the check, by argument: what to hand to the host. Buffers and structs: host address inside guest
	 * memory, range-checked (the kernel may still find it unmapped: -EFAULT). PATH*, STR: host copy. IOV*: host
	 * copy of the vector with translated bases. ATFD belonging to a PATH may have been replaced. Numbers: same. */
	long host[6];
	/* PATH arguments: set when the path names an emulated file (monitor/dev/procfs.c); NULL else.
	 * Relative to the root of procfs ("self/maps"), normalised. Handlers that can't serve it: -EACCES. */
	const char *proc[6];
	char *path_buf[2]; /* PATH_MAX each, from the thread's scratch */
	int nr_paths;
	struct iovec *iov;
	bool traced;
};

#define HC_TRACE 1027 /* what the LibOS tells of its own answers */

/* Handle the call in t's area; stores ret there. Never fails: errors are the guest's -errno. */
void hcall_dispatch(struct thread *t);
/* At the end of call nr: who the parent is, for getppid() in the LibOS, unless the program has not asked during many calls. */
void hcall_look_at_parent(uint64_t nr);

/* Check and translate the arguments by the row's descriptors: 0 or -errno. */
int hcall_check(struct hcall *c);

/* Does the call change what the calling thread may do: its ids, groups, capabilities? prctl(2) is left to the caller. */
bool hcall_sets_rights(uint64_t nr);
/* Or where and when it, or another thread, runs? */
bool hcall_sets_schedule(uint64_t nr);

/* Row by number; NULL when there is none. */
const struct hc_row *hc_row_find(uint64_t nr);
extern const struct hc_row hc_rows[];
/* What answers a row of that table. */
hc_handler hc_fn(const struct hc_row *row);
extern const unsigned hc_nr_rows;

/* The generic handler: the host's call row->nr with c->host[]; blocking form when KX_F_BLOCK. */
int64_t hc_FWD(struct hcall *c);

#define KX_CALL(nr, name, handler, flags, doc, a0, a1, a2, a3, a4, a5) int64_t hc_##handler(struct hcall *c);
#include "../../abi/hypercalls.def"

/* A handler's result: EINTR that is not to be restarted though the row says so (sockets with a timeout). */
#define KX_NORESTART_EINTR (-4000)

/* Does it, as it is called, close descriptors? Not with a flag that only marks them, nor where it fails. */
bool hcall_closes_range(const struct hcall *c);

/* Common checks for handlers. */
static inline bool fd_is_guest(int fd) { return fd >= 0 && (unsigned)fd < pvm.fd_limit; }
/* May a descriptor's signals (SIGIO, or which the program chooses) go to this process, or group? */
bool fd_owner_allowed(bool group, pid_t pid);
/* What fd has open (a pipe: either end), opened again with these flags, never waiting; a descriptor of the monitor's, or
 * -errno. */
int fd_reopen(int fd, int flags);
/* A file of the host's /proc, to read, hidden from the guest. The caller's; -1 or a negative errno: none. */
int proc_file(const char *name);
/* A new descriptor from the host: as it is, or closed and -EMFILE when it landed in the monitor's range. */
int64_t fd_result(int64_t fd);
/* Read a struct timespec pointer argument (0 = NULL): *out set to a host pointer into *ts or NULL. */
int get_timespec(uint64_t gva, struct timespec *ts, struct timespec **out);
#endif
