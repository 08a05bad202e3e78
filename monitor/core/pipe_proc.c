/* SPDX-License-Identifier: Apache-2.0 */
/* Who holds a pipe of the family's: forks, vforks, exec, the end, descriptors that came in a message. */
#include "pipe.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include "../../util/together.h"
#include "../../abi/kx_pipe.h"
#include "family.h"
#include "pipe_priv.h"
#include "thread.h"

#define VACATE_FORK_MS 200 /* for other members to move what they wrote */

static KX_TOGETHER pid_t fork_parent;

void pipe_fork_lock(void) { pipe_table_get(); }
void pipe_fork_unlock(void) { pipe_table_put(); }

/* Call fn once for each object that the table names, with one of its descriptors. */
static void each_object(void (*fn)(uint64_t key, int fd, uint32_t who), uint32_t who)
{
	uint64_t seen[(KX_PIPE_OBJECTS + 63) / 64] = { 0 };
	for (unsigned fd = 0; pipe_mem && fd < pipe_fds; fd++) {
		uint64_t key = __atomic_load_n(&pipe_key_of[fd], __ATOMIC_ACQUIRE);
		unsigned i = kx_pipe_obj(key) % KX_PIPE_OBJECTS;
		if (!key || seen[i / 64] >> i % 64 & 1)
			continue;
		seen[i / 64] |= 1ull << i % 64;
		fn(key, (int)fd, who);
	}
}

static bool same(const struct kx_pipe *o, uint64_t key)
{
	return __atomic_load_n(&o->state, __ATOMIC_SEQ_CST) >> 32 == key >> 32;
}

static void no_place(uint64_t key, int fd)
{
	pipe_make_plain(key, fd);
	if (kx_pipe_pair(key) && pair_rest(key))
		pair_vacate(key, fd, VACATE_FORK_MS);
}

static void guard_add(uint64_t key, int fd, uint32_t who)
{
	struct kx_pipe *o = pipe_object(key);
	if (same(o, key) && !pipe_holder_swap(o, 0, who | KX_PIPE_GUARD))
		no_place(key, fd);
}

static void guard_drop(uint64_t key, int fd, uint32_t who)
{
	(void)fd;
	if (same(pipe_object(key), key) && !pipe_holder_swap(pipe_object(key), who | KX_PIPE_GUARD, 0))
		pipe_holder_swap(pipe_object(key), who | KX_PIPE_GUARD | KX_PIPE_STALE, 0);
}

/* A child's number in the place that was kept for it by fork_parent. */
static void guard_become(uint64_t key, int fd, uint32_t who)
{
	struct kx_pipe *o = pipe_object(key);
	(void)fd;
	if (!same(o, key) || pipe_holder_has(o, who))
		return;
	uint32_t guard = (uint32_t)fork_parent | KX_PIPE_GUARD;
	if (!pipe_holder_swap(o, guard, who))
		pipe_holder_swap(o, guard | KX_PIPE_STALE, who);
}

