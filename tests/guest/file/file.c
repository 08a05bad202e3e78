/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files and descriptors as a program sees them. Passes on any Linux with a writable /tmp (or $TMPDIR); works in a
 * directory of its own and removes it. What a file system may lack (xattr, O_TMPFILE, pty) is skipped when absent.
 * The exit status of a failure is the number of the group of tests, from 10.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <linux/close_range.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <net/if.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define BAD ((void *)8) /* page 0 is never mapped */
#define CHECK(x) check((x), #x, __LINE__)
#define FAILS(x, err) fails((long)(x), (err), #x, __LINE__)

static char dir[PATH_MAX];
static int status;
static const char *group;

static int clean_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)st, (void)type, (void)at;
	return remove(path);
}

static void clean(void)
{
	if (chdir("/") || nftw(dir, clean_one, 16, FTW_DEPTH | FTW_PHYS))
		printf("could not remove %s\n", dir);
}

static void fail(const char *what, int line)
{
	printf("FAIL %s: line %d: %s (errno %d, %s)\n", group, line, what, errno, strerror(errno));
	fflush(stdout);
	clean();
	_exit(status);
}

static void check(bool ok, const char *what, int line)
{
	if (!ok)
		fail(what, line);
}

static void fails(long r, int err, const char *what, int line)
{
	if (r != -1 || errno != err) {
		printf("result %ld, wanted errno %d\n", r, err);
		fail(what, line);
	}
}

static void skip(const char *what) { printf("skip %s: %s\n", what, strerror(errno)); }

static void sleep_ms(int ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * 1000000L };

	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

static int make(const char *name, const char *text)
{
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);

	CHECK(fd >= 0);
	CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	return fd;
}

static bool holds(const char *name, const char *text)
{
	char buf[256];
	int fd = open(name, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, sizeof buf);

	if (fd >= 0)
		close(fd);
	return n == (ssize_t)strlen(text) && !memcmp(buf, text, n);
}

static int next_fd(void)
{
	int fd = dup(0);

	CHECK(fd >= 0);
	close(fd);
	return fd;
}

/* Runs fn(arg) in a thread; finished() says within a time whether it came back. */
struct job {
	pthread_t thread;
	long (*fn)(long);
	long arg, ret;
	int err, done;
};

static void *job_main(void *p)
{
	struct job *j = p;

	j->ret = j->fn(j->arg);
	j->err = errno;
	__atomic_store_n(&j->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void job_start(struct job *j, long (*fn)(long), long arg)
{
	*j = (struct job){ .fn = fn, .arg = arg };
	CHECK(pthread_create(&j->thread, NULL, job_main, j) == 0);
}

static bool job_waits(struct job *j)
{
	sleep_ms(30);
	return !__atomic_load_n(&j->done, __ATOMIC_ACQUIRE);
}

static long job_end(struct job *j)
{
	CHECK(pthread_join(j->thread, NULL) == 0);
	errno = j->err;
	return j->ret;
}

/* ---- names -------------------------------------------------------------------------------------------------- */

static void test_dirs(void)
{
	char buf[PATH_MAX], cwd[PATH_MAX];
	struct stat a, b;
	int fd;

	CHECK(getcwd(cwd, sizeof cwd) && !strcmp(cwd, dir));
	CHECK(syscall(SYS_getcwd, buf, sizeof buf) == (long)strlen(cwd) + 1);
	FAILS(syscall(SYS_getcwd, buf, 2), ERANGE);
	CHECK(mkdir("d", 0755) == 0);
	CHECK(mkdir("d/e", 0700) == 0);
	CHECK(stat("d", &a) == 0 && S_ISDIR(a.st_mode) && (a.st_mode & 0777) == 0755);
	CHECK(chdir("d") == 0);
	CHECK(stat(".", &b) == 0 && a.st_ino == b.st_ino);
	CHECK(getcwd(buf, sizeof buf) && !strncmp(buf, cwd, strlen(cwd)) && !strcmp(buf + strlen(cwd), "/d"));
	CHECK(stat("e", &b) == 0);
	fd = open("..", O_RDONLY | O_DIRECTORY);
	CHECK(fd >= 0 && fchdir(fd) == 0);
	CHECK(getcwd(buf, sizeof buf) && !strcmp(buf, cwd));
	CHECK(mkdirat(fd, "f", 0755) == 0 && fstatat(fd, "f", &b, 0) == 0);
	CHECK(fstatat(fd, "", &b, AT_EMPTY_PATH) == 0 && S_ISDIR(b.st_mode));
	FAILS(fstatat(fd, "", &b, 0), ENOENT);
	FAILS(fstatat(fd, "f", &b, 0x80000000), EINVAL);
	CHECK(unlinkat(fd, "f", AT_REMOVEDIR) == 0);
	close(fd);
	FAILS(rmdir("d"), ENOTEMPTY);
	FAILS(chdir("nothing"), ENOENT);
	close(make("file", "x"));
	FAILS(chdir("file"), ENOTDIR);
	fd = open("file", O_RDONLY);
	FAILS(fchdir(fd), ENOTDIR);
	close(fd);
	CHECK(rmdir("d/e") == 0 && rmdir("d") == 0 && unlink("file") == 0);
}

static void test_links(void)
{
	char buf[64];
	struct stat a, b;
	struct statx x;

	close(make("file", "abc"));
	CHECK(link("file", "hard") == 0 && symlink("file", "soft") == 0);
	CHECK(stat("file", &a) == 0 && stat("hard", &b) == 0);
	CHECK(a.st_ino == b.st_ino && b.st_nlink == 2 && b.st_size == 3);
	CHECK(lstat("soft", &b) == 0 && S_ISLNK(b.st_mode) && b.st_size == 4);
	CHECK(stat("soft", &b) == 0 && b.st_ino == a.st_ino);
	CHECK(fstatat(AT_FDCWD, "soft", &b, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(b.st_mode));
	CHECK(readlink("soft", buf, sizeof buf) == 4 && !memcmp(buf, "file", 4));
	CHECK(readlink("soft", buf, 2) == 2);
	CHECK(readlinkat(AT_FDCWD, "soft", buf, sizeof buf) == 4);
	FAILS(syscall(SYS_readlink, "soft", buf, 0), EINVAL);
	FAILS(readlink("file", buf, sizeof buf), EINVAL);
	CHECK(statx(AT_FDCWD, "file", 0, STATX_BASIC_STATS, &x) == 0);
	CHECK(x.stx_ino == a.st_ino && x.stx_size == 3 && x.stx_nlink == 2);
	CHECK(symlink("loop", "loop") == 0);
	FAILS(open("loop", O_RDONLY), ELOOP);
	FAILS(open("soft", O_RDONLY | O_NOFOLLOW), ELOOP);
	CHECK(holds("soft", "abc"));
	FAILS(link("file", "hard"), EEXIST);
	CHECK(access("file", R_OK) == 0);
	FAILS(access("none", F_OK), ENOENT);
	CHECK(unlink("hard") == 0 && unlink("soft") == 0 && unlink("loop") == 0 && unlink("file") == 0);
}

static void test_rename(void)
{
	int fd = make("a", "one");

	close(make("b", "two"));
	CHECK(rename("a", "b") == 0 && holds("b", "one"));
	FAILS(open("a", O_RDONLY), ENOENT);
	CHECK(pwrite(fd, "ONE", 3, 0) == 3 && holds("b", "ONE"));
	close(make("a", "two"));
	FAILS(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE), EEXIST);
	if (renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_EXCHANGE) == 0)
		CHECK(holds("a", "ONE") && holds("b", "two"));
	else
		CHECK(errno == EINVAL);
	FAILS(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE | RENAME_EXCHANGE), EINVAL);
	CHECK(mkdir("d", 0755) == 0);
	FAILS(rename("a", "d"), EISDIR);
	FAILS(rename("d", "a"), ENOTDIR);
	FAILS(rename("d", "d/x"), EINVAL);
	CHECK(rename("a", "d/a") == 0 && unlink("d/a") == 0 && rmdir("d") == 0 && unlink("b") == 0);
	close(fd);
}

