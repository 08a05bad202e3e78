/* SPDX-License-Identifier: Apache-2.0 */
/* kylinx update: a new version of a shared library in pVMs that run. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../monitor/core/family.h"
#include "../monitor/core/sig.h"
#include "../util/dirs.h"
#include "../util/now.h"
#include "cli.h"
#include "lib.h"
#include "../monitor/core/sign.h"
#include "update.h"

#define SEE "see `kylinx help update`"
#define POKE_MS 200
#define TRIES 20
#define TIMEOUT_MS 5000
#define TIMEOUT_MAX_S 600
#define ANSWER_MS 5000 /* beyond the timeout: how long a pVM may take to answer at all */

const char cmd_update_help[] =
	"Usage: kylinx update [--all|--at-once] [--dry-run] [--reset] [--timeout SECONDS] PID|FAMILY LIBRARY\n"
	"\n"
	"Replace a shared library in a pVM that runs, without restarting its program: LIBRARY is the file of the new\n"
	"version, with the SONAME of one that is loaded. FAMILY stands for its first process. The change is made at a\n"
	"moment at which no thread is inside the old version; its variables are carried over. When that can't be "
	"done,\n"
	"nothing is changed.\n"
	"\n"
	"Options:\n"
	"  --all                    all members of the family that have the library; checked in all of them first\n"
	"  --at-once                the same, in all of them at one moment or in none: all stand until all are ready\n"
	"  --dry-run                check only\n"
	"  --reset                  the library's own variables start anew where they can't be carried over\n"
	"  --timeout SECONDS        how long to wait for that moment (5)\n"
	"  --help                   print this\n"
	"\n"
	"Exit status: 0 when all are updated, or could be; else 125.\n";

void update_clean(char *s, size_t size)
{
	s[size - 1] = 0;
	for (; *s; s++)
		if ((unsigned char)*s < ' ' || *s == 127)
			*s = '?';
}

/* The thread of the monitor's that serves updates, if there is one already: a poke of any other interrupts it. By a name
 * that others can have, too; then the poke does its work all the same. */
static pid_t service_thread(int proc)
{
	char name[300], text[32];
	DIR *d = dir_open_at(proc, "task", 0);
	pid_t tid = 0;
	if (!d)
		return 0;
	for (struct dirent *e; !tid && (e = readdir(d));) {
		snprintf(name, sizeof name, "%s/comm", e->d_name);
		int fd = *e->d_name == '.' ? -1 : openat(dirfd(d), name, O_RDONLY | O_CLOEXEC);
		ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
		if (fd >= 0)
			close(fd);
		text[n > 0 ? n : 0] = 0;
		if (!strcmp(text, PVM_THREADS "update\n"))
			tid = atoi(e->d_name);
	}
	closedir(d);
	return tid;
}

static struct kx_err untold;

void update_tell(const char *fmt, ...)
{
	char line[2 * UPDATE_LINE];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	cli_print(line, &untold);
}

static int poke(int pidfd, int proc, pid_t pid)
{
	siginfo_t info;
	memset(&info, 0, sizeof info);
	info.si_signo = KICK_SIG;
	info.si_code = SI_QUEUE;
	info.si_pid = getpid();
	info.si_uid = getuid();
	info.si_value.sival_ptr = (void *)UPDATE_MAGIC;
	pid_t tid = service_thread(proc);
	/* While the pidfd's process lives, the number is its own. */
	if (tid && !syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0) &&
	    !syscall(SYS_rt_tgsigqueueinfo, pid, tid, KICK_SIG, &info))
		return 0;
	return syscall(SYS_pidfd_send_signal, pidfd, KICK_SIG, &info, 0) ? -errno : 0;
}

