/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Socket pairs in an epoll. The host waits, so what its sockets say must be what the rings would:
 *
 * - readable: a token is there as long as data is. The LibOS leaves it there when it has read all; so before each wait of
 *   this process tokens without data are taken out.
 * - writable: who finds no room, and is watched, makes the host's socket full by filler; who makes room takes that out,
 *   which is the edge, too.
 * - edges: the token makes one where there was no data. Where there was, the writer puts one more there, once somebody
 *   watches by edges; so each write is an exit then.
 */
#include <poll.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include "pair_priv.h"
#include "pipe.h"

static uint32_t *watched(uint64_t key) { return &pipe_obj(kx_pipe_obj(key))->watched[kx_pipe_end(key)]; }

bool pair_is_watched(uint64_t key) { return pair_word(watched(key)); }
bool pair_writable(uint64_t key) { return pair_has_room(pipe_obj(kx_pipe_way(key, 1))); }

void pair_watch(uint64_t key, int fd)
{
	struct pair p = pair_of(key, fd);
	if (!pipe_used(p.in)) {
		pair_settle(key, fd);
	} else if (pair_word(&p.in->token) > 8 && !pair_word(&p.in->filled) && pair_live(&p) && pair_locks_get(p.in)) {
		if (pair_live(&p))
			pair_token_take(&p);
		pair_locks_put(p.in);
	}
	if (pair_word(watched(key)) & KX_PAIR_WATCH_OUT && pair_live(&p) && !pair_has_room(p.out) &&
	    !pair_word(&p.out->filled))
		pair_fill(key, fd);
}

int64_t pair_epoll_ctl(struct hcall *c)
{
	struct epoll_event ev;
	int fd = (int)c->arg[2];
	uint64_t key = pipe_key_for(fd);
	if (key && (int)c->arg[1] != EPOLL_CTL_DEL && c->arg[3] && !guest_read(&ev, c->arg[3], sizeof ev)) {
		struct pair p = pair_of(key, fd);
		uint32_t what = KX_PAIR_WATCH_IN | (ev.events & (EPOLLOUT | EPOLLWRNORM) ? KX_PAIR_WATCH_OUT : 0);
		__atomic_or_fetch(watched(key), what, __ATOMIC_SEQ_CST);
		if (ev.events & EPOLLET)
			__atomic_store_n(&p.in->edge, 1, __ATOMIC_SEQ_CST);
		pipe_watching();
		pair_watch(key, fd);
	}
	return hc_fn(c->row)(c);
}

void pair_wrote(uint64_t key, int fd)
{
	struct pair p = pair_of(key, fd);
	if (!pair_word(&p.out->edge) || !pipe_lock_get(&p.out->wlock))
		return;
	if (pair_live(&p) && pipe_used(p.out))
		pair_token_more(&p);
	pipe_lock_put(&p.out->wlock);
}

void pair_read_some(uint64_t key, int fd)
{
	struct pair p = pair_of(key, fd);
	pair_room(&p);
}
