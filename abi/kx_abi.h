/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The contract between the monitor (host process) and the LibOS (guest ring 3): where things are in the
 * guest's address space, what the two share, and how a hypercall is made. Included by both sides and by
 * assembly; it includes nothing of ours.
 *
 * Guest-virtual addresses equal guest-physical ones in the low 512 GiB, and above, where a program that reserves more
 * gets it. Everything in guest memory is under
 * the guest's control: the monitor copies what it needs once, checks the copy, and uses the copy.
 */
#ifndef KX_ABI_H
#define KX_ABI_H

#define KX_ABI_VERSION 1

/* ---- Address space (bytes) ---------------------------------------------------------------------------- */
#define KX_SPACE_SIZE 0x8000000000 /* 512 GiB: what the monitor reserves and PML4 slot 0 maps            */
#define KX_USER_MIN 0x10000        /* below it nothing is ever mapped (as vm.mmap_min_addr)              */
#define KX_USER_END 0x7effe00000   /* 508 GiB - 2 MiB: first address that a program cannot have         */
#define KX_HIGH_END 0x200000000000 /* 32 TiB: end of what lies above KX_SPACE_SIZE for large reservations   */
#define KX_LIBOS_BASE 0x7f00000000 /* LibOS image (text and constants)                                   */
#define KX_LIBOS_SIZE 0x80000      /* 512 KiB                                                            */
#define KX_VDSO_BASE 0x7f00080000  /* ELF image that AT_SYSINFO_EHDR names; at most 64 KiB               */
#define KX_VVAR_BASE 0x7f00090000  /* struct kx_vvar: one page, read-only in the guest                   */
#define KX_CPUID_BASE 0x7f00091000 /* struct kx_cpuid: one page, read-only in the guest                  */
#define KX_BOOT_BASE 0x7f000a0000  /* struct kx_shared: process-wide state, 64 KiB                       */
#define KX_FUTEX_BASE 0x7f000f0000 /* struct kx_futexes: two pages that the family shares, writable              */
#define KX_SITES_BASE 0x7f00100000 /* struct kx_site[]: patched sites, sorted; 1 MiB                     */
#define KX_SITES_MAX 32768
#define KX_AREA_BASE 0x7f00200000 /* thread areas: KX_AREA_SIZE each, index = vCPU slot                 */
#define KX_AREA_SIZE 0x8000       /* 32 KiB: struct kx_thread, LibOS stack, user register frame on top  */
#define KX_AREA_MAX 4096
#define KX_BATCH_BASE 0x7f0a000000 /* struct kx_batch, sockets, contexts: 50 MiB, there from the first use on   */
#define KX_AREA_ACTIONS 0x1000     /* offset of a vfork child's signal actions in its area */
/* Page tables, descriptor tables, ring-0 stacks: no ring-3 mapping. The first 2 MiB lie directly below the LibOS, so
 * that one memory slot holds all that a small process needs of both; what comes later is further up. */
#define KX_SYS_BASE 0x7effe00000
#define KX_SYS_FIRST 0x200000
#define KX_SYS_MORE 0x7f20000000
#define KX_SYS_END 0x7f3fe00000

/* ---- Exits -------------------------------------------------------------------------------------------- */
#define KX_PORT_HCALL 0x510  /* out %eax: the call is in kx_thread.call                                    */
#define KX_PORT_PANIC 0x511  /* out %eax: a LibOS invariant broke; the message is at kx_thread.panic_msg   */
#define KX_PORT_RETURN 0x512 /* out: a function that the monitor has called in the guest (update.c) has returned */
#define KX_PORT_LAST 0x51f

/* ---- Offsets that assembly needs (asserted against the structs below) ---------------------------------- */
#define KX_T_SELF 0x00
#define KX_T_ENTRY 0x08
#define KX_T_FRAME_TOP 0x10
#define KX_T_FRAME 0x18
#define KX_T_USER_RSP 0x20
#define KX_T_RESUME 0x28
#define KX_T_WORK 0x30
#define KX_T_CALL 0x80
#define KX_T_CPUID 0xc0

