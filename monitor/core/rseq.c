/* SPDX-License-Identifier: Apache-2.0 */
#include "rseq.h"
#include <emmintrin.h>
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include "../../util/now.h"
#include "../../util/together.h"
#include "hcall.h"
#include "sig.h"

#define SEATS_MAX CPU_SETSIZE
#define SLICE_NS 3000000 /* as long as this a thread may keep a seat in the guest while others wait */
/* seat.word: 0 = free, else the thread's index + 1, and: */
#define SEAT_RUN 0x80000000u    /* it is in the guest, or about to be */
#define SEAT_KICKED 0x40000000u /* and has been or is being sent the signal that brings it out */
#define SEAT_OWNER 0x3fffffffu

/*
 * The holder alone sets and clears SEAT_RUN, without the lock; without it anybody who has the lock may take the seat.
 * The rest is under the lock.
 */
struct seat {
	uint32_t word;
	uint32_t runs;    /* counted up at each exit from the guest */
	struct thread *t; /* valid while word is not 0 */
	uint64_t since;   /* ns: when t got it */
	uint32_t cid;     /* mm_cid: as the CPU number, but the lowest that is free */
};

static struct seat seats[SEATS_MAX];
static KX_TOGETHER int seats_end; /* none of those behind it was ever taken */
static KX_TOGETHER uint64_t cids[SEATS_MAX / 64];
static KX_TOGETHER pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static KX_TOGETHER struct thread *waiting, **waiting_end = &waiting;
static KX_TOGETHER int nr_waiting;
static uint32_t affinity_gen;
static char kick_cookie;

static uint32_t name_of(const struct thread *t) { return (uint32_t)t->index + 1; }

