/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Restartable sequences: sections by hand, on libc's registration where there is one, else on our own. Passes on any
 * x86-64 Linux that has them.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SIG 0x53053053u
#define OTHER_SIG 0x12345678u
#define UNREGISTER 1
#define MEMBARRIER_RSEQ 128
#define MEMBARRIER_REGISTER_RSEQ 256
#define THREADS 8
#define CPUS 1024

struct area {
	uint32_t cpu_id_start, cpu_id;
	uint64_t cs;
	uint32_t flags, node_id, mm_cid, rest;
} __attribute__((aligned(32)));

struct section {
	uint32_t version, flags;
	uint64_t start, len, abort;
} __attribute__((aligned(32)));

static __thread struct area own;
static __thread struct area *me; /* the registered one: libc's or own */
static int failures;

static bool check(bool ok, const char *name)
{
	printf("%s %s\n", ok ? "ok" : "FAIL", name);
	fflush(stdout);
	failures += !ok;
	return ok;
}

static int rseq(void *area, unsigned len, int flags, unsigned sig)
{
	return syscall(334, area, len, flags, sig) ? -errno : 0;
}

extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned __rseq_size __attribute__((weak));

static void enter_thread(void)
{
	if (&__rseq_size && __rseq_size)
		me = (struct area *)((char *)__builtin_thread_pointer() + __rseq_offset);
	else if (rseq(&own, sizeof own, 0, SIG) == 0)
		me = &own;
}

static double now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* ---- sections ------------------------------------------------------------------------------------------------------ */

/*
 * int section_add(struct area *, uint32_t cpu, uint64_t *word, uint64_t spins): a load, `spins` turns, and a store in
 * one section. 0 = done, 1 = aborted, 2 = not on that CPU.
 * int section_wait(struct area *, const void *desc, volatile uint32_t *flag): in the section desc sets *flag and turns
 * for ever. Returns 1 when it was aborted.
 */
__asm__(".pushsection .data.rel.ro, \"aw\"\n"
	".balign 32\n"
	"add_desc: .long 0, 0\n"
	"	.quad add_start, add_commit - add_start, add_abort\n"
	"	.globl wait_desc\n"
	"wait_desc: .long 0, 0\n"
	"	.quad wait_start, wait_commit - wait_start, wait_abort\n"
	"	.globl bad_desc\n" /* the word before its abort handler is no signature */
	"bad_desc: .long 0, 0\n"
	"	.quad wait_start, wait_commit - wait_start, wait_commit\n"
	"	.globl flag_desc\n"
	"flag_desc: .long 0, 1\n"
	"	.quad wait_start, wait_commit - wait_start, wait_abort\n"
	"	.globl version_desc\n"
	"version_desc: .long 1, 0\n"
	"	.quad wait_start, wait_commit - wait_start, wait_abort\n"
	"	.globl inside_desc\n"
	"inside_desc: .long 0, 0\n"
	"	.quad wait_start, wait_commit - wait_start, wait_start\n"
	".popsection\n"
	".globl section_add\n"
	"section_add:\n"
	"	lea add_desc(%rip), %rax\n"
	"	mov %rax, 8(%rdi)\n"
	"add_start:\n"
	"	cmp %esi, 4(%rdi)\n"
	"	jne 2f\n"
	"	mov (%rdx), %rax\n"
	"1:	dec %rcx\n"
	"	jns 1b\n"
	"	inc %rax\n"
	"	mov %rax, (%rdx)\n"
	"add_commit:\n"
	"	xor %eax, %eax\n"
	"	ret\n"
	"2:	mov $2, %eax\n"
	"	ret\n"
	"	.byte 0x0f, 0xb9, 0x3d\n"
	"	.long 0x53053053\n"
	"add_abort:\n"
	"	mov $1, %eax\n"
	"	ret\n"
	".globl section_wait\n"
	"section_wait:\n"
	"	mov %rsi, 8(%rdi)\n"
	"wait_start:\n"
	"	movl $1, (%rdx)\n"
	"1:	pause\n"
	"	jmp 1b\n"
	"wait_commit:\n"
	"	ud2\n"
	"	.byte 0x0f, 0xb9, 0x3d\n"
	"	.long 0x53053053\n"
	"wait_abort:\n"
	"	mov $1, %eax\n"
	"	ret\n");
