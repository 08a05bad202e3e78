/* SPDX-License-Identifier: Apache-2.0 */
#include "update_priv.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../../util/now.h"
#include "../../util/seldom.h"
#include "../../util/together.h"
#include "admit.h"
#include "family.h"
#include "fork.h"
#include "gmem_warm.h"
#include "relink.h"
#include "thread.h"
#include "sig.h"
#include "spare.h"
#include "written.h"

#define STACK (256 << 10)
#define STOP_LATE_NS 20000000ll /* how long one attempt may hold threads up when three quarters of the time are over */
#define WAIT_MAX_NS 20000000
#define WAIT_BUSY_NS 10000000 /* at least, for one that is in the way to get on: */
#define GETS_ON_NS 50000      /* to run so long */
#define TIMEOUT_MAX_MS 600000
#define HOLD_NS 40000000ll       /* how long all stand for the others of a round; */
#define HOLD_LATE_NS 250000000ll /* when three quarters of the time are over */
#define REPLY_TRIES 100          /* of 10 ms */
#define PREPARE_MAX 20           /* times that the program may load or unload something meanwhile */
#define SETTLE_NS 500000000      /* until KVM may have the memory that it lacked */

static int fds[2] = { -1, -1 };
KX_TOGETHER pthread_mutex_t update_lock = PTHREAD_MUTEX_INITIALIZER;
static int poked;       /* a futex: a request may be there */
static pid_t served_by; /* the process that has a service thread */
static int closed = -1; /* a descriptor that the process has closed, and that thread has still */

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

/* ---- a request in progress -------------------------------------------------------------------------------------------- */

struct jobs *jobs;
static struct relink *pending;     /* made, and not over */
static KX_TOGETHER uint64_t forks; /* under the lock */