/* kx_thread.work: reasons not to return to the program yet. Set by the monitor, cleared by the LibOS. */
#define KX_WORK_SIGNAL 1u       /* kx_thread.sig holds a signal to deliver                                        */
#define KX_WORK_MORE 2u         /* the monitor holds a further signal: make the sig_next hypercall                */
#define KX_WORK_RSEQ 4u         /* kx_thread.cpu and mm_cid are new, or a section must be aborted: see rseq(2)       */
#define KX_RSEQ_SIG 0x53053053u /* the signature that libc registers with                                    */

/* Results a hypercall can have beside -errno (never seen by the program). */
#define KX_ERESTART 512        /* interrupted before any effect; restart if the handler has SA_RESTART             */
#define KX_ERESTART_ALWAYS 513 /* a signal was there before the call began; make the call after its handler */
#define KX_ERESTART_NOHAND 514 /* as above but EINTR if any handler runs                                     */

/* How a system call was answered (for traces). */
#define KX_PATH_LIBOS 0
#define KX_PATH_MONITOR 1
#define KX_PATH_SLOW 2
#define KX_PATH_POLL 3 /* by the monitor without an exit: kx_serve.h */

/* kx_frame.orig_rax after a `cpuid`: a system call's number is a sign-extended int. */
#define KX_ORIG_CPUID 0x80000000

#ifndef __ASSEMBLER__
#include <stdint.h>

/* User registers at entry to the LibOS, restored at exit. The order is that of the pushes in entry.S. */
struct kx_frame {
	uint64_t r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax;
	uint64_t orig_rax; /* system call number; KX_ORIG_CPUID; or -1 when the entry was neither */
	uint64_t rip;      /* as the program sees it: the address after `syscall` or `cpuid` */
	uint64_t rflags;
	uint64_t rsp;
};

/* One hypercall. Written by the LibOS, copied once by the monitor, `ret` written back. */
struct kx_call {
	uint64_t nr;
	uint64_t arg[6];
	int64_t ret;
};

/* As struct kernel_sigaction of rt_sigaction(2) on x86-64. */
struct kx_sigaction {
	uint64_t handler, flags, restorer, mask;
};

/* A signal on its way to the program: filled by the monitor, consumed (signo = 0) by the LibOS. */
struct kx_signal {
	uint32_t signo;
	uint32_t forced; /* a fault: kill the process when it is blocked or ignored */
	uint8_t info[128];
	uint64_t trapno, err, cr2; /* of a fault, for the frame's gregs */
};

/*
 * Per-thread area. %gs points here whenever ring-3 code runs. Only the owner thread and the monitor thread
 * behind it touch it.
 */
