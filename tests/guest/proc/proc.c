/* SPDX-License-Identifier: Apache-2.0 */
/*
 * procfs as programs use it, and ways around it that must lead nowhere. "pvm" as the argument adds what holds only
 * in a pVM. Each check has an exit code of its own: its number in the order below, from 1.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NR_THREADS 3

static int step;
static bool pvm;
static char text[4 << 20];
static char **args;

static void check(bool good, const char *name)
{
	step++;
	if (!good) {
		printf("FAILED %s (%d): %s\n", name, step, strerror(errno));
		fflush(stdout);
		_exit(step);
	}
	printf("ok %s\n", name);
	fflush(stdout);
}

static ssize_t slurp(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n, len = 0;
	if (fd < 0)
		return -1;
	while ((n = read(fd, text + len, sizeof text - 1 - len)) > 0)
		len += n;
	text[len] = 0;
	close(fd);
	return n < 0 ? -1 : len;
}

static bool has(const char *path, const char *what) { return slurp(path) > 0 && strstr(text, what); }

/* The line of maps that holds p, in `line`. */
static bool map_of(const void *p, char line[512])
{
	unsigned long a, b, x = (unsigned long)p;
	for (char *s = text; *s; s = strchr(s, '\n') + 1) {
		if (sscanf(s, "%lx-%lx", &a, &b) != 2 || x < a || x >= b)
			continue;
		snprintf(line, 512, "%.*s", (int)strcspn(s, "\n"), s);
		return true;
	}
	return false;
}

static void maps(void)
{
	char line[512];
	int local;
	void *brk = sbrk(65536);
	int *anon = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(slurp("/proc/self/maps") > 0, "maps readable");
	check(map_of((void *)(unsigned long)maps, line) && strstr(line, " r-xp ") && strchr(line, '/'),
	      "maps: own code");
	check(map_of(&step, line) && strstr(line, " rw-p "), "maps: own data");
	check(map_of(&local, line) && strstr(line, "rw-p") && strstr(line, "[stack]"), "maps: stack");
	check(map_of(brk, line) && strstr(line, "[heap]"), "maps: heap");
	check(map_of(anon, line) && strstr(line, " r--p "), "maps: anonymous");
	check(map_of((void *)getauxval(AT_SYSINFO_EHDR), line) && strstr(line, "[vdso]"), "maps: vdso");
	unsigned long a, b, last = 0;
	bool sorted = true;
	for (char *s = text; *s; s = strchr(s, '\n') + 1) {
		sorted &= sscanf(s, "%lx-%lx", &a, &b) == 2 && a >= last && b > a;
		last = b;
	}
	check(sorted, "maps: sorted");
	check(!pvm || last <= 0x8000000000, "maps: nothing of the monitor");
	check(has("/proc/self/smaps", "[stack]") && strstr(text, "Rss:") && strstr(text, "VmFlags:"), "smaps");
	char *rss;
	check(has("/proc/self/smaps_rollup", "[rollup]") && (rss = strstr(text, "Rss:")) && atol(rss + 4) > 0,
	      "smaps_rollup");
	check(munmap(anon, 8192) == 0 && slurp("/proc/self/maps") > 0 && !map_of(anon, line), "maps: after munmap");
}

static long number_after(const char *key)
{
	char *s = strstr(text, key);
	return s ? atol(s + strlen(key)) : -1;
}

