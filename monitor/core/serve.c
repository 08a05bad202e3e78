/* SPDX-License-Identifier: Apache-2.0 */
#include "batch.h"
#include "dgram.h"
#include "pipe.h"
#include "serve.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include "../../abi/kx_serve.h"
#include "../../util/log.h"
#include "../../util/now.h"
#include "../../util/together.h"
#include "admit.h"
#include "gmem.h"
#include "gmem_warm.h"
#include "keeper.h"
#include "libfile.h"
#include "sig.h"
#include "sizes.h"
#include "spare.h"
#include "strace.h"
#include "thread.h"
#include "written.h"

#define SERVE_STACK (256 << 10)
#define US 1000ull
#define MS 1000000ull
#define TAKE_NS (10 * US)        /* a running service thread takes a request in less than one */
#define TAKE_FORCED_NS (50 * US) /* with --io poll */
#define WAIT_NS (400 * US)       /* a guest thread spins for an answer */
#define STOLEN_NS (40 * US)      /* between two looks at the slot: it was not running */
#define WINDOW 8                 /* exits that tell how busy the process is */
#define WORTH 8                  /* calls that make waking worth while */
#define BACKOFF_MIN (2 * MS)     /* after a failure; doubled up to */
#define BACKOFF_MAX (2000 * MS)
#define DATA_MAX (256u << 10) /* bytes at once: more may take long, and an exit matters less */
#define PIPE_ATOMIC 4096
#define PATIENCE 8
#define PROBE 64

static KX_TOGETHER pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER, work = PTHREAD_MUTEX_INITIALIZER;
static struct kx_thread no_area;
static struct thread svc = { .area = &no_area, .vcpu_fd = -1, .sig_stop = SIG_STOP_NEVER };
static const uint8_t served[KX_SERVE_CALLS] = { KX_SERVED };

static KX_TOGETHER struct {
	pthread_t thread;
	bool running, forbidden; /* gate */
	int quit, asleep, wake;  /* wake counts; a futex */
	bool near_limit;         /* of descriptors: what makes some is left to exits */
	int cpus, load_fd;       /* processors that it may use; /proc/loadavg, -1 = says nothing */
	uint64_t cheapest;       /* ns between two exits at least, thus what one costs at most */
	uint64_t backoff, not_before;
	uint64_t mask; /* signals that the thread blocks whose call is answered */
	int patience;  /* waits of late that were not in vain */
	unsigned impatient;
} serve = { .load_fd = -1, .cheapest = 1000 * US, .patience = PATIENCE };

/* Of the calling thread. */
static __thread uint64_t last_end, window_start;
static __thread unsigned window;

static struct kx_serve *shared(void) { return gva_ptr(KX_SERVE_BASE); }

static uint64_t ticks(uint64_t ns)
{
	uint64_t mult = pvm.vvar->mult;
	return mult ? (ns << 32) / mult : ns * 3;
}

static uint64_t clamp(uint64_t v, uint64_t lo, uint64_t hi) { return v < lo ? lo : v > hi ? hi : v; }
static uint64_t exit_ns(void) { return clamp(__atomic_load_n(&serve.cheapest, __ATOMIC_RELAXED), 2 * US, 200 * US); }

/* ---- serving one call ------------------------------------------------------------------------------------------- */

static bool nonblocking(int fd)
{
	long fl = HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0);
	return fl >= 0 && fl & O_NONBLOCK;
}

/* What a handler says that could not sleep: an answer only where the program wants no sleep either. */
static bool may_answer(int64_t r, int fd) { return r != -EAGAIN || nonblocking(fd); }

static bool is_write(uint64_t nr) { return nr == SYS_write || nr == SYS_pwrite64 || nr == SYS_writev; }

static bool is_plain_device(const struct stat *st)
{
	static const unsigned minors[] = { 3 /* null */, 5 /* zero */, 7 /* full */ };
	for (unsigned i = 0; i < sizeof minors / sizeof minors[0]; i++)
		if (S_ISCHR(st->st_mode) && st->st_rdev == makedev(1, minors[i]))
			return true;
	return false;
}

/* read, write and relations. A device may do anything, signalfd is the calling thread's, a pipe takes no part of an
 * atomic write, and a stream socket must take all of what a program waits for: such calls are left to an exit. */
