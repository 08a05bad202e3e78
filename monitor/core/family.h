/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The family: the pVMs forked from one root, and those that `kylinx exec` added. A table of their pids in memory that
 * all of them map (a memfd, so that it outlives exec). Only who is in it can be signalled, waited for by name, looked
 * at in /proc, or made part of a process group from inside.
 *
 * Members end without telling (SIGKILL, nobody who waits), and the host gives their pids to others. So an entry counts
 * only after a look at the host's /proc: a process in the family's IPC namespace is a member, whoever it is, since
 * nobody leaves or enters one. Where that can't be seen (other credentials, a zombie) the start time decides. Entries
 * of the dead are swept by whoever meets them, and by new members, a few each, of children that nobody waits for.
 */
#ifndef KX_FAMILY_H
#define KX_FAMILY_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "../../util/err.h"

#ifndef FAMILY_MAX /* a unit test has fewer */
#define FAMILY_MAX 32768
#endif
#ifndef FAMILY_CROWD
#define FAMILY_CROWD 64 /* places in use behind which a new member looks for the dead */
#endif
#define FAMILY_EXE_MAX 240
#define FAMILY_MAGIC 0x6f66786bu

/* A word that changes by compare-and-swap alone: a member that is killed at any instant leaves nothing locked. */
typedef uint64_t family_key;
#define FAMILY_DUMPED 4u   /* added to from_host: it left a core file */
#define FAMILY_SPARE 2     /* no member: reserved for a child made ahead (spare.h), whose pid is in `birth` */
#define FAMILY_PID_BITS 22 /* the kernel's pids are below 4194304 */
#define FAMILY_RESERVED ((family_key)1 << 63) /* for a child that the process with this pid and start time makes */

struct family_slot {
	family_key key;           /* pid | start time in clock ticks since boot << 22 (0: not known yet); 0 = free */
	uint32_t from_host;       /* 1: by `kylinx exec`; FAMILY_SPARE; FAMILY_DUMPED */
	uint32_t birth;           /* birth.h */
	char exe[FAMILY_EXE_MAX]; /* path of its program in the view; empty: not known, or too long */
};

struct family_table {
	uint32_t magic, slot_size;
	uint32_t used;      /* slots at and above it were never taken */
	uint32_t cpus;      /* that it was started on */
	uint64_t forks;     /* children made, of all members */
	uint64_t queues;    /* device of its POSIX queues, once one was opened */
	uint64_t failed_ns; /* when a child last got no VM, CLOCK_MONOTONIC; 0 = never */
	uint32_t reapers;   /* a member has asked to be a subreaper */
	uint32_t swept;     /* where the last new member of a crowd has looked for the dead, modulo `used` */
	uint64_t unserved;  /* of updates (update.h) */
	uint64_t pad2[25];
	struct family_slot slot[];
};

/* Make the table (fd < 0) or map an inherited one. Sets pvm.family_fd. */
int family_init(int fd, struct kx_err *err);
/* The words of birth.h. */
uint32_t *family_birth(int slot);
uint64_t *family_failed_ns(void);
uint64_t *family_unserved(void);
uint32_t *family_reapers(void);
/* How many processors the family was started on: members may have bound themselves to fewer. */
unsigned family_cpus(void);
/* Where in the table's file the family's pipes are (abi/kx_pipe.h). */
uint64_t family_pipes_offset(void);
/* ... and its semaphores and queues (abi/kx_ipc.h). */
uint64_t family_ipc_offset(void);
/* The device of the family's POSIX queues, 0 as long as none was opened. dev: it is that. */
uint64_t family_queues(uint64_t dev);
/* Map the family's struct kx_futexes there. 0 or -errno. */
int family_map_futexes(void *at);
/* Enter the calling process, which was not made by family_reserve() and family_child(). 0, or -EAGAIN when full. */
int family_enter(bool from_host);

/*
 * A child: reserve a place for it before it is made, so that a full table is the parent's error; then family_child()
 * in the child and family_born() in the parent, in any order, or family_cancel(). family_reserve() returns the slot
 * or -EAGAIN.
 */
int family_reserve(void);
void family_cancel(int slot);
/* A reserved place tells of a process that is no member. 0: it is about to be made, and tells of itself. */
void family_spare(int slot, pid_t pid);
void family_born(int slot, pid_t pid);
/* known: read the start time now; not where another process has the same descriptors. */
void family_child(int slot, bool known);
/* The same in a child with memory of its own, which gets to know its start time with family_settle(), if it is due: before
 * its first call that takes long enough. */
void family_child_later(int slot);
bool family_is_due(void);
void family_settle(void);

/* The calling process runs pvm.exe from now on. */
void family_set_exe(void);
/* How many calls that may change a file's size the calling process is in (sizes.h). */
uint32_t *family_changing(void);
/* Is any member in one? Those that were killed within are none. */
bool family_changes(void);
/* Path of a member's program. False when it is not known. */
bool family_exe(pid_t pid, char *out, size_t len);

/* The calling process has left a core file; did a child that has ended? */
void family_dump_done(void);
bool family_dumped(pid_t pid);
/* Drop pid, which was reaped. */
void family_remove(pid_t pid);
bool family_has(pid_t pid);
/* The same in any thread: 1, or 0. -1: it may be, but has other rights, or has ended. */
int family_seen(pid_t pid);
/* The member that a thread belongs to; 0 when it is no member's. */
pid_t family_owner(pid_t tid);
/* Call fn for each member; returns how many there were. */
int family_each(void (*fn)(pid_t pid, void *arg), void *arg);
#endif
