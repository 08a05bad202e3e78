/* SPDX-License-Identifier: Apache-2.0 */
/* No lock of the monitor's is held here. */
#include "ipc.h"
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../util/now.h"
#include "../dev/procfs.h"
#include "family.h"
#include "gmem.h"
#include "ipc_priv.h"
#include "keeper.h"
#include "thread.h"

#define QBYTES_MAX 32768 /* a queue that may hold more is the host's */
#define MQ_MESSAGES 1024 /* likewise */
#define STREAK 4u        /* operations in a row after which an object becomes LIVE */
#define COPY_MAX 512     /* messages of a queue that becomes LIVE */
#define BACKOFF_MAX 8
#define OPS_WORTH 8 /* made while LIVE, they were worth it */
#define SWEEP_FAILS 16
#define SPIN_LEAST 30000u /* cycles; as in the LibOS */
#define SPIN_MOST 600000u
#define EXIT_CYCLES 100000
#define NOTE_TRIES 100
#define FIRM_NS 1000000000ull /* a call that knows no EINTR waits so long before a signal ends it nevertheless */
#define TURNS_MOST 1000       /* in which an object is moved and moved again: somebody writes nonsense there */
#define RETRY 16

struct kx_ipc *ipc_mem;
static bool given_up;
static uid_t owner; /* whose family it is */

static struct kx_ipc_table *published(void) { return gva_ptr(KX_IPC_TABLE); }
static uint32_t own_tid(void) { return (uint32_t)my_tid(); } /* as words of shared memory have it */
static uint64_t cycles(void) { return __builtin_ia32_rdtsc(); }
static uint64_t with_kind(uint64_t state, uint32_t tid, unsigned kind)
{
	return (state & ~0xffffffffull) | (uint64_t)tid << 4 | kind;
}
/* Looked at once: others write there. */
static uint32_t backoff_of(const struct kx_ipc_obj *o)
{
	uint32_t n = __atomic_load_n(&o->backoff, __ATOMIC_RELAXED);
	return n < BACKOFF_MAX ? n : BACKOFF_MAX;
}
static uint32_t worker(uint64_t state) { return (uint32_t)state >> 4; }

