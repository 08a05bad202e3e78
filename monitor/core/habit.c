/* SPDX-License-Identifier: Apache-2.0 */
#include "habit.h"
#include "../../util/now.h"
#include "../../util/together.h"
#include "keeper.h"
#include "pvm.h"

#define SOON_NS 1000000000ull

static KX_TOGETHER struct {
	uint64_t born_ns, before_ns; /* of the last two children of `of` */
	pid_t of;
} last;

void habit_born(void)
{
	if (is_vfork_child())
		return;
	last.before_ns = last.of == pvm.pid ? last.born_ns : 0;
	last.of = pvm.pid;
	last.born_ns = now_ns();
}

bool habit_forks(void) { return last.of == pvm.pid && last.before_ns && last.born_ns - last.before_ns < SOON_NS; }
