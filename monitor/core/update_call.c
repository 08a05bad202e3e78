/* SPDX-License-Identifier: Apache-2.0 */
/* Functions of the library that run in the guest, on a thread of the program's: resolvers, constructors, hooks. */
#include "update_priv.h"
#include <errno.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include "../../util/now.h"
#include "gmem.h"
#include "relink.h"
#include "sig.h"
#include "unwind.h"
#include "vcpu.h"

#define LOOK_NS 50000
#define CALL_NS 5000000000ll /* how long a function of the library may take */
#define KICK_NS 200000
#define BEGIN_NS 200000000ll     /* how long a thread may take to begin with one */
#define BEGIN_ALONE_NS 4000000ll /* while all others stand */

/* What update_caller is to do. */
static struct {
	struct relink_call *call;
	unsigned nr;
	uint64_t stub;
	int error;   /* CALL_FAILED: why */
	int running; /* its thread is in the guest for one of them */
	int state;   /* a futex: */
} batch;
static int runs; /* of one function alone */
/* That function. It may return when nobody waits for it any more; until then there is no other (call_is_running()). */
static struct relink_call alone;
enum { CALL_NONE, CALL_WANTED, CALL_RUNNING, CALL_DONE, CALL_FAILED };

bool update_returned(struct thread *t)
{
	if (t != update_caller || !batch.running)
		return false;
	batch.running = 0;
	return true;
}

static void call_one(struct thread *t, struct relink_call *c, uint64_t sp, uint64_t stub)
{
	struct kvm_regs *k = &t->run->s.regs.regs;
	sp = ((sp - 256) & ~15ull) - 8; /* as behind a call; the red zone is in use */
	memset(k, 0, sizeof *k);
	k->rip = c->fn;
	k->rsp = sp;
	k->rdi = c->arg[0];
	k->rsi = c->arg[1];
	k->rdx = c->arg[2];
	k->rflags = 0x202;
	t->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
	t->at_user = false;
	if (guest_write(sp, &stub, 8)) {
		c->result = 0;
		return;
	}
	batch.running = 1;
	while (batch.running)
		vcpu_step(t);
	c->result = k->rax;
}

