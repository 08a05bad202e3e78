/* SPDX-License-Identifier: Apache-2.0 */
/* What is told of a vCPU that shut down. */
#include "../../monitor/core/vcpu_lost.h"
#include <string.h>
#include <sys/mman.h>
#include "../../monitor/core/gmem.h"
#include "../../monitor/core/hcall.h"
#include "check.h"

struct pvm pvm = { .mm_lock = PTHREAD_MUTEX_INITIALIZER };

/* One region: 0x400000 up to 0x500000, for reading and executing. */
bool gmem_query_locked(uint64_t gva, struct gmem_region *out)
{
	*out = (struct gmem_region){ .start = 0x400000, .end = 0x500000, .prot = PROT_READ | PROT_EXEC };
	return gva < out->end;
}

const struct hc_row *hc_row_find(uint64_t nr)
{
	static const struct hc_row row = { .name = "futex", .nr = 202 };
	return nr == 202 ? &row : NULL;
}

static char text[700];

static void says(const struct vcpu_lost *l, const char *words)
{
	vcpu_lost_text(text, sizeof text, l);
	CHECK(strstr(text, words), "%s, not %s", text, words);
}

int main(void)
{
	struct vcpu_lost l = { .entered = { 0x401000, 0x7ff0, 0x202 }, .last_hcall = 202 };
	/* As KVM for SVM leaves it. */
	says(&l, "shut down (triple fault): entered at rip 0x401000 (mapped r-x) rsp 0x7ff0 rflags 0x202");
	says(&l, "; its registers are lost; no exception before; last hypercall futex (202)");
	l.sregs.cr0 = 0x80050033;
	l.sregs.cr2 = 0x1234;
	l.sregs.cr3 = 0x7effe00000;
	l.sregs.cs.selector = 0x33;
	l.regs.rip = 0x600000;
	l.regs.rsp = 0x10;
	l.regs.rflags = 0x10246;
	says(&l, "; now rip 0x600000 (not mapped) rsp 0x10 ring 3 rflags 0x10246 cr2 0x1234 cr3 0x7effe00000");
	l.regs.rip = 0xffffffff80001000;
	l.sregs.cs.selector = 0x10;
	says(&l, "; now rip 0xffffffff80001000 (ring 0's) rsp 0x10 ring 0");
	l.frame = (struct vcpu_frame){ .err = 6, .rip = 0x401234, .cs = 0x33, .rflags = 0x246, .rsp = 0x7f00 };
	says(&l, "; last exception at rip 0x401234 (mapped r-x) rsp 0x7f00 ring 3 rflags 0x246 code 0x6; last");
	l.last_hcall = 77;
	says(&l, "; last hypercall unknown (77)");
	l.last_hcall = -1ull;
	says(&l, "; no hypercall before");
	/* Somebody else has the map, perhaps for ever. */
	pthread_mutex_lock(&pvm.mm_lock);
	says(&l, "entered at rip 0x401000 (the map is being changed)");
	/* No more than there is room for. */
	memset(text, 'x', sizeof text);
	vcpu_lost_text(text, 40, &l);
	CHECK(strlen(text) == 39 && text[40] == 'x', "%s", text);
	printf("%s: %d checks, %d failures\n", failures ? "FAILED" : "SUCCESS", checks, failures);
	return failures != 0;
}
