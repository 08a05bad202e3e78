/* SPDX-License-Identifier: Apache-2.0 */
/* An attempt to make the change: all that is done at the stop, and right before it. */
#include "../../util/grow.h"
#include "update_priv.h"
#include <errno.h>
#include <stdlib.h>
#include "../../util/now.h"
#include "relink.h"
#include "serve.h"

#define ABORT_TRIES 50
#define NAP_NS 300000
#define AGAIN_MAX 8  /* times that what was written meanwhile is looked at before a stop, */
#define AGAIN_LAST 4 /* and right before it; */
#define AGAIN_FEW 16 /* until it is no more pages than that, or becomes hardly less */

static bool move_register(struct job *j, struct thread *t, uint64_t *at)
{
	uint64_t v = relink_register(j->link, *at);
	if (v == *at)
		return true;
	if (!kx_room(j->moved, j->cap_moved, j->nr_moved + 1, 64))
		return false;
	j->moved[j->nr_moved++] = (struct moved){ t, at, *at };
	*at = v;
	if (t)
		t->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
	return true;
}

static void move_registers_back(struct job *j)
{
	for (; j->nr_moved; j->nr_moved--) {
		struct moved *m = &j->moved[j->nr_moved - 1];
		*m->at = m->old;
		if (m->t)
			m->t->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
	}
}

/* Registers may hold what was taken from a table before: the address of a function that is about to be called. */
static bool move_registers(struct job *j, struct thread *t)
{
	struct kvm_regs *k = &t->run->s.regs.regs;
	bool libos = in_libos(k->rip), good = true;
	if (__atomic_load_n(&t->hcall, __ATOMIC_SEQ_CST) || libos) {
		struct kx_frame *f = frame_of(t);
		uint64_t *const reg[] = { &f->r15, &f->r14, &f->r13, &f->r12, &f->rbp, &f->rbx,
					  &f->r10, &f->r9,  &f->r8,  &f->rdi, &f->rsi, &f->rdx };
		for (unsigned i = 0; i < sizeof reg / sizeof *reg && good; i++)
			good = move_register(j, NULL, reg[i]);
		return good;
	}
	__u64 *const reg[] = { &k->rax, &k->rbx, &k->rcx, &k->rdx, &k->rsi, &k->rdi, &k->rbp, &k->r8,
			       &k->r9,  &k->r10, &k->r11, &k->r12, &k->r13, &k->r14, &k->r15 };
	for (unsigned i = 0; i < sizeof reg / sizeof *reg && good; i++)
		good = move_register(j, t, (uint64_t *)reg[i]);
	return good;
}

/* Look through the program's memory while it runs. */
void update_look_ahead(struct job *j)
{
	j->ahead = true;
	if (relink_note(j->link))
		return;
	/* A call that is being answered without an exit has not been noted: it is over when its lock was free. That lock
	 * comes before this one. */
	pthread_mutex_unlock(&update_lock);
	serve_lock();
	serve_unlock();
	pthread_mutex_lock(&update_lock);
	relink_ahead(j->link);
	j->noted = true;
}

/* With all locks. The others of a round have their say. */
static int apply(struct job *j)
{
	j->nr_moved = 0;
	int r = relink_apply(j->link);
	if (r)
		return r;
	for (unsigned i = 0; i < j->nr && !r; i++)
		r = move_registers(j, j->thread[i]) ? 0 : -ENOMEM;
	if (!r && j->round && !round_verdict(j)) {
		job_note(j, NULL, "others are not ready");
		r = -EBUSY;
	}
	if (r) {
		move_registers_back(j);
		relink_undo(j->link);
		j->ahead = false;
	}
	return r;
}

/* One stop. As update_attempt(). */
static int stop_and_change(struct job *j)
{
	int r = -EBUSY;
	j->attempts++;
	j->busy = 0;
	if (!gate_stop_all(j, now_ns())) {
		for (unsigned i = 0; i < j->nr; i++)
			if (!update_stands(j->thread[i]))
				job_note(j, j->thread[i], "the guest, and does not come out");
		if (j->nr == THREADS_MAX)
			job_note(j, NULL, "there are more threads than an update stops");
	} else if (relink_looks(j->link) && !j->ahead && look_is_quiet(j)) {
		r = -EINPROGRESS;
		j->attempts--;
	} else if (look_is_quiet(j)) {
		struct relink_hooks h = relink_hooks(j->link);
		uint64_t state = 0;
		r = h.prepare && h.commit ? call_run_hooks(j, &h, &state) : 0;
		if (!r && look_lock_still(j)) {
			r = apply(j);
			pthread_mutex_unlock(&pvm.thr_lock);
			pthread_mutex_unlock(&pvm.mm_lock);
		} else if (!r) {
			r = -EBUSY;
		}
		if (r && r != -ETIME && state && h.abort) { /* else it is still in one */
			struct relink_call abort = { .fn = h.abort, .arg = { state } };
			for (int i = 0; i < ABORT_TRIES && call_run_alone(j, &abort) == -EBUSY; i++) {
				gate_let_go();
				update_rest(WAIT_FIRST_NS);
				gate_stop_all(j, now_ns());
			}
		}
	}
	gate_let_go();
	uint64_t pause = gate_pause();
	if (pause > j->pause_ns) {
		j->pause_ns = pause;
		j->gathered_ns = gate_gathered();
	}
	return r;
}

/* What has been written since it was looked at last. (What calls have been given counts each time.) */
static void look_at_written(struct job *j, unsigned most)
{
	size_t before = SIZE_MAX, n;
	for (unsigned i = 0; j->noted && i < most; i++, before = n)
		if ((n = relink_again(j->link)) <= AGAIN_FEW || n > before / 4 * 3)
			break;
}

/*
 * One attempt. 0, -EBUSY: somebody is in the way; -EINPROGRESS: nobody is, update_look_ahead() first; -EAGAIN: prepare again; or
 * what relink_apply() says.
 */
int update_attempt(struct job *j)
{
	look_at_written(j, AGAIN_MAX);
	look_at_sleepers(j);
	/* It has been busy: on a machine with more to do than it has processors its time may be over, which must not
	 * come while all stand. In a round forks wait. */
	if (j->round)
		update_nap(NAP_NS);
	else
		update_rest(NAP_NS);
	look_at_written(j, AGAIN_LAST); /* while it slept others ran */
	gate_hurry(j);
	int r = stop_and_change(j);
	gate_take_time(j);
	return r;
}