static void test_getdents(void)
{
	char name[16], buf[512];
	bool seen[200] = { false };
	int fd, n = 0;
	long r;

	CHECK(mkdir("many", 0755) == 0);
	for (int i = 0; i < 200; i++) {
		snprintf(name, sizeof name, "many/%d", i);
		close(make(name, ""));
	}
	fd = open("many", O_RDONLY | O_DIRECTORY);
	CHECK(fd >= 0);
	FAILS(syscall(SYS_getdents64, fd, buf, 4), EINVAL);
	while ((r = syscall(SYS_getdents64, fd, buf, sizeof buf)) > 0) {
		for (long at = 0; at < r;) {
			struct dirent64 *d = (struct dirent64 *)(buf + at);

			if (d->d_name[0] != '.') {
				int i = atoi(d->d_name);

				CHECK(i >= 0 && i < 200 && !seen[i]);
				seen[i] = true;
				n++;
			}
			at += d->d_reclen;
		}
	}
	CHECK(r == 0 && n == 200);
	CHECK(lseek(fd, 0, SEEK_SET) == 0 && syscall(SYS_getdents64, fd, buf, sizeof buf) > 0);
	close(fd);
	for (int i = 0; i < 200; i++) {
		snprintf(name, sizeof name, "many/%d", i);
		CHECK(unlink(name) == 0);
	}
	CHECK(rmdir("many") == 0);
	fd = make("file", "");
	FAILS(syscall(SYS_getdents64, fd, buf, sizeof buf), ENOTDIR);
	close(fd);
	unlink("file");
}

static long open_write(long unused)
{
	(void)unused;
	return open("fifo", O_WRONLY);
}

static void test_nodes(void)
{
	struct stat st;
	struct job j;
	int r, w;
	char b[4];

	CHECK(mkfifo("fifo", 0600) == 0);
	CHECK(stat("fifo", &st) == 0 && S_ISFIFO(st.st_mode));
	FAILS(open("fifo", O_WRONLY | O_NONBLOCK), ENXIO);
	job_start(&j, open_write, 0);
	CHECK(job_waits(&j));
	r = open("fifo", O_RDONLY);
	CHECK(r >= 0);
	w = job_end(&j);
	CHECK(w >= 0 && write(w, "hi", 2) == 2 && read(r, b, 4) == 2);
	close(w);
	CHECK(read(r, b, 4) == 0);
	close(r);
	CHECK(mknod("sock", S_IFSOCK | 0600, 0) == 0 && mknod("reg", S_IFREG | 0600, 0) == 0);
	CHECK(stat("sock", &st) == 0 && S_ISSOCK(st.st_mode));
	FAILS(open("sock", O_RDONLY), ENXIO);
	FAILS(mknod("dir", S_IFDIR | 0700, 0), EPERM);
	FAILS(mknod("what", 0110000, 0), EINVAL);
	CHECK(unlink("fifo") == 0 && unlink("sock") == 0 && unlink("reg") == 0);
}

static void test_inotify(void)
{
	char buf[2048] __attribute__((aligned(8)));
	uint32_t seen = 0;
	int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), wd, avail = 0;
	ssize_t n;

	CHECK(fd >= 0);
	CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
	FAILS(read(fd, buf, sizeof buf), EAGAIN);
	CHECK(mkdir("watched", 0755) == 0);
	wd = inotify_add_watch(fd, "watched", IN_CREATE | IN_DELETE | IN_MOVE | IN_MODIFY);
	CHECK(wd > 0);
	close(make("watched/a", "x"));
	CHECK(rename("watched/a", "watched/b") == 0 && unlink("watched/b") == 0);
	CHECK(ioctl(fd, FIONREAD, &avail) == 0 && avail > 0);
	n = read(fd, buf, sizeof buf);
	CHECK(n == avail);
	for (ssize_t at = 0; at < n;) {
		struct inotify_event *e = (struct inotify_event *)(buf + at);

		CHECK(e->wd == wd);
		seen |= e->mask;
		at += sizeof *e + e->len;
	}
	CHECK((seen & (IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_MODIFY)) ==
	      (IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_MODIFY));
	CHECK(inotify_rm_watch(fd, wd) == 0);
	FAILS(inotify_rm_watch(fd, 9999), EINVAL);
	close(fd);
	CHECK(rmdir("watched") == 0);
}