/* Everything of t that its next call would overwrite: registers, and the LibOS's stack with the frame. */
bool update_call_run(struct thread *t)
{
	int want = CALL_WANTED, run = __atomic_load_n(&runs, __ATOMIC_SEQ_CST);
	struct unwind_regs u;
	struct kvm_sregs sregs;
	if (!__atomic_compare_exchange_n(&batch.state, &want, CALL_RUNNING, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		return false;
	if (__atomic_load_n(&update_caller, __ATOMIC_SEQ_CST) != t) { /* it has come too late: another one's */
		__atomic_store_n(&batch.state, CALL_WANTED, __ATOMIC_SEQ_CST);
		return false;
	}
	uint8_t *stack = malloc(KX_AREA_SIZE - KX_AREA_ACTIONS);
	struct kvm_xsave *x = calloc(1, sizeof *x);
	bool good = stack && x && update_user_regs(t, &u) && !vcpu_sregs(t, &sregs) &&
		    !ioctl(t->vcpu_fd, KVM_GET_XSAVE, x);
	if (good) {
		struct kvm_regs regs = t->run->s.regs.regs;
		struct kvm_vcpu_events events;
		struct hcall *hcall = t->hcall;
		struct kx_thread *a = t->area;
		struct kx_call call = a->call;
		uint64_t resume = a->resume, user_rsp = a->user_rsp, saved = a->saved_mask;
		uint32_t slow = a->slow, has_saved = a->has_saved_mask;
		bool gate_call = t->gate_call, at_user = t->at_user;
		memcpy(stack, (uint8_t *)a + KX_AREA_ACTIONS, KX_AREA_SIZE - KX_AREA_ACTIONS);
		vcpu_events_take(t, &events);
		t->hcall = NULL;
		a->has_saved_mask = 0;
		for (unsigned i = 0; i < batch.nr; i++)
			call_one(t, &batch.call[i], u.r[UNWIND_RSP], batch.stub);
		memcpy((uint8_t *)a + KX_AREA_ACTIONS, stack, KX_AREA_SIZE - KX_AREA_ACTIONS);
		a->call = call;
		a->resume = resume;
		a->user_rsp = user_rsp;
		a->saved_mask = saved;
		a->slow = slow;
		a->has_saved_mask = has_saved;
		t->hcall = hcall;
		t->gate_call = gate_call;
		t->at_user = at_user;
		if (hcall || gate_call)
			vcpu_behind_gate(&regs);
		sregs.fs.base = vcpu_fs_base(t);
		vcpu_set_regs(t, &regs, &sregs);
		vcpu_events_give(t, &events);
		if (ioctl(t->vcpu_fd, KVM_SET_XSAVE, x))
			pvm_panic("vCPU %d: cannot write registers: %s", t->index, strerror(errno));
	}
	batch.error = stack && x ? EIO : ENOMEM;
	free(stack);
	free(x);
	update_caller = NULL;
	__atomic_store_n(&batch.state, good ? CALL_DONE : CALL_FAILED, __ATOMIC_SEQ_CST);
	futex_wake(&batch.state);
	/* It was let in for this alone. */
	while (__atomic_load_n(&update_runner, __ATOMIC_SEQ_CST) == t &&
	       __atomic_load_n(&runs, __ATOMIC_SEQ_CST) == run)
		futex_wait(&batch.state, good ? CALL_DONE : CALL_FAILED, LOOK_NS);
	return true;
}

struct depth {
	struct job *j;
	bool waits, runtime_ok;
	int phase;
};

/* Innermost may be libc's frames around a call that waits; then none of them but the outermost, that started it all. */
static bool look_depth(uint64_t pc, uint64_t sp, void *arg)
{
	struct depth *d = arg;
	bool runtime = relink_is_runtime(d->j->link, pc);
	(void)sp;
	if (d->phase == 0 && runtime && !d->waits)
		d->phase = 4;
	else if (d->phase == 0 && !runtime)
		d->phase = 1;
	else if (d->phase == 1 && runtime)
		d->phase = 2;
	else if (d->phase == 2 && !runtime) /* _start: must be the last */
		d->phase = 3;
	else if (d->phase == 3)
		d->phase = 4;
	return d->phase < 4;
}

static uint64_t find_table_depth(uint64_t pc, void *arg)
{
	return relink_unwind_table(pc, ((struct depth *)arg)->j->link);
}

/* In a call in which nobody holds a lock that a function may want. */
static bool waits_safely(struct thread *t)
{
	struct hcall *c = __atomic_load_n(&t->hcall, __ATOMIC_SEQ_CST);
	if (!c)
		return false;
	switch (c->nr) {
	case SYS_read:
	case SYS_poll:
	case SYS_ppoll:
	case SYS_select:
	case SYS_pselect6:
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
	case SYS_nanosleep:
	case SYS_clock_nanosleep:
	case SYS_pause:
	case SYS_accept:
	case SYS_accept4:
	case SYS_recvfrom:
	case SYS_recvmsg:
	case SYS_wait4:
		return true;
	case SYS_futex: /* conditions, semaphores and joins; libc's own locks are waited for by another operation */
		return (c->arg[1] & 127) == FUTEX_WAIT_BITSET;
	}
	return false;
}

/* All stand. A thread at a place at which a function may be called that allocates memory. NULL = none now. */
static struct thread *can_call(struct job *j)
{
	for (unsigned i = 0; i < j->nr; i++) {
		struct thread *t = j->thread[i];
		struct unwind_regs u;
		struct depth d = { j, waits_safely(t), false, 0 };
		if (!t->vfork_child && t->pid == pvm.pid && update_user_regs(t, &u) &&
		    unwind_walk(&u, find_table_depth, look_depth, &d) && d.phase >= 1 && d.phase < 4)
			return t;
	}
	return NULL;
}

static bool call_start(struct relink_call *c, unsigned nr, struct thread *t)
{
	batch.call = c;
	batch.nr = nr;
	batch.running = 0;
	if (!(batch.stub = relink_return_stub()))
		return false;
	__atomic_store_n(&update_caller, t, __ATOMIC_SEQ_CST);
	__atomic_store_n(&batch.state, CALL_WANTED, __ATOMIC_SEQ_CST);
	return true;
}

/*
 * It has, or (after `limit`, if it has not begun) will not. A function that has begun is waited for, a while. It may
 * fork: the lock is open meanwhile.
 */
static int call_wait(struct thread *t, uint64_t limit)
{
	uint64_t kicked = 0;
	for (;;) {
		int s = __atomic_load_n(&batch.state, __ATOMIC_SEQ_CST), want = CALL_WANTED;
		if (s == CALL_DONE || s == CALL_FAILED)
			return s == CALL_DONE ? 0 : -batch.error;
		/* Out of its call; again, since it may just have been on its way to sleep. */
		if (s == CALL_WANTED && now_ns() - kicked > KICK_NS && __atomic_load_n(&t->hcall, __ATOMIC_SEQ_CST)) {
			sig_kick(t);
			kicked = now_ns();
		}
		if (now_ns() > limit) {
			if (__atomic_compare_exchange_n(&batch.state, &want, CALL_NONE, false, __ATOMIC_SEQ_CST,
							__ATOMIC_SEQ_CST)) {
				update_caller = NULL;
				return -EBUSY;
			}
			if (now_ns() > limit + CALL_NS)
				return -ETIME;
		}
		pthread_mutex_unlock(&update_lock);
		futex_wait(&batch.state, s, LOOK_NS * 10);
		pthread_mutex_lock(&update_lock);
	}
}

/* Run functions in a thread that stands well, while all others go on. */
int call_run(struct job *j, struct relink_call *c, unsigned nr, uint64_t limit)
{
	do {
		gate_hurry(j);
		struct thread *t = gate_stop_all(j, now_ns()) ? can_call(j) : NULL;
		bool begun = t && call_start(c, nr, t);
		gate_let_go();
		gate_take_time(j);
		int r = begun ? call_wait(t, now_ns() + BEGIN_NS) : -EBUSY;
		if (r != -EBUSY)
			return r;
		update_rest(WAIT_FIRST_NS);
	} while (now_ns() < limit);
	return -EBUSY;
}

/* One function, while all others stand. */
int call_run_alone(struct job *j, struct relink_call *c)
{
	struct thread *t = can_call(j);
	job_note(j, j->thread[0], "a place where no hook can be called");
	if (!t || call_is_running())
		return -EBUSY;
	alone = *c;
	if (!call_start(&alone, 1, t))
		return -EBUSY;
	__atomic_store_n(&update_runner, t, __ATOMIC_SEQ_CST);
	gate_open();
	int r = call_wait(t, now_ns() + BEGIN_ALONE_NS);
	__atomic_store_n(&update_runner, NULL, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&runs, 1, __ATOMIC_SEQ_CST);
	if (!r)
		*c = alone;
	/* It may have got into the guest meanwhile. */
	return r ? r : gate_stop_all(j, now_ns()) ? 0 : -EBUSY;
}

/* All stand, nobody is inside: the versions' own part. 0: go on. */
int call_run_hooks(struct job *j, const struct relink_hooks *h, uint64_t *state)
{
	struct relink_call prepare = { .fn = h->prepare };
	int r = call_run_alone(j, &prepare);
	if (r)
		return r;
	if (!(*state = prepare.result))
		return -ECANCELED;
	struct relink_call commit = { .fn = h->commit, .arg = { *state } };
	r = call_run_alone(j, &commit);
	return r ? r : (int32_t)commit.result ? -ECANCELED : 0;
}

/* A function that another thread of the parent's runs is none of the child's. */
void call_fork_child(void)
{
	if (update_caller != self) {
		update_caller = NULL;
		batch.state = CALL_NONE;
	}
}

bool call_is_running(void) { return __atomic_load_n(&batch.state, __ATOMIC_SEQ_CST) == CALL_RUNNING; }
