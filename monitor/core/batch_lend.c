/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sockets that a process goes on batching while its children hold them, too, because they do not use them: a server whose
 * child saves a snapshot. A child that does asks first.
 *
 * A fork with its lease opens an account for each TCP socket that is in an epoll, in memory that parent and children map
 * and no guest; the sockets' words (struct kx_bsock) lie in such memory, too, from then on. In the child the numbers of
 * these sockets are noted. Its first call that may learn of what the socket holds or change it, all but close() and a few
 * that only name it, closes the account: the word becomes void, what the parent's guest has read of it by then is taken from
 * the kernel's socket, which both have, and the parent finds the account closed and the socket held, as any other after a
 * fork. That needs no answer, so a parent that is stopped or dead makes nobody wait.
 *
 * An account is changed with its lock: the number of the thread that has it. Where that one has died or is stopped, the lock
 * is broken. Then two things must be known: how much was read, and whether it has been taken. The word keeps the former
 * when it becomes void, and a new one is written by compare-and-swap only. The latter the kernel writes: recvmsg(2) puts
 * msg_flags into the account in the same call that takes the data, and neither a stop nor a death comes between. And the
 * one that was stopped just before that call makes it fail when it goes on, since the iovec's length is spoilt for ever.
 *
 * What the parent has queued to be sent is not the child's to send: whoever learns of a write by any call of the parent's
 * finds it sent.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include "batch_priv.h"
#include "gmem.h"
#include "spare.h"

#define ACCOUNTS KX_BATCH_FDS
#define LENDERS 4 /* forefathers with sockets that a process may have */
#define EPOLLS 8
#define POLLED_MAX (1u << 20) /* more the kernel refuses */
#define WORDS_SIZE (KX_BATCH_FDS * sizeof(struct kx_bsock))
#define PENDING 0x5a5a0000u /* msg_flags until the kernel has taken the data */
#define SPOILT 0x10000u     /* a length of msg_iov that is refused */
#define CLAIMED 0x80000000u /* in a lock: its owner knows that somebody wanted to break it */
#define SPINS 200u          /* turns of the wait for a lock, then it sleeps */
#define LOOK_EVERY 16u      /* ... and of its sleeps: what has become of the owner? */
#define SLEEP_NS 50000
#define WAITS_MAX 50000u /* ... and at most so many: 5 s or so */
#define WAITS_FORK 5000u /* ... in a fork, where nobody can look */
#define WORD_END (0xffffffull << 24)
#define IS_VOID(w) (!((w)&KX_RX_VALID) && ((w)&WORD_END) == WORD_END) /* by a child; not what a guest makes of it */

struct account {
	uint32_t lock;           /* tid, 0 = free */
	uint32_t gone;           /* the lender may not batch it any more */
	uint32_t done;           /* ... and all is as the kernel's socket says */
	uint32_t fd;             /* its number in the lender */
	uint32_t fetched, taken; /* as in struct sock */
	uint32_t next;           /* `taken`, once msg_flags is not PENDING */
	struct msghdr msg;
	struct iovec iov;
} __attribute__((aligned(128)));

struct lend {
	struct account account[ACCOUNTS];
	struct kx_bsock word[KX_BATCH_FDS];
};
_Static_assert(offsetof(struct lend, word) % 4096 == 0 && WORDS_SIZE % 4096 == 0 && KX_BATCH_SOCKS % 4096 == 0,
	       "mapped");

static struct lend *mine; /* this process's sockets; NULL: it has lent none */
static unsigned nr_mine;
static struct lend *lender[LENDERS]; /* forefathers */
static unsigned nr_lenders, nr_lent;
static uint16_t lent[KX_BATCH_FDS];     /* account + 1 of a forefather's, 0 = none */
static uint8_t lent_by[KX_BATCH_FDS];   /* its index */
static int epoll_of[EPOLLS], nr_epolls; /* those of the sockets that are lent */
static uint8_t nowhere[FETCH_MAX];
_Static_assert(ACCOUNTS < UINT16_MAX, "fits");

