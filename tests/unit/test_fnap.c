/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Wakes without an exit (abi/kx_fnap.h): LibOS and monitor on both sides, without a VM, in the places of the host's futex in
 * tests/guest/handover. An exit is a call here, and can be counted; then what only a member that lies would do.
 */
#include "../../monitor/core/futex_nap.c"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct kx_frame;
extern int64_t sys_futex(struct kx_thread *t, struct kx_frame *f);

static long futex(void *w, long op, uint32_t v, const void *ts, void *w2, uint32_t v3);
#define FUTEX(w, op, v, ts, w2, v3) futex(w, op, v, ts, w2, v3)
#define MAP_LOW MAP_32BIT
static void *mmap_noted(void *at, size_t len, int prot, int flags, int fd, off_t off);
#define mmap mmap_noted
static pid_t waitpid_noted(pid_t p, int *st, int options);
#define waitpid waitpid_noted
#define main handover
#include "../guest/handover/handover.c"
#undef main
#undef waitpid
#undef mmap

struct pvm pvm;
static struct kx_shared *shared_page = (struct kx_shared *)KX_BOOT_BASE;
static long *exits; /* of all processes */
static __thread struct thread thread;
static __thread struct kx_thread area;
_Thread_local struct thread *self;

/* ---- what both sides need ------------------------------------------------------------------------------------------ */

long host_call(long nr, long a, long b, long c, long d, long e, long f)
{
	long r = syscall(nr, a, b, c, d, e, f);
	return r < 0 ? -errno : r;
}
/* What happens to who is about to nap. */
static enum { NOTHING, DIE, DIE_LONG, STOP, LINGER } in_nap; /* the last but STOP in naps that are not over soon */
static struct stage {
	volatile int naps, go_on;
} * stage; /* of all processes */

static void at_nap(struct kx_fnap *n)
{
	if (in_nap == DIE_LONG || in_nap == LINGER)
		n->until += 3600000000000ull;
	stage->naps = 1;
	if (in_nap == LINGER)
		while (!stage->go_on)
			;
	else
		kill(getpid(), in_nap == STOP ? SIGSTOP : SIGKILL);
	in_nap = NOTHING;
}

