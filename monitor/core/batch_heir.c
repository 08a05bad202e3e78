/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that one process accepts and leaves to a child: after a fork both hold the socket, until the parent
 * closes it. Then it is the child's alone, and may be batched there.
 *
 * Who holds it is counted in memory that parents and children map, and no guest: from the first fork with such a socket
 * on, up by each fork of a process that has it, down by each close that nobody can cross. All else, a process that is
 * killed or executes another program with the socket open, leaves the count too high, and the socket as it is without
 * batches. Given up for ever, `lost`, is what has another number or was in a message (batch_disown()), is in an epoll
 * of before the fork, or may have been forked by a process that does not know whether it has it.
 *
 * A child meets a socket by its first call that names it. Met, it is `held` as after a fork of its own, until it is the
 * last one to be counted. Its entry goes then; a fork of the child's begins another one.
 */
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include "../../util/together.h"
#include "batch_priv.h"
#include "spare.h"

#define ENTRIES 256   /* a younger one replaces that of 256 before it: whose holders find it no more */
#define SOCKS_MAX 64  /* a process with more sockets leaves none behind: a child is for one of them */
#define MEETINGS 4096 /* descriptors after which a child stops looking for what it may have */
#define COUNT 0x7fffull
#define LOST 0x8000ull
#define SEQ(w) ((w) >> 16)

/* `word` is changed by compare-and-swap alone. */
struct entry {
	uint64_t word; /* SEQ: which one it is, of all that there were; LOST; COUNT: processes */
	uint64_t id;   /* of the socket, and the SEQ that it was written for: id_of() */
};
static struct heirs {
	uint64_t seq; /* of the last one */
	struct entry entry[ENTRIES];
} * heirs;
static KX_TOGETHER uint64_t birth;    /* seq as this process was made: entries up to it may be of what it has */
static KX_TOGETHER unsigned meetings; /* 0: it looks no more */
static uint8_t met[KX_BATCH_FDS / 8];

static uint64_t load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static bool swap(uint64_t *p, uint64_t from, uint64_t to)
{
	return __atomic_compare_exchange_n(p, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static uint64_t id_of(uint64_t cookie, uint64_t seq) { return cookie ^ seq * 0x9e3779b97f4a7c15ull; }
static struct entry *entry_of(uint64_t seq) { return &heirs->entry[seq % ENTRIES]; }

static bool cookie_of(int fd, uint64_t *cookie)
{
	socklen_t len = sizeof *cookie;
	return HC6(SYS_getsockopt, fd, SOL_SOCKET, SO_COOKIE, cookie, &len, 0) == 0;
}

/* The entry's word, if it is the socket's still and not lost; 0: no. */
static uint64_t word_of(const struct sock *s)
{
	uint64_t w = s->heir ? load(&entry_of(s->heir)->word) : 0;
	return SEQ(w) == s->heir && !(w & LOST) ? w : 0;
}

static void begin(int fd, struct sock *s)
{
	uint64_t cookie, seq;
	s->no_heir = true; /* once: if others have it, it may not begin at two again */
	if (s->epoll >= 0 || s->left || !cookie_of(fd, &cookie))
		return;
	seq = __atomic_add_fetch(&heirs->seq, 1, __ATOMIC_SEQ_CST);
	struct entry *e = entry_of(seq);
	uint64_t w = load(&e->word);
	if (SEQ(w) >= seq || !swap(&e->word, w, seq << 16 | LOST))
		return;
	__atomic_store_n(&e->id, id_of(cookie, seq), __ATOMIC_SEQ_CST);
	if (swap(&e->word, seq << 16 | LOST, seq << 16 | 2))
		s->heir = seq;
}

void heir_lost(struct sock *s)
{
	for (uint64_t w; (w = word_of(s)) && !swap(&entry_of(s->heir)->word, w, w | LOST);)
		;
	s->heir = 0;
	s->no_heir = true;
}

void heir_closed(struct sock *s)
{
	/* Another thread may fork before it is closed, or be reading. */
	if (__atomic_load_n(&pvm.nr_threads, __ATOMIC_RELAXED) > 1) {
		heir_lost(s);
		return;
	}
	for (uint64_t w; (w = word_of(s)) && !swap(&entry_of(s->heir)->word, w, w - 1);)
		;
	s->heir = 0;
}

static bool is_met(uint64_t seq)
{
	for (int fd = 0; fd <= batch.top_fd; fd++)
		if (batch_sock(fd) && batch.socks[fd].heir == seq)
			return true;
	return false;
}

/* A child will have what this process has, known or not. */
void heir_fork(void)
{
	if (!heirs && batch.nr_socks) {
		void *p = mmap(NULL, sizeof *heirs, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED)
			return;
		heirs = p;
		spare_changed(); /* a child made ahead has not got it */
	}
	if (!heirs)
		return;
	for (int i = 0; birth && i < ENTRIES; i++) {
		uint64_t *p = &heirs->entry[i].word, w;
		while ((w = load(p)) && !(w & LOST) && SEQ(w) <= birth && !is_met(SEQ(w)) && !swap(p, w, w | LOST))
			;
	}
	for (int fd = 0; fd <= batch.top_fd; fd++) {
		struct sock *s = batch_sock(fd);
		uint64_t w;
		if (!s)
			continue;
		if (s->heir && s->epoll >= 0) /* of which the child will not know */
			heir_lost(s);
		if (!s->heir && !s->no_heir && batch.nr_socks <= SOCKS_MAX) {
			begin(fd, s);
			continue;
		}
		while ((w = word_of(s)) && !swap(&entry_of(s->heir)->word, w, (w & COUNT) < COUNT ? w + 1 : w | LOST))
			;
	}
}

void heir_fork_child(void)
{
	if (birth)
		memset(met, 0, sizeof met);
	birth = heirs ? load(&heirs->seq) : 0;
	meetings = birth ? MEETINGS : 0;
}

bool heir_looks(void) { return __atomic_load_n(&meetings, __ATOMIC_RELAXED) != 0; }

/* The number of a socket that this process may have from its parent is first named. */
struct sock *heir_meet(int fd)
{
	uint64_t cookie;
	if (!meetings || fd < 0 || fd >= KX_BATCH_FDS || met[fd / 8] >> fd % 8 & 1)
		return NULL;
	meetings--;
	met[fd / 8] |= (uint8_t)(1 << fd % 8);
	if (!cookie_of(fd, &cookie))
		return NULL;
	for (int i = 0; i < ENTRIES; i++) {
		uint64_t w = load(&heirs->entry[i].word);
		if (!w || w & LOST || SEQ(w) > birth || load(&heirs->entry[i].id) != id_of(cookie, SEQ(w)))
			continue;
		struct sock *s = batch_inherited(fd);
		if (s)
			s->heir = SEQ(w);
		return s;
	}
	return NULL;
}

bool heir_is_last(struct sock *s)
{
	uint64_t w = word_of(s);
	if (!w || (w & COUNT) != 1 || !swap(&entry_of(s->heir)->word, w, w | LOST))
		return false;
	s->heir = 0;
	s->no_heir = false;
	return true;
}
