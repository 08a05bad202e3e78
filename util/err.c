/* SPDX-License-Identifier: Apache-2.0 */
#include "err.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define LONG 10240 /* two paths, and some words */
#define HEAD 160

/* One that is too long loses of its middle: the reason and the remedy are at its end. */
static void put(struct kx_err *err, const char *fmt, va_list ap)
{
	static const char gap[] = "...";
	char all[LONG];
	int n = vsnprintf(all, sizeof all, fmt, ap);
	size_t len = n < 0 ? 0 : (size_t)n < sizeof all ? (size_t)n : sizeof all - 1, room = sizeof err->msg - 1;
	all[len] = 0;
	if (len <= room) {
		memcpy(err->msg, all, len + 1);
		return;
	}
	const size_t tail = room - HEAD - (sizeof gap - 1);
	memcpy(err->msg, all, HEAD);
	memcpy(err->msg + HEAD, gap, sizeof gap - 1);
	memcpy(err->msg + HEAD + sizeof gap - 1, all + len - tail, tail + 1);
}

static int set(struct kx_err *err, int code, int exit_code, const char *fmt, va_list ap)
{
	if (err && !err->code) {
		err->code = code;
		err->exit_code = exit_code;
		put(err, fmt, ap);
	}
	return -code;
}

int kx_err_set(struct kx_err *err, int code, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	int r = set(err, code, 0, fmt, ap);
	va_end(ap);
	return r;
}

int kx_err_exit(struct kx_err *err, int code, int exit_code, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	int r = set(err, code, exit_code, fmt, ap);
	va_end(ap);
	return r;
}

static const char *host_remedy(int e)
{
	switch (e) {
	case EMFILE:
	case ENFILE:
		return "raise `ulimit -n`, or end some programs";
	case ENOMEM:
	case ENOSPC:
		return "free some memory, or raise the cgroup's limit";
	case EAGAIN:
		return "raise `ulimit -u` or the cgroup's pids.max, or end some programs";
	case EACCES:
	case EPERM:
		return "what confines kylinx must allow this";
	case EINTR:
		return "try again";
	default:
		return "the kernel's log may tell more: dmesg";
	}
}

int kx_err_host(struct kx_err *err, int e, const char *fmt, ...)
{
	char what[LONG];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(what, sizeof what, fmt, ap);
	va_end(ap);
	return kx_err_set(err, e, "%s: %s (%s)", what, strerror(e), host_remedy(e));
}

__attribute__((format(printf, 2, 3))) static void put_args(struct kx_err *err, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	put(err, fmt, ap);
	va_end(ap);
}

int kx_err_wrap(struct kx_err *err, const char *context)
{
	char old[sizeof err->msg];
	if (!err)
		return 0;
	memcpy(old, err->msg, sizeof old);
	put_args(err, "%s: %s", context, old);
	return -err->code;
}
