/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bgsave.c PORT CONNECTIONS KEYS BYTES: a Redis server that saves in the background while it is written to. Connections in
 * a closed loop set random keys (key:0 ...) of a heap that is there; after a second BGSAVE, until the child has ended, and
 * half a second more. Requests per second and latencies in us, before, during and behind; "name value" lines.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SAMPLES (4 << 20)
#define BEFORE_NS 1000000000
#define BEHIND_NS 500000000
#define ASK_NS 20000000 /* whether the child has ended */
#define GIVE_UP_NS 120000000000

struct part {
	float *lat;
	long n;
	double seconds;
};

static int64_t now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

static int ascending(const void *a, const void *b) { return (*(float *)a > *(float *)b) - (*(float *)a < *(float *)b); }

static void fail(const char *what)
{
	perror(what);
	exit(2);
}

static void send_all(int fd, const char *p, size_t n)
{
	for (ssize_t r; n; p += r, n -= r)
		if ((r = send(fd, p, n, MSG_NOSIGNAL)) < 0)
			fail("send");
}

static int dial(int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (connect(fd, (void *)&a, sizeof a))
		fail("connect");
	return fd;
}

static uint64_t next(void)
{
	static uint64_t x = 88172645463325252ull;
	x ^= x << 13;
	x ^= x >> 7;
	return x ^= x << 17;
}

static char *value;
static size_t value_len;
static long keys;

static void request(int fd)
{
	static char *text;
	char key[32];
	int k = snprintf(key, sizeof key, "key:%ld", (long)(next() % (uint64_t)keys));
	if (!text && !(text = malloc(value_len + 128)))
		fail("malloc");
	int n = sprintf(text, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%zu\r\n", k, key, value_len);
	memcpy(text + n, value, value_len);
	memcpy(text + n + value_len, "\r\n", 2);
	send_all(fd, text, n + value_len + 2);
}

static void report(const char *name, struct part *p)
{
	long n = p->n < SAMPLES ? p->n : SAMPLES;
	if (!n)
		exit(4);
	qsort(p->lat, n, sizeof *p->lat, ascending);
	printf("%s_rate %.0f\n%s_p50 %.0f\n%s_p99 %.0f\n%s_p999 %.0f\n%s_max %.0f\n", name, p->n / p->seconds, name,
	       p->lat[n / 2], name, p->lat[n * 99 / 100], name, p->lat[n * 999 / 1000], name, p->lat[n - 1]);
}

int main(int argc, char **argv)
{
	static char buf[1 << 16];
	if (argc != 5)
		return 2;
	int port = atoi(argv[1]), n = atoi(argv[2]), ep = epoll_create1(0), *fd = calloc(n + 1, sizeof *fd);
	int64_t *sent = calloc(n, sizeof *sent);
	struct part part[3] = { 0 };
	struct epoll_event ev[256];
	keys = atol(argv[3]);
	value_len = strtoul(argv[4], NULL, 10);
	value = malloc(value_len);
	for (int i = 0; i < 3; i++)
		if (!(part[i].lat = malloc(SAMPLES * sizeof(float))))
			fail("malloc");
	if (!fd || !sent || !value)
		fail("malloc");
	memset(value, 'v', value_len);
	for (int i = 0; i <= n; i++) { /* the last one asks */
		fd[i] = dial(port);
		ev[0] = (struct epoll_event){ .events = EPOLLIN, .data.u32 = i };
		epoll_ctl(ep, EPOLL_CTL_ADD, fd[i], ev);
	}
	int64_t start = now(), t = start, began = 0, ended = 0, ask = 0;
	bool asked = false, started = false;
	for (int i = 0; i < n; i++) {
		sent[i] = now();
		request(fd[i]);
	}
	while (!ended || t < ended + BEHIND_NS) {
		int k = epoll_wait(ep, ev, 256, 5);
		for (int j = 0; j < k; j++) {
			int i = ev[j].data.u32;
			ssize_t r = recv(fd[i], buf, sizeof buf - 1, MSG_DONTWAIT);
			if (r == 0 || (r < 0 && errno != EAGAIN))
				fail("recv");
			if (r < 0)
				continue;
			buf[r] = 0;
			t = now();
			if (i == n) {
				asked = false;
				ask = t + ASK_NS;
				if (strstr(buf, "rdb_bgsave_in_progress:1"))
					started = true;
				else if (started && strstr(buf, "rdb_bgsave_in_progress:0") && !ended)
					ended = t;
				else if (*buf == '-')
					return fprintf(stderr, "%s", buf), 3;
				continue;
			}
			if (strcmp(buf, "+OK\r\n"))
				return fprintf(stderr, "%s", buf), 3;
			struct part *p = &part[ended ? 2 : began ? 1 : 0];
			p->lat[p->n++ % SAMPLES] = (t - sent[i]) / 1e3;
			sent[i] = t;
			request(fd[i]);
		}
		t = now();
		if (t > start + GIVE_UP_NS)
			return 5;
		if (!began && t > start + BEFORE_NS) {
			began = t;
			send_all(fd[n], "BGSAVE\r\n", 8);
			asked = started = true; /* the reply, +Background saving started, comes first */
		} else if (began && !asked && t > ask) {
			send_all(fd[n], "INFO persistence\r\n", 18);
			asked = true;
		}
	}
	part[0].seconds = (began - start) / 1e9;
	part[1].seconds = (ended - began) / 1e9;
	report("before", &part[0]);
	report("during", &part[1]);
	part[2].seconds = (t - ended) / 1e9;
	report("behind", &part[2]);
	printf("save_ms %.0f\n", (ended - began) / 1e6);
	return 0;
}