static bool serve_data(struct hcall *c, int64_t *r)
{
	struct iovec one = { (void *)c->host[1], c->arg[2] }, *v = c->iov ? c->iov : &one;
	unsigned n = c->iov ? (uint32_t)c->arg[2] : 1;
	int fd = (int)c->arg[0];
	struct stat st;
	uint64_t bytes = 0;
	for (unsigned i = 0; i < n; i++)
		if (v[i].iov_len > DATA_MAX || (bytes += v[i].iov_len) > DATA_MAX)
			return false;
	if (!bytes || fstat(fd, &st))
		return false;
	if (S_ISREG(st.st_mode) || is_plain_device(&st)) {
		*r = HC6(c->nr, c->host[0], c->host[1], c->host[2], c->host[3], c->host[4], c->host[5]);
		return true;
	}
	if (c->nr == SYS_pread64 || c->nr == SYS_pwrite64)
		return false;
	if (S_ISSOCK(st.st_mode)) {
		struct msghdr m = { .msg_iov = v, .msg_iovlen = n };
		if (is_write(c->nr) && !nonblocking(fd))
			return false;
		*r = HC6(is_write(c->nr) ? SYS_sendmsg : SYS_recvmsg, fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0, 0);
		return may_answer(*r, fd);
	}
	if (!S_ISFIFO(st.st_mode) || (is_write(c->nr) && bytes > PIPE_ATOMIC))
		return false;
	*r = HC6(is_write(c->nr) ? SYS_pwritev2 : SYS_preadv2, fd, v, n, -1, -1, RWF_NOWAIT);
	return *r != -EOPNOTSUPP && may_answer(*r, fd);
}

/* send, receive: handlers make the call where the socket or its flags forbid sleep, and say EINTR where not. */
static bool serve_msg(struct hcall *c, int64_t *r)
{
	if (c->nr == SYS_recvfrom && !((int)c->arg[3] & MSG_WAITALL)) {
		bool wants = (int)c->arg[3] & MSG_DONTWAIT;
		c->arg[3] |= MSG_DONTWAIT;
		*r = hc_fn(c->row)(c);
		return wants || may_answer(*r, (int)c->arg[0]);
	}
	*r = hc_fn(c->row)(c);
	return true;
}

/*
 * An event that comes within the time of two exits is waited for, asleep: the processor is free for whoever makes it.
 * Where waiting was in vain time and again it is left, but for a try now and then.
 */
static bool worth_waiting(void) { return serve.patience > 0 || !(++serve.impatient % PROBE); }

static bool serve_ready(struct hcall *c, int64_t *r)
{
	int i = c->nr == SYS_poll ? 2 : 3;
	int64_t ms = (int)c->arg[i];
	/* A signalfd is as ready as the signals of the thread that looks; it goes with blocked signals. */
	if ((c->nr == SYS_epoll_pwait && c->arg[4]) || serve.mask)
		return false;
	c->arg[i] = 0;
	*r = hc_fn(c->row)(c);
	if (*r || !ms)
		return true;
	if (c->nr == SYS_poll || !worth_waiting())
		return false;
	uint64_t ns = 2 * exit_ns();
	if (ms > 0 && ns > (uint64_t)ms * MS)
		ns = (uint64_t)ms * MS;
	struct pollfd p = { .fd = (int)c->arg[0], .events = POLLIN };
	struct timespec ts = { 0, (long)ns };
	if (!serve.quit && HC6(SYS_ppoll, &p, 1, &ts, 0, 8, 0) > 0)
		*r = hc_fn(c->row)(c);
	serve.patience = *r ? serve.patience + (serve.patience < PATIENCE) : serve.patience - (serve.patience > 0);
	return *r != 0;
}

static bool lingers(int fd)
{
	struct linger l = { 1, 0 };
	socklen_t len = sizeof l;
	return HC6(SYS_getsockopt, fd, SOL_SOCKET, SO_LINGER, &l, &len, 0) || l.l_onoff;
}

