/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pVM: one VM in this process, its memory, its threads, and what the modules of the monitor share.
 *
 * One process holds exactly one pVM (struct pvm pvm). A guest thread is a host thread with a vCPU (struct thread);
 * the calling one's is `self`. Locks, in the order in which they are taken:
 *   pvm.mm_lock   the memory map, slots, page tables, patched sites (gmem.c, patch.c)
 *   pvm.thr_lock  the list of threads and the pool of vCPUs (thread.c)
 */
#ifndef KX_PVM_H
#define KX_PVM_H
#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include "../../abi/kx_abi.h"
#include "../../abi/kx_hcall.h"
#include "../../util/err.h"

/* Steps of a start: family, registry and trace; VM, memory and LibOS; namespaces and root; program; filter. */
enum { PVM_PREPARED, PVM_MADE, PVM_JAILED, PVM_LOADED, PVM_STARTED, PVM_BOOT_STEPS };

/* Begin of the names of threads that are the monitor's own and nobody sees. */
#define PVM_THREADS "kx-"

/* What `kylinx run` was told. Strings belong to the caller and live as long as the process. */
struct kx_volume {
	const char *src, *dst;
	bool ro;
};
/* --publish: a port of the host and the family's port that it leads to. */
struct kx_publish {
	const char *text; /* as listed: [IP:]PORT:PORT/tcp or /udp */
	int family;       /* AF_INET, AF_INET6; AF_UNSPEC = all addresses of both */
	uint8_t addr[16]; /* network order; zeros = all */
	uint16_t port, inner;
	bool udp;
};
/* Who answers hypercalls: by what pays (serve.c), by exits alone, by the service thread whenever it can. */
enum kx_io { KX_IO_AUTO, KX_IO_EXIT, KX_IO_POLL };
struct kx_config {
	const char *program; /* as typed; searched in PATH by the CLI */
	char **argv, **envp; /* NULL-terminated */
	uint64_t memory;     /* bytes of private writable memory that the program may have; 0 = unlimited */
	int cpus;            /* 0 = those of the host */
	const char *root;    /* --root: directory that becomes /; NULL = default view */
	struct kx_volume volumes[64];
	int nr_volumes;
	int io; /* enum kx_io */
	bool net_none, net_private;
	struct kx_publish publish[64];
	int nr_publish;
	const char *name;
	const char *policy; /* file, or "off"; NULL: what the user has set up (policy.h) */
	bool strace, stats;
	const char *strace_file, *stats_file; /* NULL = stderr */
	const char *log_level;
};

/* Where a thread is, for an update (update.h): out of the guest, perhaps in it, or waiting to be let in. */
enum { GATE_MONITOR, GATE_GUEST, GATE_PARKED };

#define SIG_STOP_NEVER 2 /* of a thread that no signal reaches: they are not even tried */

