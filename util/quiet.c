/* SPDX-License-Identifier: Apache-2.0 */
#include "quiet.h"
#include <errno.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

ssize_t write_quietly(int fd, const void *p, size_t n)
{
	const struct timespec none = { 0, 0 };
	sigset_t set, old, pending, own;
	ssize_t r;
	sigemptyset(&set);
	sigaddset(&set, SIGPIPE);
	sigaddset(&set, SIGXFSZ);
	sigprocmask(SIG_BLOCK, &set, &old);
	sigpending(&pending);
	do
		r = write(fd, p, n);
	while (r < 0 && errno == EINTR);
	int e = errno, sig = r >= 0 ? 0 : e == EPIPE ? SIGPIPE : e == EFBIG ? SIGXFSZ : 0;
	if (sig && !sigismember(&pending, sig)) {
		sigemptyset(&own);
		sigaddset(&own, sig);
		sigtimedwait(&own, NULL, &none);
	}
	sigprocmask(SIG_SETMASK, &old, NULL);
	errno = e;
	return r;
}