static void about_self(void)
{
	char buf[4096];
	unsigned long vsize = 0, rss = 0, data = 0;
	int pid = 0;
	check(slurp("/proc/self/status") > 0 && number_after("\nPid:") == getpid() && number_after("\nVmSize:") > 0,
	      "status");
	check(number_after("\nVmRSS:") > 0 && number_after("\nVmRSS:") <= number_after("\nVmSize:") &&
		      number_after("\nVmData:") > 0 && number_after("\nThreads:") == 1,
	      "status: sizes");
	check(strstr(text, "\nState:\tR"), "status: who reads it runs");
	check(!pvm || number_after("\nVmSize:") < 64 << 20, "status: size is the program's");
	check(slurp("/proc/self/stat") > 0 && sscanf(text, "%d (", &pid) == 1 && pid == getpid(), "stat");
	char *s = strrchr(text, ')');
	int fields = 2;
	for (char *t = s + 1; (t = strchr(t, ' ')); t++)
		if (++fields == 23)
			vsize = strtoul(t + 1, NULL, 10);
	check(fields == 52 && vsize > 0 && (!pvm || vsize < 64ul << 30), "stat: fields");
	check(slurp("/proc/self/statm") > 0 && sscanf(text, "%lu %lu %*u %*u %*u %lu", &vsize, &rss, &data) == 3 &&
		      vsize >= rss && rss > 0 && data > 0,
	      "statm");
	ssize_t n = slurp("/proc/self/cmdline");
	check(n > 0 && !strcmp(text, args[0]) && !text[n - 1], "cmdline");
	check(has("/proc/self/environ", "=") || !getenv("PATH"), "environ");
	n = slurp("/proc/self/auxv");
	unsigned long *aux = (void *)text, phdr = 0;
	for (ssize_t i = 0; i + 16 <= n; i += 16, aux += 2)
		if (aux[0] == AT_PHDR)
			phdr = aux[1];
	check(n >= 32 && phdr == getauxval(AT_PHDR), "auxv");
	check(prctl(PR_SET_NAME, "kxproc") == 0 && slurp("/proc/self/comm") == 7 && !strcmp(text, "kxproc\n"), "comm");
	int fd = open("/proc/self/comm", O_WRONLY);
	check(fd >= 0 && write(fd, "kxnew", 5) == 5 && close(fd) == 0 && prctl(PR_GET_NAME, buf) == 0 &&
		      !strcmp(buf, "kxnew"),
	      "comm: written");
	n = readlink("/proc/self/exe", buf, sizeof buf - 1);
	check(n > 0 && buf[0] == '/', "exe: link");
	buf[n] = 0;
	struct stat a, b;
	check(stat(buf, &a) == 0 && stat("/proc/self/exe", &b) == 0 && a.st_ino == b.st_ino && a.st_size == b.st_size,
	      "exe: stat");
	fd = open("/proc/self/exe", O_RDONLY);
	check(fd >= 0 && read(fd, buf, 4) == 4 && !memcmp(buf, ELFMAG, 4) && close(fd) == 0, "exe: open");
	check(lstat("/proc/self/exe", &a) == 0 && S_ISLNK(a.st_mode), "exe: lstat");
	snprintf(buf, sizeof buf, "%d", getpid());
	char link[64];
	n = readlink("/proc/self", link, sizeof link);
	check(n == (ssize_t)strlen(buf) && !memcmp(link, buf, n) && readlink("/proc/self/maps", link, 64) < 0 &&
		      errno == EINVAL,
	      "self: link");
	snprintf(buf, sizeof buf, "/proc/%d/status", getpid());
	check(has(buf, "VmSize:") && lstat(buf, &a) == 0 && S_ISREG(a.st_mode) && a.st_size == 0, "own pid");
	char *real = realpath("/proc/self/exe", NULL), *cwd = realpath("/proc/self/cwd", NULL);
	check(real && real[0] == '/' && strncmp(real, "/proc", 5) && cwd && getcwd(buf, sizeof buf) &&
		      !strcmp(buf, cwd),
	      "realpath");
	free(real);
	free(cwd);
	char gone[] = "/tmp/proc-XXXXXX", was[PATH_MAX];
	check(getcwd(was, sizeof was) && mkdtemp(gone) && !chdir(gone) && !rmdir(gone), "a directory that is removed");
	n = readlink("/proc/self/cwd", buf, sizeof buf - 1);
	buf[n > 0 ? n : 0] = 0;
	check(n > 0 && !strncmp(buf, gone, strlen(gone)) && !strcmp(buf + strlen(gone), " (deleted)") &&
		      !stat("/proc/self/cwd", &a) && S_ISDIR(a.st_mode) && !chdir(was),
	      "is the working directory: link");
	static const char *const plain[] = { "limits",    "mountinfo", "mounts",  "cgroup",         "oom_score_adj",
					     "oom_score", "schedstat", "uid_map", "coredump_filter" };
	for (unsigned i = 0; i < sizeof plain / sizeof *plain; i++) {
		snprintf(buf, sizeof buf, "/proc/self/%s", plain[i]);
		check(slurp(buf) >= 0, buf);
	}
	check(has("/proc/mounts", " /proc proc ") && stat("/proc/mounts", &a) == 0 && S_ISREG(a.st_mode), "mounts");
}

