/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors as a program sees them, and what has no name: pipes, eventfd, memfd, terminals. A pty is skipped when there is none. */
#define _GNU_SOURCE
#include <linux/fs.h>
#include <net/if.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include "../scratch.h"

static void test_dup(void)
{
	int fd = make("file", "0123456789"), d, e;
	char b[2];

	d = dup(fd);
	CHECK(d > fd && lseek(fd, 3, SEEK_SET) == 3 && lseek(d, 0, SEEK_CUR) == 3);
	CHECK(read(d, b, 2) == 2 && lseek(fd, 0, SEEK_CUR) == 5);
	CHECK(dup2(fd, d) == d && dup2(fd, fd) == fd);
	FAILS(syscall(SYS_dup3, fd, fd, 0), EINVAL);
	FAILS(syscall(SYS_dup3, fd, d, 1), EINVAL);
	CHECK(dup3(fd, 60, O_CLOEXEC) == 60 && fcntl(60, F_GETFD) == FD_CLOEXEC);
	CHECK(dup2(60, 61) == 61 && fcntl(61, F_GETFD) == 0);
	CHECK(fcntl(60, F_SETFD, 0) == 0 && fcntl(60, F_GETFD) == 0);
	e = fcntl(fd, F_DUPFD, 70);
	CHECK(e == 70 && fcntl(fd, F_DUPFD_CLOEXEC, 70) == 71 && fcntl(71, F_GETFD) == FD_CLOEXEC);
	FAILS(dup(999), EBADF);
	FAILS(dup2(999, 5), EBADF);
	FAILS(syscall(SYS_dup2, fd, -1), EBADF);
	FAILS(syscall(SYS_dup2, fd, 1 << 30), EBADF);
	FAILS(fcntl(fd, F_DUPFD, -1), EINVAL);
	FAILS(fcntl(fd, F_DUPFD, 1 << 30), EINVAL);
	FAILS(fcntl(fd, 9999, 0), EINVAL);
	FAILS(fcntl(999, F_GETFD), EBADF);

	if (close_range(60, 61, CLOSE_RANGE_CLOEXEC) == 0)
		CHECK(fcntl(60, F_GETFD) == FD_CLOEXEC && fcntl(61, F_GETFD) == FD_CLOEXEC);
	else
		CHECK(errno == EINVAL || errno == ENOSYS);
	CHECK(close_range(60, ~0u, 0) == 0);
	FAILS(fcntl(60, F_GETFD), EBADF);
	FAILS(fcntl(71, F_GETFD), EBADF);
	CHECK(fcntl(d, F_GETFD) >= 0);
	FAILS(close_range(5, 4, 0), EINVAL);
	FAILS(close_range(60, ~0u, 0x1000), EINVAL);
	CHECK(close_range(0x7fffffff, ~0u, 0) == 0);
	FAILS(close(999), EBADF);
	CHECK(close(d) == 0);
	FAILS(close(d), EBADF);

	CHECK(fcntl(fd, F_SETOWN, getpid()) == 0 && fcntl(fd, F_GETOWN) == getpid());
	struct f_owner_ex own = { F_OWNER_PID, 0 };
	CHECK(fcntl(fd, F_SETOWN_EX, &own) == 0 && fcntl(fd, F_GETOWN) == 0);
	own = (struct f_owner_ex){ F_OWNER_TID, getpid() };
	CHECK(fcntl(fd, F_SETOWN_EX, &own) == 0);
	own = (struct f_owner_ex){ 0 };
	CHECK(fcntl(fd, F_GETOWN_EX, &own) == 0 && own.type == F_OWNER_TID && own.pid == getpid());
	CHECK(fcntl(fd, F_SETSIG, SIGUSR1) == 0 && fcntl(fd, F_GETSIG) == SIGUSR1);
	FAILS(fcntl(fd, F_SETSIG, 100), EINVAL);
	uint64_t hint = RWH_WRITE_LIFE_SHORT;
	if (fcntl(fd, F_SET_RW_HINT, &hint) == 0) {
		hint = 99;
		CHECK(fcntl(fd, F_GET_RW_HINT, &hint) == 0 && hint == RWH_WRITE_LIFE_SHORT);
	}
	close(fd);
	unlink("file");
}

