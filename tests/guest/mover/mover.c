/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mover [SEED [ROUNDS]]: processes are killed while they make a socket pair with unread data one of the host's. In each
 * round some writers have one end; they fill it by turns, and then, one after the other, each asks what only the host can
 * answer and is killed at a random instant of that, the reader having read a random part of it all before. All that
 * was written must come, once and in order, and then the end. Passes on any Linux. Exit status 1: a round failed, its
 * number and seed are printed.
 *
 * mover told: what standard input says, for test_mover.py, which kills at chosen system calls. Lines: "new TYPE" (1 stream,
 * 2 datagrams, 5 records), "write WRITER MESSAGES LENGTH", "move WRITER", "read N" (messages, or
 * bytes), "rest" (all that is left). Each is answered by a line.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../clock.h"
#include "../draw.h"

#define WRITERS 3
#define MESSAGES 400

static struct area {
	volatile unsigned turn, ready; /* whose turn it is to move; how many have done their part */
	volatile bool through;         /* whose turn it is has moved all that it could */
	volatile unsigned messages;    /* written */
	volatile unsigned bytes;
	unsigned short len[MESSAGES];
	volatile unsigned count, length; /* told: messages to write, 0 = to move */
} * s;

static uint8_t byte_at(unsigned message, unsigned i) { return (uint8_t)(message * 7 + i * 13 + i / 256); }

