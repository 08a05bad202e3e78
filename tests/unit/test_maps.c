/* SPDX-License-Identifier: Apache-2.0 */
/* Lines of /proc/self/maps, as the kernel writes them, in pieces of any size, and broken ones. */
#include "../../monitor/core/maps.c"
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include "check.h"

struct pvm pvm;
__thread struct thread *self;

static const char *file;
static size_t piece; /* 0: the real one */
static unsigned nr_opened;

/* Through a pipe, so that a read brings no more than was written at once. */
int proc_file(const char *name)
{
	char path[64];
	int fd[2];
	nr_opened++;
	if (!piece) {
		snprintf(path, sizeof path, "/proc/%s", name);
		return open(path, O_RDONLY);
	}
	if (pipe2(fd, O_DIRECT | O_NONBLOCK) || fcntl(fd[1], F_SETPIPE_SZ, 1 << 20) < 0)
		return -1;
	for (size_t at = 0, len = strlen(file), n; at < len; at += n) {
		n = len - at < piece ? len - at : piece;
		if (write(fd[1], file + at, n) != (ssize_t)n)
			return -1;
	}
	close(fd[1]);
	return fd[0];
}

static const char three[] =
	"00010000-7ffe60eb5000 ---p 00000000 00:00 0 \n"
	"7f0000000000-7f0000001000 rw-s 00003000 fe:01 1234567890123                 /a b (deleted)\n"
	"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";

struct seen {
	unsigned n, until;
	struct maps_line l[4];
};

static bool note(const struct maps_line *l, void *arg)
{
	struct seen *s = arg;
	s->l[s->n & 3] = *l;
	return ++s->n != s->until;
}

static void test_lines(void)
{
	struct maps_line l;
	const char *at = maps_parse(three, &l);
	CHECK(at && l.start == 0x10000 && l.end == 0x7ffe60eb5000 && !strcmp(l.perm, "---p") && !l.ino && !l.path_len,
	      "no file");
	at = at ? maps_parse(at, &l) : at;
	CHECK(at && l.off == 0x3000 && l.ino == 1234567890123 && !strcmp(l.dev, "fe:01") && l.path_len == 14 &&
		      !memcmp(l.path, "/a b (deleted)", 14),
	      "a file");
	at = at ? maps_parse(at, &l) : at;
	CHECK(at && !*at && l.end == 0xffffffffff601000 && l.path_len == 10, "the last one");
	CHECK(at && !maps_parse(at, &l), "the end");
	static const char *const bad[] = { "",
					   "0-1 rwxp 0 0:0 0",
					   "0 rwxp 0 0:0 0\n",
					   "0-1 rwx 0 0:0 0\n",
					   "0-1 rwxp 0 0:0\n",
					   "0-1 rwxp 0 0123456789abcdef 0\n",
					   "0-1 rwxp 0 0:0 x\n",
					   "\n",
					   "0-1 rwxp 0 0:0 18446744073709551616\n",
					   "10000000000000000-1 rwxp 0 0:0 0\n",
					   "-1-1 rwxp 0 0:0 0\n",
					   "0x1-2 rwxp 0 0:0 0\n",
					   "0-1\n0-1 rwxp 0 0:0 0\n" };
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		CHECK(!maps_parse(bad[i], &l), "broken line %zu", i);
}

static void test_pieces(void)
{
	for (piece = 2; piece < sizeof three; piece++) {
		struct seen s = { 0 };
		file = three;
		CHECK(maps_each(note, &s) && s.n == 3 && s.l[0].start == 0x10000 && s.l[1].perm[3] == 's' &&
			      s.l[2].start == 0xffffffffff600000,
		      "in pieces of %zu", piece);
		s = (struct seen){ .until = 2 };
		CHECK(maps_each(note, &s) && s.n == 2, "stopped, in pieces of %zu", piece);
	}
	struct seen s = { 0 };
	piece = 64;
	file = "0-1 rw-p 00000000 00:00 0 \nnonsense\n0-1 rw-p 00000000 00:00 0 \n";
	CHECK(!maps_each(note, &s) && s.n == 1, "nonsense is told");
	s.n = 0;
	file = "0-1 rw-p 00000000 00:00 0 \n0-1 rw-p 0000";
	CHECK(!maps_each(note, &s) && s.n == 1, "half a line, too");
}

static void test_own(void)
{
	struct seen s = { 0 };
	piece = 0;
	CHECK(maps_each(note, &s) && s.n > 4, "this process's: %u", s.n);
	char *text = maps_text();
	unsigned n = 0;
	struct maps_line l;
	for (const char *at = text; at && (at = maps_parse(at, &l)); n++)
		;
	CHECK(text && n > 4, "the same as a text: %u", n);
	free(text);
}

