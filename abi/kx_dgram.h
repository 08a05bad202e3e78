/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UDP in batches: datagrams that the monitor has received ahead of the program, and those that wait to be sent. All of
 * it is the program's own memory. The monitor looks at `rx`, `window`, `attempts`, `head` and the records, and believes
 * none of them.
 */
#ifndef KX_DGRAM_H
#define KX_DGRAM_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "kx_abi.h"

#define KX_DGRAM_BASE 0x7f0d200000 /* struct kx_dgram, sockets, their buffers, contexts: 41 MiB, touched as needed */
#define KX_DGRAM_FDS 4096          /* descriptors from here on are not batched                                  */
#define KX_DGRAM_SOCKS 64          /* sockets at a time                                                         */
#define KX_DGRAM_SOCK 0x4000       /* offset of struct kx_dsock[KX_DGRAM_SOCKS]                                 */
#define KX_DGRAM_BUF 0x100000      /* offset of the first socket's buffer                                       */
#define KX_DGRAM_BUF_SIZE 0x80000  /* of each                                                                   */
#define KX_DGRAM_FULL 0x18000      /* so much in it: no more                                                    */
#define KX_DGRAM_PEERS 0x7c000     /* offset in a buffer of struct kx_dpeer[KX_DGRAM_PEERS_MAX]                 */
#define KX_DGRAM_PEERS_MAX 512
#define KX_DGRAM_CTX 0x2100000 /* offset of the first context; each has 256 KiB                             */
#define KX_DGRAM_CTX_SIZE 0x40000
#define KX_DGRAM_CTXS 32         /* threads that can send so at a time                                        */
#define KX_DGRAM_TX 0x1000       /* offset of the ring of records in a context                                */
#define KX_DGRAM_TX_SIZE 0x20000 /* its bytes                                                                 */
#define KX_DGRAM_SEND_MAX 1472   /* longest that is queued: what Ethernet carries in one piece                */
#define KX_DGRAM_CTL_MAX 64      /* of its control data                                                       */
#define KX_DGRAM_AHEAD 128       /* most that are received ahead                                              */
#define KX_DGRAM_NAME 28         /* struct sockaddr_in6                                                       */

/* kx_dsock.rx: bytes of the buffer that are used up, of so many. */
#define KX_DRX_POS(w) ((uint32_t)(w)&0xfffff)
#define KX_DRX_END(w) ((uint32_t)((w) >> 20) & 0xfffff)
#define KX_DRX_EMPTY (1ull << 40) /* there was no more: one receive may be told so */
#define KX_DRX_WORD(gen, end) ((uint64_t)(gen) << 41 | (uint64_t)(end) << 20)

#define KX_DS_NONBLOCK 1u
#define KX_DS_CONNECTED 2u
#define KX_DS_SEND 4u  /* replies may be queued */
#define KX_DS_HEARD 8u /* something has come since it was connected */
#define KX_DS_ERR 16u  /* the next call's is an error, though something may be here */

struct kx_dsock {
	uint64_t rx;    /* changed by compare-and-swap alone */
	uint64_t calls; /* kx_dgram.calls as it was filled */
	uint64_t data;  /* of its registration in `epoll`, for `events` */
	uint32_t events;
	int32_t epoll; /* -1: in none, or what is there is too much for the LibOS */
	uint32_t flags;
	uint32_t gen;      /* of the socket: records carry it */
	uint32_t credit;   /* bytes that may be queued, by KX_DGRAM_COST */
	uint32_t attempts; /* datagrams that the program has asked for since it waited last */
	uint32_t window;   /* ... in the turn before */
	uint32_t pad[3];
};
#define KX_DGRAM_COST(len) ((len) + 1408) /* of a send buffer: what a packet costs beside its data */

/* In a buffer: this, data, control data as the kernel gave it; each padded to a multiple of 8 bytes. */
struct kx_dgrec {
	uint32_t size; /* of all that */
	uint32_t len;
	uint32_t flags; /* msg_flags */
	uint16_t namelen, ctllen;
	uint8_t name[KX_DGRAM_NAME];
	uint32_t pad;
};

/* Who has sent datagrams of late, at the place that kx_dgram_hash() says; who comes later takes it. */
struct kx_dpeer {
	uint8_t name[KX_DGRAM_NAME];
	uint32_t len; /* 0: none */
};

/* In a ring, at multiples of its size: this, name, control data, data; fd = -1 fills the ring's end. */
struct kx_dsend {
	int32_t fd;
	uint32_t gen, len, flags;
	uint64_t ticket; /* order among contexts */
	uint16_t namelen, ctllen;
	uint32_t size; /* of all that */
};

/* A thread's. `head` is the LibOS's, `tail` the monitor's; both grow for ever. */
struct kx_dctx {
	uint64_t head, tail;
};

struct kx_dgram {
	uint64_t ticket;
	uint64_t calls;                /* hypercalls of all threads, and what they told each other without */
	uint64_t looked;               /* calls as all descriptors of a wait were looked at, and only datagrams found */
	uint8_t ctx_of[KX_AREA_MAX];   /* by kx_thread.index: context + 1, 0 = none */
	uint8_t sock_of[KX_DGRAM_FDS]; /* by descriptor: socket + 1, 0 = none */
};

#define KX_D8(n) (((n) + 7u) & ~7u)

/* Is what stands at the head of `left` bytes a record? */
static inline bool kx_dgrec_ok(const struct kx_dgrec *r, uint32_t left)
{
	return r->size <= left && r->size % 8 == 0 && r->len <= 0x10000 && r->namelen <= KX_DGRAM_NAME &&
	       sizeof *r + KX_D8(r->len) + r->ctllen <= r->size;
}

/* Of family, port and address. */
static inline uint32_t kx_dgram_hash(const uint8_t *name, uint32_t len)
{
	uint32_t h = 0;
	for (uint32_t i = 2; i < len && (i < 8 || len == KX_DGRAM_NAME); i++)
		h = (h ^ name[i]) * 0x01000193;
	return (h ^ h >> 15) % KX_DGRAM_PEERS_MAX;
}

_Static_assert(sizeof(struct kx_dsock) == 64, "a line of the cache each");
_Static_assert(sizeof(struct kx_dgrec) == 48, "records are aligned to 8");
_Static_assert(sizeof(struct kx_dsend) == 32, "records are aligned to it");
_Static_assert(sizeof(struct kx_dgram) <= KX_DGRAM_SOCK, "sockets come after it");
_Static_assert(KX_DGRAM_SOCK + KX_DGRAM_SOCKS * sizeof(struct kx_dsock) <= KX_DGRAM_BUF, "buffers come after them");
_Static_assert(KX_DGRAM_BUF + KX_DGRAM_SOCKS * KX_DGRAM_BUF_SIZE <= KX_DGRAM_CTX, "contexts come after them");
_Static_assert(KX_DGRAM_TX + KX_DGRAM_TX_SIZE <= KX_DGRAM_CTX_SIZE, "a ring fits");
_Static_assert(KX_DGRAM_BUF_SIZE <= 0x100000, "its bytes have numbers in a word");
_Static_assert(KX_DGRAM_BASE >= KX_BATCH_BASE + 0x3200000, "streams come before it");
_Static_assert(KX_DGRAM_PEERS + KX_DGRAM_PEERS_MAX * sizeof(struct kx_dpeer) <= KX_DGRAM_BUF_SIZE, "so do they");
#endif
