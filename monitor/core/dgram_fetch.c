/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Receiving ahead (dgram.h): several datagrams by one call of the host's. How long each is nobody knows before, so the first has the
 * buffer in guest memory for itself; what comes behind it is copied to where that ends. Long ones come one by one, without a copy.
 */
#include <errno.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include "../../util/seldom.h"
#include "dgram_priv.h"
#include "sys_net.h"

#define CTL_MAX 512
#define DATA_MAX 0x10000
#define LONGEST (sizeof(struct kx_dgrec) + DATA_MAX + CTL_MAX)
#define BURST 7        /* of the longest there is room for as many in an empty buffer */
#define SHORT_MAX 2048 /* longer ones are long */

_Static_assert(BURST *LONGEST <= KX_DGRAM_PEERS, "a burst fits");
_Static_assert(KX_DGRAM_FULL + LONGEST <= KX_DGRAM_PEERS, "behind what is there one does");

/* What a call brings; with dgram_lock. Control data is zero but in between: what pads it goes to the guest. */
static struct {
	struct mmsghdr m[BURST];
	struct iovec v[BURST][2];
	struct sockaddr_storage name[BURST];
	_Alignas(8) uint8_t ctl[BURST][CTL_MAX];
} in;
/* Of others than the first; NULL: there was none yet. */
static struct behind {
	uint8_t begin[SHORT_MAX], rest[DATA_MAX - SHORT_MAX];
} * behind;

static void arm(unsigned i, uint8_t *first)
{
	in.v[i][0] = first ? (struct iovec){ first, DATA_MAX } : (struct iovec){ behind[i].begin, SHORT_MAX };
	if (!first)
		in.v[i][1] = (struct iovec){ behind[i].rest, sizeof behind[i].rest };
	in.m[i].msg_hdr = (struct msghdr){ .msg_name = &in.name[i],
					   .msg_namelen = sizeof in.name[i],
					   .msg_iov = in.v[i],
					   .msg_iovlen = first ? 1 : 2,
					   .msg_control = in.ctl[i],
					   .msg_controllen = sizeof in.ctl[i] };
}

/* At most n, of which the first goes to p as a record does. How many came; -errno. */
static long receive(int fd, uint8_t *p, unsigned n)
{
	arm(0, p + sizeof(struct kx_dgrec));
	for (unsigned i = 1; i < n; i++)
		if (!in.m[i].msg_hdr.msg_controllen) /* it was used, or never yet */
			arm(i, NULL);
	if (n == 1) {
		long r = HC6(SYS_recvmsg, fd, &in.m[0].msg_hdr, MSG_DONTWAIT, 0, 0, 0);
		in.m[0].msg_len = (unsigned)r;
		return r < 0 ? r : 1;
	}
	return HC6(SYS_recvmmsg, fd, in.m, n, MSG_DONTWAIT, 0, 0);
}

/* The i-th that came becomes a record at p. Its size. */
static uint32_t record(struct dgram_slot *s, unsigned i, uint8_t *p)
{
	struct msghdr *m = &in.m[i].msg_hdr;
	struct kx_dgrec r = { .len = in.m[i].msg_len,
			      .flags = (uint32_t)m->msg_flags & (MSG_CTRUNC | MSG_TRUNC),
			      .namelen = (uint16_t)(m->msg_namelen < sizeof r.name ? m->msg_namelen : sizeof r.name),
			      .ctllen = (uint16_t)m->msg_controllen };
	uint8_t *data = p + sizeof r;
	if (i) {
		memcpy(data, behind[i].begin, r.len < SHORT_MAX ? r.len : SHORT_MAX);
		if (r.len > SHORT_MAX)
			memcpy(data + SHORT_MAX, behind[i].rest, r.len - SHORT_MAX);
	}
	memcpy(r.name, &in.name[i], r.namelen);
	r.size = (uint32_t)sizeof r + KX_D8(r.len) + KX_D8((uint32_t)r.ctllen);
	memcpy(data + KX_D8(r.len), in.ctl[i], r.ctllen);
	memset(in.ctl[i], 0, r.ctllen);
	memcpy(p, &r, sizeof r);
	m->msg_controllen = 0;
	s->is_long = r.len > SHORT_MAX;
	dgram_heard(s, r.name, r.namelen);
	return r.size;
}

/* At most n, behind the `end` bytes that the buffer has. How many; 0: none was there. */
static unsigned fetch_some(struct dgram_slot *s, int fd, uint32_t *end, uint32_t n)
{
	const uint32_t fit = (uint32_t)((KX_DGRAM_PEERS - *end) / LONGEST);
	unsigned i = 0;
	n = s->is_long ? 1 : n < BURST ? n : BURST;
	n = n < fit ? n : fit;
	if (n > 1 && !seldom_map((void **)&behind, BURST * sizeof *behind)) /* no memory: one by one */
		n = 1;
	const long came = receive(fd, dgram_buffer(s) + *end, n);
	if (came < 0 && came != -EAGAIN) {
		s->err = (int)-came;
		dgram_set_flag(s, KX_DS_HEARD, false);
	}
	/* Without a sender: the last, it was shut down. */
	for (; (long)i < came && (in.m[i].msg_len || in.m[i].msg_hdr.msg_namelen); i++)
		*end += record(s, i, dgram_buffer(s) + *end);
	for (long k = i; k < came; k++)
		in.m[k].msg_hdr.msg_controllen = 0;
	return i;
}

static void tell_credit(const struct dgram_slot *s, int fd)
{
	uint32_t m[SK_MEMINFO_VARS] = { 0 }, room = 0;
	socklen_t len = sizeof m;
	if (HC6(SYS_getsockopt, fd, SOL_SOCKET, SO_MEMINFO, m, &len, 0) == 0 &&
	    m[SK_MEMINFO_SNDBUF] > m[SK_MEMINFO_WMEM_ALLOC])
		room = m[SK_MEMINFO_SNDBUF] - m[SK_MEMINFO_WMEM_ALLOC];
	__atomic_store_n(&dgram_sock(s)->credit, room < INT32_MAX ? room : INT32_MAX, __ATOMIC_SEQ_CST);
}

void dgram_fetch(struct dgram_slot *s, int fd, uint32_t n)
{
	struct kx_dsock *g = dgram_sock(s);
	uint32_t end = 0;
	unsigned came = 1;
	uint64_t w;
	if (s->plain)
		return;
	__atomic_store_n(&g->rx, KX_DRX_WORD(++s->word, 0), __ATOMIC_SEQ_CST);
	s->fresh = false;
	for (; n && end < KX_DGRAM_FULL && (came = fetch_some(s, fd, &end, n)); n -= came)
		;
	tell_credit(s, fd);
	dgram_set_flag(s, KX_DS_NONBLOCK, sock_nonblocking(fd));
	dgram_set_flag(s, KX_DS_SEND, !s->nosend && !s->err);
	g->calls = __atomic_load_n(&dgram_shared()->calls, __ATOMIC_SEQ_CST);
	w = KX_DRX_WORD(++s->word, end);
	if (!came && !s->err)
		w |= KX_DRX_EMPTY;
	__atomic_store_n(&g->rx, w, __ATOMIC_SEQ_CST);
}
