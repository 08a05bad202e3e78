/* SPDX-License-Identifier: Apache-2.0 */
/*
 * poll, select and epoll. Sets of descriptors are copied to the host, so that what was checked is what the kernel
 * looks at: a number in the monitor's range is to the guest a closed descriptor. Temporary signal masks never go to
 * the host call (the kernel would restore them behind sig.c); sig_mask_enter() and sig_mask_leave() put them around.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <time.h>
#include "../../util/now.h"
#include "batch.h"
#include "hcall.h"
#include "ipc.h"
#include "pipe.h"
#include "sig.h"
#include "sys_poll.h"
#include "update.h"

#define FEW_FDS 64 /* pollfds that need no malloc */
#define FEW_BITS 1024
#define NS_PER_SEC 1000000000ll
#define EPOLL_MAX (INT_MAX / (int)sizeof(struct epoll_event)) /* as the kernel's EP_MAX_EVENTS */

struct temp_mask {
	bool set;
	uint64_t bits;
};

static int get_mask(struct temp_mask *m, uint64_t gva, uint64_t size)
{
	m->set = gva != 0;
	if (!gva)
		return 0;
	if (size != sizeof m->bits)
		return -EINVAL;
	return guest_read(&m->bits, gva, sizeof m->bits);
}

/* Interrupted by a kick alone: nothing that the program may see. */
static bool only_kicked(struct thread *t, int64_t r) { return r == -EINTR && t->kicked && update_goes_on(t); }

static bool ts_valid(const struct timespec *ts)
{
	return ts->tv_sec >= 0 && ts->tv_nsec >= 0 && ts->tv_nsec < NS_PER_SEC;
}

static bool ts_zero(const struct timespec *ts) { return ts && !ts->tv_sec && !ts->tv_nsec; }

/* A mask opened for a call that does not wait: a signal counts only when nothing is ready. */
static int64_t nowait_result(struct hcall *c, const struct temp_mask *m, int64_t r)
{
	return r == 0 && m->set && c->t->sig_stop ? -EINTR : r;
}

/* ---- poll, ppoll ------------------------------------------------------------------------------------------- */

/* With descriptors that are POLLNVAL already: no wait, no EINTR. */
static int64_t poll_now(struct hcall *c, struct pollfd *p, unsigned n)
{
	struct timespec zero = { 0, 0 };
	int64_t r = pipe_ppoll(c, p, n, &zero);
	return r == -EINTR ? 0 : r;
}

/* The host's poll of p; the kernel leaves in *ts what remains, which is right for another turn, too. */
static int64_t poll_wait(struct hcall *c, struct pollfd *p, unsigned n, struct timespec *ts, const struct temp_mask *m)
{
	int64_t r;
	if (m->set && !sig_mask_enter(c->t, m->bits))
		return -KX_ERESTART_ALWAYS;
	if (ts_zero(ts))
		r = nowait_result(c, m, pipe_ppoll(c, p, n, ts));
	else
		do
			r = pipe_ppoll(c, p, n, ts);
		while (only_kicked(c->t, r));
	return m->set ? sig_mask_leave(c->t, r) : r;
}

/* Only revents are the kernel's to write: the rest may change under a poll. */
static int put_revents(uint64_t gva, const struct pollfd *p, const struct pollfd *orig, unsigned n)
{
	gva += offsetof(struct pollfd, revents);
	for (unsigned i = 0; i < n; i++)
		if (p[i].revents != orig[i].revents &&
		    guest_write(gva + i * sizeof *p, &p[i].revents, sizeof p[i].revents))
			return -EFAULT;
	return 0;
}