int section_add(struct area *, uint32_t, uint64_t *, uint64_t);
int section_wait(struct area *, const void *, volatile uint32_t *);
extern struct section wait_desc, bad_desc, flag_desc, version_desc, inside_desc;

static struct {
	uint64_t n;
	char pad[120];
} counter[CPUS];
static uint64_t added, aborted;
static volatile bool stop;
static volatile uint32_t bad_fields;

static void *adder(void *arg)
{
	uint64_t n = 0, aborts = 0, spins = (uintptr_t)arg;
	enter_thread();
	while (!stop) {
		uint32_t cpu = me->cpu_id_start;
		if (cpu >= CPUS || me->mm_cid >= CPUS) {
			bad_fields = 1;
			break;
		}
		int r = section_add(me, cpu, &counter[cpu].n, spins);
		n += r == 0;
		aborts += r == 1;
		if (n % 65536 == 0)
			sched_yield();
	}
	__atomic_add_fetch(&added, n, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&aborted, aborts, __ATOMIC_SEQ_CST);
	return NULL;
}

static uint64_t counted(void)
{
	uint64_t sum = 0;
	for (int i = 0; i < CPUS; i++)
		sum += *(volatile uint64_t *)&counter[i].n;
	return sum;
}

static void count(int threads, double seconds, uint64_t spins, const char *name)
{
	pthread_t t[THREADS];
	uint64_t sum;
	char text[80];
	memset(counter, 0, sizeof counter);
	added = aborted = 0;
	stop = false;
	for (int i = 0; i < threads; i++)
		if (pthread_create(&t[i], NULL, adder, (void *)(uintptr_t)spins))
			abort();
	usleep((useconds_t)(seconds * 1e6));
	for (int k = 0; k < 60000 && !counted(); k++) /* none of them has run yet */
		usleep(1000);
	stop = true;
	for (int i = 0; i < threads; i++)
		pthread_join(t[i], NULL);
	sum = counted();
	snprintf(text, sizeof text, "%s: the sum is exact", name);
	check(sum == added && sum && !bad_fields, text);
	if (threads > 4 && spins) {
		snprintf(text, sizeof text, "%s: sections were aborted", name);
		check(aborted > 0, text);
	}
	printf("   %llu sections, %llu aborted\n", (unsigned long long)added, (unsigned long long)aborted);
}

/* ---- signals ------------------------------------------------------------------------------------------------------- */

static volatile uint32_t inside;
static volatile uint64_t handler_cs, handler_rip;

static void on_alarm(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)info;
	if (!inside) /* a busy machine has not let it come so far */
		return;
	handler_cs = me->cs;
	handler_rip = (uint64_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
}

static void alarms(long usec)
{
	struct sigaction sa = { .sa_sigaction = on_alarm, .sa_flags = SA_SIGINFO };
	struct itimerval every = { { 0, usec }, { 0, usec } };
	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
}

static void alarms_soon(void) { alarms(20000); }

static void signals(void)
{
	bool r = true, seen = false;
	/* Inside all the time but for some instructions, at one of which an alarm may come. */
	for (int i = 0; i < 5 && !seen; i++) {
		handler_rip = 0;
		alarms_soon();
		while (r && !handler_rip) { /* preemption aborts it, too */
			inside = 0;
			r = section_wait(me, &wait_desc, &inside) == 1;
		}
		alarms(0);
		seen = handler_rip == wait_desc.abort && handler_cs == 0;
	}
	check(r, "a signal aborts a section");
	check(seen, "its handler sees the abort handler's address");
	inside = 1;
	me->cs = (uint64_t)&wait_desc;
	raise(SIGALRM);
	check(handler_cs == 0, "a signal outside of the section clears rseq_cs");
}

static int status_of(pid_t pid)
{
	int status = 0;
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return status;
}