static void test_open(void)
{
	struct open_how how = { .flags = O_RDONLY };
	struct stat st;
	char big[sizeof how + 8] = { 0 };
	int fd, d, old;

	old = umask(027);
	fd = open("file", O_CREAT | O_EXCL | O_WRONLY, 0666);
	CHECK(fd >= 0 && fstat(fd, &st) == 0 && (st.st_mode & 0777) == 0640);
	umask(old);
	FAILS(read(fd, big, 1), EBADF);
	close(fd);
	FAILS(open("file", O_CREAT | O_EXCL | O_WRONLY, 0666), EEXIST);
	fd = creat("file", 0600);
	CHECK(fd >= 0 && (fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY);
	close(fd);
	d = open(".", O_PATH | O_DIRECTORY);
	CHECK(d >= 0);
	fd = openat(d, "file", O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
	close(fd);
	FAILS(read(d, big, 1), EBADF);
	fd = syscall(SYS_openat2, d, "file", &how, sizeof how);
	if (fd < 0) {
		CHECK(errno == ENOSYS);
		skip("openat2");
	} else {
		close(fd);
		memcpy(big, &how, sizeof how);
		fd = syscall(SYS_openat2, d, "file", big, sizeof big);
		CHECK(fd >= 0);
		close(fd);
		big[sizeof how] = 1;
		FAILS(syscall(SYS_openat2, d, "file", big, sizeof big), E2BIG);
		FAILS(syscall(SYS_openat2, d, "file", &how, 8), EINVAL);
		FAILS(syscall(SYS_openat2, d, "file", BAD, sizeof how), EFAULT);
		how.resolve = RESOLVE_BENEATH;
		FAILS(syscall(SYS_openat2, d, "../x", &how, sizeof how), EXDEV);
		how.mode = 0600;
		FAILS(syscall(SYS_openat2, d, "file", &how, sizeof how), EINVAL);
	}
	close(d);
	unlink("file");
	fd = open(".", O_TMPFILE | O_RDWR, 0600);
	if (fd < 0) {
		CHECK(errno == EOPNOTSUPP || errno == EISDIR);
		skip("O_TMPFILE");
		return;
	}
	CHECK(fstat(fd, &st) == 0 && st.st_nlink == 0);
	CHECK(write(fd, "tmp", 3) == 3);
	if (linkat(fd, "", AT_FDCWD, "named", AT_EMPTY_PATH) == 0)
		CHECK(holds("named", "tmp") && unlink("named") == 0);
	close(fd);
}

/* ---- contents ------------------------------------------------------------------------------------------------- */

static void test_io(void)
{
	char a[4], b[8], c[64];
	struct iovec v[2] = { { a, 3 }, { b, 5 } };
	int fd = make("file", "0123456789"), fd2;

	CHECK(lseek(fd, 2, SEEK_SET) == 2 && readv(fd, v, 2) == 8);
	CHECK(!memcmp(a, "234", 3) && !memcmp(b, "56789", 5));
	CHECK(read(fd, c, sizeof c) == 0);
	CHECK(lseek(fd, 0, SEEK_SET) == 0 && writev(fd, v, 2) == 8 && holds("file", "2345678989"));
	CHECK(preadv(fd, v, 2, 1) == 8 && !memcmp(a, "345", 3));
	CHECK(preadv2(fd, v, 2, 0, 0) == 8 && !memcmp(a, "234", 3));
	CHECK(pwritev2(fd, v, 1, 7, 0) == 3 && holds("file", "2345678234"));
	CHECK(lseek(fd, 0, SEEK_CUR) == 8);
	FAILS(syscall(SYS_readv, fd, v, 1025), EINVAL);
	v[1].iov_base = BAD;
	FAILS(syscall(SYS_writev, fd, BAD, 1), EFAULT);
	FAILS(pread(fd, c, 1, -1), EINVAL);
	FAILS(lseek(fd, -1, SEEK_SET), EINVAL);
	FAILS(lseek(fd, 0, 77), EINVAL);
	close(fd);

	fd = open("file", O_WRONLY | O_APPEND);
	fd2 = open("file", O_WRONLY | O_APPEND);
	CHECK(write(fd, "x", 1) == 1 && write(fd2, "y", 1) == 1 && write(fd, "z", 1) == 1);
	CHECK(holds("file", "2345678234xyz"));
	CHECK(lseek(fd, 0, SEEK_CUR) == 13);
	CHECK(fcntl(fd, F_GETFL) & O_APPEND);
	CHECK(fcntl(fd, F_SETFL, 0) == 0 && !(fcntl(fd, F_GETFL) & O_APPEND));
	CHECK(pwrite(fd, "-", 1, 0) == 1 && holds("file", "-345678234xyz"));
	close(fd2);

	CHECK(ftruncate(fd, 3) == 0 && holds("file", "-34"));
	CHECK(truncate("file", 5) == 0 && lseek(fd, 0, SEEK_END) == 5);
	FAILS(ftruncate(fd, -1), EINVAL);
	FAILS(truncate("none", 0), ENOENT);
	close(fd);
	fd = open("file", O_RDONLY);
	CHECK(read(fd, c, sizeof c) == 5 && !memcmp(c, "-34\0\0", 5));
	FAILS(ftruncate(fd, 0), EINVAL);
	FAILS(write(fd, "x", 1), EBADF);
	CHECK(fsync(fd) == 0 && fdatasync(fd) == 0);
	close(fd);
	unlink("file");
}

static void test_sparse(void)
{
	const off_t M = 1 << 20;
	int fd = make("sparse", "");
	struct stat st;
	off_t data;

	CHECK(pwrite(fd, "x", 1, 4 * M) == 1);
	CHECK(fstat(fd, &st) == 0 && st.st_size == 4 * M + 1);
	data = lseek(fd, 0, SEEK_DATA);
	CHECK(data == 0 || data == 4 * M);
	if (data)
		CHECK(lseek(fd, 0, SEEK_HOLE) == 0 && st.st_blocks < 4 * M / 512);
	CHECK(lseek(fd, 4 * M, SEEK_HOLE) == 4 * M + 1);
	FAILS(lseek(fd, 5 * M, SEEK_DATA), ENXIO);
	if (fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 8 * M) == 0) {
		CHECK(fstat(fd, &st) == 0 && st.st_size == 4 * M + 1);
		int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
		CHECK(fallocate(fd, punch, 4 * M, 4096) == 0 || errno == EOPNOTSUPP);
	} else {
		CHECK(errno == EOPNOTSUPP);
		skip("fallocate");
	}
	close(fd);
	unlink("sparse");
}

static void test_move(void)
{
	static char big[200000], back[200000];
	int in = make("in", ""), out = make("out", ""), p[2], q[2];
	off_t off = 5;
	loff_t a = 0, b = 0;
	struct iovec v = { big, 10 };

	for (size_t i = 0; i < sizeof big; i++)
		big[i] = (char)(i * 31 + i / 255);
	CHECK(write(in, big, sizeof big) == sizeof big);
	CHECK(sendfile(out, in, &off, 1000) == 1000 && off == 1005 && lseek(in, 0, SEEK_CUR) == sizeof big);
	CHECK(pread(out, back, sizeof back, 0) == 1000 && !memcmp(back, big + 5, 1000));
	CHECK(lseek(in, 0, SEEK_SET) == 0 && ftruncate(out, 0) == 0 && lseek(out, 0, SEEK_SET) == 0);
	for (size_t n = 0; n < sizeof big;) {
		ssize_t r = sendfile(out, in, NULL, sizeof big);

		CHECK(r > 0);
		n += r;
	}
	CHECK(pread(out, back, sizeof back, 0) == sizeof back && !memcmp(back, big, sizeof big));

	CHECK(pipe(p) == 0 && pipe2(q, O_CLOEXEC) == 0);
	CHECK(splice(in, &a, p[1], NULL, 4096, 0) == 4096 && a == 4096);
	CHECK(tee(p[0], q[1], 4096, 0) == 4096);
	CHECK(read(q[0], back, 4096) == 4096 && !memcmp(back, big, 4096));
	b = 100;
	CHECK(ftruncate(out, 0) == 0 && splice(p[0], NULL, out, &b, 4096, 0) == 4096 && b == 4196);
	CHECK(pread(out, back, 4096, 100) == 4096 && !memcmp(back, big, 4096));
	CHECK(vmsplice(p[1], &v, 1, 0) == 10 && read(p[0], back, 20) == 10 && !memcmp(back, big, 10));
	FAILS(splice(in, NULL, out, NULL, 10, 0), EINVAL);
	FAILS(splice(p[0], NULL, q[1], NULL, 10, SPLICE_F_NONBLOCK), EAGAIN);

	a = 10, b = 0;
	if (copy_file_range(in, &a, out, &b, 5000, 0) == 5000) {
		CHECK(a == 5010 && b == 5000);
		CHECK(pread(out, back, 5000, 0) == 5000 && !memcmp(back, big + 10, 5000));
	} else {
		CHECK(errno == EOPNOTSUPP || errno == EXDEV || errno == ENOSYS || errno == EINVAL);
		skip("copy_file_range");
	}
	close(p[0]), close(p[1]), close(q[0]), close(q[1]), close(in), close(out);
	unlink("in"), unlink("out");
}

static void test_xattr(void)
{
	char buf[256];
	int fd = make("file", "x");

	if (setxattr("file", "user.kx", "value", 5, 0) == 0) {
		CHECK(getxattr("file", "user.kx", buf, sizeof buf) == 5 && !memcmp(buf, "value", 5));
		CHECK(fgetxattr(fd, "user.kx", NULL, 0) == 5);
		FAILS(fgetxattr(fd, "user.kx", buf, 2), ERANGE);
		FAILS(fgetxattr(fd, "user.none", buf, sizeof buf), ENODATA);
		FAILS(setxattr("file", "user.kx", "v", 1, XATTR_CREATE), EEXIST);
		ssize_t n = listxattr("file", buf, sizeof buf);
		CHECK(n >= 8 && memmem(buf, n, "user.kx", 8));
		CHECK(removexattr("file", "user.kx") == 0);
		FAILS(getxattr("file", "user.kx", buf, sizeof buf), ENODATA);
	} else {
		CHECK(errno == EOPNOTSUPP || errno == EPERM);
		skip("xattr");
	}
	close(fd);
	unlink("file");
}

static void test_mmap(void)
{
	char buf[8192];
	int fd = make("map", "");
	char *s, *s2, *p, *r;

	CHECK(ftruncate(fd, 8192) == 0);
	s = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	s2 = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4096);
	p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(s != MAP_FAILED && s2 != MAP_FAILED && p != MAP_FAILED);
	memset(s + 4000, '-', 200);
	memcpy(s, "shared", 6);
	CHECK(pread(fd, buf, sizeof buf, 0) == sizeof buf && !memcmp(buf, s, sizeof buf));
	CHECK(pwrite(fd, "written", 7, 5000) == 7 && !memcmp(s + 5000, "written", 7));
	CHECK(!memcmp(s2 + 5000 - 4096, "written", 7));
	s2[0] = '!';
	CHECK(s[4096] == '!');
	CHECK(!memcmp(p, "shared", 6));
	memcpy(p, "hidden", 6);
	CHECK(!memcmp(s, "shared", 6));
	CHECK(pread(fd, buf, 6, 0) == 6 && !memcmp(buf, "shared", 6));
	CHECK(msync(s, 8192, MS_SYNC) == 0);
	/* Calls whose buffers are mappings of the file itself. */
	CHECK(pread(fd, s + 100, 6, 0) == 6 && !memcmp(s + 100, "shared", 6));
	CHECK(pwrite(fd, p, 6, 200) == 6 && !memcmp(s + 200, "hidden", 6));
	close(fd);
	s[0] = 'S';
	fd = open("map", O_RDONLY);
	CHECK(read(fd, buf, 6) == 6 && !memcmp(buf, "Shared", 6));
	CHECK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EACCES);
	r = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	CHECK(r != MAP_FAILED && r[0] == 'S');
	FAILS(pread(fd, r, 4, 0), EFAULT);
	FAILS(mprotect(r, 4096, PROT_READ | PROT_WRITE), EACCES);
	CHECK(munmap(r, 4096) == 0 && munmap(s, 8192) == 0 && munmap(s2, 4096) == 0 && munmap(p, 8192) == 0);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, 999, 0) == MAP_FAILED && errno == EBADF);
	close(fd);
	unlink("map");
}