static void system_wide(void)
{
	char buf[128];
	struct statfs fs;
	struct stat st;
	static const char *const files[] = { "meminfo",
					     "cpuinfo",
					     "stat",
					     "uptime",
					     "loadavg",
					     "filesystems",
					     "version",
					     "vmstat",
					     "net/dev",
					     "net/tcp",
					     "self/net/unix",
					     "sys/vm/overcommit_memory",
					     "sys/kernel/pid_max",
					     "sys/kernel/overflowuid",
					     "sys/kernel/overflowgid",
					     "sys/kernel/random/boot_id",
					     "sys/net/core/somaxconn",
					     "sys/fs/file-max",
					     "sys/fs/inotify/max_user_watches" };
	for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
		snprintf(buf, sizeof buf, "/proc/%s", files[i]);
		check(slurp(buf) > 0 && access(buf, R_OK) == 0 && stat(buf, &st) == 0 && S_ISREG(st.st_mode), buf);
	}
	check(has("/proc/meminfo", "MemTotal:"), "meminfo: total");
	check(has("/../proc/./meminfo", "MemTotal:") && has("//proc//meminfo", "MemTotal:"), "odd spelling");
	check(statfs("/proc", &fs) == 0 && fs.f_type == 0x9fa0 && statfs("/proc/self/maps", &fs) == 0 &&
		      fs.f_type == 0x9fa0,
	      "statfs");
	check(access("/proc/self/maps", X_OK) < 0 && access("/proc/nonsense", F_OK) < 0 && errno == ENOENT, "access");
	struct statx x;
	check(statx(AT_FDCWD, "/proc/self/stat", 0, STATX_BASIC_STATS, &x) == 0 && S_ISREG(x.stx_mode), "statx");
}

/* Numbers listed in a directory of procfs; -1 in case of trouble. */
static int numbers(const char *path, int *out, int max, int *own)
{
	DIR *d = opendir(path);
	int n = 0;
	if (!d)
		return -1;
	*own = dirfd(d);
	for (struct dirent *e; (e = readdir(d));)
		if (e->d_name[0] >= '0' && e->d_name[0] <= '9' && n < max)
			out[n++] = atoi(e->d_name);
	closedir(d);
	return n;
}

