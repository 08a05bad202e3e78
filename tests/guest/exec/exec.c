/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exec: what a new program gets and what is gone. The program runs itself again as "role NAME ..."; a role's exit
 * status says how it went. The exit code is the number of the first check that failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#define FORK_STATUS 98
#include "../check.h"
#include "../children.h"

extern char **environ;
static char *volatile nowhere = (char *)8;
static char dir[128], self[4096];

static bool exited(int st, int code) { return WIFEXITED(st) && WEXITSTATUS(st) == code; }
static bool killed(int st, int sig) { return WIFSIGNALED(st) && WTERMSIG(st) == sig; }

#define ROLE(...) execv(self, (char *[]){ self, "role", __VA_ARGS__, NULL })

static char *file(const char *name)
{
	static char paths[4][300];
	static int next;
	char *p = paths[next++ % 4];
	snprintf(p, sizeof paths[0], "%s/%s", dir, name);
	return p;
}

static char *script(const char *name, const char *text, int mode)
{
	char *p = file(name);
	int fd = open(p, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0700);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) || fchmod(fd, mode))
		abort();
	close(fd);
	return p;
}

/* Standard output of what fork and run() make. */
static char out[65536];
static int output(void (*run)(void *), void *arg)
{
	int fds[2];
	size_t n = 0;
	ssize_t r;
	if (pipe2(fds, O_CLOEXEC))
		abort();
	pid_t p = FORK({
		dup2(fds[1], 1);
		run(arg);
	});
	close(fds[1]);
	while ((r = read(fds[0], out + n, sizeof out - 1 - n)) > 0)
		n += r;
	out[n] = 0;
	close(fds[0]);
	return status_of(p);
}

static bool blocked(int s)
{
	sigset_t set;
	sigprocmask(0, NULL, &set);
	return sigismember(&set, s);
}

static void block(int s)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, s);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

static bool pending(int s)
{
	sigset_t set;
	sigpending(&set);
	return sigismember(&set, s);
}

static int nr_entries(const char *path)
{
	int n = 0;
	DIR *d = opendir(path);
	if (!d)
		return -1;
	for (struct dirent *e; (e = readdir(d));)
		n += e->d_name[0] != '.' && atoi(e->d_name) != dirfd(d);
	closedir(d);
	return n;
}

/* ---- roles: the program after an exec --------------------------------------------------------------------------- */

static void dump(int argc, char **argv)
{
	for (int i = 2; i < argc; i++)
		printf("[%s]", argv[i]);
	for (char **e = environ; *e; e++)
		printf("{%s}", *e);
	fflush(stdout);
	_exit(0);
}

static int tls_probe(void)
{
	static __thread int x = 5;
	return x;
}

/* ---- one value each: set before exec, read after it ---------------------------------------------------------------- */

static const char *lock_path, *record_path;
static pid_t set_child;
static int set_sem = -1, set_shm = -1;

