/* SPDX-License-Identifier: Apache-2.0 */
/* Ports, jumps to anywhere, random bytes. Part of hostile.c. */
#ifndef KX_GUEST_HOSTILE_ATTACKS_H
#define KX_GUEST_HOSTILE_ATTACKS_H
#include "meanwhile.h"

/* ---- ports ---------------------------------------- */

static inline int in_children(int count, unsigned ms, void (*fn)(int))
{
	int status, stuck = 0;
	for (int i = 0; i < count; i++) {
		*progress = i;
		pid_t pid = fork();
		if (pid == 0) {
			struct itimerval it = { { 0, 0 }, { 0, 300000 } };
			signal(SIGALRM, SIG_DFL);
			setitimer(ITIMER_REAL, &it, NULL);
			fn(i);
			SYS6(SYS_exit_group, 0);
		}
		if (pid < 0) {
			fail("fork: %s", strerror(errno));
			return 1;
		}
		stuck += !child_wait(pid, ms, &status);
		reap_all();
	}
	if (stuck)
		printf("# %d of %d had to be killed\n", stuck, count);
	return failures != 0;
}

static inline void port_try(int i)
{
	static const unsigned ports[] = { 0,     0x20,  0x60,  0x64,  0x70,  0x80,  0xcf8, 0x3f8,  0x50c, 0x50f,
					  0x510, 0x511, 0x512, 0x518, 0x51f, 0x520, 0x521, 0xffff, 0x92,  0xb2 };
	unsigned p = ports[i % LEN(ports)], v = (unsigned)any_value();
	void *at = below(2) ? (void *)good : (void *)any_value();
	uint64_t n = below(2) ? below(5000) : any_value();
	victim = area();
	victim->call.nr = any_value();
	victim->panic_msg = any_value();
	switch (i / LEN(ports)) {
	case 0:
		__asm__ volatile("out %%eax, %%dx" : : "a"(v), "d"(p));
		break;
	case 1:
		__asm__ volatile("out %%ax, %%dx" : : "a"(v), "d"(p));
		break;
	case 2:
		__asm__ volatile("out %%al, %%dx" : : "a"(v), "d"(p));
		break;
	case 3:
		__asm__ volatile("in %%dx, %%eax" : "=a"(v) : "d"(p));
		break;
	case 4:
		__asm__ volatile("in %%dx, %%al" : "=a"(v) : "d"(p));
		break;
	case 5:
		__asm__ volatile("rep outsl" : "+S"(at), "+c"(n) : "d"(p) : "memory");
		break;
	case 6:
		__asm__ volatile("rep outsb" : "+S"(at), "+c"(n) : "d"(p) : "memory");
		break;
	case 7:
		__asm__ volatile("rep insl" : "+D"(at), "+c"(n) : "d"(p) : "memory");
		break;
	case 8:
		__asm__ volatile("std; rep insb; cld" : "+D"(at), "+c"(n) : "d"(p) : "memory");
		break;
	}
}

static inline void panic_try(int i)
{
	static const uint64_t at[] = { 0,
				       KX_LIBOS_BASE,
				       KX_LIBOS_BASE + 0x1000,
				       KX_VDSO_BASE - 1,
				       KX_VDSO_BASE - 128,
				       KX_VDSO_BASE - 127,
				       KX_VVAR_BASE,
				       KX_SYS_BASE,
				       KX_SPACE_SIZE,
				       ~0ull,
				       1ull << 63,
				       0xffff800000000000 };
	area()->panic_msg = i < (int)LEN(at) ? at[i] : any_value();
	__asm__ volatile("out %%eax, %%dx" : : "a"(0), "d"(KX_PORT_PANIC));
}

/* ---- what the monitor does by numbers that it is given ---------------------------------------- */

/* An address that no call may name, though there is memory of the monitor's that it would be. */
static inline int pointers(void)
{
	uint64_t *at = (uint64_t *)(void *)((uint8_t *)area() + KX_AREA_SIZE / 2), was[4],
		 stack[3] = { 0x1000, 0, 65536 };
	memcpy(was, at, sizeof was);
	for (unsigned i = 0; i < LEN(rows); i++)
		for (unsigned k = 0; k < 6 && rows[i].flags & KX_F_LOCAL; k++) {
			uint64_t a[6] = { 0 };
			if (rows[i].arg[k].kind != KX_A_PTR)
				continue;
			a[k] = (uint64_t)at;
			int64_t r = hcall(rows[i].nr, a);
			if (memcmp(was, at, sizeof was))
				fail("%s, argument %d: %ld, and memory has changed that it can't name", rows[i].name, k,
				     r);
			memcpy(at, was, sizeof was);
		}
	int64_t r = HC(SYS_sigaltstack, (uint64_t)stack, 0);
	if (r >= 0)
		fail("the monitor has a signal stack where the program wants it: %ld", r);
	return failures != 0;
}

/*
 * A socket pair's end with data that another member has yet to move, sent away: the monitor tells that one. The numbers
 * of those whom it could be are in memory that programs write.
 */
