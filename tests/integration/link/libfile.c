/* SPDX-License-Identifier: Apache-2.0 */
/* libfile.c DIRECTORY: what can be done with a library that was just opened, in an order that no dynamic linker uses. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static char path[4096], copy[4096], buf[4096];
static int fd;

static void open_it(const char *p)
{
	fd = open(p, O_RDONLY | O_CLOEXEC);
	printf("fd %d\n", fd);
}

static void say(const char *what, long r)
{
	printf("%s %ld %s at %ld\n", what, r, r < 0 ? strerror(errno) : "", (long)lseek(fd, 0, SEEK_CUR));
}

static unsigned sum(size_t n)
{
	unsigned s = 0;
	for (size_t i = 0; i < n; i++)
		s = s * 31 + (unsigned char)buf[i];
	return s;
}

static void *in_thread(void *arg)
{
	say("read in a thread", read(fd, buf, 832));
	return arg;
}

static void position(void)
{
	char name[64], text[256] = "";
	snprintf(name, sizeof name, "/proc/self/fdinfo/%d", fd);
	FILE *f = fopen(name, "r");
	if (f && fgets(text, sizeof text, f))
		printf("fdinfo %s", text);
	if (f)
		fclose(f);
}

int main(int argc, char **argv)
{
	struct stat st, by_path;
	struct iovec v[2] = { { buf, 100 }, { buf + 100, 900 } };
	int st_child;
	void *volatile nowhere = (void *)8;
	setvbuf(stdout, NULL, _IONBF, 0);
	snprintf(path, sizeof path, "%s/liba.so", argc > 1 ? argv[1] : ".");
	snprintf(copy, sizeof copy, "%s/copy.so", argc > 1 ? argv[1] : ".");
	stat(path, &by_path);

	open_it(path);
	say("read", read(fd, buf, 832));
	printf("%u\n", sum(832));
	say("again", read(fd, buf, 832));
	printf("%u\n", sum(832));
	int r = fstat(fd, &st);
	printf("fstat %d %d\n", r, memcmp(&st, &by_path, offsetof(struct stat, st_atim)));
	printf("close %d\n", close(fd));
	printf("close again %d %s\n", close(fd), strerror(errno));
	printf("read %zd %s\n", read(fd, buf, 832), strerror(errno));

	open_it(path);
	say("short read", read(fd, buf, 100));
	say("the rest", read(fd, buf, 832));
	printf("%u\n", sum(832));
	close(fd);
	open_it(path); /* the same number */
	printf("lengths %zd", read(fd, buf, 1));
	printf(" %zd", read(fd, buf, 0));
	say("", read(fd, buf, 833));
	close(fd);
	open_it(path);
	say("more at once", read(fd, buf, 4096));
	printf("%u\n", sum(4096));
	close(fd);
	open_it(path);
	say("nowhere", read(fd, nowhere, 832));
	say("fstat nowhere", fstat(fd, nowhere));
	say("read", read(fd, buf, 832));
	close(fd);
	open_it(path);
	say("readv", readv(fd, v, 2));
	printf("%u\n", sum(1000));
	read(fd, buf, 832);
	position();
	close(fd);

	open_it(path);
	read(fd, buf, 832);
	int twin = dup(fd);
	say("read", read(twin, buf, 10));
	close(fd);
	fd = twin;
	say("read", read(fd, buf, 10));
	pid_t p = fork();
	if (!p) {
		say("read in a child", read(fd, buf, 832));
		close(fd);
		_exit(0);
	}
	waitpid(p, &st_child, 0);
	say("after it", 0);
	close(fd);

	open_it(path);
	read(fd, buf, 832);
	p = fork();
	if (!p) {
		say("read in a child", read(fd, buf, 832));
		_exit(0);
	}
	waitpid(p, &st_child, 0);
	say("after it", 0);
	p = vfork();
	if (!p) {
		close(fd);
		_exit(open(path, O_RDONLY | O_CLOEXEC) == fd ? 5 : 6);
	}
	waitpid(p, &st_child, 0);
	printf("%#x\n", st_child);
	say("after it", read(fd, buf, 1));
	close(fd);
	printf("dup of what is closed %d\n", dup(fd));
	open_it(path);
	printf("access %d\n", access(path, W_OK | R_OK));
	printf("fstat %d\n", fstat(fd, &st));
	close(fd);

	/* It changes meanwhile. */
	int w = open(copy, O_RDWR | O_CREAT | O_TRUNC, 0644);
	write(w, "\177ELF and no more than that, but long enough for a header of an ELF file", 70);
	open_it(copy);
	say("short file", read(fd, buf, 832));
	say("its end", read(fd, buf, 832));
	close(fd);
	open_it(copy);
	ftruncate(w, 5000);
	r = fstat(fd, &st);
	printf("fstat %d %ld\n", r, (long)st.st_size);
	say("read", read(fd, buf, 832));
	printf("%u\n", sum(832));
	close(fd);
	open_it(copy);
	write(w, "x", 1);
	pwrite(w, "CHANGED", 7, 10);
	say("read", read(fd, buf, 832));
	printf("%.40s\n", buf + 1);
	char *m = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
	printf("close %d, mapped %.10s\n", close(fd), m + 1);
	printf("next %d\n", open("/dev/null", O_RDONLY));

	open_it(path);
	pthread_t t;
	pthread_create(&t, NULL, in_thread, NULL);
	pthread_join(t, NULL);
	say("read", read(fd, buf, 832));
	close(fd);
	open_it(path);
	close_range((unsigned)fd, (unsigned)fd, 0);
	printf("read %zd %s\n", read(fd, buf, 832), strerror(errno));
	open_it(path);
	read(fd, buf, 832);
	say("seek", lseek(fd, 10, SEEK_SET));
	say("read", read(fd, buf, 832));
	printf("%u\n", sum(832));
	fcntl(fd, F_SETFD, 0);
	dup2(fd, 9);
	close(fd);
	execl("/bin/sh", "sh", "-c", "head -c 4 <&9 | od -c; ls /proc/self/fd | wc -l", NULL);
	return 1;
}
