/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors that are shared over fork; file locks. Part of ipc.c. */
#ifndef KX_GUEST_IPC_SHARED_H
#define KX_GUEST_IPC_SHARED_H
#include "futexes.h"
#include "ipc.h"

/* ---- descriptors that are shared over fork -------------------------------------------------------------------------------- */

static inline void descriptors(void)
{
	SECTION("eventfd, timerfd, signalfd, memfd");
	uint64_t v = 0;
	int e = eventfd(2, EFD_SEMAPHORE);
	R(IN_CHILD(uint64_t u; R(read(e, &u, 8)); R(u); u = 5; R(write(e, &u, 8))));
	R(read(e, &v, 8));
	R(v);
	close(e);
	e = eventfd(0, EFD_NONBLOCK);
	R(read(e, &v, 8));
	R(read(e, &v, 7));
	v = ~0ull;
	R(write(e, &v, 8));
	v = ~0ull - 1;
	R(write(e, &v, 8));
	v = 1;
	R(write(e, &v, 8));
	R(IN_CHILD(uint64_t u; R(read(e, &u, 8)); R(u == ~0ull - 1)));
	R(read(e, &v, 8));
	close(e);
	e = eventfd(0, 0);
	SLEEPER(, ({
			uint64_t u;
			read(e, &u, 8);
			u;
		}),
		v = 3;
		R(write(e, &v, 8)));
	close(e);
	int t = timerfd_create(CLOCK_MONOTONIC, 0);
	struct itimerspec it = { .it_value.tv_nsec = 30000000 }, old;
	R(IN_CHILD(R(timerfd_settime(t, 0, &it, NULL))));
	R(read(t, &v, 8));
	R(v);
	R(timerfd_gettime(t, &old) == 0 && old.it_value.tv_nsec == 0);
	close(t);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	int s = signalfd(-1, &set, SFD_NONBLOCK);
	struct signalfd_siginfo si;
	R(IN_CHILD(kill(getpid(), SIGUSR2); R(read(s, &si, sizeof si));
		   R(si.ssi_signo == SIGUSR2 && si.ssi_pid == (uint32_t)getpid())));
	R(read(s, &si, sizeof si));
	pid_t p = CHILD(kill(getppid(), SIGUSR2));
	status_of(p);
	R(read(s, &si, sizeof si));
	R(si.ssi_pid == (uint32_t)p && si.ssi_code == SI_USER);
	close(s);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	int m1 = memfd_create("kx", MFD_ALLOW_SEALING);
	R(ftruncate(m1, 4096));
	char *c = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, m1, 0);
	R(IN_CHILD(strcpy(c, "mapped"); R(pwrite(m1, "written", 8, 100))));
	R(strcmp(c, "mapped") || strcmp(c + 100, "written"));
	R(fcntl(m1, F_ADD_SEALS, F_SEAL_WRITE));
	R(fcntl(m1, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
	R(ftruncate(m1, 1));
	R(ftruncate(m1, 8192));
	munmap(c, 4096);
	R(fcntl(m1, F_ADD_SEALS, F_SEAL_WRITE));
	R(write(m1, "x", 1));
	R(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, m1, 0) == MAP_FAILED);
	close(m1);
	SECTION("MAP_SHARED");
	char path[200];
	snprintf(path, sizeof path, "%s/kx-ipc-file", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	int f = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	R(ftruncate(f, 8192));
	c = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
	R(IN_CHILD(char *d = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, f, 4096); strcpy(d, "file")));
	R(strcmp(c + 4096, "file"));
	char back[8] = "";
	R(pread(f, back, 5, 4096));
	R(strcmp(back, "file"));
	/* its lock words work, too */
	uint32_t *w = (uint32_t *)c;
	p = CHILD(LATE("wait in a file", fx(w, FUTEX_WAIT, 0, NULL, NULL, 0)));
	asleep(p, p);
	R(fx(w, FUTEX_WAKE, 1, NULL, NULL, 0));
	R(status_of(p));
	munmap(c, 8192);
	close(f);
	unlink(path);
}

/* ---- file locks ------------------------------------------------------------------------------------------------------------ */

static inline int lk(int fd, int cmd, int type, long start, long len)
{
	struct flock l = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len };
	return fcntl(fd, cmd, &l);
}

static inline pid_t holder_of(int fd, int cmd, int type, long start, long len)
{
	struct flock l = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len };
	if (fcntl(fd, cmd, &l))
		return -1;
	return l.l_type == F_UNLCK ? 0 : l.l_pid;
}

