/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kylinx update --at-once: a new version in all members of a family at one moment, or in none (update.h, "several at
 * once"). This is the side that counts: it asks every member, begins a round when all are prepared, and ends it with
 * COMMIT when all stand with the change made. Members that end meanwhile are left out. Each tells how many children it has
 * made: when one made any since the family was listed, the round is taken back, and the family listed again.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "cli.h"
#include "update.h"

#define ROUND_BYTES 4096
#define ANSWER_MS 5000
#define LIST_TRIES 100  /* times that the family may have grown when it is listed again */
#define WAIT_FIRST_MS 1 /* between rounds, growing */
#define WAIT_MAX_MS 50
#define ENDING_TRIES 100 /* of 10 ms */
#define TELL_MS 2000     /* how long a member may take to tell what it did, beyond its hold */

enum state { PREPARING, PREPARED, READY, DONE, NOT_IN };

struct part {
	pid_t pid;
	uint64_t start;
	int pidfd, proc, sock; /* -1 = closed */
	enum state state;
	int error; /* NOT_IN, DONE: its errno, 0 = updated, or it has ended */
	bool ended;
	unsigned busy;          /* rounds that it could not stop in */
	uint64_t forks, listed; /* how many it has made; when the family was listed last */
	uint64_t pause_ns;
	char text[UPDATE_LINE], where[200];
};

struct round {
	const struct update_options *o;
	uint32_t *word, nr;
	bool going;
	unsigned grown, late; /* rounds that were taken back because of a child, or of one that stood too long */
	int fd;
	struct part *part;
	size_t nr_parts;
	long long end;
	struct kx_err *err;
};

static void futex_wake(uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0); }

static void part_close(struct part *p)
{
	int *const fd[] = { &p->pidfd, &p->proc, &p->sock };
	for (int i = 0; i < 3; i++) {
		if (*fd[i] >= 0)
			close(*fd[i]);
		*fd[i] = -1;
	}
}

static bool has_ended(const struct part *p)
{
	struct pollfd f = { .fd = p->pidfd, .events = POLLIN };
	return p->pidfd < 0 || poll(&f, 1, 0) > 0;
}

/* It is not in, or not any more: it ended, made an exec, or hasn't loaded the library. */
static void part_leave(struct part *p, int error)
{
	p->error = error;
	p->ended = has_ended(p);
	p->state = NOT_IN;
	if (!error && !p->ended) /* another program: it is asked again when the family is listed */
		p->start = 0;
	part_close(p);
}

/* What it says. False: a refusal, told in err. */
static bool part_hear(struct round *r, struct part *p)
{
	struct update_reply a;
	int e = update_hear(p->sock, &a);
	if (e == -EAGAIN || e == -EINTR)
		return true;
	if (e) {
		part_leave(p, 0);
		return true;
	}
	p->forks = a.forks;
	switch (a.kind) {
	case UPDATE_SAYS:
		dprintf(STDERR_FILENO, "kylinx: process %d: %s\n", p->pid, a.text);
		return true;
	case UPDATE_TAKEN:
		return true;
	case UPDATE_PREPARED:
		if (r->going && a.round != r->nr) /* of before */
			return true;
		p->busy += r->going;
		p->state = PREPARED;
		if (*a.text && (!*p->where || strstr(a.text, "thread ")))
			snprintf(p->where, sizeof p->where, "%.199s", a.text);
		return true;
	case UPDATE_READY: /* for a round that is over: it says more when it has seen that */
		p->state = r->going && a.round == r->nr ? READY : PREPARING;
		return true;
	}
	p->pause_ns = a.pause_ns;
	if (a.error == ENOENT) {
		part_leave(p, ENOENT);
		return true;
	}
	memcpy(p->text, a.text, sizeof p->text);
	p->error = (int)a.error;
	p->state = DONE;
	part_close(p); /* its end is no news */
	if (a.error)
		kx_err_set(r->err, p->error, "process %d: %.200s (nothing is changed in any)", p->pid, p->text);
	return !a.error;
}