static void test_limit(void)
{
	struct rlimit old, low;
	int fd[80], n = 0, p[2];

	CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
	low = old;
	low.rlim_cur = 64;
	CHECK(setrlimit(RLIMIT_NOFILE, &low) == 0);
	while (n < 80 && (fd[n] = dup(0)) >= 0)
		n++;
	CHECK(n < 64 && errno == EMFILE && fd[n - 1] == 63);
	FAILS(open(".", O_RDONLY), EMFILE);
	FAILS(pipe(p), EMFILE);
	FAILS(eventfd(0, 0), EMFILE);
	close(fd[--n]);
	FAILS(pipe(p), EMFILE);
	CHECK(dup(0) == 63);
	n++;
	FAILS(dup2(0, 64), EBADF);
	while (n)
		close(fd[--n]);
	CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
}

static void test_memfd(void)
{
	int fd = memfd_create("seal", MFD_CLOEXEC | MFD_ALLOW_SEALING), plain = memfd_create("plain", 0);
	char *m;

	CHECK(fd >= 0 && plain >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC && fcntl(plain, F_GETFD) == 0);
	CHECK(fcntl(fd, F_GET_SEALS) == 0 && fcntl(plain, F_GET_SEALS) == F_SEAL_SEAL);
	FAILS(fcntl(plain, F_ADD_SEALS, F_SEAL_WRITE), EPERM);
	CHECK(ftruncate(fd, 4096) == 0);
	m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(m != MAP_FAILED);
	strcpy(m, "sealed");
	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
	FAILS(ftruncate(fd, 100), EPERM);
	FAILS(ftruncate(fd, 10000), EPERM);
	FAILS(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EBUSY);
	CHECK(munmap(m, 4096) == 0);
	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL) == 0);
	FAILS(write(fd, "x", 1), EPERM);
	CHECK(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM);
	FAILS(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), EPERM);
	m = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
	CHECK(m != MAP_FAILED && !strcmp(m, "sealed"));
	CHECK(munmap(m, 4096) == 0);
	FAILS(syscall(SYS_memfd_create, "x", 0x8000), EINVAL);
	FAILS(syscall(SYS_memfd_create, BAD, 0), EFAULT);
	close(fd);
	close(plain);
}

static volatile int sigpipes;

static void on_sigpipe(int sig) { sigpipes += sig == SIGPIPE; }

static long read_one(long fd)
{
	char b;

	return read(fd, &b, 1);
}

