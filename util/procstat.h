/* SPDX-License-Identifier: Apache-2.0 */
/* The text of /proc/PID/stat, by the numbers of its fields in proc(5). The name, field 2, may hold anything. */
#ifndef KX_PROCSTAT_H
#define KX_PROCSTAT_H
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PROC_STAT_FIELDS 53
enum { STAT_STATE = 3, STAT_PPID, STAT_PGRP, STAT_SESSION, STAT_FLAGS = 9, STAT_THREADS = 20, STAT_START = 22 };

struct proc_stat {
	const char *name; /* in the text */
	int name_len;
	char state;
	int n; /* fields that are there: f[4] to f[n] */
	uint64_t f[PROC_STAT_FIELDS];
};

/* 0, or -1 when it is no such text. */
static inline int proc_stat_read(const char *text, struct proc_stat *s)
{
	const char *open = strchr(text, '('), *p = strrchr(text, ')');
	memset(s, 0, sizeof *s);
	if (!open || !p || p < open || p[1] != ' ' || !p[2])
		return -1;
	s->name = open + 1;
	s->name_len = (int)(p - open - 1);
	s->state = p[2];
	s->n = STAT_STATE;
	for (p += 3; *p == ' ' && s->n + 1 < PROC_STAT_FIELDS; s->n++) {
		char *end;
		s->f[s->n + 1] = strtoull(p, &end, 10); /* a negative one as its complement */
		if (end == p)
			break;
		p = end;
	}
	return 0;
}

static inline int proc_stat_ended(const struct proc_stat *s) { return s->state == 'Z' || s->state == 'X'; }
#endif
