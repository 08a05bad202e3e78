/* SPDX-License-Identifier: Apache-2.0 */
/* Lies about pipes, IPC and sockets. Part of hostile.c. */
#ifndef KX_GUEST_HOSTILE_RINGS_H
#define KX_GUEST_HOSTILE_RINGS_H
#include "lies.h"

/* ---- lies in the memory of pipes, IPC and sockets ---------------------------------------- */

static int lie_pipe[2] = { -1, -1 };
static char pipe_data[100 << 8];
/* Made with the first lie, so that the family's memory for pipes is there. */
static inline void lie_pipe_open(void)
{
	if (lie_pipe[0] < 0 && pipe2(lie_pipe, O_NONBLOCK))
		abort();
}
static inline void lie_pipes(void)
{
	lie_pipe_open();
	scribble((void *)KX_PIPE_BASE, 4096);
}
static inline void lie_pipe_cursors(void)
{
	lie_pipe_open();
	struct kx_pipe *o = &((struct kx_pipes *)KX_PIPE_BASE)->obj[below(3)];
	*(volatile uint64_t *)&o->head = any_value();
	*(volatile uint64_t *)&o->tail = any_value();
	*(volatile uint32_t *)&o->sleepers = (uint32_t)below(2);
	*(volatile uint64_t *)&o->wlock = below(4) ? 0 : any_value();
	if (below(8) == 0)
		*(volatile uint64_t *)&o->state = any_value();
}
static inline void lie_pipe_table(void)
{
	lie_pipe_open();
	scribble((void *)KX_PIPE_TABLE, 4096);
}