static bool swap_word(struct seat *s, uint32_t old, uint32_t new)
{
	return __atomic_compare_exchange_n(&s->word, &old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void must_restart(struct thread *t) { __atomic_or_fetch(&t->area->work, KX_WORK_RSEQ, __ATOMIC_RELEASE); }

/* ---- switching on ----------------------------------------------------------------------------------------------- */

void rseq_switch_on(void)
{
	cpu_set_t all;
	if (pvm.rseq_on || host_call(SYS_sched_getaffinity, 0, sizeof all, (long)&all, 0, 0, 0) < 0)
		return; /* more CPUs than there are seats */
	__atomic_store_n(&pvm.rseq_on, true, __ATOMIC_SEQ_CST);
	pvm.shared->rseq_on = 1;
}

/* The signature as data, and not as libc has it: mov $0x53053053, %r10d before its own rseq(2). */
static bool is_abort_handler(const uint8_t *text, size_t at)
{
	const uint32_t sig = KX_RSEQ_SIG;
	return !memcmp(text + at, &sig, 4) && !(at >= 2 && text[at - 2] == 0x41 && text[at - 1] == 0xba);
}

bool rseq_text(const uint8_t *text, size_t len)
{
	const __m128i first = _mm_set1_epi8(KX_RSEQ_SIG & 0xff), second = _mm_set1_epi8(KX_RSEQ_SIG >> 8 & 0xff);
	size_t i = 0;
	if (len < 4)
		return false;
	for (; i + 20 <= len; i += 16) {
		__m128i a = _mm_loadu_si128((const __m128i *)(text + i));
		__m128i b = _mm_loadu_si128((const __m128i *)(text + i + 1));
		unsigned m = _mm_movemask_epi8(_mm_and_si128(_mm_cmpeq_epi8(a, first), _mm_cmpeq_epi8(b, second)));
		for (; m; m &= m - 1)
			if (is_abort_handler(text, i + __builtin_ctz(m)))
				return true;
	}
	for (; i + 4 <= len; i++)
		if (is_abort_handler(text, i))
			return true;
	return false;
}

/* The LibOS has registered or unregistered: rseq_enter() sees to the rest. */
int64_t hc_rseq(struct hcall *c)
{
	if (!(c->arg[2] & 1)) /* a signature of its own comes without warning */
		rseq_switch_on();
	return pvm.rseq_on ? 0 : -ENOSYS;
}

/* ---- giving and taking; under the lock --------------------------------------------------------------------------- */

static bool allowed(const struct thread *t, int cpu) { return t->seat_cpus[cpu / 64] >> (cpu % 64) & 1; }

static void seated(struct thread *t, struct seat *s)
{
	s->t = t;
	s->since = now_ns();
	t->seat = s - seats + 1;
	t->area->cpu = s - seats;
	t->area->mm_cid = s->cid;
}

static uint32_t cid_take(void)
{
	for (unsigned i = 0; i < SEATS_MAX / 64; i++)
		if (~cids[i]) {
			unsigned b = __builtin_ctzll(~cids[i]);
			cids[i] |= 1ull << b;
			return i * 64 + b;
		}
	return 0;
}

/* Take a seat that nobody has, or that of a thread outside the guest. */
static bool try_take(struct thread *t, int cpu, bool rob)
{
	struct seat *s = &seats[cpu];
	uint32_t old = __atomic_load_n(&s->word, __ATOMIC_RELAXED);
	if (!allowed(t, cpu) || (old & SEAT_RUN) || (old && !rob) || !swap_word(s, old, name_of(t) | SEAT_RUN))
		return false;
	seats_end = cpu < seats_end ? seats_end : cpu + 1;
	if (!old)
		s->cid = cid_take();
	seated(t, s);
	return true;
}

static bool take_any(struct thread *t, int preferred)
{
	for (int rob = 0; rob < 2; rob++) {
		if (preferred >= 0 && preferred < SEATS_MAX && try_take(t, preferred, rob))
			return true;
		for (int i = 0; i < SEATS_MAX; i++) {
			if (!t->seat_cpus[i / 64])
				i |= 63;
			else if (try_take(t, i, rob))
				return true;
		}
	}
	return false;
}

static void queue_remove(struct thread *t)
{
	for (struct thread **p = &waiting; *p; p = &(*p)->seat_next)
		if (*p == t) {
			*p = t->seat_next;
			if (!*p)
				waiting_end = p;
			__atomic_sub_fetch(&nr_waiting, 1, __ATOMIC_RELAXED);
			return;
		}
}

/* The holder is out of the guest and gives its seat up: to who waits longest, if anybody. */
static void give(struct seat *s)
{
	for (struct thread *w = waiting; w; w = w->seat_next) {
		if (!allowed(w, s - seats))
			continue;
		queue_remove(w);
		__atomic_store_n(&s->word, name_of(w) | SEAT_RUN, __ATOMIC_SEQ_CST);
		seated(w, s);
		__atomic_store_n(&w->seat_given, 1, __ATOMIC_SEQ_CST);
		host_call(SYS_futex, (long)&w->seat_given, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
		return;
	}
	cids[s->cid / 64] &= ~(1ull << (s->cid % 64));
	__atomic_store_n(&s->word, 0, __ATOMIC_SEQ_CST);
}

static void give_up(struct thread *t)
{
	struct seat *s = &seats[t->seat - 1];
	t->seat = 0;
	/* Marked as running so that nobody robs it meanwhile; robbed already, it is no longer ours. */
	if (swap_word(s, name_of(t), name_of(t) | SEAT_RUN))
		give(s);
}

/* Bring the holder out of the guest. It waits for the signal when it sees the mark, so that none arrives later, in a
 * host call. */
static void kick(struct seat *s)
{
	uint32_t w = __atomic_load_n(&s->word, __ATOMIC_SEQ_CST);
	if (!(w & SEAT_RUN) || (w & SEAT_KICKED) || !swap_word(s, w, w | SEAT_KICKED))
		return;
	siginfo_t info;
	memset(&info, 0, sizeof info);
	info.si_signo = KICK_SIG;
	info.si_code = SI_QUEUE;
	info.si_pid = pvm.pid;
	info.si_value.sival_ptr = &kick_cookie;
	/* The queue of signals may be full: then it was not kicked, and does not wait for it if it has seen the mark. */
	if (host_call(SYS_rt_tgsigqueueinfo, pvm.pid, s->t->tid, KICK_SIG, (long)&info, 0, 0) < 0 &&
	    !swap_word(s, w | SEAT_KICKED, w))
		s->t->seat_kicked = 1;
}

bool rseq_is_kick(const siginfo_t *info) { return info->si_value.sival_ptr == &kick_cookie; }

static void kick_oldest(const struct thread *t)
{
	struct seat *oldest = NULL;
	uint64_t now = now_ns();
	for (int i = 0; i < SEATS_MAX; i++) {
		struct seat *s = &seats[i];
		uint32_t w = __atomic_load_n(&s->word, __ATOMIC_RELAXED);
		if (allowed(t, i) && (w & SEAT_RUN) && !(w & SEAT_KICKED) && now - s->since >= SLICE_NS &&
		    (!oldest || s->since < oldest->since))
			oldest = s;
	}
	if (oldest)
		kick(oldest);
}

/* ---- a thread's way ------------------------------------------------------------------------------------------------ */

static void cpus_read(struct thread *t)
{
	memset(t->seat_cpus, 0, sizeof t->seat_cpus);
	t->seat_gen = __atomic_load_n(&affinity_gen, __ATOMIC_SEQ_CST);
	host_call(SYS_sched_getaffinity, 0, sizeof t->seat_cpus, (long)t->seat_cpus, 0, 0, 0);
}

static void take(struct thread *t)
{
	static const struct timespec slice = { 0, SLICE_NS };
	unsigned cpu = 0;
	getcpu(&cpu, NULL);
	pthread_mutex_lock(&lock);
	cpus_read(t);
	if (t->seat) { /* robbed, or the affinity has changed */
		struct seat *s = &seats[t->seat - 1];
		if (allowed(t, t->seat - 1) && swap_word(s, name_of(t), name_of(t) | SEAT_RUN)) {
			pthread_mutex_unlock(&lock);
			return;
		}
		give_up(t);
	}
	must_restart(t);
	if (take_any(t, (int)cpu)) {
		pthread_mutex_unlock(&lock);
		return;
	}
	t->seat_given = 0;
	t->seat_next = NULL;
	*waiting_end = t;
	waiting_end = &t->seat_next;
	__atomic_add_fetch(&nr_waiting, 1, __ATOMIC_RELAXED);
	while (!t->seat_given) {
		kick_oldest(t);
		pthread_mutex_unlock(&lock);
		host_call(SYS_futex, (long)&t->seat_given, FUTEX_WAIT_PRIVATE, 0, (long)&slice, 0, 0);
		pthread_mutex_lock(&lock);
		if (t->seat_given)
			break;
		cpus_read(t);
		if (take_any(t, -1)) {
			queue_remove(t);
			break;
		}
	}
	pthread_mutex_unlock(&lock);
}

void rseq_enter(struct thread *t)
{
	if (!__atomic_load_n(&pvm.rseq_on, __ATOMIC_RELAXED))
		return;
	if (!t->area->rseq || my_pid() != pvm.pid) { /* a child of vfork has no registration, as on Linux */
		if (t->seat)
			rseq_release(t);
		return;
	}
	if (!t->seat || t->seat_gen != __atomic_load_n(&affinity_gen, __ATOMIC_RELAXED) ||
	    !swap_word(&seats[t->seat - 1], name_of(t), name_of(t) | SEAT_RUN))
		take(t);
	t->seat_run = true;
	/* After SEAT_RUN is set: rseq_fence() asks first and looks for it then. */
	if (__atomic_load_n(&t->seat_restart, __ATOMIC_SEQ_CST) &&
	    __atomic_exchange_n(&t->seat_restart, 0, __ATOMIC_SEQ_CST))
		must_restart(t);
}

void rseq_leave(struct thread *t)
{
	if (!t->seat_run)
		return;
	struct seat *s = &seats[t->seat - 1];
	t->seat_run = false;
	__atomic_add_fetch(&s->runs, 1, __ATOMIC_SEQ_CST);
	if (!(__atomic_exchange_n(&s->word, name_of(t), __ATOMIC_SEQ_CST) & SEAT_KICKED))
		return;
	while (!t->seat_kicked)
		sched_yield();
	t->seat_kicked = 0;
	if (__atomic_load_n(&nr_waiting, __ATOMIC_RELAXED))
		rseq_release(t);
}

void rseq_idle(struct thread *t)
{
	if (t->seat && __atomic_load_n(&nr_waiting, __ATOMIC_RELAXED))
		rseq_release(t);
}

void rseq_release(struct thread *t)
{
	if (!t->seat)
		return;
	pthread_mutex_lock(&lock);
	give_up(t);
	pthread_mutex_unlock(&lock);
}

void rseq_fork_child(struct thread *t)
{
	pthread_mutex_init(&lock, NULL);
	memset(seats, 0, (unsigned)seats_end * sizeof seats[0]);
	seats_end = 0;
	memset(cids, 0, sizeof cids);
	waiting = NULL;
	waiting_end = &waiting;
	nr_waiting = 0;
	t->seat = 0;
	t->seat_restart = 0;
}

void rseq_affinity_changed(void)
{
	if (!pvm.rseq_on)
		return;
	pthread_mutex_lock(&lock);
	__atomic_add_fetch(&affinity_gen, 1, __ATOMIC_SEQ_CST);
	for (int i = 0; i < SEATS_MAX; i++)
		kick(&seats[i]);
	pthread_mutex_unlock(&lock);
}

void rseq_fence(int cpu)
{
	uint32_t runs[SEATS_MAX], word[SEATS_MAX];
	if (!pvm.rseq_on || cpu >= SEATS_MAX) /* the kernel takes any number */
		return;
	int first = cpu < 0 ? 0 : cpu, end = cpu < 0 ? SEATS_MAX : cpu + 1;
	pthread_mutex_lock(&lock);
	for (int i = first; i < end && i < SEATS_MAX; i++) {
		struct seat *s = &seats[i];
		runs[i] = __atomic_load_n(&s->runs, __ATOMIC_SEQ_CST);
		word[i] = __atomic_load_n(&s->word, __ATOMIC_SEQ_CST);
		if (!word[i])
			continue;
		__atomic_store_n(&s->t->seat_restart, 1, __ATOMIC_SEQ_CST);
		kick(s);
	}
	pthread_mutex_unlock(&lock);
	for (int i = first; i < end && i < SEATS_MAX; i++)
		for (int n = 1; word[i] && (__atomic_load_n(&seats[i].word, __ATOMIC_SEQ_CST) & SEAT_RUN) &&
				__atomic_load_n(&seats[i].runs, __ATOMIC_SEQ_CST) == runs[i];
		     n++) {
			sched_yield();
			if (n % 64)
				continue;
			pthread_mutex_lock(&lock); /* if it could not be kicked before */
			kick(&seats[i]);
			pthread_mutex_unlock(&lock);
		}
}
