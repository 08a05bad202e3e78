/* SPDX-License-Identifier: Apache-2.0 */
/* Messages of sockets between guest and host: sys_net.c, sys_mmsg.c. */
#ifndef KX_SYS_NET_H
#define KX_SYS_NET_H
#include <sys/socket.h>
#include <sys/time.h>
#include "hcall.h"

/* struct user_msghdr of the kernel, with guest addresses. */
struct guest_msghdr {
	uint64_t name;
	int32_t namelen, pad;
	uint64_t iov, iovlen, control, controllen;
	uint32_t flags, pad2;
};
_Static_assert(sizeof(struct guest_msghdr) == sizeof(struct msghdr), "msghdr of x86-64");
_Static_assert(sizeof(struct mmsghdr) == 64, "mmsghdr of x86-64");

/* One message: the guest's header, and the host's form of it with all that it points to but the data. */
struct message {
	struct guest_msghdr g;
	struct msghdr h;
	uint64_t bytes; /* sum of the vector */
	struct sockaddr_storage name;
	struct iovec few[8], *many;
	_Alignas(8) uint8_t ctl[512];
	uint8_t *big_ctl;
};

/* Read the header at gva and its vector: 0 or -errno. message_free() in any case. */
int message_load(struct message *m, uint64_t gva);
void message_free(struct message *m);
/* One message by c's descriptor. *whole: all of the data went; *msg_flags: those of the message received. */
int64_t message_send(struct hcall *c, uint64_t gva, int flags, bool *whole);
int64_t message_receive(struct hcall *c, uint64_t gva, int flags, int *msg_flags);
/* Before a loaded message is received; what came in, before it goes to the guest's header at gva, or to nobody. */
int recv_prepare(struct message *m);
void ctl_received(struct msghdr *h);
void ctl_dropped(const struct msghdr *h);
int recv_write_back(struct message *m, uint64_t gva);
bool sock_nonblocking(int fd);
/* opt: SO_RCVTIMEO or SO_SNDTIMEO. False: there is none. */
bool sock_timeout(int fd, int opt, struct timeval *tv);
/* What a call on fd that may sleep has to say when it was interrupted (EINTR). */
int64_t sock_interrupted(const struct hcall *c, int fd, int opt);
#endif
