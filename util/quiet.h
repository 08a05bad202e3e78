/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KX_QUIET_H
#define KX_QUIET_H
#include <stddef.h>
#include <sys/types.h>

/*
 * write(2) of the monitor's own: the signal that a reader who has gone, or the limit on the size of files, raises is none
 * of the program's business. Goes on after EINTR. Async-signal-safe.
 */
ssize_t write_quietly(int fd, const void *p, size_t n);
#endif
