/* SPDX-License-Identifier: Apache-2.0 */
/* For tests that disturb somebody in a call: it must be in that call, however busy the machine is. */
#ifndef KX_GUEST_ASLEEP_H
#define KX_GUEST_ASLEEP_H
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

/* What /proc says of a thread: S when it sleeps. 0: nothing, so there is none. */
static inline char state_of(pid_t pid, pid_t tid)
{
	char name[64], text[256];
	snprintf(name, sizeof name, "/proc/%d/task/%d/stat", (int)pid, (int)tid);
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	const char *at = strrchr(text, ')');
	return at ? at[2] : 0;
}

/* Until a thread of that process sleeps, and not just for a moment, or has ended. */
static inline void asleep(pid_t pid, pid_t tid)
{
	for (int n = 0; n < 8;) {
		struct timespec ts = { 0, 8000000 };
		while (nanosleep(&ts, &ts))
			;
		char c = state_of(pid, tid);
		if (!c || c == 'Z' || c == 'X')
			return;
		n = c == 'S' ? n + 1 : 0;
	}
}
#endif
