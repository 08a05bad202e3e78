/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest memory: the 512 GiB space, what is mapped in it, KVM memory slots, and the guest's page tables.
 *
 * The monitor reserves the space once (PROT_NONE) and maps guest memory into it with the host's own calls; KVM
 * follows through its MMU notifiers. Read and write protection is the host mapping's; execute protection is the
 * NX bit of the guest's leaves. The first-level rule: a present page-directory entry implies a memory slot behind
 * all of its 2 MiB, so an access can never become an MMIO exit. A directory entry is a 2 MiB NX leaf while nothing
 * in it is executable, and a table of 4 KiB leaves from the first executable page on.
 *
 * The space ends at 512 GiB, so that it fits the physical addresses of every processor, and is one top-level entry. What
 * does not fit, and what is asked for by an address above, gets the high zone: from there to 32 TiB, reserved when it is
 * first needed (to 16 TiB where pvm.base is not 0). Where the processor's physical addresses end before that, memory does,
 * too; behind them can be nothing but the rest of a PROT_NONE mapping that began below.
 *
 * All functions take pvm.mm_lock themselves. Addresses and lengths are bytes. Unless said otherwise they return 0
 * or -errno with mmap(2)'s meanings; the guest controls every argument.
 */
#ifndef KX_GMEM_H
#define KX_GMEM_H
#include "pvm.h"

struct gmem_region {
	uint64_t start, end; /* page-aligned, [start, end) */
	int prot;            /* PROT_* as the guest asked */
	int flags;           /* MAP_SHARED, MAP_ANONYMOUS, MAP_STACK... and GMEM_TRAMP */
	uint32_t origin;     /* under a policy: which mapping of a file it comes from; 0 = not noted */
};
#define GMEM_TRAMP 0x40000000    /* trampolines: the program can't name them */
#define GMEM_OWN_TEXT 0x02000000 /* what was GMEM_TEXT, and is mapped privately by now: the program wanted to write */
#define GMEM_STILL 0x04000000    /* of a file that nobody tells anything by: libc's own tables */
#define GMEM_CLEAN 0x08000000    /* with origin: nobody could write to it since it was mapped */
#define GMEM_DATA 0x10000000     /* writable part of an image, by its loader: not one that follows its file */
#define GMEM_TEXT 0x20000000     /* the family's patched copy of a file's text (text.h), MAP_PRIVATE to the program */

/* Of no program's: trampolines, the LibOS's memory. */
static inline bool gmem_own(const struct gmem_region *r) { return r->flags & GMEM_TRAMP; }

/* Reserve the space; make page tables, descriptor tables and the LibOS's regions. Needs pvm.vm_fd. */
int gmem_init(struct kx_err *err);

/* Map part of a file that the family shares above what programs can name. fd -1: nothing of the family's any more. */
int gmem_map_family(uint64_t gva, uint64_t len, int fd, uint64_t off);

/* In a child: give the new VM the slots that the parent's had; merge: as few as can be, which changes what is noted. */
int gmem_fork_child(bool merge);
/* In a child, first of all: thread areas of its own, empty (that at `own` is used), in place of the parent's; and a LibOS. */
int gmem_fork_areas(uint64_t own);
/* In a child whose parent has used MADV_DONTFORK: nothing is mapped any more where the host has nothing. */
void gmem_fork_holes(void);
/* After a fork, on both sides: what will be written soon gets pages of its own, all at once instead of by faults. */
void gmem_fork_populate(uint64_t sp);

/* Let KVM note which pages of the program's are written, and tell of those since the last time (with pvm.mm_lock); last: it need
 * not note them anew. 0 or -errno. For written.c. */
int gmem_log_writes(bool on);
int gmem_written(bool last, void (*fn)(void *arg, uint64_t start, uint64_t end), void *arg);

