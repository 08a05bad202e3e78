/* SPDX-License-Identifier: Apache-2.0 */
/* kylinx kill: a signal for one pVM or for a family. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "cli.h"
#include "families.h"

#define SEE "see `kylinx help kill`"
#define ROUNDS 200 /* looks for members that others made meanwhile */

const char cmd_kill_help[] =
	"Usage: kylinx kill [-s SIGNAL] [--family] PID|NAME\n"
	"\n"
	"Send a signal, TERM by default, to the pVM with this process id, or to the first one of the family with this\n"
	"name.\n"
	"\n"
	"Options:\n"
	"  -s, --signal SIGNAL      its name or number\n"
	"  --family                 to all members of its family\n"
	"  --help                   print this\n"
	"\n"
	"With --family and KILL, members that are started meanwhile are killed, too.\n"
	"\n"
	"Exit status: 0, or 125 when the signal was not sent.\n";

static int signal_find(const char *s)
{
	const char *name = !strncasecmp(s, "SIG", 3) ? s + 3 : s;
	char *end;
	if (*s >= '0' && *s <= '9') {
		long n = strtol(s, &end, 10);
		return *end || n > 64 ? -1 : (int)n;
	}
	for (int i = 1; i < 32; i++)
		if (sigabbrev_np(i) && !strcasecmp(sigabbrev_np(i), name))
			return i;
	int base = !strncasecmp(name, "RTMIN", 5) ? SIGRTMIN : !strncasecmp(name, "RTMAX", 5) ? SIGRTMAX : 0;
	if (!base)
		return -1;
	long n = name[5] ? strtol(name + 5, &end, 10) : 0;
	if (name[5] && (*end || (base == SIGRTMIN ? name[5] != '+' : name[5] != '-')))
		return -1;
	return base + n >= SIGRTMIN && base + n <= SIGRTMAX ? (int)(base + n) : -1;
}

/* 0, or -errno; -ESRCH: it has ended. */
static int send(const struct family *f, const struct member *m, int sig)
{
	int fd = member_open(f, m, NULL), r = 0;
	if (fd < 0)
		return fd;
	if (syscall(SYS_pidfd_send_signal, fd, sig, NULL, 0))
		r = -errno;
	close(fd);
	return r;
}

struct done {
	pid_t pid;
	uint64_t start;
};

static bool is_done(const struct done *d, size_t n, const struct member *m)
{
	while (n--)
		if (d[n].pid == m->pid && d[n].start == m->start)
			return true;
	return false;
}

static struct family *by_file(struct families *all, const char *file)
{
	for (size_t i = 0; i < all->nr; i++)
		if (!strcmp(all->list[i].e.file, file))
			return &all->list[i];
	return NULL;
}

/* All that are there; for KILL, until nobody is there that did not get it. */
static int send_all(const char *who, int sig, struct kx_err *err)
{
	char file[sizeof(((struct registry_entry *)0)->file)] = "";
	struct families all;
	struct member *m;
	struct done *done = NULL;
	size_t nr = 0, sent = 0;
	bool more = true;
	int failed = 0;
	for (int round = 0; round < ROUNDS && more && !failed; round++) {
		if (families_read(&all, false, err))
			break;
		struct family *f = *file ? by_file(&all, file) : families_find(&all, who, &m, err);
		if (f)
			memcpy(file, f->e.file, sizeof file);
		more = false;
		for (size_t i = 0; f && i < f->nr; i++) {
			if (f->members[i].state == 'Z' || is_done(done, nr, &f->members[i]))
				continue;
			struct done *p = realloc(done, (nr + 1) * sizeof *done);
			if (!p) {
				failed = -ENOMEM;
				break;
			}
			done = p;
			done[nr++] = (struct done){ f->members[i].pid, f->members[i].start };
			int r = send(f, &f->members[i], sig);
			sent += !r;
			failed = r && r != -ESRCH ? r : failed;
			more = sig == SIGKILL;
		}
		families_free(&all);
	}
	free(done);
	if (err->code)
		return -err->code;
	if (failed)
		return kx_err_set(err, -failed, "%.64s: not sent to all: %s (send it as the user that they run as)",
				  who, strerror(-failed));
	return sent ? 0 : kx_err_set(err, ESRCH, "%.64s: has ended (see `kylinx ps`)", who);
}

static int send_one(const char *who, int sig, struct kx_err *err)
{
	struct families all;
	struct member *m = NULL;
	int r = -1;
	if (families_read(&all, false, err))
		return -1;
	struct family *f = families_find(&all, who, &m, err);
	if (f && !m)
		kx_err_set(err, ESRCH,
			   "%.64s: the first process of the family has ended (use --family, or name another)", who);
	else if (f && (r = send(f, m, sig)) == -ESRCH)
		kx_err_set(err, ESRCH, "%.64s: has ended (see `kylinx ps`)", who);
	else if (r)
		kx_err_set(err, -r, "%.64s: %s (send it as the user that it runs as)", who, strerror(-r));
	families_free(&all);
	return r;
}

int cmd_kill(int argc, char **argv, struct kx_err *err)
{
	int i = 1, sig = SIGTERM;
	bool family = false;
	for (; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
		const char *s = argv[i], *value = NULL;
		if (!strcmp(s, "--help") || !strcmp(s, "-h"))
			return cli_print(cmd_kill_help, err) ? CLI_FAILED : 0;
		if (!strcmp(s, "--")) {
			i++;
			break;
		}
		if (!strcmp(s, "--family")) {
			family = true;
			continue;
		}
		if (!strncmp(s, "--signal=", 9)) {
			value = s + 9;
		} else if (!strcmp(s, "-s") || !strcmp(s, "--signal")) {
			if (++i >= argc) {
				kx_err_set(err, EINVAL, "%s: needs a value (" SEE ")", s);
				return CLI_FAILED;
			}
			value = argv[i];
		} else if (!strncmp(s, "-s", 2)) {
			value = s + 2;
		} else {
			kx_err_set(err, EINVAL, "%.64s: unknown option (" SEE ")", s);
			return CLI_FAILED;
		}
		if ((sig = signal_find(value)) < 0) {
			kx_err_set(err, EINVAL, "%.64s: unknown signal (give a name such as TERM, or a number to 64)",
				   value);
			return CLI_FAILED;
		}
	}
	if (argc - i != 1) {
		kx_err_set(err, EINVAL, "kill: %s (" SEE ")",
			   argc == i ? "no process or family given" : "more than one argument");
		return CLI_FAILED;
	}
	return (family ? send_all(argv[i], sig, err) : send_one(argv[i], sig, err)) ? CLI_FAILED : 0;
}