static long get_affinity(void)
{
	unsigned long set[16] = { 0 };
	return syscall(SYS_sched_getaffinity, 0, sizeof set, set) > 0 ? (long)set[0] : -1;
}
static void set_affinity(void)
{
	unsigned long one = (unsigned long)get_affinity();
	one &= -one;
	syscall(SYS_sched_setaffinity, 0, sizeof one, &one);
}
static void set_slack(void) { prctl(PR_SET_TIMERSLACK, 77000); }
static long get_slack(void) { return prctl(PR_GET_TIMERSLACK); }
static void set_deathsig(void) { prctl(PR_SET_PDEATHSIG, SIGUSR2); }
static long get_deathsig(void)
{
	int s = -1;
	prctl(PR_GET_PDEATHSIG, &s);
	return s;
}
static void set_reaper(void) { prctl(PR_SET_CHILD_SUBREAPER, 1); }
static long get_reaper(void)
{
	int s = -1;
	prctl(PR_GET_CHILD_SUBREAPER, &s);
	return s;
}
static void set_session(void) { setsid(); }
static long get_session(void) { return getsid(0) == getpid() && getpgrp() == getpid(); }
static void set_nnp(void) { prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); }
static long get_nnp(void) { return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); }
static void set_nothing(void) {}
static long get_personality(void) { return syscall(SYS_personality, 0xffffffff); }
static void set_thp(void) { prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0); }
static long get_thp(void) { return prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0); }
static void set_policy(void) { sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){ 0 }); }
static long get_policy(void) { return sched_getscheduler(0); }
static void set_ioprio(void) { syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6); }
static long get_ioprio(void) { return syscall(SYS_ioprio_get, 1, 0); }
static void set_keepcaps(void) { prctl(PR_SET_KEEPCAPS, 1); }
static long get_keepcaps(void) { return prctl(PR_GET_KEEPCAPS); }
static void set_dumpable(void) { prctl(PR_SET_DUMPABLE, 0); }
static long get_dumpable(void) { return prctl(PR_GET_DUMPABLE); }
static void set_fsize(void) { setrlimit(RLIMIT_FSIZE, &(struct rlimit){ 1 << 20, 2 << 20 }); }
static long get_fsize(void)
{
	struct rlimit r = { 0, 0 };
	getrlimit(RLIMIT_FSIZE, &r);
	return r.rlim_cur << 4 | r.rlim_max;
}
static void set_data(void) { setrlimit(RLIMIT_DATA, &(struct rlimit){ 1 << 30, 1ul << 32 }); }
static long get_data(void)
{
	struct rlimit r = { 0, 0 };
	getrlimit(RLIMIT_DATA, &r);
	return r.rlim_cur << 4 | r.rlim_max;
}
static void set_prof(void) { setitimer(ITIMER_PROF, &(struct itimerval){ { 0, 0 }, { 1000, 0 } }, NULL); }
static long get_prof(void)
{
	struct itimerval it;
	getitimer(ITIMER_PROF, &it);
	return it.it_value.tv_sec > 900;
}
static void set_timer(void)
{
	timer_t t;
	timer_create(CLOCK_MONOTONIC, NULL, &t);
}
static long get_timer(void)
{
	struct itimerspec ts;
	return syscall(SYS_timer_gettime, 0, &ts) == 0;
}
static void set_queue(void)
{
	char name[64];
	snprintf(name, sizeof name, "kx-exec-%d", getpid());
	int fd = syscall(SYS_mq_open, name, O_CREAT | O_RDWR, 0600, NULL);
	syscall(SYS_mq_unlink, name);
	dup3(fd, 120, O_CLOEXEC); /* as libc's mq_open gives it */
}
static long get_queue(void) { return fcntl(120, F_GETFD) >= 0; }
static void set_ofd(void)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	fcntl(dup2(open(lock_path, O_RDWR | O_CREAT, 0600), 121), F_OFD_SETLK, &l);
}
static long get_ofd(void)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	int fd = open(lock_path, O_RDWR | O_CLOEXEC);
	long r = fcntl(fd, F_OFD_GETLK, &l) ? -1 : l.l_type;
	close(fd);
	return r;
}
static void set_record(void)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	fcntl(dup2(open(record_path, O_RDWR | O_CREAT, 0600), 122), F_SETLK, &l);
}
static long get_record(void) /* as another process sees it */
{
	pid_t p = fork();
	if (!p) {
		struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
		_exit(fcntl(122, F_GETLK, &l) ? 9 : l.l_type == F_WRLCK && l.l_pid == getppid() ? 1 : 2);
	}
	int st = status_of(p);
	return WIFEXITED(st) ? WEXITSTATUS(st) : -1;
}
static void set_waited(void)
{
	set_child = fork();
	if (!set_child)
		_exit(61);
}
static long get_waited(void)
{
	siginfo_t i = { 0 };
	return waitid(P_PID, set_child, &i, WEXITED | WNOWAIT) ? -1 : i.si_status;
}
static void set_undo(void)
{
	set_sem = semget(IPC_PRIVATE, 1, IPC_CREAT | 0600);
	semctl(set_sem, 0, SETVAL, 0);
	semop(set_sem, &(struct sembuf){ 0, 2, SEM_UNDO }, 1);
}
static long get_undo(void) { return semctl(set_sem, 0, GETVAL); }
static void set_attach(void)
{
	set_shm = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
	shmat(set_shm, NULL, 0);
}
static long get_attach(void)
{
	struct shmid_ds ds = { 0 };
	return shmctl(set_shm, IPC_STAT, &ds) ? -1 : (long)ds.shm_nattch;
}
static void set_lockall(void) { mlockall(MCL_CURRENT | MCL_FUTURE); }
static long get_lockall(void)
{
	char line[200];
	long kb = -1;
	FILE *f = fopen("/proc/self/status", "r");
	while (f && fgets(line, sizeof line, f))
		sscanf(line, "VmLck: %ld", &kb);
	if (f)
		fclose(f);
	return kb > 0;
}
static void set_name(void) { prctl(PR_SET_NAME, "another"); }
static long get_name(void)
{
	char n[17] = "";
	prctl(PR_GET_NAME, n);
	return !strcmp(n, "another");
}

