/* SPDX-License-Identifier: Apache-2.0 */
/* An error on its way up: the first cause, with context added by each caller. */
#ifndef KX_ERR_H
#define KX_ERR_H
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>

struct kx_err {
	int code;      /* positive errno, 0 = none */
	int exit_code; /* process exit status that it calls for: 125, 126 or 127; 0 = not said (125) */
	char msg[512]; /* "what: why (remedy)"; one that is longer has "..." in its middle */
};

/*
 * Record the first cause; a later call on the same err is ignored.
 * err may be NULL. Returns -code, so that callers write `return kx_err_set(...)`.
 */
__attribute__((format(printf, 3, 4))) int kx_err_set(struct kx_err *err, int code, const char *fmt, ...);

/* As kx_err_set(), and note the exit status of the process. */
__attribute__((format(printf, 4, 5))) int kx_err_exit(struct kx_err *err, int code, int exit_code, const char *fmt,
						      ...);

/* Is errno e of who has no descriptors or memory left? It says nothing of what was to be opened, or looked at. */
static inline bool kx_err_lacks(int e) { return e == EMFILE || e == ENFILE || e == ENOMEM; }

/* As kx_err_set(), of what the host's kernel has refused with errno e: its text and the remedy are put behind. */
__attribute__((format(printf, 3, 4))) int kx_err_host(struct kx_err *err, int e, const char *fmt, ...);

/* Put "context: " before the message that is there. Returns -err->code. */
int kx_err_wrap(struct kx_err *err, const char *context);
#endif
