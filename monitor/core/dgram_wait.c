/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waits in a process that has received ahead. What lies in buffers is ready: then the kernel is asked for the others
 * without waiting, and both make the answer. After a wait, sockets that it said are readable are received ahead from.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include "batch.h"
#include "dgram_priv.h"
#include "sys_poll.h"

#define READ_EVENTS (POLLIN | POLLRDNORM)
#define EDGES (EPOLLET | EPOLLONESHOT | EPOLLEXCLUSIVE) /* told once */
#define SET_WORDS (KX_DGRAM_FDS / 64)

_Static_assert(EPOLLIN == POLLIN && EPOLLRDNORM == POLLRDNORM && EPOLLERR == POLLERR, "the same bits");

bool dgram_is_wait(uint64_t nr)
{
	return nr == SYS_epoll_wait || nr == SYS_epoll_pwait || nr == SYS_epoll_pwait2 || nr == SYS_poll ||
	       nr == SYS_ppoll || nr == SYS_select || nr == SYS_pselect6;
}

static bool is_epoll_wait(uint64_t nr)
{
	return nr == SYS_epoll_wait || nr == SYS_epoll_pwait || nr == SYS_epoll_pwait2;
}

static void turns_end(void)
{
	for (int i = 0; i < KX_DGRAM_SOCKS; i++)
		if (dgram_slots[i].nr_fds)
			dgram_turn_ends(&dgram_slots[i]);
}

static uint32_t ready_events(const struct dgram_slot *s, uint32_t asked)
{
	return (dgram_has(s) ? asked & READ_EVENTS : 0) | (s->err ? POLLERR : 0);
}

/* ---- epoll ---------------------------------------------------------------------------------------------------- */

/* The registrations in this epoll of which there is something to tell, by number. */
static int epoll_ready(int epoll, int *reg)
{
	int n = 0;
	for (int i = 0; i < dgram_nr_regs; i++) {
		const struct dgram_reg *e = &dgram_regs[i];
		const struct dgram_slot *s = e->epoll == epoll ? dgram_at(e->fd) : NULL;
		if (s && ready_events(s, e->events) && (!(e->events & EDGES) || s->fresh || s->err))
			reg[n++] = i;
	}
	return n;
}

static int64_t epoll_merge(struct hcall *c, const int *reg, int nr, int64_t n)
{
	int max = (int)c->arg[2];
	struct epoll_event ev;
	for (int k = 0; k < nr; k++) {
		const struct dgram_reg *e = &dgram_regs[reg[k]];
		struct dgram_slot *s = dgram_at(e->fd);
		uint32_t events = ready_events(s, e->events);
		int64_t i = 0;
		for (; i < n; i++)
			if (guest_read(&ev, c->arg[1] + (uint64_t)i * sizeof ev, sizeof ev))
				return -EFAULT;
			else if (ev.data.u64 == e->data)
				break;
		if (i == max)
			continue;
		if (i == n)
			ev = (struct epoll_event){ 0, { .u64 = e->data } };
		ev.events |= events;
		if (guest_write(c->arg[1] + (uint64_t)i * sizeof ev, &ev, sizeof ev))
			return -EFAULT;
		n += i == n;
		s->fresh = false;
	}
	return n;
}

/* Where there is room for one only, it is theirs and the others' by turns. */
static bool wait_epoll(struct hcall *c, int64_t *r)
{
	static unsigned turn;
	int reg[DGRAM_REGS], nr, max = (int)c->arg[2];
	if (max <= 0 || max > INT_MAX / (int)sizeof(struct epoll_event) ||
	    !gva_ok(c->arg[1], (uint64_t)max * sizeof(struct epoll_event)))
		return false;
	pthread_mutex_lock(&dgram_lock);
	turns_end();
	for (int i = 0; i < dgram_nr_regs; i++)
		if (dgram_regs[i].epoll == (int)c->arg[0] && dgram_at(dgram_regs[i].fd))
			dgram_reader(dgram_at(dgram_regs[i].fd), c);
	nr = epoll_ready((int)c->arg[0], reg);
	if (nr) {
		int theirs = max > nr ? max - nr : turn++ % 2 ? max : max - 1;
		*r = theirs ? HC6(SYS_epoll_wait, (int)c->arg[0], gva_ptr(c->arg[1]), theirs, 0, 0, 0) : 0;
		if (*r >= 0)
			*r = epoll_merge(c, reg, nr, batch_told(c->arg[1], *r));
	}
	pthread_mutex_unlock(&dgram_lock);
	return nr && *r;
}

/* ---- poll and select ------------------------------------------------------------------------------------------ */

/* Of a socket, or of an epoll that has such. */
static uint32_t poll_ready(int fd, uint32_t asked)
{
	const struct dgram_slot *s = dgram_at(fd);
	int reg[DGRAM_REGS];
	if (s)
		return ready_events(s, asked);
	return dgram_nr_regs && fd >= 0 && epoll_ready(fd, reg) ? asked & READ_EVENTS : 0;
}

static bool poll_read(const struct hcall *c, uint64_t i, struct pollfd *p)
{
	return !guest_read(p, c->arg[0] + i * sizeof *p, sizeof *p);
}