#define SAME LONG_MIN
static const struct {
	const char *name;
	void (*set)(void);
	long (*get)(void);
	long want; /* after exec; SAME: as before it */
} values[] = {
	{ "CPU affinity", set_affinity, get_affinity, SAME },
	{ "timer slack", set_slack, get_slack, SAME },
	{ "PDEATHSIG", set_deathsig, get_deathsig, SIGUSR2 },
	{ "subreaper", set_reaper, get_reaper, 1 },
	{ "session and group", set_session, get_session, 1 },
	{ "no_new_privs", set_nnp, get_nnp, 1 },
	{ "personality", set_nothing, get_personality, SAME },
	{ "THP disabled", set_thp, get_thp, 1 },
	{ "scheduling policy", set_policy, get_policy, SCHED_BATCH },
	{ "I/O priority", set_ioprio, get_ioprio, 2 << 13 | 6 },
	{ "keepcaps", set_keepcaps, get_keepcaps, 0 },
	{ "dumpable", set_dumpable, get_dumpable, 1 },
	{ "limit of file sizes", set_fsize, get_fsize, SAME },
	{ "limit of data", set_data, get_data, SAME },
	{ "profiling timer", set_prof, get_prof, 1 },
	{ "POSIX timers", set_timer, get_timer, 0 },
	{ "message queue", set_queue, get_queue, 0 },
	{ "OFD lock", set_ofd, get_ofd, F_WRLCK },
	{ "record lock", set_record, get_record, 1 },
	{ "a child to wait for", set_waited, get_waited, 61 },
	{ "SEM_UNDO", set_undo, get_undo, 2 },
	{ "attached shared memory", set_attach, get_attach, 0 },
	{ "mlockall", set_lockall, get_lockall, 0 },
	{ "name", set_name, get_name, 0 },
};
enum { NR_VALUES = sizeof values / sizeof values[0] };

/* a: paths and numbers of what was made, then the values as they were. Returns the number of the first wrong one. */
static int values_role(char **a)
{
	lock_path = a[0];
	record_path = a[1];
	set_child = atoi(a[2]);
	set_sem = atoi(a[3]);
	set_shm = atoi(a[4]);
	int bad = 0;
	for (int i = 0; i < NR_VALUES; i++) {
		long got = values[i].get(), want = values[i].want == SAME ? atol(a[5 + i]) : values[i].want;
		if (got != want) {
			dprintf(2, "after exec: %s: %ld, not %ld\n", values[i].name, got, want);
			bad = bad ? bad : i + 1;
		}
	}
	semctl(set_sem, 0, IPC_RMID);
	shmctl(set_shm, IPC_RMID, NULL);
	while (wait(NULL) > 0)
		;
	return bad;
}

static void values_set(void)
{
	static char text[5 + NR_VALUES][300];
	char *argv[9 + NR_VALUES] = { self, "role", "values" };
	for (int i = 0; i < NR_VALUES; i++) {
		values[i].set();
		snprintf(text[5 + i], sizeof text[0], "%ld", values[i].get());
	}
	snprintf(text[0], sizeof text[0], "%s", lock_path);
	snprintf(text[1], sizeof text[0], "%s", record_path);
	snprintf(text[2], sizeof text[0], "%d", set_child);
	snprintf(text[3], sizeof text[0], "%d", set_sem);
	snprintf(text[4], sizeof text[0], "%d", set_shm);
	for (int i = 0; i < 5 + NR_VALUES; i++)
		argv[3 + i] = text[i];
	execv(self, argv);
}

static void inherited(char **a)
{
	struct sigaction sa;
	struct itimerval it;
	char cwd[300];
	NEED(getpid() == atoi(a[0]) && gettid() == getpid() && getppid() == atoi(a[1]));
	NEED(getcwd(cwd, sizeof cwd) && !strcmp(cwd, a[2]));
	NEED(umask(0) == 027);
	NEED(sigaction(SIGUSR1, NULL, &sa) == 0 && sa.sa_handler == SIG_DFL);
	NEED(sigaction(SIGUSR2, NULL, &sa) == 0 && sa.sa_handler == SIG_IGN);
	NEED(blocked(SIGTERM) && blocked(SIGRTMIN + 1) && !blocked(SIGINT));
	NEED(pending(SIGTERM) && pending(SIGRTMIN + 1) && !pending(SIGINT));
	/* What its default action would drop is pending nevertheless: nothing has set that action. */
	NEED(pending(SIGCHLD) && pending(SIGURG) && pending(SIGWINCH));
	siginfo_t info;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN + 1);
	for (int i = 0; i < 3; i++)
		NEED(sigwaitinfo(&set, &info) == SIGRTMIN + 1 && info.si_value.sival_int == i &&
		     info.si_code == SI_QUEUE);
	NEED(getitimer(ITIMER_REAL, &it) == 0 && it.it_value.tv_sec > 50);
	stack_t ss;
	NEED(sigaltstack(NULL, &ss) == 0 && (ss.ss_flags & SS_DISABLE));
	NEED(fcntl(100, F_GETFD) == 0 && fcntl(101, F_GETFD) == -1 && errno == EBADF);
	struct rlimit rl;
	NEED(getrlimit(RLIMIT_NOFILE, &rl) == 0 && rl.rlim_cur == 200);
	NEED(getrlimit(RLIMIT_CORE, &rl) == 0 && rl.rlim_cur == 0);
	NEED(getrlimit(RLIMIT_STACK, &rl) == 0 && rl.rlim_cur == 4 << 20);
	NEED(getpriority(PRIO_PROCESS, 0) == 3);
	char c;
	NEED(lseek(100, 0, SEEK_CUR) == 3 && read(100, &c, 1) == 1 && c == 'd');
	NEED(tls_probe() == 5);
	_exit(0);
}

