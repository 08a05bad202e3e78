/* SPDX-License-Identifier: Apache-2.0 */
/* Pipes of the family's that become plain ones of the host's: what rings can't do, other users, names in /proc. */
#include "pipe.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../util/log.h"
#include "../../abi/kx_pipe.h"
#include "../dev/procfs.h"
#include "family.h"
#include "gmem.h"
#include "pipe_priv.h"
#include "thread.h"

#define VACATE_MS 2000 /* for other members to move what they wrote */

/* Bytes in the host's pipe of a live object are tokens: those that are there now. With the readers' lock, so nobody else
 * takes them who means well. */
bool pipe_tokens_drain(int fd)
{
	char buf[4096];
	int n = 0;
	int64_t r = 0;
	bool any = false;
	if (HC6(SYS_ioctl, fd, FIONREAD, &n, 0, 0, 0))
		return false;
	for (; n > 0; n -= (int)r) {
		r = pipe_host_read(fd, buf, (unsigned)n < sizeof buf ? (unsigned)n : sizeof buf);
		if (r <= 0)
			break;
		any = true;
	}
	return any;
}

static int ring_move(struct kx_pipe *o, uint64_t key, int rfd, int wfd)
{
	uint32_t n = pipe_used(o), at = (uint32_t)(o->tail % KX_PIPE_RING);
	uint32_t first = n < KX_PIPE_RING - at ? n : KX_PIPE_RING - at;
	struct iovec v[2] = { { pipe_ring_of(key) + at, first }, { pipe_ring_of(key), n - first } };
	pipe_tokens_drain(rfd);
	return n && HC6(SYS_writev, wfd, v, 2, 0, 0, 0) != (int64_t)n ? -EIO : 0;
}

static void both_close(int a, int b)
{
	if (a >= 0)
		HC6(SYS_close, a, 0, 0, 0, 0, 0);
	if (b >= 0)
		HC6(SYS_close, b, 0, 0, 0, 0, 0);
}

/* fd: any end of it. Until the state changes, what was moved counts as tokens. */
int pipe_make_plain(uint64_t key, int fd)
{
	struct kx_pipe *o = pipe_object(key);
	struct stat st;
	long mode = HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0);
	int r = 0, rfd, wfd;
	if (kx_pipe_pair(key))
		return pair_plain(key, fd);
	if (mode < 0)
		return (int)mode;
	if (!pipe_is_live(o, key))
		return 0;
	/* Of one's own, so none of the two sleeps whatever others have done to the host's pipe. */
	rfd = fd_reopen(fd, O_RDONLY);
	wfd = fd_reopen(fd, O_WRONLY);
	if (rfd < 0 || wfd < 0) {
		both_close(rfd, wfd);
		return rfd < 0 ? rfd : wfd;
	}
	if (!pipe_lock_get(&o->rlock)) {
		r = -EINTR;
	} else {
		if (!pipe_lock_get(&o->wlock)) {
			r = -EINTR;
		} else {
			if (pipe_is_live(o, key) && fstat(fd, &st) == 0 && pipe_is_of(o, &st) &&
			    !(r = ring_move(o, key, rfd, wfd)))
				__atomic_store_n(&o->state, (key & ~0xffffffffull) | KX_PIPE_PLAIN, __ATOMIC_SEQ_CST);
			pipe_lock_put(&o->wlock);
		}
		pipe_lock_put(&o->rlock);
	}
	both_close(rfd, wfd);
	__atomic_store_n(&o->full, 1, __ATOMIC_SEQ_CST);
	pipe_wake_room(o);
	return r;
}

int pipe_plain(int fd)
{
	uint64_t key = pipe_mem ? pipe_key_for(fd) : 0;
	return key ? pipe_make_plain(key, fd) : 0;
}

/* Whoever made the other end of this socket, or has connected to it, is a member. */
static bool leads_to_member(int fd)
{
	struct ucred cred = { 0 };
	socklen_t len = sizeof cred;
	return !HC6(SYS_getsockopt, fd, SOL_SOCKET, SO_PEERCRED, &cred, &len, 0) && cred.pid > 0 &&
	       (cred.pid == my_pid() || family_has(cred.pid));
}

int pipe_passed(int fd, int over)
{
	uint64_t key = pipe_mem ? pipe_key_for(fd) : 0;
	int r = key ? pipe_make_plain(key, fd) : 0;
	if (r || !key || !kx_pipe_pair(key) || !pair_rest(key))
		return r;
	r = pair_vacate(key, fd, VACATE_MS);
	if (r != -EAGAIN)
		return r;
	/* Nobody is left who could put it into the host's socket. A member finds it in the ring. */
	if (!leads_to_member(over)) {
		kx_log(KX_LOG_WARN, "pair", "descriptor %d has unread data that cannot leave the family: not sent", fd);
		return -EIO;
	}
	__atomic_store_n(&pipe_object(key)->passed, 1, __ATOMIC_SEQ_CST);
	return 0;
}

