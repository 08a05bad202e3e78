/* SPDX-License-Identifier: Apache-2.0 */
#include "update.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../../util/now.h"
#include "admit.h"
#include "fork.h"
#include "gmem.h"
#include "gmem_warm.h"
#include "keeper.h"
#include "relink.h"
#include "thread.h"
#include "serve.h"
#include "sig.h"
#include "spare.h"
#include "unwind.h"
#include "vcpu.h"
#include "written.h"

#define STACK (256 << 10)
#define STOP_NS 2500000ll       /* how long one attempt may hold threads up; */
#define STOP_LATE_NS 20000000ll /* when half of the time is over */
#define COME_NS 40000000ll      /* how long it waits for the first one that stands */
#define TURN_NS 100000          /* the shortest that Linux knows */
#define SHORT_MAX 64            /* threads that ask for it */
#define LOOK_NS 50000           /* how often it looks at those that are on their way */
#define WAIT_FIRST_NS 500000    /* between attempts, growing */
#define WAIT_MAX_NS 20000000
#define TIMEOUT_MAX_MS 600000
#define SCAN_MAX (1u << 20) /* bytes of a stack that are looked through where its tables end */
#define THREADS_MAX 4096
#define CALL_NS 5000000000ll /* how long a function of the library may take */
#define ABORT_TRIES 50
#define HOLD_NS 40000000ll       /* how long all stand for the others of a round; */
#define HOLD_LATE_NS 250000000ll /* when half of the time is over */
#define ROUND_LOOK_NS 20000000
#define FORKS_NS 3000000000ll /* how long forks wait for the others of a round to be prepared */
#define ROUND_BYTES 4096
#define KICK_NS 200000
#define BEGIN_NS 200000000ll     /* how long a thread may take to begin with one */
#define BEGIN_ALONE_NS 4000000ll /* while all others stand */
#define NAP_NS 300000
#define AGAIN_MAX 8     /* times that what was written meanwhile is looked at before a stop, */
#define AGAIN_FEW 64    /* until it is no more pages than that */
#define REPLY_TRIES 100 /* of 10 ms */
#define PREPARE_MAX 20  /* times that the program may load or unload something meanwhile */

enum { STOP_NONE, STOP_WANTED, STOP_HELD }; /* held: all stand, and wait however long it takes */
volatile int update_stop;
static uint64_t stop_began;    /* when the first one came to stand; 0 = none has */
static uint64_t stop_ns;       /* how long those that stand wait for the others */
static uint64_t stopped_until; /* when they gave up; 0 = they did not */
struct thread *volatile update_runner, *volatile update_caller;
static int fds[2] = { -1, -1 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int poked;       /* a futex: a request may be there */
static pid_t served_by; /* the process that has a service thread */
static bool for_good;   /* the process ends: the gate stays shut */
static int closed = -1; /* a descriptor that the process has closed, and that thread has still */
static int parked;      /* counts those that come to wait; a futex */
static int opened;      /* counts whenever somebody may pass; a futex */

/* ---- descriptors ----------------------------------------------------------------------------------------------------- */

int update_fd(int which) { return fds[which]; }

void update_adopt(int host_end, int own_end)
{
	if (host_end < 0 || own_end < 0)
		return;
	fd_keep(&fds[0], host_end);
	fd_keep(&fds[1], own_end);
}

void update_init(void)
{
	int s[2];
	if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, s))
		kx_log(KX_LOG_WARN, "update", "no sockets: libraries can't be updated: %s", strerror(errno));
	else
		update_adopt(s[0], s[1]);
}

/* ---- the gate ---------------------------------------------------------------------------------------------------------- */

static void futex_wait(volatile int *word, int v, long ns)
{
	struct timespec ts = { 0, ns };
	host_call(SYS_futex, (long)word, FUTEX_WAIT, v, ns ? (long)&ts : 0, 0, 0);
}

static void futex_wake(volatile int *word) { host_call(SYS_futex, (long)word, FUTEX_WAKE, 1 << 30, 0, 0, 0); }

static void open_gate(void)
{
	__atomic_add_fetch(&opened, 1, __ATOMIC_SEQ_CST);
	futex_wake(&opened);
}