static int lie_sem = -1, lie_queue = -1, lie_mq = -1;
static struct {
	long type;
	char text[64];
} lie_text = { 1, "" };
/* So busy that the family's memory is used. */
static inline void ipc_turn(void)
{
	struct sembuf op = { 0, below(2) ? 1 : -1, IPC_NOWAIT };
	semop(lie_sem, &op, 1);
	msgsnd(lie_queue, &lie_text, below(64), IPC_NOWAIT);
	msgrcv(lie_queue, &lie_text, 64, 0, IPC_NOWAIT | MSG_NOERROR);
	lie_text.type = 1 + (long)below(3);
	mq_send(lie_mq, lie_text.text, below(64), (unsigned)below(3));
	mq_receive(lie_mq, lie_text.text, 64, NULL);
	if (below(8) == 0)
		semtimedop(lie_sem, &(struct sembuf){ 0, -1, 0 }, 1, &(struct timespec){ 0, 1000000 });
}
static inline void ipc_open(void)
{
	if (lie_queue >= 0)
		return;
	struct mq_attr a = { .mq_maxmsg = 4, .mq_msgsize = 64 };
	lie_sem = semget(IPC_PRIVATE, 4, 0600);
	lie_mq = mq_open("/kx-hostile", O_RDWR | O_CREAT | O_NONBLOCK, 0600, &a);
	mq_unlink("/kx-hostile");
	int q = msgget(IPC_PRIVATE, 0600);
	if (lie_sem < 0 || q < 0 || lie_mq < 0)
		abort();
	lie_queue = q;
	for (int i = 0; i < 30; i++)
		ipc_turn();
}
static inline void lie_ipc(void)
{
	ipc_open();
	struct kx_ipc *ipc = (struct kx_ipc *)KX_IPC_BASE;
	if (((volatile struct kx_ipc_table *)KX_IPC_TABLE)->on) {
		scribble(below(2) ? &ipc->sem[kx_ipc_slot(lie_sem)] : &ipc->msg[kx_ipc_slot(lie_queue)], 200);
		scribble(&ipc->word[kx_ipc_slot(lie_sem)], 64);
		scribble(&ipc->mq[below(KX_IPC_OBJECTS)], 200);
		scribble((void *)KX_IPC_TABLE, sizeof(struct kx_ipc_table));
		((volatile struct kx_ipc_table *)KX_IPC_TABLE)->on = 1;
	}
}
/* Who sleeps, for what, and what it was given. */
static inline void lie_ipc_places(void)
{
	ipc_open();
	struct kx_ipc *ipc = (struct kx_ipc *)KX_IPC_BASE;
	if (!((volatile struct kx_ipc_table *)KX_IPC_TABLE)->on)
		return;
	unsigned n = below(4) ? kx_ipc_slot(lie_queue) : KX_IPC_OBJECTS + below(KX_IPC_OBJECTS);
	struct kx_ipc_sleeper *s = &ipc->sleeper[n][below(4)];
	scribble(s, sizeof *s);
	if (below(2)) {
		s->tid = (uint32_t)getpid();
		s->id = below(2) ? lie_sem : lie_queue;
		s->flags = (uint32_t)below(256);
		s->type = (int64_t)below(4) - 2;
	}
	*(volatile uint64_t *)&ipc->sem[kx_ipc_slot(lie_sem)].tickets = any_value();
	*(volatile uint32_t *)&ipc->msg[kx_ipc_slot(lie_queue)].asleep = (uint32_t)any_value();
}
static inline void lie_ipc_ring(void)
{
	ipc_open();
	struct kx_ipc *ipc = (struct kx_ipc *)KX_IPC_BASE;
	if (!((volatile struct kx_ipc_table *)KX_IPC_TABLE)->on)
		return;
	unsigned place = below(2) ? kx_ipc_slot(lie_queue) : KX_IPC_OBJECTS + (unsigned)below(KX_IPC_OBJECTS);
	struct kx_ipc_obj *o = (struct kx_ipc_obj *)ipc->msg + place;
	volatile struct kx_ipc_msg *m = (void *)(ipc->ring[place] + below(64) * 16);
	m->size = below(4) ? (uint32_t)below(200) : (uint32_t)any_value();
	m->state = (uint32_t)below(5) | (below(2) ? (uint32_t)below(20) << 8 : 0);
	if (below(4) == 0)
		*(volatile uint64_t *)&o->head = below(2) ? o->tail + below(70000) : any_value();
	if (below(8) == 0)
		*(volatile uint64_t *)&o->lock = any_value();
	if (below(8) == 0)
		*(volatile uint64_t *)&o->state = (o->state & ~15ull) | below(6);
}
static inline void ipc_activity(int n)
{
	struct msqid_ds ds;
	for (int i = 0; i < 10; i++)
		ipc_turn();
	if (n % 5 == 0)
		semctl(lie_sem, 0, GETVAL);
	if (n % 7 == 0)
		msgctl(lie_queue, IPC_STAT, &ds);
	if (n % 11 == 0)
		close(dup(lie_mq));
	if (n % 50 == 0) {
		semctl(lie_sem, 0, IPC_RMID);
		lie_sem = semget(IPC_PRIVATE, 4, 0600);
	}
}

static inline void *liar(void *fn)
{
	while (!stop)
		((void (*)(void))fn)();
	return NULL;
}

static inline void *short_thread(void *arg)
{
	syscall(SYS_getppid);
	return arg;
}

static inline void lie_batch_ring(void)
{
	volatile struct kx_brec *r = (void *)(KX_BATCH_BASE + KX_BATCH_CTX + KX_BATCH_TX + below(64) * 32);
	r->len = below(2) ? (uint32_t)any_value() : (uint32_t)below(200);
	r->fd = (int32_t)below(40) - 1;
	r->gen = (uint32_t)below(3);
	if (below(2))
		return;
	if (below(4) == 0) {
		volatile struct kx_bopt *opt = (void *)(r + 1);
		*opt = (struct kx_bopt){ (int32_t)below(8), (int32_t)below(12), (int32_t)any_value(), 0 };
		r->len = sizeof *opt;
		r->flags = KX_BREC_OPT;
		return;
	}
	if (below(3) == 0) {
		r->len = below(2) ? 0 : sizeof(struct kx_badd);
		r->flags = (const uint32_t[]){ KX_BREC_CLOSE, KX_BREC_ADD, KX_BREC_MOD, KX_BREC_NAME }[below(4)];
		volatile struct kx_badd *add = (void *)(r + 1);
		*add = (struct kx_badd){ any_value(), (uint32_t)any_value(), (int32_t)below(40) - 1 };
		return;
	}
	if (below(4) == 0) {
		r->flags = KX_BREC_WRITE;
		return;
	}
	volatile struct kx_bfrom *from = (void *)(r + 1);
	*from = (struct kx_bfrom){ below(2) ? any_value() : below(200), (int32_t)below(50) - 11, (uint32_t)below(200) };
	if (below(8) == 0)
		from->len = (uint32_t)any_value();
	r->len = sizeof *from;
	r->flags = KX_BREC_FILE;
}

