/* SPDX-License-Identifier: Apache-2.0 */
/* SysV semaphores, queues and segments, POSIX queue notification: of the pVM's own IPC namespace. */
#include <errno.h>
#include <mqueue.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include "../../util/now.h"
#include "../dev/procfs.h"
#include "ipc.h"

#define MSG_LIMIT (64 << 10) /* bytes of a message: above the default of kernel.msgmax */
#define SEM_OPS_LIMIT 500    /* kernel.sem's default */
#define SEMS_LIMIT 32000     /* of one set: the default, which nobody can change in the family's namespace */

/* One struct in, one out, by command. */
static int64_t ctl(struct hcall *c, long a, long b, int cmd, int ptr_arg, size_t size, bool three)
{
	uint8_t buf[256] = { 0 };
	bool in = (cmd & 0xff) == IPC_SET, out = !in && cmd != IPC_RMID;
	if (in && guest_read(buf, c->arg[ptr_arg], size))
		return -EFAULT;
	long r = three ? HC6(c->nr, a, b, cmd, buf, 0, 0) : HC6(c->nr, a, cmd, buf, 0, 0, 0);
	if (r >= 0 && out && guest_write(c->arg[ptr_arg], buf, size))
		return -EFAULT;
	return r;
}

/* None of large pages: as for who has not CAP_IPC_LOCK nor is in the host's group for them. What is there is found. */
int64_t hc_shmget(struct hcall *c)
{
	const int key = (int)c->arg[0], flags = (int)c->arg[2], creates = IPC_CREAT | IPC_EXCL;
	if (!(flags & SHM_HUGETLB))
		return HC6(c->nr, key, c->arg[1], flags, 0, 0, 0);
	if (key == IPC_PRIVATE)
		return -EPERM;
	long r = HC6(c->nr, key, c->arg[1], flags & ~(SHM_HUGETLB | creates), 0, 0, 0);
	if (r >= 0 && (flags & creates) == creates)
		return -EEXIST;
	return r == -ENOENT && flags & IPC_CREAT ? -EPERM : r;
}

int64_t hc_shmctl(struct hcall *c)
{
	int cmd = (int)c->arg[1];
	switch (cmd) {
	case IPC_STAT:
	case IPC_SET:
	case SHM_STAT:
	case SHM_STAT_ANY:
	case IPC_RMID:
		return ctl(c, (int)c->arg[0], 0, cmd, 2, sizeof(struct shmid_ds), false);
	case IPC_INFO:
		return ctl(c, (int)c->arg[0], 0, cmd, 2, sizeof(struct shminfo), false);
	case SHM_INFO:
		return ctl(c, (int)c->arg[0], 0, cmd, 2, sizeof(struct shm_info), false);
	case SHM_LOCK:
	case SHM_UNLOCK:
		return HC6(c->nr, (int)c->arg[0], cmd, 0, 0, 0, 0);
	}
	return -EINVAL;
}

/* A call about one object, which is the host's meanwhile. STAT: what the host does not know is put in. */
static int64_t visit(struct hcall *c, enum ipc_kind kind, int64_t (*fn)(struct hcall *c))
{
	struct ipc_visit v;
	int64_t r = ipc_enter(&v, (struct ipc_name){ kind, (int)c->arg[0], -1 });
	if (r)
		return r;
	r = fn(c);
	ipc_leave(&v);
	return r;
}

static int64_t msg_ctl(struct hcall *c)
{
	return ctl(c, (int)c->arg[0], 0, (int)c->arg[1], 2, sizeof(struct msqid_ds), false);
}

static int64_t msg_stat(struct hcall *c)
{
	struct msqid_ds ds;
	long r = HC6(SYS_msgctl, (int)c->arg[0], (int)c->arg[1], &ds, 0, 0, 0);
	if (r < 0)
		return r;
	ipc_msg_stat((int)c->arg[1] == IPC_STAT ? (int)c->arg[0] : (int)r, &ds);
	return guest_write(c->arg[2], &ds, sizeof ds) ? -EFAULT : r;
}

