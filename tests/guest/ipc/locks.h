/* SPDX-License-Identifier: Apache-2.0 */
/* Locks and conditions in shared memory. Part of ipc.c. */
#ifndef KX_GUEST_IPC_LOCKS_H
#define KX_GUEST_IPC_LOCKS_H
#include "ipc.h"

struct sync {
	pthread_mutex_t m;
	pthread_cond_t c;
	pthread_barrier_t b;
	pthread_rwlock_t rw;
	volatile int n, flag, serial;
};

static inline void mutex_of(pthread_mutex_t *mu, int type, int robust, int protocol)
{
	pthread_mutexattr_t a;
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_settype(&a, type);
	pthread_mutexattr_setrobust(&a, robust);
	pthread_mutexattr_setprotocol(&a, protocol);
	pthread_mutex_init(mu, &a);
}

static inline void mutexes(struct sync *s)
{
	static const int types[] = { PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_RECURSIVE, PTHREAD_MUTEX_ERRORCHECK,
				     PTHREAD_MUTEX_ADAPTIVE_NP };
	for (int pi = 0; pi < 2; pi++)
		for (int robust = 0; robust < 2; robust++)
			for (int i = 0; i < 4; i++) {
				printf("-- mutex type %d robust %d pi %d\n", i, robust, pi);
				mutex_of(&s->m, types[i], robust, pi ? PTHREAD_PRIO_INHERIT : PTHREAD_PRIO_NONE);
				P(pthread_mutex_lock(&s->m));
				P(pthread_mutex_trylock(&s->m));
				if (i == 1)
					P(pthread_mutex_unlock(&s->m));
				if (i == 1 || i == 2)
					P(pthread_mutex_lock(&s->m));
				if (i == 1)
					P(pthread_mutex_unlock(&s->m));
				R(IN_CHILD(P(pthread_mutex_trylock(&s->m));
					   if (i == 1 || i == 2) P(pthread_mutex_unlock(&s->m));
					   struct timespec ts = in_ms(CLOCK_REALTIME, 30);
					   P(pthread_mutex_timedlock(&s->m, &ts))));
				pid_t p = CHILD(LATE("pthread_mutex_lock", pthread_mutex_lock(&s->m)); s->n++;
						P(pthread_mutex_unlock(&s->m)));
				ms(30);
				P(pthread_mutex_unlock(&s->m));
				R(status_of(p));
				s->n = 0;
				pid_t c[3];
				for (int j = 0; j < 3; j++)
					c[j] = CHILD(for (int l = 0; l < 300; l++) {
						pthread_mutex_lock(&s->m);
						int v = s->n;
						if (l % 50 == 0)
							sched_yield();
						s->n = v + 1;
						pthread_mutex_unlock(&s->m);
					});
				for (int j = 0; j < 3; j++)
					status_of(c[j]);
				R(s->n);
				if (robust) {
					R(IN_CHILD(pthread_mutex_lock(&s->m)));
					P(pthread_mutex_trylock(&s->m));
					P(pthread_mutex_consistent(&s->m));
					P(pthread_mutex_consistent(&s->m));
					P(pthread_mutex_unlock(&s->m));
					R(IN_CHILD(pthread_mutex_lock(&s->m); raise(SIGKILL)));
					P(pthread_mutex_trylock(&s->m));
					P(pthread_mutex_consistent(&s->m));
					P(pthread_mutex_unlock(&s->m));
					/* who waits already */
					p = CHILD(pthread_mutex_lock(&s->m); for (;;) pause());
					asleep(p, p);
					SLEEPER(, ({
							int e = pthread_mutex_lock(&s->m);
							pthread_mutex_consistent(&s->m);
							pthread_mutex_unlock(&s->m);
							e == EOWNERDEAD;
						}),
						kill(p, SIGKILL));
					R(status_of(p));
					R(IN_CHILD(pthread_mutex_lock(&s->m); execl("/bin/true", "true", NULL)));
					P(pthread_mutex_lock(&s->m));
					P(pthread_mutex_unlock(&s->m));
					P(pthread_mutex_lock(&s->m));
				}
			}
}

static inline void *hold_it(void *arg)
{
	pthread_mutex_lock(arg);
	for (;;)
		pause();
	return NULL;
}

/* Threads that sleep, and a thread that starts programs meanwhile. */
static inline void spawns(pthread_mutex_t *mu)
{
	mutex_of(mu, PTHREAD_MUTEX_NORMAL, 1, PTHREAD_PRIO_NONE);
	pid_t p = CHILD(
		pthread_t t; pthread_create(&t, NULL, hold_it, mu); while (!pthread_mutex_trylock(mu)) {
			pthread_mutex_unlock(mu);
			ms(1);
		} for (int i = 0; i < 20; i++) {
			pid_t q = vfork();
			if (!q)
				_exit(5);
			if (status_of(q) != 5)
				_exit(1);
		} ms(100);
		raise(SIGKILL));
	R(status_of(p));
	P(pthread_mutex_trylock(mu));
}