/* Of threads that are no more. */
static void locks_drop(struct kx_pipe *o, uint32_t who)
{
	uint64_t r = __atomic_load_n(&o->rlock, __ATOMIC_SEQ_CST), w = __atomic_load_n(&o->wlock, __ATOMIC_SEQ_CST);
	if (r >> 32 == who)
		__atomic_compare_exchange_n(&o->rlock, &r, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	if (w >> 32 == who)
		__atomic_compare_exchange_n(&o->wlock, &w, 0, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void pipe_hold(uint64_t key, int fd, uint32_t who)
{
	struct kx_pipe *o = pipe_object(key);
	guard_become(key, fd, who);
	if (same(o, key) && !pipe_holder_has(o, who) && !pipe_holder_swap(o, 0, who))
		no_place(key, fd);
	locks_drop(o, who); /* of somebody who had this number */
	if (kx_pipe_pair(key))
		locks_drop(pipe_obj(kx_pipe_obj(key) + 1), who);
}

void pipe_fork_before(void)
{
	fork_parent = pvm.pid;
	each_object(guard_add, (uint32_t)pvm.pid);
}

void pipe_fork_after(pid_t pid)
{
	if (pid > 0)
		each_object(guard_become, (uint32_t)pid);
	else
		each_object(guard_drop, (uint32_t)pvm.pid);
}

/* One of a process whose table is empty. */
static void adopt(int fd)
{
	uint64_t key = pipe_find_fd(fd);
	long mode = key ? HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0) : 0;
	if (!key || mode & O_PATH)
		return;
	bool pair = kx_pipe_pair(key);
	if (fd >= KX_PIPE_FDS || (!pair && (mode & O_ACCMODE) == O_RDWR)) {
		pipe_make_plain(key, fd);
		pipe_pairs_above = pipe_pairs_above || pair;
		return;
	}
	pipe_key_set(fd, key | (!pair && (mode & O_ACCMODE) == O_WRONLY ? 1u << 16 : 0));
	pipe_is_watching = pipe_is_watching || (pair && pair_is_watched(key));
	pipe_published()->fd[fd].tsc = 1; /* the host was not asked yet who is left */
	pipe_hold(key, fd, (uint32_t)pvm.pid);
}

void pipe_received(int fd)
{
	struct stat st;
	uint32_t head[2] = { 0, 0 };
	if (!pipe_table_is_ours() || fstat(fd, &st) || !S_ISSOCK(st.st_mode))
		return;
	if (!pipe_mem && pread(pvm.family_fd, head, sizeof head, (off_t)family_pipes_offset()) == sizeof head &&
	    !head[1])
		return;
	pipe_table_get();
	if (pipe_map_here())
		adopt(fd);
	uint64_t key = pipe_key_get(fd);
	if (key && kx_pipe_pair(key))
		__atomic_store_n(&pipe_object(key)->passed, 0, __ATOMIC_SEQ_CST);
	pipe_table_put();
}

void pipe_fork_child(bool own)
{
	if (!pipe_mem)
		return;
	pipe_hurry(); /* with all signals blocked */
	if (own) {
		each_object(pipe_hold, (uint32_t)pvm.pid);
	} else {
		for (unsigned i = 0; i < pipe_fds; i++)
			pipe_key_set((int)i, 0);
		pipe_fds = 0;
		pipe_each_fd(adopt);
	}
	pipe_hurry_end();
}

void pipe_vfork_before(bool shares)
{
	if (!pipe_mem)
		return;
	if (shares || !pipe_table_is_ours()) {
		pipe_plain_all();
		return;
	}
	pipe_table_get();
	each_object(guard_add, (uint32_t)pvm.pid);
	pipe_table_put();
}

/* With the parent's memory, and without its locks. */
static void hold_vfork(uint64_t key, int fd, uint32_t who)
{
	struct kx_pipe *o = pipe_object(key);
	uint32_t guard = (uint32_t)pvm.pid | KX_PIPE_GUARD;
	(void)fd;
	if (same(o, key) && !pipe_holder_has(o, who) && !pipe_holder_swap(o, guard, who))
		pipe_holder_swap(o, 0, who);
}

void pipe_vfork_child(void) { each_object(hold_vfork, (uint32_t)my_pid()); }

void pipe_vfork_after(void)
{
	if (!pipe_mem || !pipe_table_is_ours())
		return;
	pipe_table_get();
	each_object(guard_drop, (uint32_t)pvm.pid);
	pipe_table_put();
}

static bool in_table(unsigned i)
{
	for (unsigned fd = 0; fd < pipe_fds; fd++)
		if (pipe_key_of[fd] && kx_pipe_obj(pipe_key_of[fd]) == i)
			return true;
	return false;
}

/* What this process had of an object before exec and has no more. */
static void exec_drop(struct kx_pipe *o, unsigned i)
{
	uint32_t me = (uint32_t)pvm.pid;
	uint64_t state = __atomic_load_n(&o->state, __ATOMIC_SEQ_CST);
	if (!pipe_holder_has(o, me))
		return;
	struct kx_pipe *second = o->pair ? pipe_behind(o) : NULL;
	if (in_table(i))
		return;
	__atomic_add_fetch(&o->closes, 1, __ATOMIC_SEQ_CST);
	pipe_wake_room(o);
	if (second)
		pipe_wake_room(second);
	pipe_holder_remove(o, state, me);
}

#define LOOKED_MAX 256 /* of the kind; with more all are looked at a second time */

static bool pipe_seen;
static int looked[LOOKED_MAX];
static unsigned nr_looked;

static void look(int fd)
{
	struct stat st;
	if (HC6(SYS_fstat, fd, &st, 0, 0, 0, 0) || !pipe_is_kind(&st))
		return;
	if (nr_looked < LOOKED_MAX)
		looked[nr_looked] = fd;
	nr_looked++;
	for (unsigned i = 0; i < KX_PIPE_OBJECTS && i < pipe_headers->used && !pipe_seen; i++)
		pipe_seen = (pipe_headers->obj[i].state & KX_PIPE_KIND) >= KX_PIPE_LIVE &&
			    pipe_is_of(&pipe_headers->obj[i], &st);
}

void pipe_resume(void)
{
	uint32_t head[2] = { 0, 0 };
	if (pread(pvm.family_fd, head, sizeof head, (off_t)family_pipes_offset()) != sizeof head || !head[1])
		return;
	void *view = mmap(NULL, KX_PIPE_DATA, PROT_READ | PROT_WRITE, MAP_SHARED, pvm.family_fd,
			  (off_t)family_pipes_offset());
	if (view == MAP_FAILED)
		return;
	pipe_headers = view;
	pipe_hurry(); /* there is no thread yet that a signal could come to */
	pipe_each_fd_early(look);
	for (unsigned i = 0; i < KX_PIPE_OBJECTS && i < pipe_headers->used; i++)
		locks_drop(&pipe_headers->obj[i], (uint32_t)pvm.pid);
	if (pipe_seen && pipe_map_here() && nr_looked > LOOKED_MAX)
		pipe_each_fd_early(adopt);
	else if (pipe_mem)
		for (unsigned i = 0; i < nr_looked; i++)
			adopt(looked[i]);
	for (unsigned i = 0; i < KX_PIPE_OBJECTS && i < pipe_headers->used; i++)
		exec_drop(&pipe_headers->obj[i], i);
	pipe_hurry_end();
	pipe_headers = NULL;
	munmap(view, KX_PIPE_DATA);
}

static void leave(uint64_t key, int fd, uint32_t who)
{
	for (unsigned i = 0; i < pipe_fds; i++)
		if (kx_pipe_pair(key) && pipe_key_of[i] && kx_pipe_obj(pipe_key_of[i]) == kx_pipe_obj(key))
			/* Who has both ends has a relative with both: a pair of its own, for instance. */
			(pipe_other_end(pipe_key_of[i]) >= 0 ? pair_settle : pair_leaving)(pipe_key_of[i], (int)i);
	(void)fd;
	pipe_holder_remove(pipe_object(key), key, who);
}

void pipe_exit(void)
{
	pipe_owed();
	if (!pipe_mem || my_pid() != pvm.pid)
		return;
	pipe_hurry(); /* with all signals blocked */
	each_object(leave, (uint32_t)pvm.pid);
	pipe_hurry_end();
}