static void dies(struct section *desc, const char *name)
{
	pid_t pid = fork();
	if (!pid) {
		alarms_soon();
		section_wait(me, desc, &inside);
		_exit(1);
	}
	int status = status_of(pid);
	check(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, name);
}

static void *waiter(void *arg)
{
	(void)arg;
	enter_thread();
	/* Signals are blocked here, so that nothing else aborts it but preemption: then it starts again. */
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	uintptr_t n = 0;
	while (!stop) {
		section_wait(me, &wait_desc, &inside);
		n++;
	}
	return (void *)n;
}

static void fences(void)
{
	pthread_t t;
	bool r = syscall(SYS_membarrier, MEMBARRIER_REGISTER_RSEQ, 0, 0) == 0;
	if (!r) {
		printf("no membarrier for sections here\n");
		return;
	}
	inside = 0;
	stop = false;
	if (pthread_create(&t, NULL, waiter, NULL))
		abort();
	bool all = true;
	for (int i = 0; i < 200; i++) {
		while (!inside)
			sched_yield();
		inside = 0;
		r &= syscall(SYS_membarrier, MEMBARRIER_RSEQ, 0, 0) == 0;
		/* It has been aborted by now, or will set the flag when it is inside again: never stays in the old one. */
		double end = now() + 60;
		while (!inside && now() < end)
			;
		all &= inside;
	}
	stop = true;
	while (syscall(SYS_membarrier, MEMBARRIER_RSEQ, 0, 0) == 0) {
		struct timespec soon;
		clock_gettime(CLOCK_REALTIME, &soon);
		soon.tv_nsec += 10000000;
		if (soon.tv_nsec >= 1000000000) {
			soon.tv_sec++;
			soon.tv_nsec -= 1000000000;
		}
		if (pthread_timedjoin_np(t, NULL, &soon) == 0)
			break;
	}
	check(r && all, "membarrier aborts sections of other threads");
}

/* ---- registration -------------------------------------------------------------------------------------------------- */

static void *registration(void *arg)
{
	(void)arg;
	static __thread struct area a[2], other;
	enter_thread();
	if (rseq(me, sizeof *me, UNREGISTER, SIG)) {
		check(false, "unregister");
		return NULL;
	}
	check(me->cpu_id == -1u && me->cpu_id_start == 0, "unregistered: the fields say so");
	check(rseq(me, sizeof *me, UNREGISTER, SIG) == -EINVAL, "unregister twice: EINVAL");
	check(rseq(&a[0], 31, 0, SIG) == -EINVAL, "too short: EINVAL");
	check(rseq((char *)&a[0] + 8, 32, 0, SIG) == -EINVAL, "misaligned: EINVAL");
	check(rseq(&a[0], 32, 2, SIG) == -EINVAL, "unknown flag: EINVAL");
	check(rseq((void *)0x7ffffffff000, 32, 0, SIG) == -EFAULT, "no memory: EFAULT");
	a[0].cs = 1;
	check(rseq(&a[0], 32, 0, SIG) == 0, "register");
	check(a[0].cpu_id < CPUS && a[0].cpu_id == a[0].cpu_id_start && a[0].mm_cid < CPUS,
	      "registered: the fields are set");
	check(rseq(&a[0], 32, 0, SIG) == -EBUSY, "register twice: EBUSY");
	check(rseq(&a[0], 32, 0, OTHER_SIG) == -EPERM, "with another signature: EPERM");
	check(rseq(&other, 32, 0, SIG) == -EINVAL, "another area: EINVAL");
	check(rseq(&a[0], 64, 0, SIG) == -EINVAL, "another length: EINVAL");
	check(rseq(&a[0], 32, UNREGISTER, OTHER_SIG) == -EPERM, "unregister with another signature: EPERM");
	check(rseq(&other, 32, UNREGISTER, SIG) == -EINVAL, "unregister another area: EINVAL");
	check(rseq(&a[0], 64, UNREGISTER, SIG) == -EINVAL, "unregister with another length: EINVAL");
	check(rseq(&a[0], 32, UNREGISTER | 4, SIG) == -EINVAL, "unregister with another flag: EINVAL");
	check(rseq(&a[0], 32, UNREGISTER, SIG) == 0, "unregister");
	check(rseq(&a[0], 64, 0, OTHER_SIG) == 0, "register again, longer, another signature");
	check(a[0].cpu_id < CPUS, "the fields are set");
	pid_t pid = fork();
	if (!pid) { /* the section's signature is not the registered one */
		me = &a[0];
		alarms_soon();
		section_wait(me, &wait_desc, &inside);
		_exit(1);
	}
	int status = status_of(pid);
	check(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "the registered signature is what counts");
	rseq(&a[0], 64, UNREGISTER, OTHER_SIG);
	return NULL;
}

