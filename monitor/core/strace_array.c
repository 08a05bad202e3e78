/* SPDX-License-Identifier: Apache-2.0 */
/* See strace_priv.h: arrays, and structures of variable size. */
#include "strace_priv.h"
#include <arpa/inet.h>
#include <inttypes.h>
#include <string.h>
#include <sys/un.h>
#include "strace_names.h"

void put_fixed_array(struct line *l, const struct fixed *f, uint64_t gva, uint64_t n)
{
	uint8_t b[400];
	uint64_t i;

	if (!gva || (n && guest_read(b, gva, f->size))) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "[");
	for (i = 0; i < n && i < ELEMS_SHOWN; i++) {
		puts_(l, i ? ", " : "");
		put_fixed(l, f, gva + i * f->size);
	}
	puts_(l, i < n ? ", ...]" : "]");
}

/* pollfds; `result`: only those with revents. Returns how many entries it showed. */
void put_pollfds(struct line *l, uint64_t gva, uint64_t n, bool result)
{
	struct pollfd p;
	uint64_t i, shown = 0;

	if (!gva || (n && guest_read(&p, gva, sizeof(p)))) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "[");
	for (i = 0; i < n && i < 4096 && shown < ELEMS_SHOWN; i++) {
		if (guest_read(&p, gva + i * sizeof(p), sizeof(p)))
			break;
		if (result && !p.revents)
			continue;
		put(l, "%s{fd=%d, %sevents=", shown ? ", " : "", p.fd, result ? "r" : "");
		put_set(l, &ss_poll, (uint16_t)(result ? p.revents : p.events));
		puts_(l, "}");
		shown++;
	}
	puts_(l, i < n ? ", ...]" : "]");
}

/* The members of a set in the monitor's memory; returns how many. */
int put_bits(struct line *l, const uint8_t *set, int n)
{
	int found = 0;

	puts_(l, "[");
	for (int i = 0; i < n; i++)
		if (set[i / 8] >> (i % 8) & 1)
			put(l, "%s%d", found++ ? " " : "", i);
	puts_(l, "]");
	return found;
}

void put_fdset_was(struct line *l, int i)
{
	const int n = (int)l->arg[0];
	const uint8_t *set = n > 0 && n <= 8 * BEFORE_MAX ? was(l, i, ((unsigned)n + 7) / 8) : NULL;

	if (set)
		put_bits(l, set, n);
	else
		put_fdset(l, l->arg[i], n);
}

void put_fdset(struct line *l, uint64_t gva, int nfds)
{
	uint64_t w = 0;
	const char *sep = "";
	int i;

	if (!gva || (nfds > 0 && guest_read(&w, gva, 8))) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "[");
	for (i = 0; i < nfds && i < 65536; i++) {
		if (i % 64 == 0 && guest_read(&w, gva + (unsigned)i / 8, 8))
			break;
		if (w >> (i % 64) & 1) {
			put(l, "%s%d", sep, i);
			sep = " ";
		}
	}
	puts_(l, "]");
}

/* have: bytes of the vector that hold data (for readv what was read). */
void put_iovec(struct line *l, uint64_t gva, uint64_t n, uint64_t have)
{
	struct {
		uint64_t base, len;
	} v;
	uint64_t i, m;

	if (!gva || (n && guest_read(&v, gva, sizeof(v)))) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "[");
	for (i = 0; i < n && i < ELEMS_SHOWN; i++) {
		if (guest_read(&v, gva + i * sizeof(v), sizeof(v)))
			break;
		m = v.len < have ? v.len : have;
		have -= m;
		puts_(l, i ? ", {iov_base=" : "{iov_base=");
		if (m || !v.len)
			put_data(l, v.base, m);
		else
			put_ptr(l, v.base);
		put(l, ", iov_len=%" PRIu64 "}", v.len);
	}
	puts_(l, i < n ? ", ...]" : "]");
}