static void test_pipe(void)
{
	static char page[PIPE_BUF], many[1 << 17];
	struct job j;
	int p[2], size, n = 0, avail = 0, next = next_fd();

	CHECK(pipe2(p, O_NONBLOCK | O_CLOEXEC) == 0 && p[0] == next);
	CHECK(fcntl(p[0], F_GETFL) & O_NONBLOCK && fcntl(p[1], F_GETFD) == FD_CLOEXEC);
	FAILS(read(p[0], page, 1), EAGAIN);
	size = fcntl(p[1], F_GETPIPE_SZ);
	CHECK(size >= 4096);
	while (write(p[1], page, PIPE_BUF) == PIPE_BUF)
		n++;
	CHECK(errno == EAGAIN && n == size / PIPE_BUF);
	CHECK(ioctl(p[0], FIONREAD, &avail) == 0 && avail == size);
	CHECK(read(p[0], page, 1) == 1);
	FAILS(write(p[1], page, PIPE_BUF), EAGAIN);
	if (fcntl(p[1], F_SETPIPE_SZ, size * 2) == size * 2) {
		CHECK(fcntl(p[0], F_GETPIPE_SZ) == size * 2);
		CHECK(write(p[1], page, PIPE_BUF) == PIPE_BUF);
		FAILS(fcntl(p[1], F_SETPIPE_SZ, 4096), EBUSY);
	} else {
		CHECK(errno == EPERM);
	}
	while ((n = read(p[0], many, sizeof many)) > 0)
		;
	CHECK(errno == EAGAIN);
	close(p[0]), close(p[1]);

	CHECK(pipe(p) == 0);
	job_start(&j, read_one, p[0]);
	CHECK(job_waits(&j));
	CHECK(write(p[1], "x", 1) == 1 && job_end(&j) == 1);
	job_start(&j, read_one, p[0]);
	CHECK(job_waits(&j));
	close(p[1]);
	CHECK(job_end(&j) == 0);
	close(p[0]);

	struct sigaction sa = { .sa_handler = on_sigpipe };
	CHECK(sigaction(SIGPIPE, &sa, NULL) == 0);
	CHECK(pipe(p) == 0);
	close(p[0]);
	FAILS(write(p[1], "x", 1), EPIPE);
	CHECK(sigpipes == 1);
	signal(SIGPIPE, SIG_IGN);
	FAILS(write(p[1], "x", 1), EPIPE);
	CHECK(sigpipes == 1);
	signal(SIGPIPE, SIG_DFL);
	close(p[1]);

	/* A failed call leaves no descriptor behind. */
	FAILS(syscall(SYS_pipe, BAD), EFAULT);
	FAILS(syscall(SYS_pipe2, p, 0x10), EINVAL);
	CHECK(next_fd() == next);
}

static long write_event(long fd) { return eventfd_write(fd, 5); }

static void test_eventfd(void)
{
	struct job j;
	eventfd_t v;
	int fd = eventfd(3, EFD_NONBLOCK | EFD_SEMAPHORE);

	CHECK(fd >= 0);
	for (int i = 0; i < 3; i++)
		CHECK(eventfd_read(fd, &v) == 0 && v == 1);
	FAILS(eventfd_read(fd, &v), EAGAIN);
	close(fd);
	fd = eventfd(7, EFD_CLOEXEC);
	CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC && eventfd_write(fd, 10) == 0);
	CHECK(eventfd_read(fd, &v) == 0 && v == 17);
	FAILS(eventfd_write(fd, ~0ull), EINVAL);
	FAILS(read(fd, &v, 4), EINVAL);
	CHECK(eventfd_write(fd, ~0ull - 1) == 0);
	job_start(&j, write_event, fd);
	CHECK(job_waits(&j));
	CHECK(eventfd_read(fd, &v) == 0 && v == ~0ull - 1);
	CHECK(job_end(&j) == 0 && eventfd_read(fd, &v) == 0 && v == 5);
	close(fd);
	fd = syscall(SYS_eventfd, 1);
	CHECK(fd >= 0 && eventfd_read(fd, &v) == 0 && v == 1);
	close(fd);
	FAILS(eventfd(0, 0x40000000), EINVAL);
}

static void test_pty(void)
{
	struct winsize ws = { 50, 132, 0, 0 }, got = { 0 };
	struct termios t;
	char b[32];
	int m = open("/dev/ptmx", O_RDWR | O_NOCTTY), s, zero = 0, n = -1;

	if (m < 0) {
		skip("pty");
		return;
	}
	CHECK(ioctl(m, TIOCSPTLCK, &zero) == 0 && ioctl(m, TIOCGPTN, &n) == 0 && n >= 0);
	s = ioctl(m, TIOCGPTPEER, O_RDWR | O_NOCTTY);
	CHECK(s >= 0 && isatty(s));
	CHECK(ioctl(m, TIOCSWINSZ, &ws) == 0 && ioctl(s, TIOCGWINSZ, &got) == 0);
	CHECK(got.ws_row == 50 && got.ws_col == 132);
	CHECK(tcgetattr(s, &t) == 0 && t.c_lflag & ICANON);
	cfmakeraw(&t);
	CHECK(tcsetattr(s, TCSADRAIN, &t) == 0 && tcgetattr(s, &t) == 0 && !(t.c_lflag & ICANON));
	CHECK(write(m, "hey", 3) == 3 && read(s, b, sizeof b) == 3 && !memcmp(b, "hey", 3));
	CHECK(write(m, "lost", 4) == 4 && tcflush(s, TCIFLUSH) == 0);
	CHECK(ioctl(s, FIONREAD, &n) == 0 && n == 0);
	CHECK(tcdrain(s) == 0 && tcsendbreak(s, 0) == 0);
	close(s), close(m);
}