/* IPC_STAT of a queue that is in memory, and stays there. */
static int64_t msg_stat_here(struct hcall *c)
{
	struct msqid_ds ds;
	uint64_t messages, bytes;
	long r = HC6(SYS_msgctl, (int)c->arg[0], IPC_STAT, &ds, 0, 0, 0);
	if (r < 0 || !ipc_queue_seen((struct ipc_name){ IPC_MSG, (int)c->arg[0], -1 }, &messages, &bytes))
		return visit(c, IPC_MSG, msg_stat);
	ds.msg_qnum = messages;
	ds.msg_cbytes = bytes;
	ipc_msg_stat((int)c->arg[0], &ds);
	return guest_write(c->arg[2], &ds, sizeof ds) ? -EFAULT : r;
}

int64_t hc_msgctl(struct hcall *c)
{
	switch ((int)c->arg[1]) {
	case IPC_STAT:
		return msg_stat_here(c);
	case MSG_STAT:
	case MSG_STAT_ANY: /* by their numbers in the kernel's list */
		ipc_settle();
		return msg_stat(c);
	case IPC_SET:
	case IPC_RMID:
		return visit(c, IPC_MSG, msg_ctl);
	case MSG_INFO:
		ipc_settle();
		return ctl(c, (int)c->arg[0], 0, MSG_INFO, 2, sizeof(struct msginfo), false);
	case IPC_INFO:
		return ctl(c, (int)c->arg[0], 0, IPC_INFO, 2, sizeof(struct msginfo), false);
	}
	return -EINVAL;
}

/* GETALL and SETALL: an array as long as the set. */
static int64_t sem_all(struct hcall *c)
{
	int cmd = (int)c->arg[2];
	struct semid_ds ds;
	long r = HC6(SYS_semctl, (int)c->arg[0], 0, IPC_STAT, &ds, 0, 0);
	if (r < 0)
		return r;
	size_t size = ds.sem_nsems * sizeof(unsigned short);
	/* The number may be another set's by the next call, when relatives remove and make sets: room for the largest,
	 * and nothing in it of the monitor's that SETALL could show. */
	unsigned short *v = ds.sem_nsems <= SEMS_LIMIT ? calloc(SEMS_LIMIT, sizeof *v) : NULL;
	if (!v)
		return -ENOMEM;
	if (cmd == SETALL && guest_read(v, c->arg[3], size))
		r = -EFAULT;
	else
		r = HC6(SYS_semctl, (int)c->arg[0], 0, cmd, v, 0, 0);
	if (r >= 0 && cmd == GETALL && guest_write(c->arg[3], v, size))
		r = -EFAULT;
	free(v);
	return r;
}

static int64_t sem_ctl(struct hcall *c)
{
	int cmd = (int)c->arg[2];
	int64_t r;
	if (cmd == IPC_SET || cmd == IPC_RMID)
		return ctl(c, (int)c->arg[0], (int)c->arg[1], cmd, 3, sizeof(struct semid_ds), true);
	r = cmd == GETALL || cmd == SETALL ? sem_all(c)
					   : HC6(c->nr, (int)c->arg[0], (int)c->arg[1], cmd, (int)c->arg[3], 0, 0);
	if (r >= 0 && (cmd == SETVAL || cmd == SETALL))
		ipc_sem_set((int)c->arg[0], cmd == SETALL ? -1 : (int)c->arg[1]);
	return r;
}

static int64_t sem_stat(struct hcall *c)
{
	struct semid_ds ds;
	int cmd = (int)c->arg[2];
	long r = HC6(SYS_semctl, (int)c->arg[0], (int)c->arg[1], cmd, &ds, 0, 0);
	if (r < 0)
		return r;
	ipc_sem_stat(cmd == IPC_STAT ? (int)c->arg[0] : (int)r, &ds);
	return guest_write(c->arg[3], &ds, sizeof ds) ? -EFAULT : r;
}

