/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What servers do with root's rights: users, groups, capabilities, chroot and exec below it. "pvm" as the argument adds
 * what holds only in a pVM; "noexec": of a build with sanitizers. Users other than root run what they may.
 * Each check has an exit code of its own: its number in the order below, from 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SOME_UID 12345
#define SOME_GID 23456

static int step;
static bool pvm, noexec, is_root;

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

/* What fn returns, in a process of its own; 1000 + n for a signal. */
static int in_child(int (*fn)(void))
{
	int st;
	pid_t p = fork();
	if (p == 0)
		_exit(fn());
	if (p < 0 || waitpid(p, &st, 0) != p)
		return -1;
	return WIFEXITED(st) ? WEXITSTATUS(st) : 1000 + WTERMSIG(st);
}

static void capabilities(void)
{
	struct __user_cap_header_struct hdr = { 0 };
	struct __user_cap_data_struct data[2];
	check(syscall(SYS_capget, &hdr, NULL) == 0 && hdr.version == _LINUX_CAPABILITY_VERSION_3,
	      "capget tells its version");
	hdr.version = 1;
	check(syscall(SYS_capget, &hdr, data) == -1 && errno == EINVAL && hdr.version == _LINUX_CAPABILITY_VERSION_3,
	      "capget of an unknown version");
	hdr.version = 2;
	check(syscall(SYS_capset, &hdr, data) == -1 && errno == EINVAL && hdr.version == _LINUX_CAPABILITY_VERSION_3,
	      "capset of an unknown version");
	hdr.pid = getpid();
	check(syscall(SYS_capget, &hdr, data) == 0 && !!(data[0].effective & 1 << CAP_SETUID) == is_root, "capget");
}

/* ---- giving rights up --------------------------------------------------------------------------------------- */

static int ids_are(uid_t r, uid_t e, uid_t s)
{
	uid_t a, b, c;
	return getuid() == r && geteuid() == e && !getresuid(&a, &b, &c) && a == r && b == e && c == s;
}

static int grandchild(void) { return !(ids_are(SOME_UID, SOME_UID, SOME_UID) && getgid() == SOME_GID); }

static int drop(void)
{
	gid_t groups[2] = { 34567, 34568 }, got[4];
	struct stat st;
	int fd;
	if (seteuid(SOME_UID) || !ids_are(0, SOME_UID, 0))
		return 1;
	if (!access("/tmp", R_OK) && (fd = open("/etc/shadow", O_RDONLY)) >= 0)
		return 2;
	if (seteuid(0) || !ids_are(0, 0, 0))
		return 3;
	if (setgroups(2, groups) || getgroups(4, got) != 2 || got[0] != groups[0] || got[1] != groups[1])
		return 4;
	if (setresgid(SOME_GID, SOME_GID, SOME_GID) || setresuid(SOME_UID, SOME_UID, SOME_UID))
		return 5;
	if (grandchild() || in_child(grandchild))
		return 6;
	if (setuid(0) != -1 || errno != EPERM || seteuid(0) != -1 || setgid(0) != -1 || setgroups(0, NULL) != -1)
		return 7;
	if (chown("/tmp", 1, 1) != -1 || errno != EPERM || chroot("/tmp") != -1 || errno != EPERM)
		return 8;
	fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
	if (fd < 0 || fstat(fd, &st) || st.st_uid != SOME_UID || st.st_gid != SOME_GID)
		return 9;
	return 0;
}

static void *idle(void *arg)
{
	uid_t *seen = arg;
	while (__atomic_load_n(seen, __ATOMIC_ACQUIRE) != SOME_UID)
		__atomic_store_n(seen, getuid(), __ATOMIC_RELEASE);
	return (void *)(long)(setuid(0) == -1);
}

static int drop_threads(void)
{
	uid_t seen[3] = { 0 };
	pthread_t t[3];
	void *ret;
	for (int i = 0; i < 3; i++)
		if (pthread_create(&t[i], NULL, idle, &seen[i]))
			return 1;
	if (setuid(SOME_UID))
		return 2;
	for (int i = 0; i < 3; i++)
		if (pthread_join(t[i], &ret) || !ret)
			return 3;
	return 0;
}