struct kx_thread {
	uint64_t self;        /* 0x00 its own address */
	uint64_t entry;       /* 0x08 LibOS entry point: trampolines do jmp *%gs:8 */
	uint64_t frame_top;   /* 0x10 end of struct kx_frame: where entry.S starts to push */
	uint64_t frame;       /* 0x18 start of struct kx_frame */
	uint64_t user_rsp;    /* 0x20 scratch of entry.S */
	uint64_t resume;      /* 0x28 where to continue (trampoline tail, or frame.rip) */
	uint32_t work;        /* 0x30 KX_WORK_* */
	uint32_t slow;        /* 0x34 1: this entry came by a trapped `syscall` instruction (set by the monitor) */
	uint64_t sigmask;     /* 0x38 guest signal mask, bit n-1 = signal n; LibOS owns it */
	uint64_t host_mask;   /* 0x40 what the monitor has blocked on the host thread; monitor owns it */
	uint32_t tid;         /* 0x48 */
	uint32_t cpu;         /* 0x4c host CPU at the last entry; with rseq, the number that it has to itself */
	uint64_t altstack_sp; /* 0x50 */
	uint64_t altstack_size;
	uint32_t altstack_flags; /* 0x60 SS_* as sigaltstack(2) */
	uint32_t index;          /* 0x64 of the area */
	uint64_t clear_tid;      /* 0x68 clear_child_tid address, 0 = none (mirror; the monitor has its own) */
	uint64_t panic_msg;      /* 0x70 */
	uint64_t in_call;        /* 0x78 1 while a hypercall's `out` may be executing */
	struct kx_call call;     /* 0x80 */
	uint64_t cpuid_entry;    /* 0xc0 as entry, for the trampoline of a `cpuid` */
	struct kx_signal sig;    /* 0xc8 */
	uint64_t saved_mask;     /* mask to restore after sigsuspend and kin */
	uint32_t has_saved_mask;
	uint32_t yield_count;
	uint32_t pid;         /* of the process: in a child of vfork another than that of its memory's other threads */
	uint32_t vfork;       /* 1: a child of vfork that has not called exec yet */
	uint64_t actions;     /* struct kx_sigaction[65]: kx_shared.sigaction, or the copy of a child of vfork */
	uint8_t rand_key[32]; /* generator state, wiped forward (fast key erasure) */
	uint8_t rand_buf[512];
	uint32_t rand_left;  /* unread bytes at the end of rand_buf */
	uint32_t rand_gen;   /* kx_shared.fork_gen at the last seeding; other = reseed */
	uint64_t rand_bytes; /* drawn since the last seeding */
	uint64_t rseq;       /* registered struct rseq of the program's, 0 = none */
	uint32_t rseq_len, rseq_sig;
	uint32_t mm_cid, pad;
	uint32_t futex_slot, pad2; /* of kx_futexes.waiters, + 1: counted there for the call in progress; 0 = not */
	uint32_t spin_skip, spin_fails; /* waits that are not to spin; times in a row that it was for nothing */
	uint64_t robust_ready; /* a new child or thread: the list of robust locks that it has already; 0 = none */
	struct {
		uint32_t seen; /* of kx_sigw.sent[] */
		uint32_t peer; /* who has taken a signal from here last */
		uint32_t skip, fails;
	} sigwait; /* the LibOS's: libos/core/sigwait.c */
	/* Wakes without an exit (kx_fnap.h). */
	struct {
		uint64_t owed;  /* by kx_futexes.nap[]: whose nap the monitor ends at this thread's next exit */
		uint64_t since; /* TSC when it woke somebody, and no exit since; 0 = none */
		int32_t sure;   /* times in a row that an exit came soon after; below 0: times that it must, first */
		uint32_t fails; /* times in a row that none did, and the wake was late */
	} hand;
};

#define KX_FPAGES 16

/* Process-wide state shared by LibOS and monitor (at KX_BOOT_BASE; writable by the guest). */
struct kx_shared {
	uint32_t version, pid, ppid, fork_gen; /* fork_gen grows in each child */
	uint32_t uid, euid, gid, egid;         /* mirrors, kept by the monitor */
	uint32_t trace;                        /* 1: report locally answered calls with the trace hypercall */
	uint32_t xsave_size;                   /* bytes of the XSAVE area for the enabled features */
	uint64_t xfeatures;                    /* XCR0 */
	uint32_t nr_threads, no_local_time;    /* no_local_time: 1 = TSC unusable, ask the monitor */
	uint64_t cpuids, cpuids_real;          /* `cpuid` answered; of them by the instruction itself (approximate) */
	uint64_t local_calls;                  /* calls answered in the LibOS (statistics; approximate) */
	uint64_t nr_sites;                     /* entries in use at KX_SITES_BASE */
	uint64_t sites_seq;                    /* odd while the monitor changes the table */
	struct kx_sigaction sigaction[65];     /* guest view; index = signal */
	uint64_t rt_handlers;                  /* real-time signals with a handler, as a mask */
	uint32_t futex_waiters[1024];          /* sleepers by hash of address: 0 = FUTEX_WAKE needs no exit */
	uint32_t rseq_on;                      /* 1 = rseq(2) is there for this program */
	uint32_t ppid_asked;                   /* how often `ppid` was told (approximate); the LibOS's */
	uint32_t futex_outside;                /* 1: has mapped shared what others than the family can map */
	uint32_t ppid_stale;                   /* 1: nobody has asked for long, `ppid` is not kept */
	uint32_t batch, dgram;                 /* 1 = there is a struct kx_batch; a struct kx_dgram (kx_dgram.h) */
	uint64_t batched;                      /* of local_calls, reads and writes of sockets */
	uint32_t fpage_seq, pad;               /* odd while the monitor changes `fpage` */
	struct kx_fpage {
		uint64_t page; /* address / 4096; 0 = nothing */
		uint64_t ino, dev, off;
	} fpage[KX_FPAGES]; /* by page % KX_FPAGES: which page of which file lies there, mapped shared (kx_fnap.h) */
};