/* False: others go on waiting for it. */
static bool open_if(int state, int next)
{
	if (!__atomic_compare_exchange_n(&update_stop, &state, next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		return false;
	if (!next)
		open_gate();
	return true;
}

/*
 * Whoever asked for the stop may itself be waiting for a processor. So those that wait end an attempt that takes too long,
 * as long as it is not seen that all stand.
 */
void update_park(struct thread *t)
{
	__atomic_store_n(&t->gate, GATE_PARKED, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&parked, 1, __ATOMIC_SEQ_CST);
	futex_wake(&parked);
	for (;;) {
		int seen = __atomic_load_n(&opened, __ATOMIC_SEQ_CST),
		    stop = __atomic_load_n(&update_stop, __ATOMIC_SEQ_CST);
		uint64_t now = now_ns(), began = 0;
		if (__atomic_compare_exchange_n(&stop_began, &began, now, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			began = now;
		uint64_t until = began + stop_ns;
		if (!stop || t->exiting || __atomic_load_n(&update_runner, __ATOMIC_SEQ_CST) == t)
			break;
		if (stop == STOP_WANTED && now >= until) {
			if (open_if(STOP_WANTED, STOP_NONE))
				__atomic_store_n(&stopped_until, now, __ATOMIC_SEQ_CST);
			break;
		}
		futex_wait(&opened, seen, stop == STOP_WANTED ? (long)(until - now) : 0);
	}
	__atomic_store_n(&t->gate, GATE_MONITOR, __ATOMIC_SEQ_CST);
}

/* ---- a request in progress -------------------------------------------------------------------------------------------- */

struct job {
	int reply;
	struct update_request q;
	struct relink *link;
	struct thread *thread[THREADS_MAX];
	unsigned nr;
	/* Who was in the way at the last attempt. */
	char where[200];
	char found[160];
	uint64_t pause_ns;
	unsigned attempts;
	struct short_turn {
		pid_t tid;
		uint64_t was;
	} turn[SHORT_MAX];
	unsigned nr_short;
	uint64_t stop_ns;
	bool ahead, noted;        /* the program's memory has been looked through, and what is written is noted */
	volatile uint32_t *round; /* NULL: it is alone */
	uint32_t round_nr;
	uint64_t hold_ns;
	struct moved *moved; /* registers, so that they can be moved back */
	unsigned nr_moved, cap_moved;
};

struct moved {
	struct thread *t; /* NULL: it is in a frame */
	uint64_t *at, old;
};

static uint64_t forks; /* under the lock */

static void reply(const struct job *j, unsigned kind, int error, uint64_t pause, const char *fmt, va_list ap)
{
	struct update_reply a = {
		.kind = kind, .error = (uint32_t)error, .round = j->round_nr, .pause_ns = pause, .forks = forks
	};
	bool must = kind != UPDATE_SAYS;
	struct iovec v = { &a, sizeof a };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };
	struct timespec ts = { 0, 10000000 };
	vsnprintf(a.text, sizeof a.text, fmt, ap);
	/* Who doesn't read must not hold up forks. */
	for (int i = 0;
	     HC6(SYS_sendmsg, j->reply, &m, MSG_NOSIGNAL | MSG_DONTWAIT, 0, 0, 0) == -EAGAIN && must && i < REPLY_TRIES;
	     i++)
		HC6(SYS_nanosleep, &ts, 0, 0, 0, 0, 0);
}

/* Whoever asked waits no more: what is done now it would not learn of. */
static bool asker_is_gone(int fd)
{
	struct pollfd p = { .fd = fd };
	struct timespec none = { 0, 0 };
	return HC6(SYS_ppoll, &p, 1, &none, 0, 8, 0) > 0; /* a signal may come in between */
}

__attribute__((format(printf, 3, 4))) static void finish(struct job *j, int error, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	reply(j, UPDATE_LAST, error, j->pause_ns, fmt, ap);
	va_end(ap);
}

static void say_line(void *arg, const char *fmt, va_list ap)
{
	struct job *j = arg;
	reply(j, UPDATE_SAYS, 0, 0, fmt, ap);
}

/* ---- stopping ------------------------------------------------------------------------------------------------------------ */

static void let_go(void)
{
	if (!__atomic_load_n(&for_good, __ATOMIC_SEQ_CST))
		__atomic_store_n(&update_stop, STOP_NONE, __ATOMIC_SEQ_CST);
	open_gate();
}

bool update_stands(struct thread *t)
{
	return __atomic_load_n(&t->gate, __ATOMIC_SEQ_CST) == GATE_PARKED ||
	       __atomic_load_n(&t->hcall, __ATOMIC_SEQ_CST);
}

/* With thr_lock. False: not yet. */
static bool stands_or_comes(struct thread *t, bool kick)
{
	if (update_stands(t))
		return true;
	if (kick && __atomic_load_n(&t->gate, __ATOMIC_SEQ_CST) == GATE_GUEST)
		sig_kick(t);
	return false;
}

/* With thr_lock. */
static bool all_stand(struct job *j, bool kick)
{
	bool all = true;
	j->nr = 0;
	for (struct thread *t = pvm.threads; t; t = t->next) {
		if (j->nr == THREADS_MAX)
			return false;
		j->thread[j->nr++] = t;
		all &= stands_or_comes(t, kick);
	}
	return all;
}

/*
 * A thread that is in the guest comes out when it has its turn, which on a machine with more to do than it has processors is
 * a matter of ten milliseconds and more. Who asks for shorter turns has them sooner (EEVDF, Linux 6.12; before that it is
 * ignored), and needs no right for it. So threads ask for the shortest while they are to be stopped.
 */
struct sched {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
	uint32_t util_min, util_max;
};

static void set_turn(pid_t tid, uint64_t ns, uint64_t *was)
{
	struct sched a = { .size = sizeof a };
	if (HC6(SYS_sched_getattr, tid, &a, sizeof a, 0, 0, 0) ||
	    (a.policy != SCHED_OTHER && a.policy != SCHED_BATCH) || a.runtime == ns)
		return;
	if (was)
		*was = a.runtime;
	a.size = sizeof a;
	a.runtime = ns;
	HC6(SYS_sched_setattr, tid, &a, 0, 0, 0, 0);
}

static void short_turns(struct job *j)
{
	j->nr_short = 0;
	pthread_mutex_lock(&pvm.thr_lock);
	for (struct thread *t = pvm.threads; t && j->nr_short < SHORT_MAX; t = t->next)
		if (!update_stands(t)) {
			struct short_turn *s = &j->turn[j->nr_short];
			s->tid = t->tid;
			s->was = 0;
			set_turn(t->tid, TURN_NS, &s->was);
			j->nr_short += s->was != 0;
		}
	pthread_mutex_unlock(&pvm.thr_lock);
}

static void usual_turns(struct job *j)
{
	while (j->nr_short) {
		struct short_turn *s = &j->turn[--j->nr_short];
		set_turn(s->tid, s->was, NULL);
	}
}

/* Every thread stands. False: not within the time that an attempt has. */
static bool stop_all(struct job *j, uint64_t since)
{
	bool kick = true;
	__atomic_store_n(&stopped_until, 0, __ATOMIC_SEQ_CST);
	/* Where some stand already, for a function that ran alone, it is held. */
	int none = STOP_NONE;
	if (__atomic_load_n(&update_stop, __ATOMIC_SEQ_CST) == STOP_NONE) {
		stop_ns = j->stop_ns;
		__atomic_store_n(&stop_began, 0, __ATOMIC_SEQ_CST);
	}
	__atomic_compare_exchange_n(&update_stop, &none, STOP_WANTED, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	for (unsigned round = 0;; round++) {
		int seen = __atomic_load_n(&parked, __ATOMIC_SEQ_CST);
		pthread_mutex_lock(&pvm.thr_lock);
		bool all = all_stand(j, kick);
		pthread_mutex_unlock(&pvm.thr_lock);
		if (all && (none == STOP_HELD || open_if(STOP_WANTED, STOP_HELD))) {
			uint64_t nobody = 0; /* all are in calls: whoever comes out from now on waits */
			__atomic_compare_exchange_n(&stop_began, &nobody, now_ns(), false, __ATOMIC_SEQ_CST,
						    __ATOMIC_SEQ_CST);
			return true;
		}
		uint64_t now = now_ns(), began = __atomic_load_n(&stop_began, __ATOMIC_SEQ_CST);
		if (__atomic_load_n(&update_stop, __ATOMIC_SEQ_CST) == STOP_NONE ||
		    now - since > COME_NS + j->stop_ns || (began && now > began + j->stop_ns))
			return false;
		kick = round % 64 == 63; /* one that was on its way in */
		futex_wait(&parked, seen, LOOK_NS);
	}
}

bool update_stop_for_good(struct thread *me, uint64_t ns)
{
	const uint64_t since = now_ns();
	__atomic_store_n(&for_good, true, __ATOMIC_SEQ_CST);
	__atomic_store_n(&update_runner, NULL, __ATOMIC_SEQ_CST);
	__atomic_store_n(&update_stop, STOP_HELD, __ATOMIC_SEQ_CST);
	for (unsigned round = 0;; round++) {
		int seen = __atomic_load_n(&parked, __ATOMIC_SEQ_CST);
		bool all = true;
		pthread_mutex_lock(&pvm.thr_lock);
		for (struct thread *t = pvm.threads; t; t = t->next)
			if (t != me)
				all &= stands_or_comes(t, round % 64 == 0);
		pthread_mutex_unlock(&pvm.thr_lock);
		if (all || now_ns() - since > ns)
			return all;
		futex_wait(&parked, seen, LOOK_NS);
	}
}

static void note(struct job *j, struct thread *t, const char *what)
{
	if (t)
		snprintf(j->where, sizeof j->where, "thread %d is in %s", t->tid, what);
	else
		snprintf(j->where, sizeof j->where, "%s", what);
}

/* The program's registers at the place where t stands. False: it is somewhere between the program and the monitor. */
static bool user_regs(struct thread *t, struct unwind_regs *u)
{
	const struct kvm_regs *k = &t->run->s.regs.regs;
	struct kvm_regs now = *k;
	bool in_call = __atomic_load_n(&t->hcall, __ATOMIC_SEQ_CST);
	bool libos = in_libos(now.rip);
	memset(u, 0, sizeof *u);
	if (in_call || libos) {
		struct kx_frame f;
		if (!in_call && !t->gate_call && now.rip != pvm.libos.work && now.rip != pvm.libos.exit)
			return false;
		f = *frame_of(t);
		*u = (struct unwind_regs){ { f.rax, f.rdx, f.rcx, f.rbx, f.rsi, f.rdi, f.rbp, f.rsp, f.r8, f.r9, f.r10,
					     f.r11, f.r12, f.r13, f.r14, f.r15, f.rip } };
		return true;
	}
	if ((t->run->s.regs.sregs.cs.selector & 3) != 3)
		return false;
	*u = (struct unwind_regs){ { now.rax, now.rdx, now.rcx, now.rbx, now.rsi, now.rdi, now.rbp, now.rsp, now.r8,
				     now.r9, now.r10, now.r11, now.r12, now.r13, now.r14, now.r15,
				     gmem_pc_to_original(now.rip) } };
	return true;
}

struct walk {
	struct job *j;
	bool found;
};

static uint64_t find_table(uint64_t pc, void *arg) { return relink_unwind_table(pc, ((struct walk *)arg)->j->link); }

static bool look(uint64_t pc, uint64_t sp, void *arg)
{
	struct walk *w = arg;
	(void)sp;
	if (relink_where(w->j->link, pc) == RELINK_ELSEWHERE)
		return true;
	relink_name(w->j->link, pc, w->j->found, sizeof w->j->found);
	w->found = true;
	return false;
}

/* Where the tables end: every word up to the end of the stack that could be a return address into the old version. */
static bool scan(struct job *j, uint64_t sp)
{
	uint64_t buf[512];
	struct gmem_region g;
	if (!gmem_query(sp, &g) || g.start > sp)
		return false;
	uint64_t end = g.end - sp > SCAN_MAX ? sp + SCAN_MAX : g.end;
	for (uint64_t a = sp & ~7ull; a < end; a += sizeof buf) {
		size_t n = end - a < sizeof buf ? end - a : sizeof buf;
		if (guest_read(buf, a, n))
			return false;
		for (size_t i = 0; i < n / 8; i++)
			if (relink_where(j->link, buf[i]) == RELINK_OLD) {
				relink_name(j->link, buf[i], j->found, sizeof j->found);
				return true;
			}
	}
	return false;
}

/* A call that the host's kernel is in may write to what it was given, at any time. */
static bool in_call_on_it(const struct job *j, const struct thread *t)
{
	struct kx_call c;
	if (!__atomic_load_n(&t->hcall, __ATOMIC_SEQ_CST))
		return false;
	memcpy(&c, (const void *)&t->area->call, sizeof c);
	for (unsigned i = 0; i < 6; i++)
		if (relink_where(j->link, c.arg[i]) == RELINK_OLD)
			return true;
	return false;
}

/* Is t in the old version, or in ld.so, or in something called from there? */
static bool in_the_way(struct job *j, struct thread *t)
{
	struct unwind_regs u;
	struct walk w = { j, false };
	if (t->vfork_child) {
		note(j, t, "a child of vfork");
		return true;
	}
	if (!user_regs(t, &u)) {
		note(j, t, "a system call");
		return true;
	}
	if (in_call_on_it(j, t)) {
		note(j, t, "a system call on the library's variables");
		return true;
	}
	bool whole = unwind_walk(&u, find_table, look, &w);
	if (!w.found && !whole)
		w.found = scan(j, u.r[UNWIND_RSP]);
	if (w.found)
		note(j, t, j->found);
	return w.found;
}

static bool is_quiet(struct job *j)
{
	for (unsigned i = 0; i < j->nr; i++)
		if (in_the_way(j, j->thread[i]))
			return false;
	return true;
}

/* The threads that were looked at are all that there are, and stand. Takes both locks when it is so. */
static bool lock_still(struct job *j)
{
	static struct job again;
	pthread_mutex_lock(&pvm.mm_lock);
	pthread_mutex_lock(&pvm.thr_lock);
	bool same = all_stand(&again, false) && again.nr == j->nr &&
		    !memcmp(again.thread, j->thread, j->nr * sizeof *j->thread);
	for (unsigned i = 0; i < j->nr && same; i++)
		same = !j->thread[i]->vfork_child;
	if (!same) {
		pthread_mutex_unlock(&pvm.thr_lock);
		pthread_mutex_unlock(&pvm.mm_lock);
	}
	return same;
}

/* In the service thread, whose table is its own. */
static void close_closed(void)
{
	int fd = __atomic_exchange_n(&closed, -1, __ATOMIC_SEQ_CST);
	if (fd >= 0)
		close(fd);
}

static void nap(long ns)
{
	struct timespec t = { 0, ns };
	HC6(SYS_nanosleep, &t, 0, 0, 0, 0, 0);
}

static void rest(long ns)
{
	close_closed();
	pthread_mutex_unlock(&lock); /* a fork may come in between */
	nap(ns);
	pthread_mutex_lock(&lock);
}

/* ---- a round ----------------------------------------------------------------------------------------------------------- */

static uint32_t round_now(const struct job *j) { return __atomic_load_n(j->round, __ATOMIC_SEQ_CST); }

static int round_map(struct job *j, int fd)
{
	struct stat st;
	if ((fcntl(fd, F_GET_SEALS) & ROUND_SEALS) != ROUND_SEALS || fstat(fd, &st) || st.st_size != ROUND_BYTES)
		return -EINVAL;
	void *p = mmap(NULL, ROUND_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return -errno;
	j->round = p;
	j->round_nr = round_now(j) >> 2; /* that one is not ours */
	return 0;
}

__attribute__((format(printf, 3, 4))) static void round_say(struct job *j, unsigned kind, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	reply(j, kind, 0, 0, fmt, ap);
	va_end(ap);
}

/* Until the next one begins. Forks wait meanwhile, for a while: else a family that grows all the time would never have been
 * asked as a whole. False: none will begin. */
static bool round_begins(struct job *j, uint64_t limit)
{
	round_say(j, UPDATE_PREPARED, "%s", j->where);
	uint64_t held_until = now_ns() + FORKS_NS;
	for (uint32_t w; (w = round_now(j)) != ROUND_OVER && now_ns() < limit && !asker_is_gone(j->reply);) {
		bool new = w >> 2 != j->round_nr;
		j->round_nr = w >> 2;
		if (new && (w & 3) == ROUND_GO)
			return true;
		if (new && (w & 3) == ROUND_BACK) /* it was over before this one woke */
			round_say(j, UPDATE_PREPARED, "%s", j->where);
		close_closed();
		bool open = now_ns() > held_until;
		if (open)
			pthread_mutex_unlock(&lock);
		futex_wait((volatile int *)j->round, (int)w, ROUND_LOOK_NS);
		if (open)
			pthread_mutex_lock(&lock);
	}
	return false;
}

/* All stand and the change is made: is it in all others? */
static bool round_verdict(struct job *j)
{
	uint32_t go = ROUND_WORD(j->round_nr, ROUND_GO), w;
	uint64_t end = now_ns() + j->hold_ns, now;
	round_say(j, UPDATE_READY, "ready");
	while ((w = round_now(j)) == go) {
		if ((now = now_ns()) < end)
			futex_wait((volatile int *)j->round, (int)go, (long)(end - now));
		else if (__atomic_compare_exchange_n(j->round, &go, ROUND_WORD(j->round_nr, ROUND_BACK), false,
						     __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			futex_wake((volatile int *)j->round);
	}
	return w == ROUND_WORD(j->round_nr, ROUND_COMMIT);
}

/* ---- functions that run in the guest --------------------------------------------------------------------------------- */

/* What update_caller is to do. */
static struct {
	struct relink_call *call;
	unsigned nr;
	uint64_t stub;
	int running; /* its thread is in the guest for one of them */
	int state;   /* a futex: */
} batch;
static struct relink *pending; /* made, and not over */
static int runs;               /* of one function alone */
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
	while (batch.running && !t->exiting)
		vcpu_step(t);
	c->result = k->rax;
}

/* Everything of t that its next call would overwrite: registers, and the LibOS's stack with the frame. */
bool update_call_run(struct thread *t)
{
	int want = CALL_WANTED, run = __atomic_load_n(&runs, __ATOMIC_SEQ_CST);
	struct unwind_regs u;
	if (!__atomic_compare_exchange_n(&batch.state, &want, CALL_RUNNING, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		return false;
	uint8_t *stack = malloc(KX_AREA_SIZE - KX_AREA_ACTIONS);
	struct kvm_xsave *x = calloc(1, sizeof *x);
	bool good = stack && x && user_regs(t, &u) && !ioctl(t->vcpu_fd, KVM_GET_XSAVE, x);
	if (good) {
		struct kvm_regs regs = t->run->s.regs.regs;
		struct kvm_sregs sregs = t->run->s.regs.sregs;
		struct hcall *hcall = t->hcall;
		struct kx_thread *a = t->area;
		struct kx_call call = a->call;
		uint64_t resume = a->resume, user_rsp = a->user_rsp, saved = a->saved_mask;
		uint32_t slow = a->slow, has_saved = a->has_saved_mask;
		bool gate_call = t->gate_call, at_user = t->at_user;
		uint8_t op = 0;
		memcpy(stack, (uint8_t *)a + KX_AREA_ACTIONS, KX_AREA_SIZE - KX_AREA_ACTIONS);
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
		/* Behind the `out` that made the call that it stands in, as a new vCPU (fork.c). */
		if ((hcall || gate_call) && !guest_read(&op, regs.rip, 1) && op == 0xef)
			regs.rip++;
		sregs.fs.base = t->run->s.regs.sregs.fs.base;
		vcpu_set_regs(t, &regs, &sregs);
		ioctl(t->vcpu_fd, KVM_SET_XSAVE, x);
	}
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
		if (!t->vfork_child && t->pid == pvm.pid && user_regs(t, &u) &&
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
	__atomic_store_n(&batch.state, CALL_WANTED, __ATOMIC_SEQ_CST);
	__atomic_store_n(&update_caller, t, __ATOMIC_SEQ_CST);
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
			return s == CALL_DONE ? 0 : -EIO;
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
		pthread_mutex_unlock(&lock);
		futex_wait(&batch.state, s, LOOK_NS * 10);
		pthread_mutex_lock(&lock);
	}
}

/* Run functions in a thread that stands well, while all others go on. */
static int run_calls(struct job *j, struct relink_call *c, unsigned nr, uint64_t limit)
{
	do {
		uint64_t since = now_ns();
		struct thread *t = stop_all(j, since) ? can_call(j) : NULL;
		if (t && call_start(c, nr, t)) {
			let_go();
			int r = call_wait(t, now_ns() + BEGIN_NS);
			if (r != -EBUSY)
				return r;
		}
		let_go();
		rest(WAIT_FIRST_NS);
	} while (now_ns() < limit);
	return -EBUSY;
}

/* One function, while all others stand. */
static int run_alone(struct job *j, struct relink_call *c)
{
	struct thread *t = can_call(j);
	note(j, j->thread[0], "a place where no hook can be called");
	if (!t || !call_start(c, 1, t))
		return -EBUSY;
	__atomic_store_n(&update_runner, t, __ATOMIC_SEQ_CST);
	open_gate();
	int r = call_wait(t, now_ns() + BEGIN_ALONE_NS);
	__atomic_store_n(&update_runner, NULL, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&runs, 1, __ATOMIC_SEQ_CST);
	/* It may have got into the guest meanwhile. */
	return r ? r : stop_all(j, now_ns()) ? 0 : -EBUSY;
}

/* All stand, nobody is inside: the versions' own part. 0: go on. */
static int run_hooks(struct job *j, const struct relink_hooks *h, uint64_t *state)
{
	struct relink_call prepare = { .fn = h->prepare };
	int r = run_alone(j, &prepare);
	if (r)
		return r;
	if (!(*state = prepare.result))
		return -ECANCELED;
	struct relink_call commit = { .fn = h->commit, .arg = { *state } };
	r = run_alone(j, &commit);
	return r ? r : (int32_t)commit.result ? -ECANCELED : 0;
}

static bool move_register(struct job *j, struct thread *t, uint64_t *at)
{
	uint64_t v = relink_register(j->link, *at);
	if (v == *at)
		return true;
	if (j->nr_moved == j->cap_moved) {
		unsigned cap = j->cap_moved ? 2 * j->cap_moved : 64;
		struct moved *p = realloc(j->moved, cap * sizeof *p);
		if (!p)
			return false;
		j->moved = p;
		j->cap_moved = cap;
	}
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
static void look_ahead(struct job *j)
{
	j->ahead = true;
	if (relink_note(j->link))
		return;
	/* A call that is being answered without an exit has not been noted: it is over when its lock was free. That lock
	 * comes before this one. */
	pthread_mutex_unlock(&lock);
	serve_lock();
	serve_unlock();
	pthread_mutex_lock(&lock);
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
		note(j, NULL, "others are not ready");
		r = -EBUSY;
	}
	if (r) {
		move_registers_back(j);
		relink_undo(j->link);
		j->ahead = false;
	}
	return r;
}

/*
 * One attempt. 0, -EBUSY: somebody is in the way; -EINPROGRESS: nobody is, look_ahead() first; -EAGAIN: prepare again; or
 * what relink_apply() says.
 */
static int attempt(struct job *j)
{
	int r = -EBUSY;
	for (int i = 0; j->noted && i < AGAIN_MAX && relink_again(j->link) > AGAIN_FEW; i++)
		;
	/* It has been busy: on a machine with more to do than it has processors its time may be over, which must not
	 * come while all stand. In a round forks wait. */
	if (j->round)
		nap(NAP_NS);
	else
		rest(NAP_NS);
	short_turns(j);
	uint64_t since = now_ns();
	j->attempts++;
	if (!stop_all(j, since)) {
		for (unsigned i = 0; i < j->nr; i++)
			if (!update_stands(j->thread[i]))
				note(j, j->thread[i], "the guest, and does not come out");
	} else if (relink_looks(j->link) && !j->ahead && is_quiet(j)) {
		r = -EINPROGRESS;
		j->attempts--;
	} else if (is_quiet(j)) {
		struct relink_hooks h = relink_hooks(j->link);
		bool hooks = h.prepare && h.commit;
		uint64_t state = 0;
		r = hooks ? run_hooks(j, &h, &state) : 0;
		if (!r && lock_still(j)) {
			r = apply(j);
			pthread_mutex_unlock(&pvm.thr_lock);
			pthread_mutex_unlock(&pvm.mm_lock);
		} else if (!r) {
			r = -EBUSY;
		}
		if (r && state && h.abort) {
			struct relink_call abort = { .fn = h.abort, .arg = { state } };
			for (int i = 0; i < ABORT_TRIES && run_alone(j, &abort) == -EBUSY; i++) {
				let_go();
				rest(WAIT_FIRST_NS);
				stop_all(j, now_ns());
			}
		}
	}
	let_go();
	uint64_t end = __atomic_load_n(&stopped_until, __ATOMIC_SEQ_CST), pause = 0;
	uint64_t began = __atomic_load_n(&stop_began, __ATOMIC_SEQ_CST), now = now_ns();
	if (began)
		pause = (end ? end : now) - began;
	usual_turns(j);
	j->pause_ns = pause > j->pause_ns ? pause : j->pause_ns;
	return r;
}

/* ---- serving --------------------------------------------------------------------------------------------------------------- */

static void report(struct job *j)
{
	unsigned words, bytes, versions;
	relink_counts(j->link, &words, &bytes, &versions);
	finish(j, 0, "%s: %u bindings, %u bytes of state, %u attempt%s", relink_soname(j->link), words, bytes,
	       j->attempts, j->attempts == 1 ? "" : "s");
}

static void set_patience(struct job *j, uint64_t start, uint64_t timeout)
{
	bool late = (now_ns() - start) * 2 >= timeout;
	j->stop_ns = late ? STOP_LATE_NS : STOP_NS;
	/* Longer with each round, on a machine on which others take longer. */
	uint64_t hold = HOLD_NS * (1 + j->attempts);
	j->hold_ns = late || hold > HOLD_LATE_NS ? HOLD_LATE_NS : hold;
}

static int attempts(struct job *j, uint64_t start, uint64_t timeout)
{
	long wait = WAIT_FIRST_NS;
	int r;
	while (((r = attempt(j)) == -EBUSY || r == -EINPROGRESS) && now_ns() - start < timeout) {
		if (asker_is_gone(j->reply))
			return -EPIPE;
		set_patience(j, start, timeout);
		if (r == -EINPROGRESS) {
			look_ahead(j);
			continue;
		}
		rest(wait);
		wait = wait * 2 < WAIT_MAX_NS ? wait * 2 : WAIT_MAX_NS;
	}
	return r;
}

static int attempts_in_rounds(struct job *j, uint64_t start, uint64_t timeout)
{
	int r;
	do {
		if (relink_looks(j->link) && !j->ahead)
			look_ahead(j);
		j->ahead = true;
		if (!round_begins(j, start + timeout))
			return -EBUSY;
		set_patience(j, start, timeout);
		r = attempt(j);
	} while (r == -EBUSY);
	return r;
}

static void update(struct job *j, int fd)
{
	uint64_t start = now_ns(), timeout = j->q.timeout_ms * 1000000ull;
	int again = 0;
	gmem_warm_end(true); /* the program's calls alone know of it */
	set_patience(j, start, timeout ? timeout : 1);
	if (__atomic_load_n(&batch.state, __ATOMIC_SEQ_CST) == CALL_RUNNING) {
		finish(j, EBUSY, "a function of an earlier version has not returned yet");
		return;
	}
	for (;;) {
		int r = relink_prepare(fd, j->q.flags & UPDATE_RESET ? RELINK_RESET : 0, say_line, j, &j->link);
		if (r) {
			if (r == -EAGAIN && ++again < PREPARE_MAX) {
				rest(WAIT_FIRST_NS);
				continue;
			}
			finish(j, r == -EAGAIN ? EBUSY : -r, "refused");
			return;
		}
		struct relink_call *calls = NULL;
		unsigned nr;
		pending = j->link;
		while (!(j->q.flags & UPDATE_DRY_RUN) && (calls = relink_calls(j->link, &nr)) && nr && !r)
			r = run_calls(j, calls, nr, start + timeout);
		if (!r && !(j->q.flags & UPDATE_DRY_RUN))
			r = calls ? relink_bind(j->link) : -EINVAL;
		if (r == -ETIME) { /* what it uses stays */
			pending = NULL;
			finish(j, ETIMEDOUT, "a constructor of the library does not return");
			return;
		}
		if (r) {
			finish(j, -r, r == -EBUSY ? "no thread is where the library's constructors could run" : "%s",
			       strerror(-r));
			pending = NULL;
			relink_done(j->link, false);
			return;
		}
		if (j->q.flags & UPDATE_DRY_RUN) {
			report(j);
			pending = NULL;
			relink_done(j->link, false);
			return;
		}
		j->ahead = j->noted = false;
		r = j->round ? attempts_in_rounds(j, start, timeout) : attempts(j, start, timeout);
		if (r == -ETIME) {
			pending = NULL;
			finish(j, ETIMEDOUT, "a hook of the library's does not return, nothing is changed");
			return;
		}
		if (!r)
			report(j);
		else if (r == -EBUSY || r == -EINPROGRESS)
			finish(j, ETIMEDOUT, "given up after %u attempts, nothing is changed: %s", j->attempts,
			       j->where);
		else if (r == -EAGAIN && again + 1 >= PREPARE_MAX)
			finish(j, EBUSY, "given up, nothing is changed: the program changes %s (%#llx) all the time",
			       relink_changed(j->link) ? "a word that has to change" : "its list of libraries",
			       (unsigned long long)relink_changed(j->link));
		else if (r == -ECANCELED)
			finish(j, -r, "a hook of the library's refused, nothing is changed");
		else if (r != -EAGAIN)
			finish(j, -r, "nothing is changed: %s", strerror(-r));
		pending = NULL;
		relink_done(j->link, !r);
		if (r != -EAGAIN || ++again >= PREPARE_MAX)
			return;
		rest(WAIT_FIRST_NS);
	}
}

enum { FD_FILE, FD_REPLY, FD_SIGNATURE, FD_ROUND, FD_MAX };

/* The next request, with its two to four descriptors: the file, the reply, the round's page, the new version's
 * signature. False: none is there. */
static bool receive(struct job *j, int fd[FD_MAX])
{
	union {
		struct cmsghdr h;
		char space[CMSG_SPACE(FD_MAX * sizeof(int))];
	} c = { .h = { 0 } };
	struct iovec v = { &j->q, sizeof j->q };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof c };
	int got[FD_MAX] = { -1, -1, -1, -1 };
	unsigned n = 0;
	long r = HC6(SYS_recvmsg, fds[1], &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC, 0, 0, 0);
	if (r < 0)
		return false;
	if (m.msg_controllen >= CMSG_LEN(sizeof(int)) && c.h.cmsg_type == SCM_RIGHTS) {
		n = (unsigned)((c.h.cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(got, CMSG_DATA(&c.h), (n < FD_MAX ? n : FD_MAX) * sizeof(int));
	}
	bool round = j->q.flags & UPDATE_ROUND;
	fd[FD_FILE] = got[0];
	fd[FD_REPLY] = got[1];
	fd[FD_ROUND] = round ? got[2] : -1;
	fd[FD_SIGNATURE] = round ? got[3] : got[2];
	if (!round && got[3] >= 0)
		close(got[3]);
	if (r != sizeof j->q || j->q.magic != UPDATE_MAGIC || got[0] < 0 || got[1] < 0 || (round && got[2] < 0))
		j->q.magic = 0;
	if (j->q.timeout_ms > TIMEOUT_MAX_MS)
		j->q.timeout_ms = TIMEOUT_MAX_MS;
	return true;
}

/* The new version has to pass the policy. What is looked at and mapped from then on is the policy's copy. */
static bool admit(struct job *j, int fd[FD_MAX])
{
	char why[POLICY_WHY];
	int own = admit_on ? admit_update(fd[FD_FILE], fd[FD_SIGNATURE], why) : fd[FD_FILE];
	if (own < 0) {
		finish(j, -own, "nothing is changed: %s", why);
		return false;
	}
	if (own != fd[FD_FILE])
		close(fd[FD_FILE]);
	fd[FD_FILE] = own;
	return true;
}

/* Whoever asks several at once asks the next one when it knows that this one has it. */
static bool take_part(struct job *j, int fd)
{
	int r = j->q.flags & UPDATE_ROUND ? round_map(j, fd) : 0;
	if (r)
		finish(j, -r, "the round's page is refused: %s", strerror(-r));
	else if (j->round)
		round_say(j, UPDATE_TAKEN, "taken");
	return !r;
}

static void serve(void)
{
	static struct job j;
	int fd[FD_MAX];
	for (;;) {
		memset(&j, 0, sizeof j);
		if (!receive(&j, fd))
			return;
		j.reply = fd[FD_REPLY];
		pthread_mutex_lock(&lock);
		if (j.q.magic && asker_is_gone(j.reply))
			kx_log(KX_LOG_INFO, "update", "a request whose asker is gone");
		else if (j.q.magic && j.q.pid != (uint32_t)pvm.pid)
			finish(&j, EAGAIN, "a request for another process");
		else if (j.q.magic && take_part(&j, fd[FD_ROUND]) && admit(&j, fd))
			update(&j, fd[FD_FILE]);
		pthread_mutex_unlock(&lock);
		free(j.moved);
		if (j.round)
			munmap((void *)j.round, ROUND_BYTES);
		for (int i = 0; i < FD_MAX; i++)
			if (fd[i] >= 0)
				close(fd[i]);
	}
}

static void *service(void *arg)
{
	uint64_t mask = ~(SIGBIT(SIGSEGV) | SIGBIT(SIGBUS) | SIGBIT(KICK_SIG));
	/* A table of its own: what it receives is not seen in the program's. Not while a fork has a pipe that it waits for
	 * the end of. */
	pthread_mutex_lock(&lock);
	host_call(SYS_close_range, 0, pvm.fd_limit - 1, CLOSE_RANGE_UNSHARE, 0, 0, 0);
	pthread_mutex_unlock(&lock);
	prctl(PR_SET_NAME, PVM_THREADS "update");
	set_turn(0, TURN_NS, NULL);
	admit_way(POLICY_WAY_LOADER);
	host_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&mask, 0, 8, 0, 0);
	for (;;) {
		close_closed();
		if (__atomic_exchange_n(&poked, 0, __ATOMIC_SEQ_CST))
			serve();
		else
			futex_wait(&poked, 0, 0);
	}
	return arg;
}

bool update_is_poke(const siginfo_t *info)
{
	if (info->si_code != SI_QUEUE || (uint64_t)info->si_value.sival_ptr != UPDATE_MAGIC)
		return false;
	if (my_pid() != pvm.pid) /* a child of vfork: the memory is its parent's */
		return true;
	__atomic_store_n(&poked, 1, __ATOMIC_SEQ_CST);
	futex_wake(&poked);
	return true;
}

bool update_poked(void)
{
	if (!__atomic_load_n(&poked, __ATOMIC_RELAXED) || served_by == pvm.pid || my_pid() != pvm.pid || fds[1] < 0)
		return false;
	/* Its table of descriptors is its own: from here on their numbers must not change. */
	int r = -fd_grow();
	pthread_mutex_lock(&pvm.thr_lock);
	if (!r && served_by != pvm.pid) {
		spare_forbid();
		r = thread_own_start(NULL, STACK, service, NULL);
		if (!r)
			served_by = pvm.pid;
	}
	if (r)
		__atomic_store_n(&poked, 0, __ATOMIC_SEQ_CST);
	pthread_mutex_unlock(&pvm.thr_lock);
	if (r)
		kx_log(KX_LOG_WARN, "update", "no thread for it: %s", strerror(r));
	return true;
}

void update_fd_closed(int fd)
{
	pthread_mutex_lock(&pvm.thr_lock);
	bool has = served_by == pvm.pid;
	if (has)
		__atomic_store_n(&closed, fd, __ATOMIC_SEQ_CST);
	pthread_mutex_unlock(&pvm.thr_lock);
	/* It may be anywhere before its sleep. */
	if (has && !__atomic_exchange_n(&poked, 1, __ATOMIC_SEQ_CST))
		futex_wake(&poked);
}

void update_fork_prepare(void)
{
	pthread_mutex_lock(&lock);
	forks++;
}
void update_fork_done(void) { pthread_mutex_unlock(&lock); }

/* What a parent is preparing its child has as well; unless the child runs a function of it. */
void update_fork_child(void)
{
	update_stop = STOP_NONE;
	for_good = false;
	update_runner = NULL;
	poked = 0;
	closed = -1;
	written_fork_child();
	if (pending && batch.state != CALL_RUNNING)
		relink_done(pending, false);
	pending = NULL;
}
