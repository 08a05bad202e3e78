/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stressors that check what they get, in one process: no fork. stress [NAME|all [SECONDS]]; 0.3 s for each when not
 * given. One line for each: "ok NAME: N ops" or "FAIL NAME: why".
 */
#define _GNU_SOURCE
#include "descriptors.h"
#include "memory.h"
#include "processor.h"
#include "sockets.h"
#include "threads.h"

static const struct {
	const char *name;
	uint64_t (*fn)(void);
} stressors[] = {
	{ "cpu", st_cpu },       { "fpu", st_fpu },           { "vm", st_vm },           { "mmap", st_mmap },
	{ "mremap", st_mremap }, { "mprotect", st_mprotect }, { "sigsegv", st_sigsegv }, { "signal", st_signal },
	{ "timer", st_timer },   { "futex", st_futex },       { "pthread", st_pthread }, { "poll", st_poll },
	{ "epoll", st_epoll },   { "eventfd", st_eventfd },   { "memfd", st_memfd },     { "file", st_file },
	{ "dir", st_dir },       { "link", st_link },         { "tcp", st_tcp },         { "udp", st_udp },
	{ "unix", st_unix },
};

int main(int argc, char **argv)
{
	const char *only = argc > 1 ? argv[1] : "all", *tmp = getenv("TMPDIR");
	double seconds = argc > 2 ? atof(argv[2]) : 0.3;
	bool found = false;
	snprintf(dir, sizeof(dir), "%s/stressXXXXXX", tmp ? tmp : "/tmp");
	stressor_name = "mkdtemp";
	must(strlen(dir) == strlen(tmp ? tmp : "/tmp") + 13 && mkdtemp(dir));
	for (size_t i = 0; i < sizeof(stressors) / sizeof(*stressors); i++) {
		if (strcmp(only, "all") != 0 && strcmp(only, stressors[i].name) != 0)
			continue;
		int before = failures;
		found = true;
		stressor_name = stressors[i].name;
		end_ns = now() + (uint64_t)(seconds * 1e9);
		uint64_t ops = stressors[i].fn();
		if (failures == before)
			printf("ok %s: %lu ops\n", stressor_name, ops);
		fflush(stdout);
	}
	stressor_name = "rmdir";
	expect(rmdir(dir) == 0, "%s is not empty", dir);
	if (!found)
		printf("no stressor %s\n", only);
	if (failures || !found)
		return 1;
	printf("SUCCESS\n");
	return 0;
}
