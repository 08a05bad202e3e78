/* SPDX-License-Identifier: Apache-2.0 */
/* Policy files, outside of the jail: kylinx-policy(5) is their form. */
#ifndef KX_POLICY_READ_H
#define KX_POLICY_READ_H
#include "policy.h"

/* A remark on a line (0: on the whole file): "what (remedy)". */
typedef void (*policy_remark_fn)(void *arg, bool error, unsigned line, const char *text);

/* As policy_read(), with all that is to be said of the file. Without errors *out is the policy. */
int policy_check(const char *path, struct policy **out, policy_remark_fn fn, void *arg, struct kx_err *err);
/* The policy without a file. */
extern const char policy_builtin[];
int policy_read_builtin(struct policy **out, struct kx_err *err);
#endif
