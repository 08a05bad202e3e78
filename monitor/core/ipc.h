/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SysV semaphores, SysV and POSIX queues without exits: "Life of a semaphore" in ARCHITECTURE.md, layout in abi/kx_ipc.h. This side
 * moves objects between the host and the family's memory, and makes every operation on the host's object. What the LibOS
 * leaves to it of those in memory, all that sleeps among it: ipc_live.c.
 *
 * An operation of the host's on an object is announced in users[] of the object's place before its state is looked at;
 * who is about to make it LIVE sets the state and then looks whether anybody is announced. So while it is LIVE nobody is
 * in such an operation, nor asleep in one, and while somebody is, it stays the host's. Entries and states of threads that
 * were killed are told by /proc. A move back can be taken over at any point: how much has been moved is to be seen from
 * the host's object.
 */
#ifndef KX_IPC_MONITOR_H
#define KX_IPC_MONITOR_H
#include "hcall.h"

enum ipc_kind { IPC_SEM, IPC_MSG, IPC_MQ };

/* An object: a POSIX queue is its inode, and a descriptor of it. */
struct ipc_name {
	enum ipc_kind kind;
	int id, fd;
};

struct ipc_visit {
	struct kx_ipc_obj *obj; /* NULL: not there, as with ids that can't be */
	int user;               /* its entry in users[]; -1: none is needed */
};

/* Before and after an operation on the host's object, which holds everything between the two. 0 or -errno. */
int ipc_enter(struct ipc_visit *v, struct ipc_name n);
void ipc_leave(struct ipc_visit *v);
/* An operation was made with the host's object; with the visit going on. */
void ipc_sem_done(const struct ipc_visit *v, int id, int num);
void ipc_msg_done(const struct ipc_visit *v, int id, bool sent);
/* What the host says of an object is its own part. */
struct semid_ds;
struct msqid_ds;
void ipc_sem_stat(int id, struct semid_ds *ds);
void ipc_msg_stat(int id, struct msqid_ds *ds);
/* SETVAL or (num -1) SETALL was made. */
void ipc_sem_set(int id, int num);
/* The pid of the last operation; 0: ask the host. */
int ipc_sem_pid(int id, int num);
/* SEM_UNDO is about to be used on this set: for ever the host's. With the visit going on. */
void ipc_sem_undo(int id);
/* What the host does not know of an object in memory: how much a queue holds; a semaphore's GETVAL, GETNCNT or GETZCNT.
 * False, -1: it is not there, ask the host with a visit. */
bool ipc_queue_seen(struct ipc_name n, uint64_t *messages, uint64_t *bytes);
int ipc_sem_seen(int id, int number, int cmd);
/* All queues to the host. */
void ipc_settle(void);

/* One semop, msgsnd or msgrcv. host() makes it, with `wait` as it is, else without ever sleeping. */
struct ipc_call {
	struct ipc_name n;
	bool waits;  /* it may sleep */
	bool simple; /* the LibOS could make it */
	bool spun;   /* it has waited there already */
	int none;    /* -errno of "would sleep" */
	/* If it is simple: */
	bool sends;
	int flags;             /* MSG_NOERROR, MSG_EXCEPT */
	int64_t type;          /* as kx_ipc_sleeper and kx_ipc_msg have it */
	uint64_t gva, size;    /* the text */
	uint64_t type_gva;     /* of who receives: where the type goes (POSIX: priority, or 0) */
	uint64_t deadline_ns;  /* CLOCK_MONOTONIC, for POSIX queues CLOCK_REALTIME; 0 = none */
	struct timespec *rest; /* what is left of the time goes here before host() is called */
	int64_t (*host)(struct ipc_call *c, bool wait);
	void (*done)(struct ipc_call *c, const struct ipc_visit *v);
	void *arg;
};
int64_t ipc_call(struct ipc_call *c);
/* This process is about to sleep: who naps for what it did is woken. */
void ipc_owed(void);

/* Never LIVE again, nor anything at its place. With a visit going on, or before one. */
void ipc_close(struct ipc_name n);

/* ---- POSIX queues (mqueue.c) ------------------------------------------------------------------------------------------ */
/* A descriptor was closed, or is about to be; it may be no queue's. */
void mq_gone(int fd);
/* `to` is a copy of fd now. */
void mq_copied(int fd, int to);
/* A descriptor that is waited for by other means, that others get, or that was opened by another name: the host's for
 * ever if it is a queue's. */
void mq_plain(int fd);
void mq_opened(int fd, const char *path);
/* Before a change of user ids, and after exec. */
void mq_plain_all(void);
void mq_resume(void);
/* In a child whose descriptors are not those that are noted here. */
void mq_forget(void);

/* A change of user ids was made. */
void ipc_identity_after(void);
/* In a child (own: descriptors are those of this table), and after exec: what threads with the same numbers have left. */
void ipc_fork_child(bool own);
void ipc_resume(void);
#endif
