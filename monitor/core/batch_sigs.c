/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals between members, by which programs of several processes wake each other.
 *
 * Sending. Whom a thread has sent a signal is noted; at the end of each exit it is looked whether these processes are
 * still there and may be signalled. As long as the process makes no call, and no member learns that a process has
 * ended, a kill() of theirs can't fail, and is a record, sent in order with all others.
 *
 * Receiving. A thread that reads a signalfd after its wait has told of it finds there what the exit of that wait has
 * read. If the read is not the next of all calls, the signals are queued again as they came. So it is done in processes
 * of one thread, with signals that do not queue and whose account nobody else keeps.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include "../../abi/kx_sigs.h"
#include "batch_priv.h"
#include "family.h"
#include "sig.h"
#include "thread.h"

#define IDLE_MAX 256 /* exits of a thread until a process that it sends nothing to is forgotten */
#define OFTEN 2      /* waits followed by a read of the signalfd until it is read ahead */
#define SKIP_MAX 8   /* 1 << that many waits are left out after as many misses in a row */
#define RECORD sizeof(struct signalfd_siginfo)

static struct sigs {
	struct target {
		pid_t pid; /* 0 = none */
		uint32_t uses, idle;
	} target[KX_SIGS_TARGETS];
	unsigned nr;
	uint64_t ended;
	/* The wait that was its last call, and had events: its epoll; -1 = the last call was another. */
	int waited;
	/* What is read after such waits. */
	int epoll, fd; /* fd -1: nothing */
	uint64_t asked;
	unsigned seen, misses, skip;
	bool offered;
} sigs[KX_BATCH_CTXS];
static bool some_read; /* there is, or was, something that is read after waits */

static struct kx_sigs *guest(int ctx)
{
	return gva_ptr(KX_BATCH_BASE + KX_BATCH_CTX + (uint64_t)ctx * KX_BATCH_CTX + KX_SIGS_AT);
}

static uint64_t ended(void)
{
	return __atomic_load_n(&((struct kx_futexes *)gva_ptr(KX_FUTEX_BASE))->ended, __ATOMIC_SEQ_CST);
}

void sigs_reset(int ctx)
{
	struct kx_sigs *g = guest(ctx);
	sigs[ctx] = (struct sigs){ .waited = -1, .epoll = -1, .fd = -1 };
	for (int i = 0; i < KX_SIGS_TARGETS; i++)
		g->target[i].pid = 0;
	__atomic_store_n(&g->state, KX_AHEAD_NONE, __ATOMIC_SEQ_CST);
}

/* ---- sending ------------------------------------------------------------------------------------------------------ */

static void forget(int ctx, int i)
{
	struct sigs *s = &sigs[ctx];
	s->nr -= s->target[i].pid != 0;
	s->target[i].pid = 0;
	__atomic_store_n(&guest(ctx)->target[i].pid, 0, __ATOMIC_SEQ_CST);
}

/* The thread has sent pid a signal by a call. */
static void sent(int ctx, pid_t pid)
{
	struct sigs *s = &sigs[ctx];
	int at = 0;
	for (int i = 0; i < KX_SIGS_TARGETS; i++) {
		if (s->target[i].pid == pid)
			return;
		if (s->target[at].pid && (!s->target[i].pid || s->target[i].idle > s->target[at].idle))
			at = i;
	}
	if (pid == my_pid() || family_seen(pid) != 1)
		return;
	forget(ctx, at);
	s->target[at] = (struct target){ .pid = pid, .uses = guest(ctx)->target[at].uses };
	s->nr++;
}