/*
 * Sleepers on words of shared memory, by the words' place in their page: it is the same in all mappings of it. So 0
 * means that a FUTEX_WAKE needs no exit, unless somebody outside the family, who does not count, can wait for the word.
 */
#define KX_FUTEX_SLOTS 1013
#define KX_FNAPS 64
struct kx_futexes {
	uint32_t waiters[KX_FUTEX_SLOTS];
	uint32_t outside;   /* 1: memory of the family's own may have been given to others, or come from them */
	uint32_t cpus;      /* that the family was started with */
	uint32_t exit_cost; /* TSC ticks, the shortest exit seen of late */
	/* Not of futexes: monitor/core/sizes.h. */
	uint32_t sizes_asked;    /* 1: somebody asks how long files are, again and again */
	uint32_t mapped_outside; /* 1: a member has mapped shared what others than the family can map */
	uint64_t resized;        /* calls that began since then and may change that */
	uint64_t ended;          /* grows when a member learns that a process has ended */
	uint64_t pad;
	struct kx_fnap {
		uint64_t word;   /* KX_FNAP_*; its low half is the futex */
		uint64_t key[3]; /* for what the thread waits */
		uint64_t ended;  /* the count above, when it began */
		uint64_t until;  /* CLOCK_MONOTONIC in ns; the monitors' */
		uint64_t pad[2];
	} nap[KX_FNAPS]; /* who sleeps for a moment before he does by the host's futex: kx_fnap.h */
};

/*
 * Batched socket I/O: what epoll_wait fetched for the reads that follow, and what waits to be sent. All of it is the
 * program's own; the monitor keeps its own account and looks at `rx`, `head` and the records alone.
 */
#define KX_BATCH_FDS 16384         /* descriptors from here on are not batched            */
#define KX_BATCH_SOCKS 0x4000      /* offset of struct kx_bsock[KX_BATCH_FDS]             */
#define KX_BATCH_CTX 0x100000      /* offset of the first context; each has 1 MiB         */
#define KX_BATCH_CTXS 48           /* threads that can batch at a time                    */
#define KX_BATCH_WRITES_AT 0xe00   /* offset of struct kx_bwrite[KX_BATCH_WRITES] in a context */
#define KX_BATCH_WRITES 4          /* files that a context's thread writes to             */
#define KX_BATCH_SEEKS_AT 0xe80    /* offset of struct kx_bseek[KX_BATCH_SEEKS] in a context */
#define KX_BATCH_SEEKS 8           /* files that a context's thread asks the length of */
#define KX_BATCH_TX 0x1000         /* offset of the ring of records in a context          */
#define KX_BATCH_TX_SIZE 0x40000   /* its bytes                                           */
#define KX_BATCH_LOCALS 0x50000    /* offset of struct kx_bname[KX_BATCH_PEERS_MAX]       */
#define KX_BATCH_AHEAD 0x60000     /* offset of struct kx_bahead                          */
#define KX_BATCH_PEERS 0x70000     /* offset of struct kx_bname[KX_BATCH_PEERS_MAX]       */
#define KX_BATCH_RX 0x80000        /* offset of what was fetched                          */
#define KX_BATCH_RX_SIZE 0x80000   /* its bytes                                           */
#define KX_BATCH_SEND_MAX 0x10000  /* longest record's data                               */
#define KX_BATCH_FILE_MAX 0x100000 /* of a file                                          */
#define KX_BATCH_FILES 8           /* that a context's thread sends from                  */
#define KX_BATCH_PEERS_MAX 1024    /* addresses that a context knows, of each kind        */
#define KX_AHEAD_MAX 512           /* events that a wait may be told ahead                */
#define KX_AHEAD_ZEROS 4           /* waits that may be told that there are none          */

