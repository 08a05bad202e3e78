/* SPDX-License-Identifier: Apache-2.0 */
#include "vcpu_lost.h"
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include "gmem.h"
#include "hcall.h"

#define CR0_PE 1ull

static void add(char *out, size_t size, const char *fmt, ...)
{
	size_t n = 0;
	while (n < size && out[n])
		n++;
	va_list ap;
	va_start(ap, fmt);
	if (n < size)
		vsnprintf(out + n, size - n, fmt, ap);
	va_end(ap);
}

/* The protection of what the program, or the LibOS, has at gva. Whoever holds the lock may never give it back. */
static void add_place(char *out, size_t size, uint64_t gva)
{
	struct gmem_region g;
	if (gva >= KX_HIGH_END) {
		add(out, size, " (ring 0's)");
		return;
	}
	if (pthread_mutex_trylock(&pvm.mm_lock)) {
		add(out, size, " (the map is being changed)");
		return;
	}
	bool found = gmem_query_locked(gva, &g) && g.start <= gva;
	pthread_mutex_unlock(&pvm.mm_lock);
	if (found)
		add(out, size, " (mapped %c%c%c)", g.prot & PROT_READ ? 'r' : '-', g.prot & PROT_WRITE ? 'w' : '-',
		    g.prot & PROT_EXEC ? 'x' : '-');
	else
		add(out, size, " (not mapped)");
}

static void add_now(char *out, size_t size, const struct vcpu_lost *l)
{
	if (!(l->sregs.cr0 & CR0_PE)) {
		add(out, size, "; its registers are lost");
		return;
	}
	add(out, size, "; now rip %#llx", l->regs.rip);
	add_place(out, size, l->regs.rip);
	add(out, size, " rsp %#llx ring %u rflags %#llx cr2 %#llx cr3 %#llx", l->regs.rsp, l->sregs.cs.selector & 3u,
	    l->regs.rflags, l->sregs.cr2, l->sregs.cr3);
}

void vcpu_lost_text(char *out, size_t size, const struct vcpu_lost *l)
{
	*out = 0;
	add(out, size, "shut down (triple fault): entered at rip %#llx", (unsigned long long)l->entered.rip);
	add_place(out, size, l->entered.rip);
	add(out, size, " rsp %#llx rflags %#llx", (unsigned long long)l->entered.rsp,
	    (unsigned long long)l->entered.rflags);
	add_now(out, size, l);
	if (l->frame.cs) {
		add(out, size, "; last exception at rip %#llx", (unsigned long long)l->frame.rip);
		add_place(out, size, l->frame.rip);
		add(out, size, " rsp %#llx ring %u rflags %#llx code %#llx", (unsigned long long)l->frame.rsp,
		    (unsigned)l->frame.cs & 3, (unsigned long long)l->frame.rflags, (unsigned long long)l->frame.err);
	} else {
		add(out, size, "; no exception before");
	}
	const struct hc_row *row = hc_row_find(l->last_hcall);
	if (l->last_hcall == -1ull)
		add(out, size, "; no hypercall before");
	else
		add(out, size, "; last hypercall %s (%llu)", row ? row->name : "unknown",
		    (unsigned long long)l->last_hcall);
}