static bool serve_close(struct hcall *c, int64_t *r)
{
	int fd = (int)c->arg[0];
	struct stat st;
	if (fstat(fd, &st) || !(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode) || (S_ISSOCK(st.st_mode) && !lingers(fd))))
		return false;
	*r = hc_fn(c->row)(c);
	return true;
}

static bool serve_file(struct hcall *c, int64_t *r)
{
	struct stat st;
	if (c->arg[3] > DATA_MAX || fstat((int)c->arg[0], &st) || !S_ISSOCK(st.st_mode) ||
	    !nonblocking((int)c->arg[0]) || fstat((int)c->arg[1], &st) || !S_ISREG(st.st_mode))
		return false;
	*r = HC6(c->nr, c->host[0], c->host[1], c->host[2], c->host[3], 0, 0);
	return true;
}

static bool arguments_allow(const struct hcall *c)
{
	switch (c->nr) {
	case SYS_mmap:
		return !((int)c->arg[2] & PROT_EXEC) && !((int)c->arg[3] & (MAP_POPULATE | MAP_LOCKED));
	case SYS_mprotect:
		return !((int)c->arg[2] & PROT_EXEC);
	case SYS_madvise:
		return (int)c->arg[2] <= MADV_DOFORK;
	case SYS_getrusage:
		return (int)c->arg[0] != RUSAGE_THREAD;
	case SYS_futex: {
		int op = (int)c->arg[1] & FUTEX_CMD_MASK;
		return op == FUTEX_WAKE || op == FUTEX_WAKE_BITSET;
	}
	case SYS_ioctl:
		return (unsigned)c->arg[1] == FIONBIO || (unsigned)c->arg[1] == FIONREAD;
	case SYS_fcntl:
		switch ((int)c->arg[1]) {
		case F_GETFD:
		case F_SETFD:
		case F_GETFL:
		case F_SETFL:
		case F_SETLK:
		case F_GETLK:
			return true;
		}
		return false;
	}
	return true;
}

static bool makes_descriptors(uint64_t nr)
{
	return nr == SYS_open || nr == SYS_openat || nr == SYS_recvmsg || nr == SYS_recvmmsg || nr == SYS_socket ||
	       nr == SYS_accept || nr == SYS_accept4;
}

/* Signals that a call had sent to the thread that made it. */
static void drop_own_signals(void)
{
	uint64_t set = SIGBIT(SIGPIPE) | SIGBIT(SIGXFSZ);
	struct timespec zero = { 0, 0 };
	while (HC6(SYS_rt_sigtimedwait, &set, 0, &zero, 8, 0, 0) > 0)
		;
}

static bool perform(struct hcall *c, int64_t *r)
{
	bool good = true;
	*r = hcall_check(c);
	for (int i = 0; i < 6; i++)
		if (c->proc[i]) /* /proc knows its reader */
			return false;
	if (*r || dgram_enter(c, r) || batch_answer(c, r))
		return true;
	hc_handler fn = pipe_handler(c, r);
	if (!fn)
		return true;
	if (fn != hc_fn(c->row)) /* a pipe in shared memory: whoever comes here with one wants to sleep */
		return false;
	switch (served[c->nr]) {
	case KX_SERVE_DATA:
		good = serve_data(c, r);
		break;
	case KX_SERVE_MSG:
		good = serve_msg(c, r);
		break;
	case KX_SERVE_READY:
		good = serve_ready(c, r);
		break;
	case KX_SERVE_CLOSE:
		good = serve_close(c, r);
		break;
	case KX_SERVE_FILE:
		good = serve_file(c, r);
		break;
	default:
		*r = hc_fn(c->row)(c);
	}
	if (*r == -EPIPE || *r == -EFBIG) { /* with a signal for the caller */
		drop_own_signals();
		return false;
	}
	bool interrupted = *r == -EINTR || *r == KX_NORESTART_EINTR ||
			   (*r <= -KX_ERESTART && *r >= -KX_ERESTART_NOHAND);
	return good && !interrupted;
}