/* A socket; `owner` is the context (number + 1) whose thread may use it. */
struct kx_bsock {
	uint64_t rx;  /* KX_RX_*: how much of `buf` was read; changed by compare-and-swap alone */
	uint32_t buf; /* offset from KX_BATCH_BASE */
	uint32_t owner;
	uint32_t credit; /* room in the socket's send buffer, less what was queued: see KX_BATCH_COST */
	uint32_t gen;    /* of the descriptor's use: records carry it */
	uint32_t epoch;  /* low half of kx_bctx.exits as `rx` was set */
	uint32_t turn;   /* ... of kx_bctx.turn; `credit` holds in it and in the next */
	uint32_t fresh;  /* 1: in no epoll yet, and may be put into one by a record */
	uint32_t tcp;    /* 1: it is TCP and open: options can be set by records */
	int32_t epoll;   /* it is registered there and in no other, and records may change that; KX_EPOLL_* */
	uint32_t pad;
};
#define KX_EPOLL_UNKNOWN (-1)
#define KX_EPOLL_NONE (-2)                              /* in none, and a record may put it into one */
#define KX_RX_POS(w) ((uint32_t)(w)&0xffffff)           /* bytes that were read */
#define KX_RX_END(w) ((uint32_t)((w) >> 24) & 0xffffff) /* of so many */
#define KX_RX_VALID (1ull << 48)
#define KX_RX_SHORT (1ull << 49) /* nothing was left behind: reads may come out short */
#define KX_RX_EMPTY (1ull << 50) /* ... and one more may find nothing (EAGAIN) */
#define KX_RX_EOF (1ull << 51)   /* the end comes behind it */
#define KX_RX_GEN(n) ((uint64_t)((n)&0xfff) << 52)
/* What len bytes may take of a send buffer: they lie in packets of their own in the worst case. */
#define KX_BATCH_COST(len) (2 * (len) + 2304)

/* An address: of those accepted, by descriptor, KX_BATCH_LOCALS; of the other sides, KX_BATCH_PEERS. */
struct kx_bname {
	int32_t fd; /* -1 = none */
	uint32_t gen, len, pad;
	uint8_t addr[32];
};

/* A thread's. `head` is the LibOS's, all else the monitor's to change; both grow for ever. */
struct kx_bctx {
	uint64_t head, tail; /* bytes of the ring written, sent */
	uint64_t exits;      /* hypercalls of this thread */
	uint64_t mark;       /* head at the last of them */
	uint64_t turn;       /* grows with each wait that brings events */
	uint64_t said;   /* head behind the last record that the other side of a connection may learn of; the LibOS's */
	int32_t epoll;   /* the last wait's, -1 = it is closed */
	int32_t drained; /* a listener that had no further connection, -1 = none */
	uint64_t drained_at; /* kx_batch.calls then */
	struct kx_bfile {
		uint64_t size;
		int32_t fd;     /* -1 = none */
		uint32_t uses;  /* counted by the LibOS */
		uint64_t calls; /* kx_batch.calls as `size` was looked at */
	} file[KX_BATCH_FILES];
	int32_t accepted;     /* the connection that it has accepted last, -1 = none */
	uint32_t accepted_at; /* low half of exits then */
	uint64_t news;        /* `exits` as the program last learnt something without an exit */
};

