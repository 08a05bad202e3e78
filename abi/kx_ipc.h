/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SysV semaphores, SysV and POSIX message queues in memory that a family shares. The host's object is always there; while an object
 * is in the state RING, what it holds is here instead, and every operation that need not sleep is done by the LibOS of
 * whoever makes it. Who must sleep on a queue is noted in one of its places, and sleeps there on a futex; from then on the
 * operations that concern him are the monitor's (monitor/core/ipc_live.c), which gives him what he waits for. Who must on a
 * semaphore moves it to the host first. Members don't trust this memory: what is nonsense here hurts the family alone.
 *
 * A semaphore is one word, changed by compare-and-swap. A queue has a lock, and one store commits an operation. A member
 * can be killed at any instant: monitor/core/ipc.c, ipc_live.c and ipc_give.c say how the others go on.
 */
#ifndef KX_IPC_H
#define KX_IPC_H
#include <stdint.h>

#define KX_IPC_BASE 0x7f13000000 /* in every member that has objects of this kind */
#define KX_IPC_SIZE 0x900000
#define KX_IPC_OBJECTS 64                  /* of each kind: an id has the one at its index modulo this */
#define KX_IPC_QUEUES (2 * KX_IPC_OBJECTS) /* SysV, POSIX */
#define KX_IPC_USERS 48
#define KX_IPC_SEMS 64    /* a set of more is the host's */
#define KX_IPC_IDS 32768u /* the kernel's index of an object is its id modulo this */
#define KX_IPC_RING 65536u
#define KX_IPC_PLACES 16 /* who can sleep on a queue while it is LIVE */

/* kx_ipc_obj.state: generation << 32 | thread that is at work << 4 | one of these. */
#define KX_IPC_HOST 0u  /* the host's object holds it */
#define KX_IPC_ADOPT 1u /* being taken from there */
#define KX_IPC_LIVE 2u  /* it is here */
#define KX_IPC_MOVE 3u  /* being moved back; thread 0: by whoever comes next */
#define KX_IPC_DRAIN 4u /* it is here, and what the host's queue still holds is to be thrown away */
#define KX_IPC_PASS 5u  /* moved back; who slept here is let go to sleep there */
#define KX_IPC_STATE 15u

struct kx_ipc_obj {
	uint64_t state;
	int32_t id; /* while not HOST, whose; else of whom the notes below are */
	uint32_t nsems;
	uint64_t qbytes; /* limits of a queue */
	uint32_t msgmax; /* bytes of a message */
	uint32_t closed; /* 1: no object is LIVE here any more */
	uint32_t pad0[8];
	uint32_t spin;     /* cycles that are worth waiting before somebody sleeps */
	uint32_t missed;   /* times in a row that nobody waited so */
	uint32_t ops;      /* made here since it is LIVE (about) */
	uint32_t backoff;  /* times in a row that LIVE was not worth it */
	int32_t streak_id; /* host's operations in a row that would have been made here */
	uint32_t streak;
	uint32_t fails;  /* to become LIVE */
	uint32_t sleeps; /* times that somebody was about to sleep in the host */
	uint32_t pad1[8];
	uint64_t lock;       /* pid << 32 | thread; for semaphores, of the monitor alone */
	uint64_t head, tail; /* bytes of the ring written; taken out */
	uint32_t qnum;       /* messages */
	uint32_t asleep;     /* places whose threads wait: bit i for a message, bit 16 + i for room */
	uint64_t cbytes;     /* the messages' bytes */
	/* As msgctl and semctl tell of them, by whomever made: the host knows of its own operations alone. */
	int32_t lspid, lrpid;
	int64_t stime, rtime, otime;
	int64_t since;                /* the time when it became LIVE: should the LibOS have no clock */
	uint64_t users[KX_IPC_USERS]; /* thread << 32 | id: is making, or about to make, an operation of the host's */
	uint64_t tickets;             /* given to sleepers so far */
	/* As `asleep`, of those that sleep for a moment first, and of whom the LibOS tells its monitor later (KX_IPC_SL_NAPS);
	 * of a semaphore's set, the word that they sleep on: KX_IPC_NAPS. */
	uint32_t naps;
	uint32_t nap_ns; /* how long they do lately */
	uint64_t pad3[52];
};
#define KX_IPC_NAPS 1u           /* they need not be told at once */
#define KX_IPC_NAPS_FIRM 2u      /* ... they must */
#define KX_IPC_LOCK_LEFT (~0ull) /* as lock: its holder is known to be gone */

/* One who sleeps while the object is LIVE. Changed with the object's lock alone. */
struct kx_ipc_sleeper {
	uint64_t ticket; /* the order in which they came */
	uint64_t want;   /* place in the ring of the message that it is given, or that it sends */
	int64_t type;    /* as msgrcv has it */
	uint32_t tid;    /* 0: nobody */
	uint32_t pid;
	int32_t id;     /* of the object */
	uint32_t flags; /* KX_IPC_SL_* */
	uint32_t word;  /* the futex */
	uint32_t size;  /* of its message, or buffer */
};
#define KX_IPC_SL_SENDS 1u
#define KX_IPC_SL_NOERROR 2u
#define KX_IPC_SL_EXCEPT 4u
#define KX_IPC_SL_SERVED 8u   /* it has what it waited for, or is to try again (room for a SysV message) */
#define KX_IPC_SL_ENTER 16u   /* it goes to sleep in the host */
#define KX_IPC_SL_TOO_BIG 32u /* E2BIG, that is */
#define KX_IPC_SL_NAPS 64u    /* for a moment: nobody need make an exit to wake it */

