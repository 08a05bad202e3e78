/* SPDX-License-Identifier: Apache-2.0 */
#include "families.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../monitor/core/family.h"
#include "../util/dirs.h"
#include "../util/grow.h"
#include "../util/procstat.h"

#define ARGS_MAX 65536
#define SPARE_TRIES 100

/* A small file of /proc. Returns its length, NUL-terminated, or -errno. */
static ssize_t proc_read(int dir, const char *name, char *buf, size_t size)
{
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	size_t n = 0;
	ssize_t r;
	while (n < size - 1 && (r = read(fd, buf + n, size - 1 - n)) != 0) {
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0) {
			r = -errno;
			close(fd);
			return r;
		}
		n += (size_t)r;
	}
	close(fd);
	buf[n] = 0;
	return (ssize_t)n;
}

static bool stat_parse(const char *text, struct member *m)
{
	struct proc_stat s;
	if (proc_stat_read(text, &s) || s.n < STAT_START)
		return false;
	snprintf(m->comm, sizeof m->comm, "%.*s", s.name_len, s.name);
	m->state = s.state;
	m->ppid = (pid_t)s.f[STAT_PPID];
	m->pgrp = (pid_t)s.f[STAT_PGRP];
	m->session = (pid_t)s.f[STAT_SESSION];
	m->threads = (int)s.f[STAT_THREADS];
	m->start = s.f[STAT_START];
	return true;
}

static bool in_namespace(int proc, const char *link, const struct registry_entry *e)
{
	struct stat st;
	return !fstatat(proc, link, &st, 0) && st.st_ino == e->ipc_ino && st.st_dev == e->ipc_dev;
}

/* When the first thread of a process has ended, the namespace is to be seen at another. 1, 0, or -errno: it can't be seen. */
static int in_namespace_by_thread(int proc, const struct registry_entry *e)
{
	DIR *d = dir_open_at(proc, "task", 0);
	bool found = false;
	char link[300];
	if (!d)
		return kx_err_lacks(errno) ? -errno : 0;
	for (struct dirent *t; !found && (t = readdir(d));) {
		snprintf(link, sizeof link, "task/%s/ns/ipc", t->d_name);
		found = *t->d_name != '.' && in_namespace(proc, link, e);
	}
	closedir(d);
	return found;
}

/* Without the monitor's own (PVM_THREADS), and those that the kernel runs in the process's name, as KVM does
 * (PF_USER_WORKER in the flags). */
static int count_threads(int proc)
{
	DIR *d = dir_open_at(proc, "task", 0);
	int n = 0;
	char name[300], text[1024];
	if (!d)
		return 0;
	for (struct dirent *t; (t = readdir(d));) {
		snprintf(name, sizeof name, "task/%s/stat", t->d_name);
		if (*t->d_name == '.' || proc_read(proc, name, text, sizeof text) <= 0)
			continue;
		struct proc_stat s;
		n += !proc_stat_read(text, &s) && strncmp(s.name, PVM_THREADS, sizeof PVM_THREADS - 1) &&
		     s.n >= STAT_FLAGS && !(s.f[STAT_FLAGS] & 0x4000) && !proc_stat_ended(&s);
	}
	closedir(d);
	return n;
}

/* NULL: in none; *trouble, if it can't be seen. */
static struct family *family_of(struct families *f, int proc, const struct member *m, int *trouble)
{
	struct stat st;
	bool zombie = m->state == 'Z';
	if (!zombie && fstatat(proc, "ns/ipc", &st, 0)) {
		*trouble = kx_err_lacks(errno) ? -errno : 0;
		return NULL;
	}
	for (size_t i = 0; i < f->nr && !*trouble; i++) {
		struct registry_entry *e = &f->list[i].e;
		int in = !zombie          ? st.st_ino == e->ipc_ino && st.st_dev == e->ipc_dev
			 : m->threads > 1 ? in_namespace_by_thread(proc, e)
					  : 0;
		if (in > 0)
			return &f->list[i];
		*trouble = in;
	}
	return NULL;
}

static bool member_add(struct family *f, const struct member *m)
{
	struct member *p = kx_one_more(f->members, f->nr, sizeof *p);
	if (!p)
		return false;
	f->members = p;
	p[f->nr++] = *m;
	return true;
}

static struct member *member_by_pid(struct family *f, pid_t pid)
{
	for (size_t i = 0; i < f->nr; i++)
		if (f->members[i].pid == pid)
			return &f->members[i];
	return NULL;
}

