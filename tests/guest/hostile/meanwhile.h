/* SPDX-License-Identifier: Apache-2.0 */
/* What a thread does while another one lies. Part of hostile.c. */
#ifndef KX_GUEST_HOSTILE_MEANWHILE_H
#define KX_GUEST_HOSTILE_MEANWHILE_H
#include "rings.h"
#include "sweep.h"

/* ---- what goes on meanwhile ---------------------------------------- */

static inline void activity(int n)
{
	char buf[64];
	struct timespec ts = { 0, 1000 };
	int fd, status;
	pthread_t th;
	if (lie_pipe[0] >= 0)
		pipe_activity(n);
	if (lie_queue >= 0)
		ipc_activity(n);
	switch (n % 17) {
	case 0:
		HC(SYS_writev, fd_good[G_FILE], (uint64_t)lie_iov, 8);
		HC(SYS_readv, fd_good[G_FILE], (uint64_t)lie_iov, 8);
		break;
	case 1:
		HC(SYS_sendmsg, fd_good[G_SOCK], (uint64_t)&lie_msg, MSG_DONTWAIT);
		break;
	case 2:
		HC(SYS_recvmsg, fd_good[G_SOCK] + 1, (uint64_t)&lie_msg, MSG_DONTWAIT);
		break;
	case 3:
		HC(SYS_poll, (uint64_t)lie_poll, 8, 0);
		break;
	case 4:
		HC(SYS_open, (uint64_t)lie_path, O_RDONLY, 0);
		HC(SYS_stat, (uint64_t)lie_path, (uint64_t)good);
		break;
	case 5:
		raise(SIGUSR1);
		kill(getpid(), SIGRTMIN + 1);
		break;
	case 6:
		HC(SYS_clock_nanosleep, 1, 0, (uint64_t)&ts, 0);
		break;
	case 7:
		fd = open("/dev/zero", O_RDONLY);
		if (fd >= 0 && read(fd, buf, sizeof buf) < 0)
			errno = 0;
		close(fd);
		break;
	case 8: {
		void *p = mmap(NULL, 8 * PAGE, RW, ANON, -1, 0);
		if (p != MAP_FAILED) {
			*(volatile char *)p = 1;
			munmap(p, 8 * PAGE);
		}
		break;
	}
	case 9: {
		/* text comes and goes: sites are found and forgotten */
		fd = open("/proc/self/exe", O_RDONLY);
		void *p = mmap(NULL, 16 * PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
		if (p != MAP_FAILED)
			munmap(p, 16 * PAGE);
		close(fd);
		break;
	}
	case 10:
		if (n % 5 == 0 && pthread_create(&th, NULL, short_thread, NULL) == 0)
			pthread_join(th, NULL);
		break;
	case 11: {
		if (n % 7)
			break;
		pid_t pid = fork();
		if (pid == 0) {
			syscall(SYS_getppid);
			_exit(0);
		}
		for (int i = 0; i < 200 && pid > 0 && waitpid(pid, &status, WNOHANG) == 0; i++)
			usleep(1000);
		if (pid > 0) {
			kill(pid, SIGKILL);
			waitpid(pid, &status, WNOHANG);
		}
		break;
	}
	case 12:
		HC(SYS_fcntl, fd_good[G_FILE], F_GETLK, (uint64_t)lie_struct);
		HC(SYS_ioctl, 1, 0x5413, (uint64_t)lie_struct);
		break;
	case 13:
		HC(SYS_ppoll, 0, 0, (uint64_t)&ts, (uint64_t)lie_struct, 8);
		break;
	case 14:
		HC(SYS_timer_create, 0, (uint64_t)lie_struct, (uint64_t)good);
		HC(SYS_openat2, -100ull, (uint64_t)lie_path, (uint64_t)lie_struct, 24);
		break;
	case 15:
		*(volatile int *)(uintptr_t)(n % 64 ? (uintptr_t)good : 8) = 1;
		break; /* a fault at times */
	case 16:
		for (int i = 0; i < 20; i++) {
			batch_turn();
			dgram_turn();
		}
		break;
	}
}

static inline void on_segv(int s, siginfo_t *si, void *uc)
{
	(void)s;
	(void)si;
	((ucontext_t *)uc)->uc_mcontext.gregs[REG_RIP] += 6; /* over the store above, or to wherever */
}

static inline void handlers_init(void)
{
	struct sigaction sa = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO };
	signal(SIGUSR1, on_usr1);
	signal(SIGRTMIN + 1, on_usr1);
	sigaction(SIGSEGV, &sa, NULL);
}

