/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fork and its relatives: what is inherited, what is shared, who is whose child, and forks while everything else is
 * going on. Arguments: names of groups to run (all without). The exit code is the number of the first check that
 * failed. kill(-1) is only done where nobody but the family can be named.
 */
#define _GNU_SOURCE
#include "inherits.h"
#include "middle.h"
#include "talks.h"
#include "vforks.h"
#include "waits.h"

static const struct group {
	const char *name;
	void (*run)(void);
} all[] = { { "ids", ids },
	    { "memory", memory },
	    { "big", big },
	    { "files", files },
	    { "signals", inherited_signals },
	    { "robust", robust },
	    { "robust_thread", robust_thread },
	    { "clones", clones },
	    { "vforks", vforks },
	    { "vfork_kills", vfork_kills },
	    { "spawns", spawns },
	    { "waits", waits },
	    { "sigchld", sigchld },
	    { "orphans", orphans },
	    { "pidfds", pidfds },
	    { "groups", groups },
	    { "kill_all", kill_all },
	    { "queues", queues },
	    { "busy", busy },
	    { "storms", storms },
	    { "far_threads", far_threads },
	    { "crowd", crowd },
	    { "fd_limit", fd_limit },
	    { "randoms", randoms },
	    { "registers", registers },
	    { "pshared", pshared },
	    { "pingpong", pingpong },
	    { "sysv", sysv },
	    { "passing", passing },
	    { "stacks", stacks },
	    { "endings", endings },
	    { "generations", generations } };

int main(int argc, char **argv)
{
	const char *tmp = getenv("TMPDIR");
	setvbuf(stdout, NULL, _IOLBF, 4096);
	snprintf(dir, sizeof dir, "%s/kx-fork-XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(dir))
		return 255;
	for (unsigned i = 0; i < sizeof all / sizeof all[0]; i++) {
		bool wanted = is_wanted(argc, argv, all[i].name);
		double start = now();
		if (wanted)
			all[i].run();
		if (wanted && getenv("VERBOSE"))
			printf("# %s: %.0f ms\n", all[i].name, (now() - start) * 1e3);
	}
	rmdir(dir);
	check_named(argc);
	check(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "no child left");
	puts(first_failed ? "FAILED" : "SUCCESS");
	return first_failed;
}
