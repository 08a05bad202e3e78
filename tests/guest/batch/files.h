/* SPDX-License-Identifier: Apache-2.0 */
/* Files that are sent, copies of descriptors, and sockets that block. Part of batch.c. */
#ifndef KX_GUEST_BATCH_FILES_H
#define KX_GUEST_BATCH_FILES_H
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>
#include "talk.h"

/* ---- files ---------------------------------------------------------------------------------------------------------------- */

static inline int file_with(const char *name, char first, int n)
{
	static char b[5000];
	int f = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
	for (int i = 0; i < n; i++)
		b[i] = (char)(first + i % 23);
	if (f < 0 || write(f, b, n) != n)
		exit(115);
	return f;
}

/* The peer gets exactly these bytes: a head of one byte, len bytes of a file of file_with() from offset at, a tail. */
static inline bool arrives(char first, int at, int len)
{
	static uint8_t b[5002];
	b[0] = 'h';
	for (int i = 0; i < len; i++)
		b[1 + i] = (uint8_t)(first + (at + i) % 23);
	b[1 + len] = 't';
	return tell(RECV, 0, len + 2, NULL) == len + 2 && last.sum == sum_of(0, b, len + 2);
}

static inline bool one_file(int fd, int f, off_t at, size_t count, long expect)
{
	off_t was = at;
	return write(fd, "h", 1) == 1 && sendfile(fd, f, &at, count) == expect && at == was + expect &&
	       write(fd, "t", 1) == 1;
}

/* Files of more than a record, as fast as they go: nothing is missing, nothing comes twice. */
static inline void test_sendfile_large(int fd, const char *name)
{
	enum { SIZE = 1 << 20, TIMES = 6 };
	uint8_t *b = malloc(SIZE);
	unsigned sum = 0;
	long bad = 0, sent = 0;
	int f = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
	off_t at;
	for (int i = 0; i < SIZE; i++)
		b[i] = (uint8_t)(i * 7 + i / 251);
	check(f >= 0 && write(f, b, SIZE) == SIZE && next_turn(fd), "a large file");
	check(sendfile(fd, f, (at = 0, &at), 100) == 100 && at == 100 && tell(RECV, 0, 100, NULL) == 100, "its head");
	ask(RECV, 0, SIZE * TIMES, NULL);
	for (int i = 0; i < TIMES; i++) {
		sum = sum_of(sum, b, SIZE);
		for (at = 0; at < SIZE;) {
			off_t was = at;
			ssize_t r = sendfile(fd, f, &at, (size_t)(SIZE - at));
			if (r < 0 && errno == EAGAIN) {
				struct epoll_event ev = { EPOLLOUT, { .u64 = 3 } };
				epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev);
				bad += epoll_wait(epfd, &ev, 1, 5000) != 1;
				continue;
			}
			bad += r <= 0 || at != was + r;
			if (r <= 0)
				break;
			sent += r;
		}
	}
	check(!bad && sent == SIZE * TIMES && answer() == SIZE * TIMES && last.sum == sum,
	      "sendfile: all of it, in order");
	struct epoll_event ev = { EPOLLIN, { .u64 = 0xabc00000000ull + (unsigned)fd } };
	check(!epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev), "EPOLL_CTL_MOD");
	close(f);
	free(b);
}