static bool map(void)
{
	struct stat st;
	if (__atomic_load_n(&ipc_mem, __ATOMIC_ACQUIRE))
		return true;
	if (pvm.proc_fd < 0 || fstat(pvm.family_fd, &st) ||
	    (uint64_t)st.st_size < family_ipc_offset() + sizeof(struct kx_ipc))
		return false;
	owner = st.st_uid;
	void *p = mmap(NULL, sizeof(struct kx_ipc), PROT_READ | PROT_WRITE, MAP_SHARED, pvm.family_fd,
		       (off_t)family_ipc_offset());
	if (p == MAP_FAILED)
		return false;
	struct kx_ipc *none = NULL;
	if (!__atomic_compare_exchange_n(&ipc_mem, &none, p, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		munmap(p, sizeof(struct kx_ipc));
	return true;
}

/* May this process have objects LIVE, and has its guest the memory? */
bool ipc_is_here(void)
{
	struct kx_ipc_table *t = published();
	if (given_up || is_vfork_child() || geteuid() != owner)
		return false;
	if (__atomic_load_n(&t->on, __ATOMIC_ACQUIRE))
		return true;
	if (gmem_map_family(KX_IPC_BASE, KX_IPC_SIZE, pvm.family_fd, family_ipc_offset()))
		return false;
	t->cpus = pvm.cfg->cpus ? (unsigned)pvm.cfg->cpus : family_cpus();
	t->exit_cycles = EXIT_CYCLES;
	__atomic_store_n(&t->on, 1, __ATOMIC_RELEASE);
	return true;
}

/* Without a descriptor that others could see: the number comes from memory that the guest writes. */
char ipc_thread_state(uint32_t tid)
{
	char name[32], text[256];
	snprintf(name, sizeof name, "%u/stat", tid);
	int n = procfs_peek(name, text, sizeof text);
	if (n <= 0)
		return n == -ENOENT || n == -ESRCH ? 0 : '?';
	const char *p = strrchr(text, ')');
	return p && p[1] ? p[2] : '?';
}

static bool is_dead(uint32_t tid)
{
	char state = tid == own_tid() ? 'R' : ipc_thread_state(tid);
	return !state || state == 'Z' || state == 'X';
}

/* Who is said to be at work on an object; somebody who is no member of the family is not. */
bool ipc_is_gone(uint32_t tid)
{
	return tid != own_tid() && (is_dead(tid) || (!is_vfork_child() && !family_owner((pid_t)tid)));
}

static struct kx_ipc_obj *object(struct ipc_name n)
{
	return &(n.kind == IPC_SEM ? ipc_mem->sem : n.kind == IPC_MSG ? ipc_mem->msg : ipc_mem->mq)[kx_ipc_slot(n.id)];
}
static uint64_t *words(int id) { return ipc_mem->word[kx_ipc_slot(id)]; }
static uint8_t *ring_of(struct ipc_name n)
{
	return ipc_mem->ring[kx_ipc_slot(n.id) + (n.kind == IPC_MQ ? KX_IPC_OBJECTS : 0)];
}
static struct ipc_name sysv(enum ipc_kind kind, int id) { return (struct ipc_name){ kind, id, -1 }; }
/* What can be an object's at all. */
static bool may_be(struct ipc_name n) { return (n.id >= 0 || n.kind == IPC_MQ) && map(); }

struct kx_ipc_obj *ipc_object(struct ipc_name n) { return may_be(n) ? object(n) : NULL; }

/* ---- back to the host ------------------------------------------------------------------------------------------------ */

/* By one operation for each value that differs, so the set's own time of change stays. */
static int64_t sem_move(int id)
{
	uint64_t *word = words(id);
	struct sembuf ops[KX_IPC_SEMS];
	struct semid_ds ds;
	size_t n = 0;
	int64_t r = HC6(SYS_semctl, id, 0, IPC_STAT, &ds, 0, 0);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < ds.sem_nsems && i < KX_IPC_SEMS; i++) {
		int v = (int)KX_IPC_VALUE(__atomic_or_fetch(&word[i], KX_IPC_FROZEN, __ATOMIC_SEQ_CST));
		int64_t now = HC6(SYS_semctl, id, i, GETVAL, 0, 0, 0);
		if (now < 0)
			return now;
		if (v != now)
			ops[n++] = (struct sembuf){ (unsigned short)i, (short)(v - now), IPC_NOWAIT };
	}
	return n ? HC6(SYS_semtimedop, id, ops, n, NULL, 0, 0) : 0;
}

/* How many messages the host's queue holds. */
static int64_t queue_count(struct ipc_name n)
{
	struct msqid_ds ds;
	struct mq_attr a;
	int64_t r = n.kind == IPC_MSG ? HC6(SYS_msgctl, n.id, IPC_STAT, &ds, 0, 0, 0)
				      : HC6(SYS_mq_getsetattr, n.fd, NULL, &a, 0, 0, 0);
	return r < 0 ? r : n.kind == IPC_MSG ? (int64_t)ds.msg_qnum : (int64_t)a.mq_curmsgs;
}

/* With the queue's lock. Nobody else touches the host's queue, which was empty: what it holds has been moved. */
static int64_t queue_move(struct kx_ipc_obj *o, struct ipc_name n)
{
	uint8_t *ring = ring_of(n);
	int64_t r = queue_count(n), moved = r;
	if (r < 0)
		return r;
	uint64_t head = o->head, at = o->tail;
	if (head - at > KX_IPC_RING || head % 16 || at % 16)
		return 0;
	while (at < head) {
		uint32_t off = (uint32_t)(at % KX_IPC_RING);
		const struct kx_ipc_msg *m = (const struct kx_ipc_msg *)(ring + off);
		uint32_t size = __atomic_load_n(&m->size, __ATOMIC_RELAXED);
		if (size > KX_IPC_RING || kx_ipc_msg_bytes(size) > KX_IPC_RING - off)
			return 0;
		at += kx_ipc_msg_bytes(size);
		if (m->state != KX_IPC_MSG_HERE)
			continue;
		if (moved) {
			moved--;
			continue;
		}
		r = n.kind == IPC_MSG ? HC6(SYS_msgsnd, n.id, &m->type, size, IPC_NOWAIT, 0, 0)
				      : HC6(SYS_mq_timedsend, n.fd, m + 1, size, m->type, NULL, 0);
		if (r < 0 && r != -EINVAL && r != -EAGAIN)
			return r;
	}
	return 0;
}

/* Not for a signal from a call that knows no EINTR: who is waited for goes on by himself. */
bool ipc_must_leave(void) { return self && self->sig_stop && self->hcall && self->hcall->row->flags & KX_F_BLOCK; }

/* As that, in a wait for others that began at *since (0: now); one that takes so long that they must be stopped, or lie, any
 * signal ends. */
static bool must_leave(uint64_t *since, bool firm)
{
	if (!firm && ipc_must_leave())
		return true;
	if (!self || !self->sig_stop)
		return false;
	*since = *since ? *since : now_ns();
	return now_ns() - *since > FIRM_NS;
}

/* Held for one message, by somebody who may be killed, stopped, or without a CPU. */
bool ipc_lock(struct kx_ipc_obj *o, bool firm)
{
	struct timespec nap = { 0, 50000 };
	uint64_t me = (uint64_t)my_pid() << 32 | own_tid(), since = 0;
	for (unsigned i = 0;; i++) {
		uint64_t old = __atomic_load_n(&o->lock, __ATOMIC_SEQ_CST);
		bool left = old == KX_IPC_LOCK_LEFT || (old && i % 64 == 63 && ipc_is_gone((uint32_t)old));
		if ((!old || left) && ipc_swap(&o->lock, old, me)) {
			if (left)
				ipc_recover(o);
			return true;
		}
		if (must_leave(&since, firm))
			return false;
		if (i > 1000)
			nap.tv_nsec = 1000000;
		if (i < 64)
			__builtin_ia32_pause();
		else
			HC6(SYS_nanosleep, &nap, 0, 0, 0, 0, 0);
	}
}

void ipc_unlock(struct kx_ipc_obj *o) { __atomic_store_n(&o->lock, 0, __ATOMIC_SEQ_CST); }

static int64_t move_host(struct kx_ipc_obj *o, struct ipc_name n)
{
	if (n.kind == IPC_MQ && (n.fd = fd_reopen(n.fd, O_RDWR)) < 0)
		return n.fd;
	int64_t r = -EINTR;
	if (ipc_lock(o, false)) {
		r = n.kind == IPC_SEM ? sem_move(n.id) : queue_move(o, n);
		ipc_unlock(o);
	}
	if (n.kind == IPC_MQ)
		HC6(SYS_close, n.fd, 0, 0, 0, 0, 0);
	return r;
}

/* LIVE, or a move that nobody makes any more, `state`. 0: look again; else -errno. */
static int64_t move(struct kx_ipc_obj *o, uint64_t state, struct ipc_name n)
{
	uint64_t mine = with_kind(state, own_tid(), KX_IPC_MOVE);
	struct semid_ds ds;
	if (n.kind == IPC_SEM && HC6(SYS_semctl, n.id, 0, IPC_STAT, &ds, 0, 0) == -EACCES)
		return -EACCES;
	if (!ipc_swap(&o->state, state, mine))
		return 0;
	int64_t r = move_host(o, n);
	bool again = r == -EINTR || r == -ENOMEM || r == -EACCES || r == -ENFILE || r == -EMFILE;
	if (!again) {
		uint32_t ops = __atomic_load_n(&o->ops, __ATOMIC_RELAXED);
		uint32_t backoff = backoff_of(o);
		o->backoff = ops >= OPS_WORTH ? 0 : backoff < BACKOFF_MAX ? backoff + 1 : BACKOFF_MAX;
		o->streak = 0;
	}
	uint64_t passes = with_kind(mine, own_tid(), KX_IPC_PASS);
	if (!again && ipc_swap(&o->state, mine, passes)) {
		mine = passes;
		ipc_pass(o, n.id);
	}
	ipc_swap(&o->state, mine, with_kind(mine, 0, again ? KX_IPC_MOVE : KX_IPC_HOST));
	return again ? r : 0;
}

/* ---- visits --------------------------------------------------------------------------------------------------------- */

static void users_sweep(struct kx_ipc_obj *o)
{
	for (unsigned i = 0; i < KX_IPC_USERS; i++) {
		uint64_t u = __atomic_load_n(&o->users[i], __ATOMIC_SEQ_CST);
		if (u && is_dead((uint32_t)(u >> 32)))
			ipc_swap(&o->users[i], u, 0);
	}
}

int ipc_announce(struct kx_ipc_obj *o, int id)
{
	uint64_t me = (uint64_t)own_tid() << 32 | (uint32_t)id;
	if (__atomic_load_n(&o->closed, __ATOMIC_SEQ_CST))
		return -1;
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < KX_IPC_USERS; i++)
			if (!__atomic_load_n(&o->users[i], __ATOMIC_RELAXED) && ipc_swap(&o->users[i], 0, me))
				return i;
		users_sweep(o);
	}
	/* Too many: then nothing is LIVE here any more. */
	__atomic_store_n(&o->closed, 1, __ATOMIC_SEQ_CST);
	return -1;
}

