/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sockets. Addresses, message headers and control data are copied to the host, checked and used from there; data
 * goes between the kernel and guest memory directly. Descriptors that a message carries are held to the guest's
 * range both ways. Only UNIX, INET, INET6 and NETLINK_ROUTE sockets exist.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include "../../util/now.h"
#include "batch.h"
#include "dgram.h"
#include "futexes.h"
#include "hcall.h"
#include "ipc.h"
#include "pipe.h"
#include "sig.h"
#include "sys_net.h"
#include "update.h"
#include "vfs.h"

#define IOV_LIMIT 1024
#define CTL_LIMIT (64u << 10) /* bytes of control data; the kernel's own limit is net.core.optmem_max */
#define OPT_LIMIT (64u << 10) /* bytes of an option's value */
#define FLOWLABEL_MGR 32      /* of IPv6; its header can't be included beside <netinet/in.h> */
#define FLOWLABEL_AT 16       /* offset of the label in struct in6_flowlabel_req */
#define SCM_PIDFD_NR 4        /* carries one descriptor, as SCM_RIGHTS; younger than some headers */

/* ---- waiting ----------------------------------------------------------------------------------------------- */

bool sock_nonblocking(int fd)
{
	long fl = HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0);
	return fl >= 0 && (fl & O_NONBLOCK);
}

bool sock_timeout(int fd, int opt, struct timeval *tv)
{
	socklen_t len = sizeof *tv;
	return HC6(SYS_getsockopt, fd, SOL_SOCKET, opt, tv, &len, 0) == 0 && (tv->tv_sec || tv->tv_usec);
}

/* Without a signal and a kick: stopped and continued. */
int64_t sock_interrupted(const struct hcall *c, int fd, int opt)
{
	struct timeval tv;
	return (c->t->sig_stop || !c->t->kicked) && sock_timeout(fd, opt, &tv) ? KX_NORESTART_EINTR : -EINTR;
}

/*
 * A call on socket a that may sleep unless `dontwait`. A signal must neither make a call fail that would not have
 * slept (O_NONBLOCK: it is made after all), nor restart one with a timeout (`opt`: SO_RCVTIMEO or SO_SNDTIMEO),
 * signal(7).
 */
static int64_t sock_call(struct hcall *c, int opt, bool dontwait, long nr, long a, long b, long d, long e, long f,
			 long g)
{
	if (dontwait)
		return HC6(nr, a, b, d, e, f, g);
	int64_t r = HB6(nr, a, b, d, e, f, g);
	if (r != -EINTR)
		return r;
	if (c->t->sig_stop && sock_nonblocking((int)a))
		return HC6(nr, a, b, d, e, f, g);
	return sock_interrupted(c, (int)a, opt);
}

static bool nowait(int flags) { return flags & MSG_DONTWAIT; }

/* Receiving everything must not end early by a signal that the guest blocks and the host does not. */
static void before_recv(struct hcall *c, int flags)
{
	if (flags & MSG_WAITALL)
		sig_sync_block(c->t);
}

/* ---- addresses --------------------------------------------------------------------------------------------- */

static int name_get(struct sockaddr_storage *ss, uint64_t gva, int len)
{
	if (len < 0 || len > (int)sizeof *ss)
		return -EINVAL;
	return len ? guest_read(ss, gva, len) : 0;
}

/* Give out an address of len bytes: as much as fits `room`, the guest's length. */
static int name_put(uint64_t gva, int room, const struct sockaddr_storage *ss, int len)
{
	int n = len < (int)sizeof *ss ? len : (int)sizeof *ss;
	if (room < 0)
		return -EINVAL;
	if (n > room)
		n = room;
	return n > 0 ? guest_write(gva, ss, n) : 0;
}

/* As name_put(), with the room in a socklen_t that receives the real length. */
static int name_put_len(uint64_t gva, uint64_t len_gva, const struct sockaddr_storage *ss, int len)
{
	int room;
	if (guest_read(&room, len_gva, sizeof room))
		return -EFAULT;
	int r = name_put(gva, room, ss, len);
	return r ? r : guest_write(len_gva, &len, sizeof len);
}

/* ---- making sockets ---------------------------------------------------------------------------------------- */