static void *pinned(void *arg)
{
	cpu_set_t all, one;
	bool ok = true;
	(void)arg;
	enter_thread();
	sched_getaffinity(0, sizeof all, &all);
	for (int i = 0; i < CPU_SETSIZE; i++) {
		if (!CPU_ISSET(i, &all))
			continue;
		CPU_ZERO(&one);
		CPU_SET(i, &one);
		sched_setaffinity(0, sizeof one, &one);
		ok &= me->cpu_id == (uint32_t)i && me->cpu_id_start == (uint32_t)i && sched_getcpu() == i;
		usleep(1000);
		unsigned cpu = -1u;
		syscall(SYS_getcpu, &cpu, NULL, NULL);
		ok &= me->cpu_id == (uint32_t)i && cpu == (uint32_t)i;
	}
	check(ok, "a pinned thread has its CPU's number");
	return NULL;
}

static void on_thread(void *(*fn)(void *))
{
	pthread_t t;
	if (pthread_create(&t, NULL, fn, NULL))
		abort();
	pthread_join(t, NULL);
}

static void processes(char **argv)
{
	struct area *a = me;
	int before = failures;
	pid_t pid = fork();
	if (!pid) {
		bool ok = rseq(a, sizeof *a, 0, SIG) == -EBUSY && a->cpu_id < CPUS;
		alarms_soon();
		ok &= section_wait(a, &wait_desc, &inside) == 1;
		alarms(0);
		count(4, 0.2, 10, "in a child");
		_exit(!ok || failures != before);
	}
	check(status_of(pid) == 0, "fork inherits the registration");
	pid = fork();
	if (!pid) {
		setenv("GLIBC_TUNABLES", "glibc.pthread.rseq=0", 1);
		execl("/proc/self/exe", argv[0], "fresh", NULL);
		_exit(1);
	}
	check(status_of(pid) == 0, "exec clears it");
	pid = vfork();
	if (!pid)
		_exit(rseq(a, sizeof *a, UNREGISTER, SIG) == 0);
	check(status_of(pid) == 0, "a child of vfork has none");
}

static int fresh(void)
{
	if (rseq(&own, sizeof own, UNREGISTER, SIG) != -EINVAL)
		return 1;
	return rseq(&own, sizeof own, 0, SIG) != 0 || own.cpu_id >= CPUS;
}

static void *short_lived(void *arg)
{
	enter_thread();
	uint32_t cpu = me->cpu_id_start;
	section_add(me, cpu, &counter[cpu % CPUS].n, 1);
	return arg;
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "fresh"))
		return fresh();
	enter_thread();
	if (!me) {
		printf("no restartable sequences here: %s\n", strerror(errno));
		return 77;
	}
	check(me->cpu_id < CPUS, "registered");
	signals();
	dies(&bad_desc, "wrong signature: SIGSEGV");
	dies(&flag_desc, "flags: SIGSEGV");
	dies(&version_desc, "unknown version: SIGSEGV");
	dies(&inside_desc, "abort handler inside of the section: SIGSEGV");
	dies((void *)8, "no descriptor: SIGSEGV");
	on_thread(registration);
	on_thread(pinned);
	count(2, 0.3, 50, "two threads");
	count(THREADS, 2, 200, "eight threads");
	count(THREADS, 0.5, 0, "eight threads, short sections");
	for (int i = 0; i < 200; i++)
		on_thread(short_lived);
	check(true, "threads that end");
	fences();
	processes(argv);
	printf("%d failed\n", failures);
	return failures != 0;
}