/* A vector of strings, of argv's kind. */
void put_strings(struct line *l, uint64_t gva)
{
	uint64_t p, i;

	if (!gva || guest_read(&p, gva, 8)) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "[");
	for (i = 0; p && i < ELEMS_SHOWN; i++) {
		puts_(l, i ? ", " : "");
		put_str_short(l, p);
		if (guest_read(&p, gva + 8 * (i + 1), 8))
			break;
	}
	puts_(l, p ? ", ...]" : "]");
}

void put_count(struct line *l, uint64_t gva, uint64_t n)
{
	put(l, "%#" PRIx64 " /* %" PRIu64 " var%s */", gva, n, n == 1 ? "" : "s");
}

void put_environ(struct line *l, uint64_t gva)
{
	uint64_t p, n = 0;

	while (gva && n < 65536 && !guest_read(&p, gva + 8 * n, 8) && p)
		n++;
	if (gva)
		put_count(l, gva, n);
	else
		puts_(l, "NULL");
}

void put_sockaddr(struct line *l, uint64_t gva, uint64_t len)
{
	union {
		struct sockaddr sa;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
		struct sockaddr_un un;
		struct {
			uint16_t family, pad;
			uint32_t pid, groups;
		} nl;
	} u;
	char name[INET6_ADDRSTRLEN];
	size_t n = len < sizeof(u) ? len : sizeof(u), path;

	memset(&u, 0, sizeof(u));
	if (!gva || n < sizeof(u.sa.sa_family) || guest_read(&u, gva, n)) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "{sa_family=");
	put_set(l, &ss_family, u.sa.sa_family);
	if (u.sa.sa_family == AF_INET && n >= sizeof(u.in)) {
		inet_ntop(AF_INET, &u.in.sin_addr, name, sizeof(name));
		put(l, ", sin_port=htons(%u), sin_addr=inet_addr(\"%s\")", ntohs(u.in.sin_port), name);
	} else if (u.sa.sa_family == AF_INET6 && n >= sizeof(u.in6)) {
		inet_ntop(AF_INET6, &u.in6.sin6_addr, name, sizeof(name));
		put(l,
		    ", sin6_port=htons(%u), sin6_flowinfo=htonl(%u), inet_pton(AF_INET6, \"%s\", &sin6_addr), "
		    "sin6_scope_id=%u",
		    ntohs(u.in6.sin6_port), ntohl(u.in6.sin6_flowinfo), name, u.in6.sin6_scope_id);
	} else if (u.sa.sa_family == AF_UNIX && n > sizeof(u.sa.sa_family)) {
		path = n < sizeof(u.un) ? n - 2 : sizeof(u.un.sun_path);
		if (u.un.sun_path[0]) {
			puts_(l, ", sun_path=");
			put_chars(l, u.un.sun_path, path);
		} else {
			puts_(l, ", sun_path=@\"");
			put_escaped(l, (uint8_t *)u.un.sun_path + 1, path - 1 < 64 ? path - 1 : 64, false);
			puts_(l, path - 1 > 64 ? "\"..." : "\"");
		}
	} else if (u.sa.sa_family == AF_NETLINK && n >= sizeof(u.nl)) {
		put(l, ", nl_pid=%u, nl_groups=%08x", u.nl.pid, u.nl.groups);
	} else if (n > sizeof(u.sa.sa_family)) {
		puts_(l, ", sa_data=");
		put_data(l, gva + 2, len - 2);
	}
	puts_(l, "}");
}

