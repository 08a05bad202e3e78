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
#include "../dev/procfs.h"
#include "hcall.h"

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

int64_t hc_msgctl(struct hcall *c)
{
	int cmd = (int)c->arg[1];
	switch (cmd) {
	case IPC_STAT:
	case IPC_SET:
	case MSG_STAT:
	case MSG_STAT_ANY:
	case IPC_RMID:
		return ctl(c, (int)c->arg[0], 0, cmd, 2, sizeof(struct msqid_ds), false);
	case IPC_INFO:
	case MSG_INFO:
		return ctl(c, (int)c->arg[0], 0, cmd, 2, sizeof(struct msginfo), false);
	}
	return -EINVAL;
}

/* GETALL and SETALL: an array as long as the set. */
static int64_t sem_all(struct hcall *c, int cmd)
{
	struct semid_ds ds;
	long r = HC6(c->nr, (int)c->arg[0], 0, IPC_STAT, &ds, 0, 0);
	if (r < 0)
		return r;
	size_t size = ds.sem_nsems * sizeof(unsigned short);
	/* The number may be another set's by the next call, when relatives remove and make sets: room for the largest. */
	unsigned short *v = ds.sem_nsems <= SEMS_LIMIT ? malloc(SEMS_LIMIT * sizeof *v) : NULL;
	if (!v)
		return -ENOMEM;
	if (cmd == SETALL && guest_read(v, c->arg[3], size))
		r = -EFAULT;
	else
		r = HC6(c->nr, (int)c->arg[0], 0, cmd, v, 0, 0);
	if (r >= 0 && cmd == GETALL && guest_write(c->arg[3], v, size))
		r = -EFAULT;
	free(v);
	return r;
}

int64_t hc_semctl(struct hcall *c)
{
	int cmd = (int)c->arg[2];
	switch (cmd) {
	case IPC_STAT:
	case IPC_SET:
	case SEM_STAT:
	case SEM_STAT_ANY:
	case IPC_RMID:
		return ctl(c, (int)c->arg[0], (int)c->arg[1], cmd, 3, sizeof(struct semid_ds), true);
	case IPC_INFO:
	case SEM_INFO:
		return ctl(c, (int)c->arg[0], (int)c->arg[1], cmd, 3, sizeof(struct seminfo), true);
	case GETALL:
	case SETALL:
		return sem_all(c, cmd);
	case GETVAL:
	case SETVAL:
	case GETPID:
	case GETNCNT:
	case GETZCNT:
		return HC6(c->nr, (int)c->arg[0], (int)c->arg[1], cmd, (int)c->arg[3], 0, 0);
	}
	return -EINVAL;
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
	return HB6(SYS_semtimedop, (int)c->arg[0], ops, n, timeout, 0, 0);
}

int64_t hc_msgsnd(struct hcall *c)
{
	uint64_t size = c->arg[2];
	if (size > MSG_LIMIT)
		return -EINVAL;
	if (!gva_ok(c->arg[1], size + 8))
		return -EFAULT;
	return HB6(SYS_msgsnd, (int)c->arg[0], gva_ptr(c->arg[1]), size, (int)c->arg[3], 0, 0);
}

int64_t hc_msgrcv(struct hcall *c)
{
	uint64_t size = c->arg[2];
	if ((int64_t)size < 0)
		return -EINVAL;
	if (size > SIZE_MAX / 2 || !gva_ok(c->arg[1], size + 8))
		return -EFAULT;
	return HB6(SYS_msgrcv, (int)c->arg[0], gva_ptr(c->arg[1]), size, (long)c->arg[3], (int)c->arg[4], 0);
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
	int r = procfs_keep_notify();
	return r ? r : HC6(c->nr, (int)c->arg[0], &ev, 0, 0, 0, 0);
}
