/* SPDX-License-Identifier: Apache-2.0 */
/* Receives that come to the monitor, of sockets that are received ahead (dgram.h). */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include "dgram_priv.h"
#include "sys_net.h"
#define KX_DG_READ guest_read
#define KX_DG_WRITE guest_write
#include "../../abi/kx_dgram_take.h"

#define IOV_MOST 1024
#define FLAGS_KNOWN (MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT | MSG_WAITALL | MSG_NOSIGNAL | MSG_CMSG_CLOEXEC)

bool dgram_is_receive(uint64_t nr)
{
	return nr == SYS_recvfrom || nr == SYS_recvmsg || nr == SYS_recvmmsg || nr == SYS_read || nr == SYS_readv;
}

static int flags_of(const struct hcall *c)
{
	return c->nr == SYS_recvmsg                             ? (int)c->arg[2]
	       : c->nr == SYS_recvfrom || c->nr == SYS_recvmmsg ? (int)c->arg[3]
								: 0;
}

bool dgram_nowait(const struct hcall *c) { return flags_of(c) & MSG_DONTWAIT || sock_nonblocking((int)c->arg[0]); }

/* The next record of s, copied to *r, of word *w. NULL: there is none. */
static const uint8_t *next_record(struct dgram_slot *s, struct kx_dgrec *r, uint64_t *w)
{
	*w = __atomic_load_n(&dgram_sock(s)->rx, __ATOMIC_ACQUIRE);
	uint32_t pos = KX_DRX_POS(*w), end = KX_DRX_END(*w);
	if (pos == end)
		return NULL;
	const uint8_t *p = dgram_buffer(s) + pos;
	if (pos > end || end > KX_DGRAM_BUF_SIZE || end - pos < sizeof *r)
		pvm_panic("LibOS: the buffer of datagrams is broken");
	memcpy(r, p, sizeof *r);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (!kx_dgrec_ok(r, end - pos))
		pvm_panic("LibOS: the buffer of datagrams is broken");
	return p;
}

static bool take(struct dgram_slot *s, int flags, const struct kx_dto *to, struct kx_dgrec *r, struct kx_dgot *got)
{
	uint64_t w;
	for (const uint8_t *p; (p = next_record(s, r, &w));) {
		kx_dgram_deliver(r, p, to, (uint32_t)flags, got);
		uint64_t next = flags & MSG_PEEK ? w : w + r->size;
		if (!__atomic_compare_exchange_n(&dgram_sock(s)->rx, &w, next, false, __ATOMIC_SEQ_CST,
						 __ATOMIC_RELAXED))
			continue;
		if (!(flags & MSG_PEEK))
			dgram_sock(s)->attempts++;
		return true;
	}
	return false;
}

/* The handler finds out what is wrong with a vector that is not good: false. */
static bool vector(struct kx_dvec *v, uint64_t iov, uint64_t n)
{
	if (n > IOV_MOST || guest_read(v, iov, n * sizeof *v))
		return false;
	for (uint64_t i = 0; i < n; i++)
		if ((int64_t)v[i].len < 0 || (v[i].len && !gva_ok(v[i].base, v[i].len)))
			return false;
	return true;
}

/* As the LibOS's: 1 done, 0 nothing is here, -1 the handler's. */
static int take_message(struct dgram_slot *s, uint64_t gva, int flags, int64_t *ret)
{
	static struct kx_dvec v[IOV_MOST];
	struct kx_dmsghdr m;
	struct kx_dgrec r;
	struct kx_dgot got;
	if (guest_read(&m, gva, sizeof m) || (m.name && m.namelen < 0) || !vector(v, m.iov, m.iovlen))
		return -1;
	struct kx_dto to = { v, m.iovlen, m.control, m.controllen };
	if (!take(s, flags, &to, &r, &got))
		return 0;
	*ret = kx_dgram_header(&r, &m, gva, &got);
	return 1;
}

static int take_plain(struct hcall *c, struct dgram_slot *s, int64_t *ret)
{
	static struct kx_dvec v[IOV_MOST];
	struct kx_dto to = { .v = v, .n = 1 };
	struct kx_dgrec r;
	struct kx_dgot got;
	v[0] = (struct kx_dvec){ c->arg[1], c->arg[2] };
	if (c->nr == SYS_readv) {
		to.n = (uint32_t)c->arg[2];
		if (!vector(v, c->arg[1], to.n))
			return -1;
	}
	if (!take(s, flags_of(c), &to, &r, &got))
		return 0;
	*ret = c->nr == SYS_recvfrom && c->arg[4] ? kx_dgram_from(&r, c->arg[4], c->arg[5], &got) : got.r;
	return 1;
}

static uint64_t asked_bytes(const struct hcall *c)
{
	uint64_t n = 0;
	if (c->nr == SYS_read)
		return c->arg[2];
	for (int i = 0; c->nr == SYS_readv && c->iov && i < (int)c->arg[2]; i++)
		n += c->iov[i].iov_len;
	return c->nr == SYS_readv ? n : 1;
}