static int request_send(int sock, const struct update_request *q, const struct update_options *o, int answer, int round)
{
	union {
		struct cmsghdr h;
		char space[CMSG_SPACE(4 * sizeof(int))];
	} c;
	int fd[4] = { o->file, answer }, n = 2;
	if (round >= 0)
		fd[n++] = round;
	if (o->signature >= 0)
		fd[n++] = o->signature;
	const size_t len = (size_t)n * sizeof(int);
	struct iovec v = { (void *)q, sizeof *q };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = CMSG_SPACE(len) };
	memset(&c, 0, sizeof c);
	c.h = (struct cmsghdr){ CMSG_LEN(len), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(&c.h), fd, len);
	return sendmsg(sock, &m, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

long long update_now_ms(void) { return (long long)(now_ns() / 1000000); }

int update_hear(int sock, struct update_reply *a)
{
	ssize_t got = recv(sock, a, sizeof *a, MSG_DONTWAIT);
	if (got != sizeof *a)
		return got < 0 ? -errno : -ECONNRESET;
	update_clean(a->text, sizeof a->text);
	return 0;
}

/* Poke it, and print what it says. A poke that comes to a thread which is on its way to sleep is noticed when that wakes:
 * another one follows. */
static int answers(int sock, int pidfd, int proc, pid_t pid, unsigned kind, long long limit_ms,
		   struct update_reply *last)
{
	struct pollfd p[2] = { { .fd = sock, .events = POLLIN }, { .fd = pidfd, .events = POLLIN } };
	bool heard = false;
	for (long long end = update_now_ms() + limit_ms, now; (now = update_now_ms()) < end;) {
		int r = heard ? 0 : poke(pidfd, proc, pid);
		if (r)
			return r;
		int n = poll(p, 2, !heard && end - now > POKE_MS ? POKE_MS : (int)(end - now));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			continue;
		/* It ended, and the request may lie where nobody takes it. */
		if (!p[0].revents)
			return -ESRCH;
		if ((r = update_hear(sock, last)))
			return r;
		heard = true;
		if (last->kind == UPDATE_LAST || last->kind == kind)
			return 0;
		if (last->kind == UPDATE_SAYS)
			dprintf(STDERR_FILENO, "kylinx: process %d: %s\n", pid, last->text);
	}
	return -ETIME;
}

static uint64_t unserved(int table)
{
	uint64_t w;
	return pread(table, &w, sizeof w, offsetof(struct family_table, unserved)) == sizeof w ? w : 0;
}

int update_ask(int sock, int pidfd, int proc, int table, const struct update_request *q, const struct update_options *o,
	       int round, unsigned kind, long long limit_ms, int *replies, struct update_reply *last)
{
	const uint64_t before = unserved(table);
	struct pollfd ended = { .fd = pidfd, .events = POLLIN };
	int s[2], e = 0;
	*replies = -1;
	for (int i = 0; i < TRIES; i++) {
		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s))
			return -errno;
		e = request_send(sock, q, o, s[1], round);
		close(s[1]);
		if (!e)
			e = answers(s[0], pidfd, proc, (pid_t)q->pid, kind, limit_ms, last);
		*replies = s[0];
		if (e != -ECONNRESET && (e || last->kind != UPDATE_LAST || last->error != EAGAIN))
			return e;
		close(s[0]);
		*replies = -1;
		if (poll(&ended, 1, 0) > 0)
			return -ESRCH;
		const uint64_t now = unserved(table);
		if (e == -ECONNRESET && now != before && UNSERVED_PID(now) == (pid_t)q->pid) {
			*last = (struct update_reply){ .kind = UPDATE_LAST, .error = (uint32_t)UNSERVED_ERROR(now) };
			snprintf(last->text, sizeof last->text, "%s", update_why(UNSERVED_ERROR(now)));
			return 0;
		}
		usleep(10000); /* another one got it */
	}
	return e;
}

/* Before it is poked: a build that does not know the signal would take it for the program's. */
int update_speaks(const struct family *f, pid_t pid, struct kx_err *err)
{
	const struct registry_entry *e = &f->e;
	if (update_understood(e->update_protocol, e->update_oldest))
		return 0;
	return kx_err_set(
		err, EPROTO,
		"process %d: is of kylinx build %s (update protocol %u), the command of build %s (protocol %u): "
		"use the kylinx that started it, or start it again",
		pid, *e->build ? e->build : "unknown", e->update_protocol ? e->update_protocol : UPDATE_UNNUMBERED,
		build_name(), UPDATE_PROTOCOL);
}

struct update_request update_request(pid_t pid, unsigned flags, unsigned timeout_ms)
{
	struct update_request q = { .magic = UPDATE_MAGIC,
				    .pid = (uint32_t)pid,
				    .flags = flags,
				    .timeout_ms = timeout_ms,
				    .protocol = UPDATE_PROTOCOL,
				    .oldest = UPDATE_OLDEST };
	snprintf(q.build, sizeof q.build, "%s", build_name());
	return q;
}

