/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The time stamp counter that the guest reads is to be the host's: the time page says so, and what a program or the family
 * notes goes on to count in a child and behind exec. A new VM of KVM on VMX and SVM counts from 0, however; software KVM
 * leaves the processor's counter as it is. So the first instructions of a family's first program ask (kx_tsc in the LibOS);
 * what they find, which costs an exit only where it differs, holds for every vCPU after that.
 */
#ifndef KX_TSC_H
#define KX_TSC_H
#include <stdbool.h>
#include <stdint.h>
#include "pvm.h"

/* What is known, for the monitor that exec starts. */
uint8_t tsc_state(void);
void tsc_adopt(uint8_t state);

/* Let a new vCPU count as the host does, where it has to be told. */
void tsc_set_up(const struct thread *t);

/* False: it counts differently, and this KVM can't be told (Linux before 5.16). No time page then. */
bool tsc_is_host(void);

/* t's registers are set for its first entry, to return to the program: ask on the way, unless the answer is known. */
void tsc_ask(struct thread *t);

/* KX_PORT_RETURN was written to by t. True: by kx_tsc, which found another counter; t goes on to the program. */
bool tsc_differs(struct thread *t);
#endif