/* ---- who is in ----------------------------------------------------------------------------------------------------------- */

/* Ask it. 0: it has the request, or is not in. */
static int part_ask(struct round *r, const struct family *f, const struct member *m, struct part *p)
{
	long long left = r->end - update_now_ms();
	struct update_request q = update_request(m->pid, r->o->flags | UPDATE_ROUND, left > 0 ? (unsigned)left : 0);
	struct update_reply a = { 0 };
	int e = update_speaks(f, m->pid, r->err);
	*p = (struct part){ .pid = m->pid, .start = m->start, .pidfd = -1, .proc = -1, .sock = -1 };
	if (e)
		return e;
	p->pidfd = member_open(f, m, &p->proc);
	if (p->pidfd < 0) {
		e = -p->pidfd;
		p->pidfd = p->proc = -1;
		part_leave(p, 0);
		return e == ESRCH ? 0 : update_unreached(r->err, p->pid, e);
	}
	int sock = f->e.update_ino[0] ? member_socket(p->pidfd, p->proc, f->e.update_ino[0]) : -ENOTSUP;
	/* It may just be ending: its descriptors go before it is seen to have ended. */
	for (int i = 0; i < ENDING_TRIES && (sock == -ENOENT || sock == -ESRCH) && !has_ended(p); i++) {
		usleep(10000);
		sock = member_socket(p->pidfd, p->proc, f->e.update_ino[0]);
	}
	if (sock >= 0) {
		int table = member_table(f, p->proc, O_RDONLY);
		e = update_ask(sock, p->pidfd, p->proc, table, &q, r->o, r->fd, UPDATE_TAKEN, left + ANSWER_MS,
			       &p->sock, &a);
		if (table >= 0)
			close(table);
		close(sock);
	}
	p->forks = a.forks;
	if (has_ended(p)) {
		part_leave(p, 0);
		return 0;
	}
	if (sock < 0)
		return update_unreached(r->err, p->pid, -sock);
	if (e)
		return update_unreached(r->err, p->pid, -e);
	if (a.kind == UPDATE_LAST && a.error == ENOENT)
		part_leave(p, ENOENT);
	else if (a.kind == UPDATE_LAST)
		return kx_err_set(r->err, (int)a.error, "process %d: %.200s (nothing is changed in any)", p->pid,
				  a.text);
	return 0;
}

static struct part *part_find(const struct round *r, const struct member *m)
{
	for (size_t i = 0; i < r->nr_parts; i++)
		if (r->part[i].pid == m->pid && r->part[i].start == m->start)
			return &r->part[i];
	return NULL;
}

/* Ask whom nobody has asked. How many, or -errno. */
static int list_once(struct round *r, const char *who)
{
	struct families all;
	struct member *root;
	int n = 0, e = 0;
	for (size_t i = 0; i < r->nr_parts; i++) {
		r->part[i].listed = r->part[i].forks;
		r->part[i].ended |= r->part[i].state == NOT_IN && !r->part[i].start; /* it is found now, if it lives */
	}
	if (families_read(&all, false, r->err))
		return -EIO;
	struct family *f = families_find(&all, who, &root, r->err);
	for (size_t i = 0; f && i < f->nr && !e; i++) {
		const struct member *m = &f->members[i];
		if (m->state == 'Z' || part_find(r, m))
			continue;
		struct part *p = realloc(r->part, (r->nr_parts + 1) * sizeof *p);
		if (!p) {
			e = kx_err_set(r->err, ENOMEM, "update: no memory (free some)");
			break;
		}
		r->part = p;
		e = part_ask(r, f, m, &p[r->nr_parts]);
		p[r->nr_parts].listed = p[r->nr_parts].forks;
		r->nr_parts++;
		n++;
	}
	families_free(&all);
	return !f ? -ESRCH : e ? -EIO : n;
}