static void descriptors(void)
{
	int fds[64], own, p[2], n;
	char buf[64], name[64];
	check(pipe(p) == 0 && dup2(p[0], 37) == 37, "pipe");
	n = numbers("/proc/self/fd", fds, 64, &own);
	bool all = n > 0, seen_own = false, seen37 = false;
	int count = 0;
	for (int i = 0; i < n; i++) {
		seen_own |= fds[i] == own;
		seen37 |= fds[i] == 37;
		all &= fds[i] == own || fcntl(fds[i], F_GETFD) >= 0;
	}
	for (int i = 0; i < 1024; i++)
		count += fcntl(i, F_GETFD) >= 0;
	check(all && seen_own && seen37 && n == count + 1, "fd: listing");
	close(37);
	n = numbers("/proc/self/fd", fds, 64, &own);
	check(n == count, "fd: after close");
	check(numbers("/proc/self/fdinfo", fds, 64, &own) == n, "fdinfo: listing");
	ssize_t k = readlink("/proc/self/fd/0", buf, sizeof buf);
	check(k > 0, "fd: link");
	snprintf(name, sizeof name, "/proc/self/fd/%d", p[0]);
	k = readlink(name, buf, sizeof buf);
	check(k > 6 && !memcmp(buf, "pipe:[", 6), "fd: link to a pipe");
	snprintf(name, sizeof name, "/dev/fd/%d", p[1]);
	int w = open(name, O_WRONLY);
	check(w >= 0 && write(w, "hello", 5) == 5 && read(p[0], buf, 5) == 5 && !memcmp(buf, "hello", 5),
	      "dev/fd: open");
	struct stat st;
	check(stat(name, &st) == 0 && S_ISFIFO(st.st_mode) && close(w) == 0, "dev/fd: stat");
	snprintf(name, sizeof name, "/proc/self/fdinfo/%d", p[0]);
	check(has(name, "flags:"), "fdinfo");
	check(stat("/dev/stdin", &st) == 0 && access("/dev/stdout", F_OK) == 0 && stat("/dev/fd/0", &st) == 0,
	      "dev/stdin");
	check(open("/proc/self/fd/999", O_RDONLY) < 0 && errno == ENOENT, "fd: unused number");
	/* Through a directory's descriptor, and the name of a file that has none yet. */
	int dir = open("/tmp", O_RDONLY | O_DIRECTORY);
	snprintf(name, sizeof name, "/proc/self/fd/%d/.", dir);
	check(dir >= 0 && stat(name, &st) == 0 && S_ISDIR(st.st_mode), "fd: through a directory");
	snprintf(name, sizeof name, "/proc/self/fd/%d/kxproc.%d", dir, getpid());
	int fd = open(name, O_CREAT | O_EXCL | O_RDWR, 0600);
	char link[64];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	check(fd >= 0 && chmod(link, 0640) == 0 && fstat(fd, &st) == 0 && (st.st_mode & 0777) == 0640, "fd: chmod");
	check(unlink(name) == 0 && close(fd) == 0 && close(dir) == 0, "fd: unlink through a directory");
	check(stat("/proc/self/root/tmp", &st) == 0 && S_ISDIR(st.st_mode), "root: through it");
	DIR *d = opendir("/proc/self/fd");
	snprintf(name, sizeof name, "%d", p[0]);
	k = d ? readlinkat(dirfd(d), name, buf, sizeof buf) : -1;
	check(k > 6 && !memcmp(buf, "pipe:[", 6), "fd: readlinkat");
	check(fstatat(dirfd(d), name, &st, 0) == 0 && S_ISFIFO(st.st_mode) && closedir(d) == 0, "fd: fstatat");
	close(p[0]);
	close(p[1]);
}

static pthread_barrier_t gate;
static pid_t tids[NR_THREADS];

static void *sleeper(void *arg)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	tids[(long)arg] = (pid_t)syscall(SYS_gettid);
	pthread_barrier_wait(&gate);
	pthread_barrier_wait(&gate);
	return NULL;
}

static unsigned long mask_after(const char *key)
{
	char *s = strstr(text, key);
	return s ? strtoul(s + strlen(key), NULL, 16) : ~0ul;
}

static void ignore(int sig) { (void)sig; }

/* What of signals status and stat tell is the program's. */
static void signals(void)
{
	const unsigned long usr1 = 1ul << (SIGUSR1 - 1), usr2 = 1ul << (SIGUSR2 - 1), term = 1ul << (SIGTERM - 1),
			    rt = 1ul << (SIGRTMAX - 1);
	unsigned long blocked = 1, ignored = 1, caught = 1;
	sigset_t set, old;
	struct sigaction was[3];
	check(slurp("/proc/self/status") > 0, "status of signals");
	unsigned long ign = mask_after("\nSigIgn:"), cgt = mask_after("\nSigCgt:"), blk = mask_after("\nSigBlk:");
	check(!((ign | cgt | blk) & (usr1 | usr2 | term | rt)), "status: no signal but by request");
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGRTMAX);
	sigaction(SIGUSR2, &(struct sigaction){ .sa_handler = ignore }, &was[0]);
	sigaction(SIGRTMAX, &(struct sigaction){ .sa_handler = ignore }, &was[1]);
	sigaction(SIGTERM, &(struct sigaction){ .sa_handler = SIG_IGN }, &was[2]);
	sigprocmask(SIG_BLOCK, &set, &old);
	check(slurp("/proc/self/status") > 0 && mask_after("\nSigBlk:") == (blk | usr1 | rt) &&
		      mask_after("\nSigIgn:") == (ign | term) && mask_after("\nSigCgt:") == (cgt | usr2 | rt),
	      "status: blocked, ignored, caught");
	char *s = slurp("/proc/thread-self/stat") > 0 ? strrchr(text, ')') : NULL;
	check(s &&
		      sscanf(s,
			     ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %*u %*u "
			     "%*d %*u "
			     "%*u %*u %*u %*u %*u %*u %lu %lu %lu",
			     &blocked, &ignored, &caught) == 3 &&
		      blocked == ((blk | usr1) & 0x7fffffff) && ignored == ((ign | term) & 0x7fffffff) &&
		      caught == ((cgt | usr2) & 0x7fffffff),
	      "stat: the same");
	pid_t pid = vfork();
	if (!pid)
		_exit(!(slurp("/proc/self/status") > 0 && mask_after("\nPid:") != ~0ul &&
			mask_after("\nSigCgt:") == (cgt | usr2 | rt)));
	int status;
	check(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0, "status: of a child of vfork");
	sigprocmask(SIG_SETMASK, &old, NULL);
	sigaction(SIGUSR2, &was[0], NULL);
	sigaction(SIGRTMAX, &was[1], NULL);
	sigaction(SIGTERM, &was[2], NULL);
}