/* ---- locks ------------------------------------------------------------------------------------------------------ */

static long take_flock(long fd) { return flock(fd, LOCK_EX); }

static long take_ofd(long fd)
{
	struct flock fl = { .l_type = F_WRLCK, .l_start = 0, .l_len = 10 };

	return fcntl(fd, F_OFD_SETLKW, &fl);
}

static long take_posix(long fd)
{
	struct flock fl = { .l_type = F_WRLCK, .l_len = 10 };

	return fcntl(fd, F_SETLK, &fl);
}

static void test_locks(void)
{
	int a = make("lock", "0123456789"), b = open("lock", O_RDWR), c;
	struct flock fl = { .l_type = F_WRLCK, .l_len = 10 };
	struct job j;

	CHECK(b >= 0);
	CHECK(flock(a, LOCK_SH) == 0 && flock(b, LOCK_SH) == 0);
	FAILS(flock(a, LOCK_EX | LOCK_NB), EWOULDBLOCK);
	CHECK(flock(b, LOCK_UN) == 0 && flock(a, LOCK_EX | LOCK_NB) == 0);
	FAILS(flock(b, LOCK_SH | LOCK_NB), EWOULDBLOCK);
	c = dup(a);
	CHECK(flock(c, LOCK_EX | LOCK_NB) == 0);
	job_start(&j, take_flock, b);
	CHECK(job_waits(&j));
	CHECK(flock(c, LOCK_UN) == 0);
	CHECK(job_end(&j) == 0);
	FAILS(flock(a, LOCK_EX | LOCK_NB), EWOULDBLOCK);
	CHECK(flock(b, LOCK_UN) == 0);
	close(c);

	/* Record locks belong to the process: no conflict between threads or descriptors. */
	CHECK(fcntl(a, F_SETLK, &fl) == 0);
	job_start(&j, take_posix, b);
	CHECK(job_end(&j) == 0);
	CHECK(fcntl(b, F_SETLKW, &fl) == 0);
	CHECK(fcntl(b, F_GETLK, &fl) == 0 && fl.l_type == F_UNLCK);
	fl = (struct flock){ .l_type = F_UNLCK };
	CHECK(fcntl(a, F_SETLK, &fl) == 0);
	fl = (struct flock){ .l_type = 77 };
	FAILS(fcntl(a, F_SETLK, &fl), EINVAL);
	FAILS(syscall(SYS_fcntl, a, F_SETLK, BAD), EFAULT);

	fl = (struct flock){ .l_type = F_WRLCK, .l_start = 2, .l_len = 3 };
	CHECK(fcntl(a, F_OFD_SETLK, &fl) == 0);
	FAILS(fcntl(b, F_OFD_SETLK, &fl), EAGAIN);
	fl = (struct flock){ .l_type = F_RDLCK };
	CHECK(fcntl(b, F_OFD_GETLK, &fl) == 0);
	CHECK(fl.l_type == F_WRLCK && fl.l_start == 2 && fl.l_len == 3 && fl.l_pid == -1);
	fl = (struct flock){ .l_type = F_WRLCK, .l_start = 5, .l_len = 3 };
	CHECK(fcntl(b, F_OFD_SETLK, &fl) == 0);
	fl.l_type = F_UNLCK;
	CHECK(fcntl(b, F_OFD_SETLK, &fl) == 0);
	job_start(&j, take_ofd, b);
	CHECK(job_waits(&j));
	fl = (struct flock){ .l_type = F_UNLCK };
	CHECK(fcntl(a, F_OFD_SETLK, &fl) == 0);
	CHECK(job_end(&j) == 0);
	fl = (struct flock){ .l_type = F_WRLCK, .l_start = 2, .l_len = 3 };
	FAILS(fcntl(a, F_OFD_SETLK, &fl), EAGAIN);
	close(b);
	CHECK(fcntl(a, F_OFD_SETLK, &fl) == 0);
	close(a);
	unlink("lock");
}

