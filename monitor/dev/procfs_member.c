/* SPDX-License-Identifier: Apache-2.0 */
#include "procfs_priv.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "../../util/procstat.h"

/* ---- other members ---------------------------------------------------------------------------------------------
 *
 * What the host's procfs says of their monitors, without what is the monitors': addresses, the reservation of guest
 * memory in sizes, threads of the kernel's. The size of a member's memory is not known here; told is what it can be at
 * least.
 */

#define USER_WORKER 0x4000 /* PF_USER_WORKER in the flags of stat: KVM's */

bool task_is_shown(pid_t pid, pid_t tid)
{
	struct out in = { 0 };
	char rel[64];
	snprintf(rel, sizeof rel, "%d/task/%d/stat", pid, tid);
	bool shown = false;
	if (host_read(rel, &in) >= 0) {
		struct proc_stat s;
		shown = !proc_stat_read(in.p, &s) && s.n >= STAT_FLAGS &&
			strncmp(s.name, PVM_THREADS, sizeof PVM_THREADS - 1) && !(s.f[STAT_FLAGS] & USER_WORKER);
	}
	out_free(&in);
	return shown;
}

/* Append its threads, each with its NUL; returns their number. */
int member_tasks(pid_t pid, struct out *t)
{
	struct out all = { 0 };
	char rel[64];
	int n = 0;
	snprintf(rel, sizeof rel, "%d/task", pid);
	proc_enter();
	int r = list_locked(pvm.proc_fd, rel, &all);
	proc_leave();
	for (size_t i = 0; !r && i < all.len; i += strlen(all.p + i) + 1)
		if (task_is_shown(pid, atoi(all.p + i))) {
			n++;
			if (t)
				out_add(t, all.p + i, strlen(all.p + i) + 1);
		}
	out_free(&all);
	return n;
}

static uint64_t line_kb(const char *text, const char *key)
{
	const char *p = strstr(text, key);
	return p ? strtoull(p + strlen(key), NULL, 10) : 0;
}

/* Kilobytes of private writable memory that a monitor has beside the program's: those of this one. */
static uint64_t own_overhead(void)
{
	static uint64_t known;
	uint64_t kb = __atomic_load_n(&known, __ATOMIC_RELAXED);
	struct out in = { 0 };
	if (!kb && host_read("self/status", &in) >= 0) {
		struct vm_sizes s = vm_sizes();
		uint64_t all = line_kb(in.p, "\nVmData:") + line_kb(in.p, "\nVmStk:"), guest = (s.data + s.stack) >> 10;
		kb = all > guest ? all - guest : 1;
		__atomic_store_n(&known, kb, __ATOMIC_RELAXED);
	}
	out_free(&in);
	return kb;
}

static uint64_t less(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

static int member_status(struct out *t, const struct node *n, const char *host)
{
	struct out in = { 0 };
	int r = host_read(host, &in);
	if (r < 0)
		return r;
	uint64_t rss = line_kb(in.p, "\nVmRSS:"), file = line_kb(in.p, "\nRssFile:") + line_kb(in.p, "\nRssShmem:");
	uint64_t data = line_kb(in.p, "\nVmData:") + line_kb(in.p, "\nVmStk:"), hwm = line_kb(in.p, "\nVmHWM:");
	data = less(data, own_overhead());
	uint64_t size = data + file > rss ? data + file : rss;
	for (char *p = in.p, *eol; (eol = strchr(p, '\n')); p = eol + 1) {
		if (key_is(p, "VmPeak:"))
			out_printf(t, "VmPeak:\t%8" PRIu64 " kB\n", size > hwm ? size : hwm);
		else if (key_is(p, "VmSize:"))
			out_printf(t, "VmSize:\t%8" PRIu64 " kB\n", size);
		else if (key_is(p, "VmData:"))
			out_printf(t, "VmData:\t%8" PRIu64 " kB\n", less(data, line_kb(in.p, "\nVmStk:")));
		else if (key_is(p, "VmExe:"))
			out_printf(t, "VmExe:\t%8d kB\n", 0);
		else if (key_is(p, "VmLib:"))
			out_printf(t, "VmLib:\t%8" PRIu64 " kB\n", file);
		else if (key_is(p, "FDSize:"))
			out_printf(t, "FDSize:\t256\n");
		else if (key_is(p, "Threads:"))
			out_printf(t, "Threads:\t%d\n", member_tasks(n->pid, NULL));
		else if (key_is(p, "NoNewPrivs:")) /* the monitor has it always */
			out_printf(t, "NoNewPrivs:\t%d\n", pvm.no_new_privs);
		else if (key_is(p, "SigBlk:") || key_is(p, "SigCgt:")) /* the host has the monitor's */
			out_printf(t, "%.7s\t%016x\n", p, 0);
		else
			out_add(t, p, (size_t)(eol + 1 - p));
	}
	out_free(&in);
	return 0;
}

/* Pages: what statm says of the monitor, and the size. */
static int member_pages(const struct node *n, uint64_t *size, uint64_t *rss, uint64_t *shared, uint64_t *data)
{
	struct out in = { 0 };
	char rel[64];
	snprintf(rel, sizeof rel, "%d/statm", n->pid);
	int r = host_read(rel, &in);
	*rss = *shared = *data = 0;
	if (r >= 0 && sscanf(in.p, "%*u %" SCNu64 " %" SCNu64 " %*u %*u %" SCNu64, rss, shared, data) != 3)
		r = -EIO;
	out_free(&in);
	*data = less(*data, own_overhead() / (PAGE >> 10));
	*size = *data + *shared > *rss ? *data + *shared : *rss;
	return r;
}

static int member_stat(struct out *t, const struct node *n, const char *host)
{
	struct out in = { 0 };
	uint64_t size, rss, shared, data;
	int r = member_pages(n, &size, &rss, &shared, &data), field = 3;
	if (r < 0 || (r = host_read(host, &in)) < 0)
		return r;
	char *p = strrchr(in.p, ')'), *save;
	if (!p) {
		out_free(&in);
		return -EIO;
	}
	out_add(t, in.p, (size_t)(p + 1 - in.p));
	for (char *tok = strtok_r(p + 1, " \n", &save); tok; tok = strtok_r(NULL, " \n", &save), field++) {
		if (field == 20)
			out_printf(t, " %d", member_tasks(n->pid, NULL));
		else if (field == 23)
			out_printf(t, " %" PRIu64, size * PAGE);
		else if ((field >= 26 && field <= 30) || field == 32 || field == 34 || field == 35 ||
			 (field >= 45 && field <= 51))
			out_add(t, " 0", 2);
		else
			out_printf(t, " %s", tok);
	}
	out_add(t, "\n", 1);
	out_free(&in);
	return 0;
}

int member_generate(const struct node *n, const char *host, struct out *t)
{
	uint64_t size, rss, shared, data;
	int r;
	switch (n->file->gen) {
	case G_STATUS:
		return member_status(t, n, host);
	case G_STAT:
		return member_stat(t, n, host);
	case G_STATM:
		r = member_pages(n, &size, &rss, &shared, &data);
		out_printf(t, "%" PRIu64 " %" PRIu64 " %" PRIu64 " 0 0 %" PRIu64 " 0\n", size, rss, shared, data);
		return r < 0 ? r : 0;
	case G_CMDLINE:
	case G_ENVIRON: /* whether it may be read is the kernel's to say */
		return pvm.args_shown ? host_read(host, t) : 0;
	case G_LIMITS:
		return gen_limits(t, host);
	case G_MOUNTS: /* all have the same */
		return gen_mounts(t, host);
	default:
		return host_read(host, t);
	}
}
