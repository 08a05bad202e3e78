/* SPDX-License-Identifier: Apache-2.0 */
/* The host calls that the monitor may make once a guest runs. */
#ifndef KX_SECCOMP_H
#define KX_SECCOMP_H
#include "../../util/err.h"

/*
 * Restrict this process, its later threads and children for good: the calls of abi/hypercalls.def and the few that
 * the monitor needs itself are allowed; those that only an intruder would make kill the process; others are ENOSYS.
 * Also refused: executable mappings (EPERM), new namespaces by clone (EPERM), clone3 (ENOSYS, so that libc uses
 * clone), sockets other than UNIX, INET, INET6, NETLINK (EAFNOSUPPORT), typing into the terminal (EPERM).
 *
 * Sets no_new_privs. Returns 0 or -errno with err set.
 */
int seccomp_enter(struct kx_err *err);
#endif
