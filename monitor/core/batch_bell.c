/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A listener of which all connections were accepted ahead is not ready any more for the kernel. As long as some are kept that the
 * program has not got, a pipe with a byte in it is: registered in the listener's epoll with the listener's data, so each wait
 * there tells of the listener, also one that has begun before, and one for that epoll. poll and select look at it in the
 * listener's place (batch_ready_fd()). It is made anew where the listener is registered otherwise: no epoll holds one that is
 * another's. Both are ready where more have come since: its event is known by its kind, and one wait tells of one.
 */
#include "batch_listen.h"
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int bell[2] = { -1, -1 };
static int bell_of = -1, bell_epoll = -1; /* the listener; where it is registered */
static uint64_t bell_data;
static bool rung;

/* The data of the last bell, and of each pool's last registration, which may be in an epoll yet, a parent's as well. */
static struct {
	uint64_t data;
	bool *look; /* NULL: the bell's */
	bool is;
} told[1 + POOLS_MAX];
static unsigned nr_told; /* none is behind */

void bell_tells(unsigned slot, uint64_t data, bool *look)
{
	__atomic_store_n(&told[slot].data, data, __ATOMIC_RELAXED);
	__atomic_store_n(&told[slot].look, look, __ATOMIC_RELAXED);
	__atomic_store_n(&told[slot].is, true, __ATOMIC_RELEASE);
	if (slot >= nr_told)
		__atomic_store_n(&nr_told, slot + 1, __ATOMIC_RELEASE);
}

static void bell_close(void)
{
	for (int i = 0; i < 2; i++)
		if (bell[i] >= 0)
			HC6(SYS_close, bell[i], 0, 0, 0, 0, 0);
	bell[0] = bell[1] = bell_of = bell_epoll = -1;
	rung = false;
}

static bool bell_make(void)
{
	int fd[2];
	fd_limit_lift();
	const long r = HC6(SYS_pipe2, fd, O_CLOEXEC | O_NONBLOCK, 0, 0, 0, 0);
	fd_limit_drop();
	if (r)
		return false;
	bell[0] = fd_hide(fd[0]);
	bell[1] = fd_hide(fd[1]);
	if (bell[0] >= 0 && bell[1] >= 0)
		return true;
	bell_close();
	return false;
}

bool bell_register(int listener, int epoll, uint64_t data)
{
	struct epoll_event ev = { BELL_EVENT, { .u64 = data } };
	if (bell_of == listener && bell_epoll == epoll && bell_data == data)
		return true;
	const bool was = rung;
	bell_close();
	if (!bell_make())
		return false;
	if (epoll >= 0 && HC6(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, bell[0], &ev, 0, 0)) {
		bell_close();
		return false;
	}
	bell_of = listener;
	bell_epoll = epoll;
	bell_data = data;
	bell_tells(0, data, NULL);
	if (was)
		bell_ring(true);
	return true;
}

void bell_ring(bool on)
{
	char c = 0;
	if (bell[0] < 0 || on == rung)
		return;
	rung = on;
	if (on)
		HC6(SYS_write, bell[1], &c, 1, 0, 0, 0);
	else
		HC6(SYS_read, bell[0], &c, 1, 0, 0, 0);
}

int bell_fd(int listener) { return rung && listener == bell_of ? bell[0] : -1; }

void bell_follow(const struct hcall *c)
{
	const int epoll = (int)c->arg[0], fd = (int)c->arg[2];
	struct epoll_event ev;
	if (bell_fd(fd) < 0)
		return;
	if ((int)c->arg[1] != EPOLL_CTL_DEL && !guest_read(&ev, c->arg[3], sizeof ev))
		bell_register(fd, epoll, ev.data.u64);
	else if (epoll == bell_epoll)
		bell_register(fd, -1, 0);
}

void bell_forget_epolls(unsigned first, unsigned last)
{
	if (bell_epoll >= 0 && (unsigned)bell_epoll >= first && (unsigned)bell_epoll <= last)
		bell_register(bell_of, -1, 0);
}

void bell_fork_child(void) { bell_close(); }

void bell_hand(struct batch_handed *h)
{
	if (bell_fd(h->listener) < 0)
		return;
	for (int i = 0; i < 2; i++)
		HC6(SYS_fcntl, h->bell[i] = bell[i], F_SETFD, 0, 0, 0, 0);
	h->bell_epoll = bell_epoll;
	h->bell_data = bell_data;
}

void bell_adopt(const struct batch_handed *h)
{
	if (h->bell[0] < 0)
		return;
	for (int i = 0; i < 2; i++)
		HC6(SYS_fcntl, bell[i] = h->bell[i], F_SETFD, FD_CLOEXEC, 0, 0, 0);
	bell_of = h->listener;
	bell_epoll = h->bell_epoll;
	bell_data = h->bell_data;
	bell_tells(0, bell_data, NULL);
	rung = true;
}

int bell_fds(int (*move)(int *fd))
{
	int r = 0;
	if (bell[0] < 0)
		return 0;
	if (bell_epoll >= 0) /* it is there by its number */
		HC6(SYS_epoll_ctl, bell_epoll, EPOLL_CTL_DEL, bell[0], NULL, 0, 0);
	for (int i = 0; i < 2 && !r; i++)
		r = move(&bell[i]);
	struct epoll_event ev = { BELL_EVENT, { .u64 = bell_data } };
	if (bell_epoll >= 0)
		HC6(SYS_epoll_ctl, bell_epoll, EPOLL_CTL_ADD, bell[0], &ev, 0, 0);
	return r;
}

/* ---- what waits tell ------------------------------------------------------------------------------------------------- */

struct events {
	struct epoll_event *host; /* NULL: the guest's, from gva on */
	uint64_t gva;
};

static bool event_get(const struct events *e, int64_t i, struct epoll_event *ev)
{
	if (e->host)
		*ev = e->host[i];
	return e->host || !guest_read(ev, e->gva + (uint64_t)i * sizeof *ev, sizeof *ev);
}

static int64_t tell_one(const struct events *e, int64_t n, uint64_t data, bool *look)
{
	struct epoll_event ev;
	int64_t at = -1;
	bool by_itself = false;
	for (int64_t i = 0; i < n && event_get(e, i, &ev); i++) {
		if (ev.data.u64 != data)
			continue;
		if (ev.events == BELL_EVENT)
			at = i;
		else
			by_itself |= ev.events & EPOLLIN;
	}
	if (at < 0)
		return n;
	if (look)
		__atomic_store_n(look, true, __ATOMIC_SEQ_CST);
	ev = (struct epoll_event){ EPOLLIN, { .u64 = data } };
	if (by_itself && !event_get(e, --n, &ev)) /* the last one takes its place */
		return n;
	if (e->host)
		e->host[at] = ev;
	else
		guest_write(e->gva + (uint64_t)at * sizeof ev, &ev, sizeof ev);
	return n;
}

static int64_t tell(const struct events *e, int64_t n)
{
	const unsigned slots = __atomic_load_n(&nr_told, __ATOMIC_ACQUIRE);
	for (unsigned i = 0; i < slots && n > 0; i++)
		if (__atomic_load_n(&told[i].is, __ATOMIC_ACQUIRE))
			n = tell_one(e, n, __atomic_load_n(&told[i].data, __ATOMIC_RELAXED),
				     __atomic_load_n(&told[i].look, __ATOMIC_RELAXED));
	return n;
}

int bell_tell(struct epoll_event *ev, int n) { return (int)tell(&(struct events){ .host = ev }, n); }

int64_t batch_told(uint64_t gva, int64_t n) { return tell(&(struct events){ .gva = gva }, n); }