struct thread {
	struct thread *next;    /* pvm.threads, or the pool */
	struct kx_thread *area; /* host address of the thread's area */
	uint64_t area_gva;      /* its guest address */
	int index;              /* of the area and vCPU */
	int vcpu_fd;
	pid_t vcpu_pid; /* the process in which vcpu_fd was made */
	bool had;       /* the vCPU is not new: another thread has run it */
	struct kvm_run *run;
	bool sregs_known; /* run->s.regs.sregs is what the vCPU has, or will have (vcpu_sregs) */
	pthread_t pthread;
	pid_t tid; /* host thread id = guest thread id */
	pid_t pid; /* of its process: other than pvm.pid in a child of vfork */
	bool live;
	bool at_user;             /* the vCPU stands in the program's code, by no way through the LibOS */
	uint64_t clear_tid;       /* guest address, 0 = none */
	uint64_t robust_head;     /* guest address of struct robust_list_head, 0 = none */
	volatile int robust_host; /* the host's kernel has it */
	/* Signals (signal.c). `acc` is filled by the host signal handler on this thread only. */
	volatile int acc_signo; /* accepted, not yet handed to the LibOS; 0 = none */
	siginfo_t acc_info;
	volatile int sig_stop; /* 1: blocking calls must not sleep (a signal waits to be delivered) */
	volatile int kicked;
	uint64_t hmask;            /* what this host thread blocks while no signal is accepted (kernel format) */
	uint64_t held;             /* signals accepted and not handed over yet, as a set; see put_back() */
	siginfo_t held_info[64];   /* of signal i + 1 */
	bool given_to_thread;      /* what was handed over is for this thread, not for the process */
	uint64_t trapno, err, cr2; /* of the fault being turned into a signal */
	uint64_t fault_rip;        /* last fault that looked like nothing, and how often */
	int fault_repeat;
	struct hcall *hcall; /* call in progress, NULL outside; for strace and faults */
	uint64_t last_hcall; /* number of the last one; with no nr_hcalls, nothing */
	uint64_t nr_hcalls, nr_exits, nr_slow, nr_faults;
	/* The CPU number that it has to itself (rseq.c). */
	int seat;                 /* number + 1, 0 = none or robbed of it */
	bool seat_run;            /* it is marked as running there */
	volatile int seat_kicked; /* by the signal handler */
	int seat_given, seat_restart;
	uint32_t seat_gen;
	uint64_t seat_cpus[16]; /* affinity, as far as known */
	struct thread *seat_next;
	struct kvm_xsave *xsave;
	struct scratch *scratch; /* of a child of vfork (keeper.h) */
	struct rlimit limit[16]; /* of such a child: those that the host does not know (sys_proc.c) */
	bool asked_keeper;       /* such a child has asked the keeper for something */
	int family_slot;         /* of such a child (family.c) */
	/* Who else runs on this thread's host stack or storage: a child of vfork and its struct thread, a thread that reads
	 * from procfs. The kernel clears the numbers. */
	int vfork_tid, private_tid;
	uint32_t woken_ns; /* so long its last futex wait was, to be woken; 0: too long for a nap (futex_nap.c) */
	struct thread *vfork_child;
	int gate;
	bool tss_available; /* its TSS is called available, not busy: gate_refused() */
	bool gate_call;     /* the guest stands at a hypercall that was made: its frame is whole */
};

struct pvm {
	pid_t pid;
	int exe_fd; /* this program, for exec; -1 where that cannot be */
	int log_fd, trace_fd, family_fd;
	int registry_fd;            /* holds the family's entry in the registry; -1: it has none */
	int kvm_fd, vm_fd, proc_fd; /* monitor's own, at or above fd_limit; proc_fd: O_PATH of a procfs mount */
	uint8_t *base;              /* host address of guest address 0 */
	uint64_t high_end;          /* end of the high zone; 0: there is none (gmem.h) */
	uint64_t high_memory;       /* end of what of it can be more than PROT_NONE */
	unsigned fd_limit;          /* descriptors >= this are the monitor's: EBADF to the guest */
	unsigned fd_max;            /* what fd_limit can grow to: the hard limit that the guest sees */
	const struct kx_config *cfg;
	struct kx_shared *shared; /* host address of KX_BOOT_BASE */
	struct kx_vvar *vvar;
	pthread_mutex_t mm_lock, thr_lock;
	struct thread *threads;
	int nr_threads, next_index;
	int nr_execs; /* of this process, and of those that it was forked from */
	int kvm_run_size;
	struct kvm_cpuid2 *cpuid;
	uint64_t xcr0;
	bool shadow_paging; /* KVM keeps page tables of its own beside the guest's: a fault is dear, and maps neighbours */
	unsigned xsave_size;
	struct kx_libos_header libos; /* copy of the image's header */
	/* program (load.c) */
	char comm[16];
	uint64_t arg_start, arg_end, env_start, env_end, stack_top, brk_start;
	unsigned auxv_len;
	cpu_set_t cpus; /* with --cpus: those that the program may know of, by the host's numbers */
	bool no_new_privs;
	bool rseq_on; /* the program may have restartable sequences */
	int exit_status;
	bool args_shown;                    /* the host's cmdline and environ of this process are the program's */
	bool is_child;                      /* forked, not started by the user: writes no report of --stats */
	bool has_family;                    /* has or had a parent or children in its family */
	uint64_t nr_forks, nr_forks_ahead;  /* the latter by spares */
	uint64_t nr_whole;                  /* 2 MiB made of small pages (whole.h) */
	uint64_t nr_polled, nr_poll_failed; /* calls answered without an exit; requests that nobody took */
	uint64_t nr_flushes;                /* of all that KVM has of the guest's page tables (gmem_tables.c) */
	uint64_t nr_enosys, nr_slots, nr_sites, nr_sites_found, nr_cpuid_sites, nr_cpuid_found;
	uint64_t start_ns;
	uint64_t boot_ns
		[PVM_BOOT_STEPS]; /* CLOCK_MONOTONIC at the end of each step of `kylinx run`; 0 = not done here */
	/* Last, what is long: the rest is one page. */
	uint64_t hcall_count[1280], enosys_count[1024];
	char exe[4096]; /* absolute path of the program, for /proc/self/exe */
	uint8_t auxv[512];
} __attribute__((aligned(4096)));

