/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A server that does with files what it is told, a line of text for each call, and answers with what came of it:
 * openahead PORT DIR. Single thread, one epoll, connections that it accepts; all lines that have come are done in one turn.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static int reg[8]; /* descriptors by name; -1 = closed */
static char answer[1 << 20];
static size_t len;
static int conn;
static char *shared;
static volatile int signals;

#define SAY(...) (len += (size_t)snprintf(answer + len, sizeof answer - len, __VA_ARGS__))

static void handler(int s)
{
	(void)s;
	signals++;
}

static void send_answer(void)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = write(conn, answer + done, len - done);
		if (n < 0 && errno == EAGAIN)
			poll(&(struct pollfd){ conn, POLLOUT, 0 }, 1, -1);
		else if (n < 0)
			exit(3);
		else
			done += (size_t)n;
	}
	len = 0;
}

static void show(const char *what, const char *buf, ssize_t n)
{
	if (n < 0) {
		SAY("%s: %s\n", what, strerror(errno));
		return;
	}
	unsigned sum = 0;
	for (ssize_t i = 0; i < n; i++)
		sum = sum * 31 + (unsigned char)buf[i];
	SAY("%s: %zd %.*s %u\n", what, n, (int)(n < 24 ? n : 24), buf, sum);
}

static void do_line(char *line)
{
	static char buf[1 << 17];
	char cmd[16], path[4096];
	int r = 0;
	long a = 0, b = 0;
	if (sscanf(line, "%15s", cmd) != 1)
		return;
	if (!strcmp(cmd, "open") || !strcmp(cmd, "open2")) { /* by openat(2), as libc does; by open(2) */
		sscanf(line, "%*s %d %4095s %li", &r, path, &a);
		reg[r & 7] = cmd[4] ? (int)syscall(2, path, (int)a, 0) : open(path, (int)a);
		SAY("open: %d %s\n", reg[r & 7], reg[r & 7] < 0 ? strerror(errno) : "");
		return;
	}
	sscanf(line, "%*s %d %li %li", &r, &a, &b);
	int fd = reg[r & 7];
	if (!strcmp(cmd, "connection")) {
		SAY("connection: %d\n", conn);
	} else if (!strcmp(cmd, "close")) {
		r = close(fd);
		SAY("close: %s\n", r ? strerror(errno) : "");
	} else if (!strcmp(cmd, "create")) {
		sscanf(line, "%*s %d %4095s %li", &r, path, &a);
		reg[r & 7] = open(path, (int)a | O_CREAT, 0644);
		SAY("create: %d %s\n", reg[r & 7], reg[r & 7] < 0 ? strerror(errno) : "");
	} else if (!strcmp(cmd, "write")) { /* a bytes of a letter */
		memset(buf, (int)b, sizeof buf);
		ssize_t n = write(fd, buf, (size_t)a);
		SAY("write: %zd %s\n", n, n < 0 ? strerror(errno) : "");
	} else if (!strcmp(cmd, "writev")) {
		struct iovec v[2] = { { "vec ", 4 }, { "tor\n", (size_t)a } };
		SAY("writev: %zd\n", writev(fd, v, 2));
	} else if (!strcmp(cmd, "badwrite")) {
		ssize_t n = write(fd, (void *)8, (size_t)a);
		SAY("badwrite: %zd %s\n", n, n < 0 ? strerror(errno) : "");
	} else if (!strcmp(cmd, "fsync")) {
		r = fsync(fd);
		SAY("fsync: %s\n", r ? strerror(errno) : "");
	} else if (!strcmp(cmd, "truncate")) {
		r = ftruncate(fd, a);
		SAY("truncate: %d %s\n", r, r ? strerror(errno) : "");
	} else if (!strcmp(cmd, "share")) { /* from here on it is seen without a call */
		shared = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
		SAY("share: %d\n", shared != MAP_FAILED);
	} else if (!strcmp(cmd, "shared")) {
		SAY("shared: %.8s\n", shared);
	} else if (!strcmp(cmd, "largest")) {
		struct rlimit l = { (rlim_t)a, RLIM_INFINITY };
		signal(SIGXFSZ, SIG_IGN);
		SAY("largest: %d\n", setrlimit(RLIMIT_FSIZE, &l));
	} else if (!strcmp(cmd, "die")) {
		send_answer();
		raise(SIGKILL);
	} else if (!strcmp(cmd, "quit")) {
		exit(0);
	} else if (!strcmp(cmd, "child")) { /* shares the offset, and what was written comes first */
		pid_t pid = fork();
		if (!pid)
			_exit(write(fd, "child\n", 6) == 6 ? 0 : 1);
		int st = 0;
		waitpid(pid, &st, 0);
		SAY("child: %d\n", st);
	} else if (!strcmp(cmd, "read")) {
		show("read", buf, read(fd, buf, (size_t)a));
	} else if (!strcmp(cmd, "pread")) {
		show("pread", buf, pread(fd, buf, (size_t)b, a));
	} else if (!strcmp(cmd, "badread")) {
		show("badread", buf, read(fd, (void *)8, (size_t)a));
	} else if (!strcmp(cmd, "fstat")) {
		struct stat st;
		r = fstat(fd, &st);
		if (r)
			SAY("fstat: %s\n", strerror(errno));
		else
			SAY("fstat: %o %ld %ld %ld\n", st.st_mode, (long)st.st_size, (long)st.st_ino,
			    (long)st.st_nlink);
	} else if (!strcmp(cmd, "sendfile")) {
		off_t at = a;
		send_answer();
		for (long left = b; left > 0;) {
			ssize_t n = sendfile(conn, fd, &at, (size_t)left);
			if (n < 0 && errno == EAGAIN) {
				poll(&(struct pollfd){ conn, POLLOUT, 0 }, 1, -1);
				continue;
			}
			if (n <= 0) {
				SAY("sendfile: %s\n", n ? strerror(errno) : "end");
				break;
			}
			left -= n;
		}
		SAY("\nsendfile: to %ld\n", (long)at);
	} else if (!strcmp(cmd, "seek")) {
		SAY("seek: %ld\n", (long)lseek(fd, a, (int)b));
	} else if (!strcmp(cmd, "flags")) {
		SAY("flags: %x %x\n", (unsigned)fcntl(fd, F_GETFL), (unsigned)fcntl(fd, F_GETFD));
	} else if (!strcmp(cmd, "dup")) {
		int d = dup(fd);
		SAY("dup: %d\n", d);
		close(d);
	} else if (!strcmp(cmd, "dup2")) { /* of another over it */
		SAY("dup2: %d\n", dup2(reg[a & 7], fd));
	} else if (!strcmp(cmd, "lock")) { /* a lock of the process's, and who else would get it */
		struct flock l = { .l_type = F_RDLCK, .l_whence = SEEK_SET };
		SAY("lock: %d\n", fcntl(fd, F_SETLK, &l));
	} else if (!strcmp(cmd, "locked")) {
		struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
		SAY("locked: %d %d\n", fcntl(fd, F_OFD_GETLK, &l), l.l_type != F_UNLCK);
	} else if (!strcmp(cmd, "map")) {
		char *p = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
		show("map", p, p == MAP_FAILED ? -1 : 16);
		if (p != MAP_FAILED)
			munmap(p, 4096);
	} else if (!strcmp(cmd, "fork")) { /* the offset is shared */
		pid_t pid = fork();
		if (!pid)
			_exit(read(fd, buf, 3) == 3 ? buf[0] : 1);
		int st = 0;
		waitpid(pid, &st, 0);
		SAY("fork: %d\n", WEXITSTATUS(st));
	} else if (!strcmp(cmd, "exec")) { /* what survives */
		pid_t pid = fork();
		if (!pid) {
			char name[32];
			snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
			execl("/usr/bin/test", "test", "-e", name, NULL);
			_exit(9);
		}
		int st = 0;
		waitpid(pid, &st, 0);
		SAY("exec: %d\n", WEXITSTATUS(st));
	} else if (!strcmp(cmd, "raise")) {
		raise(SIGUSR1);
		SAY("raise: %d\n", signals);
	} else if (!strcmp(cmd, "chdir")) {
		sscanf(line, "%*s %4095s", path);
		SAY("chdir: %d\n", chdir(path));
	} else if (!strcmp(cmd, "uid")) {
		SAY("uid: %d\n", seteuid((uid_t)r));
	} else if (!strcmp(cmd, "limit")) {
		int n = 0, many[2048];
		while (n < 2048 && (many[n] = dup(0)) >= 0)
			n++;
		int e = errno;
		for (int i = 0; i < n; i++)
			close(many[i]);
		SAY("limit: %s\n", n == 2048 ? "none" : strerror(e));
	}
}