static int64_t poll_fds(struct hcall *c, struct pollfd *p, struct pollfd *orig, unsigned n, struct timespec *ts,
			const struct temp_mask *m)
{
	unsigned bad = 0;
	if (guest_read(orig, c->arg[0], n * sizeof *p))
		return -EFAULT;
	memcpy(p, orig, n * sizeof *p);
	for (unsigned i = 0; i < n; i++)
		if (p[i].fd >= 0 && !fd_is_guest(p[i].fd)) {
			p[i].fd = -1;
			bad++;
		} else if (p[i].fd >= 0) {
			mq_plain(p[i].fd);
			p[i].fd = batch_ready_fd(p[i].fd);
		}
	int64_t r = bad ? poll_now(c, p, n) : poll_wait(c, p, n, ts, m);
	if (r < 0)
		return r;
	for (unsigned i = 0; bad && i < n; i++)
		if (orig[i].fd >= 0 && !fd_is_guest(orig[i].fd))
			p[i].revents = POLLNVAL;
	return put_revents(c->arg[0], p, orig, n) ? -EFAULT : r + bad;
}

static int64_t poll_common(struct hcall *c, struct timespec *ts, const struct temp_mask *m)
{
	uint32_t n = (uint32_t)c->arg[1];
	struct pollfd few[2 * FEW_FDS], *p = few;
	if (n > pvm.fd_max) /* the kernel's own bound, RLIMIT_NOFILE, is not above */
		return -EINVAL;
	if (n > FEW_FDS) {
		p = malloc(2 * n * sizeof *p);
		if (!p)
			return -ENOMEM;
	}
	int64_t r = poll_fds(c, p, p + n, n, ts, m);
	if (p != few)
		free(p);
	return r;
}

int64_t hc_poll(struct hcall *c)
{
	struct timespec ts;
	struct temp_mask none = { false, 0 };
	int ms = (int)c->arg[2];
	ts.tv_sec = ms / 1000;
	ts.tv_nsec = ms % 1000 * 1000000l;
	return poll_common(c, ms < 0 ? NULL : &ts, &none);
}

int64_t hc_ppoll(struct hcall *c)
{
	struct timespec ts, *timeout;
	struct temp_mask mask;
	if (get_timespec(c->arg[2], &ts, &timeout))
		return -EFAULT;
	if (timeout && !ts_valid(timeout))
		return -EINVAL;
	int r = get_mask(&mask, c->arg[3], c->arg[4]);
	if (r)
		return r;
	bool update = timeout && !ts_zero(timeout);
	int64_t ret = poll_common(c, timeout, &mask);
	if (update) /* may be read-only memory: as in the kernel no error */
		guest_write(c->arg[2], &ts, sizeof ts);
	return ret;
}

/* ---- select, pselect6 --------------------------------------------------------------------------------------- */

struct fd_sets {
	unsigned n, bytes;
	uint64_t *set[3]; /* NULL where the guest gave none */
	uint64_t few[3][FEW_BITS / 64];
	uint64_t *many;
};

/* Is something in them that can't be open in the guest, but may be the monitor's? */
static bool sets_beyond(const struct fd_sets *s)
{
	for (unsigned fd = pvm.fd_limit; fd < s->n; fd++)
		for (int i = 0; i < 3; i++)
			if (s->set[i] && s->set[i][fd / 64] >> fd % 64 & 1)
				return true;
	return false;
}

/*
 * The kernel ignores what lies beyond the table of open files; the guest's has fd_limit entries. It reads and
 * writes whole words.
 */
static int sets_get(struct hcall *c, struct fd_sets *s)
{
	int n = (int)c->arg[0];
	s->many = NULL;
	if (n < 0)
		return -EINVAL;
	s->n = (unsigned)n < pvm.fd_max ? (unsigned)n : pvm.fd_max;
	unsigned words = (s->n + 63) / 64;
	s->bytes = words * 8;
	if (s->n > FEW_BITS) {
		s->many = malloc(3 * (size_t)s->bytes);
		if (!s->many)
			return -ENOMEM;
	}
	for (int i = 0; i < 3; i++) {
		s->set[i] = !c->arg[1 + i] ? NULL : s->many ? s->many + i * words : s->few[i];
		if (s->set[i] && guest_read(s->set[i], c->arg[1 + i], s->bytes))
			return -EFAULT;
	}
	return sets_beyond(s) ? -EBADF : 0;
}