static int family_check(int domain, int type, int protocol)
{
	bool raw = (type & 0xf) == SOCK_RAW;
	switch (domain) {
	case AF_UNIX:
		return 0;
	case AF_INET:
	case AF_INET6:
		/* To ask for these loads modules on the host; SCTP's options hold addresses. */
		return !raw && (protocol == IPPROTO_SCTP || protocol == IPPROTO_DCCP || protocol == 115 /* L2TP */ ||
				protocol == 256 /* SMC */)
			       ? -EPROTONOSUPPORT
			       : 0;
	case AF_NETLINK:
		return protocol == NETLINK_ROUTE ? 0 : -EPROTONOSUPPORT;
	}
	return -EAFNOSUPPORT;
}

int64_t hc_socket(struct hcall *c)
{
	int domain = (int)c->arg[0], type = (int)c->arg[1], protocol = (int)c->arg[2];
	int r = family_check(domain, type, protocol);
	return r ? r : fd_result(HC6(SYS_socket, domain, type, protocol, 0, 0, 0));
}

static void close_fd(int fd) { HC6(SYS_close, fd, 0, 0, 0, 0, 0); }

int64_t hc_socketpair(struct hcall *c)
{
	int domain = (int)c->arg[0], type = (int)c->arg[1], protocol = (int)c->arg[2], sv[2];
	int64_t r = family_check(domain, type, protocol);
	if (!r)
		r = pipe_pair_make(domain, type, protocol, sv);
	if (r)
		return r;
	if (!fd_admit(sv[0]) || !fd_admit(sv[1]))
		r = -EMFILE;
	else
		r = guest_write(c->arg[3], sv, sizeof sv);
	if (r) {
		pipe_close(sv[0]);
		pipe_close(sv[1]);
	}
	return r;
}

int64_t hc_accept4(struct hcall *c)
{
	struct sockaddr_storage ss;
	int len = sizeof ss, flags = c->nr == SYS_accept4 ? (int)c->arg[3] : 0;
	bool named = c->arg[1] != 0;
	int64_t fd = fd_result(sock_call(c, SO_RCVTIMEO, false, SYS_accept4, (int)c->arg[0], named ? (long)&ss : 0,
					 named ? (long)&len : 0, flags, 0, 0));
	if (fd < 0 || !named)
		return fd;
	int r = name_put_len(c->arg[1], c->arg[2], &ss, len);
	if (r)
		close_fd((int)fd);
	return r ? r : fd;
}

int64_t hc_connect(struct hcall *c)
{
	struct sockaddr_storage ss;
	int len = (int)c->arg[2], r = name_get(&ss, c->arg[1], len);
	return r ? r : sock_call(c, SO_SNDTIMEO, false, SYS_connect, (int)c->arg[0], (long)&ss, len, 0, 0, 0);
}

int64_t hc_bind(struct hcall *c)
{
	struct sockaddr_storage ss;
	int len = (int)c->arg[2], r = name_get(&ss, c->arg[1], len);
	return r ? r : HC6(SYS_bind, (int)c->arg[0], &ss, len, 0, 0, 0);
}

/* And getpeername. */
int64_t hc_getsockname(struct hcall *c)
{
	struct sockaddr_storage ss;
	int len = sizeof ss;
	int64_t r = HC6(c->nr, (int)c->arg[0], &ss, &len, 0, 0, 0);
	return r ? r : name_put_len(c->arg[1], c->arg[2], &ss, len);
}

/* ---- single buffers ---------------------------------------------------------------------------------------- */

int64_t hc_sendto(struct hcall *c)
{
	struct sockaddr_storage ss;
	int flags = (int)c->arg[3], len = (int)c->arg[5];
	bool named = c->arg[4] != 0;
	int r = named ? name_get(&ss, c->arg[4], len) : 0;
	if (r)
		return r;
	return sock_call(c, SO_SNDTIMEO, nowait(flags), SYS_sendto, (int)c->arg[0], c->host[1], c->host[2], flags,
			 named ? (long)&ss : 0, named ? len : 0);
}

int64_t hc_recvfrom(struct hcall *c)
{
	struct sockaddr_storage ss;
	int flags = (int)c->arg[3], len = sizeof ss;
	bool named = c->arg[4] != 0;
	before_recv(c, flags);
	int64_t n = sock_call(c, SO_RCVTIMEO, nowait(flags), SYS_recvfrom, (int)c->arg[0], c->host[1], c->host[2],
			      flags, named ? (long)&ss : 0, named ? (long)&len : 0);
	if (n < 0 || !named)
		return n;
	int r = name_put_len(c->arg[4], c->arg[5], &ss, len);
	return r ? r : n;
}