/* ---- descriptors ------------------------------------------------------------------------------------------------ */

static void test_dup(void)
{
	int fd = make("file", "0123456789"), d, e;
	char b[2];

	d = dup(fd);
	CHECK(d > fd && lseek(fd, 3, SEEK_SET) == 3 && lseek(d, 0, SEEK_CUR) == 3);
	CHECK(read(d, b, 2) == 2 && lseek(fd, 0, SEEK_CUR) == 5);
	CHECK(dup2(fd, d) == d && dup2(fd, fd) == fd);
	FAILS(syscall(SYS_dup3, fd, fd, 0), EINVAL);
	FAILS(syscall(SYS_dup3, fd, d, 1), EINVAL);
	CHECK(dup3(fd, 60, O_CLOEXEC) == 60 && fcntl(60, F_GETFD) == FD_CLOEXEC);
	CHECK(dup2(60, 61) == 61 && fcntl(61, F_GETFD) == 0);
	CHECK(fcntl(60, F_SETFD, 0) == 0 && fcntl(60, F_GETFD) == 0);
	e = fcntl(fd, F_DUPFD, 70);
	CHECK(e == 70 && fcntl(fd, F_DUPFD_CLOEXEC, 70) == 71 && fcntl(71, F_GETFD) == FD_CLOEXEC);
	FAILS(dup(999), EBADF);
	FAILS(dup2(999, 5), EBADF);
	FAILS(syscall(SYS_dup2, fd, -1), EBADF);
	FAILS(syscall(SYS_dup2, fd, 1 << 30), EBADF);
	FAILS(fcntl(fd, F_DUPFD, -1), EINVAL);
	FAILS(fcntl(fd, F_DUPFD, 1 << 30), EINVAL);
	FAILS(fcntl(fd, 9999, 0), EINVAL);
	FAILS(fcntl(999, F_GETFD), EBADF);

	if (close_range(60, 61, CLOSE_RANGE_CLOEXEC) == 0)
		CHECK(fcntl(60, F_GETFD) == FD_CLOEXEC && fcntl(61, F_GETFD) == FD_CLOEXEC);
	else
		CHECK(errno == EINVAL || errno == ENOSYS);
	CHECK(close_range(60, ~0u, 0) == 0);
	FAILS(fcntl(60, F_GETFD), EBADF);
	FAILS(fcntl(71, F_GETFD), EBADF);
	CHECK(fcntl(d, F_GETFD) >= 0);
	FAILS(close_range(5, 4, 0), EINVAL);
	FAILS(close_range(60, ~0u, 0x1000), EINVAL);
	CHECK(close_range(0x7fffffff, ~0u, 0) == 0);
	FAILS(close(999), EBADF);
	CHECK(close(d) == 0);
	FAILS(close(d), EBADF);

	CHECK(fcntl(fd, F_SETOWN, getpid()) == 0 && fcntl(fd, F_GETOWN) == getpid());
	struct f_owner_ex own = { F_OWNER_PID, 0 };
	CHECK(fcntl(fd, F_SETOWN_EX, &own) == 0 && fcntl(fd, F_GETOWN) == 0);
	own = (struct f_owner_ex){ F_OWNER_TID, getpid() };
	CHECK(fcntl(fd, F_SETOWN_EX, &own) == 0);
	own = (struct f_owner_ex){ 0 };
	CHECK(fcntl(fd, F_GETOWN_EX, &own) == 0 && own.type == F_OWNER_TID && own.pid == getpid());
	CHECK(fcntl(fd, F_SETSIG, SIGUSR1) == 0 && fcntl(fd, F_GETSIG) == SIGUSR1);
	FAILS(fcntl(fd, F_SETSIG, 100), EINVAL);
	uint64_t hint = RWH_WRITE_LIFE_SHORT;
	if (fcntl(fd, F_SET_RW_HINT, &hint) == 0) {
		hint = 99;
		CHECK(fcntl(fd, F_GET_RW_HINT, &hint) == 0 && hint == RWH_WRITE_LIFE_SHORT);
	}
	close(fd);
	unlink("file");
}