/* False: nothing has been done that an exit would not do again. What batch_enter() settles is settled then, too. */
static bool answer(struct hcall *c, int64_t *r)
{
	c->row = hc_row_find(c->nr);
	if (c->nr >= KX_SERVE_CALLS || !served[c->nr] || !c->row || !arguments_allow(c) ||
	    (serve.near_limit && makes_descriptors(c->nr)) || !batch_may_serve(c) || !dgram_may_serve(c))
		return false;
	libfile_settle(c->nr, c->arg);
	written_mark_call(c->nr, c->arg);
	pipe_before_wait(c->nr);
	if (batch_enter(c, r))
		return true;
	bool sizes = sizes_before(c), done = perform(c, r);
	if (sizes)
		sizes_after();
	if (!done)
		return false;
	dgram_leave(c, *r);
	batch_leave(c, *r);
	return true;
}

/* A request: a thread's index, and no flag yet. */
static bool is_request(uint64_t v)
{
	return (v & KX_SLOT_INDEX) && (v & KX_SLOT_INDEX) <= KX_AREA_MAX && !(v & KX_SLOT_FLAGS);
}

/*
 * The call is copied before it is taken, while its owner waits, and it is not changed until it has been: if the slot is
 * still the same, so is the call. A guest that does otherwise gets some call of its own making, checked as any.
 */