/* ---- messages ---------------------------------------------------------------------------------------------- */

void message_free(struct message *m)
{
	free(m->many);
	free(m->big_ctl);
}

static int message_iov(struct message *m)
{
	uint64_t n = m->g.iovlen;
	struct iovec *v = m->few;
	if (n > IOV_LIMIT)
		return -EMSGSIZE;
	if (n > sizeof m->few / sizeof m->few[0])
		v = m->many = malloc(n * sizeof *v);
	if (!v)
		return -ENOMEM;
	if (guest_read(v, m->g.iov, n * sizeof *v))
		return -EFAULT;
	m->bytes = 0;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t base = (uint64_t)v[i].iov_base, len = v[i].iov_len;
		if ((int64_t)len < 0)
			return -EINVAL;
		if (len && !gva_ok(base, len))
			return -EFAULT;
		v[i].iov_base = len ? gva_ptr(base) : NULL;
		m->bytes += len; /* at most 1024 times 508 GiB */
	}
	m->h.msg_iov = v;
	m->h.msg_iovlen = n;
	return 0;
}

/* Room for len bytes of control data, zero: padding in it goes to the guest. */
static int message_ctl(struct message *m, size_t len)
{
	void *ctl = m->ctl;
	if (len > sizeof m->ctl)
		ctl = m->big_ctl = calloc(1, len);
	else
		memset(ctl, 0, len);
	if (!ctl)
		return -ENOMEM;
	m->h.msg_control = ctl;
	m->h.msg_controllen = len;
	return 0;
}

int message_load(struct message *m, uint64_t gva)
{
	m->many = NULL;
	m->big_ctl = NULL;
	memset(&m->h, 0, sizeof m->h);
	if (guest_read(&m->g, gva, sizeof m->g))
		return -EFAULT;
	if (m->g.name && m->g.namelen < 0)
		return -EINVAL;
	return message_iov(m);
}

/* The next whole control message at *off, which moves on; NULL at the end or at a broken one, where the kernel
 * stops with EINVAL. */
static struct cmsghdr *next_cmsg(const struct msghdr *h, size_t *off)
{
	if (h->msg_controllen < sizeof(struct cmsghdr) || *off > h->msg_controllen - sizeof(struct cmsghdr))
		return NULL;
	struct cmsghdr *cm = (void *)((char *)h->msg_control + *off);
	if (cm->cmsg_len < sizeof *cm || cm->cmsg_len > h->msg_controllen - *off)
		return NULL;
	*off += CMSG_ALIGN(cm->cmsg_len);
	return cm;
}

static bool is_scm(const struct cmsghdr *cm, int type) { return cm->cmsg_level == SOL_SOCKET && cm->cmsg_type == type; }

static unsigned cmsg_fds(const struct cmsghdr *cm) { return (cm->cmsg_len - sizeof *cm) / sizeof(int); }

static int cmsg_fd(const struct cmsghdr *cm, unsigned i)
{
	int fd;
	memcpy(&fd, CMSG_DATA(cm) + i * sizeof fd, sizeof fd);
	return fd;
}

/* What goes out: the guest's own descriptors, in the guest's own name. */
static int ctl_check(const struct msghdr *h, int over)
{
	struct cmsghdr *cm;
	int r;
	for (size_t off = 0; (cm = next_cmsg(h, &off));) {
		/* Who gets a pipe may be nobody's relative. */
		if (is_scm(cm, SCM_RIGHTS))
			for (unsigned i = 0; i < cmsg_fds(cm); i++) {
				if (!fd_is_guest(cmsg_fd(cm, i)))
					return -EBADF;
				if ((r = pipe_passed(cmsg_fd(cm, i), over))) /* EINTR among others */
					return r;
				batch_share(cmsg_fd(cm, i));
				dgram_share(cmsg_fd(cm, i));
				mq_plain(cmsg_fd(cm, i));
				futexes_passed(cmsg_fd(cm, i));
			}
		if (is_scm(cm, SCM_CREDENTIALS) && cm->cmsg_len == CMSG_LEN(sizeof(struct ucred))) {
			struct ucred cred;
			memcpy(&cred, CMSG_DATA(cm), sizeof cred);
			if (cred.pid != my_pid())
				return -EPERM;
		}
	}
	return 0;
}

