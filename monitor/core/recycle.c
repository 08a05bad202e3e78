/* SPDX-License-Identifier: Apache-2.0 */
#include "recycle.h"
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include "../../abi/kx_recycle.h"
#include "batch_priv.h"
#include "gmem_priv.h"
#include "keeper.h"

#define ROUNDS 8                /* of one size, until there are pieces of it */
#define IDLE_MAX 256            /* exits without a use, until there are none any more */
#define BYTES_MAX (32ull << 20) /* of all of them */
#define LEN_MIN (64ull << 10)
#define LEN_MAX (2ull << 20)

static struct {
	bool on, never;
	uint32_t nr, idle;
	uint64_t first, len;
	bool gone[KX_RECYCLE_MAX];
} pool;

/* The round that is under way: mapped, perhaps made smaller. */
static struct {
	uint64_t at, len, has; /* at 0: none */
	uint64_t of;           /* the size of the rounds before, `good` of them */
	unsigned good;
} seen;

static struct kx_recycle *guest(void) { return gva_ptr(KX_RECYCLE_BASE); }
static uint64_t piece_at(uint32_t i) { return pool.first + i * pool.len; }

/* How much of piece i the program has; what it says is its own harm. */
static uint32_t state_of(uint32_t i, uint64_t *has)
{
	struct kx_recycled p = guest()->piece[i];
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	*has = p.has && p.has <= pool.len && !(p.has % PAGE) ? p.has : pool.len;
	return pool.gone[i] ? KX_RECYCLE_GONE : p.state;
}

/* The program keeps `has` bytes of it. */
static void let_go(uint32_t i, uint64_t has)
{
	pool.gone[i] = true;
	guest()->piece[i].state = KX_RECYCLE_GONE;
	if (has < pool.len)
		gmem_munmap(piece_at(i) + has, pool.len - has);
}

/* All is as the program was told. */
static void dissolve(void)
{
	guest()->on = 0;
	for (uint32_t i = 0; i < pool.nr; i++) {
		uint64_t has;
		uint32_t state = state_of(i, &has);
		if (state != KX_RECYCLE_GONE)
			let_go(i, state == KX_RECYCLE_HAS ? has : 0);
	}
	pool.on = false;
	seen.good = 0;
}

static bool overlaps(uint64_t at, uint64_t len)
{
	uint64_t end = pool.first + pool.nr * pool.len;
	return at < end && (at >= pool.first || len > pool.first - at);
}

static bool looks_at_mappings(const struct hcall *c)
{
	char path[256];
	int i = c->nr == SYS_open ? 0 : 1;
	return guest_read_str(path, c->arg[i], sizeof path) < 0 || strstr(path, "map");
}

/* Might c show, or change, what the program does not have? */
static bool shows(const struct hcall *c)
{
	switch (c->nr) {
	case SYS_mmap:
		return c->arg[0] && overlaps(c->arg[0], c->arg[1]);
	case SYS_mremap:
		return overlaps(c->arg[0], c->arg[1]) || ((c->arg[3] & MREMAP_FIXED) && overlaps(c->arg[4], c->arg[2]));
	case SYS_munmap:
	case SYS_mprotect:
	case SYS_pkey_mprotect:
	case SYS_madvise:
	case SYS_mincore:
	case SYS_msync:
	case SYS_mlock:
	case SYS_mlock2:
	case SYS_munlock:
	case SYS_mbind:
	case SYS_remap_file_pages:
		return overlaps(c->arg[0], c->arg[1]);
	case SYS_brk:
		return c->arg[0] > pool.first;
	case SYS_shmat:
		return c->arg[1];
	case SYS_open:
	case SYS_openat:
	case SYS_openat2:
		return looks_at_mappings(c);
	case SYS_mlockall:
	case SYS_move_pages:
	case SYS_get_mempolicy:
	case SYS_set_mempolicy:
	case SYS_prctl:
	case SYS_setrlimit:
	case SYS_prlimit64:
	case SYS_process_madvise:
	case SYS_process_vm_readv:
	case SYS_process_vm_writev:
	case SYS_userfaultfd:
	case SYS_fork:
	case SYS_vfork:
	case SYS_clone:
	case SYS_clone3:
	case SYS_execve:
	case SYS_execveat:
		return true;
	}
	return false;
}