static inline int poke(pid_t outsider)
{
	struct kx_pipes *pipes = (void *)KX_PIPE_BASE;
	int sv[2], over[2], go[2], status;
	char c;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, sv) || socketpair(AF_UNIX, SOCK_STREAM, 0, over) || pipe(go))
		return 2;
	pid_t child = fork();
	if (child == 0) {
		close(sv[0]);
		close(go[1]);
		if (write(sv[1], "data", 4) != 4 || read(go[0], &c, 1) != 1)
			_exit(1);
		struct timespec slow = { 1, 0 };
		nanosleep(&slow, NULL); /* moves nothing meanwhile: it is told of it, or not */
		_exit(0);
	}
	close(sv[1]);
	for (struct pollfd p = { sv[0], POLLIN, 0 }; poll(&p, 1, 100) != 1;)
		;
	for (unsigned i = 0; i < pipes->used && i < KX_PIPE_OBJECTS; i++)
		for (unsigned k = 0; pipes->obj[i].pair && k < KX_PIPE_HOLDERS; k++)
			if (!pipes->obj[i].holder[k] || pipes->obj[i].holder[k] == (uint32_t)child)
				pipes->obj[i].holder[k] = (uint32_t)outsider;
	struct iovec iov = { "x", 1 };
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} u = { .align = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = sizeof u.buf };
	memcpy(CMSG_DATA(&u.align), &sv[0], sizeof(int));
	int64_t r = sendmsg(over[0], &m, 0);
	printf("# sent: %ld\n", r);
	if (write(go[1], "g", 1) != 1 || waitpid(child, &status, 0) != child)
		return 2;
	return 0;
}

/* A number of tokens that are not there: whoever reads from such a pair is not held up, and SIGTERM ends it. */
static inline int skip(void)
{
	struct kx_pipes *pipes = (void *)KX_PIPE_BASE;
	int sv[2], go[2], queued, status = 0, round;
	char buf[64];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sv) || pipe(go) || write(sv[1], "data", 4) != 4)
		return 2;
	pid_t child = fork();
	if (child == 0) {
		if (read(go[0], buf, 1) == 1)
			for (;;)
				(void)!recv(sv[0], buf, sizeof buf, MSG_DONTWAIT);
		_exit(2);
	}
	if (ioctl(sv[1], TIOCOUTQ, &queued)) /* from now on through the host */
		return 2;
	for (unsigned i = 0; i < pipes->used && i < KX_PIPE_OBJECTS; i++) {
		struct kx_pipe *o = &pipes->obj[i];
		if (!o->pair && (o->state & KX_PIPE_KIND) != KX_PIPE_SECOND)
			continue;
		o->tail = o->head - 400;
		o->host_first = 1;
		o->skip = UINT32_MAX;
	}
	if (write(go[1], "g", 1) != 1)
		return 2;
	struct timespec second = { 1, 0 };
	nanosleep(&second, NULL);
	kill(child, SIGTERM);
	for (round = 0; round < 50 && waitpid(child, &status, WNOHANG) != child; round++) {
		struct timespec t = { 0, 100000000 };
		nanosleep(&t, NULL);
	}
	if (round < 50)
		return 0;
	fail("a reader of a socket pair whose tokens are too many cannot be ended");
	kill(child, SIGKILL);
	return 1;
}

/* ---- jumps and bytes ---------------------------------------- */

/* Instructions that leave a nested hypervisor for the one below it, and their kin: none of ours runs them. */
static inline bool forbidden(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i + 2 < n; i++) {
		if (p[i] != 0x0f)
			continue;
		uint8_t a = p[i + 1], m = p[i + 2];
		if (a == 0x01 && ((m >= 0xc0 && m <= 0xc4) || m == 0xd4 || (m >= 0xd8 && m <= 0xdf)))
			return true;
		if (a == 0x78 || a == 0x79 || a == 0x37)
			return true;
		if (a == 0xc7 && m < 0xc0 && (m >> 3 & 7) >= 6)
			return true;
		if (a == 0x38 && m >= 0x80 && m <= 0x82)
			return true;
	}
	return false;
}

static inline bool has_vmcall(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i + 2 < n; i++)
		if (p[i] == 0x0f && p[i + 1] == 0x01 && (p[i + 2] == 0xc1 || p[i + 2] == 0xd9))
			return true;
	return false;
}

static uint64_t regs[17]; /* rax rbx rcx rdx rsi rdi rbp r8..r15 rsp target */

static inline _Noreturn void go(void)
{
	__asm__ volatile(
		"lea regs(%%rip), %%rax\n\t"
		"mov 8(%%rax), %%rbx\n\tmov 16(%%rax), %%rcx\n\tmov 24(%%rax), %%rdx\n\tmov 32(%%rax), %%rsi\n\t"
		"mov 40(%%rax), %%rdi\n\tmov 48(%%rax), %%rbp\n\tmov 56(%%rax), %%r8\n\tmov 64(%%rax), %%r9\n\t"
		"mov 72(%%rax), %%r10\n\tmov 80(%%rax), %%r11\n\tmov 88(%%rax), %%r12\n\tmov 96(%%rax), %%r13\n\t"
		"mov 104(%%rax), %%r14\n\tmov 112(%%rax), %%r15\n\tmov 120(%%rax), %%rsp\n\t"
		"mov (%%rax), %%rax\n\tjmp *regs+128(%%rip)"
		:
		: "m"(regs)
		: "memory");
	__builtin_unreachable();
}