/* A file that its thread may write to by records, while kx_batch.calls is `calls`. */
struct kx_bwrite {
	int32_t fd;    /* -1 = none */
	uint32_t uses; /* counted by the LibOS */
	uint64_t calls;
};

/* A file whose position is its end: it holds while nothing of kx_batch.calls and .ticket, kx_futexes.resized has changed. */
struct kx_bseek {
	int64_t size;
	uint64_t calls, ticket, resized;
	int32_t fd;    /* -1 = none */
	uint32_t uses; /* counted by the LibOS */
};
/*
 * What a thread's next wait would bring, looked at by the exit of another call. It holds while kx_batch.calls is what it
 * was then. `state` is changed by exchange alone.
 */
struct kx_bahead {
	uint64_t calls;
	uint32_t state; /* KX_AHEAD_* */
	int32_t epoll;
	uint32_t nr;
	uint32_t spoilt;       /* the LibOS's: a record since then has changed what the answer is */
	uint32_t zeros;        /* the LibOS's, counted down from KX_AHEAD_ZEROS */
	int32_t fresh;         /* the connection that this call accepted, in no epoll yet; -1 = none */
	uint32_t fresh_events; /* all that it was ready for */
	uint32_t pad;
	struct kx_bevent {
		uint64_t data;
		uint32_t events; /* 0: taken out */
		int32_t fd;      /* a batched socket, or -1 */
	} event[KX_AHEAD_MAX];
};
#define KX_AHEAD_SHUT (1u << 27) /* in events, the LibOS's: shut down since then */
#define KX_AHEAD_NONE 0u
#define KX_AHEAD_OFFERED 1u
#define KX_AHEAD_TAKEN 2u /* by the LibOS: the program has been told */

/* In the ring, at multiples of its size, followed by the data; one with fd = -1 fills the ring's end. */
struct kx_brec {
	int32_t fd;
	uint32_t gen, len, flags; /* flags of send(2) */
	uint64_t ticket, pad;     /* order among contexts */
};
#define KX_BREC_FILE 0x80000000u  /* in flags: the data is a kx_bfrom, its length is `len` */
#define KX_BREC_CLOSE 0x40000000u /* close(fd); no data */
#define KX_BREC_ADD 0x20000000u   /* epoll_ctl(EPOLL_CTL_ADD, fd): the data is a kx_badd */
#define KX_BREC_DEL 0x08000000u   /* epoll_ctl(EPOLL_CTL_DEL, fd): of kx_badd, `epoll` */
#define KX_BREC_MOD 0x04000000u   /* epoll_ctl(EPOLL_CTL_MOD, fd): the data is a kx_badd */
#define KX_BREC_OPT 0x10000000u   /* setsockopt(fd): the data is a kx_bopt, which can't fail */

#define KX_BREC_SHUT 0x01000000u  /* shutdown(fd, SHUT_WR); no data */
#define KX_BREC_NAME 0x00400000u  /* what was accepted ahead is fd from here on: the data is a kx_bfd */
#define KX_BREC_WRITE 0x02000000u /* write(fd) of a file that the context has in its kx_bwrite[] */

struct kx_bfrom {
	uint64_t offset;
	int32_t fd;
	uint32_t len;
};

struct kx_badd {
	uint64_t data;
	uint32_t events;
	int32_t epoll;
};

struct kx_bfd {
	uint32_t serial, index; /* of kx_accept */
};

