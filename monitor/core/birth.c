/* SPDX-License-Identifier: Apache-2.0 */
#include "birth.h"
#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <time.h>
#include "../../util/now.h"
#include "../../util/together.h"
#include "family.h"
#include "pvm.h"

#define SURE_NS 60000000000ull     /* what was heard of a child holds for so long */
#define SHORT_NS 10000000000ull    /* and a failure in the family */
#define MEMORY_SHORT (32ull << 20) /* bytes free */
#define LOOK_NS 10000000           /* how often a parent that waits looks whether the child lives */
#define TOLD 1u                    /* a child's word; 0: not yet. Else FAILED + errno */
#define FAILED 0x100u

static KX_TOGETHER int last_slot = -1; /* of the last child, and when it was made */
static KX_TOGETHER uint64_t last_ns;
static KX_TOGETHER unsigned threads, last_threads; /* that were made, in all */

static bool memory_is_short(void)
{
	struct sysinfo i;
	return !sysinfo(&i) && (i.freeram + i.freeswap) * i.mem_unit < MEMORY_SHORT;
}

bool birth_begin(int slot)
{
	uint64_t now = now_ns();
	unsigned n = __atomic_load_n(&threads, __ATOMIC_SEQ_CST);
	bool sure = last_slot >= 0 && now - last_ns < SURE_NS && n == last_threads &&
		    __atomic_load_n(family_birth(last_slot), __ATOMIC_ACQUIRE) == TOLD;
	__atomic_store_n(family_birth(slot), 0, __ATOMIC_RELEASE);
	last_slot = slot;
	last_ns = now;
	last_threads = n;
	return !sure || birth_is_short() || memory_is_short();
}

void birth_unsure(void) { __atomic_add_fetch(&threads, 1, __ATOMIC_SEQ_CST); }

void birth_lacks(void) { __atomic_store_n(family_failed_ns(), now_ns(), __ATOMIC_RELAXED); }

bool birth_short_since(uint64_t ns)
{
	uint64_t failed = __atomic_load_n(family_failed_ns(), __ATOMIC_RELAXED);
	return failed && failed >= ns;
}

bool birth_is_short(void)
{
	uint64_t now = now_ns();
	return birth_short_since(now > SHORT_NS ? now - SHORT_NS : 0);
}

void birth_tell(int slot, int error)
{
	uint32_t *word = family_birth(slot);
	if (error)
		birth_lacks();
	__atomic_store_n(word, error ? FAILED + (uint32_t)error : TOLD, __ATOMIC_SEQ_CST);
	host_call(SYS_futex, (long)word, FUTEX_WAKE, 1, 0, 0, 0);
}

static bool has_ended(pid_t pid)
{
	siginfo_t info;
	memset(&info, 0, sizeof info);
	long r = HC6(SYS_waitid, P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT | __WALL, 0, 0);
	return r == -ECHILD || (r == 0 && info.si_pid == pid);
}

/*
 * The signal of a child that nobody is to hear of. Of another child's that ended at the same time it may have taken the
 * place, standard signals being one at a time: whoever can be waited for now, and could not be before, gets it back.
 */
static void signal_take(int signo, pid_t pid, bool some_before)
{
	uint64_t set = 1ull << (signo - 1);
	siginfo_t info;
	const struct timespec zero = { 0, 0 };
	if (signo < 1 || signo > 64 || HC6(SYS_rt_sigtimedwait, &set, &info, &zero, 8, 0, 0) != signo)
		return;
	if (info.si_pid == pid) {
		memset(&info, 0, sizeof info);
		if (signo != SIGCHLD || some_before ||
		    HC6(SYS_waitid, P_ALL, 0, &info, WEXITED | WSTOPPED | WCONTINUED | WNOHANG | WNOWAIT, 0, 0) ||
		    !info.si_pid)
			return;
	}
	HC6(SYS_rt_sigqueueinfo, my_tid(), signo, &info, 0, 0, 0); /* by this number: sig.c's requeue() */
}

void birth_forget(pid_t pid, int exit_signal)
{
	siginfo_t info;
	memset(&info, 0, sizeof info);
	/* Not the child itself, which may have ended by now: it is waited for with __WALL below, and is no other's. */
	bool some = !HC6(SYS_waitid, P_ALL, 0, &info, WEXITED | WSTOPPED | WCONTINUED | WNOHANG | WNOWAIT, 0, 0) &&
		    info.si_pid && info.si_pid != pid;
	while (HC6(SYS_wait4, pid, 0, __WALL, 0, 0, 0) == -EINTR)
		;
	signal_take(exit_signal, pid, some);
}

int birth_await(int slot, pid_t pid, int exit_signal)
{
	uint32_t *word = family_birth(slot), v;
	const struct timespec look = { 0, LOOK_NS };
	while (!(v = __atomic_load_n(word, __ATOMIC_SEQ_CST))) {
		long r = HC6(SYS_futex, word, FUTEX_WAIT, 0, &look, 0, 0);
		/* It was killed: that is for its parent to see, as always. */
		if (r == -ETIMEDOUT && has_ended(pid) && !__atomic_load_n(word, __ATOMIC_SEQ_CST))
			return 0;
	}
	if (v == TOLD)
		return 0;
	birth_forget(pid, exit_signal);
	return v == FAILED + ENOMEM ? -ENOMEM : -EAGAIN;
}
