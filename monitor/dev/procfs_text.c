/* SPDX-License-Identifier: Apache-2.0 */
/* Files of procfs that are made, and those of the host that the options change. */
#include "procfs_priv.h"
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include "../core/gmem.h"

/* A range of guest memory; what can't be read is left out, as by the kernel. */
static void put_guest(struct out *t, uint64_t start, uint64_t end)
{
	if (end <= start || !gva_ok(start, end - start))
		return;
	while (start < end) {
		size_t n = end - start > 65536 ? 65536 : end - start;
		if (!out_room(t, n) || guest_read(t->p + t->len, start, n))
			return;
		t->len += n;
		start += n;
	}
}

/* As the kernel: a program that wrote over the NUL at the end of its arguments goes on into its environment. */
static void gen_cmdline(struct out *t)
{
	put_guest(t, pvm.arg_start, pvm.arg_end);
	if (!t->len || !t->p[t->len - 1])
		return;
	if (pvm.env_start == pvm.arg_end)
		put_guest(t, pvm.env_start, pvm.env_end);
	size_t n = strnlen(t->p, t->len);
	t->len = n < t->len ? n + 1 : n;
}

int gen_limits(struct out *t, const char *host)
{
	struct out in = { 0 };
	int r = host_read(host, &in);
	if (r < 0)
		return r;
	for (char *p = in.p, *eol; (eol = strchr(p, '\n')); p = eol + 1) {
		unsigned long long soft, hard;
		if (sscanf(p, "Max open files %llu %llu", &soft, &hard) == 2 && hard > pvm.fd_max)
			out_printf(t, "%-25s %-20llu %-20u %-10s\n", "Max open files", soft, pvm.fd_max, "files");
		else
			out_add(t, p, (size_t)(eol + 1 - p));
	}
	out_free(&in);
	return 0;
}

/* The view's mounts; its /proc looks as it should. */
int gen_mounts(struct out *t, const char *host)
{
	static const char proc[] = "proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0\n";
	struct out in = { 0 };
	int r = host_read(host, &in);
	if (r < 0)
		return r;
	for (char *p = in.p, *eol; (eol = strchr(p, '\n')); p = eol + 1) {
		char *dir = memchr(p, ' ', (size_t)(eol - p));
		if (!dir || strncmp(dir, " /proc ", 7))
			out_add(t, p, (size_t)(eol + 1 - p));
	}
	out_add(t, proc, sizeof proc - 1);
	out_free(&in);
	return 0;
}

static uint64_t private_bytes(void)
{
	struct vm_sizes s = vm_sizes();
	return s.data + s.stack;
}

/* A program that may have less than the host has shall see less. */
static int gen_meminfo(struct out *t)
{
	struct out in = { 0 };
	int r = host_read("meminfo", &in);
	if (r < 0)
		return r;
	uint64_t limit = pvm.cfg->memory >> 10, used = private_bytes() >> 10, total = 0;
	for (char *p = in.p, *eol; (eol = strchr(p, '\n')); p = eol + 1) {
		const char *colon = memchr(p, ':', (size_t)(eol - p));
		uint64_t v = colon ? strtoull(colon + 1, NULL, 10) : 0, max = limit;
		if (key_is(p, "MemTotal:"))
			total = v;
		else if (key_is(p, "MemFree:") || key_is(p, "MemAvailable:"))
			max = used < limit ? limit - used : 0;
		else if (key_is(p, "SwapTotal:") || key_is(p, "SwapFree:") || key_is(p, "SwapCached:"))
			max = 0;
		bool kb = colon && !memcmp(eol - 3, " kB", 3) && !key_is(p, "Vmalloc") && !key_is(p, "DirectMap") &&
			  !key_is(p, "Hugepagesize");
		if (kb && total > limit && v > max)
			out_printf(t, "%-16.*s%8" PRIu64 " kB\n", (int)(colon + 1 - p), p, max);
		else
			out_add(t, p, (size_t)(eol + 1 - p));
	}
	out_free(&in);
	return 0;
}

/* What is told of one processor: from its own line on, or that line alone. */
static bool cpu_is_shown(const char *number)
{
	char *end;
	unsigned long n = strtoul(number, &end, 10);
	return end != number && n < CPU_SETSIZE && CPU_ISSET(n, &pvm.cpus);
}

