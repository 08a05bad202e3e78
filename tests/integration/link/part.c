/* SPDX-License-Identifier: Apache-2.0 */
/* A library of many: -DN=name -DV=number; -DCALLS=name of one that it needs, -DIE, -DUNDEFINED, -DINNER (C only). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)
#define STR_(a) #a
#define STR(a) STR_(a)
#define F(x) CAT(x, N)
#ifdef IE
#define MODEL __attribute__((tls_model("initial-exec")))
#else
#define MODEL
#endif

static MODEL __thread int tls = 7 * V;
static MODEL __thread int tls_zero;
MODEL __thread int F(tls_) = V;
int F(counter_);
static int quiet;

__attribute__((constructor)) static void begin(int argc, char **argv, char **envp)
{
	(void)argc;
	quiet = getenv("QUIET") != NULL;
	if (!quiet)
		dprintf(1, "+%s %d\n", STR(N), argv && envp);
#ifdef INNER
	void *h = dlopen(INNER, RTLD_NOW);
	dprintf(1, "%s has loaded another: %d\n", STR(N), h != NULL);
#endif
#ifdef WORKER
	pthread_t t;
	pthread_create(&t, NULL, (void *(*)(void *))rand, NULL);
	dprintf(1, "a thread: %d\n", pthread_join(t, NULL));
#endif
}

__attribute__((constructor(200))) static void earlier(void)
{
	if (!getenv("QUIET"))
		dprintf(1, "+%s early\n", STR(N));
}

__attribute__((destructor)) static void end(void)
{
	if (!quiet)
		dprintf(1, "-%s\n", STR(N));
}

static void at_exit(void) { dprintf(1, "-%s by atexit\n", STR(N)); }
void F(atexit_)(void) { atexit(at_exit); }

int shared_symbol(void) { return V; }
int F(value_)(void) { return V; }
int F(calls_shared_)(void) { return shared_symbol(); }
int F(count_)(void) { return ++F(counter_); }
int F(tls_next_)(void) { return ++tls + ++tls_zero * 1000 + F(tls_)++ * 1000000; }
int *F(tls_where_)(void) { return &tls; }
void *F(next_)(const char *name) { return dlsym(RTLD_NEXT, name); }
#ifdef CALLS
int CAT(value_, CALLS)(void);
int F(other_)(void) { return CAT(value_, CALLS)(); }
#endif
#ifdef UNDEFINED
int nobody_defines_it(void);
int F(never_)(void) { return nobody_defines_it(); }
#endif
#ifdef __GLIBC__
static int one(void) { return V + 1; }
static int two(void) { return V + 2; }
static int (*pick(void))(void) { return __builtin_cpu_init(), __builtin_cpu_supports("sse2") ? one : two; }
int F(picked_)(void) __attribute__((ifunc("pick")));
int F(calls_picked_)(void) { return F(picked_)(); }
static int (*pick_own(void))(void) { return two; }
static int own(void) __attribute__((ifunc("pick_own")));
int F(calls_own_)(void) { return own(); }
#endif