static void refill(const struct hcall *c, struct dgram_slot *s, uint32_t want)
{
	if (dgram_has(s) || s->plain || s->err)
		return;
	dgram_fetch(s, (int)c->arg[0], dgram_window(s, want, dgram_nowait(c)));
	s->fresh = true; /* came by no event */
}

/* *rest: there is more that can't be taken here. */
static int receive_some(struct hcall *c, struct dgram_slot *s, int64_t *ret, bool *rest)
{
	uint32_t n = (uint32_t)c->arg[2], done = 0;
	int flags = flags_of(c) & ~MSG_WAITFORONE;
	int64_t r = 0;
	int is = 1;
	bool asked = false; /* what the buffer says of the time before this call no longer counts */
	while (done < n) {
		uint64_t gva = c->arg[1] + (uint64_t)done * KX_DMMSG_SIZE;
		if (!dgram_has(s)) {
			if (done && asked && dgram_sock(s)->rx & KX_DRX_EMPTY)
				break;
			refill(c, s, n - done);
			asked = true;
		}
		if ((is = take_message(s, gva, flags, &r)) <= 0)
			break;
		uint32_t len = (uint32_t)r;
		if (r >= 0 && guest_write(gva + KX_DMMSG_LEN, &len, sizeof len))
			r = -EFAULT;
		if (r < 0)
			break;
		done++;
	}
	if (done < n && dgram_nowait(c))
		dgram_sock(s)->attempts++;
	if (done && r < 0)
		dgram_keep_error(s, (int)-r);
	*rest = done && (is < 0 || (!dgram_nowait(c) && !(flags_of(c) & MSG_WAITFORONE) && r >= 0 && done < n));
	*ret = done ? (int64_t)done : r;
	return done ? 1 : r < 0 ? 1 : is;
}

void dgram_keep_error(struct dgram_slot *s, int err)
{
	s->err = err;
	dgram_set_flag(s, KX_DS_ERR, true);
}

static bool tell_error(struct dgram_slot *s, int64_t *r)
{
	if (!s->err)
		return false;
	dgram_set_flag(s, KX_DS_ERR, false);
	*r = -s->err;
	s->err = 0;
	return true;
}

bool dgram_receive(struct hcall *c, struct dgram_slot *s, int64_t *r, bool *many)
{
	int flags = flags_of(c), is;
	*many = false;
	if (flags & ~(FLAGS_KNOWN | (c->nr == SYS_recvmmsg ? MSG_WAITFORONE : 0)) || !asked_bytes(c) ||
	    (c->nr == SYS_recvmmsg && !(uint32_t)c->arg[2]))
		return false;
	bool nowait = dgram_nowait(c);
	if (dgram_sock(s)->flags & KX_DS_ERR && tell_error(s, r))
		return true;
	if (c->nr == SYS_recvmmsg) {
		is = receive_some(c, s, r, many);
	} else {
		if (!(flags & MSG_PEEK))
			refill(c, s, 1);
		is = c->nr == SYS_recvmsg ? take_message(s, c->arg[1], flags, r) : take_plain(c, s, r);
		if (!is && nowait && !(flags & MSG_PEEK))
			dgram_sock(s)->attempts++;
	}
	if (is)
		return is > 0;
	if (tell_error(s, r))
		return true;
	if (!nowait)
		dgram_turn_ends(s); /* it is going to sleep */
	return false;
}

int64_t dgram_receive_rest(struct hcall *c, int64_t done, int *err)
{
	struct hcall rest = *c;
	rest.arg[1] += (uint64_t)done * KX_DMMSG_SIZE;
	rest.arg[2] = (uint32_t)c->arg[2] - (uint32_t)done;
	if ((int)c->arg[3] & MSG_WAITFORONE)
		rest.arg[3] |= MSG_DONTWAIT;
	int64_t r = hc_recvmmsg(&rest);
	*err = r < 0 && r != -EAGAIN && r != -EINTR && r != KX_NORESTART_EINTR ? (int)-r : 0;
	return r > 0 ? done + r : done;
}

void dgram_note_sender(struct hcall *c, struct dgram_slot *s, int64_t r)
{
	uint8_t bytes[KX_DGRAM_NAME];
	struct kx_dmsghdr m;
	uint64_t name = 0;
	int len = 0;
	if (c->nr == SYS_recvfrom && c->arg[4]) {
		name = c->arg[4];
		if (guest_read(&len, c->arg[5], sizeof len))
			return;
	} else if (c->nr == SYS_recvmsg || (c->nr == SYS_recvmmsg && r > 0)) {
		if (guest_read(&m, c->arg[1], sizeof m))
			return;
		name = m.name;
		len = m.namelen;
	}
	if (name && (len == sizeof(struct sockaddr_in) || len == (int)sizeof bytes) &&
	    !guest_read(bytes, name, (size_t)len))
		dgram_heard(s, bytes, (uint32_t)len);
}