static void test_limit(void)
{
	struct rlimit old, low;
	int fd[80], n = 0, p[2];

	CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
	low = old;
	low.rlim_cur = 64;
	CHECK(setrlimit(RLIMIT_NOFILE, &low) == 0);
	while (n < 80 && (fd[n] = dup(0)) >= 0)
		n++;
	CHECK(n < 64 && errno == EMFILE && fd[n - 1] == 63);
	FAILS(open(".", O_RDONLY), EMFILE);
	FAILS(pipe(p), EMFILE);
	FAILS(eventfd(0, 0), EMFILE);
	close(fd[--n]);
	FAILS(pipe(p), EMFILE);
	CHECK(dup(0) == 63);
	n++;
	FAILS(dup2(0, 64), EBADF);
	while (n)
		close(fd[--n]);
	CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
}

static void test_memfd(void)
{
	int fd = memfd_create("seal", MFD_CLOEXEC | MFD_ALLOW_SEALING), plain = memfd_create("plain", 0);
	char *m;

	CHECK(fd >= 0 && plain >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC && fcntl(plain, F_GETFD) == 0);
	CHECK(fcntl(fd, F_GET_SEALS) == 0 && fcntl(plain, F_GET_SEALS) == F_SEAL_SEAL);
	FAILS(fcntl(plain, F_ADD_SEALS, F_SEAL_WRITE), EPERM);
	CHECK(ftruncate(fd, 4096) == 0);
	m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(m != MAP_FAILED);
	strcpy(m, "sealed");
	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
	FAILS(ftruncate(fd, 100), EPERM);
	FAILS(ftruncate(fd, 10000), EPERM);
	FAILS(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), EBUSY);
	CHECK(munmap(m, 4096) == 0);
	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL) == 0);
	FAILS(write(fd, "x", 1), EPERM);
	CHECK(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM);
	FAILS(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), EPERM);
	m = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
	CHECK(m != MAP_FAILED && !strcmp(m, "sealed"));
	CHECK(munmap(m, 4096) == 0);
	FAILS(syscall(SYS_memfd_create, "x", 0x8000), EINVAL);
	FAILS(syscall(SYS_memfd_create, BAD, 0), EFAULT);
	close(fd);
	close(plain);
}

static volatile int sigpipes;

static void on_sigpipe(int sig) { sigpipes += sig == SIGPIPE; }

static long read_one(long fd)
{
	char b;

	return read(fd, &b, 1);
}

static void test_pipe(void)
{
	static char page[PIPE_BUF], many[1 << 17];
	struct job j;
	int p[2], size, n = 0, avail = 0, next = next_fd();

	CHECK(pipe2(p, O_NONBLOCK | O_CLOEXEC) == 0 && p[0] == next);
	CHECK(fcntl(p[0], F_GETFL) & O_NONBLOCK && fcntl(p[1], F_GETFD) == FD_CLOEXEC);
	FAILS(read(p[0], page, 1), EAGAIN);
	size = fcntl(p[1], F_GETPIPE_SZ);
	CHECK(size >= 4096);
	while (write(p[1], page, PIPE_BUF) == PIPE_BUF)
		n++;
	CHECK(errno == EAGAIN && n == size / PIPE_BUF);
	CHECK(ioctl(p[0], FIONREAD, &avail) == 0 && avail == size);
	CHECK(read(p[0], page, 1) == 1);
	FAILS(write(p[1], page, PIPE_BUF), EAGAIN);
	if (fcntl(p[1], F_SETPIPE_SZ, size * 2) == size * 2) {
		CHECK(fcntl(p[0], F_GETPIPE_SZ) == size * 2);
		CHECK(write(p[1], page, PIPE_BUF) == PIPE_BUF);
		FAILS(fcntl(p[1], F_SETPIPE_SZ, 4096), EBUSY);
	} else {
		CHECK(errno == EPERM);
	}
	while ((n = read(p[0], many, sizeof many)) > 0)
		;
	CHECK(errno == EAGAIN);
	close(p[0]), close(p[1]);

	CHECK(pipe(p) == 0);
	job_start(&j, read_one, p[0]);
	CHECK(job_waits(&j));
	CHECK(write(p[1], "x", 1) == 1 && job_end(&j) == 1);
	job_start(&j, read_one, p[0]);
	CHECK(job_waits(&j));
	close(p[1]);
	CHECK(job_end(&j) == 0);
	close(p[0]);

	struct sigaction sa = { .sa_handler = on_sigpipe };
	CHECK(sigaction(SIGPIPE, &sa, NULL) == 0);
	CHECK(pipe(p) == 0);
	close(p[0]);
	FAILS(write(p[1], "x", 1), EPIPE);
	CHECK(sigpipes == 1);
	signal(SIGPIPE, SIG_IGN);
	FAILS(write(p[1], "x", 1), EPIPE);
	CHECK(sigpipes == 1);
	signal(SIGPIPE, SIG_DFL);
	close(p[1]);

	/* A failed call leaves no descriptor behind. */
	FAILS(syscall(SYS_pipe, BAD), EFAULT);
	FAILS(syscall(SYS_pipe2, p, 0x10), EINVAL);
	CHECK(next_fd() == next);
}

