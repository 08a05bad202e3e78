/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes that fork out of habit, whose monitor may copy what they write most instead of sharing it: parent and child have
 * what Linux gives them, and /proc shows the same mappings as before. Passes on any x86-64 Linux since 4.14.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include "../check.h"

#define PAGE 4096
#define ROUNDS 6

static char data[3 * PAGE] __attribute__((aligned(PAGE))) = { 1, 2, 3 };
static char zero[2 * PAGE];
static __thread long own = 5;
static char *map, *big;
static int *shared;

static int end_of(pid_t p)
{
	int st = -1;
	while (waitpid(p, &st, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(st) ? WEXITSTATUS(st) : 1000 + st;
}

static void set(int i, volatile char *stack)
{
	data[PAGE + i] = data[0] = zero[i] = zero[PAGE + i] = map[i] = map[PAGE + i] = stack[i] = (char)i;
	big[i] = (char)i;
	own = i * 3;
}

static bool is(int i, volatile char *stack)
{
	return data[PAGE + i] == i && data[0] == i && zero[i] == i && zero[PAGE + i] == i && map[i] == i &&
	       map[PAGE + i] == i && stack[i] == i && big[i] == i && own == i * 3;
}

/* Two children at once, so that at least one is made as the host makes one; each changes its own, and forks in its turn. */
static bool round_of(int i, bool nested)
{
	volatile char stack[256];
	bool good = true;
	pid_t p[2];
	set(i, stack);
	for (int k = 0; k < 2; k++) {
		p[k] = fork();
		if (!p[k]) {
			bool ok = is(i, stack);
			set(100 + k, stack);
			if (nested) {
				pid_t q = fork();
				if (!q)
					_exit(is(100 + k, stack) ? 0 : 1);
				ok = !end_of(q) && ok;
			}
			_exit(ok && is(100 + k, stack) ? 7 : 8);
		}
		data[0] = (char)(i + k + 1);
		data[0] = (char)i;
	}
	for (int k = 0; k < 2; k++)
		good = end_of(p[k]) == 7 && good;
	return good && is(i, stack);
}

static bool rounds(bool nested)
{
	bool good = true;
	for (int i = 1; i <= ROUNDS; i++)
		good = round_of(i, nested) && good;
	return good;
}

static void habit(void)
{
	for (int i = 0; i < 4; i++)
		end_of(FORK(usleep(3000)));
}

/* Of each mapping all but what it holds now. */
static char *maps(const char *name, int which)
{
	static char texts[4][1 << 18];
	size_t have = 0, most = sizeof texts[0];
	char *text = texts[which], *out = text;
	int fd = open(name, O_RDONLY);
	for (ssize_t n; fd >= 0 && (n = read(fd, text + have, most - 1 - have)) > 0;)
		have += (size_t)n;
	close(fd);
	text[have] = 0;
	for (char *line = text, *eol; (eol = strchr(line, '\n')); line = eol + 1)
		if ((*line >= '0' && *line <= '9') || (*line >= 'a' && *line <= 'f') || !strncmp(line, "VmFlags", 7) ||
		    !strncmp(line, "Size", 4)) {
			memmove(out, line, (size_t)(eol + 1 - line));
			out += eol + 1 - line;
		}
	*out = 0;
	return text;
}

static bool same(const char *a, const char *b)
{
	bool good = !strcmp(a, b);
	for (; !good && *a && *b && *a == *b; a++, b++)
		;
	if (!good)
		printf("%.300s\ninstead of\n%.300s\n", b, a);
	return good;
}

/* The kernel makes it larger as it is used. */
static void grow(void)
{
	volatile char room[300 * 1024];
	for (size_t i = 0; i < sizeof room; i += PAGE)
		room[i] = 1;
}

static size_t stack_size(void)
{
	pthread_attr_t attr;
	size_t size = 0;
	void *at;
	if (!pthread_getattr_np(pthread_self(), &attr)) {
		pthread_attr_getstack(&attr, &at, &size);
		pthread_attr_destroy(&attr);
	}
	return size;
}

static void seen_in_proc(char *before, char *before_smaps, size_t stack)
{
	int st = -1;
	check(same(before, maps("/proc/self/maps", 2)), "maps as before");
	check(same(before_smaps, maps("/proc/self/smaps", 3)), "smaps as before");
	check(stack == stack_size(), "size of the stack");
	pid_t p = FORK(_exit(same(before, maps("/proc/self/maps", 2)) &&
					     same(before_smaps, maps("/proc/self/smaps", 3)) && stack == stack_size()
				     ? 0
				     : 1));
	st = end_of(p);
	pid_t q = FORK(_exit(0));
	p = FORK(_exit(same(before, maps("/proc/self/maps", 2)) ? 0 : 1));
	check(!st && !end_of(p) && !end_of(q), "children's as well");
}

static void changed(void)
{
	char *m = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(m, 1, 4 * PAGE);
	habit();
	check(!mprotect(m, PAGE, PROT_READ) && !munmap(m + PAGE, PAGE), "a small mapping in pieces");
	m[2 * PAGE] = 9;
	pid_t p = FORK(_exit(m[0] == 1 && m[2 * PAGE] == 9 && m[3 * PAGE] == 1 ? 0 : 1)),
	      q = FORK(_exit(m[3 * PAGE] != 1));
	check(!end_of(p) && !end_of(q), "its children have the pieces");
	char *n = mremap(m + 2 * PAGE, 2 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
	check(n != MAP_FAILED, "mremap()");
	n[7 * PAGE] = 4;
	p = FORK(_exit(n[0] == 9 && n[PAGE] == 1 && n[7 * PAGE] == 4 ? 0 : 1));
	q = FORK(_exit(n[7 * PAGE] != 4));
	check(!end_of(p) && !end_of(q), "and moved");
	habit();
	check(mmap(n, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == n && !n[0],
	      "another in its place");
	n[0] = 3;
	p = FORK(_exit(n[0] == 3 && !n[PAGE] && n[7 * PAGE] == 4 ? 0 : 1));
	q = FORK(_exit(n[0] != 3));
	check(!end_of(p) && !end_of(q), "which they have");
	habit();
	check(!madvise(n, PAGE, MADV_DONTNEED), "cleared");
	p = FORK(_exit(n[0]));
	q = FORK(_exit(n[0]));
	check(!n[0] && !end_of(p) && !end_of(q), "cleared for all");
	munmap(n, 8 * PAGE);
}

/* Part of a program's file that it has written to shows the file's again. */
static void file_again(void)
{
	habit();
	memset(data + PAGE, 77, PAGE);
	data[0] = 44;
	check(!madvise(data + PAGE, PAGE, MADV_DONTNEED) && !data[PAGE + 7] && data[0] == 44, "as the file has it");
	pid_t p = FORK(_exit(!data[PAGE + 7] && data[0] == 44 ? 0 : 1)), q = FORK(_exit(data[0] != 44));
	check(!end_of(p) && !end_of(q), "in children, too");
	check(!madvise(data, PAGE, MADV_DONTNEED) && data[0] == 1 && data[2] == 3, "what is not 0 as well");
}

/* Mappings of files that are only read: as they are, written to before, of a file whose name is another's by now. */
static char *constant[3], constant_name[3][32];
static int constant_fd;

static char *constant_of(int i, char *name, int *fd)
{
	char page[PAGE];
	strcpy(name, "/tmp/kx-hot-XXXXXX");
	*fd = mkstemp(name);
	memset(page, 'a' + i, sizeof page);
	for (int k = 0; k < 3; k++)
		if (write(*fd, page, sizeof page) != sizeof page)
			return MAP_FAILED;
	return mmap(NULL, 3 * PAGE, i == 1 ? PROT_READ | PROT_WRITE : PROT_READ, MAP_PRIVATE, *fd, 0);
}

static void constants_make(void)
{
	char other[32];
	int fd[3], fd_other;
	for (int i = 0; i < 3; i++)
		constant[i] = constant_of(i, constant_name[i], &fd[i]);
	munmap(constant_of(3, other, &fd_other), 3 * PAGE);
	memset(constant[1] + PAGE, 'w', PAGE);
	check(!mprotect(constant[1], 3 * PAGE, PROT_READ) && !rename(other, constant_name[2]), "mappings of files");
	constant_fd = fd[0];
	close(fd[1]);
	close(fd[2]);
	close(fd_other);
}

static bool constants_are(char first)
{
	return constant[0][0] == first && constant[0][2 * PAGE] == 'a' && constant[1][0] == 'b' &&
	       constant[1][PAGE] == 'w' && constant[1][2 * PAGE - 1] == 'w' && constant[1][2 * PAGE] == 'b' &&
	       constant[2][0] == 'c' && constant[2][3 * PAGE - 1] == 'c';
}

static void constants(void)
{
	check(constants_are('a'), "what is only read");
	pid_t p = FORK(_exit(constants_are('a') ? 0 : 1));
	check(!end_of(p), "in children, too");
	check(pwrite(constant_fd, "x", 1, 0) == 1 && constants_are('x'), "and what becomes of the file");
	p = FORK(_exit(constants_are('x') ? 0 : 1));
	check(!end_of(p), "which children see");
	for (int i = 0; i < 3; i++)
		unlink(constant_name[i]);
	close(constant_fd);
}

static void *thread(void *arg)
{
	bool good = true;
	own = 9;
	for (int i = 1; i <= 3; i++) {
		volatile char stack[64];
		stack[0] = (char)i;
		pid_t p = FORK(_exit(own == 9 && stack[0] == i ? 0 : 1)), q = FORK(_exit(own != 9));
		good = !end_of(p) && !end_of(q) && good;
	}
	return good ? arg : NULL;
}

static void threads(void)
{
	pthread_t th;
	void *r = NULL;
	habit();
	check(!pthread_create(&th, NULL, thread, data), "a thread");
	check(rounds(false), "forks of a process with threads");
	pthread_join(th, &r);
	check(r != NULL, "and of its threads");
	check(rounds(true), "and when it is alone again");
}

static void by_vfork(void)
{
	habit();
	map[5] = 55;
	pid_t p = vfork();
	if (!p) {
		map[6] = 66;
		pid_t q = fork();
		if (!q)
			_exit(map[5] == 55 && map[6] == 66 && own == 7 ? 0 : 1);
		_exit(end_of(q));
	}
	check(!end_of(p), "the child of a child of vfork");
	check(rounds(true), "forks after it");
}

/* What the program says itself about children. */
static void wiped(void)
{
	char *w = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *d = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	w[0] = d[0] = 8;
	habit();
	check(!madvise(w, 2 * PAGE, MADV_WIPEONFORK) && !madvise(d, 2 * PAGE, MADV_DONTFORK),
	      "two that children don't have");
	for (int i = 0; i < 3; i++) {
		pid_t p = FORK(_exit(w[0] ? 1 : 0)), q = FORK(signal(SIGSEGV, SIG_DFL); _exit(d[0]));
		bool first = !end_of(p), second = end_of(q) == 1000 + SIGSEGV;
		check(first, "not what is wiped");
		check(second, "nor what they are not to have");
		check(w[0] == 8 && d[0] == 8, "which their parent has");
	}
	check(!madvise(w, 2 * PAGE, MADV_KEEPONFORK) && !madvise(d, 2 * PAGE, MADV_DOFORK), "taken back");
	habit();
	pid_t p = FORK(_exit(w[0] == 8 && d[0] == 8 ? 0 : 1)), q = FORK(_exit(w[0] != 8));
	check(!end_of(p) && !end_of(q), "they have them");
}

int main(int argc, char **argv)
{
	struct rlimit none = { 0, 0 };
	setrlimit(RLIMIT_CORE, &none);
	map = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	big = mmap(NULL, 256 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (argc > 1) /* after exec: the habit is not passed on */
		return rounds(true) ? 0 : 1;
	constants_make();
	grow();
	size_t stack = stack_size();
	check(stack > PAGE, "its stack");
	char *before = maps("/proc/self/maps", 0), *before_smaps = maps("/proc/self/smaps", 1);
	check(rounds(false), "forks");
	check(rounds(true), "forks of children");
	seen_in_proc(before, before_smaps, stack);
	constants();
	changed();
	file_again();
	own = 7;
	by_vfork();
	threads();
	pid_t p = FORK(_exit(mlock(map, PAGE) || !rounds(true)));
	check(!end_of(p), "locked in memory");
	wiped();
	check(rounds(true), "forks at the end");
	p = FORK(execl("/proc/self/exe", argv[0], "again", (char *)NULL));
	check(!end_of(p), "after exec");
	return first_failed;
}