static void exe(char **a)
{
	char path[4096], real[4096];
	ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
	NEED(n > 0);
	path[n] = 0;
	NEED(realpath(a[0], real) && !strcmp(real, path));
	int fd = open("/proc/self/cmdline", O_RDONLY);
	NEED(fd >= 0 && (n = read(fd, path, sizeof path)) > 0 && strlen(path) + 1 < (size_t)n &&
	     !strcmp(path + strlen(path) + 1, "role"));
	close(fd);
	NEED((fd = open("/proc/self/comm", O_RDONLY)) >= 0 && (n = read(fd, path, 100)) > 0);
	path[n - 1] = 0;
	NEED(!strncmp(path, strrchr(a[0], '/') + 1, 15));
	close(fd);
	NEED((const char *)getauxval(AT_EXECFN) && !strcmp((const char *)getauxval(AT_EXECFN), a[0]));
	_exit(0);
}

static int role(int argc, char **argv)
{
	const char *r = argv[2];
	if (!strcmp(r, "dump"))
		dump(argc - 1, argv + 1);
	if (!strcmp(r, "inherited"))
		inherited(argv + 3);
	if (!strcmp(r, "exe"))
		exe(argv + 3);
	if (!strcmp(r, "values"))
		return values_role(argv + 3);
	if (!strcmp(r, "exit"))
		return atoi(argv[3]);
	if (!strcmp(r, "pid")) /* alone, and who it was */
		return getpid() == atoi(argv[3]) && gettid() == getpid() && nr_entries("/proc/self/task") == 1 ? 0 : 1;
	if (!strcmp(r, "chain")) {
		int n = atoi(argv[3]);
		char number[16];
		if (n == 0)
			return getpid() == atoi(argv[4]) ? 0 : 1;
		snprintf(number, sizeof number, "%d", n - 1);
		ROLE("chain", number, argv[4]);
		return 97;
	}
	if (!strcmp(r, "fds"))
		return nr_entries("/proc/self/fd");
	if (!strcmp(r, "count")) {
		int n = 0;
		for (char **e = environ; *e; e++)
			n += !strncmp(*e, "KX_BIG_", 7) && strlen(*e) > 1000;
		return n == atoi(argv[3]) ? 0 : 1;
	}
	if (!strcmp(r, "alarm")) {
		ms(5000);
		return 96;
	}
	return 95;
}

/* ---- arguments ------------------------------------------------------------------------------------------------------ */

static void arguments_run(void *arg)
{
	(void)arg;
	char *argv[] = { "some name", "role", "dump", "", "two words", "\xff\xfe", "=", NULL };
	char *envp[] = { "A=1", "EMPTY=", "no equals sign", "A=2", NULL };
	execve(self, argv, envp);
}
static void nothing_run(void *arg)
{
	execve(arg, (char *[]){ "sh", "-c", "echo \"$#:$0\"", NULL }, (char *[]){ NULL });
}
static void null_run(void *arg)
{
	(void)arg;
	syscall(SYS_execve, file("arg0"), NULL, NULL);
}