static long write_event(long fd) { return eventfd_write(fd, 5); }

static void test_eventfd(void)
{
	struct job j;
	eventfd_t v;
	int fd = eventfd(3, EFD_NONBLOCK | EFD_SEMAPHORE);

	CHECK(fd >= 0);
	for (int i = 0; i < 3; i++)
		CHECK(eventfd_read(fd, &v) == 0 && v == 1);
	FAILS(eventfd_read(fd, &v), EAGAIN);
	close(fd);
	fd = eventfd(7, EFD_CLOEXEC);
	CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC && eventfd_write(fd, 10) == 0);
	CHECK(eventfd_read(fd, &v) == 0 && v == 17);
	FAILS(eventfd_write(fd, ~0ull), EINVAL);
	FAILS(read(fd, &v, 4), EINVAL);
	CHECK(eventfd_write(fd, ~0ull - 1) == 0);
	job_start(&j, write_event, fd);
	CHECK(job_waits(&j));
	CHECK(eventfd_read(fd, &v) == 0 && v == ~0ull - 1);
	CHECK(job_end(&j) == 0 && eventfd_read(fd, &v) == 0 && v == 5);
	close(fd);
	fd = syscall(SYS_eventfd, 1);
	CHECK(fd >= 0 && eventfd_read(fd, &v) == 0 && v == 1);
	close(fd);
	FAILS(eventfd(0, 0x40000000), EINVAL);
}

static void test_pty(void)
{
	struct winsize ws = { 50, 132, 0, 0 }, got = { 0 };
	struct termios t;
	char b[32];
	int m = open("/dev/ptmx", O_RDWR | O_NOCTTY), s, zero = 0, n = -1;

	if (m < 0) {
		skip("pty");
		return;
	}
	CHECK(ioctl(m, TIOCSPTLCK, &zero) == 0 && ioctl(m, TIOCGPTN, &n) == 0 && n >= 0);
	s = ioctl(m, TIOCGPTPEER, O_RDWR | O_NOCTTY);
	CHECK(s >= 0 && isatty(s));
	CHECK(ioctl(m, TIOCSWINSZ, &ws) == 0 && ioctl(s, TIOCGWINSZ, &got) == 0);
	CHECK(got.ws_row == 50 && got.ws_col == 132);
	CHECK(tcgetattr(s, &t) == 0 && t.c_lflag & ICANON);
	cfmakeraw(&t);
	CHECK(tcsetattr(s, TCSADRAIN, &t) == 0 && tcgetattr(s, &t) == 0 && !(t.c_lflag & ICANON));
	CHECK(write(m, "hey", 3) == 3 && read(s, b, sizeof b) == 3 && !memcmp(b, "hey", 3));
	CHECK(write(m, "lost", 4) == 4 && tcflush(s, TCIFLUSH) == 0);
	CHECK(ioctl(s, FIONREAD, &n) == 0 && n == 0);
	CHECK(tcdrain(s) == 0 && tcsendbreak(s, 0) == 0);
	close(s), close(m);
}

static void test_ioctl(void)
{
	struct ifconf conf = { 0 };
	struct ifreq ifr = { 0 };
	struct termios t;
	int p[2], on = 1, v = -1, fd, s;
	char *file = "file", list[4096];

	CHECK(pipe(p) == 0);
	CHECK(write(p[1], "12345", 5) == 5 && ioctl(p[0], FIONREAD, &v) == 0 && v == 5);
	CHECK(ioctl(p[0], FIONBIO, &on) == 0 && fcntl(p[0], F_GETFL) & O_NONBLOCK);
	CHECK(ioctl(p[0], FIOCLEX) == 0 && fcntl(p[0], F_GETFD) == FD_CLOEXEC);
	CHECK(ioctl(p[0], FIONCLEX) == 0 && fcntl(p[0], F_GETFD) == 0);
	FAILS(ioctl(p[0], TCGETS, &t), ENOTTY);
	FAILS(ioctl(p[0], FIONREAD, BAD), EFAULT);
	FAILS(ioctl(p[0], 0x1234567, 0), ENOTTY);
	FAILS(ioctl(999, FIONREAD, &v), EBADF);
	FAILS(ioctl(999, 0x1234567, 0), EBADF);
	close(p[0]), close(p[1]);

	fd = make(file, "0123");
	CHECK(lseek(fd, 1, SEEK_SET) == 1 && ioctl(fd, FIONREAD, &v) == 0 && v == 3);
	CHECK(ioctl(fd, FIGETBSZ, &v) == 0 && v >= 512);
	if (ioctl(fd, FS_IOC_GETFLAGS, &v) < 0)
		CHECK(errno == ENOTTY || errno == EOPNOTSUPP || errno == EINVAL);
	FAILS(ioctl(fd, FICLONE, 999), EBADF);
	FAILS(ioctl(fd, TIOCGWINSZ, list), ENOTTY);
	close(fd);
	unlink(file);

	s = socket(AF_INET, SOCK_DGRAM, 0);
	if (s < 0) {
		skip("socket");
		return;
	}
	conf.ifc_len = sizeof list;
	conf.ifc_buf = list;
	CHECK(ioctl(s, SIOCGIFCONF, &conf) == 0 && conf.ifc_len % sizeof ifr == 0 && conf.ifc_buf == list);
	strcpy(ifr.ifr_name, "lo");
	if (ioctl(s, SIOCGIFINDEX, &ifr) == 0)
		CHECK(ifr.ifr_ifindex > 0 && !strcmp(ifr.ifr_name, "lo"));
	strcpy(ifr.ifr_name, "none0");
	FAILS(ioctl(s, SIOCGIFFLAGS, &ifr), ENODEV);
	close(s);
}

/* ---- errors ----------------------------------------------------------------------------------------------------- */