static void cmsg_close(const struct cmsghdr *cm)
{
	if (is_scm(cm, SCM_RIGHTS) || is_scm(cm, SCM_PIDFD_NR))
		for (unsigned i = 0; i < cmsg_fds(cm); i++)
			if (cmsg_fd(cm, i) >= 0)
				close_fd(cmsg_fd(cm, i));
}

static bool cmsg_fds_ok(const struct cmsghdr *cm)
{
	if (is_scm(cm, SCM_RIGHTS) || is_scm(cm, SCM_PIDFD_NR))
		for (unsigned i = 0; i < cmsg_fds(cm); i++)
			if (cmsg_fd(cm, i) >= 0 && (!fd_admit(cmsg_fd(cm, i)) || vfs_is_proc_dir(cmsg_fd(cm, i))))
				return false;
	return true;
}

/*
 * RLIMIT_NOFILE keeps descriptors below the monitor's, except while fd_hide() lifts it: then the
 * message ends before the one that has such. So it does before a directory of the host's /proc.
 */
void ctl_received(struct msghdr *h)
{
	struct cmsghdr *cm;
	size_t end = h->msg_controllen;
	bool cut = false;
	for (size_t off = 0, at = 0; (cm = next_cmsg(h, &off)); at = off) {
		if (!cut && !cmsg_fds_ok(cm)) {
			cut = true;
			end = at;
		}
		if (cut)
			cmsg_close(cm);
		else if (is_scm(cm, SCM_RIGHTS))
			for (unsigned i = 0; i < cmsg_fds(cm); i++) {
				futexes_passed(cmsg_fd(cm, i));
				mq_opened(cmsg_fd(cm, i), "");
				pipe_received(cmsg_fd(cm, i));
			}
	}
	if (cut) {
		h->msg_controllen = end;
		h->msg_flags |= MSG_CTRUNC;
	}
}

void ctl_dropped(const struct msghdr *h)
{
	struct cmsghdr *cm;
	for (size_t off = 0; (cm = next_cmsg(h, &off));)
		cmsg_close(cm);
}

static int send_prepare(struct message *m, int over)
{
	int r;
	if (m->g.name && m->g.namelen) {
		int len = m->g.namelen < (int)sizeof m->name ? m->g.namelen : (int)sizeof m->name;
		if (guest_read(&m->name, m->g.name, len))
			return -EFAULT;
		m->h.msg_name = &m->name;
		m->h.msg_namelen = len;
	}
	if (!m->g.controllen)
		return 0;
	if (m->g.controllen > CTL_LIMIT)
		return -ENOBUFS;
	r = message_ctl(m, m->g.controllen);
	if (r)
		return r;
	if (guest_read(m->h.msg_control, m->g.control, m->g.controllen))
		return -EFAULT;
	return ctl_check(&m->h, over);
}

int64_t message_send(struct hcall *c, uint64_t gva, int flags, bool *whole)
{
	struct message m;
	int64_t r = message_load(&m, gva);
	if (!r)
		r = send_prepare(&m, (int)c->arg[0]);
	if (!r && !pipe_sendmsg(c, (int)c->arg[0], &m.h, flags, &r))
		r = sock_call(c, SO_SNDTIMEO, nowait(flags), SYS_sendmsg, (int)c->arg[0], (long)&m.h, flags, 0, 0, 0);
	*whole = r >= 0 && (uint64_t)r >= m.bytes;
	message_free(&m);
	return r;
}

int recv_prepare(struct message *m)
{
	if (m->g.name) {
		m->h.msg_name = &m->name;
		m->h.msg_namelen = sizeof m->name;
	}
	/* More room than the limit is as good as the limit. */
	if (m->g.control && m->g.controllen)
		return message_ctl(m, m->g.controllen < CTL_LIMIT ? m->g.controllen : CTL_LIMIT);
	return 0;
}

int recv_write_back(struct message *m, uint64_t gva)
{
	uint64_t used = m->h.msg_controllen;
	if (used && guest_write(m->g.control, m->h.msg_control, used))
		return -EFAULT;
	if (m->g.name) {
		int len = (int)m->h.msg_namelen, r = name_put(m->g.name, m->g.namelen, &m->name, len);
		if (r)
			return r;
		if (guest_write(gva + offsetof(struct guest_msghdr, namelen), &len, sizeof len))
			return -EFAULT;
	}
	if (guest_write(gva + offsetof(struct guest_msghdr, flags), &m->h.msg_flags, sizeof m->h.msg_flags))
		return -EFAULT;
	return guest_write(gva + offsetof(struct guest_msghdr, controllen), &used, sizeof used);
}