static void tasks(void)
{
	pthread_t t[NR_THREADS];
	int ids[64], own, found = 0;
	char name[64], buf[64];
	struct stat st;
	pthread_barrier_init(&gate, NULL, NR_THREADS + 1);
	for (long i = 0; i < NR_THREADS; i++)
		if (pthread_create(&t[i], NULL, sleeper, (void *)i))
			check(false, "threads");
	pthread_barrier_wait(&gate);
	int n = numbers("/proc/self/task", ids, 64, &own);
	for (int i = 0; i < n; i++)
		for (int j = 0; j < NR_THREADS; j++)
			found += ids[i] == tids[j];
	check(n == NR_THREADS + 1 && found == NR_THREADS, "task: listing");
	check(stat("/proc/self/task", &st) == 0 && st.st_nlink == NR_THREADS + 3, "task: links");
	check(slurp("/proc/self/status") > 0 && number_after("\nThreads:") == NR_THREADS + 1, "task: count");
	snprintf(name, sizeof name, "/proc/self/task/%d/status", tids[0]);
	check(slurp(name) > 0 && number_after("\nPid:") == tids[0] && number_after("\nTgid:") == getpid(),
	      "task: status");
	check(mask_after("\nSigBlk:") == 1ul << (SIGUSR1 - 1), "task: what it blocks");
	check(pthread_setname_np(t[1], "kxworker") == 0 && pthread_getname_np(t[1], buf, sizeof buf) == 0 &&
		      !strcmp(buf, "kxworker"),
	      "task: name");
	snprintf(name, sizeof name, "/proc/%d/stat", tids[0]);
	check(slurp(name) > 0 && atoi(text) == tids[0], "task: at the top");
	check(slurp("/proc/thread-self/stat") > 0 && atoi(text) == getpid(), "thread-self");
	pthread_barrier_wait(&gate);
	for (int i = 0; i < NR_THREADS; i++)
		pthread_join(t[i], NULL);
	/* The kernel lets go of a thread a moment after its join. */
	for (int i = 0; i < 60000 && (n = numbers("/proc/self/task", ids, 64, &own)) != 1; i++)
		usleep(1000);
	check(n == 1 && ids[0] == getpid(), "task: after join");
	DIR *d = opendir("/proc");
	bool self = false, pid = false;
	for (struct dirent *e; d && (e = readdir(d));) {
		self |= !strcmp(e->d_name, "self");
		pid |= atoi(e->d_name) == getpid();
	}
	check(self && pid && closedir(d) == 0, "root: listing");
	d = opendir("/proc/self");
	bool statm = false;
	for (struct dirent *e; d && (e = readdir(d));)
		statm |= !strcmp(e->d_name, "statm");
	int fd = d ? openat(dirfd(d), "statm", O_RDONLY) : -1;
	check(statm && read(fd, buf, 4) > 0 && close(fd) == 0 && closedir(d) == 0, "self: listing");
}