extern struct pvm pvm;
extern __thread struct thread *self;

/* The process that the caller belongs to. */
static inline pid_t my_pid(void) { return self && self->pid ? self->pid : pvm.pid; }
/* Signal actions of t's process, in guest memory. */
static inline struct kx_sigaction *actions_of(struct thread *t)
{
	return t->area->vfork ? (struct kx_sigaction *)((uint8_t *)t->area + KX_AREA_ACTIONS) : pvm.shared->sigaction;
}

/* Host address of a guest address that was checked already. The base may be NULL, to which C can't add anything. */
static inline void *gva_ptr(uint64_t gva) { return (void *)((uintptr_t)pvm.base + gva); }
/* Where t's registers are while it is in a call, in guest memory. */
static inline uint64_t frame_gva(const struct thread *t)
{
	return t->area_gva + KX_AREA_SIZE - sizeof(struct kx_frame);
}
static inline struct kx_frame *frame_of(const struct thread *t) { return gva_ptr(frame_gva(t)); }
static inline bool in_libos(uint64_t rip) { return rip >= KX_LIBOS_BASE && rip < KX_VDSO_BASE; }

/* ---- guest memory from handlers (gmem.c) --------------------------------------------------------------- */
/* True when [gva, gva+len) lies in what a program may name: no wrap, below KX_USER_END or in the high zone (gmem.h) once
 * that is there. */
static inline bool gva_ok(uint64_t gva, uint64_t len)
{
	return gva < KX_USER_END ? len <= KX_USER_END - gva
				 : gva >= KX_SPACE_SIZE && gva < pvm.high_end && len <= pvm.high_end - gva;
}
/* The same, or all of it in the vDSO, which a program may name as the source of what it writes (ldd prints its name). */
static inline bool gva_readable(uint64_t gva, uint64_t len)
{
	return gva_ok(gva, len) || (gva - KX_VDSO_BASE < KX_VVAR_BASE - KX_VDSO_BASE && len <= KX_VVAR_BASE - gva);
}
/* Copy between host memory and guest memory. Return 0 or -EFAULT; never raise a signal; any guest address is safe. */
int guest_read(void *dst, uint64_t gva, size_t len);
int guest_write(uint64_t gva, const void *src, size_t len);
/* The same, for an update alone, which knows what it writes: written.h is not told of it. */
int guest_put(uint64_t gva, const void *src, size_t len);
/* 1: one of the words of len bytes, a multiple of 32, at a multiple of 8 is an address in [from, from + span); 0: none is; -EFAULT. */
int guest_find(uint64_t gva, size_t len, uint64_t from, uint64_t span);
/* An aligned word from *old to new. 0; -EAGAIN: it is something else, now in *old; -EFAULT. */
int guest_swap(uint64_t gva, uint32_t *old, uint32_t new);
/* Copy a string with its NUL. Returns its length (without NUL), -EFAULT, or -ENAMETOOLONG when none within max. */
ssize_t guest_read_str(char *dst, uint64_t gva, size_t max);