struct kx_bopt {
	int32_t level, name, value, pad;
};
/* By number, of 32 each: TCP's and the socket's that always can be set; values are 1 to KX_BOPT_MAX, any where that is 0. */
#define KX_BOPT_TCP (1u << 1 | 1u << 3 | 1u << 4 | 1u << 5 | 1u << 6) /* NODELAY, CORK, KEEPIDLE, KEEPINTVL, KEEPCNT */
#define KX_BOPT_SOCKET (1u << 9)                                      /* KEEPALIVE */
#define KX_BOPT_MAX(level, name) ((level) != 6 ? 0 : (name) == 6 ? 127 : (name) == 4 || (name) == 5 ? 32767 : 0)
#define KX_BOPT_NONBLOCK 0x10000 /* as level: ioctl(FIONBIO) */
static inline int kx_bopt_fits(const struct kx_bopt *o)
{
	int max = KX_BOPT_MAX(o->level, o->name);
	uint32_t set = o->level == 6 /* IPPROTO_TCP */  ? KX_BOPT_TCP
		       : o->level == 1 /* SOL_SOCKET */ ? KX_BOPT_SOCKET
							: 0;
	if (o->level == KX_BOPT_NONBLOCK)
		return 1;
	return o->name >= 0 && o->name < 32 && set >> o->name & 1 && (!max || (o->value >= 1 && o->value <= max));
}

struct kx_batch {
	uint64_t ticket;
	uint32_t selfish, pad; /* 1: this process has connected sockets, perhaps with each other */
	uint64_t calls;        /* hypercalls of all threads */
	uint64_t pad2[5];
	uint8_t ctx_of[KX_AREA_MAX]; /* by kx_thread.index: context + 1, 0 = none */
};

/* First bytes of the LibOS image: where the monitor enters it and what it must know of its text. */
struct kx_libos_header {
	uint64_t magic; /* KX_LIBOS_MAGIC */
	uint64_t version;
	uint64_t entry;                /* system call: rax nr, rcx return address, r11 where to resume */
	uint64_t exit;                 /* return to the program by the frame; rsp = frame */
	uint64_t exit_begin, exit_end; /* in between: no state but the frame's; restart at `exit` */
	uint64_t work;                 /* as exit, but look at kx_thread.work first with C code */
	uint64_t uaccess_begin, uaccess_end, uaccess_fixup; /* a fault in between continues at fixup */
	uint64_t flags_saved;                               /* from here on the frame holds the program's flags */
	uint64_t image_end;
	uint64_t cpuid;             /* entry of a `cpuid`: rbx address after it, rdx where to resume */
	uint64_t cpuid_flags_saved; /* as flags_saved, of this entry */
	uint64_t touch; /* rdi: addresses to be read, with bit 0 set written, up to a 0; then KX_PORT_RETURN */
	uint64_t tsc;   /* as exit, if this time stamp counter is rbx or up to 2^40 more; else KX_PORT_RETURN */
};
#define KX_LIBOS_MAGIC 0x31734f62694c584bull /* "KXLibOs1" */

/*
 * Clock parameters, written by the monitor under `seq` (odd while writing), read by vDSO and LibOS:
 * ns = base_ns[c] + ((tsc - tsc_base) * mult >> 32).
 */
struct kx_vvar {
	uint32_t seq, valid;
	uint64_t tsc_base, mult;
	uint64_t max_delta; /* TSC ticks after which a reader asks the monitor (clock_gettime hypercall) */
	int64_t real_ns, mono_ns, boot_ns, tai_ns;
	uint64_t raw_tsc_base, raw_mult;
	int64_t raw_ns;
	uint32_t cpu, pad;
	struct {
		int64_t sec, nsec;
	} fast[2]; /* real_ns and mono_ns (index = clock number) once more, so that readers need not divide */
};

/*
 * What `cpuid` says on this pVM's vCPUs, as KVM has it: an entry with KX_CPUID_INDEXED is for its index (ecx) alone,
 * any other for all of them. The first that fits holds; where none does, ask the instruction.
 */
struct kx_cpuid_entry {
	uint32_t function, index, flags;
	uint32_t eax, ebx, ecx, edx;
	uint32_t pad;
};
#define KX_CPUID_INDEXED 1u
#define KX_CPUID_MAX 127
struct kx_cpuid {
	uint64_t n; /* entries in use */
	uint64_t pad[3];
	struct kx_cpuid_entry entry[KX_CPUID_MAX];
};

