/* SPDX-License-Identifier: Apache-2.0 */
/* poll, ppoll and select of pipes of the family's among other descriptors. */
#include "pipe.h"
#include <errno.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include "../../util/now.h"
#include "../../abi/kx_pipe.h"
#include "pipe_priv.h"

#define WATCH_MAX 64
#define IN_EVENTS (POLLIN | POLLRDNORM)
#define OUT_EVENTS (POLLOUT | POLLWRNORM)

struct watch {
	uint64_t key;
	unsigned i; /* in the caller's array */
	short events;
	bool asleep;
	bool rest; /* of a socket pair that is plain: some data is left in the ring */
};

bool pipe_in_sets(unsigned n, uint64_t *const set[3])
{
	bool ours = pipe_table_is_ours();
	unsigned end = !pipe_mem ? 0 : ours ? pipe_fds : n;
	for (unsigned fd = 0; fd < n && fd < end; fd++)
		for (int i = 0; i < 3; i++)
			if (set[i] && set[i][fd / 64] >> fd % 64 & 1 &&
			    (ours ? pipe_key_get((int)fd) : pipe_find_fd((int)fd)))
				return true;
	return false;
}

static short ring_events(const struct watch *w)
{
	uint32_t n = pipe_used(pipe_object(w->key));
	if (kx_pipe_pair(w->key)) {
		n = pipe_used(pipe_obj(kx_pipe_way(w->key, 0)));
		return (n ? w->events & IN_EVENTS : 0) |
		       (!w->rest && pair_writable(w->key) ? w->events & OUT_EVENTS : 0);
	}
	if (!kx_pipe_end(w->key))
		return n ? w->events & IN_EVENTS : 0;
	return KX_PIPE_RING - n >= KX_PIPE_ATOMIC ? w->events & OUT_EVENTS : 0;
}

/* The rings among p. What can't be watched becomes plain. -errno, or how many. */
static int watches_find(struct watch *w, struct pollfd *p, unsigned n)
{
	int nw = 0, r;
	for (unsigned i = 0; pipe_mem && i < n; i++) {
		uint64_t key = p[i].fd < 0 ? 0 : pipe_key_for(p[i].fd);
		if (!key)
			continue;
		if (kx_pipe_pair(key))
			pair_settle(key, p[i].fd);
		bool rest = kx_pipe_pair(key) && pair_rest(key);
		if (!rest && !pipe_is_live(pipe_object(key), key))
			continue;
		if ((pipe_table_is_ours() && nw < WATCH_MAX) || rest) {
			if (nw == 2 * WATCH_MAX)
				return -ENOMEM;
			w[nw++] = (struct watch){ key, i, p[i].events, false, rest };
		} else if ((r = pipe_make_plain(key, p[i].fd))) {
			return r;
		} else if (kx_pipe_pair(key) && pair_rest(key)) {
			if (nw == 2 * WATCH_MAX)
				return -ENOMEM;
			w[nw++] = (struct watch){ key, i, p[i].events, false, true };
		}
	}
	return nw;
}

/* Before the caller sleeps. 1: it may; 0: something came; -errno. Room can't be waited for together with other things:
 * a pipe that is full and watched becomes plain. */
static int watch_sleep(struct watch *w, int fd)
{
	struct kx_pipe *o = pipe_object(w->key);
	if (w->rest)
		return 1;
	if (kx_pipe_pair(w->key)) {
		int r = w->events & OUT_EVENTS ? pair_fill(w->key, fd) : 1;
		if (r <= 0)
			return r;
		pair_settle(w->key, fd);
		return !(w->events & IN_EVENTS) || !ring_events(w);
	}
	if (kx_pipe_end(w->key)) {
		int r = w->events & OUT_EVENTS ? pipe_make_plain(w->key, fd) : 1;
		return r < 0 ? r : r > 0;
	}
	if (!(w->events & IN_EVENTS))
		return 1;
	if (!pipe_lock_get(&o->rlock))
		return -EINTR;
	w->asleep = pipe_is_live(o, w->key) && pipe_sleep_prepare(o, w->key, fd);
	pipe_lock_put(&o->rlock);
	return w->asleep;
}

static bool watches_live(const struct watch *w, int nw, const struct pollfd *p)
{
	for (int k = 0; k < nw; k++)
		if (pipe_key_for(p[w[k].i].fd) != w[k].key ||
		    (w[k].rest ? !pair_rest(w[k].key) : !pipe_is_live(pipe_object(w[k].key), w[k].key)))
			return false;
	return true;
}

