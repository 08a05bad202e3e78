/* SPDX-License-Identifier: Apache-2.0 */
/* plain.c DIRECTORY: a file is opened, looked at and read to its end; others change it, and say so in each way there is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static char path[4096], buf[4096];
static volatile sig_atomic_t told;
static int fd;

static void on_signal(int sig) { told = sig; }

static void say(const char *what, long r) { printf("%s: %ld %s\n", what, r, r < 0 ? strerror(errno) : ""); }

static long size(void)
{
	struct stat st;
	return fstat(fd, &st) ? -1 : (long)st.st_size;
}

static void state(const char *what)
{
	struct termios t;
	long s = size(), p = lseek(fd, 0, SEEK_CUR);
	int r = ioctl(fd, TCGETS, &t);
	printf("%s: %ld at %ld, %d %s\n", what, s, p, r, r ? strerror(errno) : "");
}

static void make(const char *text)
{
	int w = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	write(w, text, strlen(text));
	close(w);
}

static void append(const char *text)
{
	int w = open(path, O_WRONLY | O_APPEND);
	write(w, text, strlen(text));
	close(w);
}

static void spin(long ns)
{
	struct timespec a, b;
	clock_gettime(CLOCK_MONOTONIC, &a);
	do
		clock_gettime(CLOCK_MONOTONIC, &b);
	while ((b.tv_sec - a.tv_sec) * 1000000000l + b.tv_nsec - a.tv_nsec < ns);
}

/* Read to the end. */
static void open_and_read(void)
{
	fd = open(path, O_RDONLY);
	state("opened");
	say("read", read(fd, buf, sizeof buf));
	state("read");
	say("end", read(fd, buf, sizeof buf));
}

/* A name that comes and goes, looked at again and again. */
static void names(const char *dir)
{
	char name[4200];
	struct stat st;
	int wrong = 0;
	snprintf(name, sizeof name, "%s/name", dir);
	unlink(name);
	for (int i = 0; i < 3; i++)
		say("not there", stat(name, &st));
	close(open(name, O_CREAT | O_WRONLY, 0644));
	for (int i = 0; i < 3; i++)
		say("there", stat(name, &st));
	say("nowhere", syscall(SYS_newfstatat, AT_FDCWD, name, (void *)8, 0));
	say("a link", lstat(name, &st));
	unlink(name);
	symlink("file", name);
	for (int i = 0; i < 2; i++) {
		stat(name, &st);
		printf("%#o", st.st_mode & S_IFMT);
		lstat(name, &st);
		printf(" %#o\n", st.st_mode & S_IFMT);
	}
	unlink(name);
	chdir(dir);
	say("file", stat("file", &st));
	chdir("/");
	say("file", stat("file", &st));
	say("empty", stat("", &st));
	say("empty", stat("", &st));
	fflush(stdout);
	if (!fork()) {
		usleep(20000);
		close(open(name, O_CREAT | O_WRONLY, 0644));
		_exit(0);
	}
	say("not yet", stat(name, &st));
	spin(1000000000);
	say("a second later", stat(name, &st));
	wait(NULL);
	_Atomic int *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!fork()) {
		for (int i = 1; i < 200; i += 2) {
			while (atomic_load(m) != i)
				;
			if (i % 4 == 1)
				unlink(name);
			else
				close(open(name, O_CREAT | O_WRONLY, 0644));
			atomic_store(m, i + 1);
		}
		_exit(0);
	}
	for (int i = 0; i < 200; i += 2) {
		int was = stat(name, &st);
		atomic_store(m, i + 1);
		while (atomic_load(m) != i + 2)
			;
		wrong += was != -(i % 4 / 2) || stat(name, &st) != -(i % 4 == 0);
	}
	wait(NULL);
	printf("names, told by memory: %d wrong\n", wrong);
}

/* The same, told by pipes that need no call to the host while both sides are awake. Directories that are missing, too: what a
 * linker that has looked for a library there knows of them. */
static void names_by_pipes(const char *dir)
{
	char name[4200], below[4300], missing[4300];
	struct stat st;
	int go[2], done[2], wrong = 0;
	char c = 0;
	snprintf(name, sizeof name, "%s/comes", dir);
	snprintf(below, sizeof below, "%s/and/goes", name);
	snprintf(missing, sizeof missing, "%s/and/goes/libnone.so", name);
	if (pipe(go) || pipe(done))
		return;
	fflush(stdout);
	if (!fork()) {
		close(go[1]);
		close(done[0]);
		for (int i = 0; read(go[0], &c, 1) == 1; i++) {
			if (i % 2)
				rmdir(name);
			else
				mkdir(name, 0755);
			write(done[1], &c, 1);
		}
		_exit(0);
	}
	close(go[0]);
	close(done[1]);
	for (int i = 0; i < 2000; i++) {
		int was = i % 4 < 2 ? stat(name, &st) : dlopen(missing, RTLD_NOW) ? 1 : 0;
		int there = i % 2;
		write(go[1], &c, 1);
		read(done[0], &c, 1);
		if (i % 4 < 2)
			wrong += was != there - 1 || stat(name, &st) != -there;
		else
			wrong += stat(name, &st) != -there || stat(below, &st) != -1;
	}
	close(go[1]);
	wait(NULL);
	printf("names, told by pipes: %d wrong\n", wrong);
}