void job_reply(const struct job *j, unsigned kind, int error, uint64_t pause, const char *fmt, va_list ap)
{
	struct update_reply a = { .kind = kind,
				  .error = (uint32_t)error,
				  .round = j->round_nr,
				  .pause_ns = pause,
				  .forks = forks,
				  .protocol = UPDATE_PROTOCOL,
				  .oldest = UPDATE_OLDEST };
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
bool job_asker_is_gone(int fd)
{
	struct pollfd p = { .fd = fd };
	struct timespec none = { 0, 0 };
	return HC6(SYS_ppoll, &p, 1, &none, 0, 8, 0) > 0; /* a signal may come in between */
}

void job_finish(struct job *j, int error, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	job_reply(j, UPDATE_LAST, error, j->pause_ns, fmt, ap);
	va_end(ap);
}

static void say_line(void *arg, const char *fmt, va_list ap)
{
	struct job *j = arg;
	j->said = true;
	job_reply(j, UPDATE_SAYS, 0, 0, fmt, ap);
}

/* In the service thread, whose table is its own. */
void update_close_closed(void)
{
	int fd = __atomic_exchange_n(&closed, -1, __ATOMIC_SEQ_CST);
	if (fd >= 0)
		close(fd);
}

void update_nap(long ns)
{
	struct timespec t = { 0, ns };
	HC6(SYS_nanosleep, &t, 0, 0, 0, 0, 0);
}

void update_rest(long ns)
{
	update_close_closed();
	pthread_mutex_unlock(&update_lock); /* a fork may come in between */
	update_nap(ns);
	pthread_mutex_lock(&update_lock);
}

/* Also a child's, whose parent is at one. */
static void job_end(void)
{
	if (!jobs)
		return;
	free(jobs->now.moved);
	if (jobs->now.round)
		munmap((void *)jobs->now.round, ROUND_BYTES);
	jobs->now.moved = NULL;
	jobs->now.round = NULL;
}

/* ---- serving --------------------------------------------------------------------------------------------------------------- */

static void report(struct job *j)
{
	unsigned words, bytes, versions;
	relink_counts(j->link, &words, &bytes, &versions);
	job_finish(j, 0, "%s: %u bindings, %u bytes of state, %u attempt%s, %.3f ms until all stood",
		   relink_soname(j->link), words, bytes, j->attempts, j->attempts == 1 ? "" : "s",
		   (double)j->gathered_ns / 1e6);
}

static void set_patience(struct job *j, uint64_t start, uint64_t timeout)
{
	bool late = (now_ns() - start) * 4 >= timeout * 3;
	j->stop_ns = late ? STOP_LATE_NS : STOP_NS;
	/* Longer with each round, on a machine on which others take longer. */
	uint64_t hold = HOLD_NS * (1 + j->attempts);
	j->hold_ns = late || hold > HOLD_LATE_NS ? HOLD_LATE_NS : hold;
}

/* What a thread has had of processors. */
static uint64_t cpu_ns(pid_t tid)
{
	struct timespec ts = { 0, 0 };
	HC6(SYS_clock_gettime, (int)(~(unsigned)tid << 3 | 6), &ts, 0, 0, 0, 0);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/*
 * Who was in the way gets on: on a machine with more to do than it has processors, attempt after attempt would find it at the
 * same place. Once it has run again there is a good moment, too: it has its turn. Who sleeps is waited for as long as `most`.
 */
static void let_on(struct job *j, long most)
{
	uint64_t until = now_ns() + (uint64_t)most, had = j->busy ? cpu_ns(j->busy) : 0;
	long wait = WAIT_FIRST_NS;
	do {
		update_rest(wait < most ? wait : most);
		wait += wait / 2;
	} while (now_ns() < until && j->busy && cpu_ns(j->busy) - had < GETS_ON_NS);
}

static int attempts(struct job *j, uint64_t start, uint64_t timeout)
{
	long wait = WAIT_FIRST_NS;
	int r;
	while (((r = update_attempt(j)) == -EBUSY || r == -EINPROGRESS) && now_ns() - start < timeout) {
		if (job_asker_is_gone(j->reply))
			return -EPIPE;
		if (gate_is_for_good())
			return -ESRCH;
		set_patience(j, start, timeout);
		if (r == -EINPROGRESS) {
			update_look_ahead(j);
			continue;
		}
		let_on(j, j->busy && wait < WAIT_BUSY_NS ? WAIT_BUSY_NS : wait);
		wait = wait * 2 < WAIT_MAX_NS ? wait * 2 : WAIT_MAX_NS;
	}
	return r;
}

static int attempts_in_rounds(struct job *j, uint64_t start, uint64_t timeout)
{
	int r;
	do {
		if (relink_looks(j->link) && !j->ahead)
			update_look_ahead(j);
		j->ahead = true;
		if (!round_begins(j, start + timeout))
			return -EBUSY;
		set_patience(j, start, timeout);
		r = update_attempt(j);
	} while (r == -EBUSY);
	return r;
}

const char *update_why(int error)
{
	switch (error) {
	case ENOMEM:
		return "no memory for it: give it more (--memory, ulimit -v, its cgroup, the host), and update it "
		       "again";
	case EMFILE:
	case ENFILE:
		return "no descriptor for it: let it have more open files (ulimit -n), and update it again";
	case EAGAIN:
		return "no thread for it: let it have more processes (ulimit -u, its cgroup's pids.max) or memory "
		       "(ulimit -v), and update it again";
	case EIO:
		return "a file or /dev/kvm fails (see `dmesg`): update it again";
	}
	return strerror(error);
}

/* True: the change is made. */
static bool update(struct job *j, int fd)
{
	uint64_t start = now_ns(), timeout = j->q.timeout_ms * 1000000ull;
	int again = 0;
	gmem_warm_end(true); /* the program's calls alone know of it */
	set_patience(j, start, timeout ? timeout : 1);
	if (call_is_running()) {
		job_finish(j, EBUSY, "a function of an earlier version has not returned yet");
		return false;
	}
	for (;;) {
		int r = relink_prepare(fd, j->q.flags & UPDATE_RESET ? RELINK_RESET : 0, say_line, j, &j->link);
		if (r) {
			/* Its list of libraries is being changed: on a busy machine that takes longer than it takes. */
			if (r == -EAGAIN && (++again < PREPARE_MAX || now_ns() - start < timeout) &&
			    !job_asker_is_gone(j->reply)) {
				update_rest(again < PREPARE_MAX ? WAIT_FIRST_NS : WAIT_MAX_NS);
				continue;
			}
			if (r == -EAGAIN)
				job_finish(j, EBUSY,
					   "given up: the program changes its list of libraries all the time");
			else
				job_finish(j, -r, "%s", j->said ? "refused" : update_why(-r));
			return false;
		}
		struct relink_call *calls = NULL;
		unsigned nr;
		pending = j->link;
		while (!(j->q.flags & UPDATE_DRY_RUN) && (calls = relink_calls(j->link, &nr)) && nr && !r)
			r = call_run(j, calls, nr, start + timeout);
		if (!r && !(j->q.flags & UPDATE_DRY_RUN))
			r = calls ? relink_bind(j->link) : -ENOMEM;
		if (r == -ETIME) { /* what it uses stays */
			pending = NULL;
			job_finish(j, ETIMEDOUT, "a constructor of the library does not return");
			return false;
		}
		if (r) {
			job_finish(j, -r,
				   r == -EBUSY ? "no thread is where the library's constructors could run" : "%s",
				   j->said ? "refused" : update_why(-r));
			pending = NULL;
			relink_done(j->link, false);
			return false;
		}
		if (j->q.flags & UPDATE_DRY_RUN) {
			report(j);
			pending = NULL;
			relink_done(j->link, false);
			return false;
		}
		j->ahead = j->noted = false;
		r = j->round ? attempts_in_rounds(j, start, timeout) : attempts(j, start, timeout);
		if (r == -ETIME) { /* likewise */
			pending = NULL;
			relink_leave(j->link);
			job_finish(j, ETIMEDOUT, "a hook of the library's does not return, nothing is changed");
			return false;
		}
		bool over = ++again >= PREPARE_MAX && (now_ns() - start >= timeout || job_asker_is_gone(j->reply));
		if (!r)
			report(j);
		else if (r == -EBUSY || r == -EINPROGRESS)
			job_finish(j, ETIMEDOUT, "given up after %u attempts, nothing is changed: %s", j->attempts,
				   j->where);
		else if (r == -EAGAIN && over)
			job_finish(j, EBUSY,
				   "given up, nothing is changed: the program changes %s (%#llx) all the time",
				   relink_changed(j->link) ? "a word that has to change" : "its list of libraries",
				   (unsigned long long)relink_changed(j->link));
		else if (r == -ECANCELED)
			job_finish(j, -r, "a hook of the library's refused, nothing is changed");
		else if (r != -EAGAIN)
			job_finish(j, -r, "%s", update_why(-r));
		pending = NULL;
		relink_done(j->link, !r);
		if (r != -EAGAIN || over)
			return !r;
		update_rest(WAIT_FIRST_NS);
	}
}

/* Whoever has asked and can't be answered is told why by the family's table. */
static void tell_unserved(int error)
{
	uint64_t *w = family_unserved();
	__atomic_store_n(w, UNSERVED_NEXT(__atomic_load_n(w, __ATOMIC_SEQ_CST), pvm.pid, error), __ATOMIC_SEQ_CST);
	kx_log(KX_LOG_WARN, "update", "%s", update_why(error));
}

/* What they sent would lie in the socket until the next thread takes it. */
static void refuse_all(int error)
{
	char none;
	tell_unserved(error);
	while (HC6(SYS_recvfrom, fds[1], &none, sizeof none, MSG_DONTWAIT, 0, 0) >= 0)
		;
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
	j->cut = m.msg_flags & MSG_CTRUNC;
	fd[FD_FILE] = got[0];
	fd[FD_REPLY] = got[1];
	fd[FD_ROUND] = round ? got[2] : -1;
	fd[FD_SIGNATURE] = round ? got[3] : got[2];
	if (!round && got[3] >= 0)
		close(got[3]);
	/* One of an older version ends earlier, one of a newer version is cut off. */
	if (r < (long)UPDATE_REQUEST_MIN || j->q.magic != UPDATE_MAGIC ||
	    (!j->cut && (got[0] < 0 || got[1] < 0 || (round && got[2] < 0))))
		j->q.magic = 0;
	if (j->q.magic && got[1] < 0) {
		if (j->q.pid == (uint32_t)pvm.pid)
			tell_unserved(EMFILE);
		j->q.magic = 0;
	}
	if (j->q.timeout_ms > TIMEOUT_MAX_MS)
		j->q.timeout_ms = TIMEOUT_MAX_MS;
	return true;
}

/* Is the request one that this build understands? */
static bool understand(struct job *j)
{
	struct update_request *q = &j->q;
	q->build[sizeof q->build - 1] = 0;
	for (char *c = q->build; *c; c++)
		if (*c <= ' ' || *c > '~')
			*c = '?';
	if (update_understood(q->protocol, q->oldest) && !(q->flags & ~UPDATE_FLAGS))
		return true;
	/* As registry.c's and the command's own words. */
	job_finish(j, EPROTO,
		   "is of kylinx build %s (update protocol %u), the command of build %s (protocol %u): use the "
		   "kylinx that started it, or start it again",
		   build_name(), UPDATE_PROTOCOL, *q->build ? q->build : "unknown",
		   q->protocol ? q->protocol : UPDATE_UNNUMBERED);
	return false;
}

/* The new version has to pass the policy. What is looked at and mapped from then on is the policy's copy. */
static bool admit(struct job *j, int fd[FD_MAX])
{
	char said[POLICY_WHY];
	int own = admit_on ? admit_update(fd[FD_FILE], fd[FD_SIGNATURE], said) : fd[FD_FILE];
	if (own < 0) {
		if (relink_lacks(own))
			job_finish(j, -own, "%s", update_why(-own));
		else
			job_finish(j, -own, "nothing is changed: %s", said);
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
		job_finish(j, -r, "the round's page is refused: %s", strerror(-r));
	else if (j->round)
		round_say(j, UPDATE_TAKEN, "taken");
	return !r;
}

static void serve(void)
{
	struct job *const j = &jobs->now;
	int fd[FD_MAX];
	for (;;) {
		memset(j, 0, sizeof *j);
		if (!receive(j, fd))
			return;
		j->reply = fd[FD_REPLY];
		bool done = false;
		pthread_mutex_lock(&update_lock);
		if (j->q.magic && job_asker_is_gone(j->reply))
			kx_log(KX_LOG_INFO, "update", "a request whose asker is gone");
		else if (j->q.magic && j->q.pid != (uint32_t)pvm.pid)
			job_finish(j, EAGAIN, "a request for another process");
		else if (j->q.magic && j->cut)
			job_finish(j, EMFILE, "%s", update_why(EMFILE));
		else if (j->q.magic && understand(j) && take_part(j, fd[FD_ROUND]) && admit(j, fd))
			done = update(j, fd[FD_FILE]);
		job_end();
		pthread_mutex_unlock(&update_lock);
		for (int i = 0; i < FD_MAX; i++)
			if (fd[i] >= 0)
				close(fd[i]);
		if (done) {
			pthread_mutex_lock(&update_lock);
			update_retire();
			pthread_mutex_unlock(&update_lock);
		}
		if (admit_on)
			admit_update_over();
	}
}

/* A table of its own: what it receives is not seen in the program's. Not while a fork has a pipe that it waits for the end of. */
static int own_table(void)
{
	pthread_mutex_lock(&update_lock);
	__atomic_store_n(&closed, -1, __ATOMIC_SEQ_CST);
	long r = host_call(SYS_close_range, 0, pvm.fd_limit - 1, CLOSE_RANGE_UNSHARE, 0, 0, 0);
	pthread_mutex_unlock(&update_lock);
	return (int)r;
}

/* Until there is more to do. A fork that holds the lock must not keep it from closing what is closed. */
static void wait_for_poke(void)
{
	futex_wait(&poked, 0, written_left() ? SETTLE_NS : 0);
	if (!written_left() || pthread_mutex_trylock(&update_lock))
		return;
	written_settle();
	pthread_mutex_unlock(&update_lock);
}

static void *service(void *arg)
{
	uint64_t mask = ~(SIGBIT(SIGSEGV) | SIGBIT(SIGBUS) | SIGBIT(KICK_SIG));
	int r = own_table();
	prctl(PR_SET_NAME, PVM_THREADS "update");
	gate_own_turns();
	admit_way(POLICY_WAY_LOADER);
	host_call(SYS_rt_sigprocmask, SIG_SETMASK, (long)&mask, 0, 8, 0, 0);
	for (;;) {
		if (!r)
			update_close_closed();
		/* Whoever asks pokes again. */
		if (!__atomic_exchange_n(&poked, 0, __ATOMIC_SEQ_CST))
			wait_for_poke();
		else if (r && (r = own_table()))
			refuse_all(-r);
		else if (!seldom_map((void **)&jobs, sizeof *jobs))
			refuse_all(ENOMEM);
		else
			serve();
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
	spare_remove(); /* in that table its VM would outlive it */
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
		refuse_all(r);
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
	pthread_mutex_lock(&update_lock);
	forks++;
}
void update_fork_done(void) { pthread_mutex_unlock(&update_lock); }

/* What a parent is preparing its child has as well; unless the child runs a function of it. */
void update_fork_child(void)
{
	gate_fork_child();
	call_fork_child();
	poked = 0;
	closed = -1;
	written_fork_child();
	update_retire_fork_child();
	if (pending && !call_is_running())
		relink_done(pending, false);
	pending = NULL;
	job_end();
}