static int gen_cpuinfo(struct out *t)
{
	struct out in = { 0 };
	bool shown = true;
	int r = host_read("cpuinfo", &in);
	for (char *p = in.p, *eol; r >= 0 && (eol = strchr(p, '\n')); p = eol + 1) {
		char *colon = memchr(p, ':', (size_t)(eol - p));
		if (key_is(p, "processor\t") && colon)
			shown = cpu_is_shown(colon + 2);
		if (shown)
			out_add(t, p, (size_t)(eol + 1 - p));
	}
	out_free(&in);
	return r < 0 ? r : 0;
}

#define STAT_COLUMNS 10

/* The line of all processors is the sum of those that are shown. */
static int gen_cpu_stat(struct out *t)
{
	struct out in = { 0 }, lines = { 0 }, rest = { 0 };
	uint64_t sum[STAT_COLUMNS] = { 0 };
	int r = host_read("stat", &in);
	for (char *p = in.p, *eol; r >= 0 && (eol = strchr(p, '\n')); p = eol + 1) {
		if (!key_is(p, "cpu")) {
			out_add(&rest, p, (size_t)(eol + 1 - p));
		} else if (p[3] != ' ' && cpu_is_shown(p + 3)) {
			char *at = strchr(p, ' ');
			for (int i = 0; i < STAT_COLUMNS && at && at < eol; i++)
				sum[i] += strtoull(at, &at, 10);
			out_add(&lines, p, (size_t)(eol + 1 - p));
		}
	}
	if (r >= 0) {
		out_printf(t, "cpu ");
		for (int i = 0; i < STAT_COLUMNS; i++)
			out_printf(t, " %" PRIu64, sum[i]);
		out_printf(t, "\n");
		out_add(t, lines.p ? lines.p : "", lines.len);
		out_add(t, rest.p ? rest.p : "", rest.len);
	}
	out_free(&in);
	out_free(&lines);
	out_free(&rest);
	return r < 0 ? r : 0;
}

/* Nobody may trace: so programs know that ptrace and process_vm_readv are not to be had (Open MPI, UCX). */
static int gen_ptrace_scope(struct out *t)
{
	out_printf(t, "3\n");
	return 0;
}

struct machine_file {
	const char *name;
	int (*gen)(struct out *t);
	bool cpus; /* by --cpus, else by --memory */
};

static const struct machine_file ptrace_scope = { PROC_PTRACE_SCOPE, gen_ptrace_scope, false };

/* Files about the machine that the options change. */
static const struct machine_file machine_files[] = { { "meminfo", gen_meminfo, false },
						     { "cpuinfo", gen_cpuinfo, true },
						     { "stat", gen_cpu_stat, true } };

/* NULL: as the host has it. */
static const struct machine_file *changed_file(const struct node *n)
{
	if (n->kind == F_SYS && !strcmp(n->name, ptrace_scope.name))
		return &ptrace_scope;
	if (n->kind != F_GLOBAL || !pvm.cfg)
		return NULL;
	for (unsigned i = 0; i < sizeof machine_files / sizeof *machine_files; i++)
		if (!strcmp(n->name, machine_files[i].name))
			return (machine_files[i].cpus ? pvm.cfg->cpus != 0 : pvm.cfg->memory != 0) ? &machine_files[i]
												   : NULL;
	return NULL;
}

int proc_generate(const struct node *n, struct out *t)
{
	char host[512];
	proc_host_path(n, host);
	if (n->kind != F_PID)
		return changed_file(n) ? changed_file(n)->gen(t) : host_read(host, t);
	if (n->pid)
		return member_generate(n, host, t);
	switch (n->file->gen) {
	case G_MAPS:
	case G_SMAPS:
	case G_ROLLUP:
		return gen_maps(t, n->file->gen);
	case G_STATUS:
		return gen_status(t, host);
	case G_STAT:
		return gen_stat(t, host);
	case G_STATM:
		return gen_statm(t, host);
	case G_CMDLINE:
		gen_cmdline(t);
		return 0;
	case G_ENVIRON:
		put_guest(t, pvm.env_start, pvm.env_end);
		return 0;
	case G_AUXV:
		out_add(t, pvm.auxv, pvm.auxv_len < sizeof pvm.auxv ? pvm.auxv_len : sizeof pvm.auxv);
		return 0;
	case G_LIMITS:
		return gen_limits(t, host);
	case G_MOUNTS:
		return gen_mounts(t, host);
	default:
		return host_read(host, t);
	}
}

bool proc_is_changed(const struct node *n) { return changed_file(n) != NULL; }
