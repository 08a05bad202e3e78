/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kylinx ps --ipc: SysV and POSIX objects of families. They are in namespaces of the family's, so a child enters those by a
 * member's pidfd, reads, and sends what it found through a pipe. It executes nothing from inside and opens nothing
 * there but directories and queues.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../abi/kx_ipc.h"
#include "../monitor/core/family.h"
#include "../util/grow.h"
#include "ps.h"

#define NAME_WIDTH 60

enum kind { SYSV_SHM, SYSV_SEM, SYSV_MSG, POSIX_MQ, POSIX_SHM, POSIX_SEM, NR_KINDS };

static const struct {
	const char *name, *count; /* of JSON: what is counted */
	const char *first, *last; /* pids */
} kinds[NR_KINDS] = {
	[SYSV_SHM] = { "sysv-shm", "attached", "creator_pid", "last_pid" },
	[SYSV_SEM] = { "sysv-sem", "semaphores", NULL, NULL },
	[SYSV_MSG] = { "sysv-msg", "messages", "last_send_pid", "last_receive_pid" },
	[POSIX_MQ] = { "posix-mq", NULL, NULL, NULL },
	[POSIX_SHM] = { "posix-shm", NULL, NULL, NULL },
	[POSIX_SEM] = { "posix-sem", NULL, NULL, NULL },
};

struct object {
	uint32_t kind, key, mode, uid, gid;
	int32_t id, first, last;
	uint64_t bytes, count;
	char name[264];
};

struct objects {
	struct object *list;
	size_t nr, cap;
};

/* ---- in the family's namespaces ------------------------------------------------------------------------------------- */

static void found(const struct object *x)
{
	const char *p = (const char *)x;
	for (size_t left = sizeof *x; left;) {
		ssize_t n = write(STDOUT_FILENO, p, left);
		if (n <= 0)
			_exit(1);
		p += n;
		left -= (size_t)n;
	}
}

static void sysv(int proc, const char *path, enum kind kind)
{
	char line[512];
	int fd = openat(proc, path, O_RDONLY | O_CLOEXEC), key;
	FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
	if (!f)
		return; /* a kernel without them */
	while (fgets(line, sizeof line, f)) {
		struct object x = { .kind = kind };
		int n = 0;
		switch (kind) {
		case SYSV_SHM:
			n = sscanf(line, "%d %d %o %" SCNu64 " %d %d %" SCNu64 " %u %u", &key, &x.id, &x.mode, &x.bytes,
				   &x.first, &x.last, &x.count, &x.uid, &x.gid) == 9;
			break;
		case SYSV_SEM:
			n = sscanf(line, "%d %d %o %" SCNu64 " %u %u", &key, &x.id, &x.mode, &x.count, &x.uid,
				   &x.gid) == 6;
			break;
		default:
			n = sscanf(line, "%d %d %o %" SCNu64 " %" SCNu64 " %d %d %u %u", &key, &x.id, &x.mode, &x.bytes,
				   &x.count, &x.first, &x.last, &x.uid, &x.gid) == 9;
		}
		x.key = (uint32_t)key;
		if (n)
			found(&x);
	}
	fclose(f);
}

/* Bytes in a queue: the first line of its file is QSIZE:n */
static uint64_t queue_bytes(int dir, const char *name)
{
	char text[128];
	int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	return strncmp(text, "QSIZE:", 6) ? 0 : strtoull(text + 6, NULL, 10);
}

static void posix(const char *path, enum kind kind)
{
	DIR *d = opendir(path);
	struct stat st;
	if (!d)
		return;
	for (struct dirent *e; (e = readdir(d));) {
		struct object x = { .kind = kind };
		bool is_sem = kind == POSIX_SHM && !strncmp(e->d_name, "sem.", 4);
		if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
			continue;
		x.kind = is_sem ? POSIX_SEM : kind;
		snprintf(x.name, sizeof x.name, "/%s", e->d_name + (is_sem ? 4 : 0));
		x.id = (int32_t)st.st_ino;
		x.mode = st.st_mode & 07777;
		x.uid = st.st_uid;
		x.gid = st.st_gid;
		x.bytes = kind == POSIX_MQ ? queue_bytes(dirfd(d), e->d_name) : (uint64_t)st.st_size;
		found(&x);
	}
	closedir(d);
}

