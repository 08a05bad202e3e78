/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of VMs. KVM takes longer to end one than the kernel a process: grace periods, a thread to stop, files in debugfs.
 * A parent that waits would wait for that, too, and so would an exec. So a process that forks and waits again and again has
 * a thread, the undertaker, which gets the VM's descriptor by a socket from a child that ends or execs, and closes it when
 * the child has gone.
 *
 * The socket is inherited; who can't reach an undertaker ends its VM itself, as ever. What a child sends that is hostile is
 * closed, like the rest.
 */
#ifndef KX_VMEND_H
#define KX_VMEND_H
#include "pvm.h"

/* A child was made, of whatever kind. */
void vmend_born(void);
/* The last two of this process followed each other soon. */
bool vmend_habit(void);
/* Before a wait that will sleep. */
void vmend_wait(void);
/* At the limit of processes: true, the thread was there and is no more, try again. */
bool vmend_make_room(void);
/* The same in a child, whose parent has it. */
void vmend_ask_room(void);
/* The process is about to end, or to exec: nothing but the end of its VM is to follow. */
void vmend_hand_over(void);
/* The socket of the children's side, -1 = none: goes along with exec. */
int vmend_fd(void);
void vmend_adopt(int fd);
#endif