/* Raw host call: -errno on failure, never restarted. The blocking form also returns -EINTR at once when a
 * signal waits for this thread (no window between the check and the sleep). */
long host_call(long nr, long a, long b, long c, long d, long e, long f);
#define HOST_NOT_BEGUN (-4001) /* in host.S, too */
long host_call_blocking(long nr, long a, long b, long c, long d, long e, long f);
static inline pid_t my_tid(void) { return (pid_t)host_call(SYS_gettid, 0, 0, 0, 0, 0, 0); }
#define HC6(nr, a, b, c, d, e, f) host_call(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define HB6(nr, a, b, c, d, e, f) \
	host_call_blocking(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

/* Move a descriptor of the monitor's out of the guest's range (close-on-exec). Takes ownership of fd also on
 * failure. Returns the new number or -errno. */
int fd_hide(int fd);
/* The same for a descriptor that stays: *where (static storage) follows when the guest's range grows. */
int fd_keep(int *where, int fd);
/* May fd, made just now or asked for, be the guest's? Moves the monitor's own further up when it is near them. */
bool fd_admit(int fd);
/* Give the guest its full range. Before the process gets a second thread: descriptors that are in use can't move.
 * 0 or -errno. */
int fd_grow(void);
/* The log goes where the program's standard streams go. Once none of them is what the log's copy is, and that is a pipe or
 * a socket, whose reader would wait for an end that only we keep open, there is no log any more. */
void log_follow(void);
/* Around a call that makes a descriptor for the monitor: it must not fail because the guest has used up its own.
 * May be nested. forget: after exec or the end of a child of vfork, which had the same thread-local storage. */
void fd_limit_lift(void);
void fd_limit_drop(void);
void fd_limit_forget(void);
/* The guest's own limit while it is lifted. */
void fd_limit_kept(struct rlimit *out);
void fd_limit_fork_lock(void);
void fd_limit_fork_unlock(void);

/* ---- the run of a pVM ----------------------------------------------------------------------------------- */
/* Make the pVM in this process and run the program to its end. Returns only on failure (err says why); on
 * success the process exits as the program did. */
int pvm_run(const struct kx_config *cfg, struct kx_err *err);
/* The same as a new member of a running family: what the host's side opened for it. The descriptors become the pVM's. */
struct kx_join {
	int member;      /* pidfd of a member, whose namespaces are entered */
	int member_proc; /* its directory in /proc */
	int family, registry, proc;
	int update[2];               /* -1: it has none */
	int policy;                  /* -1: it has none */
	uint64_t ipc_dev, ipc_ino;   /* the IPC namespace that must be reached */
	const struct rlimit *limits; /* 16: no hard limit may be above */
};
int pvm_join(const struct kx_config *cfg, const struct kx_join *join, struct kx_err *err);
/* End the whole process now with the program's status (as exit_group). */
_Noreturn void pvm_exit_group(int status);
/* End it as if killed by signal sig (default action), so that the parent's wait status says so. */
_Noreturn void pvm_die_by_signal(int sig);
/* In a forked child, before it has a VM: a LibOS of its own where the host can write to its parent's. 0 or -errno. */
int pvm_libos_apart(void);
/* In a forked child: it is not ending, though its parent may have been at that moment. */
void pvm_fork_child(void);
/* A broken guest (not a host error): log reason, die by SIGKILL-like status 125. */
__attribute__((format(printf, 1, 2))) _Noreturn void pvm_panic(const char *fmt, ...);
#endif
