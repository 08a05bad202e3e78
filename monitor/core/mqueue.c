/* SPDX-License-Identifier: Apache-2.0 */
/*
 * POSIX queues: as SysV ones (ipc.h), named by descriptors. kx_ipc_table.mq tells the LibOS which descriptor is whose; a
 * bit here, which are a queue's at all, as far as this process opened or copied them. Who waits for a queue by poll, asks to
 * be notified, gives it to others or opens it as a file makes it the host's for ever.
 */
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include "../../abi/kx_ipc.h"
#include "family.h"
#include "ipc.h"
#include "keeper.h"

#define MQUEUE_MAGIC 0x19800202
#define MQ_PRIO_MAX 32768

static uint64_t known[KX_IPC_FDS / 64]; /* descriptors of queues */
static bool any;                        /* of them, now or before; or more that have no place here */

static struct kx_ipc_table *published(void) { return gva_ptr(KX_IPC_TABLE); }
static bool has_place(int fd) { return fd >= 0 && fd < KX_IPC_FDS; }

static bool is_queue(int fd)
{
	struct statfs fs;
	return HC6(SYS_fstatfs, fd, &fs, 0, 0, 0, 0) == 0 && fs.f_type == MQUEUE_MAGIC;
}

/* fd's queue; false: none. */
static bool name_of(int fd, struct ipc_name *n)
{
	struct stat st;
	if (!is_queue(fd) || HC6(SYS_fstat, fd, &st, 0, 0, 0, 0))
		return false;
	*n = (struct ipc_name){ IPC_MQ, (int)st.st_ino, fd };
	return true;
}

static bool is_known(int fd)
{
	if (!__atomic_load_n(&any, __ATOMIC_ACQUIRE))
		return false;
	if (!has_place(fd) || is_vfork_child()) /* its table is not this one */
		return is_queue(fd);
	return __atomic_load_n(&known[fd / 64], __ATOMIC_ACQUIRE) >> fd % 64 & 1;
}

static void known_set(int fd)
{
	if (has_place(fd))
		__atomic_or_fetch(&known[fd / 64], 1ull << fd % 64, __ATOMIC_SEQ_CST);
	__atomic_store_n(&any, true, __ATOMIC_RELEASE);
}

void mq_gone(int fd)
{
	if (!__atomic_load_n(&any, __ATOMIC_ACQUIRE) || !has_place(fd))
		return;
	__atomic_store_n(&published()->mq[fd], 0, __ATOMIC_SEQ_CST);
	if (!is_vfork_child()) /* in its parent's table, the descriptor is still there */
		__atomic_and_fetch(&known[fd / 64], ~(1ull << fd % 64), __ATOMIC_SEQ_CST);
}

void mq_copied(int fd, int to)
{
	bool queue = is_known(fd);
	mq_gone(to);
	if (queue)
		known_set(to);
}

void mq_plain(int fd)
{
	struct ipc_name n;
	if (is_known(fd) && name_of(fd, &n))
		ipc_close(n);
}

void mq_opened(int fd, const char *path)
{
	struct ipc_name n;
	if ((!family_queues(0) && strncmp(path, "/dev/mqueue/", 12)) || !name_of(fd, &n))
		return;
	known_set(fd);
	ipc_close(n);
}

void mq_plain_all(void)
{
	for (int fd = 0; any && fd < KX_IPC_FDS; fd++)
		mq_plain(fd);
}

/* Queues' descriptors are closed by exec unless the program says otherwise. */
void mq_resume(void)
{
	for (int fd = 0; family_queues(0) && fd < KX_IPC_FDS; fd++)
		if (is_queue(fd))
			known_set(fd);
}

void mq_forget(void)
{
	if (!any)
		return;
	memset(known, 0, sizeof known);
	memset(published()->mq, 0, sizeof published()->mq);
	mq_resume();
}

/* What the LibOS is told of fd. Another thread may have closed it: then it is taken back. */
static void publish(struct ipc_name n, long flags)
{
	struct stat st;
	if (!has_place(n.fd) || is_vfork_child() || !is_known(n.fd))
		return;
	long mode = flags & O_ACCMODE;
	uint64_t rights = (mode != O_WRONLY ? KX_IPC_MQ_READ : 0) | (mode != O_RDONLY ? KX_IPC_MQ_WRITE : 0) |
			  (flags & O_NONBLOCK ? KX_IPC_MQ_NOWAIT : 0);
	uint64_t *key = &published()->mq[n.fd], new = (uint64_t)(uint32_t)n.id << 32 | rights;
	if (__atomic_exchange_n(key, new, __ATOMIC_SEQ_CST) != new &&
	    (HC6(SYS_fstat, n.fd, &st, 0, 0, 0, 0) || (int)st.st_ino != n.id))
		__atomic_store_n(key, 0, __ATOMIC_SEQ_CST);
}