/* Ancillary data of a message: descriptors are shown, the rest by level and type. */
static void put_cmsgs(struct line *l, uint64_t gva, uint64_t len)
{
	struct {
		uint64_t len;
		int32_t level, type;
	} h;
	uint64_t off = 0, i;
	int32_t fd;
	int n;

	puts_(l, "[");
	for (n = 0; n < 8 && off + sizeof(h) <= len && !guest_read(&h, gva + off, sizeof(h)); n++) {
		if (h.len < sizeof(h) || h.len > len - off)
			break;
		put(l, "%s{cmsg_len=%" PRIu64 ", cmsg_level=", n ? ", " : "", h.len);
		put_set(l, &ss_sol, (uint32_t)h.level);
		if (h.level == SOL_SOCKET && h.type == SCM_RIGHTS) {
			puts_(l, ", cmsg_type=SCM_RIGHTS, cmsg_data=[");
			for (i = 0; i < (h.len - sizeof(h)) / 4 && i < ELEMS_SHOWN; i++)
				if (!guest_read(&fd, gva + off + sizeof(h) + i * 4, 4))
					put(l, "%s%d", i ? ", " : "", fd);
			puts_(l, "]}");
		} else {
			put(l, ", cmsg_type=%#x}", (unsigned)h.type);
		}
		off += (h.len + 7) & ~7ull;
	}
	puts_(l, "]");
}

/* have: how many bytes there are; namelen: the room for an address, 0 when it isn't known. */
static void put_msghdr_of(struct line *l, uint64_t gva, uint64_t have, uint32_t namelen)
{
	struct {
		uint64_t name;
		uint32_t namelen, pad;
		uint64_t iov, iovlen, control, controllen;
		uint32_t flags, pad2;
	} m;

	if (!gva || guest_read(&m, gva, sizeof(m))) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "{msg_name=");
	put_sockaddr(l, m.name, m.namelen);
	if (namelen && namelen != m.namelen)
		put(l, ", msg_namelen=%u => %u, msg_iov=", namelen, m.namelen);
	else
		put(l, ", msg_namelen=%u, msg_iov=", m.namelen);
	put_iovec(l, m.iov, m.iovlen, have);
	put(l, ", msg_iovlen=%" PRIu64, m.iovlen);
	if (m.control && m.controllen) {
		puts_(l, ", msg_control=");
		put_cmsgs(l, m.control, m.controllen);
	}
	put(l, ", msg_controllen=%" PRIu64 ", msg_flags=", m.controllen);
	put_set(l, &ss_msg, m.flags);
	puts_(l, "}");
}

void put_msghdr(struct line *l, uint64_t gva, bool written)
{
	const uint32_t *namelen = was(l, 1, 4);

	if (written && l->ret < 0 && gva && namelen)
		put(l, "{msg_namelen=%u}", *namelen);
	else if (written && l->ret < 0)
		put_ptr(l, gva);
	else
		put_msghdr_of(l, gva, written ? (uint64_t)l->ret : ~0ull, written && namelen ? *namelen : 0);
}

/* struct mmsghdr: a msghdr and the length that was sent or received. */
void put_mmsgs(struct line *l, uint64_t gva, uint64_t n, bool written)
{
	const uint64_t size = 64, len_at = 56;
	const uint64_t done = l->ret < 0 ? 0 : (uint64_t)l->ret, shown = written ? done : n;
	uint32_t len;
	uint64_t i;

	if (!gva || (written && l->ret < 0) || (n && guest_read(&len, gva + len_at, 4))) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "[");
	for (i = 0; i < shown && i < ELEMS_SHOWN && !guest_read(&len, gva + i * size + len_at, 4); i++) {
		puts_(l, i ? ", {msg_hdr=" : "{msg_hdr=");
		put_msghdr_of(l, gva + i * size, written ? len : ~0ull, 0);
		if (i < done)
			put(l, ", msg_len=%u", len);
		puts_(l, "}");
	}
	puts_(l, i < shown ? ", ...]" : "]");
}

/* Entries of a getdents buffer are counted, as strace does. */
void put_dirents(struct line *l, uint64_t gva)
{
	uint64_t off = 0, n = 0;
	uint16_t reclen;

	put_ptr(l, gva);
	if (l->ret < 0)
		return;
	for (; off < (uint64_t)l->ret && n < 65536 && !guest_read(&reclen, gva + off + 16, 2) && reclen; off += reclen)
		n++;
	put(l, " /* %" PRIu64 " entries */", n);
}
