/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a receive that was asked for later gets a datagram that came before: by the LibOS, or by the monitor for calls
 * that the LibOS leaves to it. Who includes this says what KX_DG_READ(dst, gva, len) and KX_DG_WRITE(gva, src, len) are:
 * copies from and to the program's memory, 0 or -EFAULT.
 */
#ifndef KX_DGRAM_TAKE_H
#define KX_DGRAM_TAKE_H
#include "kx_dgram.h"

#ifndef KX_DG_READ
#define KX_DG_READ kx_dgram_read
#define KX_DG_WRITE kx_dgram_write
int kx_dgram_read(void *dst, uint64_t gva, size_t len);
int kx_dgram_write(uint64_t gva, const void *src, size_t len);
#endif

#define KX_MSG_PEEK 2u
#define KX_MSG_CTRUNC 8u
#define KX_MSG_TRUNC 0x20u
#define KX_MSG_DONTWAIT 0x40u
#define KX_MSG_NOSIGNAL 0x4000u
#define KX_MSG_WAITFORONE 0x10000u
#define KX_MSG_CMSG_CLOEXEC 0x40000000u
#define KX_DG_EFAULT 14
#define KX_DG_EINVAL 22
#define KX_DG_NAME_MAX 128 /* sizeof(struct sockaddr_storage) */

struct kx_dvec {
	uint64_t base, len;
};

/* struct user_msghdr */
struct kx_dmsghdr {
	uint64_t name;
	int32_t namelen, pad;
	uint64_t iov, iovlen, control, controllen;
	uint32_t flags, pad2;
};
#define KX_DMMSG_SIZE 64 /* struct mmsghdr: the header, then the length */
#define KX_DMMSG_LEN 56

struct kx_dto {
	const struct kx_dvec *v;
	uint64_t n;
	uint64_t ctl, ctlroom; /* 0: none asked for */
};

struct kx_dgot {
	int64_t r;
	uint32_t flags;
	uint64_t ctlused;
};

/* As the kernel's put_cmsg() does with each message, where the room ends. */
static inline int kx_dgram_ctl(const uint8_t *src, uint32_t len, const struct kx_dto *to, struct kx_dgot *got)
{
	struct {
		uint64_t len;
		int32_t level, type;
	} h;
	uint64_t room = to->ctl ? to->ctlroom : 0, at = to->ctl;
	for (uint32_t off = 0; off < len && len - off >= sizeof h; off += KX_D8((uint32_t)h.len)) {
		__builtin_memcpy(&h, src + off, sizeof h);
		if (h.len < sizeof h || h.len > len - off)
			break;
		uint64_t n = h.len, space = KX_D8((uint32_t)h.len);
		if (room < sizeof h) {
			got->flags |= KX_MSG_CTRUNC;
			continue;
		}
		if (n > room) {
			got->flags |= KX_MSG_CTRUNC;
			n = room;
		}
		if (space > room)
			space = room;
		uint64_t told = n;
		if (KX_DG_WRITE(at, &told, sizeof told) || KX_DG_WRITE(at + 8, &h.level, 8) ||
		    (n > sizeof h && KX_DG_WRITE(at + sizeof h, src + off + sizeof h, n - sizeof h)))
			return -KX_DG_EFAULT;
		at += space;
		room -= space;
	}
	got->ctlused = at - to->ctl;
	return 0;
}

/* Data and control data of the record r, which stands at p, go where `to` says. */
static inline void kx_dgram_deliver(const struct kx_dgrec *r, const uint8_t *p, const struct kx_dto *to, uint32_t flags,
				    struct kx_dgot *got)
{
	const uint8_t *data = p + sizeof *r;
	uint64_t done = 0;
	*got = (struct kx_dgot){ .flags = r->flags | (flags & KX_MSG_CMSG_CLOEXEC) };
	for (uint64_t i = 0; i < to->n && done < r->len; i++) {
		uint64_t part = to->v[i].len < r->len - done ? to->v[i].len : r->len - done;
		if (part && KX_DG_WRITE(to->v[i].base, data + done, part)) {
			got->r = -KX_DG_EFAULT;
			return;
		}
		done += part;
	}
	if (done < r->len)
		got->flags |= KX_MSG_TRUNC;
	got->r = flags & KX_MSG_TRUNC ? (int64_t)r->len : (int64_t)done;
	if (r->ctllen && kx_dgram_ctl(data + KX_D8(r->len), r->ctllen, to, got))
		got->r = -KX_DG_EFAULT;
}

/* The sender's address; *room: the caller's length, then the real one. */
static inline int kx_dgram_name(const struct kx_dgrec *r, uint64_t gva, int32_t *room)
{
	int32_t n = *room < (int32_t)r->namelen ? *room : (int32_t)r->namelen;
	if (n < 0)
		return -KX_DG_EINVAL;
	if (n && KX_DG_WRITE(gva, r->name, (uint64_t)n))
		return -KX_DG_EFAULT;
	*room = r->namelen;
	return 0;
}

/* What recvmsg(2) writes back into the header at gva, which m is a copy of; its result. */
static inline int64_t kx_dgram_header(const struct kx_dgrec *r, struct kx_dmsghdr *m, uint64_t gva,
				      const struct kx_dgot *got)
{
	int32_t room = m->namelen < KX_DG_NAME_MAX ? m->namelen : KX_DG_NAME_MAX;
	if (got->r < 0)
		return got->r;
	if (m->name) {
		int e = kx_dgram_name(r, m->name, &room);
		if (e)
			return e;
		if (KX_DG_WRITE(gva + offsetof(struct kx_dmsghdr, namelen), &room, sizeof room))
			return -KX_DG_EFAULT;
	}
	if (KX_DG_WRITE(gva + offsetof(struct kx_dmsghdr, flags), &got->flags, sizeof got->flags) ||
	    KX_DG_WRITE(gva + offsetof(struct kx_dmsghdr, controllen), &got->ctlused, sizeof got->ctlused))
		return -KX_DG_EFAULT;
	return got->r;
}

/* And recvfrom(2), with an address asked for. */
static inline int64_t kx_dgram_from(const struct kx_dgrec *r, uint64_t gva, uint64_t len_gva, const struct kx_dgot *got)
{
	int32_t room;
	if (got->r < 0)
		return got->r;
	if (KX_DG_READ(&room, len_gva, sizeof room))
		return -KX_DG_EFAULT;
	int e = kx_dgram_name(r, gva, &room);
	if (e)
		return e;
	return KX_DG_WRITE(len_gva, &room, sizeof room) ? -KX_DG_EFAULT : got->r;
}
#endif