/* Records that are nearly good, behind each other. */
static inline void lie_dgram_ring(void)
{
	volatile struct kx_dctx *x = (void *)(KX_DGRAM_BASE + KX_DGRAM_CTX);
	uint8_t *at = (uint8_t *)(KX_DGRAM_BASE + KX_DGRAM_CTX + KX_DGRAM_TX) + x->head % KX_DGRAM_TX_SIZE;
	volatile struct kx_dsend *r = (void *)((uintptr_t)at & ~31ul);
	uint64_t size = 32 * (3 + below(4));
	if ((x->head % KX_DGRAM_TX_SIZE) + size + 256 > KX_DGRAM_TX_SIZE)
		return;
	scribble((void *)(r + 1), size - 32);
	*r = (struct kx_dsend){ .fd = (int32_t)below(40) - 1,
				.gen = (uint32_t)below(3),
				.len = (uint32_t)below(40),
				.flags = (uint32_t)any_value(),
				.namelen = (uint16_t)(below(2) ? 16 : below(40)),
				.ctllen = (uint16_t)(below(2) ? 0 : below(70)),
				.size = (uint32_t)size };
	if (below(16) == 0)
		r->len = (uint32_t)any_value();
	x->head += size;
}

/* What lies in the first socket's buffer, and how far it has been read. */
static inline void lie_dgram_records(void)
{
	volatile struct kx_dsock *s = (void *)(KX_DGRAM_BASE + KX_DGRAM_SOCK);
	volatile struct kx_dgrec *r = (void *)(KX_DGRAM_BASE + KX_DGRAM_BUF + 8 * below(40));
	r->len = below(4) ? (uint32_t)below(200) : (uint32_t)any_value();
	r->size = 48 + 8 * (uint32_t)below(40);
	r->ctllen = (uint16_t)(below(2) ? 0 : any_value());
	r->namelen = (uint16_t)(below(2) ? 16 : any_value());
	uint64_t end = below(4) ? 8 * below(100) : any_value() & 0xfffff, pos = below(4) ? 8 * below(20) : below(1000);
	s->rx = (s->rx & ~0xffffffffffull) | end << 20 | pos;
	s->window = (uint32_t)any_value();
	s->attempts = (uint32_t)any_value();
	s->credit = (uint32_t)any_value();
}

/* A turn of a server whose datagrams are received ahead. */
static inline void dgram_turn(void)
{
	static int c = -1, s, ep;
	static struct sockaddr_in a = { .sin_family = AF_INET };
	socklen_t len = sizeof a;
	struct epoll_event ev = { .events = EPOLLIN };
	char buf[64] = "request", ctl[64];
	struct iovec v = { buf, sizeof buf };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = sizeof ctl };
	struct pollfd p;
	if (c < 0) {
		a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		c = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
		s = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
		ep = epoll_create1(0);
		if (bind(s, (void *)&a, len) || getsockname(s, (void *)&a, &len) ||
		    epoll_ctl(ep, EPOLL_CTL_ADD, s, &ev))
			return;
	}
	ssize_t r = 0;
	for (int i = 0; i < 4; i++)
		r += sendto(c, buf, 20, MSG_DONTWAIT, (void *)&a, sizeof a);
	p = (struct pollfd){ s, POLLIN, 0 };
	r += poll(&p, 1, 0) + epoll_wait(ep, &ev, 1, 0) + recv(s, buf, 20, MSG_DONTWAIT);
	r += HC(SYS_recvfrom, s, (uint64_t)buf, 20, MSG_DONTWAIT) + recvmsg(s, &m, MSG_DONTWAIT);
	r += send(s, buf, 20, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (r < 1000000 && recv(s, buf, 20, MSG_DONTWAIT) > 0)
		r += 10000;
	*(volatile ssize_t *)lie_struct = r;
}