static int64_t sets_put(struct hcall *c, struct fd_sets *s, int64_t r)
{
	for (int i = 0; r >= 0 && i < 3; i++)
		if (s->set[i] && guest_write(c->arg[1 + i], s->set[i], s->bytes))
			r = -EFAULT;
	return r;
}

#define SELECT_IN (POLLIN | POLLRDNORM | POLLRDBAND | POLLHUP | POLLERR)
#define SELECT_OUT (POLLOUT | POLLWRNORM | POLLWRBAND | POLLERR)

/* What poll tells unasked (an end) ends no select that did not ask for it: that descriptor is left out from then on. */
static bool nothing_asked(struct pollfd *p, unsigned n)
{
	bool none = true;
	for (unsigned k = 0; k < n; k++) {
		short e = p[k].events, r = p[k].revents;
		none = none && !(r & POLLNVAL) && !(e & POLLIN && r & SELECT_IN) && !(e & POLLOUT && r & SELECT_OUT) &&
		       !(e & r & POLLPRI);
	}
	for (unsigned k = 0; none && k < n; k++)
		if (p[k].revents)
			p[k].fd = -1;
	return none;
}

/* Does another descriptor tell of one of them in its place? */
static bool sets_elsewhere(const struct fd_sets *s)
{
	bool any = false;
	for (unsigned fd = 0; s->set[0] && fd < s->n; fd++)
		any |= s->set[0][fd / 64] >> fd % 64 & 1 && batch_ready_fd((int)fd) != (int)fd;
	return any;
}

static int64_t sets_from(struct fd_sets *s, const struct pollfd *p, unsigned n)
{
	static const short says[3] = { SELECT_IN, SELECT_OUT, POLLPRI }, asks[3] = { POLLIN, POLLOUT, POLLPRI };
	int64_t count = 0;
	for (unsigned k = 0; k < n; k++)
		if (p[k].revents & POLLNVAL)
			return -EBADF;
	for (int i = 0; i < 3; i++)
		if (s->set[i])
			memset(s->set[i], 0, s->bytes);
	for (unsigned k = 0; k < n; k++)
		for (int i = 0; i < 3; i++)
			if (p[k].events & asks[i] && p[k].revents & says[i]) {
				s->set[i][p[k].fd / 64] |= 1ull << p[k].fd % 64;
				count++;
			}
	return count;
}

/* What is asked of fd. */
static short sets_ask(const struct fd_sets *s, unsigned fd)
{
	static const short asks[3] = { POLLIN, POLLOUT, POLLPRI };
	short e = 0;
	for (int i = 0; i < 3; i++)
		if (s->set[i] && s->set[i][fd / 64] >> fd % 64 & 1)
			e |= asks[i];
	return e;
}

/* The descriptors by the numbers that the program has for them; one that was left out has none. */
static void sets_names(const struct fd_sets *s, struct pollfd *p)
{
	for (unsigned fd = 0; fd < s->n; fd++)
		if (sets_ask(s, fd)) {
			p->fd = p->fd < 0 ? -1 : (int)fd;
			p++;
		}
}

/* By poll, where pipes of the family's are among them, or one of which another tells. */
static int64_t select_pipes(struct hcall *c, long nr, void *timeout, bool nowait, const struct temp_mask *m,
			    struct fd_sets *s)
{
	struct timespec ts, *t = timeout ? &ts : NULL;
	struct timeval *tv = timeout;
	struct pollfd *p = malloc(s->n * sizeof *p);
	unsigned n = 0;
	int64_t r;
	if (!p)
		return -ENOMEM;
	if (t)
		ts = nr == SYS_select
			     ? (struct timespec){ tv->tv_sec + tv->tv_usec / 1000000, tv->tv_usec % 1000000 * 1000 }
			     : *(struct timespec *)timeout;
	for (unsigned fd = 0; fd < s->n; fd++) {
		const short e = sets_ask(s, fd);
		const int at = fd_is_guest((int)fd) ? (int)fd : INT_MAX;
		if (e)
			p[n++] = (struct pollfd){ e & POLLIN && at != INT_MAX ? batch_ready_fd(at) : at, e, 0 };
	}
	if (t && (ts.tv_sec < 0 || ts.tv_nsec < 0)) {
		r = -EINVAL;
	} else if (nowait) {
		r = nowait_result(c, m, pipe_ppoll(c, p, n, t));
	} else {
		do
			r = pipe_ppoll(c, p, n, t);
		while (only_kicked(c->t, r) || (r > 0 && nothing_asked(p, n)));
	}
	sets_names(s, p);
	if (r >= 0)
		r = sets_from(s, p, n);
	if (t && nr == SYS_select)
		*tv = (struct timeval){ ts.tv_sec, ts.tv_nsec / 1000 };
	else if (t)
		*(struct timespec *)timeout = ts;
	free(p);
	return r;
}

