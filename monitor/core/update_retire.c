/* SPDX-License-Identifier: Apache-2.0 */
/* After an update: versions that nothing refers to are unmapped (retire.h). */
#include "update_priv.h"
#include <stdlib.h>
#include "../../util/log.h"
#include "../../util/now.h"
#include "relink.h"
#include "retire.h"
#include "serve.h"

#define TRIES 12
#define NAP_NS 300000
#define AGAIN_MAX 4
#define AGAIN_FEW 64 /* pages */

/* A fork may come in between. */
static void let_others(void) { update_rest(20000); }

/* All stand: their registers, NULL where one is somewhere between the program and the monitor. To be freed. */
static struct unwind_regs *registers(const struct job *j)
{
	struct unwind_regs *u = malloc((j->nr + 1) * sizeof *u);
	bool good = u;
	for (unsigned i = 0; i < j->nr && good; i++) {
		struct thread *t = j->thread[i];
		good = !t->vfork_child && t->pid == pvm.pid && update_user_regs(t, &u[i]);
	}
	if (good)
		return u;
	free(u);
	return NULL;
}

/* 1: nothing refers to some of them; 0: it is not seen; -1: not now. */
static int stop_and_look(struct retire *x, struct job *j)
{
	int r = -1;
	j->stop_ns = STOP_NS;
	gate_hurry(j);
	struct unwind_regs *u = gate_stop_all(j, now_ns()) ? registers(j) : NULL;
	if (u && look_lock_still(j)) {
		r = retire_stopped(x, j->thread, u, j->nr);
		pthread_mutex_unlock(&pvm.thr_lock);
		pthread_mutex_unlock(&pvm.mm_lock);
	}
	gate_let_go();
	gate_take_time(j);
	free(u);
	return r;
}

static struct retire *looking; /* while it is under way */

void update_retire_fork_child(void)
{
	free(looking);
	looking = NULL;
}

void update_retire(void)
{
	struct retire *const x = retire_new();
	int r = -1;
	if (!x)
		return;
	looking = x;
	/* As update_look_ahead(): calls that are being answered without an exit have not been noted. */
	pthread_mutex_unlock(&update_lock);
	serve_lock();
	serve_unlock();
	pthread_mutex_lock(&update_lock);
	bool good = retire_ahead(x, let_others);
	for (unsigned i = 0; i < TRIES && good && r < 0; i++) {
		long n = 0;
		for (unsigned k = 0; k < AGAIN_MAX && (n = retire_again(x)) > AGAIN_FEW; k++)
			;
		good = n >= 0;
		if (!good)
			break;
		update_rest((long)NAP_NS << (i < 6 ? i : 6));
		r = stop_and_look(x, &jobs->retire);
	}
	looking = NULL;
	unsigned left = retire_done(x, r > 0);
	kx_log(KX_LOG_DEBUG, "update", "versions kept that are replaced: %u", left);
}