static void test_errors(void)
{
	static char longname[300], longpath[PATH_MAX + 10];
	struct stat st;
	char *none = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = make("file", "0123456789"), d = open(".", O_RDONLY), next = next_fd();

	memset(longname, 'a', sizeof longname - 1);
	for (size_t i = 0; i < sizeof longpath - 1; i++)
		longpath[i] = i % 2 ? '/' : '.';
	CHECK(none != MAP_FAILED && d >= 0);
	FAILS(open("none", O_RDONLY), ENOENT);
	FAILS(open("", O_RDONLY), ENOENT);
	FAILS(open("none/x", O_RDONLY), ENOENT);
	FAILS(open("file/x", O_RDONLY), ENOTDIR);
	FAILS(open("file", O_RDONLY | O_DIRECTORY), ENOTDIR);
	FAILS(open(".", O_WRONLY), EISDIR);
	FAILS(open(longname, O_RDONLY), ENAMETOOLONG);
	FAILS(open(longpath, O_RDONLY), ENAMETOOLONG);
	FAILS(openat(999, "x", O_RDONLY), EBADF);
	FAILS(openat(fd, "x", O_RDONLY), ENOTDIR);
	FAILS(mkdir(".", 0755), EEXIST);
	FAILS(mkdir("file", 0755), EEXIST);
	FAILS(unlink("."), EISDIR);
	FAILS(rmdir("file"), ENOTDIR);
	FAILS(rmdir("."), EINVAL);
	FAILS(read(d, longname, 1), EISDIR);
	FAILS(read(999, longname, 1), EBADF);
	FAILS(read(-1, longname, 1), EBADF);
	FAILS(fstat(999, &st), EBADF);
	FAILS(lseek(999, 0, SEEK_SET), EBADF);
	FAILS(syscall(SYS_open, BAD, O_RDONLY), EFAULT);
	FAILS(syscall(SYS_open, none, O_RDONLY), EFAULT);
	FAILS(syscall(SYS_open, (void *)~0xfffull, O_RDONLY), EFAULT);
	FAILS(syscall(SYS_stat, "file", BAD), EFAULT);
	FAILS(syscall(SYS_stat, "file", none), EFAULT);
	FAILS(syscall(SYS_fstat, fd, (void *)0x7ffffffffffff000ull), EFAULT);
	FAILS(syscall(SYS_getcwd, BAD, 4096), EFAULT);
	FAILS(syscall(SYS_readlink, BAD, longname, 10), EFAULT);
	CHECK(lseek(fd, 0, SEEK_SET) == 0);
	FAILS(syscall(SYS_read, fd, BAD, 1), EFAULT);
	FAILS(syscall(SYS_read, fd, none, 1), EFAULT);
	FAILS(syscall(SYS_write, fd, none, 1), EFAULT);
	FAILS(syscall(SYS_statx, AT_FDCWD, "file", 0, STATX_ALL, none), EFAULT);
	CHECK(syscall(SYS_read, fd, longname, 0) == 0);
	CHECK(syscall(SYS_write, fd, NULL, 0) == 0);
	CHECK(lseek(fd, 0, SEEK_CUR) == 0);
	if (geteuid()) {
		CHECK(chmod("file", 0) == 0);
		FAILS(open("file", O_RDONLY), EACCES);
	}
	CHECK(next_fd() == next);
	CHECK(munmap(none, 4096) == 0);
	close(fd), close(d);
	unlink("file");
}

static void on_tick(int sig) { (void)sig; }

/* Calls on files are not interrupted, however many signals come and though the handler asks for no restart. */
static void test_ticks(void)
{
	struct sigaction sa = { .sa_handler = on_tick };
	struct itimerval it = { { 0, 300 }, { 0, 300 } };
	char buf[4096] = "x", *map;
	struct iovec iov = { buf, sizeof buf };

	CHECK(!sigaction(SIGALRM, &sa, NULL));
	int fd = open("ticks", O_RDWR | O_CREAT, 0600);
	CHECK(fd >= 0 && !ftruncate(fd, 8192));
	map = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(map != MAP_FAILED && !setitimer(ITIMER_REAL, &it, NULL));
	for (int i = 0; i < 300; i++) {
		CHECK(pwrite(fd, buf, sizeof buf, 0) == sizeof buf);
		CHECK(pread(fd, buf, sizeof buf, 0) == sizeof buf);
		CHECK(lseek(fd, 0, SEEK_SET) == 0 && read(fd, buf, sizeof buf) == sizeof buf);
		CHECK(write(fd, buf, sizeof buf) == sizeof buf);
		CHECK(preadv(fd, &iov, 1, 0) == sizeof buf && pwritev(fd, &iov, 1, 0) == sizeof buf);
		CHECK(!fsync(fd));
		CHECK(!fdatasync(fd));
		CHECK(!sync_file_range(fd, 0, 8192, SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER));
		map[0] = (char)i;
		CHECK(!msync(map, 8192, MS_SYNC));
		int again = open("ticks", O_RDONLY);
		CHECK(again >= 0 && fcntl(again, F_GETFL) >= 0 && !close(again));
	}
	CHECK(!setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL));
	munmap(map, 8192);
	close(fd);
	unlink("ticks");
}

static const struct {
	const char *name;
	void (*fn)(void);
} tests[] = {
	{ "dirs", test_dirs },         { "links", test_links }, { "rename", test_rename },
	{ "getdents", test_getdents }, { "nodes", test_nodes }, { "inotify", test_inotify },
	{ "open", test_open },         { "io", test_io },       { "sparse", test_sparse },
	{ "move", test_move },         { "xattr", test_xattr }, { "mmap", test_mmap },
	{ "locks", test_locks },       { "dup", test_dup },     { "limit", test_limit },
	{ "memfd", test_memfd },       { "pipe", test_pipe },   { "eventfd", test_eventfd },
	{ "pty", test_pty },           { "ioctl", test_ioctl }, { "errors", test_errors },
	{ "ticks", test_ticks },
};

int main(void)
{
	const char *tmp = getenv("TMPDIR");
	char template[PATH_MAX];

	snprintf(template, sizeof template, "%s/kxfile.XXXXXX", tmp && *tmp ? tmp : "/tmp");
	if (!mkdtemp(template) || !realpath(template, dir) || chdir(dir)) {
		perror(template);
		return 1;
	}
	for (size_t i = 0; i < sizeof tests / sizeof tests[0]; i++) {
		group = tests[i].name;
		status = 10 + (int)i;
		tests[i].fn();
		printf("ok %s\n", group);
		fflush(stdout);
	}
	clean();
	puts("SUCCESS");
	return 0;
}