int64_t hc_semctl(struct hcall *c)
{
	int cmd = (int)c->arg[2], pid, n;
	int64_t r;
	switch (cmd) {
	case GETVAL:
	case GETNCNT:
	case GETZCNT:
		r = HC6(c->nr, (int)c->arg[0], (int)c->arg[1], cmd, 0, 0, 0);
		if (r < 0 || (n = ipc_sem_seen((int)c->arg[0], (int)c->arg[1], cmd)) < 0)
			return visit(c, IPC_SEM, sem_ctl);
		return n;
	case IPC_STAT:
	case SEM_STAT:
	case SEM_STAT_ANY:
		return sem_stat(c);
	case IPC_INFO:
	case SEM_INFO:
		return ctl(c, (int)c->arg[0], (int)c->arg[1], cmd, 3, sizeof(struct seminfo), true);
	case IPC_SET:
	case IPC_RMID:
	case GETALL:
	case SETALL:
	case SETVAL:
		return visit(c, IPC_SEM, sem_ctl);
	case GETPID:
		r = HC6(c->nr, (int)c->arg[0], (int)c->arg[1], cmd, 0, 0, 0);
		pid = ipc_sem_pid((int)c->arg[0], (int)c->arg[1]);
		return r >= 0 && pid ? pid : r;
	}
	return -EINVAL;
}

struct sem_call {
	struct sembuf *ops;
	uint64_t n;
	struct timespec *timeout;
	bool undo;
};

static int64_t sem_host(struct ipc_call *c, bool wait)
{
	const struct sem_call *s = c->arg;
	struct sembuf ops[SEM_OPS_LIMIT];
	if (s->undo)
		ipc_sem_undo(c->n.id);
	if (wait)
		return HB6(SYS_semtimedop, c->n.id, s->ops, s->n, s->timeout, 0, 0);
	for (uint64_t i = 0; i < s->n; i++) {
		ops[i] = s->ops[i];
		ops[i].sem_flg |= IPC_NOWAIT;
	}
	return HC6(SYS_semtimedop, c->n.id, ops, s->n, s->timeout, 0, 0);
}

static void sem_done(struct ipc_call *c, const struct ipc_visit *v)
{
	const struct sem_call *s = c->arg;
	for (uint64_t i = 0; i < s->n; i++)
		ipc_sem_done(v, c->n.id, s->ops[i].sem_num);
}

int64_t hc_semtimedop(struct hcall *c)
{
	struct sembuf ops[SEM_OPS_LIMIT];
	struct timespec ts, *timeout = NULL;
	uint64_t n = c->arg[2];
	if (n > SEM_OPS_LIMIT)
		return -E2BIG;
	if (guest_read(ops, c->arg[1], n * sizeof ops[0]))
		return -EFAULT;
	if (c->nr == SYS_semtimedop && get_timespec(c->arg[3], &ts, &timeout))
		return -EFAULT;
	struct sem_call s = { ops, n, timeout, false };
	struct ipc_call call = { .n = { IPC_SEM, (int)c->arg[0], -1 },
				 .simple = n == 1,
				 .spun = c->arg[5] == 1,
				 .none = -EAGAIN,
				 .host = sem_host,
				 .done = sem_done,
				 .arg = &s,
				 .rest = timeout };
	for (uint64_t i = 0; i < n; i++) {
		call.waits |= !(ops[i].sem_flg & IPC_NOWAIT);
		call.simple &= !(ops[i].sem_flg & ~IPC_NOWAIT);
		s.undo |= ops[i].sem_flg & SEM_UNDO;
	}
	if (timeout && timeout->tv_sec >= 0 && timeout->tv_nsec >= 0 && timeout->tv_nsec < 1000000000)
		call.deadline_ns = (uint64_t)timeout->tv_sec < UINT32_MAX
					   ? now_ns() + (uint64_t)timeout->tv_sec * 1000000000u +
						     (uint64_t)timeout->tv_nsec
					   : UINT64_MAX;
	else if (timeout)
		call.simple = false;
	if (n == 1)
		call.type = (int64_t)ops[0].sem_num << 32 | (uint32_t)ops[0].sem_op;
	return ipc_call(&call);
}

