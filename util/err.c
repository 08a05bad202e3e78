/* SPDX-License-Identifier: Apache-2.0 */
#include "err.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static int set(struct kx_err *err, int code, int exit_code, const char *fmt, va_list ap)
{
	if (err && !err->code) {
		err->code = code;
		err->exit_code = exit_code;
		vsnprintf(err->msg, sizeof err->msg, fmt, ap);
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

int kx_err_wrap(struct kx_err *err, const char *context)
{
	char old[sizeof err->msg];
	if (!err)
		return 0;
	memcpy(old, err->msg, sizeof old);
	snprintf(err->msg, sizeof err->msg, "%s: %.400s", context, old);
	return -err->code;
}