int pipe_opened(int fd)
{
	uint64_t key = pipe_find_fd(fd);
	long mode = key ? HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0) : 0;
	return key && !(mode & O_PATH) ? pipe_make_plain(key, fd) : 0;
}

static void each_name(const char *name, void *fn)
{
	int fd = atoi(name);
	if (fd_is_guest(fd))
		((void (*)(int))fn)(fd);
}

typedef int each_fn(const char *rel, void (*fn)(const char *name, void *arg), void *arg);

static void each_fd(each_fn *each, void (*fn)(int fd))
{
	char name[48];
	snprintf(name, sizeof name, "self/task/%d/fd", my_tid());
	if (!each(name, each_name, (void *)fn))
		return;
	for (unsigned fd = 0; fd < pvm.fd_limit; fd++) /* no thread can be had that looks */
		if (HC6(SYS_fcntl, fd, F_GETFD, 0, 0, 0, 0) >= 0)
			fn((int)fd);
}

/* Call fn for each descriptor of the calling process's that is the guest's. */
void pipe_each_fd(void (*fn)(int fd)) { each_fd(procfs_each, fn); }
/* The same before the program runs. */
void pipe_each_fd_early(void (*fn)(int fd)) { each_fd(procfs_each_early, fn); }

static void plain_one(int fd) { pipe_opened(fd); }

void pipe_plain_all(void)
{
	if (!pipe_mem)
		return;
	pipe_hurry(); /* for as many as there may be */
	pipe_each_fd(plain_one);
	pipe_hurry_end();
}

static void vacate_one(int fd)
{
	uint64_t key = pipe_find_fd(fd);
	if (key && kx_pipe_pair(key) && pair_rest(key))
		pair_vacate(key, fd, VACATE_MS);
}

void pipe_identity_before(void)
{
	pipe_plain_all();
	if (!pipe_mem)
		return;
	pipe_hurry();
	pipe_each_fd(vacate_one);
	pipe_hurry_end();
}

/* What socket pairs have left in rings for this process, and nobody else gives back. */
struct kept {
	struct kept *next;
	uint64_t key;
	struct kx_pipe obj[2];
	uint8_t ring[2][KX_PIPE_RING];
};

static struct kept *rests_keep(void)
{
	struct kept *list = NULL;
	for (unsigned i = 0; i < pipe_fds; i++) {
		uint64_t key = pipe_key_of[i];
		if (!key || !kx_pipe_pair(key) || !pair_rest(key))
			continue;
		struct kept *k = calloc(1, sizeof *k);
		if (!k)
			pvm_panic("pipes: no memory for what is left in a socket pair");
		k->next = list;
		k->key = key;
		list = k;
		for (unsigned w = 0; w < 2; w++) {
			struct kx_pipe *o = pipe_obj(kx_pipe_obj(key) + w);
			bool locked = pipe_locks_take(o);
			memcpy(&k->obj[w], o, sizeof k->obj[w]);
			memcpy(k->ring[w], pipe_ring(kx_pipe_obj(key) + w), KX_PIPE_RING);
			k->obj[w].rlock = k->obj[w].wlock = 0;
			if (kx_pipe_way(key, 0) == kx_pipe_obj(key) + w) /* nobody else takes or moves it */
				__atomic_store_n(&o->tail, o->head, __ATOMIC_SEQ_CST);
			if (locked) {
				pipe_lock_put(&o->wlock);
				pipe_lock_put(&o->rlock);
			}
		}
	}
	return list;
}

static void rests_restore(struct kept *k)
{
	while (k) {
		struct kept *next = k->next;
		for (unsigned w = 0; w < 2; w++) {
			memcpy(pipe_obj(kx_pipe_obj(k->key) + w), &k->obj[w], sizeof k->obj[w]);
			memcpy(pipe_ring(kx_pipe_obj(k->key) + w), k->ring[w], KX_PIPE_RING);
		}
		free(k);
		k = next;
	}
	pipe_mem->used = KX_PIPE_OBJECTS;
}

void pipe_identity_after(void)
{
	struct stat st;
	if (!pipe_mem || pipe_given_up || !pipe_table_is_ours() || fstat(pvm.family_fd, &st) || st.st_uid == geteuid())
		return;
	pipe_table_get();
	struct kept *kept = rests_keep();
	/* Other threads may look at objects: they find empty ones. */
	if (gmem_map_family(KX_PIPE_BASE, KX_PIPE_SIZE, -1, 0))
		pvm_panic("pipes: cannot give up the family's memory");
	pipe_given_up = true;
	pipe_published()->on = 0;
	rests_restore(kept);
	for (unsigned i = 0; i < pipe_fds; i++)
		if (!pipe_key_of[i] || !kx_pipe_pair(pipe_key_of[i]) || !pair_rest(pipe_key_of[i]))
			pipe_key_set((int)i, 0);
	pipe_table_put();
}
