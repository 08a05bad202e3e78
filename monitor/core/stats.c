/* SPDX-License-Identifier: Apache-2.0 */
/* See stats.h. */
#ifndef _GNU_SOURCE
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../../util/now.h"
#include "../../util/quiet.h"
#include "../../util/utf8.h"
#include "admit.h"
#include "kvmstats.h"
#include "stats.h"
#include "store.h"
#include "strace.h"
#include "text.h"

/* Counters of threads. */
struct counters {
	uint64_t hcalls, exits, slow, faults;
};

static struct counters done; /* of those that ended; added to atomically */
static struct stats_family own, *family = &own;
static struct stats_sums added; /* of this process's numbers, what the family's sums hold */
static int report_fd = -1;

/* ---- A buffered writer: async-signal-safe but for snprintf of integers, which doesn't allocate ------------ */

static struct {
	int fd, error;
	size_t len;
	char buf[16384];
} out;

static void flush(void)
{
	size_t off = 0;
	ssize_t n;

	while (!out.error && off < out.len) {
		n = write_quietly(out.fd, out.buf + off, out.len - off);
		if (n > 0)
			off += (size_t)n;
		else
			out.error = n ? errno : EIO;
	}
	out.len = 0;
}

static void put_bytes(const char *s, size_t n)
{
	if (out.len + n > sizeof(out.buf))
		flush();
	memcpy(out.buf + out.len, s, n);
	out.len += n;
}

static void puts_(const char *s) { put_bytes(s, strlen(s)); }

static void put_num(const char *key, uint64_t v)
{
	char tmp[96];
	int n = snprintf(tmp, sizeof(tmp), "\"%s\":%" PRIu64, key, v);

	put_bytes(tmp, (size_t)n);
}

/* A JSON string of any bytes. */
static void put_json_str(const char *s)
{
	char text[JSON_CHAR_MAX];

	puts_("\"");
	for (const char *end = s + strlen(s); s < end;)
		put_bytes(text, (size_t)json_char(&s, end, text));
	puts_("\"");
}

/* ,"name":count for call nr, by its number when it has no name. */
static void put_call(uint64_t nr, uint64_t count)
{
	const char *name = strace_call_name(nr);
	char tmp[24];

	if (!name) {
		snprintf(tmp, sizeof(tmp), "%" PRIu64, nr);
		name = tmp;
	}
	puts_(",");
	put_num(name, count);
}

/* ---- The numbers ---------------------------------------------------------------------------------------- */

void stats_thread_done(struct thread *t)
{
	__atomic_fetch_add(&done.hcalls, t->nr_hcalls, __ATOMIC_RELAXED);
	__atomic_fetch_add(&done.exits, t->nr_exits, __ATOMIC_RELAXED);
	__atomic_fetch_add(&done.slow, t->nr_slow, __ATOMIC_RELAXED);
	__atomic_fetch_add(&done.faults, t->nr_faults, __ATOMIC_RELAXED);
	t->nr_hcalls = t->nr_exits = t->nr_slow = t->nr_faults = 0;
}

/* A stopped thread may hold thr_lock for ever: the list is then walked without it, in bounded steps. */
static struct counters sum_threads(void)
{
	bool locked = !pthread_mutex_trylock(&pvm.thr_lock);
	struct counters s = done;
	struct thread *t;
	int n = 0;

	for (t = pvm.threads; t && n < KX_AREA_MAX; t = t->next, n++) {
		s.hcalls += t->nr_hcalls;
		s.exits += t->nr_exits;
		s.slow += t->nr_slow;
		s.faults += t->nr_faults;
	}
	if (locked)
		pthread_mutex_unlock(&pvm.thr_lock);
	return s;
}

