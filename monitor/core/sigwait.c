/* SPDX-License-Identifier: Apache-2.0 */
#include "sigwait.h"
#include <stdbool.h>
#include <unistd.h>
#include "../../abi/kx_sigwait.h"
#include "gmem.h"
#include "pipe_priv.h"

#define CALLS 4 /* until it is worth while */

void sigwait_used(void)
{
	static uint32_t calls;
	if (__atomic_load_n(&calls, __ATOMIC_RELAXED) > CALLS || !pipe_table_is_ours() ||
	    __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED) != CALLS)
		return;
	pipe_table_get();
	if (pipe_map_here()) {
		struct kx_sigw *s = gva_ptr(KX_SIGW_BASE);
		s->uid = geteuid();
		__atomic_store_n(&s->ready, 1, __ATOMIC_RELEASE);
	}
	pipe_table_put();
}