/* The host's queue is empty then, unless somebody sends there who must not. */
static void msg_drain(int id)
{
	long type;
	for (int i = 0; i < COPY_MAX && HC6(SYS_msgrcv, id, &type, 0, 0, MSG_NOERROR | IPC_NOWAIT, 0) >= 0; i++)
		;
}

/* For somebody who was killed. */
static void drain_on(struct kx_ipc_obj *o, uint64_t state, struct ipc_name n)
{
	uint64_t mine = with_kind(state, own_tid(), KX_IPC_DRAIN);
	if (!ipc_swap(&o->state, state, mine))
		return;
	if (n.kind == IPC_MSG)
		msg_drain(n.id);
	ipc_swap(&o->state, mine, with_kind(mine, 0, KX_IPC_LIVE));
}

int ipc_enter(struct ipc_visit *v, struct ipc_name n)
{
	struct timespec nap = { 0, 20000 };
	uint64_t since = 0;
	unsigned turns = 0; /* that were no naps */
	v->obj = NULL;
	if (!may_be(n))
		return 0;
	struct kx_ipc_obj *o = v->obj = object(n);
	v->user = ipc_announce(o, n.id);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	for (unsigned i = 0;; i++) {
		uint64_t s = ipc_state(o);
		unsigned k = ipc_kind_of(s);
		bool ours = __atomic_load_n(&o->id, __ATOMIC_SEQ_CST) == n.id;
		if (k == KX_IPC_HOST || k > KX_IPC_PASS || (k != KX_IPC_ADOPT && !ours))
			return 0;
		bool left = k != KX_IPC_LIVE && (!worker(s) || (i % 32 == 31 && ipc_is_gone(worker(s))));
		bool waits = k != KX_IPC_LIVE && !left;
		int64_t r = 0;
		if (waits ? must_leave(&since, false) : turns > TURNS_MOST / 10 && ipc_must_leave())
			r = -EINTR;
		else if (!waits && turns++ > TURNS_MOST)
			r = -EIO;
		else if (k == KX_IPC_LIVE || (k == KX_IPC_MOVE && left))
			r = move(o, s, n);
		else if ((k == KX_IPC_ADOPT || k == KX_IPC_PASS) && left)
			ipc_swap(&o->state, s, with_kind(s, 0, KX_IPC_HOST));
		else if (k == KX_IPC_DRAIN && left)
			drain_on(o, s, n);
		else
			HC6(SYS_nanosleep, &nap, 0, 0, 0, 0, 0);
		if (i > 1000)
			nap.tv_nsec = 1000000;
		if (r == -EACCES && n.kind != IPC_MQ) /* the host refuses what comes as well */
			return 0;
		if (r) {
			ipc_leave(v);
			return (int)r;
		}
	}
}

