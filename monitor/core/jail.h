/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The view of a pVM: namespaces of its own, a root put together from the host's system directories, few
 * capabilities. What is in the view, and what is private to it, is told in docs/kylinx.1.
 */
#ifndef KX_JAIL_H
#define KX_JAIL_H
#include "pvm.h"

/*
 * Enter the view that cfg describes. Must be called before the process has threads; there is no way back. Sets
 * pvm.proc_fd (a procfs mount outside the view). The current directory stays the same path where the view has it
 * and becomes "/" elsewhere. Open descriptors are left alone, so whatever the monitor needs by path later (--strace
 * and --stats files, /dev/kvm) must be open before.
 *
 * Root keeps a small set of capabilities in the host's user namespace; others get a user namespace in which only
 * their own ids exist, and no capability. Returns 0 or -errno with err set; the process must end then.
 */
int jail_enter(const struct kx_config *cfg, struct kx_err *err);

/* In the new mount namespace: make what path names on the host read-only there, by whatever descriptor it is opened from then
 * on. 0, or -1 and errno. */
int jail_shut(const char *path);

/*
 * Enter the view of a running family instead: the namespaces of a member, by its pidfd, and the same rights as there.
 * Fails when that did not lead into join's IPC namespace.
 */
int jail_join(const struct kx_join *join, struct kx_err *err);

/*
 * Find the program as execvp(3) does, in the view. path_env: value of PATH, NULL when there is none. out: what to
 * load, `name` itself when it has a slash. Returns 0, or -errno with err->exit_code 127 (not there) or 126 (there,
 * but not to be executed).
 */
int path_search(const char *name, const char *path_env, char out[4096], struct kx_err *err);
#endif