static void arguments(void)
{
	check(output(arguments_run, NULL) == 0, "execve: runs");
	check(!strcmp(out, "[][two words][\xff\xfe][=]{A=1}{EMPTY=}{no equals sign}{A=2}"),
	      "execve: arguments, environment");
	check(output(nothing_run, "/bin/sh") == 0 && !strcmp(out, "0:sh\n"), "execve: empty environment");
	script("arg0", "#!/bin/sh\necho \"$#\"\n", 0755);
	check(output(null_run, NULL) == 0 && !strcmp(out, "0\n"), "execve: NULL argv and envp");
	int st = status_of(FORK(syscall(SYS_execve, self, (char *[]){ NULL }, environ)));
	check(WIFEXITED(st) && WEXITSTATUS(st) == 77, "execve: empty argv becomes one empty string");

	/* large ones */
	char **envp = calloc(402, sizeof *envp);
	for (int i = 0; i < 400; i++) {
		envp[i] = malloc(2100);
		memset(envp[i], 'x', 2099);
		envp[i][2099] = 0;
		memcpy(envp[i], "KX_BIG_", 7);
		envp[i][10] = '=';
	}
	check(fine(FORK(execve(self, (char *[]){ self, "role", "count", "400", NULL }, envp))),
	      "execve: 800 KiB of environment");
	char *huge = malloc((128 << 10) + 1);
	memset(huge, 'y', 128 << 10);
	huge[128 << 10] = 0;
	check(execve(self, (char *[]){ self, huge, NULL }, environ) == -1 && errno == E2BIG,
	      "execve: E2BIG, one string");
	huge[(128 << 10) - 1] = 0;
	check(exited(status_of(FORK(execve(self, (char *[]){ self, "role", "exit", "4", huge, NULL }, environ))), 4),
	      "execve: the longest string");
	huge[100000] = 0;
	char **many = calloc(102, sizeof *many);
	for (int i = 0; i < 100; i++)
		many[i] = huge;
	check(execve(self, many, environ) == -1 && errno == E2BIG, "execve: E2BIG, all of them");
	for (int i = 0; i < 400; i++)
		free(envp[i]);
	free(envp);
	free(many);
	free(huge);
	check(execve(self, (char **)nowhere, environ) == -1 && errno == EFAULT, "execve: EFAULT, argv");
	check(execve(self, (char *[]){ nowhere, NULL }, environ) == -1 && errno == EFAULT, "execve: EFAULT, a string");
	check(execve(nowhere, (char **)nowhere, NULL) == -1 && errno == EFAULT, "execve: EFAULT, path");
}

/* ---- errors --------------------------------------------------------------------------------------------------------- */

static int fails(const char *path) { return execv(path, (char *[]){ "x", NULL }) == -1 ? errno : 0; }

static void errors(void)
{
	check(fails("/nonexistent/x") == ENOENT && fails("") == ENOENT, "ENOENT");
	check(fails("/etc/passwd/x") == ENOTDIR, "ENOTDIR");
	check(fails("/etc/passwd") == EACCES, "EACCES: no execute permission");
	check(fails("/") == EACCES, "EACCES: directory");
	check(fails("/dev/null") == EACCES, "EACCES: device");
	check(fails(script("text", "neither ELF nor script\n", 0755)) == ENOEXEC, "ENOEXEC");
	check(fails(script("empty", "", 0755)) == ENOEXEC, "ENOEXEC: empty file");
	check(fails(script("elf", "\177ELF garbage", 0755)) == ENOEXEC, "ENOEXEC: broken ELF");
	check(fails(script("noint", "#!/nonexistent/interpreter\n", 0755)) == ENOENT, "ENOENT: interpreter");
	check(fails(script("dirint", "#!/tmp\n", 0755)) == EACCES, "EACCES: interpreter");
	char text[400];
	snprintf(text, sizeof text, "#!%s\n", file("self"));
	check(fails(script("self", text, 0755)) == ELOOP, "ELOOP: script of itself");
	if (symlink("loop", file("loop")))
		abort();
	check(fails(file("loop")) == ELOOP, "ELOOP: symbolic links");
	memset(text, 'a', sizeof text - 1);
	text[sizeof text - 1] = 0;
	check(fails(text) == ENAMETOOLONG, "ENAMETOOLONG");
	int fd = open(file("busy"), O_WRONLY | O_CREAT, 0755);
	check(write(fd, "#!/bin/true\n", 12) == 12, "ETXTBSY: file open for writing");
	int e = 0;
	pid_t p = FORK({
		e = fails(file("busy"));
		_exit(e == ETXTBSY ? 0 : 1);
	});
	check(exited(status_of(p), 0), "ETXTBSY");
	close(fd);
	check(fine(FORK(execl(file("busy"), "busy", (char *)NULL))), "and not when it is closed");
	const char *names[] = { "text", "empty", "elf", "noint", "dirint", "self", "loop", "busy", "arg0" };
	for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
		unlink(file(names[i]));
	check(fine(FORK({
		      for (int i = 0; i < 20; i++)
			      NEED(fails("/nonexistent") == ENOENT);
		      ROLE("exit", "0");
	      })),
	      "exec after exec that failed");
}

/* ---- scripts -------------------------------------------------------------------------------------------------------- */

static void script_run(void *arg) { execl(arg, "zero", "one", "two words", (char *)NULL); }

