/* SPDX-License-Identifier: Apache-2.0 */
/* The monitor's search for addresses in guest memory: each place, both ends of what is looked for, and a fault on the way. */
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <ucontext.h>
#include "check.h"

/* monitor/arch/x86_64/host.S */
int host_find(const void *p, size_t n, uint64_t from, uint64_t span);
extern const char host_find_begin[], host_find_end[], host_find_fault[];

#define PAGE 4096
#define WORDS (PAGE / 8)
#define FROM 0x7000123000ull
#define SPAN 0x45000ull

/* As sig.c's. */
static void on_fault(int signo, siginfo_t *info, void *context)
{
	greg_t *rip = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
	(void)info;
	if (*rip < (greg_t)host_find_begin || *rip >= (greg_t)host_find_end)
		signal(signo, SIG_DFL);
	else
		*rip = (greg_t)host_find_fault;
}

int main(void)
{
	static const uint64_t none[] = { 0, 1, FROM - 1, FROM + SPAN, ~0ull, FROM | 1ull << 63 };
	static const uint64_t in[] = { FROM, FROM + 1, FROM + SPAN - 1 };
	struct sigaction a = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	uint64_t *p = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED || mprotect((char *)p + PAGE, PAGE, PROT_NONE) || sigaction(SIGSEGV, &a, NULL))
		return 1;
	for (unsigned i = 0; i < WORDS; i++)
		p[i] = none[i % (sizeof none / sizeof *none)];
	CHECK(!host_find(p, WORDS, FROM, SPAN), "nothing is there");
	CHECK(!host_find(p, 0, FROM, SPAN), "nothing to look at");
	for (unsigned i = 0; i < WORDS; i++)
		for (unsigned k = 0; k < sizeof in / sizeof *in; k++) {
			uint64_t was = p[i];
			p[i] = in[k];
			CHECK(host_find(p, WORDS, FROM, SPAN) == 1, "word %u, %#llx", i, (unsigned long long)in[k]);
			CHECK(!host_find(p, i / 4 * 4, FROM, SPAN), "before word %u", i);
			CHECK(i + 1 == WORDS || !host_find(p + i + 1, (WORDS - i - 1) / 4 * 4, FROM, SPAN),
			      "behind word %u", i);
			p[i] = was;
		}
	CHECK(host_find(p, WORDS + 4, FROM, SPAN) == 2, "a fault");
	CHECK(host_find(p + 1, WORDS, FROM, SPAN) == 2, "a fault in the last words");
	p[WORDS - 1] = FROM;
	CHECK(host_find(p, WORDS + 4, FROM, SPAN) == 1, "before a fault");
	printf("%s: %d checks, %d failures\n", failures ? "FAILED" : "SUCCESS", checks, failures);
	return failures != 0;
}