/* Writes until there is no room, or as many as it likes. */
static void fill(int fd, unsigned shape)
{
	static uint8_t buf[16384];
	unsigned most = shape % 3 ? MESSAGES : 1 + draw(20);
	for (unsigned k = 0; k < most && s->messages < MESSAGES; k++) {
		unsigned m = s->messages, n = shape % 4 == 3 ? draw(sizeof buf) : shape % 4 ? draw(600) : draw(3) / 2;
		for (unsigned i = 0; i < n; i++)
			buf[i] = byte_at(m, i);
		ssize_t r = send(fd, buf, n, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (r < 0)
			return;
		s->len[m] = (unsigned short)r;
		s->bytes += (unsigned)r;
		s->messages = m + 1;
	}
}

static _Noreturn void writer(int fd, unsigned i, unsigned shape)
{
	while (s->ready != i)
		usleep(200);
	fill(fd, shape);
	s->ready = i + 1;
	int n;
	while (s->turn != i + 1) {
		if (s->turn > i + 1 || s->turn + 1 < i + 1)
			usleep(200);
	}
	ioctl(fd, SIOCOUTQ, &n);
	s->through = true;
	for (;;)
		pause();
}

struct reading {
	int fd, type;
	unsigned message, at; /* what comes next */
};

/* What has been read as a whole counts, an empty one at the end of a stream, too. */
static void settle(struct reading *r)
{
	while (r->type == SOCK_STREAM && r->message < s->messages && r->at == s->len[r->message]) {
		r->message++;
		r->at = 0;
	}
}

/* One message, or a part of the stream: bytes of that or 1 = got, 0 = end or nothing, -1 = wrong. */
static int take(struct reading *r, size_t most)
{
	static uint8_t buf[65536];
	bool stream = r->type == SOCK_STREAM;
	ssize_t n = recv(r->fd, buf, most && stream ? most : sizeof buf, MSG_DONTWAIT);
	if (n < 0 && errno == ECONNRESET) /* what a killed writer left unread is none of this test's */
		n = recv(r->fd, buf, most && stream ? most : sizeof buf, MSG_DONTWAIT);
	if (n < 0 || (!n && (stream || r->message >= s->messages)))
		return n < 0 && errno != EAGAIN && errno != ECONNRESET ? (perror("recv"), -1) : 0;
	if (!stream) {
		unsigned m = r->message++;
		if (m >= s->messages || n != s->len[m]) {
			printf("message %u of %u: %zd bytes instead of %u\n", m, s->messages, n,
			       m < s->messages ? s->len[m] : 0);
			return -1;
		}
		for (unsigned i = 0; i < (unsigned)n; i++)
			if (buf[i] != byte_at(m, i)) {
				printf("message %u: wrong at %u\n", m, i);
				return -1;
			}
		return 1;
	}
	for (unsigned i = 0; i < (unsigned)n; i++) {
		settle(r);
		if (r->message >= s->messages || buf[i] != byte_at(r->message, r->at++)) {
			printf("stream: wrong at %u of message %u of %u\n", r->at, r->message, s->messages);
			return -1;
		}
	}
	return (int)n;
}

/* A random instant of the move, whatever that takes here and now: what half of them live to see is taken for its end. */
static void kill_within(pid_t pid, unsigned i, int type)
{
	static unsigned end_us[8] = { 1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000 };
	unsigned *end = &end_us[type % 8], delay = draw(*end + *end / 4);
	int64_t start = now_us();
	s->through = false;
	s->turn = i + 1;
	while (now_us() - start < delay)
		;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	*end += s->through ? -(int)(*end / 8) : (int)(*end / 16) + 8;
	if (*end > 20000)
		*end = 20000;
}

static bool round_once(int type)
{
	int sv[2], r = 1;
	pid_t pid[WRITERS];
	unsigned writers = 1 + draw(WRITERS), shape = draw(12);
	memset(s, 0, sizeof *s);
	if (socketpair(AF_UNIX, type, 0, sv))
		return false;
	for (unsigned i = 0; i < writers; i++) {
		draw(2);
		pid[i] = fork();
		if (pid[i] < 0) {
			perror("mover: fork");
			exit(1);
		}
		if (!pid[i]) {
			close(sv[1]);
			writer(sv[0], i, shape);
		}
	}
	close(sv[0]);
	while (s->ready < writers)
		usleep(200);
	struct reading in = { sv[1], type, 0, 0 };
	for (unsigned i = 0; i < writers && r >= 0; i++) {
		for (unsigned k = draw(3) ? draw(60) : 0; k && (r = take(&in, 1 + draw(3000))) > 0; k--)
			;
		kill_within(pid[i], i, type);
		pid[i] = 0;
	}
	for (unsigned i = 0; i < writers; i++)
		if (pid[i]) {
			kill(pid[i], SIGKILL);
			waitpid(pid[i], NULL, 0);
		}
	while (r >= 0 && (r = take(&in, 1 + draw(20000))) > 0)
		;
	settle(&in);
	if (r == 0 && in.message != s->messages) {
		printf("%u of %u messages came\n", in.message, s->messages);
		r = -1;
	}
	struct pollfd p = { sv[1], POLLIN, 0 };
	if (r == 0 && (poll(&p, 1, 0) < 0 || (type == SOCK_DGRAM ? p.revents : !(p.revents & POLLHUP)))) {
		printf("at the end: events %#x\n", p.revents);
		r = -1;
	}
	close(sv[1]);
	return r >= 0;
}

/* ---- as told ------------------------------------------------------------------------------------------------------------ */

static _Noreturn void told_writer(int fd, unsigned i)
{
	static uint8_t buf[65536];
	int n;
	for (;;) {
		while (s->turn != i + 1)
			usleep(300);
		unsigned left = s->count, len = s->length;
		if (!left)
			ioctl(fd, SIOCOUTQ, &n);
		for (; left && s->messages < MESSAGES; left--) {
			unsigned m = s->messages;
			for (unsigned k = 0; k < len; k++)
				buf[k] = byte_at(m, k);
			if (send(fd, buf, len, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)len)
				break;
			s->len[m] = (unsigned short)len;
			s->messages = m + 1;
		}
		s->turn = 0;
	}
}

/* Tell a writer, and wait until it has done that, or died. */
static bool tell(const pid_t *pid, unsigned i, unsigned count, unsigned length)
{
	siginfo_t info = { 0 };
	s->count = count;
	s->length = length;
	s->turn = i + 1;
	while (s->turn) {
		waitid(P_PID, (id_t)pid[i], &info, WEXITED | WNOHANG | WNOWAIT);
		if (info.si_pid)
			return false;
		usleep(300);
	}
	return true;
}

static void told_new(struct reading *in, pid_t *pid)
{
	int sv[2];
	for (unsigned i = 0; i < WRITERS && in->type; i++) {
		kill(pid[i], SIGKILL);
		waitpid(pid[i], NULL, 0);
	}
	if (in->type)
		close(in->fd);
	memset(s, 0, sizeof *s);
	if (scanf("%d", &in->type) != 1 || socketpair(AF_UNIX, in->type, 0, sv)) {
		perror("mover: new");
		exit(1);
	}
	for (unsigned i = 0; i < WRITERS; i++)
		if (!(pid[i] = fork())) {
			close(sv[1]);
			told_writer(sv[0], i);
		}
	close(sv[0]);
	in->fd = sv[1];
	in->message = in->at = 0;
	for (unsigned i = 0; i < WRITERS; i++)
		printf("%d ", pid[i]);
	puts("");
}

static int told(void)
{
	struct reading in = { 0 };
	pid_t pid[WRITERS] = { 0 };
	char word[16];
	unsigned i, n, len;
	int r;
	while (scanf("%15s", word) == 1) {
		if (!strcmp(word, "new")) {
			told_new(&in, pid);
		} else if (!strcmp(word, "write") && scanf("%u %u %u", &i, &n, &len) == 3) {
			r = tell(pid, i % WRITERS, n, len % 65536);
			printf("%s, %u messages\n", r ? "written" : "dead", s->messages);
		} else if (!strcmp(word, "move") && scanf("%u", &i) == 1) {
			puts(tell(pid, i % WRITERS, 0, 0) ? "moved" : "dead");
		} else if (!strcmp(word, "read") && scanf("%u", &n) == 1) {
			for (r = 1; n && r > 0; n -= in.type == SOCK_STREAM ? (unsigned)r : 1)
				r = take(&in, n);
			puts(r > 0 ? "read" : r ? "wrong" : "no more");
		} else if (!strcmp(word, "rest")) {
			while ((r = take(&in, 20000)) > 0)
				;
			settle(&in);
			printf("%s, %u of %u messages\n", r ? "wrong" : "read", in.message, s->messages);
		} else {
			return 2;
		}
	}
	for (i = 0; i < WRITERS && in.type; i++)
		kill(pid[i], SIGKILL);
	return 0;
}

int main(int argc, char **argv)
{
	static const int types[] = { SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM };
	unsigned seed = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1;
	unsigned rounds = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 30;
	int bad = 0;
	setvbuf(stdout, NULL, _IOLBF, 0);
	s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (argc > 1 && !strcmp(argv[1], "told"))
		return told();
	for (unsigned i = 0; i < rounds; i++) {
		rng = ((uint64_t)seed << 32 | i) * 0x9e3779b97f4a7c15ull + 1;
		for (int k = 0; k < 8; k++)
			draw(2);
		if (!round_once(types[i % 3])) {
			printf("FAIL seed %u round %u\n", seed, i);
			bad++;
		}
	}
	printf("%s %u rounds, seed %u\n", bad ? "FAIL" : "ok", rounds, seed);
	return bad ? 1 : 0;
}
