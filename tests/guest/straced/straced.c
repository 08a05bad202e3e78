/* SPDX-License-Identifier: Apache-2.0 */
/* Calls whose arguments go both ways, or are structures, for tests/integration/test_strace.py to look at. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char buf[4096];

static void selects(int r, int w)
{
	struct timeval tv = { 1, 500 }, zero = { 0, 0 };
	struct timespec ts = { 2, 0 }, none = { 0, 0 };
	sigset_t set;
	fd_set in, out;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	FD_ZERO(&in);
	FD_SET(r, &in);
	syscall(SYS_select, r + 1, &in, NULL, NULL, &zero);
	FD_SET(r, &in);
	FD_ZERO(&out);
	FD_SET(w, &out);
	syscall(SYS_select, w + 1, &in, &out, NULL, &zero);
	FD_SET(r, &in);
	FD_SET(w, &out);
	struct {
		sigset_t *s;
		size_t n;
	} arg = { &set, 8 };
	syscall(SYS_pselect6, w + 1, &in, &out, &out, &none, &arg);
	FD_ZERO(&in);
	FD_SET(r, &in);
	syscall(SYS_pselect6, r + 1, &in, NULL, NULL, &none, NULL);
	FD_SET(50, &in);
	syscall(SYS_select, 51, &in, NULL, NULL, &tv);
	struct pollfd p[2] = { { r, POLLIN, 0 }, { w, POLLOUT, 0 } };
	poll(p, 2, 5);
	syscall(SYS_ppoll, p, 1, &none, NULL, 8);
	(void)ts;
}

static void sockets(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) }, b;
	struct sockaddr_un un;
	socklen_t len = sizeof b;
	int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP), one = 1, got, c, d;
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	bind(s, (struct sockaddr *)&a, sizeof a);
	listen(s, 5);
	getsockname(s, (struct sockaddr *)&b, &len);
	a = b;
	c = socket(AF_INET, SOCK_STREAM, 0);
	connect(c, (struct sockaddr *)&a, sizeof a);
	len = sizeof b;
	d = accept4(s, (struct sockaddr *)&b, &len, SOCK_CLOEXEC);
	len = 4;
	getpeername(c, (struct sockaddr *)&b, &len);
	len = sizeof got;
	getsockopt(c, SOL_SOCKET, SO_TYPE, &got, &len);
	len = 64;
	getsockopt(c, IPPROTO_TCP, TCP_NODELAY, buf, &len);
	send(c, "hello", 5, MSG_NOSIGNAL);
	recv(d, buf, 3, 0);
	len = sizeof b;
	recvfrom(d, buf, 100, 0, (struct sockaddr *)&b, &len);
	shutdown(c, SHUT_WR);
	close(c), close(d), close(s);

	int u[2], v[2];
	socketpair(AF_UNIX, SOCK_STREAM, 0, u);
	len = sizeof un;
	getsockname(u[0], (struct sockaddr *)&un, &len);
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec io[2] = { { "ab", 2 }, { "cde", 3 } };
	struct msghdr m = { .msg_iov = io, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof control };
	struct cmsghdr *cm = CMSG_FIRSTHDR(&m);
	cm->cmsg_level = SOL_SOCKET;
	cm->cmsg_type = SCM_RIGHTS;
	cm->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cm), &u[0], sizeof(int));
	sendmsg(u[0], &m, 0);
	io[0] = (struct iovec){ buf, 3 };
	io[1] = (struct iovec){ buf + 100, 100 };
	memset(control, 0, sizeof control);
	recvmsg(u[1], &m, MSG_CMSG_CLOEXEC);
	recvmsg(u[1], &m, MSG_DONTWAIT);
	close(u[0]), close(u[1]);

	socketpair(AF_UNIX, SOCK_DGRAM, 0, v);
	struct mmsghdr mm[2] = { { .msg_hdr = { .msg_iov = io, .msg_iovlen = 1 } },
				 { .msg_hdr = { .msg_iov = io + 1, .msg_iovlen = 1 } } };
	io[0] = (struct iovec){ "one", 3 };
	io[1] = (struct iovec){ "four", 4 };
	sendmmsg(v[0], mm, 2, 0);
	io[0] = (struct iovec){ buf, 64 };
	io[1] = (struct iovec){ buf + 64, 64 };
	recvmmsg(v[1], mm, 2, 0, NULL);
	close(v[0]), close(v[1]);

	s = socket(AF_INET, SOCK_DGRAM, 0);
	a.sin_port = 0;
	bind(s, (struct sockaddr *)&a, sizeof a);
	len = sizeof a;
	getsockname(s, (struct sockaddr *)&a, &len);
	sendto(s, "to", 2, 0, (struct sockaddr *)&a, sizeof a);
	memset(&b, 0, sizeof b);
	m = (struct msghdr){ .msg_name = &b, .msg_namelen = sizeof b, .msg_iov = io, .msg_iovlen = 1 };
	recvmsg(s, &m, 0);
	sendto(s, "to", 2, 0, (struct sockaddr *)&a, sizeof a);
	len = 100;
	recvfrom(s, buf, sizeof buf, MSG_TRUNC, (struct sockaddr *)&b, &len);
	close(s);
}

static void files(void)
{
	off_t off = 2, off2 = 0;
	loff_t lo = 1, lo2 = 3;
	int p[2], fd = open("straced.a", O_RDWR | O_CREAT | O_TRUNC, 0640),
		  to = open("straced.b", O_RDWR | O_CREAT | O_TRUNC, 0600);
	struct iovec io[2] = { { "0123", 4 }, { "456789", 6 } };
	struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 1, .l_len = 5 };
	struct stat st;
	struct statx sx;
	writev(fd, io, 2);
	pwrite(fd, "abc", 3, 10);
	sendfile(to, fd, &off, 5);
	sendfile(to, fd, NULL, 5);
	lseek(fd, 0, SEEK_SET);
	copy_file_range(fd, &lo, to, &lo2, 4, 0);
	copy_file_range(fd, NULL, to, NULL, 4, 0);
	if (pipe2(p, O_CLOEXEC))
		exit(1);
	splice(fd, &off2, p[1], NULL, 6, 0);
	read(p[0], buf, 100);
	ioctl(p[0], FIONREAD, buf);
	io[0].iov_base = buf, io[1].iov_base = buf + 10;
	preadv(fd, io, 2, 1);
	fcntl(fd, F_SETLK, &fl);
	fcntl(fd, F_GETLK, &fl);
	fcntl(fd, F_GETFL);
	fcntl(p[0], F_SETFL, O_NONBLOCK);
	read(p[0], buf, 1);
	selects(p[0], p[1]);
	fstat(fd, &st);
	statx(AT_FDCWD, "straced.a", 0, STATX_SIZE | STATX_MODE, &sx);
	ftruncate(fd, 7);
	readlink("straced.a", buf, 10);
	faccessat(AT_FDCWD, "straced.b", R_OK, 0);
	unlink("straced.a");
	unlinkat(AT_FDCWD, "straced.b", 0);
	stat("straced.none", &st);
	syscall(SYS_getcwd, buf, 1);
	umask(022);
	close(fd), close(to), close(p[0]), close(p[1]);
	int ep = epoll_create1(EPOLL_CLOEXEC), ev = eventfd(3, EFD_NONBLOCK);
	struct epoll_event e = { .events = EPOLLIN, .data.u32 = 7 };
	epoll_ctl(ep, EPOLL_CTL_ADD, ev, &e);
	epoll_wait(ep, &e, 1, 0);
	close(ep), close(ev);
}

static void others(char **argv)
{
	struct timespec ts = { 0, 1000 }, rem;
	struct rlimit rl;
	struct rusage ru;
	siginfo_t si;
	sigset_t set, old;
	int st;
	pid_t p;
	nanosleep(&ts, &rem);
	clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
	getrlimit(RLIMIT_CORE, &rl);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, &old);
	raise(SIGUSR2);
	sigwaitinfo(&set, &si);
	sigprocmask(SIG_SETMASK, &old, NULL);
	signal(SIGUSR1, SIG_IGN);
	mprotect(mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096, PROT_READ);
	close(77);
	p = fork();
	if (!p) {
		usleep(50000);
		_exit(3);
	}
	wait4(p, &st, 0, &ru);
	wait4(-1, &st, WNOHANG, NULL);
	char *none[] = { "none", "two \n words", NULL }, *env[] = { "A=b", NULL };
	execve("/nonexistent/program", none, env);
	execve("/proc/self/exe", (char *[]){ argv[0], "again", NULL }, env);
}

int main(int argc, char **argv)
{
	if (argc > 1)
		return 0;
	if (chdir("/tmp"))
		return 2;
	files();
	sockets();
	others(argv);
	return 1;
}