static int list(struct round *r, const char *who)
{
	for (int i = 0; i < LIST_TRIES; i++) {
		int n = list_once(r, who);
		if (n <= 0)
			return n;
	}
	return kx_err_set(r->err, EBUSY, "update: the family grows faster than it can be asked (nothing is changed)");
}

static bool has_grown(const struct round *r)
{
	for (size_t i = 0; i < r->nr_parts; i++)
		if (r->part[i].state != NOT_IN && r->part[i].forks != r->part[i].listed)
			return true;
	return false;
}

/* ---- rounds ------------------------------------------------------------------------------------------------------------ */

static size_t count(const struct round *r, enum state s)
{
	size_t n = 0;
	for (size_t i = 0; i < r->nr_parts; i++)
		n += r->part[i].state == s;
	return n;
}

/* Hear whoever says something. False: a refusal, or nobody said anything in time. */
static bool hear(struct round *r, long long until)
{
	struct pollfd *p = calloc(r->nr_parts + 1, sizeof *p);
	long long left = until - update_now_ms();
	bool good = p;
	for (size_t i = 0; good && i < r->nr_parts; i++)
		p[i] = (struct pollfd){ .fd = r->part[i].sock, .events = POLLIN };
	int n = !good ? 0 : poll(p, r->nr_parts, left < 0 ? 0 : (int)left);
	for (size_t i = 0; good && i < r->nr_parts && n > 0; i++)
		if (p[i].revents)
			good = part_hear(r, &r->part[i]);
	free(p);
	if (good && !n)
		kx_err_set(r->err, ETIME, "update: given up (nothing is changed in any)");
	return good && n;
}

static bool hear_all(struct round *r, enum state not, long long until)
{
	while (count(r, not ))
		if (!hear(r, until))
			return false;
	return true;
}

static bool word_end(struct round *r, unsigned how)
{
	uint32_t go = ROUND_WORD(r->nr, ROUND_GO);
	bool mine = __atomic_compare_exchange_n(r->word, &go, ROUND_WORD(r->nr, how), false, __ATOMIC_SEQ_CST,
						__ATOMIC_SEQ_CST);
	futex_wake(r->word);
	r->going = false;
	/* Who has stood says that it is prepared for the next, or that it is done. */
	for (size_t i = 0; i < r->nr_parts; i++)
		if (r->part[i].state == READY)
			r->part[i].state = PREPARING;
	return mine;
}

/* One round. 1: the change is made in all; 0: in none; -1: refused, told in err. */
static int round_once(struct round *r)
{
	r->nr++;
	r->going = true;
	__atomic_store_n(r->word, ROUND_WORD(r->nr, ROUND_GO), __ATOMIC_SEQ_CST);
	futex_wake(r->word);
	for (size_t i = 0; i < r->nr_parts; i++)
		if (r->part[i].state == PREPARED)
			r->part[i].state = PREPARING;
	/* Who ends is not waited for; who makes an exec may come back with the old version. */
	while (count(r, PREPARING) && !count(r, PREPARED)) {
		if (!hear(r, r->end)) {
			word_end(r, ROUND_BACK);
			return -1;
		}
		for (size_t i = 0; i < r->nr_parts; i++)
			if (r->part[i].state == NOT_IN && !r->part[i].start && !r->part[i].error && !r->part[i].ended) {
				word_end(r, ROUND_BACK);
				return 0;
			}
	}
	bool all = count(r, READY) && !count(r, PREPARED), grown = all && has_grown(r);
	bool mine = word_end(r, all && !grown ? ROUND_COMMIT : ROUND_BACK);
	r->grown += grown;
	r->late += !mine;
	return mine && all && !grown;
}