static bool by_path(const struct maps_line *l, void *arg)
{
	struct maps_line *found = arg;
	if (l->path_len >= 5 && !memcmp(l->path + l->path_len - 5, "/file", 5))
		*found = *l;
	return !found->ino;
}

/* What maps_file() says, and what the kernel's list says of a mapping of that file; stat(2)'s numbers. */
static void compare(int fd, const char *what)
{
	struct stat st;
	struct maps_line l = { 0 };
	uint64_t dev, ino;
	char text[16];
	CHECK(!fstat(fd, &st), "%s: there", what);
	maps_file(fd, &st, &dev, &ino);
	maps_each(by_path, &l);
	CHECK(!l.ino, "%s: mapped for a moment", what);
	void *p = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
	CHECK(p != MAP_FAILED && maps_each(by_path, &l) && l.ino, "%s: in the list", what);
	snprintf(text, sizeof text, "%02x:%02x", major(dev), minor(dev));
	CHECK(ino == l.ino && !strcmp(text, l.dev), "%s: %s %ju, by stat %x:%x %ju", what, text, (uintmax_t)ino,
	      major(st.st_dev), minor(st.st_dev), (uintmax_t)st.st_ino);
	munmap(p, 4096);
}

/* How often the list is looked at when that file is asked for; its numbers are right. */
static unsigned looks(int fd, uint64_t is)
{
	struct stat st;
	uint64_t dev, ino;
	const unsigned before = nr_opened;
	CHECK(!fstat(fd, &st), "there");
	maps_file(fd, &st, &dev, &ino);
	CHECK(ino == is, "%ju, not %ju", (uintmax_t)ino, (uintmax_t)is);
	return nr_opened - before;
}

/* What is known of a file below an overlay, whose own inode is `is`, as long as it is that file; how many are. */
static void test_known(int fd, uint64_t is)
{
	static struct maps_known out[MAPS_KNOWN], none[MAPS_KNOWN];
	char name[32];
	struct stat st;
	CHECK(!looks(fd, is), "known");
	maps_known_export(out);
	maps_known_import(none);
	CHECK(looks(fd, is) == 1 && !looks(fd, is), "not known, and then it is");
	maps_known_import(none);
	maps_known_import(out);
	CHECK(!looks(fd, is), "handed on");
	known_turn++;
	maps_known_export(out);
	CHECK(!memcmp(out, none, sizeof out), "nothing of what is being changed is handed on");
	known_turn--;
	pthread_mutex_lock(&known_lock);
	CHECK(looks(fd, is) == 1, "without the lock nothing is known");
	pthread_mutex_unlock(&known_lock);
	pvm.pid = 1;
	self = &(struct thread){ .pid = 2 };
	CHECK(looks(fd, is) == 1, "nor in a child of vfork");
	pvm.pid = 0;
	self = NULL;
	for (int i = 0; i < MAPS_KNOWN - 1; i++) {
		snprintf(name, sizeof name, "/tmp/m/f%d", i);
		int other = open(name, O_RDWR | O_CREAT, 0600);
		CHECK(other >= 0 && write(other, "x", 1) == 1 && !fstat(other, &st) && looks(other, st.st_ino) == 1,
		      "%s", name);
		close(other);
	}
	CHECK(!looks(fd, is), "as many are known");
	CHECK(!chmod("/tmp/m/file", 0640) && !access("/tmp/u/file", F_OK), "copied up");
	int up = open("/tmp/m/file", O_RDONLY);
	const unsigned before = nr_opened;
	compare(up, "another file then");
	CHECK(nr_opened == before + 3, "looked for: %u", nr_opened - before);
	close(up);
}

/* Where a file system lies on another. */
static void test_file(void)
{
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("t", "/tmp", "tmpfs", 0, NULL) || mkdir("/tmp/l", 0700) || mkdir("/tmp/u", 0700) ||
	    mkdir("/tmp/w", 0700) || mkdir("/tmp/m", 0700)) {
		printf("skip: no mounts here\n");
		return;
	}
	int fd = open("/tmp/l/file", O_RDWR | O_CREAT, 0600);
	CHECK(fd >= 0 && write(fd, "x", 1) == 1, "a file");
	compare(fd, "on tmpfs");
	struct stat st;
	CHECK(!fstat(fd, &st), "its inode");
	close(fd);
	if (mount("o", "/tmp/m", "overlay", 0, "lowerdir=/tmp/l,upperdir=/tmp/u,workdir=/tmp/w")) {
		printf("skip: no overlay here\n");
		return;
	}
	fd = open("/tmp/m/file", O_RDONLY);
	compare(fd, "below an overlay");
	test_known(fd, st.st_ino);
	close(fd);
}

int main(void)
{
	test_lines();
	test_pieces();
	test_own();
	test_file();
	printf("%s: %d checks, %d failures\n", failures ? "FAILED" : "SUCCESS", checks, failures);
	return failures != 0;
}