static void scripts(void)
{
	char text[5000], want[700];
	char *p = script("plain", "#!/bin/sh\necho \"$0|$1|$2|$#\"\nexit 7\n", 0755);
	snprintf(want, sizeof want, "%s|one|two words|2\n", p);
	check(exited(output(script_run, p), 7) && !strcmp(out, want), "script: arguments");
	snprintf(text, sizeof text, "#! %s role dump  \n", self);
	p = script("arg", text, 0755);
	setenv("ONLY", "1", 1);
	/* One argument, blanks inside it: the role is not found. */
	check(exited(output(script_run, p), 93), "script: the rest of the line is one argument");
	snprintf(text, sizeof text, "#!/bin/sh -e\nfalse\necho no\n");
	check(exited(output(script_run, script("opt", text, 0755)), 1) && !out[0], "script: option of the interpreter");
	char *inner = script("inner", "#!/bin/sh -u\necho \"in $0 $1 $2\"\n", 0755);
	snprintf(text, sizeof text, "#!%s  first\n", inner);
	p = script("outer", text, 0755);
	snprintf(want, sizeof want, "in %s first %s\n", inner, p);
	check(output(script_run, p) == 0 && !strcmp(out, want), "script: nested");
	check(execlp("kx-no-such-program", "x", (char *)NULL) == -1 && errno == ENOENT, "execvp: ENOENT");
#ifdef __GLIBC__
	p = script("nohash", "echo shell; exit 6\n", 0755);
	check(exited(status_of(FORK({
			     dup2(open("/dev/null", O_WRONLY), 1);
			     setenv("PATH", dir, 1);
			     execlp("nohash", "nohash", (char *)NULL);
		     })),
		     6),
	      "execvp: file without #! goes to the shell");
#endif
	int fd = open(file("plain"), O_RDONLY);
	check(exited(status_of(FORK({
			     dup2(open("/dev/null", O_WRONLY), 1);
			     fexecve(fd, (char *[]){ "x", NULL }, environ);
		     })),
		     7),
	      "fexecve: script");
	close(fd);
	fd = open(file("plain"), O_RDONLY | O_CLOEXEC);
	check(fexecve(fd, (char *[]){ "x", NULL }, environ) == -1 && errno == ENOENT,
	      "fexecve: script, close-on-exec: ENOENT");
	close(fd);
	const char *names[] = { "plain", "arg", "opt", "inner", "outer", "nohash" };
	for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
		unlink(file(names[i]));
}

static void by_descriptor(void)
{
	char *argv[] = { self, "role", "exit", "12", NULL };
	int fd = open(self, O_RDONLY | O_CLOEXEC), path = open(self, O_PATH | O_CLOEXEC);
	check(exited(status_of(FORK(fexecve(fd, argv, environ))), 12), "fexecve");
	check(exited(status_of(FORK(fexecve(path, argv, environ))), 12), "fexecve: O_PATH");
	check(exited(status_of(FORK(syscall(SYS_execveat, fd, "", argv, environ, AT_EMPTY_PATH))), 12),
	      "execveat: AT_EMPTY_PATH");
	check(syscall(SYS_execveat, fd, "", argv, environ, 0) == -1 && errno == ENOENT, "execveat: empty path");
	check(syscall(SYS_execveat, 9999, "", argv, environ, AT_EMPTY_PATH) == -1 && errno == EBADF, "execveat: EBADF");
	char parent[4096];
	strcpy(parent, self);
	char *base = strrchr(parent, '/');
	*base++ = 0;
	int d = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	check(exited(status_of(FORK(syscall(SYS_execveat, d, base, argv, environ, 0))), 12),
	      "execveat: in a directory");
	check(exited(status_of(FORK(syscall(SYS_execveat, AT_FDCWD, self, argv, environ, 0))), 12),
	      "execveat: AT_FDCWD");
	check(exited(status_of(FORK(syscall(SYS_execveat, d, self, argv, environ, 0))), 12), "execveat: absolute");
	if (symlink(self, file("link")))
		abort();
	check(syscall(SYS_execveat, AT_FDCWD, file("link"), argv, environ, AT_SYMLINK_NOFOLLOW) == -1 && errno == ELOOP,
	      "execveat: AT_SYMLINK_NOFOLLOW");
	check(exited(status_of(FORK(execv(file("link"), argv))), 12), "execve: symbolic link");
	check(syscall(SYS_execveat, AT_FDCWD, self, argv, environ, 1 << 30) == -1 && errno == EINVAL,
	      "execveat: EINVAL");
	unlink(file("link"));
	int m = memfd_create("kx-program", MFD_CLOEXEC);
	char buf[65536];
	ssize_t n, all = 0;
	lseek(fd, 0, SEEK_SET);
	while ((n = read(fd, buf, sizeof buf)) > 0)
		all += write(m, buf, n);
	check(all > 10000 && exited(status_of(FORK(fexecve(m, argv, environ))), 12), "fexecve: memfd");
	close(m);
	close(d);
	close(fd);
	close(path);
	check(exited(status_of(FORK({
			     NEED(chdir(parent) == 0);
			     char rel[300];
			     snprintf(rel, sizeof rel, "./%s", base);
			     execv(rel, argv);
		     })),
		     12),
	      "execve: relative path");
	check(exited(status_of(FORK(execv("/proc/self/exe", argv))), 12), "execve: /proc/self/exe");
}