static int add_entry(const struct registry_entry *e, void *arg)
{
	struct families *f = arg;
	struct family *p = kx_one_more(f->list, f->nr, sizeof *p);
	if (!p)
		return -ENOMEM;
	f->list = p;
	p[f->nr++] = (struct family){ .e = *e, .forks = -1 };
	return 0;
}

/* ---- details ----------------------------------------------------------------------------------------------------- */

static void sizes_read(int proc, struct member *m)
{
	char text[4096];
	unsigned long rss, pss, v, private = 0;
	m->private_kib = m->pss_kib = m->shared_kib = m->rss_kib = -1;
	if (proc_read(proc, "smaps_rollup", text, sizeof text) <= 0)
		return;
	char *p = strstr(text, "\nRss:"), *q = strstr(text, "\nPss:");
	if (!p || !q || sscanf(p, "\nRss: %lu", &rss) != 1 || sscanf(q, "\nPss: %lu", &pss) != 1)
		return;
	if ((p = strstr(text, "\nPrivate_Clean:")) && sscanf(p, "\nPrivate_Clean: %lu", &v) == 1)
	private += v;
	if ((p = strstr(text, "\nPrivate_Dirty:")) && sscanf(p, "\nPrivate_Dirty: %lu", &v) == 1)
	private += v;
	m->rss_kib = (long)rss;
	m->pss_kib = (long)pss;
	m->private_kib = (long)private;
	m->shared_kib = (long)(rss > private ? rss - private : 0);
}

static void args_read(int proc, struct member *m)
{
	char *text = malloc(ARGS_MAX);
	ssize_t n = text ? proc_read(proc, "cmdline", text, ARGS_MAX) : 0;
	if (n > 0) {
		m->args = text;
		m->args_len = (size_t)n;
	} else {
		free(text);
	}
}

static bool is_file(int proc, const char *link, uint64_t dev, uint64_t ino)
{
	struct stat st;
	return !fstatat(proc, link, &st, 0) && st.st_ino == ino && st.st_dev == dev;
}

