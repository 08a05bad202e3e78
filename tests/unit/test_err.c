/* SPDX-License-Identifier: Apache-2.0 */
/* Errors on their way up: the first cause stays, what is too long keeps both ends, and the host's refusals say what to do. */
#include "../../util/err.h"
#include <errno.h>
#include <string.h>
#include "check.h"

static void is(const struct kx_err *e, const char *text) { CHECK(!strcmp(e->msg, text), "%s, not %s", e->msg, text); }

int main(void)
{
	struct kx_err e = { 0 };
	CHECK(kx_err_exit(&e, ENOENT, 127, "%s: not found (%s)", "a", "make it") == -ENOENT, "returned");
	CHECK(kx_err_set(&e, EIO, "later: (never seen)") == -EIO, "returned");
	CHECK(e.code == ENOENT && e.exit_code == 127, "%d %d", e.code, e.exit_code);
	is(&e, "a: not found (make it)");
	CHECK(kx_err_wrap(&e, "run") == -ENOENT, "returned");
	is(&e, "run: a: not found (make it)");
	CHECK(kx_err_set(NULL, EIO, "nobody asks (none)") == -EIO && !kx_err_wrap(NULL, "x"), "without a place");

	static char path[9000];
	memset(path, 'p', sizeof path - 1);
	e = (struct kx_err){ 0 };
	kx_err_set(&e, EIO, "first %s: last (remedy)", path);
	size_t n = strlen(e.msg);
	CHECK(n == sizeof e.msg - 1 && !strncmp(e.msg, "first pp", 8) && strstr(e.msg, "p...p"), "%zu %s", n, e.msg);
	CHECK(!strcmp(e.msg + n - 15, ": last (remedy)"), "%s", e.msg);

	static const int codes[] = { EMFILE, ENFILE, ENOMEM, ENOSPC, EAGAIN, EACCES, EPERM, EINTR, EIO };
	for (unsigned i = 0; i < sizeof codes / sizeof *codes; i++) {
		char begin[128];
		e = (struct kx_err){ 0 };
		CHECK(kx_err_host(&e, codes[i], "/dev/kvm: no %s", "VM") == -codes[i] && e.code == codes[i], "%d",
		      e.code);
		snprintf(begin, sizeof begin, "/dev/kvm: no VM: %s (", strerror(codes[i]));
		CHECK(!strncmp(e.msg, begin, strlen(begin)) && e.msg[strlen(e.msg) - 1] == ')', "%s", e.msg);
	}
	e = (struct kx_err){ 0 };
	kx_err_host(&e, EMFILE, "%s", path);
	CHECK(strstr(e.msg, "ulimit -n"), "%s", e.msg);
	printf("%s: %d checks, %d failures\n", failures ? "FAILED" : "SUCCESS", checks, failures);
	return failures != 0;
}
