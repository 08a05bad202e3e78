/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry: a directory of the user's with one file for each family that runs, so that the host's side (ps, kill,
 * exec) finds them. What a file says is written before the first guest instruction and is out of the guest's reach
 * from then on: members hold a descriptor of the file that can only be read, and a shared flock(2) by it. The kernel
 * drops that lock with the last member, however it ended; a file that nobody has locked is no family any more, and
 * is removed by whoever comes next.
 *
 * /run/kylinx for root; $XDG_RUNTIME_DIR/kylinx, else /tmp/kylinx-UID, for others. Names of files: PID-START, with
 * .NAME for a family with a name; START is the root's start time in clock ticks since boot.
 */
#ifndef KX_REGISTRY_H
#define KX_REGISTRY_H
#include <limits.h>
#include "../../util/build.h"
#include "pvm.h"

#define REGISTRY_NAME_MAX 64

struct registry_entry {
	char file[256];
	char name[REGISTRY_NAME_MAX + 1]; /* empty: none */
	char program[PATH_MAX];
	pid_t pid; /* of the root */
	uint64_t start;
	uint64_t memory;
	int cpus, log_level;
	bool net_none, net_private;
	char publish[64 * 64];  /* published ports, separated by blanks */
	int family_fd, proc_fd; /* numbers in the root's table of descriptors */
	uint64_t family_dev, family_ino, ipc_dev, ipc_ino;
	uint64_t policy_dev, policy_ino;         /* of its policy; 0 = none */
	uint64_t update_ino[2];                  /* of the sockets for updates (update.h); 0 = none */
	unsigned update_protocol, update_oldest; /* what its build speaks; 0: one that doesn't say */
	char build[BUILD_NAME];                  /* empty: one that doesn't say */
	struct rlimit limits[16];
};

/*
 * Enter the family that this process starts; before the jail. Sets pvm.registry_fd. Without a directory the program
 * runs all the same, unlisted. Fails only when the name is in use, or
 * when that can't be told: others keep the directory locked (2 s), or no descriptor is left.
 */
int registry_add(const struct kx_config *cfg, struct kx_err *err);
/* In the new mount namespace, with the old root still there: take hold of the file by a mount that can't be written. */
void registry_enter(void);
/* Write what is known only after the jail: from now on the family is seen. */
void registry_complete(void);

/*
 * Call fn for each family that runs, until it returns nonzero; remove files of those that ended. Returns fn's last
 * result, or -errno with err set. No directory is no family.
 */
int registry_each(int (*fn)(const struct registry_entry *e, void *arg), void *arg, struct kx_err *err);
/* A descriptor that keeps the family registered, for a new member; -errno: it has ended. */
int registry_hold(const struct registry_entry *e, struct kx_err *err);
#endif
