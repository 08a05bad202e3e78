/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile guest. hostile pvm [RANDOM_CALLS]: every row of abi/hypercalls.def, made directly through the hypercall
 * port and through `syscall`, with every bad value that its arguments' kinds can have, and random combinations. At the
 * end the pVM must still work, no descriptor of the monitor's may have been reached and no guard page changed.
 * hostile MODE [SEED]: one attack after which the pVM may be dead, by a clear error, but the monitor must not be;
 * hostile modes lists them. Each is for tests/integration/test_hostile.py, which judges how it ended.
 * Without arguments nothing is done: natively there is no port.
 */
#define _GNU_SOURCE
#include "attacks.h"
#include "lies.h"
#include "meanwhile.h"
#include "rings.h"
#include "sweep.h"
#include "values.h"

/* ---- modes ---------------------------------------- */

static const struct {
	const char *name;
	void (*fn)(void);
} lies[] = {
	{ "arg", lie_arg },
	{ "nr", lie_nr },
	{ "iovec", lie_iovec },
	{ "message", lie_message },
	{ "pollfd", lie_pollfd },
	{ "string", lie_string },
	{ "structs", lie_structs },
	{ "work", lie_work },
	{ "masks", lie_masks },
	{ "signal", lie_signal },
	{ "actions", lie_actions },
	{ "action-ptr", lie_action_ptr },
	{ "area", lie_area },
	{ "area-pages", lie_area_pages },
	{ "area-any", lie_area_any },
	{ "nr-sites", lie_nr_sites },
	{ "sites-seq", lie_seq },
	{ "sites", lie_sites },
	{ "shared", lie_shared },
	{ "shared-head", lie_shared_head },
	{ "vfork", lie_vfork },
	{ "tid-ptr", lie_tid_ptr },
	{ "pipes", lie_pipes },
	{ "pipe-cursors", lie_pipe_cursors },
	{ "pipe-table", lie_pipe_table },
	{ "ipc", lie_ipc },
	{ "ipc-ring", lie_ipc_ring },
	{ "ipc-places", lie_ipc_places },
	{ "batch", lie_batch },
	{ "batch-ring", lie_batch_ring },
	{ "batch-files", lie_batch_files },
	{ "batch-opened", lie_batch_opened },
	{ "batch-ahead", lie_batch_ahead },
	{ "dgram", lie_dgram },
	{ "dgram-ring", lie_dgram_ring },
	{ "dgram-records", lie_dgram_records },
};

static void mode_init(uint64_t seed)
{
	struct rlimit rl;
	getrlimit(RLIMIT_NOFILE, &rl);
	fd_limit = rl.rlim_max;
	memory_init();
	files_reset();
	fds_init();
	bad_fill();
	rng_seed(seed, 77);
	progress = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < 8; i++)
		lie_iov[i] = (struct iovec){ good, 16 };
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	const char *mode = argc > 1 ? argv[1] : "";
	if (!strcmp(mode, "modes")) {
		for (unsigned i = 0; i < LEN(lies); i++)
			printf("lie-%s\nstill-%s\n", lies[i].name, lies[i].name);
		printf("robust\nrefill\nports\npanic\npointers\nskip\n");
		return 0;
	}
	if (!*mode) {
		printf("skipped natively\n");
		return 0;
	}
	if (!strcmp(mode, "pvm"))
		return sweep(argc > 2 ? atoi(argv[2]) : 60);
	mode_init(seed);
	for (unsigned i = 0; i < LEN(lies); i++) {
		if (!strncmp(mode, "lie-", 4) && !strcmp(mode + 4, lies[i].name))
			return lie_for(lies[i].fn, 400);
		if (!strncmp(mode, "still-", 6) && !strcmp(mode + 6, lies[i].name))
			return lie_still(lies[i].fn);
	}
	if (!strcmp(mode, "robust"))
		return robust();
	if (!strcmp(mode, "refill"))
		return refill();
	if (!strcmp(mode, "pointers"))
		return pointers();
	if (!strcmp(mode, "skip"))
		return skip();
	if (!strcmp(mode, "poke"))
		return poke((pid_t)seed);
	if (!strcmp(mode, "ports"))
		return in_children(20 * 9, 3000, port_try);
	if (!strcmp(mode, "panic"))
		return in_children(24, 3000, panic_try);
	if (!strcmp(mode, "jump"))
		return tries(jump_try, seed, 10);
	if (!strcmp(mode, "code"))
		return tries(code_try, seed, 10);
	fprintf(stderr, "hostile: unknown mode %s\n", mode);
	return 2;
}