static void serve_one(struct kx_serve *s, uint64_t v)
{
	uint64_t index = (v & KX_SLOT_INDEX) - 1;
	if (!gmem_area_is_open(index)) /* no thread's */
		return;
	svc.area_gva = KX_AREA_BASE + index * KX_AREA_SIZE; /* the caller's registers are there, too */
	struct kx_thread *area = gva_ptr(svc.area_gva);
	struct kx_call call;
	int64_t r = 0;
	memcpy(&call, &area->call, sizeof call);
	svc.tid = (pid_t)area->tid; /* for the trace alone */
	svc.index = (int)index;
	serve.mask = area->sigmask;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	uint64_t was = v;
	if (!__atomic_compare_exchange_n(&s->slot, &was, v | KX_SLOT_TAKEN, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return;
	struct hcall c = { .t = &svc, .nr = call.nr };
	memcpy(c.arg, call.arg, sizeof c.arg);
	bool done = answer(&c, &r);
	if (done) {
		pipe_after(&c, r);
		pvm.nr_polled++;
		__atomic_add_fetch(&pvm.hcall_count[call.nr], 1, __ATOMIC_RELAXED);
		if (pvm.cfg->strace)
			strace_call(&svc, c.row, call.nr, call.arg, r, KX_PATH_POLL, 0);
	}
	hcall_look_at_parent(c.nr);
	s->ret = r;
	was = __atomic_exchange_n(&s->slot, v | (done ? KX_SLOT_DONE : KX_SLOT_EXIT), __ATOMIC_SEQ_CST);
	if (was & KX_SLOT_SLEEPS)
		host_call(SYS_futex, (long)&s->slot, FUTEX_WAKE, 1, 0, 0, 0);
}

int64_t hc_serve_wait(struct hcall *c)
{
	struct timespec ts = { 0, 5000000 };
	uint64_t *slot = &shared()->slot, v = __atomic_load_n(slot, __ATOMIC_SEQ_CST);
	(void)c;
	if (v & KX_SLOT_SLEEPS)
		HB6(SYS_futex, slot, FUTEX_WAIT, (uint32_t)v, &ts, 0, 0);
	return 0;
}

/* ---- the service thread ------------------------------------------------------------------------------------------- */

static bool forced(void) { return pvm.cfg->io == KX_IO_POLL; }

/* Threads that run on this machine or wait to, this one included, are no more than its processors. */
static bool machine_has_room(void)
{
	char text[64];
	int running = 0;
	if (serve.load_fd < 0)
		return true;
	long n = HC6(SYS_pread64, serve.load_fd, text, sizeof text - 1, 0, 0, 0);
	text[n > 0 ? n : 0] = 0;
	return sscanf(text, "%*s %*s %*s %d/", &running) != 1 || running <= serve.cpus;
}

static void back_off(uint64_t most)
{
	serve.backoff = clamp(serve.backoff * 2, BACKOFF_MIN, most > serve.backoff ? most : serve.backoff);
	__atomic_store_n(&serve.not_before, now_ns() + serve.backoff, __ATOMIC_RELAXED);
}

/* Poll until no call comes any more. */
static void session(struct kx_serve *s)
{
	const uint64_t idle = clamp(2 * exit_ns(), 50 * US, 200 * US), before = pvm.nr_polled;
	bool stolen = false;
	if (!forced() && !machine_has_room()) {
		back_off(BACKOFF_MAX);
		return;
	}
	__atomic_store_n(&s->on, 1, __ATOMIC_SEQ_CST);
	for (uint64_t seen = now_ns(), last = seen; !__atomic_load_n(&serve.quit, __ATOMIC_RELAXED);) {
		uint64_t v = __atomic_load_n(&s->slot, __ATOMIC_ACQUIRE);
		if (is_request(v)) {
			pthread_mutex_lock(&work);
			serve_one(s, v);
			pthread_mutex_unlock(&work);
			last = seen = now_ns();
			continue;
		}
		for (int i = 0; i < 8 && __atomic_load_n(&s->slot, __ATOMIC_RELAXED) == v; i++)
			__builtin_ia32_pause();
		uint64_t t = now_ns();
		stolen = t - seen > STOLEN_NS || !__atomic_load_n(&s->on, __ATOMIC_RELAXED);
		seen = t;
		if (t - last > idle)
			break;
		if (stolen && !forced())
			break;
		if (stolen)
			__atomic_store_n(&s->on, 1, __ATOMIC_RELAXED);
	}
	__atomic_store_n(&s->on, 0, __ATOMIC_SEQ_CST);
	if (forced())
		return;
	if (stolen)
		back_off(BACKOFF_MAX);
	else if (pvm.nr_polled - before < WORTH)
		back_off(20 * MS);
	else
		serve.backoff /= 2;
}

static void *serve_main(void *arg)
{
	struct kx_serve *s = shared();
	self = &svc;
	prctl(PR_SET_NAME, PVM_THREADS "service");
	for (;;) {
		int seen = __atomic_load_n(&serve.wake, __ATOMIC_SEQ_CST);
		session(s);
		if (__atomic_load_n(&serve.quit, __ATOMIC_SEQ_CST))
			return arg;
		__atomic_store_n(&serve.asleep, 1, __ATOMIC_SEQ_CST);
		while (__atomic_load_n(&serve.wake, __ATOMIC_SEQ_CST) == seen)
			host_call(SYS_futex, (long)&serve.wake, FUTEX_WAIT_PRIVATE, seen, 0, 0, 0);
		__atomic_store_n(&serve.asleep, 0, __ATOMIC_SEQ_CST);
	}
}

static void wake(void)
{
	__atomic_add_fetch(&serve.wake, 1, __ATOMIC_SEQ_CST);
	host_call(SYS_futex, (long)&serve.wake, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
}

static int processors(void)
{
	cpu_set_t set;
	return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

/* The load is the whole machine's. While the process has one thread, nobody sees the number that the descriptor has at
 * first. */
static void load_open(void)
{
	if (serve.load_fd >= 0 || pvm.nr_threads > 1 || sysconf(_SC_NPROCESSORS_ONLN) > serve.cpus)
		return;
	fd_limit_lift();
	int fd = openat(pvm.proc_fd, "loadavg", O_RDONLY | O_CLOEXEC);
	fd_limit_drop();
	if (fd >= 0)
		fd_keep(&serve.load_fd, fd);
}

static void start_locked(void)
{
	struct kx_serve *s = shared();
	serve.cpus = processors();
	if (serve.cpus < 2) {
		back_off(BACKOFF_MAX);
		return;
	}
	load_open();
	if (!forced() && !machine_has_room()) {
		back_off(BACKOFF_MAX);
		return;
	}
	/* The guest runs while its call is answered: a read may still be writing to what becomes a text meanwhile. */
	if (admit_on)
		gmem_warm_end(true);
	s->take_ticks = ticks(forced() ? TAKE_FORCED_NS : TAKE_NS);
	s->wait_ticks = ticks(WAIT_NS);
	svc.pid = pvm.pid;
	serve.quit = serve.asleep = 0;
	int r = thread_own_start(&serve.thread, SERVE_STACK, serve_main, NULL);
	serve.running = !r;
	if (r)
		back_off(BACKOFF_MAX);
}

static void start(void)
{
	if (pthread_mutex_trylock(&gate))
		return;
	if (!serve.running && !serve.forbidden && !spare_waits())
		start_locked();
	pthread_mutex_unlock(&gate);
}

static void stop(bool for_good)
{
	pthread_mutex_lock(&gate);
	if (serve.running) {
		__atomic_store_n(&shared()->on, 0, __ATOMIC_SEQ_CST);
		__atomic_store_n(&serve.quit, 1, __ATOMIC_SEQ_CST);
		wake();
		pthread_join(serve.thread, NULL);
		serve.running = false;
	}
	serve.forbidden |= for_good;
	pthread_mutex_unlock(&gate);
}

bool serve_runs(void) { return __atomic_load_n(&serve.running, __ATOMIC_RELAXED); }

void serve_stop(void)
{
	if (!serve.forbidden && __atomic_load_n(&serve.running, __ATOMIC_RELAXED))
		stop(false);
}

/* ---- hooks ---------------------------------------------------------------------------------------------------------- */

void serve_init(void)
{
	memset(shared(), 0, sizeof *shared());
	serve.forbidden = pvm.cfg->io == KX_IO_EXIT || processors() < 2;
}

/* The rights of the calling thread change. */
static bool changes_rights(const struct hcall *c)
{
	if (c->nr != SYS_prctl)
		return hcall_sets_rights(c->nr);
	switch ((int)c->arg[0]) {
	case PR_SET_KEEPCAPS:
	case PR_CAPBSET_DROP:
	case PR_SET_SECUREBITS:
	case PR_CAP_AMBIENT:
	case PR_SET_NO_NEW_PRIVS:
		return true;
	}
	return false;
}

void serve_before(struct hcall *c)
{
	if (is_vfork_child() || serve.forbidden)
		return;
	uint64_t t = now_ns(), gap = t - last_end;
	if (last_end && gap < __atomic_load_n(&serve.cheapest, __ATOMIC_RELAXED))
		__atomic_store_n(&serve.cheapest, gap, __ATOMIC_RELAXED);
	/* Of several threads each has its own rights, and no one thread could act for them all. */
	if (changes_rights(c))
		stop(__atomic_load_n(&pvm.nr_threads, __ATOMIC_RELAXED) > 1);
	else if (hcall_sets_schedule(c->nr))
		stop(false);
}

/* Busy: calls come at less than four times what an exit costs. */
void serve_after(struct hcall *c)
{
	if (serve.forbidden || is_vfork_child())
		return;
	uint64_t t = last_end = now_ns();
	pvm.nr_poll_failed = shared()->failed;
	if (c->nr >= KX_SERVE_CALLS || !served[c->nr] || pvm.vvar == NULL)
		return;
	if (!forced()) {
		if (++window < WINDOW)
			return;
		bool busy = t - window_start < WINDOW * 4 * exit_ns();
		window = 0;
		window_start = t;
		if (!busy || t < __atomic_load_n(&serve.not_before, __ATOMIC_RELAXED))
			return;
	}
	if (!__atomic_load_n(&serve.running, __ATOMIC_RELAXED))
		start();
	else if (__atomic_exchange_n(&serve.asleep, 0, __ATOMIC_SEQ_CST))
		wake();
}

void serve_lock(void)
{
	pthread_mutex_lock(&gate);
	pthread_mutex_lock(&work);
}

void serve_unlock(void)
{
	pthread_mutex_unlock(&work);
	pthread_mutex_unlock(&gate);
}

void serve_fork_child(void)
{
	struct kx_serve *s = shared();
	s->on = 0;
	s->slot = 0;
	s->failed = pvm.nr_poll_failed = 0;
	serve.running = serve.near_limit = false;
	serve.asleep = 0;
	pvm.nr_polled = 0;
	window = 0;
	last_end = 0;
}

void serve_plain_signals(uint64_t set) { shared()->plain = set; }

bool serve_signal(int signo)
{
	if (self != &svc)
		return false;
	host_call(SYS_tgkill, pvm.pid, pvm.pid, signo, 0, 0, 0);
	return true;
}

bool serve_near_limit(void)
{
	if (self != &svc)
		return false;
	serve.near_limit = true;
	return true;
}