/* `timeout` is the host copy in the form of call nr; the kernel updates it. */
static int64_t select_common(struct hcall *c, long nr, void *timeout, bool nowait, const struct temp_mask *m)
{
	struct fd_sets s;
	int64_t r = sets_get(c, &s);
	if (r)
		goto out;
	if (m->set && !sig_mask_enter(c->t, m->bits)) {
		r = -KX_ERESTART_ALWAYS;
		goto out;
	}
	for (unsigned fd = 0; fd < s.n; fd++)
		for (int i = 0; i < 3; i++)
			if (s.set[i] && s.set[i][fd / 64] >> fd % 64 & 1)
				mq_plain((int)fd);
	if (sets_elsewhere(&s) || pipe_in_sets(s.n, s.set))
		r = select_pipes(c, nr, timeout, nowait, m, &s);
	else if (nowait)
		r = nowait_result(c, m, HC6(nr, s.n, s.set[0], s.set[1], s.set[2], timeout, 0));
	else
		do
			r = HB6(nr, s.n, s.set[0], s.set[1], s.set[2], timeout, 0);
		while (only_kicked(c->t, r));
	if (m->set)
		r = sig_mask_leave(c->t, r);
	r = sets_put(c, &s, r);
out:
	free(s.many);
	return r;
}

int64_t hc_select(struct hcall *c)
{
	struct timeval tv;
	struct temp_mask none = { false, 0 };
	uint64_t gva = c->arg[4];
	if (gva && guest_read(&tv, gva, sizeof tv))
		return -EFAULT;
	bool nowait = gva && !tv.tv_sec && !tv.tv_usec;
	int64_t r = select_common(c, SYS_select, gva ? &tv : NULL, nowait, &none);
	if (gva && !nowait && r != -EINVAL)
		guest_write(gva, &tv, sizeof tv);
	return r;
}

int64_t poll_select_now(struct hcall *c)
{
	struct timeval tv = { 0, 0 };
	struct temp_mask none = { false, 0 };
	return select_common(c, SYS_select, &tv, true, &none);
}

int64_t hc_pselect6(struct hcall *c)
{
	struct timespec ts, *timeout;
	struct temp_mask mask;
	uint64_t sig[2] = { 0, 0 }; /* address and size of the set */
	if (get_timespec(c->arg[4], &ts, &timeout))
		return -EFAULT;
	if (timeout && !ts_valid(timeout))
		return -EINVAL;
	if (c->arg[5] && guest_read(sig, c->arg[5], sizeof sig))
		return -EFAULT;
	int r = get_mask(&mask, sig[0], sig[1]);
	if (r)
		return r;
	bool nowait = ts_zero(timeout);
	int64_t ret = select_common(c, SYS_pselect6, timeout, nowait, &mask);
	if (timeout && !nowait)
		guest_write(c->arg[4], &ts, sizeof ts);
	return ret;
}

/* ---- epoll ---------------------------------------------------------------------------------------------------- */

