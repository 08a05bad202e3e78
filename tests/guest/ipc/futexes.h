/* SPDX-License-Identifier: Apache-2.0 */
/* Futexes. Part of ipc.c. */
#ifndef KX_GUEST_IPC_FUTEXES_H
#define KX_GUEST_IPC_FUTEXES_H
#include "ipc.h"

static inline long fx(volatile void *w, int op, uint32_t val, void *t, volatile void *w2, uint32_t v3)
{
	return syscall(SYS_futex, w, op, val, t, w2, v3);
}

struct waitv {
	uint64_t val, uaddr;
	uint32_t flags, reserved;
};

static inline void futexes(void)
{
	SECTION("futex");
	uint32_t *w = shared(4096);
	struct timespec ts = { 0, 50000000 }, wrong = { 0, -1 };
	for (int pass = 0; pass < 2; pass++) {
		int pr = pass ? FUTEX_PRIVATE_FLAG : 0;
		printf("-- flags %d\n", pr);
		R(fx(w, FUTEX_WAIT | pr, 1, NULL, NULL, 0));
		R(fx(w, FUTEX_WAIT | pr, 0, &ts, NULL, 0));
		R(fx(w, FUTEX_WAIT | pr, 0, &wrong, NULL, 0));
		R(fx(w, FUTEX_WAIT | pr, 0, BAD, NULL, 0));
		R(fx(w, FUTEX_WAIT | pr | FUTEX_CLOCK_REALTIME, 0, &ts, NULL, 0));
		R(fx((char *)w + 1, FUTEX_WAIT | pr, 0, NULL, NULL, 0));
		R(fx(BAD, FUTEX_WAIT | pr, 0, NULL, NULL, 0));
		R(fx(BAD, FUTEX_WAKE | pr, 1, NULL, NULL, 0));
		R(fx(w, FUTEX_WAIT | pr, 1, &wrong, NULL, 0));
		R(fx(w, FUTEX_WAIT | pr | FUTEX_CLOCK_REALTIME, 1, NULL, NULL, 0));
		R(fx((char *)w + 2, FUTEX_WAKE | pr, 1, NULL, NULL, 0));
		R(fx(w, FUTEX_WAKE | pr, 1, NULL, NULL, 0));
		R(fx(w, FUTEX_WAIT_BITSET | pr, 0, NULL, NULL, 0));
		R(fx(w, FUTEX_WAKE_BITSET | pr, 1, NULL, NULL, 0));
		struct timespec abs = in_ms(CLOCK_MONOTONIC, 30);
		R(fx(w, FUTEX_WAIT_BITSET | pr, 0, &abs, NULL, 1));
		abs = in_ms(CLOCK_REALTIME, 30);
		R(fx(w, FUTEX_WAIT_BITSET | pr | FUTEX_CLOCK_REALTIME, 0, &abs, NULL, 1));
		R(fx(w, FUTEX_FD | pr, 0, NULL, NULL, 0));
		R(fx(w, 77 | pr, 0, NULL, NULL, 0));
		R(fx(w, FUTEX_REQUEUE | pr, 1, (void *)1, w + 1, 0));
		R(fx(w, FUTEX_CMP_REQUEUE | pr, 1, (void *)1, w + 1, 5));
		R(fx(w, FUTEX_CMP_REQUEUE | pr, -1, (void *)1, w + 1, 0));
		R(fx(w, FUTEX_WAKE_OP | pr, 1, (void *)1, w + 1, FUTEX_OP(FUTEX_OP_ADD, 3, FUTEX_OP_CMP_EQ, 0)));
		R(w[1]);
		w[1] = 0;
		R(fx(w, FUTEX_LOCK_PI | pr, 0, NULL, NULL, 0));
		R(w[0] == (uint32_t)getpid());
		R(fx(w, FUTEX_LOCK_PI | pr, 0, NULL, NULL, 0));
		R(fx(w, FUTEX_TRYLOCK_PI | pr, 0, NULL, NULL, 0));
		R(fx(w, FUTEX_UNLOCK_PI | pr, 0, NULL, NULL, 0));
		R(w[0]);
		R(fx(w, FUTEX_UNLOCK_PI | pr, 0, NULL, NULL, 0));
	}
	printf("-- across processes\n");
	pid_t each[3];
	for (int i = 0; i < 3; i++)
		each[i] = CHILD(LATE("wait", fx(w, FUTEX_WAIT, 0, NULL, NULL, 0)));
	for (int i = 0; i < 3; i++)
		asleep(each[i], each[i]);
	R(fx(w, FUTEX_WAKE, 1, NULL, NULL, 0));
	*turn = 1;
	R(wait(NULL) > 0);
	*turn = 0;
	R(fx(w, FUTEX_REQUEUE, 0, (void *)9, w + 1, 0));
	R(fx(w, FUTEX_WAKE, 9, NULL, NULL, 0));
	R(fx(w + 1, FUTEX_WAKE, 9, NULL, NULL, 0));
	*turn = 1;
	R(wait(NULL) > 0 && wait(NULL) > 0);
	*turn = 0;
	pid_t a = CHILD(LATE("wait 1", fx(w, FUTEX_WAIT_BITSET, 0, NULL, NULL, 1)));
	pid_t b = CHILD(LATE("wait 2", fx(w, FUTEX_WAIT_BITSET, 0, NULL, NULL, 2)));
	asleep(a, a), asleep(b, b);
	R(fx(w, FUTEX_WAKE_BITSET, 9, NULL, NULL, 4));
	R(fx(w, FUTEX_WAKE_BITSET, 9, NULL, NULL, 2));
	R(status_of(b));
	R(fx(w, FUTEX_WAKE_BITSET, 9, NULL, NULL, 1));
	R(status_of(a));
	/* the first process of two mappings of one page, at other addresses */
	int fd = memfd_create("w", 0);
	ftruncate(fd, 4096);
	uint32_t *x = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	a = CHILD(uint32_t *y = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		  LATE("wait at another address", fx(y, FUTEX_WAIT, 0, NULL, NULL, 0)));
	asleep(a, a);
	R(fx(x, FUTEX_WAKE, 9, NULL, NULL, 0));
	R(status_of(a));
	/* private ones do not meet across processes */
	a = CHILD(LATE("private",
		       fx(w, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, &(struct timespec){ 0, 250000000 }, NULL, 0)));
	ms(100);
	R(fx(w, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 9, NULL, NULL, 0));
	R(fx(w, FUTEX_WAKE, 9, NULL, NULL, 0));
	R(status_of(a));
	SLEEPER(handle(SIGUSR1, 0), fx(w, FUTEX_WAIT, 0, NULL, NULL, 0), kill(s_, SIGUSR1));
	SLEEPER(handle(SIGUSR1, SA_RESTART), fx(w, FUTEX_WAIT, 0, &(struct timespec){ 100, 0 }, NULL, 0),
		kill(s_, SIGUSR1));
	SLEEPER(handle(SIGUSR1, SA_RESTART), fx(w, FUTEX_WAIT, 0, NULL, NULL, 0), kill(s_, SIGUSR1); ms(50);
		asleep(s_, s_); R(fx(w, FUTEX_WAKE, 9, NULL, NULL, 0)));
	SLEEPER(, fx(w, FUTEX_WAIT, 0, NULL, NULL, 0), kill(s_, SIGKILL));
	R(fx(w, FUTEX_WAKE, 9, NULL, NULL, 0));
	printf("-- priority inheritance\n");
	w[8] = w[9] = 0;
	a = CHILD(fx(w, FUTEX_LOCK_PI, 0, NULL, NULL, 0); w[8] = 1; while (!((volatile uint32_t *)w)[9]) ms(1); ms(50);
		  LATE("unlock", fx(w, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0)));
	while (!((volatile uint32_t *)w)[8])
		ms(1);
	struct timespec soon = in_ms(CLOCK_REALTIME, 30);
	R(fx(w, FUTEX_LOCK_PI, 0, &soon, NULL, 0));
	R(fx(w, FUTEX_TRYLOCK_PI, 0, NULL, NULL, 0));
	R(fx(w, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	w[9] = 1;
	R(fx(w, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
	R(status_of(a));
	R((w[0] & FUTEX_TID_MASK) == (uint32_t)getpid());
	R(fx(w, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	/* the owner dies with somebody waiting */
	a = CHILD(fx(w, FUTEX_LOCK_PI, 0, NULL, NULL, 0); for (;;) pause());
	asleep(a, a);
	b = CHILD(LATE("lock of the dead", fx(w, FUTEX_LOCK_PI, 0, NULL, NULL, 0)); R((w[0] & FUTEX_OWNER_DIED) != 0);
		  R((w[0] & FUTEX_TID_MASK) == (uint32_t)getpid()); fx(w, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	asleep(b, b);
	kill(a, SIGKILL);
	R(status_of(a));
	R(status_of(b));
	w[0] = w[1] = 0;
	/* requeued from a condition to a lock */
	R(fx(w + 1, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
	a = CHILD(LATE("wait, requeued", fx(w, FUTEX_WAIT_REQUEUE_PI, 0, NULL, w + 1, 0));
		  R(fx(w + 1, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0)));
	asleep(a, a);
	R(fx(w, FUTEX_CMP_REQUEUE_PI, 1, (void *)0, w + 1, 0));
	R(fx(w + 1, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
	R(status_of(a));
	R(fx(w, FUTEX_WAIT_REQUEUE_PI, 0, NULL, w, 0));
	R(fx(w, FUTEX_CMP_REQUEUE_PI, 2, (void *)0, w + 1, 0));
	printf("-- several\n");
	w[0] = w[1] = 0;
	struct waitv v[2] = { { 0, (uint64_t)w, 2, 0 }, { 0, (uint64_t)(w + 1), 2, 0 } };
	soon = in_ms(CLOCK_MONOTONIC, 40);
	R(syscall(449, v, 2, 0, &soon, CLOCK_MONOTONIC));
	R(syscall(449, v, 0, 0, &soon, CLOCK_MONOTONIC));
	R(syscall(449, v, 129, 0, &soon, CLOCK_MONOTONIC));
	R(syscall(449, v, 2, 1, &soon, CLOCK_MONOTONIC));
	R(syscall(449, NULL, 2, 0, &soon, CLOCK_MONOTONIC));
	R(syscall(449, BAD, 2, 0, &soon, CLOCK_MONOTONIC));
	R(syscall(449, v, 2, 0, &soon, CLOCK_TAI));
	v[1].val = 1;
	R(syscall(449, v, 2, 0, &soon, CLOCK_MONOTONIC));
	v[1].val = 0;
	v[1].flags = 0;
	R(syscall(449, v, 2, 0, &soon, CLOCK_MONOTONIC));
	v[1].flags = 2;
	v[1].uaddr = 9;
	R(syscall(449, v, 2, 0, &soon, CLOCK_MONOTONIC));
	v[1].uaddr = 8;
	R(syscall(449, v, 2, 0, &soon, CLOCK_MONOTONIC));
	v[1].uaddr = (uint64_t)(w + 1);
	a = CHILD(LATE("waitv", syscall(449, v, 2, 0, NULL, 0)));
	asleep(a, a);
	R(fx(w + 1, FUTEX_WAKE, 9, NULL, NULL, 0));
	R(status_of(a));
	SLEEPER(handle(SIGUSR1, 0), syscall(449, v, 2, 0, NULL, 0), kill(s_, SIGUSR1));
	munmap(w, 4096);
	munmap(x, 4096);
	close(fd);
}

static uint32_t private_word;
static volatile pid_t waiter;

/* Until the thread that has said its number sleeps. */
static inline void waiter_asleep(void)
{
	while (!waiter)
		ms(1);
	asleep(getpid(), waiter);
	waiter = 0;
}

static inline void *private_waitv(void *arg)
{
	waiter = gettid();
	struct waitv v = { 0, (uint64_t)&private_word, 2 | FUTEX_PRIVATE_FLAG, 0 };
	return (void *)syscall(449, &v, 1, 0, arg, CLOCK_MONOTONIC);
}

static inline void waitv_private(void)
{
	pthread_t t;
	void *r = (void *)-1;
	struct timespec late = in_ms(CLOCK_MONOTONIC, 100000);
	pthread_create(&t, NULL, private_waitv, &late);
	waiter_asleep();
	private_word = 1;
	R(fx(&private_word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0));
	pthread_join(t, &r);
	R((long)r);
}

/* Who was moved to another word is found there, however many times that was done. */
static inline void *private_wait(void *arg)
{
	waiter = gettid();
	return (void *)fx(arg, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 0, NULL, NULL, 0);
}

static inline void requeue(void)
{
	static uint32_t w[2];
	pthread_t t;
	void *r = (void *)-1;
	pthread_create(&t, NULL, private_wait, w);
	waiter_asleep();
	R(fx(w, FUTEX_REQUEUE | FUTEX_PRIVATE_FLAG, 0, (void *)9, w + 1, 0));
	for (int i = 1; i < 65536; i++)
		if (fx(w, FUTEX_REQUEUE | FUTEX_PRIVATE_FLAG, 0, (void *)9, w + 1, 0))
			exit(1);
	R(fx(w + 1, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 9, NULL, NULL, 0));
	pthread_join(t, &r);
	R((long)r);
}
#endif