int main(int argc, char **argv)
{
	struct stat st;
	int p[2], q[2], w;
	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	snprintf(path, sizeof path, "%s/file", argc > 1 ? argv[1] : ".");

	make("hello");
	open_and_read();
	say("nowhere", read(fd, (void *)8, 5));
	say("far away", read(fd, (void *)0xffff800000000000ul, 5));
	say("nothing", read(fd, buf, 0));
	say("fstat nowhere", fstat(fd, (void *)8));
	say("seek", lseek(fd, 2, SEEK_SET));
	state("there");
	say("part", read(fd, buf, 2));
	state("there");
	say("rest", read(fd, buf, 2));
	say("seek from there", lseek(fd, -1, SEEK_CUR));
	say("rest", read(fd, buf, 5));
	append(" world");
	state("after an append");
	say("more", read(fd, buf, 64));
	say("end", read(fd, buf, 64));
	truncate(path, 3);
	state("cut");
	say("end", read(fd, buf, 64));
	close(fd);
	say("closed", read(fd, buf, 64));
	say("closed", size());

	/* The number becomes another file's. */
	make("hello");
	open_and_read();
	w = open("/etc/passwd", O_RDONLY);
	dup2(w, fd);
	printf("another: %d %d\n", size() == (fstat(w, &st), st.st_size), read(fd, buf, 5) == 5);
	close(w);
	close(fd);
	open_and_read();
	w = dup(fd);
	lseek(w, 0, SEEK_SET);
	say("by its twin", read(fd, buf, 5));
	close(w);
	close(fd);
	fd = open("/proc/self/comm", O_RDONLY);
	say("/proc", read(fd, buf, 3));
	say("/proc", read(fd, buf, 3));
	close(fd);
	fd = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY);
	printf("/sys %d %d\n", read(fd, buf, 4096) > 0, (int)read(fd, buf, 4096));
	close(fd);
	fd = open("/dev/null", O_RDONLY);
	state("/dev/null");
	close(fd);

	/* Others: by a signal. */
	signal(SIGUSR1, on_signal);
	pipe(p);
	pipe(q);
	make("hello");
	fflush(stdout);
	pid_t parent = getpid(), c = fork();
	if (!c) {
		read(p[0], buf, 1);
		append(" by a signal");
		kill(parent, SIGUSR1);
		read(p[0], buf, 1);
		append(" by a pipe");
		write(q[1], "x", 1);
		_exit(0);
	}
	fd = open(path, O_RDONLY);
	say("read", read(fd, buf, sizeof buf));
	write(p[1], "x", 1);
	say("read", read(fd, buf, sizeof buf) >= 0);
	while (!told)
		;
	printf("told by a signal: %ld\n", size());
	/* By a pipe. */
	lseek(fd, 0, SEEK_SET);
	say("read", read(fd, buf, sizeof buf));
	write(p[1], "x", 1);
	read(q[0], buf, 1);
	printf("told by a pipe: %ld at %ld\n", size(), (long)lseek(fd, 0, SEEK_CUR));
	say("more", read(fd, buf, sizeof buf));
	close(fd);
	wait(NULL);

	/* By the time. */
	make("hello");
	fflush(stdout);
	if (!fork()) {
		usleep(20000);
		append(" later");
		_exit(0);
	}
	fd = open(path, O_RDONLY);
	say("read", read(fd, buf, sizeof buf));
	spin(1000000000);
	say("a second later", read(fd, buf, sizeof buf));
	lseek(fd, 0, SEEK_SET);
	printf("size %ld\n", size());
	close(fd);
	wait(NULL);

	names_by_pipes(argc > 1 ? argv[1] : "."); /* before there is memory that others write to */
	names(argc > 1 ? argv[1] : ".");

	/* By memory. */
	_Atomic int *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	fflush(stdout);
	if (!fork()) {
		for (int i = 1; i < 200; i += 2) {
			while (atomic_load(m) != i)
				;
			append("x");
			atomic_store(m, i + 1);
		}
		_exit(0);
	}
	int wrong = 0;
	for (int i = 0; i < 200; i += 2) {
		fd = open(path, O_RDONLY);
		long was = size(), n = read(fd, buf, sizeof buf);
		atomic_store(m, i + 1);
		while (atomic_load(m) != i + 2)
			;
		wrong += n != was || size() != was + 1 || read(fd, buf, sizeof buf) != 1;
		close(fd);
	}
	wait(NULL);
	printf("told by memory: %d wrong\n", wrong);
	fflush(stdout);
	return 0;
}