/* What the host is asked. It tells of a socket's hang-up by events that were asked for. */
static short host_events(const struct watch *w, bool sleep)
{
	if (w->rest)
		return w->events;
	if (!kx_pipe_pair(w->key))
		return sleep && w->asleep ? POLLIN : 0;
	return (short)((w->events & POLLRDHUP) | (w->events & IN_EVENTS ? POLLRDHUP | (sleep ? POLLIN : 0) : 0) |
		       (w->events & OUT_EVENTS && sleep ? POLLOUT : 0));
}

/* What the caller sees, where the host's answer is `got`. */
static short watch_result(const struct watch *w, short got)
{
	short ring = ring_events(w), ends = got & (POLLHUP | POLLERR | POLLNVAL);
	if (w->rest)
		return (short)(got | ring);
	if (!kx_pipe_pair(w->key))
		return (short)(ends | ring);
	if (!pipe_used(pipe_obj(kx_pipe_way(w->key, 1)))) /* a token that was never read is no data that was lost */
		ends &= ~POLLERR;
	if (got & (POLLHUP | POLLRDHUP))
		ring |= w->events & (IN_EVENTS | POLLRDHUP);
	return (short)(ends | ring);
}

/* One look, or one sleep of at most *t. *slept: it was one. */
static int64_t watch_once(struct watch *w, int nw, struct pollfd *p, unsigned n, struct timespec *t, bool may_sleep)
{
	bool sleep = may_sleep;
	struct timespec zero = { 0, 0 };
	int r = 1;
	for (int k = 0; k < nw; k++)
		sleep = sleep && !ring_events(&w[k]);
	for (int k = 0; k < nw && sleep; k++)
		sleep = (r = watch_sleep(&w[k], p[w[k].i].fd)) > 0;
	for (int k = 0; k < nw; k++)
		p[w[k].i].events = host_events(&w[k], sleep);
	int64_t ret = r < 0 ? r : sleep ? HB6(SYS_ppoll, p, n, t, 0, 0, 0) : HC6(SYS_ppoll, p, n, &zero, 0, 0, 0);
	for (int k = 0; k < nw; k++) {
		p[w[k].i].events = w[k].events;
		if (w[k].asleep)
			__atomic_sub_fetch(&pipe_object(w[k].key)->sleepers, 1, __ATOMIC_SEQ_CST);
		w[k].asleep = false;
	}
	if (ret == -EINTR && !sleep)
		ret = 0;
	if (ret < 0)
		return ret;
	for (int k = 0; k < nw; k++)
		p[w[k].i].revents = watch_result(&w[k], p[w[k].i].revents);
	ret = 0;
	for (unsigned i = 0; i < n; i++)
		ret += p[i].revents != 0;
	return ret;
}

static void ts_set(struct timespec *ts, uint64_t ns)
{
	ts->tv_sec = (time_t)(ns / 1000000000);
	ts->tv_nsec = (long)(ns % 1000000000);
}

int64_t pipe_ppoll(struct hcall *c, struct pollfd *p, unsigned n, struct timespec *ts)
{
	struct watch w[2 * WATCH_MAX];
	bool wait = !ts || ts->tv_sec || ts->tv_nsec;
	uint64_t start = now_ns(), limit = UINT64_MAX, slice = SLICE_FIRST_NS;
	if (ts && (uint64_t)ts->tv_sec < limit / 2000000000)
		limit = ts->tv_sec * 1000000000ull + ts->tv_nsec;
	(void)c;
	for (unsigned turn = 0;;) {
		if (pipe_in_vain(turn++)) /* two in turn say what they please */
			return -EINTR;
		int nw = watches_find(w, p, n);
		if (nw < 0)
			return nw;
		if (!nw)
			return wait ? HB6(SYS_ppoll, p, n, ts, 0, 0, 0) : HC6(SYS_ppoll, p, n, ts, 0, 0, 0);
		while (watches_live(w, nw, p)) {
			if (pipe_in_vain(turn++))
				return -EINTR;
			struct timespec t;
			uint64_t pipe_gone = now_ns() - start, left = pipe_gone < limit ? limit - pipe_gone : 0;
			ts_set(&t, left < slice ? left : slice);
			int64_t r = watch_once(w, nw, p, n, &t, wait && left);
			pipe_gone = now_ns() - start;
			left = pipe_gone < limit ? limit - pipe_gone : 0;
			if (ts && wait)
				ts_set(ts, left);
			if (!watches_live(w, nw, p) && r >= 0)
				break; /* what it said of them was of the ring */
			if (r || !wait || !left)
				return r;
			slice = slice * 2 < SLICE_LAST_NS ? slice * 2 : SLICE_LAST_NS;
		}
	}
}
