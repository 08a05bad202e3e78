/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of gmem share: gmem_regions.c, gmem.c (mappings), gmem_move.c (mremap), gmem_tables.c (slots, page tables), gmem_fork.c, gmem_text.c
 * (patched texts), gmem_origin.c (policy). All of it with pvm.mm_lock held. */
#ifndef KX_GMEM_PRIV_H
#define KX_GMEM_PRIV_H
#include "../arch/x86_64/patch.h"
#include "gmem.h"
#include "text.h"

#define PAGE 4096ull
#define MiB (1ull << 20)
#define GiB (1ull << 30)
#define HUGE (2 * MiB)
#define HUGE_ALONE (32 * MiB) /* a mapping that gets 2 MiB pages by its own size */
#define ALIGN_UP(x, a) (((x) + (a)-1) & ~((a)-1))
#define ALIGN_DOWN(x, a) ((x) & ~((a)-1))

/* ---- gmem_regions.c ---- */
extern struct gmem_region *regions; /* sorted */
extern size_t nr_regions;
/* Index of the first region that ends above addr. */
size_t region_find(uint64_t addr);
/* Room for so many more. 0 or -ENOMEM. */
int region_reserve(size_t extra);
/* Record [start, end), replacing what was there. Room for three must be reserved. */
void region_set(uint64_t start, uint64_t end, int prot, int flags);
/* The region that begins at start. */
void region_mark(uint64_t start, uint32_t origin, int flags);
/* Forget what is recorded of [start, end); room for two must be reserved. */
void region_carve(uint64_t start, uint64_t end);
bool range_free(uint64_t start, uint64_t end);
bool range_mapped(uint64_t start, uint64_t end);
/* Highest free range of len bytes in [low, high) whose start is a multiple of align. 0 = none. */
uint64_t find_free(uint64_t low, uint64_t high, uint64_t len, uint64_t align);
/* Private anonymous memory that is written to, but a stack. */
bool is_heap(int prot, int flags);
/* Are 2 MiB pages worth their waste in a mapping of len bytes? */
bool huge_pays(uint64_t len);
/* May [start, end) become a mapping of that kind, under --memory and RLIMIT_AS? */
bool within_limit(uint64_t start, uint64_t end, int prot, int flags);
/* The same of so many bytes more, that replace nothing. */
bool more_within_limit(uint64_t more, int prot, int flags);
/* Bytes of all of it. */
uint64_t heap_size(void);
/* True once: when there is so much heap that further mappings get 2 MiB pages. */
bool becomes_large(void);

/* ---- gmem.c ---- */
/* The host's mapping of it is none of the program's any more. */
int host_release(uint64_t start, uint64_t end);
uint64_t limits_memory(void); /* sys_proc.c */
/* Does something that ends there reach to where the processor has no physical addresses? Only PROT_NONE may. */
static inline bool gmem_beyond(uint64_t end) { return end > KX_SPACE_SIZE && end > pvm.high_memory; }
uint64_t place(uint64_t hint, uint64_t len, int flags, bool file);
/* The same for pages of so many bytes. */
uint64_t place_pages(uint64_t hint, uint64_t len, int flags, bool file, uint64_t page);
bool range_has_tramp(uint64_t start, uint64_t end);
/*
 * A call of the host's that was to replace [start, end) has failed, perhaps after it had unmapped what was there; surely: or had put
 * something else there. Room for two regions must be reserved.
 */
void range_lost(uint64_t start, uint64_t end, bool surely);
/* For a library, so that its first pages are of those that KVM maps with each other. 0 = by place(). */
uint64_t place_library(uint64_t len);
#define KVM_NEIGHBOURS (8 * PAGE) /* an aligned group, from its begin up to the first that the host may not write */
/* What the host's mapping gets. */
int host_prot(int prot);
/* The host has mapped this file at the place of do_mmap() already, privately and to be read, as far as [start, end): for the
 * whole of a library, of which other parts are mapped where they lie. fd -1: none. */
extern struct gmem_spanned {
	int fd;
	uint64_t start, end;
	uint64_t off; /* of start */
} gmem_spanned;
int64_t do_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, uint64_t off);
int do_munmap(uint64_t addr, uint64_t len);
int do_mprotect(uint64_t addr, uint64_t len, int prot);
/* After a mmap(2) of the program's. */
void touch_ahead(uint64_t start, uint64_t end, int prot, int flags);
/* Touch so much if there may be more. */
bool touch_more(uint64_t start, uint64_t len);