static int rounds(struct round *r, const char *who)
{
	long wait = WAIT_FIRST_MS;
	for (;;) {
		int n = list(r, who);
		if (n)
			return -1;
		if (!hear_all(r, PREPARING, r->end))
			return -1;
		if (!count(r, PREPARED))
			return kx_err_set(r->err, ENOENT,
					  "update: no member of the family has the library (see `kylinx ps`)");
		if (has_grown(r))
			continue;
		if ((n = round_once(r)))
			return n;
		if (update_now_ms() + wait > r->end)
			return kx_err_set(r->err, ETIME, "update: given up (nothing is changed in any)");
		usleep((useconds_t)wait * 1000);
		wait = wait * 2 < WAIT_MAX_MS ? wait * 2 : WAIT_MAX_MS;
	}
}

/* The last words. */
static int tell(struct round *r)
{
	long long until = update_now_ms() + TELL_MS;
	int e = 0;
	hear_all(r, PREPARING, until);
	for (size_t i = 0; i < r->nr_parts; i++) {
		const struct part *p = &r->part[i];
		if (p->state == DONE && !p->error)
			update_tell("%d: %s: pause %.3f ms\n", p->pid, p->text, (double)p->pause_ns / 1e6);
		else if (p->state == PREPARING)
			e = kx_err_set(r->err, ETIME, "process %d: does not say what it did (see `kylinx ps`)", p->pid);
	}
	return e;
}

/* Nobody changes anything any more; who was in the way last? */
static void give_up(struct round *r)
{
	const struct kx_err why = *r->err;
	long long until = update_now_ms() + TELL_MS;
	__atomic_store_n(r->word, ROUND_OVER, __ATOMIC_SEQ_CST);
	futex_wake(r->word);
	for (size_t i = 0; i < r->nr_parts; i++)
		while (r->part[i].sock >= 0 && r->part[i].state != DONE && r->part[i].state != NOT_IN) {
			struct pollfd p = { .fd = r->part[i].sock, .events = POLLIN };
			long long left = until - update_now_ms();
			if (left <= 0 || poll(&p, 1, (int)left) <= 0)
				break;
			part_hear(r, &r->part[i]);
		}
	*r->err = why;
	if (why.code != ETIME && why.code != ETIMEDOUT)
		return;
	const struct part *most = NULL;
	for (size_t i = 0; i < r->nr_parts; i++)
		if (r->part[i].busy && (!most || r->part[i].busy > most->busy))
			most = &r->part[i];
	*r->err = (struct kx_err){ 0 };
	if (most)
		kx_err_set(r->err, ETIMEDOUT,
			   "process %d: %.160s (nothing is changed in any; %u rounds, it was busy in %u; %u late, %u "
			   "children)",
			   most->pid, most->where, r->nr, most->busy, r->late, r->grown);
	else
		kx_err_set(r->err, ETIMEDOUT,
			   "update: given up (nothing is changed in any; %u rounds, %u late, %u children)", r->nr,
			   r->late, r->grown);
}

static int page_make(struct round *r)
{
	r->fd = memfd_create("kylinx-round", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (r->fd < 0 || ftruncate(r->fd, ROUND_BYTES) || fcntl(r->fd, F_ADD_SEALS, ROUND_SEALS))
		return -errno;
	r->word = mmap(NULL, ROUND_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	return r->word == MAP_FAILED ? -errno : 0;
}

int update_at_once(const char *who, const struct update_options *o, struct kx_err *err)
{
	struct round r = { .o = o, .fd = -1, .end = update_now_ms() + o->timeout_ms, .err = err };
	int e = page_make(&r);
	if (e)
		return kx_err_host(err, -e, "update: no page to share with its members");
	e = rounds(&r, who);
	if (e > 0)
		e = tell(&r);
	else
		give_up(&r);
	for (size_t i = 0; i < r.nr_parts; i++)
		part_close(&r.part[i]);
	free(r.part);
	munmap(r.word, ROUND_BYTES);
	close(r.fd);
	return e;
}
