/* SPDX-License-Identifier: Apache-2.0 */
/* For tests of signals between processes: how often a handler ran, and words that all of them share. */
#ifndef KX_GUEST_HITS_H
#define KX_GUEST_HITS_H
#include <signal.h>
#include <stdbool.h>
#include <unistd.h>
#include "check.h"

static volatile int *s; /* shared with all children */

static inline bool until(volatile int *p, int n)
{
	for (int i = 0; i < 60000 && __atomic_load_n(p, __ATOMIC_SEQ_CST) < n; i++)
		ms(1);
	return __atomic_load_n(p, __ATOMIC_SEQ_CST) >= n;
}

static volatile sig_atomic_t hits[65];
static siginfo_t last[65];
static volatile pid_t last_tid;

static inline void count(int sig, siginfo_t *info, void *uc)
{
	(void)uc;
	last[sig] = *info;
	last_tid = gettid();
	__atomic_add_fetch(&hits[sig], 1, __ATOMIC_SEQ_CST); /* another thread may wait for that */
}

static inline void on(int sig, int flags)
{
	struct sigaction sa = { .sa_sigaction = count, .sa_flags = SA_SIGINFO | flags };
	sigaction(sig, &sa, NULL);
	hits[sig] = 0;
}
#endif