void ipc_leave(struct ipc_visit *v)
{
	if (v->obj && v->user >= 0)
		__atomic_store_n(&v->obj->users[v->user], 0, __ATOMIC_SEQ_CST);
	v->obj = NULL;
}

static bool anybody(const struct kx_ipc_obj *o, int id)
{
	for (unsigned i = 0; i < KX_IPC_USERS; i++) {
		uint64_t u = __atomic_load_n(&o->users[i], __ATOMIC_SEQ_CST);
		if (u && (uint32_t)u == (uint32_t)id)
			return true;
	}
	return false;
}

/* ---- from the host --------------------------------------------------------------------------------------------------- */

/* All who may use it may also move it back. */
static bool perm_ok(const struct ipc_perm *p)
{
	unsigned m = p->mode, group = m >> 3 & 6, others = m & 6;
	return p->uid == owner && p->cuid == owner && (m & 0600) == 0600 && (group == 0 || group == 6) &&
	       (others == 0 || others == 6);
}

static bool sem_adopt(struct kx_ipc_obj *o, uint64_t state, int id)
{
	uint64_t *word = words(id);
	struct semid_ds ds;
	if (__atomic_load_n(&ipc_mem->undo[(unsigned)id % KX_IPC_IDS], __ATOMIC_SEQ_CST) == (uint32_t)id + 1 ||
	    HC6(SYS_semctl, id, 0, IPC_STAT, &ds, 0, 0) < 0 || ds.sem_nsems > KX_IPC_SEMS || !perm_ok(&ds.sem_perm))
		return false;
	bool new = o->id != id;
	for (unsigned i = 0; i < ds.sem_nsems; i++) {
		uint64_t pid = new ? (uint64_t)HC6(SYS_semctl, id, i, GETPID, 0, 0, 0) : KX_IPC_PID(word[i]);
		int64_t now = HC6(SYS_semctl, id, i, GETVAL, 0, 0, 0);
		if (now < 0)
			return false;
		__atomic_store_n(&word[i], KX_IPC_WORD(state, pid, (uint64_t)now & 0x7fff), __ATOMIC_SEQ_CST);
	}
	if (new)
		o->otime = ds.sem_otime;
	o->nsems = (uint32_t)ds.sem_nsems;
	return true;
}