static int64_t send_host(struct ipc_call *call, bool wait)
{
	const struct hcall *c = call->arg;
	int flags = (int)c->arg[3];
	return wait ? HB6(SYS_msgsnd, call->n.id, gva_ptr(c->arg[1]), c->arg[2], flags, 0, 0)
		    : HC6(SYS_msgsnd, call->n.id, gva_ptr(c->arg[1]), c->arg[2], flags | IPC_NOWAIT, 0, 0);
}

static void send_done(struct ipc_call *c, const struct ipc_visit *v) { ipc_msg_done(v, c->n.id, true); }

int64_t hc_msgsnd(struct hcall *c)
{
	uint64_t size = c->arg[2];
	if (size > MSG_LIMIT)
		return -EINVAL;
	if (!gva_ok(c->arg[1], size + 8))
		return -EFAULT;
	struct ipc_call call = { .n = { IPC_MSG, (int)c->arg[0], -1 },
				 .waits = !(c->arg[3] & IPC_NOWAIT),
				 .spun = c->arg[5] == 1,
				 .none = -EAGAIN,
				 .host = send_host,
				 .done = send_done,
				 .arg = c,
				 .sends = true,
				 .gva = c->arg[1] + 8,
				 .size = size };
	call.simple = !guest_read(&call.type, c->arg[1], sizeof call.type) && call.type > 0;
	return ipc_call(&call);
}

static int64_t receive_host(struct ipc_call *call, bool wait)
{
	const struct hcall *c = call->arg;
	int flags = (int)c->arg[4];
	return wait ? HB6(SYS_msgrcv, call->n.id, gva_ptr(c->arg[1]), c->arg[2], (long)c->arg[3], flags, 0)
		    : HC6(SYS_msgrcv, call->n.id, gva_ptr(c->arg[1]), c->arg[2], (long)c->arg[3], flags | IPC_NOWAIT,
			  0);
}

static void receive_done(struct ipc_call *c, const struct ipc_visit *v)
{
	const struct hcall *h = c->arg;
	if (!(h->arg[4] & MSG_COPY))
		ipc_msg_done(v, c->n.id, false);
}

int64_t hc_msgrcv(struct hcall *c)
{
	uint64_t size = c->arg[2];
	int flags = (int)c->arg[4];
	if ((int64_t)size < 0)
		return -EINVAL;
	if (size > SIZE_MAX / 2 || !gva_ok(c->arg[1], size + 8))
		return -EFAULT;
	/* MSG_COPY without IPC_NOWAIT is an error. */
	struct ipc_call call = { .n = { IPC_MSG, (int)c->arg[0], -1 },
				 .waits = !(flags & IPC_NOWAIT),
				 .simple = !(flags & ~(IPC_NOWAIT | MSG_NOERROR | MSG_EXCEPT)) &&
					   (int64_t)c->arg[3] != INT64_MIN,
				 .spun = c->arg[5] == 1,
				 .none = -ENOMSG,
				 .host = receive_host,
				 .done = receive_done,
				 .arg = c,
				 .flags = flags,
				 .type = (int64_t)c->arg[3],
				 .gva = c->arg[1] + 8,
				 .size = size,
				 .type_gva = c->arg[1] };
	if (flags & MSG_COPY && call.waits)
		return -EINVAL;
	return ipc_call(&call);
}

int64_t hc_mq_notify(struct hcall *c)
{
	struct sigevent ev;
	char cookie[32];
	if (!c->arg[1])
		return HC6(c->nr, (int)c->arg[0], 0, 0, 0, 0, 0);
	if (guest_read(&ev, c->arg[1], sizeof ev))
		return -EFAULT;
	if (ev.sigev_notify == SIGEV_THREAD) { /* the kernel copies the cookie and sends it to a netlink socket */
		if (guest_read(cookie, (uint64_t)ev.sigev_value.sival_ptr, sizeof cookie))
			return -EFAULT;
		if (!fd_is_guest(ev.sigev_signo))
			return -EBADF;
		ev.sigev_value.sival_ptr = cookie;
	}
	mq_plain((int)c->arg[0]);
	int r = procfs_keep_notify();
	return r ? r : HC6(c->nr, (int)c->arg[0], &ev, 0, 0, 0, 0);
}
