/* SPDX-License-Identifier: Apache-2.0 */
/* A library with hooks, a constructor that allocates, an exported IFUNC, and another layout in each version. */
#include <kylinx.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct state {
	long count;
	char *text;
};
#if V == 2
static long padding[50] = { 3 };
#endif
static struct state now;
static int constructed, aborted;

__attribute__((constructor)) static void construct(void)
{
	now.text = strdup("constructed");
	constructed++;
}

static int chosen(void) { return 10 * V; }
static int (*choose(void))(void) { return chosen; }
int picked(void) __attribute__((ifunc("choose")));

int version(void) { return V; }
long count(void) { return ++now.count; }
const char *text(void) { return now.text; }
int times_constructed(void) { return constructed; }
int times_aborted(void) { return aborted; }
int plain(int x) { return x + V; }

void *kylinx_update_prepare(void) { return now.count == 13 ? NULL : &now; }
int kylinx_update_commit(void *from)
{
	struct state *old = from;
	if (old->count == 7)
		return 1;
#ifdef HANG
	for (;;)
		pause();
#endif
#ifdef LATE
	struct timespec end;
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += 8;
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL))
		;
	if (write(1, "committed\n", 10) != 10)
		return 1;
#endif
	now.count = old->count;
#if V == 2
	now.count += padding[0] - 3;
#endif
	return 0;
}
void kylinx_update_abort(void *from) { aborted += from == &now; }