/* fd/N of the process again, if it is that file: it may be another by now, which waits for a writer. */
static int link_open(int proc, const char *link, uint64_t dev, uint64_t ino, int flags)
{
	struct stat st;
	int fd = openat(proc, link, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return -errno;
	if (!fstat(fd, &st) && st.st_ino == ino && st.st_dev == dev)
		return fd;
	close(fd);
	return -ENOENT;
}

static int file_search(int proc, uint64_t dev, uint64_t ino, int flags)
{
	char link[300];
	DIR *d = dir_open_at(proc, "fd", 0);
	int fd = -ENOENT;
	if (!d)
		return -errno;
	for (struct dirent *e; fd < 0 && (e = readdir(d));) {
		snprintf(link, sizeof link, "fd/%s", e->d_name);
		if (*e->d_name != '.' && is_file(proc, link, dev, ino))
			fd = link_open(proc, link, dev, ino, flags);
	}
	closedir(d);
	return fd;
}

int member_file(int proc, uint64_t dev, uint64_t ino) { return file_search(proc, dev, ino, O_RDONLY); }

int member_table(const struct family *f, int proc, int flags)
{
	char link[300];
	snprintf(link, sizeof link, "fd/%d", f->e.family_fd);
	if (is_file(proc, link, f->e.family_dev, f->e.family_ino))
		return link_open(proc, link, f->e.family_dev, f->e.family_ino, flags);
	/* A member that came by `kylinx exec` has other numbers. */
	return file_search(proc, f->e.family_dev, f->e.family_ino, flags);
}

int member_socket(int pidfd, int proc, uint64_t ino)
{
	char want[64], link[64];
	DIR *d = dir_open_at(proc, "fd", 0);
	int fd = -ENOENT;
	if (!d)
		return -errno;
	snprintf(want, sizeof want, "socket:[%llu]", (unsigned long long)ino);
	for (struct dirent *e; fd == -ENOENT && (e = readdir(d));) {
		ssize_t n = readlinkat(dirfd(d), e->d_name, link, sizeof link - 1);
		link[n > 0 ? n : 0] = 0;
		struct stat st;
		if (strcmp(link, want))
			continue;
		fd = (int)syscall(438 /* pidfd_getfd */, pidfd, atoi(e->d_name), 0);
		if (fd < 0)
			fd = -errno;
		else if (fstat(fd, &st) || st.st_ino != ino || !S_ISSOCK(st.st_mode)) {
			close(fd);
			fd = -ENOENT;
		}
	}
	closedir(d);
	return fd;
}

/* A child made ahead is nobody yet. */
static void member_drop(struct family *f, pid_t pid, pid_t parent)
{
	struct member *m = member_by_pid(f, pid);
	if (m && m->ppid == parent) {
		memmove(m, m + 1, (size_t)(f->members + f->nr - (m + 1)) * sizeof *m);
		f->nr--;
	}
}

/* That of a child made ahead has its pid as soon as that runs. `tries` are left for all of a family, whose table may lie. */
static bool slot_read(int fd, unsigned i, struct family_slot *s, int *tries)
{
	for (;;) {
		if (pread(fd, s, sizeof *s, (off_t)(sizeof(struct family_table) + i * sizeof *s)) != sizeof *s)
			return false;
		if (!(s->key & FAMILY_RESERVED) || s->from_host != FAMILY_SPARE || s->birth || *tries <= 0)
			break;
		--*tries;
		nanosleep(&(struct timespec){ 0, 2000000 }, NULL);
	}
	return true;
}

/* What members say of themselves: for show, and who is nobody yet. 0, or what keeps it from being looked at. */
static int table_read(struct family *f)
{
	struct family_table t;
	char name[32];
	int fd = -ESRCH, tries = SPARE_TRIES;
	for (size_t i = 0; i < f->nr && fd < 0; i++) {
		snprintf(name, sizeof name, "/proc/%d", f->members[i].pid);
		int proc = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		fd = proc < 0 ? -errno : member_table(f, proc, O_RDONLY);
		if (proc >= 0)
			close(proc);
		if (fd < 0 && kx_err_lacks(-fd))
			return fd;
	}
	if (fd < 0)
		return 0;
	if (pread(fd, &t, sizeof t, 0) == sizeof t && t.magic == FAMILY_MAGIC &&
	    t.slot_size == sizeof(struct family_slot)) {
		f->forks = (long long)t.forks;
		for (unsigned i = 0; i < t.used && i < FAMILY_MAX; i++) {
			struct family_slot s;
			if (!slot_read(fd, i, &s, &tries))
				break;
			if (s.key & FAMILY_RESERVED && s.from_host == FAMILY_SPARE)
				member_drop(f, (pid_t)s.birth, (pid_t)(s.key & ((1u << FAMILY_PID_BITS) - 1)));
			struct member *m = member_by_pid(f, (pid_t)(s.key & ((1u << FAMILY_PID_BITS) - 1)));
			if (!m || s.key & FAMILY_RESERVED)
				continue;
			s.exe[sizeof s.exe - 1] = 0;
			m->from_host = s.from_host & ~FAMILY_DUMPED;
			snprintf(m->exe, sizeof m->exe, "%s", s.exe);
		}
	}
	close(fd);
	return 0;
}

/* ---- all ----------------------------------------------------------------------------------------------------------- */

static int scan(struct families *f, bool details)
{
	struct member *zombies = NULL;
	size_t nr_zombies = 0;
	char text[1024];
	int r = 0;
	DIR *d = opendir("/proc");
	if (!d)
		return -errno;
	for (struct dirent *e; !r && (e = readdir(d));) {
		struct member m = {
			.pid = atoi(e->d_name), .private_kib = -1, .pss_kib = -1, .shared_kib = -1, .rss_kib = -1
		};
		struct stat st;
		if (m.pid <= 0)
			continue;
		int proc = openat(dirfd(d), e->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (proc < 0) {
			r = kx_err_lacks(errno) ? -errno : 0;
			continue;
		}
		ssize_t n = proc_read(proc, "stat", text, sizeof text);
		if (n < 0 && kx_err_lacks((int)-n))
			r = (int)n;
		if (!fstat(proc, &st) && n > 0 && stat_parse(text, &m)) {
			m.uid = st.st_uid;
			struct family *in = family_of(f, proc, &m, &r);
			if (in && details) {
				m.threads = count_threads(proc);
				sizes_read(proc, &m);
				args_read(proc, &m);
			}
			if (in) {
				r = member_add(in, &m) ? 0 : -ENOMEM;
			} else if (m.state == 'Z' && !r) {
				struct member *p = kx_one_more(zombies, nr_zombies, sizeof *p);
				if (p)
					(zombies = p)[nr_zombies++] = m;
				else
					r = -ENOMEM;
			}
		}
		close(proc);
	}
	closedir(d);
	for (size_t i = 0; i < nr_zombies && !r; i++)
		for (size_t k = 0; k < f->nr; k++)
			if (member_by_pid(&f->list[k], zombies[i].ppid) ||
			    (f->list[k].e.pid == zombies[i].pid && f->list[k].e.start == zombies[i].start)) {
				r = member_add(&f->list[k], &zombies[i]) ? 0 : -ENOMEM;
				break;
			}
	free(zombies);
	return r;
}

static int by_pid(const void *a, const void *b)
{
	const struct member *x = a, *y = b;
	return x->start != y->start ? (x->start < y->start ? -1 : 1) : x->pid - y->pid;
}

static int by_age(const void *a, const void *b)
{
	const struct family *x = a, *y = b;
	return x->e.start != y->e.start ? (x->e.start < y->e.start ? -1 : 1) : x->e.pid - y->e.pid;
}

int families_read(struct families *f, bool details, struct kx_err *err)
{
	*f = (struct families){ 0 };
	int r = registry_each(add_entry, f, err);
	if (!r && f->nr)
		r = scan(f, details);
	for (size_t i = 0; i < f->nr && !r; i++)
		r = table_read(&f->list[i]); /* who is no member yet, too */
	if (r) {
		families_free(f);
		return kx_err_set(err, -r, "families: cannot be listed: %s (%s)", strerror(-r),
				  r == -ENOMEM       ? "free some memory"
				  : kx_err_lacks(-r) ? "raise `ulimit -n`"
						     : "see that /proc is mounted");
	}
	if (f->nr)
		qsort(f->list, f->nr, sizeof *f->list, by_age);
	for (size_t i = 0; i < f->nr; i++)
		if (f->list[i].nr)
			qsort(f->list[i].members, f->list[i].nr, sizeof(struct member), by_pid);
	return 0;
}

void families_free(struct families *f)
{
	for (size_t i = 0; i < f->nr; i++) {
		for (size_t k = 0; k < f->list[i].nr; k++)
			free(f->list[i].members[k].args);
		free(f->list[i].members);
	}
	free(f->list);
	*f = (struct families){ 0 };
}

struct family *families_find(struct families *f, const char *who, struct member **m, struct kx_err *err)
{
	bool number = *who && !who[strspn(who, "0123456789")];
	long pid = number ? strtol(who, NULL, 10) : 0;
	for (size_t i = 0; i < f->nr; i++) {
		struct family *in = &f->list[i];
		if (!in->nr)
			continue;
		if (number && pid <= INT32_MAX && (*m = member_by_pid(in, (pid_t)pid)))
			return in;
		if (!number && *who && !strcmp(in->e.name, who)) {
			*m = member_by_pid(in, in->e.pid);
			if (*m && (*m)->start != in->e.start)
				*m = NULL;
			return in;
		}
	}
	if (number)
		kx_err_set(err, ESRCH, "%.64s: no pVM of yours has this process id (see `kylinx ps`)", who);
	else
		kx_err_set(err, ESRCH, "%.64s: no family of yours has this name (see `kylinx ps`)", *who ? who : "''");
	return NULL;
}

int member_open(const struct family *f, const struct member *m, int *proc)
{
	char name[32], text[1024];
	struct member now = { 0 };
	int fd = (int)syscall(SYS_pidfd_open, m->pid, 0), r = -ESRCH;
	if (fd < 0)
		return -errno;
	snprintf(name, sizeof name, "/proc/%d", m->pid);
	int dir = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ssize_t n = dir < 0 ? -errno : proc_read(dir, "stat", text, sizeof text);
	int in = n <= 0 ? (int)n
			: stat_parse(text, &now) && now.start == m->start && in_namespace(dir, "ns/ipc", &f->e);
	if (!in && n > 0 && now.start == m->start && now.threads > 1)
		in = in_namespace_by_thread(dir, &f->e);
	/* The directory is of whoever has the pid now; when the process of the pidfd lives after that, it is that one. */
	if (in < 0 && kx_err_lacks(-in))
		r = in;
	else if (in > 0 && (!syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) || errno == EPERM))
		r = 0;
	if (dir >= 0 && (r || !proc))
		close(dir);
	else if (proc)
		*proc = dir;
	if (r)
		close(fd);
	return r ? r : fd;
}