/* Copies of what the host's queue holds. The ring is empty, and nobody else is at the queue. */
static bool msg_copy(struct kx_ipc_obj *o, int id, uint64_t n)
{
	uint8_t *ring = ring_of(sysv(IPC_MSG, id));
	uint64_t head = 0, bytes = 0;
	for (uint64_t i = 0; i < n; i++) {
		struct kx_ipc_msg *m = (struct kx_ipc_msg *)(ring + head);
		int64_t room = (int64_t)KX_IPC_RING - 16 - (int64_t)head;
		int64_t r = room < 0 ? -E2BIG : HC6(SYS_msgrcv, id, &m->type, room, i, MSG_COPY | IPC_NOWAIT, 0);
		if (r < 0)
			return false;
		m->size = (uint32_t)r;
		m->state = KX_IPC_MSG_HERE;
		head += kx_ipc_msg_bytes((uint32_t)r);
		bytes += (uint64_t)r;
	}
	o->head = head;
	o->cbytes = bytes;
	o->qnum = (uint32_t)n;
	return true;
}

static bool msg_adopt(struct kx_ipc_obj *o, int id)
{
	struct msqid_ds ds;
	struct msginfo info;
	if (HC6(SYS_msgctl, id, IPC_STAT, &ds, 0, 0, 0) < 0 || ds.msg_qnum > COPY_MAX || ds.msg_qbytes > QBYTES_MAX ||
	    !perm_ok(&ds.msg_perm) || HC6(SYS_msgctl, 0, IPC_INFO, &info, 0, 0, 0) < 0 || info.msgmax < 0)
		return false;
	if (o->id != id) {
		o->lspid = ds.msg_lspid;
		o->lrpid = ds.msg_lrpid;
		o->stime = ds.msg_stime;
		o->rtime = ds.msg_rtime;
	}
	o->qbytes = ds.msg_qbytes;
	o->msgmax = (uint32_t)info.msgmax;
	o->head = o->tail = o->cbytes = o->qnum = 0;
	return msg_copy(o, id, ds.msg_qnum);
}

/* A queue of the family's namespace, empty. */
static bool mq_adopt(struct kx_ipc_obj *o, struct ipc_name n)
{
	struct stat st;
	struct mq_attr a;
	if (fstat(n.fd, &st) || (int)st.st_ino != n.id || st.st_dev != family_queues(0) ||
	    HC6(SYS_mq_getsetattr, n.fd, NULL, &a, 0, 0, 0) < 0 || a.mq_curmsgs || a.mq_maxmsg > MQ_MESSAGES ||
	    a.mq_msgsize > (long)KX_IPC_RING / 4)
		return false;
	struct ipc_perm p = { .uid = st.st_uid, .cuid = st.st_uid, .mode = (unsigned short)st.st_mode };
	if (!perm_ok(&p))
		return false;
	o->qbytes = (uint64_t)a.mq_maxmsg;
	o->msgmax = (uint32_t)a.mq_msgsize;
	o->head = o->tail = o->cbytes = o->qnum = 0;
	return true;
}

static bool fill(struct kx_ipc_obj *o, uint64_t state, struct ipc_name n)
{
	if (!ipc_lock(o, false))
		return false;
	bool ok = !ipc_is_slept_on(o) && (n.kind == IPC_SEM   ? sem_adopt(o, state, n.id)
					  : n.kind == IPC_MSG ? msg_adopt(o, n.id)
							      : mq_adopt(o, n));
	ipc_unlock(o);
	return ok;
}