/* ---- calls ------------------------------------------------------------------------------------------------------------ */

int64_t hc_mq_open(struct hcall *c)
{
	struct stat st;
	int64_t fd = fd_result(HC6(SYS_mq_open, c->host[0], (int)c->arg[1], (unsigned)c->arg[2], c->host[3], 0, 0));
	if (fd < 0)
		return fd;
	if (!family_queues(0) && !HC6(SYS_fstat, fd, &st, 0, 0, 0, 0))
		family_queues(st.st_dev);
	known_set(is_vfork_child() ? -1 : (int)fd);
	return fd;
}

static int64_t queue_host(struct ipc_call *q, bool wait)
{
	const struct hcall *c = q->arg;
	static const struct timespec past = { 0, 0 };
	if (wait)
		return HB6(c->nr, q->n.fd, c->host[1], c->arg[2], c->host[3], c->host[4], 0);
	return HC6(c->nr, q->n.fd, c->host[1], c->arg[2], c->host[3], &past, 0);
}

static void queue_done(struct ipc_call *q, const struct ipc_visit *v) { (void)q, (void)v; }

/* mq_timedsend, mq_timedreceive. A time that has passed is how a call does not sleep. */
static int64_t queue_call(struct hcall *c)
{
	struct ipc_call q = { .waits = true,
			      .spun = c->arg[5] == 1,
			      .none = -ETIMEDOUT,
			      .sends = c->nr == SYS_mq_timedsend,
			      .gva = c->arg[1],
			      .size = c->arg[2] };
	struct timespec ts;
	if (c->host[4] && guest_read(&ts, c->arg[4], sizeof ts))
		return -EFAULT;
	if (!name_of((int)c->arg[0], &q.n) ||
	    (c->host[4] && (ts.tv_sec < 0 || ts.tv_nsec < 0 || ts.tv_nsec > 999999999)))
		return hc_FWD(c);
	struct hcall copy = *c;
	if (c->host[4]) {
		copy.host[4] = (long)&ts;
		q.deadline_ns = (uint64_t)ts.tv_sec < UINT32_MAX
					? (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec + !ts.tv_sec
					: UINT64_MAX;
	}
	long flags = HC6(SYS_fcntl, q.n.fd, F_GETFL, 0, 0, 0, 0);
	if (flags < 0)
		return hc_FWD(&copy);
	q.simple = (flags & O_ACCMODE) != (q.sends ? O_RDONLY : O_WRONLY);
	if (q.sends) {
		q.type = (uint32_t)c->arg[3];
		q.simple &= q.type < MQ_PRIO_MAX;
	} else {
		q.type_gva = c->arg[3];
	}
	if (flags & O_NONBLOCK) {
		q.waits = false;
		q.none = -EAGAIN;
	}
	publish(q.n, flags);
	q.host = queue_host;
	q.done = queue_done;
	q.arg = &copy;
	return ipc_call(&q);
}

int64_t hc_mq_timedsend(struct hcall *c) { return queue_call(c); }
int64_t hc_mq_timedreceive(struct hcall *c) { return queue_call(c); }

int64_t hc_mq_getsetattr(struct hcall *c)
{
	struct ipc_name n;
	struct ipc_visit v;
	if (!name_of((int)c->arg[0], &n))
		return hc_FWD(c);
	struct mq_attr a;
	uint64_t messages, bytes;
	int64_t r;
	if (!c->arg[1] && c->arg[2] && ipc_queue_seen(n, &messages, &bytes) &&
	    (r = HC6(SYS_mq_getsetattr, n.fd, NULL, &a, 0, 0, 0)) >= 0) {
		a.mq_curmsgs = (long)messages;
		return guest_write(c->arg[2], &a, sizeof a) ? -EFAULT : r;
	}
	r = ipc_enter(&v, n);
	if (r)
		return r;
	r = hc_FWD(c);
	ipc_leave(&v);
	return r;
}
