/* SPDX-License-Identifier: Apache-2.0 */
/* Signals as one program sees them from itself. Passes on any x86-64 Linux. */
#define _GNU_SOURCE
#include "contexts.h"
#include "handlers.h"
#include "threads.h"
#include "timers.h"
#include "waits.h"

int main(void)
{
	test_directed();
	test_origin();
	test_flags();
	test_altstack();
	test_queue();
	test_wait();
	test_eintr();
	test_files();
	test_on_the_way();
	test_timers();
	test_jumps();
	test_ucontext();
	test_threads();
	test_async();
	test_storm();
	test_ending_threads();
	test_all_blocked();
	if (failures) {
		printf("FAILED %d\n", failures);
		return 1;
	}
	puts("SUCCESS");
	return 0;
}
