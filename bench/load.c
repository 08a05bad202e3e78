/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of many connections in a closed loop: each sends its request, waits for the whole reply, sends the next.
 * usage: load PORT CONNECTIONS SECONDS REQUEST REPLY_BYTES. Prints requests per second and the latency's p50 and p99, us.
 * SECONDS below 0: so many requests.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SAMPLES 1000000

static int64_t now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

static int ascending(const void *a, const void *b) { return (*(float *)a > *(float *)b) - (*(float *)a < *(float *)b); }

static void send_all(int fd, const char *p, size_t n)
{
	for (ssize_t r; n; p += r, n -= r)
		if ((r = send(fd, p, n, MSG_NOSIGNAL)) < 0)
			exit(2);
}

int main(int argc, char **argv)
{
	static char buf[1 << 20];
	if (argc != 6)
		return 2;
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])) };
	int n = atoi(argv[2]), ep = epoll_create1(0), one = 1;
	double seconds = atof(argv[3]);
	int64_t end = seconds < 0 ? INT64_MAX : now() + seconds * 1e9, *sent = calloc(n, sizeof *sent);
	long want = atol(argv[5]), *left = calloc(n, sizeof *left), done = 0, most = seconds < 0 ? -seconds : LONG_MAX;
	size_t len = strlen(argv[4]);
	int *fd = calloc(n, sizeof *fd);
	float *lat = malloc(SAMPLES * sizeof *lat);
	struct epoll_event ev[256];
	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	for (int i = 0; i < n; i++) {
		fd[i] = socket(AF_INET, SOCK_STREAM, 0);
		setsockopt(fd[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		if (connect(fd[i], (void *)&a, sizeof a))
			return 2;
		ev[0] = (struct epoll_event){ .events = EPOLLIN, .data.u32 = i };
		epoll_ctl(ep, EPOLL_CTL_ADD, fd[i], ev);
	}
	int64_t start = now();
	for (int i = 0; i < n; i++) {
		left[i] = want;
		sent[i] = now();
		send_all(fd[i], argv[4], len);
	}
	while (done < most && now() < end) {
		int k = epoll_wait(ep, ev, 256, 1000);
		for (int j = 0; j < k; j++) {
			int i = ev[j].data.u32;
			ssize_t r = recv(fd[i], buf, sizeof buf, MSG_DONTWAIT);
			if (r == 0 || (r < 0 && errno != EAGAIN))
				return 3;
			if (r < 0 || (left[i] -= r) > 0)
				continue;
			int64_t t = now();
			lat[done++ % SAMPLES] = (t - sent[i]) / 1e3;
			left[i] = want;
			sent[i] = t;
			send_all(fd[i], argv[4], len);
		}
	}
	double s = (now() - start) / 1e9;
	long m = done < SAMPLES ? done : SAMPLES;
	if (!m)
		return 4;
	qsort(lat, m, sizeof *lat, ascending);
	printf("%.0f %.0f %.0f\n", done / s, lat[m / 2], lat[m * 99 / 100]);
	return 0;
}
