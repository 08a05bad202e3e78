/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernel would not take of what the program was told is sent, though batch_room.c had said that it will. It is kept in
 * order and given as soon as it is taken: by the flusher, and by each call that names the socket. Until then a write finds
 * no room, and from then on the socket is told none ahead.
 *
 * A shutdown is done behind what is left. A socket that is closed goes on under a number of
 * the monitor's until all is sent, as the kernel's own does; those that get nothing off for long, or are too many, are
 * reset. At the end of the process, and at its exec, there is END_MS for all of them; what is left then is lost, as it is for who is
 * killed.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include "../../util/log.h"
#include "../../util/now.h"
#include "batch_priv.h"
#include "flusher.h"

#define LEFT_MAX (64u << 20)  /* bytes, of all sockets */
#define LEFT_SHUT 0x80000000u /* in flags: no data; what was sent before is the last */
#define CLOSED_MAX 128
#define CLOSED_MS 60000 /* without anything sent */
#define END_MS 5000
#define WRITE_MS 10 /* a write waits so long for what is left, then it is made again */

/* A socket that the program has closed. */
struct closed {
	struct closed *next;
	int fd;
	int64_t since_ms; /* something was sent, or it was closed */
	struct left *left;
};
static struct closed *closed_first; /* in order of their close */
static unsigned nr_closed;

static int64_t now_ms(void) { return (int64_t)(now_ns() / 1000000); }

long batch_try_send(int fd, const void *p, uint32_t len, uint32_t flags)
{
	return HC6(SYS_sendto, fd, p, len, (flags & MSG_MORE) | MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
}

static void drop(struct left **first)
{
	for (struct left *l = *first, *next; l; l = next) {
		next = l->next;
		batch.left_bytes -= l->len + sizeof *l;
		free(l);
	}
	*first = NULL;
}

void batch_drop_left(struct sock *s) { drop(&s->left); }

bool batch_left_is_much(void) { return batch.left_bytes > LEFT_MAX / 2; }

/* Behind what is there. False: there is no room. */
static bool add(struct left **end, const uint8_t *p, uint32_t len, uint32_t flags)
{
	struct left *l = batch.left_bytes + len + sizeof *l <= LEFT_MAX ? malloc(sizeof *l + len) : NULL;
	if (!l)
		return false;
	*l = (struct left){ NULL, len, 0, flags };
	if (len)
		memcpy(l->data, p, len);
	batch.left_bytes += len + sizeof *l;
	while (*end)
		end = &(*end)->next;
	*end = l;
	flusher_due();
	return true;
}

/* The other side must not take what it has got for all. */
static void reset(int fd, bool tcp)
{
	const struct sockaddr none = { .sa_family = AF_UNSPEC };
	if (!tcp || HC6(SYS_connect, fd, &none, sizeof none, 0, 0, 0))
		HC6(SYS_shutdown, fd, SHUT_RDWR, 0, 0, 0, 0);
}

void batch_keep(int fd, struct sock *s, const uint8_t *p, uint32_t len, uint32_t flags)
{
	s->tight = true;
	__atomic_store_n(&batch_guest_sock(fd)->credit, 0, __ATOMIC_SEQ_CST);
	if (add(&s->left, p, len, flags))
		return;
	kx_log(KX_LOG_WARN, "batch", "descriptor %d: no room for what it would not send: the connection is reset", fd);
	drop(&s->left);
	reset(fd, s->kind == TCP);
	batch_send_failed(fd, s, -ENOBUFS);
}

/* 0: all is sent; -EAGAIN: not yet, *some if a part; another error: nothing more of it will be. */
static long drive(int fd, struct left **first, bool *some)
{
	for (struct left *l; (l = *first);) {
		long r = 0;
		if (l->flags & LEFT_SHUT)
			HC6(SYS_shutdown, fd, SHUT_WR, 0, 0, 0, 0);
		else
			r = batch_try_send(fd, l->data + l->done, l->len - l->done, l->flags);
		if (r < 0)
			return r;
		*some = true;
		l->done += (uint32_t)r;
		if (l->done < l->len)
			continue;
		*first = l->next;
		batch.left_bytes -= l->len + sizeof *l;
		free(l);
	}
	return 0;
}

void batch_drive_left(int fd, struct sock *s)
{
	bool some = false;
	long r = drive(fd, &s->left, &some);
	if (r && r != -EAGAIN) {
		batch_send_failed(fd, s, r);
		drop(&s->left);
	}
}

static void wait_for_room(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLOUT };
	struct timespec ts = { 0, 10000000 };
	HC6(SYS_ppoll, &p, 1, &ts, 0, 8, 0);
}