static inline void locks(void)
{
	SECTION("flock");
	char path[200];
	snprintf(path, sizeof path, "%s/kx-ipc-lock", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	int f = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600), g;
	ftruncate(f, 100);
	R(flock(f, LOCK_EX));
	R(IN_CHILD(R(flock(f, LOCK_EX | LOCK_NB)); int h = open(path, O_RDWR); R(flock(h, LOCK_SH | LOCK_NB));
		   R(flock(h, 77))));
	R(flock(f, LOCK_SH));
	R(IN_CHILD(int h = open(path, O_RDWR); R(flock(h, LOCK_SH | LOCK_NB)); R(flock(h, LOCK_EX | LOCK_NB))));
	R(flock(-1, LOCK_SH));
	R(IN_CHILD(R(flock(f, LOCK_UN)))); /* of the shared description */
	R(IN_CHILD(int h = open(path, O_RDWR); R(flock(h, LOCK_EX | LOCK_NB))));
	pid_t p = CHILD(int h = open(path, O_RDWR); flock(h, LOCK_EX); for (;;) pause());
	asleep(p, p);
	R(flock(f, LOCK_SH | LOCK_NB));
	SLEEPER(int h = open(path, O_RDWR), flock(h, LOCK_EX), kill(p, SIGKILL));
	R(status_of(p));
	R(flock(f, LOCK_EX | LOCK_NB));
	SLEEPER(handle(SIGUSR1, 0); int h = open(path, O_RDWR), flock(h, LOCK_EX), kill(s_, SIGUSR1));
	R(flock(f, LOCK_UN));
	SECTION("fcntl locks");
	R(lk(f, F_SETLK, F_WRLCK, 0, 10));
	R(IN_CHILD(R(lk(f, F_SETLK, F_RDLCK, 5, 10)); R(lk(f, F_SETLK, F_RDLCK, 10, 10));
		   R(holder_of(f, F_GETLK, F_RDLCK, 0, 0) == getppid())));
	R(lk(f, F_SETLK, F_RDLCK, 0, 10));
	R(IN_CHILD(R(lk(f, F_SETLK, F_RDLCK, 5, 10)); R(lk(f, F_SETLK, F_WRLCK, 5, 10))));
	R(IN_CHILD(R(lk(f, F_SETLK, F_UNLCK, 0, 0)); R(holder_of(f, F_GETLK, F_WRLCK, 0, 0) == getppid())));
	R(lk(f, F_SETLK, 77, 0, 1));
	R(lk(f, F_SETLK, F_WRLCK, -1, 1));
	R(lk(-1, F_SETLK, F_WRLCK, 0, 1));
	g = open(path, O_RDONLY);
	R(lk(g, F_SETLK, F_WRLCK, 50, 1));
	close(g); /* drops all of the process's locks of that file */
	R(IN_CHILD(R(holder_of(f, F_GETLK, F_WRLCK, 0, 0))));
	turn[1] = turn[2] = 0;
	p = CHILD(lk(f, F_SETLK, F_WRLCK, 0, 10); turn[1] = 1; while (!turn[2]) ms(1);
		  LATE("wait for the lock", lk(f, F_SETLKW, F_WRLCK, 20, 10)));
	while (!turn[1])
		ms(1);
	R(lk(f, F_SETLK, F_WRLCK, 20, 10));
	turn[2] = 1;
	asleep(p, p);
	R(lk(f, F_SETLKW, F_WRLCK, 0, 10)); /* EDEADLK */
	R(lk(f, F_SETLK, F_UNLCK, 0, 0));
	R(status_of(p));
	p = CHILD(lk(f, F_SETLK, F_WRLCK, 0, 0); for (;;) pause());
	asleep(p, p);
	R(holder_of(f, F_GETLK, F_RDLCK, 0, 0) == p);
	SLEEPER(, lk(f, F_SETLKW, F_WRLCK, 0, 0), kill(p, SIGKILL));
	R(status_of(p));
	R(lockf(f, F_TEST, 0));
	SECTION("OFD locks");
	g = open(path, O_RDWR);
	R(lk(f, F_OFD_SETLK, F_WRLCK, 0, 10));
	R(lk(g, F_OFD_SETLK, F_WRLCK, 0, 10));
	R(holder_of(g, F_OFD_GETLK, F_WRLCK, 0, 10));
	R(holder_of(g, F_GETLK, F_WRLCK, 0, 10));
	R(IN_CHILD(R(lk(f, F_OFD_SETLK, F_WRLCK, 5, 10)); R(lk(g, F_OFD_SETLK, F_RDLCK, 0, 1))));
	SLEEPER(, lk(g, F_OFD_SETLKW, F_RDLCK, 0, 1), R(lk(f, F_OFD_SETLK, F_UNLCK, 0, 0)));
	R(lk(f, F_OFD_SETLK, F_WRLCK, 0, 1));
	close(g);
	R(lk(f, F_OFD_SETLK, F_WRLCK, 0, 1));
	close(f);
	unlink(path);
}
#endif