static inline void test_sendfile(void)
{
	char a[] = "/tmp/kx-batch-XXXXXX", b[sizeof a + 2], buf[8];
	int f = mkstemp(a), fd = conn(0);
	close(f);
	snprintf(b, sizeof b, "%s.b", a);
	f = file_with(a, 'a', 3000);
	for (int i = 0; i < 3; i++)
		check(next_turn(fd) && one_file(fd, f, i, 1000, 1000) && arrives('a', i, 1000),
		      "sendfile: between writes");
	check(next_turn(fd) && one_file(fd, f, 2900, 1000, 100) && arrives('a', 2900, 100), "sendfile: up to the end");
	check(next_turn(fd) && one_file(fd, f, 3000, 10, 0) && arrives('a', 0, 0), "sendfile: at the end");
	check(next_turn(fd) && one_file(fd, f, 5, 0, 0) && arrives('a', 0, 0), "sendfile: of no bytes");
	off_t off = -1;
	next_turn(fd);
	fails(sendfile(fd, f, &off, 10), EINVAL, "sendfile: before the beginning");
	next_turn(fd);
	fails(sendfile(fd, f, BAD, 10), EFAULT, "sendfile: an offset that can't be read");
	next_turn(fd);
	check(lseek(f, 7, SEEK_SET) == 7 && next_turn(fd) && write(fd, "h", 1) == 1 &&
		      sendfile(fd, f, NULL, 20) == 20 && lseek(f, 0, SEEK_CUR) == 27 && write(fd, "t", 1) == 1 &&
		      arrives('a', 7, 20),
	      "sendfile: at the file's position");
	check(next_turn(fd), "turn");
	long sum = 0;
	for (int i = 0; i < 20; i++)
		sum += sendfile(fd, f, (off = i, &off), 500);
	check(sum == 10000 && tell(RECV, 0, 10000, NULL) == 10000, "sendfile: twenty in one turn");
	int g = open(a, O_RDWR);
	check(next_turn(fd) && !ftruncate(g, 1500) && one_file(fd, f, 1000, 1000, 500) && arrives('a', 1000, 500),
	      "sendfile: the file became shorter");
	check(next_turn(fd) && pwrite(g, "bcde", 4, 1500) == 4 && one_file(fd, f, 1490, 1000, 14) &&
		      tell(RECV, 0, 16, NULL) == 16 && !memcmp(last.data + 11, "bcdet", 5),
	      "sendfile: and longer");
	close(g);
	/* The number becomes another file's, with something of the first one on its way. */
	g = file_with(b, 'B', 700);
	check(next_turn(fd) && one_file(fd, f, 0, 600, 600) && dup2(g, f) == f, "dup2 over the file");
	check(arrives('a', 0, 600), "what was sent before is of the old file");
	check(one_file(fd, f, 0, 1000, 700) && arrives('B', 0, 700), "what is sent then, of the new one");
	check(next_turn(fd) && one_file(fd, f, 0, 600, 600) && close(f) == 0 && arrives('B', 0, 600),
	      "close of the file");
	fails(sendfile(fd, f, &off, 1), EBADF, "sendfile: closed");
	check(open(b, O_WRONLY) == f && next_turn(fd), "open for writing");
	fails(sendfile(fd, f, (off = 0, &off), 1), EBADF, "sendfile: not open for reading");
	close(f);
	check(next_turn(fd) && sendfile(fd, g, (off = 0, &off), 9) == 9 && tell(RECV, 0, 9, NULL) == 9, "once more");
	check(next_turn(fd) && sendfile(fd, g, (off = 9, &off), 9) == 9 && !shutdown(fd, SHUT_WR) &&
		      tell(RECV, 0, 100, NULL) == 9,
	      "sendfile and shutdown");
	fails(read(fd, buf, 1), EAGAIN, "read: nothing");
	close(g);
	bye(0, fd);
	fd = conn(0);
	test_sendfile_large(fd, a);
	unlink(a);
	unlink(b);
	bye(0, fd);
}

static inline void test_dup(void)
{
	char b[8];
	int fd = conn(0), d = -1;
	tell(SEND, 0, 6, "abcdef");
	check(turn(fd, 30000) && read(fd, b, 2) == 2 && (d = dup(fd)) >= 0, "dup behind a read");
	check(read(d, b, 2) == 2 && !memcmp(b, "cd", 2) && read(fd, b, 8) == 2 && !memcmp(b, "ef", 2), "one stream");
	check(write(fd, "a", 1) == 1 && write(d, "b", 1) == 1 && write(fd, "c", 1) == 1, "writes by both");
	check(tell(RECV, 0, 3, NULL) == 3 && !memcmp(last.data, "abc", 3), "in order");
	close(d);
	bye(0, fd);
}

static inline void test_blocking(void)
{
	char b[8];
	int fd = conn(0);
	tell(SEND, 0, 2, "ab");
	check(turn(fd, 30000) && read(fd, b, 1) == 1, "event");
	check(!fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK), "made blocking");
	check(read(fd, b, 8) == 1 && b[0] == 'b', "read: the rest");
	fails(recv(fd, b, 8, MSG_DONTWAIT), EAGAIN, "recv: MSG_DONTWAIT");
	struct timeval tv = { 0, 50000 };
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
	int64_t t = now_us();
	long r = read(fd, b, 8);
	check(r == -1 && errno == EAGAIN && now_us() - t >= 45000, "read: waits for SO_RCVTIMEO");
	int one = 1;
	check(!ioctl(fd, FIONBIO, &one), "FIONBIO");
	fails(read(fd, b, 8), EAGAIN, "read: non-blocking again");
	tell(SEND, 0, 2, "cd");
	check(turn(fd, 30000) && read(fd, b, 8) == 2, "read: as before");
	int low = 4;
	if (is_unix) { /* waits only */
		bye(0, fd);
		return;
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low);
	tell(SEND, 0, 2, "ef");
	check(!turn(fd, 30), "SO_RCVLOWAT: no event");
	check(read(fd, b, 1) == 1, "SO_RCVLOWAT: a read takes what is there");
	tell(SEND, 0, 3, "ghi");
	check(turn(fd, 30000) && read(fd, b, 8) == 4 && !memcmp(b, "fghi", 4), "SO_RCVLOWAT: reached");
	bye(0, fd);
}
#endif
