/* SPDX-License-Identifier: Apache-2.0 */
/* kylinx ps: the trees of families, for people or as JSON. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "../util/utf8.h"
#include "cli.h"
#include "families.h"
#include "ps.h"

#define SEE "see `kylinx help ps`"
#define PROGRAM_WIDTH 72

const char cmd_ps_help[] =
	"Usage: kylinx ps [--ipc] [--json] [--family NAME|PID]\n"
	"\n"
	"List the pVMs of the calling user, each family as a tree.\n"
	"\n"
	"Options:\n"
	"  --ipc                    list the IPC objects of families instead\n"
	"  --json                   print JSON, see kylinx(1)\n"
	"  --family NAME|PID        only the family with this name, or with this process in it\n"
	"  --help                   print this\n"
	"\n"
	"Columns: PID and PPID, the host's; NAME, of the family; VCPUS, threads; PRIVATE, memory that only this pVM "
	"has;\n"
	"SHARED, what it shares with others; PSS, private and its part of what is shared; STATE, as of ps(1); AGE;\n"
	"PROGRAM with its arguments. A `-` is not known, or may not be looked at. `*` before PROGRAM: a member whose\n"
	"parent has ended; `+`: started by `kylinx exec`.\n"
	"After a family with published ports, a line that names them.\n";

/* Seconds since boot, as start times count. */
static double age(const struct member *m)
{
	struct timespec now;
	clock_gettime(CLOCK_BOOTTIME, &now);
	double s = (double)now.tv_sec + (double)now.tv_nsec / 1e9 - (double)m->start / (double)sysconf(_SC_CLK_TCK);
	return s > 0 ? s : 0;
}

static bool is_member(const struct family *f, pid_t pid)
{
	for (size_t i = 0; i < f->nr; i++)
		if (f->members[i].pid == pid)
			return true;
	return false;
}

/* A zombie that nobody has waited for has none, but counts as one thread. */
static int vcpus(const struct member *m) { return m->state == 'Z' && m->threads == 1 ? 0 : m->threads; }

static const char *role(const struct family *f, const struct member *m)
{
	if (m->pid == f->e.pid && m->start == f->e.start)
		return "root";
	if (is_member(f, m->ppid))
		return "child";
	return m->from_host ? "exec" : "orphan";
}

/* ---- text from guests ---------------------------------------------------------------------------------------------- */

void put_json(FILE *f, const char *s, size_t len)
{
	char text[JSON_CHAR_MAX];
	fputc('"', f);
	for (const char *end = s + len; s < end;)
		fwrite(text, 1, (size_t)json_char(&s, end, text), f);
	fputc('"', f);
}

void put_line(FILE *f, const char *s, size_t len, int width)
{
	const char *end = s + len;
	for (; s < end && width > 0; width--) {
		int n = utf8_char(s, end);
		if (!n)
			fputc(*s++ ? '?' : ' ', f);
		for (; n; n--)
			fputc(*s++, f);
	}
}

/* ---- JSON ----------------------------------------------------------------------------------------------------------- */

static void json_kib(FILE *f, const char *key, long v)
{
	if (v < 0)
		fprintf(f, ", \"%s\": null", key);
	else
		fprintf(f, ", \"%s\": %ld", key, v);
}

static void json_member(FILE *o, const struct family *f, const struct member *m)
{
	fprintf(o,
		"{\"pid\": %d, \"ppid\": %d, \"pgrp\": %d, \"session\": %d, \"uid\": %u, \"role\": \"%s\", \"comm\": ",
		m->pid, m->ppid, m->pgrp, m->session, m->uid, role(f, m));
	put_json(o, m->comm, strlen(m->comm));
	fputs(", \"program\": ", o);
	if (*m->exe)
		put_json(o, m->exe, strlen(m->exe));
	else
		fputs("null", o);
	fputs(", \"args\": ", o);
	if (m->args) {
		fputc('[', o);
		for (size_t i = 0; i < m->args_len;) {
			size_t n = strnlen(m->args + i, m->args_len - i);
			fputs(i ? ", " : "", o);
			put_json(o, m->args + i, n);
			i += n + 1;
		}
		fputc(']', o);
	} else {
		fputs("null", o);
	}
	fprintf(o, ", \"state\": \"%c\", \"vcpus\": %d", m->state, vcpus(m));
	json_kib(o, "private_kib", m->private_kib);
	json_kib(o, "shared_kib", m->shared_kib);
	json_kib(o, "pss_kib", m->pss_kib);
	json_kib(o, "rss_kib", m->rss_kib);
	fprintf(o, ", \"start_ticks\": %" PRIu64 ", \"age_seconds\": %.2f}", m->start, age(m));
}

static void json_family(FILE *o, const struct family *f)
{
	fputs("{\"name\": ", o);
	if (*f->e.name)
		put_json(o, f->e.name, strlen(f->e.name));
	else
		fputs("null", o);
	fprintf(o, ", \"root_pid\": %d, \"root_alive\": %s, \"program\": ", f->e.pid,
		is_member(f, f->e.pid) ? "true" : "false");
	put_json(o, f->e.program, strlen(f->e.program));
	fprintf(o, ", \"net\": \"%s\", \"publish\": [", f->e.net_private ? "private" : f->e.net_none ? "none" : "host");
	for (const char *p = f->e.publish; *p;) {
		size_t n = strcspn(p, " ");
		put_json(o, p, n);
		p += n + strspn(p + n, " ");
		fputs(*p ? ", " : "", o);
	}
	fputc(']', o);
	if (f->forks < 0)
		fputs(", \"forks\": null, \"members\": [", o);
	else
		fprintf(o, ", \"forks\": %lld, \"members\": [", f->forks);
	for (size_t i = 0; i < f->nr; i++) {
		fputs(i ? ",\n   " : "\n   ", o);
		json_member(o, f, &f->members[i]);
	}
	fputs("]}", o);
}

