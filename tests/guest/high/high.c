/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that does not fit into the low 512 GiB: large reservations as databases and runtimes make them, addresses asked
 * for above. The same natively and in a pVM.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <ucontext.h>
#include "../check.h"

#define MiB (1ull << 20)
#define GiB (1ull << 30)
#define TiB (1ull << 40)
#define NONE_FLAGS (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

#define LOW (512 * GiB) /* below it, nothing of this is new */

/*
 * Where: as large programs ask, or closer together where the processor has fewer physical addresses, since in a pVM those
 * are the program's. The reservation's place is the kernel's choice as long as it can't be below LOW.
 */
static struct {
	uint64_t view[3], hint, size, shared, code;
} place = { { 4 * TiB, 8 * TiB, 16 * TiB }, 0, 8 * TiB, 1 * TiB + 17 * GiB, 2 * TiB };

static bool place_choose(void)
{
	unsigned eax, ebx, ecx, edx;
	if (!__get_cpuid(0x80000008, &eax, &ebx, &ecx, &edx))
		return false;
	unsigned bits = eax & 0xff;
	if (bits >= 45)
		return true;
	if (bits < 40)
		return false;
	uint64_t zone = (1ull << bits) - LOW;
	for (int i = 0; i < 3; i++)
		place.view[i] = LOW + (uint64_t)i * 16 * GiB;
	place.hint = LOW + zone / 4;
	place.size = zone / 2;
	place.shared = LOW + 17 * GiB;
	place.code = LOW + 33 * GiB;
	return true;
}

static sigjmp_buf back;
static void *volatile at;
static volatile int code;
static uint8_t *volatile frame;

static void on_segv(int sig, siginfo_t *si, void *uc)
{
	(void)sig;
	(void)uc;
	at = si->si_addr;
	code = si->si_code;
	siglongjmp(back, 1);
}

static void on_usr1(int sig)
{
	(void)sig;
	frame = __builtin_frame_address(0);
}

static bool faults(volatile uint8_t *p, bool write, int want)
{
	at = NULL;
	if (!sigsetjmp(back, 1)) {
		if (write)
			*p = 1;
		else
			(void)*p;
		return false;
	}
	return at == p && code == want;
}

/* Does /proc/self/maps have a line with this start and these rights? */
static bool mapped(uint8_t *start, const char *rights)
{
	char line[512], want[64];
	bool found = false;
	FILE *f = fopen("/proc/self/maps", "r");
	snprintf(want, sizeof want, "%lx-", (unsigned long)start);
	while (f && fgets(line, sizeof line, f))
		found = found || (!strncmp(line, want, strlen(want)) && strstr(line, rights));
	if (f)
		fclose(f);
	return found;
}

/* Three views of one heap, each at an address with a bit of its own, as ZGC has them: asked for, not forced. */
static void views(void)
{
	int fd = memfd_create("heap", 0);
	uint8_t *view[3];
	check(fd >= 0 && ftruncate(fd, 64 << 20) == 0, "a heap in a file");
	for (int i = 0; i < 3; i++) {
		uint8_t *want = (uint8_t *)place.view[i];
		view[i] = mmap(want, 8 * GiB, PROT_NONE, NONE_FLAGS, -1, 0);
		check(view[i] == want, "8 GiB are reserved where they are asked for");
		check(mmap(view[i] + GiB, 64 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) ==
			      view[i] + GiB,
		      "the heap is mapped there");
	}
	view[0][GiB + 4711] = 42;
	check(view[1][GiB + 4711] == 42 && view[2][GiB + 4711] == 42, "each view shows it");
	for (int i = 0; i < 3; i++)
		munmap(view[i], 8 * GiB);
	close(fd);
}