int main(int argc, char **argv)
{
	static char in[1 << 16];
	struct sockaddr_in at = { .sin_family = AF_INET,
				  .sin_port = htons((uint16_t)atoi(argv[1])),
				  .sin_addr = { htonl(INADDR_LOOPBACK) } };
	if (argc < 3 || chdir(argv[2]))
		return 2;
	signal(SIGUSR1, handler);
	memset(reg, -1, sizeof reg);
	int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), e = epoll_create1(EPOLL_CLOEXEC);
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int));
	if (bind(s, (struct sockaddr *)&at, sizeof at) || listen(s, 10))
		return 2;
	epoll_ctl(e, EPOLL_CTL_ADD, s, &(struct epoll_event){ EPOLLIN, { .fd = s } });
	for (;;) {
		struct epoll_event ev[8];
		int n = epoll_wait(e, ev, 8, -1);
		for (int i = 0; i < n; i++) {
			int fd = ev[i].data.fd;
			if (fd == s) {
				fd = accept4(s, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
				epoll_ctl(e, EPOLL_CTL_ADD, fd, &(struct epoll_event){ EPOLLIN, { .fd = fd } });
				continue;
			}
			ssize_t got = read(fd, in, sizeof in - 1);
			if (got <= 0) {
				close(fd);
				continue;
			}
			in[got] = 0;
			conn = fd;
			for (char *p = in, *end; (end = strchr(p, '\n')); p = end + 1) {
				*end = 0;
				if (!strcmp(p,
					    "drop")) { /* the connection goes in the middle of a turn: its number is free */
					send_answer();
					close(fd);
					conn = -1;
				} else if (conn >= 0 || !strncmp(p, "open", 4) || !strncmp(p, "close", 5)) {
					do_line(p);
				}
			}
			if (conn >= 0) {
				SAY("done\n");
				send_answer();
			} else {
				len = 0;
			}
		}
	}
}
