/* SPDX-License-Identifier: Apache-2.0 */
#include "fsize.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include "../../util/together.h"
#include "keeper.h"
#include "pvm.h"

static KX_TOGETHER pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* the limit is the process's */

void fsize_fork_lock(void) { pthread_mutex_lock(&lock); }
void fsize_fork_unlock(void) { pthread_mutex_unlock(&lock); }

void fsize_lift(struct fsize *f)
{
	const struct rlimit all = { RLIM_INFINITY, RLIM_INFINITY };
	sigset_t set, old, pending;
	int e = errno;
	*f = (struct fsize){
		.locked = !is_vfork_child()
	}; /* it has a limit of its own, and must not die with the lock */
	if (f->locked)
		pthread_mutex_lock(&lock);
	sigemptyset(&set);
	sigaddset(&set, SIGXFSZ);
	sigemptyset(&pending);
	sigpending(&pending);
	pthread_sigmask(SIG_BLOCK, &set, &old);
	f->blocked = sigismember(&old, SIGXFSZ);
	f->pending = sigismember(&pending, SIGXFSZ);
	if (!getrlimit(RLIMIT_FSIZE, &f->was) && f->was.rlim_cur != RLIM_INFINITY) {
		struct rlimit most = { f->was.rlim_max, f->was.rlim_max };
		f->lifted = !setrlimit(RLIMIT_FSIZE, &all) || !setrlimit(RLIMIT_FSIZE, &most);
	}
	errno = e;
}

void fsize_drop(const struct fsize *f)
{
	const struct timespec none = { 0, 0 };
	sigset_t set;
	int e = errno;
	if (f->lifted)
		setrlimit(RLIMIT_FSIZE, &f->was);
	sigemptyset(&set);
	sigaddset(&set, SIGXFSZ);
	if (!f->pending)
		sigtimedwait(&set, NULL, &none);
	if (!f->blocked)
		pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	if (f->locked)
		pthread_mutex_unlock(&lock);
	errno = e;
}