static uint64_t try_seed;

static inline void regs_random(void)
{
	uint8_t here;
	for (int i = 0; i < 16; i++)
		regs[i] = below(3) == 0 ? (uint64_t)area() + below(KX_AREA_SIZE) : any_value();
	if (below(2))
		regs[15] = (uint64_t)&here & ~15ull;
	else if (below(2))
		regs[15] = (uint64_t)area() + below(KX_AREA_SIZE);
	regs[3] = below(2) ? KX_PORT_HCALL + below(3) : regs[3];
	regs[0] = below(2) ? below(450) : regs[0];
}

/* Calls that would only make the machine busy are not what a random number should make. */
static inline void calm(void)
{
	static const unsigned not [] = { SYS_sync, SYS_fallocate, SYS_mlockall, SYS_sched_setscheduler,
					 SYS_sched_setattr };
	for (unsigned i = 0; i < LEN(not ); i++)
		if (regs[0] == not [i])
			regs[0] = SYS_getpid;
}

static inline void jump_try(int i)
{
	const uint64_t *header = (void *)KX_LIBOS_BASE;
	uint64_t size = header[11] - KX_LIBOS_BASE; /* image_end */
	rng_seed(try_seed, i);
	regs_random();
	calm();
	if (size > KX_LIBOS_SIZE)
		size = KX_LIBOS_SIZE;
	regs[16] = below(8) ? KX_LIBOS_BASE + below(size) : KX_VDSO_BASE + below(0x2000);
	if (below(8) == 0) {
		static const uint64_t at[] = { KX_VVAR_BASE,
					       KX_BOOT_BASE,
					       KX_SITES_BASE,
					       KX_AREA_BASE,
					       KX_SYS_BASE,
					       KX_SPACE_SIZE,
					       0,
					       0x800000000000,
					       0xffffffff80000000,
					       0xffff800000000000 };
		regs[16] = at[below(LEN(at))] + below(0x3000);
	}
	go();
}

static inline void code_try(int i)
{
	/* Leads that get somewhere: system calls, ports, faults, prefixes, segment and state instructions. */
	static const uint8_t lead[][4] = { { 2, 0x0f, 0x05 }, { 2, 0x0f, 0x34 }, { 1, 0xee },       { 1, 0xef },
					   { 1, 0xed },       { 1, 0x6f },       { 1, 0xcd },       { 1, 0xcc },
					   { 1, 0xf4 },       { 1, 0xcf },       { 1, 0xcb },       { 2, 0x0f, 0xae },
					   { 2, 0x0f, 0xc7 }, { 2, 0x0f, 0x01 }, { 2, 0x0f, 0x00 }, { 2, 0x0f, 0xa2 },
					   { 1, 0x9d },       { 1, 0x8e },       { 2, 0x0f, 0x22 }, { 2, 0x0f, 0x30 },
					   { 1, 0xf0 },       { 1, 0xf3 },       { 1, 0x65 },       { 1, 0xc4 },
					   { 1, 0x62 },       { 2, 0x48, 0xcf }, { 2, 0xff, 0x2c }, { 1, 0xf1 } };
	uint8_t *page = (uint8_t *)(((uint64_t)pages(4) + PAGE) & ~(PAGE - 1)), *p = page;
	rng_seed(try_seed, i + 1000);
	mprotect(page + PAGE, PAGE, PROT_NONE);
	do {
		p = page;
		while (p < page + PAGE - 8) {
			if (below(3) == 0) {
				const uint8_t *l = lead[below(LEN(lead))];
				memcpy(p, l + 1, l[0]);
				p += l[0];
			}
			*p++ = (uint8_t)rnd();
		}
		memset(p, 0xcc, page + PAGE - p);
		for (unsigned k = 0; k + 2 < PAGE; k++)
			if (forbidden(page + k, 3))
				page[k] = 0x90;
	} while (forbidden(page, PAGE));
	/* Not writable while it runs: what it stores cannot become such an instruction either. */
	mprotect(page, PAGE, PROT_READ | PROT_EXEC);
	regs_random();
	calm();
	regs[16] = (uint64_t)page + (below(2) ? 0 : below(PAGE));
	go();
}

static inline int tries(void (*fn)(int), uint64_t seed, int count)
{
	try_seed = seed;
	if (has_vmcall((void *)KX_LIBOS_BASE, KX_VVAR_BASE - KX_LIBOS_BASE)) {
		printf("skipped: the LibOS or the vDSO contains the bytes of vmcall\n");
		return 0;
	}
	return in_children(count, 1500, fn);
}
#endif
