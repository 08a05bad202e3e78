/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pipes in memory that a family shares. An object is a ring and what its users must know; the host's pipe beside it
 * gives descriptors, sleep and liveness. Monitors and the LibOS of every member change it; none of them trusts it:
 * cursors are masked, lengths cut, and a member that writes nonsense here hurts its family alone.
 *
 * One cursor store commits an operation. A lock's holder can be killed at any instant: then the cursors are as they
 * were, and whoever finds the holder dead takes the lock. No lock is held across a hypercall.
 */
#ifndef KX_PIPE_H
#define KX_PIPE_H
#include <stdint.h>

#define KX_PIPE_BASE 0x7f10000000 /* in every member that has pipes of this kind: headers, then rings */
#define KX_PIPE_SIZE 0x2100000    /* 33 MiB */
#define KX_PIPE_DATA 0x40000      /* offset of the first ring */
#define KX_PIPE_RING 65536u       /* bytes of a ring; the host's pipe holds as many */
#define KX_PIPE_OBJECTS 510
#define KX_PIPE_ATOMIC 4096u /* PIPE_BUF */
#define KX_PIPE_HOLDERS 48

/* Of the process: which descriptor is which end of which object. Written by the monitor, read by the LibOS. */
#define KX_PIPE_TABLE 0x7f000c0000
#define KX_PIPE_FDS 1024

/* kx_pipe.state: generation << 32 | pid of who makes it << 4 | kind. */
#define KX_PIPE_FREE 0u   /* nobody's */
#define KX_PIPE_MAKE 1u   /* being made */
#define KX_PIPE_LIVE 2u   /* data goes through the ring */
#define KX_PIPE_PLAIN 3u  /* for good through the host's pipe */
#define KX_PIPE_SECOND 4u /* the other direction of the socket pair whose object is the one before */
#define KX_PIPE_KIND 15u

struct kx_pipe {
	uint64_t state;
	uint64_t dev, ino;    /* of the host's pipe */
	uint32_t nonblock[2]; /* O_NONBLOCK of the read and the write end */
	uint32_t closes; /* descriptors of it closed so far: the other side asks the host again whether it is alone */
	uint32_t pair;   /* a socket pair's: its first end writes here, its second one to the next object */
	uint32_t skip;   /* PLAIN: so many tokens are before the data in the host's socket */
	uint32_t reset;  /* who wrote here has been told that the other side closed without reading all */
	uint32_t passed; /* an end with data unread goes in a message to a process that is no holder yet */
	uint32_t kind;   /* of a pair: KX_PAIR_* */
	uint32_t edge;   /* a pair's: a reader is told by edges, so each write is an exit */
	uint32_t filled; /* a pair's: the host's socket was made to look full as the ring is */
	uint64_t head, wlock; /* written so far; lock of the writers: pid << 32 | thread, 0 = free */
	uint32_t watched[2];  /* a pair's ends: KX_PAIR_WATCH_*, by an epoll */
	uint32_t host_first;  /* PLAIN: what the host has comes before what is left here */
	/* PLAIN: so much is on its way to the host, whose queue was as long before. */
	uint32_t moving_len, moving_base;
	uint32_t reset_due; /* PLAIN: who took tokens from before the data met an error that the program is to have */
	uint32_t writer;    /* a pair's: the process that wrote last */
	uint32_t pad1;
	uint64_t
		moving; /* PLAIN: where what is on its way begins, << 1 | 1; of anywhere else than `tail`, it has gone */
	uint64_t taken;       /* PLAIN: read so far; what the host was given from here is between this and `tail` */
	uint64_t tail, rlock; /* read so far; lock of the readers */
	uint64_t pad2[6];
	uint32_t sleepers; /* readers that sleep in the host (more when some were killed) */
	uint32_t token;    /* a byte in the host's pipe that wakes them is there, or about to be; of a pair: how many */
	uint32_t pad3[14];
	uint32_t full; /* writers wait for room: whoever makes some takes this to 0 and wakes them */
	uint32_t room; /* the word that they sleep on */
	uint32_t pad4[14];
	uint32_t holder
		[KX_PIPE_HOLDERS]; /* pids that have a descriptor of it; KX_PIPE_GUARD: a child of that one will */
};
#define KX_PAIR_STREAM 0u
#define KX_PAIR_RECORDS 1u /* SOCK_SEQPACKET */
#define KX_PAIR_DGRAM 2u
#define KX_PAIR_WATCH_IN 1u
#define KX_PAIR_WATCH_OUT 2u
#define KX_PIPE_GUARD 0x80000000u
#define KX_PIPE_STALE 0x40000000u /* a guard whose process was seen dead once */