/* Another queue's, which is empty, and may be gone for good. */
static void evict(struct kx_ipc_obj *o, uint64_t s)
{
	uint64_t mine = with_kind(s, own_tid(), KX_IPC_MOVE);
	if (__atomic_load_n(&o->qnum, __ATOMIC_RELAXED) || !ipc_swap(&o->state, s, mine))
		return;
	bool locked = ipc_lock(o, false), unused = locked && o->head == o->tail && !ipc_is_slept_on(o);
	ipc_swap(&o->state, mine, unused ? with_kind(mine, 0, KX_IPC_HOST) : s);
	if (locked)
		ipc_unlock(o);
}

/* Why an object is not LIVE now: somebody is there, or it is none for memory, as it is. */
enum { ADOPTED, OCCUPIED, UNFIT };

static int adopt(struct ipc_name n)
{
	struct kx_ipc_obj *o = object(n);
	int id = n.id;
	uint64_t s = ipc_state(o), mine = with_kind(s + (1ull << 32), own_tid(), KX_IPC_ADOPT);
	if (n.kind == IPC_MQ && ipc_kind_of(s) == KX_IPC_LIVE && __atomic_load_n(&o->id, __ATOMIC_SEQ_CST) != id)
		evict(o, s);
	if (ipc_kind_of(s) != KX_IPC_HOST || __atomic_load_n(&o->closed, __ATOMIC_SEQ_CST) || !ipc_is_here())
		return UNFIT;
	if (anybody(o, id)) {
		if (++o->fails % SWEEP_FAILS == 0)
			users_sweep(o);
		return OCCUPIED;
	}
	if (!ipc_swap(&o->state, s, mine))
		return OCCUPIED;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	bool occupied = anybody(o, id),
	     ok = !occupied && !__atomic_load_n(&o->closed, __ATOMIC_SEQ_CST) && fill(o, mine, n);
	if (ok) {
		__atomic_store_n(&o->id, id, __ATOMIC_SEQ_CST);
		o->ops = 0;
		o->since = time(NULL);
		__atomic_store_n(&ipc_mem->used, 1, __ATOMIC_RELAXED);
	}
	/* The guest may have written anything there meanwhile. */
	if (ok && n.kind == IPC_MSG) {
		uint64_t drains = with_kind(mine, own_tid(), KX_IPC_DRAIN);
		if (!ipc_swap(&o->state, mine, drains))
			return OCCUPIED;
		msg_drain(id);
		mine = drains;
	}
	if (!ipc_swap(&o->state, mine, with_kind(mine, 0, ok ? KX_IPC_LIVE : KX_IPC_HOST)))
		occupied = true;
	return occupied ? OCCUPIED : ok ? ADOPTED : UNFIT;
}

/* ---- one call -------------------------------------------------------------------------------------------------------- */

static uint32_t spin_most(void)
{
	uint32_t n = 3 * published()->exit_cycles;
	return n < SPIN_LEAST ? SPIN_LEAST : n > SPIN_MOST ? SPIN_MOST : n;
}

/* Before it sleeps in the host: may it sleep in memory, where the others need not follow? */
static bool may_adopt(const struct ipc_call *c, struct kx_ipc_obj *o)
{
	return c->simple && !c->spun && ipc_is_here() && !__atomic_load_n(&o->closed, __ATOMIC_RELAXED) &&
	       o->sleeps++ % (1u << backoff_of(o)) == 0;
}

/* ... or is it worth while to wait for the others to be through? */
static bool may_spin(const struct ipc_call *c, struct kx_ipc_obj *o)
{
	if (!c->simple || c->spun || !ipc_is_here() || published()->cpus < 2 ||
	    __atomic_load_n(&o->closed, __ATOMIC_RELAXED))
		return false;
	return o->spin || o->missed++ % RETRY == 0;
}

static void succeeded(const struct ipc_call *c, struct kx_ipc_obj *o)
{
	if (!c->simple)
		return;
	if (o->streak_id != c->n.id) {
		o->streak_id = c->n.id;
		o->streak = 0;
	}
	uint32_t backoff = backoff_of(o);
	if (++o->streak < (STREAK << backoff))
		return;
	int r = adopt(c->n);
	if (r == OCCUPIED)
		return;
	o->streak = 0;
	if (r == UNFIT && (backoff = backoff_of(o)) < BACKOFF_MAX)
		o->backoff = backoff + 1;
}

/* Without sleeping, or (wait) as the program wants it. */
static int64_t once(struct ipc_call *c, bool wait)
{
	struct ipc_visit v;
	int64_t r = ipc_enter(&v, c->n);
	if (r)
		return r;
	r = c->host(c, wait);
	if (r >= 0)
		c->done(c, &v);
	ipc_leave(&v);
	return r;
}