/* ---- what stays, what goes --------------------------------------------------------------------------------------------- */

static void handler(int s) { (void)s; }

static void inheritance(void)
{
	char *p = script("data", "abcdef", 0644);
	check(fine(FORK({
		      char me[16];
		      char parent[16];
		      static char alt[65536];
		      snprintf(me, sizeof me, "%d", getpid());
		      snprintf(parent, sizeof parent, "%d", getppid());
		      umask(027);
		      NEED(chdir(dir) == 0);
		      signal(SIGUSR1, handler);
		      signal(SIGUSR2, SIG_IGN);
		      block(SIGTERM);
		      block(SIGRTMIN + 1);
		      raise(SIGTERM);
		      for (int i = 0; i < 3; i++) {
			      static const int unheard[] = { SIGCHLD, SIGURG, SIGWINCH };
			      block(unheard[i]);
			      raise(unheard[i]);
		      }
		      for (int i = 0; i < 3; i++)
			      sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = i });
		      setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 0 }, { 100, 0 } }, NULL);
		      sigaltstack(&(stack_t){ .ss_sp = alt, .ss_size = sizeof alt }, NULL);
		      int fd = open(p, O_RDONLY);
		      NEED(lseek(fd, 3, SEEK_SET) == 3);
		      NEED(dup2(fd, 100) == 100 && dup3(fd, 101, O_CLOEXEC) == 101);
		      NEED(setrlimit(RLIMIT_NOFILE, &(struct rlimit){ 200, 1000 }) == 0);
		      NEED(setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 }) == 0);
		      struct rlimit rl;
		      getrlimit(RLIMIT_STACK, &rl);
		      rl.rlim_cur = 4 << 20;
		      NEED(setrlimit(RLIMIT_STACK, &rl) == 0);
		      setpriority(PRIO_PROCESS, 0, 3);
		      ROLE("inherited", me, parent, dir);
	      })),
	      "pid, directory, umask, signals, timer, limits, descriptors, nice");
	unlink(p);
	lock_path = file("ofd");
	record_path = file("record");
	check(fine(FORK(values_set())), "24 other properties, kept or reset");
	/* A robust lock that the old program held is its heir's to see. */
	pthread_mutex_t *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_t ma;
	pthread_mutexattr_init(&ma);
	pthread_mutexattr_setpshared(&ma, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&ma, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(m, &ma);
	pid_t child = FORK({
		pthread_mutex_lock(m);
		ROLE("alarm");
	});
	for (int i = 0; i < 3000 && !m->__data.__lock; i++)
		ms(1);
	check(pthread_mutex_lock(m) == EOWNERDEAD && kill(child, SIGKILL) == 0 && killed(status_of(child), SIGKILL),
	      "exec frees robust locks");
	munmap(m, 4096);
	unlink(lock_path);
	unlink(record_path);
	check(fine(FORK(ROLE("exe", self))), "/proc/self/exe, cmdline, comm, AT_EXECFN");
	int n = nr_entries("/proc/self/fd");
	check(exited(status_of(FORK({
			     for (int i = 0; i < 20; i++)
				     open("/dev/null", O_RDONLY | O_CLOEXEC);
			     ROLE("fds");
		     })),
		     n),
	      "close-on-exec descriptors are gone");
	check(exited(status_of(FORK({
			     for (int i = 0; i < 20; i++)
				     open("/dev/null", O_RDONLY);
			     ROLE("fds");
		     })),
		     n + 20),
	      "the others are not");
	check(killed(status_of(FORK({
			     setitimer(ITIMER_REAL, &(struct itimerval){ { 0, 0 }, { 0, 80000 } }, NULL);
			     ROLE("alarm");
		     })),
		     SIGALRM),
	      "an interval timer goes off after exec");
	check(fine(FORK({
		      char me[16];
		      snprintf(me, sizeof me, "%d", getpid());
		      ROLE("chain", "100", me);
	      })),
	      "100 times in a row");
}

/* ---- threads, vfork ---------------------------------------------------------------------------------------------------- */

static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
static volatile int ready;

static void *busy(void *arg)
{
	__atomic_add_fetch(&ready, 1, __ATOMIC_SEQ_CST);
	switch ((long)arg % 4) {
	case 0:
		for (;;)
			pause();
	case 1:
		pthread_mutex_lock(&held);
		break;
	case 2:
		for (;;)
			free(malloc(1000));
	default:
		for (;;)
			getppid();
	}
	return NULL;
}