int update_unreached(struct kx_err *err, pid_t pid, int e)
{
	if (kx_err_lacks(e) || e == ENOBUFS)
		return kx_err_host(err, e, "process %d: cannot be asked", pid);
	switch (e) {
	case ETIME:
		return kx_err_set(err, e, "process %d: does not answer (is it stopped, or a child of vfork?)", pid);
	case EPERM:
	case EACCES:
	case ENOENT:
		return kx_err_set(err, e, "process %d: cannot be reached for an update: %s (run it as its user)", pid,
				  strerror(e));
	}
	return kx_err_set(err, e, "process %d: %s (see `kylinx ps`)", pid, strerror(e));
}

static int update_one(const struct family *f, const struct member *m, const struct update_options *o, unsigned flags,
		      struct kx_err *err)
{
	struct update_request q = update_request(m->pid, flags, o->timeout_ms);
	struct update_reply a;
	int r = update_speaks(f, m->pid, err);
	if (r)
		return -r;
	int proc, pidfd = member_open(f, m, &proc), replies;
	if (pidfd < 0)
		return -update_unreached(err, m->pid, -pidfd);
	int sock = f->e.update_ino[0] ? member_socket(pidfd, proc, f->e.update_ino[0]) : -ENOENT;
	int table = member_table(f, proc, O_RDONLY);
	if (sock < 0) {
		r = update_unreached(err, m->pid, -sock);
		goto out;
	}
	r = update_ask(sock, pidfd, proc, table, &q, o, -1, UPDATE_LAST, (long long)o->timeout_ms + ANSWER_MS, &replies,
		       &a);
	if (replies >= 0)
		close(replies);
	if (r)
		update_unreached(err, m->pid, -r);
	else if (a.error)
		r = kx_err_set(err, (int)a.error, "process %d: %.200s (nothing is changed)", m->pid, a.text);
	else if (flags & UPDATE_DRY_RUN)
		update_tell("%d: can be updated: %s\n", m->pid, a.text);
	else
		update_tell("%d: %s: pause %.3f ms\n", m->pid, a.text, (double)a.pause_ns / 1e6);
out:
	if (sock >= 0)
		close(sock);
	if (table >= 0)
		close(table);
	close(pidfd);
	close(proc);
	return -r;
}

static int update_all(const struct family *f, const struct member *m, const struct update_options *o,
		      struct kx_err *err)
{
	if (!o->all)
		return update_one(f, m, o, o->flags, err);
	/* First look whether all of them can: then a refusal changes none. */
	for (int dry = 1; dry >= ((o->flags & UPDATE_DRY_RUN) != 0); dry--)
		for (size_t i = 0, made = 0; i < f->nr; i++) {
			struct kx_err one = { 0 };
			if (f->members[i].state == 'Z')
				continue;
			if (!update_one(f, &f->members[i], o, o->flags | (dry ? UPDATE_DRY_RUN : 0), &one)) {
				made += !dry;
				continue;
			}
			if (one.code == ESRCH || one.code == ENOENT) /* ended, or has not loaded it */
				continue;
			if (made)
				kx_err_set(err, one.code, "%zu other%s updated already, the rest not: %.400s", made,
					   made == 1 ? " is" : "s are", one.msg);
			else
				*err = one;
			return -1;
		}
	return 0;
}

