/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Batched socket I/O: one exit for a turn of an event loop, where each read and write was one.
 *
 * Of a stream socket that this process accepted, holds alone and made non-blocking, epoll_wait brings along what there
 * is to read (MSG_PEEK, into guest memory: the kernel still has it) and tells how much may be sent. The LibOS answers
 * the reads out of that and queues what is written (libos/core/batch.c). At the next exit of any thread, before its
 * call is made, the queue is sent in the order of the writes, and what was read is taken from the kernel's socket. So
 * whenever a call is made the kernel's state is exact.
 *   - A call that names such a socket finds it in the kernel alone: what was fetched is given up first.
 *   - A socket that others may hold is none of these: after dup, SCM_RIGHTS or in two epolls for ever, after a fork
 *     until all descendants of then have ended, but for those that no child uses (batch_lend.c).
 *   - A thread that runs on without exits has its queue sent by the flusher, a thread of the monitor's, within 2 ms.
 *   - An error that a send meets is that of the program's next call on the socket, as if it had come a moment later.
 * A child of vfork takes no part (keeper.h). Lock: one, taken after the service thread's and
 * before all others of the monitor's.
 */
#ifndef KX_BATCH_H
#define KX_BATCH_H
#include "../../abi/kx_accept.h"
#include "hcall.h"

/* Before a call's arguments are looked at. True: *r is its result. */
bool batch_enter(struct hcall *c, int64_t *r);
/* Its result is known without its handler: true and *r set. */
bool batch_answer(struct hcall *c, int64_t *r);
/* What poll and select look at for descriptor fd: itself, or what tells of connections that wait here for fd's accept. */
int batch_ready_fd(int fd);
/* epoll_wait(2) of the host's has put n events at gva: how many the program is to see, of which that is so from here on. Without
 * a lock. */
int64_t batch_told(uint64_t gva, int64_t n);
/* fd, the monitor's for now, is free for the program, and was the lowest that there was. */
void batch_number(int fd);
/* After its handler. */
void batch_leave(struct hcall *c, int64_t r);
/* Has this process such sockets? Then its calls go through batch_enter() and batch_leave(). */
bool batch_active(void);
/* Call move for each descriptor of this module's: the guest's range grows. 0, or what move said. */
int batch_fds(int (*move)(int *fd));
/* May the service thread answer it, by batch_enter() and batch_leave() around the handler? c->t->index is that of the
 * thread that waits. */
bool batch_may_serve(struct hcall *c);
/* There is a struct kx_batch; for ever. */
bool batch_is_mapped(void);
/* fd goes to somebody else. */
void batch_share(int fd);
/* Around the making of a process, outermost the lease's. share: with the lock, by a thread that has the program's descriptors. Sockets that
 * other threads accept during a vfork stay out, too. */
void batch_fork_lock(void);
void batch_fork_share(void);
void batch_fork_unlock(void);
/* files: the child shares this process's descriptors. What is open now counts as held until all descendants ended. */
void batch_lease_begin(bool files);
void batch_lease_end(void);
void batch_vfork_begin(void);
void batch_vfork_end(void);
void batch_fork_child(void);
#define POOLS_MAX 8 /* listeners that were had at a fork, and may be accepted from ahead */
/* Connections that wait for the program's accept, in the monitor's hands: they go over an exec with their listener. */
struct batch_handed {
	int32_t listener, nr;
	struct {
		int32_t fd;
		struct kx_accepted of;
	} kept[KX_ACCEPT_MAX];
	int32_t bell[2], bell_epoll; /* batch_bell.c; -1 = none */
	uint64_t bell_data;
	int32_t nr_pools;
	struct batch_pool { /* batch_pool.c */
		int32_t fd, of[3], epoll, spoilt;
		uint64_t data;
	} pool[POOLS_MAX];
};
/* From here on none is taken, and those are the new program's, whose monitor adopts them; or exec has failed. */
void batch_exec_begin(struct batch_handed *h);
void batch_exec_failed(const struct batch_handed *h);
void batch_exec_adopt(const struct batch_handed *h);
/* Is what this process had then its alone again? Then dgram_alone_again(). */
void batch_leases_look(void);
/* The thread that sends what waits too long (flusher.h), for dgram.c, too: there, or made. Under the lock of either. */
bool batch_flusher_start(void);
/* *err was met by a call that the program did not make: told, once, to one that meets it or that asks for SO_ERROR. True:
 * *r is c's result. */
bool batch_error_due(struct hcall *c, bool meets, int *err, int64_t *r);
/* The process ends: send what is queued. */
void batch_end(void);
#endif
