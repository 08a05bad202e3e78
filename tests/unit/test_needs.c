/* SPDX-License-Identifier: Apache-2.0 */
/* What is said of a processor that can't carry a pVM. */
#include "../../monitor/core/needs.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "check.h"

static const struct kvm_cpuid_entry2 good[] = {
	{ .function = 1, .ecx = 1u << 26 },         { .function = 7, .index = 1, .ebx = 0 },
	{ .function = 7, .index = 0, .ebx = 1 },    { .function = 0x80000001u, .edx = 1u << 29 | 1u << 20 | 1u << 11 },
	{ .function = 0x80000008u, .eax = 0x3027 },
};
enum { N = sizeof good / sizeof good[0] };

static struct kx_err err;

static int ask(const struct kvm_cpuid_entry2 *e, unsigned n)
{
	struct kvm_cpuid2 *c = calloc(1, sizeof *c + N * sizeof *e);
	c->nent = n;
	memcpy(c->entries, e, n * sizeof *e);
	memset(&err, 0, sizeof err);
	int r = needs_check(c, &err);
	free(c);
	return r;
}

/* Without those bits of that entry, the message has these words. */
static void lacks(unsigned entry, struct kvm_cpuid_entry2 without, const char *words)
{
	struct kvm_cpuid_entry2 e[N];
	memcpy(e, good, sizeof e);
	e[entry].eax &= ~without.eax;
	e[entry].ebx &= ~without.ebx;
	e[entry].ecx &= ~without.ecx;
	e[entry].edx &= ~without.edx;
	CHECK(ask(e, N) == -ENOTSUP && err.code == ENOTSUP, "%s: taken", words);
	CHECK(strstr(err.msg, words), "%s, not %s", err.msg, words);
	CHECK(!strncmp(err.msg, "/dev/kvm: ", 10) && err.msg[strlen(err.msg) - 1] == ')', "%s: no remedy", err.msg);
}

int main(void)
{
	CHECK(ask(good, N) == 0 && !err.code, "%s", err.msg);
	lacks(0, (struct kvm_cpuid_entry2){ .ecx = 1u << 26 }, "lacks XSAVE (");
	lacks(2, (struct kvm_cpuid_entry2){ .ebx = 1 }, "lacks FSGSBASE (");
	lacks(3, (struct kvm_cpuid_entry2){ .edx = 1u << 29 }, "lacks 64-bit mode (");
	lacks(3, (struct kvm_cpuid_entry2){ .edx = 1u << 20 }, "lacks NX (");
	lacks(3, (struct kvm_cpuid_entry2){ .edx = 1u << 11 }, "lacks SYSCALL (");
	lacks(3, (struct kvm_cpuid_entry2){ .edx = 1u << 20 | 1u << 11 }, "lacks NX, SYSCALL (");
	lacks(4, (struct kvm_cpuid_entry2){ .eax = 1 }, "lacks 39 bits of physical address (");
	CHECK(ask(good, N - 1) == -ENOTSUP && strstr(err.msg, "39 bits"), "no leaf of addresses: %s", err.msg);
	CHECK(ask(good, 0) == -ENOTSUP, "nothing at all is taken");
	CHECK(strstr(err.msg, "64-bit mode, NX, SYSCALL, XSAVE, FSGSBASE, 39 bits"), "%s", err.msg);
	printf("%s: %d checks, %d failures\n", failures ? "FAILED" : "SUCCESS", checks, failures);
	return failures != 0;
}