/* All that a lie can be about has been used. */
static inline void lie_begin(void)
{
	victim = area();
	lie_message();
	handlers_init();
	batch_turn();
	for (int i = 0; i < 10; i++)
		dgram_turn();
}

static inline int lie_for(void (*fn)(void), unsigned ms)
{
	pthread_t th;
	lie_begin();
	uint64_t end = now_ms() + ms;
	if (pthread_create(&th, NULL, liar, (void *)fn))
		return 2;
	for (int n = 0; now_ms() < end && n < 100000; n++)
		activity(n);
	stop = 1;
	pthread_join(th, NULL);
	return 0;
}

/* A lie at rest: told once, then the program goes on. */
static inline int lie_still(void (*fn)(void))
{
	lie_begin();
	for (int n = 0; n < 400; n++) {
		fn();
		activity(n);
	}
	return 0;
}

/* A queue of sends that is filled again with one store, as fast as it is sent: no call may wait for its end. */
static inline void *refiller(void *arg)
{
	uint8_t *ctx = (uint8_t *)KX_BATCH_BASE + KX_BATCH_CTX;
	volatile struct kx_bctx *x = (void *)ctx;
	volatile struct kx_brec *r = (void *)(ctx + KX_BATCH_TX);
	for (unsigned i = 0; i < KX_BATCH_TX_SIZE / sizeof *r; i++)
		r[i] = (struct kx_brec){ .fd = KX_BATCH_FDS - 1, .ticket = (uint64_t)-1 << 62 };
	while (!stop)
		x->head = x->tail + KX_BATCH_TX_SIZE;
	x->head = x->tail;
	return arg;
}

static inline int refill(void)
{
	pthread_t th;
	batch_turn();
	batch_turn();
	if (((struct kx_batch *)KX_BATCH_BASE)->ctx_of[area()->index] != 1)
		return 3;
	if (pthread_create(&th, NULL, refiller, NULL))
		return 2;
	volatile struct kx_bctx *x = (void *)(KX_BATCH_BASE + KX_BATCH_CTX);
	unsigned met = 0, long_ones = 0;
	for (uint64_t end = now_ms() + 1000; met < 200 && now_ms() < end;) {
		uint64_t from = x->tail;
		if (syscall(SYS_getpgid, 0) < 0)
			return 4;
		uint64_t sent = x->tail - from;
		met += sent > KX_BATCH_TX_SIZE / 2;
		long_ones += sent > 3 * KX_BATCH_TX_SIZE; /* the flusher may have had a turn or two */
	}
	stop = 1;
	pthread_join(th, NULL);
	printf("# %u calls met a full queue, %u sent it again and again\n", met, long_ones);
	return long_ones > 2 + met / 4 ? 5 : 0;
}

/* Lists of robust futexes that lead into the LibOS, into nothing, or round in circles; a TID address likewise. */
static inline int robust(void)
{
	struct {
		uint64_t next, offset, pending;
	} *h = (void *)good;
	for (int i = 0; i < 60; i++) {
		pid_t pid = fork();
		if (pid == 0) {
			h->next = below(3) ? any_value() : (uint64_t)&h->next;
			h->offset = any_value();
			h->pending = any_value();
			((uint64_t *)good)[8] = (uint64_t)good + 128;
			((uint64_t *)good)[16] = (uint64_t)good + 64;
			if (below(2))
				h->next = (uint64_t)good + 64;
			HC(SYS_set_robust_list, below(4) ? (uint64_t)h : any_value(), 24);
			HC(SYS_set_tid_address, any_value());
			SYS6(below(2) ? SYS_exit : SYS_exit_group, 0);
		}
		int status;
		*progress = i;
		if (pid > 0 && !child_wait(pid, 60000, &status))
			fail("robust list %d: stuck", i);
	}
	return failures != 0;
}
#endif
