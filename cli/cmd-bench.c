/* SPDX-License-Identifier: Apache-2.0 */
/* kylinx bench: the measurements of bench/run.py, installed or in the source tree. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cli.h"

const char cmd_bench_help[] = "Usage: kylinx bench [--quick] [--out DIR] [--base KYLINX] [--list] [GROUP...]\n"
			      "\n"
			      "Measure pVMs against ordinary processes on this machine, by turns in one run, and write "
			      "a report: bench.html,\n"
			      "bench.txt and bench.json. It needs python3, and taskset of util-linux; groups whose "
			      "programs are not installed\n"
			      "are skipped with a reason.\n"
			      "\n"
			      "Options:\n"
			      "  --quick          fewer runs and smaller sizes: under 3 minutes instead of under 20\n"
			      "  --out DIR        where the report goes (default: ./kylinx-bench)\n"
			      "  --base KYLINX    compare with another build of kylinx instead of processes\n"
			      "  --list           list the groups\n"
			      "  --help           print this\n"
			      "\n"
			      "Exit status: 0; 1 when a group failed; 125 when nothing could be measured.\n";

/* The script beside this executable: PREFIX/bin/kylinx or TREE/build/kylinx. Fills in where its programs are. */
static const char *script_find(const char *self, char *script, char *programs, size_t size)
{
	static const char *const places[][2] = { { "../libexec/kylinx/bench/run.py", "../libexec/kylinx/bench" },
						 { "../bench/run.py", "bench" } };
	const char *slash = strrchr(self, '/');
	int dir = slash ? (int)(slash - self) : 0;
	for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
		if ((size_t)snprintf(script, size, "%.*s/%s", dir, self, places[i][0]) >= size ||
		    (size_t)snprintf(programs, size, "%.*s/%s", dir, self, places[i][1]) >= size)
			return NULL;
		if (!access(script, R_OK))
			return script;
	}
	return NULL;
}

int cmd_bench(int argc, char **argv, struct kx_err *err)
{
	char self[PATH_MAX], script[PATH_MAX], programs[PATH_MAX];
	bool out = false;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
			return cli_print(cmd_bench_help, err) ? CLI_FAILED : 0;
		out = out || !strncmp(argv[i], "--out", 5);
	}
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	self[n > 0 ? n : 0] = 0;
	if (!script_find(self, script, programs, sizeof script)) {
		kx_err_set(err, ENOENT, "bench: its scripts are not beside %s (install with `make install`)", self);
		return CLI_FAILED;
	}
	char **args = calloc((size_t)argc + 4, sizeof *args);
	if (!args || setenv("KYLINX", self, 1) || setenv("KX_BENCH_PROGRAMS", programs, 1)) {
		kx_err_set(err, ENOMEM, "bench: no memory (free some)");
		return CLI_FAILED;
	}
	int k = 0;
	args[k++] = (char *)"python3";
	args[k++] = script;
	if (!out)
		args[k++] = (char *)"--out=kylinx-bench";
	for (int i = 1; i < argc; i++)
		args[k++] = argv[i];
	execvp(args[0], args);
	kx_err_set(err, errno, "bench: python3: %s (install python3)", strerror(errno));
	free(args);
	return CLI_FAILED;
}
