/* SPDX-License-Identifier: Apache-2.0 */
/* POSIX shared memory and semaphores. Part of ipc.c. */
#ifndef KX_GUEST_IPC_POSIX_H
#define KX_GUEST_IPC_POSIX_H
#include "ipc.h"

static inline void posix_shm(void)
{
	SECTION("shm_open");
	const char *n = "/kx-ipc-shm";
	int fd;
	struct stat st;
	shm_unlink(n);
	R(shm_open(n, O_RDWR, 0));
	R(shm_unlink(n));
	R(shm_open("/a/b", O_RDWR | O_CREAT, 0600));
	R((fd = shm_open(n, O_RDWR | O_CREAT | O_EXCL, 0600)) >= 0);
	R(shm_open(n, O_RDWR | O_CREAT | O_EXCL, 0600));
	R(fcntl(fd, F_GETFD));
	R(ftruncate(fd, 10000));
	R(fstat(fd, &st) == 0 && st.st_size == 10000 && S_ISREG(st.st_mode));
	char *p = mmap(NULL, 10000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	R(IN_CHILD(int f = shm_open(n, O_RDWR, 0);
		   char *q = mmap(NULL, 10000, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0); strcpy(q + 9000, "child")));
	R(strcmp(p + 9000, "child"));
	R(IN_CHILD(int f = shm_open(n, O_RDONLY, 0); R(ftruncate(f, 1)); errno = 0;
		   R(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0) == MAP_FAILED && errno == EACCES)));
	R(AS_NOBODY(R(shm_open(n, O_RDONLY, 0)); R(shm_unlink(n))));
	R(access("/dev/shm/kx-ipc-shm", F_OK));
	R(ftruncate(fd, 4096));
	R(IN_CHILD(p[9000] = 1));
	R(shm_unlink(n));
	R(shm_open(n, O_RDWR, 0));
	R(p[0] = 7);
	munmap(p, 10000);
	close(fd);
}

static inline void posix_sem(void)
{
	SECTION("sem_open");
	const char *n = "/kx-ipc-sem";
	sem_t *s, *t;
	int v;
	sem_unlink(n);
	R(sem_open(n, 0) == SEM_FAILED ? -1 : 0);
	R(sem_unlink(n));
	R(sem_open(n, O_CREAT, 0600, 1u << 31) == SEM_FAILED ? -1 : 0);
	R((s = sem_open(n, O_CREAT | O_EXCL, 0600, 2)) != SEM_FAILED);
	R(sem_open(n, O_CREAT | O_EXCL, 0600, 2) == SEM_FAILED ? -1 : 0);
	R((t = sem_open(n, O_CREAT, 0600, 9)) == s);
	R(sem_close(t));
	R(sem_getvalue(s, &v) == 0 ? v : -1);
	R(IN_CHILD(sem_t *c = sem_open(n, 0); R(sem_trywait(c)); R(sem_trywait(c)); R(sem_trywait(c))));
	R(sem_getvalue(s, &v) == 0 ? v : -1);
	SLEEPER(, sem_wait(s), R(sem_post(s)));
	SLEEPER(handle(SIGUSR1, 0), sem_wait(s), kill(s_, SIGUSR1));
	SLEEPER(handle(SIGUSR1, SA_RESTART), sem_wait(s), kill(s_, SIGUSR1); ms(50); R(sem_post(s)));
	SLEEPER(, sem_wait(s), kill(s_, SIGKILL));
	R(sem_post(s));
	R(sem_trywait(s));
	struct timespec ts = in_ms(CLOCK_REALTIME, 60), wrong = { 1, -1 };
	R(sem_timedwait(s, &ts));
	R(sem_timedwait(s, &wrong));
	ts = in_ms(CLOCK_MONOTONIC, 60);
	R(sem_clockwait(s, CLOCK_MONOTONIC, &ts));
	R(AS_NOBODY(R(sem_open(n, 0) == SEM_FAILED ? -1 : 0); R(sem_unlink(n))));
	R(sem_unlink(n));
	R(sem_open(n, 0) == SEM_FAILED ? -1 : 0);
	R(sem_post(s));
	R(sem_close(s));
	SECTION("sem_init");
	s = shared(4096);
	R(sem_init(s, 1, SEM_VALUE_MAX));
	R(sem_post(s));
	R(sem_init(s, 1, 1u << 31));
	R(sem_init(s, 1, 0));
	t = s + 1;
	R(sem_init(t, 1, 0));
	pid_t p = CHILD(for (int i = 0; i < 200; i++) {
		sem_wait(s);
		sem_post(t);
	});
	for (int i = 0; i < 200; i++) {
		sem_post(s);
		sem_wait(t);
	}
	R(status_of(p));
	R(sem_destroy(s));
	munmap(s, 4096);
}
#endif