static void test_ioctl(void)
{
	struct ifconf conf = { 0 };
	struct ifreq ifr = { 0 };
	struct termios t;
	int p[2], on = 1, v = -1, fd, s;
	char *file = "file", list[4096];

	CHECK(pipe(p) == 0);
	CHECK(write(p[1], "12345", 5) == 5 && ioctl(p[0], FIONREAD, &v) == 0 && v == 5);
	CHECK(ioctl(p[0], FIONBIO, &on) == 0 && fcntl(p[0], F_GETFL) & O_NONBLOCK);
	CHECK(ioctl(p[0], FIOCLEX) == 0 && fcntl(p[0], F_GETFD) == FD_CLOEXEC);
	CHECK(ioctl(p[0], FIONCLEX) == 0 && fcntl(p[0], F_GETFD) == 0);
	FAILS(ioctl(p[0], TCGETS, &t), ENOTTY);
	FAILS(ioctl(p[0], FIONREAD, BAD), EFAULT);
	FAILS(ioctl(p[0], 0x1234567, 0), ENOTTY);
	FAILS(ioctl(999, FIONREAD, &v), EBADF);
	FAILS(ioctl(999, 0x1234567, 0), EBADF);
	close(p[0]), close(p[1]);

	fd = make(file, "0123");
	CHECK(lseek(fd, 1, SEEK_SET) == 1 && ioctl(fd, FIONREAD, &v) == 0 && v == 3);
	CHECK(ioctl(fd, FIGETBSZ, &v) == 0 && v >= 512);
	if (ioctl(fd, FS_IOC_GETFLAGS, &v) < 0)
		CHECK(errno == ENOTTY || errno == EOPNOTSUPP || errno == EINVAL);
	FAILS(ioctl(fd, FICLONE, 999), EBADF);
	FAILS(ioctl(fd, TIOCGWINSZ, list), ENOTTY);
	close(fd);
	unlink(file);

	s = socket(AF_INET, SOCK_DGRAM, 0);
	if (s < 0) {
		skip("socket");
		return;
	}
	conf.ifc_len = sizeof list;
	conf.ifc_buf = list;
	CHECK(ioctl(s, SIOCGIFCONF, &conf) == 0 && conf.ifc_len % sizeof ifr == 0 && conf.ifc_buf == list);
	strcpy(ifr.ifr_name, "lo");
	if (ioctl(s, SIOCGIFINDEX, &ifr) == 0)
		CHECK(ifr.ifr_ifindex > 0 && !strcmp(ifr.ifr_name, "lo"));
	strcpy(ifr.ifr_name, "none0");
	FAILS(ioctl(s, SIOCGIFFLAGS, &ifr), ENODEV);
	close(s);
}

int main(void)
{
	static const struct group tests[] = {
		{ "dup", test_dup },         { "limit", test_limit }, { "memfd", test_memfd }, { "pipe", test_pipe },
		{ "eventfd", test_eventfd }, { "pty", test_pty },     { "ioctl", test_ioctl },
	};
	groups_run(tests, sizeof tests / sizeof *tests, "kxdescriptors");
}
