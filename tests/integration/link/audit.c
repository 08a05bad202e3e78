/* SPDX-License-Identifier: Apache-2.0 */
/* An auditor of the dynamic linker's. */
#define _GNU_SOURCE
#include <link.h>
#include <stdio.h>
#include <string.h>

static const char *base(const char *s) { return strrchr(s, '/') ? strrchr(s, '/') + 1 : s; }

unsigned la_version(unsigned v)
{
	dprintf(1, "la_version\n");
	return v;
}

unsigned la_objopen(struct link_map *m, Lmid_t id, uintptr_t *cookie)
{
	*cookie = (uintptr_t)m;
	if (*m->l_name && !strstr(m->l_name, "vdso"))
		dprintf(1, "la_objopen %s %ld\n", base(m->l_name), (long)id);
	return LA_FLG_BINDTO | LA_FLG_BINDFROM;
}

char *la_objsearch(const char *name, uintptr_t *cookie, unsigned flag)
{
	(void)cookie;
	dprintf(1, "la_objsearch %s %u\n", base(name), flag);
	return (char *)name;
}

void la_activity(uintptr_t *cookie, unsigned flag)
{
	(void)cookie;
	dprintf(1, "la_activity %u\n", flag);
}

uintptr_t la_symbind64(Elf64_Sym *s, unsigned n, uintptr_t *from, uintptr_t *to, unsigned *flags, const char *name)
{
	(void)n, (void)from, (void)to;
	if (strstr(name, "value_") || strstr(name, "shared"))
		dprintf(1, "la_symbind64 %s %u\n", name, *flags);
	return s->st_value;
}

void la_preinit(uintptr_t *cookie)
{
	(void)cookie;
	dprintf(1, "la_preinit\n");
}

unsigned la_objclose(uintptr_t *cookie)
{
	dprintf(1, "la_objclose %s\n", base(((struct link_map *)*cookie)->l_name));
	return 0;
}
