/* SPDX-License-Identifier: Apache-2.0 */
/* UNIX sockets. Part of ipc.c. */
#ifndef KX_GUEST_IPC_SOCKETS_H
#define KX_GUEST_IPC_SOCKETS_H
#include "ipc.h"

static socklen_t un(struct sockaddr_un *a, const char *name)
{
	memset(a, 0, sizeof *a);
	a->sun_family = AF_UNIX;
	/* @: abstract */
	memcpy(a->sun_path, name, strlen(name));
	if (*name == '@')
		a->sun_path[0] = 0;
	return offsetof(struct sockaddr_un, sun_path) + strlen(name) + (*name != '@');
}

static inline int un_socket(int type, const char *name, bool server)
{
	struct sockaddr_un a;
	int s = socket(AF_UNIX, type, 0);
	socklen_t len = un(&a, name);
	if (server ? bind(s, (void *)&a, len) : connect(s, (void *)&a, len)) {
		int e = errno;
		close(s);
		errno = e;
		return -1;
	}
	if (server && type != SOCK_DGRAM)
		listen(s, 4);
	return s;
}

static inline ssize_t send_with(int s, int kind, const void *data, size_t len)
{
	char b[CMSG_SPACE(64)] = { 0 };
	struct iovec v = { "m", 1 };
	struct msghdr h = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = b, .msg_controllen = CMSG_SPACE(len) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&h);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = kind;
	c->cmsg_len = CMSG_LEN(len);
	memcpy(CMSG_DATA(c), data, len);
	return sendmsg(s, &h, 0);
}

static inline ssize_t recv_with(int s, int kind, void *data, size_t len, int *flags)
{
	char b[CMSG_SPACE(256)] = { 0 }, m1;
	struct iovec v = { &m1, 1 };
	struct msghdr h = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = b, .msg_controllen = sizeof b };
	ssize_t r = recvmsg(s, &h, MSG_CMSG_CLOEXEC);
	*flags = h.msg_flags & ~MSG_CMSG_CLOEXEC;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c; c = CMSG_NXTHDR(&h, c))
		if (c->cmsg_type == kind) {
			memcpy(data, CMSG_DATA(c), len);
			return c->cmsg_len - CMSG_LEN(0);
		}
	return r < 0 ? -1 : 0;
}

static inline void sockets(void)
{
	static const int types[] = { SOCK_STREAM, SOCK_SEQPACKET };
	static const char *const type_names[] = { "stream", "seqpacket" };
	char path[100], abstract[60];
	snprintf(path, sizeof path, "%s/kx-sock", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	snprintf(abstract, sizeof abstract, "@kx-ipc-%d", getpid());
	for (int i = 0; i < 2; i++)
		for (int j = 0; j < 2; j++) {
			SECTION(type_names[i]);
			const char *name = j ? abstract : path;
			unlink(path);
			R(un_socket(types[i], name, false));
			int s = un_socket(types[i], name, true);
			R(s >= 0);
			R(un_socket(types[i], name, true));
			R(un_socket(SOCK_DGRAM, name, false));
			turn[1] = 0;
			pid_t parent = getpid(),
			      p = CHILD(int c = un_socket(types[i], name, false); struct ucred u = { 0 };
					socklen_t l = sizeof u;
					bool sent = write(c, "12345", 5) == 5 && write(c, "67", 2) == 2; turn[1] = 1;
					my_turn(); R(sent); R(getsockopt(c, SOL_SOCKET, SO_PEERCRED, &u, &l));
					R(u.pid == parent && u.uid == getuid()); char b[20]; R(read(c, b, 20));
					R(read(c, b, 20)); close(c));
			int c = accept(s, NULL, NULL), flags;
			struct ucred u = { 0 };
			socklen_t l = sizeof u;
			R(getsockopt(c, SOL_SOCKET, SO_PEERCRED, &u, &l));
			R(u.pid == p && u.uid == getuid() && u.gid == getgid());
			while (!turn[1])
				ms(1);
			char b[20];
			R(read(c, b, 4));
			R(recv(c, b, 20, MSG_TRUNC));
			R(write(c, "reply", 5));
			R(shutdown(c, SHUT_WR));
			R(status_of(p));
			R(read(c, b, 20));
			R(send(c, "x", 1, MSG_NOSIGNAL));
			(void)flags;
			close(c);
			close(s);
			unlink(path);
		}
	SECTION("datagrams");
	int d = un_socket(SOCK_DGRAM, abstract, true), flags;
	struct sockaddr_un a;
	socklen_t len = un(&a, abstract);
	pid_t p = CHILD(int c = socket(AF_UNIX, SOCK_DGRAM, 0); sa_family_t fam = AF_UNIX;
			bind(c, (void *)&fam, sizeof fam); LATE("sendto", sendto(c, "hello", 6, 0, (void *)&a, len));
			char b[10]; R(recv(c, b, 10, 0)));
	char b[20];
	struct sockaddr_un from;
	socklen_t flen = sizeof from;
	R(recvfrom(d, b, 20, 0, (void *)&from, &flen));
	R(flen == sizeof(sa_family_t) + 6 && !from.sun_path[0]);
	R(sendto(d, "back", 5, 0, (void *)&from, flen));
	R(status_of(p));
	R(sendto(d, "back", 5, 0, (void *)&from, flen));
	SECTION("SCM_RIGHTS, SCM_CREDENTIALS");
	int sp[2], fd[2], in[20];
	R(socketpair(AF_UNIX, SOCK_STREAM, 0, sp));
	pipe(fd);
	p = CHILD(if (write(fd[1], "through", 8) != 8 || send_with(sp[1], SCM_RIGHTS, fd, 4) != 1) _exit(1);
		  close(fd[0]); for (;;) pause());
	asleep(p, p);
	close(fd[0]);
	R(recv_with(sp[0], SCM_RIGHTS, in, 4, &flags));
	R(flags);
	R(read(in[0], b, 20));
	R(strcmp(b, "through"));
	R(fcntl(in[0], F_GETFD));
	kill(p, SIGKILL);
	status_of(p);
	close(fd[1]);
	R(read(in[0], b, 20));
	close(in[0]);
	int bad = 12345;
	R(send_with(sp[1], SCM_RIGHTS, &bad, 4));
	R(send_with(sp[1], 99, &bad, 4));
	int one = 1;
	R(setsockopt(sp[0], SOL_SOCKET, SO_PASSCRED, &one, sizeof one));
	struct ucred u = { 0 }, fake = { .pid = 1, .uid = 0, .gid = 0 };
	p = CHILD(R(write(sp[1], "m", 1)));
	status_of(p);
	R(recv_with(sp[0], SCM_CREDENTIALS, &u, sizeof u, &flags));
	R(u.pid == p && u.uid == getuid());
	p = CHILD(struct ucred me = { getpid(), getuid(), getgid() };
		  R(send_with(sp[1], SCM_CREDENTIALS, &me, sizeof me)));
	status_of(p);
	R(recv_with(sp[0], SCM_CREDENTIALS, &u, sizeof u, &flags));
	R(u.pid == p);
	R(AS_NOBODY(R(send_with(sp[1], SCM_CREDENTIALS, &fake, sizeof fake))));
	close(d);
	close(sp[0]);
	close(sp[1]);
}
#endif