static void *exec_thread(void *arg)
{
	(void)arg;
	char me[16];
	snprintf(me, sizeof me, "%d", getpid());
	ROLE("pid", me);
	_exit(94);
}

static void threads(void)
{
	pthread_mutex_lock(&held);
	check(fine(FORK({
		      pthread_t t;
		      pthread_create(&t, NULL, exec_thread, NULL);
		      for (;;)
			      pause();
	      })),
	      "exec from a thread while the first one sleeps");
	check(fine(FORK({
		      pthread_t t;
		      pthread_create(&t, NULL, exec_thread, NULL);
		      pthread_exit(NULL);
	      })),
	      "exec from a thread after the first one ended");
	for (int from = 0; from < 2; from++)
		check(fine(FORK({
			      pthread_t t;
			      char me[16];
			      for (long i = 0; i < 50; i++)
				      NEED(pthread_create(&t, NULL, busy, (void *)(i < 46 ? i % 2 : i)) == 0);
			      while (__atomic_load_n(&ready, __ATOMIC_SEQ_CST) < 50)
				      ms(1);
			      snprintf(me, sizeof me, "%d", getpid());
			      if (from) {
				      pthread_create(&t, NULL, exec_thread, NULL);
				      for (;;)
					      pause();
			      }
			      ROLE("pid", me);
		      })),
		      from ? "exec with 50 threads, from one more" : "exec with 50 threads");
	pthread_mutex_unlock(&held);

	static volatile int v;
	v = 0;
	pid_t p = vfork();
	if (!p) {
		v = 1;
		ROLE("exit", "33");
		_exit(1);
	}
	check(v == 1 && exited(status_of(p), 33), "exec from a child of vfork");
	p = vfork();
	if (!p) {
		v = 2;
		syscall(SYS_execve, "/nonexistent", NULL, NULL);
		v = errno;
		ROLE("exit", "34");
		_exit(1);
	}
	check(v == ENOENT && exited(status_of(p), 34), "exec from a child of vfork, second try");
	static volatile int good, i;
	for (i = good = 0; i < 30; i++) {
		p = vfork();
		if (!p) {
			execl("/bin/true", "true", (char *)NULL);
			_exit(1);
		}
		good += status_of(p) == 0;
	}
	check(good == 30, "30 programs by vfork and exec");
}

/* ---- other kinds of programs -------------------------------------------------------------------------------------------- */

static void kinds(void)
{
	static const char *const known[][3] = { { "/bin/busybox", "busybox", "true" },
						{ "/sbin/ldconfig", "ldconfig", "-V" },
						{ "/bin/bash", "bash", "--version" },
						{ "/usr/bin/perl", "perl", "-v" } };
	char path[4200];
	for (unsigned i = 0; i < sizeof known / sizeof known[0]; i++)
		if (access(known[i][0], X_OK) == 0) {
			snprintf(path, sizeof path, "program: %s", known[i][0]);
			check(fine(FORK({
				      dup2(open("/dev/null", O_WRONLY), 1);
				      execl(known[i][0], known[i][1], known[i][2], (char *)NULL);
			      })),
			      path);
		}
	/* This program, built in other ways. */
	static const char *const suffix[] = { "dyn", "static", "staticpie", "musl" };
	for (unsigned i = 0; i < 4; i++) {
		snprintf(path, sizeof path, "%.*s.%s", (int)(strrchr(self, '.') - self), self, suffix[i]);
		if (access(path, X_OK))
			continue;
		char name[64];
		snprintf(name, sizeof name, "program: this one, %s", suffix[i]);
		check(exited(status_of(FORK(execl(path, path, "role", "exit", "55", (char *)NULL))), 55), name);
	}
}

int main(int argc, char **argv)
{
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	if (n <= 0)
		return 254;
	self[n] = 0;
	if (argc == 1 && !argv[0][0])
		return 77; /* see arguments() */
	if (argc > 2 && !strcmp(argv[1], "role"))
		return role(argc, argv);
	if (argc > 1 && !strncmp(argv[1], "role ", 5))
		return strcmp(argv[1], "role dump") ? 92 : 93; /* see scripts() */
	const char *tmp = getenv("TMPDIR");
	setvbuf(stdout, NULL, _IOLBF, 4096);
	snprintf(dir, sizeof dir, "%s/kx-exec-XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(dir))
		return 253;
	arguments();
	errors();
	scripts();
	by_descriptor();
	inheritance();
	threads();
	kinds();
	unlink(file("arg0"));
	rmdir(dir);
	check(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "no child left");
	puts(first_failed ? "FAILED" : "SUCCESS");
	return first_failed;
}