/* Writable zeros of the monitor's and the guest's: 0 or -errno. */
int map_host(uint64_t gva, uint64_t len);

/* ---- gmem_fork.c ---- */
/* Part of gmem_sys_open()'s memory of which that is still to be called. */
bool sys_is_closed(uint64_t gva);
/* What the LibOS looks at in each call, present. */
void shared_populate(void);

/* ---- gmem_ahead.c ---- */
/* [start, end) is about to become something else. */
void gmem_ahead_carved(uint64_t start, uint64_t end);

/* ---- gmem_tables.c ---- */
/* Index of the first slot that ends above addr. */
size_t slot_find(uint64_t addr);
int slot_cover(uint64_t start, uint64_t end);
/*
 * The guest may reach [start, end) as prot says, as far as the host's mapping lets it. table_wanted: by 4 KiB leaves. 0 or
 * -ENOMEM. Before the host's mapping changes: that makes KVM forget what it had cached of the old leaves.
 */
int pt_set(uint64_t start, uint64_t end, int prot, bool table_wanted);
/*
 * The same where something may be mapped already, whose bytes must not become executable: with PROT_EXEC, execution waits for
 * pt_exec(), which is called when the host's mapping is the new one, and which can't fail. Who does not get so far calls
 * pt_restore().
 */
int pt_prepare(uint64_t start, uint64_t end, int prot, bool table_wanted);
void pt_exec(uint64_t start, uint64_t end);
/* [start, end) as the map of the program's regions says. mm_lock is held. */
void pt_restore(uint64_t start, uint64_t end);
void tables_make(void);

/* ---- gmem_text.c ---- */
/* Patched sites whose texts were in [start, end). All under mm_lock. Gone, with their trampolines; */
void sites_forget(uint64_t start, uint64_t end);
/* replaced by memory that the program can copy the text into: trampolines stay until that is unmapped, or a text again; */
void sites_leave(uint64_t start, uint64_t end);
/* executable again: those whose bytes were copied back are sites again; */
void sites_return(uint64_t start, uint64_t end);
/* those that were left alone, of memory that becomes another text. */
void sites_forget_left(uint64_t start, uint64_t end);
/* What becomes of an executable private file mapping. */
struct image;
struct text_use {
	const struct text *shared; /* the patched copy of it that others have, too, */
	int fd;                    /* and where to map it from */
	struct patch_plan plan;    /* else: to be applied to the mapping itself, where n is not 0 */
	uint64_t tramp, tramp_size;
	bool rseq;                 /* has restartable sequences */
	const struct image *image; /* that the policy was asked about; NULL = none */
	struct kx_site *sites;     /* of the shared one, */
	size_t nr_sites;           /* and how many the text has where it is mapped */
};
/* prot: with PROT_WRITE the program wants a copy of its own. */
void text_prepare(uint64_t gva, uint64_t len, int prot, int fd, uint64_t off, struct text_use *use);
/*
 * Map a text that has sites, at gva, with its trampolines: these first, since its jumps lead to them. 0, with room for four regions
 * more, or -errno: then what was at gva may be lost (range_lost()), and no trampolines are there.
 */
int text_map(uint64_t gva, uint64_t len, int hp, int flags, int fd, uint64_t off, struct text_use *use);
/* It is noted that it is there: its sites are, too. */
void text_mapped(const struct text_use *use);
void text_use_end(struct text_use *use);
int text_own(uint64_t start, uint64_t end);
/* [start, end) is about to be moved: as its file has it, since the jumps and what they lead to go by addresses. 0 or -errno. */
int text_unpatch(uint64_t start, uint64_t end);
int place_ready(void *p, uint64_t len, int hp, uint64_t gva);
/* Where the family's copies are mapped: pieces of regions with GMEM_TEXT. */
struct text_map {
	uint64_t start, end, at; /* at: bytes into the text, of start */
	const struct text *text;
	uint64_t dev, ino; /* of the file, as maps_file() has them */
	char path[168];
};
const struct text_map *text_map_find(uint64_t gva);

/* ---- gmem_origin.c ---- */
/* Of which mapping of a file the memory at gva is a part: its number + 1; 0 = not noted. */
uint32_t origin_number(uint64_t gva);
int map_admit(uint64_t addr, uint64_t len, int prot, int flags, uint64_t off, int *fd, struct image **image,
	      uint64_t *end);
int map_note(uint64_t addr, uint64_t len, int prot, uint64_t off, int fd, struct image *image, uint32_t under,
	     uint64_t end);
int protect_admit(const struct gmem_region *r, uint64_t a, uint64_t e, int prot);
#endif