int64_t message_receive(struct hcall *c, uint64_t gva, int flags, int *msg_flags)
{
	struct message m;
	int64_t r = message_load(&m, gva);
	if (!r)
		r = recv_prepare(&m);
	if (!r) {
		before_recv(c, flags);
		if (!pipe_recvmsg(c, (int)c->arg[0], &m.h, flags, &r))
			r = sock_call(c, SO_RCVTIMEO, nowait(flags), SYS_recvmsg, (int)c->arg[0], (long)&m.h, flags, 0,
				      0, 0);
	}
	if (r >= 0) {
		ctl_received(&m.h);
		*msg_flags = m.h.msg_flags;
		int e = recv_write_back(&m, gva);
		if (e)
			r = e;
	}
	message_free(&m);
	return r;
}

int64_t hc_sendmsg(struct hcall *c)
{
	bool whole;
	return message_send(c, c->arg[1], (int)c->arg[2], &whole);
}

int64_t hc_recvmsg(struct hcall *c)
{
	int flags;
	return message_receive(c, c->arg[1], (int)c->arg[2], &flags);
}

/* ---- options ----------------------------------------------------------------------------------------------- */

/*
 * Options that the guest may name: of known levels, up to the last one known, and none that holds addresses or
 * tables of the host's (packet filter tables, zero-copy receive, MPTCP_FULL_INFO), or that yields a descriptor of
 * a process outside (SO_PASSPIDFD, SO_PEERPIDFD). The others do not exist: ENOPROTOOPT.
 */
static bool opt_known(int level, int opt, bool set)
{
	enum {
		PASSPIDFD = 76,
		PEERPIDFD = 77,
		DEVMEM_DONTNEED = 80,
		SOL_LAST = 84,
		ORIGINAL_DST = 80,
		IPV6_LAST = 80,
		AO_GET_KEYS = 41,
		TCP_LAST = 46,
		MPTCP_LAST = 3
	};
	switch (level) {
	case SOL_SOCKET:
		return opt <= SOL_LAST && opt != PASSPIDFD && opt != PEERPIDFD && opt != DEVMEM_DONTNEED;
	case IPPROTO_IP: /* from 64 on: iptables, arptables, ebtables, IPVS */
		return opt < 64 || (!set && opt == ORIGINAL_DST);
	case IPPROTO_IPV6: /* ip6tables has some of the numbers */
		return opt <= IPV6_LAST && opt != 64 && opt != 65 && opt != 68 && opt != 69;
	case IPPROTO_TCP: /* keys are written one behind the other, as many as the value says and the length does not */
		return opt <= TCP_LAST && opt != TCP_ZEROCOPY_RECEIVE && opt != AO_GET_KEYS;
	case 284: /* SOL_MPTCP */
		return opt <= MPTCP_LAST;
	case 282: /* SOL_TLS */
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_ICMPV6:
	case IPPROTO_RAW:
	case SOL_NETLINK:
		return true;
	}
	return false;
}

/* A classic BPF program: the value holds the address of its instructions. */
static int64_t attach_filter(struct hcall *c)
{
	struct {
		uint16_t len, pad[3];
		uint64_t filter;
	} g;
	if ((uint32_t)c->arg[4] != sizeof g)
		return -EINVAL;
	if (guest_read(&g, c->arg[3], sizeof g))
		return -EFAULT;
	if (!g.filter || !g.len || g.len > BPF_MAXINSNS)
		return -EINVAL;
	struct sock_fprog prog = { .len = g.len };
	prog.filter = malloc(g.len * sizeof *prog.filter);
	if (!prog.filter)
		return -ENOMEM;
	int64_t r = guest_read(prog.filter, g.filter, g.len * sizeof *prog.filter);
	if (!r)
		r = HC6(SYS_setsockopt, (int)c->arg[0], SOL_SOCKET, (int)c->arg[2], &prog, sizeof prog, 0);
	free(prog.filter);
	return r;
}

/* Room for a value: the caller's, or from the heap. */
static void *opt_buffer(void *small, size_t small_len, size_t len, void **heap)
{
	*heap = NULL;
	return len <= small_len ? small : (*heap = malloc(len));
}