static bool wait_poll(struct hcall *c, int64_t *r)
{
	struct hcall now = *c;
	uint64_t n = (uint32_t)c->arg[1];
	struct pollfd p;
	bool any = false;
	if (n > pvm.fd_max)
		return false;
	pthread_mutex_lock(&dgram_lock);
	turns_end();
	for (uint64_t i = 0; i < n && poll_read(c, i, &p); i++) {
		if (dgram_at(p.fd))
			dgram_reader(dgram_at(p.fd), c);
		any |= poll_ready(p.fd, (uint32_t)p.events) != 0;
	}
	pthread_mutex_unlock(&dgram_lock);
	if (!any)
		return false;
	now.arg[2] = 0;
	*r = hc_poll(&now);
	if (*r < 0)
		return *r != -EINTR;
	pthread_mutex_lock(&dgram_lock);
	for (uint64_t i = 0; i < n && poll_read(c, i, &p); i++) {
		uint32_t more = poll_ready(p.fd, (uint32_t)p.events) & ~(uint32_t)p.revents;
		if (!more)
			continue;
		*r += !p.revents;
		p.revents |= (short)more;
		if (guest_write(c->arg[0] + i * sizeof p + offsetof(struct pollfd, revents), &p.revents,
				sizeof p.revents))
			*r = -EFAULT;
	}
	pthread_mutex_unlock(&dgram_lock);
	return *r != 0; /* another thread was quicker */
}

static unsigned set_words(const struct hcall *c)
{
	int n = (int)c->arg[0];
	return n <= 0 || !c->arg[1] ? 0 : n >= KX_DGRAM_FDS ? SET_WORDS : ((unsigned)n + 63) / 64;
}

static bool wait_select(struct hcall *c, int64_t *r)
{
	uint64_t asked[SET_WORDS], said[SET_WORDS], ready[SET_WORDS];
	unsigned words = set_words(c);
	bool any = false;
	if (!words || guest_read(asked, c->arg[1], words * 8))
		return false;
	pthread_mutex_lock(&dgram_lock);
	turns_end();
	for (unsigned i = 0; i < words; i++) {
		ready[i] = 0;
		for (uint64_t left = asked[i]; left; left &= left - 1) {
			int fd = (int)(i * 64) + __builtin_ctzll(left);
			if (dgram_at(fd))
				dgram_reader(dgram_at(fd), c);
			if (fd < (int)c->arg[0] && poll_ready(fd, POLLIN))
				ready[i] |= left & -left;
		}
		any |= ready[i] != 0;
	}
	pthread_mutex_unlock(&dgram_lock);
	if (!any)
		return false;
	*r = poll_select_now(c);
	if (*r < 0)
		return true;
	if (guest_read(said, c->arg[1], words * 8)) {
		*r = -EFAULT;
		return true;
	}
	for (unsigned i = 0; i < words; i++) {
		*r += __builtin_popcountll(ready[i] & ~said[i]);
		said[i] |= ready[i];
	}
	if (guest_write(c->arg[1], said, words * 8))
		*r = -EFAULT;
	return true;
}

bool dgram_wait(struct hcall *c, int64_t *r)
{
	if (is_epoll_wait(c->nr))
		return wait_epoll(c, r);
	return c->nr == SYS_poll || c->nr == SYS_ppoll ? wait_poll(c, r) : wait_select(c, r);
}

/* ---- after a wait ------------------------------------------------------------------------------------------------ */

/* Told to be readable: `fresh` stays what it is for what comes now, which the event has told of. */
static void readable(int fd)
{
	struct dgram_slot *s = dgram_at(fd);
	if (s && dgram_is_sole(s) && !dgram_has(s) && !s->err)
		dgram_fetch(s, fd, dgram_window(s, 1, true));
}

static bool waited_epoll(struct hcall *c, int64_t n)
{
	struct epoll_event ev;
	bool others = false;
	for (int64_t i = 0; i < n; i++) {
		bool ours = false;
		if (guest_read(&ev, c->arg[1] + (uint64_t)i * sizeof ev, sizeof ev))
			return true;
		for (int k = 0; ev.events & READ_EVENTS && k < dgram_nr_regs; k++)
			if (dgram_regs[k].epoll == (int)c->arg[0] && dgram_regs[k].data == ev.data.u64) {
				readable(dgram_regs[k].fd);
				ours = true;
			}
		others |= !ours || ev.events & ~(uint32_t)READ_EVENTS;
	}
	if (others || n < (int)c->arg[2])
		return others;
	/* There may be more: sockets that have nothing left are ready no longer. */
	struct pollfd p = { .fd = (int)c->arg[0], .events = POLLIN };
	struct timespec now = { 0, 0 };
	return HC6(SYS_ppoll, &p, 1, &now, 0, 8, 0) != 0;
}

static bool waited_poll(struct hcall *c)
{
	struct pollfd p;
	bool others = false;
	for (uint64_t i = 0; i < (uint32_t)c->arg[1] && poll_read(c, i, &p); i++) {
		if (p.fd < 0 || !p.revents)
			continue;
		if (p.revents & READ_EVENTS)
			readable(p.fd);
		others |= !dgram_at(p.fd) || p.revents & ~READ_EVENTS;
	}
	return others;
}

void dgram_waited(struct hcall *c, int64_t r)
{
	uint64_t said[SET_WORDS];
	unsigned words;
	bool others = true;
	batch_leases_look();
	pthread_mutex_lock(&dgram_lock);
	if (is_epoll_wait(c->nr))
		others = waited_epoll(c, r);
	else if (c->nr == SYS_poll || c->nr == SYS_ppoll)
		others = waited_poll(c);
	else if ((words = set_words(c)) && !guest_read(said, c->arg[1], words * 8))
		for (unsigned i = 0; i < words; i++)
			for (uint64_t left = said[i]; left; left &= left - 1)
				readable((int)(i * 64) + __builtin_ctzll(left));
	dgram_looked(others);
	pthread_mutex_unlock(&dgram_lock);
}