/* What a database reserves to use the begin of, also where the processor has fewer physical addresses. */
static void database(void)
{
	const uint64_t size = 8 * TiB + 6 * MiB;
	int status, zero = open("/dev/zero", O_RDONLY);
	uint8_t *r = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(r != MAP_FAILED && munmap(r, size) == 0, "8 TiB are reserved and go");
	uint8_t *q = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(q != MAP_FAILED, "and are reserved again");
	if (q == MAP_FAILED)
		return;
	check(mmap(q, 8 * MiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == q &&
		      mprotect(q + 8 * MiB, 8 * MiB, PROT_READ | PROT_WRITE) == 0,
	      "the begin is made memory");
	memset(q, 0x77, 16 * MiB);
	check(madvise(q, size, MADV_DODUMP) == 0, "all of it goes into core files");
	check(faults(q + 16 * MiB, true, SEGV_ACCERR) && faults(q + size - 1, false, SEGV_ACCERR), "the rest is none");
	errno = 0;
	check(read(zero, q + size - 4096, 10) == -1 && errno == EFAULT, "nor for a call");
	check(mmap(q + size - 4 * MiB, 2 * MiB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
		      q + size - 4 * MiB,
	      "reserved anew in it");
	pid_t pid = FORK({
		NEED(q[16 * MiB - 1] == 0x77);
		q[0] = 2;
		NEED(munmap(q + size / 2, size / 2) == 0);
	});
	check(waitpid(pid, &status, 0) == pid && status == 0 && q[0] == 0x77, "a child has all that");
	check(munmap(q, size) == 0 && faults(q + size - 1, false, SEGV_MAPERR), "and it goes");
	close(zero);
}

int main(void)
{
	struct sigaction sa = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO };
	if (!place_choose()) {
		puts("skip: the processor has no physical addresses above 512 GiB");
		return 77;
	}
	sigaction(SIGSEGV, &sa, NULL);
	views();

	uint8_t *r = mmap((void *)place.hint, place.size, PROT_NONE, NONE_FLAGS, -1, 0);
	check(r != MAP_FAILED && (uint64_t)r >= LOW, "more than there is below is reserved");
	if (r == MAP_FAILED)
		return 1;
	uint8_t *p = r + place.size / 8 * 3 + 5 * 4096;
	check(faults(p, false, SEGV_ACCERR), "nothing of it can be read");
	check(mprotect(p, 64 << 20, PROT_READ | PROT_WRITE) == 0, "a part of it is made writable");
	memset(p, 0x5a, 64 << 20);
	check(p[0] == 0x5a && p[(64 << 20) - 1] == 0x5a, "and written");
	check(faults(p - 1, true, SEGV_ACCERR) && faults(p + (64 << 20), true, SEGV_ACCERR), "not what is beside");
	check(mapped(p, "rw-p"), "maps shows it");

	/* Calls that are given addresses there. */
	int fds[2], zero = open("/dev/zero", O_RDONLY);
	check(read(zero, p + 100, 10000) == 10000 && !p[100] && !p[10099] && p[10100] == 0x5a, "a call writes there");
	check(pipe(fds) == 0 && write(fds[1], p + 10050, 100) == 100, "a pipe takes from there");
	struct iovec v[2] = { { p + 1, 60 }, { p + 2 * 4096, 40 } };
	check(readv(fds[0], v, 2) == 100 && p[1] == 0 && p[2 * 4096 + 39] == 0x5a, "and gives to there");
	errno = 0;
	check(read(zero, p - 4096, 10) == -1 && errno == EFAULT, "EFAULT where there is nothing");
	errno = 0;
	check(read(zero, r + place.size / 8 * 7, 10) == -1 && errno == EFAULT, "also far away");

	/* A signal on a stack there, and a process that copies it. */
	stack_t ss = { .ss_sp = p + (1 << 20), .ss_size = 256 << 10 };
	struct sigaction usr = { .sa_handler = on_usr1, .sa_flags = SA_ONSTACK };
	check(sigaltstack(&ss, NULL) == 0 && sigaction(SIGUSR1, &usr, NULL) == 0 && raise(SIGUSR1) == 0 &&
		      frame > p + (1 << 20) && frame < p + (1 << 20) + (256 << 10),
	      "a handler runs on a stack there");
	p[0] = 1;
	pid_t pid = FORK({
		NEED(p[0] == 1);
		p[0] = 2;
		NEED(mprotect(p + (64 << 20), 4096, PROT_READ | PROT_WRITE) == 0);
		p[64 << 20] = 3;
	});
	int status;
	check(waitpid(pid, &status, 0) == pid && status == 0 && p[0] == 1, "a child has a copy of it");
	check(faults(p + (64 << 20), true, SEGV_ACCERR), "what the child maps is the child's");

	/* Shared memory, and more, at addresses of the program's choice. */
	uint8_t *want = (uint8_t *)place.shared;
	uint8_t *s = mmap(want, 4 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
			  0);
	check(s == want, "shared memory at an address above 512 GiB");
	if (s == want) {
		pid = FORK(s[12345] = 7);
		check(waitpid(pid, &status, 0) == pid && s[12345] == 7, "is shared with a child");
		uint8_t *m = mremap(s, 4 << 20, 8 << 20, MREMAP_MAYMOVE);
		check(m != MAP_FAILED && m[12345] == 7, "grows");
		check(munmap(m, 8 << 20) == 0 && faults(m, false, SEGV_MAPERR), "and goes");
	}
	static const uint8_t ret42[] = { 0xb8, 42, 0, 0, 0, 0xc3 };
	uint8_t *x = mmap((void *)place.code, 4096, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	check(x == (uint8_t *)place.code, "code above 512 GiB");
	if (x == (uint8_t *)place.code) {
		memcpy(x, ret42, sizeof ret42);
		check(mprotect(x, 4096, PROT_READ | PROT_EXEC) == 0 && ((int (*)(void))x)() == 42, "runs");
		check(faults(x, true, SEGV_ACCERR), "and is not writable");
	}
	check(munmap(r, place.size) == 0 && faults(p, false, SEGV_MAPERR), "all of the reservation goes");
	database();
	errno = 0;
	check(mmap(NULL, 1ull << 47, PROT_NONE, NONE_FLAGS, -1, 0) == MAP_FAILED && errno == ENOMEM,
	      "128 TiB are too much");
	return first_failed;
}
