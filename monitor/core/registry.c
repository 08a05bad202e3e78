/* SPDX-License-Identifier: Apache-2.0 */
#include "registry.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../util/dirs.h"
#include "../../util/log.h"
#include "../../util/procstat.h"
#include "../../util/quiet.h"
#include "admit.h"
#include "jail.h"
#include "update.h"

#define SWEEP_MAX 16 /* files that a start looks at for ended families */
#define LOCK_TRIES 200
#define TEXT_MAX 16384
#define FORMAT 1

/* ---- the directory ----------------------------------------------------------------------------------------------- */

static int dir_path(char out[PATH_MAX])
{
	const char *run = getenv("XDG_RUNTIME_DIR");
	struct stat st;
	uid_t uid = geteuid();
	if (!uid)
		return snprintf(out, PATH_MAX, "/run/kylinx");
	if (run && *run == '/' && strlen(run) < PATH_MAX - 16 && !stat(run, &st) && S_ISDIR(st.st_mode) &&
	    st.st_uid == uid)
		return snprintf(out, PATH_MAX, "%s/kylinx", run);
	return snprintf(out, PATH_MAX, "/tmp/kylinx-%u", uid);
}

/* A descriptor of the directory or -errno; -EEXIST: it is there, but not this user's alone. */
static int dir_open(bool make, char path[PATH_MAX])
{
	struct stat st;
	dir_path(path);
	if (make && mkdir(path, 0700) && errno != EEXIST)
		return -errno;
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return errno == ELOOP || errno == ENOTDIR ? -EEXIST : -errno;
	if (fstat(fd, &st) || st.st_uid != geteuid() || st.st_mode & 022) {
		close(fd);
		return -EEXIST;
	}
	return fd;
}

/* Nobody holds it for long; one that is stopped meanwhile must not stop all others. */
static bool dir_lock(int dir)
{
	for (int i = 0; i < LOCK_TRIES; i++) {
		if (!flock(dir, LOCK_EX | LOCK_NB))
			return true;
		if (errno != EWOULDBLOCK && errno != EINTR)
			return false;
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
	}
	return false;
}

/* PID-START or PID-START.NAME. *name is in s, or empty. */
static bool file_parse(const char *s, pid_t *pid, uint64_t *start, const char **name)
{
	char *p;
	if (*s < '1' || *s > '9')
		return false;
	unsigned long n = strtoul(s, &p, 10);
	if (*p != '-' || n > INT32_MAX)
		return false;
	*pid = (pid_t)n;
	*start = strtoull(p + 1, &p, 10);
	*name = *p == '.' ? p + 1 : "";
	return (!*p || *p == '.') && strlen(*name) <= REGISTRY_NAME_MAX;
}

/* A file of a family's, or -errno; -ENOENT: it is none. */
static int file_open(int dir, const char *file)
{
	int fd = openat(dir, file, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
	if (fd >= 0)
		return fd;
	return kx_err_lacks(errno) ? -errno : -ENOENT;
}

/* Under the lock: the file if somebody holds it; else it is removed, and -ENOENT. Another -errno: that can't be told. */
static int held_open(int dir, const char *file)
{
	int fd = file_open(dir, file);
	if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB))
		return fd;
	unlinkat(dir, file, 0);
	close(fd);
	return -ENOENT;
}

/* ---- a family of one's own ----------------------------------------------------------------------------------------- */

static int write_fd = -1;
static char own_path[PATH_MAX + 128]; /* of its file */