/* In the ring, at multiples of 16. The text follows; none goes over the ring's end. */
struct kx_ipc_msg {
	uint32_t size, state; /* KX_IPC_MSG_*: the store that takes a message out */
	int64_t type;         /* POSIX: priority */
};
#define KX_IPC_MSG_HERE 1u
#define KX_IPC_MSG_GONE 2u
#define KX_IPC_MSG_GIVEN(place) (3u | (place) << 8) /* that sleeper's: no more in the queue */
#define KX_IPC_MSG_WAITS(place) (4u | (place) << 8) /* that sleeper's: not yet in the queue, which is full (POSIX) */

struct kx_ipc {
	struct kx_ipc_obj sem[KX_IPC_OBJECTS], msg[KX_IPC_OBJECTS], mq[KX_IPC_OBJECTS];
	uint64_t word[KX_IPC_OBJECTS][KX_IPC_SEMS];
	uint32_t undo
		[KX_IPC_IDS]; /* by index: id + 1 of a set that SEM_UNDO was used on, which is the host's for ever */
	uint32_t used;        /* 1: something was LIVE once */
	uint32_t pad0;
	struct kx_ipc_sleeper sleeper[KX_IPC_QUEUES][KX_IPC_PLACES]; /* of msg, mq */
	uint8_t pad[0x80000 - 3 * KX_IPC_OBJECTS * 1024 - KX_IPC_QUEUES * KX_IPC_PLACES * 48 -
		    KX_IPC_OBJECTS * KX_IPC_SEMS * 8 - 4 * KX_IPC_IDS - 8];
	uint8_t ring[KX_IPC_QUEUES][KX_IPC_RING];
};

/* Of the process: written by the monitor. */
#define KX_IPC_TABLE 0x7f000e0000
#define KX_IPC_FDS 1024
struct kx_ipc_table {
	uint32_t on; /* 1: KX_IPC_BASE is mapped */
	uint32_t cpus;
	uint32_t exit_cycles; /* what an exit costs lately */
	uint32_t owes;        /* something is in `owed` */
	/* By object, semaphores, SysV and POSIX queues: changed while somebody naps there, who is woken before this process
	 * sleeps. */
	uint64_t owed[3];
	uint32_t pad[6];
	uint64_t mq[KX_IPC_FDS]; /* by descriptor: KX_IPC_MQ_*; 0 = no POSIX queue's, as far as is known */
};
#define KX_IPC_MQ_READ 1u
#define KX_IPC_MQ_WRITE 2u
#define KX_IPC_MQ_NOWAIT 4u /* O_NONBLOCK when it was last looked at: waiting for others is not worth it */
#define KX_IPC_MQ_ID(key) ((int32_t)((key) >> 32)) /* its inode, which is its id here */

/* A semaphore: low half of the generation << 40 | pid of the last operation << 17 | frozen << 16 | value */
#define KX_IPC_FROZEN 0x10000ull
#define KX_IPC_VALUE(w) ((uint32_t)((w)&0x7fff))
#define KX_IPC_PID(w) ((uint32_t)((w) >> 17 & 0x3fffff))
#define KX_IPC_GEN(state) ((uint64_t)((state) >> 32 & 0xffffff))
#define KX_IPC_WORD(state, pid, v) (KX_IPC_GEN(state) << 40 | ((uint64_t)(pid)&0x3fffff) << 17 | (v))

/* A result of a hypercall beside -errno: the object is LIVE now, make the operation there. */
#define KX_EIPC_LIVE 515

_Static_assert(sizeof(struct kx_ipc_obj) == 1024, "objects don't share cache lines");
_Static_assert(__builtin_offsetof(struct kx_ipc_obj, spin) == 64, "what all read and what changes lie apart");
_Static_assert(__builtin_offsetof(struct kx_ipc_obj, lock) == 128, "likewise");
_Static_assert(sizeof(struct kx_ipc_table) <= 0x10000, "lies before the futexes");
_Static_assert(sizeof(struct kx_ipc) <= KX_IPC_SIZE, "all of it fits");
_Static_assert(sizeof(struct kx_ipc_msg) == 16, "messages are aligned to it");
_Static_assert(sizeof(struct kx_ipc_sleeper) == 48, "as many fit before the rings");
_Static_assert(__builtin_offsetof(struct kx_ipc, ring) == 0x80000, "rings come after all else");

static inline unsigned kx_ipc_slot(int32_t id) { return (uint32_t)id % KX_IPC_IDS % KX_IPC_OBJECTS; }
static inline int kx_ipc_is_live(uint64_t state) { return (state & KX_IPC_STATE) == KX_IPC_LIVE; }
/* Is a message of this type what msgrcv's `want` asks for? */
static inline int kx_ipc_takes(int64_t want, int except, int64_t type)
{
	return !want || (want > 0 ? (type == want) != !!except : type <= -want);
}
/* Bytes of a message in the ring. */
static inline uint32_t kx_ipc_msg_bytes(uint32_t size) { return 16 + ((size + 15) & ~15u); }
#endif