/* ---- another root ------------------------------------------------------------------------------------------- */

static char dir[256];

static bool copy(const char *from, const char *to)
{
	char buf[65536];
	ssize_t n;
	int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0755);
	while ((n = read(in, buf, sizeof buf)) > 0)
		if (write(out, buf, n) != n)
			return false;
	close(in);
	close(out);
	return n == 0 && out >= 0;
}

#define IN_ROOT 42

/* Run below the other root, from there. */
static int in_root(void)
{
	char cwd[256];
	return getcwd(cwd, sizeof cwd) && !strcmp(cwd, "/") && !access("/program", X_OK) && access("/etc/passwd", F_OK)
		       ? IN_ROOT
		       : 1;
}

/* A root with this program and what it needs, by the names that it knows. */
static int other_root(void)
{
	char cwd[256];
	if (chdir(dir) || mkdir("lib64", 0755) || mkdir("lib", 0755) || !copy("/proc/self/exe", "program") ||
	    !copy("/lib64/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2") ||
	    !copy("/lib/x86_64-linux-gnu/libc.so.6", "lib/libc.so.6"))
		return 1;
	if (chroot(".") || chdir("/") || !getcwd(cwd, sizeof cwd) || strcmp(cwd, "/"))
		return 2;
	if (!access("/etc/passwd", F_OK) || access("/program", X_OK) || access("/../program", X_OK))
		return 3;
	execl("/program", "program", "child", NULL);
	return noexec && errno == ENOSYS ? IN_ROOT : 4;
}

static void *chroots(void *arg)
{
	(void)arg;
	return (void *)(long)(chroot("/tmp") == 0);
}

static int view(void)
{
	pthread_t t;
	void *ret;
	if (!mkdir("/kx-dir", 0755) || errno != EROFS || !rename("/lib64", "/kx-lib") || errno != EROFS ||
	    !unlink("/lib64") || errno != EROFS || !symlink("/tmp", "/kx-link") || errno != EROFS)
		return 1;
	if (chmod("/dev/null", 0600) != -1 || errno != EROFS || chown("/dev/zero", 1, 1) != -1 || errno != EROFS)
		return 2;
	/* Of one thread, for all. */
	if (is_root &&
	    (pthread_create(&t, NULL, chroots, NULL) || pthread_join(t, &ret) || !ret || !access("/usr", F_OK)))
		return 3;
	return 0;
}

int main(int argc, char **argv)
{
	const char *tmp = getenv("TMPDIR");
	if (argc > 1 && !strcmp(argv[1], "child"))
		return in_root();
	noexec = argc > 2 && !strcmp(argv[2], "noexec");
	pvm = argc > 1 && !strcmp(argv[1], "pvm");
	is_root = geteuid() == 0;
	capabilities();
	if (pvm)
		check(in_child(view) == 0, "the view's root and its devices stay as they are");
	if (is_root) {
		int r = in_child(drop);
		if (r)
			printf("drop: %d\n", r);
		check(r == 0, "rights given up");
		check(ids_are(0, 0, 0), "the parent keeps its own");
		check(in_child(drop_threads) == 0, "rights given up by all threads");
		snprintf(dir, sizeof dir, "%s/kx-root-XXXXXX", tmp ? tmp : "/tmp");
		check(mkdtemp(dir) != NULL && in_child(other_root) == IN_ROOT, "another root");
		char path[300];
		static const char *const made[] = {
			"lib64/ld-linux-x86-64.so.2", "lib/libc.so.6", "lib64", "lib", "program", ""
		};
		for (int i = 0; i < 6; i++) {
			snprintf(path, sizeof path, "%s/%s", dir, made[i]);
			if (remove(path))
				check(false, path);
		}
	}
	puts("SUCCESS");
	return 0;
}