/* Under the lock. 0, or the pid of the family that has this name, or -errno: that can't be told. Sweeps some files. */
static pid_t name_taken(int dir, const char *name)
{
	DIR *d = dir_open_at(dir, ".", 0);
	struct dirent *e;
	int left = SWEEP_MAX, fd;
	pid_t pid, found = 0;
	uint64_t start;
	const char *other;
	if (!d)
		return -errno;
	while ((e = readdir(d))) {
		if (!file_parse(e->d_name, &pid, &start, &other))
			continue;
		bool same = name && !strcmp(name, other);
		if (!same && left-- <= 0) {
			if (!name)
				break;
			continue;
		}
		if ((fd = held_open(dir, e->d_name)) == -ENOENT)
			continue;
		if (fd >= 0)
			close(fd);
		if (same)
			found = pid;
	}
	closedir(d);
	return found;
}

/* Under the lock. A family without a name starts in any case. */
static int name_check(int dir, const char *path, const char *name, struct kx_err *err)
{
	pid_t other = name_taken(dir, name);
	if (!name || !other)
		return 0;
	if (other < 0)
		return kx_err_host(err, -other, "--name %s: %s", name, path);
	return kx_err_set(err, EEXIST,
			  "--name %s: the family of process %d has it (choose another name, or end that family)", name,
			  other);
}

static uint64_t own_start(void)
{
	char text[1024];
	int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	struct proc_stat s;
	return proc_stat_read(text, &s) ? 0 : s.f[STAT_START];
}

__attribute__((format(printf, 1, 2))) static void put(const char *fmt, ...)
{
	char text[PATH_MAX + 64];
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	/* A short write leaves a file without its last line, which nobody reads. */
	if (n > 0 && n < (int)sizeof text && write_quietly(write_fd, text, (size_t)n) != n)
		kx_log(KX_LOG_INFO, "registry", "cannot write: %s", strerror(errno));
}

/* One write for all. */
static void put_limits(void)
{
	char text[16 * 64];
	size_t n = 0;
	for (int i = 0; i < 16; i++) {
		struct rlimit l;
		if (!getrlimit(i, &l))
			n += (size_t)snprintf(text + n, sizeof text - n, "limit %d %llu %llu\n", i,
					      (unsigned long long)l.rlim_cur, (unsigned long long)l.rlim_max);
	}
	if (n)
		put("%s", text);
}