/* Call fn for each number: what this process has counted, what of it was added before, and the family's sum. */
static void each_number(void (*fn)(uint64_t now, uint64_t *before, uint64_t *sum))
{
	struct stats_sums *a = &added, *f = &family->sums;
	struct counters c = sum_threads();
	size_t i;

	fn(pvm.nr_polled, &a->polled, &f->polled);
	fn(pvm.nr_poll_failed, &a->poll_failed, &f->poll_failed);
	fn(c.hcalls, &a->hcalls, &f->hcalls);
	fn(c.exits, &a->exits, &f->exits);
	fn(c.slow, &a->slow, &f->slow);
	fn(c.faults, &a->faults, &f->faults);
	fn(pvm.shared ? *(volatile uint64_t *)&pvm.shared->local_calls : 0, &a->local_calls, &f->local_calls);
	fn(pvm.shared ? *(volatile uint64_t *)&pvm.shared->batched : 0, &a->batched, &f->batched);
	fn(admit_refused, &a->policy_refused, &f->policy_refused);
	fn(admit_warned, &a->policy_warned, &f->policy_warned);
	fn(admit_copied, &a->copied, &f->copied);
	fn(admit_hashed, &a->hashed, &f->hashed);
	fn(policy_signatures, &a->signatures, &f->signatures);
	fn(text_prepared, &a->prepared, &f->prepared);
	fn(text_found, &a->found, &f->found);
	fn(store_stored, &a->stored, &f->stored);
	fn(pvm.nr_forks, &a->forks, &f->forks);
	fn(pvm.nr_forks_ahead, &a->forks_ahead, &f->forks_ahead);
	fn(pvm.nr_whole, &a->whole, &f->whole);
	fn(pvm.nr_enosys, &a->enosys, &f->enosys);
	for (i = 0; i < STATS_NR_HCALLS; i++)
		fn(pvm.hcall_count[i], &a->hcall_count[i], &f->hcall_count[i]);
	for (i = 0; i < STATS_NR_ENOSYS; i++)
		fn(pvm.enosys_count[i], &a->enosys_count[i], &f->enosys_count[i]);
}

/* Most are 0: their pages stay untouched. The guest may have set its own back. */
static void add_number(uint64_t now, uint64_t *before, uint64_t *sum)
{
	if (now == *before)
		return;
	if (now > *before)
		__atomic_fetch_add(sum, now - *before, __ATOMIC_RELAXED);
	*before = now;
}

static void forget_number(uint64_t now, uint64_t *before, uint64_t *sum)
{
	(void)sum;
	if (now != *before)
		*before = now;
}

void stats_share(struct stats_family *f) { family = f; }
void stats_begin(void) { __atomic_fetch_add(&family->processes, 1, __ATOMIC_RELAXED); }
void stats_exec(void) { __atomic_fetch_add(&family->execs, 1, __ATOMIC_RELAXED); }
void stats_flush(bool vcpus_stand)
{
	each_number(add_number);
	if (vcpus_stand)
		add_number(kvmstats_page_faults(), &added.page_faults, &family->sums.page_faults);
}

void stats_end(bool vcpus_stand)
{
	stats_flush(vcpus_stand);
	__atomic_fetch_add(&family->ended, 1, __ATOMIC_RELAXED);
}

void stats_fork_child(void)
{
	each_number(forget_number);
	added.page_faults = 0; /* its VM is a new one */
	stats_begin();
	if (report_fd >= 0)
		close(report_fd); /* who reads the report waits for the first process alone */
	report_fd = -1;
}

static void put_calls(const char *key, uint64_t total, const uint64_t *count, size_t n)
{
	uint64_t sum = 0;
	size_t i;

	for (i = 0; i < n; i++)
		sum += count[i];
	puts_(",");
	put_json_str(key);
	puts_(":{");
	/* The total of a process is counted by thread, and added on its own: it may lag. */
	put_num("total", total > sum ? total : sum);
	for (i = 0; i < n; i++)
		if (count[i])
			put_call(i, count[i]);
	puts_("}");
}

static void put_member(const char *key, uint64_t v)
{
	puts_(",");
	put_num(key, v);
}

static void put_boot(void)
{
	static const char *const names[PVM_BOOT_STEPS] = { "prepare", "machine", "jail", "load", "filter" };
	uint64_t before = pvm.start_ns;

	put_member("start_ns", pvm.start_ns);
	if (!pvm.boot_ns[PVM_STARTED])
		return;
	puts_(",\"boot_ns\":{");
	for (int i = 0; i < PVM_BOOT_STEPS; before = pvm.boot_ns[i++]) {
		if (i)
			puts_(",");
		put_num(names[i], pvm.boot_ns[i] - before);
	}
	puts_("}");
}

