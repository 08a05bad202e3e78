/* SPDX-License-Identifier: Apache-2.0 */
#include "tsc.h"
#include <sys/ioctl.h>
#include "../../util/log.h"
#include "timepage.h"

enum { UNKNOWN, ASKED, SAME, TOLD, LOST };

static uint8_t state;

/* ASKED, seen by another process: the program ran, so there was no complaint. */
uint8_t tsc_state(void) { return state == ASKED ? SAME : state; }
void tsc_adopt(uint8_t s) { state = s; }
bool tsc_is_host(void) { return state != LOST; }

void tsc_set_up(const struct thread *t)
{
	uint64_t offset = 0;
	struct kvm_device_attr a = { .group = KVM_VCPU_TSC_CTRL,
				     .attr = KVM_VCPU_TSC_OFFSET,
				     .addr = (uint64_t)(uintptr_t)&offset };
	if (state == TOLD && ioctl(t->vcpu_fd, KVM_SET_DEVICE_ATTR, &a) < 0)
		state = LOST;
}

void tsc_ask(struct thread *t)
{
	struct kvm_regs *r = &t->run->s.regs.regs;
	if (state != UNKNOWN)
		return;
	state = ASKED;
	r->rip = pvm.libos.tsc;
	r->rbx = __builtin_ia32_rdtsc();
	t->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
}

/* A program that writes to the port itself, later, gets what it would have got. */
bool tsc_differs(struct thread *t)
{
	if (state != ASKED)
		return false;
	state = TOLD;
	tsc_set_up(t);
	if (state == LOST) {
		kx_log(KX_LOG_INFO, "tsc", "KVM counts anew for each VM (Linux before 5.16): clocks cost an exit");
		timepage_init(pvm.vvar, false, 0);
	}
	t->run->s.regs.regs.rip = pvm.libos.exit;
	t->run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
	return true;
}
