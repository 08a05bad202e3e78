/* SPDX-License-Identifier: Apache-2.0 */
#include "vmend.h"
#include <errno.h>
#include <linux/close_range.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../util/now.h"
#include "keeper.h"
#include "sig.h"
#include "spare.h"

#define STACK_BYTES 16384
#define HELD_MS 40 /* in which who has sent one has ended */
#define IDLE_MS 1000
#define HELD_MAX 8
#define LEAVE 'l'             /* in place of a VM: its place is needed */
#define SOON_NS 1000000000ull /* children that follow each other in less are a habit */

static struct {
	uint64_t born_ns, before_ns; /* of the last two children of `of` */
	pid_t of;
	pid_t pid;    /* whose thread there is, was, or could not be */
	pid_t tid;    /* the thread, 0 = it is not there: the kernel says so */
	int to, from; /* its socket: the children's end, -1 = none; its own, in its own table */
	int ready;    /* a futex */
} end = { .to = -1 };
static char stack[STACK_BYTES] __attribute__((aligned(64)));

union control {
	struct cmsghdr h;
	char space[CMSG_SPACE(sizeof(int))];
};

/* It has its creator's thread-local storage, which it leaves alone, and a table of descriptors with the socket alone. */
static int undertaker(void *arg)
{
	const int from = end.from;
	(void)arg;
	HC6(SYS_prctl, PR_SET_NAME, PVM_THREADS "vmend", 0, 0, 0, 0);
	/* Not copied and closed: the end of a copy of a message queue would end the process's mq_notify(). */
	long r = HC6(SYS_close_range, 0, from - 1, CLOSE_RANGE_UNSHARE, 0, 0, 0);
	if (!r)
		r = HC6(SYS_close_range, from + 1, ~0u, 0, 0, 0, 0);
	__atomic_store_n(&end.ready, r ? 2 : 1, __ATOMIC_SEQ_CST);
	HC6(SYS_futex, &end.ready, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
	int held[HELD_MAX];
	for (unsigned n = 0; !r;) {
		union control c = { .h = { 0 } };
		char byte = 0;
		struct iovec v = { &byte, 1 };
		struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof c };
		struct pollfd p = { .fd = from, .events = POLLIN };
		/* Whoever sent it has it yet, and would end the VM itself if this copy went first. */
		long k = HC6(SYS_poll, &p, 1, n ? HELD_MS : IDLE_MS, 0, 0, 0);
		if (!k && !n) /* a child that was there before may lack its place, and can't say so */
			break;
		if (!k)
			while (n)
				HC6(SYS_close, held[--n], 0, 0, 0, 0, 0);
		if (k <= 0)
			continue;
		k = HC6(SYS_recvmsg, from, &m, MSG_CMSG_CLOEXEC, 0, 0, 0);
		if (byte == LEAVE || (k < 0 && k != -EINTR))
			break;
		if (k < 0 || m.msg_controllen < CMSG_LEN(sizeof held[0]) || c.h.cmsg_type != SCM_RIGHTS)
			continue;
		if (n == HELD_MAX) {
			HC6(SYS_close, held[0], 0, 0, 0, 0, 0);
			memmove(held, held + 1, --n * sizeof held[0]);
		}
		memcpy(&held[n++], CMSG_DATA(&c.h), sizeof held[0]);
	}
	return 0;
}

static void start(void)
{
	const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
			  CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
	uint64_t all = ~0ull, old = 0;
	int s[2];
	end.pid = pvm.pid;
	fd_limit_lift();
	int r = socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, s);
	fd_limit_drop();
	if (r)
		return;
	if ((s[0] = fd_hide(s[0])) < 0) {
		close(s[1]);
		return;
	}
	if (end.to >= 0)
		close(end.to);
	if (fd_keep(&end.to, s[1])) {
		end.to = -1;
		close(s[0]);
		return;
	}
	end.from = s[0];
	end.ready = 0;
	spare_changed();
	HC6(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, 8, 0, 0);
	r = clone(undertaker, stack + STACK_BYTES, flags, NULL, &end.tid, NULL, &end.tid);
	/* The same storage: nothing here may use it, errno included, while the other one may be in clone(). */
	while (r >= 0 && !__atomic_load_n(&end.ready, __ATOMIC_SEQ_CST))
		HC6(SYS_futex, &end.ready, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0);
	HC6(SYS_rt_sigprocmask, SIG_SETMASK, &old, 0, 8, 0, 0);
	close(end.from);
	if (r < 0 || end.ready != 1) {
		close(end.to);
		end.to = -1;
	}
}

bool vmend_make_room(void)
{
	const char byte = LEAVE;
	if (end.pid != pvm.pid || !end.tid || is_vfork_child() || pvm.nr_threads > 1)
		return false;
	const pid_t tid = end.tid;
	if (HC6(SYS_sendto, end.to, &byte, 1, MSG_NOSIGNAL, 0, 0) == 1)
		while (!HC6(SYS_tgkill, pvm.pid, tid, 0, 0, 0, 0))
			HC6(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
	end.tid = 0;
	close(end.to);
	end.to = -1;
	return true;
}

void vmend_ask_room(void)
{
	const char byte = LEAVE;
	if (end.to >= 0 && end.pid != pvm.pid)
		HC6(SYS_sendto, end.to, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
}

void vmend_born(void)
{
	if (is_vfork_child())
		return;
	end.before_ns = end.of == pvm.pid ? end.born_ns : 0;
	end.of = pvm.pid;
	end.born_ns = now_ns();
}

bool vmend_habit(void) { return end.of == pvm.pid && end.before_ns && end.born_ns - end.before_ns < SOON_NS; }

void vmend_wait(void)
{
	/* With one thread: none can see a descriptor before it is hidden. */
	if (end.pid != pvm.pid && vmend_habit() && pvm.nr_threads == 1 && !is_vfork_child())
		start();
}

void vmend_hand_over(void)
{
	union control c = { .h = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	char byte = 0;
	struct iovec v = { &byte, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof c };
	if (end.to < 0 || end.pid == pvm.pid || is_vfork_child())
		return;
	memcpy(CMSG_DATA(&c.h), &pvm.vm_fd, sizeof(int));
	HC6(SYS_sendmsg, end.to, &m, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0, 0);
}

int vmend_fd(void) { return end.to; }

void vmend_adopt(int fd)
{
	if (fd >= 0)
		fd_keep(&end.to, fd);
}