static void put_report(void)
{
	static struct stats_family f;
	struct rusage ru;
	uint64_t ns;

	memcpy(&f, family, sizeof f); /* others may still be adding */
	ns = now_ns();
	memset(&ru, 0, sizeof(ru));
	getrusage(RUSAGE_SELF, &ru);
	puts_("{");
	put_num("pid", (uint64_t)pvm.pid);
	puts_(",\"program\":");
	put_json_str(pvm.exe[0] ? pvm.exe : pvm.cfg && pvm.cfg->program ? pvm.cfg->program : "");
	if (pvm.cfg && pvm.cfg->name) {
		puts_(",\"name\":");
		put_json_str(pvm.cfg->name);
	}
	put_member("wall_ns", ns - pvm.start_ns);
	put_boot();
	put_member("vcpus", (uint64_t)pvm.next_index);
	put_calls("hypercalls", f.sums.hcalls, f.sums.hcall_count, STATS_NR_HCALLS);
	put_member("exits", f.sums.exits);
	put_member("polled", f.sums.polled);
	put_member("poll_failed", f.sums.poll_failed);
	put_member("slow_syscalls", f.sums.slow);
	put_member("local_calls", f.sums.local_calls);
	put_member("batched", f.sums.batched);
	put_member("faults", f.sums.faults);
	put_member("page_faults", f.sums.page_faults);
	put_member("forks", f.sums.forks);
	put_member("forks_ahead", f.sums.forks_ahead);
	put_member("made_whole", f.sums.whole);
	put_member("execs", f.execs);
	put_calls("enosys", f.sums.enosys, f.sums.enosys_count, STATS_NR_ENOSYS);
	put_member("processes", f.processes);
	put_member("uncounted", f.processes > f.ended ? f.processes - f.ended : 0);
	put_member("memory_slots", pvm.nr_slots);
	put_member("flushes", pvm.nr_flushes);
	puts_(",\"syscall_sites\":{");
	put_num("found", pvm.nr_sites_found);
	put_member("patched", pvm.nr_sites);
	puts_("},\"cpuid\":{");
	put_num("found", pvm.nr_cpuid_found);
	put_member("patched", pvm.nr_cpuid_sites);
	put_member("answered", pvm.shared ? *(volatile uint64_t *)&pvm.shared->cpuids : 0);
	put_member("trapped", pvm.shared ? *(volatile uint64_t *)&pvm.shared->cpuids_real : 0);
	puts_("}");
	puts_(",\"libraries\":{");
	put_num("copied", f.sums.copied);
	put_member("hashed", f.sums.hashed);
	put_member("signatures", f.sums.signatures);
	put_member("prepared", f.sums.prepared);
	put_member("found", f.sums.found);
	put_member("stored", f.sums.stored);
	puts_("}");
	puts_(",\"policy\":{");
	put_num("refused", f.sums.policy_refused);
	put_member("warned", f.sums.policy_warned);
	puts_("}");
	put_member("max_rss_kib", (uint64_t)ru.ru_maxrss);
	puts_("}\n");
}

static int stats_open(const char *file)
{
	return open(file, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
}

int stats_init(const char *file)
{
	int fd = file ? stats_open(file) : fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);

	if (fd < 0)
		return -errno;
	return fd_keep(&report_fd, fd);
}

int stats_fd(void) { return report_fd; }
void stats_adopt(int fd)
{
	if (fd >= 0)
		fd_keep(&report_fd, fd);
}

void stats_write(const char *file)
{
	int fd = report_fd >= 0 ? report_fd : file ? stats_open(file) : STDERR_FILENO;

	if (fd < 0)
		return;
	out.fd = fd;
	out.error = 0;
	out.len = 0;
	put_report();
	flush();
	if (out.error && out.error != EPIPE) /* whose reader has gone knows */
		kx_log(KX_LOG_WARN, "stats", "the statistics cannot be written: %s", strerror(out.error));
	if (fd != report_fd && fd != STDERR_FILENO)
		close(fd);
}