/* At KX_PIPE_BASE; object i has the 512 bytes behind it at 512 * (i + 1), its ring at KX_PIPE_DATA + 64 KiB * i. */
struct kx_pipes {
	uint32_t epoch; /* grows when a member learns that a process has ended */
	uint32_t used;  /* objects at and above it were never taken */
	uint64_t swept; /* when the dead were last looked for: ns of CLOCK_MONOTONIC */
	uint64_t pad[62];
	struct kx_pipe obj[KX_PIPE_OBJECTS];
};

/*
 * A record: its length in 8 bytes, its data, and room. So much room that all records of a full ring fit into the host's
 * socket (212,992 bytes, where one is charged with at most 2 * len + 896).
 */
#define KX_PAIR_HEAD 8u
#define KX_PAIR_LARGEST 32000u /* longer ones make the pair plain */
#define KX_PAIR_SNDBUF 212992
static inline uint32_t kx_pair_slot(uint32_t len)
{
	uint32_t n = 320 + len / 8 * 5, least = len + KX_PAIR_HEAD;
	return ((n > least ? n : least) + 7) & ~7u;
}

struct kx_pipe_fd {
	uint64_t key; /* generation << 32 | pair << 17 | end << 16 | object + 1; 0 = no such descriptor */
	/* When the host was last asked whether the other side is still there: */
	uint32_t epoch, closes;
	uint64_t tsc;  /* 0: just now */
	uint32_t spin; /* cycles to wait before it sleeps, by what waiting was worth */
	uint32_t missed;
};

struct kx_pipe_table {
	uint32_t on;          /* 1: KX_PIPE_BASE is mapped */
	uint32_t cpus;        /* that the family was started on */
	uint32_t exit_cycles; /* what a hypercall costs lately */
	uint32_t pad[13];
	struct kx_pipe_fd fd[KX_PIPE_FDS];
};

_Static_assert(sizeof(struct kx_pipe) == 512, "objects don't share cache lines");
_Static_assert(sizeof(struct kx_pipes) == 512 * (KX_PIPE_OBJECTS + 1), "object i is at 512 * (i + 1)");
_Static_assert(sizeof(struct kx_pipes) <= KX_PIPE_DATA, "rings come after the headers");
_Static_assert(KX_PIPE_DATA + KX_PIPE_OBJECTS * (uint64_t)KX_PIPE_RING <= KX_PIPE_SIZE, "all of it fits");
_Static_assert(sizeof(struct kx_pipe_table) <= 0x40000, "lies before the patched sites");

static inline unsigned kx_pipe_obj(uint64_t key) { return (uint32_t)(key & 0xffff) - 1; }
static inline unsigned kx_pipe_end(uint64_t key) { return key >> 16 & 1; }
#define KX_PIPE_PAIR (1u << 17)
static inline unsigned kx_pipe_pair(uint64_t key) { return key >> 17 & 1; }
/* The object that an end reads from or writes to. */
static inline unsigned kx_pipe_way(uint64_t key, unsigned writes)
{
	return kx_pipe_obj(key) + (kx_pipe_pair(key) && kx_pipe_end(key) == writes);
}
/* What the object's state is while the key is good for the ring. */
static inline uint64_t kx_pipe_live(uint64_t key) { return (key & ~0xffffffffull) | KX_PIPE_LIVE; }
#endif