/* Sizes and numbers of the files that a thread sends from. */
static inline void lie_batch_files(void)
{
	volatile struct kx_bctx *x = (void *)(KX_BATCH_BASE + KX_BATCH_CTX);
	volatile struct kx_bfile *f = &x->file[below(KX_BATCH_FILES)];
	f->size = any_value();
	f->calls = ((volatile struct kx_batch *)KX_BATCH_BASE)->calls;
	f->uses = (uint32_t)any_value();
	if (below(16) == 0)
		f->fd = (int32_t)below(40) - 1;
}

/* Files opened ahead, and those that are written to by records. */
static inline void lie_batch_opened(void)
{
	volatile struct kx_openahead *a = (void *)KX_OPENAHEAD_BASE;
	volatile struct kx_numbers *n = (void *)(KX_BATCH_BASE + KX_NUMBERS_AT);
	volatile struct kx_bwrite *w = (void *)(KX_BATCH_BASE + KX_BATCH_CTX + KX_BATCH_WRITES_AT);
	uint64_t what = below(10);
	if (what == 0)
		a->on = 1;
	else if (what == 1)
		n->n = (uint32_t)below(KX_NUMBERS_MAX + 8);
	else if (what == 2)
		a->pos = any_value();
	else if (what < 5)
		scribble((void *)&a->file[below(KX_OPENAHEAD_FILES)], sizeof a->file[0]);
	else if (what < 8)
		w[below(KX_BATCH_WRITES)] = (struct kx_bwrite){ (int32_t)below(40) - 1, (uint32_t)any_value(),
								((volatile struct kx_batch *)KX_BATCH_BASE)->calls };
	else if (below(8) == 0)
		a->open = (uint32_t)below(KX_OPENAHEAD_FILES + 3);
	else
		a->fd = (int32_t)(below(2) ? below(40) - 1 : any_value());
}

/* Connections accepted ahead, and buffers that are given out and taken back. */
static inline void lie_batch_ahead(void)
{
	volatile struct kx_accept *a = (void *)(KX_BATCH_BASE + KX_BATCH_CTX + KX_ACCEPT_AT);
	volatile struct kx_recycle *p = (void *)KX_RECYCLE_BASE;
	volatile struct kx_numbers *n = (void *)(KX_BATCH_BASE + KX_NUMBERS_AT);
	uint64_t what = below(10);
	if (what == 0)
		a->word = any_value();
	else if (what == 1)
		a->word = KX_ACCEPT_VALID | below(KX_ACCEPT_MAX + 8);
	else if (what == 2)
		a->nr = (uint32_t)below(KX_ACCEPT_MAX + 8);
	else if (what == 3)
		a->nr_events = (uint32_t)(below(2) ? below(2 * KX_ACCEPT_MAX + 8) : any_value());
	else if (what == 6) {
		a->has_map = (uint32_t)below(2);
		a->as[below(KX_ACCEPT_MAX)] = (int32_t)below(40) - 1;
		a->of[below(KX_ACCEPT_MAX)].fd = (int32_t)(below(2) ? below(40) - 1 : any_value());
	} else if (what == 4)
		p->on = (uint32_t)below(2);
	else if (what == 5)
		n->free[below(KX_NUMBERS_MAX)] = (int32_t)(below(2) ? below(40) - 1 : any_value());
	else {
		p->piece[below(KX_RECYCLE_MAX)].state = (uint32_t)below(6);
		p->piece[below(KX_RECYCLE_MAX)].has = (uint32_t)(below(2) ? below(70) << 12 : any_value());
	}
}