/* A SysV object that was there when the call began. */
static int64_t removed(const struct ipc_call *c, int64_t r) { return r == -EINVAL && c->n.kind != IPC_MQ ? -EIDRM : r; }

int64_t ipc_call(struct ipc_call *c)
{
	struct kx_ipc_obj *o = may_be(c->n) ? object(c->n) : NULL;
	int64_t r;
	if (!o)
		return c->host(c, c->waits);
	if (c->simple && (r = ipc_live(c, o)) != IPC_NOT_HERE)
		return r;
	r = once(c, false);
	if (c->spun)
		r = removed(c, r);
	if (r >= 0)
		succeeded(c, o);
	if (r != c->none || !c->waits)
		return r;
	if (may_adopt(c, o) && adopt(c->n) == ADOPTED)
		return -KX_EIPC_LIVE;
	if (may_spin(c, o)) {
		uint32_t most = spin_most();
		for (uint64_t end = cycles() + most; cycles() < end && !self->sig_stop;) {
			if (adopt(c->n) == ADOPTED) {
				o->spin = most;
				return -KX_EIPC_LIVE;
			}
			if ((r = once(c, false)) != c->none)
				return removed(c, r);
			for (int i = 0; i < 100; i++)
				__builtin_ia32_pause();
		}
		o->spin = o->spin > most / 4 ? o->spin - most / 4 : 0;
	}
	o->streak = 0;
	return removed(c, once(c, true));
}

/* ---- what is told of them -------------------------------------------------------------------------------------------- */

static bool noted(const struct kx_ipc_obj *o, int id) { return __atomic_load_n(&o->id, __ATOMIC_SEQ_CST) == id; }

/*
 * Who was the last one, by the host's word: this caller, or one that was woken by what it did, has been quicker, and may have
 * noted that already. During a visit nothing moves, so the host has no mover's number.
 */
static int64_t host_pid(int id, int num) { return HC6(SYS_semctl, id, num, GETPID, 0, 0, 0); }

static void pid_note(int id, int num)
{
	uint64_t *word = &words(id)[num], w;
	int64_t pid, now = host_pid(id, num);
	for (int i = 0; i < NOTE_TRIES; i++) {
		pid = now < 0 ? my_pid() : now; /* it may be changed, but not read */
		w = __atomic_load_n(word, __ATOMIC_SEQ_CST);
		ipc_swap(word, w, (w & ~(0x3fffffull << 17)) | ((uint64_t)pid & 0x3fffff) << 17);
		now = host_pid(id, num);
		if ((now == pid || now < 0) && KX_IPC_PID(__atomic_load_n(word, __ATOMIC_SEQ_CST)) == (uint32_t)pid)
			return;
	}
}

void ipc_sem_done(const struct ipc_visit *v, int id, int num)
{
	if (!v->obj || !noted(v->obj, id) || num >= KX_IPC_SEMS)
		return;
	pid_note(id, num);
	v->obj->otime = time(NULL);
}

void ipc_sem_set(int id, int num)
{
	struct kx_ipc_obj *o = id < 0 || !map() ? NULL : object(sysv(IPC_SEM, id));
	if (!o || !noted(o, id))
		return;
	for (int i = 0; i < KX_IPC_SEMS; i++)
		if (num < 0 || num == i)
			pid_note(id, i);
}

void ipc_msg_done(const struct ipc_visit *v, int id, bool sent)
{
	if (!v->obj || !noted(v->obj, id))
		return;
	int32_t *pid = sent ? &v->obj->lspid : &v->obj->lrpid;
	struct msqid_ds ds;
	for (int i = 0; i < NOTE_TRIES && !HC6(SYS_msgctl, id, IPC_STAT, &ds, 0, 0, 0); i++) {
		int32_t now = sent ? ds.msg_lspid : ds.msg_lrpid;
		if (i && __atomic_load_n(pid, __ATOMIC_SEQ_CST) == now)
			break;
		__atomic_store_n(pid, now, __ATOMIC_SEQ_CST);
	}
	*(sent ? &v->obj->stime : &v->obj->rtime) = time(NULL);
}

void ipc_sem_stat(int id, struct semid_ds *ds)
{
	if (id >= 0 && map() && noted(object(sysv(IPC_SEM, id)), id))
		ds->sem_otime = object(sysv(IPC_SEM, id))->otime;
}

