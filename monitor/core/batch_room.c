/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much of a socket's send buffer is sure to be there when what is queued is sent. A write that was told "done" must not
 * find it full: what the kernel does not take a process that is killed or stopped would not send, and the others would have
 * to wait for room.
 *
 * UNIX: a packet costs what it cost when it was made, until it is read.
 * TCP: what lies in the queue is cut up as it is sent, and each piece costs OVERHEAD more. So a client that takes little at a
 * time makes a full queue of one that had room. The kernel cuts off no less than a packet of the largest size (the half of
 * a small window, tcp_bound_to_half_wnd()) but for one piece, with which it probes a window that is almost closed, and it
 * makes no other before that one is received. Therefore all that is queued is reckoned as if it were in the smallest
 * packets to come; KX_BATCH_COST() does so for what will be, if these are no smaller than OVERHEAD.
 *
 * What remains is that the room becomes smaller: TCP's memory, that of all sockets together or of the cgroup's, is
 * exhausted; the path's packets become shorter; a client acknowledges single bytes out of order. batch_left.c is for them.
 */
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include "batch_priv.h"

#define OVERHEAD 1280 /* of one more packet in the queue: 832 in Linux 6.18, 1,280 in those before */
#define PROBES 4608   /* pieces of less than a packet, the first packet's place for headers (before 5.17) */

static uint32_t packet_size(int fd)
{
	int size = 0;
	socklen_t len = sizeof size;
	return HC6(SYS_getsockopt, fd, IPPROTO_TCP, TCP_MAXSEG, &size, &len, 0) || size < 0 ? 0 : (uint32_t)size;
}

/* Sent or not, what the other side has not acknowledged. */
static uint32_t unacknowledged(int fd)
{
	int n = 0;
	return HC6(SYS_ioctl, fd, SIOCOUTQ, &n, 0, 0, 0) || n < 0 ? UINT32_MAX : (uint32_t)n;
}

/* size: of the buffer; used: of it, `queued` bytes with what they cost; packet: the largest. */
static uint32_t room_tcp(uint32_t size, uint32_t used, uint32_t queued, uint32_t packet)
{
	if (!packet)
		return 0;
	uint64_t pieces = ((uint64_t)queued + packet - 1) / packet, most = used + PROBES + pieces * OVERHEAD;
	if (most >= size)
		return 0;
	uint64_t room = size - most;
	return (uint32_t)(packet < OVERHEAD ? room * 2 * packet / (packet + OVERHEAD) : room);
}

uint32_t batch_room(int fd, bool tcp)
{
	uint32_t m[SK_MEMINFO_VARS] = { 0 };
	socklen_t len = sizeof m;
	if (HC6(SYS_getsockopt, fd, SOL_SOCKET, SO_MEMINFO, m, &len, 0))
		return 0;
	uint32_t size = m[SK_MEMINFO_SNDBUF], used = m[tcp ? SK_MEMINFO_WMEM_QUEUED : SK_MEMINFO_WMEM_ALLOC];
	if (used >= size)
		return 0;
	return tcp ? room_tcp(size, used, used ? unacknowledged(fd) : 0, packet_size(fd)) : size - used;
}
