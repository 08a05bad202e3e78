/* SPDX-License-Identifier: Apache-2.0 */
#include "build.h"
#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

extern const Elf64_Ehdr __ehdr_start __attribute__((visibility("hidden")));

/* The linker's NT_GNU_BUILD_ID, in the notes that this program's headers lead to. */
static const uint8_t *build_id(uint32_t *len)
{
	const uintptr_t at = (uintptr_t)&__ehdr_start;
	const Elf64_Phdr *ph = (const Elf64_Phdr *)(at + __ehdr_start.e_phoff);
	uintptr_t bias = at;
	for (unsigned i = 0; i < __ehdr_start.e_phnum; i++)
		if (ph[i].p_type == PT_LOAD && !ph[i].p_offset)
			bias = at - ph[i].p_vaddr;
	for (unsigned i = 0; i < __ehdr_start.e_phnum; i++) {
		if (ph[i].p_type != PT_NOTE)
			continue;
		const uint8_t *p = (const uint8_t *)(bias + ph[i].p_vaddr), *end = p + ph[i].p_memsz;
		while (end - p >= (long)sizeof(Elf64_Nhdr)) {
			const Elf64_Nhdr *h = (const Elf64_Nhdr *)p;
			uint64_t name = (h->n_namesz + 3ull) & ~3ull,
				 size = sizeof *h + name + ((h->n_descsz + 3ull) & ~3ull);
			if (size > (uint64_t)(end - p))
				break;
			if (h->n_type == NT_GNU_BUILD_ID && h->n_namesz == 4 && !memcmp(h + 1, "GNU", 4)) {
				*len = h->n_descsz;
				return p + sizeof *h + name;
			}
			p += size;
		}
	}
	return NULL;
}

const char *build_name(void)
{
	static char name[BUILD_NAME];
	uint32_t len = 0;
	if (*name)
		return name;
	const uint8_t *id = build_id(&len);
	int n = snprintf(name, sizeof name, "%.24s%s", KX_VERSION, id ? "-" : "");
	for (uint32_t i = 0; id && i < len && i < 8; i++)
		n += snprintf(name + n, sizeof name - (size_t)n, "%02x", id[i]);
	return name;
}