/* As mmap(2). Executable private file mappings get their `syscall` sites patched. */
int64_t gmem_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, uint64_t off);
int gmem_munmap(uint64_t addr, uint64_t len);
int gmem_mprotect(uint64_t addr, uint64_t len, int prot);
int64_t gmem_mremap(uint64_t old, uint64_t old_len, uint64_t new_len, int flags, uint64_t new_addr);
/* The new (or, when it can't be had, the old) break. */
uint64_t gmem_brk(uint64_t addr);
void gmem_set_brk(uint64_t start);
/* The program will have [start, end) before long: one memory slot for all of it. */
void gmem_expect(uint64_t start, uint64_t end);
/* Address for a PIE (first call) or an interpreter (later calls): random, free, 2 MiB-aligned; 0 = none. */
uint64_t gmem_place_exec(uint64_t len);
/* Where a stack of so many bytes, its guard included, may end: near the libraries. 0: too large for that. */
uint64_t gmem_place_stack(uint64_t len, uint64_t random);
/* Attach a SysV segment: as shmat(2), and detach by its address. */
int64_t gmem_shmat(int shmid, uint64_t addr, int flags);
int gmem_shmdt(uint64_t addr);

/* First region that ends above gva. False when there is none. */
bool gmem_query(uint64_t gva, struct gmem_region *out);
/* The same for who holds pvm.mm_lock. */
bool gmem_query_locked(uint64_t gva, struct gmem_region *out);
/* The program has memory that others may write to; but for what is marked so. */
bool gmem_is_seen(void);
void gmem_mark_still(uint64_t start);
/* True when all of [gva, gva+len) is mapped (any protection). */
bool gmem_mapped(uint64_t gva, uint64_t len);
/* Make sure that the hardware can reach a mapped address. 1: something was added, retry; 0: nothing to add. */
int gmem_populate(uint64_t gva);
/*
 * Of KylinX's own memory from KX_AREA_BASE up to KX_PIPE_BASE: the 2 MiB around gva are there from now on, zeros at first, for
 * the host and the guest. Until then they are a reservation, which a host that promises no more memory than it has
 * (vm.overcommit_memory = 2) does not count. 0 or -errno; nothing of it may be touched then. Takes pvm.mm_lock.
 */
int gmem_sys_open(uint64_t gva);
/* The area of a thread with that index is there. Any thread, no lock. */
bool gmem_area_is_open(uint64_t index);
/* With pvm.mm_lock: images of files (admit.h) that no region is of any more are held no longer. It looks at all regions. */
void gmem_images_let_go(void);
/* Translate a program counter: inside a trampoline -> the original one; inside a patched window -> trampoline. */
uint64_t gmem_pc_to_original(uint64_t rip);
/* In the handler of a SIGBUS of the monitor's own: `at` is in a text that is being looked at, whose file was cut off. True: it can go
 * on, with zeros there. */
bool gmem_text_cut(const void *at);
uint64_t gmem_pc_to_resume(uint64_t rip);
/* In a trampoline of a `cpuid`, with registers changed already: it has to run on into the LibOS. */
bool gmem_pc_entering(uint64_t rip);
/* A single step of the program's that ended in a trampoline at rip is none that it would have made unpatched. */
bool gmem_pc_step_hidden(uint64_t rip);

/* Map one page of the monitor's own code, which the program can't have changed. Its address, or -errno. */
int64_t gmem_code(const void *code, size_t len);
/* Of which file, at which offset the memory at gva is where the host has another file for it: a region with GMEM_TEXT, or
 * with the copy that a policy was asked for. False when it is not. */
struct gmem_text_file {
	uint64_t dev, ino, off;
	char path[168];
};
bool gmem_text_file(uint64_t gva, struct gmem_text_file *out);

/* 2 MiB pages pay in this program: whoever shares them by a fork for long makes small ones of them. */
bool gmem_has_huge(void);
/* It has had so much that all further memory gets 2 MiB pages (whole.h). */
bool gmem_is_large(void);
/* Zeroed 4 KiB pages of the system region (page tables, vCPU blocks): guest physical address, 0 = none left. */
uint64_t gmem_sys_alloc(unsigned pages);
#define GMEM_SYS_VA(gpa) ((gpa)-KX_SYS_BASE + 0xffffffff80000000ull)
/* Offsets in the system region. */
#define GMEM_PML4 0x0000
#define GMEM_IDT 0x4000
#define GMEM_STUBS 0x5000 /* 16 bytes each: exception vector n */
#define GMEM_LSTAR 0x6000
#define GMEM_FIXED 0x7000 /* bytes: the end of these */
/* Bias of the ELF file[0..size) whose text from file offset off is mapped at gva: address = p_vaddr + bias. 0 or -errno. */
int gmem_load_bias(const uint8_t *file, uint64_t size, uint64_t off, uint64_t gva, uint64_t *bias);
#endif