int64_t hc_setsockopt(struct hcall *c)
{
	int fd = (int)c->arg[0], level = (int)c->arg[1], opt = (int)c->arg[2], len = (int)c->arg[4];
	_Alignas(8) uint8_t small[256];
	void *heap;
	if (!opt_known(level, opt, true))
		return -ENOPROTOOPT;
	if (len < 0)
		return -EINVAL;
	if (level == SOL_SOCKET && (opt == SO_ATTACH_FILTER || opt == SO_ATTACH_REUSEPORT_CBPF))
		return attach_filter(c);
	if (len > (int)OPT_LIMIT) /* nothing is longer: most options read an int of it */
		len = OPT_LIMIT;
	void *val = opt_buffer(small, sizeof small, len, &heap);
	int64_t r = 0;
	if (!val)
		return -ENOMEM;
	if (len && guest_read(val, c->arg[3], len))
		r = -EFAULT;
	if (!r && level == SOL_SOCKET && (opt == SO_ATTACH_BPF || opt == SO_ATTACH_REUSEPORT_EBPF) &&
	    len == sizeof(int) && !fd_is_guest(*(int *)val))
		r = -EBADF;
	if (!r)
		r = HC6(SYS_setsockopt, fd, level, opt, c->arg[3] ? val : NULL, len, 0);
	/* The one that answers by its value: with the label that was chosen. */
	if (r == 0 && level == IPPROTO_IPV6 && opt == FLOWLABEL_MGR && len >= FLOWLABEL_AT + 4 &&
	    guest_write(c->arg[3] + FLOWLABEL_AT, (uint8_t *)val + FLOWLABEL_AT, 4))
		r = -EFAULT;
	free(heap);
	return r;
}

/*
 * The kernel writes as many sources as there are, or as the value asks for, whatever the length says: ask for no more than
 * have room.
 */
static void sources_fit(int level, int opt, uint8_t *val, size_t len)
{
	bool old = level == IPPROTO_IP && opt == IP_MSFILTER;
	size_t at = old ? offsetof(struct ip_msfilter, imsf_numsrc) : offsetof(struct group_filter, gf_numsrc);
	size_t head = old ? IP_MSFILTER_SIZE(0) : GROUP_FILTER_SIZE(0);
	size_t each = old ? sizeof(struct in_addr) : sizeof(struct sockaddr_storage);
	uint32_t n;
	if (!old && ((level != IPPROTO_IP && level != IPPROTO_IPV6) || opt != MCAST_MSFILTER))
		return;
	if (len < head)
		return; /* EINVAL */
	memcpy(&n, val + at, sizeof n);
	if (n > (len - head) / each)
		n = (uint32_t)((len - head) / each);
	memcpy(val + at, &n, sizeof n);
}

int64_t hc_getsockopt(struct hcall *c)
{
	int fd = (int)c->arg[0], level = (int)c->arg[1], opt = (int)c->arg[2], len, got;
	_Alignas(8) uint8_t small[256];
	/* Its length counts instructions, not bytes. */
	size_t unit = level == SOL_SOCKET && opt == SO_GET_FILTER ? sizeof(struct sock_filter) : 1;
	void *heap;
	if (!opt_known(level, opt, false))
		return -ENOPROTOOPT;
	if (guest_read(&len, c->arg[4], sizeof len))
		return -EFAULT;
	if (len < 0)
		return -EINVAL;
	if (len > (int)(OPT_LIMIT / unit))
		len = OPT_LIMIT / unit;
	void *val = opt_buffer(small, sizeof small, len * unit, &heap);
	if (!val)
		return -ENOMEM;
	/* Some options are asked with a value (MCAST_MSFILTER); what the kernel does not write stays the guest's. */
	if (guest_read(val, c->arg[3], len * unit))
		memset(val, 0, len * unit);
	sources_fit(level, opt, val, len);
	got = len;
	int64_t r = HC6(SYS_getsockopt, fd, level, opt, val, &got, 0);
	if (r >= 0) {
		size_t n = (got < 0 ? 0 : got < len ? got : len) * unit;
		if (n && guest_write(c->arg[3], val, n))
			r = -EFAULT;
	}
	/* ERANGE comes with the length that would do. */
	if ((r >= 0 || r == -ERANGE) && guest_write(c->arg[4], &got, sizeof got))
		r = -EFAULT;
	free(heap);
	return r;
}
