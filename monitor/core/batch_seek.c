/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lseek(fd, 0, SEEK_END), by which databases ask how long a file is, again and again. At the end of each exit the
 * monitor looks at the files that a thread has asked about so; the LibOS answers until a call of this process, a record,
 * or a call of the family's that may change a size (sizes.h).
 *
 * Only where the answer is all that the call does: the file's position is its end already. So that nobody else moves it,
 * the descriptor must be one that this process has opened and neither copied, passed on, nor had at a fork.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include "../../util/together.h"
#include "batch_priv.h"
#include "family.h"
#include "sizes.h"

#define IDLE_MAX 64 /* calls of a thread until a file that it does not ask about is forgotten */

static uint8_t own[KX_BATCH_FDS / 8];
static bool some_own;
static struct asked {
	int fd; /* -1 = none */
	uint32_t uses, idle;
} asked[KX_BATCH_CTXS][KX_BATCH_SEEKS];
static KX_TOGETHER bool some_asked; /* since the start */

static struct kx_bseek *guest(int ctx)
{
	return (struct kx_bseek *)gva_ptr(KX_BATCH_BASE + KX_BATCH_CTX + (uint64_t)ctx * KX_BATCH_CTX +
					  KX_BATCH_SEEKS_AT);
}

static const struct kx_futexes *family(void) { return gva_ptr(KX_FUTEX_BASE); }

static bool is_own(int fd) { return fd >= 0 && fd < KX_BATCH_FDS && own[fd / 8] >> fd % 8 & 1; }

static void forget(int ctx, int i)
{
	guest(ctx)[i].fd = -1;
	asked[ctx][i].fd = -1;
}

void seek_reset(int ctx)
{
	for (int i = 0; i < KX_BATCH_SEEKS; i++)
		forget(ctx, i);
}

void seek_shared(int fd)
{
	if (is_own(fd))
		own[fd / 8] &= (uint8_t) ~(1 << fd % 8);
}

void seek_all_shared(void)
{
	if (some_own) {
		memset(own, 0, sizeof own);
		some_own = false;
	}
}

/* Before a call: descriptors that end, or get another number. */
void seek_enter(const struct hcall *c)
{
	switch (c->nr) {
	case SYS_close:
	case SYS_dup:
		seek_shared((int)c->arg[0]);
		break;
	case SYS_dup2:
	case SYS_dup3:
		seek_shared((int)c->arg[0]);
		seek_shared((int)c->arg[1]);
		break;
	case SYS_fcntl:
		if ((int)c->arg[1] == F_DUPFD || (int)c->arg[1] == F_DUPFD_CLOEXEC)
			seek_shared((int)c->arg[0]);
		break;
	case SYS_close_range:
		if (hcall_closes_range(c))
			seek_all_shared();
	}
}

static void add(int ctx, int fd)
{
	struct asked *worst = asked[ctx];
	for (int i = 0; i < KX_BATCH_SEEKS; i++) {
		struct asked *a = &asked[ctx][i];
		if (a->fd == fd)
			return;
		if (worst->fd >= 0 && (a->fd < 0 || a->idle > worst->idle))
			worst = a;
	}
	int i = (int)(worst - asked[ctx]);
	forget(ctx, i);
	*worst = (struct asked){ .fd = fd, .uses = guest(ctx)[i].uses };
	some_asked = true;
}

void seek_note(const struct hcall *c, int ctx, int64_t r)
{
	int path = c->nr == SYS_open || c->nr == SYS_creat ? 0 : 1;
	switch (c->nr) {
	case SYS_open:
	case SYS_creat:
	case SYS_openat:
	case SYS_openat2:
		/* Another thread may have forked before it is known. */
		if (r >= 0 && r < KX_BATCH_FDS && !c->proc[path] &&
		    __atomic_load_n(&pvm.nr_threads, __ATOMIC_RELAXED) == 1) {
			some_own = true;
			own[r / 8] |= (uint8_t)(1 << r % 8);
		}
		break;
	case SYS_lseek:
		if (ctx >= 0 && r >= 0 && !c->arg[1] && (int)c->arg[2] == SEEK_END && is_own((int)c->arg[0]))
			sizes_ask(), add(ctx, (int)c->arg[0]);
	}
}

void seek_look(int ctx, uint64_t calls)
{
	if (!some_asked)
		return;
	uint64_t resized = __atomic_load_n(&family()->resized, __ATOMIC_SEQ_CST);
	bool may = !family()->outside && !family()->mapped_outside && !batch.no_new, looked = false, still = false;
	for (int i = 0; i < KX_BATCH_SEEKS; i++) {
		struct asked *a = &asked[ctx][i];
		struct kx_bseek *g = &guest(ctx)[i];
		struct stat st;
		if (a->fd < 0)
			continue;
		a->idle = a->uses == g->uses ? a->idle + 1 : 0;
		a->uses = g->uses;
		if (a->idle > IDLE_MAX || !is_own(a->fd)) {
			forget(ctx, i);
			continue;
		}
		__atomic_store_n(&g->fd, -1, __ATOMIC_SEQ_CST);
		if (may && !looked)
			still = !family_changes();
		looked = true;
		if (!still || fstat(a->fd, &st) || !S_ISREG(st.st_mode) ||
		    HC6(SYS_lseek, a->fd, 0, SEEK_CUR, 0, 0, 0) != st.st_size)
			continue;
		g->size = st.st_size;
		g->calls = calls;
		g->resized = resized;
		g->ticket = __atomic_load_n(&batch_shared()->ticket, __ATOMIC_SEQ_CST);
		__atomic_store_n(&g->fd, a->fd, __ATOMIC_SEQ_CST);
	}
}
