/* SPDX-License-Identifier: Apache-2.0 */
/* What all stressors use. Part of stress.c. */
#ifndef KX_GUEST_STRESS_STRESS_H
#define KX_GUEST_STRESS_STRESS_H
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define MiB (1UL << 20)
#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static uint64_t end_ns;
static char dir[90];
static const char *stressor_name;
static atomic_int failures;
static unsigned char buf[2][65536];

static inline uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static inline bool over(void) { return now() >= end_ns; }

/* One line for each way to fail; ends the whole test after a few. */
__attribute__((format(printf, 2, 3))) static inline bool expect(bool ok, const char *format, ...)
{
	if (ok)
		return true;
	int e = errno;
	char text[300];
	va_list va;
	va_start(va, format);
	vsnprintf(text, sizeof(text), format, va);
	va_end(va);
	printf("FAIL %s: %s (errno %d)\n", stressor_name, text, e);
	fflush(stdout);
	if (atomic_fetch_add(&failures, 1) >= 20)
		_exit(1);
	return false;
}

/* For what nothing can go on without. */
#define must(ok) \
	do { \
		if (!expect(ok, "line %d: %s", __LINE__, #ok)) \
			_exit(1); \
	} while (0)

static __thread uint64_t seed = 0x9e3779b97f4a7c15;

static inline uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	return seed ^= seed << 17;
}

static inline uint64_t below(uint64_t n) { return rnd() % n; }

static inline pthread_t start(void *(*fn)(void *), void *arg)
{
	pthread_t t;
	must(pthread_create(&t, NULL, fn, arg) == 0);
	return t;
}

static inline const char *path(char *buf, const char *name, uint64_t n)
{
	snprintf(buf, 256, "%s/%s%lu", dir, name, n);
	return buf;
}

static inline void fill(unsigned char *p, size_t len, uint64_t key)
{
	for (size_t i = 0; i < len; i++)
		p[i] = (unsigned char)((key + i) * 0x9e3779b1u >> 24);
}

static inline size_t differs(const unsigned char *p, size_t len, uint64_t key)
{
	for (size_t i = 0; i < len; i++)
		if (p[i] != (unsigned char)((key + i) * 0x9e3779b1u >> 24))
			return i;
	return len;
}

static inline void set_handler(int sig, void (*fn)(int, siginfo_t *, void *), int flags)
{
	struct sigaction sa = { .sa_sigaction = fn, .sa_flags = SA_SIGINFO | flags };
	must(sigaction(sig, &sa, NULL) == 0);
}

#endif