int64_t hc_epoll_ctl(struct hcall *c)
{
	struct epoll_event ev, *arg = NULL;
	int op = (int)c->arg[1];
	/* Without an event the kernel answers: EFAULT, or success for EPOLL_CTL_DEL. */
	if (c->arg[3] && op != EPOLL_CTL_DEL) {
		if (guest_read(&ev, c->arg[3], sizeof ev))
			return -EFAULT;
		arg = &ev;
	}
	mq_plain((int)c->arg[2]);
	return HC6(SYS_epoll_ctl, (int)c->arg[0], op, (int)c->arg[2], arg, 0, 0);
}

/* Milliseconds to `end`, rounded up: never early. */
static int ms_until(int64_t end)
{
	int64_t ns = end - (int64_t)now_ns();
	return ns <= 0 ? 0 : (int)((ns + 999999) / 1000000);
}

static int64_t epoll_check(struct hcall *c)
{
	int max = (int)c->arg[2];
	if (max <= 0 || max > EPOLL_MAX)
		return -EINVAL;
	/* The kernel writes the events, and the guest's data in them is opaque: it may have the guest's memory. */
	return gva_ok(c->arg[1], (uint64_t)max * sizeof(struct epoll_event)) ? 0 : -EFAULT;
}

static int64_t epoll_ms(struct hcall *c, int ms)
{
	void *events = gva_ptr(c->arg[1]);
	int64_t r, end = ms > 0 ? (int64_t)now_ns() + ms * 1000000ll : 0;
	for (;;) {
		r = HB6(SYS_epoll_wait, (int)c->arg[0], events, (int)c->arg[2], ms, 0, 0);
		if (!only_kicked(c->t, r))
			return batch_told(c->arg[1], r);
		if (ms > 0)
			ms = ms_until(end);
	}
}

/* A turn that does not wait ends without a look at signals, as in the kernel: no mask, never EINTR. */
static int64_t epoll_now(struct hcall *c)
{
	return batch_told(c->arg[1], HC6(SYS_epoll_wait, (int)c->arg[0], gva_ptr(c->arg[1]), (int)c->arg[2], 0, 0, 0));
}

int64_t hc_epoll_wait(struct hcall *c)
{
	int ms = (int)c->arg[3];
	int64_t r = epoll_check(c);
	if (r)
		return r;
	return ms ? epoll_ms(c, ms) : epoll_now(c);
}

int64_t hc_epoll_pwait(struct hcall *c)
{
	struct temp_mask mask;
	int ms = (int)c->arg[3];
	int64_t r = get_mask(&mask, c->arg[4], c->arg[5]);
	if (!r)
		r = epoll_check(c);
	if (r)
		return r;
	if (!ms)
		return epoll_now(c);
	if (!mask.set)
		return epoll_ms(c, ms);
	if (!sig_mask_enter(c->t, mask.bits))
		return -KX_ERESTART_ALWAYS;
	return sig_mask_leave(c->t, epoll_ms(c, ms));
}

/* As epoll_ms(); *ts is the whole time on each turn, kicks are rare and make it longer at most. */
static int64_t epoll_ts(struct hcall *c, struct timespec *ts)
{
	int64_t r;
	do
		r = HB6(SYS_epoll_pwait2, (int)c->arg[0], gva_ptr(c->arg[1]), (int)c->arg[2], ts, 0, 0);
	while (only_kicked(c->t, r));
	return batch_told(c->arg[1], r);
}

int64_t hc_epoll_pwait2(struct hcall *c)
{
	struct timespec ts, *timeout;
	struct temp_mask mask;
	if (get_timespec(c->arg[3], &ts, &timeout))
		return -EFAULT;
	if (timeout && !ts_valid(timeout))
		return -EINVAL;
	int64_t r = get_mask(&mask, c->arg[4], c->arg[5]);
	if (!r)
		r = epoll_check(c);
	if (r)
		return r;
	if (ts_zero(timeout))
		return epoll_now(c);
	if (!mask.set)
		return epoll_ts(c, timeout);
	if (!sig_mask_enter(c->t, mask.bits))
		return -KX_ERESTART_ALWAYS;
	return sig_mask_leave(c->t, epoll_ts(c, timeout));
}