/* One patched site: the window of original code that became a jump, and its trampoline. */
struct kx_site {
	uint64_t start;    /* first byte of the window (where the 5-byte jmp is) */
	uint64_t tramp;    /* first byte of the trampoline */
	uint8_t len;       /* bytes of the window that were overwritten: 5..15 */
	uint8_t tramp_len; /* bytes of the trampoline */
	uint8_t sys_off;   /* offset from start of the original `syscall` or `cpuid` (may be >= len) */
	uint8_t n : 7;     /* pairs in use below */
	uint8_t cpuid : 1; /* the instruction at sys_off is a `cpuid`, not a `syscall` */
	struct {
		uint8_t win, tramp; /* instruction boundary: offset in the window -> offset in the trampoline */
	} map[6];
};

_Static_assert(sizeof(struct kx_frame) == 19 * 8, "entry.S pushes 19 words");
_Static_assert(__builtin_offsetof(struct kx_thread, entry) == KX_T_ENTRY, "asm");
_Static_assert(__builtin_offsetof(struct kx_thread, frame_top) == KX_T_FRAME_TOP, "asm");
_Static_assert(__builtin_offsetof(struct kx_thread, frame) == KX_T_FRAME, "asm");
_Static_assert(__builtin_offsetof(struct kx_thread, user_rsp) == KX_T_USER_RSP, "asm");
_Static_assert(__builtin_offsetof(struct kx_thread, resume) == KX_T_RESUME, "asm");
_Static_assert(__builtin_offsetof(struct kx_thread, work) == KX_T_WORK, "asm");
_Static_assert(__builtin_offsetof(struct kx_thread, call) == KX_T_CALL, "asm");
_Static_assert(__builtin_offsetof(struct kx_thread, cpuid_entry) == KX_T_CPUID, "asm");
_Static_assert(sizeof(struct kx_cpuid) == 4096, "one page");
_Static_assert(__builtin_offsetof(struct kx_futexes, nap) == 4096, "a page that is touched only when somebody naps");
_Static_assert(sizeof(struct kx_futexes) == 8192, "whole pages");
_Static_assert(sizeof(struct kx_thread) <= KX_AREA_ACTIONS, "actions come after it");
_Static_assert(sizeof(struct kx_site) == 32, "KX_SITES_MAX of them fit 1 MiB");
_Static_assert(sizeof(struct kx_shared) <= 0x10000, "fits its 64 KiB");
_Static_assert(sizeof(struct kx_bctx) <= KX_BATCH_WRITES_AT, "files come after it");
_Static_assert(KX_BATCH_WRITES_AT + KX_BATCH_WRITES * sizeof(struct kx_bwrite) <= KX_BATCH_SEEKS_AT &&
		       KX_BATCH_SEEKS_AT + KX_BATCH_SEEKS * sizeof(struct kx_bseek) <= KX_BATCH_TX,
	       "the ring comes after them");
_Static_assert(KX_BATCH_TX + KX_BATCH_TX_SIZE <= KX_BATCH_LOCALS &&
		       KX_BATCH_LOCALS + KX_BATCH_PEERS_MAX * sizeof(struct kx_bname) <= KX_BATCH_AHEAD &&
		       KX_BATCH_AHEAD + sizeof(struct kx_bahead) <= KX_BATCH_PEERS,
	       "between what is sent and the names");
_Static_assert(KX_BATCH_PEERS + KX_BATCH_PEERS_MAX * sizeof(struct kx_bname) <= KX_BATCH_RX, "before what was fetched");
_Static_assert(sizeof(struct kx_batch) <= KX_BATCH_SOCKS, "sockets come after it");
_Static_assert(KX_BATCH_SOCKS + KX_BATCH_FDS * sizeof(struct kx_bsock) <= KX_BATCH_CTX, "contexts come after them");
_Static_assert(sizeof(struct kx_brec) == 32, "records are aligned to it");
#endif
#endif
