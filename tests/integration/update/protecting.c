/* SPDX-License-Identifier: Apache-2.0 */
/* A library whose hook, between the preparation of an update and the change, protects a page that the change writes to. */
#include <kylinx.h>
#include <sys/mman.h>

static struct state {
	void *page;
	int prot;
} now;

int version(void) { return V; }

void protect_page(void *page, int prot)
{
	now.page = page;
	now.prot = prot;
}

void *kylinx_update_prepare(void)
{
	if (now.page)
		mprotect(now.page, 4096, now.prot);
	return &now;
}

int kylinx_update_commit(void *from)
{
	now = *(struct state *)from;
	now.page = 0;
	return 0;
}