/* Who ended while nobody knew is a zombie, or a number that means nobody: kill() of it is not as it was. */
void sigs_look(int ctx, uint64_t calls)
{
	struct sigs *s = &sigs[ctx];
	struct kx_sigs *g = guest(ctx);
	uint64_t now = ended();
	for (int i = 0; i < KX_SIGS_TARGETS && s->nr; i++) {
		struct target *t = &s->target[i];
		if (!t->pid)
			continue;
		t->idle = t->uses == g->target[i].uses ? t->idle + 1 : 0;
		t->uses = g->target[i].uses;
		if (t->idle > IDLE_MAX || (now != s->ended && family_seen(t->pid) != 1) ||
		    HC6(SYS_kill, t->pid, 0, 0, 0, 0, 0))
			forget(ctx, i);
		else
			__atomic_store_n(&g->target[i].pid, t->pid, __ATOMIC_SEQ_CST);
	}
	s->ended = now;
	g->ended = now;
	g->calls = calls;
}

/* Whatever the guest says: no more than it could do by a call. */
int sigs_record(const uint8_t *data)
{
	struct kx_bkill k;
	int seen;
	memcpy(&k, data, sizeof k);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (k.pid <= 0 || k.signo < 0 || k.signo > 31 || !(KX_SIGS_LATER >> k.signo & 1))
		return -EINVAL;
	seen = family_seen(k.pid);
	if (seen < 0 && !self) /* the flusher: let a thread of the program's look */
		return -EAGAIN;
	if (seen < 0 ? family_has(k.pid) : seen)
		HC6(SYS_kill, k.pid, k.signo, 0, 0, 0, 0);
	return 0;
}

/* ---- receiving ---------------------------------------------------------------------------------------------------- */

/* Is fd a signalfd, non-blocking, of signals that can be queued again as they were? */
static bool fits(int fd)
{
	static const uint64_t others = SIGBIT(SIGCHLD) | SIGBIT(SIGIO) | SIGBIT(SIGALRM) | SIGBIT(SIGVTALRM) |
				       SIGBIT(SIGPROF) | ~0ull << 31;
	char name[40], info[512];
	snprintf(name, sizeof name, "self/fdinfo/%d", fd);
	int f = proc_file(name);
	long n = f < 0 ? -1 : HC6(SYS_read, f, info, sizeof info - 1, 0, 0, 0);
	if (f >= 0)
		HC6(SYS_close, f, 0, 0, 0, 0, 0);
	info[n > 0 ? n : 0] = 0;
	const char *mask = strstr(info, "sigmask:");
	long fl = HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0);
	return mask && fl >= 0 && fl & O_NONBLOCK && !(strtoull(mask + 8, NULL, 16) & others);
}

/* As requeue() of sig.c: a signal of the process's. */
static void queue_again(const struct signalfd_siginfo *r)
{
	siginfo_t info = { 0 };
	info.si_signo = (int)r->ssi_signo;
	info.si_errno = r->ssi_errno;
	info.si_code = r->ssi_code;
	if (r->ssi_code == SI_TIMER) {
		info.si_timerid = (int)r->ssi_tid;
		info.si_overrun = (int)r->ssi_overrun;
	} else {
		info.si_pid = (pid_t)r->ssi_pid;
		info.si_uid = r->ssi_uid;
	}
	info.si_ptr = (void *)(uintptr_t)r->ssi_ptr;
	host_call(SYS_rt_sigqueueinfo, self->tid, info.si_signo, (long)&info, 0, 0, 0);
}

static struct kept {
	struct signalfd_siginfo r[KX_SIGS_READ / RECORD];
	unsigned n;
} kept; /* what is offered; the process has one thread */

/* What was offered: has the program had it? */
static void resolve(int ctx)
{
	struct sigs *s = &sigs[ctx];
	s->offered = false;
	if (__atomic_exchange_n(&guest(ctx)->state, KX_AHEAD_NONE, __ATOMIC_SEQ_CST) == KX_AHEAD_TAKEN) {
		s->misses = 0;
		return;
	}
	for (unsigned i = 0; i < kept.n; i++)
		queue_again(&kept.r[i]);
	s->misses += s->misses < SKIP_MAX;
	s->skip = 1u << s->misses;
}

bool sigs_offered(void)
{
	for (int i = 0; some_read && i < batch.nr_ctxs; i++)
		if (batch.ctxs[i].t && sigs[i].offered)
			return true;
	return false;
}