/* In a child. The user namespace is not always another. */
static _Noreturn void look(int pidfd)
{
	int proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (proc < 0 || (setns(pidfd, CLONE_NEWUSER) && errno != EINVAL) || setns(pidfd, CLONE_NEWIPC | CLONE_NEWNS))
		_exit(errno);
	sysv(proc, "sysvipc/shm", SYSV_SHM);
	sysv(proc, "sysvipc/sem", SYSV_SEM);
	sysv(proc, "sysvipc/msg", SYSV_MSG);
	posix("/dev/mqueue", POSIX_MQ);
	posix("/dev/shm", POSIX_SHM);
	_exit(0);
}

/* ---- outside --------------------------------------------------------------------------------------------------------- */

static int add(struct objects *all, const struct object *x)
{
	if (!kx_room(all->list, all->cap, all->nr + 1, 32))
		return -ENOMEM;
	all->list[all->nr++] = *x;
	return 0;
}

static int by_kind(const void *a, const void *b)
{
	const struct object *x = a, *y = b;
	if (x->kind != y->kind)
		return x->kind < y->kind ? -1 : 1;
	return x->kind <= SYSV_MSG && x->id != y->id ? (x->id < y->id ? -1 : 1) : strcmp(x->name, y->name);
}

/* A queue whose messages are in the family's memory (abi/kx_ipc.h); it may say anything. */
static void from_table(int table, struct object *x)
{
	struct kx_ipc_obj o;
	size_t of = x->kind == SYSV_MSG ? offsetof(struct kx_ipc, msg) : offsetof(struct kx_ipc, mq);
	off_t at = (off_t)(family_ipc_offset() + of + kx_ipc_slot(x->id) * sizeof o);
	if ((x->kind != SYSV_MSG && x->kind != POSIX_MQ) || table < 0 || pread(table, &o, sizeof o, at) != sizeof o ||
	    o.id != x->id)
		return;
	if (kx_ipc_is_live(o.state)) {
		x->bytes = o.cbytes;
		x->count = o.qnum;
	}
	if (x->kind == SYSV_MSG) {
		x->first = o.lspid;
		x->last = o.lrpid;
	}
}

/* Through any member. 0, -ESRCH when none is left, or -errno. */
static int objects_read(const struct family *f, struct objects *all)
{
	struct object x;
	int fd[2], pidfd = -ESRCH, proc = -1, st, r = 0;
	for (size_t i = 0; i < f->nr && pidfd < 0; i++)
		pidfd = f->members[i].state == 'Z' ? -ESRCH : member_open(f, &f->members[i], &proc);
	if (pidfd < 0)
		return pidfd;
	int table = member_table(f, proc, O_RDONLY);
	close(proc);
	if (pipe2(fd, O_CLOEXEC)) {
		r = -errno;
		close(pidfd);
		if (table >= 0)
			close(table);
		return r;
	}
	pid_t p = fork();
	if (!p) {
		if (dup2(fd[1], STDOUT_FILENO) < 0)
			_exit(errno);
		look(pidfd);
	}
	close(fd[1]);
	close(pidfd);
	FILE *in = p < 0 ? NULL : fdopen(fd[0], "r");
	while (in && !r && fread(&x, sizeof x, 1, in) == 1) {
		x.name[sizeof x.name - 1] = 0;
		from_table(table, &x);
		r = x.kind < NR_KINDS ? add(all, &x) : -EIO;
	}
	if (in)
		fclose(in);
	else
		close(fd[0]);
	if (table >= 0)
		close(table);
	if (p < 0)
		return -EAGAIN;
	while (waitpid(p, &st, 0) < 0 && errno == EINTR)
		;
	if (!r && st)
		r = WIFEXITED(st) ? -WEXITSTATUS(st) : -EINTR;
	if (all->nr)
		qsort(all->list, all->nr, sizeof *all->list, by_kind);
	return r;
}

