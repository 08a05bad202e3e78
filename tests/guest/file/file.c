/* SPDX-License-Identifier: Apache-2.0 */
/* Files as a program sees them. What a file system may lack (xattr, O_TMPFILE) is skipped when absent. */
#define _GNU_SOURCE
#include <dirent.h>
#include <linux/openat2.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include "../scratch.h"

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

int main(void)
{
	static const struct group tests[] = {
		{ "dirs", test_dirs },         { "links", test_links },   { "rename", test_rename },
		{ "getdents", test_getdents }, { "nodes", test_nodes },   { "inotify", test_inotify },
		{ "open", test_open },         { "io", test_io },         { "sparse", test_sparse },
		{ "move", test_move },         { "xattr", test_xattr },   { "mmap", test_mmap },
		{ "locks", test_locks },       { "errors", test_errors }, { "ticks", test_ticks },
	};
	groups_run(tests, sizeof tests / sizeof *tests, "kxfile");
}