static void json(FILE *o, const struct families *all, const struct family *only)
{
	bool first = true;
	fputs("{\"version\": 1, \"families\": [", o);
	for (size_t i = 0; i < all->nr; i++) {
		if ((only && only != &all->list[i]) || !all->list[i].nr)
			continue;
		fputs(first ? "\n  " : ",\n  ", o);
		json_family(o, &all->list[i]);
		first = false;
	}
	fputs("]}\n", o);
}

/* ---- table ---------------------------------------------------------------------------------------------------------- */

static const char *size(long kib, char buf[32])
{
	if (kib < 0)
		return "-";
	if (kib < 10 * 1024)
		snprintf(buf, 32, "%ldK", kib);
	else if (kib < 10 * 1024 * 1024)
		snprintf(buf, 32, "%ldM", kib >> 10);
	else
		snprintf(buf, 32, "%ldG", kib >> 20);
	return buf;
}

static const char *duration(double s, char buf[32])
{
	long n = (long)s;
	if (n < 100)
		snprintf(buf, 32, "%.1fs", s);
	else if (n < 100 * 60)
		snprintf(buf, 32, "%ldm%02lds", n / 60, n % 60);
	else if (n < 48 * 3600)
		snprintf(buf, 32, "%ldh%02ldm", n / 3600, n / 60 % 60);
	else
		snprintf(buf, 32, "%ldd%02ldh", n / 86400, n / 3600 % 24);
	return buf;
}

static void table_member(FILE *o, const struct family *f, const struct member *m, int depth)
{
	char a[32], b[32], c[32], d[32];
	const char *r = role(f, m);
	fprintf(o, "%8d %8d %-12s %5d %8s %8s %8s   %c   %7s  ", m->pid, m->ppid, *f->e.name ? f->e.name : "-",
		vcpus(m), size(m->private_kib, a), size(m->shared_kib, b), size(m->pss_kib, c), m->state,
		duration(age(m), d));
	fprintf(o, "%*s%s", depth * 2, "", *r == 'o' ? "* " : *r == 'e' ? "+ " : "");
	if (m->args) {
		size_t n = m->args_len;
		while (n && !m->args[n - 1])
			n--;
		put_line(o, m->args, n, PROGRAM_WIDTH);
	} else {
		fputc('[', o);
		put_line(o, m->comm, strlen(m->comm), PROGRAM_WIDTH);
		fputc(']', o);
	}
	fputc('\n', o);
}

/* m and below. Members are in order of their start, so a parent is not below its child, and this ends. */
static void table_tree(FILE *o, const struct family *f, const struct member *m, int depth)
{
	table_member(o, f, m, depth);
	for (const struct member *c = m + 1; c < f->members + f->nr; c++)
		if (c->ppid == m->pid)
			table_tree(o, f, c, depth + 1);
}

static void table(FILE *o, const struct families *all, const struct family *only)
{
	fprintf(o, "%8s %8s %-12s %5s %8s %8s %8s %5s %7s  %s\n", "PID", "PPID", "NAME", "VCPUS", "PRIVATE", "SHARED",
		"PSS", "STATE", "AGE", "PROGRAM");
	for (size_t i = 0; i < all->nr; i++) {
		const struct family *f = &all->list[i];
		if (only && only != f)
			continue;
		for (size_t k = 0; k < f->nr; k++) {
			bool below = false;
			for (size_t p = 0; p < k && !below; p++)
				below = f->members[p].pid == f->members[k].ppid;
			if (!below)
				table_tree(o, f, &f->members[k], 0);
		}
		if (*f->e.publish)
			fprintf(o, "%8s %8s %-12s publishes %s\n", "-", "-", *f->e.name ? f->e.name : "-",
				f->e.publish);
	}
}

int cmd_ps(int argc, char **argv, struct kx_err *err)
{
	const char *who = NULL;
	bool as_json = false, ipc = false;
	struct families all;
	struct family *only = NULL;
	struct member *m;
	char *text = NULL;
	size_t len = 0;
	int r = 0;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
			return cli_print(cmd_ps_help, err) ? CLI_FAILED : 0;
		if (!strcmp(argv[i], "--json")) {
			as_json = true;
		} else if (!strcmp(argv[i], "--ipc")) {
			ipc = true;
		} else if (!strncmp(argv[i], "--family=", 9)) {
			who = argv[i] + 9;
		} else if (!strcmp(argv[i], "--family") && i + 1 < argc) {
			who = argv[++i];
		} else {
			kx_err_set(err, EINVAL,
				   !strcmp(argv[i], "--family") ? "%s: needs a value (" SEE ")"
				   : argv[i][0] == '-'          ? "%.64s: unknown option (" SEE ")"
								: "%.64s: ps takes no such argument (" SEE ")",
				   argv[i]);
			return CLI_FAILED;
		}
	}
	if (families_read(&all, !ipc, err))
		return CLI_FAILED;
	if (who && !(only = families_find(&all, who, &m, err))) {
		families_free(&all);
		return CLI_FAILED;
	}
	FILE *o = open_memstream(&text, &len);
	if (o) {
		if (ipc)
			r = ps_ipc(o, &all, only, as_json, err);
		else if (as_json)
			json(o, &all, only);
		else
			table(o, &all, only);
	}
	families_free(&all);
	if (!o || fclose(o)) {
		free(text);
		kx_err_set(err, ENOMEM, "ps: no memory (free some)");
		return CLI_FAILED;
	}
	r = r ? r : cli_print(text, err);
	free(text);
	return r ? CLI_FAILED : 0;
}
