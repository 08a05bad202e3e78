/* SPDX-License-Identifier: Apache-2.0 */
#include "room.h"
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include "../../util/now.h"
#include "../../util/together.h"
#include "pvm.h"

#define SOON_NS 100000000 /* from an end to its place, at most */
#define LOOK_NS 2000000

static KX_TOGETHER uint64_t end_ns; /* of the last one; 0: there was none */

void room_soon(void) { __atomic_store_n(&end_ns, now_ns(), __ATOMIC_RELAXED); }

bool room_await(void)
{
	uint64_t end = __atomic_load_n(&end_ns, __ATOMIC_RELAXED);
	if (!end || now_ns() - end > SOON_NS)
		return false;
	host_call(SYS_nanosleep, (long)&(struct timespec){ 0, LOOK_NS }, 0, 0, 0, 0, 0);
	return true;
}