static inline void batch_ahead(int listener)
{
	struct sockaddr_in a = { 0 };
	socklen_t len = sizeof a;
	int c[6], s[20], n = 0;
	getsockname(listener, (void *)&a, &len);
	for (unsigned i = 0; i < LEN(c); i++) {
		c[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		if (connect(c[i], (void *)&a, len) && errno != EINPROGRESS)
			break;
	}
	while (n < 20 && (s[n] = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0)
		n++;
	while (n)
		close(s[--n]);
	for (unsigned i = 0; i < LEN(c); i++)
		close(c[i]);
	for (int i = 0; i < 12; i++) {
		void *p = mmap(NULL, 65 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p != MAP_FAILED && mremap(p, 65 * 4096, 4096, MREMAP_MAYMOVE) == p)
			munmap(p, 4096);
	}
}

/* A turn of an event loop, with a socket whose reads and writes are batched. */
static inline void batch_turn(void)
{
	static int l = -1, ep, c, s, file, log;
	off_t off = 0;
	char buf[64] = "request";
	struct epoll_event ev = { .events = EPOLLIN };
	if (l < 0) {
		struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
		socklen_t len = sizeof a;
		l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		c = socket(AF_INET, SOCK_STREAM, 0);
		ep = epoll_create1(0);
		if (bind(l, (void *)&a, len) || listen(l, 16) || getsockname(l, (void *)&a, &len) ||
		    connect(c, (void *)&a, len))
			return;
		s = accept4(l, NULL, NULL, SOCK_NONBLOCK);
		file = open("/proc/self/exe", O_RDONLY);
		log = open("/tmp/log", O_WRONLY | O_CREAT | O_APPEND, 0600);
		epoll_ctl(ep, EPOLL_CTL_ADD, s, &ev);
	}
	ssize_t r = send(c, buf, sizeof buf, MSG_DONTWAIT | MSG_NOSIGNAL);
	r += epoll_wait(ep, &ev, 1, 0);
	for (int i = 0; i < 3; i++) {
		r += recv(s, buf, 20, MSG_DONTWAIT);
		r += send(s, buf, 20, MSG_DONTWAIT | MSG_NOSIGNAL);
		r += sendfile(s, file, &off, 20);
		r += write(log, buf, 20);
		int f = open("/etc/passwd", O_RDONLY);
		r += read(f, buf, 20) + close(f);
	}
	r += recv(c, buf, sizeof buf, MSG_DONTWAIT);
	batch_ahead(l);
	*(volatile ssize_t *)lie_struct = r;
}

/* What a program does, so that every path meets the lies. Nothing that it gets back is believed. */
/* By the LibOS and past it. */
static inline void pipe_activity(int n)
{
	char small[64] = { 0 };
	int more[2] = { -1, -1 };
	struct pollfd pf = { lie_pipe[0], POLLIN, 0 };
	for (unsigned i = 0; i < 3; i++) {
		HC(SYS_write, lie_pipe[1], (uint64_t)pipe_data, 100ull << 4 * i);
		HC(SYS_read, lie_pipe[0], (uint64_t)pipe_data, 100ull << 4 * i);
		if (write(lie_pipe[1], small, sizeof small) < 0 || read(lie_pipe[0], small, sizeof small) < 0)
			errno = 0;
	}
	poll(&pf, 1, 1);
	if (pipe2(more, O_NONBLOCK))
		return;
	int d = dup(more[1]);
	if (n % 3 == 0)
		HC(SYS_tee, more[0], lie_pipe[1], 10, SPLICE_F_NONBLOCK);
	close(more[0]);
	close(more[1]);
	close(d);
}
#endif