int registry_add(const struct kx_config *cfg, struct kx_err *err)
{
	char path[PATH_MAX], file[128], program[PATH_MAX];
	int dir = dir_open(true, path), r = 0;
	if (dir == -EEXIST)
		kx_log(KX_LOG_WARN, "registry",
		       "%s is not a directory of this user's alone: not used (remove it, or set XDG_RUNTIME_DIR)",
		       path);
	else if (dir < 0)
		kx_log(KX_LOG_INFO, "registry", "%s: %s: the family is not listed", path, strerror(-dir));
	if (dir < 0)
		return 0;
	if (!dir_lock(dir)) {
		if (cfg->name)
			r = kx_err_set(err, EAGAIN, "--name %s: %s is locked by another process (try again)", cfg->name,
				       path);
		else
			kx_log(KX_LOG_WARN, "registry", "%s is locked by another process: the family is not listed",
			       path);
		goto out;
	}
	if ((r = name_check(dir, path, cfg->name, err)))
		goto out;
	snprintf(file, sizeof file, "%d-%" PRIu64 "%s%s", pvm.pid, own_start(), cfg->name ? "." : "",
		 cfg->name ? cfg->name : "");
	write_fd = openat(dir, file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	int fd = write_fd < 0 ? -1 : openat(dir, file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || flock(fd, LOCK_SH | LOCK_NB) || fd_keep(&pvm.registry_fd, fd)) {
		kx_log(KX_LOG_INFO, "registry", "%s/%s: %s: the family is not listed", path, file, strerror(errno));
		unlinkat(dir, file, 0);
		if (write_fd >= 0)
			close(write_fd);
		write_fd = pvm.registry_fd = -1;
		goto out;
	}
	snprintf(own_path, sizeof own_path, "%s/%s", path, file);
	snprintf(program, sizeof program, "%s", cfg->program);
	for (char *c = program; *c; c++)
		if (*c == '\n')
			*c = '?';
	put("kylinx %d\nprogram %s\nmemory %" PRIu64 "\ncpus %d\nlog %d\nnet %s\n", FORMAT, program, cfg->memory,
	    cfg->cpus, kx_log_level_find(cfg->log_level),
	    cfg->net_private ? "private"
	    : cfg->net_none  ? "none"
			     : "host");
	for (int i = 0; i < cfg->nr_publish; i++)
		put("publish %s\n", cfg->publish[i].text);
	put_limits();
out:
	close(dir);
	return r;
}

void registry_enter(void)
{
	struct stat st, was;
	if (!*own_path || pvm.registry_fd < 0)
		return;
	int old = pvm.registry_fd, fd = jail_shut(own_path) ? -1 : open(own_path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	/* There is no moment at which nobody holds the lock. */
	bool same = fd >= 0 && !fstat(fd, &st) && !fstat(old, &was) && st.st_ino == was.st_ino &&
		    st.st_dev == was.st_dev && !flock(fd, LOCK_SH | LOCK_NB);
	int e = errno;
	if (same && !fd_keep(&pvm.registry_fd, fd)) {
		close(old);
		return;
	}
	if (fd >= 0 && !same)
		close(fd);
	kx_log(KX_LOG_INFO, "registry", "%s: %s: it stays writable", own_path, strerror(e));
}

void registry_complete(void)
{
	struct stat ipc, family, update[2], policy;
	if (write_fd < 0)
		return;
	if (update_fd(1) >= 0 && !fstat(update_fd(0), &update[0]) && !fstat(update_fd(1), &update[1]))
		put("update %" PRIu64 " %" PRIu64 "\nbuild %s %u %u\n", (uint64_t)update[0].st_ino,
		    (uint64_t)update[1].st_ino, build_name(), UPDATE_PROTOCOL, UPDATE_OLDEST);
	if (admit_fd() >= 0 && !fstat(admit_fd(), &policy))
		put("policy %" PRIu64 " %" PRIu64 "\n", (uint64_t)policy.st_dev, (uint64_t)policy.st_ino);
	if (!fstatat(pvm.proc_fd, "self/ns/ipc", &ipc, 0) && !fstat(pvm.family_fd, &family))
		put("proc %d\nfamily %d %" PRIu64 " %" PRIu64 "\nipc %" PRIu64 " %" PRIu64 "\nend\n", pvm.proc_fd,
		    pvm.family_fd, (uint64_t)family.st_dev, (uint64_t)family.st_ino, (uint64_t)ipc.st_dev,
		    (uint64_t)ipc.st_ino);
	close(write_fd);
	write_fd = -1;
}

/* ---- those of others ------------------------------------------------------------------------------------------------ */

static void entry_publish(struct registry_entry *e, const char *text)
{
	size_t n = strlen(e->publish);
	if (n + strlen(text) + 2 <= sizeof e->publish)
		sprintf(e->publish + n, "%s%s", n ? " " : "", text);
}

static bool entry_line(struct registry_entry *e, const char *line)
{
	unsigned long long a, b;
	int i;
	if (sscanf(line, "kylinx %d", &i) == 1)
		return i == FORMAT;
	if (!strncmp(line, "program ", 8))
		return snprintf(e->program, sizeof e->program, "%s", line + 8) >= 0;
	if (sscanf(line, "memory %llu", &a) == 1)
		e->memory = a;
	else if (sscanf(line, "limit %d %llu %llu", &i, &a, &b) == 3 && i >= 0 && i < 16)
		e->limits[i] = (struct rlimit){ a, b };
	else if (sscanf(line, "family %d %llu %llu", &e->family_fd, &a, &b) == 3)
		e->family_dev = a, e->family_ino = b;
	else if (sscanf(line, "ipc %llu %llu", &a, &b) == 2)
		e->ipc_dev = a, e->ipc_ino = b;
	else if (sscanf(line, "policy %llu %llu", &a, &b) == 2)
		e->policy_dev = a, e->policy_ino = b;
	else if (sscanf(line, "update %llu %llu", &a, &b) == 2)
		e->update_ino[0] = a, e->update_ino[1] = b;
	else if (sscanf(line, "build %47s %u %u", e->build, &e->update_protocol, &e->update_oldest) >= 1)
		;
	else if (!strcmp(line, "net none"))
		e->net_none = true;
	else if (!strcmp(line, "net private"))
		e->net_private = true;
	else if (!strncmp(line, "publish ", 8))
		entry_publish(e, line + 8);
	else if (sscanf(line, "cpus %d", &e->cpus) != 1 && sscanf(line, "log %d", &e->log_level) != 1)
		sscanf(line, "proc %d", &e->proc_fd);
	return true;
}

/* False when it is not complete: just starting, or of another version. */
static bool entry_read(int fd, struct registry_entry *e)
{
	static char text[TEXT_MAX];
	ssize_t n = pread(fd, text, sizeof text - 1, 0);
	bool end = false;
	text[n > 0 ? n : 0] = 0;
	e->family_fd = e->proc_fd = -1;
	for (int i = 0; i < 16; i++)
		e->limits[i] = (struct rlimit){ RLIM_INFINITY, RLIM_INFINITY };
	for (char *save, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		if (!entry_line(e, line))
			return false;
		end = !strcmp(line, "end");
	}
	return end && e->ipc_ino && e->family_ino;
}

int registry_each(int (*fn)(const struct registry_entry *e, void *arg), void *arg, struct kx_err *err)
{
	static struct registry_entry e;
	char path[PATH_MAX];
	const char *name;
	int dir = dir_open(false, path), r = 0, fd;
	if (dir == -ENOENT)
		return 0;
	if (dir == -EEXIST)
		return kx_err_set(err, EPERM,
				  "%s: not a directory of this user's alone (remove it, or set XDG_RUNTIME_DIR)", path);
	if (dir < 0)
		return kx_err_set(err, -dir, "%s: %s (check its rights)", path, strerror(-dir));
	bool locked = dir_lock(dir);
	DIR *d = fdopendir(dir);
	if (!d) {
		close(dir);
		return kx_err_set(err, ENOMEM, "registry: no memory (free some)");
	}
	for (struct dirent *f; !r && (f = readdir(d));) {
		memset(&e, 0, sizeof e);
		if (!file_parse(f->d_name, &e.pid, &e.start, &name))
			continue;
		snprintf(e.file, sizeof e.file, "%s", f->d_name);
		snprintf(e.name, sizeof e.name, "%s", name);
		/* Without the lock: what has ended has no members, which shows as well. */
		fd = locked ? held_open(dir, e.file) : file_open(dir, e.file);
		if (fd == -ENOENT)
			continue;
		if (fd < 0) {
			r = kx_err_host(err, -fd, "%s/%s", path, e.file);
			break;
		}
		if (entry_read(fd, &e))
			r = fn(&e, arg);
		close(fd);
	}
	closedir(d);
	return r;
}

int registry_hold(const struct registry_entry *e, struct kx_err *err)
{
	char path[PATH_MAX];
	struct stat st;
	int fd = dir_open(false, path), dir = fd;
	if (dir >= 0) {
		dir_lock(dir);
		fd = file_open(dir, e->file);
		if (fd >= 0 && (flock(fd, LOCK_SH | LOCK_NB) || fstat(fd, &st) || !st.st_nlink)) {
			close(fd);
			fd = -ENOENT;
		}
		close(dir);
	}
	if (fd < 0 && kx_err_lacks(-fd))
		return kx_err_host(err, -fd, "family of process %d: %s", e->pid, path);
	return fd >= 0 ? fd : kx_err_set(err, ESRCH, "family of process %d: has ended (see `kylinx ps`)", e->pid);
}
