/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of an update share: update.c (requests and their service), update_attempt.c (the change), update_gate.c
 * (stopping), update_look.c (who is inside), update_call.c (functions that run in the guest), update_round.c (several at
 * once). None of it is for others.
 */
#ifndef KX_UPDATE_PRIV_H
#define KX_UPDATE_PRIV_H
#include "update.h"
#include <linux/futex.h>
#include <stdarg.h>
#include "relink.h"
#include "unwind.h"

#define THREADS_MAX 4096
#define SHORT_MAX 64         /* threads that ask for short turns at a time */
#define STOP_NS 2500000ll    /* how long one attempt may hold threads up */
#define WAIT_FIRST_NS 500000 /* between attempts, growing */
#define ROUND_BYTES 4096

struct sched {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
	uint32_t util_min, util_max;
};
struct turn {
	pid_t tid;
	struct sched was;
};

struct job {
	int reply;
	struct update_request q;
	struct relink *link;
	struct thread *thread[THREADS_MAX];
	unsigned nr;
	struct asleep {
		struct thread *t;
		struct hcall *call;
		uint64_t nr;
	} asleep[THREADS_MAX]; /* in a call, and not in the library */
	unsigned nr_asleep;
	/* Who was in the way at the last attempt. */
	char where[200];
	char found[160];
	uint64_t pause_ns, gathered_ns; /* of the longest stop, and how much of it until all stood */
	bool cut;                       /* the request came without all of its descriptors */
	bool said;                      /* why it is refused */
	unsigned attempts;
	pid_t busy;                  /* who was in the way, 0 = none */
	struct turn turn[SHORT_MAX]; /* threads that have short turns */
	unsigned nr_turns;
	uint64_t stop_ns;
	bool ahead, noted;        /* the program's memory has been looked through, and what is written is noted */
	volatile uint32_t *round; /* NULL: it is alone */
	uint32_t round_nr;
	uint64_t hold_ns;
	struct moved *moved; /* registers, so that they can be moved back */
	unsigned nr_moved, cap_moved;
};

/* The service thread's, from its first request on; NULL before. */
extern struct jobs {
	struct job now, again, retire; /* the request; who stands at a second look; who stands when old versions go */
} * jobs;

struct moved {
	struct thread *t; /* NULL: it is in a frame */
	uint64_t *at, old;
};

static inline void futex_wait(volatile int *word, int v, long ns)
{
	struct timespec ts = { 0, ns };
	host_call(SYS_futex, (long)word, FUTEX_WAIT, v, ns ? (long)&ts : 0, 0, 0);
}

static inline void futex_wake(volatile int *word) { host_call(SYS_futex, (long)word, FUTEX_WAKE, 1 << 30, 0, 0, 0); }

/* ---- update.c -------------------------------------------------------------------------------------------------------- */
extern pthread_mutex_t update_lock;
void job_reply(const struct job *j, unsigned kind, int error, uint64_t pause, const char *fmt, va_list ap);
/* Whoever asked waits no more: what is done now it would not learn of. */
bool job_asker_is_gone(int fd);
__attribute__((format(printf, 3, 4))) void job_finish(struct job *j, int error, const char *fmt, ...);
void update_close_closed(void);
void update_nap(long ns);
/* The same with the lock open. */
void update_rest(long ns);

/* ---- update_gate.c --------------------------------------------------------------------------------------------------- */
void gate_open(void);
void gate_let_go(void);
/* With thr_lock; takes down who there is. */
bool gate_all_stand(struct job *j, bool kick);
/* The caller's turns are short from here on. */
void gate_own_turns(void);
/* For a stop: short turns for those that have to come out. To be taken back right after it, under the same lock. */
void gate_hurry(struct job *j);
void gate_take_time(struct job *j);
/* Every thread stands. False: not within the time that an attempt has. */
bool gate_stop_all(struct job *j, uint64_t since);
/* How long the last stop has lasted, and how much of that until all stood. */
uint64_t gate_pause(void);
uint64_t gate_gathered(void);
/* The process ends. */
bool gate_is_for_good(void);
void gate_fork_child(void);

/* ---- update_look.c --------------------------------------------------------------------------------------------------- */
void job_note(struct job *j, struct thread *t, const char *what);
/* The program's registers at the place where t stands. False: it is somewhere between the program and the monitor. */
bool update_user_regs(struct thread *t, struct unwind_regs *u);
/* Before a stop: who is in a call. It needn't be looked at again as long as it is in the same one. */
void look_at_sleepers(struct job *j);
bool look_is_quiet(struct job *j);
/* The threads that were looked at are all that there are, and stand. Takes both locks when it is so. */
bool look_lock_still(struct job *j);

/* ---- update_call.c --------------------------------------------------------------------------------------------------- */
bool call_is_running(void);
void call_fork_child(void);
int call_run(struct job *j, struct relink_call *c, unsigned nr, uint64_t limit);
int call_run_alone(struct job *j, struct relink_call *c);
int call_run_hooks(struct job *j, const struct relink_hooks *h, uint64_t *state);

/* ---- update_round.c -------------------------------------------------------------------------------------------------- */
int round_map(struct job *j, int fd);
__attribute__((format(printf, 3, 4))) void round_say(struct job *j, unsigned kind, const char *fmt, ...);
bool round_begins(struct job *j, uint64_t limit);
bool round_verdict(struct job *j);

/* ---- update_attempt.c ------------------------------------------------------------------------------------------------ */
void update_look_ahead(struct job *j);
int update_attempt(struct job *j);

/* ---- update_retire.c ------------------------------------------------------------------------------------------------- */
/* With the lock, when an update is done and told. */
void update_retire(void);
/* What the parent was looking for. */
void update_retire_fork_child(void);
#endif