void ipc_msg_stat(int id, struct msqid_ds *ds)
{
	struct kx_ipc_obj *o = id < 0 || !map() ? NULL : object(sysv(IPC_MSG, id));
	if (!o || !noted(o, id))
		return;
	ds->msg_lspid = o->lspid;
	ds->msg_lrpid = o->lrpid;
	ds->msg_stime = o->stime;
	ds->msg_rtime = o->rtime;
}

int ipc_sem_pid(int id, int num)
{
	struct kx_ipc_obj *o = id < 0 || num < 0 || num >= KX_IPC_SEMS || !map() ? NULL : object(sysv(IPC_SEM, id));
	return o && noted(o, id) ? (int)KX_IPC_PID(__atomic_load_n(&words(id)[num], __ATOMIC_SEQ_CST)) : 0;
}

void ipc_sem_undo(int id)
{
	if (id >= 0 && map())
		__atomic_store_n(&ipc_mem->undo[(unsigned)id % KX_IPC_IDS], (uint32_t)id + 1, __ATOMIC_SEQ_CST);
}

void ipc_settle(void)
{
	struct ipc_visit v;
	if (!map())
		return;
	for (unsigned i = 0; i < KX_IPC_OBJECTS; i++)
		if (ipc_kind_of(ipc_state(&ipc_mem->msg[i])) != KX_IPC_HOST &&
		    !ipc_enter(&v, sysv(IPC_MSG, ipc_mem->msg[i].id)))
			ipc_leave(&v);
}

void ipc_close(struct ipc_name n)
{
	struct ipc_visit v;
	if (!may_be(n))
		return;
	__atomic_store_n(&object(n)->closed, 1, __ATOMIC_SEQ_CST);
	if (!ipc_enter(&v, n))
		ipc_leave(&v);
}

/* ---- processes -------------------------------------------------------------------------------------------------------- */

/* Of a thread of this process that will not go on in there. */
static void lock_drop(struct kx_ipc_obj *o)
{
	uint64_t l = __atomic_load_n(&o->lock, __ATOMIC_SEQ_CST);
	if (l >> 32 == (uint32_t)pvm.pid)
		ipc_swap(&o->lock, l, KX_IPC_LOCK_LEFT);
}

/* What threads with a number of this process's have left. */
static void left_drop(struct kx_ipc_obj *o)
{
	uint64_t s = ipc_state(o);
	lock_drop(o);
	if (__atomic_load_n(&o->tickets, __ATOMIC_RELAXED))
		ipc_places_drop(o, (uint32_t)pvm.pid);
	if (ipc_kind_of(s) != KX_IPC_HOST && worker(s) == (uint32_t)pvm.pid)
		ipc_swap(&o->state, s, with_kind(s, 0, ipc_kind_of(s)));
	for (unsigned i = 0; i < KX_IPC_USERS; i++) {
		uint64_t u = __atomic_load_n(&o->users[i], __ATOMIC_SEQ_CST);
		if (u >> 32 == (uint32_t)pvm.pid)
			ipc_swap(&o->users[i], u, 0);
	}
}

static void all_drop(void)
{
	for (unsigned i = 0; i < KX_IPC_OBJECTS; i++) {
		left_drop(&ipc_mem->sem[i]);
		left_drop(&ipc_mem->msg[i]);
		left_drop(&ipc_mem->mq[i]);
	}
}

void ipc_identity_after(void)
{
	if (given_up || is_vfork_child() || !published()->on || geteuid() == owner)
		return;
	given_up = true;
	published()->on = 0;
	/* Other threads may be in there: what they find is empty, and whose locks they had is known. */
	if (gmem_map_family(KX_IPC_BASE, KX_IPC_SIZE, -1, 0))
		pvm_panic("ipc: cannot give up the family's memory");
	for (unsigned i = 0; i < KX_IPC_OBJECTS; i++) {
		lock_drop(&ipc_mem->msg[i]);
		lock_drop(&ipc_mem->mq[i]);
	}
}

void ipc_fork_child(bool own)
{
	if (!own)
		mq_forget();
	if (ipc_mem && __atomic_load_n(&ipc_mem->used, __ATOMIC_RELAXED))
		all_drop();
}

void ipc_resume(void)
{
	uint32_t used = 0;
	off_t at = (off_t)(family_ipc_offset() + offsetof(struct kx_ipc, used));
	if (pread(pvm.family_fd, &used, sizeof used, at) == sizeof used && used && map())
		all_drop();
	mq_resume();
}