static void json_object(FILE *o, const struct object *x)
{
	fprintf(o, "{\"kind\": \"%s\"", kinds[x->kind].name);
	if (x->kind <= SYSV_MSG)
		fprintf(o, ", \"id\": %d, \"key\": \"0x%08x\"", x->id, x->key);
	else
		fputs(", \"name\": ", o), put_json(o, x->name, strlen(x->name));
	fprintf(o, ", \"mode\": \"%04o\", \"uid\": %u, \"gid\": %u", x->mode, x->uid, x->gid);
	if (x->kind != SYSV_SEM)
		fprintf(o, ", \"bytes\": %" PRIu64, x->bytes);
	if (kinds[x->kind].count)
		fprintf(o, ", \"%s\": %" PRIu64, kinds[x->kind].count, x->count);
	if (kinds[x->kind].first)
		fprintf(o, ", \"%s\": %d, \"%s\": %d", kinds[x->kind].first, x->first, kinds[x->kind].last, x->last);
	fputc('}', o);
}

static void json_family(FILE *o, const struct family *f, const struct objects *all)
{
	fputs("{\"name\": ", o);
	if (*f->e.name)
		put_json(o, f->e.name, strlen(f->e.name));
	else
		fputs("null", o);
	fprintf(o, ", \"root_pid\": %d, \"objects\": [", f->e.pid);
	for (size_t i = 0; i < all->nr; i++) {
		fputs(i ? ",\n   " : "\n   ", o);
		json_object(o, &all->list[i]);
	}
	fputs("]}", o);
}

static void table_object(FILE *o, const struct family *f, const struct object *x)
{
	char id[16] = "-", count[24] = "-", bytes[24] = "-";
	if (x->kind <= SYSV_MSG)
		snprintf(id, sizeof id, "%d", x->id);
	if (kinds[x->kind].count)
		snprintf(count, sizeof count, "%" PRIu64, x->count);
	if (x->kind != SYSV_SEM)
		snprintf(bytes, sizeof bytes, "%" PRIu64, x->bytes);
	fprintf(o, "%8d %-12s %-9s %7s %04o %6u %12s %8s  ", f->e.pid, *f->e.name ? f->e.name : "-",
		kinds[x->kind].name, id, x->mode, x->uid, bytes, count);
	if (x->kind <= SYSV_MSG)
		fprintf(o, "0x%08x", x->key);
	else
		put_line(o, x->name, strlen(x->name), NAME_WIDTH);
	fputc('\n', o);
}

int ps_ipc(FILE *o, const struct families *all, const struct family *only, bool json, struct kx_err *err)
{
	bool first = true;
	if (json)
		fputs("{\"version\": 1, \"families\": [", o);
	else
		fprintf(o, "%8s %-12s %-9s %7s %4s %6s %12s %8s  %s\n", "FAMILY", "NAME", "KIND", "ID", "MODE", "UID",
			"BYTES", "COUNT", "KEY");
	for (size_t i = 0; i < all->nr; i++) {
		const struct family *f = &all->list[i];
		struct objects x = { 0 };
		if (only && only != f)
			continue;
		int r = objects_read(f, &x);
		if (r && r != -ESRCH) {
			free(x.list);
			return kx_err_set(err, -r,
					  "ps: cannot look into the family of %d: %s (run it as the user that started "
					  "it, or as root)",
					  f->e.pid, strerror(-r));
		}
		if (!r && json) {
			fputs(first ? "\n  " : ",\n  ", o);
			json_family(o, f, &x);
			first = false;
		}
		for (size_t k = 0; !r && !json && k < x.nr; k++)
			table_object(o, f, &x.list[k]);
		free(x.list);
	}
	if (json)
		fputs("]}\n", o);
	return 0;
}