static inline void sync_objects(void)
{
	SECTION("pthread, process-shared");
	struct sync *s = shared(sizeof *s);
	mutexes(s);
	printf("-- vfork\n");
	spawns(&s->m);
	printf("-- condition\n");
	pthread_condattr_t ca;
	pthread_condattr_init(&ca);
	pthread_condattr_setpshared(&ca, PTHREAD_PROCESS_SHARED);
	pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
	mutex_of(&s->m, PTHREAD_MUTEX_NORMAL, 0, PTHREAD_PRIO_NONE);
	P(pthread_cond_init(&s->c, &ca));
	pthread_mutex_lock(&s->m);
	struct timespec ts = in_ms(CLOCK_MONOTONIC, 60);
	P(pthread_cond_timedwait(&s->c, &s->m, &ts));
	s->n = s->flag = 0;
	pid_t c[4];
	for (int j = 0; j < 4; j++)
		c[j] = CHILD(pthread_mutex_lock(&s->m); s->n++; while (!s->flag) pthread_cond_wait(&s->c, &s->m);
			     s->flag--; pthread_mutex_unlock(&s->m));
	pthread_mutex_unlock(&s->m);
	while (s->n < 4)
		ms(1);
	pthread_mutex_lock(&s->m);
	s->flag = 1;
	P(pthread_cond_signal(&s->c));
	pthread_mutex_unlock(&s->m);
	while (s->flag)
		ms(1);
	pthread_mutex_lock(&s->m);
	s->flag = 3;
	P(pthread_cond_broadcast(&s->c));
	pthread_mutex_unlock(&s->m);
	long sum = 0;
	for (int j = 0; j < 4; j++)
		sum += status_of(c[j]);
	R(sum);
	R(s->flag);
	printf("-- barrier\n");
	pthread_barrierattr_t ba;
	pthread_barrierattr_init(&ba);
	pthread_barrierattr_setpshared(&ba, PTHREAD_PROCESS_SHARED);
	P(pthread_barrier_init(&s->b, &ba, 0));
	P(pthread_barrier_init(&s->b, &ba, 4));
	s->serial = s->n = 0;
	for (int j = 0; j < 3; j++)
		c[j] = CHILD(for (int l = 0; l < 50; l++) {
			__atomic_add_fetch(&s->n, 1, __ATOMIC_SEQ_CST);
			if (pthread_barrier_wait(&s->b) == PTHREAD_BARRIER_SERIAL_THREAD)
				__atomic_add_fetch(&s->serial, 1, __ATOMIC_SEQ_CST);
			if (s->n < (l + 1) * 4)
				_exit(3);
		});
	for (int l = 0; l < 50; l++) {
		__atomic_add_fetch(&s->n, 1, __ATOMIC_SEQ_CST);
		if (pthread_barrier_wait(&s->b) == PTHREAD_BARRIER_SERIAL_THREAD)
			__atomic_add_fetch(&s->serial, 1, __ATOMIC_SEQ_CST);
	}
	sum = 0;
	for (int j = 0; j < 3; j++)
		sum += status_of(c[j]);
	R(sum);
	R(s->serial);
	P(pthread_barrier_destroy(&s->b));
	printf("-- read-write lock\n");
	pthread_rwlockattr_t ra;
	pthread_rwlockattr_init(&ra);
	pthread_rwlockattr_setpshared(&ra, PTHREAD_PROCESS_SHARED);
	P(pthread_rwlock_init(&s->rw, &ra));
	P(pthread_rwlock_rdlock(&s->rw));
	R(IN_CHILD(P(pthread_rwlock_tryrdlock(&s->rw)); P(pthread_rwlock_unlock(&s->rw));
		   P(pthread_rwlock_trywrlock(&s->rw)); struct timespec t1 = in_ms(CLOCK_REALTIME, 40);
		   P(pthread_rwlock_timedwrlock(&s->rw, &t1))));
	pid_t p = CHILD(LATE("pthread_rwlock_wrlock", pthread_rwlock_wrlock(&s->rw)); s->flag = 9;
			P(pthread_rwlock_unlock(&s->rw)));
	ms(50);
	P(pthread_rwlock_unlock(&s->rw));
	R(status_of(p));
	P(pthread_rwlock_wrlock(&s->rw));
	P(pthread_rwlock_rdlock(&s->rw));
	R(s->flag);
	p = CHILD(LATE("pthread_rwlock_rdlock", pthread_rwlock_rdlock(&s->rw)); P(pthread_rwlock_unlock(&s->rw)));
	ms(50);
	P(pthread_rwlock_unlock(&s->rw));
	R(status_of(p));
	munmap(s, sizeof *s);
}
#endif