static bool ends(const struct hcall *c, int fd)
{
	if (c->nr == SYS_signalfd || c->nr == SYS_signalfd4) /* with other signals */
		return (int)c->arg[0] == fd;
	return batch_ends_descriptor(c, fd);
}

void sigs_enter(const struct hcall *c, int own)
{
	for (int i = 0; some_read && i < batch.nr_ctxs; i++) {
		if (!batch.ctxs[i].t)
			continue;
		if (sigs[i].offered)
			resolve(i);
		if (sigs[i].fd >= 0 && ends(c, sigs[i].fd))
			sigs[i].fd = -1;
	}
	if (own >= 0 && c->nr != SYS_read)
		sigs[own].waited = -1;
}

/* A read: of what the last wait has told? */
static void was_read(struct sigs *s, const struct hcall *c, int64_t r)
{
	int epoll = s->waited, fd = (int)c->arg[0];
	s->waited = -1;
	if (epoll < 0 || r < (int64_t)RECORD || r % (int64_t)RECORD || c->arg[2] < RECORD || c->arg[2] > KX_SIGS_READ)
		return;
	if (s->fd == fd && s->epoll == epoll && s->asked == c->arg[2]) {
		s->seen += s->seen < OFTEN;
		return;
	}
	/* Another thread might see how it is looked at. */
	if (__atomic_load_n(&pvm.nr_threads, __ATOMIC_RELAXED) > 1 || !fits(fd))
		return;
	some_read = true;
	s->fd = fd;
	s->epoll = epoll;
	s->asked = c->arg[2];
	s->seen = 1;
	s->misses = s->skip = 0;
}

static void read_ahead(int ctx)
{
	struct sigs *s = &sigs[ctx];
	struct kx_sigs *g = guest(ctx);
	if (s->skip) {
		s->skip--;
		return;
	}
	long fl = HC6(SYS_fcntl, s->fd, F_GETFL, 0, 0, 0, 0);
	if (fl < 0 || !(fl & O_NONBLOCK))
		return;
	long n = HC6(SYS_read, s->fd, kept.r, s->asked, 0, 0, 0);
	if (n < (long)RECORD)
		return;
	kept.n = (unsigned)((size_t)n / RECORD);
	memcpy(g->data, kept.r, (size_t)n);
	g->len = (uint32_t)n;
	g->asked = s->asked;
	g->fd = s->fd;
	s->offered = true;
}

void sigs_note(const struct hcall *c, int ctx, int64_t r)
{
	struct sigs *s = &sigs[ctx];
	if (c->nr == SYS_kill && r == 0 && (int)c->arg[0] > 0)
		sent(ctx, (pid_t)c->arg[0]);
	else if (c->nr == SYS_read)
		was_read(s, c, r);
	if (!ahead_is_wait(c->nr) || r <= 0)
		return;
	s->waited = (int)c->arg[0];
	if (s->fd >= 0 && s->epoll == s->waited && s->seen >= OFTEN && c->t->vcpu_fd >= 0 &&
	    __atomic_load_n(&pvm.nr_threads, __ATOMIC_RELAXED) == 1)
		read_ahead(ctx);
}

void sigs_offer(int ctx, uint64_t calls)
{
	struct kx_sigs *g = guest(ctx);
	if (!sigs[ctx].offered || __atomic_load_n(&g->state, __ATOMIC_RELAXED) != KX_AHEAD_NONE)
		return;
	g->read_calls = calls;
	__atomic_store_n(&g->state, KX_AHEAD_OFFERED, __ATOMIC_SEQ_CST);
}

/* Others are as they are to be when they begin (sigs_reset). What is not written stays shared. */
void sigs_fork_child(void)
{
	for (int i = 0; i < batch.nr_ctxs; i++)
		sigs[i] = (struct sigs){ .waited = -1, .epoll = -1, .fd = -1 };
}