static void refused(void)
{
	check((!pvm && !getuid()) || (open("/proc/self/maps", O_WRONLY) < 0 && errno == EACCES),
	      "maps: not for writing");
	check(open("/proc/self/nonsense", O_RDWR | O_CREAT, 0600) < 0, "no new files");
	check(mkdir("/proc/self/x", 0700) < 0 && unlink("/proc/self/maps") < 0 &&
		      rename("/proc/self/maps", "/tmp/x") < 0 && symlink("/", "/proc/x") < 0 &&
		      rmdir("/proc/self/fd") < 0,
	      "no changes");
	check(open("/proc/self/fd", O_RDWR) < 0 && errno == EISDIR, "fd: a directory");
	check(open("/proc/self/exe", O_RDONLY | O_NOFOLLOW) < 0 && errno == ELOOP, "exe: a link");
	check(open("/proc/self/maps/", O_RDONLY) < 0 && errno == ENOTDIR, "maps: no directory");
	if (!pvm)
		return;
	int fd = open("/proc/self/maps", O_RDONLY);
	check(write(fd, "x", 1) < 0 && ftruncate(fd, 0) < 0 && close(fd) == 0, "maps: sealed");
	static const char *const bad[] = {
		"/proc/self/mem",
		"/proc/self/../self/mem",
		"/proc/1/mem",
		"/proc/1/environ",
		"/proc/self/root/proc/self/mem",
		"/proc/self/cwd/../../../../../../proc/self/mem",
		"/proc/thread-self/mem",
		"/proc/self/map_files",
		"/proc/self/pagemap",
		"/proc/self/ns/mnt",
		"/proc/kcore",
		"/proc/kallsyms",
		"/proc/sysrq-trigger",
		"/proc/sys/kernel/core_pattern",
		"/proc/sys/fs/inotify/../../kernel/core_pattern",
		"/proc/self/clear_refs",
		"/proc/self/syscall",
		"/proc/self/stack",
		"/proc/self/fd/70000",
		"/proc/self/attr/current",
		"/dev/fd/../mem",
		"/proc/self/fd/0/../mem",
		"/proc/self/task/1/status",
		"/proc/sys/fs/epoll/",
		"/proc/sys/net/ipv4/conf",
	};
	for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
		if (i + 2 == sizeof bad / sizeof *bad)
			continue; /* a listed directory */
		errno = 0;
		check(open(bad[i], O_RDONLY) < 0 && (errno == ENOENT || errno == EACCES || errno == ENOTDIR), bad[i]);
	}
	fd = open("/proc/self/fd", O_RDONLY | O_DIRECTORY);
	check(fd >= 0 && openat(fd, "../mem", O_RDONLY) < 0 && openat(fd, "../../1/mem", O_RDONLY) < 0,
	      "from a directory");
	int m = openat(fd, "../maps", O_RDONLY);
	check(m >= 0 && read(m, text, 64) > 0 && close(m) == 0, "from a directory: what is allowed");
	check(open("/proc/sys/kernel/hostname", O_WRONLY) < 0 && errno == EACCES, "sys: not for writing");
	m = open("/proc/meminfo", O_RDONLY);
	char name[64];
	snprintf(name, sizeof name, "/proc/self/fd/%d", m);
	int again = open(name, O_RDWR);
	check(m >= 0 && (again < 0 || write(again, "x", 1) < 0), "meminfo: not reopened for writing");
	if (again >= 0)
		close(again);
	close(m);
	char old[4096];
	check(getcwd(old, sizeof old) && chdir("/proc/self") == 0 && open("mem", O_RDONLY) < 0 && errno == ENOENT,
	      "from cwd");
	m = open("status", O_RDONLY);
	check(m >= 0 && read(m, text, 64) > 0 && close(m) == 0 && chdir(old) == 0, "from cwd: what is allowed");
	check(fchdir(fd) == 0 && open("../mem", O_RDONLY) < 0 && chdir(old) == 0 && close(fd) == 0, "from fchdir");
	/* A symlink gets past the monitor's eyes; behind it is an empty directory. */
	snprintf(name, sizeof name, "/tmp/kxproc.%d", getpid());
	check(symlink("/proc/self", name) == 0, "symlink");
	char path[128];
	snprintf(path, sizeof path, "%s/mem", name);
	check(open(path, O_RDONLY) < 0 && unlink(name) == 0, "symlink to self");
}

int main(int argc, char **argv)
{
	args = argv;
	pvm = argc > 1 && !strcmp(argv[1], "pvm");
	maps();
	about_self();
	system_wide();
	descriptors();
	signals();
	tasks();
	refused();
	puts("SUCCESS");
	return 0;
}