/* Zeros again. Its first page, which has been used, stays. */
static bool clean(uint32_t i)
{
	static const char zeros[PAGE];
	const uint64_t at = piece_at(i);
	/* Calls that change what is mapped there have been seen. But one may be in the service thread's hands. */
	if (HC6(SYS_madvise, gva_ptr(at + PAGE), pool.len - PAGE, MADV_DONTNEED, 0, 0, 0) ||
	    guest_write(at, zeros, sizeof zeros))
		return false;
	guest()->piece[i].state = KX_RECYCLE_FREE;
	return true;
}

void recycle_enter(struct hcall *c)
{
	uint32_t nr_gone = 0;
	bool used = false;
	if (!pool.on)
		return;
	if (shows(c)) {
		dissolve();
		pool.never |= c->nr == SYS_mlockall;
		return;
	}
	for (uint32_t i = 0; i < pool.nr; i++) {
		uint64_t has;
		uint32_t state = state_of(i, &has);
		used |= state == KX_RECYCLE_HAS || state == KX_RECYCLE_BACK;
		if (state == KX_RECYCLE_BACK && !clean(i)) {
			dissolve();
			return;
		}
		if (state == KX_RECYCLE_HAS && has < pool.len)
			let_go(i, has);
		nr_gone += pool.gone[i];
	}
	pool.idle = used ? 0 : pool.idle + 1;
	if (nr_gone > pool.nr / 2 || pool.idle > IDLE_MAX)
		dissolve();
}

static bool may_have_any(void)
{
	struct rlimit l;
	return !pool.never && !pvm.cfg->memory && __atomic_load_n(&pvm.nr_threads, __ATOMIC_RELAXED) == 1 &&
	       !is_vfork_child() && !keeper_needed() && batch.mapped && !getrlimit(RLIMIT_AS, &l) &&
	       l.rlim_cur == RLIM_INFINITY && !getrlimit(RLIMIT_DATA, &l) && l.rlim_cur == RLIM_INFINITY;
}

static void make(uint64_t len)
{
	struct kx_recycle *g = guest();
	uint64_t nr = BYTES_MAX / len;
	if (!may_have_any())
		return;
	nr = nr < KX_RECYCLE_MAX ? nr : KX_RECYCLE_MAX;
	pthread_mutex_lock(&pvm.mm_lock);
	int64_t at = do_mmap(0, nr * len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_mutex_unlock(&pvm.mm_lock);
	if (at < 0) {
		pool.never = true;
		return;
	}
	HC6(SYS_madvise, gva_ptr((uint64_t)at), nr * len, MADV_NOHUGEPAGE, 0, 0, 0); /* little of each is used */
	memset(&pool, 0, sizeof pool);
	memset(g, 0, sizeof *g);
	pool.first = g->first = (uint64_t)at;
	pool.len = g->len = len;
	pool.nr = g->nr = (uint32_t)nr;
	pool.on = true;
	g->on = 1;
}

static void learn(const struct hcall *c, int64_t r)
{
	uint64_t len = ALIGN_UP(c->arg[1], PAGE);
	bool mine = seen.at && c->arg[0] == seen.at && len == seen.has;
	switch (c->nr) {
	case SYS_mmap:
		seen.at = 0;
		if (c->arg[0] || r < 0 || (int)c->arg[2] != (PROT_READ | PROT_WRITE) ||
		    (int)c->arg[3] != (MAP_PRIVATE | MAP_ANONYMOUS) || len < LEN_MIN || len > LEN_MAX)
			return;
		seen.at = (uint64_t)r;
		seen.len = seen.has = len;
		return;
	case SYS_mremap:
		if (mine && r == (int64_t)seen.at && c->arg[2] && ALIGN_UP(c->arg[2], PAGE) < len)
			seen.has = ALIGN_UP(c->arg[2], PAGE);
		else
			seen.at = 0;
		return;
	case SYS_munmap:
		if (mine && !r) {
			seen.good = seen.len == seen.of ? seen.good + 1 : 1;
			seen.of = seen.len;
		}
		seen.at = 0;
	}
}

void recycle_leave(const struct hcall *c, int64_t r)
{
	if (pool.on || pool.never)
		return;
	learn(c, r);
	if (seen.good >= ROUNDS && !seen.at)
		make(seen.of);
}
