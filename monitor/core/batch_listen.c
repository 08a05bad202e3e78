/* SPDX-License-Identifier: Apache-2.0 */
/* Which epoll tells of a listener: so it is known of which wait accepts will come. */
#include "batch_listen.h"
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define LISTENERS_MAX 16
#define WANT_FIRST 4

static struct listening all[LISTENERS_MAX];
static int nr_all;

struct listening *listen_of(int fd)
{
	for (int i = 0; i < LISTENERS_MAX && nr_all && fd >= 0; i++)
		if (all[i].used && all[i].fd == fd)
			return &all[i];
	return NULL;
}

static struct listening *listen_add(int fd)
{
	for (int i = 0; i < LISTENERS_MAX; i++) {
		if (all[i].used)
			continue;
		all[i] = (struct listening){ .used = true, .fd = fd, .epoll = -1, .want = WANT_FIRST };
		nr_all++;
		return &all[i];
	}
	return NULL;
}

bool listen_is_waiting(int fd, unsigned *n)
{
	struct tcp_info i = { 0 };
	socklen_t len = sizeof i;
	long fl = HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0);
	if (fl < 0 || !(fl & O_NONBLOCK) || fl & O_ASYNC ||
	    HC6(SYS_getsockopt, fd, IPPROTO_TCP, TCP_INFO, &i, &len, 0) || i.tcpi_state != TCP_LISTEN)
		return false;
	*n = i.tcpi_unacked;
	return true;
}

void listen_registered(const struct hcall *c)
{
	int epoll = (int)c->arg[0], op = (int)c->arg[1], fd = (int)c->arg[2];
	struct listening *l = listen_of(fd);
	struct epoll_event ev = { 0 };
	unsigned n;
	if (!l && (op != EPOLL_CTL_ADD || !listen_is_waiting(fd, &n) || !(l = listen_add(fd))))
		return;
	if (op == EPOLL_CTL_DEL) {
		if (l->epoll == epoll)
			l->epoll = -1;
		return;
	}
	if (guest_read(&ev, c->arg[3], sizeof ev) || (l->epoll >= 0 && l->epoll != epoll)) {
		l->odd = true;
		return;
	}
	l->epoll = epoll;
	l->events = ev.events;
	l->data = ev.data.u64;
}

void listen_forget(int fd)
{
	struct listening *l = listen_of(fd);
	if (!l)
		return;
	l->used = false;
	nr_all--;
}

void listen_forget_all(bool pools)
{
	for (int i = 0; i < LISTENERS_MAX && nr_all; i++) {
		if (!all[i].used)
			continue;
		all[i].accepts = 0;
		if (pools || !pool_has(all[i].fd))
			listen_forget(all[i].fd);
	}
}

void listen_closed(unsigned first, unsigned last)
{
	for (int i = 0; i < LISTENERS_MAX && nr_all; i++)
		if (all[i].used && (unsigned)all[i].epoll >= first && (unsigned)all[i].epoll <= last)
			all[i].epoll = -1;
	bell_forget_epolls(first, last);
}

bool listen_is_level(const struct listening *l)
{
	return l->epoll >= 0 && !l->odd && l->events & EPOLLIN && !(l->events & (EPOLLET | EPOLLONESHOT));
}

struct listening *listen_told(const struct hcall *c, int n)
{
	for (int i = 0; i < LISTENERS_MAX && nr_all; i++) {
		struct listening *l = &all[i];
		if (!l->used || l->epoll != (int)c->arg[0] || !listen_is_level(l))
			continue;
		for (int k = 0; k < n; k++) {
			struct epoll_event ev;
			if (guest_read(&ev, c->arg[1] + (uint64_t)k * sizeof ev, sizeof ev))
				return NULL;
			if (ev.data.u64 == l->data && ev.events & EPOLLIN)
				return l;
		}
	}
	return NULL;
}