static int parse(int argc, char **argv, struct update_options *o, int *rest, struct kx_err *err)
{
	int i = 1;
	for (; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
		char *s = argv[i], *end;
		if (!strcmp(s, "--")) {
			i++;
			break;
		}
		if (!strcmp(s, "--all")) {
			o->all = true;
		} else if (!strcmp(s, "--at-once")) {
			o->all = o->at_once = true;
		} else if (!strcmp(s, "--dry-run")) {
			o->flags |= UPDATE_DRY_RUN;
		} else if (!strcmp(s, "--reset")) {
			o->flags |= UPDATE_RESET;
		} else if (!strncmp(s, "--timeout=", 10) || (!strcmp(s, "--timeout") && i + 1 < argc)) {
			s = s[9] ? s + 10 : argv[++i];
			double t = strtod(s, &end);
			if (!*s || *end || !(t >= 0 && t <= TIMEOUT_MAX_S))
				return kx_err_set(err, EINVAL,
						  "--timeout %.32s: not a number of seconds up to 600 (" SEE ")", s);
			o->timeout_ms = (unsigned)(t * 1000);
		} else {
			return kx_err_set(err, EINVAL, "%.64s: unknown option, or one without its value (" SEE ")", s);
		}
	}
	*rest = i;
	return argc - i == 2 ? 0
			     : kx_err_set(err, EINVAL, "update: %s (" SEE ")",
					  argc - i < 2 ? "give a pVM and a library" : "too many arguments");
}

/*
 * In the order of what is done to keys and signatures: a pVM decides between the two notes of an update. args: whom, and
 * which library. A store that can't be used keeps no program from being mended: that is told, once the update is done.
 */
static int note(const char *event, char **args, const char *why, struct kx_err *err)
{
	char detail[512], *real = realpath(args[1], NULL);
	snprintf(detail, sizeof detail, "%.64s%s%.400s", args[0], why ? ": " : "", why ? why : "");
	int r = lib_note(event, real ? real : args[1], detail, err);
	free(real);
	return r;
}

int cmd_update(int argc, char **argv, struct kx_err *err)
{
	struct update_options o = { .timeout_ms = TIMEOUT_MS };
	struct families all;
	struct member *m = NULL;
	struct stat st;
	int rest = 0, r;
	for (int i = 1; i < argc && strcmp(argv[i], "--"); i++)
		if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
			return cli_print(cmd_update_help, err) ? CLI_FAILED : 0;
	if (parse(argc, argv, &o, &rest, err))
		return CLI_FAILED;
	/* Before the open, which waits for a writer of a FIFO, and has side effects on devices. */
	bool other = !stat(argv[rest + 1], &st) && !S_ISREG(st.st_mode);
	o.file = other ? -1 : open(argv[rest + 1], O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (o.file < 0 || fstat(o.file, &st) || !S_ISREG(st.st_mode)) {
		other = other || o.file >= 0;
		kx_err_set(err, other ? EINVAL : errno, "%s: %s (give the file of the new version)", argv[rest + 1],
			   other ? "not a file" : strerror(errno));
		return CLI_FAILED;
	}
	char name[PATH_MAX];
	int len = snprintf(name, sizeof name, "%s" SIGN_SUFFIX, argv[rest + 1]);
	o.signature = len < PATH_MAX ? open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY) : -1;
	if (o.signature < 0 && len < PATH_MAX && kx_err_lacks(errno)) {
		kx_err_host(err, errno, "%s", name);
		return CLI_FAILED;
	}
	if (families_read(&all, false, err))
		return CLI_FAILED;
	struct family *f = families_find(&all, argv[rest], &m, err);
	if (f && !m && !o.all)
		kx_err_set(err, ESRCH, "%.64s: the family's first process has ended (name one by its id, or --all)",
			   argv[rest]);
	bool begun = f && (m || o.all) && !(o.flags & UPDATE_DRY_RUN);
	struct kx_err unnoted = { 0 };
	signal(SIGPIPE, SIG_IGN); /* whoever does not listen any more must not end it halfway */
	if (begun)
		note("update-begin", argv + rest, NULL, &unnoted);
	if (f && o.at_once && !(o.flags & UPDATE_DRY_RUN))
		r = update_at_once(argv[rest], &o, err);
	else
		r = f && (m || o.all) ? update_all(f, m, &o, err) : -1;
	if (begun &&
	    (note(r ? "update-failed" : "update", argv + rest, r ? err->msg : NULL, &unnoted) || unnoted.code) && !r)
		dprintf(STDERR_FILENO, "kylinx: %s\n", unnoted.msg);
	if (!r && untold.code)
		r = kx_err_set(err, untold.code, "%s%s", o.flags & UPDATE_DRY_RUN ? "" : "the update is made, but ",
			       untold.msg);
	families_free(&all);
	close(o.file);
	if (o.signature >= 0)
		close(o.signature);
	return r ? CLI_FAILED : 0;
}
