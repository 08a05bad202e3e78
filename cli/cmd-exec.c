/* SPDX-License-Identifier: Apache-2.0 */
/* kylinx exec: this process becomes a member of a family that runs. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>
#include "../util/dirs.h"
#include "cli.h"
#include "families.h"

#define SEE "see `kylinx help exec`"

const char cmd_exec_help[] =
	"Usage: kylinx exec [--env NAME=VALUE]... FAMILY|PID [--] COMMAND [ARG...]\n"
	"\n"
	"Run COMMAND in a virtual machine of its own, as a member of a family that runs: FAMILY is its name, PID the\n"
	"process id of any member. COMMAND has the family's view of files, IPC and network, and its limits; members "
	"can\n"
	"signal it, and it them. Input, output, terminal, signals and exit status are as with `kylinx run`. The\n"
	"environment is the caller's, and so is the working directory, where the view has it.\n"
	"\n"
	"Options:\n"
	"  --env NAME=VALUE         set an environment variable; may be repeated\n"
	"  --help                   print this\n"
	"\n"
	"Exit status: the program's. 125 if KylinX failed, 126 if COMMAND cannot be executed, 127 if it is not "
	"found.\n";

/* The monitor's procfs, which a member has open: it can't be made anew inside the view. */
static int proc_of_member(int proc, int number)
{
	char link[32];
	struct statfs fs;
	struct stat st;
	snprintf(link, sizeof link, "fd/%d", number);
	int fd = openat(proc, link, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	/* Its root; what else a monitor might have there is no procfs. */
	if (fstatfs(fd, &fs) || fs.f_type != PROC_SUPER_MAGIC || fstat(fd, &st) || st.st_ino != 1) {
		close(fd);
		return -ENOENT;
	}
	return fd;
}

/* The same where the numbers are others: with a member that came by `kylinx exec`. */
static int proc_search(int proc, int number)
{
	int fd = proc_of_member(proc, number);
	if (fd >= 0)
		return fd;
	DIR *d = dir_open_at(proc, "fd", 0);
	if (!d)
		return kx_err_lacks(errno) ? -errno : fd;
	for (struct dirent *e; fd < 0 && (e = readdir(d));)
		if (*e->d_name != '.')
			fd = proc_of_member(proc, atoi(e->d_name));
	closedir(d);
	return fd;
}

/* Where a member is asked for updates; a monitor that has none, or hides them, is no reason to have no new member. */
static int update_open(const struct family *f, struct kx_join *join)
{
	for (int k = 0; k < 2; k++) {
		const int fd = f->e.update_ino[k] ? member_socket(join->member, join->member_proc, f->e.update_ino[k])
						  : -ENOENT;
		join->update[k] = fd;
		if (fd >= 0 || !kx_err_lacks(-fd))
			continue;
		if (k && join->update[0] >= 0)
			close(join->update[0]);
		return fd;
	}
	return 0;
}

/* Through a member that can be opened: descriptors for join. */
static int join_open(struct family *f, struct member *first, struct kx_join *join, struct kx_err *err)
{
	int r = -ESRCH;
	for (size_t i = 0; i <= f->nr; i++) {
		struct member *m = i ? &f->members[i - 1] : first;
		if (!m || m->state == 'Z')
			continue;
		join->member = member_open(f, m, &join->member_proc);
		if (join->member < 0) {
			r = join->member;
			continue;
		}
		join->family = member_table(f, join->member_proc, O_RDWR);
		join->proc = proc_search(join->member_proc, f->e.proc_fd);
		join->policy = f->e.policy_ino ? member_file(join->member_proc, f->e.policy_dev, f->e.policy_ino) : -1;
		bool governed = !f->e.policy_ino || join->policy >= 0;
		r = join->family < 0 ? join->family
		    : join->proc < 0 ? join->proc
		    : governed       ? update_open(f, join)
				     : join->policy;
		if (!r)
			return 0;
		if (join->policy >= 0)
			close(join->policy);
		if (join->family >= 0)
			close(join->family);
		if (join->proc >= 0)
			close(join->proc);
		close(join->member);
		close(join->member_proc);
	}
	if (r == -ESRCH || r == -ENOENT)
		return kx_err_set(err, ESRCH, "exec: the family is ending (see `kylinx ps`)");
	return kx_err_set(err, -r,
			  "exec: cannot look into the family's processes: %s (run it as the user that started it)",
			  strerror(-r));
}

/* The registry's file as the members have it: not to be written by a new one, either. Takes fd, which holds the family. */
static int registry_of_member(int proc, int fd)
{
	struct stat st;
	int own = fstat(fd, &st) ? -1 : member_file(proc, st.st_dev, st.st_ino);
	if (own < 0)
		return fd;
	if (flock(own, LOCK_SH | LOCK_NB)) {
		close(own);
		return fd;
	}
	close(fd);
	return own;
}

int cmd_exec(int argc, char **argv, struct kx_err *err)
{
	static const char *const levels[] = { "error", "warn", "info", "debug" };
	static struct kx_config cfg; /* lives as long as the pVM, as what it points to */
	static struct registry_entry e;
	static struct rlimit limits[16];
	struct families all;
	struct member *m = NULL;
	struct kx_join join;
	int i = 1;
	if (!(cfg.envp = cli_env_copy(argc))) {
		kx_err_set(err, ENOMEM, "exec: no memory (free some)");
		return CLI_FAILED;
	}
	for (; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
		char *s = argv[i];
		if (!strcmp(s, "--help") || !strcmp(s, "-h"))
			return cli_print(cmd_exec_help, err) ? CLI_FAILED : 0;
		if (!strcmp(s, "--")) {
			i++;
			break;
		}
		if (!strcmp(s, "--env") && i + 1 < argc) {
			s = argv[++i];
		} else if (!strncmp(s, "--env=", 6)) {
			s += 6;
		} else {
			kx_err_set(err, EINVAL,
				   strcmp(s, "--env") ? "%.64s: unknown option (" SEE ")"
						      : "%s: needs a value (" SEE ")",
				   s);
			return CLI_FAILED;
		}
		if (cli_env_set(&cfg, s, err))
			return CLI_FAILED;
	}
	char *who = i < argc ? argv[i++] : NULL;
	if (i < argc && !strcmp(argv[i], "--"))
		i++;
	if (!who || i >= argc) {
		kx_err_set(err, EINVAL, "exec: no %s given (" SEE ")", who ? "command" : "family");
		return CLI_FAILED;
	}
	cfg.program = argv[i];
	cfg.argv = argv + i;
	if (families_read(&all, false, err))
		return CLI_FAILED;
	struct family *f = families_find(&all, who, &m, err);
	if (!f || join_open(f, m, &join, err))
		return CLI_FAILED;
	e = f->e;
	families_free(&all);
	if ((join.registry = registry_hold(&e, err)) < 0)
		return CLI_FAILED;
	join.registry = registry_of_member(join.member_proc, join.registry);
	memcpy(limits, e.limits, sizeof limits);
	join.limits = limits;
	join.ipc_dev = e.ipc_dev;
	join.ipc_ino = e.ipc_ino;
	cfg.memory = e.memory;
	cfg.cpus = e.cpus;
	cfg.net_none = e.net_none;
	cfg.net_private = e.net_private;
	cfg.name = *e.name ? e.name : NULL;
	cfg.log_level = levels[e.log_level & 3];
	pvm_join(&cfg, &join, err);
	return CLI_FAILED;
}