static bool forking; /* with the lock of the limit of descriptors */
static __thread uint32_t own_tid;

static uint32_t tid(void) { return own_tid ? own_tid : (own_tid = (uint32_t)my_tid()); }
static uint32_t load(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static void store(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static bool swap(uint32_t *p, uint32_t from, uint32_t to)
{
	return __atomic_compare_exchange_n(p, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static bool swap_word(uint64_t *p, uint64_t from, uint64_t to)
{
	return __atomic_compare_exchange_n(p, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* ---- the lock ---------------------------------------------------------------------------------------------------- */

/* In the kernel's words. 0: nobody can tell; 'X': it has ended. */
static char state_of(uint32_t tid)
{
	char name[32], text[256];
	snprintf(name, sizeof name, "%u/stat", tid);
	errno = 0;
	int fd = proc_file(name);
	if (fd < 0)
		return errno == ENOENT || errno == ESRCH ? 'X' : 0;
	long n = HC6(SYS_read, fd, text, sizeof text - 1, 0, 0, 0);
	HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	text[n > 0 ? n : 0] = 0;
	const char *end = strrchr(text, ')');
	return n == -ESRCH ? 'X' : end && end[1] ? end[2] : 0;
}

/* The lock's owner is stopped or has ended: it does nothing from here on, until somebody continues it. */
static bool is_still(uint32_t owner)
{
	char state = forking ? 0 : state_of(owner & ~CLAIMED);
	return state == 'X' || state == 'x' || state == 'Z' || (!(owner & CLAIMED) && (state == 'T' || state == 't'));
}

/* What its last owner was about to do it can't do any more. */
static bool break_lock(struct account *a, uint32_t owner, uint32_t me, bool hurry)
{
	if (!hurry && !is_still(owner))
		return false;
	__atomic_store_n(&a->msg.msg_iovlen, SPOILT, __ATOMIC_SEQ_CST);
	if ((!hurry && !is_still(owner)) || !swap(&a->lock, owner, me))
		return false;
	store(&a->gone, 1);
	if (__atomic_load_n(&a->msg.msg_flags, __ATOMIC_SEQ_CST) != (int)PENDING)
		a->taken = a->next;
	return true;
}

static void lock(struct account *a)
{
	const struct timespec pause = { 0, SLEEP_NS };
	for (uint32_t i = 0, me = tid(); !swap(&a->lock, 0, me); i++) {
		uint32_t owner = load(&a->lock);
		if (i < SPINS) {
			__builtin_ia32_pause();
			continue;
		}
		if (owner && i % LOOK_EVERY == 0 && break_lock(a, owner, me, i > (forking ? WAITS_FORK : WAITS_MAX)))
			return;
		HC6(SYS_nanosleep, &pause, 0, 0, 0, 0, 0);
	}
}

/* Not this thread's any more if it was broken. */
static void unlock(struct account *a)
{
	if (!swap(&a->lock, tid(), 0))
		swap(&a->lock, tid() | CLAIMED, 0);
}

/* ---- accounts, with the lock --------------------------------------------------------------------------------------- */

static int take_plainly(int fd, uint32_t n)
{
	while (n) {
		long r = HC6(SYS_recvfrom, fd, nowhere, n, MSG_DONTWAIT | MSG_TRUNC, 0, 0);
		if (r <= 0 || r > n)
			return r < 0 && r != -EAGAIN ? (int)-r : 0;
		n -= (uint32_t)r;
	}
	return 0;
}

/*
 * Take from the kernel what was read, `pos` bytes of what was fetched. An error that the kernel has told by that; 0; or -1: the lock
 * is somebody else's by now, who does it.
 */
static int take(struct account *a, int fd, uint32_t pos)
{
	for (uint32_t taken = a->taken; taken < pos; a->taken = taken) {
		__atomic_store_n(&a->msg.msg_flags, (int)PENDING, __ATOMIC_SEQ_CST);
		a->next = pos;
		a->iov.iov_len = pos - taken;
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		long r = HC6(SYS_recvmsg, fd, &a->msg, MSG_DONTWAIT | MSG_TRUNC, 0, 0, 0);
		if (r == -EMSGSIZE) { /* spoilt */
			store(&a->gone, 1);
			if (!swap(&a->lock, tid(), tid() | CLAIMED) && load(&a->lock) != (tid() | CLAIMED))
				return -1;
			int e = take_plainly(fd, pos - taken);
			a->taken = pos;
			return e;
		}
		taken = r > 0 && r < pos - taken ? taken + (uint32_t)r : pos;
		if (r < 0 && r != -EAGAIN) {
			a->taken = taken;
			return (int)-r;
		}
	}
	return 0;
}

static uint32_t read_of(const struct account *a, uint64_t w)
{
	return KX_RX_POS(w) < a->fetched ? KX_RX_POS(w) : a->fetched;
}

/* Nobody fetches from this socket any more, and all that was read is taken; fd: it, in this process. */
static int end_account(struct lend *l, struct account *a, int fd)
{
	int e = 0;
	lock(a);
	if (!load(&a->done)) {
		struct kx_bsock *g = &l->word[a->fd % KX_BATCH_FDS];
		uint64_t w;
		store(&a->gone, 1);
		store(&g->owner, 0);
		store(&g->credit, 0);
		do
			w = __atomic_load_n(&g->rx, __ATOMIC_SEQ_CST);
		while (!swap_word(&g->rx, w, (w & ~KX_RX_VALID) | WORD_END));
		if ((e = take(a, fd, read_of(a, w))) >= 0) {
			a->fetched = 0;
			store(&a->done, 1);
		}
	}
	unlock(a);
	return e < 0 ? 0 : e;
}

/* ---- the lender ------------------------------------------------------------------------------------------------------ */

/* Their words are shared from now on. No guest changes one at this moment, since none is of any use. */
static bool share_words(void)
{
	size_t used = ((size_t)(batch.top_fd + 1) * sizeof(struct kx_bsock) + 4095) & ~4095ul;
	void *at = batch_guest_sock(0);
	struct lend *l = mmap(NULL, sizeof *l, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1,
			      0);
	if (l == MAP_FAILED)
		return false;
	memcpy(l->word, at, used);
	if (mremap(l->word, 0, WORDS_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, at) == MAP_FAILED) {
		munmap(l, sizeof *l);
		return false;
	}
	madvise(at, used, MADV_POPULATE_WRITE);
	mine = l;
	nr_mine = 0;
	spare_changed(); /* a child made ahead has other memory there */
	return true;
}

bool lend_begin(void)
{
	forking = true;
	return nr_lenders < LENDERS;
}

void lend_end(void) { forking = false; }

bool lend_socket(int fd, struct sock *s)
{
	if (s->held || s->kind != TCP || s->epoll < 0 || !s->nonblock || s->events & EPOLLEXCLUSIVE)
		return false;
	if (s->lent)
		return !load(&mine->account[s->lent - 1].gone);
	if (nr_mine == ACCOUNTS || (!mine && !share_words()))
		return false;
	struct account *a = &mine->account[nr_mine++];
	*a = (struct account){ .fd = (uint32_t)fd, .iov = { nowhere, 0 } };
	a->msg = (struct msghdr){ .msg_iov = &a->iov, .msg_iovlen = 1 };
	s->lent = (uint16_t)nr_mine;
	return true;
}

/* A child has it, or may have had. */
static void lost(int fd, struct sock *s)
{
	int e = end_account(mine, &mine->account[s->lent - 1], fd);
	if (e)
		s->err = e;
	__atomic_store_n(&batch_guest_sock(fd)->rx, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&batch_guest_sock(fd)->owner, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&batch_guest_sock(fd)->credit, 0, __ATOMIC_SEQ_CST);
	s->lent = 0;
	s->fetched = s->taken = 0;
	batch.nr_held += !s->held;
	s->held = true;
}

bool lend_look(int fd, struct sock *s)
{
	if (!s->lent || !load(&mine->account[s->lent - 1].gone))
		return false;
	lost(fd, s);
	return true;
}

void lend_settle(int fd, struct sock *s, bool end)
{
	struct account *a = &mine->account[s->lent - 1];
	uint64_t *rx = &batch_guest_sock(fd)->rx;
	if (lend_look(fd, s) || (s->fetched <= s->taken && !(end && *rx & KX_RX_VALID)))
		return;
	lock(a);
	if (!load(&a->gone)) {
		uint64_t w = end ? __atomic_fetch_and(rx, ~KX_RX_VALID, __ATOMIC_SEQ_CST)
				 : __atomic_load_n(rx, __ATOMIC_SEQ_CST);
		int e = IS_VOID(w) ? -1 : take(a, fd, read_of(a, w));
		if (e > 0)
			s->err = e;
		if (e >= 0)
			s->taken = a->taken;
		if (e >= 0 && end)
			a->fetched = s->fetched = s->taken = 0;
	}
	unlock(a);
	lend_look(fd, s);
}

bool lend_fetch_begin(int fd, struct sock *s)
{
	struct account *a = &mine->account[s->lent - 1];
	uint64_t *rx = &batch_guest_sock(fd)->rx, w = __atomic_load_n(rx, __ATOMIC_SEQ_CST);
	if (lend_look(fd, s))
		return false;
	lock(a);
	if (!load(&a->gone) && !IS_VOID(w) && swap_word(rx, w, 0))
		return true;
	unlock(a);
	lost(fd, s);
	return false;
}

bool lend_fetch_end(int fd, struct sock *s, uint32_t n, uint64_t w)
{
	struct account *a = &mine->account[s->lent - 1];
	__atomic_store_n(&a->msg.msg_flags, (int)PENDING, __ATOMIC_SEQ_CST); /* nothing of it is taken */
	a->next = a->taken = 0;
	a->fetched = n;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	bool ok = !w || swap_word(&batch_guest_sock(fd)->rx, 0, w);
	unlock(a);
	if (!ok)
		lost(fd, s);
	return ok;
}

void lend_close(int fd, struct sock *s)
{
	if (!s->lent)
		return;
	end_account(mine, &mine->account[s->lent - 1], fd);
	s->lent = 0;
}

void lend_all_back(void)
{
	for (int fd = 0; mine && fd <= batch.top_fd; fd++)
		if (batch_sock(fd) && batch.socks[fd].lent) {
			lend_look(fd, &batch.socks[fd]);
			batch.socks[fd].lent = 0;
		}
	nr_mine = 0;
}

/* ---- the child ------------------------------------------------------------------------------------------------------- */

bool lend_looks(void) { return __atomic_load_n(&nr_lent, __ATOMIC_RELAXED) != 0; }

static void forget(int fd)
{
	lent[fd] = 0;
	nr_lent--;
}

static bool is_lent(int fd) { return fd >= 0 && fd < KX_BATCH_FDS && lent[fd]; }

int lend_ask(int fd)
{
	if (!is_lent(fd))
		return 0;
	struct lend *l = lender[lent_by[fd]];
	int e = end_account(l, &l->account[lent[fd] - 1], fd);
	forget(fd);
	return e;
}

void lend_ask_all(void)
{
	for (int fd = 0; nr_lent && fd < KX_BATCH_FDS; fd++)
		lend_ask(fd);
}

static void ask_polled(uint64_t gva, uint64_t n)
{
	struct pollfd p;
	for (uint64_t i = 0; nr_lent && i < n && n <= POLLED_MAX && !guest_read(&p, gva + i * sizeof p, sizeof p); i++)
		lend_ask(p.fd);
}

static void ask_selected(int n, const uint64_t *set)
{
	uint64_t bits;
	for (int k = 0; k < 3; k++)
		for (int fd = 0; set[k] && fd < n && fd < KX_BATCH_FDS; fd += 64) {
			if (guest_read(&bits, set[k] + (unsigned)fd / 8,
				       n - fd < 64 ? ((unsigned)(n - fd) + 7) / 8 : 8))
				break;
			for (int i = 0; i < 64 && fd + i < n; i++)
				if (bits >> i & 1)
					lend_ask(fd + i);
		}
}

static bool stays_open(int fd)
{
	long flags = HC6(SYS_fcntl, fd, F_GETFD, 0, 0, 0, 0);
	return flags >= 0 && !(flags & FD_CLOEXEC);
}

/* Those that another program will have, or that an epoll tells it of. */
static void ask_for_exec(void)
{
	for (int i = 0; nr_lent && i < nr_epolls; i++)
		if (nr_epolls == EPOLLS || stays_open(epoll_of[i]))
			lend_ask_all();
	for (int fd = 0; nr_lent && fd < KX_BATCH_FDS; fd++)
		if (lent[fd] && stays_open(fd))
			lend_ask(fd);
}

static void note_epoll(int fd)
{
	for (int i = 0; i < nr_epolls; i++)
		if (epoll_of[i] == fd)
			return;
	if (nr_epolls < EPOLLS)
		epoll_of[nr_epolls++] = fd;
}

static bool only_names(const struct hcall *c)
{
	int cmd = (int)c->arg[1];
	switch (c->nr) {
	case SYS_fstat:
	case SYS_getsockname:
	case SYS_getpeername:
		return true;
	case SYS_fcntl:
		return cmd == F_GETFD || cmd == F_SETFD || cmd == F_GETFL;
	}
	return false;
}

static int ask_named(const struct hcall *c)
{
	int e = 0;
	for (int i = 0; i < 6 && c->row->arg[i].kind != KX_A_NONE; i++) {
		int k = c->row->arg[i].kind;
		if (k == KX_A_FD || k == KX_A_FDN || k == KX_A_FDNEW || k == KX_A_ATFD)
			e |= lend_ask((int)c->arg[i]);
	}
	return e;
}

static void forget_range(unsigned first, unsigned last, bool ask)
{
	for (unsigned fd = first; nr_lent && fd <= last && fd < KX_BATCH_FDS; fd++)
		if (ask)
			lend_ask((int)fd);
		else if (lent[fd])
			forget((int)fd);
}

int lend_enter(const struct hcall *c)
{
	bool many = __atomic_load_n(&pvm.nr_threads, __ATOMIC_RELAXED) > 1;
	switch (c->nr) {
	case SYS_close:
		if (many) /* one of them may be about to use it */
			return lend_ask((int)c->arg[0]);
		if (is_lent((int)c->arg[0]))
			forget((int)c->arg[0]);
		return 0;
	case SYS_close_range:
		if (hcall_closes_range(c))
			forget_range((unsigned)c->arg[0], (unsigned)c->arg[1], many);
		return 0;
	case SYS_poll:
	case SYS_ppoll:
		ask_polled(c->arg[0], (uint32_t)c->arg[1]);
		return 0;
	case SYS_select:
	case SYS_pselect6:
		ask_selected((int)c->arg[0], &c->arg[1]);
		return 0;
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2: /* it may be the lender's */
		lend_ask_all();
		return 0;
	case SYS_execve:
	case SYS_execveat:
		ask_for_exec();
		return 0;
	}
	return only_names(c) ? 0 : ask_named(c);
}

void lend_fork_child(void)
{
	forking = false;
	own_tid = 0;
	if (!nr_lent) {
		nr_epolls = 0;
		for (; nr_lenders; nr_lenders--)
			munmap(lender[nr_lenders - 1], sizeof *mine);
	}
	if (!mine)
		return;
	unsigned had = nr_lent;
	for (int fd = 0; fd <= batch.top_fd && nr_lenders < LENDERS; fd++) {
		const struct sock *s = batch_sock(fd);
		if (!s || !s->lent || s->held || lent[fd])
			continue;
		lent[fd] = s->lent;
		lent_by[fd] = (uint8_t)nr_lenders;
		note_epoll(s->epoll);
		nr_lent++;
	}
	if (mmap(batch_guest_sock(0), WORDS_SIZE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
		pvm_panic("no memory for sockets");
	if (nr_lent > had)
		lender[nr_lenders++] = mine;
	else
		munmap(mine, sizeof *mine);
	mine = NULL;
	nr_mine = 0;
}
