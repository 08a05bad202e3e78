/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What batch_room() says there is room for this machine's kernel takes at once, whatever the client does in between: it
 * reads nothing, or a few bytes now and then, has a small window or small packets.
 */
#include "../../monitor/core/batch_room.c"
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include "../../util/now.h"
#include "../fuzz/random.h"
#include "check.h"

#define FLUSH_MOST 200000 /* bytes that are sent at once: about a ring */
#define STREAM_MOST (6u << 20)
#define ROUND_MS 25

struct pvm pvm;
struct batch_state batch;

long host_call(long nr, long a, long b, long c, long d, long e, long f)
{
	long r = syscall(nr, a, b, c, d, e, f);
	return r < 0 ? -errno : r;
}

struct kind {
	const char *name;
	bool un;
	int window, packet, buffer, send_buffer; /* 0: as it comes */
	uint32_t most;                           /* bytes of a record */
	int read;                                /* at a time by the client */
	int wait_ms;                             /* between what is sent */
};

static void set(int fd, int level, int opt, int v)
{
	if (v && setsockopt(fd, level, opt, &v, sizeof v))
		CHECK(false, "option %d: %m", opt);
}

static void connect_tcp(const struct kind *k, int *server, int *client)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof a;
	int l = socket(AF_INET, SOCK_STREAM, 0);
	*client = socket(AF_INET, SOCK_STREAM, 0);
	set(*client, SOL_SOCKET, SO_RCVBUF, k->buffer);
	set(*client, IPPROTO_TCP, TCP_WINDOW_CLAMP, k->window);
	set(*client, IPPROTO_TCP, TCP_MAXSEG, k->packet);
	if (bind(l, (void *)&a, len) || listen(l, 1) || getsockname(l, (void *)&a, &len) ||
	    connect(*client, (void *)&a, len) || (*server = accept(l, NULL, NULL)) < 0)
		exit(2);
	close(l);
	set(*server, IPPROTO_TCP, TCP_NODELAY, (int)below(2));
}

static void connect_un(int *server, int *client)
{
	int s[2];
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, s))
		exit(2);
	*server = s[0];
	*client = s[1];
}

static uint64_t client_reads(int fd, int n)
{
	static uint8_t buf[65536];
	long r = recv(fd, buf, n < (int)sizeof buf ? (size_t)n : sizeof buf, MSG_DONTWAIT);
	return r > 0 ? (uint64_t)r : 0;
}

/* What has been told of at the price is sent, in one or more flushes. */
static uint64_t flush(const struct kind *k, int fd, int client, uint32_t credit, uint64_t *read)
{
	static uint8_t data[KX_BATCH_SEND_MAX];
	uint64_t sent = 0, part = 0;
	for (;;) {
		uint32_t most = credit > KX_BATCH_COST(1) ? (credit - KX_BATCH_COST(0)) / 2 : 0;
		if (!most)
			return sent;
		uint32_t len = (uint32_t)(1 + below(most < k->most ? most : k->most));
		credit -= KX_BATCH_COST(len);
		long r = send(fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
		CHECK(r == (long)len, "%s: %ld of %u bytes were taken, %lu before, credit left %u", k->name, r, len,
		      (unsigned long)sent, credit);
		sent += len;
		if (r != (long)len)
			return sent;
		if ((part += len) > FLUSH_MOST) {
			part = 0;
			usleep((unsigned)k->wait_ms * 1000);
			*read += client_reads(client, k->read);
		}
	}
}

static void try(const struct kind *k)
{
	int fd, client;
	uint64_t sent = 0, read = 0, until;
	int before = failures;
	if (k->un)
		connect_un(&fd, &client);
	else
		connect_tcp(k, &fd, &client);
	set(fd, SOL_SOCKET, SO_SNDBUF, k->send_buffer);
	until = now_ns() + ROUND_MS * 1000000ull;
	do {
		uint64_t n = flush(k, fd, client, batch_room(fd, !k->un), &read);
		sent += n;
		if (!n && below(4) == 0) /* a part, however full it is */
			sent += (uint64_t)(n = (uint64_t)send(fd, &n, sizeof n, MSG_DONTWAIT)) < 9 ? n : 0;
		read += client_reads(client, k->read);
		usleep((unsigned)k->wait_ms * 1000);
	} while (now_ns() < until && sent < STREAM_MOST && failures == before);
	CHECK(sent, "%s: there is never any room", k->name);
	shutdown(fd, SHUT_WR);
	set(client, IPPROTO_TCP, TCP_WINDOW_CLAMP, k->window ? 1 << 20 : 0);
	for (uint64_t n = 1; n && failures == before; read += n) {
		static uint8_t buf[65536];
		long r = recv(client, buf, sizeof buf, 0);
		n = r > 0 ? (uint64_t)r : 0;
	}
	CHECK(failures > before || read == sent, "%s: %lu of %lu bytes came", k->name, (unsigned long)read,
	      (unsigned long)sent);
	close(fd);
	close(client);
}

int main(void)
{
	static const struct kind shapes[] = {
		{ .name = "TCP" },
		{ .name = "TCP, small window", .window = 600, .buffer = 4096 },
		{ .name = "TCP, smaller window", .window = 300, .buffer = 2000 },
		{ .name = "TCP, small buffer", .buffer = 4096 },
		{ .name = "TCP, packets of 88", .packet = 88 },
		{ .name = "TCP, packets of 88, small window", .packet = 88, .window = 1000, .buffer = 4096 },
		{ .name = "TCP, packets of 536", .packet = 536 },
		{ .name = "TCP, packets of 1,460", .packet = 1460 },
		{ .name = "TCP, packets of 1,460, small window", .packet = 1460, .window = 3000, .buffer = 4096 },
		{ .name = "UNIX", .un = true },
	};
	static const int reads[] = { 0, 1, 700, 1 << 20 }, send_buffers[] = { 0, 20000, 200000 };
	for (unsigned s = 0; s < sizeof shapes / sizeof *shapes; s++)
		for (unsigned r = 0; r < 4; r++)
			for (unsigned b = 0; b < 3; b++) {
				struct kind k = shapes[s];
				k.read = reads[r];
				k.send_buffer = send_buffers[b];
				k.most = below(2) ? 65536 : 400;
				k.wait_ms = (int)below(3);
				try(&k);
			}
	printf("%d checks, %d failures\n", checks, failures);
	return failures != 0;
}
