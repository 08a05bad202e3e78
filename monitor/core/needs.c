/* SPDX-License-Identifier: Apache-2.0 */
#include "needs.h"
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define ADDRESS_LEAF 0x80000008u
#define ADDRESS_BITS 39 /* guest-physical 512 GiB: KX_SPACE_SIZE */

enum reg { EBX, ECX, EDX };

static const struct need {
	uint32_t leaf;
	enum reg reg;
	unsigned bit;
	const char *name;
} needs[] = {
	{ 0x80000001u, EDX, 29, "64-bit mode" },
	{ 0x80000001u, EDX, 20, "NX" },
	{ 0x80000001u, EDX, 11, "SYSCALL" },
	{ 1, ECX, 26, "XSAVE" },
	{ 7, EBX, 0, "FSGSBASE" },
};

static const struct kvm_cpuid_entry2 *leaf_find(const struct kvm_cpuid2 *c, uint32_t leaf)
{
	for (uint32_t i = 0; i < c->nent; i++)
		if (c->entries[i].function == leaf && c->entries[i].index == 0)
			return &c->entries[i];
	return NULL;
}

static bool has(const struct kvm_cpuid2 *c, const struct need *n)
{
	const struct kvm_cpuid_entry2 *e = leaf_find(c, n->leaf);
	if (!e)
		return false;
	uint32_t value = n->reg == EBX ? e->ebx : n->reg == ECX ? e->ecx : e->edx;
	return value >> n->bit & 1;
}

int needs_check(const struct kvm_cpuid2 *c, struct kx_err *err)
{
	char list[128] = "";
	size_t len = 0;
	for (unsigned i = 0; i < sizeof needs / sizeof needs[0]; i++)
		if (!has(c, &needs[i]))
			len += snprintf(list + len, sizeof list - len, "%s%s", len ? ", " : "", needs[i].name);
	const struct kvm_cpuid_entry2 *e = leaf_find(c, ADDRESS_LEAF);
	if (!e || (e->eax & 0xff) < ADDRESS_BITS)
		snprintf(list + len, sizeof list - len, "%s%d bits of physical address", len ? ", " : "", ADDRESS_BITS);
	if (!list[0])
		return 0;
	kx_err_set(err, ENOTSUP,
		   "/dev/kvm: the processor lacks %s (use one of 2014 or later; in a virtual machine, a CPU model that "
		   "has it)",
		   list);
	return -ENOTSUP;
}