int batch_drain_left(int fd, struct sock *s, int ms)
{
	for (; s->left && ms > 0; ms -= 10) {
		batch_drive_left(fd, s);
		if (s->left)
			wait_for_room(fd);
	}
	return ms;
}

/* ---- sockets that end ---------------------------------------------------------------------------------------------- */

void batch_shut_left(int fd, struct sock *s)
{
	s->shut = true;
	if (!s->left || !add(&s->left, NULL, 0, LEFT_SHUT))
		HC6(SYS_shutdown, fd, SHUT_WR, 0, 0, 0, 0);
}

bool batch_write_behind(const struct hcall *c, int fd, struct sock *s, int64_t *r)
{
	uint64_t flags = c->nr == SYS_sendto || c->nr == SYS_sendmmsg ? c->arg[3]
			 : c->nr == SYS_sendmsg                       ? c->arg[2]
								      : 0;
	bool nowait = s->nonblock || flags & MSG_DONTWAIT;
	if (!s->shut && !nowait)
		batch_drain_left(fd, s, WRITE_MS);
	*r = s->shut ? -EPIPE : nowait ? -EAGAIN : -KX_ERESTART_ALWAYS;
	return s->left;
}

bool batch_shutdown_behind(const struct hcall *c, int fd, struct sock *s, int64_t *r)
{
	int how = (int)c->arg[1];
	batch_drive_left(fd, s);
	if (!s->left || how < SHUT_RD || how > SHUT_RDWR)
		return false;
	batch_give_up(fd, s);
	*r = how == SHUT_WR ? 0 : HC6(SYS_shutdown, fd, SHUT_RD, 0, 0, 0, 0);
	if (how != SHUT_RD)
		batch_shut_left(fd, s);
	return true;
}

/* Takes it out of the list. */
static void end_closed(struct closed **at, bool whole)
{
	struct linger hard = { 1, 0 };
	struct closed *c = *at;
	*at = c->next;
	if (!whole)
		HC6(SYS_setsockopt, c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard, 0);
	HC6(SYS_close, c->fd, 0, 0, 0, 0, 0);
	drop(&c->left);
	free(c);
	nr_closed--;
}

bool batch_close_left(int fd, struct sock *s)
{
	struct closed *c = malloc(sizeof *c), **end = &closed_first;
	fd_limit_lift();
	long n = c ? HC6(SYS_fcntl, fd, F_DUPFD_CLOEXEC, pvm.fd_limit, 0, 0, 0) : -1;
	fd_limit_drop();
	if (n < 0) {
		free(c);
		return false;
	}
	if (s->epoll >= 0) /* which would go on to tell of it */
		HC6(SYS_epoll_ctl, s->epoll, EPOLL_CTL_DEL, fd, 0, 0, 0);
	if (nr_closed >= CLOSED_MAX)
		end_closed(&closed_first, false);
	*c = (struct closed){ NULL, (int)n, now_ms(), s->left };
	s->left = NULL;
	while (*end)
		end = &(*end)->next;
	*end = c;
	nr_closed++;
	return true;
}

void batch_drive_closed(void)
{
	for (struct closed **at = &closed_first; *at;) {
		struct closed *c = *at;
		bool some = false;
		long r = drive(c->fd, &c->left, &some);
		if (some)
			c->since_ms = now_ms();
		if (!r)
			end_closed(at, true);
		else if (r != -EAGAIN || now_ms() - c->since_ms > CLOSED_MS)
			end_closed(at, false);
		else
			at = &c->next;
	}
}

bool batch_has_closed(void) { return nr_closed; }

void batch_end_left(void)
{
	int ms = END_MS;
	for (int fd = 0; batch.left_bytes && fd <= batch.top_fd; fd++)
		if (batch_sock(fd) && batch.socks[fd].left)
			ms = batch_drain_left(fd, &batch.socks[fd], ms);
	for (batch_drive_closed(); closed_first && ms > 0; batch_drive_closed(), ms -= 10)
		wait_for_room(closed_first->fd);
	while (closed_first)
		end_closed(&closed_first, false);
}

int batch_closed_fds(int (*move)(int *fd))
{
	int r = 0;
	for (struct closed *c = closed_first; c && !r; c = c->next)
		r = move(&c->fd);
	return r;
}

void batch_closed_fork_child(void)
{
	for (struct closed *c = closed_first, *next; c; c = next) {
		next = c->next;
		HC6(SYS_close, c->fd, 0, 0, 0, 0, 0);
		drop(&c->left);
		free(c);
	}
	closed_first = NULL;
	nr_closed = 0;
}