long host_call_blocking(long nr, long a, long b, long c, long d, long e, long f)
{
	futex_owed();
	if (in_nap && a >= (long)page()->nap && a < (long)&page()->nap[KX_FNAPS])
		at_nap((struct kx_fnap *)a);
	return host_call(nr, a, b, c, d, e, f);
}
int guest_read(void *dst, uint64_t gva, size_t len)
{
	memcpy(dst, (void *)gva, len);
	return 0;
}
int guest_swap(uint64_t gva, uint32_t *old, uint32_t new)
{
	return __atomic_compare_exchange_n((uint32_t *)gva, old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)
		       ? 0
		       : -EAGAIN;
}
int get_timespec(uint64_t gva, struct timespec *ts, struct timespec **out)
{
	*out = NULL;
	if (gva)
		*ts = *(struct timespec *)gva, *out = ts;
	return 0;
}
bool gmem_query(uint64_t gva, struct gmem_region *out)
{
	(void)gva;
	out->flags = MAP_SHARED;
	return true;
}
int proc_file(const char *name)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%s", name);
	return open(path, O_RDONLY | O_CLOEXEC);
}
void fd_limit_lift(void) {}
void fd_limit_drop(void) {}
int fd_hide(int fd) { return fd; }
bool ipc_is_gone(uint32_t tid)
{
	char path[64], text[512] = "";
	snprintf(path, sizeof path, "/proc/%u/stat", tid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	close(fd);
	const char *p = n > 0 ? strrchr(text, ')') : NULL;
	return !p || p[2] == 'Z' || p[2] == 'X';
}
int procfs_peek(const char *name, char *text, size_t len)
{
	(void)name, (void)text, (void)len;
	return -ENOENT;
}
int family_each(void (*fn)(pid_t pid, void *arg), void *arg)
{
	(void)fn, (void)arg;
	return 0;
}
struct thread *update_caller;
bool update_call_run(struct thread *t)
{
	(void)t;
	return true;
}
bool update_poked(void) { return false; }
bool pipe_poked(void) { return false; }
int uaccess_load32(uint32_t *dst, const void *src)
{
	*dst = *(const volatile uint32_t *)src;
	return 0;
}
int user_read(void *dst, uint64_t src, size_t len)
{
	memcpy(dst, (void *)src, len);
	return 0;
}
void libfile_flush_now(struct kx_thread *t) { (void)t; }
void batch_news(struct kx_thread *t, bool outside) { (void)t, (void)outside; }
void batch_flush(struct kx_thread *t) { (void)t; }
int kt_clock_gettime(int clk, int64_t *sec, int64_t *nsec)
{
	struct timespec ts;
	clock_gettime(clk, &ts);
	*sec = ts.tv_sec;
	*nsec = ts.tv_nsec;
	return 0;
}
extern int64_t hc_futex(struct hcall *c), hc_futex_waitv(struct hcall *c);
extern void futex_hand_learn(struct kx_thread *t);

int64_t hypercall(struct kx_thread *t, uint64_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
		  uint64_t f)
{
	struct hcall h = { .t = self, .nr = nr, .arg = { a, b, c, d, e, f } };
	if (t->hand.since)
		futex_hand_learn(t);
	__atomic_add_fetch(exits, 1, __ATOMIC_RELAXED);
	int64_t r = nr == SYS_futex ? hc_futex(&h) : hc_futex_owed(&h);
	futex_owed();
	return r;
}
/* As libos/core/libos.h has it. */
struct frame {
	uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax, orig_rax;
};
int64_t forward(struct kx_thread *t, struct frame *f)
{
	return hypercall(t, f->orig_rax, f->rdi, f->rsi, f->rdx, f->r10, f->r8, f->r9);
}

/* ---- the program's call ---------------------------------------------------------------------------------------------- */

static void process_begin(void)
{
	pvm.pid = getpid();
	shared_page->pid = (uint32_t)pvm.pid;
	memset(shared_page->futex_waiters, 0, sizeof shared_page->futex_waiters);
}

static long futex(void *w, long op, uint32_t v, const void *ts, void *w2, uint32_t v3)
{
	static pthread_mutex_t begin = PTHREAD_MUTEX_INITIALIZER;
	if (pvm.pid != getpid()) {
		pthread_mutex_lock(&begin);
		if (pvm.pid != getpid())
			process_begin();
		pthread_mutex_unlock(&begin);
	}
	if (thread.tid != gettid()) {
		memset(&area, 0, sizeof area);
		thread = (struct thread){ .area = &area, .tid = gettid() };
		self = &thread;
	}
	struct frame f = { .rdi = (uint64_t)w,
			   .rsi = (uint64_t)op,
			   .rdx = v,
			   .r10 = (uint64_t)ts,
			   .r8 = (uint64_t)w2,
			   .r9 = v3,
			   .orig_rax = SYS_futex };
	int64_t r = sys_futex(&area, (struct kx_frame *)&f);
	if (r < 0)
		errno = (int)-r;
	return r < 0 ? -1 : r;
}

static void *mmap_noted(void *at, size_t len, int prot, int flags, int fd, off_t off)
{
	pthread_mutex_lock(&pvm.mm_lock);
	if (at)
		futex_unmapped();
	void *p = mmap(at, len, prot, flags, fd, off);
	pthread_mutex_unlock(&pvm.mm_lock);
	return p;
}

/* As the monitor of who waits for a child: its end is known to all. */
static pid_t waitpid_noted(pid_t p, int *st, int options)
{
	pid_t r = waitpid(p, st, options);
	if (r > 0 && !WIFSTOPPED(*st))
		__atomic_add_fetch(&page()->ended, 1, __ATOMIC_SEQ_CST);
	return r;
}

/* ---- what is counted, and lies ------------------------------------------------------------------------------------------ */

/*
 * Where others have the CPU now and then a round may be more: the best of some times. Whoever may comes before all others,
 * as his children and threads do: nobody there uses the CPU but in turns of these two.
 */
static bool cheap(void)
{
	const struct sched_param first = { 1 }, usual = { 0 };
	fresh();
	sched_setscheduler(0, SCHED_FIFO, &first);
	beside(TRAIN, 0);
	long before = *exits;
	bool good = true;
	for (int n = 0; n < 20 && good && (!n || *exits - before >= ROUNDS * 5 / 2); n++) {
		before = *exits;
		fresh();
		good = beside(ROUNDS, 0);
	}
	sched_setscheduler(0, SCHED_OTHER, &usual);
	printf("# %s: %.2f calls of the monitor for each round\n", private ? "threads" : "processes",
	       (double)(*exits - before) / ROUNDS);
	return good && *exits - before < ROUNDS * 5 / 2;
}

/* A child that has waited to and fro, and then naps as `how` says, until the word is 1000. */
static pid_t napper(int how)
{
	fresh();
	stage->naps = stage->go_on = 0;
	/* Who was killed while he waited stays counted, and his nap is not over yet. */
	memset(page()->waiters, 0, sizeof page()->waiters);
	memset(page()->nap, 0, sizeof page()->nap);
	pid_t p = FORK({
		NEED(rounds(0, TRAIN, 0));
		uint64_t key[3];
		while (!key_of((uint64_t)s->word[1], false, key))
			ms(1);
		in_nap = how;
		thread.woken_ns = 1;
		NEED(take(s->word[1], 1000, 0));
	});
	if (!rounds(1, TRAIN, 0))
		return -1;
	area.hand.sure = 3; /* whatever else had this CPU: the next wake may wait for an exit */
	area.hand.owed = 0;
	while (!stage->naps)
		;
	return p;
}

static void windows(void)
{
	pid_t p = napper(DIE_LONG);
	check(WIFSIGNALED(status_of(p)) && give(s->word[1], 1000) == 0,
	      "killed in a nap, and that is known: nobody is woken");

	p = napper(DIE_LONG);
	pid_t q = FORK(NEED(take(s->word[1], 1000, 0)));
	asleep(q, q);
	check(give(s->word[1], 1000) == 1 && fine(q), "killed in a nap: the other one is woken");
	status_of(p);

	p = napper(DIE);
	waitpid(p, NULL, 0);
	ms(5);
	check(give(s->word[1], 1000) == 0, "killed in a nap some time ago, and nobody knows");

	p = napper(STOP);
	ms(5);
	check(give(s->word[1], 1000) == 1 && fx(s->word[1], FUTEX_WAKE, 1, NULL) == 0, "stopped in a nap: woken, once");
	kill(p, SIGCONT);
	check(fine(p), "and goes on later");

	p = napper(LINGER);
	long before = *exits;
	bool good = give(s->word[1], 1000) == 1;
	check(good && *exits == before, "woken without an exit");
	stage->go_on = 1;
	check(fine(p), "and goes on although no exit has followed");

	p = napper(LINGER);
	struct area *usual = s, copy = *s;
	int fd = memfd_create("others", MFD_CLOEXEC);
	s = mmap_noted(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	good = !ftruncate(fd, 4096) && mremap(usual, 0, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, s) == s;
	good = good && mmap_noted(usual, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == usual;
	*usual = copy;
	good = good && FUTEX(usual->word[1], FUTEX_WAKE, 1, NULL, NULL, 0) == 0;
	stage->go_on = 1;
	asleep(p, p); /* his nap is over, and he waits as anybody does */
	good = good && waitpid(p, NULL, WNOHANG) == 0 && give(s->word[1], 1000) == 1;
	check(fine(p) && good, "other memory at the address of the word: nobody is woken by that");
	mmap_noted(usual, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_ANONYMOUS, -1, 0);
	s = usual;
}

/* Somebody writes into all naps all the time: waits may end for nothing, none may last for ever. */
static bool spoilt(void)
{
	fresh();
	pid_t p = FORK({
		for (unsigned i = 0;; i++)
			__atomic_add_fetch(&page()->nap[i % KX_FNAPS].word, i * 0x9e3779b97f4a7c15ull,
					   __ATOMIC_SEQ_CST);
	});
	bool good = beside(ROUNDS, 200);
	kill(p, SIGKILL);
	return WIFSIGNALED(status_of(p)) && good;
}

int main(int argc, char **argv)
{
	const int fixed = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
	cpu_set_t all, one;
	pvm.mm_lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
	pvm.shared = mmap(shared_page, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | (fixed & ~MAP_SHARED), -1, 0);
	if (pvm.shared != shared_page || mmap((void *)KX_FUTEX_BASE, sizeof(struct kx_futexes), PROT_READ | PROT_WRITE,
					      fixed, -1, 0) != (void *)KX_FUTEX_BASE) {
		printf("Bail out! its addresses are taken\n");
		return 1;
	}
	exits = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	stage = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct area *own = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	struct area *all_of = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	cpus_read(&all, &one);
	/* First of all: who is killed while he waits stays counted, and is an exit for each wake. */
	page()->cpus = 1;
	sched_setaffinity(0, sizeof one, &one);
	s = all_of;
	check(cheap(), "processes: one CPU, a round is two exits");
	s = own;
	private = FUTEX_PRIVATE_FLAG;
	check(cheap(), "threads: one CPU, a round is two exits");
	sched_setaffinity(0, sizeof all, &all);
	page()->cpus = (uint32_t)CPU_COUNT(&all);
	handover(argc, argv);
	s = all_of;
	private = 0;
	windows();
	memset(page()->waiters, 0, sizeof page()->waiters);
	check(spoilt(), "processes: naps are written to by somebody");
	return verdict();
}
